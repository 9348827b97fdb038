//! Reading requests: query strings and bodies, with errors that say what to do.

use std::time::Duration;

use axum::body::BodyDataStream;
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use super::problem::{BAD_JSON, BAD_REQUEST, BODY_TOO_LARGE, Problem, REQUEST_TIMEOUT, UNSUPPORTED_MEDIA_TYPE};
use crate::settings::{BODY_TIME_MAX, CLIENT_KEY_BYTES_MAX, DISCARD_BYTES_MAX, DISCARD_TIME_MAX};

/// The query string, with an error of our form when it does not fit.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Query(query)),
            Err(error) => Err(Problem::new(
                BAD_REQUEST,
                error.body_text(),
                "GET /openapi.json lists the parameters that each route takes",
            )),
        }
    }
}

/// The whole body, at most `limit` bytes of it.
///
/// What is too large is read on and thrown away (within limits): a client that is cut off while it still
/// sends sees a broken connection instead of the answer that would tell it what was wrong.
pub async fn body(request: Request, limit: usize) -> Result<Bytes, Problem> {
    let announced = (request.headers().get(header::CONTENT_LENGTH))
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse::<usize>().ok());
    let mut stream = request.into_body().into_data_stream();
    if announced.is_none_or(|length| length <= limit) {
        match tokio::time::timeout(BODY_TIME_MAX, read(&mut stream, limit)).await {
            Ok(Ok(Some(body))) => return Ok(body),
            Ok(Ok(None)) => discard(stream).await,
            Ok(Err(problem)) => return Err(problem),
            Err(_) => {
                let what = format!("the body did not arrive within {} s", BODY_TIME_MAX.as_secs());
                return Err(Problem::new(REQUEST_TIMEOUT, what, "send it again, in smaller requests"));
            }
        }
    } else {
        discard(stream).await;
    }
    Err(Problem::new(
        BODY_TOO_LARGE,
        format!("the body is larger than the limit of {limit} bytes"),
        "send it in smaller requests; POST /tables/{table}/rows takes many rows in batches",
    ))
}

/// The body, or `None` when it is larger than `limit`.
async fn read(stream: &mut BodyDataStream, limit: usize) -> Result<Option<Bytes>, Problem> {
    let mut held = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk
            .map_err(|error| Problem::bad_request(format!("the body ended early: {error}"), "send the whole body"))?;
        if held.len() + chunk.len() > limit {
            return Ok(None);
        }
        held.extend_from_slice(&chunk);
    }
    Ok(Some(held.freeze()))
}

async fn discard(mut stream: BodyDataStream) {
    let all = async {
        let mut left = DISCARD_BYTES_MAX;
        while let Some(Ok(chunk)) = stream.next().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                break;
            }
        }
    };
    // Whether it ended or the time is up, the answer is the same.
    let _ = tokio::time::timeout(DISCARD_TIME_MAX, all).await;
}

/// What a body says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    Json,
    Ndjson,
}

/// The media type of a request's body; JSON when it names none.
pub fn media(headers: &HeaderMap) -> Result<Media, Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Media::Json) };
    let text = value.to_str().unwrap_or_default();
    let mut parts = text.split(';').map(|part| part.trim().to_ascii_lowercase());
    let media = match parts.next().as_deref() {
        Some("application/json" | "text/json") => Media::Json,
        Some("application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines") => {
            Media::Ndjson
        }
        _ => return Err(unsupported(format!("'{text}' is not a media type that this route takes"))),
    };
    match parts.find(|part| part.starts_with("charset=") && part.trim_matches('"') != "charset=utf-8") {
        Some(charset) => Err(unsupported(format!("{charset} is not supported: JSON is UTF-8"))),
        None => Ok(media),
    }
}

/// The refusal of a media type.
pub fn unsupported(what: String) -> Problem {
    Problem::new(
        UNSUPPORTED_MEDIA_TYPE,
        what,
        "set the header Content-Type: application/json (or application/x-ndjson where rows are sent)",
    )
}

/// The refusal of broken JSON; serde's message names the line, the column and what was expected.
pub fn bad_json(error: &serde_json::Error) -> Problem {
    Problem::new(BAD_JSON, format!("the body is not valid JSON: {error}"), "check the body with a JSON validator")
}

/// A JSON object of the fields named in `known`; any other field is refused by name.
pub fn object(body: &[u8], known: &[&str]) -> Result<Map<String, Json>, Problem> {
    let hint = || format!("the fields are {}", known.join(", "));
    match serde_json::from_slice(body).map_err(|error| bad_json(&error))? {
        Json::Object(map) => match map.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(Problem::bad_request(format!("unknown field \"{name}\""), hint())),
            None => Ok(map),
        },
        other => Err(Problem::bad_request(format!("the body must be an object, not {}", kind(&other)), hint())),
    }
}

/// The name of a JSON value's type.
pub fn kind(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

/// A field that must be text when it is there; `null` is as good as absent.
pub fn text(map: &mut Map<String, Json>, name: &str) -> Result<Option<String>, Problem> {
    match map.remove(name) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        Some(other) => Err(Problem::bad_request(
            format!("\"{name}\" must be a string, not {}", kind(&other)),
            format!("send \"{name}\": \"…\""),
        )),
    }
}

/// A duration in milliseconds, from 1 to `max`.
pub fn milliseconds(number: Option<&Json>, name: &str, max: Duration) -> Result<Option<Duration>, Problem> {
    match number {
        None | Some(Json::Null) => Ok(None),
        Some(json) => match json.as_u64() {
            Some(millis) if millis >= 1 && u128::from(millis) <= max.as_millis() => {
                Ok(Some(Duration::from_millis(millis)))
            }
            _ => Err(Problem::bad_request(
                format!("\"{name}\" must be a whole number of milliseconds from 1 to {}", max.as_millis()),
                format!("leave \"{name}\" out for the default"),
            )),
        },
    }
}

/// An idempotency key or batch id within its limits.
pub fn client_key(key: Option<String>, name: &str) -> Result<Option<String>, Problem> {
    match key {
        Some(key) if key.is_empty() || key.len() > CLIENT_KEY_BYTES_MAX => Err(Problem::bad_request(
            format!("{name} must have from 1 to {CLIENT_KEY_BYTES_MAX} bytes"),
            "a UUID does well",
        )),
        key => Ok(key),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn media_of(text: &'static str) -> Result<Media, u16> {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, text.parse().unwrap())]);
        media(&headers).map_err(|problem| super::super::problem::status_of(&problem.0).as_u16())
    }

    #[test]
    fn media_types() {
        assert_eq!(media(&HeaderMap::new()).unwrap(), Media::Json);
        assert_eq!(media_of("application/json"), Ok(Media::Json));
        assert_eq!(media_of("Application/JSON; charset=UTF-8"), Ok(Media::Json));
        assert_eq!(media_of("application/x-ndjson"), Ok(Media::Ndjson));
        assert_eq!(media_of("application/json; charset=latin1"), Err(415));
        assert_eq!(media_of("application/x-www-form-urlencoded"), Err(415));
        assert_eq!(media_of("text/csv"), Err(415));
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_whether_announced_or_not() {
        let at_limit = Request::builder().body(Body::from("12345678")).unwrap();
        assert_eq!(body(at_limit, 8).await.unwrap(), "12345678");
        let chunks = futures::stream::iter(["12345", "6789"].map(Ok::<_, std::io::Error>));
        for request in [
            Request::builder().header("content-length", "9").body(Body::from("123456789")).unwrap(),
            Request::builder().body(Body::from_stream(chunks)).unwrap(),
        ] {
            let problem = body(request, 8).await.unwrap_err();
            assert_eq!(problem.0.code, BODY_TOO_LARGE);
            assert!(problem.0.message.contains("8 bytes"), "{}", problem.0.message);
        }
    }

    #[test]
    fn an_unknown_field_is_named() {
        let problem = object(br#"{"query": "x", "parms": []}"#, &["query", "params"]).unwrap_err();
        assert_eq!(problem.0.message, "unknown field \"parms\"");
        assert_eq!(problem.0.hint, "the fields are query, params");
        assert_eq!(object(b"[1]", &[]).unwrap_err().0.message, "the body must be an object, not an array");
        let broken = object(b"{\"query\": \n oops}", &["query"]).unwrap_err();
        assert!(broken.0.message.contains("line 2 column 2"), "{}", broken.0.message);
    }
}
