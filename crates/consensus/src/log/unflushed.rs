//! What a group's log has been given and does not have on the disk yet, and who waits for it.
//!
//! **The problem.** openraft waits for the flush of an entry before it sends it to anybody: a write takes the leader's fsync, the way, and then
//! the follower's fsync. Raft asks for less: that nobody *counts* an entry before it is durable.
//!
//! **The mechanism.** The log tells openraft that an entry is flushed as soon as it is queued. That is not so, but only openraft's core on this
//! node is told, and each way on which something that rests on it leaves the core has a gate, which waits until it is so:
//!
//! | what leaves the core | waits here until | without that |
//! | --- | --- | --- |
//! | `leader_commit`, sent to a follower (`network`) | the entries up to there are durable | a learner applies what the only voter then loses |
//! | a follower's good answer, on its way into the leader's core (`network`) | what it acknowledges is durable on the leader as well | the leader counts itself, and takes for committed what is not |
//! | this node's good answer as a follower, to entries and to a snapshot (`receive`) | what it acknowledges is durable | its leader counts it |
//! | entries, on their way into the state machine (`machine`) | they are durable | a single voter acknowledges what it then loses; a state machine is ahead of its log |
//!
//! Votes need no gate: they are on the disk before anybody is told, and with them whatever was queued before. So a candidate and whoever votes for
//! it have all of their logs on the disk.
//!
//! **Invariants.**
//!
//! 1. Writes of a group become durable in the order in which they are submitted.
//! 2. On a leader that is not a majority by itself nothing is committed that it does not have on its disk. (By the second gate. Without it the other
//!    two that a leader has keep what is acknowledged, but a change of members could build on one that is lost.)
//! 3. What a follower is known to have, it keeps, unless another leader overwrites it.
//! 4. A state machine is never ahead of its log, but by a snapshot.
//!
//! An index is waited for by its *write*: after a truncation another entry may stand under it, and the completion of the old one's write is not
//! the new one's.
//!
//! **A process that dies** has lost what was queued. It comes back as one that never received these entries. Nobody has counted them there (2, 3), nobody
//! has seen their effects (4), and they may live on if others have them, as the entries of any leader that died. It does not lead
//! on in the term in which it gave these indexes away: see "a leader does not outlive its process" in [`log`](super).
//!
//! | it dies with an entry | then |
//! | --- | --- |
//! | queued on the leader, not sent | it is gone; its proposer was told nothing |
//! | queued on the leader, durable on followers | it is committed or overwritten by the next leader; its proposer was told nothing |
//! | durable on the leader, queued on followers | the same |
//! | durable on a majority, the leader among them, and not applied | it stays |
//!
//! **A flush that fails** has nobody to tell: every gate errors from then on, and so does whatever openraft asks of the log next. (The process
//! ends, too, see [`room`](crate::room).)
//!
//! **A disk that hangs** used to silence a leader, since openraft waited for it. Now it would go on sending heartbeats, and nobody would take over. So a
//! leader sends nothing while its log [hangs](Unflushed::hangs).

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Writes of entries that a group has queued at once; openraft then waits, as it always did.
const WRITES_MAX: usize = 16;
/// A write that takes longer than this is taken for one that may never end.
const HANGS_AFTER: Duration = Duration::from_secs(1);

/// What is not durable of a group's log. Clones share it.
#[derive(Clone)]
pub(crate) struct Unflushed(Arc<watch::Sender<Writes>>);

#[derive(Default)]
struct Writes {
    /// In the order of their submission.
    queued: VecDeque<Queued>,
    /// How many were submitted so far: the number of the last.
    submitted: u64,
    failed: Option<String>,
}

struct Queued {
    number: u64,
    /// The first index that it writes; it writes all that follow, too.
    first: u64,
    since: Instant,
}

impl Writes {
    /// The newest write that an entry can be in.
    fn of(&self, index: u64) -> Option<u64> {
        self.queued.iter().rev().find(|write| write.first <= index).map(|write| write.number)
    }

    fn are_done(&self, number: u64) -> bool {
        self.queued.front().is_none_or(|write| write.number > number)
    }

    fn check(&self) -> io::Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(why) => Err(io::Error::other(format!("the log could not be written: {why}"))),
        }
    }
}

impl Unflushed {
    pub(super) fn new() -> Self {
        Unflushed(Arc::new(watch::Sender::new(Writes::default())))
    }

    /// A write of the entries from `first` on is about to be submitted. Gives its number.
    pub(super) fn submitted(&self, first: u64) -> u64 {
        let mut number = 0;
        self.0.send_if_modified(|writes| {
            writes.submitted += 1;
            number = writes.submitted;
            writes.queued.push_back(Queued { number, first, since: Instant::now() });
            // Nobody waits for that.
            false
        });
        number
    }

    /// A write has ended, and so have those before it. Gives the first index that is still not durable.
    pub(super) fn ended(&self, number: u64, result: &io::Result<()>) -> Option<u64> {
        self.0.send_modify(|writes| match result {
            // Behind one that failed nothing is durable.
            Ok(()) if writes.failed.is_none() => writes.queued.retain(|write| write.number > number),
            Ok(()) => {}
            Err(error) => drop(writes.failed.get_or_insert_with(|| error.to_string())),
        });
        self.0.borrow().queued.iter().map(|write| write.first).min()
    }

    /// Waits until the entries up to an index, as they are in the log now, are durable. Fails when anything could not be written.
    pub(crate) async fn wait(&self, index: Option<u64>) -> io::Result<()> {
        let number = {
            let writes = self.0.borrow();
            writes.check()?;
            index.and_then(|index| writes.of(index))
        };
        match number {
            None => Ok(()),
            Some(number) => self.until(|writes| writes.are_done(number)).await,
        }
    }

    /// Waits until one more may be submitted.
    pub(super) async fn wait_for_few(&self) -> io::Result<()> {
        self.until(|writes| writes.queued.len() < WRITES_MAX).await
    }

    async fn until(&self, so: impl Fn(&Writes) -> bool) -> io::Result<()> {
        let mut changes = self.0.subscribe();
        let end = changes.wait_for(|writes| writes.failed.is_some() || so(writes)).await;
        end.map_err(|_| io::Error::other("the log has been closed"))?.check()
    }

    /// Whether a write takes so long that somebody with another disk should lead.
    pub(crate) fn hangs(&self) -> bool {
        self.0.borrow().queued.front().is_some_and(|write| write.since.elapsed() >= HANGS_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// Whether the entries up to an index are durable. `None`: nobody knows yet.
    fn is_durable(unflushed: &Unflushed, index: u64) -> Option<bool> {
        unflushed.wait(Some(index)).now_or_never().map(|durable| durable.is_ok())
    }

    #[tokio::test]
    async fn an_index_is_waited_for_by_the_newest_write_that_it_can_be_in() {
        let unflushed = Unflushed::new();
        assert_eq!(is_durable(&unflushed, 7), Some(true), "what was there at the start");
        let old = unflushed.submitted(5);
        // A truncation from 6 on, and what replaces it.
        let new = unflushed.submitted(6);
        assert_eq!([4, 5, 6].map(|index| is_durable(&unflushed, index)), [Some(true), None, None]);
        assert_eq!(unflushed.ended(old, &Ok(())), Some(6));
        assert_eq!([5, 6, 9].map(|index| is_durable(&unflushed, index)), [Some(true), None, None]);
        assert_eq!(unflushed.ended(new, &Ok(())), None);
        assert_eq!([5, 6, 9].map(|index| is_durable(&unflushed, index)), [Some(true); 3]);
    }

    #[tokio::test]
    async fn after_a_failure_nothing_is_durable_any_more() {
        let unflushed = Unflushed::new();
        let (first, second) = (unflushed.submitted(1), unflushed.submitted(2));
        let mut waiting = Box::pin(unflushed.wait(Some(1)));
        assert!(futures::poll!(&mut waiting).is_pending());
        unflushed.ended(first, &Err(io::Error::other("no")));
        assert!(waiting.await.unwrap_err().to_string().contains("no"));
        assert_eq!(unflushed.ended(second, &Ok(())), Some(1), "what is behind the failure does not count");
        assert_eq!([0, 2, 3].map(|index| is_durable(&unflushed, index)), [Some(false); 3]);
        assert!(unflushed.wait_for_few().await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn few_writes_wait_and_one_that_hangs_is_noticed() {
        let unflushed = Unflushed::new();
        for first in 0..WRITES_MAX as u64 {
            unflushed.wait_for_few().await.unwrap();
            unflushed.submitted(first);
        }
        assert!(unflushed.wait_for_few().now_or_never().is_none());
        assert!(!unflushed.hangs());
        tokio::time::advance(HANGS_AFTER).await;
        assert!(unflushed.hangs());
        unflushed.ended(1, &Ok(()));
        unflushed.wait_for_few().await.unwrap();
        unflushed.ended(WRITES_MAX as u64, &Ok(()));
        assert!(!unflushed.hangs());
    }
}
