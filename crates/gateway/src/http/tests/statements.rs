//! `POST /query`.

use std::time::Duration;

use pleat_cluster::{PartitionId, ShardId};
use serde_json::json;

use crate::testing::{Client, Cluster, Fault, PARTITIONS};
use crate::{Limits, Settings};

async fn users(shards: u32) -> (std::sync::Arc<Cluster>, Client) {
    let cluster = Cluster::new(shards);
    let client = Client::new(&cluster);
    client.run("CREATE TABLE users (user_id INTEGER PRIMARY KEY, name TEXT) SHARD BY (user_id)").await;
    for id in 1..=20 {
        client.run(&format!("INSERT INTO users VALUES ({id}, 'user {id}')")).await;
    }
    (cluster, client)
}

fn half() -> Vec<PartitionId> {
    (0..PARTITIONS / 2).map(PartitionId).collect()
}

#[tokio::test]
async fn an_answer_names_its_one_shard_or_several() {
    let (_cluster, client) = users(2).await;
    let answer = client.run("SELECT * FROM users WHERE user_id = 12").await;
    assert_eq!(answer["data"], json!([{"user_id": 12, "name": "user 12"}]));
    assert!(answer["shard"].is_string() && answer.get("shards").is_none(), "{answer}");
    let answer = client.run("SELECT COUNT(*) AS n FROM users").await;
    assert_eq!(answer["data"], json!([{"n": 20}]));
    assert_eq!(answer["shards"], json!(["shard-1", "shard-2"]));
    let rows = client.rows("SELECT user_id FROM users ORDER BY user_id DESC LIMIT 3 OFFSET 1").await;
    assert_eq!(rows, json!([[19], [18], [17]]));
    assert_eq!(client.rows("SELECT user_id FROM users LIMIT 7").await.as_array().unwrap().len(), 7);
    assert_eq!(client.rows("SELECT 1 + 1").await, json!([[2]]));
}

#[tokio::test]
async fn parameters_by_position_and_by_name() {
    let (_cluster, client) = users(2).await;
    for request in [
        json!({"query": "SELECT name FROM users WHERE user_id = ?", "params": [7]}),
        json!({"query": "SELECT name FROM users WHERE user_id = :id", "params": {"id": 7}}),
        json!({"query": "SELECT name FROM users WHERE user_id = @id", "params": {"@id": 7}}),
    ] {
        let answer = client.query(request).await;
        assert_eq!(answer.json["data"], json!([{"name": "user 7"}]), "{}", answer.text);
    }
    let answer = client.query(json!({"query": "SELECT ?1 AS v", "params": [{"base64": "AP8="}]})).await;
    assert_eq!(answer.json["data"], json!([{"v": {"base64": "AP8="}}]));
    let answer = client.query(json!({"query": "SELECT ?", "params": [1, 2]})).await;
    assert_eq!(answer.status, 400, "{}", answer.text);
}

#[tokio::test]
async fn what_is_wrong_is_told_and_nothing_changes() {
    let (_cluster, client) = users(2).await;
    for (sql, status, code) in [
        ("SELEKT 1", 400, "42601"),
        ("SELECT * FROM nowhere", 400, "42P01"),
        ("SELECT nothing FROM users", 400, "42703"),
        ("INSERT INTO users VALUES (1, 'x')", 409, "23505"),
        ("CREATE TABLE users (a)", 409, "42P07"),
        ("CREATE TABLE t (a) SHARD BY (a)", 400, "0A000"),
        ("INSERT INTO users VALUES (101, 'a'), (102, 'b'), (103, 'c'), (104, 'd'), (5, 'e')", 409, "23505"),
        ("DROP TABLE nowhere", 400, "42P01"),
    ] {
        let (seen_status, seen_code) = client.refused(sql).await;
        // A table without a primary key may be refused under another class; the status is what counts.
        if code != "0A000" {
            assert_eq!(seen_code, code, "{sql}");
        }
        assert_eq!(seen_status, status, "{sql}: {seen_code}");
    }
    assert_eq!(client.rows("SELECT count(*), sum(user_id) FROM users").await, json!([[20, 210]]));
    let answer = client.query(json!({"query": "x".repeat(crate::settings::STATEMENT_BYTES_MAX + 1)})).await;
    assert_eq!((answer.status, answer.json["code"].as_str()), (422, Some("54000")));
}

#[tokio::test]
async fn several_statements_are_done_all_or_not_at_all() {
    let (_cluster, client) = users(2).await;
    let answer = client.run("UPDATE users SET name = 'a' WHERE user_id = 5; DELETE FROM users WHERE user_id = 5").await;
    assert_eq!((&answer["rows_affected"], answer["results"].as_array().unwrap().len()), (&json!(2), 2));
    let text = "INSERT INTO users VALUES (5, 'again'); INSERT INTO users VALUES (5, 'twice')";
    assert_eq!(client.refused(text).await, (409, "23505".to_owned()));
    assert_eq!(client.rows("SELECT count(*) FROM users WHERE user_id = 5").await, json!([[0]]));
    let answer = client.run("INSERT INTO users VALUES (5, 'back') RETURNING user_id, name").await;
    assert_eq!(answer["data"], json!([{"user_id": 5, "name": "back"}]));
}

#[tokio::test]
async fn reference_and_single_tables() {
    let (_cluster, client) = users(2).await;
    let answer = client.run("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)").await;
    assert!(answer["notice"].as_str().unwrap().contains("single"), "{answer}");
    assert!(answer["shard"].is_string(), "{answer}");
    let answer = client.run("INSERT INTO notes (text) VALUES ('a'), ('b')").await;
    assert_eq!((&answer["rows_affected"], &answer["last_insert_id"]), (&json!(2), &json!(2)));
    client.run("CREATE TABLE colours (code TEXT PRIMARY KEY, name TEXT) REFERENCE").await;
    let answer = client.run("INSERT INTO colours VALUES ('r', 'red'), ('g', 'green')").await;
    assert_eq!(answer["shards"], json!(["shard-1", "shard-2"]));
    let join =
        "SELECT u.user_id, c.name FROM users u JOIN colours c ON c.code = 'r' WHERE u.user_id IN (1, 2, 3) ORDER BY 1";
    assert_eq!(client.rows(join).await, json!([[1, "red"], [2, "red"], [3, "red"]]));
    let mixed = "SELECT count(*) FROM users u, notes n";
    assert_eq!(client.rows(mixed).await, json!([[40]]));
}

#[tokio::test]
async fn a_table_that_another_node_just_made_is_found() {
    let (cluster, client) = users(1).await;
    cluster.hold_back(true);
    let elsewhere = Client::new(&cluster);
    // The command goes to the real catalog; this node's copy stays behind.
    let made = elsewhere.query(json!({"query": "CREATE TABLE late (id INTEGER PRIMARY KEY)", "timeout_ms": 50})).await;
    assert_eq!(made.status, 504, "this node does not see the end: {}", made.text);
    assert_eq!(client.rows("SELECT count(*) FROM late").await, json!([[0]]));
}

#[tokio::test]
async fn lines_carry_every_column_and_end_with_the_count() {
    let (_cluster, client) = users(2).await;
    let request = axum::http::Request::post("/query")
        .header("content-type", "application/json")
        .header("accept", "application/x-ndjson")
        .body(json!({"query": "SELECT user_id AS a, name AS a FROM users ORDER BY 1 LIMIT 2"}).to_string().into())
        .unwrap();
    let answer = client.send(request).await;
    let lines: Vec<_> = answer.text.lines().collect();
    assert_eq!(lines[..3], [r#"{"columns":["a","a"]}"#, r#"[1,"user 1"]"#, r#"[2,"user 2"]"#]);
    assert!(lines[3].starts_with(r#"{"rows":2,"shards":["shard-1","shard-2"]"#), "{}", lines[3]);
}

#[tokio::test]
async fn a_repeated_write_is_done_once() {
    let (cluster, client) = users(2).await;
    let request = json!({"query": "INSERT INTO users VALUES (50, 'once')", "idempotency_key": "k1"});
    let first = client.query(request.clone()).await;
    let again = client.query(request).await;
    assert_eq!((first.status, again.status), (200, 200), "{}", again.text);
    assert_eq!((first.json.get("replayed"), &again.json["replayed"]), (None, &json!(true)));
    assert_eq!(again.json["rows_affected"], 1);
    let other = json!({"query": "UPDATE users SET name = 'other' WHERE user_id = 50", "idempotency_key": "k1"});
    let refused = client.query(other).await;
    assert_eq!((refused.status, refused.json["code"].as_str()), (409, Some("idempotency_conflict")));
    // An answer that was lost: with a key the client may repeat the request, without one it must look.
    cluster.fail(&[Fault::AnswerLost]);
    let lost = json!({"query": "INSERT INTO users VALUES (51, 'lost')", "idempotency_key": "k2"});
    let unknown = client.query(lost.clone()).await;
    assert_eq!((unknown.status, &unknown.json["retryable"]), (504, &json!(true)), "{}", unknown.text);
    assert_eq!(client.query(lost).await.json["replayed"], true);
    cluster.fail(&[Fault::AnswerLost]);
    let unknown = client.query(json!({"query": "INSERT INTO users VALUES (52, 'lost')"})).await;
    assert_eq!((&unknown.json["code"], &unknown.json["retryable"]), (&json!("08007"), &json!(false)));
    assert_eq!(client.rows("SELECT count(*) FROM users WHERE user_id >= 50").await, json!([[3]]));
}

#[tokio::test]
async fn a_key_is_remembered_after_its_partition_moved() {
    let (cluster, client) = users(1).await;
    let requests: Vec<_> = (100..130)
        .map(
            |id| json!({"query": format!("INSERT INTO users VALUES ({id}, 'x')"), "idempotency_key": format!("k{id}")}),
        )
        .collect();
    for request in &requests {
        assert_eq!(client.query(request.clone()).await.status, 200);
    }
    cluster.split(ShardId(1), &half());
    for request in requests {
        let again = client.query(request).await;
        assert_eq!((again.status, &again.json["replayed"]), (200, &json!(true)), "{}", again.text);
    }
    assert_eq!(client.rows("SELECT count(*) FROM users").await, json!([[50]]));
}

#[tokio::test]
async fn a_repetition_is_answered_after_its_rows_came_apart() {
    let (cluster, client) = users(1).await;
    let values: Vec<_> = (100..120).map(|id| format!("({id}, 'x')")).collect();
    let keyed = json!({"query": format!("INSERT INTO users VALUES {}", values.join(", ")), "idempotency_key": "k"});
    assert_eq!(client.query(keyed.clone()).await.json["rows_affected"], 20);
    cluster.split(ShardId(1), &half());
    let again = client.query(keyed).await;
    assert_eq!((&again.json["replayed"], &again.json["rows_affected"]), (&json!(true), &json!(20)), "{}", again.text);
    assert_eq!(client.rows("SELECT count(*) FROM users").await, json!([[40]]));
    let other = json!({"query": "DELETE FROM users WHERE user_id BETWEEN 1 AND 20", "idempotency_key": "k"});
    let ids: Vec<_> = (100..120).map(|id| id.to_string()).collect();
    let delete = format!("DELETE FROM users WHERE user_id IN ({})", ids.join(", "));
    assert_ne!(client.query(other).await.status, 200);
    let conflict = client.query(json!({"query": delete, "idempotency_key": "k"})).await;
    assert_eq!(conflict.json["code"], "idempotency_conflict", "{}", conflict.text);
}

#[tokio::test]
async fn a_router_that_is_behind_routes_again() {
    let (cluster, client) = users(1).await;
    cluster.hold_back(true);
    cluster.split(ShardId(1), &half());
    // The node still believes in one shard: every statement is refused there once, then goes where it belongs.
    assert_eq!(client.rows("SELECT count(*), sum(user_id) FROM users").await, json!([[20, 210]]));
    for id in 1..=20 {
        assert_eq!(
            client.rows(&format!("SELECT name FROM users WHERE user_id = {id}")).await.as_array().unwrap().len(),
            1
        );
    }
    cluster.hold_back(true);
    for id in 200..220 {
        client.run(&format!("INSERT INTO users VALUES ({id}, 'x')")).await;
    }
    assert_eq!(client.rows("SELECT count(*) FROM users").await, json!([[40]]));
}

#[tokio::test]
async fn a_partition_that_moves_between_two_shards_of_a_read_is_seen_once() {
    let (cluster, client) = users(2).await;
    let moving = cluster.begin_split(ShardId(2), &[PartitionId(8), PartitionId(9), PartitionId(10), PartitionId(11)]);
    cluster.after_reads(1, move |_| {
        moving.fence();
        moving.hand_over();
    });
    let answer = client.run("SELECT count(*) AS n, sum(user_id) AS s FROM users").await;
    assert_eq!(answer["data"], json!([{"n": 20, "s": 210}]));
    assert_eq!(answer["shards"], json!(["shard-1", "shard-2", "shard-3"]));
    let rows = client.rows("SELECT user_id FROM users").await;
    assert_eq!(rows.as_array().unwrap().len(), 20, "leftovers at the source are not seen");
}

#[tokio::test]
async fn a_fence_is_waited_for_within_the_statements_time() {
    let (cluster, client) = users(1).await;
    let moving = cluster.begin_split(ShardId(1), &half());
    moving.fence();
    let fenced = client.query(json!({"query": "SELECT count(*) FROM users", "timeout_ms": 40})).await;
    // With two shards in the catalog the read is a scatter, and the source is fenced.
    assert_eq!((fenced.status, &fenced.json["retryable"]), (503, &json!(true)), "{}", fenced.text);
    let waiting = client.rows("SELECT count(*) FROM users");
    let handing_over = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        moving.unfence();
        moving.fence();
        moving.hand_over();
    };
    let (rows, ()) = tokio::join!(waiting, handing_over);
    assert_eq!(rows, json!([[20]]));
}

#[tokio::test]
async fn a_write_is_read_with_its_token() {
    let (_cluster, client) = users(2).await;
    let token = client.run("INSERT INTO users VALUES (60, 'mine')").await["token"].clone();
    let read = |token| json!({"query": "SELECT name FROM users WHERE user_id = 60", "consistency": "read_your_writes", "token": token});
    assert_eq!(client.query(read(token)).await.json["data"], json!([{"name": "mine"}]));
    let future = client
        .query(json!({"query": "SELECT 1", "consistency": "read_your_writes", "token": "g999999", "timeout_ms": 20}))
        .await;
    assert_eq!((future.status, &future.json["retryable"]), (503, &json!(true)));
    let eventual = client.query(json!({"query": "SELECT count(*) AS n FROM users", "consistency": "eventual"})).await;
    assert_eq!(eventual.json["data"], json!([{"n": 21}]));
}

#[tokio::test]
async fn a_schema_change_that_waits_too_long_is_cancelled() {
    let (cluster, client) = users(1).await;
    cluster.stall(true);
    let late = client.query(json!({"query": "CREATE TABLE late (id INTEGER PRIMARY KEY)", "timeout_ms": 30})).await;
    assert_eq!((late.status, late.json["code"].as_str(), &late.json["retryable"]), (503, Some("55006"), &json!(true)));
    cluster.stall(false);
    let operations = client.get("/operations?phase=skipped").await.json;
    assert_eq!(operations["operations"][0]["cancel_requested"], true, "{operations}");
    let made = client.run("CREATE TABLE late (id INTEGER PRIMARY KEY)").await;
    assert!(made["operation"].as_str().unwrap().starts_with("op-"));
    let again = client.run("CREATE TABLE IF NOT EXISTS late (id INTEGER PRIMARY KEY)").await;
    assert!(again.get("operation").is_none() && again["notice"].is_string(), "{again}");
}

#[tokio::test]
async fn a_statement_waits_for_a_rename_to_reach_its_shard() {
    let (cluster, client) = users(2).await;
    let old = "SELECT name FROM users WHERE user_id = 3";
    let new = "SELECT \"full name\" FROM people WHERE user_id = 3";
    client.run(old).await;
    for (rename, first, then) in [
        ("ALTER TABLE users RENAME TO people", "SELECT name FROM people WHERE user_id = 3", old),
        ("ALTER TABLE people RENAME COLUMN name TO \"full name\"", new, "SELECT name FROM people WHERE user_id = 3"),
    ] {
        cluster.lag(true);
        let patient = async {
            let begun = tokio::time::Instant::now();
            // It can't answer before the shards have followed, however often it is asked meanwhile.
            loop {
                let hurried = client.query(json!({"query": first, "timeout_ms": 40})).await;
                if hurried.status == 503 {
                    assert_eq!(hurried.json["retryable"], true, "{}", hurried.text);
                    break;
                }
                // Not even the journal knows of the rename yet.
                assert_eq!(hurried.status, 400, "{}", hurried.text);
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            let (answer, ()) = tokio::join!(client.rows(first), async { cluster.lag(false) });
            assert_eq!(answer, json!([["user 3"]]), "after {:?}", begun.elapsed());
        };
        tokio::join!(client.run(rename), patient);
        let gone = client.refused(then).await.1;
        assert!(gone == "42P01" || gone == "42703", "{gone}");
    }
    // What the rename does not explain is told at once while it is on its way, also a name that is a part of another.
    client.run("CREATE TABLE others (id INTEGER PRIMARY KEY, surname TEXT) SHARD BY (id)").await;
    cluster.lag(true);
    let typing = async {
        while client.query(json!({"query": "SELECT name FROM people WHERE user_id = 3", "timeout_ms": 40})).await.status
            != 503
        {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert_eq!(client.refused("SELECT nothing FROM people WHERE user_id = 3").await.1, "42703");
        assert_eq!(client.refused("SELECT firstname FROM others WHERE id = 3").await.1, "42703");
        assert_eq!(client.refused("INSERT INTO others (id, named) VALUES (3, 'x')").await.1, "42703");
        assert_eq!(client.refused("SELECT 1 FROM nowhere").await.1, "42P01");
        cluster.lag(false);
    };
    tokio::join!(client.run("ALTER TABLE people RENAME COLUMN \"full name\" TO name"), typing);
    assert_eq!(client.rows("SELECT name FROM people WHERE user_id = 3").await, json!([["user 3"]]));
}

#[tokio::test]
async fn a_request_may_read_everywhere_what_it_has_written() {
    let (_cluster, client) = users(3).await;
    let text = "UPDATE users SET name = name || '!'; INSERT INTO users SELECT user_id + 100, name || '?' FROM users WHERE user_id < 3; \
                DELETE FROM users WHERE user_id < (SELECT max(user_id) FROM users) - 99";
    let answer = client.run(text).await;
    assert_eq!(answer["rows_affected"], 24, "{answer}");
    let left = json!([[3, "user 3!"], [101, "user 1!?"], [102, "user 2!?"]]);
    assert_eq!(client.rows("SELECT * FROM users WHERE user_id < 4 OR user_id > 99 ORDER BY 1").await, left);
    // All of it or nothing.
    let half = "UPDATE users SET name = 'lost'; INSERT INTO users SELECT user_id, name FROM users";
    assert_eq!(client.refused(half).await.1, "23505");
    assert_eq!(client.rows("SELECT count(*) FROM users WHERE name = 'lost'").await, json!([[0]]));
    // Several at a time each see all of what was before them.
    let grow =
        "UPDATE users SET name = 'x' WHERE user_id = 3; INSERT INTO users SELECT max(user_id) + 1, count(*) FROM users";
    let all = futures::future::join_all((0..8).map(|_| client.run(grow))).await;
    assert_eq!(all.len(), 8);
    let rows = client.rows("SELECT user_id, name FROM users WHERE user_id > 102 ORDER BY 1").await;
    assert_eq!(rows, json!((0..8).map(|n| json!([103 + n, (20 + n).to_string()])).collect::<Vec<_>>()));
    // Under a key once, however often it is sent.
    for replayed in [json!(null), json!(true)] {
        let keyed = client.query(json!({"query": grow, "idempotency_key": "k"})).await;
        assert_eq!((keyed.status, &keyed.json["rows_affected"]), (200, &json!(2)), "{}", keyed.text);
        assert_eq!(keyed.json["replayed"], replayed, "{}", keyed.text);
    }
    assert_eq!(client.rows("SELECT max(user_id), count(*) FROM users").await, json!([[111, 29]]));
}

#[tokio::test]
async fn explain_shows_the_route_without_running() {
    let (_cluster, client) = users(2).await;
    let answer = client.run("EXPLAIN SELECT count(*) FROM users").await;
    assert_eq!(answer["columns"], json!(["step", "detail"]));
    assert!(!answer["data"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn the_limit_of_a_document_names_the_way_out() {
    let cluster = Cluster::new(2);
    let limits = Limits { json_result_bytes: 300, ..Limits::default() };
    let client = Client::with(&cluster, Settings { limits, ..Settings::default() });
    client.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT) SHARD BY (id)").await;
    let long = "x".repeat(400);
    client.run(&format!("INSERT INTO t VALUES (1, '{long}')")).await;
    assert_eq!(client.refused("SELECT * FROM t WHERE id = 1").await, (422, "54000".to_owned()));
}

#[tokio::test]
async fn a_node_that_is_full_says_so_at_once() {
    let cluster = Cluster::new(1);
    let limits = Limits { requests_in_flight: 0, ..Limits::default() };
    let client = Client::with(&cluster, Settings { limits, ..Settings::default() });
    assert_eq!(client.refused("SELECT 1").await, (503, "overloaded".to_owned()));
    assert_eq!(client.get("/health").await.status, 200, "health is always told");
}

#[tokio::test]
async fn without_a_leader_the_failure_is_retryable() {
    let (cluster, client) = users(1).await;
    cluster.fail(&[Fault::NoLeader]);
    let answer = client.query(json!({"query": "INSERT INTO users VALUES (70, 'x')"})).await;
    assert_eq!((answer.status, &answer.json["retryable"]), (503, &json!(true)), "{}", answer.text);
}
