//! How long writes of the moving partitions wait while a move hands them over.

use core::time::Duration;

/// How long single things take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PauseParts {
    /// An entry of a shard's log.
    pub write: Duration,
    /// A question to a shard, a round of its quorum included.
    pub read: Duration,
    /// An entry of the control group's log.
    pub command: Duration,
}

impl PauseParts {
    /// Fence, the rest (`rest` to apply it), the check that nothing more came, commit, and what has to be written until clients
    /// can go on.
    pub fn pause(&self, rest: Duration, writes_after: u32) -> Duration {
        self.write + self.read + rest + self.read + self.command + self.write * writes_after
    }
}
