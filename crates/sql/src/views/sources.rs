//! Where a text names tables to read, by its tokens.

use std::collections::BTreeSet;

use crate::clauses::{Clauses, Span};
use crate::lex::{Kind, Tokens};

/// What may follow a table's name in a FROM and is no alias.
const NO_ALIAS: [&str; 11] =
    ["ON", "USING", "JOIN", "NATURAL", "LEFT", "RIGHT", "FULL", "INNER", "CROSS", "INDEXED", "NOT"];
/// What ends the FROM of an UPDATE.
const AFTER_FROM: [&str; 4] = ["WHERE", "RETURNING", "ORDER", "LIMIT"];

/// A table's (or a view's, or a CTE's) name in a FROM.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mention {
    /// Its first token: `main`, or the name itself.
    pub first: usize,
    /// The token of its name.
    pub table: usize,
    pub aliased: bool,
    alias: usize,
    /// INDEXED BY or NOT INDEXED follows.
    pub indexed: bool,
}

impl Mention {
    fn read(tokens: &Tokens, first: usize, end: usize) -> Option<Mention> {
        let qualified = tokens.is_symbol(first + 1, ".");
        let table = if qualified { first + 2 } else { first };
        tokens.name(table)?;
        if table >= end || (table + 1 < end && tokens.is_symbol(table + 1, "(")) {
            return None; // a table function
        }
        let main = |at| tokens.name(at).is_some_and(|name| name.eq_ignore_ascii_case("main"));
        if qualified && !main(first) {
            return None;
        }
        let next = table + 1;
        let alias = if next >= end {
            None
        } else if tokens.is(next, "AS") {
            Some(next + 1)
        } else {
            let name = match tokens.kind(next) {
                Some(Kind::Word) => !NO_ALIAS.iter().any(|word| tokens.is(next, word)),
                Some(Kind::Name | Kind::Text) => true,
                _ => false,
            };
            name.then_some(next)
        };
        let after = alias.unwrap_or(table) + 1;
        let indexed = after < end
            && (tokens.is(after, "INDEXED") || (tokens.is(after, "NOT") && tokens.is(after + 1, "INDEXED")));
        Some(Mention { first, table, aliased: alias.is_some(), alias: alias.unwrap_or(table), indexed })
    }

    /// The table's name in lower case.
    pub fn name(&self, tokens: &Tokens) -> String {
        tokens.name(self.table).unwrap_or_default().to_ascii_lowercase()
    }

    /// What its columns are qualified with.
    pub fn alias(&self, tokens: &Tokens) -> String {
        tokens.name(self.alias).unwrap_or_default()
    }
}

/// Every mention in every FROM.
pub(super) fn mentions(tokens: &Tokens) -> Vec<Mention> {
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        let from = if tokens.is(at, "SELECT") {
            Clauses::of(tokens, at, tokens.len()).from
        } else if tokens.is(at, "UPDATE") && !(at > 0 && tokens.is(at - 1, "DO")) {
            update_from(tokens, at)
        } else {
            None
        };
        if let Some(span) = from {
            in_from(tokens, before_tail(tokens, span), &mut found);
        }
    }
    found
}

/// A FROM without what follows the SELECT of an INSERT.
fn before_tail(tokens: &Tokens, from: Span) -> Span {
    let mut at = from.0;
    while at < from.1 {
        if tokens.is_symbol(at, "(") {
            at = tokens.closing(at);
        } else if tokens.is(at, "RETURNING") || tokens.are(at, &["ON", "CONFLICT"]) {
            break;
        }
        at += 1;
    }
    (from.0, at.min(from.1))
}

/// The FROM of an UPDATE.
fn update_from(tokens: &Tokens, update: usize) -> Option<Span> {
    let end = end(tokens, update);
    let mut start = None;
    let mut at = update;
    while at < end {
        if tokens.is_symbol(at, "(") {
            at = tokens.closing(at);
        } else if start.is_none() && tokens.is(at, "FROM") && !tokens.is(at - 1, "DISTINCT") {
            start = Some(at + 1);
        } else if start.is_some() && AFTER_FROM.iter().any(|word| tokens.is(at, word)) {
            break;
        }
        at += 1;
    }
    start.map(|start| (start, at.min(end)))
}

/// The end of the parentheses, or of the statement, that token `at` stands in.
pub(super) fn end(tokens: &Tokens, at: usize) -> usize {
    let mut depth = 0usize;
    for index in at..tokens.len() {
        if tokens.is_symbol(index, "(") {
            depth += 1;
        } else if tokens.is_symbol(index, ")") || tokens.is_symbol(index, ";") {
            if depth == 0 {
                return index;
            }
            depth -= usize::from(tokens.is_symbol(index, ")"));
        }
    }
    tokens.len()
}

fn in_from(tokens: &Tokens, span: Span, found: &mut Vec<Mention>) {
    let mut wanted = true;
    let mut at = span.0;
    while at < span.1 {
        let query = || ["SELECT", "VALUES", "WITH"].iter().any(|word| tokens.is(at + 1, word));
        if tokens.is_symbol(at, "(") && wanted && !query() {
            // Joins in parentheses: a source comes next.
        } else if tokens.is_symbol(at, "(") {
            at = tokens.closing(at);
            wanted = false;
        } else if tokens.is_symbol(at, ",") || tokens.is(at, "JOIN") {
            wanted = true;
        } else if wanted && tokens.name(at).is_some() {
            wanted = false;
            if let Some(mention) = Mention::read(tokens, at, span.1) {
                at = mention.table;
                found.push(mention);
            }
        }
        at += 1;
    }
}

/// The CTEs of a text, each with the tokens from which it can be seen.
#[derive(Debug)]
pub(super) struct Ctes(Vec<(String, Span)>);

impl Ctes {
    pub fn of(tokens: &Tokens) -> Ctes {
        let mut found = Vec::new();
        for with in (0..tokens.len()).filter(|at| tokens.is(*at, "WITH")) {
            let sight = (with, end(tokens, with));
            let mut at = with + 1 + usize::from(tokens.is(with + 1, "RECURSIVE") && !tokens.is(with + 2, "AS"));
            while let Some((name, next)) = cte(tokens, at) {
                found.push((name, sight));
                if !tokens.is_symbol(next, ",") {
                    break;
                }
                at = next + 1;
            }
        }
        Ctes(found)
    }

    /// Whether the mention is of a CTE.
    pub fn hide(&self, tokens: &Tokens, mention: &Mention) -> bool {
        mention.first == mention.table && self.in_sight(mention.first).contains(&mention.name(tokens))
    }

    /// The names of those that token `at` sees.
    pub fn in_sight(&self, at: usize) -> BTreeSet<String> {
        self.0.iter().filter(|(_, sight)| (sight.0..sight.1).contains(&at)).map(|(name, _)| name.clone()).collect()
    }
}

/// The name of the CTE that is defined at token `at`, in lower case, and the token after it.
fn cte(tokens: &Tokens, at: usize) -> Option<(String, usize)> {
    let name = tokens.name(at)?.to_ascii_lowercase();
    let mut next = at + 1;
    if tokens.is_symbol(next, "(") {
        next = tokens.closing(next) + 1;
    }
    if !tokens.is(next, "AS") {
        return None;
    }
    next += 1;
    next += usize::from(tokens.is(next, "NOT"));
    next += usize::from(tokens.is(next, "MATERIALIZED"));
    tokens.is_symbol(next, "(").then(|| (name, tokens.closing(next) + 1))
}
