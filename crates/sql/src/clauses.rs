//! Where the clauses of a SELECT are in the tokens, and how to cut them.

use std::ops::Range;

use crate::lex::{Kind, Tokens};
use crate::params::Slots;

/// A run of tokens, from the first to before the last.
pub(crate) type Span = (usize, usize);

/// The clauses of one SELECT (with the ORDER BY and LIMIT that follow it), without their keywords.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clauses {
    pub items: Span,
    pub from: Option<Span>,
    pub filter: Option<Span>,
    pub group: Option<Span>,
    pub having: Option<Span>,
    pub window: Option<Span>,
    pub order: Option<Span>,
    pub limit: Option<Span>,
    /// The token after the last clause.
    pub end: usize,
}

impl Clauses {
    /// The clauses of the SELECT whose keyword is at token `select`. `VALUES` has none.
    pub fn of(tokens: &Tokens, select: usize, limit: usize) -> Clauses {
        let mut clauses = Clauses { end: limit, ..Clauses::default() };
        let mut start = select + 1;
        if tokens.is(start, "DISTINCT") || tokens.is(start, "ALL") {
            start += 1;
        }
        let mut open = Clause::Items;
        let mut depth = 0usize;
        let mut index = start;
        while index < limit {
            match tokens.str(index) {
                "(" => depth += 1,
                ")" if depth == 0 => break,
                ")" => depth -= 1,
                ";" => break,
                _ if depth > 0 || tokens.kind(index) != Some(Kind::Word) => {}
                _ if ["UNION", "EXCEPT", "INTERSECT"].iter().any(|word| tokens.is(index, word)) => break,
                _ => {
                    if let Some((next, words)) = Clause::starting(tokens, index, open) {
                        clauses.close(open, (start, index));
                        open = next;
                        start = index + words;
                        index = start;
                        continue;
                    }
                }
            }
            index += 1;
        }
        clauses.close(open, (start, index));
        clauses.end = index;
        clauses
    }

    fn close(&mut self, clause: Clause, span: Span) {
        let place = match clause {
            Clause::Items => {
                self.items = span;
                return;
            }
            Clause::From => &mut self.from,
            Clause::Filter => &mut self.filter,
            Clause::Group => &mut self.group,
            Clause::Having => &mut self.having,
            Clause::Window => &mut self.window,
            Clause::Order => &mut self.order,
            Clause::Limit => &mut self.limit,
        };
        *place = Some(span);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Clause {
    Items,
    From,
    Filter,
    Group,
    Having,
    Window,
    Order,
    Limit,
}

impl Clause {
    /// The clause that starts at `index`, and how many words introduce it. Clauses come in order, so a
    /// later keyword can't start an earlier clause (`IS NOT DISTINCT FROM` in a filter).
    fn starting(tokens: &Tokens, index: usize, open: Clause) -> Option<(Clause, usize)> {
        let distinct_from = index > 0 && tokens.is(index - 1, "DISTINCT");
        let found = match tokens.str(index).to_ascii_uppercase().as_str() {
            "FROM" if !distinct_from => (Clause::From, 1),
            "WHERE" => (Clause::Filter, 1),
            "GROUP" if tokens.is(index + 1, "BY") => (Clause::Group, 2),
            "HAVING" => (Clause::Having, 1),
            "WINDOW" if tokens.is(index + 2, "AS") && tokens.is_symbol(index + 3, "(") => (Clause::Window, 1),
            "ORDER" if tokens.is(index + 1, "BY") => (Clause::Order, 2),
            "LIMIT" => (Clause::Limit, 1),
            _ => return None,
        };
        (found.0 > open).then_some(found)
    }
}

/// The parts of an expression between its outermost `AND`s. One part when there is an outermost `OR`.
pub(crate) fn conjuncts(tokens: &Tokens, span: Span) -> Vec<Span> {
    let mut found = Vec::new();
    let (mut start, mut depth, mut betweens) = (span.0, 0usize, 0usize);
    for index in span.0..span.1 {
        if tokens.is_symbol(index, "(") || tokens.is(index, "CASE") {
            depth += 1;
        } else if tokens.is_symbol(index, ")") || (tokens.is(index, "END") && depth > 0) {
            depth = depth.saturating_sub(1);
        } else if depth > 0 {
            continue;
        } else if tokens.is(index, "OR") {
            return vec![span];
        } else if tokens.is(index, "BETWEEN") {
            betweens += 1;
        } else if tokens.is(index, "AND") {
            if betweens > 0 {
                betweens -= 1;
            } else {
                found.push((start, index));
                start = index + 1;
            }
        }
    }
    found.push((start, span.1));
    found
}

/// The parts of a list between its outermost commas.
pub(crate) fn list(tokens: &Tokens, span: Span) -> Vec<Span> {
    let mut found = Vec::new();
    let (mut start, mut depth) = (span.0, 0usize);
    for index in span.0..span.1 {
        if tokens.is_symbol(index, "(") {
            depth += 1;
        } else if tokens.is_symbol(index, ")") {
            depth = depth.saturating_sub(1);
        } else if depth == 0 && tokens.is_symbol(index, ",") {
            found.push((start, index));
            start = index + 1;
        }
    }
    found.push((start, span.1));
    found
}

/// The `ON` conditions at the outermost level of a FROM, in order.
pub(crate) fn join_conditions(tokens: &Tokens, from: Span) -> Vec<Span> {
    const ENDS: [&str; 7] = ["JOIN", "LEFT", "RIGHT", "FULL", "INNER", "CROSS", "NATURAL"];
    let mut found = Vec::new();
    let mut start: Option<usize> = None;
    let mut depth = 0usize;
    for index in from.0..from.1 {
        if tokens.is_symbol(index, "(") {
            depth += 1;
        } else if tokens.is_symbol(index, ")") {
            depth = depth.saturating_sub(1);
        } else if depth == 0 && tokens.is(index, "ON") {
            start = Some(index + 1);
        } else if depth == 0 && (tokens.is_symbol(index, ",") || ENDS.iter().any(|word| tokens.is(index, word))) {
            found.extend(start.take().map(|start| (start, index)));
        }
    }
    found.extend(start.map(|start| (start, from.1)));
    found
}

/// Rewrites parts of a statement while keeping the user's own words for the rest.
///
/// The output's parameters are numbered from `?1`; `slots` tells which slot of the request each takes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output {
    pub sql: String,
    pub slots: Vec<usize>,
    /// Where the parameters are in the text, and their slots.
    parameters: Vec<(Range<usize>, usize)>,
}

impl Output {
    pub fn push(&mut self, text: &str) {
        self.sql.push_str(text);
    }

    /// Appends token `index`, after a space if the user left a blank (or a comment) before it, or if it would
    /// otherwise run into what is there.
    pub fn token(&mut self, tokens: &Tokens, slots: &Slots, index: usize) {
        let blank = index > 0 && tokens.list[index - 1].end < tokens.list[index].start;
        let joins = |char: char| !char.is_ascii_punctuation() || "_$'\"`[]?:@".contains(char);
        let collides = self.sql.ends_with(joins) && tokens.str(index).starts_with(joins);
        if (blank || collides) && !self.sql.is_empty() && !self.sql.ends_with([' ', '(']) {
            self.sql.push(' ');
        }
        match slots.at(index) {
            Some(slot) => self.parameter(slot),
            None => self.sql.push_str(tokens.str(index)),
        }
    }

    /// Appends Pleat's own text, with a space before it if there is none.
    pub fn word(&mut self, text: &str) {
        if !self.sql.ends_with([' ', '(']) {
            self.sql.push(' ');
        }
        self.sql.push_str(text);
    }

    /// Appends another output, whose parameters take their numbers here.
    pub fn append(&mut self, other: &Output) {
        if !other.sql.is_empty()
            && !other.sql.starts_with(' ')
            && !self.sql.is_empty()
            && !self.sql.ends_with([' ', '('])
        {
            self.sql.push(' ');
        }
        let mut from = 0;
        for (place, slot) in &other.parameters {
            self.sql.push_str(&other.sql[from..place.start]);
            self.parameter(*slot);
            from = place.end;
        }
        self.sql.push_str(&other.sql[from..]);
    }

    fn parameter(&mut self, slot: usize) {
        let known = self.slots.iter().position(|known| *known == slot);
        let number = known.unwrap_or_else(|| {
            self.slots.push(slot);
            self.slots.len() - 1
        });
        let start = self.sql.len();
        self.sql.push_str(&format!("?{}", number + 1));
        self.parameters.push((start..self.sql.len(), slot));
    }

    /// Appends the tokens of `span` as they are.
    pub fn span(&mut self, tokens: &Tokens, slots: &Slots, span: Span) {
        (span.0..span.1).for_each(|index| self.token(tokens, slots, index));
    }
}
