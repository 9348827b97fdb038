//! What planning gives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pleat_cluster::{KeyType, PartitionId, ShardId, Value};

use crate::error::SqlError;

pub use crate::ddl::Placement;

/// One statement of a message, planned.
#[derive(Clone, Debug)]
pub struct Planned {
    /// As the client wrote it, comments inside included, without the `;` around it.
    pub text: String,
    pub what: What,
}

/// What a statement is, for the session that has to carry it out. Names are as PostgreSQL keeps them: in lower case unless they
/// were quoted.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // kept behind an Arc, never moved around in bulk
pub enum What {
    /// BEGIN, START TRANSACTION.
    Begin {
        read_only: bool,
    },
    /// COMMIT, END; `chain`: AND CHAIN.
    Commit {
        chain: bool,
    },
    /// ROLLBACK, ABORT; `chain`: AND CHAIN.
    Rollback {
        chain: bool,
    },
    Savepoint(String),
    Release(String),
    RollbackTo(String),
    /// PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED.
    PrepareTransaction,
    /// SET of a setting, under the name that SHOW knows (`timezone` for SET TIME ZONE); `local`: SET LOCAL.
    Set {
        name: String,
        local: bool,
    },
    /// SET TRANSACTION, SET CONSTRAINTS: they end with the transaction.
    SetTransaction,
    SetSessionCharacteristics,
    /// RESET name; `None`: RESET ALL.
    Reset(Option<String>),
    /// DISCARD; `all`: DISCARD ALL.
    Discard {
        all: bool,
    },
    /// PREPARE name (types) AS statement. The types are as written.
    Prepare {
        name: String,
        types: Vec<String>,
        statement: Box<Planned>,
    },
    /// EXECUTE name (values). The values are expressions, as written.
    Execute {
        name: String,
        values: Vec<String>,
    },
    /// DEALLOCATE name; `None`: ALL.
    Deallocate(Option<String>),
    /// DECLARE name CURSOR FOR query; `hold`: WITH HOLD. `text` is the query's own text, whose plan `query` is.
    Declare {
        name: String,
        hold: bool,
        text: String,
        query: Query,
    },
    /// FETCH, MOVE.
    Fetch {
        cursor: String,
    },
    /// CLOSE name; `None`: ALL.
    Close(Option<String>),
    /// LISTEN, UNLISTEN.
    Listen,
    Notify,
    Copy(Copy),
    Ddl(Ddl),
    /// Everything that is routed: SELECT, VALUES, WITH, TABLE, INSERT, UPDATE, DELETE, EXPLAIN of these, SHOW, LOCK, DO, CALL,
    /// TRUNCATE, VACUUM, ANALYZE …
    Query(Query),
}

/// What a routed statement does, as far as its command tag goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Select,
    Insert,
    Update,
    Delete,
    Other,
}

/// A statement that is routed.
#[derive(Clone, Debug)]
pub struct Query {
    pub verb: Verb,
    /// `false` only for what surely changes nothing: a read without FOR UPDATE or SHARE, that writes in no WITH, and calls only functions that are
    /// known to do nothing else but compute.
    pub writes: bool,
    /// It may leave something in its session: temporary tables, advisory locks, settings.
    pub pins: bool,
    /// `false`: the server refuses it in a transaction block (VACUUM).
    pub in_transaction: bool,
    /// The tables of the catalog that it mentions, by their keys there, each once.
    pub tables: Vec<String>,
    /// It asks a sequence that is no column's of the catalog. Each server has one of that name: where any shard would do, it has to be always the same.
    pub counts: bool,
    /// It calls `pg_notify`: whoever listens does so on one server.
    pub notifies: bool,
    /// Pleat has to give values first, and it is this text that is carried out.
    pub given: Option<Arc<Given>>,
    pub(super) keys: Vec<(usize, KeyType)>,
    pub(super) plan: Plan,
}

/// A statement with places for values that Pleat gives. The plan is of its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The client's text with more parameters in it.
    pub text: String,
    /// How many parameters are the client's. Those behind them are bigints:
    pub params: usize,
    /// in this order.
    pub values: Vec<GivenValue>,
}

/// A value that Pleat gives. Tables are told by their keys in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GivenValue {
    /// The next of the table's serial column.
    Next { table: String },
    /// The one that the session got last for the table: `currval`.
    Current { table: String },
    /// The one that the session got last: `lastval`.
    Last,
    /// `setval`: what comes next is above it; with `called` false it is the value itself.
    Set { table: String, to: i64, called: bool },
}

/// How a query finds its way.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// For each mention of a sharded table the keys that matter; `None`: all.
    pub keyed: Vec<Keyed>,
    /// The shards of the single tables that it mentions.
    pub singles: BTreeSet<ShardId>,
    /// What it is when `keyed` and `singles` don't lead to one shard.
    pub several: Several,
}

/// The keys of the rows of one mention that matter.
#[derive(Clone, Debug)]
pub(super) struct Keyed {
    pub key_type: KeyType,
    /// Where a row is stored: the most characters of the key's column, behind which spaces are cut off (`varchar(n)`).
    pub width: Option<usize>,
    /// The mention's key is stored, not compared: a value that can't be read is an error, not "any".
    pub stored: bool,
    pub keys: Option<Vec<Constant>>,
}

/// A value that is known when the statement is routed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Constant {
    Value(Value),
    /// A parameter, from 0.
    Param(usize),
}

/// What becomes of a statement that concerns several shards.
#[derive(Clone, Debug)]
pub(super) enum Several {
    /// Nothing of it is spread: any shard.
    Any,
    Every {
        reference: bool,
    },
    Spread(Box<Spread>),
    /// INSERT … VALUES: `keyed` has the keys of its rows in order.
    Rows(Rows),
    Refused(Box<SqlError>),
}

/// INSERT … VALUES in pieces.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    pub head: Piece,
    pub rows: Vec<Piece>,
    pub tail: Piece,
}

/// Text of the client with the parameters cut out: `texts[0] params[0] texts[1] …`.
#[derive(Clone, Debug, Default)]
pub(super) struct Piece {
    pub texts: Vec<String>,
    pub params: Vec<usize>,
}

/// Where a statement goes.
#[derive(Clone, Debug)]
pub enum Route<'a> {
    /// Any one shard, unchanged.
    Any,
    /// Unchanged, on the one shard that owns all of these. If several do, [`Query::scatter`] says how.
    Partitions(BTreeSet<PartitionId>),
    /// Unchanged, on this shard.
    Single(ShardId),
    /// A write, unchanged, on every shard, all or none. `reference`: each shard changes its copy, and the answer of one counts; else counts are
    /// summed up and rows of RETURNING appended. `prune`: only shards that own one of these have anything to do.
    Every { reference: bool, prune: Option<BTreeSet<PartitionId>> },
    /// An INSERT whose rows (numbered from 0) belong to these partitions: [`Query::rows`] gives the statement for some of them.
    Rows(BTreeMap<PartitionId, Vec<usize>>),
    /// A read over several shards: all, or with `prune` those that own one of these.
    Spread { plan: &'a Spread, prune: Option<BTreeSet<PartitionId>> },
}

/// A statement that Pleat made of a piece of the client's. Parameter `$k` of `text` is the client's parameter `params[k - 1]` (from 0). Its type
/// is the client's parameter's, too: without being told, a server may infer another one from the piece alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub text: Arc<str>,
    pub params: Vec<usize>,
}

/// A read over several shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spread {
    /// On each shard; the rows one after the other are the answer.
    Concat(Part),
    /// Rows go into temporary tables of one session (on any shard), in which `finish` gives the answer.
    Gather { fetches: Vec<Fetch>, finish: Part },
}

/// Rows that are fetched before a read is finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The temporary table that they go into, made as `CREATE TEMP TABLE "table" AS <part.text> WITH NO DATA` in the finishing session.
    pub table: String,
    /// Columns that `finish` needs as the temporary table's primary key (it groups by the table's). Mostly empty.
    pub primary_key: Vec<String>,
    pub part: Part,
    pub from: Source,
}

/// Where rows are fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// All shards that the route doesn't rule out.
    Sharded,
    Single(ShardId),
}

/// COPY … FROM STDIN or TO STDOUT.
#[derive(Clone, Debug)]
pub struct Copy {
    pub direction: Direction,
    /// The table, by its key in the catalog; `None` for a query, or a table that the catalog doesn't know (a temporary one, a system catalog).
    pub table: Option<String>,
    /// The table as the statement names it, quotes and schema included; empty for a query.
    pub name_as_written: String,
    /// The columns named; empty: all, in the table's order.
    pub columns: Vec<String>,
    /// `COPY (query) TO`: its text and its plan.
    pub query: Option<(String, Query)>,
    pub format: CopyFormat,
    /// One byte. The default is the format's: a tab, or a comma in CSV.
    pub delimiter: char,
    /// The default is the format's: `\N`, or nothing in CSV.
    pub null: String,
    pub header: bool,
    /// CSV's; one byte.
    pub quote: char,
    /// CSV's; one byte. The default is `quote`.
    pub escape: char,
    /// Columns of CSV that are always text, even where they look like `null`: FORCE_NOT_NULL. FORCE_NULL and FORCE_QUOTE are left to the server.
    pub force_not_null: Vec<String>,
    /// What follows the columns in the statement, as written: `FROM STDIN WITH (…)`.
    pub options_as_written: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    In,
    Out,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyFormat {
    Text,
    Csv,
    Binary,
}

/// A change of the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ddl {
    /// For people: `create table flights`.
    pub about: String,
    /// The statement without Pleat's clause.
    pub statement: String,
    /// CREATE TABLE: where the table's rows live, as the statement or the configuration says, else single.
    pub placement: Option<Placement>,
    /// Something that the user should know: where the rows of a new table live, when the statement didn't say so.
    pub notice: Option<String>,
    /// ALTER TABLE … SHARD BY, REFERENCE, SINGLE: the tables whose placements change, by their keys in the catalog, all at once. Nothing else
    /// does, and servers have nothing to run.
    pub places: Vec<(String, Placement)>,
    /// The table that the statement is about, by its key in the catalog (or the one that it will have).
    pub table: Option<String>,
    pub if_not_exists: bool,
    pub if_exists: bool,
    /// A session's own (CREATE TEMP TABLE …): no change of the cluster's schema, but something that its session keeps.
    pub temporary: bool,
    /// `false`: the server refuses it in a transaction block (CONCURRENTLY, CREATE DATABASE, ALTER SYSTEM …).
    pub in_transaction: bool,
    /// Cheap enough to be tried on one shard, in a transaction that is rolled back, before all shards do it: no CREATE INDEX.
    pub try_first: bool,
    /// CREATE UNIQUE INDEX: a shard sees its own rows only, so the shard key has to be among the columns.
    pub unique: Option<UniqueIndex>,
}

/// What a unique index is on. An expression is no column, so it isn't among `columns`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueIndex {
    /// By its key in the catalog.
    pub table: String,
    pub columns: Vec<String>,
}
