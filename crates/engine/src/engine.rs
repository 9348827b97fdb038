//! The seam between Pleat and the kinds of database that a shard can be.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use pleat_cluster::PartitionId;

use crate::{Chunk, EngineError, MoveChunk, MoveRead, ReadRequest, ShardStats};

/// What kind of database a shard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    Sqlite,
}

/// One shard's database as its node speaks to it, whatever its kind: reading, the reading side of moves, and
/// measurements. All calls block; callers give them threads.
///
/// Writing is not here: an embedded shard is written through its log ([`Store::apply`](crate::Store::apply)), an
/// external server directly, and the two have nothing in common below the host that routes them.
pub trait Engine: Send + Sync {
    /// What kind it is.
    fn kind(&self) -> EngineKind;
    /// Runs one query in one snapshot and hands its rows over, a chunk at a time.
    fn read(&self, request: &ReadRequest, sink: &mut dyn FnMut(Chunk) -> ControlFlow<()>) -> Result<(), EngineError>;
    /// Answers the mover.
    fn move_read(&self, request: &MoveRead) -> Result<MoveChunk, EngineError>;
    /// Rows and sizes.
    fn stats(&self) -> Result<ShardStats, EngineError>;
    /// Rows and bytes of each partition that the shard owns.
    fn partition_weights(&self) -> Result<BTreeMap<PartitionId, (u64, u64)>, EngineError>;
}
