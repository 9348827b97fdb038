//! Reads whose rows each shard can make for itself: one after the other, or sorted and cut once more in one session.

use sqlparser::ast::{Distinct, Expr, Function, GroupByExpr, Query, Select};

use super::analysis::Analysis;
use super::clauses::{Clauses, Span};
use super::compose::{Composer, quote};
use super::functions::{self, Purity};
use super::gather::temporary;
use super::keys::is_constant;
use super::lex::Tokens;
use super::local::{driver, grouped_apart, ordinal, rows_apart};
use super::outputs::{Output, outputs};
use super::plan::{Fetch, Part, Piece, Source, Spread};
use super::tree::{Found, bare, function_name};

/// `None` when the rows are not each shard's own.
pub(super) fn plan(analysis: &Analysis, query: &Query, range: Span) -> Option<Spread> {
    let sqlparser::ast::SetExpr::Select(select) = query.body.as_ref() else { return None };
    let scope = analysis.scope_of(select)?;
    if analysis.unknown || analysis.purity > Purity::Stable {
        return None;
    }
    driver(analysis, scope)?;
    let apart = rows_apart(analysis, select, scope);
    if apart && query.order_by.is_none() && query.limit_clause.is_none() && query.fetch.is_none() {
        let mut composer = Composer::default();
        composer.tokens(analysis.tokens, range.0, range.1);
        return Some(Spread::Concat(composer.part()));
    }
    let distinct = matches!(select.distinct, Some(Distinct::Distinct));
    let on = matches!(select.distinct, Some(Distinct::On(_)));
    let with_ties = query.fetch.as_ref().is_some_and(|fetch| fetch.with_ties);
    let apart = apart || distinct && grouped_apart(analysis, select, scope);
    if !apart || on || with_ties || !orders_rows(query, select) {
        return None;
    }
    let clauses = Clauses::of(query, analysis.tokens, range)?;
    Sorted { analysis, clauses: &clauses, distinct, outputs: outputs(analysis, select, scope)? }.plan()
}

/// Whether ORDER BY is by something that each shard's row has: no windows, and aggregates only where the SELECT has groups.
fn orders_rows(query: &Query, select: &Select) -> bool {
    let found = Found::of(&query.order_by);
    let aggregate = |function: &Function| function_name(function).is_some_and(functions::is_aggregate);
    let grouped = !matches!(&select.group_by, GroupByExpr::Expressions(list, _) if list.is_empty());
    found.functions.iter().all(|function| function.over.is_none() && (grouped || !aggregate(function)))
}

/// A read that is sorted, cut or made distinct once more.
struct Sorted<'a, 's, 't, 'q> {
    analysis: &'a Analysis<'s, 't>,
    clauses: &'a Clauses<'q>,
    distinct: bool,
    outputs: Vec<Output<'q>>,
}

impl Sorted<'_, '_, '_, '_> {
    fn plan(&self) -> Option<Spread> {
        let (tokens, clauses) = (self.analysis.tokens, self.clauses);
        let mut hidden: Vec<Span> = Vec::new();
        let mut order = String::new();
        for (term, (span, direction)) in self.terms().iter().zip(&clauses.order) {
            let column = match self.column_of(term) {
                Meant::Output(at) => format!("c{}", at + 1),
                Meant::Hidden if self.distinct || is_row(term) => return None,
                Meant::Hidden => {
                    hidden.push(*span);
                    format!("o{}", hidden.len())
                }
                Meant::Unclear => return None,
            };
            order.push_str(if order.is_empty() { " ORDER BY " } else { ", " });
            order.push_str(&format!("p.{} {}", quote(&column), tokens.slice(direction.0, direction.1)));
        }
        let part = self.shard(tokens, &hidden);
        let columns = self.outputs.iter().enumerate();
        let columns: Vec<String> =
            columns.map(|(at, output)| format!("p.\"c{}\" AS {}", at + 1, quote(&output.name))).collect();
        let mut finish = Composer::default();
        let distinct = if self.distinct { "DISTINCT " } else { "" };
        finish.text(&format!(
            "SELECT {distinct}{} FROM pg_temp.{} AS p{order} ",
            columns.join(", "),
            quote(&temporary(0))
        ));
        finish.tokens(tokens, clauses.limits.0, clauses.limits.1);
        let fetch = Fetch { table: temporary(0), primary_key: Vec::new(), part, from: Source::Sharded };
        Some(Spread::Gather { fetches: vec![fetch], finish: finish.part() })
    }

    fn terms(&self) -> Vec<&Expr> {
        match self.clauses.query.order_by.as_ref().map(|order| &order.kind) {
            Some(sqlparser::ast::OrderByKind::Expressions(terms)) => terms.iter().map(|term| &term.expr).collect(),
            _ => Vec::new(),
        }
    }

    /// The client's SELECT with the hidden columns behind its own, all of them renamed.
    fn shard(&self, tokens: &Tokens, hidden: &[Span]) -> Part {
        let clauses = self.clauses;
        let mut composer = Composer::default();
        composer.text("SELECT * FROM (");
        composer.tokens(tokens, clauses.start, clauses.list.1);
        for span in hidden {
            composer.text(", (");
            composer.tokens(tokens, span.0, span.1);
            composer.text(")");
        }
        composer.text(" ");
        composer.tokens(tokens, clauses.body.0, clauses.body.1);
        if let Some(limit) = self.limit(tokens) {
            composer.text(" ");
            composer.tokens(tokens, clauses.order_by.0, clauses.order_by.1);
            composer.text(" LIMIT ");
            composer.piece(&limit);
        }
        let names = (1..=self.outputs.len())
            .map(|at| format!("\"c{at}\""))
            .chain((1..=hidden.len()).map(|at| format!("\"o{at}\"")));
        composer.text(&format!(") AS p ({})", names.collect::<Vec<_>>().join(", ")));
        composer.part()
    }

    /// How many rows of a shard can be among the result's: LIMIT and OFFSET together.
    fn limit(&self, tokens: &Tokens) -> Option<Piece> {
        use sqlparser::ast::{LimitClause as L, Value};
        let query = self.clauses.query;
        let (limit, offset) = match (&query.limit_clause, &query.fetch) {
            (Some(L::LimitOffset { limit: Some(limit), offset, limit_by }), None) if limit_by.is_empty() => {
                (Some(limit).filter(|limit| is_constant(limit))?, offset.as_ref())
            }
            (Some(L::LimitOffset { limit: None, offset, .. }), Some(fetch)) if !fetch.percent => {
                (fetch.quantity.as_ref()?, offset.as_ref())
            }
            (None, Some(fetch)) if !fetch.percent => (fetch.quantity.as_ref()?, None),
            _ => return None,
        };
        if offset.is_some_and(|offset| !is_constant(&offset.value)) {
            return None;
        }
        let cut = |(from, to): Span| Piece::of(tokens, from, to);
        let mut piece = Piece::text("least((");
        piece.append(match (self.clauses.limit, limit) {
            (Some(span), _) => cut(span),
            (None, Expr::Value(value)) => match &value.value {
                Value::Number(digits, _) => Piece::text(digits),
                _ => return None,
            },
            _ => return None,
        });
        piece.append(Piece::text(")::numeric"));
        if offset.is_some() {
            piece.append(Piece::text(" + coalesce(("));
            piece.append(cut(self.clauses.offset?));
            piece.append(Piece::text(")::numeric, 0)"));
        }
        piece.append(Piece::text(", 9223372036854775807)::bigint"));
        Some(piece)
    }

    /// What a term of ORDER BY is: a column of the result, or an expression of its own.
    fn column_of(&self, term: &Expr) -> Meant {
        if let Some(at) = ordinal(term) {
            return if at < self.outputs.len() { Meant::Output(at) } else { Meant::Unclear };
        }
        if let Expr::Identifier(ident) = term {
            let named: Vec<usize> =
                (0..self.outputs.len()).filter(|at| self.outputs[*at].name == ident.value).collect();
            match named.as_slice() {
                [] => {}
                [one] => return Meant::Output(*one),
                _ => return Meant::Unclear,
            }
        }
        let same = |output: &Output| output.expr == Some(term);
        self.outputs.iter().position(same).map_or(Meant::Hidden, Meant::Output)
    }
}

enum Meant {
    Output(usize),
    Hidden,
    Unclear,
}

/// A row is no column of a table.
fn is_row(expr: &Expr) -> bool {
    matches!(bare(expr), Expr::Tuple(_))
}
