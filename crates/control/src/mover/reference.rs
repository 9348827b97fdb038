//! Reference tables on a new shard.
//!
//! The anchor numbers the writes to reference tables and keeps them in a log; every *active* shard gets them,
//! in order, before their writers are answered. A new shard joins so that no number is missing:
//!
//! 1. The tables are copied from a snapshot of the anchor, which says the number `S` that it stands at.
//! 2. The shard is told `S` ([`MoveAction::ReferenceLoaded`]): it accepts `S + 1` next and nothing else.
//! 3. It is activated: whoever spreads a write and knows this catalog sends it there, and a shard that is asked
//!    for `S + 5` names the number that it lacks.
//! 4. The anchor is told a generation of the catalog that has the shard ([`Action::ReferenceMembers`]). Transactions that
//!    write to reference tables do so on all shards by themselves, on those of the catalog that they go by: from here on the
//!    anchor refuses those that go by an older one. (One that is prepared there is decided first.)
//! 5. The log after `S` is brought over until the shard has all that the anchor had when asked *after* that. What was
//!    spread, or committed, without the shard is among these; what comes later comes to the shard as well.
//!
//! Only then is the first partition moved, so no row is ever joined with a reference row that is not there
//! yet.
//!
//! An attempt that finds the shard not yet activated copies again, after it has deleted what an earlier one
//! had copied: rows that were deleted on the anchor since must not stay. Once the shard is active it may be read, so its
//! tables are not emptied any more; should the anchor's log not reach back to where it stands, the operation
//! fails, and of a split the shard is removed.

use pleat_cluster::{ShardId, Table, Value};
use pleat_engine::{Action, ContentDigest, MoveAction, MoveChunk, MoveRead, Outcome};

use super::attempt::{activate_shard, bytes};
use super::copy::Snapshot;
use super::receipt::describe;
use super::throttle::Throttle;
use super::{Plan, is_active};
use crate::stop::{Stop, unexpected};
use crate::tracker::Amount;
use crate::work::Work;

pub(crate) const COPY_REFERENCE: &str = "copy reference tables";

/// Entries of the reference log in one message.
const LOG_ENTRIES_MAX: usize = 256;
/// Messages until the new shard must have caught up.
const LOG_ROUNDS_MAX: usize = 10_000;
/// How often the digests of both shards are compared while writes come in between.
const COMPARISONS_MAX: usize = 20;

/// Copy the reference tables to the new shard, activate it, and catch up.
pub(super) async fn copy(work: &Work, plan: &Plan) -> Result<(), Stop> {
    let catalog = work.catalog();
    let anchor = catalog.anchor().ok_or_else(|| Stop::Again("no shard is active".to_owned()))?;
    work.begin(COPY_REFERENCE).await?;
    let mut rows = 0;
    if !is_active(work, plan.to) {
        rows = load(work, plan, anchor).await?;
        activate_shard(work, plan).await?;
    }
    tell_anchor(work, plan, anchor).await?;
    let seq = catch_up(work, anchor, plan.to).await?;
    let digest = compare(work, anchor, plan.to).await?;
    let detail = format!("{rows} rows, as of reference write {seq}{}", describe(&digest));
    work.end(COPY_REFERENCE, &detail).await
}

/// Steps 1 and 2. Gives the number of rows.
async fn load(work: &Work, plan: &Plan, anchor: ShardId) -> Result<u64, Stop> {
    work.step(plan.number, plan.to, MoveAction::Claim).await?;
    empty(work, plan).await?;
    let snapshot = Snapshot::open(work, anchor, MoveRead::ReferenceOpen).await?;
    let loaded = load_tables(work, plan, &snapshot).await;
    let seq = snapshot.reference_seq;
    snapshot.close().await;
    let rows = loaded?;
    work.step(plan.number, plan.to, MoveAction::ReferenceLoaded { seq }).await?;
    Ok(rows)
}

/// Step 4.
async fn tell_anchor(work: &Work, plan: &Plan, anchor: ShardId) -> Result<(), Stop> {
    if !is_active(work, plan.to) {
        return Err(Stop::Again(format!("{} is not known to be active yet", plan.to)));
    }
    let generation = work.catalog().generation;
    work.write(anchor, Action::ReferenceMembers { generation }).await.map(drop)
}

/// Delete what an earlier attempt has copied.
async fn empty(work: &Work, plan: &Plan) -> Result<(), Stop> {
    let snapshot = Snapshot::open(work, plan.to, MoveRead::ReferenceOpen).await?;
    let emptied = empty_tables(work, plan, &snapshot).await;
    snapshot.close().await;
    emptied
}

async fn empty_tables(work: &Work, plan: &Plan, snapshot: &Snapshot<'_>) -> Result<(), Stop> {
    let catalog = work.catalog();
    for name in &snapshot.tables {
        let mut after = None;
        loop {
            let (mut changes, next) = snapshot.next(name, after).await?;
            if !changes.rows.is_empty() {
                let table = catalog.table(name).ok_or_else(|| Stop::Again(format!("table {name} is not known")))?;
                let places = identity(table, &changes.columns);
                let rows = std::mem::take(&mut changes.rows).to_values();
                let key = |row: Vec<Value>| places.iter().filter_map(|place| row.get(*place).cloned()).collect();
                changes.deletes = rows.into_iter().map(key).collect();
                let (changes, idempotency) = (vec![changes], Vec::new());
                let import = MoveAction::Import { changes, idempotency, position: None, copied: false };
                work.step(plan.number, plan.to, import).await?;
            }
            if next.is_none() {
                break;
            }
            after = next;
        }
    }
    Ok(())
}

/// Where the values that tell rows apart are in a row that travels: the rowid comes first, where it is that.
fn identity(table: &Table, columns: &[String]) -> Vec<usize> {
    if columns.len() > table.columns.iter().filter(|column| !column.generated).count() {
        return vec![0];
    }
    let place = |name: &String| columns.iter().position(|column| column.eq_ignore_ascii_case(name));
    table.primary_key.iter().filter_map(place).collect()
}

async fn load_tables(work: &Work, plan: &Plan, snapshot: &Snapshot<'_>) -> Result<u64, Stop> {
    let (mut rows, mut size) = (0, 0);
    let mut throttle = Throttle::new(work, &[snapshot.shard, plan.to]).await;
    for table in &snapshot.tables {
        let mut after = None;
        loop {
            let (changes, next) = snapshot.next(table, after).await?;
            rows += changes.rows.len() as u64;
            size += bytes(&changes);
            let import =
                MoveAction::Import { changes: vec![changes], idempotency: Vec::new(), position: None, copied: true };
            work.step(plan.number, plan.to, import).await?;
            work.advance(Amount { rows, bytes: size }, || format!("in table {table}{}", throttle.describe()));
            throttle.rest().await;
            if next.is_none() {
                break;
            }
            after = next;
        }
    }
    Ok(rows)
}

/// Before partitions are handed over: the target has every reference write that the anchor has by now.
pub(super) async fn complete(work: &Work, plan: &Plan) -> Result<(), Stop> {
    match work.catalog().anchor() {
        Some(anchor) if anchor != plan.to => catch_up(work, anchor, plan.to).await.map(drop),
        _ => Ok(()),
    }
}

/// Step 5: gives the number that the shard has reached.
pub(crate) async fn catch_up(work: &Work, anchor: ShardId, to: ShardId) -> Result<u64, Stop> {
    let goal = last(work, anchor).await?;
    let mut reached = last(work, to).await?;
    for _ in 0..LOG_ROUNDS_MAX {
        if reached >= goal {
            return Ok(reached);
        }
        let request = MoveRead::ReferenceLog { after: reached, limit: LOG_ENTRIES_MAX };
        let MoveChunk::ReferenceLog { entries, .. } = work.ask(anchor, request).await? else {
            return Err(unexpected("reading the reference log"));
        };
        if entries.first().is_none_or(|entry| entry.seq != reached + 1) {
            // The log is pruned when all shards have it: by now this one may, from those who spread the writes.
            let now = last(work, to).await?;
            if now > reached {
                reached = now;
                continue;
            }
            return Err(Stop::impossible(format!(
                "the reference log of {anchor} does not go back to number {}, which {to} lacks; \
                 a new split makes a new copy",
                reached + 1
            )));
        }
        for entry in entries {
            let seq = entry.seq;
            match work.write(to, Action::ReferenceApply(entry)).await? {
                Outcome::Reference { .. } | Outcome::Done { .. } | Outcome::Replayed { .. } => reached = seq,
                _ => return Err(unexpected("a reference write")),
            }
        }
    }
    Err(Stop::Again("reference writes come faster than they can be brought to the new shard".to_owned()))
}

/// The last reference write that the shard has.
async fn last(work: &Work, shard: ShardId) -> Result<u64, Stop> {
    match work.ask(shard, MoveRead::ReferenceLog { after: 0, limit: 0 }).await? {
        MoveChunk::ReferenceLog { last, .. } => Ok(last),
        _ => Err(unexpected("reading the reference log")),
    }
}

/// The copies are equal. Compared at a moment when no reference write came in between.
async fn compare(work: &Work, anchor: ShardId, to: ShardId) -> Result<ContentDigest, Stop> {
    for _ in 0..COMPARISONS_MAX {
        let before = catch_up(work, anchor, to).await?;
        let (here, there) = (digest(work, anchor).await?, digest(work, to).await?);
        let differences = here.differences(&there);
        if differences.is_empty() {
            return Ok(here);
        }
        if last(work, anchor).await? == before && last(work, to).await? == before {
            return Err(Stop::impossible(format!(
                "the copy of reference table {} differs from its source (source{}; copy{})",
                differences.join(", "),
                describe(&here),
                describe(&there)
            )));
        }
    }
    Err(Stop::Again("reference tables change too fast to compare the copy".to_owned()))
}

async fn digest(work: &Work, shard: ShardId) -> Result<ContentDigest, Stop> {
    match work.scan(shard, MoveRead::ReferenceDigest).await? {
        MoveChunk::Digest(digest) => Ok(digest),
        _ => Err(unexpected("a digest")),
    }
}
