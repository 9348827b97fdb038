//! Triggers of users on one shard: fired once for each row, by whatever way the write comes, and alike on every replica.

mod common;

use common::*;
use pleat_cluster::{KeyType, Planned, ShardId, Trigger, TriggerEvent, TriggerState, TxnId, Value};
use pleat_engine::*;

const LOG: &str = "CREATE TABLE log(k INTEGER, seq INTEGER, what TEXT, r DEFAULT (random()), at TEXT DEFAULT CURRENT_TIMESTAMP, \
                   PRIMARY KEY (k, seq))";
/// Bodies use everything that could differ between replicas.
const TRIGGERS: [&str; 4] = [
    "CREATE TRIGGER guard BEFORE INSERT ON items WHEN NEW.n < 0 BEGIN \
     SELECT CASE WHEN NEW.n = -1 THEN RAISE(IGNORE) ELSE RAISE(ABORT, 'below nothing') END; END",
    "CREATE TRIGGER came AFTER INSERT ON items BEGIN INSERT INTO log(k, seq, what) \
     SELECT NEW.k, coalesce(max(seq), 0) + 1, 'came ' || NEW.n || ' ' || random() FROM log WHERE k = NEW.k; END",
    "CREATE TRIGGER changed AFTER UPDATE OF name ON items BEGIN INSERT INTO log(k, seq, what) \
     SELECT NEW.k, coalesce(max(seq), 0) + 1, OLD.name || hex(randomblob(2)) FROM log WHERE k = NEW.k; END",
    "CREATE TRIGGER went AFTER DELETE ON items BEGIN UPDATE log SET what = 'went ' || strftime('%f', 'now') WHERE k = OLD.k; END",
];

fn replica() -> Replica {
    let mut replica = Replica::with_items();
    replica.create(LOG, "log", sharded("k", KeyType::Integer));
    replica.triggers(ITEMS, "items", sharded("k", KeyType::Integer), &TRIGGERS);
    replica
}

fn statements(texts: &[&str]) -> Vec<Statement> {
    texts.iter().map(|sql| Statement::new(*sql, vec![])).collect()
}

fn count(replica: &Replica, table: &str) -> i64 {
    match replica.query(&format!("SELECT count(*) FROM {table}"))[0][0] {
        Value::Integer(count) => count,
        ref other => panic!("{other:?}"),
    }
}

const WRITES: [&str; 5] = [
    "INSERT INTO items(k, n, name) VALUES (1, 1, 'a'), (1, 2, 'b'), (2, 1, 'c'), (3, -1, 'd')",
    "UPDATE items SET name = name || '!' WHERE k = 1",
    "UPDATE items SET n = n + 10",
    "INSERT INTO items(k, n, name) VALUES (1, 11, 'z'), (4, 1, 'e') ON CONFLICT DO UPDATE SET name = excluded.name",
    "DELETE FROM items WHERE k = 2",
];
const LOGGED: [i64; 5] = [3, 5, 5, 7, 7];

#[test]
fn a_trigger_fires_once_for_each_row_and_its_changes_are_not_counted() {
    let mut replica = replica();
    let affected = [3, 2, 3, 2, 1];
    for (at, sql) in WRITES.iter().enumerate() {
        let results = replica.ok(sql);
        assert_eq!((results[0].rows_affected, count(&replica, "log")), (affected[at], LOGGED[at]), "{sql}");
    }
    // The row's own id, not one of the log.
    let results = replica.ok("INSERT INTO items(k, n) VALUES (6, 1)");
    let rowid = replica.query("SELECT rowid FROM items WHERE k = 6")[0][0].clone();
    assert_eq!(results[0].last_insert_rowid.map(Value::Integer), Some(rowid));
    assert_eq!(replica.ok("UPDATE items SET name = 'x' WHERE k = 4")[0].last_insert_rowid, None);
    let failure = replica.failed("INSERT INTO items(k, n) VALUES (7, 1), (7, -2)");
    assert_eq!((failure.code.as_ref(), failure.message.as_str()), ("P0001", "below nothing"));
    assert_eq!(replica.query("SELECT count(*) FROM log WHERE k = 7"), [[Value::Integer(0)]]);
}

#[test]
fn replicas_that_apply_the_same_log_are_alike() {
    let mut one = replica();
    for sql in WRITES {
        one.ok(sql);
    }
    one.apply(bulk(&[[5, 1], [5, -1], [5, -2]]));
    let mut other = Replica::new();
    for (position, bytes) in one.log.iter().enumerate() {
        other.store().apply(&[bytes], &(position as u64 + 1).to_le_bytes()).unwrap();
    }
    assert_eq!(other.dump(), one.dump());
}

fn bulk(rows: &[[i64; 2]]) -> Action {
    let rows = (0..).zip(rows).map(|(at, row)| (at, row.iter().copied().map(Value::Integer).collect())).collect();
    let columns = vec!["k".to_owned(), "n".to_owned()];
    let part = BulkPart { idempotency: None, units: all_units(), rows };
    Action::Bulk { table: "items".into(), columns, parts: vec![part] }
}

#[test]
fn a_bulk_load_fires_them_and_counts_what_came() {
    let mut replica = replica();
    match replica.apply(bulk(&[[5, 1], [5, -1], [5, -2], [6, 1]])) {
        Outcome::Bulk { parts } => {
            let BulkDone { inserted, rejected, .. } = &parts[0];
            assert_eq!((*inserted, rejected.len(), rejected[0].number), (2, 1, 2));
            assert_eq!((rejected[0].code.as_str(), rejected[0].reason.as_str()), ("P0001", "below nothing"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((count(&replica, "items"), count(&replica, "log")), (2, 2));
}

#[test]
fn what_was_prepared_is_what_is_committed() {
    let mut replica = replica();
    replica.ok(WRITES[0]);
    let prepare = |txn| Action::Prepare {
        txn,
        began: 5,
        participants: vec![ShardId(1), ShardId(2)],
        idempotency: None,
        units: all_units(),
        statements: statements(&[WRITES[1], WRITES[3], "SELECT what, r, at FROM log ORDER BY k, seq"]),
        base: None,
    };
    let Outcome::Prepared { results: promised } = replica.apply(prepare(TxnId(1))) else { panic!() };
    assert_eq!(count(&replica, "log"), LOGGED[0]);
    replica.clock += 3_600_000;
    let Outcome::Done { results } = replica.apply(Action::Decide { txn: TxnId(1), commit: Some(1) }) else { panic!() };
    assert_eq!(results, promised);
    assert_eq!(replica.query("SELECT what, r, at FROM log ORDER BY k, seq"), promised[2].rows);
    let before = count(&replica, "log");
    assert!(matches!(replica.apply(prepare(TxnId(2))), Outcome::Prepared { .. }));
    assert!(matches!(replica.apply(Action::Decide { txn: TxnId(2), commit: None }), Outcome::Done { .. }));
    assert_eq!(count(&replica, "log"), before);
}

#[test]
fn an_interactive_transaction_sees_what_triggers_did_and_commits_that() {
    let mut replica = replica();
    let txn = replica.readers.begin_txn(42, || {}).unwrap();
    let now = 1_800_000_000_000;
    let look = "INSERT INTO log(k, seq) VALUES (9, 9) RETURNING (SELECT group_concat(what || r || at) FROM log)";
    let mut promised = txn.write(&all_units(), &statements(&[WRITES[0]]), PLANNED, now).unwrap();
    txn.savepoint("a").unwrap();
    txn.write(&all_units(), &statements(&[WRITES[1]]), PLANNED, now).unwrap();
    txn.rollback_to("a").unwrap();
    promised.extend(txn.write(&all_units(), &statements(&[WRITES[3], look]), PLANNED, now).unwrap());
    let Script { base, units, statements } = txn.finish().unwrap();
    assert_eq!(count(&replica, "log"), 0);
    let write = Action::Write { idempotency: None, units, statements, base: Some(base) };
    match replica.apply(write) {
        Outcome::Done { results } => assert_eq!(results, promised),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_row_of_another_partition_is_refused_however_it_comes() {
    let mut replica = replica();
    let astray = "CREATE TRIGGER astray AFTER INSERT ON log BEGIN DELETE FROM log WHERE k = NEW.k + 1; END";
    replica.triggers(LOG, "log", sharded("k", KeyType::Integer), &[astray]);
    let (one, other) = (1..10).map(|k| (k, k + 1)).find(|(k, next)| unit_of(*k) != unit_of(*next)).unwrap();
    replica.ok(&format!("INSERT INTO log(k, seq) VALUES ({other}, 1)"));
    let write = Action::Write {
        idempotency: None,
        units: vec![unit_of(one)],
        statements: statements(&[&format!("INSERT INTO items(k, n) VALUES ({one}, 1)")]),
        base: None,
    };
    let outcome = replica.apply(write);
    assert!(!matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    assert_eq!((count(&replica, "items"), count(&replica, "log")), (0, 1));
}

#[test]
fn a_write_that_was_planned_before_the_trigger_was_known_is_planned_again() {
    let mut replica = replica();
    let kind = sharded("k", KeyType::Integer);
    let described = validate_ddl(&Default::default(), &[ITEMS.to_owned()], "items", &kind).unwrap().unwrap();
    let trigger = Trigger {
        id: 1,
        name: "went".into(),
        event: TriggerEvent::Delete,
        sql: TRIGGERS[3].into(),
        on_shards: TRIGGERS[3].into(),
        writes: Default::default(),
        reads: Default::default(),
        state: TriggerState::Coming,
        since: 2,
    };
    let table = pleat_cluster::Table { triggers: vec![trigger], ..described };
    assert!(matches!(replica.apply(ddl(800, &[], table)), Outcome::Done { .. }));
    let stale = |outcome| matches!(outcome, Outcome::Refused(Refusal::Generation { ownership: 2, routed: 1 }));
    assert!(stale(replica.write("REPLACE INTO items(k, n) VALUES (1, 1)", vec![])));
    assert!(stale(replica.apply(bulk(&[[1, 1]]))));
    let txn = replica.readers.begin_txn(43, || {}).unwrap();
    let early = txn.write(&all_units(), &statements(&["REPLACE INTO items(k, n) VALUES (1, 1)"]), PLANNED, 0);
    assert!(matches!(early, Err(EngineError::Refused(Refusal::Generation { ownership: 2, routed: 1 }))), "{early:?}");
    drop(txn);
    let action = write("INSERT INTO items(k, n) VALUES (1, 1)", vec![]);
    let proposal = Proposal {
        id: Default::default(),
        planned: Planned { generation: 2, layout: 0 },
        now_ms: replica.clock,
        seed: 1,
        action,
    };
    let outcomes = replica.store().apply(&[&proposal.encode()], b"later").unwrap();
    assert!(matches!(Outcome::decode(&outcomes[0]).unwrap(), Outcome::Done { .. }));
}

#[test]
fn a_table_s_triggers_stay_when_pleat_makes_its_own_anew_and_go_with_it() {
    let mut replica = replica();
    let index = "CREATE INDEX by_name ON items(name)";
    replica.triggers(ITEMS, "items", sharded("k", KeyType::Integer), &[index]);
    replica.ok(WRITES[0]);
    assert_eq!(count(&replica, "log"), 3);
    let change = SchemaChange::Drop { table: "items".into() };
    let statements = vec!["DROP TABLE items".to_owned()];
    replica.apply(Action::Ddl { operation: 900, statements, change, single: None, undoes: None });
    assert!(!replica.dump().contains("trigger came"));
}
