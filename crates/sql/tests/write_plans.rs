//! How writes are carried out, case by case: what EXPLAIN says, what is refused, and corners that the generated writes
//! don't reach.

mod world;

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{KeyType, PartitionId, TableId, TableKind, Value};
use pleat_sql::{BulkIds, Ids, Params, SpreadWrite, SqlError, Statement, WritePlan, WriteTarget};
use world::writes::Ended;
use world::{PARTITIONS, World, flights, rich};

const NONE: Params<'static> = Params::NONE;

fn write_plan(world: &World, sql: &str) -> Result<WritePlan, SqlError> {
    match world.prepare(sql)? {
        Statement::Write(plan) => Ok(plan),
        other => panic!("not a write: {other:?}"),
    }
}

#[test]
fn explained() {
    let world = flights(3, false);
    let script = include_str!("write_plans.txt");
    let mut shown = String::new();
    for sql in script.lines().filter_map(|line| line.strip_prefix("> ")) {
        shown += &format!("> {sql}\n{}\n", world.explain(sql, &[]));
    }
    if std::env::var_os("SHOW").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/write_plans.txt"), &shown).unwrap();
    }
    assert_eq!(shown, script, "run with SHOW=1 to write what is shown now, and read it");
}

/// It runs on each copy in its turn, and one of them may have got another column by then.
#[test]
fn an_insert_into_a_reference_table_names_its_columns() {
    let world = rich(false);
    for (sql, wanted) in [
        ("INSERT INTO r VALUES (900, 1, 'x')", "INSERT INTO r (\"id\", \"a\", \"c\") VALUES (900, 1, 'x')"),
        (
            "WITH x(i) AS (SELECT 901) INSERT OR IGNORE INTO r SELECT i, ?, 'y' FROM x ON CONFLICT DO NOTHING",
            "WITH x(i) AS (SELECT 901) INSERT OR IGNORE INTO r (\"id\", \"a\", \"c\") SELECT i, ?1, 'y' FROM x ON CONFLICT DO NOTHING",
        ),
        ("INSERT INTO r (id) VALUES (902)", "INSERT INTO r (id) VALUES (902)"),
        ("INSERT INTO r DEFAULT VALUES", "INSERT INTO r DEFAULT VALUES"),
    ] {
        let plan = write_plan(&world, sql).unwrap();
        let values = vec![Value::Integer(1); usize::from(sql.contains('?'))];
        let route = plan.route(&Params::Positional(&values), PARTITIONS, &Ids::none()).unwrap();
        assert_eq!((&*route.statements[0].sql, &route.statements[0].params), (wanted, &values), "{sql}");
    }
}

/// One statement after the other, on all copies.
#[test]
fn reference_tables_are_written_together_with_others() {
    let world = rich(false);
    for sql in [
        "INSERT INTO r VALUES (900, 1, 'x'), (901, NULL, 'é'); UPDATE t SET a = 1 WHERE k = 3",
        "DELETE FROM u WHERE k = 1; UPDATE r SET a = id + 1 WHERE a IS NULL RETURNING id, a",
        "INSERT INTO r (c) VALUES ('n') RETURNING id; INSERT INTO one (a) VALUES (7); DELETE FROM r WHERE c = 'n'",
        "UPDATE r SET c = 'y' WHERE id > 900; INSERT INTO s SELECT 'w' || id, a, id FROM r WHERE c = 'y'; UPDATE t SET a = (SELECT count(*) FROM r)",
        "WITH q AS (SELECT max(id) AS id FROM r) INSERT INTO r SELECT id + 1, 5, 'z' FROM q ORDER BY 1; DELETE FROM s; DELETE FROM r WHERE id > 1",
    ] {
        let plan = write_plan(&world, sql).unwrap();
        let route = plan.route(&NONE, PARTITIONS, &Ids::none()).unwrap();
        assert!(plan.is_stepwise() && matches!(route.target, WriteTarget::Spread { .. }), "{sql}: {route:?}");
        assert_eq!(world.check_write(sql, &[]), Ok(Ended::Done), "{sql}");
    }
    for alone in ["DELETE FROM r WHERE id = 1", "DELETE FROM r; INSERT INTO r VALUES (1, 1, 'x')"] {
        assert!(!write_plan(&world, alone).unwrap().is_stepwise(), "{alone}");
        assert_eq!(world.check_write(alone, &[]), Ok(Ended::Done), "{alone}");
    }
    // Where other rows refer to a reference table each shard has a say, but not in what only adds rows.
    let mut world = rich(false);
    world
        .ddl("CREATE TABLE x (id INTEGER PRIMARY KEY, r INTEGER REFERENCES r (id) ON DELETE CASCADE) SHARD BY (id)")
        .unwrap();
    for (sql, stepwise) in [
        ("DELETE FROM r WHERE id = 1", true),
        ("UPDATE r SET a = 1", true),
        ("REPLACE INTO r VALUES (1, 1, 'x')", true),
        ("INSERT INTO r VALUES (1, 1, 'x') ON CONFLICT DO NOTHING", true),
        ("INSERT INTO r VALUES (901, 1, 'x')", false),
        ("DELETE FROM r WHERE id = 5; UPDATE t SET a = (SELECT count(*) FROM x)", true),
    ] {
        let plan = write_plan(&world, sql).unwrap();
        assert_eq!(plan.is_stepwise(), stepwise, "{sql}");
        assert_eq!(plan.route(&NONE, PARTITIONS, &Ids::none()).unwrap().target == WriteTarget::Reference, !stepwise);
    }
    let past =
        write_plan(&world, "INSERT INTO t (k, id) VALUES (1, 99); INSERT INTO r (a) VALUES (changes())").unwrap();
    let refused = past.spread(&NONE, PARTITIONS, &Ids::none()).unwrap_err();
    assert_eq!(refused.sqlstate(), "0A000");
}

#[test]
fn refused_with_what_to_do() {
    let world = rich(false);
    for (sql, code, says) in [
        ("UPDATE OR IGNORE t SET k = 3", "0A000", "OR IGNORE"),
        ("INSERT INTO t (k, id) VALUES (1, 2) ON CONFLICT DO UPDATE SET k = 3", "0A000", "an upsert that changes"),
        (
            "INSERT INTO t (k, id) VALUES (1, 2) ON CONFLICT DO NOTHING ON CONFLICT DO UPDATE SET (a, K) = (1, 2)",
            "0A000",
            "t.k",
        ),
        ("UPDATE t SET a = (SELECT count(*) FROM t z WHERE z.a < t.a)", "0A000", "row by row"),
        (
            "WITH q AS (SELECT a FROM t) UPDATE t SET a = (SELECT count(*) FROM q WHERE q.a < t.a)",
            "0A000",
            "row by row",
        ),
        (
            "WITH u AS (SELECT * FROM t) UPDATE t SET a = (SELECT count(*) FROM u WHERE u.a < t.a)",
            "0A000",
            "row by row",
        ),
        ("UPDATE t SET (a, f) = (SELECT x, y FROM u WHERE u.id = t.id)", "0A000", "a row of values"),
        ("UPDATE t SET (a, f) = (SELECT max(x), y FROM u)", "0A000", "a row of values"),
        ("UPDATE t SET a = changes()", "0A000", "changes()"),
        ("INSERT INTO u (k, id) SELECT k, last_insert_rowid() FROM t", "0A000", "last_insert_rowid()"),
        ("DELETE FROM t RETURNING (SELECT max(x) FROM u)", "0A000", "RETURNING"),
        ("INSERT INTO r SELECT id + 100, a, c FROM r", "0A000", "ORDER BY"),
        ("INSERT INTO r SELECT a, a, c FROM one ORDER BY 1", "0A000", "can't read one"),
        ("INSERT INTO r SELECT * FROM r AS x ORDER BY id", "0A000", "number of columns"),
        ("WITH t AS (SELECT 1) DELETE FROM t", "0A000", "has the name of the table"),
        ("WITH q AS (SELECT 1), DELETE FROM t", "42601", "syntax error"),
        ("WITH q AS (DELETE FROM t RETURNING *) SELECT * FROM q", "0A000", "inside WITH"),
        ("UPDATE t SET g = 1, a = (SELECT v FROM s)", "42703", "no column g that can be set"),
        ("UPDATE t SET a = 1 FROM u, s NATURAL JOIN r", "0A000", "commas"),
    ] {
        let error = match world.prepare(sql) {
            Err(error) => error,
            Ok(plan) => plan.explain(&NONE, PARTITIONS).expect_err(sql),
        };
        assert_eq!(error.sqlstate(), code, "{sql}: {}", error.message);
        assert!(error.message.contains(says), "{sql}: {}", error.message);
        assert!(code != "0A000" || error.hint.is_some(), "{sql} needs a hint");
    }
}

/// Each is done, with the same effect as in one database.
#[test]
fn corners() {
    for foreign_rows in [false, true] {
        let world = rich(foreign_rows);
        for (sql, values) in [
            (
                "UPDATE /* a;b */ t AS \"q z\" SET [a] = \"q z\".k % 7, `c` = 'it''s' -- ; WHERE\n WHERE \"q z\".id IN (SELECT id FROM u WHERE x > :low) RETURNING *",
                vec![Value::Integer(2)],
            ),
            (
                "UPDATE t SET a = ?2, c = ?1 WHERE id IN (SELECT id FROM u WHERE x > ?2) AND b IS NOT ?1",
                vec![Value::from("x"), Value::Integer(1)],
            ),
            ("UPDATE t SET a = 4, a = 5 WHERE id IN (SELECT id FROM u)", vec![]),
            ("UPDATE t SET a = NOT (a IS DISTINCT FROM 3) WHERE c IS NOT DISTINCT FROM 'a'", vec![]),
            ("UPDATE t SET f = CASE WHEN a > 1 THEN (SELECT 'from' FROM one LIMIT 1) END WHERE k > 3", vec![]),
            ("UPDATE t SET f = z.y FROM r RIGHT JOIN u z ON r.id = z.x WHERE z.k = t.k AND z.id = t.id", vec![]),
            ("UPDATE t SET f = (SELECT k FROM s WHERE w = 'a') FROM (SELECT 1)", vec![]),
            ("UPDATE s SET w = w WHERE v > 1 RETURNING *", vec![]),
            ("UPDATE t SET k = '  7 ', id = id + 5000 WHERE a = 3 RETURNING k, typeof(k)", vec![]),
            ("UPDATE t SET k = 9 WHERE k = 8 AND id = -1 RETURNING *, a + 1", vec![]),
            ("UPDATE one SET a = (SELECT count(*) FROM t WHERE t.k = one.id), id = id + 100 RETURNING *", vec![]),
            ("DELETE FROM one WHERE id IN (SELECT k FROM u) RETURNING c AS \"from\", 1", vec![]),
            ("DELETE FROM t AS z WHERE (SELECT count(*) FROM u WHERE u.k = z.k) > 1 OR z.k = 3 RETURNING *", vec![]),
            ("DELETE FROM u WHERE k = 1.5", vec![]),
            (
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) INSERT INTO t (k, id) SELECT i, i + 9000 FROM n RETURNING k",
                vec![],
            ),
            (
                "WITH q AS (SELECT 70 AS v) REPLACE INTO u (id, k, x) WITH p AS (SELECT v FROM q) SELECT v, v % 7, ?1 FROM p",
                vec![Value::Integer(i64::MIN)],
            ),
            (
                "INSERT INTO t AS z (id, k, a) VALUES (9001, 1, 1), (9002, 2, 1) ON CONFLICT (k, id) DO UPDATE SET a = z.a + excluded.a + ?1",
                vec![Value::Integer(1)],
            ),
            (
                "INSERT INTO t (k, id, a) VALUES (1, 9100, ?1), (TRUE, 9101, ?1), (2, ?2, ?1), (-3, 9103, ?1) RETURNING k, id, a",
                vec![Value::Integer(i64::MAX), Value::Integer(9102)],
            ),
            ("INSERT OR IGNORE INTO t (k, id, a) VALUES (1, 9100, 5), (2, 9102, 5), (5, 9104, 5)", vec![]),
            (
                "INSERT INTO t (k, id) VALUES (1, 9300), (2, NULL), (3, (SELECT max(id) + 1 FROM t)) RETURNING id",
                vec![],
            ),
            ("INSERT INTO empty DEFAULT VALUES RETURNING *", vec![]),
            ("INSERT INTO empty (a) VALUES (1), (2), (3) RETURNING k", vec![]),
            (
                "INSERT INTO empty SELECT k + 50, x FROM u WHERE k > 9 AND id = (SELECT max(z.id) FROM u z WHERE z.k = u.k) RETURNING k",
                vec![],
            ),
            ("INSERT INTO empty (k, a) SELECT NULL, w FROM s ORDER BY w LIMIT 3", vec![]),
            ("UPDATE empty SET k = k + 500 RETURNING k", vec![]),
            (
                "DELETE FROM t; INSERT INTO t (k, id, a) SELECT k, id, x % 9 FROM u; UPDATE t SET a = (SELECT count(*) FROM u)",
                vec![],
            ),
            ("INSERT INTO r SELECT id + 100, a, c FROM r ORDER BY id", vec![]),
            ("INSERT INTO u (k, id, y) VALUES (900, 1, 'only one')", vec![]),
        ] {
            let ended = world.check_write(sql, &values).unwrap_or_else(|problem| panic!("{problem}"));
            assert_eq!(ended, Ended::Done, "{sql}");
        }
    }
}

#[test]
fn ids_that_are_not_the_key() {
    let mut world = rich(false);
    let kind = TableKind::Sharded { key: "k".to_owned(), key_type: KeyType::Integer };
    world.declare("CREATE TABLE p (id INTEGER PRIMARY KEY, k INTEGER NOT NULL, v TEXT)", "p", kind);
    for (sql, expected) in [
        ("INSERT INTO p (k, v) VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd') RETURNING *", Ended::Done),
        ("INSERT INTO p VALUES (NULL, 5, 'e'), (NULL, 6, 'f') RETURNING id", Ended::Done),
        ("INSERT INTO p (k) VALUES (abs(-7)), (8)", Ended::Done),
        ("INSERT INTO p (v, k) SELECT v, k + 1 FROM p ORDER BY id RETURNING id", Ended::Done),
        ("UPDATE p SET k = k * 3, v = v || id RETURNING *", Ended::Done),
        ("DELETE FROM p WHERE v = (SELECT max(v) FROM p) RETURNING id", Ended::Done),
        ("INSERT INTO p (v) VALUES ('no key')", Ended::Failed),
        ("INSERT INTO p (id, k) VALUES (1000, 1), (1001, 2)", Ended::Refused),
        ("INSERT INTO p SELECT 1000, 1, 'x'", Ended::Refused),
        ("UPDATE p SET id = id + 1", Ended::Refused),
    ] {
        assert_eq!(world.check_write(sql, &[]), Ok(expected), "{sql}");
    }
}

#[test]
fn ids_are_asked_for_and_given() {
    let world = rich(false);
    let table = world.tables["empty"].id;
    let plan = write_plan(
        &world,
        "INSERT INTO empty VALUES (NULL, 1), (?, 2), (70, 3), ('80', 4); INSERT INTO empty (a) VALUES (5)",
    )
    .unwrap();
    for (value, wanted, given) in [(Value::Null, 3, 80), (Value::Integer(90), 2, 90)] {
        let values = [value];
        let params = Params::Positional(&values);
        let asked = plan.ids_wanted(&params).unwrap();
        let asked: Vec<_> = asked.iter().map(|ids| (ids.table, ids.count, ids.above)).collect();
        assert_eq!(asked, [(table, wanted, Some(given))]);
        let refused = plan.route(&params, PARTITIONS, &Ids::none()).unwrap_err();
        assert_eq!(refused.sqlstate(), "23502", "no ids were handed over");
        let route = plan.route(&params, PARTITIONS, &Ids::none().with(table, 500)).unwrap();
        let ids: Vec<Value> = route.statements.iter().flat_map(|statement| statement.params.clone()).collect();
        assert!(ids.contains(&Value::Integer(500)) && ids.contains(&Value::Integer(501)), "{ids:?}");
    }
    let columns = vec!["a".to_owned()];
    let bulk = BulkIds::of(&world.tables["empty"], &columns).unwrap();
    let (mut columns, mut rows) = (columns, vec![vec![Value::Integer(1)], vec![Value::Null]]);
    let wanted = bulk.wanted(rows.iter().map(Vec::as_slice)).unwrap().unwrap();
    assert_eq!((wanted.table, wanted.count, wanted.above), (table, 2, None));
    bulk.fill(&mut columns, &mut rows, 9);
    assert_eq!(columns, ["a", "k"]);
    assert_eq!(rows, [vec![Value::Integer(1), Value::Integer(9)], vec![Value::Null, Value::Integer(10)]]);
    let bulk = BulkIds::of(&world.tables["empty"], &["K".to_owned()]).unwrap();
    let wanted = bulk.wanted([[Value::from("7")].as_slice(), &[Value::Null]]).unwrap().unwrap();
    assert_eq!((wanted.count, wanted.above), (1, Some(7)));
    assert_eq!(bulk.wanted([[Value::from("7")].as_slice()]).unwrap(), None);
    assert!(BulkIds::of(&world.tables["t"], &[]).is_none());
    assert_ne!(table, TableId(0));
}

#[test]
fn what_the_caller_must_know() {
    let world = rich(false);
    let stepwise = |sql| write_plan(&world, sql).unwrap().is_stepwise();
    assert!(stepwise("DELETE FROM u; UPDATE t SET a = (SELECT count(*) FROM u)"));
    assert!(stepwise("UPDATE t SET k = k + 1; UPDATE t SET k = k + 1"));
    assert!(!stepwise("UPDATE t SET a = (SELECT count(*) FROM u); DELETE FROM u"));
    assert!(!stepwise("DELETE FROM t; UPDATE t SET a = 1"));
    let spread = |sql| write_plan(&world, sql).unwrap().spread(&NONE, PARTITIONS, &Ids::none()).unwrap().remove(0);
    assert!(spread("UPDATE t SET a = 1").notice().unwrap().contains("every shard"));
    assert!(spread("DELETE FROM t WHERE id IN (SELECT id FROM u)").notice().unwrap().contains("read"));
    assert_eq!(spread("DELETE FROM t WHERE k IN (1, 2)").notice(), None);
    let target = |sql| write_plan(&world, sql).unwrap().route(&NONE, PARTITIONS, &Ids::none()).unwrap().target;
    assert!(matches!(target("UPDATE t SET k = 1 WHERE k = 1"), WriteTarget::Spread { .. }), "on one shard too");
    assert!(matches!(target("DELETE FROM t WHERE k = 1"), WriteTarget::Units(_)));
    assert!(matches!(spread("INSERT INTO u SELECT * FROM u WHERE k > 7"), SpreadWrite::Same { .. }));
    let SpreadWrite::Same { prune, sql_filtered, .. } = spread("DELETE FROM t WHERE k IN (1, 2) AND a OR k = 1") else {
        panic!("each shard deletes its own")
    };
    assert_eq!(prune.unwrap().len(), 2);
    assert_eq!(
        &*sql_filtered.unwrap(),
        "DELETE FROM t WHERE pleat_owned(\"t\".\"k\") AND (k IN (1, 2) AND a OR k = 1)"
    );
}

#[test]
fn rows_are_cut_by_partition() {
    let world = rich(false);
    let plan = write_plan(&world, "INSERT INTO t (id, k) VALUES (1, 5), (2, ?1), (3, 5) RETURNING id").unwrap();
    let values = [Value::Integer(6)];
    let mut writes = plan.spread(&Params::Positional(&values), PARTITIONS, &Ids::none()).unwrap();
    let SpreadWrite::Rows(rows) = writes.remove(0) else { panic!("rows say their keys") };
    let partitions = rows.partitions();
    assert_eq!(partitions.len(), 2);
    let of = |partition: PartitionId| rows.on(&BTreeSet::from([partition])).unwrap();
    let texts: BTreeMap<String, Vec<Value>> =
        partitions.iter().map(|partition| (of(*partition).sql.to_string(), of(*partition).params)).collect();
    assert_eq!(texts["INSERT INTO t (id, k) VALUES (1, 5), (3, 5) RETURNING id"], []);
    assert_eq!(texts["INSERT INTO t (id, k) VALUES (2, ?1) RETURNING id"], values);
    assert_eq!(rows.on(&BTreeSet::new()), None);
    assert_eq!(rows.on(&BTreeSet::from([rows.last().unwrap()])).unwrap().params, []);
}

/// SQLite goes row by row and meets a duplicate; Pleat checks at the end of the statement, as standard SQL does.
#[test]
fn rows_may_exchange_their_shard_keys() {
    let world = rich(false);
    let sql = "UPDATE s SET w = CASE w WHEN 'a' THEN 'b' ELSE 'a' END WHERE w IN ('a', 'b')";
    let differs = world.check_write(sql, &[]).unwrap_err();
    assert!(differs.contains("done, but SQLite says UNIQUE constraint failed"), "{differs}");
    let sql = "UPDATE s SET w = 'b' WHERE w IN ('a', 'A')";
    assert_eq!(world.check_write(sql, &[]), Ok(Ended::Failed), "two rows can't have one key");
}
