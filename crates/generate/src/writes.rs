//! Writes of every class: rows, upserts, INSERT … SELECT, UPDATE (also of the key, also FROM other tables), DELETE, scripts.

use pleat_cluster::Value;

use crate::Dice;
use crate::literals::text;

fn integer(dice: &mut Dice) -> String {
    match dice.roll(9) {
        0 | 1 => "NULL".to_owned(),
        2 => dice.pick(&["9223372036854775807", "-9223372036854775808", "13", "0"]).to_owned(),
        _ => (dice.roll(14) as i64 - 4).to_string(),
    }
}

fn any(dice: &mut Dice) -> String {
    match dice.roll(5) {
        0 => integer(dice),
        1 => text(dice),
        2 => dice.pick(&["x''", "x'00ff'", "1.5", "-0.25", "1e300"]).to_owned(),
        3 => "NULL".to_owned(),
        _ => dice.roll(6).to_string(),
    }
}

fn key(dice: &mut Dice) -> String {
    (dice.roll(16) as i64 - 3).to_string()
}

fn word(dice: &mut Dice) -> String {
    dice.pick(&["''", "'a'", "'A'", "'b'", "'é'", "'日本'", "'5'", "'05'", "'x y'", "'N1'", "'ключ'", "'🦀'"])
        .to_owned()
}

/// Statements in the making, and ids that are not there yet.
pub struct Writes {
    dice: Dice,
    fresh: i64,
}

impl Writes {
    /// The statements of a seed.
    pub fn of_seed(seed: u64) -> Self {
        Self { dice: Dice::of_seed(seed), fresh: 100 }
    }

    fn roll(&mut self, sides: usize) -> usize {
        self.dice.roll(sides)
    }

    fn pick<'t>(&mut self, list: &[&'t str]) -> &'t str {
        self.dice.pick(list)
    }

    /// An integer, sometimes as a parameter.
    fn number(&mut self, literal: String) -> String {
        match literal.parse::<i64>() {
            Ok(number) if self.roll(4) == 0 => format!("{{{number}}}"),
            _ => literal,
        }
    }

    fn fresh(&mut self) -> i64 {
        self.fresh += 1;
        self.fresh
    }

    /// An id for a row of t or u, now and then one that may be taken.
    fn id(&mut self) -> String {
        if self.roll(8) == 0 { self.roll(60).to_string() } else { self.fresh().to_string() }
    }

    fn row(&mut self, table: &str) -> String {
        let k = key(&mut self.dice);
        let k = match self.roll(10) {
            0 => format!("{k} + 1"),
            1 => format!("abs({k})"),
            2 => format!("' {k} '"),
            _ => self.number(k),
        };
        let d = &mut self.dice;
        match table {
            "t" => {
                let rest: Vec<String> = vec![any(d), text(d), any(d), any(d), any(d), text(d)];
                let (id, a) = (self.id(), integer(&mut self.dice));
                let a =
                    if self.roll(8) == 0 { "(SELECT max(a) FROM r WHERE a < 1000)".to_owned() } else { self.number(a) };
                format!("({k}, {id}, {a}, {})", rest.join(", "))
            }
            "u" => {
                let (x, y) = (integer(d), text(d));
                format!("({}, {k}, {x}, {y})", self.id())
            }
            "s" => {
                let (w, v) = (word(d), integer(d));
                let w = if self.roll(6) == 0 { format!("lower({w})") } else { w };
                format!("({w}, {v}, {})", key(&mut self.dice))
            }
            _ => {
                let (v, c) = (integer(d), text(d));
                format!("({}, {v}, {c})", self.fresh())
            }
        }
    }

    fn returning(&mut self) -> &'static str {
        self.pick(&["", "", "", " RETURNING *", " RETURNING 1 + 1, *", " RETURNING (SELECT count(*) FROM r) AS n, *"])
    }

    /// An INSERT … VALUES.
    pub fn insert(&mut self) -> String {
        let table = self.pick(&["t", "t", "u", "u", "s", "h", "r", "one"]);
        if table == "h" && self.roll(3) > 0 {
            return self.numbered();
        }
        let or = self.pick(&["INSERT", "INSERT", "INSERT", "INSERT OR REPLACE", "INSERT OR IGNORE", "REPLACE"]);
        let columns = match table {
            "t" => "(k, id, a, b, c, d, e, f, n)",
            _ => "",
        };
        let count = 1 + self.roll(4);
        let rows: Vec<String> = (0..count).map(|_| self.row(table)).collect();
        let upsert = match (or, table, self.roll(4)) {
            ("INSERT", "t", 0) => {
                " ON CONFLICT (k, id) DO UPDATE SET a = excluded.a, c = t.c || 'u' WHERE t.a IS NOT 3"
            }
            ("INSERT", "u", 0) => " ON CONFLICT DO NOTHING",
            ("INSERT", "u", 1) => {
                " ON CONFLICT (k, id) DO UPDATE SET x = coalesce(x, 0) % 100 + 1 ON CONFLICT DO NOTHING"
            }
            ("INSERT", "s", 0) => " ON CONFLICT (w) DO UPDATE SET (v, k) = (excluded.v, s.k)",
            ("INSERT", "h", 0) => " ON CONFLICT (id) DO UPDATE SET v = 1",
            _ => "",
        };
        format!("{or} INTO {table} {columns} VALUES {}{upsert}{}", rows.join(", "), self.returning())
    }

    /// Rows whose ids Pleat gives.
    fn numbered(&mut self) -> String {
        let (columns, null) = match self.roll(4) {
            0 => return format!("INSERT INTO h DEFAULT VALUES{}", self.returning()),
            1 => ("(v, c)", None),
            2 => ("(c, id, v)", Some(1)),
            _ => ("", Some(0)),
        };
        let count = 1 + self.roll(4);
        let row = |writes: &mut Self| {
            let (v, c) = (integer(&mut writes.dice), text(&mut writes.dice));
            let id = writes.pick(&["NULL", "{NULL}"]);
            match null {
                None => format!("({v}, {c})"),
                Some(0) => format!("({id}, {v}, {c})"),
                Some(_) => format!("({c}, {id}, {v})"),
            }
        };
        let rows: Vec<String> = (0..count).map(|_| row(self)).collect();
        format!("INSERT INTO h {columns} VALUES {}{}", rows.join(", "), self.returning())
    }

    fn insert_select(&mut self) -> String {
        let shift = 1_000 * self.fresh();
        let limit = self.roll(6);
        let (k, a) = (key(&mut self.dice), self.roll(9));
        let tail = self.returning();
        let body = match self.roll(13) {
            0 => format!("INTO t (k, id, a) SELECT k, id + {shift}, x FROM u WHERE x IS NOT 13"),
            1 => format!("INTO t (k, id, a, n) SELECT u.k, u.id + {shift}, r.a % 7, y FROM u JOIN r ON r.id = u.x WHERE u.k > {a}"),
            2 => format!("INTO t (k, id, a) SELECT k, {shift}, count(*) FROM u GROUP BY k"),
            3 => format!("INTO t (k, id, a, f) SELECT k + 1, id + {shift}, 1, f FROM t WHERE a < {a}"),
            4 => format!("INTO t (id, k) SELECT id + {shift}, {k} FROM u ORDER BY k, id LIMIT {limit}"),
            5 => format!("INTO u (k, id, x) SELECT id, {shift}, a FROM r"),
            6 => "INTO u SELECT id, k, a % 5, NULL FROM t WHERE NOT EXISTS (SELECT 1 FROM u z WHERE z.k = t.k AND z.id = t.id) AND a BETWEEN -9 AND 9".to_owned(),
            7 => format!("INTO h (v, c) SELECT count(*), 'n' FROM t UNION ALL SELECT {a}, 'm'"),
            8 => format!("INTO h SELECT id + {shift}, x, y FROM u WHERE k = {k} ORDER BY id LIMIT 2"),
            9 => "INTO one (a, c) SELECT count(*), max(c) FROM t".to_owned(),
            10 => format!("INTO t (k, id) SELECT k, {shift} + id FROM u WHERE k IN (SELECT k FROM t WHERE a = {a}) AND true"),
            11 => format!("INTO t (k, id, a) SELECT DISTINCT k, {shift}, 5 FROM u WHERE k <> {k}"),
            _ => format!("INTO s (w, v) SELECT 'w' || {shift} || k || '-' || id, x FROM u WHERE x < {a}"),
        };
        match self.roll(8) {
            0 => format!("WITH q AS (SELECT 1) INSERT {body}{tail}"),
            1 => format!("INSERT OR REPLACE {body}{tail}"),
            _ => format!("INSERT {body}{tail}"),
        }
    }

    fn condition(&mut self, table: &str) -> String {
        let k = if table == "s" { word(&mut self.dice) } else { key(&mut self.dice) };
        let n = self.roll(9);
        let (key, number) = match table {
            "s" => ("w", "v"),
            "u" => ("k", "x"),
            "h" => ("id", "v"),
            "r" | "one" => ("id", "a"),
            _ => ("k", "a"),
        };
        let tied = table == "t" || table == "u";
        match self.roll(if tied { 15 } else { 9 }) {
            0 => {
                let k = self.number(k);
                format!("{key} = {k}")
            }
            1 => format!("{key} IN ({k}, {k})"),
            2 => format!("{number} > {n}"),
            3 => format!("{number} IS NULL AND {key} > {k}"),
            4 => format!("{number} % 3 = {} OR {key} = {k}", n % 3),
            5 => format!("{number} IN (SELECT a FROM r WHERE id > {n})"),
            6 if table != "r" => format!("{number} >= (SELECT count(*) / 20 FROM t)"),
            6 | 7 => format!("{key} < {k}"),
            8 => format!("{number} = {n}"),
            9 => format!("EXISTS (SELECT 1 FROM u z WHERE z.k = {table}.k AND z.x > {n})"),
            10 => format!("NOT EXISTS (SELECT 1 FROM t z WHERE z.k = {table}.k AND z.id < {table}.id)"),
            11 => format!("{table}.id IN (SELECT z.id FROM u z WHERE z.x = {n})"),
            12 => format!("{number} = (SELECT max(z.x) FROM u z WHERE z.k = {table}.k)"),
            13 => format!("k IN (SELECT v FROM s) AND {number} < {n}"),
            _ => format!("id IN (SELECT id FROM one) OR {number} = {n}"),
        }
    }

    fn filter(&mut self, table: &str) -> String {
        if self.roll(12) == 0 { String::new() } else { format!(" WHERE {}", self.condition(table)) }
    }

    fn update(&mut self) -> String {
        let n = self.roll(9).to_string();
        let n = self.number(n);
        let (any_value, txt) = (any(&mut self.dice), text(&mut self.dice));
        let table = self.pick(&["t", "t", "t", "u", "s", "h", "r", "one"]);
        let set = match (table, self.roll(9)) {
            ("t", 0) => format!("a = {n}, f = {any_value}"),
            ("t", 1) => format!("(d, e) = ({any_value}, x'01'), c = c || 'x'"),
            ("t", 2) => "a = (SELECT max(x) % 5 FROM u WHERE u.k = t.k)".to_owned(),
            ("t", 3) => "a = (SELECT count(*) FROM u)".to_owned(),
            ("t", 4) => format!("c = (SELECT max(c) FROM r), a = {n}"),
            ("t", 5) => "f = (SELECT max(a) FROM t WHERE a < 100)".to_owned(),
            ("t", 6) => "f = (SELECT count(*) FROM u WHERE u.x = t.a), a = a % 100".to_owned(),
            ("t", 7) => "(b, f) = (SELECT count(*), max(z.v) FROM s z WHERE z.k = t.k)".to_owned(),
            ("t", _) => format!("id = id + 100000, n = {txt}"),
            ("u", 0) => "x = (SELECT a FROM one WHERE one.id = u.x)".to_owned(),
            ("u", _) => format!("x = coalesce(x, 0) % 1000 + {n}"),
            ("s", 0) => "v = (SELECT count(*) FROM t WHERE t.c = s.w)".to_owned(),
            ("s", _) => format!("v = {n}, k = k + 1"),
            ("h", _) => format!("v = {n}, c = {txt}"),
            ("one", 0) => "a = (SELECT count(*) FROM t WHERE t.k = one.id)".to_owned(),
            (_, _) => format!("a = {n}, c = {txt}"),
        };
        let or = self.pick(&["UPDATE", "UPDATE", "UPDATE", "UPDATE OR IGNORE", "UPDATE OR REPLACE"]);
        let or = if set.starts_with("id =") { "UPDATE" } else { or };
        let filter = self.filter(table);
        let tail = self.returning();
        format!("{or} {table} SET {set}{filter}{tail}")
    }

    fn update_from(&mut self) -> String {
        let n = self.roll(9);
        let k = key(&mut self.dice);
        let tail = self.returning();
        match self.roll(7) {
            0 => format!("UPDATE t SET a = u.x % 7, c = y FROM u WHERE u.k = t.k AND u.id = t.id{tail}"),
            1 => format!("UPDATE t AS z SET f = r.c FROM r WHERE r.id = z.a AND z.k <> {k}{tail}"),
            2 => format!("UPDATE t SET f = q.m FROM (SELECT k, max(x) AS m FROM u GROUP BY k) q WHERE q.k = t.k{tail}"),
            3 => format!(
                "UPDATE t SET f = q.m FROM (SELECT a AS v, count(*) AS m FROM t GROUP BY a) q WHERE q.v = t.a{tail}"
            ),
            4 => format!("WITH q AS (SELECT max(v) AS m FROM s) UPDATE u SET x = q.m FROM q WHERE u.x < {n}{tail}"),
            5 => {
                format!("UPDATE t SET f = u.y || s.v FROM u JOIN s ON s.w = 'a' WHERE u.k = t.k AND u.id = t.id{tail}")
            }
            _ => format!("UPDATE t SET a = one.a % 9 FROM one WHERE one.id = t.a % 4{tail}"),
        }
    }

    fn move_rows(&mut self) -> String {
        let (k, n) = (key(&mut self.dice), self.roll(9));
        let tail = self.returning();
        let fresh = 1_000_000 * self.fresh();
        match self.roll(8) {
            0 => format!("UPDATE t SET k = {k} WHERE a = {n}{tail}"),
            1 => format!("UPDATE t SET k = k + 1, a = 5, id = id + {fresh} WHERE k IN ({k}, {n}){tail}"),
            2 => format!("UPDATE t SET (k, id) = (-k, id + {fresh}){}{tail}", self.filter("t")),
            3 => format!("UPDATE u SET k = x % 10, id = id + {fresh}, y = NULL WHERE x IS NOT NULL{tail}"),
            4 => format!("UPDATE s SET w = w || 'x' || {fresh}, v = v WHERE k > {n}{tail}"),
            5 => format!("UPDATE h SET id = id + {fresh} WHERE v = {n}{tail}"),
            6 => format!("UPDATE t SET k = NULL WHERE a = {n}{tail}"),
            _ => format!(
                "UPDATE t SET k = u.x % 7, id = t.id + {fresh} FROM u WHERE u.k = t.k AND u.id = t.id AND u.x < {n}{tail}"
            ),
        }
    }

    fn delete(&mut self) -> String {
        let table = self.pick(&["t", "t", "u", "s", "h", "r", "one"]);
        let condition = self.condition(table);
        // Not too much at once, or there is soon nothing left to write.
        let some = match table {
            "t" | "u" | "h" | "r" | "one" => format!(" AND {table}.id % 4 = {}", self.roll(4)),
            _ => " AND v % 2 = 0".to_owned(),
        };
        let with = self.pick(&["", "", "", "WITH q(i) AS (SELECT 1 UNION SELECT 5) "]);
        let more = if with.is_empty() { "" } else { " AND (SELECT count(*) FROM q) = 2" };
        let tail = self.returning();
        format!("{with}DELETE FROM {table} WHERE ({condition}){some}{more}{tail}")
    }

    fn script(&mut self) -> String {
        let many: Vec<String> = (0..2 + self.roll(2))
            .map(|_| match self.roll(4) {
                0 => self.update(),
                1 => self.move_rows(),
                2 => self.delete(),
                _ => self.update_from(),
            })
            .filter(|statement| !statement.contains(" r SET") && !statement.contains("FROM r WHERE ("))
            .collect();
        if many.is_empty() { self.delete() } else { many.join(";\n") }
    }

    /// Any write, now and then several in one text.
    pub fn statement(&mut self) -> String {
        match self.roll(20) {
            0..=6 => self.insert(),
            7..=8 => self.insert_select(),
            9..=12 => self.update(),
            13 | 14 => self.update_from(),
            15 | 16 => self.move_rows(),
            17 | 18 => self.delete(),
            _ => self.script(),
        }
    }
}

/// Takes the parameters, which stand in braces, out of a text.
pub fn parameters(text: &str) -> (String, Vec<Value>) {
    let mut parts = text.split('{');
    let mut sql = parts.next().unwrap_or_default().to_owned();
    let mut values = Vec::new();
    for part in parts {
        let (value, rest) = part.split_once('}').unwrap();
        values.push(value.parse().map_or(Value::Null, Value::Integer));
        sql += "?";
        sql += rest;
    }
    (sql, values)
}
