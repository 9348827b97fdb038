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

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{KeyType, TableKind};
use sqlparser::ast::{
    Distinct, Expr, Function, GroupByExpr, Ident, LimitClause, NamedWindowExpr, OrderByKind, Query, Select, SelectItem,
    SelectItemQualifiedWildcardKind, SetExpr, SetOperator, SetQuantifier, TableFactor, UnaryOperator, Value as Literal,
    WindowSpec, WindowType, With,
};

use crate::clauses::{Clauses, list};
use crate::fetch::is_strict;
use crate::frame::{Frame, Key, Kind, Lie, Named, OutColumn, Shape, Source, resolve};
use crate::functions;
use crate::joins::Joined;
use crate::parse::token_of;
use crate::scope::{Analysis, column_name};
use crate::tree::{Constant, Part, argument_count, bare, last_name, lower, parts, window_parts};
use crate::why::Why;

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

/// The joined and filtered rows of a SELECT whose frame is open.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    pub lie: Lie,
    pub drivers: Vec<usize>,
    pub ordered: bool,
    /// Where its mentions begin among those seen.
    start: usize,
}

/// One side of a compound SELECT.
pub(crate) enum Arm<'q> {
    Select(&'q Select),
    Values(&'q sqlparser::ast::Values),
}

/// `UNION` and so on, between an arm and what is before it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    UnionAll,
    Union,
    Except,
    Intersect,
}

/// The sides of a body in their order, each with the operator before it. SQLite knows no precedence among these.
pub(crate) fn arms(body: &SetExpr) -> Result<Vec<(Option<Operator>, Arm<'_>)>, Why> {
    match body {
        SetExpr::Select(select) => Ok(vec![(None, Arm::Select(select))]),
        SetExpr::Values(values) => Ok(vec![(None, Arm::Values(values))]),
        SetExpr::SetOperation { op, set_quantifier, left, right } => {
            let operator = match (op, set_quantifier) {
                (SetOperator::Union, SetQuantifier::All) => Operator::UnionAll,
                (SetOperator::Union, SetQuantifier::None) => Operator::Union,
                (SetOperator::Except, SetQuantifier::None) => Operator::Except,
                (SetOperator::Intersect, SetQuantifier::None) => Operator::Intersect,
                _ => return Err(Why::Form),
            };
            let mut found = arms(left)?;
            let mut more = arms(right)?;
            more[0].0 = Some(operator);
            found.extend(more);
            Ok(found)
        }
        _ => Err(Why::Form),
    }
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

    /// The shape of all arms together.
    pub fn compound(&mut self, arms: &[(Option<Operator>, Arm)]) -> Result<Shape<'a>, Why> {
        let mut whole: Option<Shape<'a>> = None;
        for (operator, arm) in arms {
            let shape = match arm {
                Arm::Select(select) => {
                    let rows = self.open(select)?;
                    let shape = self.plain_block(select, &rows);
                    self.frames.pop();
                    shape?
                }
                Arm::Values(values) => self.values(values)?,
            };
            whole = Some(match (whole, operator) {
                (Some(left), Some(operator)) => combine(left, shape, *operator)?,
                _ => shape,
            });
        }
        whole.ok_or(Why::Form)
    }

    fn values(&mut self, values: &sqlparser::ast::Values) -> Result<Shape<'a>, Why> {
        self.frames.push(Frame::default());
        let all = values.rows.iter().flat_map(|row| &row.content);
        let local = all.map(|expr| self.expr(expr)).collect::<Result<Vec<_>, Why>>();
        self.frames.pop();
        let lie = if local?.contains(&true) { Lie::Local } else { Lie::Same };
        let width = values.rows.first().map_or(0, |row| row.content.len());
        let column = |at| OutColumn { name: format!("column{at}"), key: Key::No, kind: Kind::Unknown };
        let columns = Some((1..=width).map(column).collect());
        Ok(Shape { lie, columns, drivers: Vec::new(), mentions: Vec::new(), ordered: false })
    }

    // ---- one SELECT ----

    /// Opens the frame of a SELECT and joins and filters its sources. On an error no frame is left open.
    pub fn open(&mut self, select: &Select) -> Result<Rows, Why> {
        let start = self.seen.len();
        let depth = self.frames.len();
        self.frames.push(Frame::default());
        let found = self.rows(select, start);
        if found.is_err() {
            self.frames.truncate(depth);
        }
        found
    }

    fn rows(&mut self, select: &Select, start: usize) -> Result<Rows, Why> {
        let joined = Joined::of(self, select)?;
        for item in &select.projection {
            if let SelectItem::ExprWithAlias { alias, .. } = item {
                self.frame().aliases.insert(lower(alias));
            }
        }
        let mut local = joined.check_conditions(self)?;
        if let Some(filter) = &select.selection {
            local |= self.expr(filter)?;
        }
        let (mut lie, drivers) = joined.lie(self, select.selection.as_ref())?;
        if lie == Lie::Same && local {
            lie = Lie::Local;
        }
        let ordered = self.frame().sources.iter().any(|source| source.shape.ordered);
        Ok(Rows { lie, drivers, ordered, start })
    }

    fn frame(&mut self) -> &mut Frame<'a> {
        if self.frames.is_empty() {
            self.frames.push(Frame::default());
        }
        let last = self.frames.len() - 1;
        &mut self.frames[last]
    }

    fn plain_block(&mut self, select: &Select, rows: &Rows) -> Result<Shape<'a>, Why> {
        self.block_ordered(select, &[], rows)
    }

    /// The shape of the open SELECT with the ORDER BY of its query.
    pub fn block(&mut self, select: &Select, query: &Query, rows: &Rows) -> Result<Shape<'a>, Why> {
        self.block_ordered(select, &order_terms(query), rows)
    }

    fn block_ordered(&mut self, select: &Select, order: &[&Expr], rows: &Rows) -> Result<Shape<'a>, Why> {
        let mut local = false;
        for expr in expressions(select).into_iter().chain(order.iter().copied()) {
            local |= self.expr(expr)?;
        }
        for window in &select.named_window {
            if let NamedWindowExpr::WindowSpec(spec) = &window.1 {
                for part in window_parts(spec) {
                    let Part::Expr(expr) = part else { return Err(Why::Form) };
                    local |= self.expr(expr)?;
                }
            }
        }
        let columns = self.columns(select);
        let grouped = is_grouped(select) || has_calls(select, order, false);
        let mut lie = rows.lie;
        if lie == Lie::Spread {
            self.windows(select, order)?;
            if grouped && !self.groups_by_key(select) {
                return Err(if is_grouped(select) { Why::Groups } else { Why::Totals });
            }
            let keyed = columns.iter().flatten().any(|column| matches!(column.key, Key::Always(_)));
            match &select.distinct {
                None | Some(Distinct::All) => {}
                Some(Distinct::Distinct) if keyed => {}
                Some(Distinct::Distinct) => return Err(Why::Distinct),
                Some(Distinct::On(_)) => return Err(Why::Form),
            }
        } else if local {
            lie = Lie::Local;
        }
        let mentions = self.seen[rows.start..].to_vec();
        Ok(Shape { lie, columns, drivers: rows.drivers.clone(), mentions, ordered: rows.ordered && !grouped })
    }

    /// Whether a term of GROUP BY is a column that carries the key.
    fn groups_by_key(&self, select: &Select) -> bool {
        let GroupByExpr::Expressions(terms, _) = &select.group_by else { return false };
        terms.iter().any(|term| self.is_key(group_term(self, select, term)))
    }

    fn windows(&self, select: &Select, order: &[&Expr]) -> Result<(), Why> {
        let mut found = Vec::new();
        for expr in expressions(select).into_iter().chain(order.iter().copied()) {
            windows_in(expr, &mut found);
        }
        let keyed = |window: &&WindowType| match window {
            WindowType::WindowSpec(spec) => self.partitions_by_key(select, spec, 0),
            WindowType::NamedWindow(name) => self.named_by_key(select, name, 0),
        };
        if found.iter().all(keyed) { Ok(()) } else { Err(Why::Window) }
    }

    fn partitions_by_key(&self, select: &Select, spec: &WindowSpec, depth: usize) -> bool {
        spec.partition_by.iter().any(|term| self.is_key(term))
            || spec.window_name.as_ref().is_some_and(|base| self.named_by_key(select, base, depth))
    }

    fn named_by_key(&self, select: &Select, name: &Ident, depth: usize) -> bool {
        let found = select.named_window.iter().find(|window| lower(&window.0) == lower(name));
        match found.map(|window| &window.1) {
            Some(NamedWindowExpr::WindowSpec(spec)) if depth < select.named_window.len() => {
                self.partitions_by_key(select, spec, depth + 1)
            }
            _ => false,
        }
    }

    fn is_key(&self, expr: &Expr) -> bool {
        match self.named(expr) {
            Some(Named::Column { frame, column, .. }) => {
                frame + 1 == self.frames.len() && matches!(column.key, Key::Always(_))
            }
            _ => false,
        }
    }

    /// What a plain column stands for.
    pub fn named(&self, expr: &Expr) -> Option<Named<'a>> {
        let (qualifier, name) = column_name(bare(expr))?;
        Some(resolve(&self.frames, qualifier.as_deref(), &name))
    }

    // ---- columns ----

    /// The columns of the open SELECT's answer.
    pub fn columns(&self, select: &Select) -> Option<Vec<OutColumn<'a>>> {
        let start = token_of(select.select_token.0.span)?;
        let spans =
            list(self.analysis.tokens, Clauses::of(self.analysis.tokens, start, self.analysis.tokens.len()).items);
        if spans.len() != select.projection.len() {
            return None;
        }
        let mut found = Vec::new();
        for (item, span) in select.projection.iter().zip(spans) {
            match item {
                SelectItem::UnnamedExpr(expr) => {
                    let text = self.analysis.tokens.slice(span.0, span.1);
                    found.push(self.column(expr, None, text));
                }
                SelectItem::ExprWithAlias { expr, alias } => found.push(self.column(expr, Some(alias), "")),
                SelectItem::Wildcard(_) => found.extend(self.wildcard(None)?),
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                    found.extend(self.wildcard(Some(&last_name(name)))?);
                }
                _ => return None,
            }
        }
        Some(found)
    }

    fn column(&self, expr: &Expr, alias: Option<&Ident>, text: &str) -> OutColumn<'a> {
        let mut column = match self.named(expr) {
            Some(Named::Column { frame, column, .. }) if frame + 1 == self.frames.len() => column,
            Some(_) => OutColumn { name: text.to_owned(), key: Key::No, kind: Kind::Unknown },
            None => OutColumn { name: text.to_owned(), key: Key::No, kind: kind_of(expr) },
        };
        if let Some(alias) = alias {
            column.name.clone_from(&alias.value);
        }
        column
    }

    fn wildcard(&self, alias: Option<&str>) -> Option<Vec<OutColumn<'a>>> {
        let frame = self.frames.last()?;
        let mut found = Vec::new();
        let mut matched = false;
        for source in frame.sources.iter().filter(|source| alias.is_none_or(|alias| alias == source.alias)) {
            matched = true;
            for (at, column) in source.shape.columns.as_ref()?.iter().enumerate() {
                let name = column.name.to_ascii_lowercase();
                if alias.is_none() && source.merged.contains(&name) {
                    continue;
                }
                let mut column = source.column(at)?;
                if alias.is_none() && frame.coalesced.contains(&name) {
                    (column.key, column.kind) = (Key::No, Kind::Unknown);
                }
                found.push(column);
            }
        }
        matched.then_some(found)
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

    fn table(&mut self, name: &sqlparser::ast::ObjectName, table: &str) -> Result<Shape<'a>, Why> {
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

    // ---- expressions ----

    /// Whether `expr`, evaluated on a row's shard, has the value that it has over all rows. `true` if that depends on
    /// the shard: a subquery in it is tied to the row.
    pub fn expr(&mut self, expr: &Expr) -> Result<bool, Why> {
        if let Some(Named::Nothing | Named::Unclear) = self.named(expr) {
            let known = |name: &String| self.frames.last().is_some_and(|frame| frame.aliases.contains(name));
            self.unresolved |= !column_name(bare(expr)).is_some_and(|(_, name)| known(&name));
        }
        match expr {
            Expr::InSubquery { expr: left, subquery, .. } => {
                let local = self.expr(left)?;
                let start = self.seen.len();
                let shape = self.query(subquery).map_err(inner)?;
                return match shape.lie {
                    Lie::Same => Ok(local),
                    Lie::Local => Ok(true),
                    Lie::Spread | Lie::Set { .. } => {
                        let source = self.key_among(left, &shape).ok_or(Why::Subquery)?;
                        self.tie_mentions(start, source);
                        Ok(true)
                    }
                };
            }
            Expr::Function(function) => self.outer_aggregate(function)?,
            _ => {}
        }
        let mut local = false;
        for part in parts(expr).map_err(|_| Why::Form)? {
            local |= match part {
                Part::Expr(inner) => self.expr(inner)?,
                Part::Query(query) => match self.query(query).map_err(inner)?.lie {
                    Lie::Same => false,
                    Lie::Local => true,
                    Lie::Spread | Lie::Set { .. } => return Err(Why::Subquery),
                },
            };
        }
        Ok(local)
    }

    /// For `left IN (SELECT …)`: whether at some place both sides always have a key. Then only rows of the same shard can
    /// make it true, and none can make it NULL. Gives the driver of the left side.
    fn key_among(&self, left: &Expr, shape: &Shape) -> Option<Option<usize>> {
        let lefts: Vec<&Expr> = match bare(left) {
            Expr::Tuple(list) => list.iter().collect(),
            one => vec![one],
        };
        lefts.iter().zip(shape.columns.as_ref()?).find_map(|(left, right)| match (self.named(left), right.key) {
            (Some(Named::Column { frame, source, column }), Key::Always(right)) if column.key == Key::Always(right) => {
                let drivers = &self.frames[frame].sources[source].shape.drivers;
                Some(if let [driver] = drivers.as_slice() { Some(*driver) } else { None })
            }
            _ => None,
        })
    }

    fn tie_mentions(&mut self, start: usize, driver: Option<usize>) {
        let Some(driver) = driver else { return };
        let tied = self.seen[start..].iter().filter(|mention| **mention != driver);
        self.ties.extend(tied.map(|mention| (*mention, driver)));
    }

    /// SQLite takes an aggregate over nothing but an outer query's columns for that query's own.
    fn outer_aggregate(&self, function: &Function) -> Result<(), Why> {
        if function.over.is_some() || !functions::is_aggregate(&last_name(&function.name), argument_count(function)) {
            return Ok(());
        }
        let mut used = Vec::new();
        columns_in(&Expr::Function(function.clone()), &mut used);
        let own = |expr: &Expr| match self.named(expr) {
            Some(Named::Column { frame, .. }) => frame + 1 == self.frames.len(),
            _ => self.frames.len() <= 1,
        };
        if used.is_empty() || used.iter().any(own) { Ok(()) } else { Err(Why::Subquery) }
    }
}

/// Why a query around another can't be pushed because of it.
fn inner(why: Why) -> Why {
    match why {
        Why::Single | Why::Volatile | Why::Recursive | Why::LimitValue => why,
        _ => Why::Subquery,
    }
}

fn columns_in(expr: &Expr, found: &mut Vec<Expr>) {
    if column_name(expr).is_some() {
        found.push(expr.clone());
    }
    for part in parts(expr).unwrap_or_default() {
        if let Part::Expr(inner) = part {
            columns_in(inner, found);
        }
    }
}

fn windows_in<'q>(expr: &'q Expr, found: &mut Vec<&'q WindowType>) {
    if let Expr::Function(function) = expr {
        found.extend(&function.over);
    }
    for part in parts(expr).unwrap_or_default() {
        if let Part::Expr(inner) = part {
            windows_in(inner, found);
        }
    }
}

/// The two sides of a compound SELECT together.
fn combine<'a>(left: Shape<'a>, right: Shape<'a>, operator: Operator) -> Result<Shape<'a>, Why> {
    let columns = match (&left.columns, &right.columns) {
        (Some(left), Some(right)) => Some(left.iter().zip(right).map(|(a, b)| both(a, b)).collect::<Vec<_>>()),
        _ => None,
    };
    let keyed =
        |columns: &Option<Vec<OutColumn>>| columns.iter().flatten().any(|column| matches!(column.key, Key::Always(_)));
    let whole = |lie: Lie| matches!(lie, Lie::Same | Lie::Local);
    let lie = match (left.lie, right.lie) {
        (Lie::Same, Lie::Same) => Lie::Same,
        (a, b) if whole(a) && whole(b) => Lie::Local,
        (Lie::Local, _) | (_, Lie::Local) => return Err(Why::Compound),
        (Lie::Spread, Lie::Spread) if operator == Operator::UnionAll || keyed(&columns) => Lie::Spread,
        (Lie::Spread, Lie::Same) if operator == Operator::Except && keyed(&left.columns) => {
            return Ok(Shape { ordered: false, ..left });
        }
        _ if operator == Operator::Union => Lie::Set { distinct: true },
        _ if operator == Operator::UnionAll => Lie::Set { distinct: false },
        _ => return Err(Why::Compound),
    };
    let together = |mut a: Vec<usize>, b: Vec<usize>| {
        a.extend(b);
        a
    };
    Ok(Shape {
        lie,
        columns,
        drivers: together(left.drivers, right.drivers),
        mentions: together(left.mentions, right.mentions),
        ordered: left.ordered || right.ordered,
    })
}

fn both<'a>(left: &OutColumn<'a>, right: &OutColumn<'a>) -> OutColumn<'a> {
    let kind = match (left.kind, right.kind) {
        (Kind::Plain, Kind::Plain) => Kind::Plain,
        (Kind::Column(a, strict), Kind::Column(b, other))
            if a.decl_type.eq_ignore_ascii_case(&b.decl_type) && a.collation == b.collation && strict == other =>
        {
            left.kind
        }
        _ => Kind::Unknown,
    };
    OutColumn { name: left.name.clone(), key: left.key.both(right.key), kind }
}

/// The shape with its columns renamed, as by `AS x(a, b)`.
fn renamed<'a>(mut shape: Shape<'a>, names: &[String]) -> Shape<'a> {
    if let (Some(columns), false) = (&mut shape.columns, names.is_empty()) {
        columns.iter_mut().zip(names).for_each(|(column, name)| column.name.clone_from(name));
    }
    shape
}

/// The kind of an expression that is no plain column. A CAST has an affinity, and an explicit COLLATE counts all the
/// way up.
pub(crate) fn kind_of(expr: &Expr) -> Kind<'static> {
    match bare(expr) {
        Expr::Cast { .. } | Expr::Subquery(_) | Expr::UnaryOp { op: UnaryOperator::Plus, .. } => Kind::Unknown,
        other if has_collate(other) => Kind::Unknown,
        _ => Kind::Plain,
    }
}

pub(crate) fn has_collate(expr: &Expr) -> bool {
    matches!(expr, Expr::Collate { .. })
        || parts(expr).unwrap_or_default().into_iter().any(|part| match part {
            Part::Expr(inner) => has_collate(inner),
            Part::Query(_) => true,
        })
}

/// The expression that a term of GROUP BY stands for: a column before an alias, or a place in the SELECT list.
pub(crate) fn group_term<'q>(spreading: &Spreading, select: &'q Select, term: &'q Expr) -> &'q Expr {
    let item = |item: &'q SelectItem| match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
        _ => None,
    };
    if let Some(place) = ordinal(term) {
        let plain = select.projection.iter().all(|one| item(one).is_some());
        let found = place.checked_sub(1).and_then(|at| select.projection.get(at)).filter(|_| plain);
        return found.and_then(item).unwrap_or(term);
    }
    match spreading.named(term) {
        Some(Named::Unclear | Named::Nothing) => {
            let name = column_name(bare(term)).filter(|(qualifier, _)| qualifier.is_none());
            let named = |one: &&SelectItem| match one {
                SelectItem::ExprWithAlias { alias, .. } => name.as_ref().is_some_and(|(_, name)| lower(alias) == *name),
                _ => false,
            };
            select.projection.iter().find(named).and_then(item).unwrap_or(term)
        }
        _ => term,
    }
}

/// The place that a whole number as a term of GROUP BY or ORDER BY means.
pub(crate) fn ordinal(term: &Expr) -> Option<usize> {
    match bare(term) {
        Expr::Value(value) => match &value.value {
            Literal::Number(text, _) => text.parse().ok(),
            _ => None,
        },
        _ => None,
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

pub(crate) fn is_grouped(select: &Select) -> bool {
    let groups = matches!(&select.group_by, GroupByExpr::Expressions(groups, _) if groups.is_empty());
    !groups || select.having.is_some()
}

/// The expressions of a SELECT that are evaluated after its rows are joined and filtered.
fn expressions(select: &Select) -> Vec<&Expr> {
    let items = select.projection.iter().filter_map(|item| match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
        _ => None,
    });
    let groups = match &select.group_by {
        GroupByExpr::Expressions(groups, _) => groups.iter().collect(),
        GroupByExpr::All(_) => Vec::new(),
    };
    items.chain(groups).chain(&select.having).collect()
}

/// Whether the SELECT list, HAVING or the order calls an aggregate or (always) a window function.
pub(crate) fn has_calls(select: &Select, order: &[&Expr], windows_only: bool) -> bool {
    expressions(select).into_iter().chain(order.iter().copied()).any(|expr| calls(expr, windows_only))
}

fn calls(expr: &Expr, windows_only: bool) -> bool {
    if let Expr::Function(function) = expr {
        let aggregate = functions::is_aggregate(&last_name(&function.name), argument_count(function));
        if function.over.is_some() == windows_only && (windows_only || aggregate) {
            return true;
        }
    }
    let children = parts(expr).unwrap_or_default();
    children.into_iter().any(|part| matches!(part, Part::Expr(inner) if calls(inner, windows_only)))
}

impl Spreading<'_, '_> {
    /// The frame, the source and the type of the key that `expr` is, if it is a column that carries one.
    pub fn key(&self, expr: &Expr) -> Option<(usize, usize, KeyType)> {
        match self.named(expr)? {
            Named::Column { frame, source, column } => Some((frame, source, column.key.key_type()?)),
            _ => None,
        }
    }
}
