//! Moving rows from one PostgreSQL server to another while clients write to the first.
//!
//! # The problem
//!
//! Rows of some partitions leave a server that takes writes all the time. None may be lost or doubled, whoever dies in between; and
//! what is made on the way (a slot, a publication, a replica identity) must be gone afterwards: a slot that nobody reads fills the disk.
//!
//! # The mechanism
//!
//! A slot gives a snapshot and a stream of all that is committed after it. The rows of the snapshot are copied ([`Mover::copy`]), filtered by the
//! server itself with the hash of the key; the stream is read from there on, filtered here, and applied ([`Mover::catch_up`]).
//! The publication has no row filters: PostgreSQL takes none that has the hash in it, and one would make a user's own UPDATE fail.
//!
//! A failure ends the *attempt*, and everything of it is removed ([`clean_source`], [`clean_target`]) before another one begins: no stream is resumed.
//!
//! # Invariants
//!
//! 1. A transaction on the target that writes has first locked the row of its attempt in `pleat_move_N.attempt`. [`clean_target`] drops that
//!    table, so none of an earlier attempt commits after it has returned.
//! 2. Whatever is made on a server has the operation's number in its name, so that clean-up needs to know nothing else.
//! 3. What is applied has the order of the source's commits, each transaction whole; the position is stored in the transaction that applies it.
//! 4. Values go from server to server in their text form under pinned settings, exact to the last digit.

use std::collections::BTreeSet;
use std::time::Duration;

use pleat_cluster::KeyType;

use super::{Connection, PostgresError, Server};

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

/// A transaction that may still write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsettled {
    /// Of the server's process. Absent: a prepared transaction.
    pub pid: Option<u32>,
    /// Of a prepared transaction.
    pub gid: Option<String>,
    pub age_seconds: u64,
    /// `active`, `idle in transaction`, `prepared`.
    pub state: String,
    /// The beginning of what it ran last.
    pub query: String,
}

/// How far [`delete_rows`] has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sweep {
    table: usize,
    block: u64,
}

/// An attempt. Dropping it closes its connections; what it has made on the servers is left to clean-up.
pub struct Mover {
    movement: Movement,
}

fn not_yet<T>() -> Result<T, PostgresError> {
    Err(PostgresError::OutOfTurn("rows of servers can't be moved yet".to_owned()))
}

/// All that is missing, each with its remedy; empty: go. Free space on the target's disk can't be read through SQL, so it is not looked at.
pub async fn missing(
    _source: &Server,
    _target: &Server,
    _movement: &Movement,
    _target_is_new: bool,
) -> Result<Vec<String>, PostgresError> {
    not_yet()
}

impl Mover {
    /// Make on both servers what the attempt needs, and take the snapshot. Clean-up of all earlier attempts has gone before.
    /// Given up after a minute: a slot waits for every transaction that was open.
    pub async fn begin(_source: &Server, _target: &Server, _movement: Movement) -> Result<Mover, PostgresError> {
        not_yet()
    }

    /// Copy the rows of the snapshot, over so many pairs of connections. `progress` hears the sum now and then.
    pub async fn copy(
        &mut self,
        _parallel: usize,
        _progress: &(dyn Fn(Copied) + Sync),
    ) -> Result<Copied, PostgresError> {
        not_yet()
    }

    /// Apply the stream. Everything that the source has committed when this is called is on the target when it returns.
    pub async fn catch_up(&mut self) -> Result<Applied, PostgresError> {
        not_yet()
    }

    /// Apply the stream as it comes, for so long, so that the slot does not fall behind.
    pub async fn follow(&mut self, _for_at_most: Duration) -> Result<Applied, PostgresError> {
        not_yet()
    }

    /// Bytes of the source's log that were not looked at yet.
    pub async fn lag(&mut self) -> Result<u64, PostgresError> {
        let _ = &self.movement;
        not_yet()
    }

    /// Count and hash what moves, on both sides at one position of the stream. `None`: transactions of clients on the source have not ended within
    /// that time, so that there is no such position; it may be tried again.
    pub async fn digest(&mut self, _within: Duration) -> Result<Option<Vec<TableDigest>>, PostgresError> {
        not_yet()
    }
}

/// Transactions that are not ended and may still write: those that have written; prepared ones; and, with `since` (a time as `clock_timestamp()::text`
/// gave it earlier), statements that run and began before it.
pub async fn unsettled(_source: &mut Connection, _since: Option<&str>) -> Result<Vec<Unsettled>, PostgresError> {
    not_yet()
}

/// Remove everything of all attempts of an operation from its source. It may be called at any time and again. Rows are not touched.
pub async fn clean_source(_source: &Server, _operation: u64) -> Result<(), PostgresError> {
    not_yet()
}

/// The same for the target: after it has returned, no transaction of an earlier attempt commits there.
pub async fn clean_target(_target: &Server, _operation: u64) -> Result<(), PostgresError> {
    not_yet()
}

/// Delete rows of the movement's partitions (and of whole tables, if `whole`), about `limit` at most, in a transaction of its own. How many: 0
/// means that none is left. `sweep` begins as its default, and goes from one call to the next.
pub async fn delete_rows(
    _server: &mut Connection,
    _movement: &Movement,
    _whole: bool,
    _sweep: &mut Sweep,
    _limit: u64,
) -> Result<u64, PostgresError> {
    not_yet()
}

/// The condition that a row's partition is among these, in PostgreSQL's SQL. `column` is a quoted name.
pub fn in_partitions(column: &str, key: KeyType, count: u32, partitions: &BTreeSet<u32>) -> String {
    // The same for whatever a session's settings say: `bytea_output`, `standard_conforming_strings`.
    let text = match key {
        KeyType::Integer | KeyType::Text | KeyType::Uuid => format!("{column}::text"),
        KeyType::Bytes => format!("(chr(92) || 'x' || encode({column}, 'hex'))"),
    };
    let among: Vec<String> = partitions.iter().map(u32::to_string).collect();
    format!(
        "((('x' || substr(md5({text}), 1, 8))::bit(32)::bigint * {count}) >> 32) = ANY('{{{}}}'::bigint[])",
        among.join(",")
    )
}
