//! Comparing replicas: each computes digests of its content at the same entries of the shard's log.
//!
//! Now and then ([`Settings::verify_every`](crate::Settings)) a shard's leader writes an entry that does nothing but mark
//! a position. A replica that applies it opens a read snapshot there, between two transactions, so the snapshot is
//! exactly that position however the log was cut into batches; and it computes the digest on a thread of its own while
//! it goes on applying. The last few digests are kept in memory, by index. The control leader fetches them and compares
//! (`pleat-plan`, `control`).
//!
//! Nothing is verified while nothing is written, but for every [`IDLE_MAX`]th time: disks fail under data at rest, too.
//! A replica computes one digest at a time; one that is slower than the interval leaves entries out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pleat_cluster::{NodeId, ShardId};
use pleat_engine::{Action, ContentDigest, DigestJob};
use serde::{Deserialize, Serialize};

use crate::members::GroupView;
use crate::{Host, HostError};

/// Digests that a replica keeps.
const KEPT_MAX: usize = 4;
/// So many times in a row verifying is left out when nothing was written.
const IDLE_MAX: u32 = 9;
/// How long writing the entry may take.
const PROPOSE_LIMIT: Duration = Duration::from_secs(5);

/// The last digests of a replica.
#[derive(Debug, Default)]
pub struct Digests {
    last: Mutex<VecDeque<(u64, ContentDigest)>>,
    computing: AtomicBool,
}

impl Digests {
    /// Compute one in the background, unless one is being computed.
    pub fn compute(self: &Arc<Self>, index: u64, job: DigestJob) {
        if self.computing.swap(true, Ordering::AcqRel) {
            return;
        }
        let digests = self.clone();
        let work = move || {
            match job() {
                Ok(digest) => digests.keep(index, digest),
                Err(error) => tracing::error!(index, "the replica's content can't be read: {error:#}"),
            }
            digests.computing.store(false, Ordering::Release);
        };
        if let Err(error) = pleat_consensus::thread("digest", work) {
            tracing::warn!(%error, "no thread to compute a digest on; it is left out");
            self.computing.store(false, Ordering::Release);
        }
    }

    fn keep(&self, index: u64, digest: ContentDigest) {
        let mut last = self.last.lock();
        last.push_back((index, digest));
        if last.len() > KEPT_MAX {
            last.pop_front();
        }
    }

    fn fingerprints(&self) -> BTreeMap<u64, u64> {
        self.last.lock().iter().map(|(index, digest)| (*index, digest.fingerprint())).collect()
    }

    fn at(&self, index: u64) -> Option<ContentDigest> {
        self.last.lock().iter().find(|(known, _)| *known == index).map(|(_, digest)| digest.clone())
    }
}

/// What a node tells of its replicas, be it leading them or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReplicas {
    pub node: NodeId,
    /// Which life of its directory.
    pub incarnation: u64,
    /// Its replica of the control group, once that runs.
    pub control: Option<GroupView>,
    pub shards: Vec<ReplicaReport>,
}

/// One replica of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    pub shard: ShardId,
    /// Which replica of the shard on this node.
    pub number: u32,
    pub group: GroupView,
    /// Digests of the content, by the index of the entry.
    pub digests: BTreeMap<u64, u64>,
}

impl Host {
    /// Write the entries at which replicas compare, where this node leads.
    pub(crate) async fn keep_verifying(self: Arc<Self>) {
        let Some(every) = self.settings().verify_every else { return };
        let mut stop = self.stopping();
        // By shard: the entry written last, and how often verifying was left out since.
        let mut done: BTreeMap<ShardId, (u64, u32)> = BTreeMap::new();
        loop {
            if tokio::time::timeout(every, stop.changed()).await.is_ok() && *stop.borrow() {
                return;
            }
            for replica in self.replicas() {
                let status = replica.group.status();
                if !status.ready || !self.serves(&replica) {
                    done.remove(&replica.shard);
                    continue;
                }
                if let Some((last, idle)) = done.get_mut(&replica.shard)
                    && *last == status.last_log
                    && *idle < IDLE_MAX
                {
                    *idle += 1;
                    continue;
                }
                let planned = self.catalog().planned();
                match replica.write(planned, Action::Digest, self.now_ms(), PROPOSE_LIMIT).await {
                    Ok(written) => drop(done.insert(replica.shard, (written.index, 0))),
                    Err(why) => tracing::debug!(shard = %replica.shard, ?why, "verifying was left out"),
                }
            }
        }
    }

    /// What this node tells of its replicas.
    pub(crate) fn own_replicas(&self) -> NodeReplicas {
        let report = |replica: &Arc<crate::replica::Replica>| ReplicaReport {
            shard: replica.shard,
            number: replica.number,
            group: GroupView::of(&replica.group.status()),
            digests: replica.digests.fingerprints(),
        };
        NodeReplicas {
            node: self.node(),
            incarnation: self.incarnation(),
            control: self.control().map(|group| GroupView::of(&group.status())),
            shards: self.replicas().iter().map(report).collect(),
        }
    }

    /// The digest of this node's replica at an entry, if it still has it.
    pub(crate) fn own_digest(&self, shard: ShardId, index: u64) -> Option<ContentDigest> {
        self.replica(shard)?.digests.at(index)
    }

    /// What a node tells of its replicas.
    pub async fn replicas_of(&self, node: NodeId, within: Duration) -> Result<NodeReplicas, HostError> {
        match self.ask_node(node, crate::rpc::Request::Replicas, within).await? {
            crate::rpc::Response::Replicas(replicas) => Ok(*replicas),
            _ => Err(crate::calls::mismatch()),
        }
    }

    /// The digest of a node's replica at an entry, table by table.
    pub async fn digest_of(
        &self,
        node: NodeId,
        shard: ShardId,
        index: u64,
        within: Duration,
    ) -> Result<Option<ContentDigest>, HostError> {
        match self.ask_node(node, crate::rpc::Request::Digest { shard, index }, within).await? {
            crate::rpc::Response::Digest(digest) => Ok(digest),
            _ => Err(crate::calls::mismatch()),
        }
    }
}
