//! Views: every SELECT on one must be answered as SQLite answers it, where the views really exist; and what may be done with
//! a view by other statements.

mod world;

use pleat_cluster::Value;
use pleat_sql::{Params, Route, Statement};
use world::{Failure, PARTITIONS, World, rich};

const VIEWS: &[&str] = &[
    "CREATE VIEW plain AS SELECT k, id, a, c, n FROM t",
    "CREATE VIEW every AS SELECT * FROM t",
    "CREATE VIEW named(kk, \"Total ü\", aa) AS SELECT k, a + 1, a FROM t WHERE a IS NOT NULL",
    "CREATE VIEW twice(x, x) AS SELECT k, id FROM t",
    "CREATE VIEW same AS SELECT a, a, a + 1, a+1, \"a\" FROM t",
    "CREATE VIEW sums AS SELECT k, count(*), sum(a) AS s FROM t GROUP BY k",
    "CREATE VIEW counted(counted, n) AS SELECT k, count(*) FROM t GROUP BY k",
    "CREATE VIEW totals(n, s) AS SELECT count(*), sum(a) FROM t -- a remark",
    "CREATE VIEW on_view AS SELECT kk AS k, aa FROM named WHERE aa > 0",
    "CREATE VIEW on_two AS SELECT p.k, u.x, p.a FROM plain AS p LEFT JOIN u ON u.k = p.k",
    "CREATE VIEW local_cte AS WITH t AS (SELECT 7 AS k, 'cte' AS c) SELECT * FROM t",
    "CREATE VIEW counting AS WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 5) SELECT i FROM c",
    "CREATE VIEW ordered AS SELECT k, id FROM t ORDER BY id DESC, k LIMIT 5",
    "CREATE VIEW united AS SELECT k, a FROM t UNION ALL SELECT k, x FROM u",
    "CREATE VIEW distinct_c AS SELECT DISTINCT c FROM t",
    "CREATE VIEW folded AS SELECT k, n COLLATE NOCASE AS m, CAST(a AS TEXT) AS at, +k AS bare FROM t",
    "CREATE VIEW \"quoted \"\"view\"\" 日本\" AS SELECT k AS \"the key\", 'it''s; -- no end' AS [b c] FROM t",
    "CREATE VIEW constants AS VALUES (1, 'a'), (2, NULL)",
    "CREATE VIEW scalar AS SELECT (SELECT max(a) FROM plain), k FROM t",
    "CREATE VIEW windowed AS SELECT k, id, row_number() OVER (PARTITION BY k ORDER BY id) AS nr FROM t",
    "CREATE VIEW of_reference AS SELECT id, a FROM r",
    "CREATE VIEW of_single AS SELECT * FROM one",
    "CREATE VIEW semi AS SELECT * FROM u WHERE k IN (SELECT k FROM plain WHERE a > 1)",
];

fn with_views(foreign_rows: bool) -> World {
    let mut world = rich(foreign_rows);
    for sql in VIEWS {
        world.ddl(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    world
}

#[test]
fn a_view_answers_as_in_sqlite() {
    let queries = [
        "SELECT * FROM plain",
        "SELECT * FROM plain WHERE k = 5",
        "SELECT p.* FROM plain AS p WHERE p.k IN (1, 2) ORDER BY id",
        "SELECT * FROM main.plain WHERE main.plain.k = 5 AND plain.a > 0",
        "SELECT main.plain.a FROM main.plain",
        "SELECT PLAIN.A FROM Plain WHERE \"PLAIN\".[k] = 5",
        "SELECT 'plain', plain.c AS plain FROM plain ORDER BY plain.id",
        "SELECT * FROM every WHERE k = 5",
        "SELECT count(*), sum(a) FROM every",
        "SELECT k, count(*) FROM every GROUP BY k ORDER BY 2 DESC, 1 LIMIT 3",
        "SELECT * FROM named",
        "SELECT kk, \"Total ü\" FROM named WHERE kk = 5 OR aa = 3",
        "SELECT n.aa FROM named n, named m WHERE n.kk = m.kk AND n.kk = 3",
        "SELECT * FROM twice",
        "SELECT x FROM twice ORDER BY x",
        "SELECT * FROM same",
        "SELECT \"a:1\", \"a+1\", \"a + 1\" FROM same",
        "SELECT * FROM sums WHERE k = 5",
        "SELECT \"count(*)\", s FROM sums ORDER BY k",
        "SELECT max(s) FROM sums",
        "SELECT * FROM totals",
        "SELECT (SELECT n FROM totals) - 1, k FROM t WHERE k < 4",
        "SELECT (SELECT n FROM totals) named, (SELECT s FROM totals) AS s, 1 + (SELECT n FROM totals) FROM r",
        "SELECT CASE WHEN EXISTS (SELECT 1 FROM plain WHERE k = 3) THEN 1 ELSE 0 END FROM r",
        "SELECT x.* FROM (SELECT (SELECT max(a) FROM plain), k FROM t) AS x WHERE k = 5",
        "SELECT * FROM scalar WHERE k = 5",
        "SELECT * FROM on_view WHERE k = 5",
        "SELECT sum(aa) FROM on_view",
        "SELECT * FROM on_two WHERE k = 5",
        "SELECT x, count(*) FROM on_two GROUP BY x ORDER BY 1",
        "SELECT * FROM local_cte",
        "SELECT * FROM counting",
        "SELECT * FROM counting AS c JOIN t ON t.k = c.i",
        "SELECT * FROM ordered ORDER BY id DESC, k",
        "SELECT count(*) FROM ordered WHERE k > 2",
        "SELECT k, sum(a) FROM united GROUP BY k ORDER BY k",
        "SELECT * FROM united WHERE k = 3",
        "SELECT * FROM distinct_c",
        "SELECT count(*) FROM distinct_c",
        "SELECT * FROM folded WHERE m = 'A'",
        "SELECT m, count(*) FROM folded GROUP BY upper(m), m COLLATE BINARY ORDER BY upper(m), 2",
        "SELECT * FROM folded WHERE at = 5 OR bare = '5' OR k = '5'",
        "SELECT * FROM \"quoted \"\"view\"\" 日本\" WHERE \"the key\" = 5",
        "SELECT * FROM constants",
        "SELECT column1 FROM constants WHERE column2 IS NULL",
        "SELECT k, nr FROM windowed WHERE nr = 1 ORDER BY k",
        "SELECT * FROM of_reference JOIN t USING (id) WHERE t.k = 5",
        "SELECT * FROM of_single",
        "SELECT * FROM semi ORDER BY id",
        // Names.
        "WITH plain AS (SELECT 1 AS z) SELECT * FROM plain",
        "WITH plain AS (SELECT 1 AS z) SELECT z, k FROM plain, main.plain AS p WHERE p.k = 5",
        "WITH t AS (SELECT 1 AS z) SELECT * FROM plain WHERE k = 5",
        "WITH t AS (SELECT 1 AS z) SELECT plain.k, t.z FROM plain JOIN t ON plain.k = t.z",
        "WITH t AS (SELECT 1 AS z), u(k) AS (SELECT 2) SELECT * FROM on_two WHERE k IN (SELECT z FROM t)",
        "WITH named AS (SELECT 1 AS z) SELECT * FROM on_view WHERE k < 5",
        "SELECT * FROM (WITH t AS (SELECT 3 AS k) SELECT p.* FROM plain p JOIN t ON p.k = t.k) WHERE k = 3",
        "WITH x AS (SELECT * FROM plain WHERE k = 5) SELECT count(*) FROM x",
        "SELECT plain FROM (SELECT k AS plain FROM t) AS plain WHERE plain = 5",
        "SELECT k AS plain FROM t WHERE k IS DISTINCT FROM 5 ORDER BY plain, id",
        // Joins.
        "SELECT count(*) FROM plain JOIN every USING (k)",
        "SELECT count(*) FROM plain NATURAL JOIN sums",
        "SELECT * FROM (plain JOIN u ON u.k = plain.k) WHERE plain.k = 5",
        "SELECT plain.k, u.x FROM u LEFT JOIN plain ON plain.k = u.k AND plain.a > 0 WHERE u.k = 3",
        "SELECT plain.k, u.x FROM u RIGHT JOIN plain ON plain.k = u.k ORDER BY 1, 2",
        "SELECT * FROM t, plain p, sums s WHERE t.k = p.k AND p.k = s.k AND s.k = 5",
        "SELECT * FROM t WHERE k IN (SELECT k FROM plain WHERE a > 2) ORDER BY id",
        "SELECT * FROM t WHERE EXISTS (SELECT 1 FROM plain p WHERE p.k = t.k AND p.a > t.a)",
        "SELECT k FROM plain UNION SELECT k FROM sums EXCEPT SELECT k FROM u ORDER BY 1",
        "SELECT k, (SELECT count(*) FROM plain p WHERE p.k = u.k) FROM u",
    ];
    let mut problems = Vec::new();
    for foreign_rows in [false, true] {
        let world = with_views(foreign_rows);
        for sql in queries {
            match world.check(sql, &[]) {
                Ok(false) => {}
                Ok(true) => problems.push(format!("refused: {sql}\n{}", world.explain(sql, &[]))),
                Err(problem) => problems.push(problem),
            }
        }
        let key = "SELECT * FROM plain WHERE k = ?1 AND a > :least";
        assert_eq!(world.check(key, &[Value::Integer(5), Value::Integer(0)]), Ok(false));
    }
    assert!(problems.is_empty(), "{} problems\n\n{}", problems.len(), problems.join("\n"));
}

/// What is called like a view and is none.
#[test]
fn a_column_may_be_called_like_a_view() {
    for foreign_rows in [false, true] {
        let mut world = with_views(foreign_rows);
        for sql in [
            "CREATE TABLE w (plain INTEGER PRIMARY KEY, totals INTEGER, a INTEGER) SHARD BY (plain)",
            "CREATE VIEW a AS SELECT k FROM t",
        ] {
            world.ddl(sql).unwrap();
        }
        for sql in [
            "INSERT INTO w (plain, totals, a) VALUES (1, 2, 3), (2, 3, 4), (3, 4, 5)",
            "INSERT INTO w SELECT k + 500, a, 7 FROM plain WHERE k = 5 AND id = 5 RETURNING plain, totals, a",
            "INSERT INTO w SELECT plain, 1, 2 FROM w WHERE plain = 1 ON CONFLICT (plain) DO UPDATE SET totals = 9, a = 8 RETURNING a, totals",
            "INSERT INTO w (plain, a) SELECT plain + 900, totals FROM w RETURNING plain, totals, a",
            "UPDATE w SET totals = x.a, a = plain FROM plain AS x WHERE x.k = plain AND x.id < 9 RETURNING plain, a",
            "DELETE FROM w WHERE plain IN (SELECT a FROM plain) RETURNING totals, a, plain",
        ] {
            world.check_write(sql, &[]).unwrap_or_else(|problem| panic!("{sql}: {problem}"));
        }
        for sql in [
            "SELECT plain, totals, a FROM w ORDER BY plain, a",
            "SELECT a.k, plain.a FROM a, plain WHERE a.k = plain.k AND a.k = 5",
            "SELECT sum(a), plain FROM w GROUP BY plain, totals HAVING plain > 1",
            "SELECT count(*) OVER (PARTITION BY plain), a, plain FROM w AS totals",
            "SELECT plain.plain, plain FROM w plain, t AS a WHERE a.k = plain.plain AND plain.plain IN (1, 2)",
        ] {
            assert_eq!(world.check(sql, &[]), Ok(false), "{sql}");
        }
    }
}

fn route(world: &World, sql: &str) -> Route {
    let Statement::Read(plan) = world.prepare(sql).unwrap() else { panic!("no read: {sql}") };
    plan.route(&Params::NONE, PARTITIONS).unwrap()
}

#[test]
fn a_key_given_to_a_view_finds_its_shard() {
    let world = with_views(false);
    for sql in [
        "SELECT * FROM plain WHERE k = 5",
        "SELECT * FROM every WHERE k = 5",
        "SELECT * FROM named AS n WHERE n.kk = 5",
        "SELECT * FROM named AS n JOIN named AS m USING (kk) WHERE n.kk = 5",
        "SELECT * FROM counted WHERE counted = 5",
        "SELECT * FROM on_view WHERE k = 5",
        "SELECT * FROM on_two WHERE k = 5",
        "SELECT * FROM sums WHERE k = 5",
        "SELECT * FROM united WHERE k = 5",
        "SELECT nr FROM windowed WHERE k = 5",
        "SELECT * FROM plain JOIN sums USING (k) WHERE plain.k = 5",
    ] {
        let Route::Shard { units, .. } = route(&world, sql) else { panic!("{sql}: {}", world.explain(sql, &[])) };
        assert_eq!(units.partitions.len(), 1, "{sql}");
    }
    assert!(matches!(route(&world, "SELECT * FROM plain"), Route::Concat { .. }));
    assert!(matches!(route(&world, "SELECT * FROM of_reference"), Route::Anywhere(_)));
}

fn refused(world: &World, sql: &str) -> (String, String) {
    let error = world.prepare(sql).expect_err(sql);
    (error.sqlstate().to_owned(), error.message)
}

#[test]
fn a_view_is_no_table() {
    let world = with_views(false);
    for sql in [
        "INSERT INTO plain VALUES (1, 2, 3, 4, 5)",
        "INSERT INTO main.plain DEFAULT VALUES",
        "REPLACE INTO plain SELECT * FROM t",
        "UPDATE plain SET a = 1 WHERE k = 5",
        "UPDATE plain AS p SET a = 1 FROM u WHERE u.k = p.k",
        "DELETE FROM plain WHERE k = 5",
        "WITH x AS (SELECT 1) DELETE FROM plain",
    ] {
        let (code, message) = refused(&world, sql);
        assert_eq!((code.as_str(), message.as_str()), ("42809", "cannot modify plain because it is a view"), "{sql}");
    }
    for (sql, code) in [
        ("DROP TABLE plain", "42809"),
        ("DROP VIEW t", "42809"),
        ("DROP VIEW nothing", "42704"),
        ("ALTER TABLE plain ADD COLUMN z", "42809"),
        ("ALTER TABLE plain RENAME TO z", "42809"),
        ("CREATE INDEX i ON plain (k)", "42809"),
        ("CREATE TABLE plain (a)", "42P07"),
        ("CREATE VIEW plain AS SELECT 1", "42P07"),
        ("CREATE VIEW t AS SELECT 1", "42P07"),
        ("CREATE INDEX plain ON t (a)", "42P07"),
        ("ALTER TABLE t RENAME TO plain", "42P07"),
        ("CREATE TEMP VIEW z AS SELECT 1", "0A000"),
        ("CREATE VIEW z AS SELECT * FROM t WHERE k = ?", "42601"),
        ("CREATE VIEW z AS DELETE FROM t", "42601"),
        ("CREATE VIEW z (a)", "42601"),
        ("CREATE VIEW z AS SELECT * FROM sqlite_schema", "0A000"),
        ("CREATE VIEW __pleat_z AS SELECT 1", "42939"),
        ("SELECT * FROM plain INDEXED BY i", "0A000"),
        ("SELECT * FROM plain(1)", "0A000"),
    ] {
        assert_eq!(refused(&world, sql).0, code, "{sql}: {:?}", refused(&world, sql));
    }
    for sql in
        ["CREATE VIEW IF NOT EXISTS plain AS SELECT 1", "CREATE TABLE IF NOT EXISTS plain (a)", "DROP VIEW IF EXISTS x"]
    {
        let Statement::Ddl(plan) = world.prepare(sql).unwrap() else { panic!("{sql}") };
        assert!(plan.statements.is_empty() && plan.notice.is_some(), "{sql}");
    }
}

#[test]
fn writes_may_read_views() {
    for foreign_rows in [false, true] {
        let world = with_views(foreign_rows);
        for sql in [
            "INSERT INTO u (id, k, x) SELECT id + 90000, k, a FROM plain WHERE k = 5",
            "INSERT INTO u (id, k, x) SELECT kk + 80000, kk, max(aa) FROM named GROUP BY kk",
            "UPDATE t SET a = (SELECT s FROM sums WHERE sums.k = t.k) WHERE k = 5",
            "UPDATE t SET a = s.s FROM sums AS s WHERE s.k = t.k AND t.k < 4",
            "DELETE FROM t WHERE k IN (SELECT k FROM on_view WHERE k < 3)",
            "WITH p AS (SELECT * FROM plain) UPDATE u SET x = 1 WHERE k IN (SELECT k FROM p)",
        ] {
            match world.check_write(sql, &[]) {
                Ok(_) => {}
                Err(problem) => panic!("{sql}: {problem}"),
            }
        }
    }
}

#[test]
fn views_follow_what_they_name() {
    let mut world = with_views(false);
    let ddl = |world: &mut World, sql: &str| world.ddl(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    ddl(&mut world, "ALTER TABLE u RENAME COLUMN x TO xx");
    ddl(&mut world, "ALTER TABLE u RENAME TO \"the u\"");
    for sql in ["SELECT * FROM on_two WHERE k = 5", "SELECT * FROM semi", "SELECT sum(a) FROM united"] {
        assert_eq!(world.check(sql, &[]), Ok(false), "{sql}");
    }
    let error = world.ddl("ALTER TABLE \"the u\" DROP COLUMN xx");
    assert!(matches!(&error, Err(Failure::Sqlite(message)) if message.contains("error in view")), "{error:?}");
    ddl(&mut world, "ALTER TABLE t ADD COLUMN later TEXT");
    assert_eq!(world.check("SELECT * FROM every WHERE k = 5", &[]), Ok(false));
    ddl(&mut world, "DROP VIEW plain");
    assert_eq!(refused(&world, "SELECT * FROM on_two"), ("42P01".into(), "no such table: plain".into()));
    ddl(&mut world, "CREATE VIEW plain AS SELECT k, a FROM t WHERE k > 3");
    assert_eq!(world.check("SELECT * FROM on_two", &[]), Ok(false));
}

#[test]
fn a_view_may_come_before_what_it_names_but_not_name_itself() {
    let mut world = rich(false);
    world.ddl("CREATE VIEW one_way AS SELECT * FROM other_way").unwrap();
    let Statement::Ddl(plan) = world.prepare("CREATE VIEW z AS SELECT nothing FROM t").unwrap() else { panic!() };
    assert_eq!(plan.notice.as_deref(), Some("view z can't be used yet: no such column: nothing"));
    assert_eq!(refused(&world, "SELECT 1\nFROM one_way").1, "no such table: other_way");
    world.ddl("CREATE VIEW other_way AS SELECT * FROM one_way").unwrap();
    assert_eq!(refused(&world, "SELECT * FROM one_way").1, "view one_way is circularly defined");
    world.ddl("DROP VIEW other_way").unwrap();
    world.ddl("CREATE VIEW other_way AS SELECT k FROM t").unwrap();
    assert_eq!(world.check("SELECT * FROM one_way WHERE k = 5", &[]), Ok(false));
}

#[test]
fn views_upon_views_have_limits() {
    let mut world = rich(false);
    world.ddl("CREATE VIEW d0 AS SELECT k FROM t").unwrap();
    for at in 1..40 {
        world.ddl(&format!("CREATE VIEW d{at} AS SELECT k FROM d{}", at - 1)).ok();
    }
    assert_eq!(world.check("SELECT * FROM d30 WHERE k = 5", &[]), Ok(false));
    assert_eq!(refused(&world, "SELECT * FROM d31 JOIN d32 USING (k)").0, "54001");
    world.ddl("CREATE VIEW w0 AS SELECT k FROM t").unwrap();
    for at in 1..30 {
        world.ddl(&format!("CREATE VIEW w{at} AS SELECT a.k FROM w{0} AS a JOIN w{0} AS b USING (k)", at - 1)).ok();
    }
    let refusal = world.prepare("SELECT * FROM w25").map(|_| ()).unwrap_err();
    assert!(["54000", "42P01"].contains(&refusal.sqlstate()), "{refusal:?}");
}

#[test]
fn an_error_points_into_the_users_text() {
    let world = with_views(false);
    let place = |sql: &str| world.prepare(sql).unwrap_err().position.map(|at| (at.line, at.column));
    assert_eq!(place("SELECT *\nFROM plain AS p,\n nothing"), Some((3, 2)));
    assert_eq!(place("SELECT * FROM plain WHERE k = = 5"), place("SELECT * FROM t     WHERE k = = 5"));
    assert_eq!(place("SELECT 1 FROM plain, t WHERE t.zz = 1"), Some((1, 32)));
}
