//! Disks that are full, and disks that fail, while writers write.
//!
//! Full disks are small ones of memory (tmpfs) that each node gets in a mount namespace of the cluster's own, and that a file
//! beside the node's fills. Failures are injected by `strace` into the system calls of a running node.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::faults::{Load, check};
use crate::harness::{Cluster, Options, PATIENCE, answer};

/// The exit code of a node whose disk failed.
const DISK_FAILED: &str = "exit code 74";

/// What a node keeps back of its disk, in bytes.
const RESERVE: u64 = 16 << 20;

/// A file beside a node's own that takes all the room. Removed when dropped.
struct Filler {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    greedy: Option<std::thread::JoinHandle<()>>,
}

impl Filler {
    /// Takes all that is free now.
    fn fill(cluster: &Cluster, node: u16) -> Self {
        let path = cluster.node_dir(node).join("somebody-elses");
        take_all(&mut std::fs::File::create(&path).unwrap());
        Self { path, stop: Arc::default(), greedy: None }
    }

    /// Takes what becomes free, too, until it is dropped.
    fn greedily(mut self) -> Self {
        let mut file = std::fs::File::options().append(true).open(&self.path).unwrap();
        let stop = self.stop.clone();
        self.greedy = Some(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                take_all(&mut file);
                std::thread::sleep(Duration::from_millis(1));
            }
        }));
        self
    }
}

/// Until the first write that is not taken whole: then no byte is left, and what a node gives up after that is its own.
fn take_all(file: &mut std::fs::File) {
    let chunk = vec![7; 1 << 20];
    while file.write(&chunk).is_ok_and(|taken| taken == chunk.len()) {}
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.greedy.take().into_iter().for_each(|thread| thread.join().unwrap());
        std::fs::remove_file(&self.path).unwrap();
    }
}

async fn wait_for_health(cluster: &Cluster, node: u16, status: &str) -> Value {
    let begun = Instant::now();
    loop {
        let health = answer(cluster.http.get(format!("{}/health", cluster.url(node))).send().await).await;
        match health {
            Ok(health) if health["status"] == status => return health,
            other => assert!(begun.elapsed() < PATIENCE, "node-{node} is not {status}: {other:?}\n{}", cluster.tail()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The rows that a node's own replicas have, as old as they may be.
async fn rows_on(cluster: &Cluster, node: u16) -> usize {
    let body = json!({ "query": "SELECT count(*) AS n FROM t", "consistency": "eventual" });
    let answer = cluster.post(node, "/query", &body).await;
    answer.unwrap_or_else(|refused| panic!("{refused:?}\n{}", cluster.tail()))["data"][0]["n"].as_u64().unwrap()
        as usize
}

async fn wait_for_rows_on(cluster: &Cluster, node: u16, rows: usize) {
    let begun = Instant::now();
    while rows_on(cluster, node).await != rows {
        assert!(begun.elapsed() < PATIENCE, "node-{node} does not catch up\n{}", cluster.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_writes_and_loses_none_and_they_go_on_when_there_is_room() {
    let config = json!({ "scaling_mode": "manual", "limits": { "disk_reserve_bytes": RESERVE } });
    let cluster = Cluster::start(Options { shards: 2, config, disk_mib: Some(160), ..Options::default() }).await;
    let cluster = Arc::new(cluster);
    cluster.query("CREATE TABLE t (id INTEGER PRIMARY KEY, writer INTEGER) SHARD BY (id)").await;
    let load = Load::start(&cluster);
    load.progress(200).await;

    // One of three, where somebody takes every byte as soon as it is free, also what the node gives up: the others take over what it leads,
    // and writes go on.
    let full = cluster.leader(Some("shard-1")).await;
    let process = cluster.pid_of(full);
    let filler = Filler::fill(&cluster, full).greedily();
    let health = wait_for_health(&cluster, full, "read_only").await;
    let reason = health["reasons"][0].as_str().unwrap();
    assert!(reason.contains("disk") && reason.contains(&format!("node-{full}")) && reason.contains("full"), "{reason}");
    let gap = load.progress(300).await;
    println!("until the next 300 writes after a leader's disk was full: {gap:?}");
    for group in [Some("shard-1"), Some("shard-2"), None] {
        let begun = Instant::now();
        while cluster.leader(group).await == full {
            assert!(begun.elapsed() < PATIENCE, "node-{full} still leads {group:?}\n{}", cluster.tail());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert!(rows_on(&cluster, full).await > 0, "it still reads");
    drop(filler);
    wait_for_health(&cluster, full, "healthy").await;
    assert_eq!(cluster.pid_of(full), process, "it had no need to start again\n{}", cluster.tail());
    load.progress(100).await;

    // All: writes are refused, and say why; reads are answered.
    let processes = [1, 2, 3].map(|node| cluster.pid_of(node));
    let fillers = [1, 2, 3].map(|node| Filler::fill(&cluster, node));
    for node in 1..=3 {
        wait_for_health(&cluster, node, "read_only").await;
    }
    let begun = Instant::now();
    let refused = loop {
        let body = json!({ "query": "INSERT INTO t VALUES (-1, 0)", "idempotency_key": "full" });
        match cluster.post(1, "/query", &body).await {
            Err(refused) if refused.code() == "53100" => break refused,
            other => assert!(begun.elapsed() < PATIENCE, "{other:?}\n{}", cluster.tail()),
        }
    };
    assert_eq!((refused.status, refused.retryable()), (503, true), "{refused:?}");
    assert!(refused.body["error"].as_str().unwrap().contains("the disk is full on node-"), "{refused:?}");
    let count = cluster.query("SELECT count(*) AS n FROM t").await["data"][0]["n"].as_u64().unwrap();
    assert!(count >= 600, "a strong read is answered: {count}");
    drop(fillers);
    let gap = load.progress(200).await;
    println!("until the next 200 writes after there was room on three nodes: {gap:?}");
    let acknowledged = load.end().await;
    check(&cluster, &acknowledged).await;
    for node in 1..=3 {
        wait_for_rows_on(&cluster, node, acknowledged.len()).await;
    }
    assert_eq!([1, 2, 3].map(|node| cluster.pid_of(node)), processes, "a node ended\n{}", cluster.tail());
}

/// A `strace` that lets system calls of a node fail, until it ends with the node.
struct Faults(Child);

impl Faults {
    /// `inject` is what `strace -e inject=` takes. With paths, only calls on these files fail.
    fn inject(cluster: &Cluster, node: u16, inject: &str, paths: &[PathBuf]) -> Self {
        let pid = cluster.pid_of(node).unwrap();
        let calls = inject.split(':').next().unwrap();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qqq", "-o", "/dev/null", "-p", &pid.to_string(), "-e", &format!("trace={calls}")]);
        strace.args(["-e", &format!("inject={inject}")]).stdin(Stdio::null());
        for path in paths {
            strace.arg("-P").arg(path);
        }
        let started = strace.spawn();
        Self(started.unwrap_or_else(|error| panic!("strace can't be started ({error}): install it")))
    }

    /// Until the node ended by it.
    fn wait(mut self) {
        let begun = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "the node goes on (or strace may not trace it: it needs ptrace)");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// Until the supervisor printed `text` once more than `before` times.
async fn wait_for_words(cluster: &Cluster, text: &str, before: usize) {
    let begun = Instant::now();
    while said(cluster, text) <= before {
        assert!(begun.elapsed() < PATIENCE, "'{text}' is not said\n{}", cluster.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn said(cluster: &Cluster, text: &str) -> usize {
    let words = std::fs::read_to_string(cluster.log()).unwrap();
    words.lines().filter(|line| line.contains(DISK_FAILED) && line.contains(text)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_ends_its_node_with_the_reason_and_loses_nothing() {
    let cluster = Arc::new(Cluster::start(Options::default()).await);
    cluster.query("CREATE TABLE t (id INTEGER PRIMARY KEY, writer INTEGER) SHARD BY (id)").await;
    let load = Load::start(&cluster);
    load.progress(200).await;
    let wal = |node| cluster.node_dir(node).join("shard-1/shard.db-wal");
    let cases = [("fdatasync,fsync:error=EIO", "the log can't be written"), ("pwrite64:error=EIO", "apply entries")];
    for (inject, words) in cases {
        let node = cluster.leader(Some("shard-1")).await;
        let paths = if words == "apply entries" { vec![wal(node)] } else { Vec::new() };
        let before = said(&cluster, words);
        Faults::inject(&cluster, node, inject, &paths).wait();
        wait_for_words(&cluster, words, before).await;
        let gap = load.progress(50).await;
        println!("{words}: until the next 50 writes {gap:?}");
        cluster.wait_for_node(node).await;
        load.progress(50).await;
    }
    let acknowledged = load.end().await;
    check(&cluster, &acknowledged).await;
    for node in 1..=3 {
        wait_for_rows_on(&cluster, node, acknowledged.len()).await;
    }

    // A checkpoint whose fsync fails: of what fills the write-ahead log, one comes when the shard is idle.
    cluster.query("CREATE TABLE large (id INTEGER PRIMARY KEY, text TEXT) SHARD BY (id)").await;
    let node = cluster.leader(Some("shard-1")).await % 3 + 1;
    let faults = Faults::inject(&cluster, node, "fdatasync,fsync:error=EIO", &[wal(node)]);
    let large = |id: u32| json!({ "query": "INSERT INTO large VALUES (?, ?)", "params": [id, "x".repeat(1 << 20)] });
    for id in 0..3 {
        cluster.post(1, "/query", &large(id)).await.unwrap();
    }
    faults.wait();
    wait_for_words(&cluster, "make a checkpoint", 0).await;
    cluster.wait_for_node(node).await;
    wait_for_large(&cluster, node, 3).await;

    // A file that is cut short under a reader that has mapped it.
    for id in 3..5 {
        cluster.post(1, "/query", &large(id)).await.unwrap();
    }
    let file = cluster.node_dir(node).join("shard-1/shard.db");
    let begun = Instant::now();
    while std::fs::metadata(&file).unwrap().len() < 3 << 20 {
        assert!(begun.elapsed() < PATIENCE, "no checkpoint is made\n{}", cluster.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Often enough that connections have the pages mapped.
    for _ in 0..16 {
        wait_for_large(&cluster, node, 5).await;
    }
    cluster.pause_supervisor();
    let copy = cluster.dir.path().join("copy.db");
    std::fs::copy(&file, &copy).unwrap();
    std::fs::File::options().write(true).open(&file).unwrap().set_len(4096).unwrap();
    let body = json!({ "query": "SELECT max(length(text)) AS n FROM large", "consistency": "eventual" });
    let lost = cluster.post(node, "/query", &body).await.unwrap_err();
    std::fs::copy(&copy, &file).unwrap();
    cluster.release();
    // A connection that knows the file's old size meets pages that are gone; one that looks anew is told by SQLite.
    match lost.status {
        0 => wait_for_words(&cluster, "shard.db can't be read", 0).await,
        _ => assert_eq!((lost.status, lost.code()), (500, "58000"), "{lost:?}"),
    }
    cluster.wait_for_node(node).await;
    wait_for_large(&cluster, node, 5).await;
}

/// Until a node's own replica has the large rows.
async fn wait_for_large(cluster: &Cluster, node: u16, rows: u32) {
    let body = json!({ "query": "SELECT count(*) AS n, sum(length(text)) AS s FROM large", "consistency": "eventual" });
    let begun = Instant::now();
    loop {
        let answer = cluster.post(node, "/query", &body).await;
        match &answer {
            Ok(answer) if answer["data"][0] == json!({ "n": rows, "s": rows << 20 }) => return,
            _ => assert!(begun.elapsed() < PATIENCE, "{answer:?}\n{}", cluster.tail()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
