//! Hostile and odd texts: nothing may panic, overflow the stack or take long, and what is accepted must be right.

mod world;

use pleat_cluster::Value;
use pleat_generate::Dice;
use pleat_sql::{NESTING_MAX, OPERATORS_MAX, STATEMENT_BYTES_MAX};
use world::rich;

/// Plans on a stack as small as a server's worker threads have.
fn on_a_small_stack(work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(2 * 1024 * 1024).spawn(work).unwrap().join().unwrap();
}

#[test]
fn deep_nesting_is_refused_before_it_hurts() {
    on_a_small_stack(|| {
        let world = rich(false);
        for depth in [10, 40, 100, 1_000, 50_000] {
            for (open, middle, close) in [
                ("(", "1", ")"),
                ("(SELECT ", "1", ")"),
                ("CASE WHEN 1 THEN ", "1", " END"),
                ("abs(", "1", ")"),
                ("NOT ", "1", ""),
                ("- ", "1", ""),
                ("1 + ", "1", ""),
                ("1 AND ", "1", ""),
                ("", "1", " OR k = 1"),
                ("", "1", " IS NULL"),
                ("", "'a'", " COLLATE BINARY"),
                ("EXISTS (SELECT 1 WHERE ", "1", ")"),
                ("1 IN (", "1", ")"),
                ("1 BETWEEN 0 AND ", "1", ""),
                ("json(", "'1'", ")"),
                ("x.", "y", ""),
            ] {
                let expression = format!("{}{middle}{}", open.repeat(depth), close.repeat(depth));
                for sql in
                    [format!("SELECT {expression} FROM t"), format!("DELETE FROM t WHERE k = 1 AND {expression}")]
                {
                    let _ = world.prepare(&sql);
                }
            }
            for (first, more) in [
                ("SELECT 1", " UNION SELECT 1"),
                ("SELECT * FROM t", " JOIN t"),
                ("SELECT * FROM t a", ", t"),
                ("SELECT 1", ", 1"),
            ] {
                let _ = world.prepare(&format!("{first}{}", more.repeat(depth)));
            }
            let _ = world.prepare(&format!("{}t{}", "SELECT * FROM (".repeat(depth), ")".repeat(depth)));
            let _ = world.prepare(&format!("SELECT * FROM {}t{}", "(".repeat(depth), ")".repeat(depth)));
            let _ = world.prepare(&format!("CREATE TABLE x {}", "(".repeat(depth)));
        }
        let deepest =
            "(".repeat(NESTING_MAX - 2) + "1" + &" + 1".repeat(OPERATORS_MAX - 5) + &")".repeat(NESTING_MAX - 2);
        assert!(world.prepare(&format!("SELECT {deepest}")).is_ok());
        let error = world.prepare(&format!("SELECT {}", "(".repeat(60) + "1" + &")".repeat(60))).unwrap_err();
        assert_eq!(error.sqlstate(), "54001");
        let error = world.prepare(&format!("SELECT 1{}", " OR 1".repeat(600))).unwrap_err();
        assert_eq!(error.sqlstate(), "54001");
        assert!(error.hint.is_some());
    });
}

#[test]
fn long_texts() {
    let world = rich(false);
    let huge = format!("SELECT '{}'", "x".repeat(100 * 1024 * 1024));
    assert_eq!(world.prepare(&huge).unwrap_err().sqlstate(), "54000");
    let long = format!("SELECT '{}'", "x".repeat(STATEMENT_BYTES_MAX - 20));
    assert_eq!(world.check(&long, &[]), Ok(false));
    let keys = (0..50_000).map(|key| key.to_string()).collect::<Vec<_>>().join(",");
    assert_eq!(world.check(&format!("SELECT count(*) FROM t WHERE k IN ({keys})"), &[]), Ok(false));
    let rows = (0..5_000).map(|id| format!("(7, {})", 10_000 + id)).collect::<Vec<_>>().join(",");
    world.write(&format!("INSERT INTO t (k, id) VALUES {rows}"), &[]).unwrap();
    let marks = vec!["?"; 30_000].join(",");
    let values: Vec<Value> = (0..30_000).map(Value::Integer).collect();
    assert_eq!(world.check(&format!("SELECT count(*) FROM t WHERE k IN ({marks})"), &values), Ok(false));
    assert_eq!(world.prepare(&format!("SELECT {}", vec!["?"; 32_767].join(","))).unwrap_err().sqlstate(), "07001");
}

#[test]
fn odd_but_right() {
    let world = rich(false);
    for sql in [
        "SELECT k FROM t WHERE k = 5 -- AND k = 6",
        "SELECT k FROM t WHERE k /* = 6 OR k */ = 5;;; ; -- end",
        "select K from T where K=5and a is not null",
        "SELECT 'a;b', \"k\", [k], `k` FROM t WHERE c <> ';' AND k = 5",
        "SELECT 'it''s' || '\\' || \"k\" FROM t WHERE c <> 'it''s \\' OR c IS NULL",
        "SELECT id FROM t WHERE c = 'z''z' AND n <> '''' AND a IS NOT NULL",
        "SELECT id FROM t x WHERE x.c = 'x.c' AND x.c <> '--' AND x.id > 0",
        "SELECT \"x.y\".k FROM t AS \"x.y\" WHERE \"x.y\".\"k\" = 5",
        "SELECT \"from\".k FROM t AS \"from\" WHERE \"from\".k > 3 AND \"from\".a < 4",
        "SELECT k AS \"order\", a AS \"a\"\"b\" FROM t ORDER BY \"order\", \"a\"\"b\", id",
        "SELECT count(*) AS \"count\", k key FROM t GROUP BY key ORDER BY key",
        "SELECT k AS \"日本\", 'é' FROM t WHERE c = '日本'",
        "SELECT\u{feff} k\tFROM\r\nt\u{c}WHERE k=5",
        "SELECT 1 AS one, 2 AS \"two\", 3 three",
        "SELECT t.k FROM t WHERE t.k=5 AND+t.k=5 AND(t.a)IS NOT NULL",
        "SELECT -k, - k, ~k, +k FROM t WHERE -k = -5",
        "SELECT k FROM t WHERE k IN (SELECT 5) AND a NOT NULL",
        "SELECT k FROM t WHERE k IS NOT DISTINCT FROM 5 AND a IS DISTINCT FROM NULL",
        "SELECT k NOTNULL, k ISNULL, a NOT NULL FROM t WHERE a NOTNULL",
        "SELECT c GLOB 'a*', c NOT GLOB 'a*', c NOT LIKE 'A', c LIKE '%a\\%' ESCAPE '\\' FROM t WHERE c GLOB '*' OR c NOT GLOB 'x'",
        "SELECT '{\"a\":1}' ->> '$.a', '{\"a\":[1]}' -> 'a', x'00ff', 0x1F, 1e3, .5, 1_000 FROM t WHERE 0x5 = k",
        "SELECT id FROM t NOT INDEXED WHERE k = 5 AND a > 0",
        "SELECT CAST(k AS UNSIGNED BIG INT), CAST(a AS VARCHAR(10)) FROM t WHERE CAST(a AS TEXT) = '1' AND k > 0",
        "SELECT sum(a) FROM t WHERE a BETWEEN 1 AND 3 AND k BETWEEN -4 AND 20 OR a BETWEEN 5 AND 6",
        "SELECT CASE k WHEN 5 THEN 'a' WHEN 6 THEN 'b' END FROM t WHERE CASE WHEN a > 1 AND k > 2 THEN 1 ELSE 0 END AND id > 3",
        "SELECT k FROM t WHERE (a = 1 OR a = 2) AND (k = 5 OR k = 6) AND NOT (c = 'a' AND a = 1)",
        "SELECT likely(k) FROM t WHERE unlikely(a > 1) AND k > 3",
        "SELECT iif(a > 1, 'x', 'y') FROM t WHERE iif(a > 1, k, a) > 2 AND if(a, 1, 0)",
        "SELECT max(k, 3), min(a, 2, 1) FROM t WHERE max(k, 3) > 4",
        "SELECT replace(c, 'a', 'b'), substr(c, 1, 1), substring(c, 1, 2), trim(c), round(b, 1) FROM t WHERE replace(c, 'a', '') = '' AND abs(b) < 1e9",
        "SELECT date('now') = date('now'), current_date = date('now') FROM t WHERE date('2020-01-01', '+1 day') = '2020-01-02' AND k > 3",
        "SELECT true, false, k = true FROM t WHERE k = true OR k IS true",
        "SELECT * FROM t WHERE (k = 1) = (a = 1)",
        "SELECT * FROM t WHERE k = 1 = 1",
        "SELECT * FROM t WHERE k = 1 AND a = 2 IS NOT NULL",
        "SELECT * FROM t WHERE k = 5 || ''",
        "SELECT * FROM t WHERE k = 5 | 2",
        "SELECT * FROM t WHERE k = (5)",
        "SELECT * FROM t WHERE k = (SELECT 5)",
        "SELECT * FROM t WHERE (k) IN ((5), (6))",
        "SELECT * FROM t WHERE k = 'x' OR k = '0x5'",
        "SELECT * FROM t WHERE k = '+5' OR k = '5.' OR k = '.5e1'",
        "SELECT * FROM t WHERE k = 9223372036854775808 OR k = -9223372036854775808",
        "SELECT * FROM t WHERE k IN (5, 'x', x'05')",
        "SELECT k FROM t AS a JOIN (SELECT k AS kk FROM u) AS b ON a.k = b.kk AND b.kk = 5",
        "SELECT a.k FROM t a, t b WHERE a.k = b.k AND b.k = 5 AND a.id = b.id",
        "SELECT a.k FROM t a LEFT JOIN t b ON a.k = b.k AND b.k = 5 WHERE b.k IS NULL AND a.k IN (5, 6)",
        "SELECT a.id FROM t a WHERE a.k = 5 AND a.id IN (SELECT b.id FROM u b WHERE a.k = 6)",
        "SELECT (SELECT a.k) FROM t a WHERE a.k = 5",
        "SELECT x FROM (SELECT k AS x FROM t UNION ALL SELECT k FROM u) WHERE x = 5",
        "SELECT k, (SELECT k FROM u WHERE u.k = 5 LIMIT 1) FROM t WHERE k = 5",
        "SELECT DISTINCT k IN (SELECT k FROM u) FROM t",
        "SELECT * FROM s WHERE w = 'a' AND v IS NOT 3 LIMIT 2",
        "SELECT w, v FROM s WHERE w >= 'A' AND w < 'b' COLLATE NOCASE ORDER BY w",
        "SELECT name FROM (SELECT 'x' AS name)",
        "SELECT t.k FROM t INNER JOIN u ON t.k = u.k CROSS JOIN r ON r.id = u.id WHERE u.k = 5",
        "SELECT count(*) FROM t WHERE 1 AND k",
        "SELECT c FROM t WHERE c = 'a' COLLATE NOCASE AND k > 1",
        "SELECT min(c), max(c COLLATE NOCASE) IS NULL FROM t",
        "SELECT a, count(*) AS a2 FROM t GROUP BY a HAVING a2 > 2 AND a > 0 ORDER BY a2 + a, a",
        "SELECT k \"count(*)\", count(*) FROM t GROUP BY k ORDER BY \"count(*)\"",
        "SELECT group_concat(c, ', ' ORDER BY id) FROM t WHERE k = 5",
        "SELECT count(*) FROM t WHERE EXISTS (VALUES (1))",
        "SELECT 5 AS k FROM t WHERE k = 6",
    ] {
        match world.check(sql, &[]) {
            Ok(refused) => assert!(!refused, "refused: {sql}\n{}", world.explain(sql, &[])),
            Err(problem) => panic!("{problem}"),
        }
    }
}

/// Random changes to good statements: whatever comes of it, no panic, and never another answer than SQLite's.
#[test]
fn broken_statements() {
    let seeds = [
        "SELECT t.k, count(*), sum(a) FROM t JOIN u ON t.k = u.k WHERE t.a > 1 AND c = 'x''y' GROUP BY t.k HAVING count(*) > 1 ORDER BY 1 LIMIT 5",
        "SELECT id, \"c\" FROM t WHERE k IN (1, 2, 3) AND a BETWEEN 1 AND 5 OR NOT b IS NULL ORDER BY id DESC",
        "WITH x(k) AS (SELECT k FROM u WHERE k = 5) SELECT t.id, CASE WHEN a > 1 THEN 'é' ELSE x'00' END FROM t LEFT JOIN x ON x.k = t.k",
        "SELECT DISTINCT avg(a) FILTER (WHERE k > 2), min(c) FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.k = t.k) GROUP BY c",
    ];
    let pieces = [
        "(", ")", ",", "'", "\"", "--", "/*", ";", " AND ", " OR ", " NOT ", "k", "t.", " = 5", "*", "?1", ":a", "[",
        "0x", "é", " ON ", " FROM ", " AS ", "+", " IS ", "NULL", " LIMIT 3", "\0",
    ];
    let world = rich(false);
    let mut dice = Dice(7);
    for _ in 0..4_000 {
        let mut text: Vec<char> = dice.pick(&seeds).chars().collect();
        for _ in 0..1 + dice.roll(3) {
            let at = dice.roll(text.len());
            let piece: Vec<char> = dice.pick(&pieces).chars().collect();
            match dice.roll(3) {
                0 => drop(text.splice(at..at, piece)),
                1 => drop(text.splice(at..(at + 1 + dice.roll(6)).min(text.len()), piece)),
                _ => drop(text.splice(at..(at + 1 + dice.roll(6)).min(text.len()), [])),
            }
            if text.is_empty() {
                break;
            }
        }
        let sql: String = text.into_iter().collect();
        match world.prepare(&sql) {
            Ok(pleat_sql::Statement::Read(_)) => {}
            _ => continue,
        }
        let values = vec![Value::Integer(5); sql.matches(['?', ':']).count().min(1)];
        if let Err(problem) = world.check_ordered(&sql, &values, false) {
            panic!("{problem}");
        }
    }
}
