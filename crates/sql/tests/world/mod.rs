//! A cluster in miniature: some in-memory SQLite databases as shards, one more that has all rows, and plans
//! executed by hand.

#![allow(dead_code)] // each test uses a part of it

pub mod writes;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{
    Column, DdlEffect, Index, KeyType, PartitionId, Retold, Rewritten, ShardId, Table, TableId, TableKind, Tables,
    Tried, Trigger, TriggerState, Value, View, Views, newest_trigger, partition_of,
};
use pleat_generate::answer::{compare, is_ordered, normalize, same};
use pleat_generate::{Answer, Dice, RICH};
use pleat_sql::{
    Bound, DdlAction, Fetch, Ids, Params, Route, Schema, Source, SqlError, Statement, WriteTarget, compare_rows,
    prepare,
};
use rusqlite::functions::FunctionFlags;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, params_from_iter};

pub const PARTITIONS: u32 = 64;

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    Refused(SqlError),
    Sqlite(String),
}

pub struct World {
    pub tables: Tables,
    pub views: Views,
    pub default_keys: BTreeMap<String, String>,
    whole: Connection,
    shards: Vec<Connection>,
    /// Every row is also on the shard after its own, as if a move had left it there.
    foreign_rows: bool,
    pub routes: RefCell<BTreeMap<&'static str, usize>>,
}

impl World {
    pub fn new(shards: usize, foreign_rows: bool) -> World {
        World {
            tables: Tables::new(),
            views: Views::new(),
            default_keys: BTreeMap::new(),
            whole: Connection::open_in_memory().unwrap(),
            shards: (0..shards).map(|index| shard(index, shards)).collect(),
            foreign_rows,
            routes: RefCell::default(),
        }
    }

    fn owner(&self, partition: PartitionId) -> usize {
        owner(partition, self.shards.len())
    }

    pub fn prepare(&self, sql: &str) -> Result<Statement, SqlError> {
        prepare(sql, &Schema { tables: &self.tables, views: &self.views, default_keys: &self.default_keys })
    }

    /// Carries out a schema change everywhere.
    pub fn ddl(&mut self, sql: &str) -> Result<(), Failure> {
        let Statement::Ddl(plan) = self.prepare(sql).map_err(Failure::Refused)? else {
            panic!("not a schema change: {sql}")
        };
        for statement in &plan.statements {
            let declared = match &plan.action {
                DdlAction::CreateTrigger { trigger, .. } if *statement == trigger.on_shards => &trigger.sql,
                _ => statement,
            };
            self.whole.execute_batch(declared).map_err(|error| Failure::Sqlite(error.to_string()))?;
            // No shard knows a view.
            if !matches!(plan.action, DdlAction::CreateView { .. } | DdlAction::DropView) {
                self.shards.iter().for_each(|shard| shard.execute_batch(statement).unwrap());
            }
        }
        if plan.action == DdlAction::Nothing {
            return Ok(());
        }
        let described = describe(&self.whole, plan.describes());
        match plan.effect(self.tried(described), ShardId(0)).map_err(Failure::Refused)? {
            DdlEffect::CreateTable(mut table) => {
                table.id = TableId(u32::try_from(self.tables.len()).unwrap() + 1);
                self.tables.insert(table.name.to_ascii_lowercase(), table);
            }
            DdlEffect::DropTable { table } => {
                self.tables.remove(&table.to_ascii_lowercase());
            }
            DdlEffect::CreateIndex { table, index } => {
                self.tables.get_mut(&table.to_ascii_lowercase()).unwrap().indexes.push(index);
            }
            DdlEffect::DropIndex { table, index } => {
                self.tables.get_mut(&table.to_ascii_lowercase()).unwrap().indexes.retain(|known| known.name != index);
            }
            DdlEffect::AddColumn { table, column, create_sql } => {
                let table = self.tables.get_mut(&table.to_ascii_lowercase()).unwrap();
                table.columns.push(column);
                table.create_sql = create_sql;
            }
            // Only for tables without rows: these would have to be brought to their new shards.
            DdlEffect::PlaceTable { after, .. } => {
                self.tables.insert(after.name.to_ascii_lowercase(), *after);
            }
            DdlEffect::CreateTrigger { table, trigger, about, seen } => {
                assert!(about.iter().all(|table| self.tables[&table.name.to_ascii_lowercase()] == *table));
                assert_eq!(seen, newest_trigger(&self.tables));
                let table = self.tables.get_mut(&table.to_ascii_lowercase()).unwrap();
                table.triggers.push(Trigger { id: seen + 1, state: TriggerState::Ready, ..trigger });
            }
            DdlEffect::DropTrigger { table, trigger } => {
                self.tables
                    .get_mut(&table.to_ascii_lowercase())
                    .unwrap()
                    .triggers
                    .retain(|known| known.name != trigger);
            }
            DdlEffect::Servers { .. } | DdlEffect::PlaceOnServers { .. } => unreachable!("a plan for SQLite"),
            DdlEffect::CreateView(view) => {
                self.views.insert(view.name.to_ascii_lowercase(), view);
            }
            DdlEffect::DropView { view } => {
                self.views.remove(&view.to_ascii_lowercase());
            }
            DdlEffect::AlterTable { before, mut after, views, triggers, .. } => {
                for Rewritten { after, .. } in views {
                    self.views.insert(after.name.to_ascii_lowercase(), after);
                }
                let sql =
                    "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = ?1 AND sql IS NOT NULL";
                let mut indexes = self.whole.prepare(sql).unwrap();
                let index = |row: &rusqlite::Row<'_>| Ok(Index { name: row.get(0)?, sql: row.get(1)? });
                after.indexes = indexes.query_map([&after.name], index).unwrap().map(Result::unwrap).collect();
                after.triggers = before.triggers;
                self.tables.remove(&before.name.to_ascii_lowercase());
                self.tables.insert(after.name.to_ascii_lowercase(), *after);
                for trigger in self.tables.values_mut().flat_map(|table| &mut table.triggers) {
                    if let Some(retold) = triggers.iter().find(|retold| retold.before == *trigger) {
                        *trigger = retold.after.clone();
                    }
                }
            }
        }
        Ok(())
    }

    fn tried(&self, table: Option<Table>) -> Tried {
        let sql_of = |name: &str| {
            let sql = "SELECT sql FROM sqlite_schema WHERE type = 'trigger' AND name = ?1";
            self.whole.query_row(sql, [name], |row| row.get::<_, String>(0)).ok()
        };
        let mut triggers = Vec::new();
        for (table, before) in self.tables.values().flat_map(|table| table.triggers.iter().map(move |one| (table, one)))
        {
            let Some(sql) = sql_of(&before.name) else { continue };
            let after = Trigger { sql, ..before.clone() };
            triggers.push(Retold { table: table.name.clone(), before: before.clone(), after });
        }
        Tried { table, views: self.rewritten(), triggers }
    }

    /// The views that the whole database has otherwise than the catalog.
    fn rewritten(&self) -> Vec<Rewritten> {
        let changed = |view: &View| {
            let sql = "SELECT sql FROM sqlite_schema WHERE type = 'view' AND name = ?1";
            let sql: Option<String> = self.whole.query_row(sql, [&view.name], |row| row.get(0)).ok();
            let after = View { name: view.name.clone(), sql: sql.filter(|sql| *sql != view.sql)? };
            Some(Rewritten { before: view.clone(), after })
        };
        self.views.values().filter_map(changed).collect()
    }

    /// Carries out a write where its plan says, and on the whole database; both must answer alike.
    pub fn write(&self, sql: &str, values: &[Value]) -> Result<(), Failure> {
        let Statement::Write(plan) = self.prepare(sql).map_err(Failure::Refused)? else { panic!("not a write: {sql}") };
        let route = plan.route(&Params::Positional(values), PARTITIONS, &Ids::none()).map_err(Failure::Refused)?;
        let shards: BTreeSet<usize> = match &route.target {
            WriteTarget::Reference => (0..self.shards.len()).collect(),
            WriteTarget::Units(units) if units.is_empty() => BTreeSet::from([0]),
            WriteTarget::Units(units) => {
                let owners: BTreeSet<usize> = units
                    .partitions
                    .iter()
                    .map(|partition| self.owner(*partition))
                    .chain(units.singles.values().map(|_| 0))
                    .collect();
                if owners.len() > 1 {
                    return Err(Failure::Refused(pleat_sql::several_shards("?")));
                }
                let foreign = owners
                    .iter()
                    .map(|owner| (owner + 1) % self.shards.len())
                    .filter(|_| self.foreign_rows && units.singles.is_empty());
                owners.iter().copied().chain(foreign).collect()
            }
            WriteTarget::Everywhere { table, .. } | WriteTarget::Spread { table } => {
                return Err(Failure::Refused(pleat_sql::several_shards(table)));
            }
        };
        for statement in &route.statements {
            let mut expected = run(&self.whole, statement).map_err(Failure::Sqlite)?;
            normalize(&mut expected.rows);
            for shard in &shards {
                let mut answer = run(&self.shards[*shard], statement).map_err(Failure::Sqlite)?;
                normalize(&mut answer.rows);
                assert!(
                    same(&answer.rows, &expected.rows),
                    "{sql}\non shard {shard}: {answer:?}\nexpected {expected:?}"
                );
            }
        }
        Ok(())
    }

    /// The whole database's answer.
    pub fn expected(&self, sql: &str, values: &[Value]) -> Result<Answer, String> {
        let mut bound = Vec::new();
        if let Ok(Statement::Read(plan)) = self.prepare(sql) {
            bound = plan.whole(&Params::Positional(values)).map(|bound| bound.params).unwrap_or_default();
        }
        run(&self.whole, &Bound { sql: sql.into(), params: bound })
    }

    /// The answer by Pleat's plan. `scatter`: don't use a single shard even if one has everything.
    pub fn answer(&self, sql: &str, values: &[Value], scatter: bool) -> Result<Answer, Failure> {
        let Statement::Read(plan) = self.prepare(sql).map_err(Failure::Refused)? else { panic!("not a read: {sql}") };
        let params = Params::Positional(values);
        let mut route = if scatter { plan.scatter(&params, PARTITIONS) } else { plan.route(&params, PARTITIONS) };
        if let Ok(Route::Shard { units, statement }) = &route {
            let singles = units.singles.values().map(|_| 0);
            let owners: BTreeSet<usize> =
                units.partitions.iter().map(|partition| self.owner(*partition)).chain(singles).collect();
            if owners.len() == 1 {
                self.count("shard");
                let shard = owners.first().copied().unwrap_or(0);
                return run(&self.shards[shard], statement).map_err(Failure::Sqlite);
            }
            route = plan.scatter(&params, PARTITIONS);
        }
        self.follow(&route.map_err(Failure::Refused)?)
    }

    fn count(&self, route: &'static str) {
        *self.routes.borrow_mut().entry(route).or_default() += 1;
    }

    fn follow(&self, route: &Route) -> Result<Answer, Failure> {
        match route {
            Route::Anywhere(statement) => {
                self.count("anywhere");
                run(&self.shards[self.shards.len() - 1], statement).map_err(Failure::Sqlite)
            }
            Route::Shard { .. } => unreachable!("handled before"),
            Route::Concat { fetch, order, hidden, limit, offset } => {
                self.count(if order.is_empty() { "concat" } else { "merge" });
                let mut answer = self.fetch_each(fetch, |rows| {
                    assert!(rows.is_sorted_by(|left, right| compare_rows(order, left, right).is_le()), "{}", fetch.sql);
                })?;
                answer.rows.sort_by(|left, right| compare_rows(order, left, right));
                answer.columns.drain(..hidden);
                answer.rows.iter_mut().for_each(|row| drop(row.drain(..hidden)));
                let skip = usize::try_from(*offset).unwrap_or(usize::MAX);
                let take = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
                answer.rows = answer.rows.into_iter().skip(skip).take(take).collect();
                Ok(answer)
            }
            Route::Gather { fetches, finish } => {
                self.count(match fetches[0].table.as_str() {
                    "__parts" => "partial",
                    "__parts1" => "pieces",
                    _ => "gather",
                });

                let finisher = Connection::open_in_memory().unwrap();
                for fetch in fetches {
                    finisher
                        .execute_batch(&fetch.create_sql)
                        .unwrap_or_else(|error| panic!("{}: {error}", fetch.create_sql));
                    let answer = self.fetch(fetch)?;
                    let marks = vec!["?"; answer.columns.len()].join(", ");
                    let insert = format!("INSERT INTO \"{}\" VALUES ({marks})", fetch.table);
                    for row in answer.rows {
                        finisher.execute(&insert, params_from_iter(row.iter().map(to_sqlite))).unwrap();
                    }
                }
                run(&finisher, finish).map_err(Failure::Sqlite)
            }
        }
    }

    fn fetch(&self, fetch: &Fetch) -> Result<Answer, Failure> {
        self.fetch_each(fetch, |_| {})
    }

    /// Fetches, and shows each shard's rows to `look`.
    fn fetch_each(&self, fetch: &Fetch, look: impl Fn(&[Vec<Value>])) -> Result<Answer, Failure> {
        let shards: Vec<usize> = match &fetch.source {
            Source::Sharded { prune: None } => (0..self.shards.len()).collect(),
            Source::Sharded { prune: Some(partitions) } if partitions.is_empty() => vec![0],
            Source::Sharded { prune: Some(partitions) } => {
                let owners: BTreeSet<usize> = partitions.iter().map(|partition| self.owner(*partition)).collect();
                owners.into_iter().collect()
            }
            Source::Reference => vec![1 % self.shards.len()],
            Source::Single(_) => vec![0],
        };
        let sql = match (&fetch.sql_filtered, self.foreign_rows) {
            (Some(filtered), true) => filtered,
            _ => &fetch.sql,
        };
        let bound = Bound { sql: sql.clone(), params: fetch.params.clone() };
        let mut all = Answer { columns: Vec::new(), rows: Vec::new() };
        for shard in shards {
            let answer = run(&self.shards[shard], &bound).map_err(Failure::Sqlite)?;
            look(&answer.rows);
            all.columns = answer.columns;
            all.rows.extend(answer.rows);
        }
        Ok(all)
    }

    /// Compares Pleat's answers (by the best route, and scattered) with the whole database's: `Ok(false)` when
    /// they are the same, `Ok(true)` when Pleat refused, otherwise the difference.
    pub fn check(&self, sql: &str, values: &[Value]) -> Result<bool, String> {
        self.check_ordered(sql, values, is_ordered(sql))
    }

    /// Like `check`; rows are compared as a set when they are not `ordered`.
    pub fn check_ordered(&self, sql: &str, values: &[Value], ordered: bool) -> Result<bool, String> {
        let expected = self.expected(sql, values);
        let mut refused = false;
        for scatter in [false, true] {
            if scatter && !self.may_be_on_one_shard(sql, values) {
                continue; // the best route was this one
            }
            let problem = match (self.answer(sql, values, scatter), &expected) {
                (Ok(answer), Ok(expected)) => compare(sql, answer, expected.clone(), ordered),
                (Err(Failure::Refused(error)), Ok(_)) if error.sqlstate() == "0A000" => {
                    refused = true;
                    None
                }
                (Err(_), Err(_)) => None,
                (Ok(answer), Err(error)) => {
                    Some(format!("SQLite refuses this ({error}), but Pleat answered {answer:?}"))
                }
                (Err(error), Ok(_)) => Some(format!("failed with {error:?}")),
            };
            if let Some(problem) = problem {
                return Err(format!(
                    "{sql} {values:?} (scattered: {scatter})\n  {problem}\n{}",
                    self.explain(sql, values)
                ));
            }
        }
        Ok(refused)
    }

    fn may_be_on_one_shard(&self, sql: &str, values: &[Value]) -> bool {
        let Ok(Statement::Read(plan)) = self.prepare(sql) else { return true };
        let route = plan.route(&Params::Positional(values), PARTITIONS);
        matches!(route, Ok(Route::Shard { .. } | Route::Anywhere(_)))
    }

    pub fn explain(&self, sql: &str, values: &[Value]) -> String {
        let plan = self.prepare(sql).and_then(|plan| plan.explain(&Params::Positional(values), PARTITIONS));
        plan.map_or_else(
            |error| format!("{} {}", error.sqlstate(), error.message),
            |plan| plan.lines().into_iter().map(|(step, detail)| format!("  {step}: {detail}\n")).collect(),
        )
    }
}

fn owner(partition: PartitionId, shards: usize) -> usize {
    partition.0 as usize % shards
}

fn shard(index: usize, shards: usize) -> Connection {
    let shard = Connection::open_in_memory().unwrap();
    // As in the engine's shards, and not in the whole database.
    shard.execute_batch("PRAGMA recursive_triggers = ON").unwrap();
    firing(&shard);
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    shard
        .create_scalar_function("pleat_owned", 1, flags, move |context| {
            let key = value(context.get_raw(0));
            let key_type = match key {
                Value::Integer(_) => KeyType::Integer,
                Value::Text(_) => KeyType::Text,
                _ => KeyType::Bytes,
            };
            Ok(partition_of(&key, key_type, PARTITIONS).is_ok_and(|partition| owner(partition, shards) == index))
        })
        .unwrap();
    shard
}

thread_local! {
    /// The triggers that are under way in the running statement.
    static FIRING: RefCell<BTreeSet<String>> = RefCell::default();
}

fn firing(shard: &Connection) {
    shard
        .create_scalar_function("pleat_firing", 1, FunctionFlags::SQLITE_UTF8, |context| {
            let name: String = context.get(0)?;
            Ok(FIRING.with_borrow(|firing| firing.contains(&name)))
        })
        .unwrap();
    shard
        .create_scalar_function("pleat_firing", 2, FunctionFlags::SQLITE_UTF8, |context| {
            let (name, begins) = (context.get::<String>(0)?, context.get(1)?);
            Ok(FIRING.with_borrow_mut(|firing| if begins { firing.insert(name) } else { firing.remove(&name) }))
        })
        .unwrap();
}

fn value(value: ValueRef) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(integer) => Value::Integer(integer),
        ValueRef::Real(real) => Value::Real(real),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    }
}

fn to_sqlite(value: &Value) -> rusqlite::types::Value {
    match value {
        Value::Null => rusqlite::types::Value::Null,
        Value::Integer(integer) => rusqlite::types::Value::Integer(*integer),
        Value::Real(real) => rusqlite::types::Value::Real(*real),
        Value::Text(text) => rusqlite::types::Value::Text(text.clone()),
        Value::Blob(bytes) => rusqlite::types::Value::Blob(bytes.clone()),
    }
}

fn run(connection: &Connection, bound: &Bound) -> Result<Answer, String> {
    let mut statement = connection.prepare(&bound.sql).map_err(|error| format!("{error} in {}", bound.sql))?;
    FIRING.with_borrow_mut(BTreeSet::clear);
    let columns = statement.column_names().map(str::to_owned).collect::<Vec<_>>();
    let values = bound.params.iter().map(to_sqlite);
    let mut found = statement.query(params_from_iter(values)).map_err(|error| format!("{error} in {}", bound.sql))?;
    let mut rows = Vec::new();
    while let Some(row) = found.next().map_err(|error| error.to_string())? {
        rows.push((0..columns.len()).map(|at| value(row.get_ref_unwrap(at))).collect());
    }
    Ok(Answer { columns, rows })
}

/// SQLite's description of a table.
pub fn describe(connection: &Connection, name: &str) -> Option<Table> {
    let create_sql: String = connection
        .query_row("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE", [name], |row| {
            row.get(0)
        })
        .ok()?;
    let mut statement = connection
        .prepare(&format!(
            "SELECT name, type, \"notnull\", dflt_value IS NOT NULL, pk, hidden FROM pragma_table_xinfo('{name}')"
        ))
        .unwrap();
    let mut keys = Vec::new();
    let columns = statement
        .query_map([], |row| {
            let column: String = row.get(0)?;
            let pk: i64 = row.get(4)?;
            if pk > 0 {
                keys.push((pk, column.clone()));
            }
            let (_, collation, ..) = connection.column_metadata(None::<&str>, name, column.as_str())?;
            let collation = collation
                .map(|collation| collation.to_string_lossy().into_owned())
                .filter(|collation| collation != "BINARY");
            Ok(Column {
                name: column,
                decl_type: row.get(1)?,
                collation,
                not_null: row.get(2)?,
                generated: row.get::<_, i64>(5)? > 0,
                serial: None,
                has_default: row.get(3)?,
            })
        })
        .unwrap()
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    keys.sort();
    let without_rowid = create_sql.to_uppercase().contains("WITHOUT ROWID");
    let primary_key: Vec<String> = keys.into_iter().map(|(_, column)| column).collect();
    let integer = |column: &Column| column.decl_type.eq_ignore_ascii_case("INTEGER");
    let alias = |name: &String| columns.iter().any(|column| column.name == *name && integer(column));
    Some(Table {
        id: TableId(0),
        name: name.to_owned(),
        kind: TableKind::Reference,
        rowid_alias: !without_rowid && primary_key.len() == 1 && alias(&primary_key[0]),
        columns,
        primary_key,
        without_rowid,
        create_sql,
        indexes: Vec::new(),
        triggers: Vec::new(),
    })
}

// ---- the data ----

/// A literal, often NULL, of any type, with 64-bit extremes. No `1.0` beside `1`: these are equal, and which of them
/// DISTINCT, GROUP BY or a tie in ORDER BY shows first is SQLite's choice.
fn any_literal(dice: &mut Dice) -> String {
    match dice.roll(12) {
        0..=2 => "NULL".to_owned(),
        3 => format!("{}", dice.roll(10)),
        4 => format!("-{}", dice.roll(1000)),
        5 => format!("{}.5", dice.roll(100)),
        6 => format!("'{}'", dice.pick(&["", "a", "A", "b", "é", "Ω", "10", "5", "1.5", "x''y"])),
        7 => format!("x'{}'", dice.pick(&["", "00", "ff01"])),
        8 => dice.pick(&["9223372036854775807", "-9223372036854775808", "1e300", "0", "1"]).to_owned(),
        _ => format!("{}", dice.roll(5)),
    }
}

fn text_literal(dice: &mut Dice) -> String {
    dice.pick(&["NULL", "''", "'a'", "'A'", "'b'", "'B'", "'é'", "'É'", "'日本'", "'a '", "'z''z'", "'10'", "'9'"])
        .to_owned()
}

fn integer_literal(dice: &mut Dice) -> String {
    if dice.roll(4) == 0 { "NULL".to_owned() } else { format!("{}", dice.roll(12) as i64 - 4) }
}

fn fill(world: &World, dice: &mut Dice) {
    for id in 0..160 {
        let k = dice.roll(24) as i64 - 4;
        let (a, b, c, d, e, f, n) = (
            integer_literal(dice),
            any_literal(dice),
            text_literal(dice),
            any_literal(dice),
            any_literal(dice),
            any_literal(dice),
            text_literal(dice),
        );
        write(
            world,
            &format!(
                "INSERT INTO t (k, id, a, b, c, d, e, f, n) VALUES ({k}, {id}, {a}, {b}, {c}, {d}, {e}, {f}, {n})"
            ),
        );
    }
    for id in 0..60 {
        let k = dice.roll(30) as i64 - 4;
        write(world, &format!("INSERT INTO u VALUES ({id}, {k}, {}, {})", integer_literal(dice), text_literal(dice)));
    }
    for w in ["", "a", "A", "b", "é", "日本", "5", "05", "5.0", "x y", "N1", "n1"] {
        write(world, &format!("INSERT INTO s VALUES ('{w}', {}, {})", integer_literal(dice), dice.roll(20)));
    }
    for id in 0..9 {
        write(world, &format!("INSERT INTO r VALUES ({id}, {}, {})", integer_literal(dice), text_literal(dice)));
        write(world, &format!("INSERT INTO one VALUES ({id}, {}, {})", integer_literal(dice), text_literal(dice)));
    }
}

fn write(world: &World, sql: &str) {
    world.write(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Three shards with rows full of NULLs, odd types and 64-bit extremes.
pub fn rich(foreign_rows: bool) -> World {
    let mut world = World::new(3, foreign_rows);
    for sql in RICH {
        world.ddl(sql).unwrap();
    }
    fill(&world, &mut Dice(42));
    world
}

/// A small cousin of nycflights13: flights and planes by tail number, weather by airport, the rest everywhere.
pub fn flights(shards: usize, foreign_rows: bool) -> World {
    let mut world = World::new(shards, foreign_rows);
    for sql in [
        "CREATE TABLE airlines (carrier TEXT PRIMARY KEY, name TEXT) REFERENCE",
        "CREATE TABLE airports (faa TEXT PRIMARY KEY, name TEXT, lat REAL, lon REAL, alt INTEGER, tz INTEGER) REFERENCE",
        "CREATE TABLE planes (tailnum TEXT PRIMARY KEY, year INTEGER, manufacturer TEXT, model TEXT, seats INTEGER) SHARD BY (tailnum)",
        "CREATE TABLE flights (id INTEGER, year INTEGER, month INTEGER, day INTEGER, dep_time INTEGER, carrier TEXT, flight INTEGER, tailnum TEXT, origin TEXT, dest TEXT, dep_delay INTEGER, arr_delay REAL, distance REAL, time_hour TEXT, PRIMARY KEY (tailnum, id)) SHARD BY (tailnum)",
        "CREATE TABLE weather (origin TEXT, month INTEGER, day INTEGER, hour INTEGER, temp REAL, wind_speed REAL, PRIMARY KEY (origin, month, day, hour)) SHARD BY (origin)",
    ] {
        world.ddl(sql).unwrap();
    }
    let mut dice = Dice(13);
    let (airports, airlines) = (["EWR", "JFK", "LGA", "ORD", "ATL", "LAX"], ["UA", "AA", "B6", "DL"]);
    for (at, code) in airports.iter().enumerate() {
        write(
            &world,
            &format!(
                "INSERT INTO airports VALUES ('{code}', 'Airport {code}', {}.25, -{}.5, {}, -{})",
                30 + at,
                70 + at,
                at * 10,
                5 + at % 3
            ),
        );
    }
    for code in airlines {
        write(&world, &format!("INSERT INTO airlines VALUES ('{code}', 'Airline {code}')"));
    }
    for at in 0..30 {
        let year = if at % 5 == 0 { "NULL".to_owned() } else { (1980 + at).to_string() };
        write(
            &world,
            &format!(
                "INSERT INTO planes VALUES ('N{at}', {year}, '{}', 'M{}', {})",
                dice.pick(&["BOEING", "AIRBUS"]),
                at % 4,
                100 + at
            ),
        );
    }
    for id in 0..300 {
        let delay = if dice.roll(8) == 0 { "NULL".to_owned() } else { (dice.roll(120) as i64 - 20).to_string() };
        let arrival = if delay == "NULL" { delay.clone() } else { format!("{delay}.5") };
        let (month, day, hour) = (1 + dice.roll(3), 1 + dice.roll(4), dice.roll(4));
        write(
            &world,
            &format!(
                "INSERT INTO flights VALUES ({id}, 2013, {month}, {day}, {hour}00, '{}', {}, 'N{}', '{}', '{}', {delay}, {arrival}, {}, '2013-0{month}-0{day} 0{hour}:00:00')",
                dice.pick(&airlines),
                dice.roll(50),
                dice.roll(35),
                airports[dice.roll(3)],
                airports[dice.roll(6)],
                200 + dice.roll(2000)
            ),
        );
    }
    for origin in &airports[..3] {
        for (month, day, hour) in (0..48).map(|at| (1 + at / 16, 1 + at / 4 % 4, at % 4)) {
            let temp = if dice.roll(9) == 0 { "NULL".to_owned() } else { format!("{}.3", dice.roll(40)) };
            write(
                &world,
                &format!("INSERT INTO weather VALUES ('{origin}', {month}, {day}, {hour}, {temp}, {})", dice.roll(30)),
            );
        }
    }
    world
}
