//! Triggers, over real shards.

use serde_json::json;

use crate::testing::{Client, Cluster};

async fn orders() -> (std::sync::Arc<Cluster>, Client) {
    let cluster = Cluster::new(3);
    let client = Client::new(&cluster);
    for sql in [
        "CREATE TABLE orders (buyer INTEGER, nr INTEGER, total INTEGER, PRIMARY KEY (buyer, nr)) SHARD BY (buyer)",
        "CREATE TABLE sums (buyer INTEGER PRIMARY KEY, n INTEGER, total INTEGER) SHARD BY (buyer)",
        "CREATE TRIGGER came AFTER INSERT ON orders BEGIN \
         INSERT INTO sums VALUES (NEW.buyer, 1, NEW.total) \
         ON CONFLICT (buyer) DO UPDATE SET n = n + 1, total = total + excluded.total; END",
        "CREATE TRIGGER went AFTER DELETE ON orders BEGIN \
         UPDATE sums SET n = n - 1, total = total - OLD.total WHERE buyer = OLD.buyer; END",
        "CREATE TRIGGER guard BEFORE INSERT ON orders WHEN NEW.total < 0 BEGIN SELECT RAISE(ABORT, 'below nothing'); END",
    ] {
        client.run(sql).await;
    }
    for buyer in 1..=12 {
        client.run(&format!("INSERT INTO orders VALUES ({buyer}, 1, {buyer}), ({buyer}, 2, 1)")).await;
    }
    (cluster, client)
}

const SUMS: &str = "SELECT sum(n), sum(total) FROM sums";

#[tokio::test]
async fn triggers_fire_on_one_shard_on_all_and_within_transactions() {
    let (_cluster, client) = orders().await;
    assert_eq!(client.rows(SUMS).await, json!([[24, 90]]));
    let all = client.run("DELETE FROM orders WHERE nr = 2").await;
    assert_eq!((&all["rows_affected"], client.rows(SUMS).await), (&json!(12), json!([[12, 78]])), "{all}");
    let many = client.run("INSERT INTO orders VALUES (1, 3, 1), (2, 3, 1), (3, 3, 1), (50, 3, 1)").await;
    assert_eq!((&many["rows_affected"], client.rows(SUMS).await), (&json!(4), json!([[16, 82]])), "{many}");
    let selected = client.run("INSERT INTO orders SELECT buyer + 100, nr, total FROM orders WHERE nr = 3").await;
    assert_eq!((&selected["rows_affected"], client.rows(SUMS).await), (&json!(4), json!([[20, 86]])), "{selected}");
    let refused = client.query(json!({"query": "INSERT INTO orders VALUES (1, 9, 1), (2, 9, -1), (3, 9, 1)"})).await;
    assert!(refused.text.contains("P0001") && refused.text.contains("below nothing"), "{}", refused.text);
    assert_eq!(client.rows(SUMS).await, json!([[20, 86]]));
}

#[tokio::test]
async fn a_bulk_load_fires_triggers() {
    let (_cluster, client) = orders().await;
    let rows = "{\"buyer\": 70, \"nr\": 1, \"total\": 5}\n{\"buyer\": 71, \"nr\": 1, \"total\": -5}\n";
    let loaded = client.post("/tables/orders/rows", "application/x-ndjson", rows).await;
    assert_eq!(
        (loaded.json["inserted"].as_u64(), loaded.json["rejected"].to_string().contains("P0001")),
        (Some(1), true),
        "{}",
        loaded.text
    );
    assert_eq!(client.rows(SUMS).await, json!([[25, 95]]));
}

#[tokio::test]
async fn triggers_are_listed_and_dropped() {
    let (_cluster, client) = orders().await;
    let table = client.get("/tables/orders").await.json;
    let names: Vec<_> = table["triggers"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["came", "went", "guard"]);
    let sql = table["triggers"][2]["sql"].as_str().unwrap().to_owned();
    assert!(sql.starts_with("CREATE TRIGGER guard BEFORE INSERT ON orders WHEN") && sql.ends_with("; END"), "{sql}");
    client.run("DROP TRIGGER Guard").await;
    client.run("INSERT INTO orders VALUES (1, 9, -1), (2, 9, -1)").await;
    client.run("DROP TRIGGER came;").await;
    client.run("DROP TRIGGER went").await;
    client.run("DELETE FROM orders").await;
    assert_eq!(client.rows(SUMS).await, json!([[26, 88]]));
    assert_eq!(client.get("/tables/orders").await.json["triggers"], json!([]));
    client.run("REPLACE INTO orders VALUES (1, 1, 1)").await;
    client.run("UPDATE orders SET buyer = 99").await;
    client.run("CREATE TRIGGER again AFTER INSERT ON orders BEGIN DELETE FROM sums WHERE buyer = NEW.buyer; END").await;
    client.run("DROP TABLE orders").await;
    client.run("DROP TABLE sums").await;
    client.run("CREATE TABLE orders (buyer INTEGER PRIMARY KEY) SHARD BY (buyer)").await;
    client.run("CREATE TRIGGER again AFTER INSERT ON orders BEGIN SELECT 1; END").await;
}

#[tokio::test]
async fn what_would_not_be_as_in_sqlite_is_refused() {
    let (_cluster, client) = orders().await;
    for (sql, answer) in [
        ("CREATE TRIGGER x AFTER INSERT ON orders BEGIN UPDATE sums SET n = 0; END", (400, "0A000")),
        ("CREATE TRIGGER x AFTER INSERT ON sums BEGIN DELETE FROM orders WHERE buyer = NEW.buyer; END", (400, "0A000")),
        ("CREATE TEMP TRIGGER x AFTER INSERT ON sums BEGIN SELECT 1; END", (400, "0A000")),
        ("CREATE TRIGGER came AFTER INSERT ON sums BEGIN SELECT 1; END", (409, "42P07")),
        ("DROP TRIGGER nope", (400, "42704")),
        ("REPLACE INTO orders VALUES (1, 1, 1)", (400, "0A000")),
        ("UPDATE orders SET buyer = 99 WHERE buyer = 1", (400, "0A000")),
        ("DROP TABLE sums", (400, "0A000")),
        ("ALTER TABLE orders RENAME TO o", (400, "0A000")),
    ] {
        let refused = client.refused(sql).await;
        assert_eq!((refused.0, refused.1.as_str()), answer, "{sql}");
    }
}
