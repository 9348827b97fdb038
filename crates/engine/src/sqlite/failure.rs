//! Which failures are a statement's own, and which are this replica's.
//!
//! The first kind happens on every replica alike and is an outcome. The second (a full disk, a broken file) must
//! not look like an outcome, because another replica may have succeeded: the replica stops, or waits for room ([`disk_error`]).

use rusqlite::{Error, ErrorCode, ffi};

use super::session::{RowRefusal, SharedSession};
use crate::limits::{STEPS_PER_CHECK, WRITE_STEP_BLOCKS_MAX};
use crate::{EngineError, Outcome, Refusal, SqlFailure, sqlstate};

/// Why a proposal was not carried out.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Deterministic: roll the proposal back and give this.
    Outcome(Box<Outcome>),
    /// This replica can't go on.
    Fatal(anyhow::Error),
}

/// What applying gives.
pub(crate) type Applied<T> = Result<T, Stop>;

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::Outcome(Box::new(Outcome::Refused(refusal)))
    }
}

impl From<SqlFailure> for Stop {
    fn from(failure: SqlFailure) -> Self {
        Stop::Outcome(Box::new(Outcome::Failed(failure)))
    }
}

/// Errors of Pleat's own statements: constraint violations (of imported rows) are outcomes, anything else means
/// that this replica is broken.
impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation) => match split(error) {
                Ok((extended, message)) => sqlstate::failure(0, extended, message).into(),
                Err(error) => Stop::Fatal(error.into()),
            },
            _ => Stop::Fatal(error.into()),
        }
    }
}

impl From<postcard::Error> for Stop {
    fn from(error: postcard::Error) -> Self {
        Stop::Fatal(anyhow::Error::new(error).context("decode what this shard stored about itself"))
    }
}

/// What the failure of a user's statement number `statement` means.
pub(crate) fn of_user(session: &SharedSession, statement: usize, error: Error) -> Stop {
    if is_replicas_own(&error) {
        return Stop::Fatal(anyhow::Error::new(error).context("apply a statement"));
    }
    let (refusal, denied) = {
        let mut session = session.lock();
        (session.refusal.take(), session.denied.take())
    };
    match refusal {
        Some(RowRefusal::Refused(refusal)) => return refusal.into(),
        Some(RowRefusal::Failed(failure)) => return SqlFailure { statement: statement as u32, ..failure }.into(),
        None => {}
    }
    if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) {
        return steps_exhausted(statement).into();
    }
    describe(statement, denied, error).into()
}

fn steps_exhausted(statement: usize) -> SqlFailure {
    let steps = WRITE_STEP_BLOCKS_MAX * STEPS_PER_CHECK as u64;
    sqlstate::refuse(
        statement,
        "54001",
        format!("the write needs more than {steps} steps, and all other writers would wait for it"),
        "write in smaller pieces, or add an index that its conditions can use",
    )
}

/// A failure for the user.
pub(crate) fn describe(statement: usize, denied: Option<String>, error: Error) -> SqlFailure {
    if let Some(reason) = denied {
        return sqlstate::refuse(statement, "42501", reason, sqlstate::hint("42501").unwrap_or_default());
    }
    match split(error) {
        Ok((extended, message)) => sqlstate::failure(statement, extended, message),
        Err(Error::MultipleStatement) => {
            sqlstate::refuse(statement, "42601", "there is more than one statement", "give one statement at a time")
        }
        Err(other) => sqlstate::refuse(statement, "42601", other.to_string(), ""),
    }
}

/// The failure of a query.
pub(crate) fn of_read(session: &SharedSession, error: Error) -> EngineError {
    if is_replicas_own(&error) {
        return EngineError::Storage(format!("read the shard's database: {error}"));
    }
    let denied = session.lock().denied.take();
    EngineError::Sql(describe(0, denied, error))
}

/// Trouble of this replica in reading what is Pleat's own.
pub(crate) fn storage(error: Error) -> EngineError {
    EngineError::Storage(error.to_string())
}

/// An error of a replica in the operating system's terms, if its cause is the disk: whoever owns the replica need not know SQLite. A full
/// disk is [`StorageFull`](std::io::ErrorKind::StorageFull): nothing of the batch is in the database, and it may be applied again. Any
/// other failure of a file is `EIO`.
pub fn disk_error(error: anyhow::Error) -> anyhow::Error {
    let of_sqlite = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    let full = [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_SHMSIZE];
    let os = match of_sqlite.and_then(Error::sqlite_error) {
        Some(failure) if full.contains(&failure.extended_code) => std::io::Error::from(std::io::ErrorKind::StorageFull),
        Some(failure) if failure.code == ErrorCode::SystemIoFailure => std::io::Error::from_raw_os_error(EIO),
        _ => return error,
    };
    let told = format!("{error:#}");
    anyhow::Error::new(os).context(told)
}

/// The failure of an fsync.
pub(crate) fn of_device(error: std::io::Error) -> anyhow::Error {
    anyhow::Error::new(std::io::Error::from_raw_os_error(EIO)).context(error.to_string())
}

/// The operating system's number for a failure of a device.
const EIO: i32 = 5;

fn is_replicas_own(error: &Error) -> bool {
    use ErrorCode::{
        CannotOpen, DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull, FileLockingProtocolFailed,
        InternalMalfunction, NotADatabase, OutOfMemory, SystemIoFailure,
    };
    matches!(
        error.sqlite_error_code(),
        Some(
            CannotOpen
                | DatabaseBusy
                | DatabaseCorrupt
                | DatabaseLocked
                | DiskFull
                | FileLockingProtocolFailed
                | InternalMalfunction
                | NotADatabase
                | OutOfMemory
                | SystemIoFailure
        )
    ) || matches!(error.sqlite_error(), Some(error) if error.extended_code & 0xff == ffi::SQLITE_MISUSE)
}

/// SQLite's extended code and message, when the error is SQLite's.
fn split(error: Error) -> Result<(i32, String), Error> {
    match error {
        Error::SqliteFailure(code, message) => Ok((code.extended_code, message.unwrap_or_else(|| code.to_string()))),
        Error::SqlInputError { error, msg, sql, offset } => Ok((error.extended_code, point(&msg, &sql, offset))),
        other => Err(other),
    }
}

/// The message, with the place in the text where it happened.
fn point(message: &str, sql: &str, offset: i32) -> String {
    let place = usize::try_from(offset).ok().and_then(|offset| sql.get(..offset));
    match place {
        Some(before) if message.contains("syntax error") || message.contains("unrecognized") => {
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or(before).chars().count() + 1;
            format!("{message} (line {line}, column {column})")
        }
        _ => message.to_owned(),
    }
}
