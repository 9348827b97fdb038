//! Answers, and what differs between two.

use pleat_cluster::Value;

/// An answer: column names and rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Value>>,
}

/// Whether a query says in which order its rows come.
pub fn is_ordered(sql: &str) -> bool {
    let upper = sql.to_ascii_uppercase();
    upper.rsplit(')').next().is_some_and(|tail| tail.contains("ORDER BY"))
}

/// What differs between an answer to a query and the expected one.
pub fn compare(sql: &str, mut answer: Answer, mut expected: Answer, ordered: bool) -> Option<String> {
    if answer.columns != expected.columns {
        return Some(format!("columns {:?}\n  instead of {:?}", answer.columns, expected.columns));
    }
    let upper = sql.to_ascii_uppercase();
    let merges = ["LIMIT", "DISTINCT", "GROUP BY", "UNION", "EXCEPT", "INTERSECT"];
    if !ordered && upper.contains("LIMIT") {
        // Which rows a LIMIT without ORDER BY gives is SQLite's choice; how many is not.
        let (got, wanted) = (answer.rows.len(), expected.rows.len());
        return (got != wanted).then(|| format!("{got} rows instead of {wanted}"));
    }
    // So are `a` and `A` under NOCASE.
    if upper.contains(".N") {
        fold(&mut answer.rows);
        fold(&mut expected.rows);
    }
    // `5` and `5.0` are equal: which of them a tie, DISTINCT or GROUP BY shows first is SQLite's choice. So an order is
    // checked by value, and the rows as a set by value and type where each row is there on its own.
    let (untyped_answer, untyped_expected) = (untyped(&answer.rows), untyped(&expected.rows));
    let ordered_right = !ordered || same(&untyped_answer, &untyped_expected);
    normalize(&mut answer.rows);
    normalize(&mut expected.rows);
    let exact = !merges.iter().any(|word| upper.contains(word)) || !ordered;
    let by_value = || {
        let (mut answer, mut expected) = (untyped_answer, untyped_expected);
        normalize(&mut answer);
        normalize(&mut expected);
        let unites =
            merges.iter().filter(|word| !["LIMIT", "GROUP BY"].contains(word)).any(|word| upper.contains(word));
        unites && same(&answer, &expected)
    };
    let differs = !ordered_right || (exact && !same(&answer.rows, &expected.rows) && !by_value());
    differs.then(|| format!("answered {:?}\n  expected {:?}", answer.rows, expected.rows))
}

/// Text in lower case (of ASCII).
fn fold(rows: &mut [Vec<Value>]) {
    for value in rows.iter_mut().flatten() {
        if let Value::Text(text) = value {
            text.make_ascii_lowercase();
        }
    }
}

/// The rows with whole reals as integers.
fn untyped(rows: &[Vec<Value>]) -> Vec<Vec<Value>> {
    let plain = |value: &Value| match value {
        Value::Real(real) if real.fract() == 0.0 && real.abs() < 1e15 => Value::Integer(*real as i64),
        other => other.clone(),
    };
    rows.iter().map(|row| row.iter().map(plain).collect()).collect()
}

/// Sorts rows, for answers whose order means nothing.
pub fn normalize(rows: &mut [Vec<Value>]) {
    let key = |value: &Value| match value {
        Value::Real(real) => format!("real {real:.6e}"),
        other => format!("{other:?}"),
    };
    rows.sort_by_cached_key(|row| row.iter().map(key).collect::<Vec<_>>());
}

/// Equal, reals to 1e-9.
pub fn same(left: &[Vec<Value>], right: &[Vec<Value>]) -> bool {
    let close = |left: &Value, right: &Value| match (left, right) {
        (Value::Real(left), Value::Real(right)) => {
            left == right || (left - right).abs() <= 1e-9 * left.abs().max(right.abs()).max(1.0)
        }
        (left, right) => left == right,
    };
    left.len() == right.len()
        && left.iter().zip(right).all(|(left, right)| {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| close(left, right))
        })
}
