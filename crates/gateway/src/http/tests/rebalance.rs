//! Asking for a rebalance, and for what it would do.

use pleat_cluster::ShardId;
use serde_json::{Value as Json, json};

use crate::backend::Backend as _;
use crate::testing::{Answer, Client, Cluster};

async fn ask(client: &Client, body: &str) -> Answer {
    client.post("/rebalance", "application/json", body.to_owned()).await
}

/// Four shards of which the first two have everything.
async fn uneven() -> (std::sync::Arc<Cluster>, Client) {
    let cluster = Cluster::new(4);
    let client = Client::new(&cluster);
    client.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT) SHARD BY (id)").await;
    for id in 0..40 {
        client.run(&format!("INSERT INTO t VALUES ({id}, 'x')")).await;
    }
    for (from, to) in [(3, 1), (4, 2)] {
        let moving = cluster.begin_move(ShardId(from), ShardId(to), &cluster.partitions_of(ShardId(from)));
        moving.fence();
        moving.hand_over();
    }
    tokio::time::sleep(crate::settings::OBSERVATION_AGE_MAX).await;
    (cluster, client)
}

#[tokio::test]
async fn a_dry_run_shows_the_moves_and_nothing_happens() {
    let (cluster, client) = uneven().await;
    let operations = cluster.newest().operations.len();
    let plan = ask(&client, r#"{"dry_run": true}"#).await;
    assert_eq!(plan.status, 200, "{}", plan.text);
    let moves = plan.json["moves"].as_array().unwrap();
    assert_eq!(moves.len(), 2, "{}", plan.text);
    for shift in moves {
        assert_eq!((&shift["partitions"], &shift["operation"]), (&json!(4), &Json::Null), "{shift}");
        assert_eq!(shift["partition_ids"].as_array().unwrap().len(), 4);
        assert!(shift["rows"].as_u64() > Some(0) && shift["bytes"].as_u64() > Some(0), "{shift}");
        assert!(shift["pause_predicted_ms"].is_u64(), "{shift}");
    }
    assert_eq!(plan.json["moved_percent"], plan.json["least_percent"]);
    let of = |shard: &Json| (shard["before"].as_f64().unwrap(), shard["after"].as_f64().unwrap());
    let shards: Vec<_> = plan.json["shards"].as_array().unwrap().iter().map(of).collect();
    assert_eq!(shards, [(2.0, 1.0), (2.0, 1.0), (0.0, 1.0), (0.0, 1.0)]);
    assert_eq!(cluster.newest().operations.len(), operations);
    // So lopsided is fine to whoever says so.
    assert_eq!(ask(&client, r#"{"dry_run": true, "threshold": 1.0}"#).await.json["moves"], json!([]));
}

#[tokio::test]
async fn a_rebalance_is_begun_once_and_its_moves_can_be_followed_and_cancelled() {
    let (cluster, client) = uneven().await;
    let begun = ask(&client, "").await;
    assert_eq!(begun.status, 200, "{}", begun.text);
    let moves = begun.json["moves"].as_array().unwrap();
    for shift in moves {
        let id = shift["operation"].as_str().unwrap();
        let operation = client.get(&format!("/operations/{id}")).await.json;
        assert_eq!((&operation["kind"], &operation["phase"]), (&json!("move"), &json!("Pending")), "{operation}");
        for field in ["from", "to", "partition_ids"] {
            assert_eq!(operation[field], shift[field], "{operation}");
        }
        assert_eq!(
            operation["reason"],
            "rebalance, asked for by hand: the fullest shard holds 2.00 times the mean, and 1.00 times after 2 moves"
        );
    }
    let again = ask(&client, "{}").await;
    assert_eq!((again.status, &again.json["code"]), (409, &json!("conflict")), "{}", again.text);
    // What it would do can be seen at any time.
    assert_eq!(ask(&client, r#"{"dry_run": true}"#).await.status, 200);
    for shift in moves {
        let cancel = format!("/operations/{}/cancel", shift["operation"].as_str().unwrap());
        assert_eq!(client.post(&cancel, "application/json", "").await.json["cancel_requested"], true);
    }
    assert!(cluster.catalog().open_operations().all(|open| open.cancel_requested));
}

#[tokio::test]
async fn shards_without_figures_take_no_part() {
    let (cluster, client) = uneven().await;
    *cluster.deaf.lock() = true;
    tokio::time::sleep(crate::settings::OBSERVATION_AGE_MAX).await;
    let plan = ask(&client, r#"{"dry_run": true}"#).await;
    let (moves, left_out) = (&plan.json["moves"], plan.json["left_out"].as_array().unwrap());
    assert_eq!((moves, left_out.len()), (&json!([]), 4), "{}", plan.text);
    assert!(left_out.iter().all(|shard| shard["why"].as_str().unwrap().contains("deaf")), "{}", plan.text);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let client = Client::new(&Cluster::new(1));
    for (wrong, told) in [
        ("[]", "must be an object"),
        (r#"{"dryrun": true}"#, "unknown field \"dryrun\""),
        (r#"{"dry_run": 1}"#, "expected a boolean"),
        (r#"{"threshold": -0.1}"#, "must be from 0 to 10"),
        (r#"{"threshold": "much"}"#, "expected f64"),
    ] {
        let refused = ask(&client, wrong).await;
        assert_eq!(refused.status, 400, "{wrong}: {}", refused.text);
        assert!(refused.json["error"].as_str().unwrap().contains(told), "{wrong}: {}", refused.text);
    }
    assert_eq!(client.post("/rebalance", "text/csv", "").await.status, 415);
    let alone = ask(&client, "").await;
    assert_eq!((alone.status, &alone.json["moves"]), (200, &json!([])), "one shard is even: {}", alone.text);
}
