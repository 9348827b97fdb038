//! SELECTs of every class that Pleat takes apart: subqueries and CTEs in FROM, joins by key, USING and NATURAL, sets, windows,
//! groups, DISTINCT aggregates, semi-joins, orders with collations.

use crate::Dice;
use crate::literals::literal;

/// A source in FROM: its columns by name, without its alias.
#[derive(Clone)]
struct Source {
    alias: String,
    text: String,
    columns: Vec<&'static str>,
}

impl Source {
    fn any(&self, dice: &mut Dice) -> String {
        format!("{}.{}", self.alias, dice.pick(&self.columns))
    }

    /// The column that carries the key, if there is one.
    fn key(&self) -> Option<String> {
        ["k", "w"].into_iter().find(|key| self.columns.contains(key)).map(|key| format!("{}.{key}", self.alias))
    }
}

fn table(dice: &mut Dice) -> (&'static str, Vec<&'static str>) {
    match dice.roll(12) {
        0..=4 => ("t", vec!["k", "id", "a", "b", "c", "d", "e", "f", "n", "g"]),
        5..=7 => ("u", vec!["id", "k", "x", "y"]),
        8 => ("s", vec!["w", "v", "k"]),
        9 | 10 => ("r", vec!["id", "a", "c"]),
        _ => ("one", vec!["id", "a", "c"]),
    }
}

const FILTERS: [&str; 5] = ["", " WHERE a > 0", " WHERE k > 4", " WHERE c IS NOT NULL", " WHERE k IN (1, 2, 3)"];
const INNERS: usize = 13;
const SETS: [&str; 4] = ["UNION", "UNION ALL", "EXCEPT", "INTERSECT"];

/// A query with named columns, for FROM or WITH.
fn inner(dice: &mut Dice) -> (String, Vec<&'static str>) {
    let filter = if dice.roll(2) == 0 { 0 } else { 1 + dice.roll(4) };
    inner_query(dice.roll(INNERS), FILTERS[filter], dice.pick(&SETS))
}

/// A view, and the query that it stands for.
pub struct View {
    name: String,
    query: String,
    /// The CREATE VIEW.
    pub create: String,
}

/// A view for each query that may stand in FROM or WITH; every other one names its columns.
pub fn views() -> Vec<View> {
    let mut found: Vec<View> = Vec::new();
    for (number, filter, set) in (0..INNERS * 20).map(|at| (at / 20, FILTERS[at / 4 % 5], SETS[at % 4])) {
        let (query, columns) = inner_query(number, filter, set);
        if found.iter().all(|known| known.query != query) {
            let name = format!("v{}", found.len());
            let list = if number % 2 == 0 { format!("({})", columns.join(", ")) } else { String::new() };
            found.push(View { create: format!("CREATE VIEW {name}{list} AS {query}"), name, query });
        }
    }
    found
}

/// The same query, with views in the place of some of its inner queries.
pub fn through_views(dice: &mut Dice, sql: String) -> String {
    views().iter().fold(sql, |sql, View { name, query, .. }| match dice.roll(2) {
        0 => sql.replace(&format!("({query}) AS x"), &format!("{name} AS x")),
        _ => sql.replace(&format!(" AS ({query})"), &format!(" AS (SELECT * FROM {name})")),
    })
}

fn inner_query(number: usize, filter: &str, set: &str) -> (String, Vec<&'static str>) {
    match number {
        0 => (format!("SELECT k, a AS p, c AS q FROM t{filter}"), vec!["k", "p", "q"]),
        1 => (format!("SELECT * FROM t{filter}"), vec!["k", "id", "a", "c", "n", "b"]),
        2 => (format!("SELECT k, count(*) AS p, max(a) AS q FROM t{filter} GROUP BY k"), vec!["k", "p", "q"]),
        3 => (format!("SELECT c AS q, count(*) AS p FROM t{filter} GROUP BY c"), vec!["q", "p"]),
        4 => (format!("SELECT DISTINCT k, c AS q FROM t{filter}"), vec!["k", "q"]),
        5 => (format!("SELECT k FROM t{filter} {set} SELECT k FROM u"), vec!["k"]),
        6 => (
            format!("SELECT k, a AS p, row_number() OVER (PARTITION BY k ORDER BY id) AS q FROM t{filter}"),
            vec!["k", "p", "q"],
        ),
        7 => ("SELECT x.k, x.a AS p, y.y AS q FROM t x JOIN u y ON x.k = y.k".to_owned(), vec!["k", "p", "q"]),
        8 => ("SELECT t.k, r.c AS q FROM t LEFT JOIN r ON t.a = r.a".to_owned(), vec!["k", "q"]),
        9 => (format!("SELECT DISTINCT a AS p, c AS q FROM t{filter}"), vec!["p", "q"]),
        10 => ("SELECT k, x AS p FROM u ORDER BY k, id LIMIT 7".to_owned(), vec!["k", "p"]),
        11 => ("SELECT a AS p, c AS q FROM r WHERE id > 2".to_owned(), vec!["p", "q"]),
        _ => ("SELECT u.k, count(t.a) AS p FROM u LEFT JOIN t USING (k) GROUP BY u.k".to_owned(), vec!["k", "p"]),
    }
}

fn source(dice: &mut Dice, alias: String, ctes: &[(String, Vec<&'static str>)]) -> Source {
    match dice.roll(10) {
        0 | 1 => {
            let (query, columns) = inner(dice);
            Source { text: format!("({query}) AS {alias}"), alias, columns }
        }
        2..=4 if !ctes.is_empty() => {
            let (name, columns) = &ctes[dice.roll(ctes.len())];
            Source { text: format!("{name} AS {alias}"), alias, columns: columns.clone() }
        }
        _ => {
            let (name, columns) = table(dice);
            Source { text: format!("{name} AS {alias}"), alias, columns }
        }
    }
}

fn from(dice: &mut Dice, ctes: &[(String, Vec<&'static str>)]) -> (String, Vec<Source>) {
    let first = source(dice, "x0".to_owned(), ctes);
    let mut text = first.text.clone();
    let mut all = vec![first];
    for at in 1..[1, 1, 2, 2, 3][dice.roll(5)] {
        let next = source(dice, format!("x{at}"), ctes);
        let left = all[dice.roll(all.len())].clone();
        let join = dice.pick(&["JOIN", "JOIN", "JOIN", "LEFT JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]);
        let shared: Vec<&str> = next.columns.iter().copied().filter(|name| all[0].columns.contains(name)).collect();
        text += &match (left.key(), next.key(), dice.roll(8)) {
            (_, _, 0) if all.len() == 1 && shared.contains(&"k") => format!(" {join} {} USING (k)", next.text),
            (Some(_), Some(_), 1) if all.len() == 1 && shared == ["k"] => format!(" NATURAL {join} {}", next.text),
            (Some(a), Some(b), 2..=6) => {
                let more = if dice.roll(3) == 0 {
                    let both = [all.clone(), vec![next.clone()]].concat();
                    format!(" AND {}", condition(dice, &both, 2))
                } else {
                    String::new()
                };
                format!(" {join} {} ON {a} = {b}{more}", next.text)
            }
            _ => format!(" {join} {} ON {} = {}", next.text, left.any(dice), next.any(dice)),
        };
        all.push(next);
    }
    (text, all)
}

fn column(dice: &mut Dice, all: &[Source]) -> String {
    all[dice.roll(all.len())].any(dice)
}

fn condition(dice: &mut Dice, all: &[Source], depth: usize) -> String {
    let a = column(dice, all);
    let key = all.iter().find_map(Source::key).unwrap_or_else(|| a.clone());
    match dice.roll(if depth < 2 { 22 } else { 10 }) {
        0 => format!("{key} = {}", 1 + dice.roll(12)),
        1 => format!("{key} IN ({}, {}, {})", dice.roll(20), dice.roll(20), literal(dice)),
        2 => format!("{a} {} {}", dice.pick(&["<", ">", "<=", ">=", "<>", "IS", "IS NOT", "="]), literal(dice)),
        3 => format!("{a} IS {}NULL", dice.pick(&["", "NOT "])),
        4 => format!("{a} BETWEEN {} AND {}", literal(dice), literal(dice)),
        5 => format!("{a} {}LIKE {}", dice.pick(&["", "NOT "]), dice.pick(&["'a%'", "'%5%'", "'_'", "NULL"])),
        6 => format!("{a} = {}", column(dice, all)),
        7 => format!("coalesce({a}, {}) > {}", column(dice, all), literal(dice)),
        8 => format!("abs(length({a})) {} 1", dice.pick(&["=", "<", ">"])),
        9 => format!("{a} COLLATE NOCASE = {}", literal(dice)),
        10 => format!("({} AND {})", condition(dice, all, depth + 1), condition(dice, all, depth + 1)),
        11 => format!("({} OR {})", condition(dice, all, depth + 1), condition(dice, all, depth + 1)),
        12 => format!("NOT {}", condition(dice, all, depth + 1)),
        13 | 14 => format!(
            "{key} {}IN (SELECT z.k FROM {} z WHERE {})",
            dice.pick(&["", "NOT "]),
            dice.pick(&["t", "u", "s"]),
            sub(dice, &a)
        ),
        15 | 16 => format!(
            "{}EXISTS (SELECT 1 FROM {} z WHERE z.k = {key} AND {})",
            dice.pick(&["", "NOT "]),
            dice.pick(&["t", "u"]),
            sub(dice, &a)
        ),
        17 => format!(
            "{a} {} (SELECT {} FROM {})",
            dice.pick(&["<", ">", "="]),
            dice.pick(&["avg(id)", "max(k)", "count(*)", "min(k)"]),
            dice.pick(&["t", "u", "u WHERE k > 3"])
        ),
        18 => format!(
            "{a} IN (SELECT {} FROM t z WHERE {})",
            dice.pick(&["z.a", "DISTINCT z.c", "max(z.a)"]),
            sub(dice, "3")
        ),
        19 => format!("{key} IN (SELECT k FROM u GROUP BY k HAVING count(*) > {})", dice.roll(3)),
        20 => format!("{a} IN (SELECT r.{} FROM r)", dice.pick(&["a", "c", "id"])),
        _ => format!(
            "(SELECT {} FROM u z WHERE z.k = {key}) {} {}",
            dice.pick(&["count(*)", "max(z.x)", "sum(z.x)"]),
            dice.pick(&["<", ">", "="]),
            dice.roll(4)
        ),
    }
}

fn sub(dice: &mut Dice, outer: &str) -> String {
    match dice.roll(5) {
        0 => format!("z.k = {}", dice.roll(12)),
        1 => format!("z.k < {outer}"),
        2 => "z.k > 3".to_owned(),
        3 => "z.k IS NOT NULL".to_owned(),
        _ => format!("z.k = {outer}"),
    }
}

fn scalar(dice: &mut Dice, all: &[Source]) -> String {
    let a = column(dice, all);
    let key = all.iter().find_map(Source::key).unwrap_or_else(|| a.clone());
    match dice.roll(16) {
        0 => format!("{a} || 'x'"),
        1 => format!("typeof({a})"),
        2 => format!("coalesce({a}, {})", literal(dice)),
        3 => format!("CASE WHEN {} THEN {a} ELSE 'no' END", condition(dice, all, 2)),
        4 => format!("(SELECT count(*) FROM u z WHERE z.k = {key})"),
        5 => format!("CAST({a} AS TEXT)"),
        6 => format!("({a})"),
        7 => format!("(SELECT max(z.a) FROM r z WHERE z.a = {a})"),
        _ => a,
    }
}

/// Columns that sums don't overflow on, whatever their order.
fn tame(dice: &mut Dice, all: &[Source]) -> String {
    let names = ["k", "id", "a", "x", "v", "g", "p", "y"];
    let mut found = Vec::new();
    for source in all {
        found.extend(
            source.columns.iter().filter(|name| names.contains(name)).map(|name| format!("{}.{name}", source.alias)),
        );
    }
    if found.is_empty() { "1".to_owned() } else { found[dice.roll(found.len())].clone() }
}

fn aggregate(dice: &mut Dice, all: &[Source]) -> String {
    let (a, b) = (column(dice, all), tame(dice, all));
    match dice.roll(15) {
        0 => "count(*)".to_owned(),
        1 => format!("count({a})"),
        2 => format!("sum({b})"),
        3 => format!("avg({b})"),
        4 => format!("min({a})"),
        5 => format!("max({a})"),
        6 => format!("total({b}) + count(*)"),
        7 => format!("count(DISTINCT {a})"),
        8 => format!("count(*) FILTER (WHERE {})", condition(dice, all, 2)),
        9 => format!("count(DISTINCT {a}) FILTER (WHERE {})", condition(dice, all, 2)),
        10 => format!("sum(DISTINCT {b})"),
        11 => format!("avg(DISTINCT {b})"),
        12 => format!("max(length({a})) - min(length({a}))"),
        13 => format!("sum(CASE WHEN {} THEN 1 ELSE 0 END)", condition(dice, all, 2)),
        _ => format!("coalesce(sum({b}), 0) * 2"),
    }
}

/// The SELECT list, what follows WHERE, and the number of columns.
fn output(dice: &mut Dice, all: &[Source]) -> (String, String, usize) {
    let key = all.iter().find_map(Source::key);
    match dice.roll(10) {
        0..=3 => {
            let mut groups: Vec<String> = (0..dice.roll(3)).map(|_| column(dice, all)).collect();
            groups.extend(key.filter(|_| dice.roll(3) == 0));
            let expression = dice.roll(5) == 0;
            if expression {
                groups.push(format!("{}({})", dice.pick(&["typeof", "length", "upper"]), column(dice, all)));
            }
            let mut items = groups.clone();
            items.extend((0..1 + dice.roll(3)).map(|_| aggregate(dice, all)));
            let mut tail = if groups.is_empty() { String::new() } else { format!(" GROUP BY {}", groups.join(", ")) };
            if !groups.is_empty() && dice.roll(3) == 0 {
                tail += &format!(" HAVING {} > {}", aggregate(dice, all), dice.roll(4));
            }
            (items.join(", "), tail, items.len())
        }
        4 => {
            let by = key.filter(|_| dice.roll(4) > 0).unwrap_or_else(|| column(dice, all));
            let items: Vec<String> = all
                .iter()
                .flat_map(|source| source.columns.iter().map(|name| format!("{}.{name}", source.alias)))
                .collect();
            let over = format!("OVER (PARTITION BY {by} ORDER BY {})", items.join(", "));
            let call = dice.pick(&["row_number()", "rank()", "count(*)", "dense_rank()"]);
            let shown = column(dice, all);
            (format!("{by}, {shown}, {call} {over}"), String::new(), 3)
        }
        _ => {
            let count = 1 + dice.roll(4);
            let items: Vec<String> = (0..count).map(|_| scalar(dice, all)).collect();
            let distinct = dice.pick(&["", "", "DISTINCT "]);
            (format!("{distinct}{}", items.join(", ")), String::new(), count)
        }
    }
}

/// One query.
pub fn query(dice: &mut Dice) -> String {
    let mut ctes: Vec<(String, Vec<&'static str>)> = Vec::new();
    let mut with = String::new();
    if dice.roll(4) == 0 {
        for at in 0..1 + dice.roll(2) {
            let (text, columns) = inner(dice);
            with += &format!("{} w{at} AS ({text})", if at == 0 { "WITH" } else { "," });
            ctes.push((format!("w{at}"), columns));
        }
        with.push(' ');
    }
    let (from, all) = from(dice, &ctes);
    let filter = match dice.roll(4) {
        0 => String::new(),
        1 | 2 => format!(" WHERE {}", condition(dice, &all, 0)),
        _ => format!(" WHERE {} AND {}", condition(dice, &all, 0), condition(dice, &all, 1)),
    };
    let (items, tail, count) = output(dice, &all);
    let core = format!("{with}SELECT {items} FROM {from}{filter}{tail}");
    let direction = |dice: &mut Dice| dice.pick(&["", "", " DESC", " NULLS LAST", " DESC NULLS FIRST"]).to_owned();
    let mut order: Vec<String> = (1..=count).map(|at| format!("{at}{}", direction(dice))).collect();
    let grouped = tail.contains("GROUP BY")
        || !tail.is_empty()
        || items.contains("count(")
        || items.contains("sum(")
        || items.starts_with("DISTINCT");
    if !grouped && dice.roll(2) == 0 {
        order.insert(0, format!("{}{}", scalar(dice, &all), direction(dice)));
    }
    // Which of `a` and `A` a DISTINCT or a group of `n` shows is SQLite's choice.
    if dice.roll(5) == 0 && !core.contains(".n") {
        order[0] = format!("1 COLLATE {}", dice.pick(&["NOCASE", "RTRIM", "BINARY"]));
        order.push("1".to_owned());
    }
    match dice.roll(9) {
        0 | 1 => format!("{core} ORDER BY {}", order.join(", ")),
        2 | 3 => format!("{core} ORDER BY {} LIMIT {} OFFSET {}", order.join(", "), dice.roll(12), dice.roll(5)),
        4 => format!("{core} LIMIT {}", dice.roll(9)),
        5 if with.is_empty() => {
            format!("SELECT count(*), min(c1) FROM (SELECT 1 AS c1 UNION ALL SELECT count(*) FROM ({core}))")
        }
        6 if count == 1 => {
            let operator = dice.pick(&["UNION", "UNION ALL", "EXCEPT", "INTERSECT"]);
            let right = dice.pick(&["SELECT k FROM u", "SELECT a FROM r", "SELECT k FROM t WHERE a > 1"]);
            format!("{core} {operator} {right}{}", dice.pick(&["", " ORDER BY 1", " ORDER BY 1 DESC LIMIT 5"]))
        }
        _ => core,
    }
}
