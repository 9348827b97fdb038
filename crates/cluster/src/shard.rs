//! Shards: the databases that own partitions.

use core::net::SocketAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Generation, Millis, NodeId, Pair, ShardId};

/// The user and the database of every server that Pleat makes.
pub const SERVER_NAME: &str = "pleat";

/// What a shard's data is kept in. All shards of a cluster are of one engine: a cluster of two could neither join nor finish a
/// query by one database's rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// SQLite, replicated by Raft inside Pleat.
    #[default]
    Sqlite,
    /// A PostgreSQL server, which a node supervises.
    Postgres,
}

impl Engine {
    /// `sqlite` or `postgres`.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Sqlite => "sqlite",
            Engine::Postgres => "postgres",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sqlite" => Ok(Engine::Sqlite),
            "postgres" => Ok(Engine::Postgres),
            other => Err(format!("'{other}' is neither sqlite nor postgres")),
        }
    }
}

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
    /// The nodes that hold a replica. The first one starts the group. Of a shard that is a server: the node that supervises it, and behind it
    /// that of its standby, if it is to have one.
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
    /// Where the shard's server listens, if it is one and has been started: the primary, if there are two.
    pub server: Option<SocketAddr>,
    pub pair: Pair,
}

impl Shard {
    /// The number of the replica that `node` is to hold.
    pub fn number(&self, node: NodeId) -> u32 {
        self.numbers.get(&node).copied().unwrap_or(0)
    }
}
