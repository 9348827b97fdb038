//! The same as [`decide`](crate::decide) for shards that are servers: what is prepared there, and was left by whoever did.
//!
//! Each node looks after the servers that it supervises: these are up when it is. What it finds in `pg_prepared_xacts` under a name of Pleat's
//! ([`PreparedName`]) is
//!
//! | | and is ended |
//! | --- | --- |
//! | a client's transaction, prepared for longer than [`PATIENCE`] | as the ledger says, which is told "abort" and answers with what was decided first |
//! | an attempt at a schema change that was left behind ([`Catalog::left_behind`](pleat_cluster::Catalog::left_behind)) | by rolling it back, or by committing it if it is the one that was committed |
//! | any other attempt | by the control leader that carries the operation out |
//!
//! A coordinator that is only slow finishes its transaction at the same time. Both say the same, and the server lets one of them: the
//! other is told that there is
//! no such transaction, or that it is busy.
//!
//! | the node dies … | and then |
//! | --- | --- |
//! | before it has asked the ledger, or after that | its next start finds the transaction again, and the ledger says the same again |
//! | after the server has carried it out | nothing is left to find |
//!
//! A commit stays in the ledger until each participant has it (`Host::settle`): while a server is down, the ledger keeps it.
//!
//! How old a transaction is, is judged by its server's clock alone. What the ledger is told to be the time at which it began is when it was prepared
//! here, which is later; an abort is then remembered for longer than it has to be.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use pleat_cluster::{Engine, LedgerCommand, LedgerReply, Millis, PreparedName, ShardId, ShardState, Standbys, TxnId};

use crate::calls::mismatch;
use crate::decide::DECIDE_LIMIT;
use crate::failpoint::reach;
use crate::{Host, HostError, InDoubt, ServerError};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a prepared transaction is left to its coordinator.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long one look at a server may take.
const LOOK_LIMIT: Duration = Duration::from_secs(3);
/// Transactions that are dealt with in one look.
const AT_ONCE_MAX: usize = 1_000;
/// SQLSTATE: the server has no such transaction.
const UNDEFINED_OBJECT: &str = "42704";

/// What a server has prepared under a name of Pleat's.
struct Prepared {
    name: PreparedName,
    /// By the server's clock.
    at: Millis,
    age: Duration,
}

impl Host {
    pub(crate) async fn keep_deciding_on_servers(self: Arc<Self>) {
        let mut stop = self.stopping();
        while !*stop.borrow() {
            join_all(self.own_servers().into_iter().map(|shard| self.decide_on_server(shard))).await;
            let _ = tokio::time::timeout(LOOK_EVERY, stop.changed()).await;
        }
    }

    /// The primaries that this node supervises and has started.
    pub(crate) fn own_servers(&self) -> Vec<ShardId> {
        let catalog = self.catalog();
        if catalog.engine != Engine::Postgres {
            return Vec::new();
        }
        let own = catalog.shards.values().filter(|shard| {
            shard.state != ShardState::Removed && shard.server.is_some() && shard.primary() == Some(self.node())
        });
        own.map(|shard| shard.id).collect()
    }

    async fn decide_on_server(&self, shard: ShardId) {
        match self.try_decide_on_server(shard).await {
            Ok(()) => {}
            // Its supervision tells of a server that is down.
            Err(HostError::Unavailable(why)) => {
                tracing::debug!(%shard, why, "the server is not asked for prepared transactions")
            }
            Err(error) => tracing::warn!(%shard, %error, "a prepared transaction waits for its decision"),
        }
    }

    async fn try_decide_on_server(&self, shard: ShardId) -> Result<(), HostError> {
        for Prepared { name, at, age } in self.prepared_on(shard, LOOK_LIMIT).await? {
            match name {
                PreparedName::Txn(txn) if age >= PATIENCE => self.decide_txn_on_server(shard, txn, at).await?,
                PreparedName::Ddl { operation, attempt } => {
                    let Some(commit) = self.catalog().left_behind(operation, attempt) else { continue };
                    tracing::info!(%shard, %operation, attempt, commit, "a schema change was left on the server, and ends");
                    self.end_prepared(shard, name, commit).await?;
                }
                PreparedName::Txn(_) => {}
            }
        }
        Ok(())
    }

    async fn decide_txn_on_server(&self, shard: ShardId, txn: TxnId, began: Millis) -> Result<(), HostError> {
        let at = self.now_ms();
        reach("recovery.before-ledger", Some(shard));
        let abort = LedgerCommand::Decide { txn, commit: false, participants: vec![shard], began, at };
        let LedgerReply::Decided { commit } = self.ledger_command(abort, DECIDE_LIMIT).await? else {
            return Err(mismatch());
        };
        reach("recovery.decided", Some(shard));
        tracing::info!(%shard, %txn, ?commit, "decided a transaction that its coordinator had left");
        self.carry_out_on_server(shard, txn, commit.is_some()).await?;
        reach("recovery.carried-out", Some(shard));
        Ok(())
    }

    /// Tell a server what was decided about a transaction. One that does not have it any more was told before.
    pub(crate) async fn carry_out_on_server(&self, shard: ShardId, txn: TxnId, commit: bool) -> Result<(), HostError> {
        self.end_prepared(shard, PreparedName::Txn(txn), commit).await
    }

    async fn end_prepared(&self, shard: ShardId, name: PreparedName, commit: bool) -> Result<(), HostError> {
        let verb = if commit { "COMMIT" } else { "ROLLBACK" };
        match self.ask_server(shard, &[format!("{verb} PREPARED '{name}'")], DECIDE_LIMIT).await {
            Ok(_) => Ok(()),
            Err(HostError::Server(ServerError { code, .. })) if code == UNDEFINED_OBJECT => match commit {
                true => self.is_on_standby(shard).await,
                false => Ok(()),
            },
            Err(error) => Err(error),
        }
    }

    /// Until a synchronous standby has all that its primary has committed so far. Who committed a prepared transaction may have been cut off while it waited
    /// for that; the ledger must not forget it before.
    async fn is_on_standby(&self, shard: ShardId) -> Result<(), HostError> {
        if self.catalog().policy.standbys != Standbys::Synchronous {
            return Ok(());
        }
        // A commit that has written something waits; there is nothing to read in it.
        let write = "SELECT pg_logical_emit_message(true, 'pleat', '')".to_owned();
        self.ask_server(shard, &[write], DECIDE_LIMIT).await.map(drop)
    }

    /// What is prepared on a server and waits for its decision.
    pub(crate) async fn in_doubt_on_server(&self, shard: ShardId, within: Duration) -> Result<Vec<InDoubt>, HostError> {
        let prepared = self.prepared_on(shard, within).await?;
        let ledger = self.ledger().read();
        let doubt = |Prepared { name, at, .. }| {
            let PreparedName::Txn(txn) = name else { return None };
            let decided = ledger.decided(txn);
            let participants = decided.map_or_else(|| vec![shard], |decided| decided.participants.clone());
            let began = decided.map_or(at, |decided| decided.began);
            let decided = decided.map(|decided| decided.commit.is_some());
            Some(InDoubt { txn, shard, participants, began, prepared_ms: at, decided })
        };
        Ok(prepared.into_iter().filter_map(doubt).collect())
    }

    /// Pleat's own, oldest first.
    async fn prepared_on(&self, shard: ShardId, within: Duration) -> Result<Vec<Prepared>, HostError> {
        let ask = format!(
            "SELECT gid, floor(extract(epoch FROM prepared) * 1000)::bigint, \
             greatest(floor(extract(epoch FROM clock_timestamp() - prepared) * 1000), 0)::bigint \
             FROM pg_prepared_xacts WHERE database = current_database() AND gid LIKE 'pleat\\_%' \
             ORDER BY prepared LIMIT {AT_ONCE_MAX}"
        );
        let mut answers = self.ask_server(shard, &[ask], within).await?;
        let rows = answers.pop().unwrap_or_default().rows;
        Ok(rows.iter().filter_map(|row| prepared(row)).collect())
    }
}

/// `None`: it is somebody else's, who has chosen a name that looks like ours.
fn prepared(row: &[Option<String>]) -> Option<Prepared> {
    let [Some(name), Some(at), Some(age)] = row else { return None };
    Some(Prepared { name: name.parse().ok()?, at: at.parse().ok()?, age: Duration::from_millis(age.parse().ok()?) })
}
