//! `POST /tables/{table}/rows`: many rows at once.

mod batch;

use axum::Json;
use axum::extract::{self, Path, State};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::extract::{Query, body, client_key, media, milliseconds};
use super::problem::{ErrorBody, Problem, answer};
use crate::session::{BulkRequest, BulkResponse, Rejected};
use crate::settings::{BULK_BODY_BYTES_MAX, STATEMENT_TIMEOUT_MAX};
use batch::Batch;

/// The header that names a batch, like `batch_id`.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// How to take the rows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RowsQuery {
    /// Makes the batch exactly once, however often it is sent; also as the header `Idempotency-Key`.
    batch_id: Option<String>,
    /// The columns of rows that are arrays, separated by commas. Default: all that can be inserted, in order.
    columns: Option<String>,
    /// 30,000 unless told; at most 600,000.
    timeout_ms: Option<u64>,
}

/// A batch as one document. As NDJSON each line is a row.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RowsRequest {
    /// Of rows that are arrays. Default: all that can be inserted, in order.
    #[serde(default)]
    pub columns: Option<Vec<String>>,
    /// Arrays of values, or objects by column.
    pub rows: Vec<serde_json::Value>,
}

/// What a batch gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RowsResponse {
    pub table: String,
    pub inserted: u64,
    /// The rows that were not inserted, in order; all others were.
    pub rejected: Vec<RejectedBody>,
    pub shards: Vec<String>,
    /// The whole batch had been done before.
    pub replayed: bool,
    pub generation: u64,
}

/// A row that was not inserted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RejectedBody {
    /// Its number in the batch, from 0.
    pub row: u32,
    pub error: String,
    pub code: String,
}

/// A batch that was done in part, or not at all.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RowsError {
    #[serde(flatten)]
    pub error: ErrorBody,
    /// Rows that were inserted all the same.
    pub inserted: u64,
    pub rejected: Vec<RejectedBody>,
}

impl From<Rejected> for RejectedBody {
    fn from(rejected: Rejected) -> Self {
        Self { row: rejected.row, error: rejected.error, code: rejected.code }
    }
}

/// Insert many rows.
///
/// Rows are split by shard, and each part is done exactly once under the batch's id, also when shards move
/// before it is sent again. Rows that can't be inserted are named; the others are kept.
#[utoipa::path(post, path = "/tables/{table}/rows", tag = "tables",
    params(("table" = String, Path, description = "The table's name, in any case"), RowsQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "The batch's id, like `batch_id`")),
    request_body(content((RowsRequest = "application/json"), (String = "application/x-ndjson"))),
    responses(
        (status = 200, body = RowsResponse), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 408, body = ErrorBody), (status = 409, body = RowsError), (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody), (status = 503, body = RowsError), (status = 504, body = RowsError)))]
pub async fn insert(
    State(app): State<App>,
    Path(table): Path<String>,
    Query(query): Query<RowsQuery>,
    request: extract::Request,
) -> Result<Response, Problem> {
    let _permit = app.admit()?;
    let media = media(request.headers())?;
    let header = request.headers().get(IDEMPOTENCY_KEY).map(|key| key.to_str().map(str::to_owned));
    let header =
        header.transpose().map_err(|_| Problem::bad_request("Idempotency-Key is not text", "a UUID does well"))?;
    if header.is_some() && query.batch_id.is_some() && header != query.batch_id {
        return Err(Problem::bad_request(
            "batch_id and the header Idempotency-Key differ",
            "send one of them, or the same value in both",
        ));
    }
    let batch_id = client_key(query.batch_id.or(header), "batch_id")?;
    let timeout = milliseconds(query.timeout_ms.map(Into::into).as_ref(), "timeout_ms", STATEMENT_TIMEOUT_MAX)?;
    let columns = query.columns.map(|names| names.split(',').map(|name| name.trim().to_owned()).collect());
    let body = body(request, BULK_BODY_BYTES_MAX).await?;
    let batch = Batch::parse(media, &body, columns)?;
    drop(body);

    let Batch { columns, rows, rejected } = batch;
    let request = BulkRequest { table: table.clone(), columns, rows, batch_id, timeout };
    let done = app.executor.bulk(request).await.map_err(|failure| match failure.code.as_ref() {
        "42P01" => super::tables::unknown(&table),
        _ => Problem(failure),
    })?;
    app.metrics.bulk_inserted(done.inserted);
    Ok(respond(&app, table, done, rejected))
}

fn respond(app: &App, table: String, done: BulkResponse, unread: Vec<Rejected>) -> Response {
    let mut rejected: Vec<RejectedBody> = unread.into_iter().chain(done.rejected).map(RejectedBody::from).collect();
    rejected.sort_by_key(|rejected| rejected.row);
    if let Some(failure) = done.failure {
        app.metrics.failed(&failure.code);
        let body = RowsError { error: ErrorBody::from(&failure), inserted: done.inserted, rejected };
        return answer(&failure, Json(body));
    }
    Json(RowsResponse {
        table,
        inserted: done.inserted,
        rejected,
        shards: done.shards.iter().map(ToString::to_string).collect(),
        replayed: done.replayed,
        generation: done.generation,
    })
    .into_response()
}
