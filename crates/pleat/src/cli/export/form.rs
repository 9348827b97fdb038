//! One table's rows as text.
//!
//! In CSV every text is in quotes and nothing else is: so NULL is an empty field and an empty text is `""`, numbers and
//! blobs (`x'00ff'`) can't be taken for text, and `pleat import --exported` gets back the very values.

use anyhow::Context;
use serde_json::Value;

use super::Format;
use crate::cli::output;

/// How the rows of one table are written.
pub struct Form {
    format: Format,
    /// The table's name, as SQL quotes it.
    table: String,
    /// The columns that hold values of their own.
    columns: Vec<String>,
}

impl Form {
    pub fn new(format: Format, table: &Value) -> Form {
        let is_stored = |column: &&Value| !column.get("generated").and_then(Value::as_bool).unwrap_or(false);
        let columns = output::items(table, "columns").iter().filter(is_stored);
        Form {
            format,
            table: quoted(&output::text(table, "name")),
            columns: columns.map(|column| output::text(column, "name")).collect(),
        }
    }

    fn column_list(&self) -> String {
        self.columns.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
    }

    /// What is asked of the cluster.
    pub fn query(&self) -> String {
        format!("SELECT {} FROM {}", self.column_list(), self.table)
    }

    /// The statement that makes the table, with Pleat's clause.
    pub fn create(&self, table: &Value) -> String {
        let clause = match (table.get("kind").and_then(Value::as_str), table.get("shard_key").and_then(Value::as_str)) {
            (_, Some(key)) => format!("SHARD BY ({})", quoted(key)),
            (Some("reference"), None) => "REFERENCE".to_string(),
            _ => "SINGLE".to_string(),
        };
        let sql = output::text(table, "sql");
        // After WITHOUT ROWID or STRICT it is one more option.
        let comma = if sql.trim_end().ends_with(')') { "" } else { "," };
        format!("{}{comma} {clause};\n", sql.trim_end())
    }

    /// What stands before the rows.
    pub fn header(&self) -> String {
        match self.format {
            Format::Csv => self.columns.iter().map(|name| csv_text(name)).collect::<Vec<_>>().join(",") + "\n",
            Format::Ndjson | Format::Sql => String::new(),
        }
    }

    /// A row with its line end.
    pub fn row(&self, row: &[Value]) -> anyhow::Result<String> {
        Ok(match self.format {
            Format::Csv => row.iter().map(csv_value).collect::<Vec<_>>().join(",") + "\n",
            Format::Ndjson => {
                let fields = self.columns.iter().cloned().zip(row.iter().cloned());
                serde_json::to_string(&fields.collect::<serde_json::Map<_, _>>()).context("write a row")? + "\n"
            }
            Format::Sql => {
                let values = row.iter().map(sql_value).collect::<Vec<_>>().join(", ");
                format!("INSERT INTO {} ({}) VALUES ({values});\n", self.table, self.column_list())
            }
        })
    }
}

fn csv_text(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

fn csv_value(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => csv_text(text),
        // A blob as x'…', an infinity by its name.
        other => output::display(other),
    }
}

fn sql_value(value: &Value) -> String {
    match value {
        Value::String(text) => sql_text(text),
        Value::Object(map) => match map.get("real").and_then(Value::as_str) {
            Some("-Infinity") => "-9e999".to_string(),
            Some(_) => "9e999".to_string(),
            None => output::display(value),
        },
        other => output::display(other),
    }
}

/// A statement can't contain a NUL, so around one the text is put together.
fn sql_text(text: &str) -> String {
    let part = |part: &str| format!("'{}'", part.replace('\'', "''"));
    match text.contains('\0') {
        false => part(text),
        true => format!("({})", text.split('\0').map(part).collect::<Vec<_>>().join(" || char(0) || ")),
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The tables that a definition refers to, in lower case. A word too many only makes a table wait for another.
pub fn referred_tables(sql: &str) -> Vec<String> {
    let lower = sql.to_lowercase();
    let after = lower.split("references").skip(1);
    after
        .map(|rest| {
            let rest = rest.trim_start();
            match rest.chars().next() {
                Some(mark @ ('"' | '`')) => rest[1..].split(mark).next().unwrap_or_default().to_string(),
                Some('[') => rest[1..].split(']').next().unwrap_or_default().to_string(),
                _ => rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '$').collect(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table() -> Value {
        json!({"name": "t\"x", "kind": "sharded", "shard_key": "k", "sql": "CREATE TABLE \"t\"\"x\" (k INT PRIMARY KEY, v, g AS (k))",
            "columns": [{"name": "k"}, {"name": "v"}, {"name": "g", "generated": true}]})
    }

    fn values() -> Vec<Vec<Value>> {
        let some = [
            json!(null),
            json!(""),
            json!("a \"b\"\nc"),
            json!(2.0),
            json!({"base64": "AP8="}),
            json!({"real": "-Infinity"}),
        ];
        some.into_iter().map(|value| vec![json!(i64::MIN), value]).collect()
    }

    fn written(format: Format) -> Vec<String> {
        let form = Form::new(format, &table());
        values().iter().map(|row| form.row(row).unwrap().trim_end_matches('\n').to_string()).collect()
    }

    #[test]
    fn csv_tells_null_from_empty_and_blobs_from_text() {
        assert_eq!(Form::new(Format::Csv, &table()).header(), "\"k\",\"v\"\n");
        let values: Vec<_> =
            written(Format::Csv).iter().map(|row| row.split_once(',').unwrap().1.to_string()).collect();
        assert_eq!(values, ["", "\"\"", "\"a \"\"b\"\"\nc\"", "2.0", "x'00ff'", "-Infinity"]);
    }

    #[test]
    fn sql_quotes_what_it_must() {
        let rows = written(Format::Sql);
        assert_eq!(rows[0], "INSERT INTO \"t\"\"x\" (\"k\", \"v\") VALUES (-9223372036854775808, NULL);");
        assert!(rows[5].ends_with(", -9e999);") && rows[4].ends_with(", x'00ff');"), "{rows:?}");
        assert_eq!(sql_value(&json!("it's\0so")), "('it''s' || char(0) || 'so')");
    }

    #[test]
    fn lines_are_objects() {
        assert_eq!(written(Format::Ndjson)[4], r#"{"k":-9223372036854775808,"v":{"base64":"AP8="}}"#);
    }

    #[test]
    fn definitions_get_their_clause_back() {
        let form = Form::new(Format::Sql, &table());
        assert!(form.create(&table()).ends_with("g AS (k)) SHARD BY (\"k\");\n"));
        let strict =
            json!({"name": "r", "kind": "reference", "shard_key": null, "sql": "CREATE TABLE r (a TEXT) STRICT"});
        assert_eq!(form.create(&strict), "CREATE TABLE r (a TEXT) STRICT, REFERENCE;\n");
    }
}
