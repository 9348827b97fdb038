//! Running one statement and printing what it gives.
//!
//! Rows are streamed from the server and printed a page at a time, so a result may be larger than memory.

use std::time::Instant;

use serde_json::Value;

use crate::cli::client::{Client, Line};
use crate::cli::output;

/// Rows that are laid out together as one table.
const PAGE_ROWS: usize = 2_000;

/// How results look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// A header and rows separated by tabs, for pipes.
    Tabs,
    /// The server's answer, one line for each statement.
    Json,
}

/// Runs statements.
pub struct Runner {
    pub client: Client,
    pub format: Format,
    pub timing: bool,
    /// Whether the shell shows each statement's route before it runs.
    pub explains: bool,
}

impl Runner {
    /// Run one request and print its result.
    pub async fn run(&self, sql: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        if self.format == Format::Json {
            output::json(&self.client.query(sql).await?)?;
        } else {
            let (rows, end) = self.stream(sql).await?;
            self.footer(rows, &end)?;
        }
        if self.timing {
            output::complain(&format!("time: {:.1} ms", begun.elapsed().as_secs_f64() * 1000.0));
        }
        Ok(())
    }

    /// Show where a statement goes, without running it.
    pub async fn explain(&self, sql: &str) -> anyhow::Result<()> {
        let explains = sql.split_whitespace().next().is_some_and(|word| word.eq_ignore_ascii_case("explain"));
        let sql = if explains { sql.to_string() } else { format!("EXPLAIN {sql}") };
        let answer = self.client.query(&sql).await?;
        for step in output::items(&answer, "data") {
            output::line(&format!("{:>24}  {}", output::text(step, "step"), output::text(step, "detail")))?;
        }
        Ok(())
    }

    async fn stream(&self, sql: &str) -> anyhow::Result<(Option<u64>, Value)> {
        let mut rows = self.client.stream(sql).await?;
        let mut columns: Vec<String> = Vec::new();
        let mut page: Vec<Vec<Value>> = Vec::new();
        let mut count = 0_u64;
        let mut pages = 0;
        loop {
            match rows.next().await? {
                Line::Columns(names) => {
                    columns = names;
                    if self.format == Format::Tabs && !columns.is_empty() {
                        output::line(&columns.join("\t"))?;
                    }
                }
                Line::Row(row) if self.format == Format::Tabs => {
                    count += 1;
                    output::line(&row.iter().map(output::tab_separated).collect::<Vec<_>>().join("\t"))?;
                }
                Line::Row(row) => {
                    count += 1;
                    page.push(row);
                    if page.len() == PAGE_ROWS {
                        output::line(&output::result_table(&columns, &page))?;
                        page.clear();
                        pages += 1;
                    }
                }
                Line::End(end) => {
                    let has_columns = !columns.is_empty();
                    if self.format == Format::Table && has_columns && (!page.is_empty() || pages == 0) {
                        output::line(&output::result_table(&columns, &page))?;
                    }
                    return Ok((has_columns.then_some(count), end));
                }
            }
        }
    }

    /// What is said below the rows: to people on standard output, beside a pipe only notices.
    fn footer(&self, rows: Option<u64>, end: &Value) -> anyhow::Result<()> {
        if let Some(notice) = end.get("notice").and_then(Value::as_str) {
            output::complain(&format!("notice: {notice}"));
        }
        if self.format == Format::Table {
            output::line(&summary(rows, end))?;
        }
        Ok(())
    }
}

fn summary(rows: Option<u64>, end: &Value) -> String {
    let mut parts = Vec::new();
    let counted =
        |count: u64| if count == 1 { "1 row".to_string() } else { format!("{} rows", output::thousands(count)) };
    match (rows, end.get("operation").and_then(Value::as_str)) {
        (Some(count), _) => parts.push(counted(count)),
        (None, Some(operation)) => parts.push(format!("done ({operation})")),
        (None, None) => {
            let affected = end.get("rows_affected").and_then(Value::as_u64).unwrap_or(0);
            parts.push(format!("{} affected", counted(affected)));
        }
    }
    let places: Vec<String> = match end.get("shard").and_then(Value::as_str) {
        Some(shard) => vec![shard.to_string()],
        None => output::items(end, "shards").iter().map(output::display).collect(),
    };
    match places.as_slice() {
        [] => {}
        [one] => parts.push(format!("on {one}")),
        [first, .., last] if places.len() > 4 => {
            parts.push(format!("on {} shards, {first} to {last}", places.len()));
        }
        several => parts.push(format!("on {}", several.join(", "))),
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_line_below_a_result_says_how_much_and_where() {
        assert_eq!(summary(Some(1), &json!({"shard": "shard-2"})), "1 row on shard-2");
        assert_eq!(summary(Some(1200), &json!({"shards": ["shard-1", "shard-2"]})), "1,200 rows on shard-1, shard-2");
        assert_eq!(summary(None, &json!({"rows_affected": 3, "shard": "shard-1"})), "3 rows affected on shard-1");
        assert_eq!(summary(None, &json!({"operation": "op-1", "shards": []})), "done (op-1)");
        let many: Vec<String> = (1..=7).map(|n| format!("shard-{n}")).collect();
        assert_eq!(summary(Some(0), &json!({"shards": many})), "0 rows on 7 shards, shard-1 to shard-7");
    }
}
