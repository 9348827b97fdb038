//! What goes wrong between Pleat and a server, and what whoever hears of it should do.

use super::wire::Broken;
use super::wire::backend::{Failure, SqlState};

/// Why there is no answer. What a server answers a client, errors included, is no error here.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// No connection became free. Nothing was done.
    #[error("{0}")]
    Busy(String),
    /// The server can't be reached, or takes nobody yet. Nothing was done.
    #[error("{0}")]
    Unavailable(String),
    /// The server does not let us in.
    #[error("{message}")]
    Refused { code: SqlState, message: String },
    /// The server answered a statement of Pleat's own with an error. What the transaction did is taken back, or will be.
    #[error("{message}")]
    Answered { code: SqlState, message: String, detail: String },
    /// The connection ended in the middle. Whether what was sent was done is not known.
    #[error("the connection to the server was lost: {0}")]
    Lost(String),
    /// What was to be sent is more than a connection takes.
    #[error("{0}")]
    TooMuch(String),
    /// What was to be sent can't come now.
    #[error("{0}")]
    OutOfTurn(String),
    /// What a move found on a server is not what has to be there, so its attempt is over.
    #[error("{0}")]
    Moving(String),
}

impl PostgresError {
    /// For the client.
    pub fn sqlstate(&self) -> &str {
        match self {
            PostgresError::Busy(_) => "53300",
            PostgresError::Unavailable(_) => "57P03",
            PostgresError::Refused { code, .. } | PostgresError::Answered { code, .. } => code.as_str(),
            PostgresError::Lost(_) => "08006",
            PostgresError::TooMuch(_) => "54000",
            PostgresError::OutOfTurn(_) => "08P01",
            PostgresError::Moving(_) => "55000",
        }
    }

    /// Nothing was done, and the same may do later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, PostgresError::Busy(_) | PostgresError::Unavailable(_))
    }

    /// What a server said instead of letting us in.
    pub(super) fn refused(failure: Failure) -> PostgresError {
        let Failure { code, message, .. } = failure;
        match code.as_str() {
            "53300" => PostgresError::Busy(format!("the server has no connection left for Pleat: {message}")),
            "57P01" | "57P02" | "57P03" => {
                PostgresError::Unavailable(format!("the server takes nobody now: {message}"))
            }
            _ => PostgresError::Refused { code, message: format!("the server refuses Pleat: {message}") },
        }
    }

    /// What a server said to a statement.
    pub(super) fn answered(failure: Failure) -> PostgresError {
        let Failure { code, message, detail, .. } = failure;
        PostgresError::Answered { code, message, detail }
    }

    /// What went wrong before a session began: nothing was done.
    pub(super) fn before(broken: Broken) -> PostgresError {
        match broken {
            Broken::Socket(error) => PostgresError::Unavailable(format!("the server can't be reached: {error}")),
            broken => PostgresError::Unavailable(format!("the server can't be used: {}", words(&broken))),
        }
    }

    /// What went wrong in a session.
    pub(super) fn within(broken: Broken) -> PostgresError {
        PostgresError::Lost(words(&broken))
    }
}

fn words(broken: &Broken) -> String {
    match broken {
        Broken::Socket(error) => error.to_string(),
        broken => broken.tell().map_or_else(String::new, |(_, words)| words),
    }
}
