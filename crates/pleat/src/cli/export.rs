//! `pleat export`: rows out of a cluster, as CSV, as lines of JSON, or as SQL. A view's rows are exported as a table's are; in a
//! whole database it is its definition, after the tables. Triggers come last, so that none fires for rows that are loaded.
//!
//! A table is read by one query, so each shard gives its rows as of one moment; shards have no moment in common
//! (`docs/guide/sql.md`), and neither have tables. Rows are passed on as they arrive, in bounded memory. A file appears under
//! its name only when it is whole: until then it is `FILE.partial`.
//!
//! ```text
//! GET /tables ─► POST /query, row by row ─► one of three forms ([`form`]) ─► (gzip) ─► file or standard output
//! ```

mod form;
mod sink;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::client::{Client, Line};
use super::{Target, ops, output};
use form::Form;
use sink::Sink;

/// How long the server may take for one table: the longest that it grants.
const TABLE_TIME_MAX: Duration = Duration::from_secs(600);
/// Rows between two looks at the progress bar.
const ROWS_PER_TELL: u64 = 512;

#[derive(Args, Clone)]
pub struct ExportArgs {
    #[command(flatten)]
    pub target: Target,
    /// The table
    #[arg(long, required_unless_present = "all")]
    table: Option<String>,
    /// The whole database as SQL: tables with their clauses, rows, indexes; views; triggers
    #[arg(long, conflicts_with = "table")]
    all: bool,
    /// How rows are written [default: csv, with --all sql]
    #[arg(long)]
    format: Option<Format>,
    /// Where to, compressed if the name ends in .gz [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For `pleat import --exported` and spreadsheets
    Csv,
    /// An object per line, values as `POST /query` gives them
    Ndjson,
    /// INSERT statements
    Sql,
}

pub async fn run(args: ExportArgs) -> anyhow::Result<()> {
    let format = match (args.format, args.all) {
        (None, false) => Format::Csv,
        (None | Some(Format::Sql), true) => Format::Sql,
        (Some(format), false) => format,
        (Some(_), true) => bail!("--all is written as SQL; export tables one by one for another format"),
    };
    let client = args.target.client()?;
    let tables = match &args.table {
        Some(name) => vec![client.get(&format!("/tables/{}", ops::path_segment(name))).await?],
        None => in_order(output::items(&client.get("/tables").await?, "tables").to_vec()),
    };
    let begun = Instant::now();
    let mut sink = Sink::open(args.out.as_deref())?;
    let export = export(&client, &tables, format, &args, &mut sink);
    let rows = tokio::select! {
        rows = export => rows?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    };
    let bytes = sink.finish()?;
    summary(&args, tables.len(), rows, bytes, begun.elapsed())
}

async fn export(
    client: &Client,
    tables: &[Value],
    format: Format,
    args: &ExportArgs,
    sink: &mut Sink,
) -> anyhow::Result<u64> {
    let mut rows = 0;
    let triggers = in_order_made(tables);
    let (views, tables): (Vec<_>, Vec<_>) = tables.iter().partition(|table| args.all && is_view(table));
    for table in tables {
        let form = Form::new(format, table);
        if args.all {
            sink.write(&form.create(table))?;
        }
        let name = output::text(table, "name");
        rows += export_rows(client, table, &form, args, sink).await.with_context(|| format!("export {name}"))?;
        for index in output::items(table, "indexes").iter().filter(|_| args.all) {
            sink.write(&format!("{};\n", output::text(index, "sql")))?;
        }
    }
    for view in views {
        sink.write(&format!("{};\n", output::text(view, "sql")))?;
    }
    for trigger in triggers.into_iter().filter(|_| args.all) {
        sink.write(&format!("{};\n", output::text(trigger, "sql")))?;
    }
    Ok(rows)
}

/// The tables' triggers in the order in which they were made, which decides which one fires first.
fn in_order_made(tables: &[Value]) -> Vec<&Value> {
    let mut triggers: Vec<&Value> = tables.iter().flat_map(|table| output::items(table, "triggers")).collect();
    triggers.sort_by_key(|trigger| trigger.get("id").and_then(Value::as_u64));
    triggers
}

fn is_view(table: &Value) -> bool {
    table.get("kind").and_then(Value::as_str) == Some("view")
}

async fn export_rows(
    client: &Client,
    table: &Value,
    form: &Form,
    args: &ExportArgs,
    sink: &mut Sink,
) -> anyhow::Result<u64> {
    let bar = progress_bar(args, table);
    let mut lines = client.stream_within(&form.query(), TABLE_TIME_MAX).await?;
    let mut count = 0;
    sink.write(&form.header())?;
    loop {
        match lines.next().await? {
            Line::Columns(_) => {}
            Line::Row(row) => {
                sink.write(&form.row(&row)?)?;
                count += 1;
                if count % ROWS_PER_TELL == 0 {
                    bar.set_position(count);
                }
            }
            Line::End(_) => break,
        }
    }
    bar.finish_and_clear();
    Ok(count)
}

/// Tables so that those which others refer to come first.
fn in_order(mut tables: Vec<Value>) -> Vec<Value> {
    let mut ordered = Vec::with_capacity(tables.len());
    while !tables.is_empty() {
        let names: Vec<String> = tables.iter().map(|table| output::text(table, "name").to_lowercase()).collect();
        let waits = |table: &Value| {
            let own = output::text(table, "name").to_lowercase();
            form::referred_tables(&output::text(table, "sql")).iter().any(|name| *name != own && names.contains(name))
        };
        // Tables that refer to each other in a ring: any may be first.
        let next = tables.iter().position(|table| !waits(table)).unwrap_or(0);
        ordered.push(tables.remove(next));
    }
    ordered
}

fn progress_bar(args: &ExportArgs, table: &Value) -> ProgressBar {
    if args.target.json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(table.get("rows").and_then(Value::as_u64).unwrap_or(0));
    let template = "{prefix} {bar:30} {percent:>3} %  {pos} rows  {elapsed} elapsed, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.with_prefix(output::text(table, "name"))
}

/// What was done, on standard error: standard output may be the export.
fn summary(args: &ExportArgs, tables: usize, rows: u64, bytes: u64, took: Duration) -> anyhow::Result<()> {
    let seconds = took.as_secs_f64();
    let file = args.out.as_ref().map(|path| path.display().to_string());
    if args.target.json {
        let told = json!({"tables": tables, "rows": rows, "bytes": bytes, "file": file,
            "seconds": (seconds * 1000.0).round() / 1000.0});
        output::complain(&told.to_string());
        return Ok(());
    }
    if let Some(file) = file {
        let of = if tables == 1 { String::new() } else { format!(" of {tables} tables") };
        let rows = output::thousands(rows);
        output::complain(&format!("{rows} rows{of} in {file}, {} in {seconds:.1} s", output::bytes(bytes)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_others_refer_to_come_first() {
        let table = |name: &str, sql: &str| json!({"name": name, "sql": sql});
        let tables = vec![
            table("a", "CREATE TABLE a (b INTEGER REFERENCES \"B\"(id), a INTEGER REFERENCES a)"),
            table("b", "CREATE TABLE b (id INTEGER PRIMARY KEY, c REFERENCES c)"),
            table("c", "CREATE TABLE c (id INTEGER PRIMARY KEY)"),
        ];
        let names: Vec<_> = in_order(tables).iter().map(|table| output::text(table, "name")).collect();
        assert_eq!(names, ["c", "b", "a"]);
        let ring = vec![table("x", "CREATE TABLE x (y REFERENCES y)"), table("y", "CREATE TABLE y (x REFERENCES x)")];
        assert_eq!(in_order(ring).len(), 2);
    }
}
