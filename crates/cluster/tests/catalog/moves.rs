//! Moves that are asked for at once, and which of them may go side by side.

use pleat_cluster::*;

use crate::{founded, split, start};

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
    for other in [moves(&[(2, 3)]), start(split(1, 4, 3..4))] {
        let busy = catalog.apply(&other).unwrap_err();
        assert!(busy.to_string().starts_with("op-1 is still moving partitions"), "{busy}");
    }
    let begin = |operation| {
        let (step, detail) = ("capture".to_owned(), String::new());
        Command::JournalStep { operation, step, ended: false, detail, epoch: 1, at: 6 }
    };
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
    let begin = |operation| {
        let (step, detail) = ("capture".to_owned(), String::new());
        Command::JournalStep { operation, step, ended: false, detail, epoch: 1, at: 6 }
    };
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
