//! Every SELECT must be answered as one SQLite database would answer it: compared here over three shards, with and
//! without rows that the shards don't own.

mod world;

use pleat_cluster::Value;
use world::rich;

fn check_all(queries: &[&str]) {
    let queries: Vec<_> = queries.iter().map(|sql| (*sql, Vec::new())).collect();
    check_with_values(&queries);
}

/// None may be refused; all differences are shown at once.
fn check_with_values(queries: &[(&str, Vec<Value>)]) {
    let mut problems = Vec::new();
    for foreign_rows in [false, true] {
        let world = rich(foreign_rows);
        for (sql, values) in queries {
            match world.check(sql, values) {
                Ok(false) => {}
                Ok(true) => problems.push(format!("refused: {sql}\n{}", world.explain(sql, values))),
                Err(problem) => problems.push(problem),
            }
        }
    }
    assert!(problems.is_empty(), "{} problems\n\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn filters_and_keys() {
    check_all(&[
        "SELECT * FROM t",
        "SELECT * FROM t WHERE k = 5",
        "SELECT * FROM t WHERE 5 = k AND a > 1",
        "SELECT * FROM t WHERE k = '5'",
        "SELECT * FROM t WHERE k = ' 5 '",
        "SELECT * FROM t WHERE k = '5.0'",
        "SELECT * FROM t WHERE k = 5.0",
        "SELECT * FROM t WHERE k = 5.5",
        "SELECT * FROM t WHERE k = '5e0'",
        "SELECT * FROM t WHERE k = x'35'",
        "SELECT * FROM t WHERE k = NULL",
        "SELECT count(*), sum(a) FROM t WHERE k = NULL",
        "SELECT count(*) FROM t WHERE k = 3 AND k = 4",
        "SELECT * FROM t WHERE k IN (1, 2, '3', NULL, 4.0)",
        "SELECT * FROM t WHERE k IN ()",
        "SELECT * FROM t WHERE k NOT IN (1, 2, 3)",
        "SELECT * FROM t WHERE k = 1 OR k = 2 AND a = 1 OR k IN (7, 8)",
        "SELECT * FROM t WHERE k = 1 OR a = 2",
        "SELECT * FROM t WHERE NOT k = 1",
        "SELECT * FROM t WHERE k = 1 IS NULL",
        "SELECT * FROM t WHERE k = 1 < 2",
        "SELECT * FROM t WHERE k == -3",
        "SELECT * FROM t WHERE k = +3",
        "SELECT * FROM t WHERE k = - -3",
        "SELECT * FROM t WHERE k = 0x5",
        "SELECT * FROM t WHERE k = 1 << 2",
        "SELECT id, a << 1, a >> 1, 1 + a << 2, a & 3 | 4 << 1 FROM t WHERE a << 2 > 8 AND k > 1 >> 1",
        "SELECT * FROM t WHERE k = 5 COLLATE NOCASE",
        "SELECT * FROM t WHERE k IS 5",
        "SELECT * FROM t WHERE k BETWEEN 2 AND 4 AND a IS NOT NULL",
        "SELECT * FROM t WHERE k LIKE '5'",
        "SELECT * FROM t WHERE k = CAST('5' AS TEXT)",
        "SELECT * FROM t WHERE (k, id) = (5, 3)",
        "SELECT * FROM t WHERE (((k))) = ((5))",
        "SELECT * FROM t AS x WHERE x.k = 5 AND main.x.k = 5 OR false",
        "SELECT * FROM main.t WHERE t.k = 5",
        "SELECT * FROM \"t\" AS [T Q] WHERE \"t q\".`k` = 5",
        "SELECT T.A, K FROM T WHERE K = 5",
        "SELECT * FROM s WHERE w = 5",
        "SELECT * FROM s WHERE w = 5.0",
        "SELECT * FROM s WHERE w = '05'",
        "SELECT * FROM s WHERE w = CAST(5 AS INTEGER)",
        "SELECT * FROM s WHERE w = x'61'",
        "SELECT * FROM s WHERE w IN ('a', 5, 'N1')",
        "SELECT * FROM s WHERE w = 'n1' COLLATE NOCASE",
        "SELECT * FROM s WHERE w COLLATE NOCASE = 'n1'",
        "SELECT * FROM s WHERE w = '日本'",
        "SELECT count(*) FROM t WHERE n = 'A'",
        "SELECT n FROM t WHERE n = 'a' AND c = 'a'",
        "SELECT id, n FROM t WHERE n GLOB 'a*' OR c LIKE 'A%' ORDER BY id",
        "SELECT id FROM t WHERE f = 1",
        "SELECT id FROM t WHERE d = '1' OR d = 1.0",
        "SELECT id FROM t WHERE c IN (10, '9')",
        "SELECT id, typeof(a), typeof(b), typeof(c), typeof(d), typeof(e), typeof(f), typeof(g) FROM t",
        "SELECT g, k FROM t WHERE g > 2",
        "SELECT a AS k FROM t WHERE k = 5",
        "SELECT 1 WHERE 5 = 5",
        "SELECT * FROM empty",
        "SELECT count(*), max(a) FROM empty",
        "SELECT a FROM empty GROUP BY a",
    ]);
}

#[test]
fn result_names() {
    check_all(&[
        "SELECT a, t.a, (a), ((t.a)), a+1, a  +  1, +a, count(*) OVER (), 'x''y', \"a\" FROM t",
        "SELECT a, t.a, (a), a+1, a /* c */ +  1, -a, 'x''y', upper( c ), A, \"a\" b, [a] AS 'q r' FROM t",
        "SELECT count(*), count( * ), sum(a)+1, K, t.k, (k), max (a) FROM t GROUP BY k",
        "SELECT sum(a) AS \"total \"\"q\"\"\", avg(a) z FROM t",
        "SELECT t.*, u.x FROM t JOIN u ON t.k = u.k",
        "SELECT * FROM t JOIN u USING (k)",
        "SELECT * FROM t NATURAL JOIN u",
        "SELECT * FROM (SELECT a AS b, k FROM t)",
        "SELECT CASE WHEN a > 1 THEN 'x' END, CAST(a AS TEXT) FROM t",
    ]);
}

#[test]
fn aggregates() {
    check_all(&[
        "SELECT count(*), count(a), sum(a), total(a), avg(a), min(a), max(a) FROM t",
        "SELECT count(*), count(b), sum(b), total(b), avg(b), min(b), max(b) FROM t WHERE abs(b) < 1e200 OR b IS NULL",
        "SELECT count(f), total(f), min(f), max(f) FROM t WHERE typeof(f) <> 'integer'",
        "SELECT avg(f), sum(f) FROM t WHERE f BETWEEN -1000 AND 1000",
        "SELECT avg(9223372036854775807 - k) FROM t",
        "SELECT avg(k * 100000000000000000) FROM t",
        "SELECT sum(c), avg(c), min(c), max(c) FROM t",
        "SELECT typeof(sum(a)), typeof(avg(a)), typeof(total(a)), typeof(sum(b)) FROM t WHERE k < 3",
        "SELECT typeof(sum(d)), k FROM t WHERE typeof(d) <> 'integer' GROUP BY k",
        "SELECT k, count(*), sum(a) FROM t GROUP BY k ORDER BY k",
        "SELECT c, count(*), min(a), max(b) FROM t GROUP BY c ORDER BY c",
        "SELECT c, a, count(*) FROM t GROUP BY c, a ORDER BY count(*) DESC, c, a LIMIT 7 OFFSET 2",
        "SELECT c, count(*) AS many FROM t GROUP BY c HAVING many > 3 ORDER BY many DESC, c",
        "SELECT c, count(*) AS many FROM t GROUP BY c HAVING count(*) > 3 AND max(a) > 2 ORDER BY 2, 1",
        "SELECT c FROM t GROUP BY c HAVING sum(a) IS NULL ORDER BY c",
        "SELECT c AS a, sum(a) FROM t GROUP BY c ORDER BY a",
        "SELECT c, sum(a) AS c2 FROM t GROUP BY t.c ORDER BY sum(a), t.c",
        "SELECT lower(n), count(*) FROM t GROUP BY n ORDER BY 2, 1",
        "SELECT lower(n), count(*) FROM t GROUP BY lower(n) ORDER BY 1",
        "SELECT count(DISTINCT c), count(DISTINCT k), sum(DISTINCT a) FROM t",
        "SELECT count(*) FILTER (WHERE a > 2), sum(a) FILTER (WHERE c = 'a'), avg(a) FILTER (WHERE k > 3) FROM t",
        "SELECT c, count(*) FILTER (WHERE a > 2) FROM t GROUP BY c ORDER BY c",
        "SELECT max(a) + min(a) * 2, coalesce(sum(a), 0) / count(*) FROM t",
        "SELECT CASE WHEN count(*) > 100 THEN 'many' ELSE 'few' END FROM t",
        "SELECT upper(c) || '!', count(*) FROM t GROUP BY c ORDER BY c",
        "SELECT c, max(a, k) FROM t GROUP BY c, a, k ORDER BY c, a, k",
        "SELECT DISTINCT count(*) FROM t GROUP BY k ORDER BY 1",
        "SELECT DISTINCT c FROM t ORDER BY c",
        "SELECT upper(n) FROM (SELECT DISTINCT n FROM t) ORDER BY 1",
        "SELECT count(*) FROM t HAVING count(*) > 1",
        "SELECT count(*) FROM t HAVING count(*) > 100000",
        "SELECT sum(a) FROM t WHERE k = 99",
        "SELECT k, sum(a) FROM t WHERE k = 99 GROUP BY k",
        "SELECT k, sum(a) FROM t WHERE k IN (1, 2, 3) GROUP BY k ORDER BY k",
        "SELECT group_concat(k, ',') FROM (SELECT DISTINCT k FROM t ORDER BY k)",
        "SELECT a, max(b), c FROM t GROUP BY a HAVING count(*) > 100",
        "SELECT min(n), max(n) FROM t WHERE n > 'z'",
        "SELECT a % 2, count(*) FROM t GROUP BY a % 2 ORDER BY 1",
        "SELECT a IS NULL AS missing, count(*) FROM t GROUP BY missing ORDER BY missing",
        "SELECT c, count(*) FROM t GROUP BY 1 ORDER BY 1",
        "SELECT d, count(*) FROM t GROUP BY d HAVING d = '1' OR d = 0",
        "SELECT count(*) AS __pleat, sum(a) AS sum FROM t ORDER BY sum + 1",
        "SELECT sum(a) AS a0, count(*) AS a1 FROM t ORDER BY a1 + a0",
        "SELECT sum(a) AS __part_a1, count(*) AS __part_a0 FROM t GROUP BY k ORDER BY __part_a0 + 1, __part_a1 + 1",
        "SELECT a, k, count(*) FROM t GROUP BY k, a ORDER BY a NULLS LAST, k DESC LIMIT 3, 5",
        "SELECT json_group_array(a) FROM (SELECT a FROM t WHERE k = 3 ORDER BY id)",
    ]);
}

#[test]
fn joins() {
    check_all(&[
        "SELECT t.id, u.id FROM t JOIN u ON t.k = u.k",
        "SELECT t.id, u.id FROM t, u WHERE u.k = t.k AND t.a > 0 AND u.x < 5",
        "SELECT t.id, u.id FROM t JOIN u USING (k) WHERE k = 3",
        "SELECT t.id, u.id FROM t JOIN u USING (k) WHERE u.k = 3 AND t.a IS NOT NULL",
        "SELECT t.id, u.id FROM t LEFT JOIN u ON t.k = u.k",
        "SELECT t.id, u.id FROM t LEFT JOIN u ON t.k = u.k WHERE u.id IS NULL",
        "SELECT t.id, u.id FROM t LEFT JOIN u ON t.k = u.k AND u.x > 2 WHERE t.k = 4",
        "SELECT t.id, u.id FROM t LEFT JOIN u ON t.k = u.k AND u.k = 3",
        "SELECT t.id, u.id FROM t LEFT JOIN u ON t.k = u.k AND t.k = 3",
        "SELECT t.id, u.id FROM t LEFT JOIN u ON t.k = u.k WHERE u.k = 3",
        "SELECT t.id, u.id FROM t LEFT JOIN u ON t.a = u.x WHERE t.k = 3",
        "SELECT t.id, u.id FROM t LEFT JOIN u ON u.k = 3 WHERE t.k = 4",
        "SELECT t.id, u.id FROM t RIGHT JOIN u ON t.k = u.k",
        "SELECT t.id, u.id, k FROM t FULL JOIN u USING (k) WHERE k = 3",
        "SELECT t.id, u.id FROM t FULL JOIN u ON t.k = u.k AND t.k = 3",
        "SELECT t.id, u.id FROM t FULL JOIN u ON t.k = u.k WHERE t.k = 3",
        "SELECT t.id, r.c FROM t JOIN r ON t.a = r.a",
        "SELECT t.id, r.c FROM t LEFT JOIN r ON t.a = r.a AND r.c > 'a'",
        "SELECT t.id, r.c FROM r LEFT JOIN t ON t.a = r.a",
        "SELECT t.id, r.c FROM r LEFT JOIN t ON t.a = r.a AND t.k = 3",
        "SELECT t.id, r.c FROM r JOIN t ON t.a = r.a WHERE k IN (3, 4)",
        "SELECT count(*), r.c FROM t JOIN r ON t.a = r.a GROUP BY r.c ORDER BY 2",
        "SELECT r.id, count(t.id), sum(t.b > 1) FROM r LEFT JOIN t ON t.a = r.id GROUP BY r.id ORDER BY r.id",
        "SELECT u.y, count(*), avg(t.a), min(t.c) FROM t JOIN u ON t.k = u.k JOIN r ON r.a = u.x GROUP BY u.y ORDER BY u.y",
        "SELECT t.k, count(u.id), sum(u.x) FROM t LEFT JOIN u ON t.k = u.k GROUP BY t.k ORDER BY t.k",
        "SELECT x.id, y.id FROM t x JOIN t y ON x.k = y.k AND x.id < y.id",
        "SELECT x.id, y.id FROM t x JOIN t y ON x.a = y.id WHERE x.k = 3",
        "SELECT x.id, y.id FROM t x JOIN t y ON x.a = y.id WHERE x.k = 3 AND y.k = 5 AND x.c = 'a'",
        "SELECT count(*) FROM t x, t y WHERE x.a = 1 AND y.a = 2",
        "SELECT t.id, s.v FROM t JOIN s ON t.k = s.k",
        "SELECT t.id, s.v FROM t JOIN s ON t.c = s.w WHERE t.k = 3",
        "SELECT t.id, s.v FROM s JOIN t ON t.k = s.w",
        "SELECT t.id, one.c FROM t JOIN one ON t.a = one.a",
        "SELECT one.id, r.id FROM one JOIN r ON one.a = r.a",
        "SELECT * FROM one WHERE id < 5 ORDER BY id",
        "SELECT t.id FROM t JOIN (u JOIN r ON u.x = r.a) ON t.k = u.k",
        "SELECT t.id FROM (t JOIN u ON t.k = u.k) WHERE t.k = 3",
        "SELECT t.id, u.id, r.id FROM r LEFT JOIN t ON t.a = r.a JOIN u ON u.k = t.k",
        "SELECT t.id, u.id, y.id FROM t LEFT JOIN u ON t.k = u.k LEFT JOIN u y ON y.k = u.k",
        "SELECT t.id, u.id, y.id FROM t LEFT JOIN u ON t.k = u.k AND u.x > 3 LEFT JOIN u y ON y.k = u.k WHERE t.k = 2",
        "SELECT r.id, t.id FROM r CROSS JOIN t WHERE t.k = 3 AND r.id < 3",
        "SELECT * FROM t NATURAL JOIN r",
        "SELECT t.id FROM t NATURAL LEFT JOIN empty",
        "SELECT t.id, u.id FROM t INNER JOIN u ON (t.k = u.k) WHERE (t.k = 5) AND ((u.x IS NULL) OR u.x > 0)",
    ]);
}

#[test]
fn subqueries_and_ctes() {
    check_all(&[
        "SELECT id FROM t WHERE a > (SELECT avg(a) FROM t)",
        "SELECT id FROM t WHERE k IN (SELECT k FROM u WHERE x > 2)",
        "SELECT id FROM t WHERE k NOT IN (SELECT k FROM u)",
        "SELECT id FROM t WHERE a NOT IN (SELECT x FROM u)",
        "SELECT id FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.k = t.k AND u.x > t.a)",
        "SELECT id FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.k = t.k)",
        "SELECT id FROM t WHERE k = 5 AND EXISTS (SELECT 1 FROM u WHERE u.k = t.k)",
        "SELECT id FROM t WHERE k = 5 AND NOT EXISTS (SELECT 1 FROM u WHERE u.k = 7)",
        "SELECT id, (SELECT count(*) FROM u WHERE u.k = t.k) FROM t",
        "SELECT id, (SELECT count(*) FROM u WHERE u.k = t.k) FROM t WHERE t.k = 3",
        "SELECT id, (SELECT max(x) FROM u WHERE u.k = t.k AND u.y = t.c) AS m FROM t WHERE t.k = 3",
        "SELECT id, (SELECT count(*) FROM u WHERE k = t.k) FROM t WHERE k = 3",
        "SELECT id, (SELECT count(*) FROM u WHERE x = k) FROM t WHERE k = 3",
        "SELECT k, n FROM (SELECT k, count(*) AS n FROM t GROUP BY k) WHERE n > 5 ORDER BY k",
        "SELECT * FROM (SELECT id, k FROM t WHERE k = 3) AS x JOIN u ON u.k = x.k",
        "WITH x AS (SELECT k, count(*) AS n FROM t GROUP BY k) SELECT x.k, n, u.id FROM x JOIN u ON u.k = x.k WHERE n > 5",
        "WITH x AS (SELECT * FROM t WHERE k = 3), y AS (SELECT * FROM x WHERE a > 0) SELECT count(*) FROM y, x",
        "WITH u AS (SELECT 1 AS k, 2 AS x) SELECT t.id, u.x FROM t JOIN u ON t.k = u.k",
        "WITH u(k, x) AS (VALUES (3, 'a'), (4, 'b')) SELECT t.id, u.x FROM t JOIN u USING (k) WHERE u.k = 3",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10) SELECT n.i, count(t.id) FROM n LEFT JOIN t ON t.k = n.i GROUP BY n.i ORDER BY 1",
        "WITH RECURSIVE c(k, d) AS (SELECT k, 0 FROM t WHERE id = 1 UNION SELECT u.x, d + 1 FROM c JOIN u ON u.k = c.k WHERE d < 4) SELECT * FROM c",
        "SELECT k FROM t UNION SELECT k FROM u ORDER BY 1",
        "SELECT k FROM t UNION ALL SELECT k FROM u ORDER BY 1",
        "SELECT k FROM t EXCEPT SELECT k FROM u ORDER BY k",
        "SELECT k FROM t INTERSECT SELECT k FROM u ORDER BY k",
        "SELECT k, c FROM t WHERE k = 3 UNION SELECT x, y FROM u WHERE k = 4",
        "SELECT k, c FROM t WHERE k = 3 UNION ALL SELECT k, y FROM u WHERE k = 3",
        "SELECT a FROM t WHERE k = 1 EXCEPT SELECT a FROM r",
        "SELECT * FROM (SELECT k FROM t UNION SELECT v FROM s) ORDER BY 1 LIMIT 5",
        "VALUES (1, 'a'), (2, 'b')",
        "VALUES ((SELECT count(*) FROM t))",
        "SELECT (SELECT count(*) FROM t), (SELECT max(id) FROM u), (SELECT min(w) FROM s)",
        "SELECT id FROM t WHERE (k, a) IN (SELECT k, x FROM u)",
        "SELECT id FROM t WHERE a = (SELECT x FROM u WHERE u.k = t.k ORDER BY u.id LIMIT 1)",
        "SELECT CASE WHEN EXISTS (SELECT 1 FROM s WHERE w = 'a') THEN 1 ELSE 0 END",
        "SELECT t.id, j.value FROM t, json_each('[1,2,3]') AS j WHERE t.k = j.value",
        "SELECT id, (SELECT group_concat(value, '') FROM json_each('[\"a\",\"b\"]')) FROM t WHERE k = 3",
        "SELECT x.k FROM (SELECT k FROM t WHERE a > 3 LIMIT 1000) x WHERE x.k > 3",
        "SELECT count(*) FROM t WHERE a IN (SELECT a FROM t WHERE k = 3)",
        "SELECT count(*) FROM t AS o WHERE (SELECT count(*) FROM t AS i WHERE i.c = o.c) > 3",
        "SELECT r.id FROM r WHERE EXISTS (SELECT 1 FROM t WHERE t.a = r.a AND t.k = 3)",
        "SELECT r.id, (SELECT count(*) FROM t WHERE t.k = r.id) FROM r",
        "SELECT id FROM t LEFT JOIN (SELECT k AS kk, x FROM u) q ON q.kk = t.k WHERE q.x > 1",
    ]);
}

#[test]
fn windows_order_and_limits() {
    check_all(&[
        "SELECT id, k, row_number() OVER (PARTITION BY k ORDER BY id) FROM t",
        "SELECT id, sum(a) OVER (ORDER BY id ROWS BETWEEN 2 PRECEDING AND CURRENT ROW) FROM t ORDER BY id",
        "SELECT id, rank() OVER w, lag(a, 1, -1) OVER w FROM t WINDOW w AS (PARTITION BY c ORDER BY a, id)",
        "SELECT id, sum(a) FILTER (WHERE k > 3) OVER (ORDER BY id GROUPS 1 PRECEDING EXCLUDE TIES) FROM t",
        "SELECT k, sum(count(*)) OVER (ORDER BY k) FROM t GROUP BY k",
        "SELECT id, ntile(4) OVER (ORDER BY id), first_value(c) OVER (ORDER BY id), nth_value(a, 2) OVER (ORDER BY id) FROM t WHERE k = 3",
        "SELECT id FROM t ORDER BY id",
        "SELECT id FROM t ORDER BY id LIMIT 5",
        "SELECT id FROM t ORDER BY id DESC LIMIT 5 OFFSET 3",
        "SELECT id FROM t ORDER BY id LIMIT 3, 5",
        "SELECT id FROM t ORDER BY id LIMIT -1 OFFSET 150",
        "SELECT id FROM t ORDER BY id LIMIT 5 OFFSET -5",
        "SELECT id FROM t ORDER BY id LIMIT 0",
        "SELECT id FROM t ORDER BY id LIMIT 2 + 3",
        "SELECT id FROM t ORDER BY id LIMIT (SELECT 4)",
        "SELECT id, c FROM t ORDER BY c, id LIMIT 10",
        "SELECT id, c FROM t ORDER BY c COLLATE NOCASE DESC NULLS FIRST, id LIMIT 10",
        "SELECT id, n FROM t ORDER BY n, id LIMIT 20",
        "SELECT id, n FROM t ORDER BY n NULLS LAST, id LIMIT 20",
        "SELECT id, f FROM t ORDER BY f, id LIMIT 50",
        "SELECT id, d, e FROM t ORDER BY d DESC, e, id",
        "SELECT id AS c, c AS id FROM t ORDER BY c LIMIT 5",
        "SELECT id, -id AS c FROM t ORDER BY c LIMIT 5",
        "SELECT id, a AS z FROM t ORDER BY z + 1, id LIMIT 5",
        "SELECT id, a FROM t WHERE a > 0 AND c = 'a' ORDER BY t.a, -t.id LIMIT 4",
        "SELECT id FROM t WHERE a > (SELECT 0) ORDER BY id LIMIT 4",
        "SELECT DISTINCT a FROM t ORDER BY a LIMIT 3",
        "SELECT id FROM t ORDER BY abs(k - 3), id LIMIT 6",
        "SELECT id FROM t ORDER BY 1 LIMIT 6",
        "SELECT id, k FROM t WHERE k IN (1, 2, 3) ORDER BY k DESC, id LIMIT 4 OFFSET 1",
        "SELECT t.id, u.id FROM t JOIN u ON t.k = u.k ORDER BY t.id, u.id LIMIT 7",
        "SELECT id FROM t LIMIT 10",
        "SELECT id FROM t LIMIT 10 OFFSET 155",
        "SELECT id FROM t WHERE k = 3 LIMIT 2",
        "SELECT id FROM t LIMIT -1",
        "SELECT id FROM t LIMIT 10 OFFSET 1000",
        "SELECT id FROM t LIMIT 9223372036854775807 OFFSET 9223372036854775807",
        "SELECT w FROM s ORDER BY w",
        "SELECT w FROM s ORDER BY w COLLATE NOCASE, w LIMIT 5",
        "SELECT length(w), hex(w), unicode(w) FROM s ORDER BY w DESC",
    ]);
}

#[test]
fn parameters() {
    let text = |text: &str| Value::from(text);
    check_with_values(&[
        ("SELECT * FROM t WHERE k = ?", vec![Value::Integer(5)]),
        ("SELECT * FROM t WHERE k = ?", vec![text("5")]),
        ("SELECT * FROM t WHERE k = ?", vec![text("5e0")]),
        ("SELECT * FROM t WHERE k = ?", vec![text("x")]),
        ("SELECT * FROM t WHERE k = ?", vec![Value::Real(5.0)]),
        ("SELECT * FROM t WHERE k = ?", vec![Value::Real(5.25)]),
        ("SELECT * FROM t WHERE k = ?", vec![Value::Null]),
        ("SELECT * FROM t WHERE k = ?", vec![Value::Blob(vec![0x35])]),
        ("SELECT * FROM s WHERE w = ?", vec![Value::Integer(5)]),
        ("SELECT * FROM s WHERE w = ?", vec![Value::Real(5.0)]),
        ("SELECT * FROM s WHERE w = ?", vec![Value::Blob(b"a".to_vec())]),
        (
            "SELECT * FROM t WHERE a > ?2 AND k = ?1 AND a < ?3",
            vec![Value::Integer(5), Value::Integer(0), Value::Integer(9)],
        ),
        ("SELECT id, ?1 FROM t WHERE a = ?2 ORDER BY id", vec![text("x"), Value::Integer(1)]),
        (
            "SELECT count(*), ?2 FROM t WHERE a = ?1 GROUP BY c HAVING count(*) > ?3",
            vec![Value::Integer(1), text("y"), Value::Integer(0)],
        ),
        ("SELECT sum(a + :x), :y FROM t WHERE k > :z", vec![Value::Integer(1), Value::Integer(2), Value::Integer(3)]),
        (
            "SELECT x.id FROM t x JOIN t y ON x.k = y.k AND y.a = ? WHERE x.a = ? AND x.c = ?",
            vec![Value::Integer(1), Value::Integer(2), text("a")],
        ),
        ("SELECT id FROM t LIMIT ? OFFSET ?", vec![Value::Integer(4), Value::Integer(2)]),
        ("SELECT id FROM t LIMIT ?", vec![text("4")]),
        ("SELECT id FROM t ORDER BY id LIMIT ?", vec![Value::Integer(4)]),
        ("SELECT id FROM t WHERE a > ? ORDER BY id LIMIT ? OFFSET ?", (0..3).map(Value::Integer).collect()),
        ("SELECT id FROM t ORDER BY id LIMIT ?", vec![Value::Integer(-4)]),
        ("SELECT id FROM t ORDER BY id LIMIT ?", vec![text("4")]),
        ("SELECT id FROM t ORDER BY id LIMIT ?1 OFFSET ?1", vec![Value::Integer(i64::MAX)]),
        ("SELECT id FROM t ORDER BY id LIMIT ?1 OFFSET -?1", vec![Value::Integer(3)]),
        ("SELECT id FROM t WHERE k IN (?, ?) AND a > ?", vec![Value::Integer(1), Value::Integer(2), Value::Integer(0)]),
        ("SELECT ? AS a, id FROM t WHERE ? = k", vec![Value::Null, Value::Integer(3)]),
    ]);
}

/// The kind of questions that are asked of nycflights13.
#[test]
fn flights() {
    let queries = [
        "SELECT count(*) FROM flights",
        "SELECT origin, count(*), avg(dep_delay), max(arr_delay) FROM flights GROUP BY origin ORDER BY origin",
        "SELECT a.name, count(*) AS n FROM flights f JOIN airlines a USING (carrier) GROUP BY a.name ORDER BY n DESC, a.name",
        "SELECT p.manufacturer, count(*), avg(f.distance) FROM flights f JOIN planes p ON p.tailnum = f.tailnum GROUP BY p.manufacturer ORDER BY 1",
        "SELECT f.id FROM flights f LEFT JOIN planes p ON p.tailnum = f.tailnum WHERE p.tailnum IS NULL ORDER BY f.id",
        "SELECT f.id FROM flights f WHERE NOT EXISTS (SELECT 1 FROM planes p WHERE p.tailnum = f.tailnum) ORDER BY f.id",
        "SELECT tailnum, count(*) FROM flights GROUP BY tailnum HAVING count(*) > 10 ORDER BY 2 DESC, 1",
        "SELECT f.id, w.temp FROM flights f JOIN weather w ON w.origin = f.origin AND w.month = f.month AND w.day = f.day AND w.hour * 100 = f.dep_time ORDER BY f.id",
        "SELECT w.origin, avg(f.dep_delay) FROM flights f JOIN weather w ON w.origin = f.origin AND w.month = f.month AND w.day = f.day AND w.hour * 100 = f.dep_time WHERE w.wind_speed > 15 GROUP BY w.origin ORDER BY 1",
        "SELECT origin, dest, dep_delay, rank() OVER (PARTITION BY origin ORDER BY dep_delay DESC, id) AS place FROM flights WHERE dep_delay IS NOT NULL ORDER BY origin, place LIMIT 20",
        "WITH busy AS (SELECT tailnum FROM flights GROUP BY tailnum ORDER BY count(*) DESC, tailnum LIMIT 5) SELECT f.tailnum, f.id FROM flights f JOIN busy USING (tailnum) ORDER BY 1, 2",
        "SELECT DISTINCT carrier, origin FROM flights ORDER BY 1, 2",
        "SELECT count(DISTINCT tailnum), count(DISTINCT dest) FROM flights",
        "SELECT sum(dep_delay), sum(arr_delay), total(dep_delay), count(dep_delay) FROM flights WHERE carrier = 'UA'",
        "SELECT month, sum(CASE WHEN dep_delay > 0 THEN 1 ELSE 0 END) AS late FROM flights GROUP BY month ORDER BY month",
        "SELECT id, dep_delay FROM flights ORDER BY dep_delay DESC NULLS LAST, id LIMIT 10 OFFSET 5",
        "SELECT id FROM flights WHERE dep_delay > (SELECT avg(dep_delay) FROM flights) ORDER BY id",
        "SELECT o.name, d.name, count(*) FROM flights f JOIN airports o ON o.faa = f.origin JOIN airports d ON d.faa = f.dest GROUP BY o.name, d.name ORDER BY 1, 2",
        "SELECT faa FROM airports EXCEPT SELECT dest FROM flights ORDER BY 1",
        "SELECT tailnum FROM planes INTERSECT SELECT tailnum FROM flights WHERE month = 2 ORDER BY 1",
        "SELECT * FROM planes WHERE tailnum IN ('N1', 'N2', 'N3', 'N99') ORDER BY tailnum",
        "SELECT * FROM flights f JOIN planes p USING (tailnum) WHERE tailnum = 'N7' ORDER BY f.id",
        "SELECT strftime('%m', time_hour) AS m, count(*) FROM flights GROUP BY m ORDER BY m",
        "SELECT date(time_hour), min(dep_time), max(dep_time) FROM flights GROUP BY 1 ORDER BY 1",
        "SELECT f.tailnum, (SELECT model FROM planes p WHERE p.tailnum = f.tailnum) AS model FROM flights f WHERE f.month = 3 ORDER BY f.tailnum, f.id",
        "SELECT a.faa, (SELECT count(*) FROM flights WHERE dest = a.faa) FROM airports a ORDER BY a.faa",
        "SELECT carrier, round(avg(arr_delay), 2) FROM flights WHERE arr_delay IS NOT NULL GROUP BY carrier HAVING avg(arr_delay) > 10 ORDER BY 2 DESC, 1",
        "SELECT dest, group_concat(carrier, ',') FROM (SELECT DISTINCT dest, carrier FROM flights ORDER BY dest, carrier) GROUP BY dest ORDER BY dest",
        "SELECT p.year IS NULL, count(*), avg(p.seats) FROM planes p GROUP BY p.year IS NULL ORDER BY 1",
        "SELECT id, sum(distance) OVER (PARTITION BY tailnum ORDER BY id) FROM flights WHERE tailnum IN ('N1', 'N2') ORDER BY id",
    ];
    for foreign_rows in [false, true] {
        let world = world::flights(3, foreign_rows);
        for sql in queries {
            assert_eq!(world.check(sql, &[]), Ok(false), "{sql}");
        }
    }
}
