//! The types of numbers: as much of PostgreSQL's rules as sums and averages need.

use sqlparser::ast::{BinaryOperator, DataType, Expr, UnaryOperator, Value};

use super::tree::bare;

/// A type of numbers, in the order in which PostgreSQL widens them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Number {
    Int2,
    Int4,
    Int8,
    Numeric,
    Float4,
    Float8,
}

/// The type of `expr`, where `declared` gives that of a column; `None` when it isn't certain.
pub(super) fn number_type(expr: &Expr, declared: &dyn Fn(&Expr) -> Option<String>) -> Option<Number> {
    match bare(expr) {
        column @ (Expr::Identifier(_) | Expr::CompoundIdentifier(_)) => of_declared(&declared(column)?),
        Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => Some(of_literal(digits)),
            _ => None,
        },
        Expr::UnaryOp { op: UnaryOperator::Minus | UnaryOperator::Plus, expr } => number_type(expr, declared),
        Expr::Cast { data_type, format: None, .. } => of_data_type(data_type),
        Expr::BinaryOp { left, op, right } => {
            use BinaryOperator as B;
            let arithmetic = matches!(op, B::Plus | B::Minus | B::Multiply | B::Divide);
            let sides = (number_type(left, declared)?, number_type(right, declared)?);
            arithmetic.then(|| wider(sides.0, sides.1))
        }
        _ => None,
    }
}

fn wider(a: Number, b: Number) -> Number {
    match (a, b) {
        (a, b) if a == b => a,
        // Only real with real is real.
        (Number::Float4, _) | (_, Number::Float4) => Number::Float8,
        (a, b) => a.max(b),
    }
}

fn of_literal(digits: &str) -> Number {
    match (digits.parse::<i32>(), digits.parse::<i64>()) {
        (Ok(_), _) => Number::Int4,
        (_, Ok(_)) => Number::Int8,
        _ => Number::Numeric,
    }
}

/// The type that a catalog calls so.
fn of_declared(declared: &str) -> Option<Number> {
    let name = declared.split('(').next().unwrap_or_default().trim().to_ascii_lowercase();
    Some(match name.as_str() {
        "smallint" => Number::Int2,
        "integer" => Number::Int4,
        "bigint" => Number::Int8,
        "numeric" => Number::Numeric,
        "real" => Number::Float4,
        "double precision" => Number::Float8,
        _ => return None,
    })
}

fn of_data_type(data_type: &DataType) -> Option<Number> {
    use DataType as D;
    Some(match data_type {
        D::Int2(None) | D::SmallInt(None) => Number::Int2,
        D::Int(None) | D::Integer(None) | D::Int4(None) => Number::Int4,
        D::BigInt(None) | D::Int8(None) => Number::Int8,
        D::Numeric(_) | D::Decimal(_) => Number::Numeric,
        D::Real | D::Float4 => Number::Float4,
        D::DoublePrecision | D::Float8 => Number::Float8,
        _ => return None,
    })
}
