//! Interactive transactions while they are open: what they see, what becomes of them, and that what they did happens
//! again exactly when it is committed.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use pleat_cluster::{KeyType, Value};
use pleat_engine::*;

const NOW: u64 = 1_800_000_000_000;

fn begin(replica: &Replica) -> LocalTxn {
    replica.readers.begin_txn(42, || {}).unwrap()
}

fn run(txn: &LocalTxn, sql: &str) -> Vec<StatementResult> {
    txn.write(&all_units(), &[Statement::new(sql, vec![])], PLANNED, NOW).unwrap()
}

fn fails(txn: &LocalTxn, sql: &str) -> String {
    txn.write(&all_units(), &[Statement::new(sql, vec![])], PLANNED, NOW).unwrap_err().code().to_owned()
}

fn sees(txn: &LocalTxn, sql: &str) -> Vec<Vec<Value>> {
    let mut rows = Vec::new();
    txn.read(&request(sql), &mut |chunk| {
        rows.extend(chunk.rows);
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    rows
}

fn commit(replica: &mut Replica, script: Script) -> Outcome {
    let Script { base, units, statements } = script;
    replica.apply(Action::Write { idempotency: None, units, statements, base: Some(base) })
}

#[test]
fn it_sees_its_own_writes_and_nobody_else_does() {
    let mut replica = Replica::with_items();
    replica.ok("INSERT INTO items(k, n) VALUES (1, 1)");
    let txn = begin(&replica);
    run(&txn, "INSERT INTO items(k, n) VALUES (2, 2)");
    assert_eq!(sees(&txn, "SELECT count(*) FROM items"), [[Value::Integer(2)]]);
    assert_eq!(replica.query("SELECT count(*) FROM items"), [[Value::Integer(1)]]);
    let script = txn.finish().unwrap();
    assert!(txn.is_over());
    assert!(matches!(commit(&mut replica, script), Outcome::Done { .. }));
    assert_eq!(replica.query("SELECT count(*) FROM items"), [[Value::Integer(2)]]);
    let txn = begin(&replica);
    run(&txn, "DELETE FROM items");
    txn.roll_back();
    assert_eq!(txn.write(&all_units(), &[], PLANNED, NOW).unwrap_err(), EngineError::TxnConflict);
    assert_eq!(replica.query("SELECT count(*) FROM items"), [[Value::Integer(2)]]);
}

#[test]
fn what_it_did_happens_again_exactly_whatever_was_undone_in_between() {
    let dice = "CREATE TABLE dice(k INTEGER PRIMARY KEY AUTOINCREMENT, at DEFAULT (strftime('%s %f', 'now')), r DEFAULT (random()), \
                b DEFAULT (randomblob(8)), changed DEFAULT (changes()), total DEFAULT (total_changes()), \
                last DEFAULT (last_insert_rowid()), u INTEGER UNIQUE)";
    let roll = "INSERT INTO dice(u) VALUES (abs(random())), (abs(random()))";
    let mut replica = Replica::new();
    replica.own(0..PARTITIONS);
    replica.create(dice, "dice", sharded("k", KeyType::Integer));
    replica.ok("INSERT INTO dice(u) VALUES (1), (2), (3)");
    let txn = begin(&replica);
    let mut promised = Vec::new();
    promised.extend(run(&txn, &format!("{roll} RETURNING *")));
    sees(&txn, "SELECT random(), changes()");
    assert_eq!(fails(&txn, "INSERT INTO dice(u) SELECT u + 1000 FROM dice UNION ALL SELECT 1"), "23505");
    promised.extend(run(&txn, &format!("{roll} RETURNING *")));
    txn.savepoint("a").unwrap();
    promised.extend(run(&txn, "UPDATE dice SET r = random() WHERE u < 3 RETURNING *"));
    txn.savepoint("inner \" name").unwrap();
    run(&txn, roll);
    txn.savepoint("A").unwrap();
    run(&txn, roll);
    txn.rollback_to("a").unwrap();
    run(&txn, "DELETE FROM dice");
    txn.release("a").unwrap();
    txn.rollback_to("INNER \" NAME").unwrap();
    promised.extend(run(&txn, &format!("{roll} RETURNING *")));
    promised.extend(run(&txn, "INSERT INTO dice(u) VALUES (last_insert_rowid() * 100 + changes()) RETURNING *"));
    assert_eq!(txn.rollback_to("nobody").unwrap_err().code(), "3B001");
    let two = [Statement::new(roll, vec![]), Statement::new("INSERT INTO dice(u) VALUES (1)", vec![])];
    assert_eq!(txn.write(&all_units(), &two, PLANNED, NOW).unwrap_err().code(), "23505");
    promised.extend(run(&txn, "INSERT INTO dice DEFAULT VALUES RETURNING *"));
    let content = sees(&txn, "SELECT * FROM dice ORDER BY k");
    let script = txn.finish().unwrap();
    assert_eq!(script.statements.len(), promised.len());
    replica.clock += 3_600_000;
    let Outcome::Done { results } = commit(&mut replica, script) else { panic!() };
    assert_eq!(results, promised);
    assert_eq!(replica.query("SELECT * FROM dice ORDER BY k"), content);
}

#[test]
fn what_it_has_read_must_not_have_changed() {
    let mut replica = Replica::with_items();
    let txn = begin(&replica);
    assert_eq!(sees(&txn, "SELECT count(*) FROM items"), [[Value::Integer(0)]]);
    replica.ok("INSERT INTO items(k, n) VALUES (1, 1)");
    assert_eq!(sees(&txn, "SELECT count(*) FROM items"), [[Value::Integer(0)]], "its snapshot stays");
    assert_eq!(fails(&txn, "INSERT INTO items(k, n) VALUES (2, 2)"), "40001");
    assert!(txn.is_over());
    let txn = begin(&replica);
    run(&txn, "INSERT INTO items(k, n) VALUES (2, 2)");
    let script = txn.finish().unwrap();
    replica.ok("INSERT INTO items(k, n) VALUES (3, 3)");
    assert!(matches!(commit(&mut replica, script), Outcome::Refused(Refusal::Conflict { .. })));
    replica.apply(Action::Prepare {
        txn: pleat_cluster::TxnId(1),
        began: 1,
        participants: vec![],
        idempotency: None,
        units: vec![],
        statements: vec![],
        base: None,
    });
    assert_eq!(fails(&begin(&replica), "DELETE FROM items"), "40001", "while another waits for its decision");
}

#[test]
fn applying_ends_whoever_has_the_lock() {
    let mut replica = Replica::with_items();
    // Idle.
    let told = Arc::new(AtomicBool::new(false));
    let tell = told.clone();
    let txn = replica.readers.begin_txn(1, move || tell.store(true, Ordering::SeqCst)).unwrap();
    run(&txn, "INSERT INTO items(k, n) VALUES (1, 1)");
    let reader = begin(&replica);
    assert_eq!(sees(&reader, "SELECT count(*) FROM items"), [[Value::Integer(0)]]);
    replica.ok("INSERT INTO items(k, n) VALUES (1, 1)");
    assert!(told.load(Ordering::SeqCst) && txn.is_over());
    assert_eq!(fails(&txn, "INSERT INTO items(k, n) VALUES (2, 2)"), "40001");
    assert!(!reader.is_over(), "who only reads is left alone");
    // In the middle of a statement that would run for minutes, and of a read whose receiver takes nothing.
    let forever = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c";
    for read in [false, true] {
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = stopped.clone();
        let txn = replica.readers.begin_txn(1, move || stop.store(true, Ordering::SeqCst)).unwrap();
        run(&txn, "UPDATE items SET name = 'mine'");
        let begun = Arc::new(AtomicBool::new(false));
        let working = std::thread::spawn({
            let (txn, begun) = (txn.clone(), begun.clone());
            move || match read {
                true => txn.read(&request("SELECT 1"), &mut |_| {
                    begun.store(true, Ordering::SeqCst);
                    while !stopped.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                    std::ops::ControlFlow::Break(())
                }),
                false => {
                    begun.store(true, Ordering::SeqCst);
                    txn.read(&request(forever), &mut |_| std::ops::ControlFlow::Continue(()))
                }
            }
        });
        while !begun.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        replica.ok("UPDATE items SET name = 'theirs'");
        assert_eq!(working.join().unwrap().unwrap_err(), EngineError::TxnConflict);
        assert!(txn.is_over());
    }
    assert_eq!(replica.query("SELECT name FROM items"), [[Value::from("theirs")]]);
}

#[test]
fn its_limits_are_those_of_a_write() {
    let mut replica = Replica::with_items();
    let txn = begin(&replica);
    assert_eq!(fails(&txn, "PRAGMA journal_mode = DELETE"), "42501");
    assert_eq!(fails(&txn, "COMMIT"), "42501");
    assert_eq!(fails(&txn, "SELECT * FROM __pleat_meta"), "42501");
    let only = [unit_of(1)];
    let elsewhere = (2..).find(|key| unit_of(*key) != only[0]).unwrap();
    let sql = format!("INSERT INTO items(k, n) VALUES ({elsewhere}, 1)");
    let refused = txn.write(&only, &[Statement::new(sql, vec![])], PLANNED, NOW).unwrap_err();
    assert_eq!(refused.code(), "0A000");
    let big = Statement::new(
        "INSERT INTO items(k, n, data) VALUES (1, ?, ?)",
        vec![1.into(), Value::Blob(vec![0; 4_000_000])],
    );
    txn.write(&only, std::slice::from_ref(&big), PLANNED, NOW).unwrap();
    assert_eq!(txn.write(&only, &[big], PLANNED, NOW).unwrap_err().code(), "54000");
    // A statement that rolls all of it back ends it.
    assert_eq!(fails(&txn, "INSERT OR ROLLBACK INTO items(k, n) VALUES (1, 1)"), "23505");
    assert!(txn.is_over());
    // And SQLite's file can be replaced under it.
    let txn = begin(&replica);
    run(&txn, "INSERT INTO items(k, n) VALUES (1, 1)");
    let copy = replica.dir.path().join("copy");
    let copier = replica.store().copier().unwrap();
    copier(&copy).unwrap();
    replica.store().install(&copy).unwrap();
    assert_eq!(fails(&txn, "INSERT INTO items(k, n) VALUES (1, 2)"), "40001");
    replica.ok("INSERT INTO items(k, n) VALUES (5, 5)");
}
