//! The names of what a move makes on servers, and the sessions that it has there.

use std::collections::BTreeSet;
use std::time::Duration;

use pleat_cluster::{KeyType, partition_in_postgres};
use tokio::time::timeout;

use super::super::{Asked, Connection, PostgresError, Server};

/// Connecting and logging in may take this long.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// What a value's text form depends on, and what would end a session that has much to do.
const SETTINGS: [(&str, &str); 17] = [
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("xmloption", "content"),
    ("xmlbinary", "base64"),
    ("standard_conforming_strings", "on"),
    // Only with no other schema in the path are all names told in full.
    ("search_path", ""),
    // An error where a policy hides rows: they would be lost.
    ("row_security", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    // Its clients need the processors more.
    ("max_parallel_workers_per_gather", "0"),
];

/// The schema of an operation on both servers, which is also the name of its publication and the prefix of its messages.
pub fn schema_name(operation: u64) -> String {
    format!("pleat_move_{operation}")
}

/// What all slots of an operation begin with.
pub fn slot_prefix(operation: u64) -> String {
    format!("pleat_move_{operation}_")
}

/// What all sessions of an operation's attempts begin with, as their `application_name`.
pub fn session_prefix(operation: u64) -> String {
    format!("pleat move op-{operation}/")
}

/// A session that writes.
pub async fn session(server: &Server, name: &str) -> Result<Connection, PostgresError> {
    open(server, name, &[]).await
}

/// A session of the replication protocol, which takes plain statements, too, but no parameters. All sessions on a source are such: the
/// server tells them from clients' itself, whatever clients call themselves, so none holds up a fence.
pub async fn walsender(server: &Server, name: &str) -> Result<Connection, PostgresError> {
    // Nothing is read from it while the target works, which may take long.
    open(server, name, &[("replication", "database"), ("wal_sender_timeout", "1h")]).await
}

async fn open(server: &Server, name: &str, more: &[(&str, &str)]) -> Result<Connection, PostgresError> {
    let mut settings = vec![("application_name", name)];
    settings.extend(SETTINGS);
    settings.extend_from_slice(more);
    let opened = timeout(CONNECT_MAX, Connection::open_with(server, &settings)).await;
    opened.unwrap_or_else(|_| Err(PostgresError::Unavailable(format!("no session after {} s", CONNECT_MAX.as_secs()))))
}

/// A name in a statement.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quoted(schema), quoted(name))
}

/// A text in a statement of a session of ours.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A value of an answer; NULL is an empty text.
pub fn value(row: &[Option<String>], column: usize) -> &str {
    row.get(column).and_then(|value| value.as_deref()).unwrap_or_default()
}

/// A number of an answer.
pub fn number<N: std::str::FromStr>(row: &[Option<String>], column: usize) -> Result<N, PostgresError> {
    let odd = |_| PostgresError::Moving(format!("the server gave {:?} for a number", value(row, column)));
    value(row, column).parse().map_err(odd)
}

/// The one row of an answer.
pub fn only(asked: &Asked) -> Result<&[Option<String>], PostgresError> {
    match &asked.rows[..] {
        [row] => Ok(row),
        rows => Err(PostgresError::Moving(format!("the server gave {} rows where one was due", rows.len()))),
    }
}

/// Whether somebody else's lock was in the way, so that the same may do later.
pub fn is_locked_out(error: &PostgresError) -> bool {
    matches!(error.sqlstate(), "55P03" | "40P01" | "40001")
}

/// The condition that a row's partition is among these, in PostgreSQL's SQL. `column` is a quoted name.
pub fn in_partitions(column: &str, key: KeyType, count: u32, partitions: &BTreeSet<u32>) -> String {
    let among: Vec<String> = partitions.iter().map(u32::to_string).collect();
    let partition = partition_in_postgres(column, key, count);
    format!("{partition} = ANY('{{{}}}'::bigint[])", among.join(","))
}
