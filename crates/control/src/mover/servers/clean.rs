//! What a move between servers leaves, and how it goes: before the commit all of it, afterwards what the source does not own any more.

use std::time::Duration;

use pleat_cluster::Phase;
use pleat_engine::postgres::moving::{self, Movement, Sweep};
use pleat_engine::postgres::{Connection, Server};
use tokio::time::sleep;

use super::super::clean_up::{CLEAN_UP, TAKE_BACK};
use super::super::cut_over::{COMMIT, FENCE};
use super::super::receipt::HandOver;
use super::super::{REMOVE_SHARD, is_removed, remove_shard};
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
pub(super) async fn take_back(work: &Work, plan: &Plan) -> Result<(), Stop> {
    open_gates(work).await?;
    work.note(TAKE_BACK, false, "").await?;
    moving::clean_source(&server(work, plan.from)?, work.id.0).await.map_err(failed("clean up on the source"))?;
    let target = work.cluster().server(plan.to)?;
    let mut rows = 0;
    if let Some(target) = target {
        moving::clean_target(&target, work.id.0).await.map_err(failed("clean up on the target"))?;
        match plan.creates {
            true => empty(&target).await?,
            false => rows = delete(work, &target, &what(work, plan)?, TAKE_BACK).await?,
        }
    }
    work.end(TAKE_BACK, &format!("{rows} rows deleted on {}", plan.to)).await
}

fn what(work: &Work, plan: &Plan) -> Result<Movement, Stop> {
    Ok(movement(&work.catalog(), work, plan, work.operation()?.attempts))
}

/// A new shard's server as it was when it was made.
async fn empty(target: &Server) -> Result<(), Stop> {
    let other = Server { database: "postgres".to_owned(), ..target.clone() };
    let mut connection = Connection::open(&other).await.map_err(failed("empty the new shard"))?;
    let name = target.database.replace('"', "\"\"");
    for text in [format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)"), format!("CREATE DATABASE \"{name}\"")] {
        connection.ask(&text).await.map_err(failed("empty the new shard"))?;
    }
    Ok(())
}

async fn delete(work: &Work, server: &Server, what: &Movement, step: &str) -> Result<u64, Stop> {
    let mut connection = Connection::open(server).await.map_err(failed(step))?;
    let (mut rows, mut sweep) = (0, Sweep::default());
    loop {
        let deleted =
            moving::delete_rows(&mut connection, what, false, &mut sweep, ROWS_MAX).await.map_err(failed(step))?;
        if deleted == 0 {
            return Ok(rows);
        }
        rows += deleted;
        work.advance(Amount { rows, bytes: 0 }, String::new);
        work.operation()?;
        sleep(PAUSE).await;
    }
}

/// Everything after the commit. Done again, it goes on where it stopped.
pub(super) async fn forward(work: &Work, plan: &Plan, hand_over: &mut HandOver) -> Result<(), Stop> {
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
    let source = server(work, plan.from)?;
    moving::clean_source(&source, work.id.0).await.map_err(failed("clean up on the source"))?;
    settle(work, plan.from, committed, false).await?;
    let rows = delete(work, &source, &what(work, plan)?, CLEAN_UP).await?;
    work.end(CLEAN_UP, &format!("{rows} rows deleted on {}", plan.from)).await?;
    work.finish(Phase::Successful, &hand_over.message(plan, &format!("{rows} rows cleaned up"))).await
}
