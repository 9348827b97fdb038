//! A table gets another placement while clients read and write it: `ALTER TABLE … SHARD BY`, `… REFERENCE`, `… SINGLE`.
//!
//! # The problem
//!
//! Rows change shards by another rule than before: the mapping from a row to its shard is what changes, for one table, on all
//! shards at once. Nothing acknowledged may be lost or doubled, no statement may see some of the rows by the old rule and
//! some by the new one, and any process may die at any point.
//!
//! # The mechanism
//!
//! Every shard has the table already, and the rows stay in it: what another shard will own is brought there and lies
//! beside the shard's own rows, hidden by the same filter that hides a move's half copies (`engine`'s `place_step`). So there
//! is no second table, no second index, nothing to rename, and a row whose shard stays the same is not touched.
//!
//! | step | what happens |
//! | --- | --- |
//! | `check`, `reach shards` | foreign keys, and that every shard is there |
//! | `capture` | each shard that gives rows away writes down the keys that change, by the triggers that a move uses |
//! | `copy` | the rows of a snapshot per shard, each to the shard that its new key says; a row that the new placement can't hold ends it |
//! | `catch up` | captured keys are read again and sent, in rounds, until closing the gates would be short |
//! | `verify` | count and sum of row hashes, of what is given away and of what was brought |
//! | `fence` | no shard takes writes to the table, the last round is sent; reads go on |
//! | `commit` | **the catalog gives the table its new placement**: the point of no return. Its `layout` rises |
//! | `switch` | each shard has the new placement, and refuses statements that were planned by another layout |
//! | `open` | only when all have switched: each takes writes to the table |
//! | `clean up` | leftovers are deleted, a few at a time |
//!
//! | from → to | rows that travel |
//! | --- | --- |
//! | single → sharded | those whose new owner is another shard |
//! | sharded → sharded by another key | the same, from every shard |
//! | single → reference | all, to all others |
//! | sharded → reference | all, from each to all others; rowids, where they are no key, are numbered anew at the switch |
//! | sharded → single | all of the others, to the one |
//! | reference → any | none: every shard has them. The anchor's are read to see that they have keys |
//!
//! # Why it is right
//!
//! 1. *One source for each row.* The primary key contains the old shard key, so all changes of a row are captured by one
//!    shard, in their order. Where it contains the new one, too, it says where the row has to go or to be deleted;
//!    otherwise a change is deleted on all shards that it is not for. Rows that are brought never collide with a shard's own.
//! 2. *One rule for each statement.* A statement carries the catalog's `layout` that it was planned by, and a shard refuses
//!    any other, in the snapshot that it reads and at apply. So a scatter asks only shards of one layout.
//! 3. *No write to both.* Writes to the table are refused from the fence on, on all shards, until all have switched. So
//!    what a shard that has not switched yet still answers is the present, and nothing is written behind it.
//! 4. *Reference writes* are repeated on every shard, also those of other tables that only read this one. So the anchor
//!    accepts none of them from the fence to the opening if the table is, or becomes, one of them; those it had accepted
//!    are on every shard before the commit.
//! 5. *Idempotency keys* of writes that may have been to the table go to every shard, for the repetition may be routed
//!    anywhere. Each attempt sends all of them anew: the one before may have reached some shards. A prepared transaction is
//!    decided before a shard takes any of these steps.
//! 6. *Each step is newer than the one before it*, as a move's.
//!
//! # A process dies …
//!
//! | while | and then |
//! | --- | --- |
//! | before the commit, any step | the next control leader takes the attempt back on every shard (fence and capture dropped, brought rows deleted), and starts anew; up to [`ATTEMPTS_MAX`] attempts |
//! | at the commit | the catalog says whether it was committed |
//! | after the commit | the next leader goes forward: switch, open, clean up; each does nothing when done before |
//! | a shard's leader, anywhere | its successor has the log; open snapshots are lost, and the attempt is started anew |
//!
//! *Caveat.* A shard that is lost with all its majority between the commit and its switch keeps the table closed for writes
//! everywhere until it is back: opening earlier would let it answer with what was. It holds all shards meanwhile
//! ([`Operation::holds_all`]): one that a split made now would have no part in the switch. Every shard has answered within
//! [`FENCE_LIMIT`](cut_over::FENCE_LIMIT) before that moment.

mod attempt;
mod finish;
mod rows;

use pleat_cluster::{Catalog, DdlEffect, Operation, Phase, ShardId, Table, TableKind};
use pleat_engine::{Holding, MoveAction, MovePhase, TablePlace};
use tokio::time::sleep;

use crate::mover::receipt::HandOver;
use crate::mover::{ATTEMPT_PAUSE, ATTEMPTS_MAX, clean_up, cut_over, last_failure, taking_back};
use crate::stop::{Failure, Stop};
use crate::work::{MoveNumber, Work};
pub(crate) use attempt::CHECK;
use attempt::Placed;

/// What is placed, and how.
#[derive(Clone, Debug)]
struct Plan {
    before: Table,
    after: Table,
    /// The attempt that may have left traces: the newest one.
    number: MoveNumber,
}

impl Plan {
    fn of(operation: &Operation, before: &Table, after: &Table) -> Self {
        let number = MoveNumber::newest(operation);
        Self { before: before.clone(), after: after.clone(), number }
    }

    /// Every shard takes part. None comes or goes meanwhile, since nothing is carried out beside this.
    fn shards(&self, work: &Work) -> Vec<ShardId> {
        work.catalog().active_shards().map(|shard| shard.id).collect()
    }

    /// Whether rowids differ between shards, or are not to be kept.
    fn by_primary_key(&self) -> bool {
        self.before.shard_key().is_some() || self.after.shard_key().is_some()
    }

    /// Where rows are read and changes are captured: to be sent to others, or only to see that they have keys. And where
    /// the writes to the table are remembered.
    fn sources(&self, catalog: &Catalog) -> Vec<ShardId> {
        match (&self.before.kind, &self.after.kind) {
            (TableKind::Single { shard }, _) => vec![*shard],
            (TableKind::Sharded { .. }, _) => catalog.active_shards().map(|shard| shard.id).collect(),
            (TableKind::Reference, _) => catalog.anchor().into_iter().collect(),
        }
    }

    /// Whether the rows have to be read at all.
    fn reads_rows(&self) -> bool {
        self.carries() || self.after.shard_key().is_some()
    }

    /// Whether rows travel at all.
    fn carries(&self) -> bool {
        !matches!(self.before.kind, TableKind::Reference)
    }

    fn is_reference(&self) -> bool {
        [&self.before, &self.after].iter().any(|table| matches!(table.kind, TableKind::Reference))
    }

    /// Whether rowids have to be made alike.
    fn renumbers(&self) -> bool {
        let plain = !self.after.rowid_alias && !self.after.without_rowid;
        plain && self.before.shard_key().is_some() && matches!(self.after.kind, TableKind::Reference)
    }

    /// One shard's part in it.
    fn part(&self, catalog: &Catalog, shard: ShardId) -> TablePlace {
        TablePlace {
            table: self.after.clone(),
            before: holding(&self.before, shard),
            after: holding(&self.after, shard),
            by_primary_key: self.by_primary_key(),
            captures: self.sources(catalog).contains(&shard),
            reference: self.is_reference(),
            renumber: self.renumbers(),
        }
    }
}

fn holding(table: &Table, shard: ShardId) -> Holding {
    match &table.kind {
        TableKind::Sharded { key, .. } => Holding::Key(key.clone()),
        TableKind::Reference => Holding::All,
        TableKind::Single { shard: home } if *home == shard => Holding::All,
        TableKind::Single { .. } => Holding::None,
    }
}

/// Whether a schema change is one of these.
pub(crate) fn of(effect: &DdlEffect) -> Option<(&Table, &Table)> {
    match effect {
        DdlEffect::PlaceTable { before, after } => Some((before, after)),
        _ => None,
    }
}

/// Carry it out, or take it up where an earlier leader left it.
pub(crate) async fn carry_out(work: &Work, before: &Table, after: &Table) -> Result<(), Stop> {
    // After a panic the term is still the same, and a commit may be on its way: this entry comes after it.
    if work.operation()?.steps.last().is_some_and(|step| step.name == cut_over::FENCE && step.ended.is_none()) {
        work.break_off("taken up again").await?;
    }
    let mut plan = Plan::of(&work.operation()?, before, after);
    if work.operation()?.committed {
        return finish::finish(work, &plan, HandOver::of(&work.operation()?)).await;
    }
    if work.operation()?.given_up {
        return take_all_back(work, &plan).await;
    }
    loop {
        let operation = work.operation()?;
        let attempts = operation.attempts;
        let outcome = if operation.cancel_requested {
            Err(Stop::Cancelled)
        } else if attempts >= ATTEMPTS_MAX || clean_up::failures(&operation) >= ATTEMPTS_MAX as usize {
            Err(Stop::impossible(format!("{attempts} attempts have failed, the last one: {}", last_failure(work)?)))
        } else {
            work.interruptible(anew(work, &mut plan)).await
        };
        match outcome {
            Ok(placed) => return finish::finish(work, &plan, placed.hand_over).await,
            Err(stop @ (Stop::Superseded(_) | Stop::Waiting(_))) => return Err(stop),
            Err(Stop::Cancelled) => return give_up(work, &plan, Failure::cancelled()).await,
            Err(Stop::Impossible(failure)) => return give_up(work, &plan, failure).await,
            Err(Stop::Again(why)) => {
                tracing::warn!(operation = %work.id, why, "placing the table is started anew");
                let opened = open_gates(work, &plan).await;
                work.break_off(&why).await?;
                opened.into_iter().try_for_each(|(_, opened)| opened.map(drop))?;
                sleep(ATTEMPT_PAUSE * (attempts + 1)).await;
            }
        }
    }
}

/// Another attempt. Whatever an earlier one left on the shards goes first.
async fn anew(work: &Work, plan: &mut Plan) -> Result<Placed, Stop> {
    if work.operation()?.attempts > 0
        && let Some((_, stop)) = take_back(work, plan).await?.pop()
    {
        return Err(taking_back(stop));
    }
    attempt::attempt(work, plan).await
}

/// It does not happen.
async fn give_up(work: &Work, plan: &Plan, failure: Failure) -> Result<(), Stop> {
    // Clients wait at the gates. What fails is done again below.
    open_gates(work, plan).await;
    work.give_up(&failure).await?;
    take_all_back(work, plan).await
}

/// Nothing is left behind on any shard. One that is gone must not keep the others from that.
async fn take_all_back(work: &Work, plan: &Plan) -> Result<(), Stop> {
    let operation = work.operation()?;
    // Taking back goes on in the step that it was begun in, however often that takes.
    if !clean_up::is_taking_back(&operation) {
        work.break_off(&operation.message).await?;
    }
    let mut failed = match operation.attempts {
        0 => Vec::new(),
        _ => take_back(work, plan).await?,
    };
    let shards: Vec<ShardId> = failed.iter().map(|(shard, _)| *shard).collect();
    if let Some((_, stop)) = failed.pop() {
        let gone = work.unreached(&shards).await;
        return Err(if gone.is_empty() { taking_back(stop) } else { work.wait_for(gone).await });
    }
    let phase = if operation.cancel_requested { Phase::Skipped } else { Phase::Failed };
    work.finish(phase, &operation.message).await
}

/// Every shard takes writes to the table again and captures nothing, also one that has not heard of the attempt: a
/// message of an earlier leader that is still on its way then finds that it has ended. Gives how far each shard is with it.
async fn open_gates(work: &Work, plan: &Plan) -> Vec<(ShardId, Result<MovePhase, Stop>)> {
    if work.operation().is_ok_and(|operation| operation.attempts == 0) {
        return Vec::new();
    }
    let shards = plan.shards(work);
    let opened = shards.iter().map(|shard| async {
        let step = work.step(plan.number, *shard, MoveAction::PlaceAbort).await;
        (*shard, step.map(|state| state.phase))
    });
    futures::future::join_all(opened).await
}

/// Every shard as if there had been no attempt. Gives the shards where that failed.
async fn take_back(work: &Work, plan: &Plan) -> Result<Vec<(ShardId, Stop)>, Stop> {
    work.note(clean_up::TAKE_BACK, false, "").await?;
    let (mut rows, mut failed, tables) = (0, Vec::new(), [plan.before.name.clone()]);
    for (shard, opened) in open_gates(work, plan).await {
        let deleted = match opened {
            Ok(MovePhase::Discarding) => clean_up::delete_foreign(work, plan.number, &tables, shard).await,
            // Nothing was brought here, or an earlier leader came to the end of it.
            Ok(_) => Ok(0),
            Err(stop) => Err(stop),
        };
        match deleted {
            Ok(deleted) => rows += deleted,
            Err(stop @ Stop::Superseded(_)) => return Err(stop),
            Err(stop) => failed.push((shard, stop)),
        }
    }
    if failed.is_empty() {
        work.end(clean_up::TAKE_BACK, &format!("{rows} rows deleted")).await?;
    }
    Ok(failed)
}
