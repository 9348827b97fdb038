//! Which partitions go when a shard is split.
//!
//! The partitions are dealt to two heaps, heaviest first, each to the heap that is lighter so far (the
//! classic greedy rule: at worst a third off the best division, and usually within one small partition of
//! it). A partition that weighs as much as all others together thereby ends up alone. Partitions
//! without weight are dealt so that both heaps get as many partitions. The lighter heap moves.
//!
//! A partition's weight is the mean of its shares of the shard's rows, bytes and, when load is what made
//! the shard hot, load (which then counts as much as rows and bytes together).

use std::collections::BTreeMap;

use pleat_cluster::PartitionId;

/// How much a partition holds, and how much it is used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weight {
    pub rows: u64,
    pub bytes: u64,
    /// Statements per second; zero when load is not to be divided.
    pub load: f64,
}

/// Why a shard can't be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsplittable {
    /// It owns one partition, or none.
    OnePartition,
    /// All that weighs anything is in one partition: wherever that goes, the load goes.
    OneHeavyPartition(PartitionId),
    /// Nothing in it weighs anything.
    Weightless,
}

impl std::fmt::Display for Unsplittable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unsplittable::OnePartition => f.write_str("it has fewer than two partitions"),
            Unsplittable::OneHeavyPartition(partition) => {
                write!(f, "all of it is in partition {partition}, which can't be divided")
            }
            Unsplittable::Weightless => f.write_str("none of it belongs to a partition"),
        }
    }
}

/// The partitions to move away, in ascending order: at least one, not all. `owned` are the partitions of
/// the shard; those without an entry in `weights` are empty.
pub fn split(owned: &[PartitionId], weights: &BTreeMap<PartitionId, Weight>) -> Result<Vec<PartitionId>, Unsplittable> {
    if owned.len() < 2 {
        return Err(Unsplittable::OnePartition);
    }
    let mut shares = shares(owned, weights);
    let mut heavy = shares.iter().filter(|(share, _)| *share > 0.0).map(|(_, partition)| *partition);
    match (heavy.next(), heavy.next()) {
        (None, _) => return Err(Unsplittable::Weightless),
        (Some(only), None) => return Err(Unsplittable::OneHeavyPartition(only)),
        (Some(_), Some(_)) => {}
    }
    shares.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut heaps = [Heap::default(), Heap::default()];
    for (share, partition) in shares {
        let lighter = match share > 0.0 {
            true => usize::from(heaps[1].share < heaps[0].share),
            false => usize::from(heaps[1].partitions.len() < heaps[0].partitions.len()),
        };
        heaps[lighter].share += share;
        heaps[lighter].partitions.push(partition);
    }
    let [stays, goes] = heaps;
    let mut moving = if goes.share <= stays.share { goes.partitions } else { stays.partitions };
    moving.sort();
    assert!(!moving.is_empty() && moving.len() < owned.len(), "two heavy partitions went to two heaps");
    Ok(moving)
}

#[derive(Default)]
struct Heap {
    share: f64,
    partitions: Vec<PartitionId>,
}

/// Each partition's share of the shard, so that rows, bytes and load count alike whatever their units.
fn shares(owned: &[PartitionId], weights: &BTreeMap<PartitionId, Weight>) -> Vec<(f64, PartitionId)> {
    let weight = |partition: &PartitionId| weights.get(partition).copied().unwrap_or_default();
    let rows: f64 = owned.iter().map(|p| weight(p).rows as f64).sum();
    let bytes: f64 = owned.iter().map(|p| weight(p).bytes as f64).sum();
    let load: f64 = owned.iter().map(|p| weight(p).load).sum();
    let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    (owned.iter())
        .map(|partition| {
            let Weight { rows: r, bytes: b, load: l } = weight(partition);
            (share(r as f64, rows) + share(b as f64, bytes) + 2.0 * share(l, load), *partition)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(numbers: impl IntoIterator<Item = u32>) -> Vec<PartitionId> {
        numbers.into_iter().map(PartitionId).collect()
    }

    fn rows(counts: &[(u32, u64)]) -> BTreeMap<PartitionId, Weight> {
        let weight = |rows: u64| Weight { rows, bytes: rows * 100, load: 0.0 };
        counts.iter().map(|(p, n)| (PartitionId(*p), weight(*n))).collect()
    }

    #[test]
    fn rows_divide_near_evenly() {
        let owned = partitions(0..256);
        let weights = rows(&(0..256).map(|p| (p, u64::from(p * 7919 % 1000))).collect::<Vec<_>>());
        let moving = split(&owned, &weights).unwrap();
        let of = |list: &[PartitionId]| list.iter().map(|p| weights[p].rows).sum::<u64>();
        let (moved, all) = (of(&moving), of(&owned));
        assert!(moved * 2 <= all && moved * 100 >= all * 49, "{moved} of {all}");
        assert!(moving.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn empty_partitions_are_spread_too() {
        let moving = split(&partitions(0..100), &rows(&[(3, 50), (4, 50)])).unwrap();
        assert_eq!(moving.len(), 50);
        assert_eq!(moving.iter().filter(|p| [3, 4].contains(&p.0)).count(), 1);
    }

    #[test]
    fn the_heaviest_partition_is_left_alone_and_the_lighter_side_moves() {
        let moving = split(&partitions(0..4), &rows(&[(0, 10), (1, 10), (2, 100), (3, 10)])).unwrap();
        assert_eq!(moving, partitions([0, 1, 3]));
    }

    #[test]
    fn load_isolates_the_hot_partition() {
        let mut weights = rows(&[(0, 10), (1, 10), (2, 10), (3, 10)]);
        weights.get_mut(&PartitionId(1)).unwrap().load = 900.0;
        weights.get_mut(&PartitionId(2)).unwrap().load = 100.0;
        let moving = split(&partitions(0..4), &weights).unwrap();
        assert_eq!(moving.contains(&PartitionId(1)), !moving.contains(&PartitionId(2)));
        assert_eq!(moving.contains(&PartitionId(1)), moving.len() == 1);
    }

    #[test]
    fn what_cannot_be_divided_says_so() {
        assert_eq!(split(&partitions([7]), &rows(&[(7, 5)])), Err(Unsplittable::OnePartition));
        assert_eq!(split(&partitions([7, 8]), &rows(&[(7, 5)])), Err(Unsplittable::OneHeavyPartition(PartitionId(7))));
        assert_eq!(split(&partitions([7, 8]), &rows(&[])), Err(Unsplittable::Weightless));
    }

    #[test]
    fn the_same_weights_give_the_same_split() {
        let weights = rows(&[(0, 5), (1, 5), (2, 5), (3, 5), (9, 5)]);
        let owned = partitions(0..16);
        assert_eq!(split(&owned, &weights), split(&owned, &weights));
    }
}
