//! What a move between servers leaves, and how it goes: before the commit all of it, afterwards what the source does not own any more.

use std::time::Duration;

use pleat_cluster::Phase;
use pleat_engine::postgres::Server;
use pleat_engine::postgres::moving::{self, Movement, Sweep, Turn};
use tokio::time::{Instant, sleep};

use super::super::clean_up::{CLEAN_UP, TAKE_BACK};
use super::super::cut_over::{COMMIT, FENCE};
use super::super::receipt::HandOver;
use super::super::{INSIST_PAUSE_MAX, REMOVE_SHARD, is_removed, remove_shard};
use super::{Plan, failed, movement, open_gates, server, settle, unsettled};
use crate::stop::Stop;
use crate::tracker::Amount;
use crate::work::Work;

/// Rows deleted by one transaction, and the pause between two: clients' statements come between.
const ROWS_MAX: u64 = 2_000;
const PAUSE: Duration = Duration::from_millis(5);
/// How long it is waited for routers to learn of a commit, for the figure of the pause.
const LEARN_LIMIT: Duration = Duration::from_secs(1);

/// Before the commit: both servers are as if there had been no attempt. A server that a split made is to be removed, or made anew.
pub(in crate::mover) async fn take_back(work: &Work, plan: &Plan) -> Result<(), Stop> {
    open_gates(work).await?;
    work.note(TAKE_BACK, false, "").await?;
    // What is left of the target must not stay there for as long as the source is gone: the target may be merged away meanwhile.
    let source = match server(work, plan.from) {
        Ok(source) => moving::clean_source(&source, work.id.0).await.map_err(failed("clean up on the source")),
        Err(stop) => Err(stop),
    };
    // The server that a split made goes, if that was given up.
    let goes = plan.creates && work.operation()?.given_up;
    let target = match goes || is_removed(work, plan.to) {
        true => None,
        false => work.cluster().server(plan.to)?,
    };
    let rows = match target {
        Some(target) => delete(work, plan, &target, TAKE_BACK, plan.creates).await?,
        None => 0,
    };
    source?;
    work.end(TAKE_BACK, &format!("{rows} rows deleted on {}", plan.to)).await
}

/// The same before another attempt. A server that is gone for a moment, or has a standby that is to take its place, is waited for: it doesn't
/// use the move's attempts up.
pub(in crate::mover) async fn take_back_patiently(work: &Work, plan: &Plan) -> Result<(), Stop> {
    let (begun, patience) = (Instant::now(), work.patience()?);
    loop {
        let stop = match take_back(work, plan).await {
            Err(stop @ Stop::Again(_)) if begun.elapsed() < patience => stop,
            done => return done,
        };
        if work.unreached(&[plan.from, plan.to]).await.is_empty() {
            return Err(stop);
        }
        work.is_at(|| format!("waits for a server: {}", stop.reason()))?;
        sleep(INSIST_PAUSE_MAX).await;
    }
}

fn what(work: &Work, plan: &Plan) -> Result<Movement, Stop> {
    Ok(movement(&work.catalog(), work, plan, work.operation()?.attempts))
}

/// Delete the rows of what moves on a server, or all of a new one.
///
/// A leader that was replaced must not go on with that: the rows may be the server's own by then. Its turn on the server has ended as soon as its successor takes one,
/// and before it uses its own it asks the control group, by an entry in the journal, whether it has a successor.
async fn delete(work: &Work, plan: &Plan, server: &Server, step: &str, all: bool) -> Result<u64, Stop> {
    let mut turn = Turn::take(server, work.id.0, work.tools.epochs.term()).await.map_err(failed(step))?;
    work.note(step, false, "").await?;
    let (mut rows, mut sweep, what) = (0, Sweep::default(), what(work, plan)?);
    if all {
        turn.empty().await.map_err(failed(step))?;
    } else {
        loop {
            let deleted =
                moving::delete_rows(&mut turn, &what, false, &mut sweep, ROWS_MAX).await.map_err(failed(step))?;
            if deleted == 0 {
                break;
            }
            rows += deleted;
            work.advance(Amount { rows, bytes: 0 }, String::new);
            work.operation()?;
            sleep(PAUSE).await;
        }
    }
    turn.end(server).await.map_err(failed(step))?;
    Ok(rows)
}

/// Everything after the commit. Done again, it goes on where it stopped.
pub(in crate::mover) async fn forward(work: &Work, plan: &Plan, hand_over: &mut HandOver) -> Result<(), Stop> {
    let committed = work.catalog().shards.get(&plan.from).map_or(0, |shard| shard.ownership);
    if !hand_over.opened {
        // Those that know of it have their gates open.
        let learnt = unsettled(work, plan.to, committed, true, LEARN_LIMIT).await;
        if let Some(why) = learnt {
            tracing::info!(operation = %work.id, why, "not all nodes have learnt of the commit yet");
        }
        hand_over.opened(work)?;
    }
    if !hand_over.journaled {
        work.keep(&hand_over.receipt).await?;
        if hand_over.fenced.is_some() {
            work.note(FENCE, true, &format!("no node writes to {}, and {} has the rest", plan.from, plan.to)).await?;
            work.note(COMMIT, true, &format!("{} owns the partitions as of generation {committed}", plan.to)).await?;
        }
        hand_over.journaled = true;
    }
    work.begin(CLEAN_UP).await?;
    // First the source, whose log a slot keeps.
    if !plan.removes {
        let source = server(work, plan.from)?;
        moving::clean_source(&source, work.id.0).await.map_err(failed("clean up on the source"))?;
    }
    if let Ok(Some(target)) = work.cluster().server(plan.to) {
        moving::clean_target(&target, work.id.0).await.map_err(failed("clean up on the target"))?;
    }
    if plan.removes {
        if !is_removed(work, plan.from) {
            // Reads that began before may still go on.
            settle(work, plan.from, committed, false).await?;
            work.begin(REMOVE_SHARD).await?;
            remove_shard(work, plan.from).await?;
        }
        let left = format!("{} was removed", plan.from);
        return work.finish(Phase::Successful, &hand_over.message(plan, &left)).await;
    }
    settle(work, plan.from, committed, false).await?;
    let rows = delete(work, plan, &server(work, plan.from)?, CLEAN_UP, false).await?;
    work.end(CLEAN_UP, &format!("{rows} rows deleted on {}", plan.from)).await?;
    work.finish(Phase::Successful, &hand_over.message(plan, &format!("{rows} rows cleaned up"))).await
}
