//! The memory of nodes that have nothing to do: resident pages, as the kernel counts them.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::Args;
use crate::cluster::{Cluster, ROWS};

/// How long they have nothing to do before they are looked at.
const REST: Duration = Duration::from_secs(10);

/// Starts a cluster, fills a table, and prints what its nodes hold when they have rested from each.
pub async fn run(args: &Args, dir: &Path) -> anyhow::Result<()> {
    let cluster = Cluster::start(args, &dir.join("idle"), args.nodes, 1)?;
    tokio::time::sleep(REST).await;
    println!("\nMemory of {} nodes, MB resident, {} s after …\n", args.nodes, REST.as_secs());
    println!("{:<24}{}", "starting", resident(&cluster)?);
    cluster.fill().await?;
    tokio::time::sleep(REST).await;
    println!("{:<24}{}", format!("loading {ROWS} rows"), resident(&cluster)?);
    Ok(())
}

fn resident(cluster: &Cluster) -> anyhow::Result<String> {
    let of = |pid: &String| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read memory (Linux only)")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
        anyhow::Ok(format!("{:>8.1}", kilobytes / 1000.0))
    };
    cluster.pids.iter().map(of).collect()
}
