//! Queries made at random, over four PostgreSQL servers and on one alone: the answers are equal, or the cluster refuses the query with `0A000`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::harness::{Cluster, Options};

/// Queries of a usual run; `GENERATED_QUERIES` asks for another number (the acceptance has 5,000).
const QUERIES: usize = 1_200;
/// The share of refused queries, of a thousand.
const REFUSED_PER_MILLE_MAX: usize = 100;

/// Numbers that look random, from a seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    fn often(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Text in several scripts, numbers at their limits, and NULLs everywhere but in keys.
fn rows_of(table: &str, chance: &mut Chance) -> String {
    let mut text = String::new();
    let words = ["NULL", "''", "'a'", "'A'", "'ä'", "'Ω'", "'漢字'", "'a b'", "'it''s'", "'z'", "'10'", "'9'"];
    let numbers = ["NULL", "0", "1", "-1", "7", "100", "2147483647", "-2147483648"];
    let exact = ["NULL", "0.1", "0.10", "-3.333", "1e10", "12345678901234567890.5", "0"];
    let moments = ["NULL", "'2024-01-01 00:00:00Z'", "'1999-12-31 23:59:59.5+02'", "'2024-06-01 12:00:00-05'"];
    for key in 0..40 {
        for part in 0..=chance.below(3) {
            let row = match table {
                "t" if part > 0 => continue,
                "t" => format!(
                    "{key}, {}, {}, {}, {}, {}",
                    chance.one(&numbers),
                    chance.one(&words),
                    chance.one(&exact),
                    chance.one(&moments),
                    chance.one(&["NULL", "true", "false"])
                ),
                "u" => format!("{key}, {part}, {}, {}", chance.one(&words), chance.one(&numbers)),
                _ if part > 0 || key > 11 => continue,
                _ => format!("{key}, {}", chance.one(&words)),
            };
            let _ = writeln!(text, "INSERT INTO {table} VALUES ({row});");
        }
    }
    text
}

/// A condition on the columns of one source.
fn condition(chance: &mut Chance, source: &str, depth: usize) -> String {
    let number = ["0", "1", "7", "-1", "20", "33"];
    let of = |chance: &mut Chance, column: &str| match source {
        "" => column.to_owned(),
        source => format!("{}.{column}", chance.one(&[source])),
    };
    match chance.below(if depth == 0 { 9 } else { 12 }) {
        0 => format!("{} = {}", of(chance, "k"), chance.one(&number)),
        1 => format!("{} IN ({}, {}, 5)", of(chance, "k"), chance.one(&number), chance.one(&number)),
        2 => format!("{} {} {}", of(chance, "a"), chance.one(&["=", "<", ">=", "<>"]), chance.one(&number)),
        3 => format!("{} IS {}NULL", of(chance, "a"), chance.one(&["", "NOT "])),
        4 => format!("{} LIKE {}", of(chance, "b"), chance.one(&["'a%'", "'%'", "'_'"])),
        5 => format!("{} BETWEEN {} AND {}", of(chance, "k"), chance.one(&number), chance.one(&["10", "30"])),
        6 => format!("coalesce({}, 'x') > {}", of(chance, "b"), chance.one(&["'a'", "'b'", "''"])),
        7 => format!("{} % 3 = {}", of(chance, "k"), chance.one(&["0", "1"])),
        8 => format!("{} IS DISTINCT FROM {}", of(chance, "b"), chance.one(&["'a'", "NULL"])),
        9 => format!("({} OR {})", condition(chance, source, depth - 1), condition(chance, source, depth - 1)),
        10 => format!("NOT ({})", condition(chance, source, depth - 1)),
        _ => format!("({} AND {})", condition(chance, source, depth - 1), condition(chance, source, depth - 1)),
    }
}

fn filter(chance: &mut Chance, source: &str) -> String {
    match chance.often(70) {
        true => format!(" WHERE {}", condition(chance, source, 2)),
        false => String::new(),
    }
}

/// `b` and `a` are there in `t` and in `u`.
fn expression(chance: &mut Chance) -> &'static str {
    chance.one(&[
        "k",
        "a",
        "b",
        "a::bigint + 1",
        "upper(b)",
        "coalesce(a, 0)",
        "k % 4",
        "b || '!'",
        "length(b)",
        "CASE WHEN a > 0 THEN 'p' ELSE b END",
    ])
}

fn aggregate(chance: &mut Chance) -> &'static str {
    chance.one(&[
        "count(*)",
        "count(a)",
        "sum(a)",
        "min(b)",
        "max(b)",
        "avg(a)",
        "sum(k)",
        "count(DISTINCT a)",
        "count(DISTINCT k)",
        "max(a) - min(a)",
        "sum(a) FILTER (WHERE a > 0)",
        "string_agg(b, ',' ORDER BY b, k)",
        "array_agg(k ORDER BY k)",
        "bool_or(a > 0)",
    ])
}

/// Views with the columns of `t` or of `u`.
const VIEWS: [(&str, &str); 6] = [
    ("vt", "SELECT * FROM t WHERE coalesce(a, 0) < 100"),
    ("vu", "SELECT k, n, b, a FROM u WHERE n >= 0"),
    ("joined", "SELECT vt.k, u.n, u.b, vt.a FROM vt JOIN u ON u.k = vt.k"),
    ("all_t", "SELECT t.k, u.n, u.b, t.a FROM t LEFT JOIN u ON u.k = t.k AND u.a > 0"),
    ("by_key", "SELECT k, count(*)::int AS n, min(b) AS b, sum(a)::bigint AS a FROM u GROUP BY k"),
    ("by_a", "SELECT a AS k, count(*)::int AS n, min(b) AS b, max(k) AS a FROM u GROUP BY a"),
];

/// A query, and whether the order of its rows is told by it.
fn query(chance: &mut Chance) -> (String, bool) {
    let table = chance.one(&["t", "t", "u", "vt", "vu", "joined", "all_t", "by_key", "by_a"]);
    let like_t = matches!(table, "t" | "vt");
    let t = chance.one(&["t", "t", "vt AS t"]);
    let u = chance.one(&["u", "u", "vu u", "joined u", "all_t u", "by_key AS u", "by_a AS u"]);
    let limit = |chance: &mut Chance| match chance.below(3) {
        0 => String::new(),
        1 => format!(" LIMIT {}", chance.below(12)),
        _ => format!(" LIMIT {} OFFSET {}", chance.below(12), chance.below(6)),
    };
    match chance.below(18) {
        0 => {
            let columns = if like_t { "k, a, b, c, d, e" } else { "k, n, b, a" };
            (format!("SELECT {columns} FROM {table}{}", filter(chance, "")), false)
        }
        1 => {
            (format!("SELECT {}, {} FROM {table}{}", expression(chance), expression(chance), filter(chance, "")), false)
        }
        2 => {
            let key = if like_t { "k" } else { "k, n" };
            let order = format!(
                "{} {}{}, {key}",
                expression(chance),
                chance.one(&["ASC", "DESC"]),
                chance.one(&["", " NULLS FIRST", " NULLS LAST"])
            );
            (
                format!(
                    "SELECT {}, k FROM {table}{} ORDER BY {order}{}",
                    expression(chance),
                    filter(chance, ""),
                    limit(chance)
                ),
                true,
            )
        }
        3 | 4 => {
            (format!("SELECT {}, {} FROM {table}{}", aggregate(chance), aggregate(chance), filter(chance, "")), false)
        }
        5 | 6 => {
            let by = expression(chance);
            let having = if chance.often(40) { " HAVING count(*) > 1" } else { "" };
            let order = if chance.often(40) { " ORDER BY 1 NULLS FIRST" } else { "" };
            let text = format!(
                "SELECT {by} AS g, {}, {} FROM {table}{} GROUP BY {by}{having}{order}",
                aggregate(chance),
                aggregate(chance),
                filter(chance, "")
            );
            (text, !order.is_empty())
        }
        7 => {
            let columns = if chance.often(30) { "*" } else { expression(chance) };
            (format!("SELECT DISTINCT {columns} FROM {table}{}", filter(chance, "")), false)
        }
        8 => {
            let kind = chance.one(&["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]);
            (format!("SELECT t.k, t.b, u.n, u.b FROM {t} {kind} {u} ON t.k = u.k{}", filter(chance, "t")), false)
        }
        9 => {
            let kind = chance.one(&["JOIN", "LEFT JOIN"]);
            let on = chance.one(&["u.a = t.a", "u.b = t.b", "u.k = t.k + 1", "u.n = t.k"]);
            (format!("SELECT t.k, u.k, u.n FROM {t} {kind} {u} ON {on}{}", filter(chance, "t")), false)
        }
        10 => {
            let other = chance.one(&["r", "s"]);
            let kind = chance.one(&["JOIN", "LEFT JOIN"]);
            (
                format!("SELECT t.k, {other}.label FROM {t} {kind} {other} ON {other}.id = t.k{}", filter(chance, "t")),
                false,
            )
        }
        11 => {
            let set = chance.one(&["UNION", "UNION ALL", "INTERSECT", "EXCEPT"]);
            (
                format!("SELECT k, b FROM {t}{} {set} SELECT k, b FROM {u}{}", filter(chance, ""), filter(chance, "")),
                false,
            )
        }
        12 => {
            let inner = chance.one(&[
                "k IN (SELECT k FROM u WHERE a > 0)",
                "EXISTS (SELECT 1 FROM u WHERE u.k = t.k AND u.n > 0)",
                "NOT EXISTS (SELECT 1 FROM u WHERE u.a = t.a)",
                "a > (SELECT avg(a) FROM u)",
                "k IN (SELECT id FROM r)",
                "b = ANY (SELECT label FROM s)",
            ]);
            (format!("SELECT k, b FROM {t} WHERE {inner} AND ({})", condition(chance, "", 1)), false)
        }
        13 => {
            let text = format!(
                "WITH w AS (SELECT k, count(*) AS n FROM {u}{} GROUP BY k) SELECT t.k, w.n FROM {t} JOIN w ON w.k = t.k{}",
                filter(chance, ""),
                filter(chance, "t")
            );
            (text, false)
        }
        14 => {
            let window = chance.one(&["PARTITION BY k ORDER BY n", "ORDER BY k, n", "PARTITION BY a ORDER BY k, n"]);
            let function = chance.one(&["row_number()", "sum(a)", "lag(b)", "count(*)"]);
            (format!("SELECT k, n, {function} OVER ({window}) FROM u{}", filter(chance, "")), false)
        }
        15 => {
            let kind = chance.one(&["JOIN", "LEFT JOIN", "RIGHT JOIN"]);
            let columns = chance.one(&["u.k, u.b", "t.k, u.b", "t.k AS k, max(u.b) AS b", "u.k AS k, min(t.b) AS b"]);
            let groups = match columns.contains('(') {
                true => format!(" GROUP BY {}", &columns[..3]),
                false => String::new(),
            };
            let inner = format!("SELECT {columns} FROM {t} {kind} {u} ON u.k = t.k{}{groups}", filter(chance, "t"));
            let text = match chance.below(4) {
                0 => format!("SELECT x.k, count(*), max(x.b) FROM ({inner}) x GROUP BY x.k"),
                1 => format!("SELECT DISTINCT * FROM ({inner}) x"),
                2 => format!("SELECT x.b, count(DISTINCT x.k) FROM ({inner}) x GROUP BY x.b"),
                _ => format!("SELECT x.k, v.n FROM ({inner}) x LEFT JOIN vu v ON v.k = x.k{}", filter(chance, "x")),
            };
            (text.replace("x.a", "x.k"), false)
        }
        16 => {
            let text =
                format!("SELECT count(*), min(k) FROM (SELECT DISTINCT {} AS k, b FROM {table}) x", expression(chance));
            (text, false)
        }
        _ => {
            let text = format!(
                "SELECT x.b, count(*) FROM (SELECT k, b FROM {t}{}) x JOIN {u} ON u.k = x.k GROUP BY x.b",
                filter(chance, "")
            );
            (text, false)
        }
    }
}

/// Run a script with psql; gives what stands behind each mark.
fn answers(port: &str, script: &str) -> Vec<(String, Vec<String>)> {
    let mut child = Command::new("psql")
        .args(["-XqAt", "-h", "127.0.0.1", "-U", "pleat", "-d", "pleat", "-p", port])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("psql (Debian's postgresql-client) is there: `cargo xtask test` installs it");
    let mut input = child.stdin.take().unwrap();
    let text = script.to_owned();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let done = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    let mut found = Vec::new();
    let mut rows = Vec::new();
    for line in out.lines() {
        match line.strip_prefix("@@@ ") {
            Some(state) => found.push((state.to_owned(), std::mem::take(&mut rows))),
            None => rows.push(line.to_owned()),
        }
    }
    found
}

#[tokio::test]
async fn generated_queries_mean_what_they_mean_on_one_server() {
    let queries = std::env::var("GENERATED_QUERIES").ok().and_then(|text| text.parse().ok()).unwrap_or(QUERIES);
    let config = json!({ "engine": "postgres" });
    let cluster = Cluster::start(Options { nodes: 1, shards: 4, config, ..Options::default() }).await;
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let placed = [
        ("t", "k int PRIMARY KEY, a int, b text, c numeric, d timestamptz, e boolean", "SHARD BY (k)"),
        ("u", "k int, n int, b text, a int, PRIMARY KEY (k, n)", "SHARD BY (k)"),
        ("r", "id int PRIMARY KEY, label text", "REFERENCE"),
        ("s", "id int PRIMARY KEY, label text", "SINGLE"),
    ];
    // One server of the cluster also plays the single server, in a database of its own.
    let shards = cluster.get("/shards").await;
    let (_, alone) = shards[0]["server"].as_str().unwrap().split_once(':').unwrap();
    let alone = alone.to_owned();
    let made = Command::new("psql")
        .args(["-XqAt", "-h", "127.0.0.1", "-U", "pleat", "-d", "pleat", "-p", &alone, "-c", "CREATE DATABASE alone"])
        .status();
    assert!(made.unwrap().success());
    let (mut setup, mut setup_alone) = (String::new(), "\\c alone\n".to_owned());
    for (name, columns, placement) in placed {
        let _ = writeln!(setup, "CREATE TABLE {name} ({columns}) {placement};");
        let _ = writeln!(setup_alone, "CREATE TABLE {name} ({columns});");
        let rows = rows_of(name, &mut chance);
        setup += &rows;
        setup_alone += &rows;
    }
    for (name, text) in VIEWS {
        let made = format!("CREATE VIEW {name} AS {text};\n");
        setup += &made;
        setup_alone += &made;
    }
    let mut script = String::new();
    let mut asked = Vec::new();
    for _ in 0..queries {
        let (text, ordered) = query(&mut chance);
        let _ = writeln!(script, "{text};\n\\echo @@@ :SQLSTATE");
        asked.push((text, ordered));
    }
    let port = cluster.pg_port(1).to_string();
    let counted = "SELECT count(*), sum(k) FROM t;\nSELECT count(*) FROM u;\nSELECT count(*), sum(n) FROM joined;\n\\echo @@@ :SQLSTATE\n";
    let filled = answers(&port, &(setup + counted));
    let wanted = answers(&alone, &(setup_alone + counted));
    assert_eq!(filled, wanted, "{}", cluster.tail());
    let over_shards = answers(&port, &script);
    let wanted = answers(&alone, &("\\c alone\n".to_owned() + &script));
    assert_eq!((over_shards.len(), wanted.len()), (queries, queries), "{}", cluster.tail());

    // A generator whose queries fail compares nothing.
    let answered = wanted.iter().filter(|(state, _)| state == "00000").count();
    assert!(answered * 100 >= queries * 95, "{answered} of {queries} queries are any");
    let (mut refused, mut wrong) = (0, Vec::new());
    for (((text, ordered), mut found), mut wanted) in asked.into_iter().zip(over_shards).zip(wanted) {
        if !ordered {
            found.1.sort();
            wanted.1.sort();
        }
        match found.0 == "0A000" && wanted.0 == "00000" {
            true => refused += 1,
            false if found != wanted => wrong.push(format!("{text}\n  found  {found:?}\n  wanted {wanted:?}")),
            false => {}
        }
    }
    println!("{queries} queries, {answered} with an answer, {refused} refused, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{} of {queries} are wrong:\n{}", wrong.len(), wrong[..wrong.len().min(12)].join("\n"));
    assert!(refused * 1_000 <= queries * REFUSED_PER_MILLE_MAX, "{refused} of {queries} were refused");
}
