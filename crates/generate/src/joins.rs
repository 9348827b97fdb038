//! Plain SELECTs: up to three tables joined in every way, deep conditions with subqueries, groups, orders and limits.

use crate::Dice;
use crate::literals::literal;

/// A table's alias and the columns that may be used of it.
struct From {
    text: String,
    columns: Vec<String>,
}

const TABLES: &[(&str, &[&str])] = &[
    ("t", &["k", "id", "a", "b", "c", "d", "e", "f", "g"]),
    ("u", &["id", "k", "x", "y"]),
    ("s", &["w", "v", "k"]),
    ("r", &["id", "a", "c"]),
    ("one", &["id", "a", "c"]),
];

fn column<'f>(dice: &mut Dice, from: &'f From) -> &'f str {
    &from.columns[dice.roll(from.columns.len())]
}

fn from(dice: &mut Dice) -> From {
    let mut found = From { text: String::new(), columns: Vec::new() };
    let count = [1, 1, 1, 2, 2, 3][dice.roll(6)];
    for at in 0..count {
        // Mostly the sharded tables with the same kind of key.
        let (table, columns) = TABLES[[0, 0, 0, 1, 1, 2, 3, 3, 4][dice.roll(9)]];
        let alias = format!("{}{at}", dice.pick(&["x", "y", "\"q z\""]).trim_matches('"').replace(' ', "_"));
        let columns: Vec<String> = columns.iter().map(|column| format!("{alias}.{column}")).collect();
        if at == 0 {
            found.text = format!("{table} AS {alias}");
        } else {
            let left = found.columns[dice.roll(found.columns.len())].clone();
            let right = columns[dice.roll(columns.len())].clone();
            let key = found.columns.iter().find(|column| column.ends_with(".k")).filter(|_| dice.roll(3) > 0);
            let on = match (key, columns.iter().find(|column| column.ends_with(".k"))) {
                (Some(left), Some(right)) => format!("{left} = {right}"),
                _ => format!("{left} = {right}"),
            };
            let join = dice.pick(&["JOIN", "JOIN", "LEFT JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", ","]);
            let both = From { text: String::new(), columns: found.columns.iter().chain(&columns).cloned().collect() };
            let more = if dice.roll(4) == 0 { format!(" AND {}", condition(dice, &both, 0)) } else { String::new() };
            found.text = match join {
                "," => format!("{} CROSS JOIN {table} AS {alias} ON {on}", found.text),
                join => format!("{} {join} {table} AS {alias} ON {on}{more}", found.text),
            };
        }
        found.columns.extend(columns);
    }
    found
}

fn condition(dice: &mut Dice, from: &From, depth: usize) -> String {
    let a = column(dice, from).to_owned();
    let key = from
        .columns
        .iter()
        .find(|column| column.ends_with(".k") || column.ends_with(".w"))
        .cloned()
        .unwrap_or_else(|| a.clone());
    match dice.roll(if depth < 2 { 17 } else { 12 }) {
        0 | 1 => format!("{key} = {}", literal(dice)),
        2 => format!("{key} IN ({}, {}, {})", literal(dice), literal(dice), literal(dice)),
        3 => format!("{} = {a}", literal(dice)),
        4 => format!("{a} {} {}", dice.pick(&["<", ">", "<=", ">=", "<>", "IS", "IS NOT", "=="]), literal(dice)),
        5 => format!("{a} IS {}NULL", dice.pick(&["", "NOT "])),
        6 => format!("{a} BETWEEN {} AND {}", literal(dice), literal(dice)),
        7 => format!("{a} {}LIKE {}", dice.pick(&["", "NOT "]), literal(dice)),
        8 => format!("{a} = {}", column(dice, from)),
        9 => format!("{a} NOT IN ({}, {})", literal(dice), literal(dice)),
        10 => format!("coalesce({a}, {}) {} {}", column(dice, from), dice.pick(&["=", "<", ">"]), literal(dice)),
        11 => format!("{key} = {}", 1 + dice.roll(9)),
        12 => format!("({} AND {})", condition(dice, from, depth + 1), condition(dice, from, depth + 1)),
        13 => format!("({} OR {})", condition(dice, from, depth + 1), condition(dice, from, depth + 1)),
        14 => format!("NOT {}", condition(dice, from, depth + 1)),
        15 => format!(
            "{a} {}IN (SELECT z.{} FROM {} z WHERE {})",
            dice.pick(&["", "NOT "]),
            "k",
            dice.pick(&["t", "u", "s"]),
            subcondition(dice, &a)
        ),
        _ => format!(
            "{}EXISTS (SELECT 1 FROM {} z WHERE z.k = {key} AND {})",
            dice.pick(&["", "NOT "]),
            dice.pick(&["t", "u", "s"]),
            subcondition(dice, &a)
        ),
    }
}

fn subcondition(dice: &mut Dice, outer: &str) -> String {
    match dice.roll(4) {
        0 => format!("z.k = {}", literal(dice)),
        1 => format!("z.k < {outer}"),
        2 => "z.k > 3".to_owned(),
        _ => format!("z.k = {outer}"),
    }
}

fn scalar(dice: &mut Dice, from: &From) -> String {
    let a = column(dice, from).to_owned();
    match dice.roll(10) {
        0 => format!("{a} || 'x'"),
        1 => format!("typeof({a})"),
        2 => format!("coalesce({a}, {})", literal(dice)),
        3 => format!("CASE WHEN {} THEN {a} ELSE {} END", condition(dice, from, 2), literal(dice)),
        4 => format!("(SELECT count(*) FROM u z WHERE z.k = {a})"),
        _ => a,
    }
}

fn plain(dice: &mut Dice, from: &From) -> (String, usize) {
    let count = 1 + dice.roll(4);
    let items: Vec<String> = (0..count).map(|_| scalar(dice, from)).collect();
    (items.join(", "), count)
}

fn grouped(dice: &mut Dice, from: &From) -> (String, usize, String) {
    let groups: Vec<String> = (0..dice.roll(3)).map(|_| column(dice, from).to_owned()).collect();
    let mut items = groups.clone();
    // Sums and averages only of columns without the 64-bit extremes, whose sum depends on the order of the rows.
    let tame: Vec<&String> = from
        .columns
        .iter()
        .filter(|column| [".k", ".id", ".a", ".x", ".v", ".g", ".c", ".y"].iter().any(|end| column.ends_with(end)))
        .collect();
    for _ in 0..1 + dice.roll(3) {
        let a = column(dice, from).to_owned();
        let b = tame[dice.roll(tame.len())];
        items.push(match dice.roll(10) {
            0 => "count(*)".to_owned(),
            1 => format!("count({a})"),
            2 => format!("sum({b})"),
            3 => format!("avg({b})"),
            4 => format!("min({a})"),
            5 => format!("max({a})"),
            6 => format!("total({b}) + count(*)"),
            7 => format!("count(DISTINCT {a})"),
            8 => format!("count(*) FILTER (WHERE {})", condition(dice, from, 2)),
            _ => format!("coalesce(sum({b}), 0) * 2"),
        });
    }
    let mut tail = if groups.is_empty() { String::new() } else { format!(" GROUP BY {}", groups.join(", ")) };
    if dice.roll(3) == 0 {
        tail += &format!(" HAVING count(*) {} {}", dice.pick(&[">", "<", "<>"]), dice.roll(6));
    }
    (items.join(", "), items.len(), tail)
}

/// One query.
pub fn query(dice: &mut Dice) -> String {
    let from = from(dice);
    let filter = if dice.roll(4) == 0 { String::new() } else { format!(" WHERE {}", condition(dice, &from, 0)) };
    let (items, count, tail) = if dice.roll(3) == 0 {
        grouped(dice, &from)
    } else {
        let (items, count) = plain(dice, &from);
        (items, count, String::new())
    };
    let distinct = dice.pick(&["", "", "", "DISTINCT "]);
    let core = format!("SELECT {distinct}{items} FROM {}{filter}{tail}", from.text);
    let order: Vec<String> =
        (1..=count).map(|at| format!("{at}{}", dice.pick(&["", " DESC", " NULLS LAST"]))).collect();
    match dice.roll(8) {
        0 => format!("{core} ORDER BY {}", order.join(", ")),
        1 => format!("{core} ORDER BY {} LIMIT {} OFFSET {}", order.join(", "), dice.roll(9), dice.roll(4)),
        2 => format!("{core} LIMIT {}", dice.roll(9)),
        3 => format!("SELECT * FROM ({core}) ORDER BY {}", order.join(", ")),
        4 => format!("WITH w AS ({core}) SELECT count(*) FROM w"),
        5 if count == 1 => {
            format!("{core} {} SELECT k FROM u", dice.pick(&["UNION", "UNION ALL", "EXCEPT", "INTERSECT"]))
        }
        _ => core,
    }
}
