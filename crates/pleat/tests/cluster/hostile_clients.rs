//! Clients of PostgreSQL shards that mean harm, or know no better: thousands that do nothing, and slow ones. What a node holds for them is measured
//! from outside. (The protocol's own traps are tried in the gateway's tests.)

use std::time::{Duration, Instant};

use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::harness::{Cluster, Options, PATIENCE};

/// Connections that do nothing, if this process may have as many files.
const IDLE: usize = 10_000;
/// With fewer, the test would show what a node holds for itself.
const IDLE_MIN: usize = 2_000;
/// What a node may hold for one of them, and for a client that does not read, in bytes.
const IDLE_BYTES_MAX: usize = 32 << 10;
const SLOW_BYTES_MAX: usize = 64 << 20;
/// Files of a node, and of this process, beside those connections.
const FILES_BESIDE: usize = 1_000;

/// The resident memory of a process, in bytes.
fn resident(pid: Pid) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// Let this process, and those that it starts, have so many files, as far as the system allows it. How many they may have.
fn files(wanted: usize) -> usize {
    let wanted = wanted as u64;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < wanted) {
        // Root may raise the upper limit, too.
        let higher = Rlimit { current: Some(wanted), maximum: maximum.map(|maximum| maximum.max(wanted)) };
        if setrlimit(Resource::Nofile, higher).is_err() {
            setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
        }
    }
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |current| usize::try_from(current).unwrap_or(usize::MAX))
}

fn query(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len() + 5).unwrap();
    [&b"Q"[..], &length.to_be_bytes(), text.as_bytes(), b"\0"].concat()
}

/// Read to the end of an answer; how many bytes it had.
async fn answered(stream: &mut TcpStream) -> usize {
    let (mut held, mut length) = (Vec::new(), 0);
    let read = async {
        loop {
            let mut piece = [0; 64 << 10];
            let read = stream.read(&mut piece).await.unwrap();
            assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&held));
            length += read;
            held.extend_from_slice(&piece[..read]);
            if held.ends_with(b"Z\0\0\0\x05I") {
                return length;
            }
            held.drain(..held.len().saturating_sub(200));
        }
    };
    timeout(PATIENCE, read).await.expect("an answer")
}

async fn connect(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let first = b"\0\x03\0\0user\0pleat\0\0";
    stream.write_all(&u32::try_from(first.len() + 4).unwrap().to_be_bytes()).await.unwrap();
    stream.write_all(first).await.unwrap();
    answered(&mut stream).await;
    stream
}

#[tokio::test]
async fn idle_and_slow_clients_cost_a_node_little() {
    // The node has its limit from here.
    let allowed = files(IDLE + FILES_BESIDE);
    let count = IDLE.min(allowed.saturating_sub(FILES_BESIDE));
    assert!(count >= IDLE_MIN, "a process may have {allowed} open files: raise the limit (`ulimit -Hn`)");
    if count < IDLE {
        println!("{count} idle connections instead of {IDLE}: a process may have {allowed} open files");
    }
    let config = json!({ "engine": "postgres", "limits": { "connections": IDLE + 100 } });
    let cluster = Cluster::start(Options { nodes: 1, shards: 2, config, ..Options::default() }).await;
    let (port, pid) = (cluster.pg_port(1), cluster.pid_of(1).unwrap());
    let mut other = connect(port).await;
    for text in [
        "CREATE TABLE t (id int PRIMARY KEY, name text) SHARD BY (id)",
        "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')",
    ] {
        other.write_all(&query(text)).await.unwrap();
        answered(&mut other).await;
    }

    let (before, begun_at) = (resident(pid), Instant::now());
    let mut idle = Vec::with_capacity(count);
    for number in 0..count {
        let mut stream = connect(port).await;
        // Some have had a server's connection before.
        if number % 10 == 0 {
            stream.write_all(&query("SELECT name FROM t WHERE id = 1")).await.unwrap();
            answered(&mut stream).await;
        }
        idle.push(stream);
    }
    let each = resident(pid).saturating_sub(before) / count;
    println!("{count} idle connections in {:.1?}: a node holds {each} bytes for each", begun_at.elapsed());
    assert!(each < IDLE_BYTES_MAX, "{each} bytes\n{}", cluster.tail());
    other.write_all(&query("SELECT count(*) FROM t")).await.unwrap();
    answered(&mut other).await;
    drop(idle);

    // 500 MB for each of those who read nothing: of one server, of each server, and as a COPY. (That they are given up
    // after a while is the gateway's test.)
    let before = resident(pid);
    let mut slow = Vec::new();
    for text in [
        "SELECT repeat('x', 1000000) FROM generate_series(1, 500)",
        "SELECT id, repeat('x', 1000000) FROM t, generate_series(1, 125)",
        "COPY (SELECT id, repeat('x', 1000000) FROM t, generate_series(1, 125)) TO STDOUT",
    ] {
        let mut client = connect(port).await;
        client.write_all(&query(text)).await.unwrap();
        slow.push(client);
    }
    let (asked, mut most) = (Instant::now(), 0);
    while asked.elapsed() < Duration::from_secs(4) {
        sleep(Duration::from_millis(50)).await;
        most = most.max(resident(pid).saturating_sub(before));
    }
    println!(
        "{} clients that read nothing of 500 MB each: a node holds {} kB for them at most",
        slow.len(),
        most >> 10
    );
    assert!(most < SLOW_BYTES_MAX, "{most} bytes\n{}", cluster.tail());
    drop(slow);
    // Who reads at last gets all of it.
    other.write_all(&query("SELECT id, repeat('x', 1000000) FROM t, generate_series(1, 10)")).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert!(answered(&mut other).await > 40_000_000);
}
