//! Interactive transactions on one shard, on its leader: the parts that are open, and when they end.
//!
//! | state of a part | ends by |
//! | --- | --- |
//! | begun, reads a snapshot | its end; [`READER_IDLE_MAX`], [`READER_MAX`]; the replica doesn't lead any more |
//! | has the lane, and SQLite's write lock | its end; [`HOLDER_IDLE_MAX`] (or [`HOLDER_IDLE_WANTED_MAX`]), [`HOLDER_MAX`]; an older transaction wants the lane; an entry has to be applied |
//! | commits: rolled back, its script is proposed | the outcome |
//! | ended | the next step, which is told why; or a while later |
//!
//! A transaction that is at work on one shard is not idle on the others: its coordinator says so now and then
//! ([`Locals::touch`]), for as long as a client waits for a statement. The limits of the whole stay.
//!
//! One step is taken at a time. What ends a part doesn't wait for the step at hand: it interrupts it.
//!
//! *What if the process dies?* The parts are gone with it. Nothing of them is in the log, except for one that commits,
//! and that is decided like any other write.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pleat_cluster::{Millis, Planned, TxnId};
use pleat_engine::{Action, EngineError, LocalTxn, Outcome, Script, StatementResult};
use tokio::runtime::Handle;
use tokio::sync::{OwnedMutexGuard, watch};

use crate::error::Overload;
use crate::lane::{Age, Holding, Lane, Wound};
use crate::replica::{Replica, engine_error};
use crate::rpc::{Declined, Written};
use crate::{HostError, TxnEnd, TxnHandle, TxnStep};

/// Parts that are open on one replica at a time.
const PARTS_MAX: usize = 64;
/// How long a holder of the lane may do nothing, and how long when others wait.
const HOLDER_IDLE_MAX: Duration = Duration::from_secs(1);
const HOLDER_IDLE_WANTED_MAX: Duration = Duration::from_millis(250);
/// How long the lane may be held in all.
const HOLDER_MAX: Duration = Duration::from_secs(5);
/// The same for a part that only reads: its snapshot keeps the write-ahead log from being reset.
const READER_IDLE_MAX: Duration = Duration::from_secs(30);
const READER_MAX: Duration = Duration::from_secs(300);
/// How long a part that is going to write to reference tables waits for the writes before it, until it takes its snapshot.
const REFERENCE_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long it is remembered why a part ended.
const ENDED_KEPT: Duration = Duration::from_secs(60);

/// The parts on one replica.
#[derive(Default)]
pub struct Locals {
    pub lane: Arc<Lane>,
    parts: Mutex<HashMap<TxnId, Arc<Part>>>,
}

/// A part of a transaction.
pub struct Part {
    handle: TxnHandle,
    /// The number of the next step. The lock makes one step at a time.
    next: Arc<tokio::sync::Mutex<u64>>,
    state: Mutex<State>,
    /// Set when it ends in the middle of a step.
    stop: watch::Sender<bool>,
}

struct State {
    local: Option<LocalTxn>,
    /// The lane, and since when.
    holding: Option<(Holding, Instant)>,
    begun: Instant,
    used: Instant,
    busy: bool,
    commits: bool,
    end: Option<TxnEnd>,
}

/// A step being taken.
pub struct Turn {
    pub part: Arc<Part>,
    _next: OwnedMutexGuard<u64>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.part.state.lock();
        (state.busy, state.used) = (false, Instant::now());
    }
}

/// A step that needs no lane.
type Work = Box<dyn FnOnce(&LocalTxn) -> Result<Taken, EngineError> + Send>;

/// What a step gave, unless rows.
pub enum Taken {
    Written { results: Vec<StatementResult>, reference: Option<u64> },
    Done,
    Decided(Written),
}

impl Part {
    fn age(&self) -> Age {
        (self.handle.began, self.handle.id)
    }

    fn check(&self) -> Result<(), HostError> {
        self.state.lock().end.map_or(Ok(()), |end| Err(HostError::TxnEnded(end)))
    }

    /// Whether it has its snapshot.
    fn is_open(&self) -> bool {
        self.state.lock().local.is_some()
    }

    /// Told when the part ends in the middle of a step.
    pub fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Ends it, whatever it is doing; the first reason counts.
    async fn end(self: Arc<Self>, why: TxnEnd) {
        let (local, holding) = {
            let mut state = self.state.lock();
            if state.commits || state.end.is_some() {
                return;
            }
            state.end = Some(why);
            state.used = Instant::now();
            (state.local.take(), state.holding.take())
        };
        self.stop.send_replace(true);
        if let Some(local) = local
            && pleat_consensus::blocking(move || local.evict()).await.is_err()
        {
            tracing::error!(txn = %self.handle.id, "a transaction could not be rolled back");
        }
        // Only now: who gets the lane next wants SQLite's lock.
        drop(holding);
    }

    /// Something that ends it from another thread without waiting.
    fn ender(self: &Arc<Self>, why: TxnEnd) -> impl Fn() + Send + Sync + 'static {
        let (part, runtime): (Weak<Self>, _) = (Arc::downgrade(self), Handle::current());
        move || {
            if let Some(part) = part.upgrade() {
                part.stop.send_replace(true);
                runtime.spawn(part.end(why));
            }
        }
    }

    /// What a failure of the engine means.
    pub fn failed(&self, error: EngineError) -> HostError {
        let mut state = self.state.lock();
        let over = state.local.as_ref().is_none_or(LocalTxn::is_over);
        if over {
            // It is rolled back already.
            let why = if error == EngineError::TxnConflict { TxnEnd::Conflict } else { TxnEnd::RolledBack };
            state.end.get_or_insert(why);
            (state.local, state.holding) = (None, None);
        }
        match (error, state.end) {
            (EngineError::TxnConflict | EngineError::Cancelled, Some(end)) => HostError::TxnEnded(end),
            (error, _) => engine_error(error),
        }
    }

    /// The lane is this part's, unless it has ended meanwhile.
    fn keep(&self, holding: Holding) -> Result<(), HostError> {
        let mut state = self.state.lock();
        match state.end {
            Some(end) => Err(HostError::TxnEnded(end)),
            None => {
                state.holding = Some((holding, Instant::now()));
                Ok(())
            }
        }
    }

    /// When it has been idle for too long, or open.
    fn overdue(&self, now: Instant, wanted: bool) -> Option<TxnEnd> {
        let state = self.state.lock();
        let limit_ms = |limit: Duration| limit.as_millis() as u64;
        let (idle_max, since, max) = match &state.holding {
            Some((_, since)) if wanted => (HOLDER_IDLE_WANTED_MAX, *since, HOLDER_MAX),
            Some((_, since)) => (HOLDER_IDLE_MAX, *since, HOLDER_MAX),
            None => (READER_IDLE_MAX, state.begun, READER_MAX),
        };
        if now.duration_since(since) >= max {
            return Some(TxnEnd::TooLong { limit_ms: limit_ms(max) });
        }
        let idle = !state.busy && now.duration_since(state.used) >= idle_max;
        idle.then(|| TxnEnd::Idle { limit_ms: limit_ms(idle_max) })
    }

    fn is_forgettable(&self, now: Instant) -> bool {
        let state = self.state.lock();
        state.end.is_some() && now.duration_since(state.used) >= ENDED_KEPT
    }
}

impl Locals {
    /// Begins step number `number` of a transaction.
    pub async fn turn(&self, handle: TxnHandle, number: u64, deadline: Instant) -> Result<Turn, HostError> {
        let part = self.part(handle, number)?;
        let next = tokio::time::timeout_at(deadline.into(), part.next.clone().lock_owned()).await;
        let Ok(mut next) = next else { return Err(HostError::Timeout("the step before it did not end".into())) };
        if *next != number {
            part.clone().end(TxnEnd::Lost).await;
        }
        *next += 1;
        if let Err(ended) = part.check() {
            self.forget(handle.id);
            return Err(ended);
        }
        part.state.lock().busy = true;
        Ok(Turn { part, _next: next })
    }

    fn part(&self, handle: TxnHandle, number: u64) -> Result<Arc<Part>, HostError> {
        let mut parts = self.parts.lock();
        if let Some(part) = parts.get(&handle.id) {
            return Ok(part.clone());
        }
        if number != 0 {
            return Err(HostError::TxnEnded(TxnEnd::Lost));
        }
        if parts.len() >= PARTS_MAX {
            return Err(HostError::Overloaded(Overload::Transactions { most: PARTS_MAX }));
        }
        let now = Instant::now();
        let (local, holding, end) = (None, None, None);
        let state = State { local, holding, begun: now, used: now, busy: false, commits: false, end };
        let part = Part { handle, next: Arc::default(), state: Mutex::new(state), stop: watch::Sender::new(false) };
        Ok(parts.entry(handle.id).or_insert(Arc::new(part)).clone())
    }

    /// The transaction does something, though not here.
    pub fn touch(&self, txn: TxnId) {
        if let Some(part) = self.parts.lock().get(&txn) {
            part.state.lock().used = Instant::now();
        }
    }

    fn forget(&self, txn: TxnId) {
        self.parts.lock().remove(&txn);
    }

    /// The transaction's connection; the lane first, if it is going to write.
    pub async fn open(
        &self,
        replica: &Replica,
        part: &Arc<Part>,
        writes: bool,
        deadline: Instant,
    ) -> Result<LocalTxn, Declined> {
        let known = part.state.lock().local.clone();
        let lane = writes || (part.handle.immediate && known.is_none());
        if lane && part.state.lock().holding.is_none() {
            self.hold(replica, part, deadline).await?;
        }
        if let Some(local) = known {
            return Ok(local);
        }
        // It must see all that was acknowledged before.
        replica.group.read_barrier(deadline.saturating_duration_since(Instant::now())).await?;
        let (readers, on_evict) = (replica.readers.clone(), part.ender(TxnEnd::Conflict));
        let local = blocking(move || readers.begin_txn(rand::random(), on_evict)).await?.map_err(engine_error)?;
        let mut state = part.state.lock();
        match state.end {
            Some(end) => Err(HostError::TxnEnded(end).into()),
            None => {
                state.local = Some(local.clone());
                Ok(local)
            }
        }
    }

    async fn hold(&self, replica: &Replica, part: &Arc<Part>, deadline: Instant) -> Result<(), HostError> {
        let wound: Wound = Arc::new(part.ender(TxnEnd::Wounded));
        let mut stopped = part.stopped();
        let holding = tokio::select! {
            holding = self.lane.hold(part.age(), wound, deadline) => holding,
            _ = stopped.wait_for(|stopped| *stopped) => None,
        };
        part.check()?;
        let Some(holding) = holding else {
            return Err(HostError::Timeout("another transaction has the shard to itself".into()));
        };
        part.keep(holding)?;
        // No other can be prepared from here on.
        let mut deciding = replica.readers.watch_deciding();
        match tokio::time::timeout_at(deadline.into(), deciding.wait_for(Option::is_none)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(HostError::Timeout("a transaction over several shards waits for its decision".into())),
        }
    }

    /// Takes a step that gives no rows.
    pub async fn take(
        &self,
        replica: &Replica,
        turn: &Turn,
        step: TxnStep,
        planned: Planned,
        now: Millis,
        deadline: Instant,
    ) -> Result<Taken, Declined> {
        let part = turn.part.clone();
        let work: Work = match step {
            TxnStep::Write { units, statements, planned } => {
                let reference = statements.iter().find_map(|statement| statement.reference);
                if let Some(before) = reference.and_then(|number| number.checked_sub(1)).filter(|_| !part.is_open()) {
                    replica.wait_for_reference(before, REFERENCE_WAIT_MAX).await?;
                }
                let local = self.open(replica, &part, true, deadline).await?;
                let write = move || {
                    let results = local.write(&units, &statements, planned, now)?;
                    Ok(Taken::Written { results, reference: local.reference() })
                };
                return Ok(blocking(write).await?.map_err(|error| part.failed(error))?);
            }
            TxnStep::Savepoint(name) => Box::new(move |local| local.savepoint(&name).map(|()| Taken::Done)),
            TxnStep::RollbackTo(name) => Box::new(move |local| local.rollback_to(&name).map(|()| Taken::Done)),
            TxnStep::Release(name) => Box::new(move |local| local.release(&name).map(|()| Taken::Done)),
            TxnStep::Rollback => {
                self.forget(part.handle.id);
                part.end(TxnEnd::RolledBack).await;
                return Ok(Taken::Done);
            }
            step @ (TxnStep::Commit { .. } | TxnStep::Prepare { .. }) => {
                let local = self.open(replica, &part, false, deadline).await?;
                let decided = self.decide(replica, &part, local, step, planned, now, deadline).await;
                return decided.map(Taken::Decided);
            }
            TxnStep::Read(_) => return Err(HostError::Internal("a read gives rows".into()).into()),
        };
        let local = self.open(replica, &part, false, deadline).await?;
        Ok(blocking(move || work(&local)).await?.map_err(|error| part.failed(error))?)
    }

    /// Proposes what the transaction did.
    #[expect(clippy::too_many_arguments, reason = "one caller, and each is another thing")]
    async fn decide(
        &self,
        replica: &Replica,
        part: &Arc<Part>,
        local: LocalTxn,
        step: TxnStep,
        planned: Planned,
        now: Millis,
        deadline: Instant,
    ) -> Result<Written, Declined> {
        let script = blocking(move || local.finish()).await?.map_err(|error| part.failed(error))?;
        let holding = {
            let mut state = part.state.lock();
            // What ended it in this moment came too late: it is rolled back already, and its script is known.
            state.commits = true;
            if let Some((holding, _)) = &state.holding {
                holding.commits();
            }
            state.holding.take()
        };
        self.forget(part.handle.id);
        let Script { base, units, statements } = script;
        let base = Some(base);
        let action = match step {
            TxnStep::Prepare { participants, idempotency } => Action::Prepare {
                txn: part.handle.id,
                began: part.handle.began,
                participants,
                idempotency,
                units,
                statements,
                base,
            },
            // Its snapshot was true at one moment: nothing has to be decided.
            _ if statements.is_empty() => {
                let outcome = Outcome::Done { results: Vec::new() };
                return Ok(Written { outcome, index: replica.group.applied(), uncertain: false });
            }
            TxnStep::Commit { idempotency } => Action::Write { idempotency, units, statements, base },
            other => return Err(HostError::Internal(format!("{other:?} decides nothing")).into()),
        };
        let within = deadline.saturating_duration_since(Instant::now());
        let written = replica.write_in_lane(planned, action, now, within).await;
        drop(holding);
        written
    }

    /// Ends what has been idle, or open, for too long; all of it when the replica doesn't lead any more.
    pub async fn expire(&self, leads: bool) {
        let now = Instant::now();
        let wanted = self.lane.is_wanted();
        let mut ending = Vec::new();
        self.parts.lock().retain(|_, part| {
            let why = if leads { part.overdue(now, wanted) } else { Some(TxnEnd::Lost) };
            ending.extend(why.map(|why| part.clone().end(why)));
            !part.is_forgettable(now)
        });
        futures::future::join_all(ending).await;
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, HostError> {
    let done = pleat_consensus::blocking(work).await;
    done.map_err(|error| HostError::Internal(format!("the work was broken off: {error}")))
}
