//! `ALTER TABLE … SHARD BY`, `… REFERENCE`, `… SINGLE`, as clients meet it.

use std::sync::Arc;

use pleat_cluster::OperationId;
use serde_json::{Value as Json, json};

use crate::testing::{Client, Cluster, Placing};

const ALL: &str = "SELECT a, b, v FROM \"ünits x\" ORDER BY a, b";

async fn stocked(placement: &str) -> (Arc<Cluster>, Client) {
    let cluster = Cluster::new(3);
    let client = Client::new(&cluster);
    client.run(&format!("CREATE TABLE \"ünits x\" (a INTEGER, b TEXT, v, PRIMARY KEY (a, b)) {placement}")).await;
    client.run("CREATE UNIQUE INDEX \"by v\" ON \"ünits x\" (v, a, b)").await;
    for row in 0..40 {
        let insert = format!("INSERT INTO \"ünits x\" VALUES ({row}, 'b{}', {row})", row % 5);
        client.run(&insert).await;
    }
    client.run("INSERT INTO \"ünits x\" VALUES (-9223372036854775808, '', NULL), (9223372036854775807, 'ß\u{1f642}', x'00')").await;
    (cluster, client)
}

#[tokio::test]
async fn a_table_answers_the_same_wherever_its_rows_are() {
    let (_, client) = stocked("SINGLE").await;
    client.run("CREATE VIEW seen AS SELECT b, count(*) AS n FROM \"ünits x\" GROUP BY b").await;
    let view = "SELECT n FROM seen WHERE b = 'b3'";
    let (rows, mut expected) = (client.rows(ALL).await, 42);
    assert_eq!(rows.as_array().unwrap().len(), expected);
    let mut rows = rows;
    for (round, clause) in
        ["SHARD BY (a)", "SHARD BY (B)", "REFERENCE", "SHARD BY (b)", "SINGLE", "REFERENCE", "SINGLE"]
            .iter()
            .enumerate()
    {
        let sql = format!("ALTER TABLE \"ünits x\" {clause}");
        assert!(client.run(&sql).await["operation"].is_string(), "{clause}");
        assert_eq!(client.rows(ALL).await, rows, "{clause}");
        assert_eq!(client.rows(view).await, json!([[8]]), "{clause}");
        let one =
            client.rows("SELECT count(*) FROM \"ünits x\" WHERE a = 9223372036854775807 AND b = 'ß\u{1f642}'").await;
        assert_eq!(one, json!([[1]]), "{clause}");
        // Again: nothing is done, at once.
        let again = client.run(&sql).await;
        assert!(again["notice"].as_str().unwrap().contains("already: nothing to do"), "{again}");
        assert!(again["operation"].is_null(), "{again}");
        // Writes go where the rows are.
        client.run(&format!("INSERT INTO \"ünits x\" VALUES ({round}, 'new', 'n{round}')")).await;
        client.run("UPDATE \"ünits x\" SET v = v WHERE v IS NULL").await;
        expected += 1;
        rows = client.rows(ALL).await;
        assert_eq!(rows.as_array().unwrap().len(), expected, "{clause}");
    }
}

async fn keyed(client: &Client, sql: &str, key: &str) -> Json {
    let answer = client.query(json!({ "query": sql, "idempotency_key": key })).await;
    assert_eq!(answer.status, 200, "{sql}: {}", answer.text);
    answer.json
}

#[tokio::test]
async fn a_request_that_is_repeated_after_the_change_is_not_done_again() {
    let count = "UPDATE \"ünits x\" SET v = v + 1 WHERE a = 3 AND b = 'n'";
    let both = "UPDATE \"ünits x\" SET v = v + 1 WHERE b = 'n'";
    for (from, to) in [
        ("SINGLE", "SHARD BY (b)"),
        ("SHARD BY (a)", "SHARD BY (b)"),
        ("SHARD BY (a)", "REFERENCE"),
        ("REFERENCE", "SHARD BY (a)"),
        ("REFERENCE", "SINGLE"),
        ("SHARD BY (b)", "SINGLE"),
    ] {
        let (_, client) = stocked(from).await;
        client.run("INSERT INTO \"ünits x\" VALUES (3, 'n', 1), (4, 'n', 1), (5, 'n', 1)").await;
        keyed(&client, count, "one").await;
        keyed(&client, both, "many").await;
        client.run(&format!("ALTER TABLE \"ünits x\" {to}")).await;
        for (sql, key) in [(count, "one"), (both, "many")] {
            let again = keyed(&client, sql, key).await;
            assert_eq!(again["replayed"], true, "{from} to {to}, {key}: {again}");
        }
        let rows = client.rows("SELECT v FROM \"ünits x\" WHERE b = 'n' ORDER BY a").await;
        assert_eq!(rows, json!([[3], [2], [2]]), "{from} to {to}");
    }
}

/// At every step of it a client reads what is there, and writes or waits.
#[tokio::test]
async fn clients_of_a_node_that_lags_behind_are_never_answered_by_the_wrong_placement() {
    for (from, to) in [("SINGLE", "SHARD BY (a)"), ("SHARD BY (a)", "SHARD BY (b)"), ("REFERENCE", "SHARD BY (b)")] {
        let (cluster, client) = stocked(from).await;
        let client = Arc::new(client);
        let before = client.rows(ALL).await;
        cluster.stall(true);
        let asked = {
            let client = client.clone();
            let sql = format!("ALTER TABLE \"ünits x\" {to}");
            tokio::spawn(async move { client.run(&sql).await })
        };
        let operation = loop {
            let listed = client.get("/operations?phase=pending").await.json;
            match listed["operations"][0]["id"].as_str() {
                Some(id) => break OperationId(id.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()),
                None => tokio::task::yield_now().await,
            }
        };
        let point = "SELECT v FROM \"ünits x\" WHERE a = 9223372036854775807 AND b = 'ß\u{1f642}'";
        let there = client.rows(point).await;
        let placing = Placing::begin(&cluster, operation);
        assert_eq!((client.rows(ALL).await, client.rows(point).await), (before.clone(), there.clone()));
        placing.fence();
        assert_eq!((client.rows(ALL).await, client.rows(point).await), (before.clone(), there.clone()));
        // Writes wait; then they are refused so that they may be sent again.
        let write = "UPDATE \"ünits x\" SET v = 'late' WHERE a = 9223372036854775807 AND b = 'ß\u{1f642}'";
        let waited = client.query(json!({ "query": write, "timeout_ms": 300 })).await;
        assert_eq!(
            (&waited.json["code"], &waited.json["retryable"]),
            (&json!("40001"), &json!(true)),
            "{}",
            waited.text
        );
        // This node hears of nothing while everything changes: its statements find that out.
        cluster.hold_back(true);
        placing.commit();
        assert_eq!(client.rows(point).await, there);
        placing.open();
        let hears = {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                cluster.hold_back(false);
            })
        };
        assert_eq!(client.rows(point).await, there, "{from} to {to}");
        hears.await.unwrap();
        assert_eq!(client.rows(ALL).await, before);
        client.run(write).await;
        assert_eq!(client.rows(point).await, json!([["late"]]));
        cluster.stall(false);
        asked.await.unwrap();
    }
}

/// What AUTOINCREMENT promises: not even the ids of rows that are gone.
#[tokio::test]
async fn an_autoincrement_table_goes_on_counting_when_it_is_sharded() {
    for key in ["id", "owner"] {
        let cluster = Cluster::new(3);
        let client = Client::new(&cluster);
        client.run("CREATE TABLE notes (id INTEGER PRIMARY KEY AUTOINCREMENT, owner INTEGER)").await;
        client.run("INSERT INTO notes (owner) VALUES (1), (2), (3)").await;
        client.run("INSERT INTO notes VALUES (70, 4); DELETE FROM notes WHERE id > 2").await;
        client.run(&format!("ALTER TABLE notes SHARD BY ({key})")).await;
        client.run("INSERT INTO notes (owner) VALUES (5), (6), (7), (8), (9)").await;
        let found = client.rows("SELECT min(id) > 70, count(*) FROM notes WHERE owner >= 5").await;
        assert_eq!(found, json!([[1, 5]]), "{key}");
        let refused = client.query(json!({ "query": "ALTER TABLE notes SINGLE" })).await;
        assert_eq!(refused.json["code"], "0A000", "{}", refused.text);
    }
}

/// Ids that Pleat gave, that SQLite gave, and that users gave, and blocks of ids that a node still holds.
#[tokio::test]
async fn no_id_is_given_twice_wherever_the_rows_have_been() {
    let cluster = Cluster::new(3);
    let client = Client::new(&cluster);
    client.run("CREATE TABLE notes (id INTEGER PRIMARY KEY, owner INTEGER, v) SHARD BY (id)").await;
    let insert = "INSERT INTO notes (owner, v) VALUES (1, 0), (2, 0), (3, 0), (4, 0), (5, 0)";
    client.run(insert).await;
    client.run("ALTER TABLE notes SINGLE").await;
    client.run(insert).await;
    client.run("INSERT INTO notes VALUES (20, 7, 0)").await;
    keyed(&client, "INSERT INTO notes (owner, v) VALUES (8, 0)", "eight").await;
    client.run("ALTER TABLE notes SHARD BY (owner)").await;
    client.run(insert).await;
    let again = keyed(&client, "INSERT INTO notes (owner, v) VALUES (8, 0)", "eight").await;
    assert_eq!(again["replayed"], true, "{again}");
    keyed(&client, insert, "many").await;
    keyed(&client, insert, "many").await;
    assert_eq!(client.rows("SELECT count(*), count(DISTINCT id), max(owner) FROM notes").await, json!([[22, 22, 8]]));
    // From here on two shards would capture changes of one row.
    let refused = client.query(json!({ "query": "ALTER TABLE notes SINGLE" })).await;
    assert_eq!(refused.json["code"], "0A000", "{}", refused.text);
    assert!(refused.json["hint"].as_str().unwrap().contains("INSERT … SELECT"), "{}", refused.text);
}
