//! Whether the rows of a SELECT can be made by each shard for itself.

use pleat_cluster::TableKind;
use sqlparser::ast::{Distinct, Expr, Function, GroupByExpr, Select, SelectItem, WindowType};

use super::analysis::Analysis;
use super::functions;
use super::tree::{Found, column_name, function_name};

/// The mention whose row decides on which shard a row of the SELECT is made: all other sharded tables of the statement are tied to it.
///
/// Each row of the result has one row of the driver, so it is preserved by joins; and of inner and left joins only.
pub(super) fn driver(analysis: &Analysis, scope: usize) -> Option<usize> {
    let mentions = &analysis.mentions;
    if analysis.scopes[scope].odd
        || mentions.iter().any(|mention| matches!(mention.table.kind, TableKind::Single { .. }))
    {
        return None;
    }
    let ties_all =
        |driver: &usize| (0..mentions.len()).all(|at| !mentions[at].is_sharded() || analysis.tied(at, *driver));
    (0..mentions.len())
        .filter(|at| analysis.is_made_in(mentions[*at].scope, scope))
        .filter(|at| mentions[*at].is_sharded() && !mentions[*at].nullable)
        .find(ties_all)
}

/// Whether `expr` is the shard key of a row that is part of each row of the SELECT: equal values are on one shard.
pub(super) fn is_key(analysis: &Analysis, expr: &Expr, scope: usize) -> bool {
    let found = analysis.key_mention(expr, scope);
    let nulls = || {
        let (qualifier, name) = column_name(expr)?;
        analysis.key_of_subquery(scope, qualifier, name).map(|(_, nullable)| nullable)
    };
    found.is_some_and(|(mention, own)| own && !analysis.mentions[mention].nullable) && nulls() != Some(true)
}

/// Whether the key of a row that is part of each row of the SELECT is among all of its columns.
fn has_key(analysis: &Analysis, scope: usize) -> bool {
    analysis.scopes[scope].sources.iter().any(|source| {
        let table = source.mention.map(|mention| &analysis.mentions[mention]);
        table.is_some_and(|table| table.is_sharded() && !table.nullable)
            || !source.nullable && source.keys.iter().any(|key| !key.nullable)
    })
}

/// Whether the SELECT's own clauses (joins aside) leave rows of different shards alone: no aggregates unless by key, and so on.
pub(super) fn rows_apart(analysis: &Analysis, select: &Select, scope: usize) -> bool {
    let distinct = match &select.distinct {
        None | Some(Distinct::All) => true,
        Some(Distinct::Distinct) => select.projection.iter().any(|item| {
            let key = |expr: &Expr| is_key(analysis, expr, scope);
            matches!(item, SelectItem::Wildcard(_)) && has_key(analysis, scope)
                || matches!(item, SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } if key(expr))
        }),
        Some(Distinct::On(exprs)) => exprs.iter().any(|expr| is_key(analysis, expr, scope)),
    };
    distinct && grouped_apart(analysis, select, scope)
}

/// The same but for DISTINCT.
pub(super) fn grouped_apart(analysis: &Analysis, select: &Select, scope: usize) -> bool {
    if analysis.outer_aggregate {
        return false;
    }
    let grouped = match &select.group_by {
        GroupByExpr::All(_) => return false,
        GroupByExpr::Expressions(_, modifiers) if !modifiers.is_empty() => return false,
        GroupByExpr::Expressions(list, _) => {
            let plain =
                |expr: &Expr| !matches!(expr, Expr::Rollup(_) | Expr::Cube(_) | Expr::GroupingSets(_) | Expr::Tuple(_));
            let by_key = |expr: &Expr| is_key(analysis, grouped_by(analysis, select, scope, expr), scope);
            if list.iter().all(plain) && list.iter().any(by_key) {
                return windows_apart(analysis, select, scope);
            }
            !list.is_empty()
        }
    };
    !grouped && select.having.is_none() && !has_aggregates(select) && windows_apart(analysis, select, scope)
}

/// What an element of GROUP BY stands for: an input column, else an output column by its name or number, else itself.
pub(super) fn grouped_by<'q>(analysis: &Analysis, select: &'q Select, scope: usize, element: &'q Expr) -> &'q Expr {
    item_meant(analysis, select, scope, element).map_or(element, |(_, expr)| expr)
}

/// The item of the select list that an element of GROUP BY stands for, with its position.
pub(super) fn item_meant<'q>(
    analysis: &Analysis,
    select: &'q Select,
    scope: usize,
    element: &Expr,
) -> Option<(usize, &'q Expr)> {
    let expr_at = |at: usize| match select.projection.get(at)? {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some((at, expr)),
        _ => None,
    };
    if let Some(number) = ordinal(element) {
        let star = |item: &SelectItem| !matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. });
        return if select.projection.iter().any(star) { None } else { expr_at(number) };
    }
    let Expr::Identifier(ident) = element else { return None };
    let sources = &analysis.scopes[scope].sources;
    let input = |columns: &Option<Vec<String>>| columns.as_ref().is_none_or(|columns| columns.contains(&ident.value));
    if sources.iter().any(|source| input(&source.columns)) {
        return None;
    }
    let named =
        |item: &SelectItem| matches!(item, SelectItem::ExprWithAlias { alias, .. } if alias.value == ident.value);
    expr_at(select.projection.iter().position(named)?)
}

/// The position (from 0) that a bare number in GROUP BY or ORDER BY stands for.
pub(super) fn ordinal(expr: &Expr) -> Option<usize> {
    let Expr::Value(value) = expr else { return None };
    match &value.value {
        sqlparser::ast::Value::Number(digits, _) => digits.parse::<usize>().ok()?.checked_sub(1),
        _ => None,
    }
}

pub(super) fn has_aggregates(select: &Select) -> bool {
    let rest = Select { from: Vec::new(), selection: None, ..select.clone() };
    let found = Found::of(&rest);
    let aggregate = |name: &str| functions::is_aggregate(name);
    let aggregates = |function: &Function| {
        // `rank(5) WITHIN GROUP (…)`, too.
        function.over.is_none() && (!function.within_group.is_empty() || function_name(function).is_some_and(aggregate))
    };
    found.functions.iter().any(aggregates)
}

pub(super) fn has_windows(select: &Select) -> bool {
    let rest = Select { from: Vec::new(), selection: None, ..select.clone() };
    !select.named_window.is_empty() || Found::of(&rest).functions.iter().any(|function| function.over.is_some())
}

/// Whether all windows are partitioned by the key.
fn windows_apart(analysis: &Analysis, select: &Select, scope: usize) -> bool {
    let rest = Select { from: Vec::new(), selection: None, ..select.clone() };
    Found::of(&rest).functions.iter().filter_map(|function| function.over.as_ref()).all(|over| match over {
        WindowType::WindowSpec(spec) => {
            spec.window_name.is_none() && spec.partition_by.iter().any(|expr| is_key(analysis, expr, scope))
        }
        WindowType::NamedWindow(_) => false,
    })
}
