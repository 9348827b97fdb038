//! Running one query and streaming its rows.

use std::ops::ControlFlow;
use std::time::Instant;

use pleat_cluster::{Millis, Value};
use rusqlite::Statement;

use super::authorize::Mode;
use super::connection::Db;
use super::failure;
use super::session::Budget;
use super::value::{bind, values_of};
use super::write::{check_not_empty, check_parameters, check_text};
use crate::limits::{CHUNK_BYTES_MAX, CHUNK_ROWS_MAX};
use crate::{Chunk, ColumnInfo, EngineError, ReadLimits, sqlstate};

/// A query and what it runs under.
pub(crate) struct Run<'a> {
    pub(crate) sql: &'a str,
    pub(crate) params: &'a [Value],
    pub(crate) now_ms: Millis,
    pub(crate) seed: u64,
    pub(crate) limits: ReadLimits,
    pub(crate) deadline: Instant,
}

/// Runs a query on a connection that has its snapshot.
pub(crate) fn stream(
    db: &Db,
    run: &Run<'_>,
    sink: &mut dyn FnMut(Chunk) -> ControlFlow<()>,
) -> Result<(), EngineError> {
    check_text(0, run.sql)?;
    {
        let mut session = db.session.lock();
        session.begin(run.now_ms, run.seed);
        session.budget = Budget::Until(run.deadline);
        session.mode = Mode::Read;
    }
    let result = rows(db, run, sink);
    let mut session = db.session.lock();
    session.mode = Mode::Internal;
    session.budget = Budget::Unlimited;
    result
}

fn rows(db: &Db, run: &Run<'_>, sink: &mut dyn FnMut(Chunk) -> ControlFlow<()>) -> Result<(), EngineError> {
    let failed = |error| of_error(db, run, error);
    let mut statement = db.conn.prepare_cached(run.sql).map_err(failed)?;
    check_not_empty(0, &statement)?;
    if !statement.readonly() {
        return Err(sqlstate::refuse(0, "25006", "this statement writes; reads can't", "send it as a write").into());
    }
    check_parameters(0, statement.parameter_count(), run.params.len())?;
    bind(&mut statement, 1, run.params).map_err(failed)?;
    let mut out = Output { chunk: Chunk::default(), bytes: 0, sink };
    let (mut rows_left, mut bytes_left) = (run.limits.rows, run.limits.bytes);
    let mut count = None;
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next().map_err(failed)? {
        let count = *count.get_or_insert_with(|| {
            let shown = columns(row.as_ref());
            out.chunk.columns.insert(shown).len()
        });
        let values = values_of(row, count).map_err(failed)?;
        let bytes: usize = values.iter().map(Value::size).sum();
        rows_left = rows_left.checked_sub(1).ok_or(EngineError::Rows { limit: run.limits.rows })?;
        bytes_left = bytes_left.checked_sub(bytes as u64).ok_or(EngineError::Bytes { limit: run.limits.bytes })?;
        out.push(values, bytes, run)?;
    }
    drop(rows);
    if count.is_none() {
        out.chunk.columns = Some(columns(&statement));
    }
    out.flush()
}

/// The chunk being filled.
struct Output<'a> {
    chunk: Chunk,
    bytes: usize,
    sink: &'a mut dyn FnMut(Chunk) -> ControlFlow<()>,
}

impl Output<'_> {
    fn push(&mut self, values: Vec<Value>, bytes: usize, run: &Run<'_>) -> Result<(), EngineError> {
        let full = self.chunk.rows.len() >= CHUNK_ROWS_MAX || self.bytes + bytes > CHUNK_BYTES_MAX;
        if full && !self.chunk.rows.is_empty() {
            self.flush()?;
            if Instant::now() >= run.deadline {
                return Err(EngineError::Time { limit: run.limits.time });
            }
        }
        self.bytes += bytes;
        self.chunk.rows.push(values);
        Ok(())
    }

    /// Hands the chunk over. The first one goes also when it has no rows: it carries the columns.
    fn flush(&mut self) -> Result<(), EngineError> {
        let chunk = std::mem::take(&mut self.chunk);
        self.bytes = 0;
        if chunk.columns.is_none() && chunk.rows.is_empty() {
            return Ok(());
        }
        match (self.sink)(chunk) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(EngineError::Cancelled),
        }
    }
}

/// A statement's columns, once it has been stepped: if the schema has changed since it was compiled, SQLite compiles it anew
/// in the first step, and a `*` stands for other columns than before.
fn columns(statement: &Statement<'_>) -> Vec<ColumnInfo> {
    let of = |column: &rusqlite::Column<'_>| ColumnInfo {
        name: column.name().to_owned(),
        decl_type: column.decl_type().map(str::to_owned),
    };
    statement.columns().map(|column| of(&column)).collect()
}

fn of_error(db: &Db, run: &Run<'_>, error: rusqlite::Error) -> EngineError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::OperationInterrupted) => EngineError::Time { limit: run.limits.time },
        _ => failure::of_read(&db.session, error),
    }
}
