//! The mover: takes partitions from one shard to another while clients read and write them.
//!
//! # The problem
//!
//! At every instant each partition has at most one shard that accepts its writes; nothing acknowledged is
//! lost or doubled; any process may die at any point; and clients wait for a fraction of a second at most.
//!
//! # The mechanism
//!
//! | step | what happens | on the source | on the target |
//! | --- | --- | --- | --- |
//! | `create shard` | (split) the new shard's replicas elect a leader | | |
//! | `copy schema` | (split) every table and index | | schema |
//! | `copy reference tables` | (split) their rows, as of a number of the reference log; then the new shard is activated, so that later writes reach it, and what came in between is fetched from the log | snapshot of the anchor | reference rows |
//! | `capture` | changes to the moving partitions are written down from here on | `CaptureStart` | `ImportStart` |
//! | `copy` | the rows of a snapshot taken after that | snapshot | rows, ownerless |
//! | `catch up` | the rows that changed meanwhile, read again, in rounds | deltas | rows |
//! | `verify` | count and sum of row hashes, at one position on both sides | digest | digest |
//! | `fence` | the source refuses reads and writes of the partitions (merge: all of them), the last delta is carried over | `Fence`, `Close` | rows |
//! | `commit` | **the catalog names the new owner**: the point of no return | | |
//! | `activate` | the target accepts reads and writes | | `Activate` |
//! | `release` | the source forgets that it owned them | `Release` | |
//! | `clean up` | leftovers are deleted, a few at a time | deletions | |
//! | `remove shard` | (merge, instead of cleaning up) the source's replicas are taken down | | |
//!
//! # Invariants
//!
//! 1. Between the fence and the activation *no* shard accepts writes of the partitions; outside of it one does.
//! 2. The commit is proposed only when the source is fenced and a delta read after the fence is empty.
//! 3. Once a commit was proposed, the fence is lifted by its refusal alone, never because its outcome is not known.
//! 4. Rows at the target are owned by nobody until the activation: scatter reads filter them out there, keyed
//!    ones are refused.
//! 5. Each step sent to a shard is newer than the one before it ([`Epochs`](crate::work::Epochs)); the messages of a [`copy`] are one
//!    step. A command to the catalog carries the leader's term. A message that arrives late is refused, be it from a dead leader or from this one.
//! 6. Reference tables are complete on a shard before it gets a partition.
//! 7. A move whose sides differ when they are compared is not handed over: neither by the mover nor by the catalog
//!    (`pleat_cluster::Receipt`).
//! 8. While the source is fenced nothing waits longer than [`FENCE_LIMIT`](cut_over::FENCE_LIMIT), the commit's answer
//!    excepted; an error before the commit lifts the fence at once.
//!
//! # A merge
//!
//! It is a move of all that a shard has, and the shard is taken down. The source's gates close as a whole (`Close` instead of `Fence`):
//! from that entry of its log on it answers no client at all, be it about a partition or about a reference table, and takes part in no
//! transaction. Nothing weaker would do: from the commit on, writes to reference tables are answered without this shard, and a router that
//! does not know the new catalog would read its copy, which is not kept up any more.
//!
//! | what may still be there | why it is not lost |
//! | --- | --- |
//! | rows, and idempotency keys of their writes | a move takes both along; the last delta behind the gates was empty. Keys of transactions that wrote to reference tables alone have no partition: a source that gives away all it owns gives all it remembers |
//! | a prepared transaction | closing waits until it is decided. One that comes later is refused, and so never committed anywhere |
//! | a reference write on its way from the anchor | until the commit it is applied, should the gates be opened again. Afterwards nobody reads it, and the anchor does not wait for it |
//! | a statement by an older catalog | it is refused by the shard while there is one, and by the host of the router when the catalog has it as removed; then it is routed again |
//! | its log, its votes, its files | every node removes them when the catalog has the shard as removed. Its number is never given again |
//!
//! With the commit the catalog has the source as `Leaving`, and routes nothing there. It is removed when the target accepts writes.
//! A leader that takes over after the removal finds the shard removed and has the operation ended. Cancelling works up to the commit,
//! as for any move; afterwards the merge is only finished.
//!
//! # Side by side
//!
//! Splits, merges and moves of different shards may run at the same time; `lead` says how, and why no two have a shard in common. What
//! they share is the anchor's reference log, which each reads for its own target, and the nodes, whose throughput each leaves to clients.
//! A transaction over shards of both meets one fence after the other: it is refused by either, and waits for none.
//!
//! # A process dies …
//!
//! | while | and then |
//! | --- | --- |
//! | before the commit, any step | the next control leader takes over in the catalog (the dead one can't commit any more), takes the move back on both shards (fence lifted, capture dropped, rows deleted), and starts it anew; up to [`ATTEMPTS_MAX`] attempts |
//! | at the commit | the journal says whether it was committed: the next leader's own entry in the journal comes after it or in its stead |
//! | after the commit | the next leader goes forward: activate, release, clean up; each does nothing when done before |
//! | a shard's leader, anywhere | its successor has the log: capture, position and fence are in it. Open snapshots are lost, and the attempt is started anew |
//!
//! When the attempts are used up, or one can't succeed, the move fails and nothing is left: no captured key,
//! no row at the target, and the shard that a split made is removed.
//!
//! A shard may be gone for long when something is left to do on it: rows to delete at the target of a move that was
//! given up, the activation of one that was committed. Then the operation waits for that shard (`waits_for` in the
//! catalog) and others go past it; see `cluster::operation`.

pub(crate) mod attempt;
pub(crate) mod clean_up;
pub(crate) mod copy;
pub(crate) mod cut_over;
pub(crate) mod pace;
pub(crate) mod receipt;
pub(crate) mod reference;
pub(crate) mod servers;
pub(crate) mod throttle;

use std::time::Duration;

use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{Command, Engine, Operation, OperationKind, PartitionId, Phase, ShardId, ShardState};
use tokio::time::{Instant, sleep};

use crate::stop::{Failure, Stop};
use crate::work::{MoveNumber, Work};
use receipt::HandOver;

/// How often a move is started anew before it is given up.
pub(crate) const ATTEMPTS_MAX: u32 = 5;
/// The pause before a move is started anew, times the number of attempts so far.
pub(crate) const ATTEMPT_PAUSE: Duration = Duration::from_millis(500);

/// The last step of a merge.
const REMOVE_SHARD: &str = "remove shard";

/// The pause before what follows the commit is tried again, at first and at most: clients wait for the first of it.
pub(crate) const INSIST_PAUSE_MIN: Duration = Duration::from_millis(20);
pub(crate) const INSIST_PAUSE_MAX: Duration = Duration::from_secs(2);

/// What moves, and where to.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub from: ShardId,
    pub to: ShardId,
    pub partitions: Vec<PartitionId>,
    /// Whether `to` is made by this operation.
    pub creates: bool,
    /// Whether `from` is taken down by this operation.
    pub removes: bool,
    /// The attempt that may have left traces: the newest one.
    pub number: MoveNumber,
}

impl Plan {
    pub fn of(operation: &Operation) -> Option<Self> {
        let (from, to, partitions) = operation.kind.moves()?;
        let creates = matches!(operation.kind, OperationKind::Split { .. });
        let removes = matches!(operation.kind, OperationKind::Merge { .. });
        let number = MoveNumber::newest(operation);
        Some(Self { from, to, partitions: partitions.to_vec(), creates, removes, number })
    }
}

/// Carry out a move, or take it up where an earlier leader left it.
pub(crate) async fn carry_out(work: &Work, mut plan: Plan) -> Result<(), Stop> {
    // After a panic the term is still the same, and a commit may be on its way: this entry comes after it.
    if work.operation()?.steps.last().is_some_and(|step| step.name == cut_over::FENCE && step.ended.is_none()) {
        work.break_off("taken up again").await?;
    }
    if work.operation()?.committed {
        return finish(work, &plan, HandOver::of(&work.operation()?)).await;
    }
    if work.operation()?.given_up {
        return take_all_back(work, &plan).await;
    }
    loop {
        let operation = work.operation()?;
        let attempts = operation.attempts;
        // Whether to go on is asked before the target is: it may be gone for good.
        let outcome = if operation.cancel_requested {
            Err(Stop::Cancelled)
        } else if attempts >= ATTEMPTS_MAX || clean_up::failures(&operation) >= ATTEMPTS_MAX as usize {
            Err(Stop::impossible(format!("{attempts} attempts have failed, the last one: {}", last_failure(work)?)))
        } else {
            work.interruptible(anew(work, &mut plan)).await
        };
        match outcome {
            Ok(hand_over) => return finish(work, &plan, hand_over).await,
            Err(stop @ (Stop::Superseded(_) | Stop::Waiting(_))) => return Err(stop),
            Err(Stop::Cancelled) => return give_up(work, &plan, Failure::cancelled()).await,
            Err(Stop::Impossible(failure)) => return give_up(work, &plan, failure).await,
            Err(Stop::Again(why)) => {
                tracing::warn!(operation = %work.id, why, "the move is started anew");
                // The shards first: the source may be fenced.
                let opened = open_gates(work, &plan).await;
                work.break_off(&why).await?;
                opened?;
                sleep(ATTEMPT_PAUSE * (attempts + 1)).await;
            }
        }
    }
}

/// Another attempt. Whatever the one before left on the shards goes first: from here on nobody looks for it.
async fn anew(work: &Work, plan: &mut Plan) -> Result<HandOver, Stop> {
    if touched(work)? {
        let taken_back = match work.catalog().engine {
            Engine::Sqlite => clean_up::take_back(work, plan).await,
            Engine::Postgres => servers::take_back_patiently(work, plan).await,
        };
        taken_back.map_err(taking_back)?;
    }
    let (first, servers) = match work.catalog().engine {
        Engine::Sqlite => (attempt::CAPTURE, false),
        Engine::Postgres => (servers::CHECK, true),
    };
    plan.number = work.begin_attempt(if plan.creates { attempt::CREATE_SHARD } else { first }).await?;
    if servers { servers::attempt(work, plan).await } else { attempt::attempt(work, plan).await }
}

/// Before the commit: the source takes writes again.
async fn open_gates(work: &Work, plan: &Plan) -> Result<(), Stop> {
    match work.catalog().engine {
        Engine::Sqlite => clean_up::open_gates(work, plan).await,
        Engine::Postgres => servers::open_gates(work).await,
    }
}

/// Taking back does not fail for good: it is tried again.
pub(crate) fn taking_back(stop: Stop) -> Stop {
    match stop {
        Stop::Superseded(why) => Stop::Superseded(why),
        other => Stop::Again(format!("take the move back: {}", other.reason())),
    }
}

/// After the commit: only forward. Nothing is given up here, so what fails is tried until it succeeds, a shard turns
/// out to be gone for long, or this node does not lead any more.
async fn finish(work: &Work, plan: &Plan, mut hand_over: HandOver) -> Result<(), Stop> {
    let (begun, patience) = (Instant::now(), work.patience()?);
    let mut pause = INSIST_PAUSE_MIN;
    loop {
        match forward(work, plan, &mut hand_over).await {
            Ok(()) => return Ok(()),
            Err(Stop::Superseded(why)) => return Err(Stop::Superseded(why)),
            Err(stop) => tracing::warn!(operation = %work.id, why = stop.reason(), "the move is committed and goes on"),
        }
        if begun.elapsed() >= patience {
            let gone = work.unreached(&[plan.from, plan.to]).await;
            if !gone.is_empty() {
                return Err(work.wait_for(gone).await);
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(INSIST_PAUSE_MAX);
    }
}

/// Everything after the commit. Done again, it goes on where it stopped.
async fn forward(work: &Work, plan: &Plan, hand_over: &mut HandOver) -> Result<(), Stop> {
    if work.catalog().engine == Engine::Postgres {
        return servers::forward(work, plan, hand_over).await;
    }
    if plan.removes {
        if !is_removed(work, plan.from) {
            if !planted::is(Bug::RemovedEarly) {
                cut_over::open_target(work, plan, hand_over).await?;
            }
            work.begin(REMOVE_SHARD).await?;
            remove_shard(work, plan.from).await?;
        }
        let left = format!("{} was removed", plan.from);
        return work.finish(Phase::Successful, &hand_over.message(plan, &left)).await;
    }
    cut_over::open_target(work, plan, hand_over).await?;
    let cleaned = clean_up::leftovers(work, plan).await?;
    work.finish(Phase::Successful, &hand_over.message(plan, &format!("{cleaned} rows cleaned up"))).await
}

/// The move does not happen.
async fn give_up(work: &Work, plan: &Plan, failure: Failure) -> Result<(), Stop> {
    // Clients wait at the gates. When that fails it is done again below.
    let _ = open_gates(work, plan).await;
    work.give_up(&failure).await?;
    take_all_back(work, plan).await
}

/// Nothing is left behind: neither on the shards nor, of a split, the shard itself. A shard that is gone must not keep
/// the other one from that, nor the operations behind this one.
async fn take_all_back(work: &Work, plan: &Plan) -> Result<(), Stop> {
    let operation = work.operation()?;
    let mut failed = Vec::new();
    if let Err(stop) = open_gates(work, plan).await {
        failed.push((plan.from, stop));
    }
    // Taking back goes on in the step that it was begun in, however often that takes.
    if !clean_up::is_taking_back(&operation) {
        work.break_off(&operation.message).await?;
    }
    match discard(work, plan).await {
        Err((shard, stop)) => failed.push((shard, stop)),
        Ok(()) if plan.creates => remove_shard(work, plan.to).await.map_err(taking_back)?,
        Ok(()) => {}
    }
    let shards: Vec<ShardId> = failed.iter().map(|(shard, _)| *shard).collect();
    if let Some((_, stop)) = failed.pop() {
        let gone = work.unreached(&shards).await;
        return Err(if gone.is_empty() { taking_back(stop) } else { work.wait_for(shards).await });
    }
    let phase = if operation.cancel_requested { Phase::Skipped } else { Phase::Failed };
    work.finish(phase, &operation.message).await
}

/// What attempts left on the shards that stay, or the shard that keeps it from going.
async fn discard(work: &Work, plan: &Plan) -> Result<(), (ShardId, Stop)> {
    if !touched(work).map_err(|stop| (plan.to, stop))? {
        return Ok(());
    }
    match work.catalog().engine {
        // The rows of a shard that goes go with it.
        Engine::Sqlite if plan.creates => Ok(()),
        Engine::Sqlite => clean_up::discard(work, plan).await.map_err(|stop| (plan.to, stop)),
        Engine::Postgres => match servers::take_back(work, plan).await {
            Ok(()) => Ok(()),
            Err(stop) => {
                let gone = work.unreached(&[plan.from]).await;
                Err((gone.first().copied().unwrap_or(plan.to), stop))
            }
        },
    }
}

/// The shard that a split made in vain, or that a merge has emptied, goes with everything on it.
async fn remove_shard(work: &Work, shard: ShardId) -> Result<(), Stop> {
    let at = work.cluster().now_ms();
    work.command(Command::RemoveShard { shard, at }).await?;
    if let Some(shard) = work.catalog().shards.get(&shard) {
        let released = work.tools.provisioner.release(shard).await;
        released.map_err(|error| Stop::Again(error.to_string()))?;
    }
    Ok(())
}

/// Whether an attempt came as far as changing a shard.
fn touched(work: &Work) -> Result<bool, Stop> {
    if work.catalog().engine == Engine::Postgres {
        return Ok(work.operation()?.attempts > 0);
    }
    let steps = work.operation()?.steps;
    Ok(steps.iter().any(|step| step.name == attempt::COPY_SCHEMA || step.name == attempt::CAPTURE))
}

pub(crate) fn last_failure(work: &Work) -> Result<String, Stop> {
    let steps = work.operation()?.steps;
    let broken = steps.iter().rev().find(|step| step.detail.contains("broken off: "));
    Ok(broken.map_or_else(|| "its leader was lost".to_owned(), |step| format!("{}: {}", step.name, step.detail)))
}

fn is_removed(work: &Work, shard: ShardId) -> bool {
    work.catalog().shards.get(&shard).is_some_and(|shard| shard.state == ShardState::Removed)
}

/// Whether the new shard of a split takes part already.
fn is_active(work: &Work, shard: ShardId) -> bool {
    work.catalog().shards.get(&shard).is_some_and(|shard| shard.state == ShardState::Active)
}
