//! `GET /health`: whether this node can serve.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pleat_cluster::{Catalog, ShardState};
use pleat_consensus::{DiskState, Status};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use crate::backend::Backend;

/// The status of a node whose disk is full.
const READ_ONLY: &str = "read_only";

/// A node's health.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HealthBody {
    /// `healthy`, `read_only` (the disk is full: the node takes no writes for its own shards, and reads go on), or `unhealthy`.
    pub status: String,
    /// Why it is not healthy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    #[schema(example = "node-1")]
    pub node: String,
    pub cluster_id: String,
    pub version: String,
    pub uptime_seconds: u64,
    pub control: ControlBody,
    pub shards: HostedBody,
    /// Whether the cluster has been set up.
    pub initialised: bool,
    /// This node's catalog.
    pub generation: u64,
}

/// The control group as this node sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ControlBody {
    pub leader: Option<String>,
    pub term: u64,
    /// Whether this node leads it.
    pub is_leader: bool,
}

/// The shard replicas of this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostedBody {
    /// How many the catalog places here.
    pub hosted: u32,
    /// How many of them run and know a leader.
    pub ready: u32,
}

/// Look at a node.
pub fn body(backend: &dyn Backend, version: &str) -> HealthBody {
    let catalog = backend.catalog();
    let control = backend.control_status();
    let mut reasons = Vec::new();
    if !catalog.is_initialised() {
        reasons.push("the cluster is not set up yet: it is as soon as all of its founding nodes run".to_owned());
    }
    reasons.extend(trouble("the control group", Some(&control)));
    let shards = shards(backend, &catalog, &mut reasons);
    let disk = backend.disk();
    let status = match disk.state() {
        DiskState::Room if reasons.is_empty() => "healthy",
        DiskState::Full { .. } if reasons.is_empty() => READ_ONLY,
        _ => "unhealthy",
    };
    reasons.extend(disk.trouble());
    HealthBody {
        status: status.to_owned(),
        reasons,
        node: backend.node().to_string(),
        cluster_id: catalog.cluster_id.clone(),
        version: version.to_owned(),
        uptime_seconds: backend.now_ms().saturating_sub(backend.started_at_ms()) / 1_000,
        control: ControlBody {
            leader: control.leader.map(|leader| leader.to_string()),
            term: control.term,
            is_leader: control.is_leader,
        },
        shards,
        initialised: catalog.is_initialised(),
        generation: catalog.generation,
    }
}

fn shards(backend: &dyn Backend, catalog: &Catalog, reasons: &mut Vec<String>) -> HostedBody {
    let node = backend.node();
    let here = catalog.shards.values().filter(|shard| shard.replicas.contains(&node));
    let mut hosted = HostedBody { hosted: 0, ready: 0 };
    for shard in here.filter(|shard| shard.state == ShardState::Active) {
        hosted.hosted += 1;
        match trouble(&shard.id.to_string(), backend.shard_status(shard.id).as_ref()) {
            None => hosted.ready += 1,
            Some(reason) => reasons.push(reason),
        }
    }
    hosted
}

fn trouble(group: &str, status: Option<&Status>) -> Option<String> {
    match status {
        None => Some(format!("the replica of {group} does not run yet")),
        Some(Status { stopped: Some(why), .. }) => Some(format!("the replica of {group} has stopped: {why}")),
        Some(Status { leader: None, .. }) => Some(format!("{group} has no leader that this node knows")),
        Some(_) => None,
    }
}

/// Whether this node can serve.
#[utoipa::path(get, path = "/health", tag = "cluster",
    responses((status = 200, body = HealthBody), (status = 503, body = HealthBody)))]
pub async fn health(State(app): State<App>) -> Response {
    let body = body(app.backend.as_ref(), &app.settings.version);
    // Whoever sends reads by this shall go on sending them to a node that is full.
    let serves = body.reasons.is_empty() || body.status == READ_ONLY;
    let status = if serves { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}
