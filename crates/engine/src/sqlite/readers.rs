//! Reading a shard without holding its writer up.
//!
//! Each read has one of a bounded number of read-only connections to itself, and one snapshot. What the shard owns
//! is read in that snapshot too: a read that began before a hand-over sees the rows and the ownership of before.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use pleat_cluster::{PartitionId, TxnId};
use tokio::sync::watch;

use super::authorize::Mode;
use super::connection::{self, Db, Role};
use super::content;
use super::failure::storage;
use super::local::Gate;
use super::move_read::Snapshots;
use super::placement::Placement;
use super::reading::{self, Run};
use super::session::Budget;
use super::stats::Measured;
use super::store::StoreConfig;
use super::txn;
use crate::{
    Chunk, Engine, EngineError, EngineKind, MoveChunk, MoveRead, PreparedTxn, ReadRequest, ShardStats, UnitSet,
};

// A connection keeps compiled statements by their text, and those that Pleat compiled may do what a user's may not.
// The comment keeps the texts apart: users' texts that name anything of Pleat's are refused.
const BEGIN: &str = "BEGIN /* __pleat_ */";
const ROLLBACK: &str = "ROLLBACK /* __pleat_ */";

/// How long a connection waits for a next read before it is closed: each keeps megabytes of pages and statements.
const READER_IDLE_MAX: Duration = Duration::from_secs(30);

/// What the writer and the readers of a replica share.
pub(crate) struct Shared {
    pub(crate) path: PathBuf,
    pub(crate) config: StoreConfig,
    pool: Mutex<Pool>,
    returned: Condvar,
    /// Rises when the file is replaced; connections to the old one are not used again.
    file: AtomicU64,
    /// Held while the file is being replaced.
    gate_of_files: RwLock<()>,
    pub(crate) snapshots: Snapshots,
    pub(crate) measured: Mutex<Measured>,
    /// The transaction that is prepared, after the last batch.
    pub(crate) deciding: watch::Sender<Option<TxnId>>,
    pub(crate) gate: Gate,
}

#[derive(Default)]
struct Pool {
    /// With the time since when they wait. The last one is taken first, so those at the front wait for longest.
    idle: Vec<(Instant, Reader)>,
    /// Idle or in use.
    open: usize,
}

/// A read-only connection, with what it knows of the placement.
pub(crate) struct Reader {
    pub(crate) db: Db,
    pub(crate) placement: Arc<Placement>,
    owned: Arc<UnitSet>,
    placement_version: i64,
    file: u64,
}

impl Shared {
    pub(crate) fn new(path: PathBuf, config: StoreConfig) -> Self {
        Self {
            path,
            config,
            pool: Mutex::default(),
            returned: Condvar::new(),
            file: AtomicU64::new(0),
            gate_of_files: RwLock::new(()),
            snapshots: Snapshots::default(),
            measured: Mutex::default(),
            deciding: watch::Sender::new(None),
            gate: Gate::default(),
        }
    }

    /// What is prepared after a batch. Wakes those who wait only when it has changed.
    pub(crate) fn tell_deciding(&self, prepared: Option<TxnId>) {
        self.deciding.send_if_modified(|known| std::mem::replace(known, prepared) != prepared);
    }

    /// Opens a connection to read from, outside the pool.
    pub(crate) fn open_reader(&self) -> anyhow::Result<Db> {
        let _open = self.gate_of_files.read();
        Ok(connection::open(&self.path, Role::Reader, self.config.partition_count)?)
    }

    /// Replaces the file while no connection is being opened.
    pub(crate) fn replace(&self, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let _closed = self.gate_of_files.write();
        self.file.fetch_add(1, Ordering::SeqCst);
        let idle = std::mem::take(&mut self.pool.lock().idle);
        self.pool.lock().open -= idle.len();
        drop(idle);
        self.snapshots.clear();
        let result = work();
        self.returned.notify_all();
        result
    }

    /// A connection for the pool's callers.
    pub(crate) fn new_reader(&self) -> Result<Reader, EngineError> {
        let _open = self.gate_of_files.read();
        let file = self.file.load(Ordering::SeqCst);
        let db = connection::open(&self.path, Role::Reader, self.config.partition_count).map_err(storage)?;
        Ok(Reader { db, placement: Arc::default(), owned: Arc::default(), placement_version: 0, file })
    }

    /// Opens a connection for an interactive transaction. The second value tells its file.
    pub(crate) fn open_local(&self) -> Result<(Db, u64), EngineError> {
        let _open = self.gate_of_files.read();
        let file = self.file.load(Ordering::SeqCst);
        let db = connection::open(&self.path, Role::Local, self.config.partition_count).map_err(storage)?;
        Ok((db, file))
    }

    /// Whether the file is still the present one.
    pub(crate) fn is_current_file(&self, file: u64) -> bool {
        file == self.file.load(Ordering::SeqCst)
    }

    /// Whether a connection is to the present file.
    pub(crate) fn is_current(&self, reader: &Reader) -> bool {
        self.is_current_file(reader.file)
    }

    /// Waits for a connection until `deadline`.
    fn take(self: &Arc<Self>, deadline: Instant) -> Result<Taken, EngineError> {
        let most = self.config.read_connections.max(1);
        let mut pool = self.pool.lock();
        loop {
            if let Some((_, reader)) = pool.idle.pop() {
                return Ok(Taken { shared: self.clone(), reader: Some(reader) });
            }
            if pool.open < most {
                pool.open += 1;
                break;
            }
            if self.returned.wait_until(&mut pool, deadline).timed_out() {
                return Err(EngineError::Busy { connections: most });
            }
        }
        drop(pool);
        let mut taken = Taken { shared: self.clone(), reader: None };
        taken.reader = Some(self.new_reader()?);
        Ok(taken)
    }
}

/// A connection of the pool, in use. It goes back when dropped, unless it can't be used again.
struct Taken {
    shared: Arc<Shared>,
    reader: Option<Reader>,
}

impl Deref for Taken {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        // Taken out on drop only.
        self.reader.as_ref().unwrap_or_else(|| unreachable!("a taken connection is there until it is dropped"))
    }
}

impl DerefMut for Taken {
    fn deref_mut(&mut self) -> &mut Reader {
        self.reader.as_mut().unwrap_or_else(|| unreachable!("a taken connection is there until it is dropped"))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let reader = self.reader.take().filter(|reader| reader.end() && self.shared.is_current(reader));
        let now = Instant::now();
        let mut pool = self.shared.pool.lock();
        match reader {
            Some(reader) => pool.idle.push((now, reader)),
            None => pool.open -= 1,
        }
        let superfluous = pool.superfluous(now);
        drop(pool);
        self.shared.returned.notify_one();
        drop(superfluous);
    }
}

impl Pool {
    /// Takes out the connections that have waited for too long. Reads may have ended for good; the shard's own measurements
    /// come by every few seconds.
    fn superfluous(&mut self, now: Instant) -> Vec<(Instant, Reader)> {
        let waited = |(since, _): &&(Instant, Reader)| now.duration_since(*since) > READER_IDLE_MAX;
        let count = self.idle.iter().take_while(waited).count();
        self.open -= count;
        self.idle.drain(..count).collect()
    }
}

impl Reader {
    /// Opens a snapshot and reads what the shard owns in it.
    pub(crate) fn begin(&mut self) -> Result<(), EngineError> {
        self.db.conn.prepare_cached(BEGIN).and_then(|mut begin| begin.execute([])).map_err(storage)?;
        let version = Placement::version(&self.db.conn).map_err(storage)?;
        if version != self.placement_version {
            let (version, placement) =
                Placement::load(&self.db.conn).map_err(|error| EngineError::Storage(error.to_string()))?;
            self.owned = Arc::new(placement.owned.clone());
            self.placement = placement;
            self.placement_version = version;
        }
        Ok(())
    }

    /// Closes the snapshot; whether the connection can be used again.
    pub(crate) fn end(&self) -> bool {
        let mut session = self.db.session.lock();
        session.mode = Mode::Internal;
        session.budget = Budget::Unlimited;
        session.stop = None;
        drop(session);
        if self.db.conn.is_autocommit() {
            return true;
        }
        self.db.conn.prepare_cached(ROLLBACK).and_then(|mut rollback| rollback.execute([])).is_ok()
    }

    /// What `pleat_owned()` and `pleat_moving()` say from here on.
    pub(crate) fn set_units(&self, moving: UnitSet) {
        let mut session = self.db.session.lock();
        session.owned = self.owned.clone();
        session.moving = Arc::new(moving);
    }
}

/// Reads from one replica of a shard. Clones share the connections.
#[derive(Clone)]
pub struct Readers {
    pub(crate) shared: Arc<Shared>,
}

impl Readers {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The most connections that read at the same time.
    pub fn connections(&self) -> usize {
        self.shared.config.read_connections.max(1)
    }

    /// Runs the queries in one snapshot and hands their rows to `sink`, a chunk at a time; `sink` ends it with `Break`
    /// ([`EngineError::Cancelled`]). Blocks the calling thread.
    pub fn read(
        &self,
        request: &ReadRequest,
        sink: &mut dyn FnMut(Chunk) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        self.read_unless(request, &Arc::default(), sink)
    }

    /// The same, ended as well when `cancelled` is set, from any thread: a query may run for long without having a row
    /// for `sink`.
    pub fn read_unless(
        &self,
        request: &ReadRequest,
        cancelled: &Arc<AtomicBool>,
        sink: &mut dyn FnMut(Chunk) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        match self.read_until_stopped(request, cancelled, sink) {
            Err(EngineError::Time { .. }) if cancelled.load(Ordering::SeqCst) => Err(EngineError::Cancelled),
            ended => ended,
        }
    }

    fn read_until_stopped(
        &self,
        request: &ReadRequest,
        cancelled: &Arc<AtomicBool>,
        sink: &mut dyn FnMut(Chunk) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let deadline = Instant::now() + request.limits.time;
        let mut reader = self.shared.take(deadline)?;
        if cancelled.load(Ordering::SeqCst) {
            return Err(EngineError::Cancelled);
        }
        reader.begin()?;
        reader.db.session.lock().stop = Some(cancelled.clone());
        reader.placement.check_read(request)?;
        reader.set_units(UnitSet::default());
        let mut seen = match request.names_txns {
            true => Some(txn::seen(&reader.db.conn).map_err(|error| EngineError::Storage(error.to_string()))?),
            false => None,
        };
        let sink = &mut |chunk: Chunk| sink(Chunk { txns: seen.take(), ..chunk });
        for query in &request.queries {
            let filtered = query.sql_filtered.as_ref().filter(|_| reader.placement.has_foreign_rows());
            let run = Run {
                sql: filtered.unwrap_or(&query.sql),
                params: &query.params,
                now_ms: request.now_ms,
                seed: request.seed,
                limits: request.limits,
                deadline,
            };
            reading::stream(&reader.db, &run, sink)?;
        }
        Ok(())
    }

    /// Answers the mover. Blocks the calling thread, for digests as long as it takes to read the moving rows.
    pub fn move_read(&self, request: &MoveRead) -> Result<MoveChunk, EngineError> {
        super::move_read::answer(&self.shared, request)
    }

    /// Rows and sizes, counted when the database has changed since they were counted last.
    pub fn stats(&self) -> Result<ShardStats, EngineError> {
        super::stats::stats(&self.shared)
    }

    /// Rows and bytes (of values) of each partition that the shard owns.
    pub fn partition_weights(&self) -> Result<BTreeMap<PartitionId, (u64, u64)>, EngineError> {
        super::stats::partition_weights(&self.shared)
    }

    /// The transaction over several shards that waits for its decision here, after the last batch that was applied.
    pub fn deciding(&self) -> Option<TxnId> {
        *self.shared.deciding.borrow()
    }

    /// The same, to be waited for.
    pub fn watch_deciding(&self) -> watch::Receiver<Option<TxnId>> {
        self.shared.deciding.subscribe()
    }

    /// The same with all that is known of it.
    pub fn in_doubt(&self) -> Result<Vec<PreparedTxn>, EngineError> {
        if self.deciding().is_none() {
            return Ok(Vec::new());
        }
        let look = |reader: &mut Reader| txn::in_doubt(&reader.db.conn);
        Self::with_snapshot(&self.shared, |reader| {
            look(reader).map_err(|error| EngineError::Storage(error.to_string()))
        })
    }

    /// What writes are accepted for, and what was applied by then, in one snapshot.
    pub fn accepting(&self) -> Result<(UnitSet, Vec<u8>), EngineError> {
        Self::with_snapshot(&self.shared, |reader| {
            let mut units = reader.placement.owned.clone();
            units.subtract(&reader.placement.fenced);
            let applied = content::applied(&reader.db.conn);
            Ok((units, applied.map_err(|error| EngineError::Storage(error.to_string()))?))
        })
    }

    /// Runs `work` in a snapshot of its own.
    pub(crate) fn with_snapshot<T>(
        shared: &Arc<Shared>,
        work: impl FnOnce(&mut Reader) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        /// How long Pleat's own questions wait for a connection.
        const WAIT: Duration = Duration::from_secs(10);
        let mut reader = shared.take(Instant::now() + WAIT)?;
        reader.begin()?;
        work(&mut reader)
    }
}

impl Engine for Readers {
    fn kind(&self) -> EngineKind {
        EngineKind::Sqlite
    }

    fn read(&self, request: &ReadRequest, sink: &mut dyn FnMut(Chunk) -> ControlFlow<()>) -> Result<(), EngineError> {
        Readers::read(self, request, sink)
    }

    fn move_read(&self, request: &MoveRead) -> Result<MoveChunk, EngineError> {
        Readers::move_read(self, request)
    }

    fn stats(&self) -> Result<ShardStats, EngineError> {
        Readers::stats(self)
    }

    fn partition_weights(&self) -> Result<BTreeMap<PartitionId, (u64, u64)>, EngineError> {
        Readers::partition_weights(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_nobody_needs_any_more_are_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (_store, readers) = crate::Store::open(dir.path(), StoreConfig::new(4)).unwrap();
        let soon = Instant::now() + Duration::from_secs(5);
        let take = || readers.shared.take(soon).unwrap();
        drop([take(), take(), take()]);
        let idle = |at| {
            let mut pool = readers.shared.pool.lock();
            drop(pool.superfluous(at));
            (pool.idle.len(), pool.open)
        };
        let begun = Instant::now();
        assert_eq!(idle(begun), (3, 3));
        // One is in use all the time.
        let busy = take();
        assert_eq!(idle(begun + READER_IDLE_MAX + Duration::from_secs(60)), (0, 1));
        drop(busy);
        assert_eq!(idle(Instant::now()), (1, 1));
    }
}
