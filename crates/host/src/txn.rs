//! The words of transactions over statements and shards.
//!
//! An interactive transaction has a *part* on each shard that it touches: a snapshot and, once it writes, the shard's
//! write lane, on the node that led the shard when the part began. A part lives in that node's memory alone. When the
//! node is lost or doesn't lead any more the part is gone, and so is the transaction: it ends with `40001`, and its
//! client begins again.

use pleat_cluster::{Millis, NodeId, PartitionId, Planned, ShardId, TxnId};
use pleat_engine::{Idempotency, ReadRequest, Statement, StatementResult};
use serde::{Deserialize, Serialize};

use crate::{RowStream, Written};

/// An interactive transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnHandle {
    pub id: TxnId,
    /// When it began, from [`Host::txn_clock`](crate::Host::txn_clock). The older of two that want the same shard wins.
    pub began: Millis,
    /// Take the write lane of each shard at the first touch, not at the first write (`BEGIN IMMEDIATE`): then no
    /// other write can get in between what is read and what is written.
    pub immediate: bool,
}

/// A transaction's part on one shard, as its coordinator keeps it. Made by [`TxnPart::new`]; the first step begins it.
#[derive(Debug)]
pub struct TxnPart {
    pub(crate) shard: ShardId,
    pub(crate) txn: TxnHandle,
    pub(crate) home: Option<NodeId>,
    /// Steps taken. The node counts as well: a step that got lost or comes twice ends the transaction.
    pub(crate) steps: u64,
    /// Set while a step is on its way: if it stays set, the caller gave up and doesn't know whether it was taken.
    pub(crate) lost: bool,
}

impl TxnPart {
    pub fn new(shard: ShardId, txn: TxnHandle) -> Self {
        Self { shard, txn, home: None, steps: 0, lost: false }
    }

    pub fn shard(&self) -> ShardId {
        self.shard
    }

    pub fn txn(&self) -> TxnHandle {
        self.txn
    }

    /// The number of the step that is taken now.
    pub fn next_step(&mut self) -> u64 {
        self.steps += 1;
        self.steps - 1
    }

    /// Whether a step was ever sent: if not, there is nothing to roll back.
    pub fn has_begun(&self) -> bool {
        self.steps > 0
    }
}

/// One step of a transaction on one shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TxnStep {
    /// Sees the snapshot and the transaction's own writes. Gives [`TxnReply::Rows`].
    Read(ReadRequest),
    /// All statements or none; a failure leaves the transaction as it was before. Gives [`TxnReply::Written`].
    Write {
        units: Vec<PartitionId>,
        statements: Vec<Statement>,
        /// Of the catalog that they were planned by.
        planned: Planned,
    },
    /// Gives [`TxnReply::Done`], as the next two.
    Savepoint(String),
    RollbackTo(String),
    Release(String),
    /// Commit a transaction that wrote on this shard alone. Gives [`TxnReply::Decided`].
    Commit {
        idempotency: Option<Idempotency>,
    },
    /// Prepare this shard's part, or validate it if it only read. Gives [`TxnReply::Decided`], with
    /// `Outcome::Prepared` if all is well; then the transaction is decided by the ledger, and
    /// `Action::Decide` is written to the shard like any other action.
    Prepare {
        participants: Vec<ShardId>,
        idempotency: Option<Idempotency>,
    },
    /// Gives [`TxnReply::Done`], also when the part is gone.
    Rollback,
}

impl TxnStep {
    /// Whether it may have had an effect when its answer is lost.
    pub(crate) fn decides(&self) -> bool {
        matches!(self, TxnStep::Commit { .. } | TxnStep::Prepare { .. })
    }

    /// Whether nothing is left of the part on its node afterwards, whatever the outcome.
    pub fn ends(&self) -> bool {
        matches!(self, TxnStep::Commit { .. } | TxnStep::Prepare { .. } | TxnStep::Rollback)
    }
}

/// What a step gave.
#[derive(Debug)]
pub enum TxnReply {
    Rows(RowStream),
    Written {
        results: Vec<StatementResult>,
        /// The number that the transaction would get in the shard's reference log, once it has written to reference
        /// tables there. A transaction is only right if this is the same on all shards.
        reference: Option<u64>,
    },
    Done,
    /// What became of the proposal: `Outcome::Done`, `Prepared`, `Replayed`, `Refused` or `Failed`.
    Decided(Written),
}

/// Why the node ended a transaction's part. The whole transaction has to be rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum TxnEnd {
    /// Something else changed what it has read, or had to be applied while it held the shard.
    #[error("the transaction was rolled back: another write came between what it has read and what it wrote")]
    Conflict,
    #[error("the transaction was rolled back: an older one needs the same shard, and one of the two has to give way")]
    Wounded,
    #[error("the transaction was rolled back: it kept others waiting and did nothing for {limit_ms} ms")]
    Idle { limit_ms: u64 },
    #[error("the transaction was rolled back: it took longer than {limit_ms} ms")]
    TooLong { limit_ms: u64 },
    #[error("the transaction is gone: the shard's leader changed")]
    Lost,
    #[error("the transaction was rolled back by one of its own statements")]
    RolledBack,
}

impl TxnEnd {
    /// The SQLSTATE.
    pub fn code(self) -> &'static str {
        match self {
            TxnEnd::Conflict | TxnEnd::Lost => "40001",
            TxnEnd::Wounded => "40P01",
            TxnEnd::Idle { .. } | TxnEnd::TooLong { .. } => "25P03",
            TxnEnd::RolledBack => "40000",
        }
    }
}

/// A transaction that is prepared on a shard and waits for its decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InDoubt {
    pub txn: TxnId,
    pub shard: ShardId,
    pub participants: Vec<ShardId>,
    pub began: Millis,
    /// The shard's time when it was prepared.
    pub prepared_ms: Millis,
    /// What the ledger says, as this node knows it.
    pub decided: Option<bool>,
}
