//! Whether what was begun on a server before some moment has ended there.

use super::super::{Asked, Connection, PostgresError};
use super::sql::{number, value};

/// A transaction that may still write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsettled {
    /// Of the server's process. Absent: a prepared transaction.
    pub pid: Option<u32>,
    /// Of a prepared transaction.
    pub gid: Option<String>,
    pub age_seconds: u64,
    /// `active`, `idle in transaction`, `prepared`.
    pub state: String,
    /// The beginning of what it ran last.
    pub query: String,
}

impl Unsettled {
    /// What [`unsettled`] asks the server.
    pub fn question(since: Option<&str>) -> String {
        let since = since.map_or_else(|| "NULL".to_owned(), |since| format!("'{}'", since.replace('\'', "''")));
        // Sessions of the replication protocol are Pleat's own (and of others who read); vacuum writes nobody's rows. A statement that has not
        // written yet has no transaction id, but may have read whose rows are where.
        format!(
            "SELECT pid, NULL, extract(epoch FROM clock_timestamp() - coalesce(xact_start, query_start, backend_start)) AS age, \
             coalesce(state, backend_type), left(query, 200) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid() \
             AND backend_type NOT IN ('walsender', 'autovacuum worker', 'parallel worker') \
             AND (backend_xid IS NOT NULL OR (state NOT LIKE 'idle%' AND query_start < {since}::timestamptz)) \
             UNION ALL SELECT NULL, gid, extract(epoch FROM clock_timestamp() - prepared), 'prepared', '' \
             FROM pg_prepared_xacts WHERE database = current_database() \
             ORDER BY age DESC LIMIT 100"
        )
    }

    /// And what its answer says.
    pub fn read(asked: &Asked) -> Result<Vec<Unsettled>, PostgresError> {
        let read = |row: &Vec<Option<String>>| {
            let age: f64 = number(row, 2)?;
            Ok(Unsettled {
                pid: value(row, 0).parse().ok(),
                gid: row.get(1).cloned().flatten(),
                age_seconds: age.max(0.0) as u64,
                state: value(row, 3).to_owned(),
                query: value(row, 4).to_owned(),
            })
        };
        asked.rows.iter().map(read).collect()
    }
}

/// Transactions that are not ended and may still write: those that have written; prepared ones; and, with `since` (a time as
/// `clock_timestamp()::text` gave it earlier), statements that run and began before it. The oldest first; up to a hundred.
pub async fn unsettled(source: &mut Connection, since: Option<&str>) -> Result<Vec<Unsettled>, PostgresError> {
    Unsettled::read(&source.ask(&Unsettled::question(since)).await?)
}
