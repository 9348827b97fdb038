//! How long closing the gates would take, and how long it may.

use std::time::Duration;

use pleat_plan::PauseParts;

use crate::stop::Stop;

/// After this many rounds in which the pause would have been over the budget, a longer one is accepted.
const ROUNDS_PER_BUDGET: u32 = 25;
/// The budget for the pause is doubled at most this often: a slow disk must not keep a full shard from being split.
const BUDGET_DOUBLINGS_MAX: u32 = 4;

/// How long things take right now, as the moving averages of what they took; and the budget for the pause.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub write: Duration,
    pub read: Duration,
    pub command: Duration,
    /// Writes that follow the commit until clients can go on.
    pub writes_after: u32,
    budget: Duration,
    budget_max: Duration,
    /// Rounds in which the pause would have been over the budget.
    over: u32,
}

impl Pace {
    pub fn new(budget: Duration) -> Self {
        let zero = Duration::ZERO;
        let budget_max = budget * (1 << BUDGET_DOUBLINGS_MAX);
        Self { write: zero, read: zero, command: zero, writes_after: 1, budget, budget_max, over: 0 }
    }

    pub fn mix(average: &mut Duration, sample: Duration) {
        *average = if average.is_zero() { sample } else { (*average + sample) / 2 };
    }

    pub fn budget(&self) -> Duration {
        self.budget
    }

    /// The pause if the gates were closed now, with the rest as the last round's.
    fn predict(&self, rest: Duration) -> Duration {
        let Self { write, read, command, .. } = *self;
        PauseParts { write, read, command }.pause(rest, self.writes_after)
    }

    /// The predicted pause, when it is within the budget. A machine that is slow at the moment gets a while to recover;
    /// then a longer pause is better than none.
    pub fn allows(&mut self, rest: Duration) -> Result<Option<Duration>, Stop> {
        let predicted = self.predict(rest);
        if predicted <= self.budget {
            return Ok(Some(predicted));
        }
        self.over += 1;
        if self.over.is_multiple_of(ROUNDS_PER_BUDGET) {
            if self.budget >= self.budget_max {
                let (now, limit) = (predicted.as_millis(), self.budget_max.as_millis());
                return Err(Stop::Again(format!(
                    "the pause would take {now} ms, and more than {limit} ms is not accepted"
                )));
            }
            self.budget *= 2;
        }
        Ok(None)
    }
}
