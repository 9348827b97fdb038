//! How fast rows are carried: clients keep most of their throughput.
//!
//! # The problem
//!
//! Carrying rows takes what clients' statements need too: the place in the target's log, its writer, disks and processors of
//! all nodes that hold either shard. How much that costs clients depends on all of these, so no fixed rate is right: too
//! fast on a small machine is too slow on a large one.
//!
//! # The mechanism
//!
//! The mover works for a while ([`WORK_MIN`]) and then rests. It counts, by shard, the statements that clients began in either,
//! as the shards' leaders count them (a call to each node that holds one of the shards). What clients get done while it rests is
//! what they would get done without it; what they get done while it works says what it costs them. From both follows how
//! long to rest, so that over work and rest together clients keep [`KEPT`] of it. With `q` for the share that they keep
//! while it works:
//!
//! ```text
//! work · q + rest = KEPT · (work + rest)     =>     rest = work · (KEPT - q) / (1 - KEPT)
//! ```
//!
//! Where nothing but the mover is at work it doesn't rest, and several messages may be on their way at once. The shard that suffers
//! most counts, be it one that only shares a node with those that move. Rests are at least [`REST_SHARE_MIN`] of the work, or
//! else nobody would know what clients do without it, and at most [`REST_SHARE_MAX`], so that a move always comes to an end.
//!
//! # Caveats
//!
//! Clients that send at a rate of their own keep their throughput however slow they are served, until something is full:
//! for these the mover works on, and they see longer latencies; the size of one message bounds these. Not throttled are the
//! rounds of catching up, which must be faster than clients change rows, and the scans that compare both sides, which
//! take one processor each.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use pleat_cluster::{NodeId, ShardId};
use tokio::time::{Instant, sleep};

use crate::work::Work;

/// The share of their throughput that clients keep. What is promised is 0.8: a rest begins with what the work before it has left
/// for followers to do, so what clients get done then is somewhat less than without the mover.
const KEPT: f64 = 0.9;
/// For how long is worked before it is looked whether to rest.
const WORK_MIN: Duration = Duration::from_millis(100);
/// The same for the first time: it shows whether anybody is there.
const WORK_FIRST: Duration = Duration::from_millis(20);
/// The bounds of a rest, as shares of the work before it.
const REST_SHARE_MIN: f64 = 0.1;
const REST_SHARE_MAX: f64 = 9.0;
/// No rest is longer.
const REST_MAX: Duration = Duration::from_secs(5);
/// What a look counts for when the next one is there: the last five or so are what matters.
const FADING: f64 = 0.8;
/// Statements that a shard must have served, in the looks that count, for its share to mean anything.
const STATEMENTS_MIN: f64 = 10.0;
/// How long a node may take to say how many statements it has served.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// Statements by shard, since their leaders started to count.
type Served = BTreeMap<ShardId, u64>;

/// One operation's throttle.
pub(crate) struct Throttle<'a> {
    work: &'a Work,
    /// The nodes that hold one of the shards.
    nodes: Vec<NodeId>,
    balance: Balance,
    /// When the work at hand began, and what had been served by then.
    begun: Instant,
    served: Option<Served>,
}

impl<'a> Throttle<'a> {
    /// For rows that are carried between these shards from now on.
    pub async fn new(work: &'a Work, shards: &[ShardId]) -> Self {
        let catalog = work.catalog();
        let mut nodes: Vec<NodeId> = shards
            .iter()
            .filter_map(|shard| catalog.shards.get(shard))
            .flat_map(|shard| shard.replicas.clone())
            .collect();
        nodes.sort();
        nodes.dedup();
        let mut throttle = Self { work, nodes, balance: Balance::default(), begun: Instant::now(), served: None };
        throttle.served = throttle.look().await;
        throttle.begun = Instant::now();
        throttle
    }

    /// Whether it is time to look whether to rest.
    pub fn is_due(&self) -> bool {
        self.begun.elapsed() >= if self.balance.resting.seconds > 0.0 { WORK_MIN } else { WORK_FIRST }
    }

    /// Whether nobody but the mover is at work, as far as is known.
    pub fn is_alone(&self) -> bool {
        self.balance.resting.seconds > 0.0 && self.balance.is_idle()
    }

    /// Between two messages: rest, if it is time to.
    pub async fn rest(&mut self) {
        if !self.is_due() {
            return;
        }
        let worked = self.begun.elapsed();
        let now = self.look().await;
        self.balance.worked(worked, self.served.as_ref(), now.as_ref());
        let rest = self.balance.rest(worked);
        self.begun = Instant::now();
        if rest.is_zero() {
            self.served = now;
            return;
        }
        sleep(rest).await;
        let after = self.look().await;
        self.balance.rested(self.begun.elapsed(), now.as_ref(), after.as_ref());
        self.begun = Instant::now();
        self.served = after;
    }

    /// `resting 62 % of the time for clients`, or nothing.
    pub fn describe(&self) -> String {
        match self.balance.resting() {
            share if share < 0.01 => String::new(),
            share => format!(", resting {:.0} % of the time for clients", share * 100.0),
        }
    }

    /// `None` when a node does not answer: then this look tells nothing.
    async fn look(&self) -> Option<Served> {
        let asked = self.nodes.iter().map(|node| self.work.cluster().served(*node, LOOK_LIMIT));
        let mut served = Served::new();
        for node in join_all(asked).await {
            for (shard, statements) in node.ok()? {
                *served.entry(shard).or_default() += statements;
            }
        }
        Some(served)
    }
}

/// What clients get done with and without the mover. Decides, and does nothing.
#[derive(Debug, Default)]
struct Balance {
    working: Looks,
    resting: Looks,
}

/// Statements and the time in which they were served; what is long ago counts little.
#[derive(Debug, Default)]
struct Looks {
    seconds: f64,
    statements: BTreeMap<ShardId, f64>,
}

impl Looks {
    fn add(&mut self, took: Duration, before: Option<&Served>, after: Option<&Served>) {
        let (Some(before), Some(after)) = (before, after) else { return };
        self.seconds = self.seconds * FADING + took.as_secs_f64();
        self.statements.values_mut().for_each(|statements| *statements *= FADING);
        for (shard, now) in after {
            // A shard that has got another leader is counted from the next look on.
            let Some(then) = before.get(shard).filter(|then| *then <= now) else { continue };
            *self.statements.entry(*shard).or_default() += (now - then) as f64;
        }
    }

    /// Whether nobody asked for anything.
    fn is_idle(&self) -> bool {
        self.statements.values().all(|statements| *statements < 0.5)
    }

    fn rate(&self, shard: ShardId) -> f64 {
        if self.seconds <= 0.0 { 0.0 } else { self.statements.get(&shard).copied().unwrap_or(0.0) / self.seconds }
    }
}

impl Balance {
    fn worked(&mut self, took: Duration, before: Option<&Served>, after: Option<&Served>) {
        self.working.add(took, before, after);
    }

    fn rested(&mut self, took: Duration, before: Option<&Served>, after: Option<&Served>) {
        self.resting.add(took, before, after);
    }

    /// How long to rest after so much work.
    fn rest(&self, worked: Duration) -> Duration {
        let share = self.share();
        let rest = worked.mul_f64(share);
        if share > 0.0 { rest.min(REST_MAX) } else { Duration::ZERO }
    }

    /// The rest as a share of the work.
    fn share(&self) -> f64 {
        if self.resting.seconds <= 0.0 {
            // The first look. Who got nothing done may have been kept from it.
            let nobody = self.working.seconds > 0.0 && self.working.is_idle();
            return if nobody { REST_SHARE_MIN } else { 1.0 };
        }
        if self.is_idle() {
            return 0.0;
        }
        let kept = |(shard, statements): (&ShardId, &f64)| {
            (*statements >= STATEMENTS_MIN).then(|| self.working.rate(*shard) / self.resting.rate(*shard))
        };
        let worst = self.resting.statements.iter().filter_map(kept).fold(1.0, f64::min);
        ((KEPT - worst) / (1.0 - KEPT)).clamp(REST_SHARE_MIN, REST_SHARE_MAX)
    }

    fn is_idle(&self) -> bool {
        self.working.is_idle() && self.resting.is_idle()
    }

    /// The share of all time that is rest.
    fn resting(&self) -> f64 {
        let share = if self.resting.seconds <= 0.0 { 0.0 } else { self.share() };
        share / (1.0 + share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: Duration = Duration::from_millis(100);

    fn served(shards: &[(u32, u64)]) -> Served {
        shards.iter().map(|(shard, statements)| (ShardId(*shard), *statements)).collect()
    }

    /// Clients of some shards that get `free` statements done per second, and while the mover works this share of it.
    /// What they keep, and the share of the time in which the mover works, once it has settled.
    fn settled(clients: &[(u32, f64, f64)]) -> (f64, f64) {
        let mut balance = Balance::default();
        let mut total: Vec<f64> = vec![1_000.0; clients.len()];
        let counted = |total: &[f64]| {
            served(&clients.iter().zip(total).map(|((shard, ..), n)| (*shard, *n as u64)).collect::<Vec<_>>())
        };
        let (mut kept, mut worked, mut all) = (f64::MAX, 0.0, 0.0);
        for cycle in 0..200 {
            let before = counted(&total);
            for (total, (_, free, share)) in total.iter_mut().zip(clients) {
                *total += SLICE.as_secs_f64() * free * share;
            }
            let between = counted(&total);
            balance.worked(SLICE, Some(&before), Some(&between));
            let rest = balance.rest(SLICE);
            for (total, (_, free, _)) in total.iter_mut().zip(clients) {
                *total += rest.as_secs_f64() * free;
            }
            balance.rested(rest, Some(&between), Some(&counted(&total)));
            if cycle >= 20 {
                worked += SLICE.as_secs_f64();
                all += (SLICE + rest).as_secs_f64();
            }
        }
        for (_, _, share) in clients {
            kept = kept.min((worked * share + (all - worked)) / all);
        }
        (kept, worked / all)
    }

    #[test]
    fn clients_keep_their_share_whatever_the_mover_costs_them() {
        for (share, least_worked) in [(0.0, 0.09), (0.3, 0.13), (0.5, 0.19), (0.7, 0.32), (0.9, 0.85), (1.0, 0.85)] {
            let (kept, worked) = settled(&[(1, 2_000.0, share)]);
            assert!(kept > 0.8, "{share}: {kept}");
            assert!(worked > least_worked, "{share}: it works {worked} of the time");
        }
    }

    #[test]
    fn the_shard_that_suffers_most_counts() {
        let (kept, _) = settled(&[(1, 5_000.0, 1.0), (2, 300.0, 0.2), (3, 0.0, 1.0)]);
        assert!(kept > 0.8, "{kept}");
    }

    #[test]
    fn nobody_is_spared_where_nobody_is() {
        assert!(settled(&[(1, 0.0, 1.0)]).1 > 0.98);
    }

    #[test]
    fn a_look_that_failed_and_a_leader_that_changed_tell_nothing() {
        let mut balance = Balance::default();
        balance.rested(SLICE, Some(&served(&[(1, 0)])), Some(&served(&[(1, 100)])));
        balance.worked(SLICE, Some(&served(&[(1, 100)])), Some(&served(&[(1, 150)])));
        let share = balance.share();
        balance.worked(SLICE, None, Some(&served(&[(1, 150)])));
        balance.rested(SLICE, Some(&served(&[(1, 150)])), None);
        assert_eq!(balance.share(), share);
        balance.worked(SLICE, Some(&served(&[(1, u64::MAX)])), Some(&served(&[(1, 0)])));
        assert!(balance.share() <= REST_SHARE_MAX && balance.share() >= share);
    }
}
