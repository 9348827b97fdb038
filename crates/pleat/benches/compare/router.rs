//! What a keyed read costs the node that routes it, when the shard is elsewhere.
//!
//! One node more than the shard has replicas, so that one has none and can only route. All clients ask that one; the CPU is its
//! process's, in user and kernel together: HTTP in, the plan, the way to the shard's leader and back, JSON out. An
//! answer that asks nobody (`/health`) shows beside it what HTTP alone costs on this machine.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use serde_json::Value;

use crate::Args;
use crate::client::Connection;
use crate::cluster::Cluster;
use crate::measure::{Operation, Sample, cpu_seconds, drive, median, sample};

/// Clients at the same time.
const CLIENTS: [u64; 4] = [1, 8, 32, 128];
/// Reads of a round, so that the clock's hundredths of a second are small beside their CPU.
const READS: u64 = 20_000;

/// Runs the reads and prints what they cost.
pub async fn run(args: &Args, dir: &Path) -> anyhow::Result<()> {
    let cluster = Cluster::start(args, &dir.join("router"), args.nodes + 1, 1)?;
    cluster.fill().await?;
    let router = router_of(&cluster).await?;
    println!("\nKeyed reads through a node without a replica, {READS} a round, median of {} rounds\n", args.rounds());
    println!("{:<24}{:>10}{:>18}{:>14}{:>10}{:>10}", "", "per s", "router's CPU µs", "beyond HTTP", "p50 ms", "p99 ms");
    for clients in CLIENTS {
        let (mut http, mut reads) = (Vec::new(), Vec::new());
        for _ in 0..args.rounds() {
            http.push(health(&cluster, router, clients).await?);
            reads.push(cluster.round(Operation::Read, READS, clients, Some(router)).await?);
        }
        let plural = if clients == 1 { "" } else { "s" };
        let (http, reads) = (median(http), median(reads));
        show(&format!("HTTP, {clients} client{plural}"), &http, None);
        show(&format!("read, {clients} client{plural}"), &reads, Some(reads.cpu_micros - http.cpu_micros));
    }
    Ok(())
}

fn show(name: &str, sample: &Sample, beyond_http: Option<f64>) {
    let beyond_http = beyond_http.map(|micros| format!("{micros:.0}")).unwrap_or_default();
    println!(
        "{name:<24}{:>10.0}{:>18.0}{beyond_http:>14}{:>10.2}{:>10.2}",
        sample.per_second, sample.cpu_micros, sample.p50_ms, sample.p99_ms
    );
}

/// The node that holds no replica, counted from 0.
async fn router_of(cluster: &Cluster) -> anyhow::Result<usize> {
    let nodes = cluster.http.get(format!("{}/cluster/list-nodes", cluster.urls[0])).send().await?;
    let nodes: Value = serde_json::from_str(&nodes.text().await?)?;
    let nodes = nodes["nodes"].as_array().context("no list of nodes")?;
    let none = |node: &&Value| node["shards"].as_array().is_some_and(Vec::is_empty);
    let router = nodes.iter().find(none).context("every node has a replica")?;
    Ok(router["raft_id"].as_u64().context("a node without a number")? as usize - 1)
}

async fn health(cluster: &Cluster, node: usize, clients: u64) -> anyhow::Result<Sample> {
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(Connection::open(&cluster.urls[node]).await?);
    }
    let (begun, cpu) = (Instant::now(), cpu_seconds(&cluster.pids[node])?);
    let latencies = drive(connections, READS, async |connection, _| connection.ask("GET", "/health", "").await).await?;
    Ok(sample(latencies, begun.elapsed(), cpu_seconds(&cluster.pids[node])? - cpu))
}
