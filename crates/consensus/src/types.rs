//! The types that fill openraft in, and the ones that the rest of Pleat sees instead.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec;
use crate::runtime::Runtime;

/// Which group: 0 is the control group, N the group of shard N.
pub type GroupId = u64;

/// A committed log entry, as a state machine gets it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its position in the log. The first entry of a group has index 0.
    pub index: u64,
    /// The term of the leader that proposed it.
    pub term: u64,
    /// What was proposed, in order. Empty for a new leader's blank entry and for membership changes.
    pub proposals: Vec<Bytes>,
}

/// How far a state machine is, and who was a member of the group there. Opaque: the state machine stores it
/// atomically with the effects and hands it back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The index of the last applied entry. 0 also when none is.
    pub index: u64,
    /// The encoded position and membership. Empty when nothing is applied.
    pub bytes: Vec<u8>,
}

openraft::declare_raft_types!(
    /// openraft's parameters.
    pub(crate) Types:
        D = Payload,
        R = Outcomes,
        NodeId = u64,
        Node = (),
        SnapshotData = SnapshotFile,
        AsyncRuntime = Runtime,
);

pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type LogEntry = openraft::Entry<Types>;
pub(crate) type Membership = openraft::StoredMembership<u64, ()>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, ()>;
pub(crate) type StorageError = openraft::StorageError<u64>;
pub(crate) type Raft = openraft::Raft<Types>;

/// What one log entry carries: the proposals that travelled together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Payload {
    pub(crate) proposals: Vec<Proposal>,
    /// Set by this node's log when it takes the entry. openraft reports "not the leader" both for what it never
    /// took and for what it took and truncated; only the first is surely not proposed.
    #[serde(skip)]
    pub(crate) appended: Appended,
}

/// Whether the local log has seen the entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Appended(Arc<AtomicBool>);

impl Appended {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// One proposal's bytes.
#[derive(Clone)]
pub(crate) struct Proposal(pub(crate) Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Proposal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Proposal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Proposal;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a proposal's bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Proposal, E> {
                Ok(Proposal(Bytes::copy_from_slice(bytes)))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// What applying an entry gave: one outcome per proposal. It never leaves the node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcomes {
    #[serde(skip)]
    pub(crate) of_proposals: Vec<Bytes>,
}

/// A snapshot as openraft holds it: on the leader only a promise (the file is made when it is sent), on the
/// follower the received file and how far it goes.
#[derive(Debug, Default)]
pub(crate) struct SnapshotFile(pub(crate) Option<(std::path::PathBuf, Applied)>);

/// A position in a group's history: the last applied entry, and the membership there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) last: Option<LogId>,
    pub(crate) membership: Membership,
}

impl Position {
    pub(crate) fn encode(&self) -> Applied {
        match self.last {
            None => Applied::default(),
            Some(last) => Applied { index: last.index, bytes: codec::encode(&(&self.last, &self.membership)) },
        }
    }

    pub(crate) fn decode(applied: &Applied) -> std::io::Result<Self> {
        if applied.bytes.is_empty() {
            return Ok(Position::default());
        }
        let (last, membership) = codec::decode("the applied position of a state machine", &applied.bytes)?;
        Ok(Position { last, membership })
    }

    /// The snapshot description of this position. The id only has to differ between positions.
    pub(crate) fn meta(&self) -> SnapshotMeta {
        let snapshot_id = self.last.map_or_else(|| "empty".to_owned(), |last| last.to_string());
        SnapshotMeta { last_log_id: self.last, last_membership: self.membership.clone(), snapshot_id }
    }
}
