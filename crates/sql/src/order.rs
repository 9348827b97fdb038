//! SQLite's order of values, for rows that several shards have sorted already.
//!
//! NULLs come first, then numbers by value (integers and reals compared exactly, `-0.0` as `0`), then text by its
//! collation, then blobs by bytes. Nothing here may differ from SQLite by a single case, or a merge would give an order
//! that no database gives; a term whose collation is not certain is never merged.

use std::cmp::Ordering;

use pleat_cluster::Value;
use serde::{Deserialize, Serialize};

/// A term of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The column, from 0.
    pub column: usize,
    pub descending: bool,
    pub nulls_last: bool,
    pub collation: Collation,
}

/// How text compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Collation {
    Binary,
    /// The 26 letters of ASCII without their case.
    NoCase,
    /// Without spaces at the end.
    Rtrim,
}

impl Collation {
    /// The collation with this name, if it is one of SQLite's own.
    pub(crate) fn named(name: &str) -> Option<Collation> {
        [Collation::Binary, Collation::NoCase, Collation::Rtrim]
            .into_iter()
            .find(|collation| collation.name().eq_ignore_ascii_case(name))
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Collation::Binary => "BINARY",
            Collation::NoCase => "NOCASE",
            Collation::Rtrim => "RTRIM",
        }
    }

    fn compare(self, left: &str, right: &str) -> Ordering {
        match self {
            Collation::Binary => left.as_bytes().cmp(right.as_bytes()),
            Collation::NoCase => {
                let lower = |text: &'_ str| text.bytes().map(|byte| byte.to_ascii_lowercase()).collect::<Vec<_>>();
                lower(left).cmp(&lower(right))
            }
            Collation::Rtrim => left.trim_end_matches(' ').as_bytes().cmp(right.trim_end_matches(' ').as_bytes()),
        }
    }
}

impl Order {
    /// How two rows compare by this term.
    pub fn compare(&self, left: &[Value], right: &[Value]) -> Ordering {
        let (left, right) =
            (left.get(self.column).unwrap_or(&Value::Null), right.get(self.column).unwrap_or(&Value::Null));
        let nulls = match (left, right) {
            (Value::Null, Value::Null) => return Ordering::Equal,
            (Value::Null, _) => Some(Ordering::Less),
            (_, Value::Null) => Some(Ordering::Greater),
            _ => None,
        };
        if let Some(first) = nulls {
            return if self.nulls_last { first.reverse() } else { first };
        }
        let found = compare(left, right, self.collation);
        if self.descending { found.reverse() } else { found }
    }
}

/// How two rows compare by all terms.
pub fn compare_rows(order: &[Order], left: &[Value], right: &[Value]) -> Ordering {
    order.iter().map(|term| term.compare(left, right)).find(|found| found.is_ne()).unwrap_or(Ordering::Equal)
}

fn compare(left: &Value, right: &Value, collation: Collation) -> Ordering {
    match (left, right) {
        (Value::Integer(left), Value::Integer(right)) => left.cmp(right),
        (Value::Real(left), Value::Real(right)) => left.partial_cmp(right).unwrap_or(Ordering::Equal),
        (Value::Integer(left), Value::Real(right)) => integer_to_real(*left, *right),
        (Value::Real(left), Value::Integer(right)) => integer_to_real(*right, *left).reverse(),
        (Value::Text(left), Value::Text(right)) => collation.compare(left, right),
        (Value::Blob(left), Value::Blob(right)) => left.cmp(right),
        _ => class(left).cmp(&class(right)),
    }
}

fn class(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Integer(_) | Value::Real(_) => 1,
        Value::Text(_) => 2,
        Value::Blob(_) => 3,
    }
}

/// Exact, where a conversion of the integer would round.
fn integer_to_real(integer: i64, real: f64) -> Ordering {
    const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;
    if real >= TWO_TO_63 {
        return Ordering::Less;
    }
    if real < -TWO_TO_63 {
        return Ordering::Greater;
    }
    #[allow(clippy::cast_possible_truncation)] // in range, and the fraction is looked at below
    let whole = real.trunc() as i64;
    integer.cmp(&whole).then_with(|| 0.0f64.partial_cmp(&real.fract()).unwrap_or(Ordering::Equal))
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    /// All values against each other, as SQLite itself compares them.
    #[test]
    fn orders_are_sqlites() {
        let values = [
            Value::Null,
            Value::Integer(i64::MIN),
            Value::Integer(i64::MAX),
            Value::Integer(i64::MAX - 1),
            Value::Integer(0),
            Value::Integer(-1),
            Value::Integer(9_007_199_254_740_993),
            Value::Real(9_007_199_254_740_992.0),
            Value::Real(9_223_372_036_854_775_808.0),
            Value::Real(-9_223_372_036_854_775_808.0),
            Value::Real(-0.0),
            Value::Real(0.5),
            Value::Real(-0.5),
            Value::Real(-1.5),
            Value::Real(f64::INFINITY),
            Value::Real(f64::NEG_INFINITY),
            Value::Real(5e-324),
            Value::Text(String::new()),
            Value::Text("a".into()),
            Value::Text("A".into()),
            Value::Text("B".into()),
            Value::Text("a ".into()),
            Value::Text("a\u{0}b".into()),
            Value::Text("É".into()),
            Value::Text("é".into()),
            Value::Text("日本".into()),
            Value::Text("🦀".into()),
            Value::Blob(Vec::new()),
            Value::Blob(vec![0]),
            Value::Blob(vec![255]),
        ];
        let sqlite = Connection::open_in_memory().unwrap();
        let plain = |value: &Value| match value {
            Value::Null => rusqlite::types::Value::Null,
            Value::Integer(number) => rusqlite::types::Value::Integer(*number),
            Value::Real(number) => rusqlite::types::Value::Real(*number),
            Value::Text(text) => rusqlite::types::Value::Text(text.clone()),
            Value::Blob(bytes) => rusqlite::types::Value::Blob(bytes.clone()),
        };
        for collation in [Collation::Binary, Collation::NoCase, Collation::Rtrim] {
            for (descending, nulls_last) in [(false, false), (false, true), (true, false), (true, true)] {
                let order = Order { column: 0, descending, nulls_last, collation };
                let direction = if descending { "DESC" } else { "ASC" };
                let nulls = if nulls_last { "LAST" } else { "FIRST" };
                let term = format!("x COLLATE {} {direction} NULLS {nulls}", collation.name());
                let sql = format!(
                    "SELECT rank() OVER (ORDER BY {term}) FROM (SELECT ?1 AS x, 1 AS n UNION ALL SELECT ?2, 2) ORDER BY n"
                );
                let mut statement = sqlite.prepare(&sql).unwrap();
                for left in &values {
                    for right in &values {
                        let ranks: Vec<i64> = statement
                            .query_map([plain(left), plain(right)], |row| row.get(0))
                            .unwrap()
                            .map(Result::unwrap)
                            .collect();
                        let found = order.compare(std::slice::from_ref(left), std::slice::from_ref(right));
                        assert_eq!(found, ranks[0].cmp(&ranks[1]), "{left:?} {right:?} by {term}");
                    }
                }
            }
        }
    }
}
