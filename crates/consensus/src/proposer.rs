//! Gathers proposals into log entries.
//!
//! **The problem.** An entry has its price, however little is in it: a turn of openraft's core, its own place in the log and in each message,
//! and a batch of the state machine.
//!
//! **The mechanism.** Proposals wait in a bounded queue. While fewer than `payloads_in_flight_max` entries are on
//! their way, the proposer takes everything that waits, up to `payload_bytes_max` and `payload_proposals_max`,
//! and proposes it as one entry. A lone proposal never waits for company; under load, what came while others were
//! on their way shares the next. Outcomes come back from applying and are handed to their callers one by one.
//!
//! **What an error may claim.** Only what is certain. "Not the leader" from openraft can mean that it never took the
//! entry, or that it appended it and truncated it later; in the second case another replica may still have it and bring
//! it to life under a later leader. The log marks entries that it takes ([`Appended`]), and only unmarked ones
//! end as [`ProposeError::NotLeader`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use openraft::error::ClientWriteError;
use openraft::raft::ClientWriteResult;
use pleat_cluster::NodeId;
use tokio::sync::{mpsc, oneshot};

use crate::config::Config;
use crate::types::{Appended, Payload, Proposal, Raft, Types};

/// Why a proposal has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Surely not proposed. Ask the leader, if one is known.
    #[error("this node does not lead the group{}", leader.map_or(String::new(), |leader| format!(": {leader} does")))]
    NotLeader {
        /// Who leads, as far as is known.
        leader: Option<NodeId>,
    },
    /// Surely not proposed: too many proposals wait, or the deadline passed while it waited for its turn.
    #[error("too many writes wait for the group: try again later")]
    Overloaded,
    /// Surely not proposed, and never will be.
    #[error("the proposal is larger than {limit_bytes} bytes: send it in smaller parts")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// Surely not proposed: too few nodes of the group have room on their disks.
    #[error(
        "the disk is full on {}: no majority of the group can write",
        nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
    )]
    NoRoom {
        /// Those that are known to have none.
        nodes: Vec<NodeId>,
    },
    /// It may or may not have been, or still be, applied: leadership was lost, or the deadline passed.
    #[error("the outcome of the write is unknown: it may or may not have been applied")]
    Unknown,
    /// Surely not proposed: the group does not run on this node any more.
    #[error("the group has stopped on this node: {0}")]
    Stopped(String),
}

impl ProposeError {
    /// Whether the proposal surely has no effect, so that proposing it again can't do it twice.
    pub fn surely_not_proposed(&self) -> bool {
        !matches!(self, ProposeError::Unknown)
    }
}

type Reply = oneshot::Sender<Result<Bytes, ProposeError>>;

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const GIVEN_UP: u8 = 2;

struct Waiting {
    proposal: Bytes,
    /// Decides between the proposer that takes it and the caller that gives up.
    ticket: Arc<AtomicU8>,
    reply: Reply,
    _reserved: Reserved,
}

/// Bytes of the queue in use, given back when dropped.
struct Reserved(Arc<AtomicUsize>, usize);

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// The way into a group's queue of proposals.
pub(crate) struct Proposals {
    queue: mpsc::Sender<Waiting>,
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
    proposal_bytes_max: usize,
}

impl Proposals {
    /// The queue, and the task that empties it.
    pub(crate) fn new(config: Arc<Config>, raft: Raft) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, receiver) = mpsc::channel(config.queue_proposals_max);
        let proposals = Proposals {
            queue: sender,
            bytes: Arc::default(),
            bytes_max: config.queue_bytes_max,
            proposal_bytes_max: config.proposal_bytes_max,
        };
        let proposer = Proposer { config, raft, queue: receiver, held: None, in_flight: FuturesUnordered::new() };
        (proposals, proposer.run())
    }

    /// Queues a proposal and waits for its outcome.
    pub(crate) async fn propose(&self, proposal: Bytes, deadline: tokio::time::Instant) -> Result<Bytes, ProposeError> {
        let size = proposal.len();
        self.check_size(size)?;
        let before = self.bytes.fetch_add(size, Ordering::Relaxed);
        let reserved = Reserved(self.bytes.clone(), size);
        if before + size > self.bytes_max {
            return Err(ProposeError::Overloaded);
        }
        let ticket = Arc::new(AtomicU8::new(WAITING));
        let (reply, mut outcome) = oneshot::channel();
        let waiting = Waiting { proposal, ticket: ticket.clone(), reply, _reserved: reserved };
        self.queue.try_send(waiting).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => ProposeError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => ProposeError::Stopped("it is being closed".into()),
        })?;
        match tokio::time::timeout_at(deadline, &mut outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) if ticket.load(Ordering::Acquire) == TAKEN => Err(ProposeError::Unknown),
            Ok(Err(_)) => Err(ProposeError::Stopped("it is being closed".into())),
            Err(_) => match ticket.compare_exchange(WAITING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => Err(ProposeError::Overloaded),
                // The outcome may have come in the very moment.
                Err(_) => outcome.try_recv().unwrap_or(Err(ProposeError::Unknown)),
            },
        }
    }

    pub(crate) fn check_size(&self, size: usize) -> Result<(), ProposeError> {
        let limit_bytes = self.proposal_bytes_max;
        if size > limit_bytes { Err(ProposeError::TooLarge { limit_bytes }) } else { Ok(()) }
    }
}

struct Proposer {
    config: Arc<Config>,
    raft: Raft,
    queue: mpsc::Receiver<Waiting>,
    /// Taken from the queue, too large for the payload that was being filled.
    held: Option<Waiting>,
    in_flight: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl Proposer {
    async fn run(mut self) {
        loop {
            let room = self.in_flight.len() < self.config.payloads_in_flight_max;
            if room && let Some(first) = self.held.take() {
                self.propose(first).await;
                continue;
            }
            tokio::select! {
                biased;
                Some(()) = self.in_flight.next(), if !self.in_flight.is_empty() => {}
                first = self.queue.recv(), if room => match first {
                    Some(first) => self.propose(first).await,
                    None => break,
                },
            }
        }
        while self.in_flight.next().await.is_some() {}
    }

    async fn propose(&mut self, first: Waiting) {
        let (proposals, replies) = self.gather(first);
        if proposals.is_empty() {
            return;
        }
        if !self.config.disk.has_room() {
            // The disk filled up while they waited. Whoever asks again is told what there is to tell.
            return fail(replies, &ProposeError::NotLeader { leader: None });
        }
        let appended = Appended::default();
        let payload = Payload { proposals, appended: appended.clone() };
        match self.raft.client_write_ff(payload).await {
            Ok(outcome) => {
                let settled = settle(outcome, appended, replies, self.config.payload_wait_max);
                self.in_flight.push(Box::pin(settled));
            }
            Err(fatal) => fail(replies, &ProposeError::Stopped(fatal.to_string())),
        }
    }

    /// Takes what waits, up to the limits of a payload.
    fn gather(&mut self, first: Waiting) -> (Vec<Proposal>, Vec<Reply>) {
        let (mut proposals, mut replies, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut next = Some(first);
        while let Some(waiting) = next {
            let size = waiting.proposal.len();
            if !proposals.is_empty() && bytes + size > self.config.payload_bytes_max {
                self.held = Some(waiting);
                break;
            }
            if waiting.ticket.compare_exchange(WAITING, TAKEN, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                bytes += size;
                proposals.push(Proposal(waiting.proposal));
                replies.push(waiting.reply);
            }
            if proposals.len() >= self.config.payload_proposals_max {
                break;
            }
            next = self.queue.try_recv().ok();
        }
        (proposals, replies)
    }
}

/// Waits for an entry's fate and tells the callers.
async fn settle(
    outcome: oneshot::Receiver<ClientWriteResult<Types>>,
    appended: Appended,
    replies: Vec<Reply>,
    wait_max: Duration,
) {
    match tokio::time::timeout(wait_max, outcome).await {
        Ok(Ok(Ok(response))) => {
            // The state machine's worker has checked that there are as many outcomes as proposals. Nobody may wait
            // for them any more.
            for (reply, outcome) in replies.into_iter().zip(response.data.of_proposals) {
                let _ = reply.send(Ok(outcome));
            }
        }
        Ok(Ok(Err(ClientWriteError::ForwardToLeader(forward)))) if !appended.get() => {
            fail(replies, &ProposeError::NotLeader { leader: forward.leader_id.map(NodeId) });
        }
        // The core ended before it took the entry.
        Ok(Err(_)) if !appended.get() => fail(replies, &ProposeError::Stopped("it is being closed".into())),
        Ok(_) | Err(_) => fail(replies, &ProposeError::Unknown),
    }
}

fn fail(replies: Vec<Reply>, error: &ProposeError) {
    for reply in replies {
        let _ = reply.send(Err(error.clone()));
    }
}
