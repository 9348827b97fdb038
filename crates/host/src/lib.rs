//! One node's part of the cluster: its replica of the catalog, its replicas of shards, and the way to every
//! other node's.
//!
//! Embedded shards are where consensus and SQLite meet: `consensus` knows logs and no SQL, `engine` knows SQL
//! and no network, and this crate puts an engine's database behind a group's log (`shard_machine`), the
//! catalog behind the control group's (`catalog_machine`), starts and stops replicas as the catalog says
//! (`host`), and carries every call to the node that leads the group in question (`route`, `calls`,
//! `serve`). The gateway and the control loop stand on [`Host`] and never speak to each other.
//!
//! - A call says how long it may take, and how often it may be sent again follows from what it does: see
//!   `route`.
//! - A write to *reference* tables is put in order by one shard and spread to all: see `reference`.
//! - A node that has lost its disk takes part in nothing until it was admitted again: see `incarnation`.
//! - Replicas are compared now and then: see `verify`.
//! - A shard that is a server is reached through a pool in each node: see `servers`.
//! - What goes there is held back while a partition changes servers: see `gates`.
//! - What is measured is measured here (`meter`, `observe`), by the node that serves it.

mod calls;
mod catalog_machine;
mod decide;
mod decide_servers;
mod error;
pub mod failpoint;
mod gates;
mod host;
mod incarnation;
mod lane;
mod locals;
mod members;
mod meter;
mod observe;
mod observe_servers;
mod position;
mod progress;
mod reference;
mod replica;
mod route;
mod rpc;
mod serve;
mod servers;
mod shard_machine;
mod txn;
mod verify;

pub use calls::{Freshness, RowStream};
pub use error::{HostError, ServerError};
pub use gates::Pass;
pub use host::{Founding, Host, Settings, StoreLimits};
pub use members::{GroupView, MemberChange};
pub use observe::{NodeObservation, PartitionLoad, PartitionWeight, Quantiles, Resources, ShardObservation};
pub use progress::Progress;
pub use rpc::{Piece, Written};
pub use servers::POOL_CONNECTIONS;
pub use txn::{InDoubt, TxnEnd, TxnHandle, TxnPart, TxnReply, TxnStep};
pub use verify::{NodeReplicas, ReplicaReport};
