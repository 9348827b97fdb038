//! Ids are distinct types, so that a shard can't be passed for a node. Their text forms (`shard-1`,
//! `op-12`) are what users see and type.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch. Always an argument, never read from a clock in a pure crate.
pub type Millis = u64;

/// The catalog's version. It rises with every change that a router or a shard must know of.
pub type Generation = u64;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                text.strip_prefix($prefix)
                    .and_then(|digits| digits.parse().ok())
                    .map($name)
                    .ok_or_else(|| format!(concat!("'{}' is not an id of the form ", $prefix, "N"), text))
            }
        }
    };
}

id!(
    /// One Pleat process. The number is also its id in every Raft group.
    NodeId, u64, "node-"
);
id!(
    /// One database that owns partitions. Numbers are never used twice.
    ShardId, u32, "shard-"
);
id!(
    /// A table, also after it was renamed.
    TableId, u32, "table-"
);
id!(
    /// An entry of the journal.
    OperationId, u64, "op-"
);
id!(
    /// What the autoscaler concluded at one moment.
    DecisionId, u64, "decision-"
);

/// A transaction over several statements or shards. The number is random, so that nobody has to hand it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TxnId(pub u128);

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "txn-{:032x}", self.0)
    }
}

impl FromStr for TxnId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("txn-").filter(|digits| digits.len() == 32);
        let number = digits.and_then(|digits| u128::from_str_radix(digits, 16).ok());
        number.map(TxnId).ok_or_else(|| format!("'{text}' is not an id of the form txn-<32 hex digits>"))
    }
}

/// A unit of ownership: a fixed bucket of key hashes, or (from [`PartitionId::SINGLE_BASE`] on) one whole
/// *single* table, which is owned and moved like a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionId(pub u32);

impl PartitionId {
    /// The first number that stands for a single table instead of a hash bucket.
    pub const SINGLE_BASE: u32 = 1 << 24;

    /// The unit of ownership of a single table.
    pub fn of_single(table: TableId) -> Self {
        PartitionId(Self::SINGLE_BASE + table.0)
    }

    /// Whether this is a single table's unit.
    pub fn is_single(self) -> bool {
        self.0 >= Self::SINGLE_BASE
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
