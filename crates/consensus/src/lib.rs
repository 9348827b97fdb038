//! Many Raft groups on one node, behind a face that shows no Raft library.
//!
//! **The problem.** Everything that Pleat must not lose is a replicated log: the catalog is one, each embedded
//! shard is another. A node is in dozens of such groups at once. If each had its own connections, its own
//! log file and its own fsync, fifty quiet shards would cost more than one busy one.
//!
//! **The mechanism.** [`Consensus`] is one per node. It owns one [`Transport`] (one connection to each peer),
//! one log store with *one writer thread* that makes whatever all groups want written durable with one
//! fsync ([`log`](crate::Consensus#the-log)), and a [`Group`] handle for each group that runs here. Raft itself is
//! openraft, which we feed and never show:
//!
//! ```text
//!   propose ─► proposer ─► openraft core ─► log writer (one fsync for all groups)
//!              (gathers)      │      └────► network ─► followers: the same, from the core on
//!                             ▼ committed
//!                        state machine's own thread ─► outcome back to the proposer's callers
//! ```
//!
//! - **Proposals share payloads.** An entry costs much the same with one proposal in it as with a hundred. The proposer therefore
//!   gathers what waits into one entry, bounded in bytes and number, and keeps a few entries in flight.
//! - **The leader writes its log while the followers write theirs.** openraft would wait for the leader's fsync before it sends an entry to
//!   anybody. It is told that the entry is flushed before it is, and what rests on that waits on its way out (`log/unflushed`).
//! - **The log is purged only behind a checkpoint.** Raft libraries tie purging to snapshot files. Our state
//!   machines are databases that are durable by themselves, so "building a snapshot" is only
//!   [`StateMachine::checkpoint`] (an fsync); a file is made when a follower really needs one, and
//!   streamed to it in bounded chunks.
//! - **Strong reads share quorum rounds.** [`Group::read_barrier`] has one round in flight; whoever comes meanwhile
//!   shares the next.
//! - **Errors say what is known.** A proposal ends as applied, as *surely not proposed*, or as *unknown*
//!   ([`ProposeError`]). There is no fourth kind and no automatic retry.
//! - **A node stops taking writes before its disk is full**, and ends when its disk fails (`room`).
//! - **A term has at most one ready leader, and a restart ends its reign.** A leader that is started again stands for
//!   election again, at once when it votes alone. Whoever counts by terms may rely on it.
//!
//! **Caveats.** openraft 0.9 has no pre-vote and no leader transfer; a follower that was cut off raises the term
//! when it returns (its peers refuse its vote while they hear from a leader). A node whose disk was emptied
//! must not take part under its old id: it has forgotten its votes. The log store refuses another cluster's or
//! node's directory, but it can't tell an emptied one from a new one; `host` does, and [`Group::expel`] and
//! [`Consensus::join_group`] are how such a node comes back (`members` says why that is safe).

mod barrier;
mod codec;
mod config;
mod consensus;
mod group;
pub mod grpc;
mod log;
mod machine;
mod members;
mod network;
mod proposer;
mod receive;
mod room;
mod runtime;
mod status;
mod transport;
mod types;

pub use barrier::ReadError;
pub use config::{Config, Storage};
pub use consensus::{Consensus, Stats};
pub use group::Group;
pub use log::MemoryDisk;
pub use machine::{SnapshotJob, StateMachine};
pub use members::MembershipError;
pub use network::{METHOD_APPEND, METHOD_VOTE};
pub use proposer::ProposeError;
pub use room::{Disk, DiskState};
pub use runtime::{Simulation, blocking, simulate, simulated, spawn, thread};
pub use status::Status;
pub use transport::{Service, ServiceError, SnapshotChunks, Transport, TransportError};
pub use types::{Applied, Entry, GroupId};
