//! `POST /tables/{table}/rows`.

use pleat_cluster::{PartitionId, ShardId};
use serde_json::{Value as Json, json};

use crate::backend::Backend as _;
use crate::testing::{Client, Cluster, Fault, PARTITIONS};

const NDJSON: &str = "application/x-ndjson";

async fn items(shards: u32) -> (std::sync::Arc<Cluster>, Client) {
    let cluster = Cluster::new(shards);
    let client = Client::new(&cluster);
    // INT, so that it is no rowid and Pleat gives no ids.
    client.run("CREATE TABLE items (id INT PRIMARY KEY, name TEXT NOT NULL CHECK (name <> 'bad')) SHARD BY (id)").await;
    (cluster, client)
}

fn lines(range: std::ops::Range<i64>) -> String {
    range.map(|id| format!("[{id},\"item {id}\"]\n")).collect()
}

fn rejected(answer: &Json) -> Vec<(u64, String)> {
    let rows = answer["rejected"].as_array().unwrap().iter();
    rows.map(|row| (row["row"].as_u64().unwrap(), row["code"].as_str().unwrap().to_owned())).collect()
}

#[tokio::test]
async fn rows_are_split_by_shard_and_bad_ones_are_named() {
    let (_cluster, client) = items(2).await;
    let body = "[1,\"a\"]\n[null,\"b\"]\n[2,null]\n[\"x\",\"c\"]\n{oops\n[3,\"bad\"]\n[1,\"again\"]\n[4,\"d\"]\n[5]\n[6,\"e\"]\n";
    let answer = client.post("/tables/items/rows", NDJSON, body).await;
    assert_eq!((answer.status, &answer.json["inserted"]), (200, &json!(3)), "{}", answer.text);
    let codes: Vec<_> = rejected(&answer.json);
    let rows: Vec<_> = codes.iter().map(|(row, _)| *row).collect();
    assert_eq!(rows, [1, 2, 3, 4, 5, 6, 8]);
    assert_eq!(codes[0].1, "23502");
    assert_eq!(codes[3].1, "bad_json");
    assert_eq!(codes[5].1, "23505");
    assert_eq!(client.rows("SELECT id FROM items ORDER BY id").await, json!([[1], [4], [6]]));
}

#[tokio::test]
async fn a_batch_is_done_once_also_after_its_rows_moved() {
    let (cluster, client) = items(1).await;
    let path = "/tables/items/rows?batch_id=b1";
    let body = lines(0..100) + "[null,\"x\"]\n[5,\"twice\"]\n";
    let first = client.post(path, NDJSON, body.clone()).await;
    assert_eq!((&first.json["inserted"], &first.json["replayed"]), (&json!(100), &json!(false)), "{}", first.text);
    cluster.split(ShardId(1), &(0..PARTITIONS / 2).map(PartitionId).collect::<Vec<_>>());
    let again = client.post(path, NDJSON, body).await;
    assert_eq!((&again.json["inserted"], &again.json["replayed"]), (&json!(100), &json!(true)), "{}", again.text);
    assert_eq!(rejected(&again.json), rejected(&first.json));
    assert_eq!(client.rows("SELECT count(*) FROM items").await, json!([[100]]));
    let other = client.post(path, NDJSON, lines(200..300)).await;
    assert_eq!((other.status, other.json["code"].as_str()), (409, Some("idempotency_conflict")), "{}", other.text);
}

#[tokio::test]
async fn a_batch_that_was_cut_short_is_finished_by_sending_it_again() {
    let (cluster, client) = items(2).await;
    let body = lines(0..200);
    // One shard does its part and can't say so, the other does nothing.
    cluster.fail(&[Fault::AnswerLost, Fault::NoLeader]);
    let cut = client.post("/tables/items/rows?batch_id=b1", NDJSON, body.clone()).await;
    assert!(matches!(cut.status, 503 | 504), "{}", cut.text);
    assert_eq!(cut.json["retryable"], true, "{}", cut.text);
    assert!(cut.json["inserted"].as_u64().unwrap() < 200);
    // Between the two attempts half of each part moves to another shard.
    for shard in [ShardId(1), ShardId(2)] {
        let owned = cluster.catalog().partitions_of(shard);
        cluster.split(shard, &owned[..owned.len() / 2]);
    }
    let again = client.post("/tables/items/rows?batch_id=b1", NDJSON, body).await;
    assert_eq!((again.status, &again.json["inserted"]), (200, &json!(200)), "{}", again.text);
    assert_eq!(client.rows("SELECT count(*), sum(id) FROM items").await, json!([[200, 19_900]]));
    cluster.fail(&[Fault::NoLeader]);
    let nameless = client.post("/tables/items/rows", NDJSON, lines(300..500)).await;
    assert_eq!(nameless.json["retryable"], false, "some rows are in: {}", nameless.text);
}

#[tokio::test]
async fn a_router_that_is_behind_routes_the_pieces_again() {
    let (cluster, client) = items(1).await;
    cluster.hold_back(true);
    cluster.split(ShardId(1), &(0..PARTITIONS / 2).map(PartitionId).collect::<Vec<_>>());
    let answer = client.post("/tables/items/rows", NDJSON, lines(0..300)).await;
    assert_eq!((answer.status, &answer.json["inserted"]), (200, &json!(300)), "{}", answer.text);
    assert_eq!(answer.json["shards"], json!(["shard-1", "shard-2"]));
    assert_eq!(client.rows("SELECT count(*) FROM items").await, json!([[300]]));
}

#[tokio::test]
async fn reference_tables_keep_the_good_rows_too() {
    let (_cluster, client) = items(2).await;
    client.run("CREATE TABLE colours (code TEXT PRIMARY KEY, name TEXT NOT NULL) REFERENCE").await;
    let body = json!({"columns": ["code", "name"], "rows": [["r", "red"], ["x", null], ["g", "green"], ["r", "again"], ["b"]]});
    let path = "/tables/colours/rows?batch_id=c1";
    let first = client.post(path, "application/json", body.to_string()).await;
    assert_eq!((first.status, &first.json["inserted"]), (200, &json!(2)), "{}", first.text);
    let codes = rejected(&first.json);
    assert_eq!(codes.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [1, 3, 4]);
    assert_eq!(first.json["shards"], json!(["shard-1", "shard-2"]));
    let again = client.post(path, "application/json", body.to_string()).await;
    assert_eq!((&again.json["inserted"], rejected(&again.json)), (&json!(2), codes), "{}", again.text);
    assert_eq!(again.json["replayed"], true);
    assert_eq!(client.rows("SELECT code FROM colours ORDER BY 1").await, json!([["g"], ["r"]]));
}

#[tokio::test]
async fn single_tables_take_rows_too() {
    let (_cluster, client) = items(2).await;
    client.run("CREATE TABLE notes (id INTEGER PRIMARY KEY, a TEXT, b TEXT DEFAULT 'none')").await;
    let answer = client.post("/tables/NOTES/rows", NDJSON, "{\"a\":\"x\"}\n{\"a\":\"y\"}\n").await;
    assert_eq!((answer.status, &answer.json["inserted"]), (200, &json!(2)), "{}", answer.text);
    assert_eq!(client.rows("SELECT a, b FROM notes ORDER BY id").await, json!([["x", "none"], ["y", "none"]]));
}

#[tokio::test]
async fn a_batch_of_the_wrong_shape_is_refused_whole() {
    let (_cluster, client) = items(1).await;
    for (path, media, body, status, code) in [
        ("/tables/nowhere/rows", NDJSON, "[1]", 404, "not_found"),
        ("/tables/items/rows", "text/csv", "1,2", 415, "unsupported_media_type"),
        ("/tables/items/rows", "application/json", "{\"rows\": [", 400, "bad_json"),
        ("/tables/items/rows?columns=id,nothing", NDJSON, "[1,2]", 400, "42703"),
        ("/tables/items/rows?columns=id,ID", NDJSON, "[1,2]", 400, "42701"),
        ("/tables/items/rows?batch=1", NDJSON, "[1,2]", 400, "bad_request"),
        ("/tables/items/rows?timeout_ms=0", NDJSON, "[1,2]", 400, "bad_request"),
        ("/tables/items/rows?batch_id=", NDJSON, "[1,2]", 400, "bad_request"),
    ] {
        let answer = client.post(path, media, body).await;
        let seen = (answer.status, answer.json["code"].as_str());
        // 42701 is a conflict of names.
        let status = if code == "42701" { 409 } else { status };
        assert_eq!(seen, (status, Some(code)), "{path}: {}", answer.text);
    }
    let large = vec![b' '; crate::settings::BULK_BODY_BYTES_MAX + 1];
    let answer = client.post("/tables/items/rows", NDJSON, large).await;
    assert_eq!((answer.status, answer.json["code"].as_str()), (413, Some("body_too_large")));
    assert_eq!(client.rows("SELECT count(*) FROM items").await, json!([[0]]));
}

#[tokio::test]
async fn a_part_of_the_key_that_is_missing_is_named() {
    let client = Client::new(&Cluster::new(1));
    client.run("CREATE TABLE lines (o INTEGER, \"n'r\" TEXT, PRIMARY KEY (o, \"n'r\")) SHARD BY (o)").await;
    let body = r#"{"columns":["o"],"rows":[[1]]}"#;
    let answer = client.post("/tables/lines/rows", "application/json", body).await;
    let row = &answer.json["rejected"][0];
    assert_eq!((&row["code"], &row["error"]), (&json!("23502"), &json!("NOT NULL constraint failed: lines.n'r")));
}

#[tokio::test]
async fn the_largest_rowid_is_refused_with_what_to_do() {
    let client = Client::new(&Cluster::new(1));
    client.run("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT) SHARD BY (id)").await;
    let sql = "INSERT INTO items VALUES (9223372036854775807, 'x')";
    let answer = client.query(json!({ "query": sql })).await;
    assert_eq!(answer.json["code"], "2200H", "{}", answer.text);
    assert!(answer.json["hint"].as_str().unwrap().contains("9223372036854775806"), "{}", answer.text);
    let answer = client.query(json!({ "query": "SELECT 'a\u{0}b'" })).await;
    assert!(answer.json["hint"].as_str().unwrap().contains("char(0)"), "{}", answer.text);
}

#[tokio::test]
async fn rows_without_an_id_are_given_one_and_a_batch_sent_again_gets_the_same() {
    let cluster = Cluster::new(2);
    let client = Client::new(&cluster);
    client.run("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT) SHARD BY (id)").await;
    let path = "/tables/items/rows?batch_id=b1&columns=name";
    let body: String = (0..50).map(|number| format!("[\"item {number}\"]\n")).collect();
    let first = client.post(path, NDJSON, body.clone()).await;
    assert_eq!((first.status, &first.json["inserted"]), (200, &json!(50)), "{}", first.text);
    let ids = client.rows("SELECT id FROM items ORDER BY id").await;
    cluster.split(ShardId(1), &(0..PARTITIONS / 4).map(PartitionId).collect::<Vec<_>>());
    let again = client.post(path, NDJSON, body).await;
    assert_eq!((&again.json["inserted"], &again.json["replayed"]), (&json!(50), &json!(true)), "{}", again.text);
    assert_eq!(client.rows("SELECT id FROM items ORDER BY id").await, ids);

    // Ids that were given by hand into the block that the node holds are not given again.
    let body = lines(50..400);
    let by_hand = client.post("/tables/items/rows", NDJSON, body).await;
    let taken: u64 = ids.as_array().unwrap().iter().filter(|id| id[0].as_u64() >= Some(50)).count() as u64;
    assert_eq!(by_hand.json["inserted"], json!(350 - taken), "{}", by_hand.text);
    let mixed = "[null,\"a\"]\n[1000000,\"b\"]\n[null,\"c\"]\n";
    let mixed = client.post("/tables/items/rows", NDJSON, mixed).await;
    assert_eq!((&mixed.json["inserted"], &mixed.json["rejected"]), (&json!(3), &json!([])), "{}", mixed.text);
    assert_eq!(
        client.rows("SELECT name FROM items WHERE id >= 1000000 ORDER BY id").await,
        json!([["b"], ["a"], ["c"]])
    );
}

#[tokio::test]
async fn a_primary_key_that_is_not_the_shard_key_is_given_by_pleat_alone() {
    let cluster = Cluster::new(3);
    let client = Client::new(&cluster);
    client
        .run("CREATE TABLE orders (id INTEGER PRIMARY KEY AUTOINCREMENT, customer TEXT, n INT) SHARD BY (customer)")
        .await;
    let body: String = (0..200).map(|number| format!("[\"customer {}\",{number}]\n", number % 17)).collect();
    let loaded = client.post("/tables/orders/rows?columns=customer,n", NDJSON, body).await;
    assert_eq!((loaded.status, &loaded.json["inserted"]), (200, &json!(200)), "{}", loaded.text);
    client.run("INSERT INTO orders (customer, n) SELECT customer, n + 1000 FROM orders").await;
    client.run("INSERT INTO orders (customer, n) VALUES ('x', 1), ('y', 2), ('z', 3)").await;
    client.run("UPDATE orders SET customer = customer || '!' WHERE n % 10 = 0").await;
    assert_eq!(client.rows("SELECT count(*), count(DISTINCT id) FROM orders").await, json!([[403, 403]]));
    // A whole batch is refused, before any of its rows.
    let refused = client.post("/tables/orders/rows", NDJSON, "[null,\"a\",1]\n[9,\"b\",2]\n").await;
    assert_eq!((refused.status, refused.json["code"].as_str()), (400, Some("0A000")), "{}", refused.text);
    for sql in ["INSERT INTO orders VALUES (5000, 'a', 1)", "UPDATE orders SET id = id + 1 WHERE customer = 'x'"] {
        assert_eq!(client.refused(sql).await.1, "0A000", "{sql}");
    }
    assert_eq!(client.rows("SELECT count(*) FROM orders").await, json!([[403]]));
}
