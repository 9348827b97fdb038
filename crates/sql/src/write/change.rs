//! UPDATE and DELETE: what they mention, and how they spread.

use pleat_cluster::{Table, TableKind};
use sqlparser::ast::{
    Assignment, AssignmentTarget, Delete, Expr, FromTable, SelectItem, SqliteOnConflict, TableFactor, TableWithJoins,
    Update, UpdateTableFromKind,
};

use super::ids::{given_refused, id_column, may_be_given};
use super::recipe::{Change, read_change};
use super::same::{SamePlan, stays_with};
use super::set::{check_may_move, refuse_self_reference, set_values};
use super::statement::{Draft, Found, SpreadPlan, late_reads, single_unit};
use super::triggers::refuse_other_update;
use crate::clauses::Span;
use crate::error::SqlError;
use crate::scope::Analysis;
use crate::tree::last_name;

/// The occurrence of the written table: it is read first.
pub(super) const TARGET: usize = 0;

pub(super) fn read_update<'a>(draft: &mut Draft<'a>, update: &Update) -> Result<Found<'a>, SqlError> {
    refuse_rollback(update.or.as_ref())?;
    if !update.order_by.is_empty() || update.limit.is_some() || update.output.is_some() {
        return Err(no_limit("UPDATE"));
    }
    let scope = target_scope(&mut draft.analysis, &update.table)?;
    let table = draft.analysis.table(TARGET);
    draft.with(&table.name)?;
    match &update.from {
        Some(UpdateTableFromKind::AfterSet(from)) => draft.analysis.more_sources(from, scope)?,
        Some(UpdateTableFromKind::BeforeSet(_)) => return Err(SqlError::syntax("FROM comes after SET")),
        None => {}
    }
    for assignment in &update.assignments {
        draft.analysis.expr(&assignment.value, scope)?;
    }
    let moves = table.shard_key().is_some_and(|(key, _)| update.assignments.iter().any(|one| assigns(one, key)));
    if moves {
        refuse_other_update(draft.analysis.tables, table, true)?;
    }
    let numbers = id_column(table).is_some_and(|id| update.assignments.iter().any(|one| assigns(one, id)));
    if numbers && !may_be_given(table) {
        return Err(given_refused(&table.name, id_column(table).unwrap_or_default()));
    }
    filter(draft, update.selection.as_ref(), scope)?;
    let late = draft.analysis.occurrences.len();
    returning(&mut draft.analysis, update.returning.as_deref(), scope)?;
    finish(draft, table)?;
    let spread = match (moves, same(draft, table)) {
        (false, Some(same)) => Ok(same),
        (moves, _) => computed_update(draft, table, update, late, moves),
    };
    Ok(Found { table, rows: None, inserted: None, spread, must_spread: moves })
}

pub(super) fn read_delete<'a>(draft: &mut Draft<'a>, delete: &Delete) -> Result<Found<'a>, SqlError> {
    if !delete.tables.is_empty() || delete.using.is_some() || delete.output.is_some() {
        return Err(SqlError::syntax("this form of DELETE is not SQLite's").hint("DELETE FROM table WHERE …"));
    }
    if !delete.order_by.is_empty() || delete.limit.is_some() {
        return Err(no_limit("DELETE"));
    }
    let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
    let [table] = from.as_slice() else {
        return Err(SqlError::syntax("one table can be written at a time"));
    };
    let scope = target_scope(&mut draft.analysis, table)?;
    let table = draft.analysis.table(TARGET);
    draft.with(&table.name)?;
    filter(draft, delete.selection.as_ref(), scope)?;
    let late = draft.analysis.occurrences.len();
    returning(&mut draft.analysis, delete.returning.as_deref(), scope)?;
    finish(draft, table)?;
    let spread = match same(draft, table) {
        Some(same) => Ok(same),
        None => computed(draft, table, late, Change::Delete),
    };
    Ok(Found { table, rows: None, inserted: None, spread, must_spread: false })
}

fn filter(draft: &mut Draft, filter: Option<&Expr>, scope: usize) -> Result<(), SqlError> {
    filter.map_or(Ok(()), |filter| draft.analysis.filter(filter, scope))
}

fn finish(draft: &mut Draft, table: &Table) -> Result<(), SqlError> {
    let analysis = &mut draft.analysis;
    if let Some(token) = analysis.rowid {
        return Err(rowid_refused().at(analysis.tokens.text, analysis.tokens.offset(token)));
    }
    analysis.finish()?;
    match table.kind {
        TableKind::Reference => check_reference(draft, table),
        _ => Ok(()),
    }
}

/// The statement as it stands on each shard, if that is right.
fn same(draft: &Draft, table: &Table) -> Option<SpreadPlan> {
    let plan = match &table.kind {
        TableKind::Reference => return Some(SpreadPlan::Reference),
        TableKind::Single { .. } => SamePlan::singles(draft, single_unit(table)),
        TableKind::Sharded { .. } => {
            let place = draft.shape.returning.0;
            stays_with(&draft.analysis, TARGET)
                .then(|| SamePlan::sharded(draft, TARGET, draft.shape.filter, place))
                .flatten()
        }
    };
    plan.map(SpreadPlan::Same)
}

fn computed(draft: &Draft, table: &Table, late: usize, change: Change) -> Result<SpreadPlan, SqlError> {
    if !draft.only_references(late..draft.analysis.occurrences.len()) {
        return Err(late_reads(table, "RETURNING"));
    }
    read_change(draft, table, change).map(SpreadPlan::Computed)
}

fn computed_update(
    draft: &Draft,
    table: &Table,
    update: &Update,
    late: usize,
    moves: bool,
) -> Result<SpreadPlan, SqlError> {
    refuse_other_update(draft.analysis.tables, table, moves)?;
    if update.from.is_none() {
        update.assignments.iter().try_for_each(|one| refuse_self_reference(draft, table, &one.value))?;
    }
    let sets = set_values(draft, table, update)?;
    if moves {
        check_may_move(draft, table, update.or.as_ref())?;
    }
    computed(draft, table, late, if moves { Change::Move(sets) } else { Change::Update(sets) })
}

fn target_scope(analysis: &mut Analysis, table: &TableWithJoins) -> Result<usize, SqlError> {
    match (&table.relation, table.joins.is_empty()) {
        (TableFactor::Table { name, alias, args: None, .. }, true) => {
            analysis.scope_with(name, alias.as_ref().map(|alias| &alias.name))
        }
        _ => {
            Err(SqlError::syntax("one table can be written at a time")
                .hint("join other tables in FROM or in a subquery"))
        }
    }
}

fn assigns(assignment: &Assignment, column: &str) -> bool {
    targets(assignment).iter().any(|target| target.eq_ignore_ascii_case(column))
}

/// The columns that an assignment sets, in lower case.
pub(super) fn targets(assignment: &Assignment) -> Vec<String> {
    match &assignment.target {
        AssignmentTarget::ColumnName(name) => vec![last_name(name)],
        AssignmentTarget::Tuple(names) => names.iter().map(last_name).collect(),
    }
}

/// Refuses the change of a shard key, or of an id that Pleat gives, in an upsert.
pub(super) fn refuse_key_change(table: &Table, assignment: &Assignment) -> Result<(), SqlError> {
    let Some((key, _)) = table.shard_key() else { return Ok(()) };
    if assigns(assignment, key) {
        return Err(SqlError::unsupported(format!("an upsert that changes the shard key {}.{key}", table.name))
            .hint("change it with UPDATE"));
    }
    match id_column(table) {
        Some(id) if assigns(assignment, id) => Err(given_refused(&table.name, id)),
        _ => Ok(()),
    }
}

pub(super) fn returning(analysis: &mut Analysis, items: Option<&[SelectItem]>, scope: usize) -> Result<(), SqlError> {
    for item in items.unwrap_or_default() {
        if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
            analysis.expr(expr, scope)?;
        }
    }
    Ok(())
}

pub(super) fn refuse_rollback(or: Option<&SqliteOnConflict>) -> Result<(), SqlError> {
    match or {
        Some(SqliteOnConflict::Rollback) => Err(SqlError::unsupported("OR ROLLBACK is not supported")
            .hint("OR ABORT (the default) undoes the whole request")),
        _ => Ok(()),
    }
}

fn no_limit(verb: &str) -> SqlError {
    SqlError::unsupported(format!("{verb} with ORDER BY or LIMIT is not supported"))
        .hint("choose the rows by their keys in WHERE")
}

pub(super) fn rowid_refused() -> SqlError {
    SqlError::unsupported("rowid names a row only within one shard").hint("use the primary key's columns instead")
}

/// A reference table's copies must all change alike, so the write may depend on nothing but reference tables.
pub(super) fn check_reference(draft: &Draft, table: &Table) -> Result<(), SqlError> {
    let (analysis, span): (_, Span) = (&draft.analysis, draft.shape.span);
    let other =
        analysis.occurrences.iter().find(|occurrence| analysis.tables[&occurrence.table].kind != TableKind::Reference);
    if let Some(other) = other {
        return Err(SqlError::unsupported(format!(
            "a write to the reference table {} can't read {}, which is {}",
            table.name,
            other.table,
            analysis.tables[&other.table].kind_name()
        ))
        .hint("read the rows first, then send them as values"));
    }
    let has = |word: &str| (span.0..span.1).any(|index| analysis.tokens.is(index, word));
    if has("LIMIT") && !has("ORDER") {
        return Err(SqlError::unsupported(
            "a write to a reference table with a LIMIT but no ORDER BY could differ between its copies",
        )
        .hint("add an ORDER BY over a unique key"));
    }
    Ok(())
}
