//! Views, over real shards.

use serde_json::json;

use crate::testing::{Client, Cluster};

async fn orders() -> (std::sync::Arc<Cluster>, Client) {
    let cluster = Cluster::new(3);
    let client = Client::new(&cluster);
    client.run("CREATE TABLE orders (buyer INTEGER, nr INTEGER, total REAL, status TEXT, PRIMARY KEY (buyer, nr)) SHARD BY (buyer)").await;
    for buyer in 1..=12 {
        client
            .run(&format!("INSERT INTO orders VALUES ({buyer}, 1, {buyer}.5, 'open'), ({buyer}, 2, 1.0, 'paid')"))
            .await;
    }
    client.run("CREATE VIEW open_orders(who, total) AS SELECT buyer, total FROM orders WHERE status = 'open'").await;
    (cluster, client)
}

#[tokio::test]
async fn a_view_is_read_on_one_shard_or_on_all() {
    let (_cluster, client) = orders().await;
    let one = client.run("SELECT * FROM open_orders WHERE who = 7").await;
    assert_eq!((&one["data"], one["shard"].is_string()), (&json!([{"who": 7, "total": 7.5}]), true), "{one}");
    let all = client.run("SELECT count(*) AS n, sum(total) AS s FROM open_orders").await;
    assert_eq!((&all["data"], all["shards"].as_array().unwrap().len()), (&json!([{"n": 12, "s": 84.0}]), 3), "{all}");
    let explained = client.run("EXPLAIN SELECT * FROM open_orders AS o WHERE o.who = 7").await.to_string();
    assert!(explained.contains("SELECT buyer, total FROM orders WHERE status = 'open'"), "{explained}");
    client.run("INSERT INTO orders SELECT who, 3, total, 'copied' FROM open_orders WHERE total > 10").await;
    assert_eq!(client.rows("SELECT count(*) FROM orders WHERE status = 'copied'").await, json!([[3]]));
}

#[tokio::test]
async fn views_are_listed_and_follow_their_tables() {
    let (_cluster, client) = orders().await;
    let notice = client.run("CREATE VIEW early AS SELECT * FROM later").await["notice"].to_string();
    assert!(notice.contains("no such table: later"), "{notice}");
    let view = client.get("/tables/OPEN_ORDERS").await.json;
    assert_eq!((&view["kind"], &view["rows"], &view["shards"]), (&json!("view"), &json!(null), &json!([])));
    let columns: Vec<_> = view["columns"].as_array().unwrap().iter().map(|one| (&one["name"], &one["type"])).collect();
    assert_eq!(columns, [(&json!("who"), &json!("INTEGER")), (&json!("total"), &json!("REAL"))]);
    let names: Vec<_> =
        client.get("/tables").await.json["tables"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["orders", "early", "open_orders"]);
    // A broken view stands in the way of renames, as in SQLite.
    let refused = client.query(json!({"query": "ALTER TABLE orders RENAME COLUMN total TO amount"})).await;
    assert!(refused.status == 400 && refused.text.contains("error in view early"), "{}", refused.text);
    client.run("DROP VIEW early").await;
    client.run("ALTER TABLE orders RENAME COLUMN total TO amount").await;
    client.run("ALTER TABLE orders RENAME TO \"the orders\"").await;
    assert_eq!(client.rows("SELECT total FROM open_orders WHERE who = 7").await, json!([[7.5]]));
    let sql = client.get("/tables/open_orders").await.json["sql"].to_string();
    assert!(sql.contains("amount") && sql.contains("the orders"), "{sql}");
    let refused = client.query(json!({"query": "ALTER TABLE \"the orders\" DROP COLUMN status"})).await;
    assert!(refused.text.contains("error in view open_orders"), "{}", refused.text);
    client.run("DROP TABLE \"the orders\"").await;
    assert_eq!(client.refused("SELECT * FROM open_orders").await.1, "42P01");
}

#[tokio::test]
async fn a_view_is_not_written_and_its_name_is_taken() {
    let (_cluster, client) = orders().await;
    for (sql, answer) in [
        ("INSERT INTO open_orders VALUES (1, 2)", (400, "42809")),
        ("UPDATE open_orders SET total = 1 WHERE who = 1", (400, "42809")),
        ("DELETE FROM open_orders", (400, "42809")),
        ("DROP TABLE open_orders", (400, "42809")),
        ("CREATE TABLE open_orders (a)", (409, "42P07")),
        ("CREATE VIEW orders AS SELECT 1", (409, "42P07")),
        ("CREATE TEMP VIEW v AS SELECT 1", (400, "0A000")),
        ("CREATE VIEW v AS SELECT * FRM orders", (400, "42601")),
    ] {
        let refused = client.refused(sql).await;
        assert_eq!((refused.0, refused.1.as_str()), answer, "{sql}");
    }
    let rows = client.post("/tables/open_orders/rows", "application/x-ndjson", "{\"who\": 1}").await;
    assert_eq!(rows.status, 404, "{}", rows.text);
    client.run("DROP VIEW open_orders").await;
    assert_eq!(client.refused("SELECT * FROM open_orders").await.1, "42P01");
    client.run("CREATE TABLE open_orders (a INTEGER PRIMARY KEY) REFERENCE").await;
}
