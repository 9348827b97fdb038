//! After the commit: only forward.

use futures::future::join_all;
use pleat_cluster::{Generation, Phase, Receipt, ShardId, TableKind};
use pleat_engine::{MoveAction, MovePhase};
use tokio::time::{Instant, sleep};

use super::Plan;
use crate::mover::receipt::HandOver;
use crate::mover::{INSIST_PAUSE_MAX, INSIST_PAUSE_MIN, clean_up, cut_over};
use crate::stop::Stop;
use crate::work::Work;

const SWITCH: &str = "switch";
const OPEN: &str = "open";

/// Nothing is given up here, so what fails is tried until it succeeds, a shard turns out to be gone for long, or this
/// node does not lead any more.
pub(super) async fn finish(work: &Work, plan: &Plan, mut hand_over: HandOver) -> Result<(), Stop> {
    let (begun, patience) = (Instant::now(), work.patience()?);
    let mut pause = INSIST_PAUSE_MIN;
    loop {
        match forward(work, plan, &mut hand_over).await {
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
async fn forward(work: &Work, plan: &Plan, hand_over: &mut HandOver) -> Result<(), Stop> {
    if !hand_over.opened {
        // All have switched before one opens: see the invariants.
        let layout = layout(work, plan)?;
        on_all(work, plan, MoveAction::PlaceSwitch { layout }).await?;
        on_all(work, plan, MoveAction::PlaceOpen).await?;
        hand_over.opened(work)?;
    }
    if !hand_over.journaled {
        journal(work, plan, hand_over).await?;
        hand_over.journaled = true;
    }
    let cleaned = leftovers(work, plan).await?;
    work.finish(Phase::Successful, &message(plan, hand_over, cleaned)).await
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
async fn journal(work: &Work, plan: &Plan, hand_over: &HandOver) -> Result<(), Stop> {
    let table = &plan.after.name;
    work.keep(&hand_over.receipt).await?;
    if hand_over.fenced.is_some() {
        work.note(cut_over::FENCE, true, &format!("no shard took writes to {table}, and the rest was sent")).await?;
        let placed = format!("{table} is {} as of generation {}", described(plan), layout(work, plan)?);
        work.note(cut_over::COMMIT, true, &placed).await?;
        work.note(SWITCH, true, &format!("on {} shards", plan.shards(work).len())).await?;
    }
    work.note(OPEN, true, &hand_over.pause(&format!("writes to {table}"))).await
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
    clean_up::delete_foreign(work, plan.number, tables, shard).await
}

fn described(plan: &Plan) -> String {
    match &plan.after.kind {
        TableKind::Sharded { key, .. } => format!("sharded by {key}"),
        TableKind::Reference => "a reference table".to_owned(),
        TableKind::Single { shard } => format!("single, on {shard}"),
    }
}

/// The operation's message.
fn message(plan: &Plan, hand_over: &HandOver, cleaned: u64) -> String {
    let Receipt { copied, bytes, changed, .. } = &hand_over.receipt;
    format!(
        "table {} is {}: {copied} rows sent to other shards ({bytes} bytes), {changed} changes meanwhile; {}; {cleaned} \
         rows cleaned up",
        plan.after.name,
        described(plan),
        hand_over.pause("writes to it")
    )
}
