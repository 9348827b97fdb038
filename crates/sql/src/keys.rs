//! What conditions say about the keys of each table that a statement mentions.
//!
//! Each mention of one of the catalog's tables is an [`Occurrence`]. For a sharded table the question is:
//! *which keys can the rows have that matter here?* A row matters if leaving it out could change the answer.
//!
//! - `WHERE k = 5` (or `IN`, or an `OR` of such) in the same SELECT: only rows with these keys matter. That
//!   holds on the nullable side of an outer join too: without the other rows some partners get NULLs instead,
//!   and `NULL = 5` drops them just the same.
//! - `ON b.k = 5` of an inner join filters like WHERE. Of a LEFT JOIN it limits the right side only.
//! - `a.k = b.k` ties: b's rows matter only with keys that a's rows have, and the other way round. In the ON of
//!   a LEFT JOIN the tie goes from left to right only, and from an outer query only into a subquery.
//! - RIGHT and FULL joins and joins in parentheses: only what WHERE says counts.
//!
//! A condition that is not understood limits nothing, which is always right and merely asks more shards.

use std::collections::{BTreeMap, BTreeSet};

use sqlparser::ast::{BinaryOperator, Expr};

use crate::clauses::{Span, conjuncts};
use crate::error::SqlError;
use crate::functions;
use crate::parse::expression;
use crate::scope::{Analysis, Resolved, column_name};
use crate::tree::{Constant, Part, argument_count, bare, last_name, parts};

/// A condition that filters rows, and whom it may limit.
pub(crate) struct Condition<'q> {
    pub expr: &'q Expr,
    pub tokens: Option<Span>,
    pub reach: Reach,
}

#[derive(Clone, PartialEq)]
pub(crate) enum Reach {
    /// Every source of the scope.
    All,
    /// Only this source's occurrence: the right side of a LEFT JOIN.
    Right(Option<usize>),
}

/// The keys that rows must have for `expr` to be true, by what they are keys of. `of` says it of a condition that is neither AND nor OR.
pub(crate) fn keys_by<K>(expr: &Expr, of: &dyn Fn(&Expr) -> BTreeMap<usize, Vec<K>>) -> BTreeMap<usize, Vec<K>> {
    match bare(expr) {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            let mut found = keys_by(right, of);
            found.extend(keys_by(left, of));
            found
        }
        Expr::BinaryOp { left, op: BinaryOperator::Or, right } => {
            let mut right = keys_by(right, of);
            let both = keys_by(left, of).into_iter().filter_map(|(at, mut keys)| {
                keys.extend(right.remove(&at)?);
                Some((at, keys))
            });
            both.collect()
        }
        other => of(other),
    }
}

impl Analysis<'_> {
    /// Reads the conditions of a SELECT: keys, ties and filters.
    pub fn conditions(&mut self, conditions: &[Condition], scope: usize) -> Result<(), SqlError> {
        for condition in conditions {
            self.expr(condition.expr, scope)?;
        }
        for condition in conditions {
            for (occurrence, keys) in self.keys_of(condition.expr, scope) {
                let reached = match condition.reach {
                    Reach::All => true,
                    Reach::Right(right) => right == Some(occurrence),
                };
                if reached && self.occurrences[occurrence].keys.is_none() {
                    self.occurrences[occurrence].keys = Some(keys);
                }
            }
            self.ties(condition.expr, scope, &condition.reach);
            self.note_filters(condition, scope);
        }
        Ok(())
    }

    /// The WHERE of a statement that is no SELECT (UPDATE, DELETE), over the sources of `scope`.
    pub fn filter(&mut self, expr: &Expr, scope: usize) -> Result<(), SqlError> {
        self.conditions(&[Condition { expr, tokens: None, reach: Reach::All }], scope)
    }

    /// The keys that rows must have for `expr` to be true, by occurrence.
    fn keys_of(&self, expr: &Expr, scope: usize) -> BTreeMap<usize, Vec<Constant>> {
        keys_by(expr, &|condition| match condition {
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
                let found = [(left, right), (right, left)]
                    .into_iter()
                    .find_map(|(column, value)| Some((self.key_column(column, scope)?, vec![Constant::of(value)?])));
                found.into_iter().collect()
            }
            Expr::InList { expr, list, negated: false } => {
                let keys: Option<Vec<_>> = list.iter().map(Constant::of).collect();
                self.key_column(expr, scope).zip(keys).into_iter().collect()
            }
            _ => BTreeMap::new(),
        })
    }

    /// The occurrence *of this scope* whose shard key `expr` is.
    fn key_column(&self, expr: &Expr, scope: usize) -> Option<usize> {
        match self.key_occurrence(expr, scope)? {
            (occurrence, true) => Some(occurrence),
            _ => None,
        }
    }

    /// The occurrence whose shard key `expr` is, and whether it is of this scope.
    fn key_occurrence(&self, expr: &Expr, scope: usize) -> Option<(usize, bool)> {
        let (qualifier, column) = column_name(bare(expr))?;
        let Resolved::Occurrence { occurrence, own } = self.resolve(scope, qualifier.as_deref(), &column) else {
            return None;
        };
        let (key, _) = self.table(occurrence).shard_key()?;
        key.eq_ignore_ascii_case(&column).then_some((occurrence, own))
    }

    fn ties(&mut self, expr: &Expr, scope: usize, reach: &Reach) {
        let Expr::BinaryOp { left, op, right } = bare(expr) else { return };
        match op {
            BinaryOperator::And => {
                self.ties(left, scope, reach);
                self.ties(right, scope, reach);
            }
            BinaryOperator::Eq => {
                let (Some(a), Some(b)) = (self.key_occurrence(left, scope), self.key_occurrence(right, scope)) else {
                    return;
                };
                self.tie_columns(a, b, reach);
                self.tie_columns(b, a, reach);
            }
            _ => {}
        }
    }

    /// `limited.key = limiting.key`, where each is in this scope or around it.
    fn tie_columns(&mut self, limited: (usize, bool), limiting: (usize, bool), reach: &Reach) {
        let allowed = match reach {
            Reach::All => limited.1,
            Reach::Right(right) => *right == Some(limited.0),
        };
        let key_type = |at: usize| self.table(at).shard_key().map(|(_, key_type)| key_type);
        if allowed && limited.0 != limiting.0 && key_type(limited.0) == key_type(limiting.0) {
            self.occurrences[limited.0].tied_to.insert(limiting.0);
        }
    }

    /// Notes the parts of a condition that a shard can check on one table's rows alone.
    fn note_filters(&mut self, condition: &Condition, scope: usize) {
        let Some(span) = condition.tokens else { return };
        if expression(self.tokens, self.slots, span.0, span.1).as_ref() != Some(condition.expr) {
            return; // the text was not cut where the parser cut it
        }
        for part in conjuncts(self.tokens, span) {
            let Some(expr) = expression(self.tokens, self.slots, part.0, part.1) else { return };
            let Some(occurrence) = self.sole_occurrence(&expr, scope) else { continue };
            let reached = match condition.reach {
                Reach::All => !self.occurrences[occurrence].nullable,
                Reach::Right(right) => right == Some(occurrence),
            };
            if reached {
                self.occurrences[occurrence].filters.push(part);
            }
        }
    }

    /// The one occurrence of this scope that `expr` is about, if a shard can evaluate it row by row.
    fn sole_occurrence(&self, expr: &Expr, scope: usize) -> Option<usize> {
        let mut found = BTreeSet::new();
        self.is_row_local(expr, scope, &mut found).then_some(())?;
        (found.len() == 1).then(|| found.pop_first())?
    }

    /// Whether `expr` is deterministic, free of subqueries, aggregates and windows, and uses only columns of
    /// this scope's tables; these are added to `used`.
    pub fn is_row_local(&self, expr: &Expr, scope: usize, used: &mut BTreeSet<usize>) -> bool {
        if let Some((qualifier, column)) = column_name(expr) {
            return match self.resolve(scope, qualifier.as_deref(), &column) {
                Resolved::Occurrence { occurrence, own: true } => {
                    used.insert(occurrence);
                    true
                }
                _ => false,
            };
        }
        if let Expr::BinaryOp { op: BinaryOperator::Arrow | BinaryOperator::LongArrow, .. } = expr {
            return false; // fails on malformed JSON, which a condition that stays behind may guard against
        }
        if let Expr::Function(function) = expr {
            let name = last_name(&function.name);
            let known = functions::is_pure(&name) && !functions::is_aggregate(&name, argument_count(function));
            if !known || function.over.is_some() || function.filter.is_some() {
                return false;
            }
        }
        let Ok(parts) = parts(expr) else { return false };
        parts.into_iter().all(|part| match part {
            Part::Expr(inner) => self.is_row_local(inner, scope, used),
            Part::Query(_) => false,
        })
    }
}
