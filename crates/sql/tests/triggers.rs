//! Triggers: what Pleat takes of them, and that every write to a table with triggers does on the shards what it does in one
//! SQLite database, where the same triggers are.

mod world;

use pleat_cluster::TriggerState;
use world::writes::Ended;
use world::{Failure, World};

const TABLES: &[&str] = &[
    "CREATE TABLE orders (k INTEGER, nr INTEGER, total INTEGER, status TEXT DEFAULT 'new', PRIMARY KEY (k, nr)) SHARD BY (k)",
    "CREATE TABLE totals (k INTEGER PRIMARY KEY, n INTEGER, total INTEGER) SHARD BY (k)",
    "CREATE TABLE journal (k INTEGER, seq INTEGER, what TEXT, PRIMARY KEY (k, seq)) SHARD BY (k)",
    "CREATE TABLE parents (k INTEGER, nr INTEGER, x INTEGER, PRIMARY KEY (k, nr)) SHARD BY (k)",
    "CREATE TABLE fosters (k INTEGER, nr INTEGER, PRIMARY KEY (k, nr), \
     FOREIGN KEY (k, nr) REFERENCES parents (k, nr) ON UPDATE CASCADE) SHARD BY (k)",
    "CREATE TABLE kids (k INTEGER, nr INTEGER, x INTEGER, PRIMARY KEY (k, nr, x), \
     FOREIGN KEY (k, nr) REFERENCES orders (k, nr)) SHARD BY (k)",
    "CREATE TABLE tickets (k INTEGER, id INTEGER PRIMARY KEY, x INTEGER) SHARD BY (k)",
    "CREATE TABLE places (name TEXT PRIMARY KEY, n INTEGER) SHARD BY (name)",
    "CREATE TABLE picky (k INTEGER, nr INTEGER, PRIMARY KEY (k, nr) ON CONFLICT REPLACE) SHARD BY (k)",
    "CREATE TABLE kinds (name TEXT PRIMARY KEY) REFERENCE",
    "CREATE TABLE settings (name TEXT PRIMARY KEY, x INTEGER) SINGLE",
    "CREATE TABLE changes_of_settings (name TEXT, x INTEGER) SINGLE",
    "CREATE VIEW open_orders AS SELECT k, nr FROM orders WHERE status = 'open'",
];

const TRIGGERS: &[&str] = &[
    "CREATE TRIGGER guard BEFORE INSERT ON orders WHEN NEW.status NOT IN (SELECT name FROM kinds) \
     BEGIN SELECT RAISE(ABORT, 'no such status'); END",
    "CREATE TRIGGER skip INSERT ON orders BEGIN SELECT CASE WHEN NEW.total < 0 THEN RAISE(IGNORE) END; END",
    "CREATE TRIGGER main.\"come; in\" AFTER INSERT ON orders FOR EACH ROW BEGIN \
     INSERT INTO totals (k, n, total) VALUES (NEW.k, 1, NEW.total) \
       ON CONFLICT (k) DO UPDATE SET n = n + 1, total = total + excluded.total; \
     INSERT INTO journal SELECT NEW.k, coalesce(max(seq), 0) + 1, 'in ' || NEW.nr FROM journal WHERE k = NEW.k; END",
    "CREATE TRIGGER change AFTER UPDATE OF total ON orders WHEN old.total IS NOT \"new\".total BEGIN \
     UPDATE totals SET total = total - OLD.total + NEW.total WHERE k = NEW.k; END",
    "CREATE TRIGGER go AFTER DELETE ON orders BEGIN \
     UPDATE totals SET n = n - 1, total = total - OLD.total WHERE k = OLD.k; \
     DELETE FROM totals WHERE k = OLD.k AND n = 0; END",
    "CREATE TRIGGER noted AFTER INSERT ON journal BEGIN UPDATE totals SET n = n + 100 WHERE k = NEW.k AND NEW.seq % 3 = 0; END",
    "CREATE TRIGGER fostered AFTER UPDATE ON fosters WHEN NEW.nr > 100 BEGIN SELECT RAISE(ABORT, 'far'); END",
    "CREATE TRIGGER told AFTER UPDATE ON settings WHEN NEW.x > 5 BEGIN \
     INSERT INTO changes_of_settings VALUES (NEW.name, (SELECT count(*) FROM kinds)); END",
];

fn with_triggers(foreign_rows: bool) -> World {
    let mut world = World::new(3, foreign_rows);
    for sql in TABLES.iter().chain(TRIGGERS) {
        world.ddl(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    assert_eq!(world.tables["orders"].triggers.len(), 5);
    assert!(world.tables["orders"].triggers.iter().all(|trigger| trigger.state == TriggerState::Ready));
    for sql in
        ["INSERT INTO kinds VALUES ('new'), ('open'), ('paid')", "INSERT INTO settings VALUES ('a', 1), ('b', 2)"]
    {
        write(&world, sql, Ended::Done);
    }
    world
}

/// Compares the write itself, and all tables that triggers may have changed.
fn write(world: &World, sql: &str, end: Ended) {
    let sql = format!("{sql} /* orders totals journal settings changes_of_settings */");
    match world.check_write(&sql, &[]) {
        Ok(ended) => assert_eq!(ended, end, "{sql}"),
        Err(problem) => panic!("{problem}"),
    }
}

#[test]
fn writes_fire_triggers_as_in_sqlite() {
    for foreign_rows in [false, true] {
        let world = with_triggers(foreign_rows);
        for sql in [
            "INSERT INTO orders (k, nr, total) VALUES (1, 1, 10)",
            "INSERT INTO orders (k, nr, total) VALUES (1, 2, 20), (2, 1, 5), (3, 1, 7), (4, 1, -1), (1, 3, -5), (5, 1, NULL)",
            "INSERT INTO orders SELECT k, nr + 10, total * 2, status FROM orders WHERE total > 0",
            "INSERT INTO orders SELECT k + 20, nr, total, 'open' FROM orders WHERE nr < 3",
            "INSERT INTO orders (k, nr, total) VALUES (1, 1, 3), (9, 9, 9) ON CONFLICT (k, nr) DO UPDATE SET total = total + 1 RETURNING *",
            "INSERT OR IGNORE INTO orders (k, nr, total) VALUES (1, 1, 3), (9, 10, 9)",
            "UPDATE orders SET total = total + 1 WHERE k = 1",
            "UPDATE orders SET total = total * 2 RETURNING k, nr, total",
            "UPDATE orders SET status = 'paid' WHERE nr = 1",
            "UPDATE orders SET total = (SELECT n FROM totals WHERE totals.k = orders.k) WHERE status = 'paid'",
            "DELETE FROM orders WHERE k = 2",
            "DELETE FROM orders WHERE total > (SELECT avg(total) FROM orders)",
            "INSERT INTO orders (k, nr, total) VALUES (30, 1, 1), (31, 1, 1), (32, 1, 1), (33, 1, -1)",
            "UPDATE orders SET total = 4 WHERE k = 30; DELETE FROM orders WHERE k IN (31, 32); INSERT INTO orders VALUES (31, 5, 5, 'new')",
            "INSERT INTO journal VALUES (40, 3, 'by hand'), (1, 300, 'by hand')",
            "UPDATE settings SET x = x + 4",
            "UPDATE settings SET x = 9 WHERE name = 'a'",
            "DELETE FROM orders",
        ] {
            write(&world, sql, Ended::Done);
        }
        write(&world, "INSERT INTO orders VALUES (1, 50, 1, 'odd')", Ended::Failed);
        write(
            &world,
            "INSERT INTO orders VALUES (1, 50, 1, 'new'), (2, 50, 1, 'new'), (3, 1, 2, 'odd')",
            Ended::Failed,
        );
        let ways = world.ways();
        assert!(["one place", "rows", "same", "computed"].iter().all(|way| ways.contains_key(way)), "{ways:?}");
    }
}

#[test]
fn writes_that_would_fire_other_triggers_are_refused() {
    let world = with_triggers(false);
    write(&world, "INSERT INTO orders (k, nr, total) VALUES (1, 1, 10), (2, 1, 20)", Ended::Done);
    for sql in [
        "REPLACE INTO orders (k, nr, total) VALUES (1, 1, 3)",
        "INSERT OR REPLACE INTO orders (k, nr, total) VALUES (1, 1, 3)",
        "UPDATE OR REPLACE orders SET nr = 2 WHERE k = 1",
        "UPDATE orders SET k = 7 WHERE k = 1",
        "UPDATE orders SET total = 3 WHERE total > (SELECT avg(total) FROM orders)",
        "UPDATE parents SET x = (SELECT max(x) FROM parents)",
        "UPDATE orders SET total = s.n FROM (SELECT count(*) AS n FROM orders) AS s",
    ] {
        write(&world, sql, Ended::Refused);
    }
    // Where no DELETE trigger can come of it.
    write(&world, "REPLACE INTO totals VALUES (1, 5, 5), (2, 5, 5)", Ended::Done);
    write(&world, "REPLACE INTO journal VALUES (1, 5, 'x')", Ended::Done);
}

#[test]
fn a_request_that_reads_what_a_trigger_wrote_before_is_stepwise() {
    let world = with_triggers(false);
    let stepwise = |sql: &str| match world.prepare(sql).unwrap() {
        pleat_sql::Statement::Write(plan) => plan.is_stepwise(),
        _ => panic!("{sql} is no write"),
    };
    assert!(stepwise(
        "INSERT INTO orders VALUES (1, 1, 1, 'new'); DELETE FROM places WHERE n IN (SELECT n FROM totals)"
    ));
    assert!(!stepwise("INSERT INTO totals VALUES (1, 1, 1); DELETE FROM places WHERE n IN (SELECT nr FROM orders)"));
}

#[test]
fn what_does_not_stay_with_the_row_is_refused() {
    let body = |statement: &str| format!("CREATE TRIGGER x AFTER UPDATE ON totals BEGIN {statement}; END");
    let cases = [
        ("INSERT INTO journal VALUES (5, 1, 'x')", "not with k"),
        ("INSERT INTO journal VALUES (NEW.n, 1, 'x')", "not with k"),
        ("INSERT INTO journal VALUES (NEW.k + 0, 1, 'x')", "not with k"),
        ("INSERT INTO journal VALUES (NEW.k, 1, 'x'), (NEW.n, 1, 'x')", "not with k"),
        ("INSERT INTO journal SELECT k, nr, 'x' FROM orders", "not with k"),
        ("INSERT INTO journal SELECT NEW.k, count(*), 'x' FROM orders", "not with k"),
        ("UPDATE orders SET nr = 1", "not with k"),
        ("UPDATE orders SET nr = 1 WHERE k = NEW.k OR k = NEW.n", "not with k"),
        ("UPDATE orders SET nr = 1 WHERE k = NEW.n", "not with k"),
        ("UPDATE orders SET nr = 1 WHERE k = NEW.k AND nr IN (SELECT nr FROM kids)", "not with k"),
        ("UPDATE orders SET nr = 1 FROM kids WHERE orders.k = NEW.k", "not with k"),
        ("UPDATE orders SET k = 1 WHERE k = NEW.k", "a change of the shard key"),
        ("UPDATE kids SET k = 1 WHERE k = NEW.k", "not with k"),
        ("DELETE FROM orders WHERE nr = NEW.k", "not with k"),
        ("DELETE FROM orders WHERE k IN (NEW.k, 5)", "not with k"),
        ("SELECT RAISE(ABORT, 'x') FROM orders WHERE nr = NEW.n", "not with k"),
        ("SELECT RAISE(ABORT, 'x') FROM settings", "not with k"),
        ("INSERT INTO settings VALUES ('a', NEW.k)", "not with k"),
        ("INSERT INTO places VALUES (NEW.k, 1)", "another type"),
        ("UPDATE places SET n = 1 WHERE name = NEW.k", "another type"),
        ("INSERT INTO kinds VALUES ('x')", "can't write to a reference table"),
        ("UPDATE kinds SET name = NEW.n", "can't write to a reference table"),
        ("INSERT INTO tickets (k, x) VALUES (NEW.k, 1)", "would get its id from Pleat"),
        ("INSERT INTO tickets VALUES (NEW.k, NEW.n, 1)", "given by Pleat"),
        ("INSERT INTO tickets (k, x) SELECT k, nr FROM orders WHERE k = NEW.k", "not with k"),
        ("SELECT * FROM open_orders WHERE k = NEW.k", "can't read views"),
        ("INSERT INTO nope VALUES (NEW.k)", "no such table: nope"),
        ("SELECT nope FROM orders WHERE k = NEW.k", "no such column: nope"),
        ("SELECT NEW.nope", "no column nope"),
        ("SELECT NEW.rowid", "rowid"),
        ("SELECT rowid FROM orders WHERE k = NEW.k", "rowid"),
        ("SELECT new.k FROM orders AS new", "can name nothing else"),
        ("SELECT RAISE(ROLLBACK, 'x')", "RAISE(ROLLBACK"),
        ("SELECT RAISE(FAIL, 'x')", "RAISE(FAIL"),
        ("SELECT RAISE(NOTHING)", "was expected here"),
        ("INSERT INTO journal VALUES (NEW.k, changes(), 'x')", "changes()"),
        ("SELECT last_insert_rowid ()", "last_insert_rowid()"),
        ("SELECT ?1", "parameters"),
        ("SELECT * FROM __pleat_tables", "describes one shard"),
        ("SELECT * FROM sqlite_master", "describes one shard"),
        ("DROP TABLE kids", "consists of"),
        ("UPDATE totals SET n = 1 WHERE n = NEW.n", "not with k"),
        ("UPDATE journal SET seq = 1 WHERE rowid = NEW.rowid", "rowid"),
        ("UPDATE totals SET n = 1 WHERE n = 2 AND rowid = NEW.rowid", "rowid"),
        ("SELECT pleat_firing('x', 0)", "pleat_firing()"),
        ("", "at least one statement"),
    ];
    for (statement, reason) in cases {
        let mut world = with_triggers(false);
        match world.ddl(&body(statement)) {
            Err(Failure::Refused(error)) => assert!(error.message.contains(reason), "{statement}: {error:?}"),
            other => panic!("{statement}: {other:?}"),
        }
    }
}

#[test]
fn definitions_that_pleat_does_not_take_say_why() {
    let cases = [
        ("CREATE TEMP TRIGGER x AFTER INSERT ON kids BEGIN SELECT 1; END", "0A000", "temporary"),
        ("CREATE TRIGGER x INSTEAD OF INSERT ON open_orders BEGIN SELECT 1; END", "0A000", "INSTEAD OF"),
        ("CREATE TRIGGER x AFTER INSERT ON open_orders BEGIN SELECT 1; END", "42809", "is a view"),
        ("CREATE TRIGGER x AFTER INSERT ON kinds BEGIN SELECT 1; END", "0A000", "reference table kinds"),
        ("CREATE TRIGGER x AFTER INSERT ON nope BEGIN SELECT 1; END", "42P01", "nope"),
        ("CREATE TRIGGER GUARD AFTER INSERT ON kids BEGIN SELECT 1; END", "42P07", "exists already"),
        ("CREATE TRIGGER __pleat_x AFTER INSERT ON kids BEGIN SELECT 1; END", "42939", "reserved"),
        ("CREATE TRIGGER x AFTER UPDATE OF nope ON kids BEGIN SELECT 1; END", "42703", "nope"),
        ("CREATE TRIGGER x AFTER INSERT ON kids BEGIN SELECT 1 END", "42601", "; END"),
        ("CREATE TRIGGER x AFTER INSERT ON kids SELECT 1; END", "42601", "BEGIN"),
        ("CREATE TRIGGER x BEFORE INSERT ON totals BEGIN SELECT NEW.k; END", "0A000", "not known before"),
        ("CREATE TRIGGER x AFTER DELETE ON picky BEGIN SELECT 1; END", "0A000", "ON CONFLICT REPLACE"),
        ("DROP TRIGGER nope", "42704", "no such trigger"),
        ("DROP TABLE totals", "0A000", "names it"),
        ("ALTER TABLE totals SINGLE", "0A000", "names it"),
        ("ALTER TABLE totals REFERENCE", "0A000", "names it"),
    ];
    for (sql, code, reason) in cases {
        let mut world = with_triggers(false);
        match world.ddl(sql) {
            Err(Failure::Refused(error)) => {
                assert!(error.sqlstate() == code && error.message.contains(reason), "{sql}: {error:?}");
            }
            other => panic!("{sql}: {other:?}"),
        }
    }
    // SQLite itself says what is wrong inside of a body.
    let mut world = with_triggers(false);
    let sql = "CREATE TRIGGER x AFTER INSERT ON kids BEGIN SELECT OLD.k; END";
    assert!(matches!(world.ddl(sql), Err(Failure::Sqlite(message)) if message.contains("no such column: OLD.k")));
}

#[test]
fn triggers_do_not_meet_replace_from_the_other_side() {
    let mut world = with_triggers(false);
    world
        .ddl("CREATE TRIGGER puts AFTER INSERT ON kids BEGIN REPLACE INTO journal VALUES (NEW.k, NEW.x, 'kid'); END")
        .unwrap();
    for (sql, reason) in [
        ("CREATE TRIGGER x AFTER DELETE ON journal BEGIN SELECT 1; END", "trigger puts may replace"),
        ("CREATE TRIGGER x AFTER DELETE ON totals BEGIN SELECT 1; END", "trigger puts may replace"),
        (
            "CREATE TRIGGER x AFTER UPDATE ON kids BEGIN INSERT OR REPLACE INTO orders VALUES (NEW.k, 1, 1, 'new'); END",
            "DELETE triggers of orders",
        ),
    ] {
        match world.ddl(sql) {
            Err(Failure::Refused(error)) => assert!(error.message.contains(reason), "{sql}: {error:?}"),
            other => panic!("{sql}: {other:?}"),
        }
    }
}

const LOOPS: &[&str] = &[
    "CREATE TABLE items (k INTEGER, nr INTEGER, n INTEGER, changed INTEGER DEFAULT 0, PRIMARY KEY (k, nr)) SHARD BY (k)",
    "CREATE TABLE nodes (k INTEGER, id INTEGER, above INTEGER, PRIMARY KEY (k, id)) SHARD BY (k)",
    "CREATE TABLE one (k INTEGER, n INTEGER, PRIMARY KEY (k, n)) SHARD BY (k)",
    "CREATE TABLE two (k INTEGER, n INTEGER, PRIMARY KEY (k, n)) SHARD BY (k)",
    "CREATE TABLE parents (k INTEGER, nr INTEGER, x INTEGER, PRIMARY KEY (k, nr)) SHARD BY (k)",
    "CREATE TABLE kids (k INTEGER, nr INTEGER, x INTEGER, PRIMARY KEY (k, nr, x), \
     FOREIGN KEY (k, nr) REFERENCES parents (k, nr) ON DELETE CASCADE) SHARD BY (k)",
    "CREATE TABLE lone (id INTEGER PRIMARY KEY, n INTEGER, changed INTEGER DEFAULT 0) SINGLE",
    // What everybody writes first.
    "CREATE TRIGGER touched AFTER UPDATE ON items BEGIN \
     UPDATE items SET changed = changed + 1 WHERE k = NEW.k AND nr = NEW.nr; END",
    "CREATE TRIGGER \"it's new\" AFTER INSERT ON items WHEN NEW.n < 100 BEGIN \
     UPDATE items SET n = n + 1 WHERE rowid = NEW.rowid; \
     INSERT INTO items (k, nr, n) SELECT NEW.k, NEW.nr + 1000, 7 WHERE NEW.nr < 5; \
     SELECT CASE WHEN NEW.n = 50 THEN RAISE(IGNORE) END; \
     UPDATE items SET n = n + 10 WHERE k = NEW.k AND nr < NEW.nr; END",
    "CREATE TRIGGER limits BEFORE UPDATE OF n ON items BEGIN \
     SELECT raise ( ignore ) WHERE NEW.n > 200; UPDATE items SET n = -1 WHERE k = OLD.k AND nr = OLD.nr + 1; END",
    "CREATE TRIGGER below AFTER DELETE ON nodes BEGIN DELETE FROM nodes WHERE k = OLD.k AND above = OLD.id; END",
    "CREATE TRIGGER grows AFTER INSERT ON one WHEN NEW.n < 9 BEGIN INSERT INTO two VALUES (NEW.k, NEW.n + 1); END",
    "CREATE TRIGGER grows_back AFTER INSERT ON two BEGIN \
     INSERT INTO one VALUES (NEW.k, NEW.n + 1); INSERT OR IGNORE INTO one VALUES (NEW.k, NEW.n + 1); END",
    "CREATE TRIGGER orphaned AFTER DELETE ON kids BEGIN DELETE FROM parents WHERE k = OLD.k AND nr = OLD.nr + 1; END",
    "CREATE TRIGGER touched_lone UPDATE ON lone BEGIN UPDATE lone SET changed = changed + 1 WHERE rowid = OLD.rowid; END",
];

#[test]
fn a_trigger_does_not_fire_inside_itself() {
    for foreign_rows in [false, true] {
        let mut world = World::new(3, foreign_rows);
        for sql in LOOPS {
            world.ddl(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        }
        let write = |sql: &str, end| {
            let sql = format!("{sql} /* items nodes one two parents kids lone */");
            assert_eq!(world.check_write(&sql, &[]).unwrap_or_else(|problem| panic!("{problem}")), end, "{sql}");
        };
        for sql in [
            "INSERT INTO items (k, nr, n) VALUES (1, 1, 5), (1, 2, 50), (1, 3, 150), (2, 7, 50), (3, 1, NULL)",
            "UPDATE items SET n = n + 1 WHERE k = 1",
            "UPDATE items SET n = n * 3",
            "UPDATE items SET n = 199 WHERE nr = 2",
            "INSERT INTO items (k, nr, n) VALUES (1, 2, 1), (5, 4, 3), (6, 4, 3) ON CONFLICT DO UPDATE SET n = n + 1",
            "INSERT OR IGNORE INTO items (k, nr, n) VALUES (5, 4, 3), (5, 1, 50), (8, 2, 3)",
            "INSERT INTO nodes VALUES (1, 1, NULL), (1, 2, 1), (1, 3, 2), (1, 4, 1), (2, 1, NULL), (2, 2, 1), (3, 1, 1)",
            "DELETE FROM nodes WHERE id = 1",
            "INSERT INTO one VALUES (1, 1), (2, 1), (3, 8)",
            "INSERT INTO parents VALUES (1, 1, 1), (1, 2, 2), (1, 3, 3), (2, 1, 1), (2, 2, 2)",
            "INSERT INTO kids VALUES (1, 1, 1), (1, 2, 1), (1, 3, 1), (2, 1, 1), (2, 2, 2)",
            "DELETE FROM kids WHERE nr = 1",
            "INSERT INTO lone (id, n) VALUES (1, 1), (2, 2)",
            "UPDATE lone SET n = 5",
        ] {
            write(sql, Ended::Done);
        }
        // What failed in the middle of a trigger leaves it ready for the next statement.
        write("INSERT INTO two VALUES (1, 0)", Ended::Failed);
        write("INSERT INTO one VALUES (11, 1)", Ended::Done);
        write("INSERT INTO items (k, nr, n) VALUES (1, 1001, 1)", Ended::Failed);
        write("INSERT INTO items (k, nr, n) VALUES (11, 1, 1)", Ended::Done);
    }
}

#[test]
fn triggers_go_with_their_tables_and_by_name() {
    let mut world = with_triggers(false);
    world.ddl("DROP TRIGGER IF EXISTS nope").unwrap();
    world.ddl("CREATE TRIGGER IF NOT EXISTS Guard AFTER INSERT ON kids BEGIN SELECT 1; END").unwrap();
    world.ddl("DROP TRIGGER \"COME; in\"").unwrap();
    world.ddl("DROP TABLE kids").unwrap();
    world.ddl("DROP TABLE orders").unwrap();
    world.ddl("DROP VIEW open_orders").unwrap();
    world.ddl("DROP TRIGGER noted").unwrap();
    assert!(
        world
            .tables
            .values()
            .all(|table| ["settings", "fosters"].contains(&table.name.as_str()) || table.triggers.is_empty())
    );
    world.ddl("ALTER TABLE totals RENAME TO sums").unwrap();
    world.ddl("DROP TABLE sums").unwrap();
}

#[test]
fn triggers_say_the_new_names_of_what_they_name() {
    let mut world = with_triggers(false);
    let renames = [
        "ALTER TABLE orders RENAME TO \"the orders\"",
        "ALTER TABLE \"the orders\" RENAME COLUMN total TO \"in all\"",
        "ALTER TABLE \"the orders\" RENAME COLUMN k TO who",
        "ALTER TABLE totals RENAME TO sums",
        "ALTER TABLE sums RENAME COLUMN total TO amount",
        "ALTER TABLE journal RENAME COLUMN what TO text",
        "ALTER TABLE settings RENAME TO options",
        "ALTER TABLE \"the orders\" ADD COLUMN note TEXT",
        "ALTER TABLE \"the orders\" DROP COLUMN note",
    ];
    // Foreign keys tie kids to orders, and nothing of these is renamed.
    world.ddl("DROP TABLE kids").unwrap();
    for sql in renames {
        world.ddl(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    let trigger = |name: &str| {
        let mut all = world.tables.values().flat_map(|table| &table.triggers);
        all.find(|trigger| trigger.name == name).unwrap().clone()
    };
    assert!(
        trigger("change").sql.contains("AFTER UPDATE OF \"in all\" ON \"the orders\""),
        "{}",
        trigger("change").sql
    );
    assert!(trigger("change").on_shards.contains("UPDATE \"sums\" SET \"amount\""), "{}", trigger("change").on_shards);
    let write = |sql: &str, end| {
        let sql = format!("{sql} /* \"the orders\" sums journal options changes_of_settings */");
        assert_eq!(world.check_write(&sql, &[]).unwrap_or_else(|problem| panic!("{problem}")), end, "{sql}");
    };
    for sql in [
        "INSERT INTO \"the orders\" (who, nr, \"in all\") VALUES (1, 1, 10), (2, 1, -1), (3, 1, 7)",
        "UPDATE \"the orders\" SET \"in all\" = 12",
        "DELETE FROM \"the orders\" WHERE who = 1",
        "UPDATE options SET x = 50",
    ] {
        write(sql, Ended::Done);
    }
    // What one needs is not dropped.
    let error = match world.ddl("ALTER TABLE sums DROP COLUMN amount") {
        Err(Failure::Sqlite(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(error.contains("error in trigger"), "{error}");
}

#[test]
fn odd_spellings_and_text_keys_mean_what_they_mean_in_sqlite() {
    let mut world = World::new(3, false);
    for sql in [
        "CREATE TABLE \"the words\" (\"the key\" TEXT PRIMARY KEY NOT NULL, \"begin\" INTEGER, js TEXT, \"old\" INTEGER) SHARD BY (\"the key\")",
        "CREATE TABLE parts (word TEXT NOT NULL, at INTEGER, value, PRIMARY KEY (word, at)) SHARD BY (word)",
        "CREATE TABLE counts (word TEXT PRIMARY KEY NOT NULL, n INTEGER) SHARD BY (word)",
        "CREATE TRIGGER [say: ; end;] AFTER INSERT ON \"the words\" WHEN NEW.begin > 1 -- BEGIN ; END\n BEGIN \
         /* ; END; */ INSERT INTO parts SELECT [new].\"the key\", j.key, j.value || 'it''s; END;' FROM json_each(New.js) AS j; \
         WITH x AS (SELECT count(*) AS n FROM parts AS p WHERE p.word = `NEW`.[the key]) SELECT RAISE(ABORT, 'many') FROM x WHERE n > 3; \
         INSERT INTO counts (n, word) VALUES ((SELECT count(*) FROM parts WHERE parts.word = NEW.\"the key\"), NEW.\"the key\") \
           ON CONFLICT DO UPDATE SET n = excluded.n; END",
        "CREATE TRIGGER tied AFTER UPDATE OF js, \"old\" ON \"the words\" BEGIN \
         UPDATE counts SET n = counts.n + s.n FROM (SELECT p.word, count(*) AS n FROM parts p WHERE p.word = OLD.\"the key\" GROUP BY 1) AS s \
           WHERE s.word = counts.word AND counts.word = NEW.\"the key\"; \
         DELETE FROM parts WHERE word = OLD.\"the key\" AND at > CASE WHEN NEW.old IS NULL THEN 0 ELSE NEW.old END; END",
    ] {
        world.ddl(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    let write = |sql: &str, end| {
        let sql = format!("{sql} /* parts counts */");
        assert_eq!(world.check_write(&sql, &[]).unwrap_or_else(|problem| panic!("{problem}")), end, "{sql}");
    };
    write(
        "INSERT INTO \"the words\" VALUES ('ü', 2, '[1,2]', 1), ('b', 1, '[1]', 1), ('c''', 5, '[1,[2],3]', NULL)",
        Ended::Done,
    );
    write("INSERT INTO \"the words\" VALUES ('5', 2, '{\"0\":null}', 1), ('05', 2, '[]', 1)", Ended::Done);
    write("UPDATE \"the words\" SET js = '[]', \"old\" = 0 WHERE \"the key\" IN ('ü', '5')", Ended::Done);
    write("UPDATE \"the words\" SET \"old\" = NULL", Ended::Done);
    write("UPDATE \"the words\" SET \"begin\" = 7", Ended::Done);
    write("DELETE FROM \"the words\"", Ended::Done);
}
