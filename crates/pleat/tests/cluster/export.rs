//! What goes out of a cluster comes back in as it was.

use serde_json::json;

use crate::harness::{Cluster, Options};

/// Every kind of value, in a column of each kind.
const ROWS: [&str; 7] = [
    "(1, 'plain', 7, 2.5, 'x')",
    "(2, '', '7', 2.0, x'00ff')",
    "(3, NULL, NULL, NULL, NULL)",
    "(4, 'a \"quoted\", one' || char(10) || 'and a half', 2.0, 9e999, '')",
    "(5, 'x''00ff''', 'x''00ff''', -9e999, x'')",
    "(6, 'a' || char(0) || 'b', -9223372036854775808, 1e300, '12')",
    "(-9223372036854775808, 'Ελλάδα 漢字', 9223372036854775807, -0.1, 'NULL')",
];

const SEEN: &str = "SELECT id, name, hex(name), v, typeof(v), r, b, typeof(b), up FROM everything ORDER BY id";

async fn fill(cluster: &Cluster, table: &str) {
    cluster
        .query(&format!(
            "CREATE TABLE {table} (id INTEGER PRIMARY KEY, name TEXT, v, r REAL, b BLOB, up TEXT AS (upper(name))) SHARD BY (id)"
        ))
        .await;
}

#[tokio::test]
async fn a_table_and_a_whole_database_come_back_as_they_were() {
    let cluster = Cluster::start(Options { nodes: 1, shards: 2, ..Options::default() }).await;
    fill(&cluster, "everything").await;
    fill(&cluster, "copy").await;
    cluster.query("CREATE TABLE codes (code TEXT PRIMARY KEY, n INTEGER) WITHOUT ROWID, REFERENCE").await;
    cluster.query("CREATE INDEX codes_n ON codes (n)").await;
    cluster.query("CREATE TABLE alone (a INTEGER PRIMARY KEY, b REFERENCES alone) SINGLE").await;
    cluster.query("CREATE VIEW \"some ü\"(code, twice) AS SELECT code, n + n FROM codes -- a remark").await;
    for row in ROWS {
        cluster.query(&format!("INSERT INTO everything (id, name, v, r, b) VALUES {row}")).await;
    }
    cluster.query("INSERT INTO codes VALUES ('a', 1), ('b', NULL)").await;
    cluster.query("INSERT INTO alone VALUES (1, NULL), (2, 1)").await;
    // Made when the rows are there, and so when they are loaded: they fire for none of them.
    cluster.query("CREATE TABLE fired (id INTEGER PRIMARY KEY, n INTEGER) SHARD BY (id)").await;
    for (name, body) in [
        ("second; to none", "INSERT INTO fired VALUES (NEW.id, 1) ON CONFLICT (id) DO UPDATE SET n = n + 1"),
        ("first", "SELECT RAISE(ABORT, 'never') WHERE NEW.r IS NULL;\n  DELETE FROM fired WHERE id = NEW.id"),
    ] {
        cluster.query(&format!("CREATE TRIGGER \"{name}\" AFTER INSERT ON everything BEGIN {body}; END")).await;
    }
    let seen = cluster.rows(SEEN).await;
    assert_eq!(seen.len(), ROWS.len());

    let (code, out, err) = cluster.cli(&["export", "--table", "everything", "--out", "e.csv.gz"]);
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    assert!(err.contains("7 rows in e.csv.gz"), "{err}");
    let (code, _, err) = cluster.cli(&["import", "e.csv.gz", "--table", "copy", "--exported"]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(cluster.rows(&SEEN.replace("everything", "copy")).await, seen);

    let (code, out, err) = cluster.cli(&["export", "--table", "codes", "--format", "ndjson"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let mut lines: Vec<&str> = out.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, [r#"{"code":"a","n":1}"#, r#"{"code":"b","n":null}"#]);
    let (code, _, err) = cluster.cli(&["export", "--table", "nowhere", "--out", "n.csv"]);
    assert!(code == 1 && err.contains("nowhere") && !cluster.dir.path().join("n.csv").exists(), "{err}");

    let (code, out, _) = cluster.cli(&["export", "--table", "some ü"]);
    assert!(code == 0 && out.starts_with("\"code\",\"twice\"\n") && out.contains("\"a\",2\n"), "{out}");
    let (code, _, err) = cluster.cli(&["export", "--all", "--out", "all.sql.gz"]);
    assert_eq!(code, 0, "{err}");
    let other = Cluster::start(Options { nodes: 1, shards: 3, ..Options::default() }).await;
    let file = cluster.dir.path().join("all.sql.gz");
    let (code, out, err) = other.cli(&["sql", "--file", file.to_str().unwrap()]);
    assert_eq!(code, 0, "{out}\n{err}");
    assert_eq!(other.rows(SEEN).await, seen);
    assert_eq!(
        other.rows("SELECT * FROM codes ORDER BY code").await,
        [[json!("a"), json!(1)], [json!("b"), json!(null)]]
    );
    assert_eq!(other.rows("SELECT twice FROM \"some ü\" WHERE code = 'a'").await, [[json!(2)]]);
    assert_eq!(other.rows("SELECT count(*), max(b) FROM alone").await, [[json!(2), json!(1)]]);
    assert_eq!(other.rows("SELECT count(*) FROM fired").await, [[json!(0)]]);
    other.query("INSERT INTO everything (id, r) VALUES (100, 1.5)").await;
    assert_eq!(other.rows("SELECT id, n FROM fired").await, [[json!(100), json!(1)]], "the last one made fires first");
    let kinds = |tables: &serde_json::Value| {
        let of = |table: &serde_json::Value| {
            let triggers = table["triggers"].as_array().unwrap().iter().map(|trigger| trigger["sql"].clone());
            let triggers: Vec<_> = triggers.collect();
            (
                table["name"].clone(),
                table["kind"].clone(),
                table["shard_key"].clone(),
                table["indexes"].clone(),
                triggers,
            )
        };
        tables["tables"].as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&other.get("/tables").await), kinds(&cluster.get("/tables").await));

    // What the shell and the list of statements say of it.
    let (code, out, err) = other.cli(&["statements", "--order", "calls", "--full"]);
    assert!(code == 0 && out.contains("INSERT INTO \"everything\"") && !out.contains("quoted"), "{out}{err}");
    let (code, out, _) = other.cli(&["sql", "-c", "EXPLAIN ANALYZE SELECT count(*) FROM everything"]);
    assert!(code == 0 && out.contains("took on shard-3"), "{out}");
}
