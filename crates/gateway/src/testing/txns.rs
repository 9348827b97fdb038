//! Interactive transactions, and what is prepared.

use std::ops::ControlFlow;

use futures::stream::{self, StreamExt};
use pleat_engine::{Action, Chunk, EngineError, Outcome, Script};
use pleat_host::{HostError, InDoubt, Piece, RowStream, TxnEnd, TxnPart, TxnReply, TxnStep, Written};

use super::Cluster;

impl Cluster {
    /// Take a step of an interactive transaction.
    pub(super) fn take_step(&self, part: &mut TxnPart, step: TxnStep) -> Result<TxnReply, HostError> {
        let key = (part.shard(), part.txn().id);
        if part.next_step() == 0 {
            let begun = self.replica(part.shard()).readers.begin_txn(7, || {}).map_err(failed)?;
            self.locals.lock().insert(key, begun);
        }
        let Some(local) = self.locals.lock().get(&key).cloned() else {
            return match step {
                TxnStep::Rollback => Ok(TxnReply::Done),
                _ => Err(HostError::TxnEnded(TxnEnd::Lost)),
            };
        };
        let now = self.clock.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let reply = match step {
            TxnStep::Read(request) => collect(|sink| local.read(&request, sink)).map(TxnReply::Rows),
            TxnStep::Write { units, statements } => {
                local.write(&units, &statements, now).map(|results| TxnReply::Written { results }).map_err(failed)
            }
            TxnStep::Savepoint(name) => local.savepoint(&name).map(|()| TxnReply::Done).map_err(failed),
            TxnStep::RollbackTo(name) => local.rollback_to(&name).map(|()| TxnReply::Done).map_err(failed),
            TxnStep::Release(name) => local.release(&name).map(|()| TxnReply::Done).map_err(failed),
            TxnStep::Rollback => {
                local.roll_back();
                Ok(TxnReply::Done)
            }
            TxnStep::Commit { .. } | TxnStep::Prepare { .. } => {
                let script = local.finish().map_err(failed);
                script.map(|script| TxnReply::Decided(self.decide(part, step, script)))
            }
        };
        if local.is_over() {
            self.locals.lock().remove(&key);
        }
        reply
    }

    fn decide(&self, part: &TxnPart, step: TxnStep, script: Script) -> Written {
        let Script { base, units, statements } = script;
        let (base, txn) = (Some(base), part.txn());
        let action = match step {
            TxnStep::Prepare { participants, idempotency } => {
                Action::Prepare { txn: txn.id, began: txn.began, participants, idempotency, units, statements, base }
            }
            _ if statements.is_empty() => {
                return Written { outcome: Outcome::Done { results: Vec::new() }, index: 0, uncertain: false };
            }
            TxnStep::Commit { idempotency } => Action::Write { idempotency, units, statements, base },
            other => panic!("{other:?}"),
        };
        self.propose(part.shard(), action)
    }

    /// What is prepared on the shards.
    pub(super) fn undecided(&self) -> Vec<InDoubt> {
        let shards = self.shards.lock().clone();
        let doubts = shards.into_iter().flat_map(|(shard, replica)| {
            let prepared = replica.readers.in_doubt().unwrap();
            prepared.into_iter().map(move |one| InDoubt {
                txn: one.txn,
                shard,
                participants: one.participants,
                began: one.began,
                prepared_ms: one.prepared_ms,
                decided: None,
            })
        });
        doubts.collect()
    }
}

/// The rows of a read, all at once.
pub(super) fn collect(
    read: impl FnOnce(&mut dyn FnMut(Chunk) -> ControlFlow<()>) -> Result<(), EngineError>,
) -> Result<RowStream, HostError> {
    let (mut txns, mut pieces) = (None, Vec::new());
    let outcome = read(&mut |chunk| {
        txns = txns.take().or(chunk.txns);
        let named = chunk.columns.map(|columns| columns.into_iter().map(|column| column.name).collect());
        pieces.extend(named.map(Piece::Columns).into_iter().chain([Piece::Rows(chunk.rows)]));
        ControlFlow::Continue(())
    });
    outcome.map_err(failed)?;
    let Piece::Columns(columns) = pieces.remove(0) else { panic!("columns come first") };
    Ok(RowStream { txns, columns, pieces: stream::iter(pieces.into_iter().map(Ok)).boxed() })
}

fn failed(error: EngineError) -> HostError {
    match error {
        EngineError::Refused(refusal) => HostError::Refused(refusal),
        EngineError::TxnConflict => HostError::TxnEnded(TxnEnd::Conflict),
        error => HostError::Engine(error),
    }
}
