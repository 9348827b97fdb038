//! Things that should not happen, and what they must not do.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use common::{CLUSTER, Cluster, Damage, Disk, PATIENCE, Recorder, eventually, ids, propose};
use futures::StreamExt;
use pleat_cluster::NodeId;
use pleat_consensus::grpc::GrpcTransport;
use pleat_consensus::{
    Config, Consensus, Group, METHOD_APPEND, METHOD_VOTE, MembershipError, ProposeError, Transport, TransportError,
};

fn no_peers(node: u64) -> Arc<GrpcTransport> {
    GrpcTransport::new(CLUSTER, NodeId(node), Arc::new(|_| None))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_or_too_much_is_refused_at_once() {
    let cluster = Cluster::calls(|config| {
        config.queue_proposals_max = 8;
        config.payload_proposals_max = 1;
        config.proposal_bytes_max = 1000;
    })
    .founded(1)
    .await;
    let group = cluster.group(1, 1);
    cluster.leader(1, [1]).await;
    let huge = group.propose(vec![0; 1001].into(), PATIENCE).await;
    assert_eq!(huge, Err(ProposeError::TooLarge { limit_bytes: 1000 }));
    group.propose(vec![b'x'; 1000].into(), PATIENCE).await.expect("exactly at the limit");

    // With applying held up, three are in flight and eight wait; all others are refused without waiting.
    let disk = cluster.disk(1, 1);
    disk.close_gate();
    let mut writers = futures::stream::FuturesUnordered::new();
    let write = |number: u64| {
        let group = group.clone();
        tokio::spawn(async move { propose(&group, &number.to_string()).await })
    };
    let before = group.status().last_log;
    for number in 0..3 {
        writers.push(write(number));
        eventually("it to be in flight", || (group.status().last_log > before + number).then_some(())).await;
    }
    (3..40).for_each(|number| writers.push(write(number)));
    let mut refused = 0;
    while refused < 40 - 3 - 8 {
        match writers.next().await.unwrap().unwrap() {
            Err(ProposeError::Overloaded) => refused += 1,
            other => panic!("{other:?} while nothing is applied"),
        }
    }
    disk.open_gate();
    while let Some(outcome) = writers.next().await {
        outcome.unwrap().expect("those that waited are served");
    }
    assert_eq!(disk.proposals().len(), 1 + 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_in_the_queue_means_surely_not_proposed() {
    let cluster = Cluster::calls(|config| config.payloads_in_flight_max = 1).founded(1).await;
    let group = cluster.group(1, 1);
    cluster.leader(1, [1]).await;
    let disk = cluster.disk(1, 1);
    disk.close_gate();
    let first = tokio::spawn({
        let group = group.clone();
        async move { propose(&group, "in flight").await }
    });
    eventually("the first to be in the log", || (group.status().last_log >= 2).then_some(())).await;
    let waited = group.propose(Bytes::from("queued"), Duration::from_millis(50)).await;
    assert_eq!(waited, Err(ProposeError::Overloaded));
    disk.open_gate();
    first.await.unwrap().unwrap();
    propose(&group, "later").await.unwrap();
    assert_eq!(disk.proposals(), ["in flight", "later"], "what was refused was never applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_build_is_refused() {
    let cluster = Cluster::grpc(1, |config| config.build = "Pleat 1 with SQLite 2".into()).founded(1).await;
    let common::Network::Grpc(addresses) = &cluster.network else { unreachable!() };
    let addresses = addresses.clone();
    let resolver: pleat_consensus::grpc::Resolver = Arc::new(move |to| addresses.get(&to).cloned());
    let call = |build: &str| {
        let transport = GrpcTransport::of_build(CLUSTER, build, NodeId(2), resolver.clone());
        async move { transport.call(NodeId(1), "echo", Bytes::from("hello"), PATIENCE).await }
    };
    let answer = call("Pleat 1 with SQLite 3").await;
    let Err(TransportError::Remote { code, message }) = answer else { panic!("{answer:?}") };
    assert_eq!(code, "other_build");
    assert!(message.contains("SQLite 2") && message.contains("SQLite 3"), "{message}");
    let answer = call("Pleat 1 with SQLite 2").await;
    assert!(!matches!(&answer, Err(TransportError::Remote { code, .. }) if code == "other_build"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_and_garbled_messages_change_nothing() {
    let cluster = Cluster::grpc(3, |_| {}).founded(3).await;
    cluster.write(1, "a").await;
    let common::Network::Grpc(addresses) = &cluster.network else { unreachable!() };
    let addresses = addresses.clone();
    let resolver: pleat_consensus::grpc::Resolver = Arc::new(move |to| addresses.get(&to).cloned());

    // A node of another cluster that was given our addresses.
    let foreign = GrpcTransport::new("other-cluster", NodeId(9), resolver.clone());
    for method in [METHOD_VOTE, METHOD_APPEND, "echo"] {
        let answer = foreign.call(NodeId(1), method, Bytes::from("hello"), PATIENCE).await;
        let Err(TransportError::Remote { code, message }) = answer else { panic!("{answer:?}") };
        assert_eq!(code, "foreign_cluster");
        assert!(message.contains(CLUSTER) && message.contains("other-cluster"), "{message}");
    }
    let hello = foreign.hello(NodeId(1), PATIENCE).await;
    assert!(matches!(hello, Err(TransportError::Remote { code, .. }) if code == "foreign_cluster"));

    // A second process with the id of a node.
    let twin = GrpcTransport::new(CLUSTER, NodeId(1), resolver.clone());
    let answer = twin.call(NodeId(1), "echo", Bytes::new(), PATIENCE).await;
    assert!(matches!(answer, Err(TransportError::Remote { code, .. }) if code == "same_node"));

    // Garbage, truncations and another format from a node of ours.
    let ours = GrpcTransport::new(CLUSTER, NodeId(2), resolver);
    let bodies = [
        &b""[..],
        &b"\x01"[..],
        &b"\x02abc"[..],
        &[0xff; 64][..],
        &b"\x01\x0ctest-cluster\x02\x01\x01\xff\xff\xff\xff\xff"[..],
    ];
    for body in bodies {
        for method in [METHOD_VOTE, METHOD_APPEND] {
            let answer = ours.call(NodeId(1), method, Bytes::copy_from_slice(body), PATIENCE).await;
            assert!(
                matches!(answer, Err(TransportError::Remote { ref code, .. }) if code == "bad_message"),
                "{answer:?}"
            );
        }
        let nothing = futures::stream::empty().boxed();
        let answer = ours.send_snapshot(NodeId(1), Bytes::copy_from_slice(body), nothing, PATIENCE).await;
        assert!(matches!(answer, Err(TransportError::Remote { ref code, .. }) if code == "bad_message"), "{answer:?}");
    }
    let unknown_group = Bytes::from_static(b"\x01\x0ctest-cluster\x02\x63");
    let answer = ours.call(NodeId(1), METHOD_VOTE, unknown_group, PATIENCE).await;
    assert!(matches!(answer, Err(TransportError::Remote { ref code, .. }) if code == "no_group"), "{answer:?}");

    cluster.write(1, "b").await;
    assert_eq!(cluster.converged(1, 1..=3, 2).await, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_cluster_or_node_or_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = |cluster: &str, node| {
        let config = Config::new(NodeId(node), cluster, dir.path());
        async move { Consensus::open(config, no_peers(node)).await.map_err(|error| format!("{error:#}")) }
    };
    let first = open("a", 1).await.unwrap();
    let Err(error) = open("a", 1).await else { panic!("opened twice") };
    assert!(error.contains("in use"), "{error}");
    first.shutdown().await;
    let Err(error) = open("b", 1).await else { panic!("opened for another cluster") };
    assert!(error.contains("belongs to cluster 'a'"), "{error}");
    let Err(error) = open("a", 2).await else { panic!("opened for another node") };
    assert!(error.contains("belongs to node-1"), "{error}");
    open("a", 1).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_follower_does_not_slow_the_group() {
    let cluster = Cluster::calls(|_| {}).founded(3).await;
    let leader = cluster.leader(1, 1..=3).await;
    let slow = leader % 3 + 1;
    cluster.disk(slow, 1).close_gate();
    for number in 0..100 {
        cluster.write(1, &number.to_string()).await;
    }
    assert!(cluster.disk(slow, 1).proposals().is_empty());
    cluster.disk(slow, 1).open_gate();
    assert_eq!(cluster.converged(1, 1..=3, 100).await.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_state_machine_stops_its_group_loudly_and_no_other() {
    let cluster = Cluster::calls(|_| {}).founded(1).await;
    cluster.start_group(1, 2).await.initialize(ids([1])).await.unwrap();
    cluster.leader(1, [1]).await;
    cluster.leader(2, [1]).await;
    cluster.disk(1, 1).fail.store(true, Ordering::Relaxed);
    let group = cluster.group(1, 1);
    assert_eq!(propose(&group, "a").await, Err(ProposeError::Unknown), "it is in the log, and may be applied later");
    let reason = eventually("the group to stop", || group.status().stopped).await;
    assert!(reason.contains("the disk is on fire"), "{reason}");
    assert!(matches!(propose(&group, "b").await, Err(ProposeError::Stopped(_))));
    propose(&cluster.group(1, 2), "c").await.expect("the other group goes on");

    // Repaired, it goes on where it was.
    cluster.disk(1, 1).fail.store(false, Ordering::Relaxed);
    cluster.nodes[&NodeId(1)].stop_group(1).await;
    cluster.start_group(1, 1).await;
    cluster.write(1, "d").await;
    assert_eq!(cluster.disk(1, 1).proposals(), ["a", "d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_machine_that_lost_its_state_is_refused() {
    let cluster = Cluster::calls(|config| {
        config.checkpoint_entries = 10;
        config.log_keep_entries = 0;
    })
    .founded(1)
    .await;
    for number in 0..200 {
        cluster.write(1, &number.to_string()).await;
    }
    eventually("a purge", || cluster.group(1, 1).status().purged).await;
    let node = &cluster.nodes[&NodeId(1)];
    node.stop_group(1).await;
    let empty = Box::new(Recorder(Arc::new(Disk::default())));
    let Err(error) = node.start_group(1, empty).await else { panic!("started without its state") };
    assert!(format!("{error:#}").contains("remove this replica and add it again"), "{error:#}");
    cluster.start_group(1, 1).await;
    cluster.write(1, "fine").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_dropped_in_the_middle_lose_nothing_acknowledged() {
    let mut cluster = Cluster::calls(|config| {
        config.checkpoint_entries = 30;
        config.log_keep_entries = 10;
    })
    .founded(3)
    .await;
    let mut acknowledged = Vec::new();
    for round in 0..4u64 {
        let leader = cluster.leader(1, 1..=3).await;
        let mut writers = Vec::new();
        for writer in 0..16 {
            let group = cluster.group(leader, 1);
            writers.push(tokio::spawn(async move {
                let mut done = Vec::new();
                for number in 0.. {
                    let name = format!("{round}/{writer}/{number}");
                    match propose(&group, &name).await {
                        Ok(_) => done.push(name),
                        Err(_) => break,
                    }
                }
                done
            }));
        }
        let disk = cluster.disk(leader, 1);
        let goal = acknowledged.len() + 200;
        eventually("some writes", || (disk.proposals().len() > goal).then_some(())).await;
        // The last handles go with the writers, whose proposals then end.
        cluster.nodes[&NodeId(leader)].stop_group(1).await;
        cluster.drop_node(leader).await;
        for writer in writers {
            acknowledged.extend(writer.await.unwrap());
        }
        let rest: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
        cluster.leader(1, rest).await;
        cluster.start(leader).await;
        cluster.start_group(leader, 1).await;
    }
    cluster.write(1, "end").await;
    let all = cluster.converged(1, 1..=3, acknowledged.len() + 1).await;
    let mut unique = all.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), all.len(), "nothing is there twice");
    for name in &acknowledged {
        assert!(unique.binary_search(name).is_ok(), "{name} was acknowledged and is gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_groups_share_a_node() {
    let mut cluster = Cluster::calls(|_| {});
    for node in 1..=3 {
        cluster.start(node).await;
    }
    for group in 0..50 {
        for node in 1..=3 {
            cluster.start_group(node, group).await;
        }
        cluster.group(group % 3 + 1, group).initialize(ids(1..=3)).await.unwrap();
    }
    let writes = (0..50).map(|group| {
        let cluster = &cluster;
        async move {
            for number in 0..5 {
                cluster.write(group, &number.to_string()).await;
            }
        }
    });
    futures::future::join_all(writes).await;
    for group in 0..50 {
        assert_eq!(cluster.converged(group, 1..=3, 5).await, ["0", "1", "2", "3", "4"]);
    }
}

/// A leader that has purged its log, and a fresh follower (number 2) that needs a snapshot of it.
async fn in_need_of_a_snapshot() -> (Cluster, Group) {
    let mut cluster = Cluster::calls(|config| {
        config.checkpoint_entries = 10;
        config.log_keep_entries = 0;
        config.snapshot_chunk_bytes = 64;
        config.snapshot_idle_max = Duration::from_millis(200);
    })
    .founded(1)
    .await;
    for number in 0..200 {
        cluster.write(1, &number.to_string()).await;
    }
    eventually("a purge", || cluster.group(1, 1).status().purged).await;
    cluster.start(2).await;
    let follower = cluster.start_group(2, 1).await;
    (cluster, follower)
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files_in(dir: &std::path::Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_breaks_off_installs_nothing_and_leaves_nothing() {
    let (cluster, _) = in_need_of_a_snapshot().await;
    let common::Network::Calls(calls) = &cluster.network else { unreachable!() };
    let snapshots = cluster.config(2).dir.join("snapshots");
    for damage in [Damage::Error, Damage::End, Damage::Stall, Damage::TooMuch] {
        calls.damage(damage);
        let leader = cluster.group(1, 1);
        let joining = tokio::spawn(async move { leader.add_learner(NodeId(2)).await });
        eventually("a damaged snapshot", || calls.damaged().then_some(())).await;
        joining.abort();
        assert_eq!(cluster.disk(2, 1).installs.load(Ordering::Relaxed), 0, "{damage:?}");
        eventually("the remains to be removed", || (files_in(&snapshots) == 0).then_some(())).await;
        cluster.write(1, "the leader goes on").await;
    }
    cluster.group(1, 1).add_learner(NodeId(2)).await.unwrap();
    cluster.converged(1, [1, 2], 204).await;
    assert_eq!(cluster.disk(2, 1).installs.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_killed_while_installing_comes_back() {
    let (mut cluster, follower) = in_need_of_a_snapshot().await;
    drop(follower);
    let disk = cluster.disk(2, 1);
    disk.close_install_gate();
    let leader = cluster.group(1, 1);
    let joining = tokio::spawn(async move { leader.add_learner(NodeId(2)).await });
    eventually("the installation to begin", || disk.installing().then_some(())).await;
    // What a kill -9 would leave right now: Raft may have ordered the purge behind the snapshot already.
    let dir = cluster.config(2).dir;
    let image = dir.with_extension("image");
    copy_dir(&dir, &image);
    cluster.replace_disk(2, 1);
    // Nobody hears of what the old process does from here on.
    cluster.cut(2);
    disk.open_install_gate();
    cluster.stop(2).await;
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::rename(&image, &dir).unwrap();
    cluster.mend(2);
    cluster.start(2).await;
    cluster.start_group(2, 1).await;
    assert_eq!(files_in(&dir.join("snapshots")), 0, "what was left of the snapshot is removed");
    joining.await.unwrap().unwrap();
    cluster.write(1, "after").await;
    cluster.converged(1, [1, 2], 201).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_can_not_be_installed_stops_the_follower_and_it_can_try_again() {
    let (cluster, follower) = in_need_of_a_snapshot().await;
    cluster.disk(2, 1).fail.store(true, Ordering::Relaxed);
    let leader = cluster.group(1, 1);
    let joining = tokio::spawn(async move { leader.add_learner(NodeId(2)).await });
    let reason = eventually("the follower to stop", || follower.status().stopped).await;
    assert!(!reason.is_empty());
    cluster.nodes[&NodeId(2)].stop_group(1).await;
    cluster.disk(2, 1).fail.store(false, Ordering::Relaxed);
    cluster.start_group(2, 1).await;
    joining.await.unwrap().unwrap();
    cluster.converged(1, [1, 2], 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_members_survives_its_leader() {
    let mut cluster = Cluster::calls(|_| {}).founded(3).await;
    for node in 4..=5 {
        cluster.start(node).await;
        cluster.start_group(node, 1).await;
    }
    let old = cluster.leader(1, 1..=3).await;
    cluster.write(1, "before").await;
    for node in 4..=5 {
        cluster.group(old, 1).add_learner(NodeId(node)).await.unwrap();
    }
    // The new voters can't be reached, so the change stays half done.
    cluster.cut(4);
    cluster.cut(5);
    let group = cluster.group(old, 1);
    let change = tokio::spawn(async move { group.change_members(ids([old, 4, 5])).await });
    eventually("the change to begin", || cluster.group(old, 1).status().joint.then_some(())).await;
    change.abort();
    let stopped: Vec<u64> = (1..=5).filter(|node| *node != old).collect();
    cluster.cut(old);
    cluster.mend(4);
    cluster.mend(5);
    let new =
        eventually("a new leader", || stopped.iter().copied().find(|node| cluster.group(*node, 1).status().ready))
            .await;
    cluster.mend(old);
    // Whether the half change survived depends on who was elected; changing again ends it either way.
    let voters = ids((1..=5).filter(|node| *node != old));
    let retry = || async {
        match cluster.group(new, 1).change_members(voters.clone()).await {
            Err(MembershipError::InProgress) => tokio::time::sleep(Duration::from_millis(20)).await,
            other => return Some(other),
        }
        None
    };
    let mut done = None;
    while done.is_none() {
        done = retry().await;
    }
    done.unwrap().unwrap();
    let status = cluster.group(new, 1).status();
    assert_eq!((status.voters, status.joint), (voters, false));
    propose(&cluster.group(new, 1), "after").await.unwrap();
    assert_eq!(cluster.converged(1, stopped, 2).await, ["before", "after"]);
}
