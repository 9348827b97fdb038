//! Statements under the magnifying glass: figures by statement, hints, and EXPLAIN ANALYZE.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value as Json, json};

use crate::Backend;
use crate::testing::{Client, Cluster, PARTITIONS};
use pleat_cluster::{PartitionId, ShardId};

async fn users(shards: u32) -> (std::sync::Arc<Cluster>, Client) {
    let cluster = Cluster::new(shards);
    let client = Client::new(&cluster);
    client.run("CREATE TABLE users (user_id INTEGER PRIMARY KEY, name TEXT) SHARD BY (user_id)").await;
    client.run("CREATE TABLE one (id INTEGER PRIMARY KEY) SINGLE").await;
    for id in 1..=20 {
        client.run(&format!("INSERT INTO users VALUES ({id}, 'user {id}')")).await;
    }
    (cluster, client)
}

fn figures<'a>(list: &'a Json, statement: &str) -> &'a Json {
    let found = list["statements"].as_array().unwrap().iter().find(|one| one["statement"] == statement);
    found.unwrap_or_else(|| panic!("{statement} is not in {list}"))
}

#[tokio::test]
async fn statements_are_counted_without_their_values() {
    let (_cluster, client) = users(2).await;
    client.run("SELECT name FROM users WHERE user_id = 3").await;
    client.run("SELECT name FROM users WHERE user_id = 4").await;
    client.run("SELECT count(*) FROM users").await;
    client.refused("SELECT nothing FROM users WHERE name = 'secret'").await;
    let list = client.get("/statements").await;
    assert!(!list.text.contains("secret") && !list.text.contains("user 1"), "{}", list.text);
    let insert = figures(&list.json, "INSERT INTO users VALUES (?, …)");
    assert_eq!((&insert["calls"], &insert["rows"], &insert["scattered"]), (&json!(20), &json!(20), &json!(0)));
    let keyed = figures(&list.json, "SELECT name FROM users WHERE user_id = ?");
    assert_eq!((&keyed["calls"], &keyed["rows"], &keyed["shards"]), (&json!(2), &json!(2), &json!(1)));
    assert!(keyed["max_ms"].as_f64().unwrap() <= keyed["total_ms"].as_f64().unwrap());
    let counted = figures(&list.json, "SELECT count(*) FROM users");
    assert_eq!((&counted["scattered"], &counted["shards"]), (&json!(1), &json!(2)));
    let wrong = figures(&list.json, "SELECT nothing FROM users WHERE name = ?");
    assert_eq!((&wrong["errors"], &wrong["rows"]), (&json!(1), &json!(0)));

    let most = client.get("/statements?order=calls&limit=1").await.json;
    assert_eq!(most["statements"].as_array().unwrap().len(), 1);
    assert_eq!(most["statements"][0]["calls"], 20);
    assert_eq!(client.get("/statements?order=beauty").await.status, 400);
    let reset = client.send(Request::delete("/statements").body(Body::empty()).unwrap()).await;
    assert_eq!((reset.status, &reset.json["forgotten"]), (200, &json!(6)), "{}", reset.text);
    assert_eq!(client.get("/statements").await.json["statements"], json!([]));
}

#[tokio::test]
async fn a_hint_shows_one_shards_rows_and_all_hints_together_all() {
    let (cluster, client) = users(2).await;
    let of = async |shard: u32, sql: &str| client.rows(&format!("/* pleat: shard={shard} */ {sql}")).await;
    let check = async |shards: &[u32]| {
        let mut ids = Vec::new();
        for shard in shards {
            let seen = of(*shard, "SELECT user_id FROM users").await;
            assert_eq!(of(*shard, "SELECT count(*) FROM users").await, json!([[seen.as_array().unwrap().len()]]));
            let row = of(*shard, "SELECT 1 FROM users WHERE user_id = 7").await;
            let has = seen.as_array().unwrap().contains(&json!([7]));
            assert_eq!(row.as_array().unwrap().len(), usize::from(has), "the key does not route past the hint");
            ids.extend(seen.as_array().unwrap().iter().map(|row| row[0].as_i64().unwrap()));
        }
        ids.sort_unstable();
        assert_eq!(ids, (1..=20).collect::<Vec<i64>>());
    };
    check(&[1, 2]).await;
    // After a split its source still holds what it gave away: the hint shows what it owns.
    let catalog = cluster.catalog();
    let given: Vec<_> =
        (0..PARTITIONS).map(PartitionId).filter(|unit| catalog.owner(*unit) == Some(ShardId(1))).take(4).collect();
    let new = cluster.split(ShardId(1), &given);
    check(&[1, 2, new.0]).await;
}

#[tokio::test]
async fn hints_that_cannot_be_followed_are_refused() {
    let (_cluster, client) = users(2).await;
    for (sql, code) in [
        ("/* pleat: shard=9 */ SELECT * FROM users", "22023"),
        ("/* pleat: shard=1 */ INSERT INTO users VALUES (99, 'x')", "0A000"),
        ("/* pleat: fast */ SELECT 1", "42601"),
        ("/* pleat: no-scatter */ SELECT count(*) FROM users", "0A000"),
        ("/* pleat: no-scatter */ SELECT * FROM users LIMIT 1", "0A000"),
    ] {
        assert_eq!(client.refused(sql).await, (400, code.to_owned()), "{sql}");
    }
    assert_eq!(client.rows("SELECT count(*) FROM users").await, json!([[20]]), "nothing was written");
    assert_eq!(
        client.rows("/* pleat: no-scatter */ SELECT name FROM users WHERE user_id = 3").await,
        json!([["user 3"]])
    );
    assert_eq!(client.rows("SELECT count(*) FROM users /* pleat: no-scatter */").await, json!([[20]]));
}

#[tokio::test]
async fn explain_analyze_carries_a_read_out_and_refuses_a_write() {
    let (_cluster, client) = users(2).await;
    let lines = async |sql: &str| {
        let rows = client.rows(sql).await;
        let text = |value: &Json| value.as_str().unwrap().to_owned();
        rows.as_array().unwrap().iter().map(|row| (text(&row[0]), text(&row[1]))).collect::<Vec<_>>()
    };
    let find = |lines: &[(String, String)], step: &str| {
        let found = lines.iter().find(|(name, _)| name == step).map(|(_, detail)| detail.clone());
        found.unwrap_or_else(|| panic!("no {step} in {lines:?}"))
    };
    let scattered = lines("EXPLAIN ANALYZE SELECT count(DISTINCT name) FROM users").await;
    assert_eq!(find(&scattered, "route"), "gather");
    let rows = |detail: &str| detail.split(", ").nth(1).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap();
    let both = rows(&find(&scattered, "took on shard-1")) + rows(&find(&scattered, "took on shard-2"));
    assert_eq!(both, 20, "{scattered:?}");
    assert!(find(&scattered, "took in the finisher").ends_with(" ms"));
    assert!(find(&scattered, "answer").starts_with("1 rows in "));

    let keyed = lines("EXPLAIN ANALYZE SELECT name FROM users WHERE user_id = 3").await;
    assert_eq!(find(&keyed, "route"), "shard");
    assert!(find(&keyed, "answer").starts_with("1 rows in "));
    assert_eq!(keyed.iter().filter(|(step, _)| step.starts_with("took on")).count(), 1);

    let refused = client.refused("EXPLAIN ANALYZE DELETE FROM users WHERE user_id = 3").await;
    assert_eq!(refused, (400, "0A000".to_owned()));
    assert_eq!(client.rows("SELECT count(*) FROM users").await, json!([[20]]));
}
