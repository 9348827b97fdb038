//! Point reads and durable point writes, against SQLite in this process.
//!
//! Both do the same on the same table. SQLite is called with prepared statements, WAL and an fsync for each commit; the cluster is asked
//! over HTTP, each write replicated and fsynced on a majority of its nodes (all on this machine and its one disk).
//!
//! What a durable write costs is the disk's business before anyone else's. So how often the directory's file system
//! can fsync is measured beside the writes, in the same rounds; SQLite can't be faster than that if it keeps its promise,
//! and each of its writes must have changed a row, in WAL, with `synchronous=FULL`, or the run stops.

use std::path::Path;
use std::time::Instant;

use crate::Args;
use crate::cluster::{Cluster, ROWS, key};
use crate::measure::{Operation, Sample, cpu_seconds, fsyncs, median, sample};

/// Point reads and point writes.
pub async fn run(args: &Args, dir: &Path) -> anyhow::Result<()> {
    let bare = Bare::new(dir)?;
    let cluster = Cluster::start(args, dir, args.nodes, 1)?;
    cluster.fill().await?;
    println!("{} nodes, {} operations a round, median of {} rounds\n", args.nodes, args.operations, args.rounds());
    println!("{:<24}{:>10}{:>10}{:>14}{:>10}{:>10}", "", "per s", "ratio", "CPU µs each", "p50 ms", "p99 ms");
    for (operation, name) in [(Operation::Read, "read"), (Operation::Write, "write")] {
        let mut alone = Vec::new();
        let mut disk = Vec::new();
        let mut with: Vec<Vec<Sample>> = vec![Vec::new(); args.clients.len()];
        for _ in 0..args.rounds() {
            alone.push(bare.round(operation, args.operations)?);
            if operation == Operation::Write {
                disk.push(fsyncs(dir, args.operations)?);
            }
            for (samples, clients) in with.iter_mut().zip(&args.clients) {
                samples.push(cluster.round(operation, args.operations, *clients, None).await?);
            }
        }
        let alone = median(alone);
        if !disk.is_empty() {
            show("fsync alone", &median(disk), &alone);
        }
        show(&format!("{name}, SQLite"), &alone, &alone);
        for (samples, clients) in with.into_iter().zip(&args.clients) {
            let plural = if *clients == 1 { "" } else { "s" };
            show(&format!("{name}, {clients} client{plural}"), &median(samples), &alone);
        }
    }
    Ok(())
}

fn show(name: &str, sample: &Sample, base: &Sample) {
    println!(
        "{name:<24}{:>10.0}{:>10.3}{:>14.0}{:>10.2}{:>10.2}",
        sample.per_second,
        sample.per_second / base.per_second,
        sample.cpu_micros,
        sample.p50_ms,
        sample.p99_ms
    );
}

struct Bare {
    connection: rusqlite::Connection,
}

impl Bare {
    fn new(dir: &Path) -> anyhow::Result<Bare> {
        let connection = rusqlite::Connection::open(dir.join("bare.db"))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        let synchronous: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0))?;
        anyhow::ensure!((mode.as_str(), synchronous) == ("wal", 2), "SQLite runs {mode}, synchronous={synchronous}");
        connection.execute_batch("CREATE TABLE kv (id INTEGER PRIMARY KEY, v TEXT); BEGIN")?;
        for id in 0..ROWS {
            connection.execute("INSERT INTO kv VALUES (?, ?)", (id as i64, "x".repeat(100)))?;
        }
        connection.execute_batch("COMMIT")?;
        Ok(Bare { connection })
    }

    fn round(&self, operation: Operation, operations: u64) -> anyhow::Result<Sample> {
        let mut read = self.connection.prepare("SELECT v FROM kv WHERE id = ?")?;
        let mut write = self.connection.prepare("UPDATE kv SET v = ? WHERE id = ?")?;
        // Reads take microseconds, and CPU is counted in hundredths of a second.
        let operations = if operation == Operation::Read { operations * 50 } else { operations };
        anyhow::ensure!(self.connection.is_autocommit(), "a transaction is open: writes would not be durable");
        let mut latencies = Vec::with_capacity(operations as usize);
        let (begun, cpu) = (Instant::now(), cpu_seconds("self")?);
        for number in 0..operations {
            let one = Instant::now();
            match operation {
                Operation::Read => drop(read.query_row([key(number)], |row| row.get::<_, String>(0))?),
                Operation::Write => {
                    let changed = write.execute((format!("{number:0100}"), key(number)))?;
                    anyhow::ensure!(changed == 1, "a write changed {changed} rows");
                }
            }
            latencies.push(one.elapsed());
        }
        Ok(sample(latencies, begun.elapsed(), cpu_seconds("self")? - cpu))
    }
}
