//! A group's state machine and the thread it has to itself.
//!
//! A state machine is a database: applying blocks on a disk, a checkpoint on an fsync. So each runs on a thread
//! of its own, fed through a channel, and openraft's side only ever waits for an answer. In a simulation there
//! are no threads, and the same worker is called in place.
//!
//! **Durability.** The worker publishes two positions: how far it *applied* (readers wait for that) and how far the
//! effects are *durable* (the log may be purged up to there, see `log`). Applied runs ahead of durable until the next
//! checkpoint; after a power failure the state machine may come back anywhere between the two, and the log fills
//! the rest.
//!
//! **A full disk is waited out**: applying is one transaction, a checkpoint and an installation begin anew. Before it waits, the worker makes
//! what room it can: a checkpoint lets a write-ahead log be written from its start again, and the reserve's file is given up. Any other error of
//! the operating system ends the process ([`room`](crate::room)); other errors end the group on this node.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use bytes::Bytes;
use openraft::EntryPayload;
use openraft::storage::RaftStateMachine;
use openraft::{AnyError, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageIOError};
use parking_lot::Mutex;
use pleat_cluster::planted::{self, Bug};
use tokio::sync::{Notify, oneshot, watch};

use crate::log::Unflushed;
use crate::room::{Disk, Trouble};
use crate::runtime;
use crate::types::{
    Applied, Entry, GroupId, LogEntry, LogId, Membership, Outcomes, Position, SnapshotFile, SnapshotMeta, StorageError,
    Types,
};

/// The copying part of a snapshot: writes it to the new file and says how far it goes.
pub type SnapshotJob = Box<dyn FnOnce(&Path) -> anyhow::Result<Applied> + Send>;

/// What a group replicates. Called from one thread that belongs to the group; every method may block.
///
/// An error from any method but `snapshot` is fatal for the group on this node: it stops, and says so. But an [`std::io::Error`] among its causes
/// that says that the disk is full has the same call repeated until there is room; nothing may have been done then. Another one that is the
/// operating system's ends the process.
pub trait StateMachine: Send + 'static {
    /// How far the stored state is. Called once, at start.
    fn applied(&mut self) -> anyhow::Result<Applied>;

    /// Applies entries in order. Returns for each entry one outcome per proposal. `applied` (the position after the
    /// last of them) must be stored atomically with the effects.
    fn apply(&mut self, entries: Vec<Entry>, applied: Applied) -> anyhow::Result<Vec<Vec<Bytes>>>;

    /// Whether `apply` must be called for the entries up to this one before the next: something is to be looked at
    /// exactly there.
    fn ends_batch(&self, _entry: &Entry) -> bool {
        false
    }

    /// Makes all applied effects durable and says how far they go. The log may then be purged up to there.
    fn checkpoint(&mut self) -> anyhow::Result<Applied>;

    /// Prepares a consistent copy. Returns quickly; the job copies on another thread, while entries are being
    /// applied. The copy must hold at least what is applied now, and the job returns the position stored in it.
    fn snapshot(&mut self) -> anyhow::Result<SnapshotJob>;

    /// Replaces everything by the content of a snapshot file, which is already durable. The file may be moved
    /// away. Durable when it returns.
    fn install(&mut self, from: &Path, applied: Applied) -> anyhow::Result<()>;
}

/// Entries and bytes that are handed to `apply` at once, so that catching up doesn't make huge transactions.
const APPLY_ENTRIES_MAX: usize = 1024;
const APPLY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Pauses of a state machine whose disk is full, and how often it says so.
const FULL_PAUSE: Duration = Duration::from_millis(100);
const FULL_SAID_EVERY: u32 = 100;

/// What most of the writing is for.
const APPLYING: &str = "apply entries";

/// A group that was asked nothing for this long makes a checkpoint of what it applied, when that is this much: whoever reads
/// then need not look into a write-ahead log, and whoever starts again has little to do.
const IDLE_PAUSE: Duration = Duration::from_secs(1);
const IDLE_BYTES: u64 = 1024 * 1024;

enum Request {
    Apply(Vec<LogEntry>, oneshot::Sender<anyhow::Result<Vec<Outcomes>>>),
    Checkpoint(oneshot::Sender<anyhow::Result<Position>>),
    Relieve(oneshot::Sender<anyhow::Result<()>>),
    Snapshot(oneshot::Sender<anyhow::Result<SnapshotJob>>),
    Install(PathBuf, Applied, oneshot::Sender<anyhow::Result<()>>),
    Stop,
}

/// How far a state machine is durable, and whether it may still become so further.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Durable {
    pub(crate) upto: Option<u64>,
    pub(crate) ended: bool,
}

/// What the worker lets others see.
pub(crate) struct Shared {
    /// The index of the last applied entry; `None` before the first.
    pub(crate) applied: watch::Sender<Option<u64>>,
    /// How far the effects are durable.
    pub(crate) durable: watch::Sender<Durable>,
    position: Mutex<Position>,
    checkpointed: Mutex<bool>,
    /// Bytes applied since the last checkpoint.
    pub(crate) bytes_since_checkpoint: AtomicU64,
    /// Rung when these pass `checkpoint_bytes`.
    pub(crate) checkpoint_due: Notify,
    checkpoint_bytes: u64,
    disk: Arc<Disk>,
    /// Nobody waits for anything any more.
    stopping: AtomicBool,
}

struct Worker {
    group: GroupId,
    machine: Box<dyn StateMachine>,
    position: Position,
    shared: Arc<Shared>,
}

/// The handle of a running state machine.
#[derive(Clone)]
pub(crate) struct Machine {
    group: GroupId,
    lane: Lane,
    pub(crate) shared: Arc<Shared>,
}

#[derive(Clone)]
enum Lane {
    Thread(std::sync::mpsc::Sender<Request>),
    Inline(Arc<Mutex<Option<Worker>>>),
}

/// The thread of a state machine, to wait for its end.
pub(crate) type MachineThread = Option<std::thread::JoinHandle<()>>;

impl Machine {
    /// Starts the thread. Returns once the state machine said how far it is.
    pub(crate) async fn start(
        group: GroupId,
        mut machine: Box<dyn StateMachine>,
        checkpoint_bytes: u64,
        disk: Arc<Disk>,
    ) -> anyhow::Result<(Machine, Position, MachineThread)> {
        let (machine, applied) = runtime::blocking(move || {
            let applied = machine.applied();
            (machine, applied)
        })
        .await?;
        let applied = applied.with_context(|| format!("read how far the state machine of group {group} is"))?;
        let mut position = Position::decode(&applied)?;
        if planted::is(Bug::DoubleApply) {
            position.last.iter_mut().for_each(|last| last.index = last.index.saturating_sub(1));
        }
        let index = position.last.map(|last| last.index);
        let shared = Arc::new(Shared {
            applied: watch::Sender::new(index),
            durable: watch::Sender::new(Durable::default()),
            position: Mutex::new(position.clone()),
            checkpointed: Mutex::new(false),
            bytes_since_checkpoint: AtomicU64::new(0),
            checkpoint_due: Notify::new(),
            checkpoint_bytes,
            disk,
            stopping: AtomicBool::new(false),
        });
        let worker = Worker { group, machine, position: position.clone(), shared: shared.clone() };
        let (lane, thread) = if runtime::simulated() {
            (Lane::Inline(Arc::new(Mutex::new(Some(worker)))), None)
        } else {
            let (sender, receiver) = std::sync::mpsc::channel();
            let thread = std::thread::Builder::new()
                .name(format!("group-{group}"))
                .spawn(move || worker.run(receiver))
                .with_context(|| format!("start the thread of group {group}"))?;
            (Lane::Thread(sender), Some(thread))
        };
        Ok((Machine { group, lane, shared }, position, thread))
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<anyhow::Result<T>>) -> Request) -> anyhow::Result<T> {
        let gone = || anyhow!("the state machine of group {} has stopped", self.group);
        let (reply, answer) = oneshot::channel();
        match &self.lane {
            // The channel is unbounded, and bounded by its senders: openraft has one request out at a time, and each
            // follower's snapshot one more.
            Lane::Thread(sender) => sender.send(request(reply)).map_err(|_| gone())?,
            Lane::Inline(worker) => {
                let mut worker = worker.lock();
                if !worker.as_mut().ok_or_else(gone)?.handle(request(reply)) {
                    *worker = None;
                }
            }
        }
        answer.await.map_err(|_| gone())?
    }

    /// The worker waits for room no longer.
    pub(crate) fn hurry(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
    }

    /// Makes a checkpoint if the disk has room for it: what is to be applied on a full disk then needs less.
    pub(crate) async fn relieve(&self) -> anyhow::Result<()> {
        self.ask(Request::Relieve).await
    }

    /// Ends the worker after what it was asked before; the state machine is dropped.
    pub(crate) fn stop(&self) {
        self.hurry();
        match &self.lane {
            // An error means that it has ended already.
            Lane::Thread(sender) => drop(sender.send(Request::Stop)),
            Lane::Inline(worker) => *worker.lock() = None,
        }
    }

    /// The job that copies the state, see [`StateMachine::snapshot`].
    pub(crate) async fn snapshot(&self) -> anyhow::Result<SnapshotJob> {
        self.ask(Request::Snapshot).await
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The log may be waiting to purge; it would wait forever.
        self.shared.durable.send_modify(|durable| durable.ended = true);
    }
}

impl Worker {
    fn run(mut self, requests: std::sync::mpsc::Receiver<Request>) {
        while let Some(request) = self.next(&requests) {
            if !self.handle(request) {
                // A state machine that failed is in an unknown state: nothing more may be applied to it.
                break;
            }
        }
    }

    /// The next request; a checkpoint is asked for when there is none for a while.
    fn next(&self, requests: &std::sync::mpsc::Receiver<Request>) -> Option<Request> {
        if self.shared.bytes_since_checkpoint.load(Ordering::Relaxed) >= IDLE_BYTES {
            loop {
                match requests.recv_timeout(IDLE_PAUSE) {
                    // Behind a checkpoint the log is purged, and that takes room before it makes any.
                    Err(RecvTimeoutError::Timeout) if !self.shared.disk.has_room() => {}
                    Err(RecvTimeoutError::Timeout) => break self.shared.checkpoint_due.notify_one(),
                    request => return request.ok(),
                }
            }
        }
        requests.recv().ok()
    }

    /// Serves one request. False when the state machine must not be used any more.
    fn handle(&mut self, request: Request) -> bool {
        match request {
            Request::Apply(entries, reply) => answer(reply, self.guarded(|worker| worker.apply(entries))),
            Request::Checkpoint(reply) => answer(reply, self.guarded(Worker::checkpoint)),
            Request::Relieve(reply) => answer(
                reply,
                self.guarded(|worker| worker.try_checkpoint().map(drop).inspect_err(|e| worker.failed(e))),
            ),
            Request::Snapshot(reply) => {
                // Not fatal: the follower waits, the group goes on.
                answer(reply, self.guarded(|worker| worker.machine.snapshot().context("prepare a snapshot")));
                true
            }
            Request::Install(path, applied, reply) => {
                answer(reply, self.guarded(|worker| worker.install(&path, applied)))
            }
            Request::Stop => false,
        }
    }

    /// Runs user code; a panic in it becomes an error of the group instead of a silent end of its thread.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let group = self.group;
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| work(self)))
            .unwrap_or_else(|panic| Err(anyhow!("the state machine panicked: {}", panic_text(&*panic))));
        result.inspect_err(|error| tracing::error!(group, "state machine: {error:#}"))
    }

    /// Does something that writes: again and again while the disk is full.
    fn patiently<T>(
        &mut self,
        doing: &'static str,
        mut work: impl FnMut(&mut dyn StateMachine) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let mut attempt = 0_u32;
        loop {
            let error = match work(&mut *self.machine).context(doing) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let full = Trouble::of(&error) == Some(Trouble::Full) && !self.shared.stopping.load(Ordering::Relaxed);
            // A simulation has one thread, which must not wait.
            if !full || runtime::simulated() {
                self.failed(&error);
                return Err(error);
            }
            if attempt.is_multiple_of(FULL_SAID_EVERY) {
                tracing::error!(group = self.group, "waiting for room on the disk: {error:#}");
            }
            // A half installed snapshot is no state that a checkpoint could be made of.
            let moved = doing == APPLYING && self.try_checkpoint().inspect_err(|error| self.failed(error))?;
            // The reserve is given up only when there is no other way. When something was gained, it is tried again at once.
            let eased = (moved && attempt == 0) || self.shared.disk.give_up_reserve();
            attempt = attempt.wrapping_add(1);
            if !eased {
                std::thread::sleep(FULL_PAUSE);
            }
        }
    }

    /// Says that an error is the disk's, if it is, unless there was just no room while everything ends.
    fn failed(&self, error: &anyhow::Error) {
        let stopping = self.shared.stopping.load(Ordering::Relaxed);
        match Trouble::of(error) {
            Some(Trouble::Full) if stopping => {}
            Some(_) => self.shared.disk.fail(format!("group {}: {error:#}", self.group)),
            None => {}
        }
    }

    /// A checkpoint of the state machine that nobody is told of. False when there is no room for it.
    fn try_checkpoint(&mut self) -> anyhow::Result<bool> {
        match self.machine.checkpoint() {
            Ok(_) => Ok(true),
            Err(error) if Trouble::of(&error) == Some(Trouble::Full) => Ok(false),
            Err(error) => Err(error.context("make a checkpoint")),
        }
    }

    fn apply(&mut self, entries: Vec<LogEntry>) -> anyhow::Result<Vec<Outcomes>> {
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            let mut batch = Vec::new();
            let mut bytes = 0;
            while batch.len() < APPLY_ENTRIES_MAX && bytes < APPLY_BYTES_MAX {
                let Some(entry) = entries.next() else { break };
                let entry = self.take(entry);
                bytes += entry.proposals.iter().map(Bytes::len).sum::<usize>();
                let ends = self.machine.ends_batch(&entry);
                batch.push(entry);
                if ends {
                    break;
                }
            }
            self.apply_batch(batch, bytes as u64, &mut outcomes)?;
        }
        Ok(outcomes)
    }

    /// Moves the position over an entry and gives the state machine's view of it.
    fn take(&mut self, entry: LogEntry) -> Entry {
        let log_id = entry.log_id;
        self.position.last = Some(log_id);
        let proposals = match entry.payload {
            EntryPayload::Blank => Vec::new(),
            EntryPayload::Normal(payload) => payload.proposals.into_iter().map(|proposal| proposal.0).collect(),
            EntryPayload::Membership(membership) => {
                self.position.membership = Membership::new(Some(log_id), membership);
                Vec::new()
            }
        };
        Entry { index: log_id.index, term: log_id.leader_id.term, proposals }
    }

    fn apply_batch(&mut self, batch: Vec<Entry>, bytes: u64, outcomes: &mut Vec<Outcomes>) -> anyhow::Result<()> {
        let expected: Vec<usize> = batch.iter().map(|entry| entry.proposals.len()).collect();
        let applied = self.position.encode();
        let results = self.patiently(APPLYING, |machine| machine.apply(batch.clone(), applied.clone()))?;
        let got: Vec<usize> = results.iter().map(Vec::len).collect();
        ensure!(got == expected, "the state machine gave {got:?} outcomes for {expected:?} proposals");
        outcomes.extend(results.into_iter().map(|of_proposals| Outcomes { of_proposals }));
        self.publish();
        let since = self.shared.bytes_since_checkpoint.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if since >= self.shared.checkpoint_bytes {
            self.shared.checkpoint_due.notify_one();
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> anyhow::Result<Position> {
        let applied = self.patiently("make a checkpoint", |machine| machine.checkpoint())?;
        let position = Position::decode(&applied)?;
        ensure!(
            position.last <= self.position.last,
            "the state machine claims a checkpoint at entry {}, beyond what was applied",
            applied.index
        );
        *self.shared.checkpointed.lock() = true;
        self.shared.bytes_since_checkpoint.store(0, Ordering::Relaxed);
        self.shared.durable.send_modify(|durable| durable.upto = position.last.map(|last| last.index));
        Ok(position)
    }

    fn install(&mut self, path: &Path, applied: Applied) -> anyhow::Result<()> {
        let position = Position::decode(&applied)?;
        self.patiently("install a snapshot", |machine| machine.install(path, applied.clone()))?;
        self.position = position;
        self.publish();
        *self.shared.checkpointed.lock() = true;
        self.shared.durable.send_modify(|durable| durable.upto = self.position.last.map(|last| last.index));
        Ok(())
    }

    fn publish(&self) {
        *self.shared.position.lock() = self.position.clone();
        self.shared.applied.send_replace(self.position.last.map(|last| last.index));
    }
}

/// Sends an answer; false when it is an error. Nobody waits any more when the group is being stopped.
fn answer<T>(reply: oneshot::Sender<anyhow::Result<T>>, result: anyhow::Result<T>) -> bool {
    let ok = result.is_ok();
    let _ = reply.send(result);
    ok
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// openraft's view of the state machine.
pub(crate) struct Adapter {
    pub(crate) machine: Machine,
    pub(crate) initial: Position,
    pub(crate) unflushed: Unflushed,
}

/// openraft's "build a snapshot" is our checkpoint: no file is made.
pub(crate) struct Checkpointer(Machine);

impl RaftStateMachine<Types> for Adapter {
    type SnapshotBuilder = Checkpointer;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        Ok((self.initial.last, self.initial.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcomes>, StorageError>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<LogEntry> = entries.into_iter().collect();
        if !planted::is(Bug::UnsyncedApplied) {
            let last = entries.last().map(|entry| entry.log_id.index);
            self.unflushed.wait(last).await.map_err(|error| write_failed(error.into()))?;
        }
        self.machine.ask(|reply| Request::Apply(entries, reply)).await.map_err(write_failed)
    }

    async fn get_snapshot_builder(&mut self) -> Checkpointer {
        Checkpointer(self.machine.clone())
    }

    /// Not used: arriving snapshots are written by `receive`, which then hands openraft the finished file.
    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, StorageError> {
        Ok(Box::new(SnapshotFile::default()))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, file: Box<SnapshotFile>) -> Result<(), StorageError> {
        let Some((path, applied)) = file.0 else {
            return Err(write_failed(anyhow!("snapshot {} came without its file", meta.snapshot_id)));
        };
        self.machine.ask(|reply| Request::Install(path, applied, reply)).await.map_err(write_failed)
    }

    /// A promise: the file is made when it is sent, and then holds at least what is applied now. `None` before the
    /// first checkpoint, when nothing was purged and so nobody needs one.
    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        let shared = &self.machine.shared;
        if !*shared.checkpointed.lock() {
            return Ok(None);
        }
        let meta = shared.position.lock().meta();
        Ok(Some(Snapshot { meta, snapshot: Box::new(SnapshotFile::default()) }))
    }
}

impl RaftSnapshotBuilder<Types> for Checkpointer {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let position = self.0.ask(Request::Checkpoint).await.map_err(write_failed)?;
        Ok(Snapshot { meta: position.meta(), snapshot: Box::new(SnapshotFile::default()) })
    }
}

fn write_failed(error: anyhow::Error) -> StorageError {
    StorageIOError::write_state_machine(AnyError::error(format!("{error:#}"))).into()
}
