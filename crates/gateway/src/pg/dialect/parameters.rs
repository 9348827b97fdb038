//! What a statement says about the types of its parameters.
//!
//! A client may leave them open, and asks before it sends values. PostgreSQL knows, because its expressions have types;
//! here a parameter has the type of the column that it is plainly compared with, assigned or inserted to, an integer
//! behind LIMIT and OFFSET, and text otherwise. Being wrong about it is no harm to the answer: SQLite's affinity
//! makes 5 and `'5'` the same where a column is involved.

use std::collections::BTreeMap;

use pleat_cluster::{Table, Tables};

use super::lex::{Kind, Tokens};
use crate::pg::types::Type;

/// The highest number of a parameter in a statement.
pub fn count(tokens: &Tokens<'_>) -> u16 {
    (0..tokens.len()).filter_map(|at| tokens.parameter(at)).max().unwrap_or(0)
}

/// The types that the statement gives its parameters, by number from 1.
pub fn types(tokens: &Tokens<'_>, tables: &Tables) -> BTreeMap<u16, Type> {
    let named: Vec<&Table> =
        (0..tokens.len()).filter_map(|at| tables.get(&tokens.name(at)?.to_ascii_lowercase())).collect();
    let look = Look { tokens, named };
    let mut found = BTreeMap::new();
    for at in 0..tokens.len() {
        if let Some(number) = tokens.parameter(at)
            && let Some(of) = look.about(at)
        {
            found.entry(number).or_insert(of);
        }
    }
    found
}

struct Look<'a> {
    tokens: &'a Tokens<'a>,
    /// The tables that the statement may be about.
    named: Vec<&'a Table>,
}

impl Look<'_> {
    fn about(&self, at: usize) -> Option<Type> {
        let tokens = self.tokens;
        let before = at.checked_sub(1)?;
        if tokens.is(before, "LIMIT") || tokens.is(before, "OFFSET") {
            return Some(Type::Int8);
        }
        if let Some(last) = self.comparison_before(before) {
            return self.column_ending(last);
        }
        if let Some(first) = self.comparison_after(at + 1) {
            return self.column_beginning(first);
        }
        if tokens.is(before, "BETWEEN") {
            let last = before.checked_sub(if tokens.is(before.checked_sub(1)?, "NOT") { 2 } else { 1 })?;
            return self.column_ending(last);
        }
        if tokens.is(before, "AND") && before >= 3 && tokens.is(before - 2, "BETWEEN") {
            return self.column_ending(before - 3);
        }
        self.listed(at)
    }

    /// The token before a comparison that ends here.
    fn comparison_before(&self, end: usize) -> Option<usize> {
        let mut at = end;
        while self.is_comparison(at) {
            at = at.checked_sub(1)?;
        }
        (at < end).then_some(at)
    }

    /// The token behind a comparison that begins here.
    fn comparison_after(&self, begin: usize) -> Option<usize> {
        let end = (begin..).find(|at| !self.is_comparison(*at))?;
        (end > begin).then_some(end)
    }

    fn is_comparison(&self, at: usize) -> bool {
        ["=", "<", ">", "!"].iter().any(|symbol| self.tokens.is_symbol(at, symbol))
    }

    /// The column whose name ends here: `a` or `t.a`.
    fn column_ending(&self, at: usize) -> Option<Type> {
        let tokens = self.tokens;
        let qualifier = at.checked_sub(2).filter(|_| tokens.is_symbol(at - 1, "."));
        self.column(&tokens.name(at)?, qualifier.and_then(|at| tokens.name(at)))
    }

    fn column_beginning(&self, at: usize) -> Option<Type> {
        let tokens = self.tokens;
        if tokens.is_symbol(at + 1, "(") {
            return None;
        }
        match tokens.is_symbol(at + 1, ".") {
            true => self.column(&tokens.name(at + 2)?, tokens.name(at)),
            false => self.column(&tokens.name(at)?, None),
        }
    }

    /// The type that all columns of that name have.
    fn column(&self, name: &str, qualifier: Option<String>) -> Option<Type> {
        let exact = |table: &&&Table| qualifier.as_ref().is_some_and(|name| table.name.eq_ignore_ascii_case(name));
        let of_one = self.named.iter().find(exact).map(|table| vec![*table]);
        let tables = of_one.unwrap_or_else(|| self.named.clone());
        let mut found =
            tables.iter().filter_map(|table| table.column(name)).map(|column| Type::declared(&column.decl_type));
        let first = found.next()??;
        found.all(|other| other == Some(first)).then_some(first)
    }

    /// In `column IN ($1, $2)` and `INSERT INTO t (a, b) VALUES ($1, $2)`.
    fn listed(&self, at: usize) -> Option<Type> {
        let tokens = self.tokens;
        let is_whole = (tokens.is_symbol(at - 1, "(") || tokens.is_symbol(at - 1, ","))
            && (tokens.is_symbol(at + 1, ")") || tokens.is_symbol(at + 1, ","));
        if !is_whole {
            return None;
        }
        let (open, place) = self.enclosing(at)?;
        let before = open.checked_sub(1)?;
        if tokens.is(before, "IN") {
            let last = before.checked_sub(if before > 0 && tokens.is(before - 1, "NOT") { 2 } else { 1 })?;
            return self.column_ending(last);
        }
        let rows = tokens.is(before, "VALUES") || tokens.is_symbol(before, ",") || tokens.is_symbol(before, ")");
        rows.then(|| self.inserted(place))?
    }

    /// The parenthesis around a token, and how many commas are before it there.
    fn enclosing(&self, at: usize) -> Option<(usize, usize)> {
        let (mut depth, mut commas) = (0_usize, 0);
        for at in (0..at).rev() {
            match self.tokens.str(at) {
                ")" if self.tokens.kind(at) == Some(Kind::Symbol) => depth += 1,
                "(" if depth == 0 => return Some((at, commas)),
                "(" => depth -= 1,
                "," if depth == 0 => commas += 1,
                _ => {}
            }
        }
        None
    }

    /// The column in this place of an INSERT.
    fn inserted(&self, place: usize) -> Option<Type> {
        let tokens = self.tokens;
        let into = (0..tokens.len()).find(|at| tokens.is(*at, "INTO"))?;
        let values = (into..tokens.len()).find(|at| tokens.is(*at, "VALUES"))?;
        let mut name = into + 1;
        while tokens.is_symbol(name + 1, ".") {
            name += 2;
        }
        let wanted = tokens.name(name)?;
        let table = self.named.iter().find(|table| table.name.eq_ignore_ascii_case(&wanted))?;
        let declared = match (name + 1..values).find(|at| tokens.is_symbol(*at, "(")) {
            Some(open) => {
                let column = tokens.name(open + 1 + 2 * place)?;
                &table.column(&column)?.decl_type
            }
            None => &table.columns.iter().filter(|column| !column.generated).nth(place)?.decl_type,
        };
        Type::declared(declared)
    }
}

#[cfg(test)]
mod tests {
    use pleat_cluster::TableKind;
    use pleat_engine::Scratch;

    use super::*;

    fn found(text: &str) -> Vec<(u16, Type)> {
        let mut scratch = Scratch::new(&Tables::new()).unwrap();
        let mut tables = Tables::new();
        for sql in ["CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c REAL)", "CREATE TABLE \"U v\"(a TEXT, d DATE)"] {
            scratch.run(sql).unwrap();
        }
        for name in ["t", "u v"] {
            tables.insert(name.to_owned(), scratch.describe(name, &TableKind::Reference).unwrap().unwrap());
        }
        types(&Tokens::of(text).unwrap(), &tables).into_iter().collect()
    }

    #[test]
    fn columns_give_parameters_their_types() {
        use Type::{Date, Float8, Int8, Text};
        for (text, wanted) in [
            ("SELECT * FROM t WHERE a = $1 AND $2 <= c", vec![(1, Int8), (2, Float8)]),
            ("SELECT * FROM t x WHERE x.a <> $1 LIMIT $2 OFFSET $3", vec![(1, Int8), (2, Int8), (3, Int8)]),
            ("SELECT * FROM t WHERE a IN ($1, $2) OR b NOT IN ($3)", vec![(1, Int8), (2, Int8), (3, Text)]),
            ("SELECT * FROM t WHERE c BETWEEN $1 AND $2", vec![(1, Float8), (2, Float8)]),
            ("INSERT INTO t (b, a) VALUES ($1, $2), ($3, $4 + 1)", vec![(1, Text), (2, Int8), (3, Text)]),
            ("INSERT INTO t VALUES ($1, lower($2), $3)", vec![(1, Int8), (3, Float8)]),
            ("UPDATE \"U v\" SET d = $1 WHERE a = $2", vec![(1, Date), (2, Text)]),
            ("SELECT * FROM t, \"U v\" WHERE a = $1", vec![]),
            ("SELECT * FROM t, \"U v\" WHERE \"U v\".a = $1", vec![(1, Text)]),
            ("SELECT $1, length($2)", vec![]),
            ("$1", vec![]),
        ] {
            assert_eq!(found(text), wanted, "{text}");
        }
        assert_eq!(count(&Tokens::of("$2 $7 '$9'").unwrap()), 7);
    }
}
