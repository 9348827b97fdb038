//! Whether to split a shard or to merge one, which one, and why (or why not).

use std::collections::BTreeMap;

use pleat_cluster::{
    Catalog, Decision, DecisionId, Measurement, Millis, Mode, OperationKind, Option_, PartitionId, ShardId, Strategy,
    Verdict,
};

use crate::hindrance::{full, hindrance, limit, of_split, under_way};
use crate::scale_in::{self, Merge};
use crate::{History, LOOKS_NEEDED, Metric, Observed, ShardLoad, Unsplittable, Weight, split};

/// A shard that is worth splitting.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub shard: ShardId,
    /// What made it one.
    pub metric: Metric,
    /// For people: `total_entries of shard-1 is above 100`.
    pub reason: String,
    /// How far beyond the threshold: value / threshold.
    excess: f64,
}

/// A look at the cluster, held against the policy; not yet a decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    at: Millis,
    measurements: Vec<Measurement>,
    options: Vec<Option_>,
    /// Worst first.
    candidates: Vec<Candidate>,
    /// What to do when nothing is exceeded.
    merge: Option<Merge>,
    /// Why nothing is done, should no candidate remain.
    hold: String,
    /// By shard: statements per second by partition.
    load: BTreeMap<ShardId, BTreeMap<PartitionId, f64>>,
}

/// What came of a look.
#[derive(Clone, Debug, PartialEq)]
pub struct Conclusion {
    pub decision: Decision,
    /// What carries it out; none for `Hold`, and none in manual mode.
    pub start: Option<OperationKind>,
}

/// Hold one look at the cluster against the policy.
pub fn autoscale(catalog: &Catalog, observed: &Observed, now: Millis, history: &mut History) -> Draft {
    let mut draft = Draft {
        at: now,
        measurements: Vec::new(),
        options: Vec::new(),
        candidates: Vec::new(),
        merge: None,
        hold: String::new(),
        load: observed.shards.iter().map(|(shard, load)| (*shard, load.partition_load.clone())).collect(),
    };
    let mut exceeded = draft.measure(catalog, observed);
    if let Some(reason) = hindrance(catalog, observed, now) {
        history.forget();
        draft.turn_down_all(&exceeded, &reason);
        draft.hold = reason;
        return draft;
    }
    let is_calm = exceeded.is_empty();
    let moving = under_way(catalog);
    match &moving {
        Some(_) => history.forget_peaks(),
        None => scale_in::watch(catalog, observed, now, history),
    }
    exceeded.retain(|found| match of_split(catalog, found.subject, found.metric, now) {
        Some(reason) => {
            draft.turn_down_one(found, &reason);
            false
        }
        None => true,
    });
    match full(catalog) {
        Some(reason) => {
            history.forget_streaks();
            draft.turn_down_all(&exceeded, &reason);
            draft.hold = reason;
        }
        None => draft.weigh(catalog, observed, exceeded, history),
    }
    if let Some(reason) = moving {
        if draft.candidates.is_empty() {
            draft.hold = reason;
        }
    } else if is_calm {
        draft.merge = scale_in::find(catalog, observed, now, history, &mut draft.options);
    }
    if let Some(reason) = limit(catalog, now) {
        draft.put_off(&reason);
    }
    draft
}

/// Whether a decision says something that the log does not end with already.
pub fn worth_recording(catalog: &Catalog, conclusion: &Conclusion) -> bool {
    conclusion.start.is_some()
        || catalog.decisions.values().next_back().is_none_or(|last| {
            match (&last.verdict, &conclusion.decision.verdict) {
                (Verdict::Split { from: a, reason: x, .. }, Verdict::Split { from: b, reason: y, .. })
                | (Verdict::Merge { from: a, reason: x, .. }, Verdict::Merge { from: b, reason: y, .. }) => {
                    last.operation.is_some() || a != b || x != y
                }
                (a, b) => std::mem::discriminant(a) != std::mem::discriminant(b) || a.reason() != b.reason(),
            }
        })
}

/// A metric above its threshold: on a shard, or (`None`) over the cluster.
struct Exceeded {
    subject: Option<ShardId>,
    metric: Metric,
    threshold: f64,
    excess: f64,
}

impl Exceeded {
    fn subject(&self) -> String {
        self.subject.map_or_else(|| "cluster".to_owned(), |shard| shard.to_string())
    }
}

impl Draft {
    /// The shard to look into next, if any.
    pub fn candidate(&self) -> Option<&Candidate> {
        self.candidates.first()
    }

    /// The first candidate can't be split, or could not be looked into: try the next one.
    pub fn turn_down(&mut self, why: &str) {
        if self.candidates.is_empty() {
            return;
        }
        let Candidate { shard, reason, .. } = self.candidates.remove(0);
        let why = format!("{reason}, but {why}");
        self.options.push(Option_ { what: format!("split {shard}"), chosen: false, why: why.clone() });
        self.hold = why;
    }

    /// Come to a decision. `weights` are the rows and bytes per partition of the candidate's shard; a candidate that
    /// can't be divided is turned down, and `Err` gives the draft back for the next one.
    pub fn conclude(
        mut self,
        catalog: &Catalog,
        mut weights: BTreeMap<PartitionId, Weight>,
    ) -> Result<Conclusion, Box<Draft>> {
        let Some(candidate) = self.candidates.first().cloned() else {
            return Ok(match self.merge.take() {
                Some(merge) => self.choose_merge(catalog, merge),
                None => self.hold(catalog),
            });
        };
        let from = candidate.shard;
        // What a rebalance is about to take is as good as gone.
        let owned = catalog.settled_partitions_of(from);
        if candidate.metric.is_noisy() && !self.weigh_load(from, &owned, &mut weights) {
            self.turn_down("all of its load is on one partition, and a split would not divide it");
            return Err(Box::new(self));
        }
        let partitions = match split(&owned, &weights) {
            Ok(partitions) => partitions,
            Err(unsplittable) => {
                self.turn_down(&unsplittable.to_string());
                return Err(Box::new(self));
            }
        };
        Ok(self.choose(catalog, &candidate, catalog.partitions_of(from).len(), partitions))
    }

    /// Nothing is done.
    fn hold(self, catalog: &Catalog) -> Conclusion {
        let verdict = Verdict::Hold { reason: self.hold.clone() };
        Conclusion { decision: self.decision(catalog, verdict), start: None }
    }

    fn choose(
        mut self,
        catalog: &Catalog,
        candidate: &Candidate,
        owned: usize,
        partitions: Vec<PartitionId>,
    ) -> Conclusion {
        let (from, to) = (candidate.shard, catalog.next_shard());
        self.options.push(Option_ {
            what: format!("split {from}: {} of its {owned} partitions to a new {to}", partitions.len()),
            chosen: true,
            why: candidate.reason.clone(),
        });
        for other in self.candidates.iter().skip(1) {
            self.options.push(Option_ {
                what: format!("split {}", other.shard),
                chosen: false,
                why: format!(
                    "{}, but {from} is further beyond its threshold, and one is chosen at a time",
                    other.reason
                ),
            });
        }
        self.options.push(Option_ { what: "do nothing".to_owned(), chosen: false, why: candidate.reason.clone() });
        self.act(catalog, Verdict::Split { from, to, partitions, reason: candidate.reason.clone() })
    }

    fn choose_merge(mut self, catalog: &Catalog, Merge { from, to, reason }: Merge) -> Conclusion {
        let partitions = catalog.partitions_of(from);
        self.options.push(Option_ {
            what: format!("merge {from}: its {} partitions to {to}", partitions.len()),
            chosen: true,
            why: reason.clone(),
        });
        self.options.push(Option_ { what: "do nothing".to_owned(), chosen: false, why: reason.clone() });
        self.act(catalog, Verdict::Merge { from, to, partitions, reason })
    }

    /// In manual mode it stays a recommendation.
    fn act(self, catalog: &Catalog, verdict: Verdict) -> Conclusion {
        let start = verdict.operation().filter(|_| catalog.policy.mode == Mode::Automatic);
        Conclusion { decision: self.decision(catalog, verdict), start }
    }

    fn decision(self, catalog: &Catalog, verdict: Verdict) -> Decision {
        Decision {
            id: DecisionId(0), // the catalog assigns it
            at: self.at,
            generation: catalog.generation,
            strategy: catalog.policy.strategy,
            measurements: self.measurements,
            options: self.options,
            verdict,
            operation: None,
        }
    }

    /// Put the measured load beside rows and bytes. False when there is load and one partition has all of it.
    fn weigh_load(&self, shard: ShardId, owned: &[PartitionId], weights: &mut BTreeMap<PartitionId, Weight>) -> bool {
        let load = self.load.get(&shard).into_iter().flatten();
        // Statements that a moved partition had here before are not this shard's load any more.
        let busy = load.filter(|(partition, load)| **load > 0.0 && owned.contains(partition));
        let mut partitions = 0;
        for (partition, load) in busy {
            weights.entry(*partition).or_default().load = *load;
            partitions += 1;
        }
        partitions != 1
    }

    /// Write every measurement down; gives those above their threshold that the strategy acts on.
    fn measure(&mut self, catalog: &Catalog, observed: &Observed) -> Vec<Exceeded> {
        let mut found = Vec::new();
        let hot = catalog.policy.strategy == Strategy::Hot;
        let active: Vec<_> = (catalog.active_shards())
            .filter_map(|shard| observed.shards.get(&shard.id).map(|load| (shard.id, load)))
            .collect();
        for metric in Metric::ALL {
            let threshold = metric.threshold(&catalog.policy.thresholds);
            for (shard, load) in &active {
                // Under `cold` a single shard's value is shown, and held against nothing.
                let threshold = threshold.filter(|_| hot);
                found.extend(self.note(Some(*shard), metric, metric.of(load), threshold));
            }
            if !hot && !active.is_empty() {
                let (value, threshold) = aggregate(metric, &active, threshold);
                found.extend(self.note(None, metric, value, threshold));
            }
        }
        found
    }

    fn note(
        &mut self,
        subject: Option<ShardId>,
        metric: Metric,
        value: f64,
        threshold: Option<f64>,
    ) -> Option<Exceeded> {
        let exceeded = threshold.filter(|threshold| value > *threshold).map(|threshold| Exceeded {
            subject,
            metric,
            threshold,
            excess: value / threshold.max(f64::MIN_POSITIVE),
        });
        self.measurements.push(Measurement {
            subject: subject.map_or_else(|| "cluster".to_owned(), |shard| shard.to_string()),
            metric: metric.name().to_owned(),
            value,
            threshold,
            exceeded: exceeded.is_some(),
        });
        exceeded
    }

    /// From thresholds exceeded to candidates, or to the reason for none.
    fn weigh(&mut self, catalog: &Catalog, observed: &Observed, exceeded: Vec<Exceeded>, history: &mut History) {
        let streaks = count_looks(catalog, &exceeded, history);
        self.hold = "every measurement is within its threshold".to_owned();
        let mut waiting = None;
        for (found, looks) in exceeded.iter().zip(streaks) {
            let Some(shard) = found.subject.or_else(|| heaviest(catalog, observed, found.metric)) else { continue };
            let subject = found.subject();
            let (what, metric) = (format!("split {shard}"), found.metric);
            let reason = format!("{} of {subject} is above {}", metric.name(), found.threshold);
            if metric.is_noisy() && looks < LOOKS_NEEDED {
                let why = format!("{reason}, but for fewer than {LOOKS_NEEDED} looks in a row");
                self.options.push(Option_ { what, chosen: false, why: why.clone() });
                waiting.get_or_insert(why);
            } else if let Some(why) =
                (observed.shards.get(&shard)).and_then(|load| futile(catalog, shard, load, metric))
            {
                let why = format!("{reason}, but {why}");
                self.options.push(Option_ { what, chosen: false, why: why.clone() });
                waiting.get_or_insert(why);
            } else if !self.candidates.iter().any(|candidate| candidate.shard == shard) {
                self.candidates.push(Candidate { shard, metric, reason, excess: found.excess });
            }
        }
        self.candidates.sort_by(|a, b| b.excess.total_cmp(&a.excess).then(a.shard.cmp(&b.shard)));
        if let Some(why) = waiting {
            self.hold = why;
        }
    }

    /// What would be done is not to be done yet.
    fn put_off(&mut self, why: &str) {
        while !self.candidates.is_empty() {
            self.turn_down(why);
        }
        if let Some(Merge { from, to, reason }) = self.merge.take() {
            let why = format!("{reason}, but {why}");
            self.options.push(Option_ { what: format!("merge {from} into {to}"), chosen: false, why: why.clone() });
            self.hold = why;
        }
    }

    fn turn_down_all(&mut self, exceeded: &[Exceeded], why: &str) {
        exceeded.iter().for_each(|found| self.turn_down_one(found, why));
    }

    fn turn_down_one(&mut self, found: &Exceeded, why: &str) {
        let (subject, metric) = (found.subject(), found.metric.name());
        self.options.push(Option_ {
            what: found.subject.map_or_else(|| "split a shard".to_owned(), |shard| format!("split {shard}")),
            chosen: false,
            why: format!("{metric} of {subject} is above {}, but {why}", found.threshold),
        });
    }
}

/// The strategy `cold`: sums over the shards against that many thresholds, and means of the nodes' CPU and memory.
pub(crate) fn aggregate(
    metric: Metric,
    active: &[(ShardId, &ShardLoad)],
    threshold: Option<f64>,
) -> (f64, Option<f64>) {
    if metric.is_of_node() {
        let nodes: BTreeMap<_, _> = active.iter().map(|(_, load)| (load.node, metric.of(load))).collect();
        return (nodes.values().sum::<f64>() / nodes.len() as f64, threshold);
    }
    let sum = active.iter().map(|(_, load)| metric.of(load)).sum();
    (sum, threshold.map(|threshold| threshold * active.len() as f64))
}

/// The shard that a split helps most when the cluster as a whole is over a threshold.
fn heaviest(catalog: &Catalog, observed: &Observed, metric: Metric) -> Option<ShardId> {
    let weight = |shard: ShardId| {
        observed.shards.get(&shard).map_or(0.0, |load| match metric {
            Metric::TotalEntries => load.rows.saturating_sub(load.rows_fixed) as f64,
            // A node's CPU and memory say nothing about which of its shards to divide; its statements do.
            Metric::CpuPercent | Metric::QueriesPerSecond => load.queries_per_second,
            Metric::MemoryPercent => load.bytes as f64,
            Metric::Connections => load.connections as f64,
        })
    };
    let splittable = catalog.active_shards().filter(|shard| catalog.settled_partitions_of(shard.id).len() >= 2);
    splittable.map(|shard| shard.id).max_by(|a, b| weight(*a).total_cmp(&weight(*b)).then(b.cmp(a)))
}

/// Count this look for every threshold of the strategy, exceeded or not.
fn count_looks(catalog: &Catalog, exceeded: &[Exceeded], history: &mut History) -> Vec<u32> {
    let is_over =
        |subject: &str, metric| exceeded.iter().any(|found| found.metric == metric && found.subject() == subject);
    let subjects: Vec<String> =
        (catalog.active_shards().map(|shard| shard.id.to_string())).chain(["cluster".to_owned()]).collect();
    let mut looks = BTreeMap::new();
    for subject in &subjects {
        for metric in Metric::ALL {
            let streak = history.look(subject, metric, is_over(subject, metric));
            looks.insert((subject.as_str(), metric), streak);
        }
    }
    exceeded.iter().map(|found| looks.get(&(found.subject().as_str(), found.metric)).copied().unwrap_or(0)).collect()
}

/// Why a split of `shard` would not help with `metric`, as far as can be told without counting partitions.
fn futile(catalog: &Catalog, shard: ShardId, load: &ShardLoad, metric: Metric) -> Option<String> {
    let owned = catalog.settled_partitions_of(shard);
    if owned.len() < 2 {
        return Some(Unsplittable::OnePartition.to_string());
    }
    if metric == Metric::TotalEntries {
        // Reference tables are copied to the new shard and single tables stay: were they counted in full, a big
        // one would drive the cluster to its largest size without making any shard smaller.
        let threshold = catalog.policy.thresholds.total_entries_per_shard.unwrap_or(u64::MAX);
        if load.rows_fixed.saturating_mul(2) > threshold {
            return Some(format!("most of what fits in {threshold} rows is in tables that a split does not divide"));
        }
        return None;
    }
    let busy =
        owned.iter().filter(|partition| load.partition_load.get(partition).is_some_and(|load| *load > 0.0)).count();
    (busy == 1).then(|| "all of its load is on one partition, and a split would not divide it".to_owned())
}
