//! Transactions over several shards and over several statements, on three hosts in one process.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use futures::TryStreamExt;
use pleat_cluster::{LedgerCommand, LedgerReply, Planned, ShardId, TableId, TxnId, Value};
use pleat_engine::{Action, Outcome, OwnershipCheck, Query, ReadLimits, ReadRequest, Refusal, Statement};
use pleat_host::{Freshness, Host, HostError, Piece, TxnEnd, TxnHandle, TxnPart, TxnReply, TxnStep, Written};

fn insert_of(id: i64) -> Vec<Statement> {
    vec![Statement::new("INSERT INTO t VALUES (?, 0)", vec![Value::Integer(id)])]
}

fn prepare(host: &Host, txn: TxnId, id: i64) -> Action {
    Action::Prepare {
        txn,
        began: host.txn_clock(),
        participants: vec![SHARD, OTHER],
        idempotency: None,
        units: ALL.to_vec(),
        statements: insert_of(id),
        base: None,
    }
}

/// The number of the commit, if it is one.
async fn decide(host: &Host, txn: TxnId, commit: bool) -> Option<u64> {
    let (began, at) = (host.txn_clock(), host.now_ms());
    let command = LedgerCommand::Decide { txn, commit, participants: vec![SHARD, OTHER], began, at };
    match host.ledger_command(command, LIMIT).await.unwrap() {
        LedgerReply::Decided { commit } => commit,
        other => panic!("{other:?}"),
    }
}

fn select(sql: &str) -> ReadRequest {
    ReadRequest {
        queries: vec![Query::new(sql)],
        check: OwnershipCheck::None,
        layout: None,
        now_ms: 1,
        seed: 1,
        limits: ReadLimits::default(),
        names_txns: true,
    }
}

async fn number(rows: pleat_host::RowStream) -> i64 {
    let pieces: Vec<Piece> = rows.pieces.try_collect().await.unwrap();
    let [Piece::Rows(rows)] = &pieces[..] else { panic!("{pieces:?}") };
    let Value::Integer(number) = rows[0][0] else { panic!("{rows:?}") };
    number
}

async fn counted(host: &Host, shard: ShardId) -> i64 {
    number(host.read(shard, select("SELECT count(*) FROM t"), Freshness::Strong, LIMIT).await.unwrap()).await
}

fn handle(host: &Host, began_before_ms: u64) -> TxnHandle {
    let id = TxnId(uuid::Uuid::new_v4().as_u128());
    TxnHandle { id, began: host.txn_clock() - began_before_ms, immediate: false }
}

async fn wrote(host: &Host, part: &mut TxnPart, id: i64) -> Result<(), HostError> {
    let step = TxnStep::Write { units: ALL.to_vec(), statements: insert_of(id), planned: Planned::default() };
    match host.txn_step(part, step, LIMIT).await? {
        TxnReply::Written { results, .. } => assert_eq!(results[0].rows_affected, 1),
        other => panic!("{other:?}"),
    }
    Ok(())
}

async fn decided(host: &Host, part: &mut TxnPart, step: TxnStep) -> Outcome {
    match host.txn_step(part, step, LIMIT).await.unwrap() {
        TxnReply::Decided(written) => written.outcome,
        other => panic!("{other:?}"),
    }
}

fn ended(result: Result<(), HostError>) -> (TxnEnd, String) {
    match result {
        Err(error @ HostError::TxnEnded(end)) => (end, error.code().to_owned()),
        other => panic!("{other:?}"),
    }
}

/// A group that was just founded may elect a second leader soon after its first, and an open transaction ends with its
/// leader. So this waits until the leaders have stayed for longer than an election takes.
async fn settled_cluster() -> Vec<Node> {
    let (nodes, _) = cluster().await;
    with_table(&nodes).await;
    let terms = || -> Vec<_> {
        let of = |node: &Node, shard| node.host.shard_status(shard).map(|status| (status.term, status.is_leader));
        nodes.iter().flat_map(|node| [of(node, SHARD), of(node, OTHER)]).collect()
    };
    let (mut known, mut since) = (terms(), Instant::now());
    while since.elapsed() < Duration::from_secs(3) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if terms() != known {
            (known, since) = (terms(), Instant::now());
        }
    }
    nodes
}

async fn until_decided(nodes: &[Node]) -> Duration {
    let begun = Instant::now();
    while !nodes[0].host.in_doubt(LIMIT).await.unwrap().is_empty() {
        assert!(begun.elapsed() < LIMIT, "{:?}", nodes[0].host.in_doubt(LIMIT).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_coordinator_leaves_behind_is_decided_by_others_and_never_by_halves() {
    let (mut nodes, _) = cluster().await;
    with_table(&nodes).await;
    for (round, commit) in [(1, false), (2, true)] {
        let host = nodes[0].host.clone();
        let txn = TxnId(round);
        for shard in [SHARD, OTHER] {
            let outcome =
                host.write(shard, Planned::default(), prepare(&host, txn, round as i64), LIMIT).await.unwrap().outcome;
            assert!(matches!(outcome, Outcome::Prepared { .. }), "{outcome:?}");
        }
        let doubt = host.in_doubt(LIMIT).await.unwrap();
        assert_eq!(doubt.iter().map(|one| (one.txn, one.shard)).collect::<Vec<_>>(), [(txn, SHARD), (txn, OTHER)]);
        assert!(matches!(
            host.write(OTHER, Planned::default(), prepare(&host, TxnId(99), 7), LIMIT).await.unwrap().outcome,
            Outcome::Refused(Refusal::Prepared { txn: other }) if other == txn
        ));
        if commit {
            assert!(decide(&host, txn, true).await.is_some());
            // The leader of a participant goes, and with it what it knew.
            let leader = nodes.iter().position(|n| n.host.shard_status(SHARD).unwrap().is_leader).unwrap();
            drop(stop(nodes.remove(leader)).await);
        }
        // An ordinary write waits for the decision, which nobody but the shards' leaders can find out now.
        let host = nodes[0].host.clone();
        done(host.write(OTHER, Planned::default(), insert(100 + round as i64, Some(format!("w{round}"))), LIMIT).await);
        until_decided(&nodes).await;
        assert_eq!(decide(&host, txn, !commit).await.is_some(), commit, "what was decided stays");
        let committed = i64::from(commit);
        assert_eq!(counted(&host, SHARD).await, committed);
        assert_eq!(counted(&host, OTHER).await, committed + round as i64);
    }
    let rows = nodes[0].host.read(SHARD, select("SELECT 1"), Freshness::Strong, LIMIT).await.unwrap();
    assert_eq!(rows.txns.unwrap().together, [(SHARD, 1), (OTHER, 1)], "the first commit of all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_are_given_once_whoever_asks() {
    let (nodes, _) = cluster().await;
    with_table(&nodes).await;
    let mut next = 1;
    for node in &nodes {
        let command = LedgerCommand::AllocateIds { table: TableId(1), count: 10, at_least: None };
        let given = node.host.ledger_command(command, LIMIT).await.unwrap();
        assert_eq!(given, LedgerReply::Ids { first: next });
        next += 10;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interactive_transaction_runs_from_any_node() {
    let nodes = settled_cluster().await;
    for (number, node) in (0..).zip(&nodes) {
        let host = &node.host;
        // One shard.
        let mut part = TxnPart::new(SHARD, handle(host, 0));
        wrote(host, &mut part, number * 10).await.unwrap();
        host.txn_step(&mut part, TxnStep::Savepoint("s".into()), LIMIT).await.unwrap();
        wrote(host, &mut part, number * 10 + 1).await.unwrap();
        host.txn_step(&mut part, TxnStep::RollbackTo("s".into()), LIMIT).await.unwrap();
        let read = host.txn_step(&mut part, TxnStep::Read(select("SELECT count(*) FROM t")), LIMIT).await.unwrap();
        let TxnReply::Rows(rows) = read else { panic!("{read:?}") };
        assert_eq!(common_count(rows).await, 2 * number + 1);
        assert_eq!(counted(host, SHARD).await, 2 * number, "nobody else sees it");
        let outcome = decided(host, &mut part, TxnStep::Commit { idempotency: None }).await;
        assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
        // Two shards.
        let txn = handle(host, 0);
        let mut parts = [TxnPart::new(SHARD, txn), TxnPart::new(OTHER, txn)];
        for part in &mut parts {
            wrote(host, part, number * 10 + 2).await.unwrap();
        }
        for part in &mut parts {
            let step = TxnStep::Prepare { participants: vec![SHARD, OTHER], idempotency: None };
            let outcome = decided(host, part, step).await;
            assert!(matches!(outcome, Outcome::Prepared { .. }), "{outcome:?}");
        }
        let commit = decide(host, txn.id, true).await;
        assert!(commit.is_some());
        for shard in [SHARD, OTHER] {
            done(host.write(shard, Planned::default(), Action::Decide { txn: txn.id, commit }, LIMIT).await);
        }
        // One that is rolled back.
        let mut part = TxnPart::new(OTHER, handle(host, 0));
        wrote(host, &mut part, 1_000).await.unwrap();
        host.txn_step(&mut part, TxnStep::Rollback, LIMIT).await.unwrap();
        assert_eq!((counted(host, SHARD).await, counted(host, OTHER).await), (2 * number + 2, number + 1));
    }
}

async fn common_count(rows: pleat_host::RowStream) -> i64 {
    number(rows).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_keeps_others_waiting_is_rolled_back() {
    let nodes = settled_cluster().await;
    let host = &nodes[0].host;
    let mut idle = TxnPart::new(SHARD, handle(host, 0));
    wrote(host, &mut idle, 1).await.unwrap();
    // An ordinary write waits, and gets its turn.
    done(host.write(SHARD, Planned::default(), insert(1, None), LIMIT).await);
    let (end, code) = ended(wrote(host, &mut idle, 2).await);
    assert!(matches!(end, TxnEnd::Idle { .. }) && code == "25P03", "{end:?}");
    assert_eq!(ended(wrote(host, &mut idle, 2).await).0, TxnEnd::Lost, "it is told once");
    host.txn_step(&mut idle, TxnStep::Rollback, LIMIT).await.unwrap();
    assert_eq!(counted(host, SHARD).await, 1);
    // A snapshot that is old when it is written on.
    let mut old = TxnPart::new(SHARD, handle(host, 0));
    let read = host.txn_step(&mut old, TxnStep::Read(select("SELECT 1")), LIMIT).await.unwrap();
    let TxnReply::Rows(rows) = read else { panic!("{read:?}") };
    assert_eq!(number(rows).await, 1);
    done(host.write(SHARD, Planned::default(), insert(2, None), LIMIT).await);
    assert_eq!(ended(wrote(host, &mut old, 3).await), (TxnEnd::Conflict, "40001".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_at_work_elsewhere_is_not_idle() {
    let nodes = settled_cluster().await;
    let host = &nodes[0].host;
    let mut part = TxnPart::new(SHARD, handle(host, 0));
    wrote(host, &mut part, 1).await.unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1_500) {
        host.touch_txn(&part, LIMIT).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Longer than a holder may do nothing.
    wrote(host, &mut part, 2).await.unwrap();
    let outcome = decided(host, &mut part, TxnStep::Commit { idempotency: None }).await;
    assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    assert_eq!(counted(host, SHARD).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_whose_transaction_ends_in_the_middle_is_no_shorter_answer() {
    let nodes = settled_cluster().await;
    let long =
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 1000000) SELECT n, 'a row' FROM c";
    // Asked on the shard's leader, and on another node.
    for node in &nodes {
        let host = &node.host;
        let mut young = TxnPart::new(SHARD, handle(host, 0));
        wrote(host, &mut young, 1).await.unwrap();
        let limits = ReadLimits { rows: u64::MAX, bytes: u64::MAX, ..ReadLimits::default() };
        let read = TxnStep::Read(ReadRequest { limits, ..select(long) });
        let TxnReply::Rows(rows) = host.txn_step(&mut young, read, LIMIT).await.unwrap() else { panic!("no rows") };
        let mut old = TxnPart::new(SHARD, handle(host, 10_000));
        wrote(host, &mut old, 1).await.unwrap();
        let pieces: Result<Vec<Piece>, HostError> = rows.pieces.try_collect().await;
        assert!(pieces.is_err(), "{} pieces", pieces.unwrap().len());
        host.txn_step(&mut old, TxnStep::Rollback, LIMIT).await.unwrap();
    }
}

/// Transactions on one shard, one after the other and several at once, until told to stop. Gives the entries of the log that
/// committed one.
async fn stream_of_transactions(host: Arc<Host>, first: i64, stop: Arc<AtomicBool>) -> Vec<u64> {
    let mut committed = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let txn = TxnId(uuid::Uuid::new_v4().as_u128());
        let id = first + committed.len() as i64;
        match host.write(SHARD, Planned::default(), prepare(&host, txn, id), LIMIT).await {
            Ok(Written { outcome: Outcome::Prepared { .. }, .. }) => {
                let decided = host
                    .write(SHARD, Planned::default(), Action::Decide { txn, commit: Some(1) }, LIMIT)
                    .await
                    .unwrap();
                committed.push(decided.index);
            }
            Ok(Written { outcome: Outcome::Refused(_), .. }) | Err(HostError::Refused(_)) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            other => panic!("{other:?}"),
        }
    }
    committed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_waits_for_a_transaction_or_two_and_not_for_a_stream_of_them() {
    let nodes = settled_cluster().await;
    let leader = nodes.iter().find(|node| node.host.shard_status(SHARD).unwrap().is_leader).unwrap().host.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let stream = |task: i64| tokio::spawn(stream_of_transactions(leader.clone(), 1_000_000 * task, stop.clone()));
    let streams: Vec<_> = (1..=6).map(stream).collect();
    let mut writes = Vec::new();
    for id in 0..40 {
        let before = leader.shard_status(SHARD).unwrap().applied;
        let written = leader.write(SHARD, Planned::default(), insert(id, Some(format!("w{id}"))), LIMIT).await.unwrap();
        writes.push((before, written.index));
        done(Ok(written));
    }
    stop.store(true, Ordering::Relaxed);
    let committed: Vec<u64> =
        futures::future::join_all(streams).await.into_iter().flat_map(|committed| committed.unwrap()).collect();
    let passed = |(before, at): &(u64, u64)| committed.iter().filter(|one| (before + 1..*at).contains(*one)).count();
    let passed: Vec<usize> = writes.iter().map(passed).collect();
    println!("{} transactions; those that went before each write: {passed:?}", committed.len());
    assert!(committed.len() >= 10, "the transactions were not kept out for ever: {}", committed.len());
    // The one that is prepared, and one that was just on its way.
    assert!(passed.iter().all(|passed| *passed <= 3), "{passed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_want_each_others_shards_the_older_one_wins() {
    let nodes = settled_cluster().await;
    let (one, two) = (nodes[0].host.clone(), nodes[1].host.clone());
    let (old, young) = (handle(&one, 10_000), handle(&two, 0));
    let mut old = [TxnPart::new(SHARD, old), TxnPart::new(OTHER, old)];
    let mut young = [TxnPart::new(OTHER, young), TxnPart::new(SHARD, young)];
    wrote(&one, &mut old[0], 1).await.unwrap();
    wrote(&two, &mut young[0], 2).await.unwrap();
    // Each wants the other's.
    let waits = tokio::spawn(async move { (wrote(&two, &mut young[1], 2).await, young, two) });
    wrote(&one, &mut old[1], 1).await.unwrap();
    for part in &mut old {
        let step = TxnStep::Prepare { participants: vec![SHARD, OTHER], idempotency: None };
        assert!(matches!(decided(&one, part, step).await, Outcome::Prepared { .. }));
    }
    let txn = old_id(&old);
    let commit = decide(&one, txn, true).await;
    assert!(commit.is_some());
    for shard in [SHARD, OTHER] {
        done(one.write(shard, Planned::default(), Action::Decide { txn, commit }, LIMIT).await);
    }
    let (waited, mut young, two) = waits.await.unwrap();
    // On the shard that it waited for it may have got in afterwards; the one that it had is gone.
    drop(waited);
    assert_eq!(ended(wrote(&two, &mut young[0], 3).await), (TxnEnd::Wounded, "40P01".to_owned()));
    assert_eq!((counted(&one, SHARD).await, counted(&one, OTHER).await), (1, 1));
}

fn old_id(parts: &[TxnPart]) -> TxnId {
    parts[0].txn().id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_is_lost_with_its_leader_and_never_begun_again_in_the_middle() {
    let mut nodes = settled_cluster().await;
    let leader = nodes.iter().position(|n| n.host.shard_status(SHARD).unwrap().is_leader).unwrap();
    let leader = nodes.remove(leader);
    let host: Arc<Host> = nodes[0].host.clone();
    let mut part = TxnPart::new(SHARD, handle(&host, 0));
    wrote(&host, &mut part, 1).await.unwrap();
    drop(stop(leader).await);
    assert_eq!(ended(wrote(&host, &mut part, 2).await), (TxnEnd::Lost, "40001".to_owned()));
    done(host.write(SHARD, Planned::default(), insert(3, Some("k".into())), LIMIT).await);
    assert_eq!(counted(&host, SHARD).await, 1);
}
