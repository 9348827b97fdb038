//! `\d` and `\d TABLE`.

use serde_json::Value;

use crate::cli::client::Client;
use crate::cli::{ops, output};

/// List the tables and views whose name fits `pattern`.
pub async fn tables(client: &Client, pattern: &str) -> anyhow::Result<()> {
    let answer = client.get("/tables").await?;
    let tables = output::items(&answer, "tables");
    if tables.is_empty() {
        return Ok(output::line(
            "no tables yet; try CREATE TABLE users (user_id INTEGER PRIMARY KEY, name TEXT) SHARD BY (user_id);",
        )?);
    }
    let rows = tables
        .iter()
        .filter(|table| fits(pattern, &output::text(table, "name")))
        .map(|table| {
            vec![
                output::text(table, "name"),
                output::text(table, "kind"),
                output::text(table, "shard_key"),
                output::count(table, "rows"),
                output::texts(table, "shards"),
            ]
        })
        .collect();
    Ok(output::list(&["table", "kind", "shard key", "rows", "shards"], &["rows"], rows)?)
}

/// List the indexes of the tables whose name fits `pattern`.
pub async fn indexes(client: &Client, pattern: &str) -> anyhow::Result<()> {
    let answer = client.get("/tables").await?;
    let tables = output::items(&answer, "tables").iter();
    let rows = tables.filter(|table| fits(pattern, &output::text(table, "name"))).flat_map(|table| {
        let of = |index| vec![output::text(index, "name"), output::text(table, "name"), output::text(index, "sql")];
        output::items(table, "indexes").iter().map(of).collect::<Vec<_>>()
    });
    Ok(output::list(&["index", "table", "definition"], &[], rows.collect())?)
}

/// Whether a name fits a pattern, in which `*` stands for anything. Case makes no difference.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_lowercase(), name.to_lowercase());
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(left) = name.strip_prefix(first) else { return false };
    let starts = left.char_indices().map(|(at, _)| at).chain([left.len()]);
    starts.into_iter().any(|at| fits(rest, &left[at..]))
}

/// Describe one table or view.
pub async fn table(client: &Client, name: &str) -> anyhow::Result<()> {
    let table = client.get(&format!("/tables/{}", ops::path_segment(name))).await?;
    let by = match table.get("shard_key").and_then(Value::as_str) {
        Some(key) => format!(" by {key}"),
        None => String::new(),
    };
    let (name, kind) = (output::text(&table, "name"), output::text(&table, "kind"));
    output::line(&match kind.as_str() {
        "view" => format!("{name}: view"),
        _ => {
            let (rows, shards) = (output::count(&table, "rows"), output::texts(&table, "shards"));
            format!("{name}: {kind}{by}, {rows} rows on {shards}")
        }
    })?;
    let rows = output::items(&table, "columns").iter().map(column).collect();
    output::list(&["column", "type", "remarks"], &[], rows)?;
    for index in output::items(&table, "indexes") {
        output::line(&format!("index {}: {}", output::text(index, "name"), output::text(index, "sql")))?;
    }
    for trigger in output::items(&table, "triggers") {
        output::line(&format!("trigger {}: {}", output::text(trigger, "name"), output::text(trigger, "sql")))?;
    }
    Ok(output::line(&output::text(&table, "sql"))?)
}

fn column(column: &Value) -> Vec<String> {
    let is = |key: &str| column.get(key).and_then(Value::as_bool).unwrap_or(false);
    let mut remarks = Vec::new();
    if column.get("primary_key").and_then(Value::as_u64).unwrap_or(0) > 0 {
        remarks.push("primary key".to_string());
    }
    if is("not_null") {
        remarks.push("not null".to_string());
    }
    if is("generated") {
        remarks.push("generated".to_string());
    }
    if let Some(collation) = column.get("collation").and_then(Value::as_str) {
        remarks.push(format!("collate {collation}"));
    }
    vec![output::text(column, "name"), output::text(column, "type"), remarks.join(", ")]
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn a_star_stands_for_anything() {
        assert!(fits("*", "t") && fits("fl*", "Flights") && fits("*ES", "planes") && fits("p*n*s", "planes"));
        assert!(fits("planes", "planes") && !fits("plane", "planes") && !fits("*x*", "planes"));
    }
}
