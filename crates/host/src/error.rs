//! What can go wrong between asking a shard and getting an answer, sorted by what the caller should do.

use pleat_cluster::{CommandError, LedgerError};
use pleat_engine::postgres::PostgresError;
use pleat_engine::{EngineError, Refusal};
use serde::{Deserialize, Serialize};

use crate::TxnEnd;

/// Why a call on a [`Host`](crate::Host) failed.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum HostError {
    /// The shard does not own what the request was routed by, or not at the moment. Nothing was done: wait
    /// for a newer catalog and route again.
    #[error("the shard refused: {0}")]
    Refused(Refusal),
    /// The statement itself failed, or went over one of its limits.
    #[error("{0}")]
    Engine(EngineError),
    /// The catalog refused a command.
    #[error("{0}")]
    Command(CommandError),
    /// Nobody who could do it was reached within the limit. Nothing was done.
    #[error("{0}")]
    Unavailable(String),
    /// The disks of too many nodes are full. Nothing was done.
    #[error("{0}")]
    NoRoom(String),
    /// Something has as much to do as it may. Nothing was done.
    #[error("{0}")]
    Overloaded(Overload),
    /// It may or may not have been done, and asking again without an idempotency key could do it twice.
    #[error("{0}")]
    OutcomeUnknown(String),
    /// A write to reference tables is committed and reaches every shard, but had not within the limit.
    #[error("{0}")]
    Spreading(String),
    /// The interactive transaction is over: roll it back on all shards.
    #[error("{0}")]
    TxnEnded(TxnEnd),
    /// The ledger refused a command.
    #[error("{0}")]
    Ledger(LedgerError),
    /// A shard's server said no, or can't be used. Of what it was asked nothing was done, unless the transaction was ended before.
    #[error("{0}")]
    Server(ServerError),
    #[error("{0}")]
    TooLarge(String),
    #[error("{0}")]
    Timeout(String),
    #[error("{0}")]
    Internal(String),
}

/// What a shard's server, or the way to it, says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ServerError {
    /// The SQLSTATE.
    pub code: String,
    pub message: String,
    /// More of it; empty where there is none.
    pub detail: String,
    /// The same may do later.
    pub retryable: bool,
}

impl From<PostgresError> for HostError {
    fn from(error: PostgresError) -> Self {
        let (code, message, retryable) = (error.sqlstate().to_owned(), error.to_string(), error.is_retryable());
        match error {
            PostgresError::Unavailable(why) => HostError::Unavailable(why),
            PostgresError::Lost(_) => HostError::OutcomeUnknown(message),
            PostgresError::Answered { detail, .. } => {
                HostError::Server(ServerError { code, message, detail, retryable })
            }
            PostgresError::Busy(_)
            | PostgresError::Refused { .. }
            | PostgresError::TooMuch(_)
            | PostgresError::OutOfTurn(_)
            | PostgresError::Moving(_) => {
                HostError::Server(ServerError { code, message, detail: String::new(), retryable })
            }
        }
    }
}

/// What has too much to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Overload {
    #[error("the shard's queue of writes is full")]
    Writes,
    #[error("too many reads wait for the shard's leader")]
    Reads,
    #[error("{most} transactions are open on the shard")]
    Transactions { most: usize },
}

impl Overload {
    /// The limit's name, which is the setting's where there is one.
    fn limit(self) -> &'static str {
        match self {
            Overload::Writes => "limits.queued_writes",
            Overload::Reads => "queued_reads",
            Overload::Transactions { .. } => "shard_transactions",
        }
    }
}

impl HostError {
    /// The limit that was reached, if it is that: the setting's name, or the request's field.
    pub fn limit(&self) -> Option<&'static str> {
        match self {
            HostError::Engine(error) => error.limit(),
            HostError::Overloaded(overload) => Some(overload.limit()),
            HostError::Timeout(_) => Some("timeout_ms"),
            HostError::Ledger(LedgerError::Full) => Some("ledger"),
            _ => None,
        }
    }

    /// The SQLSTATE.
    pub fn code(&self) -> &str {
        match self {
            HostError::Refused(_) => "40001",
            HostError::Engine(error) => error.code(),
            HostError::Command(CommandError::Exists { .. }) => "42P07",
            HostError::Command(CommandError::Busy { .. }) => "55006",
            HostError::Command(CommandError::Unknown { .. }) => "42704",
            HostError::Command(_) => "55000",
            HostError::Unavailable(_) => "57P03",
            HostError::NoRoom(_) => "53100",
            HostError::Overloaded(_) => "53300",
            HostError::OutcomeUnknown(_) | HostError::Spreading(_) => "08007",
            HostError::TxnEnded(end) => end.code(),
            HostError::Ledger(LedgerError::Full) => "53400",
            HostError::Ledger(LedgerError::NoMoreIds { .. }) => "2200H",
            HostError::Ledger(LedgerError::BlockTooLarge { .. }) => "54000",
            HostError::Server(error) => &error.code,
            HostError::TooLarge(_) => "54000",
            HostError::Timeout(_) => "57014",
            HostError::Internal(_) => "XX000",
        }
    }

    /// What the caller can do about it.
    pub fn hint(&self) -> String {
        match self {
            HostError::Refused(refusal @ (Refusal::Prepared { .. } | Refusal::Conflict { .. })) => {
                refusal.hint().into()
            }
            HostError::Refused(_) => "the data is just moving to another shard: try again".into(),
            HostError::Engine(error) => error.hint().unwrap_or_default(),
            HostError::Command(CommandError::Busy { .. }) => "try again when it has ended".into(),
            HostError::Command(_) => "look at GET /operations and GET /tables for the cluster's state".into(),
            HostError::Unavailable(_) => "a leader is elected within seconds of a failure: try again".into(),
            HostError::NoRoom(_) => {
                "make room on the disks of these nodes, whose logs and GET /health tell more; then writes go on by themselves"
                    .into()
            }
            HostError::Overloaded(_) => "try again after a short pause, with fewer requests at once".into(),
            HostError::OutcomeUnknown(_) => {
                "read before you repeat it, or send an idempotency_key so that repeating is safe".into()
            }
            HostError::Spreading(_) => "it is committed and reaches every shard by itself: do not repeat it".into(),
            HostError::TxnEnded(_) => "begin the transaction again".into(),
            HostError::Ledger(LedgerError::Full) => "look at GET /txns: participants don't answer".into(),
            HostError::Ledger(LedgerError::NoMoreIds { .. }) => "give the rows ids of your own".into(),
            HostError::Ledger(LedgerError::BlockTooLarge { .. }) => "insert fewer rows at once".into(),
            HostError::Server(ServerError { retryable: true, .. }) => "try again after a short pause".into(),
            HostError::Server(error) => error.detail.clone(),
            HostError::TooLarge(_) => "split it up; for many rows use POST /tables/{table}/rows".into(),
            HostError::Timeout(_) => "narrow the statement, or raise timeout_ms".into(),
            HostError::Internal(_) => "see the node's log".into(),
        }
    }

    /// Whether it says something about this moment only, and nothing about an attempt before it.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(
            self,
            HostError::Refused(_)
                | HostError::Overloaded(_)
                | HostError::NoRoom(_)
                | HostError::Unavailable(_)
                | HostError::Timeout(_)
                | HostError::Internal(_)
        )
    }

    /// Whether sending the same request again is safe and may succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            HostError::Refused(Refusal::Conflict { .. }) => false,
            HostError::Refused(_) | HostError::Unavailable(_) | HostError::Overloaded(_) | HostError::NoRoom(_) => true,
            HostError::Engine(error) => error.is_retryable(),
            HostError::Server(error) => error.retryable,
            HostError::Command(error) => matches!(error, CommandError::Busy { .. }),
            _ => false,
        }
    }
}
