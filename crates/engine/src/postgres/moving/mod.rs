//! Moving rows from one PostgreSQL server to another while clients write to the first.
//!
//! # The problem
//!
//! Rows of some partitions leave a server that takes writes all the time. None may be lost or doubled, whoever dies in between; and
//! what is made on the way (a slot, a publication, a replica identity) must be gone afterwards: a slot that nobody reads fills the disk.
//!
//! # The mechanism
//!
//! A slot gives a snapshot and a stream of all that is committed after it. The rows of the snapshot are copied ([`Mover::copy`]), filtered by
//! the server itself with the hash of the key; the stream is read from there on, filtered here, and applied ([`Mover::catch_up`]).
//! The publication has no row filters: PostgreSQL takes none that has the hash in it, and one would make a user's own UPDATE fail.
//!
//! A failure ends the *attempt*, and everything of it is removed ([`clean_source`], [`clean_target`]) before another one begins: no stream is resumed.
//!
//! # What happens when something dies
//!
//! | what, and when | what follows |
//! | --- | --- |
//! | Pleat, at any moment | its sessions end; what it made stays, and another node's clean-up removes it |
//! | a node that lives on, but was given up | its sessions are ended by clean-up; what it still sends finds no row of its attempt |
//! | a server | [`PostgresError::Lost`], and the attempt is over; clean-up goes on when the server is back |
//! | a transaction of a client, never ended | no slot can be made: [`Mover::begin`] gives up, and so does [`Mover::digest`] |
//!
//! # Invariants
//!
//! 1. A transaction on the target that writes has first locked the row of its attempt in `pleat_move_N.attempt`. [`clean_target`] drops that
//!    table, so none of an earlier attempt commits after it has returned.
//! 2. Whatever is made on a server has the operation's number in its name, so that clean-up needs to know nothing else.
//! 3. What is applied has the order of the source's commits, each transaction whole; the position is stored in the transaction that applies it.
//! 4. Values go from server to server in their text form under pinned settings, exact to the last digit.

mod apply;
mod clean;
mod copy;
mod delete;
mod digest;
#[cfg(test)]
pub(super) mod fuzz;
mod mover;
mod pgoutput;
mod precheck;
mod replication;
mod setup;
mod sql;
mod table;
mod unsettled;

use std::collections::BTreeSet;

use pleat_cluster::KeyType;

pub use clean::{clean_source, clean_target, operations_on};
pub use delete::{Sweep, Turn, delete_rows};
pub use mover::Mover;
pub use precheck::missing;
pub use sql::in_partitions;
pub(super) use sql::literal;
pub use unsettled::{Unsettled, unsettled};

/// What an operation moves.
#[derive(Clone, Debug)]
pub struct Movement {
    pub operation: u64,
    /// Of the operation; each has its own number.
    pub attempt: u32,
    pub partition_count: u32,
    /// Those that move.
    pub partitions: BTreeSet<u32>,
    pub tables: Vec<Moving>,
}

/// A table that moves, or some rows of it.
#[derive(Clone, Debug)]
pub struct Moving {
    pub schema: String,
    pub name: String,
    /// The column of the shard key. Absent: the table moves whole (a reference table).
    pub key: Option<(String, KeyType)>,
}

/// What was copied so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    pub rows: u64,
    pub bytes: u64,
}

/// What of the stream was applied since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Rows inserted, updated or deleted.
    pub rows: u64,
    /// Of the stream, also of what does not move.
    pub bytes: u64,
}

/// What a table has of the movement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    pub rows: u64,
    /// Of the hashes of all rows, modulo 2^64.
    pub sum: u64,
}

/// A table's digests at one position of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDigest {
    pub schema: String,
    pub name: String,
    pub source: Digest,
    pub target: Digest,
}
