//! What PostgreSQL's clients write that SQLite can't read, put into SQLite's words.
//!
//! The SQL of an embedded cluster is SQLite's. But drivers put values into statements in PostgreSQL's ways, and a type
//! behind every parameter, without their users having asked for it; and psql and drivers ask the system catalog in
//! PostgreSQL's SQL. So a few forms are translated, by tokens ([`lex`]) and never by searching text:
//!
//! | PostgreSQL | SQLite | where |
//! | --- | --- | --- |
//! | `$1::int` | `$1`, and the parameter has that type | anywhere |
//! | `x::text` | `CAST(x AS TEXT)`; dates, UUIDs and JSON stay the texts that they are | anywhere |
//! | `'\x00'::bytea` | `x'00'` | anywhere |
//! | `E'a\n'`, `$$a$$` | `'a…'` | anywhere |
//! | `x ~ 'a'`, `OPERATOR(pg_catalog.~)`, `= ANY (…)`, `ARRAY(…)`, `::regclass`, COLLATE, … | [`system`] | system catalog |
//!
//! A statement without any of these is used as it came, so that all protocols share its plan.
//!
//! Caveat: after a translation, the place of an error that SQLite or the planner tells is one in the translation; it is
//! left out then.

pub mod lex;
pub mod parameters;
mod system;

pub use system::VALUES;

use std::borrow::Cow;
use std::collections::BTreeMap;

use lex::{Kind, Tokens};

use super::types::Type;
use super::types::value::{Format, read};
use crate::session::Failure;

/// A statement in SQLite's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated<'a> {
    pub text: Cow<'a, str>,
    /// Types that the statement gives to its parameters, by number from 1.
    pub casts: BTreeMap<u16, Type>,
}

/// Translate a text of one or several statements.
pub fn translate(text: &str) -> Result<Translated<'_>, Failure> {
    Writer::new(Tokens::of(text)?, false).write()
}

/// Translate a question to the system catalog.
pub fn translate_system(text: &str) -> Result<Translated<'_>, Failure> {
    Writer::new(Tokens::of(text)?, true).write()
}

/// Casts in one text. Each of them moves what is written behind its operand.
const CASTS_MAX: usize = 2_000;

/// What stands before a parenthesis and is no function, and is no operand.
const KEYWORDS: [&str; 34] = [
    "AND",
    "OR",
    "NOT",
    "IN",
    "WHERE",
    "SELECT",
    "ON",
    "WHEN",
    "THEN",
    "ELSE",
    "BY",
    "VALUES",
    "HAVING",
    "AS",
    "FROM",
    "JOIN",
    "LIMIT",
    "OFFSET",
    "SET",
    "USING",
    "CASE",
    "BETWEEN",
    "LIKE",
    "UNION",
    "ALL",
    "EXISTS",
    "DISTINCT",
    "RETURNING",
    "IS",
    "ANY",
    "SOME",
    "EXCEPT",
    "INTERSECT",
    "WITH",
];

/// Writes the translation while it goes over the tokens.
struct Writer<'a> {
    tokens: Tokens<'a>,
    system: bool,
    out: String,
    /// Where the text goes on that is not written yet.
    rest: usize,
    /// Where the operand that ends here begins, in `out`.
    operand: Option<usize>,
    /// The same of the operand before the `=` that was written last.
    compared: Option<usize>,
    wrapped: usize,
    /// The same of what each open parenthesis belongs to.
    open: Vec<Open>,
    casts: BTreeMap<u16, Type>,
    changed: bool,
}

/// An open parenthesis or bracket.
struct Open {
    operand: usize,
    /// What is written when it closes, instead of itself.
    close: Option<&'static str>,
}

impl<'a> Writer<'a> {
    fn new(tokens: Tokens<'a>, system: bool) -> Self {
        Self {
            out: String::with_capacity(tokens.text.len()),
            tokens,
            system,
            rest: 0,
            operand: None,
            compared: None,
            wrapped: 0,
            open: Vec::new(),
            casts: BTreeMap::new(),
            changed: false,
        }
    }

    fn write(mut self) -> Result<Translated<'a>, Failure> {
        let mut at = 0;
        while at < self.tokens.len() {
            at = self.token(at)?;
        }
        let text = match self.changed {
            true => {
                self.out.push_str(&self.tokens.text[self.rest..]);
                Cow::Owned(self.out)
            }
            false => Cow::Borrowed(self.tokens.text),
        };
        Ok(Translated { text, casts: self.casts })
    }

    /// Write a token, and what belongs to it; gives the next one.
    fn token(&mut self, at: usize) -> Result<usize, Failure> {
        if self.system
            && let Some(next) = self.system_token(at)?
        {
            return Ok(next);
        }
        let token = self.tokens.list[at];
        match token.kind {
            Kind::Symbol if self.tokens.is_symbol(at, "::") => return self.cast(at),
            Kind::Symbol => self.symbol(at),
            Kind::Escape | Kind::Dollar => {
                let start = self.gap(at);
                let text = self.tokens.string(at)?;
                self.replace(at, &quoted(&text));
                self.operand = Some(start);
            }
            Kind::Word | Kind::Name => {
                let start = self.gap(at);
                let qualified = at > 0 && self.tokens.is_symbol(at - 1, ".");
                let keyword = !qualified && KEYWORDS.iter().any(|word| self.tokens.is(at, word));
                self.operand = self.operand.filter(|_| qualified).or(Some(start)).filter(|_| !keyword);
                self.copy(at);
            }
            Kind::Text | Kind::Number | Kind::Parameter => {
                self.operand = Some(self.gap(at));
                self.copy(at);
            }
        }
        Ok(at + 1)
    }

    fn symbol(&mut self, at: usize) {
        let start = self.gap(at);
        match self.tokens.str(at) {
            "(" | "[" => {
                let called = at > 0 && matches!(self.tokens.kind(at - 1), Some(Kind::Word | Kind::Name));
                let operand = self.operand.filter(|_| called).unwrap_or(start);
                self.open.push(Open { operand, close: None });
                self.copy(at);
                self.operand = None;
            }
            ")" | "]" => {
                let open = self.open.pop();
                match open.as_ref().and_then(|open| open.close) {
                    Some(close) => self.replace(at, close),
                    None => self.copy(at),
                }
                self.operand = open.map(|open| open.operand);
            }
            // The operand goes on.
            "." => self.copy(at),
            other => {
                self.compared = self.operand.filter(|_| other == "=");
                self.copy(at);
                self.operand = None;
            }
        }
    }

    /// `operand::type`
    fn cast(&mut self, at: usize) -> Result<usize, Failure> {
        let Some((name, next)) = self.tokens.type_name(at + 1) else {
            return Err(Failure::new("42601", ":: is followed by a type's name", "")
                .at_text(self.tokens.text, self.tokens.list[at].start));
        };
        let Some(start) = self.operand else {
            return Err(Failure::new("42601", ":: stands behind what it casts", "")
                .at_text(self.tokens.text, self.tokens.list[at].start));
        };
        self.skip(at, next);
        if self.system && self.cast_system(at, start, &name)? {
            return Ok(next);
        }
        let of = Type::cast(&name).unwrap_or(Type::Text);
        if self.tokens.kind(at - 1) == Some(Kind::Parameter) {
            if let Some(number) = self.tokens.parameter(at - 1) {
                self.casts.entry(number).or_insert(of);
            }
            return Ok(next);
        }
        let text = self.tokens.string(at - 1).ok().filter(|_| self.is_whole(start, at - 1));
        match (of, text) {
            (Type::Bytea, Some(text)) => {
                if let pleat_cluster::Value::Blob(bytes) = read(text.as_bytes(), of, Format::Text)? {
                    self.out.truncate(start);
                    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                    self.out.push_str(&format!("x'{digits}'"));
                }
            }
            // A text stays one, and is no operation that would hide it from the planner.
            (of, Some(_)) if of.affinity() == "TEXT" => {}
            (Type::Bool, Some(text)) => {
                if let pleat_cluster::Value::Integer(truth) = read(text.as_bytes(), of, Format::Text)? {
                    self.out.truncate(start);
                    self.out.push_str(&truth.to_string());
                }
            }
            _ => self.wrap(start, "CAST(", &format!(" AS {})", of.affinity()))?,
        }
        Ok(next)
    }

    /// Whether the operand that begins at `start` is the one token before.
    fn is_whole(&self, start: usize, token: usize) -> bool {
        let string = matches!(self.tokens.kind(token), Some(Kind::Text | Kind::Escape | Kind::Dollar));
        string && self.out[start..].starts_with('\'')
    }

    /// Put something around the operand.
    fn wrap(&mut self, start: usize, before: &str, after: &str) -> Result<(), Failure> {
        self.wrapped += 1;
        if self.wrapped > CASTS_MAX {
            return Err(Failure::new(
                "54000",
                format!("a text has more than {CASTS_MAX} casts with ::"),
                "send values as parameters, or many rows with COPY",
            ));
        }
        self.out.insert_str(start, before);
        self.out.push_str(after);
        Ok(())
    }

    /// Write the blanks and comments before a token; gives where it will be.
    fn gap(&mut self, at: usize) -> usize {
        let token = self.tokens.list[at];
        let gap = self.rest.min(token.start)..token.start;
        self.out.push_str(&self.tokens.text[gap]);
        self.rest = token.start;
        self.out.len()
    }

    fn copy(&mut self, at: usize) {
        let token = self.tokens.list[at];
        self.out.push_str(&self.tokens.text[token.start..token.end]);
        self.rest = token.end;
    }

    /// Write something in place of the token whose gap was written.
    fn replace(&mut self, at: usize, text: &str) {
        self.changed = true;
        self.out.push_str(text);
        self.rest = self.tokens.list[at].end;
    }

    /// Leave out the tokens from `from` up to `to`.
    fn skip(&mut self, from: usize, to: usize) {
        self.changed = true;
        self.rest = self.tokens.list[(to - 1).max(from)].end;
    }
}

/// A name that stands for itself in a statement.
pub fn quoted_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as a literal.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> String {
        translate(text).unwrap().text.into_owned()
    }

    #[test]
    fn what_is_sqlite_already_is_left_alone() {
        for same in [
            "SELECT 1",
            "SELECT a, [b c], `d` FROM \"t\" WHERE x = $1 -- ::int",
            "SELECT ':: int', x'00', ?1, :a, k->>'$.a' /* E'x' */",
            "INSERT INTO t VALUES ($1, 'it''s')",
        ] {
            assert!(matches!(translate(same).unwrap().text, Cow::Borrowed(_)), "{same}");
        }
    }

    #[test]
    fn casts() {
        for (from, to) in [
            ("SELECT a::text", "SELECT CAST(a AS TEXT)"),
            ("SELECT t.\"a\"::int + 1", "SELECT CAST(t.\"a\" AS INTEGER) + 1"),
            ("SELECT (a + 1)::double precision", "SELECT CAST((a + 1) AS REAL)"),
            ("SELECT sum(a)::numeric(10, 2) FROM t", "SELECT CAST(sum(a) AS NUMERIC) FROM t"),
            ("WHERE x AND (a)::bigint", "WHERE x AND CAST((a) AS INTEGER)"),
            ("SELECT '2024-01-01'::date", "SELECT '2024-01-01'"),
            ("SELECT '12'::int::text", "SELECT CAST(CAST('12' AS INTEGER) AS TEXT)"),
            ("SELECT '\\x00fF'::bytea", "SELECT x'00ff'"),
            ("SELECT 't'::bool", "SELECT 1"),
            ("SELECT now()::timestamp with time zone, 1", "SELECT CAST(now() AS TEXT), 1"),
            ("SELECT $1 :: pg_catalog.int4, $2", "SELECT $1, $2"),
        ] {
            assert_eq!(text(from), to);
        }
        let translated = translate("SELECT $2::int8, $1::varchar(3), $2::text").unwrap();
        assert_eq!(translated.casts, BTreeMap::from([(1, Type::Varchar), (2, Type::Int8)]));
        assert_eq!(translate("SELECT ::int").unwrap_err().code, "42601");
        assert_eq!(translate("SELECT 1::").unwrap_err().code, "42601");
    }

    #[test]
    fn strings() {
        assert_eq!(text(r"SELECT E'a\n\'b\\\x41\u00e9''' , 1"), "SELECT 'a\n''b\\Aé''' , 1");
        assert_eq!(text("SELECT $$it's$$, $x$ $$ $x$"), "SELECT 'it''s', ' $$ '");
        assert_eq!(text("SELECT E'\\\\x00'::bytea"), "SELECT x'00'");
    }

    #[test]
    fn questions_to_the_system_catalog() {
        let text = |text: &str| translate_system(text).unwrap().text.into_owned();
        for (from, to) in [
            ("SELECT pg_catalog.format_type(a, b)", "SELECT format_type(a, b)"),
            (
                "WHERE c.relname OPERATOR(pg_catalog.~) '^(t)$' COLLATE pg_catalog.default",
                "WHERE c.relname  REGEXP  '^(t)$' ",
            ),
            ("WHERE a !~ 'b'", "WHERE a  NOT REGEXP  'b'"),
            ("WHERE c.relkind = ANY (ARRAY['r', 'v'])", "WHERE c.relkind  IN ('r', 'v')"),
            ("WHERE 'd' = any(k.kinds) AND b", "WHERE array_has('d' , k.kinds) AND b"),
            ("SELECT ARRAY(SELECT 1), 2", "SELECT (WITH __rows(x) AS (SELECT 1) SELECT array_agg(x) FROM __rows), 2"),
            ("SELECT x FROM pg_catalog.unnest(a.b) x", "SELECT x.value FROM json_each(array_json(a.b)) x"),
            ("SELECT a.b[s]", "SELECT array_item(a.b, s)"),
            ("SELECT 'a.b'::regclass, c.oid::pg_catalog.regclass", "SELECT to_regclass('a.b'), regclass_name(c.oid)"),
            (
                "SELECT current_user, current_schema(), a.current_user",
                "SELECT current_user(), current_schema(), a.current_user",
            ),
            ("CAST('*' AS pg_catalog.text)", "CAST('*' AS text)"),
        ] {
            assert_eq!(text(from), to);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_texts_are_translated_or_refused(text in "[$'\"E\\\\a1:()\\[\\]~.=x /*-]{0,40}|\\PC{0,40}") {
            let _ = translate(&text);
            let _ = translate_system(&text);
        }
    }
}
