//! Many rows of one table: split by partition, each part exactly once.
//!
//! # The problem
//!
//! A batch's rows belong to many partitions, on several shards, and the partitions may move between the
//! first attempt and the client's retry. A shard remembers what it did under a key, and the key moves with
//! its partition; so a key that stood for "the rows of this batch that went to shard 2" would mean something
//! else after a move.
//!
//! # The mechanism
//!
//! The batch is cut along lines that never change ([`split`]): into windows of a bounded size, in the order of the rows,
//! and each window by partition. Such a piece goes to whichever shard owns its partition, under the key `batch / table /
//! partition / number of the window`, which depends on the batch alone. So a piece is done once, wherever it and its
//! partition are by now.
//!
//! Windows follow each other. All pieces of a window that a shard owns are one entry of its log, and their rows are
//! inserted in the batch's order; shards go side by side. What a shard refuses is grouped anew, by the newer catalog.
//!
//! Rows without an `INTEGER PRIMARY KEY` are given ids first ([`ids`](super::ids)), which may decide their partitions.
//!
//! A row that can't be inserted (no key, a wrong type, a constraint) is named in the answer and the others are
//! kept. Reference tables have no partitions: see [`reference`].

mod reference;
mod split;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use pleat_cluster::{Catalog, Generation, ShardId, Table, TableKind, Value};
use pleat_engine::{Action, BulkDone, BulkPart, Outcome};
use pleat_sql::{BulkIds, Hint};
use uuid::Uuid;

use super::deadline::Deadline;
use super::reroute::Setback;
use super::write::{Key, fingerprint_of};
use super::{Attempt, Executor, Failure, Request, Run, check_engine};
use crate::settings::STATEMENT_TIMEOUT_MAX;
use split::Piece;

/// Shards that rows of one batch are written to at the same time.
const SHARDS_AT_ONCE_MAX: usize = 32;

/// A batch of rows.
#[derive(Clone, Debug)]
pub struct BulkRequest {
    pub table: String,
    /// The columns that the rows' values are for; `None`: every column that can be inserted, in order.
    pub columns: Option<Vec<String>>,
    /// The rows, each with its number in the batch.
    pub rows: Vec<(u32, Vec<Value>)>,
    /// Makes the batch exactly once, however often it is sent.
    pub batch_id: Option<String>,
    pub timeout: Option<Duration>,
}

/// A row that was not inserted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its number in the batch.
    pub row: u32,
    /// A SQLSTATE.
    pub code: String,
    pub error: String,
}

/// What a batch gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BulkResponse {
    pub inserted: u64,
    /// In the order of the rows.
    pub rejected: Vec<Rejected>,
    pub shards: BTreeSet<ShardId>,
    /// All of it had been done before.
    pub replayed: bool,
    pub generation: Generation,
    /// Some part could not be done; the rest of the answer tells what was.
    pub failure: Option<Failure>,
}

/// What is known of a batch before its rows are split.
struct Numbered {
    catalog: Arc<Catalog>,
    columns: Vec<String>,
    /// The id of the first row that has none.
    first_id: Option<i64>,
}

/// What one piece gave.
struct PieceDone {
    shard: Option<ShardId>,
    inserted: u64,
    rejected: Vec<Rejected>,
    replayed: bool,
}

impl Executor {
    /// Insert a batch. `Err` when nothing of it was tried.
    pub async fn bulk(&self, request: BulkRequest) -> Result<BulkResponse, Failure> {
        check_engine(&self.backend.catalog())?;
        let limit = request.timeout.unwrap_or(self.settings.limits.statement_timeout).min(STATEMENT_TIMEOUT_MAX);
        let run = self.batch(&request, limit);
        let (deadline, key) = (run.deadline, &run.key);
        let looked = self.rerouting(&deadline, |attempt| self.look_up(&run, attempt, &request)).await?;
        let Numbered { catalog, mut columns, first_id } = looked;
        let table = known_table(&catalog, &request.table)?;
        let mut rows = request.rows;
        if let (Some(ids), Some(first)) = (BulkIds::of(table, &columns), first_id) {
            ids.fill(&mut columns, rows.iter_mut().map(|(_, row)| row), first);
        }

        let (mut response, done) = match &table.kind {
            TableKind::Reference => {
                let done = self.bulk_reference(table, &columns, rows, key, &deadline).await;
                (BulkResponse::default(), done)
            }
            TableKind::Sharded { .. } | TableKind::Single { .. } => {
                let split = split::split(table, &columns, rows, catalog.partition_count);
                let done = self.bulk_windows(table, &columns, split.windows, key, &deadline).await;
                (BulkResponse { rejected: split.rejected, ..BulkResponse::default() }, done)
            }
        };
        let (done, failure) = done;
        let pieces = done.len();
        let replayed = done.iter().filter(|piece| piece.replayed).count();
        for piece in done {
            response.inserted += piece.inserted;
            response.rejected.extend(piece.rejected);
            response.shards.extend(piece.shard);
        }
        response.failure = failure;
        response.rejected.sort_by_key(|rejected| rejected.row);
        response.replayed = pieces > 0 && replayed == pieces;
        response.generation = self.backend.catalog().generation;
        if table.kind == TableKind::Reference {
            response.shards = catalog.active_shards().map(|shard| shard.id).collect();
        }
        if let Some(failure) = &mut response.failure {
            explain_partial(failure, response.inserted, key.is_from_client());
        }
        Ok(response)
    }

    /// What stays the same over all attempts at a batch.
    fn batch(&self, request: &BulkRequest, limit: Duration) -> Run {
        let table = request.table.to_ascii_lowercase();
        let client = request.batch_id.as_ref().map(|id| format!("b/{id}/{table}"));
        Run {
            request: Request::default(),
            hint: Hint::default(),
            deadline: Deadline::after(limit),
            now_ms: self.backend.now_ms(),
            seed: Uuid::new_v4().as_u64_pair().1,
            key: Key::new(client, 0, limit),
            ids: Mutex::default(),
        }
    }

    /// The table's columns that the rows are for, and ids for those that want one.
    async fn look_up(&self, run: &Run, attempt: Attempt, request: &BulkRequest) -> Result<Numbered, Setback> {
        let table = known_table(&attempt.catalog, &request.table)?;
        let columns = columns(table, request.columns.as_deref())?;
        let wanted = match BulkIds::of(table, &columns) {
            Some(ids) => ids.wanted(request.rows.iter().map(|(_, row)| row.as_slice()))?,
            None => None,
        };
        let first_id = match wanted {
            Some(wanted) => Some(self.ids_for_batch(run, &attempt, wanted).await?),
            None => None,
        };
        Ok(Numbered { columns, first_id, catalog: attempt.catalog })
    }

    /// One window after the other; up to the first that fails.
    async fn bulk_windows(
        &self,
        table: &Table,
        columns: &[String],
        windows: Vec<Vec<Piece>>,
        key: &Key,
        deadline: &Deadline,
    ) -> (Vec<PieceDone>, Option<Failure>) {
        let mut done = Vec::new();
        for (number, pieces) in windows.into_iter().enumerate() {
            let parts = pieces.into_iter().map(|Piece { unit, rows }| {
                let key = key.part(&format!("{unit}/{number}"), fingerprint_of(&(columns, &rows)));
                BulkPart { idempotency: Some(key.idempotency()), units: vec![unit], rows }
            });
            let window = Window { table, columns, key, open: Mutex::new(parts.collect()), done: Mutex::default() };
            let ended = self.rerouting(deadline, |attempt| self.bulk_window(&window, attempt, deadline)).await;
            done.extend(window.done.into_inner());
            if let Err(failure) = ended {
                return (done, Some(failure));
            }
        }
        (done, None)
    }

    /// An attempt at what is still open of a window.
    async fn bulk_window(&self, window: &Window<'_>, attempt: Attempt, deadline: &Deadline) -> Result<(), Setback> {
        let catalog = &attempt.catalog;
        let mut by_shard: BTreeMap<ShardId, Vec<BulkPart>> = BTreeMap::new();
        for part in window.open.lock().iter() {
            let owner = part.units.first().and_then(|unit| catalog.owner(*unit));
            by_shard.entry(owner.ok_or_else(|| unknown(&window.table.name))?).or_default().push(part.clone());
        }
        let asked: Vec<_> =
            by_shard.into_iter().map(|(shard, parts)| self.bulk_on(window, catalog, shard, parts, deadline)).collect();
        let ended: Vec<_> = stream::iter(asked).buffer_unordered(SHARDS_AT_ONCE_MAX).collect().await;
        ended.into_iter().filter_map(Result::err).max_by_key(badness).map_or(Ok(()), Err)
    }

    /// Those parts of a window that a shard owns: all of them, or none.
    async fn bulk_on(
        &self,
        window: &Window<'_>,
        catalog: &Catalog,
        shard: ShardId,
        parts: Vec<BulkPart>,
        deadline: &Deadline,
    ) -> Result<(), Setback> {
        let units: BTreeSet<_> = parts.iter().flat_map(|part| part.units.iter().copied()).collect();
        let action = Action::Bulk { table: window.table.name.clone(), columns: window.columns.to_vec(), parts };
        let written = self.backend.write(shard, catalog.planned(), action, deadline.left()).await;
        let written = written.map_err(|error| window.key.setback(error))?;
        match written.outcome {
            Outcome::Bulk { parts } => {
                window.open.lock().retain(|part| part.units.iter().all(|unit| !units.contains(unit)));
                window.done.lock().extend(parts.into_iter().map(|part| PieceDone::on(shard, part)));
                Ok(())
            }
            Outcome::Refused(refusal) => Err(window.key.refused(refusal, written.uncertain)),
            Outcome::Failed(failure) => Err(Setback::Failed(failure.into())),
            _ => Err(Failure::internal("the shard answered a batch with another action's outcome").into()),
        }
    }
}

/// Rows that are on their way together.
struct Window<'a> {
    table: &'a Table,
    columns: &'a [String],
    /// The batch's.
    key: &'a Key,
    open: Mutex<Vec<BulkPart>>,
    done: Mutex<Vec<PieceDone>>,
}

impl PieceDone {
    fn on(shard: ShardId, done: BulkDone) -> Self {
        let rejected = done.rejected.into_iter();
        let rejected = rejected.map(|row| Rejected { row: row.number, code: row.code, error: row.reason });
        let (inserted, replayed) = (done.inserted, done.replayed);
        Self { shard: Some(shard), inserted, rejected: rejected.collect(), replayed }
    }
}

/// Of several setbacks the one to go by: that something may have been done is never forgotten, and what is final ends
/// the batch.
fn badness(setback: &Setback) -> u8 {
    match setback {
        Setback::Failed(failure) if failure.code == "08007" => 4,
        Setback::Refused { unsure: Some(_), .. } => 3,
        Setback::Failed(_) => 2,
        Setback::Refused { .. } => 1,
        Setback::Busy(_) => 0,
    }
}

fn known_table<'a>(catalog: &'a Catalog, name: &str) -> Result<&'a Table, Failure> {
    catalog.table(name).ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> Failure {
    Failure::new("42P01", format!("table {name} does not exist"), "GET /tables lists them; CREATE TABLE makes one")
}

/// The columns that the rows' values are for, as declared.
fn columns(table: &Table, named: Option<&[String]>) -> Result<Vec<String>, Failure> {
    let insertable = || table.columns.iter().filter(|column| !column.generated).map(|column| column.name.clone());
    let Some(named) = named else { return Ok(insertable().collect()) };
    let hint = || format!("the columns of {} are {}", table.name, insertable().collect::<Vec<_>>().join(", "));
    if named.is_empty() {
        return Err(Failure::new("42601", "the rows name no column", hint()));
    }
    let mut seen = BTreeSet::new();
    let mut columns = Vec::with_capacity(named.len());
    for name in named {
        match table.column(name) {
            None => {
                let message = format!("table {} has no column \"{name}\"", table.name);
                return Err(Failure::new("42703", message, hint()));
            }
            Some(column) if column.generated => {
                let message = format!("column \"{name}\" is generated: its values can't be given");
                return Err(Failure::new("428C9", message, hint()));
            }
            Some(column) if !seen.insert(column.name.clone()) => {
                return Err(Failure::new(
                    "42701",
                    format!("column \"{name}\" is named twice"),
                    "name each column once",
                ));
            }
            Some(column) => columns.push(column.name.clone()),
        }
    }
    Ok(columns)
}

/// Say whether a batch that was done in part may be sent again.
fn explain_partial(failure: &mut Failure, inserted: u64, from_client: bool) {
    if inserted == 0 {
        return;
    }
    failure.message = format!("{inserted} rows were inserted, then: {}", failure.message);
    if !from_client {
        failure.retryable = false;
        failure.hint =
            "sending the batch again would insert some rows twice; give batches a batch_id, then it does not"
                .to_owned();
    } else if failure.retryable {
        failure.hint = "send the same batch again with the same batch_id: no row is inserted twice".to_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_rows_may_have_been_inserted_is_told_before_anything_else() {
        let unknown = || Setback::Failed(Failure::new("08007", "lost", "look first"));
        let others = || {
            let refused = || pleat_engine::Refusal::Prepared { txn: pleat_cluster::TxnId(1) };
            let lost = Some(Box::new(Failure::new("08007", "lost", "look first")));
            [
                Setback::Busy(Failure::passing("55006", "busy", "try again")),
                Setback::Refused { refusal: refused(), unsure: None },
                Setback::Failed(Failure::new("23505", "twice", "")),
                Setback::Refused { refusal: refused(), unsure: lost },
            ]
        };
        assert!(others().map(|other| badness(&other)).is_sorted());
        assert!(others().iter().all(|other| badness(other) < badness(&unknown())));
    }

    #[test]
    fn a_batch_done_in_part_may_be_repeated_only_under_its_id() {
        let passing = || Failure::passing("57P03", "no leader", "try again");
        let told = |inserted, from_client| {
            let mut failure = passing();
            explain_partial(&mut failure, inserted, from_client);
            failure
        };
        assert_eq!(told(0, false), passing(), "nothing was done");
        assert!(!told(5, false).retryable);
        assert!(told(5, true).retryable);
        assert!(told(5, true).message.contains("5 rows were inserted"));
    }
}
