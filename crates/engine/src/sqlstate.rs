//! From SQLite's result codes to SQLSTATEs and hints: what a client of another database would get.

use rusqlite::ffi;

use crate::limits::VALUE_BYTES_MAX;
use crate::proposal::SqlFailure;

/// The SQLSTATE for one of SQLite's extended result codes. SQLite has one code for most mistakes in a
/// statement, so that its message has to tell them apart.
pub(crate) fn sqlstate(extended: i32, message: &str) -> &'static str {
    match extended {
        ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID => "23505",
        ffi::SQLITE_CONSTRAINT_NOTNULL => "23502",
        ffi::SQLITE_CONSTRAINT_CHECK => "23514",
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY => "23503",
        ffi::SQLITE_CONSTRAINT_DATATYPE | ffi::SQLITE_MISMATCH => "42804",
        ffi::SQLITE_CONSTRAINT_TRIGGER if message.starts_with("NOT NULL") => "23502",
        ffi::SQLITE_CONSTRAINT_TRIGGER if message.starts_with("rowid") => "2200H",
        ffi::SQLITE_CONSTRAINT_TRIGGER => "P0001",
        _ => match extended & 0xff {
            ffi::SQLITE_CONSTRAINT => "23000",
            ffi::SQLITE_TOOBIG => "54000",
            ffi::SQLITE_RANGE => "08P01",
            ffi::SQLITE_AUTH | ffi::SQLITE_PERM => "42501",
            ffi::SQLITE_READONLY => "25006",
            ffi::SQLITE_INTERRUPT => "57014",
            ffi::SQLITE_ERROR => of_message(message),
            _ => "58000",
        },
    }
}

fn of_message(message: &str) -> &'static str {
    const KNOWN: [(&str, &str); 17] = [
        ("no such table", "42P01"),
        ("no such column", "42703"),
        ("has no column named", "42703"),
        ("no such function", "42883"),
        ("wrong number of arguments", "42883"),
        ("ambiguous column name", "42702"),
        ("syntax error", "42601"),
        ("unrecognized token", "42601"),
        ("incomplete input", "42601"),
        ("values for", "42601"),
        ("values were supplied", "42601"),
        ("already exists", "42P07"),
        ("integer overflow", "22003"),
        ("malformed JSON", "22P02"),
        ("not authorized", "42501"),
        ("too large", "54000"),
        ("string or blob too big", "54000"),
    ];
    let found = KNOWN.iter().find(|(text, _)| message.contains(text)).map(|(_, code)| *code);
    found.unwrap_or(if message.contains("too ") { "54001" } else { "42000" })
}

/// What to do about it, where that can be said in general.
pub(crate) fn hint(code: &str) -> Option<&'static str> {
    Some(match code {
        "23505" => "a row with this key exists; use ON CONFLICT to update or skip it",
        "23502" => "give the column a value",
        "23503" => "the row that is referred to must exist, and must live on the same shard",
        "2200H" => "give the row a smaller id; 9223372036854775806 is the largest",
        "42P01" => "see which tables there are with \\d or GET /tables",
        "42501" => {
            "statements may use the tables of the cluster, and none of SQLite's means to change settings or files"
        }
        "54000" | "54001" => "make the statement or the value smaller, or split it",
        "57014" => "narrow the statement down, or do it in several steps",
        _ => return None,
    })
}

/// A failure of statement number `statement`, as SQLite reported it.
pub(crate) fn failure(statement: usize, extended: i32, message: String) -> SqlFailure {
    let code = sqlstate(extended, &message);
    let hint = match message.contains("string or blob too big") {
        true => Some(format!("a value, and a row, may have at most {VALUE_BYTES_MAX} bytes; split it")),
        false => hint(code).map(str::to_owned),
    };
    SqlFailure { statement: statement as u32, sqlite_code: extended, code: code.to_owned(), hint, message }
}

/// A failure that Pleat itself found.
pub(crate) fn refuse(statement: usize, code: &str, message: impl Into<String>, hint: &str) -> SqlFailure {
    SqlFailure {
        statement: statement as u32,
        sqlite_code: ffi::SQLITE_ERROR,
        code: code.to_owned(),
        message: message.into(),
        hint: (!hint.is_empty()).then(|| hint.to_owned()),
    }
}
