//! Small questions about `sqlparser`'s nodes.

use std::ops::ControlFlow;

use pleat_cluster::{KeyType, Value};
use sqlparser::ast::{
    DataType, Expr, Function, Ident, ObjectName, Query, UnaryOperator, Value as Literal, Visit, Visitor,
};

use super::plan::Constant;
pub(super) use crate::tree::bare;

/// What an expression (or any node) has outside of its subqueries.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The outermost subqueries.
    pub queries: Vec<Query>,
    pub functions: Vec<Function>,
    /// Columns, with what they are qualified with (schemas left out), and the nodes themselves.
    pub columns: Vec<Expr>,
    pub params: Vec<usize>,
    depth: usize,
}

impl Found {
    pub fn of(node: &impl Visit) -> Found {
        let mut found = Found::default();
        let _ = node.visit(&mut found);
        found
    }
}

impl Visitor for Found {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if self.depth == 0 {
            self.queries.push(query.clone());
        }
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if self.depth > 0 {
            return ControlFlow::Continue(());
        }
        match expr {
            Expr::Function(function) => self.functions.push(function.clone()),
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::CompoundFieldAccess { .. } => {
                self.columns.push(expr.clone())
            }
            Expr::Value(value) => {
                if let Literal::Placeholder(text) = &value.value {
                    self.params.extend(param(text));
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// The parameter (from 0) that `$1` is.
pub(super) fn param(text: &str) -> Option<usize> {
    text.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1)
}

/// The last part of a name.
pub(super) fn last_ident(name: &ObjectName) -> Option<&Ident> {
    name.0.last().and_then(|part| part.as_ident())
}

/// The schema (if given) and the name of a relation or function.
pub(super) fn schema_and_name(name: &ObjectName) -> Option<(Option<&str>, &Ident)> {
    let idents = name.0.iter().map(|part| part.as_ident()).collect::<Option<Vec<_>>>()?;
    match idents.as_slice() {
        [name] => Some((None, name)),
        [schema, name] | [_, schema, name] => Some((Some(schema.value.as_str()), name)),
        _ => None,
    }
}

/// The name of a function of PostgreSQL's own, or of one that can't be told from it by its name alone; `None` for one of another schema.
pub(super) fn function_name(function: &Function) -> Option<&str> {
    match schema_and_name(&function.name)? {
        (None | Some("pg_catalog"), name) => Some(&name.value),
        _ => None,
    }
}

/// The parts of a condition between its outermost `AND`s.
pub(super) fn conjuncts<'q>(expr: &'q Expr, found: &mut Vec<&'q Expr>) {
    match bare(expr) {
        Expr::BinaryOp { left, op: sqlparser::ast::BinaryOperator::And, right } => {
            conjuncts(left, found);
            conjuncts(right, found);
        }
        other => found.push(other),
    }
}

/// The qualifier and the name of a column.
pub(super) fn column_name(expr: &Expr) -> Option<(Option<&Ident>, &Ident)> {
    match bare(expr) {
        Expr::Identifier(ident) => Some((None, ident)),
        Expr::CompoundIdentifier(idents) => match idents.as_slice() {
            [.., qualifier, column] => Some((Some(qualifier), column)),
            _ => None,
        },
        _ => None,
    }
}

/// The value that `expr` surely has when it is compared with (or stored in) a key of this type.
pub(super) fn constant(expr: &Expr, key_type: KeyType) -> Option<Constant> {
    match bare(expr) {
        Expr::Value(value) => literal(&value.value, key_type),
        Expr::TypedString(typed) if keeps(&typed.data_type, key_type) => literal(&typed.value.value, key_type),
        Expr::Cast { expr, data_type, format: None, .. } if keeps(data_type, key_type) => constant(expr, key_type),
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } if key_type == KeyType::Integer => match bare(expr) {
            Expr::Value(value) => match &value.value {
                Literal::Number(digits, _) => Some(Constant::Value(Value::Integer(format!("-{digits}").parse().ok()?))),
                _ => None,
            },
            _ => None,
        },
        Expr::UnaryOp { op: UnaryOperator::Plus, expr } if key_type == KeyType::Integer => {
            constant(expr, key_type).filter(|constant| matches!(constant, Constant::Value(Value::Integer(_))))
        }
        _ => None,
    }
}

fn literal(literal: &Literal, key_type: KeyType) -> Option<Constant> {
    let value = match (literal, key_type) {
        (Literal::Placeholder(text), _) => return Some(Constant::Param(param(text)?)),
        (Literal::Null, _) => Value::Null,
        (Literal::Number(digits, _), KeyType::Integer) => Value::Integer(digits.parse().ok()?),
        (Literal::SingleQuotedString(text), _) => return string(text, key_type),
        (Literal::DollarQuotedString(text), _) => return string(&text.value, key_type),
        _ => return None,
    };
    Some(Constant::Value(value))
}

fn string(text: &str, key_type: KeyType) -> Option<Constant> {
    let value = match key_type {
        KeyType::Integer => Value::Integer(text.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']).parse().ok()?),
        KeyType::Text | KeyType::Uuid => Value::Text(text.to_owned()),
        KeyType::Bytes => Value::Blob(hex(text.strip_prefix("\\x")?)?),
    };
    Some(Constant::Value(value))
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

/// Whether a cast to this type leaves a key of `key_type` what it is, or fails.
fn keeps(data_type: &DataType, key_type: KeyType) -> bool {
    match key_type {
        KeyType::Integer => matches!(
            data_type,
            DataType::Int2(None)
                | DataType::SmallInt(None)
                | DataType::Int(None)
                | DataType::Int4(None)
                | DataType::Integer(None)
                | DataType::Int8(None)
                | DataType::BigInt(None)
        ),
        KeyType::Text => {
            matches!(data_type, DataType::Text | DataType::Varchar(None) | DataType::CharacterVarying(None))
        }
        KeyType::Bytes => matches!(data_type, DataType::Bytea),
        KeyType::Uuid => matches!(data_type, DataType::Uuid),
    }
}
