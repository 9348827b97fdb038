//! Shards that were made uneven are evened out while writers write.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Cluster, Options, PATIENCE, counted};

const WRITERS: i64 = 8;

/// Partitions by shard.
async fn partitions(cluster: &Cluster) -> BTreeMap<String, u64> {
    let shards = cluster.get("/shards").await;
    let of = |shard: &Value| (shard["shard_id"].as_str().unwrap().to_owned(), shard["partitions"].as_u64().unwrap());
    shards.as_array().unwrap().iter().map(of).collect()
}

/// Write until told to stop; gives what was acknowledged.
async fn write(cluster: Arc<Cluster>, writer: i64, done: Arc<AtomicBool>) -> BTreeMap<i64, i64> {
    let mut acknowledged = BTreeMap::new();
    for number in 0.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let id = number % 200 * WRITERS + writer;
        let upsert = format!("INSERT INTO t VALUES ({id}, {number}) ON CONFLICT (id) DO UPDATE SET v = excluded.v");
        let (answer, _) = cluster.write((id % 3 + 1) as u16, &upsert, &format!("{writer}-{number}")).await;
        assert_eq!(answer["rows_affected"], 1, "{upsert}: {answer}");
        acknowledged.insert(id, number);
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_that_were_made_uneven_are_evened_out_under_writers_and_nothing_is_lost() {
    let cluster = Arc::new(Cluster::start(Options { shards: 4, ..Options::default() }).await);
    cluster.query("CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER) SHARD BY (id)").await;
    let (code, _, told) = cluster.cli(&["ops", "merge", "4", "--into", "shard-2"]);
    assert_eq!(code, 0, "{told}");
    cluster.wait_for_shards(3).await;
    let uneven = BTreeMap::from([("shard-1", 64), ("shard-2", 128), ("shard-3", 64)].map(|(id, n)| (id.to_owned(), n)));
    assert_eq!(partitions(&cluster).await, uneven);
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write(cluster.clone(), writer, done.clone()))).collect();

    let (code, told, error) = cluster.cli(&["rebalance", "--dry-run"]);
    assert!(code == 0 && told.contains("nothing was begun; without --dry-run it is"), "{told}{error}");
    assert_eq!(partitions(&cluster).await, uneven);
    let (code, told, error) = cluster.cli(&["rebalance", "--threshold", "0.02", "--json"]);
    assert_eq!(code, 0, "{error}");
    let begun: Value = serde_json::from_str(&told).unwrap();
    let moves = begun["moves"].as_array().unwrap();
    assert!(moves.len() >= 2 && moves.iter().all(|shift| shift["from"] == "shard-2"), "{begun}");
    for shift in moves {
        let id = shift["operation"].as_str().unwrap();
        let ended = |operation: &Value| operation["phase"] != "Pending" && operation["phase"] != "Progressing";
        let operation = cluster.wait_for(&format!("/operations/{id}"), "the move has ended", ended).await;
        assert_eq!(operation["phase"], "Successful", "{operation}");
        println!("predicted when asked {} ms: {}", shift["pause_predicted_ms"], operation["message"]);
        let (code, why, _) = cluster.cli(&["why", id]);
        assert!(code == 0 && why.contains("why: rebalance, asked for by hand: the fullest shard holds"), "{why}");
    }
    let even = partitions(&cluster).await;
    // What counts is bytes and load, as measured just then, and not how many partitions there are.
    assert!(even.values().all(|count| (66..=110).contains(count)), "{even:?}");
    done.store(true, Ordering::Relaxed);
    let mut expected = BTreeMap::new();
    for writer in writers {
        expected.extend(writer.await.unwrap());
    }
    let rows = cluster.rows("SELECT id, v FROM t").await;
    assert!(counted(rows.clone()).values().all(|count| *count == 1), "a row is there twice");
    let found: BTreeMap<i64, i64> =
        rows.iter().map(|row| (row[0].as_i64().unwrap(), row[1].as_i64().unwrap())).collect();
    assert_eq!(found, expected);
    cluster.wait_for_each_shard("no foreign rows", |shard| shard["holds_foreign_rows"] == false).await;
    // What was written a moment ago still counts as load for a while; then bytes alone do.
    let even = async || loop {
        let (_, told, _) = cluster.cli(&["rebalance", "--dry-run", "--threshold", "0.3"]);
        if told.lines().last() == Some("nothing to move: the shards are as even as they can be") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    tokio::time::timeout(PATIENCE, even()).await.expect("the shards are even");
    let refused = cluster.post(1, "/rebalance", &json!({"threshold": 11})).await.unwrap_err();
    assert_eq!(refused.status, 400);
}
