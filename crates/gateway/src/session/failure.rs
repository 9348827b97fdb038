//! Why a request failed, in terms that every protocol can tell: a SQLSTATE, what was wrong, what to do, and
//! whether the very same request may be sent again.

use std::borrow::Cow;
use std::fmt;

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A SQLSTATE, or a short word where the failure is not SQL's.
    pub code: Cow<'static, str>,
    pub message: String,
    /// What the caller can do about it.
    pub hint: String,
    /// Nothing was done, or doing it again is the same as doing it once; and it may succeed then.
    pub retryable: bool,
    /// Line and column in the statement, from 1, where the parser knows them.
    pub position: Option<(u64, u64)>,
    /// The limit that was reached, if it is that: the name of its setting where there is one, else one that stays.
    pub limit: Option<&'static str>,
}

/// The same idempotency key came with another statement.
pub const IDEMPOTENCY_CONFLICT: &str = "idempotency_conflict";
/// The node serves as many requests as it may.
pub const OVERLOADED: &str = "overloaded";

/// How the limit of a statement's time is called: as the field of the request.
const TIMEOUT: &str = "timeout_ms";

impl Failure {
    /// A failure that repeating does not mend.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            hint: hint.into(),
            retryable: false,
            position: None,
            limit: None,
        }
    }

    /// A failure that passes: nothing was done, and the same request may be sent again.
    pub fn passing(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { retryable: true, ..Self::new(code, message, hint) }
    }

    /// The statement did not end within its time, which is told in milliseconds.
    pub fn timeout(limit: std::time::Duration) -> Self {
        let message = format!("the statement did not end within {} ms", limit.as_millis());
        Self::new("57014", message, "narrow the statement, or raise timeout_ms").at_limit(TIMEOUT)
    }

    /// The same, with the place in `text` that it is about, in bytes.
    pub(crate) fn at_text(self, text: &str, at: usize) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|letter| *letter != '\n').count() + 1;
        Self { position: Some((line as u64, column as u64)), ..self }
    }

    /// The same, with the limit that was reached.
    pub fn at_limit(self, limit: &'static str) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// The same; if it is that the time is over, in terms of the whole statement's `limit`.
    pub fn within(self, limit: std::time::Duration) -> Self {
        if self.limit == Some(TIMEOUT) { Self::timeout(limit) } else { self }
    }

    /// Something that should not happen; `what` is told to the user and belongs into a bug report.
    pub fn internal(what: impl Into<String>) -> Self {
        Self::new("XX000", what, "this is a defect in Pleat: see the node's log and report it")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for Failure {}

impl From<pleat_host::HostError> for Failure {
    fn from(error: pleat_host::HostError) -> Self {
        Self {
            code: Cow::Owned(error.code().to_owned()),
            message: error.to_string(),
            hint: error.hint(),
            retryable: error.is_retryable(),
            position: None,
            limit: error.limit(),
        }
    }
}

impl From<pleat_engine::EngineError> for Failure {
    fn from(error: pleat_engine::EngineError) -> Self {
        pleat_host::HostError::Engine(error).into()
    }
}
