//! What Pleat does with a statement, and what it refuses. Each case is a statement and, below it, what EXPLAIN says.

mod world;

use std::collections::BTreeMap;

use pleat_cluster::Value;
use pleat_sql::{Params, SqlError, Statement, split_script};
use world::{Failure, World, rich};

fn refusal(world: &World, sql: &str) -> SqlError {
    let plan = match world.prepare(sql) {
        Err(error) => return error,
        Ok(plan) => plan,
    };
    let values: Vec<Value> = Vec::new();
    let params = Params::Positional(&values);
    let refused = match &plan {
        Statement::Read(plan) => plan.scatter(&params, world::PARTITIONS).err(),
        other => other.explain(&params, world::PARTITIONS).err(),
    };
    refused.unwrap_or_else(|| panic!("not refused: {sql}\n{}", world.explain(sql, &[])))
}

#[test]
fn refusals_say_what_to_do() {
    let world = rich(false);
    for (sql, code, says) in [
        ("", "42601", "no statement"),
        (" ;; -- nothing", "42601", "no statement"),
        ("SELEC 1", "42601", "can't start with SELEC"),
        ("SELECT FROM t WHERE", "42601", "syntax error"),
        ("SELECT * FROM t WHERE (k = 1", "42601", "syntax error"),
        ("SELECT 'a", "42601", "never closed"),
        ("SELECT * FROM nope", "42P01", "no such table: nope"),
        ("SELECT * FROM t, (SELECT * FROM nope) x", "42P01", "no such table: nope"),
        ("SELECT t.nope FROM t", "42703", "no column nope"),
        ("SELECT nope FROM t", "42703", "no such column: nope"),
        ("SELECT * FROM t WHERE c = \"text\"", "42703", "no such column: text"),
        ("SELECT * FROM sqlite_master", "0A000", "describes one shard"),
        ("SELECT * FROM pragma_table_info('t')", "0A000", "describes one shard"),
        ("SELECT * FROM __pleat_ownership", "0A000", "describes one shard"),
        ("SELECT * FROM generate_series(1, 3)", "0A000", "can't be used as a table"),
        ("SELECT * FROM other.t", "0A000", "one schema"),
        ("SELECT rowid FROM t", "0A000", "rowid names a row only within one shard"),
        ("SELECT t._rowid_ FROM t ORDER BY oid", "0A000", "rowid"),
        ("SELECT pleat_owned(k) FROM t", "0A000", "Pleat's own"),
        ("BEGIN", "0A000", "belong to a session"),
        ("PRAGMA user_version", "0A000", "PRAGMA"),
        ("ATTACH 'x' AS y", "0A000", "attached"),
        ("VACUUM", "0A000", "maintenance"),
        ("EXPLAIN", "42601", "followed by a statement"),
        ("SELECT 1; SELECT 2", "0A000", "can only write"),
        ("SELECT * FROM t FOR UPDATE", "42601", ""),
        ("SELECT TOP 3 * FROM t", "42601", ""),
        ("INSERT INTO t (id, a) VALUES (1, 2)", "23502", "shard key t.k can't be NULL"),
        ("INSERT INTO t (k, id) VALUES (NULL, 2)", "23502", "shard key t.k can't be NULL"),
        ("INSERT INTO t DEFAULT VALUES", "23502", "shard key"),
        (
            "INSERT INTO t (k, id) VALUES ('x', 2)",
            "22P02",
            "row 1: the shard key t.k holds integer values, not this text",
        ),
        ("INSERT INTO t (k, id) VALUES (1.5, 2)", "22P02", "not this real"),
        ("INSERT INTO t (k, id) VALUES (1)", "42601", "row 1 has 1 values for 2 columns"),
        ("INSERT INTO t (k, nope) VALUES (1, 2)", "42703", "no column nope"),
        ("INSERT INTO nope VALUES (1)", "42P01", "no such table"),
        ("INSERT OR ROLLBACK INTO t (k, id) VALUES (1, 2)", "0A000", "OR ROLLBACK"),
        ("UPDATE t SET a = nope WHERE k = 2", "42703", "no such column: nope"),
        ("UPDATE r SET a = (SELECT max(a) FROM t)", "0A000", "can't read t"),
        ("INSERT INTO r SELECT a, a, c FROM one", "0A000", "can't read one"),
        ("DELETE FROM r WHERE id IN (SELECT id FROM r LIMIT 1)", "0A000", "LIMIT but no ORDER BY"),
        ("DELETE FROM t WHERE k = 1 LIMIT 1", "0A000", "LIMIT"),
        ("DELETE FROM t WHERE rowid = 1", "0A000", "rowid"),
        ("DELETE FROM sqlite_master", "0A000", "describes one shard"),
        ("SELECT ?", "07001", "1 parameters, but 0 values"),
        ("CREATE TABLE t (a)", "42P07", "exists already"),
        ("CREATE TABLE __pleat_x (a)", "42939", "reserved"),
        ("CREATE TABLE sqlite_x (a)", "42939", "reserved"),
        ("CREATE TABLE x (__pleat_a)", "42939", "reserved"),
        ("CREATE TABLE x AS SELECT 1", "0A000", "AS SELECT"),
        ("CREATE TEMP TABLE x (a)", "0A000", "temporary"),
        ("CREATE TEMP VIEW v AS SELECT 1", "0A000", "temporary"),
        ("CREATE TRIGGER x AFTER INSERT ON r BEGIN SELECT 1; SELECT 2; END", "0A000", "triggers"),
        ("CREATE VIRTUAL TABLE x USING fts5(a)", "0A000", "virtual tables"),
        ("CREATE TABLE x (a) SHARD BY (a, b)", "0A000", "several columns"),
        ("CREATE TABLE x (a) SHARD BY a", "42601", "was expected"),
        ("CREATE TABLE x (a) SHARD BY (a) REFERENCE", "42601", "given twice"),
        ("CREATE TABLE x (a) SHARDED", "42601", "was expected"),
        ("CREATE TABLE x (a", "42601", "closing )"),
        ("DROP TABLE nope", "42P01", "no such table"),
        ("DROP INDEX nope", "42704", "no such index"),
        ("CREATE INDEX i ON nope (a)", "42P01", "no such table"),
        ("CREATE UNIQUE INDEX i ON t (a)", "42P16", "does not contain the shard key k"),
        ("CREATE UNIQUE INDEX i ON s (w COLLATE NOCASE)", "42P16", "does not contain the shard key w"),
        ("CREATE UNIQUE INDEX i ON s (lower(w))", "42P16", "does not contain the shard key w"),
        ("ALTER TABLE t SHARD BY (nope)", "42703", "no such column"),
        ("ALTER TABLE t SHARD BY (a, k)", "0A000", "several columns"),
        ("ALTER TABLE t REFERENCE SINGLE", "42601", "the end of the statement"),
        ("ALTER TABLE nope SINGLE", "42P01", "no such table"),
        ("ALTER TABLE t RENAME TO u", "42P07", "u exists already"),
        ("ALTER TABLE t RENAME TO sqlite_z", "42939", "reserved"),
        ("ALTER TABLE t RENAME a b", "42601", "TO and the new name was expected"),
        ("ALTER TABLE t RENAME COLUMN nope TO b", "42703", "no column nope"),
        ("ALTER TABLE t DROP COLUMN nope", "42703", "no column nope"),
        ("ALTER TABLE t DROP K", "42P16", "k is the shard key of t"),
        ("ALTER TABLE r RENAME COLUMN a TO b", "0A000", "nothing of the reference table r is renamed"),
        ("ALTER TABLE nope DROP COLUMN a", "42P01", "no such table"),
        ("CREATE TABLE x (a UNIQUE PER KEY) SINGLE", "42P16", "this table has none"),
        ("CREATE UNIQUE INDEX i ON r (a) PER KEY", "42P16", "this table has none"),
        ("CREATE INDEX i ON t (a) PER KEY", "42601", "UNIQUE before INDEX"),
        ("ALTER TABLE t ADD COLUMN sqlite_a", "42939", "reserved"),
    ] {
        let error = refusal(&world, sql);
        assert_eq!(error.sqlstate(), code, "{sql}: {error:?}");
        assert!(error.message.contains(says), "{sql}: {error:?}");
    }
}

#[test]
fn errors_have_their_place() {
    let world = rich(false);
    for (sql, line, column) in [
        ("SELECT *\nFROM  nope", 2, 7),
        ("SELECT é, t.nope FROM t", 1, 13),
        ("SELECT 1 +", 1, 11),
        ("SELECT\n  rowid FROM t", 2, 3),
    ] {
        let position = refusal(&world, sql).position.unwrap_or_else(|| panic!("no place: {sql}"));
        assert_eq!((position.line, position.column), (line, column), "{sql}");
    }
}

#[test]
fn tables_that_keep_their_promises() {
    for (sql, outcome) in [
        ("CREATE TABLE x (a INTEGER PRIMARY KEY, b) SHARD BY (a)", "sharded"),
        ("CREATE TABLE x (id INTEGER PRIMARY KEY, k TEXT) SHARD BY (k)", "sharded"),
        ("CREATE TABLE x (id INTEGER, k TEXT, PRIMARY KEY (id)) SHARD BY (k)", "sharded"),
        ("CREATE TABLE x (id INTEGER PRIMARY KEY AUTOINCREMENT, k TEXT) SHARD BY (k)", "sharded"),
        ("CREATE TABLE x (a INTEGER PRIMARY KEY AUTOINCREMENT) SHARD BY (a)", "sharded"),
        ("CREATE TABLE x (a INTEGER PRIMARY KEY, b) SHARD BY (A) STRICT", "missing datatype"),
        ("CREATE TABLE x (a INTEGER PRIMARY KEY, b ANY) SHARD BY (A) STRICT", "sharded"),
        (
            "CREATE TABLE x (\"a b\" VARCHAR(20), [c] BIGINT, PRIMARY KEY ([c], `a b`)) without rowid shard by (\"a b\")",
            "sharded",
        ),
        ("CREATE TABLE x (a BLOB NOT NULL PRIMARY KEY) SHARD BY (a)", "sharded"),
        (
            "CREATE TABLE x (a TEXT, b, PRIMARY KEY (a), UNIQUE (b, a), CHECK (b <> 'UNIQUE')) SHARD BY (a) -- ok",
            "sharded",
        ),
        (
            "CREATE TABLE x (id INTEGER, k INTEGER, p INTEGER, PRIMARY KEY (k, id), FOREIGN KEY (p, k) REFERENCES t (id, k)) SHARD BY (k)",
            "sharded",
        ),
        (
            "CREATE TABLE x (k INTEGER, id INTEGER, p INTEGER, PRIMARY KEY (k, id), FOREIGN KEY (k, p) REFERENCES x) SHARD BY (k)",
            "sharded",
        ),
        ("CREATE TABLE x (a INTEGER PRIMARY KEY REFERENCES x (a)) SHARD BY (a)", "sharded"),
        ("CREATE TABLE x (a INTEGER PRIMARY KEY, FOREIGN KEY (a) REFERENCES r (id)) REFERENCE", "reference"),
        ("CREATE TABLE x (id INTEGER PRIMARY KEY, p REFERENCES x (id)) SINGLE", "single"),
        (
            "CREATE TABLE x (a INTEGER PRIMARY KEY, b UNIQUE PER KEY, c INT, UNIQUE (c, b) PER KEY) SHARD BY (a)",
            "sharded",
        ),
        ("CREATE TABLE x (a, b) REFERENCE", "reference"),
        ("CREATE TABLE x (a, b UNIQUE) SINGLE", "single"),
        ("CREATE TABLE x (a, b)", "single"),
        ("CREATE TABLE configured (user_id INTEGER, b, PRIMARY KEY (user_id))", "sharded"),
        ("CREATE TABLE configured (user_id INTEGER) SINGLE", "single"),
        ("CREATE TABLE x (id INTEGER PRIMARY KEY AUTOINCREMENT, p INT REFERENCES one (id)) SINGLE", "single"),
        ("CREATE TABLE x (a INTEGER PRIMARY KEY) SHARD BY (b)", "42703"),
        ("CREATE TABLE x (a REAL PRIMARY KEY) SHARD BY (a)", "42P16"),
        ("CREATE TABLE x (a NUMERIC PRIMARY KEY) SHARD BY (a)", "42P16"),
        ("CREATE TABLE x (a DECIMAL(10, 2) PRIMARY KEY) SHARD BY (a)", "42P16"),
        ("CREATE TABLE x (a DATE PRIMARY KEY) SHARD BY (a)", "42P16"),
        ("CREATE TABLE x (a BOOLEAN PRIMARY KEY) SHARD BY (a)", "42P16"),
        ("CREATE TABLE x (a PRIMARY KEY) SHARD BY (a)", "42P16"),
        ("CREATE TABLE x (a ANY PRIMARY KEY) STRICT, SHARD BY (a)", "42P16"),
        ("CREATE TABLE x (a TEXT COLLATE NOCASE PRIMARY KEY) SHARD BY (a)", "42P16"),
        ("CREATE TABLE x (a TEXT COLLATE RTRIM PRIMARY KEY) SHARD BY (a)", "42P16"),
        ("CREATE TABLE x (a INTEGER) SHARD BY (a)", "42P16"),
        ("CREATE TABLE x (a INTEGER, b INT PRIMARY KEY) SHARD BY (a)", "42P16"),
        ("CREATE TABLE x (a INTEGER, b INTEGER PRIMARY KEY) WITHOUT ROWID, SHARD BY (a)", "42P16"),
        ("CREATE TABLE x (a INTEGER PRIMARY KEY, b UNIQUE) SHARD BY (a)", "42P16"),
        ("CREATE TABLE x (a INTEGER PRIMARY KEY, b, UNIQUE (b)) SHARD BY (a)", "42P16"),
        ("CREATE TABLE x (a TEXT, PRIMARY KEY (a COLLATE NOCASE)) SHARD BY (a)", "42P16"),
        ("CREATE TABLE x (a INTEGER PRIMARY KEY, b INT AS (a) STORED) SHARD BY (b)", "42P16"),
        ("CREATE TABLE x (a INTEGER PRIMARY KEY AUTOINCREMENT) REFERENCE", "0A000"),
        ("CREATE TABLE x (a INTEGER PRIMARY KEY REFERENCES one (id)) SHARD BY (a)", "0A000"),
        ("CREATE TABLE x (a INTEGER PRIMARY KEY, r INTEGER REFERENCES r (id)) SHARD BY (a)", "sharded"),
        ("CREATE TABLE x (a INTEGER PRIMARY KEY REFERENCES r (id)) SINGLE", "single"),
        (
            "CREATE TABLE x (k INTEGER, p INTEGER, PRIMARY KEY (k, p), FOREIGN KEY (p) REFERENCES t (id)) SHARD BY (k)",
            "0A000",
        ),
        (
            "CREATE TABLE x (k INTEGER, p INTEGER, PRIMARY KEY (k, p), FOREIGN KEY (k, p) REFERENCES t (id, k)) SHARD BY (k)",
            "0A000",
        ),
        (
            "CREATE TABLE x (k TEXT, p INTEGER, PRIMARY KEY (k, p), FOREIGN KEY (k, p) REFERENCES t (k, id)) SHARD BY (k)",
            "0A000",
        ),
        ("CREATE TABLE x (a INTEGER PRIMARY KEY REFERENCES t (id)) REFERENCE", "0A000"),
        ("CREATE TABLE x (a INTEGER PRIMARY KEY REFERENCES t (id)) SINGLE", "0A000"),
    ] {
        let mut world = rich(false);
        world.default_keys = BTreeMap::from([("Configured".to_owned(), "user_id".to_owned())]);
        let found = match world.ddl(sql) {
            Ok(()) => {
                let table = world.tables.get("x").or(world.tables.get("configured")).unwrap();
                assert!(!table.create_sql.to_lowercase().contains("shard"), "{}", table.create_sql);
                table.kind_name().to_owned()
            }
            Err(Failure::Refused(error)) => {
                assert!(error.hint.is_some(), "no hint: {sql}: {error:?}");
                error.sqlstate().to_owned()
            }
            Err(Failure::Sqlite(error)) => error,
        };
        assert!(found.contains(outcome), "{sql}: {found}");
    }
}

#[test]
fn schema_changes() {
    let mut world = rich(false);
    let Ok(Statement::Ddl(plan)) = world.prepare("CREATE TABLE x (a, -- key\n b) SINGLE WITHOUT ROWID") else {
        panic!()
    };
    assert_eq!(plan.statements, ["CREATE TABLE x (a, -- key\n b) WITHOUT ROWID"]);
    assert_eq!(plan.notice, None);
    let Ok(Statement::Ddl(plan)) = world.prepare("CREATE TABLE main.x (a)") else { panic!() };
    assert!(plan.notice.unwrap().contains("single"));
    for sql in [
        "CREATE TABLE IF NOT EXISTS t (whatever) SHARD BY (whatever)",
        "DROP TABLE IF EXISTS nope",
        "DROP INDEX IF EXISTS nope",
        "CREATE INDEX t_a ON t (a DESC, lower(c)) WHERE a > 0",
        "CREATE INDEX IF NOT EXISTS T_A ON t (b)",
        "CREATE UNIQUE INDEX t_b ON t (id, k)",
        "ALTER TABLE t ADD COLUMN z TEXT DEFAULT 'x'",
        "ALTER TABLE t ADD y",
        "DROP INDEX T_b",
        "DROP TABLE u",
    ] {
        world.ddl(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    let table = &world.tables["t"];
    assert_eq!(table.indexes.iter().map(|index| index.name.as_str()).collect::<Vec<_>>(), ["t_a"]);
    assert_eq!(table.columns.last().unwrap().name, "y");
    assert!(!world.tables.contains_key("u"));
    assert_eq!(world.check("SELECT k, z, y FROM t WHERE z = 'x' ORDER BY k, id LIMIT 3", &[]), Ok(false));
}

#[test]
fn another_placement_keeps_every_promise() {
    let mut world = World::new(3, false);
    for sql in [
        "CREATE TABLE s (\"a b\" INTEGER, Ключ TEXT, v, PRIMARY KEY (\"a b\", Ключ)) SINGLE",
        "CREATE UNIQUE INDEX \"s (odd\" ON s (v, \"a b\") WHERE v > 0",
        "CREATE TABLE counted (id INTEGER PRIMARY KEY AUTOINCREMENT, v) SINGLE",
        "CREATE TABLE parent (id INTEGER PRIMARY KEY) REFERENCE",
        "CREATE TABLE child (id INTEGER PRIMARY KEY, p REFERENCES parent) REFERENCE",
        "CREATE TABLE tree (id INTEGER PRIMARY KEY, up REFERENCES tree) SINGLE",
        "CREATE TABLE keyless (v INTEGER) SINGLE",
        "CREATE TABLE beside (id INTEGER PRIMARY KEY, tenant TEXT) SHARD BY (tenant)",
        "CREATE TABLE toward (id INTEGER PRIMARY KEY, tenant TEXT) SINGLE",
        "CREATE TABLE per (k INTEGER, id INTEGER, email TEXT, PRIMARY KEY (k, id), UNIQUE (email) PER KEY) SHARD BY (k)",
    ] {
        world.ddl(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    for (sql, code, says) in [
        ("ALTER TABLE s SHARD BY (Ключ)", "42P16", "the unique index s (odd of s does not contain the shard key Ключ"),
        ("ALTER TABLE s SHARD BY (v)", "42P16", "has no declared type"),
        ("ALTER TABLE counted REFERENCE", "0A000", "has AUTOINCREMENT"),
        ("ALTER TABLE parent SINGLE", "0A000", "a foreign key ties it to child"),
        ("ALTER TABLE tree REFERENCE", "0A000", "a foreign key ties it to tree"),
        ("ALTER TABLE beside SINGLE", "0A000", "its primary key does not contain its shard key tenant"),
        ("ALTER TABLE keyless SHARD BY (v)", "42P16", "needs a primary key"),
        ("ALTER TABLE per SHARD BY (id)", "42P16", "a UNIQUE constraint of per does not contain the shard key id"),
    ] {
        let error = refusal(&world, sql);
        assert_eq!((error.sqlstate(), error.to_string().contains(says)), (code, true), "{sql}: {error}");
    }
    let kind = |world: &World| world.tables["s"].kind_name();
    for (sql, expected) in [
        ("ALTER TABLE S SHARD BY (\"A B\")", "sharded"),
        ("ALTER TABLE s REFERENCE", "reference"),
        ("ALTER TABLE IF EXISTS main.s SINGLE", "single"),
        ("ALTER TABLE per REFERENCE", "single"),
        ("ALTER TABLE toward SHARD BY (tenant)", "single"),
    ] {
        world.ddl(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        assert_eq!(kind(&world), expected, "{sql}");
        let Ok(Statement::Ddl(again)) = world.prepare(sql) else { panic!("{sql}") };
        assert!(again.notice.is_some_and(|notice| notice.contains("already: nothing to do")), "{sql}");
    }
}

#[test]
fn renames_and_dropped_columns() {
    let mut world = rich(false);
    for sql in [
        "CREATE INDEX t_a ON t (a)",
        "ALTER TABLE t RENAME COLUMN A TO amount",
        "ALTER TABLE t RENAME k TO \"the key\"",
        "ALTER TABLE T RENAME TO ledger",
        "ALTER TABLE ledger ADD COLUMN IF NOT EXISTS note TEXT",
        "ALTER TABLE ledger ADD COLUMN IF NOT EXISTS NOTE TEXT",
        "ALTER TABLE ledger DROP COLUMN IF EXISTS nope",
        "ALTER TABLE ledger DROP note",
        "ALTER TABLE IF EXISTS nope RENAME TO x",
    ] {
        world.ddl(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    assert!(!world.tables.contains_key("t"));
    let table = &world.tables["ledger"];
    assert_eq!((table.name.as_str(), table.shard_key().unwrap().0), ("ledger", "the key"));
    assert_eq!(table.indexes[0].sql, "CREATE INDEX t_a ON \"ledger\" (\"amount\")");
    assert!(table.column("note").is_none() && table.column("amount").is_some());
    let read = "SELECT \"the key\", amount FROM ledger WHERE amount > 0 ORDER BY \"the key\", id LIMIT 3";
    assert_eq!(world.check(read, &[]), Ok(false));
    assert_eq!(world.check("SELECT id, amount FROM ledger WHERE \"the key\" = 5", &[]), Ok(false));
    world.ddl("CREATE TABLE child (k INTEGER, id INTEGER, PRIMARY KEY (k, id), FOREIGN KEY (k, id) REFERENCES ledger (\"the key\", id)) SHARD BY (k)").unwrap();
    assert_eq!(refusal(&world, "ALTER TABLE ledger RENAME TO t").sqlstate(), "0A000");
}

#[test]
fn unique_per_key_is_unique_with_the_key() {
    let mut world = rich(false);
    let sql = "CREATE TABLE x (a INTEGER PRIMARY KEY, b TEXT NOT NULL UNIQUE PER KEY, c INT, UNIQUE (c, b) PER KEY ON CONFLICT IGNORE) SHARD BY (a)";
    let Ok(Statement::Ddl(plan)) = world.prepare(sql) else { panic!() };
    assert_eq!(
        plan.statements,
        [
            "CREATE TABLE x (a INTEGER PRIMARY KEY, b TEXT NOT NULL , c INT, UNIQUE (c, b, \"a\") ON CONFLICT IGNORE, UNIQUE (\"b\", \"a\"))"
        ]
    );
    world.ddl(sql).unwrap();
    let Ok(Statement::Ddl(plan)) = world.prepare("CREATE UNIQUE INDEX i ON t (a, b) PER KEY WHERE a > 0") else {
        panic!()
    };
    assert_eq!(plan.statements, ["CREATE UNIQUE INDEX i ON t (a, b, \"k\") WHERE a > 0"]);
}

#[test]
fn writes_reach_their_rows() {
    let world = rich(false);
    for (sql, values) in [
        ("INSERT INTO t (id, k, a) VALUES (1000, ?, 7)", vec![Value::from("5")]),
        (
            "INSERT INTO t (id, k, a) VALUES (1001, 5, 7), (1002, ' 5 ', 8), (1003, 5.0, 9) RETURNING id, k, typeof(k)",
            vec![],
        ),
        (
            "INSERT INTO t (id, k) VALUES (1000, 5) ON CONFLICT (k, id) DO UPDATE SET a = excluded.id WHERE t.a > 1 RETURNING *",
            vec![],
        ),
        ("INSERT OR REPLACE INTO t (id, k, a) VALUES (1000, 5, 70)", vec![]),
        ("REPLACE INTO u VALUES (1, 5, 70, 'x')", vec![]),
        ("INSERT OR IGNORE INTO u VALUES (1, 5, 71, 'y')", vec![]),
        ("UPDATE t SET a = a + ?2 WHERE ?1 = k RETURNING id, a", vec![Value::Integer(5), Value::Integer(3)]),
        ("UPDATE t SET a = u.x FROM u WHERE u.k = t.k AND t.k = 5 AND u.id = 1", vec![]),
        ("UPDATE t AS z SET a = (SELECT max(x) FROM u WHERE u.k = z.k) WHERE z.k = 6", vec![]),
        ("DELETE FROM t AS z WHERE z.k = 7 AND z.id > 10 RETURNING id", vec![]),
        ("DELETE FROM t WHERE k = NULL", vec![]),
        ("DELETE FROM s WHERE w = ?", vec![Value::Integer(5)]),
        (
            "INSERT INTO t (k, id, a) VALUES (?, ?, ?); UPDATE t SET a = ? WHERE k = ?1 AND id = ?2",
            (1..5).map(Value::Integer).collect(),
        ),
        ("UPDATE r SET a = a + 1", vec![]),
        ("DELETE FROM one WHERE id = 3", vec![]),
        ("INSERT INTO t (k, id) SELECT k, id + 500 FROM u WHERE k = 5", vec![]),
    ] {
        world.write(sql, &values).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    for table in ["t", "u", "s", "r", "one"] {
        assert_eq!(world.check(&format!("SELECT * FROM {table}"), &[]), Ok(false));
    }
    for sql in [
        "UPDATE t SET a = 1",
        "DELETE FROM t WHERE a = 1",
        "INSERT INTO t (k, id) VALUES (1, 900), (2, 900), (3, 900), (4, 900)",
    ] {
        assert!(matches!(world.write(sql, &[]), Err(Failure::Refused(error)) if error.sqlstate() == "0A000"), "{sql}");
    }
}

#[test]
fn scripts_are_split_at_their_semicolons() {
    let script = "SELECT ';'; -- a;b\nCREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; SELECT CASE WHEN 1 THEN 2 END; END;;\n/* ; */ SELECT \"a;b\", [c;d]; ";
    assert_eq!(
        split_script(script).unwrap(),
        [
            "SELECT ';'",
            "CREATE TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; SELECT CASE WHEN 1 THEN 2 END; END",
            "SELECT \"a;b\", [c;d]",
        ]
    );
}
