//! The ledger, as a value: what was decided stays decided, and what is forgotten can't be misunderstood.

use pleat_cluster::{Ledger, LedgerCommand, LedgerError, LedgerReply, ShardId, TableId, TxnId};

fn decide(ledger: &mut Ledger, txn: u128, commit: bool, began: u64, at: u64) -> bool {
    let participants = vec![ShardId(1), ShardId(2)];
    match ledger.apply(&LedgerCommand::Decide { txn: TxnId(txn), commit, participants, began, at }) {
        Ok(LedgerReply::Decided { commit }) => commit.is_some(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_word_counts() {
    let mut ledger = Ledger::default();
    assert!(decide(&mut ledger, 1, true, 1_000, 1_000));
    assert!(decide(&mut ledger, 1, false, 1_000, 9_000_000), "an abort can't undo a commit, however late it is");
    assert!(!decide(&mut ledger, 2, false, 9_000_000, 9_000_000));
    assert!(!decide(&mut ledger, 2, true, 9_000_000, 9_000_000));
    let commits: Vec<_> = ledger.commits().map(|(txn, _)| txn).collect();
    assert_eq!(commits, [TxnId(1)]);
}

#[test]
fn commits_are_numbered_in_the_order_of_their_decisions() {
    let mut ledger = Ledger::default();
    let mut number = |txn: u128, commit| {
        let participants = vec![ShardId(1), ShardId(2)];
        match ledger.apply(&LedgerCommand::Decide { txn: TxnId(txn), commit, participants, began: 1, at: 1 }) {
            Ok(LedgerReply::Decided { commit }) => commit,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((number(9, true), number(8, false), number(7, true)), (Some(1), None, Some(2)));
    assert_eq!((number(9, false), number(8, true), number(9, true)), (Some(1), None, Some(1)), "once and for all");
    ledger.apply(&LedgerCommand::Forget { txns: vec![TxnId(9), TxnId(7)] }).unwrap();
    assert!(decide(&mut ledger, 6, true, 1, 1));
    assert_eq!(ledger.decided(TxnId(6)).unwrap().commit, Some(3), "a number that was forgotten is not given again");
}

#[test]
fn a_commit_that_comes_late_is_an_abort() {
    let mut ledger = Ledger::default();
    assert!(decide(&mut ledger, 1, true, 1_000, 61_000));
    assert!(!decide(&mut ledger, 2, true, 1_000, 61_001));
    // A coordinator whose clock stands still is judged by the time of the others.
    assert!(!decide(&mut ledger, 3, true, 1_000, 1_000));
    assert_eq!(ledger.now(), 61_001);
}

#[test]
fn an_abort_is_forgotten_only_when_no_commit_can_follow() {
    for began in [1_000, 500_000] {
        // Aborted at 100,000, by a node whose clock is behind or ahead of the coordinator's.
        let mut ledger = Ledger::default();
        decide(&mut ledger, 1, false, began, 100_000);
        for at in (100_000..900_000).step_by(997) {
            decide(&mut ledger, u128::from(at), false, at, at);
            let mut late = ledger.clone();
            assert!(!decide(&mut late, 1, true, began, at), "began {began}, at {at}");
        }
        assert_eq!(ledger.decided(TxnId(1)), None, "it is forgotten in the end");
    }
}

#[test]
fn only_commits_are_forgotten_on_request() {
    let mut ledger = Ledger::default();
    decide(&mut ledger, 1, true, 1, 1);
    decide(&mut ledger, 2, false, 1, 1);
    let forget = LedgerCommand::Forget { txns: vec![TxnId(1), TxnId(2), TxnId(3)] };
    assert_eq!(ledger.apply(&forget), Ok(LedgerReply::Forgotten));
    assert_eq!(ledger.decided(TxnId(1)), None);
    assert!(!decide(&mut ledger, 2, true, 1, 2), "its coordinator may still say commit");
}

#[test]
fn ids_are_given_once_and_above_those_that_are_taken() {
    let mut ledger = Ledger::default();
    let mut give =
        |table, count, at_least| ledger.apply(&LedgerCommand::AllocateIds { table: TableId(table), count, at_least });
    let first = |first| Ok(LedgerReply::Ids { first });
    assert_eq!(give(1, 10, None), first(1));
    assert_eq!(give(1, 1, None), first(11));
    assert_eq!(give(2, 1, None), first(1), "each table counts for itself");
    assert_eq!(give(1, 5, Some(100)), first(101));
    assert_eq!(give(1, 5, Some(7)), first(106), "they never go back");
    assert_eq!(give(1, 0, Some(200)), first(201));
    assert_eq!(give(1, 1, Some(-5)), first(201));
    assert_eq!(give(1, 1, Some(i64::MAX)), Err(LedgerError::NoMoreIds { last: i64::MAX }));
    assert_eq!(give(1, 1, None), first(202), "a refusal changes nothing");
    assert!(matches!(give(1, u32::MAX, None), Err(LedgerError::BlockTooLarge { .. })));
}
