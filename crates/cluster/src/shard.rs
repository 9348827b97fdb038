//! Shards: the databases that own partitions.

use serde::{Deserialize, Serialize};

use crate::{Generation, Millis, NodeId, ShardId};

/// A shard's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShardState {
    /// Its replicas are being started; nothing is routed to it yet.
    Creating,
    Active,
    /// It owns nothing any more and its replicas are gone or going.
    Removed,
}

/// One shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    pub id: ShardId,
    pub state: ShardState,
    /// The nodes that hold a replica. The first one starts the group.
    pub replicas: Vec<NodeId>,
    /// The generation at which the set of partitions that it owns last changed. A shard keeps the same
    /// number beside its data, so that a scatter read whose router thinks otherwise is refused.
    pub ownership: Generation,
    pub since: Millis,
}
