//! Schema changes.
//!
//! A schema change is tried on an empty database with the catalog's tables first, so that what SQLite would
//! refuse is refused before anything is journaled; SQLite itself then describes the new table. The change
//! goes into the journal as an operation, which the control leader carries out on every shard before the
//! catalog shows it; the executor waits for its end.
//!
//! When the client's time is over first, an operation that has not begun is cancelled (nothing was done, and
//! the client may try again); one that has begun goes on, and the failure names it.

use std::time::Duration;

use pleat_cluster::{
    Catalog, Cause, Command, CommandError, DdlEffect, Generation, Operation, OperationId, OperationKind, Phase,
    ShardId, TableKind, Tried,
};
use pleat_host::HostError;
use pleat_sql::{DdlAction, DdlPlan, Placement};

use super::deadline::Deadline;
use super::reroute::{Setback, setback};
use super::{Effect, Executor, Failure, Output, Response, Run, Touched, place};

/// How long cancelling may take after the client's time is over.
const CANCEL_TIME_MAX: Duration = Duration::from_secs(2);
/// Bytes of a statement that the journal's reason shows.
const REASON_BYTES_MAX: usize = 200;

impl Executor {
    pub(super) async fn change_schema(
        &self,
        run: &Run,
        catalog: &Catalog,
        plan: &DdlPlan,
    ) -> Result<Response, Setback> {
        if matches!(plan.action, DdlAction::Nothing) {
            return Ok(done(catalog, Touched::Many(Vec::new()), plan.notice.clone(), None));
        }
        let tried = self.try_out(catalog, plan).await?;
        let single_on = match plan.action {
            DdlAction::CreateTable(Placement::Single) | DdlAction::Place(Placement::Single) => {
                self.emptiest_shard(catalog).await?
            }
            _ => place::anchor(catalog)?,
        };
        let of_view = matches!(plan.action, DdlAction::CreateView { .. } | DdlAction::DropView);
        let effect = plan.effect(tried, single_on)?;
        // Shards run this text; elsewhere it is for people, and theirs.
        let sql = match (&plan.action, plan.statements.first()) {
            (DdlAction::AddColumn { .. }, Some(statement)) => statement.clone(),
            _ => run.request.text.clone(),
        };
        let kind = OperationKind::Ddl { effect, sql, layout: catalog.layout };
        let command = self.starting(kind, run.request.origin, &run.request.text);
        let reply = match self.backend.command(command, run.deadline.left()).await {
            Ok(reply) => reply,
            Err(HostError::Command(busy @ CommandError::Busy { .. })) => {
                return Err(Setback::Busy(HostError::Command(busy).into()));
            }
            Err(error) => return Err(setback(error)),
        };
        let id = reply.operation.ok_or_else(|| Failure::internal("the catalog started no operation"))?;
        let waits = self.wait_for(id, &run.deadline).await?;
        let catalog = self.backend.catalog();
        let touched = match plan.action {
            DdlAction::CreateTable(Placement::Single) => Touched::One(single_on),
            _ if of_view => Touched::Many(Vec::new()),
            _ => Touched::Many(catalog.active_shards().map(|shard| shard.id).collect()),
        };
        Ok(done(&catalog, touched, waits.or_else(|| plan.notice.clone()), Some(id)))
    }

    fn starting(&self, kind: OperationKind, origin: &str, text: &str) -> Command {
        let (cause, reason, at) = (Cause::Request(origin.to_owned()), reason(text), self.backend.now_ms());
        Command::StartOperation { kind, cause, reason, at }
    }

    /// Have a schema change of shards that are servers carried out, which was planned by a layout, and wait for its end. `origin` and `text` are
    /// for the journal. Gives a notice for people when something is left.
    pub(crate) async fn change_servers(
        &self,
        effect: DdlEffect,
        sql: String,
        layout: Generation,
        (origin, text): (&str, &str),
        within: Duration,
    ) -> Result<Option<String>, Failure> {
        let deadline = Deadline::after(within);
        let command = self.starting(OperationKind::Ddl { effect, sql, layout }, origin, text);
        let reply = self.backend.command(command, deadline.left()).await?;
        let id = reply.operation.ok_or_else(|| Failure::internal("the catalog started no operation"))?;
        self.wait_for(id, &deadline).await
    }

    /// What the change comes to, as SQLite has it; no table when it is dropped.
    async fn try_out(&self, catalog: &Catalog, plan: &DdlPlan) -> Result<Tried, Failure> {
        let (tables, views) = (catalog.tables.clone(), catalog.views.clone());
        let statements = plan.statements.clone();
        let name = plan.describes().to_owned();
        let drops = matches!(plan.action, DdlAction::DropTable);
        // The kind of a new table is the plan's to say; here any will do.
        let kind = catalog.table(&name).map_or(TableKind::Reference, |table| table.kind.clone());
        let validate = move || pleat_engine::try_ddl(&tables, &views, &statements, &name, &kind);
        let tried = pleat_consensus::blocking(validate).await;
        let tried = tried.map_err(|error| Failure::internal(format!("trying the statement: {error}")))??;
        Ok(Tried { table: tried.table.filter(|_| !drops), ..tried })
    }

    /// The active shard with the fewest rows; with the fewest single tables, where that is the same.
    async fn emptiest_shard(&self, catalog: &Catalog) -> Result<ShardId, Failure> {
        let look = self.observer.look().await;
        let load = |shard: ShardId| {
            // A shard that can't be asked is no good home.
            let rows = look.shard(shard).map_or(u64::MAX, |seen| seen.shard.total_rows);
            let singles = catalog.units_of(shard).iter().filter(|unit| unit.is_single()).count();
            (rows, singles, shard)
        };
        let leaves = |shard: ShardId| {
            catalog
                .open_operations()
                .any(|open| matches!(open.kind, OperationKind::Merge { from, .. } if from == shard))
        };
        let stay = catalog.active_shards().map(|shard| shard.id).filter(|shard| !leaves(*shard));
        let emptiest = stay.map(load).min();
        emptiest.map_or_else(|| place::anchor(catalog), |(_, _, shard)| Ok(shard))
    }

    /// Wait for the operation's end, or until all that is left of it waits for a shard that is gone: it is decided then.
    /// Gives a notice for people when something is left.
    async fn wait_for(&self, id: OperationId, deadline: &Deadline) -> Result<Option<String>, Failure> {
        let mut changes = self.backend.watch_catalog();
        let ended = async {
            let has_ended = |catalog: &std::sync::Arc<Catalog>| match catalog.operations.get(&id) {
                Some(operation) => operation.phase.is_final() || operation.is_waiting(),
                // This node may not have seen it yet. If it has seen newer ones, it is forgotten.
                None => catalog.operations.last_key_value().is_some_and(|(newest, _)| *newest > id),
            };
            changes.wait_for(has_ended).await.map(|catalog| catalog.clone())
        };
        match tokio::time::timeout(deadline.left(), ended).await {
            Ok(Ok(catalog)) => result(id, catalog.operations.get(&id)),
            Ok(Err(_)) => Err(Failure::passing("57P03", "this node is shutting down", "ask another node")),
            Err(_) => self.give_up(id, deadline).await,
        }
    }

    /// The time is over: see that an operation that has not begun never does.
    async fn give_up(&self, id: OperationId, deadline: &Deadline) -> Result<Option<String>, Failure> {
        let phase = || self.backend.catalog().operations.get(&id).map(|operation| operation.phase);
        if phase() == Some(Phase::Pending) {
            let cancel = Command::CancelOperation { operation: id, at: self.backend.now_ms() };
            let cancelled = self.backend.command(cancel, CANCEL_TIME_MAX).await;
            if cancelled.is_ok() && phase() == Some(Phase::Pending) {
                return Err(Failure::passing(
                    "55006",
                    format!("the change waited {} ms behind other operations, as {id}", deadline.limit().as_millis()),
                    "nothing was done and it was cancelled: try again later; GET /operations shows what is going on",
                ));
            }
        }
        let catalog = self.backend.catalog();
        match catalog.operations.get(&id) {
            Some(operation) if operation.phase.is_final() || operation.is_waiting() => result(id, Some(operation)),
            _ => Err(Failure::new(
                "57014",
                format!("the change did not end within {} ms; it goes on as {id}", deadline.limit().as_millis()),
                format!("GET /operations/{id} shows how it ends; do not send it again before"),
            )),
        }
    }
}

/// How a decided operation is told.
fn result(id: OperationId, operation: Option<&Operation>) -> Result<Option<String>, Failure> {
    let Some(operation) = operation else {
        return Err(Failure::internal(format!("{id} is not in the journal any more")));
    };
    let awaited: Vec<String> = operation.waits_for.iter().map(ToString::to_string).collect();
    let awaited = awaited.join(" and ");
    if operation.phase == Phase::Successful {
        return Ok(None);
    }
    if operation.committed {
        return Ok(Some(format!("{awaited} can't be reached and follows when it is back; see GET /operations/{id}")));
    }
    if operation.cancel_requested {
        return Err(Failure::new("57014", format!("{id} was cancelled"), "nothing was done"));
    }
    let message = format!("{id} did not succeed: {}", operation.message);
    let hint = match awaited.is_empty() {
        true => format!("nothing was changed; GET /operations/{id} tells more"),
        false => format!(
            "the other shards are as before, and {awaited} takes the change back as soon as it can be reached; \
             GET /operations/{id} tells more"
        ),
    };
    let code = operation.code.clone().unwrap_or_else(|| "55000".to_owned());
    Err(match code.as_str() {
        "57P03" => Failure::passing("57P03", message, hint),
        _ => Failure::new(code, message, hint),
    })
}

fn reason(text: &str) -> String {
    let mut reason = text.trim().to_owned();
    if reason.len() > REASON_BYTES_MAX {
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        reason.push('…');
    }
    reason
}

fn done(catalog: &Catalog, touched: Touched, notice: Option<String>, operation: Option<OperationId>) -> Response {
    Response {
        output: Output::Effects(vec![Effect::default()]),
        touched,
        generation: catalog.generation,
        token: None,
        notice,
        operation,
        replayed: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_statement_is_cut_between_characters() {
        assert_eq!(reason(" DROP TABLE t "), "DROP TABLE t");
        let long = reason(&"ü".repeat(REASON_BYTES_MAX));
        assert!(long.len() <= REASON_BYTES_MAX + '…'.len_utf8() && long.ends_with('…'));
    }
}
