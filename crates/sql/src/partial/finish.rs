//! The finishing statement: the user's own, over the merged parts.

use sqlparser::ast::{Expr, OrderByKind, Query, SelectItem};

use super::{Group, Merge, group_name};
use crate::clauses::{Output, Span, list};
use crate::forms::uses_alias;
use crate::frame::{Named, resolve};
use crate::lex::{Kind as Token, quote};
use crate::parse::is_keyword;
use crate::tree::bare;
use crate::why::Why;

impl Merge<'_, '_, '_, '_> {
    /// The user's statement over the merged parts: before FROM, and after it.
    pub(super) fn finish(&mut self, query: &Query) -> Result<(Output, Output), Why> {
        let mut front = Output::default();
        front.push(if self.select.distinct.is_some() { "SELECT DISTINCT " } else { "SELECT " });
        self.items(&mut front)?;
        let mut output = Output::default();
        for at in 0..self.groups.len() {
            output.push(if at == 0 { "GROUP BY " } else { ", " });
            output.push(&group_name(at));
        }
        if let Some(having) = self.clauses.having {
            output.push(" HAVING ");
            self.rewrite(having, self.select.having.as_ref(), &mut output)?;
        }
        self.order(query, &mut output)?;
        if let Some(limit) = self.clauses.limit {
            output.push(" LIMIT ");
            output.span(self.tokens(), self.slots(), limit);
        }
        Ok((front, output))
    }

    fn items(&mut self, output: &mut Output) -> Result<(), Why> {
        let spans = list(self.tokens(), self.clauses.items);
        let items = &self.select.projection;
        if spans.len() != items.len() {
            return Err(Why::Form);
        }
        for (at, (item, span)) in items.iter().zip(spans).enumerate() {
            output.push(if at > 0 { ", " } else { "" });
            match item {
                SelectItem::UnnamedExpr(expr) => {
                    self.rewrite(span, Some(expr), output)?;
                    output.push(" AS ");
                    output.push(&quote(&self.result_name(expr, span)));
                }
                SelectItem::ExprWithAlias { expr, .. } => {
                    let end = self.without_alias(item, span);
                    self.rewrite((span.0, end), Some(expr), output)?;
                    output.span(self.tokens(), self.slots(), (end, span.1));
                }
                _ => return Err(Why::BareColumn),
            }
        }
        Ok(())
    }

    /// The name that SQLite gives to a result without an alias: the column's, or the expression's text.
    fn result_name(&self, expr: &Expr, span: Span) -> String {
        match self.spreading.named(expr) {
            Some(Named::Column { column, .. }) => column.name,
            _ => self.tokens().slice(span.0, span.1).to_owned(),
        }
    }

    fn order(&mut self, query: &Query, output: &mut Output) -> Result<(), Why> {
        let Some(order) = &query.order_by else { return Ok(()) };
        let OrderByKind::Expressions(terms) = &order.kind else { return Err(Why::Form) };
        let spans = self.clauses.order.map(|span| list(self.tokens(), span)).unwrap_or_default();
        if spans.len() != terms.len() {
            return Err(Why::Form);
        }
        for (at, (term, span)) in terms.iter().zip(spans).enumerate() {
            output.push(if at > 0 { ", " } else { " ORDER BY " });
            if self.is_alias(&term.expr) {
                output.span(self.tokens(), self.slots(), span);
            } else if uses_alias(&term.expr, self.select) {
                return Err(Why::Order);
            } else {
                self.rewrite(span, None, output)?;
            }
        }
        Ok(())
    }

    /// Whether `expr` is, as a whole, an alias of the SELECT list.
    fn is_alias(&self, expr: &Expr) -> bool {
        let Expr::Identifier(name) = expr else { return false };
        self.select.projection.iter().any(|item| {
            matches!(item, SelectItem::ExprWithAlias { alias, .. } if alias.value.eq_ignore_ascii_case(&name.value))
        })
    }

    /// Copies `span` with aggregate calls and GROUP BY terms replaced. `whole`: the expression that it spells.
    fn rewrite(&mut self, span: Span, whole: Option<&Expr>, output: &mut Output) -> Result<(), Why> {
        let same = |group: &Group| whole.is_some_and(|whole| bare(whole) == group.expr) && group.column.is_none();
        if let Some(group) = self.groups.iter().position(same) {
            output.word(&self.group_value(group));
            return Ok(());
        }
        let mut index = span.0;
        while index < span.1 {
            index = self.rewrite_at(index, span.1, output)?;
        }
        Ok(())
    }

    fn rewrite_at(&mut self, index: usize, end: usize, output: &mut Output) -> Result<usize, Why> {
        let tokens = self.tokens();
        if let Some((group, next)) = self.group_at(index, end) {
            output.word(&self.group_value(group));
            return Ok(next);
        }
        if let Some(call) = self.call(index, end)? {
            let merged = self.merged(&call)?;
            output.word(&merged);
            return Ok(call.end);
        }
        let is_name = matches!(tokens.kind(index), Some(Token::Word | Token::Name));
        let after = |word| index > 0 && tokens.is(index - 1, word);
        if !is_name || tokens.is_symbol(index + 1, "(") || after("COLLATE") || after("AS") {
            output.token(tokens, self.slots(), index);
            return Ok(index + 1);
        }
        self.rewrite_name(index, end, output)
    }

    /// A group's value in the finishing statement. A column without a type has an affinity (BLOB), an expression has
    /// none; a sign takes it away.
    fn group_value(&self, at: usize) -> String {
        let group = &self.groups[at];
        let sign = if group.column.is_none() && group.definition.is_empty() { "+" } else { "" };
        format!("{sign}{}", group_name(at))
    }

    /// The GROUP BY expression that stands at `index` and holds together by itself (a call, a CASE, a CAST): it means
    /// the same whatever is around it.
    fn group_at(&self, index: usize, end: usize) -> Option<(usize, usize)> {
        let tokens = self.tokens();
        let same = |a: usize, b: usize| {
            let word = tokens.kind(a) == Some(Token::Word) && tokens.kind(b) == Some(Token::Word);
            if word { tokens.str(a).eq_ignore_ascii_case(tokens.str(b)) } else { tokens.str(a) == tokens.str(b) }
        };
        self.groups.iter().enumerate().find_map(|(at, group)| {
            let length = group.term.1 - group.term.0;
            let closed = matches!(group.expr, Expr::Function(_) | Expr::Case { .. } | Expr::Cast { .. })
                && !tokens.is_symbol(group.term.0, "(");
            let holds = closed && index + length <= end && (0..length).all(|n| same(index + n, group.term.0 + n));
            holds.then_some((at, index + length))
        })
    }

    fn rewrite_name(&mut self, index: usize, end: usize, output: &mut Output) -> Result<usize, Why> {
        let tokens = self.tokens();
        let mut last = index;
        while last + 2 < end && tokens.is_symbol(last + 1, ".") {
            last += 2;
        }
        let name = tokens.name(last).unwrap_or_default().to_ascii_lowercase();
        let qualifier = (last > index).then(|| tokens.name(last - 2).unwrap_or_default().to_ascii_lowercase());
        let found = resolve(&self.spreading.frames, qualifier.as_deref(), &name);
        let Named::Column { source, column, .. } = found else {
            output.token(tokens, self.slots(), index); // a keyword or an alias
            return Ok(index + 1);
        };
        if tokens.kind(index) == Some(Token::Word) && last == index && is_structure(&name) {
            return Err(Why::Reserved);
        }
        let group = self.groups.iter().position(|group| match self.spreading.named(group.expr) {
            Some(Named::Column { source: other, column: grouped, .. }) => {
                source == other && grouped.name == column.name
            }
            _ => false,
        });
        let value = self.group_value(group.ok_or(Why::BareColumn)?);
        output.word(&value);
        Ok(last + 1)
    }
}

/// Whether a bare word can be part of an expression's syntax, so that it can't be taken for a column.
fn is_structure(word: &str) -> bool {
    const NAMES_TOO: [&str; 12] =
        ["KEY", "ACTION", "PLAN", "QUERY", "ROW", "ROWS", "TO", "OF", "NO", "DATABASE", "INDEX", "TABLE"];
    let word = word.to_ascii_uppercase();
    is_keyword(&word) && !NAMES_TOO.contains(&word.as_str())
}
