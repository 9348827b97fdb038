//! One shard becomes three and three become one, twenty-five times, under sixteen clients: a hundred moves. How long
//! writes wait at the cutover is measured twice, as receipts say and as the clients see it. So clients write to one shard at a
//! time: a transaction over several waits for others of its kind, moves or no moves.
//!
//! ```text
//! cargo test --workspace --test cluster -- --ignored --nocapture a_hundred_moves
//! ```

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::harness::{Cluster, Options, PATIENCE};
use crate::scaling::{self, Percentiles, Scaling, Seen};
use crate::workload::{Figures, Mix, Workload};

/// Rounds, of four moves each. The acceptance asks for twenty rounds, and for a hundred moves.
const ROUNDS: u32 = 25;
const MOVES: usize = 100;
/// What the pause at the cutover may be, in milliseconds, in 99 of a hundred moves.
const PAUSE_P99_MAX_MS: u64 = 200;
/// Times in the journal are in whole milliseconds, and an entry is made a moment before or after what it says.
const AROUND: Duration = Duration::from_millis(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes: cargo xtask test --full"]
async fn a_hundred_moves_under_load_pause_writes_for_less_than_200_ms() {
    let cluster = Cluster::start(Options { config: scaling::config(), ..Options::default() }).await;
    let load = Workload::start(&cluster, 1, Mix::OneShard).await;
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - load.workload.begun.elapsed();
    let scaling = Scaling::start(&cluster);
    let mut before = 0;
    let mut since = tokio::time::Instant::now();
    while scaling.rounds() < ROUNDS {
        tokio::time::sleep(Duration::from_millis(200)).await;
        load.workload.so_far();
        if scaling.rounds() > before {
            (before, since) = (scaling.rounds(), tokio::time::Instant::now());
            println!("{before} times from one shard to three and back");
        }
        assert!(since.elapsed() < 2 * PATIENCE, "after {before} rounds it goes no further\n{}", cluster.tail());
    }
    let scaled = scaling.end(&cluster).await;
    let workload = load.end().await;
    workload.check_all(&cluster).await;

    let figures = workload.figures();
    let mut always: Vec<u64> = figures.writes.iter().map(|(begun, end)| (*end - *begun).as_millis() as u64).collect();
    always.sort_unstable();
    let seen_by_clients = waited(&scaled, &figures, began);
    println!("{figures}\n{scaled}");
    println!("the slowest write under way at each cutover took {}", Percentiles(&seen_by_clients));
    println!("any write took {}", Percentiles(&always));
    let pauses = scaled.pauses();
    assert!(pauses.len() >= MOVES, "{scaled}");
    assert!(scaled.rounds >= ROUNDS);
    assert!(Percentiles(&pauses).at(99) < PAUSE_P99_MAX_MS, "{}", Percentiles(&pauses));
}

/// For each move: how long the slowest write took that was under way at the cutover, in milliseconds; shortest first.
fn waited(scaled: &Seen, figures: &Figures, began: Duration) -> Vec<u64> {
    let slowest = |operation: &Value| {
        let (fence, activate) = (step(operation, "fence")?.0, step(operation, "activate")?.1);
        let (from, to) = (fence.checked_sub(began)?, activate.checked_sub(began)?);
        let under_way = figures.writes.iter().filter(|(begun, ended)| *begun <= to + AROUND && *ended + AROUND >= from);
        under_way.map(|(begun, ended)| (*ended - *begun).as_millis() as u64).max()
    };
    let mut waited: Vec<u64> = scaled.successful().filter_map(slowest).collect();
    waited.sort_unstable();
    waited
}

/// When a step began and ended, since 1970: the last time that it was taken.
fn step(operation: &Value, name: &str) -> Option<(Duration, Duration)> {
    let step = operation["steps"].as_array()?.iter().rev().find(|step| step["name"] == name)?;
    Some((instant(step["begun"].as_str()?)?, instant(step["ended"].as_str()?)?))
}

/// `2026-03-01T12:30:05.250Z`.
fn instant(text: &str) -> Option<Duration> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    // Days since 1970, with the year's beginning moved to March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + number(11..13)? * 3_600 + number(14..16)? * 60 + number(17..19)?;
    Some(Duration::from_millis(seconds * 1_000 + number(20..23)?))
}
