//! openraft's view of the network: one small client for each follower of each group, all over one [`Transport`].
//!
//! Every message carries the cluster, the sender and the group, whatever the transport: a node that was moved to
//! another cluster with its old address must be refused, not believed.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use openraft::error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{OptionalSend, Snapshot};
use parking_lot::Mutex;
use pleat_cluster::NodeId;
use pleat_cluster::planted::{self, Bug};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::codec;
use crate::config::Config;
use crate::log::Unflushed;
use crate::machine::Machine;
use crate::runtime;
use crate::transport::{SnapshotChunks, Transport, TransportError};
use crate::types::{Applied, GroupId, Position, Types, Vote};

/// The [`Transport`] method of a request for a vote.
pub const METHOD_VOTE: &str = "raft.vote";
/// The [`Transport`] method that replicates log entries.
pub const METHOD_APPEND: &str = "raft.append";

/// How long a heartbeat or a request for a vote may take.
const SHORT_CALL: Duration = Duration::from_millis(500);
/// How long replicating entries may take, the follower's fsync included.
const APPEND_CALL: Duration = Duration::from_secs(2);
/// Pause after a snapshot that did not arrive: making one copies a whole database.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(2);
/// How long a follower that can't be reached is left alone.
const BACKOFF: Duration = Duration::from_millis(200);

/// Whom a message is for and from.
#[derive(Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) cluster_id: String,
    pub(crate) from: NodeId,
    pub(crate) group: GroupId,
}

/// What precedes the bytes of a snapshot, behind the [`Header`].
#[derive(Serialize, Deserialize)]
pub(crate) struct SnapshotHeader {
    pub(crate) vote: Vote,
    pub(crate) applied: Applied,
    pub(crate) bytes: u64,
}

/// What all groups of a node share to reach others.
pub(crate) struct Links {
    pub(crate) config: Arc<Config>,
    pub(crate) transport: Arc<dyn Transport>,
    /// Snapshots that are made and sent at once.
    pub(crate) sending: Semaphore,
    /// Numbers the files.
    pub(crate) files: AtomicU64,
    /// What the others said last about the room on their disks, and when.
    pub(crate) rooms: Mutex<BTreeMap<u64, (Instant, bool)>>,
}

/// What is known of another node's disk is believed for so long: it says so with each answer.
const ROOM_BELIEVED: Duration = Duration::from_secs(2);

/// The answer to a message with log entries.
#[derive(Serialize, Deserialize)]
pub(crate) struct AppendAnswer {
    pub(crate) response: AppendEntriesResponse<u64>,
    /// Whether the follower has room on its disk.
    pub(crate) room: bool,
    /// Whether the entries were left out for want of room, and the rest answered.
    pub(crate) left_out: bool,
}

impl Links {
    pub(crate) fn snapshot_dir(&self) -> PathBuf {
        self.config.dir.join("snapshots")
    }

    fn told(&self, node: u64, room: bool) {
        self.rooms.lock().insert(node, (Instant::now(), room));
    }

    fn said(&self, node: u64) -> Option<bool> {
        if node == self.config.node.0 {
            return Some(self.config.disk.has_room());
        }
        self.rooms.lock().get(&node).filter(|(at, _)| at.elapsed() < ROOM_BELIEVED).map(|(_, room)| *room)
    }

    /// Whether a node is known to have no room.
    pub(crate) fn is_full(&self, node: u64) -> bool {
        self.said(node) == Some(false)
    }

    /// Whether a node is known to have room.
    pub(crate) fn has_room(&self, node: u64) -> bool {
        self.said(node) == Some(true)
    }

    /// Whether any node, this one included, is known to have no room.
    pub(crate) fn is_anybody_full(&self) -> bool {
        !self.config.disk.has_room() || self.rooms.lock().values().any(|(_, room)| !room)
    }
}

/// Makes a [`Peer`] for each follower of a group.
pub(crate) struct Peers {
    pub(crate) group: GroupId,
    pub(crate) links: Arc<Links>,
    pub(crate) machine: Machine,
    pub(crate) unflushed: Unflushed,
}

/// One follower of one group.
pub(crate) struct Peer {
    group: GroupId,
    target: u64,
    links: Arc<Links>,
    machine: Machine,
    unflushed: Unflushed,
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &()) -> Peer {
        let (links, machine, unflushed) = (self.links.clone(), self.machine.clone(), self.unflushed.clone());
        Peer { group: self.group, target, links, machine, unflushed }
    }
}

type CallError = RPCError<u64, (), RaftError<u64>>;

/// openraft then leaves the other node alone for a moment.
fn unreachable(error: &(impl std::error::Error + 'static)) -> CallError {
    RPCError::Unreachable(Unreachable::new(error))
}

/// The last index that a good answer acknowledges.
pub(crate) fn acknowledged(request: &AppendEntriesRequest<Types>) -> Option<u64> {
    let last = request.entries.last().map(|entry| entry.log_id);
    last.or(request.prev_log_id).map(|last| last.index)
}

impl Peer {
    fn header(&self) -> Vec<u8> {
        let config = &self.links.config;
        codec::encode(&Header { cluster_id: config.cluster_id.clone(), from: config.node, group: self.group })
    }

    async fn call<Q: Serialize, A: serde::de::DeserializeOwned>(
        &self,
        method: &str,
        request: &Q,
        deadline: Duration,
    ) -> Result<A, CallError> {
        let body = Bytes::from(codec::append(request, self.header()));
        let call = self.links.transport.call(NodeId(self.target), method, body, deadline);
        // A transport that ignores its deadline must not stop replication.
        let answer = match tokio::time::timeout(deadline, call).await {
            Ok(answer) => answer,
            Err(_) => Err(TransportError::Lost(format!("no answer within {deadline:?}"))),
        };
        // Whatever went wrong, openraft shall leave the node alone for a moment instead of trying again at once.
        let answer = answer.map_err(|error| unreachable(&error))?;
        codec::decode("a node's answer", &answer).map_err(|error| unreachable(&error))
    }

    /// Makes the snapshot's file, sends it, and removes it.
    async fn send_snapshot(&self, vote: Vote) -> anyhow::Result<SnapshotResponse<u64>> {
        let links = &self.links;
        let _turn = links.sending.acquire().await?;
        let job = self.machine.snapshot().await?;
        let number = links.files.fetch_add(1, Ordering::Relaxed);
        let file = Temporary(links.snapshot_dir().join(format!("outgoing-{}-{number}", self.group)));
        let path = file.0.clone();
        let (applied, source) = runtime::blocking(move || -> anyhow::Result<_> {
            let applied = job(&path)?;
            Ok((applied, std::fs::File::open(&path)?))
        })
        .await??;
        let applied = if planted::is(Bug::SnapshotShort) { one_further(&applied)? } else { applied };
        let bytes = source.metadata()?.len();
        tracing::info!(group = self.group, to = self.target, bytes, index = applied.index, "sending a snapshot");
        let header = codec::append(&SnapshotHeader { vote, applied, bytes }, self.header());
        let chunks = chunks(source, links.config.snapshot_chunk_bytes);
        let target = NodeId(self.target);
        let sent = links.transport.send_snapshot(target, header.into(), chunks, links.config.snapshot_send_max).await?;
        Ok(SnapshotResponse::new(codec::decode("the answer to a snapshot", &sent)?))
    }
}

/// What no snapshot may say: see [`Bug::SnapshotShort`].
fn one_further(applied: &Applied) -> io::Result<Applied> {
    let mut position = Position::decode(applied)?;
    position.last.iter_mut().for_each(|last| last.index += 1);
    Ok(position.encode())
}

/// Removes a file at the end of its use, however that comes.
pub(crate) struct Temporary(pub(crate) PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            // The state machine may have moved it away.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("can't remove {}: {error}", self.0.display());
            }
            _ => {}
        }
    }
}

/// The file's bytes, read as they are wanted.
fn chunks(file: std::fs::File, chunk_bytes: usize) -> SnapshotChunks {
    let next = move |file: std::fs::File| async move {
        let read = runtime::blocking(move || {
            let mut file = file;
            let mut chunk = Vec::with_capacity(chunk_bytes);
            let read = (&mut file).take(chunk_bytes as u64).read_to_end(&mut chunk);
            (file, read.map(|_| Bytes::from(chunk)))
        })
        .await;
        match read {
            Ok((_, Ok(chunk))) if chunk.is_empty() => Ok(None),
            Ok((file, Ok(chunk))) => Ok(Some((chunk, file))),
            Ok((_, Err(error))) | Err(error) => Err(error),
        }
    };
    futures::stream::try_unfold(file, next).boxed()
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError> {
        if self.unflushed.hangs() {
            return Err(unreachable(&io::Error::other("this node's log hangs: another should lead")));
        }
        if !planted::is(Bug::UnsyncedTold) {
            let committed = request.leader_commit.map(|last| last.index);
            self.unflushed.wait(committed).await.map_err(|error| unreachable(&error))?;
        }
        let deadline = if request.entries.is_empty() { SHORT_CALL } else { APPEND_CALL };
        let answer: AppendAnswer = self.call(METHOD_APPEND, &request, deadline).await?;
        self.links.told(self.target, answer.room);
        match answer.response {
            AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_) if answer.left_out => {
                Err(unreachable(&io::Error::other(format!("{} has no room on its disk", NodeId(self.target)))))
            }
            refused @ (AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_)) => Ok(refused),
            good => {
                if !planted::is(Bug::UnsyncedCounted) {
                    self.unflushed.wait(acknowledged(&request)).await.map_err(|error| unreachable(&error))?;
                }
                Ok(good)
            }
        }
    }

    async fn vote(&mut self, request: VoteRequest<u64>, _option: RPCOption) -> Result<VoteResponse<u64>, CallError> {
        self.call(METHOD_VOTE, &request, SHORT_CALL).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        _promise: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Types, Fatal<u64>>> {
        let send = async {
            let sent = self.send_snapshot(vote).await;
            if let Err(error) = &sent {
                tracing::warn!(group = self.group, to = self.target, "sending a snapshot failed: {error:#}");
                tokio::time::sleep(SNAPSHOT_PAUSE).await;
            }
            sent
        };
        let sent = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            sent = send => sent,
        };
        // Not a storage error, which would stop the leader: a full disk here only means that the follower waits.
        sent.map_err(|error| {
            let error = io::Error::other(format!("{error:#}"));
            StreamingError::Unreachable(Unreachable::new(&error))
        })
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}
