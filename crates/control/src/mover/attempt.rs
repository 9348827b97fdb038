//! One attempt at a move, from the new shard to the commit.

use std::time::Duration;

use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{Command, ShardState};
use pleat_engine::{
    Action, Changes, ContentDigest, EngineError, IdempotencyRow, MoveAction, MoveChunk, MoveRead, Position, Rows,
    TableChanges,
};
use pleat_host::HostError;
use tokio::time::{Instant, sleep};

use super::pace::Pace;
use super::receipt::{HandOver, compare, describe, millis};
use super::{Plan, copy, cut_over, is_active, reference};
use crate::ddl;
use crate::stop::{Stop, unexpected};
use crate::tracker::Amount;
use crate::work::{SCAN_LIMIT, Work};

pub(crate) const CREATE_SHARD: &str = "create shard";
pub(crate) const COPY_SCHEMA: &str = "copy schema";
pub(crate) const CAPTURE: &str = "capture";
pub(crate) const CATCH_UP: &str = "catch up";
pub(crate) const VERIFY: &str = "verify";

/// Rounds of catching up in one attempt.
pub(crate) const ROUNDS_MAX: usize = 5_000;
/// The pause between rounds that would have been over the budget.
pub(crate) const ROUND_PAUSE: Duration = Duration::from_millis(40);
/// How often one attempt closes the gates and, when that takes too long, opens them again.
pub(crate) const FENCES_MAX: usize = 3;
/// How often a verification that met too many changes is tried.
pub(crate) const VERIFICATIONS_MAX: usize = 20;

/// An attempt in progress.
pub(super) struct Attempt<'a> {
    pub work: &'a Work,
    pub plan: &'a Plan,
    /// Up to where the target has the source's changes.
    pub position: Position,
    /// Nothing had changed when the last delta was read.
    is_quiet: bool,
    pub hand_over: HandOver,
    pub pace: Pace,
}

/// Everything up to and with the commit.
pub(super) async fn attempt(work: &Work, plan: &Plan) -> Result<HandOver, Stop> {
    if plan.creates {
        create_shard(work, plan).await?;
        copy_schema(work, plan).await?;
        reference::copy(work, plan).await?;
    }
    let mut attempt = Attempt {
        work,
        plan,
        position: Position::default(),
        is_quiet: false,
        hand_over: HandOver::default(),
        pace: Pace::new(work.tools.settings.pause_budget),
    };
    attempt.capture().await?;
    copy::copy(&mut attempt).await?;
    attempt.catch_up().await?;
    attempt.verify().await?;
    reference::complete(work, plan).await?;
    for _ in 0..FENCES_MAX {
        attempt.catch_up().await?;
        match cut_over::cut_over(&mut attempt).await? {
            cut_over::CutOver::Committed => return Ok(attempt.hand_over),
            cut_over::CutOver::Reopened(why) => {
                tracing::warn!(operation = %work.id, why, "the gates were opened again")
            }
        }
    }
    Err(Stop::Again(format!("the gates were closed {FENCES_MAX} times and the rest was never over within the limit")))
}

/// The new shard's replicas run and have a leader.
async fn create_shard(work: &Work, plan: &Plan) -> Result<(), Stop> {
    work.begin(CREATE_SHARD).await?;
    let catalog = work.catalog();
    let shard = catalog.shards.get(&plan.to).filter(|shard| shard.state != ShardState::Removed);
    let shard = shard.ok_or_else(|| Stop::impossible(format!("{} was removed", plan.to)))?;
    let provided = work.tools.provisioner.provide(shard, work.tools.settings.provision_limit).await;
    let provided = provided.map_err(|error| Stop::Again(error.to_string()))?;
    work.end(CREATE_SHARD, &provided.detail).await
}

/// Every table, before the first row. Between here and the next schema change stands this operation itself.
async fn copy_schema(work: &Work, plan: &Plan) -> Result<(), Stop> {
    if is_active(work, plan.to) {
        return Ok(());
    }
    work.begin(COPY_SCHEMA).await?;
    let catalog = work.catalog();
    let tables = ddl::by_reference(&catalog.tables);
    for table in &tables {
        let copied = work.write(plan.to, ddl::copy_of(work.id.0, table)).await;
        copied.map_err(|stop| stop.context(&format!("table {}", table.name)))?;
    }
    // The shard must know the ownership that routers will ask it for once it is active.
    if let Some(shard) = catalog.shards.get(&plan.to) {
        work.write(plan.to, Action::Own { units: Vec::new(), ownership: shard.ownership, layout: catalog.layout })
            .await?;
    }
    work.end(COPY_SCHEMA, &format!("{} tables", tables.len())).await
}

/// Route to the new shard: writes to reference tables go there from now on, and it owns nothing yet.
pub(super) async fn activate_shard(work: &Work, plan: &Plan) -> Result<(), Stop> {
    let at = work.cluster().now_ms();
    work.command(Command::ActivateShard { shard: plan.to, at }).await
}

impl Attempt<'_> {
    /// From here on no change to the moving partitions is missed.
    async fn capture(&mut self) -> Result<(), Stop> {
        let partitions = self.plan.partitions.clone();
        self.work.begin(CAPTURE).await?;
        for shard in [self.plan.from, self.plan.to] {
            let begun = Instant::now();
            self.work.step(self.plan.number, shard, MoveAction::Claim).await?;
            Pace::mix(&mut self.pace.write, begun.elapsed());
        }
        self.work
            .step(self.plan.number, self.plan.to, MoveAction::ImportStart { partitions: partitions.clone() })
            .await?;
        self.work.step(self.plan.number, self.plan.from, MoveAction::CaptureStart { partitions }).await?;
        let detail = format!("changes to {} partitions are captured", self.plan.partitions.len());
        self.work.end(CAPTURE, &detail).await
    }

    /// Rounds of deltas, until closing the gates would take no longer than the budget.
    async fn catch_up(&mut self) -> Result<(), Stop> {
        let begun = Instant::now();
        self.work.begin(CATCH_UP).await?;
        Pace::mix(&mut self.pace.command, begun.elapsed());
        let (mut rows, before) = (0, self.hand_over.receipt.bytes);
        for round in 1..=ROUNDS_MAX {
            let (carried, more, took) = self.round().await?;
            rows += carried;
            let detail = |what: &str| format!("{rows} changes in {round} rounds{what}");
            let done = Amount { rows, bytes: self.hand_over.receipt.bytes - before };
            self.work.advance(done, || format!("round {round}"));
            if more {
                continue;
            }
            if let Some(predicted) = self.pace.allows(took)? {
                self.hand_over.receipt.pause_predicted_ms = millis(predicted);
                let (now, budget) = (predicted.as_millis(), self.pace.budget().as_millis());
                return self.work.end(CATCH_UP, &detail(&format!("; predicted pause {now} ms of {budget} ms"))).await;
            }
            sleep(ROUND_PAUSE).await;
        }
        Err(Stop::Again(format!("after {ROUNDS_MAX} rounds changes still come faster than they are carried over")))
    }

    /// One delta, read and applied: how many changes, whether there are more, and how long applying took.
    pub(super) async fn round(&mut self) -> Result<(u64, bool, Duration), Stop> {
        let begun = Instant::now();
        let request = MoveRead::Delta {
            operation: self.plan.number.0,
            after: self.position.clone(),
            rows_max: self.work.tools.settings.chunk_rows,
            bytes_max: self.work.tools.settings.chunk_bytes,
        };
        let MoveChunk::Delta(changes) = self.work.ask(self.plan.from, request).await? else {
            return Err(unexpected("a delta"));
        };
        Pace::mix(&mut self.pace.read, begun.elapsed());
        let (carried, more) = (changed(&changes), changes.more);
        self.is_quiet = changes.is_empty();
        let begun = Instant::now();
        if self.import(changes).await? {
            Pace::mix(&mut self.pace.write, begun.elapsed());
            return Ok((carried, more, begun.elapsed()));
        }
        Ok((carried, more, Duration::ZERO))
    }

    /// Bring changes to the target, with the position that they lead to. False when there are none.
    pub(super) async fn import(&mut self, mut changes: Changes) -> Result<bool, Stop> {
        if changes.is_empty() && changes.position == self.position {
            return Ok(false);
        }
        let behind_gates = self.hand_over.fenced.is_some();
        if planted::is(if behind_gates { Bug::CaptureDropped } else { Bug::DigestIgnored }) {
            changes.tables.clear();
        }
        self.hand_over.receipt.changed += changed(&changes);
        let position = changes.position.clone();
        let limit = self.work.tools.settings.chunk_bytes;
        for keys in key_pieces(changes.idempotency, limit) {
            self.send(Vec::new(), keys, None).await?;
        }
        let mut pieces = pieces(changes.tables, limit);
        let last = pieces.pop().unwrap_or_default();
        for changes in pieces {
            self.send(changes, Vec::new(), None).await?;
        }
        // The position comes with the last of it: what it covers is all there.
        self.send(last, Vec::new(), Some(position.clone())).await?;
        self.position = position;
        Ok(true)
    }

    /// One message of changed rows to the target.
    async fn send(
        &mut self,
        changes: Vec<TableChanges>,
        idempotency: Vec<IdempotencyRow>,
        position: Option<Position>,
    ) -> Result<(), Stop> {
        self.hand_over.receipt.bytes += changes.iter().map(bytes).sum::<u64>();
        let expected = position.clone();
        let import = MoveAction::Import { changes, idempotency, position, copied: false };
        let state = self.work.step(self.plan.number, self.plan.to, import).await?;
        match expected {
            Some(expected) if state.position != expected => Err(Stop::impossible(
                "the target did not store the position of the changes that it was given".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// The rows of the moving partitions are the same on both sides, at one position.
    async fn verify(&mut self) -> Result<(), Stop> {
        self.work.begin(VERIFY).await?;
        let (source, target) = self.digests().await?;
        let target = if planted::is(Bug::DigestIgnored) { source.clone() } else { target };
        let differences = compare(&mut self.hand_over.receipt, &source, &target);
        if !differences.is_empty() {
            self.work.keep(&self.hand_over.receipt).await?;
            let (here, there) = (describe(&source), describe(&target));
            let tables = differences.join(", ");
            return Err(Stop::impossible(format!(
                "the copy of {tables} differs from its source; nothing was handed over (source{here}; target{there})"
            )));
        }
        let rows = self.hand_over.receipt.source.rows;
        self.work.end(VERIFY, &format!("{rows} rows are the same on both shards{}", describe(&source))).await
    }

    /// Of both sides at one position: the source's, with the target brought there before its own is taken. Where nothing was
    /// left to bring, both are taken at the same time, and the target's counts if there was indeed nothing.
    async fn digests(&mut self) -> Result<(ContentDigest, ContentDigest), Stop> {
        let (work, plan, before) = (self.work, self.plan, self.position.clone());
        let (source, remaining, target) = match self.is_quiet {
            true => {
                let both = futures::join!(self.source_digest(), target_digest(work, plan));
                let (source, remaining) = both.0?;
                (source, remaining, Some(both.1?))
            }
            false => {
                let (source, remaining) = self.source_digest().await?;
                (source, remaining, None)
            }
        };
        let was_there = !self.import(remaining).await? && self.position == before;
        match target.filter(|_| was_there) {
            Some(target) => Ok((source, target)),
            None => Ok((source, target_digest(work, plan).await?)),
        }
    }

    async fn source_digest(&mut self) -> Result<(ContentDigest, Changes), Stop> {
        for _ in 0..VERIFICATIONS_MAX {
            let request = MoveRead::Verify { operation: self.plan.number.0, after: self.position.clone() };
            match self.work.cluster().move_read(self.plan.from, request, SCAN_LIMIT).await {
                Ok(MoveChunk::Verified { remaining, digest }) => return Ok((digest, remaining)),
                Ok(_) => return Err(unexpected("a verification")),
                Err(HostError::Engine(EngineError::DeltaTooLarge { .. })) => while self.round().await?.1 {},
                Err(error) => return Err(error.into()),
            }
        }
        Err(Stop::Again("too much changes at once to compare both sides".to_owned()))
    }
}

async fn target_digest(work: &Work, plan: &Plan) -> Result<ContentDigest, Stop> {
    let operation = plan.number.0;
    match work.scan(plan.to, MoveRead::Digest { operation }).await? {
        MoveChunk::Digest(digest) => Ok(digest),
        _ => Err(unexpected("a digest")),
    }
}

pub(crate) fn changed(changes: &Changes) -> u64 {
    changes.tables.iter().map(|table| (table.rows.len() + table.deletes.len()) as u64).sum()
}

/// The bytes of the values that a message carries: what people are told.
pub(crate) fn bytes(changes: &TableChanges) -> u64 {
    changes.rows.size() + deleted(changes) as u64
}

/// The bytes of the keys in it.
fn deleted(changes: &TableChanges) -> usize {
    changes.deletes.iter().flatten().map(pleat_cluster::Value::size).sum()
}

/// Cut changes into messages of at most about `limit` bytes, the order kept.
pub(crate) fn pieces(tables: Vec<TableChanges>, limit: usize) -> Vec<Vec<TableChanges>> {
    let mut pieces = vec![Vec::new()];
    let mut filled = 0;
    for table in tables {
        let empty = TableChanges { rows: Rows::default(), deletes: Vec::new(), ..table.clone() };
        filled += deleted(&table);
        let mut deletes = Some(table.deletes);
        for rows in table.rows.cut(limit.saturating_sub(filled), limit) {
            match deletes.take() {
                Some(deletes) => {
                    filled += rows.bytes();
                    let part = TableChanges { rows, deletes, ..empty.clone() };
                    pieces.last_mut().expect("there is always a last piece").push(part);
                }
                None => {
                    filled = rows.bytes();
                    pieces.push(vec![TableChanges { rows, ..empty.clone() }]);
                }
            }
        }
    }
    pieces
}

/// Cut remembered writes into messages of at most about `limit` bytes.
pub(crate) fn key_pieces(keys: Vec<IdempotencyRow>, limit: usize) -> Vec<Vec<IdempotencyRow>> {
    let mut pieces: Vec<Vec<IdempotencyRow>> = Vec::new();
    let mut filled = usize::MAX;
    for key in keys {
        let size = key.key.len() + key.outcome.len() + 4 * key.units.len();
        match pieces.last_mut().filter(|_| filled.saturating_add(size) <= limit) {
            Some(piece) => {
                filled += size;
                piece.push(key);
            }
            None => {
                filled = size;
                pieces.push(vec![key]);
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use pleat_cluster::Value;

    use super::*;

    #[test]
    fn large_changes_travel_in_pieces_and_nothing_is_lost() {
        let rows: Vec<Vec<Value>> = (0..100).map(|n| vec![Value::Integer(n), Value::Text("x".repeat(1000))]).collect();
        let table = |name: &str| TableChanges {
            table: name.to_owned(),
            columns: vec!["id".to_owned(), "v".to_owned()],
            rows: rows.clone().into(),
            deletes: vec![vec![Value::Integer(1000)]],
            sequence: None,
        };
        let pieces = pieces(vec![table("a"), table("b")], 10_000);
        assert!(pieces.len() > 10 && pieces.iter().all(|piece| piece.iter().map(bytes).sum::<u64>() <= 10_000));
        for name in ["a", "b"] {
            let parts = || pieces.iter().flatten().filter(|part| part.table == name);
            assert_eq!(parts().flat_map(|part| part.rows.to_values()).collect::<Vec<_>>(), rows);
            assert_eq!(parts().map(|part| part.deletes.len()).sum::<usize>(), 1);
        }
    }
}
