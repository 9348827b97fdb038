//! One attempt at a move, from the new shard to the commit.

use std::time::Duration;

use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{Command, ShardState};
use pleat_engine::{
    Action, Changes, ContentDigest, Cursor, EngineError, IdempotencyRow, MoveAction, MoveChunk, MoveRead, Position,
    TableChanges,
};
use pleat_host::HostError;
use tokio::time::{Instant, sleep};

use super::pace::Pace;
use super::{Plan, copy, cut_over, is_active, reference};
use crate::ddl;
use crate::stop::{Stop, unexpected};
use crate::work::{SCAN_LIMIT, Work};

pub(super) const CREATE_SHARD: &str = "create shard";
pub(super) const COPY_SCHEMA: &str = "copy schema";
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

/// What a move did, for people.
#[derive(Clone, Debug, Default)]
pub(super) struct Receipt {
    pub copied: u64,
    pub changed: u64,
    pub bytes: u64,
    pub digest: Option<ContentDigest>,
    pub predicted: Duration,
    /// When the source was told to refuse writes.
    pub fenced: Option<Instant>,
    /// From then until the target accepted them.
    pub pause: Option<Duration>,
    /// The target accepts writes.
    pub opened: bool,
    /// The journal has the hand-over.
    pub journaled: bool,
    /// The source has let go.
    pub released: bool,
}

impl Receipt {
    /// The operation's message.
    pub fn message(&self, plan: &Plan, rest: &str) -> String {
        let partitions = plan.partitions.len();
        let moved = format!("{partitions} partitions of {} moved to {}", plan.from, plan.to);
        let Some(pause) = self.pause else {
            // A later leader has finished it: the figures went with the one before, into the journal's steps.
            return format!("{moved}; {rest}");
        };
        let digest = self.digest.as_ref().map(describe).unwrap_or_default();
        format!(
            "{moved}: {} rows copied and {} changed meanwhile ({} bytes){digest}; \
             writes paused for {} ms (predicted {} ms); {rest}",
            self.copied,
            self.changed,
            self.bytes,
            pause.as_millis(),
            self.predicted.as_millis()
        )
    }
}

/// The digests as they stand in receipts: `, flights 1234 rows 00c0ffee…`.
pub(super) fn describe(digest: &ContentDigest) -> String {
    let table = |(name, table): (&String, &pleat_engine::TableDigest)| {
        format!(", {name} {} rows {:016x}", table.rows, table.sum)
    };
    digest.tables.iter().map(table).collect()
}

/// An attempt in progress.
pub(super) struct Attempt<'a> {
    pub work: &'a Work,
    pub plan: &'a Plan,
    /// Up to where the target has the source's changes.
    pub position: Position,
    pub receipt: Receipt,
    pub pace: Pace,
}

/// Everything up to and with the commit.
pub(super) async fn attempt(work: &Work, plan: &Plan) -> Result<Receipt, Stop> {
    if plan.creates {
        create_shard(work, plan).await?;
        copy_schema(work, plan).await?;
        reference::copy(work, plan).await?;
    }
    let mut attempt = Attempt {
        work,
        plan,
        position: Position::default(),
        receipt: Receipt::default(),
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
            cut_over::CutOver::Committed => return Ok(attempt.receipt),
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
        let mut rows = 0;
        for round in 1..=ROUNDS_MAX {
            let (carried, more, took) = self.round().await?;
            rows += carried;
            let detail = |what: &str| format!("{rows} changes in {round} rounds{what}");
            self.work.progress(CATCH_UP, || detail("")).await?;
            if more {
                continue;
            }
            if let Some(predicted) = self.pace.allows(took)? {
                self.receipt.predicted = predicted;
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
        let behind_gates = self.receipt.fenced.is_some();
        if planted::is(if behind_gates { Bug::CaptureDropped } else { Bug::DigestIgnored }) {
            changes.tables.clear();
        }
        self.receipt.changed += changed(&changes);
        let position = changes.position.clone();
        let limit = self.work.tools.settings.chunk_bytes;
        for keys in key_pieces(changes.idempotency, limit) {
            self.send(Vec::new(), keys, None, None).await?;
        }
        let mut pieces = pieces(changes.tables, limit);
        let last = pieces.pop().unwrap_or_default();
        for changes in pieces {
            self.send(changes, Vec::new(), None, None).await?;
        }
        // The position comes with the last of it: what it covers is all there.
        self.send(last, Vec::new(), Some(position.clone()), None).await?;
        self.position = position;
        Ok(true)
    }

    /// One message of rows to the target.
    pub(super) async fn send(
        &mut self,
        changes: Vec<TableChanges>,
        idempotency: Vec<IdempotencyRow>,
        position: Option<Position>,
        cursor: Option<Cursor>,
    ) -> Result<(), Stop> {
        self.receipt.bytes += changes.iter().map(bytes).sum::<usize>() as u64;
        let expected = position.clone();
        let import = MoveAction::Import { changes, idempotency, position, cursor };
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
        let (source, remaining) = self.source_digest().await?;
        self.import(remaining).await?;
        let operation = self.plan.number.0;
        let MoveChunk::Digest(target) = self.work.scan(self.plan.to, MoveRead::Digest { operation }).await? else {
            return Err(unexpected("a digest"));
        };
        let differences = source.differences(&target);
        if !differences.is_empty() && !planted::is(Bug::DigestIgnored) {
            let (here, there) = (describe(&source), describe(&target));
            let tables = differences.join(", ");
            return Err(Stop::impossible(format!(
                "the copy of {tables} differs from its source; nothing was handed over (source{here}; target{there})"
            )));
        }
        let rows: u64 = source.tables.values().map(|table| table.rows).sum();
        let detail = format!("{rows} rows are the same on both shards{}", describe(&source));
        self.receipt.digest = Some(source);
        self.work.end(VERIFY, &detail).await
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

pub(crate) fn changed(changes: &Changes) -> u64 {
    changes.tables.iter().map(|table| (table.rows.len() + table.deletes.len()) as u64).sum()
}

/// The bytes that a message's rows take, roughly.
pub(crate) fn bytes(changes: &TableChanges) -> usize {
    changes.rows.iter().chain(&changes.deletes).flatten().map(pleat_cluster::Value::size).sum()
}

/// Cut changes into messages of at most about `limit` bytes, the order kept.
pub(crate) fn pieces(tables: Vec<TableChanges>, limit: usize) -> Vec<Vec<TableChanges>> {
    let mut pieces = vec![Vec::new()];
    let mut filled = 0;
    for table in tables {
        let empty = TableChanges { rows: Vec::new(), deletes: Vec::new(), ..table.clone() };
        let mut part = TableChanges { deletes: table.deletes, ..empty.clone() };
        filled += bytes(&part);
        for row in table.rows {
            let size: usize = row.iter().map(pleat_cluster::Value::size).sum();
            if filled > 0 && filled + size > limit {
                let full = std::mem::replace(&mut part, empty.clone());
                pieces.last_mut().expect("there is always a last piece").push(full);
                pieces.push(Vec::new());
                filled = 0;
            }
            filled += size;
            part.rows.push(row);
        }
        pieces.last_mut().expect("there is always a last piece").push(part);
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
            rows: rows.clone(),
            deletes: vec![vec![Value::Integer(1000)]],
            sequence: None,
        };
        let pieces = pieces(vec![table("a"), table("b")], 10_000);
        assert!(pieces.len() > 10 && pieces.iter().all(|piece| piece.iter().map(bytes).sum::<usize>() <= 11_100));
        for name in ["a", "b"] {
            let parts = || pieces.iter().flatten().filter(|part| part.table == name);
            assert_eq!(parts().flat_map(|part| part.rows.clone()).collect::<Vec<_>>(), rows);
            assert_eq!(parts().map(|part| part.deletes.len()).sum::<usize>(), 1);
        }
    }
}
