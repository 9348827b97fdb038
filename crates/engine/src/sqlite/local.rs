//! Interactive transactions on one shard, while they are open: a read-write connection of their own.
//!
//! # The mechanism
//!
//! A [`LocalTxn`] is a SQLite transaction that is never committed. It reads from a snapshot and sees its own writes;
//! its statements run as at apply: same checks, same limits, a time and a seed each ([`Stamp`](crate::Stamp)). What is
//! committed is the *script* of its statements ([`LocalTxn::finish`]): the transaction is rolled back, and the script
//! is proposed like any other write, on the condition that the content is still that of the snapshot. Then the
//! statements do the same again, on every replica. Statements that failed and those that a `ROLLBACK TO` undid are
//! left out of the script; the next statement's stamp says what they left in the connection's counters.
//!
//! # The writer never waits for a client
//!
//! SQLite has one write lock, and an open transaction that has written holds it, while the log may have entries to
//! apply. So whoever applies *evicts* it first: marks it, interrupts its statement, and waits for the lock on the
//! connection to roll it back. That wait is bounded, because whoever holds that lock
//!
//! - stops soon: SQLite asks every few thousand steps whether to go on, and the mark is looked at;
//! - waits for nobody else: a receiver of rows is told by `on_evict`, and the gate (below) is waited for only by a
//!   transaction that does not hold SQLite's lock yet, which nobody evicts from apply.
//!
//! The *gate* closes the gap between looking for a transaction to evict and taking SQLite's lock: while a batch is
//! being applied no transaction begins to write. One that waited, or whose snapshot is older than the last commit,
//! ends with a conflict (`SQLITE_BUSY_SNAPSHOT`), which is what a client would be told at the commit anyway.
//!
//! *What if the process dies?* Nothing of an open transaction was ever written to the database.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use pleat_cluster::{Millis, PartitionId, Planned};
use rusqlite::InterruptHandle;

use super::authorize;
use super::content;
use super::failure::{Stop, storage};
use super::readers::{Readers, Shared};
use super::reading::{self, Run};
use super::session::Budget;
use super::store::Writer;
use super::txn;
use super::value::quote;
use super::write::{ResultBudget, Scope, dangling};
use crate::limits::{TXN_SAVEPOINTS_MAX, TXN_SCRIPT_BYTES_MAX, WRITE_STEP_BLOCKS_MAX};
use crate::{Chunk, EngineError, Outcome, ReadRequest, Stamp, Statement, StatementResult, UnitSet, sqlstate};

/// How long a transaction's first write waits for a batch that is being applied.
const GATE_WAIT: Duration = Duration::from_secs(5);

/// What a transaction did, to be proposed.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// The content version of its snapshot.
    pub base: u64,
    pub units: Vec<PartitionId>,
    pub statements: Vec<Statement>,
}

/// An open transaction. Clones are the same transaction.
#[derive(Clone)]
pub struct LocalTxn(Arc<Core>);

/// Between the transaction that writes and the thread that applies.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    opened: Condvar,
}

#[derive(Default)]
struct GateState {
    applying: bool,
    /// The transaction that has SQLite's write lock, or is about to take it.
    writing: Option<Weak<Core>>,
}

struct Core {
    shared: Arc<Shared>,
    evicted: Arc<AtomicBool>,
    interrupt: InterruptHandle,
    on_evict: Box<dyn Fn() + Send + Sync>,
    /// `None` when it is over.
    open: Mutex<Option<Open>>,
}

struct Open {
    writer: Writer,
    /// Of the file that the connection is to; see [`Shared::is_current_file`].
    file: u64,
    script: Script,
    units: BTreeSet<PartitionId>,
    script_bytes: usize,
    /// By name, with the number of statements before it.
    savepoints: Vec<(String, usize)>,
    /// Something was undone since the last statement of the script.
    undone: bool,
    writes: bool,
    /// The number that its writes to reference tables get, if there are any.
    reference: Option<u64>,
    seed: u64,
    /// Statements tried, which number their seeds.
    tried: u64,
    budget: Budget,
    results: ResultBudget,
}

impl Gate {
    /// Before a batch is applied. What is returned opens the gate again when it is dropped.
    pub(crate) fn close(&self) -> Closed<'_> {
        let writing = {
            let mut state = self.state.lock();
            state.applying = true;
            state.writing.take()
        };
        if let Some(core) = writing.and_then(|writing| writing.upgrade()) {
            core.evict();
        }
        Closed(self)
    }

    /// Lets a transaction begin to write, unless a batch is being applied for too long.
    fn enter(&self, core: &Arc<Core>) -> Result<(), EngineError> {
        let deadline = Instant::now() + GATE_WAIT;
        let mut state = self.state.lock();
        while state.applying {
            if self.opened.wait_until(&mut state, deadline).timed_out() {
                return Err(EngineError::TxnConflict);
            }
        }
        if state.writing.as_ref().is_some_and(|writing| writing.strong_count() > 0) {
            return Err(EngineError::TxnConflict);
        }
        state.writing = Some(Arc::downgrade(core));
        Ok(())
    }

    fn leave(&self, core: &Arc<Core>) {
        let mut state = self.state.lock();
        if state.writing.as_ref().is_some_and(|writing| std::ptr::eq(writing.as_ptr(), Arc::as_ptr(core))) {
            state.writing = None;
        }
    }
}

/// A closed gate.
pub(crate) struct Closed<'a>(&'a Gate);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.state.lock().applying = false;
        self.0.opened.notify_all();
    }
}

impl Core {
    /// Ends the transaction, whatever it is doing.
    fn evict(&self) {
        self.evicted.store(true, Ordering::SeqCst);
        (self.on_evict)();
        self.interrupt.interrupt();
        let open = self.open.lock().take();
        open.into_iter().for_each(Open::roll_back);
    }
}

impl Readers {
    /// Begins a transaction: its snapshot is taken now. `on_evict` is called when it is evicted, on any thread, and
    /// must make receivers of its rows stop. Blocks the calling thread.
    pub fn begin_txn(&self, seed: u64, on_evict: impl Fn() + Send + Sync + 'static) -> Result<LocalTxn, EngineError> {
        let (db, file) = self.shared.open_local()?;
        let evicted = Arc::new(AtomicBool::new(false));
        db.session.lock().stop = Some(evicted.clone());
        let interrupt = db.conn.get_interrupt_handle();
        let mut writer = Writer::over(db);
        writer.control("BEGIN /* __pleat_ */").map_err(storage)?;
        let base = content::version(&writer.db.conn).map_err(storage)?;
        writer.beside.now_ms = content::log_time(&writer.db.conn).map_err(storage)?;
        writer.reload().map_err(|error| EngineError::Storage(error.to_string()))?;
        let open = Open {
            writer,
            file,
            script: Script { base, units: Vec::new(), statements: Vec::new() },
            units: BTreeSet::new(),
            script_bytes: 0,
            savepoints: Vec::new(),
            undone: false,
            writes: false,
            reference: None,
            seed,
            tried: 0,
            budget: Budget::Steps(WRITE_STEP_BLOCKS_MAX),
            results: ResultBudget::of_a_write(),
        };
        let shared = self.shared.clone();
        let on_evict = Box::new(on_evict);
        Ok(LocalTxn(Arc::new(Core { shared, evicted, interrupt, on_evict, open: Mutex::new(Some(open)) })))
    }
}

impl LocalTxn {
    /// Runs queries in the snapshot, the transaction's own writes included.
    pub fn read(
        &self,
        request: &ReadRequest,
        sink: &mut dyn FnMut(Chunk) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        self.with(|_, open| open.read(request, sink))
    }

    /// Runs statements: all of them or none. A failure leaves the transaction as it was before, unless the statement
    /// rolled all of it back ([`LocalTxn::is_over`]).
    pub fn write(
        &self,
        units: &[PartitionId],
        statements: &[Statement],
        planned: Planned,
        now_ms: Millis,
    ) -> Result<Vec<StatementResult>, EngineError> {
        self.with(|core, open| {
            open.writer.placement.check_layout(planned.layout)?;
            open.writer.planned = planned;
            open.writer.check_triggers()?;
            open.writer.placement.check_units(units)?;
            if statements.iter().any(|statement| statement.reference.is_some()) {
                open.write_references()?;
            }
            open.start_writing(core)?;
            open.write(units, statements, now_ms)
        })
    }

    /// The number that it would get in the shard's reference log, if it wrote to reference tables.
    pub fn reference(&self) -> Option<u64> {
        self.0.open.lock().as_ref().and_then(|open| open.reference)
    }

    pub fn savepoint(&self, name: &str) -> Result<(), EngineError> {
        self.with(|_, open| {
            if open.savepoints.len() >= TXN_SAVEPOINTS_MAX {
                let message = format!("a transaction may have {TXN_SAVEPOINTS_MAX} savepoints at a time");
                return Err(sqlstate::refuse(0, "54000", message, "release some").into());
            }
            if authorize::names_reserved(name) || name.contains('\0') {
                return Err(sqlstate::refuse(0, "42501", authorize::reserved(name), "use another name").into());
            }
            open.control(&format!("SAVEPOINT {} /* __pleat_ */", quote(name)))?;
            open.savepoints.push((name.to_owned(), open.script.statements.len()));
            Ok(())
        })
    }

    pub fn rollback_to(&self, name: &str) -> Result<(), EngineError> {
        self.with(|_, open| {
            let place = open.savepoint(name)?;
            open.control(&format!("ROLLBACK TO {} /* __pleat_ */", quote(name)))?;
            let (_, statements) = open.savepoints[place];
            open.savepoints.truncate(place + 1);
            open.script.statements.truncate(statements);
            open.script_bytes = open.script.statements.iter().map(size).sum();
            open.undone = true;
            Ok(())
        })
    }

    pub fn release(&self, name: &str) -> Result<(), EngineError> {
        self.with(|_, open| {
            let place = open.savepoint(name)?;
            open.control(&format!("RELEASE {} /* __pleat_ */", quote(name)))?;
            open.savepoints.truncate(place);
            Ok(())
        })
    }

    /// Rolls the transaction back and gives what it did. It stays open when it can't be committed as it is.
    pub fn finish(&self) -> Result<Script, EngineError> {
        let mut script = self.with(|_, open| {
            if open.writer.has_dangling_references() {
                return Err(dangling(1).into());
            }
            Ok(Script { units: open.units.iter().copied().collect(), ..open.script.clone() })
        })?;
        // Between the two it may have been evicted; what it did is known all the same, and the base decides.
        self.roll_back();
        script.statements.shrink_to_fit();
        Ok(script)
    }

    /// Rolls the transaction back, when its statement has ended.
    pub fn roll_back(&self) {
        let open = self.0.open.lock().take();
        self.0.shared.gate.leave(&self.0);
        open.into_iter().for_each(Open::roll_back);
    }

    /// Ends the transaction, also in the middle of a statement. Blocks for a short while.
    pub fn evict(&self) {
        self.0.evict();
        self.0.shared.gate.leave(&self.0);
    }

    /// Whether it was rolled back, by whomever.
    pub fn is_over(&self) -> bool {
        self.0.evicted.load(Ordering::SeqCst) || self.0.open.lock().is_none()
    }

    fn with<T>(&self, work: impl FnOnce(&Arc<Core>, &mut Open) -> Result<T, EngineError>) -> Result<T, EngineError> {
        let core = &self.0;
        let mut slot = core.open.lock();
        let Some(open) = slot.as_mut() else { return Err(EngineError::TxnConflict) };
        let replaced = !core.shared.is_current_file(open.file);
        let result = match replaced || core.evicted.load(Ordering::SeqCst) {
            true => Err(EngineError::TxnConflict),
            false => work(core, open),
        };
        let evicted = core.evicted.load(Ordering::SeqCst);
        let lost = matches!(result, Err(EngineError::TxnConflict | EngineError::Storage(_)));
        if evicted || lost || open.writer.db.conn.is_autocommit() {
            core.shared.gate.leave(core);
            slot.take().into_iter().for_each(Open::roll_back);
        }
        if evicted { Err(EngineError::TxnConflict) } else { result }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.open.get_mut().take().into_iter().for_each(Open::roll_back);
    }
}

impl Open {
    fn roll_back(self) {
        if !self.writer.db.conn.is_autocommit() {
            // Closing the connection would do the same.
            self.writer.control("ROLLBACK /* __pleat_ */").ok();
        }
    }

    fn control(&self, sql: &str) -> Result<(), EngineError> {
        self.writer.db.conn.execute_batch(sql).map_err(busy_or_storage)
    }

    fn savepoint(&self, name: &str) -> Result<usize, EngineError> {
        let found = self.savepoints.iter().rposition(|(known, _)| known.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            sqlstate::refuse(0, "3B001", format!("no such savepoint: {name}"), "set it with SAVEPOINT first").into()
        })
    }

    fn read(&self, request: &ReadRequest, sink: &mut dyn FnMut(Chunk) -> ControlFlow<()>) -> Result<(), EngineError> {
        let placement = &self.writer.placement;
        placement.check_read(request)?;
        let moving = std::mem::replace(&mut self.writer.db.session.lock().moving, Arc::new(UnitSet::default()));
        let mut seen = match request.names_txns {
            true => {
                let seen = txn::seen(&self.writer.db.conn);
                Some(seen.map_err(|error| EngineError::Storage(error.to_string()))?)
            }
            false => None,
        };
        let sink = &mut |chunk: Chunk| sink(Chunk { txns: seen.take(), ..chunk });
        let deadline = Instant::now() + request.limits.time;
        let result = request.queries.iter().try_for_each(|query| {
            let filtered = query.sql_filtered.as_ref().filter(|_| placement.has_foreign_rows());
            let run = Run {
                sql: filtered.unwrap_or(&query.sql),
                params: &query.params,
                now_ms: request.now_ms,
                seed: request.seed,
                limits: request.limits,
                deadline,
            };
            reading::stream(&self.writer.db, &run, sink)
        });
        self.writer.db.session.lock().moving = moving;
        result
    }

    /// Takes SQLite's write lock, the first time.
    fn start_writing(&mut self, core: &Arc<Core>) -> Result<(), EngineError> {
        if self.writes {
            return Ok(());
        }
        if self.writer.prepared.is_some() {
            return Err(EngineError::TxnConflict);
        }
        core.shared.gate.enter(core)?;
        self.writes = true;
        self.writer.set_counters(0, 0).map_err(busy_or_storage)
    }

    /// Before statements that write to reference tables.
    fn write_references(&mut self) -> Result<(), EngineError> {
        self.writer.check_reference_members().map_err(of_stop)?;
        self.writer.placement.check_reference_writes()?;
        self.reference = Some(self.writer.next_reference().map_err(of_stop)?);
        Ok(())
    }

    fn write(
        &mut self,
        units: &[PartitionId],
        statements: &[Statement],
        now_ms: Millis,
    ) -> Result<Vec<StatementResult>, EngineError> {
        let bytes: usize = statements.iter().map(size).sum();
        if self.script_bytes + bytes > TXN_SCRIPT_BYTES_MAX {
            let message = format!("a transaction's statements may take {TXN_SCRIPT_BYTES_MAX} bytes on one shard");
            return Err(sqlstate::refuse(0, "54000", message, "commit in between, or load rows in bulk").into());
        }
        self.control("SAVEPOINT __pleat_step")?;
        match self.run(units, statements, now_ms) {
            Ok((results, ran)) => {
                self.control("RELEASE __pleat_step")?;
                self.units.extend(units);
                self.script_bytes += bytes;
                self.script.statements.extend(ran);
                Ok(results)
            }
            Err(stop) => {
                self.undone = true;
                if !self.writer.db.conn.is_autocommit() {
                    self.control("ROLLBACK TO __pleat_step; RELEASE __pleat_step")?;
                }
                Err(of_stop(stop))
            }
        }
    }

    /// The statements, and what they ran with.
    fn run(
        &mut self,
        units: &[PartitionId],
        statements: &[Statement],
        now_ms: Millis,
    ) -> Result<(Vec<StatementResult>, Vec<Statement>), Stop> {
        let scope = Scope::Units(units);
        self.writer.set_scope(scope);
        self.writer.db.session.lock().budget = self.budget;
        let (mut results, mut ran) = (Vec::new(), Vec::new());
        let mut failed = None;
        for (index, statement) in statements.iter().enumerate() {
            let reference = statement.reference.and(self.reference);
            let stamp = Stamp { undone: self.undone.then(|| self.writer.counters()), ..self.stamp(statement, now_ms) };
            let statement = Statement { stamp: Some(stamp), reference, ..statement.clone() };
            match self.writer.run(index, &statement, scope, &mut self.results) {
                Ok(result) => results.push(result),
                Err(stop) => {
                    failed = Some(stop);
                    break;
                }
            }
            self.undone = false;
            ran.push(statement);
        }
        self.budget = self.writer.db.session.lock().budget;
        self.writer.clear_scope();
        failed.map_or(Ok((results, ran)), Err)
    }

    /// A write to reference tables brings what it runs with: on all shards the same.
    fn stamp(&mut self, statement: &Statement, now_ms: Millis) -> Stamp {
        if let (Some(stamp), Some(_)) = (statement.stamp, statement.reference) {
            return stamp;
        }
        self.tried += 1;
        // SplitMix64's step: seeds that differ for each statement.
        let seed = self.seed.wrapping_add(self.tried.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // The shard's time doesn't go back.
        self.writer.beside.now_ms = self.writer.beside.now_ms.max(now_ms);
        Stamp { now_ms: self.writer.beside.now_ms, seed, undone: None }
    }
}

fn size(statement: &Statement) -> usize {
    let params: usize = statement.params.iter().map(pleat_cluster::Value::size).sum();
    statement.sql.len() + statement.filtered.as_ref().map_or(0, String::len) + params + 32
}

fn of_stop(stop: Stop) -> EngineError {
    match stop {
        Stop::Outcome(outcome) => match *outcome {
            Outcome::Failed(failure) => EngineError::Sql(failure),
            Outcome::Refused(refusal) => EngineError::Refused(refusal),
            other => EngineError::Storage(format!("a statement gave {other:?}")),
        },
        Stop::Fatal(error) => match error.downcast::<rusqlite::Error>() {
            Ok(error) => busy_or_storage(error),
            Err(error) => EngineError::Storage(error.to_string()),
        },
    }
}

/// The write lock is not to be had: what was read is old, or is being changed.
fn busy_or_storage(error: rusqlite::Error) -> EngineError {
    use rusqlite::ErrorCode::{DatabaseBusy, OperationInterrupted};
    match error.sqlite_error_code() {
        Some(DatabaseBusy | OperationInterrupted) => EngineError::TxnConflict,
        _ => storage(error),
    }
}
