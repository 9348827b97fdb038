//! HTTP to a cluster, and what can go wrong with it.

use std::fmt;
use std::time::Duration;

use bytes::BytesMut;
use futures::StreamExt;
use reqwest::header::ACCEPT;
use serde_json::{Value, json};

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for an answer that needs no statement to be run.
const LOOK_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest line of a streamed result, in bytes: one row.
const LINE_BYTES_MAX: usize = 64 << 20;

/// One cluster, by the address of any of its nodes.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    http: reqwest::Client,
}

/// A call that failed, as the server told it, or as the connection did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub message: String,
    /// SQLSTATE or a short word; none when no server answered.
    pub code: Option<String>,
    pub hint: Option<String>,
    /// Whether the same call may be made again and may then succeed. With a batch's or a request's own
    /// idempotency key that is safe also when nobody knows whether the first one was carried out.
    pub retryable: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) => write!(f, "{} [{code}]", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// In the form that the server uses.
    pub fn to_json(&self) -> Value {
        json!({"error": self.message, "code": self.code, "hint": self.hint, "retryable": self.retryable})
    }

    fn from_body(status: Option<reqwest::StatusCode>, body: &[u8]) -> Failure {
        let parsed: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let text = |key: &str| parsed.get(key).and_then(Value::as_str).map(str::to_string);
        let status_text = status.map_or_else(String::new, |status| format!("HTTP status {status}"));
        Failure {
            message: text("error").unwrap_or_else(|| format!("the server answered with {status_text}")),
            code: text("code"),
            hint: text("hint").filter(|hint| !hint.is_empty()),
            retryable: parsed.get("retryable").and_then(Value::as_bool).unwrap_or(false),
        }
    }

    /// The connection failed. Whether the call was carried out is not known, unless there was none at all.
    fn from_transport(base: &str, error: &reqwest::Error) -> Failure {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        let (message, hint) = if error.is_connect() {
            let hint = "is it running? `pleat up` starts a cluster; --url or PLEAT_URL names another address";
            (format!("no answer from {base}: {cause}"), Some(hint.to_string()))
        } else if error.is_timeout() {
            (format!("no answer from {base} in time"), None)
        } else {
            (format!("the connection to {base} broke: {cause}"), None)
        };
        Failure { message, code: None, hint, retryable: true }
    }
}

impl Client {
    /// Speak to the cluster at `url`.
    pub fn new(url: &str) -> anyhow::Result<Client> {
        let base = url.trim_end_matches('/').to_string();
        let parsed = reqwest::Url::parse(&base)
            .map_err(|error| anyhow::anyhow!("'{url}' is not a URL such as http://127.0.0.1:8080: {error}"))?;
        anyhow::ensure!(
            parsed.scheme() == "http" && parsed.host().is_some(),
            "'{url}' must have the form http://HOST:PORT (there is no TLS yet)"
        );
        // A proxy of the environment must not come between a shell and a cluster on the same machine.
        let http = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).no_proxy().build()?;
        Ok(Client { base, http })
    }

    /// Where it speaks to.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.finish(self.http.get(format!("{}{path}", self.base)).timeout(LOOK_TIMEOUT)).await
    }

    /// `DELETE path`.
    pub async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.finish(self.http.delete(format!("{}{path}", self.base)).timeout(LOOK_TIMEOUT)).await
    }

    /// `PUT path` with a JSON body.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let request = self.http.put(format!("{}{path}", self.base)).header("content-type", "application/json");
        self.finish(request.timeout(LOOK_TIMEOUT).body(body.to_string())).await
    }

    /// `PATCH path` with a JSON body.
    pub async fn patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let request = self.http.patch(format!("{}{path}", self.base)).header("content-type", "application/json");
        self.finish(request.timeout(LOOK_TIMEOUT).body(body.to_string())).await
    }

    /// `POST path` with a JSON body. The server limits how long it takes.
    pub async fn post(&self, path: &str, body: Vec<u8>) -> Result<Value, Failure> {
        let request = self.http.post(format!("{}{path}", self.base)).header("content-type", "application/json");
        self.finish(request.body(body)).await
    }

    /// `POST /query`, the whole answer at once.
    pub async fn query(&self, sql: &str) -> Result<Value, Failure> {
        self.post("/query", json!({"query": sql}).to_string().into_bytes()).await
    }

    /// `POST /query`, row by row.
    pub async fn stream(&self, sql: &str) -> Result<Rows, Failure> {
        self.stream_of(&json!({"query": sql})).await
    }

    /// The same, with a time for the statement.
    pub async fn stream_within(&self, sql: &str, time: Duration) -> Result<Rows, Failure> {
        self.stream_of(&json!({"query": sql, "timeout_ms": u64::try_from(time.as_millis()).unwrap_or(u64::MAX)})).await
    }

    async fn stream_of(&self, body: &Value) -> Result<Rows, Failure> {
        let request = self.http.post(format!("{}/query", self.base)).header(ACCEPT, "application/x-ndjson").json(body);
        let response = request.send().await.map_err(|error| Failure::from_transport(&self.base, &error))?;
        let status = response.status();
        if !status.is_success() {
            let body = response.bytes().await.map_err(|error| Failure::from_transport(&self.base, &error))?;
            return Err(Failure::from_body(Some(status), &body));
        }
        Ok(Rows { base: self.base.clone(), response: response.bytes_stream().boxed(), pending: BytesMut::new() })
    }

    async fn finish(&self, request: reqwest::RequestBuilder) -> Result<Value, Failure> {
        let transport = |error: reqwest::Error| Failure::from_transport(&self.base, &error);
        let response = request.send().await.map_err(transport)?;
        let status = response.status();
        let body = response.bytes().await.map_err(transport)?;
        if !status.is_success() {
            return Err(Failure::from_body(Some(status), &body));
        }
        serde_json::from_slice(&body).map_err(|error| Failure {
            message: format!("the answer of {} is not JSON ({error}); is that address a Pleat node's?", self.base),
            code: None,
            hint: None,
            retryable: false,
        })
    }
}

/// One line of a streamed result.
#[derive(Debug, PartialEq)]
pub enum Line {
    Columns(Vec<String>),
    Row(Vec<Value>),
    /// The end: counts, shards, and what else the server has to say.
    End(Value),
}

/// A result that arrives line by line.
pub struct Rows {
    base: String,
    response: futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    pending: BytesMut,
}

impl Rows {
    /// The next line. The caller stops at [`Line::End`]; a stream that ends before it was cut off.
    pub async fn next(&mut self) -> Result<Line, Failure> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line = self.pending.split_to(end + 1);
                return parse_line(&line);
            }
            match self.response.next().await {
                Some(Ok(chunk)) if self.pending.len() + chunk.len() <= LINE_BYTES_MAX => {
                    self.pending.extend_from_slice(&chunk);
                }
                Some(Ok(_)) => return Err(cut_off("a row is larger than 64 MiB")),
                Some(Err(error)) => return Err(Failure::from_transport(&self.base, &error)),
                None if self.pending.is_empty() => return Err(cut_off("the result was cut off before its end")),
                None => {
                    let line = self.pending.split();
                    return parse_line(&line);
                }
            }
        }
    }
}

fn cut_off(message: &str) -> Failure {
    Failure { message: message.to_string(), code: None, hint: None, retryable: false }
}

fn parse_line(line: &[u8]) -> Result<Line, Failure> {
    match serde_json::from_slice(line) {
        Ok(Value::Array(row)) => Ok(Line::Row(row)),
        Ok(Value::Object(map)) if map.contains_key("error") => Err(Failure::from_body(None, line)),
        Ok(Value::Object(map)) if map.len() == 1 && map.contains_key("columns") => {
            let columns = map["columns"].as_array().map(Vec::as_slice).unwrap_or_default();
            Ok(Line::Columns(columns.iter().map(|name| name.as_str().unwrap_or_default().to_string()).collect()))
        }
        Ok(end @ Value::Object(_)) => Ok(Line::End(end)),
        _ => Err(cut_off("the result was cut off in the middle of a row")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_streamed_result_are_told_apart() {
        let columns = parse_line(br#"{"columns":["a","a"]}"#).unwrap();
        assert_eq!(columns, Line::Columns(vec!["a".to_string(), "a".to_string()]));
        assert_eq!(parse_line(br#"[1,null]"#).unwrap(), Line::Row(vec![json!(1), Value::Null]));
        let end = json!({"rows": 1, "shard": "shard-1"});
        assert_eq!(parse_line(end.to_string().as_bytes()).unwrap(), Line::End(end));
        let failure = parse_line(br#"{"error":"gone","code":"57P03","hint":"again","retryable":true}"#).unwrap_err();
        assert_eq!(failure.to_string(), "gone [57P03]");
        assert!(failure.retryable);
        assert!(parse_line(br#"[1,"#).unwrap_err().message.contains("cut off"));
    }

    #[test]
    fn an_answer_that_is_no_error_body_still_gives_the_status() {
        let failure = Failure::from_body(Some(reqwest::StatusCode::BAD_GATEWAY), b"<html>");
        assert_eq!(failure.message, "the server answered with HTTP status 502 Bad Gateway");
        assert!(!failure.retryable);
    }

    #[test]
    fn a_url_must_be_one() {
        assert!(Client::new("http://127.0.0.1:8080/").is_ok());
        assert!(Client::new("127.0.0.1:8080").is_err());
        assert!(Client::new("https://127.0.0.1:8080").unwrap_err().to_string().contains("no TLS yet"));
    }

    #[tokio::test]
    async fn nobody_there_is_told_with_what_to_do() {
        // Bound and dropped: nobody listens there.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let failure = Client::new(&format!("http://{free}")).unwrap().get("/health").await.unwrap_err();
        assert!(failure.message.contains("no answer from"), "{failure}");
        assert!(failure.hint.unwrap().contains("pleat up"));
    }
}
