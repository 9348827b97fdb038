//! Three hosts in one process, over real gRPC on loopback: founding, writing and reading through any node, and
//! the loss of one.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::*;
use pleat_cluster::{Command, NodeId, Planned, Policy, ShardId};
use pleat_host::{Freshness, HostError};
use tokio::net::TcpListener;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_writes_and_reads_and_the_loss_of_one_is_survived() {
    let (mut nodes, _) = cluster().await;
    let catalog = with_table(&nodes).await;
    for id in 0..30 {
        let host = &nodes[id as usize % 3].host;
        done(host.write(SHARD, Planned::default(), insert(id, None), LIMIT).await);
        // Read what was just written, on another node.
        let other = &nodes[(id as usize + 1) % 3].host;
        assert_eq!(count(other, Freshness::Strong, &catalog).await.unwrap(), id + 1);
    }
    let written = nodes[0].host.write(SHARD, Planned::default(), insert(30, None), LIMIT).await.unwrap();
    for node in &nodes {
        assert_eq!(count(&node.host, Freshness::AtLeast(written.index), &catalog).await.unwrap(), 31);
    }

    // A key makes a repetition an answer, not a second effect.
    for node in &nodes {
        done(node.host.write(SHARD, Planned::default(), insert(31, Some("once".into())), LIMIT).await);
    }
    assert_eq!(count(&nodes[0].host, Freshness::Strong, &catalog).await.unwrap(), 32);

    // A router that believes in another ownership is refused before it sees a row.
    let mut stale = (*catalog).clone();
    stale.shards.get_mut(&SHARD).unwrap().ownership += 1;
    let refused = count(&nodes[0].host, Freshness::Strong, &stale).await.unwrap_err();
    assert!(matches!(refused, HostError::Refused(_)), "{refused:?}");
    assert!(refused.is_retryable());

    // The leader of the shard goes: the others elect another and writes go on.
    let leader = nodes.iter().position(|n| n.host.shard_status(SHARD).unwrap().is_leader).unwrap();
    drop(stop(nodes.remove(leader)).await);
    for id in 32..40 {
        let host = &nodes[id as usize % 2].host;
        done(host.write(SHARD, Planned::default(), insert(id, Some(format!("k{id}"))), LIMIT).await);
    }
    assert_eq!(count(&nodes[1].host, Freshness::Strong, &catalog).await.unwrap(), 40);
    let fresh = nodes[0].host.fresh_catalog(LIMIT).await.unwrap();
    assert_eq!(fresh.check(), []);

    let observed = futures::future::join_all(nodes.iter().map(|n| n.host.observe(n.host.node(), LIMIT))).await;
    let shards: Vec<_> = observed.iter().flat_map(|node| &node.as_ref().unwrap().shards).collect();
    let shards: Vec<_> = shards.into_iter().filter(|shard| shard.shard == SHARD).collect();
    assert_eq!(shards.len(), 1, "one leader measures the shard");
    assert_eq!(shards[0].rows_per_table, BTreeMap::from([("t".to_owned(), 40)]));
    assert_eq!(nodes[0].host.partition_weights(SHARD, LIMIT).await.unwrap().values().map(|w| w.rows).sum::<u64>(), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_carried_to_the_leader_and_refusals_come_back() {
    let (nodes, _) = cluster().await;
    with_table(&nodes).await;
    for node in &nodes {
        let refused = node.host.command(Command::ActivateShard { shard: ShardId(9), at: 1 }, LIMIT).await.unwrap_err();
        assert!(matches!(refused, HostError::Command(_)), "{refused:?}");
        let policy = Policy { max_shards: node.host.node().0 as u32, ..Policy::default() };
        node.host.command(Command::SetPolicy { policy: policy.clone(), at: 1 }, LIMIT).await.unwrap();
        assert_eq!(node.host.catalog().policy, policy, "applied here before it returns");
    }
    for node in &nodes {
        assert!(node.host.ping(NodeId(2), LIMIT).await.unwrap() < LIMIT);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_gone_for_long_catches_up_by_snapshot() {
    let (mut nodes, founders) = cluster().await;
    let catalog = with_table(&nodes).await;
    let away = nodes.iter().position(|n| !n.host.shard_status(SHARD).unwrap().is_leader).unwrap();
    let away = nodes.remove(away);
    let (id, last) = (away.host.node(), away.host.shard_status(SHARD).unwrap().last_log);
    let dir = stop(away).await;
    let mut rows = 0;
    let purged = |node: &Node| node.host.shard_status(SHARD).unwrap().purged.unwrap_or(0);
    while !nodes.iter().all(|node| purged(node) > last) {
        let key = Some(format!("k{rows}"));
        done(nodes[rows as usize % 2].host.write(SHARD, Planned::default(), insert(rows, key), LIMIT).await);
        rows += 1;
        assert!(rows < 2_000, "the log is never purged");
    }
    let address = &founders[id.0 as usize - 1].2;
    let back = start(TcpListener::bind(address).await.unwrap(), id, &founders, dir).await;
    let begun = std::time::Instant::now();
    let applied = nodes.iter().map(|node| node.host.shard_status(SHARD).unwrap().applied).max().unwrap();
    while back.host.shard_status(SHARD).is_none_or(|status| status.applied < applied) {
        assert!(begun.elapsed() < LIMIT, "{:?}", back.host.shard_status(SHARD));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It has the rows in its own database, and takes part again.
    assert_eq!(count(&back.host, Freshness::Eventual, &catalog).await.unwrap(), rows);
    let caught_up = back.host.shard_status(SHARD).unwrap();
    assert!(caught_up.purged.unwrap_or(0) > last, "what it missed can only have come by snapshot: {caught_up:?}");
    done(back.host.write(SHARD, Planned::default(), insert(rows, None), LIMIT).await);
    assert_eq!(count(&back.host, Freshness::Strong, &catalog).await.unwrap(), rows + 1);
}
