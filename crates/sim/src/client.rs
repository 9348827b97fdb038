//! What clients and nodes say to each other, and how a client asks.

use std::time::Duration;

use pleat_cluster::{OperationKind, Value};
use serde::{Deserialize, Serialize};
use turmoil::net::TcpStream;

use crate::net::{self, CLIENTS};

/// How long a statement may take.
pub const STATEMENT_LIMIT: Duration = Duration::from_secs(4);
/// How long a client waits for an answer of any kind.
const PATIENCE: Duration = Duration::from_secs(6);

/// A question.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    Statement { text: String, key: Option<String>, timeout_ms: u64 },
    Start(OperationKind),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Rows(Vec<Vec<Value>>),
    /// So many rows.
    Changed(u64),
    /// The operation is in the journal.
    Done,
    Refused {
        code: String,
        message: String,
    },
}

/// What a client knows in the end.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    Answer(Answer),
    /// It was not done.
    Not(String),
    /// It may have been done.
    Unknown(String),
}

/// The codes of failures after which a write may have been done.
const OUTCOME_UNKNOWN: [&str; 2] = ["08007", "XX000"];

/// Ask a node for a statement's answer.
pub async fn statement(node: u64, text: &str, key: Option<String>) -> Told {
    let timeout_ms = STATEMENT_LIMIT.as_millis() as u64;
    ask(node, Ask::Statement { text: text.to_owned(), key, timeout_ms }).await
}

/// Ask a node.
pub async fn ask(node: u64, ask: Ask) -> Told {
    let mut stream = match tokio::time::timeout(PATIENCE, TcpStream::connect((net::name(node), CLIENTS))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Told::Not(format!("no connection: {error}")),
        Err(_) => return Told::Not("no connection in time".to_owned()),
    };
    let exchange = async {
        net::send(&mut stream, &ask).await?;
        net::receive(&mut stream).await
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(Ok(Answer::Refused { code, message })) if OUTCOME_UNKNOWN.contains(&code.as_str()) => {
            Told::Unknown(format!("{code} {message}"))
        }
        Ok(Ok(Answer::Refused { code, message })) => Told::Not(format!("{code} {message}")),
        Ok(Ok(answer)) => Told::Answer(answer),
        Ok(Err(error)) => Told::Unknown(format!("connection lost: {error}")),
        Err(_) => Told::Unknown("no answer in time".to_owned()),
    }
}
