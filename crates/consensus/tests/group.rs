//! Groups over plain function calls: what a user of a healthy and of a hurt cluster notices.

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Cluster, PATIENCE, eventually, ids, propose};
use futures::StreamExt;
use pleat_cluster::NodeId;
use pleat_consensus::{Config, MemoryDisk, ProposeError, ReadError, Storage};

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_writes_reads_and_goes_on_after_a_restart() {
    let mut cluster = Cluster::calls(|_| {}).founded(1).await;
    let group = cluster.group(1, 1);
    cluster.leader(1, [1]).await;
    assert_eq!(propose(&group, "a").await.unwrap(), "1");
    assert_eq!(propose(&group, "b").await.unwrap(), "2");
    let index = group.read_barrier(PATIENCE).await.unwrap();
    assert!(index >= 2, "{index}");
    drop(group);
    cluster.stop(1).await;

    cluster.start(1).await;
    let group = cluster.start_group(1, 1).await;
    group.initialize(ids([1])).await.expect("initialising again changes nothing");
    cluster.leader(1, [1]).await;
    assert_eq!(propose(&group, "c").await.unwrap(), "3");
    assert_eq!(cluster.disk(1, 1).proposals(), ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_agree_and_only_the_leader_serves() {
    let cluster = Cluster::calls(|_| {}).founded(3).await;
    let leader = cluster.leader(1, 1..=3).await;
    for number in 0..20 {
        propose(&cluster.group(leader, 1), &format!("p{number}")).await.unwrap();
    }
    let index = cluster.group(leader, 1).read_barrier(PATIENCE).await.unwrap();
    let follower = cluster.group(leader % 3 + 1, 1);
    follower.wait_applied(index, PATIENCE).await.unwrap();
    let known = Some(NodeId(leader));
    assert_eq!(propose(&follower, "x").await, Err(ProposeError::NotLeader { leader: known }));
    assert_eq!(follower.read_barrier(PATIENCE).await, Err(ReadError::NotLeader { leader: known }));
    assert_eq!(cluster.converged(1, 1..=3, 20).await.len(), 20);
    let status = cluster.group(leader, 1).status();
    assert_eq!((status.voters, status.joint, status.stopped), (ids(1..=3), false, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_off_leader_is_replaced_and_claims_nothing() {
    let cluster = Cluster::calls(|config| config.payload_wait_max = Duration::from_secs(2)).founded(3).await;
    let old = cluster.leader(1, 1..=3).await;
    propose(&cluster.group(old, 1), "before").await.unwrap();
    cluster.cut(old);
    let short = Duration::from_millis(500);
    let lost = cluster.group(old, 1).propose(Bytes::from("lost"), short).await;
    assert_eq!(lost, Err(ProposeError::Unknown), "it is in the old leader's log and may yet be committed or not");
    assert_eq!(
        cluster.group(old, 1).read_barrier(short).await,
        Err(ReadError::Timeout),
        "it can't confirm that it leads"
    );

    let rest: Vec<u64> = (1..=3).filter(|node| *node != old).collect();
    let new = cluster.leader(1, rest).await;
    propose(&cluster.group(new, 1), "after").await.unwrap();
    cluster.mend(old);
    cluster.leader(1, 1..=3).await;
    cluster.write(1, "last").await;
    let all = cluster.converged(1, 1..=3, 3).await;
    assert_eq!(all, ["before", "after", "last"], "what only the old leader had is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_write_while_their_leader_does_and_another_takes_over_when_its_disk_hangs() {
    let disk = MemoryDisk::new(Duration::from_millis(1));
    let storage = Storage::Memory(disk.clone());
    let tune = move |config: &mut Config| {
        config.storage = storage.clone();
        config.payload_wait_max = Duration::from_secs(2);
    };
    let cluster = Cluster::calls(tune).founded(3).await;
    let old = cluster.leader(1, 1..=3).await;
    propose(&cluster.group(old, 1), "before").await.unwrap();
    let before = disk.last_index(NodeId(old), 1);
    disk.slow_down(NodeId(old), Some(Duration::from_secs(3600)));
    let group = cluster.group(old, 1);
    let hangs = tokio::spawn(async move { propose(&group, "hangs").await });
    let rest: Vec<u64> = (1..=3).filter(|node| *node != old).collect();
    let have_it = || rest.iter().all(|node| disk.last_index(NodeId(*node), 1) > before).then_some(());
    eventually("both followers to have it on their disks", have_it).await;
    assert_eq!(disk.last_index(NodeId(old), 1), before, "the leader does not");

    let new = cluster.leader(1, rest.clone()).await;
    assert_eq!(
        hangs.await.unwrap(),
        Err(ProposeError::Unknown),
        "a majority has it, and its leader did not count that"
    );
    propose(&cluster.group(new, 1), "after").await.unwrap();
    assert_eq!(cluster.converged(1, rest, 3).await, ["before", "hangs", "after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_stopped_and_started_again_in_the_middle_of_writes_has_them_all() {
    let cluster = Cluster::calls(|_| {}).founded(1).await;
    let mut acknowledged = Vec::new();
    for round in 0..20 {
        cluster.leader(1, [1]).await;
        let group = cluster.group(1, 1);
        let mut writes = futures::stream::FuturesUnordered::new();
        for number in 0..5 {
            let (group, name) = (group.clone(), format!("{round}/{number}"));
            writes.push(tokio::spawn(async move { propose(&group, &name).await.map(|_| name) }));
        }
        acknowledged.push(writes.next().await.unwrap().unwrap().unwrap());
        cluster.nodes[&NodeId(1)].stop_group(1).await;
        cluster.start_group(1, 1).await;
        while let Some(write) = writes.next().await {
            acknowledged.extend(write.unwrap());
        }
    }
    cluster.write(1, "last").await;
    let all = cluster.disk(1, 1).proposals();
    let unique: std::collections::BTreeSet<&String> = all.iter().collect();
    assert_eq!(unique.len(), all.len(), "nothing twice");
    for name in acknowledged {
        assert!(unique.contains(&name), "{name} was acknowledged and is gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_gone_for_long_catches_up_by_snapshot() {
    let mut cluster = Cluster::calls(|config| {
        config.checkpoint_entries = 20;
        config.log_keep_entries = 0;
        config.snapshot_chunk_bytes = 100;
    })
    .founded(3)
    .await;
    let leader = cluster.leader(1, 1..=3).await;
    let away = leader % 3 + 1;
    cluster.write(1, "first").await;
    cluster.stop(away).await;
    for number in 0..200 {
        cluster.write(1, &format!("p{number}")).await;
    }
    eventually("the leader's purge", || cluster.group(leader, 1).status().purged.filter(|purged| *purged > 100)).await;

    cluster.start(away).await;
    cluster.start_group(away, 1).await;
    let all = cluster.converged(1, 1..=3, 201).await;
    assert_eq!(all.len(), 201, "nothing lost, nothing doubled");
    assert!(cluster.disk(away, 1).installs.load(Ordering::Relaxed) > 0, "the log that it lacks is gone");
    // The content is there a moment before its file is removed.
    for node in 1..=3 {
        let dir = cluster.config(node).dir.join("snapshots");
        let empty = || std::fs::read_dir(&dir).unwrap().next().is_none().then_some(());
        eventually("no file of a snapshot is left", empty).await;
    }

    // And it goes on from there, also over a restart.
    cluster.stop(away).await;
    cluster.write(1, "while away").await;
    cluster.start(away).await;
    cluster.start_group(away, 1).await;
    assert_eq!(cluster.converged(1, 1..=3, 202).await.len(), 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_becomes_a_voter_and_a_voter_leaves() {
    let mut cluster = Cluster::calls(|_| {}).founded(3).await;
    let leader = cluster.leader(1, 1..=3).await;
    cluster.write(1, "before").await;
    cluster.start(4).await;
    cluster.start_group(4, 1).await;
    let group = cluster.group(leader, 1);
    group.add_learner(NodeId(4)).await.unwrap();
    assert_eq!(group.status().learners, ids([4]));
    cluster.converged(1, [leader, 4], 1).await;

    let leaving = leader % 3 + 1;
    let voters = ids((1..=4).filter(|node| *node != leaving));
    group.change_members(voters.clone()).await.unwrap();
    let status = group.status();
    assert_eq!((status.voters, status.learners, status.joint), (voters, ids([]), false));

    cluster.nodes[&NodeId(leaving)].destroy_group(1).await.unwrap();
    cluster.write(1, "after").await;
    let members: Vec<u64> = (1..=4).filter(|node| *node != leaving).collect();
    assert_eq!(cluster.converged(1, members, 2).await, ["before", "after"]);
    assert_eq!(cluster.disk(leaving, 1).proposals(), ["before"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_removes_itself_hands_over() {
    let cluster = Cluster::calls(|_| {}).founded(3).await;
    let old = cluster.leader(1, 1..=3).await;
    cluster.write(1, "before").await;
    let rest: Vec<u64> = (1..=3).filter(|node| *node != old).collect();
    cluster.group(old, 1).change_members(ids(rest.clone())).await.unwrap();
    let new = cluster.leader(1, rest.clone()).await;
    assert_ne!(new, old);
    propose(&cluster.group(new, 1), "after").await.unwrap();
    assert_eq!(cluster.converged(1, rest, 2).await, ["before", "after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_cluster_restarts_from_disk() {
    let mut cluster = Cluster::calls(|_| {}).founded(3).await;
    for number in 0..30 {
        cluster.write(1, &format!("p{number}")).await;
    }
    for node in 1..=3 {
        cluster.stop(node).await;
    }
    for node in 1..=3 {
        cluster.start(node).await;
        cluster.start_group(node, 1).await;
    }
    cluster.write(1, "after").await;
    let all = cluster.converged(1, 1..=3, 31).await;
    assert_eq!((all.len(), all[30].as_str()), (31, "after"));
}

/// The first strong read that any of the nodes answers, tried again and again from now on: who gave it, and its index.
async fn first_read(cluster: &Cluster, nodes: u64) -> (u64, u64) {
    let tries = (1..=nodes).map(|node| {
        let group = cluster.group(node, 1);
        Box::pin(async move {
            loop {
                match group.read_barrier(PATIENCE).await {
                    Ok(index) => return (node, index),
                    Err(ReadError::NotLeader { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
                    Err(error) => panic!("node {node}: {error}"),
                }
            }
        })
    });
    futures::future::select_all(tries).await.0
}

/// A leader that is started again must not go on in its old term: its state may be older than what it acknowledged.
async fn a_restarted_leader_begins_a_new_term(nodes: u64) {
    let mut cluster = Cluster::calls(|_| {}).founded(nodes).await;
    let mut acknowledged = 0;
    for round in 0..3 {
        for number in 0..20 {
            cluster.write(1, &format!("{round}/{number}")).await;
            acknowledged += 1;
        }
        let leader = cluster.leader(1, 1..=nodes).await;
        let before = cluster.group(leader, 1).status();
        for node in 1..=nodes {
            // Nothing more is applied, and everything applied so far is lost: only the logs have it.
            cluster.replace_disk(node, 1);
            cluster.disk(node, 1).lose_power();
            cluster.stop(node).await;
        }
        for node in 1..=nodes {
            cluster.start(node).await;
        }
        for node in 1..=nodes {
            let group = cluster.start_group(node, 1).await;
            let status = group.status();
            assert!(!status.ready || status.term > before.term, "{status:?} follows on {before:?}");
        }
        let (reader, index) = first_read(&cluster, nodes).await;
        assert!(index > before.last_log, "a read sees up to {index} only, of {}", before.last_log);
        assert_eq!(cluster.disk(reader, 1).proposals().len(), acknowledged);
        let leader = cluster.leader(1, 1..=nodes).await;
        let after = cluster.group(leader, 1).status();
        assert!(after.term > before.term, "{after:?} follows on {before:?}");
        assert_eq!(cluster.disk(leader, 1).proposals().len(), acknowledged, "who is ready has applied everything");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_single_node_begins_a_new_term() {
    a_restarted_leader_begins_a_new_term(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_cluster_begins_a_new_term() {
    a_restarted_leader_begins_a_new_term(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_failure_the_log_fills_what_the_state_machine_lost() {
    let mut cluster = Cluster::calls(|config| {
        config.checkpoint_entries = 25;
        config.log_keep_entries = 0;
    })
    .founded(1)
    .await;
    for number in 0..90 {
        cluster.write(1, &format!("p{number}")).await;
    }
    let disk = cluster.disk(1, 1);
    eventually("a checkpoint", || (disk.checkpoints.load(Ordering::Relaxed) > 1).then_some(())).await;
    cluster.stop(1).await;
    disk.lose_power();
    assert!(disk.proposals().len() < 90, "something was lost");

    cluster.start(1).await;
    cluster.start_group(1, 1).await;
    let all = cluster.converged(1, [1], 90).await;
    let expected: Vec<String> = (0..90).map(|number| format!("p{number}")).collect();
    assert_eq!(all, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_share_entries_and_groups_share_flushes() {
    let mut cluster = Cluster::calls(|_| {});
    cluster.start(1).await;
    for group in 1..=4 {
        cluster.start_group(1, group).await.initialize(ids([1])).await.unwrap();
        cluster.leader(group, [1]).await;
    }
    let before = cluster.nodes[&NodeId(1)].stats();
    let mut writers = Vec::new();
    for writer in 0..128u64 {
        let group = cluster.group(1, writer % 4 + 1);
        writers.push(tokio::spawn(async move {
            for number in 0..20 {
                propose(&group, &format!("{writer}/{number}")).await.unwrap();
            }
        }));
    }
    futures::future::join_all(writers).await.into_iter().for_each(Result::unwrap);
    let after = cluster.nodes[&NodeId(1)].stats();
    let proposals = 128 * 20;
    let entries: u64 = (1..=4).map(|group| cluster.disk(1, group).entries.load(Ordering::Relaxed)).sum();
    let (flushes, writes) = (after.flushes - before.flushes, after.writes - before.writes);
    assert!(entries < proposals, "{entries} entries for {proposals} proposals");
    assert!(flushes < writes && writes < proposals, "{flushes} flushes, {writes} writes, {proposals} proposals");
    for group in 1..=4 {
        assert_eq!(cluster.disk(1, group).proposals().len(), 640);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strong_reads_share_one_quorum_round() {
    let cluster = Cluster::calls(|_| {}).founded(3).await;
    let leader = cluster.leader(1, 1..=3).await;
    let group = cluster.group(leader, 1);
    propose(&group, "a write that all must see").await.unwrap();
    let before = group.read_rounds();
    // All of them come while no round can succeed ...
    cluster.cut(leader);
    let mut readers: Vec<_> = (0..500).map(|_| Box::pin(group.read_barrier(PATIENCE))).collect();
    for reader in &mut readers {
        assert!(futures::poll!(reader).is_pending(), "nobody confirms that a leader leads whom nobody hears");
    }
    cluster.mend(leader);
    for read in futures::future::join_all(readers).await {
        read.unwrap();
    }
    // ... so that two are enough: one that may have begun before the last of them came, and one for the rest.
    let rounds = group.read_rounds() - before;
    assert!((1..=2).contains(&rounds), "{rounds} rounds for 500 reads");
    assert!(cluster.disk(leader, 1).proposals().contains(&"a write that all must see".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_stays_within_its_bytes() {
    let cluster = Cluster::calls(|config| {
        config.checkpoint_bytes = 100_000;
        config.log_keep_bytes = 50_000;
    })
    .founded(1)
    .await;
    for _ in 0..60 {
        cluster.write(1, &"x".repeat(10_000)).await;
    }
    let kept = || {
        let status = cluster.group(1, 1).status();
        let kept = status.last_log - status.purged?;
        (kept <= 20).then_some(kept)
    };
    let kept = eventually("a purge by bytes, long before 1000 entries", kept).await;
    assert!(kept >= 5, "what may be kept is kept: {kept} entries");
}

#[tokio::test]
async fn an_idle_group_makes_a_checkpoint_of_what_it_applied() {
    let cluster = Cluster::calls(|_| {}).founded(1).await;
    for _ in 0..22 {
        cluster.write(1, &"x".repeat(50_000)).await;
    }
    let status = || cluster.group(1, 1).status();
    let all = status().last_log;
    eventually("a checkpoint", || (status().checkpoint >= all).then_some(())).await;
}

/// What a write takes with so many writers, on real disks and without a network.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: run it alone, and with --nocapture"]
async fn how_long_writes_take() {
    for writers in [1, 4, 16, 64] {
        let cluster = Cluster::calls(|_| {}).founded(3).await;
        let group = cluster.group(cluster.leader(1, 1..=3).await, 1);
        let begin = Instant::now();
        let all = (0..writers).map(|writer| {
            let group = group.clone();
            tokio::spawn(async move {
                let mut took = Vec::new();
                while begin.elapsed() < Duration::from_secs(5) {
                    let since = Instant::now();
                    propose(&group, &format!("{writer}: {}", "x".repeat(100))).await.unwrap();
                    took.push(since.elapsed());
                }
                took
            })
        });
        let mut took = Vec::new();
        for each in futures::future::join_all(all).await {
            took.extend(each.unwrap());
        }
        took.sort_unstable();
        let (rate, at) =
            (took.len() as f64 / begin.elapsed().as_secs_f64(), |part: usize| took[took.len() * part / 100]);
        let flushes: u64 = cluster.nodes.values().map(|node| node.stats().flushes).sum();
        let entries = cluster.disk(1, 1).entries.load(Ordering::Relaxed);
        println!(
            "{writers} writers: {rate:.0}/s, p50 {:?}, p99 {:?}; {entries} entries, {flushes} flushes",
            at(50),
            at(99)
        );
    }
}
