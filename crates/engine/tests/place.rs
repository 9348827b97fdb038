//! A table gets another placement: what its fence refuses, and whose word a remembered write is. What happens to rows is
//! tested with the control loop.

mod common;

use common::*;
use pleat_cluster::{KeyType, Table, TxnId};
use pleat_engine::*;

/// From `k` to `n`, on a shard that gives rows away.
fn start() -> MoveAction {
    let table = validate_ddl(&Default::default(), &[ITEMS.to_owned()], "items", &sharded("n", KeyType::Integer));
    let table: Table = table.unwrap().unwrap();
    MoveAction::PlaceStart {
        place: Box::new(TablePlace {
            table,
            before: Holding::Key("k".to_owned()),
            after: Holding::Key("n".to_owned()),
            by_primary_key: true,
            captures: true,
            reference: false,
            renumber: false,
        }),
    }
}

fn end(shard: &mut Replica, operation: u64) {
    shard.moved(operation, MoveAction::PlaceAbort);
    shard.moved(operation, MoveAction::CleanUpDone);
}

fn keyed(key: &str, sql: &str) -> Action {
    Action::Write {
        idempotency: Some(Idempotency { key: key.into(), fingerprint: 1, ttl_ms: 1 << 40 }),
        units: all_units(),
        statements: vec![Statement::new(sql, vec![])],
        base: None,
    }
}

/// Its repetition after the switch may find a row that came in between, on a shard that nobody told of it.
#[test]
fn the_fence_refuses_statements_that_find_no_row() {
    let mut shard = Replica::with_items();
    shard.create("CREATE TABLE other(k INTEGER PRIMARY KEY, n)", "other", sharded("k", KeyType::Integer));
    let update = keyed("c/1", "UPDATE items SET name = 'x' WHERE k = 77");
    let bulk = Action::Bulk {
        table: "ITEMS".into(),
        columns: vec!["k".into(), "n".into()],
        parts: vec![BulkPart { idempotency: None, units: all_units(), rows: vec![] }],
    };
    let prepare = Action::Prepare {
        txn: TxnId(1),
        began: 0,
        participants: vec![],
        idempotency: None,
        units: all_units(),
        statements: vec![Statement::new("DELETE FROM items WHERE k = 77", vec![])],
        base: None,
    };
    shard.moved(1, start());
    shard.moved(1, MoveAction::PlaceFence);
    for write in [&update, &bulk, &prepare] {
        let outcome = shard.apply(write.clone());
        assert!(matches!(outcome, Outcome::Refused(Refusal::Placing { .. })), "{outcome:?}");
    }
    shard.ok("INSERT INTO other VALUES (1, (SELECT count(*) FROM items))");
    shard.moved(1, MoveAction::PlaceUnfence);
    for write in [update, bulk] {
        let outcome = shard.apply(write);
        assert!(matches!(outcome, Outcome::Done { .. } | Outcome::Bulk { .. }), "{outcome:?}");
    }
}

/// The keys that a shard tells the others from the beginning of an attempt.
fn told(shard: &mut Replica, operation: u64) -> Vec<IdempotencyRow> {
    shard.moved(operation, start());
    let ask = MoveRead::Delta { operation, after: Position::default(), rows_max: 1_000, bytes_max: 1 << 20 };
    let MoveChunk::Delta(delta) = shard.readers.move_read(&ask).unwrap() else { panic!() };
    delta.idempotency
}

/// An attempt dies when some shards have heard of a key, the shard itself among them; and then a partition moves to it from
/// one that has.
#[test]
fn the_shard_that_did_a_write_tells_the_others_of_it_in_each_attempt() {
    let (mut doer, mut hearer) = (Replica::with_items(), Replica::with_items());
    assert!(matches!(doer.apply(keyed("c/1", "INSERT INTO items(k, n) VALUES (1, 1)")), Outcome::Done { .. }));
    let keys = told(&mut doer, 1);
    assert_eq!(keys.len(), 1);
    hearer.moved(1, start());
    for shard in [&mut doer, &mut hearer] {
        shard
            .moved(1, MoveAction::Import { changes: vec![], idempotency: keys.clone(), position: None, copied: false });
        end(shard, 1);
    }
    assert_eq!(told(&mut hearer, 2), [], "the others' word is theirs to give");
    assert_eq!(told(&mut doer, 2).len(), 1);
    end(&mut doer, 2);
    end(&mut hearer, 2);

    hearer.moved(3, MoveAction::CaptureStart { partitions: vec![unit_of(5)] });
    let ask = MoveRead::Delta { operation: 3, after: Position::default(), rows_max: 1_000, bytes_max: 1 << 20 };
    let MoveChunk::Delta(delta) = hearer.readers.move_read(&ask).unwrap() else { panic!() };
    assert_eq!(delta.idempotency.len(), 1, "its row may be in any partition");
    let import = MoveAction::Import { changes: vec![], idempotency: delta.idempotency, position: None, copied: false };
    doer.moved(3, import);
    doer.moved(3, MoveAction::ImportAbort);
    assert_eq!(told(&mut doer, 4).len(), 1);
    let again = doer.apply(keyed("c/1", "INSERT INTO items(k, n) VALUES (1, 1)"));
    assert!(matches!(again, Outcome::Replayed { .. }), "{again:?}");
}
