//! Two-phase commit: one transaction on several shards, on all of them or on none.
//!
//! # States
//!
//! ```text
//! voting ──all prepared──► ledger: commit ──► telling every shard ──► done; the ledger may forget
//!    │                        │
//!    └─ any other vote        └─ decided otherwise (somebody gave us up)
//!          ▼                        ▼
//!       telling those that prepared: abort ──► nothing was done
//! ```
//!
//! Each shard is asked to *prepare* its part: it runs the statements, rolls them back, keeps them, and lets nothing else
//! change its content until it is told what became of them. When all have, the transaction is committed by one record
//! in the *ledger* of the control group, and by nothing else. Then every shard is told, and runs what it kept.
//!
//! # Invariants
//!
//! 1. Only the coordinator says "commit" to the ledger, once, and only after every participant has prepared.
//! 2. No shard is told "commit" before the ledger has said so.
//! 3. A shard is told "abort" without asking the ledger only by a coordinator that never asked it to commit. From
//!    the moment it asked, the ledger's answer is the only truth; when no answer comes, nobody is told anything.
//! 4. Each attempt is a transaction of its own, with an id that was never used. So a message of an earlier attempt that
//!    arrives late can do no more than block its shard until it is recovered.
//!
//! # What if a process dies …
//!
//! | where | and then |
//! | --- | --- |
//! | the coordinator, before it asked the ledger | the shards' leaders find a transaction that waits, tell the ledger "abort", and abort |
//! | the coordinator, after | the same leaders are told "commit" by the ledger, and commit |
//! | a participant's leader, before it answered its prepare | the vote is lost: the coordinator aborts, there too, and begins anew |
//! | a participant's leader, after | its successor has the prepared part in its log, and is told like any other |
//! | the ledger's leader, before it answered | the host asks its successor; the first word counts, so asking twice is harmless. Without an answer in time the outcome is unknown, and the client is told so |
//!
//! A client that hangs up does not stop its coordinator: it runs in a task of its own, as a write that was sent to one
//! shard is not called back either.
//!
//! # Waiting for each other
//!
//! Parts are prepared side by side. A shard on which another transaction is prepared refuses; then everything is
//! aborted, and the next attempt prepares in the order of the shards, one after the other, and waits on each a little for
//! the other's decision. Of those that go in order the first to prepare on a shard is ahead on all later ones too, so
//! they can't wait for each other in a circle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{CommitNumber, LedgerCommand, LedgerReply, Millis, PartitionId, Planned, ShardId, TxnId};
use pleat_engine::{Action, EngineError, Idempotency, Outcome, Refusal, SqlFailure, Statement, StatementResult};
use pleat_host::failpoint::reach;
use pleat_host::{HostError, TxnPart, TxnReply, TxnStep, Written};
use uuid::Uuid;

use super::deadline::Deadline;
use crate::backend::Backend;

/// How long it may take to end what every shard has prepared, although the request's own time is over.
const ENDING_TIME_MIN: Duration = Duration::from_secs(2);
/// How long shards are waited for that are told to abort. They find out by themselves too.
const ABORT_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a transaction that prepares in order waits for another's decision on one shard, while others wait for it.
/// Less than what makes recovery give it up.
const IN_ORDER_WAIT_MAX: Duration = Duration::from_secs(1);
/// The pause between two looks, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// For how long ended transactions are gathered before the ledger is told that it may forget them.
const FORGET_AFTER: Duration = Duration::from_millis(500);
/// Ended transactions that wait to be forgotten. What is beyond the ledger finds by itself.
const FORGET_MAX: usize = 10_000;

/// One shard's part of a transaction.
pub(super) enum Part {
    /// Statements that were not run yet; or none, to make sure that the shard is still at `base`.
    New { units: Vec<PartitionId>, statements: Vec<Statement>, base: Option<u64> },
    /// What an interactive transaction has read and written there.
    Open(TxnPart),
}

/// A transaction that is to be carried out. Consumed by that: another attempt is another transaction.
pub(super) struct TwoPhase {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) forgetting: Arc<Forgetting>,
    pub(super) txn: TxnId,
    pub(super) planned: Planned,
    pub(super) parts: BTreeMap<ShardId, Part>,
    pub(super) idempotency: Option<Idempotency>,
    /// One shard after the other, in their order: after an attempt that met another transaction.
    pub(super) in_order: bool,
    pub(super) deadline: Deadline,
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Ended {
    /// On every shard: what its statements gave, and the index of its log at which it shows.
    Committed(BTreeMap<ShardId, (Vec<StatementResult>, u64)>),
    /// A transaction with this idempotency key was committed before. What these shards gave then.
    Before(BTreeMap<ShardId, Vec<StatementResult>>),
    /// Nothing was done: a shard refused its part, or the transaction was given up by somebody else.
    Refused(Refusal),
    /// Nothing was done: a statement failed.
    Failed(ShardId, SqlFailure),
    /// Nothing was done: a shard or the ledger could not be asked.
    Trouble(HostError),
    /// Committed for good, but not every shard shows it yet.
    Unfinished,
    /// Nobody answered what was decided.
    Unknown(String),
}

/// A shard's answer to its part.
enum Vote {
    Yes(Vec<StatementResult>),
    Before(Vec<StatementResult>),
    Refused(Refusal),
    No(SqlFailure),
    Trouble(HostError),
}

impl Vote {
    fn of(answer: Result<Written, HostError>) -> Self {
        let outcome = match answer {
            Ok(written) => written.outcome,
            Err(HostError::Refused(refusal) | HostError::Engine(EngineError::Refused(refusal))) => {
                return Vote::Refused(refusal);
            }
            // It may be prepared, but it will never be committed.
            Err(HostError::OutcomeUnknown(why)) => return Vote::Trouble(HostError::Unavailable(why)),
            Err(error) => return Vote::Trouble(error),
        };
        match outcome {
            Outcome::Prepared { results } => Vote::Yes(results),
            Outcome::Replayed { results, .. } => Vote::Before(results),
            Outcome::Refused(refusal) => Vote::Refused(refusal),
            Outcome::Failed(failure) => Vote::No(failure),
            _ => {
                Vote::Trouble(HostError::Internal("the shard answered a prepare with another action's outcome".into()))
            }
        }
    }
}

/// A new transaction's id.
pub(super) fn new_txn() -> TxnId {
    TxnId(Uuid::new_v4().as_u128())
}

impl TwoPhase {
    /// Carry it out, in a task of its own: the caller may go away.
    pub(super) async fn run(self) -> Ended {
        match pleat_consensus::spawn(self.carry_out()).await {
            Ok(ended) => ended,
            Err(error) => Ended::Unknown(format!("the coordinator ended early: {error}")),
        }
    }

    async fn carry_out(mut self) -> Ended {
        let began = self.backend.txn_clock();
        let votes = self.vote(began).await;
        let of = |is: fn(&Vote) -> bool| -> Vec<ShardId> {
            votes.iter().filter(|(_, vote)| is(vote)).map(|(shard, _)| *shard).collect()
        };
        let prepared = of(|vote| matches!(vote, Vote::Yes(_)));
        if prepared.len() < self.parts.len() && !planted::is(Bug::CommitUnprepared) {
            reach("coordinator.before-abort", None);
            let perhaps = of(|vote| matches!(vote, Vote::Trouble(_)));
            self.tell(&prepared, None, ABORT_TIME_MAX).await;
            reach("coordinator.aborted", None);
            if !perhaps.is_empty() {
                // Nobody waits for a shard that did not answer.
                pleat_consensus::spawn(async move { self.tell(&perhaps, None, ABORT_TIME_MAX).await });
            }
            return verdict(votes);
        }
        reach("coordinator.prepared", None);
        let decided = self.ask_ledger(true, began).await;
        reach("coordinator.decided", None);
        match decided {
            Ok(Some(number)) => {
                if planted::is(Bug::ForgottenEarly) {
                    let _ =
                        self.backend.ledger_command(LedgerCommand::Forget { txns: vec![self.txn] }, PAUSE_MAX).await;
                }
                self.commit(votes, number).await
            }
            // Recovery was faster, or this took too long.
            Ok(None) => {
                self.tell(&prepared, None, ABORT_TIME_MAX).await;
                Ended::Refused(Refusal::Prepared { txn: self.txn })
            }
            Err(error) => self.doubt(votes, began, &prepared, error).await,
        }
    }

    fn participants(&self) -> Vec<ShardId> {
        self.parts.keys().copied().collect()
    }

    /// Every shard's vote; in order, up to the first that is no yes.
    async fn vote(&mut self, began: Millis) -> BTreeMap<ShardId, Vote> {
        let participants = self.participants();
        let (txn, in_order) = (self.txn, self.in_order);
        let ballot = Ballot {
            backend: self.backend.clone(),
            planned: self.planned,
            idempotency: self.idempotency.clone(),
            deadline: self.deadline,
            participants,
            txn,
            began,
        };
        let ballot = &ballot;
        if !in_order {
            let asking =
                self.parts.iter_mut().map(|(shard, part)| async move { (*shard, ballot.ask(*shard, part).await) });
            return join_all(asking).await.into_iter().collect();
        }
        let mut votes = BTreeMap::new();
        for (shard, part) in &mut self.parts {
            let (shard, vote) = (*shard, ballot.ask_in_order(*shard, part).await);
            let go_on = matches!(vote, Vote::Yes(_));
            votes.insert(shard, vote);
            if !go_on {
                break;
            }
        }
        votes
    }

    /// What the ledger decides when it is told this: the number of the commit, if it is one.
    async fn ask_ledger(&self, commit: bool, began: Millis) -> Result<Option<CommitNumber>, HostError> {
        let (txn, participants, at) = (self.txn, self.participants(), self.backend.txn_clock());
        let command = LedgerCommand::Decide { txn, commit, participants, began, at };
        let within = self.deadline.left().max(ENDING_TIME_MIN);
        match self.backend.ledger_command(command, within).await? {
            LedgerReply::Decided { commit } => Ok(commit),
            other => Err(HostError::OutcomeUnknown(format!("the ledger answered {other:?}"))),
        }
    }

    /// The ledger did not say whether the commit was taken. An abort that it takes proves that it was not.
    async fn doubt(
        self,
        votes: BTreeMap<ShardId, Vote>,
        began: Millis,
        prepared: &[ShardId],
        error: HostError,
    ) -> Ended {
        match self.ask_ledger(false, began).await {
            Ok(None) => {
                self.tell(prepared, None, ABORT_TIME_MAX).await;
                Ended::Trouble(error)
            }
            Ok(Some(number)) => self.commit(votes, number).await,
            Err(again) => Ended::Unknown(format!("{error}; {again}")),
        }
    }

    async fn commit(self, votes: BTreeMap<ShardId, Vote>, number: CommitNumber) -> Ended {
        let participants = self.participants();
        let told = self.tell(&participants, Some(number), self.deadline.left().max(ENDING_TIME_MIN)).await;
        if told.len() < participants.len() {
            tracing::warn!(txn = %self.txn, "committed, but not every shard could be told in time; they find out themselves");
            return Ended::Unfinished;
        }
        reach("coordinator.before-answer", None);
        self.forgetting.push(&self.backend, self.txn);
        let results = votes.into_iter().filter_map(|(shard, vote)| match vote {
            Vote::Yes(results) => Some((shard, (results, told.get(&shard).copied().unwrap_or(0)))),
            _ => None,
        });
        Ended::Committed(results.collect())
    }

    /// Tell shards what was decided. Gives the position in the log of those that have carried it out.
    async fn tell(&self, shards: &[ShardId], commit: Option<CommitNumber>, within: Duration) -> BTreeMap<ShardId, u64> {
        let txn = self.txn;
        let telling = shards.iter().map(|shard| async move {
            reach("coordinator.before-decide", Some(*shard));
            let told = self.backend.write(*shard, self.planned, Action::Decide { txn, commit }, within).await;
            reach("coordinator.after-decide", Some(*shard));
            match told {
                Ok(Written { outcome: Outcome::Refused(refusal), .. }) => {
                    tracing::warn!(%txn, %shard, ?commit, %refusal, "a decision was refused; recovery goes on with it");
                    None
                }
                Ok(Written { outcome: Outcome::Done { .. }, index, .. }) => Some((*shard, index)),
                Ok(Written { outcome, .. }) => {
                    tracing::error!(%txn, %shard, ?commit, ?outcome, "a decision was not carried out; recovery goes on with it");
                    None
                }
                Err(error) => {
                    tracing::debug!(%txn, %shard, ?commit, %error, "a decision could not be told; recovery goes on with it");
                    None
                }
            }
        });
        join_all(telling).await.into_iter().flatten().collect()
    }
}

/// What is the same for all votes.
struct Ballot {
    backend: Arc<dyn Backend>,
    planned: Planned,
    idempotency: Option<Idempotency>,
    deadline: Deadline,
    participants: Vec<ShardId>,
    txn: TxnId,
    began: Millis,
}

impl Ballot {
    /// A shard's vote, after another transaction is decided there.
    async fn ask_in_order(&self, shard: ShardId, part: &mut Part) -> Vote {
        let waits = Deadline::after(self.deadline.left().min(IN_ORDER_WAIT_MAX));
        let mut pause = PAUSE_MIN;
        loop {
            let vote = self.ask(shard, part).await;
            if !matches!(vote, Vote::Refused(Refusal::Prepared { .. })) || waits.is_over() {
                return vote;
            }
            tokio::time::sleep(pause.min(waits.left())).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn ask(&self, shard: ShardId, part: &mut Part) -> Vote {
        reach("coordinator.before-prepare", Some(shard));
        let vote = self.send(shard, part).await;
        reach("coordinator.after-prepare", Some(shard));
        vote
    }

    async fn send(&self, shard: ShardId, part: &mut Part) -> Vote {
        let within = self.deadline.left();
        let (participants, idempotency) = (self.participants.clone(), self.idempotency.clone());
        let (units, statements, base) = match part {
            Part::New { units, statements, base } => (units.clone(), statements.clone(), *base),
            Part::Open(part) => {
                let step = TxnStep::Prepare { participants, idempotency };
                return match self.backend.txn_step(part, step, within).await {
                    Ok(TxnReply::Decided(written)) => Vote::of(Ok(written)),
                    Ok(_) => Vote::Trouble(HostError::Internal("a prepare was answered as another step".into())),
                    Err(error) => Vote::of(Err(error)),
                };
            }
        };
        let (txn, began) = (self.txn, self.began);
        let action = Action::Prepare { txn, began, participants, idempotency, units, statements, base };
        Vote::of(self.backend.write(shard, self.planned, action, within).await)
    }
}

/// How votes that are not all yes end the transaction.
///
/// Another transaction in the way comes first: it may be an earlier attempt of the same request, which is just being
/// decided. Then a repetition; then what may pass; then what is wrong.
fn verdict(votes: BTreeMap<ShardId, Vote>) -> Ended {
    let (mut before, mut waits, mut refused, mut failed, mut trouble) = (BTreeMap::new(), None, None, None, None);
    for (shard, vote) in votes {
        match vote {
            Vote::Yes(_) => {}
            Vote::Before(results) => {
                before.insert(shard, results);
            }
            Vote::Refused(refusal @ Refusal::Prepared { .. }) => waits = waits.or(Some(refusal)),
            Vote::Refused(refusal) => refused = refused.or(Some(refusal)),
            Vote::No(failure) => failed = failed.or(Some((shard, failure))),
            Vote::Trouble(error) => trouble = trouble.or(Some(error)),
        }
    }
    match (waits, refused, trouble, failed) {
        (Some(refusal), ..) => Ended::Refused(refusal),
        _ if !before.is_empty() => Ended::Before(before),
        (_, Some(refusal), ..) => Ended::Refused(refusal),
        (_, _, Some(error), _) => Ended::Trouble(error),
        (_, _, _, Some((shard, failure))) => Ended::Failed(shard, failure),
        (None, None, None, None) => Ended::Trouble(HostError::Internal("a shard gave no vote".into())),
    }
}

/// Transactions that every shard has carried out, on their way to being forgotten by the ledger: in batches, because
/// each message is an entry of the control group's log. What gets lost here the control leader finds.
#[derive(Default)]
pub(super) struct Forgetting(Mutex<Vec<TxnId>>);

impl Forgetting {
    fn push(self: &Arc<Self>, backend: &Arc<dyn Backend>, txn: TxnId) {
        let first = {
            let mut waiting = self.0.lock();
            if waiting.len() < FORGET_MAX {
                waiting.push(txn);
            }
            waiting.len() == 1
        };
        if first {
            let (this, backend) = (self.clone(), backend.clone());
            pleat_consensus::spawn(async move {
                tokio::time::sleep(FORGET_AFTER).await;
                let txns = std::mem::take(&mut *this.0.lock());
                reach("coordinator.before-forget", None);
                if let Err(error) = backend.ledger_command(LedgerCommand::Forget { txns }, ENDING_TIME_MIN).await {
                    tracing::debug!(%error, "the ledger was not told what it may forget; it finds out itself");
                }
            });
        }
    }
}
