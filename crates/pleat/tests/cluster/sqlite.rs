//! Plain SQLite, whose answers are the right ones.

use std::sync::Arc;

use parking_lot::Mutex;
use pleat_cluster::Value;
use pleat_generate::Answer;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ffi, params_from_iter};

use crate::client::Done;

/// A database in memory, shared by its clones.
#[derive(Clone)]
pub struct Sqlite(Arc<Mutex<Connection>>);

/// An error with the SQLSTATE that Pleat gives it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Failure {
    pub code: &'static str,
    pub message: String,
}

impl Sqlite {
    pub fn new() -> Self {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("PRAGMA foreign_keys = ON").unwrap();
        Self(Arc::new(Mutex::new(connection)))
    }

    /// One statement, or several writes; of several, the rows of the last and what all of them changed.
    pub fn run(&self, sql: &str, values: &[Value]) -> Result<Done, Failure> {
        let statements = pleat_sql::split_script(sql)
            .map_err(|error| Failure { code: error.sqlstate(), message: error.message.clone() })?;
        let [statement] = statements.as_slice() else { return self.run_script(&statements, values) };
        self.run_one(&plain(statement), values)
    }

    fn run_script(&self, statements: &[&str], values: &[Value]) -> Result<Done, Failure> {
        let none = Answer { columns: Vec::new(), rows: Vec::new() };
        let mut all = Done { answer: none, rows_affected: 0 };
        let mut values = values.iter().cloned();
        for statement in statements {
            let own: Vec<Value> = values.by_ref().take(statement.matches('?').count()).collect();
            let done = self.run_one(statement, &own)?;
            all = Done { rows_affected: all.rows_affected + done.rows_affected, ..done };
        }
        Ok(all)
    }

    fn run_one(&self, sql: &str, values: &[Value]) -> Result<Done, Failure> {
        let connection = self.0.lock();
        let before = connection.total_changes();
        let answer = query(&connection, sql, values).map_err(|error| failure(&error))?;
        let changed = connection.total_changes() > before;
        Ok(Done { answer, rows_affected: if changed { connection.changes() } else { 0 } })
    }
}

fn query(connection: &Connection, sql: &str, values: &[Value]) -> rusqlite::Result<Answer> {
    let mut statement = connection.prepare(sql)?;
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let mut found = statement.query(params_from_iter(values.iter().map(to_sqlite)))?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        rows.push((0..columns.len()).map(|at| value(row.get_ref_unwrap(at))).collect());
    }
    Ok(Answer { columns, rows })
}

/// The statement without what only Pleat knows: where a table's rows live.
fn plain(sql: &str) -> String {
    let upper = sql.to_ascii_uppercase();
    if !upper.trim_start().starts_with("CREATE TABLE") {
        return sql.to_owned();
    }
    let end = ["SHARD BY", "REFERENCE", "SINGLE"].iter().filter_map(|clause| {
        let at = upper.rfind(clause)?;
        let rest = upper[at + clause.len()..].trim_start();
        (rest.is_empty() || *clause == "SHARD BY").then_some(at)
    });
    let kept = &sql[..end.min().unwrap_or(sql.len())];
    kept.trim_end().trim_end_matches(',').to_owned()
}

fn failure(error: &rusqlite::Error) -> Failure {
    let message = error.to_string();
    let extended = error.sqlite_error().map_or(0, |error| error.extended_code);
    let says = |text: &str| message.contains(text);
    let code = match extended {
        ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID => "23505",
        ffi::SQLITE_CONSTRAINT_NOTNULL => "23502",
        ffi::SQLITE_CONSTRAINT_CHECK => "23514",
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY => "23503",
        ffi::SQLITE_CONSTRAINT_DATATYPE | ffi::SQLITE_MISMATCH => "42804",
        ffi::SQLITE_CONSTRAINT_TRIGGER => "P0001",
        _ if says("no such table") => "42P01",
        _ if says("no such column") || says("has no column named") => "42703",
        _ if says("ambiguous column") => "42702",
        _ if says("no such function") || says("wrong number of arguments") => "42883",
        _ if says("already exists") => "42P07",
        _ if says("integer overflow") => "22003",
        _ if says("malformed JSON") => "22P02",
        _ if says("no such savepoint") => "3B001",
        _ if says("syntax error") || says("incomplete input") || says("values for") || says("values were supplied") => {
            "42601"
        }
        _ => "42000",
    };
    Failure { code, message }
}

fn to_sqlite(value: &Value) -> rusqlite::types::Value {
    match value {
        Value::Null => rusqlite::types::Value::Null,
        Value::Integer(integer) => rusqlite::types::Value::Integer(*integer),
        Value::Real(real) => rusqlite::types::Value::Real(*real),
        Value::Text(text) => rusqlite::types::Value::Text(text.clone()),
        Value::Blob(bytes) => rusqlite::types::Value::Blob(bytes.clone()),
    }
}

fn value(value: ValueRef) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(integer) => Value::Integer(integer),
        ValueRef::Real(real) => Value::Real(real),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    }
}
