//! What nodes ask each other, beside Raft. One method for calls and one for streams; the request says the rest.

use std::collections::BTreeMap;

use bytes::Bytes;
use pleat_cluster::{Generation, NodeId, OperationId, PartitionId, Planned, ShardId, TxnId, Value};
use pleat_consensus::GroupId;
use pleat_engine::{
    Action, ContentDigest, MoveChunk, MoveRead, Outcome, PreparedTxn, ReadRequest, StatementResult, TxnsSeen,
};
use serde::{Deserialize, Serialize};

use crate::incarnation::Standing;
use crate::members::{GroupView, MemberChange};
use crate::observe::{NodeObservation, PartitionWeight};
use crate::progress::Progress;
use crate::verify::NodeReplicas;
use crate::{Freshness, HostError, TxnHandle, TxnStep};

/// The transport's method for calls.
pub const CALL: &str = "host.call";
/// The transport's method for streams of rows.
pub const READ: &str = "host.read";
const FORMAT: u8 = 8;

/// A call to another node, with the time that the caller has for it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    pub within_ms: u64,
    pub request: Request,
}

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    Ping,
    /// A catalog command, in its envelope, for the control leader.
    Command(Vec<u8>),
    /// A position in the group's log up to which everything that was acknowledged before now is committed.
    ReadIndex(GroupId),
    /// Whether a majority follows the group's leader, be it busy or not.
    Quorum(GroupId),
    Write {
        shard: ShardId,
        planned: Planned,
        action: Action,
    },
    WriteReference {
        anchor: ShardId,
        planned: Planned,
        action: Action,
    },
    MoveRead {
        shard: ShardId,
        request: MoveRead,
    },
    Observe,
    Weights(ShardId),
    /// What the asking node is to the asked one.
    WhoAmI(NodeId),
    /// What the node tells of its replicas.
    Replicas,
    /// The digest of the node's replica at an entry.
    Digest {
        shard: ShardId,
        index: u64,
    },
    Members {
        group: GroupId,
        change: MemberChange,
    },
    /// What is prepared on a shard and not decided.
    InDoubt(ShardId),
    /// A step of an interactive transaction that gives no rows.
    Txn {
        at: TxnAt,
        shard: ShardId,
        planned: Planned,
        step: TxnStep,
    },
    /// An interactive transaction is at work elsewhere: its part on the shard is not idle.
    TouchTxn {
        txn: TxnId,
        shard: ShardId,
    },
    /// A read of few rows. A call costs far less than a stream.
    Read(Box<Read>),
    /// How far the operations are that the control leader carries out.
    Progress,
    /// How many statements of clients the node has served, by the shards that it leads.
    Served,
    /// Whether the node knows a generation, and nothing is under way on the shard's server that was planned before: see [`crate::gates`].
    Settled {
        shard: ShardId,
        generation: Generation,
        writes: bool,
    },
    /// Whether the node's server of a shard runs, as a primary or a standby.
    RunsServer(ShardId),
}

/// Which step of which interactive transaction.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct TxnAt {
    pub txn: TxnHandle,
    /// From 0: that one begins it.
    pub number: u64,
}

/// The answer to a [`Request`].
#[derive(Debug, Serialize, Deserialize)]
pub enum Response {
    Pong,
    Command(Vec<u8>),
    ReadIndex(u64),
    Quorum,
    Written(Written),
    Moved(MoveChunk),
    Observation(Box<NodeObservation>),
    Weights(BTreeMap<PartitionId, PartitionWeight>),
    Standing(Standing),
    Replicas(Box<NodeReplicas>),
    Digest(Option<ContentDigest>),
    Members(GroupView),
    InDoubt(Vec<PreparedTxn>),
    TxnWritten {
        results: Vec<StatementResult>,
        reference: Option<u64>,
    },
    TxnDone,
    /// All rows of a read.
    Rows(Vec<Piece>),
    /// They are not that few: they have to be streamed.
    ManyRows,
    Progress(BTreeMap<OperationId, Progress>),
    Served(BTreeMap<ShardId, u64>),
    /// How much is under way.
    Settled(u64),
    RunsServer(bool),
}

/// A read on another node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Read {
    pub within_ms: u64,
    pub shard: ShardId,
    pub request: ReadRequest,
    pub freshness: Freshness,
    /// In an interactive transaction, which has its freshness from its beginning.
    pub txn: Option<TxnAt>,
}

/// One piece of a stream of rows: a query's columns, or some of its rows.
#[derive(Debug, Serialize, Deserialize)]
pub enum Piece {
    /// Before everything else, when the read asked for it.
    Txns(TxnsSeen),
    Columns(Vec<String>),
    Rows(Vec<Vec<Value>>),
    /// There are no more. A stream that ends without it was cut off.
    End,
}

/// A write that its shard has decided on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Written {
    pub outcome: Outcome,
    /// The log position at which it is, or was, visible: what `read_your_writes` waits for.
    pub index: u64,
    /// An earlier attempt at it was lost and may still be decided: a refusal does not mean that nothing was or
    /// will be done. Known where it was asked for, so it does not travel.
    #[serde(skip)]
    pub uncertain: bool,
}

/// Why a node did not do what it was asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Declined {
    /// It does not lead the group; surely nothing was done.
    NotLeader {
        leader: Option<NodeId>,
    },
    Host(HostError),
}

impl From<HostError> for Declined {
    fn from(error: HostError) -> Self {
        Declined::Host(error)
    }
}

pub fn encode<T: Serialize>(value: &T) -> Result<Bytes, HostError> {
    // Most messages fit, and need not be copied as they grow.
    let mut bytes = Vec::with_capacity(512);
    bytes.push(FORMAT);
    match postcard::to_extend(value, bytes) {
        Ok(bytes) => Ok(bytes.into()),
        Err(error) => Err(HostError::Internal(format!("encode a message: {error}"))),
    }
}

pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, HostError> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => {
            postcard::from_bytes(rest).map_err(|error| HostError::Internal(format!("decode a message: {error}")))
        }
        _ => Err(HostError::Internal("a message of another version of Pleat; run one version on all nodes".into())),
    }
}
