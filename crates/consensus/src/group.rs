//! One group on this node.
//!
//! **A full disk** ([`room`](crate::room)). A leader knows from their answers which followers have no room ([`Links`]). It refuses proposals
//! when fewer than a majority, itself included, could take them: those that it took would hang, their outcome unknown. One that is
//! full itself while a majority has room makes way ([`make_way`]): it lets its followers hear nothing until they elect another, and
//! stands for nothing as long as it is full, unless nobody leads. When nobody could do better it goes on leading, for those
//! who read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use openraft::RaftMetrics;
use parking_lot::Mutex;
use pleat_cluster::NodeId;
use pleat_cluster::planted::{self, Bug};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::barrier::{Barrier, ReadError};
use crate::config::Config;
use crate::log::{Backend, LogStore, Unflushed};
use crate::machine::{Adapter, Machine, MachineThread, StateMachine};
use crate::network::{Links, Peers};
use crate::proposer::{Proposals, ProposeError};
use crate::room::DiskState;
use crate::runtime;
use crate::status::Status;
use crate::types::{GroupId, Position, Raft};

/// A handle of a group that runs on this node. Cheap to clone.
#[derive(Clone)]
pub struct Group(Arc<Inner>);

struct Inner {
    id: GroupId,
    raft: Raft,
    unflushed: Unflushed,
    machine: Machine,
    thread: Mutex<MachineThread>,
    proposals: Proposals,
    barrier: Barrier,
    metrics: watch::Receiver<RaftMetrics<u64, ()>>,
    tasks: Mutex<Vec<AbortHandle>>,
    joins: bool,
    links: Arc<Links>,
    way: Arc<Way>,
}

/// Whether a leader without room makes way for another.
pub(crate) struct Way {
    made: AtomicBool,
    /// When a leader was last heard here.
    heard: Mutex<Instant>,
}

/// How often a group looks whether it has to make way.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a leader lets its followers hear nothing, so that they elect another ...
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// ... and how long it then goes on before it tries again.
const SILENCE_PAUSE: Duration = Duration::from_secs(30);
/// How long openraft may take to hear of a checkpoint; what is not purged by then is at the next one.
const CHECKPOINT_KNOWN_MAX: Duration = Duration::from_secs(5);
/// Without a leader for this long, a node without room stands for election as well: no other could win.
const ALONE_MAX: Duration = Duration::from_secs(4);

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
        self.machine.stop();
    }
}

impl Group {
    /// Starts a group from what its log and its state machine hold.
    pub(crate) async fn start(
        id: GroupId,
        links: Arc<Links>,
        log: Arc<dyn Backend>,
        machine: Box<dyn StateMachine>,
        joins: bool,
    ) -> anyhow::Result<Group> {
        let config = links.config.clone();
        let (machine, position, thread) =
            Machine::start(id, machine, config.checkpoint_bytes, config.disk.clone()).await?;
        let durable = machine.shared.durable.subscribe();
        let node = config.node.0;
        let store = LogStore::open(id, node, log, config.log_cache_bytes, config.append_bytes_max, durable)
            .await
            .with_context(|| format!("open the log of group {id}"))?;
        reconcile(id, &machine, &store, &position)?;
        let unflushed = store.unflushed();
        let adapter = Adapter { machine: machine.clone(), initial: position, unflushed: unflushed.clone() };
        let peers = Peers { group: id, links: links.clone(), machine: machine.clone(), unflushed: unflushed.clone() };
        let way = Arc::new(Way { made: AtomicBool::new(false), heard: Mutex::new(Instant::now()) });
        // A former leader's followers refuse every vote until they have missed it for long enough, and it may have a
        // successor that it has not heard from yet. So it waits as long before it may stand for election.
        let pause = store.led().then(|| Duration::from_millis(config.election_ms.1 + config.heartbeat_ms));
        let openraft = openraft::Config { enable_elect: pause.is_none(), ..config.openraft() };
        let openraft = Arc::new(openraft.validate().context("check the election time-outs")?);
        let raft = Raft::new(node, openraft, peers, store.clone(), adapter)
            .await
            .map_err(|fatal| anyhow::anyhow!("start group {id}: {fatal}"))?;
        let (proposals, proposer) = Proposals::new(config.clone(), raft.clone());
        let (barrier, rounds) = Barrier::new(raft.clone(), config.readers_waiting_max);
        let metrics = raft.metrics();
        let tasks = vec![
            runtime::spawn(proposer).abort_handle(),
            runtime::spawn(rounds).abort_handle(),
            runtime::spawn(stand(raft.clone(), node, pause)).abort_handle(),
            runtime::spawn(make_way(raft.clone(), links.clone(), way.clone())).abort_handle(),
            runtime::spawn(relieve(links.clone(), machine.clone())).abort_handle(),
            runtime::spawn(make_checkpoints(raft.clone(), machine.clone())).abort_handle(),
            runtime::spawn(bound_log(raft.clone(), machine.clone(), store, config)).abort_handle(),
        ];
        let (thread, tasks) = (Mutex::new(thread), Mutex::new(tasks));
        Ok(Group(Arc::new(Inner {
            id,
            raft,
            unflushed,
            machine,
            thread,
            proposals,
            barrier,
            metrics,
            tasks,
            joins,
            links,
            way,
        })))
    }

    /// Which group.
    pub fn id(&self) -> GroupId {
        self.0.id
    }

    pub(crate) fn raft(&self) -> &Raft {
        &self.0.raft
    }

    pub(crate) fn unflushed(&self) -> &Unflushed {
        &self.0.unflushed
    }

    /// Whether this replica knows nothing yet of a group that others have, see [`crate::Consensus::join_group`].
    pub(crate) fn knows_nothing(&self) -> bool {
        let metrics = self.0.metrics.borrow();
        self.0.joins
            && metrics.last_log_index.is_none()
            && metrics.membership_config.membership().voter_ids().next().is_none()
    }

    /// The group's state as this node knows it now.
    pub fn status(&self) -> Status {
        let status = Status::of(&self.0.metrics.borrow());
        if self.0.metrics.has_changed().is_err() { status.ended() } else { status }
    }

    /// [`Status::is_leader`], without the rest: each request asks for it.
    pub fn leads(&self) -> bool {
        Status::leads(&self.0.metrics.borrow()) && self.0.metrics.has_changed().is_ok()
    }

    /// [`Status::leader`], without the rest.
    pub fn leader(&self) -> Option<NodeId> {
        self.0.metrics.borrow().current_leader.map(NodeId)
    }

    /// Whether a node is one of [`Status::voters`].
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.0.metrics.borrow().membership_config.membership().voter_ids().any(|voter| voter == node.0)
    }

    /// [`Status::applied`], without the rest.
    pub fn applied(&self) -> u64 {
        self.0.metrics.borrow().last_applied.map_or(0, |last| last.index)
    }

    /// Waits until the group's state is another. False: it won't change any more.
    pub async fn changed(&self, known: &Status) -> bool {
        if known.stopped.is_some() {
            return false;
        }
        self.0.metrics.clone().wait_for(|metrics| Status::of(metrics) != *known).await.is_ok()
    }

    /// How often a majority confirmed here that this node leads, so that strong reads could go on. Readers share these rounds.
    pub fn read_rounds(&self) -> u64 {
        self.0.barrier.confirmed()
    }

    /// Replicates a proposal and gives what applying it gave. On the leader only; a leader that is not
    /// ready yet lets it wait. Proposals that wait while others are on their way travel in one entry.
    ///
    /// Dropping the future leaves the proposal to its fate: it may still be proposed.
    pub async fn propose(&self, proposal: Bytes, deadline: Duration) -> Result<Bytes, ProposeError> {
        let deadline = tokio::time::Instant::now() + deadline;
        self.0.proposals.check_size(proposal.len())?;
        self.wait_ready(deadline).await?;
        self.check_room()?;
        self.0.proposals.propose(proposal, deadline).await
    }

    async fn wait_ready(&self, deadline: tokio::time::Instant) -> Result<(), ProposeError> {
        let mut metrics = self.0.metrics.clone();
        let settled = metrics.wait_for(|metrics| Status::is_ready(metrics) || !Status::leads(metrics));
        let status = match tokio::time::timeout_at(deadline, settled).await {
            Ok(Ok(metrics)) if Status::is_ready(&metrics) => return Ok(()),
            Ok(Ok(metrics)) => Status::of(&metrics),
            Ok(Err(_)) => return Err(ProposeError::Stopped("it is being closed".into())),
            // It leads, but has not caught up with what earlier leaders acknowledged.
            Err(_) => return Err(ProposeError::NotLeader { leader: None }),
        };
        Err(match status.stopped {
            Some(reason) => ProposeError::Stopped(reason),
            None => ProposeError::NotLeader { leader: status.leader },
        })
    }

    /// Whether a majority can take an entry. On the leader.
    fn check_room(&self) -> Result<(), ProposeError> {
        let Inner { raft, links, way, .. } = &*self.0;
        if !links.is_anybody_full() {
            return Ok(());
        }
        if way.made.load(Ordering::Relaxed) {
            return Err(ProposeError::NotLeader { leader: None });
        }
        let metrics = raft.metrics();
        let voters: Vec<u64> = metrics.borrow().membership_config.membership().voter_ids().collect();
        let full: Vec<NodeId> = voters.iter().copied().filter(|node| links.is_full(*node)).map(NodeId).collect();
        let here = !full.contains(&links.config.node);
        match here && voters.len() - full.len() >= majority(voters.len()) {
            true => Ok(()),
            false => Err(ProposeError::NoRoom { nodes: full }),
        }
    }

    /// A leader was heard.
    pub(crate) fn heard(&self) {
        *self.0.way.heard.lock() = Instant::now();
    }

    /// Waits until this node's state has everything that was acknowledged before the call. On the leader only. Gives
    /// the index that a read sees at least. Readers share quorum rounds.
    pub async fn read_barrier(&self, deadline: Duration) -> Result<u64, ReadError> {
        if planted::is(Bug::NoReadQuorum) && self.status().is_leader {
            return Ok(self.status().applied);
        }
        if self.0.way.made.load(Ordering::Relaxed) {
            // A round of its own would keep the followers from electing another.
            return Err(ReadError::NotLeader { leader: None });
        }
        let deadline = tokio::time::Instant::now() + deadline;
        let passed = tokio::time::timeout_at(deadline, self.0.barrier.pass()).await;
        let index = passed.unwrap_or(Err(ReadError::Timeout))?;
        self.wait_applied_until(index, deadline).await?;
        Ok(index)
    }

    /// Has a majority confirm that this node leads, whatever the group is busy with: nothing is waited for beyond that.
    pub async fn confirm_leadership(&self, deadline: Duration) -> Result<(), ReadError> {
        let passed = tokio::time::timeout(deadline, self.0.barrier.pass()).await;
        passed.unwrap_or(Err(ReadError::Timeout)).map(drop)
    }

    /// Waits until the entry at `index` is applied on this node.
    pub async fn wait_applied(&self, index: u64, deadline: Duration) -> Result<(), ReadError> {
        self.wait_applied_until(index, tokio::time::Instant::now() + deadline).await
    }

    async fn wait_applied_until(&self, index: u64, deadline: tokio::time::Instant) -> Result<(), ReadError> {
        let mut applied = self.0.machine.shared.applied.subscribe();
        let reached = applied.wait_for(|applied| applied.is_some_and(|applied| applied >= index));
        match tokio::time::timeout_at(deadline, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ReadError::Stopped("it is being closed".into())),
            Err(_) => match self.status().stopped {
                Some(reason) => Err(ReadError::Stopped(reason)),
                None => Err(ReadError::Timeout),
            },
        }
    }

    /// Makes a checkpoint now, and purges the log behind it as configured.
    pub async fn checkpoint(&self) -> anyhow::Result<()> {
        self.0.raft.trigger().snapshot().await.map_err(|fatal| anyhow::anyhow!("make a checkpoint: {fatal}"))
    }

    /// Ends the group on this node; what it has stays.
    pub(crate) async fn stop(&self) {
        self.0.machine.hurry();
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::error!(group = self.0.id, "the group's core did not end cleanly: {error}");
        }
        self.0.tasks.lock().drain(..).for_each(|task| task.abort());
        self.0.machine.stop();
        let thread = self.0.thread.lock().take();
        if let Some(thread) = thread
            && !matches!(runtime::blocking(move || thread.join()).await, Ok(Ok(())))
        {
            tracing::error!(group = self.0.id, "the state machine's thread did not end cleanly");
        }
    }
}

/// Checks that log and state machine fit together, and says how far the state machine is surely durable.
fn reconcile(id: GroupId, machine: &Machine, store: &LogStore, position: &Position) -> anyhow::Result<()> {
    let (purged, last) = store.bounds();
    ensure!(
        position.last >= purged,
        "group {id}: its log begins after entry {}, but its state machine is only at {}. The state was lost or \
         replaced by an older one; remove this replica and add it again, it will then be copied from the leader",
        purged.map_or(0, |purged| purged.index),
        position.last.map_or("the very beginning".to_owned(), |last| format!("entry {}", last.index)),
    );
    // The log is durable before anything is applied, so a state machine can be ahead of it only after the (durable)
    // installation of a snapshot. Otherwise only what was purged before is known to be durable.
    let durable = if position.last > last { position.last } else { purged };
    machine.shared.durable.send_modify(|state| state.upto = durable.map(|durable| durable.index));
    Ok(())
}

/// Stands for election at once if nobody else votes, and else lets openraft do so after `pause`.
async fn stand(raft: Raft, node: u64, pause: Option<Duration>) {
    let alone = raft
        .with_raft_state(move |state| state.membership_state.effective().membership().voter_ids().eq([node]))
        .await
        .unwrap_or(false);
    if alone && raft.trigger().elect().await.is_err() {
        return;
    }
    if let Some(pause) = pause {
        tokio::time::sleep(pause).await;
        raft.runtime_config().elect(true);
    }
}

fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Hands the lead over while this node has no room, see the module's documentation.
async fn make_way(raft: Raft, links: Arc<Links>, way: Arc<Way>) {
    let mut disk = links.config.disk.watch();
    loop {
        if disk.wait_for(|state| matches!(state, DiskState::Full { .. })).await.is_err() {
            return;
        }
        let mut silent_before: Option<Instant> = None;
        while matches!(*disk.borrow(), DiskState::Full { .. }) {
            let (leads, others) = {
                let metrics = raft.metrics();
                let metrics = metrics.borrow();
                let voters = metrics.membership_config.membership().voter_ids();
                (Status::leads(&metrics), voters.filter(|node| *node != links.config.node.0).collect::<Vec<_>>())
            };
            let with_room = others.iter().filter(|node| links.has_room(**node)).count();
            let may_try = silent_before.is_none_or(|at| at.elapsed() >= SILENCE_PAUSE);
            if leads && with_room >= majority(others.len() + 1) && may_try {
                fall_silent(&raft, &way).await;
                silent_before = Some(Instant::now());
            }
            raft.runtime_config().elect(!leads && way.heard.lock().elapsed() >= ALONE_MAX);
            tokio::time::sleep(LOOK_EVERY).await;
        }
        raft.runtime_config().elect(true);
    }
}

/// As soon as the disk is full, and before somebody else has the rest of it, see [`room`](crate::room).
async fn relieve(links: Arc<Links>, machine: Machine) {
    let mut disk = links.config.disk.watch();
    let full = |state: &DiskState| matches!(state, DiskState::Full { .. });
    while disk.wait_for(full).await.is_ok() {
        if machine.relieve().await.is_err() || disk.wait_for(|state| !full(state)).await.is_err() {
            return;
        }
    }
}

/// Sends no heartbeats until another leads, or none does for too long.
async fn fall_silent(raft: &Raft, way: &Way) {
    tracing::warn!("this node leads a group and has no room on its disk: it makes way for another");
    way.made.store(true, Ordering::Relaxed);
    raft.runtime_config().heartbeat(false);
    raft.runtime_config().elect(false);
    let mut metrics = raft.metrics();
    let deposed = metrics.wait_for(|metrics| !Status::leads(metrics));
    // Whether or not another took over: the caller looks again.
    let _ = tokio::time::timeout(SILENCE_MAX, deposed).await;
    raft.runtime_config().heartbeat(true);
    way.made.store(false, Ordering::Relaxed);
}

/// Makes a checkpoint when many bytes were applied since the last; openraft itself counts only entries.
async fn make_checkpoints(raft: Raft, machine: Machine) {
    loop {
        machine.shared.checkpoint_due.notified().await;
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
    }
}

/// Purges what a checkpoint covers and the budget for keeping does not; openraft itself counts only entries.
///
/// It wakes when a checkpoint was made, and not with each entry as openraft's metrics do.
async fn bound_log(raft: Raft, machine: Machine, store: LogStore, config: Arc<Config>) {
    let mut durable = machine.shared.durable.subscribe();
    let mut metrics = raft.data_metrics();
    loop {
        let upto = durable.borrow_and_update().upto;
        // openraft purges only what it knows to be covered.
        let known = metrics.wait_for(|metrics| metrics.snapshot.map(|made| made.index) >= upto);
        if let Ok(Err(_)) = tokio::time::timeout(CHECKPOINT_KNOWN_MAX, known).await {
            return;
        }
        let made = metrics.borrow().snapshot;
        let upto = store.index_before(config.log_keep_bytes).zip(made).map(|(kept, made)| kept.min(made.index));
        if let Some(upto) = upto
            && raft.trigger().purge_log(upto).await.is_err()
        {
            return;
        }
        if durable.changed().await.is_err() {
            return;
        }
    }
}
