//! What one statement does, seen from outside.

use serde_json::json;

use crate::harness::{Cluster, Options};

#[tokio::test]
async fn statements_do_what_they_say() {
    let cluster = Cluster::start(Options { shards: 3, ..Options::default() }).await;
    cluster.query("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, photo BLOB, score REAL) SHARD BY (id)").await;
    keyed(&cluster).await;
    parameters(&cluster).await;
    all_or_nothing(&cluster).await;
    exactly_once(&cluster).await;
    several_shards(&cluster).await;
    single_tables(&cluster).await;
    streams(&cluster).await;
    explained(&cluster).await;
    consistency(&cluster).await;
    schema_changes(&cluster).await;
    bulk(&cluster).await;
    documents(&cluster).await;
    command_line(&cluster).await;
}

async fn keyed(cluster: &Cluster) {
    let made = cluster.query("INSERT INTO users (id, name, score) VALUES (1, 'Ada', 1.5)").await;
    assert_eq!(made["rows_affected"], 1);
    let read = cluster.query("SELECT id, name, photo, score FROM users WHERE id = 1").await;
    assert_eq!(read["data"], json!([{ "id": 1, "name": "Ada", "photo": null, "score": 1.5 }]));
    assert_eq!(read["shard"], made["shard"]);
    let changed = cluster.query("UPDATE users SET score = score * 2 WHERE id = 1 RETURNING score").await;
    assert_eq!(changed["data"], json!([{ "score": 3.0 }]));
    assert_eq!(cluster.query("DELETE FROM users WHERE id = 1").await["rows_affected"], 1);
    assert_eq!(cluster.query("SELECT * FROM users WHERE id = 1").await["data"], json!([]));
}

async fn parameters(cluster: &Cluster) {
    let insert = json!({
        "query": "INSERT INTO users VALUES (?, ?, ?, ?)",
        "params": [9_007_199_254_740_993_i64, "Grace \u{1F600}", { "base64": "3q0=" }, 2.25],
    });
    cluster.post(2, "/query", &insert).await.unwrap();
    let named = json!({ "query": "SELECT * FROM users WHERE id = :id", "params": { "id": 9_007_199_254_740_993_i64 } });
    let read = cluster.post(3, "/query", &named).await.unwrap();
    let row = json!({
        "id": 9_007_199_254_740_993_i64, "name": "Grace \u{1F600}", "photo": { "base64": "3q0=" }, "score": 2.25
    });
    assert_eq!(read["data"], json!([row]));
    let too_few = json!({ "query": "SELECT * FROM users WHERE id = ? AND name = ?", "params": [1] });
    assert_eq!(cluster.post(1, "/query", &too_few).await.unwrap_err().status, 400);
}

async fn all_or_nothing(cluster: &Cluster) {
    let both = "INSERT INTO users (id, name) VALUES (50, 'a'); UPDATE users SET name = 'b' WHERE id = 50";
    let answer = cluster.query(both).await;
    assert_eq!(answer["results"].as_array().unwrap().len(), 2);
    let torn = "UPDATE users SET name = 'c' WHERE id = 50; INSERT INTO users (id, name) VALUES (50, 'twice')";
    let refused = cluster.try_query(torn).await.unwrap_err();
    assert_eq!((refused.status, refused.code()), (409, "23505"));
    assert_eq!(cluster.query("SELECT name FROM users WHERE id = 50").await["data"], json!([{ "name": "b" }]));
}

async fn exactly_once(cluster: &Cluster) {
    cluster.query("INSERT INTO users (id, score) VALUES (60, 0)").await;
    let body = json!({ "query": "UPDATE users SET score = score + 1 WHERE id = 60", "idempotency_key": "add-one" });
    for node in [1, 2, 3, 1] {
        let answer = cluster.post(node, "/query", &body).await.unwrap();
        assert_eq!(answer["rows_affected"], 1, "{answer}");
    }
    assert_eq!(cluster.query("SELECT score FROM users WHERE id = 60").await["data"], json!([{ "score": 1.0 }]));
    let other = json!({ "query": "UPDATE users SET score = 9 WHERE id = 60", "idempotency_key": "add-one" });
    assert_eq!(cluster.post(1, "/query", &other).await.unwrap_err().status, 409);
}

async fn several_shards(cluster: &Cluster) {
    cluster.query("CREATE TABLE parts (id INTEGER PRIMARY KEY, n INTEGER) SHARD BY (id)").await;
    let inserted = cluster.query("INSERT INTO parts (n) VALUES (1), (2), (3), (4), (5), (6), (7), (8)").await;
    assert_eq!(inserted["rows_affected"], 8, "{inserted}");
    let all = cluster.query("UPDATE parts SET n = n + 10").await;
    assert_eq!((&all["rows_affected"], all["shards"].as_array().unwrap().len()), (&json!(8), 3), "{all}");
    assert!(all["notice"].is_string(), "{all}");
    let moved = cluster.query("UPDATE parts SET id = id + 1000 WHERE n > 14").await;
    assert_eq!(moved["rows_affected"], 4, "{moved}");
    let refused =
        cluster.try_query("INSERT INTO parts VALUES (2001, 1), (2002, 2), (2003, 3), (1, 4)").await.unwrap_err();
    assert_eq!((refused.status, refused.code()), (409, "23505"), "{refused:?}");
    let found = cluster.query("SELECT count(*) AS c, sum(n) AS s, count(DISTINCT id) AS d FROM parts").await;
    assert_eq!(found["data"], json!([{ "c": 8, "s": 116, "d": 8 }]), "all or none");
}

async fn single_tables(cluster: &Cluster) {
    let made = cluster.query("CREATE TABLE notes (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT)").await;
    assert!(made["notice"].as_str().unwrap().contains("single"), "{made}");
    for text in ["a", "b", "c"] {
        cluster.query(&format!("INSERT INTO notes (text) VALUES ('{text}')")).await;
    }
    let changed = cluster.query("UPDATE notes SET text = text || '!'").await;
    assert_eq!(changed["rows_affected"], 3);
    let joined = "SELECT n.text, u.name FROM notes n LEFT JOIN users u ON u.id = n.id + 49 ORDER BY n.id";
    let rows = cluster.query(joined).await;
    assert_eq!(rows["data"][0], json!({ "text": "a!", "name": "b" }));
}

async fn streams(cluster: &Cluster) {
    let rows = cluster.rows("SELECT 1, 'x', NULL, 2.0, x'00ff'").await;
    assert_eq!(rows, [[json!(1), json!("x"), json!(null), json!(2.0), json!({ "base64": "AP8=" })]]);
    let count = cluster.query("SELECT count(*) AS n FROM users").await["data"][0]["n"].as_u64().unwrap();
    assert_eq!(cluster.rows("SELECT * FROM users").await.len() as u64, count);
}

async fn explained(cluster: &Cluster) {
    let keyed = cluster.query("EXPLAIN SELECT * FROM users WHERE id = 7").await["data"].to_string();
    let scattered = cluster.query("EXPLAIN SELECT count(*) FROM users WHERE score > 1").await["data"].to_string();
    assert!(keyed.contains("SELECT * FROM users WHERE id = 7") && !keyed.contains("finish"), "{keyed}");
    assert!(scattered.contains("score > 1"), "the pushed statement has the filter: {scattered}");
    assert!(scattered.to_lowercase().contains("finish"), "{scattered}");
}

async fn consistency(cluster: &Cluster) {
    let written = cluster.query("INSERT INTO users (id, name) VALUES (70, 'mine')").await;
    let token = written["token"].as_str().unwrap();
    for node in [1, 2, 3] {
        let body = json!({
            "query": "SELECT name FROM users WHERE id = 70", "consistency": "read_your_writes", "token": token
        });
        assert_eq!(cluster.post(node, "/query", &body).await.unwrap()["data"], json!([{ "name": "mine" }]));
    }
    let body = json!({ "query": "SELECT 1", "consistency": "whatever" });
    assert_eq!(cluster.post(1, "/query", &body).await.unwrap_err().status, 400);
}

async fn schema_changes(cluster: &Cluster) {
    cluster.query("CREATE INDEX by_name ON users (name)").await;
    cluster.query("ALTER TABLE users ADD COLUMN city TEXT DEFAULT 'Pune'").await;
    for node in [1, 2, 3] {
        let body = json!({ "query": "SELECT city FROM users WHERE id = 70" });
        assert_eq!(cluster.post(node, "/query", &body).await.unwrap()["data"], json!([{ "city": "Pune" }]));
    }
    assert_eq!(cluster.try_query("CREATE TABLE users (id INTEGER PRIMARY KEY)").await.unwrap_err().code(), "42P07");
    cluster.query("CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY)").await;
    let unique = cluster.try_query("CREATE UNIQUE INDEX u ON users (name)").await.unwrap_err();
    assert_eq!(unique.status, 400, "uniqueness without the key can't be checked across shards: {unique:?}");
    cluster.query("CREATE TABLE gone (id INTEGER PRIMARY KEY) SHARD BY (id)").await;
    cluster.query("DROP TABLE gone").await;
    assert_eq!(cluster.try_query("SELECT * FROM gone").await.unwrap_err().code(), "42P01");
}

async fn bulk(cluster: &Cluster) {
    cluster.query("CREATE TABLE items (id INT PRIMARY KEY, v TEXT NOT NULL) SHARD BY (id)").await;
    let rows: Vec<_> =
        (0..500).map(|id| if id == 13 { json!([null, "x"]) } else { json!([id, format!("v{id}")]) }).collect();
    let body = json!({ "columns": ["id", "v"], "rows": rows });
    for _ in 0..2 {
        let answer = cluster.post(2, "/tables/items/rows?batch_id=first", &body).await.unwrap();
        assert_eq!(
            (answer["inserted"].as_u64(), answer["rejected"].as_array().unwrap().len()),
            (Some(499), 1),
            "{answer}"
        );
        assert_eq!((&answer["rejected"][0]["row"], &answer["rejected"][0]["code"]), (&json!(13), &json!("23502")));
    }
    assert_eq!(cluster.query("SELECT count(*) AS n FROM items").await["data"][0]["n"], 499);
    let again = json!({ "columns": ["id", "v"], "rows": [[1, "other"], [1000, "new"], [1001, null]] });
    let answer = cluster.post(1, "/tables/items/rows", &again).await.unwrap();
    assert_eq!(answer["inserted"], 1, "{answer}");
    let codes: Vec<_> = answer["rejected"].as_array().unwrap().iter().map(|r| r["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["23505", "23502"]);
}

async fn documents(cluster: &Cluster) {
    let nodes = cluster.get("/cluster/list-nodes").await;
    assert_eq!(nodes["cluster_size"], 3);
    assert_eq!(nodes["nodes"][0]["status"], "running");
    let status = cluster.get("/cluster/status").await;
    assert_eq!((&status["replication_factor"], &status["hash_ring_initialized"]), (&json!(3), &json!(true)));
    assert_eq!(status["peer_health"].as_object().unwrap().len(), 2);
    let openapi = cluster.get("/openapi.json").await;
    assert!(openapi["paths"].get("/query").is_some());
    let metrics = cluster.http.get(format!("{}/metrics", cluster.url(1))).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("pleat_"), "{metrics}");
    let mut events = cluster.http.get(format!("{}/events", cluster.url(1))).send().await.unwrap();
    let first = events.chunk().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("ready"));
}

async fn command_line(cluster: &Cluster) {
    let (code, out, err) = cluster.cli(&["sql", "-c", "SELECT id, name FROM users WHERE id = 50", "--json"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("\"b\""), "{out}");
    let (code, _, err) = cluster.cli(&["sql", "-c", "SELECT * FROM nowhere"]);
    assert_eq!(code, 1);
    assert!(err.contains("nowhere"), "{err}");
    for command in [&["status"][..], &["shards"], &["ops"], &["ops", "list", "--json"]] {
        let (code, out, err) = cluster.cli(command);
        assert_eq!(code, 0, "{command:?}: {err}");
        assert!(!out.is_empty(), "{command:?}");
    }
}
