//! What concerns many rows: answers that are put together from four servers, and rows that move from one to another.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{ACCOUNTS, SCALE, said, to};
use crate::Args;
use crate::cluster::Cluster;
use crate::moving::Moved;

const QUERIES: [&str; 5] = [
    "SELECT count(*) FROM pgbench_accounts",
    "SELECT sum(abalance), min(aid), max(aid) FROM pgbench_accounts",
    "SELECT avg(aid) FROM pgbench_accounts",
    "SELECT bid, count(*), sum(aid) FROM pgbench_accounts GROUP BY bid ORDER BY bid",
    "SELECT aid % 1000 AS k, count(*), avg(abalance) FROM pgbench_accounts GROUP BY k ORDER BY k LIMIT 10",
];

/// Aggregates of all rows of four servers, against the server that has them all. Both must give the same answer.
pub fn gathered(args: &Args, dir: &Path, server: SocketAddr, pleat: u16) -> anyhow::Result<()> {
    let rows = SCALE * ACCOUNTS;
    println!("\n{rows} rows on four servers, and on one: median of {} rounds\n", args.scatters);
    println!("{:<104}{:>12}{:>12}{:>8}", "", "one ms", "four ms", "ratio");
    for port in [server.port(), pleat] {
        said(to("psql", port).args(["-XqAt", "-c", "VACUUM ANALYZE pgbench_accounts"]))?;
    }
    for sql in QUERIES {
        let answer = |port| said(to("psql", port).args(["-XqAt", "-c", sql]));
        let (wanted, answer) = (answer(server.port())?, answer(pleat)?);
        anyhow::ensure!(wanted == answer, "{sql}: {answer} instead of {wanted}");
        let file = dir.join("query.sql");
        std::fs::write(&file, format!("{sql};\n"))?;
        let (mut alone, mut with) = (Vec::new(), Vec::new());
        for _ in 0..args.scatters {
            alone.push(latency(server.port(), &file)?);
            with.push(latency(pleat, &file)?);
        }
        let (alone, with) = (median(alone)?, median(with)?);
        println!("{sql:<104}{alone:>12.1}{with:>12.1}{:>8.2}", with / alone);
    }
    Ok(())
}

/// Milliseconds of a statement, as pgbench's one client sees it.
fn latency(port: u16, file: &Path) -> anyhow::Result<f64> {
    let text = said(to("pgbench", port).args(["-n", "-c", "1", "-t", "1", "-f"]).arg(file))?;
    let rest = text.split_once("latency average =").context("pgbench says no latency")?.1;
    rest.split_whitespace().next().unwrap_or_default().parse().context("pgbench says no latency")
}

fn median(mut values: Vec<f64>) -> anyhow::Result<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("no rounds")
}

/// The second of two shards into the first, against `pg_dump | psql` of the same table into another database of a server. Nobody
/// writes meanwhile. The dump makes its index when the rows are there; the shard has one already.
pub async fn moved(dir: &Path, server: SocketAddr, two: &Cluster) -> anyhow::Result<()> {
    let piped = pipe(dir, server.port())?;
    let moved = Moved::wait(two, "shard-2").await?;
    println!("\n{} rows that move from server to server\n", moved.rows);
    println!("{:<44}{:>12}{:>8}", "", "rows per s", "ratio");
    let rows = moved.rows as f64;
    for (name, rate) in
        [("pg_dump | psql", piped), ("step copy", rows / moved.copy), ("whole move", rows / moved.whole)]
    {
        println!("{name:<44}{rate:>12.0}{:>8.2}", rate / piped);
    }
    Ok(())
}

/// Rows per second of `pg_dump | psql`.
fn pipe(dir: &Path, port: u16) -> anyhow::Result<f64> {
    said(to("psql", port).args(["-XqAt", "-c", "CREATE DATABASE dumped"]))?;
    let begun = Instant::now();
    let mut dump = to("pg_dump", port).args(["-t", "pgbench_accounts"]).stdout(Stdio::piped()).spawn()?;
    let dumped = dump.stdout.take().context("no output of pg_dump")?;
    let mut restore: Command = to("psql", port);
    let log = std::fs::File::create(dir.join("restored"))?;
    let restored = restore
        .env("PGDATABASE", "dumped")
        .args(["-Xq", "-v", "ON_ERROR_STOP=1"])
        .stdin(dumped)
        .stdout(log)
        .status()?;
    let took: Duration = begun.elapsed();
    anyhow::ensure!(dump.wait()?.success() && restored.success(), "pg_dump | psql fails");
    said(to("psql", port).args(["-XqAt", "-c", "DROP DATABASE dumped"]))?;
    Ok((SCALE * ACCOUNTS) as f64 / took.as_secs_f64())
}
