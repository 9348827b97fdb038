//! Shards: the databases that own partitions.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Generation, Millis, NodeId, ShardId};

/// A shard's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShardState {
    /// Its replicas are being started; nothing is routed to it yet.
    Creating,
    Active,
    /// A merge has given all that it owned to another shard. Nothing is routed to it any more, but it stays until what
    /// was begun on it by an older catalog has ended.
    Leaving,
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
    /// Which replica of the shard a node is to hold: a node that has one of a lower number destroys it and
    /// starts an empty one. Absent: 0, the first.
    pub numbers: BTreeMap<NodeId, u32>,
    /// Nodes whose replica serves nothing until it was rebuilt, because its content is not to be trusted.
    pub distrusted: BTreeSet<NodeId>,
    /// The replicas differ and no majority says which is right: how, for people.
    pub disagreement: Option<String>,
}

impl Shard {
    /// The number of the replica that `node` is to hold.
    pub fn number(&self, node: NodeId) -> u32 {
        self.numbers.get(&node).copied().unwrap_or(0)
    }
}
