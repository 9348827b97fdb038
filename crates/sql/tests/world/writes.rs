//! Writes carried out by their plans over the shards of a [`World`], and compared with the whole database.

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{PartitionId, Table, TableId, TableKind, Value};
use pleat_generate::Answer;
use pleat_generate::answer::{normalize, same};
use pleat_sql::{
    Bound, ComputedWrite, Ids, IdsWanted, Params, Route, SpreadWrite, SqlError, Statement, WritePlan, WriteTarget,
};
use rusqlite::Connection;

use super::{Failure, PARTITIONS, World, describe, run};

/// What one statement did: how many rows, and what RETURNING gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effect {
    pub rows_affected: u64,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Value>>,
}

/// How a write that was compared ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ended {
    Done,
    /// Both failed for the same kind of reason.
    Failed,
    /// Pleat refused with 0A000.
    Refused,
}

/// Blocks of ids by the plan's wishes.
struct Counters<'w>(&'w World);

impl Counters<'_> {
    /// The ids that SQLite would give next in the whole database.
    fn give(&self, wanted: &[IdsWanted]) -> Ids {
        wanted.iter().fold(Ids::none(), |ids, wanted| {
            let id = &self.0.tables[&wanted.name.to_ascii_lowercase()].primary_key[0];
            let sql = format!("SELECT coalesce(max(\"{id}\"), 0) FROM \"{}\"", wanted.name);
            let known: i64 = self.0.whole.query_row(&sql, [], |row| row.get(0)).unwrap();
            ids.with(wanted.table, wanted.above.map_or(known, |above| above.max(known)) + 1)
        })
    }
}

impl World {
    /// Carries out a write on the shards and on the whole database, and compares effects and contents.
    pub fn check_write(&self, sql: &str, values: &[Value]) -> Result<Ended, String> {
        let problem = |what: String| format!("{sql} {values:?}\n  {what}\n{}", self.explain(sql, values));
        self.each_database(|database| database.execute_batch("BEGIN").unwrap());
        let done = self.spread_write(sql, values);
        let expected = self.whole_write(sql, values);
        let (end, result) = match (done, expected) {
            (Ok(effects), Ok(expected)) => ("COMMIT", compare(effects, expected).map(|()| Ended::Done)),
            (Err(Failure::Refused(error)), _) if error.sqlstate() == "0A000" => ("ROLLBACK", Ok(Ended::Refused)),
            (Err(error), Err(expected)) => ("ROLLBACK", same_class(&error, &expected).map(|()| Ended::Failed)),
            (Err(error), Ok(_)) => ("ROLLBACK", Err(format!("failed with {error:?}"))),
            (Ok(_), Err(expected)) => ("ROLLBACK", Err(format!("done, but SQLite says {expected}"))),
        };
        self.each_database(|database| database.execute_batch(end).unwrap());
        let contents = self.check_contents(sql);
        result.and_then(|ended| contents.map(|()| ended)).map_err(problem)
    }

    fn each_database(&self, act: impl Fn(&Connection)) {
        self.shards.iter().chain([&self.whole]).for_each(act);
    }

    fn whole_write(&self, sql: &str, values: &[Value]) -> Result<Vec<Effect>, String> {
        // The plan's text of each statement has the parameters of each.
        let mut effects = Vec::new();
        let mut at = 0;
        let statements = pleat_sql::split_script(sql).map_err(|error| error.to_string())?;
        if let [statement] = statements.as_slice() {
            let bound = Bound { sql: (*statement).into(), params: values.to_vec() };
            return Ok(vec![effect(&self.whole, &bound)?]);
        }
        for statement in statements {
            let wanted = statement.matches('?').count();
            let params = values.get(at..at + wanted).unwrap_or_default().to_vec();
            at += wanted;
            effects.push(effect(&self.whole, &Bound { sql: statement.into(), params })?);
        }
        Ok(effects)
    }

    fn spread_write(&self, sql: &str, values: &[Value]) -> Result<Vec<Effect>, Failure> {
        let Statement::Write(plan) = self.prepare(sql).map_err(Failure::Refused)? else { panic!("not a write: {sql}") };
        let params = Params::Positional(values);
        let ids = Counters(self).give(&plan.ids_wanted(&params).map_err(Failure::Refused)?);
        let route = plan.route(&params, PARTITIONS, &ids).map_err(Failure::Refused)?;
        if let Some(shards) = self.one_place(&route.target) {
            self.count("one place");
            let on =
                |shard: &usize, statement: &Bound| effect(&self.shards[*shard], statement).map_err(Failure::Sqlite);
            return route
                .statements
                .iter()
                .map(|statement| {
                    let effects = shards.iter().map(|shard| on(shard, statement)).collect::<Result<Vec<_>, _>>()?;
                    assert!(effects.windows(2).all(|pair| pair[0] == pair[1]), "{sql}: copies differ");
                    Ok(effects.into_iter().next().unwrap_or_default())
                })
                .collect();
        }
        self.spread_plan(&plan, &params, &ids)
    }

    /// The shards that the route names, if it can be followed.
    fn one_place(&self, target: &WriteTarget) -> Option<Vec<usize>> {
        match target {
            WriteTarget::Reference => Some((0..self.shards.len()).collect()),
            WriteTarget::Everywhere { .. } | WriteTarget::Spread { .. } => None,
            WriteTarget::Units(units) => {
                let singles = units.singles.values().map(|_| 0);
                let owners: BTreeSet<usize> =
                    units.partitions.iter().map(|partition| self.owner(*partition)).chain(singles).collect();
                (owners.len() <= 1).then(|| vec![owners.first().copied().unwrap_or(0)])
            }
        }
    }

    fn spread_plan(&self, plan: &WritePlan, params: &Params, ids: &Ids) -> Result<Vec<Effect>, Failure> {
        let writes = plan.spread(params, PARTITIONS, ids).map_err(Failure::Refused)?;
        writes.iter().map(|write| self.spread_statement(write)).collect()
    }

    fn spread_statement(&self, write: &SpreadWrite) -> Result<Effect, Failure> {
        let mut total = Effect::default();
        match write {
            SpreadWrite::Rows(rows) => {
                self.count("rows");
                for shard in 0..self.shards.len() {
                    let partitions = rows.partitions().into_iter().filter(|partition| self.owner(*partition) == shard);
                    if let Some(statement) = rows.on(&partitions.collect()) {
                        total.add(self.effect_on(shard, &statement)?);
                    }
                }
            }
            SpreadWrite::Same { prune, sql, sql_filtered, params } => {
                self.count("same");
                let shards: BTreeSet<usize> = match prune {
                    None => (0..self.shards.len()).collect(),
                    Some(units) if units.is_empty() => BTreeSet::from([0]),
                    Some(units) => units.iter().map(|unit| self.owner_of_unit(*unit)).collect(),
                };
                let sql = sql_filtered.as_ref().filter(|_| self.foreign_rows).unwrap_or(sql);
                for shard in shards {
                    total.add(self.effect_on(shard, &Bound { sql: sql.clone(), params: params.clone() })?);
                }
            }
            SpreadWrite::Reference(statement) => {
                self.count("reference");
                let effects = (0..self.shards.len()).map(|shard| self.effect_on(shard, statement));
                let effects = effects.collect::<Result<Vec<_>, _>>()?;
                assert!(effects.windows(2).all(|pair| pair[0] == pair[1]), "{}: copies differ", statement.sql);
                total.add(effects.into_iter().next().unwrap_or_default());
            }
            SpreadWrite::Computed(write) => {
                self.count("computed");
                self.computed(write, &mut total)?;
            }
        }
        Ok(total)
    }

    fn computed(&self, write: &ComputedWrite, total: &mut Effect) -> Result<(), Failure> {
        let mut route = write.read().route(&write.params(), PARTITIONS).map_err(Failure::Refused)?;
        if let Route::Shard { units, statement } = &route {
            let singles = units.singles.values().map(|_| 0);
            let owners: BTreeSet<usize> =
                units.partitions.iter().map(|partition| self.owner(*partition)).chain(singles).collect();
            if owners.len() > 1 {
                route = write.read().scatter(&write.params(), PARTITIONS).map_err(Failure::Refused)?;
            } else {
                let shard = owners.first().copied().unwrap_or(0);
                let answer = run(&self.shards[shard], statement).map_err(Failure::Sqlite)?;
                return self.write_rows(write, &answer, total);
            }
        }
        let answer = self.follow(&route)?;
        self.write_rows(write, &answer, total)
    }

    fn write_rows(&self, write: &ComputedWrite, read: &Answer, total: &mut Effect) -> Result<(), Failure> {
        let wanted: Vec<IdsWanted> = write.ids_wanted(&read.rows).map_err(Failure::Refused)?.into_iter().collect();
        let ids = Counters(self).give(&wanted);
        for keyed in write.statements(&read.rows, &ids).map_err(Failure::Refused)? {
            let shard = keyed.units.first().map_or(2, |unit| self.owner_of_unit(*unit));
            let effect = self.effect_on(shard, &keyed.statement)?;
            if keyed.counted {
                total.add(effect);
            } else {
                assert_eq!(effect.rows_affected, 1, "a row that moves is there: {:?}", keyed.statement);
            }
        }
        Ok(())
    }

    fn effect_on(&self, shard: usize, statement: &Bound) -> Result<Effect, Failure> {
        effect(&self.shards[shard], statement).map_err(Failure::Sqlite)
    }

    fn owner_of_unit(&self, unit: PartitionId) -> usize {
        if unit.is_single() { 0 } else { self.owner(unit) }
    }

    /// Whether all tables that the statement names have the same rows on the shards as in the whole database.
    fn check_contents(&self, sql: &str) -> Result<(), String> {
        let words: BTreeSet<&str> = sql.split(|char: char| !char.is_alphanumeric()).collect();
        let tables = self.tables.values().filter(|table| words.contains(table.name.as_str()));
        for table in tables {
            let name = &table.name;
            let rows = |database: &Connection, filter: &str| {
                let bound = Bound { sql: format!("SELECT * FROM {name} {filter}").into(), params: Vec::new() };
                run(database, &bound).unwrap().rows
            };
            let mut expected = rows(&self.whole, "");
            normalize(&mut expected);
            let copies: Vec<Vec<Vec<Value>>> = match &table.kind {
                TableKind::Reference => self.shards.iter().map(|shard| rows(shard, "")).collect(),
                TableKind::Single { .. } => vec![rows(&self.shards[0], "")],
                TableKind::Sharded { key, .. } => {
                    let filter = format!("WHERE pleat_owned({key})");
                    let foreign =
                        |shard: &&Connection| !rows(shard, &format!("WHERE NOT pleat_owned({key})")).is_empty();
                    if !self.foreign_rows && self.shards.iter().any(|shard| foreign(&shard)) {
                        return Err(format!("{name} has rows on shards that don't own them"));
                    }
                    vec![self.shards.iter().flat_map(|shard| rows(shard, &filter)).collect()]
                }
            };
            for mut copy in copies {
                normalize(&mut copy);
                if !same(&copy, &expected) {
                    let differs = |left: &[Vec<Value>], right: &[Vec<Value>]| {
                        left.iter().filter(|row| !right.contains(row)).take(4).cloned().collect::<Vec<_>>()
                    };
                    let (more, less) = (differs(&copy, &expected), differs(&expected, &copy));
                    return Err(format!("{name} differs\n  shards have {more:?}\n  not {less:?}"));
                }
            }
        }
        Ok(())
    }

    /// Makes a table of this kind, which `CREATE TABLE` itself might refuse.
    pub fn declare(&mut self, sql: &str, name: &str, kind: TableKind) {
        self.each_database(|database| database.execute_batch(sql).unwrap());
        let id = TableId(u32::try_from(self.tables.len()).unwrap() + 1);
        let table = Table { id, kind, ..describe(&self.whole, name).unwrap() };
        self.tables.insert(name.to_owned(), table);
    }

    /// Copies every row of `table` to the shard after its own, as if a move had left it there.
    pub fn leave_behind(&self, table: &str) {
        let stored = self.tables[table].columns.iter().filter(|column| !column.generated);
        let columns = stored.map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ");
        let rows: Vec<(usize, Vec<Value>)> = (0..self.shards.len())
            .flat_map(|shard| {
                let bound = Bound { sql: format!("SELECT {columns} FROM {table}").into(), params: Vec::new() };
                run(&self.shards[shard], &bound).unwrap().rows.into_iter().map(move |row| (shard, row))
            })
            .collect();
        for (shard, row) in rows {
            let marks = vec!["?"; row.len()].join(", ");
            let sql = format!("INSERT INTO {table} ({columns}) VALUES ({marks})");
            effect(&self.shards[(shard + 1) % self.shards.len()], &Bound { sql: sql.into(), params: row }).unwrap();
        }
    }

    /// The rows of `table` that shards hold without owning them.
    pub fn left_behind(&self, table: &str) -> Vec<Vec<Value>> {
        let key = self.tables[table].shard_key().unwrap().0.to_owned();
        let sql = format!("SELECT * FROM {table} WHERE NOT pleat_owned({key}) ORDER BY 1, 2");
        let bound = Bound { sql: sql.into(), params: Vec::new() };
        self.shards.iter().flat_map(|shard| run(shard, &bound).unwrap().rows).collect()
    }

    /// How many writes went each way.
    pub fn ways(&self) -> BTreeMap<&'static str, usize> {
        self.routes.borrow().clone()
    }
}

impl Effect {
    fn add(&mut self, other: Effect) {
        self.rows_affected += other.rows_affected;
        self.columns = other.columns;
        self.rows.extend(other.rows);
    }
}

fn effect(database: &Connection, statement: &Bound) -> Result<Effect, String> {
    let answer = run(database, statement)?;
    Ok(Effect { rows_affected: database.changes(), columns: answer.columns, rows: answer.rows })
}

fn compare(mut effects: Vec<Effect>, mut expected: Vec<Effect>) -> Result<(), String> {
    for effect in effects.iter_mut().chain(&mut expected) {
        normalize(&mut effect.rows);
    }
    let equal = effects.len() == expected.len()
        && effects.iter().zip(&expected).all(|(one, other)| {
            one.rows_affected == other.rows_affected && one.columns == other.columns && same(&one.rows, &other.rows)
        });
    if equal { Ok(()) } else { Err(format!("effects {effects:?}\n  expected {expected:?}")) }
}

fn is_constraint(message: &str) -> bool {
    ["constraint", "datatype mismatch", "cannot store"].iter().any(|word| message.contains(word))
}

fn same_class(error: &Failure, expected: &str) -> Result<(), String> {
    let constraint = match error {
        Failure::Sqlite(message) => is_constraint(message),
        Failure::Refused(error) => is_constraint_code(error),
    };
    if constraint == is_constraint(expected) {
        return Ok(());
    }
    Err(format!("failed with {error:?}, but SQLite with {expected}"))
}

fn is_constraint_code(error: &SqlError) -> bool {
    matches!(error.sqlstate(), "23502" | "22P02")
}
