//! One node's part of the cluster.
//!
//! A host keeps a replica of the catalog, and a replica of every shard that the catalog places on its node:
//! a task watches the catalog and starts and stops shard replicas to match (`reconcile`). All calls are
//! carried to whichever node leads the group in question; a caller need not know which.
//!
//! | a process dies … | and then |
//! | --- | --- |
//! | while founding the cluster | every founder repeats it; the founding command applies once |
//! | between the catalog naming a shard and its replica starting | the next start reads the catalog and starts it |
//! | between a shard's removal and its files' | the next start finds a shard that the catalog calls removed |
//! | anywhere in a write | Raft and the write's idempotency key decide; see `route` |
//! | anywhere in a transaction over shards | the ledger decides; see `decide` |

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use parking_lot::RwLock;
use pleat_cluster::{Catalog, Command, Generation, Ledger, Millis, NodeId, Policy, ShardId, ShardState};
use pleat_consensus::{Consensus, Group, GroupId, Status, Transport};
use pleat_engine::{Store, StoreConfig};
use tokio::sync::watch;

use crate::catalog_machine::{CatalogMachine, Seen};
use crate::observe::ResourceSampler;
use crate::replica::Replica;
use crate::shard_machine::ShardMachine;

/// The control group's number; shard N is group N.
pub const CONTROL: GroupId = 0;
/// How often counters are looked at.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// The pause before a replica that could not be started is tried again.
const RETRY_START: Duration = Duration::from_millis(500);

/// What a host is started with.
pub struct Settings {
    pub node: NodeId,
    /// The name users see.
    pub name: String,
    /// `host:port` that the other nodes and clients reach this one by.
    pub address: String,
    pub cluster_id: String,
    pub data_dir: PathBuf,
    /// The founding nodes with their addresses, this one included.
    pub founders: Vec<(NodeId, String, String)>,
    pub founding: Founding,
    pub store: StoreLimits,
}

/// What the cluster starts as. Read once, by the command that founds it.
#[derive(Clone, Debug)]
pub struct Founding {
    pub partition_count: u32,
    pub replication_factor: u32,
    pub shards: u32,
    pub policy: Policy,
}

/// Limits of the shard replicas on this node.
#[derive(Clone, Debug, Default)]
pub struct StoreLimits {
    /// Readers of one replica at one time. `None`: the engine's own default.
    pub read_connections: Option<usize>,
}

/// One node's part of the cluster. See the module's documentation.
pub struct Host {
    settings: Settings,
    started: Millis,
    consensus: Arc<Consensus>,
    transport: Arc<dyn Transport>,
    control: Group,
    catalog: watch::Receiver<Arc<Catalog>>,
    ledger: Arc<RwLock<Ledger>>,
    replicas: RwLock<BTreeMap<ShardId, Arc<Replica>>>,
    sampler: ResourceSampler,
    stop: watch::Sender<bool>,
}

impl Host {
    /// Start this node's replicas. The cluster is founded when enough founders run.
    pub async fn start(
        settings: Settings,
        consensus: Arc<Consensus>,
        transport: Arc<dyn Transport>,
    ) -> anyhow::Result<Arc<Self>> {
        let (machine, Seen { catalog, ledger }) = CatalogMachine::open(&settings.data_dir.join("control"))?;
        let control = consensus.start_group(CONTROL, Box::new(machine)).await.context("start the control group")?;
        let sampler = ResourceSampler::new(&settings.data_dir)?;
        let host = Arc::new(Self {
            settings,
            started: now_ms(),
            consensus,
            transport,
            control,
            catalog,
            ledger,
            replicas: RwLock::default(),
            sampler,
            stop: watch::channel(false).0,
        });
        tokio::spawn(host.clone().found());
        tokio::spawn(host.clone().reconcile());
        tokio::spawn(host.clone().sample());
        tokio::spawn(host.clone().keep_spreading());
        tokio::spawn(host.clone().keep_deciding());
        tokio::spawn(host.clone().keep_forgetting());
        tokio::spawn(host.clone().keep_expiring());
        Ok(host)
    }

    /// Stop the replicas. What was acknowledged is on disk already.
    pub async fn shutdown(&self) {
        self.stop.send_replace(true);
        self.consensus.shutdown().await;
    }

    pub fn node(&self) -> NodeId {
        self.settings.node
    }

    pub fn name(&self) -> &str {
        &self.settings.name
    }

    pub fn address(&self) -> &str {
        &self.settings.address
    }

    pub fn cluster_id(&self) -> &str {
        &self.settings.cluster_id
    }

    pub fn started_at_ms(&self) -> Millis {
        self.started
    }

    pub fn now_ms(&self) -> Millis {
        now_ms()
    }

    /// The newest catalog applied on this node.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.borrow().clone()
    }

    /// Every applied change, also those that don't raise the generation.
    pub fn watch_catalog(&self) -> watch::Receiver<Arc<Catalog>> {
        self.catalog.clone()
    }

    /// Wait until this node's catalog has at least `generation`. False when the limit came first.
    pub async fn catalog_reaches(&self, generation: Generation, within: Duration) -> bool {
        let mut catalog = self.catalog.clone();
        let reached = catalog.wait_for(|catalog| catalog.generation >= generation);
        matches!(tokio::time::timeout(within, reached).await, Ok(Ok(_)))
    }

    pub fn control_status(&self) -> Status {
        self.control.status()
    }

    /// The term in which this node leads the control group and has applied all of its predecessors' commands.
    pub fn control_epoch(&self) -> Option<u64> {
        let status = self.control.status();
        (status.is_leader && status.ready).then_some(status.term)
    }

    /// The state of this node's replica of a shard, if it holds one.
    pub fn shard_status(&self, shard: ShardId) -> Option<Status> {
        self.replica(shard).map(|replica| replica.group.status())
    }

    /// The time that a transaction which begins now carries: this node's clock, but not before the ledger's time.
    pub fn txn_clock(&self) -> Millis {
        now_ms().max(self.ledger.read().now())
    }

    /// The ledger as applied on this node.
    pub(crate) fn ledger(&self) -> &RwLock<Ledger> {
        &self.ledger
    }

    pub(crate) fn control(&self) -> &Group {
        &self.control
    }

    pub(crate) fn consensus(&self) -> &Consensus {
        &self.consensus
    }

    pub(crate) fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    pub(crate) fn resources(&self) -> crate::Resources {
        self.sampler.current()
    }

    pub(crate) fn replica(&self, shard: ShardId) -> Option<Arc<Replica>> {
        self.replicas.read().get(&shard).cloned()
    }

    pub(crate) fn replicas(&self) -> Vec<Arc<Replica>> {
        self.replicas.read().values().cloned().collect()
    }

    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// The nodes that hold a replica of a group.
    pub(crate) fn members(&self, group: GroupId) -> Vec<NodeId> {
        let catalog = self.catalog.borrow();
        if group != CONTROL {
            let shard = u32::try_from(group).ok().and_then(|number| catalog.shards.get(&ShardId(number)));
            return shard.map(|shard| shard.replicas.clone()).unwrap_or_default();
        }
        match catalog.is_initialised() {
            true => catalog.active_nodes().map(|node| node.id).collect(),
            false => self.settings.founders.iter().map(|(id, ..)| *id).collect(),
        }
    }

    /// Whom this node's replica of the group believes to lead it.
    pub(crate) fn said_to_lead(&self, group: GroupId) -> Option<NodeId> {
        self.consensus.group(group)?.status().leader
    }

    /// Found the cluster, unless that was done before; then see that the catalog has this node's address.
    async fn found(self: Arc<Self>) {
        let founders: BTreeSet<NodeId> = self.settings.founders.iter().map(|(id, ..)| *id).collect();
        let mut stop = self.stopping();
        let mut founded = false;
        while !*stop.borrow() {
            if !self.catalog().is_initialised() && founders.contains(&self.node()) {
                // Every founder proposes the same membership, so it does not matter who comes first.
                if self.control.status().voters.is_empty()
                    && let Err(error) = self.control.initialize(founders.clone()).await
                {
                    tracing::warn!(%error, "could not initialise the control group; trying again");
                }
                founded = self.control_epoch().is_some() && self.say(self.founding_command()).await;
            } else if self.catalog().nodes.get(&self.node()).is_none_or(|node| node.address != self.address()) {
                let (id, name, address) = (self.node(), self.name().to_owned(), self.address().to_owned());
                founded = self.say(Command::RegisterNode { id, name, address, at: now_ms() }).await;
            } else if self.catalog().is_initialised() {
                return;
            }
            if !founded {
                let _ = tokio::time::timeout(Duration::from_millis(100), stop.changed()).await;
            }
        }
    }

    fn founding_command(&self) -> Command {
        let founding = &self.settings.founding;
        Command::Init {
            cluster_id: self.settings.cluster_id.clone(),
            partition_count: founding.partition_count,
            replication_factor: founding.replication_factor,
            nodes: self.settings.founders.clone(),
            shards: founding.shards,
            policy: founding.policy.clone(),
            at: now_ms(),
        }
    }

    async fn say(&self, command: Command) -> bool {
        match self.command(command, Duration::from_secs(5)).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "could not register with the control group; trying again");
                false
            }
        }
    }

    /// Start and stop shard replicas as the catalog says.
    async fn reconcile(self: Arc<Self>) {
        let mut catalog = self.watch_catalog();
        let mut stop = self.stopping();
        loop {
            let now = catalog.borrow_and_update().clone();
            let done = self.reconcile_once(&now).await;
            let retry = if done { Duration::from_secs(3600) } else { RETRY_START };
            tokio::select! {
                changed = catalog.changed() => if changed.is_err() { return },
                _ = stop.changed() => return,
                () = tokio::time::sleep(retry) => {}
            }
        }
    }

    async fn reconcile_once(&self, catalog: &Catalog) -> bool {
        let mut done = true;
        for shard in catalog.shards.values() {
            let wanted = shard.state != ShardState::Removed && shard.replicas.contains(&self.node());
            let running = self.replica(shard.id).is_some();
            let outcome = match (wanted, running) {
                (true, false) => self.start_replica(catalog, shard.id).await,
                (false, true) => self.destroy_replica(shard.id).await,
                (false, false) if self.shard_dir(shard.id).exists() => self.destroy_replica(shard.id).await,
                _ => Ok(()),
            };
            if let Err(error) = outcome {
                tracing::error!(shard = %shard.id, "replica: {error:#}");
                done = false;
            }
        }
        done
    }

    async fn start_replica(&self, catalog: &Catalog, id: ShardId) -> anyhow::Result<()> {
        let Some(shard) = catalog.shards.get(&id) else { return Ok(()) };
        let dir = self.shard_dir(id);
        let mut config = StoreConfig::new(catalog.partition_count);
        if let Some(read_connections) = self.settings.store.read_connections {
            config.read_connections = read_connections;
        }
        let opened = tokio::task::spawn_blocking(move || Store::open(&dir, config)).await?;
        let (store, readers) = opened.context("open the database")?;
        let machine = Box::new(ShardMachine::new(store));
        let group = self.consensus.start_group(GroupId::from(id.0), machine).await.context("start the group")?;
        if shard.state == ShardState::Creating && group.status().voters.is_empty() {
            // All replicas propose the same membership; a shard that was active before is never initialised
            // again, so a node that lost its disk can't found it a second time.
            group.initialize(shard.replicas.iter().copied().collect()).await.context("initialise the group")?;
        }
        let replica = Arc::new(Replica::new(id, group, readers, catalog.partition_count));
        self.replicas.write().insert(id, replica);
        tracing::info!(shard = %id, "replica started");
        Ok(())
    }

    async fn destroy_replica(&self, id: ShardId) -> anyhow::Result<()> {
        self.replicas.write().remove(&id);
        self.consensus.destroy_group(GroupId::from(id.0)).await.context("remove the log")?;
        match tokio::fs::remove_dir_all(self.shard_dir(id)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("remove the files"),
            _ => {
                tracing::info!(shard = %id, "replica removed");
                Ok(())
            }
        }
    }

    fn shard_dir(&self, id: ShardId) -> PathBuf {
        self.settings.data_dir.join(id.to_string())
    }

    async fn sample(self: Arc<Self>) {
        let mut stop = self.stopping();
        while !*stop.borrow() {
            let host = self.clone();
            let look = move || {
                host.sampler.sample();
                host.replicas().iter().for_each(|replica| replica.meter.sample());
            };
            if tokio::task::spawn_blocking(look).await.is_err() {
                tracing::error!("measuring this node failed; its figures are stale");
            }
            let _ = tokio::time::timeout(SAMPLE_EVERY, stop.changed()).await;
        }
    }
}

fn now_ms() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as Millis)
}
