//! Which partitions move so that the shards are even.
//!
//! # The problem
//!
//! Splits and merges look at one shard at a time, so in the end one shard holds half of everything and another next to nothing.
//! Every byte that is moved to mend that is copied, compared and cleaned up while clients write. So what counts is not only that
//! shards are even in the end, but how little was moved for it.
//!
//! # The mechanism
//!
//! A partition's weight is the mean of its shares of the bytes and of the load (statements per second) of all partitions. A small
//! one counts as one of [`BYTES_MIN`] bytes, so that shards with little data have as many partitions each, and a few rows more
//! in one of them move nothing. Load counts from [`LOAD_MIN`] on; what an idle cluster does says nothing.
//!
//! A shard is *even* when what it holds differs from the mean by no more than the threshold, or by what can't be helped because
//! partitions can't be divided (up to the smallest one's weight); by how much more it differs is its *misfit*. As long as one has a misfit, a partition goes from the heaviest shard to the lightest: the smallest one that
//! takes the misfit of both away, or else the one that takes most of it away. None that takes away nothing is moved.
//!
//! # What holds
//!
//! 1. *It moves the least there is, where partitions weigh the same.* Nothing can do with less than what the too heavy have too much in
//!    all, nor with less than what the too light lack. Each step goes from one that has too much, as long as there is
//!    one, to one that lacks something, as long as there is one; and none brings a shard out of its bounds.
//! 2. *It ends*, since every step takes some of the misfit away.
//! 3. *Done again after its moves it gives nothing.* A shard is left heavy only when no partition of it would make anything better on the
//!    lightest shard, let alone on another. The lightest only gets heavier, so that stays so.
//! 4. Shards that don't take part neither give nor take, and what they hold counts for nothing.
//!
//! Partitions of different weight are a packing problem, for which the least can't be known in time: what was moved is told
//! beside the bound of 1, which is out of reach when the partitions are coarse.
//!
//! A pair of shards is kept as long as it does. Each pair is a move with a copy, a comparison and a pause of its own; so there are
//! hardly more moves than shards that are too heavy or too light.

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{Catalog, PartitionId, ShardId};

use crate::Weight;

/// By how much a shard may differ from the mean, as a share of it, unless told otherwise.
pub const THRESHOLD: f64 = 0.1;
/// The bytes that a partition counts at least.
pub const BYTES_MIN: u64 = 64 << 10;
/// Statements per second, and shard, from which on load counts.
pub const LOAD_MIN: f64 = 10.0;

/// All bytes, and all load, in the unit that weights are counted in.
const WHOLE: u128 = 1 << 40;
/// Load is counted in thousandths of a statement per second.
const LOAD_UNITS: f64 = 1e3;
/// Steps for each partition. Every step makes things better, so this is for numbers that nobody thought of.
const STEPS_PER_PARTITION_MAX: usize = 4;

/// What is to be done, and what it does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rebalance {
    /// By source, then by target.
    pub moves: Vec<Shift>,
    /// The shards that take part.
    pub shards: BTreeMap<ShardId, Filled>,
    /// How much is moved, as a share of all that the shards hold.
    pub moved: f64,
    /// Less than this does not even them out. Where partitions differ, more may be needed.
    pub least: f64,
}

/// Partitions that go from one shard to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Shift {
    pub from: ShardId,
    pub to: ShardId,
    /// Ascending.
    pub partitions: Vec<PartitionId>,
    pub rows: u64,
    pub bytes: u64,
}

/// What a shard holds as a multiple of what a shard holds on average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Filled {
    pub before: f64,
    pub after: f64,
}

/// Which shards take part, and why others don't. `measured` are those whose leader answered.
pub fn able(catalog: &Catalog, measured: &BTreeSet<ShardId>) -> (BTreeSet<ShardId>, BTreeMap<ShardId, String>) {
    let (mut able, mut left_out) = (BTreeSet::new(), BTreeMap::new());
    for shard in catalog.active_shards() {
        let holds = catalog.open_operations().find(|open| open.holds().contains(&shard.id));
        let why = if !measured.contains(&shard.id) {
            "its leader did not say what it holds".to_owned()
        } else if let Some(open) = holds {
            format!("{} waits for something on it", open.id)
        } else if shard.disagreement.is_some() {
            "its replicas differ".to_owned()
        } else if !shard.distrusted.is_empty() {
            "a replica of it is to be rebuilt".to_owned()
        } else {
            able.insert(shard.id);
            continue;
        };
        left_out.insert(shard.id, why);
    }
    (able, left_out)
}

/// Even the shards that take part out. `owners` are the owners by partition; of partitions without an entry in
/// `weights` nothing is known but that they are there.
pub fn rebalance(
    owners: &[ShardId],
    able: &BTreeSet<ShardId>,
    weights: &BTreeMap<PartitionId, Weight>,
    threshold: f64,
) -> Rebalance {
    let held: Vec<(PartitionId, ShardId)> =
        (0u32..).map(PartitionId).zip(owners.iter().copied()).filter(|(_, owner)| able.contains(owner)).collect();
    if able.len() < 2 || held.is_empty() {
        return Rebalance::default();
    }
    let weighed = weigh(&held, weights, LOAD_MIN * able.len() as f64);
    let mut desk = Desk::new(able, &held, &weighed, threshold);
    let alike = weighed.iter().all(|weight| *weight == weighed[0]);
    let (before, least) = (desk.weight.clone(), desk.least(if alike { weighed[0].max(1) } else { 1 }));
    desk.work(held.len().saturating_mul(STEPS_PER_PARTITION_MAX));
    let total: u64 = before.iter().sum();
    let mean = total as f64 / before.len() as f64;
    let filled = |(before, after): (&u64, &u64)| Filled { before: *before as f64 / mean, after: *after as f64 / mean };
    let shards = desk.shards.iter().copied().zip(before.iter().zip(&desk.weight).map(filled)).collect();
    let (moves, moved) = desk.moves(&held, weights);
    Rebalance { moves, shards, moved: moved as f64 / total as f64, least: least as f64 / total as f64 }
}

/// A weight for each partition, in the order of `held`.
fn weigh(held: &[(PartitionId, ShardId)], weights: &BTreeMap<PartitionId, Weight>, load_min: f64) -> Vec<u64> {
    let of = |(partition, _): &(PartitionId, ShardId)| weights.get(partition).copied().unwrap_or_default();
    let bytes: Vec<u128> = held.iter().map(|held| u128::from(of(held).bytes.max(BYTES_MIN))).collect();
    // What is no number becomes 0.
    let load: Vec<u128> = held.iter().map(|held| (of(held).load * LOAD_UNITS) as u64).map(u128::from).collect();
    let (all_bytes, all_load): (u128, u128) = (bytes.iter().sum(), load.iter().sum());
    let counts = all_load > 0 && all_load >= (load_min * LOAD_UNITS) as u128;
    let share = |load: u128| if counts { load * WHOLE / all_load } else { 0 };
    bytes.iter().zip(load).map(|(bytes, load)| (bytes * WHOLE / all_bytes + share(load)) as u64).collect()
}

/// Shards by their place in `shards`, and what each holds so far.
struct Desk {
    shards: Vec<ShardId>,
    weight: Vec<u64>,
    held: Vec<BTreeSet<(u64, PartitionId)>>,
    /// All of them, lightest first.
    by_weight: BTreeSet<(u64, usize)>,
    /// The same without those of which no partition would be better off on the lightest.
    givers: BTreeSet<(u64, usize)>,
    low: u64,
    mean: u64,
    high: u64,
}

impl Desk {
    fn new(able: &BTreeSet<ShardId>, held: &[(PartitionId, ShardId)], weights: &[u64], threshold: f64) -> Self {
        let shards: Vec<ShardId> = able.iter().copied().collect();
        let (mut weight, mut of) = (vec![0; shards.len()], vec![BTreeSet::new(); shards.len()]);
        for ((partition, owner), w) in held.iter().zip(weights) {
            if let Ok(at) = shards.binary_search(owner) {
                weight[at] += w;
                of[at].insert((*w, *partition));
            }
        }
        let by_weight: BTreeSet<(u64, usize)> = weight.iter().copied().zip(0..).collect();
        let (total, count): (u64, u64) = (weight.iter().sum(), shards.len() as u64);
        // Rounded so that a shard exactly at the threshold is within it.
        let tolerated = (total as f64 / count as f64 * threshold.max(0.0)).ceil() as u64 + 1;
        let (mean, grain) = (total / count, weights.iter().copied().min().unwrap_or(1).max(1));
        let low = mean.saturating_sub(tolerated).min(mean / grain * grain);
        let high = mean.saturating_add(tolerated).max(total.div_ceil(count).div_ceil(grain) * grain);
        let givers = by_weight.clone();
        Self { shards, weight, held: of, by_weight, givers, low, mean, high }
    }

    fn too_much(&self, weight: u64) -> u64 {
        weight.saturating_sub(self.high)
    }

    fn too_little(&self, weight: u64) -> u64 {
        self.low.saturating_sub(weight)
    }

    fn misfit(&self, weight: u64) -> u64 {
        self.too_much(weight) + self.too_little(weight)
    }

    /// What has to move, in wholes of `grain` where all partitions weigh that.
    fn least(&self, grain: u64) -> u64 {
        let wholes = |weight: u64| weight.div_ceil(grain) * grain;
        let sum = |of: fn(&Self, u64) -> u64| self.weight.iter().map(|weight| wholes(of(self, *weight))).sum::<u64>();
        sum(Self::too_much).max(sum(Self::too_little))
    }

    fn work(&mut self, steps_max: usize) {
        let mut pair: Option<(usize, usize)> = None;
        for _ in 0..steps_max {
            let (Some(&(most, heaviest)), Some(&(least, lightest))) = (self.givers.last(), self.by_weight.first())
            else {
                return;
            };
            if self.misfit(most) == 0 && self.misfit(least) == 0 {
                return;
            }
            // As long as one has too much, none that has not gives anything, and none takes what another lacks.
            let gives = if most > self.high { self.high } else { self.mean };
            let takes = if least < self.low { self.low } else { self.mean };
            let kept = pair.take();
            let from = kept.map(|(from, _)| from).filter(|from| self.weight[*from] > gives).unwrap_or(heaviest);
            let to = kept.map(|(_, to)| to).filter(|to| self.weight[*to] < takes).unwrap_or(lightest);
            match self.choose(from, to) {
                Some(what) => {
                    self.carry(from, to, what);
                    pair = Some((from, to));
                }
                None if (from, to) != (heaviest, lightest) => {}
                None => drop(self.givers.remove(&(most, heaviest))),
            }
        }
    }

    /// The partition that is best moved, if moving one makes anything better.
    fn choose(&self, from: usize, to: usize) -> Option<(u64, PartitionId)> {
        let (heavy, light) = (self.weight[from], self.weight[to]);
        let need = self.too_much(heavy).max(self.too_little(light));
        let room = self.high.saturating_sub(light).min(heavy.saturating_sub(self.low));
        let goal = (need.min(room), PartitionId(0));
        let (below, above) = (self.held[from].range(..goal).next_back(), self.held[from].range(goal..).next());
        let after = |(weight, _): &(u64, PartitionId)| self.misfit(heavy - weight) + self.misfit(light + weight);
        let before = self.misfit(heavy) + self.misfit(light);
        [below, above].into_iter().flatten().copied().filter(|what| after(what) < before).min_by_key(after)
    }

    fn carry(&mut self, from: usize, to: usize, what: (u64, PartitionId)) {
        self.held[from].remove(&what);
        self.held[to].insert(what);
        for (at, weight) in [(from, self.weight[from] - what.0), (to, self.weight[to] + what.0)] {
            let old = (std::mem::replace(&mut self.weight[at], weight), at);
            self.by_weight.remove(&old);
            self.givers.remove(&old);
            self.by_weight.insert((weight, at));
            self.givers.insert((weight, at));
        }
    }

    /// Who has something that was another's in the beginning, and how much that weighs.
    fn moves(&self, held: &[(PartitionId, ShardId)], weights: &BTreeMap<PartitionId, Weight>) -> (Vec<Shift>, u64) {
        let owner = |partition: &PartitionId| held.binary_search_by_key(partition, |(partition, _)| *partition);
        let (mut by_pair, mut moved) = (BTreeMap::<_, Vec<PartitionId>>::new(), 0);
        for (to, units) in self.shards.iter().zip(&self.held) {
            for (weight, partition) in units {
                let from = owner(partition).map_or(*to, |at| held[at].1);
                if from != *to {
                    by_pair.entry((from, *to)).or_default().push(*partition);
                    moved += weight;
                }
            }
        }
        let shift = |((from, to), mut partitions): ((ShardId, ShardId), Vec<PartitionId>)| {
            partitions.sort();
            let all = || partitions.iter().filter_map(|partition| weights.get(partition));
            let (rows, bytes) = (all().map(|weight| weight.rows).sum(), all().map(|weight| weight.bytes).sum());
            Shift { from, to, partitions, rows, bytes }
        };
        (by_pair.into_iter().map(shift).collect(), moved)
    }
}
