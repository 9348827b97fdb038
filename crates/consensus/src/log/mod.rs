//! The Raft log of all groups of a node.
//!
//! **The problem.** A proposal is acknowledged only when a majority has it on disk, so an fsync is on the path of
//! every write, and an fsync costs half a millisecond to several. Groups that fsync on their own share nothing.
//!
//! **The mechanism.** All groups hand their writes (entries, votes, truncations, purges) to one [`Backend`]. On disk
//! ([`disk`]) that is one thread that drains its queue, commits everything in it as one atomic batch with one fsync,
//! and then answers everyone. What a group appended is readable at once from the group's [`Cache`],
//! which also spares replication and applying a read from disk: they want what was just written.
//!
//! **Told early.** openraft hears that entries are flushed as soon as they are queued, so that followers write them while this node does. What
//! must not leave this node before they are durable waits in [`unflushed`], whose documentation says why that is safe.
//!
//! **Caveat: purging waits for the state machine.** openraft purges right after it *ordered* the installation of a
//! snapshot. A crash between the two would leave a log that begins after the end of the state machine. So
//! [`LogStore::purge`](RaftLogStorage::purge) waits until the state machine is durable up to there.
//!
//! **Caveat: a leader does not outlive its process.** openraft makes a node whose stored vote is its own and committed
//! the leader again at once, in the same term, with whatever it has applied. But "one term, one leader that was there
//! from its first entry on" is what readiness, strong reads and everybody who counts by terms rely on. So openraft
//! gets such a vote back as *uncommitted*: the node still voted for itself in that term, and has to win a newer one.

mod ahead;
mod cache;
mod disk;
mod memory;
mod unflushed;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, EntryPayload, LogState, OptionalSend, RaftLogReader, StorageIOError};
use parking_lot::Mutex;
use pleat_cluster::planted::{self, Bug};
use tokio::sync::{oneshot, watch};

use crate::codec;
use crate::machine::Durable;
use crate::runtime;
use crate::types::{GroupId, LogEntry, LogId, StorageError, Types, Vote};
use cache::Cache;
pub(crate) use disk::DiskLog;
pub use memory::MemoryDisk;
pub(crate) use memory::MemoryLog;
pub(crate) use unflushed::Unflushed;

/// Called once when a write is durable, or failed.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// One write of one group. Writes of a group take effect in the order in which they are submitted.
pub(crate) struct Write {
    pub(crate) group: GroupId,
    pub(crate) change: Change,
    pub(crate) done: Done,
}

/// What a write changes.
pub(crate) enum Change {
    /// Encoded entries by index.
    Append(Vec<(u64, Vec<u8>)>),
    /// The encoded vote.
    Vote(Vec<u8>),
    /// Entries of these indexes are gone: they lost against another leader's.
    Truncate(std::ops::RangeInclusive<u64>),
    /// Entries of these indexes are gone: they are covered by a checkpoint, and the encoded last of them is kept.
    Purge(std::ops::RangeInclusive<u64>, Vec<u8>),
    /// The group is gone.
    Destroy,
    /// Nothing, after what was submitted before.
    Nothing,
}

/// What is stored of a group.
#[derive(Default)]
pub(crate) struct Stored {
    pub(crate) vote: Option<Vec<u8>>,
    pub(crate) purged: Option<Vec<u8>>,
    /// The indexes of the first and last entry, and the last.
    pub(crate) first: Option<u64>,
    pub(crate) last: Option<(u64, Vec<u8>)>,
}

/// Where logs are kept.
pub(crate) trait Backend: Send + Sync + 'static {
    /// Queues a write.
    fn submit(&self, write: Write);
    /// What is stored of a group. May block.
    fn load(&self, group: GroupId) -> io::Result<Stored>;
    /// Encoded entries from `start` up to before `end`, ending early after `bytes_max`. May block.
    fn read(&self, group: GroupId, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Vec<u8>>>;
    /// Times that something was made durable, and writes that were.
    fn flushes(&self) -> (u64, u64);
}

/// Submits a change and waits until it is durable.
pub(crate) async fn write(backend: &dyn Backend, group: GroupId, change: Change) -> io::Result<()> {
    let (sender, receiver) = oneshot::channel();
    // Nobody waits any more only when the group is being stopped.
    let done = Box::new(move |result| drop(sender.send(result)));
    backend.submit(Write { group, change, done });
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the log has been closed")))
}

/// One group's log, as openraft sees it. Clones share everything.
#[derive(Clone)]
pub(crate) struct LogStore {
    group: GroupId,
    backend: Arc<dyn Backend>,
    /// Entries of one answer to a reader that allows a limit, in bytes.
    read_bytes_max: usize,
    state: Arc<Mutex<State>>,
    unflushed: Unflushed,
    durable: watch::Receiver<Durable>,
    led: bool,
}

struct State {
    /// As openraft knows it: [`resigned`] at the start, then as it is stored.
    vote: Option<Vote>,
    purged: Option<LogId>,
    last: Option<LogId>,
    cache: Cache,
}

impl LogStore {
    /// Opens the log of a group on this `node`. `durable` says how far the state machine is durable.
    pub(crate) async fn open(
        group: GroupId,
        node: u64,
        backend: Arc<dyn Backend>,
        cache_bytes: usize,
        read_bytes_max: usize,
        durable: watch::Receiver<Durable>,
    ) -> io::Result<Self> {
        // What an earlier life of the group here has queued.
        write(&*backend, group, Change::Nothing).await?;
        let source = backend.clone();
        let stored = runtime::blocking(move || source.load(group)).await??;
        let vote: Option<Vote> = stored.vote.map(|bytes| codec::decode("a stored vote", &bytes)).transpose()?;
        let led = vote.is_some_and(|vote| vote.is_committed() && vote.leader_id().voted_for() == Some(node));
        let vote = if led { vote.map(resigned) } else { vote };
        let purged: Option<LogId> = stored.purged.map(|bytes| codec::decode("a purge position", &bytes)).transpose()?;
        let last = match stored.last {
            None => purged,
            Some((_, bytes)) => Some(codec::decode::<LogEntry>("a log entry", &bytes)?.log_id),
        };
        check_bounds(group, purged, stored.first)?;
        let cache = Cache::new(cache_bytes, last.map_or(0, |last| last.index + 1));
        let state = Arc::new(Mutex::new(State { vote, purged, last, cache }));
        Ok(LogStore { group, backend, read_bytes_max, state, unflushed: Unflushed::new(), durable, led })
    }

    /// What it does not have on the disk yet.
    pub(crate) fn unflushed(&self) -> Unflushed {
        self.unflushed.clone()
    }

    /// Whether this node led the group when it was stopped or killed, as far as it knew.
    pub(crate) fn led(&self) -> bool {
        self.led
    }

    /// The last purged and the last entry.
    pub(crate) fn bounds(&self) -> (Option<LogId>, Option<LogId>) {
        let state = self.state.lock();
        (state.purged, state.last)
    }

    /// The newest index so that what comes after it is at least `bytes` (as far as known: since the start).
    pub(crate) fn index_before(&self, bytes: u64) -> Option<u64> {
        self.state.lock().cache.index_before(bytes)
    }

    async fn write(&self, change: Change) -> io::Result<()> {
        write(&*self.backend, self.group, change).await
    }

    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        let (from, cached) = self.state.lock().cache.read(start, end);
        if from <= start {
            return Ok(limited(cached, bytes_max));
        }
        // What the cache no longer has is durable, so the disk has it.
        let (backend, group) = (self.backend.clone(), self.group);
        let end = from.min(end);
        let stored = runtime::blocking(move || backend.read(group, start, end, bytes_max)).await??;
        let mut entries = Vec::with_capacity(stored.len() + cached.len());
        let mut bytes = 0;
        for encoded in &stored {
            bytes += encoded.len();
            entries.push(codec::decode("a log entry", encoded)?);
        }
        if entries.len() as u64 == end - start && bytes < bytes_max {
            entries.extend(limited(cached, bytes_max - bytes));
        }
        Ok(entries)
    }

    async fn wait_durable(&self, index: u64) -> io::Result<()> {
        let mut durable = self.durable.clone();
        let reached = |durable: &Durable| durable.upto.is_some_and(|upto| upto >= index);
        let end = durable.wait_for(|durable| reached(durable) || durable.ended).await;
        match end {
            Ok(durable) if reached(&durable) => Ok(()),
            _ => Err(io::Error::other("the state machine ended before it was durable up to the entry to purge")),
        }
    }
}

/// The vote of a leader that leads no more.
fn resigned(vote: Vote) -> Vote {
    Vote { committed: false, ..vote }
}

/// A log must begin right after what was purged.
fn check_bounds(group: GroupId, purged: Option<LogId>, first: Option<u64>) -> io::Result<()> {
    let expected = purged.map_or(0, |purged| purged.index + 1);
    match first {
        Some(first) if first != expected => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the log of group {group} begins at entry {first} instead of {expected}: its files are damaged"),
        )),
        _ => Ok(()),
    }
}

/// The entries up to a limit in bytes, but at least one.
fn limited(entries: Vec<(LogEntry, usize)>, bytes_max: usize) -> Vec<LogEntry> {
    let mut bytes = 0;
    let fits = |(_, size): &(LogEntry, usize)| {
        let first = bytes == 0;
        bytes += size;
        first || bytes <= bytes_max
    };
    entries.into_iter().take_while(fits).map(|(entry, _)| entry).collect()
}

fn start_and_end(range: &impl RangeBounds<u64>, last: Option<LogId>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last + 1,
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end.min(last.map_or(0, |last| last.index + 1)))
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<LogEntry>, StorageError> {
        let (purged, last) = self.bounds();
        let (start, end) = start_and_end(&range, last);
        let start = start.max(purged.map_or(0, |purged| purged.index + 1));
        if start >= end {
            return Ok(Vec::new());
        }
        self.read(start, end, usize::MAX).await.map_err(read_failed)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<LogEntry>, StorageError> {
        let (purged, last) = self.bounds();
        let (start, end) = start_and_end(&(start..end), last);
        if start >= end || purged.is_some_and(|purged| start <= purged.index) {
            return Ok(Vec::new());
        }
        self.read(start, end, self.read_bytes_max).await.map_err(read_failed)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let (last_purged_log_id, last_log_id) = self.bounds();
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let failed = |error: io::Error| StorageIOError::write_vote(AnyError::new(&error));
        if !planted::is(Bug::LostVote) {
            self.write(Change::Vote(codec::encode(vote))).await.map_err(failed)?;
        }
        self.state.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.state.lock().vote)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.unflushed.wait_for_few().await.map_err(write_failed)?;
        let mut encoded = Vec::new();
        let mut state = self.state.lock();
        for entry in entries {
            if let EntryPayload::Normal(payload) = &entry.payload {
                payload.appended.set();
            }
            let bytes = codec::encode(&entry);
            let index = entry.log_id.index;
            assert_eq!(index, state.last.map_or(0, |last| last.index + 1), "openraft appends without holes");
            state.last = Some(entry.log_id);
            state.cache.push(entry, bytes.len());
            encoded.push((index, bytes));
        }
        let Some(&(first, _)) = encoded.first() else {
            drop(state);
            callback.log_io_completed(Ok(()));
            return Ok(());
        };
        let number = self.unflushed.submitted(first);
        drop(state);
        let (shared, unflushed) = (self.state.clone(), self.unflushed.clone());
        let done = Box::new(move |result: io::Result<()>| {
            let result = result.or_else(|error| if planted::is(Bug::FailedFsyncIgnored) { Ok(()) } else { Err(error) });
            let mut state = shared.lock();
            let next = state.last.map_or(0, |last| last.index + 1);
            let flushed = unflushed.ended(number, &result).map_or(next, |first| first.min(next));
            state.cache.flushed(flushed);
        });
        self.backend.submit(Write { group: self.group, change: Change::Append(encoded), done });
        // It is not flushed yet: see the module's documentation.
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, from: LogId) -> Result<(), StorageError> {
        let Some(last) = self.bounds().1.filter(|last| last.index >= from.index) else { return Ok(()) };
        // The entry before is the new last one.
        let before = match from.index.checked_sub(1) {
            None => None,
            Some(index) => match self.bounds().0 {
                Some(purged) if purged.index == index => Some(purged),
                _ => self.read(index, index + 1, usize::MAX).await.map_err(read_failed)?.first().map(|e| e.log_id),
            },
        };
        {
            let mut state = self.state.lock();
            state.cache.truncate(from.index);
            state.last = before;
        }
        self.write(Change::Truncate(from.index..=last.index)).await.map_err(write_failed)
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        self.wait_durable(upto.index).await.map_err(write_failed)?;
        let first = {
            let mut state = self.state.lock();
            let first = state.purged.map_or(0, |purged| purged.index + 1);
            state.cache.purge(upto.index);
            state.purged = Some(upto);
            state.last = state.last.max(Some(upto));
            first
        };
        self.write(Change::Purge(first..=upto.index, codec::encode(&upto))).await.map_err(write_failed)
    }
}

fn read_failed(error: io::Error) -> StorageError {
    StorageIOError::read_logs(AnyError::new(&error)).into()
}

fn write_failed(error: io::Error) -> StorageError {
    StorageIOError::write_logs(AnyError::new(&error)).into()
}
