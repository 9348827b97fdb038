//! What a round is and what it gives.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

/// The unit of CPU times in `/proc`, which Linux fixes for programs.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Copy, PartialEq)]
pub enum Operation {
    Read,
    Write,
}

/// What a round gave.
#[derive(Clone, Copy)]
pub struct Sample {
    pub per_second: f64,
    pub cpu_micros: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// Lets clients do operations, numbered from 0, each one after the other; gives how long each took.
pub async fn drive<C>(
    clients: Vec<C>,
    operations: u64,
    one: impl AsyncFn(&mut C, u64) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Duration>> {
    let next = AtomicU64::new(0);
    let run = async |mut client: C| {
        let mut latencies = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= operations {
                return anyhow::Ok(latencies);
            }
            let begun = Instant::now();
            one(&mut client, number).await?;
            latencies.push(begun.elapsed());
        }
    };
    Ok(futures::future::try_join_all(clients.into_iter().map(run)).await?.concat())
}

pub fn median(mut samples: Vec<Sample>) -> Sample {
    samples.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    samples[samples.len() / 2]
}

pub fn sample(mut latencies: Vec<Duration>, took: Duration, cpu_seconds: f64) -> Sample {
    latencies.sort_unstable();
    let count = latencies.len();
    let at = |part: f64| latencies[((count - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    Sample {
        per_second: count as f64 / took.as_secs_f64(),
        cpu_micros: cpu_seconds * 1e6 / count as f64,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
    }
}

/// How often this file system makes 4 KiB durable, one after the other.
pub fn fsyncs(dir: &Path, operations: u64) -> anyhow::Result<Sample> {
    use std::io::Write;
    let mut file = std::fs::File::create(dir.join("fsync"))?;
    let mut latencies = Vec::with_capacity(operations as usize);
    let (begun, cpu) = (Instant::now(), cpu_seconds("self")?);
    for _ in 0..operations {
        let one = Instant::now();
        file.write_all(&[1; 4096])?;
        file.sync_data()?;
        latencies.push(one.elapsed());
    }
    Ok(sample(latencies, begun.elapsed(), cpu_seconds("self")? - cpu))
}

/// CPU seconds of a process or, with `self`, of this one.
pub fn cpu_seconds(pid: &str) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read CPU times (Linux only)")?;
    // The second field, the name, may hold spaces; it ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(11) + ticks(12)) / TICKS_PER_SECOND)
}
