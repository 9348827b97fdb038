//! A table gets another placement while clients read and write it.

use pleat_engine::{Action, Outcome, Statement};

use super::world::Fault;
use super::*;

fn by_a() -> TableKind {
    TableKind::Sharded { key: "a".to_owned(), key_type: KeyType::Integer }
}

fn by_b() -> TableKind {
    TableKind::Sharded { key: "b".to_owned(), key_type: KeyType::Text }
}

fn single() -> TableKind {
    TableKind::Single { shard: ShardId(2) }
}

/// Every way from one placement to another.
fn directions() -> Vec<(TableKind, TableKind)> {
    vec![
        (single(), by_a()),
        (by_a(), by_b()),
        (single(), TableKind::Reference),
        (by_a(), TableKind::Reference),
        (TableKind::Reference, by_b()),
        (by_b(), single()),
        (TableKind::Reference, single()),
    ]
}

fn items(kind: TableKind) -> Table {
    Table {
        columns: vec![column("a", "INTEGER"), column("b", "TEXT"), column("n", "INTEGER")],
        primary_key: vec!["a".to_owned(), "b".to_owned()],
        rowid_alias: false,
        create_sql: "CREATE TABLE items(a INTEGER, b TEXT, n INTEGER, PRIMARY KEY (a, b))".to_owned(),
        ..table("items", "b", kind)
    }
}

/// Three shards, the table with rows in it, and clients at work.
async fn stocked(kind: TableKind) -> Arc<World> {
    let world = World::new(3);
    world.start(create(users()));
    world.start(create(table("cities", "name", TableKind::Reference)));
    until_quiet(&world).await;
    world.start(create(items(kind)));
    until_quiet(&world).await;
    world.with(|inner| {
        inner.begin();
        for _ in 0..150 {
            inner.put_item();
        }
        for _ in 0..10 {
            inner.put_user();
            inner.put_city();
        }
        inner.check_quiet();
        inner.begin();
        inner.clients = 2;
        inner.items_change = 3;
        inner.latency = Duration::from_millis(1);
    });
    world
}

fn place(world: &World, kind: TableKind) -> OperationKind {
    let (before, layout) = world.with(|inner| (inner.catalog.table("items").unwrap().clone(), inner.catalog.layout));
    let after = Box::new(Table { kind, ..before.clone() });
    let effect = DdlEffect::PlaceTable { before: Box::new(before), after };
    OperationKind::Ddl { effect, sql: "ALTER TABLE items …".to_owned(), layout }
}

fn kind(world: &World) -> TableKind {
    world.with(|inner| inner.catalog.table("items").unwrap().kind.clone())
}

#[tokio::test(start_paused = true)]
async fn a_table_goes_every_way_while_clients_write() {
    for (from, to) in directions() {
        let world = stocked(from.clone()).await;
        let id = world.start(place(&world, to.clone()));
        until_quiet(&world).await;
        world.with(|inner| inner.check_quiet());
        let operation = operation(&world, id);
        assert_eq!(operation.phase, Phase::Successful, "{from:?} to {to:?}: {operation:#?}");
        assert_eq!(kind(&world), to);
        assert!(operation.steps.iter().all(|step| step.ended.is_some()));
        assert!(operation.message.contains("writes to it paused for"), "{}", operation.message);
        world.with(|inner| {
            let items = &inner.items;
            assert!(items.acknowledged > 60 && items.answered > 30 && items.repeated > 5, "clients got work done");
        });
        let carries = !matches!(from, TableKind::Reference);
        let verify: &[&str] = if carries { &["verify"] } else { &[] };
        let steps = [
            &["check", "reach shards", "capture", "copy", "catch up"],
            verify,
            &["catch up", "fence", "commit", "switch", "open", "clean up"],
        ];
        assert_eq!(step_names(&operation), steps.concat());
    }
}

/// One after the other on one table, in small messages or with many clients (both at once, changes would come faster than
/// they can be carried): what one leaves is what the next one meets.
#[tokio::test(start_paused = true)]
async fn a_table_goes_all_ways_in_turn() {
    for (seed, chunk, items_change) in [(0, (8, 500), 1), (1, (60, 6_000), 6)] {
        let world = stocked(single()).await;
        world.with(|inner| (inner.random, inner.chunk, inner.items_change) = (seed, chunk, items_change));
        let ways =
            [by_a(), by_b(), TableKind::Reference, by_b(), single(), TableKind::Reference, single(), by_b(), by_a()];
        for to in ways {
            let id = world.start(place(&world, to.clone()));
            until_quiet(&world).await;
            world.with(|inner| inner.check_quiet());
            let operation = operation(&world, id);
            assert_eq!((operation.phase, kind(&world)), (Phase::Successful, to), "{operation:#?}");
        }
    }
}

/// Run each way with one fault at every `stride`th of its calls in turn, until a run has fewer calls. No two ways begin at the
/// same call.
async fn at_calls(fault: impl Fn(u64) -> Fault, stride: usize, redeliver: bool) {
    for (first, (from, to)) in (1..).step_by(3).zip(directions()) {
        for at in (first..).step_by(stride) {
            if at_call(&from, &to, fault(at), redeliver).await < at {
                assert!(at > 60, "the faults were spread over the whole operation");
                break;
            }
        }
    }
}

/// The same with one fault. Gives the number of calls.
async fn at_call(from: &TableKind, to: &TableKind, fault: Fault, redeliver: bool) -> u64 {
    let world = stocked(from.clone()).await;
    let id = world.start(place(&world, to.clone()));
    let told = format!("{from:?} to {to:?}, {fault:?}");
    world.with(|inner| {
        inner.calls = 0;
        inner.faults = vec![fault];
        inner.redeliver = redeliver;
    });
    until_quiet(&world).await;
    let operation = operation(&world, id);
    assert_eq!(operation.phase, Phase::Successful, "{told}: {operation:#?}");
    world.with(|inner| inner.check_quiet());
    world.with(|inner| inner.calls)
}

/// Some shards know of it then, and others don't.
#[tokio::test(start_paused = true)]
async fn it_survives_a_leader_that_dies_at_each_of_the_first_calls() {
    for (at, (from, to)) in (1..=24).zip(directions().into_iter().cycle()) {
        at_call(&from, &to, Fault::CrashAfter(at), false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn it_survives_a_leader_that_dies_before_or_after_any_call() {
    at_calls(Fault::CrashAfter, 23, false).await;
    at_calls(Fault::CrashBefore, 53, false).await;
}

#[tokio::test(start_paused = true)]
async fn it_survives_lost_answers_shards_that_are_restarted_and_late_messages() {
    at_calls(Fault::Lost, 61, true).await;
    at_calls(Fault::Unreachable, 83, false).await;
    at_calls(Fault::Restart, 83, false).await;
    at_calls(|at| Fault::Late(at, 7), 83, false).await;
}

/// A shard is lost between the commit and its switch: until it is back nothing moves, on no shard.
#[tokio::test(start_paused = true)]
async fn nothing_moves_while_a_committed_change_waits_for_a_shard() {
    let world = stocked(by_a()).await;
    world.with(|inner| (inner.clients, inner.items_change) = (0, 0));
    let id = world.start(place(&world, by_b()));
    let mut watch = world.watch_catalog();
    tokio::select! {
        () = until_quiet(&world) => panic!(),
        found = watch.wait_for(|catalog| catalog.operations[&id].committed) => drop(found.unwrap()),
    }
    world.with(|inner| inner.gone = Some(ShardId(2)));
    let split = |world: &World| {
        let partitions = world.with(|inner| inner.catalog.partitions_of(ShardId(3))[..2].to_vec());
        OperationKind::Split { from: ShardId(3), to: ShardId(4), partitions }
    };
    let queued = world.start(split(&world));
    let mut watch = world.watch_catalog();
    tokio::select! {
        () = until_quiet(&world) => panic!("shard-2 is gone"),
        found = watch.wait_for(|catalog| catalog.operations[&id].is_waiting()) => drop(found.unwrap()),
    }
    tokio::select! {
        () = until_quiet(&world) => panic!("shard-2 is still gone"),
        () = tokio::time::sleep(Duration::from_secs(60)) => {}
    }
    assert_eq!(operation(&world, queued).phase, Phase::Pending);
    let partitions = world.with(|inner| inner.catalog.partitions_of(ShardId(1))[..1].to_vec());
    let kind = OperationKind::Move { from: ShardId(1), to: ShardId(3), partitions };
    let refused = world.with(|inner| inner.catalog.held(&kind).map(|(held, _)| held.id));
    assert_eq!(refused, Some(id));
    world.with(|inner| (inner.gone, inner.clients, inner.items_change) = (None, 2, 3));
    until_quiet(&world).await;
    world.with(|inner| inner.check_quiet());
    assert_eq!((operation(&world, id).phase, operation(&world, queued).phase), (Phase::Successful, Phase::Successful));
}

/// A row that the new placement can't hold comes while the table is on its way: nothing is left of the attempt.
#[tokio::test(start_paused = true)]
async fn a_row_without_the_new_key_ends_it() {
    let world = stocked(single()).await;
    world.with(|inner| inner.items_change = 0);
    let null = |inner: &mut Inner| {
        let sql = "INSERT INTO items(a, b, n) VALUES (NULL, 'ß', 1)";
        let unit = PartitionId::of_single(inner.catalog.table("items").unwrap().id);
        let statements = vec![Statement::new(sql, [])];
        let write = Action::Write { idempotency: None, units: vec![unit], statements, base: None };
        assert!(matches!(inner.apply(ShardId(2), write), Ok(Outcome::Done { .. })));
    };
    let id = world.start(place(&world, by_b()));
    let mut watch = world.watch_catalog();
    let begun = |catalog: &Arc<Catalog>| catalog.operations[&id].steps.iter().any(|step| step.name == "copy");
    tokio::select! {
        () = until_quiet(&world) => panic!("it ended too soon"),
        found = watch.wait_for(begun) => drop(found.unwrap()),
    }
    world.with(null);
    until_quiet(&world).await;
    let operation = operation(&world, id);
    assert_eq!((operation.phase, operation.code.as_deref()), (Phase::Failed, Some("23502")), "{operation:#?}");
    assert!(operation.message.contains("(a, b) = (NULL, 'ß') can't be placed: its a is NULL"), "{}", operation.message);
    assert_eq!(kind(&world), single());
    world.with(|inner| {
        let unit = PartitionId::of_single(inner.catalog.table("items").unwrap().id);
        let statements = vec![Statement::new("DELETE FROM items WHERE a IS NULL", [])];
        let write = Action::Write { idempotency: None, units: vec![unit], statements, base: None };
        inner.apply(ShardId(2), write).unwrap();
        inner.check_quiet();
    });
}

/// It happens whole or not at all, whenever someone asks for it to be cancelled.
#[tokio::test(start_paused = true)]
async fn it_can_be_cancelled_up_to_the_commit() {
    let (mut cancelled, mut done) = (0, 0);
    for (first, (from, to)) in (1..).step_by(7).zip(directions()) {
        for at in (first..160).step_by(45) {
            let world = stocked(from.clone()).await;
            let id = world.start(place(&world, to.clone()));
            world.with(|inner| (inner.calls, inner.faults) = (0, vec![Fault::Cancel(at, id)]));
            until_quiet(&world).await;
            world.with(|inner| inner.check_quiet());
            match operation(&world, id).phase {
                Phase::Skipped => (cancelled, _) = (cancelled + 1, assert_eq!(kind(&world), from)),
                _ => (done, _) = (done + 1, assert_eq!(kind(&world), to)),
            }
        }
    }
    assert!(cancelled > 5 && done > 0, "{cancelled} cancelled, {done} done");
}
