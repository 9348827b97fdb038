//! Rows moved per second, against a plain copy between two SQLite files.
//!
//! A year's flights are in three shards, and two of these are merged into the first, one after the other: a third of the rows each time, read
//! in chunks, replicated and fsynced by a group of three, and compared row by row with where they came from. A plain copy is
//! `INSERT INTO … SELECT` into another file, WAL and fsync included, of as many rows. Nobody else writes meanwhile. The time of a
//! move is that of its whole operation; what its step `copy` took, which is what a plain copy does, stands beside it. A plain copy is one copy;
//! so the same is done on a cluster of one node, where a shard has one replica.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use crate::Args;
use crate::cluster::Cluster;
use crate::scatter::Flights;

/// How long a move may take.
const MOVE_MAX: Duration = Duration::from_secs(300);
/// The pause between two looks at it.
const LOOK: Duration = Duration::from_millis(20);

/// Moves and copies, and prints how many rows a second.
pub async fn run(args: &Args, dir: &Path) -> anyhow::Result<()> {
    let flights = Flights::read(&args.data())?;
    let bare = flights.bare(&dir.join("flights.db"))?;
    println!("{:<44}{:>12}{:>8}", "", "rows per s", "ratio");
    for nodes in [args.nodes, 1] {
        on_nodes(args, dir, nodes, &flights, &bare).await?;
    }
    Ok(())
}

async fn on_nodes(
    args: &Args,
    dir: &Path,
    nodes: u32,
    flights: &Flights,
    bare: &rusqlite::Connection,
) -> anyhow::Result<()> {
    let cluster = Cluster::start(args, &dir.join(format!("moving-{nodes}")), nodes, 3)?;
    flights.load(&cluster).await?;
    let (mut plain, mut whole, mut copy, mut rows) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for from in ["shard-2", "shard-3"] {
        let moved = Moved::wait(&cluster, from).await?;
        plain.push(copied(bare, dir, moved.rows)?);
        whole.push(moved.rows as f64 / moved.whole);
        copy.push(moved.rows as f64 / moved.copy);
        rows += moved.rows;
    }
    println!("\n{rows} of {} flights, {} merges on nodes: {nodes}, the mean of them", flights.rows.len(), plain.len());
    let alone = mean(&plain);
    for (name, rate) in [("a plain copy", alone), ("step copy", mean(&copy)), ("whole move", mean(&whole))] {
        println!("{name:<44}{rate:>12.0}{:>8.2}", rate / alone);
    }
    Ok(())
}

fn mean(rates: &[f64]) -> f64 {
    rates.iter().sum::<f64>() / rates.len() as f64
}

/// Rows per second of a plain copy of so many rows into a new file.
fn copied(bare: &rusqlite::Connection, dir: &Path, rows: u64) -> anyhow::Result<f64> {
    let file = dir.join("copy.db");
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(dir.join(format!("copy.db{end}")));
    }
    bare.execute("ATTACH ? AS other", [file.to_string_lossy()])?;
    let create: String =
        bare.query_row("SELECT sql FROM sqlite_schema WHERE name = 'flights'", [], |row| row.get(0))?;
    bare.execute_batch("PRAGMA other.journal_mode = wal; PRAGMA other.synchronous = full")?;
    bare.execute_batch(&create.replacen("flights", "other.flights", 1))?;
    let begun = Instant::now();
    let copied = bare.execute("INSERT INTO other.flights SELECT * FROM main.flights LIMIT ?", [rows as i64])?;
    let took = begun.elapsed();
    bare.execute_batch("DETACH other")?;
    anyhow::ensure!(copied as u64 == rows, "{copied} rows were copied instead of {rows}");
    Ok(rows as f64 / took.as_secs_f64())
}

async fn get(cluster: &Cluster, path: &str) -> anyhow::Result<Value> {
    let answer = cluster.http.get(format!("{}{path}", cluster.urls[0])).send().await?;
    Ok(serde_json::from_str(&answer.text().await?)?)
}

/// One move that has ended: its rows, and the seconds of it all and of its step `copy`.
pub struct Moved {
    pub rows: u64,
    pub whole: f64,
    pub copy: f64,
}

impl Moved {
    /// Of a shard into the first.
    pub async fn wait(cluster: &Cluster, from: &str) -> anyhow::Result<Moved> {
        let body = json!({"kind": "merge", "from": from, "to": "shard-1"});
        let started: Value = serde_json::from_str(&cluster.post(0, "/operations", &body).await?)?;
        let id = started["id"].as_str().with_context(|| format!("no operation: {started}"))?.to_owned();
        let begun = Instant::now();
        loop {
            let operation = get(cluster, &format!("/operations/{id}")).await?;
            match operation["phase"].as_str() {
                Some("Successful") => return Moved::of(&operation).with_context(|| operation.to_string()),
                Some("Failed" | "Skipped") => anyhow::bail!("{operation}"),
                _ => anyhow::ensure!(begun.elapsed() < MOVE_MAX, "{id} takes too long: {operation}"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn of(operation: &Value) -> Option<Moved> {
        let steps = operation["steps"].as_array()?;
        let copy = steps.iter().find(|step| step["name"] == "copy")?;
        Some(Moved {
            rows: operation["receipt"]["source"]["rows"].as_u64()?,
            whole: between(&steps.first()?["begun"], &steps.last()?["ended"])?,
            copy: between(&copy["begun"], &copy["ended"])?,
        })
    }
}

/// Seconds from one time of day to another, as in `2013-01-01T05:00:00.123Z`.
fn between(begun: &Value, ended: &Value) -> Option<f64> {
    let of_day = |at: &Value| {
        let mut parts = at.as_str()?.split_once('T')?.1.trim_end_matches('Z').split(':').map(str::parse::<f64>);
        Some(parts.next()?.ok()? * 3600.0 + parts.next()?.ok()? * 60.0 + parts.next()?.ok()?)
    };
    Some((of_day(ended)? - of_day(begun)?).rem_euclid(86_400.0))
}
