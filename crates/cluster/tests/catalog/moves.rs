//! Moves that are asked for at once, and which of them may go side by side.

use pleat_cluster::*;

use crate::{by_id, create, founded, split, start};

fn begin(operation: OperationId) -> Command {
    let (step, detail) = ("capture".to_owned(), String::new());
    Command::JournalStep { operation, step, ended: false, detail, epoch: 1, at: 6 }
}

fn shift(from: u32, to: u32, partition: u32) -> OperationKind {
    OperationKind::Move { from: ShardId(from), to: ShardId(to), partitions: vec![PartitionId(partition)] }
}

fn merge(catalog: &Catalog, from: u32, to: u32) -> OperationKind {
    let partitions = catalog.partitions_of(ShardId(from));
    OperationKind::Merge { from: ShardId(from), to: ShardId(to), partitions }
}

fn open(catalog: &mut Catalog, kind: OperationKind) -> OperationId {
    let id = catalog.apply(&start(kind)).unwrap().operation.unwrap();
    assert_eq!(catalog.check(), []);
    id
}

/// Commit and end it, as its executor does.
fn end(catalog: &mut Catalog, operation: OperationId) {
    let removed = match catalog.operations[&operation].kind {
        OperationKind::Merge { from, .. } => Some(from),
        OperationKind::Split { to, .. } => {
            catalog.apply(&Command::ActivateShard { shard: to, at: 7 }).unwrap();
            None
        }
        _ => None,
    };
    catalog.apply(&Command::CommitOperation { operation, epoch: 1, at: 7 }).unwrap();
    assert_eq!(catalog.check(), []);
    if let Some(shard) = removed {
        catalog.apply(&Command::RemoveShard { shard, at: 7 }).unwrap();
    }
    let (phase, message) = (Phase::Successful, String::new());
    catalog.apply(&Command::FinishOperation { operation, phase, message, epoch: 1, at: 8 }).unwrap();
    assert_eq!(catalog.check(), []);
}

fn refused(catalog: &mut Catalog, command: &Command) -> String {
    let before = catalog.clone();
    let error = catalog.apply(command).unwrap_err();
    assert!(matches!(error, CommandError::Busy { .. }), "trying again later is right: {error}");
    assert_eq!(*catalog, before);
    error.to_string()
}

/// Sixteen partitions on four shards, four each.
#[test]
fn splits_merges_and_moves_of_different_shards_begin_beside_each_other_and_end_in_any_order() {
    let mut catalog = founded(5, 4);
    let first = open(&mut catalog, split(1, 5, 0..2));
    let second = open(&mut catalog, split(2, 6, 4..6));
    let leaves = merge(&catalog, 4, 3);
    let last = open(&mut catalog, leaves);
    // A schema change waits in the journal, as ever.
    open(&mut catalog, create("t", by_id()));
    catalog.apply(&begin(first)).unwrap();
    catalog.apply(&begin(second)).unwrap();
    assert_eq!(refused(&mut catalog, &begin(last)), "op-1 is still moving partitions", "there are enough");
    end(&mut catalog, second);
    catalog.apply(&begin(last)).unwrap();
    end(&mut catalog, last);
    end(&mut catalog, first);
    let sizes = [1, 2, 3, 4, 5, 6].map(|shard| catalog.partitions_of(ShardId(shard)).len());
    assert_eq!(sizes, [2, 2, 8, 0, 2, 2]);
}

#[test]
fn what_one_operation_names_no_other_one_changes() {
    let mut catalog = founded(5, 4);
    open(&mut catalog, split(1, 5, 0..2));
    let busy = refused(&mut catalog, &start(shift(1, 2, 1)));
    assert_eq!(busy, "op-1 is still moving partition 1; wait for it to end, or cancel it");
    // Before it is active nobody names it anyway; afterwards it may still be removed.
    catalog.apply(&Command::ActivateShard { shard: ShardId(5), at: 6 }).unwrap();
    let busy = refused(&mut catalog, &start(shift(2, 5, 4)));
    assert_eq!(busy, "op-1 is still making shard-5; wait for it to end, or cancel it");
    let leaves = merge(&catalog, 4, 3);
    open(&mut catalog, leaves.clone());
    for other in [shift(2, 4, 4), shift(4, 2, 13), merge(&catalog, 2, 4), split(4, 6, 12..13)] {
        let busy = refused(&mut catalog, &start(other));
        assert_eq!(busy, "op-2 is still taking shard-4 down; wait for it to end, or cancel it");
    }
    let receives = merge(&catalog, 3, 2);
    let busy = refused(&mut catalog, &start(receives));
    assert_eq!(busy, "op-2 is still moving partitions of shard-3; wait for it to end, or cancel it");
    // A shard that gives, or gets, may have more before it.
    open(&mut catalog, shift(1, 2, 2));
    open(&mut catalog, shift(3, 2, 8));
    let left = catalog.apply(&start(split(1, 6, 3..4))).unwrap_err();
    assert_eq!(left.to_string(), "a split leaves shard-1 at least one partition", "beside what others take");
}

#[test]
fn an_urgent_split_begins_before_the_moves_of_a_rebalance_that_have_not() {
    let mut catalog = founded(5, 4);
    catalog.apply(&moves(&[(2, 0), (3, 1)])).unwrap();
    let queued: Vec<OperationId> = catalog.open_moves().map(|open| open.id).collect();
    let urgent = open(&mut catalog, split(1, 5, 2..3));
    catalog.apply(&begin(urgent)).unwrap();
    for id in &queued {
        assert_eq!(refused(&mut catalog, &begin(*id)), "op-3 is still moving partitions");
    }
    end(&mut catalog, urgent);
    for id in queued {
        catalog.apply(&begin(id)).unwrap();
        end(&mut catalog, id);
    }
    assert_eq!(catalog.partitions_of(ShardId(1)), [PartitionId(3)]);
}

/// Several moves from shard 1 to others, one partition each.
pub fn moves(targets: &[(u32, u32)]) -> Command {
    let shift = |(to, partition): &(u32, u32)| OperationKind::Move {
        from: ShardId(1),
        to: ShardId(*to),
        partitions: vec![PartitionId(*partition)],
    };
    let cause = Cause::Request("test".to_owned());
    Command::StartMoves { moves: targets.iter().map(shift).collect(), cause, reason: "even".to_owned(), at: 5 }
}

#[test]
fn moves_that_are_asked_for_at_once_are_all_there_or_none_and_no_shard_has_a_part_in_two() {
    let mut catalog = founded(3, 3);
    let before = catalog.clone();
    for (wrong, why) in [
        (moves(&[(2, 0), (3, 0)]), "partition 0 can't be moved twice at once"),
        (moves(&[(2, 0), (3, 15)]), "partition 15 is not owned by shard-1"),
        (moves(&[(2, 0), (9, 1)]), "shard-9 does not exist"),
        (moves(&[(2, 0), (1, 1)]), "a move changes the shard"),
    ] {
        assert_eq!(catalog.apply(&wrong).unwrap_err().to_string(), why);
        assert_eq!(catalog, before);
    }
    let first = catalog.apply(&moves(&[(2, 0), (3, 1), (2, 2)])).unwrap().operation.unwrap();
    assert_eq!(catalog.check(), []);
    let ids: Vec<_> = catalog.open_operations().map(|open| open.id).collect();
    assert_eq!(ids, [first, OperationId(first.0 + 1), OperationId(first.0 + 2)]);
    let busy = catalog.apply(&moves(&[(2, 3)])).unwrap_err();
    assert!(
        busy.to_string().starts_with("op-1 is still moving partitions"),
        "a rebalance is worked out over all: {busy}"
    );
    // In any order; all of them begin at shard 1, so one at a time.
    catalog.apply(&begin(ids[1])).unwrap();
    let busy = catalog.apply(&begin(ids[0])).unwrap_err();
    assert_eq!(busy.to_string(), "op-2 is still moving partitions");
    catalog.apply(&begin(ids[1])).unwrap();
    catalog.apply(&Command::CommitOperation { operation: ids[1], epoch: 1, at: 7 }).unwrap();
    let finish = |operation, phase| {
        let message = String::new();
        Command::FinishOperation { operation, phase, message, epoch: 1, at: 9 }
    };
    catalog.apply(&finish(ids[1], Phase::Successful)).unwrap();
    catalog.apply(&Command::CancelOperation { operation: ids[0], at: 8 }).unwrap();
    catalog.apply(&finish(ids[0], Phase::Skipped)).unwrap();
    catalog.apply(&begin(ids[2])).unwrap();
    assert_eq!(catalog.check(), []);
    let [first, second, third] = [0, 1, 2].map(|partition| catalog.owner(PartitionId(partition)).unwrap());
    assert_eq!((first, second, third), (ShardId(1), ShardId(3), ShardId(1)));
}

#[test]
fn two_moves_of_different_shards_may_begin_and_end_in_any_order() {
    let mut catalog = founded(7, 7);
    let shift = |from: u32| OperationKind::Move {
        from: ShardId(from),
        to: ShardId(from + 1),
        partitions: catalog.partitions_of(ShardId(from)),
    };
    let (moves, cause) = ([1, 3, 5].map(shift).to_vec(), Cause::Request("test".to_owned()));
    let start = Command::StartMoves { moves, cause, reason: "even".to_owned(), at: 5 };
    let first = catalog.apply(&start).unwrap().operation.unwrap().0;
    let ids = [first, first + 1, first + 2].map(OperationId);
    catalog.apply(&begin(ids[0])).unwrap();
    catalog.apply(&begin(ids[2])).unwrap();
    let busy = catalog.apply(&begin(ids[1])).unwrap_err();
    assert_eq!(busy.to_string(), "op-1 is still moving partitions", "there are enough");
    for id in [ids[2], ids[0]] {
        catalog.apply(&Command::CommitOperation { operation: id, epoch: 1, at: 7 }).unwrap();
        let (phase, message) = (Phase::Successful, String::new());
        catalog.apply(&Command::FinishOperation { operation: id, phase, message, epoch: 1, at: 8 }).unwrap();
        assert_eq!(catalog.check(), []);
    }
    catalog.apply(&begin(ids[1])).unwrap();
    let empty = |shard| catalog.partitions_of(ShardId(shard)).is_empty();
    assert_eq!([1, 3, 5].map(empty), [true, false, true]);
}

#[test]
fn nothing_comes_to_the_shard_of_a_split_that_was_given_up_and_waits() {
    let mut catalog = founded(5, 3);
    let lost = open(&mut catalog, split(2, 4, 6..8));
    catalog.apply(&begin(lost)).unwrap();
    catalog.apply(&Command::ActivateShard { shard: ShardId(4), at: 6 }).unwrap();
    let (message, code) = ("lost".to_owned(), None);
    catalog.apply(&Command::GiveUpOperation { operation: lost, message, code, epoch: 1, at: 6 }).unwrap();
    let shards = vec![ShardId(2)];
    catalog.apply(&Command::AwaitShards { operation: lost, shards, epoch: 1, at: 6 }).unwrap();
    let busy = refused(&mut catalog, &start(shift(3, 4, 12)));
    assert_eq!(busy, "op-1 waits for shard-2 and comes first on shard-4, which this needs too");
}
