//! Bugs that the simulation plants to see whether it would find them.
//!
//! A simulation that finds nothing proves something only if it would find what is there. So for each rule that keeps data
//! right there is a way to break it, one at a time: the code asks [`is`] at the place that keeps the rule. Without the
//! feature `planted` the answer is a constant, and the compiler takes the question out. Only the tests of crate `sim` have
//! the feature, and a bug is planted for one thread, which is the simulation's.
//!
//! It stands in this crate because every other one depends on it.

/// A bug, by the rule that it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A write is acknowledged when its leader has it, before a majority does.
    EarlyAcknowledgement,
    /// A follower acknowledges log entries before they are on its disk.
    UnsyncedAnswered,
    /// A leader counts a follower's acknowledgement of log entries before they are on its own disk.
    UnsyncedCounted,
    /// A leader says that log entries are committed before they are on its disk.
    UnsyncedTold,
    /// Log entries are applied before they are on the disk.
    UnsyncedApplied,
    /// Log entries whose fsync failed are acknowledged, and the node goes on.
    FailedFsyncIgnored,
    /// A vote is given and not written down.
    LostVote,
    /// A batch is applied, and its position in the log is not stored with it.
    LostAppliedIndex,
    /// After a restart the last entry is applied once more.
    DoubleApply,
    /// Of a batch, the last proposal is left out; how a log is cut into batches differs between replicas.
    EntrySkipped,
    /// A checkpoint says that it is durable, and did not sync the database.
    CheckpointUnsynced,
    /// A snapshot says that it goes one entry further than it does.
    SnapshotShort,
    /// A leader answers a strong read without asking whether it still leads.
    NoReadQuorum,
    /// An unknown outcome is told as "nothing was done".
    UnknownToldAsNot,
    /// A shard does not look whether it owns what a request was routed by.
    StaleRouterBelieved,
    /// A read of all shards is not held to one generation of ownership.
    ScatterUnchecked,
    /// A statement without a key shows rows that the shard does not own.
    OwnershipFilterOff,
    /// A move hands over without having fenced its source.
    SkippedFence,
    /// A move leaves out what changed before its fence and was not carried over yet.
    CaptureDropped,
    /// A move leaves out what changed while it copied, and goes on although the digests differ.
    DigestIgnored,
    /// A move leaves the idempotency keys of its partitions behind.
    KeysLeftBehind,
    /// A write that came before under the same idempotency key is done again.
    IdempotencyIgnored,
    /// The ledger takes the last word about a transaction, not the first.
    DecisionFlipped,
    /// Whoever recovers a transaction that is committed aborts it on the shard.
    CommitForgotten,
    /// Whoever finds a transaction that its coordinator has left aborts it, without asking the ledger.
    AbortUnasked,
    /// A coordinator commits although a shard did not prepare.
    CommitUnprepared,
    /// The ledger forgets a commit before every shard was told.
    ForgottenEarly,
    /// A read of several shards does not look whether one is behind another.
    HalfVisible,
    /// A move begins on a shard that has a part in another one.
    MovesMeet,
    /// A shard that was merged away is taken down before the other one has opened its gates.
    RemovedEarly,
    /// A node that has lost its disk takes part again before it was removed from its groups.
    ForgetfulVoter,
    /// A rebuild admits a node whose old promises are still counted on.
    RebuiltUnremoved,
    /// A node acts on the catalogs of the past while it replays its control log: it puts the replica of then in the place of today's.
    PastBelieved,
    /// A write to a reference table is answered when the anchor has it, before the other shards do.
    UnspreadAnswered,
    /// An index is made on all shards but the last.
    ShardLeftOut,
}

impl Bug {
    /// Every bug.
    pub const ALL: &[Bug] = &[
        Bug::EarlyAcknowledgement,
        Bug::UnsyncedAnswered,
        Bug::UnsyncedCounted,
        Bug::UnsyncedTold,
        Bug::UnsyncedApplied,
        Bug::FailedFsyncIgnored,
        Bug::LostVote,
        Bug::LostAppliedIndex,
        Bug::DoubleApply,
        Bug::EntrySkipped,
        Bug::CheckpointUnsynced,
        Bug::SnapshotShort,
        Bug::NoReadQuorum,
        Bug::UnknownToldAsNot,
        Bug::StaleRouterBelieved,
        Bug::ScatterUnchecked,
        Bug::OwnershipFilterOff,
        Bug::SkippedFence,
        Bug::CaptureDropped,
        Bug::DigestIgnored,
        Bug::KeysLeftBehind,
        Bug::IdempotencyIgnored,
        Bug::DecisionFlipped,
        Bug::CommitForgotten,
        Bug::AbortUnasked,
        Bug::CommitUnprepared,
        Bug::ForgottenEarly,
        Bug::HalfVisible,
        Bug::MovesMeet,
        Bug::RemovedEarly,
        Bug::ForgetfulVoter,
        Bug::RebuiltUnremoved,
        Bug::PastBelieved,
        Bug::UnspreadAnswered,
        Bug::ShardLeftOut,
    ];
}

/// Whether the bug is planted on this thread.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "planted")]
pub use with_feature::{Planted, is, plant};

#[cfg(feature = "planted")]
mod with_feature {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether the bug is planted on this thread.
    pub fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Plant a bug on this thread, until what is returned is dropped.
    pub fn plant(bug: Bug) -> Planted {
        PLANTED.set(Some(bug));
        Planted(())
    }

    /// While it lives, a bug is planted.
    pub struct Planted(());

    impl Drop for Planted {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }
}
