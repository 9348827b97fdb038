//! Sending one batch until it is in: the retry that the guide recommends.
//!
//! An error that the server calls retryable, and a connection that broke, are answered by sending the *same*
//! batch under the *same* id again, after a pause that doubles from 50 ms to 2 s. Whether the first attempt was
//! carried out does not matter: the cluster inserts a batch id once.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::client::{Client, Failure};
use crate::cli::{ops, output};

const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LONGEST: Duration = Duration::from_secs(2);

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub inserted: u64,
    /// The row within the batch, and why.
    pub rejected: Vec<(usize, String)>,
}

/// Where batches go, and how long to keep trying.
#[derive(Clone, Debug)]
pub struct Sender {
    pub client: Client,
    pub table: String,
    pub retry_for: Duration,
}

impl Sender {
    /// Send a batch until the cluster has taken it, or has said no, or `retry_for` is over.
    pub async fn send(&self, batch_id: &str, body: Vec<u8>) -> Result<Answer, Failure> {
        let path = format!("/tables/{}/rows?batch_id={}", ops::path_segment(&self.table), ops::path_segment(batch_id));
        let begun = Instant::now();
        let mut pause = PAUSE_FIRST;
        loop {
            match self.client.post(&path, body.clone()).await {
                Ok(answer) => return Ok(Answer::from_json(&answer)),
                Err(failure) if failure.retryable && begun.elapsed() + pause < self.retry_for => {
                    tokio::time::sleep(pause + jitter(batch_id, pause)).await;
                    pause = (pause * 2).min(PAUSE_LONGEST);
                }
                Err(failure) => return Err(failure),
            }
        }
    }
}

/// Up to half a pause more, different for each batch, so that batches that failed together don't come back
/// together.
fn jitter(batch_id: &str, pause: Duration) -> Duration {
    let sum: u32 = batch_id.bytes().map(u32::from).sum();
    pause * (sum % 16) / 32
}

impl Answer {
    fn from_json(answer: &Value) -> Answer {
        let rejected = output::items(answer, "rejected").iter().filter_map(|row| {
            let index = usize::try_from(row.get("row")?.as_u64()?).ok()?;
            let reason = match row.get("code").and_then(Value::as_str) {
                Some(code) => format!("{} [{code}]", output::text(row, "error")),
                None => output::text(row, "error"),
            };
            Some((index, reason))
        });
        Answer { inserted: answer.get("inserted").and_then(Value::as_u64).unwrap_or(0), rejected: rejected.collect() }
    }
}
