//! Transactions over several shards, as one shard applies them: prepared, then decided.

mod common;

use common::*;
use pleat_cluster::{KeyType, PartitionId, Planned, ShardId, TableKind, TxnId, Value};
use pleat_engine::*;

const ONE: TxnId = TxnId(1);
const TWO: TxnId = TxnId(2);

/// Everything that could differ between two runs of a statement.
const DICE: &str = "CREATE TABLE dice(k INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT DEFAULT CURRENT_TIMESTAMP, r DEFAULT (random()), \
                    b DEFAULT (randomblob(8)), changed DEFAULT (changes()), total DEFAULT (total_changes()), \
                    last DEFAULT (last_insert_rowid()))";
const ROLL: &str = "INSERT INTO dice DEFAULT VALUES RETURNING *";

fn dice() -> Replica {
    let mut replica = Replica::new();
    replica.own(0..PARTITIONS);
    replica.create(DICE, "dice", sharded("k", KeyType::Integer));
    replica
}

fn prepare_keyed(txn: TxnId, statements: &[&str], base: Option<u64>, key: Option<&str>) -> Action {
    Action::Prepare {
        txn,
        began: 5,
        participants: vec![ShardId(1), ShardId(2)],
        idempotency: key.map(|key| Idempotency { key: key.into(), fingerprint: 1, ttl_ms: 1 << 40 }),
        units: all_units(),
        statements: statements.iter().map(|sql| Statement::new(*sql, vec![])).collect(),
        base,
    }
}

fn prepare(txn: TxnId, statements: &[&str]) -> Action {
    prepare_keyed(txn, statements, None, None)
}

/// A commit has the transaction's own number.
fn decide(txn: TxnId, commit: bool) -> Action {
    Action::Decide { txn, commit: commit.then_some(txn.0 as u64) }
}

fn prepared(outcome: Outcome) -> Vec<StatementResult> {
    match outcome {
        Outcome::Prepared { results } => results,
        other => panic!("{other:?}"),
    }
}

fn done(outcome: Outcome) -> Vec<StatementResult> {
    match outcome {
        Outcome::Done { results } => results,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_prepared_shows_when_it_is_committed_and_is_the_same_then() {
    let mut replica = dice();
    replica.ok(ROLL);
    let promised = prepared(replica.apply(prepare(ONE, &[ROLL, ROLL, "UPDATE dice SET r = random() RETURNING r"])));
    assert_eq!(replica.query("SELECT count(*) FROM dice"), [[Value::Integer(1)]]);
    assert_eq!(replica.readers.deciding(), Some(ONE));
    let doubt = replica.readers.in_doubt().unwrap();
    assert_eq!((doubt[0].txn, doubt[0].began, doubt[0].participants.len()), (ONE, 5, 2));
    // Time goes on, and so do entries that change nothing.
    replica.clock += 3_600_000;
    replica.apply(Action::Digest);
    assert_eq!(done(replica.apply(decide(ONE, true))), promised);
    assert_eq!(replica.query("SELECT k, at, r, b FROM dice WHERE k = 2")[0][..2], promised[0].rows[0][..2]);
    assert_eq!(replica.query("SELECT count(*) FROM dice"), [[Value::Integer(3)]]);
    assert_eq!(replica.readers.deciding(), None);
    // Once more it does nothing, and neither does one that nobody knows.
    for txn in [ONE, TWO] {
        let before = replica.dump();
        assert_eq!(done(replica.apply(decide(txn, true))), []);
        assert_eq!(done(replica.apply(decide(txn, false))), []);
        assert_eq!(replica.dump(), before);
    }
}

#[test]
fn an_abort_leaves_nothing_and_neither_does_a_failure() {
    let mut replica = Replica::with_items();
    replica.ok("INSERT INTO items(k, n) VALUES (1, 1)");
    let (before, version) = (replica.dump(), seen(&replica).version);
    prepared(replica.apply(prepare(ONE, &["INSERT INTO items(k, n) VALUES (2, 2)", "DELETE FROM items WHERE k = 1"])));
    assert_ne!(replica.dump(), before);
    replica.apply(decide(ONE, false));
    assert_eq!(replica.dump(), before);
    let failed = replica.apply(prepare(TWO, &["DELETE FROM items", "INSERT INTO items(k, n) VALUES (NULL, 1)"]));
    let Outcome::Failed(failure) = failed else { panic!("{failed:?}") };
    assert_eq!((failure.statement, failure.code.as_str()), (1, "23502"));
    assert_eq!((replica.dump(), replica.readers.deciding()), (before, None));
    let rolls_all_back = "INSERT OR ROLLBACK INTO items(k, n) VALUES (1, 1)";
    assert!(matches!(replica.apply(prepare(TWO, &[rolls_all_back])), Outcome::Failed(_)));
    assert_eq!(seen(&replica).version, version, "nothing of this changed the content");
    replica.ok("INSERT INTO items(k, n) VALUES (3, 3)");
}

#[test]
fn meanwhile_nothing_else_changes_the_shard() {
    let mut replica = Replica::with_items();
    let keyed = |sql: &str| Action::Write {
        idempotency: Some(Idempotency { key: "c/known".into(), fingerprint: 1, ttl_ms: 1 << 40 }),
        units: all_units(),
        statements: vec![Statement::new(sql, vec![])],
        base: None,
    };
    done(replica.apply(keyed("INSERT INTO items(k, n) VALUES (1, 1)")));
    replica.moved(9, MoveAction::Claim);
    prepared(replica.apply(prepare(ONE, &["UPDATE items SET name = 'one'"])));
    let table = validate_ddl(&Default::default(), &[ITEMS.to_owned()], "items", &sharded("k", KeyType::Integer));
    let index = "CREATE INDEX i ON items(name)";
    let step = |action| Action::Move(MoveStep { operation: 9, epoch: 1, action });
    let partitions = vec![PartitionId(0)];
    let refused = [
        write("DELETE FROM items", vec![]),
        prepare(TWO, &["DELETE FROM items"]),
        Action::Bulk {
            table: "items".into(),
            columns: vec!["k".into(), "n".into()],
            parts: vec![BulkPart { idempotency: None, units: all_units(), rows: vec![(0, vec![7.into(), 7.into()])] }],
        },
        ddl(77, &[index], table.unwrap().unwrap()),
        Action::ReferenceWrite { idempotency: None, statements: vec![] },
        Action::ReferenceApply(ReferenceEntry { seq: 1, now_ms: 1, seed: 1, statements: vec![] }),
        step(MoveAction::CaptureStart { partitions: partitions.clone() }),
        step(MoveAction::ImportStart { partitions }),
        step(MoveAction::Fence),
    ];
    let before = replica.dump();
    for action in refused {
        let outcome = replica.apply(action.clone());
        let Outcome::Refused(refusal) = outcome else { panic!("{action:?}: {outcome:?}") };
        assert_eq!(refusal, Refusal::Prepared { txn: ONE });
        assert!(refusal.is_retryable());
        assert_eq!((refusal.code(), replica.dump()), ("40001", before.clone()));
    }
    // What is known already is answered, and a move may have a new leader.
    assert!(matches!(replica.apply(keyed("INSERT INTO items(k, n) VALUES (1, 1)")), Outcome::Replayed { .. }));
    assert!(matches!(replica.step(9, 2, MoveAction::Claim), Outcome::Moved(_)));
    replica.apply(decide(ONE, true));
    assert_eq!(replica.query("SELECT name FROM items"), [[Value::from("one")]]);
    replica.ok("DELETE FROM items");
}

#[test]
fn preparing_again_gives_the_same_answer_and_after_the_commit_does_nothing() {
    let mut replica = dice();
    let first = prepared(replica.apply(prepare(ONE, &[ROLL])));
    assert_eq!(prepared(replica.apply(prepare(ONE, &[ROLL]))), first);
    assert_eq!(done(replica.apply(decide(ONE, true))), first);
    assert!(matches!(replica.apply(prepare(ONE, &[ROLL])), Outcome::Replayed { .. }));
    assert_eq!(replica.readers.deciding(), None);
    assert_eq!(replica.query("SELECT count(*) FROM dice"), [[Value::Integer(1)]]);
}

#[test]
fn a_key_is_remembered_with_the_commit() {
    let mut replica = dice();
    let asked = |txn| prepare_keyed(txn, &[ROLL], None, Some("c/once"));
    prepared(replica.apply(asked(ONE)));
    replica.apply(decide(ONE, false));
    let results = prepared(replica.apply(asked(TWO)));
    replica.apply(decide(TWO, true));
    let again = replica.apply(asked(TxnId(3)));
    assert_eq!(again, Outcome::Replayed { results, rows_kept: true });
    assert_eq!(replica.readers.deciding(), None);
}

#[test]
fn a_base_holds_until_the_content_changes() {
    let mut replica = Replica::with_items();
    let at = |base, sql: &str| Action::Write {
        idempotency: None,
        units: all_units(),
        statements: vec![Statement::new(sql, vec![])],
        base: Some(base),
    };
    let base = seen(&replica).version;
    replica.failed("INSERT INTO items(k) VALUES (1)");
    replica.apply(Action::Digest);
    done(replica.apply(at(base, "INSERT INTO items(k, n) VALUES (1, 1)")));
    let version = seen(&replica).version;
    assert!(version > base);
    let conflict = Outcome::Refused(Refusal::Conflict { base, version });
    assert_eq!(replica.apply(at(base, "DELETE FROM items")), conflict);
    assert_eq!(replica.apply(prepare_keyed(ONE, &[], Some(base), None)), conflict);
    let Outcome::Refused(refusal) = conflict else { unreachable!() };
    assert_eq!((refusal.code(), refusal.is_retryable()), ("40001", false));
    // A shard that was only read is held as it was, and is not changed by the commit.
    prepared(replica.apply(prepare_keyed(ONE, &[], Some(version), None)));
    assert!(matches!(replica.write("DELETE FROM items", vec![]), Outcome::Refused(Refusal::Prepared { .. })));
    replica.apply(decide(ONE, true));
    assert_eq!(seen(&replica).version, version);
}

#[test]
fn a_head_says_how_far_the_shard_has_come_with_each_other() {
    let mut replica = dice();
    let together = |replica: &Replica, shard| seen(replica).newest_with(ShardId(shard));
    replica.apply(prepare(ONE, &[ROLL]));
    assert_eq!(seen(&replica).together, [], "what is only prepared does not show");
    replica.apply(decide(ONE, true));
    assert_eq!((together(&replica, 1), together(&replica, 2), together(&replica, 3)), (1, 1, 0));
    let with_third = |txn| match prepare(txn, &[ROLL]) {
        Action::Prepare { began, idempotency, units, statements, base, .. } => Action::Prepare {
            txn,
            began,
            participants: vec![ShardId(1), ShardId(3)],
            idempotency,
            units,
            statements,
            base,
        },
        other => other,
    };
    replica.apply(with_third(TWO));
    replica.apply(decide(TWO, false));
    assert_eq!((together(&replica, 2), together(&replica, 3)), (1, 0), "an abort is nothing");
    // However many there are with others, and however long it takes.
    for number in 2..1_300_u128 {
        replica.apply(with_third(TxnId(number)));
        replica.apply(decide(TxnId(number), true));
    }
    replica.clock += 601_000;
    replica.apply(with_third(TxnId(2_000)));
    replica.apply(decide(TxnId(2_000), true));
    replica.apply(decide(TxnId(2_000), true));
    assert_eq!((together(&replica, 1), together(&replica, 2), together(&replica, 3)), (2_000, 1, 2_000));
    assert_eq!(seen(&replica).together.len(), 3);
}

#[test]
fn the_filtered_text_runs_while_foreign_rows_are_here() {
    let mut replica = Replica::with_items();
    replica.ok("INSERT INTO items(k, n) VALUES (1, 1)");
    let sql = "UPDATE items SET name = 'all'";
    let filtered = "UPDATE items SET name = 'owned' WHERE pleat_owned(k)";
    let statement = Statement { filtered: Some(filtered.into()), ..Statement::new(sql, vec![]) };
    let action = Action::Write { idempotency: None, units: all_units(), statements: vec![statement], base: None };
    done(replica.apply(action.clone()));
    assert_eq!(replica.query("SELECT name FROM items"), [[Value::from("all")]]);
    // A unit that is handed over leaves its rows for a while.
    let gone = unit_of(1);
    let stays = (2..).find(|key| unit_of(*key) != gone).unwrap();
    replica.ok(&format!("INSERT INTO items(k, n, name) VALUES ({stays}, 1, 'all')"));
    replica.moved(9, MoveAction::CaptureStart { partitions: vec![gone] });
    replica.moved(9, MoveAction::Fence);
    replica.moved(9, MoveAction::Release { ownership: 2 });
    let Action::Write { statements, .. } = action else { unreachable!() };
    let units = all_units().into_iter().filter(|unit| *unit != gone).collect();
    done(replica.apply(Action::Write { idempotency: None, units, statements, base: None }));
    let names = replica.query("SELECT k, name FROM items ORDER BY k");
    assert_eq!(names, [[1.into(), Value::from("all")], [stays.into(), Value::from("owned")]]);
}

/// A log with transactions that stay prepared across everything that can happen to a replica.
fn log() -> Vec<Vec<u8>> {
    let table = validate_ddl(&Default::default(), &[DICE.to_owned()], "dice", &sharded("k", KeyType::Integer))
        .unwrap()
        .unwrap();
    let mut actions = vec![Action::Own { units: all_units(), ownership: 1, layout: 0 }, ddl(1, &[DICE], table)];
    for round in 0..3u32 {
        let txn = TxnId(u128::from(round) + 10);
        let sql = format!("UPDATE dice SET r = random() WHERE k = {round}");
        actions.extend([
            write(ROLL, vec![]),
            prepare_keyed(
                txn,
                &[ROLL, &sql, "DELETE FROM dice WHERE k % 5 = 0 RETURNING *"],
                None,
                Some(&format!("k{round}")),
            ),
            write(ROLL, vec![]),
            prepare(txn, &[ROLL]),
            Action::Digest,
            decide(txn, round % 3 != 1),
            prepare_keyed(txn, &[], Some(u64::from(round)), None),
            decide(txn, false),
        ]);
    }
    (0u64..).zip(actions).map(|(n, action)| entry(action, 1_700_000_000_123 + n * 977, n * 7_919)).collect()
}

fn applied(dir: &std::path::Path, log: &[Vec<u8>], batches: usize) -> (Store, Vec<Vec<u8>>) {
    let (mut store, _) = Store::open(dir, StoreConfig::new(PARTITIONS)).unwrap();
    let from = store.applied().unwrap().try_into().map_or(0, |bytes| u64::from_le_bytes(bytes) as usize);
    let mut outcomes = Vec::new();
    for (number, batch) in log[from..].chunks(batches).enumerate() {
        let batch: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
        let to = (from + number * batches + batch.len()) as u64;
        outcomes.extend(store.apply(&batch, &to.to_le_bytes()).unwrap());
    }
    (store, outcomes)
}

#[test]
fn replicas_agree_however_they_came_to_apply_it() {
    let log = log();
    let whole = tempfile::tempdir().unwrap();
    let (store, outcomes) = applied(whole.path(), &log, 1);
    drop(store);
    let wanted = dump(&whole.path().join(Store::FILE));
    for batches in [2, 7, 100] {
        let other = tempfile::tempdir().unwrap();
        assert_eq!(applied(other.path(), &log, batches).1, outcomes, "in batches of {batches}");
        assert_eq!(dump(&other.path().join(Store::FILE)), wanted);
    }
    for stop in 2..log.len() {
        // Killed: what the files have, the rest of the log.
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (store, mut had) = applied(one.path(), &log[..stop], 3);
        for name in ["shard.db", "shard.db-wal"] {
            std::fs::copy(one.path().join(name), two.path().join(name)).unwrap();
        }
        had.extend(applied(two.path(), &log, 2).1);
        assert_eq!(had, outcomes, "killed after {stop}");
        assert_eq!(dump(&two.path().join(Store::FILE)), wanted, "killed after {stop}");
        // A replica that begins with a snapshot.
        let three = tempfile::tempdir().unwrap();
        let copy = three.path().join("copy");
        store.copier().unwrap()(&copy).unwrap();
        let (mut new, readers) = Store::open(&three.path().join("new"), StoreConfig::new(PARTITIONS)).unwrap();
        new.install(&copy).unwrap();
        let deciding = readers.deciding();
        drop(new);
        let (_, rest) = applied(&three.path().join("new"), &log, 4);
        assert_eq!(rest, outcomes[stop..], "a snapshot after {stop} (prepared: {deciding:?})");
        assert_eq!(dump(&three.path().join("new").join(Store::FILE)), wanted);
    }
}

/// What a transaction wrote to reference tables is one entry of the reference log, on the shards that took part and on one
/// that gets it from there; and it is only accepted under the number that it ran under.
#[test]
fn a_transactions_reference_writes_are_the_next_entry_of_the_log_on_every_shard() {
    let mut shards = [dice(), dice(), dice()];
    for shard in &mut shards {
        shard.create("CREATE TABLE r(id INTEGER PRIMARY KEY, at, x)", "r", TableKind::Reference);
    }
    let stamp = Some(Stamp { now_ms: 77_000, seed: 5, undone: None });
    let insert = Statement::new("INSERT INTO r(at, x) VALUES (CURRENT_TIMESTAMP, random()) RETURNING *", vec![]);
    let insert = Statement { stamp, reference: Some(0), ..insert };
    let run = |shard: &Replica, generation: u64| {
        let local = shard.readers.begin_txn(9, || {}).unwrap();
        let planned = Planned { generation, ..Planned::default() };
        local.write(&all_units(), &[Statement::new(ROLL, vec![])], planned, 1)?;
        // What fails leaves its traces in the connection's counters, on this shard alone.
        assert!(
            local.write(&all_units(), &[Statement::new("INSERT INTO dice(k) VALUES (1)", vec![])], planned, 1).is_err()
        );
        let results = local.write(&[], std::slice::from_ref(&insert), planned, 1)?;
        assert_eq!(local.reference(), Some(1));
        Ok::<_, EngineError>((results, local.finish()?))
    };
    let (results, script) = run(&shards[0], 0).unwrap();
    let of = |txn, Script { base, units, statements }: Script| Action::Prepare {
        txn,
        began: 5,
        participants: vec![ShardId(1), ShardId(2)],
        idempotency: None,
        units,
        statements,
        base: Some(base),
    };
    for shard in &mut shards[..2] {
        let (same, script) = run(shard, 0).unwrap();
        assert_eq!(same, results);
        assert_eq!(prepared(shard.apply(of(ONE, script)))[1..], results);
    }
    assert!(shards[2].query("SELECT * FROM r").is_empty());
    for shard in &mut shards[..2] {
        assert_eq!(done(shard.apply(decide(ONE, true)))[1..], results);
    }
    let log = |shard: &Replica| match shard.readers.move_read(&MoveRead::ReferenceLog { after: 0, limit: 9 }).unwrap() {
        MoveChunk::ReferenceLog { entries, .. } => entries,
        other => panic!("{other:?}"),
    };
    let [entry] = &log(&shards[0])[..] else { panic!("one entry") };
    assert_eq!((entry.seq, entry.statements.len()), (1, 1), "only what was written to reference tables");
    assert_eq!(log(&shards[1]), std::slice::from_ref(entry));
    for _ in 0..2 {
        for shard in &mut shards {
            let outcome = shard.apply(Action::ReferenceApply(entry.clone()));
            assert!(matches!(outcome, Outcome::Reference { seq: 1, .. }), "{outcome:?}");
        }
    }
    let rows = shards.each_ref().map(|shard| shard.query("SELECT * FROM r"));
    assert_eq!((&rows[0], &rows[0]), (&rows[1], &rows[2]));
    assert_eq!(rows[0], results[0].rows);

    // Under another number, which its base would tell as well.
    let refused = shards[0].apply(of(TWO, Script { base: seen(&shards[0]).version, ..script }));
    assert_eq!(refused, Outcome::Refused(Refusal::Gap { expected: 2, given: 1 }));
    // By a catalog that lacks a shard: what runs then, and what ran before.
    let local = shards[0].readers.begin_txn(9, || {}).unwrap();
    local.write(&[], std::slice::from_ref(&insert), Planned::default(), 1).unwrap();
    let script = local.finish().unwrap();
    for _ in 0..2 {
        assert_eq!(done(shards[0].apply(Action::ReferenceMembers { generation: 8 })), []);
    }
    assert!(matches!(shards[0].apply(of(TWO, script)), Outcome::Refused(Refusal::Conflict { .. })));
    let local = shards[0].readers.begin_txn(9, || {}).unwrap();
    let old = local.write(&[], std::slice::from_ref(&insert), Planned { generation: 7, ..Planned::default() }, 1);
    assert_eq!(old, Err(EngineError::Refused(Refusal::Generation { ownership: 8, routed: 7 })));
    assert!(local.write(&[], &[insert], Planned { generation: 8, ..Planned::default() }, 1).is_ok());
}
