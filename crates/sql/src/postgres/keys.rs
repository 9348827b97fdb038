//! What conditions say about the keys of each table that a statement mentions.
//!
//! For a sharded table the question is: *which keys can the rows have that matter here?* A row matters if leaving it out could change the answer.
//!
//! - `WHERE k = 5` (or `IN`, `= ANY (ARRAY[…])`, or an `OR` of such) in the same SELECT: only rows with these keys matter. That
//!   holds on the nullable side of an outer join too: without the other rows some partners get NULLs instead,
//!   and `NULL = 5` drops them just the same.
//! - `ON b.k = 5` of an inner join filters like WHERE. Of a LEFT JOIN it limits the right side only.
//! - `a.k = b.k` ties: b's rows matter only with keys that a's rows have, and the other way round. In the ON of
//!   a LEFT JOIN the tie goes from left to right only, and from an outer query only into a subquery.
//! - RIGHT and FULL joins and joins in parentheses: only what WHERE says counts.
//! - A column of a subquery in FROM that is the key of a table in it limits that table, unless the subquery is cut (LIMIT) or has windows, or an outer
//!   join may put NULLs in its place.
//!
//! A condition that is not understood limits nothing, which is always right and merely asks more shards.

use std::collections::{BTreeMap, BTreeSet};

use sqlparser::ast::{BinaryOperator, Expr, UnaryOperator};

use super::analysis::{Analysis, Resolved};
use super::plan::Constant;
use super::tree::{bare, column_name, conjuncts, constant};
use crate::error::SqlError;
use crate::keys::keys_by;

/// A condition that filters rows, and whom it may limit.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    pub expr: Expr,
    pub reach: Reach,
    /// WHERE, not the condition of a join.
    pub is_where: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reach {
    /// Every source of the scope.
    All,
    /// Only these mentions, which are the right side of a LEFT JOIN: a table, or those of a subquery that its columns limit.
    Right(Vec<usize>),
}

impl Condition {
    pub fn of_where(expr: &Expr) -> Condition {
        Condition { expr: expr.clone(), reach: Reach::All, is_where: true }
    }
}

impl Analysis<'_, '_> {
    /// Reads the conditions of a scope: keys, ties and filters.
    pub fn conditions(&mut self, conditions: &[Condition], scope: usize) -> Result<(), SqlError> {
        for condition in conditions {
            self.exprs(&condition.expr, Some(scope))?;
        }
        let odd = self.scopes[scope].odd;
        for condition in conditions.iter().filter(|condition| !odd || condition.is_where) {
            let mut parts = Vec::new();
            conjuncts(&condition.expr, &mut parts);
            for part in parts {
                self.condition(part, scope, &condition.reach);
            }
        }
        Ok(())
    }

    fn condition(&mut self, expr: &Expr, scope: usize, reach: &Reach) {
        for (mention, keys) in self.keys_of(expr, scope) {
            let reached = match reach {
                Reach::All => true,
                Reach::Right(right) => right.contains(&mention),
            };
            if reached && self.mentions[mention].keys.is_none() {
                self.mentions[mention].keys = Some(keys);
            }
        }
        if let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = expr
            && let (Some(a), Some(b)) = (self.key_mention(left, scope), self.key_mention(right, scope))
        {
            self.tie(a, b, reach);
            self.tie(b, a, reach);
        }
        self.note_filter(expr, scope, reach);
    }

    /// The keys that rows must have for `expr` to be true, by mention.
    fn keys_of(&self, expr: &Expr, scope: usize) -> BTreeMap<usize, Vec<Constant>> {
        keys_by(expr, &|condition| match condition {
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
                let sides = [(left, right), (right, left)].into_iter();
                sides.filter_map(|(column, value)| self.key_is(column, std::slice::from_ref(value), scope)).collect()
            }
            Expr::InList { expr, list, negated: false } => self.key_is(expr, list, scope).into_iter().collect(),
            Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => match bare(right) {
                Expr::Array(array) => self.key_is(left, &array.elem, scope).into_iter().collect(),
                _ => BTreeMap::new(),
            },
            _ => BTreeMap::new(),
        })
    }

    fn key_is<E: std::borrow::Borrow<Expr>>(
        &self,
        column: &Expr,
        values: &[E],
        scope: usize,
    ) -> Option<(usize, Vec<Constant>)> {
        let (mention, true) = self.key_mention(column, scope)? else { return None };
        let key_type = self.mentions[mention].key_type()?;
        let keys = values.iter().map(|value| constant(value.borrow(), key_type)).collect::<Option<Vec<_>>>()?;
        Some((mention, keys))
    }

    /// The mention whose shard key `expr` is, and whether it is of this scope.
    pub fn key_mention(&self, expr: &Expr, scope: usize) -> Option<(usize, bool)> {
        let (qualifier, column) = column_name(expr)?;
        let Resolved::Mention { mention, own } = self.resolve(scope, qualifier, column) else {
            return self.key_of_subquery(scope, qualifier, column).map(|(mention, _)| (mention, true));
        };
        let (key, _) = self.mentions[mention].table.shard_key()?;
        (key == column.value).then_some((mention, own))
    }

    /// `limited.key = limiting.key`, where each is in this scope or around it.
    pub fn tie(&mut self, limited: (usize, bool), limiting: (usize, bool), reach: &Reach) {
        let allowed = match reach {
            Reach::All => limited.1,
            Reach::Right(right) => right.contains(&limited.0),
        };
        if allowed
            && limited.0 != limiting.0
            && self.mentions[limited.0].key_type() == self.mentions[limiting.0].key_type()
        {
            self.mentions[limited.0].tied_to.insert(limiting.0);
        }
    }

    /// Notes a condition that a shard can check on one table's rows alone.
    fn note_filter(&mut self, expr: &Expr, scope: usize, reach: &Reach) {
        let mut used = BTreeSet::new();
        if !self.is_simple(expr, scope, &mut used) || used.len() != 1 {
            return;
        }
        let Some(mention) = used.pop_first() else { return };
        let reached = match reach {
            Reach::All => !self.mentions[mention].nullable,
            Reach::Right(right) => right.contains(&mention),
        };
        if reached && !self.scopes[scope].odd {
            self.mentions[mention].filters.push(expr.clone());
        }
    }

    /// Whether `expr` compares columns of this scope (added to `used`) with constants, in a way that can't fail on other rows.
    fn is_simple(&self, expr: &Expr, scope: usize, used: &mut BTreeSet<usize>) -> bool {
        let mut column = |expr: &Expr| {
            let Some((qualifier, name)) = column_name(expr) else { return false };
            match self.resolve(scope, qualifier, name) {
                Resolved::Mention { mention, own: true } => {
                    used.insert(mention);
                    true
                }
                _ => false,
            }
        };
        match bare(expr) {
            Expr::BinaryOp { left, op: BinaryOperator::And | BinaryOperator::Or, right } => {
                self.is_simple(left, scope, used) && self.is_simple(right, scope, used)
            }
            Expr::UnaryOp { op: UnaryOperator::Not, expr } => self.is_simple(expr, scope, used),
            Expr::BinaryOp { left, op, right } => {
                use BinaryOperator as B;
                let compares = matches!(op, B::Eq | B::NotEq | B::Lt | B::LtEq | B::Gt | B::GtEq);
                compares && (column(left) && is_constant(right) || is_constant(left) && column(right))
            }
            Expr::IsNull(inner) | Expr::IsNotNull(inner) => column(inner),
            Expr::Between { expr, low, high, .. } => column(expr) && is_constant(low) && is_constant(high),
            Expr::InList { expr, list, .. } => column(expr) && list.iter().all(is_constant),
            Expr::Like { expr, pattern, any: false, escape_char: None, .. }
            | Expr::ILike { expr, pattern, any: false, escape_char: None, .. } => column(expr) && is_constant(pattern),
            Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => column(left) && is_constant(right),
            _ => false,
        }
    }
}

/// A value, a parameter, or a cast of one.
pub(super) fn is_constant(expr: &Expr) -> bool {
    match bare(expr) {
        Expr::Value(_) | Expr::TypedString(_) => true,
        Expr::UnaryOp { op: UnaryOperator::Minus | UnaryOperator::Plus, expr } => is_constant(expr),
        Expr::Cast { expr, format: None, .. } => is_constant(expr),
        Expr::Array(array) => array.elem.iter().all(is_constant),
        _ => false,
    }
}
