//! Statements that no single form fits: what of them the shards can answer, and the statement that finishes.
//!
//! The finishing statement is the user's own. Each subquery in it that stands by itself (it names nothing of the queries
//! around it) and has a form (`forms`) is answered by the shards into a table of its own, and replaced by what finishes it
//! there: `WHERE a > (SELECT avg(a) FROM t)` fetches three averages and not `t`. A query that has no form is searched
//! for such subqueries in turn, and so are the sides of a UNION, INTERSECT or EXCEPT. The tables that are left are
//! fetched with the rows and columns that the rest needs (`fetch`).
//!
//! A subquery is never evaluated first to put its rows into another statement for the shards: the two would see
//! different moments, and a shard must be asked once for everything.

use sqlparser::ast::{
    Expr, JoinConstraint, JoinOperator, Query, Select, SelectItem, SetExpr, TableFactor, TableWithJoins,
};

use crate::clauses::{Clauses, Output, Span};
use crate::fetch::{FetchPlan, fetches};
use crate::forms::{Form, form, name_projection};
use crate::parse::token_of;
use crate::read::Template;
use crate::scope::Analysis;
use crate::shard_sql::Copy;
use crate::spread::{Arm, Spreading, arms};
use crate::tree::{Part, argument, parts};
use crate::why::{NotPushed, Why};

/// How a statement is answered in the finisher.
#[derive(Clone, Debug)]
pub(crate) struct FinishPlan {
    pub fetches: Vec<FetchPlan>,
    /// `None`: the user's own, as it is.
    pub finish: Option<Template>,
    pub not_pushed: Vec<NotPushed>,
}

impl FinishPlan {
    /// A statement that one fetch and one finishing statement answer.
    pub fn of(fetch: FetchPlan, finish: Output, why: Why, analysis: &Analysis, span: Span) -> FinishPlan {
        let not_pushed = vec![NotPushed { what: shown(analysis, span), why }];
        FinishPlan { fetches: vec![fetch], finish: Some(finish.into()), not_pushed }
    }
}

/// What stands for a piece in the explanations, at most.
const SHOWN_CHARS_MAX: usize = 72;

/// The beginning of the tokens of `span`.
pub(crate) fn shown(analysis: &Analysis, span: Span) -> String {
    let text = analysis.tokens.slice(span.0, span.1).split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().count() <= SHOWN_CHARS_MAX {
        return text;
    }
    format!("{}…", text.chars().take(SHOWN_CHARS_MAX - 1).collect::<String>())
}

/// Everything is fetched as it is.
pub(crate) fn whole(analysis: &Analysis, span: Span, why: Why) -> FinishPlan {
    let not_pushed = vec![NotPushed { what: shown(analysis, span), why }];
    FinishPlan { fetches: fetches(analysis, &[]), finish: None, not_pushed }
}

/// Plans a statement that has no form because of `why`.
pub(crate) fn finish(analysis: &Analysis, query: &Query, span: Span, why: Why) -> FinishPlan {
    let mut search =
        Search { analysis, pieces: Vec::new(), copy: Copy::default(), covered: Vec::new(), left: Vec::new() };
    search.left.push(NotPushed { what: shown(analysis, span), why });
    search.inside(query, span);
    let mut fetched = search.pieces;
    fetched.extend(fetches(analysis, &search.covered));
    let finish = (!search.covered.is_empty()).then(|| {
        let mut copy = search.copy;
        if let Ok(arms) = arms(&query.body)
            && let Some((_, Arm::Select(select))) = arms.first()
            && let Some(start) = token_of(select.select_token.0.span)
            && !search.covered.iter().any(|covered| covered.0 == start)
        {
            name_projection(analysis, select, Clauses::of(analysis.tokens, start, span.1).items, &mut copy);
        }
        let mut output = Output::default();
        copy.write(analysis, span, false, &mut output);
        output.into()
    });
    FinishPlan { fetches: fetched, finish, not_pushed: search.left }
}

struct Search<'m, 'a> {
    analysis: &'m Analysis<'a>,
    pieces: Vec<FetchPlan>,
    copy: Copy,
    covered: Vec<Span>,
    left: Vec<NotPushed>,
}

impl Search<'_, '_> {
    /// Looks at the queries directly inside of `query`.
    fn inside(&mut self, query: &Query, span: Span) {
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            self.subquery(&cte.query);
        }
        let order = crate::spread::order_terms(query);
        if let Ok(arms) = arms(&query.body) {
            for (at, (_, arm)) in arms.iter().enumerate() {
                let Arm::Select(select) = arm else { continue };
                let next = arms.get(at + 1).and_then(|(_, arm)| start(arm));
                if arms.len() > 1 && self.arm(select, span, next) {
                    continue;
                }
                self.select(select);
            }
        }
        order.into_iter().for_each(|expr| self.expr(expr));
    }

    fn select(&mut self, select: &Select) {
        select.from.iter().for_each(|tree| self.tree(tree));
        for item in &select.projection {
            if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
                self.expr(expr);
            }
        }
        select.selection.iter().chain(&select.having).for_each(|expr| self.expr(expr));
    }

    fn tree(&mut self, tree: &TableWithJoins) {
        use JoinOperator as J;
        self.factor(&tree.relation);
        for join in &tree.joins {
            self.factor(&join.relation);
            if let J::Join(c)
            | J::Inner(c)
            | J::CrossJoin(c)
            | J::Left(c)
            | J::LeftOuter(c)
            | J::Right(c)
            | J::RightOuter(c)
            | J::FullOuter(c) = &join.join_operator
                && let JoinConstraint::On(expr) = c
            {
                self.expr(expr);
            }
        }
    }

    fn factor(&mut self, factor: &TableFactor) {
        match factor {
            TableFactor::Derived { subquery, .. } => self.subquery(subquery),
            TableFactor::NestedJoin { table_with_joins, .. } => self.tree(table_with_joins),
            TableFactor::Table { args: Some(args), .. } => {
                args.args.iter().filter_map(argument).for_each(|expr| self.expr(expr));
            }
            _ => {}
        }
    }

    fn expr(&mut self, expr: &Expr) {
        for part in parts(expr).unwrap_or_default() {
            match part {
                Part::Expr(inner) => self.expr(inner),
                Part::Query(query) => self.subquery(query),
            }
        }
    }

    /// Replaces a subquery, or looks inside of it.
    fn subquery(&mut self, query: &Query) {
        let Some(span) = span_of(self.analysis, query) else { return };
        if !self.mentions_sharded(span) {
            return;
        }
        let mut spreading = Spreading::new(self.analysis);
        let found = form(&mut spreading, query, span);
        match self.piece(found, span, spreading.unresolved) {
            Ok(()) => {}
            Err(why) => {
                if !spreading.unresolved {
                    self.left.push(NotPushed { what: shown(self.analysis, span), why });
                }
                self.inside(query, span);
            }
        }
    }

    /// Replaces a side of a compound SELECT, if it has a form.
    fn arm(&mut self, select: &Select, whole: Span, next: Option<usize>) -> bool {
        let Some(start) = token_of(select.select_token.0.span) else { return false };
        let clauses = Clauses::of(self.analysis.tokens, start, whole.1);
        let tail = clauses.order.map(|order| order.0 - 2).or(clauses.limit.map(|limit| limit.0 - 1));
        let span = (start, if next.is_some() { clauses.end } else { tail.unwrap_or(clauses.end) });
        if !self.mentions_sharded(span) {
            return false;
        }
        let query = alone(select);
        let mut spreading = Spreading::new(self.analysis);
        let found = form(&mut spreading, &query, span);
        self.piece(found, span, spreading.unresolved).is_ok()
    }

    fn piece(&mut self, found: Result<Form, Why>, span: Span, unresolved: bool) -> Result<(), Why> {
        let found = found?;
        if unresolved {
            return Err(Why::Subquery);
        }
        let table = format!("__parts{}", self.pieces.len() + 1);
        let (fetch, finish) = match found {
            Form::Rows(plan) => plan.gathered(self.analysis, &table, true)?,
            Form::Partial(plan, _) => plan.gathered(&table),
        };
        self.pieces.push(fetch);
        self.copy.replaced.insert(span.0, (span.1, finish));
        self.covered.push(span);
        Ok(())
    }

    fn mentions_sharded(&self, span: Span) -> bool {
        let analysis = self.analysis;
        (0..analysis.occurrences.len())
            .any(|at| analysis.key_type(at).is_some() && (span.0..span.1).contains(&analysis.occurrences[at].tokens.0))
    }
}

/// A SELECT as a query of its own.
fn alone(select: &Select) -> Query {
    Query {
        with: None,
        body: Box::new(SetExpr::Select(Box::new(select.clone()))),
        order_by: None,
        limit_clause: None,
        fetch: None,
        locks: Vec::new(),
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators: Vec::new(),
    }
}

fn start(arm: &Arm) -> Option<usize> {
    match arm {
        Arm::Select(select) => token_of(select.select_token.0.span),
        Arm::Values(_) => None,
    }
}

/// The tokens of a query in parentheses, without these.
fn span_of(analysis: &Analysis, query: &Query) -> Option<Span> {
    let first = match &query.with {
        Some(with) => token_of(with.with_token.0.span)?,
        None => start(&arms(&query.body).ok()?.first()?.1)?,
    };
    let open = first.checked_sub(1).filter(|open| analysis.tokens.is_symbol(*open, "("))?;
    Some((first, analysis.tokens.closing(open)))
}
