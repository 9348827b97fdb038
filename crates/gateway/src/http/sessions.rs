//! `/sessions`: requests that belong together, and transactions over several of them.

use std::time::Duration;

use axum::Json;
use axum::extract::{self, Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::extract::{Media, body, media, milliseconds, object, unsupported};
use super::problem::{ErrorBody, Problem};
use super::query::{QueryRequest, QueryResponse, answer_in};
use super::txns::OpenTxnBody;
use crate::session::{SessionInfo, SessionOptions};
use crate::settings::{QUERY_BODY_BYTES_MAX, SESSION_IDLE_MAX};
use pleat_cluster::rfc3339;

/// How a session is opened.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct SessionRequest {
    /// How long it may stay unused, in milliseconds: 300,000 unless told; at most 3,600,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionBody {
    /// What its requests name. It belongs to the node that opened it.
    #[schema(example = "node-1.0f8fad5bd9cb469fa16570867728950e")]
    pub session: String,
    pub node: String,
    pub opened: String,
    /// How long it has been unused, in milliseconds.
    pub unused_ms: u64,
    /// After how long it expires.
    pub idle_ms: u64,
    /// The transaction that is open in it.
    pub transaction: Option<OpenTxnBody>,
}

/// Sessions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionsBody {
    pub sessions: Vec<SessionBody>,
}

impl SessionBody {
    fn of(app: &App, info: SessionInfo) -> Self {
        Self {
            session: info.id,
            node: app.backend.node().to_string(),
            opened: rfc3339(info.opened),
            unused_ms: info.unused.as_millis() as u64,
            idle_ms: info.idle.as_millis() as u64,
            transaction: info.txn.as_ref().map(OpenTxnBody::from),
        }
    }
}

/// Open a session on this node.
#[utoipa::path(post, path = "/sessions", tag = "sessions", request_body = SessionRequest,
    responses(
        (status = 201, body = SessionBody), (status = 400, body = ErrorBody), (status = 408, body = ErrorBody),
        (status = 413, body = ErrorBody), (status = 415, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn open(
    State(app): State<App>,
    request: extract::Request,
) -> Result<(StatusCode, Json<SessionBody>), Problem> {
    if media(request.headers())? != Media::Json {
        return Err(unsupported("POST /sessions takes a JSON object, or nothing".to_owned()));
    }
    let body = body(request, QUERY_BODY_BYTES_MAX).await?;
    let map = if body.is_empty() { serde_json::Map::new() } else { object(&body, &["idle_ms"])? };
    let idle: Option<Duration> = milliseconds(map.get("idle_ms"), "idle_ms", SESSION_IDLE_MAX)?;
    let info = app.executor.open_session(SessionOptions { idle })?;
    Ok((StatusCode::CREATED, Json(SessionBody::of(&app, info))))
}

/// List the sessions that are open on this node.
#[utoipa::path(get, path = "/sessions", tag = "sessions", responses((status = 200, body = SessionsBody)))]
pub async fn list(State(app): State<App>) -> Json<SessionsBody> {
    let sessions = app.executor.sessions().into_iter().map(|info| SessionBody::of(&app, info));
    Json(SessionsBody { sessions: sessions.collect() })
}

/// Close a session. A transaction that is open in it is rolled back.
#[utoipa::path(delete, path = "/sessions/{id}", tag = "sessions",
    params(("id" = String, Path, description = "the session")),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub async fn close(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    app.executor.close_session(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Run a statement in a session.
///
/// As `POST /query`, and also `BEGIN`, `COMMIT`, `ROLLBACK`, `SAVEPOINT`, `RELEASE` and `ROLLBACK TO`.
#[utoipa::path(post, path = "/sessions/{id}/query", tag = "sessions", request_body = QueryRequest,
    params(("id" = String, Path, description = "the session")),
    responses(
        (status = 200, body = QueryResponse), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 408, body = ErrorBody), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody), (status = 422, body = ErrorBody), (status = 500, body = ErrorBody),
        (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
pub async fn query(
    State(app): State<App>,
    Path(id): Path<String>,
    request: extract::Request,
) -> Result<Response, Problem> {
    answer_in(&app, Some(id), request).await
}
