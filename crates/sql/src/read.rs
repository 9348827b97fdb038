//! Reads: one route for each statement, chosen when its parameters are known.
//!
//! From best to worst:
//!
//! 1. [`Route::Anywhere`]: reference tables or none. Any shard has all of it.
//! 2. [`Route::Shard`]: the keys tie every row that matters to known partitions (see `scope`). If one shard owns
//!    them all, the user's own statement runs there, untouched.
//! 3. [`Route::Concat`]: each shard runs the statement on its rows, and the answers are appended (see `spread`).
//! 4. [`Route::Gather`] with partial aggregates: each shard groups its rows, the finisher merges the groups (`partial`).
//! 5. [`Route::Gather`]: the rows and columns that the statement needs are fetched from every table (`fetch`), and the
//!    user's own statement runs on them in the finisher. Always right, whatever the statement does.
//!
//! What may be pushed to the shards is decided once per statement text; parameters only choose partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pleat_cluster::{KeyError, KeyType, PartitionId, ShardId, TableKind, Value, partition_of};
use serde::{Deserialize, Serialize};
use sqlparser::ast::Query;

use crate::clauses::{Output, Span};
use crate::error::SqlError;
use crate::fetch::{FetchPlan, fetches};
use crate::params::{Params, Slots};
use crate::partial::{NOTHING_TO_MERGE, PartialPlan, partial};
use crate::scope::Analysis;
use crate::spread::{ConcatPlan, concat};
use crate::tree::Constant;

/// A statement with its values: value `i` is for SQLite's parameter `i + 1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    pub sql: Arc<str>,
    pub params: Vec<Value>,
}

/// Units of ownership: partitions, and single tables with the shard that has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Units {
    pub partitions: BTreeSet<PartitionId>,
    /// By the table's name in lower case.
    pub singles: BTreeMap<String, ShardId>,
}

impl Units {
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty() && self.singles.is_empty()
    }

    pub(crate) fn add(&mut self, other: Units) {
        self.partitions.extend(other.partitions);
        self.singles.extend(other.singles);
    }
}

/// How a read is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Route {
    /// On any one shard.
    Anywhere(Bound),
    /// Unchanged on the shard that owns all of `units`. If no single one does, ask for [`ReadPlan::scatter`].
    Shard { units: Units, statement: Bound },
    /// The rows of `fetch`, shard after shard: `offset` of them skipped, then at most `limit`.
    Concat { fetch: Fetch, limit: Option<u64>, offset: u64 },
    /// The rows of each fetch go into a table of their own in the finisher, which then runs `finish`.
    Gather { fetches: Vec<Fetch>, finish: Bound },
}

/// Rows to fetch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fetch {
    /// The table's name in the finisher (empty in a `Concat`).
    pub table: String,
    /// Makes that table (empty in a `Concat`).
    pub create_sql: String,
    pub source: Source,
    pub sql: Arc<str>,
    /// To run instead on a shard that holds rows it doesn't own.
    pub sql_filtered: Option<Arc<str>>,
    /// For both statements.
    pub params: Vec<Value>,
}

/// Who has the rows of a fetch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The shards. With `prune`, only the owners of these partitions; when it is empty no row can match, and any
    /// one shard is asked for the sake of column names and of aggregates over nothing.
    Sharded {
        prune: Option<BTreeSet<PartitionId>>,
    },
    /// Any one shard.
    Reference,
    Single(ShardId),
}

/// A planned SELECT.
#[derive(Clone, Debug)]
pub struct ReadPlan {
    whole: Template,
    slots: Slots,
    tables: Vec<String>,
    singles: BTreeMap<String, ShardId>,
    /// For each mention of a sharded table: its key's type, and the keys that matter.
    mentions: Vec<(KeyType, Option<Vec<Constant>>)>,
    spread: Result<Spread, SqlError>,
    pub(crate) reason: String,
}

/// How the statement is answered from several shards.
#[derive(Clone, Debug)]
enum Spread {
    Concat(ConcatPlan),
    Partial(PartialPlan),
    Gather(Vec<FetchPlan>),
}

/// SQL whose parameter `i + 1` takes the request's slot `slots[i]`.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    pub sql: Arc<str>,
    pub slots: Vec<usize>,
}

impl Template {
    /// The statement `span` as the user wrote it. If it has the text to itself, its parameters are numbered already.
    pub fn verbatim(analysis: &Analysis, span: Span, alone: bool) -> Template {
        if alone {
            let sql = analysis.tokens.slice(span.0, span.1).into();
            return Template { sql, slots: (0..analysis.slots.count()).collect() };
        }
        let mut output = Output::default();
        output.span(analysis.tokens, analysis.slots, span);
        output.into()
    }

    pub fn bind(&self, values: &[Value]) -> Bound {
        Bound { sql: self.sql.clone(), params: self.values(values) }
    }

    pub fn values(&self, values: &[Value]) -> Vec<Value> {
        self.slots.iter().map(|slot| values.get(*slot).cloned().unwrap_or(Value::Null)).collect()
    }
}

impl From<Output> for Template {
    fn from(output: Output) -> Self {
        Template { sql: output.sql.into(), slots: output.slots }
    }
}

/// Plans the SELECT that `span` spells.
pub(crate) fn plan_read(mut analysis: Analysis, query: &Query, span: Span) -> Result<ReadPlan, SqlError> {
    analysis.query(query, None)?;
    analysis.finish()?;
    let tables: BTreeSet<String> = analysis.occurrences.iter().map(|occurrence| occurrence.table.clone()).collect();
    let singles = tables.iter().filter_map(|table| match analysis.tables[table].kind {
        TableKind::Single { shard } => Some((table.clone(), shard)),
        TableKind::Sharded { .. } | TableKind::Reference => None,
    });
    let singles: BTreeMap<_, _> = singles.collect();
    let mentions = (0..analysis.occurrences.len())
        .filter_map(|at| Some((analysis.key_type(at)?, analysis.occurrences[at].keys.clone())))
        .collect();
    let (spread, reason) = spread(&analysis, query, span);
    Ok(ReadPlan {
        whole: Template::verbatim(&analysis, span, true),
        slots: analysis.slots.clone(),
        tables: tables.into_iter().collect(),
        singles,
        mentions,
        spread,
        reason,
    })
}

/// The best way to answer from several shards, and why not a better one.
fn spread(analysis: &Analysis, query: &Query, span: Span) -> (Result<Spread, SqlError>, String) {
    if let Some(token) = analysis.rowid {
        let error = SqlError::unsupported("rowid names a row only within one shard")
            .hint("use the primary key's columns instead")
            .at(analysis.tokens.text, analysis.tokens.offset(token));
        return (Err(error), "rowid is used".to_owned());
    }
    let not_concat = match concat(analysis, query, span) {
        Ok(plan) => return (Ok(Spread::Concat(plan)), "each shard answers for its own rows".to_owned()),
        Err(reason) => reason,
    };
    match partial(analysis, query, span) {
        Ok(plan) => (Ok(Spread::Partial(plan)), format!("{not_concat}; each shard aggregates its own rows")),
        Err(reason) => {
            let reason = if reason == not_concat || reason == NOTHING_TO_MERGE {
                not_concat.to_owned()
            } else {
                format!("{not_concat}; {reason}")
            };
            (Ok(Spread::Gather(fetches(analysis, query, span))), reason)
        }
    }
}

impl ReadPlan {
    /// The statement as it stands: right wherever one shard has every table and owns every row that it has.
    pub fn whole(&self, params: &Params) -> Result<Bound, SqlError> {
        Ok(self.whole.bind(&self.slots.bind(params)?))
    }

    /// The catalog's tables that the statement mentions, by lower-case name.
    pub fn tables(&self) -> &[String] {
        &self.tables
    }

    /// The best route.
    pub fn route(&self, params: &Params, partition_count: u32) -> Result<Route, SqlError> {
        let values = self.slots.bind(params)?;
        if let Some(units) = self.units(&values, partition_count) {
            let statement = self.whole.bind(&values);
            return Ok(if units.is_empty() { Route::Anywhere(statement) } else { Route::Shard { units, statement } });
        }
        self.spread_over(&values, partition_count)
    }

    /// The best route for when the units of a [`Route::Shard`] are on several shards: never a `Shard`.
    pub fn scatter(&self, params: &Params, partition_count: u32) -> Result<Route, SqlError> {
        self.spread_over(&self.slots.bind(params)?, partition_count)
    }

    /// The units that every row that matters lives in, if they are known and may be on one shard.
    fn units(&self, values: &[Value], partition_count: u32) -> Option<Units> {
        let mut shards = self.singles.values();
        let first = shards.next();
        if shards.any(|shard| Some(shard) != first) {
            return None;
        }
        let mut units = Units { singles: self.singles.clone(), ..Units::default() };
        for (key_type, keys) in &self.mentions {
            units.partitions.extend(partitions(keys.as_deref()?, *key_type, values, partition_count)?);
        }
        Some(units)
    }

    fn spread_over(&self, values: &[Value], partition_count: u32) -> Result<Route, SqlError> {
        if self.mentions.is_empty() && self.singles.is_empty() {
            return Ok(Route::Anywhere(self.whole.bind(values)));
        }
        match self.spread.as_ref().map_err(Clone::clone)? {
            Spread::Concat(plan) => match plan.route(values, partition_count) {
                Some(route) => Ok(route),
                None => Ok(self.gathered(plan.fallback(), values, partition_count)),
            },
            Spread::Partial(plan) => Ok(plan.route(values, partition_count)),
            Spread::Gather(fetches) => Ok(self.gathered(fetches, values, partition_count)),
        }
    }

    fn gathered(&self, fetches: &[FetchPlan], values: &[Value], partition_count: u32) -> Route {
        let fetches = fetches.iter().map(|fetch| fetch.bind(values, partition_count)).collect();
        Route::Gather { fetches, finish: self.whole.bind(values) }
    }
}

/// The partitions of `keys`; `None` when one of them can't be placed exactly.
///
/// A key that no stored key can equal (NULL, `1.5` for an integer key, a blob for a text key) is in no partition.
pub(crate) fn partitions(
    keys: &[Constant],
    key_type: KeyType,
    values: &[Value],
    partition_count: u32,
) -> Option<BTreeSet<PartitionId>> {
    let mut found = BTreeSet::new();
    for key in keys {
        let value = match key {
            Constant::Value(value) => value,
            Constant::Slot(slot) => values.get(*slot)?,
        };
        match partition_of(value, key_type, partition_count) {
            Ok(partition) => {
                found.insert(partition);
            }
            Err(KeyError::Null) => {}
            Err(KeyError::Type { .. }) if never_equal(value, key_type) => {}
            Err(KeyError::Type { .. }) => return None,
        }
    }
    Some(found)
}

/// Whether no key of this type can equal `value`, which [`partition_of`] can't place. `'1e3'` may equal an integer
/// key and `1.5` a text key, after conversions that only SQLite itself should make.
fn never_equal(value: &Value, key_type: KeyType) -> bool {
    match (key_type, value) {
        (KeyType::Integer, Value::Real(_) | Value::Blob(_)) => true,
        (KeyType::Text, Value::Blob(_)) => true,
        (KeyType::Bytes, value) => !matches!(value, Value::Blob(_)),
        _ => false,
    }
}
