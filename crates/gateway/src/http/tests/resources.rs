//! Everything that is shown.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use futures::StreamExt;
use pleat_cluster::{Command, Decision, DecisionId, PartitionId, ShardId, Strategy, Verdict};
use pleat_host::Progress;
use serde_json::{Value as Json, json};
use tower::ServiceExt;

use crate::backend::Backend as _;
use crate::testing::{Answer, Client, Cluster};

#[tokio::test]
async fn a_shard_shows_its_figures_state_and_rows() {
    let cluster = Cluster::new(2);
    let client = Client::new(&cluster);
    client.run("CREATE TABLE users (id INTEGER PRIMARY KEY) SHARD BY (id)").await;
    client.run("INSERT INTO users VALUES (1)").await;
    tokio::time::sleep(crate::settings::OBSERVATION_AGE_MAX).await;
    let shards = client.get("/shards").await.json;
    let first = &shards[0];
    for field in [
        "cpu_percent",
        "memory_percent",
        "disk_percent",
        "total_entries",
        "connection_count",
        "queries_per_second",
        "database_size_bytes",
    ] {
        assert!(first[field].is_number(), "{field}: {first}");
    }
    assert_eq!(
        (&first["shard_id"], &first["status"], &first["partitions"]),
        (&json!("shard-1"), &json!("healthy"), &json!(8))
    );
    assert_eq!(first["last_updated"], "2025-10-05T12:48:20.787Z");
    let rows: u64 =
        shards.as_array().unwrap().iter().map(|shard| shard["table_counts"]["users"].as_u64().unwrap()).sum();
    assert_eq!(rows, 1);
    assert_eq!(client.get("/tables/USERS").await.json["rows"], 1);
}

#[tokio::test]
async fn a_shard_that_cannot_be_asked_shows_no_figures() {
    let cluster = Cluster::new(1);
    let client = Client::new(&cluster);
    client.run("CREATE TABLE t (id INTEGER PRIMARY KEY)").await;
    *cluster.deaf.lock() = true;
    tokio::time::sleep(crate::settings::OBSERVATION_AGE_MAX).await;
    let shard = client.get("/shards").await.json[0].clone();
    assert_eq!(
        (&shard["status"], &shard["cpu_percent"], &shard["total_entries"]),
        (&json!("unhealthy"), &json!(null), &json!(null))
    );
    assert!(shard["error"].as_str().unwrap().contains("deaf"), "{shard}");
    assert_eq!(client.get("/tables/t").await.json["rows"], json!(null));
}

#[tokio::test]
async fn nodes_and_the_clusters_status_are_shown() {
    let cluster = Cluster::new(2);
    let client = Client::new(&cluster);
    let nodes = client.get("/cluster/list-nodes").await.json;
    assert_eq!((&nodes["cluster_size"], &nodes["current_node"]), (&json!(1), &json!("127.0.0.1:8080")));
    let node = &nodes["nodes"][0];
    assert_eq!(
        (&node["node_address"], &node["node_id"], &node["is_current"], &node["status"]),
        (&json!("127.0.0.1:8080"), &json!("node-1"), &json!(true), &json!("running"))
    );
    let status = client.get("/cluster/status").await.json;
    assert_eq!(
        (&status["hash_ring_initialized"], &status["replication_factor"], &status["peers"], &status["peer_health"]),
        (&json!(true), &json!(1), &json!([]), &json!({}))
    );
}

#[tokio::test]
async fn a_cluster_that_is_not_set_up_says_so() {
    let client = Client::new(&Cluster::unfounded());
    let health = client.get("/health").await;
    assert_eq!(
        (health.status, &health.json["status"], &health.json["initialised"]),
        (503, &json!("unhealthy"), &json!(false))
    );
    assert_eq!(client.get("/cluster/status").await.status, 503);
    assert_eq!(client.refused("SELECT 1").await, (503, "57P03".to_owned()));
    assert_eq!(client.get("/shards").await.json, json!([]));
}

#[tokio::test]
async fn the_journal_is_listed_newest_first_and_by_phase() {
    let cluster = Cluster::new(1);
    let client = Client::new(&cluster);
    client.run("CREATE TABLE a (id INTEGER PRIMARY KEY)").await;
    client.run("CREATE TABLE b (id INTEGER PRIMARY KEY)").await;
    let listed = client.get("/operations").await.json;
    let ids: Vec<_> = listed["operations"].as_array().unwrap().iter().map(|o| o["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["op-2", "op-1"]);
    assert_eq!(client.get("/operations?phase=failed,Skipped").await.json, json!({"operations": []}));
    assert_eq!(client.get("/operations?phase=over").await.status, 400);
    assert_eq!(client.get("/operations?limit=1").await.json["operations"].as_array().unwrap().len(), 1);
    assert_eq!(client.get("/operations?limit=0").await.status, 400);
    assert_eq!(client.get("/operations?state=x").await.status, 400);
    let one = client.get("/operations/op-1").await.json;
    assert_eq!(
        (&one["kind"], &one["phase"], &one["table"], &one["cause"]["by"]),
        (&json!("ddl"), &json!("Successful"), &json!("a"), &json!("http"))
    );
    assert_eq!(client.get("/operations/2").await.json["id"], "op-2");
    assert_eq!(client.get("/operations/op-9").await.status, 404);
    assert_eq!(client.get("/operations/x").await.status, 400);
    let ended = client.post("/operations/op-1/cancel", "application/json", "").await;
    assert_eq!((ended.status, ended.json["code"].as_str()), (409, Some("conflict")));
    let (operation, _) = cluster.add_shard(ShardId(1), &[PartitionId(0)]);
    let cancelled = client.post(&format!("/operations/{operation}/cancel"), "application/json", "").await;
    assert_eq!((cancelled.status, &cancelled.json["cancel_requested"]), (200, &json!(true)), "{}", cancelled.text);
    assert_eq!(cancelled.json["partition_ids"], json!([0]));
}

#[tokio::test]
async fn a_merge_by_hand_begins_or_says_why_not() {
    let cluster = Cluster::new(3);
    let client = Client::new(&cluster);
    // The second single table has its home on the second shard.
    client.run("CREATE TABLE first (id INTEGER PRIMARY KEY) SINGLE").await;
    client.run("CREATE TABLE alone (id INTEGER PRIMARY KEY) SINGLE").await;
    let ask = async |body: &'static str| client.post("/operations", "application/json", body).await;
    for (body, status, told) in [
        ("[]", 400, "the body must be an object"),
        (r#"{"kind": "split", "from": "shard-3"}"#, 400, "'split' is no operation that can be asked for here"),
        (r#"{"kind": "merge"}"#, 400, "missing field `from`"),
        (r#"{"kind": "merge", "from": "3rd"}"#, 400, "3rd"),
        (r#"{"kind": "merge", "from": "shard-3", "into": "shard-1"}"#, 400, "unknown field"),
        (r#"{"kind": "merge", "from": "shard-9"}"#, 404, "there is no active shard-9"),
        (r#"{"kind": "merge", "from": "shard-3", "to": "shard-9"}"#, 404, "there is no active shard-9"),
        (r#"{"kind": "merge", "from": "shard-3", "to": "shard-3"}"#, 409, "a merge is with another shard"),
        (r#"{"kind": "merge", "from": "shard-1"}"#, 409, "puts the writes to reference tables in order"),
        (r#"{"kind": "merge", "from": "shard-2"}"#, 409, "table alone lives on shard-2 alone"),
    ] {
        let refused = ask(body).await;
        let error = refused.json["error"].as_str().unwrap_or_default();
        assert!(refused.status == status && error.contains(told), "{body}: {} {}", refused.status, refused.text);
    }
    let begun = ask(r#"{"kind": "merge", "from": "shard-3"}"#).await;
    assert_eq!(begun.status, 200, "{}", begun.text);
    assert_eq!(
        (&begun.json["kind"], &begun.json["to"]),
        (&json!("merge"), &json!("shard-2")),
        "it has the fewest partitions"
    );
    assert_eq!(
        begun.json["partitions"].as_u64().unwrap() as usize,
        begun.json["partition_ids"].as_array().unwrap().len()
    );
    let again = ask(r#"{"kind": "merge", "from": "shard-3"}"#).await;
    assert_eq!(again.status, 409, "{}", again.text);
}

#[tokio::test]
async fn decisions_and_policy() {
    let client = Client::new(&Cluster::new(1));
    assert_eq!(client.get("/decisions?verdict=split").await.json, json!({"decisions": []}));
    assert_eq!(client.get("/decisions?verdict=maybe").await.status, 400);
    assert_eq!(client.get("/decisions/decision-1").await.status, 404);
    let policy = client.get("/policy").await.json;
    assert_eq!((&policy["mode"], &policy["thresholds"]["cpu_percent"]), (&json!("automatic"), &json!(70.0)));
}

#[tokio::test]
async fn a_policy_is_changed_field_by_field() {
    let client = Client::new(&Cluster::new(1));
    let mut before = client.get("/policy").await.json;
    let change = json!({"mode": "manual", "thresholds": {"connections": 7}});
    let changed = client.patch("/policy", change).await;
    (before["mode"], before["thresholds"]["connections"]) = (json!("manual"), json!(7));
    assert_eq!((changed.status, &changed.json), (200, &before), "{}", changed.text);
    assert_eq!(client.get("/policy").await.json, before);
    for (wrong, told) in [
        (json!({"mode": "auto"}), "\"mode\" can't be \"auto\""),
        (json!({"max_shards": 0}), "max_shards is 0"),
        (json!({"thresholds": {"cpu_percent": 101}}), "cpu_percent is 101"),
        (json!({"thresholds": {"cpu": 1}}), "unknown field `cpu`"),
        (json!({"colour": 1}), "unknown field \"colour\""),
        (json!({"cooldown_ms": -1}), "invalid value"),
        (json!({"max_actions": 0}), "max_actions is 0, and must be from 1 to 1000"),
        (json!({"thresholds": null}), "invalid type: null"),
        (json!({"min_shards": 17}), "min_shards is 17, and must be from 1 to 16"),
        (json!({"scale_in": {"below_percent": 51}}), "scale_in.below_percent is 51"),
    ] {
        let refused = client.patch("/policy", wrong.clone()).await;
        assert_eq!(refused.status, 400, "{wrong}: {}", refused.text);
        assert!(
            refused.text.contains(told) || refused.json["error"].as_str().unwrap().contains(told),
            "{}",
            refused.text
        );
    }
    assert_eq!(client.get("/policy").await.json, before, "nothing of a bad change is done");
}

#[tokio::test]
async fn a_recommendation_is_approved_once() {
    let cluster = Cluster::new(1);
    let client = Client::new(&cluster);
    let verdict = Verdict::Split {
        from: ShardId(1),
        to: ShardId(2),
        partitions: vec![PartitionId(0), PartitionId(1)],
        reason: "it is large".to_owned(),
    };
    for verdict in [Verdict::Hold { reason: "all is well".to_owned() }, verdict.clone(), verdict] {
        cluster
            .command(
                Command::RecordDecision { decision: decision(verdict), start: None, at: 1 },
                Duration::from_secs(30),
            )
            .await
            .unwrap();
    }
    let approve = async |id: u64| client.post(&format!("/decisions/{id}/approve"), "application/json", "").await;
    let told = |answer: &Answer| (answer.status, answer.json["error"].as_str().unwrap_or_default().to_owned());
    assert_eq!(told(&approve(1).await), (409, "decision-1 recommends nothing that could be done".to_owned()));
    assert_eq!(approve(9).await.status, 404);
    let approved = approve(2).await;
    assert_eq!((approved.status, &approved.json["kind"]), (200, &json!("split")), "{}", approved.text);
    assert_eq!(approved.json["cause"], json!({"kind": "decision", "id": "decision-2", "by": null}));
    assert_eq!(client.get("/decisions/2").await.json["operation"], approved.json["id"]);
    assert_eq!(told(&approve(2).await), (409, "decision-2 was approved already: op-1 carries it out".to_owned()));
    // It was made for a cluster that is no more.
    let late = approve(3).await;
    assert!(matches!(late.status, 409 | 503), "{}", late.text);
    assert_eq!(client.get("/operations").await.json["operations"].as_array().unwrap().len(), 1);
}

fn decision(verdict: Verdict) -> Decision {
    let id = DecisionId(0);
    let (measurements, options, operation) = (vec![], vec![], None);
    Decision { id, at: 1, generation: 1, strategy: Strategy::Hot, measurements, options, verdict, operation }
}

#[tokio::test]
async fn unknown_routes_and_methods_point_to_the_document() {
    let client = Client::new(&Cluster::new(1));
    let answer = client.get("/nowhere").await;
    assert_eq!((answer.status, answer.json["code"].as_str()), (404, Some("not_found")));
    let answer = client.get("/query").await;
    assert_eq!((answer.status, answer.json["code"].as_str()), (405, Some("method_not_allowed")));
    assert!(answer.json["hint"].as_str().unwrap().contains("/openapi.json"));
    let stranger = Request::post("/query")
        .header("content-type", "application/json")
        .header("host", "127.0.0.1:8080")
        .header("origin", "http://evil.example")
        .body(Body::from("{\"query\":\"SELECT 1\"}"));
    assert_eq!(client.send(stranger.unwrap()).await.status, 403);
    let form = client.post("/query", "application/x-www-form-urlencoded", "{\"query\":\"SELECT 1\"}").await;
    assert_eq!((form.status, form.json["code"].as_str()), (415, Some("unsupported_media_type")));
}

#[tokio::test]
async fn the_coordinator_serves_shards_and_health_alone() {
    let client = Client::new(&Cluster::new(1));
    let router = client.gateway.coordinator_router();
    for (path, status) in [("/shards", 200), ("/health", 200), ("/tables", 404)] {
        let answer = router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
    }
}

#[tokio::test]
async fn metrics_are_in_prometheus_form() {
    let client = Client::new(&Cluster::new(1));
    client.run("CREATE TABLE t (id INTEGER PRIMARY KEY)").await;
    client.run("SELECT 1").await;
    tokio::time::sleep(crate::settings::OBSERVATION_AGE_MAX).await;
    let text = client.get("/metrics").await.text;
    for line in [
        "pleat_http_requests_total{route=\"/query\",method=\"POST\",status=\"200\"} 2",
        "pleat_shard_rows{shard=\"shard-1\"} 0.0",
        "pleat_shard_table_rows{shard=\"shard-1\",table=\"t\"} 0.0",
        "pleat_shard_latency_milliseconds{shard=\"shard-1\",quantile=\"0.5\"} 1.0",
        "pleat_raft_is_leader{group=\"control\"} 1.0",
        "pleat_http_request_seconds_count{route=\"/query\"} 2",
    ] {
        assert!(text.lines().any(|seen| seen == line), "{line}\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    let described: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let mut once = described.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), described.len(), "each metric is described once");
}

#[tokio::test]
async fn events_tell_what_happened_and_what_was_missed() {
    let cluster = Cluster::new(1);
    let client = Client::new(&cluster);
    // Let the watcher see the cluster as it is first.
    tokio::task::yield_now().await;
    let open = |id: Option<&str>| {
        let mut request = Request::get("/events");
        if let Some(id) = id {
            request = request.header("last-event-id", id);
        }
        client.gateway.router().oneshot(request.body(Body::empty()).unwrap())
    };
    let response = open(None).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body().into_data_stream();
    let mut text = String::new();
    client.run("CREATE TABLE t (id INTEGER PRIMARY KEY)").await;
    while !text.contains("\"phase\":\"Successful\"") {
        text.push_str(std::str::from_utf8(&body.next().await.unwrap().unwrap()).unwrap());
    }
    assert!(text.contains("event: ready") && text.contains("event: table"), "{text}");
    let last = text.lines().rev().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
    client.run("CREATE TABLE u (id INTEGER PRIMARY KEY)").await;
    let mut body = open(Some(&last)).await.unwrap().into_body().into_data_stream();
    let mut text = String::new();
    while !text.contains("\"table\":\"u\",\"kind\"") {
        text.push_str(std::str::from_utf8(&body.next().await.unwrap().unwrap()).unwrap());
    }
    assert!(!text.contains("\"table\":\"t\"") && !text.contains("event: reset"), "{text}");
    let mut body = open(Some("1-1")).await.unwrap().into_body().into_data_stream();
    let mut text = String::new();
    while !text.contains("event: reset") {
        text.push_str(std::str::from_utf8(&body.next().await.unwrap().unwrap()).unwrap());
    }
    client.gateway.close();
    while body.next().await.is_some() {}
}

#[tokio::test(start_paused = true)]
async fn how_far_an_operation_is_is_shown_and_told_but_not_remembered() {
    let cluster = Cluster::new(1);
    let client = Client::new(&cluster);
    let (operation, _) = cluster.add_shard(ShardId(1), &[PartitionId(0)]);
    let (step, detail) = ("copy".to_owned(), String::new());
    cluster.apply(&Command::JournalStep { operation, step: step.clone(), ended: false, detail, epoch: 1, at: 4 });
    let at = |rows: u64| Progress {
        step: step.clone(),
        detail: "in table t".to_owned(),
        begun: 1_760_000_000_000,
        rows,
        bytes: 10 * rows,
        rows_total: Some(400),
        rows_per_second: Some(20.0),
        ends: Some(1_760_000_010_000),
        ..Progress::default()
    };
    cluster.progress.lock().insert(operation, at(200));
    let shown = client.get(&format!("/operations/{operation}")).await.json["progress"].clone();
    assert_eq!((&shown["step"], &shown["rows"], &shown["rows_total"]), (&json!("copy"), &json!(200), &json!(400)));
    assert_eq!((&shown["estimated_end"], &shown["bytes_total"]), (&json!("2025-10-09T08:53:30.000Z"), &Json::Null));
    assert_eq!(client.get("/operations").await.json["operations"][0]["progress"], shown);
    *cluster.deaf.lock() = true;
    let listed = client.get("/operations").await;
    assert_eq!((listed.status, &listed.json["operations"][0]["progress"]), (200, &Json::Null));
    *cluster.deaf.lock() = false;

    let request = Request::get("/events").body(Body::empty()).unwrap();
    let mut body = client.gateway.router().oneshot(request).await.unwrap().into_body().into_data_stream();
    let mut text = String::new();
    for rows in [200, 300] {
        cluster.progress.lock().insert(operation, at(rows));
        while !text.contains(&format!("\"rows\":{rows},")) {
            text.push_str(std::str::from_utf8(&body.next().await.unwrap().unwrap()).unwrap());
        }
    }
    assert!(text.contains("event: progress") && text.contains(&format!("\"operation\":\"{operation}\"")), "{text}");
    // Who comes back is told what it is like now, not what it was like.
    let last = text.lines().rev().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
    let request = Request::get("/events").header("last-event-id", last).body(Body::empty()).unwrap();
    let mut body = client.gateway.router().oneshot(request).await.unwrap().into_body().into_data_stream();
    let first = body.next().await.unwrap().unwrap();
    let first = std::str::from_utf8(&first).unwrap();
    assert!(first.contains("event: ready") && !first.contains("event: progress"), "{first}");
}
