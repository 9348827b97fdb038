//! Three hosts in one process, over real gRPC on loopback: founding, writing and reading through any node, and
//! the loss of one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use pleat_cluster::{Catalog, Command, NodeId, PartitionId, Policy, ShardId, Value};
use pleat_consensus::grpc::{self, GrpcTransport};
use pleat_consensus::{Config, Consensus};
use pleat_engine::{
    Action, Idempotency, Outcome, OwnershipCheck, Query, ReadLimits, ReadRequest, SchemaChange, Statement,
};
use pleat_host::{Founding, Freshness, Host, HostError, Piece, Settings, StoreLimits};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(30);
const SHARD: ShardId = ShardId(1);
const ALL: [PartitionId; 4] = [PartitionId(0), PartitionId(1), PartitionId(2), PartitionId(3)];

struct Node {
    host: Arc<Host>,
    server: JoinHandle<()>,
    dir: tempfile::TempDir,
}

type Founders = Vec<(NodeId, String, String)>;

async fn cluster() -> (Vec<Node>, Founders) {
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let founders: Founders = (1..)
        .zip(&listeners)
        .map(|(id, listener)| (NodeId(id), format!("node-{id}"), listener.local_addr().unwrap().to_string()))
        .collect();
    let mut nodes = Vec::new();
    for (listener, (id, ..)) in listeners.into_iter().zip(&founders) {
        nodes.push(start(listener, *id, &founders, tempfile::tempdir().unwrap()).await);
    }
    (nodes, founders)
}

async fn start(listener: TcpListener, id: NodeId, founders: &Founders, dir: tempfile::TempDir) -> Node {
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
        founding: Founding { partition_count: 4, replication_factor: 3, shards: 1, policy: Policy::default() },
        incarnation: id.0 + 100,
        verify_every: None,
        store: StoreLimits::default(),
    };
    let host = Host::start(settings, consensus.clone(), transport).await.unwrap();
    let router = grpc::server(consensus, host.clone()).into_axum_router();
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Node { host, server, dir }
}

async fn stop(node: Node) -> tempfile::TempDir {
    node.server.abort();
    node.host.shutdown().await;
    node.dir
}

/// What the control loop does with a founding shard and a `CREATE TABLE`.
async fn with_table(nodes: &[Node]) -> Arc<Catalog> {
    let host = &nodes[0].host;
    let mut catalog = host.watch_catalog();
    let ready = tokio::time::timeout(LIMIT, catalog.wait_for(|catalog| catalog.is_initialised())).await;
    let catalog = ready.expect("the cluster is founded").unwrap().clone();
    let ownership = catalog.shards[&SHARD].ownership;
    done(host.write(SHARD, 1, Action::Own { units: ALL.to_vec(), ownership }, LIMIT).await);
    host.command(Command::ActivateShard { shard: SHARD, at: 1 }, LIMIT).await.unwrap();
    let create = "CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER)".to_owned();
    let kind = pleat_cluster::TableKind::Sharded { key: "id".into(), key_type: pleat_cluster::KeyType::Integer };
    let statements = vec![create];
    let table = pleat_engine::validate_ddl(&Default::default(), &statements, "t", &kind).unwrap().unwrap();
    let change = SchemaChange::Put(table);
    done(host.write(SHARD, 1, Action::Ddl { operation: 1, statements, change, single: None }, LIMIT).await);
    // The last founder may have come a moment later.
    for node in nodes {
        let mut catalog = node.host.watch_catalog();
        tokio::time::timeout(LIMIT, catalog.wait_for(|catalog| catalog.is_initialised())).await.unwrap().unwrap();
        while node.host.shard_status(SHARD).is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    host.catalog()
}

fn done(written: Result<pleat_host::Written, HostError>) -> Outcome {
    let outcome = written.expect("the write").outcome;
    assert!(!matches!(outcome, Outcome::Refused(_) | Outcome::Failed(_)), "{outcome:?}");
    outcome
}

fn insert(id: i64, key: Option<String>) -> Action {
    let idempotency = key.map(|key| Idempotency { key, fingerprint: 7, ttl_ms: 60_000 });
    let statements = vec![Statement::new("INSERT INTO t VALUES (?, ?)", vec![Value::Integer(id), Value::Integer(0)])];
    Action::Write { idempotency, units: ALL.to_vec(), statements }
}

async fn count(host: &Host, freshness: Freshness, catalog: &Catalog) -> Result<i64, HostError> {
    let request = ReadRequest {
        queries: vec![Query::new("SELECT count(*) FROM t")],
        check: OwnershipCheck::Scatter { ownership: catalog.shards[&SHARD].ownership },
        now_ms: 1,
        seed: 1,
        limits: ReadLimits::default(),
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_writes_and_reads_and_the_loss_of_one_is_survived() {
    let (mut nodes, _) = cluster().await;
    let catalog = with_table(&nodes).await;
    for id in 0..30 {
        let host = &nodes[id as usize % 3].host;
        done(host.write(SHARD, 1, insert(id, None), LIMIT).await);
        // Read what was just written, on another node.
        let other = &nodes[(id as usize + 1) % 3].host;
        assert_eq!(count(other, Freshness::Strong, &catalog).await.unwrap(), id + 1);
    }
    let written = nodes[0].host.write(SHARD, 1, insert(30, None), LIMIT).await.unwrap();
    for node in &nodes {
        assert_eq!(count(&node.host, Freshness::AtLeast(written.index), &catalog).await.unwrap(), 31);
    }

    // A key makes a repetition an answer, not a second effect.
    for node in &nodes {
        done(node.host.write(SHARD, 1, insert(31, Some("once".into())), LIMIT).await);
    }
    assert_eq!(count(&nodes[0].host, Freshness::Strong, &catalog).await.unwrap(), 32);

    // A router that believes in another ownership is refused before it sees a row.
    let mut stale = (*catalog).clone();
    stale.shards.get_mut(&SHARD).unwrap().ownership += 1;
    let refused = count(&nodes[0].host, Freshness::Strong, &stale).await.unwrap_err();
    assert!(matches!(refused, HostError::Refused(_)), "{refused:?}");
    assert!(refused.is_retryable());

    // The leader of the shard goes: the others elect another and writes go on.
    let leader = nodes.iter().position(|n| n.host.shard_status(SHARD).unwrap().is_leader).unwrap();
    drop(stop(nodes.remove(leader)).await);
    for id in 32..40 {
        let host = &nodes[id as usize % 2].host;
        done(host.write(SHARD, 1, insert(id, Some(format!("k{id}"))), LIMIT).await);
    }
    assert_eq!(count(&nodes[1].host, Freshness::Strong, &catalog).await.unwrap(), 40);
    let fresh = nodes[0].host.fresh_catalog(LIMIT).await.unwrap();
    assert_eq!(fresh.check(), []);

    let observed = futures::future::join_all(nodes.iter().map(|n| n.host.observe(n.host.node(), LIMIT))).await;
    let shards: Vec<_> = observed.iter().flat_map(|node| &node.as_ref().unwrap().shards).collect();
    assert_eq!(shards.len(), 1, "one leader measures the shard");
    assert_eq!(shards[0].rows_per_table, BTreeMap::from([("t".to_owned(), 40)]));
    assert_eq!(nodes[0].host.partition_weights(SHARD, LIMIT).await.unwrap().values().map(|w| w.rows).sum::<u64>(), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_carried_to_the_leader_and_refusals_come_back() {
    let (nodes, _) = cluster().await;
    with_table(&nodes).await;
    for node in &nodes {
        let refused = node.host.command(Command::ActivateShard { shard: ShardId(9), at: 1 }, LIMIT).await.unwrap_err();
        assert!(matches!(refused, HostError::Command(_)), "{refused:?}");
        let policy = Policy { max_shards: node.host.node().0 as u32, ..Policy::default() };
        node.host.command(Command::SetPolicy { policy: policy.clone(), at: 1 }, LIMIT).await.unwrap();
        assert_eq!(node.host.catalog().policy, policy, "applied here before it returns");
    }
    for node in &nodes {
        assert!(node.host.ping(NodeId(2), LIMIT).await.unwrap() < LIMIT);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_gone_for_long_catches_up_by_snapshot() {
    let (mut nodes, founders) = cluster().await;
    let catalog = with_table(&nodes).await;
    let away = nodes.iter().position(|n| !n.host.shard_status(SHARD).unwrap().is_leader).unwrap();
    let away = nodes.remove(away);
    let (id, last) = (away.host.node(), away.host.shard_status(SHARD).unwrap().last_log);
    let dir = stop(away).await;
    let mut rows = 0;
    let purged = |node: &Node| node.host.shard_status(SHARD).unwrap().purged.unwrap_or(0);
    while !nodes.iter().all(|node| purged(node) > last) {
        let key = Some(format!("k{rows}"));
        done(nodes[rows as usize % 2].host.write(SHARD, 1, insert(rows, key), LIMIT).await);
        rows += 1;
        assert!(rows < 2_000, "the log is never purged");
    }
    let address = &founders[id.0 as usize - 1].2;
    let back = start(TcpListener::bind(address).await.unwrap(), id, &founders, dir).await;
    let begun = std::time::Instant::now();
    let applied = nodes.iter().map(|node| node.host.shard_status(SHARD).unwrap().applied).max().unwrap();
    while back.host.shard_status(SHARD).is_none_or(|status| status.applied < applied) {
        assert!(begun.elapsed() < LIMIT, "{:?}", back.host.shard_status(SHARD));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It has the rows in its own database, and takes part again.
    assert_eq!(count(&back.host, Freshness::Eventual, &catalog).await.unwrap(), rows);
    let caught_up = back.host.shard_status(SHARD).unwrap();
    assert!(caught_up.purged.unwrap_or(0) > last, "what it missed can only have come by snapshot: {caught_up:?}");
    done(back.host.write(SHARD, 1, insert(rows, None), LIMIT).await);
    assert_eq!(count(&back.host, Freshness::Strong, &catalog).await.unwrap(), rows + 1);
}
