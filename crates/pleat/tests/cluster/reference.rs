//! Reference tables: written on one node, there on every shard.

use serde_json::json;

use crate::harness::{Cluster, Options};

#[tokio::test]
async fn a_reference_table_is_whole_on_every_shard() {
    let cluster = Cluster::start(Options { shards: 3, ..Options::default() }).await;
    cluster.query("CREATE TABLE countries (code TEXT PRIMARY KEY, name TEXT NOT NULL) REFERENCE").await;
    cluster.query("CREATE TABLE people (id INTEGER PRIMARY KEY, country TEXT) SHARD BY (id)").await;
    let answer = cluster.query("INSERT INTO countries VALUES ('DE', 'Germany'), ('IN', 'India')").await;
    assert_eq!(answer["rows_affected"], 2);
    for id in 0..30 {
        let country = if id % 3 == 0 { "DE" } else { "IN" };
        cluster.query(&format!("INSERT INTO people VALUES ({id}, '{country}')")).await;
    }
    let everywhere = |shard: &serde_json::Value| {
        shard["table_counts"]["countries"] == 2 && shard["table_counts"]["people"].as_i64().is_some_and(|n| n > 0)
    };
    cluster.wait_for_each_shard("all countries and some people", everywhere).await;
    // Joined inside one shard, and over all of them.
    let one = cluster.query("SELECT c.name FROM people p JOIN countries c ON c.code = p.country WHERE p.id = 3").await;
    assert_eq!((&one["data"], one.get("shards")), (&json!([{ "name": "Germany" }]), None));
    let all =
        "SELECT c.name, count(*) AS n FROM people p JOIN countries c ON c.code = p.country GROUP BY c.name ORDER BY n";
    assert_eq!(cluster.query(all).await["data"], json!([{ "name": "Germany", "n": 10 }, { "name": "India", "n": 20 }]));

    // Changes reach every shard before they are answered, in one order, from any node.
    for round in 0..10 {
        let update = format!("UPDATE countries SET name = 'Bharat {round}' WHERE code = 'IN'");
        cluster.post(round % 3 + 1, "/query", &json!({ "query": update })).await.unwrap();
        for id in [1, 2, 4, 5, 7, 8] {
            let name = format!("SELECT c.name FROM people p JOIN countries c ON c.code = p.country WHERE p.id = {id}");
            assert_eq!(cluster.query(&name).await["data"][0]["name"], format!("Bharat {round}"));
        }
    }
    let refused = cluster.try_query("INSERT INTO countries VALUES ('DE', 'again')").await.unwrap_err();
    assert_eq!((refused.status, refused.code()), (409, "23505"));
    cluster.wait_for_each_shard("two countries", |shard| shard["table_counts"]["countries"] == 2).await;
}

#[tokio::test]
async fn a_new_shard_gets_the_reference_tables_before_its_partitions() {
    let config = json!({
        "scaling_thresholds": { "total_entry_threshold_per_shard": 100, "cpu_threshold_percent": 100 },
        "monitoring_interval_seconds": 1, "cooldown_seconds": 1, "max_actions": 10, "max_shards": 2,
    });
    let cluster = Cluster::start(Options { config, ..Options::default() }).await;
    cluster.query("CREATE TABLE countries (code TEXT PRIMARY KEY, name TEXT NOT NULL) REFERENCE").await;
    cluster.query("CREATE TABLE people (id INTEGER PRIMARY KEY, country TEXT) SHARD BY (id)").await;
    cluster.query("CREATE INDEX by_country ON people (country)").await;
    cluster.query("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT) SINGLE").await;
    cluster.query("INSERT INTO notes VALUES (1, 'stays where it is')").await;
    cluster.query("INSERT INTO countries VALUES ('DE', 'Germany'), ('IN', 'India')").await;
    for id in 0..150 {
        cluster.query(&format!("INSERT INTO people VALUES ({id}, 'DE')")).await;
    }
    cluster.wait_for_shards(2).await;
    cluster.query("INSERT INTO countries VALUES ('FR', 'France')").await;
    cluster.wait_for_each_shard("three countries", |shard| shard["table_counts"]["countries"] == 3).await;
    let joined = "SELECT count(*) AS n FROM people p JOIN countries c ON c.code = p.country";
    assert_eq!(cluster.query(joined).await["data"][0]["n"], 150);
    assert_eq!(cluster.query("SELECT text FROM notes").await["data"][0]["text"], "stays where it is");
    for id in 0..150 {
        let answer = cluster.query(&format!("SELECT country FROM people WHERE id = {id}")).await;
        assert_eq!(answer["data"], json!([{ "country": "DE" }]), "id {id}");
    }
}

/// Single writes, requests of several statements and transactions count up the same row of a reference table from all nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_writes_and_transactions_at_once_leave_equal_copies() {
    const ROUNDS: i64 = 15;
    let cluster = std::sync::Arc::new(Cluster::start(Options { shards: 3, ..Options::default() }).await);
    cluster.query("CREATE TABLE counts (id INTEGER PRIMARY KEY, n INTEGER, chance) REFERENCE").await;
    cluster.query("CREATE TABLE people (id INTEGER PRIMARY KEY, n INTEGER) SHARD BY (id)").await;
    cluster.query("INSERT INTO counts VALUES (1, 0, NULL)").await;
    let rows: Vec<_> = (0..60).map(|id| format!("({id}, 0)")).collect();
    cluster.query(&format!("INSERT INTO people VALUES {}", rows.join(", "))).await;
    let count = "UPDATE counts SET n = n + 1, chance = random() WHERE id = 1";
    let mut counting = Vec::new();
    for client in 0..6_i64 {
        let cluster = cluster.clone();
        counting.push(tokio::spawn(async move {
            let (node, mut done, mut begun) = (client as u16 % 3 + 1, 0, 0);
            for round in 0..ROUNDS {
                let person = format!("UPDATE people SET n = n + 1 WHERE id = {}", client * 10 + round % 10);
                match client % 3 {
                    0 => drop(cluster.write(node, count, &format!("{client} {round}")).await),
                    1 => drop(cluster.write(node, &format!("{person}; {count}"), &format!("{client} {round}")).await),
                    _ => {
                        let script = format!("BEGIN IMMEDIATE; {person}; {count}; COMMIT");
                        begun += 1;
                        while let Err(refused) = cluster.post(node, "/query", &json!({ "query": script })).await {
                            assert!(refused.code().starts_with("40"), "{refused:?}");
                            begun += 1;
                        }
                    }
                }
                done += 1;
            }
            (done, begun)
        }));
    }
    let (mut done, mut begun) = (0, 0);
    for client in counting {
        let (did, began) = client.await.unwrap();
        (done, begun) = (done + did, begun + began);
    }
    println!("{begun} transactions were begun for {} that committed", 2 * ROUNDS);
    let mut copies = Vec::new();
    for shard in 1..=3 {
        let copy = format!("/* pleat: shard={shard} */ SELECT n, chance FROM counts");
        copies.push(cluster.query(&copy).await["data"].clone());
    }
    assert_eq!(copies[0][0]["n"], done);
    assert!(copies.iter().all(|copy| *copy == copies[0]), "{copies:?}");
    assert_eq!(cluster.query("SELECT sum(n) AS n FROM people").await["data"], json!([{ "n": 4 * ROUNDS }]));
}
