//! A cluster whose partitions never rest: three nodes with all that belongs to them (consensus, disk, control loop,
//! gateway, HTTP and gRPC on loopback), in this process, so that a test can journal splits and moves of its own making one
//! after the other. What carries them out is the control loop, as if the autoscaler had decided on them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pleat::config::Config;
use pleat::directory::{Claim, NodeIdentity};
use pleat::node::Node;
use pleat::options::{NodeOptions, PgListen};
use pleat::shutdown::{Shutdown, Trigger};
use pleat_cluster::{
    Catalog, Cause, Command, Mode, Operation, OperationId, OperationKind, PartitionId, Phase, ShardId,
};
use pleat_generate::Dice;
use pleat_host::Host;
use tokio::task::JoinHandle;

use crate::harness::{PATIENCE, Ports};

const NODES: u16 = 3;
/// Few, so that a move takes a fair part of the keys along.
const PARTITIONS: u32 = 32;
/// One move in so many is cancelled on its way.
const CANCELLED_ONE_IN: usize = 6;

/// A running cluster. Stop it with [`InProcess::stop`], or its files are left to the end of the process.
pub struct InProcess {
    nodes: Vec<Node>,
    ports: Ports,
    stop: Trigger,
    dir: tempfile::TempDir,
}

impl InProcess {
    /// A new cluster with so many shards, and so many replicas of each.
    pub async fn start(shards: u32, replicas: u32) -> Self {
        let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::claim());
        let (stop, shutdown) = Shutdown::new();
        let each = (1..=NODES).map(|id| start_node(dir.path(), &ports, id, (shards, replicas), shutdown.clone()));
        let nodes = futures::future::join_all(each).await;
        let cluster = Self { nodes, ports, stop, dir };
        cluster.wait(|catalog| catalog.active_shards().count() == shards as usize).await;
        for node in 1..=NODES {
            let (begun, health) = (Instant::now(), format!("{}/health", cluster.url(node)));
            while !reqwest::get(&health).await.is_ok_and(|answer| answer.status().is_success()) {
                assert!(begun.elapsed() < PATIENCE, "node {node} does not get healthy");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        cluster
    }

    pub fn url(&self, node: u16) -> String {
        format!("http://127.0.0.1:{}", self.ports.http(node))
    }

    pub fn urls(&self) -> Vec<String> {
        (1..=NODES).map(|node| self.url(node)).collect()
    }

    fn host(&self) -> &Arc<Host> {
        self.nodes[0].host()
    }

    async fn wait(&self, done: impl FnMut(&Arc<Catalog>) -> bool) {
        let mut catalog = self.host().watch_catalog();
        let reached = tokio::time::timeout(PATIENCE, catalog.wait_for(done)).await;
        assert!(reached.is_ok(), "the catalog stays {:?}", self.host().catalog());
    }

    /// Begin to split until there are `shards`, then to move partitions for ever.
    pub fn keep_moving(&self, shards: usize, seed: u64) -> Moves {
        let moves = Arc::new(Seen::default());
        let task = tokio::spawn(keep_moving(self.host().clone(), shards, Dice::of_seed(seed), moves.clone()));
        Moves { host: self.host().clone(), seen: moves, task }
    }

    pub async fn stop(self) {
        self.stop.request();
        futures::future::join_all(self.nodes.into_iter().map(Node::stop)).await;
        drop(self.dir);
    }
}

async fn start_node(dir: &Path, ports: &Ports, id: u16, (shards, replicas): (u32, u32), shutdown: Shutdown) -> Node {
    let address = |id: u16| format!("127.0.0.1:{}", ports.http(id));
    let mut config = Config { partition_count: PARTITIONS, replication_factor: replicas, ..Config::default() };
    config.policy.mode = Mode::Manual;
    let options = NodeOptions {
        engine: Default::default(),
        id: id.into(),
        name: format!("node-{id}"),
        listen: address(id).parse().unwrap(),
        coordinator: None,
        pg_listen: PgListen::Off,
        data_dir: dir.join(format!("node-{id}")),
        cluster_id: "moving".to_owned(),
        founders: (1..=NODES).map(|id| (id.into(), address(id))).collect(),
        initial_shards: shards,
        config,
        supervised: false,
    };
    let claim = Claim::take(&options.data_dir).unwrap();
    let identity = NodeIdentity { cluster_id: options.cluster_id.clone(), node: options.id };
    let incarnation = claim.as_node(&identity).unwrap();
    Node::start(options, incarnation, shutdown).await.unwrap()
}

/// What became of the operations.
#[derive(Debug, Default)]
struct Seen {
    splits: AtomicU64,
    moves: AtomicU64,
    cancelled: AtomicU64,
    stop: AtomicBool,
}

/// Splits and moves that go on.
pub struct Moves {
    host: Arc<Host>,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

/// How things stand at one moment; see [`Moves::went_on`].
#[derive(Clone)]
pub struct Moment {
    moving: bool,
    owners: Vec<ShardId>,
}

impl Moves {
    pub fn now(&self) -> Moment {
        let catalog = self.host.catalog();
        Moment { moving: is_moving(&catalog), owners: catalog.owners.clone() }
    }

    /// Waits until partitions are on their way. How long schema changes and journals keep moves waiting depends on the
    /// disk, and what is to be seen beside a move must not.
    pub async fn one_under_way(&self) {
        let mut catalog = self.host.watch_catalog();
        let begun = catalog.wait_for(|catalog| is_moving(catalog));
        assert!(tokio::time::timeout(PATIENCE, begun).await.is_ok(), "no move begins");
    }

    /// Whether partitions were on their way at some time since.
    pub fn went_on(&self, since: &Moment) -> bool {
        since.moving || self.now().moving || self.handed_over(since)
    }

    /// Whether partitions have got another owner since.
    pub fn handed_over(&self, since: &Moment) -> bool {
        self.host.catalog().owners != since.owners
    }

    /// Let the last one end; gives what happened, for people.
    pub async fn stop(self) -> String {
        self.seen.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        let [splits, moves, cancelled] =
            [&self.seen.splits, &self.seen.moves, &self.seen.cancelled].map(|count| count.load(Ordering::Relaxed));
        assert!(splits + moves > 0, "nothing was moved");
        format!("{splits} splits, {moves} moves, {cancelled} cancelled on their way")
    }
}

fn is_moving(catalog: &Catalog) -> bool {
    let moves = |open: &Operation| matches!(open.kind, OperationKind::Split { .. } | OperationKind::Move { .. });
    catalog.open_operations().any(|open| open.phase == Phase::Progressing && moves(open))
}

async fn keep_moving(host: Arc<Host>, shards: usize, mut dice: Dice, seen: Arc<Seen>) {
    while !seen.stop.load(Ordering::Relaxed) {
        let catalog = host.catalog();
        let kind = next(&catalog, shards, &mut dice);
        let (splits, cancel) = (matches!(kind, OperationKind::Split { .. }), dice.roll(CANCELLED_ONE_IN) == 0);
        let cause = Cause::Request("test".to_owned());
        let start = Command::StartOperation { kind, cause, reason: "to see it move".to_owned(), at: host.now_ms() };
        // Refused where the catalog that it was made from is an old one.
        let Ok(reply) = host.command(start, PATIENCE).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let operation = reply.operation.expect("an operation");
        if cancel && !splits {
            let cancel = Command::CancelOperation { operation, at: host.now_ms() };
            tokio::time::sleep(Duration::from_millis(dice.roll(200) as u64)).await;
            // It may be past that.
            let _ = host.command(cancel, PATIENCE).await;
        }
        match end_of(&host, operation).await {
            Phase::Successful if splits => &seen.splits,
            Phase::Successful => &seen.moves,
            _ => &seen.cancelled,
        }
        .fetch_add(1, Ordering::Relaxed);
    }
}

async fn end_of(host: &Host, operation: OperationId) -> Phase {
    let mut watched = host.watch_catalog();
    let ended = watched.wait_for(|catalog| catalog.operations.get(&operation).is_some_and(|op| op.phase.is_final()));
    let Ok(catalog) = tokio::time::timeout(PATIENCE, ended).await else {
        panic!("a move does not end: {:?}", host.catalog().operations.get(&operation))
    };
    let operation = catalog.expect("the host runs").operations[&operation].clone();
    let expected = operation.phase == Phase::Successful || operation.cancel_requested;
    assert!(expected, "a move failed: {operation:?}");
    operation.phase
}

/// From the shard with most partitions, more or less, to any other.
fn next(catalog: &Catalog, shards: usize, dice: &mut Dice) -> OperationKind {
    let mut owned: BTreeMap<ShardId, Vec<PartitionId>> =
        catalog.active_shards().map(|shard| (shard.id, catalog.partitions_of(shard.id))).collect();
    let from = *owned.iter().max_by_key(|(_, owned)| owned.len() + dice.roll(12)).expect("a shard").0;
    let mut partitions = owned.remove(&from).expect("it is there");
    if owned.len() + 1 < shards {
        partitions.truncate(partitions.len() / (shards - owned.len()));
        return OperationKind::Split { from, to: catalog.next_shard(), partitions };
    }
    let to = *owned.keys().nth(dice.roll(owned.len())).expect("another shard");
    let count = 1 + dice.roll(partitions.len() / 2);
    while partitions.len() > count {
        partitions.remove(dice.roll(partitions.len()));
    }
    OperationKind::Move { from, to, partitions }
}
