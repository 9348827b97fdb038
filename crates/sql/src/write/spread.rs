//! Writes over several shards, as data.

use std::collections::BTreeSet;
use std::sync::Arc;

use pleat_cluster::{PartitionId, Value};

use super::computed::ComputedWrite;
use super::rows::RowsWrite;
use crate::read::Bound;

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
    /// The same statement on every shard, on its copy of a reference table; the answers are the same, too.
    Reference(Bound),
}

impl SpreadWrite {
    /// What the user should know about what this write costs, if it costs more than its rows.
    pub fn notice(&self) -> Option<String> {
        match self {
            SpreadWrite::Rows(_) | SpreadWrite::Same { prune: Some(_), .. } | SpreadWrite::Reference(_) => None,
            SpreadWrite::Same { prune: None, .. } => Some(
                "the statement names no shard key, so it ran on every shard in one transaction; name the key to write to one shard".to_owned(),
            ),
            SpreadWrite::Computed(_) => Some(
                "the rows were read from several shards first, and then written by key in one transaction; EXPLAIN shows how".to_owned(),
            ),
        }
    }
}
