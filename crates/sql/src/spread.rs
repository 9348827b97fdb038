//! Statements that each shard can answer for its own rows.
//!
//! A SELECT *spreads* over shards if its joined rows are the disjoint union of what the shards find when each joins
//! its own rows: one sharded table on the preserved side of all joins (the *driver*), every other sharded table tied
//! to it by equality of the keys (then the partner of a row is on the row's own shard), and any number of reference
//! tables. A reference table on the preserved side with a sharded one on the nullable side does not spread: every
//! shard would add its own NULLs.
//!
//! Without aggregates, DISTINCT, windows and ORDER BY the answers need only be appended: [`concat`]. `LIMIT n OFFSET m`
//! then becomes `LIMIT n + m` on each shard.

use std::collections::BTreeSet;

use pleat_cluster::{KeyType, TableKind, Value};
use sqlparser::ast::{Expr, GroupByExpr, LimitClause, OrderByKind, Query, Select, SelectItem, SetExpr};

use crate::clauses::{Clauses, Output, Span, list};
use crate::fetch::{FetchPlan, Place, fetches, unqualified};
use crate::functions;
use crate::lex::quote;
use crate::parse::token_of;
use crate::read::{Fetch, Route, Template};
use crate::scope::{Analysis, column_name};
use crate::tree::{Constant, Part, argument_count, bare, last_name, lower, parts};

/// A statement whose answer is the shards' answers, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct ConcatPlan {
    place: Place,
    sql: Template,
    filtered: Template,
    limit: Option<Constant>,
    offset: Option<Constant>,
    /// For a LIMIT that turns out to be no plain number.
    fallback: Vec<FetchPlan>,
}

impl ConcatPlan {
    /// `None` when the LIMIT's value is not a whole number: SQLite must judge it.
    pub fn route(&self, values: &[Value], partition_count: u32) -> Option<Route> {
        let limit = whole_number(self.limit.as_ref(), values)?;
        let offset = whole_number(self.offset.as_ref(), values)?;
        // A negative LIMIT is none, a negative OFFSET is 0.
        let limit = limit.and_then(|limit| u64::try_from(limit).ok());
        let offset = offset.map_or(0, |offset| u64::try_from(offset).unwrap_or(0));
        let (mut sql, mut filtered) = (self.sql.sql.clone(), self.filtered.sql.clone());
        if let Some(rows) = limit.map(|limit| limit.saturating_add(offset)).and_then(|rows| i64::try_from(rows).ok()) {
            sql = format!("{sql} LIMIT {rows}").into();
            filtered = format!("{filtered} LIMIT {rows}").into();
        }
        let fetch = Fetch {
            table: String::new(),
            create_sql: String::new(),
            source: self.place.source(values, partition_count),
            sql,
            sql_filtered: Some(filtered),
            params: self.sql.values(values),
        };
        Some(Route::Concat { fetch, limit, offset })
    }

    pub fn fallback(&self) -> &[FetchPlan] {
        &self.fallback
    }
}

/// `Some(None)` without a clause, `Some(Some(n))` for a whole number, `None` for anything else.
fn whole_number(constant: Option<&Constant>, values: &[Value]) -> Option<Option<i64>> {
    let value = match constant {
        None => return Some(None),
        Some(Constant::Value(value)) => value,
        Some(Constant::Slot(slot)) => values.get(*slot)?,
    };
    match value {
        Value::Integer(number) => Some(Some(*number)),
        _ => None,
    }
}

/// A SELECT that spreads over shards.
pub(crate) struct SpreadSelect<'q> {
    pub select: &'q Select,
    pub scope: usize,
    pub clauses: Clauses,
    /// The occurrence that the others are tied to.
    pub driver: usize,
}

/// Whether the query is one SELECT that spreads over shards; otherwise why not.
pub(crate) fn spreads<'q>(analysis: &Analysis, query: &'q Query, span: Span) -> Result<SpreadSelect<'q>, &'static str> {
    let SetExpr::Select(select) = &*query.body else { return Err("it combines several SELECTs") };
    if analysis.opaque {
        return Err("it has subqueries, CTEs or table functions");
    }
    if analysis.volatile {
        return Err("a function in it answers differently at each call");
    }
    let start = token_of(select.select_token.0.span).ok_or("its place in the text is not known")?;
    let scope = analysis.scope_of_select.get(&start).copied().ok_or("its place in the text is not known")?;
    if analysis.scopes[scope].odd {
        return Err("it has RIGHT, FULL or nested joins");
    }
    let clauses = Clauses::of(analysis.tokens, start, span.1);
    Ok(SpreadSelect { select, scope, clauses, driver: driver(analysis)? })
}

fn driver(analysis: &Analysis) -> Result<usize, &'static str> {
    let all = 0..analysis.occurrences.len();
    if all.clone().any(|at| matches!(analysis.table(at).kind, TableKind::Single { .. })) {
        return Err("it reads a single table");
    }
    let sharded: Vec<usize> = all.filter(|at| analysis.key_type(*at).is_some()).collect();
    let driver = sharded.iter().copied().find(|at| !analysis.occurrences[*at].nullable);
    let driver = driver.ok_or("no sharded table is on the preserved side of its joins")?;
    let mut tied = BTreeSet::from([driver]);
    while let Some(next) =
        sharded.iter().find(|at| !tied.contains(at) && !analysis.occurrences[**at].tied_to.is_disjoint(&tied))
    {
        tied.insert(*next);
    }
    if sharded.iter().all(|at| tied.contains(at)) {
        Ok(driver)
    } else {
        Err("its sharded tables are not joined on their shard keys")
    }
}

impl SpreadSelect<'_> {
    /// The condition that a shard owns the driver's row; the tied rows have the same key.
    pub fn owned(&self, analysis: &Analysis) -> String {
        let key = analysis.table(self.driver).shard_key().map_or("", |(key, _)| key);
        format!("pleat_owned({}.{})", quote(&analysis.occurrences[self.driver].alias), quote(key))
    }

    pub fn place(&self, analysis: &Analysis) -> Place {
        let key_type = analysis.key_type(self.driver).unwrap_or(KeyType::Integer);
        Place::Sharded { key_type, keys: analysis.occurrences[self.driver].keys.clone() }
    }

    /// Writes ` FROM … WHERE …`, with the ownership filter if asked for.
    pub fn write_source(&self, analysis: &Analysis, owned: bool, output: &mut Output) {
        let (tokens, slots) = (analysis.tokens, analysis.slots);
        if let Some(from) = self.clauses.from {
            output.push(" FROM ");
            output.span(tokens, slots, from);
        }
        match (owned, self.clauses.filter) {
            (true, Some(filter)) => {
                output.push(&format!(" WHERE {} AND (", self.owned(analysis)));
                output.span(tokens, slots, filter);
                output.push(")");
            }
            (true, None) => output.push(&format!(" WHERE {}", self.owned(analysis))),
            (false, Some(filter)) => {
                output.push(" WHERE ");
                output.span(tokens, slots, filter);
            }
            (false, None) => {}
        }
    }
}

/// Plans a statement whose answers need only be appended; otherwise says why not.
pub(crate) fn concat(analysis: &Analysis, query: &Query, span: Span) -> Result<ConcatPlan, &'static str> {
    let spread = spreads(analysis, query, span)?;
    let select = spread.select;
    if is_grouped(select) || has_calls(select, query, false) {
        return Err("it has aggregates, groups or windows");
    }
    if select.distinct.is_some() {
        return Err("it has DISTINCT");
    }
    if query.order_by.is_some() {
        return Err("it has ORDER BY");
    }
    let (limit, offset) = limit_of(query).ok_or("its LIMIT is an expression")?;
    let items = items(analysis, &spread).ok_or("its SELECT list could not be cut into items")?;
    let write = |owned: bool| {
        let mut output = Output::default();
        output.push("SELECT ");
        items.iter().for_each(|item| item.write(analysis, &mut output));
        spread.write_source(analysis, owned, &mut output);
        Template::from(output)
    };
    Ok(ConcatPlan {
        place: spread.place(analysis),
        sql: write(false),
        filtered: write(true),
        limit,
        offset,
        fallback: fetches(analysis, query, span),
    })
}

/// An item of a SELECT list, and the name to give it where SQLite would take the user's text for its name.
struct Item {
    span: Span,
    first: bool,
    name: Option<String>,
}

impl Item {
    fn write(&self, analysis: &Analysis, output: &mut Output) {
        output.push(if self.first { "" } else { ", " });
        output.span(analysis.tokens, analysis.slots, self.span);
        if let Some(name) = &self.name {
            output.push(&format!(" AS {}", quote(name)));
        }
    }
}

fn items(analysis: &Analysis, spread: &SpreadSelect) -> Option<Vec<Item>> {
    let spans = list(analysis.tokens, spread.clauses.items);
    let items = &spread.select.projection;
    let named = |(at, (item, span)): (usize, (&SelectItem, Span))| {
        let text = || analysis.tokens.slice(span.0, span.1).to_owned();
        let name = match item {
            SelectItem::UnnamedExpr(expr) if column_name(bare(expr)).is_none() => Some(text()),
            _ => None,
        };
        Item { span, first: at == 0, name }
    };
    (spans.len() == items.len()).then(|| items.iter().zip(spans).enumerate().map(named).collect())
}

/// LIMIT and OFFSET, if each is a constant or missing.
pub(crate) fn limit_of(query: &Query) -> Option<(Option<Constant>, Option<Constant>)> {
    let (limit, offset) = match &query.limit_clause {
        None => (None, None),
        Some(LimitClause::LimitOffset { limit, offset, .. }) => {
            (limit.as_ref(), offset.as_ref().map(|offset| &offset.value))
        }
        Some(LimitClause::OffsetCommaLimit { offset, limit }) => (Some(limit), Some(offset)),
    };
    let constant = |expr: Option<&Expr>| expr.map_or(Some(None), |expr| Constant::of(expr).map(Some));
    Some((constant(limit)?, constant(offset)?))
}

pub(crate) fn is_grouped(select: &Select) -> bool {
    let groups = matches!(&select.group_by, GroupByExpr::Expressions(groups, _) if groups.is_empty());
    !groups || select.having.is_some()
}

/// Whether the SELECT list or the ORDER BY calls an aggregate or (always) a window function.
pub(crate) fn has_calls(select: &Select, query: &Query, windows_only: bool) -> bool {
    let items = select.projection.iter().filter_map(|item| match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
        _ => None,
    });
    let order = query.order_by.iter().flat_map(|order| match &order.kind {
        OrderByKind::Expressions(terms) => terms.iter().map(|term| &term.expr).collect(),
        OrderByKind::All(_) => Vec::new(),
    });
    items.chain(order).chain(select.having.as_ref()).any(|expr| calls(expr, windows_only))
}

fn calls(expr: &Expr, windows_only: bool) -> bool {
    if let Expr::Function(function) = expr {
        let aggregate = functions::is_aggregate(&last_name(&function.name), argument_count(function));
        if function.over.is_some() || (aggregate && !windows_only) {
            return true;
        }
    }
    let children = parts(expr).unwrap_or_default();
    children.into_iter().any(|part| matches!(part, Part::Expr(inner) if calls(inner, windows_only)))
}

/// The first rows in some order, which each shard can find on its own.
#[derive(Clone, Debug)]
pub(crate) struct TopRows {
    order: String,
    limit: Constant,
    offset: Option<Constant>,
}

impl TopRows {
    /// ` ORDER BY … LIMIT n + m`; `None` when that is no plain number, or no limit.
    pub fn clause(&self, values: &[Value]) -> Option<String> {
        let limit = whole_number(Some(&self.limit), values)?.filter(|limit| *limit >= 0)?;
        let offset = whole_number(self.offset.as_ref(), values)?.unwrap_or(0);
        let rows = limit.checked_add(offset.max(0))?;
        Some(format!("{} LIMIT {rows}", self.order))
    }
}

/// For a plain SELECT from one table with ORDER BY and LIMIT: what each shard may stop at.
///
/// Every filter must run on the shards (else rows beyond the limit could matter), and each term must be about the
/// table's own columns, not about an alias of the SELECT list.
pub(crate) fn top_rows(analysis: &Analysis, query: &Query, span: Span) -> Option<TopRows> {
    let spread = spreads(analysis, query, span).ok()?;
    let select = spread.select;
    if analysis.occurrences.len() != 1
        || is_grouped(select)
        || select.distinct.is_some()
        || has_calls(select, query, false)
    {
        return None;
    }
    let conditions = spread.clauses.filter.map_or(0, |filter| crate::clauses::conjuncts(analysis.tokens, filter).len());
    if analysis.occurrences[0].filters.len() != conditions {
        return None;
    }
    let (limit, offset) = limit_of(query)?;
    let limit = limit?;
    let order = query.order_by.as_ref()?;
    let OrderByKind::Expressions(terms) = &order.kind else { return None };
    let local = |expr: &Expr| {
        let mut used = BTreeSet::new();
        analysis.is_row_local(expr, spread.scope, &mut used) && !used.is_empty() && !uses_alias(expr, select)
    };
    if !terms.iter().all(|term| local(&term.expr)) {
        return None;
    }
    let mut output = Output::default();
    output.push(" ORDER BY ");
    for (at, term) in list(analysis.tokens, spread.clauses.order?).into_iter().enumerate() {
        output.push(if at > 0 { ", " } else { "" });
        unqualified(analysis, term, &mut output);
    }
    output.slots.is_empty().then_some(TopRows { order: output.sql, limit, offset })
}

/// Whether an unqualified name in `expr` could mean an alias of the SELECT list that is something else.
pub(crate) fn uses_alias(expr: &Expr, select: &Select) -> bool {
    if let Some((None, name)) = column_name(expr) {
        return select.projection.iter().any(|item| match item {
            SelectItem::ExprWithAlias { expr, alias } => {
                lower(alias) == name && column_name(expr).is_none_or(|(_, column)| column != name)
            }
            _ => false,
        });
    }
    let children = parts(expr).unwrap_or_default();
    children.into_iter().any(|part| matches!(part, Part::Expr(inner) if uses_alias(inner, select)))
}
