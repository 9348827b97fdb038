//! Measuring a shard: what is counted is what it owns.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleat_cluster::{PartitionId, TableKind};
use rusqlite::types::ValueRef;

use super::failure::storage;
use super::readers::{Reader, Readers, Shared};
use super::session::Key;
use super::table;
use super::value::quote;
use crate::{EngineError, ShardStats, UnitSet};

/// The last measurement, and the connection that knows whether it is still right.
#[derive(Default)]
pub(crate) struct Measured {
    reader: Option<Reader>,
    data_version: i64,
    stats: ShardStats,
}

/// Rows and sizes. A count reads a whole index, so it is done again only after a commit.
pub(crate) fn stats(shared: &Arc<Shared>) -> Result<ShardStats, EngineError> {
    shared.snapshots.close_idle();
    let mut measured = shared.measured.lock();
    let known = measured.reader.take().filter(|reader| shared.is_current(reader));
    if known.is_none() {
        measured.data_version = 0;
    }
    let mut reader = match known {
        Some(reader) => reader,
        None => shared.new_reader()?,
    };
    let version: i64 = reader.db.conn.query_row("PRAGMA data_version", [], |row| row.get(0)).map_err(storage)?;
    if version != measured.data_version {
        reader.begin()?;
        let counted = count(&reader);
        reader.end();
        measured.stats = counted?;
        measured.data_version = version;
    }
    measured.stats.file_bytes = file_bytes(shared);
    measured.reader = Some(reader);
    Ok(measured.stats.clone())
}

fn count(reader: &Reader) -> Result<ShardStats, EngineError> {
    let conn = &reader.db.conn;
    let foreign_rows = reader.placement.has_foreign_rows();
    let mut stats = ShardStats { ownership: reader.placement.ownership, foreign_rows, ..ShardStats::default() };
    reader.set_units(UnitSet::default());
    for spec in table::load(conn).map_err(|error| EngineError::Storage(error.to_string()))?.values() {
        let filter = match spec.table.shard_key().filter(|_| foreign_rows) {
            Some((key, _)) => format!(" WHERE pleat_owned({})", quote(key)),
            // What is there of it while it comes or goes is another shard's.
            None if spec.unit.is_none() && matches!(spec.table.kind, TableKind::Single { .. }) => " WHERE 0".to_owned(),
            None => String::new(),
        };
        let sql = format!("SELECT count(*) FROM {}{filter}", spec.quoted());
        let rows: i64 = conn.query_row(&sql, [], |row| row.get(0)).map_err(storage)?;
        stats.tables.insert(spec.table.name.clone(), rows as u64);
        stats.rows += rows as u64;
    }
    Ok(stats)
}

fn file_bytes(shared: &Shared) -> u64 {
    let mut wal = shared.path.as_os_str().to_owned();
    wal.push("-wal");
    let bytes = |path: &std::path::Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    bytes(&shared.path) + bytes(std::path::Path::new(&wal))
}

/// Rows and bytes per partition, by reading every row of the sharded tables.
pub(crate) fn partition_weights(shared: &Arc<Shared>) -> Result<BTreeMap<PartitionId, (u64, u64)>, EngineError> {
    Readers::with_snapshot(shared, |reader| {
        let owned = &reader.placement.owned;
        let mut weights: BTreeMap<_, _> =
            owned.iter().filter(|unit| !unit.is_single()).map(|unit| (unit, (0, 0))).collect();
        for spec in table::load(&reader.db.conn).map_err(|error| EngineError::Storage(error.to_string()))?.values() {
            if let Some((key, _)) = spec.table.shard_key() {
                let sql = format!("SELECT {}, * FROM {}", quote(key), spec.quoted());
                weigh(reader, &sql, shared.config.partition_count, &mut weights).map_err(storage)?;
            }
        }
        Ok(weights)
    })
}

fn weigh(
    reader: &Reader,
    sql: &str,
    partition_count: u32,
    weights: &mut BTreeMap<PartitionId, (u64, u64)>,
) -> rusqlite::Result<()> {
    let mut statement = reader.db.conn.prepare(sql)?;
    let count = statement.column_count();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        let partition = Key::from(row.get_ref(0)?).partition(partition_count);
        let Some((rows, bytes)) = partition.and_then(|partition| weights.get_mut(&partition)) else { continue };
        *rows += 1;
        for column in 1..count {
            *bytes += match row.get_ref(column)? {
                ValueRef::Null => 1,
                ValueRef::Integer(_) | ValueRef::Real(_) => 8,
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.len() as u64,
            };
        }
    }
    Ok(())
}
