//! One request's time.

use std::time::{Duration, Instant};

/// When a request must have ended.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    ends: Instant,
    limit: Duration,
}

impl Deadline {
    /// From now on.
    pub fn after(limit: Duration) -> Self {
        Self { ends: Instant::now() + limit, limit }
    }

    /// The time that the request was given in all.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// What is left; zero when it is over.
    pub fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    /// Whether nothing is left.
    pub fn is_over(&self) -> bool {
        self.left().is_zero()
    }
}
