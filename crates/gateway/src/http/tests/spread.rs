//! Writes over several shards: all or none, whatever goes wrong.

use std::sync::Arc;
use std::time::Duration;

use pleat_cluster::{ShardId, TxnId};
use serde_json::{Value as Json, json};

use crate::testing::{Client, Cluster, Fault, PARTITIONS, Step};

const SHARDS: [ShardId; 3] = [ShardId(1), ShardId(2), ShardId(3)];
const ACCOUNTS: i64 = 30;

/// A bank with accounts on three shards.
async fn bank() -> (Arc<Cluster>, Client) {
    let cluster = Cluster::new(3);
    let client = Client::new(&cluster);
    client.run("CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0)) SHARD BY (id)").await;
    let rows: Vec<_> = (1..=ACCOUNTS).map(|id| format!("({id}, 100)")).collect();
    let answer = client.run(&format!("INSERT INTO accounts VALUES {}", rows.join(", "))).await;
    assert_eq!(
        (&answer["rows_affected"], &answer["shards"]),
        (&json!(ACCOUNTS), &json!(["shard-1", "shard-2", "shard-3"]))
    );
    (cluster, client)
}

async fn sum(client: &Client) -> Json {
    client.rows("SELECT count(*), sum(balance) FROM accounts").await
}

fn whole() -> Json {
    json!([[ACCOUNTS, 100 * ACCOUNTS]])
}

fn transfer(from: i64, to: i64, amount: i64) -> String {
    format!(
        "UPDATE accounts SET balance = balance - {amount} WHERE id = {from}; UPDATE accounts SET balance = balance + {amount} WHERE id = {to}"
    )
}

/// The account numbers of a shard.
fn accounts_of(shard: u32) -> Vec<i64> {
    let owner = |id: &i64| {
        let key = pleat_cluster::Value::Integer(*id);
        let unit = pleat_cluster::partition_of(&key, pleat_cluster::KeyType::Integer, PARTITIONS).unwrap();
        Cluster::new_catalog(3).owner(unit).unwrap().0
    };
    (1..=ACCOUNTS).filter(|id| owner(id) == shard).collect()
}

#[tokio::test]
async fn one_write_on_all_shards() {
    let (_cluster, client) = bank().await;
    let answer = client.run("UPDATE accounts SET balance = balance + 1").await;
    assert_eq!(answer["rows_affected"], ACCOUNTS);
    assert!(answer["notice"].is_string(), "a write to all shards is told: {answer}");
    assert_eq!(sum(&client).await, json!([[ACCOUNTS, 101 * ACCOUNTS]]));
    let answer = client.run("DELETE FROM accounts WHERE balance > 0 RETURNING id").await;
    let mut ids: Vec<_> = answer["data"].as_array().unwrap().iter().map(|row| row["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=ACCOUNTS).collect::<Vec<_>>());
    assert_eq!(sum(&client).await, json!([[0, null]]));
}

#[tokio::test]
async fn a_statement_that_fails_on_one_shard_is_done_on_none() {
    let (cluster, client) = bank().await;
    let (poor, rich) = (accounts_of(1)[0], accounts_of(2)[0]);
    let refused = client.query(json!({"query": transfer(poor, rich, 101)})).await;
    assert_eq!((refused.status, refused.json["code"].as_str()), (409, Some("23514")), "{}", refused.text);
    let twice = format!("UPDATE accounts SET balance = 0 WHERE id = {poor}; INSERT INTO accounts VALUES ({rich}, 1)");
    let refused = client.query(json!({"query": twice})).await;
    assert_eq!(refused.json["code"], "23505", "{}", refused.text);
    assert!(refused.json["error"].as_str().unwrap().starts_with("statement 2: "), "{}", refused.text);
    assert_eq!((sum(&client).await, cluster.prepared().len()), (whole(), 0));
}

#[tokio::test]
async fn every_step_that_goes_wrong_leaves_all_or_nothing() {
    let (from, to) = (accounts_of(1)[0], accounts_of(3)[0]);
    let steps = [
        Step::Prepare(SHARDS[0]),
        Step::Prepare(SHARDS[2]),
        Step::Ledger { commit: true },
        Step::Decide(SHARDS[0]),
        Step::Decide(SHARDS[2]),
    ];
    for step in steps {
        for fault in [Fault::NoLeader, Fault::AnswerLost, Fault::Never, Fault::DoneNever] {
            let (cluster, client) = bank().await;
            let mut once = Some(fault);
            cluster.trap(move |at| if at == step { once.take() } else { None });
            let request = json!({"query": transfer(from, to, 7), "idempotency_key": "k", "timeout_ms": 300});
            // A coordinator that never hears again is as good as dead, and so is its client.
            let answer = tokio::time::timeout(Duration::from_millis(500), client.query(request.clone())).await;
            cluster.untrap();
            cluster.recover();
            assert_eq!(cluster.prepared(), [], "{step:?} {fault:?}");
            let balance = |id: i64| format!("SELECT balance FROM accounts WHERE id = {id}");
            let (left, right) = (client.rows(&balance(from)).await, client.rows(&balance(to)).await);
            let done = left == json!([[93]]);
            assert_eq!((left == json!([[100]]), right == json!([[107]])), (!done, done), "{step:?} {fault:?}");
            assert_eq!(sum(&client).await, whole(), "{step:?} {fault:?}");
            if let Ok(answer) = answer {
                let retryable = &answer.json["retryable"] == true;
                assert!(answer.status != 200 || done, "{step:?} {fault:?}: {}", answer.text);
                assert!(answer.status == 200 || retryable, "a key makes it safe: {}", answer.text);
            }
            let again = client.query(request).await;
            assert_eq!(again.status, 200, "{step:?} {fault:?}: {}", again.text);
            assert_eq!(again.json["replayed"] == true, done, "{step:?} {fault:?}: {}", again.text);
            assert_eq!(client.rows(&balance(from)).await, json!([[93]]), "{step:?} {fault:?}");
            assert_eq!(sum(&client).await, whole());
        }
    }
}

#[tokio::test]
async fn a_shard_whose_vote_was_lost_is_told_of_the_abort() {
    let (from, to) = (accounts_of(1)[0], accounts_of(3)[0]);
    for fault in [Fault::AnswerLost, Fault::NoLeader] {
        let (cluster, client) = bank().await;
        let mut once = Some(fault);
        cluster.trap(move |at| if at == Step::Prepare(SHARDS[2]) { once.take() } else { None });
        let answer = client.query(json!({"query": transfer(from, to, 7), "timeout_ms": 10_000})).await;
        // Nothing was done, and nobody but the coordinator is there to say so.
        assert_eq!((answer.status, answer.json["code"].as_str()), (503, Some("57P03")), "{}", answer.text);
        while !cluster.prepared().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(sum(&client).await, whole());
    }
}

#[tokio::test]
async fn a_decision_that_failed_on_a_shard_is_not_told_and_not_forgotten() {
    let (from, to) = (accounts_of(1)[0], accounts_of(3)[0]);
    let (cluster, client) = bank().await;
    cluster.trap(|at| (at == Step::Decide(SHARDS[2])).then_some(Fault::Broken));
    let answer = client.query(json!({"query": transfer(from, to, 7)})).await;
    assert_eq!((answer.status, answer.json["code"].as_str()), (504, Some("08007")), "{}", answer.text);
    // The control leader must find it among what is not settled, however long nobody comes by.
    tokio::time::sleep(Duration::from_millis(700)).await;
    let undecided = cluster.ledger.lock().commits().map(|(txn, _)| txn).collect::<Vec<_>>();
    assert_eq!(cluster.prepared().iter().map(|(_, txn)| txn.txn).collect::<Vec<_>>(), undecided);
    assert_eq!(undecided.len(), 1);
    cluster.untrap();
    cluster.recover();
    let balance = |id: i64| format!("SELECT balance FROM accounts WHERE id = {id}");
    assert_eq!(client.rows(&balance(from)).await, json!([[93]]));
    assert_eq!(client.rows(&balance(to)).await, json!([[107]]));
}

#[tokio::test]
async fn nothing_was_done_is_not_said_after_an_attempt_that_was_lost() {
    let (cluster, client) = bank().await;
    let account = accounts_of(1)[0];
    let take = format!("UPDATE accounts SET balance = balance - 1 WHERE id = {account}");
    for again in [Fault::NoLeader, Fault::LostThenFenced] {
        cluster.fail(&[Fault::LostThenFenced, again, Fault::NoLeader]);
        let answer = client.query(json!({"query": take, "timeout_ms": 5_000})).await;
        // It was done, and no later refusal makes that undone.
        assert_eq!(answer.json["code"], "08007", "{again:?} {}", answer.text);
        assert_eq!(answer.json["retryable"], false, "{again:?} {}", answer.text);
        cluster.fail_no_more();
    }
    let keyed = json!({"query": take, "timeout_ms": 5_000, "idempotency_key": "k"});
    cluster.fail(&[Fault::LostThenFenced, Fault::NoLeader]);
    let answer = client.query(keyed.clone()).await;
    assert_eq!((&answer.json["code"], &answer.json["retryable"]), (&json!("08007"), &json!(true)), "{}", answer.text);
    assert_eq!(client.query(keyed).await.json["replayed"], true);
    assert_eq!(client.rows(&format!("SELECT balance FROM accounts WHERE id = {account}")).await, json!([[97]]));
}

#[tokio::test]
async fn a_repetition_gets_the_whole_answer_wherever_the_rows_have_gone() {
    let (cluster, client) = bank().await;
    let keyed = json!({"query": "UPDATE accounts SET balance = balance + 1 RETURNING id", "idempotency_key": "k"});
    let first = client.query(keyed.clone()).await;
    assert_eq!(first.json["rows_affected"], ACCOUNTS, "{}", first.text);
    let of_one = cluster.partitions_of(ShardId(1));
    cluster.split(ShardId(1), &of_one[..of_one.len() / 2]);
    let again = client.query(keyed).await;
    assert_eq!(
        (&again.json["replayed"], &again.json["rows_affected"]),
        (&json!(true), &json!(ACCOUNTS)),
        "{}",
        again.text
    );
    assert_eq!(again.json["data"].as_array().unwrap().len(), ACCOUNTS as usize);
    assert_eq!(sum(&client).await, json!([[ACCOUNTS, 101 * ACCOUNTS]]));
    let token = again.json["token"].clone();
    let read =
        json!({"query": "SELECT sum(balance) AS s FROM accounts", "consistency": "read_your_writes", "token": token});
    assert_eq!(client.query(read).await.json["data"], json!([{"s": 101 * ACCOUNTS}]));
}

#[tokio::test]
async fn a_moving_partition_makes_a_write_over_shards_go_again() {
    let (cluster, client) = bank().await;
    let of_one = cluster.partitions_of(ShardId(1));
    let moving = cluster.begin_split(ShardId(1), &of_one[..of_one.len() / 2]);
    moving.fence();
    let writing = client.run("UPDATE accounts SET balance = balance + 1");
    let handing_over = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        moving.hand_over();
    };
    let (answer, ()) = tokio::join!(writing, handing_over);
    assert_eq!((&answer["rows_affected"], answer["shards"].as_array().unwrap().len()), (&json!(ACCOUNTS), 4));
    assert_eq!(
        sum(&client).await,
        json!([[ACCOUNTS, 101 * ACCOUNTS]]),
        "rows that the old shard still holds are not written twice"
    );
}

#[tokio::test]
async fn a_partition_that_has_just_come_to_a_shard_makes_a_write_go_again() {
    let (cluster, client) = bank().await;
    let partitions = cluster.partitions_of(ShardId(2));
    let moving = cluster.begin_move(ShardId(2), ShardId(1), &partitions[..partitions.len() / 2]);
    moving.fence();
    cluster.hold_back(true);
    moving.hand_over();
    let writing = client.run("UPDATE accounts SET balance = balance + 1");
    let learning = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        cluster.hold_back(false);
    };
    let (answer, ()) = tokio::join!(writing, learning);
    assert_eq!(answer["rows_affected"], ACCOUNTS);
    assert_eq!(sum(&client).await, json!([[ACCOUNTS, 101 * ACCOUNTS]]));
}

#[tokio::test]
async fn a_read_never_sees_half_of_a_transfer() {
    let (cluster, client) = bank().await;
    let (from, to) = (accounts_of(1)[0], accounts_of(3)[0]);
    // The transfer is decided on the first shard, and its coordinator dies before it tells the third.
    cluster.trap(|step| (step == Step::Decide(SHARDS[2])).then_some(Fault::Never));
    let request = json!({"query": transfer(from, to, 7)});
    assert!(tokio::time::timeout(Duration::from_millis(100), client.query(request)).await.is_err());
    assert_eq!(client.rows(&format!("SELECT balance FROM accounts WHERE id = {from}")).await, json!([[93]]));
    let late = client.query(json!({"query": "SELECT sum(balance) FROM accounts", "timeout_ms": 50})).await;
    assert_eq!((late.status, late.json["code"].as_str()), (503, Some("40001")), "{}", late.text);
    let recovery = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        cluster.recover();
    };
    let (seen, ()) = tokio::join!(sum(&client), recovery);
    assert_eq!(seen, whole());
}

#[tokio::test]
async fn a_read_never_sees_half_of_a_transfer_however_many_others_come_in_between() {
    let (cluster, client) = bank().await;
    let (from, to) = (accounts_of(1)[0], accounts_of(2)[0]);
    let change = |by: i64, id: i64| Some(format!("UPDATE accounts SET balance = balance + {by} WHERE id = {id}"));
    // The first shard's snapshot is open, the others' are not.
    cluster.after_reads(1, move |cluster| {
        cluster.commit_over(TxnId(1), &[(SHARDS[0], change(-7, from)), (SHARDS[1], change(7, to))]);
        for txn in 2..=1_002 {
            cluster.commit_over(TxnId(txn), &[(SHARDS[1], None), (SHARDS[2], None)]);
        }
    });
    assert_eq!(sum(&client).await, whole());
    assert_eq!(client.rows(&format!("SELECT balance FROM accounts WHERE id = {to}")).await, json!([[107]]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_read_during_transfers_sees_the_whole_sum() {
    let (_cluster, client) = bank().await;
    let client = Arc::new(client);
    let mut working = Vec::new();
    for worker in 0..4_i64 {
        let client = client.clone();
        working.push(tokio::spawn(async move {
            for number in 0..25 {
                let (from, to) = (1 + (worker * 7 + number) % ACCOUNTS, 1 + (worker * 11 + number * 3) % ACCOUNTS);
                let answer = client.query(json!({"query": transfer(from, to, 1)})).await;
                assert!(answer.status == 200 || answer.json["code"] == "23514", "{}", answer.text);
            }
        }));
    }
    let mut looks = 0;
    while !working.iter().all(tokio::task::JoinHandle::is_finished) {
        assert_eq!(sum(&client).await, whole());
        let gathered = client.rows("SELECT DISTINCT (SELECT sum(balance) FROM accounts) FROM accounts").await;
        assert_eq!(gathered, json!([[100 * ACCOUNTS]]));
        looks += 1;
    }
    for worker in working {
        worker.await.unwrap();
    }
    assert!(looks > 0);
    assert_eq!(sum(&client).await, whole());
}

#[tokio::test]
async fn rows_are_moved_and_copied_between_shards() {
    let (_cluster, client) = bank().await;
    client.run("CREATE TABLE log (nr INTEGER PRIMARY KEY, account INTEGER) SHARD BY (nr)").await;
    let answer = client.run("INSERT INTO log (nr, account) SELECT id + 1000, id FROM accounts WHERE id <= 20").await;
    assert_eq!(answer["rows_affected"], 20, "{answer}");
    assert_eq!(client.rows("SELECT count(*), sum(nr), sum(account) FROM log").await, json!([[20, 20_210, 210]]));
    let answer = client.run("UPDATE accounts SET id = id + 500 WHERE id IN (1, 2, 3, 4)").await;
    assert_eq!(answer["rows_affected"], 4, "{answer}");
    assert_eq!(sum(&client).await, whole());
    assert_eq!(client.rows("SELECT sum(id) FROM accounts WHERE id > 500").await, json!([[2_010]]));
}

#[tokio::test]
async fn ids_are_given_once_over_all_shards_and_survive_a_repetition() {
    let (_cluster, client) = bank().await;
    let first = client.run("INSERT INTO accounts (balance) VALUES (1)").await;
    assert_eq!(first["last_insert_id"], ACCOUNTS + 1, "above what is there: {first}");
    let many = client.run("INSERT INTO accounts (balance) VALUES (1), (2), (3) RETURNING id").await;
    assert_eq!((many["data"].as_array().unwrap().len(), &many["last_insert_id"]), (3, &json!(ACCOUNTS + 4)));
    // An id that was given by hand into the block of ids that the node holds.
    client.run(&format!("INSERT INTO accounts VALUES ({}, 0)", ACCOUNTS + 5)).await;
    let next = client.run("INSERT INTO accounts (balance) VALUES (1)").await;
    assert!(next["last_insert_id"].as_i64().unwrap() > ACCOUNTS + 5, "{next}");
    let keyed = json!({"query": "INSERT INTO accounts (balance) VALUES (9), (9), (9), (9)", "idempotency_key": "k"});
    let once = client.query(keyed.clone()).await;
    let again = client.query(keyed).await;
    assert_eq!(again.json["replayed"], true, "{}", again.text);
    assert_eq!(once.json["last_insert_id"], again.json["last_insert_id"]);
    assert_eq!(client.rows("SELECT count(*) FROM accounts WHERE balance = 9").await, json!([[4]]));
}

#[tokio::test]
async fn two_nodes_never_give_the_same_id() {
    let (cluster, client) = bank().await;
    let other = Client::new(&cluster);
    for _ in 0..20 {
        client.run("INSERT INTO accounts (balance) VALUES (1)").await;
        other.run("INSERT INTO accounts (balance) VALUES (1)").await;
    }
    assert_eq!(client.rows("SELECT count(DISTINCT id) FROM accounts").await, json!([[ACCOUNTS + 40]]));
    // A node that comes back has forgotten its block, and takes a new one.
    let back = Client::new(&cluster);
    back.run("INSERT INTO accounts (balance) VALUES (1)").await;
    assert_eq!(client.rows("SELECT count(*) FROM accounts").await, json!([[ACCOUNTS + 41]]));
}
