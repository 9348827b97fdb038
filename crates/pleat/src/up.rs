//! `pleat up`: a whole cluster on one machine.
//!
//! Each node is a process of its own, as on machines of their own, started and watched from here: one that
//! dies is started again ([`supervisor`]). Everything that can be wrong is found out before the first process
//! starts: the configuration, the directory ([`crate::directory`]), flags that contradict the cluster that
//! lives there ([`plan`]), ports in use ([`ports`]).
//!
//! Ctrl-C stops all nodes in order; a second Ctrl-C, or [`supervisor::GRACE`], ends them at once. When `up` itself
//! is killed, the pipes that it held to its nodes close, and they stop by themselves.

mod logfile;
mod plan;
mod ports;
mod supervisor;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use pleat_cluster::Engine;
use pleat_provision::process;
use serde_json::json;
use tokio::sync::mpsc;

use crate::cli::client::Client;
use crate::cli::output;
use crate::config::Config;
use crate::directory::{Claim, InUse};
use crate::node::absolute;
use crate::options::{PgListen, ServeArgs};
use crate::shutdown::Shutdown;
use plan::Plan;
use supervisor::{Event, Program};

/// Until then the nodes that an `up` that was killed left behind have stopped.
const LEFTOVERS_STOP: Duration = Duration::from_secs(15);
/// A node that ends this often before the cluster is up will not come up.
const START_ATTEMPTS: u32 = 3;
/// After this long without a healthy cluster, say what is missing.
const IMPATIENCE: Duration = Duration::from_secs(15);

#[derive(Args, Clone, Debug, Default)]
pub struct UpArgs {
    /// How many nodes a new cluster has [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub nodes: Option<u32>,
    /// How many shards a new cluster starts with [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub shards: Option<u32>,
    /// What the shards of a new cluster are: sqlite or postgres [default: sqlite]
    #[arg(long, value_name = "ENGINE")]
    pub engine: Option<Engine>,
    /// Where the data is kept [default: pleat-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where node 1 listens; node k has the port k-1 further up [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where the coordinator's interface of node 1 listens [default: port 9090]
    #[arg(long, value_name = "ADDR:PORT")]
    pub coordinator: Option<SocketAddr>,
    /// Where node 1 serves PostgreSQL clients, or off; node k has the port k-1 further up [default: port 6432]
    #[arg(long, value_name = "ADDR:PORT")]
    pub pg_listen: Option<PgListen>,
    #[command(flatten)]
    pub common: ServeArgs,
    /// Show the nodes' log lines here as well
    #[arg(long)]
    pub logs: bool,
    /// Print the summary as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// Run the cluster until it is told to stop.
pub async fn run(args: UpArgs) -> anyhow::Result<()> {
    let config = args.common.load_config()?;
    // The nodes read it again; what is wrong with it is better told here, and at once.
    crate::options::tls(&config)?;
    let dir = args.data_dir.clone().or_else(|| config.data_dir.clone()).unwrap_or_else(|| PathBuf::from("pleat-data"));
    if !dir.join("cluster.json").exists() {
        // A command line that can't be carried out leaves no directory behind.
        let plan = Plan::new(&args, &config, dir.clone(), None)?;
        check_servers(&plan, &config)?;
        ports::check(&plan)?;
    }
    let claim = Claim::take(&dir)?;
    let existing = claim.cluster()?;
    let is_new = existing.is_none();
    let plan = Plan::new(&args, &config, dir, existing)?;
    check_servers(&plan, &config)?;
    wait_for_leftovers(&plan).await?;
    ports::check(&plan)?;
    if is_new {
        claim.found_cluster(&plan.identity)?;
    }
    let mut shutdown = crate::shutdown::on_signals(false).context("listen for signals")?;
    let (events, mut seen) = mpsc::channel(64);
    let (now, at_once) = Shutdown::new();
    let mut nodes = tokio::task::JoinSet::new();
    for node in 1..=plan.identity.nodes {
        let program = Program::of_node(&plan, &args, node)?;
        nodes.spawn(supervisor::supervise(program, shutdown.clone(), at_once.clone(), events.clone()));
    }
    drop(events);
    let mut outcome = start(&plan, &args, &mut seen, &mut shutdown).await;
    while outcome.is_ok() {
        tokio::select! {
            () = shutdown.requested() => break,
            event = seen.recv() => match event {
                Some(event) => output::complain(&event.to_string()),
                None => outcome = Err(anyhow::anyhow!("no node is left")),
            },
        }
    }
    if outcome.is_err() {
        now.request();
    }
    stop(nodes, &now, &mut seen).await;
    drop(claim);
    outcome
}

/// What the nodes would find out when the cluster runs: that servers can't be started here.
fn check_servers(plan: &Plan, config: &Config) -> anyhow::Result<()> {
    match plan.identity.engine {
        Engine::Sqlite => Ok(()),
        Engine::Postgres => Ok(process::check(&config.postgres.programs, &absolute(&plan.dir))?),
    }
}

/// The nodes of an `up` that was killed notice it, but need a moment to close their files.
async fn wait_for_leftovers(plan: &Plan) -> anyhow::Result<()> {
    let begun = Instant::now();
    for node in 1..=plan.identity.nodes {
        let dir = plan.node_dir(node);
        if !dir.exists() {
            continue;
        }
        loop {
            match Claim::take(&dir) {
                Ok(_) => break,
                Err(error) if error.downcast_ref::<InUse>().is_none() || begun.elapsed() > LEFTOVERS_STOP => {
                    return Err(error);
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
    Ok(())
}

/// Wait until every node answers that it is healthy, and say so.
async fn start(
    plan: &Plan,
    args: &UpArgs,
    seen: &mut mpsc::Receiver<Event>,
    shutdown: &mut Shutdown,
) -> anyhow::Result<()> {
    let mut ended = vec![0_u32; plan.identity.nodes as usize + 1];
    let healthy = all_healthy(plan);
    tokio::pin!(healthy);
    loop {
        tokio::select! {
            () = shutdown.requested() => return Ok(()),
            result = &mut healthy => {
                result?;
                return summary(plan, args);
            }
            event = seen.recv() => match event {
                Some(Event::Ended { node, how, tail, .. }) => {
                    ended[node as usize] += 1;
                    if ended[node as usize] >= START_ATTEMPTS {
                        let log = plan.node_dir(node).join("log");
                        bail!("node-{node} does not start ({how}); the end of {}:\n{}", log.display(), tail.join("\n"));
                    }
                }
                Some(_) => {}
                None => bail!("no node is left"),
            },
        }
    }
}

async fn all_healthy(plan: &Plan) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut told = 0;
    for node in 1..=plan.identity.nodes {
        let client = Client::new(&format!("http://{}", reachable(plan.node_listen(node))))?;
        loop {
            let Err(failure) = client.get("/health").await else { break };
            if begun.elapsed() > IMPATIENCE * (told + 1) {
                told += 1;
                output::complain(&format!("still waiting for node-{node}: {failure}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// An address that a client on this machine can use: "every interface" is none.
fn reachable(listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        ip if !ip.is_unspecified() => listen,
        std::net::IpAddr::V4(_) => SocketAddr::from(([127, 0, 0, 1], listen.port())),
        std::net::IpAddr::V6(_) => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, listen.port())),
    }
}

fn summary(plan: &Plan, args: &UpArgs) -> anyhow::Result<()> {
    let nodes: Vec<u32> = (1..=plan.identity.nodes).collect();
    let url = |node: &u32| format!("http://{}", reachable(plan.node_listen(*node)));
    let coordinator = |node: &u32| format!("http://{}", reachable(plan.coordinator_listen(*node)));
    let postgresql = |node: &u32| {
        let listen = plan.pg_listen(*node).map(reachable);
        listen.map(|listen| format!("postgresql://pleat@{listen}/pleat"))
    };
    if args.json {
        let nodes: Vec<_> = nodes
            .iter()
            .map(|node| json!({"node": format!("node-{node}"), "url": url(node), "coordinator": coordinator(node), "postgresql": postgresql(node), "data_dir": plan.node_dir(*node)}))
            .collect();
        return Ok(output::json(
            &json!({"cluster_id": plan.identity.cluster_id, "data_dir": plan.dir, "nodes": nodes}),
        )?);
    }
    let count = if nodes.len() == 1 { "1 node".to_string() } else { format!("{} nodes", nodes.len()) };
    output::line(&format!("Pleat is up with {count}; the data is in {}.\n", plan.dir.display()))?;
    for node in &nodes {
        let log = plan.node_dir(*node).join("log");
        output::line(&format!(
            "  node-{node}  {}  coordinator {}{}  log {}",
            url(node),
            coordinator(node),
            postgresql(node).map_or(String::new(), |url| format!("  {url}")),
            log.display()
        ))?;
    }
    let program = std::env::args().next().unwrap_or_else(|| "pleat".to_string());
    let first = url(&1);
    let option = if first == "http://127.0.0.1:8080" { String::new() } else { format!(" --url {first}") };
    let psql = postgresql(&1).map_or(String::new(), |url| format!("\n  psql {url}"));
    output::line(&format!(
        "\nTry, in another terminal:\n  {program} sql{option}\n  {program} status{option}\n  \
         curl {first}/query -H 'content-type: application/json' -d '{{\"query\": \"SELECT 1 AS one\"}}'{psql}\n\n\
         Ctrl-C stops all of it; the same command goes on where it was."
    ))?;
    Ok(())
}

/// Wait until every node has stopped; a second Ctrl-C ends them at once.
async fn stop(mut nodes: tokio::task::JoinSet<()>, now: &crate::shutdown::Trigger, seen: &mut mpsc::Receiver<Event>) {
    let mut impatient = false;
    loop {
        tokio::select! {
            ended = nodes.join_next() => if ended.is_none() { break },
            _ = tokio::signal::ctrl_c(), if !impatient => {
                impatient = true;
                now.request();
            }
            // Nobody may have to wait for us to listen.
            Some(_) = seen.recv() => {}
        }
    }
}
