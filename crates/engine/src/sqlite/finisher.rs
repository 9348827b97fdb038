//! Finishing a scatter read: a SQLite database of one query's own that holds what was gathered and runs the finishing
//! statement, so that it means what it would have meant on one shard.
//!
//! The database has no name, which to SQLite means: in memory as long as it fits into the page cache, and the rest in a
//! temporary file, made when it is first needed. So a small gather never touches a disk, and a large one is not refused. How
//! large the cache may be, and the files, is the business of [`room`](crate::room); what the sorts and temporary indexes
//! of the finishing statement don't keep in memory goes the same way ([`spill`](super::spill)). (For these indexes SQLite
//! has a cache of 100 pages and no more, so that a DISTINCT or UNION over more than that spills in any case.)
//!
//! There is no journal: a finisher that has failed is thrown away.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use pleat_cluster::{Millis, Value};

use super::authorize::Mode;
use super::connection::{self, Db};
use super::failure;
use super::reading::{self, Run};
use super::spill::Spill;
use super::value::{bind, marks, quote};
use super::write::check_text;
use crate::limits::FINISHER_SORT_BYTES;
use crate::room::Grant;
use crate::{Chunk, EngineError, ReadLimits, Room};

// See `readers`: the comment keeps these apart from the texts of users.
const BEGIN: &str = "BEGIN /* __pleat_ */";
const COMMIT: &str = "COMMIT /* __pleat_ */";
const PAGE_COUNT: &str = "PRAGMA page_count /* __pleat_ */";

const PAGE_BYTES: u64 = 4096;
/// What a row takes in the database beside its values, in bytes, and a value beside its own size: more than enough.
const ROW_BYTES: u64 = 16;

/// A database for one query. Used by one thread at a time.
pub struct Finisher {
    // Before what it uses: a connection closes its temporary files.
    db: Db,
    spill: Arc<Spill>,
    memory: Grant,
}

impl Finisher {
    /// An empty one. When `cancelled` is set, from any thread, what it does ends with [`EngineError::Cancelled`].
    pub fn new(room: &Arc<Room>, cancelled: Arc<AtomicBool>) -> Result<Self, EngineError> {
        let memory = room.grant().map_err(EngineError::NoRoom)?;
        let db = connection::open_temporary(1).map_err(failure::storage)?;
        db.session.lock().stop = Some(cancelled);
        db.conn
            .execute_batch(&format!("PRAGMA page_size = {PAGE_BYTES}; PRAGMA journal_mode = OFF"))
            .map_err(failure::storage)?;
        let finisher = Self { db, spill: Spill::new(room.clone()), memory };
        finisher.use_memory()?;
        Ok(finisher)
    }

    /// Makes a table for gathered rows.
    pub fn create(&mut self, table_sql: &str) -> Result<(), EngineError> {
        check_text(0, table_sql)?;
        self.db.in_mode(Mode::Schema, |conn| conn.execute_batch(table_sql)).map_err(|error| self.describe(error))
    }

    /// Adds gathered rows.
    pub fn insert(&mut self, table: &str, rows: &[Vec<Value>]) -> Result<(), EngineError> {
        let Some(first) = rows.first() else { return Ok(()) };
        let bytes: usize = rows.iter().flatten().map(Value::size).sum();
        self.make_room(bytes as u64 + ROW_BYTES * rows.len() as u64)?;
        let _entered = self.spill.enter();
        let conn = &self.db.conn;
        let inserted = || -> rusqlite::Result<()> {
            conn.prepare_cached(BEGIN)?.raw_execute()?;
            let sql = format!("INSERT INTO {} VALUES ({})", quote(table), marks(first.len()));
            let mut statement = conn.prepare_cached(&sql)?;
            for row in rows {
                bind(&mut statement, 1, row)?;
                statement.raw_execute()?;
            }
            conn.prepare_cached(COMMIT)?.raw_execute().map(drop)
        };
        inserted().map_err(|error| self.describe(error))
    }

    /// Runs the finishing statement.
    pub fn run(
        &mut self,
        sql: &str,
        params: &[Value],
        now_ms: Millis,
        seed: u64,
        limits: ReadLimits,
        sink: &mut dyn FnMut(Chunk) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let deadline = Instant::now() + limits.time;
        // To sort at once what has been gathered, and more if joins make more of it.
        if self.memory.grow((4 * self.gathered()?).max(FINISHER_SORT_BYTES)) {
            self.use_memory()?;
        }
        let _entered = self.spill.enter();
        let ended = reading::stream(&self.db, &Run { sql, params, now_ms, seed, limits, deadline }, sink);
        ended.map_err(|error| match (error, self.spill.refused()) {
            (EngineError::Cancelled, _) => EngineError::Cancelled,
            (_, Some(refused)) => EngineError::NoRoom(refused),
            (EngineError::Time { .. }, None) if self.is_cancelled() => EngineError::Cancelled,
            (EngineError::Storage(error), None) => files_failed(&error),
            (error, None) => error,
        })
    }

    /// Memory that it was granted, in bytes.
    pub fn memory(&self) -> u64 {
        self.memory.bytes()
    }

    /// What it has written to temporary files, in bytes.
    pub fn spilled(&self) -> u64 {
        self.spill.written()
    }

    /// Asks for the memory that so many more bytes of rows need.
    fn make_room(&mut self, bytes: u64) -> Result<(), EngineError> {
        // Half of the grant is for pages, and SQLite begins to write them out when nine tenths of the cache are full.
        let wanted = 2 * (self.gathered()? + bytes) * 5 / 4;
        match self.memory.grow(wanted) {
            true => self.use_memory(),
            false => Ok(()),
        }
    }

    /// The size of the database in bytes.
    fn gathered(&self) -> Result<u64, EngineError> {
        let count = |conn: &rusqlite::Connection| -> rusqlite::Result<u64> {
            conn.prepare_cached(PAGE_COUNT)?.query_row([], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
        };
        count(&self.db.conn).map(|pages| pages * PAGE_BYTES).map_err(failure::storage)
    }

    /// Half of the grant is the page cache's. A sort takes as much as the cache may, which is the other half.
    fn use_memory(&self) -> Result<(), EngineError> {
        let pages = self.memory.bytes() / 2 / PAGE_BYTES;
        self.db.conn.execute_batch(&format!("PRAGMA cache_size = {pages}")).map_err(failure::storage)
    }

    fn is_cancelled(&self) -> bool {
        self.db.session.lock().stop.as_ref().is_some_and(|stop| stop.load(Ordering::SeqCst))
    }

    fn describe(&self, error: rusqlite::Error) -> EngineError {
        match self.spill.refused() {
            Some(refused) => EngineError::NoRoom(refused),
            None if self.is_cancelled() => EngineError::Cancelled,
            None => match failure::of_read(&self.db.session, error) {
                EngineError::Storage(error) => files_failed(&error),
                error => error,
            },
        }
    }
}

fn files_failed(error: &str) -> EngineError {
    EngineError::Storage(format!("the temporary files of a query that gathers rows failed: {error}"))
}
