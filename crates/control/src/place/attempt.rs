//! One attempt, from the check to the commit.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use pleat_cluster::{Catalog, ShardId, TableKind, tied};
use pleat_engine::{
    Changes, ContentDigest, EngineError, IdempotencyRow, MoveAction, MoveChunk, MoveRead, Position, TableChanges,
    TableDigest,
};
use pleat_host::HostError;
use tokio::time::{Instant, sleep, timeout};

use super::Plan;
use super::rows::Sorter;
use crate::ddl;
use crate::mover::attempt::{
    CAPTURE, CATCH_UP, FENCES_MAX, ROUND_PAUSE, ROUNDS_MAX, VERIFICATIONS_MAX, VERIFY, bytes, changed, key_pieces,
    pieces,
};
use crate::mover::copy::{COPY, Snapshot};
use crate::mover::pace::Pace;
use crate::mover::receipt::{HandOver, compare, millis};
use crate::mover::throttle::Throttle;
use crate::mover::{cut_over, reference};
use crate::stop::{Stop, unexpected};
use crate::tracker::Amount;
use crate::work::{SCAN_LIMIT, Work};

pub(crate) const CHECK: &str = "check";
/// Rows of a table that gets new rowids, which takes all of its shards' time at once: about a second.
const RENUMBERED_ROWS_MAX: u64 = 500_000;
/// How long a node may take to say how many rows there are.
const COUNT_LIMIT: Duration = Duration::from_secs(2);

/// What an attempt did.
#[derive(Clone, Debug, Default)]
pub(super) struct Placed {
    /// Rows read, be it that they stay where they are.
    pub read: u64,
    pub hand_over: HandOver,
}

struct Attempt<'a> {
    work: &'a Work,
    plan: &'a Plan,
    catalog: &'a Catalog,
    sources: Vec<ShardId>,
    /// Up to where the changes of each source were sent.
    positions: BTreeMap<ShardId, Position>,
    placed: Placed,
    pace: Pace,
}

/// Everything up to and with the commit.
pub(super) async fn attempt(work: &Work, plan: &mut Plan) -> Result<Placed, Stop> {
    let catalog = work.catalog();
    check(work, plan, &catalog).await?;
    plan.number = work.begin_attempt(CAPTURE).await?;
    let plan = &*plan;
    let sources = plan.sources(&catalog);
    let positions = sources.iter().map(|shard| (*shard, Position::default())).collect();
    let mut pace = Pace::new(work.tools.settings.pause_budget);
    pace.writes_after = 2;
    let placed = Placed::default();
    let mut attempt = Attempt { work, plan, catalog: &catalog, sources, positions, placed, pace };
    attempt.capture().await?;
    attempt.copy().await?;
    attempt.catch_up().await?;
    if plan.carries() {
        attempt.verify().await?;
    }
    for _ in 0..FENCES_MAX {
        attempt.catch_up().await?;
        match attempt.cut_over().await? {
            None => return Ok(attempt.placed),
            Some(why) => tracing::warn!(operation = %work.id, why, "the table takes writes again"),
        }
    }
    Err(Stop::Again(format!("writes were stopped {FENCES_MAX} times and the rest was never over within the limit")))
}

/// What can be told before anything is touched.
async fn check(work: &Work, plan: &Plan, catalog: &Catalog) -> Result<(), Stop> {
    work.begin(CHECK).await?;
    let table = &plan.before.name;
    if catalog.table(table) != Some(&plan.before) {
        return Err(Stop::impossible(format!("table {table} was changed meanwhile")));
    }
    if let Some(other) = tied(&catalog.tables, &plan.before) {
        return Err(Stop::impossible(format!(
            "a foreign key ties {table} to {}, and both would have to get another placement at once",
            other.name
        )));
    }
    work.end(CHECK, &format!("{} shards take part", plan.shards(work).len())).await?;
    ddl::all_reached(work).await
}

impl Attempt<'_> {
    /// From here on no change is missed.
    async fn capture(&mut self) -> Result<(), Stop> {
        self.work.begin(CAPTURE).await?;
        for shard in self.plan.shards(self.work) {
            let begun = Instant::now();
            self.work.step(self.plan.number, shard, MoveAction::Claim).await?;
            Pace::mix(&mut self.pace.write, begun.elapsed());
        }
        for shard in self.plan.shards(self.work) {
            let place = Box::new(self.plan.part(self.catalog, shard));
            self.work.step(self.plan.number, shard, MoveAction::PlaceStart { place }).await?;
        }
        let captured = format!("changes are captured on {} shards", self.sources.len());
        self.work.end(CAPTURE, &captured).await
    }

    /// All rows, as of a moment after the capture began; one shard after the other.
    async fn copy(&mut self) -> Result<(), Stop> {
        self.work.begin(COPY).await?;
        if let Some(rows) = self.count_rows().await {
            self.work.expect(Amount { rows, bytes: 0 });
        }
        for source in self.sources.clone().into_iter().filter(|_| self.plan.reads_rows()) {
            let open = MoveRead::CopyOpen { operation: self.plan.number.0 };
            let snapshot = Snapshot::open(self.work, source, open).await?;
            let copied = self.copy_from(source, &snapshot).await;
            snapshot.close().await;
            copied?;
        }
        let (read, sent, bytes) = self.so_far();
        if self.plan.renumbers() && read > RENUMBERED_ROWS_MAX {
            return Err(Stop::impossible(format!(
                "{} has {read} rows, and a table that becomes a reference table without an INTEGER PRIMARY KEY may have \
                 {RENUMBERED_ROWS_MAX}",
                self.plan.after.name
            )));
        }
        self.work.end(COPY, &format!("{read} rows read, {sent} of them sent to other shards, {bytes} bytes")).await
    }

    async fn copy_from(&mut self, source: ShardId, snapshot: &Snapshot<'_>) -> Result<(), Stop> {
        let mut throttle = Throttle::new(self.work, &self.plan.shards(self.work)).await;
        for table in &snapshot.tables {
            let mut chunk = snapshot.next(table, None).await?;
            loop {
                let (changes, next) = chunk;
                self.placed.read += changes.rows.len() as u64;
                let sorted = self.sort(source, changes, false)?;
                self.placed.hand_over.receipt.copied +=
                    sorted.values().map(|changes| changes.rows.len() as u64).sum::<u64>();
                let work = self.work;
                let Some(after) = next else {
                    self.send(sorted, true).await?;
                    break;
                };
                // The next chunk is read while this one is written.
                let (sent, read) = futures::join!(self.send(sorted, true), snapshot.next(table, Some(after)));
                sent?;
                chunk = read?;
                let (read, sent, bytes) = self.so_far();
                let detail = || format!("on {source}, {sent} rows sent to other shards{}", throttle.describe());
                work.advance(Amount { rows: read, bytes }, detail);
                throttle.rest().await;
            }
        }
        Ok(())
    }

    /// Rows read, rows sent to other shards, and bytes sent.
    fn so_far(&self) -> (u64, u64, u64) {
        let receipt = &self.placed.hand_over.receipt;
        (self.placed.read, receipt.copied, receipt.bytes)
    }

    /// About how many rows there are to read, for people.
    async fn count_rows(&self) -> Option<u64> {
        let nodes = self.catalog.active_nodes().map(|node| self.work.cluster().observe(node.id, COUNT_LIMIT));
        let mut rows: BTreeMap<ShardId, u64> = BTreeMap::new();
        for seen in join_all(nodes).await.into_iter().flatten() {
            for shard in seen.shards.iter().filter(|shard| self.sources.contains(&shard.shard)) {
                let counted = shard.rows_per_table.get(&self.plan.before.name).copied().unwrap_or(0);
                let known = rows.entry(shard.shard).or_default();
                *known = counted.max(*known);
            }
        }
        (rows.len() == self.sources.len()).then(|| rows.values().sum())
    }

    fn sort(
        &self,
        source: ShardId,
        changes: TableChanges,
        changed: bool,
    ) -> Result<BTreeMap<ShardId, TableChanges>, Stop> {
        Sorter::new(self.plan, self.catalog, source).sort(changes, changed)
    }

    /// Rows to the shards that they are for. To one shard goes one message at a time, so that each is newer than the
    /// one before it.
    async fn send(&mut self, sorted: BTreeMap<ShardId, TableChanges>, copied: bool) -> Result<(), Stop> {
        self.placed.hand_over.receipt.bytes += sorted.values().map(bytes).sum::<u64>();
        let (work, plan) = (self.work, self.plan);
        let limit = work.tools.settings.chunk_bytes;
        let sent = sorted.into_iter().map(|(shard, changes)| async move {
            for piece in pieces(vec![changes], limit) {
                send_one(work, plan, shard, piece, Vec::new(), copied).await?;
            }
            Ok(())
        });
        join_all(sent).await.into_iter().collect()
    }

    /// Remembered writes to every shard: their repetition may be routed anywhere.
    async fn send_keys(&self, keys: Vec<IdempotencyRow>) -> Result<(), Stop> {
        let (work, plan) = (self.work, self.plan);
        let limit = work.tools.settings.chunk_bytes;
        let sent = plan.shards(work).into_iter().map(|shard| {
            let keys = keys.clone();
            async move {
                for piece in key_pieces(keys, limit) {
                    send_one(work, plan, shard, Vec::new(), piece, false).await?;
                }
                Ok(())
            }
        });
        join_all(sent).await.into_iter().collect()
    }

    /// Rounds of deltas, until closing the gates would take no longer than the budget.
    async fn catch_up(&mut self) -> Result<(), Stop> {
        let begun = Instant::now();
        self.work.begin(CATCH_UP).await?;
        Pace::mix(&mut self.pace.command, begun.elapsed());
        let (mut rows, before) = (0, self.placed.hand_over.receipt.bytes);
        for round in 1..=ROUNDS_MAX {
            let begun = Instant::now();
            let (carried, more) = self.round().await?;
            rows += carried;
            let detail = |what: &str| format!("{rows} changes in {round} rounds{what}");
            let done = Amount { rows, bytes: self.placed.hand_over.receipt.bytes - before };
            self.work.advance(done, || format!("round {round}"));
            if more {
                continue;
            }
            if let Some(predicted) = self.pace.allows(begun.elapsed())? {
                self.placed.hand_over.receipt.pause_predicted_ms = millis(predicted);
                let (now, budget) = (predicted.as_millis(), self.pace.budget().as_millis());
                return self.work.end(CATCH_UP, &detail(&format!("; predicted pause {now} ms of {budget} ms"))).await;
            }
            sleep(ROUND_PAUSE).await;
        }
        Err(Stop::Again(format!("after {ROUNDS_MAX} rounds changes still come faster than they are carried over")))
    }

    /// One delta of each source, read and sent: how many changes, and whether there are more.
    async fn round(&mut self) -> Result<(u64, bool), Stop> {
        let (mut carried, mut any_more) = (0, false);
        for source in self.sources.clone() {
            let begun = Instant::now();
            let request = MoveRead::Delta {
                operation: self.plan.number.0,
                after: self.positions[&source].clone(),
                rows_max: self.work.tools.settings.chunk_rows,
                bytes_max: self.work.tools.settings.chunk_bytes,
            };
            let MoveChunk::Delta(changes) = self.work.ask(source, request).await? else {
                return Err(unexpected("a delta"));
            };
            Pace::mix(&mut self.pace.read, begun.elapsed());
            any_more |= changes.more;
            carried += self.carry(source, changes).await?;
        }
        Ok((carried, any_more))
    }

    /// Bring one source's changes to the others.
    async fn carry(&mut self, source: ShardId, changes: Changes) -> Result<u64, Stop> {
        let carried = changed(&changes) + changes.idempotency.len() as u64;
        self.placed.hand_over.receipt.changed += changed(&changes);
        self.send_keys(changes.idempotency).await?;
        for table in changes.tables {
            let sorted = self.sort(source, table, true)?;
            self.send(sorted, false).await?;
        }
        self.positions.insert(source, changes.position);
        Ok(carried)
    }

    /// What was given away is what was brought, at one position of each source.
    async fn verify(&mut self) -> Result<(), Stop> {
        self.work.begin(VERIFY).await?;
        let (mut given, mut by_source) = (TableDigest::default(), BTreeMap::new());
        for source in self.sources.clone() {
            let digest = self.source_digest(source).await?;
            let digest = self.table_of(&digest);
            given = sum(given, digest);
            by_source.insert(source, digest);
        }
        let is_reference = matches!(self.plan.after.kind, TableKind::Reference);
        let (mut expected, mut brought, mut differing) = (TableDigest::default(), TableDigest::default(), None);
        for shard in self.plan.shards(self.work) {
            let operation = self.plan.number.0;
            let MoveChunk::Digest(digest) = self.work.scan(shard, MoveRead::Digest { operation }).await? else {
                return Err(unexpected("a digest"));
            };
            let digest = self.table_of(&digest);
            brought = sum(brought, digest);
            let others = by_source.iter().filter(|(source, _)| **source != shard);
            let of_others = others.fold(TableDigest::default(), |total, (_, digest)| sum(total, *digest));
            expected = sum(expected, of_others);
            if is_reference && digest != of_others {
                differing = Some(differs(of_others, digest, &format!(" on {shard}")));
            }
        }
        if !is_reference {
            expected = given;
        }
        let (source, target) = (self.as_content(expected), self.as_content(brought));
        if !compare(&mut self.placed.hand_over.receipt, &source, &target).is_empty() || differing.is_some() {
            self.work.keep(&self.placed.hand_over.receipt).await?;
            return Err(differing.unwrap_or_else(|| differs(expected, brought, "")));
        }
        self.work.end(VERIFY, &format!("{} rows given away are the same where they were brought", given.rows)).await
    }

    fn as_content(&self, digest: TableDigest) -> ContentDigest {
        ContentDigest { tables: BTreeMap::from([(self.plan.before.name.clone(), digest)]) }
    }

    fn table_of(&self, digest: &ContentDigest) -> TableDigest {
        digest.tables.get(&self.plan.before.name).copied().unwrap_or_default()
    }

    /// The digest of what a source gives away, and everything up to that moment sent.
    async fn source_digest(&mut self, source: ShardId) -> Result<ContentDigest, Stop> {
        for _ in 0..VERIFICATIONS_MAX {
            let request = MoveRead::Verify { operation: self.plan.number.0, after: self.positions[&source].clone() };
            match self.work.cluster().move_read(source, request, SCAN_LIMIT).await {
                Ok(MoveChunk::Verified { remaining, digest }) => {
                    self.carry(source, remaining).await?;
                    return Ok(digest);
                }
                Ok(_) => return Err(unexpected("a verification")),
                Err(HostError::Engine(EngineError::DeltaTooLarge { .. })) => while self.round().await?.1 {},
                Err(error) => return Err(error.into()),
            }
        }
        Err(Stop::Again("too much changes at once to compare the shards".to_owned()))
    }

    /// Close the table for writes, send the rest, commit. Gives why it was opened again, if it was.
    ///
    /// The journal is written before the gates close and after they are open.
    async fn cut_over(&mut self) -> Result<Option<String>, Stop> {
        let (work, plan) = (self.work, self.plan);
        work.keep(&self.placed.hand_over.receipt).await?;
        work.begin(cut_over::FENCE).await?;
        self.placed.hand_over.fenced = Some(Instant::now());
        let limit = format!("the rest was not sent within {} ms", cut_over::FENCE_LIMIT.as_millis());
        let stop = match timeout(cut_over::FENCE_LIMIT, self.close_gates()).await {
            Ok(Ok(())) => {
                cut_over::commit(work, &format!("place table {} anew", plan.after.name)).await?;
                return Ok(None);
            }
            Ok(Err(Stop::Superseded(why))) => return Err(Stop::Superseded(why)),
            Ok(Err(stop)) => stop,
            Err(_) => Stop::Again(limit),
        };
        self.on_all(MoveAction::PlaceUnfence).await?;
        work.break_off(&stop.reason()).await?;
        match stop {
            Stop::Again(why) => Ok(Some(why)),
            stop => Err(stop),
        }
    }

    /// No shard takes writes to the table, and every row is where it will be.
    async fn close_gates(&mut self) -> Result<(), Stop> {
        self.on_all(MoveAction::PlaceFence).await?;
        if self.plan.is_reference() {
            self.settle_reference_writes().await?;
        }
        for _ in 0..cut_over::ROUNDS_MAX {
            // Each delta is read after a round of the source's quorum, so the fence is in it. The last ones must be
            // empty but for the keys of other tables' writes: that is the barrier.
            let before: Vec<_> = self.positions.values().map(|position| position.capture.clone()).collect();
            let (_, more) = self.round().await?;
            if !more && self.positions.values().map(|position| &position.capture).eq(&before) {
                return Ok(());
            }
        }
        Err(Stop::Again(format!("after {} rounds behind closed gates there were still changes", cut_over::ROUNDS_MAX)))
    }

    /// What the anchor has accepted before the fence is on every shard.
    async fn settle_reference_writes(&self) -> Result<(), Stop> {
        let Some(anchor) = self.catalog.anchor() else { return Ok(()) };
        let others = self.plan.shards(self.work).into_iter().filter(|shard| *shard != anchor);
        let settled = others.map(|shard| reference::catch_up(self.work, anchor, shard));
        join_all(settled).await.into_iter().try_for_each(|settled| settled.map(drop))
    }

    async fn on_all(&self, action: MoveAction) -> Result<(), Stop> {
        super::finish::on_all(self.work, self.plan, action).await
    }
}

async fn send_one(
    work: &Work,
    plan: &Plan,
    shard: ShardId,
    changes: Vec<TableChanges>,
    idempotency: Vec<IdempotencyRow>,
    copied: bool,
) -> Result<(), Stop> {
    let import = MoveAction::Import { changes, idempotency, position: None, copied };
    work.step(plan.number, shard, import).await.map(drop).map_err(|stop| stop.context(&shard.to_string()))
}

fn sum(one: TableDigest, other: TableDigest) -> TableDigest {
    TableDigest { rows: one.rows + other.rows, sum: one.sum.wrapping_add(other.sum) }
}

fn differs(given: TableDigest, brought: TableDigest, place: &str) -> Stop {
    Stop::impossible(format!(
        "what was brought{place} differs from what was given away; nothing was changed (given {} rows {:016x}; brought {} \
         rows {:016x})",
        given.rows, given.sum, brought.rows, brought.sum
    ))
}
