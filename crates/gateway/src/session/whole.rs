//! Reads of several shards never show half a transaction.
//!
//! Each shard answers from a snapshot of its own, and a transaction over several shards is carried out on one a moment
//! before the other. When the snapshot of X has a transaction and that of Y, a participant too, doesn't, Y is *behind*, and
//! is opened anew.
//!
//! How does it show? Each shard carries out its commits in the order of their numbers (see `pleat_cluster`'s `ledger`). So
//! a snapshot says before its first row for every shard, itself included, which was the newest commit that it shows and in which
//! that shard took part ([`TxnsSeen::newest_with`]). Y is behind when X shows one with Y that is newer than Y's newest of all:
//! Y will have to carry it out. Otherwise Y has it, and all before it. Nothing has to be remembered, and it doesn't
//! matter how many transactions there were or how old the snapshots are.
//!
//! A shard that is opened anew may bring newer transactions that others now lack; then these are opened anew. Each round
//! takes a moment, and only transactions that end within such a moment make another round, so it soon ends; if not,
//! the statement's time does.
//!
//! A partition that moves takes along what its old shard had in common with others: the target has no part in these
//! transactions, but its rows show them, so it says so as well. (Whatever the target itself had to carry out by then it has: it takes
//! in no rows while it is being decided.)

use std::collections::HashSet;
use std::time::Duration;

use pleat_cluster::ShardId;
use pleat_cluster::planted::{self, Bug};
use pleat_engine::TxnsSeen;

use super::Failure;

/// The pause before a shard is opened anew on which a transaction is being decided, at first and at most.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(1);
pub(super) const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The shards whose snapshots lack a transaction that another one has.
pub(super) fn behind(seen: &[(ShardId, &TxnsSeen)]) -> HashSet<ShardId> {
    let lacks = |(shard, txns): &&(ShardId, &TxnsSeen)| {
        seen.iter().any(|(other, ahead)| other != shard && ahead.newest_with(*shard) > txns.newest_with(*shard))
    };
    if planted::is(Bug::HalfVisible) {
        return HashSet::new();
    }
    seen.iter().filter(lacks).map(|(shard, _)| *shard).collect()
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

    const X: ShardId = ShardId(1);
    const Y: ShardId = ShardId(2);
    const Z: ShardId = ShardId(3);

    /// A snapshot that has these commits, each with its participants.
    fn after(commits: &[(u64, &[ShardId])]) -> TxnsSeen {
        let newest = |shard: ShardId| commits.iter().filter(|(_, all)| all.contains(&shard)).map(|(n, _)| *n).max();
        let together = [X, Y, Z].into_iter().filter_map(|shard| Some((shard, newest(shard)?))).collect();
        TxnsSeen { together, ..TxnsSeen::default() }
    }

    fn look(seen: &[(ShardId, &TxnsSeen)]) -> Vec<ShardId> {
        let mut behind: Vec<_> = behind(seen).into_iter().collect();
        behind.sort();
        behind
    }

    #[test]
    fn a_participant_that_lacks_a_commit_is_behind() {
        let (has, lacks) = (after(&[(7, &[X, Y])]), TxnsSeen::default());
        assert_eq!(look(&[(X, &has), (Y, &lacks), (Z, &lacks)]), [Y]);
        assert_eq!(look(&[(X, &lacks), (Y, &has)]), [X], "whichever is the other");
        assert_eq!(look(&[(X, &has), (Y, &has), (Z, &lacks)]), [], "Z takes no part");
        assert_eq!(look(&[(X, &lacks), (Y, &lacks)]), [], "nobody has it yet");
        assert_eq!(look(&[(X, &has)]), []);
    }

    #[test]
    fn what_others_have_in_common_does_not_matter() {
        // X and Y have 7 in common; both have gone on, Y far.
        let x = after(&[(7, &[X, Y]), (9, &[X, Z])]);
        let y = after(&[(7, &[X, Y]), (8, &[Y, Z]), (5_000, &[Y, Z])]);
        assert_eq!(look(&[(X, &x), (Y, &y)]), []);
        // Z has come as far as 8.
        let z = after(&[(8, &[Y, Z])]);
        assert_eq!(look(&[(X, &x), (Y, &y), (Z, &z)]), [Z]);
        assert_eq!(look(&[(X, &x), (Z, &z)]), [Z]);
    }

    #[test]
    fn each_may_lack_something_of_another() {
        let (x, y, z) = (after(&[(1, &[X, Y])]), TxnsSeen::default(), after(&[(3, &[Z, X])]));
        assert_eq!(look(&[(X, &x), (Y, &y), (Z, &z)]), [X, Y]);
    }
}
