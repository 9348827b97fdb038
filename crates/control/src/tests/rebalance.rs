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
