//! What is known beforehand of the values that a SELECT gives.
//!
//! SQLite's expressions have no types: a column of an answer may hold an integer in one row and a text in the next. Still,
//! `count(*)` is always an integer, and protocols that name a type for each column before the first row want to say
//! so. What is said here is true of every row (or the row has NULL there), with one exception that has to be lived with:
//! integers that get too large for their 64 bits become reals, and a column may hold what its declaration does not say.

use pleat_cluster::{Column, Tables};
use sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Query, SelectItem, SetExpr,
    Statement as Ast, UnaryOperator, Value,
};

use crate::lex::{Kind, Tokens};
use crate::params::Slots;
use crate::parse;

/// The type of a column of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputType {
    Integer,
    Real,
    Text,
    /// As a column is that was declared with this type.
    Declared(String),
    Unknown,
}

/// The types of a SELECT's expressions, in order; none when it selects `*`, or is no SELECT.
pub fn output_types(text: &str, tables: &Tables) -> Vec<OutputType> {
    typed(text, tables).unwrap_or_default()
}

fn typed(text: &str, tables: &Tables) -> Option<Vec<OutputType>> {
    let tokens = Tokens::of(text).ok()?;
    let slots = Slots::of(&tokens).ok()?;
    let end = if tokens.is_symbol(tokens.len().checked_sub(1)?, ";") { tokens.len() - 1 } else { tokens.len() };
    let Ast::Query(query) = parse::statement(&tokens, &slots, 0, end).ok()? else { return None };
    let names = (0..tokens.len()).filter(|at| matches!(tokens.kind(*at), Some(Kind::Word | Kind::Name)));
    let columns = names.filter_map(|at| tables.get(&tokens.name(at)?.to_ascii_lowercase()));
    let look = Look { columns: columns.flat_map(|table| &table.columns).collect() };
    look.query(&query)
}

struct Look<'a> {
    /// Of all tables that the statement mentions.
    columns: Vec<&'a Column>,
}

impl Look<'_> {
    fn query(&self, query: &Query) -> Option<Vec<OutputType>> {
        self.set(&query.body)
    }

    fn set(&self, set: &SetExpr) -> Option<Vec<OutputType>> {
        match set {
            SetExpr::Select(select) => select.projection.iter().map(|item| self.item(item)).collect(),
            SetExpr::Query(query) => self.query(query),
            SetExpr::SetOperation { left, right, .. } => {
                let (left, right) = (self.set(left)?, self.set(right)?);
                let same = |(left, right)| if left == right { left } else { OutputType::Unknown };
                (left.len() == right.len()).then(|| left.into_iter().zip(right).map(same).collect())
            }
            SetExpr::Values(values) => {
                let mut rows =
                    values.rows.iter().map(|row| row.iter().map(|value| self.expr(value)).collect::<Vec<_>>());
                let first = rows.next()?;
                let merge = |known: Vec<_>, row: Vec<_>| {
                    let both = known.into_iter().zip(row);
                    both.map(|(a, b)| if a == b { a } else { OutputType::Unknown }).collect()
                };
                Some(rows.fold(first, merge))
            }
            _ => None,
        }
    }

    fn item(&self, item: &SelectItem) -> Option<OutputType> {
        match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(self.expr(expr)),
            _ => None,
        }
    }

    fn expr(&self, expr: &Expr) -> OutputType {
        use OutputType::{Integer, Text, Unknown};
        match expr {
            Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => self.expr(inner),
            Expr::Value(value) => match &value.value {
                Value::Number(digits, _) if digits.contains(['.', 'e', 'E']) && !digits.starts_with("0x") => {
                    OutputType::Real
                }
                Value::Number(..) | Value::Boolean(_) => Integer,
                Value::SingleQuotedString(_) => Text,
                _ => Unknown,
            },
            Expr::Cast { data_type, .. } => OutputType::Declared(data_type.to_string().replace('"', "")),
            Expr::Identifier(name) => self.column(&name.value),
            Expr::CompoundIdentifier(path) => path.last().map_or(Unknown, |name| self.column(&name.value)),
            Expr::UnaryOp { op: UnaryOperator::Not, .. } => Integer,
            Expr::UnaryOp { op: UnaryOperator::Minus | UnaryOperator::Plus, expr } => self.expr(expr),
            Expr::BinaryOp { left, op, right } => self.binary(left, op, right),
            Expr::IsNull(_) | Expr::IsNotNull(_) | Expr::IsTrue(_) | Expr::IsFalse(_) => Integer,
            Expr::IsNotTrue(_) | Expr::IsNotFalse(_) | Expr::IsDistinctFrom(..) | Expr::IsNotDistinctFrom(..) => {
                Integer
            }
            Expr::InList { .. } | Expr::InSubquery { .. } | Expr::Between { .. } | Expr::Exists { .. } => Integer,
            Expr::Like { .. } => Integer,
            Expr::Subquery(query) => match self.query(query).as_deref() {
                Some([only]) => only.clone(),
                _ => Unknown,
            },
            Expr::Case { conditions, else_result, .. } => {
                let results = conditions.iter().map(|when| &when.result).chain(else_result.as_deref());
                self.common(results)
            }
            Expr::Function(function) => {
                // The parser is given names in quotes.
                let name = function.name.to_string().trim_matches('"').to_ascii_lowercase();
                let arguments: Vec<&Expr> = match &function.args {
                    FunctionArguments::List(list) => list.args.iter().filter_map(argument).collect(),
                    _ => Vec::new(),
                };
                self.call(&name, &arguments)
            }
            Expr::Substring { .. } | Expr::Trim { .. } => Text,
            _ => Unknown,
        }
    }

    fn binary(&self, left: &Expr, op: &BinaryOperator, right: &Expr) -> OutputType {
        use BinaryOperator::{
            And, Divide, Eq, Gt, GtEq, Lt, LtEq, Minus, Modulo, Multiply, NotEq, Or, Plus, StringConcat,
        };
        match op {
            Eq | NotEq | Lt | LtEq | Gt | GtEq | And | Or => OutputType::Integer,
            StringConcat => OutputType::Text,
            Plus | Minus | Multiply | Divide | Modulo => {
                let class = |expr| class(&self.expr(expr));
                match (class(left), class(right)) {
                    (Some(OutputType::Integer), Some(OutputType::Integer)) => OutputType::Integer,
                    (Some(OutputType::Real), Some(_)) | (Some(_), Some(OutputType::Real)) => OutputType::Real,
                    _ => OutputType::Unknown,
                }
            }
            _ => OutputType::Unknown,
        }
    }

    fn call(&self, name: &str, arguments: &[&Expr]) -> OutputType {
        match name {
            "count" | "length" | "octet_length" | "instr" | "unicode" | "row_number" | "rank" | "dense_rank"
            | "ntile" | "unixepoch" | "random" | "changes" | "total_changes" | "last_insert_rowid"
            | "json_array_length" => OutputType::Integer,
            "avg" | "total" | "julianday" | "round" | "percent_rank" | "cume_dist" | "sqrt" | "exp" | "ln" | "pow" => {
                OutputType::Real
            }
            "lower" | "upper" | "hex" | "substr" | "substring" | "trim" | "ltrim" | "rtrim" | "replace" | "printf"
            | "format" | "typeof" | "date" | "time" | "datetime" | "strftime" | "group_concat" | "string_agg"
            | "quote" | "char" | "concat" | "concat_ws" | "json" | "json_array" | "json_object"
            | "json_group_array" | "json_group_object" => OutputType::Text,
            "sum" | "abs" => match arguments {
                [only] => class(&self.expr(only)).unwrap_or(OutputType::Unknown),
                _ => OutputType::Unknown,
            },
            "min" | "max" | "coalesce" | "ifnull" => self.common(arguments.iter().copied()),
            "iif" | "nullif" => match (name, arguments) {
                ("nullif", [first, _]) => self.expr(first),
                ("iif", [_, then, otherwise]) => self.common([*then, *otherwise]),
                _ => OutputType::Unknown,
            },
            "first_value" | "last_value" | "lag" | "lead" | "nth_value" => {
                arguments.first().map_or(OutputType::Unknown, |first| self.expr(first))
            }
            _ => OutputType::Unknown,
        }
    }

    /// The type of all that have one; NULL is of every type.
    fn common<'e>(&self, of: impl IntoIterator<Item = &'e Expr>) -> OutputType {
        let is_null = |expr: &&Expr| matches!(expr, Expr::Value(value) if value.value == Value::Null);
        let mut types = of.into_iter().filter(|expr| !is_null(expr)).map(|expr| self.expr(expr));
        let Some(first) = types.next() else { return OutputType::Unknown };
        let same = |other: OutputType| other == first || class(&other).is_some() && class(&other) == class(&first);
        if types.all(same) { first } else { OutputType::Unknown }
    }

    /// The type that all columns of that name were declared with.
    fn column(&self, name: &str) -> OutputType {
        let mut types = self.columns.iter().filter(|column| column.name.eq_ignore_ascii_case(name));
        let Some(first) = types.next() else { return OutputType::Unknown };
        match types.all(|other| other.decl_type == first.decl_type) && !first.decl_type.is_empty() {
            true => OutputType::Declared(first.decl_type.clone()),
            false => OutputType::Unknown,
        }
    }
}

fn argument(argument: &FunctionArg) -> Option<&Expr> {
    match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
        _ => None,
    }
}

/// Whether values of the type are integers or reals, as far as its affinity says.
fn class(of: &OutputType) -> Option<OutputType> {
    let OutputType::Declared(name) = of else {
        return Some(of.clone()).filter(|of| matches!(of, OutputType::Integer | OutputType::Real));
    };
    let upper = name.to_ascii_uppercase();
    match upper {
        upper if upper.contains("INT") => Some(OutputType::Integer),
        upper if ["REAL", "FLOA", "DOUB"].iter().any(|real| upper.contains(real)) => Some(OutputType::Real),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_that_have_a_type() {
        use OutputType::{Declared, Integer, Real, Text, Unknown};
        let none = Tables::new();
        for (text, wanted) in [
            ("SELECT 1, 1.5, 'a', NULL, x", vec![Integer, Real, Text, Unknown, Unknown]),
            ("SELECT count(*), avg(a), max(1, 2), sum(a) FROM t;", vec![Integer, Real, Integer, Unknown]),
            ("SELECT a || b, a = b, NOT a, -1 + 2.0, (3 / 2)", vec![Text, Integer, Integer, Real, Integer]),
            ("SELECT CAST(a AS BIGINT), CASE WHEN a THEN 1 ELSE NULL END", vec![Declared("BIGINT".into()), Integer]),
            ("SELECT 1 UNION SELECT 2", vec![Integer]),
            ("SELECT 1 UNION SELECT 'a'", vec![Unknown]),
            ("VALUES (1, 'a'), (2, 2)", vec![Integer, Unknown]),
            ("SELECT EXISTS (SELECT 1), (SELECT 'a')", vec![Integer, Text]),
            ("SELECT *", vec![]),
            ("DELETE FROM t", vec![]),
            ("not sql", vec![]),
        ] {
            assert_eq!(output_types(text, &none), wanted, "{text}");
        }
    }
}
