//! `POST /query`: statements in, rows out: one shard's answer, or several's.
//!
//! As one JSON document the result is collected first, up to a limit, so that a failure halfway is an error
//! with its status and nothing else. As NDJSON it is passed on while it arrives, in bounded memory.

use std::collections::BTreeMap;

use axum::extract::{self, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use pleat_cluster::Value;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use utoipa::ToSchema;

use super::extract::{Media, body, client_key, kind, media, milliseconds, object, text, unsupported};
use super::problem::{ErrorBody, Problem};
use super::value::from_json;
use super::{App, document, ndjson};
use crate::session::{Consistency, Output, Params, Request, Response as Answer, Token, Touched};
use crate::settings::{QUERY_BODY_BYTES_MAX, STATEMENT_TIMEOUT_MAX};

const FIELDS: [&str; 7] = ["query", "params", "consistency", "token", "idempotency_key", "timeout_ms", "session"];

/// A request. Values in `params` are JSON's own, and `{"base64": "…"}` for bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct QueryRequest {
    /// One statement; or several writes, separated by semicolons, that are done all or not at all.
    #[schema(example = "SELECT * FROM users WHERE user_id = ?")]
    pub query: String,
    /// An array for `?` and `?N`, or an object for `:name`, `@name` and `$name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Json>,
    /// `strong` (the default), `read_your_writes` (with a token) or `eventual`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<String>,
    /// The token of an earlier answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Makes a write exactly once, however often it is sent. At most 200 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// 30,000 unless told; at most 600,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// The session that it belongs to: as `POST /sessions/{id}/query`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// An answer: with `shard` when one shard gave it, with `shards` otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QueryResponse {
    /// The rows, as objects. Where columns share a name, the last one's value.
    pub data: Vec<Map<String, Json>>,
    #[serde(flatten)]
    pub trailer: Trailer,
    /// The columns in order.
    pub columns: Vec<String>,
    pub last_insert_id: Option<i64>,
    /// One per statement, when there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results: Option<Vec<StatementBody>>,
}

/// What an answer tells beside its rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Trailer {
    /// The shard that gave the answer, when it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    /// The shards that gave the answer, otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<Vec<String>>,
    pub rows_affected: u64,
    /// The catalog that it was routed by.
    pub generation: u64,
    /// After a write: send it along with `read_your_writes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
    /// The operation that changed the schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// The idempotency key had been seen: this is what it gave then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
}

/// What one of several statements gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatementBody {
    pub columns: Vec<String>,
    pub data: Vec<Map<String, Json>>,
    pub rows_affected: u64,
    pub last_insert_id: Option<i64>,
}

impl Trailer {
    /// Of an answer.
    pub fn of(answer: &Answer) -> Self {
        let (shard, shards) = match &answer.touched {
            Touched::One(shard) => (Some(shard.to_string()), None),
            Touched::Many(shards) => (None, Some(shards.iter().map(ToString::to_string).collect())),
        };
        let rows_affected = match &answer.output {
            Output::Rows { .. } => 0,
            Output::Effects(effects) => effects.iter().map(|effect| effect.rows_affected).sum(),
        };
        Self {
            shard,
            shards,
            rows_affected,
            generation: answer.generation,
            token: answer.token.as_ref().map(ToString::to_string),
            notice: answer.notice.clone(),
            operation: answer.operation.map(|id| id.to_string()),
            replayed: answer.replayed,
        }
    }
}

/// Run a statement.
///
/// With `Accept: application/x-ndjson` the answer is lines: `{"columns": […]}`, one array per row, and at the
/// end `{"rows": N, …}`, or an error if it failed halfway.
#[utoipa::path(post, path = "/query", tag = "queries", request_body = QueryRequest,
    responses(
        (status = 200, body = QueryResponse), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 408, body = ErrorBody), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody), (status = 422, body = ErrorBody), (status = 500, body = ErrorBody),
        (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
pub async fn query(State(app): State<App>, request: extract::Request) -> Result<Response, Problem> {
    answer_in(&app, None, request).await
}

/// Answer a query; in a session, when the path or the request names one.
pub(super) async fn answer_in(
    app: &App,
    session: Option<String>,
    request: extract::Request,
) -> Result<Response, Problem> {
    let permit = app.admit()?;
    let as_lines = accepts_ndjson(request.headers());
    let begun = tokio::time::Instant::now();
    let (request, named) = parse(request).await?;
    let limit = request.timeout.unwrap_or(app.settings.limits.statement_timeout);
    let answer = match session.or(named) {
        Some(session) => Box::pin(app.executor.execute_in(&session, request)).await,
        None => app.executor.execute(request).await,
    };
    let response = match answer {
        Ok(answer) if as_lines => {
            ndjson::response(answer, begun + limit, app.settings.limits.client_stall, permit).await
        }
        Ok(answer) => document::response(answer, app.settings.limits.json_result_bytes).await,
        Err(failure) => Err(failure),
    };
    response.map_err(|failure| {
        app.metrics.failed(&failure.code);
        Problem(failure)
    })
}

fn accepts_ndjson(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut types = accepted.flat_map(|value| value.split(',')).map(|part| part.split(';').next().unwrap_or("").trim());
    types.any(|name| {
        name.eq_ignore_ascii_case("application/x-ndjson") || name.eq_ignore_ascii_case("application/ndjson")
    })
}

/// The request, and the session that it names.
async fn parse(request: extract::Request) -> Result<(Request, Option<String>), Problem> {
    if media(request.headers())? != Media::Json {
        return Err(unsupported("POST /query takes one JSON object".to_owned()));
    }
    let body = body(request, QUERY_BODY_BYTES_MAX).await?;
    let mut map = object(&body, &FIELDS)?;
    let session = text(&mut map, "session")?;
    Ok((request_of(map)?, session))
}

fn request_of(mut map: Map<String, Json>) -> Result<Request, Problem> {
    let Some(query) = text(&mut map, "query")? else {
        return Err(Problem::bad_request("\"query\" is missing", "send {\"query\": \"SELECT …\"}"));
    };
    let token = text(&mut map, "token")?.map(|token| token.parse::<Token>()).transpose();
    let token =
        token.map_err(|error| Problem::bad_request(format!("\"token\" is {error}"), "leave it out to start"))?;
    let consistency = consistency(text(&mut map, "consistency")?.as_deref())?;
    if consistency == Consistency::ReadYourWrites && token.is_none() {
        return Err(Problem::bad_request(
            "\"consistency\": \"read_your_writes\" needs a \"token\"",
            "send the \"token\" of the write's answer, or use \"strong\"",
        ));
    }
    Ok(Request {
        text: query,
        params: params(map.remove("params"))?,
        consistency,
        token,
        idempotency_key: client_key(text(&mut map, "idempotency_key")?, "\"idempotency_key\"")?,
        timeout: milliseconds(map.get("timeout_ms"), "timeout_ms", STATEMENT_TIMEOUT_MAX)?,
        origin: "http",
    })
}

fn consistency(name: Option<&str>) -> Result<Consistency, Problem> {
    match name {
        None | Some("strong") => Ok(Consistency::Strong),
        Some("eventual") => Ok(Consistency::Eventual),
        Some("read_your_writes") => Ok(Consistency::ReadYourWrites),
        Some(other) => Err(Problem::bad_request(
            format!("\"consistency\" can't be \"{other}\""),
            "it is \"strong\", \"read_your_writes\" or \"eventual\"",
        )),
    }
}

fn params(json: Option<Json>) -> Result<Params, Problem> {
    let wrong = |name: String, error| Problem::bad_request(format!("parameter {name}: {error}"), "see /openapi.json");
    match json {
        None | Some(Json::Null) => Ok(Params::default()),
        Some(Json::Array(values)) => {
            let values = values.into_iter().zip(1..);
            let values = values.map(|(value, at)| from_json(value).map_err(|error| wrong(at.to_string(), error)));
            values.collect::<Result<Vec<Value>, _>>().map(Params::Positional)
        }
        Some(Json::Object(map)) => {
            let mut named = BTreeMap::new();
            for (name, value) in map {
                let value = from_json(value).map_err(|error| wrong(name.clone(), error))?;
                named.insert(name.trim_start_matches([':', '@', '$']).to_owned(), value);
            }
            Ok(Params::Named(named))
        }
        Some(other) => Err(Problem::bad_request(
            format!("\"params\" must be an array or an object, not {}", kind(&other)),
            "an array gives ? and ?N their values, an object gives :name theirs",
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(json: Json) -> String {
        let Json::Object(map) = json else { unreachable!("tests give objects") };
        request_of(map).unwrap_err().0.message
    }

    #[test]
    fn a_request_of_the_wrong_shape_is_told_what_is_wrong() {
        assert_eq!(refusal(json!({})), "\"query\" is missing");
        assert_eq!(refusal(json!({"query": 5})), "\"query\" must be a string, not a number");
        assert_eq!(
            refusal(json!({"query": "x", "params": "y"})),
            "\"params\" must be an array or an object, not a string"
        );
        assert_eq!(
            refusal(json!({"query": "x", "params": [1, [2]]})),
            "parameter 2: an array is not a value; to store JSON, send it as a string"
        );
        assert_eq!(refusal(json!({"query": "x", "consistency": "weak"})), "\"consistency\" can't be \"weak\"");
        assert!(refusal(json!({"query": "x", "consistency": "read_your_writes"})).contains("needs a \"token\""));
        assert!(refusal(json!({"query": "x", "token": "abc"})).contains("not a token"));
        for timeout in [json!(0), json!(-1), json!(1.5), json!("5"), json!(600_001)] {
            assert!(refusal(json!({"query": "x", "timeout_ms": timeout})).contains("from 1 to 600000"));
        }
        for key in [String::new(), "k".repeat(201)] {
            assert!(refusal(json!({"query": "x", "idempotency_key": key})).contains("from 1 to 200 bytes"));
        }
    }

    #[test]
    fn names_of_parameters_may_have_their_sigil() {
        let Json::Object(map) = json!({"query": "x", "params": {":a": 1, "b": {"base64": "AA=="}}}) else {
            unreachable!()
        };
        let named = BTreeMap::from([("a".to_owned(), Value::Integer(1)), ("b".to_owned(), Value::Blob(vec![0]))]);
        assert_eq!(request_of(map).unwrap().params, Params::Named(named));
    }

    #[test]
    fn lines_are_asked_for_by_accept() {
        let accepts =
            |text: &'static str| accepts_ndjson(&HeaderMap::from_iter([(header::ACCEPT, text.parse().unwrap())]));
        assert!(accepts("application/x-ndjson"));
        assert!(accepts("text/html, application/x-ndjson;q=0.9"));
        assert!(!accepts("application/json, */*"));
        assert!(!accepts_ndjson(&HeaderMap::new()));
    }
}
