//! Errors as clients see them: `{"error", "code", "hint", "retryable"}` with a fitting status.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::session::{Failure, IDEMPOTENCY_CONFLICT, OVERLOADED};

/// What a client is told to wait before it asks again, in seconds.
const RETRY_AFTER_SECONDS: &str = "1";

pub const BAD_JSON: &str = "bad_json";
pub const BAD_REQUEST: &str = "bad_request";
pub const NOT_FOUND: &str = "not_found";
pub const METHOD_NOT_ALLOWED: &str = "method_not_allowed";
pub const BODY_TOO_LARGE: &str = "body_too_large";
pub const REQUEST_TIMEOUT: &str = "request_timeout";
pub const UNSUPPORTED_MEDIA_TYPE: &str = "unsupported_media_type";
pub const CONFLICT: &str = "conflict";

/// A failed request's answer.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What was wrong.
    #[schema(example = "table flights does not exist")]
    pub error: String,
    /// A SQLSTATE, or a short word for what is not SQL's business.
    #[schema(example = "42P01")]
    pub code: String,
    /// What to do about it.
    pub hint: String,
    /// Whether the very same request may be sent again, and may succeed then.
    pub retryable: bool,
    /// The limit that was reached, if it is that: the name of its setting where there is one. The guide lists them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "limits.spill_bytes")]
    pub limit: Option<String>,
    /// Where in the statement, when it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
}

/// A place in a statement, counted from 1.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Position {
    pub line: u64,
    pub column: u64,
}

impl From<&Failure> for ErrorBody {
    fn from(failure: &Failure) -> Self {
        Self {
            error: failure.message.clone(),
            code: failure.code.to_string(),
            hint: failure.hint.clone(),
            retryable: failure.retryable,
            limit: failure.limit.map(str::to_owned),
            position: failure.position.map(|(line, column)| Position { line, column }),
        }
    }
}

/// The HTTP status that tells a failure best.
pub fn status_of(failure: &Failure) -> StatusCode {
    match failure.code.as_ref() {
        NOT_FOUND => StatusCode::NOT_FOUND,
        METHOD_NOT_ALLOWED => StatusCode::METHOD_NOT_ALLOWED,
        BODY_TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        REQUEST_TIMEOUT => StatusCode::REQUEST_TIMEOUT,
        UNSUPPORTED_MEDIA_TYPE => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        OVERLOADED => StatusCode::SERVICE_UNAVAILABLE,
        CONFLICT | IDEMPOTENCY_CONFLICT | "42P07" | "42701" | "42710" => StatusCode::CONFLICT,
        "08003" => StatusCode::NOT_FOUND,
        "57014" | "08007" => StatusCode::GATEWAY_TIMEOUT,
        // The query's own limit, which waiting doesn't change.
        "53200" if !failure.retryable => StatusCode::UNPROCESSABLE_ENTITY,
        code => match code.get(..2) {
            Some("23") if code != "23502" => StatusCode::CONFLICT,
            // A transaction that has ended, or is in the wrong state: the same request can't help.
            Some("25") => StatusCode::CONFLICT,
            Some("40") if !failure.retryable => StatusCode::CONFLICT,
            Some("54") => StatusCode::UNPROCESSABLE_ENTITY,
            Some("40" | "53" | "55" | "57" | "08") => StatusCode::SERVICE_UNAVAILABLE,
            Some("XX" | "58") => StatusCode::INTERNAL_SERVER_ERROR,
            _ if failure.retryable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        },
    }
}

/// A failure on its way to the client.
#[derive(Clone, Debug)]
pub struct Problem(pub Failure);

impl Problem {
    pub fn new(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Problem(Failure::new(code, message, hint))
    }

    /// A request that makes no sense.
    pub fn bad_request(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(BAD_REQUEST, message, hint)
    }

    /// Something asked for by name that does not exist.
    pub fn not_found(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(NOT_FOUND, message, hint)
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Problem(failure)
    }
}

impl From<pleat_host::HostError> for Problem {
    fn from(error: pleat_host::HostError) -> Self {
        Problem(error.into())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        answer(&self.0, Json(ErrorBody::from(&self.0)))
    }
}

/// The answer to a failed request: `body` with the failure's status and headers.
pub fn answer(failure: &Failure, body: impl IntoResponse) -> Response {
    let status = status_of(failure);
    let mut response = (status, body).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_a_fitting_status() {
        for (code, status) in [
            ("42601", 400),
            ("42P01", 400),
            ("0A000", 400),
            ("23502", 400),
            ("22P02", 400),
            (BAD_JSON, 400),
            (BAD_REQUEST, 400),
            (NOT_FOUND, 404),
            (METHOD_NOT_ALLOWED, 405),
            ("23505", 409),
            ("42P07", 409),
            (IDEMPOTENCY_CONFLICT, 409),
            (BODY_TOO_LARGE, 413),
            (UNSUPPORTED_MEDIA_TYPE, 415),
            ("54000", 422),
            ("53200", 422),
            ("XX000", 500),
            (OVERLOADED, 503),
            ("53300", 503),
            ("57P03", 503),
            ("40001", 409),
            ("25P02", 409),
            ("08003", 404),
            ("57014", 504),
            ("08007", 504),
        ] {
            assert_eq!(status_of(&Failure::new(code, "", "")).as_u16(), status, "{code}");
        }
        assert_eq!(status_of(&Failure::passing("40001", "", "")).as_u16(), 503, "the same request may succeed");
        assert_eq!(status_of(&Failure::passing("53200", "", "")).as_u16(), 503, "when others have ended");
    }

    #[test]
    fn the_body_says_what_to_do_and_503_says_when() {
        let response = Problem(Failure::passing(OVERLOADED, "full", "wait")).into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], RETRY_AFTER_SECONDS);
        let failure = Failure { position: Some((1, 8)), ..Failure::new("42601", "no", "yes") };
        let body = serde_json::to_value(ErrorBody::from(&failure)).unwrap();
        let wanted = serde_json::json!({
            "error": "no", "code": "42601", "hint": "yes", "retryable": false, "position": {"line": 1, "column": 8}
        });
        assert_eq!(body, wanted);
    }
}
