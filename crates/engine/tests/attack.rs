//! Statements and bytes that mean harm, or that nobody thought of: refused with an error that says so, nothing
//! changed, and the shard goes on.

mod common;

use std::time::Duration;

use common::*;
use pleat_cluster::Value;
use pleat_engine::*;

fn read(shard: &Replica, sql: &str) -> Result<Vec<Vec<Value>>, EngineError> {
    read_all(&shard.readers, &request(sql))
}

/// Whatever happened, the shard still works and holds what it held.
fn still_works(shard: &mut Replica) {
    shard.ok("INSERT INTO items(k, n) VALUES (5, 5)");
    assert_eq!(read(shard, "SELECT count(*) FROM items").unwrap(), [[Value::Integer(1)]]);
    shard.ok("DELETE FROM items");
}

#[test]
fn nothing_but_the_clusters_tables_can_be_reached() {
    let mut shard = Replica::with_items();
    let before = shard.dump();
    for sql in [
        "SELECT * FROM __pleat_meta",
        "SELECT * FROM \"__PLEAT_meta\"",
        "SELECT * FROM main.[__pleat_placement]",
        "WITH __pleat_row_insert_1 AS (SELECT * FROM __pleat_meta) SELECT * FROM __pleat_row_insert_1",
        "INSERT INTO items(k, n) SELECT 1, count(*) FROM __pleat_idempotency",
        "UPDATE __pleat_placement SET value = x''",
        "DELETE FROM __pleat_applied",
        "DROP TRIGGER __pleat_row_insert_1",
        "CREATE TABLE __pleat_x(a)",
        "CREATE TABLE x(a)",
        "CREATE TEMP TABLE items(k, n)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE VIRTUAL TABLE f USING fts5(a)",
        "ALTER TABLE items ADD COLUMN x",
        "DROP TABLE items",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA recursive_triggers = 0",
        "PRAGMA writable_schema = 1",
        "PRAGMA foreign_keys(0)",
        "SELECT * FROM pragma_database_list",
        "SELECT * FROM pragma_page_count",
        "SELECT * FROM dbstat",
        "INSERT INTO items(k, n) SELECT 1, rootpage FROM sqlite_schema",
        "UPDATE sqlite_schema SET sql = ''",
        "INSERT INTO sqlite_sequence VALUES ('items', 1)",
        "ATTACH '/tmp/x' AS x",
        "DETACH main",
        "VACUUM",
        "VACUUM INTO '/tmp/x'",
        "REINDEX",
        "ANALYZE",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "END",
        "SAVEPOINT s",
        "RELEASE proposal",
        "ROLLBACK TO proposal",
        "SELECT load_extension('/tmp/x')",
        "SELECT fts3_tokenizer('simple')",
        "EXPLAIN INSERT INTO __pleat_meta VALUES (1, 2)",
    ] {
        let read = read(&shard, sql).err().unwrap_or_else(|| panic!("{sql} was answered"));
        assert!(["42501", "42P01", "25006", "42000", "42883"].contains(&read.code()), "{sql}: {} {read}", read.code());
        let failure = shard.failed(sql);
        assert!(["42501", "42P01", "42000", "42883"].contains(&failure.code.as_str()), "{sql}: {failure:?}");
    }
    assert_eq!(before, shard.dump());
    let failure = shard.failed("INSERT INTO items(k, n, name) SELECT 1, ncol, name FROM pragma_table_list");
    assert_eq!(failure.code, "42501", "the order of its rows differs between replicas");
    assert_eq!(before, shard.dump());
    for sql in [
        "SELECT name FROM pragma_table_info('items')",
        "PRAGMA table_info(items)",
        "SELECT value FROM json_each('[1]')",
        "EXPLAIN QUERY PLAN SELECT * FROM items",
        "SELECT name FROM sqlite_schema WHERE name = 'items'",
    ] {
        assert!(!read(&shard, sql).unwrap().is_empty(), "{sql}");
    }
    still_works(&mut shard);
}

#[test]
fn a_read_that_never_ends_is_stopped_by_its_time() {
    let shard = Replica::with_items();
    let limits = ReadLimits { time: Duration::from_millis(50), ..ReadLimits::default() };
    for sql in [
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT max(i) FROM c",
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i FROM c) SELECT i FROM c WHERE i = 2",
    ] {
        let error = read_all(&shard.readers, &ReadRequest { limits, ..request(sql) }).unwrap_err();
        assert_eq!(error, EngineError::Time { limit: limits.time });
    }
    assert!(read(&shard, "SELECT 1").is_ok());
}

#[test]
fn a_write_that_never_ends_is_stopped_by_its_steps_on_every_replica_alike() {
    let mut shard = Replica::with_items();
    shard.ok("INSERT INTO items(k, n) VALUES (1, 1)");
    let sql = "WITH RECURSIVE c(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM c) INSERT INTO items(k, n) SELECT 1, i FROM c WHERE i < 12";
    let failure = shard.failed(sql);
    assert_eq!(failure.code, "54001", "{failure:?}");
    shard.ok("DELETE FROM items");
    still_works(&mut shard);
}

#[test]
fn large_and_deep_things_are_refused() {
    let mut shard = Replica::with_items();
    let nested = format!("SELECT {}1{}", "(".repeat(3_000), ")".repeat(3_000));
    let sum = format!("SELECT 1{}", " + 1".repeat(5_000));
    let long = format!("SELECT '{}'", "x".repeat(2 << 20));
    let compound = vec!["SELECT 1"; 1_000].join(" UNION ALL ");
    for sql in [
        nested.as_str(),
        &sum,
        &long,
        &compound,
        "SELECT zeroblob(100000000)",
        "SELECT randomblob(1000000000)",
        "SELECT replace(hex(zeroblob(10000000)), '0', 'longer')",
    ] {
        let error = read(&shard, sql).unwrap_err();
        assert!(matches!(error, EngineError::Sql(_)), "{:.40}: {error:?}", sql);
        assert!(matches!(shard.write(sql, vec![]), Outcome::Failed(_)));
    }
    let blob = Value::Blob(vec![7; 33 << 20]);
    let Outcome::Failed(failure) = shard.write("INSERT INTO items(k, n, data) VALUES (1, 1, ?)", vec![blob]) else {
        panic!()
    };
    assert_eq!(failure.code, "54000");
    // What could not be moved can't be written: as one value, as a row, or grown by and by.
    shard.ok("INSERT INTO items(k, n, data) VALUES (1, 1, zeroblob(3000000))");
    for sql in [
        "INSERT INTO items(k, n, data) VALUES (1, 2, zeroblob(20000000))",
        "INSERT INTO items(k, n, data) VALUES (1, 2, randomblob(5000000))",
        "INSERT INTO items(k, n, name, data) VALUES (1, 2, zeroblob(3000000), zeroblob(3000000))",
        "UPDATE items SET name = zeroblob(3000000)",
    ] {
        let failure = shard.failed(sql);
        assert_eq!(failure.code, "54000", "{sql}: {failure:?}");
        assert!(failure.hint.is_some_and(|hint| hint.contains("4194304")), "{sql}");
    }
    shard.ok("DELETE FROM items");
    let failure = shard.failed("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c LIMIT 150000) INSERT INTO items(k, n) SELECT 1, i FROM c RETURNING n");
    assert_eq!(failure.code, "54000");
    let failure = shard.failed("INSERT INTO items(k, n, data) VALUES (1, 1, zeroblob(5000000)) RETURNING data");
    assert_eq!(failure.code, "54000");
    still_works(&mut shard);
}

#[test]
fn odd_texts_and_values_are_taken_as_they_are() {
    let mut shard = Replica::with_items();
    assert_eq!(shard.failed("INSERT INTO items(k, n) VALUES (1, 1);\0DROP").code, "42601");
    assert_eq!(
        shard.write("SELECT 1", vec![Value::Null]),
        Outcome::Failed(SqlFailure {
            statement: 0,
            sqlite_code: 1,
            code: "08P01".into(),
            message: "the statement has 0 parameters, but 1 values were given".into(),
            hint: Some("give one value for each parameter, by position".into()),
        })
    );
    for sql in ["", "   ", ";", "-- nothing"] {
        assert_eq!(shard.failed(sql).code, "42601", "{sql}");
        assert_eq!(read(&shard, sql).unwrap_err().code(), "42601", "{sql}");
    }
    let text = Value::Text("a\0b'; DROP TABLE items; --".into());
    let Outcome::Done { .. } =
        shard.write("INSERT INTO items(k, n, name, u) VALUES (1, 1, ?, ?)", vec![text.clone(), Value::Real(f64::NAN)])
    else {
        panic!()
    };
    assert_eq!(read(&shard, "SELECT name, u FROM items").unwrap(), [[text, Value::Null]]);
    // Text that is not UTF-8 can be stored; what can't be shown is replaced.
    shard.ok("UPDATE items SET name = CAST(x'ff41' AS TEXT)");
    assert_eq!(read(&shard, "SELECT name FROM items").unwrap(), [[Value::from("\u{fffd}A")]]);
    // Pleat's functions do a user no harm.
    let results = shard
        .ok("SELECT pleat_partition(NULL), pleat_partition(1.5), pleat_partition(1), pleat_owned(1), pleat_moving(1)");
    assert_eq!(results[0].rows[0][..2], [Value::Null, Value::Null]);
    assert!(matches!(shard.write("SELECT pleat_check_row(0, 'x')", vec![]), Outcome::Failed(_)));
    shard.ok("DELETE FROM items");
    still_works(&mut shard);
}

#[test]
fn bytes_that_are_no_entry_fail_alike_and_unknown_formats_stop_the_replica() {
    let mut shard = Replica::with_items();
    let good = entry(write("INSERT INTO items(k, n) VALUES (5, 5)", vec![]), 1, 1);
    for cut in 1..good.len() {
        let outcomes = shard.store().apply(&[&good[..cut]], b"x").unwrap();
        assert!(matches!(Outcome::decode(&outcomes[0]).unwrap(), Outcome::Failed(_)), "cut at {cut}");
    }
    let mut newer = good.clone();
    newer[0] = 200;
    let error = shard.store().apply(&[&good, &newer], b"y").unwrap_err();
    assert!(error.to_string().contains("format 200"), "{error:#}");
    assert_eq!(shard.store().applied().unwrap(), b"x", "nothing of the batch took effect");
    still_works(&mut shard);
}

#[test]
fn triggers_that_call_themselves_end() {
    let mut shard = Replica::with_items();
    let table =
        validate_ddl(&Default::default(), &[ITEMS.to_owned()], "items", &sharded("k", pleat_cluster::KeyType::Integer))
            .unwrap()
            .unwrap();
    let trigger =
        "CREATE TRIGGER again AFTER INSERT ON items BEGIN INSERT INTO items(k, n) VALUES (NEW.k, NEW.n + 1); END";
    assert!(matches!(shard.apply(ddl(500, &[trigger], table)), Outcome::Done { .. }));
    let failure = shard.failed("INSERT INTO items(k, n) VALUES (1, 1)");
    assert!(failure.message.contains("nested too deep"), "{failure:?}");
    assert!(read(&shard, "SELECT * FROM items").unwrap().is_empty());
}

#[test]
fn a_batch_with_many_rollbacks_keeps_its_good_entries() {
    let mut shard = Replica::with_items();
    shard.create(
        "CREATE TABLE r(k INTEGER PRIMARY KEY ON CONFLICT ROLLBACK)",
        "r",
        sharded("k", pleat_cluster::KeyType::Integer),
    );
    let entries: Vec<Vec<u8>> =
        (0..40).map(|n| entry(write("INSERT INTO r VALUES (?)", vec![Value::Integer(n / 2)]), 1, n as u64)).collect();
    let batch: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
    let outcomes = shard.store().apply(&batch, b"z").unwrap();
    for (n, outcome) in outcomes.iter().enumerate() {
        let outcome = Outcome::decode(outcome).unwrap();
        match n % 2 {
            0 => assert!(matches!(outcome, Outcome::Done { .. }), "{n}: {outcome:?}"),
            _ => assert!(matches!(outcome, Outcome::Failed(SqlFailure { code, .. }) if code == "23505")),
        }
    }
    assert_eq!(shard.readers.stats().unwrap().tables["r"], 20);
}
