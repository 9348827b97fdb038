//! The catalog as its users see it: whole lives of clusters, and random commands that must never break an
//! invariant.

mod moves;
mod users;

use pleat_cluster::*;
use proptest::prelude::{Just, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as _;

fn founded(nodes: u64, shards: u32) -> Catalog {
    let mut catalog = Catalog::default();
    catalog.apply(&init("c", nodes, shards)).unwrap();
    for shard in 1..=shards {
        catalog.apply(&Command::ActivateShard { shard: ShardId(shard), at: 2 }).unwrap();
    }
    assert_eq!(catalog.check(), []);
    catalog
}

fn init(cluster_id: &str, nodes: u64, shards: u32) -> Command {
    Command::Init {
        cluster_id: cluster_id.into(),
        partition_count: 16,
        replication_factor: 3,
        nodes: (1..=nodes).map(|n| (NodeId(n), format!("node-{n}"), format!("127.0.0.1:{}", 8079 + n))).collect(),
        incarnations: (1..=nodes).map(|n| (NodeId(n), 100 + n)).collect(),
        shards,
        engine: Default::default(),
        policy: Policy::default(),
        at: 1,
    }
}

fn start(kind: OperationKind) -> Command {
    Command::StartOperation { kind, cause: Cause::Request("test".into()), reason: "because".into(), at: 5 }
}

fn split(from: u32, to: u32, partitions: std::ops::Range<u32>) -> OperationKind {
    OperationKind::Split { from: ShardId(from), to: ShardId(to), partitions: partitions.map(PartitionId).collect() }
}

fn table(name: &str, kind: TableKind) -> Table {
    let column = |name: &str| Column {
        name: name.into(),
        decl_type: "INTEGER".into(),
        collation: None,
        not_null: false,
        generated: false,
        serial: None,
        has_default: false,
    };
    Table {
        id: TableId(0),
        name: name.into(),
        kind,
        columns: vec![column("id"), column("v")],
        primary_key: vec!["id".into()],
        rowid_alias: true,
        without_rowid: false,
        create_sql: format!("CREATE TABLE {name}(id INTEGER PRIMARY KEY, v)"),
        indexes: vec![],
        triggers: vec![],
    }
}

fn create(name: &str, kind: TableKind) -> OperationKind {
    let effect = DdlEffect::CreateTable(table(name, kind));
    OperationKind::Ddl { effect, sql: format!("CREATE TABLE {name}(…)"), layout: 0 }
}

fn by_id() -> TableKind {
    TableKind::Sharded { key: "id".into(), key_type: KeyType::Integer }
}

fn run(catalog: &mut Catalog, kind: OperationKind) -> OperationId {
    let id = catalog.apply(&start(kind)).unwrap().operation.unwrap();
    for ended in [false, true] {
        let step = "act".to_owned();
        catalog
            .apply(&Command::JournalStep { operation: id, step, ended, detail: String::new(), epoch: 1, at: 6 })
            .unwrap();
    }
    if let OperationKind::Split { to, .. } = catalog.operations[&id].kind {
        catalog.apply(&Command::ActivateShard { shard: to, at: 7 }).unwrap();
    }
    catalog.apply(&Command::CommitOperation { operation: id, epoch: 1, at: 8 }).unwrap();
    let done =
        Command::FinishOperation { operation: id, phase: Phase::Successful, message: "done".into(), epoch: 1, at: 9 };
    catalog.apply(&done).unwrap();
    assert_eq!(catalog.check(), []);
    id
}

#[test]
fn a_cluster_deals_its_partitions_out_evenly() {
    let catalog = founded(3, 3);
    let sizes: Vec<_> = (1..=3).map(|shard| catalog.partitions_of(ShardId(shard)).len()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 16);
    assert!(sizes.iter().all(|size| (5..=6).contains(size)), "{sizes:?}");
    assert!(catalog.shards.values().all(|shard| shard.replicas.len() == 3));
}

#[test]
fn founding_twice_is_harmless_but_not_as_another_cluster() {
    let mut catalog = founded(3, 1);
    let before = catalog.clone();
    catalog.apply(&init("c", 3, 1)).unwrap();
    assert_eq!(catalog, before);
    let error = catalog.apply(&init("other", 3, 1)).unwrap_err();
    assert_eq!(error.to_string(), "this is cluster c, not other");
    assert_eq!(catalog, before);
}

#[test]
fn nothing_happens_before_the_founding() {
    let mut catalog = Catalog::default();
    let error = catalog.apply(&Command::ActivateShard { shard: ShardId(1), at: 1 }).unwrap_err();
    assert_eq!(error, CommandError::NotInitialised);
}

#[test]
fn a_split_gives_partitions_a_new_owner_at_its_commit() {
    let mut catalog = founded(3, 1);
    let before = catalog.generation;
    let id = run(&mut catalog, split(1, 2, 8..16));
    assert_eq!(catalog.partitions_of(ShardId(2)), (8..16).map(PartitionId).collect::<Vec<_>>());
    assert!(catalog.generation > before);
    assert_eq!(catalog.shards[&ShardId(1)].ownership, catalog.shards[&ShardId(2)].ownership);
    let operation = &catalog.operations[&id];
    assert_eq!((operation.phase, operation.steps.len()), (Phase::Successful, 1));
    assert!(operation.steps[0].ended.is_some());
}

#[test]
fn moves_that_make_no_sense_are_refused_and_change_nothing() {
    let mut catalog = founded(3, 2);
    let before = catalog.clone();
    for kind in [
        split(1, 9, 0..4),  // not the next shard
        split(1, 3, 0..8),  // nothing would be left
        split(1, 3, 6..10), // partly another shard's
        split(1, 3, 0..0),  // nothing to move
        split(7, 3, 0..1),  // no such shard
        OperationKind::Move { from: ShardId(1), to: ShardId(1), partitions: vec![PartitionId(0)] },
        OperationKind::Move { from: ShardId(1), to: ShardId(2), partitions: vec![PartitionId(1), PartitionId(0)] },
    ] {
        assert!(catalog.apply(&start(kind.clone())).is_err(), "{kind:?}");
        assert_eq!(catalog, before, "{kind:?}");
    }
}

#[test]
fn a_failed_split_leaves_its_shard_to_be_removed() {
    let mut catalog = founded(3, 1);
    let id = catalog.apply(&start(split(1, 2, 8..16))).unwrap().operation.unwrap();
    let failed =
        Command::FinishOperation { operation: id, phase: Phase::Failed, message: "no disk".into(), epoch: 1, at: 9 };
    catalog.apply(&failed).unwrap();
    catalog.apply(&Command::RemoveShard { shard: ShardId(2), at: 9 }).unwrap();
    assert_eq!(catalog.check(), []);
    assert_eq!(catalog.next_shard(), ShardId(3), "numbers are never used twice");
    assert!(catalog.apply(&Command::RemoveShard { shard: ShardId(1), at: 9 }).is_err(), "it owns data");
}

#[test]
fn what_is_committed_can_only_succeed() {
    let mut catalog = founded(3, 1);
    let id = catalog.apply(&start(create("t", by_id()))).unwrap().operation.unwrap();
    catalog.apply(&Command::CommitOperation { operation: id, epoch: 1, at: 6 }).unwrap();
    let failed =
        Command::FinishOperation { operation: id, phase: Phase::Failed, message: String::new(), epoch: 1, at: 9 };
    assert!(catalog.apply(&failed).is_err());
    assert!(catalog.apply(&Command::CancelOperation { operation: OperationId(99), at: 9 }).is_err());
}

#[test]
fn a_cancellation_and_a_commit_exclude_each_other() {
    let mut catalog = founded(3, 1);
    let begin =
        |catalog: &mut Catalog, name: &str| catalog.apply(&start(create(name, by_id()))).unwrap().operation.unwrap();
    let commit = |operation| Command::CommitOperation { operation, epoch: 1, at: 6 };
    let cancel = |operation| Command::CancelOperation { operation, at: 6 };
    let give_up = |operation| {
        let (message, code) = ("no".to_owned(), Some("23505".to_owned()));
        Command::GiveUpOperation { operation, message, code, epoch: 1, at: 6 }
    };
    let cancelled = begin(&mut catalog, "a");
    catalog.apply(&cancel(cancelled)).unwrap();
    let error = catalog.apply(&commit(cancelled)).unwrap_err();
    assert_eq!(error.to_string(), "op-1 is being cancelled");
    let committed = begin(&mut catalog, "b");
    catalog.apply(&commit(committed)).unwrap();
    let error = catalog.apply(&cancel(committed)).unwrap_err();
    assert_eq!(error.to_string(), "op-2 is past its point of no return");
    assert!(catalog.apply(&give_up(committed)).is_err());
    let undone = begin(&mut catalog, "c");
    catalog.apply(&give_up(undone)).unwrap();
    assert!(catalog.apply(&commit(undone)).is_err());
    let error = catalog.apply(&cancel(undone)).unwrap_err();
    assert_eq!(error.to_string(), "op-3 was given up and is being taken back");
    assert_eq!(catalog.operations[&undone].code.as_deref(), Some("23505"));
}

#[test]
fn nothing_is_begun_on_a_shard_that_a_decided_operation_waits_for() {
    let mut catalog = founded(3, 3);
    let shift = |from, to| OperationKind::Move {
        from: ShardId(from),
        to: ShardId(to),
        partitions: catalog.partitions_of(ShardId(from))[..1].to_vec(),
    };
    let (lost, free, held) = (shift(1, 2), shift(3, 1), shift(3, 2));
    let id = catalog.apply(&start(lost)).unwrap().operation.unwrap();
    let wait = Command::AwaitShards { operation: id, shards: vec![ShardId(2)], epoch: 1, at: 6 };
    assert!(catalog.apply(&wait).is_err(), "only what is decided waits");
    let give_up = Command::GiveUpOperation { operation: id, message: "lost".to_owned(), code: None, epoch: 1, at: 6 };
    catalog.apply(&give_up).unwrap();
    catalog.apply(&wait).unwrap();
    assert_eq!(catalog.check(), []);
    for needs_it in [held, create("t", by_id())] {
        let error = catalog.apply(&start(needs_it)).unwrap_err();
        assert_eq!(error.to_string(), "op-1 waits for shard-2 and comes first on shard-2, which this needs too");
    }
    run(&mut catalog, free);
    let done =
        Command::FinishOperation { operation: id, phase: Phase::Failed, message: "lost".into(), epoch: 1, at: 9 };
    catalog.apply(&done).unwrap();
    assert!(!catalog.operations[&id].is_waiting());
    catalog.apply(&start(create("t", by_id()))).unwrap();
}

#[test]
fn a_single_table_gets_no_home_on_a_shard_that_may_go() {
    let mut catalog = founded(3, 1);
    let split = catalog.apply(&start(split(1, 2, 8..16))).unwrap().operation.unwrap();
    catalog.apply(&Command::ActivateShard { shard: ShardId(2), at: 5 }).unwrap();
    let single = || start(create("notes", TableKind::Single { shard: ShardId(2) }));
    let error = catalog.apply(&single()).unwrap_err();
    assert_eq!(error.to_string(), "op-1 is still making shard-2; wait for it to end");
    let (phase, message) = (Phase::Failed, String::new());
    catalog.apply(&Command::FinishOperation { operation: split, phase, message, epoch: 1, at: 9 }).unwrap();
    let notes = catalog.apply(&single()).unwrap().operation.unwrap();
    let remove = Command::RemoveShard { shard: ShardId(2), at: 9 };
    assert!(catalog.apply(&remove).is_err(), "a table is about to live there");
    let mut removed = catalog.clone();
    removed.shards.get_mut(&ShardId(2)).unwrap().state = ShardState::Removed;
    let commit = Command::CommitOperation { operation: notes, epoch: 1, at: 9 };
    assert!(matches!(removed.apply(&commit), Err(CommandError::Invalid { .. })));
    catalog.apply(&commit).unwrap();
    catalog.shards.get_mut(&ShardId(2)).unwrap().state = ShardState::Removed;
    assert_eq!(catalog.check().len(), 1);
}

#[test]
fn a_leader_that_was_replaced_can_neither_commit_nor_end_an_operation() {
    let mut catalog = founded(3, 1);
    let id = catalog.apply(&start(split(1, 2, 8..16))).unwrap().operation.unwrap();
    catalog.apply(&Command::ActivateShard { shard: ShardId(2), at: 5 }).unwrap();
    let step = |epoch| Command::JournalStep {
        operation: id,
        step: "claim".into(),
        ended: false,
        detail: String::new(),
        epoch,
        at: 6,
    };
    catalog.apply(&step(3)).unwrap();
    catalog.apply(&step(5)).unwrap();
    let attempt = |epoch| Command::BeginAttempt { operation: id, step: "capture".into(), epoch, at: 6 };
    catalog.apply(&attempt(5)).unwrap();
    assert_eq!(catalog.operations[&id].attempts, 1);
    let before = catalog.clone();
    assert!(catalog.apply(&attempt(3)).is_err());
    let error = catalog.apply(&Command::CommitOperation { operation: id, epoch: 3, at: 7 }).unwrap_err();
    assert_eq!(error.to_string(), "op-1 was taken over by the leader of term 5; term 3 has ended");
    let (phase, message) = (Phase::Failed, String::new());
    assert!(catalog.apply(&Command::FinishOperation { operation: id, phase, message, epoch: 3, at: 7 }).is_err());
    assert!(catalog.apply(&step(3)).is_err());
    assert_eq!(catalog, before);
    catalog.apply(&Command::CommitOperation { operation: id, epoch: 5, at: 8 }).unwrap();
}

#[test]
fn tables_come_and_go_by_name_in_any_case() {
    let mut catalog = founded(3, 1);
    run(&mut catalog, create("Users", by_id()));
    assert_eq!(catalog.table("USERS").map(|t| t.id), Some(TableId(1)));
    assert!(catalog.apply(&start(create("uSERS", by_id()))).is_err());
    let index = Index { name: "i".into(), sql: "CREATE INDEX i ON users(v)".into() };
    let add = DdlEffect::CreateIndex { table: "users".into(), index };
    run(&mut catalog, OperationKind::Ddl { effect: add.clone(), sql: String::new(), layout: 0 });
    assert!(catalog.apply(&start(OperationKind::Ddl { effect: add, sql: String::new(), layout: 0 })).is_err());
    let drop = DdlEffect::DropTable { table: "Users".into() };
    run(&mut catalog, OperationKind::Ddl { effect: drop, sql: String::new(), layout: 0 });
    assert!(catalog.table("users").is_none());
    run(&mut catalog, create("users", by_id()));
    assert_eq!(catalog.table("users").map(|t| t.id), Some(TableId(2)), "an id is never used twice");
}

/// A unique index that is fine where a table was may promise too much where it is.
#[test]
fn what_was_planned_before_a_table_was_placed_anew_is_planned_again() {
    let mut catalog = founded(3, 1);
    let ddl = |effect, layout| OperationKind::Ddl { effect, sql: String::new(), layout };
    run(&mut catalog, create("users", TableKind::Reference));
    let before = Box::new(catalog.table("users").unwrap().clone());
    let after = Box::new(Table { kind: by_id(), ..Table::clone(&before) });
    run(&mut catalog, ddl(DdlEffect::PlaceTable { before, after }, 0));
    let index = Index { name: "i".into(), sql: "CREATE UNIQUE INDEX i ON users(v)".into() };
    let add = DdlEffect::CreateIndex { table: "users".into(), index };
    let refused = catalog.apply(&start(ddl(add.clone(), 0))).unwrap_err();
    assert!(matches!(refused, CommandError::Busy { .. }), "{refused}");
    let layout = catalog.layout;
    run(&mut catalog, ddl(add, layout));
    let view = View { name: "v".into(), sql: "CREATE VIEW v AS SELECT id FROM users".into() };
    run(&mut catalog, ddl(DdlEffect::CreateView(view), 0));
}

#[test]
fn tables_views_and_indexes_share_their_names() {
    let mut catalog = founded(3, 1);
    run(&mut catalog, create("users", by_id()));
    let view = |name: &str| View { name: name.into(), sql: format!("CREATE VIEW {name} AS SELECT id FROM users") };
    let ddl = |effect| OperationKind::Ddl { effect, sql: String::new(), layout: 0 };
    run(&mut catalog, ddl(DdlEffect::CreateView(view("Names"))));
    assert_eq!(catalog.view("NAMES"), Some(&view("Names")));
    let index = Index { name: "names".into(), sql: "CREATE INDEX names ON users(v)".into() };
    for taken in [
        create("NAMES", by_id()),
        ddl(DdlEffect::CreateView(view("USERS"))),
        ddl(DdlEffect::CreateView(view("names"))),
        ddl(DdlEffect::CreateIndex { table: "users".into(), index }),
    ] {
        let refused = catalog.apply(&start(taken)).unwrap_err();
        assert!(matches!(refused, CommandError::Exists { .. }), "{refused}");
    }
    // A rename takes along what a view says, if the view is still as it was when that was found out.
    let before = catalog.table("users").unwrap().clone();
    let renamed = |old: &str| Rewritten { before: view(old), after: View { name: old.into(), sql: "anew".into() } };
    let after = Table { name: "people".into(), ..before.clone() };
    let views = vec![Rewritten { before: View { sql: "another".into(), ..view("Names") }, ..renamed("Names") }];
    let (before, after) = (Box::new(before), Box::new(after));
    run(
        &mut catalog,
        ddl(DdlEffect::AlterTable { before, after: after.clone(), statement: String::new(), views, triggers: vec![] }),
    );
    assert_eq!(catalog.view("names"), Some(&view("Names")));
    let (before, after) = (after.clone(), Box::new(Table { name: "all".into(), ..*after }));
    let views = vec![renamed("Names")];
    run(&mut catalog, ddl(DdlEffect::AlterTable { before, after, statement: String::new(), views, triggers: vec![] }));
    assert_eq!(catalog.view("names").map(|view| view.sql.as_str()), Some("anew"));
    run(&mut catalog, ddl(DdlEffect::DropView { view: "NAMES".into() }));
    assert!(catalog.views.is_empty());
}

fn trigger(name: &str, on: &Table, writes: &[&Table], seen: u32) -> OperationKind {
    let trigger = Trigger {
        id: 0,
        name: name.into(),
        event: TriggerEvent::Insert,
        sql: format!("CREATE TRIGGER {name} …"),
        on_shards: String::new(),
        writes: writes.iter().map(|table| table.id).collect(),
        reads: Default::default(),
        state: TriggerState::Coming,
        since: 0,
    };
    let about = [on].into_iter().chain(writes.iter().copied().filter(|table| table.id != on.id)).cloned().collect();
    let effect = DdlEffect::CreateTrigger { table: on.name.clone(), trigger, about, seen };
    OperationKind::Ddl { effect, sql: String::new(), layout: 0 }
}

#[test]
fn a_trigger_counts_from_its_operations_start_to_the_end_of_the_one_that_drops_it() {
    let mut catalog = founded(3, 1);
    for name in ["a", "b", "c"] {
        run(&mut catalog, create(name, by_id()));
    }
    let now = |catalog: &Catalog, name: &str| catalog.table(name).unwrap().clone();
    let states = |catalog: &Catalog| -> Vec<TriggerState> {
        catalog.table("a").unwrap().triggers.iter().map(|trigger| trigger.state).collect()
    };
    let (a, b) = (now(&catalog, "a"), now(&catalog, "b"));
    let generation = catalog.generation;
    let made = catalog.apply(&start(trigger("x", &a, &[&b], 0))).unwrap().operation.unwrap();
    assert_eq!((states(&catalog), catalog.check()), (vec![TriggerState::Coming], vec![]));
    assert!(catalog.generation > generation, "routers look again");
    assert_eq!(catalog.table("a").unwrap().triggers[0].since, catalog.generation);
    assert_eq!(catalog.table("a").unwrap().ready_triggers().count(), 0);
    // Its tables stay as they are.
    let drop_table = |name: &str| ddl(DdlEffect::DropTable { table: name.into() });
    assert!(matches!(catalog.apply(&start(drop_table("b"))), Err(CommandError::Busy { .. })));
    finish(&mut catalog, made, Phase::Failed);
    assert_eq!((states(&catalog), catalog.check()), (vec![], vec![]));
    let (a, b, c) = (now(&catalog, "a"), now(&catalog, "b"), now(&catalog, "c"));
    run(&mut catalog, trigger("x", &a, &[&b], 0));
    assert_eq!((states(&catalog), catalog.check()), (vec![TriggerState::Ready], vec![]));
    assert!(catalog.apply(&start(drop_table("b"))).is_err(), "x names b");
    // What was planned before x was there is planned again.
    let busy = |refused: Result<Reply, CommandError>| matches!(refused, Err(CommandError::Busy { .. }));
    assert!(busy(catalog.apply(&start(trigger("y", &b, &[&c], 0)))));
    assert!(busy(catalog.apply(&start(trigger("y", &a, &[&c], 2)))), "a has changed");
    assert!(matches!(catalog.apply(&start(trigger("X", &b, &[&c], 2))), Err(CommandError::Exists { .. })));
    let dropped = ddl(DdlEffect::DropTrigger { table: "a".into(), trigger: "X".into() });
    let id = catalog.apply(&start(dropped.clone())).unwrap().operation.unwrap();
    assert!(busy(catalog.apply(&start(dropped))));
    catalog.apply(&Command::CommitOperation { operation: id, epoch: 1, at: 8 }).unwrap();
    assert_eq!((states(&catalog), catalog.check()), (vec![TriggerState::Going], vec![]));
    finish(&mut catalog, id, Phase::Successful);
    assert_eq!((states(&catalog), catalog.check()), (vec![], vec![]));
    run(&mut catalog, drop_table("b"));
}

fn ddl(effect: DdlEffect) -> OperationKind {
    OperationKind::Ddl { effect, sql: String::new(), layout: 0 }
}

fn finish(catalog: &mut Catalog, operation: OperationId, phase: Phase) {
    catalog.apply(&Command::FinishOperation { operation, phase, message: String::new(), epoch: 1, at: 9 }).unwrap();
}

#[test]
fn a_single_table_is_a_unit_of_its_shard() {
    let mut catalog = founded(3, 2);
    run(&mut catalog, create("notes", TableKind::Single { shard: ShardId(2) }));
    let unit = PartitionId::of_single(TableId(1));
    assert_eq!(catalog.owner(unit), Some(ShardId(2)));
    assert_eq!(catalog.units_of(ShardId(2)).last(), Some(&unit));
    assert_eq!(catalog.shards[&ShardId(2)].ownership, catalog.generation);
}

#[test]
fn a_decision_and_its_operation_are_one_command() {
    let mut catalog = founded(3, 1);
    let decision = Decision {
        id: DecisionId(0),
        at: 5,
        generation: catalog.generation,
        strategy: Strategy::Hot,
        measurements: vec![],
        options: vec![],
        verdict: Verdict::Hold { reason: "calm".into() },
        operation: None,
    };
    let reply = catalog.apply(&Command::RecordDecision { decision: decision.clone(), start: None, at: 5 }).unwrap();
    assert_eq!((reply.decision, reply.operation), (Some(DecisionId(1)), None));
    let refused = Command::RecordDecision { decision: decision.clone(), start: Some(split(1, 9, 0..1)), at: 5 };
    let before = catalog.clone();
    assert!(catalog.apply(&refused).is_err());
    assert_eq!(catalog, before, "no decision without the operation that it wanted");
    let taken = Command::RecordDecision { decision, start: Some(split(1, 2, 0..1)), at: 5 };
    let reply = catalog.apply(&taken).unwrap();
    assert_eq!(catalog.operations[&reply.operation.unwrap()].cause, Cause::Decision(reply.decision.unwrap()));
}

fn any_command() -> impl proptest::strategy::Strategy<Value = Command> {
    let shard = (1u32..5).prop_map(ShardId);
    let operation = (1u64..12).prop_map(OperationId);
    let partitions = proptest::collection::btree_set((0u32..18).prop_map(PartitionId), 0..6)
        .prop_map(|set| set.into_iter().collect::<Vec<_>>());
    let name = prop_oneof![Just("a"), Just("B"), Just("b")];
    let users = prop_oneof![
        2 => (name.clone(), 6usize..70).prop_map(|(name, salt)| users::put(name, salt, 1, 4)),
        1 => (name.clone(), any::<bool>()).prop_map(|(name, last)| users::remove(name, last)),
    ];
    let kind =
        prop_oneof![
            (shard.clone(), shard.clone(), partitions.clone())
                .prop_map(|(from, to, partitions)| OperationKind::Split { from, to, partitions }),
            (shard.clone(), shard.clone(), partitions).prop_map(|(from, to, partitions)| OperationKind::Move {
                from,
                to,
                partitions
            }),
            // Of all that it has by then.
            (shard.clone(), shard.clone()).prop_map(|(from, to)| OperationKind::Merge { from, to, partitions: vec![] }),
            (name.clone(), shard.clone()).prop_map(|(name, shard)| create(name, TableKind::Single { shard })),
            name.clone().prop_map(|name| create(name, by_id())),
            name.clone().prop_map(|name| ddl(DdlEffect::DropTable { table: name.into() })),
            (any::<bool>(), any::<bool>(), 1u32..4, 1u32..4, 0u32..3).prop_map(|(swap, second, one, two, seen)| {
                let of = |name: &str, id| Table { id: TableId(id), ..table(name, by_id()) };
                let (on, writes) = if swap { (of("b", one), of("a", two)) } else { (of("a", one), of("b", two)) };
                trigger(if second { "y" } else { "x" }, &on, &[&writes], seen)
            }),
            (name, any::<bool>()).prop_map(|(name, second)| {
                let trigger = if second { "y" } else { "x" };
                ddl(DdlEffect::DropTrigger { table: name.into(), trigger: trigger.into() })
            }),
        ];
    let kind = prop_oneof![
        6 => kind,
        1 => (1u64..4, proptest::option::of(shard.clone())).prop_map(|(node, shard)| OperationKind::Rebuild { node: NodeId(node), shard }),
    ];
    let phase = prop_oneof![Just(Phase::Successful), Just(Phase::Failed), Just(Phase::Skipped), Just(Phase::Pending)];
    prop_oneof![
        1 => Just(init("c", 3, 2)),
        2 => (1u64..5, 1u64..5, 101u64..105).prop_map(|(id, port, incarnation)| Command::RegisterNode {
            id: NodeId(id),
            name: format!("node-{id}"),
            address: format!("127.0.0.1:{port}"),
            incarnation,
            at: 3
        }),
        2 => shard.clone().prop_map(|shard| Command::ActivateShard { shard, at: 3 }),
        1 => shard.prop_map(|shard| Command::RemoveShard { shard, at: 3 }),
        4 => kind.prop_map(start),
        2 => users,
        2 => proptest::collection::vec((1u32..5, 0u32..18), 0..4).prop_map(|targets| moves::moves(&targets)),
        2 => (operation.clone(), any::<bool>(), 1u64..4).prop_map(|(operation, ended, epoch)| Command::JournalStep {
            operation,
            step: "s".into(),
            ended,
            detail: String::new(),
            epoch,
            at: 4
        }),
        1 => (operation.clone(), 1u64..4)
            .prop_map(|(operation, epoch)| Command::BeginAttempt { operation, step: "s".into(), epoch, at: 4 }),
        3 => (operation.clone(), 1u64..4)
            .prop_map(|(operation, epoch)| Command::CommitOperation { operation, epoch, at: 4 }),
        2 => (operation.clone(), phase, 1u64..4).prop_map(|(operation, phase, epoch)| Command::FinishOperation {
            operation,
            phase,
            message: String::new(),
            epoch,
            at: 4
        }),
        1 => (operation.clone(), 1u64..4).prop_map(|(operation, epoch)| Command::GiveUpOperation {
            operation,
            message: String::new(),
            code: None,
            epoch,
            at: 4
        }),
        1 => (operation.clone(), 1u32..4, 1u64..4).prop_map(|(operation, shard, epoch)| Command::AwaitShards {
            operation,
            shards: vec![ShardId(shard)],
            epoch,
            at: 4
        }),
        1 => (operation.clone(), 0u64..2, 1u64..4).prop_map(|(operation, sum, epoch)| Command::KeepReceipt {
            operation,
            receipt: Box::new(receipt(sum)),
            epoch,
            at: 4
        }),
        1 => operation.prop_map(|operation| Command::CancelOperation { operation, at: 4 }),
    ]
}

proptest! {
    #[test]
    fn no_commands_break_an_invariant(commands in proptest::collection::vec(any_command(), 1..80)) {
        let mut catalog = Catalog::default();
        catalog.apply(&init("c", 3, 2)).unwrap();
        catalog.apply(&Command::ActivateShard { shard: ShardId(1), at: 2 }).unwrap();
        let mut replica = catalog.clone();
        for mut command in commands {
            if let Command::StartOperation { kind: OperationKind::Merge { from, partitions, .. }, .. } = &mut command {
                *partitions = catalog.partitions_of(*from);
            }
            let before = catalog.clone();
            let outcome = catalog.apply(&command);
            prop_assert_eq!(&outcome, &replica.apply(&command), "replicas agree");
            prop_assert_eq!(&catalog, &replica);
            prop_assert_eq!(catalog.check(), vec![], "after {:?}", command);
            prop_assert!(catalog.generation >= before.generation);
            if outcome.is_err() {
                prop_assert_eq!(&catalog, &before, "a refused command changes nothing");
            }
        }
    }
}

/// Of one table, whose target has this sum instead of 1.
fn receipt(sum: u64) -> Receipt {
    let (source, target) = (Digest { rows: 1, sum: 1 }, Digest { rows: 1, sum });
    let tables = vec![TableReceipt { table: "t".into(), source, target }];
    Receipt { source, target, tables, ..Receipt::default() }
}

#[test]
fn a_receipt_whose_sides_differ_refuses_the_commit_and_is_kept() {
    let mut catalog = founded(2, 1);
    let operation = catalog.apply(&start(split(1, 2, 0..4))).unwrap().operation.unwrap();
    catalog.apply(&Command::ActivateShard { shard: ShardId(2), at: 4 }).unwrap();
    let keep = |receipt: Receipt| Command::KeepReceipt { operation, receipt: Box::new(receipt), epoch: 1, at: 4 };
    let commit = Command::CommitOperation { operation, epoch: 1, at: 5 };
    // Also when the listed tables agree: not all may be listed.
    let unlisted = Receipt { tables: vec![], ..receipt(2) };
    for differing in [receipt(2), unlisted] {
        catalog.apply(&keep(differing.clone())).unwrap();
        let refused = catalog.apply(&commit).unwrap_err().to_string();
        assert!(refused.contains("differs from its source"), "{refused}");
        assert_eq!(catalog.operations[&operation].receipt.as_deref(), Some(&differing));
        assert_eq!(catalog.owner(PartitionId(0)), Some(ShardId(1)), "the source keeps it");
    }
    // Another attempt.
    catalog.apply(&keep(receipt(1))).unwrap();
    catalog.apply(&commit).unwrap();
    // What was committed by it stays; the pause is learned afterwards.
    let paused = Receipt { pause_ms: Some(7), ..receipt(1) };
    catalog.apply(&keep(paused.clone())).unwrap();
    assert!(catalog.apply(&keep(receipt(2))).is_err());
    let older = Command::KeepReceipt { operation, receipt: Box::new(receipt(1)), epoch: 0, at: 4 };
    assert!(catalog.apply(&older).is_err(), "of a leader that was replaced");
    assert_eq!(catalog.operations[&operation].receipt.as_deref(), Some(&paused));
    assert_eq!(catalog.check(), []);
}

fn register(id: u64, incarnation: u64) -> Command {
    let address = format!("127.0.0.1:{}", 8079 + id);
    Command::RegisterNode { id: NodeId(id), name: format!("node-{id}"), address, incarnation, at: 3 }
}

fn rebuild(node: u64, shard: Option<u32>) -> Command {
    start(OperationKind::Rebuild { node: NodeId(node), shard: shard.map(ShardId) })
}

#[test]
fn a_node_without_its_data_waits_until_a_rebuild_admits_it() {
    let mut catalog = founded(3, 2);
    catalog.apply(&register(2, 102)).unwrap();
    assert_eq!(catalog.nodes[&NodeId(2)].waiting, None, "it is the one that the catalog knows");
    catalog.apply(&register(2, 7)).unwrap();
    let node = &catalog.nodes[&NodeId(2)];
    assert_eq!((node.incarnation, node.waiting), (102, Some(7)));
    let operation = catalog.apply(&rebuild(2, None)).unwrap().operation.unwrap();
    assert!(matches!(catalog.apply(&rebuild(2, Some(1))), Err(CommandError::Busy { .. })), "one at a time");
    // It loses its disk once more before it is admitted.
    catalog.apply(&register(2, 8)).unwrap();
    catalog.apply(&Command::CommitOperation { operation, epoch: 1, at: 4 }).unwrap();
    let node = &catalog.nodes[&NodeId(2)];
    assert_eq!((node.incarnation, node.waiting), (8, None));
    assert_eq!(catalog.shards[&ShardId(1)].number(NodeId(2)), 1, "its replicas are other ones from here on");
    assert_eq!(catalog.shards[&ShardId(1)].number(NodeId(1)), 0);
    // It goes away again: the rebuild may fail, and another one begins.
    let message = "gone".to_owned();
    catalog.apply(&Command::FinishOperation { operation, phase: Phase::Failed, message, epoch: 1, at: 5 }).unwrap();
    assert_eq!(catalog.check(), []);
    catalog.apply(&rebuild(2, Some(2))).unwrap();
}

#[test]
fn a_replica_is_distrusted_from_the_start_of_its_rebuild_to_the_commit() {
    let mut catalog = founded(3, 1);
    let operation = catalog.apply(&rebuild(3, Some(1))).unwrap().operation.unwrap();
    assert!(catalog.shards[&ShardId(1)].distrusted.contains(&NodeId(3)));
    assert!(catalog.apply(&Command::CancelOperation { operation, at: 4 }).is_err(), "it must not be trusted again");
    // Splits do not wait for it, nor it for them.
    catalog.apply(&start(split(1, 2, 0..4))).unwrap();
    catalog.apply(&Command::CommitOperation { operation, epoch: 1, at: 4 }).unwrap();
    let shard = &catalog.shards[&ShardId(1)];
    assert!(shard.distrusted.is_empty());
    assert_eq!(shard.number(NodeId(3)), 1);
    assert!(catalog.apply(&rebuild(3, Some(9))).is_err());
    assert!(catalog.apply(&rebuild(9, None)).is_err());
    assert_eq!(catalog.check(), []);
}

#[test]
fn a_disagreement_is_noted_and_forgotten() {
    let mut catalog = founded(2, 1);
    let note = |what: Option<&str>| Command::NoteDisagreement { shard: ShardId(1), what: what.map(Into::into), at: 3 };
    catalog.apply(&note(Some("they differ"))).unwrap();
    assert_eq!(catalog.shards[&ShardId(1)].disagreement.as_deref(), Some("they differ"));
    catalog.apply(&note(None)).unwrap();
    assert_eq!(catalog.shards[&ShardId(1)].disagreement, None);
}

/// Merges shard `from` into shard 1, up to its commit.
fn merge(catalog: &mut Catalog, from: u32) -> OperationId {
    let partitions = catalog.partitions_of(ShardId(from));
    let kind = OperationKind::Merge { from: ShardId(from), to: ShardId(1), partitions };
    catalog.apply(&start(kind)).unwrap().operation.unwrap()
}

#[test]
fn a_merge_leaves_a_shard_only_when_it_was_removed() {
    let mut catalog = founded(3, 3);
    let operation = merge(&mut catalog, 3);
    let (epoch, phase, message) = (1, Phase::Successful, String::new());
    let finish = Command::FinishOperation { operation, phase, message, epoch, at: 9 };
    catalog.apply(&Command::CommitOperation { operation, epoch, at: 8 }).unwrap();
    assert_eq!(catalog.check(), []);
    assert_eq!(catalog.shards[&ShardId(3)].state, ShardState::Leaving);
    assert_eq!(catalog.active_shards().map(|shard| shard.id).collect::<Vec<_>>(), [ShardId(1), ShardId(2)]);
    assert!(catalog.owners.iter().all(|owner| *owner != ShardId(3)));
    let cancelled = catalog.apply(&Command::CancelOperation { operation, at: 8 }).unwrap_err();
    assert_eq!(cancelled.to_string(), "op-1 is past its point of no return");
    assert_eq!(catalog.apply(&finish).unwrap_err().to_string(), "shard-3 was not removed yet");
    let moved = OperationKind::Move { from: ShardId(1), to: ShardId(3), partitions: vec![PartitionId(0)] };
    assert!(catalog.apply(&start(moved)).is_err(), "nothing comes to a shard that is leaving");
    catalog.apply(&Command::RemoveShard { shard: ShardId(3), at: 8 }).unwrap();
    catalog.apply(&finish).unwrap();
    assert_eq!(catalog.check(), []);
    assert_eq!(catalog.next_shard(), ShardId(4), "its number is never given again");
}

#[test]
fn what_a_shard_is_needed_for_keeps_it() {
    let mut catalog = founded(3, 3);
    let refused = |catalog: &mut Catalog, from: u32, to: u32, partitions| {
        let kind = OperationKind::Merge { from: ShardId(from), to: ShardId(to), partitions };
        catalog.apply(&start(kind)).unwrap_err().to_string()
    };
    let all = |catalog: &Catalog, shard: u32| catalog.partitions_of(ShardId(shard));
    let (first, second) = (all(&catalog, 1), all(&catalog, 2));
    assert!(refused(&mut catalog, 1, 2, first).contains("writes to reference tables"));
    assert_eq!(refused(&mut catalog, 2, 2, second.clone()), "a merge is with another shard");
    assert_eq!(refused(&mut catalog, 2, 9, second.clone()), "shard-9 does not exist");
    assert_eq!(refused(&mut catalog, 2, 1, second[1..].to_vec()), "what shard-2 owns has just changed; ask again");
    run(&mut catalog, create("alone", TableKind::Single { shard: ShardId(2) }));
    assert!(refused(&mut catalog, 2, 1, second).contains("table alone lives on shard-2 alone"));
    // One that is on its way there as well; and once a merge has begun none gets a home there any more.
    let third = all(&catalog, 3);
    let comes = catalog.apply(&start(create("comes", TableKind::Single { shard: ShardId(3) }))).unwrap();
    assert!(refused(&mut catalog, 3, 1, third).contains("is creating a table on shard-3"));
    catalog.apply(&Command::CancelOperation { operation: comes.operation.unwrap(), at: 8 }).unwrap();
    let (operation, phase, message) = (comes.operation.unwrap(), Phase::Skipped, String::new());
    catalog.apply(&Command::FinishOperation { operation, phase, message, epoch: 1, at: 9 }).unwrap();
    let operation = merge(&mut catalog, 3);
    let late = catalog.apply(&start(create("late", TableKind::Single { shard: ShardId(3) }))).unwrap_err();
    assert_eq!(late.to_string(), format!("{operation} is taking shard-3 down; name another shard"));
}
