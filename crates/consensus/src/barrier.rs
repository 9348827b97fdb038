//! Strong reads: many readers, one quorum round.
//!
//! A linearizable read must see every write that was acknowledged before it began. The leader notes the committed
//! index, lets a majority confirm that it still leads, and the reader waits until that index is applied. The round
//! costs a message to each follower, so readers share it: one round is in flight, and those who come meanwhile
//! wait for the next. (They can't join the one in flight: it may have begun before a write that they must see.)

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::error::{CheckIsLeaderError, RaftError};
use pleat_cluster::NodeId;
use tokio::sync::{mpsc, oneshot};

use crate::types::Raft;

/// Why a read can't go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Strong reads are the leader's.
    #[error("this node does not lead the group{}", leader.map_or(String::new(), |leader| format!(": {leader} does")))]
    NotLeader {
        /// Who leads, as far as is known.
        leader: Option<NodeId>,
    },
    /// The deadline passed: the group has no majority at the moment, or is slow.
    #[error("the group did not answer in time: try again later")]
    Timeout,
    /// Too many readers wait.
    #[error("too many reads wait for the group: try again later")]
    Overloaded,
    /// The group does not run on this node any more.
    #[error("the group has stopped on this node: {0}")]
    Stopped(String),
}

type Reply = oneshot::Sender<Result<u64, ReadError>>;

/// Pause before a round that found no majority is tried again.
const ROUND_PAUSE: Duration = Duration::from_millis(30);

/// The way to a group's quorum rounds.
pub(crate) struct Barrier {
    readers: mpsc::Sender<Reply>,
    confirmed: Arc<AtomicU64>,
}

impl Barrier {
    /// The barrier, and the task that makes its rounds.
    pub(crate) fn new(raft: Raft, readers_max: usize) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, readers) = mpsc::channel(readers_max);
        let confirmed = Arc::<AtomicU64>::default();
        (Barrier { readers: sender, confirmed: confirmed.clone() }, rounds(raft, readers, confirmed))
    }

    /// Rounds that a majority confirmed.
    pub(crate) fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// The index that must be applied before a read that begins now.
    pub(crate) async fn pass(&self) -> Result<u64, ReadError> {
        let (reply, index) = oneshot::channel();
        self.readers.try_send(reply).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => ReadError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => closed(),
        })?;
        index.await.unwrap_or_else(|_| Err(closed()))
    }
}

fn closed() -> ReadError {
    ReadError::Stopped("it is being closed".into())
}

async fn rounds(raft: Raft, mut readers: mpsc::Receiver<Reply>, confirmed: Arc<AtomicU64>) {
    let mut waiting = Vec::new();
    loop {
        if waiting.is_empty() {
            match readers.recv().await {
                Some(first) => waiting.push(first),
                None => return,
            }
        }
        while let Ok(next) = readers.try_recv() {
            waiting.push(next);
        }
        // Those whose deadline passed have gone.
        waiting.retain(|reader| !reader.is_closed());
        if waiting.is_empty() {
            continue;
        }
        let result = match raft.get_read_log_id().await {
            Ok((index, _)) => {
                confirmed.fetch_add(1, Ordering::Relaxed);
                Ok(index.map_or(0, |last| last.index))
            }
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {
                tokio::time::sleep(ROUND_PAUSE).await;
                continue;
            }
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward))) => {
                Err(ReadError::NotLeader { leader: forward.leader_id.map(NodeId) })
            }
            Err(RaftError::Fatal(fatal)) => Err(ReadError::Stopped(fatal.to_string())),
        };
        for reader in waiting.drain(..) {
            let _ = reader.send(result.clone());
        }
    }
}
