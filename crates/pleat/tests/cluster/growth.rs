//! A small cluster grows: one shard; more than 100 rows; a second shard; both queried; a third shard. Its
//! configuration also lists MySQL servers as shards, which are refused by line, and is used without them.

use serde_json::{Value, json};

use crate::harness::{Cluster, Options};

const CONFIGURATION: &str = r#"{
  "shards": {
    "shard-1": "testuser:testpass@tcp(127.0.0.1:3306)/shard1_db",
    "shard-2": "testuser:testpass@tcp(127.0.0.1:3307)/shard2_db",
    "shard-3": "testuser:testpass@tcp(127.0.0.1:3308)/shard3_db"
  },
  "table_shard_keys": {
    "users": "user_id",
    "orders": "customer_id",
    "products": "product_id"
  },
  "scaling_thresholds": {
    "cpu_threshold_percent": 70,
    "total_entry_threshold_per_shard": 100
  },
  "scaling_strategy": "hot",
  "monitoring_interval_seconds": 10
}"#;

#[test]
fn mysql_shards_are_refused_by_line_and_without_showing_the_password() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    std::fs::write(&file, CONFIGURATION).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_pleat"))
        .args(["up", "--config"])
        .arg(&file)
        .arg("--data-dir")
        .arg(dir.path().join("data"))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("not yet") && error.contains("line 3"), "{error}");
    assert!(!error.contains("testpass"), "{error}");
    assert!(!dir.path().join("data").exists(), "nothing was made");
}

#[tokio::test]
async fn one_shard_becomes_three_as_rows_come_in() {
    let mut config: Value = serde_json::from_str(CONFIGURATION).unwrap();
    config.as_object_mut().unwrap().remove("shards");
    // By itself the second split would come five minutes after the first.
    config["max_actions"] = json!(10);
    let cluster = Cluster::start(Options { config, ..Options::default() }).await;

    for create in [
        "CREATE TABLE users (user_id INTEGER PRIMARY KEY, name TEXT)",
        "CREATE TABLE orders (order_id INTEGER, customer_id INTEGER, total REAL, PRIMARY KEY (customer_id, order_id))",
        "CREATE TABLE products (product_id INTEGER PRIMARY KEY, name TEXT)",
    ] {
        cluster.query(create).await;
    }
    let tables = cluster.get("/tables").await;
    let kinds: Vec<_> = tables["tables"].as_array().unwrap().iter().map(|table| &table["kind"]).collect();
    assert_eq!(kinds, ["sharded"; 3], "table_shard_keys of the configuration name their keys");

    // More than 100 rows on the one shard.
    for id in 0..60 {
        cluster.query(&format!("INSERT INTO users VALUES ({id}, 'user {id}')")).await;
        cluster.query(&format!("INSERT INTO orders VALUES ({id}, {}, {id}.5)", id % 20)).await;
    }
    assert_eq!(cluster.query("SELECT count(*) AS n FROM users").await["data"][0]["n"], 60);
    cluster.wait_for_shards(2).await;
    cluster.wait_for_rows(120).await;

    // Both are queried, one and both at a time.
    let one = cluster.query("SELECT * FROM users WHERE user_id = 17").await;
    assert_eq!(one["data"], json!([{ "user_id": 17, "name": "user 17" }]));
    assert!(one["shard"].as_str().unwrap().starts_with("shard-"), "{one}");
    assert!(one.get("shards").is_none(), "{one}");
    let all = cluster.query("SELECT COUNT(*) FROM users").await;
    assert_eq!(all["shards"], json!(["shard-1", "shard-2"]));
    assert_eq!(all["data"], json!([{ "COUNT(*)": 60 }]));
    let mut used = std::collections::BTreeSet::new();
    for id in 0..60 {
        let row = cluster.query(&format!("SELECT name FROM users WHERE user_id = {id}")).await;
        assert_eq!(row["data"][0]["name"], format!("user {id}"));
        used.insert(row["shard"].as_str().unwrap().to_owned());
    }
    assert_eq!(used.len(), 2, "keyed reads go to the shard that owns the key");

    // The next shard over the threshold is split as well.
    for id in 60..180 {
        cluster.query(&format!("INSERT INTO users VALUES ({id}, 'user {id}')")).await;
    }
    let shards = cluster.wait_for("/shards", "a third shard", |shards| shards.as_array().unwrap().len() >= 3).await;
    assert!(shards.as_array().unwrap().len() >= 3);
    cluster.wait_until_calm().await;
    assert_eq!(
        cluster.query("SELECT count(*) AS n, sum(user_id) AS s FROM users").await["data"],
        json!([{ "n": 180, "s": 180 * 179 / 2 }])
    );

    // It says why.
    let operations = cluster.get("/operations?phase=successful").await;
    let split = operations["operations"].as_array().unwrap().iter().find(|o| o["kind"] == "split").unwrap();
    assert!(split["reason"].as_str().unwrap().contains("100"), "{split}");
    let decision = cluster.get(&format!("/decisions/{}", split["cause"]["id"].as_str().unwrap())).await;
    let measured = decision["measurements"].as_array().unwrap();
    assert!(measured.iter().any(|m| m["exceeded"] == true && m["threshold"] == 100.0), "{decision}");
    let (code, story, _) = cluster.cli(&["why", decision["id"].as_str().unwrap()]);
    assert_eq!(code, 0);
    assert!(story.contains("100"), "{story}");

    // The coordinator's address answers as well.
    let shards = crate::harness::answer(cluster.http.get(format!("{}/shards", cluster.coordinator_url())).send().await);
    for shard in shards.await.unwrap().as_array().unwrap() {
        for field in [
            "shard_id",
            "cpu_percent",
            "memory_percent",
            "disk_percent",
            "total_entries",
            "connection_count",
            "queries_per_second",
            "database_size_bytes",
            "table_counts",
            "status",
            "last_updated",
        ] {
            assert!(!shard[field].is_null(), "{field} of {shard}");
        }
    }
    let health = crate::harness::answer(cluster.http.get(format!("{}/health", cluster.coordinator_url())).send().await);
    assert_eq!(health.await.unwrap()["status"], "healthy");
}
