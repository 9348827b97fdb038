//! Deciding: from a catalog and what was observed to what should change, with every reason.
//!
//! This crate is pure, as `pleat-cluster` is: the same catalog, observations, history and time give the
//! same decision. It does nothing; `control` measures, asks here, journals the answer and carries it out.
//!
//! One look at the cluster goes through three functions:
//!
//! 1. [`autoscale`] holds what was [`Observed`] against the policy's thresholds and gives a [`Draft`]: all
//!    measurements, the options, and the shards that are worth splitting ([`Candidate`]s), worst first.
//! 2. For the first candidate `control` counts rows and bytes per partition (a scan, so it is not done at
//!    every look) and [`split`] says which partitions would go. A candidate whose load can't be divided
//!    is turned down, and the next one is tried.
//! 3. [`Draft::conclude`] makes the [`Decision`](pleat_cluster::Decision) and, when it is to be carried
//!    out, the operation. [`worth_recording`] keeps a quiet cluster's log short.
//!
//! # What keeps it calm
//!
//! A row count is a fact and fires at once. CPU, memory, connections and queries per second are noisy:
//! they must hold for [`LOOKS_NEEDED`] looks in a row ([`History`]). After a split or a move has ended,
//! nothing is done for the policy's cool-down, which doubles with every failure in a row; and no more than
//! `max_actions` are begun in `action_window_ms`. One action at a
//! time; none while a measurement is missing, because a cluster that can't be seen is better left alone.
//!
//! A look at which nothing is exceeded may find a shard that is not needed any more: `scale_in` says when. A merge is not
//! turned down by counting, so it needs no candidate.
//!
//! Beside that, [`rebalance()`] says which partitions move so that shards are even, when a person asks, and [`compare`] says which replicas of a shard have diverged from the others.

mod autoscale;
mod hindrance;
mod history;
mod metric;
mod observed;
mod pause;
mod rebalance;
mod scale_in;
mod split;
mod verify;

pub use autoscale::{Candidate, Conclusion, Draft, autoscale, worth_recording};
pub use history::History;
pub use metric::{LOOKS_NEEDED, Metric};
pub use observed::{Observed, ShardLoad};
pub use pause::PauseParts;
pub use rebalance::{BYTES_MIN, Filled, LOAD_MIN, Rebalance, Shift, THRESHOLD, able, rebalance};
pub use split::{Unsplittable, Weight, split};
pub use verify::{Comparison, compare};
