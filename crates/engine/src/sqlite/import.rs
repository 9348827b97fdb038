//! Taking in the rows of a move, and deleting what is left of one.
//!
//! Rows arrive without regard to foreign keys and triggers: their effects were had at the source, and arrive as
//! rows too. Unique constraints hold, and need care: rows that swapped a value arrive one after the other, so a row
//! may collide with another moving row's *older* state. That one is deleted; it changed after it was read, so its
//! present state is in a delta still to come. A collision with a row that is *not* moving is real, and ends the move.

use pleat_cluster::Value;
use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Error, Statement, ffi};
use std::sync::Arc;

use super::failure::{Applied, Stop};
use super::idempotency;
use super::store::Writer;
use super::table::{Moving, TableSpec};
use super::txn;
use super::value::{bind, bind_refs, marks, quote, quoted_list, value_ref, values_of};
use crate::limits::PARAMETERS_MAX;
use crate::rows::Reading;
use crate::{IdempotencyRow, MovePhase, MoveState, Position, Refusal, TableChanges, TablePlace, UnitSet, sqlstate};

/// Unique constraints that one row may collide with.
const COLLISIONS_MAX: usize = 64;
/// Rows that one statement inserts: so many while there are, then so many.
const ROWS_AT_ONCE: [usize; 2] = [64, 4];

impl Writer {
    /// Rows and deletions of a move, or of the reference tables.
    pub(crate) fn import(
        &mut self,
        state: &MoveState,
        changes: &[TableChanges],
        idempotency: &[IdempotencyRow],
        position: Option<&Position>,
        copied: bool,
    ) -> Applied<()> {
        let units: UnitSet = state.partitions.iter().copied().collect();
        if copied && state.position != Position::default() {
            let reason = "rows of the copy came after a delta, and would undo it: copy first".to_owned();
            return Err(Refusal::MoveState { reason }.into());
        }
        let targets: Vec<_> =
            changes.iter().map(|one| self.import_target(state, &units, one)).collect::<Result<_, _>>()?;
        self.apart_from_users(&units, |writer| {
            changes
                .iter()
                .zip(&targets)
                .try_for_each(|(one, target)| import_table(&writer.db.conn, target, one, copied))
        })?;
        for row in idempotency {
            match state.place {
                Some(_) => {
                    idempotency::store_everywhere(&self.db.conn, &mut self.beside.remembered, row, self.beside.now_ms)?
                }
                None => idempotency::store_moved(&self.db.conn, &mut self.beside.remembered, row, self.beside.now_ms)?,
            }
        }
        let Some(position) = position else { return Ok(()) };
        txn::remember_together(&self.db.conn, position.together.iter().copied())?;
        self.change_placement(|placement| {
            if let Some(state) = placement.moves.get_mut(&state.operation) {
                state.position = position.clone();
            }
        })
    }

    /// Deletes rows that are not the shard's.
    pub(crate) fn clean_up(&mut self, state: &MoveState, table: &str, keys: &[Vec<Value>]) -> Applied<()> {
        let spec = self.known_table(table)?;
        let units: &UnitSet = &state.partitions.iter().copied().collect();
        let foreign = match &state.place {
            Some(place) => foreign_of(&spec, place, state.phase),
            None => Moving::units_of(spec),
        };
        if let Some(unit) = units.common(&self.placement.owned) {
            return Err(Refusal::MoveState { reason: format!("this shard owns partition {unit}") }.into());
        }
        self.apart_from_users(units, |writer| {
            let mut delete = Delete::new(&writer.db.conn, &foreign)?;
            keys.iter().try_for_each(|key| delete.run(key))
        })
    }

    /// The table that rows are for, if they may come here and are of its shape.
    fn import_target(&self, state: &MoveState, units: &UnitSet, changes: &TableChanges) -> Applied<Moving> {
        let spec = self.known_table(&changes.table)?;
        let placing = matches!(state.phase, MovePhase::Placing | MovePhase::PlacingFenced);
        let moves = match spec.table.shard_key() {
            _ if state.place.is_some() => {
                placing && state.place.iter().all(|place| place.table.name == spec.table.name)
            }
            Some(_) => state.phase == MovePhase::Importing,
            None if spec.is_reference() => true,
            None => spec.unit.is_some_and(|unit| units.contains(unit)),
        };
        if !moves {
            let reason = format!("rows of {} are not part of this move", changes.table);
            return Err(Refusal::MoveState { reason }.into());
        }
        let target = match &state.place {
            Some(place) => Moving { spec: Arc::new(spec.travelling(place)), rows: place.brought() },
            None => Moving::units_of(spec),
        };
        let columns = target.spec.columns();
        let fits = changes.rows.is_empty() || columns == changes.columns;
        let width = changes.rows.is_empty() || changes.rows.width() == columns.len();
        if !fits || !width {
            let reason = format!("{} has other columns here ({})", changes.table, columns.join(", "));
            return Err(Refusal::MoveState { reason }.into());
        }
        Ok(target)
    }

    fn known_table(&self, table: &str) -> Applied<Arc<TableSpec>> {
        self.specs.get(&table.to_ascii_lowercase()).cloned().ok_or_else(|| {
            Refusal::MoveState { reason: format!("this shard has no table {table}: change its schema first") }.into()
        })
    }

    /// Does something with foreign keys and triggers off, and with `pleat_moving()` meaning `units`.
    fn apart_from_users(&mut self, units: &UnitSet, work: impl FnOnce(&mut Self) -> Applied<()>) -> Applied<()> {
        let captured = std::mem::replace(&mut self.db.session.lock().moving, Arc::new(units.clone()));
        let result = self.without(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, |writer| {
            writer.without(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, work)
        });
        self.db.session.lock().moving = captured;
        result
    }
}

/// The rows of a table with another placement that are not this shard's: after the switch those that it has no more,
/// after an abort those that it was brought.
pub(crate) fn foreign_of(spec: &TableSpec, place: &TablePlace, phase: MovePhase) -> Moving {
    let rows = match phase {
        MovePhase::Discarding => place.brought(),
        _ => place.leftovers(),
    };
    Moving { spec: Arc::new(spec.travelling(place)), rows }
}

/// Deletes rows by identity, if they are moving.
struct Delete<'a>(Statement<'a>);

impl<'a> Delete<'a> {
    fn new(conn: &'a Connection, Moving { spec, rows }: &Moving) -> rusqlite::Result<Self> {
        let matches: Vec<_> = spec.identity().iter().map(|name| format!("{} = ?", quote(name))).collect();
        let sql = format!("DELETE FROM {} WHERE {} AND {rows}", spec.quoted(), matches.join(" AND "));
        Ok(Self(conn.prepare(&sql)?))
    }

    fn run(&mut self, key: &[Value]) -> Applied<()> {
        self.run_refs(&key.iter().map(value_ref).collect::<Vec<_>>())
    }

    fn run_refs(&mut self, key: &[ValueRef<'_>]) -> Applied<()> {
        if key.len() != self.0.parameter_count() {
            let reason = format!("a key has {} values instead of {}", key.len(), self.0.parameter_count());
            return Err(Refusal::MoveState { reason }.into());
        }
        bind_refs(&mut self.0, 1, key)?;
        self.0.raw_execute()?;
        Ok(())
    }
}

/// First all that goes, then all that comes: so that rows of one chunk that swap unique values don't collide. Of the copy
/// nothing goes, as a rule.
fn import_table(conn: &Connection, target: &Moving, changes: &TableChanges, copied: bool) -> Applied<()> {
    let spec = &*target.spec;
    let mut rows = changes.rows.read();
    if copied && changes.deletes.is_empty() {
        for at_once in ROWS_AT_ONCE {
            insert_new(conn, spec, &mut rows, at_once)?;
        }
    }
    let mut delete = Delete::new(conn, target)?;
    let places = spec.identity_places();
    for key in &changes.deletes {
        delete.run(key)?;
    }
    let mut key = Vec::with_capacity(places.len());
    let mut going = rows.clone();
    while let Some(row) = going.next() {
        key.clear();
        key.extend(places.iter().map(|place| row[*place]));
        delete.run_refs(&key)?;
    }
    let mut insert = conn.prepare(&insert_sql(spec, "INSERT", 1))?;
    while let Some(row) = rows.next() {
        bind_refs(&mut insert, 1, row)?;
        match insert.raw_execute() {
            Ok(_) => {}
            Err(error) if is_collision(&error) => resolve(conn, target, &mut insert, row, error)?,
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(sequence) = changes.sequence {
        conn.execute("DELETE FROM sqlite_sequence WHERE name = ?1", [&spec.table.name])?;
        conn.execute("INSERT INTO sqlite_sequence(name, seq) VALUES (?1, ?2)", (&spec.table.name, sequence))?;
    }
    Ok(())
}

/// Inserts rows that are not there, many with one statement: starting it costs as much as a row. Stops before the first ones that
/// collide with what is there, and leaves the last few.
fn insert_new(conn: &Connection, spec: &TableSpec, rows: &mut Reading<'_>, at_once: usize) -> Applied<()> {
    let width = spec.columns().len();
    if rows.left() < at_once || width * at_once > PARAMETERS_MAX {
        return Ok(());
    }
    let mut insert = conn.prepare(&insert_sql(spec, "INSERT", at_once))?;
    while rows.left() >= at_once {
        let before = rows.clone();
        for number in 0..at_once {
            let row = rows.next().expect("so many are left");
            bind_refs(&mut insert, 1 + number * width, row)?;
        }
        match insert.raw_execute() {
            Ok(_) => {}
            Err(error) if is_collision(&error) => {
                *rows = before;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// For so many rows at a time.
fn insert_sql(spec: &TableSpec, verb: &str, rows: usize) -> String {
    let columns = spec.columns();
    let values = vec![format!("({})", marks(columns.len())); rows].join(", ");
    format!("{verb} INTO {}({}) VALUES {values}", spec.quoted(), quoted_list(&columns))
}

fn is_collision(error: &Error) -> bool {
    let codes = [ffi::SQLITE_CONSTRAINT_UNIQUE, ffi::SQLITE_CONSTRAINT_PRIMARYKEY, ffi::SQLITE_CONSTRAINT_ROWID];
    error.sqlite_error().is_some_and(|error| codes.contains(&error.extended_code))
}

/// Deletes the moving rows that `row` collides with, and inserts it.
fn resolve(
    conn: &Connection,
    target: &Moving,
    insert: &mut Statement<'_>,
    row: &[ValueRef<'_>],
    mut error: Error,
) -> Applied<()> {
    let mut deleted = Vec::new();
    for _ in 0..COLLISIONS_MAX {
        deleted.extend(delete_colliding(conn, target, row, error)?);
        match insert.raw_execute() {
            Ok(_) => return put_back(conn, &target.spec, &deleted),
            Err(again) if is_collision(&again) => error = again,
            Err(other) => return Err(other.into()),
        }
    }
    Err(real_collision(&target.spec, "it collides with too many rows"))
}

/// Deletes the rows that have the same values in the columns which the error names. Gives them back.
fn delete_colliding(
    conn: &Connection,
    Moving { spec, rows: moving }: &Moving,
    row: &[ValueRef<'_>],
    error: Error,
) -> Applied<Vec<Vec<Value>>> {
    let message = error.to_string();
    let Some(places) = colliding_columns(spec, &message) else {
        return Err(real_collision(spec, &message));
    };
    let columns = spec.columns();
    let same: Vec<_> = places.iter().map(|place| format!("{} = ?", quote(&columns[*place]))).collect();
    let same = same.join(" AND ");
    let values: Vec<ValueRef<'_>> = places.iter().map(|place| row[*place]).collect();
    let sql = format!("SELECT {}, {moving} FROM {} WHERE {same}", quoted_list(&columns), spec.quoted());
    let mut found = conn.prepare(&sql)?;
    bind_refs(&mut found, 1, &values)?;
    let mut rows = found.raw_query();
    let mut deleted = Vec::new();
    while let Some(found) = rows.next()? {
        if !found.get::<_, bool>(columns.len())? {
            return Err(real_collision(spec, &message));
        }
        deleted.push(values_of(found, columns.len())?);
    }
    drop(rows);
    if deleted.is_empty() {
        return Err(real_collision(spec, &message));
    }
    let mut delete = conn.prepare(&format!("DELETE FROM {} WHERE {same}", spec.quoted()))?;
    bind_refs(&mut delete, 1, &values)?;
    delete.raw_execute()?;
    Ok(deleted)
}

/// A partial index names its columns too, and rows outside of it were deleted in vain: what doesn't collide returns.
fn put_back(conn: &Connection, spec: &TableSpec, deleted: &[Vec<Value>]) -> Applied<()> {
    let mut insert = conn.prepare(&insert_sql(spec, "INSERT OR IGNORE", 1))?;
    for row in deleted {
        bind(&mut insert, 1, row)?;
        insert.raw_execute()?;
    }
    Ok(())
}

/// The columns of `UNIQUE constraint failed: t.a, t.b`, as places among the travelling ones.
fn colliding_columns(spec: &TableSpec, message: &str) -> Option<Vec<usize>> {
    let columns = spec.columns();
    let (_, list) = message.split_once("constraint failed: ")?;
    let prefix = format!("{}.", spec.table.name);
    let place = |part: &str| {
        let name = part.trim().strip_prefix(&prefix)?;
        columns.iter().position(|column| column.eq_ignore_ascii_case(name))
    };
    list.split(", ").map(place).collect()
}

fn real_collision(spec: &TableSpec, message: &str) -> Stop {
    let message = format!("a moving row of {} collides with a row that the target has: {message}", spec.table.name);
    let hint = "make the unique columns unique over all shards, for example by including the shard key";
    sqlstate::refuse(0, "23505", message, hint).into()
}
