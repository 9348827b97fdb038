//! Durable writes and strong reads of one key, against three nodes of etcd on the same disk.
//!
//! etcd does less (a key and a value, no SQL) by the same means: three nodes, a Raft log that a majority has fsynced before the answer. It is
//! asked over gRPC, its own protocol, each client with a connection of its own; the cluster over HTTP and JSON. Clients of both ask
//! all three nodes in turn. `etcd-server` comes from Debian's package; where it is missing this part fails and says so.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;

use crate::Args;
use crate::cluster::{Cluster, ROWS, key};
use crate::measure::{Operation, Sample, cpu_seconds, drive, fsyncs, median, sample};

/// Nodes of both.
const NODES: u32 = 3;
/// Writers at the same time.
const WRITERS: [u64; 3] = [1, 16, 64];
/// Readers at the same time.
const READERS: [u64; 1] = [16];
/// Operations of a round for each client, and at least.
const EACH: u64 = 250;
const AT_LEAST: u64 = 1_500;
/// How long etcd may take to have a leader.
const START_MAX: Duration = Duration::from_secs(30);

/// Runs the rounds and prints them.
pub async fn run(args: &Args, dir: &Path) -> anyhow::Result<()> {
    let etcd = Etcd::start(args, dir).await?;
    let cluster = Cluster::start(args, &dir.join("pleat"), NODES, 1)?;
    cluster.fill().await?;
    println!("\nThree nodes each on one disk, median of {} rounds\n", args.rounds());
    println!(
        "{:<24}{:>10}{:>10}{:>14}{:>10}{:>10}{:>10}",
        "", "per s", "ratio", "CPU µs each", "ratio", "p50 ms", "p99 ms"
    );
    for (operation, name, clients) in
        [(Operation::Write, "write", &WRITERS[..]), (Operation::Read, "strong read", &READERS[..])]
    {
        for clients in clients {
            let operations = (clients * EACH).max(AT_LEAST);
            let (mut disk, mut theirs, mut ours) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..args.rounds() {
                theirs.push(etcd.round(operation, operations, *clients).await?);
                ours.push(cluster.round(operation, operations, *clients, None).await?);
                disk.push(fsyncs(dir, AT_LEAST)?);
            }
            let base = median(theirs);
            if operation == Operation::Write {
                show("fsync alone", &median(disk), &base);
            }
            show(&format!("{name}, {clients}, etcd"), &base, &base);
            show(&format!("{name}, {clients}, Pleat"), &median(ours), &base);
        }
    }
    Ok(())
}

fn show(name: &str, sample: &Sample, base: &Sample) {
    println!(
        "{name:<24}{:>10.0}{:>10.2}{:>14.0}{:>10.2}{:>10.2}{:>10.2}",
        sample.per_second,
        sample.per_second / base.per_second,
        sample.cpu_micros,
        sample.cpu_micros / base.cpu_micros,
        sample.p50_ms,
        sample.p99_ms
    );
}

/// Three processes, ended when dropped.
struct Etcd {
    nodes: Vec<Child>,
    /// Where clients ask.
    addresses: Vec<String>,
}

impl Etcd {
    async fn start(args: &Args, dir: &Path) -> anyhow::Result<Etcd> {
        let address = |node: u32, offset: u16| format!("127.0.0.1:{}", args.listen.port() + 200 + offset + node as u16);
        let peers: Vec<String> = (1..=NODES).map(|node| format!("n{node}=http://{}", address(node, 10))).collect();
        let mut etcd = Etcd { nodes: Vec::new(), addresses: (1..=NODES).map(|node| address(node, 0)).collect() };
        for node in 1..=NODES {
            let (client, peer) = (format!("http://{}", address(node, 0)), format!("http://{}", address(node, 10)));
            let started = Command::new("etcd")
                .args(["--name", &format!("n{node}"), "--data-dir"])
                .arg(dir.join(format!("etcd-{node}")))
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &peers.join(","), "--initial-cluster-state", "new"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            etcd.nodes.push(started.context("start etcd: install Debian's package etcd-server")?);
        }
        let begun = Instant::now();
        while let Err(error) = etcd.ready().await {
            anyhow::ensure!(begun.elapsed() < START_MAX, "etcd does not start: {error:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(etcd)
    }

    /// Every node takes writes. The keys are then there for the reads.
    async fn ready(&self) -> anyhow::Result<()> {
        for address in &self.addresses {
            Connection::open(address).await?.put(b"ready", b"").await?;
        }
        let mut one = Connection::open(&self.addresses[0]).await?;
        for number in (0..ROWS).step_by(10) {
            one.put(&name(number), &[b'x'; 100]).await?;
        }
        Ok(())
    }

    async fn round(&self, operation: Operation, operations: u64, clients: u64) -> anyhow::Result<Sample> {
        let mut connections = Vec::new();
        for client in 0..clients {
            connections.push(Connection::open(&self.addresses[client as usize % self.addresses.len()]).await?);
        }
        let (begun, cpu) = (Instant::now(), self.cpu()?);
        let latencies = drive(connections, operations, async |connection, number| match operation {
            Operation::Read => connection.range(&name(number * 10)).await,
            Operation::Write => connection.put(&name(number), format!("{number:0100}").as_bytes()).await,
        })
        .await?;
        Ok(sample(latencies, begun.elapsed(), self.cpu()? - cpu))
    }

    fn cpu(&self) -> anyhow::Result<f64> {
        self.nodes.iter().map(|node| cpu_seconds(&node.id().to_string())).sum()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

fn name(number: u64) -> Vec<u8> {
    format!("{:08}", key(number)).into_bytes()
}

/// One client's connection: gRPC over HTTP/2.
struct Connection {
    requests: SendRequest<Bytes>,
    address: String,
}

impl Connection {
    async fn open(address: &str) -> anyhow::Result<Connection> {
        let stream = tokio::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (requests, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        Ok(Connection { requests, address: address.to_owned() })
    }

    /// `PutRequest`: the key is field 1, the value field 2.
    async fn put(&mut self, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
        self.call("/etcdserverpb.KV/Put", &[(1, key), (2, value)]).await.map(drop)
    }

    /// `RangeRequest`: the key is field 1. The answer holds the pair, so it is longer than one without.
    async fn range(&mut self, key: &[u8]) -> anyhow::Result<()> {
        let answer = self.call("/etcdserverpb.KV/Range", &[(1, key)]).await?;
        anyhow::ensure!(answer.windows(key.len()).any(|part| part == key), "the key is not there");
        Ok(())
    }

    /// One message of byte fields there, and one message back.
    async fn call(&mut self, method: &str, fields: &[(u8, &[u8])]) -> anyhow::Result<Bytes> {
        let mut message = BytesMut::new();
        message.put_slice(&[0; 5]);
        for (number, bytes) in fields {
            anyhow::ensure!(bytes.len() < 128, "the length is one byte here");
            message.put_slice(&[number << 3 | 2, bytes.len() as u8]);
            message.put_slice(bytes);
        }
        let length = message.len() as u32 - 5;
        message[1..5].copy_from_slice(&length.to_be_bytes());
        let request = http::Request::post(format!("http://{}{method}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        std::future::poll_fn(|context| self.requests.poll_ready(context)).await?;
        let (response, mut body) = self.requests.send_request(request, false)?;
        body.send_data(message.freeze(), true)?;
        let mut answer = response.await?;
        let mut text = BytesMut::new();
        while let Some(part) = answer.body_mut().data().await {
            let part = part?;
            answer.body_mut().flow_control().release_capacity(part.len())?;
            text.put_slice(&part);
        }
        let trailers = answer.body_mut().trailers().await?.unwrap_or_default();
        let status = trailers.get("grpc-status").or_else(|| answer.headers().get("grpc-status"));
        anyhow::ensure!(status.is_some_and(|status| status == "0"), "etcd refuses: {trailers:?}");
        Ok(text.freeze())
    }
}
