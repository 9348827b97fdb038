//! What the tests share: a state machine that remembers everything, two networks, and a cluster that can be hurt.

#![allow(dead_code)] // Each test file uses its part.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::{Condvar, Mutex};
use pleat_cluster::NodeId;
use pleat_consensus::grpc::{GrpcTransport, server};
use pleat_consensus::{
    Applied, Config, Consensus, Entry, Group, ProposeError, Service, ServiceError, SnapshotChunks, SnapshotJob,
    StateMachine, Status, Transport, TransportError,
};
use serde::{Deserialize, Serialize};

/// Long enough for a busy machine; nothing here depends on it being short.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const CLUSTER: &str = "test-cluster";

/// What a [`Recorder`] holds: every proposal in order.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Content {
    pub applied: Applied,
    pub proposals: Vec<Vec<u8>>,
}

/// The "disk" of one replica's state machine. It outlives the replica.
#[derive(Default)]
pub struct Disk {
    pub now: Mutex<Content>,
    /// What survives a power failure.
    pub synced: Mutex<Content>,
    pub installs: AtomicU64,
    pub checkpoints: AtomicU64,
    pub entries: AtomicU64,
    pub fail: AtomicBool,
    gate: Mutex<bool>,
    opened: Condvar,
    install_gate: Mutex<bool>,
    install_opened: Condvar,
    installing: AtomicBool,
}

impl Disk {
    pub fn proposals(&self) -> Vec<String> {
        self.now.lock().proposals.iter().map(|proposal| String::from_utf8_lossy(proposal).into_owned()).collect()
    }

    /// Holds up applying until [`Disk::open_gate`].
    pub fn close_gate(&self) {
        *self.gate.lock() = true;
    }

    pub fn open_gate(&self) {
        *self.gate.lock() = false;
        self.opened.notify_all();
    }

    pub fn close_install_gate(&self) {
        *self.install_gate.lock() = true;
    }

    pub fn open_install_gate(&self) {
        *self.install_gate.lock() = false;
        self.install_opened.notify_all();
    }

    pub fn installing(&self) -> bool {
        self.installing.load(Ordering::Relaxed)
    }

    pub fn lose_power(&self) {
        *self.now.lock() = self.synced.lock().clone();
    }
}

/// A state machine that keeps every proposal, and answers each with its number.
pub struct Recorder(pub Arc<Disk>);

impl StateMachine for Recorder {
    fn applied(&mut self) -> anyhow::Result<Applied> {
        Ok(self.0.now.lock().applied.clone())
    }

    fn apply(&mut self, entries: Vec<Entry>, applied: Applied) -> anyhow::Result<Vec<Vec<Bytes>>> {
        let mut closed = self.0.gate.lock();
        while *closed {
            self.0.opened.wait(&mut closed);
        }
        anyhow::ensure!(!self.0.fail.load(Ordering::Relaxed), "the disk is on fire");
        let mut content = self.0.now.lock();
        let mut outcomes = Vec::new();
        for entry in entries {
            self.0.entries.fetch_add(u64::from(!entry.proposals.is_empty()), Ordering::Relaxed);
            let mut number = |proposal: Bytes| {
                content.proposals.push(proposal.to_vec());
                Bytes::from(content.proposals.len().to_string())
            };
            outcomes.push(entry.proposals.into_iter().map(&mut number).collect());
        }
        assert!(applied.index >= content.applied.index, "entries come in order");
        content.applied = applied;
        Ok(outcomes)
    }

    fn checkpoint(&mut self) -> anyhow::Result<Applied> {
        let content = self.0.now.lock().clone();
        self.0.checkpoints.fetch_add(1, Ordering::Relaxed);
        let applied = content.applied.clone();
        *self.0.synced.lock() = content;
        Ok(applied)
    }

    fn snapshot(&mut self) -> anyhow::Result<SnapshotJob> {
        let disk = self.0.clone();
        Ok(Box::new(move |path: &Path| {
            // Later than the call, as a database's own reader would be.
            let content = disk.now.lock().clone();
            std::fs::write(path, postcard::to_stdvec(&content)?)?;
            Ok(content.applied)
        }))
    }

    fn install(&mut self, from: &Path, applied: Applied) -> anyhow::Result<()> {
        self.0.installing.store(true, Ordering::Relaxed);
        let mut closed = self.0.install_gate.lock();
        while *closed {
            self.0.install_opened.wait(&mut closed);
        }
        anyhow::ensure!(!self.0.fail.load(Ordering::Relaxed), "the disk is full");
        let content: Content = postcard::from_bytes(&std::fs::read(from)?)?;
        assert_eq!(content.applied, applied, "the file is what the position says");
        *self.0.synced.lock() = content.clone();
        // First the count, so that who sees the content sees that it was installed.
        self.0.installs.fetch_add(1, Ordering::SeqCst);
        *self.0.now.lock() = content;
        Ok(())
    }
}

/// Function calls instead of a network, with links that can be cut.
#[derive(Default)]
pub struct Calls {
    nodes: Mutex<BTreeMap<NodeId, Weak<Consensus>>>,
    cut: Mutex<BTreeSet<NodeId>>,
    damage: Mutex<Option<Damage>>,
}

/// What happens to the next snapshot after its second chunk.
#[derive(Clone, Copy, Debug)]
pub enum Damage {
    Error,
    End,
    Stall,
    TooMuch,
}

impl Damage {
    fn apply(self, chunks: SnapshotChunks) -> SnapshotChunks {
        let broken: SnapshotChunks = match self {
            Damage::Error => futures::stream::iter([Err(std::io::Error::other("cut"))]).boxed(),
            Damage::End => futures::stream::empty().boxed(),
            Damage::Stall => futures::stream::pending().boxed(),
            Damage::TooMuch => return chunks.chain(futures::stream::iter([Ok(Bytes::from("more"))])).boxed(),
        };
        chunks.take(2).chain(broken).boxed()
    }
}

struct Caller(NodeId, Arc<Calls>);

impl Calls {
    pub fn damage(&self, damage: Damage) {
        *self.damage.lock() = Some(damage);
    }

    /// Whether the damage is done.
    pub fn damaged(&self) -> bool {
        self.damage.lock().is_none()
    }

    fn reach(&self, from: NodeId, to: NodeId) -> Result<Arc<Consensus>, TransportError> {
        let cut = self.cut.lock();
        if cut.contains(&from) || cut.contains(&to) {
            return Err(TransportError::Unreachable("the link is cut".into()));
        }
        let node = self.nodes.lock().get(&to).and_then(Weak::upgrade);
        node.ok_or_else(|| TransportError::Unreachable("the node is down".into()))
    }
}

#[async_trait]
impl Transport for Caller {
    async fn call(&self, to: NodeId, method: &str, body: Bytes, _: Duration) -> Result<Bytes, TransportError> {
        let node = self.1.reach(self.0, to)?;
        let answer = node.handle(method, body).await;
        self.1.reach(self.0, to).map_err(|error| TransportError::Lost(error.to_string()))?;
        Ok(answer?)
    }

    async fn stream(
        &self,
        _: NodeId,
        _: &str,
        _: Bytes,
        _: Duration,
    ) -> Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError> {
        Err(TransportError::Unreachable("there are no services here".into()))
    }

    async fn send_snapshot(
        &self,
        to: NodeId,
        header: Bytes,
        chunks: SnapshotChunks,
        _: Duration,
    ) -> Result<Bytes, TransportError> {
        let node = self.1.reach(self.0, to)?;
        let damage = *self.1.damage.lock();
        let Some(damage) = damage else {
            let answer = node.handle_snapshot(header, chunks).await;
            self.1.reach(self.0, to).map_err(|error| TransportError::Lost(error.to_string()))?;
            return Ok(answer?);
        };
        let answer = node.handle_snapshot(header, damage.apply(chunks)).await;
        *self.1.damage.lock() = None;
        Ok(answer?)
    }
}

/// A service that gives back what it gets.
pub struct Echo {
    /// "wait" is answered when it opens.
    pub gate: tokio::sync::Semaphore,
    /// Calls of "wait" that have begun, and that ended without an answer.
    pub begun: AtomicU64,
    pub dropped: AtomicU64,
}

impl Default for Echo {
    fn default() -> Self {
        Echo { gate: tokio::sync::Semaphore::new(0), begun: AtomicU64::default(), dropped: AtomicU64::default() }
    }
}

impl Echo {
    async fn wait(&self) {
        struct Left<'a>(&'a AtomicU64, bool);
        impl Drop for Left<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(u64::from(self.1), Ordering::SeqCst);
            }
        }
        let mut left = Left(&self.dropped, true);
        self.begun.fetch_add(1, Ordering::SeqCst);
        drop(self.gate.acquire().await.unwrap());
        left.1 = false;
    }
}

#[async_trait]
impl Service for Echo {
    async fn call(&self, from: NodeId, method: &str, body: Bytes) -> Result<Bytes, ServiceError> {
        match method {
            "echo" => Ok([from.to_string().as_bytes(), b": ", &body].concat().into()),
            "wait" => {
                self.wait().await;
                Ok(body)
            }
            "panic" => panic!("as it was asked to"),
            "grow" => Ok(vec![b'x'; String::from_utf8_lossy(&body).parse().unwrap()].into()),
            _ => Err(ServiceError::new("unknown_method", format!("there is no '{method}'"))),
        }
    }

    async fn stream(
        &self,
        _: NodeId,
        _: &str,
        body: Bytes,
    ) -> Result<BoxStream<'static, Result<Bytes, ServiceError>>, ServiceError> {
        let parts: Vec<_> = body.iter().map(|byte| Ok(Bytes::copy_from_slice(&[*byte]))).collect();
        Ok(futures::stream::iter(parts).boxed())
    }
}

/// How the nodes of a [`Cluster`] reach each other.
pub enum Network {
    Calls(Arc<Calls>),
    /// Real gRPC on loopback: the nodes' addresses.
    Grpc(BTreeMap<NodeId, String>),
}

pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub network: Network,
    pub nodes: BTreeMap<NodeId, Arc<Consensus>>,
    servers: BTreeMap<NodeId, (tokio::sync::watch::Sender<bool>, tokio::task::JoinHandle<()>)>,
    pub echo: Arc<Echo>,
    pub disks: Mutex<BTreeMap<(NodeId, u64), Arc<Disk>>>,
    tune: Box<dyn Fn(&mut Config) + Send + Sync>,
}

pub fn ids(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
    numbers.into_iter().map(NodeId).collect()
}

impl Cluster {
    pub fn new(network: Network, tune: impl Fn(&mut Config) + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (nodes, servers, disks) = Default::default();
        Cluster { dir, network, nodes, servers, echo: Arc::default(), disks, tune: Box::new(tune) }
    }

    pub fn calls(tune: impl Fn(&mut Config) + Send + Sync + 'static) -> Self {
        Cluster::new(Network::Calls(Arc::default()), tune)
    }

    pub fn grpc(nodes: u64, tune: impl Fn(&mut Config) + Send + Sync + 'static) -> Self {
        let addresses = (1..=nodes).map(|node| (NodeId(node), format!("127.0.0.1:{}", free_port()))).collect();
        Cluster::new(Network::Grpc(addresses), tune)
    }

    /// A started cluster of nodes 1 to `nodes`, with one group, number 1, of all of them.
    pub async fn founded(mut self, nodes: u64) -> Self {
        for node in 1..=nodes {
            self.start(node).await;
        }
        for node in 1..=nodes {
            self.start_group(node, 1).await;
        }
        self.group(1, 1).initialize(ids(1..=nodes)).await.unwrap();
        self
    }

    pub fn config(&self, node: u64) -> Config {
        let mut config = Config::new(NodeId(node), CLUSTER, self.dir.path().join(format!("node-{node}")));
        (self.tune)(&mut config);
        config
    }

    pub async fn start(&mut self, node: u64) {
        let (id, config) = (NodeId(node), self.config(node));
        let transport: Arc<dyn Transport> = match &self.network {
            Network::Calls(calls) => Arc::new(Caller(id, calls.clone())),
            Network::Grpc(addresses) => {
                let addresses = addresses.clone();
                let limit = config.message_bytes_max;
                GrpcTransport::with_message_limit(CLUSTER, id, Arc::new(move |to| addresses.get(&to).cloned()), limit)
            }
        };
        let consensus = open_when_free(config, transport).await;
        match &self.network {
            Network::Calls(calls) => drop(calls.nodes.lock().insert(id, Arc::downgrade(&consensus))),
            Network::Grpc(addresses) => {
                let (end, mut ended) = tokio::sync::watch::channel(false);
                let routes = server(consensus.clone(), self.echo.clone(), ended.clone());
                let listener = listen(&addresses[&id]).await;
                let serve = tonic::transport::Server::builder().add_routes(routes).serve_with_incoming_shutdown(
                    tokio_stream::wrappers::TcpListenerStream::new(listener),
                    async move {
                        let _ = ended.wait_for(|ended| *ended).await;
                    },
                );
                self.servers.insert(id, (end, tokio::spawn(async move { serve.await.unwrap() })));
            }
        }
        self.nodes.insert(id, consensus);
    }

    pub fn disk(&self, node: u64, group: u64) -> Arc<Disk> {
        self.disks.lock().entry((NodeId(node), group)).or_default().clone()
    }

    /// What a killed process still writes is lost: the replica gets a copy of its disk as it is now.
    pub fn replace_disk(&self, node: u64, group: u64) {
        let old = self.disk(node, group);
        let copy = Disk::default();
        *copy.now.lock() = old.now.lock().clone();
        *copy.synced.lock() = old.synced.lock().clone();
        self.disks.lock().insert((NodeId(node), group), Arc::new(copy));
    }

    pub async fn start_group(&self, node: u64, group: u64) -> Group {
        let machine = Box::new(Recorder(self.disk(node, group)));
        self.nodes[&NodeId(node)].start_group(group, machine).await.unwrap()
    }

    pub fn group(&self, node: u64, group: u64) -> Group {
        self.nodes[&NodeId(node)].group(group).unwrap()
    }

    /// Ends a node in good order.
    pub async fn stop(&mut self, node: u64) {
        let consensus = self.nodes.remove(&NodeId(node)).unwrap();
        self.end_server(node).await;
        consensus.shutdown().await;
    }

    /// Drops a node in the middle of everything.
    pub async fn drop_node(&mut self, node: u64) {
        self.end_server(node).await;
        drop(self.nodes.remove(&NodeId(node)).unwrap());
    }

    async fn end_server(&mut self, node: u64) {
        // Also closes the connections, which ending the listener alone would not.
        if let Some((end, server)) = self.servers.remove(&NodeId(node)) {
            end.send_replace(true);
            server.await.unwrap();
        }
    }

    pub fn cut(&self, node: u64) {
        let Network::Calls(calls) = &self.network else { panic!("only calls can be cut") };
        calls.cut.lock().insert(NodeId(node));
    }

    pub fn mend(&self, node: u64) {
        let Network::Calls(calls) = &self.network else { panic!("only calls can be mended") };
        calls.cut.lock().remove(&NodeId(node));
    }

    /// Waits until one of `among` leads the group and is ready, and the others of them agree.
    pub async fn leader(&self, group: u64, among: impl IntoIterator<Item = u64>) -> u64 {
        let among: Vec<u64> = among.into_iter().collect();
        eventually("a ready leader that all agree on", || {
            let status: Vec<Status> = among.iter().map(|node| self.group(*node, group).status()).collect();
            let leader = status.iter().find(|status| status.ready).and_then(|status| status.leader)?;
            let agreed = status.iter().all(|status| status.leader == Some(leader));
            (agreed && among.contains(&leader.0)).then_some(leader.0)
        })
        .await
    }

    /// Proposes on whoever leads, as a client that retries what surely was not proposed.
    pub async fn write(&self, group: u64, proposal: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < deadline {
            for consensus in self.nodes.values() {
                let Some(group) = consensus.group(group) else { continue };
                match group.propose(Bytes::copy_from_slice(proposal.as_bytes()), PATIENCE).await {
                    Ok(_) => return,
                    Err(error) if error.surely_not_proposed() => {}
                    Err(error) => panic!("{proposal}: {error}"),
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{proposal}: nobody took it");
    }

    /// Waits until the replicas on these nodes hold the same, at least `proposals` of them, and gives it.
    pub async fn converged(&self, group: u64, nodes: impl IntoIterator<Item = u64>, proposals: usize) -> Vec<String> {
        let nodes: Vec<u64> = nodes.into_iter().collect();
        eventually(&format!("{proposals} equal proposals on nodes {nodes:?}"), || {
            let contents: Vec<_> = nodes.iter().map(|node| self.disk(*node, group).proposals()).collect();
            let (first, rest) = contents.split_first()?;
            (first.len() >= proposals && rest.iter().all(|other| other == first)).then(|| first.clone())
        })
        .await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A gate that stays closed would keep a thread.
        self.disks.lock().values().for_each(|disk| {
            disk.open_gate();
            disk.open_install_gate();
        });
    }
}

pub async fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Opens a directory that a dropped node may still be letting go of.
pub async fn open_when_free(config: Config, transport: Arc<dyn Transport>) -> Arc<Consensus> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match Consensus::open(config.clone(), transport.clone()).await {
            Ok(consensus) => return consensus,
            Err(error) if error.to_string().contains("in use") && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error:#}"),
        }
    }
}

async fn listen(address: &str) -> tokio::net::TcpListener {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if tokio::time::Instant::now() > deadline => panic!("{address}: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A port that nobody listens on, below the ephemeral ones.
pub fn free_port() -> u16 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) + u64::from(std::process::id()) * 37;
        let port = 12_000 + (step % 18_000) as u16;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub async fn propose(group: &Group, proposal: &str) -> Result<String, ProposeError> {
    let outcome = group.propose(Bytes::copy_from_slice(proposal.as_bytes()), PATIENCE).await?;
    Ok(String::from_utf8(outcome.to_vec()).unwrap())
}
