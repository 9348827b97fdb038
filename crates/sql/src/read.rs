//! Reads: one route for each statement, chosen when its parameters are known.
//!
//! From best to worst:
//!
//! 1. [`Route::Anywhere`]: reference tables or none. Any shard has all of it.
//! 2. [`Route::Shard`]: the keys tie every row that matters to known partitions (see `scope`). If one shard owns
//!    them all, the user's own statement runs there, untouched.
//! 3. [`Route::Concat`]: each shard runs the statement on its rows (see `spread`), and the answers are appended, or merged
//!    by their order.
//! 4. [`Route::Gather`]: what the shards found goes into an in-memory SQLite, the *finisher*, which runs a statement over
//!    it. At best the shards have grouped their rows or left out duplicates already (`forms`, `partial`), else they have
//!    answered subqueries (`finish`), and in the worst case they send the rows and columns that the statement needs
//!    (`fetch`), which is always right, whatever the statement does.
//!
//! What may be pushed to the shards is decided once per statement text; parameters only choose partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pleat_cluster::{KeyError, KeyType, PartitionId, ShardId, TableKind, Value, partition_of};
use serde::{Deserialize, Serialize};
use sqlparser::ast::Query;

use crate::clauses::{Output, Span};
use crate::error::SqlError;
use crate::finish::{self, FinishPlan};
use crate::forms::{Form, RowsEnd, form};
use crate::order::Order;
use crate::params::{Params, Slots};
use crate::partial::RESERVED;
use crate::scope::Analysis;
use crate::shard_sql::names_schema;
use crate::spread::Spreading;
use crate::tree::Constant;
use crate::why::{NotPushed, Why};

/// The table of the shards' answers in the finisher.
const PARTS: &str = "__parts";

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
    /// The rows of `fetch`, shard after shard, or merged by `order` (each shard's rows come in it): `offset` of them
    /// skipped, then at most `limit`. The first `hidden` columns are there for the order only.
    Concat { fetch: Fetch, order: Vec<Order>, hidden: usize, limit: Option<u64>, offset: u64 },
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
    spread: Result<Several, SqlError>,
}

/// How the statement is answered from several shards.
#[derive(Clone, Debug)]
struct Several {
    rows: Option<RowsEnd>,
    /// When that is none, or can't be used with the values given.
    finish: FinishPlan,
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
    learn(&mut analysis, query);
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
    let spread = several(&analysis, query, span);
    Ok(ReadPlan {
        whole: Template::verbatim(&analysis, span, true),
        slots: analysis.slots.clone(),
        tables: tables.into_iter().collect(),
        singles,
        mentions,
        spread,
    })
}

/// Lets the keys that conditions give to subqueries and CTEs limit the tables inside of these.
fn learn(analysis: &mut Analysis, query: &Query) {
    if analysis.volatile {
        return;
    }
    let mut spreading = Spreading::new(analysis);
    // Whether the statement spreads is asked again, once the keys are known.
    let _ = spreading.query(query);
    let (learned, ties) = (spreading.learned, spreading.ties);
    for (mention, keys) in learned {
        analysis.occurrences[mention].keys.get_or_insert(keys);
    }
    for (limited, limiting) in ties {
        analysis.occurrences[limited].tied_to.insert(limiting);
    }
}

/// The best way to answer from several shards.
fn several(analysis: &Analysis, query: &Query, span: Span) -> Result<Several, SqlError> {
    if let Some(token) = analysis.rowid {
        return Err(SqlError::unsupported("rowid names a row only within one shard")
            .hint("use the primary key's columns instead")
            .at(analysis.tokens.text, analysis.tokens.offset(token)));
    }
    let plain = |finish| Several { rows: None, finish };
    if let Some(why) = untouchable(analysis) {
        return Ok(plain(finish::whole(analysis, span, why)));
    }
    match form(&mut Spreading::new(analysis), query, span) {
        Ok(Form::Rows(plan)) if !plan.distinct => {
            Ok(Several { rows: Some(plan.ended()), finish: finish::whole(analysis, span, Why::LimitValue) })
        }
        Ok(Form::Rows(plan)) => match plan.gathered(analysis, PARTS, false) {
            Ok((fetch, finish)) => Ok(plain(FinishPlan::of(fetch, finish, Why::Distinct, analysis, span))),
            Err(why) => Ok(plain(finish::finish(analysis, query, span, why))),
        },
        Ok(Form::Partial(plan, why)) => {
            let (fetch, finish) = plan.gathered(PARTS);
            Ok(plain(FinishPlan::of(fetch, finish, why, analysis, span)))
        }
        Err(why) => Ok(plain(finish::finish(analysis, query, span, why))),
    }
}

/// Why a statement must not be taken apart at all.
fn untouchable(analysis: &Analysis) -> Option<Why> {
    if analysis.volatile {
        return Some(Why::Volatile);
    }
    if analysis.names(|_| true).iter().any(|name| name.starts_with(RESERVED)) {
        return Some(Why::Reserved);
    }
    names_schema(analysis).then_some(Why::SchemaName)
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
        let several = self.spread.as_ref().map_err(Clone::clone)?;
        if let Some(route) = several.rows.as_ref().and_then(|rows| rows.route(values, partition_count)) {
            return Ok(route);
        }
        let fetches = several.finish.fetches.iter().map(|fetch| fetch.bind(values, partition_count)).collect();
        let finish = several.finish.finish.as_ref().unwrap_or(&self.whole).bind(values);
        Ok(Route::Gather { fetches, finish })
    }

    /// What the shards don't answer on their own when the statement is gathered.
    pub(crate) fn not_pushed(&self) -> &[NotPushed] {
        self.spread.as_ref().map_or(&[], |several| &several.finish.not_pushed)
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
