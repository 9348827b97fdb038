//! What a protocol hands to the [`Executor`](super::Executor), and what it gets back.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream::BoxStream;
use pleat_cluster::{Generation, OperationId, ShardId, Value};

use super::{Failure, Token};

/// The parameters of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Params {
    /// For `?` and `?N`.
    Positional(Vec<Value>),
    /// For `:name`, `@name` and `$name`; the names with or without their sigil.
    Named(BTreeMap<String, Value>),
}

impl Default for Params {
    fn default() -> Self {
        Params::Positional(Vec::new())
    }
}

/// What a read must see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Everything that was acknowledged before it began, on each shard.
    #[default]
    Strong,
    /// At least what the token's writes did.
    ReadYourWrites,
    /// What some replica has, perhaps a little old.
    Eventual,
}

/// One request: a statement, or several that are done all or not at all.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub text: String,
    pub params: Params,
    pub consistency: Consistency,
    /// For [`Consistency::ReadYourWrites`], and to be carried on by writes.
    pub token: Option<Token>,
    /// Makes a write exactly once, however often it is sent.
    pub idempotency_key: Option<String>,
    pub timeout: Option<Duration>,
    /// Through which interface it came, for the journal: `http`.
    pub origin: &'static str,
}

/// Where a request was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    One(ShardId),
    Many(Vec<ShardId>),
}

impl Touched {
    /// One shard is `One`, whatever the plan looked like.
    pub fn of(shards: Vec<ShardId>) -> Self {
        match shards.as_slice() {
            [one] => Touched::One(*one),
            _ => Touched::Many(shards),
        }
    }
}

/// Rows as they arrive, in chunks of bounded size. Whoever hands them on to a client drops them when it takes none any
/// more: until then they hold places and snapshots on shards, to the end of the statement's time.
pub type Rows = BoxStream<'static, Result<Vec<Vec<Value>>, Failure>>;

/// What one statement of a write gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effect {
    /// Of `RETURNING`; empty without it.
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Value>>,
    pub rows_affected: u64,
    pub last_insert_id: Option<i64>,
}

/// What a request gave.
pub enum Output {
    /// A read. The first chunk has passed every ownership check; nothing that follows is routed again.
    Rows { columns: Vec<String>, rows: Rows },
    /// A write or a schema change: one effect per statement.
    Effects(Vec<Effect>),
}

/// The answer to a request.
pub struct Response {
    pub output: Output,
    pub touched: Touched,
    /// The catalog that it was routed by.
    pub generation: Generation,
    /// After a write: what to send along to read it.
    pub token: Option<Token>,
    pub notice: Option<String>,
    /// The operation that carried out a schema change.
    pub operation: Option<OperationId>,
    /// The idempotency key had been seen before: this is what it gave then.
    pub replayed: bool,
}

impl Params {
    /// As the planner takes them.
    pub(super) fn borrow(&self) -> pleat_sql::Params<'_> {
        match self {
            Params::Positional(values) => pleat_sql::Params::Positional(values),
            Params::Named(values) => pleat_sql::Params::Named(values),
        }
    }
}
