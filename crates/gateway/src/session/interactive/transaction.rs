//! One interactive transaction: its parts on shards, its savepoints, and how it ends.
//!
//! # States
//!
//! ```text
//! begun ──first statement──► open ──COMMIT──► committed, or not at all
//!                             │ ▲ └─ROLLBACK─► gone
//!              a part is lost ▼ └ a statement fails: it is undone, the transaction goes on (as in SQLite)
//!                           failed ──only ROLLBACK (or COMMIT, which is refused)──► gone
//! ```
//!
//! A shard's part begins with the first statement that needs the shard, and reads a snapshot of that moment. The first
//! write on a shard takes its write lane. Nothing of this is in any log: a part lives on its shard's leader, within limits
//! of time, and when it is lost the transaction has failed.
//!
//! # Invariants
//!
//! 1. All parts go by one catalog, that of the first part. A shard that knows a newer one is a conflict.
//! 2. A statement takes effect on all shards or on none, also when it fails on the last one: it runs behind a savepoint
//!    where it touches several.
//! 3. A part that begins late gets the savepoints that are open, so each of them can be rolled back to on every part.
//! 4. What was begun and not ended, because its client went away in the middle, is never gone on with.
//!
//! # Committing
//!
//! One shard: its statements become one entry of its log, if the shard is still at the version of the snapshot. Several: two
//! phases, in which shards that were only read are held to their versions too. That makes transactions
//! serializable: at the moment when all parts are prepared, everything that was read is as it was. A transaction that
//! only read, on several shards, asks them for their versions once more: if none has changed, there was a moment at
//! which all snapshots were the present. One that was begun with READ ONLY is spared that, or a report over a busy
//! cluster would never succeed: its snapshots are of several moments, though none shows half of another transaction.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use parking_lot::Mutex;
use pleat_cluster::{Catalog, Millis, PartitionId, Planned, ShardId, TxnId};
use pleat_engine::{
    EngineError, Idempotency, Outcome, OwnershipCheck, Query, ReadLimits, ReadRequest, Refusal, Statement,
    StatementResult, TxnsSeen,
};
use pleat_host::{Freshness, HostError, RowStream, TxnHandle, TxnPart, TxnReply, TxnStep, Written};
use tokio::sync::Mutex as AsyncMutex;

use super::control::Mode;
use crate::backend::Backend;
use crate::session::deadline::Deadline;
use crate::session::parts::{ShardPart, Share};
use crate::session::reroute::{Setback, refused_spread};
use crate::session::two_phase::{Ended, Forgetting, Part, TwoPhase, new_txn};
use crate::session::{Failure, whole};

/// How long rolling back may take. A part that is not told ends by its own limits.
const ROLLBACK_TIME_MAX: Duration = Duration::from_secs(2);
/// How often parts are kept from being idle while their transaction waits elsewhere: well within the 250 ms that a shard
/// gives to who keeps others waiting.
const TOUCH_EVERY: Duration = Duration::from_millis(80);
/// How long that may take. The next time is as good.
const TOUCH_TIME_MAX: Duration = Duration::from_millis(500);
/// Savepoints that may be open at one time.
const SAVEPOINTS_MAX: usize = 100;
/// Around a statement on several shards. No user can give a savepoint such a name.
const STATEMENT: &str = "pleat statement";
/// Around the statements of one request.
pub(super) const REQUEST: &str = "pleat request";

/// An interactive transaction.
pub(in crate::session) struct Txn {
    backend: Arc<dyn Backend>,
    handle: TxnHandle,
    pub(super) mode: Mode,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// That of the first part.
    catalog: Option<Arc<Catalog>>,
    parts: BTreeMap<ShardId, Touch>,
    savepoints: Vec<String>,
    /// The number that its writes to reference tables get, on every shard.
    reference: Option<u64>,
    /// Why nothing can be done any more.
    failed: Option<Failure>,
    /// A request is being carried out; if it is found so by the next one, that one's client went away.
    busy: bool,
}

#[derive(Clone)]
struct Touch {
    part: Arc<AsyncMutex<TxnPart>>,
    wrote: bool,
    /// What its snapshot says.
    seen: Option<TxnsSeen>,
}

/// What the user sees of an open transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTxn {
    pub id: pleat_cluster::TxnId,
    pub began: Millis,
    /// The shards that it has touched, and whether it wrote there.
    pub shards: BTreeMap<ShardId, bool>,
    pub failed: bool,
}

/// How a commit went.
pub(super) struct Committed {
    /// The position in the log of each shard that was written.
    pub indexes: BTreeMap<ShardId, u64>,
    /// Another transaction was committed under this key before, and this one did nothing.
    pub before: bool,
}

impl Committed {
    fn at(indexes: BTreeMap<ShardId, u64>) -> Self {
        Self { indexes, before: false }
    }
}

/// What one shard did of a statement: what its results count for, and the results.
pub(super) type Did = (ShardId, Vec<Share>, Vec<StatementResult>);

impl Txn {
    pub(super) fn begin(backend: Arc<dyn Backend>, mode: Mode) -> Self {
        let handle = TxnHandle { id: new_txn(), began: backend.txn_clock(), immediate: mode.immediate };
        Self { backend, handle, mode, state: Mutex::default() }
    }

    pub(super) fn id(&self) -> TxnId {
        self.handle.id
    }

    pub(super) fn look(&self) -> OpenTxn {
        let state = self.state.lock();
        OpenTxn {
            id: self.handle.id,
            began: self.handle.began,
            shards: state.parts.iter().map(|(shard, touch)| (*shard, touch.wrote)).collect(),
            failed: state.failed.is_some(),
        }
    }

    /// Begin a request, unless nothing can be done any more.
    pub(super) fn enter(&self) -> Result<(), Failure> {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.busy, true) && state.failed.is_none() {
            state.failed = Some(Failure::new("40000", "a request of the transaction was given up by its client", ""));
        }
        match &state.failed {
            None => Ok(()),
            Some(why) => Err(Failure::new(
                "25P02",
                format!("the transaction has failed and is rolled back: {}", why.message),
                "end it with ROLLBACK, then begin it again",
            )),
        }
    }

    /// End a request. A transaction that has failed lets go of its shards.
    pub(super) async fn leave(&self) {
        let failed = {
            let mut state = self.state.lock();
            state.busy = false;
            state.failed.is_some()
        };
        if failed {
            self.roll_back().await;
        }
    }

    /// Do something, while no part that holds its shard is taken for idle: one statement may wait for a shard for longer
    /// than the others are patient.
    pub(super) async fn awake<T>(&self, work: impl Future<Output = T>) -> T {
        let touching = async {
            loop {
                tokio::time::sleep(TOUCH_EVERY).await;
                self.touch().await;
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            () = touching => unreachable!("it never ends"),
        }
    }

    async fn touch(&self) {
        let holds = |touch: &&Touch| touch.wrote || self.mode.immediate;
        let parts: Vec<_> = self.state.lock().parts.values().filter(holds).map(|touch| touch.part.clone()).collect();
        let touching = parts.iter().map(|part| async {
            // One that is taking a step is not idle.
            if let Ok(part) = part.try_lock() {
                self.backend.touch_txn(&part, TOUCH_TIME_MAX).await;
            }
        });
        join_all(touching).await;
    }

    /// Whether no shard was touched yet.
    pub(super) fn is_untouched(&self) -> bool {
        self.state.lock().parts.is_empty()
    }

    /// The catalog that it goes by, once it has one.
    pub(super) fn catalog(&self) -> Option<Arc<Catalog>> {
        self.state.lock().catalog.clone()
    }

    /// From now on nothing can be done but to end it.
    pub(super) fn doom(&self, failure: &Failure) {
        self.state.lock().failed.get_or_insert_with(|| failure.clone());
    }

    /// Let go of all shards. What can't be told ends by itself.
    pub(super) async fn roll_back(&self) {
        let parts = std::mem::take(&mut self.state.lock().parts);
        let rolling = parts.into_values().map(|touch| async move {
            let mut part = touch.part.lock().await;
            if part.has_begun() {
                let ended = self.backend.txn_step(&mut part, TxnStep::Rollback, ROLLBACK_TIME_MAX).await;
                if let Err(error) = ended {
                    tracing::debug!(txn = %self.handle.id, shard = %part.shard(), %error, "a part was not rolled back; it ends by itself");
                }
            }
        });
        join_all(rolling).await;
    }

    /// Whether the snapshots show each transaction over several shards on all of its shards, or on none.
    pub(super) fn is_whole(&self) -> bool {
        let state = self.state.lock();
        let seen: Vec<_> =
            state.parts.iter().filter_map(|(shard, touch)| Some((*shard, touch.seen.as_ref()?))).collect();
        whole::behind(&seen).is_empty()
    }

    /// Begin anew, because nothing was told to the client yet.
    pub(super) async fn start_over(&self) {
        self.roll_back().await;
        let mut state = self.state.lock();
        (state.catalog, state.reference) = (None, None);
    }

    /// The part on a shard; it goes by this catalog from now on, unless it did before.
    fn part(&self, shard: ShardId, catalog: &Arc<Catalog>) -> Touch {
        let mut state = self.state.lock();
        state.catalog.get_or_insert_with(|| catalog.clone());
        let new =
            || Touch { part: Arc::new(AsyncMutex::new(TxnPart::new(shard, self.handle))), wrote: false, seen: None };
        state.parts.entry(shard).or_insert_with(new).clone()
    }

    async fn step(
        &self,
        shard: ShardId,
        catalog: &Arc<Catalog>,
        step: TxnStep,
        within: Duration,
    ) -> Result<TxnReply, Setback> {
        let touch = self.part(shard, catalog);
        let mut part = touch.part.lock().await;
        if !part.has_begun() {
            let open = self.state.lock().savepoints.clone();
            for name in open {
                self.send(&mut part, TxnStep::Savepoint(name), within).await?;
            }
        }
        self.send(&mut part, step, within).await
    }

    async fn send(&self, part: &mut TxnPart, step: TxnStep, within: Duration) -> Result<TxnReply, Setback> {
        match self.backend.txn_step(part, step, within).await {
            Ok(reply) => Ok(reply),
            Err(HostError::Refused(refusal) | HostError::Engine(EngineError::Refused(refusal))) => {
                Err(refused_spread(refusal, 0))
            }
            Err(error) => {
                let goes_on = matches!(error, HostError::Engine(_) | HostError::TooLarge(_));
                let failure = Failure { retryable: false, ..error.into() };
                if !goes_on {
                    self.doom(&failure);
                }
                Err(Setback::Failed(failure))
            }
        }
    }

    /// Read from a shard.
    pub(in crate::session) async fn read(
        &self,
        shard: ShardId,
        catalog: &Arc<Catalog>,
        mut request: ReadRequest,
        within: Duration,
    ) -> Result<RowStream, Setback> {
        request.names_txns = self.part(shard, catalog).seen.is_none();
        let reply = self.step(shard, catalog, TxnStep::Read(request), within).await?;
        let TxnReply::Rows(rows) = reply else { return Err(wrong_reply()) };
        let mut state = self.state.lock();
        if let (Some(seen), Some(touch)) = (&rows.txns, state.parts.get_mut(&shard)) {
            touch.seen.get_or_insert_with(|| seen.clone());
        }
        drop(state);
        Ok(rows)
    }

    /// Carry out a statement's parts, all or none of them.
    pub(super) async fn write(
        &self,
        parts: BTreeMap<ShardId, ShardPart>,
        catalog: &Arc<Catalog>,
        deadline: &Deadline,
    ) -> Result<Vec<Did>, Setback> {
        // A shard that was only read for it is held to its version by its part.
        let parts: Vec<_> = parts.into_iter().filter(|(_, part)| !part.statements.is_empty()).collect();
        if parts.len() <= 1 {
            let mut done = Vec::new();
            for (shard, part) in parts {
                done.push(self.write_on(shard, part, catalog, deadline).await?);
            }
            return Ok(done);
        }
        self.savepoint(STATEMENT, deadline).await?;
        let done = self.write_on_all(parts, catalog, deadline).await;
        if done.is_err() {
            self.roll_back_to(STATEMENT, deadline).await?;
        }
        self.release(STATEMENT, deadline).await?;
        done
    }

    async fn write_on_all(
        &self,
        mut parts: Vec<(ShardId, ShardPart)>,
        catalog: &Arc<Catalog>,
        deadline: &Deadline,
    ) -> Result<Vec<Did>, Setback> {
        let mut done = Vec::new();
        let references = |part: &ShardPart| part.statements.iter().any(|statement| statement.reference.is_some());
        let first = parts.iter().position(|(shard, part)| Some(*shard) == catalog.anchor() && references(part));
        if let Some(first) = first {
            // From here on no other gets a number, and the shards that wait for one before it can be waited for.
            let (anchor, part) = parts.remove(first);
            done.push(self.write_on(anchor, part, catalog, deadline).await?);
            let number = self.state.lock().reference;
            let rest = parts.iter_mut().flat_map(|(_, part)| &mut part.statements);
            rest.filter(|statement| statement.reference.is_some()).for_each(|statement| statement.reference = number);
        }
        let writing = parts.into_iter().map(|(shard, part)| self.write_on(shard, part, catalog, deadline));
        // All are waited for, also when one has failed: a step that is given up is a part that is lost.
        let rest: Result<Vec<_>, Setback> = join_all(writing).await.into_iter().collect();
        done.extend(rest?);
        Ok(done)
    }

    async fn write_on(
        &self,
        shard: ShardId,
        part: ShardPart,
        catalog: &Arc<Catalog>,
        deadline: &Deadline,
    ) -> Result<Did, Setback> {
        let units: Vec<PartitionId> = part.units.into_iter().collect();
        let statements: Vec<Statement> = part.statements;
        let step = TxnStep::Write { units, statements, planned: catalog.planned() };
        let reply = self.step(shard, catalog, step, deadline.left()).await;
        if reply.is_ok()
            && let Some(touch) = self.state.lock().parts.get_mut(&shard)
        {
            touch.wrote = true;
        }
        match reply? {
            TxnReply::Written { results, reference } => {
                self.agrees(reference)?;
                Ok((shard, part.shares, results))
            }
            _ => Err(wrong_reply()),
        }
    }

    /// All shards must give its writes to reference tables the same number: then they have the same content there. One that
    /// differs has not got the last of others' writes yet, or an older snapshot.
    fn agrees(&self, reference: Option<u64>) -> Result<(), Setback> {
        let Some(expected) = reference else { return Ok(()) };
        match *self.state.lock().reference.get_or_insert(expected) {
            given if given == expected => Ok(()),
            given => Err(Setback::Refused { refusal: Refusal::Gap { expected, given }, unsure: None }),
        }
    }

    /// Mark this moment, on every part.
    pub(super) async fn savepoint(&self, name: &str, deadline: &Deadline) -> Result<(), Setback> {
        let full = {
            let state = self.state.lock();
            state.savepoints.len() >= SAVEPOINTS_MAX
        };
        if full {
            return Err(Setback::Failed(Failure::new(
                "54000",
                format!("{SAVEPOINTS_MAX} savepoints are open already"),
                "release some of them",
            )));
        }
        self.everywhere(|| TxnStep::Savepoint(name.to_owned()), deadline).await?;
        self.state.lock().savepoints.push(name.to_owned());
        Ok(())
    }

    /// Undo what was done since, on every part; the savepoint stays.
    pub(super) async fn roll_back_to(&self, name: &str, deadline: &Deadline) -> Result<(), Setback> {
        let at = self.find(name)?;
        self.everywhere(|| TxnStep::RollbackTo(name.to_owned()), deadline).await?;
        self.state.lock().savepoints.truncate(at + 1);
        Ok(())
    }

    /// Forget a savepoint and those after it; what was done since stays.
    pub(super) async fn release(&self, name: &str, deadline: &Deadline) -> Result<(), Setback> {
        let at = self.find(name)?;
        self.everywhere(|| TxnStep::Release(name.to_owned()), deadline).await?;
        self.state.lock().savepoints.truncate(at);
        Ok(())
    }

    fn find(&self, name: &str) -> Result<usize, Setback> {
        let found = self.state.lock().savepoints.iter().rposition(|open| open == name);
        found.ok_or_else(|| {
            let what = format!("there is no savepoint {name} in this transaction");
            Setback::Failed(Failure::new("3B001", what, "SAVEPOINT name makes one"))
        })
    }

    async fn everywhere(&self, step: impl Fn() -> TxnStep, deadline: &Deadline) -> Result<(), Setback> {
        let parts: Vec<_> = self.state.lock().parts.values().map(|touch| touch.part.clone()).collect();
        let sending = parts.iter().map(|part| {
            let step = step();
            async move {
                let mut part = part.lock().await;
                match part.has_begun() {
                    true => self.send(&mut part, step, deadline.left()).await.map(drop),
                    false => Ok(()),
                }
            }
        });
        let sent: Result<(), Setback> = join_all(sending).await.into_iter().collect();
        if let Err(Setback::Failed(failure)) = &sent {
            // What some parts did and others didn't can't be made good.
            self.doom(failure);
        }
        sent
    }

    /// Make all of it last, or nothing. Afterwards the transaction is over, whatever comes back.
    pub(super) async fn commit(
        &self,
        forgetting: &Arc<Forgetting>,
        idempotency: Idempotency,
        deadline: &Deadline,
    ) -> Result<Committed, Failure> {
        let (catalog, parts) = {
            let mut state = self.state.lock();
            (state.catalog.clone(), std::mem::take(&mut state.parts))
        };
        let wrote: Vec<ShardId> = parts.iter().filter(|(_, touch)| touch.wrote).map(|(shard, _)| *shard).collect();
        match (wrote.as_slice(), parts.len()) {
            ([], _) => {
                let read = match self.mode.read_only {
                    true => Ok(()),
                    false => self.validate(&parts, deadline).await,
                };
                self.state.lock().parts = parts;
                self.roll_back().await;
                read.map(|()| Committed::at(BTreeMap::new()))
            }
            ([shard], 1) => self.commit_on(*shard, parts, idempotency, deadline).await,
            _ => {
                let planned = catalog.map_or_else(Planned::default, |catalog| catalog.planned());
                let parts = parts.into_iter().map(|(shard, touch)| {
                    let part = Arc::into_inner(touch.part).map(AsyncMutex::into_inner);
                    part.map(|part| (shard, Part::Open(part)))
                });
                let parts: Option<_> = parts.collect();
                let parts =
                    parts.ok_or_else(|| Failure::internal("a statement of the transaction is still running"))?;
                let transaction = TwoPhase {
                    backend: self.backend.clone(),
                    forgetting: forgetting.clone(),
                    txn: self.handle.id,
                    planned,
                    parts,
                    idempotency: Some(idempotency),
                    in_order: false,
                    deadline: *deadline,
                };
                committed(transaction.run().await, &wrote)
            }
        }
    }

    async fn commit_on(
        &self,
        shard: ShardId,
        mut parts: BTreeMap<ShardId, Touch>,
        idempotency: Idempotency,
        deadline: &Deadline,
    ) -> Result<Committed, Failure> {
        let Some(touch) = parts.remove(&shard) else { return Err(Failure::internal("a part is missing")) };
        let mut part = touch.part.lock().await;
        let step = TxnStep::Commit { idempotency: Some(idempotency) };
        let reply = self.backend.txn_step(&mut part, step, deadline.left()).await;
        let written = match reply {
            Ok(TxnReply::Decided(written)) => written,
            Ok(_) => return Err(Failure::internal("a commit was answered as another step")),
            Err(error) => return Err(Failure { retryable: false, ..error.into() }),
        };
        match written {
            Written { outcome: Outcome::Done { .. }, index, .. } => Ok(Committed::at([(shard, index)].into())),
            Written { outcome: Outcome::Replayed { .. }, index, .. } => {
                Ok(Committed { indexes: [(shard, index)].into(), before: true })
            }
            Written { uncertain: true, .. } => {
                let why = "an attempt to commit was lost, and the next one was refused".to_owned();
                Err(HostError::OutcomeUnknown(why).into())
            }
            Written { outcome: Outcome::Refused(refusal), .. } => Err(conflict(&refusal)),
            Written { outcome: Outcome::Failed(failure), .. } => Err(failure.into()),
            _ => Err(Failure::internal("a commit was answered with another action's outcome")),
        }
    }

    /// Whether there was one moment at which all that was read was the present.
    async fn validate(&self, parts: &BTreeMap<ShardId, Touch>, deadline: &Deadline) -> Result<(), Failure> {
        let seen: BTreeMap<ShardId, TxnsSeen> =
            parts.iter().filter_map(|(shard, touch)| Some((*shard, touch.seen.clone()?))).collect();
        if seen.len() <= 1 {
            return Ok(());
        }
        let asking = seen.keys().map(|shard| async {
            let request = ReadRequest {
                queries: vec![Query::new("SELECT 1")],
                check: OwnershipCheck::None,
                layout: None,
                now_ms: self.handle.began,
                seed: 0,
                limits: ReadLimits { time: deadline.left(), ..ReadLimits::default() },
                names_txns: true,
            };
            let answer = self.backend.read(*shard, request, Freshness::Strong, deadline.left()).await?;
            Ok::<_, HostError>((*shard, answer.txns.unwrap_or_default()))
        });
        let now: BTreeMap<ShardId, TxnsSeen> = try_join_all(asking).await?.into_iter().collect();
        let unchanged = seen.iter().all(|(shard, seen)| now.get(shard).is_some_and(|now| now.version == seen.version));
        let seen: Vec<_> = seen.iter().map(|(shard, seen)| (*shard, seen)).collect();
        match unchanged && whole::behind(&seen).is_empty() {
            true => Ok(()),
            false => Err(Failure::new(
                "40001",
                "what the transaction has read on several shards was never all there at one moment",
                "what it read must not be relied on: begin it again",
            )),
        }
    }
}

fn committed(ended: Ended, wrote: &[ShardId]) -> Result<Committed, Failure> {
    match ended {
        Ended::Committed(done) => {
            let indexes = done.into_iter().map(|(shard, (_, index))| (shard, index));
            Ok(Committed::at(indexes.filter(|(shard, _)| wrote.contains(shard)).collect()))
        }
        Ended::Before(_) => Ok(Committed { indexes: BTreeMap::new(), before: true }),
        Ended::Refused(refusal) => Err(conflict(&refusal)),
        Ended::Failed(_, failure) => Err(failure.into()),
        Ended::Trouble(error) => Err(Failure { retryable: false, ..error.into() }),
        Ended::Unfinished => Err(HostError::Spreading(
            "the transaction is committed, but did not reach every shard within the time".into(),
        )
        .into()),
        Ended::Unknown(why) => Err(HostError::OutcomeUnknown(why).into()),
    }
}

/// The transaction lost against another write, or against a move.
pub(super) fn conflict(refusal: &Refusal) -> Failure {
    Failure::new(
        "40001",
        format!("the transaction could not be serialized: {refusal}"),
        "nothing of it was done: begin it again",
    )
}

fn wrong_reply() -> Setback {
    Setback::Failed(Failure::internal("a step of a transaction was answered as another one"))
}
