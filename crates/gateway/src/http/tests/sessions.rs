//! `/sessions`: transactions over several requests.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use pleat_cluster::{KeyType, ShardId, Value, partition_of};
use serde_json::{Value as Json, json};

use crate::testing::{Client, Cluster, Fault, PARTITIONS, Step};

/// Keys on the first shard and on the second one of two.
fn keys(shard: u32, count: usize) -> Vec<i64> {
    let catalog = Cluster::new_catalog(2);
    let owner = |id: i64| {
        let unit = partition_of(&Value::Integer(id), KeyType::Integer, PARTITIONS).unwrap();
        catalog.owner(unit).unwrap().0
    };
    (1..).filter(|id| owner(*id) == shard).take(count).collect()
}

pub(super) struct Session {
    pub client: Arc<Client>,
    pub id: String,
}

impl Session {
    pub async fn open(client: &Arc<Client>) -> Self {
        let opened = client.post("/sessions", "application/json", "").await;
        assert_eq!(opened.status, 201, "{}", opened.text);
        Self { client: client.clone(), id: opened.json["session"].as_str().unwrap().to_owned() }
    }

    /// The rows of a statement, or its code.
    pub async fn say(&self, sql: &str) -> Json {
        let path = format!("/sessions/{}/query", self.id);
        let body = json!({"query": sql, "timeout_ms": 10_000}).to_string();
        let answer = self.client.post(&path, "application/json", body).await;
        if answer.status != 200 {
            assert_eq!(answer.json["retryable"], false, "{sql}: {}", answer.text);
            return answer.json["code"].clone();
        }
        let columns = answer.json["columns"].as_array().unwrap().clone();
        let row = |row: &Json| columns.iter().map(|name| row[name.as_str().unwrap()].clone()).collect::<Json>();
        answer.json["data"].as_array().unwrap().iter().map(row).collect()
    }

    pub async fn all(&self, statements: &[&str]) {
        for sql in statements {
            let said = self.say(sql).await;
            assert!(said.is_array(), "{sql}: {said}");
        }
    }
}

async fn cluster() -> (Arc<Cluster>, Arc<Client>) {
    let cluster = Cluster::new(2);
    let client = Arc::new(Client::new(&cluster));
    client.run("CREATE TABLE test (id INTEGER PRIMARY KEY, value INTEGER) SHARD BY (id)").await;
    (cluster, client)
}

/// What a table of anomalies says: `1 SQL` runs in session 1 and must give what stands behind `->` (`ok` where nothing
/// does); `1? SQL` begins it, and `1= …` is what it gives.
async fn play(name: &str, script: &str, a: i64, b: i64, c: i64) {
    let (_cluster, client) = cluster().await;
    client.run(&format!("INSERT INTO test VALUES ({a}, 10), ({b}, 20)")).await;
    let mut sessions = BTreeMap::new();
    let mut begun = BTreeMap::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (head, rest) = line.split_once(' ').unwrap();
        let number: u32 = head.trim_end_matches(['?', '=']).parse().unwrap();
        if let Entry::Vacant(vacant) = sessions.entry(number) {
            vacant.insert(Arc::new(Session::open(&client).await));
        }
        let session = sessions[&number].clone();
        let (sql, expected) = match (head.ends_with('='), rest.split_once("->")) {
            (true, _) => (String::new(), rest.trim()),
            (false, Some((sql, expected))) => (sql.trim().to_owned(), expected.trim()),
            (false, None) => (rest.to_owned(), "ok"),
        };
        let sql = sql.replace(":a", &a.to_string()).replace(":b", &b.to_string()).replace(":c", &c.to_string());
        if head.ends_with('?') {
            begun.insert(number, tokio::spawn(async move { session.say(&sql).await }));
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        let said = match begun.remove(&number).filter(|_| head.ends_with('=')) {
            Some(begun) => begun.await.unwrap(),
            None => session.say(&sql).await,
        };
        let expected: Json = match expected {
            "ok" => json!([]),
            code if code.starts_with(|first: char| first.is_ascii_digit()) => json!(code),
            rows => serde_json::from_str(rows).unwrap(),
        };
        assert_eq!(said, expected, "{name} ({a}, {b}): {line}");
    }
}

const ON_ONE_SHARD: &[(&str, &str)] = &[
    ("G0: dirty write", "1 BEGIN\n2 BEGIN\n1 UPDATE test SET value = 11 WHERE id = :a\n2? UPDATE test SET value = 12 WHERE id = :a
      1 UPDATE test SET value = 21 WHERE id = :b\n1 COMMIT\n2= ok\n2 UPDATE test SET value = 22 WHERE id = :b\n2 COMMIT
      3 SELECT value FROM test ORDER BY value -> [[12],[22]]"),
    ("G1a: aborted read", "1 BEGIN\n2 BEGIN\n1 UPDATE test SET value = 101 WHERE id = :a\n2 SELECT value FROM test WHERE id = :a -> [[10]]
      1 ROLLBACK\n2 SELECT value FROM test WHERE id = :a -> [[10]]\n2 COMMIT"),
    ("G1b: intermediate read", "1 BEGIN\n2 BEGIN\n1 UPDATE test SET value = 101 WHERE id = :a\n2 SELECT value FROM test WHERE id = :a -> [[10]]
      1 UPDATE test SET value = 11 WHERE id = :a\n1 COMMIT\n2 SELECT value FROM test WHERE id = :a -> [[10]]\n2 COMMIT"),
    ("G1c: circular information flow", "1 BEGIN\n2 BEGIN\n1 UPDATE test SET value = 11 WHERE id = :a\n2? UPDATE test SET value = 22 WHERE id = :b
      1 SELECT value FROM test WHERE id = :b -> [[20]]\n1 COMMIT\n2= ok\n2 SELECT value FROM test WHERE id = :a -> [[11]]\n2 COMMIT"),
    ("OTV: observed transaction vanishes", "1 BEGIN\n2 BEGIN\n3 BEGIN\n1 UPDATE test SET value = 11 WHERE id = :a\n1 UPDATE test SET value = 19 WHERE id = :b
      2? UPDATE test SET value = 12 WHERE id = :a\n1 COMMIT\n2= ok\n3 SELECT value FROM test WHERE id = :a -> [[11]]
      2 UPDATE test SET value = 18 WHERE id = :b\n3 SELECT value FROM test WHERE id = :b -> [[19]]\n2 COMMIT
      3 SELECT value FROM test WHERE id = :b -> [[19]]\n3 SELECT value FROM test WHERE id = :a -> [[11]]\n3 COMMIT"),
    ("PMP: predicate-many-preceders", "1 BEGIN\n2 BEGIN\n1 SELECT * FROM test WHERE id IN (:a, :b) AND value = 30 -> []\n2 UPDATE test SET value = 30 WHERE id = :b\n2 COMMIT
      1 SELECT * FROM test WHERE id IN (:a, :b) AND value % 3 = 0 -> []\n1 COMMIT"),
    ("PMP with a write", "1 BEGIN\n2 BEGIN\n1 UPDATE test SET value = value + 10 WHERE id IN (:a, :b)\n2 SELECT value FROM test WHERE id = :b -> [[20]]
      2? DELETE FROM test WHERE id IN (:a, :b) AND value = 20\n1 COMMIT\n2= 40001\n2 COMMIT -> 25P02"),
    ("P4: lost update", "1 BEGIN\n2 BEGIN\n1 SELECT value FROM test WHERE id = :a -> [[10]]\n2 SELECT value FROM test WHERE id = :a -> [[10]]
      1 UPDATE test SET value = 11 WHERE id = :a\n2? UPDATE test SET value = 12 WHERE id = :a\n1 COMMIT\n2= 40001\n2 ROLLBACK
      3 SELECT value FROM test WHERE id = :a -> [[11]]"),
    ("P4 with BEGIN IMMEDIATE", "1 BEGIN IMMEDIATE\n2 BEGIN IMMEDIATE\n1 SELECT value FROM test WHERE id = :a -> [[10]]\n2? SELECT value FROM test WHERE id = :a
      1 UPDATE test SET value = 11 WHERE id = :a\n1 COMMIT\n2= [[11]]\n2 UPDATE test SET value = 12 WHERE id = :a\n2 COMMIT
      3 SELECT value FROM test WHERE id = :a -> [[12]]"),
    ("G-single: read skew", "1 BEGIN\n2 BEGIN\n1 SELECT value FROM test WHERE id = :a -> [[10]]\n2 UPDATE test SET value = 12 WHERE id = :a
      2 UPDATE test SET value = 18 WHERE id = :b\n2 COMMIT\n1 SELECT value FROM test WHERE id = :b -> [[20]]\n1 COMMIT"),
    ("G-single with a write", "1 BEGIN\n2 BEGIN\n1 SELECT value FROM test WHERE id = :a -> [[10]]\n2 UPDATE test SET value = 12 WHERE id = :a
      2 UPDATE test SET value = 18 WHERE id = :b\n2 COMMIT\n1 DELETE FROM test WHERE id = :b AND value = 20 -> 40001\n1 ROLLBACK"),
    ("G2-item: write skew", "1 BEGIN\n2 BEGIN\n1 SELECT count(*) FROM test WHERE id IN (:a, :b) -> [[2]]\n2 SELECT count(*) FROM test WHERE id IN (:a, :b) -> [[2]]
      1 UPDATE test SET value = 11 WHERE id = :a\n2? UPDATE test SET value = 21 WHERE id = :b\n1 COMMIT\n2= 40001\n2 ROLLBACK"),
    ("G2: anti-dependency cycle", "1 BEGIN\n2 BEGIN\n1 SELECT * FROM test WHERE id IN (:a, :b, :c) AND value % 3 = 0 -> []\n2 SELECT * FROM test WHERE id IN (:a, :b, :c) AND value % 3 = 0 -> []
      1 INSERT INTO test VALUES (:c, 30)\n2? UPDATE test SET value = 42 WHERE id = :b\n1 COMMIT\n2= 40001\n2 ROLLBACK"),
];

const OVER_TWO_SHARDS: &[(&str, &str)] = &[
    ("G0: dirty write", "1 BEGIN\n2 BEGIN\n1 UPDATE test SET value = 11 WHERE id = :a\n2? UPDATE test SET value = 12 WHERE id = :a
      1 UPDATE test SET value = 21 WHERE id = :b\n1 COMMIT\n2= ok\n2 UPDATE test SET value = 22 WHERE id = :b\n2 COMMIT
      3 SELECT value FROM test ORDER BY value -> [[12],[22]]"),
    ("G1a: aborted read", "1 BEGIN\n2 BEGIN\n1 UPDATE test SET value = value + 100\n2 SELECT sum(value) FROM test -> [[30]]
      1 ROLLBACK\n2 SELECT sum(value) FROM test -> [[30]]\n2 COMMIT"),
    ("G1b: intermediate read", "1 BEGIN\n2 BEGIN READ ONLY\n1 UPDATE test SET value = value + 100\n2 SELECT sum(value) FROM test -> [[30]]
      1 UPDATE test SET value = value - 99\n1 COMMIT\n2 SELECT sum(value) FROM test -> [[30]]\n2 COMMIT\n2 SELECT sum(value) FROM test -> [[32]]"),
    ("G1c: circular information flow", "1 BEGIN\n2 BEGIN\n1 UPDATE test SET value = 11 WHERE id = :a\n2 UPDATE test SET value = 22 WHERE id = :b
      1 SELECT value FROM test WHERE id = :b -> [[20]]\n2 SELECT value FROM test WHERE id = :a -> [[10]]\n1 COMMIT\n2 COMMIT -> 40001
      3 SELECT value FROM test ORDER BY value -> [[11],[20]]"),
    ("OTV: observed transaction vanishes", "1 BEGIN\n2 BEGIN\n3 BEGIN READ ONLY\n1 UPDATE test SET value = 11 WHERE id = :a\n1 UPDATE test SET value = 19 WHERE id = :b
      2? UPDATE test SET value = 12 WHERE id = :a\n1 COMMIT\n2= ok\n3 SELECT value FROM test WHERE id = :a -> [[11]]
      2 UPDATE test SET value = 18 WHERE id = :b\n3 SELECT value FROM test WHERE id = :b -> [[19]]\n2 COMMIT
      3 SELECT value FROM test WHERE id = :b -> [[19]]\n3 SELECT value FROM test WHERE id = :a -> [[11]]\n3 COMMIT"),
    ("PMP: predicate-many-preceders", "1 BEGIN\n2 BEGIN\n1 SELECT * FROM test WHERE value = 30 -> []\n2 INSERT INTO test VALUES (:c, 30)\n2 COMMIT
      1 SELECT * FROM test WHERE value % 3 = 0 -> []\n1 COMMIT -> 40001"),
    ("PMP, reading only", "1 BEGIN READ ONLY\n2 BEGIN\n1 SELECT * FROM test WHERE value = 30 -> []\n2 INSERT INTO test VALUES (:c, 30)\n2 COMMIT
      1 SELECT * FROM test WHERE value % 3 = 0 -> []\n1 COMMIT"),
    ("P4: lost update", "1 BEGIN\n2 BEGIN\n1 SELECT sum(value) FROM test -> [[30]]\n2 SELECT sum(value) FROM test -> [[30]]
      1 UPDATE test SET value = value + 1\n2? UPDATE test SET value = value + 1\n1 COMMIT\n2= 40001\n2 ROLLBACK
      3 SELECT sum(value) FROM test -> [[32]]"),
    ("G-single: read skew", "1 BEGIN\n2 BEGIN\n1 SELECT value FROM test WHERE id = :a -> [[10]]\n2 UPDATE test SET value = 12 WHERE id = :a
      2 UPDATE test SET value = 18 WHERE id = :b\n2 COMMIT\n1 SELECT value FROM test WHERE id = :b -> 40001\n1 ROLLBACK"),
    ("G2-item: write skew", "1 BEGIN\n2 BEGIN\n1 SELECT count(*) FROM test -> [[2]]\n2 SELECT count(*) FROM test -> [[2]]
      1 UPDATE test SET value = 11 WHERE id = :a\n2 UPDATE test SET value = 21 WHERE id = :b\n1 COMMIT\n2 COMMIT -> 40001
      3 SELECT value FROM test ORDER BY value -> [[11],[20]]"),
    ("G2: anti-dependency cycle", "1 BEGIN\n2 BEGIN\n1 SELECT * FROM test WHERE value % 3 = 0 -> []\n2 SELECT * FROM test WHERE value % 3 = 0 -> []
      1 INSERT INTO test VALUES (:c, 30)\n2 UPDATE test SET value = 42 WHERE id = :b\n1 COMMIT\n2 COMMIT -> 40001
      3 SELECT count(*) FROM test WHERE value % 3 = 0 -> [[1]]"),
];

#[tokio::test]
async fn the_classic_anomalies_on_one_shard() {
    let ids = keys(1, 3);
    for (name, script) in ON_ONE_SHARD {
        play(name, script, ids[0], ids[1], ids[2]).await;
    }
}

#[tokio::test]
async fn the_classic_anomalies_over_two_shards() {
    let (a, b) = (keys(1, 2), keys(2, 1));
    for (name, script) in OVER_TWO_SHARDS {
        play(name, script, a[0], b[0], a[1]).await;
    }
}

#[tokio::test]
async fn a_failed_statement_is_undone_and_savepoints_mark_places() {
    let (cluster, client) = cluster().await;
    let (a, b) = (keys(1, 2), keys(2, 2));
    let session = Session::open(&client).await;
    session.all(&["BEGIN", &format!("INSERT INTO test VALUES ({}, 1), ({}, 2)", a[0], b[0])]).await;
    // The first row fits, the second one does not: neither stays.
    let twice = format!("INSERT INTO test VALUES ({}, 3), ({}, 4)", a[1], b[0]);
    assert_eq!(session.say(&twice).await, "23505");
    assert_eq!(session.say("SELECT count(*) FROM test").await, json!([[2]]));
    session
        .all(&["SAVEPOINT one", &format!("INSERT INTO test VALUES ({}, 3)", a[1]), "SAVEPOINT two", "DELETE FROM test"])
        .await;
    assert_eq!(session.say("SELECT count(*) FROM test").await, json!([[0]]));
    session.all(&["ROLLBACK TO two"]).await;
    assert_eq!(session.say("SELECT count(*) FROM test").await, json!([[3]]));
    session.all(&["ROLLBACK TO SAVEPOINT one"]).await;
    assert_eq!(session.say("ROLLBACK TO two").await, "3B001");
    assert_eq!(session.say("SELECT count(*) FROM test").await, json!([[2]]));
    session.all(&[&format!("INSERT INTO test VALUES ({}, 9)", b[1]), "RELEASE one", "COMMIT"]).await;
    assert_eq!(client.rows("SELECT sum(value) FROM test").await, json!([[12]]));
    assert_eq!((cluster.open_parts(), cluster.prepared().len()), (0, 0));
}

#[tokio::test]
async fn what_does_not_fit_the_state_is_refused_by_its_code() {
    let (_cluster, client) = cluster().await;
    let session = Session::open(&client).await;
    for (sql, expected) in [
        ("COMMIT", json!("25P01")),
        ("ROLLBACK", json!("25P01")),
        ("SAVEPOINT a", json!("25P01")),
        ("BEGIN READ ONLY", json!([])),
        ("BEGIN", json!("25001")),
        ("INSERT INTO test VALUES (1, 1)", json!("25006")),
        ("CREATE TABLE t (a INTEGER PRIMARY KEY)", json!("25001")),
        ("RELEASE a", json!("3B001")),
        ("COMMIT AND CHAIN", json!("42601")),
        ("SELECT count(*) FROM test", json!([[0]])),
        ("COMMIT", json!([])),
        ("INSERT INTO test VALUES (1, 1)", json!([])),
    ] {
        assert_eq!(session.say(sql).await, expected, "{sql}");
    }
    for path in ["/sessions/node-1.none/query", "/sessions/node-7.none/query"] {
        let lost = client.post(path, "application/json", json!({"query": "SELECT 1"}).to_string()).await;
        assert_eq!((lost.status, lost.json["code"].as_str()), (404, Some("08003")), "{}", lost.text);
    }
    let named = client.query(json!({"query": "SELECT 7 AS n", "session": session.id})).await;
    assert_eq!(named.json["data"], json!([{"n": 7}]));
}

#[tokio::test]
async fn a_transaction_whose_shard_lost_its_leader_has_failed_and_holds_nothing() {
    let (cluster, client) = cluster().await;
    let (a, b) = (keys(1, 1)[0], keys(2, 1)[0]);
    let session = Session::open(&client).await;
    session.all(&["BEGIN", &format!("INSERT INTO test VALUES ({a}, 1), ({b}, 2)")]).await;
    cluster.lose_parts(ShardId(1));
    assert_eq!(session.say("SELECT count(*) FROM test").await, "40001");
    assert_eq!(cluster.open_parts(), 0, "the other shard is let go of at once");
    assert_eq!(session.say("SELECT 1").await, "25P02");
    assert_eq!(session.say("COMMIT").await, "25P02");
    assert_eq!(session.say("SELECT count(*) FROM test").await, json!([[0]]), "the session goes on");
}

#[tokio::test]
async fn a_commit_over_two_shards_is_all_or_nothing_whatever_goes_wrong() {
    let (a, b) = (keys(1, 1)[0], keys(2, 1)[0]);
    for step in
        [Step::Prepare(ShardId(1)), Step::Prepare(ShardId(2)), Step::Ledger { commit: true }, Step::Decide(ShardId(2))]
    {
        for fault in [Fault::NoLeader, Fault::AnswerLost, Fault::Never, Fault::DoneNever] {
            let (cluster, client) = cluster().await;
            let session = Session::open(&client).await;
            session
                .all(&[
                    "BEGIN",
                    &format!("INSERT INTO test VALUES ({a}, 1)"),
                    &format!("INSERT INTO test VALUES ({b}, 2)"),
                ])
                .await;
            let mut once = Some(fault);
            cluster.trap(move |at| if at == step { once.take() } else { None });
            let said = tokio::time::timeout(Duration::from_millis(300), session.say("COMMIT")).await;
            cluster.untrap();
            cluster.recover();
            let count = client.rows("SELECT count(*) FROM test").await;
            assert!(count == json!([[0]]) || count == json!([[2]]), "{step:?} {fault:?}: {count}");
            if let Ok(Json::Array(_)) = said {
                assert_eq!(count, json!([[2]]), "{step:?} {fault:?}");
            }
            assert_eq!(cluster.prepared(), [], "{step:?} {fault:?}");
        }
    }
}

#[tokio::test]
async fn an_id_that_is_in_use_is_drawn_again_inside_of_a_transaction() {
    let (_cluster, client) = cluster().await;
    let session = Session::open(&client).await;
    session.all(&["BEGIN", "INSERT INTO test (value) VALUES (1)"]).await;
    let first = session.say("SELECT max(id) FROM test").await[0][0].as_i64().unwrap();
    session.all(&["COMMIT"]).await;
    // Given by hand into the block of ids that the node holds; also by the transaction itself.
    for by_hand in [first + 1, first + 2] {
        client.run(&format!("INSERT INTO test VALUES ({by_hand}, 7)")).await;
    }
    session.all(&["BEGIN", "INSERT INTO test (value) VALUES (2)"]).await;
    let next = session.say("SELECT max(id) FROM test").await[0][0].as_i64().unwrap();
    assert!(next > first + 2, "{next}");
    session.all(&[&format!("INSERT INTO test VALUES ({}, 8)", next + 3)]).await;
    // Rows on both shards, some of which meet it.
    session.all(&["INSERT INTO test (value) VALUES (3), (3), (3), (3), (3), (3)", "COMMIT"]).await;
    assert_eq!(client.rows("SELECT count(*), count(DISTINCT id) FROM test").await, json!([[11, 11]]));
    assert_eq!(client.rows("SELECT count(*) FROM test WHERE value = 3").await, json!([[6]]));
    // One that the client gave itself is its own to change.
    session.all(&["BEGIN"]).await;
    assert_eq!(session.say(&format!("INSERT INTO test VALUES ({first}, 9)")).await, "23505");
    session.all(&["ROLLBACK"]).await;
}

#[tokio::test]
async fn a_statement_that_waits_for_one_shard_keeps_the_transactions_others() {
    let (cluster, client) = cluster().await;
    let (a, b) = (keys(1, 1)[0], keys(2, 1)[0]);
    let (older, younger) = (Session::open(&client).await, Session::open(&client).await);
    older.all(&["BEGIN", &format!("INSERT INTO test VALUES ({a}, 1)")]).await;
    younger.all(&["BEGIN", &format!("INSERT INTO test VALUES ({b}, 2)")]).await;
    assert!(cluster.touched.lock().is_empty(), "nobody waits");
    let write = format!("UPDATE test SET value = 3 WHERE id = {a}");
    let write = [write.as_str()];
    let waiting = younger.all(&write);
    let ending = async {
        while cluster.touched.lock().get(&ShardId(2)).is_none_or(|times| *times < 2) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        older.all(&["ROLLBACK"]).await;
    };
    tokio::join!(waiting, ending);
    assert!(!cluster.touched.lock().contains_key(&ShardId(1)), "what takes a step is not idle");
    younger.all(&["COMMIT"]).await;
    assert_eq!(client.rows("SELECT count(*) FROM test").await, json!([[1]]));
}

#[tokio::test]
async fn sessions_end_when_closed_or_unused_and_roll_back() {
    let (cluster, client) = cluster().await;
    let session = Session::open(&client).await;
    session.all(&["BEGIN", "INSERT INTO test VALUES (1, 1)"]).await;
    let listed = client.get("/sessions").await.json;
    assert_eq!(listed["sessions"][0]["transaction"]["wrote"].as_array().unwrap().len(), 1, "{listed}");
    let txns = client.get("/txns").await.json;
    assert_eq!((&txns["open"][0]["session"], &txns["in_doubt"]), (&json!(session.id), &json!([])));
    let request =
        axum::http::Request::delete(format!("/sessions/{}", session.id)).body(axum::body::Body::empty()).unwrap();
    assert_eq!(client.send(request).await.status, 204);
    assert_eq!((session.say("SELECT 1").await, cluster.open_parts()), (json!("08003"), 0));
    let short = client.post("/sessions", "application/json", json!({"idle_ms": 30}).to_string()).await;
    let short = Session { client: client.clone(), id: short.json["session"].as_str().unwrap().to_owned() };
    short.all(&["BEGIN", "INSERT INTO test VALUES (1, 1)"]).await;
    while cluster.open_parts() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(short.say("COMMIT").await, "08003");
    assert_eq!(client.rows("SELECT count(*) FROM test").await, json!([[0]]));
}

#[tokio::test]
async fn a_script_may_hold_a_transaction_and_a_session_knows_its_last_id() {
    let (_cluster, client) = cluster().await;
    let script = "BEGIN; INSERT INTO test (value) VALUES (1), (2), (3); SELECT count(*) AS n FROM test; COMMIT";
    let answer = client.run(script).await;
    assert_eq!(answer["results"][2]["data"], json!([{"n": 3}]), "{answer}");
    assert_eq!(client.refused("BEGIN; DELETE FROM test").await.1, "25P01");
    assert_eq!(client.refused("BEGIN; DELETE FROM test; SELECT nothing FROM test; COMMIT").await.1, "42703");
    assert_eq!(client.refused("COMMIT").await.1, "25P01");
    assert_eq!(client.rows("SELECT count(*) FROM test").await, json!([[3]]));
    let (one, other) = (Session::open(&client).await, Session::open(&client).await);
    one.all(&["INSERT INTO test (value) VALUES (4)"]).await;
    other.all(&["INSERT INTO test (value) VALUES (5)"]).await;
    let of = |value: i64| format!("SELECT id FROM test WHERE value = {value}");
    assert_eq!(one.say("SELECT last_insert_rowid()").await, client.rows(&of(4)).await);
    assert_eq!(other.say("SELECT last_insert_rowid()").await, client.rows(&of(5)).await);
    one.all(&["BEGIN", "INSERT INTO test (value) VALUES (6)"]).await;
    let inside = one.say("SELECT last_insert_rowid()").await;
    one.all(&["COMMIT"]).await;
    assert_eq!(inside, client.rows(&of(6)).await);
}
