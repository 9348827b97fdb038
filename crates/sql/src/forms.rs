//! The ways in which a query's answer is put together from the shards' answers.
//!
//! | form       | each shard                             | then                                      |
//! | ---------- | -------------------------------------- | ----------------------------------------- |
//! | rows       | runs it on its rows; `ORDER BY … LIMIT n + m` | append, or merge by the order; OFFSET and LIMIT |
//! | distinct   | the same, without duplicates of its own | `SELECT DISTINCT` over what came           |
//! | partial    | groups its own rows                    | merge the groups (see `partial`)          |
//!
//! A statement that has one of these forms as a whole is answered so. In any other, each subquery without ties to what is
//! around it (and each side of a UNION, INTERSECT or EXCEPT) that has one is replaced by its finishing statement over
//! what the shards found; see `finish`.

use pleat_cluster::Value;
use sqlparser::ast::{Distinct, Expr, OrderByExpr, OrderByKind, OrderBySort, Query, Select, SelectItem};

use crate::clauses::{Clauses, Output, Span, list};
use crate::fetch::{FetchPlan, Place, Tail, column_definition};
use crate::frame::{Kind, Lie, OutColumn, Shape};
use crate::lex::quote;
use crate::order::{Collation, Order};
use crate::parse::token_of;
use crate::partial::{PartialPlan, partial};
use crate::read::{Fetch, Route, Template};
use crate::scope::Analysis;
use crate::shard_sql::{Copy, Piece, both};
use crate::spread::{Arm, Operator, Spreading, arms, kind_of, limit_values, ordinal};
use crate::tree::{Constant, bare, lower};
use crate::why::Why;

/// How a query is put together.
#[derive(Clone, Debug)]
pub(crate) enum Form<'a> {
    Rows(RowsPlan<'a>),
    /// And why the shards' own groups are not the answer.
    Partial(PartialPlan, Why),
}

/// Rows of the shards, appended or merged in order; duplicates removed if `distinct`.
#[derive(Clone, Debug)]
pub(crate) struct RowsPlan<'a> {
    pub place: Place,
    pub sql: Template,
    pub filtered: Template,
    /// The user's LIMIT and OFFSET, and how the shards sort.
    pub tail: Tail,
    order: Vec<Sorted>,
    /// How many columns at the front are there for the order only.
    pub hidden: usize,
    pub columns: Option<Vec<OutColumn<'a>>>,
    pub distinct: bool,
    /// The tokens of the LIMIT clause.
    limit: Option<Span>,
}

/// A term of ORDER BY.
#[derive(Clone, Debug)]
struct Sorted {
    order: Order,
    /// Whether the user wrote COLLATE.
    explicit: bool,
    /// Whether it is a column of the answer and not one that is there for the order only.
    visible: bool,
}

/// Where things are in the text of a query without its WITH.
struct Layout<'q> {
    arms: Vec<(Option<Operator>, Arm<'q>)>,
    /// The clauses of the first SELECT, and of the last with what follows it.
    first: Clauses,
    last: Clauses,
    /// The token after the body.
    body_end: usize,
}

impl<'q> Layout<'q> {
    fn of(analysis: &Analysis, query: &'q Query, span: Span) -> Result<Layout<'q>, Why> {
        let arms = arms(&query.body)?;
        let token = |arm: &Arm| match arm {
            Arm::Select(select) => token_of(select.select_token.0.span),
            Arm::Values(_) => None,
        };
        let (Some((_, first)), Some((_, last))) = (arms.first(), arms.last()) else { return Err(Why::Form) };
        let (first, last) = (token(first).ok_or(Why::Form)?, token(last).ok_or(Why::Form)?);
        let first = Clauses::of(analysis.tokens, first, span.1);
        let last = Clauses::of(analysis.tokens, last, span.1);
        let tail = last.order.map(|order| order.0 - 2).or(last.limit.map(|limit| limit.0 - 1));
        Ok(Layout { arms, first, last, body_end: tail.unwrap_or(last.end) })
    }
}

/// The form of the query at `span`, if it has one.
pub(crate) fn form<'a>(spreading: &mut Spreading<'_, 'a>, query: &Query, span: Span) -> Result<Form<'a>, Why> {
    spreading.with(query.with.as_ref())?;
    let layout = Layout::of(spreading.analysis, query, span)?;
    if let [(_, Arm::Select(select))] = layout.arms.as_slice() {
        let rows = spreading.open(select)?;
        let found = spreading.block(select, query, &rows);
        if rows.lie != Lie::Spread {
            return Err(found.err().unwrap_or(Why::Form));
        }
        let form = match found {
            Ok(shape) => rows_form(spreading, query, span, &layout, shape, false),
            Err(Why::Distinct) => {
                let columns = spreading.columns(select);
                let shape = Shape {
                    lie: Lie::Set { distinct: true },
                    columns,
                    drivers: rows.drivers,
                    mentions: Vec::new(),
                    ordered: rows.ordered,
                };
                rows_form(spreading, query, span, &layout, shape, true)
            }
            Err(why @ (Why::Groups | Why::Totals)) => {
                let plan = partial(spreading, select, query, span, &rows, &layout.first);
                return plan.map(|plan| Form::Partial(plan, why));
            }
            Err(why) => Err(why),
        };
        spreading.frames.pop();
        return form.map(Form::Rows);
    }
    let shape = spreading.compound(&layout.arms)?;
    let distinct = match shape.lie {
        Lie::Spread => false,
        Lie::Set { distinct: true } => true,
        Lie::Set { distinct: false } => return Err(Why::Compound),
        Lie::Same | Lie::Local => return Err(Why::Form),
    };
    rows_form(spreading, query, span, &layout, shape, distinct).map(Form::Rows)
}

fn rows_form<'a>(
    spreading: &Spreading<'_, 'a>,
    query: &Query,
    span: Span,
    layout: &Layout,
    shape: Shape<'a>,
    distinct: bool,
) -> Result<RowsPlan<'a>, Why> {
    let analysis = spreading.analysis;
    let mut hidden: Vec<Span> = Vec::new();
    let mut order = Vec::new();
    for (term, span) in order_by(analysis, query, layout)? {
        order.push(sort(spreading, layout, &shape, term, span, &mut hidden)?);
    }
    // Columns for the order come first: how many others there are may not be known.
    for term in order.iter_mut().filter(|term| term.visible) {
        term.order.column += hidden.len();
    }
    if shape.ordered && order.is_empty() {
        return Err(Why::InnerOrder);
    }
    let (limit, offset) = limits(query)?;
    let mut copy = Copy::default();
    name_items(analysis, layout, &mut copy);
    for (at, term) in hidden.iter().enumerate() {
        let pieces = copy.before.entry(layout.first.items.0).or_default();
        pieces.push(Piece::Tokens(*term));
        pieces.push(Piece::Text(format!(" AS {}, ", order_name(at))));
    }
    let (sql, filtered) = both(|owned| {
        let mut output = Output::default();
        copy.write(analysis, (span.0, layout.body_end), owned, &mut output);
        output
    });
    Ok(RowsPlan {
        place: Place::of_drivers(analysis, &shape.drivers),
        sql,
        filtered,
        tail: Tail { order: order_sql(&order, |column| (column + 1).to_string(), false), limit, offset },
        order,
        hidden: hidden.len(),
        columns: shape.columns,
        distinct,
        limit: layout.last.limit,
    })
}

/// Gives each item whose name SQLite would take from the text that text as its name.
fn name_items(analysis: &Analysis, layout: &Layout, copy: &mut Copy) {
    let Some((_, Arm::Select(select))) = layout.arms.first() else { return };
    name_projection(analysis, select, layout.first.items, copy);
}

pub(crate) fn name_projection(analysis: &Analysis, select: &Select, items: Span, copy: &mut Copy) {
    let spans = list(analysis.tokens, items);
    if spans.len() != select.projection.len() {
        return;
    }
    for (item, span) in select.projection.iter().zip(spans) {
        if let SelectItem::UnnamedExpr(expr) = item
            && crate::scope::column_name(bare(expr)).is_none()
        {
            let name = quote(analysis.tokens.slice(span.0, span.1));
            copy.after.insert(span.1 - 1, format!(" AS {name}"));
        }
    }
}

/// The terms of ORDER BY with their tokens.
fn order_by<'q>(analysis: &Analysis, query: &'q Query, layout: &Layout) -> Result<Vec<(&'q OrderByExpr, Span)>, Why> {
    let Some(order) = &query.order_by else { return Ok(Vec::new()) };
    let OrderByKind::Expressions(terms) = &order.kind else { return Err(Why::Form) };
    let spans = list(analysis.tokens, layout.last.order.ok_or(Why::Form)?);
    if spans.len() != terms.len() {
        return Err(Why::Form);
    }
    Ok(terms.iter().zip(spans).collect())
}

/// What a term of ORDER BY sorts by, and whether that is one of the user's columns (from 0) or one of `hidden`.
fn sort(
    spreading: &Spreading,
    layout: &Layout,
    shape: &Shape,
    term: &OrderByExpr,
    span: Span,
    hidden: &mut Vec<Span>,
) -> Result<Sorted, Why> {
    let descending = match term.options.sort {
        Some(OrderBySort::Desc) => true,
        Some(OrderBySort::Asc) | None => false,
        Some(OrderBySort::Using(_)) => return Err(Why::Form),
    };
    let nulls_last = term.options.nulls_first.map_or(descending, |first| !first);
    let (expr, explicit) = match bare(&term.expr) {
        Expr::Collate { expr, collation } => (bare(expr), Some(crate::tree::last_name(collation))),
        other => (other, None),
    };
    let (column, visible, kind) = match visible_column(layout, shape, expr)? {
        Some(at) => {
            let kind = shape.columns.as_ref().and_then(|columns| columns.get(at)).map(|column| column.kind);
            (at, true, kind.unwrap_or(Kind::Unknown))
        }
        None => {
            let [(_, Arm::Select(select))] = layout.arms.as_slice() else { return Err(Why::Order) };
            let distinct = matches!(select.distinct, Some(Distinct::Distinct));
            if distinct || uses_alias(expr, select) {
                return Err(Why::Order);
            }
            let kind = match spreading.named(expr) {
                Some(crate::frame::Named::Column { column, .. }) => column.kind,
                Some(_) => Kind::Unknown,
                None => kind_of(expr),
            };
            hidden.push((span.0, sorted_end(spreading.analysis, span)));
            (hidden.len() - 1, false, kind)
        }
    };
    let collation = match (explicit, kind) {
        (Some(name), _) => Collation::named(&name),
        (None, Kind::Column(column, _)) => Collation::named(column.collation.as_deref().unwrap_or("BINARY")),
        (None, Kind::Plain) => Some(Collation::Binary),
        (None, Kind::Unknown) => None,
    };
    let collation = collation.ok_or(Why::Collation)?;
    let explicit = matches!(bare(&term.expr), Expr::Collate { .. });
    Ok(Sorted { order: Order { column, descending, nulls_last, collation }, explicit, visible })
}

/// The end of a term of ORDER BY without ASC, DESC and NULLS.
fn sorted_end(analysis: &Analysis, span: Span) -> usize {
    let tokens = analysis.tokens;
    let mut end = span.1;
    if end > span.0 + 2 && tokens.is(end - 2, "NULLS") {
        end -= 2;
    }
    if end > span.0 + 1 && (tokens.is(end - 1, "ASC") || tokens.is(end - 1, "DESC")) {
        end -= 1;
    }
    end
}

/// The place (from 0) of the answer's column that a term of ORDER BY means: by number, by alias, or by being the same
/// expression.
fn visible_column(layout: &Layout, shape: &Shape, expr: &Expr) -> Result<Option<usize>, Why> {
    if let Some(place) = ordinal(expr) {
        return place.checked_sub(1).map(Some).ok_or(Why::Form);
    }
    if layout.arms.len() > 1 {
        let Expr::Identifier(name) = expr else { return Err(Why::Order) };
        let columns = shape.columns.as_ref().ok_or(Why::Columns)?;
        let found = columns.iter().position(|column| column.name.eq_ignore_ascii_case(&name.value));
        return found.map(Some).ok_or(Why::Order);
    }
    let Some((_, Arm::Select(select))) = layout.arms.first() else { return Err(Why::Form) };
    let mut same = None;
    for (at, item) in select.projection.iter().enumerate() {
        match item {
            SelectItem::ExprWithAlias { alias, expr: aliased } => {
                if matches!(expr, Expr::Identifier(name) if name.value.eq_ignore_ascii_case(&alias.value)) {
                    return Ok(Some(at));
                }
                same = same.or((bare(aliased) == expr).then_some(at));
            }
            SelectItem::UnnamedExpr(item) => same = same.or((bare(item) == expr).then_some(at)),
            _ => {
                // What comes after a `*` has a place only if the columns are known.
                let after = select
                    .projection
                    .iter()
                    .any(|item| matches!(item, SelectItem::ExprWithAlias { alias, .. } if names(expr, &alias.value)));
                return if after { Err(Why::Columns) } else { Ok(same) };
            }
        }
    }
    Ok(same)
}

fn names(expr: &Expr, alias: &str) -> bool {
    matches!(expr, Expr::Identifier(name) if name.value.eq_ignore_ascii_case(alias))
}

/// Whether an unqualified name in `expr` could mean an alias of the SELECT list that is something else.
pub(crate) fn uses_alias(expr: &Expr, select: &Select) -> bool {
    use crate::scope::column_name;
    use crate::tree::{Part, parts};
    if let Some((None, name)) = column_name(expr) {
        return select.projection.iter().any(|item| match item {
            SelectItem::ExprWithAlias { expr, alias } => {
                lower(alias) == name && column_name(expr).is_none_or(|(_, column)| column != name)
            }
            _ => false,
        });
    }
    parts(expr).unwrap_or_default().into_iter().any(|part| match part {
        Part::Expr(inner) => uses_alias(inner, select),
        Part::Query(_) => false,
    })
}

/// LIMIT and OFFSET, each a constant or missing.
pub(crate) fn limits(query: &Query) -> Result<(Option<Constant>, Option<Constant>), Why> {
    use sqlparser::ast::LimitClause;
    let Some(clause) = &query.limit_clause else { return Ok((None, None)) };
    let constants: Option<Vec<Constant>> = limit_values(clause).into_iter().map(Constant::of).collect();
    let mut constants = constants.ok_or(Why::LimitValue)?.into_iter();
    Ok(match clause {
        LimitClause::LimitOffset { limit: Some(_), .. } => (constants.next(), constants.next()),
        LimitClause::LimitOffset { limit: None, .. } => (None, constants.next()),
        LimitClause::OffsetCommaLimit { .. } => {
            let offset = constants.next();
            (constants.next(), offset)
        }
    })
}

/// ` ORDER BY …`; empty without terms.
fn order_sql(order: &[Sorted], name: impl Fn(usize) -> String, collate: bool) -> String {
    let mut sql = String::new();
    for (at, Sorted { order: term, explicit, .. }) in order.iter().enumerate() {
        sql += if at == 0 { " ORDER BY " } else { ", " };
        sql += &name(term.column);
        if *explicit || (collate && term.collation != Collation::Binary) {
            sql += &format!(" COLLATE {}", term.collation.name());
        }
        if term.descending {
            sql += " DESC";
        }
        if term.nulls_last != term.descending {
            sql += if term.nulls_last { " NULLS LAST" } else { " NULLS FIRST" };
        }
    }
    sql
}

fn order_name(at: usize) -> String {
    format!("__part_o{at}")
}

fn column_name(at: usize) -> String {
    format!("__part_c{at}")
}

impl RowsPlan<'_> {
    /// What the router needs to append or merge the rows.
    pub fn ended(&self) -> RowsEnd {
        RowsEnd {
            place: self.place.clone(),
            sql: self.sql.clone(),
            filtered: self.filtered.clone(),
            tail: self.tail.clone(),
            order: self.order.iter().map(|term| term.order).collect(),
            hidden: self.hidden,
        }
    }

    /// The fetch into a table called `table`, and the statement that finishes there. `nested`: the columns will be
    /// referred to by their names.
    pub fn gathered(&self, analysis: &Analysis, table: &str, nested: bool) -> Result<(FetchPlan, Output), Why> {
        let columns = self.columns.as_ref().ok_or(Why::Columns)?;
        let hidden = (0..self.hidden).map(order_name);
        let mut names = std::collections::BTreeSet::new();
        let mut defined: Vec<String> = hidden.collect();
        let mut selected = Vec::new();
        for (at, column) in columns.iter().enumerate() {
            if !names.insert(column.name.to_ascii_lowercase()) && nested {
                return Err(Why::Columns);
            }
            defined.push(match column.kind {
                Kind::Column(origin, strict) => column_definition(&column_name(at), origin, strict),
                Kind::Plain => column_name(at),
                Kind::Unknown => return Err(Why::Columns),
            });
            // A column without a type has an affinity (BLOB), an expression has none; a sign takes it away.
            let sign = if nested && column.kind == Kind::Plain { "+" } else { "" };
            selected.push(format!("{sign}{} AS {}", column_name(at), quote(&column.name)));
        }
        let mut finish = Output::default();
        finish.push(if self.distinct { "SELECT DISTINCT " } else { "SELECT " });
        finish.push(&format!("{} FROM {table}", selected.join(", ")));
        let name = |column: usize| match column.checked_sub(self.hidden) {
            Some(visible) => (visible + 1).to_string(),
            None => order_name(column),
        };
        finish.push(&order_sql(&self.order, name, true));
        if let Some(limit) = self.limit {
            finish.push(" LIMIT ");
            finish.span(analysis.tokens, analysis.slots, limit);
        }
        let fetch = FetchPlan {
            table: table.to_owned(),
            create_sql: format!("CREATE TABLE {table} ({})", defined.join(", ")),
            place: self.place.clone(),
            sql: self.sql.clone(),
            filtered: Some(self.filtered.clone()),
            tail: Some(self.tail.clone()),
        };
        Ok((fetch, finish))
    }
}

/// Rows that the router appends or merges itself.
#[derive(Clone, Debug)]
pub(crate) struct RowsEnd {
    place: Place,
    sql: Template,
    filtered: Template,
    tail: Tail,
    order: Vec<Order>,
    hidden: usize,
}

impl RowsEnd {
    /// The answer as it comes from the shards, or `None` when the LIMIT's value is not a whole number: SQLite must
    /// judge it.
    pub fn route(&self, values: &[Value], partition_count: u32) -> Option<Route> {
        let (limit, offset) = self.tail.counts(values)?;
        let end = self.tail.clause(values, true);
        let fetch = Fetch {
            table: String::new(),
            create_sql: String::new(),
            source: self.place.source(values, partition_count),
            sql: format!("{}{end}", self.sql.sql).into(),
            sql_filtered: Some(format!("{}{end}", self.filtered.sql).into()),
            params: self.sql.values(values),
        };
        Some(Route::Concat { fetch, order: self.order.clone(), hidden: self.hidden, limit, offset })
    }
}
