//! All groups of a node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, bail};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::config::{Config, Storage};
use crate::group::Group;
use crate::log::{Backend, Change, DiskLog, MemoryLog, write};
use crate::machine::StateMachine;
use crate::network::Links;
use crate::runtime;
use crate::transport::Transport;
use crate::types::GroupId;

/// Snapshots that a node makes and sends at once.
const SENDING_MAX: usize = 2;
/// Snapshots that a node receives at once.
const RECEIVING_MAX: usize = 4;
/// How long closing waits for readers of the log to let go of it.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// A node's consensus layer: its groups, their common log, and the way to the other nodes.
///
/// # The log
/// One database in `dir/log` with one writer thread for all groups. It is bound to the node and the cluster that made it.
pub struct Consensus {
    pub(crate) links: Arc<Links>,
    pub(crate) receiving: Semaphore,
    log: Mutex<Option<Log>>,
    groups: Mutex<BTreeMap<GroupId, Slot>>,
}

#[derive(Clone)]
enum Log {
    Disk(Arc<DiskLog>),
    Memory(Arc<MemoryLog>),
}

impl Log {
    fn backend(&self) -> Arc<dyn Backend> {
        match self {
            Log::Disk(log) => log.clone(),
            Log::Memory(log) => log.clone(),
        }
    }
}

enum Slot {
    Starting,
    Running(Group),
}

/// What the log's writer has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Times that something was made durable.
    pub flushes: u64,
    /// Writes (of entries, votes, truncations, purges) that shared them.
    pub writes: u64,
}

impl Consensus {
    /// Opens a node's log. Groups are started one by one.
    pub async fn open(config: Config, transport: Arc<dyn Transport>) -> anyhow::Result<Arc<Self>> {
        config.check()?;
        let config = Arc::new(config);
        let log = match config.storage.clone() {
            Storage::Memory(disk) => Log::Memory(Arc::new(MemoryLog::new(disk, config.node, config.disk.clone()))),
            Storage::Disk => {
                let config = config.clone();
                let open = move || DiskLog::open(&config);
                Log::Disk(Arc::new(runtime::blocking(open).await??))
            }
        };
        runtime::spawn(config.disk.keep());
        let links = Links {
            config,
            transport,
            sending: Semaphore::new(SENDING_MAX),
            files: AtomicU64::new(0),
            rooms: Mutex::default(),
        };
        clear_snapshots(&links)?;
        Ok(Arc::new(Consensus {
            links: Arc::new(links),
            receiving: Semaphore::new(RECEIVING_MAX),
            log: Mutex::new(Some(log)),
            groups: Mutex::default(),
        }))
    }

    /// How this node takes part.
    pub fn config(&self) -> &Config {
        &self.links.config
    }

    fn log(&self) -> anyhow::Result<Log> {
        self.log.lock().clone().context("this node's consensus layer is shut down")
    }

    /// Starts a group here. A group that was here goes on; a new one waits until it is [initialized](Group::initialize)
    /// or added to by its leader.
    pub async fn start_group(&self, id: GroupId, machine: Box<dyn StateMachine>) -> anyhow::Result<Group> {
        self.start(id, machine, false).await
    }

    /// Starts a group that lives already on other nodes, and that this one comes to (again): as long as it has
    /// nothing of the group it votes for nobody. One that has something goes on as ever.
    pub async fn join_group(&self, id: GroupId, machine: Box<dyn StateMachine>) -> anyhow::Result<Group> {
        self.start(id, machine, true).await
    }

    async fn start(&self, id: GroupId, machine: Box<dyn StateMachine>, joins: bool) -> anyhow::Result<Group> {
        let log = self.log()?.backend();
        match self.groups.lock().entry(id) {
            std::collections::btree_map::Entry::Occupied(_) => bail!("group {id} runs on this node already"),
            std::collections::btree_map::Entry::Vacant(vacant) => drop(vacant.insert(Slot::Starting)),
        }
        let reservation = Reservation { groups: &self.groups, id };
        let group = Group::start(id, self.links.clone(), log, machine, joins).await?;
        self.groups.lock().insert(id, Slot::Running(group.clone()));
        drop(reservation);
        Ok(group)
    }

    /// The handle of a group that runs here.
    pub fn group(&self, id: GroupId) -> Option<Group> {
        match self.groups.lock().get(&id) {
            Some(Slot::Running(group)) => Some(group.clone()),
            Some(Slot::Starting) | None => None,
        }
    }

    /// The groups that run here.
    pub fn groups(&self) -> Vec<Group> {
        let running = |slot: &Slot| match slot {
            Slot::Running(group) => Some(group.clone()),
            Slot::Starting => None,
        };
        self.groups.lock().values().filter_map(running).collect()
    }

    /// Ends a group here. What it has stays, and it can be started again. When it returns, its state
    /// machine is dropped.
    pub async fn stop_group(&self, id: GroupId) {
        let group = self.group(id);
        if let Some(group) = group {
            self.groups.lock().remove(&id);
            group.stop().await;
        }
    }

    /// Ends a group here and removes its log and votes. Only for a replica that is no longer a member: one that
    /// forgets its vote and comes back may vote twice.
    pub async fn destroy_group(&self, id: GroupId) -> anyhow::Result<()> {
        self.stop_group(id).await;
        let log = self.log()?.backend();
        write(&*log, id, Change::Destroy).await.with_context(|| format!("remove the log of group {id}"))
    }

    /// What the log's writer has done so far.
    pub fn stats(&self) -> Stats {
        let (flushes, writes) = self.log.lock().as_ref().map_or((0, 0), |log| log.backend().flushes());
        Stats { flushes, writes }
    }

    /// Ends all groups and closes the log.
    pub async fn shutdown(&self) {
        // A group whose write waits for room could not be stopped.
        if let Some(Log::Disk(log)) = &*self.log.lock() {
            log.hurry();
        }
        let stops = self.groups().into_iter().map(|group| async move {
            self.stop_group(group.id()).await;
        });
        futures::future::join_all(stops).await;
        let log = self.log.lock().take();
        let Some(Log::Disk(log)) = log else { return };
        // Replication that was on its way may hold the log for a moment more.
        let mut rest = CLOSE_WAIT;
        while Arc::strong_count(&log) > 1 && !rest.is_zero() {
            let step = Duration::from_millis(5);
            tokio::time::sleep(step).await;
            rest = rest.saturating_sub(step);
        }
        if runtime::blocking(move || log.close()).await.is_err() {
            tracing::error!("the log did not close cleanly");
        }
    }
}

/// Frees the place of a group whose start failed or was given up.
struct Reservation<'a> {
    groups: &'a Mutex<BTreeMap<GroupId, Slot>>,
    id: GroupId,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut groups = self.groups.lock();
        if matches!(groups.get(&self.id), Some(Slot::Starting)) {
            groups.remove(&self.id);
        }
    }
}

/// Makes the directory of arriving and leaving snapshots, and removes what a killed process left in it.
fn clear_snapshots(links: &Links) -> anyhow::Result<()> {
    let dir = links.snapshot_dir();
    let context = || format!("prepare the directory {}", dir.display());
    std::fs::create_dir_all(&dir).with_context(context)?;
    for file in std::fs::read_dir(&dir).with_context(context)? {
        std::fs::remove_file(file?.path()).with_context(context)?;
    }
    Ok(())
}
