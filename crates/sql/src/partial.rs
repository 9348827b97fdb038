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

use pleat_cluster::Column;
use sqlparser::ast::{Expr, GroupByExpr, OrderByKind, Query, Select, SelectItem};

use crate::clauses::{Clauses, Output, Span, list};
use crate::fetch::{FetchPlan, Place, column_definition};
use crate::forms::uses_alias;
use crate::frame::{Key, Kind, Named, resolve};
use crate::lex::{Kind as Token, Tokens, quote};
use crate::params::Slots;
use crate::parse::{expression, is_keyword};
use crate::read::Template;
use crate::scope::column_name;
use crate::shard_sql::{Copy, both};
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

/// A call of an aggregate in the tokens.
struct Call {
    name: String,
    distinct: bool,
    arguments: Span,
    filter: Option<Span>,
    end: usize,
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

    // ---- the finishing statement ----

    /// The user's statement over the merged parts: before FROM, and after it.
    fn finish(&mut self, query: &Query) -> Result<(Output, Output), Why> {
        let mut front = Output::default();
        front.push(if self.select.distinct.is_some() { "SELECT DISTINCT " } else { "SELECT " });
        self.items(&mut front)?;
        let mut output = Output::default();
        for at in 0..self.groups.len() {
            output.push(if at == 0 { "GROUP BY " } else { ", " });
            output.push(&group_name(at));
        }
        if let Some(having) = self.clauses.having {
            output.push(" HAVING ");
            self.rewrite(having, self.select.having.as_ref(), &mut output)?;
        }
        self.order(query, &mut output)?;
        if let Some(limit) = self.clauses.limit {
            output.push(" LIMIT ");
            output.span(self.tokens(), self.slots(), limit);
        }
        Ok((front, output))
    }

    fn items(&mut self, output: &mut Output) -> Result<(), Why> {
        let spans = list(self.tokens(), self.clauses.items);
        let items = &self.select.projection;
        if spans.len() != items.len() {
            return Err(Why::Form);
        }
        for (at, (item, span)) in items.iter().zip(spans).enumerate() {
            output.push(if at > 0 { ", " } else { "" });
            match item {
                SelectItem::UnnamedExpr(expr) => {
                    self.rewrite(span, Some(expr), output)?;
                    output.push(" AS ");
                    output.push(&quote(&self.result_name(expr, span)));
                }
                SelectItem::ExprWithAlias { expr, .. } => {
                    let end = self.without_alias(item, span);
                    self.rewrite((span.0, end), Some(expr), output)?;
                    output.span(self.tokens(), self.slots(), (end, span.1));
                }
                _ => return Err(Why::BareColumn),
            }
        }
        Ok(())
    }

    /// The name that SQLite gives to a result without an alias: the column's, or the expression's text.
    fn result_name(&self, expr: &Expr, span: Span) -> String {
        match self.spreading.named(expr) {
            Some(Named::Column { column, .. }) => column.name,
            _ => self.tokens().slice(span.0, span.1).to_owned(),
        }
    }

    fn order(&mut self, query: &Query, output: &mut Output) -> Result<(), Why> {
        let Some(order) = &query.order_by else { return Ok(()) };
        let OrderByKind::Expressions(terms) = &order.kind else { return Err(Why::Form) };
        let spans = self.clauses.order.map(|span| list(self.tokens(), span)).unwrap_or_default();
        if spans.len() != terms.len() {
            return Err(Why::Form);
        }
        for (at, (term, span)) in terms.iter().zip(spans).enumerate() {
            output.push(if at > 0 { ", " } else { " ORDER BY " });
            if self.is_alias(&term.expr) {
                output.span(self.tokens(), self.slots(), span);
            } else if uses_alias(&term.expr, self.select) {
                return Err(Why::Order);
            } else {
                self.rewrite(span, None, output)?;
            }
        }
        Ok(())
    }

    /// Whether `expr` is, as a whole, an alias of the SELECT list.
    fn is_alias(&self, expr: &Expr) -> bool {
        let Expr::Identifier(name) = expr else { return false };
        self.select.projection.iter().any(|item| {
            matches!(item, SelectItem::ExprWithAlias { alias, .. } if alias.value.eq_ignore_ascii_case(&name.value))
        })
    }

    /// Copies `span` with aggregate calls and GROUP BY terms replaced. `whole`: the expression that it spells.
    fn rewrite(&mut self, span: Span, whole: Option<&Expr>, output: &mut Output) -> Result<(), Why> {
        let same = |group: &Group| whole.is_some_and(|whole| bare(whole) == group.expr) && group.column.is_none();
        if let Some(group) = self.groups.iter().position(same) {
            output.word(&self.group_value(group));
            return Ok(());
        }
        let mut index = span.0;
        while index < span.1 {
            index = self.rewrite_at(index, span.1, output)?;
        }
        Ok(())
    }

    fn rewrite_at(&mut self, index: usize, end: usize, output: &mut Output) -> Result<usize, Why> {
        let tokens = self.tokens();
        if let Some((group, next)) = self.group_at(index, end) {
            output.word(&self.group_value(group));
            return Ok(next);
        }
        if let Some(call) = self.call(index, end)? {
            let merged = self.merged(&call)?;
            output.word(&merged);
            return Ok(call.end);
        }
        let is_name = matches!(tokens.kind(index), Some(Token::Word | Token::Name));
        let after = |word| index > 0 && tokens.is(index - 1, word);
        if !is_name || tokens.is_symbol(index + 1, "(") || after("COLLATE") || after("AS") {
            output.token(tokens, self.slots(), index);
            return Ok(index + 1);
        }
        self.rewrite_name(index, end, output)
    }

    /// A group's value in the finishing statement. A column without a type has an affinity (BLOB), an expression has
    /// none; a sign takes it away.
    fn group_value(&self, at: usize) -> String {
        let group = &self.groups[at];
        let sign = if group.column.is_none() && group.definition.is_empty() { "+" } else { "" };
        format!("{sign}{}", group_name(at))
    }

    /// The GROUP BY expression that stands at `index` and holds together by itself (a call, a CASE, a CAST): it means
    /// the same whatever is around it.
    fn group_at(&self, index: usize, end: usize) -> Option<(usize, usize)> {
        let tokens = self.tokens();
        let same = |a: usize, b: usize| {
            let word = tokens.kind(a) == Some(Token::Word) && tokens.kind(b) == Some(Token::Word);
            if word { tokens.str(a).eq_ignore_ascii_case(tokens.str(b)) } else { tokens.str(a) == tokens.str(b) }
        };
        self.groups.iter().enumerate().find_map(|(at, group)| {
            let length = group.term.1 - group.term.0;
            let closed = matches!(group.expr, Expr::Function(_) | Expr::Case { .. } | Expr::Cast { .. })
                && !tokens.is_symbol(group.term.0, "(");
            let holds = closed && index + length <= end && (0..length).all(|n| same(index + n, group.term.0 + n));
            holds.then_some((at, index + length))
        })
    }

    fn rewrite_name(&mut self, index: usize, end: usize, output: &mut Output) -> Result<usize, Why> {
        let tokens = self.tokens();
        let mut last = index;
        while last + 2 < end && tokens.is_symbol(last + 1, ".") {
            last += 2;
        }
        let name = tokens.name(last).unwrap_or_default().to_ascii_lowercase();
        let qualifier = (last > index).then(|| tokens.name(last - 2).unwrap_or_default().to_ascii_lowercase());
        let found = resolve(&self.spreading.frames, qualifier.as_deref(), &name);
        let Named::Column { source, column, .. } = found else {
            output.token(tokens, self.slots(), index); // a keyword or an alias
            return Ok(index + 1);
        };
        if tokens.kind(index) == Some(Token::Word) && last == index && is_structure(&name) {
            return Err(Why::Reserved);
        }
        let group = self.groups.iter().position(|group| match self.spreading.named(group.expr) {
            Some(Named::Column { source: other, column: grouped, .. }) => {
                source == other && grouped.name == column.name
            }
            _ => false,
        });
        let value = self.group_value(group.ok_or(Why::BareColumn)?);
        output.word(&value);
        Ok(last + 1)
    }

    // ---- aggregates ----

    /// The aggregate call that starts at `index`, if one does.
    fn call(&self, index: usize, end: usize) -> Result<Option<Call>, Why> {
        let tokens = self.tokens();
        if !tokens.is_symbol(index + 1, "(") || !matches!(tokens.kind(index), Some(Token::Word | Token::Name)) {
            return Ok(None);
        }
        let name = tokens.name(index).unwrap_or_default().to_ascii_lowercase();
        let close = tokens.closing(index + 1);
        let mut arguments = (index + 2, close);
        let count = if arguments.0 == arguments.1 { 0 } else { list(tokens, arguments).len() };
        if !crate::functions::is_aggregate(&name, count) {
            return Ok(None);
        }
        let distinct = tokens.is(arguments.0, "DISTINCT");
        arguments.0 += usize::from(distinct || tokens.is(arguments.0, "ALL"));
        let filtered = tokens.is(close + 1, "FILTER") && tokens.is_symbol(close + 2, "(") && close + 2 < end;
        let filter_close = if filtered { tokens.closing(close + 2) } else { close };
        let filter = filtered.then_some((close + 2, filter_close + 1));
        self.check_call(arguments, filter)?;
        Ok(Some(Call { name, distinct, arguments, filter, end: filter_close + 1 }))
    }

    /// Refuses arguments that can't be taken apart.
    fn check_call(&self, arguments: Span, filter: Option<Span>) -> Result<(), Why> {
        let tokens = self.tokens();
        let star = arguments.1 == arguments.0 || (arguments.1 == arguments.0 + 1 && tokens.is_symbol(arguments.0, "*"));
        let inner = filter.map(|(open, end)| (open + 2, end - 1));
        for span in (!star).then_some(arguments).into_iter().chain(inner) {
            let expr = expression(tokens, self.slots(), span.0, span.1).ok_or(Why::Aggregate)?;
            if has_calls_in(&expr) {
                return Err(Why::Aggregate);
            }
        }
        Ok(())
    }

    /// Notes what shards compute for `call`, and gives the expression that merges it.
    fn merged(&mut self, call: &Call) -> Result<String, Why> {
        let name = call.name.as_str();
        match name {
            "min" | "max" => {
                if self.is_collated(call.arguments) {
                    return Err(Why::Collation);
                }
                let part = self.part(call, &format!("{name}({{}})"));
                Ok(format!("{name}({part})"))
            }
            "count" | "sum" | "total" | "avg" if call.distinct => self.merged_distinct(call),
            "count" => {
                let part = self.part(call, "count({})");
                Ok(format!("coalesce(sum({part}), 0)"))
            }
            "sum" | "total" => {
                let part = self.part(call, &format!("{name}({{}})"));
                Ok(format!("{name}({part})"))
            }
            "avg" => Ok(self.avg(call)),
            _ => Err(Why::Aggregate),
        }
    }

    fn merged_distinct(&mut self, call: &Call) -> Result<String, Why> {
        let (tokens, slots) = (self.tokens(), self.slots());
        let expr = expression(tokens, slots, call.arguments.0, call.arguments.1).ok_or(Why::Aggregate)?;
        let (key, kind) = match self.spreading.named(&expr) {
            Some(Named::Column { frame, column, .. }) if frame + 1 == self.spreading.frames.len() => {
                (column.key, column.kind)
            }
            Some(_) => return Err(Why::Aggregate),
            None => (Key::No, kind_of(&expr)),
        };
        if call.name == "count" && key.key_type().is_some() && !self.keys_are_values {
            self.distinct_keys = true;
            let part = self.part(call, "count(DISTINCT {})");
            return Ok(format!("coalesce(sum({part}), 0)"));
        }
        let definition = match kind {
            Kind::Column(column, strict) if call.name == "count" || !is_collated(column) => {
                column_definition("", column, strict).trim_start_matches("\"\"").to_owned()
            }
            Kind::Plain => String::new(),
            Kind::Column(..) | Kind::Unknown => return Err(Why::Collation),
        };
        // A CASE has neither affinity nor collation.
        if call.filter.is_some() && definition.contains(" COLLATE ") {
            return Err(Why::Collation);
        }
        self.extras.push(Extra { arguments: call.arguments, filter: call.filter, definition });
        Ok(format!("{}(DISTINCT {})", call.name, extra_name(self.extras.len() - 1)))
    }

    /// The average as SQLite computes it: an exact sum of the integers plus the sum of the reals, over the count.
    ///
    /// `total(x)` alone is rounded, and what is lost shows when shards' sums cancel each other out. So a shard also gives the
    /// sum of its integers' lower halves (each from 0 to 2^32 - 1, so it can't overflow). The sum of the upper halves is then
    /// what is nearest, `round((total - low) / 2^32)`, and both together are exact if they make up the total. They don't if there
    /// are fractions among the values: then the total is what counts. To find that out at the end costs nothing; a shard that
    /// looks at the type of each value takes longer for it than for the sum.
    fn avg(&mut self, call: &Call) -> String {
        let count = self.part(call, "count({})");
        let total = self.part(call, "total({})");
        let low = self.part(call, "sum(({}) & 4294967295)");
        let high = format!("CAST(round(({total} - {low}) / 4294967296.0) AS INTEGER)");
        let exact = format!("{high} * 4294967296.0 + {low} = {total}");
        format!(
            "((total(iif({exact}, {high}, 0)) * 4294967296.0 + total(iif({exact}, {low}, {total}))) / sum({count}))"
        )
    }

    /// Whether a name in `span` may be of a column with a collation of its own.
    fn is_collated(&self, span: Span) -> bool {
        let sources = self.spreading.frames.last().map(|frame| frame.sources.as_slice()).unwrap_or_default();
        let collated = |index: usize| {
            let name = self.tokens().name(index).unwrap_or_default().to_ascii_lowercase();
            let columns = sources.iter().filter_map(|source| source.column(source.find(&name)?));
            name == "collate"
                || columns.into_iter().any(|column| match column.kind {
                    Kind::Column(column, _) => is_collated(column),
                    Kind::Plain => false,
                    Kind::Unknown => true,
                })
        };
        (span.0..span.1).any(collated)
    }

    fn part(&mut self, call: &Call, template: &str) -> String {
        self.parts.push(PartValue { template: template.to_owned(), arguments: call.arguments, filter: call.filter });
        part_name(self.parts.len() - 1)
    }

    // ---- the shards' statement ----

    fn definitions(&self) -> String {
        let groups =
            self.groups.iter().enumerate().map(|(at, group)| format!("{}{}", group_name(at), group.definition));
        let extras =
            self.extras.iter().enumerate().map(|(at, extra)| format!("{}{}", extra_name(at), extra.definition));
        let parts = (0..self.parts.len()).map(part_name);
        let all: Vec<String> = groups.chain(extras).chain(parts).collect();
        all.join(", ")
    }

    fn shard_statement(&self, span: Span, owned: bool) -> Output {
        let analysis = self.spreading.analysis;
        let copy = Copy::default();
        let mut output = Output::default();
        let select = self.clauses.items.0 - 1;
        let with_end =
            if self.tokens().is(select, "DISTINCT") || self.tokens().is(select, "ALL") { select - 1 } else { select };
        copy.write(analysis, (span.0, with_end), owned, &mut output);
        if !output.sql.is_empty() {
            output.push(" ");
        }
        output.push("SELECT ");
        let mut columns = 0;
        let mut comma = |output: &mut Output| {
            output.push(if columns > 0 { ", " } else { "" });
            columns += 1;
        };
        for group in &self.groups {
            comma(&mut output);
            copy.write(analysis, group.term, owned, &mut output);
        }
        for extra in &self.extras {
            comma(&mut output);
            self.write_extra(extra, owned, &mut output);
        }
        for part in &self.parts {
            comma(&mut output);
            for (piece, text) in part.template.split("{}").enumerate() {
                if piece > 0 {
                    copy.write(analysis, part.arguments, owned, &mut output);
                }
                output.push(text);
            }
            if let Some(filter) = part.filter {
                output.push(" FILTER ");
                copy.write(analysis, filter, owned, &mut output);
            }
        }
        if let Some(from) = self.clauses.from {
            let end = self.clauses.filter.map_or(from.1, |filter| filter.1);
            output.push(" ");
            copy.write(analysis, (from.0 - 1, end), owned, &mut output);
        }
        let numbers = 1..=self.groups.len() + self.extras.len();
        let numbers: Vec<String> = numbers.map(|number| number.to_string()).collect();
        if !numbers.is_empty() {
            output.push(&format!(" GROUP BY {}", numbers.join(", ")));
        }
        output
    }

    fn write_extra(&self, extra: &Extra, owned: bool, output: &mut Output) {
        let (analysis, copy) = (self.spreading.analysis, Copy::default());
        let Some((open, end)) = extra.filter else {
            copy.write(analysis, extra.arguments, owned, output);
            return;
        };
        output.push("CASE WHEN ");
        copy.write(analysis, (open + 2, end - 1), owned, output);
        output.push(" THEN ");
        copy.write(analysis, extra.arguments, owned, output);
        output.push(" END");
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

/// Whether a bare word can be part of an expression's syntax, so that it can't be taken for a column.
fn is_structure(word: &str) -> bool {
    const NAMES_TOO: [&str; 12] =
        ["KEY", "ACTION", "PLAN", "QUERY", "ROW", "ROWS", "TO", "OF", "NO", "DATABASE", "INDEX", "TABLE"];
    let word = word.to_ascii_uppercase();
    is_keyword(&word) && !NAMES_TOO.contains(&word.as_str())
}
