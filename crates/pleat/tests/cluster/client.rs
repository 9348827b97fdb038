//! A client of a cluster that keeps to the guide: values as they are, errors by code, and the recommended retries.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use pleat_cluster::Value;
use pleat_generate::Answer;
use serde_json::{Value as Json, json};

use crate::harness::PATIENCE;

/// Asks the nodes in turn.
pub struct Client {
    http: reqwest::Client,
    nodes: Vec<String>,
    turn: AtomicUsize,
    /// Makes idempotency keys.
    name: String,
    retries: AtomicU64,
}

/// What a statement did.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    pub answer: Answer,
    pub rows_affected: u64,
}

/// Why it was not done.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refused {
    pub code: String,
    pub message: String,
    retryable: bool,
}

impl Refused {
    /// Whether a transaction is to be begun again.
    pub fn lost(&self) -> bool {
        ["40001", "40P01", "25P03"].contains(&self.code.as_str())
    }
}

impl Client {
    pub fn new(name: &str, nodes: Vec<String>) -> Self {
        let http = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        Self { http, nodes, turn: AtomicUsize::new(0), name: name.to_owned(), retries: AtomicU64::new(0) }
    }

    fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// How many requests were sent again.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// A statement by itself, sent again for as long as the error says that it may be.
    pub async fn run(&self, sql: &str, values: &[Value]) -> Result<Done, Refused> {
        let key = format!("{}-{}", self.name, self.turn());
        let body =
            json!({ "query": sql, "params": values.iter().map(json_of).collect::<Vec<_>>(), "idempotency_key": key });
        let (begun, mut pause) = (Instant::now(), Duration::from_millis(50));
        loop {
            let node = &self.nodes[self.turn() % self.nodes.len()];
            match self.post(&format!("{node}/query"), &body).await {
                Err(refused) if refused.retryable && begun.elapsed() < PATIENCE => {
                    self.retries.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                answer => return answer,
            }
        }
    }

    /// Open a session; its statements go to the path that it gives.
    pub async fn session(&self) -> String {
        let node = &self.nodes[self.turn() % self.nodes.len()];
        let opened = self.http.post(format!("{node}/sessions")).json(&json!({})).send().await.unwrap();
        let opened: Json = opened.json().await.unwrap();
        format!("{node}/sessions/{}/query", opened["session"].as_str().unwrap())
    }

    /// A statement in a session, once.
    pub async fn run_in(&self, session: &str, sql: &str) -> Result<Done, Refused> {
        self.post(session, &json!({ "query": sql })).await
    }

    async fn post(&self, url: &str, body: &Json) -> Result<Done, Refused> {
        let sent = self.http.post(url).header("accept", "application/x-ndjson").json(body).send().await;
        let text = sent.unwrap_or_else(|error| panic!("{url}: {error}")).text().await;
        let text = text.unwrap_or_else(|error| panic!("{url}: {error}: the answer was cut off"));
        let mut lines = text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
        let (Some(first), last) = (lines.next(), text.lines().last().unwrap_or_default()) else {
            panic!("{url}: an empty answer")
        };
        let last: Json = serde_json::from_str(last).unwrap();
        if last.get("error").is_some() {
            let text = |name: &str| last[name].as_str().unwrap_or_default().to_owned();
            let (code, message) = (text("code"), text("error"));
            return Err(Refused { code, message, retryable: last["retryable"] == true });
        }
        let Some(columns) = first["columns"].as_array() else { panic!("{url}: {text}") };
        let columns = columns.iter().map(|name| name.as_str().unwrap().to_owned()).collect();
        let rows = lines.filter_map(|line| Some(line.as_array()?.iter().map(value_of).collect())).collect();
        let rows_affected = last["rows_affected"].as_u64().unwrap_or(0);
        Ok(Done { answer: Answer { columns, rows }, rows_affected })
    }
}

fn json_of(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Integer(integer) => json!(integer),
        Value::Real(real) => json!(real),
        Value::Text(text) => json!(text),
        Value::Blob(bytes) => json!({ "base64": base64::engine::general_purpose::STANDARD.encode(bytes) }),
    }
}

fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Number(number) => number.as_i64().map_or_else(|| Value::Real(number.as_f64().unwrap()), Value::Integer),
        Json::String(text) => Value::Text(text.clone()),
        Json::Object(map) => match (map.get("base64"), map.get("real")) {
            (Some(Json::String(text)), _) => {
                Value::Blob(base64::engine::general_purpose::STANDARD.decode(text).unwrap())
            }
            (_, Some(Json::String(text))) if text == "Infinity" => Value::Real(f64::INFINITY),
            (_, Some(Json::String(text))) if text == "-Infinity" => Value::Real(f64::NEG_INFINITY),
            _ => panic!("{json} is no value"),
        },
        other => panic!("{other} is no value"),
    }
}
