//! Pleat makes a SQL database elastic: it routes each statement to the shard that owns its key, gathers
//! across shards where there is no key, and adds, splits and moves shards while the application writes.
//!
//! This crate is the outside of it. [`cli`] is the command line, [`up`] runs a whole cluster on one machine
//! as supervised processes, [`node`] wires one node together, [`config`] and [`options`] are what a node
//! is told, and [`directory`] guards the data directory against being used twice or by another cluster.

pub mod cli;
pub mod config;
pub mod directory;
pub mod logging;
pub mod node;
pub mod options;
mod servers;
pub mod shutdown;
mod sigbus;
pub mod up;
