//! Splits and merges of different shards at the same time, while clients write, also to a reference table.

use std::collections::BTreeMap;

use super::world::Fault;
use super::*;

/// Four shards: two of them are split, and of the others one is merged into the other one.
async fn world_of_three() -> (Arc<World>, [OperationId; 3]) {
    let world = furnished(4).await;
    world.with(|inner| {
        inner.clients = 3;
        inner.latency = Duration::from_millis(1);
        inner.begin();
    });
    let split = |from: u32, to: u32| {
        let partitions = world.with(|inner| inner.catalog.partitions_of(ShardId(from))[..2].to_vec());
        OperationKind::Split { from: ShardId(from), to: ShardId(to), partitions }
    };
    let partitions = world.with(|inner| inner.catalog.partitions_of(ShardId(4)));
    let merge = OperationKind::Merge { from: ShardId(4), to: ShardId(3), partitions };
    let ids = [world.start(split(1, 5)), world.start(split(2, 6)), world.start(merge)];
    (world, ids)
}

fn span(world: &World, id: OperationId) -> (Millis, Millis) {
    let operation = operation(world, id);
    (operation.steps[0].begun, operation.updated)
}

fn active(world: &World) -> Vec<u32> {
    world.with(|inner| inner.catalog.active_shards().map(|shard| shard.id.0).collect())
}

#[tokio::test(start_paused = true)]
async fn two_splits_run_side_by_side_and_a_merge_begins_when_one_has_ended() {
    let (world, [one, other, merge]) = world_of_three().await;
    let created = world.start(create(table("notes", "v", TableKind::Reference)));
    until_quiet(&world).await;
    world.with(|inner| inner.check_quiet());
    for id in [one, other, merge, created] {
        assert_eq!(operation(&world, id).phase, Phase::Successful, "{:#?}", operation(&world, id));
    }
    assert_eq!(active(&world), [1, 2, 3, 5, 6]);
    let [first, second, third, schema] = [one, other, merge, created].map(|id| span(&world, id));
    assert!(second.0 < first.1 && first.0 < second.1, "{first:?} {second:?}");
    assert!(third.0 >= first.1.min(second.1) && third.0 < first.1.max(second.1), "{first:?} {second:?} {third:?}");
    assert!(schema.0 >= third.1.max(first.1).max(second.1), "a schema change runs alone: {schema:?}");
}

#[tokio::test(start_paused = true)]
async fn a_split_goes_before_the_moves_of_a_rebalance_that_have_not_begun() {
    let world = furnished(3).await;
    world.with(|inner| {
        inner.clients = 3;
        inner.latency = Duration::from_millis(1);
        inner.begin();
    });
    let of = |shard: u32| world.with(|inner| inner.catalog.partitions_of(ShardId(shard)));
    let shift =
        |(to, at): (u32, usize)| OperationKind::Move { from: ShardId(1), to: ShardId(to), partitions: vec![of(1)[at]] };
    let (moves, cause) = ([(2, 0), (3, 1), (2, 2)].map(shift).to_vec(), Cause::Request("test".to_owned()));
    let first = world.ask(Command::StartMoves { moves, cause, reason: "uneven".to_owned(), at: 1 }).operation.unwrap();
    let queued = [first.0, first.0 + 1, first.0 + 2].map(OperationId);
    let rest = of(1).split_off(3);
    let partitions = rest[1..].to_vec();
    let split = world.start(OperationKind::Split { from: ShardId(1), to: ShardId(4), partitions });
    until_quiet(&world).await;
    world.with(|inner| inner.check_quiet());
    for id in queued {
        assert_eq!(operation(&world, id).phase, Phase::Successful);
        assert!(span(&world, id).0 >= span(&world, split).1, "they wait for its source");
    }
    assert_eq!(operation(&world, split).phase, Phase::Successful);
    assert_eq!(of(1).len(), 1);
}

/// Whatever happens to one of them, or to two at once.
#[tokio::test(start_paused = true)]
async fn splits_and_merges_side_by_side_survive_what_one_survives() {
    let faults: [fn(u64) -> Fault; 5] =
        [Fault::CrashBefore, Fault::CrashAfter, Fault::Lost, Fault::Unreachable, Fault::Restart];
    for fault in faults {
        for at in (1..).step_by(17) {
            let (world, ids) = world_of_three().await;
            world.with(|inner| {
                inner.faults = vec![fault(at)];
                inner.redeliver = true;
            });
            until_quiet(&world).await;
            world.with(|inner| inner.check_quiet());
            for id in ids {
                let operation = operation(&world, id);
                assert_eq!(operation.phase, Phase::Successful, "{:?}: {operation:#?}", fault(at));
            }
            assert_eq!(active(&world), [1, 2, 3, 5, 6]);
            if world.with(|inner| inner.calls) < at {
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_cancelled_leaves_the_others_and_no_shard() {
    let mut ended = BTreeMap::new();
    for at in (1..).step_by(7) {
        let (world, ids) = world_of_three().await;
        world.with(|inner| inner.faults = vec![Fault::Cancel(at, ids[1])]);
        until_quiet(&world).await;
        world.with(|inner| inner.check_quiet());
        let cancelled = operation(&world, ids[1]);
        let expected = if cancelled.cancel_requested { Phase::Skipped } else { Phase::Successful };
        assert_eq!(cancelled.phase, expected, "{at}");
        for id in [ids[0], ids[2]] {
            assert_eq!(operation(&world, id).phase, Phase::Successful, "{at}");
        }
        assert_eq!(active(&world).contains(&6), expected == Phase::Successful);
        *ended.entry(expected == Phase::Skipped).or_insert(0) += 1;
        if world.with(|inner| inner.calls) < at {
            break;
        }
    }
    assert_eq!(ended.len(), 2, "{ended:?}");
}
