//! A cluster in miniature: some in-memory SQLite databases as shards, one more that has all rows, and plans
//! executed by hand.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{Column, DdlEffect, KeyType, PartitionId, ShardId, Table, TableId, TableKind, Tables, Value, partition_of};
use pleat_sql::{Bound, DdlAction, Fetch, Params, Route, Schema, Source, SqlError, Statement, WriteTarget, prepare};
use rusqlite::functions::FunctionFlags;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, params_from_iter};

pub const PARTITIONS: u32 = 64;

/// An answer: column names and rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Value>>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    Refused(SqlError),
    Sqlite(String),
}

pub struct World {
    pub tables: Tables,
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
        prepare(sql, &Schema { tables: &self.tables, default_keys: &self.default_keys })
    }

    /// Carries out a schema change everywhere.
    pub fn ddl(&mut self, sql: &str) -> Result<(), SqlError> {
        let Statement::Ddl(plan) = self.prepare(sql)? else { panic!("not a schema change: {sql}") };
        for statement in &plan.statements {
            self.whole.execute_batch(statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
            self.shards.iter().for_each(|shard| shard.execute_batch(statement).unwrap());
        }
        if plan.action == DdlAction::Nothing {
            return Ok(());
        }
        let described = describe(&self.whole, &plan.table);
        match plan.effect(described, ShardId(0))? {
            DdlEffect::CreateTable(table) => {
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
        }
        Ok(())
    }

    /// Carries out a write where its plan says, and on the whole database; both must answer alike.
    pub fn write(&self, sql: &str, values: &[Value]) -> Result<(), Failure> {
        let Statement::Write(plan) = self.prepare(sql).map_err(Failure::Refused)? else { panic!("not a write: {sql}") };
        let route = plan.route(&Params::Positional(values), PARTITIONS).map_err(Failure::Refused)?;
        let shards: BTreeSet<usize> = match &route.target {
            WriteTarget::Reference => (0..self.shards.len()).collect(),
            WriteTarget::Units(units) if units.is_empty() => BTreeSet::from([0]),
            WriteTarget::Units(units) => {
                let owners: BTreeSet<usize> = units.partitions.iter().map(|partition| self.owner(*partition)).chain(units.singles.values().map(|_| 0)).collect();
                if owners.len() > 1 {
                    return Err(Failure::Refused(pleat_sql::several_shards("?")));
                }
                let foreign = owners.iter().map(|owner| (owner + 1) % self.shards.len()).filter(|_| self.foreign_rows && units.singles.is_empty());
                owners.iter().copied().chain(foreign).collect()
            }
            WriteTarget::Everywhere { table, .. } => return Err(Failure::Refused(pleat_sql::several_shards(table))),
        };
        for statement in &route.statements {
            let mut expected = run(&self.whole, statement).map_err(Failure::Sqlite)?;
            normalize(&mut expected.rows);
            for shard in &shards {
                let mut answer = run(&self.shards[*shard], statement).map_err(Failure::Sqlite)?;
                normalize(&mut answer.rows);
                assert!(same(&answer.rows, &expected.rows), "{sql}\non shard {shard}: {answer:?}\nexpected {expected:?}");
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
            let owners: BTreeSet<usize> = units.partitions.iter().map(|partition| self.owner(*partition)).chain(singles).collect();
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
            Route::Concat { fetch, limit, offset } => {
                self.count("concat");
                let mut answer = self.fetch(fetch)?;
                let skip = usize::try_from(*offset).unwrap_or(usize::MAX);
                let take = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
                answer.rows = answer.rows.into_iter().skip(skip).take(take).collect();
                Ok(answer)
            }
            Route::Gather { fetches, finish } => {
                self.count(if fetches[0].table == "__pleat_parts" { "partial" } else { "gather" });
                let finisher = Connection::open_in_memory().unwrap();
                for fetch in fetches {
                    finisher.execute_batch(&fetch.create_sql).unwrap_or_else(|error| panic!("{}: {error}", fetch.create_sql));
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
            all.columns = answer.columns;
            all.rows.extend(answer.rows);
        }
        Ok(all)
    }

    /// Compares Pleat's answers (by the best route, and scattered) with the whole database's: `Ok(false)` when
    /// they are the same, `Ok(true)` when Pleat refused, otherwise the difference.
    pub fn check(&self, sql: &str, values: &[Value]) -> Result<bool, String> {
        let expected = self.expected(sql, values);
        let mut refused = false;
        for scatter in [false, true] {
            let problem = match (self.answer(sql, values, scatter), &expected) {
                (Ok(answer), Ok(expected)) => self.compare(sql, answer, expected.clone()),
                (Err(Failure::Refused(error)), Ok(_)) if error.sqlstate() == "0A000" => {
                    refused = true;
                    None
                }
                (Err(_), Err(_)) => None,
                (Ok(answer), Err(error)) => Some(format!("SQLite refuses this ({error}), but Pleat answered {answer:?}")),
                (Err(error), Ok(_)) => Some(format!("failed with {error:?}")),
            };
            if let Some(problem) = problem {
                return Err(format!("{sql} {values:?} (scattered: {scatter})\n  {problem}\n{}", self.explain(sql, values)));
            }
        }
        Ok(refused)
    }

    /// What differs between an answer and the expected one.
    fn compare(&self, sql: &str, mut answer: Answer, mut expected: Answer) -> Option<String> {
        if answer.columns != expected.columns {
            return Some(format!("columns {:?}\n  instead of {:?}", answer.columns, expected.columns));
        }
        let order = self.prepare(sql).is_ok() && sql.to_ascii_uppercase().rsplit(')').next().is_some_and(|tail| tail.contains("ORDER BY"));
        let unlimited = !sql.to_ascii_uppercase().contains("LIMIT");
        if !order && unlimited {
            normalize(&mut answer.rows);
            normalize(&mut expected.rows);
        }
        if !order && !unlimited {
            // Which rows a LIMIT without ORDER BY gives is SQLite's choice; how many is not.
            let (got, wanted) = (answer.rows.len(), expected.rows.len());
            return (got != wanted).then(|| format!("{got} rows instead of {wanted}"));
        }
        let differs = !same(&answer.rows, &expected.rows);
        differs.then(|| format!("answered {:?}\n  expected {:?}", answer.rows, expected.rows))
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
    let columns = statement.column_names().into_iter().map(str::to_owned).collect::<Vec<_>>();
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
    let create_sql: String = connection.query_row("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE", [name], |row| row.get(0)).ok()?;
    let mut statement = connection.prepare(&format!("SELECT name, type, \"notnull\", dflt_value IS NOT NULL, pk, hidden FROM pragma_table_xinfo('{name}')")).unwrap();
    let mut keys = Vec::new();
    let columns = statement
        .query_map([], |row| {
            let column: String = row.get(0)?;
            let pk: i64 = row.get(4)?;
            if pk > 0 {
                keys.push((pk, column.clone()));
            }
            let (_, collation, ..) = connection.column_metadata(None::<&str>, name, column.as_str())?;
            let collation = collation.map(|collation| collation.to_string_lossy().into_owned()).filter(|collation| collation != "BINARY");
            Ok(Column { name: column, decl_type: row.get(1)?, collation, not_null: row.get(2)?, generated: row.get::<_, i64>(5)? > 0, has_default: row.get(3)? })
        })
        .unwrap()
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    keys.sort();
    let without_rowid = create_sql.to_uppercase().contains("WITHOUT ROWID");
    let primary_key: Vec<String> = keys.into_iter().map(|(_, column)| column).collect();
    Some(Table { id: TableId(0), name: name.to_owned(), kind: TableKind::Reference, columns, primary_key, rowid_alias: false, without_rowid, create_sql, indexes: Vec::new() })
}

/// Sorts rows, for answers whose order means nothing.
fn normalize(rows: &mut [Vec<Value>]) {
    let key = |value: &Value| match value {
        Value::Real(real) => format!("real {real:.6e}"),
        other => format!("{other:?}"),
    };
    rows.sort_by_cached_key(|row| row.iter().map(key).collect::<Vec<_>>());
}

/// Equal, reals to 1e-9.
fn same(left: &[Vec<Value>], right: &[Vec<Value>]) -> bool {
    let close = |left: &Value, right: &Value| match (left, right) {
        (Value::Real(left), Value::Real(right)) => {
            left == right || (left - right).abs() <= 1e-9 * left.abs().max(right.abs()).max(1.0)
        }
        (left, right) => left == right,
    };
    left.len() == right.len()
        && left.iter().zip(right).all(|(left, right)| left.len() == right.len() && left.iter().zip(right).all(|(left, right)| close(left, right)))
}

/// A small generator of pseudo-random numbers (xorshift), so that a seed names a run.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }

    pub fn pick<'t, T: ?Sized>(&mut self, list: &[&'t T]) -> &'t T {
        list[self.roll(list.len())]
    }
}
