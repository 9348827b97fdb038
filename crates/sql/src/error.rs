//! What goes wrong before a statement reaches a shard, in terms that a user can act on.

use serde::{Deserialize, Serialize};

/// A statement that can't be planned.
///
/// `code` is a SQLSTATE, `message` says what is wrong and `hint` what to do about it. `line` and `column`
/// (both from 1, columns in characters) point into the statement's text where the place is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    pub code: Code,
    pub message: String,
    pub hint: Option<String>,
    pub position: Option<Position>,
}

/// A place in a statement's text: line and column from 1, columns counted in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

/// The SQLSTATEs that planning can answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Code {
    /// `42601`: the text is not SQL that Pleat can read.
    Syntax,
    /// `42P01`: no such table.
    UnknownTable,
    /// `42703`: no such column.
    UnknownColumn,
    /// `42704`: no such index or view.
    UnknownObject,
    /// `42P07`: the table, view or index exists already.
    Duplicate,
    /// `42939`: the name is Pleat's or SQLite's own.
    ReservedName,
    /// `42809`: a view where a table has to be, or a table where a view has.
    WrongObject,
    /// `42P16`: a table definition that Pleat can't keep its promises for.
    InvalidTable,
    /// `0A000`: not supported (yet).
    Unsupported,
    /// `0A000`: not possible on a shard that holds rows which it doesn't own, as it does while some are moved. It passes.
    RowsMoving,
    /// `23502`: a row without a shard key.
    NullKey,
    /// `22P02`: a shard key that the key column's type can't hold.
    KeyType,
    /// `07001`: the parameters given are not those that the statement has.
    Parameters,
    /// `54000`: the statement is too long.
    TooLong,
    /// `54001`: the statement is nested too deeply or has too many parts.
    TooComplex,
}

impl Code {
    /// The five characters of the SQLSTATE.
    pub fn sqlstate(self) -> &'static str {
        match self {
            Code::Syntax => "42601",
            Code::UnknownTable => "42P01",
            Code::UnknownColumn => "42703",
            Code::UnknownObject => "42704",
            Code::Duplicate => "42P07",
            Code::ReservedName => "42939",
            Code::WrongObject => "42809",
            Code::InvalidTable => "42P16",
            Code::Unsupported | Code::RowsMoving => "0A000",
            Code::NullKey => "23502",
            Code::KeyType => "22P02",
            Code::Parameters => "07001",
            Code::TooLong => "54000",
            Code::TooComplex => "54001",
        }
    }
}

impl SqlError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        SqlError { code, message: message.into(), hint: None, position: None }
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Code::Unsupported, message)
    }

    pub(crate) fn syntax(message: impl Into<String>) -> Self {
        Self::new(Code::Syntax, message)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Points at byte `offset` of `text`.
    pub(crate) fn at(mut self, text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        self.position = Some(Position { line: small(line), column: small(column) });
        self
    }

    /// The SQLSTATE's five characters.
    pub fn sqlstate(&self) -> &'static str {
        self.code.sqlstate()
    }
}
