//! `/statements`: which statements take this node's time.

use std::cmp::Reverse;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::{ErrorBody, Problem};
use super::{App, list_limit};
use crate::statements::Figures;
use pleat_cluster::rfc3339;

/// Statements of one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatementsBody {
    /// The node that counted: each counts what was sent to it.
    pub node: String,
    /// When it began to count.
    pub since: String,
    pub statements: Vec<StatementFigures>,
}

/// What one statement took, over all its calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatementFigures {
    /// Its text, with `?` for each value.
    pub statement: String,
    pub calls: u64,
    pub errors: u64,
    /// Returned or changed.
    pub rows: u64,
    pub total_ms: f64,
    pub mean_ms: f64,
    /// From a histogram: up to a quarter too large.
    pub p95_ms: f64,
    pub max_ms: f64,
    /// Most shards of one call.
    pub shards: usize,
    /// Calls that several shards took part in.
    pub scattered: u64,
    pub first_called: String,
    pub last_called: String,
}

/// How many statements were forgotten.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ForgottenBody {
    pub node: String,
    pub forgotten: usize,
}

/// Which statements to list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// The largest first: `total` (the default), `mean`, `p95`, `max`, `calls`, `errors` or `rows`.
    pub order: Option<String>,
    /// 100 unless told; from 1 to 1000.
    pub limit: Option<usize>,
}

/// List the statements that took most of this node's time.
#[utoipa::path(get, path = "/statements", tag = "queries", params(Filter),
    responses((status = 200, body = StatementsBody), (status = 400, body = ErrorBody)))]
pub async fn list(State(app): State<App>, Query(filter): Query<Filter>) -> Result<Json<StatementsBody>, Problem> {
    let limit = list_limit(filter.limit)?;
    let rank = rank(filter.order.as_deref().unwrap_or("total"))?;
    let (mut known, since) = app.executor.statements().all();
    known.sort_by_cached_key(|(text, figures)| (Reverse(rank(figures)), text.clone()));
    let statements = known.iter().take(limit).map(|(text, figures)| show(text, figures)).collect();
    Ok(Json(StatementsBody { node: app.backend.node().to_string(), since: rfc3339(since), statements }))
}

/// Begin to count anew.
#[utoipa::path(delete, path = "/statements", tag = "queries", responses((status = 200, body = ForgottenBody)))]
pub async fn reset(State(app): State<App>) -> Json<ForgottenBody> {
    let forgotten = app.executor.statements().reset(app.backend.now_ms());
    Json(ForgottenBody { node: app.backend.node().to_string(), forgotten })
}

fn rank(order: &str) -> Result<fn(&Figures) -> u128, Problem> {
    Ok(match order {
        "total" => |figures| figures.total.as_nanos(),
        "mean" => |figures| figures.mean().as_nanos(),
        "p95" => |figures| figures.p95().as_nanos(),
        "max" => |figures| figures.max.as_nanos(),
        "calls" => |figures| figures.calls.into(),
        "errors" => |figures| figures.errors.into(),
        "rows" => |figures| figures.rows.into(),
        other => {
            return Err(Problem::bad_request(
                format!("order={other} is none"),
                "order is total, mean, p95, max, calls, errors or rows",
            ));
        }
    })
}

fn show(text: &str, figures: &Figures) -> StatementFigures {
    let millis = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    StatementFigures {
        statement: text.to_owned(),
        calls: figures.calls,
        errors: figures.errors,
        rows: figures.rows,
        total_ms: millis(figures.total),
        mean_ms: millis(figures.mean()),
        p95_ms: millis(figures.p95()),
        max_ms: millis(figures.max),
        shards: figures.shards,
        scattered: figures.scattered,
        first_called: rfc3339(figures.first_at),
        last_called: rfc3339(figures.last_at),
    }
}
