//! One node, wired together: consensus, host, control loop and gateway, on one address for HTTP and gRPC, and one for
//! PostgreSQL clients.
//!
//! The order matters. The addresses are bound first, so that a port in use is found before anything else is
//! touched. The server must answer before consensus can elect anyone, so it is started with the replicas and
//! not after them; until the cluster is founded it answers requests with "unavailable, try again".

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use parking_lot::RwLock;
use pleat_cluster::NodeId;
use pleat_consensus::grpc::{self, GrpcTransport};
use pleat_consensus::{Config as ConsensusConfig, Consensus, Disk, DiskState, TransportError};
use pleat_control::{Control, ControlHandle};
use pleat_engine::RoomLimits;
use pleat_gateway::server::{self, Serving};
use pleat_gateway::tls::Tls;
use pleat_gateway::{Gateway, PgSettings};
use pleat_host::{Founding, Host, Settings, StoreLimits};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::options::NodeOptions;
use crate::servers::Servers;
use crate::shutdown::Shutdown;

/// How long requests that are being served may go on when the node is told to stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How long a peer may take to say which cluster it belongs to.
const HELLO_LIMIT: Duration = Duration::from_secs(1);

type Addresses = Arc<RwLock<BTreeMap<NodeId, String>>>;

/// Run a node until `shutdown` is requested.
pub async fn run(options: NodeOptions, incarnation: u64, mut shutdown: Shutdown) -> anyhow::Result<()> {
    let node = Node::start(options, incarnation, shutdown.clone()).await?;
    let mut disk = node.host.disk().watch();
    tokio::select! {
        () = shutdown.requested() => {
            node.stop().await;
            Ok(())
        }
        Ok(DiskFailure(why)) = failure(&mut disk) => {
            // Closing databases writes to them, and that would be after a failure.
            std::mem::forget(node);
            Err(DiskFailure(why).into())
        }
    }
}

/// The disk failed: the process has to end at once.
#[derive(Debug, thiserror::Error)]
#[error(
    "the disk failed: {0}. Look at the disk, and at the kernel's messages; a node that is supervised (`pleat up`) starts again by itself"
)]
pub struct DiskFailure(String);

/// Wait until the disk fails.
async fn failure(disk: &mut watch::Receiver<DiskState>) -> Result<DiskFailure, watch::error::RecvError> {
    match &*disk.wait_for(|state| matches!(state, DiskState::Failed { .. })).await? {
        DiskState::Failed { why } => Ok(DiskFailure(why.clone())),
        DiskState::Room | DiskState::Full { .. } => std::future::pending().await,
    }
}

/// A node that runs.
pub struct Node {
    host: Arc<Host>,
    control: ControlHandle,
    gateway: Gateway,
    servers: Vec<JoinHandle<()>>,
    postgres: Servers,
    /// Tells the other nodes to end what they keep open here.
    closing: watch::Sender<bool>,
}

impl Node {
    /// Start a node. Its servers take requests until `shutdown` is requested.
    pub async fn start(options: NodeOptions, incarnation: u64, shutdown: Shutdown) -> anyhow::Result<Self> {
        let tls = crate::options::tls(&options.config)?;
        warn_of_an_open_key(&options.config);
        let listener = bind(options.listen).await?;
        let coordinator = match options.coordinator {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let postgresql = match options.pg_listen.address() {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let founders = founders(&options);
        let addresses: Addresses =
            Arc::new(RwLock::new(founders.iter().map(|(id, _, address)| (*id, address.clone())).collect()));
        let resolve = addresses.clone();
        let resolver = Arc::new(move |node: NodeId| resolve.read().get(&node).cloned());
        let node = NodeId(options.id);
        let build = pleat_engine::build()?;
        let transport = GrpcTransport::of_build(options.cluster_id.clone(), build.clone(), node, resolver);
        refuse_strangers(&transport, node, &founders).await?;

        refuse_half_a_directory(&options)?;
        let mut consensus = ConsensusConfig::new(node, options.cluster_id.clone(), options.data_dir.join("raft"));
        consensus.build = build;
        let (dir, reserve) = (options.data_dir.clone(), options.config.limits.disk_reserve_bytes);
        consensus.disk = pleat_consensus::blocking(move || Disk::open(&dir, reserve)).await??;
        consensus.queue_proposals_max = usize::try_from(options.config.limits.queued_writes).unwrap_or(usize::MAX);
        let consensus = Consensus::open(consensus, transport.clone()).await.context("open the log")?;
        let settings = settings(&options, founders, incarnation, listener.local_addr()?);
        let host = Host::start(settings, consensus.clone(), transport).await?;
        tokio::spawn(follow_addresses(host.clone(), addresses));
        let control = pleat_control::Settings {
            postgres_programs: options.config.postgres.programs.clone(),
            promote_after: options.config.postgres.promote_after,
            ..pleat_control::Settings::default()
        };
        let control = Control::start(host.clone(), control);

        let postgres = Servers::start(host.clone(), &absolute(&options.data_dir), options.config.postgres.clone());
        let gateway = Gateway::new(host.clone(), gateway_settings(&options, tls));
        // Paths that nobody serves are the gateway's to answer.
        let (closing, is_closing) = watch::channel(false);
        let service = grpc::server(consensus, host.clone(), is_closing).into_axum_router().reset_fallback();
        let mut servers = vec![serve(listener, gateway.router().merge(service), &options.config, shutdown.clone())];
        if let Some(listener) = coordinator {
            servers.push(serve(listener, gateway.coordinator_router(), &options.config, shutdown.clone()));
        }
        if let Some(listener) = postgresql {
            let mut shutdown = shutdown;
            let requested = async move { shutdown.requested().await };
            servers.push(tokio::spawn(gateway.serve_postgresql(listener, connections(&options.config), requested)));
        }
        tracing::info!(node = %options.name, listen = %options.listen, "ready for connections");
        Ok(Self { host, control, gateway, servers, postgres, closing })
    }

    /// The node's part of the cluster.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Stop, after the shutdown was requested: requests that are being served are waited for.
    pub async fn stop(self) {
        self.gateway.close();
        self.closing.send_replace(true);
        let drained = tokio::time::timeout(DRAIN_LIMIT, futures::future::join_all(self.servers)).await;
        if drained.is_err() {
            tracing::warn!("requests were still being served after {DRAIN_LIMIT:?} and are broken off");
        }
        self.control.shutdown().await;
        // Nobody needs them here any more, and while they stop the host can still be asked by others.
        self.postgres.stop().await;
        self.host.shutdown().await;
    }
}

/// A key that others on the machine can read is no secret.
fn warn_of_an_open_key(config: &Config) {
    let Some(file) = &config.tls.key_file else { return };
    if std::fs::metadata(file).is_ok_and(|found| found.permissions().mode() & 0o077 != 0) {
        tracing::warn!(file = %file.display(), "others on this machine can read the key of TLS; `chmod 600` prevents that");
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("can't listen on {address}: if another program uses the port, stop it or choose another address")
    })
}

fn serve(listener: TcpListener, router: axum::Router, config: &Config, mut shutdown: Shutdown) -> JoinHandle<()> {
    let serving = Serving { connections: connections(config), ..Serving::default() };
    tokio::spawn(async move { server::serve(listener, router, serving, shutdown.requested()).await })
}

/// How many connections each address may have.
fn connections(config: &Config) -> usize {
    usize::try_from(config.limits.connections).unwrap_or(usize::MAX)
}

/// A node that lost its log, but not the rest, has forgotten its votes as well, and does not look like it.
fn refuse_half_a_directory(options: &NodeOptions) -> anyhow::Result<()> {
    let dir = &options.data_dir;
    if dir.join("admitted").exists() && !dir.join("raft/log").exists() {
        anyhow::bail!(
            "the log is gone from {}, and the node can't take part with the rest; remove the whole directory, and the \
             node is rebuilt from the others",
            dir.display()
        );
    }
    Ok(())
}

/// The founding nodes as the catalog will know them.
fn founders(options: &NodeOptions) -> Vec<(NodeId, String, String)> {
    let named = |(id, address): &(u64, String)| {
        let name = if *id == options.id { options.name.clone() } else { format!("node-{id}") };
        (NodeId(*id), name, address.clone())
    };
    options.founders.iter().map(named).collect()
}

/// A data directory that came from elsewhere, or a wrong address, shows when a peer belongs to another cluster.
async fn refuse_strangers(
    transport: &GrpcTransport,
    me: NodeId,
    founders: &[(NodeId, String, String)],
) -> anyhow::Result<()> {
    for (node, name, address) in founders.iter().filter(|(node, ..)| *node != me) {
        match transport.hello(*node, HELLO_LIMIT).await {
            Err(TransportError::Remote { code, message }) if code == "foreign_cluster" || code == "same_node" => {
                anyhow::bail!("{name} at {address} does not belong to this cluster: {message}");
            }
            // It may start later than this node, or run already.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

fn settings(
    options: &NodeOptions,
    founders: Vec<(NodeId, String, String)>,
    incarnation: u64,
    listen: SocketAddr,
) -> Settings {
    let config = &options.config;
    let replicas = u32::try_from(founders.len()).unwrap_or(u32::MAX).min(config.replication_factor);
    Settings {
        node: NodeId(options.id),
        name: options.name.clone(),
        address: listen.to_string(),
        cluster_id: options.cluster_id.clone(),
        data_dir: absolute(&options.data_dir),
        founders,
        founding: Founding {
            partition_count: config.partition_count,
            replication_factor: replicas,
            shards: options.initial_shards,
            engine: options.engine,
            policy: config.founding_policy(options.initial_shards, options.engine),
        },
        incarnation,
        verify_every: (config.verify_interval_s > 0).then(|| Duration::from_secs(config.verify_interval_s)),
        store: StoreLimits { read_connections: usize::try_from(config.limits.read_connections).ok() },
    }
}

pub fn absolute(dir: &Path) -> std::path::PathBuf {
    std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf())
}

fn gateway_settings(options: &NodeOptions, tls: Option<Tls>) -> pleat_gateway::Settings {
    let config = &options.config;
    let limits = &config.limits;
    pleat_gateway::Settings {
        limits: pleat_gateway::Limits {
            statement_timeout: Duration::from_millis(limits.statement_timeout_ms),
            json_result_bytes: usize::try_from(limits.result_bytes).unwrap_or(usize::MAX),
            room: RoomLimits {
                query_memory: limits.gather_bytes,
                node_memory: limits.node_gather_bytes,
                query_disk: limits.spill_bytes,
                node_disk: limits.node_spill_bytes,
            },
            slow_query: Duration::from_millis(config.slow_query_ms),
            gathers: usize::try_from(limits.gathers).unwrap_or(usize::MAX),
            ..Default::default()
        },
        pg: PgSettings { tls, tls_required: config.tls.required, insecure: config.insecure, ..Default::default() },
        default_keys: config.table_shard_keys.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        spill_dir: absolute(&options.data_dir).join("spill"),
    }
}

/// Keep the addresses that the transport uses as the catalog has them.
async fn follow_addresses(host: Arc<Host>, addresses: Addresses) {
    let mut catalog = host.watch_catalog();
    loop {
        let known: Vec<_> =
            catalog.borrow_and_update().active_nodes().map(|node| (node.id, node.address.clone())).collect();
        addresses.write().extend(known);
        if catalog.changed().await.is_err() {
            return;
        }
    }
}
