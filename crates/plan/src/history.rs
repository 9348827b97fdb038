//! What earlier looks leave behind: streaks for splits, peaks for merges.
//!
//! It lives in the memory of the control leader. A new leader begins anew, which delays a decision and never hastens one.

use std::collections::BTreeMap;

use pleat_cluster::Millis;

use crate::{LOOKS_NEEDED, Metric};

/// The most that was measured, by metric.
pub(crate) type Peaks = BTreeMap<Metric, f64>;

/// What is known of looks before the present one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// For how many looks in a row each metric has been over its threshold.
    streaks: BTreeMap<(String, Metric), u32>,
    watched: BTreeMap<String, Watched>,
}

/// The peaks of a subject over a time and a little longer: those of the period at hand and of the one before it. Two numbers a metric do,
/// however often it is looked.
#[derive(Clone, Debug, PartialEq)]
struct Watched {
    since: Millis,
    looks: u32,
    /// When the period at hand began.
    turned: Millis,
    current: Peaks,
    before: Peaks,
}

impl History {
    /// Take in one look; says for how many looks the threshold has been exceeded, this one included.
    pub(crate) fn look(&mut self, subject: &str, metric: Metric, exceeded: bool) -> u32 {
        let key = (subject.to_owned(), metric);
        if !exceeded {
            self.streaks.remove(&key);
            return 0;
        }
        let streak = self.streaks.entry(key).or_insert(0);
        *streak = streak.saturating_add(1);
        *streak
    }

    /// Note what was measured of a subject at a look.
    pub(crate) fn watch(&mut self, subject: &str, values: Peaks, now: Millis, period: Millis) {
        let fresh = || Watched { since: now, looks: 0, turned: now, current: Peaks::new(), before: Peaks::new() };
        let watched = self.watched.entry(subject.to_owned()).or_insert_with(fresh);
        if now >= watched.turned.saturating_add(period) {
            watched.turned = now;
            watched.before = std::mem::take(&mut watched.current);
        }
        watched.looks = watched.looks.saturating_add(1);
        for (metric, value) in values {
            let peak = watched.current.entry(metric).or_insert(value);
            *peak = peak.max(value);
        }
    }

    /// The most that was measured of a subject in the last `period`, unless it has not been watched for so long.
    pub(crate) fn peaks(&self, subject: &str, now: Millis, period: Millis) -> Option<Peaks> {
        let watched = self.watched.get(subject)?;
        if now < watched.since.saturating_add(period) || watched.looks < LOOKS_NEEDED {
            return None;
        }
        let mut peaks = watched.current.clone();
        for (metric, value) in &watched.before {
            let peak = peaks.entry(*metric).or_insert(*value);
            *peak = peak.max(*value);
        }
        Some(peaks)
    }

    /// Begin counting anew how long thresholds have been exceeded.
    pub(crate) fn forget_streaks(&mut self) {
        self.streaks.clear();
    }

    /// Begin watching anew: what was measured while partitions move says little about the time after it.
    pub(crate) fn forget_peaks(&mut self) {
        self.watched.clear();
    }

    /// Forget everything: what was measured during a change says little about the time after it.
    pub(crate) fn forget(&mut self) {
        self.streaks.clear();
        self.watched.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_remembered_for_the_whole_period_and_no_longer_than_two() {
        let mut history = History::default();
        let peak = |history: &History, now| history.peaks("shard-1", now, 100).map(|peaks| peaks[&Metric::CpuPercent]);
        for now in (1_000..2_000).step_by(10) {
            let value = if now == 1_050 { 90.0 } else { 5.0 };
            history.watch("shard-1", Peaks::from([(Metric::CpuPercent, value)]), now, 100);
            match now {
                ..1_100 => assert_eq!(peak(&history, now), None, "{now}"),
                1_100..=1_150 => assert_eq!(peak(&history, now), Some(90.0), "{now}"),
                1_250.. => assert_eq!(peak(&history, now), Some(5.0), "{now}"),
                _ => {}
            }
        }
        history.forget();
        assert_eq!(peak(&history, 2_000), None);
    }
}
