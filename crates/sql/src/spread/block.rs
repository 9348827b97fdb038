//! One SELECT: its joined and filtered rows, and what GROUP BY, aggregates, windows and DISTINCT make of them.

use sqlparser::ast::{
    Distinct, Expr, GroupByExpr, Ident, NamedWindowExpr, Query, Select, SelectItem, Value as Literal, WindowSpec,
    WindowType,
};

use super::{Spreading, order_terms};
use crate::frame::{Frame, Key, Lie, Named, Shape};
use crate::functions;
use crate::joins::Joined;
use crate::scope::column_name;
use crate::tree::{Part, argument_count, bare, last_name, lower, parts, window_parts};
use crate::why::Why;

/// The joined and filtered rows of a SELECT whose frame is open.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    pub lie: Lie,
    pub drivers: Vec<usize>,
    pub ordered: bool,
    /// Where its mentions begin among those seen.
    start: usize,
}

impl<'a> Spreading<'_, 'a> {
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

    pub(super) fn plain_block(&mut self, select: &Select, rows: &Rows) -> Result<Shape<'a>, Why> {
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
