//! The whole cluster in one thread, from a seed: nodes that crash, networks that break, disks that forget, clients that
//! keep account, and a verdict.
//!
//! # The problem
//!
//! What loses data in a distributed system is an order of events that nobody thought of. Tests of real processes meet such
//! orders by luck, once, and can't show them again. Here one seed decides every delay, crash and draw, a run takes seconds,
//! and a seed that fails is a bug report that anybody can replay.
//!
//! # The mechanism
//!
//! Three nodes run on turmoil's network: the real consensus, SQLite shards, gateway sessions and control loops, put together as
//! `pleat` does ([`node`]). Clients on a host of their own read and write ([`workload`]), and hold every answer against
//! what they were told before ([`pleat_oracle`]); with half of the seeds they write to a reference table ([`copies`]) and change the
//! [`schema`], too; an operator splits shards and moves partitions. [`faults`] are drawn beforehand,
//! and at short intervals the whole cluster is held against its [`invariants`]. Then the faults stop, and the cluster has a
//! bounded time to heal; clients read everything once more; and the replicas' databases, copied from the disks, must
//! be equal and hold what they own and nothing else ([`run`]).
//!
//! What makes it repeatable: `pleat_consensus::simulate` (tasks, threads, the log's disk), [`os`] (clocks, chance,
//! fsync), and turmoil (time, network). `docs/rfd/0007` has the whole argument, and what stays outside.

pub mod client;
pub mod copies;
pub mod disk;
pub mod faults;
pub mod invariants;
pub mod lone;
pub mod net;
pub mod node;
pub mod os;
mod panics;
pub mod run;
pub mod schema;
pub mod trace;
pub mod workload;
pub mod world;

pub use run::{Options, Report, run};
