//! `GET /metrics`: what Prometheus reads.

use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::App;
use super::problem::{ErrorBody, Problem};
use crate::metrics::Seen;
use crate::session::Failure;

/// The content type of the OpenMetrics text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// This node's metrics as Prometheus reads them.
#[utoipa::path(get, path = "/metrics", tag = "cluster",
    responses((status = 200, body = String, content_type = "application/openmetrics-text"), (status = 500, body = ErrorBody)))]
pub async fn metrics(State(app): State<App>) -> Result<Response, Problem> {
    let look = app.observer.look().await;
    let node = app.backend.node();
    let catalog = app.backend.catalog();
    let mut groups = vec![("control".to_owned(), app.backend.control_status())];
    for shard in catalog.shards.keys() {
        groups.extend(app.backend.shard_status(*shard).map(|status| (shard.to_string(), status)));
    }
    let uptime = Duration::from_millis(app.backend.now_ms().saturating_sub(app.backend.started_at_ms()));
    let observation = look.nodes.get(&node).and_then(|seen| seen.as_ref().ok());
    let room = app.executor.room();
    let seen = Seen { catalog: &catalog, observation, groups, uptime, room };
    let text = app.metrics.render(&seen).map_err(|error| Failure::internal(format!("writing the metrics: {error}")))?;
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response())
}
