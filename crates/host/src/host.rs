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
//! | between removing a replaced replica's log and its files | the next start finds files of an older number, and removes both |
//! | at any time after it has replaced a replica | its log of the control group is replayed, and shows catalogs that want the replica which was replaced: files of a newer number say that these catalogs are of the past |
//! | anywhere in a write | Raft and the write's idempotency key decide; see `route` |
//! | anywhere in a transaction over shards | the ledger decides; see `decide`, and `decide_servers` |

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use parking_lot::RwLock;
use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{Catalog, Command, Engine, Generation, Ledger, Millis, NodeId, Policy, Shard, ShardId, ShardState};
use pleat_consensus::{Consensus, Disk, Group, GroupId, Status, Transport};
use pleat_engine::{Store, StoreConfig, UnitSet};
use tokio::sync::watch;

use crate::HostError;
use crate::catalog_machine::{CatalogMachine, Seen};
use crate::gates::Gates;
use crate::incarnation::{self, Admission};
use crate::observe::ResourceSampler;
use crate::progress::Board;
use crate::replica::Replica;
use crate::servers::Servers;
use crate::shard_machine::ShardMachine;
use crate::verify::Digests;

/// The control group's number; shard N is group N.
pub const CONTROL: GroupId = 0;
/// How often counters are looked at.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// How long the other replicas of a new shard leave it to one of them to found its group.
const FOUND_AFTER: Duration = Duration::from_secs(1);
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
    /// A random number made with the data directory, by which a node is told that has lost its disk.
    pub incarnation: u64,
    /// How often replicas are compared. `None`: never.
    pub verify_every: Option<Duration>,
    pub store: StoreLimits,
}

/// What the cluster starts as. Read once, by the command that founds it.
#[derive(Clone, Debug)]
pub struct Founding {
    pub partition_count: u32,
    pub replication_factor: u32,
    pub shards: u32,
    pub engine: Engine,
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
    /// Set when this node may take part.
    control: OnceLock<Group>,
    admission: OnceLock<Admission>,
    catalog: watch::Receiver<Arc<Catalog>>,
    ledger: Arc<RwLock<Ledger>>,
    replicas: RwLock<BTreeMap<ShardId, Arc<Replica>>>,
    /// Who answered last for a group: its leader, but after a read that any replica may answer.
    leaders: RwLock<BTreeMap<GroupId, NodeId>>,
    sampler: ResourceSampler,
    board: Board,
    servers: Servers,
    gates: Gates,
    stop: watch::Sender<bool>,
}

impl Host {
    /// Start this node's replicas. The cluster is founded when all founders run.
    pub async fn start(
        settings: Settings,
        consensus: Arc<Consensus>,
        transport: Arc<dyn Transport>,
    ) -> anyhow::Result<Arc<Self>> {
        let (machine, Seen { catalog, ledger }) = CatalogMachine::open(&settings.data_dir.join("control"))?;
        let sampler = ResourceSampler::new(&settings.data_dir)?;
        let host = Arc::new(Self {
            settings,
            started: now_ms(),
            consensus,
            transport,
            control: OnceLock::new(),
            admission: OnceLock::new(),
            catalog,
            ledger,
            replicas: RwLock::default(),
            leaders: RwLock::default(),
            sampler,
            board: Board::default(),
            servers: Servers::default(),
            gates: Gates::default(),
            stop: watch::channel(false).0,
        });
        match incarnation::read(&host.settings.data_dir, host.incarnation())? {
            Some(admission) => {
                host.set_admission(admission.clone());
                host.admit(admission, machine).await?;
                pleat_consensus::spawn(host.clone().found());
            }
            None => drop(pleat_consensus::spawn(host.clone().take_part(machine))),
        }
        pleat_consensus::spawn(host.clone().reconcile());
        pleat_consensus::spawn(host.clone().sample());
        pleat_consensus::spawn(host.clone().keep_spreading());
        pleat_consensus::spawn(host.clone().keep_verifying());
        pleat_consensus::spawn(host.clone().keep_deciding());
        pleat_consensus::spawn(host.clone().keep_deciding_on_servers());
        pleat_consensus::spawn(host.clone().keep_forgetting());
        pleat_consensus::spawn(host.clone().keep_expiring());
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

    /// Empty until this node may take part.
    pub fn control_status(&self) -> Status {
        self.control().map(Group::status).unwrap_or_default()
    }

    /// The term in which this node leads the control group and has applied all of its predecessors' commands.
    pub fn control_epoch(&self) -> Option<u64> {
        let status = self.control_status();
        (status.is_leader && status.ready).then_some(status.term)
    }

    /// The state of this node's replica of a shard, or of the server that it supervises, if it has one.
    pub fn shard_status(&self, shard: ShardId) -> Option<Status> {
        let replica = self.replica(shard).map(|replica| replica.group.status());
        replica.or_else(|| {
            let primary = self.catalog.borrow().shards.get(&shard).and_then(Shard::primary);
            self.servers.status(shard, self.node(), primary)
        })
    }

    /// What this node's replica of a shard accepts writes for, as of which entry of the shard's log. `None`: it has no
    /// replica of it. For those who check that no two shards accept writes for the same partition.
    pub fn accepting(&self, shard: ShardId) -> Option<Result<(UnitSet, u64), HostError>> {
        self.replica(shard).map(|replica| replica.accepting())
    }

    /// The disk of this node's data directory.
    pub fn disk(&self) -> Arc<Disk> {
        self.consensus.config().disk.clone()
    }

    /// Which life of its directory this is.
    pub fn incarnation(&self) -> u64 {
        self.settings.incarnation
    }

    pub(crate) fn board(&self) -> &Board {
        &self.board
    }

    pub(crate) fn servers(&self) -> &Servers {
        &self.servers
    }

    pub(crate) fn gates(&self) -> &Gates {
        &self.gates
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// This node's replica of the control group, once it may take part.
    pub(crate) fn control(&self) -> Option<&Group> {
        self.control.get()
    }

    /// Once: a node is admitted once in its process's life.
    pub(crate) fn set_control(&self, group: Group) {
        let _ = self.control.set(group);
    }

    pub(crate) fn admission(&self) -> Option<&Admission> {
        self.admission.get()
    }

    pub(crate) fn set_admission(&self, admission: Admission) {
        let _ = self.admission.set(admission);
    }

    /// The time that a transaction which begins now carries: this node's clock, but not before the ledger's time.
    pub fn txn_clock(&self) -> Millis {
        now_ms().max(self.ledger.read().now())
    }

    /// The ledger as applied on this node.
    pub(crate) fn ledger(&self) -> &RwLock<Ledger> {
        &self.ledger
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

    /// This node's replica of a shard, if it may serve anybody.
    pub(crate) fn serving(&self, shard: ShardId) -> Option<Arc<Replica>> {
        self.replica(shard).filter(|replica| self.serves(replica))
    }

    /// Not one whose content is not to be trusted, nor one that is only coming to the group.
    pub(crate) fn serves(&self, replica: &Replica) -> bool {
        let catalog = self.catalog.borrow();
        let trusted = catalog.shards.get(&replica.shard).is_some_and(|shard| {
            !shard.distrusted.contains(&self.settings.node) && shard.number(self.settings.node) == replica.number
        });
        trusted && replica.group.is_voter(self.settings.node)
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

    /// Whom this node's replica of the group believes to lead it; without one, who led it when it was asked last.
    pub(crate) fn said_to_lead(&self, group: GroupId) -> Option<NodeId> {
        match self.consensus.group(group) {
            Some(replica) => replica.leader(),
            None => self.leaders.read().get(&group).copied(),
        }
    }

    /// A node answered for a group. Should it not lead, the next call that needs the leader is told so and finds it.
    pub(crate) fn found_leader(&self, group: GroupId, node: NodeId) {
        if self.leaders.read().get(&group) != Some(&node) {
            self.leaders.write().insert(group, node);
        }
    }

    /// Found the cluster, unless that was done before; then see that the catalog has this node's address.
    pub(crate) async fn found(self: Arc<Self>) {
        let founders: BTreeSet<NodeId> = self.settings.founders.iter().map(|(id, ..)| *id).collect();
        let mut stop = self.stopping();
        let mut founded = false;
        while !*stop.borrow() {
            let founds = matches!(self.admission(), Some(Admission::Founder(_)));
            if !self.catalog().is_initialised() && founds && founders.contains(&self.node()) {
                // Every founder proposes the same membership, so it does not matter who comes first.
                if let Some(control) = self.control()
                    && control.status().voters.is_empty()
                    && let Err(error) = control.initialize(founders.clone()).await
                {
                    tracing::warn!(%error, "could not initialise the control group; trying again");
                }
                founded = self.control_epoch().is_some() && self.say(self.founding_command()).await;
            } else if !self.catalog().is_initialised() {
                // It comes (back) to a cluster, and has not heard of it yet.
                founded = false;
            } else if self.catalog().nodes.get(&self.node()).is_none_or(|node| node.address != self.address()) {
                founded = self.register().await;
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
            incarnations: match self.admission() {
                Some(Admission::Founder(companions)) => companions.clone(),
                _ => BTreeMap::from([(self.node(), self.incarnation())]),
            },
            shards: founding.shards,
            engine: founding.engine,
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
        self.servers.keep_to(catalog);
        for shard in catalog.shards.values() {
            let embedded = catalog.engine == Engine::Sqlite && shard.state != ShardState::Removed;
            let wanted = embedded && shard.replicas.contains(&self.node());
            let number = shard.number(self.node());
            let running = self.replica(shard.id).map(|replica| replica.number);
            let outcome = match (wanted, running) {
                (true, Some(running)) if running == number => Ok(()),
                (true, _) => self.replace_replica(catalog, shard.id, number).await,
                // No later catalog has it again.
                (false, _) => self.destroy_replica(shard.id, None).await,
            };
            if let Err(error) = outcome {
                tracing::error!(shard = %shard.id, "replica: {error:#}");
                self.disk().suspect(&error);
                done = false;
            }
        }
        done
    }

    /// Start the replica of this number, and see that no other one is left.
    ///
    /// A replica is a voter that has promised to keep what it acknowledged, so none goes because of a catalog that is only
    /// being replayed, or that lags behind what this node knew before it was started again.
    async fn replace_replica(&self, catalog: &Catalog, id: ShardId, number: u32) -> anyhow::Result<()> {
        let is_past = self.replicas_here(id)?.into_iter().any(|(here, _)| here > number);
        if is_past && !planted::is(Bug::PastBelieved) {
            return Ok(());
        }
        // First of all: from here on the disk says so, wherever this breaks off.
        let (dir, data_dir) = (self.shard_dir(id, number), self.settings.data_dir.clone());
        let made = pleat_consensus::blocking(move || {
            std::fs::create_dir_all(dir)?;
            std::fs::File::open(data_dir)?.sync_all()
        });
        made.await.and_then(|made| made).with_context(|| format!("make the directory of replica {number} of {id}"))?;
        self.destroy_replica(id, Some(number)).await?;
        self.start_replica(catalog, id, number).await
    }

    async fn start_replica(&self, catalog: &Catalog, id: ShardId, number: u32) -> anyhow::Result<()> {
        let Some(shard) = catalog.shards.get(&id) else { return Ok(()) };
        let dir = self.shard_dir(id, number);
        let mut config = StoreConfig::new(catalog.partition_count);
        if let Some(read_connections) = self.settings.store.read_connections {
            config.read_connections = read_connections;
        }
        let opened = pleat_consensus::blocking(move || Store::open(&dir, config)).await?;
        let (store, readers) = opened.context("open the database")?;
        let digests = Arc::new(Digests::default());
        let machine = Box::new(ShardMachine::new(id, store, digests.clone()));
        let founds = shard.state == ShardState::Creating && number == 0;
        let group = match founds {
            true => self.consensus.start_group(GroupId::from(id.0), machine).await,
            false => self.consensus.join_group(GroupId::from(id.0), machine).await,
        };
        let group = group.context("start the group")?;
        if founds && group.status().voters.is_empty() {
            // A shard that was active before is never initialised again, and neither is a replica that takes another's place.
            found_group(&group, shard, self.node()).await.context("initialise the group")?;
        }
        let replica = Arc::new(Replica::new(id, number, group, readers, digests, catalog.partition_count));
        self.replicas.write().insert(id, replica);
        tracing::info!(shard = %id, number, "replica started");
        Ok(())
    }

    /// Remove what is here of a shard's replicas, except that of the number to `keep`.
    ///
    /// The log and the votes go first, and have no number: so whoever finds files of another number, after a crash
    /// anywhere in here, finds a log that belongs to them or none, and begins again.
    async fn destroy_replica(&self, id: ShardId, keep: Option<u32>) -> anyhow::Result<()> {
        let here = self.replicas_here(id)?.into_iter();
        let gone: Vec<PathBuf> = here.filter(|(number, _)| Some(*number) != keep).map(|(_, dir)| dir).collect();
        let runs = self.replica(id).is_some_and(|replica| Some(replica.number) != keep);
        if gone.is_empty() && !runs {
            return Ok(());
        }
        self.replicas.write().remove(&id);
        self.consensus.destroy_group(GroupId::from(id.0)).await.context("remove the log")?;
        for dir in gone {
            let removed = dir.clone();
            let done = pleat_consensus::blocking(move || std::fs::remove_dir_all(removed)).await;
            done.and_then(|done| done).with_context(|| format!("remove {}", dir.display()))?;
            tracing::info!(shard = %id, dir = %dir.display(), "replica removed");
        }
        Ok(())
    }

    /// Where the replica of this number is: `shard-1`, and `shard-1.2` for the second that took its place.
    fn shard_dir(&self, id: ShardId, number: u32) -> PathBuf {
        self.settings.data_dir.join(if number == 0 { id.to_string() } else { format!("{id}.{number}") })
    }

    /// The replicas of a shard that have a directory here: their numbers, and where they are.
    fn replicas_here(&self, id: ShardId) -> anyhow::Result<Vec<(u32, PathBuf)>> {
        let dir = &self.settings.data_dir;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let number = match name.strip_prefix(&id.to_string()) {
                Some("") => Some(0),
                Some(rest) => rest.strip_prefix('.').and_then(|number| number.parse().ok()),
                None => None,
            };
            found.extend(number.map(|number| (number, entry.path())));
        }
        Ok(found)
    }

    async fn sample(self: Arc<Self>) {
        let mut stop = self.stopping();
        while !*stop.borrow() {
            let host = self.clone();
            let look = move || {
                // A simulation has no machine of its own to measure.
                if !pleat_consensus::simulated() {
                    host.sampler.sample();
                }
                host.replicas().iter().for_each(|replica| replica.meter.sample());
            };
            if pleat_consensus::blocking(look).await.is_err() {
                tracing::error!("measuring this node failed; its figures are stale");
            }
            let _ = tokio::time::timeout(SAMPLE_EVERY, stop.changed()).await;
        }
    }
}

fn now_ms() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as Millis)
}

/// Founds the group of a new shard: all replicas propose the same members. Whoever is first leads, and so that leaders are spread over the
/// nodes it is another one's turn with each shard. The others come when it doesn't; that several found one group does no harm, since each begins with
/// the same entry.
///
/// A founder that dies on the way goes on when it returns: what it began is in its log. One that was voted for has the group, and the others
/// found none any more.
async fn found_group(group: &Group, shard: &Shard, node: NodeId) -> anyhow::Result<()> {
    let members: BTreeSet<NodeId> = shard.replicas.iter().copied().collect();
    let turn = shard.id.0 as usize % members.len().max(1);
    if members.iter().nth(turn) == Some(&node) {
        return Ok(group.initialize(members).await?);
    }
    let group = group.clone();
    pleat_consensus::spawn(async move {
        tokio::time::sleep(FOUND_AFTER).await;
        if group.status().voters.is_empty()
            && let Err(error) = group.initialize(members).await
        {
            tracing::warn!(group = group.id(), "the group was not founded here: {error}");
        }
    });
    Ok(())
}
