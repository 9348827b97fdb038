//! Transactions over several shards: making their steps go wrong, and finding out about what was left behind.

use pleat_cluster::{LedgerCommand, LedgerReply, ShardId, TxnId};
use pleat_engine::{Action, Outcome, PreparedTxn, Statement};

use super::{Cluster, Fault};

/// A step of a two-phase commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Prepare(ShardId),
    Ledger { commit: bool },
    Decide(ShardId),
}

/// Says what goes wrong with a step.
pub type Trap = Box<dyn FnMut(Step) -> Option<Fault> + Send>;

impl Step {
    pub(super) fn of(shard: ShardId, action: &Action) -> Option<Self> {
        match action {
            Action::Prepare { .. } => Some(Step::Prepare(shard)),
            Action::Decide { .. } => Some(Step::Decide(shard)),
            _ => None,
        }
    }

    pub(super) fn of_ledger(command: &LedgerCommand) -> Option<Self> {
        match command {
            LedgerCommand::Decide { commit, .. } => Some(Step::Ledger { commit: *commit }),
            _ => None,
        }
    }
}

impl Cluster {
    /// Let steps go wrong from now on.
    pub fn trap(&self, trap: impl FnMut(Step) -> Option<Fault> + Send + 'static) {
        *self.trap.lock() = Some(Box::new(trap));
    }

    /// Let nothing go wrong any more.
    pub fn untrap(&self) {
        *self.trap.lock() = None;
    }

    pub(super) fn trapped(&self, step: Option<Step>) -> Option<Fault> {
        self.trap.lock().as_mut().zip(step).and_then(|(trap, step)| trap(step))
    }

    /// What is prepared and not decided.
    pub fn prepared(&self) -> Vec<(ShardId, PreparedTxn)> {
        let shards: Vec<_> = self.shards.lock().keys().copied().collect();
        let prepared = |shard: ShardId| self.replica(shard).readers.in_doubt().unwrap();
        shards.into_iter().flat_map(|shard| prepared(shard).into_iter().map(move |txn| (shard, txn))).collect()
    }

    /// Carry out a transaction over these shards at once, with a statement on each, or none.
    pub fn commit_over(&self, txn: TxnId, parts: &[(ShardId, Option<String>)]) {
        let participants: Vec<ShardId> = parts.iter().map(|(shard, _)| *shard).collect();
        for (shard, statement) in parts {
            let prepare = Action::Prepare {
                txn,
                began: 1,
                participants: participants.clone(),
                idempotency: None,
                units: self.partitions_of(*shard),
                statements: statement.iter().map(|sql| Statement::new(sql.as_str(), [])).collect(),
                base: None,
            };
            let outcome = self.propose(*shard, prepare).outcome;
            assert!(matches!(outcome, Outcome::Prepared { .. }), "{outcome:?}");
        }
        let now = self.ledger.lock().now();
        let decide = LedgerCommand::Decide { txn, commit: true, participants, began: now, at: now };
        let Ok(LedgerReply::Decided { commit }) = self.ledger.lock().apply(&decide) else { panic!("no decision") };
        assert!(commit.is_some());
        for (shard, _) in parts {
            self.propose(*shard, Action::Decide { txn, commit });
        }
    }

    /// What each shard's leader does with transactions that wait too long.
    pub fn recover(&self) {
        for (shard, prepared) in self.prepared() {
            let PreparedTxn { txn, began, participants, .. } = prepared;
            let ask = LedgerCommand::Decide { txn, commit: false, participants, began, at: began };
            let LedgerReply::Decided { commit } = self.ledger.lock().apply(&ask).unwrap() else {
                panic!("no decision")
            };
            self.propose(shard, Action::Decide { txn, commit });
        }
    }
}
