//! Ids that Pleat gives: the `INTEGER PRIMARY KEY` of a sharded table, where a row leaves it out.
//!
//! SQLite would give the largest id of the *shard* plus one, and two shards would give the same. So ids come from a
//! counter of the cluster: the caller asks [`WritePlan::ids_wanted`](super::WritePlan::ids_wanted), gets a block of so many ids that were never
//! given before, and hands it to `route` or `spread`, which put the ids into the rows as values. When the id is the
//! shard key it decides where the row goes. A table on a cluster of one shard takes the same way, since it may spread.
//!
//! Ids that a statement gives itself must never be given again: the caller raises the counter above
//! [`WritePlan::ids_given`](super::WritePlan::ids_given) *before* the write. (A write that fails then leaves a gap, as a rolled back one does in SQLite with AUTOINCREMENT.)
//!
//! **A repeated request must get the same ids**, or a row whose id decides its shard would be written twice: the second
//! time elsewhere, where nobody knows the request's idempotency key. So the caller keeps the block with the key.

use std::collections::BTreeMap;

use pleat_cluster::TableId;
use serde::{Deserialize, Serialize};

/// How many ids a request needs from a table's counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdsWanted {
    pub table: TableId,
    /// The table's name, as declared.
    pub name: String,
    pub count: u64,
}

/// The largest id that a request gives itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdsGiven {
    pub table: TableId,
    /// The table's name, as declared.
    pub name: String,
    pub max: i64,
}

/// Blocks of ids, one for each table that wants some: `first`, `first + 1`, and so on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    first: BTreeMap<TableId, i64>,
}

impl Ids {
    /// For requests that want none.
    pub fn none() -> Self {
        Ids::default()
    }

    /// Adds the block for `table` that starts at `first`.
    pub fn with(mut self, table: TableId, first: i64) -> Self {
        self.first.insert(table, first);
        self
    }
}
