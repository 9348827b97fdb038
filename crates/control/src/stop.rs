//! Why work on an operation stopped short, sorted by what follows.

use pleat_cluster::CommandError;
use pleat_engine::{EngineError, Outcome, Refusal};
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
    Impossible(String),
}

impl Stop {
    /// For the journal.
    pub fn reason(&self) -> String {
        match self {
            Stop::Superseded(why) | Stop::Again(why) | Stop::Impossible(why) => why.clone(),
            Stop::Cancelled => "cancelled on request".to_owned(),
        }
    }

    /// The same with what was being done.
    pub fn context(self, doing: &str) -> Self {
        match self {
            Stop::Superseded(why) => Stop::Superseded(format!("{doing}: {why}")),
            Stop::Cancelled => Stop::Cancelled,
            Stop::Again(why) => Stop::Again(format!("{doing}: {why}")),
            Stop::Impossible(why) => Stop::Impossible(format!("{doing}: {why}")),
        }
    }
}

impl From<HostError> for Stop {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Refused(refusal) => refusal.into(),
            HostError::Engine(EngineError::Refused(refusal)) => refusal.into(),
            HostError::Engine(EngineError::Sql(failure)) => Stop::Impossible(failure.to_string()),
            HostError::Command(
                error @ (CommandError::Invalid { .. } | CommandError::Exists { .. } | CommandError::Unknown { .. }),
            ) => Stop::Impossible(error.to_string()),
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
        Outcome::Failed(failure) => Err(Stop::Impossible(failure.to_string())),
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

/// An answer of another kind than the question asked for: a fault of this version of Pleat.
pub(crate) fn unexpected(what: &str) -> Stop {
    Stop::Impossible(format!("{what} gave an answer of another kind; run one version of Pleat on all nodes"))
}
