//! What an attempt makes on its servers before it begins.
//!
//! Clients' statements must not wait for long behind ours. A lock that holds them up is therefore waited for shortly, and often; one that does not
//! (against other schema changes, and vacuum, which gives way after a second) is taken first.

use std::time::Duration;

use tokio::time::sleep;

use super::super::{Connection, PostgresError};
use super::Movement;
use super::sql::{is_locked_out, literal, qualified, quoted, schema_name, value};

/// How often locks are tried to get, and the pause between two times.
const TRIES_MAX: u32 = 30;
const PAUSE: Duration = Duration::from_millis(300);
/// Held while replica identities change, so that operations see each other's.
pub const ONE_AT_A_TIME: &str = "SELECT pg_advisory_xact_lock(hashtextextended('pleat move', 0))";
/// Locks that hold up nobody's rows; and those that do.
pub const WAIT_LONG: &str = "SET LOCAL lock_timeout = '3s'";
pub const WAIT_SHORT: &str = "SET LOCAL lock_timeout = '150ms'";

/// Ends a transaction that was begun; one that somebody else's lock was in the way of is to be tried again.
#[derive(Default)]
pub struct Tries(u32);

impl Tries {
    /// Whether it was committed.
    pub async fn end(
        &mut self,
        session: &mut Connection,
        done: Result<(), PostgresError>,
    ) -> Result<bool, PostgresError> {
        let error = match done {
            Ok(()) => return session.ask("COMMIT").await.map(|_| true),
            Err(PostgresError::Lost(why)) => return Err(PostgresError::Lost(why)),
            Err(error) => error,
        };
        session.ask("ROLLBACK").await?;
        self.0 += 1;
        if !is_locked_out(&error) || self.0 >= TRIES_MAX {
            return Err(error);
        }
        sleep(PAUSE).await;
        Ok(false)
    }
}

/// The table that says which attempt goes on, and how far it has come.
pub async fn target(target: &mut Connection, movement: &Movement) -> Result<(), PostgresError> {
    let (schema, attempt) = (schema_name(movement.operation), movement.attempt);
    let make = format!(
        "CREATE SCHEMA {schema}; CREATE TABLE {schema}.attempt (number bigint PRIMARY KEY, position pg_lsn); \
         INSERT INTO {schema}.attempt VALUES ({attempt}, NULL)"
    );
    target.ask(&make).await.map(drop)
}

/// The publication; and a replica identity for every table that has none, or one without the shard key. What was there before is written down.
pub async fn source(source: &mut Connection, movement: &Movement) -> Result<(), PostgresError> {
    let mut tries = Tries::default();
    loop {
        let made = publish(source, movement).await;
        if tries.end(source, made).await? {
            return Ok(());
        }
    }
}

async fn publish(source: &mut Connection, movement: &Movement) -> Result<(), PostgresError> {
    let schema = schema_name(movement.operation);
    let tables: Vec<String> = movement.tables.iter().map(|table| qualified(&table.schema, &table.name)).collect();
    let tables = tables.join(", ONLY ");
    source.ask(&format!("BEGIN; {WAIT_LONG}; {ONE_AT_A_TIME}")).await?;
    source
        .ask(&format!(
            "CREATE SCHEMA {schema}; \
             CREATE TABLE {schema}.identity (schema text, name text, was text, index text, PRIMARY KEY (schema, name))"
        ))
        .await?;
    if tables.is_empty() {
        return source.ask(&format!("CREATE PUBLICATION {schema}")).await.map(drop);
    }
    source.ask(&format!("LOCK TABLE ONLY {tables} IN SHARE UPDATE EXCLUSIVE MODE")).await?;
    take_over(source, &schema).await?;
    source.ask(WAIT_SHORT).await?;
    for table in &movement.tables {
        let key = table.key.as_ref().map(|(key, _)| key.as_str());
        identify(source, &schema, (&table.schema, &table.name), key).await?;
    }
    source.ask(&format!("CREATE PUBLICATION {schema} FOR TABLE ONLY {tables}")).await.map(drop)
}

/// What another operation has changed already is to be undone by whichever ends last.
async fn take_over(source: &mut Connection, schema: &str) -> Result<(), PostgresError> {
    let others = "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                  WHERE n.nspname ~ '^pleat_move_[0-9]+$' AND c.relname = 'identity'";
    for other in source.ask(others).await?.rows {
        let other = quoted(value(&other, 0));
        if other != quoted(schema) {
            let insert = format!("INSERT INTO {schema}.identity SELECT * FROM {other}.identity ON CONFLICT DO NOTHING");
            source.ask(&insert).await?;
        }
    }
    Ok(())
}

async fn identify(
    source: &mut Connection,
    schema: &str,
    (of, name): (&str, &str),
    key: Option<&str>,
) -> Result<(), PostgresError> {
    let class = format!("{}::regclass", literal(&qualified(of, name)));
    let key = key.map_or_else(|| "true".to_owned(), |key| format!("{} = ANY(names)", literal(key)));
    // The index that the identity is made of, if it is one that the server itself would take.
    let asked = source
        .ask(&format!(
            "SELECT c.relreplident, coalesce(i.index, ''), \
             c.relreplident = 'f' OR (i.index IS NOT NULL AND {key}) \
             FROM pg_class c LEFT JOIN LATERAL \
             (SELECT x.relname AS index, (SELECT array_agg(a.attname::text) FROM pg_attribute a \
              WHERE a.attrelid = c.oid AND a.attnum = ANY(p.indkey)) AS names \
              FROM pg_index p JOIN pg_class x ON x.oid = p.indexrelid \
              WHERE p.indrelid = c.oid AND p.indisvalid AND p.indimmediate AND p.indpred IS NULL AND p.indisunique \
              AND CASE c.relreplident WHEN 'd' THEN p.indisprimary WHEN 'i' THEN p.indisreplident ELSE false END) i ON true \
             WHERE c.oid = {class}"
        ))
        .await?;
    let none = || PostgresError::Moving(format!("table {of}.{name} is not on the source"));
    let row = asked.rows.first().ok_or_else(none)?;
    if value(row, 2) == "t" {
        return Ok(());
    }
    let values = [of, name, value(row, 0), value(row, 1)].map(literal).join(", ");
    source
        .ask(&format!(
            "INSERT INTO {schema}.identity VALUES ({values}); ALTER TABLE ONLY {} REPLICA IDENTITY FULL",
            qualified(of, name)
        ))
        .await?;
    Ok(())
}
