//! Foreign keys to reference tables, of which every shard has a copy and not every shard the rows that refer to them.

use std::sync::Arc;
use std::time::Duration;

use pleat_cluster::ShardId;
use serde_json::json;

use super::sessions::Session;
use crate::testing::{Client, Cluster};

/// People of countries; the only two of Malta are on one shard each.
async fn people(action: &str) -> (Arc<Cluster>, Arc<Client>) {
    let cluster = Cluster::new(3);
    let client = Arc::new(Client::new(&cluster));
    for sql in [
        "CREATE TABLE continents (name TEXT PRIMARY KEY) REFERENCE".to_owned(),
        format!(
            "CREATE TABLE countries (code TEXT PRIMARY KEY, continent TEXT REFERENCES continents (name) {action}) REFERENCE"
        ),
        format!(
            "CREATE TABLE people (id INTEGER PRIMARY KEY, country TEXT REFERENCES countries (code) {action}) SHARD BY (id)"
        ),
        format!("CREATE TABLE notes (n INTEGER PRIMARY KEY, country TEXT REFERENCES countries {action}) SINGLE"),
        "INSERT INTO continents VALUES ('Europe'), ('Asia')".to_owned(),
        "INSERT INTO countries VALUES ('DE', 'Europe'), ('FR', 'Europe'), ('MT', 'Europe'), ('IN', 'Asia')".to_owned(),
        "INSERT INTO notes VALUES (1, 'FR')".to_owned(),
    ] {
        client.run(&sql).await;
    }
    let rows: Vec<_> = (1..=30).map(|id| format!("({id}, 'DE')")).collect();
    client.run(&format!("INSERT INTO people VALUES {}", rows.join(", "))).await;
    client.run("UPDATE people SET country = 'MT' WHERE id = 7").await;
    (cluster, client)
}

const COUNTRIES: &str = "SELECT code, continent FROM countries ORDER BY 1";
const PEOPLE: &str = "SELECT country, count(*) FROM people GROUP BY 1 ORDER BY 1";

/// What each shard's copy holds, which must be one and the same.
async fn on_every_shard(cluster: &Cluster, client: &Client, sql: &str) -> serde_json::Value {
    let mut copies = Vec::new();
    for shard in cluster.newest().active_shards() {
        copies.push(client.rows(&format!("/* pleat: shard={} */ {sql}", shard.id.0)).await);
    }
    assert!(copies.len() >= 3 && copies.windows(2).all(|pair| pair[0] == pair[1]), "{copies:?}");
    copies.remove(0)
}

#[tokio::test]
async fn what_one_shards_row_refers_to_stays_on_all() {
    let (cluster, client) = people("").await;
    let all = json!([["DE", "Europe"], ["FR", "Europe"], ["IN", "Asia"], ["MT", "Europe"]]);
    for sql in [
        "INSERT INTO people VALUES (31, 'XX')",
        "INSERT INTO people VALUES (31, 'DE'), (32, 'DE'), (33, 'XX')",
        "UPDATE people SET country = 'XX'",
        "INSERT INTO notes VALUES (2, 'XX')",
        "DELETE FROM countries WHERE code = 'MT'",
        "DELETE FROM countries",
        "DELETE FROM countries WHERE code = 'FR'",
        "UPDATE countries SET code = code || '!' WHERE code IN ('IN', 'MT')",
        "DELETE FROM continents WHERE name = 'Europe'",
        "DELETE FROM countries WHERE code = 'IN'; DELETE FROM countries WHERE code = 'MT'",
    ] {
        let refused = client.refused(sql).await;
        assert_eq!(refused.1, "23503", "{sql}");
        assert_eq!(on_every_shard(&cluster, &client, COUNTRIES).await, all, "{sql}");
    }
    assert_eq!(client.rows(PEOPLE).await, json!([["DE", 29], ["MT", 1]]));
    // Nobody refers to these, and then not any more.
    client.run("DELETE FROM countries WHERE code = 'IN'").await;
    client.run("UPDATE people SET country = NULL WHERE country = 'MT'").await;
    let deleted =
        client.query(json!({"query": "DELETE FROM countries WHERE code = 'MT'", "idempotency_key": "k"})).await;
    assert_eq!((deleted.status, &deleted.json["rows_affected"]), (200, &json!(1)), "{}", deleted.text);
    let again = client.query(json!({"query": "DELETE FROM countries WHERE code = 'MT'", "idempotency_key": "k"})).await;
    assert_eq!((&again.json["replayed"], &again.json["rows_affected"]), (&json!(true), &json!(1)), "{}", again.text);
    assert_eq!(on_every_shard(&cluster, &client, COUNTRIES).await, json!([["DE", "Europe"], ["FR", "Europe"]]));
    client.run("INSERT INTO countries VALUES ('ES', 'Europe') ON CONFLICT DO UPDATE SET continent = 'Asia'").await;
    client.run("REPLACE INTO countries VALUES ('ES', 'Asia')").await;
    let loaded = client
        .post("/tables/countries/rows", "application/x-ndjson", "{\"code\": \"PT\", \"continent\": \"Europe\"}\n")
        .await;
    assert_eq!(loaded.json["inserted"], 1, "{}", loaded.text);
    client.run("INSERT INTO people VALUES (40, 'PT'), (41, 'PT'), (42, 'ES')").await;
    let refused = client.refused("REPLACE INTO countries VALUES ('ES', 'Europe'), ('AT', 'nowhere')").await;
    assert_eq!(refused.1, "23503");
    assert_eq!((cluster.open_parts(), cluster.prepared().len()), (0, 0));
}

#[tokio::test]
async fn actions_reach_the_rows_on_all_shards() {
    let (cluster, client) = people("ON UPDATE CASCADE ON DELETE CASCADE").await;
    client.run("UPDATE countries SET code = 'D' WHERE code = 'DE'").await;
    assert_eq!(client.rows(PEOPLE).await, json!([["D", 29], ["MT", 1]]));
    let session = Session::open(&client).await;
    session
        .all(&[
            "BEGIN",
            "INSERT INTO countries VALUES ('ES', 'Europe')",
            "UPDATE people SET country = 'ES' WHERE id < 4",
        ])
        .await;
    session.all(&["DELETE FROM countries WHERE code = 'D'"]).await;
    assert_eq!(session.say(PEOPLE).await, json!([["ES", 3], ["MT", 1]]));
    assert_eq!(session.say("INSERT INTO people VALUES (50, 'D')").await, "23503");
    session.all(&["COMMIT"]).await;
    assert_eq!(client.rows(PEOPLE).await, json!([["ES", 3], ["MT", 1]]));
    // A new shard keeps them, too.
    let of_one = cluster.partitions_of(ShardId(1));
    cluster.split(ShardId(1), &of_one[..of_one.len() / 2]);
    let rows: Vec<_> = (100..160).map(|id| format!("({id}, 'FR')")).collect();
    client.run(&format!("INSERT INTO people VALUES {}", rows.join(", "))).await;
    assert_eq!(client.refused("INSERT INTO people SELECT id + 1000, 'XX' FROM people").await.1, "23503");
    let gone = client.run("DELETE FROM continents WHERE name = 'Europe'").await;
    assert_eq!(gone["rows_affected"], 1, "what cascades is not counted: {gone}");
    assert_eq!(on_every_shard(&cluster, &client, COUNTRIES).await, json!([["IN", "Asia"]]));
    assert_eq!(
        client.rows("SELECT (SELECT count(*) FROM people), (SELECT count(*) FROM notes)").await,
        json!([[0, 0]])
    );
    assert_eq!((cluster.open_parts(), cluster.prepared().len()), (0, 0));
}

/// The rows that refer to a reference table may go anywhere.
#[tokio::test]
async fn they_hold_wherever_the_rows_are_placed() {
    let (_cluster, client) = people("").await;
    for placement in ["SINGLE", "REFERENCE", "SHARD BY (id)"] {
        client.run(&format!("ALTER TABLE people {placement}")).await;
        assert_eq!(client.rows(PEOPLE).await, json!([["DE", 29], ["MT", 1]]), "{placement}");
        for sql in ["DELETE FROM countries WHERE code = 'MT'", "INSERT INTO people VALUES (31, 'XX')"] {
            assert_eq!(client.refused(sql).await.1, "23503", "{placement}: {sql}");
        }
        client.run("INSERT INTO countries VALUES ('NO', 'Europe'); DELETE FROM countries WHERE code = 'NO'").await;
    }
    assert_eq!(client.refused("ALTER TABLE countries SINGLE").await.1, "0A000");
}

/// The node that plans the write does not know of the foreign key yet, which all shards have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_was_planned_without_the_foreign_key_is_planned_again() {
    let cluster = Cluster::new(3);
    let client = Arc::new(Client::new(&cluster));
    client.run("CREATE TABLE countries (code TEXT PRIMARY KEY) REFERENCE").await;
    client.run("INSERT INTO countries VALUES ('DE'), ('FR')").await;
    cluster.hold_back(true);
    let ask = |sql: &str| {
        let (client, request) = (client.clone(), json!({"query": sql, "timeout_ms": 20_000}));
        tokio::spawn(async move { client.query(request).await })
    };
    let create = "CREATE TABLE people (id INTEGER PRIMARY KEY, country TEXT REFERENCES countries (code)) SHARD BY (id)";
    let created = ask(create);
    while cluster.newest().table("people").is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let deleted = ask("DELETE FROM countries WHERE code = 'DE'");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!deleted.is_finished() && !created.is_finished());
    cluster.hold_back(false);
    let (created, deleted) = (created.await.unwrap(), deleted.await.unwrap());
    assert_eq!((created.status, deleted.status), (200, 200), "{} {}", created.text, deleted.text);
    assert_eq!(on_every_shard(&cluster, &client, "SELECT code FROM countries").await, json!([["FR"]]));
}
