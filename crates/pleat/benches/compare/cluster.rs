//! A cluster of real processes, and clients that ask it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use crate::Args;
use crate::client::Connection;
use crate::measure::{Operation, Sample, cpu_seconds, drive, sample};

/// Rows in the table.
pub const ROWS: u64 = 10_000;
/// From the port of HTTP to that of PostgreSQL's protocol.
const PG_PORT: u16 = 300;
/// How long a cluster may take to be ready.
const START_MAX: Duration = Duration::from_secs(60);

/// The same keys in the same scattered order for both.
pub fn key(number: u64) -> i64 {
    (number.wrapping_mul(7919) % ROWS) as i64
}

/// `pleat up`, stopped when dropped.
pub struct Cluster {
    up: Child,
    pub urls: Vec<String>,
    pub pids: Vec<String>,
    pub http: reqwest::Client,
    pg_port: u16,
}

impl Cluster {
    pub fn start(args: &Args, dir: &Path, nodes: u32, shards: u32) -> anyhow::Result<Cluster> {
        Cluster::launch(args.listen, dir, nodes, shards, &["--pg-listen", "off"])
    }

    /// Of PostgreSQL servers, with clients let in at [`Cluster::pg_port`]. Clusters that run at once have ports of their own.
    pub fn on_postgres(args: &Args, dir: &Path, shards: u32, ports: u16, config: &str) -> anyhow::Result<Cluster> {
        let listen = std::net::SocketAddr::new(args.listen.ip(), args.listen.port() + ports);
        std::fs::create_dir_all(dir)?;
        let file = dir.join("config.json");
        std::fs::write(&file, config)?;
        let clients = std::net::SocketAddr::new(listen.ip(), listen.port() + PG_PORT);
        let (file, clients) = (file.to_string_lossy(), clients.to_string());
        Cluster::launch(listen, dir, args.nodes, shards, &["--config", &file, "--pg-listen", &clients])
    }

    fn launch(
        listen: std::net::SocketAddr,
        dir: &Path,
        nodes: u32,
        shards: u32,
        flags: &[&str],
    ) -> anyhow::Result<Cluster> {
        let coordinator = std::net::SocketAddr::new(listen.ip(), listen.port() + 100);
        let data = dir.join("cluster");
        let mut up = Command::new(env!("CARGO_BIN_EXE_pleat"))
            .args(["up", "--json", "--nodes", &nodes.to_string(), "--shards", &shards.to_string()])
            .args(["--listen", &listen.to_string(), "--coordinator", &coordinator.to_string()])
            .args(flags)
            .arg("--data-dir")
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
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Cluster { up, urls, pids, http, pg_port: listen.port() + PG_PORT })
    }

    /// Where the first node takes PostgreSQL's clients.
    pub fn pg_port(&self) -> u16 {
        self.pg_port
    }

    /// The addresses of the shards' PostgreSQL servers.
    pub async fn servers(&self) -> anyhow::Result<Vec<std::net::SocketAddr>> {
        let shards = self.http.get(format!("{}/shards", self.urls[0])).send().await?.text().await?;
        let shards: Value = serde_json::from_str(&shards)?;
        let server = |shard: &Value| -> anyhow::Result<_> {
            Ok(shard["server"].as_str().context("a shard without a server")?.parse()?)
        };
        shards.as_array().context("no list of shards")?.iter().map(server).collect()
    }

    pub async fn post(&self, client: u64, path: &str, body: &Value) -> anyhow::Result<String> {
        let url = &self.urls[client as usize % self.urls.len()];
        let response = self.http.post(format!("{url}{path}")).json(body).send().await?;
        let (status, text) = (response.status(), response.text().await?);
        anyhow::ensure!(status.is_success(), "{text}");
        Ok(text)
    }

    /// Create a table once the shards are active, and have them stay as they are.
    pub async fn create(&self, sql: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        while let Err(error) = self.post(0, "/query", &json!({ "query": sql })).await {
            anyhow::ensure!(begun.elapsed() < START_MAX && error.to_string().contains("57P03"), error);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.keep_its_shards().await
    }

    /// From now on the autoscaler only recommends: a shard that is split while it is measured, for being measured, would make every
    /// figure one of a move.
    pub async fn keep_its_shards(&self) -> anyhow::Result<()> {
        let policy = self.http.patch(format!("{}/policy", self.urls[0])).json(&json!({ "mode": "manual" }));
        policy.send().await?.error_for_status()?;
        Ok(())
    }

    pub async fn fill(&self) -> anyhow::Result<()> {
        self.create("CREATE TABLE kv (id INTEGER PRIMARY KEY, v TEXT) SHARD BY (id)").await?;
        for start in (0..ROWS).step_by(1000) {
            let rows: Vec<Value> = (start..start + 1000).map(|id| json!([id, "x".repeat(100)])).collect();
            self.post(0, "/tables/kv/rows", &json!({"columns": ["id", "v"], "rows": rows})).await?;
        }
        Ok(())
    }

    /// With `through`, all clients ask that node, and the CPU is its alone.
    pub async fn round(
        &self,
        operation: Operation,
        operations: u64,
        clients: u64,
        through: Option<usize>,
    ) -> anyhow::Result<Sample> {
        let mut connections = Vec::new();
        for client in 0..clients {
            let node = through.unwrap_or(client as usize % self.urls.len());
            connections.push(Connection::open(&self.urls[node]).await?);
        }
        let cpu_now = || through.map_or_else(|| self.cpu(), |node| cpu_seconds(&self.pids[node]));
        let (begun, cpu) = (Instant::now(), cpu_now()?);
        let latencies = drive(connections, operations, async |connection, number| {
            let body = match operation {
                Operation::Read => {
                    format!(r#"{{"query":"SELECT v FROM kv WHERE id = ?","params":[{}]}}"#, key(number))
                }
                Operation::Write => format!(
                    r#"{{"query":"UPDATE kv SET v = ? WHERE id = ?","params":["{number:0100}",{}]}}"#,
                    key(number)
                ),
            };
            connection.ask("POST", "/query", &body).await
        })
        .await?;
        Ok(sample(latencies, begun.elapsed(), cpu_now()? - cpu))
    }

    pub fn cpu(&self) -> anyhow::Result<f64> {
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
