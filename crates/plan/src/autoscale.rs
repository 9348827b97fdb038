//! Whether to split a shard, which one, and why (or why not).

use std::collections::BTreeMap;

use pleat_cluster::{
    Catalog, Decision, DecisionId, Measurement, Millis, Mode, Operation, OperationKind, Option_, PartitionId, Phase,
    ShardId, ShardState, Strategy, Verdict,
};

use crate::{History, LOOKS_NEEDED, Metric, Observed, ShardLoad, Unsplittable, Weight, split};

/// A measurement older than this many monitoring intervals counts as missing.
const STALE_AFTER_INTERVALS: u64 = 3;
/// After failures in a row the cool-down doubles at most this often.
const COOLDOWN_DOUBLINGS_MAX: u32 = 6;

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
        hold: String::new(),
        load: observed.shards.iter().map(|(shard, load)| (*shard, load.partition_load.clone())).collect(),
    };
    let exceeded = draft.measure(catalog, observed);
    if let Some(reason) = hindrance(catalog, observed, now) {
        history.forget();
        draft.turn_down_all(&exceeded, &reason);
        draft.hold = reason;
        return draft;
    }
    draft.weigh(catalog, observed, exceeded, history);
    draft
}

/// Whether a decision says something that the log does not end with already.
pub fn worth_recording(catalog: &Catalog, conclusion: &Conclusion) -> bool {
    conclusion.start.is_some()
        || catalog.decisions.values().next_back().is_none_or(|last| {
            match (&last.verdict, &conclusion.decision.verdict) {
                (Verdict::Split { from: a, reason: x, .. }, Verdict::Split { from: b, reason: y, .. }) => {
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
        let Some(candidate) = self.candidates.first().cloned() else { return Ok(self.hold(catalog)) };
        let from = candidate.shard;
        let owned = catalog.partitions_of(from);
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
        Ok(self.choose(catalog, &candidate, owned.len(), partitions))
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
                    "{}, but {from} is further beyond its threshold, and one is split at a time",
                    other.reason
                ),
            });
        }
        self.options.push(Option_ { what: "do nothing".to_owned(), chosen: false, why: candidate.reason.clone() });
        let start = match catalog.policy.mode {
            Mode::Automatic => Some(OperationKind::Split { from, to, partitions: partitions.clone() }),
            Mode::Manual => None,
        };
        let verdict = Verdict::Split { from, to, partitions, reason: candidate.reason.clone() };
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

    fn turn_down_all(&mut self, exceeded: &[Exceeded], why: &str) {
        for found in exceeded {
            let (subject, metric) = (found.subject(), found.metric.name());
            self.options.push(Option_ {
                what: found.subject.map_or_else(|| "split a shard".to_owned(), |shard| format!("split {shard}")),
                chosen: false,
                why: format!("{metric} of {subject} is above {}, but {why}", found.threshold),
            });
        }
    }
}

/// The strategy `cold`: sums over the shards against that many thresholds, and means of the nodes' CPU and memory.
fn aggregate(metric: Metric, active: &[(ShardId, &ShardLoad)], threshold: Option<f64>) -> (f64, Option<f64>) {
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
    let splittable = catalog.active_shards().filter(|shard| catalog.partitions_of(shard.id).len() >= 2);
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
    let owned = catalog.partitions_of(shard);
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

/// What forbids any action right now.
fn hindrance(catalog: &Catalog, observed: &Observed, now: Millis) -> Option<String> {
    if let Some(operation) = catalog.open_operations().find(|operation| is_move(operation) && !operation.is_waiting()) {
        return Some(format!("{} ({}) is under way", operation.id, operation.kind.name()));
    }
    if let Some(shard) = catalog.shards.values().find(|shard| shard.state == ShardState::Creating) {
        return Some(format!("{} is still being created", shard.id));
    }
    if let Some(reason) = cooldown(catalog, now) {
        return Some(reason);
    }
    let stale = STALE_AFTER_INTERVALS.saturating_mul(catalog.policy.monitoring_interval_ms);
    for shard in catalog.active_shards() {
        match observed.shards.get(&shard.id) {
            None => return Some(format!("there is no measurement of {}{}", shard.id, silence(observed))),
            Some(load) if load.measured.saturating_add(stale) < now => {
                return Some(format!("the newest measurement of {} is more than {stale} ms old", shard.id));
            }
            Some(_) => {}
        }
    }
    let shards = catalog.shards.values().filter(|shard| shard.state != ShardState::Removed).count();
    let limit = catalog.policy.max_shards;
    (shards >= limit as usize).then(|| format!("the cluster has as many shards as max_shards allows ({limit})"))
}

fn silence(observed: &Observed) -> String {
    let silent: Vec<String> = observed.silent.keys().map(ToString::to_string).collect();
    if silent.is_empty() { String::new() } else { format!(" (no answer from {})", silent.join(", ")) }
}

fn cooldown(catalog: &Catalog, now: Millis) -> Option<String> {
    let mut ended: Vec<&Operation> =
        catalog.operations.values().filter(|op| is_move(op) && op.phase.is_final()).collect();
    ended.sort_by_key(|operation| (operation.updated, operation.id));
    let last = ended.last()?;
    let failures = ended.iter().rev().take_while(|operation| operation.phase == Phase::Failed).count() as u32;
    let doublings = failures.saturating_sub(1).min(COOLDOWN_DOUBLINGS_MAX);
    let pause = catalog.policy.cooldown_ms.saturating_mul(1 << doublings);
    let failed = if last.phase == Phase::Failed { ", which failed" } else { "" };
    (now < last.updated.saturating_add(pause)).then(|| format!("cooling down for {pause} ms after {}{failed}", last.id))
}

fn is_move(operation: &Operation) -> bool {
    matches!(operation.kind, OperationKind::Split { .. } | OperationKind::Move { .. })
}
