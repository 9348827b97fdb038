//! Clusters of PostgreSQL servers, against the bare server and against proxies that stand before it.
//!
//! `pgbench -S`, from Debian's package, asks for one account after the other: the server itself, through PgBouncer (in transaction mode) and HAProxy (which
//! passes bytes on and reads none), and through Pleat with one shard and with two. All but the last end at the same server, Pleat's own
//! of the cluster with one shard, so that they differ by what stands between. The CPU is that of the proxy's process, or of the node
//! that is asked. PgBouncer 1.18 knows no prepared statements in transaction mode, and says so.

mod peers;
mod rows;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::Args;
use crate::cluster::Cluster;
use crate::measure::cpu_seconds;
use peers::Peer;

/// How pgbench sends a statement.
const MODES: [&str; 3] = ["simple", "extended", "prepared"];
/// Clients at the same time.
const CLIENTS: [u32; 3] = [8, 32, 64];
/// Accounts in hundreds of thousands.
const SCALE: u64 = 10;
/// The rows of `pgbench_accounts` for each unit of scale.
const ACCOUNTS: u64 = 100_000;
/// Repetitions of each cell, unless `--rounds` says otherwise.
const ROUNDS: usize = 5;
/// What pgbench's tables are divided by.
const KEYS: &str = r#"{"engine":"postgres","table_shard_keys":{"pgbench_accounts":"aid","pgbench_tellers":"tid","pgbench_branches":"bid","pgbench_history":"aid"}}"#;

/// Runs the cells and prints them, then what concerns many rows.
pub async fn run(args: &Args, dir: &Path) -> anyhow::Result<()> {
    let one = filled(args, &dir.join("one"), 1, 0).await?;
    let two = filled(args, &dir.join("two"), 2, 20).await?;
    let server = one.servers().await?.into_iter().next().context("a shard without a server")?;
    let peers = [
        Peer::server(server),
        Peer::pgbouncer(&dir.join("pgbouncer"), args.listen.port() + 310, server)?,
        Peer::haproxy(&dir.join("haproxy"), args.listen.port() + 311, server)?,
        Peer::pleat("Pleat", &one)?,
        Peer::pleat("Pleat, 2 shards", &two)?,
    ];
    for peer in &peers {
        peer.ready(Duration::from_secs(30)).await?;
    }
    let rounds = args.rounds.unwrap_or(ROUNDS);
    println!("\npgbench -S, {rounds} repetitions of {} s in turn: medians, and the least and the most\n", args.seconds);
    println!("{:<34}{:>10}{:>8}{:>16}{:>14}{:>12}", "", "per s", "ratio", "", "CPU µs each", "");
    for mode in MODES {
        for clients in CLIENTS {
            cell(&peers, mode, clients, rounds, args.seconds)?;
        }
    }
    drop(peers);
    let four = filled(args, &dir.join("four"), 4, 40).await?;
    rows::gathered(args, dir, server, four.pg_port())?;
    drop(four);
    rows::moved(dir, server, &two).await
}

/// A cluster with pgbench's tables in it.
async fn filled(args: &Args, dir: &Path, shards: u32, ports: u16) -> anyhow::Result<Cluster> {
    let cluster = Cluster::on_postgres(args, dir, shards, ports, KEYS)?;
    Peer::pleat("Pleat", &cluster)?.ready(Duration::from_secs(120)).await?;
    cluster.keep_its_shards().await?;
    let port = cluster.pg_port();
    said(pgbench(port).args(["-i", "-q", "-s", &SCALE.to_string()]))?;
    Ok(cluster)
}

/// One way of sending with so many clients: each of the peers in turn, again and again.
fn cell(peers: &[Peer], mode: &str, clients: u32, rounds: usize, seconds: u32) -> anyhow::Result<()> {
    let mut rates = vec![Vec::new(); peers.len()];
    let mut costs = vec![Vec::new(); peers.len()];
    for _ in 0..rounds {
        for (peer, (rates, costs)) in peers.iter().zip(rates.iter_mut().zip(&mut costs)) {
            let before = peer.cpu()?;
            let Some(run) = Run::of(peer.port, mode, clients, seconds)? else { continue };
            rates.push(run.per_second);
            costs.push((peer.cpu()? - before) * 1e6 / run.transactions);
        }
    }
    let direct = Spread::of(&rates[0]).context("the server itself fails")?.median;
    for (number, (peer, (rates, costs))) in peers.iter().zip(rates.iter().zip(&costs)).enumerate() {
        let name = format!("{mode}, {clients}, {}", peer.name);
        let (Some(rate), Some(cost)) = (Spread::of(rates), Spread::of(costs)) else {
            println!("{name:<34}{:>10}", "fails");
            continue;
        };
        let ratio = |rate: f64| format!("{:.2}", rate / direct);
        let spread = format!("{} to {}", ratio(rate.least), ratio(rate.most));
        print!("{name:<34}{:>10.0}{:>8}{spread:>16}", rate.median, ratio(rate.median));
        if number > 0 {
            print!("{:>14.1}{:>12}", cost.median, format!("{:.0} to {:.0}", cost.least, cost.most));
        }
        println!();
    }
    Ok(())
}

/// What pgbench says of a run.
struct Run {
    per_second: f64,
    transactions: f64,
}

impl Run {
    /// None where a transaction failed.
    fn of(port: u16, mode: &str, clients: u32, seconds: u32) -> anyhow::Result<Option<Run>> {
        let (clients, seconds) = (clients.to_string(), seconds.to_string());
        let run = pgbench(port)
            .args(["-n", "-S", "-M", mode, "-s", &SCALE.to_string()])
            .args(["-c", &clients, "-j", "1", "-T", &seconds])
            .output()
            .context("run pgbench: install Debian's package postgresql-15")?;
        let text = String::from_utf8_lossy(&run.stdout);
        let after = |words: &str| {
            let rest = text.split_once(words)?.1;
            rest.trim_start().split(|c: char| c != '.' && !c.is_ascii_digit()).next()?.parse::<f64>().ok()
        };
        let found = after("tps =").zip(after("actually processed:"));
        let whole = run.status.success() && text.contains("number of failed transactions: 0 ");
        Ok(found.filter(|_| whole).map(|(per_second, transactions)| Run { per_second, transactions }))
    }
}

/// The middle, and how far others are from it.
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Option<Spread> {
        let mut values = values.to_vec();
        values.sort_unstable_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        Some(Spread { median: values[values.len() / 2], least, most })
    }
}

fn pgbench(port: u16) -> Command {
    to("pgbench", port)
}

/// A program of PostgreSQL's, told which server to ask.
fn to(program: &str, port: u16) -> Command {
    let mut command = Command::new(program);
    command
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", port.to_string())
        .env("PGUSER", "pleat")
        .env("PGDATABASE", "pleat");
    command
}

/// What a program says, or why it failed.
fn said(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done = command.output().with_context(|| format!("run {name}: install Debian's package postgresql-15"))?;
    anyhow::ensure!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
