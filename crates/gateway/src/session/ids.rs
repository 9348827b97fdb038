//! Ids that Pleat gives to rows: never twice, on whichever node and whatever is killed.
//!
//! The ledger of the control group counts for each table. A node takes a *block* from it and gives out its ids from
//! memory, so that an INSERT rarely waits for the control group; the next block is larger when the last one was used up
//! soon. What is left of a block when its node ends is lost: a gap, as a rolled back INSERT leaves one.
//!
//! Rows may also come with ids of their own, from users, from a bulk load, or from a time when their table was not
//! sharded. So a new block begins above the largest id that the table has, which each shard finds at the end of a
//! B-tree, and above those that the same request brings. An id that is given by hand *into* a block that some node holds is met when its turn comes: then the
//! shard refuses the row as a duplicate, the node throws its block away, and the write goes again with ids from a new one
//! ([`Executor::write`]). Where the id is not the shard key no shard would meet it, and there only Pleat gives ids.
//!
//! A table can come to that from a placement where ids are given by hand or by SQLite
//! ([`DdlEffect::PlaceTable`](pleat_cluster::DdlEffect)), perhaps into a block that a node still holds. So a block is good for one of the two ways alone ([`Way`]), and so is an id that a
//! request was given before it was refused.
//!
//! # Servers
//!
//! Rows of servers get the values of their serial columns from the same blocks ([`Executor::serials`]), whatever their shard key. A value that was
//! given by hand is met there as in PostgreSQL: the INSERT fails with `23505`, and then the block is looked through for such values
//! ([`Executor::skip_serials`]).
//!
//! # Repetitions
//!
//! When the id is the shard key it decides where the row goes, and a repeated request would go elsewhere with another
//! one, to a shard that doesn't know its key. So the ids of a request with a key of its client's are first remembered,
//! under a key of their own, at the home partition of the key; a repetition finds them there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use futures::future::try_join_all;
use parking_lot::Mutex;
use pleat_cluster::{Catalog, LedgerCommand, LedgerReply, ShardId, TableId, Value};
use pleat_engine::{Action, Outcome, OwnershipCheck, Query, ReadLimits, ReadRequest, Statement};
use pleat_host::failpoint::reach;
use pleat_host::{Freshness, HostError, Piece};
use pleat_sql::{ComputedWrite, Ids, IdsWanted, WritePlan};
use tokio::sync::Mutex as AsyncMutex;

use super::reroute::{Setback, setback};
use super::spread::home;
use super::write::fingerprint_of;
use super::{Attempt, Consistency, Executor, Failure, Output, Request, Run};

/// Ids in a table's first block, and in the largest.
const BLOCK_MIN: u32 = 1_000;
const BLOCK_MAX: u32 = 100_000;
/// A block that lasts for less than this is followed by one of twice its size.
const BLOCK_LASTS_MIN: Duration = Duration::from_secs(10);
/// How often rows are looked through for values that were given by hand, at most.
const LOOKED_AGAIN: Duration = Duration::from_secs(1);
/// A range of values is enough for so many blocks.
const BLOCKS_MIN: i64 = 1_000;
/// How long the ledger is waited for, for values of servers' rows.
const LEDGER_TIME_MAX: Duration = Duration::from_secs(10);
/// Tables whose blocks a node holds. Beyond that they are all given up, which costs gaps.
const TABLES_MAX: usize = 10_000;

/// How often a write goes again because an id that it was given is in use.
pub(super) const COLLISIONS_MAX: u32 = 5;

/// A table, and whether its id is its shard key. No table comes back from where it isn't.
type Way = (TableId, bool);

/// The first of the ids that a request's rows were given.
pub(super) type Firsts = HashMap<Way, i64>;

/// The blocks that this node holds.
#[derive(Default)]
pub(super) struct Blocks(Mutex<HashMap<Way, Arc<AsyncMutex<Block>>>>);

/// Ids that no one else has: `next .. end`.
#[derive(Debug)]
struct Block {
    next: i64,
    end: i64,
    size: u32,
    taken_at: Option<Instant>,
    /// When values that were given by hand were looked for in it.
    looked_at: Option<Instant>,
}

impl Block {
    /// The first of `count` ids above `above`.
    fn take(&mut self, count: u32, above: Option<i64>) -> Option<i64> {
        let first = above.map_or(self.next, |above| self.next.max(above.saturating_add(1)));
        let after = first.checked_add(i64::from(count)).filter(|after| *after <= self.end)?;
        self.next = after;
        Some(first)
    }

    /// How many ids to ask for, when `count` are wanted now.
    fn ask(&mut self, count: u32, now: Instant) -> u32 {
        if self.taken_at.is_some_and(|at| now.duration_since(at) < BLOCK_LASTS_MIN) {
            self.size = (self.size * 2).min(BLOCK_MAX);
        }
        self.taken_at = Some(now);
        self.size.max(count)
    }
}

impl Blocks {
    fn of(&self, way: Way) -> Arc<AsyncMutex<Block>> {
        let mut blocks = self.0.lock();
        if blocks.len() >= TABLES_MAX && !blocks.contains_key(&way) {
            blocks.clear();
        }
        let new =
            || Arc::new(AsyncMutex::new(Block { next: 0, end: 0, size: BLOCK_MIN, taken_at: None, looked_at: None }));
        blocks.entry(way).or_insert_with(new).clone()
    }

    /// Throw the table's blocks away: some of their ids are in use.
    pub(super) fn give_up(&self, table: TableId) {
        self.0.lock().retain(|(known, _), _| *known != table);
    }
}

fn way(catalog: &Catalog, table: TableId) -> Way {
    let key = catalog.table_by_id(table).and_then(|table| Some((table.shard_key()?.0, table.primary_key.first()?)));
    (table, key.is_some_and(|(key, id)| key.eq_ignore_ascii_case(id)))
}

impl Executor {
    /// The ids that a request's rows get: the same in all attempts, and in all repetitions.
    pub(super) async fn ids_for(&self, run: &Run, attempt: &Attempt, plan: &WritePlan) -> Result<Ids, Setback> {
        let wanted = plan.ids_wanted(&run.request.params.borrow())?;
        let mut ids = Ids::none();
        for wanted in &wanted {
            let way = way(&attempt.catalog, wanted.table);
            let known = run.ids.lock().get(&way).copied();
            let first = match known {
                Some(first) => first,
                None => {
                    let first = self.take_ids(run, attempt, wanted).await?;
                    self.id_of_repetition(run, attempt, way, first).await?
                }
            };
            run.ids.lock().insert(way, first);
            ids = ids.with(wanted.table, first);
        }
        Ok(ids)
    }

    /// The first of the ids that the rows of a batch get: the same in all attempts, and in all repetitions. A row that meets
    /// a duplicate is rejected, and the batch does not go again, so it is looked for ids that were given by hand first.
    pub(super) async fn ids_for_batch(&self, run: &Run, attempt: &Attempt, wanted: IdsWanted) -> Result<i64, Setback> {
        let above = self.largest_id(run, attempt, &wanted).await?.max(wanted.above);
        let first = self.take_ids(run, attempt, &IdsWanted { above, ..wanted.clone() }).await?;
        self.id_of_repetition(run, attempt, way(&attempt.catalog, wanted.table), first).await
    }

    /// The ids that rows get which a write has read.
    pub(super) async fn ids_for_rows(
        &self,
        run: &Run,
        attempt: &Attempt,
        write: &ComputedWrite,
        rows: &[Vec<Value>],
    ) -> Result<Ids, Setback> {
        match write.ids_wanted(rows)? {
            None => Ok(Ids::none()),
            Some(wanted) => Ok(Ids::none().with(wanted.table, self.take_ids(run, attempt, &wanted).await?)),
        }
    }

    /// The first of `count` values of a column that counts, in a table of servers, between `first` and `last`. `largest` finds the largest that the
    /// table has, where that is soon found, when a new block is needed.
    pub(crate) async fn serials(
        &self,
        table: TableId,
        (first, last): (i64, i64),
        count: u32,
        largest: impl Future<Output = Option<i64>>,
    ) -> Result<i64, Failure> {
        let block = self.blocks.of((table, true));
        let mut block = block.lock().await;
        if let Some(given) = block.take(count, None) {
            return Ok(given);
        }
        let above = largest.await.max(first.checked_sub(1));
        // A small range is not used up by what is lost of blocks.
        let most = u32::try_from((last / BLOCKS_MIN).max(1)).unwrap_or(u32::MAX).max(count);
        let asked = block.ask(count, Instant::now()).min(most);
        let command = LedgerCommand::AllocateIds { table, count: asked, at_least: above };
        let reply = self.backend.ledger_command(command, LEDGER_TIME_MAX).await?;
        let LedgerReply::Ids { first } = reply else {
            return Err(Failure::internal(format!("the ledger gave {reply:?} for ids")));
        };
        (block.next, block.end) = (first, first.saturating_add(i64::from(asked)).min(last.saturating_add(1)));
        block.take(count, None).ok_or_else(|| {
            let message = format!("nextval: reached maximum value of the sequence ({last})");
            Failure::new("2200H", message, "give the column a larger type")
        })
    }

    /// Leave out values of this node's block that rows have got by hand. `largest` finds the largest such value in a range (its end is not in it).
    /// Others are given values in the meantime.
    pub(crate) async fn skip_serials<F>(&self, table: TableId, largest: impl FnOnce(i64, i64) -> F)
    where
        F: Future<Output = Option<i64>>,
    {
        let block = self.blocks.of((table, true));
        let (next, end) = {
            let mut block = block.lock().await;
            let now = Instant::now();
            if block.next >= block.end || block.looked_at.is_some_and(|at| now.duration_since(at) < LOOKED_AGAIN) {
                return;
            }
            block.looked_at = Some(now);
            (block.next, block.end)
        };
        let Some(taken) = largest(next, end).await else { return };
        let mut block = block.lock().await;
        if block.end == end {
            block.next = block.next.max(taken.saturating_add(1).min(end));
        }
    }

    /// `setval`: what is given from now on is above `last`; on other nodes, when they have used up their blocks.
    pub(crate) async fn set_serial(&self, table: TableId, last: i64) -> Result<(), Failure> {
        let command = LedgerCommand::AllocateIds { table, count: 0, at_least: Some(last) };
        self.backend.ledger_command(command, LEDGER_TIME_MAX).await?;
        let block = self.blocks.of((table, true));
        let mut block = block.lock().await;
        // With nothing of it left, the next comes from the ledger.
        block.next = block.next.max(last.saturating_add(1).min(block.end));
        Ok(())
    }

    /// The first of so many ids that were never given.
    async fn take_ids(&self, run: &Run, attempt: &Attempt, wanted: &IdsWanted) -> Result<i64, Setback> {
        let too_many = || Failure::new("54000", "too many rows want an id at once", "insert them in smaller requests");
        let count = u32::try_from(wanted.count).map_err(|_| too_many())?;
        let block = self.blocks.of(way(&attempt.catalog, wanted.table));
        let mut block = block.lock().await;
        if let Some(first) = block.take(count, wanted.above) {
            return Ok(first);
        }
        let largest = self.largest_id(run, attempt, wanted).await?.max(wanted.above);
        let asked = block.ask(count, Instant::now());
        let command = LedgerCommand::AllocateIds { table: wanted.table, count: asked, at_least: largest };
        reach("ids.before-block", None);
        let reply = self.backend.ledger_command(command, run.deadline.left()).await;
        reach("ids.block", None);
        // A block whose answer was lost is a gap. The next attempt gets another one.
        let reply = reply.map_err(nothing_done)?;
        let LedgerReply::Ids { first } = reply else {
            return Err(Failure::internal(format!("the ledger gave {reply:?} for ids")).into());
        };
        (block.next, block.end) = (first, first.saturating_add(i64::from(asked)));
        block.take(count, None).ok_or_else(|| Failure::internal("a block has fewer ids than were asked for").into())
    }

    /// The largest id in the table, and with AUTOINCREMENT the largest that a shard's SQLite has seen, in a row that may be gone:
    /// before the table was sharded it was SQLite that gave ids.
    async fn largest_id(&self, run: &Run, attempt: &Attempt, wanted: &IdsWanted) -> Result<Option<i64>, Setback> {
        let Some(table) = attempt.catalog.table_by_id(wanted.table) else { return Ok(None) };
        let [id] = table.primary_key.as_slice() else { return Ok(None) };
        let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let text = format!("SELECT max({}) FROM {}", quote(id), quote(&table.name));
        let plan = self.plan(&text, &attempt.catalog)?;
        let pleat_sql::Statement::Read(plan) = plan.as_ref() else {
            return Err(Failure::internal("a SELECT was not planned as a read").into());
        };
        let request = Request { consistency: Consistency::Strong, origin: run.request.origin, ..Request::default() };
        let run = Run { request, key: run.key.clone(), ids: Mutex::default(), ..*run };
        // What a transaction has inserted itself has ids that it was given.
        let attempt = Attempt { versions: None, inside: None, ..attempt.clone() };
        let response = Box::pin(self.read(&run, &attempt, plan)).await?;
        let Output::Rows { mut rows, .. } = response.output else { return Ok(None) };
        let mut largest = None;
        if table.may_autoincrement() {
            let counters = attempt.catalog.active_shards().map(|shard| self.counter(&run, shard.id, &table.name));
            largest = try_join_all(counters).await?.into_iter().flatten().max();
        }
        while let Some(chunk) = rows.try_next().await? {
            for value in chunk.into_iter().flatten() {
                if let Value::Integer(id) = value {
                    largest = largest.max(Some(id));
                }
            }
        }
        Ok(largest)
    }

    /// A shard's AUTOINCREMENT counter.
    async fn counter(&self, run: &Run, shard: ShardId, table: &str) -> Result<Option<i64>, Setback> {
        let sql = "SELECT seq FROM sqlite_sequence WHERE name = ?1".to_owned();
        let request = ReadRequest {
            queries: vec![Query { params: vec![Value::Text(table.to_owned())], ..Query::new(sql) }],
            check: OwnershipCheck::None,
            layout: None,
            now_ms: self.backend.now_ms(),
            seed: 0,
            limits: ReadLimits { time: run.deadline.left(), ..ReadLimits::default() },
            names_txns: false,
        };
        let answer = self.backend.read(shard, request, Freshness::Strong, run.deadline.left()).await;
        let mut pieces = answer.map_err(setback)?.pieces;
        while let Some(piece) = pieces.try_next().await.map_err(setback)? {
            if let Piece::Rows(rows) = piece
                && let Some(Value::Integer(seq)) = rows.first().and_then(|row| row.first())
            {
                return Ok(Some(*seq));
            }
        }
        Ok(None)
    }

    /// This id, or the one that the request got when it came for the first time.
    async fn id_of_repetition(&self, run: &Run, attempt: &Attempt, way: Way, first: i64) -> Result<i64, Setback> {
        if !run.key.is_from_client() {
            return Ok(first);
        }
        let catalog = &attempt.catalog;
        let idempotency = run.key.idempotency();
        let home = home(&idempotency.key, catalog);
        let owner = catalog.owner(home).ok_or_else(|| Failure::internal(format!("partition {home} has no owner")))?;
        let (table, is_key) = way;
        let part = format!("ids{}/{}{}", attempt.collisions, table.0, if is_key { "" } else { "beside" });
        let key = run.key.part(&part, fingerprint_of(&(idempotency.fingerprint, table.0)));
        let action = Action::Write {
            idempotency: Some(key.idempotency()),
            units: vec![home],
            statements: vec![Statement::new("SELECT ?1 AS first_id", [Value::Integer(first)])],
            base: None,
        };
        let written = self.backend.write(owner, catalog.planned(), action, run.deadline.left()).await;
        reach("ids.remembered", None);
        // Whether it was remembered or not: no row was written.
        let written = written.map_err(nothing_done)?;
        let results = match written.outcome {
            Outcome::Done { results } | Outcome::Replayed { results, .. } => results,
            Outcome::Refused(refusal) => return Err(super::reroute::refused(refusal)),
            _ => return Err(Failure::internal("remembering a request's ids was answered as something else").into()),
        };
        match results.first().and_then(|result| result.rows.first()?.first()) {
            Some(Value::Integer(first)) => Ok(*first),
            _ => Err(Failure::internal("the ids of this request were remembered without values").into()),
        }
    }
}

fn nothing_done(error: HostError) -> Setback {
    match error {
        HostError::OutcomeUnknown(why) => setback(HostError::Unavailable(why)),
        error => setback(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_gives_each_id_once_and_grows_when_it_does_not_last() {
        let now = Instant::now();
        let mut block = Block { next: 1, end: 4, size: BLOCK_MIN, taken_at: None, looked_at: None };
        let mut take = |count| block.take(count, None);
        assert_eq!((take(2), take(2), take(1), take(1)), (Some(1), None, Some(3), None));
        assert_eq!(block.ask(1, now), BLOCK_MIN);
        assert_eq!(block.ask(1, now + BLOCK_LASTS_MIN), BLOCK_MIN);
        assert_eq!(block.ask(1, now + BLOCK_LASTS_MIN), 2 * BLOCK_MIN);
        assert_eq!(block.ask(50_000, now + 3 * BLOCK_LASTS_MIN), 50_000, "as many as are wanted at once");
        for _ in 0..20 {
            block.ask(1, now + 3 * BLOCK_LASTS_MIN);
        }
        assert_eq!(block.size, BLOCK_MAX);
        let mut last = Block { next: i64::MAX - 1, end: i64::MAX, size: 1, taken_at: None, looked_at: None };
        assert_eq!((last.take(2, None), last.take(1, Some(i64::MAX))), (None, None));
        assert_eq!(last.take(1, None), Some(i64::MAX - 1));
        let mut above = Block { next: 10, end: 20, size: BLOCK_MIN, taken_at: None, looked_at: None };
        assert_eq!(
            (above.take(1, Some(5)), above.take(1, Some(15)), above.take(1, Some(50))),
            (Some(10), Some(16), None)
        );
    }
}
