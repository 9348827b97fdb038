//! The columns of a SELECT's answer: their names, whether they carry the shard key, and how their values compare.

use sqlparser::ast::{Expr, Ident, Select, SelectItem, SelectItemQualifiedWildcardKind, UnaryOperator};

use super::Spreading;
use crate::clauses::{Clauses, list};
use crate::frame::{Key, Kind, Named, OutColumn, Shape};
use crate::parse::token_of;
use crate::tree::{Part, bare, last_name, parts};

impl<'a> Spreading<'_, 'a> {
    /// The columns of the open SELECT's answer.
    pub fn columns(&self, select: &Select) -> Option<Vec<OutColumn<'a>>> {
        let start = token_of(select.select_token.0.span)?;
        let spans =
            list(self.analysis.tokens, Clauses::of(self.analysis.tokens, start, self.analysis.tokens.len()).items);
        if spans.len() != select.projection.len() {
            return None;
        }
        let mut found = Vec::new();
        for (item, span) in select.projection.iter().zip(spans) {
            match item {
                SelectItem::UnnamedExpr(expr) => {
                    let text = self.analysis.tokens.slice(span.0, span.1);
                    found.push(self.column(expr, None, text));
                }
                SelectItem::ExprWithAlias { expr, alias } => found.push(self.column(expr, Some(alias), "")),
                SelectItem::Wildcard(_) => found.extend(self.wildcard(None)?),
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                    found.extend(self.wildcard(Some(&last_name(name)))?);
                }
                _ => return None,
            }
        }
        Some(found)
    }

    fn column(&self, expr: &Expr, alias: Option<&Ident>, text: &str) -> OutColumn<'a> {
        let mut column = match self.named(expr) {
            Some(Named::Column { frame, column, .. }) if frame + 1 == self.frames.len() => column,
            Some(_) => OutColumn { name: text.to_owned(), key: Key::No, kind: Kind::Unknown },
            None => OutColumn { name: text.to_owned(), key: Key::No, kind: kind_of(expr) },
        };
        if let Some(alias) = alias {
            column.name.clone_from(&alias.value);
        }
        column
    }

    fn wildcard(&self, alias: Option<&str>) -> Option<Vec<OutColumn<'a>>> {
        let frame = self.frames.last()?;
        let mut found = Vec::new();
        let mut matched = false;
        for source in frame.sources.iter().filter(|source| alias.is_none_or(|alias| alias == source.alias)) {
            matched = true;
            for (at, column) in source.shape.columns.as_ref()?.iter().enumerate() {
                let name = column.name.to_ascii_lowercase();
                if alias.is_none() && source.merged.contains(&name) {
                    continue;
                }
                let mut column = source.column(at)?;
                if alias.is_none() && frame.coalesced.contains(&name) {
                    (column.key, column.kind) = (Key::No, Kind::Unknown);
                }
                found.push(column);
            }
        }
        matched.then_some(found)
    }
}

/// The shape with its columns renamed, as by `AS x(a, b)`.
pub(super) fn renamed<'a>(mut shape: Shape<'a>, names: &[String]) -> Shape<'a> {
    if let (Some(columns), false) = (&mut shape.columns, names.is_empty()) {
        columns.iter_mut().zip(names).for_each(|(column, name)| column.name.clone_from(name));
    }
    shape
}

/// The kind of an expression that is no plain column. A CAST has an affinity, and an explicit COLLATE counts all the
/// way up.
pub(crate) fn kind_of(expr: &Expr) -> Kind<'static> {
    match bare(expr) {
        Expr::Cast { .. } | Expr::Subquery(_) | Expr::UnaryOp { op: UnaryOperator::Plus, .. } => Kind::Unknown,
        other if has_collate(other) => Kind::Unknown,
        _ => Kind::Plain,
    }
}

fn has_collate(expr: &Expr) -> bool {
    matches!(expr, Expr::Collate { .. })
        || parts(expr).unwrap_or_default().into_iter().any(|part| match part {
            Part::Expr(inner) => has_collate(inner),
            Part::Query(_) => true,
        })
}
