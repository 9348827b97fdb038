//! What writers keep of their throughput while their shard is split. A measurement and no test: what comes out depends on
//! the machine, and nothing is asserted of it.
//!
//! ```text
//! cargo test --release --package pleat --test cluster -- --ignored --nocapture what_writers_keep
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Cluster, Options, PATIENCE};

const WRITERS: u64 = 16;
const ROWS: u64 = 200_000;
/// Rows of one INSERT while the table is filled.
const AT_ONCE: u64 = 1_000;
/// Bytes of text in each row.
const WIDTH: usize = 200;
/// For how long is measured what writers do without a split.
const ALONE: Duration = Duration::from_secs(10);
/// How often it is looked in which step the split is.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: see the module"]
async fn what_writers_keep_while_their_shard_is_split() {
    let cluster = Arc::new(Cluster::start(Options::default()).await);
    fill(&cluster).await;
    let (done, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(keep_writing(cluster.clone(), writer, done.clone(), written.clone())))
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = alone(&written).await;

    let policy = json!({ "mode": "automatic", "max_shards": 2, "thresholds": { "total_entries_per_shard": ROWS / 2 } });
    let url = format!("{}/policy", cluster.url(1));
    let changed = cluster.http.patch(url).json(&policy).send().await.unwrap();
    assert!(changed.status().is_success(), "{}", changed.text().await.unwrap());
    let steps = by_step(&cluster, &written).await;
    // On two shards the same writers need two logs: this is what the last steps have to be held against.
    let after = alone(&written).await;
    done.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let operation = &cluster.get("/operations?limit=1").await["operations"][0];
    let mut told = format!("{WRITERS} writers, writes per second: {before:.0} before, {after:.0} after; meanwhile\n");
    for (step, (seconds, writes)) in steps {
        let rate = writes as f64 / seconds;
        let (of_before, of_after) = (rate / before, rate / after);
        let _ = writeln!(
            told,
            "{step:>24} {seconds:>6.1} s {rate:>6.0}/s  {of_before:.2} of before, {of_after:.2} of after"
        );
    }
    println!("{told}{}", operation["message"]);
}

/// Writes per second while nothing else goes on.
async fn alone(written: &AtomicU64) -> f64 {
    let (begun, before) = (Instant::now(), written.load(Ordering::Relaxed));
    tokio::time::sleep(ALONE).await;
    (written.load(Ordering::Relaxed) - before) as f64 / begun.elapsed().as_secs_f64()
}

async fn fill(cluster: &Cluster) {
    cluster.query("CREATE TABLE ledger (id INTEGER PRIMARY KEY, n INTEGER, v TEXT) SHARD BY (id)").await;
    let text = "x".repeat(WIDTH);
    for first in (0..ROWS).step_by(AT_ONCE as usize) {
        let rows: Vec<String> = (first..first + AT_ONCE).map(|id| format!("({id}, 0, '{text}')")).collect();
        cluster.query(&format!("INSERT INTO ledger VALUES {}", rows.join(", "))).await;
    }
}

/// Each writer changes rows of its own, wherever they are by then.
async fn keep_writing(cluster: Arc<Cluster>, writer: u64, done: Arc<AtomicBool>, written: Arc<AtomicU64>) {
    let node = (writer % 3 + 1) as u16;
    for number in 0_u64.. {
        if done.load(Ordering::Relaxed) {
            return;
        }
        let id = (number.wrapping_mul(7_919) * WRITERS + writer) % ROWS;
        let update = format!("UPDATE ledger SET n = n + 1 WHERE id = {id}");
        cluster.write(node, &update, &format!("{writer}-{number}")).await;
        written.fetch_add(1, Ordering::Relaxed);
    }
}

/// Seconds and writes of each step of the split.
async fn by_step(cluster: &Cluster, written: &AtomicU64) -> BTreeMap<String, (f64, u64)> {
    let (begun, mut steps) = (Instant::now(), BTreeMap::<String, (f64, u64)>::new());
    let (mut since, mut before) = (Instant::now(), written.load(Ordering::Relaxed));
    loop {
        assert!(begun.elapsed() < 5 * PATIENCE, "the split does not end: {steps:?}");
        tokio::time::sleep(LOOK_EVERY).await;
        let operation = cluster.get("/operations?limit=1").await["operations"][0].clone();
        let (now, writes) = (Instant::now(), written.load(Ordering::Relaxed));
        let (seconds, more) = ((now - since).as_secs_f64(), writes - before);
        (since, before) = (now, writes);
        if operation["kind"] != "split" {
            continue;
        }
        assert!(!matches!(operation["phase"].as_str(), Some("Failed" | "Skipped")), "{operation}");
        if operation["phase"] == "Successful" {
            return steps;
        }
        let step = operation["steps"].as_array().and_then(|steps| steps.last()).map(|step| step["name"].as_str());
        let sum = steps.entry(step.flatten().unwrap_or("pending").to_owned()).or_default();
        *sum = (sum.0 + seconds, sum.1 + more);
    }
}
