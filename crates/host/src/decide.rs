//! Finding out about the decision of transactions over several shards whose coordinator is gone.
//!
//! A transaction is committed when the ledger says so (see `pleat_cluster`'s `ledger`). Usually its coordinator writes
//! the decision to the ledger, then to the participants, and then has the ledger forget it.
//!
//! | the coordinator dies … | and then |
//! | --- | --- |
//! | before the ledger has a decision | each participant's leader sees a transaction that waits for longer than [`PATIENCE`], says "abort" to the ledger, and proposes what the ledger answers |
//! | after that, before a participant has it | the same: the ledger answers with the commit |
//! | before the ledger was told to forget it | the control leader proposes the decision to all participants once more, and forgets it when they all have it |
//!
//! A participant's leader that dies is replaced by one that does the same. Whoever asks, and however often, the answer
//! is one and the same, and a decision that is proposed again does nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{CommitNumber, Decided, Engine, LedgerCommand, LedgerReply, Millis, ShardId, ShardState, TxnId};
use pleat_engine::{Action, Outcome, PreparedTxn};

use crate::calls::{group_of, mismatch};
use crate::failpoint::reach;
use crate::replica::{Replica, engine_error};
use crate::route::Effect;
use crate::rpc::{Request, Response};
use crate::{Host, HostError, InDoubt};

/// How often a leader looks for prepared transactions.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a prepared transaction is left to its coordinator.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long finding out about one may take.
pub(crate) const DECIDE_LIMIT: Duration = Duration::from_secs(5);
/// How often the control leader looks for commits that nobody had forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(5);
/// How long a commit is left to its coordinator, in milliseconds of the ledger's time.
const FORGET_AFTER_MS: Millis = 10_000;
/// Commits that are settled in one such look.
const FORGET_AT_ONCE_MAX: usize = 64;

impl Host {
    /// The transactions that are prepared somewhere and not decided there, by shard.
    pub async fn in_doubt(&self, within: Duration) -> Result<Vec<InDoubt>, HostError> {
        let catalog = self.catalog();
        let shards = catalog.shards.values().filter(|shard| shard.state == ShardState::Active);
        let asked = join_all(shards.map(|shard| self.in_doubt_on(shard.id, within))).await;
        let mut all = Vec::new();
        for of_shard in asked {
            all.extend(of_shard?);
        }
        Ok(all)
    }

    async fn in_doubt_on(&self, shard: ShardId, within: Duration) -> Result<Vec<InDoubt>, HostError> {
        if self.catalog().engine == Engine::Postgres {
            return self.in_doubt_on_server(shard, within).await;
        }
        let ask = || Request::InDoubt(shard);
        let (Response::InDoubt(prepared), _) = self.ask_leader(group_of(shard), Effect::None, within, ask).await?
        else {
            return Err(mismatch());
        };
        let ledger = self.ledger().read();
        let doubt = |PreparedTxn { txn, began, participants, prepared_ms }| {
            let decided = ledger.decided(txn).map(|decided| decided.commit.is_some());
            InDoubt { txn, shard, participants, began, prepared_ms, decided }
        };
        Ok(prepared.into_iter().map(doubt).collect())
    }

    /// On each shard's leader: decide what waits for too long.
    pub(crate) async fn keep_deciding(self: Arc<Self>) {
        let mut stop = self.stopping();
        let mut seen: BTreeMap<ShardId, (TxnId, Instant)> = BTreeMap::new();
        while !*stop.borrow() {
            let waiting = self.waiting_too_long(&mut seen);
            join_all(waiting.iter().map(|replica| self.decide_on(replica))).await;
            let _ = tokio::time::timeout(LOOK_EVERY, stop.changed()).await;
        }
    }

    /// The shards led here on which one and the same transaction has been prepared for long.
    fn waiting_too_long(&self, seen: &mut BTreeMap<ShardId, (TxnId, Instant)>) -> Vec<Arc<Replica>> {
        let now = Instant::now();
        let mut present = BTreeMap::new();
        let mut waiting = Vec::new();
        for replica in self.replicas() {
            let Some(txn) = replica.readers.deciding() else { continue };
            if !replica.group.leads() {
                continue;
            }
            let since = seen.get(&replica.shard).filter(|(known, _)| *known == txn).map_or(now, |(_, since)| *since);
            present.insert(replica.shard, (txn, since));
            if now.duration_since(since) >= PATIENCE {
                waiting.push(replica);
            }
        }
        *seen = present;
        waiting
    }

    async fn decide_on(&self, replica: &Arc<Replica>) {
        if let Err(error) = self.try_decide_on(replica).await {
            tracing::warn!(shard = %replica.shard, %error, "a prepared transaction waits for its decision");
        }
    }

    async fn try_decide_on(&self, replica: &Arc<Replica>) -> Result<(), HostError> {
        let readers = replica.readers.clone();
        let prepared = pleat_consensus::blocking(move || readers.in_doubt()).await;
        let prepared = prepared.map_err(|error| HostError::Internal(error.to_string()))?.map_err(engine_error)?;
        for PreparedTxn { txn, began, participants, .. } in prepared {
            let at = self.now_ms();
            let abort = LedgerCommand::Decide { txn, commit: false, participants, began, at };
            reach("recovery.before-ledger", Some(replica.shard));
            let asked = match planted::is(Bug::AbortUnasked) {
                true => LedgerReply::Decided { commit: None },
                false => self.ledger_command(abort, DECIDE_LIMIT).await?,
            };
            let LedgerReply::Decided { commit } = asked else { return Err(mismatch()) };
            let commit = commit.filter(|_| !planted::is(Bug::CommitForgotten));
            reach("recovery.decided", Some(replica.shard));
            tracing::info!(shard = %replica.shard, %txn, ?commit, "decided a transaction that its coordinator had left");
            self.carry_out(replica.shard, txn, commit).await?;
            reach("recovery.carried-out", Some(replica.shard));
        }
        Ok(())
    }

    async fn carry_out(&self, shard: ShardId, txn: TxnId, commit: Option<CommitNumber>) -> Result<(), HostError> {
        if self.catalog().engine == Engine::Postgres {
            return self.carry_out_on_server(shard, txn, commit.is_some()).await;
        }
        let planned = self.catalog().planned();
        match self.write(shard, planned, Action::Decide { txn, commit }, DECIDE_LIMIT).await?.outcome {
            Outcome::Done { .. } => Ok(()),
            other => Err(HostError::Internal(format!("{txn} can't be decided on {shard}: {other:?}"))),
        }
    }

    /// On the control leader: settle commits that their coordinators have not had forgotten.
    pub(crate) async fn keep_forgetting(self: Arc<Self>) {
        let mut stop = self.stopping();
        while !*stop.borrow() {
            if self.control_epoch().is_some()
                && let Err(error) = self.forget_settled().await
            {
                tracing::warn!(%error, "the ledger keeps commits whose participants are not reached");
            }
            let _ = tokio::time::timeout(FORGET_EVERY, stop.changed()).await;
        }
    }

    async fn forget_settled(&self) -> Result<(), HostError> {
        let left_before = self.txn_clock().saturating_sub(FORGET_AFTER_MS);
        let left: Vec<(TxnId, Decided)> = (self.ledger().read().commits())
            .filter(|(_, decided)| decided.at <= left_before)
            .map(|(txn, decided)| (txn, decided.clone()))
            .take(FORGET_AT_ONCE_MAX)
            .collect();
        let mut settled = Vec::new();
        let mut failed = None;
        for (txn, decided) in left {
            match self.settle(txn, &decided).await {
                Ok(()) => settled.push(txn),
                Err(error) => failed = Some(error),
            }
        }
        if !settled.is_empty() {
            self.ledger_command(LedgerCommand::Forget { txns: settled }, DECIDE_LIMIT).await?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Make sure that every participant that still exists has carried out a commit.
    async fn settle(&self, txn: TxnId, decided: &Decided) -> Result<(), HostError> {
        let catalog = self.catalog();
        let exists = |shard: &&ShardId| catalog.shards.get(shard).is_some_and(|s| s.state != ShardState::Removed);
        let participants = decided.participants.iter().filter(exists);
        let carried = participants.map(|shard| self.carry_out(*shard, txn, decided.commit));
        join_all(carried).await.into_iter().collect()
    }
}
