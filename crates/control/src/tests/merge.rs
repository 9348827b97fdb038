//! A shard is merged into another one while clients write.

use super::world::cities::DECIDED_AFTER;
use super::world::{Fault, PARTITIONS};
use super::*;

/// The second of two shards, which own half each.
fn merge() -> OperationKind {
    let partitions = (PARTITIONS / 2..PARTITIONS).map(PartitionId).collect();
    OperationKind::Merge { from: ShardId(2), to: ShardId(1), partitions }
}

async fn busy() -> Arc<World> {
    let world = furnished(2).await;
    world.with(|inner| {
        inner.clients = 4;
        inner.latency = Duration::from_millis(1);
    });
    world
}

fn is_gone(world: &World) -> bool {
    world.with(|inner| {
        inner.check_quiet();
        assert_eq!(inner.catalog.shards[&ShardId(1)].state, ShardState::Active);
        inner.catalog.shards[&ShardId(2)].state == ShardState::Removed
    })
}

#[tokio::test(start_paused = true)]
async fn a_merge_while_clients_write() {
    let world = busy().await;
    let id = world.start(merge());
    until_quiet(&world).await;
    assert!(is_gone(&world));
    let operation = operation(&world, id);
    assert_eq!(operation.phase, Phase::Successful, "{operation:#?}");
    let expected =
        ["capture", "copy", "catch up", "verify", "catch up", "fence", "commit", "activate", "release", "remove shard"];
    assert_eq!(step_names(&operation), expected);
    assert!(operation.message.ends_with("shard-2 was removed"), "{}", operation.message);
    world.with(|inner| {
        assert!(inner.acknowledged > 400 && inner.answered > 50, "clients got work done");
        assert_eq!(inner.catalog.partitions_of(ShardId(1)).len(), PARTITIONS as usize);
        // Its number is never given again.
        assert_eq!(inner.catalog.next_shard(), ShardId(3));
    });
}

/// Run it with one fault at each of its calls in turn, until a run has fewer calls.
async fn at_every_call(fault: fn(u64) -> Fault, redeliver: bool) {
    for at in 1.. {
        let world = busy().await;
        let id = world.start(merge());
        world.with(|inner| {
            inner.calls = 0;
            inner.faults = vec![fault(at)];
            inner.redeliver = redeliver;
        });
        until_quiet(&world).await;
        assert!(is_gone(&world), "{:?}", fault(at));
        let operation = operation(&world, id);
        assert_eq!(operation.phase, Phase::Successful, "{:?}: {operation:#?}", fault(at));
        if world.with(|inner| inner.calls) < at {
            assert!(at > 20, "the faults were spread over the whole operation");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn it_survives_a_leader_that_dies_before_or_after_any_call() {
    at_every_call(Fault::CrashBefore, false).await;
    at_every_call(Fault::CrashAfter, true).await;
}

#[tokio::test(start_paused = true)]
async fn it_survives_any_lost_answer_and_any_call_that_reaches_nobody() {
    at_every_call(Fault::Lost, false).await;
    at_every_call(Fault::Unreachable, true).await;
}

#[tokio::test(start_paused = true)]
async fn it_survives_shards_that_are_restarted_at_any_call() {
    at_every_call(Fault::Restart, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_at_any_call_leaves_the_shard_as_it_was_or_comes_too_late() {
    let mut ended = [0, 0];
    for at in 1.. {
        let world = busy().await;
        let id = world.start(merge());
        world.with(|inner| {
            inner.calls = 0;
            inner.faults = vec![Fault::Cancel(at, id)];
        });
        until_quiet(&world).await;
        let operation = operation(&world, id);
        let expected = if operation.cancel_requested { Phase::Skipped } else { Phase::Successful };
        assert_eq!((operation.phase, operation.committed), (expected, !operation.cancel_requested), "{at}");
        assert_eq!(is_gone(&world), operation.committed, "{at}");
        ended[usize::from(operation.committed)] += 1;
        if world.with(|inner| inner.calls) < at {
            break;
        }
    }
    assert!(ended[0] > 10 && ended[1] > 3, "{ended:?}");
}

/// A transaction that writes to a reference table on both shards, begun at each moment of the merge by the catalog of that moment, is on
/// all that are left or on none; and none waits for a shard that is gone.
#[tokio::test(start_paused = true)]
async fn a_transaction_on_reference_tables_ends_before_the_shard_goes_or_is_refused() {
    let mut ended = std::collections::BTreeMap::new();
    for (runs_late, pause, step) in [(true, 2, 1), (false, 2, 1), (false, 12, 1)] {
        for at in (1..).step_by(step) {
            let world = busy().await;
            world.with(|inner| {
                inner.cities_change = false;
                inner.calls = 0;
                inner.faults = vec![Fault::CityTxn { at, pause, runs_late }];
                inner.clients = 0;
            });
            let id = world.start(merge());
            until_quiet(&world).await;
            if world.with(|inner| inner.calls) < at + pause + DECIDED_AFTER {
                break;
            }
            assert!(is_gone(&world));
            assert_eq!(operation(&world, id).phase, Phase::Successful);
            *ended.entry((runs_late, world.with(|inner| inner.city_txn.committed))).or_insert(0) += 1;
        }
    }
    println!("by (runs late, committed): {ended:?}");
    assert_eq!(ended.len(), 4, "{ended:?}");
}

/// A shard that owns nothing goes the same way.
#[tokio::test(start_paused = true)]
async fn an_empty_shard_is_merged_as_well() {
    let world = busy().await;
    let OperationKind::Merge { from, to, partitions } = merge() else { unreachable!() };
    world.start(OperationKind::Move { from, to, partitions });
    until_quiet(&world).await;
    let id = world.start(OperationKind::Merge { from, to, partitions: Vec::new() });
    until_quiet(&world).await;
    assert!(is_gone(&world));
    assert_eq!(operation(&world, id).phase, Phase::Successful);
}

/// After the commit the shard is lost for a while: others go past the merge, and it ends when the shard is back.
#[tokio::test(start_paused = true)]
async fn a_shard_that_is_lost_behind_the_commit_is_waited_for() {
    let world = busy().await;
    let id = world.start(merge());
    let mut watch = world.watch_catalog();
    tokio::select! {
        () = until_quiet(&world) => panic!("it was never committed"),
        found = watch.wait_for(|catalog| catalog.operations[&id].committed) => drop(found.unwrap()),
    }
    world.with(|inner| {
        assert_eq!(inner.catalog.shards[&ShardId(2)].state, ShardState::Leaving);
        inner.gone = Some(ShardId(2));
    });
    let waits = tokio::time::timeout(Duration::from_secs(600), async {
        tokio::select! {
            () = until_quiet(&world) => panic!("it can't end without the shard"),
            found = watch.wait_for(|catalog| catalog.operations[&id].is_waiting()) => drop(found.unwrap()),
        }
    });
    waits.await.expect("it waits");
    world.with(|inner| inner.gone = None);
    until_quiet(&world).await;
    assert!(is_gone(&world));
}
