//! How long it takes to plan a rebalance of a very large cluster, and how much it moves beside the least there is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use pleat_cluster::{PartitionId, ShardId};
use pleat_plan::{THRESHOLD, Weight, rebalance};

const SHARDS: u32 = 10_000;
const PARTITIONS: u32 = 65_536;

/// Half of the shards own everything. Of `rounds` the fastest is shown: this is arithmetic.
pub fn run(rounds: usize) {
    println!(
        "\nplanning a rebalance of {SHARDS} shards and {PARTITIONS} partitions, {THRESHOLD} off the mean tolerated"
    );
    println!("{:<24}{:>10}{:>10}{:>14}{:>10}{:>10}", "", "ms", "moves", "moved", "least", "ratio");
    let mix = |n: u32| n.wrapping_mul(2_654_435_761);
    let owners: Vec<ShardId> = (0..PARTITIONS).map(|n| ShardId(mix(n) % (SHARDS / 2) + 1)).collect();
    let able: BTreeSet<ShardId> = (1..=SHARDS).map(ShardId).collect();
    let of =
        |n: u32| Weight { rows: 1, bytes: u64::from(mix(n ^ 0x5bd1) >> 8), load: f64::from(mix(n ^ 0x9e37) >> 24) };
    let weights: BTreeMap<PartitionId, Weight> = (0..PARTITIONS).map(|n| (PartitionId(n), of(n))).collect();
    for (name, weights) in [("all alike", BTreeMap::new()), ("bytes and load differ", weights)] {
        let plan = || {
            let begun = Instant::now();
            let plan = rebalance(&owners, &able, &weights, THRESHOLD);
            (begun.elapsed(), plan)
        };
        let Some((took, plan)) = (0..rounds.max(1)).map(|_| plan()).min_by_key(|(took, _)| *took) else { return };
        println!(
            "{name:<24}{:>10.1}{:>10}{:>14.5}{:>10.5}{:>10.3}",
            took.as_secs_f64() * 1e3,
            plan.moves.len(),
            plan.moved,
            plan.least,
            plan.moved / plan.least,
        );
    }
}
