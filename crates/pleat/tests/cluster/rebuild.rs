//! Disks that are lost, and files that are changed behind Pleat's back.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::OpenFlags;
use rusqlite::config::DbConfig;
use serde_json::{Value, json};

use crate::faults::{Load, check};
use crate::harness::{Cluster, Options, PATIENCE};

/// The rebuilds in the journal that have ended well.
fn rebuilt(operations: &Value) -> usize {
    let list = operations["operations"].as_array().cloned().unwrap_or_default();
    list.iter().filter(|one| one["kind"] == "rebuild" && one["phase"] == "Successful").count()
}

async fn wait_rebuilt(cluster: &Cluster, count: usize) -> Value {
    cluster.wait_for("/operations", &format!("{count} rebuilds"), |found| rebuilt(found) >= count).await
}

async fn wait_running(cluster: &Cluster) {
    let running = |found: &Value| {
        found["nodes"].as_array().is_some_and(|nodes| nodes.iter().all(|node| node["status"] == "running"))
    };
    cluster.wait_for("/cluster/list-nodes", "all nodes", running).await;
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
    wait_running(&cluster).await;
    println!("{} writes acknowledged", acknowledged.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_survives_its_leader_and_a_second_loss_of_the_disk() {
    let cluster = Arc::new(Cluster::start(Options::default()).await);
    cluster.query("CREATE TABLE t (id INTEGER PRIMARY KEY, writer INTEGER) SHARD BY (id)").await;
    let load = Load::start(&cluster);
    load.progress(100).await;
    cluster.hold_down(2);
    cluster.wipe(2);
    cluster.release();
    let begun = |found: &Value| found.to_string().contains("node-2 came back without its data");
    cluster.wait_for("/operations", "the rebuild to begin", begun).await;
    let control = cluster.leader(None).await;
    assert_ne!(control, 2, "it votes nowhere");
    cluster.kill_node(control);
    cluster.hold_down(2);
    cluster.wipe(2);
    cluster.release();
    wait_rebuilt(&cluster, 1).await;
    cluster.wait_until_calm().await;
    wait_running(&cluster).await;
    load.progress(50).await;
    cluster.hold_down(3);
    load.progress(50).await;
    let acknowledged = load.end().await;
    check(&cluster, &acknowledged).await;
    cluster.release();
}

/// Deletes a row of a replica's file, as a failing disk or a person with a tool would.
/// A log of the control group that is replayed wants the replica that was there before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuilt_replica_is_kept_when_its_node_starts_again() {
    let cluster = with_rows(3).await;
    cluster.hold_down(2);
    cluster.wipe(2);
    cluster.release();
    wait_rebuilt(&cluster, 1).await;
    let file = cluster.node_dir(2).join("shard-1.1/shard.db");
    let rebuilt = std::fs::metadata(&file).unwrap().ino();

    cluster.hold_down(2);
    cluster.release();
    cluster.wait_for_node(2).await;
    until(&cluster, "the replica to serve", async || row_7(&cluster, 2, "eventual").await.is_some()).await;
    assert_eq!(std::fs::metadata(&file).unwrap().ino(), rebuilt, "the replica is another one\n{}", cluster.tail());
    assert!(!cluster.node_dir(2).join("shard-1").exists(), "the replica before the last one is back");
}

fn delete_behind_its_back(dir: &Path, id: i64) {
    let file = rusqlite::Connection::open(dir.join("shard-1/shard.db")).unwrap();
    file.busy_timeout(Duration::from_secs(5)).unwrap();
    file.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).unwrap();
    assert_eq!(file.execute("DELETE FROM t WHERE id = ?1", [id]).unwrap(), 1);
}

async fn with_rows(nodes: u16) -> Cluster {
    let config = json!({ "scaling_mode": "manual", "verify_interval_s": 1 });
    let cluster = Cluster::start(Options { nodes, config, ..Options::default() }).await;
    cluster.query("CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER) SHARD BY (id)").await;
    let rows: Vec<_> = (0..100).map(|id| json!([id, 0])).collect();
    cluster.post(1, "/tables/t/rows", &json!({ "columns": ["id", "v"], "rows": rows })).await.unwrap();
    // A majority has them. The rest follows, and a test that changes its file wants it to have something to change.
    for node in 1..=nodes {
        until(&cluster, &format!("the rows on node-{node}"), async || rows_of_file(&cluster.node_dir(node)) == 100)
            .await;
    }
    cluster
}

/// How many rows a replica's file has, while its node runs.
fn rows_of_file(dir: &Path) -> i64 {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let count = |file: rusqlite::Connection| file.query_row("SELECT count(*) FROM t", [], |row| row.get(0));
    rusqlite::Connection::open_with_flags(dir.join("shard-1/shard.db"), flags).and_then(count).unwrap_or(0)
}

async fn until(cluster: &Cluster, what: &str, done: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !done().await {
        assert!(begun.elapsed() < PATIENCE, "waited for {what}\n{}", cluster.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether a node itself knows of an operation whose reason contains `words`: each hears of it at its own time.
async fn knows(cluster: &Cluster, node: u16, words: &str) -> bool {
    let answer = cluster.http.get(format!("{}/operations", cluster.url(node))).send().await;
    let Ok(answer) = answer else { return false };
    answer.text().await.is_ok_and(|text| text.contains(words))
}

/// Whether row 7 is there, as node `node` answers.
async fn row_7(cluster: &Cluster, node: u16, consistency: &str) -> Option<bool> {
    let body = json!({ "query": "SELECT count(*) AS n FROM t WHERE id = 7", "consistency": consistency });
    let answer = cluster.post(node, "/query", &body).await.ok()?;
    Some(answer["data"][0]["n"] == 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_changed_behind_pleats_back_is_found_and_rebuilt() {
    let cluster = with_rows(3).await;
    let replica = |name: &str| cluster.node_dir(2).join(name);
    cluster.hold_down(2);
    delete_behind_its_back(&cluster.node_dir(2), 7);
    cluster.release();

    let found = |found: &Value| {
        found["operations"].as_array().is_some_and(|list| list.iter().any(|one| one["kind"] == "rebuild"))
    };
    let operations = cluster.wait_for("/operations", "the difference to be found", found).await;
    let rebuild = operations["operations"].as_array().unwrap().iter().find(|one| one["kind"] == "rebuild").unwrap();
    let reason = rebuild["reason"].as_str().unwrap();
    assert!(reason.contains("shard-1 on node-2 differs") && reason.contains("table t"), "{reason}");
    // From here on nobody is shown the wrong content, not by node-2 either, should it lead, once it knows.
    until(&cluster, "node-2 to hear of it", async || knows(&cluster, 2, "shard-1 on node-2 differs").await).await;
    let mut number = 1_000;
    while rebuilt(&cluster.get("/operations").await) == 0 {
        for node in 1..=3 {
            assert_ne!(row_7(&cluster, node, "strong").await, Some(false), "node-{node}");
        }
        number += 1;
        cluster.write(1, &format!("INSERT INTO t VALUES ({number}, 1)"), &format!("k{number}")).await;
    }
    assert!(replica("shard-1.1").exists() && !replica("shard-1").exists(), "the old replica is gone");
    // A node hears a moment later that its replica votes again.
    let right = async || row_7(&cluster, 2, "eventual").await == Some(true);
    until(&cluster, "the new one to have what the others have", right).await;
    let well = |status: &str| status.contains(": healthy") && !status.contains("rebuilding");
    until(&cluster, "all to be well", async || well(&cluster.cli(&["status"]).1)).await;
    // Compared again and again, it stays right.
    for _ in 0..6 {
        number += 1;
        cluster.write(2, &format!("INSERT INTO t VALUES ({number}, 1)"), &format!("k{number}")).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let operations = cluster.get("/operations").await;
    let rebuilds = operations["operations"].as_array().unwrap().iter().filter(|one| one["kind"] == "rebuild").count();
    assert_eq!(rebuilds, 1, "{operations}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_against_one_is_said_and_nothing_is_rebuilt() {
    let cluster = with_rows(2).await;
    cluster.hold_down(2);
    delete_behind_its_back(&cluster.node_dir(2), 7);
    cluster.release();
    let said = |status: &Value| status["shards"][0]["disagreement"].is_string();
    let status = cluster.wait_for("/cluster/status", "the difference to be said", said).await;
    let what = status["shards"][0]["disagreement"].as_str().unwrap();
    assert!(what.contains("node-1 and node-2 differ") && what.contains("table t"), "{what}");
    let (_, status, _) = cluster.cli(&["status"]);
    assert!(status.contains("REPLICAS DIFFER") && status.contains("no majority"), "{status}");
    assert!(!cluster.get("/operations").await.to_string().contains("rebuild"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_content_differs_serves_nothing_from_then_on_and_is_rebuilt() {
    let cluster = with_rows(3).await;
    let leader = cluster.leader(Some("shard-1")).await;
    delete_behind_its_back(&cluster.node_dir(leader), 7);
    cluster.write(1, "INSERT INTO t VALUES (1000, 1)", "k1000").await;
    // As soon as the leader itself knows of it.
    until(&cluster, "it to be found", async || knows(&cluster, leader, "rebuild the replica of shard-1").await).await;
    while rebuilt(&cluster.get("/operations").await) == 0 {
        for node in 1..=3 {
            assert_ne!(row_7(&cluster, node, "strong").await, Some(false), "node-{node}");
            assert_ne!(row_7(&cluster, node, "eventual").await, Some(false), "node-{node}");
        }
    }
    cluster.write(1, "INSERT INTO t VALUES (1001, 1)", "k1001").await;
    assert_eq!(row_7(&cluster, leader, "eventual").await, Some(true));
}
