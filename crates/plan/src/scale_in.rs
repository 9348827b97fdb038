//! Whether the load of a shard has gone, so that it can be merged into another one.
//!
//! A split answers what is; a merge bets on what will be, and a bet that is lost costs two copies of a shard. So it is slow to
//! come, and leaves room. For the policy's `after_ms`, without a break,
//!
//! 1. all that was measured of the shard stayed below `below_percent` of *each* threshold, and
//! 2. what was measured of it and of the shard that gets its data, their peaks added up, stayed within half ([`HEADROOM`]) of each:
//!    load has to double before what was merged is split again. Peaks count, not means, so shards that are busy in turns stay two.
//! 3. CPU and memory are a node's. They have to stay within that half also when *one node is lost*, and the others do its work.
//!
//! By the strategy `cold` the same is asked of the cluster: of its sums, against the thresholds of one shard fewer.
//!
//! Never below `min_shards`, and never while any threshold is exceeded. Of several shards the one that takes the fewest bytes goes,
//! if the catalog lets it ([`Catalog::kept_because`]) and `max_bytes` does; what speaks against one is told as an option.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use pleat_cluster::{Catalog, Millis, NodeId, Option_, ScaleIn, ShardId, Strategy};

use crate::autoscale::aggregate;
use crate::history::Peaks;
use crate::{History, Metric, Observed, ShardLoad};

/// The share of each threshold that a shard may take after it got another one's data.
const HEADROOM: f64 = 0.5;

/// A shard that can go.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Merge {
    pub from: ShardId,
    pub to: ShardId,
    pub reason: String,
}

/// Note what every shard, and the cluster, did at this look.
pub(crate) fn watch(catalog: &Catalog, observed: &Observed, now: Millis, history: &mut History) {
    let period = catalog.policy.scale_in.after_ms;
    let active = active(catalog, observed);
    for (shard, load) in &active {
        let values = Metric::ALL.into_iter().map(|metric| (metric, metric.of(load)));
        history.watch(&shard.to_string(), values.collect(), now, period);
    }
    if !active.is_empty() {
        let values = Metric::ALL.into_iter().map(|metric| (metric, aggregate(metric, &active, None).0));
        history.watch("cluster", values.collect(), now, period);
    }
}

/// The shard to merge, and into which one; `options` gets those that were looked into and can't go.
pub(crate) fn find(
    catalog: &Catalog,
    observed: &Observed,
    now: Millis,
    history: &History,
    options: &mut Vec<Option_>,
) -> Option<Merge> {
    let ScaleIn { enabled, after_ms, max_bytes, .. } = catalog.policy.scale_in;
    let active = active(catalog, observed);
    if !enabled || active.len() <= catalog.policy.min_shards.max(1) as usize {
        return None;
    }
    let view = View { catalog, history, now, active };
    let mut idle: Vec<(ShardId, &ShardLoad)> = view.idle();
    idle.sort_by_key(|(shard, load)| (load.bytes, Reverse(*shard)));
    for (from, load) in idle {
        let kept = catalog.kept_because(from).or_else(|| {
            let too_large = load.bytes > max_bytes;
            too_large.then(|| format!("it takes {} bytes, and scale_in.max_bytes is {max_bytes}", load.bytes))
        });
        let why = match kept {
            Some(kept) => kept,
            None => match view.receiver(from) {
                Some(to) => return Some(Merge { from, to, reason: view.reason(from, to, after_ms) }),
                None => "no other shard would stay within half of every threshold with its data".to_owned(),
            },
        };
        options.push(Option_ { what: format!("merge {from} into another shard"), chosen: false, why });
    }
    None
}

fn active<'a>(catalog: &Catalog, observed: &'a Observed) -> Vec<(ShardId, &'a ShardLoad)> {
    catalog.active_shards().filter_map(|shard| Some((shard.id, observed.shards.get(&shard.id)?))).collect()
}

/// Rows that a merge takes along: copies of reference tables are there already.
fn moving_rows(load: &ShardLoad) -> f64 {
    load.rows.saturating_sub(load.rows_fixed) as f64
}

struct View<'a> {
    catalog: &'a Catalog,
    history: &'a History,
    now: Millis,
    active: Vec<(ShardId, &'a ShardLoad)>,
}

impl<'a> View<'a> {
    fn peaks(&self, subject: impl ToString) -> Option<Peaks> {
        self.history.peaks(&subject.to_string(), self.now, self.catalog.policy.scale_in.after_ms)
    }

    /// The metrics that have a threshold, with that of one shard.
    fn thresholds(&self) -> impl Iterator<Item = (Metric, f64)> {
        let thresholds = &self.catalog.policy.thresholds;
        Metric::ALL.into_iter().filter_map(|metric| Some((metric, metric.threshold(thresholds)?)))
    }

    /// Shards that are not needed, as far as they alone are concerned.
    fn idle(&self) -> Vec<(ShardId, &'a ShardLoad)> {
        match self.catalog.policy.strategy {
            Strategy::Hot => self.active.iter().filter(|(shard, load)| self.is_idle(*shard, load)).copied().collect(),
            Strategy::Cold if self.is_cluster_idle() => self.active.clone(),
            Strategy::Cold => Vec::new(),
        }
    }

    fn low(&self) -> f64 {
        self.catalog.policy.scale_in.below_percent / 100.0
    }

    fn is_idle(&self, shard: ShardId, load: &ShardLoad) -> bool {
        self.peaks(shard).is_some_and(|peaks| {
            self.thresholds().all(|(metric, threshold)| {
                let value = if metric == Metric::TotalEntries { moving_rows(load) } else { peaks[&metric] };
                value < self.low() * threshold
            })
        })
    }

    fn is_cluster_idle(&self) -> bool {
        let (shards, nodes) = (self.active.len() as f64, self.catalog.active_nodes().count().max(1) as f64);
        self.peaks("cluster").is_some_and(|peaks| {
            self.thresholds().all(|(metric, threshold)| match metric.is_of_node() {
                true => {
                    let after_loss = peaks[&metric] * nodes / (nodes - 1.0).max(1.0);
                    peaks[&metric] < self.low() * threshold && after_loss <= HEADROOM * threshold
                }
                false => {
                    let now = self.low() * threshold * shards;
                    peaks[&metric] < now && peaks[&metric] <= HEADROOM * threshold * (shards - 1.0)
                }
            })
        })
    }

    /// The shard that has most room left with the data of `from`, if one has enough.
    fn receiver(&self, from: ShardId) -> Option<ShardId> {
        let others = self.active.iter().map(|(shard, _)| *shard).filter(|shard| *shard != from);
        let filled = others.filter_map(|to| Some((self.filled(from, to)?, to)));
        let (filled, to) = filled.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))?;
        (filled <= HEADROOM || self.catalog.policy.strategy == Strategy::Cold).then_some(to)
    }

    /// The largest share of a threshold that `to` takes with the data of `from`.
    fn filled(&self, from: ShardId, to: ShardId) -> Option<f64> {
        let load = |wanted: ShardId| self.active.iter().find(|(shard, _)| *shard == wanted).map(|(_, load)| *load);
        let (from_load, to_load) = (load(from)?, load(to)?);
        let (from_peaks, to_peaks) = (self.peaks(from)?, self.peaks(to)?);
        let share = |(metric, threshold): (Metric, f64)| {
            let (leaving, staying) = (from_peaks[&metric], to_peaks[&metric]);
            let value = match metric {
                Metric::TotalEntries => staying + moving_rows(from_load),
                _ if !metric.is_of_node() => staying + leaving,
                _ if from_load.node == to_load.node => staying.max(self.after_loss(metric)),
                _ => (staying + leaving).max(self.after_loss(metric)),
            };
            value / threshold.max(f64::MIN_POSITIVE)
        };
        self.thresholds().map(share).max_by(f64::total_cmp)
    }

    /// What a node has of a metric when one is lost, and the others share its work.
    fn after_loss(&self, metric: Metric) -> f64 {
        let mut by_node: BTreeMap<NodeId, f64> = BTreeMap::new();
        for (shard, load) in &self.active {
            let peak = self.peaks(shard).map_or(0.0, |peaks| peaks[&metric]);
            let of_node = by_node.entry(load.node).or_default();
            *of_node = of_node.max(peak);
        }
        let left = self.catalog.active_nodes().count().saturating_sub(1).max(1);
        by_node.values().sum::<f64>() / left as f64
    }

    fn reason(&self, from: ShardId, to: ShardId, after_ms: u64) -> String {
        let (low, seconds) = (self.catalog.policy.scale_in.below_percent, after_ms as f64 / 1000.0);
        match self.catalog.policy.strategy {
            Strategy::Hot => format!(
                "{from} has stayed below {low} % of every threshold for {seconds} s, and {to} stays within half of each \
                 with its data"
            ),
            Strategy::Cold => format!(
                "the cluster has stayed below {low} % of every threshold for {seconds} s, and stays within half of each \
                 without {from}"
            ),
        }
    }
}
