//! Writes: where each row goes.
//!
//! # One shard
//!
//! A write is best done in one place: the shard that owns all its units. The rows of an `INSERT … VALUES` say their keys
//! themselves; an UPDATE or DELETE is routed by the keys in its WHERE, as a read is (see `scope`), together with
//! all tables that its subqueries read. [`WritePlan::route`] says so, and the user's own text runs there. What can't be
//! shown to stay with known keys is [`WriteTarget::Everywhere`]: right where one shard owns everything. A write to reference
//! tables goes to every shard.
//!
//! # Several shards
//!
//! When the units are on several shards, [`WritePlan::spread`] says how each statement is done there, to be made atomic
//! by a two-phase commit:
//!
//! ```text
//! INSERT … VALUES, keys plain to see          Rows      each shard inserts its own rows        rows
//! UPDATE, DELETE, INSERT … SELECT, where all
//! that a row needs is on the row's own shard  Same      each shard runs the statement          same
//! anything else                               Computed  read first, then write by key          computed
//! reference tables                            Reference every shard runs the statement         reference
//! ```
//!
//! *Same* needs every sharded table that the statement mentions to be tied to the written row by equality of the shard keys,
//! and no single table. *Computed* reads with an ordinary SELECT over all shards, composed of the user's own words: the
//! primary keys of the rows to write and their new values. So SQLite itself computes what is written, and a row may depend
//! on rows anywhere. A change of a shard key is always computed: a row whose key changes is deleted and inserted anew.
//!
//! What the caller owes:
//!
//! - **One now.** All parts of a request (its read, and its writes on each shard) run with the same "now", or `CURRENT_TIMESTAMP`
//!   would differ between rows of one statement. `random()` may differ: SQLite gives each row another value anyway.
//! - **Base.** The shards that a computed write was read from must not have changed when it commits.
//! - **Order.** On each shard the statements run in the order in which they are listed.
//!
//! # Where it differs from one SQLite database
//!
//! All or nothing: `OR FAIL` undoes the rows before the failure too. Which of several matching rows an `UPDATE … FROM` takes, and in which
//! order rows are visited (which decides whether `SET id = id + 1` meets a duplicate on its way), is open in SQLite as well. Where
//! shard keys change, uniqueness holds at the end of the statement, as standard SQL has it: rows may exchange their keys.

mod change;
mod compose;
mod computed;
mod explain;
mod ids;
mod insert;
mod recipe;
mod rows;
mod same;
mod set;
mod shape;
mod spread;
mod statement;
mod triggers;

use std::collections::BTreeSet;

use pleat_cluster::Value;
use serde::{Deserialize, Serialize};

use crate::clauses::Span;
use crate::error::SqlError;
use crate::params::{Params, Slots};
use crate::read::{Bound, Units};
use crate::scope::Analysis;
use ids::Giver;
use statement::WriteStatement;

pub use computed::{COMPUTED_ROWS_MAX, ComputedWrite, KeyedWrite};
pub(crate) use ids::id_column;
pub use ids::{BulkIds, Ids, IdsWanted};
pub use rows::RowsWrite;
pub(crate) use shape::verb;
pub use spread::SpreadWrite;

/// A planned request of one or more writes, which happen together or not at all.
#[derive(Clone, Debug)]
pub struct WritePlan {
    statements: Vec<WriteStatement>,
    slots: Slots,
    tables: Vec<String>,
}

/// Where a write goes, and what is run there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WriteRoute {
    pub target: WriteTarget,
    /// Empty when the target is [`WriteTarget::Spread`].
    pub statements: Vec<Bound>,
}

/// Where a write goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteTarget {
    /// The shard that owns all of these; [`WritePlan::spread`] if there is no such one. When there are none, no row can
    /// match, and any shard gives the right answer.
    Units(Units),
    /// Every shard: only reference tables are written and read.
    Reference,
    /// Rows that may be anywhere. Right only where one shard owns everything; otherwise [`WritePlan::spread`].
    /// `units` are those that are known.
    Everywhere { table: String, units: Units },
    /// Only [`WritePlan::spread`] can carry it out, on one shard too: what is written must be read first.
    Spread { table: String },
}

/// The refusal of a write whose rows are on several shards.
pub fn several_shards(table: &str) -> SqlError {
    SqlError::unsupported(format!("this write to {table} would touch several shards, or Pleat can't tell that it would not"))
        .hint("name the shard key of the rows in the statement, write one key at a time, or load rows with POST /tables/{table}/rows")
}

/// A [`WritePlan`] in the making.
pub(crate) struct WritePlans<'a> {
    slots: &'a Slots,
    statements: Vec<WriteStatement>,
    /// The slot of the next id.
    next_slot: usize,
}

impl<'a> WritePlans<'a> {
    pub fn new(slots: &'a Slots) -> Self {
        WritePlans { slots, statements: Vec::new(), next_slot: slots.count() }
    }

    /// Plans the INSERT, UPDATE or DELETE that `span` spells. `alone`: it is all of the text.
    pub fn add(&mut self, analysis: Analysis, span: Span, alone: bool) -> Result<(), SqlError> {
        let statement = statement::plan(analysis, span, alone, self.next_slot)?;
        self.next_slot += statement.id_slots();
        self.statements.push(statement);
        Ok(())
    }

    pub fn finish(self) -> Result<WritePlan, SqlError> {
        let tables: BTreeSet<&String> = self.statements.iter().flat_map(|statement| &statement.tables).collect();
        let tables = tables.into_iter().cloned().collect();
        Ok(WritePlan { statements: self.statements, slots: self.slots.clone(), tables })
    }
}

impl WritePlan {
    /// How many statements there are; answers come back one for each.
    pub fn statement_count(&self) -> usize {
        self.statements.len()
    }

    /// The catalog's tables that are written or read, by lower-case name.
    pub fn tables(&self) -> &[String] {
        &self.tables
    }

    /// The written tables, by lower-case name, statement by statement.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &str> {
        self.statements.iter().map(|statement| statement.target.as_str())
    }

    /// The ids that rows leave out; one entry for each table. Ask before `route` and `spread`.
    pub fn ids_wanted(&self, params: &Params) -> Result<Vec<IdsWanted>, SqlError> {
        let values = self.slots.bind(params)?;
        let mut wanted: Vec<IdsWanted> = Vec::new();
        for ids in self.statements.iter().filter_map(WriteStatement::ids) {
            let (count, above) = (ids.wanted(&values), ids.given(&values));
            match wanted.iter_mut().find(|known| known.table == ids.table) {
                Some(known) => (known.count, known.above) = (known.count + count, known.above.max(above)),
                None => wanted.push(IdsWanted { table: ids.table, name: ids.name.clone(), count, above }),
            }
        }
        wanted.retain(|wanted| wanted.count > 0);
        Ok(wanted)
    }

    /// Where the write goes with these values, and with the ids that it wanted.
    pub fn route(&self, params: &Params, partition_count: u32, ids: &Ids) -> Result<WriteRoute, SqlError> {
        let apart = |statement: &&WriteStatement| {
            statement.must_spread || statement.concerns_others || (statement.reference && self.is_mixed())
        };
        if let Some(statement) = self.statements.iter().find(apart) {
            let target = WriteTarget::Spread { table: statement.table.clone() };
            return Ok(WriteRoute { target, statements: Vec::new() });
        }
        let values = self.values(params, ids)?;
        let statements = self.statements.iter().map(|statement| statement.whole(&values)).collect();
        let target = self.target(&values, partition_count)?;
        Ok(WriteRoute { target, statements })
    }

    /// How each statement is carried out over several shards.
    pub fn spread(&self, params: &Params, partition_count: u32, ids: &Ids) -> Result<Vec<SpreadWrite>, SqlError> {
        let values = self.values(params, ids)?;
        self.statements.iter().map(|statement| statement.spread(&values, partition_count)).collect()
    }

    /// Whether the request writes to reference tables and to others.
    fn is_mixed(&self) -> bool {
        let references = self.statements.iter().filter(|statement| statement.reference).count();
        references > 0 && references < self.statements.len()
    }

    /// Whether the statements of [`WritePlan::spread`] are only right one after the other inside a transaction, not planned
    /// ahead and prepared at once: a later one must read first what an earlier one of the request writes, some write to
    /// reference tables and others don't, or a foreign key of other tables has a say in what becomes of a reference table.
    pub fn is_stepwise(&self) -> bool {
        if self.is_mixed() || self.statements.iter().any(|statement| statement.concerns_others) {
            return true;
        }
        let mut written: BTreeSet<&str> = BTreeSet::new();
        self.statements.iter().any(|statement| {
            let stale = statement.is_computed() && statement.reads.iter().any(|table| written.contains(table.as_str()));
            written.extend(statement.changes.iter().map(String::as_str));
            stale
        })
    }

    /// The values of all slots: the request's, then the rows' ids.
    fn values(&self, params: &Params, ids: &Ids) -> Result<Vec<Value>, SqlError> {
        let mut values = self.slots.bind(params)?;
        let mut giver = Giver::new(ids);
        self.statements
            .iter()
            .filter_map(WriteStatement::ids)
            .try_for_each(|rows| rows.fill(&mut values, &mut giver))?;
        Ok(values)
    }

    fn target(&self, values: &[Value], partition_count: u32) -> Result<WriteTarget, SqlError> {
        if self.statements.iter().all(|statement| statement.reference) {
            return Ok(WriteTarget::Reference);
        }
        let mut units = Units::default();
        let mut everywhere = None;
        for statement in &self.statements {
            let (found, complete) = statement.units(values, partition_count)?;
            units.add(found);
            if !complete && everywhere.is_none() {
                everywhere = Some(statement.table.clone());
            }
        }
        Ok(match everywhere {
            Some(table) => WriteTarget::Everywhere { table, units },
            None => WriteTarget::Units(units),
        })
    }
}
