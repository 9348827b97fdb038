//! What was measured, as the planner wants it: one entry per shard, nothing invented.

use std::collections::BTreeMap;

use pleat_cluster::{Millis, NodeId, PartitionId, ShardId};

/// One look at the cluster. A shard that could not be measured is not in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub shards: BTreeMap<ShardId, ShardLoad>,
    /// Nodes that did not answer, with the reason.
    pub silent: BTreeMap<NodeId, String>,
}

/// The load of one shard, as measured by the node that leads it.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardLoad {
    /// The leader of the shard, whose process's CPU and memory these are.
    pub node: NodeId,
    pub measured: Millis,
    /// Rows of all tables.
    pub rows: u64,
    /// Rows of reference and single tables: a split does not divide them.
    pub rows_fixed: u64,
    pub bytes: u64,
    /// Requests being served or waiting.
    pub connections: u64,
    pub queries_per_second: f64,
    /// Percent of the machine that the node's process takes.
    pub cpu_percent: f64,
    /// Percent of the machine that the node's process takes.
    pub memory_percent: f64,
    /// Statements per second by partition; partitions without any may be left out.
    pub partition_load: BTreeMap<PartitionId, f64>,
}
