//! Schema changes on every embedded shard. (Those of servers: `ddl_servers`.)
//!
//! A statement is routed by the catalog's tables, and a shard refuses what it doesn't own, so what matters is
//! the order in which the shards and the catalog learn of a change:
//!
//! | change | order | what a client may meet in between |
//! | --- | --- | --- |
//! | `CREATE TABLE` | shards, catalog | the table is not known yet |
//! | … of a *single* table | shards, catalog, its shard's ownership | a retryable refusal: the shard does not own the table's unit yet |
//! | `CREATE INDEX`, `ADD COLUMN` | shards, catalog | the index is used, the column is not named, before all shards have it |
//! | … with a foreign key to a reference table | shards, writes to reference tables that did not know it, catalog | what is deleted there waits for the catalog |
//! | `DROP TABLE`, `DROP INDEX` | catalog, shards | the table is not known any more |
//! | `CREATE TRIGGER` | catalog (coming), shards, catalog | it fires before all shards have it; what triggers forbid is refused from the beginning |
//! | `DROP TRIGGER` | catalog (going), shards, catalog | it still fires, on shards that have it; what triggers forbid is refused to the end |
//! | `CREATE VIEW`, `DROP VIEW` | catalog | nothing: shards know no views |
//! | `RENAME`, `DROP COLUMN` | catalog, shards | a retryable refusal of scatter reads; keyed statements wait in the gateway until their shard has followed |
//!
//! What can fail on the data of one shard (a unique index over duplicates, a column with a CHECK) thus
//! happens *before* the commit: it is undone on the shards that have it, and the operation fails with that
//! shard's message. A drop can't be undone, so it comes after the commit, and what could make a shard
//! refuse it (another table that references the dropped one) is looked for first. Renaming depends on the schema alone,
//! which is the same everywhere, so it is enough that the gateway has tried it; it comes after the commit because old
//! and new names must not be mixed for as long as one shard is gone. No partition moves meanwhile: a schema change is
//! carried out alone.
//!
//! The ownership of a single table's shard, and with a rename that of all shards, rises with the commit (`Shard::ownership` in the catalog), and the shard
//! learns it right after (step `own`, or with the rename). Until then scatter reads routed by the new catalog are refused
//! there, retryably, so no reader sees the table on one side and not on the other.
//!
//! # A leader dies …
//!
//! | while | and then |
//! | --- | --- |
//! | the shards are changed | the next one sends the change to all of them again; a shard knows the operation's id and does it once |
//! | undoing | the next one sees in the catalog that it was given up, and goes on with the undoing |
//! | after the commit | the next one goes on from the catalog's commit |
//!
//! # A shard is gone
//!
//! Before the commit it is waited for up to [`Settings::shard_limit`](crate::Settings); then the change is given up, and
//! taken back on all other shards at once. The one that is gone may have it: the operation stays in the journal,
//! says what it waits for, and takes it back when that shard can be reached, before any other operation begins there.
//! After the commit it waits in the same way with what is left to do: a drop, or the ownership of a single table.
//! Operations that don't need this shard go past; another schema change needs it and is refused.
//!
//! # Cancelling
//!
//! The catalog puts a cancellation, the commit and the undoing in an order: it refuses to commit what is being
//! cancelled or undone, and to cancel or undo what is committed. So a created table is never taken back, and a drop
//! that was cancelled does not happen.

use std::time::Duration;

use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{
    Catalog, Command, DdlEffect, Operation, OperationKind, PartitionId, Phase, Shard, ShardId, ShardState, Table,
    TableId, TableKind, Tables,
};
use pleat_engine::{Action, Outcome, Refusal, SchemaChange};
use pleat_host::HostError;
use pleat_host::failpoint::{effect, reach, reach_in};
use tokio::time::{Instant, sleep};

use crate::mover::reference::catch_up;
use crate::stop::{Failure, Stop, is_deciding, took_effect};
use crate::work::{EFFECT_LIMIT, Work};

/// The ids under which shards know schema changes, so that each is made once: four for each operation …
fn change_id(work: &Work) -> u64 {
    work.id.0 * 4
}

/// … the second takes the first back …
fn undo_id(work: &Work) -> u64 {
    work.id.0 * 4 + 1
}

/// … and the third gives a shard the ownership of a single table.
fn own_id(work: &Work) -> u64 {
    work.id.0 * 4 + 2
}

/// A table that is brought to a new shard. (Shards forget ids far below the newest; these are below all others
/// as the signed numbers that SQLite keeps, and forgotten with the first schema change after the split.)
fn copy_id(operation: u64, table: TableId) -> u64 {
    (1 << 63) + (operation << 32) + u64::from(table.0)
}

/// In this step the shards take the change back.
const UNDO_STEP: &str = "undo";
pub(crate) const CHANGE_STEP: &str = "change shards";
const OWN_STEP: &str = "own";
pub(crate) const REACH_STEP: &str = "reach shards";
pub(crate) const SETTLE_STEP: &str = "settle reference tables";
/// The pause before a shard that did not carry out its part is asked again.
const INSIST_PAUSE: Duration = Duration::from_millis(500);
/// SQLSTATE: a shard can't be reached.
pub(crate) const UNREACHED: &str = "57P03";

/// Carry out a schema change, or take it up where an earlier leader left it.
pub(crate) async fn carry_out(work: &Work, effect: &DdlEffect, sql: &str) -> Result<(), Stop> {
    let operation = work.operation()?;
    if !operation.committed && !operation.given_up {
        match work.interruptible(prepare_and_commit(work, effect, sql)).await {
            Ok(()) => {}
            Err(Stop::Cancelled) => work.give_up(&Failure::cancelled()).await?,
            Err(Stop::Impossible(failure)) => work.give_up(&failure).await?,
            Err(stop) => return Err(stop),
        }
    }
    if work.operation()?.given_up {
        return undo(work, effect).await;
    }
    let message = match effect {
        _ if follows(effect) => follow(work, effect).await?,
        DdlEffect::CreateTable(table) => own_single(work, &table.name).await?,
        _ => None,
    };
    let done = match effect.is_of_view() {
        true => describe(effect),
        false => format!("{} on {}", describe(effect), counted(work.catalog().active_shards().count(), "shard")),
    };
    work.finish(Phase::Successful, &message.unwrap_or(done)).await
}

async fn prepare_and_commit(work: &Work, effect: &DdlEffect, sql: &str) -> Result<(), Stop> {
    match effect {
        _ if effect.is_of_view() => {}
        _ if follows(effect) => check_before(work, effect).await?,
        DdlEffect::CreateTrigger { .. } => {
            // It would fire on some shards for as long as another one is waited for.
            all_reached(work).await?;
            change_shards(work, effect, sql).await?;
        }
        _ if refers_to_copies(&work.catalog(), effect) => {
            change_shards(work, effect, sql).await?;
            settle(work).await?;
        }
        _ => change_shards(work, effect, sql).await?,
    }
    commit(work).await
}

/// The commit itself, in an order with a cancellation.
pub(crate) async fn commit(work: &Work) -> Result<(), Stop> {
    let (operation, epoch, at) = (work.id, work.tools.epochs.term(), work.cluster().now_ms());
    work.begin("commit").await?;
    work.decide();
    reach("operation.before-commit", None);
    if let Err(stop) = work.command(Command::CommitOperation { operation, epoch, at }).await {
        // Asked for between the step and the commit: the catalog refuses the commit, now and for ever.
        let asked = work.operation()?;
        return Err(if asked.cancel_requested && !asked.committed { Stop::Cancelled } else { stop });
    }
    reach("operation.committed", None);
    work.end("commit", "").await
}

/// Whether this gives a table a foreign key to a reference table.
fn refers_to_copies(catalog: &Catalog, effect: &DdlEffect) -> bool {
    let mut copies = catalog.tables.values().filter(|table| table.kind == TableKind::Reference);
    copies.any(|table| effect.refers_to(&table.name))
}

/// Brings every write to reference tables that was accepted without knowing the foreign key to every shard: from the
/// change on the anchor refuses more of them, and rows that refer to such a table come only after the commit.
async fn settle(work: &Work) -> Result<(), Stop> {
    let catalog = work.catalog();
    let anchor = catalog.anchor().ok_or_else(|| Stop::Again("no shard is active".to_owned()))?;
    work.begin(SETTLE_STEP).await?;
    for shard in catalog.active_shards().filter(|shard| shard.id != anchor) {
        catch_up(work, anchor, shard.id).await?;
    }
    work.end(SETTLE_STEP, "").await
}

/// Make the change on every shard, before the catalog has it.
async fn change_shards(work: &Work, effect: &DdlEffect, sql: &str) -> Result<(), Stop> {
    let catalog = work.catalog();
    let change = put_after(&catalog, effect)?;
    let statement = match effect {
        DdlEffect::CreateTable(table) => table.create_sql.clone(),
        DdlEffect::CreateIndex { index, .. } => index.sql.clone(),
        DdlEffect::CreateTrigger { trigger, .. } => trigger.on_shards.clone(),
        _ => sql.to_owned(),
    };
    work.begin(CHANGE_STEP).await?;
    let mut shards: Vec<ShardId> = catalog.active_shards().map(|shard| shard.id).collect();
    if planted::is(Bug::ShardLeftOut) && matches!(effect, DdlEffect::CreateIndex { .. }) {
        shards.pop();
    }
    for (done, shard) in shards.iter().enumerate() {
        let action = Action::Ddl {
            operation: change_id(work),
            statements: vec![statement.clone()],
            change: change.clone(),
            single: None,
            undoes: None,
        };
        let patience = work.tools.settings.shard_limit;
        match insist(work, CHANGE_STEP, *shard, action, patience).await {
            Err(Stop::Waiting(why)) => {
                return Err(Stop::Impossible(Failure { why, code: Some(UNREACHED.to_owned()) }));
            }
            other => other.map_err(|stop| stop.context(&shard.to_string()))?,
        }
        work.is_at(|| format!("{} of {}", done + 1, counted(shards.len(), "shard")))?;
    }
    work.end(CHANGE_STEP, &format!("{} on {}", describe(effect), counted(shards.len(), "shard"))).await
}

/// One shard's part, for as long as it takes while the shard is only busy. `Waiting` says that nobody there could be
/// reached for as long as `patience`.
///
/// A shard that is building an index answers nothing until it has; so what is asked is whether a majority follows
/// its leader.
async fn insist(work: &Work, step: &str, shard: ShardId, action: Action, patience: Duration) -> Result<(), Stop> {
    let mut reached = Instant::now();
    loop {
        let why = match change_shard(work, shard, action.clone()).await {
            Err(Stop::Again(why)) => why,
            other => return other,
        };
        if work.unreached(&[shard]).await.is_empty() {
            reached = Instant::now();
        } else if reached.elapsed() >= patience {
            let limit = patience.as_secs();
            return Err(Stop::Waiting(format!("{shard} could not be reached for {limit} s in step \"{step}\": {why}")));
        }
        work.is_at(|| format!("waits for {shard}: {why}"))?;
        sleep(INSIST_PAUSE).await;
    }
}

/// One shard's part, once. A shard that is still cleaning up after a move, or decides a transaction, says so, and is
/// asked again.
async fn change_shard(work: &Work, shard: ShardId, action: Action) -> Result<(), Stop> {
    let deadline = Instant::now() + EFFECT_LIMIT;
    reach_in("operation.before-effect", effect(&action));
    loop {
        let outcome = work.cluster().write(shard, action.clone(), EFFECT_LIMIT).await;
        reach_in("operation.had-effect", effect(&action));
        let moving =
            matches!(&outcome, Ok(Outcome::Refused(Refusal::Moving)) | Err(HostError::Refused(Refusal::Moving)));
        if !(moving || is_deciding(&outcome)) || Instant::now() >= deadline {
            return took_effect(outcome?).map(drop);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Take the change back on every shard, and end. A shard that never had it is told that it must not have it any more:
/// a message of ours may still be on its way. When a shard is gone the others are rid of the change all the same,
/// and the operation waits for that one.
async fn undo(work: &Work, effect: &DdlEffect) -> Result<(), Stop> {
    let operation = work.operation()?;
    let why = &operation.message;
    let mut left = Vec::new();
    if !follows(effect) && operation.steps.iter().any(|step| step.name == CHANGE_STEP) {
        if !operation.steps.last().is_some_and(|step| step.name == UNDO_STEP && step.ended.is_none()) {
            work.break_off(why).await?;
            work.note(UNDO_STEP, false, why).await?;
        }
        let catalog = work.catalog();
        let (statement, change) = undoing(&catalog, effect)?;
        let undo = |_: &Shard| Action::Ddl {
            operation: undo_id(work),
            statements: vec![statement.clone()],
            change: change.clone(),
            single: None,
            undoes: Some(change_id(work)),
        };
        let gone = on_the_rest(work, &operation, UNDO_STEP, undo, &mut left).await?;
        if !gone.is_empty() {
            return Err(work.wait_for(gone).await);
        }
        work.end(UNDO_STEP, why).await?;
    }
    let phase = if operation.cancel_requested { Phase::Skipped } else { Phase::Failed };
    match left.is_empty() {
        true => work.finish(phase, why).await,
        false => work.finish(phase, &format!("{why}; something unused is left on {}", left.join("; "))).await,
    }
}

/// What is left to do of a decided change, on every shard on which it is left to do. Gives the shards that can't be
/// reached; what can't be done on a shard at all is added to `left`.
async fn on_the_rest(
    work: &Work,
    operation: &Operation,
    step: &str,
    action: impl Fn(&Shard) -> Action,
    left: &mut Vec<String>,
) -> Result<Vec<ShardId>, Stop> {
    let catalog = work.catalog();
    let waiting = |shard: &&Shard| !operation.is_waiting() || operation.waits_for.contains(&shard.id);
    let mut gone = Vec::new();
    for entry in catalog.active_shards().filter(waiting) {
        let shard = entry.id;
        match insist(work, step, shard, action(entry), Duration::ZERO).await {
            Ok(()) => {}
            Err(Stop::Waiting(_)) => gone.push(shard),
            Err(Stop::Impossible(failure)) => left.push(format!("{shard}: {}", failure.why)),
            Err(stop) => return Err(stop.context(&shard.to_string())),
        }
    }
    Ok(gone)
}

/// After the commit of a single table: its shard owns it.
async fn own_single(work: &Work, name: &str) -> Result<Option<String>, Stop> {
    let catalog = work.catalog();
    let Some(table) = catalog.table(name) else { return Ok(None) };
    let TableKind::Single { shard } = table.kind else { return Ok(None) };
    let home = catalog.shards.get(&shard).filter(|shard| shard.state != ShardState::Removed);
    let Some(ownership) = home.map(|shard| shard.ownership) else { return Ok(None) };
    work.begin(OWN_STEP).await?;
    let action = Action::Ddl {
        operation: own_id(work),
        statements: Vec::new(),
        change: SchemaChange::Put(table.clone()),
        single: Some((PartitionId::of_single(table.id), ownership)),
        undoes: None,
    };
    match insist(work, OWN_STEP, shard, action, Duration::ZERO).await {
        Err(Stop::Waiting(_)) => return Err(work.wait_for(vec![shard]).await),
        other => other.map_err(|stop| Stop::Again(stop.reason()))?,
    }
    work.end(OWN_STEP, &format!("{shard} owns table {}", table.name)).await?;
    Ok(Some(format!("table {} was created on {shard}", table.name)))
}

/// After the commit of what the shards follow in. Gives a message for people when one can't.
async fn follow(work: &Work, effect: &DdlEffect) -> Result<Option<String>, Stop> {
    let (operation, catalog) = (work.operation()?, work.catalog());
    let drop = |what: &str, name: &str| format!("DROP {what} IF EXISTS {}", quoted(name));
    let known = |name: &str| catalog.table(name).cloned();
    let (statement, table) = match effect {
        DdlEffect::DropTable { table } => (drop("TABLE", table), None),
        DdlEffect::DropIndex { index, table } => (drop("INDEX", index), known(table)),
        DdlEffect::DropTrigger { trigger, table } => (drop("TRIGGER", trigger), known(table)),
        DdlEffect::AlterTable { after, statement, .. } => (statement.clone(), known(&after.name)),
        _ => return Ok(None),
    };
    work.begin(CHANGE_STEP).await?;
    let action = |shard: &Shard| Action::Ddl {
        operation: change_id(work),
        statements: vec![statement.clone()],
        change: match (effect, table.clone()) {
            (DdlEffect::AlterTable { before, .. }, Some(table)) => {
                SchemaChange::Alter { from: before.name.clone(), table, ownership: shard.ownership }
            }
            (_, Some(table)) => SchemaChange::Put(table),
            (effect, None) => SchemaChange::Drop { table: effect.table().to_owned() },
        },
        single: None,
        undoes: None,
    };
    // The catalog has it, so nobody can use what is left where a shard can't follow; waiting would not help.
    let mut left = Vec::new();
    let gone = on_the_rest(work, &operation, CHANGE_STEP, action, &mut left).await?;
    if !gone.is_empty() {
        work.note(CHANGE_STEP, false, &left.join("; ")).await?;
        return Err(work.wait_for(gone).await);
    }
    work.end(CHANGE_STEP, &left.join("; ")).await?;
    Ok((!left.is_empty()).then(|| format!("{}, but not on {}", describe(effect), left.join("; "))))
}

/// A table with its indexes and triggers for a shard that has none yet.
pub(crate) fn copy_of(operation: u64, table: &Table) -> Action {
    let statements = [&table.create_sql].into_iter().chain(table.indexes.iter().map(|index| &index.sql));
    let statements = statements.chain(table.ready_triggers().map(|trigger| &trigger.on_shards));
    Action::Ddl {
        operation: copy_id(operation, table.id),
        statements: statements.cloned().collect(),
        change: SchemaChange::Put(table.clone()),
        single: None,
        undoes: None,
    }
}

/// Tables in an order in which each comes after those that it references, as far as there is one.
pub(crate) fn by_reference(tables: &Tables) -> Vec<&Table> {
    let mut ordered: Vec<&Table> = Vec::new();
    let mut waiting: Vec<&Table> = tables.values().collect();
    while !waiting.is_empty() {
        let free = |table: &&Table| !waiting.iter().any(|other| other.id != table.id && table.references(&other.name));
        let (ready, rest): (Vec<_>, Vec<_>) = waiting.iter().copied().partition(free);
        if ready.is_empty() {
            ordered.extend(rest); // they reference each other; SQLite allows that
            return ordered;
        }
        ordered.extend(ready);
        waiting = rest;
    }
    ordered
}

/// Whether the catalog changes first and the shards follow.
fn follows(effect: &DdlEffect) -> bool {
    matches!(
        effect,
        DdlEffect::DropTable { .. }
            | DdlEffect::DropIndex { .. }
            | DdlEffect::DropTrigger { .. }
            | DdlEffect::AlterTable { .. }
    )
}

/// What could keep shards from following is looked for before the commit.
async fn check_before(work: &Work, effect: &DdlEffect) -> Result<(), Stop> {
    check_drop(&work.catalog(), effect)?;
    if let DdlEffect::AlterTable { .. } | DdlEffect::DropTrigger { .. } = effect {
        all_reached(work).await?;
    }
    Ok(())
}

/// Until a rename, or another placement, has reached every shard some statements are refused, and until a trigger has it fires
/// on some shards alone; so none of these is begun while a shard is gone.
pub(crate) async fn all_reached(work: &Work) -> Result<(), Stop> {
    let begun = Instant::now();
    work.begin(REACH_STEP).await?;
    loop {
        let shards: Vec<ShardId> = work.catalog().active_shards().map(|shard| shard.id).collect();
        let gone = work.unreached(&shards).await;
        let Some(shard) = gone.first() else { return work.end(REACH_STEP, "").await };
        if begun.elapsed() >= work.tools.settings.shard_limit {
            let limit = work.tools.settings.shard_limit.as_secs();
            let why = format!("{shard} could not be reached for {limit} s in step \"{REACH_STEP}\"");
            return Err(Stop::Impossible(Failure { why, code: Some(UNREACHED.to_owned()) }));
        }
        work.is_at(|| format!("waits for {shard}"))?;
        sleep(INSIST_PAUSE).await;
    }
}

/// Dropping a table that others reference fails on a shard with rows and not on one without; so it is refused.
fn check_drop(catalog: &Catalog, effect: &DdlEffect) -> Result<(), Stop> {
    let DdlEffect::DropTable { table } = effect else { return Ok(()) };
    let others = catalog.tables.values().filter(|other| !other.name.eq_ignore_ascii_case(table));
    match others.into_iter().find(|other| other.references(table)) {
        Some(other) => {
            Err(Stop::impossible(format!("table {table} is referenced by table {}; drop that one first", other.name)))
        }
        None => Ok(()),
    }
}

/// The table as it is after the change, for the shards' own records.
fn put_after(catalog: &Catalog, effect: &DdlEffect) -> Result<SchemaChange, Stop> {
    if let DdlEffect::CreateTable(table) = effect {
        // The catalog will give it this id: nothing else makes tables while this operation is carried out.
        return Ok(SchemaChange::Put(Table { id: catalog.next_table(), ..table.clone() }));
    }
    let mut table = known(catalog, effect)?.clone();
    match effect {
        DdlEffect::CreateIndex { index, .. } => table.indexes.push(index.clone()),
        DdlEffect::AddColumn { column, create_sql, .. } => {
            table.columns.push(column.clone());
            table.create_sql = create_sql.clone();
        }
        // Made with the table, in the catalog already, after the commit, or not on shards.
        DdlEffect::CreateTable(_)
        | DdlEffect::Servers { .. }
        | DdlEffect::PlaceOnServers { .. }
        | DdlEffect::CreateTrigger { .. }
        | DdlEffect::DropTrigger { .. }
        | DdlEffect::CreateView(_)
        | DdlEffect::DropView { .. }
        | DdlEffect::DropTable { .. }
        | DdlEffect::DropIndex { .. }
        | DdlEffect::AlterTable { .. }
        | DdlEffect::PlaceTable { .. } => {}
    }
    Ok(SchemaChange::Put(table))
}

/// What takes a change back.
fn undoing(catalog: &Catalog, effect: &DdlEffect) -> Result<(String, SchemaChange), Stop> {
    Ok(match effect {
        DdlEffect::CreateTable(table) => {
            (format!("DROP TABLE IF EXISTS {}", quoted(&table.name)), SchemaChange::Drop { table: table.name.clone() })
        }
        DdlEffect::CreateIndex { index, .. } => (
            format!("DROP INDEX IF EXISTS {}", quoted(&index.name)),
            SchemaChange::Put(known(catalog, effect)?.clone()),
        ),
        DdlEffect::AddColumn { table, column, .. } => (
            format!("ALTER TABLE {} DROP COLUMN {}", quoted(table), quoted(&column.name)),
            SchemaChange::Put(known(catalog, effect)?.clone()),
        ),
        DdlEffect::CreateTrigger { trigger, .. } => (
            format!("DROP TRIGGER IF EXISTS {}", quoted(&trigger.name)),
            SchemaChange::Put(known(catalog, effect)?.clone()),
        ),
        DdlEffect::DropTable { .. }
        | DdlEffect::Servers { .. }
        | DdlEffect::PlaceOnServers { .. }
        | DdlEffect::DropIndex { .. }
        | DdlEffect::DropTrigger { .. }
        | DdlEffect::AlterTable { .. }
        | DdlEffect::PlaceTable { .. }
        | DdlEffect::CreateView(_)
        | DdlEffect::DropView { .. } => {
            return Err(Stop::impossible("what follows the commit is not undone".to_owned()));
        }
    })
}

fn known<'a>(catalog: &'a Catalog, effect: &DdlEffect) -> Result<&'a Table, Stop> {
    let name = effect.table();
    catalog.table(name).ok_or_else(|| Stop::impossible(format!("table {name} does not exist any more")))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn describe(effect: &DdlEffect) -> String {
    match effect {
        DdlEffect::CreateTable(table) => format!("table {} was created", table.name),
        DdlEffect::DropTable { table } => format!("table {table} was dropped"),
        DdlEffect::CreateIndex { table, index } => format!("index {} of {table} was created", index.name),
        DdlEffect::DropIndex { table, index } => format!("index {index} of {table} was dropped"),
        DdlEffect::AddColumn { table, column, .. } => format!("column {} of {table} was added", column.name),
        DdlEffect::AlterTable { before, .. } => format!("table {} was altered", before.name),
        DdlEffect::PlaceTable { before, .. } => format!("table {} was placed anew", before.name),
        DdlEffect::CreateTrigger { table, trigger, .. } => format!("trigger {} of {table} was created", trigger.name),
        DdlEffect::DropTrigger { table, trigger } => format!("trigger {trigger} of {table} was dropped"),
        DdlEffect::CreateView(view) => format!("view {} was created", view.name),
        DdlEffect::DropView { view } => format!("view {view} was dropped"),
        DdlEffect::Servers { about, .. } => format!("{about}: done"),
        DdlEffect::PlaceOnServers { .. } => format!("table {} was placed anew", effect.table()),
    }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Whether the operation is a schema change, and which.
pub(crate) fn of(kind: &OperationKind) -> Option<(&DdlEffect, &str)> {
    match kind {
        OperationKind::Ddl { effect, sql, .. } => Some((effect, sql)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(id: u32, name: &str, create_sql: &str) -> Table {
        Table {
            id: TableId(id),
            name: name.to_owned(),
            kind: TableKind::Reference,
            columns: Vec::new(),
            primary_key: Vec::new(),
            rowid_alias: false,
            without_rowid: false,
            create_sql: create_sql.to_owned(),
            indexes: Vec::new(),
            triggers: Vec::new(),
        }
    }

    #[test]
    fn a_foreign_key_is_found_however_its_table_is_quoted() {
        for sql in [
            "CREATE TABLE a (x REFERENCES Users(id))",
            "CREATE TABLE a (x, FOREIGN KEY (x) references \"users\" (id))",
            "CREATE TABLE a (x REFERENCES [users])",
        ] {
            assert!(table(1, "a", sql).references("users"), "{sql}");
        }
        assert!(!table(1, "a", "CREATE TABLE a (users REFERENCES users_old(id))").references("users"));
    }

    #[test]
    fn tables_come_after_those_that_they_reference() {
        let tables = [
            table(1, "a", "CREATE TABLE a (x REFERENCES b)"),
            table(2, "b", "CREATE TABLE b (x REFERENCES c, y REFERENCES b)"),
            table(3, "c", "CREATE TABLE c (x)"),
        ];
        let tables: Tables = tables.into_iter().map(|table| (table.name.clone(), table)).collect();
        let names: Vec<_> = by_reference(&tables).into_iter().map(|table| table.name.as_str()).collect();
        assert_eq!(names, ["c", "b", "a"]);
    }
}
