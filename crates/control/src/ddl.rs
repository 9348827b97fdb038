//! Schema changes on every shard.
//!
//! A statement is routed by the catalog's tables, and a shard refuses what it doesn't own, so what matters is
//! the order in which the shards and the catalog learn of a change:
//!
//! | change | order | what a client may meet in between |
//! | --- | --- | --- |
//! | `CREATE TABLE` | shards, catalog | the table is not known yet |
//! | … of a *single* table | shards, catalog, its shard's ownership | a retryable refusal: the shard does not own the table's unit yet |
//! | `CREATE INDEX`, `ADD COLUMN` | shards, catalog | the index is used, the column is not named, before all shards have it |
//! | `DROP TABLE`, `DROP INDEX` | catalog, shards | the table is not known any more |
//!
//! What can fail on the data of one shard (a unique index over duplicates, a column with a CHECK) thus
//! happens *before* the commit: it is undone on the shards that have it, and the operation fails with that
//! shard's message. A drop can't be undone, so it comes after the commit, and what could make a shard
//! refuse it (another table that references the dropped one) is looked for first. A moved partition waits: the executor
//! carries out one operation at a time.
//!
//! The ownership of a single table's shard rises with the commit (`Shard::ownership` in the catalog), and the shard
//! learns it right after (step `own`). Until then scatter reads routed by the new catalog are refused
//! there, retryably, so no reader sees the table on one side and not on the other.
//!
//! # A leader dies …
//!
//! | while | and then |
//! | --- | --- |
//! | the shards are changed | the next one sends the change to all of them again; a shard knows the operation's id and does it once |
//! | undoing | the next one sees the step `undo` in the journal and goes on with it |
//! | after the commit | the next one goes on from the catalog's commit |
//!
//! # Cancelling
//!
//! The catalog puts a cancellation, the commit and the undoing in an order: it refuses to commit what is being
//! cancelled or undone, and to cancel or undo what is committed. So a created table is never taken back, and a drop
//! that was cancelled does not happen.

use pleat_cluster::{
    Catalog, Command, DdlEffect, Operation, OperationKind, PartitionId, Phase, ShardId, ShardState, Table, TableId,
    TableKind, Tables,
};
use pleat_engine::{Action, Outcome, Refusal, SchemaChange};
use pleat_host::HostError;
use tokio::time::{Instant, sleep};

use crate::stop::{Stop, is_deciding, took_effect};
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

/// From this step on the operation is taken back, whoever leads.
const UNDO_STEP: &str = Operation::UNDO_STEP;

/// Carry out a schema change, or take it up where an earlier leader left it.
pub(crate) async fn carry_out(work: &Work, effect: &DdlEffect, sql: &str) -> Result<(), Stop> {
    let operation = work.operation()?;
    if let Some(undoing) = operation.steps.iter().find(|step| step.name == UNDO_STEP && !operation.committed) {
        let phase = if operation.cancel_requested { Phase::Skipped } else { Phase::Failed };
        return undo(work, effect, phase, &undoing.detail.clone()).await;
    }
    if !operation.committed {
        match prepare_and_commit(work, effect, sql).await {
            Ok(()) => {}
            Err(Stop::Cancelled) => return give_up(work, effect, Phase::Skipped, "cancelled on request").await,
            Err(Stop::Impossible(why)) => return give_up(work, effect, Phase::Failed, &why).await,
            Err(stop) => return Err(stop),
        }
    }
    let message = match effect {
        DdlEffect::DropTable { .. } | DdlEffect::DropIndex { .. } => drop_everywhere(work, effect).await?,
        DdlEffect::CreateTable(table) => own_single(work, &table.name).await?,
        DdlEffect::CreateIndex { .. } | DdlEffect::AddColumn { .. } => None,
    };
    let done = format!("{} on {}", describe(effect), counted(work.catalog().active_shards().count(), "shard"));
    work.finish(Phase::Successful, &message.unwrap_or(done)).await
}

async fn prepare_and_commit(work: &Work, effect: &DdlEffect, sql: &str) -> Result<(), Stop> {
    match is_drop(effect) {
        true => check_drop(&work.catalog(), effect)?,
        false => change_shards(work, effect, sql).await?,
    }
    let (operation, epoch, at) = (work.id, work.tools.epochs.term(), work.cluster().now_ms());
    work.begin("commit").await?;
    if let Err(stop) = work.command(Command::CommitOperation { operation, epoch, at }).await {
        // Asked for between the step and the commit: the catalog refuses the commit, now and for ever.
        let asked = work.operation()?;
        return Err(if asked.cancel_requested && !asked.committed { Stop::Cancelled } else { stop });
    }
    work.end("commit", "").await
}

async fn give_up(work: &Work, effect: &DdlEffect, phase: Phase, why: &str) -> Result<(), Stop> {
    match is_drop(effect) {
        true => work.finish(phase, why).await,
        false => undo(work, effect, phase, why).await,
    }
}

/// Make the change on every shard, before the catalog has it.
async fn change_shards(work: &Work, effect: &DdlEffect, sql: &str) -> Result<(), Stop> {
    let catalog = work.catalog();
    let change = put_after(&catalog, effect)?;
    let statement = match effect {
        DdlEffect::CreateTable(table) => table.create_sql.clone(),
        DdlEffect::CreateIndex { index, .. } => index.sql.clone(),
        _ => sql.to_owned(),
    };
    work.begin("change shards").await?;
    let shards: Vec<ShardId> = catalog.active_shards().map(|shard| shard.id).collect();
    for (done, shard) in shards.iter().enumerate() {
        let action = Action::Ddl {
            operation: change_id(work),
            statements: vec![statement.clone()],
            change: change.clone(),
            single: None,
        };
        change_shard(work, *shard, action).await.map_err(|stop| stop.context(&shard.to_string()))?;
        work.progress("change shards", || format!("{} of {}", done + 1, counted(shards.len(), "shard"))).await?;
    }
    work.end("change shards", &format!("{} on {}", describe(effect), counted(shards.len(), "shard"))).await
}

/// One shard's part. A shard that is still cleaning up after a move, or decides a transaction, says so, and is asked
/// again.
async fn change_shard(work: &Work, shard: ShardId, action: Action) -> Result<(), Stop> {
    let deadline = Instant::now() + EFFECT_LIMIT;
    loop {
        let outcome = work.cluster().write(shard, action.clone(), EFFECT_LIMIT).await;
        let moving =
            matches!(&outcome, Ok(Outcome::Refused(Refusal::Moving)) | Err(HostError::Refused(Refusal::Moving)));
        if !(moving || is_deciding(&outcome)) || Instant::now() >= deadline {
            return took_effect(outcome?).map(drop);
        }
        sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// Take the change back on every shard, the refusing one included (it then has nothing to undo), and end.
async fn undo(work: &Work, effect: &DdlEffect, phase: Phase, why: &str) -> Result<(), Stop> {
    let steps = work.operation()?.steps;
    if steps.iter().any(|step| step.name == "change shards") {
        // From here on there is no way back to the change: shards remember that they had it.
        if !steps.iter().any(|step| step.name == UNDO_STEP) {
            work.break_off(why).await?;
        }
        let noted = work.note(UNDO_STEP, false, why).await;
        // The catalog refuses this entry after the commit and the commit after this entry; so what stands here is final.
        if work.operation()?.committed {
            return Err(Stop::Again("the change was committed after all and goes on".to_owned()));
        }
        noted?;
        let catalog = work.catalog();
        let (statement, change) = undoing(&catalog, effect)?;
        for shard in catalog.active_shards() {
            let (statements, change) = (vec![statement.clone()], change.clone());
            let action = Action::Ddl { operation: undo_id(work), statements, change, single: None };
            match change_shard(work, shard.id, action).await {
                // There was nothing to undo, and for `DROP COLUMN` there is no IF EXISTS to say so.
                Err(Stop::Impossible(_)) if matches!(effect, DdlEffect::AddColumn { .. }) => {}
                other => other.map_err(|stop| Stop::Again(format!("undo on {}: {}", shard.id, stop.reason())))?,
            }
        }
        work.end(UNDO_STEP, why).await?;
    }
    work.finish(phase, why).await
}

/// After the commit of a single table: its shard owns it.
async fn own_single(work: &Work, name: &str) -> Result<Option<String>, Stop> {
    let catalog = work.catalog();
    let Some(table) = catalog.table(name) else { return Ok(None) };
    let TableKind::Single { shard } = table.kind else { return Ok(None) };
    let home = catalog.shards.get(&shard).filter(|shard| shard.state != ShardState::Removed);
    let Some(ownership) = home.map(|shard| shard.ownership) else { return Ok(None) };
    work.begin("own").await?;
    let action = Action::Ddl {
        operation: own_id(work),
        statements: Vec::new(),
        change: SchemaChange::Put(table.clone()),
        single: Some((PartitionId::of_single(table.id), ownership)),
    };
    change_shard(work, shard, action).await.map_err(|stop| Stop::Again(stop.reason()))?;
    work.end("own", &format!("{shard} owns table {}", table.name)).await?;
    Ok(Some(format!("table {} was created on {shard}", table.name)))
}

/// After the commit of a drop: the shards follow. Gives a message for people when one can't.
async fn drop_everywhere(work: &Work, effect: &DdlEffect) -> Result<Option<String>, Stop> {
    let catalog = work.catalog();
    let (statement, change) = match effect {
        DdlEffect::DropTable { table } => {
            (format!("DROP TABLE IF EXISTS {}", quoted(table)), SchemaChange::Drop { table: table.clone() })
        }
        DdlEffect::DropIndex { index, table } => {
            let Some(table) = catalog.table(table) else { return Ok(None) };
            (format!("DROP INDEX IF EXISTS {}", quoted(index)), SchemaChange::Put(table.clone()))
        }
        _ => return Ok(None),
    };
    work.begin("change shards").await?;
    let mut left = Vec::new();
    for shard in catalog.active_shards() {
        let (statements, change) = (vec![statement.clone()], change.clone());
        let action = Action::Ddl { operation: change_id(work), statements, change, single: None };
        match change_shard(work, shard.id, action).await {
            // The catalog has dropped it, so nobody can use what is left; waiting would not make it go.
            Err(Stop::Impossible(why)) => left.push(format!("{} keeps an unused copy: {why}", shard.id)),
            other => other.map_err(|stop| stop.context(&shard.id.to_string()))?,
        }
    }
    work.end("change shards", &left.join("; ")).await?;
    Ok((!left.is_empty()).then(|| format!("{}, but {}", describe(effect), left.join("; "))))
}

/// A table and its indexes for a shard that has none yet.
pub(crate) fn copy_of(operation: u64, table: &Table) -> Action {
    let statements = [&table.create_sql].into_iter().chain(table.indexes.iter().map(|index| &index.sql));
    Action::Ddl {
        operation: copy_id(operation, table.id),
        statements: statements.cloned().collect(),
        change: SchemaChange::Put(table.clone()),
        single: None,
    }
}

/// Tables in an order in which each comes after those that it references, as far as there is one.
pub(crate) fn by_reference(tables: &Tables) -> Vec<&Table> {
    let mut ordered: Vec<&Table> = Vec::new();
    let mut waiting: Vec<&Table> = tables.values().collect();
    while !waiting.is_empty() {
        let free = |table: &&Table| !waiting.iter().any(|other| other.id != table.id && references(table, &other.name));
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

fn is_drop(effect: &DdlEffect) -> bool {
    matches!(effect, DdlEffect::DropTable { .. } | DdlEffect::DropIndex { .. })
}

/// Dropping a table that others reference fails on a shard with rows and not on one without; so it is refused.
fn check_drop(catalog: &Catalog, effect: &DdlEffect) -> Result<(), Stop> {
    let DdlEffect::DropTable { table } = effect else { return Ok(()) };
    let others = catalog.tables.values().filter(|other| !other.name.eq_ignore_ascii_case(table));
    match others.into_iter().find(|other| references(other, table)) {
        Some(other) => {
            Err(Stop::Impossible(format!("table {table} is referenced by table {}; drop that one first", other.name)))
        }
        None => Ok(()),
    }
}

/// Whether a table's definition has a foreign key to `name`. Words are compared, so a definition that says
/// `references name` in a comment counts too: a refusal that is easily explained, where missing one would not be.
fn references(table: &Table, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    let mut words = table.create_sql.split(|c: char| !is_word(c)).filter(|word| !word.is_empty()).peekable();
    let wanted: Vec<&str> = name.split(|c: char| !is_word(c)).filter(|word| !word.is_empty()).collect();
    while let Some(word) = words.next() {
        if word.eq_ignore_ascii_case("references") {
            let mut rest = words.clone();
            if !wanted.is_empty() && wanted.iter().all(|want| rest.next().is_some_and(|w| w.eq_ignore_ascii_case(want)))
            {
                return true;
            }
        }
    }
    false
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
        DdlEffect::CreateTable(_) | DdlEffect::DropTable { .. } | DdlEffect::DropIndex { .. } => {}
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
        DdlEffect::DropTable { .. } | DdlEffect::DropIndex { .. } => {
            return Err(Stop::Impossible("a drop is not undone".to_owned()));
        }
    })
}

fn known<'a>(catalog: &'a Catalog, effect: &DdlEffect) -> Result<&'a Table, Stop> {
    let name = effect.table();
    catalog.table(name).ok_or_else(|| Stop::Impossible(format!("table {name} does not exist any more")))
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
    }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Whether the operation is a schema change, and which.
pub(crate) fn of(kind: &OperationKind) -> Option<(&DdlEffect, &str)> {
    match kind {
        OperationKind::Ddl { effect, sql } => Some((effect, sql)),
        OperationKind::Split { .. } | OperationKind::Move { .. } => None,
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
        }
    }

    #[test]
    fn a_foreign_key_is_found_however_its_table_is_quoted() {
        for sql in [
            "CREATE TABLE a (x REFERENCES Users(id))",
            "CREATE TABLE a (x, FOREIGN KEY (x) references \"users\" (id))",
            "CREATE TABLE a (x REFERENCES [users])",
        ] {
            assert!(references(&table(1, "a", sql), "users"), "{sql}");
        }
        assert!(!references(&table(1, "a", "CREATE TABLE a (users REFERENCES users_old(id))"), "users"));
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
