//! How a shard is spoken to, and the embedded kind of shard: SQLite, replicated as a log of deterministic
//! transactions.
//!
//! # The problem
//!
//! Every replica of an embedded shard applies the same log to a database of its own. The results are
//! only compared now and then (`host`'s `verify`), which finds a difference late, after it may have done harm. So the
//! same entry must do the same thing everywhere: on a replica that was restarted, that began from another's
//! snapshot, that applied the log in other batches, or whose clock is wrong.
//!
//! # The mechanism
//!
//! [`Store`] is one replica: it owns the only connection that writes, and [`Store::apply`] runs a batch of
//! [`Proposal`]s in one SQLite transaction, each in a savepoint of its own, with the position in the log
//! stored in the same transaction. What could differ between replicas is taken from the proposal (`now`,
//! `random()`), pinned (local time is UTC, query plans don't look at parameters), reset (`changes()`,
//! `last_insert_rowid()`) or refused (writing PRAGMAs, ATTACH, statistics of pages).
//!
//! A proposal's time comes from its leader's clock, and the next leader's may be behind. So the time that counts is
//! the log's: the latest of all entries so far, which never goes back. A clock far ahead stops it until the others
//! have caught up.
//!
//! [`Readers`] serves everything that doesn't write, on read-only connections to the same file, so reading
//! never holds the writer up: queries, the sources of a move, and measurements.
//!
//! [`LocalTxn`] is an interactive transaction while it is open: a SQLite transaction that is rolled back in the end,
//! when what it did is proposed as one entry.
//!
//! All hold the shard to what it owns. Each write and read names the units that it was routed by; the shard's
//! own table of what it owns *at that position in the log* decides, whatever the router believed.
//!
//! # What is not here
//!
//! No sockets, no async, no Raft, no clock that a result depends on (only time limits of reads look at one). That is so for embedded
//! shards: [`postgres`] is the way to a server, and has a chapter of its own, as [`scram`] has, the passwords of both of its ends.

mod cancel;
mod digest;
mod engine;
mod error;
pub mod limits;
mod moves;
pub mod postgres;
mod proposal;
mod request;
mod room;
mod rows;
pub mod scram;
mod sqlite;
mod sqlstate;
mod units;

pub use cancel::Wanted;
pub use digest::{ContentDigest, TableDigest};
pub use engine::{Engine, EngineKind};
pub use error::EngineError;
pub use moves::{
    Changes, Holding, IdempotencyRow, MoveAction, MoveChunk, MovePhase, MoveRead, MoveState, MoveStep, Position,
    TableChanges, TablePlace,
};
pub use proposal::{
    Action, BulkDone, BulkPart, Idempotency, Outcome, Proposal, ProposalError, ReferenceEntry, Refusal, RejectedRow,
    SchemaChange, SqlFailure, Stamp, Statement, StatementResult,
};
pub use request::{
    Chunk, ColumnInfo, OwnershipCheck, PreparedTxn, Query, ReadLimits, ReadRequest, ShardStats, TxnsSeen,
};
pub use room::{NoRoom, Room, RoomLimits, RoomTaken};
pub use rows::Rows;
pub use sqlite::build::build;
pub use sqlite::failure::disk_error;
pub use sqlite::finisher::Finisher;
pub use sqlite::local::{LocalTxn, Script};
pub use sqlite::readers::Readers;
pub use sqlite::scratch::{Scratch, try_ddl, validate_ddl};
pub use sqlite::store::{Copier, DigestJob, Store, StoreConfig};
pub use sqlite::value::{Bind, value_of};
pub use units::UnitSet;
