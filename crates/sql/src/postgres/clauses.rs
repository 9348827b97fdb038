//! Where the clauses of a SELECT are in the text.
//!
//! The words that start them are reserved in PostgreSQL, so outside of brackets they are nothing else, but for names behind `AS` and `.` and for
//! `IS DISTINCT FROM`. What is cut is parsed again and compared with the tree, so a wrong cut is noticed.

use sqlparser::ast::{Expr, OrderByKind, Query, Select, SelectItem, SetExpr};

use super::lex::Tokens;
use super::parse::{expression, token_of};

/// A run of tokens.
pub(super) type Span = (usize, usize);

/// A SELECT at the outermost level of a statement, cut into clauses; each without the words that start it.
#[derive(Debug)]
pub(super) struct Clauses<'q> {
    pub query: &'q Query,
    pub select: &'q Select,
    /// The expressions of the select list, without aliases; an item that is a star is whole.
    pub items: Vec<Span>,
    /// From the word FROM (or what follows the select list) to ORDER BY, LIMIT …
    pub body: Span,
    /// From the word FROM to GROUP BY, HAVING …: with WHERE.
    pub source: Span,
    /// The elements of GROUP BY.
    pub group: Vec<Span>,
    pub having: Option<Span>,
    /// The terms of ORDER BY: expression, and direction.
    pub order: Vec<(Span, Span)>,
    /// The words `ORDER BY` included.
    pub order_by: Span,
    /// LIMIT, OFFSET, FETCH with their words, to the end of the statement.
    pub limits: Span,
    pub limit: Option<Span>,
    pub offset: Option<Span>,
    /// The start of the select list.
    pub list: Span,
    pub start: usize,
}

const WORDS: [&str; 12] =
    ["FROM", "WHERE", "GROUP", "HAVING", "WINDOW", "UNION", "INTERSECT", "EXCEPT", "ORDER", "LIMIT", "OFFSET", "FETCH"];

impl<'q> Clauses<'q> {
    /// `None` if the statement is no plain SELECT, or can't be cut with certainty.
    pub fn of(query: &'q Query, tokens: &Tokens, (from, to): Span) -> Option<Clauses<'q>> {
        let SetExpr::Select(select) = query.body.as_ref() else { return None };
        let start = token_of(select.select_token.0.span).filter(|at| tokens.is(*at, "SELECT"))?;
        let starts = starts(tokens, start + 1, to)?;
        let find = |words: &[&str]| starts.iter().find(|at| words.iter().any(|word| tokens.is(**at, word))).copied();
        let until = |words: &[&str]| find(words).unwrap_or(to);
        let sorted = starts.windows(2).all(|pair| rank(tokens, pair[0]) < rank(tokens, pair[1]));
        if !sorted || find(&["UNION", "INTERSECT", "EXCEPT"]).is_some() {
            return None;
        }
        let tail = until(&["ORDER", "LIMIT", "OFFSET", "FETCH"]);
        let after =
            |word: &str| find(&[word]).map(|at| (at, starts.iter().copied().find(|next| *next > at).unwrap_or(to)));
        let quantifier = usize::from(tokens.is(start + 1, "DISTINCT") || tokens.is(start + 1, "ALL"));
        let list = (start + 1 + quantifier, starts.first().copied().unwrap_or(to));
        let mut clauses = Clauses {
            query,
            select,
            items: Vec::new(),
            body: (list.1, tail),
            source: (list.1, until(&["GROUP", "HAVING", "WINDOW", "ORDER", "LIMIT", "OFFSET", "FETCH"])),
            group: after("GROUP").map(|(at, end)| commas(tokens, at + 2, end)).unwrap_or_default(),
            having: after("HAVING").map(|(at, end)| (at + 1, end)),
            order: Vec::new(),
            order_by: after("ORDER").unwrap_or((to, to)),
            limits: (until(&["LIMIT", "OFFSET", "FETCH"]), to),
            limit: after("LIMIT").map(|(at, end)| (at + 1, end)),
            offset: after("OFFSET").map(|(at, end)| (at + 1, end)).map(|(at, end)| (at, without_rows(tokens, at, end))),
            list,
            start: from,
        };
        clauses.cut_items(tokens)?;
        clauses.cut_order(tokens)?;
        Some(clauses)
    }

    fn cut_items(&mut self, tokens: &Tokens) -> Option<()> {
        let spans = commas(tokens, self.list.0, self.list.1);
        if spans.len() != self.select.projection.len() {
            return None;
        }
        for (item, (from, to)) in self.select.projection.iter().zip(spans) {
            let (expr, end) = match item {
                SelectItem::UnnamedExpr(expr) => (expr, to),
                SelectItem::ExprWithAlias { expr, .. } => {
                    (expr, to.checked_sub(if tokens.is(to - 2, "AS") { 2 } else { 1 }).filter(|end| *end > from)?)
                }
                _ => {
                    self.items.push((from, to));
                    continue;
                }
            };
            is(tokens, (from, end), expr)?;
            self.items.push((from, end));
        }
        let grouped = match &self.select.group_by {
            sqlparser::ast::GroupByExpr::Expressions(list, modifiers) if modifiers.is_empty() => list,
            _ => return None,
        };
        if grouped.len() != self.group.len() {
            return None;
        }
        grouped.iter().zip(&self.group).try_for_each(|(expr, span)| is(tokens, *span, expr))?;
        match (&self.select.having, self.having) {
            (None, None) => Some(()),
            (Some(expr), Some(span)) => is(tokens, span, expr),
            _ => None,
        }
    }

    fn cut_order(&mut self, tokens: &Tokens) -> Option<()> {
        let terms = match self.query.order_by.as_ref().map(|order| &order.kind) {
            None => return (self.order_by.0 == self.order_by.1).then_some(()),
            Some(OrderByKind::Expressions(terms)) => terms,
            Some(OrderByKind::All(_)) => return None,
        };
        let spans = commas(tokens, self.order_by.0 + 2, self.order_by.1);
        if spans.len() != terms.len() {
            return None;
        }
        for (term, (from, to)) in terms.iter().zip(spans) {
            let word = |at: usize| ["ASC", "DESC", "NULLS", "FIRST", "LAST"].iter().any(|word| tokens.is(at, word));
            let mut end = to;
            while end > from + 1 && word(end - 1) {
                end -= 1;
            }
            is(tokens, (from, end), &term.expr)?;
            self.order.push(((from, end), (end, to)));
        }
        Some(())
    }
}

/// Whether these tokens are that expression.
fn is(tokens: &Tokens, (from, to): Span, expr: &Expr) -> Option<()> {
    (expression(tokens, from, to).as_ref() == Some(expr)).then_some(())
}

fn rank(tokens: &Tokens, at: usize) -> usize {
    let is = |word: &&str| tokens.is(at, word);
    WORDS.iter().position(is).unwrap_or(WORDS.len())
}

/// Where clauses start outside of brackets; `None` if there is one that isn't known (FOR UPDATE).
fn starts(tokens: &Tokens, from: usize, to: usize) -> Option<Vec<usize>> {
    let mut found = Vec::new();
    let mut at = from;
    while at < to {
        if tokens.opens(at) == 1 {
            at = tokens.closing(at) + 1;
            continue;
        }
        let named = tokens.is(at - 1, "AS") || tokens.is_symbol(at - 1, ".");
        let distinct_from = tokens.is(at, "FROM") && tokens.is(at - 1, "DISTINCT") && !tokens.is(at - 2, "SELECT");
        let within = tokens.is(at, "GROUP") && tokens.is(at - 1, "WITHIN");
        if !named && !distinct_from && !within {
            if tokens.is(at, "FOR") || tokens.is(at, "INTO") {
                return None;
            }
            if rank(tokens, at) < WORDS.len() {
                found.push(at);
            }
        }
        at += 1;
    }
    Some(found)
}

/// `OFFSET n ROWS`: without the last word.
fn without_rows(tokens: &Tokens, from: usize, to: usize) -> usize {
    let rows = to > from + 1 && (tokens.is(to - 1, "ROWS") || tokens.is(to - 1, "ROW"));
    if rows { to - 1 } else { to }
}

/// The parts between commas outside of brackets.
pub(super) fn commas(tokens: &Tokens, from: usize, to: usize) -> Vec<Span> {
    let mut found = Vec::new();
    let (mut start, mut at) = (from, from);
    while at < to {
        if tokens.opens(at) == 1 {
            at = tokens.closing(at) + 1;
            continue;
        }
        if tokens.is_symbol(at, ",") {
            found.push((start, at));
            start = at + 1;
        }
        at += 1;
    }
    if start < to {
        found.push((start, to));
    }
    found
}
