//! How capacity appears and goes.
//!
//! The catalog says that a shard shall be; a [`Provisioner`] makes it so. For embedded shards there is
//! little to make: the catalog already names the nodes that hold a replica, and each of them starts its
//! replica when it sees its name. What remains is to *wait* until the replicas run and agree on a leader,
//! and to say clearly what is missing when they don't. Servers of other kinds (started as processes, taken
//! from a pool, asked for on Kubernetes) will be further implementations of the same two methods. What a node does to have a
//! PostgreSQL server of its own is there: [`process`].
//!
//! Both methods are idempotent: a new leader of the control group calls them again for an operation that
//! it takes over.

mod embedded;
pub mod process;

use std::time::Duration;

use async_trait::async_trait;
use pleat_cluster::Shard;

pub use embedded::{Embedded, Probe};

/// Makes shards' databases and takes them down.
#[async_trait]
pub trait Provisioner: Send + Sync {
    /// `embedded`, as users see it.
    fn name(&self) -> &'static str;

    /// Make the shard's database and return once it takes writes, or say what is missing after `within`.
    async fn provide(&self, shard: &Shard, within: Duration) -> Result<Provided, ProvisionError>;

    /// Take down the database of a shard that the catalog has removed. Refused for any other: the last
    /// placement of data is never taken away.
    async fn release(&self, shard: &Shard) -> Result<(), ProvisionError>;
}

/// A database that takes writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provided {
    /// For people: `3 replicas, led by node-2`.
    pub detail: String,
}

/// Why there is no database yet, or why it is not taken down.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProvisionError {
    /// Waiting longer, or again, may help.
    #[error("{shard} is not ready after {waited_ms} ms: {missing}")]
    NotReady { shard: String, waited_ms: u128, missing: String },
    #[error("{shard} is still in use; only a removed shard is taken down")]
    InUse { shard: String },
}
