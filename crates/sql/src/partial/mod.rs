//! Aggregates in two steps: each shard aggregates its own rows, the finisher merges what they found.
//!
//! | the user's call     | a shard computes        | the finisher merges       |
//! | ------------------- | ----------------------- | ------------------------- |
//! | `count(x)`          | `count(x)`              | `coalesce(sum(…), 0)`     |
//! | `sum(x)`            | `sum(x)`                | `sum(…)`                  |
//! | `total(x)`          | `total(x)`              | `total(…)`                |
//! | `min(x)`            | `min(x)`                | `min(…)`                  |
//! | `avg(x)`            | three parts, see `avg`  | their sum over the count  |
//! | `count(DISTINCT k)` | itself, if `k` carries the shard key | as `count`   |
//! | `count(DISTINCT x)` | groups by `x` too       | `count(DISTINCT x)`       |
//!
//! The finishing statement is the user's own with calls and GROUP BY terms replaced; HAVING, DISTINCT, ORDER BY
//! and LIMIT are evaluated only there. It is exact, NULLs and integer or real sums included: a sum is NULL, INTEGER
//! or REAL on a shard just when it is so for its rows, and merging keeps that. A sum of integers that overflows on one
//! shard is an error, as it may be in SQLite.
//!
//! Not merged (and so gathered): `group_concat` and JSON aggregates (their order), columns outside GROUP BY (SQLite
//! picks a row), text with a collation other than BINARY (SQLite picks a spelling).
//!
//! [`Merge`] reads the groups; `finish` writes the finishing statement, `calls` merges the aggregates in it, and `shard`
//! writes what shards run.

mod calls;
mod finish;
mod shard;

use pleat_cluster::Column;
use sqlparser::ast::{Expr, GroupByExpr, Query, Select, SelectItem};

use crate::clauses::{Clauses, Output, Span, list};
use crate::fetch::{FetchPlan, Place, column_definition};
use crate::frame::{Kind, Named, resolve};
use crate::lex::Tokens;
use crate::params::Slots;
use crate::read::Template;
use crate::scope::column_name;
use crate::shard_sql::both;
use crate::spread::{Rows, Spreading, group_term, has_calls, kind_of, order_terms};
use crate::tree::{Part, bare, parts};
use crate::why::Why;

/// What the names of Pleat's columns in the finisher start with; a statement that uses such names is gathered.
pub(crate) const RESERVED: &str = "__part";

/// A statement whose aggregates are merged.
#[derive(Clone, Debug)]
pub(crate) struct PartialPlan {
    place: Place,
    /// The columns of the table of partial results.
    columns: String,
    sql: Template,
    filtered: Template,
    /// The finishing statement before and after the table's name.
    finish: (Output, Output),
}

impl PartialPlan {
    /// The fetch into a table called `table`, and the statement that finishes there.
    pub fn gathered(&self, table: &str) -> (FetchPlan, Output) {
        let fetch = FetchPlan {
            table: table.to_owned(),
            create_sql: format!("CREATE TABLE {table} ({})", self.columns),
            place: self.place.clone(),
            sql: self.sql.clone(),
            filtered: Some(self.filtered.clone()),
            tail: None,
        };
        let mut finish = self.finish.0.clone();
        finish.push(&format!(" FROM {table}"));
        finish.append(&self.finish.1);
        (fetch, finish)
    }
}

/// Plans merged aggregates for the SELECT whose frame is open, or says why not.
pub(crate) fn partial(
    spreading: &Spreading,
    select: &Select,
    query: &Query,
    span: Span,
    rows: &Rows,
    clauses: &Clauses,
) -> Result<PartialPlan, Why> {
    let order = order_terms(query);
    if has_calls(select, &order, true) {
        return Err(Why::Window);
    }
    let later = select.projection.iter().filter_map(item_expr).chain(&select.having).chain(order);
    if later.into_iter().any(has_query) {
        return Err(Why::Subquery);
    }
    let mut merge = Merge::new(spreading, select, clauses);
    merge.read_groups()?;
    let mut finish = merge.finish(query)?;
    if merge.distinct_keys && !merge.extras.is_empty() {
        // Groups by another value would count a key once for each.
        merge = Merge { keys_are_values: true, ..Merge::new(spreading, select, clauses) };
        merge.read_groups()?;
        finish = merge.finish(query)?;
    }
    if merge.groups.is_empty() && merge.parts.is_empty() && merge.extras.is_empty() {
        return Err(Why::Aggregate);
    }
    let (sql, filtered) = both(|owned| merge.shard_statement(span, owned));
    Ok(PartialPlan {
        place: Place::of_drivers(spreading.analysis, &rows.drivers),
        columns: merge.definitions(),
        sql,
        filtered,
        finish,
    })
}

fn item_expr(item: &SelectItem) -> Option<&Expr> {
    match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
        _ => None,
    }
}

fn has_query(expr: &Expr) -> bool {
    parts(expr).unwrap_or_default().into_iter().any(|part| match part {
        Part::Expr(inner) => has_query(inner),
        Part::Query(_) => true,
    })
}

/// A term of the GROUP BY.
struct Group<'q, 'a> {
    expr: &'q Expr,
    /// Its tokens, where the user wrote the expression.
    term: Span,
    /// If it is a column: that one.
    column: Option<&'a Column>,
    /// The definition of its column in the finisher, without the name.
    definition: String,
}

/// A value that shards compute: the text before and after the user's argument, in pieces.
struct PartValue {
    /// `{}` stands for the call's arguments.
    template: String,
    arguments: Span,
    filter: Option<Span>,
}

/// A value of a DISTINCT aggregate, by which shards group as well.
struct Extra {
    arguments: Span,
    filter: Option<Span>,
    definition: String,
}

struct Merge<'q, 's, 'm, 'a> {
    spreading: &'s Spreading<'m, 'a>,
    select: &'q Select,
    clauses: &'s Clauses,
    groups: Vec<Group<'q, 'a>>,
    parts: Vec<PartValue>,
    extras: Vec<Extra>,
    /// A DISTINCT aggregate over the shard key was merged as the sum of the shards' own.
    distinct_keys: bool,
    /// Take shard keys in DISTINCT aggregates for values like any other.
    keys_are_values: bool,
}
impl<'q, 's, 'm, 'a> Merge<'q, 's, 'm, 'a> {
    fn new(spreading: &'s Spreading<'m, 'a>, select: &'q Select, clauses: &'s Clauses) -> Self {
        Merge {
            spreading,
            select,
            clauses,
            groups: Vec::new(),
            parts: Vec::new(),
            extras: Vec::new(),
            distinct_keys: false,
            keys_are_values: false,
        }
    }

    fn tokens(&self) -> &'a Tokens<'a> {
        self.spreading.analysis.tokens
    }

    fn slots(&self) -> &'a Slots {
        self.spreading.analysis.slots
    }

    // ---- groups ----

    fn read_groups(&mut self) -> Result<(), Why> {
        let GroupByExpr::Expressions(terms, _) = &self.select.group_by else { return Err(Why::Form) };
        let spans = self.clauses.group.map(|span| list(self.tokens(), span)).unwrap_or_default();
        if spans.len() != terms.len() {
            return Err(Why::Form);
        }
        for (term, span) in terms.iter().zip(spans) {
            let expr = group_term(self.spreading, self.select, term);
            let term = if std::ptr::eq(expr, term) { span } else { self.item_span(expr).ok_or(Why::Form)? };
            let group = self.group(bare(expr), term)?;
            self.groups.push(group);
        }
        Ok(())
    }

    fn group(&self, expr: &'q Expr, term: Span) -> Result<Group<'q, 'a>, Why> {
        if let Some((qualifier, name)) = column_name(expr) {
            let Kind::Column(column, strict) = self.column(qualifier.as_deref(), &name).ok_or(Why::BareColumn)? else {
                return Ok(Group { expr, term, column: None, definition: String::new() });
            };
            if is_collated(column) {
                return Err(Why::Collation);
            }
            let definition = column_definition("", column, strict).trim_start_matches("\"\"").to_owned();
            return Ok(Group { expr, term, column: Some(column), definition });
        }
        if crate::spread::ordinal(expr).is_some() || has_calls_in(expr) || has_query(expr) {
            return Err(Why::Groups);
        }
        let definition = match (expr, kind_of(expr)) {
            (_, Kind::Plain) => String::new(),
            (Expr::Cast { expr, .. }, _) if kind_of(expr) == Kind::Plain => self.cast_type(term).ok_or(Why::Groups)?,
            _ => return Err(Why::Collation),
        };
        Ok(Group { expr, term, column: None, definition })
    }

    /// The type of the `CAST(… AS type)` that `span` spells.
    fn cast_type(&self, span: Span) -> Option<String> {
        let tokens = self.tokens();
        let (open, mut depth, mut at) = (span.0 + 1, 0usize, None);
        if !tokens.is(span.0, "CAST") || tokens.closing(open) + 1 != span.1 {
            return None;
        }
        for index in open..span.1 {
            match tokens.str(index) {
                "(" => depth += 1,
                ")" => depth -= 1,
                _ if depth == 1 && tokens.is(index, "AS") => at = Some(index + 1),
                _ => {}
            }
        }
        Some(format!(" {}", crate::fetch::declared_type(tokens.slice(at?, span.1 - 1))))
    }

    /// The tokens of the item of the SELECT list whose expression is `expr`.
    fn item_span(&self, expr: &Expr) -> Option<Span> {
        let spans = list(self.tokens(), self.clauses.items);
        let at =
            self.select.projection.iter().position(|item| item_expr(item).is_some_and(|e| std::ptr::eq(e, expr)))?;
        let span = *spans.get(at).filter(|_| spans.len() == self.select.projection.len())?;
        Some((span.0, self.without_alias(&self.select.projection[at], span)))
    }

    /// The end of an item's expression.
    fn without_alias(&self, item: &SelectItem, span: Span) -> usize {
        if !matches!(item, SelectItem::ExprWithAlias { .. }) {
            return span.1;
        }
        let alias = span.1 - 1;
        if alias > span.0 && self.tokens().is(alias - 1, "AS") { alias - 1 } else { alias }
    }

    /// What a column of the open frame compares like.
    fn column(&self, qualifier: Option<&str>, name: &str) -> Option<Kind<'a>> {
        match resolve(&self.spreading.frames, qualifier, name) {
            Named::Column { frame, column, .. } if frame + 1 == self.spreading.frames.len() => {
                (column.kind != Kind::Unknown).then_some(column.kind)
            }
            _ => None,
        }
    }
}

fn has_calls_in(expr: &Expr) -> bool {
    if let Expr::Function(function) = expr {
        let name = crate::tree::last_name(&function.name);
        if function.over.is_some() || crate::functions::is_aggregate(&name, crate::tree::argument_count(function)) {
            return true;
        }
    }
    parts(expr).unwrap_or_default().into_iter().any(|part| match part {
        Part::Expr(inner) => has_calls_in(inner),
        Part::Query(_) => false,
    })
}

/// Names that nothing else in the statement has, so that they can't be mistaken (see [`RESERVED`]).
fn group_name(at: usize) -> String {
    format!("__part_g{at}")
}

fn part_name(at: usize) -> String {
    format!("__part_a{at}")
}

fn extra_name(at: usize) -> String {
    format!("__part_d{at}")
}

fn is_collated(column: &Column) -> bool {
    column.collation.as_ref().is_some_and(|collation| !collation.eq_ignore_ascii_case("BINARY"))
}
