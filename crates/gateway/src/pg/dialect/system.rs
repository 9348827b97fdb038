//! The forms that psql and drivers use when they ask the system catalog.
//!
//! Arrays are texts here, as PostgreSQL prints them (`{1,2}`), and functions of the catalog's database work on these.

use super::lex::Kind;
use super::{Open, Writer};
use crate::session::Failure;

/// Operators, and SQLite's words for them. (Its LIKE does not tell capitals from small letters.)
const OPERATORS: [(&str, &str); 8] = [
    ("~", "REGEXP"),
    ("!~", "NOT REGEXP"),
    ("~*", "REGEXP"),
    ("!~*", "NOT REGEXP"),
    ("~~", "LIKE"),
    ("!~~", "NOT LIKE"),
    ("~~*", "LIKE"),
    ("!~~*", "NOT LIKE"),
];

/// Functions that give sets of values, and those that give SQLite's `json_each` the same.
const SETS: [(&str, &str); 2] = [("unnest", "array_json"), ("generate_series", "array_series")];

/// Functions that are called without parentheses.
pub const VALUES: [&str; 5] = ["current_user", "session_user", "current_role", "current_catalog", "current_schema"];

impl Writer<'_> {
    /// Write what has a form of its own in the system catalog; gives the next token, or `None` for all else.
    pub(super) fn system_token(&mut self, at: usize) -> Result<Option<usize>, Failure> {
        let tokens = &self.tokens;
        let Some(kind) = tokens.kind(at) else { return Ok(None) };
        if kind == Kind::Symbol {
            return Ok(if tokens.is_symbol(at, "[") { self.subscript(at)? } else { self.operator(at, at, at + 1) });
        }
        if kind != Kind::Word {
            return Ok(None);
        }
        if tokens.is(at, "OPERATOR") && tokens.is_symbol(at + 1, "(") {
            let Some(close) = (at..tokens.len()).find(|at| tokens.is_symbol(*at, ")")) else { return Ok(None) };
            return Ok(self.operator(close - 1, at, close + 1).or_else(|| {
                let symbol = self.tokens.str(close - 1).to_owned();
                self.instead(at, close + 1, &symbol);
                self.operand = None;
                Some(close + 1)
            }));
        }
        if tokens.is(at, "COLLATE") {
            let end = if tokens.is_symbol(at + 2, ".") { at + 4 } else { at + 2 };
            let end = end.min(tokens.len());
            self.instead(at, end, "");
            return Ok(Some(end));
        }
        if tokens.is(at, "ILIKE") {
            self.instead(at, at + 1, "LIKE");
            return Ok(Some(at + 1));
        }
        let called = tokens.is_symbol(at + 1, "(");
        let named = at > 0 && (tokens.is_symbol(at - 1, ".") || tokens.is(at - 1, "AS"));
        if !called && !named && VALUES.iter().any(|word| tokens.is(at, word)) {
            let word = format!("{}()", tokens.str(at).to_lowercase());
            self.operand = Some(self.instead(at, at + 1, &word));
            return Ok(Some(at + 1));
        }
        if tokens.is(at, "DEFAULT") && at > 0 && tokens.is(at - 1, "AS") {
            self.instead(at, at + 1, "\"default\"");
            return Ok(Some(at + 1));
        }
        if tokens.is(at, "LATERAL") {
            self.instead(at, at + 1, "");
            return Ok(Some(at + 1));
        }
        // So does a type's in CAST(… AS …).
        if tokens.is(at, "pg_catalog") && tokens.is_symbol(at + 1, ".") && at > 0 && tokens.is(at - 1, "AS") {
            self.instead(at, at + 2, "");
            return Ok(Some(at + 2));
        }
        // A function's schema goes; a table's is one of the database's.
        if tokens.is_symbol(at + 1, ".") && tokens.is_symbol(at + 3, "(") {
            self.instead(at, at + 2, "");
            return Ok(Some(at + 2));
        }
        if (tokens.is(at, "ANY") || tokens.is(at, "SOME")) && tokens.is_symbol(at + 1, "(") {
            return Ok(self.any(at));
        }
        for (name, function) in SETS {
            if tokens.is(at, name) && tokens.is_symbol(at + 1, "(") {
                let start = self.instead(at, at + 2, &format!("json_each({function}("));
                self.open.push(Open { operand: start, close: Some("))") });
                self.operand = None;
                return Ok(Some(at + 2));
            }
        }
        if let Some(name) = self.row_of_set(at) {
            let start = self.instead(at, at + 1, &format!("{name}.value"));
            self.operand = Some(start);
            return Ok(Some(at + 1));
        }
        if tokens.is(at, "ARRAY") && (tokens.is_symbol(at + 1, "(") || tokens.is_symbol(at + 1, "[")) {
            return Ok(Some(self.array(at)));
        }
        Ok(None)
    }

    /// The name of a set of values, where it stands for one of them: `x` in `SELECT x FROM unnest(…) x`.
    fn row_of_set(&self, at: usize) -> Option<String> {
        let tokens = &self.tokens;
        let is_part = tokens.is_symbol(at + 1, ".") || at > 0 && tokens.is_symbol(at - 1, ".");
        let name = tokens.name(at).filter(|_| !is_part)?;
        let defined = |begin: usize| {
            let is_set = SETS.iter().any(|(set, _)| tokens.is(begin, set)) && tokens.is_symbol(begin + 1, "(");
            let close = is_set.then(|| tokens.closing(begin + 1))?;
            let alias = close + 1 + usize::from(tokens.is(close + 1, "AS"));
            (tokens.name(alias)? == name).then_some(alias)
        };
        let alias = (0..tokens.len()).find_map(defined)?;
        (alias != at).then_some(name)
    }

    /// `x[1]` is `array_item(x, 1)`.
    fn subscript(&mut self, at: usize) -> Result<Option<usize>, Failure> {
        let Some(start) = self.operand else { return Ok(None) };
        self.instead(at, at + 1, ", ");
        self.wrap(start, "array_item(", "")?;
        self.open.push(Open { operand: start, close: Some(")") });
        self.operand = None;
        Ok(Some(at + 1))
    }

    /// An operator that SQLite has a word for, in place of the tokens from `from` up to `to`.
    fn operator(&mut self, at: usize, from: usize, to: usize) -> Option<usize> {
        let (_, word) = OPERATORS.iter().find(|(symbol, _)| self.tokens.is_symbol(at, symbol))?;
        // `~ 1` is SQLite's as well.
        self.operand?;
        self.instead(from, to, &format!(" {word} "));
        self.operand = None;
        Some(to)
    }

    /// `x = ANY (y)` is `array_has(x, y)`; and where y is a list, `x IN (list)`.
    fn any(&mut self, at: usize) -> Option<usize> {
        at.checked_sub(1).filter(|before| self.tokens.is_symbol(*before, "="))?;
        let equals = self.out.strip_suffix('=')?.len();
        let start = self.compared.take()?;
        self.instead(at, at + 2, "");
        if self.tokens.is(at + 2, "ARRAY") && self.tokens.is_symbol(at + 3, "[") {
            self.out.truncate(equals);
            self.out.push_str(" IN (");
            self.instead(at + 2, at + 4, "");
            self.open.push(Open { operand: start, close: Some(")") });
            self.open.push(Open { operand: start, close: Some("") });
            return Some(at + 4);
        }
        self.out.truncate(equals);
        self.out.push_str(", ");
        self.out.insert_str(start, "array_has(");
        self.open.push(Open { operand: start, close: Some(")") });
        Some(at + 2)
    }

    /// `ARRAY[a, b]` is `array_of(a, b)`; `ARRAY(SELECT …)` gathers what the query gives.
    fn array(&mut self, at: usize) -> usize {
        let (begin, close) = match self.tokens.is_symbol(at + 1, "[") {
            true => ("array_of(", ")"),
            false => ("(WITH __rows(x) AS (", ") SELECT array_agg(x) FROM __rows)"),
        };
        let start = self.instead(at, at + 2, begin);
        self.open.push(Open { operand: start, close: Some(close) });
        self.operand = None;
        at + 2
    }

    /// `'t'::regclass` is the table's number, and any other `x::regclass` the name of the table with that number.
    pub(super) fn cast_system(&mut self, at: usize, start: usize, name: &str) -> Result<bool, Failure> {
        let text = matches!(self.tokens.kind(at - 1), Some(Kind::Text | Kind::Escape | Kind::Parameter));
        let function = match name {
            "regclass" if text => "to_regclass(",
            "regclass" => "regclass_name(",
            "regtype" if text => "to_regtype(",
            "regtype" => "regtype_name(",
            "regproc" | "regprocedure" | "regnamespace" | "regrole" if !text => "regname(",
            _ => return Ok(false),
        };
        self.wrap(start, function, ")")?;
        Ok(true)
    }

    /// Write something in place of tokens; gives where it begins.
    fn instead(&mut self, from: usize, to: usize, text: &str) -> usize {
        let start = self.gap(from);
        self.out.push_str(text);
        self.skip(from, to);
        start
    }
}
