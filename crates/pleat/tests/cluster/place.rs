//! A table gets another placement, and another one after that, while writers write and nodes are killed with -9.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use crate::faults::{Load, check};
use crate::harness::{Cluster, Options};

/// Ask for it until it is so, whatever happens to the node that was asked.
async fn place(cluster: &Cluster, clause: &str) -> Value {
    let begun = Instant::now();
    for node in (1..=3).cycle() {
        match cluster.post(node, "/query", &json!({ "query": format!("ALTER TABLE t {clause}") })).await {
            Ok(answer) if answer["notice"].as_str().is_some_and(|notice| notice.contains("already")) => return answer,
            Ok(_) => {}
            Err(refused) => {
                assert!(begun.elapsed() < crate::harness::PATIENCE, "{clause}: {refused:?}\n{}", cluster.tail());
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
    unreachable!("the cycle has no end")
}

/// The operations that the journal has.
async fn journaled(cluster: &Cluster) -> usize {
    cluster.get("/operations").await["operations"].as_array().map_or(0, Vec::len)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_changes_its_place_under_load_and_kill_9() {
    let cluster = Arc::new(Cluster::start(Options { shards: 2, ..Options::default() }).await);
    cluster.query("CREATE TABLE t (id INTEGER, writer INTEGER, PRIMARY KEY (id, writer)) SINGLE").await;
    cluster.query("CREATE INDEX \"by Schreiber\" ON t (writer)").await;
    let load = Load::start(&cluster);
    load.progress(400).await;

    let ways = [
        ("SHARD BY (id)", None),
        ("SHARD BY (writer)", Some("shard-1")),
        ("REFERENCE", Some("shard-2")),
        ("SINGLE", None),
    ];
    for (clause, victim) in ways {
        let before = journaled(&cluster).await;
        let placing = {
            let cluster = cluster.clone();
            tokio::spawn(async move { place(&cluster, clause).await })
        };
        let more = |found: &Value| found["operations"].as_array().is_some_and(|found| found.len() > before);
        cluster.wait_for("/operations", "the change to be journaled", more).await;
        let node = cluster.leader(victim).await;
        cluster.kill_node(node);
        placing.await.unwrap();
        load.progress(100).await;
    }
    let acknowledged = load.end().await;
    check(&cluster, &acknowledged).await;
    cluster.wait_until_calm().await;
    let operations = cluster.get("/operations").await;
    let done = operations["operations"].as_array().into_iter().flatten();
    for operation in done.filter(|one| one["message"].as_str().is_some_and(|text| text.contains("table t is"))) {
        println!("{}", operation["message"]);
    }
    // Nothing is left on the shard that has none of it.
    let rows = acknowledged.len() as i64;
    cluster.wait_for_rows(rows).await;
}
