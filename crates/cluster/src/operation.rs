//! The journal: every change of the cluster is an operation with steps.
//!
//! The control leader works on one operation at a time, in the order of their ids, but for what moves partitions: a few splits, merges and moves
//! of different shards go side by side (`moves`), and moves between shards that there are let others go first. Before a step acts it
//! is journaled as begun, and when it has acted, as ended; so a leader that takes over sees how far the one
//! before it may have come. What it then does is the executor's business (`control`): before
//! [`Operation::committed`] is set an operation can be rolled back, afterwards it is only ever finished.
//!
//! # A shard is gone
//!
//! An operation is *decided* when it is committed, or given up ([`Operation::given_up`]): from then on nothing but
//! finishing it, or taking it back, is left to do. When a shard on which something is left to do can't be reached, the
//! operation *waits* ([`Operation::waits_for`]), and others go past it, but none that concerns a shard that it
//! [holds](Operation::holds): so when the shard is back, what was left undone there comes before anything new.
//! Only what is decided waits; what isn't is given up first.

use serde::{Deserialize, Serialize};

use crate::{DdlEffect, DecisionId, Generation, Millis, NodeId, OperationId, PartitionId, Receipt, ShardId, TableKind};

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Pending,
    Progressing,
    Successful,
    Failed,
    /// Ended without having done anything: cancelled in time, or there was nothing to do.
    Skipped,
}

impl Phase {
    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, Phase::Successful | Phase::Failed | Phase::Skipped)
    }
}

/// Who or what asked for an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// A person or program, through an interface; the text says which.
    Request(String),
    /// The autoscaler.
    Decision(DecisionId),
}

/// What an operation changes. It leaves execution nothing to choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationKind {
    /// Make shard `to` and give it `partitions` of `from`.
    Split { from: ShardId, to: ShardId, partitions: Vec<PartitionId> },
    /// Give `partitions` of `from` to the existing shard `to`.
    Move { from: ShardId, to: ShardId, partitions: Vec<PartitionId> },
    /// Give all `partitions` of `from` to the existing shard `to`, and take `from` down.
    Merge { from: ShardId, to: ShardId, partitions: Vec<PartitionId> },
    /// Change the schema on every shard. What is allowed depends on the placements of tables, so it was planned by a `layout`.
    Ddl { effect: DdlEffect, sql: String, layout: Generation },
    /// Make the node's replica of a shard anew from the others, or (`None`) all that the node held: its disk
    /// was lost, or its content differs.
    Rebuild { node: NodeId, shard: Option<ShardId> },
    /// Make the shard's standby, which `to` supervises, its primary. They are in this reign (see [`Pair`](crate::Pair)).
    Promote { shard: ShardId, to: NodeId, reign: u64 },
}

impl OperationKind {
    /// `split`, `move`, `merge`, `ddl`, `rebuild` or `promote`.
    pub fn name(&self) -> &'static str {
        match self {
            OperationKind::Split { .. } => "split",
            OperationKind::Move { .. } => "move",
            OperationKind::Merge { .. } => "merge",
            OperationKind::Ddl { .. } => "ddl",
            OperationKind::Rebuild { .. } => "rebuild",
            OperationKind::Promote { .. } => "promote",
        }
    }

    /// Which partitions change shards: from, to, and which.
    pub fn moves(&self) -> Option<(ShardId, ShardId, &[PartitionId])> {
        match self {
            OperationKind::Split { from, to, partitions }
            | OperationKind::Move { from, to, partitions }
            | OperationKind::Merge { from, to, partitions } => Some((*from, *to, partitions)),
            OperationKind::Ddl { .. } | OperationKind::Rebuild { .. } | OperationKind::Promote { .. } => None,
        }
    }

    /// Whether, on servers, routers are held back for it.
    pub fn has_gates(&self) -> bool {
        self.moves().is_some() || matches!(self, OperationKind::Ddl { effect: DdlEffect::PlaceOnServers { .. }, .. })
    }

    /// The shard on which this puts a single table.
    pub fn single_home(&self) -> Option<ShardId> {
        match self {
            OperationKind::Ddl { effect: DdlEffect::CreateTable(table), .. } => match table.kind {
                TableKind::Single { shard } => Some(shard),
                _ => None,
            },
            OperationKind::Ddl { effect: DdlEffect::PlaceTable { after, .. }, .. } => match after.kind {
                TableKind::Single { shard } => Some(shard),
                _ => None,
            },
            _ => None,
        }
    }
}

/// One journaled step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub name: String,
    pub begun: Millis,
    pub ended: Option<Millis>,
    /// What it did, for people: `copied 12,345 rows of flights`.
    pub detail: String,
}

/// One entry of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub id: OperationId,
    pub kind: OperationKind,
    pub cause: Cause,
    /// Why, for people.
    pub reason: String,
    pub phase: Phase,
    pub steps: Vec<Step>,
    /// How many attempts have begun. Traces on shards are of the newest: it began when those before were taken back.
    pub attempts: u32,
    /// The point of no return was passed: the catalog holds the result.
    pub committed: bool,
    /// It does not happen: it can't be committed any more, and what was done is taken back.
    pub given_up: bool,
    /// Shards that can't be reached and on which something is left to do. Empty unless it is decided and open.
    pub waits_for: Vec<ShardId>,
    /// The newest term of the control group in which a leader worked on it; older ones are refused.
    pub epoch: u64,
    pub cancel_requested: bool,
    /// How it ended, or why it was given up, for people; empty until then.
    pub message: String,
    /// The SQLSTATE of that failure, where there is one of its own: `23505` for a unique index over duplicates.
    pub code: Option<String>,
    /// The generation as of which routers let nothing new through to the source of a move between servers, or to any server while tables
    /// are placed anew, while they do
    /// (see [`Command::SetGates`](crate::Command::SetGates)).
    pub gates_closed: Option<Generation>,
    /// Where rows move: what was carried and compared. Of the newest attempt that came so far.
    pub receipt: Option<Box<Receipt>>,
    pub created: Millis,
    pub updated: Millis,
}

impl Operation {
    /// Whether it is decided and waits for a shard, so that others go past it.
    pub fn is_waiting(&self) -> bool {
        !self.waits_for.is_empty()
    }

    /// The shards on which nothing else is begun while this operation waits.
    ///
    /// A committed move holds both its ends, because its source has let go only when the target has taken over. One
    /// that was given up holds only the shard that has not heard of it, and, if it is a split, the one that it has made and will remove.
    pub fn holds(&self) -> Vec<ShardId> {
        match (&self.kind, self.kind.moves()) {
            _ if !self.is_waiting() => Vec::new(),
            (_, Some((from, to, _))) if self.committed => vec![from, to],
            (OperationKind::Split { to, .. }, _) => self.waits_for.iter().copied().chain([*to]).collect(),
            _ => self.waits_for.clone(),
        }
    }

    /// Whether nothing may change on any shard until it is over: while it waits for one shard to follow, the others have the
    /// table's new placement and take no writes to it, and a new one would have no part in that.
    pub fn holds_all(&self) -> bool {
        let places = matches!(self.kind, OperationKind::Ddl { effect: DdlEffect::PlaceTable { .. }, .. });
        places && self.committed && self.is_waiting()
    }
}
