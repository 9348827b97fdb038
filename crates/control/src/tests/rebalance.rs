//! Several moves that were asked for at once, while clients write.

use std::collections::{BTreeMap, BTreeSet};

use pleat_plan::rebalance;

use super::world::{Fault, PARTITIONS};
use super::*;

/// Three shards, and all that the second one had is on the first.
async fn uneven() -> Arc<World> {
    let world = furnished(3).await;
    let partitions = world.with(|inner| inner.catalog.partitions_of(ShardId(2)));
    world.start(OperationKind::Move { from: ShardId(2), to: ShardId(1), partitions });
    until_quiet(&world).await;
    world.with(|inner| {
        inner.clients = 3;
        inner.latency = Duration::from_millis(1);
        inner.begin();
    });
    world
}

fn plan(world: &World) -> Vec<OperationKind> {
    let able: BTreeSet<ShardId> = (1..=3).map(ShardId).collect();
    let plan = world.with(|inner| rebalance(&inner.catalog.owners, &able, &BTreeMap::new(), 0.0));
    let kind = |shift: &pleat_plan::Shift| OperationKind::Move {
        from: shift.from,
        to: shift.to,
        partitions: shift.partitions.clone(),
    };
    plan.moves.iter().map(kind).collect()
}

/// The moves to shard 2, one partition each, so that there are several.
fn one_by_one(world: &World) -> Vec<OperationId> {
    let all = plan(world);
    let each = all.iter().filter_map(OperationKind::moves).flat_map(|(from, to, partitions)| {
        partitions.iter().map(move |partition| OperationKind::Move { from, to, partitions: vec![*partition] })
    });
    ask(world, each.collect())
}

fn ask(world: &World, moves: Vec<OperationKind>) -> Vec<OperationId> {
    let (count, cause) = (moves.len() as u64, Cause::Request("test".to_owned()));
    let first = world.ask(Command::StartMoves { moves, cause, reason: "uneven".to_owned(), at: 1 });
    let first = first.operation.unwrap().0;
    (first..first + count).map(OperationId).collect()
}

fn is_even(world: &World) -> bool {
    world.with(|inner| {
        inner.check_quiet();
        let least = PARTITIONS as usize / 3;
        (1..=3).all(|shard| (least..=least + 1).contains(&inner.catalog.partitions_of(ShardId(shard)).len()))
    })
}

#[tokio::test(start_paused = true)]
async fn an_uneven_cluster_gets_even_and_then_nothing_is_left_to_do() {
    let world = uneven().await;
    let ids = ask(&world, plan(&world));
    until_quiet(&world).await;
    assert!(is_even(&world));
    for id in &ids {
        let operation = operation(&world, *id);
        assert_eq!((operation.phase, operation.reason.as_str()), (Phase::Successful, "uneven"), "{operation:#?}");
    }
    assert_eq!(plan(&world), []);
    world.with(|inner| assert!(inner.acknowledged > 400, "clients got work done"));
}

#[tokio::test(start_paused = true)]
async fn schema_changes_go_past_moves_that_have_not_begun_and_one_that_is_cancelled_leaves_the_others() {
    let world = uneven().await;
    let ids = one_by_one(&world);
    assert!(ids.len() > 3, "{ids:?}");
    let created = world.start(create(table("notes", "v", TableKind::Reference)));
    world.cancel(ids[2]);
    until_quiet(&world).await;
    world.with(|inner| inner.check_quiet());
    let ended = |id: OperationId| operation(&world, id).updated;
    assert_eq!(operation(&world, created).phase, Phase::Successful);
    assert!(ids.iter().filter(|id| **id != ids[2]).all(|id| ended(created) < ended(*id)));
    for id in &ids {
        let (expected, steps) = if *id == ids[2] { (Phase::Skipped, 0) } else { (Phase::Successful, 10) };
        let operation = operation(&world, *id);
        assert_eq!(operation.phase, expected);
        assert!(operation.steps.len() >= steps && (steps > 0 || operation.steps.is_empty()), "{operation:#?}");
    }
}

/// Four shards, and moves from the first to the second, the third to the fourth, and the second to the third.
async fn in_pairs() -> (Arc<World>, [OperationId; 3]) {
    let world = furnished(4).await;
    world.with(|inner| {
        inner.clients = 3;
        inner.latency = Duration::from_millis(1);
        inner.begin();
    });
    let shift = |(from, to): (u32, u32)| {
        let partitions = world.with(|inner| inner.catalog.partitions_of(ShardId(from))[..3].to_vec());
        OperationKind::Move { from: ShardId(from), to: ShardId(to), partitions }
    };
    let ids = ask(&world, [(1, 2), (3, 4), (2, 3)].map(shift).to_vec());
    (world, [ids[0], ids[1], ids[2]])
}

/// When the first step began, and the last one ended.
fn span(world: &World, id: OperationId) -> (Millis, Millis) {
    let operation = operation(world, id);
    (operation.steps[0].begun, operation.updated)
}

#[tokio::test(start_paused = true)]
async fn moves_of_different_shards_run_side_by_side_and_a_schema_change_waits_for_those_that_have_begun() {
    let (world, [one, other, last]) = in_pairs().await;
    let mut catalogs = world.watch_catalog();
    let both =
        |catalog: &Arc<Catalog>| [one, other].iter().all(|id| catalog.operations[id].phase == Phase::Progressing);
    tokio::select! {
        () = until_quiet(&world) => panic!("they never ran side by side"),
        found = catalogs.wait_for(both) => drop(found.unwrap()),
    }
    let created = world.start(create(table("notes", "v", TableKind::Reference)));
    until_quiet(&world).await;
    world.with(|inner| inner.check_quiet());
    for id in [one, other, last, created] {
        assert_eq!(operation(&world, id).phase, Phase::Successful, "{:#?}", operation(&world, id));
    }
    let [first, second, third, schema] = [one, other, last, created].map(|id| span(&world, id));
    assert!(second.0 < first.1 && first.0 < second.1, "{first:?} {second:?}");
    assert!(schema.0 >= first.1.max(second.1) && third.0 >= schema.1, "{first:?} {second:?} {third:?} {schema:?}");
}

/// Whatever happens to one of them, or to both at once.
#[tokio::test(start_paused = true)]
async fn moves_side_by_side_survive_what_one_survives() {
    let faults: [fn(u64) -> Fault; 5] =
        [Fault::CrashBefore, Fault::CrashAfter, Fault::Lost, Fault::Unreachable, Fault::Restart];
    for fault in faults {
        for at in (1..).step_by(11) {
            let (world, ids) = in_pairs().await;
            world.with(|inner| {
                inner.faults = vec![fault(at)];
                inner.redeliver = true;
            });
            until_quiet(&world).await;
            world.with(|inner| inner.check_quiet());
            for id in ids {
                assert_eq!(
                    operation(&world, id).phase,
                    Phase::Successful,
                    "{:?}: {:#?}",
                    fault(at),
                    operation(&world, id)
                );
            }
            if world.with(|inner| inner.calls) < at {
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_of_them_is_cancelled_by_itself() {
    let mut ended = BTreeMap::new();
    for at in (1..).step_by(5) {
        let (world, ids) = in_pairs().await;
        world.with(|inner| inner.faults = vec![Fault::Cancel(at, ids[1])]);
        until_quiet(&world).await;
        world.with(|inner| inner.check_quiet());
        let cancelled = operation(&world, ids[1]);
        let expected = if cancelled.cancel_requested { Phase::Skipped } else { Phase::Successful };
        assert_eq!(cancelled.phase, expected, "{at}");
        for id in [ids[0], ids[2]] {
            assert_eq!(operation(&world, id).phase, Phase::Successful, "{at}");
        }
        *ended.entry(expected == Phase::Skipped).or_insert(0) += 1;
        if world.with(|inner| inner.calls) < at {
            break;
        }
    }
    assert_eq!(ended.len(), 2, "{ended:?}");
}

/// Every leader takes up the rest, and finishes what the one before it had in hand.
#[tokio::test(start_paused = true)]
async fn leaders_that_die_leave_the_rest_to_others() {
    for fault in [Fault::CrashBefore as fn(u64) -> Fault, Fault::CrashAfter, Fault::Lost, Fault::Restart] {
        for at in (1..).step_by(9) {
            let world = uneven().await;
            let ids = ask(&world, plan(&world));
            world.with(|inner| {
                inner.faults = vec![fault(at), fault(at + 31), fault(at + 62)];
                inner.redeliver = true;
            });
            until_quiet(&world).await;
            assert!(is_even(&world), "{:?}", fault(at));
            assert!(ids.iter().all(|id| operation(&world, *id).phase == Phase::Successful), "{:?}", fault(at));
            if world.with(|inner| inner.calls) < at {
                break;
            }
        }
    }
}
