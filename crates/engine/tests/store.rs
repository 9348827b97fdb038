//! What a user of one shard notices: results, errors, ownership, idempotency, limits, and what survives.

mod common;

use std::ops::ControlFlow;
use std::time::Duration;

use common::*;
use pleat_cluster::{KeyType, PartitionId, TableKind, Value};
use pleat_engine::*;

fn keyed(key: &str, fingerprint: u64, sql: &str) -> Action {
    Action::Write {
        idempotency: Some(Idempotency { key: key.into(), fingerprint, ttl_ms: 3_600_000 }),
        units: all_units(),
        statements: vec![Statement::new(sql, vec![])],
        base: None,
    }
}

#[test]
fn a_write_gives_its_rows_counts_and_rowid() {
    let mut shard = Replica::with_items();
    let results = shard.ok("INSERT INTO items(k, n, name) VALUES (1, 1, 'a'), (1, 2, 'b') RETURNING n, twice");
    assert_eq!(results[0].columns, ["n", "twice"]);
    assert_eq!(results[0].rows, [[1.into(), 2.into()], [2.into(), 4.into()]] as [[Value; 2]; 2]);
    assert_eq!((results[0].rows_affected, results[0].last_insert_rowid), (2, Some(2)));
    assert_eq!(shard.ok("UPDATE items SET name = 'c' WHERE k = 1")[0].rows_affected, 2);
    assert_eq!(shard.query("SELECT count(*) FROM items WHERE name = 'c'"), [[Value::Integer(2)]]);
}

#[test]
fn a_failing_statement_undoes_its_request_and_nothing_else() {
    let mut shard = Replica::with_items();
    shard.ok("INSERT INTO items(k, n) VALUES (1, 1)");
    let statements = vec![
        Statement::new("INSERT INTO items(k, n) VALUES (2, 2)", vec![]),
        Statement::new("INSERT INTO items(k, n) VALUES (1, 1)", vec![]),
    ];
    let outcome = shard.apply(Action::Write { idempotency: None, units: all_units(), statements, base: None });
    let Outcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!((failure.statement, failure.code.as_str()), (1, "23505"));
    assert_eq!(failure.message, "UNIQUE constraint failed: items.k, items.n");
    assert_eq!(shard.query("SELECT k FROM items"), [[Value::Integer(1)]]);
}

#[test]
fn errors_have_their_sqlstates() {
    let mut shard = Replica::with_items();
    shard.create(
        "CREATE TABLE t(k INTEGER PRIMARY KEY, c TEXT NOT NULL CHECK (length(c) < 3), p REFERENCES t(k))",
        "t",
        sharded("k", KeyType::Integer),
    );
    for (sql, code) in [
        ("INSERT INTO t(k) VALUES (1)", "23502"),
        ("INSERT INTO t VALUES (1, 'long', NULL)", "23514"),
        ("INSERT INTO t VALUES (1, 'x', 77)", "23503"),
        ("INSERT INTO nowhere VALUES (1)", "42P01"),
        ("INSERT INTO t(nix) VALUES (1)", "42703"),
        ("INSERT INTO t VALUES (1, 2)", "42601"),
        ("INSRT INTO t VALUES (1)", "42601"),
        ("INSERT INTO t VALUES (1, nofunction(), NULL)", "42883"),
        ("INSERT INTO t VALUES (?, 'x', NULL)", "08P01"),
        ("INSERT INTO t VALUES (NULL, 'x', NULL); SELECT 1", "42601"),
        ("INSERT INTO items(k, n) VALUES (NULL, 1)", "23502"),
        ("INSERT INTO items(k, n) VALUES ('x', 1)", "42804"),
        ("INSERT INTO items(k, n) VALUES (1.5, 1)", "42804"),
        ("INSERT INTO items(k, n) VALUES (1, NULL)", "23502"),
        ("INSERT INTO items(rowid, k, n) VALUES (9223372036854775807, 1, 1)", "2200H"),
        ("UPDATE items SET k = k", "ok"),
        ("INSERT INTO t VALUES (9223372036854775807, 'x', NULL)", "2200H"),
    ] {
        match shard.write(sql, vec![]) {
            Outcome::Failed(failure) => assert_eq!(failure.code, code, "{sql}: {}", failure.message),
            other => assert_eq!(code, "ok", "{sql}: {other:?}"),
        }
    }
    shard.ok("INSERT INTO items(k, n) VALUES (1, 1)");
    assert!(shard.failed("UPDATE items SET k = 2").message.contains("can't be changed in place"));
    assert!(shard.failed("UPDATE items SET rowid = 9223372036854775807").message.contains("rowid"));
    assert!(shard.failed("UPDATE items SET n = NULL").message.contains("NOT NULL"));
    assert_eq!(shard.query("SELECT count(*) FROM items"), [[Value::Integer(1)]]);
}

#[test]
fn a_deferred_foreign_key_fails_its_own_request() {
    let mut shard = Replica::with_items();
    shard.create(
        "CREATE TABLE t(k INTEGER PRIMARY KEY, p REFERENCES t(k) DEFERRABLE INITIALLY DEFERRED)",
        "t",
        sharded("k", KeyType::Integer),
    );
    assert_eq!(shard.failed("INSERT INTO t VALUES (1, 2)").code, "23503");
    shard.ok("INSERT INTO t VALUES (1, 2), (2, 1)");
}

#[test]
fn what_is_not_owned_or_not_routed_is_refused() {
    let mut shard = Replica::new();
    let mine = unit_of(1);
    let other = unit_of(3);
    assert_ne!(mine, other);
    shard.apply(Action::Own { units: vec![mine], ownership: 5, layout: 0 });
    shard.create(ITEMS, "items", sharded("k", KeyType::Integer));
    let mut write = |units: &[PartitionId], sql: &str| {
        shard.apply(Action::Write {
            idempotency: None,
            units: units.to_vec(),
            statements: vec![Statement::new(sql, vec![])],
            base: None,
        })
    };
    assert_eq!(
        write(&[other], "INSERT INTO items(k, n) VALUES (3, 1)"),
        Outcome::Refused(Refusal::NotOwned { unit: other, ownership: 5 })
    );
    assert_eq!(
        write(&[mine], "INSERT INTO items(k, n) VALUES (1, 1), (3, 1)"),
        Outcome::Refused(Refusal::NotRouted { unit: other })
    );
    assert!(matches!(write(&[mine], "INSERT INTO items(k, n) VALUES (1, 1)"), Outcome::Done { .. }));
    assert_eq!(write(&[], "DELETE FROM items"), Outcome::Refused(Refusal::NotRouted { unit: mine }));
    assert_eq!(write(&[], "UPDATE items SET name = 'x'"), Outcome::Refused(Refusal::NotRouted { unit: mine }));
    let keyed = |check| read_all(&shard.readers, &ReadRequest { check, ..request("SELECT k FROM items") });
    assert_eq!(keyed(OwnershipCheck::Keyed(vec![mine])).unwrap().len(), 1);
    assert!(keyed(OwnershipCheck::Keyed(vec![mine, other])).unwrap_err().is_retryable());
    assert!(keyed(OwnershipCheck::Scatter { ownership: 5 }).is_ok());
    assert_eq!(keyed(OwnershipCheck::Scatter { ownership: 4 }).unwrap_err().code(), "40001");
}

#[test]
fn a_repeated_key_replays_and_a_reused_one_conflicts() {
    let mut shard = Replica::with_items();
    let sql = "INSERT INTO items(k, n) VALUES (1, 1) RETURNING k";
    let Outcome::Done { results } = shard.apply(keyed("a", 1, sql)) else { panic!() };
    assert_eq!(shard.apply(keyed("a", 1, sql)), Outcome::Replayed { results, rows_kept: true });
    assert!(matches!(shard.apply(keyed("a", 2, sql)), Outcome::Refused(Refusal::KeyConflict { .. })));
    assert!(matches!(shard.apply(keyed("", 2, sql)), Outcome::Refused(Refusal::KeyInvalid { .. })));
    // A write that failed had no effect, so its key is free.
    assert!(matches!(shard.apply(keyed("b", 1, sql)), Outcome::Failed(_)));
    assert!(matches!(shard.apply(keyed("b", 1, "DELETE FROM items")), Outcome::Done { .. }));
}

#[test]
fn an_expired_key_is_free_again_and_pruned() {
    let mut shard = Replica::with_items();
    let with = |ttl_ms, key: &str| Action::Write {
        idempotency: Some(Idempotency { key: key.into(), fingerprint: 1, ttl_ms }),
        units: all_units(),
        statements: vec![Statement::new("UPDATE items SET name = 'x'", vec![])],
        base: None,
    };
    shard.apply(with(1_500, "short"));
    assert!(matches!(shard.apply(with(1_500, "short")), Outcome::Replayed { .. }));
    assert!(matches!(shard.apply(with(1_500, "short")), Outcome::Done { .. }), "entries are a second apart");
    shard.apply(with(1, "x"));
    shard.apply(with(1, "y"));
    shard.apply(with(9_000, "z"));
    assert_eq!(shard.dump().matches("\n__pleat_idempotency: ").count(), 1);
}

#[test]
fn bulk_rows_are_inserted_once_and_bad_ones_named() {
    let mut shard = Replica::with_items();
    let row = |k: Value, n: i64| vec![k, n.into(), Value::Text(format!("row {n}"))];
    let rows = vec![
        row(1.into(), 1),
        row(Value::Null, 2),
        row(1.into(), 1),
        row("x".into(), 3),
        row(2.into(), 4),
        vec![Value::Null],
    ];
    let bulk = bulk(vec![part("load-1", 9, all_units(), (0..).zip(rows).collect())]);
    let done = parts(shard.apply(bulk.clone()));
    assert_eq!((done[0].inserted, done[0].replayed), (2, false));
    let named: Vec<_> = done[0].rejected.iter().map(|row| (row.number, row.code.as_str())).collect();
    assert_eq!(named, [(1, "23502"), (2, "23505"), (3, "42804"), (5, "08P01")]);
    assert_eq!(parts(shard.apply(bulk)), [BulkDone { replayed: true, ..done[0].clone() }]);
    assert_eq!(shard.readers.stats().unwrap().tables["items"], 2);
}

fn bulk(parts: Vec<BulkPart>) -> Action {
    Action::Bulk { table: "items".into(), columns: vec!["k".into(), "n".into(), "name".into()], parts }
}

fn part(key: &str, fingerprint: u64, units: Vec<PartitionId>, rows: Vec<(u32, Vec<Value>)>) -> BulkPart {
    BulkPart { idempotency: Some(Idempotency { key: key.into(), fingerprint, ttl_ms: 60_000 }), units, rows }
}

fn parts(outcome: Outcome) -> Vec<BulkDone> {
    let Outcome::Bulk { parts } = outcome else { panic!("{outcome:?}") };
    parts
}

#[test]
fn parts_of_a_bulk_insertion_are_done_once_each_and_their_rows_in_the_clients_order() {
    let mut shard = Replica::with_items();
    let row = |k: i64| vec![k.into(), 0.into(), Value::from("x")];
    let rows = |of: &[(u32, i64)]| of.iter().map(|(number, k)| (*number, row(*k))).collect::<Vec<_>>();
    // By their order in the batch the first of two equal keys wins, whatever part it is in.
    let one = part("b/1", 1, all_units(), rows(&[(0, 10), (2, 30), (5, 40)]));
    let two = part("b/2", 1, all_units(), rows(&[(1, 20), (3, 40), (4, 50)]));
    let done = parts(shard.apply(bulk(vec![one.clone(), two.clone()])));
    assert_eq!((done[0].inserted, done[0].rejected[0].number), (2, 5));
    assert_eq!((done[1].inserted, done[1].rejected.len()), (3, 0));
    // A part that is new among others that were done.
    let three = part("b/3", 1, all_units(), rows(&[(6, 60)]));
    let again = parts(shard.apply(bulk(vec![two.clone(), three, one.clone()])));
    assert_eq!(
        again.iter().map(|part| (part.inserted, part.replayed)).collect::<Vec<_>>(),
        [(3, true), (1, false), (2, true)]
    );
    assert_eq!(again[2].rejected, done[0].rejected);
    assert_eq!(shard.readers.stats().unwrap().tables["items"], 6);
    // A key that stands for something else: nothing is done of any part.
    let other = part("b/1", 2, all_units(), rows(&[(0, 70)]));
    let four = part("b/4", 1, all_units(), rows(&[(1, 80)]));
    assert!(matches!(shard.apply(bulk(vec![four, other])), Outcome::Refused(Refusal::KeyConflict { .. })));
    assert_eq!(shard.readers.stats().unwrap().tables["items"], 6);
}

#[test]
fn schema_changes_are_applied_once() {
    let mut shard = Replica::with_items();
    let sql = "CREATE TABLE t(k INTEGER PRIMARY KEY)".to_owned();
    let table =
        validate_ddl(&Default::default(), std::slice::from_ref(&sql), "t", &TableKind::Reference).unwrap().unwrap();
    let put = Action::Ddl {
        operation: 77,
        statements: vec![sql],
        change: SchemaChange::Put(table),
        single: None,
        undoes: None,
    };
    for _ in 0..2 {
        assert_eq!(shard.apply(put.clone()), Outcome::Done { results: vec![] });
    }
    let Action::Ddl { statements, change, .. } = put else { unreachable!() };
    let again = Action::Ddl { operation: 78, statements, change, single: None, undoes: None };
    assert!(matches!(shard.apply(again), Outcome::Failed(SqlFailure { code, .. }) if code == "42P07"));
    let dropped = Action::Ddl {
        operation: 79,
        statements: vec!["DROP TABLE t".into()],
        change: SchemaChange::Drop { table: "t".into() },
        single: None,
        undoes: None,
    };
    assert_eq!(shard.apply(dropped), Outcome::Done { results: vec![] });
    assert_eq!(shard.failed("INSERT INTO t VALUES (1)").code, "42P01");
}

#[test]
fn statements_that_are_kept_compiled_show_the_columns_that_there_are_now() {
    let mut shard = Replica::new();
    shard.own(0..PARTITIONS);
    shard.create("CREATE TABLE t(k INTEGER PRIMARY KEY, a TEXT)", "t", sharded("k", KeyType::Integer));
    shard.ok("INSERT INTO t VALUES (1, 'x')");
    let (all, touch) = ("SELECT * FROM t", "UPDATE t SET k = k RETURNING *");
    let shown = |shard: &mut Replica| {
        let columns = shard.ok(touch)[0].columns.len();
        (columns, shard.ok(touch)[0].rows[0].len(), shard.query(all)[0].len())
    };
    assert_eq!(shown(&mut shard), (2, 2, 2));
    assert_eq!(shown(&mut shard), (2, 2, 2));
    for (operation, sql, create, count) in [
        (90, "ALTER TABLE t ADD COLUMN b TEXT", "CREATE TABLE t(k INTEGER PRIMARY KEY, a TEXT, b TEXT)", 3),
        (91, "ALTER TABLE t DROP COLUMN b", "CREATE TABLE t(k INTEGER PRIMARY KEY, a TEXT)", 2),
    ] {
        let table = validate_ddl(&Default::default(), &[create.into()], "t", &sharded("k", KeyType::Integer));
        let change = SchemaChange::Put(table.unwrap().unwrap());
        let statements = vec![sql.to_owned()];
        shard.apply(Action::Ddl { operation, statements, change, single: None, undoes: None });
        assert_eq!(shown(&mut shard), (count, count, count), "{sql}");
    }
    shard.ok("DELETE FROM t");
    assert_eq!(read_columns(&shard.readers, &request(all)), ["k", "a"]);
}

#[test]
fn a_renamed_table_keeps_its_rows_its_keys_and_its_owner() {
    let mut shard = Replica::new();
    shard.own(0..PARTITIONS);
    shard.create("CREATE TABLE t(k INTEGER PRIMARY KEY, a TEXT, b TEXT)", "t", sharded("k", KeyType::Integer));
    shard.ok("INSERT INTO t VALUES (1, 'x', 'y')");
    let alter = |operation, from: &str, sql: &str, create: &str, name: &str, key: &str, ownership| {
        let table = validate_ddl(&Default::default(), &[create.to_owned()], name, &sharded(key, KeyType::Integer));
        let table = table.unwrap().unwrap();
        let change = SchemaChange::Alter { from: from.to_owned(), table, ownership };
        Action::Ddl { operation, statements: vec![sql.to_owned()], change, single: None, undoes: None }
    };
    let done = Outcome::Done { results: vec![] };
    let renamed = alter(
        90,
        "t",
        "ALTER TABLE t RENAME TO u",
        "CREATE TABLE u(k INTEGER PRIMARY KEY, a TEXT, b TEXT)",
        "u",
        "k",
        7,
    );
    for _ in 0..2 {
        assert_eq!(shard.apply(renamed.clone()), done);
    }
    let create = "CREATE TABLE u(\"key\" INTEGER PRIMARY KEY, a TEXT, b TEXT)";
    assert_eq!(shard.apply(alter(91, "u", "ALTER TABLE u RENAME k TO \"key\"", create, "u", "key", 8)), done);
    let create = "CREATE TABLE u(\"key\" INTEGER PRIMARY KEY, b TEXT)";
    assert_eq!(shard.apply(alter(92, "u", "ALTER TABLE u DROP COLUMN a", create, "u", "key", 9)), done);
    shard.ok("INSERT INTO u VALUES (2, 'z')");
    assert_eq!(shard.failed("INSERT INTO t VALUES (3, 'z')").code, "42P01");
    let rows = [(1, "y"), (2, "z")].map(|(key, b)| vec![Value::Integer(key), Value::Text(b.to_owned())]);
    assert_eq!(shard.query("SELECT * FROM u ORDER BY 1"), rows);
    let stats = shard.readers.stats().unwrap();
    assert_eq!((stats.ownership, stats.tables["u"], stats.tables.len()), (9, 2, 1));
    // Rows are still held to their partitions.
    let foreign = Action::Write {
        idempotency: None,
        units: vec![PartitionId(unit_of(5).0 + 1)],
        base: None,
        statements: vec![Statement::new("INSERT INTO u VALUES (5, 'w')", [])],
    };
    assert!(!matches!(shard.apply(foreign), Outcome::Done { .. }));
    assert_eq!(shard.query("SELECT count(*) FROM u"), [[Value::Integer(2)]]);
}

#[test]
fn what_is_taken_back_before_it_came_never_comes() {
    let mut shard = Replica::with_items();
    let table = || {
        validate_ddl(&Default::default(), &["CREATE TABLE t(k)".to_owned()], "t", &TableKind::Reference)
            .unwrap()
            .unwrap()
    };
    let create = |operation| ddl(operation, &["CREATE TABLE t(k)"], table());
    let undo = |operation, undone| Action::Ddl {
        operation,
        statements: vec!["DROP TABLE t".to_owned()],
        change: SchemaChange::Drop { table: "t".to_owned() },
        single: None,
        undoes: Some(undone),
    };
    for action in [undo(11, 10), create(10)] {
        assert_eq!(shard.apply(action), Outcome::Done { results: vec![] });
        assert_eq!(shard.failed("INSERT INTO t VALUES (1)").code, "42P01");
    }
    for action in [create(20), undo(21, 20), create(20)] {
        assert_eq!(shard.apply(action), Outcome::Done { results: vec![] });
    }
    assert_eq!(shard.failed("INSERT INTO t VALUES (1)").code, "42P01");
}

#[test]
fn reference_writes_come_in_order_and_give_the_same_rows_everywhere() {
    let (mut anchor, mut other) = (Replica::with_items(), Replica::with_items());
    let sql = "CREATE TABLE r(id INTEGER PRIMARY KEY, at TEXT DEFAULT CURRENT_TIMESTAMP, x INTEGER DEFAULT (random()))";
    for shard in [&mut anchor, &mut other] {
        shard.create(sql, "r", TableKind::Reference);
    }
    for n in 1..=3 {
        let statements = vec![Statement::new("INSERT INTO r(id) VALUES (?)", vec![Value::Integer(n)])];
        let outcome = anchor.apply(Action::ReferenceWrite { idempotency: None, statements });
        assert!(matches!(outcome, Outcome::Reference { seq, .. } if seq == n as u64));
    }
    let MoveChunk::ReferenceLog { entries, last } =
        anchor.readers.move_read(&MoveRead::ReferenceLog { after: 0, limit: 10 }).unwrap()
    else {
        panic!()
    };
    assert_eq!((entries.len(), last), (3, 3));
    let gap = other.apply(Action::ReferenceApply(entries[1].clone()));
    assert_eq!(gap, Outcome::Refused(Refusal::Gap { expected: 1, given: 2 }));
    for entry in entries.iter().chain(&entries) {
        let outcome = other.apply(Action::ReferenceApply(entry.clone()));
        assert!(matches!(outcome, Outcome::Reference { .. }));
    }
    let all = "SELECT id, at, x FROM r";
    assert_eq!(anchor.query(all), other.query(all));
    // Each kind of write keeps to its tables.
    assert_eq!(anchor.failed("DELETE FROM r").code, "0A000");
    let statements = vec![Statement::new("DELETE FROM items", vec![])];
    assert!(matches!(anchor.apply(Action::ReferenceWrite { idempotency: None, statements }), Outcome::Failed(_)));
    anchor.apply(Action::ReferencePrune { upto: 2 });
    let left = anchor.readers.move_read(&MoveRead::ReferenceLog { after: 0, limit: 10 }).unwrap();
    assert!(matches!(left, MoveChunk::ReferenceLog { entries, .. } if entries.len() == 1));
}

#[test]
fn a_read_streams_in_chunks_and_stops_when_told() {
    let mut shard = Replica::with_items();
    shard.ok("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 10000) INSERT INTO items(k, n) SELECT i, i FROM c");
    let mut chunks = 0;
    let mut rows = 0;
    shard
        .readers
        .read(&request("SELECT k, name FROM items"), &mut |chunk| {
            assert_eq!(chunk.columns.is_some(), chunks == 0);
            chunks += 1;
            rows += chunk.rows.len();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(rows, 10_000);
    assert!(chunks > 1);
    let stopped = shard.readers.read(&request("SELECT k FROM items"), &mut |_| ControlFlow::Break(()));
    assert_eq!(stopped, Err(EngineError::Cancelled));
    let limited = |limits| read_all(&shard.readers, &ReadRequest { limits, ..request("SELECT k FROM items") });
    assert_eq!(limited(ReadLimits { rows: 9_999, ..ReadLimits::default() }), Err(EngineError::Rows { limit: 9_999 }));
    assert_eq!(limited(ReadLimits { bytes: 800, ..ReadLimits::default() }), Err(EngineError::Bytes { limit: 800 }));
    // No rows: the columns come all the same.
    let mut columns = None;
    shard
        .readers
        .read(&request("SELECT k FROM items WHERE k < 0"), &mut |chunk| {
            columns = chunk.columns;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(columns.unwrap()[0], ColumnInfo { name: "k".into(), decl_type: Some("INTEGER".into()) });
}

#[test]
fn reads_go_on_while_the_shard_is_written_and_replaced() {
    let mut shard = Replica::with_items();
    shard.ok("INSERT INTO items(k, n) VALUES (1, 1), (2, 2)");
    let copy = shard.dir.path().join("copy.db");
    let applied = shard.store().copier().unwrap()(&copy).unwrap();
    assert_eq!(applied, shard.store().applied().unwrap());
    let readers = shard.readers.clone();
    let mut seen = 0;
    // The snapshot of before, although the file is replaced in the middle of it.
    readers
        .read(&request("SELECT a.k FROM items AS a, items AS b, items AS c"), &mut |chunk| {
            shard.ok("DELETE FROM items");
            shard.store().install(&copy).unwrap();
            seen += chunk.rows.len();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, 8);
    assert_eq!(shard.query("SELECT count(*) FROM items"), [[Value::Integer(2)]]);
    assert_eq!(shard.store().applied().unwrap(), applied);
    shard.ok("INSERT INTO items(k, n) VALUES (3, 3)");
    assert_eq!(shard.readers.stats().unwrap().rows, 3);
}

#[test]
fn a_half_done_installation_is_finished_when_the_store_is_opened() {
    let mut shard = Replica::with_items();
    shard.ok("INSERT INTO items(k, n) VALUES (1, 1)");
    let staged = shard.dir.path().join("shard.db.install");
    shard.store().copier().unwrap()(&staged).unwrap();
    shard.ok("INSERT INTO items(k, n) VALUES (2, 2)");
    shard.store = None;
    let (_store, readers) = Store::open(shard.dir.path(), StoreConfig::new(PARTITIONS)).unwrap();
    assert_eq!(read_all(&readers, &request("SELECT k FROM items")).unwrap(), [[Value::Integer(1)]]);
    assert!(!staged.exists());
}

#[test]
fn another_clusters_file_is_refused() {
    let mut shard = Replica::with_items();
    shard.store = None;
    let error = Store::open(shard.dir.path(), StoreConfig::new(16)).err().unwrap();
    assert!(error.to_string().contains("8 partitions"), "{error:#}");
    let mut other = Replica::new();
    assert!(other.store().install(&shard.dir.path().join("nothing")).is_err());
    let garbage = shard.dir.path().join("garbage");
    std::fs::write(&garbage, b"this is no database, it only looks like a file").unwrap();
    assert!(other.store().install(&garbage).is_err());
    other.own(0..1);
}

#[test]
fn weights_and_rows_are_those_of_owned_partitions() {
    let mut shard = Replica::with_items();
    shard.ok("INSERT INTO items(k, n, name) VALUES (1, 1, 'abc'), (1, 2, ''), (3, 1, '')");
    let weights = shard.readers.partition_weights().unwrap();
    assert_eq!(weights.len(), PARTITIONS as usize);
    assert_eq!(weights[&unit_of(1)].0, 2);
    assert_eq!(weights.values().map(|(rows, _)| rows).sum::<u64>(), 3);
    let stats = shard.readers.stats().unwrap();
    assert_eq!((stats.rows, stats.ownership, stats.foreign_rows), (3, 1, false));
    assert!(stats.file_bytes > 0);
    shard.ok("DELETE FROM items WHERE k = 3");
    assert_eq!(shard.readers.stats().unwrap().rows, 2);
}

#[test]
fn scratch_describes_a_table_as_sqlite_sees_it() {
    let sql = "CREATE TABLE T(Id INTEGER PRIMARY KEY, Name VARCHAR(20) NOT NULL COLLATE NOCASE DEFAULT 'x', Up TEXT AS (upper(Name)) STORED)";
    let described = |sql: &str| validate_ddl(&Default::default(), &[sql.to_owned()], "t", &TableKind::Reference);
    let table = described(sql).unwrap().unwrap();
    assert_eq!((table.name.as_str(), table.rowid_alias, table.without_rowid), ("T", true, false));
    assert_eq!(table.primary_key, ["Id"]);
    let name = table.column("name").unwrap();
    assert_eq!(
        (name.decl_type.as_str(), name.collation.as_deref(), name.not_null, name.has_default),
        ("VARCHAR(20)", Some("NOCASE"), true, true)
    );
    assert!(table.column("up").unwrap().generated);
    assert_eq!(table.column("up").unwrap().decl_type, "TEXT");
    assert!(!described("CREATE TABLE t(a INTEGER PRIMARY KEY DESC)").unwrap().unwrap().rowid_alias);
    assert!(!described("CREATE TABLE t(a INT PRIMARY KEY)").unwrap().unwrap().rowid_alias);
    assert!(
        described("CREATE TABLE t(a INTEGER, b, PRIMARY KEY (b, a)) WITHOUT ROWID").unwrap().unwrap().primary_key
            == ["b", "a"]
    );
    assert_eq!(described("CREATE TABLE t(").unwrap_err().code, "42601");
    assert_eq!(described("CREATE TEMP TABLE t(a)").unwrap_err().code, "42501");
    assert_eq!(described("ATTACH 'x' AS y").unwrap_err().code, "42501");
    assert!(described("CREATE TABLE other(a)").unwrap().is_none());
}

#[test]
fn every_read_connection_busy_is_an_error_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { read_connections: 1, ..StoreConfig::new(PARTITIONS) };
    let (_store, readers) = Store::open(dir.path(), config).unwrap();
    let mut inner = None;
    readers
        .read(&request("SELECT 1"), &mut |_| {
            let limits = ReadLimits { time: Duration::from_millis(1), ..ReadLimits::default() };
            inner = Some(read_all(&readers, &ReadRequest { limits, ..request("SELECT 1") }));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(inner.unwrap(), Err(EngineError::Busy { connections: 1 }));
}

#[test]
fn a_store_goes_to_its_thread_and_readers_are_shared() {
    fn send<T: Send>() {}
    fn shared<T: Send + Sync + Clone>() {}
    send::<Store>();
    send::<Finisher>();
    shared::<Readers>();
}

#[test]
fn readers_see_whole_writes_while_the_writer_goes_on() {
    let mut shard = Replica::with_items();
    let readers = shard.readers.clone();
    let reading = std::thread::spawn(move || {
        let mut seen = 0;
        while seen < 200 {
            let rows = read_all(&readers, &request("SELECT count(*) FROM items")).unwrap();
            let Value::Integer(count) = rows[0][0] else { panic!("{rows:?}") };
            assert!(count % 2 == 0 && count >= seen, "half a write, or an older one: {count} after {seen}");
            seen = count;
        }
    });
    for n in 0..100 {
        shard.ok(&format!("INSERT INTO items(k, n) VALUES (1, {n}), (3, {n})"));
    }
    reading.join().unwrap();
}

#[test]
fn what_is_applied_survives_a_checkpoint_and_a_restart() {
    let mut shard = Replica::with_items();
    shard.ok("INSERT INTO items(k, n) VALUES (1, 1)");
    // A snapshot that is held open keeps the WAL; the checkpoint succeeds all the same.
    shard.readers.move_read(&MoveRead::ReferenceOpen).unwrap();
    shard.store().checkpoint().unwrap();
    shard.ok("INSERT INTO items(k, n) VALUES (1, 2)");
    shard.store().checkpoint().unwrap();
    let applied = shard.store().applied().unwrap();
    shard.store = None;
    let (store, readers) = Store::open(shard.dir.path(), StoreConfig::new(PARTITIONS)).unwrap();
    assert_eq!(store.applied().unwrap(), applied);
    assert_eq!(read_all(&readers, &request("SELECT n FROM items")).unwrap().len(), 2);
}

#[test]
fn a_reference_row_that_is_referred_to_goes_on_every_shard() {
    let (mut anchor, mut other) = (Replica::with_items(), Replica::with_items());
    for shard in [&mut anchor, &mut other] {
        shard.create("CREATE TABLE r(id INTEGER PRIMARY KEY)", "r", TableKind::Reference);
        shard.create("CREATE TABLE s(k INTEGER PRIMARY KEY, r REFERENCES r(id))", "s", sharded("k", KeyType::Integer));
    }
    let run = |sql: &str| vec![Statement::new(sql, vec![])];
    for (seq, sql) in [(1, "INSERT INTO r VALUES (1)"), (2, "DELETE FROM r")] {
        anchor.apply(Action::ReferenceWrite { idempotency: None, statements: run(sql) });
        let entry = ReferenceEntry { seq, now_ms: 1, seed: 1, statements: run(sql) };
        assert!(matches!(other.apply(Action::ReferenceApply(entry)), Outcome::Reference { replayed: false, .. }));
        other.ok("INSERT OR IGNORE INTO s VALUES (1, 1)");
        if seq == 1 {
            assert_eq!(other.query("SELECT count(*) FROM r"), [[Value::Integer(1)]]);
        }
    }
    assert_eq!(other.query("SELECT count(*) FROM r"), [[Value::Integer(0)]]);
    assert_eq!(other.failed("INSERT INTO s VALUES (2, 1)").code, "23503", "foreign keys are on again");
}
