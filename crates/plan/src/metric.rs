//! The metrics that can cause a split.

use pleat_cluster::Thresholds;

use crate::ShardLoad;

/// A noisy metric must be over its threshold in this many looks in a row.
pub const LOOKS_NEEDED: u32 = 3;

/// Something measured that has a threshold. The order is the order of reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    TotalEntries,
    CpuPercent,
    MemoryPercent,
    Connections,
    QueriesPerSecond,
}

impl Metric {
    pub const ALL: [Metric; 5] = [
        Metric::TotalEntries,
        Metric::CpuPercent,
        Metric::MemoryPercent,
        Metric::Connections,
        Metric::QueriesPerSecond,
    ];

    /// The name that users know from `/shards`.
    pub fn name(self) -> &'static str {
        match self {
            Metric::TotalEntries => "total_entries",
            Metric::CpuPercent => "cpu_percent",
            Metric::MemoryPercent => "memory_percent",
            Metric::Connections => "connection_count",
            Metric::QueriesPerSecond => "queries_per_second",
        }
    }

    /// Whether one look proves nothing.
    pub fn is_noisy(self) -> bool {
        self != Metric::TotalEntries
    }

    /// Whether it measures a node's process, so that shards led by one node share the value.
    pub fn is_of_node(self) -> bool {
        matches!(self, Metric::CpuPercent | Metric::MemoryPercent)
    }

    /// The threshold for one shard. `None`: this metric alone never causes a split.
    pub fn threshold(self, thresholds: &Thresholds) -> Option<f64> {
        match self {
            Metric::TotalEntries => thresholds.total_entries_per_shard.map(|rows| rows as f64),
            Metric::CpuPercent => Some(thresholds.cpu_percent),
            Metric::MemoryPercent => Some(thresholds.memory_percent),
            Metric::Connections => Some(thresholds.connections as f64),
            Metric::QueriesPerSecond => Some(thresholds.queries_per_second),
        }
    }

    /// The value of one shard.
    pub fn of(self, load: &ShardLoad) -> f64 {
        match self {
            Metric::TotalEntries => load.rows as f64,
            Metric::CpuPercent => load.cpu_percent,
            Metric::MemoryPercent => load.memory_percent,
            Metric::Connections => load.connections as f64,
            Metric::QueriesPerSecond => load.queries_per_second,
        }
    }
}
