//! Real processes on a network of the test's own, where everything goes wrong again and again while clients keep account
//! ([`crate::workload`]) and one shard becomes three and three become one ([`crate::scaling`]).
//!
//! Nodes are killed, stopped, cut off from the others in both directions or in one, and shown a clock that is an hour off
//! ([`faults`]). Nothing acknowledged may be lost, doubled or torn; the bank's sum is right in every read; each
//! account's history is linearizable. When the faults end, the cluster must heal: every node answers, every operation
//! ends, every replica is the same, and no shard holds rows that it does not own.
//!
//! A short run is a test like any other. The long one is for `cargo xtask test --full`:
//!
//! | variable | usual | what |
//! | --- | --- | --- |
//! | `FAULTS_SECONDS` | 600 | for how long faults come in the long run |
//! | `FAULTS_SEED` | 1 | which faults, and what clients do. (When, and what the machine makes of it, is not in the seed) |
//!
//! It needs Linux, root, and the programs that [`place`] names, and fails without them.

mod faults;
mod place;

use std::time::{Duration, Instant};

use faults::Faults;
use place::{NODES, Place};

use crate::harness::{Cluster, PATIENCE};
use crate::scaling::{self, Scaling};
use crate::workload::{Mix, Workload};

const SECONDS_VARIABLE: &str = "FAULTS_SECONDS";
const SEED_VARIABLE: &str = "FAULTS_SEED";
const SECONDS: u64 = 600;
/// The pause between two faults, in milliseconds.
const REST_MS: (usize, usize) = (200, 2_000);
/// Writes that the cluster must take before the first fault and after the last.
const WRITES_AT_PEACE: u64 = 200;

#[test]
fn faults_of_every_kind_lose_nothing() {
    // Until each kind was met.
    run(Duration::ZERO);
}

#[test]
#[ignore = "ten minutes: cargo xtask test --full"]
fn ten_minutes_of_faults_lose_nothing() {
    run(Duration::from_secs(told(SECONDS_VARIABLE).unwrap_or(SECONDS)));
}

/// A number in the environment.
fn told(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

fn run(at_least: Duration) {
    place::leave_the_machines_network();
    // Made here, so that its threads are in the network that this one is in.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(all(at_least, told(SEED_VARIABLE).unwrap_or(1)));
}

async fn all(at_least: Duration, seed: u64) {
    println!("seed {seed}, faults of every kind for at least {} s", at_least.as_secs());
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.json");
    std::fs::write(&config, scaling::config().to_string()).unwrap();
    let places: Vec<Place> =
        (1..=NODES).map(|number| Place::make(number, &dir.path().join("data"), config.clone())).collect();
    places.iter().for_each(Place::start);
    let mut cluster = Cluster::over((1..=NODES).map(place::url).collect(), dir);
    cluster.wait_healthy().await;

    let load = Workload::start(&cluster, seed, Mix::All).await;
    load.workload.progress(WRITES_AT_PEACE).await;
    let scaling = Scaling::start(&cluster);
    let (begun, mut faults) = (Instant::now(), Faults::of_seed(seed));
    while begun.elapsed() < at_least || !faults.all_met() {
        faults.rest(REST_MS).await;
        load.workload.so_far();
        let ended: Vec<String> = places.iter().filter_map(Place::ended).collect();
        assert!(ended.is_empty(), "{ended:?}\n{}", cluster.tail());
        faults.next(&cluster, &places).await;
    }
    let healing = Instant::now();
    cluster.wait_healthy().await;
    load.workload.progress(WRITES_AT_PEACE).await;
    let scaled = scaling.end(&cluster).await;
    let healed = healing.elapsed();
    let workload = load.end().await;
    workload.check_all(&cluster).await;
    check_clocks(&cluster, begun).await;

    let figures = workload.figures();
    println!("{figures}");
    let (gap_began, gap) = (workload.begun + figures.gap.1, figures.gap.0);
    let meanwhile = faults.story.iter().filter(|(begun, ended, _)| *begun < gap_began + gap && *ended > gap_began);
    let meanwhile: Vec<&str> = meanwhile.map(|(.., what)| what.as_str()).collect();
    println!("in the longest time without writes: {meanwhile:?}");
    println!("{} faults: {:?}; healed within {:.1} s", faults.story.len(), faults.met, healed.as_secs_f64());
    println!("{scaled}");
}

/// Only the time of day was wrong: a node that counts an hour more than this test has lasted has measured durations by it.
async fn check_clocks(cluster: &Cluster, begun: Instant) {
    for node in 1..=NODES {
        let health: serde_json::Value =
            cluster.http.get(format!("{}/health", cluster.url(node))).send().await.unwrap().json().await.unwrap();
        let up = health["uptime_seconds"].as_u64().unwrap();
        assert!(Duration::from_secs(up) < begun.elapsed() + PATIENCE, "node-{node} is up for {up} s");
    }
}
