//! A move, as the shards take part in it: the words between the mover and the two shards.
//!
//! The mover drives; shards do only what a logged [`MoveStep`] says, and answer [`MoveRead`]s.
//!
//! ```text
//! source: Claim -> CaptureStart -> (copy, deltas, verify) -> Fence -> (last delta) -> Release -> CleanUp… -> CleanUpDone
//!                                                        Unfence <-'
//! or, of a shard that goes:                              … -> Close -> (last delta) -> Release, and nothing after it
//! target: Claim -> ImportStart -> Import… -> Activate
//! abort:  source Abort;  target ImportAbort -> CleanUp… -> CleanUpDone
//! ```
//!
//! Between `CaptureStart` and `Release` the source writes down the primary key of each row of the moving
//! partitions that changes, in the transaction that changes it. A delta is those rows *read again*, so that
//! applying deltas twice, or out of step with the copy, always ends at the source's present content once
//! nothing new is captured. The position up to which the target has them is stored at the target, in the
//! transaction that applies them.
//!
//! # A table gets another placement
//!
//! The same words serve a table whose rows are put on shards by another rule, and then every shard takes part in both
//! roles: it captures changes to its own rows, and takes in others' ([`TablePlace`]).
//!
//! ```text
//! Claim -> PlaceStart -> (copy, deltas, verify), Import… -> PlaceFence -> (last delta) -> PlaceSwitch -> PlaceOpen
//!                                                     PlaceUnfence <-'                   -> CleanUp… -> CleanUpDone
//! abort: PlaceAbort -> CleanUp… -> CleanUpDone
//! ```
//!
//! Each step carries the epoch of the leader that sends it; a shard that has seen a newer one refuses.

use std::collections::BTreeMap;

use pleat_cluster::{CommitNumber, Generation, PartitionId, ShardId, Table, Value};
use serde::{Deserialize, Serialize};

#[cfg(doc)]
use crate::TxnsSeen;
use crate::{ContentDigest, ReferenceEntry, Rows};

/// A step of a move, as it stands in a shard's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoveStep {
    /// The operation that moves.
    pub operation: u64,
    /// The control leader's term.
    pub epoch: u64,
    pub action: MoveAction,
}

/// What a step does. Repeating one that has taken effect succeeds and does nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MoveAction {
    /// Make this epoch the newest, so that older leaders' steps are refused from here on.
    Claim,
    /// Source: write down the changes to these units from here on.
    CaptureStart { partitions: Vec<PartitionId> },
    /// Source: refuse reads and writes of the moving units from here on.
    Fence,
    /// Source that gives all that it owns, and goes: refuse whatever clients ask, reads of reference tables included.
    Close,
    /// Source: open the gates again; capturing goes on.
    Unfence,
    /// Source: the units belong to another shard now. The rows become leftovers.
    Release { ownership: Generation },
    /// Source before `Release`: forget the move, open the gates, capture no more.
    Abort,
    /// Target: rows of these units will arrive.
    ImportStart { partitions: Vec<PartitionId> },
    /// Target: rows and deletions, and how far they bring it.
    Import {
        changes: Vec<TableChanges>,
        idempotency: Vec<IdempotencyRow>,
        /// Stored when given: the deltas up to here are in.
        position: Option<Position>,
        /// Whether the rows are a part of the copy. They may come in any order and more than once, but not after a delta.
        copied: bool,
    },
    /// Target: the copies of the reference tables are as of this number of the reference log.
    ReferenceLoaded { seq: u64 },
    /// Target: the units belong to this shard from here on.
    Activate { ownership: Generation },
    /// Target before `Activate`: what was imported will be cleaned up.
    ImportAbort,
    /// Rows of a table will come and go, because it gets another placement.
    PlaceStart { place: Box<TablePlace> },
    /// Refuse writes to the table from here on. Reads go on.
    PlaceFence,
    /// Accept writes to the table again; capturing goes on.
    PlaceUnfence,
    /// The table has its new placement here, and this is the layout of the catalog that says so: statements that were
    /// planned under another one are refused from here on. Writes to the table still are, too.
    PlaceSwitch { layout: Generation },
    /// Every shard has switched: accept writes to the table.
    PlaceOpen,
    /// Before `PlaceSwitch`: accept writes and capture no more; what was imported will be cleaned up.
    PlaceAbort,
    /// Delete these rows (by primary key) where they belong to the move's units and not to this shard.
    CleanUp { table: String, keys: Vec<Vec<Value>> },
    /// Nothing of the units is left: the shard holds no foreign rows of this move any more.
    CleanUpDone,
}

impl MoveAction {
    /// What it is, in a word.
    pub fn name(&self) -> &'static str {
        match self {
            MoveAction::Claim => "Claim",
            MoveAction::CaptureStart { .. } => "CaptureStart",
            MoveAction::Fence => "Fence",
            MoveAction::Close => "Close",
            MoveAction::Unfence => "Unfence",
            MoveAction::Release { .. } => "Release",
            MoveAction::Abort => "Abort",
            MoveAction::ImportStart { .. } => "ImportStart",
            MoveAction::Import { .. } => "Import",
            MoveAction::ReferenceLoaded { .. } => "ReferenceLoaded",
            MoveAction::Activate { .. } => "Activate",
            MoveAction::ImportAbort => "ImportAbort",
            MoveAction::PlaceStart { .. } => "PlaceStart",
            MoveAction::PlaceFence => "PlaceFence",
            MoveAction::PlaceUnfence => "PlaceUnfence",
            MoveAction::PlaceSwitch { .. } => "PlaceSwitch",
            MoveAction::PlaceOpen => "PlaceOpen",
            MoveAction::PlaceAbort => "PlaceAbort",
            MoveAction::CleanUp { .. } => "CleanUp",
            MoveAction::CleanUpDone => "CleanUpDone",
        }
    }
}

/// A table that gets another placement, as one shard sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TablePlace {
    /// The table as it is afterwards.
    pub table: Table,
    /// Which of the rows that are here belong here until the switch: the others have been brought.
    pub before: Holding,
    /// Which do from then on: the others are leftovers.
    pub after: Holding,
    /// Whether a row is told apart by its primary key on its way, because rowids are not the same on all shards.
    /// Otherwise as ever: see `TableSpec::identity`.
    pub by_primary_key: bool,
    /// Whether rows go from here to other shards, so that changes are captured.
    pub captures: bool,
    /// Whether the table is, or is to be, a reference table: then no write to any of these is accepted while this one
    /// takes none, because such writes are repeated on every shard, and must find the same rows there.
    pub reference: bool,
    /// Give the rows the rowids 1, 2, … in the order of their primary keys with the switch: the copies of a reference
    /// table are alike down to these.
    pub renumber: bool,
}

/// Which of a table's rows on a shard are its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holding {
    All,
    None,
    /// Those whose key, in this column, is of a partition that the shard owns.
    Key(String),
}

/// Rows of one table on their way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TableChanges {
    pub table: String,
    /// The columns of `rows`: all but generated ones. A leading `rowid` where the rowid is the row's identity.
    pub columns: Vec<String>,
    pub rows: Rows,
    /// Primary keys of rows that are not there any more.
    pub deletes: Vec<Vec<Value>>,
    /// The AUTOINCREMENT counter, where the table has one that goes along.
    pub sequence: Option<i64>,
}

/// A remembered write on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyRow {
    pub key: String,
    pub units: Vec<PartitionId>,
    pub fingerprint: u64,
    pub expires_ms: u64,
    pub outcome: Vec<u8>,
}

/// How far deltas have been taken: the last captured change of each table, and the last idempotency key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub capture: BTreeMap<String, i64>,
    pub idempotency: i64,
    /// Which transactions over several shards the rows show, as [`TxnsSeen::together`] says it: a read of the target and of
    /// another participant must not show half of one, although the shard that took part in it is not asked.
    pub together: Vec<(ShardId, CommitNumber)>,
}

impl Position {
    /// Whether no row and no key lies between the two.
    pub fn is_as_far_as(&self, other: &Position) -> bool {
        self.capture == other.capture && self.idempotency == other.idempotency
    }
}

/// Where a move stands on a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MovePhase {
    /// Known by its epoch only.
    Claimed,
    /// Source: changes are captured.
    Capturing,
    /// Source: captured, and the gates are closed.
    Fenced,
    /// Source after the hand-over: leftovers are being deleted.
    Leftovers,
    /// Target: rows arrive.
    Importing,
    /// Target after an abort: what arrived is being deleted.
    Discarding,
    /// A table's rows are captured, and others' arrive.
    Placing,
    /// The same, and the table takes no writes.
    PlacingFenced,
    /// The table has its new placement, and takes no writes yet.
    Placed,
    /// Source that goes: captured, and it answers no client.
    Closing,
    /// The same after the hand-over. It is never opened again.
    Closed,
    /// Nothing to do any more on this shard.
    Ended,
}

/// A move as one shard knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoveState {
    pub operation: u64,
    /// The newest seen.
    pub epoch: u64,
    pub phase: MovePhase,
    pub partitions: Vec<PartitionId>,
    /// Target: stored with the imported rows.
    pub position: Position,
    /// The table, when that is what moves.
    pub place: Option<Box<TablePlace>>,
}

/// A question of the mover. Asked of the leader, after a read barrier unless it is about an open snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MoveRead {
    /// -> [`MoveChunk::State`].
    State { operation: u64 },
    /// Source: a snapshot to copy from, taken after `CaptureStart`. -> [`MoveChunk::Opened`].
    CopyOpen { operation: u64 },
    /// The reference tables and the number of the reference log that they stand at. -> [`MoveChunk::Opened`].
    ReferenceOpen,
    /// The next rows of `table` in the snapshot. -> [`MoveChunk::Rows`].
    CopyNext { snapshot: u64, table: String, after: Option<Vec<Value>>, rows_max: usize, bytes_max: usize },
    /// Close a snapshot. -> [`MoveChunk::Closed`], also when it was gone.
    Close { snapshot: u64 },
    /// Source: the rows that changed after `after`, as they are now. -> [`MoveChunk::Delta`].
    Delta { operation: u64, after: Position, rows_max: usize, bytes_max: usize },
    /// Source: in one snapshot, all changes after `after` and the digests. -> [`MoveChunk::Verified`], or
    /// [`DeltaTooLarge`](crate::EngineError::DeltaTooLarge).
    Verify { operation: u64, after: Position },
    /// The digests of the moving units here, source or target. -> [`MoveChunk::Digest`].
    Digest { operation: u64 },
    /// The digests of the reference tables here. -> [`MoveChunk::Digest`].
    ReferenceDigest,
    /// Keys of rows to clean up. -> [`MoveChunk::Keys`].
    CleanUpNext { operation: u64, table: String, after: Option<Vec<Value>>, limit: usize },
    /// Entries of the reference log after a number, at most `limit`, and no more than fit in one answer (but one at
    /// least, unless `limit` is 0). -> [`MoveChunk::ReferenceLog`].
    ReferenceLog { after: u64, limit: usize },
}

/// The answer to a [`MoveRead`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MoveChunk {
    State(Option<MoveState>),
    /// `tables` are those to copy, in order. `reference_seq` is the last reference write in the snapshot.
    Opened {
        snapshot: u64,
        tables: Vec<String>,
        reference_seq: u64,
    },
    /// `next` is what to pass as `after`; `None` when the table is done.
    Rows {
        changes: TableChanges,
        next: Option<Vec<Value>>,
    },
    Delta(Changes),
    Verified {
        remaining: Changes,
        digest: ContentDigest,
    },
    Digest(ContentDigest),
    Keys {
        keys: Vec<Vec<Value>>,
        next: Option<Vec<Value>>,
    },
    ReferenceLog {
        entries: Vec<ReferenceEntry>,
        last: u64,
    },
    Closed,
}

/// A delta.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    pub tables: Vec<TableChanges>,
    pub idempotency: Vec<IdempotencyRow>,
    /// To be stored with them.
    pub position: Position,
    /// Whether more was captured than fitted in.
    pub more: bool,
}

impl Changes {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.idempotency.is_empty() && self.tables.iter().all(|table| table.rows.is_empty() && table.deletes.is_empty())
    }
}
