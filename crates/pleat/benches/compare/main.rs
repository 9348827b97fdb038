//! A cluster against bare SQLite, in one run on one machine: `cargo xtask bench`.
//!
//! Both do the same point reads and durable point writes on the same table. SQLite is called in this process, with
//! prepared statements, WAL and an fsync for each commit; the cluster is asked over HTTP, each write replicated and
//! fsynced on a majority of its nodes (all on this machine and its one disk). The rounds alternate, and medians are
//! shown, so that what else the machine does touches both. CPU is that of the nodes' processes, or of this thread for
//! SQLite, and does not contain the client's.
//!
//! What a durable write costs is the disk's business before anyone else's. So how often the directory's file system
//! can fsync is measured beside the writes, in the same rounds; SQLite can't be faster than that if it keeps its promise,
//! and each of its writes must have changed a row, in WAL, with `synchronous=FULL`, or the run stops. A temporary
//! directory in memory has no disk: `--dir` names another.
//!
//! Then reads of all rows of a table in three shards are compared, see [`scatter`], and what a router alone costs is measured, see
//! [`router`].

mod router;
mod scatter;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use serde_json::{Value, json};

/// Rows in the table.
const ROWS: u64 = 10_000;
/// How long a cluster may take to be ready.
const START_MAX: Duration = Duration::from_secs(60);
/// The unit of CPU times in `/proc`, which Linux fixes for programs.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Parser)]
#[command(name = "cargo xtask bench --", about = "A cluster against bare SQLite")]
struct Args {
    /// Nodes of the cluster
    #[arg(long, default_value_t = 3)]
    nodes: u32,
    /// Operations of each kind in a round
    #[arg(long, default_value_t = 3000)]
    operations: u64,
    /// Clients at the same time
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    clients: Vec<u64>,
    /// Rounds, of which the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Rounds of the reads of all rows, of which the median counts
    #[arg(long, default_value_t = 15)]
    scatters: usize,
    /// Only the reads of all rows
    #[arg(long, conflicts_with = "only_router")]
    only_scatters: bool,
    /// Only what a router costs
    #[arg(long)]
    only_router: bool,
    /// Where the data set is that they read [default: where `cargo xtask test` puts it]
    #[arg(long)]
    data: Option<std::path::PathBuf>,
    /// Where the databases are made, on the disk to be measured [default: the system's temporary directory]
    #[arg(long)]
    dir: Option<std::path::PathBuf>,
    /// Where node 1 listens
    #[arg(long, default_value = "127.0.0.1:27080")]
    listen: std::net::SocketAddr,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Operation {
    Read,
    Write,
}

/// What a round gave.
#[derive(Clone, Copy)]
struct Sample {
    per_second: f64,
    cpu_micros: f64,
    p50_ms: f64,
    p99_ms: f64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let dir = match &args.dir {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if !args.only_scatters && !args.only_router {
        points(&args, dir.path(), &runtime)?;
    }
    if !args.only_router {
        runtime.block_on(scatter::run(&args, dir.path()))?;
    }
    if !args.only_scatters {
        runtime.block_on(router::run(&args, dir.path()))?;
    }
    Ok(())
}

/// Point reads and point writes.
fn points(args: &Args, dir: &Path, runtime: &tokio::runtime::Runtime) -> anyhow::Result<()> {
    let bare = Bare::new(dir)?;
    let cluster = Cluster::start(args, dir, args.nodes, 1)?;
    runtime.block_on(cluster.fill())?;
    println!("{} nodes, {} operations a round, median of {} rounds\n", args.nodes, args.operations, args.rounds);
    println!("{:<24}{:>10}{:>10}{:>14}{:>10}{:>10}", "", "per s", "ratio", "CPU µs each", "p50 ms", "p99 ms");
    for (operation, name) in [(Operation::Read, "read"), (Operation::Write, "write")] {
        let mut alone = Vec::new();
        let mut disk = Vec::new();
        let mut with: Vec<Vec<Sample>> = vec![Vec::new(); args.clients.len()];
        for _ in 0..args.rounds {
            alone.push(bare.round(operation, args.operations)?);
            if operation == Operation::Write {
                disk.push(fsyncs(dir, args.operations)?);
            }
            for (samples, clients) in with.iter_mut().zip(&args.clients) {
                samples.push(runtime.block_on(cluster.round(operation, args.operations, *clients, None))?);
            }
        }
        let alone = median(alone);
        if !disk.is_empty() {
            show("fsync alone", &median(disk), &alone);
        }
        show(&format!("{name}, SQLite"), &alone, &alone);
        for (samples, clients) in with.into_iter().zip(&args.clients) {
            let plural = if *clients == 1 { "" } else { "s" };
            show(&format!("{name}, {clients} client{plural}"), &median(samples), &alone);
        }
    }
    Ok(())
}

fn show(name: &str, sample: &Sample, base: &Sample) {
    println!(
        "{name:<24}{:>10.0}{:>10.3}{:>14.0}{:>10.2}{:>10.2}",
        sample.per_second,
        sample.per_second / base.per_second,
        sample.cpu_micros,
        sample.p50_ms,
        sample.p99_ms
    );
}

fn median(mut samples: Vec<Sample>) -> Sample {
    samples.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    samples[samples.len() / 2]
}

fn sample(mut latencies: Vec<Duration>, took: Duration, cpu_seconds: f64) -> Sample {
    latencies.sort_unstable();
    let count = latencies.len();
    let at = |part: f64| latencies[((count - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    Sample {
        per_second: count as f64 / took.as_secs_f64(),
        cpu_micros: cpu_seconds * 1e6 / count as f64,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
    }
}

/// How often this file system makes 4 KiB durable, one after the other.
fn fsyncs(dir: &Path, operations: u64) -> anyhow::Result<Sample> {
    use std::io::Write;
    let mut file = std::fs::File::create(dir.join("fsync"))?;
    let mut latencies = Vec::with_capacity(operations as usize);
    let (begun, cpu) = (Instant::now(), cpu_seconds("self")?);
    for _ in 0..operations {
        let one = Instant::now();
        file.write_all(&[1; 4096])?;
        file.sync_data()?;
        latencies.push(one.elapsed());
    }
    Ok(sample(latencies, begun.elapsed(), cpu_seconds("self")? - cpu))
}

/// The same keys in the same scattered order for both.
fn key(number: u64) -> i64 {
    (number.wrapping_mul(7919) % ROWS) as i64
}

/// CPU seconds of a process or, with `self`, of this one.
fn cpu_seconds(pid: &str) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read CPU times (Linux only)")?;
    // The second field, the name, may hold spaces; it ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(11) + ticks(12)) / TICKS_PER_SECOND)
}

struct Bare {
    connection: rusqlite::Connection,
}

impl Bare {
    fn new(dir: &Path) -> anyhow::Result<Bare> {
        let connection = rusqlite::Connection::open(dir.join("bare.db"))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        let synchronous: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0))?;
        anyhow::ensure!((mode.as_str(), synchronous) == ("wal", 2), "SQLite runs {mode}, synchronous={synchronous}");
        connection.execute_batch("CREATE TABLE kv (id INTEGER PRIMARY KEY, v TEXT); BEGIN")?;
        for id in 0..ROWS {
            connection.execute("INSERT INTO kv VALUES (?, ?)", (id as i64, "x".repeat(100)))?;
        }
        connection.execute_batch("COMMIT")?;
        Ok(Bare { connection })
    }

    fn round(&self, operation: Operation, operations: u64) -> anyhow::Result<Sample> {
        let mut read = self.connection.prepare("SELECT v FROM kv WHERE id = ?")?;
        let mut write = self.connection.prepare("UPDATE kv SET v = ? WHERE id = ?")?;
        // Reads take microseconds, and CPU is counted in hundredths of a second.
        let operations = if operation == Operation::Read { operations * 50 } else { operations };
        anyhow::ensure!(self.connection.is_autocommit(), "a transaction is open: writes would not be durable");
        let mut latencies = Vec::with_capacity(operations as usize);
        let (begun, cpu) = (Instant::now(), cpu_seconds("self")?);
        for number in 0..operations {
            let one = Instant::now();
            match operation {
                Operation::Read => drop(read.query_row([key(number)], |row| row.get::<_, String>(0))?),
                Operation::Write => {
                    let changed = write.execute((format!("{number:0100}"), key(number)))?;
                    anyhow::ensure!(changed == 1, "a write changed {changed} rows");
                }
            }
            latencies.push(one.elapsed());
        }
        Ok(sample(latencies, begun.elapsed(), cpu_seconds("self")? - cpu))
    }
}

/// `pleat up`, stopped when dropped.
struct Cluster {
    up: Child,
    urls: Vec<String>,
    pids: Vec<String>,
    http: reqwest::Client,
}

impl Cluster {
    fn start(args: &Args, dir: &Path, nodes: u32, shards: u32) -> anyhow::Result<Cluster> {
        let coordinator = std::net::SocketAddr::new(args.listen.ip(), args.listen.port() + 100);
        let data = dir.join("cluster");
        let mut up = Command::new(env!("CARGO_BIN_EXE_pleat"))
            .args([
                "up",
                "--json",
                "--nodes",
                &nodes.to_string(),
                "--shards",
                &shards.to_string(),
                "--listen",
                &args.listen.to_string(),
            ])
            .args(["--coordinator", &coordinator.to_string(), "--data-dir"])
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(up.stdout.take().context("no output")?).read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line).context("the cluster did not start")?;
        let listed = ready["nodes"].as_array().cloned().unwrap_or_default();
        let urls = listed.iter().map(|node| node["url"].as_str().unwrap_or_default().to_string()).collect();
        let pid = |node: u32| std::fs::read_to_string(data.join(format!("node-{node}/pid")));
        let pids = (1..=nodes).map(|node| pid(node).map(|pid| pid.trim().to_string())).collect::<Result<_, _>>()?;
        Ok(Cluster { up, urls, pids, http: reqwest::Client::builder().no_proxy().build()? })
    }

    async fn post(&self, client: u64, path: &str, body: &Value) -> anyhow::Result<String> {
        let url = &self.urls[client as usize % self.urls.len()];
        let response = self.http.post(format!("{url}{path}")).json(body).send().await?;
        let (status, text) = (response.status(), response.text().await?);
        anyhow::ensure!(status.is_success(), "{text}");
        Ok(text)
    }

    /// Create a table once the shards are active.
    async fn create(&self, sql: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        while let Err(error) = self.post(0, "/query", &json!({ "query": sql })).await {
            anyhow::ensure!(begun.elapsed() < START_MAX && error.to_string().contains("57P03"), error);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    async fn fill(&self) -> anyhow::Result<()> {
        self.create("CREATE TABLE kv (id INTEGER PRIMARY KEY, v TEXT) SHARD BY (id)").await?;
        for start in (0..ROWS).step_by(1000) {
            let rows: Vec<Value> = (start..start + 1000).map(|id| json!([id, "x".repeat(100)])).collect();
            self.post(0, "/tables/kv/rows", &json!({"columns": ["id", "v"], "rows": rows})).await?;
        }
        Ok(())
    }

    /// With `through`, all clients ask that node, and the CPU is its alone.
    async fn round(
        &self,
        operation: Operation,
        operations: u64,
        clients: u64,
        through: Option<usize>,
    ) -> anyhow::Result<Sample> {
        let next = Arc::new(AtomicU64::new(0));
        let cpu_now = || through.map_or_else(|| self.cpu(), |node| cpu_seconds(&self.pids[node]));
        let (begun, cpu) = (Instant::now(), cpu_now()?);
        let run = |client: u64| {
            let next = next.clone();
            async move {
                let mut latencies = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= operations {
                        return anyhow::Ok(latencies);
                    }
                    let body = match operation {
                        Operation::Read => json!({"query": "SELECT v FROM kv WHERE id = ?", "params": [key(number)]}),
                        Operation::Write => {
                            json!({"query": "UPDATE kv SET v = ? WHERE id = ?", "params": [format!("{number:0100}"), key(number)]})
                        }
                    };
                    let one = Instant::now();
                    self.post(through.map_or(client, |node| node as u64), "/query", &body).await?;
                    latencies.push(one.elapsed());
                }
            }
        };
        let latencies = futures::future::try_join_all((0..clients).map(run)).await?.concat();
        Ok(sample(latencies, begun.elapsed(), cpu_now()? - cpu))
    }

    fn cpu(&self) -> anyhow::Result<f64> {
        self.pids.iter().map(|pid| cpu_seconds(pid)).sum()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.up.id()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.up.wait();
    }
}
