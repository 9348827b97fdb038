//! Why work on an operation stopped short, sorted by what follows.

use pleat_cluster::CommandError;
use pleat_engine::{EngineError, Outcome, Refusal, SqlFailure};
use pleat_host::HostError;

/// Why a step did not succeed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stop {
    /// A newer leader works on the operation: touch nothing any more.
    Superseded(String),
    /// Someone asked for the operation to be cancelled.
    Cancelled,
    /// This attempt has failed, another may succeed: a shard was not reached, a snapshot is gone.
    Again(String),
    /// No attempt will succeed: a statement fails on the data, digests differ.
    Impossible(Failure),
    /// What is left to do is on shards that can't be reached, and the catalog knows: others go on.
    Waiting(String),
}

/// Why an operation can't succeed, or is not to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub why: String,
    /// Its SQLSTATE, where a database or the host gave one.
    pub code: Option<String>,
}

impl Stop {
    /// No attempt will succeed, for a reason without a code of its own.
    pub fn impossible(why: impl Into<String>) -> Self {
        Stop::Impossible(Failure { why: why.into(), code: None })
    }

    /// For the journal.
    pub fn reason(&self) -> String {
        match self {
            Stop::Superseded(why) | Stop::Again(why) | Stop::Waiting(why) => why.clone(),
            Stop::Impossible(failure) => failure.why.clone(),
            Stop::Cancelled => "cancelled on request".to_owned(),
        }
    }

    /// The same with what was being done.
    pub fn context(self, doing: &str) -> Self {
        match self {
            Stop::Superseded(why) => Stop::Superseded(format!("{doing}: {why}")),
            Stop::Cancelled => Stop::Cancelled,
            Stop::Again(why) => Stop::Again(format!("{doing}: {why}")),
            Stop::Impossible(Failure { why, code }) => {
                Stop::Impossible(Failure { why: format!("{doing}: {why}"), code })
            }
            Stop::Waiting(why) => Stop::Waiting(format!("{doing}: {why}")),
        }
    }
}

impl Failure {
    pub fn cancelled() -> Self {
        Self { why: Stop::Cancelled.reason(), code: Some("57014".to_owned()) }
    }
}

impl From<HostError> for Stop {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Refused(refusal) => refusal.into(),
            HostError::Engine(EngineError::Refused(refusal)) => refusal.into(),
            HostError::Engine(EngineError::Sql(failure)) => failed(failure),
            HostError::Command(
                CommandError::Invalid { .. } | CommandError::Exists { .. } | CommandError::Unknown { .. },
            ) => Stop::Impossible(Failure { why: error.to_string(), code: Some(error.code().to_owned()) }),
            other => Stop::Again(other.to_string()),
        }
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::StaleEpoch { .. } => Stop::Superseded(refusal.to_string()),
            other => Stop::Again(other.to_string()),
        }
    }
}

/// An outcome that took effect, or why it did not.
pub(crate) fn took_effect(outcome: Outcome) -> Result<Outcome, Stop> {
    match outcome {
        Outcome::Refused(refusal) => Err(refusal.into()),
        Outcome::Failed(failure) => Err(failed(failure)),
        done => Ok(done),
    }
}

/// Whether the shard waits for the decision of a transaction over several shards, which comes within seconds: then the
/// same is to be sent again, whatever it is.
pub(crate) fn is_deciding(outcome: &Result<Outcome, HostError>) -> bool {
    matches!(
        outcome,
        Ok(Outcome::Refused(Refusal::Prepared { .. })) | Err(HostError::Refused(Refusal::Prepared { .. }))
    )
}

fn failed(failure: SqlFailure) -> Stop {
    Stop::Impossible(Failure { why: failure.to_string(), code: Some(failure.code) })
}

/// An answer of another kind than the question asked for: a fault of this version of Pleat.
pub(crate) fn unexpected(what: &str) -> Stop {
    Stop::impossible(format!("{what} gave an answer of another kind; run one version of Pleat on all nodes"))
}
