//! One node: consensus, host, control loop and gateway, put together as `pleat` does, on a simulated network.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pleat_cluster::{Command, Mode, NodeId, Policy};
use pleat_consensus::{Config, Consensus, DiskState, Storage};
use pleat_control::Control;
use pleat_gateway::Gateway;
use pleat_gateway::session::{Output, Params, Request};
use pleat_host::{Founding, Host, Settings, StoreLimits};
use turmoil::net::{TcpListener, TcpStream};

use crate::client::{Answer, Ask};
use crate::net::{self, CLIENTS, PEERS, Peers};
use crate::world::World;
use crate::{faults, lone};

/// The founding nodes.
pub const NODES: [u64; 3] = [1, 2, 3];
/// Few, so that moves often concern what clients write.
pub const PARTITIONS: u32 = 16;
/// Shards at first.
pub const SHARDS: u32 = 2;
const CLUSTER: &str = "simulated";
/// Replicas compare themselves so often.
const VERIFY_EVERY: Duration = Duration::from_secs(3);
/// Entries after which a state machine makes a checkpoint, and that are kept in the log behind it: few, so that a node that
/// was away needs a snapshot now and then.
const CHECKPOINT_ENTRIES: u64 = 40;
const LOG_KEEP_ENTRIES: u64 = 10;
/// How long starting an operation may take.
const START_LIMIT: Duration = Duration::from_secs(3);

/// A node, from its start until it dies.
pub async fn run(world: World, node: u64) -> turmoil::Result {
    let id = NodeId(node);
    let dir = world.dir_of(node);
    std::fs::create_dir_all(&dir)?;
    let mut config = Config::new(id, CLUSTER, dir.join("raft"));
    config.storage = Storage::Memory(world.log.clone());
    config.checkpoint_entries = CHECKPOINT_ENTRIES;
    config.log_keep_entries = LOG_KEEP_ENTRIES;
    let disk = config.disk.clone();
    let transport = Arc::new(Peers { node, trace: world.trace.clone() });
    let (consensus, host) = match start(&world, config, transport).await {
        Err(_) if matches!(disk.state(), DiskState::Failed { .. }) => {
            // Its process has ended, and is started again as any other whose disk failed.
            world.fails_to_start(node);
            return std::future::pending().await;
        }
        started => started?,
    };
    let _control = Control::start(host.clone(), pleat_control::Settings::default());
    let spill_dir = dir.join("spill");
    let gateway = Gateway::new(host.clone(), pleat_gateway::Settings { spill_dir, ..Default::default() });
    let (peers, clients) = (net::listen(PEERS).await?, net::listen(CLIENTS).await?);
    world.started(node, &host);
    let peers = net::serve(peers, consensus, host.clone());
    tokio::select! {
        ended = peers => ended?,
        ended = serve_clients(clients, Arc::new(gateway), host) => ended?,
    }
    Ok(())
}

async fn start(world: &World, config: Config, transport: Arc<Peers>) -> anyhow::Result<(Arc<Consensus>, Arc<Host>)> {
    let id = config.node;
    let consensus = Consensus::open(config, transport.clone()).await?;
    let host = Host::start(settings(world, id.0), consensus.clone(), transport).await?;
    if !faults::with_wipes(world.seed) {
        // Nobody could bring back what a lone voter has lost.
        lone::run(world, id, &consensus).await?;
    }
    Ok((consensus, host))
}

fn settings(world: &World, node: u64) -> Settings {
    let founders = NODES.iter().map(|node| (NodeId(*node), net::name(*node), format!("{}:{PEERS}", net::name(*node))));
    let policy = Policy { mode: Mode::Manual, ..Policy::default() };
    Settings {
        node: NodeId(node),
        name: net::name(node),
        address: format!("{}:{PEERS}", net::name(node)),
        cluster_id: CLUSTER.to_owned(),
        data_dir: world.dir_of(node),
        founders: founders.collect(),
        founding: Founding {
            partition_count: PARTITIONS,
            replication_factor: 3,
            shards: SHARDS,
            engine: Default::default(),
            policy,
        },
        incarnation: world.incarnation(node),
        verify_every: Some(VERIFY_EVERY),
        store: StoreLimits::default(),
    }
}

async fn serve_clients(listener: TcpListener, gateway: Arc<Gateway>, host: Arc<Host>) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let (gateway, host) = (gateway.clone(), host.clone());
        tokio::task::spawn_local(async move {
            // An error is the client's to notice.
            let _ = serve_client(stream, &gateway, &host).await;
        });
    }
}

async fn serve_client(mut stream: TcpStream, gateway: &Gateway, host: &Host) -> std::io::Result<()> {
    let answer = match net::receive(&mut stream).await? {
        Ask::Statement { text, key, timeout_ms } => {
            let request = Request {
                text,
                params: Params::default(),
                idempotency_key: key,
                timeout: Some(Duration::from_millis(timeout_ms)),
                origin: "simulation",
                ..Request::default()
            };
            execute(gateway, request).await
        }
        Ask::Start(kind) => {
            let cause = pleat_cluster::Cause::Request("simulation".to_owned());
            let start = Command::StartOperation { kind, cause, reason: String::new(), at: host.now_ms() };
            match host.command(start, START_LIMIT).await {
                Ok(_) => Answer::Done,
                Err(error) => Answer::Refused { code: error.code().to_owned(), message: error.to_string() },
            }
        }
    };
    net::send(&mut stream, &answer).await
}

async fn execute(gateway: &Gateway, request: Request) -> Answer {
    let refused = |failure: pleat_gateway::session::Failure| Answer::Refused {
        code: failure.code.to_string(),
        message: failure.message,
    };
    let response = match gateway.executor().execute(request).await {
        Ok(response) => response,
        Err(failure) => return refused(failure),
    };
    match response.output {
        Output::Effects(effects) => Answer::Changed(effects.iter().map(|effect| effect.rows_affected).sum()),
        Output::Rows { rows, .. } => {
            use futures::TryStreamExt;
            match rows.try_collect::<Vec<_>>().await {
                Ok(chunks) => Answer::Rows(chunks.into_iter().flatten().collect()),
                Err(failure) => refused(failure),
            }
        }
    }
}

/// Hosts by node.
pub type Hosts = BTreeMap<u64, Arc<Host>>;
