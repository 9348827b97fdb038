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
    /// A move commits its new owner without having fenced the source.
    SkippedFence,
    /// A batch is applied, and the position in the log is not stored with it.
    LostAppliedIndex,
    /// A shard does not look whether it owns what a request was routed by.
    StaleRouterBelieved,
    /// After a restart the last batch of the log is applied once more.
    DoubleApply,
    /// A statement without a key shows rows that the shard does not own.
    OwnershipFilterOff,
    /// A vote is given and not written down.
    LostVote,
    /// A follower says that it has entries before they are on its disk.
    UnsyncedEntry,
    /// A write that came before under the same idempotency key is done again.
    IdempotencyIgnored,
    /// A participant forgets what it has prepared.
    PreparedForgotten,
    /// The ledger takes the last word about a transaction, not the first.
    DecisionFlipped,
    /// A snapshot says that it goes further than it does.
    SnapshotShort,
    /// A move leaves out rows that changed while it copied.
    CaptureDropped,
    /// A move's digests differ, and it goes on.
    DigestIgnored,
    /// A leader answers a strong read without asking whether it still leads.
    NoReadQuorum,
}

impl Bug {
    /// Every bug.
    pub const ALL: &[Bug] = &[
        Bug::EarlyAcknowledgement,
        Bug::SkippedFence,
        Bug::LostAppliedIndex,
        Bug::StaleRouterBelieved,
        Bug::DoubleApply,
        Bug::OwnershipFilterOff,
        Bug::LostVote,
        Bug::UnsyncedEntry,
        Bug::IdempotencyIgnored,
        Bug::PreparedForgotten,
        Bug::DecisionFlipped,
        Bug::SnapshotShort,
        Bug::CaptureDropped,
        Bug::DigestIgnored,
        Bug::NoReadQuorum,
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
