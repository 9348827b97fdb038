//! After the commit: only forward.

use futures::future::join_all;
use pleat_cluster::{Generation, Phase, ShardId, TableKind};
use pleat_engine::{MoveAction, MovePhase};
use tokio::time::{Instant, sleep};

use super::Plan;
use super::attempt::Receipt;
use crate::mover::{INSIST_PAUSE_MAX, INSIST_PAUSE_MIN, clean_up, cut_over};
use crate::stop::Stop;
use crate::work::Work;

const SWITCH: &str = "switch";
const OPEN: &str = "open";

/// Nothing is given up here, so what fails is tried until it succeeds, a shard turns out to be gone for long, or this
/// node does not lead any more.
pub(super) async fn finish(work: &Work, plan: &Plan, mut receipt: Receipt) -> Result<(), Stop> {
    let (begun, patience) = (Instant::now(), work.patience()?);
    let mut pause = INSIST_PAUSE_MIN;
    loop {
        match forward(work, plan, &mut receipt).await {
            Ok(()) => return Ok(()),
            Err(Stop::Superseded(why)) => return Err(Stop::Superseded(why)),
            Err(stop) => {
                tracing::warn!(operation = %work.id, why = stop.reason(), "the table is placed and this goes on")
            }
        }
        if begun.elapsed() >= patience {
            let gone = work.unreached(&plan.shards(work)).await;
            if !gone.is_empty() {
                return Err(work.wait_for(gone).await);
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(INSIST_PAUSE_MAX);
    }
}

/// Done again, it goes on where it stopped.
async fn forward(work: &Work, plan: &Plan, receipt: &mut Receipt) -> Result<(), Stop> {
    if !receipt.opened {
        // All have switched before one opens: see the invariants.
        let layout = layout(work, plan)?;
        on_all(work, plan, MoveAction::PlaceSwitch { layout }).await?;
        on_all(work, plan, MoveAction::PlaceOpen).await?;
        receipt.opened = true;
        receipt.pause = receipt.fenced.map(|fenced| fenced.elapsed());
    }
    if !receipt.journaled {
        journal(work, plan, receipt).await?;
        receipt.journaled = true;
    }
    let cleaned = leftovers(work, plan).await?;
    work.finish(Phase::Successful, &message(plan, receipt, cleaned)).await
}

/// The layout that came with the commit. Nothing changes it again before the operation has ended.
fn layout(work: &Work, plan: &Plan) -> Result<Generation, Stop> {
    let catalog = work.catalog();
    match catalog.table(&plan.after.name) {
        Some(table) if table.kind == plan.after.kind => Ok(catalog.layout),
        _ => Err(Stop::Again(format!("the catalog does not show the new placement of {} yet", plan.after.name))),
    }
}

pub(super) async fn on_all(work: &Work, plan: &Plan, action: MoveAction) -> Result<(), Stop> {
    let shards = plan.shards(work);
    let done = shards.iter().map(|shard| {
        let action = action.clone();
        async move { work.step(plan.number, *shard, action).await.map_err(|stop| stop.context(&shard.to_string())) }
    });
    join_all(done).await.into_iter().try_for_each(|done| done.map(drop))
}

/// Clients wait for what is between fence and opening, so it is journaled afterwards.
async fn journal(work: &Work, plan: &Plan, receipt: &Receipt) -> Result<(), Stop> {
    let table = &plan.after.name;
    let Some(pause) = receipt.pause else {
        // Another leader fenced and committed; how long that took is not known here.
        return work.note(OPEN, true, &format!("every shard takes writes to {table}")).await;
    };
    work.note(cut_over::FENCE, true, &format!("no shard took writes to {table}, and the rest was sent")).await?;
    work.note(
        cut_over::COMMIT,
        true,
        &format!("{table} is {} as of generation {}", described(plan), layout(work, plan)?),
    )
    .await?;
    work.note(SWITCH, true, &format!("on {} shards", plan.shards(work).len())).await?;
    let (pause, predicted) = (pause.as_millis(), receipt.predicted.as_millis());
    work.note(OPEN, true, &format!("writes to {table} paused for {pause} ms (predicted {predicted} ms)")).await
}

/// The rows that stayed behind, on every shard.
async fn leftovers(work: &Work, plan: &Plan) -> Result<u64, Stop> {
    work.begin(clean_up::CLEAN_UP).await?;
    let (mut rows, tables) = (0, [plan.after.name.clone()]);
    for shard in plan.shards(work) {
        if work.step(plan.number, shard, MoveAction::Claim).await?.phase == MovePhase::Leftovers {
            rows += delete_on(work, plan, &tables, shard).await?;
        }
    }
    work.end(clean_up::CLEAN_UP, &format!("{rows} rows deleted")).await?;
    Ok(rows)
}

async fn delete_on(work: &Work, plan: &Plan, tables: &[String], shard: ShardId) -> Result<u64, Stop> {
    clean_up::delete_foreign(work, plan.number, tables, shard, clean_up::CLEAN_UP).await
}

fn described(plan: &Plan) -> String {
    match &plan.after.kind {
        TableKind::Sharded { key, .. } => format!("sharded by {key}"),
        TableKind::Reference => "a reference table".to_owned(),
        TableKind::Single { shard } => format!("single, on {shard}"),
    }
}

/// The operation's message.
fn message(plan: &Plan, receipt: &Receipt, cleaned: u64) -> String {
    let placed = format!("table {} is {}", plan.after.name, described(plan));
    let Some(pause) = receipt.pause else {
        return format!("{placed}; {cleaned} rows cleaned up");
    };
    format!(
        "{placed}: {} rows sent to other shards ({} bytes), {} changes meanwhile; writes to it paused for {} ms \
         (predicted {} ms); {cleaned} rows cleaned up",
        receipt.sent,
        receipt.bytes,
        receipt.changed,
        pause.as_millis(),
        receipt.predicted.as_millis()
    )
}
