//! What is written to a shard's log, and what applying it gives.
//!
//! A [`Proposal`] carries everything that its effect depends on; a replica adds nothing of its own. Its
//! [`Outcome`] is computed by every replica alike, and the leader's is the client's answer.

use pleat_cluster::{CommitNumber, Generation, Millis, PartitionId, Planned, ShardId, Table, TxnId, Value};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{MoveState, MoveStep};

/// The first byte of an encoded proposal or outcome. A replica that meets another one stops instead of guessing.
const FORMAT: u8 = 6;

/// One entry of a shard's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// For people and logs; the log's order alone decides.
    pub id: Uuid,
    /// What the proposer planned by.
    pub planned: Planned,
    /// What `now` is while this is applied, unless an entry before it had a later one: then that. So a shard's
    /// time never goes back, whichever leader's clock it came from.
    pub now_ms: Millis,
    /// What `random()` draws from while this is applied.
    pub seed: u64,
    pub action: Action,
}

/// What a proposal does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// A user's write to sharded or single tables: all statements or none.
    Write {
        idempotency: Option<Idempotency>,
        /// Every unit that the statements may write, as they were routed.
        units: Vec<PartitionId>,
        statements: Vec<Statement>,
        /// The content version that the statements were decided on: refused at any other.
        base: Option<u64>,
    },
    /// Many rows for one table, inserted in the order of their numbers. A row that can't be inserted is named in the
    /// outcome; the others are kept.
    Bulk {
        table: String,
        columns: Vec<String>,
        parts: Vec<BulkPart>,
    },
    /// First ownership, of a founding shard. Does nothing when the shard knows this or a newer ownership.
    Own {
        units: Vec<PartitionId>,
        ownership: Generation,
        /// By what layout of the catalog its tables were made.
        layout: Generation,
    },
    /// A schema change. Does nothing when `operation` was applied before.
    Ddl {
        operation: u64,
        statements: Vec<String>,
        change: SchemaChange,
        /// A single table's unit, on the shard that is to own it, with the shard's new ownership.
        single: Option<(PartitionId, Generation)>,
        /// The operation that this takes back. Where that was not applied, this does nothing but see that it never is.
        undoes: Option<u64>,
    },
    /// A write to reference tables, on the anchor. It is applied and also appended to the shard's reference log.
    ReferenceWrite {
        idempotency: Option<Idempotency>,
        statements: Vec<Statement>,
    },
    /// A write to reference tables, on every other shard, in the order of its numbers: an old number succeeds
    /// and does nothing, a number that leaves a gap is refused.
    ReferenceApply(ReferenceEntry),
    /// From here on the anchor accepts writes to reference tables in transactions only if these were planned by this
    /// generation of the catalog or a newer one: it has a shard that the older ones lack.
    ReferenceMembers {
        generation: Generation,
    },
    /// Forget the reference log up to and with this number: every shard has it.
    ReferencePrune {
        upto: u64,
    },
    Move(MoveStep),
    /// Marks a position of the log at which replicas compare their content. It changes nothing; see
    /// [`Store::digest_job`](crate::Store::digest_job).
    Digest,
    /// One shard's part of a transaction over several: the statements are tried, and kept until the decision. Until
    /// then nothing else changes the shard's content. Repeating it gives the same answer.
    Prepare {
        txn: TxnId,
        /// When the transaction began, by its coordinator: the ledger decides by it whether a commit comes too late.
        began: Millis,
        /// Every shard that takes part, this one included.
        participants: Vec<ShardId>,
        idempotency: Option<Idempotency>,
        units: Vec<PartitionId>,
        /// None, for a shard that was only read: then this makes sure that it is still at `base`.
        statements: Vec<Statement>,
        base: Option<u64>,
    },
    /// What became of a prepared transaction, as the ledger has it. Does nothing when the transaction isn't
    /// prepared here.
    Decide {
        txn: TxnId,
        /// The number of the commit, or none: it is aborted.
        commit: Option<CommitNumber>,
    },
}

/// One SQL statement with the values of its parameters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Statement {
    pub sql: String,
    /// By position: `?1` is the first. A named parameter has the number of its first appearance.
    pub params: Vec<Value>,
    /// Run instead of `sql` when the shard holds rows that it doesn't own: it filters by `pleat_owned(key)`.
    pub filtered: Option<String>,
    /// What it ran with when it ran for the first time, in an interactive transaction.
    pub stamp: Option<Stamp>,
    /// Of a write to reference tables in a transaction: the number in the reference log that the transaction gets, the
    /// same on every shard. 0 until it has run for the first time.
    pub reference: Option<u64>,
}

impl Statement {
    /// A statement and its parameters.
    pub fn new(sql: impl Into<String>, params: impl Into<Vec<Value>>) -> Self {
        Self { sql: sql.into(), params: params.into(), ..Self::default() }
    }
}

/// What a statement of an interactive transaction ran with, so that at apply it does the same again although
/// statements between that failed or were rolled back are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub now_ms: Millis,
    pub seed: u64,
    /// What `last_insert_rowid()` and `total_changes()` said before it, when something was undone in between.
    pub undone: Option<(i64, i64)>,
}

/// A client's name for a write, by which a repetition is recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    pub key: String,
    /// A hash of the request: the same key with another request is refused.
    pub fingerprint: u64,
    pub ttl_ms: u64,
}

/// What a schema change leaves: enough to maintain Pleat's own triggers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchemaChange {
    /// The table as it is after the change, be it new or altered.
    Put(Table),
    Drop {
        table: String,
    },
    /// A table that has another name or other columns from here on, and the shard's new ownership: scatter reads that
    /// were routed by the older one are refused.
    Alter {
        from: String,
        table: Table,
        ownership: Generation,
    },
}

/// One write to reference tables, as it stands in the reference log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReferenceEntry {
    /// From 1, without gaps.
    pub seq: u64,
    /// The anchor's, so that every copy gets the same values.
    pub now_ms: Millis,
    pub seed: u64,
    pub statements: Vec<Statement>,
}

/// What one statement of a write gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatementResult {
    /// Empty when the statement returns no rows.
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Value>>,
    pub rows_affected: u64,
    pub last_insert_rowid: Option<i64>,
}

/// Rows of a bulk insertion that are done exactly once together: those of the units that move together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BulkPart {
    pub idempotency: Option<Idempotency>,
    pub units: Vec<PartitionId>,
    /// Each with its number, which rises; all parts' rows are numbered together.
    pub rows: Vec<(u32, Vec<Value>)>,
}

/// What became of a part of a bulk insertion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkDone {
    pub inserted: u64,
    pub rejected: Vec<RejectedRow>,
    /// It had been done before.
    pub replayed: bool,
}

/// A row that a bulk insertion passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedRow {
    /// Its number.
    pub number: u32,
    /// The SQLSTATE.
    pub code: String,
    pub reason: String,
}

/// What applying a proposal gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// All statements took effect.
    Done { results: Vec<StatementResult> },
    /// A repetition of a write that took effect before: its results then. Results too large to keep have their
    /// rows left out (`rows_kept`).
    Replayed { results: Vec<StatementResult>, rows_kept: bool },
    /// What became of each part of a bulk insertion.
    Bulk { parts: Vec<BulkDone> },
    /// A write to reference tables took effect here, as number `seq`. Also given for a repetition.
    Reference { seq: u64, results: Vec<StatementResult>, replayed: bool },
    /// A step of a move took effect: how the move stands here now.
    Moved(MoveState),
    /// Nothing changed: the shard is not the one for this, or not now.
    Refused(Refusal),
    /// Nothing changed: the statements themselves failed.
    Failed(SqlFailure),
    /// Nothing changed yet: this is what the statements will give when the transaction is committed.
    Prepared { results: Vec<StatementResult> },
}

/// Why a shard did not do what it was asked. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The shard does not own the unit. `ownership` is what it knows: a router that knows less must refresh.
    #[error("this shard does not own partition {unit} (its ownership is of generation {ownership})")]
    NotOwned { unit: PartitionId, ownership: Generation },
    /// The scatter read was routed by another generation than the shard's, or the write by an older one than that which knows the
    /// shard's newest trigger.
    #[error("this shard's ownership is of generation {ownership}, the statement was routed by {routed}")]
    Generation { ownership: Generation, routed: Generation },
    /// The unit is being handed over.
    #[error("partition {unit} is being handed to another shard")]
    Fenced { unit: PartitionId },
    /// The whole shard is being merged into another one.
    #[error("this shard is being merged into another one")]
    Leaving,
    /// The statement was planned by another layout of the catalog than the shard's.
    #[error("this shard's tables are laid out as of generation {layout}, the statement was planned by {routed}")]
    Layout { layout: Generation, routed: Generation },
    /// The table is getting another placement, and this is the end of it.
    #[error("table {table} is being given another placement and takes no writes at this moment")]
    Placing { table: String },
    /// A row belongs to a partition that the statement was not routed by.
    #[error("a row of partition {unit} was written by a statement that was routed without it")]
    NotRouted { unit: PartitionId },
    #[error("the idempotency key '{key}' was used for another request")]
    KeyConflict { key: String },
    #[error("the idempotency key is longer than {limit_bytes} bytes or empty")]
    KeyInvalid { limit_bytes: u32 },
    /// An older leader's message about a move.
    #[error("epoch {given} of this move is over; the newest seen is {seen}")]
    StaleEpoch { given: u64, seen: u64 },
    /// Reference writes come in order.
    #[error("the next reference write here is number {expected}, not {given}")]
    Gap { expected: u64, given: u64 },
    /// A schema change has to wait for a move, or a write to a reference table to which rows of other tables refer.
    #[error("partitions of this shard are being moved, and this has to wait for the end of it")]
    Moving,
    /// The step doesn't fit how the move stands here.
    #[error("{reason}")]
    MoveState { reason: String },
    /// A transaction over several shards is prepared here, and nothing else may change the shard until it is decided.
    #[error("{txn} is being decided on this shard")]
    Prepared { txn: TxnId },
    /// What the transaction has read has changed since.
    #[error("the shard has changed since the transaction read it (it is at version {version}, not {base})")]
    Conflict { base: u64, version: u64 },
}

impl Refusal {
    /// The SQLSTATE that a client gets.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::NotOwned { .. }
            | Refusal::Generation { .. }
            | Refusal::Fenced { .. }
            | Refusal::Leaving
            | Refusal::Layout { .. }
            | Refusal::Placing { .. }
            | Refusal::Prepared { .. }
            | Refusal::Conflict { .. } => "40001",
            Refusal::NotRouted { .. } => "0A000",
            Refusal::KeyConflict { .. } | Refusal::KeyInvalid { .. } => "22023",
            Refusal::Moving => "55006",
            Refusal::StaleEpoch { .. } | Refusal::Gap { .. } | Refusal::MoveState { .. } => "55000",
        }
    }

    /// Whether the same request can succeed later, perhaps on another shard.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Refusal::NotOwned { .. }
                | Refusal::Generation { .. }
                | Refusal::Fenced { .. }
                | Refusal::Leaving
                | Refusal::Layout { .. }
                | Refusal::Placing { .. }
                | Refusal::Moving
                | Refusal::Prepared { .. }
        )
    }

    /// What the caller should do.
    pub fn hint(&self) -> &'static str {
        match self {
            Refusal::NotOwned { .. } | Refusal::Generation { .. } | Refusal::Layout { .. } => {
                "refresh the catalog and route again"
            }
            Refusal::Fenced { .. }
            | Refusal::Leaving
            | Refusal::Placing { .. }
            | Refusal::Moving
            | Refusal::Prepared { .. } => "try again in a moment",
            Refusal::Conflict { .. } => "begin the transaction again",
            Refusal::NotRouted { .. } => {
                "write rows of other keys in statements of their own, with the key in the statement"
            }
            Refusal::KeyConflict { .. } => "use a fresh idempotency key for each distinct request",
            Refusal::KeyInvalid { .. } => "use a shorter key, such as a UUID",
            Refusal::StaleEpoch { .. } => "stop: a newer leader drives this move",
            Refusal::Gap { .. } => "apply the reference writes before it first",
            Refusal::MoveState { .. } => "read the move's state on this shard and go on from there",
        }
    }
}

/// A statement that failed. Nothing of its proposal took effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct SqlFailure {
    /// Which of the proposal's statements, from 0.
    pub statement: u32,
    /// SQLite's extended result code.
    pub sqlite_code: i32,
    /// The SQLSTATE.
    pub code: String,
    pub message: String,
    pub hint: Option<String>,
}

/// Bytes that are no proposal or outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposalError {
    #[error("format {found} is not known here (this build reads format {FORMAT}); run the same version on every node")]
    Format { found: u8 },
    #[error("the bytes are no valid entry: {0}")]
    Malformed(String),
}

impl Proposal {
    /// As it stands in the log.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// From the log.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProposalError> {
        decode(bytes)
    }

    /// Whether the bytes are a proposal of [`Action::Digest`], told without decoding long ones.
    pub fn is_digest(bytes: &[u8]) -> bool {
        /// Such a proposal has no payload.
        const BYTES_MAX: usize = 128;
        bytes.len() <= BYTES_MAX && Self::decode(bytes).is_ok_and(|proposal| proposal.action == Action::Digest)
    }
}

impl Outcome {
    /// What a repeated write gives when it was one to a reference table, which is none any more.
    pub(crate) fn of_a_write(self) -> Self {
        match self {
            Outcome::Reference { results, .. } => Outcome::Replayed { results, rows_kept: true },
            other => other,
        }
    }

    /// As it is handed to the proposer.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// From what [`Store::apply`](crate::Store::apply) gave.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProposalError> {
        decode(bytes)
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Serialising into a Vec fails only for types that no proposal holds (sequences of unknown length).
    postcard::to_extend(value, vec![FORMAT]).unwrap_or_default()
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ProposalError> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => {
            postcard::from_bytes(rest).map_err(|error| ProposalError::Malformed(error.to_string()))
        }
        Some((&found, _)) => Err(ProposalError::Format { found }),
        None => Err(ProposalError::Malformed("no bytes".to_owned())),
    }
}
