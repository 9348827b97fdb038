//! Finishing a scatter read: an in-memory SQLite that holds what was gathered and runs the finishing statement, so
//! that it means what it would have meant on one shard.

use std::ops::ControlFlow;
use std::time::Instant;

use pleat_cluster::{Millis, Value};
use rusqlite::ErrorCode;

use super::authorize::Mode;
use super::connection::{self, Db};
use super::failure;
use super::reading::{self, Run};
use super::value::{bind, marks, quote};
use super::write::check_text;
use crate::{Chunk, EngineError, ReadLimits};

/// What a finisher may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinisherLimits {
    /// Memory for the gathered rows.
    pub memory_bytes: u64,
}

impl Default for FinisherLimits {
    fn default() -> Self {
        Self { memory_bytes: 256 << 20 }
    }
}

/// An in-memory database for one query.
pub struct Finisher {
    db: Db,
    limits: FinisherLimits,
}

impl Finisher {
    /// An empty one.
    pub fn new(limits: FinisherLimits) -> Result<Self, EngineError> {
        const PAGE_BYTES: u64 = 4096;
        let db = connection::open_memory(1).map_err(failure::storage)?;
        let pages = (limits.memory_bytes / PAGE_BYTES).clamp(16, u64::from(u32::MAX - 1));
        db.conn
            .execute_batch(&format!(
                "PRAGMA page_size = {PAGE_BYTES}; PRAGMA journal_mode = OFF; PRAGMA max_page_count = {pages}"
            ))
            .map_err(failure::storage)?;
        Ok(Self { db, limits })
    }

    /// Makes a table for gathered rows.
    pub fn create(&mut self, table_sql: &str) -> Result<(), EngineError> {
        check_text(0, table_sql)?;
        self.db.in_mode(Mode::Schema, |conn| conn.execute_batch(table_sql)).map_err(|error| self.describe(error))
    }

    /// Adds gathered rows.
    pub fn insert(&mut self, table: &str, rows: &[Vec<Value>]) -> Result<(), EngineError> {
        let Some(first) = rows.first() else { return Ok(()) };
        let conn = &self.db.conn;
        let inserted = || -> rusqlite::Result<()> {
            conn.execute_batch("BEGIN")?;
            let sql = format!("INSERT INTO {} VALUES ({})", quote(table), marks(first.len()));
            let mut statement = conn.prepare_cached(&sql)?;
            for row in rows {
                bind(&mut statement, 1, row)?;
                statement.raw_execute()?;
            }
            conn.execute_batch("COMMIT")
        };
        inserted().map_err(|error| self.describe(error))
    }

    /// Runs the finishing statement, and is gone.
    pub fn run(
        self,
        sql: &str,
        params: &[Value],
        now_ms: Millis,
        seed: u64,
        limits: ReadLimits,
        sink: &mut dyn FnMut(Chunk) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let deadline = Instant::now() + limits.time;
        reading::stream(&self.db, &Run { sql, params, now_ms, seed, limits, deadline }, sink)
    }

    fn describe(&self, error: rusqlite::Error) -> EngineError {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::OutOfMemory) => {
                EngineError::Memory { limit: self.limits.memory_bytes }
            }
            _ => failure::of_read(&self.db.session, error),
        }
    }
}
