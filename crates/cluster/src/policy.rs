//! The policy that the autoscaler follows.

use serde::{Deserialize, Serialize};

use crate::Standbys;

/// Whether decisions are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Automatic,
    /// Stop at the recommendation.
    Manual,
}

/// What the thresholds are held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Each shard by itself.
    Hot,
    /// The sum or the average over the cluster.
    Cold,
}

/// Above which load a shard is split. A threshold is crossed when the measured value is *greater*.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Percent of the machine's CPU that the node's process takes.
    pub cpu_percent: f64,
    /// Percent of the machine's memory that the node's process takes.
    pub memory_percent: f64,
    /// Client connections per shard.
    pub connections: u64,
    /// Queries per second per shard.
    pub queries_per_second: f64,
    /// Rows per shard, over all tables. `None`: rows alone never cause a split.
    pub total_entries_per_shard: Option<u64>,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            cpu_percent: 70.0,
            memory_percent: 85.0,
            connections: 20,
            queries_per_second: 1000.0,
            total_entries_per_shard: None,
        }
    }
}

/// When a shard that is not needed any more is merged into another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScaleIn {
    pub enabled: bool,
    /// For how long a shard must have stayed below `below_percent`, in milliseconds.
    pub after_ms: u64,
    /// A shard is not needed while all that is measured of it is below this percentage of each threshold.
    pub below_percent: f64,
    /// A shard that takes more bytes is not merged away: copying it would cost more than it does.
    pub max_bytes: u64,
}

impl Default for ScaleIn {
    fn default() -> Self {
        Self { enabled: true, after_ms: 1_800_000, below_percent: 25.0, max_bytes: 4 << 30 }
    }
}

/// The whole policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    pub mode: Mode,
    pub strategy: Strategy,
    pub thresholds: Thresholds,
    /// After one action ended, how long no other is taken, in milliseconds.
    pub cooldown_ms: u64,
    /// How many actions the autoscaler begins within `action_window_ms`, at most.
    pub max_actions: u32,
    /// See `max_actions`; in milliseconds. 0: there is no such limit.
    pub action_window_ms: u64,
    /// How often the cluster is measured, in milliseconds.
    pub monitoring_interval_ms: u64,
    /// The autoscaler merges no shard when there are no more than this many.
    pub min_shards: u32,
    /// No split goes beyond this many shards.
    pub max_shards: u32,
    pub scale_in: ScaleIn,
    /// Whether new shards that are PostgreSQL servers get standbys.
    pub standbys: Standbys,
}

impl Policy {
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        const DAY_MS: u64 = 86_400_000;
        let Thresholds { cpu_percent, memory_percent, queries_per_second, .. } = self.thresholds;
        let within = |name: &str, value: f64, least: f64, most: f64| match value >= least && value <= most {
            true => Ok(()),
            false => Err(format!("{name} is {value}, and must be from {least} to {most}")),
        };
        within("cpu_percent", cpu_percent, 0.0, 100.0)?;
        within("memory_percent", memory_percent, 0.0, 100.0)?;
        within("queries_per_second", queries_per_second, 0.0, 1e12)?;
        within("cooldown_ms", self.cooldown_ms as f64, 0.0, DAY_MS as f64)?;
        within("max_actions", f64::from(self.max_actions), 1.0, 1000.0)?;
        within("action_window_ms", self.action_window_ms as f64, 0.0, DAY_MS as f64)?;
        within("monitoring_interval_ms", self.monitoring_interval_ms as f64, 100.0, DAY_MS as f64)?;
        within("max_shards", f64::from(self.max_shards), 1.0, 1024.0)?;
        within("min_shards", f64::from(self.min_shards), 1.0, f64::from(self.max_shards))?;
        within("scale_in.after_ms", self.scale_in.after_ms as f64, 0.0, DAY_MS as f64)?;
        within("scale_in.below_percent", self.scale_in.below_percent, 1.0, 50.0)?;
        match self.thresholds.total_entries_per_shard {
            Some(0) => Err("total_entries_per_shard is 0, and must be at least 1, or null".to_owned()),
            _ => Ok(()),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            mode: Mode::Automatic,
            strategy: Strategy::Hot,
            thresholds: Thresholds::default(),
            cooldown_ms: 10_000,
            max_actions: 1,
            action_window_ms: 300_000,
            monitoring_interval_ms: 10_000,
            min_shards: 1,
            max_shards: 16,
            scale_in: ScaleIn::default(),
            standbys: Standbys::None,
        }
    }
}
