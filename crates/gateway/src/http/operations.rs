//! `/operations`: the journal of every change of the cluster.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, Request, State};
use pleat_cluster::{
    Catalog, Cause, Command, CommandError, DdlEffect, Digest, Operation, OperationId, OperationKind, Phase, Receipt,
    ShardId, TableChange, TableKind, TableReceipt, rfc3339,
};
use pleat_host::{HostError, Progress};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json_;
use utoipa::{IntoParams, ToSchema};

use super::extract::{Media, Query, body, media, object, unsupported};
use super::problem::{CONFLICT, ErrorBody, Problem};
use super::{App, list_limit};
use crate::settings::{PROGRESS_TIME_MAX, STATUS_TIME_MAX};

/// An end that is further away than this, in milliseconds since 1970 (the year 9999), is none.
const ENDS_MAX: u64 = 253_370_764_800_000;

/// One entry of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationBody {
    #[schema(example = "op-3")]
    pub id: String,
    /// `split`, `move`, `merge`, `ddl` or `rebuild`.
    pub kind: String,
    /// `Pending`, `Progressing`, `Successful`, `Failed` or `Skipped`.
    pub phase: String,
    #[schema(example = "split 64 partitions of shard-1 to shard-2")]
    pub description: String,
    pub from: Option<String>,
    pub to: Option<String>,
    /// How many partitions move.
    pub partitions: Option<u32>,
    /// Which ones; only where one operation is shown.
    pub partition_ids: Option<Vec<u32>>,
    pub table: Option<String>,
    pub sql: Option<String>,
    pub cause: CauseBody,
    pub reason: String,
    pub steps: Vec<StepBody>,
    /// Past the point of no return.
    pub committed: bool,
    /// It does not happen; what it did is taken back.
    pub given_up: bool,
    /// Shards that can't be reached and on which something is left to do.
    pub waits_for: Vec<String>,
    pub cancel_requested: bool,
    /// How it ended, or why it was given up; empty until then.
    pub message: String,
    /// The SQLSTATE of that failure, where it has one.
    #[schema(example = "23505")]
    pub code: Option<String>,
    /// Where rows move: what was carried, and whether both sides agree. Kept also when they differ, which refuses the
    /// hand-over.
    pub receipt: Option<ReceiptBody>,
    /// How far the step at hand is, while it is under way and its leader answers.
    pub progress: Option<ProgressBody>,
    pub created: String,
    pub updated: String,
}

/// Who or what asked for an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CauseBody {
    /// `decision` or `request`.
    pub kind: String,
    /// The decision.
    pub id: Option<String>,
    /// Through which interface it was requested.
    pub by: Option<String>,
}

/// How far the step at hand is. Asked of the leader that carries the operation out; it is not journaled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProgressBody {
    #[schema(example = "copy")]
    pub step: String,
    #[schema(example = "in table flights")]
    pub detail: String,
    pub begun: String,
    pub rows: u64,
    pub bytes: u64,
    /// About how many there are, where that is known.
    pub rows_total: Option<u64>,
    pub bytes_total: Option<u64>,
    /// Over the last ten seconds.
    pub rows_per_second: Option<f64>,
    pub bytes_per_second: Option<f64>,
    /// When the step will have ended at this rate.
    pub estimated_end: Option<String>,
}

/// What a move has carried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReceiptBody {
    /// Rows brought from a snapshot.
    pub rows_copied: u64,
    /// Rows and deletions brought afterwards.
    pub rows_changed: u64,
    /// Bytes of values of both.
    pub bytes: u64,
    /// Whether source and target were the same when they were compared.
    pub agrees: bool,
    pub source: DigestBody,
    pub target: DigestBody,
    /// The first tables: those that differ, then the others.
    pub tables: Vec<TableReceiptBody>,
    /// For how long writes were expected to wait.
    pub pause_predicted_ms: u64,
    /// For how long they did, once they can go on.
    pub pause_ms: Option<u64>,
}

/// How many rows there are, and the sum of their hashes in hexadecimal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DigestBody {
    pub rows: u64,
    #[schema(example = "00c0ffee00c0ffee")]
    pub sum: String,
}

/// One table of a receipt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TableReceiptBody {
    pub table: String,
    pub source: DigestBody,
    pub target: DigestBody,
}

/// One journaled step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepBody {
    pub name: String,
    pub begun: String,
    pub ended: Option<String>,
    pub detail: String,
}

/// A list of operations.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OperationsBody {
    pub operations: Vec<OperationBody>,
}

impl From<&Operation> for OperationBody {
    fn from(operation: &Operation) -> Self {
        let (from, to, ids) = match operation.kind.moves() {
            Some((from, to, partitions)) => (Some(from), Some(to), Some(partitions)),
            None => (None, None, None),
        };
        let (table, sql) = match &operation.kind {
            OperationKind::Ddl { effect, sql, .. } => (Some(effect.table().to_owned()), Some(sql.clone())),
            _ => (None, None),
        };
        let (cause, id, by) = match &operation.cause {
            Cause::Decision(id) => ("decision", Some(id.to_string()), None),
            Cause::Request(by) => ("request", None, Some(by.clone())),
        };
        Self {
            id: operation.id.to_string(),
            kind: operation.kind.name().to_owned(),
            phase: phase_name(operation.phase).to_owned(),
            description: describe(&operation.kind),
            from: from.map(|shard| shard.to_string()),
            to: to.map(|shard| shard.to_string()),
            partitions: ids.map(|ids| ids.len() as u32),
            partition_ids: None,
            table,
            sql,
            cause: CauseBody { kind: cause.to_owned(), id, by },
            reason: operation.reason.clone(),
            steps: operation.steps.iter().map(StepBody::from).collect(),
            committed: operation.committed,
            given_up: operation.given_up,
            waits_for: operation.waits_for.iter().map(ToString::to_string).collect(),
            cancel_requested: operation.cancel_requested,
            message: operation.message.clone(),
            code: operation.code.clone(),
            receipt: operation.receipt.as_deref().map(ReceiptBody::from),
            progress: None,
            created: rfc3339(operation.created),
            updated: rfc3339(operation.updated),
        }
    }
}

impl From<&pleat_cluster::Step> for StepBody {
    fn from(step: &pleat_cluster::Step) -> Self {
        Self {
            name: step.name.clone(),
            begun: rfc3339(step.begun),
            ended: step.ended.map(rfc3339),
            detail: step.detail.clone(),
        }
    }
}

impl From<&Receipt> for ReceiptBody {
    fn from(receipt: &Receipt) -> Self {
        let table = |table: &TableReceipt| TableReceiptBody {
            table: table.table.clone(),
            source: table.source.into(),
            target: table.target.into(),
        };
        Self {
            rows_copied: receipt.copied,
            rows_changed: receipt.changed,
            bytes: receipt.bytes,
            agrees: receipt.agrees(),
            source: receipt.source.into(),
            target: receipt.target.into(),
            tables: receipt.tables.iter().map(table).collect(),
            pause_predicted_ms: receipt.pause_predicted_ms,
            pause_ms: receipt.pause_ms,
        }
    }
}

impl From<&Progress> for ProgressBody {
    fn from(progress: &Progress) -> Self {
        Self {
            step: progress.step.clone(),
            detail: progress.detail.clone(),
            begun: rfc3339(progress.begun),
            rows: progress.rows,
            bytes: progress.bytes,
            rows_total: progress.rows_total,
            bytes_total: progress.bytes_total,
            rows_per_second: progress.rows_per_second,
            bytes_per_second: progress.bytes_per_second,
            estimated_end: progress.ends.filter(|ends| *ends < ENDS_MAX).map(rfc3339),
        }
    }
}

impl From<Digest> for DigestBody {
    fn from(digest: Digest) -> Self {
        Self { rows: digest.rows, sum: format!("{:016x}", digest.sum) }
    }
}

impl OperationBody {
    fn with_progress(self, progress: &BTreeMap<OperationId, Progress>) -> Self {
        let known = progress.iter().find(|(id, _)| id.to_string() == self.id).map(|(_, progress)| progress.into());
        Self { progress: known, ..self }
    }

    /// With the partitions named.
    pub(super) fn in_full(operation: &Operation) -> Self {
        let moved = operation.kind.moves();
        let partition_ids = moved.map(|(_, _, partitions)| partitions.iter().map(|partition| partition.0).collect());
        Self { partition_ids, ..Self::from(operation) }
    }
}

/// A phase's name, as the journal has it.
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "Pending",
        Phase::Progressing => "Progressing",
        Phase::Successful => "Successful",
        Phase::Failed => "Failed",
        Phase::Skipped => "Skipped",
    }
}

/// What an operation changes, in one line.
fn describe(kind: &OperationKind) -> String {
    let count = |n: usize| if n == 1 { "1 partition".to_owned() } else { format!("{n} partitions") };
    match kind {
        OperationKind::Split { from, to, partitions } => {
            format!("split {} of {from} to {to}", count(partitions.len()))
        }
        OperationKind::Move { from, to, partitions } => {
            format!("move {} of {from} to {to}", count(partitions.len()))
        }
        OperationKind::Merge { from, to, partitions } => {
            format!("merge {from} ({}) into {to}", count(partitions.len()))
        }
        OperationKind::Rebuild { node, shard: Some(shard) } => format!("rebuild the replica of {shard} on {node}"),
        OperationKind::Promote { shard, to, .. } => format!("make the standby of {shard} on {to} its primary"),
        OperationKind::Rebuild { node, shard: None } => format!("rebuild all replicas on {node}"),
        OperationKind::Ddl { effect, .. } => match effect {
            DdlEffect::CreateTable(table) => format!("create {} table {}", table.kind_name(), table.name),
            DdlEffect::DropTable { table } => format!("drop table {table}"),
            DdlEffect::CreateIndex { table, index } => format!("create index {} on {table}", index.name),
            DdlEffect::DropIndex { table, index } => format!("drop index {index} of {table}"),
            DdlEffect::AddColumn { table, column, .. } => format!("add column {} to {table}", column.name),
            DdlEffect::PlaceTable { before, after } => {
                format!("place table {}: {} to {}", before.name, placed(&before.kind), placed(&after.kind))
            }
            DdlEffect::CreateTrigger { table, trigger, .. } => format!("create trigger {} on {table}", trigger.name),
            DdlEffect::DropTrigger { table, trigger } => format!("drop trigger {trigger} of {table}"),
            DdlEffect::CreateView(view) => format!("create view {}", view.name),
            DdlEffect::DropView { view } => format!("drop view {view}"),
            DdlEffect::Servers { about, .. } => about.clone(),
            DdlEffect::PlaceOnServers { changes, .. } => {
                let each = changes.iter().filter_map(|TableChange { before, after }| {
                    let (before, after) = (before.as_ref()?, after.as_ref()?);
                    Some(format!("{}: {} to {}", before.name, placed(&before.kind), placed(&after.kind)))
                });
                format!("place tables: {}", each.collect::<Vec<_>>().join("; "))
            }
            DdlEffect::AlterTable { before, statement, .. } => format!("alter table {}: {statement}", before.name),
        },
    }
}

/// A placement, as the statement says it.
fn placed(kind: &TableKind) -> String {
    match kind {
        TableKind::Sharded { key, .. } => format!("SHARD BY ({key})"),
        TableKind::Reference => "REFERENCE".to_owned(),
        TableKind::Single { shard } => format!("SINGLE, on {shard}"),
    }
}

/// Which operations to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only these phases, separated by commas, in any case.
    phase: Option<String>,
    /// At most this many, newest first (100 unless told, at most 1,000).
    limit: Option<usize>,
}

/// List operations, newest first.
#[utoipa::path(get, path = "/operations", tag = "operations", params(ListQuery),
    responses((status = 200, body = OperationsBody), (status = 400, body = ErrorBody)))]
pub async fn list(State(app): State<App>, Query(query): Query<ListQuery>) -> Result<Json<OperationsBody>, Problem> {
    let phases = query.phase.as_deref().map(phases).transpose()?;
    let limit = list_limit(query.limit)?;
    let catalog = app.backend.catalog();
    let wanted = |operation: &&Operation| phases.as_ref().is_none_or(|phases| phases.contains(&operation.phase));
    let wanted: Vec<_> = catalog.operations.values().rev().filter(wanted).take(limit).collect();
    let progress = progress(&app, &wanted).await;
    let body = |operation: &&Operation| OperationBody::from(*operation).with_progress(&progress);
    Ok(Json(OperationsBody { operations: wanted.iter().map(body).collect() }))
}

/// How far these are, if one of them is under way. That the leader can't be asked is no reason not to show the journal.
async fn progress(app: &App, operations: &[&Operation]) -> BTreeMap<OperationId, Progress> {
    match operations.iter().any(|operation| operation.phase == Phase::Progressing) {
        true => app.backend.progress(PROGRESS_TIME_MAX).await.unwrap_or_default(),
        false => BTreeMap::new(),
    }
}

fn phases(text: &str) -> Result<Vec<Phase>, Problem> {
    const ALL: [Phase; 5] = [Phase::Pending, Phase::Progressing, Phase::Successful, Phase::Failed, Phase::Skipped];
    let find = |name: &str| ALL.into_iter().find(|phase| phase_name(*phase).eq_ignore_ascii_case(name.trim()));
    text.split(',')
        .map(|name| {
            find(name).ok_or_else(|| {
                Problem::bad_request(
                    format!("'{name}' is not a phase"),
                    "phases are Pending, Progressing, Successful, Failed and Skipped",
                )
            })
        })
        .collect()
}

/// What is asked for.
#[derive(Debug, Deserialize, ToSchema)]
pub struct BeginBody {
    /// `merge`: all that `from` owns goes to `to`, and `from` is taken down.
    #[schema(example = "merge")]
    pub kind: String,
    #[schema(example = "shard-3")]
    pub from: String,
    /// Left out: the other shard with the fewest partitions.
    #[schema(example = "shard-1")]
    pub to: Option<String>,
}

const BEGIN_BODY_BYTES_MAX: usize = 16 * 1024;

/// Begin an operation by hand.
///
/// It is carried out like one that the autoscaler has decided on, and neither its limits nor its mode matter. The answer comes when
/// it has begun; `GET /operations/{id}` tells how it stands.
#[utoipa::path(post, path = "/operations", tag = "operations", request_body = BeginBody,
    responses(
        (status = 200, body = OperationBody), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 413, body = ErrorBody), (status = 415, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub async fn begin(State(app): State<App>, request: Request) -> Result<Json<OperationBody>, Problem> {
    if media(request.headers())? != Media::Json {
        return Err(unsupported("POST /operations takes one JSON object".to_owned()));
    }
    let asked = object(&body(request, BEGIN_BODY_BYTES_MAX).await?, &["kind", "from", "to"])?;
    let hint = "send {\"kind\": \"merge\", \"from\": \"shard-3\"}, with \"to\" to name the shard that gets its data";
    let wrong = |what: String| Problem::bad_request(what, hint);
    let asked: BeginBody =
        serde_json::from_value(Json_::Object(asked)).map_err(|error| wrong(format!("the body: {error}")))?;
    if asked.kind != "merge" {
        return Err(wrong(format!("'{}' is no operation that can be asked for here", asked.kind)));
    }
    let shard = |name: &str| name.parse::<ShardId>().map_err(wrong);
    let from = shard(&asked.from)?;
    let to = asked.to.as_deref().map(shard).transpose()?;
    let catalog = app.backend.fresh_catalog(STATUS_TIME_MAX).await?;
    let kind = merge(&catalog, from, to)?;
    let (cause, at) = (Cause::Request("http".to_owned()), app.backend.now_ms());
    let command = Command::StartOperation { kind, cause, reason: "asked for by hand".to_owned(), at };
    let reply = match app.backend.command(command, STATUS_TIME_MAX).await {
        Ok(reply) => reply,
        Err(HostError::Command(CommandError::Invalid { what } | CommandError::Busy { what })) => {
            return Err(Problem::new(CONFLICT, what, "GET /operations shows what is under way"));
        }
        Err(error) => return Err(error.into()),
    };
    let catalog = app.backend.catalog();
    let operation = reply.operation.and_then(|id| catalog.operations.get(&id));
    let operation =
        operation.ok_or_else(|| Problem::not_found("it has begun, but is not known here yet", "GET /operations"))?;
    Ok(Json(OperationBody::in_full(operation)))
}

fn merge(catalog: &Catalog, from: ShardId, to: Option<ShardId>) -> Result<OperationKind, Problem> {
    let is_active = |shard: ShardId| catalog.active_shards().any(|active| active.id == shard);
    if let Some(unknown) = [Some(from), to].into_iter().flatten().find(|shard| !is_active(*shard)) {
        return Err(Problem::not_found(format!("there is no active {unknown}"), "GET /shards lists them"));
    }
    let others = catalog.active_shards().map(|shard| shard.id).filter(|shard| *shard != from);
    let lightest = || others.min_by_key(|shard| (catalog.partitions_of(*shard).len(), *shard));
    let Some(to) = to.or_else(lightest) else {
        let what = format!("{from} is the only shard; the last one never goes");
        return Err(Problem::new(CONFLICT, what, "GET /shards lists them"));
    };
    Ok(OperationKind::Merge { from, to, partitions: catalog.partitions_of(from) })
}

/// Show one operation.
#[utoipa::path(get, path = "/operations/{id}", tag = "operations",
    params(("id" = String, Path, description = "`op-3`, or `3`")),
    responses(
        (status = 200, body = OperationBody), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<OperationBody>, Problem> {
    let catalog = app.backend.catalog();
    let operation = find(&catalog, &id)?;
    let progress = progress(&app, &[operation]).await;
    Ok(Json(OperationBody::in_full(operation).with_progress(&progress)))
}

/// Ask an operation to stop.
///
/// It stops at once, and what it did is undone. Past its point of no return it can't be stopped.
#[utoipa::path(post, path = "/operations/{id}/cancel", tag = "operations",
    params(("id" = String, Path, description = "`op-3`, or `3`")),
    responses(
        (status = 200, body = OperationBody), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn cancel(State(app): State<App>, Path(id): Path<String>) -> Result<Json<OperationBody>, Problem> {
    let catalog = app.backend.catalog();
    let operation = find(&catalog, &id)?;
    refuse_if_past(operation)?;
    let command = Command::CancelOperation { operation: operation.id, at: app.backend.now_ms() };
    match app.backend.command(command, STATUS_TIME_MAX).await {
        Ok(_) => {}
        // It ended while we asked.
        Err(HostError::Command(CommandError::Invalid { what })) => return Err(too_late(what)),
        Err(error) => return Err(error.into()),
    }
    let catalog = app.backend.catalog();
    find(&catalog, &id).map(|operation| Json(OperationBody::in_full(operation)))
}

fn refuse_if_past(operation: &Operation) -> Result<(), Problem> {
    if operation.phase.is_final() {
        return Err(too_late(format!("{} has ended ({})", operation.id, phase_name(operation.phase))));
    }
    if operation.committed {
        return Err(too_late(format!("{} is past its point of no return", operation.id)));
    }
    if operation.given_up {
        return Err(too_late(format!("{} was given up and is being taken back", operation.id)));
    }
    Ok(())
}

fn too_late(what: String) -> Problem {
    Problem::new(CONFLICT, what, "only an operation that has not been committed can be cancelled")
}

fn find<'a>(catalog: &'a Catalog, id: &str) -> Result<&'a Operation, Problem> {
    let number = id
        .strip_prefix("op-")
        .unwrap_or(id)
        .parse()
        .map_err(|_| Problem::bad_request(format!("'{id}' is not an operation's id"), "ids look like op-3"))?;
    catalog.operations.get(&OperationId(number)).ok_or_else(|| {
        let kept = Catalog::OPERATIONS_KEPT_MAX;
        Problem::not_found(
            format!("there is no operation op-{number}"),
            format!("GET /operations lists them; the last {kept} are kept"),
        )
    })
}
