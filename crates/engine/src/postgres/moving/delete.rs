//! Rows that are not a server's any more.

use pleat_cluster::KeyType;

use super::super::{Connection, PostgresError};
use super::sql::{in_partitions, literal, number, only, qualified, quoted, value};
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

/// Delete rows of the movement's partitions (and of whole tables, if `whole`), about `limit` at most, in a transaction of its own. How many: 0
/// means that none is left. `sweep` begins as its default, and goes from one call to the next. Nobody may insert such rows meanwhile.
pub async fn delete_rows(
    server: &mut Connection,
    movement: &Movement,
    whole: bool,
    sweep: &mut Sweep,
    limit: u64,
) -> Result<u64, PostgresError> {
    loop {
        let Some(table) = movement.tables.get(sweep.table) else { return Ok(0) };
        if table.key.is_none() && !whole {
            *sweep = Sweep { table: sweep.table + 1, block: 0 };
            continue;
        }
        let begun = server.ask("BEGIN; SET LOCAL session_replication_role = replica").await;
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
        server.ask("COMMIT").await?;
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
