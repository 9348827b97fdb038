//! Expressions: whether a subquery in one gives on the row's shard what it gives over all.

use sqlparser::ast::{Expr, Function};

use super::Spreading;
use crate::frame::{Key, Lie, Named, Shape};
use crate::functions;
use crate::scope::column_name;
use crate::tree::{Part, argument_count, bare, last_name, parts};
use crate::why::Why;

impl<'a> Spreading<'_, 'a> {
    /// Whether `expr`, evaluated on a row's shard, has the value that it has over all rows. `true` if that depends on
    /// the shard: a subquery in it is tied to the row.
    pub fn expr(&mut self, expr: &Expr) -> Result<bool, Why> {
        if let Some(Named::Nothing | Named::Unclear) = self.named(expr) {
            let known = |name: &String| self.frames.last().is_some_and(|frame| frame.aliases.contains(name));
            self.unresolved |= !column_name(bare(expr)).is_some_and(|(_, name)| known(&name));
        }
        match expr {
            Expr::InSubquery { expr: left, subquery, .. } => {
                let local = self.expr(left)?;
                let start = self.seen.len();
                let shape = self.query(subquery).map_err(inner)?;
                return match shape.lie {
                    Lie::Same => Ok(local),
                    Lie::Local => Ok(true),
                    Lie::Spread | Lie::Set { .. } => {
                        let source = self.key_among(left, &shape).ok_or(Why::Subquery)?;
                        self.tie_mentions(start, source);
                        Ok(true)
                    }
                };
            }
            Expr::Function(function) => self.outer_aggregate(function)?,
            _ => {}
        }
        let mut local = false;
        for part in parts(expr).map_err(|_| Why::Form)? {
            local |= match part {
                Part::Expr(inner) => self.expr(inner)?,
                Part::Query(query) => match self.query(query).map_err(inner)?.lie {
                    Lie::Same => false,
                    Lie::Local => true,
                    Lie::Spread | Lie::Set { .. } => return Err(Why::Subquery),
                },
            };
        }
        Ok(local)
    }

    /// For `left IN (SELECT …)`: whether at some place both sides always have a key. Then only rows of the same shard can
    /// make it true, and none can make it NULL. Gives the driver of the left side.
    fn key_among(&self, left: &Expr, shape: &Shape) -> Option<Option<usize>> {
        let lefts: Vec<&Expr> = match bare(left) {
            Expr::Tuple(list) => list.iter().collect(),
            one => vec![one],
        };
        lefts.iter().zip(shape.columns.as_ref()?).find_map(|(left, right)| match (self.named(left), right.key) {
            (Some(Named::Column { frame, source, column }), Key::Always(right)) if column.key == Key::Always(right) => {
                let drivers = &self.frames[frame].sources[source].shape.drivers;
                Some(if let [driver] = drivers.as_slice() { Some(*driver) } else { None })
            }
            _ => None,
        })
    }

    fn tie_mentions(&mut self, start: usize, driver: Option<usize>) {
        let Some(driver) = driver else { return };
        let tied = self.seen[start..].iter().filter(|mention| **mention != driver);
        self.ties.extend(tied.map(|mention| (*mention, driver)));
    }

    /// SQLite takes an aggregate over nothing but an outer query's columns for that query's own.
    fn outer_aggregate(&self, function: &Function) -> Result<(), Why> {
        if function.over.is_some() || !functions::is_aggregate(&last_name(&function.name), argument_count(function)) {
            return Ok(());
        }
        let mut used = Vec::new();
        columns_in(&Expr::Function(function.clone()), &mut used);
        let own = |expr: &Expr| match self.named(expr) {
            Some(Named::Column { frame, .. }) => frame + 1 == self.frames.len(),
            _ => self.frames.len() <= 1,
        };
        if used.is_empty() || used.iter().any(own) { Ok(()) } else { Err(Why::Subquery) }
    }
}

/// Why a query around another can't be pushed because of it.
fn inner(why: Why) -> Why {
    match why {
        Why::Single | Why::Volatile | Why::Recursive | Why::LimitValue => why,
        _ => Why::Subquery,
    }
}

fn columns_in(expr: &Expr, found: &mut Vec<Expr>) {
    if column_name(expr).is_some() {
        found.push(expr.clone());
    }
    for part in parts(expr).unwrap_or_default() {
        if let Part::Expr(inner) = part {
            columns_in(inner, found);
        }
    }
}
