//! What arrives from other nodes: votes, entries, and snapshots.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::StreamExt;
use openraft::Snapshot;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use pleat_cluster::planted::{self, Bug};

use crate::codec;
use crate::consensus::Consensus;
use crate::group::Group;
use crate::network::{AppendAnswer, Header, METHOD_APPEND, METHOD_VOTE, SnapshotHeader, Temporary, acknowledged};
use crate::runtime;
use crate::transport::{ServiceError, SnapshotChunks};
use crate::types::{Position, SnapshotFile, Types};

impl Consensus {
    /// Serves a Raft message of another node ([`METHOD_VOTE`], [`METHOD_APPEND`]).
    pub async fn handle(&self, method: &str, body: Bytes) -> Result<Bytes, ServiceError> {
        let (group, rest) = self.open_message(&body)?;
        match method {
            METHOD_VOTE if group.knows_nothing() => Err(ServiceError::new(
                "joining",
                format!("the replica of group {} is empty and does not vote", group.id()),
            )),
            METHOD_VOTE => {
                let request: VoteRequest<u64> = codec::decode("a request for a vote", rest).map_err(bad_message)?;
                let answer = group.raft().vote(request).await.map_err(stopped)?;
                Ok(codec::encode(&answer).into())
            }
            METHOD_APPEND => {
                let request: AppendEntriesRequest<Types> =
                    codec::decode("a message with log entries", rest).map_err(bad_message)?;
                Ok(codec::encode(&self.append(&group, request, rest.len() as u64).await?).into())
            }
            _ => Err(ServiceError::new("unknown_method", format!("there is no Raft method '{method}'"))),
        }
    }

    /// Without room, entries are left out: what remains is a heartbeat, and the node follows and reads on.
    async fn append(
        &self,
        group: &Group,
        mut request: AppendEntriesRequest<Types>,
        bytes: u64,
    ) -> Result<AppendAnswer, ServiceError> {
        let disk = &self.links.config.disk;
        let left_out = !request.entries.is_empty() && !disk.takes(bytes);
        if left_out {
            request.entries.clear();
        }
        group.heard();
        let acknowledged = acknowledged(&request);
        let response = group.raft().append_entries(request).await.map_err(stopped)?;
        let refused = matches!(response, AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_));
        if !refused && !planted::is(Bug::UnsyncedAnswered) {
            group.unflushed().wait(acknowledged).await.map_err(stopped)?;
        }
        Ok(AppendAnswer { response, room: disk.has_room(), left_out })
    }

    /// Serves a snapshot of another node: writes it to a file, makes that durable, and installs it.
    ///
    /// The stream may end early or stall; then nothing was installed, and nothing is left behind.
    pub async fn handle_snapshot(&self, header: Bytes, chunks: SnapshotChunks) -> Result<Bytes, ServiceError> {
        let (group, rest) = self.open_message(&header)?;
        let header: SnapshotHeader = codec::decode("the header of a snapshot", rest).map_err(bad_message)?;
        let position = Position::decode(&header.applied).map_err(bad_message)?;
        let current = group.raft().metrics().borrow().vote;
        if current > header.vote {
            // The sender is no longer the leader: it needn't send the rest.
            return Ok(codec::encode(&current).into());
        }
        // The sender has its file ready, so waiting for a turn is cheaper than refusing.
        let turn = tokio::time::timeout(self.links.config.snapshot_idle_max, self.receiving.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            let busy = "this node is receiving as many snapshots as it may: try again later";
            return Err(ServiceError::new("busy", busy));
        };
        // Once as it arrives, and once as it is installed.
        if self.links.config.disk.spare() < header.bytes.saturating_mul(2) {
            let full =
                format!("there is no room for a snapshot of {} bytes on {}", header.bytes, self.links.config.node);
            return Err(ServiceError::new("disk_full", full));
        }
        let number = self.links.files.fetch_add(1, Ordering::Relaxed);
        let dir = self.links.snapshot_dir();
        let partial = Temporary(dir.join(format!("incoming-{}-{number}.partial", group.id())));
        let complete = Temporary(dir.join(format!("incoming-{}-{number}", group.id())));
        let failed =
            |error: io::Error| ServiceError::new("snapshot", format!("the snapshot was not received: {error}"));
        self.write_chunks(&partial.0, chunks, header.bytes).await.map_err(failed)?;
        publish(&partial.0, &complete.0).await.map_err(failed)?;
        tracing::info!(group = group.id(), bytes = header.bytes, index = header.applied.index, "received a snapshot");
        let index = header.applied.index;
        let file = SnapshotFile(Some((complete.0.clone(), header.applied)));
        let snapshot = Snapshot { meta: position.meta(), snapshot: Box::new(file) };
        let answer = group.raft().install_full_snapshot(header.vote, snapshot).await.map_err(stopped)?;
        // It is not installed when what it has is committed here; but that may not be durable here yet, and the sender counts it.
        group.unflushed().wait(Some(index)).await.map_err(stopped)?;
        Ok(codec::encode(&answer.vote).into())
    }

    /// Checks whom a message is for; gives the group and the rest of the message.
    fn open_message<'a>(&self, body: &'a [u8]) -> Result<(Group, &'a [u8]), ServiceError> {
        let (header, rest): (Header, _) = codec::decode_first("a message's header", body).map_err(bad_message)?;
        self.check_sender(&header.cluster_id, header.from)?;
        let group = self.group(header.group).ok_or_else(|| {
            ServiceError::new("no_group", format!("group {} does not run on {}", header.group, self.links.config.node))
        })?;
        Ok((group, rest))
    }

    /// Refuses what comes from another cluster, or from a node that claims to be this one.
    pub(crate) fn check_sender(&self, cluster_id: &str, from: pleat_cluster::NodeId) -> Result<(), ServiceError> {
        let config = &self.links.config;
        if cluster_id != config.cluster_id {
            return Err(ServiceError::new(
                "foreign_cluster",
                format!(
                    "{} belongs to cluster '{}', the request came from cluster '{cluster_id}': check the addresses",
                    config.node, config.cluster_id
                ),
            ));
        }
        if from == config.node {
            return Err(ServiceError::new(
                "same_node",
                format!("another process claims to be {from} too: every node needs an id of its own"),
            ));
        }
        Ok(())
    }

    async fn write_chunks(&self, path: &Path, mut chunks: SnapshotChunks, expected: u64) -> io::Result<()> {
        let idle = self.links.config.snapshot_idle_max;
        let mut file = std::fs::File::create(path)?;
        let mut received = 0u64;
        loop {
            let stalled = |_| io::Error::new(io::ErrorKind::TimedOut, format!("nothing came for {idle:?}"));
            let Some(chunk) = tokio::time::timeout(idle, chunks.next()).await.map_err(stalled)? else { break };
            let chunk = chunk?;
            received += chunk.len() as u64;
            if received > expected {
                return Err(io::Error::other(format!("more than the announced {expected} bytes came")));
            }
            let (back, written) = runtime::blocking(move || {
                let written = file.write_all(&chunk);
                (file, written)
            })
            .await?;
            written?;
            file = back;
        }
        if received != expected {
            return Err(io::Error::other(format!("it ended after {received} of {expected} bytes")));
        }
        runtime::blocking(move || file.sync_all()).await?
    }
}

/// Gives a file its final name, durably.
async fn publish(partial: &Path, complete: &Path) -> io::Result<()> {
    let (partial, complete) = (partial.to_owned(), complete.to_owned());
    runtime::blocking(move || {
        std::fs::rename(&partial, &complete)?;
        match complete.parent() {
            Some(dir) => std::fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    })
    .await?
}

fn bad_message(error: io::Error) -> ServiceError {
    ServiceError::new("bad_message", error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> ServiceError {
    ServiceError::new("stopped", format!("the group has stopped on this node: {error}"))
}
