//! What stands in a FROM: tables, joins of them, and subqueries, of whose columns some may be shard keys.

use std::collections::BTreeSet;

use sqlparser::ast::{
    Distinct, Expr, GroupByExpr, Ident, Join, JoinConstraint, JoinOperator, ObjectName, Query, Select, SetExpr,
    TableAlias, TableFactor, TableWithJoins,
};

use super::analysis::{Analysis, KeyColumn, Source, not_a_table};
use super::keys::{Condition, Reach};
use super::local::{has_windows, is_key, rows_apart};
use super::outputs::{Output, outputs};
use super::tree::{last_ident, schema_and_name};
use crate::error::SqlError;

impl Analysis<'_, '_> {
    pub fn from(&mut self, from: &[TableWithJoins], scope: usize) -> Result<Vec<Condition>, SqlError> {
        let mut conditions = Vec::new();
        for tree in from {
            self.tree(tree, scope, &mut conditions)?;
        }
        Ok(conditions)
    }

    fn tree(&mut self, tree: &TableWithJoins, scope: usize, conditions: &mut Vec<Condition>) -> Result<(), SqlError> {
        match &tree.relation {
            // Nothing is joined to these parentheses from the left: they change nothing. Servers print the joins of views so.
            TableFactor::NestedJoin { table_with_joins, alias: None } => {
                self.tree(table_with_joins, scope, conditions)?;
            }
            relation => self.factor(relation, scope, conditions)?,
        }
        for join in &tree.joins {
            self.join(join, scope, conditions)?;
        }
        Ok(())
    }

    fn join(&mut self, join: &Join, scope: usize, conditions: &mut Vec<Condition>) -> Result<(), SqlError> {
        use JoinOperator as J;
        let (constraint, left) = match &join.join_operator {
            J::Join(c) | J::Inner(c) | J::CrossJoin(c) => (c, false),
            J::Left(c) | J::LeftOuter(c) => (c, true),
            J::Right(c) | J::RightOuter(c) | J::FullOuter(c) => {
                self.scopes[scope].odd = true;
                (c, true)
            }
            _ => return Err(SqlError::unsupported("this kind of join is not PostgreSQL's")),
        };
        let (middle, first, opened) = (self.scopes[scope].sources.len(), self.mentions.len(), self.scopes.len());
        self.factor(&join.relation, scope, conditions)?;
        if !matches!(&join.join_operator, J::Join(_) | J::Inner(_) | J::CrossJoin(_)) {
            // Of RIGHT and FULL joins both sides.
            let (sources, scopes) = if self.scopes[scope].odd { (0, 0) } else { (middle, opened) };
            self.not_preserved(scope, sources, scopes);
        }
        let right = self.scopes[scope]
            .sources
            .get(middle)
            .map(|source| source.mention.into_iter().chain(source.keys.iter().map(|key| key.mention)).collect());
        let reach = if left { Reach::Right(right.unwrap_or_default()) } else { Reach::All };
        if left {
            self.mentions[first..]
                .iter_mut()
                .filter(|mention| mention.scope == scope)
                .for_each(|mention| mention.nullable = true);
        }
        match constraint {
            JoinConstraint::On(expr) => conditions.push(Condition { expr: expr.clone(), reach, is_where: false }),
            JoinConstraint::Using(columns) => {
                let names: Vec<String> =
                    columns.iter().filter_map(|name| last_ident(name)).map(|ident| ident.value.clone()).collect();
                self.merge(&names, scope, middle, &reach);
            }
            JoinConstraint::Natural => {
                self.every_column = true;
                match self.shared(scope, middle) {
                    Some(names) => self.merge(&names, scope, middle, &reach),
                    None => self.scopes[scope].odd = true,
                }
            }
            JoinConstraint::None => {}
        }
        Ok(())
    }

    /// Subqueries among the sources of a scope (from `sources` on, of the scopes from `scopes` on) may have NULLs in the place of their rows.
    fn not_preserved(&mut self, scope: usize, sources: usize, scopes: usize) {
        self.scopes[scope].sources[sources..].iter_mut().for_each(|source| source.nullable = true);
        let inner = self.scopes[scopes..].iter_mut().filter(|inner| inner.apart_in == Some(scope));
        inner.for_each(|inner| inner.apart_in = None);
    }

    /// The columns that the sources before and from `middle` have in common; `None` when not all are known.
    fn shared(&self, scope: usize, middle: usize) -> Option<Vec<String>> {
        let sources = &self.scopes[scope].sources;
        let names = |sources: &[Source]| -> Option<BTreeSet<String>> {
            let all = sources.iter().map(|source| source.columns.clone()).collect::<Option<Vec<_>>>()?;
            Some(all.into_iter().flatten().collect())
        };
        Some(names(&sources[..middle])?.intersection(&names(&sources[middle..])?).cloned().collect())
    }

    fn merge(&mut self, names: &[String], scope: usize, middle: usize, reach: &Reach) {
        for name in names {
            let sources = &self.scopes[scope].sources;
            let known = sources.iter().all(|source| source.columns.is_some());
            let has = |source: &&Source| source.columns.as_ref().is_some_and(|columns| columns.contains(name));
            let left = sources[..middle].iter().find(has).and_then(|source| source.mention);
            let right = sources[middle..].iter().find(has).and_then(|source| source.mention);
            if !known {
                self.scopes[scope].odd = true;
            } else if let (Some(left), Some(right), false) = (left, right, self.scopes[scope].odd) {
                let is_key = |at: usize| self.mentions[at].table.shard_key().is_some_and(|(key, _)| key == name);
                if is_key(left) && is_key(right) {
                    self.tie((right, true), (left, true), reach);
                    self.tie((left, true), (right, true), reach);
                }
            }
            self.scopes[scope].merged.insert(name.clone());
        }
    }

    fn factor(&mut self, factor: &TableFactor, scope: usize, conditions: &mut Vec<Condition>) -> Result<(), SqlError> {
        match factor {
            TableFactor::Table { name, alias, args: None, sample, with_ordinality: false, .. } => {
                if sample.is_some() {
                    self.bound = Some("TABLESAMPLE");
                }
                let source = self.table(name, alias.as_ref(), scope)?;
                self.scopes[scope].sources.push(source);
            }
            // `ONLY (t)` looks like a call.
            TableFactor::Table { name: ObjectName(parts), args: Some(_), .. }
                if parts.iter().filter_map(|part| part.as_ident()).any(is_only) =>
            {
                return Err(not_a_table(&Ident::new("only")));
            }
            TableFactor::Table { name, alias, args: Some(args), .. } => {
                self.function_called(schema_and_name(name).map(|(_, name)| name.value.clone()), None);
                self.exprs(&args.args, Some(scope))?;
                self.opaque(alias.as_ref(), last_ident(name), scope);
            }
            TableFactor::Function { name, args, alias, .. } => {
                self.function_called(schema_and_name(name).map(|(_, name)| name.value.clone()), None);
                self.exprs(args, Some(scope))?;
                self.opaque(alias.as_ref(), last_ident(name), scope);
            }
            TableFactor::UNNEST { alias, array_exprs, .. } => {
                self.exprs(array_exprs, Some(scope))?;
                self.opaque(alias.as_ref(), None, scope);
            }
            TableFactor::Derived { lateral, subquery, alias, sample: None } => {
                let parent = if *lateral { Some(scope) } else { self.scopes[scope].parent };
                let inner = self.query(subquery, parent)?;
                self.opaque(alias.as_ref(), None, scope);
                let renamed = alias.as_ref().is_some_and(|alias| !alias.columns.is_empty());
                if let (SetExpr::Select(select), Some(inner), false) = (subquery.body.as_ref(), inner, renamed) {
                    self.subquery(subquery, select, inner, scope);
                }
            }
            TableFactor::NestedJoin { table_with_joins, alias } => {
                self.scopes[scope].odd = true;
                let first = self.mentions.len();
                self.tree(table_with_joins, scope, conditions)?;
                self.mentions[first..].iter_mut().for_each(|mention| mention.nullable = true);
                if alias.is_some() {
                    self.opaque(alias.as_ref(), None, scope);
                }
            }
            _ => {
                return Err(SqlError::unsupported("this kind of source in FROM is not understood")
                    .hint("use a table or a subquery"));
            }
        }
        Ok(())
    }

    fn opaque(&mut self, alias: Option<&TableAlias>, name: Option<&Ident>, scope: usize) {
        let alias =
            alias.map(|alias| alias.name.value.clone()).or(name.map(|name| name.value.clone())).unwrap_or_default();
        self.scopes[scope].sources.push(Source { alias, ..Source::default() });
    }

    /// What is certain of the columns and rows of the subquery that was added to the sources of `scope` last.
    fn subquery(&mut self, query: &Query, select: &Select, inner: usize, scope: usize) {
        let Some(outputs) = outputs(self, select, inner) else { return };
        let columns = outputs.iter().map(|output| output.name.clone()).collect();
        let cut = query.limit_clause.is_some() || query.fetch.is_some() || !query.locks.is_empty();
        // Leaving rows out must not change what becomes of others.
        let plain = !cut && !self.scopes[inner].odd && !has_windows(select);
        let sets = match &select.group_by {
            GroupByExpr::All(_) => true,
            GroupByExpr::Expressions(list, modifiers) => {
                !modifiers.is_empty()
                    || list.iter().any(|by| matches!(by, Expr::Rollup(_) | Expr::Cube(_) | Expr::GroupingSets(_)))
            }
        };
        let key = |output: &Output| {
            let expr = output.expr?;
            let (mention, own) = self.key_mention(expr, inner)?;
            let nullable = sets || !is_key(self, expr, inner);
            own.then(|| KeyColumn { name: output.name.clone(), mention, nullable })
        };
        let distinct_on = matches!(select.distinct, Some(Distinct::On(_)));
        let keys = if plain && !distinct_on { outputs.iter().filter_map(key).collect() } else { Vec::new() };
        // Its order would be lost; a LATERAL one may be made of others' rows.
        let ordered = query.order_by.is_some() || query.with.is_some();
        let apart = plain && !ordered && self.scopes[inner].parent != Some(scope) && rows_apart(self, select, inner);
        self.scopes[inner].apart_in = apart.then_some(scope);
        if let Some(source) = self.scopes[scope].sources.last_mut() {
            source.columns = Some(columns);
            source.keys = keys;
        }
    }

    /// Whether scope `inner` is `scope`, or subqueries in its FROM whose rows are made as those around them.
    pub fn is_made_in(&self, mut inner: usize, scope: usize) -> bool {
        while inner != scope {
            match self.scopes[inner].apart_in {
                Some(around) => inner = around,
                None => return false,
            }
        }
        true
    }

    /// The mention whose shard key a subquery's column of this name is, and whether NULLs may be in the place of the subquery's rows.
    pub fn key_of_subquery(&self, scope: usize, qualifier: Option<&Ident>, name: &Ident) -> Option<(usize, bool)> {
        let mut named = self.scopes[scope].sources.iter().filter(|source| match qualifier {
            Some(qualifier) => source.alias == qualifier.value,
            None => source.columns.as_ref().is_none_or(|columns| columns.contains(&name.value)),
        });
        let (Some(source), None) = (named.next(), named.next()) else { return None };
        let mut keys = source.keys.iter().filter(|key| key.name == name.value);
        keys.next().map(|key| (key.mention, key.nullable || source.nullable))
    }
}

fn is_only(ident: &Ident) -> bool {
    ident.quote_style.is_none() && ident.value == "only"
}
