//! What a rebalance moves: enough, not more than that, and nothing where nothing is to be done.

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{Catalog, Command, NodeId, PartitionId, Policy, ShardId};
use pleat_plan::{BYTES_MIN, Rebalance, Weight, able, rebalance};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

type Weights = BTreeMap<PartitionId, Weight>;

fn shards(numbers: impl IntoIterator<Item = u32>) -> BTreeSet<ShardId> {
    numbers.into_iter().map(ShardId).collect()
}

/// Owners of shards that have so many partitions each.
fn owners(counts: &[usize]) -> Vec<ShardId> {
    (1..).map(ShardId).zip(counts).flat_map(|(shard, count)| vec![shard; *count]).collect()
}

fn bytes(mebibytes: &[u64]) -> Weights {
    let weight = |mebibytes: &u64| Weight { rows: *mebibytes, bytes: mebibytes * MIB, load: 0.0 };
    (0..).map(PartitionId).zip(mebibytes.iter().map(weight)).collect()
}

fn after(owners: &[ShardId], plan: &Rebalance) -> Vec<ShardId> {
    let mut owners = owners.to_vec();
    for shift in &plan.moves {
        assert!(shift.partitions.is_sorted() && !shift.partitions.is_empty() && shift.from != shift.to);
        for partition in &shift.partitions {
            assert_eq!(owners[partition.0 as usize], shift.from, "{partition} is moved once, from where it is");
            owners[partition.0 as usize] = shift.to;
        }
    }
    owners
}

fn count(owners: &[ShardId], able: &BTreeSet<ShardId>) -> BTreeMap<ShardId, usize> {
    able.iter().map(|shard| (*shard, owners.iter().filter(|owner| *owner == shard).count())).collect()
}

fn moved(plan: &Rebalance) -> usize {
    plan.moves.iter().map(|shift| shift.partitions.len()).sum()
}

fn told(plan: &Rebalance) -> Vec<(u32, u32, usize)> {
    plan.moves.iter().map(|shift| (shift.from.0, shift.to.0, shift.partitions.len())).collect()
}

#[test]
fn counts_are_evened_out_with_as_few_moves_as_shards() {
    let plan = |counts: &[usize], threshold| {
        let able = shards(1..=counts.len() as u32);
        told(&rebalance(&owners(counts), &able, &Weights::new(), threshold))
    };
    assert_eq!(plan(&[64, 64, 64, 64], 0.0), []);
    assert_eq!(plan(&[256, 0, 0, 0], 0.0), [(1, 2, 64), (1, 3, 64), (1, 4, 64)]);
    assert_eq!(plan(&[128, 64, 64], 0.0).iter().map(|(_, _, count)| count).sum::<usize>(), 42);
    assert_eq!(plan(&[2, 1, 1], 0.0), [], "one partition can't be divided");
    assert_eq!(plan(&[60, 64, 68], 0.1), [], "within the threshold");
    assert_eq!(plan(&[100, 100, 100, 100, 0, 0, 0, 0], 0.0).len(), 4);
}

#[test]
fn bytes_are_evened_out_and_little_data_is_no_reason() {
    let of = |mebibytes: &[u64]| rebalance(&owners(&[4, 4]), &shards(1..=2), &bytes(mebibytes), 0.1);
    let plan = of(&[40, 20, 10, 10, 10, 10, 10, 10]);
    assert_eq!(told(&plan), [(1, 2, 1)]);
    assert_eq!((plan.moves[0].partitions[0].0, plan.moves[0].bytes, plan.moves[0].rows), (1, 20 * MIB, 20));
    assert!(plan.shards.values().all(|filled| (0.9..1.1).contains(&filled.after)), "{plan:?}");
    let few = |mut weights: Weights| {
        weights.values_mut().for_each(|weight| weight.bytes /= 1 << 20);
        weights
    };
    let weights = few(bytes(&[BYTES_MIN, 1, 1, 1, 0, 0, 0, 0]));
    assert_eq!(rebalance(&owners(&[4, 4]), &shards(1..=2), &weights, 0.1).moves, []);
}

#[test]
fn load_counts_as_much_as_bytes() {
    let mut weights = bytes(&[10; 8]);
    for (partition, load) in [(0, 300.0), (1, 300.0), (2, 300.0), (3, 300.0)] {
        weights.get_mut(&PartitionId(partition)).unwrap().load = load;
    }
    let plan = rebalance(&owners(&[4, 4]), &shards(1..=2), &weights, 0.1);
    assert_eq!(told(&plan), [(1, 2, 1)], "{plan:?}");
    for strange in [f64::NAN, f64::INFINITY, -5.0] {
        weights.get_mut(&PartitionId(0)).unwrap().load = strange;
        weights.get_mut(&PartitionId(7)).unwrap().bytes = u64::MAX;
        rebalance(&owners(&[4, 4]), &shards(1..=2), &weights, 0.1);
    }
}

#[test]
fn a_partition_that_outweighs_a_shard_stays_and_the_others_leave() {
    let plan = rebalance(&owners(&[3, 3]), &shards(1..=2), &bytes(&[100, 5, 5, 5, 5, 5]), 0.1);
    assert_eq!(told(&plan), [(1, 2, 2)]);
    assert!(!plan.moves[0].partitions.contains(&PartitionId(0)));
    let again = rebalance(&after(&owners(&[3, 3]), &plan), &shards(1..=2), &bytes(&[100, 5, 5, 5, 5, 5]), 0.1);
    assert_eq!(again.moves, []);
}

#[test]
fn shards_that_are_not_well_neither_give_nor_take() {
    let mut catalog = Catalog::default();
    let init = Command::Init {
        cluster_id: "test".to_owned(),
        partition_count: 16,
        replication_factor: 1,
        nodes: vec![(NodeId(1), "node-1".to_owned(), "127.0.0.1:1".to_owned())],
        incarnations: BTreeMap::new(),
        shards: 5,
        engine: Default::default(),
        policy: Policy::default(),
        at: 1,
    };
    let activate = (1..=4).map(|shard| Command::ActivateShard { shard: ShardId(shard), at: 1 });
    let what = Some("they differ".to_owned());
    let differ = Command::NoteDisagreement { shard: ShardId(2), what, at: 2 };
    for command in [init].into_iter().chain(activate).chain([differ]) {
        catalog.apply(&command).unwrap();
    }
    let measured = shards([1, 2, 4, 5]);
    let (able, left_out) = able(&catalog, &measured);
    assert_eq!(able, shards([1, 4]));
    assert_eq!(left_out[&ShardId(2)], "its replicas differ");
    assert_eq!(left_out[&ShardId(3)], "its leader did not say what it holds");
    assert_eq!(rebalance(&catalog.owners, &shards([1]), &Weights::new(), 0.1), Rebalance::default());
    assert_eq!(rebalance(&catalog.owners, &BTreeSet::new(), &Weights::new(), 0.1), Rebalance::default());
}

/// As many partitions as have to move, at least, however it is done.
fn least(counts: &[usize], threshold: f64) -> usize {
    let (total, shards) = (counts.iter().sum::<usize>(), counts.len());
    let tolerated = total as f64 / shards as f64 * threshold;
    let mean = total as f64 / shards as f64;
    let high = (mean + tolerated + 1e-9).floor().max(mean.ceil()) as usize;
    let low = (mean - tolerated - 1e-9).ceil().max(0.0).min(mean.floor()) as usize;
    let over = counts.iter().map(|count| count.saturating_sub(high)).sum::<usize>();
    over.max(counts.iter().map(|count| low.saturating_sub(*count)).sum())
}

proptest! {
    #[test]
    fn equal_partitions_end_even_and_the_least_is_moved(
        counts in prop::collection::vec(0_usize..80, 2..24),
        tenths in 0_u32..3,
        each in 0_u64..3,
    ) {
        let (owners, able, threshold) = (owners(&counts), shards(1..=counts.len() as u32), f64::from(tenths) / 10.0);
        let weights = bytes(&vec![each; owners.len()]);
        let plan = rebalance(&owners, &able, &weights, threshold);
        prop_assert_eq!(moved(&plan), least(&counts, threshold), "{:?}", plan);
        prop_assert!((plan.moved - plan.least).abs() < 1e-6, "{} {}", plan.moved, plan.least);
        let ends: Vec<usize> = count(&after(&owners, &plan), &able).into_values().collect();
        prop_assert_eq!(least(&ends, threshold), 0, "{:?}", ends);
        // Few pairs of shards: each is a move of its own.
        prop_assert!(plan.moves.len() < 2 * counts.len(), "{:?}", told(&plan));
    }

    #[test]
    fn any_weights_get_better_and_stay_as_they_are_then(
        sizes in prop::collection::vec((0_u64..500, 0_u32..2_000), 1..200),
        count in 1_u32..12,
        missing in prop::collection::btree_set(1_u32..12, 0..3),
        dice in any::<u64>(),
    ) {
        let owner = |n: usize| ShardId((dice.wrapping_mul(n as u64 + 1) >> 40) as u32 % count + 1);
        let owners: Vec<ShardId> = (0..sizes.len()).map(owner).collect();
        let weight = |(mebibytes, load): &(u64, u32)| Weight { rows: 1, bytes: mebibytes * MIB, load: f64::from(*load) };
        let weights: Weights = (0..).map(PartitionId).zip(sizes.iter().map(weight)).collect();
        let able = shards((1..=count).filter(|shard| !missing.contains(shard)));
        let plan = rebalance(&owners, &able, &weights, 0.1);
        prop_assert_eq!(&plan, &rebalance(&owners, &able, &weights, 0.1));
        prop_assert!(plan.moves.iter().all(|shift| able.contains(&shift.from) && able.contains(&shift.to)));
        let worst = |of: fn(&pleat_plan::Filled) -> f64| plan.shards.values().map(of).fold(0.0, f64::max);
        prop_assert!(worst(|filled| filled.after) <= worst(|filled| filled.before) + 1e-9);
        let after = after(&owners, &plan);
        let again = rebalance(&after, &able, &weights, 0.1);
        prop_assert_eq!(again.moves, vec![]);
    }

    #[test]
    fn fine_partitions_of_any_weight_end_within_the_threshold(
        sizes in prop::collection::vec(50_u64..100, 400..500),
        count in 2_u32..8,
    ) {
        let owners: Vec<ShardId> = (0..sizes.len()).map(|n| ShardId((n % 97) as u32 % count + 1)).collect();
        let skewed: Vec<ShardId> = owners.iter().map(|owner| ShardId(owner.0.min(count / 2 + 1))).collect();
        let able = shards(1..=count);
        let plan = rebalance(&skewed, &able, &bytes(&sizes), 0.1);
        prop_assert!(plan.shards.values().all(|filled| (0.899..1.101).contains(&filled.after)), "{:?}", plan.shards);
        // By no more than a partition's weight for each shard.
        let part = 100.0 / sizes.iter().sum::<u64>() as f64;
        prop_assert!(plan.moved <= plan.least + part * f64::from(count), "{} {}", plan.moved, plan.least);
    }
}

/// As large as is promised: it takes no more steps than there are partitions, and it ends even.
#[test]
fn ten_thousand_shards() {
    const SHARDS: u32 = 10_000;
    let owners: Vec<ShardId> =
        (0..65_536_u32).map(|n| ShardId(n.wrapping_mul(2_654_435_761) % (SHARDS / 2) + 1)).collect();
    let able = shards(1..=SHARDS);
    let plan = rebalance(&owners, &able, &Weights::new(), 0.1);
    let counts: Vec<usize> = owners.iter().fold(vec![0; SHARDS as usize], |mut counts, owner| {
        counts[owner.0 as usize - 1] += 1;
        counts
    });
    assert_eq!(moved(&plan), least(&counts, 0.1));
}
