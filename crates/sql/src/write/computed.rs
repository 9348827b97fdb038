//! Writes whose rows, or their new values, only a read over several shards can tell.
//!
//! The read gives, for an UPDATE or DELETE, one row for each row to write: its primary key and shard key, then the new values; for
//! an INSERT the rows to insert. Each is then written by a statement of its own that names the row's keys, so that it
//! runs on the key's owner whatever else that shard holds. How the read and these statements are composed is
//! in `recipe`.
//!
//! Between the read and the write nothing may change: the caller validates, when it prepares, that each shard that was asked still
//! has the content that was read.

use std::collections::BTreeSet;
use std::sync::Arc;

use pleat_cluster::{PartitionId, TableId, Value};

use super::ids::{Giver, Ids, IdsWanted, given_refused, id_of};
use super::rows::KeyColumn;
use crate::error::{Code, SqlError};
use crate::params::Params;
use crate::read::{Bound, ReadPlan, Template};

/// The most rows that one computed write may write.
pub const COMPUTED_ROWS_MAX: usize = 50_000;

/// A computed write, planned.
#[derive(Clone, Debug)]
pub(crate) struct ComputedPlan(pub(super) Arc<Recipe>);

/// How to read, and what to write then. In the templates, slots from `base` on are the columns of a row that was read.
#[derive(Debug)]
pub(super) struct Recipe {
    pub read: ReadPlan,
    /// The request's slot of each of the read's parameters.
    pub read_slots: Vec<usize>,
    pub table: TableId,
    pub name: String,
    pub owner: Owner,
    pub base: usize,
    /// The first columns of a row that was read, which tell rows to change apart; 0 for rows to insert.
    pub identity: usize,
    pub step: Step,
    /// Gives RETURNING's column names when there is nothing to write.
    pub nothing: Option<Template>,
}

/// Where a row is written.
#[derive(Debug)]
pub(super) enum Owner {
    Key(KeyColumn),
    Single(PartitionId),
}

/// What is written for a row that was read. Numbers are places in that row.
#[derive(Debug)]
pub(super) enum Step {
    Insert {
        statement: Template,
        width: usize,
        key: usize,
        id: Option<Id>,
    },
    /// UPDATE or DELETE where the row is.
    Change {
        statement: Template,
        key: usize,
    },
    /// UPDATE if the key stays as it is, otherwise DELETE and INSERT.
    Move {
        update: Template,
        delete: Template,
        insert: Template,
        old: usize,
        new: usize,
    },
}

/// An id that Pleat may have to give.
#[derive(Debug)]
pub(super) struct Id {
    pub column: String,
    /// Where it is; behind the last column if the INSERT doesn't name it.
    pub place: usize,
    pub may_be_given: bool,
}

/// A write that reads first.
///
/// 1. Read: [`ComputedWrite::read`] with [`ComputedWrite::params`], as any read, all of its rows. Note the content version of
///    each shard that was asked, and let Prepare validate it, on shards that are not written too.
/// 2. Get the ids of [`ComputedWrite::ids_wanted`], when there are some.
/// 3. [`ComputedWrite::statements`], each on the owner of its unit, in order.
#[derive(Clone, Debug)]
pub struct ComputedWrite {
    recipe: Arc<Recipe>,
    read_params: Vec<Value>,
    values: Vec<Value>,
    partition_count: u32,
}

/// One statement of a computed write.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyedWrite {
    /// One partition, or one single table. Empty: any shard; it changes nothing of a sharded table and is only there for the
    /// names of RETURNING's columns.
    pub units: BTreeSet<PartitionId>,
    pub statement: Bound,
    /// Whether its `rows_affected` and rows belong to the answer. The DELETE of a row that moves does not: the
    /// INSERT stands for both.
    pub counted: bool,
}

/// Rows leave their old keys before any row arrives at one, so that rows can exchange their keys. (SQLite goes row by row:
/// whether it meets a duplicate on its way depends on the order in which it visits the rows.)
#[derive(Default)]
struct Phases {
    leave: Vec<KeyedWrite>,
    stay: Vec<KeyedWrite>,
    arrive: Vec<KeyedWrite>,
}

impl Phases {
    fn in_order(self) -> Vec<KeyedWrite> {
        [self.leave, self.stay, self.arrive].concat()
    }
}

impl ComputedPlan {
    pub fn bind(&self, values: &[Value], partition_count: u32) -> ComputedWrite {
        let recipe = self.0.clone();
        let values: Vec<Value> = values.iter().take(recipe.base).cloned().collect();
        let slot = |slot: &usize| values.get(*slot).cloned().unwrap_or(Value::Null);
        let read_params = recipe.read_slots.iter().map(slot).collect();
        ComputedWrite { recipe, read_params, values, partition_count }
    }
}

impl ComputedWrite {
    /// What to read.
    pub fn read(&self) -> &ReadPlan {
        &self.recipe.read
    }

    /// The read's parameters.
    pub fn params(&self) -> Params<'_> {
        Params::Positional(&self.read_params)
    }

    /// How many ids these rows want, as [`WritePlan::ids_wanted`](super::WritePlan::ids_wanted).
    pub fn ids_wanted(&self, rows: &[Vec<Value>]) -> Result<Option<IdsWanted>, SqlError> {
        check_count(rows)?;
        let Step::Insert { id: Some(id), .. } = &self.recipe.step else { return Ok(None) };
        let count = rows.iter().filter(|row| *id.said(row) == Value::Null).count() as u64;
        let above = rows.iter().filter_map(|row| id_of(id.said(row))).max();
        let wanted = || IdsWanted { table: self.recipe.table, name: self.recipe.name.clone(), count, above };
        Ok((count > 0).then(wanted))
    }

    /// The statements that write the rows that were read, in order.
    pub fn statements(&self, rows: &[Vec<Value>], ids: &Ids) -> Result<Vec<KeyedWrite>, SqlError> {
        check_count(rows)?;
        let mut giver = Giver::new(ids);
        let mut seen = BTreeSet::new();
        let mut found = Phases::default();
        for (at, row) in rows.iter().enumerate() {
            let identity = row.get(..self.recipe.identity).unwrap_or_default();
            if identity.contains(&Value::Null) {
                return Err(SqlError::unsupported(format!(
                    "a row of {} has NULL in its primary key, so it can't be written from other shards' rows",
                    self.recipe.name
                ))
                .hint("give the row a primary key first"));
            }
            // Of several rows that an UPDATE … FROM finds for one row SQLite takes any.
            if self.recipe.identity > 0 && !seen.insert(format!("{identity:?}")) {
                continue;
            }
            self.write(at, row, &mut giver, &mut found)?;
        }
        let mut found = found.in_order();
        if found.is_empty() {
            let units = match &self.recipe.owner {
                Owner::Single(unit) => BTreeSet::from([*unit]),
                Owner::Key(_) => BTreeSet::new(),
            };
            found.extend(self.recipe.nothing.as_ref().map(|nothing| self.keyed(units, nothing, &[], true)));
        }
        Ok(found)
    }

    fn write(&self, at: usize, row: &[Value], giver: &mut Giver, found: &mut Phases) -> Result<(), SqlError> {
        match &self.recipe.step {
            Step::Change { statement, key } => {
                let unit = self.unit(at, row, *key)?;
                found.stay.push(self.keyed(unit, statement, row, true));
            }
            Step::Move { update, delete, insert, old, new } => {
                let to = self.unit(at, row, *new)?;
                if row.get(*old) == row.get(*new) {
                    found.stay.push(self.keyed(to, update, row, true));
                } else {
                    found.leave.push(self.keyed(self.unit(at, row, *old)?, delete, row, false));
                    found.arrive.push(self.keyed(to, insert, row, true));
                }
            }
            Step::Insert { statement, width, key, id } => {
                if row.len() != *width {
                    let message = format!("{} values for {width} columns of {}", row.len(), self.recipe.name);
                    return Err(SqlError::syntax(message).hint("select one value for each column"));
                }
                let mut row = row.to_vec();
                if let Some(id) = id {
                    id.fill(&mut row, &self.recipe, giver)?;
                }
                found.arrive.push(self.keyed(self.unit(at, &row, *key)?, statement, &row, true));
            }
        }
        Ok(())
    }

    fn unit(&self, at: usize, row: &[Value], key: usize) -> Result<BTreeSet<PartitionId>, SqlError> {
        let unit = match &self.recipe.owner {
            Owner::Single(unit) => *unit,
            Owner::Key(column) => column.partition(at, row.get(key).unwrap_or(&Value::Null), self.partition_count)?,
        };
        Ok(BTreeSet::from([unit]))
    }

    fn keyed(&self, units: BTreeSet<PartitionId>, template: &Template, row: &[Value], counted: bool) -> KeyedWrite {
        let values: Vec<Value> = self.values.iter().chain(row).cloned().collect();
        KeyedWrite { units, statement: template.bind(&values), counted }
    }

    /// The words of the statements, for EXPLAIN.
    pub(super) fn templates(&self) -> Vec<&str> {
        let templates = match &self.recipe.step {
            Step::Insert { statement, .. } | Step::Change { statement, .. } => vec![statement],
            Step::Move { update, delete, insert, .. } => vec![update, delete, insert],
        };
        templates.into_iter().map(|template| &*template.sql).collect()
    }
}

fn check_count(rows: &[Vec<Value>]) -> Result<(), SqlError> {
    if rows.len() <= COMPUTED_ROWS_MAX {
        return Ok(());
    }
    let message = format!("a write that reads first can write {COMPUTED_ROWS_MAX} rows; this one has more");
    Err(SqlError::new(Code::TooLong, message).hint("write fewer rows at a time: narrow the WHERE, or name shard keys"))
}

impl Id {
    fn said<'r>(&self, row: &'r [Value]) -> &'r Value {
        row.get(self.place).unwrap_or(&Value::Null)
    }

    fn fill(&self, row: &mut Vec<Value>, recipe: &Recipe, giver: &mut Giver) -> Result<(), SqlError> {
        if *self.said(row) != Value::Null {
            return match self.may_be_given {
                true => Ok(()),
                false => Err(given_refused(&recipe.name, &self.column)),
            };
        }
        row.resize(row.len().max(self.place + 1), Value::Null);
        row[self.place] = giver.next(recipe.table, &recipe.name, &self.column)?;
        Ok(())
    }
}
