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
//! The batch is cut along lines that never change ([`split`]): by partition, and within a partition into
//! pieces of a bounded size, in the order of the rows. Each piece goes to whichever shard owns its partition,
//! under the key `batch / table / partition / number of the piece`, which depends on the batch alone. So a
//! piece is done once, wherever it and its partition are by now. Pieces of one partition follow each other;
//! partitions go side by side.
//!
//! Rows without an `INTEGER PRIMARY KEY` are given ids first ([`ids`](super::ids)), which may decide their partitions.
//!
//! A row that can't be inserted (no key, a wrong type, a constraint) is named in the answer and the others are
//! kept. Reference tables have no partitions: see [`reference`].

mod reference;
mod split;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::FutureExt;
use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use pleat_cluster::{Catalog, Generation, ShardId, Table, TableKind, Value};
use pleat_engine::{Action, Outcome};
use pleat_sql::{BulkIds, Hint};
use uuid::Uuid;

use super::deadline::Deadline;
use super::reroute::Setback;
use super::write::{Key, fingerprint_of};
use super::{Attempt, Executor, Failure, Request, Run};
use crate::settings::STATEMENT_TIMEOUT_MAX;
use split::{Part, Piece};

/// Partitions of one batch that are written at the same time.
const PARTS_AT_ONCE_MAX: usize = 32;

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
                (BulkResponse::default(), vec![done])
            }
            TableKind::Sharded { .. } | TableKind::Single { .. } => {
                let split = split::split(table, &columns, rows, catalog.partition_count);
                let parts = split.parts.into_iter();
                let parts: Vec<_> =
                    parts.map(|part| self.bulk_part(table, &columns, part, key, &deadline).boxed()).collect();
                let done = stream::iter(parts).buffer_unordered(PARTS_AT_ONCE_MAX).collect().await;
                (BulkResponse { rejected: split.rejected, ..BulkResponse::default() }, done)
            }
        };
        let mut pieces = 0;
        let mut replayed = 0;
        for (done, failure) in done {
            for piece in done {
                pieces += 1;
                replayed += usize::from(piece.replayed);
                response.inserted += piece.inserted;
                response.rejected.extend(piece.rejected);
                response.shards.extend(piece.shard);
            }
            response.failure = worse(response.failure.take(), failure);
        }
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

    /// The pieces of one partition, one after the other; up to the first that fails.
    async fn bulk_part(
        &self,
        table: &Table,
        columns: &[String],
        part: Part,
        key: &Key,
        deadline: &Deadline,
    ) -> (Vec<PieceDone>, Option<Failure>) {
        let mut done = Vec::new();
        for (number, piece) in part.pieces.into_iter().enumerate() {
            let key = key.part(&format!("{}/{number}", part.unit), fingerprint_of(&(columns, &piece.rows)));
            match self.bulk_piece(table, columns, part.unit, &piece, &key, deadline).await {
                Ok(piece) => done.push(piece),
                Err(failure) => return (done, Some(failure)),
            }
        }
        (done, None)
    }

    async fn bulk_piece(
        &self,
        table: &Table,
        columns: &[String],
        unit: pleat_cluster::PartitionId,
        piece: &Piece,
        key: &Key,
        deadline: &Deadline,
    ) -> Result<PieceDone, Failure> {
        self.rerouting(deadline, |attempt| async move {
            let catalog = attempt.catalog;
            let shard = catalog.owner(unit).ok_or_else(|| unknown(&table.name))?;
            let action = Action::Bulk {
                idempotency: Some(key.idempotency()),
                units: vec![unit],
                table: table.name.clone(),
                columns: columns.to_vec(),
                rows: piece.rows.clone(),
            };
            let written = self.backend.write(shard, catalog.planned(), action, deadline.left()).await;
            let written = written.map_err(|error| key.setback(error))?;
            match written.outcome {
                Outcome::Bulk { inserted, rejected, replayed } => Ok(PieceDone {
                    shard: Some(shard),
                    inserted,
                    rejected: rejected
                        .into_iter()
                        .map(|row| Rejected {
                            row: piece.numbers.get(row.index as usize).copied().unwrap_or(row.index),
                            code: row.code,
                            error: row.reason,
                        })
                        .collect(),
                    replayed,
                }),
                Outcome::Refused(refusal) => Err(key.refused(refusal, written.uncertain)),
                Outcome::Failed(failure) => Err(Setback::Failed(failure.into())),
                _ => Err(Failure::internal("the shard answered a batch with another action's outcome").into()),
            }
        })
        .await
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

/// Of two failures the one that must be told: an unknown outcome before a final failure before a passing one.
fn worse(one: Option<Failure>, other: Option<Failure>) -> Option<Failure> {
    let badness = |failure: &Failure| match (failure.code.as_ref(), failure.retryable) {
        ("08007", _) => 2,
        (_, false) => 1,
        (_, true) => 0,
    };
    match (one, other) {
        (Some(one), Some(other)) => Some(if badness(&other) > badness(&one) { other } else { one }),
        (one, other) => one.or(other),
    }
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
    fn an_unknown_outcome_is_told_before_failures_that_say_try_again() {
        let passing = || Some(Failure::passing("53300", "busy", "try again"));
        let unknown = || Some(Failure::new("08007", "lost", "look first"));
        for (one, other) in [(passing(), unknown()), (unknown(), passing())] {
            assert_eq!(worse(one, other), unknown());
        }
        assert_eq!(worse(None, passing()), passing());
        assert_eq!(worse(passing(), Some(Failure::new("23505", "twice", ""))).unwrap().code, "23505");
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
