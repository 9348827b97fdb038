//! Splits and moves while clients write.

use super::world::cities::DECIDED_AFTER;
use super::world::{Fault, PARTITIONS};
use super::*;

fn split() -> OperationKind {
    let partitions = (PARTITIONS / 2..PARTITIONS).map(PartitionId).collect();
    OperationKind::Split { from: ShardId(1), to: ShardId(2), partitions }
}

fn shift() -> OperationKind {
    let partitions = (1..PARTITIONS / 2 - 1).map(PartitionId).collect();
    OperationKind::Move { from: ShardId(1), to: ShardId(2), partitions }
}

/// A world where clients are at work.
async fn busy(shards: u32) -> Arc<World> {
    let world = furnished(shards).await;
    world.with(|inner| {
        inner.clients = 4;
        inner.latency = Duration::from_millis(1);
    });
    world
}

fn settle(world: &Arc<World>) {
    world.with(|inner| inner.check_quiet());
}

#[tokio::test(start_paused = true)]
async fn a_split_while_clients_write() {
    let world = busy(1).await;
    let id = world.start(split());
    until_quiet(&world).await;
    settle(&world);
    let operation = operation(&world, id);
    assert_eq!(operation.phase, Phase::Successful, "{operation:#?}");
    assert_eq!(
        step_names(&operation),
        [
            "create shard",
            "copy schema",
            "copy reference tables",
            "capture",
            "copy",
            "catch up",
            "verify",
            "catch up",
            "fence",
            "commit",
            "activate",
            "release",
            "clean up"
        ]
    );
    assert!(operation.steps.iter().all(|step| step.ended.is_some()));
    assert!(operation.message.contains("writes paused for"), "{}", operation.message);
    world.with(|inner| {
        assert!(inner.acknowledged > 400 && inner.answered > 50, "clients got work done");
        assert_eq!(inner.catalog.partitions_of(ShardId(2)).len(), 8);
        for shard in [1, 2] {
            assert_eq!(inner.phase(ShardId(shard), id, 1), Some(pleat_engine::MovePhase::Ended));
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_move_to_a_shard_that_exists_and_back() {
    let world = busy(2).await;
    let there = world.start(shift());
    until_quiet(&world).await;
    settle(&world);
    let OperationKind::Move { partitions, .. } = shift() else { unreachable!() };
    let back = world.start(OperationKind::Move { from: ShardId(2), to: ShardId(1), partitions });
    until_quiet(&world).await;
    settle(&world);
    for id in [there, back] {
        assert_eq!(operation(&world, id).phase, Phase::Successful, "{:#?}", operation(&world, id));
    }
}

/// Deltas, also the last one behind closed gates and that of the verification, take several messages.
#[tokio::test(start_paused = true)]
async fn moves_in_the_smallest_messages() {
    for seed in 0..12 {
        let world = busy(2).await;
        world.with(|inner| (inner.random, inner.chunk, inner.clients) = (seed, (2, 90), 3));
        let id = world.start(shift());
        until_quiet(&world).await;
        settle(&world);
        assert_eq!(operation(&world, id).phase, Phase::Successful, "{:#?}", operation(&world, id));
    }
}

/// Run an operation with one fault at each of its calls in turn, until a run has fewer calls.
async fn at_every_call(shards: u32, kind: OperationKind, fault: fn(u64) -> Fault, redeliver: bool) {
    at_every_call_of(|| busy(shards), kind, fault, redeliver).await;
}

async fn at_every_call_of<W: Future<Output = Arc<World>>>(
    world: impl Fn() -> W,
    kind: OperationKind,
    fault: fn(u64) -> Fault,
    redeliver: bool,
) {
    for at in 1.. {
        let world = world().await;
        let id = world.start(kind.clone());
        world.with(|inner| {
            inner.calls = 0;
            inner.faults = vec![fault(at)];
            inner.redeliver = redeliver;
        });
        until_quiet(&world).await;
        settle(&world);
        let operation = operation(&world, id);
        assert_eq!(operation.phase, Phase::Successful, "{:?}: {operation:#?}", fault(at));
        if world.with(|inner| inner.calls) < at {
            assert!(at > 20, "the faults were spread over the whole operation");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_split_survives_a_leader_that_dies_before_any_call() {
    at_every_call(1, split(), Fault::CrashBefore, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_split_survives_a_leader_that_dies_after_any_call() {
    at_every_call(1, split(), Fault::CrashAfter, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_split_survives_any_lost_answer() {
    at_every_call(1, split(), Fault::Lost, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_split_survives_any_call_that_reaches_nobody() {
    at_every_call(1, split(), Fault::Unreachable, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_split_survives_shards_that_are_restarted_at_any_call() {
    at_every_call(1, split(), Fault::Restart, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_move_survives_a_leader_that_dies_after_any_call() {
    at_every_call(2, shift(), Fault::CrashAfter, false).await;
}

/// Calls take so long that the mover finds out that nobody is kept waiting, and sends several messages at once.
async fn slow(shards: u32) -> Arc<World> {
    let world = busy(shards).await;
    world.with(|inner| {
        (inner.latency, inner.flush, inner.chunk) = (Duration::from_millis(4), Duration::from_millis(20), (4, 2_000));
    });
    world
}

#[tokio::test(start_paused = true)]
async fn several_messages_of_a_copy_are_on_their_way_at_once_where_no_client_waits_for_them() {
    for (counts_clients, at_once) in [(false, crate::mover::copy::IN_FLIGHT_MAX as u32), (true, 1)] {
        let world = slow(2).await;
        world.with(|inner| inner.counts_clients = counts_clients);
        let id = world.start(shift());
        until_quiet(&world).await;
        settle(&world);
        assert_eq!(operation(&world, id).phase, Phase::Successful);
        assert_eq!(world.with(|inner| inner.written_at_once), at_once);
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_several_messages_at_once_survives_a_leader_that_dies_after_any_call() {
    at_every_call_of(|| slow(2), shift(), Fault::CrashAfter, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_several_messages_at_once_survives_any_lost_answer_and_messages_that_arrive_late() {
    at_every_call_of(|| slow(2), shift(), Fault::Lost, true).await;
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_several_messages_at_once_survives_shards_that_are_restarted_at_any_call() {
    at_every_call_of(|| slow(2), shift(), Fault::Restart, false).await;
}

#[tokio::test(start_paused = true)]
async fn messages_that_arrive_late_do_no_harm() {
    at_every_call(1, split(), Fault::CrashAfter, true).await;
    at_every_call(2, shift(), Fault::Lost, true).await;
}

/// The entry of a leader that dies is through, and its successor, which has not seen it yet, writes one of its own.
#[tokio::test(start_paused = true)]
async fn a_step_that_is_journaled_twice_is_not_taken_for_an_attempt() {
    for at in ["copy", "catch up", "fence"] {
        let world = busy(2).await;
        let id = world.start(shift());
        let mut watch = world.watch_catalog();
        tokio::select! {
            () = until_quiet(&world) => panic!("{at} never came"),
            found = watch.wait_for(|catalog| catalog.operations[&id].steps.iter().any(|s| s.name == at)) => drop(found),
        }
        assert!(!operation(&world, id).committed);
        let (step, detail) = ("capture".to_owned(), "broken off: its leader was lost".to_owned());
        let epoch = operation(&world, id).epoch;
        world.ask(Command::JournalStep { operation: id, step, ended: true, detail, epoch, at: 1 });
        world.with(|inner| inner.next_term());
        until_quiet(&world).await;
        settle(&world);
        let operation = operation(&world, id);
        assert_eq!((operation.phase, operation.attempts), (Phase::Successful, 2), "{at}: {operation:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_split_can_be_cancelled_at_every_step_before_its_commit() {
    let steps =
        ["create shard", "copy schema", "copy reference tables", "capture", "copy", "catch up", "verify", "fence"];
    for step in steps {
        let world = busy(1).await;
        let id = world.start(split());
        let mut watch = world.watch_catalog();
        tokio::select! {
            () = until_quiet(&world) => panic!("{step} never came"),
            found = watch.wait_for(|catalog| catalog.operations[&id].steps.iter().any(|s| s.name == step)) => {
                found.unwrap();
            }
        }
        let committed = operation(&world, id).committed;
        world.ask(Command::CancelOperation { operation: id, at: 1 });
        until_quiet(&world).await;
        settle(&world);
        let operation = operation(&world, id);
        if committed {
            assert_eq!(operation.phase, Phase::Successful);
            continue;
        }
        assert_eq!((operation.phase, operation.message.as_str()), (Phase::Skipped, "cancelled on request"), "{step}");
        world.with(|inner| assert_eq!(inner.catalog.shards[&ShardId(2)].state, ShardState::Removed));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_move_leaves_both_shards_as_they_were() {
    let world = busy(2).await;
    let id = world.start(shift());
    let mut watch = world.watch_catalog();
    tokio::select! {
        () = until_quiet(&world) => panic!(),
        found = watch.wait_for(|catalog| catalog.operations[&id].steps.iter().any(|s| s.name == "verify")) => {
            found.unwrap();
        }
    }
    world.ask(Command::CancelOperation { operation: id, at: 1 });
    until_quiet(&world).await;
    settle(&world);
    assert_eq!(operation(&world, id).phase, Phase::Skipped);
    // And the same partitions can be moved after all.
    let again = world.start(shift());
    until_quiet(&world).await;
    settle(&world);
    assert_eq!(operation(&world, again).phase, Phase::Successful);
}

/// One row of the target's copy is not what the source has.
#[tokio::test(start_paused = true)]
async fn a_copy_that_differs_is_not_handed_over_and_the_source_goes_on() {
    for (shards, kind) in [(1, split()), (2, shift())] {
        let mut refused = 0;
        for at in 1.. {
            let world = busy(shards).await;
            world.with(|inner| inner.faults = vec![Fault::Spoil(at)]);
            let id = world.start(kind.clone());
            until_quiet(&world).await;
            // Every row is there, as it was acknowledged, where the catalog says.
            settle(&world);
            let operation = operation(&world, id);
            let receipt = operation.receipt.clone().unwrap();
            if operation.phase == Phase::Successful {
                assert!(receipt.agrees(), "a client had overwritten that row, and it was brought again: {receipt:?}");
                if world.with(|inner| inner.imports()) < at {
                    break;
                }
                continue;
            }
            refused += 1;
            assert_eq!((operation.phase, operation.committed), (Phase::Failed, false), "{operation:#?}");
            assert!(operation.message.contains("the copy of users differs from its source"), "{}", operation.message);
            let differing: Vec<_> = receipt.differences().collect();
            assert_eq!(differing.len(), 1, "{receipt:?}");
            assert!(differing[0].table == "users" && differing[0].source.rows == differing[0].target.rows);
            assert_eq!(receipt.pause_ms, None, "clients did not wait");
            let before = world.with(|inner| inner.acknowledged);
            world.with(|inner| (0..50).for_each(|_| inner.put_user()));
            assert!(world.with(|inner| inner.acknowledged) > before, "the source serves");
            assert!(
                world.with(|inner| inner.catalog.partitions_of(ShardId(1)).len()) >= (PARTITIONS / shards) as usize
            );
        }
        assert!(refused >= 3, "{refused} copies were found to differ");
    }
}

/// Whoever finishes the move, its receipt says what was carried and for how long clients waited.
#[tokio::test(start_paused = true)]
async fn every_finished_move_has_a_whole_receipt() {
    for at in (1..).step_by(3) {
        let world = busy(1).await;
        let id = world.start(split());
        world.with(|inner| {
            inner.calls = 0;
            inner.faults = vec![Fault::CrashAfter(at)];
        });
        until_quiet(&world).await;
        let operation = operation(&world, id);
        let receipt = operation.receipt.clone().unwrap();
        assert!(receipt.agrees() && receipt.copied > 0 && receipt.bytes > 0 && receipt.source.rows > 0, "{receipt:?}");
        assert!(receipt.tables.iter().any(|table| table.table == "users" && table.target.rows > 0), "{receipt:?}");
        assert!(receipt.pause_ms.is_some(), "{at}: {operation:#?}");
        let copied = format!("{} rows copied", receipt.copied);
        assert!(
            operation.message.contains(&copied) && operation.message.contains("paused for"),
            "{}",
            operation.message
        );
        if world.with(|inner| inner.calls) < at {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_over_the_budget_is_put_off_and_then_accepted() {
    let world = busy(1).await;
    world.with(|inner| inner.latency = Duration::from_millis(60));
    let id = world.start(split());
    until_quiet(&world).await;
    settle(&world);
    let operation = operation(&world, id);
    assert_eq!(operation.phase, Phase::Successful, "{operation:#?}");
    let caught_up = operation.steps.iter().find(|step| step.name == "catch up").unwrap();
    assert!(caught_up.detail.contains("of 400 ms"), "{}", caught_up.detail);
}

#[tokio::test(start_paused = true)]
async fn a_pause_far_over_the_budget_fails_the_move_and_leaves_nothing() {
    let world = busy(1).await;
    world.with(|inner| inner.latency = Duration::from_millis(700));
    let id = world.start(split());
    until_quiet(&world).await;
    settle(&world);
    let operation = operation(&world, id);
    assert_eq!(operation.phase, Phase::Failed, "{operation:#?}");
    assert!(operation.message.contains("more than 3200 ms is not accepted"), "{}", operation.message);
    world.with(|inner| assert_eq!(inner.catalog.shards[&ShardId(2)].state, ShardState::Removed));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_replaced_stops_by_itself() {
    let world = busy(1).await;
    let id = world.start(split());
    let old = tools(&world);
    // The old leader is stopped in the middle, and another one finishes.
    let mut watch = world.watch_catalog();
    let mut stale = Box::pin(lead::carry_out(&old, id));
    tokio::select! {
        _ = &mut stale => panic!("it was to be paused"),
        found = watch.wait_for(|catalog| catalog.operations[&id].steps.iter().any(|s| s.name == "verify")) => {
            found.unwrap();
        }
    }
    world.with(|inner| inner.term += 1);
    let new = tools(&world);
    let mut watch = world.watch_catalog();
    tokio::select! {
        _ = lead::carry_out(&new, id) => panic!("it was to be paused"),
        found = watch.wait_for(|catalog| catalog.operations[&id].steps.iter().filter(|s| s.name == "capture").count() == 2) => {
            found.unwrap();
        }
    }
    let stopped = stale.await;
    assert!(matches!(stopped, Err(Stop::Superseded(_))), "{stopped:?}");
    world.with(|inner| inner.term += 1);
    until_quiet(&world).await;
    settle(&world);
    assert_eq!(operation(&world, id).phase, Phase::Successful);
}

/// The dead leader's commit is on its way while the next leader takes the move back and starts anew. If it were
/// accepted and that leader died as well, a third one would go forward with half a copy.
#[tokio::test(start_paused = true)]
async fn a_commit_that_arrives_after_its_leader_was_replaced_is_refused() {
    let world = busy(2).await;
    world.start(shift());
    until_quiet(&world).await;
    let commit_at = world.with(|inner| inner.commit_at.unwrap());
    for (delay, second) in [(8, 12), (15, 20), (20, 24), (25, 40), (1, 15), (3, 20)] {
        let world = busy(2).await;
        world.with(|inner| inner.faults = vec![Fault::Late(commit_at, delay), Fault::CrashBefore(commit_at + second)]);
        let id = world.start(shift());
        until_quiet(&world).await;
        assert!(world.with(|inner| inner.calls) > commit_at + second);
        settle(&world);
        let operation = operation(&world, id);
        assert_eq!(operation.phase, Phase::Successful, "{operation:#?}");
        assert_eq!(operation.steps.iter().filter(|step| step.name == "take over").count(), 2);
    }
}

/// One write to a reference table at each moment of a split, and none after it that would make the gap be noticed.
#[tokio::test(start_paused = true)]
async fn a_reference_write_at_any_moment_reaches_the_new_shard_before_its_first_partition() {
    for at in 1.. {
        let world = busy(1).await;
        world.with(|inner| {
            inner.cities_change = false;
            inner.calls = 0;
            inner.faults = vec![Fault::City(at)];
        });
        let id = world.start(split());
        until_quiet(&world).await;
        settle(&world);
        assert_eq!(operation(&world, id).phase, Phase::Successful);
        if world.with(|inner| inner.calls) < at {
            return;
        }
    }
}

/// A transaction that writes to a reference table, begun at each moment of a split by the catalog of that moment: the new shard
/// has what it wrote before its first partition, or it was refused.
#[tokio::test(start_paused = true)]
async fn a_transaction_on_reference_tables_reaches_the_new_shard_before_its_first_partition() {
    let mut ended = std::collections::BTreeMap::new();
    for (runs_late, pause, step) in [(true, 2, 1), (true, 45, 2), (false, 2, 3)] {
        for at in (1..).step_by(step) {
            let world = busy(1).await;
            world.with(|inner| {
                inner.cities_change = false;
                inner.calls = 0;
                inner.faults = vec![Fault::CityTxn { at, pause, runs_late }];
                // Other writes would refuse what it ran before them.
                inner.clients = if runs_late { inner.clients } else { 0 };
            });
            let id = world.start(split());
            until_quiet(&world).await;
            let calls = world.with(|inner| inner.calls);
            if calls < at + pause + DECIDED_AFTER {
                break;
            }
            settle(&world);
            assert_eq!(operation(&world, id).phase, Phase::Successful);
            *ended.entry((runs_late, world.with(|inner| inner.city_txn.committed))).or_insert(0) += 1;
        }
    }
    println!("by (runs late, committed): {ended:?}");
    assert_eq!(ended.len(), 4, "{ended:?}");
}

/// A second attempt's copy has no row that was deleted on the anchor after the first one's.
#[tokio::test(start_paused = true)]
async fn a_second_copy_of_the_reference_tables_starts_with_empty_ones() {
    for at in 1.. {
        let world = busy(1).await;
        world.with(|inner| {
            inner.shrinks = true;
            inner.cities_change = false;
            inner.calls = 0;
            inner.faults = vec![Fault::CrashAfter(at)];
        });
        let id = world.start(split());
        until_quiet(&world).await;
        settle(&world);
        assert_eq!(operation(&world, id).phase, Phase::Successful, "{at}: {:#?}", operation(&world, id));
        if world.with(|inner| inner.calls) < at {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_at_any_call_comes_before_the_commit_or_is_refused() {
    for (shards, kind) in [(1, split()), (2, shift())] {
        for at in 1.. {
            let world = busy(shards).await;
            let id = world.start(kind.clone());
            world.with(|inner| {
                inner.calls = 0;
                inner.faults = vec![Fault::Cancel(at, id)];
            });
            until_quiet(&world).await;
            settle(&world);
            let operation = operation(&world, id);
            let expected = if operation.cancel_requested { Phase::Skipped } else { Phase::Successful };
            assert_eq!((operation.phase, operation.committed), (expected, !operation.cancel_requested), "{at}");
            if world.with(|inner| inner.calls) < at {
                break;
            }
        }
    }
}

/// Lead until a step has begun, then lose the new shard.
async fn split_without_target(step: &str) -> (Arc<World>, OperationId) {
    let world = busy(1).await;
    let id = world.start(split());
    let mut watch = world.watch_catalog();
    tokio::select! {
        () = until_quiet(&world) => panic!("{step} never came"),
        found = watch.wait_for(|catalog| catalog.operations[&id].steps.iter().any(|s| s.name == step)) => {
            found.unwrap();
        }
    }
    world.with(|inner| inner.gone = Some(ShardId(2)));
    (world, id)
}

#[tokio::test(start_paused = true)]
async fn a_split_whose_target_is_gone_can_be_cancelled_and_is_given_up() {
    for step in ["copy schema", "capture", "verify"] {
        for cancel in [true, false] {
            let (world, id) = split_without_target(step).await;
            if cancel {
                world.ask(Command::CancelOperation { operation: id, at: 1 });
            }
            until_quiet(&world).await;
            settle(&world);
            let expected = if cancel { Phase::Skipped } else { Phase::Failed };
            assert_eq!(operation(&world, id).phase, expected, "{step}: {:#?}", operation(&world, id));
            world.with(|inner| assert_eq!(inner.catalog.shards[&ShardId(2)].state, ShardState::Removed));
        }
    }
}

/// A move loses one of its shards in a step; others must not wait for it.
#[tokio::test(start_paused = true)]
async fn a_move_whose_shard_is_gone_is_given_up_and_others_go_past_it() {
    for (step, gone) in [("capture", 2), ("copy", 2), ("verify", 2), ("copy", 3), ("verify", 3)] {
        let world = busy(4).await;
        world.with(|inner| inner.clients = 0);
        let partitions = world.with(|inner| inner.catalog.partitions_of(ShardId(3))[..2].to_vec());
        let lost = world.start(OperationKind::Move { from: ShardId(3), to: ShardId(2), partitions });
        let mut watch = world.watch_catalog();
        tokio::select! {
            () = until_quiet(&world) => panic!("{step} never came"),
            found = watch.wait_for(|catalog| catalog.operations[&lost].steps.iter().any(|s| s.name == step)) => {
                found.unwrap();
            }
        }
        world.with(|inner| inner.gone = Some(ShardId(gone)));
        let mut watch = world.watch_catalog();
        tokio::select! {
            () = until_quiet(&world) => panic!("shard-{gone} is gone"),
            found = watch.wait_for(|catalog| catalog.operations[&lost].is_waiting()) => drop(found.unwrap()),
        }
        let waiting = operation(&world, lost);
        assert_eq!((waiting.given_up, &waiting.waits_for[..]), (true, &[ShardId(gone)][..]), "{step}: {waiting:#?}");
        // From the very shard, if the target is gone: nothing of the move is left there.
        let from = if gone == 3 { 1 } else { 3 };
        let partitions = world.with(|inner| inner.catalog.partitions_of(ShardId(from))[..2].to_vec());
        let other = world.start(OperationKind::Move { from: ShardId(from), to: ShardId(4), partitions });
        let mut watch = world.watch_catalog();
        tokio::select! {
            () = until_quiet(&world) => panic!("shard-{gone} is still gone"),
            found = watch.wait_for(|catalog| catalog.operations[&other].phase.is_final()) => drop(found.unwrap()),
        }
        assert_eq!(operation(&world, other).phase, Phase::Successful, "{:#?}", operation(&world, other));
        assert!(operation(&world, lost).is_waiting());
        world.with(|inner| {
            inner.gone = None;
            inner.next_term();
        });
        until_quiet(&world).await;
        settle(&world);
        assert_eq!(operation(&world, lost).phase, Phase::Failed, "{step}");
    }
}

/// The target is gone right after the commit: its partitions can't be served, and all others can be moved.
#[tokio::test(start_paused = true)]
async fn a_committed_move_waits_for_its_target_and_holds_both_ends() {
    let world = busy(4).await;
    world.with(|inner| inner.clients = 0);
    let partitions = world.with(|inner| inner.catalog.partitions_of(ShardId(1))[..2].to_vec());
    let lost = world.start(OperationKind::Move { from: ShardId(1), to: ShardId(2), partitions });
    let mut watch = world.watch_catalog();
    tokio::select! {
        () = until_quiet(&world) => panic!(),
        found = watch.wait_for(|catalog| catalog.operations[&lost].committed) => drop(found.unwrap()),
    }
    world.with(|inner| inner.gone = Some(ShardId(2)));
    let partitions = world.with(|inner| inner.catalog.partitions_of(ShardId(3))[..2].to_vec());
    let mut watch = world.watch_catalog();
    tokio::select! {
        () = until_quiet(&world) => panic!("shard-2 is gone"),
        found = watch.wait_for(|catalog| catalog.operations[&lost].is_waiting()) => drop(found.unwrap()),
    }
    let other = world.start(OperationKind::Move { from: ShardId(3), to: ShardId(4), partitions });
    let mut watch = world.watch_catalog();
    tokio::select! {
        () = until_quiet(&world) => panic!("shard-2 is still gone"),
        found = watch.wait_for(|catalog| catalog.operations[&other].phase.is_final()) => drop(found.unwrap()),
    }
    assert_eq!(operation(&world, other).phase, Phase::Successful);
    assert_eq!(operation(&world, lost).holds(), [ShardId(1), ShardId(2)]);
    world.with(|inner| inner.gone = None);
    until_quiet(&world).await;
    settle(&world);
    assert_eq!(operation(&world, lost).phase, Phase::Successful);
}

#[tokio::test(start_paused = true)]
async fn a_panic_does_not_end_the_control_loop() {
    let world = busy(1).await;
    let id = world.start(split());
    world.with(|inner| inner.faults = vec![Fault::Panic(inner.calls + 30)]);
    let control = crate::Control::start_on(world.clone(), tools(&world).settings);
    let mut watch = world.watch_catalog();
    let ended = watch.wait_for(|catalog| catalog.operations[&id].phase.is_final());
    tokio::time::timeout(Duration::from_secs(600), ended).await.expect("the loop goes on").unwrap();
    control.shutdown().await;
    settle(&world);
    assert_eq!(operation(&world, id).phase, Phase::Successful, "{:#?}", operation(&world, id));
}

/// The call at which a split, or a move, proposes its commit.
async fn commit_call(shards: u32, kind: OperationKind) -> u64 {
    let world = busy(shards).await;
    world.start(kind);
    world.with(|inner| inner.calls = 0);
    until_quiet(&world).await;
    world.with(|inner| inner.commit_at.unwrap())
}

/// A call before the commit never returns.
#[tokio::test(start_paused = true)]
async fn a_step_that_never_ends_is_broken_off_with_its_name_and_nothing_is_left() {
    let mut named = std::collections::BTreeSet::new();
    for (shards, kind, every) in [(1, split(), 1), (2, shift(), 3)] {
        for at in (1..commit_call(shards, kind.clone()).await).step_by(every) {
            let world = busy(shards).await;
            let id = world.start(kind.clone());
            world.with(|inner| (inner.calls, inner.faults) = (0, vec![Fault::Hang(at)]));
            until_quiet_within(&world, Duration::from_secs(48 * 3600)).await;
            settle(&world);
            let operation = operation(&world, id);
            if operation.phase == Phase::Successful {
                continue; // closed gates have a limit of their own, and how much there is to copy is nobody's concern
            }
            assert_eq!((operation.phase, operation.committed), (Phase::Failed, false), "{at}: {operation:#?}");
            assert_eq!(operation.code.as_deref(), Some("57014"), "{at}: {operation:#?}");
            let step = operation.message.split('\'').nth(1).unwrap_or_default().to_owned();
            assert!(operation.message.contains("took longer than its limit"), "{at}: {}", operation.message);
            named.insert(step);
        }
    }
    let steps =
        ["capture", "catch up", "copy", "copy reference tables", "copy schema", "create shard", "fence", "verify"];
    assert_eq!(named.into_iter().collect::<Vec<_>>(), steps);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_never_returns_keeps_no_cancellation_waiting() {
    for at in (1..commit_call(1, split()).await).step_by(2) {
        let world = busy(1).await;
        let id = world.start(split());
        world.with(|inner| (inner.calls, inner.faults) = (0, vec![Fault::Hang(at)]));
        let cancelled = async {
            while world.with(|inner| inner.calls) < at {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            world.cancel(id);
            std::future::pending::<()>().await
        };
        tokio::select! {
            () = until_quiet_within(&world, Duration::from_secs(60)) => {}
            () = cancelled => {}
        }
        settle(&world);
        let operation = operation(&world, id);
        let expected = if operation.cancel_requested { Phase::Skipped } else { Phase::Successful };
        assert_eq!(operation.phase, expected, "{at}: {operation:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_move_tells_how_far_it_is_and_the_journal_is_spared() {
    let world = busy(1).await;
    // Enough that it takes more than a second, in the world's time: then it is found out how much there is.
    world.with(|inner| {
        (0..600).for_each(|_| inner.put_user());
        (inner.latency, inner.chunk) = (Duration::from_millis(50), (4, 2_000));
    });
    let id = world.start(split());
    until_quiet(&world).await;
    let operation = operation(&world, id);
    assert_eq!(operation.phase, Phase::Successful, "{operation:#?}");
    world.with(|inner| {
        let copied: Vec<_> = inner.told.iter().filter(|told| told.step == "copy" && told.rows > 0).collect();
        assert!(copied.len() > 1 && copied.is_sorted_by_key(|told| told.rows), "{copied:#?}");
        let last = copied.last().unwrap();
        let (total, receipt) = (last.rows_total.unwrap(), operation.receipt.as_ref().unwrap());
        assert!(total.abs_diff(receipt.copied) < receipt.copied / 2, "{total} expected, {} came", receipt.copied);
        assert!(last.rows_per_second.unwrap() > 0.0 && last.ends.is_some() && last.bytes > 0, "{last:?}");
        assert!(last.detail.starts_with("in table "), "{last:?}");
        assert!(inner.told.iter().any(|told| told.step == "clean up" && told.rows > 0 && told.rows_total.is_some()));
        assert!(inner.progress.is_empty(), "what has ended is not under way: {:?}", inner.progress);
    });
}
