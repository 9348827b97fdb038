//! Finishing a read: the rows that it needs are gathered from the shards into a SQLite database of its own, which then
//! runs the user's statement over them.
//!
//! SQLite blocks, so a gather has a thread of its own, fed and read through short queues; it stops as soon as
//! nobody wants the answer any more, also while the finishing statement has no row to give yet. Memory is limited, for the
//! query and for the node, and what is more goes to temporary files ([`Room`]). The number of gathers at one time is limited,
//! too: a query that finds all places taken waits for one, within its own time.
//!
//! An answer that is given up is not cut short: only whoever takes the rows gives them up, and so knows it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures::stream::{self, BoxStream, StreamExt};
use pleat_cluster::{Millis, Value};
use pleat_engine::{Chunk, EngineError, Finisher, ReadLimits, Room, Wanted};
use pleat_host::Piece;
use pleat_sql::{Bound, Fetch};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::analyze::Analysis;
use super::deadline::Deadline;
use super::read::{Asked, failure_of, response};
use super::reroute::Setback;
use super::{Attempt, Executor, Failure, OVERLOADED, Response, Run, Touched};
use crate::settings::GATHER_WAIT_MAX;

/// Chunks of rows that wait between the shards and the gather, and between it and the client. They are in memory beside
/// what the gather is granted.
const CHUNKS_WAITING_MAX: usize = 4;

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
        let place = self.gather_place(run).await?;
        let (rows_in, gathered) = mpsc::channel(CHUNKS_WAITING_MAX);
        let (rows_out, finished) = mpsc::channel(CHUNKS_WAITING_MAX);
        // After `rows_in`, and so dropped before: the rows then end because nobody wants them.
        let wanted = Wanted::default();
        let work = Work {
            tables: fetches.iter().map(|fetch| (fetch.table.clone(), fetch.create_sql.clone())).collect(),
            finish,
            now_ms: run.now_ms,
            seed: run.seed,
            deadline: run.deadline,
            room: self.room.clone(),
            cancelled: wanted.cancelled(),
            analysis: attempt.analysis.clone(),
        };
        tokio::task::spawn_blocking(move || {
            let _place = place;
            if let Err(failure) = work.run(gathered, &rows_out) {
                // Nobody is told when nobody listens any more.
                let _ = rows_out.blocking_send(Err(failure));
            }
        });
        // The finisher is made while the shards are at work.
        let answers = self.fetch(run, attempt, &fetches).await?;
        let shards = answers.iter().map(|asked| asked.shard).collect();
        let mut finished = ReceiverStream::new(finished);
        feed(answers, rows_in).await?;
        let first = finished.next().await;
        let first = first.unwrap_or_else(|| Err(Failure::internal("the gather ended without an answer")))?;
        let columns = first.columns.unwrap_or_default().into_iter().map(|column| column.name).collect();
        let rows = stream::iter([Ok(first.rows)]).chain(finished.map(|chunk| chunk.map(|chunk| chunk.rows)));
        let rows = rows.inspect(move |_| _ = &wanted);
        Ok(response(attempt, Touched::of(shards), columns, rows.boxed()))
    }

    /// A place among the queries that gather rows.
    async fn gather_place(&self, run: &Run) -> Result<OwnedSemaphorePermit, Failure> {
        let wait = run.deadline.left().min(GATHER_WAIT_MAX);
        match tokio::time::timeout(wait, self.gathers.clone().acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) if run.deadline.is_over() => Err(Failure::timeout(run.deadline.limit())),
            Ok(Err(_)) | Err(_) => Err(Failure::passing(
                OVERLOADED,
                format!("{} queries are gathering rows on this node already", self.settings.limits.gathers),
                "try again after a pause, or ask another node",
            )
            .at_limit("limits.gathers")),
        }
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
    room: Arc<Room>,
    /// Set when nobody waits for the answer any more.
    cancelled: Arc<AtomicBool>,
    analysis: Option<Arc<Analysis>>,
}

impl Work {
    fn run(self, mut gathered: mpsc::Receiver<TableRows>, out: &Chunks) -> Result<(), Failure> {
        let mut finisher = Finisher::new(&self.room, self.cancelled.clone())?;
        for (_, create_sql) in &self.tables {
            finisher.create(create_sql)?;
        }
        while let Some((table, rows)) = gathered.blocking_recv() {
            if self.deadline.is_over() {
                return Err(Failure::timeout(self.deadline.limit()));
            }
            finisher.insert(&self.tables[table].0, &rows)?;
        }
        // The rows also end when they could not be gathered.
        if self.cancelled.load(Ordering::SeqCst) {
            return Ok(());
        }
        let begun = Instant::now();
        let limits = ReadLimits { time: self.deadline.left(), rows: u64::MAX, bytes: u64::MAX };
        let mut send = |chunk: Chunk| match out.blocking_send(Ok(chunk)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        let ended = finisher.run(&self.finish.sql, &self.finish.params, self.now_ms, self.seed, limits, &mut send);
        if let Some(analysis) = &self.analysis {
            analysis.finished(begun.elapsed(), finisher.memory(), finisher.spilled());
        }
        match ended {
            Ok(()) | Err(EngineError::Cancelled) => Ok(()),
            Err(error) => Err(Failure::from(error).within(self.deadline.limit())),
        }
    }
}
