//! How far the step at hand is. See `pleat_host::Progress` for why this is not journaled.

use std::collections::VecDeque;
use std::time::Duration;

use pleat_cluster::Millis;
use pleat_host::Progress;
use tokio::time::Instant;

/// Rates are averages over this time.
const WINDOW: Duration = Duration::from_secs(10);
/// Looks are at least this far apart, which bounds how many there are.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Rows, and the bytes of their values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub rows: u64,
    pub bytes: u64,
}

/// One step's way.
#[derive(Debug)]
pub(crate) struct Tracker {
    step: String,
    detail: String,
    begun: Millis,
    done: Amount,
    total: Option<Amount>,
    /// What was done by when: the first look is the one that rates are reckoned from.
    looks: VecDeque<(Instant, Amount)>,
}

impl Tracker {
    pub fn new(step: &str, begun: Millis, now: Instant) -> Self {
        let looks = VecDeque::from([(now, Amount::default())]);
        Self { step: step.to_owned(), detail: String::new(), begun, done: Amount::default(), total: None, looks }
    }

    pub fn step(&self) -> &str {
        &self.step
    }

    /// `12,000 rows, 480000 bytes so far; in table flights`, or nothing.
    pub fn so_far(&self) -> String {
        if self.done == Amount::default() {
            return self.detail.clone();
        }
        let Amount { rows, bytes } = self.done;
        let detail = if self.detail.is_empty() { String::new() } else { format!("; {}", self.detail) };
        format!("{rows} rows, {bytes} bytes so far{detail}")
    }

    /// About how much there is to do.
    pub fn expect(&mut self, total: Amount) {
        self.total = Some(total);
    }

    /// What it is at, where there is nothing to count.
    pub fn is_at(&mut self, detail: String) {
        self.detail = detail;
    }

    /// What is done by now. True when enough time has passed to tell others.
    pub fn advance(&mut self, now: Instant, done: Amount, detail: impl FnOnce() -> String) -> bool {
        self.done = done;
        if self.looks.back().is_some_and(|(last, _)| now.duration_since(*last) < LOOK_EVERY) {
            return false;
        }
        self.detail = detail();
        self.looks.push_back((now, done));
        while self.looks.get(1).is_some_and(|(second, _)| now.duration_since(*second) >= WINDOW) {
            self.looks.pop_front();
        }
        true
    }

    /// For others; `now` is the moment on the wall.
    pub fn progress(&self, now: Millis) -> Progress {
        let (rows, bytes) = self.rates();
        // Clients add rows meanwhile, so the total is at least what is done.
        let total = self
            .total
            .map(|total| Amount { rows: total.rows.max(self.done.rows), bytes: total.bytes.max(self.done.bytes) });
        let left = |total: u64, done: u64, rate: Option<f64>| {
            rate.filter(|rate| *rate > 0.0).map(|rate| (total.saturating_sub(done)) as f64 / rate)
        };
        let ends = total.and_then(|total| {
            let of_rows = left(total.rows, self.done.rows, rows)?;
            let of_bytes = left(total.bytes, self.done.bytes, bytes).unwrap_or(0.0);
            Some(now.saturating_add((of_rows.max(of_bytes) * 1000.0) as u64))
        });
        Progress {
            step: self.step.clone(),
            detail: self.detail.clone(),
            begun: self.begun,
            rows: self.done.rows,
            bytes: self.done.bytes,
            rows_total: total.map(|total| total.rows),
            bytes_total: total.map(|total| total.bytes).filter(|bytes| *bytes > 0),
            rows_per_second: rows,
            bytes_per_second: bytes,
            ends,
        }
    }

    fn rates(&self) -> (Option<f64>, Option<f64>) {
        let (Some((from, before)), Some((to, after))) = (self.looks.front(), self.looks.back()) else {
            return (None, None);
        };
        let seconds = to.duration_since(*from).as_secs_f64();
        if seconds <= 0.0 {
            return (None, None);
        }
        let rate = |after: u64, before: u64| Some(after.saturating_sub(before) as f64 / seconds);
        (rate(after.rows, before.rows), rate(after.bytes, before.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_tells_its_rate_and_when_it_ends() {
        let start = Instant::now();
        let mut tracker = Tracker::new("copy", 1_000, start);
        assert_eq!((tracker.progress(1_000).rows_per_second, tracker.so_far().as_str()), (None, ""));
        tracker.expect(Amount { rows: 10_000, bytes: 1_000_000 });
        let at = |ms: u64| start + Duration::from_millis(ms);
        let done = |rows: u64| Amount { rows, bytes: rows * 100 };
        assert!(tracker.advance(at(1_000), done(500), || "in table t".to_owned()));
        assert!(!tracker.advance(at(1_100), done(550), || unreachable!("nobody is told yet")));
        assert!(tracker.advance(at(2_000), done(1_000), || "in table t".to_owned()));
        let progress = tracker.progress(3_000);
        assert_eq!((progress.rows, progress.rows_total, progress.rows_per_second), (1_000, Some(10_000), Some(500.0)));
        assert_eq!(progress.ends, Some(3_000 + 18_000));
        assert_eq!(tracker.so_far(), "1000 rows, 100000 bytes so far; in table t");
        // It slows down: what was long ago does not count.
        for second in 3..40 {
            tracker.advance(at(second * 1_000), done(1_000 + second), String::new);
        }
        let slow = tracker.progress(40_000).rows_per_second.unwrap();
        assert!((0.9..1.1).contains(&slow), "{slow}");
        // More than was expected: never more than all.
        tracker.advance(at(41_000), done(20_000), String::new);
        let progress = tracker.progress(41_000);
        assert_eq!((progress.rows_total, progress.ends), (Some(20_000), Some(41_000)));
    }

    #[test]
    fn what_stands_still_has_no_end() {
        let start = Instant::now();
        let mut tracker = Tracker::new("copy", 0, start);
        tracker.expect(Amount { rows: u64::MAX, bytes: u64::MAX });
        tracker.advance(start + Duration::from_secs(1), Amount::default(), String::new);
        assert_eq!((tracker.progress(5).rows_per_second, tracker.progress(5).ends), (Some(0.0), None));
        tracker.advance(start + Duration::from_secs(2), Amount { rows: 1, bytes: 1 }, String::new);
        assert_eq!(tracker.progress(5).ends, Some(u64::MAX), "later than any clock shows");
    }
}
