//! Results as lines: rows go on to the client while they arrive.
//!
//! A task of its own takes rows from the shards and puts lines into a short queue that the connection
//! empties; when the client reads slowly, the queue fills and the shards wait. The statement's time limits all
//! of it, and a client that reads nothing for a while is given up before that: only here can it be told from one that
//! reads on, whose shards may have to wait for one another. The last line tells the end from a cut: an answer without it
//! is not complete.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt;
use pleat_cluster::Value;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::document::Text;
use super::problem::ErrorBody;
use super::query::Trailer;
use super::value::RowArray;
use crate::session::{Effect, Failure, Output, Response as Answer, Rows};

/// Blocks of lines that wait for the client.
const BLOCKS_WAITING_MAX: usize = 4;
/// How long the last line may wait for the client after the statement's time.
const LAST_LINE_TIME: Duration = Duration::from_secs(1);

type Lines = mpsc::Sender<Result<Bytes, std::io::Error>>;

/// The answer as lines. A failure before the first row is an error like any other.
pub async fn response(
    answer: Answer,
    ends: Instant,
    stall: Duration,
    permit: impl Send + 'static,
) -> Result<Response, Failure> {
    let trailer = Trailer::of(&answer);
    let body = match answer.output {
        Output::Effects(effects) => Body::from(effect_lines(&effects, &trailer)?),
        Output::Rows { columns, mut rows } => {
            let first = rows.try_next().await?;
            let (sender, lines) = mpsc::channel(BLOCKS_WAITING_MAX);
            let pump = Pump { sender, ends, stall, rows: 0 };
            tokio::spawn(async move {
                let _permit = permit;
                pump.run(columns, first, rows, trailer).await;
            });
            Body::from_stream(ReceiverStream::new(lines))
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// The client is gone, or too slow.
struct Gone;

struct Pump {
    sender: Lines,
    ends: Instant,
    stall: Duration,
    rows: u64,
}

impl Pump {
    async fn run(mut self, columns: Vec<String>, first: Option<Vec<Vec<Value>>>, mut rows: Rows, trailer: Trailer) {
        if self.send(line(&json!({ "columns": columns }))).await.is_err() {
            return;
        }
        let mut next = Ok(first);
        let end = loop {
            match next {
                Ok(Some(chunk)) => {
                    self.rows += chunk.len() as u64;
                    let sent = match row_lines(&chunk) {
                        Ok(lines) => self.send(lines).await,
                        Err(failure) => break line(&ErrorBody::from(&failure)),
                    };
                    if sent.is_err() {
                        // Without a last line the client sees that the answer was cut off.
                        return;
                    }
                }
                Ok(None) => {
                    break last_line(self.rows, &trailer).unwrap_or_else(|failure| line(&ErrorBody::from(&failure)));
                }
                Err(failure) => break line(&ErrorBody::from(&failure)),
            }
            next = rows.try_next().await;
        };
        self.ends = self.ends.max(Instant::now() + LAST_LINE_TIME);
        let _ = self.send(end).await;
    }

    async fn send(&mut self, lines: Vec<u8>) -> Result<(), Gone> {
        if lines.is_empty() {
            return Ok(());
        }
        let until = self.ends.min(Instant::now() + self.stall);
        match tokio::time::timeout_at(until, self.sender.send(Ok(lines.into()))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }
}

fn line<T: serde::Serialize>(value: &T) -> Vec<u8> {
    // Only plain structs and strings come here; they always serialize.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

fn row_lines(rows: &[Vec<Value>]) -> Result<Vec<u8>, Failure> {
    let mut text = Text { bytes: Vec::new(), limit: usize::MAX };
    for row in rows {
        text.json(&RowArray(row))?;
        text.raw(b"\n");
    }
    Ok(text.bytes)
}

fn last_line(rows: u64, trailer: &Trailer) -> Result<Vec<u8>, Failure> {
    let mut text = Text { bytes: Vec::new(), limit: usize::MAX };
    text.raw(b"{\"rows\":");
    text.json(&rows)?;
    text.fields(trailer)?;
    text.raw(b"}\n");
    Ok(text.bytes)
}

/// A write's answer: the rows of its last statement; all results, when there are several, in the last line.
fn effect_lines(effects: &[Effect], trailer: &Trailer) -> Result<Vec<u8>, Failure> {
    let none = Effect::default();
    let last = effects.last().unwrap_or(&none);
    let mut lines = line(&json!({ "columns": last.columns }));
    lines.extend(row_lines(&last.rows)?);
    let mut text = Text { bytes: lines, limit: usize::MAX };
    text.raw(b"{\"rows\":");
    text.json(&last.rows.len())?;
    text.fields(trailer)?;
    text.field("last_insert_id", &last.last_insert_id)?;
    if effects.len() > 1 {
        text.raw(b",\"results\":");
        text.results(effects)?;
    }
    text.raw(b"}\n");
    Ok(text.bytes)
}

#[cfg(test)]
mod tests {
    use futures::stream::{self, StreamExt};
    use pleat_cluster::ShardId;

    use super::*;
    use crate::session::Touched;

    fn answer(chunks: Vec<Result<Vec<Vec<Value>>, Failure>>) -> Answer {
        Answer {
            output: Output::Rows { columns: vec!["a".to_owned(), "a".to_owned()], rows: stream::iter(chunks).boxed() },
            touched: Touched::Many(vec![ShardId(1), ShardId(2)]),
            generation: 7,
            token: None,
            notice: None,
            operation: None,
            replayed: false,
        }
    }

    async fn lines(answer: Answer) -> Vec<String> {
        let response = response(answer, Instant::now() + MINUTE, MINUTE, ()).await.unwrap();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap().lines().map(str::to_owned).collect()
    }

    const MINUTE: Duration = Duration::from_secs(60);

    fn row(n: i64) -> Vec<Value> {
        vec![Value::Integer(n), Value::Null]
    }

    #[tokio::test]
    async fn columns_then_rows_then_the_end() {
        let chunks = vec![Ok(vec![row(1)]), Ok(vec![]), Ok(vec![row(2), row(3)])];
        let wanted = [
            r#"{"columns":["a","a"]}"#,
            "[1,null]",
            "[2,null]",
            "[3,null]",
            r#"{"rows":3,"shards":["shard-1","shard-2"],"rows_affected":0,"generation":7}"#,
        ];
        assert_eq!(lines(answer(chunks)).await, wanted);
    }

    #[tokio::test]
    async fn a_failure_halfway_is_the_last_line() {
        let lines = lines(answer(vec![Ok(vec![row(1)]), Err(Failure::new("57014", "too slow", "narrow it"))])).await;
        assert_eq!(lines[2], r#"{"error":"too slow","code":"57014","hint":"narrow it","retryable":false}"#);
    }

    #[tokio::test]
    async fn a_failure_before_the_first_row_is_an_error() {
        let failed = answer(vec![Err(Failure::new("22012", "no", ""))]);
        let failure = response(failed, Instant::now(), MINUTE, ()).await.map(|_| ()).unwrap_err();
        assert_eq!(failure.code, "22012");
    }

    #[tokio::test]
    async fn a_client_that_stops_reading_is_cut_off() {
        let short = Duration::from_millis(20);
        for (time, stall) in [(short, MINUTE), (MINUTE, short)] {
            let chunks = (0..100).map(|n| Ok(vec![row(n)])).collect();
            let place = std::sync::Arc::new(());
            let response = response(answer(chunks), Instant::now() + time, stall, place.clone()).await.unwrap();
            // The place is given back, without anybody reading.
            while std::sync::Arc::strong_count(&place) > 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
            assert!(!String::from_utf8(body.to_vec()).unwrap().contains("\"rows\""));
        }
    }
}
