//! Requests and transactions that write to reference tables and to others, and requests that read what they wrote, under
//! keys: all or nothing, once, on all copies.

use std::sync::Arc;
use std::time::Duration;

use pleat_cluster::ShardId;
use serde_json::{Value as Json, json};

use super::sessions::Session;
use crate::testing::{Client, Cluster, Fault, Step};

const SHARDS: u32 = 3;

/// People in countries, over three shards.
async fn cluster() -> (Arc<Cluster>, Arc<Client>) {
    let cluster = Cluster::new(SHARDS);
    let client = Arc::new(Client::new(&cluster));
    client.run("CREATE TABLE countries (code TEXT PRIMARY KEY, name TEXT, note) REFERENCE").await;
    client.run("CREATE TABLE log (id INTEGER PRIMARY KEY, at TEXT, chance) REFERENCE").await;
    client.run("CREATE TABLE people (id INTEGER PRIMARY KEY, country TEXT, age INTEGER) SHARD BY (id)").await;
    client.run("INSERT INTO countries VALUES ('DE', 'Germany', NULL), ('IN', 'India', NULL)").await;
    let rows: Vec<_> = (1..=30).map(|id| format!("({id}, 'DE', {id})")).collect();
    client.run(&format!("INSERT INTO people VALUES {}", rows.join(", "))).await;
    (cluster, client)
}

/// What each shard's copy of a table holds, which must be one and the same.
async fn copies(client: &Client, columns: &str, table: &str) -> Json {
    let mut copies = Vec::new();
    for shard in 1..=SHARDS {
        copies.push(client.rows(&format!("/* pleat: shard={shard} */ SELECT {columns} FROM {table} ORDER BY 1")).await);
    }
    assert!(copies.windows(2).all(|pair| pair[0] == pair[1]), "copies differ: {copies:?}");
    copies.remove(0)
}

async fn codes(client: &Client) -> Json {
    let rows = copies(client, "code", "countries").await;
    rows.as_array().unwrap().iter().map(|row| row[0].clone()).collect()
}

#[tokio::test]
async fn a_transaction_writes_to_reference_tables_and_reads_them_on_every_shard() {
    let (cluster, client) = cluster().await;
    let session = Session::open(&client).await;
    session.all(&["BEGIN", "INSERT INTO countries VALUES ('FR', 'France', NULL)"]).await;
    session.all(&["UPDATE people SET country = 'FR' WHERE age % 2 = 0"]).await;
    let joined =
        "SELECT c.name, count(*) FROM people p JOIN countries c ON c.code = p.country GROUP BY c.name ORDER BY 1";
    assert_eq!(session.say(joined).await, json!([["France", 15], ["Germany", 15]]));
    for id in [1, 2, 3, 4, 5, 6, 7, 8] {
        let one = format!("SELECT c.name FROM people p JOIN countries c ON c.code = p.country WHERE p.id = {id}");
        assert_eq!(session.say(&one).await, json!([[if id % 2 == 0 { "France" } else { "Germany" }]]));
    }
    assert_eq!(client.rows("SELECT count(*) FROM countries").await, json!([[2]]), "nobody else sees it");
    session.all(&["SAVEPOINT a", "DELETE FROM countries WHERE code <> 'FR'"]).await;
    assert_eq!(session.say("SELECT code FROM countries").await, json!([["FR"]]));
    assert_eq!(session.say("INSERT INTO countries VALUES ('FR', 'again', 1)").await, "23505");
    session.all(&["ROLLBACK TO a", "UPDATE countries SET note = 'x' WHERE name IS NULL OR code = 'FR'"]).await;
    let returned = session.say("INSERT INTO countries (code) VALUES ('NZ'), ('AU') RETURNING code, name").await;
    assert_eq!(returned, json!([["NZ", null], ["AU", null]]), "one answer, not one of each shard");
    session.all(&["COMMIT"]).await;
    assert_eq!(codes(&client).await, json!(["AU", "DE", "FR", "IN", "NZ"]));
    assert_eq!(client.rows(joined).await, json!([["France", 15], ["Germany", 15]]));
    // Writes without a transaction go on from there, in one order.
    client.run("DELETE FROM countries WHERE code IN ('NZ', 'AU')").await;
    session.all(&["BEGIN", "INSERT INTO countries VALUES ('ES', 'Spain', 1)", "ROLLBACK"]).await;
    assert_eq!(copies(&client, "code, note", "countries").await, json!([["DE", null], ["FR", "x"], ["IN", null]]));
    assert_eq!((cluster.open_parts(), cluster.prepared().len()), (0, 0));
}

#[tokio::test]
async fn copies_get_the_same_time_and_chance() {
    let (_cluster, client) = cluster().await;
    let session = Session::open(&client).await;
    let insert = "INSERT INTO log (at, chance) VALUES (CURRENT_TIMESTAMP, random()), (NULL, randomblob(8))";
    session.all(&["BEGIN", "DELETE FROM people WHERE id < 10", insert]).await;
    assert_eq!(session.say("INSERT INTO log VALUES (1, 1, 1)").await, "23505");
    session.all(&[insert, "COMMIT"]).await;
    client.run(&format!("{insert}; DELETE FROM people WHERE id > 20")).await;
    let rows = copies(&client, "id, at, hex(chance)", "log").await;
    assert_eq!(rows.as_array().unwrap().len(), 6, "{rows}");
    let chances: std::collections::BTreeSet<_> =
        rows.as_array().unwrap().iter().map(|row| row[2].to_string()).collect();
    assert_eq!(chances.len(), 6, "each draws anew: {rows}");
}

#[tokio::test]
async fn one_request_writes_to_reference_tables_and_to_others() {
    let (cluster, client) = cluster().await;
    let request = "INSERT INTO countries VALUES ('FR', 'France', NULL); UPDATE people SET country = 'FR' WHERE id < 4; \
                   DELETE FROM countries WHERE code = 'IN'";
    let answer = client.run(request).await;
    let affected: Vec<_> =
        answer["results"].as_array().unwrap().iter().map(|one| one["rows_affected"].clone()).collect();
    assert_eq!(affected, [1, 3, 1], "{answer}");
    assert_eq!(codes(&client).await, json!(["DE", "FR"]));
    // What fails leaves nothing.
    let (_, code) = client.refused("DELETE FROM countries; INSERT INTO people VALUES (31, 'x', 1), (1, 'x', 1)").await;
    assert_eq!(code, "23505");
    assert_eq!(codes(&client).await, json!(["DE", "FR"]));
    let (_, code) = client.refused("DELETE FROM people; INSERT INTO countries VALUES ('DE', 1, 1)").await;
    assert_eq!(code, "23505");
    assert_eq!(client.rows("SELECT count(*) FROM people").await, json!([[30]]));
    let (_, code) =
        client.refused("/* pleat: no-scatter */ DELETE FROM people WHERE id = 1; DELETE FROM countries").await;
    assert_eq!(code, "0A000");
    // A shard alone.
    let alone = Client::new(&Cluster::new(1));
    alone.run("CREATE TABLE r (id INTEGER PRIMARY KEY, v) REFERENCE").await;
    alone.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v) SHARD BY (id)").await;
    alone.run("INSERT INTO r VALUES (1, 2); INSERT INTO t VALUES (7, 8); UPDATE r SET v = 3").await;
    assert_eq!(alone.rows("SELECT r.v AS r, t.v AS t FROM r, t").await, json!([[3, 8]]));
    assert_eq!((cluster.open_parts(), cluster.prepared().len()), (0, 0));
}

/// A write of its own is ordered with a transaction's: whoever comes second has seen the first, or begins again.
#[tokio::test]
async fn a_write_that_comes_in_between_makes_the_transaction_begin_again() {
    let (cluster, client) = cluster().await;
    let session = Session::open(&client).await;
    session.all(&["BEGIN", "SELECT count(*) FROM people"]).await;
    client.run("INSERT INTO countries VALUES ('NZ', 'New Zealand', NULL)").await;
    assert_eq!(session.say("INSERT INTO countries VALUES ('FR', 'France', NULL)").await, "40001");
    assert_eq!(session.say("COMMIT").await, "25P02");
    // A shard that has not got the last write yet.
    for fresh in [true, false] {
        session.all(&["BEGIN"]).await;
        if !fresh {
            session.all(&["SELECT count(*) FROM people"]).await;
        }
        cluster.reference_write_on_anchor_alone("INSERT INTO countries VALUES (?1, 'one', NULL)", fresh.to_string());
        let write = "UPDATE countries SET name = name || '!'";
        let catching_up = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            cluster.spread_reference_writes();
        };
        let (said, ()) = tokio::join!(session.say(write), catching_up);
        // One that had done nothing yet begins again by itself.
        assert_eq!(said, if fresh { json!([]) } else { json!("40001") });
        assert_eq!(session.say("COMMIT").await, if fresh { json!([]) } else { json!("25P02") });
    }
    let names = copies(&client, "code, name", "countries").await;
    assert_eq!(
        names,
        json!([["DE", "Germany!"], ["IN", "India!"], ["NZ", "New Zealand!"], ["false", "one"], ["true", "one!"]])
    );
}

#[tokio::test]
async fn a_shard_that_is_new_is_written_too_or_the_transaction_begins_again() {
    let (cluster, client) = cluster().await;
    let session = Session::open(&client).await;
    session.all(&["BEGIN", "INSERT INTO countries VALUES ('FR', 'France', NULL)"]).await;
    cluster.add_shard(ShardId(1), &cluster.partitions_of(ShardId(1))[..1]);
    assert_eq!(session.say("COMMIT").await, "40001", "it knew three shards");
    // A node that knows no better is told.
    let (cluster, client) = self::cluster().await;
    cluster.hold_back(true);
    cluster.add_shard(ShardId(1), &cluster.partitions_of(ShardId(1))[..1]);
    let insert = json!({"query": "INSERT INTO countries VALUES ('FR', 'France', NULL); DELETE FROM people", "timeout_ms": 5_000});
    let waits = client.query(insert);
    let telling = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cluster.hold_back(false);
    };
    let (answer, ()) = tokio::join!(waits, telling);
    assert_eq!(answer.status, 200, "{}", answer.text);
    for shard in 1..=4 {
        let found =
            client.rows(&format!("/* pleat: shard={shard} */ SELECT count(*) FROM countries WHERE code = 'FR'")).await;
        assert_eq!(found, json!([[1]]), "shard-{shard}");
    }
}

/// Requests that go statement by statement, and how often they were done by what they leave.
const ASKED: [(&str, &str); 3] = [
    (
        "INSERT INTO countries VALUES ('FR', 'France', 7); UPDATE people SET age = age + 100; UPDATE countries SET note = note + 1 WHERE code = 'FR'",
        "SELECT (SELECT sum(age) FROM people) / 3000, (SELECT count(*) FROM countries WHERE note = 8)",
    ),
    (
        "UPDATE people SET age = age + 100; UPDATE people SET age = (SELECT max(age) FROM people) - age",
        "SELECT max(age) = 29, max(age) = 29 FROM people",
    ),
    (
        "INSERT INTO people (country, age) VALUES ('IN', 1), ('IN', 2); INSERT INTO people SELECT id + 1000000, 'FR', age FROM people WHERE country = 'IN'",
        "SELECT count(*) / 2, count(*) / 2 FROM people WHERE country = 'FR'",
    ),
];

#[tokio::test]
async fn under_a_key_every_step_that_goes_wrong_leaves_it_done_once() {
    let mut steps: Vec<_> =
        (1..=SHARDS).flat_map(|at| [Step::Prepare(ShardId(at)), Step::Decide(ShardId(at))]).collect();
    steps.push(Step::Ledger { commit: true });
    for (sql, done) in ASKED {
        for step in &steps {
            for fault in [Fault::NoLeader, Fault::AnswerLost, Fault::Never, Fault::DoneNever] {
                let name = format!("{sql}: {step:?} {fault:?}");
                let (cluster, client) = cluster().await;
                let (mut once, step) = (Some(fault), *step);
                let (failed, mut has_failed) = tokio::sync::watch::channel(false);
                cluster.trap(move |at| {
                    let fault = if at == step { once.take() } else { None };
                    failed.send_if_modified(|failed| fault.is_some() && !std::mem::replace(failed, true));
                    fault
                });
                let request = json!({"query": sql, "idempotency_key": "k", "timeout_ms": 10_000});
                // A coordinator that never hears again is as good as dead, and so is its client.
                let dies = async {
                    has_failed.wait_for(|failed| *failed).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(60)).await;
                };
                let hangs = matches!(fault, Fault::Never | Fault::DoneNever);
                let answer = tokio::select! {
                    answer = client.query(request.clone()) => Ok(answer),
                    () = dies, if hangs => Err(()),
                };
                cluster.untrap();
                cluster.recover();
                assert_eq!(cluster.prepared(), [], "{name}");
                let before = client.rows(done).await;
                assert!(before == json!([[0, 0]]) || before == json!([[1, 1]]), "{name}: {before}");
                let was_done = before == json!([[1, 1]]);
                if let Ok(answer) = &answer {
                    assert!(answer.status != 200 || was_done, "{name}: {}", answer.text);
                    assert!(answer.status == 200 || answer.json["retryable"] == true, "{name}: {}", answer.text);
                }
                let again = client.query(request.clone()).await;
                assert_eq!(again.status, 200, "{name}: {}", again.text);
                assert_eq!(again.json["replayed"] == true, was_done, "{name}: {}", again.text);
                let third = client.query(request).await;
                assert_eq!((&third.json["results"], &third.json["replayed"]), (&again.json["results"], &json!(true)));
                assert_eq!(client.rows(done).await, json!([[1, 1]]), "{name}");
                codes(&client).await;
            }
        }
    }
}

/// A client sends its request to two nodes at the same time: it is done once, and both get the same answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_same_request_twice_at_once_one_is_done() {
    for (sql, done) in ASKED {
        let (cluster, client) = cluster().await;
        let nodes = [client.clone(), Arc::new(Client::new(&cluster))];
        let rounds = if sql.contains("'FR', 'France'") { 5 } else { 1 };
        for round in 0..rounds {
            let sql = match sql.contains("'FR', 'France'") {
                true => sql.replace("'FR'", &format!("'FR{round}'")),
                false => sql.to_owned(),
            };
            let key = format!("k{round}");
            let send = |node: Arc<Client>| {
                let request = json!({"query": sql, "idempotency_key": key, "timeout_ms": 20_000});
                tokio::spawn(async move { node.query(request).await })
            };
            let (one, other) = (send(nodes[0].clone()), send(nodes[1].clone()));
            let (one, other) = (one.await.unwrap(), other.await.unwrap());
            assert_eq!((one.status, other.status), (200, 200), "{} {}", one.text, other.text);
            assert_eq!(one.json["results"], other.json["results"]);
            assert!(one.json["replayed"] != other.json["replayed"], "{} {}", one.text, other.text);
            if round == 0 {
                assert_eq!(client.rows(done).await, json!([[1, 1]]), "{sql}");
            }
        }
        if done.contains("/ 3000") {
            assert_eq!(client.rows("SELECT sum(age) / 3000 FROM people").await, json!([[5]]));
        }
        assert_eq!((cluster.open_parts(), cluster.prepared().len()), (0, 0));
    }
}

/// What was done is known after its rows, and the home of its key, have gone to another shard.
#[tokio::test]
async fn a_repetition_is_known_wherever_the_rows_have_gone() {
    for (sql, done) in &ASKED[1..] {
        for key in ["a", "b", "c", "d", "e"] {
            let (cluster, client) = cluster().await;
            let request = json!({"query": sql, "idempotency_key": key});
            let first = client.query(request.clone()).await;
            assert_eq!(first.status, 200, "{}", first.text);
            for shard in 1..=SHARDS {
                let of_one = cluster.partitions_of(ShardId(shard));
                cluster.split(ShardId(shard), &of_one[..of_one.len() / 2]);
            }
            let again = client.query(request).await;
            assert_eq!(
                (&again.json["results"], &again.json["replayed"]),
                (&first.json["results"], &json!(true)),
                "{}",
                again.text
            );
            assert_eq!(client.rows(done).await, json!([[1, 1]]));
        }
    }
}

/// Transactions, requests and single writes on the same reference rows, all at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_at_once_leaves_equal_copies_and_nothing_out() {
    let (cluster, client) = cluster().await;
    client.run("UPDATE countries SET note = 0").await;
    let mut tasks = Vec::new();
    for worker in 0..4 {
        let client = client.clone();
        tasks.push(tokio::spawn(async move {
            let (mut done, session) = (0, Session::open(&client).await);
            for round in 0..12 {
                let change = "UPDATE countries SET note = note + 1 WHERE code = 'DE'";
                let people = format!("UPDATE people SET age = age + 1 WHERE id IN ({}, {})", worker + 1, round + 10);
                let said = match (worker + round) % 3 {
                    0 => {
                        session.say(if round % 2 == 0 { "BEGIN" } else { "BEGIN IMMEDIATE" }).await;
                        session.say(change).await;
                        session.say(&people).await;
                        let said = session.say("COMMIT").await;
                        session.say("ROLLBACK").await;
                        said
                    }
                    1 => {
                        match client.query(json!({"query": format!("{people}; {change}"), "timeout_ms": 20_000})).await
                        {
                            answer if answer.status == 200 => json!([]),
                            answer => panic!("{}", answer.text),
                        }
                    }
                    _ => match client.query(json!({"query": change, "timeout_ms": 20_000})).await {
                        answer if answer.status == 200 => json!([]),
                        answer => panic!("{}", answer.text),
                    },
                };
                done += i64::from(said.is_array());
            }
            done
        }));
    }
    let mut done = 0;
    for task in tasks {
        done += task.await.unwrap();
    }
    assert!(done >= 32, "{done}");
    let notes = copies(&client, "code, note", "countries").await;
    assert_eq!(notes, json!([["DE", done], ["IN", 0]]));
    assert_eq!((cluster.open_parts(), cluster.prepared().len()), (0, 0));
}
