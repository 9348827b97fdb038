//! Nodes: the processes of the cluster.

use serde::{Deserialize, Serialize};

use crate::{Millis, NodeId};

/// Whether a node takes part. Whether it is *alive* is not the catalog's business: it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    Active,
    Removed,
}

/// One Pleat process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    /// The name users see, such as `node-1`.
    pub name: String,
    /// `host:port` of HTTP and gRPC.
    pub address: String,
    pub state: NodeState,
    pub since: Millis,
    /// Which life of its directory takes part: a random number made with the directory. What an earlier
    /// life promised (votes, acknowledged entries) is gone with its disk.
    pub incarnation: u64,
    /// A newer life that asks to be admitted. Until it is, it starts nothing that votes or acknowledges.
    pub waiting: Option<u64>,
}
