//! Bad input is refused with an error that says what to do, and nothing changes.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Cluster, Options, Refused, answer};

#[tokio::test]
async fn bad_requests_change_nothing() {
    let cluster = Cluster::start(Options { shards: 2, ..Options::default() }).await;
    cluster.query("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT) SHARD BY (id)").await;
    cluster.query("INSERT INTO users VALUES (1, 'Ada')").await;
    let before = state(&cluster).await;

    let statements = [
        ("INSERT INTO users VALUES ('one', 'nobody')", 400, "22P02", "id"),
        ("INSERT INTO users VALUES (1.5, 'nobody')", 400, "22P02", "id"),
        ("SELECT * FROM nowhere", 400, "42P01", "nowhere"),
        ("INSERT INTO nowhere VALUES (1)", 400, "42P01", "nowhere"),
        ("SELECT nothing FROM users WHERE id = 1", 400, "42703", "nothing"),
        ("SELEC 1", 400, "42601", "SELEC"),
        ("SELECT (1", 400, "42601", ""),
        ("", 400, "42601", ""),
        ("CREATE TABLE a (x INTEGER) SHARD BY (x)", 400, "", "primary key"),
        ("CREATE TABLE a (x INTEGER PRIMARY KEY) SHARD BY (y)", 400, "", "y"),
        ("CREATE TABLE a (x REAL PRIMARY KEY) SHARD BY (x)", 400, "", "REAL"),
        ("CREATE TABLE a (x NUMERIC PRIMARY KEY) SHARD BY (x)", 400, "", "x"),
        ("CREATE TABLE a (x TEXT COLLATE NOCASE PRIMARY KEY) SHARD BY (x)", 400, "", "NOCASE"),
        ("CREATE TABLE a (x INTEGER PRIMARY KEY, y TEXT UNIQUE) SHARD BY (x)", 400, "", "unique"),
        ("CREATE TABLE __pleat_mine (x INTEGER PRIMARY KEY)", 400, "", "__pleat_"),
        ("ATTACH 'x' AS y", 400, "0A000", ""),
        ("PRAGMA journal_mode = OFF", 400, "0A000", ""),
        ("BEGIN", 409, "25P01", "transaction"),
        ("SELECT load_extension('x')", 400, "", ""),
        ("SELECT * FROM __pleat_meta", 400, "", ""),
        ("CREATE VIRTUAL TABLE v USING fts5(x)", 400, "0A000", ""),
    ];
    for (statement, status, code, word) in statements {
        let refused = cluster.try_query(statement).await.expect_err(statement);
        assert_eq!(refused.status, status, "{statement}: {refused:?}");
        if !code.is_empty() {
            assert_eq!(refused.code(), code, "{statement}: {refused:?}");
        }
        let text = refused.body["error"].as_str().unwrap().to_lowercase();
        assert!(text.contains(&word.to_lowercase()), "{statement}: {refused:?}");
        assert!(!refused.body["code"].as_str().unwrap().is_empty(), "{statement}: {refused:?}");
        assert!(refused.body["hint"].is_string(), "{statement}: {refused:?}");
        assert_eq!(refused.body["retryable"], false, "{statement}: {refused:?}");
    }

    let posts = [
        ("/query", "{\"query\": ", 400),
        ("/query", "[]", 400),
        ("/query", "{\"query\": 5}", 400),
        ("/query", "{\"query\": \"SELECT 1\", \"wat\": 1}", 400),
        ("/query", "{\"query\": \"SELECT ?\", \"params\": [[1]]}", 400),
        ("/query", "{\"query\": \"SELECT 1\", \"idempotency_key\": 7}", 400),
        ("/tables/users/rows", "{\"columns\": [\"id\"], \"rows\": [[1", 400),
        ("/tables/users/rows", "{\"columns\": [\"wat\"], \"rows\": [[1]]}", 400),
        ("/tables/nowhere/rows", "{\"columns\": [\"id\"], \"rows\": [[1]]}", 404),
        ("/nowhere", "{}", 404),
    ];
    for (path, body, status) in posts {
        let refused = post_text(&cluster, path, body.to_owned()).await.expect_err(path);
        assert_eq!(refused.status, status, "{path} {body}: {refused:?}");
        assert!(refused.body["error"].is_string() && refused.body["hint"].is_string(), "{path} {body}: {refused:?}");
    }
    let unknown = post_text(&cluster, "/query", "{\"query\": \"SELECT 1\", \"wat\": 1}".to_owned()).await.unwrap_err();
    assert!(unknown.body["error"].as_str().unwrap().contains("wat"), "{unknown:?}");

    // A 100 MB statement.
    let huge = json!({ "query": format!("SELECT '{}'", "x".repeat(100 << 20)) }).to_string();
    let refused = post_text(&cluster, "/query", huge).await.expect_err("100 MB");
    assert_eq!(refused.status, 413, "{refused:?}");
    let large = format!("SELECT '{}'", "x".repeat(2 << 20));
    let refused = cluster.try_query(&large).await.expect_err("2 MB");
    assert!([413, 422].contains(&refused.status), "{refused:?}");
    // Nested so deeply that a recursive parser would overflow its stack.
    let deep = format!("SELECT {}1{}", "(".repeat(100_000), ")".repeat(100_000));
    assert_eq!(cluster.try_query(&deep).await.expect_err("deep").status / 100, 4);

    // A statement that never ends is ended, and the shard serves on.
    let endless = json!({
        "query": "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r",
        "timeout_ms": 500,
    });
    let refused = cluster.post(1, "/query", &endless).await.expect_err("endless");
    assert_eq!(refused.code(), "57014", "{refused:?}");

    assert_eq!(state(&cluster).await, before);
    assert_eq!(cluster.query("SELECT name FROM users WHERE id = 1").await["data"], json!([{ "name": "Ada" }]));
}

#[tokio::test]
async fn broken_csv_is_rejected_line_by_line() {
    let cluster = Cluster::start(Options { shards: 2, ..Options::default() }).await;
    cluster.query("CREATE TABLE users (id INT PRIMARY KEY, name TEXT) SHARD BY (id)").await;
    let file = cluster.dir.path().join("users.csv");
    std::fs::write(
        &file,
        b"id,name\n1,Ada\nNA,nobody\n2\n3,\xff\xfe\n1,twice\nfour,x\n5,Eve\n6,\"Bob, \"\"the\"\" builder\"\n",
    )
    .unwrap();
    let (code, out, err) = cluster.cli(&["import", file.to_str().unwrap(), "--table", "users", "--null", "NA"]);
    let rejected = std::fs::read(cluster.dir.path().join("users.rejected.csv"));
    let rejected = rejected.unwrap_or_else(|error| panic!("{error}\ncode {code}\n{out}\n{err}"));
    let rejected = String::from_utf8_lossy(&rejected);
    for line in [3, 4, 5, 6, 7] {
        assert!(rejected.lines().any(|row| row.starts_with(&format!("{line},"))), "line {line}:\n{rejected}");
    }
    let rows = cluster.rows("SELECT id, name FROM users ORDER BY id").await;
    assert_eq!(rows, [[json!(1), json!("Ada")], [json!(5), json!("Eve")], [json!(6), json!("Bob, \"the\" builder")]]);
    let (code, _, err) = cluster.cli(&["import", "nothing.csv", "--table", "users"]);
    assert_eq!(code, 1);
    assert!(err.contains("nothing.csv"), "{err}");
    let (code, _, err) = cluster.cli(&["import", file.to_str().unwrap(), "--table", "nowhere"]);
    assert_eq!(code, 1);
    assert!(err.contains("nowhere"), "{err}");
}

#[tokio::test]
async fn a_second_cluster_on_the_same_place_is_refused() {
    let cluster = Cluster::start(Options { nodes: 1, ..Options::default() }).await;
    let port = cluster.url(1).rsplit(':').next().unwrap().to_owned();
    let other = tempfile::tempdir().unwrap();
    let free = crate::harness::Ports::claim();
    let (elsewhere, coordinator) =
        (format!("127.0.0.1:{}", free.http(1)), format!("127.0.0.1:{}", free.coordinator(1)));
    let up = |listen: &str, dir: &std::path::Path, more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_pleat"))
            .args(["up", "--nodes", "1", "--listen", listen, "--coordinator", &coordinator])
            .args(["--pg-listen", "off", "--data-dir"])
            .arg(dir)
            .args(more)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // The port is in use.
    let (fine, error) = up(&format!("127.0.0.1:{port}"), &other.path().join("data"), &[]);
    assert!(!fine && error.contains(&port) && error.contains("in use"), "{error}");
    assert!(!other.path().join("data").exists(), "nothing is left behind");
    // The directory is in use.
    let (fine, error) = up(&elsewhere, &cluster.data_dir(), &[]);
    assert!(!fine && error.contains("in use"), "{error}");
    // The directory holds something else.
    let strange = other.path().join("strange");
    std::fs::create_dir(&strange).unwrap();
    std::fs::write(strange.join("thesis.txt"), "mine").unwrap();
    let (fine, error) = up(&elsewhere, &strange, &[]);
    assert!(!fine && error.contains("strange"), "{error}");
    // An unknown key.
    let config = other.path().join("pleat.toml");
    std::fs::write(&config, "max_shard = 3\n").unwrap();
    let (fine, error) = up(&elsewhere, &other.path().join("data"), &["--config", config.to_str().unwrap()]);
    assert!(
        !fine && error.contains("max_shard") && error.contains("line 1") && error.contains("max_shards"),
        "{error}"
    );
    assert_eq!(cluster.get("/health").await["status"], "healthy");
}

#[tokio::test]
async fn a_data_directory_of_another_cluster_is_refused() {
    let mut one = Cluster::start(Options { nodes: 1, ..Options::default() }).await;
    let mut two = Cluster::start(Options { nodes: 1, ..Options::default() }).await;
    assert!(one.stop() && two.stop());
    let (ours, theirs) = (one.data_dir().join("node-1"), two.data_dir().join("node-1"));
    std::fs::remove_dir_all(&ours).unwrap();
    std::fs::rename(&theirs, &ours).unwrap();
    let port = one.url(1).rsplit(':').next().unwrap().to_owned();
    let output = Command::new(env!("CARGO_BIN_EXE_pleat"))
        .args(["up", "--nodes", "1", "--listen", &format!("127.0.0.1:{port}"), "--data-dir"])
        .arg(one.data_dir())
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("cluster"), "{error}");
}

async fn post_text(cluster: &Cluster, path: &str, body: String) -> Result<Value, Refused> {
    let post = cluster.http.post(format!("{}{path}", cluster.url(1))).header("content-type", "application/json");
    answer(post.body(body).send().await).await
}

/// All that a bad request could have changed.
async fn state(cluster: &Cluster) -> (Value, Vec<Vec<Value>>, Value) {
    let mut tables = cluster.get("/tables").await["tables"].clone();
    // Measured, and so absent while a shard does not answer in time.
    tables.as_array_mut().unwrap().iter_mut().for_each(|table| drop(table.as_object_mut().unwrap().remove("rows")));
    let rows = cluster.rows("SELECT * FROM users ORDER BY id").await;
    (tables, rows, cluster.get("/operations?phase=failed,successful").await["operations"].clone())
}
