//! Interactive transactions on the test cluster's shards: real ones of the engine, with a lane as simple as can be.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use pleat_cluster::{Millis, ShardId, TxnId};
use pleat_engine::{Action, EngineError, LocalTxn, Outcome, ReadRequest};
use pleat_host::{HostError, Piece, RowStream, TxnEnd, TxnHandle, TxnPart, TxnReply, TxnStep, Written};

use super::{Cluster, Fault, Step};

/// A transaction's part on a shard.
#[derive(Clone, Default)]
pub(super) struct Local {
    txn: Option<LocalTxn>,
    end: Option<TxnEnd>,
}

/// Who has a shard's lane.
pub(super) type Lane = Option<(Millis, TxnId)>;

fn engine_error(error: EngineError) -> HostError {
    match error {
        EngineError::Refused(refusal) => HostError::Refused(refusal),
        EngineError::TxnConflict => HostError::TxnEnded(TxnEnd::Conflict),
        error => HostError::Engine(error),
    }
}

/// The pieces of an answer, and what its snapshot says.
pub(super) fn rows(
    read: impl FnOnce(&mut dyn FnMut(pleat_engine::Chunk) -> ControlFlow<()>) -> Result<(), EngineError>,
) -> Result<RowStream, EngineError> {
    let (mut txns, mut pieces) = (None, Vec::new());
    read(&mut |chunk| {
        let named = chunk.columns.map(|columns| columns.into_iter().map(|column| column.name).collect());
        txns = txns.take().or(chunk.txns);
        pieces.extend(named.map(Piece::Columns).into_iter().chain([Piece::Rows(chunk.rows)]));
        ControlFlow::Continue(())
    })?;
    let Piece::Columns(columns) = pieces.remove(0) else { panic!("columns come first") };
    Ok(RowStream { txns, columns, pieces: stream::iter(pieces.into_iter().map(Ok)).boxed() })
}

impl Cluster {
    /// Lose all parts of transactions on a shard, as a change of its leader does.
    pub fn lose_parts(&self, shard: ShardId) {
        self.lanes.lock().remove(&shard);
        for ((at, _), local) in self.locals.lock().iter_mut() {
            if *at == shard {
                local.txn.take().inspect(LocalTxn::evict);
                local.end = Some(TxnEnd::Lost);
            }
        }
    }

    /// Whether parts of transactions are open anywhere.
    pub fn open_parts(&self) -> usize {
        self.locals.lock().values().filter(|local| local.txn.is_some()).count()
    }

    /// Wait until nobody else has the shard's lane.
    pub(super) async fn lane_free(&self, shard: ShardId, within: Duration) {
        let deadline = Instant::now() + within;
        while self.lanes.lock().get(&shard).is_some_and(Option::is_some) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn hold(&self, shard: ShardId, txn: TxnHandle, within: Duration) -> Result<(), HostError> {
        let deadline = Instant::now() + within;
        while !self.try_hold(shard, txn) {
            if Instant::now() >= deadline {
                return Err(HostError::Timeout("another transaction has the shard".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Take the lane if it is free, or a younger transaction's.
    fn try_hold(&self, shard: ShardId, txn: TxnHandle) -> bool {
        let mut lanes = self.lanes.lock();
        let lane = lanes.entry(shard).or_default();
        match *lane {
            Some((_, holder)) if holder == txn.id => return true,
            Some((began, _)) if began < txn.began => return false,
            Some((_, holder)) => {
                let mut locals = self.locals.lock();
                let local = locals.entry((shard, holder)).or_default();
                local.txn.take().inspect(LocalTxn::evict);
                local.end = Some(TxnEnd::Wounded);
            }
            None => {}
        }
        *lane = Some((txn.began, txn.id));
        true
    }

    fn give_back(&self, shard: ShardId, txn: TxnId) {
        if let Some(lane) = self.lanes.lock().get_mut(&shard) {
            lane.take_if(|(_, holder)| *holder == txn);
        }
    }

    fn local(&self, shard: ShardId, txn: TxnHandle) -> Result<LocalTxn, HostError> {
        let mut locals = self.locals.lock();
        let local = locals.entry((shard, txn.id)).or_default();
        if let Some(end) = local.end {
            return Err(HostError::TxnEnded(end));
        }
        if local.txn.is_none() {
            let seed = self.clock.fetch_add(1, Ordering::Relaxed);
            local.txn = Some(self.replica(shard).readers.begin_txn(seed, || {}).map_err(engine_error)?);
        }
        Ok(local.txn.clone().unwrap())
    }

    pub(super) async fn take_step(
        self: &Cluster,
        part: &mut TxnPart,
        step: TxnStep,
        within: Duration,
    ) -> Result<TxnReply, HostError> {
        let (shard, txn) = (part.shard(), part.txn());
        let number = part.next_step();
        if number > 0 && !self.locals.lock().contains_key(&(shard, txn.id)) && step != TxnStep::Rollback {
            return Err(HostError::TxnEnded(TxnEnd::Lost));
        }
        if matches!(step, TxnStep::Write { .. }) || (txn.immediate && number == 0) {
            self.hold(shard, txn, within).await?;
        }
        if step == TxnStep::Rollback {
            let local = self.locals.lock().remove(&(shard, txn.id));
            local.and_then(|local| local.txn).inspect(LocalTxn::roll_back);
            self.give_back(shard, txn.id);
            return Ok(TxnReply::Done);
        }
        let local = self.local(shard, txn)?;
        let done = self.step_on(shard, txn, &local, step).await;
        if local.is_over() && self.locals.lock().contains_key(&(shard, txn.id)) {
            let mut locals = self.locals.lock();
            let local = locals.entry((shard, txn.id)).or_default();
            (local.txn, local.end) = (None, local.end.or(Some(TxnEnd::Conflict)));
            self.give_back(shard, txn.id);
        }
        done
    }

    async fn step_on(
        &self,
        shard: ShardId,
        txn: TxnHandle,
        local: &LocalTxn,
        step: TxnStep,
    ) -> Result<TxnReply, HostError> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        match step {
            TxnStep::Read(request) => {
                let request: ReadRequest = request;
                rows(|sink| local.read(&request, sink)).map(TxnReply::Rows).map_err(engine_error)
            }
            TxnStep::Write { units, statements, planned } => {
                let results = local.write(&units, &statements, planned, now).map_err(engine_error)?;
                Ok(TxnReply::Written { results, reference: local.reference() })
            }
            TxnStep::Savepoint(name) => local.savepoint(&name).map(|()| TxnReply::Done).map_err(engine_error),
            TxnStep::RollbackTo(name) => local.rollback_to(&name).map(|()| TxnReply::Done).map_err(engine_error),
            TxnStep::Release(name) => local.release(&name).map(|()| TxnReply::Done).map_err(engine_error),
            TxnStep::Commit { idempotency } => {
                let script = local.finish().map_err(engine_error)?;
                self.locals.lock().remove(&(shard, txn.id));
                let (units, statements, base) = (script.units, script.statements, Some(script.base));
                let written = self.propose(shard, Action::Write { idempotency, units, statements, base });
                self.give_back(shard, txn.id);
                Ok(TxnReply::Decided(written))
            }
            TxnStep::Prepare { participants, idempotency } => {
                let script = local.finish().map_err(engine_error)?;
                self.locals.lock().remove(&(shard, txn.id));
                let (units, statements, base) = (script.units, script.statements, Some(script.base));
                let (txn, began) = (txn.id, txn.began);
                let prepare = Action::Prepare { txn, began, participants, idempotency, units, statements, base };
                let fault = self.trapped(Some(Step::Prepare(shard)));
                if matches!(fault, Some(Fault::Never)) {
                    // What its coordinator left ends by the shard's limits.
                    self.give_back(shard, txn);
                }
                let written = match fault {
                    Some(Fault::NoLeader | Fault::Broken) => Err(HostError::Unavailable("no leader".to_owned())),
                    Some(Fault::Never) => std::future::pending().await,
                    fault => {
                        let written = self.propose(shard, prepare);
                        match fault {
                            Some(Fault::AnswerLost) => Err(HostError::OutcomeUnknown("lost".to_owned())),
                            Some(_) => {
                                self.give_back(shard, txn);
                                std::future::pending().await
                            }
                            None => Ok(written),
                        }
                    }
                };
                self.give_back(shard, txn);
                let written: Written = written?;
                debug_assert!(!matches!(written.outcome, Outcome::Done { .. }));
                Ok(TxnReply::Decided(written))
            }
            TxnStep::Rollback => unreachable!("taken before"),
        }
    }
}
