//! What a shard is asked for without writing, and what it answers.

use std::collections::BTreeMap;
use std::time::Duration;

use pleat_cluster::{CommitNumber, Generation, Millis, PartitionId, ShardId, TxnId, Value};
use serde::{Deserialize, Serialize};

/// One read of one shard: its queries, all in one snapshot. A statement that is gathered from several tables
/// asks for all of them at once, so that it never sees half of what one write did to this shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadRequest {
    /// Answered one after the other.
    pub queries: Vec<Query>,
    pub check: OwnershipCheck,
    /// The layout of the catalog that it was planned by: at another one the shard refuses. `None` asks for nothing that
    /// depends on it.
    pub layout: Option<Generation>,
    /// The same for every shard that one query asks.
    pub now_ms: Millis,
    pub seed: u64,
    /// Of each query.
    pub limits: ReadLimits,
    /// Whether the answer's head names the transactions that the snapshot knows of ([`TxnsSeen`]).
    pub names_txns: bool,
}

/// The transactions over several shards that a snapshot shows. By it a reader of several shards finds out that
/// one of its snapshots has a transaction and another doesn't yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnsSeen {
    /// The content version of the snapshot.
    pub version: u64,
    /// For each shard, the newest commit here in which it took part; for this shard itself, the newest of all. A shard
    /// carries out its commits in the order of their numbers, so this stands for all of them.
    pub together: Vec<(ShardId, CommitNumber)>,
}

impl TxnsSeen {
    /// The newest commit that shows here and in which a shard took part. 0: none.
    pub fn newest_with(&self, shard: ShardId) -> CommitNumber {
        self.together.iter().find(|(other, _)| *other == shard).map_or(0, |(_, newest)| *newest)
    }
}

/// A transaction that is prepared on a shard and not decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedTxn {
    pub txn: TxnId,
    /// When it began, by its coordinator.
    pub began: Millis,
    pub participants: Vec<ShardId>,
    /// The time of the entry that prepared it.
    pub prepared_ms: Millis,
}

/// One query of a read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Query {
    pub sql: String,
    /// Run instead of `sql` when the shard holds rows that it doesn't own: it filters by `pleat_owned(key)`.
    pub sql_filtered: Option<String>,
    pub params: Vec<Value>,
}

impl Query {
    pub fn new(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), ..Self::default() }
    }
}

/// What the shard must own for the answer to be right, checked in the snapshot that is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnershipCheck {
    /// These units, none of them fenced.
    Keyed(Vec<PartitionId>),
    /// Exactly what it owned at this generation, nothing of it fenced.
    Scatter { ownership: Generation },
    /// Anything: reference tables, or a read that asked for no more.
    None,
}

/// When a read is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadLimits {
    pub time: Duration,
    pub rows: u64,
    pub bytes: u64,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { time: Duration::from_secs(30), rows: 10_000_000, bytes: 256 << 20 }
    }
}

/// A result's column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnInfo {
    pub name: String,
    /// The declared type, when the column is one of a table's.
    pub decl_type: Option<String>,
}

/// A part of a result. The first one of each query's result carries the columns, and comes also when there are no rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// In the first chunk of a read that asked for it.
    pub txns: Option<TxnsSeen>,
    pub columns: Option<Vec<ColumnInfo>>,
    pub rows: Vec<Vec<Value>>,
}

/// A shard's size, as measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStats {
    /// Rows that the shard owns, by table as declared.
    pub tables: BTreeMap<String, u64>,
    pub rows: u64,
    /// The database file and its write-ahead log.
    pub file_bytes: u64,
    pub ownership: Generation,
    /// Whether the shard holds rows that it doesn't own.
    pub foreign_rows: bool,
}
