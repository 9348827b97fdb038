//! `/decisions`: what the autoscaler concluded, with all that it looked at. `/policy`: what it goes by.

use axum::Json;
use axum::extract::{Path, State};
use pleat_cluster::{Catalog, Decision, DecisionId, Mode, Policy, Strategy, Verdict};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::Query;
use super::problem::{ErrorBody, Problem};
use super::{App, list_limit};
use crate::time::rfc3339;

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
    /// `hold` or `split`.
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
    /// Only `hold` or only `split`.
    verdict: Option<String>,
    /// At most this many, newest first (100 unless told, at most 1,000).
    limit: Option<usize>,
}

/// List the autoscaler's decisions, newest first.
#[utoipa::path(get, path = "/decisions", tag = "decisions", params(ListQuery),
    responses((status = 200, body = DecisionsBody), (status = 400, body = ErrorBody)))]
pub async fn list(State(app): State<App>, Query(query): Query<ListQuery>) -> Result<Json<DecisionsBody>, Problem> {
    let wanted = match query.verdict.as_deref() {
        None => None,
        Some("hold") => Some(false),
        Some("split") => Some(true),
        Some(other) => {
            return Err(Problem::bad_request(format!("'{other}' is not a verdict"), "verdicts are hold and split"));
        }
    };
    let limit = list_limit(query.limit)?;
    let catalog = app.backend.catalog();
    let is_wanted =
        |decision: &&Decision| wanted.is_none_or(|split| split == matches!(decision.verdict, Verdict::Split { .. }));
    let decisions = catalog.decisions.values().rev().filter(is_wanted).take(limit).map(DecisionBody::from).collect();
    Ok(Json(DecisionsBody { decisions }))
}

/// Show one decision.
#[utoipa::path(get, path = "/decisions/{id}", tag = "decisions",
    params(("id" = String, Path, description = "`decision-7`, or `7`")),
    responses(
        (status = 200, body = DecisionBody), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<DecisionBody>, Problem> {
    let number = id
        .strip_prefix("decision-")
        .unwrap_or(&id)
        .parse()
        .map_err(|_| Problem::bad_request(format!("'{id}' is not a decision's id"), "ids look like decision-7"))?;
    let catalog = app.backend.catalog();
    let decision = catalog.decisions.get(&DecisionId(number)).ok_or_else(|| {
        let kept = Catalog::DECISIONS_KEPT_MAX;
        Problem::not_found(
            format!("there is no decision decision-{number}"),
            format!("GET /decisions lists them; the last {kept} are kept"),
        )
    })?;
    Ok(Json(DecisionBody::from(decision)))
}

/// The policy that the autoscaler follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PolicyBody {
    /// `automatic` or `manual`.
    pub mode: String,
    /// `hot` or `cold`.
    pub strategy: String,
    pub thresholds: ThresholdsBody,
    pub cooldown_ms: u64,
    pub monitoring_interval_ms: u64,
    pub max_shards: u32,
}

/// Above which load a shard is split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
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
            monitoring_interval_ms: policy.monitoring_interval_ms,
            max_shards: policy.max_shards,
        }
    }
}

/// Show the policy.
#[utoipa::path(get, path = "/policy", tag = "decisions", responses((status = 200, body = PolicyBody)))]
pub async fn policy(State(app): State<App>) -> Json<PolicyBody> {
    Json(PolicyBody::from(&app.backend.catalog().policy))
}
