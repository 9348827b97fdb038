//! Two shards are split at the same time, while clients keep account ([`crate::workload`]).

use serde_json::{Value, json};

use crate::harness::{Cluster, Options};
use crate::scaling;
use crate::workload::{Mix, Workload};

/// Each node takes so long to begin capturing, once: by then the autoscaler has looked again.
const CAPTURED_LATE_MS: u32 = 2_000;
/// Writes that must be acknowledged afterwards.
const WRITES_AFTER: u64 = 50;

/// When an operation began its first step, and when it ended.
fn span(operation: &Value) -> (&str, &str) {
    (operation["steps"][0]["begun"].as_str().unwrap(), operation["updated"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_shards_are_split_at_the_same_time_and_nothing_is_lost() {
    let mut config = scaling::config();
    config["max_shards"] = json!(4);
    let cluster = Cluster::start(Options { shards: 2, config, ..Options::default() }).await;
    cluster.query("CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT) REFERENCE").await;
    cluster.query("INSERT INTO names VALUES (1, 'one'), (2, 'two')").await;
    let load = Workload::start(&cluster, 1, Mix::All).await;
    for node in 1..=3 {
        cluster.fail_at(node, &format!("shard.before-effect@CaptureStart=1*sleep({CAPTURED_LATE_MS})")).await;
    }
    let (code, _, told) = cluster.cli(&["policy", "mode=automatic"]);
    assert_eq!(code, 0, "{told}");
    cluster.wait_for_shards(4).await;
    cluster.wait_until_calm().await;
    let found = cluster.get("/operations?limit=20").await;
    let splits: Vec<&Value> =
        found["operations"].as_array().unwrap().iter().filter(|one| one["kind"] == "split").collect();
    let ended: Vec<_> = splits.iter().map(|split| (&split["phase"], &split["from"])).collect();
    assert_eq!(splits.len(), 2, "{found}");
    assert!(splits.iter().all(|split| split["phase"] == "Successful"), "{ended:?}\n{}", cluster.tail());
    assert_ne!(splits[0]["from"], splits[1]["from"], "{ended:?}");
    let (one, other) = (span(splits[0]), span(splits[1]));
    assert!(one.0 < other.1 && other.0 < one.1, "they ran one after the other: {one:?} {other:?}");
    splits.iter().for_each(|split| println!("{}: {:?}: {}", split["from"], span(split), split["message"]));

    load.workload.progress(WRITES_AFTER).await;
    let workload = load.end().await;
    // Accounts and facts are what it knows.
    let names = cluster.rows("SELECT id, name FROM names ORDER BY id").await;
    assert_eq!(names, [[json!(1), json!("one")], [json!(2), json!("two")]]);
    cluster.query("DROP TABLE names").await;
    workload.check_all(&cluster).await;
    cluster.wait_for_each_shard("no foreign rows", |shard| shard["holds_foreign_rows"] == false).await;
    println!("{}", workload.figures());
}
