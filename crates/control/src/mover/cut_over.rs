//! The hand-over: closing the source's gates, the commit, opening the target's.

use std::time::Duration;

use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{Command, CommandError, Generation, ShardId};
use pleat_engine::MoveAction;
use pleat_host::HostError;
use pleat_host::failpoint::reach;
use tokio::time::{Instant, sleep, timeout};

use super::Plan;
use super::attempt::Attempt;
use super::receipt::HandOver;
use crate::stop::Stop;
use crate::work::Work;

/// From the fence to the moment before the commit. Past it the gates are opened again.
pub(crate) const FENCE_LIMIT: Duration = Duration::from_secs(3);
/// Rounds behind the closed gates: there is one delta, cut into messages.
pub(crate) const ROUNDS_MAX: usize = 200;
/// How long one proposal of the commit waits for its answer, and the pause before it is proposed again.
const COMMIT_LIMIT: Duration = Duration::from_secs(2);
const COMMIT_RETRY: Duration = Duration::from_millis(20);

pub(crate) const FENCE: &str = "fence";
pub(crate) const COMMIT: &str = "commit";
const ACTIVATE: &str = "activate";
const RELEASE: &str = "release";

/// How closing the gates ended.
pub(super) enum CutOver {
    Committed,
    /// It took too long or failed; the source accepts writes again.
    Reopened(String),
}

/// Fence, the rest, the commit.
///
/// The journal is written before the gates close and after they are open: an entry of the control log costs
/// as much as the commit itself. What is between is told by the shards' own logs and by the commit.
pub(super) async fn cut_over(attempt: &mut Attempt<'_>) -> Result<CutOver, Stop> {
    let work = attempt.work;
    work.keep(&attempt.hand_over.receipt).await?;
    work.begin(FENCE).await?;
    attempt.hand_over.fenced = Some(Instant::now());
    let limit = format!("the rest was not carried over within {} ms", FENCE_LIMIT.as_millis());
    let stop = match timeout(FENCE_LIMIT, close_gates(attempt)).await {
        Ok(Ok(())) => {
            commit(work, &format!("give the partitions to {}", attempt.plan.to)).await?;
            return Ok(CutOver::Committed);
        }
        Ok(Err(Stop::Superseded(why))) => return Err(Stop::Superseded(why)),
        Ok(Err(stop)) => stop,
        Err(_) => Stop::Again(limit),
    };
    work.step(attempt.plan.number, attempt.plan.from, MoveAction::Unfence).await?;
    work.break_off(&stop.reason()).await?;
    match stop {
        Stop::Again(why) => Ok(CutOver::Reopened(why)),
        stop => Err(stop),
    }
}

/// The source takes no more writes, and the target has all there are.
async fn close_gates(attempt: &mut Attempt<'_>) -> Result<(), Stop> {
    if !planted::is(Bug::SkippedFence) {
        let close = if attempt.plan.removes { MoveAction::Close } else { MoveAction::Fence };
        attempt.work.step(attempt.plan.number, attempt.plan.from, close).await?;
    }
    for _ in 0..ROUNDS_MAX {
        // Each delta is read after a round of the source's quorum, so the fence is in it. The last one must be
        // empty: that is the barrier. Transactions that concern other partitions may go on.
        let before = attempt.position.clone();
        let (carried, more, _) = attempt.round().await?;
        if carried == 0 && !more && attempt.position.is_as_far_as(&before) {
            return Ok(());
        }
    }
    Err(Stop::Again(format!("after {ROUNDS_MAX} rounds behind closed gates there were still changes")))
}

/// The point of no return.
///
/// While the outcome is not known the gates stay closed: opening them beside a commit that took place would give the
/// partitions two owners. So this proposes it again (a repetition succeeds and does nothing) until there is
/// an answer, or until this node does not lead any more; then its successor finds out.
pub(crate) async fn commit(work: &Work, what: &str) -> Result<(), Stop> {
    let (operation, epoch) = (work.id, work.tools.epochs.term());
    work.decide();
    reach("operation.before-commit", None);
    loop {
        let at = work.cluster().now_ms();
        let proposed = work.cluster().command(Command::CommitOperation { operation, epoch, at }, COMMIT_LIMIT).await;
        reach("operation.committed", None);
        match proposed {
            Ok(_) => return Ok(()),
            Err(HostError::Command(error)) => return Err(refused(work, what, error)),
            Err(error) => tracing::warn!(%operation, %error, "the commit's outcome is not known yet"),
        }
        if work.cluster().epoch() != Some(epoch) {
            return Err(Stop::Superseded("leadership was lost at the commit".to_owned()));
        }
        sleep(COMMIT_RETRY).await;
    }
}

fn refused(work: &Work, what: &str, error: CommandError) -> Stop {
    match work.operation() {
        Err(superseded) => superseded,
        Ok(operation) if operation.cancel_requested => Stop::Cancelled,
        Ok(_) => Stop::impossible(format!("the catalog refused to {what}: {error}")),
    }
}

/// After the commit: the target opens its gates, and the source lets go.
pub(super) async fn open_target(work: &Work, plan: &Plan, hand_over: &mut HandOver) -> Result<(), Stop> {
    if !hand_over.opened {
        let ownership = ownership(work, plan.to)?;
        work.step(plan.number, plan.to, MoveAction::Activate { ownership }).await?;
        hand_over.opened(work)?;
    }
    if !hand_over.journaled {
        journal(work, plan, hand_over).await?;
        hand_over.journaled = true;
    }
    if !hand_over.released {
        work.begin(RELEASE).await?;
        let ownership = ownership(work, plan.from)?;
        work.step(plan.number, plan.from, MoveAction::Release { ownership }).await?;
        work.end(RELEASE, &format!("{} let the partitions go", plan.from)).await?;
        hand_over.released = true;
    }
    Ok(())
}

async fn journal(work: &Work, plan: &Plan, hand_over: &HandOver) -> Result<(), Stop> {
    work.keep(&hand_over.receipt).await?;
    if hand_over.fenced.is_some() {
        work.note(FENCE, true, &format!("{} refused writes, and {} got the rest", plan.from, plan.to)).await?;
        let generation = ownership(work, plan.to)?;
        work.note(COMMIT, true, &format!("{} owns the partitions as of generation {generation}", plan.to)).await?;
    }
    work.note(ACTIVATE, true, &hand_over.pause("writes")).await
}

/// The generation at which the commit changed what the shard owns. Nothing changes it again before the
/// operation has ended, because no other one that could has a part of the shard meanwhile (`lead`).
fn ownership(work: &Work, shard: ShardId) -> Result<Generation, Stop> {
    let catalog = work.catalog();
    let shard = catalog.shards.get(&shard).ok_or_else(|| Stop::Again(format!("{shard} is not in the catalog")))?;
    Ok(shard.ownership)
}
