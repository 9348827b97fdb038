//! Nothing is left of an operation's attempts, whatever became of them.
//!
//! In this order: first those end who could go on with an attempt, then what they have made is removed. Each step finds what there is by the
//! operation's number alone, and does nothing where there is nothing, so clean-up may itself die at any point, and be repeated.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::{Connection, PostgresError, Server};
use super::setup::{ONE_AT_A_TIME, Tries, WAIT_LONG, WAIT_SHORT};
use super::sql::{literal, qualified, quoted, schema_name, session, session_prefix, slot_prefix, value};

/// Sessions may take so long to end.
const END_MAX: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// Remove everything of all attempts of an operation from its source. It may be called at any time and again. Rows are not touched.
pub async fn clean_source(source: &Server, operation: u64) -> Result<(), PostgresError> {
    let mut connection = cleaner(source, operation).await?;
    let prefix = literal(&slot_prefix(operation));
    let deadline = Instant::now() + END_MAX;
    loop {
        end_sessions(&mut connection, operation).await?;
        let drop_slots = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE starts_with(slot_name, {prefix})"
        );
        match connection.ask(&drop_slots).await {
            Ok(_) => break,
            // In use again; or dropped by its own session in between.
            Err(PostgresError::Answered { code, .. })
                if matches!(code.as_str(), "55006" | "42704") && Instant::now() < deadline =>
            {
                sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
    let (schema, mut tries) = (schema_name(operation), Tries::default());
    loop {
        let removed = unpublish(&mut connection, &schema).await;
        if tries.end(&mut connection, removed).await? {
            return Ok(());
        }
    }
}

async fn unpublish(source: &mut Connection, schema: &str) -> Result<(), PostgresError> {
    source.ask(&format!("BEGIN; {WAIT_LONG}; {ONE_AT_A_TIME}")).await?;
    restore(source, schema).await?;
    let remove = format!("DROP PUBLICATION IF EXISTS {schema}; DROP SCHEMA IF EXISTS {schema} CASCADE");
    source.ask(&remove).await.map(drop)
}

/// The same for the target: after it has returned, no transaction of an earlier attempt commits there.
pub async fn clean_target(target: &Server, operation: u64) -> Result<(), PostgresError> {
    let mut connection = cleaner(target, operation).await?;
    end_sessions(&mut connection, operation).await?;
    let (schema, mut tries) = (schema_name(operation), Tries::default());
    loop {
        // It waits for whoever holds the row of an attempt; whoever comes later finds none.
        let remove = format!("BEGIN; {WAIT_LONG}; DROP SCHEMA IF EXISTS {schema} CASCADE");
        let removed = connection.ask(&remove).await.map(drop);
        if tries.end(&mut connection, removed).await? {
            return Ok(());
        }
    }
}

/// Operations that have left something on a server, for whoever wants to know that all of them go on.
pub async fn operations_on(server: &mut Connection) -> Result<Vec<u64>, PostgresError> {
    let asked = server
        .ask(
            "SELECT DISTINCT substring(name, '^pleat_move_([0-9]+)(?:_|$)')::numeric FROM \
             (SELECT nspname::text FROM pg_namespace UNION ALL SELECT pubname::text FROM pg_publication \
              UNION ALL SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()) AS all_names (name) \
             WHERE name ~ '^pleat_move_[0-9]+(_|$)' ORDER BY 1",
        )
        .await?;
    Ok(asked.rows.iter().filter_map(|row| value(row, 0).parse().ok()).collect())
}

async fn cleaner(server: &Server, operation: u64) -> Result<Connection, PostgresError> {
    // A name that does not begin as those of attempts do.
    session(server, &format!("pleat clean op-{operation}")).await
}

/// End all sessions of the operation's attempts, and wait until they have.
async fn end_sessions(connection: &mut Connection, operation: u64) -> Result<(), PostgresError> {
    let (sessions, slots) = (literal(&session_prefix(operation)), literal(&slot_prefix(operation)));
    let end = format!(
        "SELECT pg_terminate_backend(pid) FROM \
         (SELECT pid FROM pg_stat_activity WHERE starts_with(application_name, {sessions}) \
          UNION SELECT active_pid FROM pg_replication_slots \
          WHERE starts_with(slot_name, {slots}) AND active_pid IS NOT NULL) AS all_sessions"
    );
    let deadline = Instant::now() + END_MAX;
    loop {
        let left = connection.ask(&end).await?.rows.len();
        if left == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let seconds = END_MAX.as_secs();
            return Err(PostgresError::Moving(format!(
                "{left} sessions of op-{operation} did not end within {seconds} s; end them with pg_terminate_backend \
                 (application_name \"{}…\")",
                session_prefix(operation)
            )));
        }
        sleep(PAUSE).await;
    }
}

/// Give tables the replica identity that they had, unless another operation still needs the one that they have: that one has it written down, too.
async fn restore(source: &mut Connection, schema: &str) -> Result<(), PostgresError> {
    let there = format!("SELECT to_regclass({}) IS NOT NULL", literal(&format!("{schema}.identity")));
    if source.ask(&there).await?.rows.first().is_none_or(|row| value(row, 0) != "t") {
        return Ok(());
    }
    let asked = source
        .ask(&format!(
            "SELECT w.schema, w.name, w.was, w.index, \
             EXISTS (SELECT 1 FROM pg_class x WHERE x.relnamespace = n.oid AND x.relname = w.index) \
             FROM {schema}.identity w JOIN pg_namespace n ON n.nspname = w.schema \
             JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relreplident = 'f' \
             WHERE NOT EXISTS (SELECT 1 FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid \
             WHERE r.prrelid = c.oid AND p.pubname ~ '^pleat_move_[0-9]+$' AND p.pubname <> {})",
            literal(schema)
        ))
        .await?;
    for row in &asked.rows {
        let table = qualified(value(row, 0), value(row, 1));
        let identity = match (value(row, 2), value(row, 4)) {
            ("d", _) => "DEFAULT".to_owned(),
            ("i", "t") => format!("USING INDEX {}", quoted(value(row, 3))),
            // An index that is gone identifies nothing.
            _ => "NOTHING".to_owned(),
        };
        source.ask(&format!("LOCK TABLE ONLY {table} IN SHARE UPDATE EXCLUSIVE MODE; {WAIT_SHORT}")).await?;
        source.ask(&format!("ALTER TABLE ONLY {table} REPLICA IDENTITY {identity}; {WAIT_LONG}")).await?;
    }
    Ok(())
}
