//! The ledger: what the control group remembers of transactions over several shards, and of numbers that it has
//! given out. It is replicated beside the catalog, and doesn't raise its generation.
//!
//! # Decisions
//!
//! A transaction over several shards is committed when the ledger says so, and at no other moment. The first word
//! about it counts: a coordinator says "commit" when all participants have prepared; whoever finds a transaction that
//! waits too long says "abort". Both are told what was decided, by whomever.
//!
//! *A transaction that the ledger doesn't know is aborted* ([presumed abort]). So a decision may be forgotten only
//! when nobody can misunderstand its absence:
//!
//! - a commit, when all participants have carried it out ([`LedgerCommand::Forget`]);
//! - an abort, when it is too late for its coordinator to say "commit". That is so from [`COMMIT_WITHIN_MS`] after the
//!   transaction began; aborts are remembered for twice that time.
//!
//! Both are judged by the ledger's own time: the latest of all that its commands carry, which never goes back. So the
//! argument needs no clocks that agree. They only must not disagree by more than [`COMMIT_WITHIN_MS`], or else a
//! coordinator whose clock is that far behind is refused every commit; therefore coordinators take the time at which a
//! transaction begins to be no earlier than the ledger's time as their node knows it ([`Ledger::now`]).
//!
//! # The order of commits
//!
//! Commits are numbered as they are decided. A shard has at most one transaction prepared at a time, and one is committed
//! only when all its participants have prepared it; so the next that the shard prepares is decided later, and *every shard
//! carries out its commits in the order of their numbers*. That is what a reader of several shards relies on.
//!
//! # Ids
//!
//! Ids of rows that are unique over all shards are given out in blocks. A block that is lost with its receiver leaves a
//! gap and nothing else.
//!
//! [presumed abort]: https://en.wikipedia.org/wiki/Two-phase_commit_protocol#Presumed_abort_and_presumed_commit

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::planted::{self, Bug};
use crate::{Millis, ShardId, TableId, TxnId};

/// How long after it began a transaction over several shards can be committed.
pub const COMMIT_WITHIN_MS: Millis = 60_000;
/// How long an abort is remembered, after the transaction began or was aborted, whichever is later.
pub const ABORT_KEPT_MS: Millis = 2 * COMMIT_WITHIN_MS;
/// Decisions that are remembered at one time. Beyond it commits are refused; aborts are always taken.
pub const DECISIONS_MAX: usize = 100_000;
/// How often it is looked for aborts that can be forgotten.
const SWEEP_EVERY_MS: Millis = 1_000;
/// Ids in one block.
pub const IDS_AT_ONCE_MAX: u32 = 1_000_000;

/// The place of a commit among all that were ever decided, from 1.
pub type CommitNumber = u64;

/// See the module.
///
/// Invariants: a decision never changes; `now` never goes back; a table's last id never goes back; no two commits have the
/// same number, and a later one has a larger.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    now: Millis,
    /// When aborts were last looked through for those that can be forgotten.
    swept: Millis,
    decisions: BTreeMap<TxnId, Decided>,
    /// The number of the newest commit.
    commits: CommitNumber,
    /// The last id given out, by table.
    sequences: BTreeMap<TableId, i64>,
}

/// What was decided about a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// `None`: it is aborted.
    pub commit: Option<CommitNumber>,
    pub participants: Vec<ShardId>,
    pub began: Millis,
    pub at: Millis,
}

/// One change of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LedgerCommand {
    /// Commit or abort, unless something was decided before.
    Decide { txn: TxnId, commit: bool, participants: Vec<ShardId>, began: Millis, at: Millis },
    /// Forget commits that every participant has carried out.
    Forget { txns: Vec<TxnId> },
    /// Give a block of `count` ids that were never given before and are above `at_least`. With a `count` of 0 ids up to
    /// and with `at_least` are only marked as given.
    AllocateIds { table: TableId, count: u32, at_least: Option<i64> },
}

/// What a command gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LedgerReply {
    /// What was decided, now or before.
    Decided {
        commit: Option<CommitNumber>,
    },
    Forgotten,
    /// The block is `first .. first + count`.
    Ids {
        first: i64,
    },
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum LedgerError {
    #[error("{DECISIONS_MAX} transactions over several shards wait for their participants; no more can be committed")]
    Full,
    #[error("the table has no more ids: {last} was given out")]
    NoMoreIds { last: i64 },
    #[error("a block of {count} ids is too large; at most {IDS_AT_ONCE_MAX} are given at once")]
    BlockTooLarge { count: u32 },
}

impl Ledger {
    /// Carries out a command. Total and deterministic.
    pub fn apply(&mut self, command: &LedgerCommand) -> Result<LedgerReply, LedgerError> {
        match command {
            LedgerCommand::Decide { txn, commit, participants, began, at } => {
                self.decide(*txn, *commit, participants, *began, *at)
            }
            LedgerCommand::Forget { txns } => {
                // An abort has to be remembered for its time: its coordinator may still say "commit".
                for txn in txns {
                    if self.decisions.get(txn).is_some_and(|decided| decided.commit.is_some()) {
                        self.decisions.remove(txn);
                    }
                }
                Ok(LedgerReply::Forgotten)
            }
            LedgerCommand::AllocateIds { table, count, at_least } => self.allocate(*table, *count, *at_least),
        }
    }

    /// The ledger's time: the latest that any command carried.
    pub fn now(&self) -> Millis {
        self.now
    }

    /// What was decided about a transaction, as far as this is remembered.
    pub fn decided(&self, txn: TxnId) -> Option<&Decided> {
        self.decisions.get(&txn)
    }

    /// Commits that are not known to be carried out by all participants.
    pub fn commits(&self) -> impl Iterator<Item = (TxnId, &Decided)> {
        self.decisions.iter().filter(|(_, decided)| decided.commit.is_some()).map(|(txn, decided)| (*txn, decided))
    }

    /// Forgets the ids of tables that are gone, when there are more than `tables`. Their numbers are never used again.
    pub fn keep_tables(&mut self, tables: usize, exists: impl Fn(TableId) -> bool) {
        if self.sequences.len() > tables {
            self.sequences.retain(|table, _| exists(*table));
        }
    }

    fn decide(
        &mut self,
        txn: TxnId,
        commit: bool,
        participants: &[ShardId],
        began: Millis,
        at: Millis,
    ) -> Result<LedgerReply, LedgerError> {
        self.now = self.now.max(at);
        self.forget_aborts();
        if let Some(known) = self.decisions.get(&txn).filter(|_| !planted::is(Bug::DecisionFlipped)) {
            return Ok(LedgerReply::Decided { commit: known.commit });
        }
        let commit = commit && self.now <= began.saturating_add(COMMIT_WITHIN_MS);
        if commit && self.decisions.len() >= DECISIONS_MAX {
            return Err(LedgerError::Full);
        }
        self.commits += u64::from(commit);
        let commit = commit.then_some(self.commits);
        let decided = Decided { commit, participants: participants.to_vec(), began, at: self.now };
        self.decisions.insert(txn, decided);
        Ok(LedgerReply::Decided { commit })
    }

    fn forget_aborts(&mut self) {
        let now = self.now;
        if now < self.swept.saturating_add(SWEEP_EVERY_MS) {
            return;
        }
        self.swept = now;
        self.decisions.retain(|_, decided| {
            decided.commit.is_some() || now <= decided.at.max(decided.began).saturating_add(ABORT_KEPT_MS)
        });
    }

    fn allocate(&mut self, table: TableId, count: u32, at_least: Option<i64>) -> Result<LedgerReply, LedgerError> {
        if count > IDS_AT_ONCE_MAX {
            return Err(LedgerError::BlockTooLarge { count });
        }
        let given = self.sequences.get(&table).copied().unwrap_or(0);
        let last = given.max(at_least.unwrap_or(0));
        let Some(end) = last.checked_add(i64::from(count)) else {
            return Err(LedgerError::NoMoreIds { last });
        };
        self.sequences.insert(table, end);
        Ok(LedgerReply::Ids { first: last.saturating_add(1) })
    }
}
