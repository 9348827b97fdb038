//! Reading a batch of rows.

use std::collections::HashMap;

use pleat_cluster::Value;
use serde_json::{Map, Value as Json};

use super::super::extract::{Media, bad_json, kind, object};
use super::super::problem::{BAD_JSON, BAD_REQUEST, BODY_TOO_LARGE, Problem};
use super::super::value::from_json;
use crate::session::Rejected;
use crate::settings::BULK_ROWS_MAX;

/// A batch that was read.
#[derive(Debug, PartialEq)]
pub struct Batch {
    /// `None`: every column that can be inserted, in order.
    pub columns: Option<Vec<String>>,
    /// Each with its number in the batch.
    pub rows: Vec<(u32, Vec<Value>)>,
    /// Rows that could not be read.
    pub rejected: Vec<Rejected>,
}

type Wrong = (&'static str, String);

impl Batch {
    /// Read a body. `columns` are those of the query string.
    pub fn parse(media: Media, body: &[u8], columns: Option<Vec<String>>) -> Result<Self, Problem> {
        let (columns, rows) = match media {
            Media::Ndjson => (columns, lines(body)?),
            Media::Json => document(body, columns)?,
        };
        Ok(Self::of(columns, rows))
    }

    fn of(columns: Option<Vec<String>>, rows: Vec<Result<Json, Wrong>>) -> Self {
        // Objects without named columns: all that any of them names, in the order of appearance.
        let by_name = columns.is_none() && matches!(rows.iter().flatten().next(), Some(Json::Object(_)));
        let columns = if by_name { Some(union(&rows)) } else { columns };
        let places = places(columns.as_deref().unwrap_or_default());
        let mut batch = Batch { columns: None, rows: Vec::with_capacity(rows.len()), rejected: Vec::new() };
        for (number, row) in (0..).zip(rows) {
            let row = row.and_then(|row| match row {
                Json::Array(_) if by_name => {
                    Err((BAD_REQUEST, "the batch began with objects: an array has no names for its values".to_owned()))
                }
                Json::Array(values) => values.into_iter().map(|value| from_json(value).map_err(wrong)).collect(),
                Json::Object(_) if columns.is_none() => {
                    Err((BAD_REQUEST, "the batch began with arrays: name the columns, or send objects only".to_owned()))
                }
                Json::Object(map) => by_place(map, &places),
                other => Err((BAD_REQUEST, format!("a row must be an array or an object, not {}", kind(&other)))),
            });
            match row {
                Ok(row) => batch.rows.push((number, row)),
                Err((code, error)) => batch.rejected.push(Rejected { row: number, code: code.to_owned(), error }),
            }
        }
        Batch { columns, ..batch }
    }
}

fn wrong(error: String) -> Wrong {
    ("22023", error)
}

/// One JSON value per line; empty lines are no rows.
fn lines(body: &[u8]) -> Result<Vec<Result<Json, Wrong>>, Problem> {
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let mut rows = Vec::new();
    for line in lines {
        if rows.len() == BULK_ROWS_MAX {
            return Err(too_many());
        }
        let row = serde_json::from_slice(line).map_err(|error| (BAD_JSON, format!("not valid JSON: {error}")));
        rows.push(row);
    }
    Ok(rows)
}

type Document = (Option<Vec<String>>, Vec<Result<Json, Wrong>>);

fn document(body: &[u8], columns: Option<Vec<String>>) -> Result<Document, Problem> {
    let mut map = object(body, &["columns", "rows"])?;
    let rows = match map.remove("rows") {
        Some(Json::Array(rows)) if rows.len() <= BULK_ROWS_MAX => rows,
        Some(Json::Array(_)) => return Err(too_many()),
        _ => {
            let hint = "send {\"columns\": [\"a\"], \"rows\": [[1], [2]]}, or one row per line as application/x-ndjson";
            return Err(Problem::bad_request("\"rows\" must be an array of rows", hint));
        }
    };
    let named = match map.remove("columns") {
        None | Some(Json::Null) => None,
        Some(json) => Some(serde_json::from_value::<Vec<String>>(json).map_err(|error| bad_json(&error))?),
    };
    if named.is_some() && columns.is_some() && named != columns {
        return Err(Problem::bad_request("the columns are named twice, and differently", "name them once"));
    }
    Ok((named.or(columns), rows.into_iter().map(Ok).collect()))
}

fn too_many() -> Problem {
    Problem::new(
        BODY_TOO_LARGE,
        format!("the batch has more than {BULK_ROWS_MAX} rows"),
        "send it as several batches, each with a batch_id of its own",
    )
}

/// Every name in the objects, each once whatever its case, in the order of appearance.
fn union(rows: &[Result<Json, Wrong>]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for row in rows.iter().flatten() {
        let Json::Object(map) = row else { continue };
        for name in map.keys() {
            if !seen.contains(name.as_str()) && seen.insert(name.to_ascii_lowercase()) {
                names.push(name.clone());
            }
        }
    }
    names
}

fn places(columns: &[String]) -> HashMap<String, usize> {
    columns.iter().enumerate().map(|(at, name)| (name.to_ascii_lowercase(), at)).collect()
}

/// An object's values in the order of the columns; what it leaves out is NULL.
fn by_place(map: Map<String, Json>, places: &HashMap<String, usize>) -> Result<Vec<Value>, Wrong> {
    let mut row = vec![Value::Null; places.len()];
    for (name, value) in map {
        let at = places.get(&name).or_else(|| places.get(&name.to_ascii_lowercase()));
        let at = at.ok_or_else(|| ("42703", format!("column \"{name}\" is not among the named columns")))?;
        row[*at] = from_json(value).map_err(|error| wrong(format!("{name}: {error}")))?;
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ndjson(text: &str, columns: Option<&[&str]>) -> Batch {
        let columns = columns.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        Batch::parse(Media::Ndjson, text.as_bytes(), columns).unwrap()
    }

    fn rejected(batch: &Batch) -> Vec<(u32, &str)> {
        batch.rejected.iter().map(|row| (row.row, row.code.as_str())).collect()
    }

    #[test]
    fn objects_share_the_union_of_their_columns() {
        let batch = ndjson("{\"a\":1,\"b\":2}\n\n{\"B\":3,\"c\":\"x\"}\r\n", None);
        assert_eq!(batch.columns.unwrap(), ["a", "b", "c"]);
        assert_eq!(batch.rows[0], (0, vec![Value::Integer(1), Value::Integer(2), Value::Null]));
        assert_eq!(batch.rows[1], (1, vec![Value::Null, Value::Integer(3), Value::from("x")]));
    }

    #[test]
    fn arrays_are_in_the_order_of_the_columns() {
        let batch = ndjson("[1,2]\n[3,4]", None);
        assert_eq!((batch.columns, batch.rows.len()), (None, 2));
        let batch = ndjson("[1,2]\n{\"b\":5,\"A\":6}", Some(&["a", "b"]));
        assert_eq!(batch.rows[1].1, [Value::Integer(6), Value::Integer(5)]);
    }

    #[test]
    fn rows_that_cannot_be_read_are_named_and_the_rest_is_kept() {
        let batch = ndjson("[1]\n{oops\n{\"a\":1}\n5\n[[1]]\n[2]", None);
        assert_eq!(rejected(&batch), [(1, BAD_JSON), (2, BAD_REQUEST), (3, BAD_REQUEST), (4, "22023")]);
        assert_eq!(batch.rows.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 5]);
        let batch = ndjson("{\"a\":1}\n[1]\n{\"a\":{\"x\":1}}", None);
        assert_eq!(rejected(&batch), [(1, BAD_REQUEST), (2, "22023")]);
        let batch = ndjson("{\"a\":1,\"z\":2}", Some(&["a"]));
        assert_eq!(rejected(&batch), [(0, "42703")]);
    }

    #[test]
    fn a_document_names_its_columns_and_rows() {
        let batch = Batch::parse(Media::Json, br#"{"columns":["a"],"rows":[[1],[null]]}"#, None).unwrap();
        assert_eq!(batch.columns.unwrap(), ["a"]);
        assert_eq!(batch.rows, [(0, vec![Value::Integer(1)]), (1, vec![Value::Null])]);
        for (body, says) in [
            (r#"{"columns":["a"]}"#, "\"rows\" must be an array"),
            (r#"{"rows":5}"#, "\"rows\" must be an array"),
            (r#"{"row":[]}"#, "unknown field \"row\""),
            (r#"{"columns":[1],"rows":[]}"#, "expected a string"),
            (r#"{"rows":["#, "line 1"),
        ] {
            let problem = Batch::parse(Media::Json, body.as_bytes(), None).unwrap_err();
            assert!(problem.0.message.contains(says), "{body}: {}", problem.0.message);
        }
    }

    #[test]
    fn too_many_rows_are_refused_whole() {
        let text = "[1]\n".repeat(BULK_ROWS_MAX + 1);
        let problem = Batch::parse(Media::Ndjson, text.as_bytes(), None).unwrap_err();
        assert_eq!(problem.0.code, BODY_TOO_LARGE);
        assert_eq!(ndjson(&"[1]\n".repeat(BULK_ROWS_MAX), None).rows.len(), BULK_ROWS_MAX);
    }
}
