//! A bank over three shards, with kill -9 of whoever matters while money moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Cluster, Options, PATIENCE, answer};

const ACCOUNTS: i64 = 60;
const WORKERS: i64 = 4;

/// Moves money, under a key of its own for each transfer, until it is acknowledged.
async fn transfers(cluster: Arc<Cluster>, worker: i64, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let (from, to) = ((worker * 17 + number * 7) % ACCOUNTS, (worker * 5 + number * 11 + 1) % ACCOUNTS);
        let amount = number % 9 + 1;
        let transfer = format!(
            "UPDATE accounts SET balance = balance - {amount}, moves = moves + 1 WHERE id = {from}; \
             UPDATE accounts SET balance = balance + {amount}, moves = moves + 1 WHERE id = {to}"
        );
        let node = (worker % 3 + 1) as u16;
        cluster.write(node, &transfer, &format!("t{worker}-{number}")).await;
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sums the bank up again and again, on all nodes in turn; gives how often it got an answer.
async fn looks(cluster: Arc<Cluster>, stop: Arc<AtomicBool>) -> u64 {
    let (mut seen, mut turn) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let query = json!({ "query": "SELECT count(*) AS n, sum(balance) AS s FROM accounts" });
        match cluster.post(turn % 3 + 1, "/query", &query).await {
            Ok(found) => {
                assert_eq!(found["data"], json!([{"n": ACCOUNTS, "s": 100 * ACCOUNTS}]), "half a transfer was seen");
                seen += 1;
            }
            Err(refused) => assert!(refused.retryable(), "{refused:?}"),
        }
    }
    seen
}

/// How long transactions stay in doubt from now on.
async fn doubt(cluster: &Cluster) -> Duration {
    let begun = Instant::now();
    loop {
        for node in 1..=3 {
            let found = answer(cluster.http.get(format!("{}/txns", cluster.url(node))).send().await).await;
            if found.is_ok_and(|found| found["in_doubt"].as_array().is_some_and(Vec::is_empty)) {
                return begun.elapsed();
            }
        }
        assert!(begun.elapsed() < PATIENCE, "transactions stay in doubt\n{}", cluster.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_leaders_and_coordinators_leaves_every_transfer_whole_and_done_once() {
    let cluster = Arc::new(Cluster::start(Options { shards: 3, ..Options::default() }).await);
    cluster.query("CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER, moves INTEGER) SHARD BY (id)").await;
    let rows: Vec<_> = (0..ACCOUNTS).map(|id| format!("({id}, 100, 0)")).collect();
    cluster.write(1, &format!("INSERT INTO accounts VALUES {}", rows.join(", ")), "found the bank").await;

    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let working: Vec<_> = (0..WORKERS)
        .map(|worker| tokio::spawn(transfers(cluster.clone(), worker, stop.clone(), done.clone())))
        .collect();
    let looking = tokio::spawn(looks(cluster.clone(), stop.clone()));
    let progress = async |count: u64| {
        let (begun, wanted) = (Instant::now(), done.load(Ordering::Relaxed) + count);
        while done.load(Ordering::Relaxed) < wanted {
            assert!(begun.elapsed() < PATIENCE, "transfers stand still\n{}", cluster.tail());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    progress(20).await;
    // Leaders of each shard, of the control group, and nodes that coordinate at this moment.
    for victim in [Some("shard-1"), None, Some("shard-2"), Some("shard-3")] {
        let node = cluster.leader(victim).await;
        cluster.kill_node(node);
        progress(15).await;
        cluster.wait_for_node(node).await;
    }
    // And where it hurts: between a transfer's steps, with others on their way.
    for (place, shard) in [
        ("participant.prepared@shard-2", Some("shard-2")),
        ("coordinator.decided", Some("shard-1")),
        ("participant.applying-decide@shard-3", Some("shard-3")),
    ] {
        let node = cluster.leader(shard).await;
        let pid = cluster.pid_of(node);
        cluster.fail_at(node, &format!("{place}=abort")).await;
        let begun = Instant::now();
        while cluster.pid_of(node) == pid {
            assert!(begun.elapsed() < PATIENCE, "node-{node} does not die at {place}\n{}", cluster.tail());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        progress(15).await;
        cluster.wait_for_node(node).await;
    }
    stop.store(true, Ordering::Relaxed);
    for worker in working {
        worker.await.unwrap();
    }
    let seen = looking.await.unwrap();
    let doubted = doubt(&cluster).await;
    let moved = 2 * done.load(Ordering::Relaxed);
    let found = cluster.query("SELECT sum(balance) AS s, sum(moves) AS m FROM accounts").await;
    assert_eq!(found["data"], json!([{"s": 100 * ACCOUNTS, "m": moved}]), "each transfer is done once");
    assert!(seen > 0, "nobody could look");
    println!("{} transfers, {seen} sums, in doubt for {doubted:?} after the last", moved / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_a_session_is_lost_with_its_node_and_holds_nothing_up() {
    let cluster = Cluster::start(Options { shards: 2, ..Options::default() }).await;
    cluster.query("CREATE TABLE t (id INTEGER PRIMARY KEY, value INTEGER) SHARD BY (id)").await;
    let rows: Vec<_> = (1..=20).map(|id| format!("({id}, 0)")).collect();
    cluster.query(&format!("INSERT INTO t VALUES {}", rows.join(", "))).await;
    let opened = cluster.post(2, "/sessions", &json!({})).await.unwrap();
    let path = format!("/sessions/{}/query", opened["session"].as_str().unwrap());
    let say = async |sql: &str| cluster.post(2, &path, &json!({ "query": sql })).await;
    say("BEGIN").await.unwrap();
    say("UPDATE t SET value = 1").await.unwrap();
    let sum = say("SELECT sum(value) AS s FROM t").await.unwrap();
    assert_eq!(sum["data"], json!([{"s": 20}]));
    assert_eq!(cluster.query("SELECT sum(value) AS s FROM t").await["data"], json!([{"s": 0}]));
    cluster.kill_node(2);
    cluster.write(1, "UPDATE t SET value = value + 5", "after").await;
    let begun = Instant::now();
    let lost: Value = loop {
        match say("COMMIT").await {
            Err(refused) if refused.status == 404 => break refused.body,
            other => assert!(begun.elapsed() < PATIENCE, "{other:?}\n{}", cluster.tail()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(lost["code"], "08003", "{lost}");
    assert_eq!(cluster.query("SELECT sum(value) AS s FROM t").await["data"], json!([{"s": 100}]));
}
