//! What a shard's leader counts while it serves: the raw material of `/shards`, `/metrics` and the
//! autoscaler. Counting is a few relaxed atomic additions per statement; rates are worked out by a sampler
//! that looks once a second and keeps the last [`WINDOW_SAMPLES`] looks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pleat_cluster::PartitionId;

use crate::observe::{PartitionLoad, Quantiles};

/// Rates are averages over this many looks, one second apart.
pub const WINDOW_SAMPLES: usize = 10;
/// Latency buckets: four to each doubling from 1 µs, so that a quantile is right to about 20 %.
const BUCKETS: usize = 4 * 32;

/// What a statement was, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    /// One piece of a bulk load. A batch comes in many, one or more for each partition, so a piece counts as
    /// a transaction and as load of its partition, but neither as a client's query nor as a connection.
    Piece,
}

/// Counters of one shard on the node that leads it.
#[derive(Debug)]
pub struct Meter {
    reads: AtomicU64,
    writes: AtomicU64,
    pieces: AtomicU64,
    errors: AtomicU64,
    in_flight: AtomicU64,
    peak: AtomicU64,
    latency: Vec<AtomicU64>,
    /// Reads and writes that named a partition, two counters for each.
    partitions: Vec<AtomicU64>,
    window: Mutex<VecDeque<Sample>>,
}

#[derive(Debug)]
struct Sample {
    at: Instant,
    reads: u64,
    writes: u64,
    pieces: u64,
    peak: u64,
    latency: Vec<u64>,
    partitions: Vec<u64>,
}

/// Rates over the window.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    pub queries_per_second: f64,
    pub transactions_per_second: f64,
    pub latency_ms: Quantiles,
    pub connections: u64,
    pub partition_load: BTreeMap<u32, PartitionLoad>,
}

impl Meter {
    pub fn new(partition_count: u32) -> Self {
        let zeros = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        Self {
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            pieces: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            latency: zeros(BUCKETS),
            partitions: zeros(2 * partition_count as usize),
            window: Mutex::new(VecDeque::new()),
        }
    }

    /// Count a statement from here until the guard is dropped.
    pub fn begin(&self, kind: Kind, units: &[PartitionId]) -> InFlight<'_> {
        if kind != Kind::Piece {
            let now = self.in_flight.fetch_add(1, Relaxed) + 1;
            self.peak.fetch_max(now, Relaxed);
        }
        let offset = usize::from(kind != Kind::Read);
        for unit in units {
            if let Some(counter) = self.partitions.get(2 * unit.0 as usize + offset) {
                counter.fetch_add(1, Relaxed);
            }
        }
        match kind {
            Kind::Read => self.reads.fetch_add(1, Relaxed),
            Kind::Write => self.writes.fetch_add(1, Relaxed),
            Kind::Piece => self.pieces.fetch_add(1, Relaxed),
        };
        InFlight { meter: self, kind, begun: Instant::now() }
    }

    /// Count a statement that failed.
    pub fn failed(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    /// Errors since the replica started.
    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }

    /// Statements of clients since the replica started, those included that are being served.
    pub fn served(&self) -> u64 {
        self.reads.load(Relaxed) + self.writes.load(Relaxed) + self.pieces.load(Relaxed)
    }

    /// Look at the counters; called once a second.
    pub fn sample(&self) {
        let copy = |counters: &[AtomicU64]| counters.iter().map(|c| c.load(Relaxed)).collect::<Vec<_>>();
        let sample = Sample {
            at: Instant::now(),
            reads: self.reads.load(Relaxed),
            writes: self.writes.load(Relaxed),
            pieces: self.pieces.load(Relaxed),
            peak: self.peak.swap(self.in_flight.load(Relaxed), Relaxed),
            latency: copy(&self.latency),
            partitions: copy(&self.partitions),
        };
        let mut window = self.window.lock();
        window.push_back(sample);
        while window.len() > WINDOW_SAMPLES + 1 {
            window.pop_front();
        }
    }

    /// The rates over the window; zero until there are two looks.
    pub fn rates(&self) -> Rates {
        let window = self.window.lock();
        let (Some(first), Some(last)) = (window.front(), window.back()) else { return Rates::default() };
        let seconds = last.at.duration_since(first.at).as_secs_f64();
        if seconds <= 0.0 {
            return Rates::default();
        }
        let per_second = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        let mut partition_load = BTreeMap::new();
        for (number, (now, then)) in (0u32..).zip(last.partitions.chunks(2).zip(first.partitions.chunks(2))) {
            if now != then {
                let load = PartitionLoad {
                    reads_per_second: per_second(now[0], then[0]),
                    writes_per_second: per_second(now[1], then[1]),
                };
                partition_load.insert(number, load);
            }
        }
        let latency: Vec<u64> = last.latency.iter().zip(&first.latency).map(|(now, then)| now - then).collect();
        Rates {
            queries_per_second: per_second(last.reads + last.writes, first.reads + first.writes),
            transactions_per_second: per_second(last.writes + last.pieces, first.writes + first.pieces),
            latency_ms: quantiles(&latency),
            connections: window.iter().map(|sample| sample.peak).max().unwrap_or(0),
            partition_load,
        }
    }
}

/// A statement being served. Dropping it ends the count and notes how long it took.
#[derive(Debug)]
pub struct InFlight<'a> {
    meter: &'a Meter,
    kind: Kind,
    begun: Instant,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if self.kind != Kind::Piece {
            self.meter.in_flight.fetch_sub(1, Relaxed);
        }
        if let Some(bucket) = self.meter.latency.get(bucket_of(self.begun.elapsed())) {
            bucket.fetch_add(1, Relaxed);
        }
    }
}

fn bucket_of(elapsed: Duration) -> usize {
    let micros = elapsed.as_micros().max(1) as f64;
    ((micros.log2() * 4.0) as usize).min(BUCKETS - 1)
}

fn quantiles(buckets: &[u64]) -> Quantiles {
    let total: u64 = buckets.iter().sum();
    let at = |q: f64| {
        if total == 0 {
            return None;
        }
        let rank = (q * total as f64).ceil() as u64;
        let mut seen = 0;
        let bucket = buckets.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        // The bucket's upper edge: a latency is never reported better than it was.
        Some(2f64.powf((bucket + 1) as f64 / 4.0) / 1000.0)
    };
    Quantiles { p50: at(0.5), p95: at(0.95), p99: at(0.99) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_invented_before_there_is_a_window() {
        let meter = Meter::new(4);
        drop(meter.begin(Kind::Read, &[PartitionId(1)]));
        meter.sample();
        let rates = meter.rates();
        assert_eq!(rates.queries_per_second, 0.0);
        assert_eq!(rates.latency_ms.p50, None);
    }

    #[test]
    fn counts_by_partition_and_remembers_the_peak() {
        let meter = Meter::new(4);
        meter.sample();
        std::thread::sleep(Duration::from_millis(2));
        let both = (meter.begin(Kind::Write, &[PartitionId(3)]), meter.begin(Kind::Read, &[PartitionId(3)]));
        drop(both);
        drop(meter.begin(Kind::Read, &[PartitionId::of_single(pleat_cluster::TableId(1))]));
        meter.sample();
        let rates = meter.rates();
        assert_eq!(rates.connections, 2);
        assert_eq!(rates.partition_load.keys().copied().collect::<Vec<_>>(), [3]);
        let load = &rates.partition_load[&3];
        assert!(load.reads_per_second > 0.0 && load.reads_per_second == load.writes_per_second);
        assert!(rates.queries_per_second > 2.0 * rates.transactions_per_second);
        assert!(rates.latency_ms.p99.is_some());
    }

    #[test]
    fn pieces_of_a_bulk_load_are_transactions_but_not_queries() {
        let meter = Meter::new(4);
        meter.sample();
        std::thread::sleep(Duration::from_millis(2));
        drop([meter.begin(Kind::Piece, &[PartitionId(0)]), meter.begin(Kind::Piece, &[PartitionId(1)])]);
        meter.sample();
        let rates = meter.rates();
        assert_eq!((rates.queries_per_second, rates.connections), (0.0, 0));
        assert!(rates.transactions_per_second > 0.0);
        assert_eq!(rates.partition_load.len(), 2);
    }

    #[test]
    fn buckets_cover_microseconds_to_an_hour() {
        assert_eq!(bucket_of(Duration::ZERO), 0);
        assert!(bucket_of(Duration::from_secs(3600)) < BUCKETS);
        let mut buckets = vec![0; BUCKETS];
        buckets[bucket_of(Duration::from_millis(10))] = 100;
        let p50 = quantiles(&buckets).p50.unwrap();
        assert!((10.0..12.0).contains(&p50), "{p50}");
    }
}
