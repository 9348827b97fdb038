//! Finishing a read in memory: the rows that it needs are gathered from the shards into an in-memory SQLite,
//! which then runs the user's statement over them.
//!
//! SQLite blocks, so a gather has a thread of its own, fed and read through short queues; it stops as soon as
//! either end goes away. Memory is limited per gather, and so is the number of gathers at one time on this
//! node: a query that finds all places taken waits for one, within its own time.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use futures::stream::{self, BoxStream, StreamExt};
use pleat_cluster::{Millis, Value};
use pleat_engine::{Chunk, EngineError, Finisher, FinisherLimits, ReadLimits};
use pleat_host::Piece;
use pleat_sql::{Bound, Fetch};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::analyze::Analysis;
use super::deadline::Deadline;
use super::read::{Asked, failure_of, response};
use super::reroute::Setback;
use super::{Attempt, Executor, Failure, OVERLOADED, Response, Run, Touched};
use crate::settings::{GATHER_WAIT_MAX, STALL_MAX};

/// Chunks of rows that wait between the shards and the gather, and between it and the client.
const CHUNKS_WAITING_MAX: usize = 8;

/// Rows of the table with this number.
type TableRows = (usize, Vec<Vec<Value>>);
type Chunks = mpsc::Sender<Result<Chunk, Failure>>;

impl Executor {
    pub(super) async fn gather(
        &self,
        run: &Run,
        attempt: &Attempt,
        fetches: Vec<Fetch>,
        finish: Bound,
    ) -> Result<Response, Setback> {
        let wait = run.deadline.left().min(GATHER_WAIT_MAX);
        let permit = tokio::time::timeout(wait, self.gathers.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(Setback::Failed(Failure::passing(
                OVERLOADED,
                format!("{} queries are gathering rows on this node already", self.settings.limits.gathers),
                "try again after a pause, or ask another node",
            )));
        };
        let answers = self.fetch(run, attempt, &fetches).await?;
        let shards = answers.iter().map(|asked| asked.shard).collect();
        let (rows_in, gathered) = mpsc::channel(CHUNKS_WAITING_MAX);
        let (rows_out, finished) = mpsc::channel(CHUNKS_WAITING_MAX);
        let work = Work {
            tables: fetches.into_iter().map(|fetch| (fetch.table, fetch.create_sql)).collect(),
            finish,
            now_ms: run.now_ms,
            seed: run.seed,
            deadline: run.deadline,
            memory_bytes: self.settings.limits.gather_bytes as u64,
            runtime: Handle::current(),
            analysis: attempt.analysis.clone(),
        };
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            if let Err(failure) = work.run(gathered, &rows_out) {
                // Nobody is told when nobody listens any more.
                let _ = rows_out.blocking_send(Err(failure));
            }
        });
        let fed = feed(answers, rows_in).await;
        let mut finished = ReceiverStream::new(finished);
        let first = match fed {
            Ok(()) => finished.next().await,
            Err(failure) => Some(Err(failure)),
        };
        let first = first.unwrap_or_else(|| Err(Failure::internal("the gather ended without an answer")))?;
        let columns = first.columns.unwrap_or_default().into_iter().map(|column| column.name).collect();
        let rows = stream::iter([Ok(first.rows)]).chain(finished.map(|chunk| chunk.map(|chunk| chunk.rows)));
        Ok(response(attempt, Touched::of(shards), columns, rows.boxed()))
    }
}

/// Hand the shards' rows to the gather, each with the number of its table. When the gather has stopped
/// early, its own answer says why.
async fn feed(answers: Vec<Asked>, gather: mpsc::Sender<TableRows>) -> Result<(), Failure> {
    let mut rows = stream::select_all(answers.into_iter().map(tagged));
    while let Some(chunk) = rows.next().await {
        if gather.send(chunk?).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// A shard's rows, each chunk with the number of its table: columns mark where the next table begins.
fn tagged(asked: Asked) -> BoxStream<'static, Result<TableRows, Failure>> {
    let mut numbers = asked.numbers.into_iter();
    // The first table's columns came before the stream.
    let state = (asked.answer.pieces, numbers.next(), numbers);
    stream::try_unfold(state, |(mut pieces, mut number, mut numbers)| async move {
        while let Some(piece) = pieces.next().await {
            match piece.map_err(failure_of)? {
                Piece::Txns(_) | Piece::End => {}
                Piece::Columns(_) => number = numbers.next(),
                Piece::Rows(rows) => {
                    let table = number.ok_or_else(|| Failure::internal("a shard answered more than it was asked"))?;
                    return Ok(Some(((table, rows), (pieces, number, numbers))));
                }
            }
        }
        Ok(None)
    })
    .boxed()
}

/// What the gather's thread does.
struct Work {
    /// Name and definition of each gathered table.
    tables: Vec<(String, String)>,
    finish: Bound,
    now_ms: Millis,
    seed: u64,
    deadline: Deadline,
    memory_bytes: u64,
    runtime: Handle,
    analysis: Option<Arc<Analysis>>,
}

impl Work {
    fn run(self, mut gathered: mpsc::Receiver<TableRows>, out: &Chunks) -> Result<(), Failure> {
        let mut finisher = Finisher::new(FinisherLimits { memory_bytes: self.memory_bytes })?;
        for (_, create_sql) in &self.tables {
            finisher.create(create_sql)?;
        }
        while let Some((table, rows)) = gathered.blocking_recv() {
            if self.deadline.is_over() {
                return Err(Failure::timeout(self.deadline.limit()));
            }
            finisher.insert(&self.tables[table].0, &rows)?;
        }
        let begun = Instant::now();
        let limits = ReadLimits { time: self.deadline.left(), rows: u64::MAX, bytes: u64::MAX };
        // A client that does not read must not hold a gather's place and memory.
        let mut stalled = false;
        let mut send = |chunk: Chunk| {
            let sent = self.runtime.block_on(tokio::time::timeout(STALL_MAX, out.send(Ok(chunk))));
            stalled |= sent.is_err();
            match sent {
                Ok(Ok(())) => ControlFlow::Continue(()),
                Ok(Err(_)) | Err(_) => ControlFlow::Break(()),
            }
        };
        let ended = finisher.run(&self.finish.sql, &self.finish.params, self.now_ms, self.seed, limits, &mut send);
        if let Some(analysis) = &self.analysis {
            analysis.finished(begun.elapsed());
        }
        match ended {
            Err(EngineError::Cancelled) if stalled => {
                tracing::info!("an answer was given up: its client has read nothing for {STALL_MAX:?}");
                Ok(())
            }
            Ok(()) | Err(EngineError::Cancelled) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
