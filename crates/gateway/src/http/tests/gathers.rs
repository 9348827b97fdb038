//! Queries that gather more than fits into memory, that take too long, or that nobody waits for any more.

use std::sync::Arc;
use std::time::Duration;

use pleat_engine::RoomLimits;
use pleat_engine::limits::FINISHER_BYTES_MIN;
use serde_json::{Value as Json, json};

use crate::testing::{Client, Cluster};
use crate::{Limits, Settings};

/// Gathers all of the table, which is 8 MiB.
const SORTED: &str = "SELECT id, length(v) AS size, sum(id) OVER (ORDER BY w, id) AS so_far FROM t ORDER BY v, id";
/// Rows of the table.
const ROWS: i64 = 64;

/// A client of two shards with 8 MiB of rows.
async fn client(limits: Limits) -> (tempfile::TempDir, Arc<Client>) {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::new(2);
    let settings = Settings { limits, spill_dir: dir.path().to_owned(), ..Settings::default() };
    let client = Client::with(&cluster, settings);
    client.run("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT, w INTEGER) SHARD BY (id)").await;
    for id in 0..ROWS {
        let text = format!("{:0>8}", ROWS - id).repeat(131_072 / 8);
        let insert = json!({"query": "INSERT INTO t VALUES (?, ?, ?)", "params": [id, text, id % 7]});
        assert_eq!(client.query(insert).await.status, 200);
    }
    (dir, Arc::new(client))
}

fn room(room: RoomLimits) -> Limits {
    Limits { room, ..Limits::default() }
}

fn small() -> RoomLimits {
    RoomLimits { query_memory: FINISHER_BYTES_MIN, ..RoomLimits::default() }
}

/// What `SORTED` gives, as plain SQLite has it.
fn sorted() -> Json {
    let order = |id: &i64| (id % 7, *id);
    let mut by_w: Vec<i64> = (0..ROWS).collect();
    by_w.sort_by_key(order);
    let so_far = |id: i64| by_w.iter().take_while(|other| order(other) <= order(&id)).sum::<i64>();
    (0..ROWS).rev().map(|id| json!([id, 131_072, so_far(id)])).collect()
}

async fn metric(client: &Client, name: &str) -> f64 {
    let text = client.get("/metrics").await.text;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let begun = std::time::Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_does_not_fit_into_memory_is_finished_on_disk() {
    let (dir, client) = client(room(small())).await;
    assert_eq!(client.rows(SORTED).await, sorted());
    assert_eq!(metric(&client, "pleat_gathers_spilled_total").await, 1.0);
    assert!(metric(&client, "pleat_gather_spilled_bytes_total").await > 8e6);
    until("memory and disk are given back", async || {
        metric(&client, "pleat_gather_disk_bytes").await + metric(&client, "pleat_gather_memory_bytes").await == 0.0
    })
    .await;
    let told = client.rows(&format!("EXPLAIN ANALYZE {SORTED}")).await;
    let told = told.as_array().unwrap().iter().find(|line| line[0] == "spilled by the finisher");
    let told = told.expect("it is told what spilled")[1].as_str().unwrap();
    assert!(told.ends_with(&format!("bytes written to temporary files, with {FINISHER_BYTES_MIN} bytes of memory")));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a temporary file has a name");

    let few = client.rows("EXPLAIN ANALYZE SELECT w, count(*) FROM t GROUP BY w").await;
    assert!(!few.as_array().unwrap().iter().any(|line| line[0] == "spilled by the finisher"), "{few}");
}

#[tokio::test]
async fn twenty_large_gathers_share_the_memory_of_their_node() {
    let memory = 24 * FINISHER_BYTES_MIN;
    let (_dir, client) = client(room(RoomLimits { node_memory: memory, ..RoomLimits::default() })).await;
    let asking = (0..20).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            loop {
                let answer = client.query(json!({ "query": SORTED })).await;
                // One that comes when all is given away is told to come again.
                if answer.json["limit"] != "limits.node_gather_bytes" {
                    assert_eq!(answer.status, 200, "{}", answer.text);
                    return answer.json["data"].clone();
                }
                assert_eq!(answer.json["retryable"], true, "{}", answer.text);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    });
    let asking: Vec<_> = asking.collect();
    let mut answers = Vec::new();
    for answer in asking {
        answers.push(answer.await.unwrap());
    }
    assert_eq!(client.rows(SORTED).await, sorted());
    let alone = client.run(SORTED).await["data"].clone();
    assert!(answers.iter().all(|answer| *answer == alone), "an answer differs");
    until("memory is given back", async || metric(&client, "pleat_gather_memory_bytes").await == 0.0).await;
}

#[tokio::test]
async fn each_limit_is_named() {
    let told = async |client: &Client, request: Json| {
        let answer = client.query(request).await.json;
        let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
        assert!(!text("hint").is_empty(), "{answer}");
        (text("code"), text("limit"), answer["retryable"].as_bool().unwrap())
    };
    let told_of = |code: &str, limit: &str, retryable: bool| (code.to_owned(), limit.to_owned(), retryable);
    let (_dir, full) = client(room(RoomLimits { query_disk: 1 << 20, ..small() })).await;
    assert_eq!(told(&full, json!({"query": SORTED})).await, told_of("53200", "limits.spill_bytes", false));
    let (_dir, full) = client(room(RoomLimits { node_disk: 1 << 20, ..small() })).await;
    assert_eq!(told(&full, json!({"query": SORTED})).await, told_of("53200", "limits.node_spill_bytes", true));
    let (_dir, full) = client(room(RoomLimits { node_memory: 0, ..small() })).await;
    assert_eq!(told(&full, json!({"query": SORTED})).await, told_of("53200", "limits.node_gather_bytes", true));

    // The time of a statement is that of all of it: of waiting for a place, and of finishing.
    let joined = json!({"query": "SELECT count(*) FROM t a, t b, t c, t d, t e, t f WHERE a.w + b.w + c.w + d.w + e.w + f.w < 0", "timeout_ms": 400});
    let (_dir, busy) = client(Limits { gathers: 0, ..Limits::default() }).await;
    let (_dir, slow) = client(Limits::default()).await;
    for client in [busy, slow] {
        let answer = client.query(joined.clone()).await;
        assert_eq!((answer.status, answer.json["code"].as_str()), (504, Some("57014")), "{}", answer.text);
        assert_eq!(answer.json["limit"], "timeout_ms");
        assert_eq!(answer.json["error"], "the statement did not end within 400 ms");
    }
}

#[tokio::test]
async fn a_gather_that_nobody_waits_for_gives_up_its_place() {
    let (_dir, client) = client(Limits { gathers: 1, ..Limits::default() }).await;
    // Finishes for hours, without a row before the end.
    let sql = "SELECT count(*) FROM t a, t b, t c, t d, t e, t f WHERE a.w + b.w + c.w + d.w + e.w + f.w < 0";
    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.query(json!({"query": sql, "timeout_ms": 600_000})).await.text }
    });
    until("it gathers", async || metric(&client, "pleat_gather_memory_bytes").await > 0.0).await;
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled(), "it was not answered");
    assert_eq!(client.rows("SELECT count(DISTINCT w) FROM t").await, json!([[7]]));
}
