//! Commands: the only way to change a catalog.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Cause, Decision, DecisionId, Engine, Follows, Generation, Millis, NodeId, OperationId, OperationKind, Phase, Place,
    Policy, Receipt, Secret, ShardId, Verifier,
};

/// One change, as it stands in the control group's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// The first command of a cluster. Repeating it with the same cluster id changes nothing, so every
    /// founding node may send it.
    Init {
        cluster_id: String,
        partition_count: u32,
        replication_factor: u32,
        /// Id, name and address of each founding node.
        nodes: Vec<(NodeId, String, String)>,
        /// The incarnation of each of them.
        incarnations: BTreeMap<NodeId, u64>,
        /// How many shards to start with; partitions are dealt out evenly.
        shards: u32,
        engine: Engine,
        policy: Policy,
        at: Millis,
    },
    /// A node says (again) where it is. With another incarnation than the catalog has for it, it has lost its
    /// disk, and waits from then on to be rebuilt.
    RegisterNode {
        id: NodeId,
        name: String,
        address: String,
        incarnation: u64,
        at: Millis,
    },
    /// The node that supervises a shard's server has started it, and it listens there. Another address than the catalog has
    /// makes routers connect anew.
    NoteServer {
        shard: ShardId,
        node: NodeId,
        place: Place,
        at: Millis,
    },
    /// The node that supervises a shard's primary says how far its standby follows. See [`Follows`].
    NoteStandby {
        shard: ShardId,
        node: NodeId,
        reign: u64,
        /// See [`Pair::said`](crate::Pair::said).
        said: u64,
        follows: Follows,
        at: Millis,
    },
    /// The shard's replicas run, its schema is there: route to it.
    ActivateShard {
        shard: ShardId,
        at: Millis,
    },
    /// The shard's replicas are not needed any more. Refused while it owns anything.
    RemoveShard {
        shard: ShardId,
        at: Millis,
    },
    SetPolicy {
        policy: Policy,
        at: Millis,
    },
    /// Put an operation into the journal. `Split { to }` must name [`Catalog::next_shard`]; the shard is
    /// made along with the operation.
    ///
    /// [`Catalog::next_shard`]: crate::Catalog::next_shard
    StartOperation {
        kind: OperationKind,
        cause: Cause,
        reason: String,
        at: Millis,
    },
    /// Journal a decision, and the operation that carries it out when `start` is set.
    RecordDecision {
        decision: Decision,
        start: Option<OperationKind>,
        at: Millis,
    },
    /// A step is about to act (`ended: false`) or has acted (`ended: true`). The first one sets the
    /// operation `Progressing`.
    ///
    /// `epoch` is the term in which the executor leads the control group, here and in the commands
    /// below. An operation remembers the newest that worked on it and refuses older ones: a leader that was
    /// paused and replaced can't commit what its successor has rolled back.
    JournalStep {
        operation: OperationId,
        step: String,
        ended: bool,
        detail: String,
        epoch: u64,
        at: Millis,
    },
    /// The same for the first step of another attempt. The operation counts it, and its executor calls it by that number:
    /// the journal's entries are for people, and one that turns up twice must not be taken for an attempt.
    BeginAttempt {
        operation: OperationId,
        step: String,
        epoch: u64,
        at: Millis,
    },
    /// It does not happen: from here on it can't be committed, only taken back. `message` and `code` say why.
    GiveUpOperation {
        operation: OperationId,
        message: String,
        code: Option<String>,
        epoch: u64,
        at: Millis,
    },
    /// What is left to do of a decided operation is on `shards`, and these can't be reached: others go past it
    /// until it has ended.
    AwaitShards {
        operation: OperationId,
        shards: Vec<ShardId>,
        epoch: u64,
        at: Millis,
    },
    /// The point of no return: the partitions have a new owner (`Split`, `Move`), every shard has the new
    /// schema (`Ddl`), or no majority counts on the old replicas any more (`Rebuild`).
    CommitOperation {
        operation: OperationId,
        epoch: u64,
        at: Millis,
    },
    FinishOperation {
        operation: OperationId,
        phase: Phase,
        message: String,
        epoch: u64,
        at: Millis,
    },
    CancelOperation {
        operation: OperationId,
        at: Millis,
    },
    /// The shard's replicas differ and no majority says which is right; `None`: they agree (again).
    NoteDisagreement {
        shard: ShardId,
        what: Option<String>,
        at: Millis,
    },
    /// A person wants done what a decision recommends.
    ApproveDecision {
        decision: DecisionId,
        at: Millis,
    },
    /// What a move has carried and compared so far. One whose sides differ can't be committed.
    KeepReceipt {
        operation: OperationId,
        receipt: Box<Receipt>,
        epoch: u64,
        at: Millis,
    },
    /// Where shards are servers, gates are the routers' own: each sees in the catalog whether it may let a statement through to a move's
    /// source, or to any shard while tables are placed anew. Closing them is a new generation, by which routers say when all that they
    /// let through before has ended.
    SetGates {
        operation: OperationId,
        closed: bool,
        epoch: u64,
        at: Millis,
    },
    /// Put several moves (`OperationKind::Move`) into the journal, all or none. They name different partitions. The reply names the first; the others follow it in order.
    StartMoves {
        moves: Vec<OperationKind>,
        cause: Cause,
        reason: String,
        at: Millis,
    },
    /// Add a user, or give one another password. `secret` becomes the catalog's if it has none.
    PutUser {
        name: String,
        verifier: Verifier,
        secret: Secret,
        at: Millis,
    },
    /// Remove a user; the last one only if `last` says so.
    RemoveUser {
        name: String,
        last: bool,
        at: Millis,
    },
}

/// What a command gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The catalog's generation after the command.
    pub generation: Generation,
    pub operation: Option<OperationId>,
    pub decision: Option<DecisionId>,
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum CommandError {
    #[error("the cluster is not set up yet")]
    NotInitialised,
    #[error("this is cluster {ours}, not {theirs}")]
    OtherCluster { ours: String, theirs: String },
    #[error("{what} does not exist")]
    Unknown { what: String },
    #[error("{what} exists already")]
    Exists { what: String },
    /// Something else has to end first; trying again later is right.
    #[error("{what}")]
    Busy { what: String },
    /// The command was decided on an older catalog, or never made sense.
    #[error("{what}")]
    Invalid { what: String },
}
