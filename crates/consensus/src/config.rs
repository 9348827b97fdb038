//! What a node's consensus layer is told, with every limit it keeps.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use pleat_cluster::NodeId;

use crate::log::MemoryDisk;
use crate::room::Disk;

/// How a node takes part. [`Config::new`] has defaults for all limits.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node. It never changes for a directory.
    pub node: NodeId,
    /// The cluster. Messages and directories of another one are refused.
    pub cluster_id: String,
    /// What this node is built of, as far as all nodes must be built alike, since replicas compute for themselves. Messages of
    /// a node that says otherwise are refused. Empty: not compared.
    pub build: String,
    /// Where the log (`log/`) and arriving snapshots (`snapshots/`) live.
    pub dir: PathBuf,
    /// Where the log is kept.
    pub storage: Storage,
    /// The disk that it shares with the state machines.
    pub disk: Arc<Disk>,
    /// How often a leader lets its followers hear from it, in milliseconds. The real interval is up to 1.5 times this:
    /// openraft's clock ticks so.
    pub heartbeat_ms: u64,
    /// Election time-outs are drawn between these, in milliseconds. A follower stands for election when it has
    /// heard nothing for the upper bound plus its time-out.
    pub election_ms: (u64, u64),
    /// The largest proposal, in bytes.
    pub proposal_bytes_max: usize,
    /// Proposals that travel in one log entry: their bytes (a single larger one travels alone) ...
    pub payload_bytes_max: usize,
    /// ... and their number.
    pub payload_proposals_max: usize,
    /// Entries of a group that are proposed and not yet applied.
    pub payloads_in_flight_max: usize,
    /// An entry that is still not applied after this long no longer counts as in flight, and its proposals end as
    /// `Unknown`. (A leader that lost its majority would otherwise wait forever.)
    pub payload_wait_max: Duration,
    /// Proposals of a group that wait to be proposed: their number ...
    pub queue_proposals_max: usize,
    /// ... and their bytes.
    pub queue_bytes_max: usize,
    /// Readers of a group that wait for a quorum round.
    pub readers_waiting_max: usize,
    /// Entries in one message to a follower: their number ...
    pub append_entries_max: u64,
    /// ... and their bytes (a single larger one travels alone).
    pub append_bytes_max: usize,
    /// The largest message between nodes, in bytes, on both sides.
    pub message_bytes_max: usize,
    /// Bytes of a snapshot in one message.
    pub snapshot_chunk_bytes: usize,
    /// How long sending a whole snapshot may take.
    pub snapshot_send_max: Duration,
    /// A snapshot being received that brings nothing for this long is given up.
    pub snapshot_idle_max: Duration,
    /// A group's state machine makes a checkpoint after this many entries ...
    pub checkpoint_entries: u64,
    /// ... or this many bytes of proposals.
    pub checkpoint_bytes: u64,
    /// Entries kept in the log behind a checkpoint, so that a follower that was away for a moment needs no snapshot ...
    pub log_keep_entries: u64,
    /// ... but no more than these bytes.
    pub log_keep_bytes: u64,
    /// Bytes of recent entries that each group keeps in memory.
    pub log_cache_bytes: usize,
    /// Bytes that the log's writer makes durable with one fsync.
    pub flush_bytes_max: usize,
}

/// Where the log is kept.
#[derive(Clone, Debug)]
pub enum Storage {
    /// In files, durable.
    Disk,
    /// In memory, for simulations: it outlives the [`crate::Consensus`], as a disk outlives a process.
    Memory(Arc<MemoryDisk>),
}

const MIB: usize = 1024 * 1024;

impl Config {
    /// A node's configuration with the default limits.
    pub fn new(node: NodeId, cluster_id: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        Config {
            node,
            cluster_id: cluster_id.into(),
            build: String::new(),
            dir: dir.into(),
            storage: Storage::Disk,
            disk: Disk::unlimited(),
            // With these a majority that lost its leader has a new one after 1.1 to 1.6 s, one lost
            // election later after 2.3 s.
            heartbeat_ms: 100,
            election_ms: (350, 700),
            proposal_bytes_max: 8 * MIB,
            payload_bytes_max: MIB,
            payload_proposals_max: 1024,
            payloads_in_flight_max: 3,
            payload_wait_max: Duration::from_secs(10),
            queue_proposals_max: 4096,
            queue_bytes_max: 64 * MIB,
            readers_waiting_max: 16_384,
            append_entries_max: 256,
            append_bytes_max: 2 * MIB,
            message_bytes_max: 32 * MIB,
            snapshot_chunk_bytes: 256 * 1024,
            snapshot_send_max: Duration::from_secs(4 * 3600),
            snapshot_idle_max: Duration::from_secs(30),
            checkpoint_entries: 5000,
            checkpoint_bytes: 64 * MIB as u64,
            log_keep_entries: 1000,
            log_keep_bytes: 32 * MIB as u64,
            log_cache_bytes: 4 * MIB,
            flush_bytes_max: 16 * MIB,
        }
    }

    /// Whether the numbers fit together.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let (low, high) = self.election_ms;
        ensure!(!self.cluster_id.is_empty(), "the cluster id is empty: every node needs the id of its cluster");
        ensure!(low < high, "election_ms: the lower bound {low} must be below the upper bound {high}");
        ensure!(
            self.heartbeat_ms > 0 && self.heartbeat_ms * 2 < low,
            "heartbeat_ms ({}) must be below half of the shortest election time-out ({low})",
            self.heartbeat_ms
        );
        ensure!(
            self.proposal_bytes_max + MIB <= self.message_bytes_max,
            "message_bytes_max ({}) must exceed proposal_bytes_max ({}) by 1 MiB",
            self.message_bytes_max,
            self.proposal_bytes_max
        );
        ensure!(
            self.append_bytes_max + MIB <= self.message_bytes_max
                && self.snapshot_chunk_bytes + MIB <= self.message_bytes_max,
            "message_bytes_max ({}) must exceed append_bytes_max and snapshot_chunk_bytes by 1 MiB",
            self.message_bytes_max
        );
        let positive = self.payload_proposals_max.min(self.payloads_in_flight_max).min(self.queue_proposals_max);
        ensure!(positive > 0 && self.snapshot_chunk_bytes > 0, "every limit on numbers must be at least 1");
        ensure!(
            self.append_entries_max > 0 && self.checkpoint_entries > 0,
            "every limit on numbers must be at least 1"
        );
        Ok(())
    }

    pub(crate) fn openraft(&self) -> openraft::Config {
        openraft::Config {
            cluster_name: self.cluster_id.clone(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_ms.0,
            election_timeout_max: self.election_ms.1,
            max_payload_entries: self.append_entries_max,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(self.checkpoint_entries),
            max_in_snapshot_log_to_keep: self.log_keep_entries,
            purge_batch_size: 64,
            ..Default::default()
        }
    }
}
