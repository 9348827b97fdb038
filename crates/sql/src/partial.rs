//! Aggregates in two steps: each shard aggregates its own rows, the finisher merges what they found.
//!
//! | the user's call | a shard computes        | the finisher merges       |
//! | --------------- | ----------------------- | ------------------------- |
//! | `count(x)`      | `count(x)`              | `coalesce(sum(…), 0)`     |
//! | `sum(x)`        | `sum(x)`                | `sum(…)`                  |
//! | `total(x)`      | `total(x)`              | `total(…)`                |
//! | `min(x)`        | `min(x)`                | `min(…)`                  |
//! | `avg(x)`        | four parts, see `avg`   | their sum over the count  |
//!
//! The finishing statement is the user's own with calls and GROUP BY columns replaced; HAVING, DISTINCT, ORDER BY
//! and LIMIT are evaluated only there. It is exact, NULLs and integer or real sums included: a sum is NULL, INTEGER
//! or REAL on a shard just when it is so for its rows, and merging keeps that.
//!
//! Not merged (and so gathered): DISTINCT aggregates, `group_concat` and JSON aggregates (their order), columns
//! outside GROUP BY (SQLite picks a row), text with a collation other than BINARY (SQLite picks a spelling).

use std::collections::BTreeSet;

use pleat_cluster::{Column, Value};
use sqlparser::ast::{Expr, GroupByExpr, OrderByKind, Query, SelectItem};

use crate::clauses::{Clauses, Output, Span, list};
use crate::fetch::{Place, column_definition, is_strict};
use crate::lex::{Kind, Tokens, quote};
use crate::params::Slots;
use crate::parse::{expression, is_keyword};
use crate::read::{Fetch, Route, Template};
use crate::scope::{Analysis, Resolved, column_name};
use crate::spread::{SpreadSelect, has_calls, is_grouped, spreads, uses_alias};
use crate::tree::bare;

/// The table of partial results in the finisher.
const PARTS: &str = "__parts";
/// What the names of its columns start with; a statement that uses such names is gathered.
const RESERVED: &str = "__part";

/// Why a statement without aggregates is not for this module.
pub(crate) const NOTHING_TO_MERGE: &str = "it has no aggregates to merge";

/// A statement whose aggregates are merged.
#[derive(Clone, Debug)]
pub(crate) struct PartialPlan {
    place: Place,
    create_sql: String,
    sql: Template,
    filtered: Template,
    finish: Template,
}

impl PartialPlan {
    pub fn route(&self, values: &[Value], partition_count: u32) -> Route {
        let fetch = Fetch {
            table: PARTS.to_owned(),
            create_sql: self.create_sql.clone(),
            source: self.place.source(values, partition_count),
            sql: self.sql.sql.clone(),
            sql_filtered: Some(self.filtered.sql.clone()),
            params: self.sql.values(values),
        };
        Route::Gather { fetches: vec![fetch], finish: self.finish.bind(values) }
    }
}

/// Plans merged aggregates, or says why not.
pub(crate) fn partial(analysis: &Analysis, query: &Query, span: Span) -> Result<PartialPlan, &'static str> {
    let spread = spreads(analysis, query, span)?;
    if !is_grouped(spread.select) && !has_calls(spread.select, query, false) {
        return Err(NOTHING_TO_MERGE);
    }
    if analysis.names().iter().any(|name| name.starts_with(RESERVED)) {
        return Err("a name in it is also one of Pleat's");
    }
    if has_calls(spread.select, query, true) {
        return Err("it has window functions");
    }
    let mut merge = Merge { analysis, spread: &spread, groups: Vec::new(), parts: Vec::new() };
    merge.groups()?;
    let finish = merge.finish(query)?;
    if merge.groups.is_empty() && merge.parts.is_empty() {
        return Err(NOTHING_TO_MERGE);
    }
    Ok(PartialPlan {
        place: spread.place(analysis),
        create_sql: merge.create_table(),
        sql: merge.shard_statement(false),
        filtered: merge.shard_statement(true),
        finish: finish.into(),
    })
}

/// A column of the GROUP BY.
struct Group<'a> {
    occurrence: usize,
    column: &'a Column,
    strict: bool,
    term: Span,
}

/// A value that shards compute: the text before and after the user's argument, in pieces.
struct PartValue {
    /// `{}` stands for the call's arguments.
    template: String,
    arguments: Span,
    filter: Option<Span>,
}

struct Merge<'m, 'a> {
    analysis: &'m Analysis<'a>,
    spread: &'m SpreadSelect<'m>,
    groups: Vec<Group<'a>>,
    parts: Vec<PartValue>,
}

/// A call of an aggregate in the tokens.
struct Call {
    name: String,
    arguments: Span,
    filter: Option<Span>,
    end: usize,
}

impl<'a> Merge<'_, 'a> {
    fn tokens(&self) -> &'a Tokens<'a> {
        self.analysis.tokens
    }

    fn slots(&self) -> &'a Slots {
        self.analysis.slots
    }

    fn clauses(&self) -> &Clauses {
        &self.spread.clauses
    }

    /// Reads GROUP BY: plain columns with BINARY collation.
    fn groups(&mut self) -> Result<(), &'static str> {
        let GroupByExpr::Expressions(terms, _) = &self.spread.select.group_by else {
            return Err("it has GROUP BY ALL");
        };
        let spans = self.clauses().group.map(|span| list(self.tokens(), span)).unwrap_or_default();
        if spans.len() != terms.len() {
            return Err("its GROUP BY could not be cut into terms");
        }
        for (expr, term) in terms.iter().zip(spans) {
            let (qualifier, name) = column_name(bare(expr)).ok_or("it groups by an expression")?;
            let (occurrence, column) =
                self.column(qualifier.as_deref(), &name).ok_or("it groups by something other than a column")?;
            if is_collated(column) {
                return Err("it groups by text with a collation of its own");
            }
            let strict = is_strict(&self.analysis.table(occurrence).create_sql);
            self.groups.push(Group { occurrence, column, strict, term });
        }
        Ok(())
    }

    fn column(&self, qualifier: Option<&str>, name: &str) -> Option<(usize, &'a Column)> {
        match self.analysis.resolve(self.spread.scope, qualifier, name) {
            Resolved::Occurrence { occurrence, own: true } => {
                Some((occurrence, self.analysis.table(occurrence).column(name)?))
            }
            _ => None,
        }
    }

    /// The user's statement over the merged parts.
    fn finish(&mut self, query: &Query) -> Result<Output, &'static str> {
        let mut output = Output::default();
        output.push(if self.spread.select.distinct.is_some() { "SELECT DISTINCT " } else { "SELECT " });
        self.items(&mut output)?;
        output.push(&format!(" FROM {PARTS}"));
        for at in 0..self.groups.len() {
            output.push(if at == 0 { " GROUP BY " } else { ", " });
            output.push(&group_name(at));
        }
        if let Some(having) = self.clauses().having {
            output.push(" HAVING ");
            self.rewrite(having, &mut output)?;
        }
        self.order(query, &mut output)?;
        if let Some(limit) = self.clauses().limit {
            output.push(" LIMIT ");
            output.span(self.tokens(), self.slots(), limit);
        }
        Ok(output)
    }

    fn items(&mut self, output: &mut Output) -> Result<(), &'static str> {
        let spans = list(self.tokens(), self.clauses().items);
        let items = &self.spread.select.projection;
        if spans.len() != items.len() {
            return Err("its SELECT list could not be cut into items");
        }
        for (at, (item, span)) in items.iter().zip(spans).enumerate() {
            output.push(if at > 0 { ", " } else { "" });
            match item {
                SelectItem::UnnamedExpr(expr) => {
                    self.rewrite(span, output)?;
                    output.push(" AS ");
                    output.push(&quote(&self.result_name(expr, span)));
                }
                SelectItem::ExprWithAlias { .. } => {
                    let alias = span.1 - 1;
                    let end = if alias > span.0 && self.tokens().is(alias - 1, "AS") { alias - 1 } else { alias };
                    self.rewrite((span.0, end), output)?;
                    output.span(self.tokens(), self.slots(), (end, span.1));
                }
                _ => return Err("it has columns outside GROUP BY"),
            }
        }
        Ok(())
    }

    /// The name that SQLite gives to a result without an alias: the column's, or the expression's text.
    fn result_name(&self, expr: &Expr, span: Span) -> String {
        let column = column_name(bare(expr)).and_then(|(qualifier, name)| self.column(qualifier.as_deref(), &name));
        column.map_or_else(|| self.tokens().slice(span.0, span.1).to_owned(), |(_, column)| column.name.clone())
    }

    fn order(&mut self, query: &Query, output: &mut Output) -> Result<(), &'static str> {
        let Some(order) = &query.order_by else { return Ok(()) };
        let OrderByKind::Expressions(terms) = &order.kind else { return Err("it has ORDER BY ALL") };
        let spans = self.clauses().order.map(|span| list(self.tokens(), span)).unwrap_or_default();
        if spans.len() != terms.len() {
            return Err("its ORDER BY could not be cut into terms");
        }
        for (at, (term, span)) in terms.iter().zip(spans).enumerate() {
            output.push(if at > 0 { ", " } else { " ORDER BY " });
            if self.is_alias(&term.expr) {
                output.span(self.tokens(), self.slots(), span);
            } else if uses_alias(&term.expr, self.spread.select) {
                return Err("an alias in its ORDER BY is also a column");
            } else {
                self.rewrite(span, output)?;
            }
        }
        Ok(())
    }

    /// Whether `expr` is, as a whole, an alias of the SELECT list.
    fn is_alias(&self, expr: &Expr) -> bool {
        let Expr::Identifier(name) = expr else { return false };
        self.spread.select.projection.iter().any(|item| {
            matches!(item, SelectItem::ExprWithAlias { alias, .. } if alias.value.eq_ignore_ascii_case(&name.value))
        })
    }

    /// Copies `span` with aggregate calls and GROUP BY columns replaced.
    fn rewrite(&mut self, span: Span, output: &mut Output) -> Result<(), &'static str> {
        let mut index = span.0;
        while index < span.1 {
            index = self.rewrite_at(index, span.1, output)?;
        }
        Ok(())
    }

    fn rewrite_at(&mut self, index: usize, end: usize, output: &mut Output) -> Result<usize, &'static str> {
        let tokens = self.tokens();
        if let Some(call) = self.call(index, end)? {
            let merged = self.merged(&call)?;
            output.word(&merged);
            return Ok(call.end);
        }
        let is_name = matches!(tokens.kind(index), Some(Kind::Word | Kind::Name));
        let after = |word| index > 0 && tokens.is(index - 1, word);
        if !is_name || tokens.is_symbol(index + 1, "(") || after("COLLATE") || after("AS") {
            output.token(tokens, self.slots(), index);
            return Ok(index + 1);
        }
        self.rewrite_name(index, end, output)
    }

    fn rewrite_name(&mut self, index: usize, end: usize, output: &mut Output) -> Result<usize, &'static str> {
        let tokens = self.tokens();
        let mut last = index;
        while last + 2 < end && tokens.is_symbol(last + 1, ".") {
            last += 2;
        }
        let name = tokens.name(last).unwrap_or_default().to_ascii_lowercase();
        let qualifier = (last > index).then(|| tokens.name(last - 2).unwrap_or_default().to_ascii_lowercase());
        let Some((occurrence, column)) = self.column(qualifier.as_deref(), &name) else {
            output.token(tokens, self.slots(), index); // a keyword or an alias
            return Ok(index + 1);
        };
        if tokens.kind(index) == Some(Kind::Word) && last == index && is_structure(&name) {
            return Err("a column is named like a keyword");
        }
        let group =
            self.groups.iter().position(|group| group.occurrence == occurrence && group.column.name == column.name);
        let group = group.ok_or("it has columns outside GROUP BY")?;
        output.word(&group_name(group));
        Ok(last + 1)
    }

    /// The aggregate call that starts at `index`, if one does.
    fn call(&self, index: usize, end: usize) -> Result<Option<Call>, &'static str> {
        let tokens = self.tokens();
        if !tokens.is_symbol(index + 1, "(") || !matches!(tokens.kind(index), Some(Kind::Word | Kind::Name)) {
            return Ok(None);
        }
        let name = tokens.name(index).unwrap_or_default().to_ascii_lowercase();
        let close = tokens.closing(index + 1);
        let arguments = (index + 2, close);
        let count = if arguments.0 == arguments.1 { 0 } else { list(tokens, arguments).len() };
        if !crate::functions::is_aggregate(&name, count) {
            return Ok(None);
        }
        let filtered = tokens.is(close + 1, "FILTER") && tokens.is_symbol(close + 2, "(") && close + 2 < end;
        let filter_close = if filtered { tokens.closing(close + 2) } else { close };
        let filter = filtered.then_some((close + 2, filter_close + 1));
        self.check_call(arguments, filter)?;
        Ok(Some(Call { name, arguments, filter, end: filter_close + 1 }))
    }

    /// Refuses arguments that a shard can't evaluate alone, or whose order or spelling would matter.
    fn check_call(&self, arguments: Span, filter: Option<Span>) -> Result<(), &'static str> {
        let tokens = self.tokens();
        let star = arguments.1 == arguments.0 || (arguments.1 == arguments.0 + 1 && tokens.is_symbol(arguments.0, "*"));
        if !star {
            let expr = expression(tokens, self.slots(), arguments.0, arguments.1)
                .ok_or("it has DISTINCT or several arguments in an aggregate")?;
            self.check_argument(&expr)?;
        }
        if let Some((open, end)) = filter {
            let expr = expression(tokens, self.slots(), open + 2, end - 1).ok_or("its FILTER could not be read")?;
            self.check_argument(&expr)?;
        }
        Ok(())
    }

    fn check_argument(&self, expr: &Expr) -> Result<(), &'static str> {
        let mut used = BTreeSet::new();
        if self.analysis.is_row_local(expr, self.spread.scope, &mut used) {
            Ok(())
        } else {
            Err("an aggregate is over more than plain columns")
        }
    }

    /// Notes what shards compute for `call`, and gives the expression that merges it.
    fn merged(&mut self, call: &Call) -> Result<String, &'static str> {
        let name = call.name.as_str();
        match name {
            "count" => {
                let part = self.part(call, "count({})");
                Ok(format!("coalesce(sum({part}), 0)"))
            }
            "sum" | "total" => {
                let part = self.part(call, &format!("{name}({{}})"));
                Ok(format!("{name}({part})"))
            }
            "min" | "max" => {
                if self.is_collated(call.arguments) {
                    return Err("min or max of text with a collation of its own");
                }
                let part = self.part(call, &format!("{name}({{}})"));
                Ok(format!("{name}({part})"))
            }
            "avg" => Ok(self.avg(call)),
            _ => Err("an aggregate in it can't be merged"),
        }
    }

    /// The average as SQLite computes it: an exact sum of the integers plus the sum of the reals, over the count.
    /// Integers are summed in halves, so that no sum overflows and nothing is rounded before the end.
    fn avg(&mut self, call: &Call) -> String {
        let count = self.part(call, "count({})");
        let high = self.part(call, "sum(iif(typeof({}) = 'integer', ({}) >> 32, NULL))");
        let low = self.part(call, "sum(iif(typeof({}) = 'integer', ({}) & 4294967295, NULL))");
        let real = self.part(call, "total(iif(typeof({}) = 'integer', NULL, {}))");
        format!("((coalesce(sum({high}), 0) * 4294967296.0 + coalesce(sum({low}), 0) + total({real})) / sum({count}))")
    }

    fn is_collated(&self, span: Span) -> bool {
        let collated = |index: usize| {
            let name = self.tokens().name(index).unwrap_or_default().to_ascii_lowercase();
            let scope = &self.analysis.scopes[self.spread.scope];
            let tables = scope.sources.iter().filter_map(|source| source.occurrence);
            let columns = tables.filter_map(|occurrence| self.analysis.table(occurrence).column(&name));
            name == "collate" || columns.into_iter().any(is_collated)
        };
        (span.0..span.1).any(collated)
    }

    fn part(&mut self, call: &Call, template: &str) -> String {
        self.parts.push(PartValue { template: template.to_owned(), arguments: call.arguments, filter: call.filter });
        part_name(self.parts.len() - 1)
    }

    fn create_table(&self) -> String {
        let groups = self
            .groups
            .iter()
            .enumerate()
            .map(|(at, group)| column_definition(&group_name(at), group.column, group.strict));
        let parts = (0..self.parts.len()).map(part_name);
        format!("CREATE TABLE {PARTS} ({})", groups.chain(parts).collect::<Vec<_>>().join(", "))
    }

    fn shard_statement(&self, owned: bool) -> Template {
        let (tokens, slots) = (self.tokens(), self.slots());
        let mut output = Output::default();
        output.push("SELECT ");
        for (at, group) in self.groups.iter().enumerate() {
            output.push(if at > 0 { ", " } else { "" });
            output.span(tokens, slots, group.term);
        }
        for (at, part) in self.parts.iter().enumerate() {
            output.push(if at + self.groups.len() > 0 { ", " } else { "" });
            for (piece, text) in part.template.split("{}").enumerate() {
                if piece > 0 {
                    output.span(tokens, slots, part.arguments);
                }
                output.push(text);
            }
            if let Some(filter) = part.filter {
                output.push(" FILTER ");
                output.span(tokens, slots, filter);
            }
        }
        self.spread.write_source(self.analysis, owned, &mut output);
        for (at, group) in self.groups.iter().enumerate() {
            output.push(if at == 0 { " GROUP BY " } else { ", " });
            output.span(tokens, slots, group.term);
        }
        output.into()
    }
}

/// Names that nothing else in the statement has, so that they can't be mistaken (see [`RESERVED`]).
fn group_name(at: usize) -> String {
    format!("__part_g{at}")
}

fn part_name(at: usize) -> String {
    format!("__part_a{at}")
}

fn is_collated(column: &Column) -> bool {
    column.collation.as_ref().is_some_and(|collation| !collation.eq_ignore_ascii_case("BINARY"))
}

/// Whether a bare word can be part of an expression's syntax, so that it can't be taken for a column.
fn is_structure(word: &str) -> bool {
    const NAMES_TOO: [&str; 12] =
        ["KEY", "ACTION", "PLAN", "QUERY", "ROW", "ROWS", "TO", "OF", "NO", "DATABASE", "INDEX", "TABLE"];
    let word = word.to_ascii_uppercase();
    is_keyword(&word) && !NAMES_TOO.contains(&word.as_str())
}
