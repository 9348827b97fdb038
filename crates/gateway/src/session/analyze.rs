//! `EXPLAIN ANALYZE`: a read is carried out, its rows are counted and thrown away, and what it took is the answer.
//!
//! What is measured is what this node saw. A shard's time is from the moment it was asked until its last row was taken, so it
//! contains the way there, and waiting for the finisher to take its rows. The shards are asked side by side: their times do
//! not add up to the whole.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use pleat_cluster::{ShardId, Value};
use pleat_host::{Piece, RowStream};
use pleat_sql::Statement;

use super::reroute::Setback;
use super::{Attempt, Executor, Failure, Output, Response, Run, explain};

/// What a read took so far.
#[derive(Debug, Default)]
pub(super) struct Analysis {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Each answer of a shard, in the order in which they were opened.
    shards: Vec<ShardTaken>,
    finisher: Option<FinisherTaken>,
}

#[derive(Clone, Copy, Debug)]
struct FinisherTaken {
    time: Duration,
    memory: u64,
    spilled: u64,
}

#[derive(Clone, Debug)]
struct ShardTaken {
    shard: ShardId,
    statements: usize,
    rows: u64,
    bytes: u64,
    opened: Duration,
    time: Duration,
}

impl Analysis {
    /// Count what a shard answers.
    pub(super) fn watch(
        self: &Arc<Self>,
        shard: ShardId,
        statements: usize,
        asked: Instant,
        answer: RowStream,
    ) -> RowStream {
        let place = {
            let mut taken = self.taken.lock();
            let opened = asked.elapsed();
            taken.shards.push(ShardTaken { shard, statements, rows: 0, bytes: 0, opened, time: opened });
            taken.shards.len() - 1
        };
        let analysis = self.clone();
        let pieces = answer.pieces.inspect_ok(move |piece| {
            if let Some(shard) = analysis.taken.lock().shards.get_mut(place) {
                shard.time = asked.elapsed();
                if let Piece::Rows(rows) = piece {
                    shard.rows += rows.len() as u64;
                    shard.bytes += rows.iter().flatten().map(|value| value.size() as u64).sum::<u64>();
                }
            }
        });
        RowStream { pieces: pieces.boxed(), ..answer }
    }

    /// The finisher has had all rows and run its statement in this time, with so many bytes of memory and of files.
    pub(super) fn finished(&self, time: Duration, memory: u64, spilled: u64) {
        self.taken.lock().finisher = Some(FinisherTaken { time, memory, spilled });
    }

    fn lines(&self) -> Vec<(String, String)> {
        let taken = self.taken.lock();
        let mut shards = taken.shards.clone();
        shards.sort_by_key(|shard| shard.shard);
        let mut lines: Vec<_> = shards.iter().map(|shard| (format!("took on {}", shard.shard), shard.text())).collect();
        if let Some(FinisherTaken { time, memory, spilled }) = taken.finisher {
            lines.push(("took in the finisher".to_owned(), millis(time)));
            if spilled > 0 {
                let detail = format!("{spilled} bytes written to temporary files, with {memory} bytes of memory");
                lines.push(("spilled by the finisher".to_owned(), detail));
            }
        }
        lines
    }
}

impl ShardTaken {
    fn text(&self) -> String {
        let plural = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        format!(
            "{}, {}, {}, {}, first answer after {}",
            plural(self.statements as u64, "statement"),
            plural(self.rows, "row"),
            plural(self.bytes, "byte"),
            millis(self.time),
            millis(self.opened)
        )
    }
}

fn millis(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}

impl Executor {
    pub(super) async fn analyze(
        &self,
        run: &Run,
        attempt: Attempt,
        statement: &Statement,
    ) -> Result<Response, Setback> {
        let Statement::Read(plan) = statement else {
            return Err(Failure::internal("EXPLAIN ANALYZE of a statement that is no read").into());
        };
        let mut response = explain::explain(statement, run, &attempt.catalog)?;
        let analysis = Arc::new(Analysis::default());
        let attempt = Attempt { analysis: Some(analysis.clone()), ..attempt };
        let begun = Instant::now();
        let answer = self.read(run, &attempt, plan).await?;
        response.touched = answer.touched;
        let mut count = 0_u64;
        if let Output::Rows { mut rows, .. } = answer.output {
            while let Some(chunk) = rows.try_next().await? {
                count += chunk.len() as u64;
            }
        }
        let mut lines = analysis.lines();
        lines.push(("answer".to_owned(), format!("{count} rows in {}", millis(begun.elapsed()))));
        let more = lines.into_iter().map(|(step, detail)| vec![Value::Text(step), Value::Text(detail)]).collect();
        if let Output::Rows { columns, rows } = response.output {
            response.output = Output::Rows { columns, rows: rows.chain(stream::iter([Ok(more)])).boxed() };
        }
        Ok(response)
    }
}
