//! Reads whose rows nobody takes, on three hosts in one process.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use futures::{StreamExt, TryStreamExt};
use pleat_cluster::{Catalog, Planned};
use pleat_engine::{EngineError, OwnershipCheck, Query, ReadLimits, ReadRequest};
use pleat_host::{Freshness, Host, HostError, Piece, StoreLimits};

/// More than any test waits.
const LONG: Duration = Duration::from_secs(600);
/// Reads that a replica carries out at the same time.
const PLACES: usize = 2;
/// Runs until it is stopped, without giving a row.
const ENDLESS: &str = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
/// Gives a row in each step, until it is stopped.
const RUSHING: &str = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT i, 'some text' FROM n";

fn read(sql: &str) -> ReadRequest {
    ReadRequest {
        queries: vec![Query::new(sql)],
        check: OwnershipCheck::None,
        layout: None,
        now_ms: 1,
        seed: 1,
        limits: ReadLimits { time: LONG, rows: u64::MAX, bytes: u64::MAX },
        names_txns: false,
    }
}

/// Whether a short wait for a place on this node's replica of the shard is in vain.
async fn is_full(host: &Host) -> bool {
    let limits = ReadLimits { time: Duration::from_millis(50), ..read("").limits };
    let asked = host.read(SHARD, ReadRequest { limits, ..read("SELECT 1") }, Freshness::Eventual, limits.time).await;
    matches!(asked, Err(HostError::Engine(EngineError::Busy { connections: PLACES })))
}

async fn leader(nodes: &[Node]) -> usize {
    loop {
        let leads = |node: &Node| node.host.shard_status(SHARD).is_some_and(|status| status.is_leader);
        if let Some(found) = nodes.iter().position(leads) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Many ask from one node, until no place is left on the leader; then they go away, and their places are free.
async fn asked_and_gone(host: &Arc<Host>, leader: &Host, sql: &'static str, catalog: &Catalog) {
    let ask = || {
        let host = host.clone();
        tokio::spawn(async move {
            let mut rows = host.read(SHARD, read(sql), Freshness::Strong, LONG).await.expect("it begins").pieces;
            rows.next().await;
            // The rest is not taken.
            std::future::pending::<()>().await;
        })
    };
    let asking: Vec<_> = (0..PLACES + 1).map(|_| ask()).collect();
    let begun = Instant::now();
    while !is_full(leader).await {
        assert!(begun.elapsed() < LIMIT, "a place is left");
        assert!(asking.iter().all(|task| !task.is_finished()), "a read ended");
    }
    asking.iter().for_each(|task| task.abort());
    let counted = tokio::time::timeout(LIMIT, count(host, Freshness::Strong, catalog)).await;
    assert_eq!(counted.expect("a place is free").unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_wants_any_more_frees_its_place_on_whatever_node_it_runs() {
    let (nodes, _) = cluster_with(StoreLimits { read_connections: Some(PLACES) }).await;
    let catalog = with_table(&nodes).await;
    done(nodes[0].host.write(SHARD, Planned::default(), insert(1, None), LIMIT).await);
    let leads = leader(&nodes).await;
    for sql in [ENDLESS, RUSHING] {
        asked_and_gone(&nodes[leads].host, &nodes[leads].host, sql, &catalog).await;
        asked_and_gone(&nodes[(leads + 1) % 3].host, &nodes[leads].host, sql, &catalog).await;
    }
}

/// As in a merge: the rows of this shard come after many of another one's. The time is the runtime's, which is set ahead, so
/// that nothing here waits.
#[tokio::test]
async fn rows_that_are_not_wanted_yet_are_all_there_a_minute_later() {
    const ROWS: usize = 50_000;
    let (nodes, _) = cluster().await;
    with_table(&nodes).await;
    let sql = format!("WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n LIMIT {ROWS}) SELECT i FROM n");
    let mut pieces = nodes[0].host.read(SHARD, read(&sql), Freshness::Eventual, LONG).await.unwrap().pieces;
    let Some(Ok(Piece::Rows(first))) = pieces.next().await else { panic!("no rows") };
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(60)).await;
    tokio::time::resume();
    let rest: Vec<Piece> = pieces.try_collect().await.expect("the rest comes");
    let count = |piece: &Piece| if let Piece::Rows(rows) = piece { rows.len() } else { 0 };
    assert_eq!(first.len() + rest.iter().map(count).sum::<usize>(), ROWS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_replica_remembers_who_leads() {
    let (mut nodes, _) = cluster_of(4, StoreLimits::default()).await;
    let catalog = with_table(&nodes).await;
    let away = nodes.iter().position(|node| !catalog.shards[&SHARD].replicas.contains(&node.host.node())).unwrap();
    // It is asked first by whoever knows nothing.
    let gone = catalog.shards[&SHARD].replicas[0];
    let at = nodes.iter().position(|node| node.host.node() == gone).unwrap();
    let stopped = nodes.remove(at);
    stop(stopped).await;
    let router = &nodes[away - usize::from(at < away)];
    assert_eq!(count(&router.host, Freshness::Strong, &catalog).await.unwrap(), 0);
    let before = router.calls.to(gone);
    for _ in 0..20 {
        assert_eq!(count(&router.host, Freshness::Strong, &catalog).await.unwrap(), 0);
    }
    let asked = router.calls.to(gone) - before;
    assert!(asked < 10, "{gone} was asked {asked} times in 20 reads");
}
