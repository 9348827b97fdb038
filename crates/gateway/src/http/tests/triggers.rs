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
        ("SELECT pleat_firing('came', 1)", (400, "0A000")),
        ("UPDATE sums SET n = pleat_firing('came', 1) WHERE buyer = 1", (400, "0A000")),
        ("CREATE TEMP TRIGGER x AFTER INSERT ON sums BEGIN SELECT 1; END", (400, "0A000")),
        ("CREATE TRIGGER came AFTER INSERT ON sums BEGIN SELECT 1; END", (409, "42P07")),
        ("DROP TRIGGER nope", (400, "42704")),
        ("REPLACE INTO orders VALUES (1, 1, 1)", (400, "0A000")),
        ("UPDATE orders SET buyer = 99 WHERE buyer = 1", (400, "0A000")),
        ("DROP TABLE sums", (400, "0A000")),
        ("ALTER TABLE sums DROP COLUMN n", (400, "42703")),
        ("ALTER TABLE sums SINGLE", (400, "0A000")),
    ] {
        let refused = client.refused(sql).await;
        assert_eq!((refused.0, refused.1.as_str()), answer, "{sql}");
    }
}

#[tokio::test]
async fn a_trigger_may_change_its_own_row_and_says_new_names() {
    let (cluster, client) = orders().await;
    let client = std::sync::Arc::new(client);
    for sql in [
        "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT, changed INTEGER DEFAULT 0) SHARD BY (id)",
        "CREATE TRIGGER touched AFTER UPDATE ON notes BEGIN UPDATE notes SET changed = changed + 1 WHERE rowid = NEW.rowid; END",
        "CREATE TRIGGER made AFTER INSERT ON notes BEGIN UPDATE notes SET text = NEW.text || '!' WHERE id = NEW.id; END",
    ] {
        client.run(sql).await;
    }
    let said = "SELECT text, changed, count(*) FROM notes GROUP BY 1, 2 ORDER BY 1, 2";
    client.run("INSERT INTO notes (text) VALUES ('a'), ('a'), ('a'), ('a')").await;
    assert_eq!(client.rows(said).await, json!([["a!", 1, 4]]), "made fires touched");
    let rows = "{\"id\": 901, \"text\": \"b\"}\n{\"id\": 902, \"text\": \"b\"}\n{\"id\": 903, \"text\": \"b\"}\n";
    assert_eq!(client.post("/tables/notes/rows", "application/x-ndjson", rows).await.json["inserted"], 3);
    assert_eq!(client.rows(said).await, json!([["a!", 1, 4], ["b!", 1, 3]]));
    let all = client.run("UPDATE notes SET text = 'c' WHERE text = 'b!'").await;
    assert_eq!((&all["rows_affected"], client.rows(said).await), (&json!(3), json!([["a!", 1, 4], ["c", 2, 3]])));
    let session = super::sessions::Session::open(&client).await;
    session
        .all(&["BEGIN", "UPDATE notes SET text = 'd'", "UPDATE notes SET text = 'e' WHERE id = 901", "COMMIT"])
        .await;
    assert_eq!(client.rows(said).await, json!([["d", 2, 4], ["d", 3, 2], ["e", 4, 1]]));
    // A new shard has the trigger too, and the same guard.
    client.run("ALTER TABLE notes RENAME COLUMN text TO \"the text\"").await;
    client.run("ALTER TABLE notes RENAME TO \"my notes\"").await;
    let of_one = cluster.partitions_of(pleat_cluster::ShardId(1));
    cluster.split(pleat_cluster::ShardId(1), &of_one[..of_one.len() / 2]);
    client.run("UPDATE \"my notes\" SET \"the text\" = 'f'").await;
    assert_eq!(
        client.rows("SELECT changed, count(*) FROM \"my notes\" GROUP BY 1 ORDER BY 1").await,
        json!([[3, 4], [4, 2], [5, 1]])
    );
    let sql = client.get("/tables/my%20notes").await.json["triggers"][0]["sql"].to_string();
    assert!(sql.contains("ON \\\"my notes\\\" BEGIN UPDATE") && !sql.contains("pleat"), "{sql}");
}
