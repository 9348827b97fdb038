//! Writes over several shards, as data.

use std::collections::BTreeSet;
use std::sync::Arc;

use pleat_cluster::{PartitionId, Value};

use crate::error::SqlError;
use crate::params::Params;
use crate::read::{Bound, ReadPlan};
use crate::write::ids::{Ids, IdsGiven, IdsWanted};

/// How one statement is carried out over several shards.
///
/// Units are hash partitions, or a single table's [`PartitionId::of_single`].
#[derive(Clone, Debug)]
pub enum SpreadWrite {
    /// Rows that say their keys: each goes to the owner of its own.
    Rows(RowsWrite),
    /// The same statement on each shard that may have matching rows; the answers are put together.
    Same {
        /// Only the owners of these units; `None`: every shard; empty: no row can match, any one shard (for the
        /// names of RETURNING's columns).
        prune: Option<BTreeSet<PartitionId>>,
        sql: Arc<str>,
        /// To run instead on a shard that holds rows it doesn't own.
        sql_filtered: Option<Arc<str>>,
        /// For both statements.
        params: Vec<Value>,
    },
    /// Rows are read first, then written by key.
    Computed(ComputedWrite),
}

/// An INSERT whose rows go to different shards.
#[derive(Clone, Debug)]
pub struct RowsWrite {
    rows: Vec<PartitionId>,
}

impl RowsWrite {
    /// The partitions of the rows.
    pub fn partitions(&self) -> BTreeSet<PartitionId> {
        self.rows.iter().copied().collect()
    }

    /// The partition of the last row: its shard's `last_insert_rowid` is the statement's.
    pub fn last(&self) -> Option<PartitionId> {
        self.rows.last().copied()
    }

    /// The statement with only the rows of these partitions, in order; `None` when there are none.
    pub fn on(&self, partitions: &BTreeSet<PartitionId>) -> Option<Bound> {
        let _ = partitions;
        None
    }
}

/// A write whose rows, or their new values, only a read over several shards can tell.
///
/// 1. Read: [`ComputedWrite::read`] with [`ComputedWrite::params`], as any read, all of its rows. Note the content version of
///    each shard that was asked, and let Prepare validate it, on shards that are not written too.
/// 2. [`ComputedWrite::ids_given`] and [`ComputedWrite::ids_wanted`], when there are some.
/// 3. [`ComputedWrite::statements`], each on the owner of its unit, in order.
#[derive(Clone, Debug)]
pub struct ComputedWrite {
    read: Arc<ReadPlan>,
    params: Vec<Value>,
}

/// One statement of a computed write.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyedWrite {
    /// All on one shard in practice: one partition, or one single table. Empty: any shard; it changes nothing and is only there
    /// for the names of RETURNING's columns.
    pub units: BTreeSet<PartitionId>,
    pub statement: Bound,
    /// Whether its `rows_affected` and rows belong to the answer. The DELETE of a row that moves does not: the
    /// INSERT stands for both.
    pub counted: bool,
}

impl ComputedWrite {
    /// What to read.
    pub fn read(&self) -> &ReadPlan {
        &self.read
    }

    /// The read's parameters.
    pub fn params(&self) -> Params<'_> {
        Params::Positional(&self.params)
    }

    /// How many ids these rows want, as [`WritePlan::ids_wanted`](super::WritePlan::ids_wanted).
    pub fn ids_wanted(&self, rows: &[Vec<Value>]) -> Result<Option<IdsWanted>, SqlError> {
        let _ = rows;
        Ok(None)
    }

    /// The largest id that these rows bring, as [`WritePlan::ids_given`](super::WritePlan::ids_given).
    pub fn ids_given(&self, rows: &[Vec<Value>]) -> Result<Option<IdsGiven>, SqlError> {
        let _ = rows;
        Ok(None)
    }

    /// The statements that write the rows that were read.
    pub fn statements(&self, rows: &[Vec<Value>], ids: &Ids) -> Result<Vec<KeyedWrite>, SqlError> {
        let _ = (rows, ids);
        Err(SqlError::unsupported("not planned yet"))
    }
}

impl SpreadWrite {
    /// What the user should know about what this write costs, if it is more than its rows.
    pub fn notice(&self) -> Option<String> {
        None
    }
}
