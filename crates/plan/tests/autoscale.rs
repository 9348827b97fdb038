//! What the autoscaler concludes, as a user would read it in the decision log.

use std::collections::BTreeMap;

use pleat_cluster::{
    Catalog, Cause, Column, Command, DdlEffect, KeyType, Mode, NodeId, OperationId, OperationKind, PartitionId, Phase,
    Policy, ShardId, Strategy, Table, TableId, TableKind, Verdict,
};
use pleat_plan::{Conclusion, History, Observed, ShardLoad, Weight, autoscale, worth_recording};

const NOW: u64 = 1_000_000;

/// A cluster with `shards` active shards and a threshold of 100 rows.
fn cluster(shards: u32, change: impl FnOnce(&mut Policy)) -> Catalog {
    let mut policy = Policy::default();
    policy.thresholds.total_entries_per_shard = Some(100);
    change(&mut policy);
    let mut catalog = Catalog::default();
    let nodes = (1..=3).map(|n| (NodeId(n), format!("node-{n}"), format!("127.0.0.1:{n}"))).collect();
    let cluster_id = "test".to_owned();
    let incarnations = Default::default();
    let (partition_count, replication_factor) = (16, 3);
    let init = Command::Init {
        cluster_id,
        partition_count,
        replication_factor,
        nodes,
        incarnations,
        shards,
        engine: Default::default(),
        policy,
        at: 1,
    };
    run(&mut catalog, init);
    for shard in 1..=shards {
        run(&mut catalog, Command::ActivateShard { shard: ShardId(shard), at: 1 });
    }
    catalog
}

fn run(catalog: &mut Catalog, command: Command) {
    catalog.apply(&command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert_eq!(catalog.check(), []);
}

fn quiet() -> ShardLoad {
    ShardLoad {
        node: NodeId(1),
        measured: NOW,
        rows: 50,
        rows_fixed: 0,
        bytes: 5_000,
        connections: 1,
        queries_per_second: 10.0,
        cpu_percent: 5.0,
        memory_percent: 5.0,
        partition_load: BTreeMap::new(),
    }
}

fn rows(rows: u64) -> ShardLoad {
    ShardLoad { rows, ..quiet() }
}

fn seen(loads: impl IntoIterator<Item = ShardLoad>) -> Observed {
    Observed { shards: (1..).map(ShardId).zip(loads).collect(), silent: BTreeMap::new() }
}

/// Every partition of the catalog's shards with ten rows.
fn even(catalog: &Catalog) -> BTreeMap<PartitionId, Weight> {
    (0..catalog.partition_count).map(|p| (PartitionId(p), Weight { rows: 10, bytes: 100, load: 0.0 })).collect()
}

/// One whole look.
fn look(catalog: &Catalog, observed: &Observed, history: &mut History) -> Conclusion {
    look_at(catalog, observed, NOW, history)
}

/// The same at another time, of measurements as new.
fn look_at(catalog: &Catalog, observed: &Observed, now: u64, history: &mut History) -> Conclusion {
    let mut observed = observed.clone();
    observed.shards.values_mut().for_each(|load| load.measured = load.measured.saturating_add(now - NOW));
    let mut draft = autoscale(catalog, &observed, now, history);
    loop {
        match draft.conclude(catalog, even(catalog)) {
            Ok(conclusion) => return conclusion,
            Err(next) => draft = *next,
        }
    }
}

fn first_look(catalog: &Catalog, observed: &Observed) -> Conclusion {
    look(catalog, observed, &mut History::default())
}

fn reason(conclusion: &Conclusion) -> &str {
    conclusion.decision.verdict.reason()
}

#[test]
fn too_many_rows_split_at_the_first_look_and_say_why() {
    let catalog = cluster(1, |_| {});
    let Conclusion { decision, start } = first_look(&catalog, &seen([rows(101)]));
    let Some(OperationKind::Split { from, to, partitions }) = start else { panic!("{decision:?}") };
    assert_eq!((from, to, partitions.len()), (ShardId(1), ShardId(2), 8));
    assert_eq!(decision.verdict.reason(), "total_entries of shard-1 is above 100");
    let row = decision.measurements.iter().find(|m| m.metric == "total_entries").unwrap();
    assert_eq!((row.value, row.threshold, row.exceeded), (101.0, Some(100.0), true));
    assert_eq!(decision.measurements.len(), 5, "all measurements are kept, exceeded or not");
    assert!(
        decision.options.iter().any(|o| o.chosen && o.what == "split shard-1: 8 of its 16 partitions to a new shard-2")
    );
    assert!(decision.options.iter().any(|o| !o.chosen && o.what == "do nothing"));
}

#[test]
fn the_threshold_itself_is_not_above_the_threshold() {
    let catalog = cluster(1, |_| {});
    let conclusion = first_look(&catalog, &seen([rows(100)]));
    assert_eq!(conclusion.start, None);
    assert_eq!(reason(&conclusion), "every measurement is within its threshold");
}

#[test]
fn the_shard_furthest_beyond_is_split_and_the_other_turned_down() {
    let catalog = cluster(2, |_| {});
    let conclusion = first_look(&catalog, &seen([rows(150), rows(400)]));
    assert!(matches!(conclusion.start, Some(OperationKind::Split { from: ShardId(2), to: ShardId(3), .. })));
    let other = conclusion.decision.options.iter().find(|o| o.what == "split shard-1").unwrap();
    assert!(!other.chosen && other.why.contains("one is chosen at a time"), "{}", other.why);
}

#[test]
fn each_noisy_threshold_must_hold_for_three_looks_in_a_row() {
    type Change = fn(&mut ShardLoad);
    let noisy: [(&str, Change); 4] = [
        ("cpu_percent", |load| load.cpu_percent = 70.1),
        ("memory_percent", |load| load.memory_percent = 85.1),
        ("connection_count", |load| load.connections = 21),
        ("queries_per_second", |load| load.queries_per_second = 1000.5),
    ];
    for (metric, change) in noisy {
        let catalog = cluster(1, |_| {});
        let mut hot = quiet();
        change(&mut hot);
        let mut history = History::default();
        // Two looks above, one below, two above: not enough.
        for load in [hot.clone(), hot.clone(), quiet(), hot.clone(), hot.clone()] {
            let conclusion = look(&catalog, &seen([load]), &mut history);
            assert_eq!(conclusion.start, None, "{metric}");
        }
        let conclusion = look(&catalog, &seen([hot]), &mut history);
        assert!(conclusion.start.is_some(), "{metric}: {}", reason(&conclusion));
        assert!(reason(&conclusion).starts_with(metric));
    }
}

#[test]
fn load_on_one_partition_is_not_split() {
    let catalog = cluster(1, |_| {});
    let mut history = History::default();
    let mut hot = ShardLoad { queries_per_second: 5000.0, ..quiet() };
    hot.partition_load.insert(PartitionId(3), 5000.0);
    for _ in 0..3 {
        let conclusion = look(&catalog, &seen([hot.clone()]), &mut history);
        assert_eq!(conclusion.start, None);
    }
    let conclusion = look(&catalog, &seen([hot.clone()]), &mut history);
    assert!(reason(&conclusion).contains("all of its load is on one partition"), "{}", reason(&conclusion));
    hot.partition_load.insert(PartitionId(4), 100.0);
    assert!(look(&catalog, &seen([hot]), &mut history).start.is_some());
}

#[test]
fn rows_of_one_partition_are_not_split_and_the_next_shard_is_tried() {
    let catalog = cluster(2, |_| {});
    let draft = autoscale(&catalog, &seen([rows(900), rows(150)]), NOW, &mut History::default());
    let one = BTreeMap::from([(PartitionId(2), Weight { rows: 900, bytes: 1, load: 0.0 })]);
    let draft = draft.conclude(&catalog, one).unwrap_err();
    assert_eq!(draft.candidate().unwrap().shard, ShardId(2));
    let conclusion = draft.conclude(&catalog, even(&catalog)).unwrap();
    assert!(matches!(conclusion.start, Some(OperationKind::Split { from: ShardId(2), .. })));
    let down = conclusion.decision.options.iter().find(|o| o.what == "split shard-1").unwrap();
    assert!(down.why.contains("all of it is in partition 2"), "{}", down.why);
}

#[test]
fn rows_that_no_split_divides_do_not_drive_the_cluster_to_its_limit() {
    let catalog = cluster(1, |_| {});
    let conclusion = first_look(&catalog, &seen([ShardLoad { rows_fixed: 990, ..rows(1000) }]));
    assert_eq!(conclusion.start, None);
    assert!(reason(&conclusion).contains("does not divide"), "{}", reason(&conclusion));
}

#[test]
fn cold_looks_at_the_cluster_as_a_whole() {
    let catalog = cluster(2, |policy| policy.strategy = Strategy::Cold);
    let conclusion = first_look(&catalog, &seen([rows(180), rows(10)]));
    assert_eq!(conclusion.start, None, "190 rows fit in two shards of 100");
    let conclusion = first_look(&catalog, &seen([rows(180), rows(21)]));
    assert!(matches!(conclusion.start, Some(OperationKind::Split { from: ShardId(1), .. })));
    assert_eq!(reason(&conclusion), "total_entries of cluster is above 200");
}

#[test]
fn cold_takes_the_mean_of_the_nodes_not_of_the_shards() {
    let catalog = cluster(3, |policy| policy.strategy = Strategy::Cold);
    let on = |node, cpu_percent| ShardLoad { node: NodeId(node), cpu_percent, ..quiet() };
    let observed = seen([on(1, 90.0), on(1, 90.0), on(2, 45.0)]);
    let conclusion = first_look(&catalog, &observed);
    let mean = conclusion.decision.measurements.iter().find(|m| m.subject == "cluster" && m.metric == "cpu_percent");
    assert_eq!(mean.unwrap().value, 67.5);
}

#[test]
fn cold_adds_up_connections_and_queries() {
    let catalog = cluster(2, |policy| policy.strategy = Strategy::Cold);
    let mut history = History::default();
    let busy = |connections, queries_per_second| ShardLoad { connections, queries_per_second, ..quiet() };
    for _ in 0..2 {
        assert_eq!(look(&catalog, &seen([busy(5, 1.0), busy(36, 2.0)]), &mut history).start, None);
    }
    let conclusion = look(&catalog, &seen([busy(5, 1.0), busy(36, 2.0)]), &mut history);
    assert!(matches!(conclusion.start, Some(OperationKind::Split { from: ShardId(2), .. })));
    assert_eq!(reason(&conclusion), "connection_count of cluster is above 40");
}

#[test]
fn manual_mode_stops_at_the_recommendation() {
    let catalog = cluster(1, |policy| policy.mode = Mode::Manual);
    let conclusion = first_look(&catalog, &seen([rows(101)]));
    assert_eq!(conclusion.start, None);
    assert!(matches!(conclusion.decision.verdict, Verdict::Split { from: ShardId(1), .. }));
}

#[test]
fn a_missing_or_stale_measurement_holds() {
    let catalog = cluster(2, |_| {});
    let mut missing = seen([rows(500)]);
    missing.silent.insert(NodeId(2), "connection refused".to_owned());
    let conclusion = first_look(&catalog, &missing);
    assert_eq!(reason(&conclusion), "there is no measurement of shard-2 (no answer from node-2)");
    assert_eq!(conclusion.start, None);
    let mut options = conclusion.decision.options.iter();
    assert!(options.any(|o| o.what == "split shard-1" && !o.chosen), "what it would have done is told");
    let stale = ShardLoad { measured: NOW - 30_001, ..rows(10) };
    let conclusion = first_look(&catalog, &seen([rows(500), stale]));
    assert_eq!(reason(&conclusion), "the newest measurement of shard-2 is more than 30000 ms old");
}

#[test]
fn max_shards_is_a_limit() {
    let catalog = cluster(2, |policy| policy.max_shards = 2);
    let conclusion = first_look(&catalog, &seen([rows(500), rows(500)]));
    assert_eq!(reason(&conclusion), "the cluster has as many shards as max_shards allows (2)");
}

fn start_split(catalog: &mut Catalog, at: u64) -> OperationId {
    let to = catalog.next_shard();
    let kind = OperationKind::Split { from: ShardId(1), to, partitions: vec![PartitionId(0)] };
    let start = Command::StartOperation { kind, cause: Cause::Request("test".to_owned()), reason: String::new(), at };
    catalog.apply(&start).unwrap().operation.unwrap()
}

fn fail_split(catalog: &mut Catalog, at: u64) {
    let operation = start_split(catalog, at);
    let shard = catalog.shards.keys().next_back().copied().unwrap();
    run(catalog, Command::RemoveShard { shard, at });
    let epoch = 1;
    run(catalog, Command::FinishOperation { operation, phase: Phase::Failed, message: String::new(), epoch, at });
}

#[test]
fn one_action_at_a_time_then_a_cool_down() {
    let mut catalog = cluster(1, |_| {});
    let operation = start_split(&mut catalog, NOW - 60_000);
    let conclusion = first_look(&catalog, &seen([rows(500)]));
    assert_eq!(reason(&conclusion), format!("{operation} (split) is under way"));
    run(&mut catalog, Command::ActivateShard { shard: ShardId(2), at: NOW });
    run(&mut catalog, Command::CommitOperation { operation, epoch: 1, at: NOW });
    let (phase, message) = (Phase::Successful, String::new());
    run(&mut catalog, Command::FinishOperation { operation, phase, message, epoch: 1, at: NOW - 9_999 });
    let conclusion = first_look(&catalog, &seen([rows(500), rows(1)]));
    assert_eq!(reason(&conclusion), format!("cooling down for 10000 ms after {operation}"));
}

#[test]
fn failures_in_a_row_lengthen_the_cool_down() {
    let mut catalog = cluster(1, |_| {});
    for _ in 0..3 {
        fail_split(&mut catalog, NOW - 20_000);
    }
    let conclusion = first_look(&catalog, &seen([rows(500)]));
    assert_eq!(reason(&conclusion), "cooling down for 40000 ms after op-3, which failed");
}

/// A split that the autoscaler begins and that ends at once.
fn scaled(catalog: &mut Catalog, at: u64) {
    let conclusion = look_at(catalog, &seen((0..catalog.shards.len()).map(|_| rows(500))), at, &mut History::default());
    let (decision, start) = (conclusion.decision, conclusion.start);
    assert!(start.is_some(), "{}", decision.verdict.reason());
    let reply = catalog.apply(&Command::RecordDecision { decision, start, at }).unwrap();
    let (operation, shard) = (reply.operation.unwrap(), ShardId(catalog.shards.len() as u32));
    run(catalog, Command::ActivateShard { shard, at });
    run(catalog, Command::CommitOperation { operation, epoch: 1, at });
    run(
        catalog,
        Command::FinishOperation { operation, phase: Phase::Successful, message: String::new(), epoch: 1, at },
    );
}

#[test]
fn no_more_actions_than_the_limit_in_its_window_and_it_says_when_it_ends() {
    let mut catalog = cluster(1, |policy| (policy.cooldown_ms, policy.max_actions) = (0, 2));
    scaled(&mut catalog, NOW);
    scaled(&mut catalog, NOW + 100_000);
    let at = |now| look_at(&catalog, &seen([rows(500), rows(500), rows(500)]), now, &mut History::default());
    let conclusion = at(NOW + 299_999);
    assert_eq!(conclusion.start, None);
    let expected = "total_entries of shard-1 is above 100, but max_actions allows 2 actions in 300 s, and since op-1 the \
                    next one is due at 1970-01-01T00:21:40.000Z";
    assert_eq!(conclusion.decision.options.iter().filter(|option| option.what.starts_with("split")).count(), 3);
    assert!(conclusion.decision.options.iter().any(|option| option.why == expected), "{conclusion:#?}");
    assert!(reason(&conclusion).ends_with("due at 1970-01-01T00:21:40.000Z"), "{}", reason(&conclusion));
    assert!(at(NOW + 300_000).start.is_some());
    // Nothing to put off: the limit is not worth a word.
    let calm = look_at(&catalog, &seen([rows(5), rows(5), rows(5)]), NOW + 200_000, &mut History::default());
    assert_eq!(reason(&calm), "every measurement is within its threshold");
}

#[test]
fn what_a_person_did_does_not_count_and_streaks_go_on_while_the_limit_holds() {
    let mut catalog = cluster(1, |policy| policy.cooldown_ms = 0);
    fail_split(&mut catalog, NOW);
    scaled(&mut catalog, NOW + 1);
    let busy = || seen([ShardLoad { cpu_percent: 90.0, ..quiet() }, quiet(), quiet()]);
    let mut history = History::default();
    for now in [NOW + 299_998, NOW + 299_999, NOW + 300_000] {
        assert_eq!(look_at(&catalog, &busy(), now, &mut history).start, None);
    }
    assert!(look_at(&catalog, &busy(), NOW + 300_001, &mut history).start.is_some());
}

#[test]
fn a_hold_is_recorded_once() {
    let mut catalog = cluster(1, |_| {});
    let conclusion = first_look(&catalog, &seen([rows(1)]));
    assert!(worth_recording(&catalog, &conclusion), "the first decision is");
    run(&mut catalog, Command::RecordDecision { decision: conclusion.decision.clone(), start: None, at: NOW });
    assert!(!worth_recording(&catalog, &conclusion));
    let other = first_look(&catalog, &seen([]));
    assert!(worth_recording(&catalog, &other), "another reason is news");
    let split = first_look(&catalog, &seen([rows(101)]));
    assert!(worth_recording(&catalog, &split));
}

#[test]
fn a_recommendation_is_recorded_once() {
    let mut catalog = cluster(1, |policy| policy.mode = Mode::Manual);
    let conclusion = first_look(&catalog, &seen([rows(101)]));
    run(&mut catalog, Command::RecordDecision { decision: conclusion.decision.clone(), start: None, at: NOW });
    assert!(!worth_recording(&catalog, &first_look(&catalog, &seen([rows(150)]))));
}

#[test]
fn a_decision_of_a_table_change_does_not_hinder() {
    let mut catalog = cluster(1, |_| {});
    let column = |name: &str| Column {
        name: name.to_owned(),
        decl_type: "INTEGER".to_owned(),
        collation: None,
        not_null: false,
        generated: false,
        serial: None,
        has_default: false,
    };
    let table = Table {
        id: TableId(0),
        name: "users".to_owned(),
        kind: TableKind::Sharded { key: "id".to_owned(), key_type: KeyType::Integer },
        columns: vec![column("id")],
        primary_key: vec!["id".to_owned()],
        rowid_alias: true,
        without_rowid: false,
        create_sql: "CREATE TABLE users (id INTEGER PRIMARY KEY)".to_owned(),
        indexes: Vec::new(),
        triggers: Vec::new(),
    };
    let kind = OperationKind::Ddl { effect: DdlEffect::CreateTable(table), sql: String::new(), layout: 0 };
    let cause = Cause::Request("test".to_owned());
    run(&mut catalog, Command::StartOperation { kind, cause, reason: String::new(), at: NOW });
    assert!(first_look(&catalog, &seen([rows(101)])).start.is_some());
}

fn begin(catalog: &mut Catalog, operation: OperationId) {
    let (step, detail) = ("capture".to_owned(), String::new());
    run(catalog, Command::JournalStep { operation, step, ended: false, detail, epoch: 1, at: NOW });
}

#[test]
fn another_shard_is_split_meanwhile_but_what_a_move_does_to_nodes_is_no_reason() {
    let mut catalog = cluster(3, |_| {});
    let operation = start_split(&mut catalog, NOW - 60_000);
    begin(&mut catalog, operation);
    let conclusion = first_look(&catalog, &seen([rows(500), rows(150), rows(50)]));
    assert!(matches!(conclusion.start, Some(OperationKind::Split { from: ShardId(2), to: ShardId(5), .. })));
    let first = conclusion.decision.options.iter().find(|option| option.what == "split shard-1").unwrap();
    assert_eq!(first.why, format!("total_entries of shard-1 is above 100, but {operation} (split) is under way"));
    let mut history = History::default();
    let busy = seen([quiet(), ShardLoad { cpu_percent: 90.0, ..quiet() }, quiet()]);
    for _ in 0..4 {
        let conclusion = look(&catalog, &busy, &mut history);
        assert_eq!((conclusion.start.is_some(), reason(&conclusion)), (false, "op-1 (split) is under way"));
        let option = conclusion.decision.options.iter().find(|option| option.what == "split shard-2").unwrap();
        assert!(option.why.contains("partly its doing"), "{}", option.why);
    }
    // What clients ask of the other shard is its own.
    let asked = seen([quiet(), ShardLoad { queries_per_second: 5_000.0, ..quiet() }, quiet()]);
    let conclusions: Vec<Conclusion> = (0..3).map(|_| look(&catalog, &asked, &mut history)).collect();
    assert_eq!(conclusions.iter().map(|one| one.start.is_some()).collect::<Vec<_>>(), [false, false, true]);
    let (decision, start) = (conclusions[2].decision.clone(), conclusions[2].start.clone());
    run(&mut catalog, Command::RecordDecision { decision, start, at: NOW });
    let conclusion = first_look(&catalog, &seen([rows(500), rows(500), rows(500)]));
    assert_eq!(conclusion.start, None);
    let last = conclusion.decision.options.iter().find(|option| option.what == "split shard-3").unwrap();
    assert!(last.why.ends_with("op-1 and op-2 are under way, and no more than 2 are at a time"), "{}", last.why);
}

#[test]
fn a_split_does_not_wait_for_the_moves_of_a_rebalance_that_have_not_begun_and_leaves_them_what_they_take() {
    let mut catalog = cluster(3, |_| {});
    let owned = catalog.partitions_of(ShardId(1));
    let shift = |at: usize| OperationKind::Move { from: ShardId(1), to: ShardId(2), partitions: vec![owned[at]] };
    let (moves, cause) = (vec![shift(0), shift(1)], Cause::Request("test".to_owned()));
    run(&mut catalog, Command::StartMoves { moves, cause, reason: "uneven".to_owned(), at: NOW });
    let over = seen([rows(500), rows(50), rows(50)]);
    let conclusion = first_look(&catalog, &over);
    let Some(OperationKind::Split { from: ShardId(1), partitions, .. }) = &conclusion.start else {
        panic!("{conclusion:#?}");
    };
    assert_eq!((partitions.len(), partitions.iter().any(|p| owned[..2].contains(p))), (2, false), "{partitions:?}");
    run(
        &mut catalog.clone(),
        Command::RecordDecision { decision: conclusion.decision, start: conclusion.start, at: NOW },
    );
    // One that has begun is another matter, and so is one that has just ended; another shard does not mind.
    begin(&mut catalog, OperationId(1));
    let option = |catalog: &Catalog| {
        let conclusion = first_look(catalog, &over);
        assert_eq!(conclusion.start, None);
        conclusion.decision.options.into_iter().find(|option| option.what == "split shard-1").unwrap().why
    };
    assert!(option(&catalog).ends_with("op-1 (move) is under way"), "{}", option(&catalog));
    run(&mut catalog, Command::CommitOperation { operation: OperationId(1), epoch: 1, at: NOW });
    let (operation, phase, message) = (OperationId(1), Phase::Successful, String::new());
    run(&mut catalog, Command::FinishOperation { operation, phase, message, epoch: 1, at: NOW });
    assert!(option(&catalog).ends_with("shard-1 is cooling down for 10000 ms after op-1"), "{}", option(&catalog));
    let other = first_look(&catalog, &seen([rows(50), rows(50), rows(500)]));
    assert!(matches!(other.start, Some(OperationKind::Split { from: ShardId(3), .. })), "{other:#?}");
}
