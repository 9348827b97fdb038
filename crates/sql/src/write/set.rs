//! What a SET says, and whether it can be read ahead of the write.

use std::ops::ControlFlow;

use pleat_cluster::Table;
use sqlparser::ast::{
    Assignment, Expr, Query, SetExpr, SqliteOnConflict, TableFactor, Update, visit_expressions, visit_relations,
};

use super::change::targets;
use super::compose::Snippet;
use super::statement::Draft;
use crate::clauses::{Clauses, Span, list};
use crate::error::{Code, SqlError};
use crate::functions;
use crate::lex::Tokens;
use crate::tree::{Part, last_name, lower, parts};

/// A column and the words of its new value.
#[derive(Clone, Debug)]
pub(super) struct SetValue {
    pub column: String,
    pub value: Snippet,
}

/// The columns of SET. Of a column that is set twice SQLite takes the last.
pub(super) fn set_values(draft: &Draft, table: &Table, update: &Update) -> Result<Vec<SetValue>, SqlError> {
    let spans = draft.shape.assignments(draft.analysis.tokens);
    if spans.len() != update.assignments.len() {
        return Err(
            SqlError::unsupported("this SET could not be cut into its assignments").hint("set one column at a time")
        );
    }
    let mut found: Vec<SetValue> = Vec::new();
    for (assignment, (_, span)) in update.assignments.iter().zip(spans) {
        for (column, value) in values_of(draft, assignment, span)? {
            let known = table.column(&column).filter(|column| !column.generated);
            let column = known.ok_or_else(|| unknown_column(table, &column))?.name.clone();
            found.retain(|set| set.column != column);
            found.push(SetValue { column, value });
        }
    }
    Ok(found)
}

fn unknown_column(table: &Table, name: &str) -> SqlError {
    SqlError::new(Code::UnknownColumn, format!("table {} has no column {name} that can be set", table.name))
}

/// Each column of an assignment with its value.
fn values_of(draft: &Draft, assignment: &Assignment, span: Span) -> Result<Vec<(String, Snippet)>, SqlError> {
    let (tokens, slots) = (draft.analysis.tokens, draft.analysis.slots);
    let mut columns = targets(assignment);
    if columns.len() == 1 {
        return Ok(vec![(columns.remove(0), Snippet::of(tokens, slots, span))]);
    }
    let refused = || {
        SqlError::unsupported("a row of values in SET that is read from other rows, over several shards")
            .hint("use UPDATE … FROM (SELECT …), or set one column at a time")
    };
    let inner = (span.0 + 1, span.1.saturating_sub(1));
    if !tokens.is_symbol(span.0, "(") || tokens.closing(span.0) != inner.1 {
        return Err(refused());
    }
    let items = if tokens.is(inner.0, "SELECT") {
        aggregates(draft, inner).ok_or_else(refused)?
    } else {
        list(tokens, inner).into_iter().map(|item| Snippet::of(tokens, slots, item)).collect()
    };
    if items.len() != columns.len() {
        return Err(SqlError::syntax(format!("{} columns assigned {} values", columns.len(), items.len())));
    }
    Ok(columns.into_iter().zip(items).collect())
}

/// `(SELECT count(*), max(x) FROM …)` as a subquery for each item. Only of aggregates without groups: two subqueries
/// could take two different rows otherwise.
fn aggregates(draft: &Draft, span: Span) -> Option<Vec<Snippet>> {
    let (tokens, slots) = (draft.analysis.tokens, draft.analysis.slots);
    let clauses = Clauses::of(tokens, span.0, span.1);
    let plain = clauses.end == span.1
        && clauses.items.0 == span.0 + 1
        && [clauses.group, clauses.having, clauses.window, clauses.order, clauses.limit].iter().all(Option::is_none);
    let items = list(tokens, clauses.items);
    if !plain || !items.iter().all(|item| is_aggregate(tokens, *item)) {
        return None;
    }
    let one = |item: Span| {
        let mut snippet = Snippet::of(tokens, slots, (span.0 - 1, clauses.items.0));
        snippet.join(Snippet::of(tokens, slots, item));
        snippet.join(Snippet::of(tokens, slots, (clauses.items.1, span.1 + 1)));
        snippet
    };
    Some(items.into_iter().map(one).collect())
}

fn is_aggregate(tokens: &Tokens, item: Span) -> bool {
    tokens.is_symbol(item.0 + 1, "(")
        && tokens.closing(item.0 + 1) + 1 == item.1
        && functions::is_aggregate(tokens.str(item.0), list(tokens, (item.0 + 2, item.1 - 1)).len())
}

/// SQLite computes SET row by row, so a subquery there that looks at the written table may see rows that were changed
/// already. Reading ahead would give other values, so such a statement is refused; one that is computed once is safe.
pub(super) fn refuse_self_reference(draft: &Draft, table: &Table, value: &Expr) -> Result<(), SqlError> {
    parts(value)?.into_iter().try_for_each(|part| match part {
        Part::Expr(inner) => refuse_self_reference(draft, table, inner),
        Part::Query(query) if !sees_changes(draft, table, query) => Ok(()),
        Part::Query(_) => Err(SqlError::unsupported(format!(
            "SET reads {} row by row while it changes, over several shards",
            table.name
        ))
        .hint("compute the values in UPDATE … FROM (SELECT …), which reads everything first")),
    })
}

/// Whether the subquery may mention the table and be computed more than once.
fn sees_changes(draft: &Draft, table: &Table, query: &Query) -> bool {
    let mut names = Vec::new();
    let _: ControlFlow<()> = visit_relations(query, |name| {
        names.push(last_name(name));
        ControlFlow::Continue(())
    });
    // Any name may be that of a CTE which reads the table.
    let tokens = draft.analysis.tokens;
    let named = |at: usize| tokens.name(at).is_some_and(|name| name.eq_ignore_ascii_case(&table.name));
    let hidden = draft.shape.with().is_some_and(|with| (with.0..with.1).any(named));
    let own = table.name.to_ascii_lowercase();
    let mentioned = names.contains(&own) || (hidden && !names.is_empty());
    mentioned && !(names == [own] && is_computed_once(table, query))
}

/// Whether the subquery reads the table alone and uses nothing of the row around it.
fn is_computed_once(table: &Table, query: &Query) -> bool {
    let SetExpr::Select(select) = &*query.body else { return false };
    let [from] = select.from.as_slice() else { return false };
    let TableFactor::Table { name, alias, .. } = &from.relation else { return false };
    if !from.joins.is_empty() || query.with.is_some() {
        return false;
    }
    let alias = alias.as_ref().map_or_else(|| last_name(name), |alias| lower(&alias.name));
    let inner = |expr: &Expr| match expr {
        Expr::Identifier(ident) => table.column(&ident.value).is_some(),
        Expr::CompoundIdentifier(idents) => idents.len() == 2 && lower(&idents[0]) == alias,
        _ => true,
    };
    let found = visit_expressions(query, |expr| match inner(expr) {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    });
    found.is_continue()
}

/// Refuses changes of a shard key that a DELETE and an INSERT can't stand for.
pub(super) fn check_may_move(draft: &Draft, table: &Table, or: Option<&SqliteOnConflict>) -> Result<(), SqlError> {
    let refused = |why: String, hint: &str| {
        let key = table.shard_key().map_or("", |(key, _)| key);
        Err(SqlError::unsupported(format!("changing the shard key {}.{key} {why}", table.name)).hint(hint))
    };
    if matches!(or, Some(SqliteOnConflict::Ignore | SqliteOnConflict::Replace)) {
        return refused("with OR IGNORE or OR REPLACE".to_owned(), "leave it out; find rows that are in the way first");
    }
    if or.is_none() && has_conflict_clause(&table.create_sql) {
        return refused(
            "of a table whose constraints say ON CONFLICT".to_owned(),
            "say UPDATE OR ABORT, which comes before what the constraints say",
        );
    }
    let refers = |other: &&Table| refers_to(&other.create_sql, &table.name);
    match draft.analysis.tables.values().find(refers) {
        Some(other) => refused(
            format!("while foreign keys of {} refer to its rows", other.name),
            "insert the row with its new key, change the rows that refer to it, then delete the old one",
        ),
        None => Ok(()),
    }
}

fn has_conflict_clause(create_sql: &str) -> bool {
    let Ok(tokens) = Tokens::of(create_sql) else { return true };
    let rule = |at: usize| tokens.is(at, "IGNORE") || tokens.is(at, "REPLACE");
    (0..tokens.len()).any(|at| tokens.are(at, &["ON", "CONFLICT"]) && rule(at + 2))
}

fn refers_to(create_sql: &str, table: &str) -> bool {
    let Ok(tokens) = Tokens::of(create_sql) else { return true };
    let named = |at: usize| tokens.name(at).is_some_and(|name| name.eq_ignore_ascii_case(table));
    (0..tokens.len()).any(|at| tokens.is(at, "REFERENCES") && named(at + 1))
}
