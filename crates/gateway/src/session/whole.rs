//! Reads of several shards never show half a transaction.
//!
//! Each shard answers from a snapshot of its own, and a transaction over several shards is carried out on one a moment
//! before the other. So each snapshot names, before its first row, the transactions that are prepared in it and
//! those that were lately committed, with their participants. When the snapshot of X has transaction t and that of Y, a
//! participant too, doesn't, Y is *behind*, and is opened anew.
//!
//! When is Y up to date? If it names t as committed, of course. But it may have forgotten t, as shards do after a while,
//! and X may not, because X has seen no entry since. So it also counts when Y's snapshot was opened *after* X had
//! answered and t is not prepared in it: t was committed only after all had prepared it, hence Y, which is asked for its
//! newest state, either still has it prepared or has carried it out. Having found this out once, the node remembers it
//! ([`Settled`]), or else an idle X would make every read open Y twice.
//!
//! A shard that is opened anew may bring newer transactions that others now lack; then these are opened anew. Each round
//! takes a moment, and only transactions that end within such a moment make another round, so it soon ends; if not,
//! the statement's time does.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pleat_cluster::{ShardId, TxnId};
use pleat_engine::TxnsSeen;

use super::Failure;

/// Pairs of a transaction and a shard that are remembered to be settled.
const SETTLED_MAX: usize = 20_000;
/// The pause before a shard is opened anew on which a transaction is being decided, at first and at most.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(1);
pub(super) const PAUSE_MAX: Duration = Duration::from_millis(50);

/// What one shard's snapshot says.
#[derive(Debug)]
pub(super) struct Seen<'a> {
    pub shard: ShardId,
    /// The round in which it was opened, from 0.
    pub round: u32,
    pub txns: &'a TxnsSeen,
}

/// Transactions that shards are known to have carried out, and since when.
#[derive(Default)]
pub(super) struct Settled(Mutex<Halves>);

/// New entries go to the young half; when it is full it becomes the old one, and what was that is forgotten.
#[derive(Default)]
struct Halves {
    young: HashMap<(TxnId, ShardId), Instant>,
    old: HashMap<(TxnId, ShardId), Instant>,
}

impl Settled {
    /// Whether every snapshot that was opened from `since` on shows the transaction on this shard.
    fn before(&self, txn: TxnId, shard: ShardId, since: Instant) -> bool {
        let halves = self.0.lock();
        let known = halves.young.get(&(txn, shard)).or_else(|| halves.old.get(&(txn, shard)));
        known.is_some_and(|settled| *settled <= since)
    }

    fn add(&self, txn: TxnId, shard: ShardId) {
        let mut halves = self.0.lock();
        if halves.young.len() >= SETTLED_MAX / 2 {
            halves.old = std::mem::take(&mut halves.young);
        }
        halves.young.insert((txn, shard), Instant::now());
    }
}

/// The shards whose snapshots lack a transaction that another one has. `begun` is when the first round was, if that
/// asked for the newest state; a replica may be behind whatever is settled.
pub(super) fn behind(seen: &[Seen<'_>], settled: &Settled, begun: Option<Instant>) -> HashSet<ShardId> {
    let mut behind = HashSet::new();
    let has: Vec<HashSet<TxnId>> =
        seen.iter().map(|one| one.txns.committed.iter().map(|(txn, _)| *txn).collect()).collect();
    for ahead in seen {
        for (txn, participants) in &ahead.txns.committed {
            for (other, has) in seen.iter().zip(&has) {
                let takes_part = other.shard != ahead.shard && participants.contains(&other.shard);
                if !takes_part || has.contains(txn) || behind.contains(&other.shard) {
                    continue;
                }
                if other.txns.prepared.contains(txn) {
                    behind.insert(other.shard);
                } else if other.round > ahead.round {
                    settled.add(*txn, other.shard);
                } else if !begun.is_some_and(|begun| settled.before(*txn, other.shard, begun)) {
                    behind.insert(other.shard);
                }
            }
        }
    }
    behind
}

/// The time is over, and there still was a shard behind another.
pub(super) fn still_behind(limit: Duration) -> Failure {
    Failure::passing(
        "40001",
        format!("after {} ms a transaction over several shards was still being carried out", limit.as_millis()),
        "nothing was done: send the request again; GET /txns shows what is in doubt",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: TxnId = TxnId(7);
    const X: ShardId = ShardId(1);
    const Y: ShardId = ShardId(2);
    const Z: ShardId = ShardId(3);

    fn committed() -> TxnsSeen {
        TxnsSeen { committed: vec![(T, vec![X, Y])], ..TxnsSeen::default() }
    }

    fn prepared() -> TxnsSeen {
        TxnsSeen { prepared: vec![T], ..TxnsSeen::default() }
    }

    fn look(seen: &[(ShardId, u32, &TxnsSeen)], settled: &Settled, begun: Instant) -> Vec<ShardId> {
        let seen: Vec<_> =
            seen.iter().map(|(shard, round, txns)| Seen { shard: *shard, round: *round, txns }).collect();
        behind(&seen, settled, Some(begun)).into_iter().collect()
    }

    #[test]
    fn a_participant_that_does_not_know_is_behind() {
        let (settled, now) = (Settled::default(), Instant::now());
        let (has, lacks, nothing) = (committed(), prepared(), TxnsSeen::default());
        assert_eq!(look(&[(X, 0, &has), (Y, 0, &lacks), (Z, 0, &nothing)], &settled, now), [Y]);
        assert_eq!(look(&[(X, 0, &has), (Y, 0, &nothing), (Z, 0, &nothing)], &settled, now), [Y], "an older snapshot");
        assert_eq!(look(&[(X, 0, &nothing), (Y, 0, &has)], &settled, now), [X], "whichever is the other");
        assert!(look(&[(X, 0, &has), (Y, 0, &has), (Z, 0, &nothing)], &settled, now).is_empty());
        assert!(look(&[(X, 0, &lacks), (Y, 0, &lacks)], &settled, now).is_empty(), "nobody has it yet");
    }

    #[test]
    fn a_later_snapshot_that_forgot_it_has_it() {
        let (settled, begun) = (Settled::default(), Instant::now());
        let (has, forgot) = (committed(), TxnsSeen::default());
        assert_eq!(look(&[(X, 0, &has), (Y, 1, &prepared())], &settled, begun), [Y], "still being decided");
        assert!(look(&[(X, 0, &has), (Y, 1, &forgot)], &settled, begun).is_empty());
        // From then on it is known; but not for a read that had begun before.
        std::thread::sleep(Duration::from_millis(2));
        assert!(look(&[(X, 0, &has), (Y, 0, &forgot)], &settled, Instant::now()).is_empty());
        assert_eq!(look(&[(X, 0, &has), (Y, 0, &forgot)], &settled, begun), [Y]);
    }

    #[test]
    fn what_is_settled_is_bounded() {
        let settled = Settled::default();
        for number in 0..3 * SETTLED_MAX as u128 {
            settled.add(TxnId(number), X);
        }
        let halves = settled.0.lock();
        assert!(halves.young.len() + halves.old.len() <= SETTLED_MAX);
    }
}
