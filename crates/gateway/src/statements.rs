//! Which statements take the time: figures by statement, and a log line for each slow one.
//!
//! Statements are told apart by their text without its values ([`pleat_sql::normalized`]), so that a million lookups are
//! one entry, and so that no value ever gets into a figure, a log or an answer. A read's time ends when its last row
//! was handed on; a client that reads slowly makes it longer.
//!
//! Everything here is this node's own, and gone when it ends: a statement counts on the node that it was sent to.
//! The number of entries is bounded; a new statement beyond takes the place of the least used one. The 95th percentile
//! is read from a histogram whose steps are a quarter apart, so it is that much too large at most.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use pleat_cluster::Millis;

use crate::recent::Recent;
use crate::session::{Failure, Output, Response, Touched};
use crate::settings::{PLAN_TEXT_BYTES_MAX, PLANS_CACHED_MAX, STATEMENT_SHOWN_BYTES_MAX, STATEMENTS_KEPT_MAX};

/// Steps of the histogram. The last one, at [`FIRST_STEP`] times [`STEP`]^79, is beyond the longest statement's time.
const STEPS: usize = 80;
const FIRST_STEP: Duration = Duration::from_micros(20);
const STEP: f64 = 1.25;

/// What is known of one statement.
#[derive(Clone, Debug)]
pub struct Figures {
    pub calls: u64,
    pub errors: u64,
    /// Returned or changed.
    pub rows: u64,
    pub total: Duration,
    pub max: Duration,
    /// Most shards of one call.
    pub shards: usize,
    /// Calls that several shards took part in.
    pub scattered: u64,
    pub first_at: Millis,
    pub last_at: Millis,
    steps: [u32; STEPS],
    /// When it was called last, in calls of all statements.
    used: u64,
}

impl Figures {
    fn new(at: Millis) -> Self {
        Self {
            calls: 0,
            errors: 0,
            rows: 0,
            total: Duration::ZERO,
            max: Duration::ZERO,
            shards: 0,
            scattered: 0,
            first_at: at,
            last_at: at,
            steps: [0; STEPS],
            used: 0,
        }
    }

    /// The time that 95 of 100 calls did not exceed, as the histogram has it.
    pub fn p95(&self) -> Duration {
        let wanted = (self.calls * 95).div_ceil(100);
        let mut seen = 0;
        for (step, count) in self.steps.iter().enumerate() {
            seen += u64::from(*count);
            // The last step has no end.
            if seen >= wanted && step + 1 < STEPS {
                let bound = FIRST_STEP.mul_f64(STEP.powi(i32::try_from(step).unwrap_or(i32::MAX)));
                return bound.min(self.max);
            }
        }
        self.max
    }

    pub fn mean(&self) -> Duration {
        self.total / u32::try_from(self.calls.max(1)).unwrap_or(u32::MAX)
    }

    fn add(&mut self, call: &Call, took: Duration) {
        self.calls += 1;
        self.errors += u64::from(call.failed);
        self.rows += call.rows;
        self.total += took;
        self.max = self.max.max(took);
        self.shards = self.shards.max(call.shards);
        self.scattered += u64::from(call.shards > 1);
        let step = (took.as_secs_f64() / FIRST_STEP.as_secs_f64()).max(1.0).log(STEP).ceil() as usize;
        self.steps[step.min(STEPS - 1)] += 1;
    }
}

/// The figures of one node.
pub struct Statements {
    known: Mutex<Known>,
    /// The form that a text is known by.
    forms: Mutex<Recent<Arc<str>>>,
    /// Statements that take longer are logged; none when zero.
    slow: Duration,
}

#[derive(Default)]
struct Known {
    figures: HashMap<Arc<str>, Figures>,
    calls: u64,
    since: Millis,
}

/// A call under way. Counted when it is dropped, whatever ends it.
pub struct Watch {
    statements: Arc<Statements>,
    begun: Instant,
    at: Millis,
    call: Call,
}

struct Call {
    text: Arc<str>,
    failed: bool,
    rows: u64,
    shards: usize,
}

impl Statements {
    pub fn new(slow: Duration, now: Millis) -> Arc<Self> {
        let known = Known { since: now, ..Known::default() };
        Arc::new(Self { known: Mutex::new(known), forms: Mutex::new(Recent::new(PLANS_CACHED_MAX)), slow })
    }

    /// Begin to watch a call.
    pub fn watch(self: &Arc<Self>, text: &str, at: Millis) -> Watch {
        let call = Call { text: self.form(text), failed: false, rows: 0, shards: 0 };
        Watch { statements: self.clone(), begun: Instant::now(), at, call }
    }

    fn form(&self, text: &str) -> Arc<str> {
        if let Some(form) = self.forms.lock().find(text) {
            return form;
        }
        let form: Arc<str> = pleat_sql::normalized(text, STATEMENT_SHOWN_BYTES_MAX).into();
        if text.len() <= PLAN_TEXT_BYTES_MAX {
            self.forms.lock().insert(text.into(), form.clone());
        }
        form
    }

    /// All figures, and since when they count.
    pub fn all(&self) -> (Vec<(String, Figures)>, Millis) {
        let known = self.known.lock();
        (known.figures.iter().map(|(text, figures)| (text.to_string(), figures.clone())).collect(), known.since)
    }

    /// Forget everything; how many statements that were.
    pub fn reset(&self, now: Millis) -> usize {
        let mut known = self.known.lock();
        let forgotten = known.figures.len();
        *known = Known { since: now, ..Known::default() };
        forgotten
    }

    fn count(&self, call: &Call, at: Millis, took: Duration) {
        let known = &mut *self.known.lock();
        known.calls += 1;
        let figures = match known.figures.contains_key(&call.text) {
            true => known.figures.get_mut(&call.text),
            false => {
                known.make_room();
                Some(known.figures.entry(call.text.clone()).or_insert_with(|| Figures::new(at)))
            }
        };
        let Some(figures) = figures else { return };
        figures.add(call, took);
        figures.last_at = figures.last_at.max(at);
        figures.used = known.calls;
    }
}

impl Known {
    /// The least called statement goes; of several, the one that was not called for longest.
    fn make_room(&mut self) {
        if self.figures.len() < STATEMENTS_KEPT_MAX {
            return;
        }
        let least = self.figures.iter().min_by_key(|(_, figures)| (figures.calls, figures.used));
        if let Some(text) = least.map(|(text, _)| text.clone()) {
            self.figures.remove(&text);
        }
    }
}

impl Watch {
    /// The call was answered: the watch goes on until the last row is handed on.
    pub fn answered(mut self, answer: Result<Response, Failure>) -> Result<Response, Failure> {
        let mut answer = answer.inspect_err(|_| self.call.failed = true)?;
        self.call.shards = match &answer.touched {
            Touched::One(_) => 1,
            Touched::Many(shards) => shards.len(),
        };
        match answer.output {
            Output::Effects(effects) => {
                self.call.rows = effects.iter().map(|effect| effect.rows_affected).sum();
                answer.output = Output::Effects(effects);
            }
            Output::Rows { columns, rows } => {
                let state = (rows, self);
                let watched = futures::stream::try_unfold(state, |(mut rows, mut watch)| async move {
                    match rows.try_next().await {
                        Ok(Some(chunk)) => {
                            watch.call.rows += chunk.len() as u64;
                            Ok(Some((chunk, (rows, watch))))
                        }
                        Ok(None) => Ok(None),
                        Err(failure) => {
                            watch.fail();
                            Err(failure)
                        }
                    }
                });
                answer.output = Output::Rows { columns, rows: watched.boxed() };
            }
        }
        Ok(answer)
    }
}

impl Watch {
    fn fail(&mut self) {
        self.call.failed = true;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        self.statements.count(&self.call, self.at, took);
        if took >= self.statements.slow && !self.statements.slow.is_zero() {
            let Call { text, failed, rows, shards } = &self.call;
            let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(took_ms, rows, shards, failed, statement = %text, "slow statement");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(statements: &Statements, text: &str, took: Duration) {
        statements.count(&Call { text: text.into(), failed: false, rows: 1, shards: 2 }, 5, took);
    }

    fn figures(statements: &Statements, text: &str) -> Option<Figures> {
        statements.all().0.into_iter().find(|(known, _)| known == text).map(|(_, figures)| figures)
    }

    #[test]
    fn the_95th_percentile_is_a_step_too_large_at_most_and_never_above_the_maximum() {
        let statements = Statements::new(Duration::ZERO, 1);
        for millis in 1..=100 {
            call(&statements, "q", Duration::from_millis(millis));
        }
        let figures = figures(&statements, "q").unwrap();
        assert_eq!((figures.calls, figures.scattered, figures.rows), (100, 100, 100));
        assert_eq!(figures.max, Duration::from_millis(100));
        assert_eq!(figures.mean(), Duration::from_micros(50_500));
        let p95 = figures.p95();
        assert!((Duration::from_millis(95)..=Duration::from_millis(100)).contains(&p95), "{p95:?}");
        call(&statements, "once", Duration::from_secs(10_000));
        assert_eq!(super::tests::figures(&statements, "once").unwrap().p95(), Duration::from_secs(10_000));
    }

    #[test]
    fn the_least_used_statement_makes_room() {
        let statements = Statements::new(Duration::ZERO, 1);
        for _ in 0..2 {
            call(&statements, "often", Duration::ZERO);
        }
        for number in 0..3 * STATEMENTS_KEPT_MAX {
            call(&statements, &format!("q{number}"), Duration::ZERO);
        }
        assert_eq!(statements.all().0.len(), STATEMENTS_KEPT_MAX);
        assert!(figures(&statements, "often").is_some());
        assert!(figures(&statements, &format!("q{}", 3 * STATEMENTS_KEPT_MAX - 1)).is_some(), "the newest");
        assert!(figures(&statements, "q0").is_none());
        assert_eq!(statements.reset(9), STATEMENTS_KEPT_MAX);
        assert_eq!((statements.all().0.len(), statements.all().1), (0, 9));
    }
}
