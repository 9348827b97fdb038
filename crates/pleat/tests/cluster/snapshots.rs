//! What a scatter read sees while writers write and partitions move: each shard at one moment, each partition
//! exactly once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::harness::{Cluster, Options};

const KEYS: i64 = 120;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scatter_read_sees_no_half_of_a_write_and_no_partition_twice() {
    let config = json!({
        "scaling_thresholds": {
            "total_entry_threshold_per_shard": 100, "qps_threshold": 1e9, "connection_threshold": 1_000_000,
            "cpu_threshold_percent": 100, "memory_threshold_percent": 100,
        },
        "monitoring_interval_seconds": 1, "cooldown_seconds": 1, "max_actions": 10, "max_shards": 3,
    });
    let cluster = Arc::new(Cluster::start(Options { config, ..Options::default() }).await);
    cluster.query("CREATE TABLE a (id INTEGER PRIMARY KEY, v INTEGER) SHARD BY (id)").await;
    cluster.query("CREATE TABLE b (id INTEGER PRIMARY KEY, v INTEGER) SHARD BY (id)").await;
    let rows: Vec<_> = (0..KEYS).map(|id| json!([id, 0])).collect();
    for table in ["a", "b"] {
        let body = json!({ "columns": ["id", "v"], "rows": rows });
        cluster.post(1, &format!("/tables/{table}/rows"), &body).await.unwrap();
    }
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (cluster, done) = (cluster.clone(), done.clone());
            tokio::spawn(async move {
                let mut number = 0;
                while !done.load(Ordering::Relaxed) {
                    number += 1;
                    let id = (number * 4 + writer) % KEYS;
                    let both =
                        format!("UPDATE a SET v = {number} WHERE id = {id}; UPDATE b SET v = {number} WHERE id = {id}");
                    cluster.write((writer % 3 + 1) as u16, &both, &format!("{writer}-{number}")).await;
                }
                number
            })
        })
        .collect();
    // Read through both splits, and a while longer.
    let torn =
        "SELECT count(*) AS n, count(DISTINCT a.id) AS keys, total(a.v <> b.v) AS torn FROM a JOIN b ON b.id = a.id";
    let mut reads = 0;
    let mut after = 0;
    while after < 30 {
        let seen = cluster.query(torn).await;
        assert_eq!(seen["data"], json!([{ "n": KEYS, "keys": KEYS, "torn": 0.0 }]), "read {reads}: {seen}");
        reads += 1;
        let split = cluster.get("/shards").await.as_array().unwrap().len() == 3;
        after += u32::from(split);
    }
    done.store(true, Ordering::Relaxed);
    let mut writes = 0;
    for writer in writers {
        writes += writer.await.unwrap();
    }
    println!("{reads} reads beside {writes} writes");
}
