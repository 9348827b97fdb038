//! Small readings of `sqlparser`'s tree: children, names, constants.
//!
//! [`parts`] is the one place that knows which forms of expression SQLite has. Everything else the parser
//! may produce from other dialects is refused there, so no later step can misread it.

use pleat_cluster::Value;
use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause, FunctionArguments, Ident, ObjectName,
    OrderByExpr, Query, UnaryOperator, Value as Literal, WindowFrameBound, WindowSpec, WindowType,
};

use crate::error::SqlError;

/// A direct child of an expression.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part<'a> {
    Expr(&'a Expr),
    Query(&'a Query),
}

/// The direct children of `expr`, or a refusal of what is not SQLite's.
pub(crate) fn parts(expr: &Expr) -> Result<Vec<Part<'_>>, SqlError> {
    let one = |expr| Ok(vec![Part::Expr(expr)]);
    let two = |left, right| Ok(vec![Part::Expr(left), Part::Expr(right)]);
    match expr {
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Value(_) => Ok(Vec::new()),
        Expr::IsFalse(e) | Expr::IsNotFalse(e) | Expr::IsTrue(e) | Expr::IsNotTrue(e) => one(e),
        Expr::IsNull(e) | Expr::IsNotNull(e) | Expr::Nested(e) => one(e),
        Expr::UnaryOp { expr, .. } | Expr::Collate { expr, .. } | Expr::Cast { expr, .. } => one(expr),
        Expr::IsDistinctFrom(a, b) | Expr::IsNotDistinctFrom(a, b) => two(a, b),
        Expr::BinaryOp { left, right, .. } => two(left, right),
        Expr::Between { expr, low, high, .. } => Ok([expr, low, high].map(|e| Part::Expr(e)).to_vec()),
        Expr::Like { expr, pattern, escape_char, any: false, .. } => {
            Ok([Some(expr), Some(pattern), escape_char.as_ref()].into_iter().flatten().map(|e| Part::Expr(e)).collect())
        }
        Expr::InList { expr, list, .. } => Ok(std::iter::once(&**expr).chain(list).map(Part::Expr).collect()),
        Expr::InSubquery { expr, subquery, .. } => Ok(vec![Part::Expr(expr), Part::Query(subquery)]),
        Expr::Exists { subquery, .. } | Expr::Subquery(subquery) => Ok(vec![Part::Query(subquery)]),
        Expr::Tuple(list) => Ok(list.iter().map(Part::Expr).collect()),
        Expr::Case { operand, conditions, else_result, .. } => {
            let arms = conditions.iter().flat_map(|arm| [&arm.condition, &arm.result]);
            Ok(operand.as_deref().into_iter().chain(arms).chain(else_result.as_deref()).map(Part::Expr).collect())
        }
        Expr::Function(function) => function_parts(function),
        other => Err(SqlError::unsupported(format!(
            "this form of expression is not SQLite's: {}",
            short(&other.to_string())
        ))
        .hint("rewrite it with SQLite's own operators and functions")),
    }
}

fn short(text: &str) -> String {
    text.chars().take(60).collect()
}

fn function_parts(function: &Function) -> Result<Vec<Part<'_>>, SqlError> {
    let mut found = Vec::new();
    match &function.args {
        FunctionArguments::None => {}
        FunctionArguments::Subquery(query) => found.push(Part::Query(query)),
        FunctionArguments::List(list) => {
            found.extend(list.args.iter().filter_map(argument).map(Part::Expr));
            for clause in &list.clauses {
                match clause {
                    FunctionArgumentClause::OrderBy(terms) => found.extend(order_parts(terms)),
                    _ => return Err(SqlError::unsupported("this clause inside a function call is not SQLite's")),
                }
            }
        }
    }
    found.extend(function.filter.as_deref().map(Part::Expr));
    found.extend(function.within_group.iter().map(|term| Part::Expr(&term.expr)));
    if let Some(WindowType::WindowSpec(window)) = &function.over {
        found.extend(window_parts(window));
    }
    Ok(found)
}

/// The expressions of an `ORDER BY`.
pub(crate) fn order_parts(terms: &[OrderByExpr]) -> impl Iterator<Item = Part<'_>> {
    terms.iter().map(|term| Part::Expr(&term.expr))
}

/// The expressions of a window's definition.
pub(crate) fn window_parts(window: &WindowSpec) -> Vec<Part<'_>> {
    let mut found: Vec<_> = window.partition_by.iter().map(Part::Expr).collect();
    found.extend(order_parts(&window.order_by));
    if let Some(frame) = &window.window_frame {
        for bound in [Some(&frame.start_bound), frame.end_bound.as_ref()].into_iter().flatten() {
            if let WindowFrameBound::Preceding(Some(e)) | WindowFrameBound::Following(Some(e)) = bound {
                found.push(Part::Expr(e));
            }
        }
    }
    found
}

/// The expression of a function's argument; `None` for `*`.
pub(crate) fn argument(argument: &FunctionArg) -> Option<&Expr> {
    let (FunctionArg::Unnamed(arg) | FunctionArg::Named { arg, .. } | FunctionArg::ExprNamed { arg, .. }) = argument;
    match arg {
        FunctionArgExpr::Expr(expr) => Some(expr),
        _ => None,
    }
}

/// How many arguments a call has (`count(*)` has one).
pub(crate) fn argument_count(function: &Function) -> usize {
    match &function.args {
        FunctionArguments::List(list) => list.args.len(),
        FunctionArguments::None => 0,
        FunctionArguments::Subquery(_) => 1,
    }
}

/// The last part of a name, in lower case: `main."T"` is `t`.
pub(crate) fn last_name(name: &ObjectName) -> String {
    name.0.last().and_then(|part| part.as_ident()).map_or_else(String::new, lower)
}

pub(crate) fn lower(ident: &Ident) -> String {
    ident.value.to_ascii_lowercase()
}

/// The expression inside any parentheses.
pub(crate) fn bare(mut expr: &Expr) -> &Expr {
    while let Expr::Nested(inner) = expr {
        expr = inner;
    }
    expr
}

/// A value that is known when the statement is routed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Constant {
    Value(Value),
    /// The parameter in this slot (from 0).
    Slot(usize),
}

impl Constant {
    /// Its value, given those of all slots.
    pub fn value<'v>(&'v self, values: &'v [Value]) -> &'v Value {
        match self {
            Constant::Value(value) => value,
            Constant::Slot(slot) => values.get(*slot).unwrap_or(&Value::Null),
        }
    }

    /// The constant that `expr` spells: a literal, a signed number or a parameter. These have no affinity
    /// of their own, so SQLite applies the key column's to them. A CAST has one: it is no constant here.
    pub fn of(expr: &Expr) -> Option<Constant> {
        match bare(expr) {
            Expr::Value(value) => literal(&value.value),
            Expr::UnaryOp { op, expr } => match (op, bare(expr)) {
                (UnaryOperator::Plus, Expr::Value(value)) => number(&value.value, false),
                (UnaryOperator::Minus, Expr::Value(value)) => number(&value.value, true),
                _ => None,
            },
            _ => None,
        }
    }
}

fn literal(literal: &Literal) -> Option<Constant> {
    match literal {
        Literal::Number(..) => number(literal, false),
        Literal::SingleQuotedString(text) => Some(Constant::Value(Value::Text(text.clone()))),
        Literal::HexStringLiteral(digits) => Some(Constant::Value(Value::Blob(bytes(digits)?))),
        Literal::Null => Some(Constant::Value(Value::Null)),
        Literal::Placeholder(slot) => slot.strip_prefix('?')?.parse().ok().map(Constant::Slot),
        _ => None,
    }
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    (0..digits.len() / 2).map(|at| u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()).collect()
}

/// A number as SQLite reads it: an integer if it fits into 64 bits, otherwise a real.
fn number(literal: &Literal, negative: bool) -> Option<Constant> {
    let Literal::Number(text, _) = literal else { return None };
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let bits = u64::from_str_radix(digits, 16).ok()?;
        let value = bits.cast_signed();
        return Some(Constant::Value(Value::Integer(if negative { value.checked_neg()? } else { value })));
    }
    let signed = if negative { format!("-{text}") } else { text.clone() };
    let value = match signed.parse::<i64>() {
        Ok(integer) => Value::Integer(integer),
        Err(_) => Value::from(signed.parse::<f64>().ok()?),
    };
    Some(Constant::Value(value))
}
