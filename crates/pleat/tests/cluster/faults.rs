//! kill -9 while writers write.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Cluster, Options, counted};

const WRITERS: i64 = 8;

/// Writers that insert rows of ever new ids, and remember what was acknowledged and how long nothing was.
pub struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<tokio::task::JoinHandle<BTreeSet<i64>>>,
    acknowledged: Arc<AtomicU64>,
}

impl Load {
    pub fn start(cluster: &Arc<Cluster>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let next = Arc::new(AtomicI64::new(0));
        let writers = (0..WRITERS)
            .map(|writer| {
                let (cluster, stop) = (cluster.clone(), stop.clone());
                let (acknowledged, next) = (acknowledged.clone(), next.clone());
                tokio::spawn(async move {
                    let mut mine = BTreeSet::new();
                    while !stop.load(Ordering::Relaxed) {
                        let id = next.fetch_add(1, Ordering::Relaxed);
                        let node = (writer % 3 + 1) as u16;
                        let insert = format!("INSERT INTO t VALUES ({id}, {writer})");
                        cluster.write(node, &insert, &format!("k{id}")).await;
                        mine.insert(id);
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                    }
                    mine
                })
            })
            .collect();
        Self { stop, writers, acknowledged }
    }

    /// Until `count` more writes are acknowledged; how long that took.
    pub async fn progress(&self, count: u64) -> Duration {
        let begun = Instant::now();
        let wanted = self.acknowledged.load(Ordering::Relaxed) + count;
        while self.acknowledged.load(Ordering::Relaxed) < wanted {
            assert!(begun.elapsed() < crate::harness::PATIENCE, "writes stand still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        begun.elapsed()
    }

    pub async fn end(self) -> BTreeSet<i64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeSet::new();
        for writer in self.writers {
            all.extend(writer.await.unwrap());
        }
        all
    }
}

pub async fn check(cluster: &Cluster, acknowledged: &BTreeSet<i64>) {
    let found = counted(cluster.rows("SELECT id FROM t").await);
    let lost: Vec<_> = acknowledged.iter().filter(|id| !found.contains_key(id)).take(5).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert!(found.values().all(|count| *count == 1), "a row is there twice");
    assert_eq!(found.len(), acknowledged.len(), "rows that were never acknowledged, with every writer done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_leaders_loses_nothing_and_writes_resume() {
    let cluster = Arc::new(Cluster::start(Options { shards: 2, ..Options::default() }).await);
    cluster.query("CREATE TABLE t (id INTEGER PRIMARY KEY, writer INTEGER) SHARD BY (id)").await;
    let load = Load::start(&cluster);
    load.progress(200).await;

    let mut gaps = Vec::new();
    for victim in [Some("shard-1"), None, Some("shard-2")] {
        let node = cluster.leader(victim).await;
        cluster.kill_node(node);
        gaps.push(load.progress(50).await);
        // The killed node returns and catches up: every replica is where its leader is.
        let url = format!("{}/health", cluster.url(node));
        let begun = Instant::now();
        while !cluster.http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            assert!(begun.elapsed() < crate::harness::PATIENCE, "node-{node} does not return\n{}", cluster.tail());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        load.progress(50).await;
    }
    let acknowledged = load.end().await;
    check(&cluster, &acknowledged).await;
    gaps.sort();
    println!("{} writes acknowledged; until the next 50 after a kill: {gaps:?}", acknowledged.len());
    // The middle one of three, so that a machine that is busy for a moment fails nothing.
    assert!(gaps[1] < Duration::from_secs(3), "writes resumed after {gaps:?}");

    // Also on each node's own replica.
    for node in 1..=3 {
        let body = json!({ "query": "SELECT count(*) AS n FROM t", "consistency": "eventual" });
        let begun = Instant::now();
        loop {
            let answer = cluster.post(node, "/query", &body).await.unwrap();
            if answer["data"][0]["n"] == acknowledged.len() {
                break;
            }
            assert!(begun.elapsed() < crate::harness::PATIENCE, "node-{node} does not catch up: {answer}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_cluster_killed_and_started_again_goes_on() {
    let mut cluster = Arc::new(Cluster::start(Options { shards: 2, ..Options::default() }).await);
    cluster.query("CREATE TABLE t (id INTEGER PRIMARY KEY, writer INTEGER) SHARD BY (id)").await;
    cluster.query("CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT) REFERENCE").await;
    cluster.query("INSERT INTO names VALUES (1, 'one')").await;
    let load = Load::start(&cluster);
    load.progress(300).await;
    let acknowledged = load.end().await;
    Arc::get_mut(&mut cluster).unwrap().kill_all();
    Arc::get_mut(&mut cluster).unwrap().start_again().await;
    check(&cluster, &acknowledged).await;
    assert_eq!(cluster.query("SELECT name FROM names WHERE id = 1").await["data"][0]["name"], "one");
    cluster.query("INSERT INTO t VALUES (-1, 0)").await;
    assert_eq!(cluster.query("SELECT count(*) AS n FROM t").await["data"][0]["n"], acknowledged.len() + 1);

    // And after an orderly stop.
    assert!(Arc::get_mut(&mut cluster).unwrap().stop(), "Ctrl-C ends it well\n{}", cluster.tail());
    Arc::get_mut(&mut cluster).unwrap().start_again().await;
    assert_eq!(cluster.query("SELECT count(*) AS n FROM t").await["data"][0]["n"], acknowledged.len() + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_leaders_during_a_split_resumes_or_rolls_back() {
    let config = json!({
        "scaling_thresholds": {
            "total_entry_threshold_per_shard": 400, "qps_threshold": 1e9, "connection_threshold": 1_000_000,
            "cpu_threshold_percent": 100, "memory_threshold_percent": 100,
        },
        "monitoring_interval_seconds": 1, "cooldown_seconds": 1, "max_actions": 10, "max_shards": 2,
    });
    let cluster = Arc::new(Cluster::start(Options { config, ..Options::default() }).await);
    cluster.query("CREATE TABLE t (id INTEGER PRIMARY KEY, writer INTEGER) SHARD BY (id)").await;
    cluster.query("CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT) REFERENCE").await;
    cluster.query("INSERT INTO names VALUES (1, 'one')").await;
    let load = Load::start(&cluster);
    let split_begun = |operations: &serde_json::Value| {
        operations["operations"].as_array().is_some_and(|list| list.iter().any(|o| o["kind"] == "split"))
    };
    cluster.wait_for("/operations", "a split", split_begun).await;
    for victim in [None, Some("shard-1"), None] {
        let node = cluster.leader(victim).await;
        cluster.kill_node(node);
        load.progress(30).await;
        let url = format!("{}/health", cluster.url(node));
        while !cluster.http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    cluster.wait_for_shards(2).await;
    let acknowledged = load.end().await;
    check(&cluster, &acknowledged).await;
    // Nothing is left behind, and the reference table is everywhere.
    let shards = cluster.get("/shards").await.as_array().unwrap().len() as i64;
    cluster.wait_for_rows(acknowledged.len() as i64 + shards).await;
    cluster.wait_for_each_shard("the reference table", |shard| shard["table_counts"]["names"] == 1).await;
}
