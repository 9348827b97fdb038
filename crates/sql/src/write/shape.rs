//! Where the clauses of an INSERT, UPDATE or DELETE are in the tokens.
//!
//! Pleat composes reads and smaller writes out of a statement's own words, so it must know where each clause begins and
//! ends. All words that are looked for (SET, WHERE, RETURNING …) are reserved by SQLite: outside of parentheses they
//! can be nothing else.

use crate::clauses::{Span, list};
use crate::error::SqlError;
use crate::lex::Tokens;

/// The clauses of a write, without their keywords unless said otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    /// All of it.
    pub span: Span,
    /// INSERT, REPLACE, UPDATE or DELETE; what is before it is its WITH.
    pub verb: usize,
    /// From the verb to before the table: `INSERT OR IGNORE INTO`.
    pub head: Span,
    /// INSERT: `AS x` after the table, with that word. The parser doesn't know it.
    pub alias: Span,
    /// INSERT: inside the parentheses after the table.
    pub columns: Option<Span>,
    /// INSERT: `VALUES …`, `SELECT …` or `DEFAULT VALUES`, with these words.
    pub source: Span,
    /// UPDATE.
    pub set: Span,
    pub from: Option<Span>,
    pub filter: Option<Span>,
    /// INSERT: `ON CONFLICT …`, all of them, with these words.
    pub upsert: Span,
    /// `RETURNING …`, with that word.
    pub returning: Span,
}

/// The verb of a write that may have a WITH before it.
pub(crate) fn verb(tokens: &Tokens, span: Span) -> Option<usize> {
    if !tokens.is(span.0, "WITH") {
        return is_verb(tokens, span.0).then_some(span.0);
    }
    outermost(tokens, (span.0 + 1, span.1)).find(|index| is_verb(tokens, *index))
}

fn is_verb(tokens: &Tokens, index: usize) -> bool {
    let insert = tokens.is(index, "INSERT") || (tokens.is(index, "REPLACE") && tokens.is(index + 1, "INTO"));
    insert || tokens.is(index, "UPDATE") || tokens.is(index, "DELETE")
}

/// The tokens of `span` outside of parentheses.
fn outermost<'t>(tokens: &'t Tokens, span: Span) -> impl Iterator<Item = usize> + 't {
    let mut depth = 0usize;
    (span.0..span.1).filter(move |index| {
        if tokens.is_symbol(*index, "(") {
            depth += 1;
            return depth == 1;
        }
        if tokens.is_symbol(*index, ")") {
            depth = depth.saturating_sub(1);
            return false;
        }
        depth == 0
    })
}

impl Shape {
    /// The shape of the write in `span`, which has been parsed.
    pub fn of(tokens: &Tokens, span: Span) -> Result<Shape, SqlError> {
        let lost =
            || SqlError::syntax("an INSERT, UPDATE or DELETE was expected").at(tokens.text, tokens.offset(span.0));
        let verb = verb(tokens, span).ok_or_else(lost)?;
        let mut shape = Shape { span, verb, upsert: (span.1, span.1), returning: (span.1, span.1), ..Shape::default() };
        let found = if tokens.is(verb, "UPDATE") {
            shape.update(tokens)
        } else if tokens.is(verb, "DELETE") {
            shape.delete(tokens)
        } else {
            shape.insert(tokens)
        };
        found.ok_or_else(lost)?;
        Ok(shape)
    }

    /// The WITH before the verb, if any.
    pub fn with(&self) -> Option<Span> {
        (self.span.0 < self.verb).then_some((self.span.0, self.verb))
    }

    fn update(&mut self, tokens: &Tokens) -> Option<()> {
        let table = self.verb + if tokens.is(self.verb + 1, "OR") { 3 } else { 1 };
        self.head = (self.verb, table);
        let set = outermost(tokens, (table, self.span.1)).find(|index| tokens.is(*index, "SET"))?;
        let rest = (set + 1, self.span.1);
        let plain = |index: usize| tokens.is(index, "FROM") && !tokens.is(index - 1, "DISTINCT");
        self.returning = clause(tokens, rest, "RETURNING").map_or(self.returning, |at| (at, self.span.1));
        let filter = clause(tokens, (rest.0, self.returning.0), "WHERE");
        self.filter = filter.map(|at| (at + 1, self.returning.0));
        let end = filter.unwrap_or(self.returning.0);
        let from = outermost(tokens, (rest.0, end)).find(|index| plain(*index));
        self.from = from.map(|at| (at + 1, end));
        self.set = (rest.0, from.unwrap_or(end));
        Some(())
    }

    fn delete(&mut self, tokens: &Tokens) -> Option<()> {
        let table = self.verb + 2;
        self.head = (self.verb, table);
        let rest = (table, self.span.1);
        self.returning = clause(tokens, rest, "RETURNING").map_or(self.returning, |at| (at, self.span.1));
        self.filter = clause(tokens, (rest.0, self.returning.0), "WHERE").map(|at| (at + 1, self.returning.0));
        Some(())
    }

    fn insert(&mut self, tokens: &Tokens) -> Option<()> {
        let into = outermost(tokens, (self.verb, self.span.1)).find(|index| tokens.is(*index, "INTO"))?;
        self.head = (self.verb, into + 1);
        let starts = |index: usize| ["VALUES", "SELECT", "WITH", "DEFAULT"].iter().any(|word| tokens.is(index, word));
        // Behind the table's name, which may be any word.
        let after_name = into + 2 + if tokens.is_symbol(into + 2, ".") { 2 } else { 0 };
        self.alias = (after_name, after_name + if tokens.is(after_name, "AS") { 2 } else { 0 });
        let start = outermost(tokens, (self.alias.1, self.span.1)).find(|index| starts(*index))?;
        let open = outermost(tokens, (self.alias.1, start)).find(|index| tokens.is_symbol(*index, "("));
        self.columns = open.map(|open| (open + 1, tokens.closing(open)));
        self.returning =
            clause(tokens, (start, self.span.1), "RETURNING").map_or(self.returning, |at| (at, self.span.1));
        let upsert = outermost(tokens, (start, self.returning.0)).find(|index| is_upsert(tokens, *index));
        self.upsert = (upsert.unwrap_or(self.returning.0), self.returning.0);
        self.source = (start, self.upsert.0);
        Some(())
    }

    /// Each `ON CONFLICT …`: SQLite lets an INSERT have several, the parser one.
    pub fn upserts(&self, tokens: &Tokens) -> Vec<Span> {
        let mut starts: Vec<usize> = outermost(tokens, self.upsert).filter(|index| is_upsert(tokens, *index)).collect();
        starts.push(self.upsert.1);
        starts.windows(2).map(|pair| (pair[0], pair[1])).collect()
    }

    /// The tokens from the verb to `end` without those that the parser doesn't know.
    pub fn parsed(&self, end: usize) -> [Span; 2] {
        match self.alias.1 > self.alias.0 {
            true => [(self.verb, self.alias.0), (self.alias.1, end)],
            false => [(self.verb, self.verb), (self.verb, end)],
        }
    }

    /// The rows of `VALUES`, each inside its parentheses.
    pub fn rows(&self, tokens: &Tokens) -> Vec<Span> {
        list(tokens, (self.source.0 + 1, self.source.1))
            .into_iter()
            .map(|row| (row.0 + 1, row.1.saturating_sub(1)))
            .collect()
    }

    /// The assignments of SET: the columns' span, and the value's.
    pub fn assignments(&self, tokens: &Tokens) -> Vec<(Span, Span)> {
        let halves = |item: Span| {
            let equals = outermost(tokens, item).find(|index| tokens.is_symbol(*index, "="))?;
            Some(((item.0, equals), (equals + 1, item.1)))
        };
        list(tokens, self.set).into_iter().filter_map(halves).collect()
    }
}

fn is_upsert(tokens: &Tokens, index: usize) -> bool {
    tokens.are(index, &["ON", "CONFLICT"]) && (tokens.is(index + 2, "DO") || tokens.is_symbol(index + 2, "("))
}

fn clause(tokens: &Tokens, span: Span, word: &str) -> Option<usize> {
    outermost(tokens, span).find(|index| tokens.is(*index, word))
}
