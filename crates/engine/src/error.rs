//! Errors of reading, moving and finishing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::VERIFY_DELTA_BYTES_MAX;
use crate::{NoRoom, Refusal, SqlFailure};

/// Why there is no answer. What a *write* gives is an [`Outcome`](crate::Outcome) instead.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum EngineError {
    /// The statement is wrong, or can't be answered for the data as it is.
    #[error(transparent)]
    Sql(#[from] SqlFailure),
    /// The shard is not the one to ask.
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the statement took longer than {} ms", limit.as_millis())]
    Time { limit: Duration },
    #[error("the result has more than {limit} rows")]
    Rows { limit: u64 },
    #[error("the result is larger than {limit} bytes")]
    Bytes { limit: u64 },
    /// A finisher has no room left.
    #[error("{0}")]
    NoRoom(NoRoom),
    /// Every read connection was busy for the whole time limit.
    #[error("all {connections} read connections of the shard are in use")]
    Busy { connections: usize },
    /// A move's snapshot timed out, or the replica was replaced. Open another one.
    #[error("the snapshot {id} is gone")]
    SnapshotGone { id: u64 },
    /// More changes are left than a verification may carry.
    #[error("more changes are left to apply than one answer carries ({limit} rows, {VERIFY_DELTA_BYTES_MAX} bytes)")]
    DeltaTooLarge { limit: usize },
    /// The interactive transaction was rolled back: what it has read has changed, or an entry had to be applied.
    #[error("the transaction was rolled back: another write came between what it has read and what it wrote")]
    TxnConflict,
    /// The receiver of the rows does not want any more.
    #[error("the reader went away")]
    Cancelled,
    /// Disk, file or internal trouble of this replica.
    #[error("{0}")]
    Storage(String),
}

impl EngineError {
    /// The SQLSTATE that a client gets.
    pub fn code(&self) -> &str {
        match self {
            EngineError::Sql(failure) => &failure.code,
            EngineError::Refused(refusal) => refusal.code(),
            EngineError::Time { .. } | EngineError::Cancelled => "57014",
            EngineError::Rows { .. } | EngineError::Bytes { .. } => "54000",
            EngineError::NoRoom(NoRoom::DiskFull) => "53100",
            EngineError::NoRoom(_) => "53200",
            EngineError::Busy { .. } => "53300",
            EngineError::SnapshotGone { .. } | EngineError::DeltaTooLarge { .. } => "55000",
            EngineError::TxnConflict => "40001",
            EngineError::Storage(_) => "58000",
        }
    }

    /// The limit that was reached: the setting's name, or the request's field.
    pub fn limit(&self) -> Option<&'static str> {
        match self {
            EngineError::Time { .. } => Some("timeout_ms"),
            EngineError::NoRoom(no_room) => no_room.limit(),
            EngineError::Busy { .. } => Some("limits.read_connections"),
            _ => None,
        }
    }

    /// What the caller should do.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            EngineError::Sql(failure) => return failure.hint.clone(),
            EngineError::Refused(refusal) => refusal.hint().to_owned(),
            EngineError::Time { .. } => "narrow the statement down, add an index, or raise the time limit".to_owned(),
            EngineError::Rows { .. } | EngineError::Bytes { .. } => {
                "add a LIMIT or more conditions, or stream".to_owned()
            }
            EngineError::NoRoom(no_room) => no_room.hint().to_owned(),
            EngineError::Busy { .. } => "try again in a moment".to_owned(),
            EngineError::SnapshotGone { .. } => "open the snapshot again".to_owned(),
            EngineError::DeltaTooLarge { .. } => "catch up first, then verify".to_owned(),
            EngineError::TxnConflict => "begin the transaction again".to_owned(),
            EngineError::Cancelled => return None,
            EngineError::Storage(_) => "look at the node's log and its disk".to_owned(),
        })
    }

    /// Whether the same request can succeed later or elsewhere without being changed.
    pub fn is_retryable(&self) -> bool {
        match self {
            EngineError::Refused(refusal) => refusal.is_retryable(),
            EngineError::Busy { .. } | EngineError::SnapshotGone { .. } | EngineError::DeltaTooLarge { .. } => true,
            EngineError::NoRoom(no_room) => no_room.is_passing(),
            EngineError::Sql(_)
            | EngineError::Time { .. }
            | EngineError::Rows { .. }
            | EngineError::Bytes { .. }
            | EngineError::TxnConflict
            | EngineError::Cancelled
            | EngineError::Storage(_) => false,
        }
    }
}
