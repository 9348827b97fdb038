//! FROM and WHERE: whether joined rows are spread, and what ties them.
//!
//! In a FROM of inner and left joins, each row of the result has a row of every source on a preserved side. So the
//! result is spread if one spread source on a preserved side (the *driver*) ties all other spread sources to its own
//! shard by equality of the keys, directly or through others. An equality in WHERE or in the ON of an inner join ties
//! both ways; in the ON of a LEFT JOIN it ties the right side only. A source that is the same everywhere on the preserved
//! side with a spread one on the nullable side finds no driver: every shard would add its own NULLs.
//!
//! With RIGHT, FULL or nested joins the sources are taken step by step, and each step must be tied in its own ON. A FULL
//! JOIN on the keys is spread: whatever has no partner on its own shard has none at all.
//!
//! | left   | right  | inner  | LEFT   | RIGHT  | FULL   |
//! | ------ | ------ | ------ | ------ | ------ | ------ |
//! | spread | spread | if tied | if tied | if tied | if tied |
//! | spread | same   | spread | spread | no     | no     |
//! | same   | spread | spread | no     | spread | no     |

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use sqlparser::ast::{BinaryOperator, Expr, Join, JoinConstraint, JoinOperator, Select, TableFactor, TableWithJoins};

use crate::frame::Lie;
use crate::spread::Spreading;
use crate::tree::{Constant, argument, bare, last_name};
use crate::why::Why;

/// The sources of a SELECT, joined.
pub(crate) struct Joined<'q> {
    /// Conditions of inner joins: as good as WHERE.
    inner: Vec<&'q Expr>,
    /// Conditions of outer joins.
    outer: Vec<&'q Expr>,
    /// Arguments of table functions.
    arguments: Vec<&'q Expr>,
    /// `(limited, limiting)`: a row of the first source matters only if the second has one with its key.
    ties: BTreeSet<(usize, usize)>,
    /// RIGHT, FULL or nested joins appear: what the steps came to.
    stepwise: Option<Result<Step, Why>>,
}

/// Some sources joined.
#[derive(Clone, Debug)]
struct Step {
    lie: Lie,
    drivers: Vec<usize>,
    sources: Range<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Inner,
    Left,
    Right,
    Full,
}

impl<'q> Joined<'q> {
    /// Puts the sources of `select` into the open frame.
    pub fn of(spreading: &mut Spreading, select: &'q Select) -> Result<Joined<'q>, Why> {
        let mut joined = Joined {
            inner: Vec::new(),
            outer: Vec::new(),
            arguments: Vec::new(),
            ties: BTreeSet::new(),
            stepwise: select.from.iter().any(is_odd).then_some(Err(Why::Form)),
        };
        let mut whole: Option<Result<Step, Why>> = None;
        // A comma is a join like any other, from left to right.
        for tree in &select.from {
            let first = joined.factor(spreading, &tree.relation)?;
            whole = Some(match whole {
                None => first,
                Some(before) => joined.step(spreading, before, first, Side::Inner, &[], &[])?,
            });
            for join in &tree.joins {
                whole = Some(joined.join(spreading, whole.unwrap_or(Err(Why::Form)), join)?);
            }
        }
        if joined.stepwise.is_some() {
            joined.stepwise = whole;
        }
        Ok(joined)
    }

    fn factor(&mut self, spreading: &mut Spreading, factor: &'q TableFactor) -> Result<Result<Step, Why>, Why> {
        if let TableFactor::NestedJoin { table_with_joins, alias: None } = factor {
            let mut whole = self.factor(spreading, &table_with_joins.relation)?;
            for join in &table_with_joins.joins {
                whole = self.join(spreading, whole, join)?;
            }
            return Ok(whole);
        }
        if let TableFactor::Table { args: Some(args), .. } = factor {
            self.arguments.extend(args.args.iter().filter_map(argument));
        }
        let source = spreading.source(factor)?;
        let (lie, drivers) = (source.shape.lie, source.shape.drivers.clone());
        let sources = &mut frame(spreading).sources;
        sources.push(source);
        if let Lie::Set { distinct } = lie {
            return Err(if distinct { Why::Distinct } else { Why::Compound });
        }
        Ok(Ok(Step { lie, drivers, sources: sources.len() - 1..sources.len() }))
    }

    fn join(
        &mut self,
        spreading: &mut Spreading,
        before: Result<Step, Why>,
        join: &'q Join,
    ) -> Result<Result<Step, Why>, Why> {
        use JoinOperator as J;
        let (constraint, side) = match &join.join_operator {
            J::Join(c) | J::Inner(c) | J::CrossJoin(c) => (c, Side::Inner),
            J::Left(c) | J::LeftOuter(c) => (c, Side::Left),
            J::Right(c) | J::RightOuter(c) => (c, Side::Right),
            J::FullOuter(c) => (c, Side::Full),
            _ => return Err(Why::Form),
        };
        let middle = frame(spreading).sources.len();
        let right = self.factor(spreading, &join.relation)?;
        let start = before.as_ref().map_or(0, |step| step.sources.start);
        let (mut on, mut merged) = (Vec::new(), Vec::new());
        match constraint {
            JoinConstraint::On(expr) => {
                conjuncts(expr, &mut on);
                if side == Side::Inner { self.inner.push(expr) } else { self.outer.push(expr) }
            }
            JoinConstraint::Using(columns) => merged.extend(columns.iter().map(last_name)),
            JoinConstraint::Natural => merged = shared_names(spreading, start, middle).ok_or(Why::Columns)?,
            JoinConstraint::None => {}
        }
        let pairs = merge(spreading, start, middle, &merged, side);
        self.step(spreading, before, right, side, &on, &pairs)
    }

    /// Joins what came before with what is on the right. Only a failure to tie is an inner error: without RIGHT and FULL
    /// joins it does not count.
    fn step(
        &mut self,
        spreading: &mut Spreading,
        before: Result<Step, Why>,
        right: Result<Step, Why>,
        side: Side,
        on: &[&Expr],
        merged: &[(usize, usize)],
    ) -> Result<Result<Step, Why>, Why> {
        let (Ok(left), Ok(right)) = (before, right) else { return Ok(Err(Why::Join)) };
        let equal = on.iter().filter_map(|expr| equal_keys(spreading, expr));
        let tied: Vec<(usize, usize)> = equal.chain(merged.iter().copied()).collect();
        for (a, b) in &tied {
            match side {
                Side::Inner => self.ties.extend([(*a, *b), (*b, *a)]),
                Side::Left if right.sources.contains(a) => self.ties.extend([(*a, *b)]),
                Side::Left if right.sources.contains(b) => self.ties.extend([(*b, *a)]),
                _ => {}
            }
        }
        let across = |(a, b): &(usize, usize)| {
            let crosses = |a: &usize, b: &usize| left.sources.contains(a) && right.sources.contains(b);
            crosses(a, b) || crosses(b, a)
        };
        let lie = joined_lie(left.lie, right.lie, side, tied.iter().any(across));
        let drivers = match side {
            Side::Inner if left.lie != Lie::Spread => right.drivers.clone(),
            Side::Inner | Side::Left => left.drivers.clone(),
            Side::Right => right.drivers.clone(),
            Side::Full => [left.drivers.clone(), right.drivers.clone()].concat(),
        };
        let nullable = |range: Range<usize>, spreading: &mut Spreading| {
            range.for_each(|at| frame(spreading).sources[at].nullable = true);
        };
        if matches!(side, Side::Left | Side::Full) {
            nullable(right.sources.clone(), spreading);
        }
        if matches!(side, Side::Right | Side::Full) {
            nullable(left.sources.clone(), spreading);
        }
        let sources = left.sources.start..right.sources.end;
        Ok(lie.map(|lie| Step { lie, drivers, sources }))
    }

    /// Checks the subqueries in the conditions; `true` if one is tied to the outer row.
    pub fn check_conditions(&self, spreading: &mut Spreading) -> Result<bool, Why> {
        let mut local = false;
        for expr in self.inner.iter().chain(&self.outer).chain(&self.arguments) {
            local |= spreading.expr(expr)?;
        }
        Ok(local)
    }

    /// Where the joined rows that meet `filter` are, and the mentions that decide which shards have any.
    pub fn lie(mut self, spreading: &mut Spreading, filter: Option<&'q Expr>) -> Result<(Lie, Vec<usize>), Why> {
        let mut conditions = Vec::new();
        filter.into_iter().for_each(|filter| conjuncts(filter, &mut conditions));
        if self.stepwise.is_none() {
            self.inner.iter().for_each(|expr| conjuncts(expr, &mut conditions));
        }
        let equal: Vec<_> = conditions.iter().filter_map(|expr| equal_keys(spreading, expr)).collect();
        equal.iter().for_each(|(a, b)| self.ties.extend([(*a, *b), (*b, *a)]));
        self.learn(spreading, &conditions);
        let (lie, drivers) = match &self.stepwise {
            Some(found) => found.clone().map(|step| (step.lie, step.drivers))?,
            None => self.driven(spreading)?,
        };
        let own = spreading.frames.len() - 1;
        let tied_outside = conditions.iter().any(|expr| ties_outside(spreading, expr, own));
        Ok(if lie == Lie::Spread && tied_outside { (Lie::Local, drivers) } else { (lie, drivers) })
    }

    /// Finds the driver that ties all spread sources to its shard.
    fn driven(&self, spreading: &mut Spreading) -> Result<(Lie, Vec<usize>), Why> {
        let sources = &frame(spreading).sources;
        let spread: Vec<usize> = (0..sources.len()).filter(|at| sources[*at].shape.lie == Lie::Spread).collect();
        if spread.is_empty() {
            let local = sources.iter().any(|source| source.shape.lie == Lie::Local);
            return Ok((if local { Lie::Local } else { Lie::Same }, Vec::new()));
        }
        let preserved: Vec<usize> = spread.iter().copied().filter(|at| !sources[*at].nullable).collect();
        let ties_all = |driver: &&usize| {
            let reached = self.reached(**driver);
            spread.iter().all(|at| reached.contains(at))
        };
        let driver = preserved.iter().find(ties_all);
        let driver = driver.ok_or(if preserved.is_empty() { Why::OuterJoin } else { Why::Join })?;
        Ok((Lie::Spread, sources[*driver].shape.drivers.clone()))
    }

    fn reached(&self, driver: usize) -> BTreeSet<usize> {
        let mut reached = BTreeSet::from([driver]);
        while let Some((limited, _)) =
            self.ties.iter().find(|(limited, limiting)| reached.contains(limiting) && !reached.contains(limited))
        {
            reached.insert(*limited);
        }
        reached
    }

    /// Notes what keys say about the mentions inside of sources.
    fn learn(&self, spreading: &mut Spreading, conditions: &[&Expr]) {
        let mut keys: BTreeMap<usize, Vec<Constant>> = BTreeMap::new();
        for condition in conditions {
            for (source, found) in keys_in(spreading, condition) {
                keys.entry(source).or_insert(found);
            }
        }
        let sources = &frame(spreading).sources;
        let mut learned = Vec::new();
        for (source, keys) in keys {
            learned.extend(sources[source].shape.mentions.iter().map(|mention| (*mention, keys.clone())));
        }
        let mut ties = Vec::new();
        for (limited, limiting) in &self.ties {
            if let [driver] = sources[*limiting].shape.drivers.as_slice() {
                ties.extend(sources[*limited].shape.mentions.iter().map(|mention| (*mention, *driver)));
            }
        }
        spreading.learned.extend(learned);
        spreading.ties.extend(ties.into_iter().filter(|(limited, limiting)| limited != limiting));
    }
}

fn frame<'s, 'a>(spreading: &'s mut Spreading<'_, 'a>) -> &'s mut crate::frame::Frame<'a> {
    let last = spreading.frames.len() - 1;
    &mut spreading.frames[last]
}

fn is_odd(tree: &TableWithJoins) -> bool {
    use JoinOperator as J;
    let nested = |factor: &TableFactor| matches!(factor, TableFactor::NestedJoin { .. });
    let outer = |join: &Join| {
        matches!(join.join_operator, J::Right(_) | J::RightOuter(_) | J::FullOuter(_)) || nested(&join.relation)
    };
    nested(&tree.relation) || tree.joins.iter().any(outer)
}

fn joined_lie(left: Lie, right: Lie, side: Side, tied: bool) -> Result<Lie, Why> {
    match (left, right) {
        (Lie::Spread, Lie::Spread) if tied => Ok(Lie::Spread),
        (Lie::Spread, Lie::Spread) => Err(Why::Join),
        (Lie::Spread, _) if matches!(side, Side::Inner | Side::Left) => Ok(Lie::Spread),
        (_, Lie::Spread) if matches!(side, Side::Inner | Side::Right) => Ok(Lie::Spread),
        (Lie::Spread, _) | (_, Lie::Spread) => Err(Why::OuterJoin),
        (Lie::Same, Lie::Same) => Ok(Lie::Same),
        _ => Ok(Lie::Local),
    }
}

/// Merges the columns of `USING` or NATURAL; gives the pairs of sources whose keys are among them.
fn merge(spreading: &mut Spreading, start: usize, middle: usize, names: &[String], side: Side) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for name in names {
        let sources = &frame(spreading).sources;
        let left = (start..middle).find(|at| sources[*at].find(name).is_some());
        let right = (middle..sources.len()).find(|at| sources[*at].find(name).is_some());
        let known = sources.iter().all(|source| source.shape.columns.is_some());
        let key = |at: usize| {
            let source = &sources[at];
            source.find(name).and_then(|found| source.column(found)).and_then(|column| column.key.key_type())
        };
        if let (Some(left), Some(right), true) = (left, right, known) {
            if key(left).is_some() && key(left) == key(right) {
                pairs.push((left, right));
            }
            frame(spreading).sources[right].merged.insert(name.clone());
        }
        if matches!(side, Side::Right | Side::Full) || !known {
            frame(spreading).coalesced.insert(name.clone());
        }
    }
    pairs
}

fn shared_names(spreading: &mut Spreading, start: usize, middle: usize) -> Option<Vec<String>> {
    let sources = &frame(spreading).sources;
    let names = |range: Range<usize>| -> Option<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for source in &sources[range] {
            found.extend(source.shape.columns.as_ref()?.iter().map(|column| column.name.to_ascii_lowercase()));
        }
        Some(found)
    };
    Some(names(start..middle)?.intersection(&names(middle..sources.len())?).cloned().collect())
}

/// The parts of a condition between its outermost `AND`s.
pub(crate) fn conjuncts<'q>(expr: &'q Expr, found: &mut Vec<&'q Expr>) {
    match bare(expr) {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            conjuncts(left, found);
            conjuncts(right, found);
        }
        other => found.push(other),
    }
}

/// The two sources of the open frame whose keys `expr` sets equal.
fn equal_keys(spreading: &Spreading, expr: &Expr) -> Option<(usize, usize)> {
    let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = bare(expr) else { return None };
    let own = spreading.frames.len() - 1;
    let (frame, a, key) = spreading.key(left)?;
    let (other, b, other_key) = spreading.key(right)?;
    (frame == own && other == own && a != b && key == other_key).then_some((a, b))
}

/// Whether `expr` sets a key of the open frame equal to one of a frame around it.
fn ties_outside(spreading: &Spreading, expr: &Expr, own: usize) -> bool {
    let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = bare(expr) else { return false };
    match (spreading.key(left), spreading.key(right)) {
        (Some((a, _, key)), Some((b, _, other))) => key == other && (a == own) != (b == own),
        _ => false,
    }
}

/// The keys that the rows of sources must have for `expr` to be true.
fn keys_in(spreading: &Spreading, expr: &Expr) -> BTreeMap<usize, Vec<Constant>> {
    let own = spreading.frames.len() - 1;
    let source = |expr: &Expr| spreading.key(expr).filter(|(frame, ..)| *frame == own).map(|(_, source, _)| source);
    match bare(expr) {
        Expr::BinaryOp { left, op: BinaryOperator::Or, right } => {
            let mut right = keys_in(spreading, right);
            let both = keys_in(spreading, left).into_iter().filter_map(|(at, mut keys)| {
                keys.extend(right.remove(&at)?);
                Some((at, keys))
            });
            both.collect()
        }
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            let mut found = keys_in(spreading, right);
            found.extend(keys_in(spreading, left));
            found
        }
        Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
            let sides = [(left, right), (right, left)];
            let found =
                sides.into_iter().find_map(|(column, value)| Some((source(column)?, vec![Constant::of(value)?])));
            found.into_iter().collect()
        }
        Expr::InList { expr, list, negated: false } => {
            let keys: Option<Vec<_>> = list.iter().map(Constant::of).collect();
            source(expr).zip(keys).into_iter().collect()
        }
        _ => BTreeMap::new(),
    }
}
