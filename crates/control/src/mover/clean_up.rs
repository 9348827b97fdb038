//! Deleting what a move left: rows that a shard does not own, a few at a time, and an attempt's traces.
//!
//! Clients' statements never see these rows (see `engine`: scatter reads filter, keyed ones are refused), and
//! statements that began before the hand-over read a snapshot of their own. So there is no hurry: a chunk is small
//! enough that the shard's writers hardly notice it.

use std::time::Duration;

use pleat_cluster::{Operation, ShardId, TableKind};
use pleat_engine::{MoveAction, MoveChunk, MovePhase, MoveRead};
use tokio::time::sleep;

use super::throttle::Throttle;
use super::{Plan, touched};
use crate::stop::{Stop, unexpected};
use crate::tracker::Amount;
use crate::work::{MoveNumber, Work};

/// Rows deleted by one entry of the shard's log.
const KEYS_MAX: usize = 1_000;
/// The pause between two of them.
const PAUSE: Duration = Duration::from_millis(2);

pub(crate) const CLEAN_UP: &str = "clean up";
pub(crate) const TAKE_BACK: &str = "take back";

/// After the commit: the source's leftovers. Gives the number of rows.
pub(super) async fn leftovers(work: &Work, plan: &Plan) -> Result<u64, Stop> {
    work.begin(CLEAN_UP).await?;
    // What was compared is about what is left behind.
    let moved = work.operation()?.receipt.map_or(0, |receipt| receipt.source.rows);
    work.expect(Amount { rows: moved, bytes: 0 });
    let rows = match work.step(plan.number, plan.from, MoveAction::Claim).await?.phase {
        MovePhase::Leftovers => delete_foreign(work, plan.number, &sharded(work), plan.from).await?,
        _ => 0, // an earlier leader came to the end of it
    };
    work.end(CLEAN_UP, &format!("{rows} rows deleted on {}", plan.from)).await?;
    Ok(rows)
}

/// Before the commit: the source accepts writes and captures nothing.
///
/// Also a source that knows nothing of the attempt is told: steps of an earlier leader that are still on their way
/// then find that it has ended, and none of them closes the gates after this.
pub(super) async fn open_gates(work: &Work, plan: &Plan) -> Result<(), Stop> {
    if !touched(work)? {
        return Ok(());
    }
    work.step(plan.number, plan.from, MoveAction::Abort).await.map(drop)
}

/// Before the commit: both shards are as if there had been no attempt.
pub(super) async fn take_back(work: &Work, plan: &Plan) -> Result<(), Stop> {
    work.note(TAKE_BACK, false, "").await?;
    open_gates(work, plan).await?;
    discard(work, plan).await
}

/// The target's part of it.
pub(super) async fn discard(work: &Work, plan: &Plan) -> Result<(), Stop> {
    work.note(TAKE_BACK, false, "").await?;
    let rows = match work.step(plan.number, plan.to, MoveAction::ImportAbort).await?.phase {
        MovePhase::Discarding => delete_foreign(work, plan.number, &sharded(work), plan.to).await?,
        _ => 0,
    };
    work.end(TAKE_BACK, &format!("{rows} rows deleted on {}", plan.to)).await
}

/// How often taking back was broken off.
pub(crate) fn failures(operation: &Operation) -> usize {
    operation.steps.iter().filter(|step| step.name == TAKE_BACK && step.detail.contains("broken off: take the")).count()
}

/// Whether that is what the journal ends with.
pub(crate) fn is_taking_back(operation: &Operation) -> bool {
    operation.steps.last().is_some_and(|step| step.name == TAKE_BACK && step.ended.is_none())
}

/// The tables that have rows of partitions.
fn sharded(work: &Work) -> Vec<String> {
    let catalog = work.catalog();
    let tables = catalog.tables.values().filter(|table| matches!(table.kind, TableKind::Sharded { .. }));
    tables.map(|table| table.name.clone()).collect()
}

/// Delete every row of the move's units that the shard does not own, then say that none is left.
pub(crate) async fn delete_foreign(
    work: &Work,
    number: MoveNumber,
    tables: &[String],
    shard: ShardId,
) -> Result<u64, Stop> {
    let limit = KEYS_MAX.min(work.tools.settings.chunk_rows);
    let (mut rows, mut throttle) = (0, Throttle::new(work, &[shard]).await);
    for table in tables {
        let mut after = None;
        loop {
            let (operation, table) = (number.0, table.clone());
            let request = MoveRead::CleanUpNext { operation, table: table.clone(), after, limit };
            let MoveChunk::Keys { keys, next } = work.ask(shard, request).await? else {
                return Err(unexpected("cleaning up"));
            };
            if !keys.is_empty() {
                rows += keys.len() as u64;
                work.step(number, shard, MoveAction::CleanUp { table, keys }).await?;
                work.advance(Amount { rows, bytes: 0 }, || format!("on {shard}{}", throttle.describe()));
            }
            if next.is_none() {
                break;
            }
            after = next;
            sleep(PAUSE).await;
            throttle.rest().await;
        }
    }
    work.step(number, shard, MoveAction::CleanUpDone).await?;
    Ok(rows)
}
