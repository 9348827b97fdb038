//! Which queries the shards can answer for their own rows.
//!
//! Every query, from the statement down to the last subquery, is asked one question: *is its answer the disjoint
//! union of the answers that the shards give for the rows they own*, and which of its columns carry the shard key
//! ([`Shape`])? The answer is built bottom-up:
//!
//! - a sharded table is spread, its key column carries the key; reference tables and constants are the same everywhere;
//! - joins of spread sources are spread if equality of their keys ties them together (then a row's partners are on its
//!   own shard), see `joins`;
//! - GROUP BY, DISTINCT and windows keep a query spread if they contain a column that carries the key: then no group
//!   has rows of two shards. So do UNION, INTERSECT and EXCEPT if such a column is at the same place on both sides;
//! - a subquery in an expression must give on the row's shard what it gives over all: it reads reference tables only,
//!   or `WHERE z.k = outer.k` ties it to the row ([`Lie::Local`]), or it is `key IN (SELECT key …)`.
//!
//! The reasoning never looks at the placement: it holds for any division of the keys, also when every key has a shard
//! of its own. So a condition `x.k = 5` on a spread source `x` (a subquery, a CTE) limits all mentions of sharded tables
//! inside `x` to that key: this is [`Spreading::learned`].
//!
//! What is not understood is an error with its reason ([`Why`]), never a guess.
//!
//! `sets` knows UNION and the like, `block` a single SELECT, `columns` what the columns of an answer carry, `subqueries` what
//! expressions may contain.

mod block;
mod columns;
mod sets;
mod subqueries;

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{KeyType, TableKind};
use sqlparser::ast::{Expr, LimitClause, ObjectName, OrderByKind, Query, TableFactor, With};

use crate::fetch::is_strict;
use crate::frame::{Frame, Key, Kind, Lie, Named, OutColumn, Shape, Source, resolve};
use crate::functions;
use crate::parse::token_of;
use crate::scope::{Analysis, column_name};
use crate::tree::{Constant, bare, last_name, lower};
use crate::why::Why;

pub(crate) use block::{Rows, group_term, has_calls, is_grouped, ordinal};
pub(crate) use columns::kind_of;
use columns::renamed;
pub(crate) use sets::{Arm, Operator, arms};

/// What is known while a statement is looked at.
pub(crate) struct Spreading<'m, 'a> {
    pub analysis: &'m Analysis<'a>,
    pub frames: Vec<Frame<'a>>,
    /// A name that nothing in sight explains: the query may belong to one around it.
    pub unresolved: bool,
    /// Keys that limit mentions, and mentions whose keys limit others'.
    pub learned: Vec<(usize, Vec<Constant>)>,
    pub ties: Vec<(usize, usize)>,
    ctes: Vec<Cte<'a>>,
    occurrences: BTreeMap<usize, usize>,
    /// The mentions of sharded tables in the order they were come across.
    seen: Vec<usize>,
}

/// A CTE in sight.
struct Cte<'a> {
    name: String,
    /// `None` until its body is read: a mention of it there is recursion.
    shape: Option<Result<Shape<'a>, Why>>,
    reading: bool,
    recursive: bool,
}

impl<'m, 'a> Spreading<'m, 'a> {
    pub fn new(analysis: &'m Analysis<'a>) -> Self {
        let tokens = analysis.occurrences.iter().enumerate().map(|(at, occurrence)| (occurrence.tokens.0, at));
        Spreading {
            analysis,
            frames: Vec::new(),
            unresolved: false,
            learned: Vec::new(),
            ties: Vec::new(),
            ctes: Vec::new(),
            occurrences: tokens.collect(),
            seen: Vec::new(),
        }
    }

    // ---- queries ----

    pub fn query(&mut self, query: &Query) -> Result<Shape<'a>, Why> {
        let depth = self.ctes.len();
        let frames = self.frames.len();
        let found = self.with(query.with.as_ref()).and_then(|()| self.limited(query));
        self.ctes.truncate(depth);
        self.frames.truncate(frames);
        found
    }

    /// Reads the CTEs of a query; the caller forgets them again.
    pub fn with(&mut self, with: Option<&With>) -> Result<(), Why> {
        let Some(with) = with else { return Ok(()) };
        let first = self.ctes.len();
        for cte in &with.cte_tables {
            self.ctes.push(Cte { name: lower(&cte.alias.name), shape: None, reading: false, recursive: false });
        }
        for (at, cte) in with.cte_tables.iter().enumerate() {
            self.ctes[first + at].reading = true;
            let mut shape = self.query(&cte.query);
            if self.ctes[first + at].recursive && shape.as_ref().is_ok_and(|shape| shape.lie != Lie::Same) {
                shape = Err(Why::Recursive);
            }
            let names: Vec<String> = cte.alias.columns.iter().map(|column| column.name.value.clone()).collect();
            self.ctes[first + at].shape = Some(shape.map(|shape| renamed(shape, &names)));
        }
        Ok(())
    }

    fn limited(&mut self, query: &Query) -> Result<Shape<'a>, Why> {
        let mut shape = self.body(query)?;
        shape.ordered |= query.order_by.is_some();
        if let Some(limit) = &query.limit_clause {
            let plain = limit_values(limit).into_iter().all(|value| Constant::of(value).is_some());
            match shape.lie {
                _ if !plain => return Err(Why::LimitValue),
                Lie::Local => {}
                // Copies of a table may be scanned in different orders.
                Lie::Same if query.order_by.is_some() => {}
                _ => return Err(Why::Limit),
            }
        }
        Ok(shape)
    }

    fn body(&mut self, query: &Query) -> Result<Shape<'a>, Why> {
        let arms = arms(&query.body)?;
        if let [(_, Arm::Select(select))] = arms.as_slice() {
            let rows = self.open(select)?;
            let shape = self.block(select, query, &rows);
            self.frames.pop();
            return shape;
        }
        self.compound(&arms)
    }

    /// What a plain column stands for.
    pub fn named(&self, expr: &Expr) -> Option<Named<'a>> {
        let (qualifier, name) = column_name(bare(expr))?;
        Some(resolve(&self.frames, qualifier.as_deref(), &name))
    }

    /// The frame, the source and the type of the key that `expr` is, if it is a column that carries one.
    pub fn key(&self, expr: &Expr) -> Option<(usize, usize, KeyType)> {
        match self.named(expr)? {
            Named::Column { frame, source, column } => Some((frame, source, column.key.key_type()?)),
            _ => None,
        }
    }

    // ---- sources ----

    /// The source that a factor of FROM stands for. The open frame is hidden from it.
    pub fn source(&mut self, factor: &TableFactor) -> Result<Source<'a>, Why> {
        let (alias, shape) = match factor {
            TableFactor::Table { name, alias, args: Some(_), .. } => {
                let function = last_name(name);
                let columns = functions::table_function(&function).ok_or(Why::Form)?;
                let column = |name: &&str| OutColumn { name: (*name).to_owned(), key: Key::No, kind: Kind::Unknown };
                let columns = Some(columns.iter().map(column).collect());
                let shape =
                    Shape { lie: Lie::Same, columns, drivers: Vec::new(), mentions: Vec::new(), ordered: false };
                (alias.as_ref().map_or(function, |alias| lower(&alias.name)), shape)
            }
            TableFactor::Table { name, alias, .. } => {
                let table = last_name(name);
                let shape = self.table(name, &table)?;
                (alias.as_ref().map_or(table, |alias| lower(&alias.name)), shape)
            }
            TableFactor::Derived { subquery, alias, lateral: false, .. } => {
                let frame = self.frames.pop();
                let shape = self.query(subquery);
                self.frames.extend(frame);
                let names: Vec<String> =
                    alias.iter().flat_map(|alias| &alias.columns).map(|column| column.name.value.clone()).collect();
                (alias.as_ref().map_or_else(String::new, |alias| lower(&alias.name)), renamed(shape?, &names))
            }
            _ => return Err(Why::Form),
        };
        Ok(Source { alias, shape, nullable: false, merged: BTreeSet::new() })
    }

    fn table(&mut self, name: &ObjectName, table: &str) -> Result<Shape<'a>, Why> {
        if name.0.len() == 1
            && let Some(cte) = self.ctes.iter_mut().rev().find(|cte| cte.name == table)
        {
            let Some(shape) = &cte.shape else {
                if !cte.reading {
                    return Err(Why::Form); // one that comes later
                }
                cte.recursive = true;
                return Ok(Shape {
                    lie: Lie::Same,
                    columns: None,
                    drivers: Vec::new(),
                    mentions: Vec::new(),
                    ordered: false,
                });
            };
            let mut shape = shape.clone()?;
            if self.is_named_twice(table) {
                // What one use says about keys does not hold for the other.
                shape.mentions.clear();
            }
            self.seen.extend(&shape.mentions);
            return Ok(shape);
        }
        let token = name.0.last().and_then(|part| part.as_ident()).and_then(|ident| token_of(ident.span));
        let found = token.and_then(|token| self.occurrences.get(&token).copied());
        // A name that is no table is a CTE of a query around this one.
        let Some(occurrence) = found else {
            self.unresolved = true;
            return Err(Why::Form);
        };
        let table = self.analysis.table(occurrence);
        let strict = is_strict(&table.create_sql);
        let key = table.shard_key();
        let column = |column: &'a pleat_cluster::Column| {
            let key = key.filter(|(key, _)| key.eq_ignore_ascii_case(&column.name));
            OutColumn {
                name: column.name.clone(),
                key: key.map_or(Key::No, |(_, key_type)| Key::Always(key_type)),
                kind: Kind::Column(column, strict),
            }
        };
        let columns = Some(table.columns.iter().map(column).collect());
        let (lie, drivers) = match table.kind {
            TableKind::Reference => (Lie::Same, Vec::new()),
            TableKind::Single { .. } => return Err(Why::Single),
            TableKind::Sharded { .. } => (Lie::Spread, vec![occurrence]),
        };
        self.seen.extend(&drivers);
        Ok(Shape { lie, columns, mentions: drivers.clone(), drivers, ordered: false })
    }

    /// Whether more than one FROM may mention the CTE called `name`.
    fn is_named_twice(&self, name: &str) -> bool {
        let tokens = self.analysis.tokens;
        let starts = |at: usize| {
            tokens.is(at, "FROM") || tokens.is(at, "JOIN") || tokens.is_symbol(at, ",") || tokens.is_symbol(at, "(")
        };
        let mention = |at: &usize| {
            let named = tokens.name(*at).is_some_and(|found| found.eq_ignore_ascii_case(name));
            named && starts(at - 1) && !tokens.is_symbol(at + 1, ".")
        };
        (1..tokens.len()).filter(mention).count() > 1
    }
}

pub(crate) fn limit_values(limit: &LimitClause) -> Vec<&Expr> {
    match limit {
        LimitClause::LimitOffset { limit, offset, .. } => {
            limit.iter().chain(offset.as_ref().map(|offset| &offset.value)).collect()
        }
        LimitClause::OffsetCommaLimit { offset, limit } => vec![offset, limit],
    }
}

pub(crate) fn order_terms(query: &Query) -> Vec<&Expr> {
    match query.order_by.as_ref().map(|order| &order.kind) {
        Some(OrderByKind::Expressions(terms)) => terms.iter().map(|term| &term.expr).collect(),
        _ => Vec::new(),
    }
}
