//! Splits and merges that never end: one shard becomes three, three become one, and again.
//!
//! Splits come from the autoscaler, for which every shard has too many rows while three shards are the aim; merges are asked for
//! by hand.
//! Nothing here assumes that a request arrives or a node answers: it looks at what is there and asks for what is
//! missing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::harness::{Cluster, answer};

/// The most shards.
const SHARDS: usize = 3;
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A node that takes longer is asked no further.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Operations that are looked at each time.
const NEWEST: usize = 8;

/// The configuration in which only the test says when to scale.
pub fn config() -> Value {
    json!({
        "scaling_mode": "manual",
        "scaling_thresholds": {
            "total_entry_threshold_per_shard": 80, "qps_threshold": 1e9, "connection_threshold": 1_000_000,
            "cpu_threshold_percent": 100, "memory_threshold_percent": 100,
        },
        "scale_in": { "enabled": false },
        "monitoring_interval_seconds": 0.2, "cooldown_seconds": 0, "action_window_seconds": 0, "max_shards": SHARDS,
    })
}

/// Scaling that goes on.
pub struct Scaling {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

/// What came of it.
#[derive(Clone, Default)]
pub struct Seen {
    /// How often it was three shards and one again.
    pub rounds: u32,
    /// Splits and merges that have ended, by number.
    pub moves: BTreeMap<u64, Value>,
}

impl Scaling {
    pub fn start(cluster: &Cluster) -> Self {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let http = reqwest::Client::builder().timeout(ANSWER_LIMIT).build().unwrap();
        let scaler = Scaler { nodes: cluster.urls(), http, seen: seen.clone() };
        Self { task: tokio::spawn(scaler.run(stop.clone())), stop, seen }
    }

    /// How often it was three shards and one again, so far.
    pub fn rounds(&self) -> u32 {
        self.seen.lock().rounds
    }

    /// Ask for nothing more, and let what is under way end.
    pub async fn end(self, cluster: &Cluster) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        let policy = json!({ "mode": "manual" });
        let set = cluster.http.patch(format!("{}/policy", cluster.url(1))).json(&policy).send().await;
        assert!(set.as_ref().is_ok_and(|set| set.status().is_success()), "{set:?}\n{}", cluster.tail());
        cluster.wait_until_calm().await;
        let mut seen = self.seen.lock().clone();
        seen.note(&cluster.get(&format!("/operations?limit={NEWEST}")).await);
        seen
    }
}

struct Scaler {
    nodes: Vec<String>,
    http: reqwest::Client,
    seen: Arc<Mutex<Seen>>,
}

impl Scaler {
    async fn run(self, stop: Arc<AtomicBool>) {
        let mut grows = true;
        let mut asked = Instant::now();
        self.set_mode("automatic").await;
        while !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(operations) = self.get(&format!("/operations?limit={NEWEST}")).await else { continue };
            self.seen.lock().note(&operations);
            let busy = operations["operations"].as_array().is_some_and(|list| list.iter().any(is_open));
            let Some(shards) = self.get("/shards").await else { continue };
            let active: Vec<String> = (shards.as_array().into_iter().flatten())
                .filter(|shard| shard["state"] == "active")
                .filter_map(|shard| shard["shard_id"].as_str().map(str::to_owned))
                .collect();
            match (grows, active.len()) {
                (true, SHARDS) if !busy => {
                    grows = false;
                    self.set_mode("manual").await;
                }
                // The request may have been lost.
                (true, _) if !busy && asked.elapsed() > ANSWER_LIMIT => {
                    self.set_mode("automatic").await;
                    asked = Instant::now();
                }
                (false, 1) if !busy => {
                    self.seen.lock().rounds += 1;
                    grows = true;
                    self.set_mode("automatic").await;
                }
                (false, 2..) if !busy => {
                    self.set_mode("manual").await;
                    self.merge(active.last().expect("there are some")).await;
                }
                _ => {}
            }
        }
    }

    async fn get(&self, path: &str) -> Option<Value> {
        for node in &self.nodes {
            if let Ok(found) = answer(self.http.get(format!("{node}{path}")).send().await).await {
                return Some(found);
            }
        }
        None
    }

    async fn set_mode(&self, mode: &str) {
        for node in &self.nodes {
            let sent = self.http.patch(format!("{node}/policy")).json(&json!({ "mode": mode })).send().await;
            if sent.is_ok_and(|sent| sent.status().is_success()) {
                return;
            }
        }
    }

    async fn merge(&self, shard: &str) {
        for node in &self.nodes {
            let body = json!({ "kind": "merge", "from": shard });
            let sent = self.http.post(format!("{node}/operations")).json(&body).send().await;
            // A conflict is an answer too: something goes on, or it is a merge that was asked for before.
            if sent.is_ok_and(|sent| !sent.status().is_server_error()) {
                return;
            }
        }
    }
}

fn is_open(operation: &Value) -> bool {
    matches!(operation["phase"].as_str(), Some("Pending" | "Progressing"))
}

impl Seen {
    fn note(&mut self, operations: &Value) {
        for operation in operations["operations"].as_array().into_iter().flatten() {
            let moves = matches!(operation["kind"].as_str(), Some("split" | "merge"));
            let number = operation["id"].as_str().and_then(|id| id.strip_prefix("op-")?.parse().ok());
            if let (true, false, Some(number)) = (moves, is_open(operation), number) {
                self.moves.insert(number, operation.clone());
            }
        }
    }

    fn of<'a>(&'a self, kind: &'a str, done: bool) -> impl Iterator<Item = &'a Value> {
        (self.moves.values()).filter(move |one| one["kind"] == kind && (one["phase"] == "Successful") == done)
    }

    pub fn successful(&self) -> impl Iterator<Item = &Value> {
        self.of("split", true).chain(self.of("merge", true))
    }

    /// Pauses of writes as the receipts say, in milliseconds, shortest first.
    pub fn pauses(&self) -> Vec<u64> {
        let mut pauses: Vec<u64> = self.successful().filter_map(|one| one["receipt"]["pause_ms"].as_u64()).collect();
        pauses.sort_unstable();
        pauses
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = |kind, done| self.of(kind, done).count();
        write!(
            f,
            "{} splits and {} merges ({} and {} were given up), {} times from one shard to three and back",
            count("split", true),
            count("merge", true),
            count("split", false),
            count("merge", false),
            self.rounds
        )?;
        let pauses = self.pauses();
        match pauses.is_empty() {
            true => Ok(()),
            false => write!(f, "; writes paused for {}", Percentiles(&pauses)),
        }
    }
}

/// Of values in milliseconds that are sorted.
pub struct Percentiles<'a>(pub &'a [u64]);

impl Percentiles<'_> {
    /// The value that so many of a hundred do not exceed.
    pub fn at(&self, percent: usize) -> u64 {
        let place = (self.0.len() * percent).div_ceil(100).clamp(1, self.0.len());
        self.0[place - 1]
    }
}

impl std::fmt::Display for Percentiles<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ms (p50), {} ms (p99), {} ms at most", self.at(50), self.at(99), self.at(100))
    }
}
