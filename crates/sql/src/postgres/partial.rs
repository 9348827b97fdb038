//! Aggregates in two steps: each shard groups its own rows, and one session merges the groups.
//!
//! | call | on the shard | merged |
//! | --- | --- | --- |
//! | `count` | the same | `coalesce(sum(…), 0)::bigint` |
//! | `min`, `max`, `bool_and`, `bool_or`, `every`, `bit_and`, `bit_or` | the same | the same |
//! | `sum` | the same | `sum`, cast to the type that the sum itself has |
//! | `avg` | `sum` and `count` | the sum by the count, as PostgreSQL computes it |
//!
//! What the select list, HAVING and ORDER BY make of groups and aggregates is the client's text, in which these are replaced. If
//! anything else of a row appears, or a type isn't certain, the rows are gathered instead.

use std::ops::ControlFlow;

use sqlparser::ast::{
    DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, OrderByKind, Query, Visit,
    Visitor,
};

use super::analysis::{Analysis, Resolved};
use super::clauses::{Clauses, Span};
use super::compose::{Composer, Replacement, quote};
use super::functions::{self, Purity};
use super::gather::temporary;
use super::lex::Tokens;
use super::local;
use super::outputs::{Output, outputs};
use super::parse::{expression, token_of};
use super::plan::{Fetch, Piece, Source, Spread};
use super::tree::{column_name, function_name};
use super::types::{Number, number_type};

/// `None` when the aggregates can't be had in two steps.
pub(super) fn plan(analysis: &Analysis, query: &Query, range: Span) -> Option<Spread> {
    let sqlparser::ast::SetExpr::Select(select) = query.body.as_ref() else { return None };
    let scope = analysis.scope_of(select)?;
    local::driver(analysis, scope)?;
    let with_ties = query.fetch.as_ref().is_some_and(|fetch| fetch.with_ties);
    let plain = select.distinct.is_none() && !local::has_windows(select) && query.with.is_none() && !with_ties;
    if !plain || analysis.outer_aggregate || analysis.unknown || analysis.purity > Purity::Stable {
        return None;
    }
    let clauses = Clauses::of(query, analysis.tokens, range)?;
    if !local::has_aggregates(select) && clauses.group.is_empty() {
        return None;
    }
    let mut merge = Merge { analysis, clauses: &clauses, scope, groups: Vec::new(), columns: Vec::new() };
    merge.group()?;
    merge.finish(outputs(analysis, select, scope)?)
}

/// What one session makes of the shards' groups.
struct Merge<'a, 's, 't, 'q> {
    analysis: &'a Analysis<'s, 't>,
    clauses: &'a Clauses<'q>,
    scope: usize,
    groups: Vec<(&'q Expr, Span)>,
    /// The shard's columns behind the groups: `a1`, `a2` ….
    columns: Vec<Piece>,
}

impl<'q> Merge<'_, '_, '_, 'q> {
    fn tokens(&self) -> &Tokens<'_> {
        self.analysis.tokens
    }

    /// Reads GROUP BY.
    fn group(&mut self) -> Option<()> {
        let select = self.clauses.select;
        let sqlparser::ast::GroupByExpr::Expressions(list, _) = &select.group_by else { return None };
        for (element, span) in list.iter().zip(&self.clauses.group) {
            let group = match local::item_meant(self.analysis, select, self.scope, element) {
                Some((at, expr)) => (expr, *self.clauses.items.get(at)?),
                None if local::ordinal(element).is_some() => return None,
                None => (element, *span),
            };
            let plain = !matches!(
                group.0,
                Expr::Tuple(_) | Expr::Rollup(_) | Expr::Cube(_) | Expr::GroupingSets(_) | Expr::Value(_)
            );
            // A name that may be a column of a subquery or an alias is left to PostgreSQL.
            let certain = !matches!(group.0, Expr::Identifier(_)) || self.column(group.0).is_some();
            self.groups.push(Some(group).filter(|_| plain && certain)?);
        }
        Some(())
    }

    fn column(&self, expr: &Expr) -> Option<(usize, String)> {
        let (qualifier, name) = column_name(expr)?;
        match self.analysis.resolve(self.scope, qualifier, name) {
            Resolved::Mention { mention, own: true } => Some((mention, name.value.clone())),
            _ => None,
        }
    }

    /// The group that `expr` is.
    fn group_of(&self, expr: &Expr) -> Option<usize> {
        let same = |(group, _): &(&Expr, Span)| {
            *group == expr || self.column(group).is_some_and(|column| self.column(expr) == Some(column))
        };
        self.groups.iter().position(same)
    }

    fn finish(mut self, outputs: Vec<Output<'q>>) -> Option<Spread> {
        let clauses = self.clauses;
        let mut finish = Composer::default();
        finish.text("SELECT ");
        for (at, output) in outputs.iter().enumerate() {
            finish.text(if at > 0 { ", " } else { "" });
            self.rewritten(&mut finish, output.expr?, *clauses.items.get(at)?)?;
            finish.text(&format!(" AS {}", quote(&output.name)));
        }
        finish.text(&format!(" FROM pg_temp.{} AS p", quote(&temporary(0))));
        for at in 1..=self.groups.len() {
            finish.text(if at == 1 { " GROUP BY " } else { ", " });
            finish.text(&format!("p.\"g{at}\""));
        }
        if let (Some(expr), Some(span)) = (&clauses.select.having, clauses.having) {
            finish.text(" HAVING ");
            self.rewritten(&mut finish, expr, span)?;
        }
        self.order(&mut finish, &outputs)?;
        finish.text(" ");
        let tokens = self.analysis.tokens;
        finish.tokens(tokens, clauses.limits.0, clauses.limits.1);
        let fetch = Fetch { table: temporary(0), primary_key: Vec::new(), part: self.shard(), from: Source::Sharded };
        Some(Spread::Gather { fetches: vec![fetch], finish: finish.part() })
    }

    fn order(&mut self, finish: &mut Composer, outputs: &[Output]) -> Option<()> {
        let (clauses, tokens) = (self.clauses, self.analysis.tokens);
        let Some(order) = &clauses.query.order_by else { return Some(()) };
        let OrderByKind::Expressions(terms) = &order.kind else { return None };
        for (at, (term, (span, direction))) in terms.iter().zip(&clauses.order).enumerate() {
            finish.text(if at == 0 { " ORDER BY " } else { ", " });
            let named = matches!(&term.expr, Expr::Identifier(ident) if outputs.iter().any(|output| output.name == ident.value));
            if named || local::ordinal(&term.expr).is_some() {
                finish.tokens(tokens, span.0, span.1);
            } else {
                self.rewritten(finish, &term.expr, *span)?;
            }
            finish.text(" ");
            finish.tokens(tokens, direction.0, direction.1);
        }
        Some(())
    }

    /// The SELECT of a shard: the groups, then the aggregates' parts.
    fn shard(&self) -> super::plan::Part {
        let (tokens, clauses) = (self.tokens(), self.clauses);
        let mut composer = Composer::default();
        composer.text("SELECT ");
        for (at, (_, span)) in self.groups.iter().enumerate() {
            composer.text(if at > 0 { ", (" } else { "(" });
            composer.tokens(tokens, span.0, span.1);
            composer.text(&format!(") AS g{}", at + 1));
        }
        for (at, column) in self.columns.iter().enumerate() {
            composer.text(if at + self.groups.len() > 0 { ", " } else { "" });
            composer.piece(column);
            composer.text(&format!(" AS a{}", at + 1));
        }
        composer.text(" ");
        composer.tokens(tokens, clauses.source.0, clauses.source.1);
        for at in 1..=self.groups.len() {
            composer.text(if at == 1 { " GROUP BY " } else { ", " });
            composer.text(&at.to_string());
        }
        composer.part()
    }

    /// The client's expression with groups and aggregates replaced.
    fn rewritten(&mut self, finish: &mut Composer, expr: &Expr, span: Span) -> Option<()> {
        let mut finder = Finder { merge: self, span, root: expr, replacements: Vec::new(), inside: 0 };
        let mut replacements = match expr.visit(&mut finder) {
            ControlFlow::Continue(()) => finder.replacements,
            ControlFlow::Break(()) => return None,
        };
        replacements.sort_by_key(|replacement| replacement.from);
        let apart = replacements.windows(2).all(|pair| pair[0].to <= pair[1].from);
        apart.then(|| finish.replaced(self.analysis.tokens, span.0, span.1, &replacements))
    }

    /// A column of the shards' groups; gives its name.
    fn add(&mut self, piece: Piece) -> String {
        let at = self.columns.iter().position(|column| column.texts == piece.texts && column.params == piece.params);
        let at = at.unwrap_or_else(|| {
            self.columns.push(piece);
            self.columns.len() - 1
        });
        format!("p.\"a{}\"", at + 1)
    }

    /// Splits a call of an aggregate that the tokens `span` spell; gives what merges it.
    fn aggregate(&mut self, function: &Function, span: Span) -> Option<String> {
        let name = function_name(function)?.to_owned();
        let FunctionArguments::List(list) = &function.args else { return None };
        let distinct = list.duplicate_treatment == Some(DuplicateTreatment::Distinct);
        let plain = list.clauses.is_empty()
            && function.over.is_none()
            && function.within_group.is_empty()
            && function.null_treatment.is_none()
            && function.name.0.len() == 1
            && matches!(function.parameters, FunctionArguments::None);
        let argument = match list.args.as_slice() {
            [FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))] => Some(expr),
            [FunctionArg::Unnamed(FunctionArgExpr::Wildcard)] if name == "count" => None,
            _ => return None,
        };
        if !plain {
            return None;
        }
        let whole = Piece::of(self.tokens(), span.0, span.1);
        match name.as_str() {
            "count" if !distinct || argument.is_some_and(|expr| local::is_key(self.analysis, expr, self.scope)) => {
                Some(format!("coalesce(sum({}), 0)::bigint", self.add(whole)))
            }
            "min" | "max" | "bool_and" | "bool_or" | "every" | "bit_and" | "bit_or" => {
                Some(format!("{name}({})", self.add(whole)))
            }
            "sum" if !distinct => {
                let cast = match self.number(argument?)? {
                    Number::Int2 | Number::Int4 => "::bigint",
                    Number::Int8 | Number::Numeric | Number::Float4 | Number::Float8 => "",
                };
                Some(format!("sum({}){cast}", self.add(whole)))
            }
            "avg" if !distinct => {
                let number = self.number(argument?)?;
                let sum = self.add(self.call("sum", span, number == Number::Float4)?);
                let count = self.add(self.call("count", span, false)?);
                let cast = if matches!(number, Number::Float4 | Number::Float8) { "::double precision" } else { "" };
                Some(format!("(sum({sum}) / nullif(sum({count}), 0){cast})"))
            }
            _ => None,
        }
    }

    /// The same call of another function; `wide`: of the argument as double precision.
    fn call(&self, name: &str, (from, to): Span, wide: bool) -> Option<Piece> {
        let tokens = self.tokens();
        let close = tokens.closing(from + 1);
        if !tokens.is_symbol(from + 1, "(") || close >= to {
            return None;
        }
        let (before, after) = if wide { ("((", ")::double precision)") } else { ("(", ")") };
        let mut piece = Piece::text(format!("{name}{before}"));
        piece.append(Piece::of(tokens, from + 2, close));
        piece.append(Piece::text(format!("{after} ")));
        if close + 1 < to {
            piece.append(Piece::of(tokens, close + 1, to));
        }
        Some(piece)
    }

    /// The type of a number that an aggregate is of.
    fn number(&self, expr: &Expr) -> Option<Number> {
        number_type(expr, &|column| {
            let (mention, name) = self.column(column)?;
            Some(self.analysis.mentions[mention].table.column(&name)?.decl_type.clone())
        })
    }
}

/// Finds groups and aggregates in an expression; breaks off at anything else of a row.
struct Finder<'m, 'a, 's, 't, 'q, 'e> {
    merge: &'m mut Merge<'a, 's, 't, 'q>,
    span: Span,
    root: &'e Expr,
    replacements: Vec<Replacement>,
    /// How deep inside of what is replaced as a whole.
    inside: usize,
}

impl Finder<'_, '_, '_, '_, '_, '_> {
    fn replace(&mut self, (from, to): Span, with: String) {
        self.replacements.push(Replacement { from, to, with: Piece::text(with) });
        self.inside = 1;
    }

    /// The tokens that spell `expr`.
    fn span_of(&self, expr: &Expr) -> Option<Span> {
        if std::ptr::eq(expr, self.root) {
            return Some(self.span);
        }
        let start = leftmost(expr).filter(|start| *start >= self.span.0)?;
        let tokens = self.merge.analysis.tokens;
        let spells = |end: &usize| expression(tokens, start, *end).as_ref() == Some(expr);
        (start + 1..=self.span.1).find(spells).map(|end| (start, end))
    }
}

impl Visitor for Finder<'_, '_, '_, '_, '_, '_> {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        if self.inside > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if self.inside > 0 {
            self.inside += 1;
            return ControlFlow::Continue(());
        }
        if let Some(group) = self.merge.group_of(expr) {
            let Some(span) = self.span_of(expr) else { return ControlFlow::Break(()) };
            self.replace(span, format!("p.\"g{}\"", group + 1));
            return ControlFlow::Continue(());
        }
        match expr {
            Expr::Function(function) if function_name(function).is_some_and(functions::is_aggregate) => {
                let merged = self.span_of(expr).and_then(|span| Some((span, self.merge.aggregate(function, span)?)));
                let Some((span, merged)) = merged else { return ControlFlow::Break(()) };
                self.replace(span, merged);
                ControlFlow::Continue(())
            }
            Expr::Function(function) if function_name(function).is_none_or(functions::gives_sets) => {
                ControlFlow::Break(())
            }
            Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::CompoundFieldAccess { .. } => {
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn post_visit_expr(&mut self, _: &Expr) -> ControlFlow<()> {
        self.inside = self.inside.saturating_sub(1);
        ControlFlow::Continue(())
    }
}

/// The first token of an expression, where the tree tells it.
fn leftmost(expr: &Expr) -> Option<usize> {
    match expr {
        Expr::Identifier(ident) => token_of(ident.span),
        Expr::CompoundIdentifier(idents) => token_of(idents.first()?.span),
        Expr::Function(function) => token_of(function.name.0.first()?.as_ident()?.span),
        Expr::Value(value) => token_of(value.span),
        Expr::BinaryOp { left, .. } => leftmost(left),
        Expr::Cast { expr, kind: sqlparser::ast::CastKind::DoubleColon, .. } => leftmost(expr),
        Expr::Nested(inner) => leftmost(inner)?.checked_sub(1),
        Expr::Case { case_token, .. } => token_of(case_token.0.span),
        _ => None,
    }
}
