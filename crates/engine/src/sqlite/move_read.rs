//! The reading side of a move.
//!
//! The copy reads one snapshot over many requests, which is kept open by number for as long as somebody asks. Every
//! other answer is computed in a snapshot of its own.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{PartitionId, Value};
use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, Row};

use super::content::rows_digest;
use super::failure::storage;
use super::idempotency::{self, EVERY_UNIT};
use super::import::foreign_of;
use super::move_step::moving_tables;
use super::readers::{Reader, Readers, Shared};
use super::reference;
use super::table::{self, Moving, Specs, TableSpec};
use super::txn;
use super::value::{bind, exact_value_of, marks, quote, quoted_list, value_of};
use crate::limits::{
    MOVE_SNAPSHOT_IDLE_SECONDS_MAX, MOVE_SNAPSHOTS_MAX, REFERENCE_LOG_BYTES_MAX, VERIFY_DELTA_BYTES_MAX,
    VERIFY_DELTA_ROWS_MAX,
};
use crate::rows::Mark;
use crate::{
    Changes, ContentDigest, EngineError, Holding, MoveChunk, MovePhase, MoveRead, MoveState, Position, Refusal, Rows,
    TableChanges, TablePlace, UnitSet, sqlstate,
};

/// The snapshots that moves hold open.
#[derive(Default)]
pub(crate) struct Snapshots(Mutex<Open>);

#[derive(Default)]
struct Open {
    last: u64,
    by_id: BTreeMap<u64, Arc<Mutex<Snapshot>>>,
}

struct Snapshot {
    reader: Reader,
    tables: Vec<Moving>,
    used: Instant,
}

impl Snapshots {
    /// Closes all: the file is being replaced.
    pub(crate) fn clear(&self) {
        self.0.lock().by_id.clear();
    }

    /// Closes those that nobody has asked for a while: they keep the WAL from shrinking.
    pub(crate) fn close_idle(&self) {
        let idle_max = Duration::from_secs(MOVE_SNAPSHOT_IDLE_SECONDS_MAX);
        let is_used = |snapshot: &Arc<Mutex<Snapshot>>| {
            snapshot.try_lock().is_none_or(|snapshot| snapshot.used.elapsed() < idle_max)
        };
        self.0.lock().by_id.retain(|_, snapshot| is_used(snapshot));
    }

    fn add(&self, reader: Reader, tables: Vec<Moving>) -> Result<u64, EngineError> {
        self.close_idle();
        let mut open = self.0.lock();
        if open.by_id.len() >= MOVE_SNAPSHOTS_MAX {
            return Err(EngineError::Busy { connections: MOVE_SNAPSHOTS_MAX });
        }
        open.last += 1;
        let id = open.last;
        open.by_id.insert(id, Arc::new(Mutex::new(Snapshot { reader, tables, used: Instant::now() })));
        Ok(id)
    }

    fn get(&self, id: u64) -> Result<Arc<Mutex<Snapshot>>, EngineError> {
        self.0.lock().by_id.get(&id).cloned().ok_or(EngineError::SnapshotGone { id })
    }

    fn close(&self, id: u64) {
        self.0.lock().by_id.remove(&id);
    }
}

/// Answers one question.
pub(crate) fn answer(shared: &Arc<Shared>, request: &MoveRead) -> Result<MoveChunk, EngineError> {
    match request {
        MoveRead::CopyOpen { operation } => copy_open(shared, *operation),
        MoveRead::ReferenceOpen => reference_open(shared),
        MoveRead::CopyNext { snapshot, table, after, rows_max, bytes_max } => {
            let snapshot = shared.snapshots.get(*snapshot)?;
            let mut snapshot = snapshot.lock();
            snapshot.used = Instant::now();
            let moving = snapshot.tables.iter().find(|moving| moving.spec.table.name.eq_ignore_ascii_case(table));
            let moving = moving.ok_or_else(|| unknown(table))?;
            copy_next(&snapshot.reader, moving, after.as_deref(), *rows_max, *bytes_max)
        }
        MoveRead::Close { snapshot } => {
            shared.snapshots.close(*snapshot);
            Ok(MoveChunk::Closed)
        }
        other => Readers::with_snapshot(shared, |reader| in_snapshot(reader, other)),
    }
}

fn in_snapshot(reader: &mut Reader, request: &MoveRead) -> Result<MoveChunk, EngineError> {
    let specs = load_specs(reader)?;
    match request {
        MoveRead::State { operation } => Ok(MoveChunk::State(reader.placement.moves.get(operation).cloned())),
        MoveRead::Delta { operation, after, rows_max, bytes_max } => {
            let (state, tables) = source(reader, &specs, *operation)?;
            Ok(MoveChunk::Delta(delta(reader, &state, &tables, after, *rows_max, *bytes_max)?))
        }
        MoveRead::Verify { operation, after } => {
            let (state, mut tables) = source(reader, &specs, *operation)?;
            let remaining = delta(reader, &state, &tables, after, VERIFY_DELTA_ROWS_MAX, VERIFY_DELTA_BYTES_MAX)?;
            if remaining.more {
                return Err(EngineError::DeltaTooLarge { limit: VERIFY_DELTA_ROWS_MAX });
            }
            if let Some(place) = &state.place {
                tables.iter_mut().for_each(|table| table.rows = place.carried());
            }
            Ok(MoveChunk::Verified { remaining, digest: digest(reader, &tables)? })
        }
        MoveRead::Digest { operation } => {
            let state = state(reader, *operation)?;
            let mut tables = moving(reader, &specs, &state);
            if let Some(place) = &state.place {
                tables.iter_mut().for_each(|table| table.rows = place.brought());
            }
            Ok(MoveChunk::Digest(digest(reader, &tables)?))
        }
        MoveRead::ReferenceDigest => Ok(MoveChunk::Digest(digest(reader, &reference_tables(&specs))?)),
        MoveRead::CleanUpNext { operation, table, after, limit } => {
            let state = state(reader, *operation)?;
            moving(reader, &specs, &state);
            let spec = specs.get(&table.to_ascii_lowercase()).cloned().ok_or_else(|| unknown(table))?;
            let foreign = match &state.place {
                Some(place) => foreign_of(&spec, place, state.phase),
                None => Moving::units_of(spec),
            };
            let (keys, next) = page(reader, &foreign, &foreign.spec.identity(), after.as_deref(), *limit, usize::MAX)?;
            Ok(MoveChunk::Keys { keys: keys.to_values(), next })
        }
        MoveRead::ReferenceLog { after, limit } => {
            let entries =
                reference::entries_after(&reader.db.conn, *after, *limit, REFERENCE_LOG_BYTES_MAX).map_err(other)?;
            Ok(MoveChunk::ReferenceLog { entries, last: reference::last_seq(&reader.db.conn).map_err(storage)? })
        }
        MoveRead::CopyOpen { .. } | MoveRead::ReferenceOpen | MoveRead::CopyNext { .. } | MoveRead::Close { .. } => {
            Err(EngineError::Storage("this question has a snapshot of its own".to_owned()))
        }
    }
}

fn copy_open(shared: &Arc<Shared>, operation: u64) -> Result<MoveChunk, EngineError> {
    let mut reader = shared.new_reader()?;
    reader.begin()?;
    let specs = load_specs(&reader)?;
    let (_, tables) = source(&reader, &specs, operation)?;
    opened(shared, reader, tables)
}

fn reference_open(shared: &Arc<Shared>) -> Result<MoveChunk, EngineError> {
    let mut reader = shared.new_reader()?;
    reader.begin()?;
    let specs = load_specs(&reader)?;
    let tables = reference_tables(&specs);
    opened(shared, reader, tables)
}

fn opened(shared: &Arc<Shared>, reader: Reader, tables: Vec<Moving>) -> Result<MoveChunk, EngineError> {
    let names = tables.iter().map(|moving| moving.spec.table.name.clone()).collect();
    let reference_seq = reference::last_seq(&reader.db.conn).map_err(storage)?;
    let snapshot = shared.snapshots.add(reader, tables)?;
    Ok(MoveChunk::Opened { snapshot, tables: names, reference_seq })
}

/// A move that this shard is the source of, with `pleat_moving()` set to it.
fn source(reader: &Reader, specs: &Specs, operation: u64) -> Result<(MoveState, Vec<Moving>), EngineError> {
    let state = state(reader, operation)?;
    let captures = match (&state.place, state.phase) {
        (Some(place), MovePhase::Placing | MovePhase::PlacingFenced) => place.captures,
        (None, MovePhase::Capturing | MovePhase::Fenced | MovePhase::Closing) => true,
        _ => false,
    };
    if !captures {
        let reason = format!("changes are not captured here: the move is {:?} on this shard", state.phase);
        return Err(Refusal::MoveState { reason }.into());
    }
    let tables = moving(reader, specs, &state);
    Ok((state, tables))
}

/// The tables of a move, and which of their rows are the source's.
fn moving(reader: &Reader, specs: &Specs, state: &MoveState) -> Vec<Moving> {
    if let Some(place) = &state.place {
        reader.set_units(UnitSet::default());
        let spec = specs.get(&place.table.name.to_ascii_lowercase());
        let own = |spec: &Arc<TableSpec>| Moving { spec: Arc::new(spec.travelling(place)), rows: place.before.own() };
        return spec.map(own).into_iter().collect();
    }
    let units: UnitSet = state.partitions.iter().copied().collect();
    let tables = moving_tables(specs, &units).into_iter().map(Moving::units_of).collect();
    reader.set_units(units);
    tables
}

fn state(reader: &Reader, operation: u64) -> Result<MoveState, EngineError> {
    reader.placement.moves.get(&operation).cloned().ok_or_else(|| {
        EngineError::Refused(Refusal::MoveState {
            reason: format!("this shard takes no part in operation {operation}"),
        })
    })
}

fn copy_next(
    reader: &Reader,
    moving: &Moving,
    after: Option<&[Value]>,
    rows_max: usize,
    bytes_max: usize,
) -> Result<MoveChunk, EngineError> {
    let spec = &moving.spec;
    let columns = spec.columns();
    let (rows, next) = page(reader, moving, &columns, after, rows_max, bytes_max)?;
    let changes = TableChanges {
        table: spec.table.name.clone(),
        columns,
        rows,
        deletes: Vec::new(),
        sequence: sequence(reader, spec)?,
    };
    Ok(MoveChunk::Rows { changes, next })
}

/// Rows, and the identity of the last one unless the table is done.
type Page = (Rows, Option<Vec<Value>>);

/// Moving rows in the order of their identity, which is among the columns, after one of them; and where to go on, unless that
/// was the end.
fn page(
    reader: &Reader,
    Moving { spec, rows: moving }: &Moving,
    columns: &[String],
    after: Option<&[Value]>,
    rows_max: usize,
    bytes_max: usize,
) -> Result<Page, EngineError> {
    let identity = spec.identity();
    let rows_max = rows_max.max(1);
    let order = quoted_list(&identity);
    let from = match after {
        Some(_) => format!(" AND ({order}) > ({})", marks(identity.len())),
        None => String::new(),
    };
    let sql = format!(
        "SELECT {} FROM {} WHERE {moving}{from} ORDER BY {order} LIMIT {rows_max}",
        quoted_list(columns),
        spec.quoted()
    );
    let mut statement = reader.db.conn.prepare_cached(&sql).map_err(storage)?;
    bind(&mut statement, 1, after.unwrap_or_default()).map_err(storage)?;
    let mut found = statement.raw_query();
    let (mut rows, mut last, mut is_full) = (Rows::default(), Mark::default(), false);
    while let Some(row) = found.next().map_err(storage)? {
        let before = rows.mark();
        push_row(spec, row, columns.len(), &mut rows)?;
        // One row in any case; no other that would not fit.
        if rows.bytes() > bytes_max && rows.len() > 1 {
            rows.back_to(before);
            is_full = true;
            break;
        }
        last = before;
    }
    let next = (is_full || rows.len() == rows_max).then(|| identity_of(&rows, last, columns, &identity));
    Ok((rows, next))
}

/// The identity of the row that begins at `mark`.
fn identity_of(rows: &Rows, mark: Mark, columns: &[String], identity: &[String]) -> Vec<Value> {
    let mut reading = rows.read_from(mark);
    let row = reading.next().unwrap_or_default();
    let value = |name: &String| Some(value_of(row[columns.iter().position(|column| column == name)?]));
    identity.iter().filter_map(value).collect()
}

/// The rows whose keys were captured after `after`, as they are in this snapshot.
fn delta(
    reader: &Reader,
    state: &MoveState,
    tables: &[Moving],
    after: &Position,
    rows_max: usize,
    bytes_max: usize,
) -> Result<Changes, EngineError> {
    let mut changes = Changes { position: after.clone(), ..Changes::default() };
    let mut left = Left { rows: rows_max.max(1), bytes: bytes_max, is_whole: true };
    for table in tables {
        let spec = &table.spec;
        if left.rows == 0 {
            changes.more = true;
            break;
        }
        let from = after.capture.get(&spec.table.name).copied().unwrap_or(0);
        let (one, upto, more) = table_delta(reader, table, from, &mut left)?;
        changes.more |= more;
        changes.position.capture.insert(spec.table.name.clone(), upto);
        if !one.rows.is_empty() || !one.deletes.is_empty() {
            changes.tables.push(one);
        }
    }
    let moving = reader.db.session.lock().moving.clone();
    // Who gives away all that it owns may be on its way out, and gives all that it remembers.
    let gives_all = reader.placement.owned.iter().all(|unit| moving.contains(unit));
    let wanted = |units: &[PartitionId]| match &state.place {
        Some(place) => goes_along(place, units),
        None if units.is_empty() => gives_all,
        None => units.iter().any(|unit| *unit == EVERY_UNIT || moving.contains(*unit)),
    };
    let (rows, upto, more) =
        idempotency::after(&reader.db.conn, after.idempotency, rows_max.max(1), &mut left, wanted).map_err(other)?;
    changes.idempotency = if planted::is(Bug::KeysLeftBehind) { Vec::new() } else { rows };
    changes.position.idempotency = upto;
    changes.position.together = txn::seen(&reader.db.conn).map_err(other)?.together;
    changes.more |= more;
    Ok(changes)
}

/// Whether a remembered write may have been one to the table that gets another placement. Of writes to sharded tables only
/// the partitions are remembered.
///
/// Where all shards are sources, what a shard was only told of is for the one to tell that did it. A single source tells
/// all that it knows: also what it was about to tell when an earlier attempt was broken off.
fn goes_along(place: &TablePlace, units: &[PartitionId]) -> bool {
    let single = PartitionId::of_single(place.table.id);
    match place.before {
        Holding::Key(_) => units.iter().any(|unit| !unit.is_single()),
        Holding::All | Holding::None => units.is_empty() || units.contains(&single) || units.contains(&EVERY_UNIT),
    }
}

/// What still fits into an answer.
pub(crate) struct Left {
    rows: usize,
    bytes: usize,
    /// Nothing was taken yet: something has to fit, or there would be no end.
    is_whole: bool,
}

impl Left {
    /// Whether this many bytes fit. They are taken then.
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        let fits = self.is_whole || bytes <= self.bytes;
        if fits {
            self.bytes = self.bytes.saturating_sub(bytes);
            self.is_whole = false;
        }
        fits
    }
}

fn table_delta(
    reader: &Reader,
    Moving { spec, rows: moving }: &Moving,
    from: i64,
    left: &mut Left,
) -> Result<(TableChanges, i64, bool), EngineError> {
    let identity = spec.identity();
    let columns = spec.columns();
    let mut changes = TableChanges {
        table: spec.table.name.clone(),
        columns: columns.clone(),
        sequence: sequence(reader, spec)?,
        ..TableChanges::default()
    };
    let conn = &reader.db.conn;
    let captured = format!("SELECT * FROM {} WHERE seq > ?1 ORDER BY seq", spec.capture_table());
    let mut captured = conn.prepare_cached(&captured).map_err(storage)?;
    let matches: Vec<_> = identity.iter().map(|name| format!("{} = ?", quote(name))).collect();
    let present =
        format!("SELECT {} FROM {} WHERE {} AND {moving}", quoted_list(&columns), spec.quoted(), matches.join(" AND "));
    let mut present = conn.prepare_cached(&present).map_err(storage)?;
    let mut seen = HashSet::new();
    let mut upto = from;
    let mut keys = captured.query([from]).map_err(storage)?;
    while let Some(row) = keys.next().map_err(storage)? {
        if left.rows == 0 {
            return Ok((changes, upto, true));
        }
        let seq = row.get(0).map_err(storage)?;
        let key = exact_row(spec, row, 1 + identity.len())?.split_off(1);
        if !seen.insert(postcard::to_stdvec(&key).map_err(|error| EngineError::Storage(error.to_string()))?) {
            upto = seq;
            continue;
        }
        bind(&mut present, 1, &key).map_err(storage)?;
        let mut found = present.raw_query();
        let before = changes.rows.mark();
        let found = found.next().map_err(storage)?;
        let bytes = match found {
            Some(row) => {
                push_row(spec, row, columns.len(), &mut changes.rows)?;
                changes.rows.bytes_since(before)
            }
            None => key.iter().map(Value::size).sum(),
        };
        if !left.take(bytes) {
            changes.rows.back_to(before);
            return Ok((changes, upto, true));
        }
        left.rows -= 1;
        upto = seq;
        if found.is_none() {
            changes.deletes.push(key);
        }
    }
    Ok((changes, upto, false))
}

fn digest(reader: &Reader, tables: &[Moving]) -> Result<ContentDigest, EngineError> {
    let mut digest = ContentDigest::default();
    for Moving { spec, rows: moving } in tables {
        let sql = format!("SELECT {} FROM {} WHERE {moving}", quoted_list(&spec.columns()), spec.quoted());
        let mut rows = reader.db.conn.prepare_cached(&sql).map_err(storage)?;
        digest.tables.insert(spec.table.name.clone(), rows_digest(&mut rows).map_err(storage)?);
    }
    Ok(digest)
}

fn sequence(reader: &Reader, spec: &TableSpec) -> Result<Option<i64>, EngineError> {
    if !spec.has_sequence() {
        return Ok(None);
    }
    let mut statement =
        reader.db.conn.prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = ?1").map_err(storage)?;
    statement.query_row([&spec.table.name], |row| row.get(0)).optional().map_err(storage)
}

/// A row that must arrive as it is.
fn exact_row(spec: &TableSpec, row: &Row<'_>, count: usize) -> Result<Vec<Value>, EngineError> {
    let value = |column| {
        let value = row.get_ref(column).map_err(storage)?;
        exact_value_of(value).ok_or_else(|| not_utf8(spec))
    };
    (0..count).map(value).collect()
}

/// The same, added to others.
fn push_row(spec: &TableSpec, row: &Row<'_>, count: usize, rows: &mut Rows) -> Result<(), EngineError> {
    let mut fits = Ok(());
    rows.push_refs((0..count).map(|column| match row.get_ref(column) {
        Ok(ValueRef::Text(text)) if std::str::from_utf8(text).is_err() => {
            fits = Err(not_utf8(spec));
            ValueRef::Null
        }
        Ok(value) => value,
        Err(error) => {
            fits = Err(storage(error));
            ValueRef::Null
        }
    }));
    fits
}

fn not_utf8(spec: &TableSpec) -> EngineError {
    let message = format!("a row of {} holds text that is not UTF-8 and can't be moved", spec.table.name);
    EngineError::Sql(sqlstate::refuse(0, "22021", message, "store such bytes as a BLOB"))
}

fn reference_tables(specs: &Specs) -> Vec<Moving> {
    specs.values().filter(|spec| spec.is_reference()).cloned().map(Moving::units_of).collect()
}

fn unknown(table: &str) -> EngineError {
    EngineError::Sql(sqlstate::refuse(0, "42P01", format!("this shard has no table {table}"), ""))
}

fn load_specs(reader: &Reader) -> Result<Specs, EngineError> {
    table::load(&reader.db.conn).map_err(other)
}

fn other(error: anyhow::Error) -> EngineError {
    EngineError::Storage(format!("{error:#}"))
}
