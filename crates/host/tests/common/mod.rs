//! Hosts in one process, over real gRPC on loopback.
#![allow(dead_code)] // each test file uses its share

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use pleat_cluster::{Catalog, Command, Engine, NodeId, PartitionId, Planned, Policy, ShardId, Value};
use pleat_consensus::grpc::{self, GrpcTransport};
use pleat_consensus::{Config, Consensus, SnapshotChunks, Transport, TransportError};
use pleat_engine::{
    Action, Idempotency, Outcome, OwnershipCheck, Query, ReadLimits, ReadRequest, SchemaChange, Statement,
};
use pleat_host::{Founding, Freshness, Host, HostError, Piece, Settings, StoreLimits};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub const LIMIT: Duration = Duration::from_secs(30);
pub const SHARD: ShardId = ShardId(1);
/// The second one owns half of the partitions only in the catalog: on its own it owns all, as the first.
pub const SHARDS: u32 = 2;
pub const OTHER: ShardId = ShardId(2);
pub const ALL: [PartitionId; 4] = [PartitionId(0), PartitionId(1), PartitionId(2), PartitionId(3)];

pub struct Node {
    pub host: Arc<Host>,
    /// How often it called each node.
    pub calls: Arc<Calls>,
    server: JoinHandle<()>,
    dir: tempfile::TempDir,
}

pub type Founders = Vec<(NodeId, String, String)>;

pub async fn cluster() -> (Vec<Node>, Founders) {
    cluster_with(StoreLimits::default()).await
}

pub async fn cluster_with(store: StoreLimits) -> (Vec<Node>, Founders) {
    cluster_of(3, store).await
}

pub async fn cluster_of(nodes: u64, store: StoreLimits) -> (Vec<Node>, Founders) {
    founded(nodes, store, Engine::Sqlite).await
}

pub async fn founded(nodes: u64, store: StoreLimits, engine: Engine) -> (Vec<Node>, Founders) {
    let mut listeners = Vec::new();
    for _ in 0..nodes {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let founders: Founders = (1..)
        .zip(&listeners)
        .map(|(id, listener)| (NodeId(id), format!("node-{id}"), listener.local_addr().unwrap().to_string()))
        .collect();
    let mut nodes = Vec::new();
    for (listener, (id, ..)) in listeners.into_iter().zip(&founders) {
        nodes.push(start_with(listener, *id, &founders, tempfile::tempdir().unwrap(), store.clone(), engine).await);
    }
    (nodes, founders)
}

pub async fn start(listener: TcpListener, id: NodeId, founders: &Founders, dir: tempfile::TempDir) -> Node {
    start_with(listener, id, founders, dir, StoreLimits::default(), Engine::Sqlite).await
}

async fn start_with(
    listener: TcpListener,
    id: NodeId,
    founders: &Founders,
    dir: tempfile::TempDir,
    store: StoreLimits,
    engine: Engine,
) -> Node {
    let known: BTreeMap<NodeId, String> = founders.iter().map(|(id, _, address)| (*id, address.clone())).collect();
    let address = known[&id].clone();
    let transport = GrpcTransport::new("c", id, Arc::new(move |node| known.get(&node).cloned()));
    let mut config = Config::new(id, "c", dir.path().join("raft"));
    // Small, so that a log is purged while a test watches.
    (config.checkpoint_entries, config.log_keep_entries) = (40, 5);
    let consensus = Consensus::open(config, transport.clone()).await.unwrap();
    let settings = Settings {
        node: id,
        name: format!("node-{}", id.0),
        address,
        cluster_id: "c".into(),
        data_dir: dir.path().to_owned(),
        founders: founders.clone(),
        founding: Founding {
            partition_count: 4,
            replication_factor: 3,
            shards: SHARDS,
            engine,
            policy: Policy::default(),
        },
        incarnation: id.0 + 100,
        verify_every: None,
        store,
    };
    let calls = Arc::new(Calls { transport, made: Mutex::default() });
    let host = Host::start(settings, consensus.clone(), calls.clone()).await.unwrap();
    let router = grpc::server(consensus, host.clone(), tokio::sync::watch::channel(false).1).into_axum_router();
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Node { host, calls, server, dir }
}

/// Counts what goes through it.
pub struct Calls {
    transport: Arc<GrpcTransport>,
    made: Mutex<BTreeMap<NodeId, usize>>,
}

impl Calls {
    pub fn to(&self, node: NodeId) -> usize {
        self.made.lock().unwrap().get(&node).copied().unwrap_or(0)
    }
}

#[async_trait]
impl Transport for Calls {
    async fn call(&self, to: NodeId, method: &str, body: Bytes, deadline: Duration) -> Result<Bytes, TransportError> {
        *self.made.lock().unwrap().entry(to).or_default() += 1;
        self.transport.call(to, method, body, deadline).await
    }

    async fn stream(
        &self,
        to: NodeId,
        method: &str,
        body: Bytes,
        deadline: Duration,
    ) -> Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError> {
        self.transport.stream(to, method, body, deadline).await
    }

    async fn send_snapshot(
        &self,
        to: NodeId,
        header: Bytes,
        chunks: SnapshotChunks,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        self.transport.send_snapshot(to, header, chunks, deadline).await
    }
}

pub async fn stop(node: Node) -> tempfile::TempDir {
    node.server.abort();
    node.host.shutdown().await;
    node.dir
}

/// What the control loop does with a founding shard and a `CREATE TABLE`.
pub async fn with_table(nodes: &[Node]) -> Arc<Catalog> {
    let host = &nodes[0].host;
    let mut catalog = host.watch_catalog();
    let ready = tokio::time::timeout(LIMIT, catalog.wait_for(|catalog| catalog.is_initialised())).await;
    let catalog = ready.expect("the cluster is founded").unwrap().clone();
    let create = "CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER)".to_owned();
    let kind = pleat_cluster::TableKind::Sharded { key: "id".into(), key_type: pleat_cluster::KeyType::Integer };
    let statements = vec![create];
    let table = pleat_engine::validate_ddl(&Default::default(), &statements, "t", &kind).unwrap().unwrap();
    for shard in [SHARD, OTHER] {
        let ownership = catalog.shards[&shard].ownership;
        done(
            host.write(shard, Planned::default(), Action::Own { units: ALL.to_vec(), ownership, layout: 0 }, LIMIT)
                .await,
        );
        host.command(Command::ActivateShard { shard, at: 1 }, LIMIT).await.unwrap();
        let (statements, change) = (statements.clone(), SchemaChange::Put(table.clone()));
        done(
            host.write(
                shard,
                Planned::default(),
                Action::Ddl { operation: 1, statements, change, single: None, undoes: None },
                LIMIT,
            )
            .await,
        );
    }
    // The last founder may have come a moment later.
    for node in nodes {
        let mut catalog = node.host.watch_catalog();
        tokio::time::timeout(LIMIT, catalog.wait_for(|catalog| catalog.is_initialised())).await.unwrap().unwrap();
        let held = host.catalog().shards[&SHARD].replicas.contains(&node.host.node());
        while held && node.host.shard_status(SHARD).is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    host.catalog()
}

pub fn done(written: Result<pleat_host::Written, HostError>) -> Outcome {
    let outcome = written.expect("the write").outcome;
    assert!(!matches!(outcome, Outcome::Refused(_) | Outcome::Failed(_)), "{outcome:?}");
    outcome
}

pub fn insert(id: i64, key: Option<String>) -> Action {
    let idempotency = key.map(|key| Idempotency { key, fingerprint: 7, ttl_ms: 60_000 });
    let statements = vec![Statement::new("INSERT INTO t VALUES (?, ?)", vec![Value::Integer(id), Value::Integer(0)])];
    Action::Write { idempotency, units: ALL.to_vec(), statements, base: None }
}

pub async fn count(host: &Host, freshness: Freshness, catalog: &Catalog) -> Result<i64, HostError> {
    let request = ReadRequest {
        queries: vec![Query::new("SELECT count(*) FROM t")],
        check: OwnershipCheck::Scatter { ownership: catalog.shards[&SHARD].ownership },
        layout: None,
        now_ms: 1,
        seed: 1,
        limits: ReadLimits::default(),
        names_txns: false,
    };
    let rows = host.read(SHARD, request, freshness, LIMIT).await?;
    assert_eq!(rows.columns, ["count(*)"]);
    let rows: Vec<Piece> = rows.pieces.try_collect().await?;
    let [Piece::Rows(rows)] = &rows[..] else { panic!("{rows:?}") };
    match rows[0][0] {
        Value::Integer(count) => Ok(count),
        ref other => panic!("{other:?}"),
    }
}
