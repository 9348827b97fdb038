//! Disks that are lost, and files that are changed behind Pleat's back.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::faults::{Load, check};
use crate::harness::{Cluster, Options};

/// The rebuilds in the journal that have ended well.
fn rebuilt(operations: &Value) -> usize {
    let list = operations["operations"].as_array().cloned().unwrap_or_default();
    list.iter().filter(|one| one["kind"] == "rebuild" && one["phase"] == "Successful").count()
}

async fn wait_rebuilt(cluster: &Cluster, count: usize) -> Value {
    cluster.wait_for("/operations", &format!("{count} rebuilds"), |found| rebuilt(found) >= count).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_disk_counts_again_only_when_it_has_everything() {
    let cluster = Arc::new(Cluster::start(Options { shards: 2, ..Options::default() }).await);
    cluster.query("CREATE TABLE t (id INTEGER PRIMARY KEY, writer INTEGER) SHARD BY (id)").await;
    let load = Load::start(&cluster);
    load.progress(200).await;

    cluster.hold_down(2);
    cluster.wipe(2);
    load.progress(50).await;
    cluster.release();
    let operations = wait_rebuilt(&cluster, 1).await;
    let rebuild = operations["operations"].as_array().unwrap().iter().find(|one| one["kind"] == "rebuild").unwrap();
    assert_eq!(rebuild["reason"], "node-2 came back without its data");
    let steps: Vec<_> = rebuild["steps"].as_array().unwrap().iter().map(|step| step["name"].clone()).collect();
    assert_eq!(steps, ["remove", "rejoin the control group", "rejoin shard-1", "rejoin shard-2"], "{rebuild}");
    load.progress(50).await;

    // With another node gone, every majority needs the rebuilt one.
    cluster.hold_down(3);
    load.progress(100).await;
    let acknowledged = load.end().await;
    check(&cluster, &acknowledged).await;
    cluster.query("CREATE TABLE after (id INTEGER PRIMARY KEY) SHARD BY (id)").await;
    cluster.release();
    cluster.wait_for("/cluster/list-nodes", "all nodes", |found| {
        found["nodes"].as_array().is_some_and(|nodes| nodes.iter().all(|node| node["status"] == "running"))
    })
    .await;
    println!("{} writes acknowledged", acknowledged.len());
}
