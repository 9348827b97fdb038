//! What a shard's database says about itself.

use anyhow::Context;
use pleat_cluster::Millis;
use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, OptionalExtension, params_from_iter};

use super::idempotency::Tally;
use super::value::{marks, quote};
use crate::ContentDigest;
use crate::digest::{RowHash, TableDigest};

/// The layout of Pleat's own tables.
pub(crate) const FORMAT: u32 = 7;

/// Whether Pleat's own tables are there.
pub(crate) fn is_set_up(conn: &Connection) -> rusqlite::Result<bool> {
    conn.prepare("SELECT 1 FROM sqlite_schema WHERE name = '__pleat_meta'")?.exists([])
}

/// The layout, and the partition count of the cluster that the shard belongs to.
pub(crate) fn format_and_partitions(conn: &Connection) -> rusqlite::Result<(u32, u32)> {
    let value = |key: &str| conn.query_row("SELECT value FROM __pleat_meta WHERE key = ?1", [key], |row| row.get(0));
    Ok((value("format")?, value("partition_count")?))
}

/// What was stored with the last batch.
pub(crate) fn applied(conn: &Connection) -> anyhow::Result<Vec<u8>> {
    conn.query_row("SELECT value FROM __pleat_applied WHERE id = 0", [], |row| row.get(0))
        .context("read how far the log is applied")
}

/// The log's time after the last batch. It stands beside the position, because it belongs to the position and not
/// to the content: within a batch it is in memory only.
pub(crate) fn log_time(conn: &Connection) -> rusqlite::Result<u64> {
    let mut statement = conn.prepare("SELECT value FROM __pleat_applied WHERE id = 1")?;
    Ok(statement.query_row([], |row| row.get::<_, i64>(0))? as u64)
}

/// The content version after the last batch: how often the content was changed. It stands beside the position too.
pub(crate) fn version(conn: &Connection) -> rusqlite::Result<u64> {
    let mut statement = conn.prepare_cached("SELECT value FROM __pleat_applied WHERE id = 2")?;
    Ok(statement.query_row([], |row| row.get::<_, i64>(0))? as u64)
}

/// What stands beside the position and belongs to it: within a batch it is in memory only.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Beside {
    /// The log's time: the latest `now_ms` of the entries so far. It never goes back, and expiry goes by it.
    pub(crate) now_ms: Millis,
    /// How often the content was changed: what a transaction has read is as it was while this stays.
    pub(crate) version: u64,
    /// How many writes are remembered.
    pub(crate) remembered: Tally,
}

impl Beside {
    /// As of the last batch.
    pub(crate) fn load(conn: &Connection) -> anyhow::Result<Beside> {
        let remembered: Vec<u8> =
            conn.query_row("SELECT value FROM __pleat_applied WHERE id = 3", [], |row| row.get(0))?;
        Ok(Beside { now_ms: log_time(conn)?, version: version(conn)?, remembered: Tally::decode(&remembered)? })
    }
}

/// Stores how far the log is applied and what stands beside it, in one statement.
pub(crate) fn set_applied(conn: &Connection, applied: &[u8], beside: &Beside) -> anyhow::Result<()> {
    conn.prepare_cached(
        "UPDATE __pleat_applied SET value = CASE id WHEN 0 THEN ?1 WHEN 1 THEN ?2 WHEN 2 THEN ?3 ELSE ?4 END \
         WHERE id BETWEEN 0 AND 3",
    )?
    .execute((applied, beside.now_ms as i64, beside.version as i64, beside.remembered.encode()?))?;
    Ok(())
}

/// Statistics stay in memory when the statement that gathered them is rolled back; a restarted replica would plan
/// without them.
pub(crate) fn reload_statistics(conn: &Connection) -> rusqlite::Result<()> {
    match conn.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_stat1'")?.exists([])? {
        true => conn.execute_batch("ANALYZE sqlite_schema"),
        false => Ok(()),
    }
}

/// Puts the rows of the statistics in order. ANALYZE visits tables in the order of a hash table in memory, which
/// depends on whether this connection made them or found them; so would the rows' rowids.
pub(crate) fn sort_statistics(conn: &Connection) -> rusqlite::Result<()> {
    for table in ["sqlite_stat1", "sqlite_stat4"] {
        if !conn.prepare("SELECT 1 FROM sqlite_schema WHERE name = ?1")?.exists([table])? {
            continue;
        }
        let mut all = conn.prepare(&format!("SELECT * FROM {table} ORDER BY tbl, idx, rowid"))?;
        let width = all.column_count();
        let mut rows = all.raw_query();
        let mut sorted = Vec::new();
        while let Some(row) = rows.next()? {
            sorted.push((0..width).map(|column| row.get(column)).collect::<rusqlite::Result<Vec<SqlValue>>>()?);
        }
        conn.execute(&format!("DELETE FROM {table}"), [])?;
        let mut insert = conn.prepare(&format!("INSERT INTO {table} VALUES ({})", marks(width)))?;
        for row in sorted {
            insert.execute(params_from_iter(row))?;
        }
    }
    Ok(())
}

/// The digest of all that is replicated: every table but the one that holds the position (which depends on how
/// the log was cut into batches), rowids included, and the schema.
pub(crate) fn digest(conn: &Connection) -> anyhow::Result<ContentDigest> {
    let mut digest = ContentDigest::default();
    let mut schema = conn.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema")?;
    digest.tables.insert("sqlite_schema".to_owned(), rows_digest(&mut schema)?);
    let mut tables = conn.prepare("SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type = 'table'")?;
    let tables: Vec<(String, bool)> =
        tables.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    for (name, without_rowid) in tables {
        if name == "__pleat_applied" || name == "sqlite_schema" {
            continue;
        }
        let rowid = match without_rowid {
            true => None,
            false => rowid_name(conn, &name)?,
        };
        let rowid = rowid.map(|rowid| format!("{rowid}, ")).unwrap_or_default();
        let mut rows = conn.prepare(&format!("SELECT {rowid}* FROM {}", quote(&name)))?;
        digest.tables.insert(name, rows_digest(&mut rows)?);
    }
    Ok(digest)
}

/// The digest of what a statement gives.
pub(crate) fn rows_digest(statement: &mut rusqlite::Statement<'_>) -> rusqlite::Result<TableDigest> {
    let count = statement.column_count();
    let mut digest = TableDigest::default();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        let mut hash = RowHash::new();
        for column in 0..count {
            hash.value(row.get_ref(column)?);
        }
        digest.add(hash.finish());
    }
    Ok(digest)
}

/// The name under which the rowid can be read, unless columns have taken all three.
fn rowid_name(conn: &Connection, table: &str) -> rusqlite::Result<Option<String>> {
    conn.prepare_cached(
        "SELECT alias.value FROM json_each('[\"rowid\",\"_rowid_\",\"oid\"]') AS alias \
         WHERE NOT EXISTS (SELECT 1 FROM pragma_table_xinfo(?1) WHERE lower(name) = alias.value) ORDER BY alias.key LIMIT 1",
    )?
    .query_row([table], |row| row.get(0))
    .optional()
}
