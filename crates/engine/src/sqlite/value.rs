//! Values on their way into and out of SQLite.

use pleat_cluster::Value;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Row, Statement};

/// Binds a value without copying it first.
pub struct Bind<'a>(pub &'a Value);

impl ToSql for Bind<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(value_ref(self.0)))
    }
}

/// Binds what SQLite gave, or what came in its form.
struct BindRef<'a>(ValueRef<'a>);

impl ToSql for BindRef<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.0))
    }
}

/// A value in SQLite's form.
pub(crate) fn value_ref(value: &Value) -> ValueRef<'_> {
    match value {
        Value::Null => ValueRef::Null,
        Value::Integer(number) => ValueRef::Integer(*number),
        Value::Real(real) => ValueRef::Real(*real),
        Value::Text(text) => ValueRef::Text(text.as_bytes()),
        Value::Blob(bytes) => ValueRef::Blob(bytes),
    }
}

/// A value as a client gets it: text that is not UTF-8 has its wrong bytes replaced.
pub fn value_of(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Integer(number),
        ValueRef::Real(real) => Value::Real(real),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    }
}

/// A value that has to arrive unchanged at another shard: `None` for text that is not UTF-8.
pub(crate) fn exact_value_of(value: ValueRef<'_>) -> Option<Value> {
    match value {
        ValueRef::Text(text) => std::str::from_utf8(text).ok().map(Value::from),
        other => Some(value_of(other)),
    }
}

/// The first `count` columns of a row.
pub(crate) fn values_of(row: &Row<'_>, count: usize) -> rusqlite::Result<Vec<Value>> {
    (0..count).map(|column| row.get_ref(column).map(value_of)).collect()
}

/// Binds `params` to the parameters from number `first` (from 1) on.
pub(crate) fn bind(statement: &mut Statement<'_>, first: usize, params: &[Value]) -> rusqlite::Result<()> {
    for (number, value) in (first..).zip(params) {
        statement.raw_bind_parameter(number, Bind(value))?;
    }
    Ok(())
}

/// The same with values in SQLite's form.
pub(crate) fn bind_refs(statement: &mut Statement<'_>, first: usize, values: &[ValueRef<'_>]) -> rusqlite::Result<()> {
    for (number, value) in (first..).zip(values) {
        statement.raw_bind_parameter(number, BindRef(*value))?;
    }
    Ok(())
}

/// `"name"`, with quotes inside doubled.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `"a", "b"`.
pub(crate) fn quoted_list(names: &[String]) -> String {
    names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ")
}

/// `?, ?, ?`.
pub(crate) fn marks(count: usize) -> String {
    vec!["?"; count].join(", ")
}
