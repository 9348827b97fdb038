//! Rows that are not a server's any more.

use pleat_cluster::KeyType;

use super::super::{Connection, PostgresError, Server};
use super::apply::{commit, fenced_as};
use super::clean::clean_target;
use super::sql::{
    in_partitions, literal, number, only, qualified, quoted, schema_name, session, session_prefix, value,
};
use super::{Movement, Moving};

/// More rows than a block of the usual size can have.
const BLOCK_ROWS: u64 = 300;
/// Blocks that are looked through in one transaction, in pieces that have so many rows at most.
const PIECES_MAX: u64 = 16;

/// How far [`delete_rows`] has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sweep {
    table: usize,
    block: u64,
}

/// The right to delete rows: nobody's who was replaced.
///
/// Whoever cleans up takes a *turn* on the server, which ends the one before it for good, and only then asks the control group whether it
/// still is the one to do so. So whoever comes later has asked later, and takes its turn later.
pub struct Turn {
    operation: u64,
    number: i64,
    connection: Connection,
}

impl Turn {
    /// Take a turn, as the leader of a term. Whatever of the operation's attempts is on the server goes, as by [`clean_target`] (which also takes care of sessions; on a source
    /// [`clean_source`](super::clean_source) has to go before). [`Turn::end`] removes what it makes itself.
    pub async fn take(server: &Server, operation: u64, term: u64) -> Result<Turn, PostgresError> {
        clean_target(server, operation).await?;
        // Ended with those of attempts, by whoever takes the next turn.
        let mut connection = session(server, &format!("{}clean", session_prefix(operation))).await?;
        // Attempts count from 1.
        let (schema, number) = (schema_name(operation), -i64::try_from(term).unwrap_or(i64::MAX));
        let make = format!(
            "BEGIN; CREATE SCHEMA {schema}; CREATE TABLE {schema}.attempt (number bigint PRIMARY KEY, position pg_lsn); \
             INSERT INTO {schema}.attempt VALUES ({number}, NULL); COMMIT"
        );
        connection.ask(&make).await?;
        Ok(Turn { operation, number, connection })
    }

    /// Everything that a new server got: its tables, types and functions.
    pub async fn empty(&mut self) -> Result<(), PostgresError> {
        let (begin, schema) = (fenced_as(self.operation, self.number), schema_name(self.operation));
        let connection = &mut self.connection;
        connection.ask(&begin).await?;
        let asked = connection
            .ask(&format!(
                "SELECT nspname FROM pg_namespace \
                 WHERE nspname NOT LIKE 'pg\\_%' AND nspname NOT IN ('information_schema', '{schema}')"
            ))
            .await?;
        let schemas: Vec<String> = asked.rows.iter().map(|row| quoted(value(row, 0))).collect();
        for name in schemas {
            connection.ask(&format!("DROP SCHEMA {name} CASCADE")).await?;
        }
        connection.ask("CREATE SCHEMA public").await?;
        commit(connection).await
    }

    /// Nothing is left of the turn either.
    pub async fn end(self, server: &Server) -> Result<(), PostgresError> {
        drop(self.connection);
        clean_target(server, self.operation).await
    }
}

/// Delete rows of the movement's partitions (and of whole tables, if `whole`), about `limit` at most, in a transaction of its own. How many: 0
/// means that none is left. `sweep` begins as its default, and goes from one call to the next. Nobody may insert such rows meanwhile.
pub async fn delete_rows(
    turn: &mut Turn,
    movement: &Movement,
    whole: bool,
    sweep: &mut Sweep,
    limit: u64,
) -> Result<u64, PostgresError> {
    let begin = format!("{}; SET LOCAL session_replication_role = replica", fenced_as(turn.operation, turn.number));
    let server = &mut turn.connection;
    loop {
        let Some(table) = movement.tables.get(sweep.table) else { return Ok(0) };
        if table.key.is_none() && !whole {
            *sweep = Sweep { table: sweep.table + 1, block: 0 };
            continue;
        }
        let begun = server.ask(&begin).await;
        let done = match begun {
            Ok(_) => some(server, movement, table, sweep.block, limit).await,
            Err(error) => Err(error),
        };
        let (deleted, next) = match done {
            Ok(done) => done,
            Err(error) => {
                // The session is its owner's again.
                if !matches!(error, PostgresError::Lost(_)) {
                    server.ask("ROLLBACK").await?;
                }
                return Err(error);
            }
        };
        commit(server).await?;
        *sweep = match next {
            Some(block) => Sweep { block, ..*sweep },
            None => Sweep { table: sweep.table + 1, block: 0 },
        };
        if deleted > 0 {
            return Ok(deleted);
        }
    }
}

/// How many rows were deleted, and the block to go on with.
async fn some(
    server: &mut Connection,
    movement: &Movement,
    Moving { schema, name, key }: &Moving,
    mut block: u64,
    limit: u64,
) -> Result<(u64, Option<u64>), PostgresError> {
    let table = qualified(schema, name);
    let class = literal(&table);
    let size = format!(
        "SELECT pg_relation_size(to_regclass({class})) / current_setting('block_size')::bigint, to_regclass({class}) IS NULL"
    );
    let asked = server.ask(&size).await?;
    if value(only(&asked)?, 1) == "t" {
        return Ok((0, None));
    }
    let blocks: u64 = number(only(&asked)?, 0)?;
    let condition = key.as_ref().map_or_else(
        || "true".to_owned(),
        |(column, kind): &(String, KeyType)| {
            in_partitions(&quoted(column), *kind, movement.partition_count, &movement.partitions)
        },
    );
    let (mut deleted, piece) = (0, (limit / BLOCK_ROWS).max(1));
    for _ in 0..PIECES_MAX {
        if block >= blocks {
            return Ok((deleted, None));
        }
        let end = block.saturating_add(piece).min(blocks);
        let delete =
            format!("DELETE FROM ONLY {table} WHERE ctid >= '({block},0)' AND ctid < '({end},0)' AND {condition}");
        let tag = server.ask(&delete).await?.tag;
        let gone: u64 = tag.strip_prefix("DELETE ").and_then(|rows| rows.parse().ok()).unwrap_or_default();
        (deleted, block) = (deleted + gone, end);
        if deleted.saturating_add(piece * BLOCK_ROWS) > limit {
            break;
        }
    }
    Ok((deleted, Some(block)))
}
