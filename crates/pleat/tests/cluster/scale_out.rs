//! Writers write while one shard becomes three, and three become one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde_json::json;

use crate::harness::{Cluster, Options, counted};

const WRITERS: i64 = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_writers_lose_nothing_while_one_shard_becomes_three_and_one_again() {
    let config = json!({
        "scaling_thresholds": {
            "total_entry_threshold_per_shard": 1500, "qps_threshold": 1e9, "connection_threshold": 1_000_000,
            "cpu_threshold_percent": 100, "memory_threshold_percent": 100,
        },
        "monitoring_interval_seconds": 1, "cooldown_seconds": 1, "max_actions": 10, "max_shards": 3,
    });
    let cluster = Arc::new(Cluster::start(Options { config, ..Options::default() }).await);
    cluster.query("CREATE TABLE t (id INTEGER PRIMARY KEY, writer INTEGER, v TEXT) SHARD BY (id)").await;

    let done = Arc::new(AtomicBool::new(false));
    let retried = Arc::new(AtomicU32::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (cluster, done, retried) = (cluster.clone(), done.clone(), retried.clone());
            tokio::spawn(async move {
                // What was acknowledged, by id: the value that the row must have in the end.
                let mut acknowledged = BTreeMap::new();
                for number in 0.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let id = number * WRITERS + writer;
                    let node = (id % 3 + 1) as u16;
                    let insert = format!("INSERT INTO t VALUES ({id}, {writer}, 'new')");
                    let (answer, tries) = cluster.write(node, &insert, &format!("i{id}")).await;
                    retried.fetch_add(tries - 1, Ordering::Relaxed);
                    assert_eq!(answer["rows_affected"], 1, "{insert}: {answer}");
                    acknowledged.insert(id, "new");
                    if number % 3 == 2 {
                        let old = (number - 2) * WRITERS + writer;
                        let update = format!("UPDATE t SET v = 'changed' WHERE id = {old}");
                        let (answer, _) = cluster.write(node, &update, &format!("u{old}")).await;
                        assert_eq!(answer["rows_affected"], 1, "{update}: {answer}");
                        acknowledged.insert(old, "changed");
                    }
                    if number % 10 == 9 {
                        let old = (number - 9) * WRITERS + writer;
                        let delete = format!("DELETE FROM t WHERE id = {old}");
                        let (answer, _) = cluster.write(node, &delete, &format!("d{old}")).await;
                        assert_eq!(answer["rows_affected"], 1, "{delete}: {answer}");
                        acknowledged.remove(&old);
                    }
                }
                acknowledged
            })
        })
        .collect();

    cluster.wait_for_shards(3).await;
    let all_split = cluster.rows("SELECT count(*) FROM t").await;
    // Back by hand, since the writers keep every shard busy.
    let (code, _, told) = cluster.cli(&["policy", "mode=manual"]);
    assert_eq!(code, 0, "{told}");
    for (shard, others) in [("shard-3", 2), ("2", 1)] {
        let (code, told, error) = cluster.cli(&["ops", "merge", shard, "--into", "shard-1"]);
        assert!(code == 0 && told.contains("into shard-1"), "{told}{error}");
        cluster.wait_for_shards(others).await;
    }
    let merges = cluster.get("/operations?limit=2").await;
    for merge in merges["operations"].as_array().unwrap() {
        assert_eq!((&merge["kind"], &merge["phase"]), (&json!("merge"), &json!("Successful")), "{merge}");
        println!("{}", merge["message"]);
    }
    let (_, told, _) = cluster.cli(&["ops", "merge", "1"]);
    assert!(told.is_empty(), "the last shard never goes");
    done.store(true, Ordering::Relaxed);
    let mut expected = BTreeMap::new();
    for writer in writers {
        expected.extend(writer.await.unwrap());
    }
    let rows = cluster.rows("SELECT id, v FROM t").await;
    let found: BTreeMap<i64, String> =
        rows.iter().map(|row| (row[0].as_i64().unwrap(), row[1].as_str().unwrap().to_owned())).collect();
    assert!(counted(rows).values().all(|count| *count == 1), "a row is there twice");
    let lost: Vec<_> =
        expected.iter().filter(|(id, v)| found.get(id).map(String::as_str) != Some(**v)).take(5).collect();
    assert!(lost.is_empty(), "lost or stale: {lost:?}");
    let ghosts: Vec<_> = found.keys().filter(|id| !expected.contains_key(id)).take(5).collect();
    assert!(ghosts.is_empty(), "rows that nobody wrote, or that were deleted: {ghosts:?}");

    // Nothing is left where it does not belong, nor of the shards that are gone.
    for node in 1..=3 {
        for shard in ["shard-2", "shard-3"] {
            let left = cluster.node_dir(node).join(shard);
            let begun = std::time::Instant::now();
            while left.exists() {
                assert!(begun.elapsed() < crate::harness::PATIENCE, "{} is left", left.display());
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
    cluster.wait_for_rows(expected.len() as i64).await;
    cluster.wait_for_each_shard("no foreign rows", |shard| shard["holds_foreign_rows"] == false).await;
    // Each split has its receipt, and who follows one is told each of its steps.
    for id in ["op-2", "op-3"] {
        let receipt = &cluster.get(&format!("/operations/{id}")).await["receipt"];
        assert!(receipt["agrees"] == true && receipt["source"] == receipt["target"], "{receipt}");
        assert!(receipt["rows_copied"].as_u64() > Some(0) && receipt["pause_ms"].is_u64(), "{receipt}");
    }
    let (code, told, complaint) = cluster.cli(&["ops", "watch", "op-2"]);
    assert_eq!(code, 0, "{complaint}");
    assert!(told.contains("op-2: copy ended after ") && told.contains("op-2: Successful: "), "{told}");
    println!("{} rows when there were three shards", all_split[0][0]);
    println!("{} rows acknowledged, {} retries by clients", expected.len(), retried.load(Ordering::Relaxed));
}
