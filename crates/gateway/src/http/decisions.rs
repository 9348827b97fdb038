//! `/decisions`: what the autoscaler concluded, with all that it looked at. `/policy`: what it goes by.

use axum::Json;
use axum::extract::{Path, Request, State};
use pleat_cluster::{
    Catalog, Command, CommandError, Decision, DecisionId, Mode, Policy, ScaleIn, Strategy, Thresholds, Verdict, rfc3339,
};
use pleat_host::HostError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json_};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Media, Query, body, media, object, unsupported};
use super::operations::OperationBody;
use super::problem::{CONFLICT, ErrorBody, Problem};
use super::{App, list_limit};
use crate::settings::STATUS_TIME_MAX;

/// One decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DecisionBody {
    #[schema(example = "decision-7")]
    pub id: String,
    pub at: String,
    /// The catalog that it was made on.
    pub generation: u64,
    /// `hot` or `cold`.
    pub strategy: String,
    /// `hold`, `split` or `merge`.
    pub verdict: String,
    pub reason: String,
    pub from: Option<String>,
    pub to: Option<String>,
    /// How many partitions move.
    pub partitions: Option<u32>,
    pub measurements: Vec<MeasurementBody>,
    pub options: Vec<OptionBody>,
    /// The operation that carries it out.
    pub operation: Option<String>,
}

/// A number that was looked at, and what it was held against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MeasurementBody {
    /// `shard-1` or `cluster`.
    pub subject: String,
    pub metric: String,
    pub value: f64,
    pub threshold: Option<f64>,
    pub exceeded: bool,
}

/// Something that could have been done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OptionBody {
    pub what: String,
    pub chosen: bool,
    pub why: String,
}

/// A list of decisions.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DecisionsBody {
    pub decisions: Vec<DecisionBody>,
}

impl From<&Decision> for DecisionBody {
    fn from(decision: &Decision) -> Self {
        let (verdict, from, to, partitions) = match &decision.verdict {
            Verdict::Hold { .. } => ("hold", None, None, None),
            Verdict::Split { from, to, partitions, .. } => ("split", Some(from), Some(to), Some(partitions.len())),
            Verdict::Merge { from, to, partitions, .. } => ("merge", Some(from), Some(to), Some(partitions.len())),
        };
        Self {
            id: decision.id.to_string(),
            at: rfc3339(decision.at),
            generation: decision.generation,
            strategy: strategy_name(decision.strategy).to_owned(),
            verdict: verdict.to_owned(),
            reason: decision.verdict.reason().to_owned(),
            from: from.map(ToString::to_string),
            to: to.map(ToString::to_string),
            partitions: partitions.map(|count| count as u32),
            measurements: (decision.measurements.iter())
                .map(|seen| MeasurementBody {
                    subject: seen.subject.clone(),
                    metric: seen.metric.clone(),
                    value: seen.value,
                    threshold: seen.threshold,
                    exceeded: seen.exceeded,
                })
                .collect(),
            options: (decision.options.iter())
                .map(|option| OptionBody { what: option.what.clone(), chosen: option.chosen, why: option.why.clone() })
                .collect(),
            operation: decision.operation.map(|id| id.to_string()),
        }
    }
}

fn strategy_name(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Hot => "hot",
        Strategy::Cold => "cold",
    }
}

/// Which decisions to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only `hold`, only `split` or only `merge`; `any` of the two that do something.
    verdict: Option<String>,
    /// At most this many, newest first (100 unless told, at most 1,000).
    limit: Option<usize>,
}

/// List the autoscaler's decisions, newest first.
#[utoipa::path(get, path = "/decisions", tag = "decisions", params(ListQuery),
    responses((status = 200, body = DecisionsBody), (status = 400, body = ErrorBody)))]
pub async fn list(State(app): State<App>, Query(query): Query<ListQuery>) -> Result<Json<DecisionsBody>, Problem> {
    let wanted: fn(&Verdict) -> bool = match query.verdict.as_deref() {
        None => |_| true,
        Some("hold") => |verdict| matches!(verdict, Verdict::Hold { .. }),
        Some("split") => |verdict| matches!(verdict, Verdict::Split { .. }),
        Some("merge") => |verdict| matches!(verdict, Verdict::Merge { .. }),
        Some("any") => |verdict| verdict.operation().is_some(),
        Some(other) => {
            let known = "verdicts are hold, split and merge; any is split or merge";
            return Err(Problem::bad_request(format!("'{other}' is not a verdict"), known));
        }
    };
    let limit = list_limit(query.limit)?;
    let catalog = app.backend.catalog();
    let is_wanted = |decision: &&Decision| wanted(&decision.verdict);
    let decisions = catalog.decisions.values().rev().filter(is_wanted).take(limit).map(DecisionBody::from).collect();
    Ok(Json(DecisionsBody { decisions }))
}

/// Show one decision.
#[utoipa::path(get, path = "/decisions/{id}", tag = "decisions",
    params(("id" = String, Path, description = "`decision-7`, or `7`")),
    responses(
        (status = 200, body = DecisionBody), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<DecisionBody>, Problem> {
    find(&app.backend.catalog(), &id).map(|decision| Json(DecisionBody::from(decision)))
}

fn find<'a>(catalog: &'a Catalog, id: &str) -> Result<&'a Decision, Problem> {
    let number = id
        .strip_prefix("decision-")
        .unwrap_or(id)
        .parse()
        .map_err(|_| Problem::bad_request(format!("'{id}' is not a decision's id"), "ids look like decision-7"))?;
    catalog.decisions.get(&DecisionId(number)).ok_or_else(|| {
        let kept = Catalog::DECISIONS_KEPT_MAX;
        Problem::not_found(
            format!("there is no decision decision-{number}"),
            format!("GET /decisions lists them; the last {kept} are kept"),
        )
    })
}

/// Have a recommendation carried out.
///
/// In manual mode a decision to split or to merge starts nothing by itself. It can be approved once, and as long as the cluster
/// is still as it was decided on.
#[utoipa::path(post, path = "/decisions/{id}/approve", tag = "decisions",
    params(("id" = String, Path, description = "`decision-7`, or `7`")),
    responses(
        (status = 200, body = OperationBody), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
pub async fn approve(State(app): State<App>, Path(id): Path<String>) -> Result<Json<OperationBody>, Problem> {
    let decision = find(&app.backend.catalog(), &id)?.id;
    let command = Command::ApproveDecision { decision, at: app.backend.now_ms() };
    let reply = match app.backend.command(command, STATUS_TIME_MAX).await {
        Ok(reply) => reply,
        Err(HostError::Command(CommandError::Invalid { what })) => {
            return Err(Problem::new(CONFLICT, what, "GET /decisions?verdict=any lists the recommendations"));
        }
        Err(error) => return Err(error.into()),
    };
    let catalog = app.backend.catalog();
    let operation = reply.operation.and_then(|id| catalog.operations.get(&id));
    let operation =
        operation.ok_or_else(|| Problem::not_found("its operation is not known here yet", "GET /operations"))?;
    Ok(Json(OperationBody::in_full(operation)))
}

/// The policy that the autoscaler follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyBody {
    /// `automatic` or `manual`.
    pub mode: String,
    /// `hot` or `cold`.
    pub strategy: String,
    pub thresholds: ThresholdsBody,
    /// After one action ended, how long no other is taken.
    pub cooldown_ms: u64,
    /// How many actions the autoscaler begins within `action_window_ms`, at most.
    pub max_actions: u32,
    /// 0: there is no such limit.
    pub action_window_ms: u64,
    pub monitoring_interval_ms: u64,
    /// The autoscaler merges no shard when there are no more than this many.
    pub min_shards: u32,
    /// No split goes beyond this many shards.
    pub max_shards: u32,
    pub scale_in: ScaleInBody,
}

/// When a shard that is not needed any more is merged into another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleInBody {
    pub enabled: bool,
    /// For how long a shard must have stayed below `below_percent`.
    pub after_ms: u64,
    /// Of each threshold.
    pub below_percent: f64,
    /// A shard that takes more bytes is not merged away.
    pub max_bytes: u64,
}

/// Above which load a shard is split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ThresholdsBody {
    pub cpu_percent: f64,
    pub memory_percent: f64,
    pub connections: u64,
    pub queries_per_second: f64,
    pub total_entries_per_shard: Option<u64>,
}

impl From<&Policy> for PolicyBody {
    fn from(policy: &Policy) -> Self {
        let thresholds = &policy.thresholds;
        Self {
            mode: match policy.mode {
                Mode::Automatic => "automatic",
                Mode::Manual => "manual",
            }
            .to_owned(),
            strategy: strategy_name(policy.strategy).to_owned(),
            thresholds: ThresholdsBody {
                cpu_percent: thresholds.cpu_percent,
                memory_percent: thresholds.memory_percent,
                connections: thresholds.connections,
                queries_per_second: thresholds.queries_per_second,
                total_entries_per_shard: thresholds.total_entries_per_shard,
            },
            cooldown_ms: policy.cooldown_ms,
            max_actions: policy.max_actions,
            action_window_ms: policy.action_window_ms,
            monitoring_interval_ms: policy.monitoring_interval_ms,
            min_shards: policy.min_shards,
            max_shards: policy.max_shards,
            scale_in: ScaleInBody {
                enabled: policy.scale_in.enabled,
                after_ms: policy.scale_in.after_ms,
                below_percent: policy.scale_in.below_percent,
                max_bytes: policy.scale_in.max_bytes,
            },
        }
    }
}

/// Show the policy.
#[utoipa::path(get, path = "/policy", tag = "decisions", responses((status = 200, body = PolicyBody)))]
pub async fn policy(State(app): State<App>) -> Json<PolicyBody> {
    Json(PolicyBody::from(&app.backend.catalog().policy))
}

/// Change the policy.
///
/// What the body leaves out stays as it is. It holds for the whole cluster, from the next look on.
#[utoipa::path(patch, path = "/policy", tag = "decisions",
    request_body(content = PolicyBody, description = "Any of the policy's fields, such as `{\"mode\": \"manual\"}`"),
    responses(
        (status = 200, body = PolicyBody), (status = 400, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn change(State(app): State<App>, request: Request) -> Result<Json<PolicyBody>, Problem> {
    if media(request.headers())? != Media::Json {
        return Err(unsupported("PATCH /policy takes one JSON object".to_owned()));
    }
    let changes = object(&body(request, POLICY_BODY_BYTES_MAX).await?, &FIELDS)?;
    let catalog = app.backend.fresh_catalog(STATUS_TIME_MAX).await?;
    let policy = changed(&catalog.policy, changes)?;
    let command = Command::SetPolicy { policy: policy.clone(), at: app.backend.now_ms() };
    app.backend.command(command, STATUS_TIME_MAX).await?;
    Ok(Json(PolicyBody::from(&policy)))
}

const POLICY_BODY_BYTES_MAX: usize = 16 * 1024;
const FIELDS: [&str; 10] = [
    "mode",
    "strategy",
    "thresholds",
    "cooldown_ms",
    "max_actions",
    "action_window_ms",
    "monitoring_interval_ms",
    "min_shards",
    "max_shards",
    "scale_in",
];

/// The policy with some of its fields changed.
fn changed(policy: &Policy, changes: Map<String, Json_>) -> Result<Policy, Problem> {
    let wrong = |what: String| Problem::bad_request(what, "GET /policy shows its fields and what they are");
    let mut fields = serde_json::to_value(PolicyBody::from(policy)).map_err(|error| wrong(error.to_string()))?;
    for (name, value) in changes {
        match (&mut fields[&name], value) {
            (Json_::Object(inner), Json_::Object(changes)) => inner.extend(changes),
            (field, value) => *field = value,
        }
    }
    let body: PolicyBody = serde_json::from_value(fields).map_err(|error| wrong(error.to_string()))?;
    let policy = Policy {
        mode: named(&body.mode, "mode", &[("automatic", Mode::Automatic), ("manual", Mode::Manual)])?,
        strategy: named(&body.strategy, "strategy", &[("hot", Strategy::Hot), ("cold", Strategy::Cold)])?,
        thresholds: Thresholds {
            cpu_percent: body.thresholds.cpu_percent,
            memory_percent: body.thresholds.memory_percent,
            connections: body.thresholds.connections,
            queries_per_second: body.thresholds.queries_per_second,
            total_entries_per_shard: body.thresholds.total_entries_per_shard,
        },
        cooldown_ms: body.cooldown_ms,
        max_actions: body.max_actions,
        action_window_ms: body.action_window_ms,
        monitoring_interval_ms: body.monitoring_interval_ms,
        min_shards: body.min_shards,
        max_shards: body.max_shards,
        scale_in: ScaleIn {
            enabled: body.scale_in.enabled,
            after_ms: body.scale_in.after_ms,
            below_percent: body.scale_in.below_percent,
            max_bytes: body.scale_in.max_bytes,
        },
        standbys: policy.standbys,
    };
    policy.check().map_err(wrong)?;
    Ok(policy)
}

fn named<T: Copy>(name: &str, field: &str, known: &[(&str, T)]) -> Result<T, Problem> {
    known.iter().find(|(known, _)| *known == name).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        Problem::bad_request(format!("\"{field}\" can't be \"{name}\""), format!("it is {}", names.join(" or ")))
    })
}
