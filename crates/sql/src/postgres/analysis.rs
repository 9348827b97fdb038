//! Which tables a statement mentions, where, and what surrounds them.
//!
//! Names are looked up as PostgreSQL does: innermost SELECT first, CTEs before tables. What conditions say about the keys of each mention is
//! read by `keys`, which this module calls for every list of sources.

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{KeyType, Table, TableKind, table_key};
use sqlparser::ast::{
    Delete, Expr, FromTable, Function, Ident, Insert, ObjectName, OnConflictAction, OnInsert, Query, Select, SetExpr,
    Statement, TableAlias, TableFactor, TableObject, TableWithJoins, Update, UpdateTableFromKind, Values, Visit, With,
};

use super::functions::{self, Purity};
use super::keys::Condition;
use super::lex::Tokens;
use super::parse::token_of;
use super::plan::Constant;
use super::tree::{Found, column_name, function_name, schema_and_name};
use super::views::{self, Viewed};
use crate::Schema;
use crate::error::{Code, SqlError};

/// One mention of a table of the catalog.
#[derive(Clone, Debug)]
pub(super) struct Mention<'s> {
    pub table: &'s Table,
    /// The table's key in the catalog.
    pub key: String,
    /// The list of sources that it is in.
    pub scope: usize,
    /// What its columns are qualified with.
    pub alias: String,
    /// The tokens of its name; `None` where the tree doesn't tell them.
    pub tokens: Option<(usize, usize)>,
    pub has_alias: bool,
    /// Its alias has names for its columns, too: `t AS a (x, y)`.
    pub renamed: bool,
    /// It is written to, not read.
    pub target: bool,
    /// Its keys are those of rows that are inserted.
    pub stored: bool,
    /// On the side of an outer join that gets NULLs, or where Pleat doesn't look closer.
    pub nullable: bool,
    /// The keys that matter; `None`: all.
    pub keys: Option<Vec<Constant>>,
    /// Mentions whose keys limit this one's.
    pub tied_to: BTreeSet<usize>,
    /// Conditions that a row of it must meet to matter, and that a shard can check.
    pub filters: Vec<Expr>,
}

impl<'s> Mention<'s> {
    fn of(table: &'s Table, key: &str, alias: String, scope: usize, tokens: Option<(usize, usize)>) -> Mention<'s> {
        Mention {
            table,
            key: key.to_owned(),
            scope,
            alias,
            tokens,
            has_alias: false,
            renamed: false,
            target: false,
            stored: false,
            nullable: false,
            keys: None,
            tied_to: BTreeSet::new(),
            filters: Vec::new(),
        }
    }

    pub fn key_type(&self) -> Option<KeyType> {
        self.table.shard_key().map(|(_, key_type)| key_type)
    }

    pub fn is_sharded(&self) -> bool {
        matches!(self.table.kind, TableKind::Sharded { .. })
    }
}

/// One source in a FROM.
#[derive(Clone, Debug, Default)]
pub(super) struct Source {
    pub alias: String,
    pub mention: Option<usize>,
    /// `None`: not known (most subqueries, a CTE, a function).
    pub columns: Option<Vec<String>>,
    /// Columns of a subquery that are the shard key of a mention in it.
    pub keys: Vec<KeyColumn>,
    /// A subquery on the side of an outer join that gets NULLs.
    pub nullable: bool,
}

/// A subquery's column that is a shard key: a condition on it limits the mention's rows just as well.
#[derive(Clone, Debug)]
pub(super) struct KeyColumn {
    pub name: String,
    pub mention: usize,
    /// NULLs may be in its place, in rows of any shard.
    pub nullable: bool,
}

/// The sources that expressions of a SELECT, UPDATE … can use.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope {
    pub parent: Option<usize>,
    pub sources: Vec<Source>,
    /// Columns that USING or NATURAL merged.
    pub merged: BTreeSet<String>,
    /// RIGHT, FULL or nested joins: only WHERE is looked at.
    pub odd: bool,
    /// The scope in whose FROM this subquery stands, if each of its rows is made of one shard's rows as the rows around it are.
    pub apart_in: Option<usize>,
}

/// What a column's name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolved {
    /// A column of this mention; `own`: of the scope itself, not of one around it.
    Mention { mention: usize, own: bool },
    /// A column of something else, or not certain.
    Other,
}

/// What is known of a statement.
#[derive(Debug)]
pub(super) struct Analysis<'s, 't> {
    pub schema: Schema<'s>,
    pub tokens: &'t Tokens<'t>,
    pub mentions: Vec<Mention<'s>>,
    pub scopes: Vec<Scope>,
    /// The least pure of all functions called.
    pub purity: Purity,
    /// Names of functions that aren't known to be immutable or stable.
    pub impure: BTreeSet<String>,
    pub pins: bool,
    /// It changes or locks something by its form.
    pub writes: bool,
    /// FOR UPDATE, FOR SHARE, SELECT INTO, TABLESAMPLE: nothing that can be spread.
    pub bound: Option<&'static str>,
    /// SELECT INTO; `true`: a temporary table.
    pub into: Option<bool>,
    /// `*`, NATURAL, or a table's name as a value appears: every column counts.
    pub every_column: bool,
    pub groups: bool,
    /// Writes in it: the mention that each is to, if it is one of the catalog.
    pub targets: usize,
    /// Sharded rows that are inserted without a key that can be known.
    pub keyless: Option<SqlError>,
    /// An aggregate in a subquery is of rows around it: it makes groups of those.
    pub outer_aggregate: bool,
    /// It names a relation that the catalog doesn't know: a temporary table, or one of the system's.
    pub unknown: bool,
    /// The scope of each SELECT, by the token of its keyword.
    selects: BTreeMap<usize, usize>,
    /// Views that it reads: it is not known yet what they are.
    pub views: Vec<Viewed>,
    ctes: Vec<BTreeSet<String>>,
    all_ctes: BTreeSet<String>,
}

impl<'s, 't> Analysis<'s, 't> {
    pub fn new(schema: Schema<'s>, tokens: &'t Tokens<'t>) -> Self {
        Analysis {
            schema,
            tokens,
            mentions: Vec::new(),
            scopes: Vec::new(),
            purity: Purity::Immutable,
            impure: BTreeSet::new(),
            pins: false,
            writes: false,
            bound: None,
            into: None,
            every_column: false,
            groups: false,
            targets: 0,
            keyless: None,
            outer_aggregate: false,
            unknown: false,
            selects: BTreeMap::new(),
            views: Vec::new(),
            ctes: Vec::new(),
            all_ctes: BTreeSet::new(),
        }
    }

    /// Reads a whole statement; the scope is that of its outermost SELECT, UPDATE or DELETE, where it has one.
    pub fn statement(&mut self, statement: &Statement) -> Result<Option<usize>, SqlError> {
        let scope = self.any_statement(statement, None)?;
        self.spread_keys();
        Ok(scope)
    }

    fn any_statement(&mut self, statement: &Statement, parent: Option<usize>) -> Result<Option<usize>, SqlError> {
        match statement {
            Statement::Query(query) => self.query(query, parent),
            Statement::Insert(insert) => self.insert(insert, parent).map(Some),
            Statement::Update(update) => self.update(update, parent).map(Some),
            Statement::Delete(delete) => self.delete(delete, parent).map(Some),
            _ => Err(SqlError::unsupported("this kind of statement is not routed yet")
                .hint("use SELECT, INSERT, UPDATE or DELETE")),
        }
    }

    /// Carries keys along the ties until nothing changes.
    fn spread_keys(&mut self) {
        loop {
            let learned = self.mentions.iter().enumerate().find_map(|(at, mention)| {
                let keys = mention.tied_to.iter().find_map(|other| self.mentions[*other].keys.clone());
                keys.filter(|_| mention.keys.is_none()).map(|keys| (at, keys))
            });
            match learned {
                Some((at, keys)) => self.mentions[at].keys = Some(keys),
                None => return,
            }
        }
    }

    /// Whether a CTE is called so anywhere in the statement.
    pub fn is_cte(&self, name: &str) -> bool {
        self.all_ctes.contains(name)
    }

    /// The scope of a SELECT that was read.
    pub fn scope_of(&self, select: &Select) -> Option<usize> {
        self.selects.get(&token_of(select.select_token.0.span)?).copied()
    }

    /// The token of the keyword of the SELECT whose sources a scope has.
    pub fn select_of(&self, scope: usize) -> Option<usize> {
        self.selects.iter().find(|(_, of)| **of == scope).map(|(token, _)| *token)
    }

    /// Whether all rows of mention `at` that matter lie with the row of `driver`.
    pub fn tied(&self, at: usize, driver: usize) -> bool {
        let (mut reached, mut waiting) = (BTreeSet::from([at]), vec![at]);
        while let Some(next) = waiting.pop() {
            if next == driver {
                return true;
            }
            waiting.extend(self.mentions[next].tied_to.iter().filter(|other| reached.insert(**other)));
        }
        false
    }

    // ---- queries ----

    pub fn query(&mut self, query: &Query, parent: Option<usize>) -> Result<Option<usize>, SqlError> {
        if query.for_clause.is_some()
            || query.settings.is_some()
            || query.format_clause.is_some()
            || !query.pipe_operators.is_empty()
        {
            return Err(SqlError::unsupported("the query has a clause of another database"));
        }
        if !query.locks.is_empty() {
            self.writes = true;
            self.bound = Some("FOR UPDATE or FOR SHARE");
        }
        let depth = self.ctes.len();
        if let Some(with) = &query.with {
            self.with(with, parent)?;
        }
        let scope = self.body(&query.body, parent)?;
        let around = scope.or(parent);
        self.exprs(&query.order_by, around)?;
        self.exprs(&query.limit_clause, around)?;
        if let Some(quantity) = query.fetch.as_ref().and_then(|fetch| fetch.quantity.as_ref()) {
            self.exprs(quantity, around)?;
        }
        self.ctes.truncate(depth);
        Ok(scope)
    }

    fn with(&mut self, with: &With, parent: Option<usize>) -> Result<(), SqlError> {
        let name = |alias: &TableAlias| alias.name.value.clone();
        let all = with.cte_tables.iter().map(|cte| name(&cte.alias)).filter(|_| with.recursive).collect();
        self.ctes.push(all);
        self.all_ctes.extend(with.cte_tables.iter().map(|cte| name(&cte.alias)));
        for cte in &with.cte_tables {
            self.query(&cte.query, parent)?;
            if let Some(names) = self.ctes.last_mut() {
                names.insert(name(&cte.alias));
            }
        }
        Ok(())
    }

    fn body(&mut self, body: &SetExpr, parent: Option<usize>) -> Result<Option<usize>, SqlError> {
        match body {
            SetExpr::Select(select) => self.select(select, parent).map(Some),
            SetExpr::Query(query) => self.query(query, parent),
            SetExpr::SetOperation { left, right, .. } => {
                self.body(left, parent)?;
                self.body(right, parent)?;
                Ok(None)
            }
            SetExpr::Values(values) => self.exprs(values, parent).map(|()| None),
            SetExpr::Insert(statement) | SetExpr::Update(statement) | SetExpr::Delete(statement) => {
                self.writes = true;
                self.any_statement(statement, parent)
            }
            SetExpr::Table(table) => {
                let name = table.table_name.clone().unwrap_or_default();
                let scope = self.open(parent);
                let source = self.relation(table.schema_name.as_deref(), &name, None, scope)?;
                self.every_column = true;
                self.scopes[scope].sources.push(Source { alias: name, ..source });
                Ok(Some(scope))
            }
            SetExpr::Merge(_) => Err(SqlError::unsupported("MERGE is not routed yet").hint("use INSERT … ON CONFLICT")),
        }
    }

    fn open(&mut self, parent: Option<usize>) -> usize {
        self.scopes.push(Scope { parent, ..Scope::default() });
        self.scopes.len() - 1
    }

    fn select(&mut self, select: &Select, parent: Option<usize>) -> Result<usize, SqlError> {
        if let Some(into) = &select.into {
            self.into = Some(into.temporary);
            self.writes = true;
            self.pins |= into.temporary;
            self.bound = Some("SELECT INTO");
        }
        let foreign = select.top.is_some()
            || !select.lateral_views.is_empty()
            || select.prewhere.is_some()
            || !select.connect_by.is_empty()
            || select.qualify.is_some()
            || select.value_table_mode.is_some();
        if foreign {
            return Err(SqlError::unsupported("the SELECT has a clause of another database"));
        }
        let scope = self.open(parent);
        self.selects.extend(token_of(select.select_token.0.span).map(|token| (token, scope)));
        let mut conditions = self.from(&select.from, scope)?;
        conditions.extend(select.selection.iter().map(Condition::of_where));
        let rest = Select { from: Vec::new(), selection: None, into: None, ..select.clone() };
        self.exprs(&rest, Some(scope))?;
        self.every_column |= select.projection.iter().any(|item| {
            use sqlparser::ast::SelectItem as Item;
            matches!(item, Item::Wildcard(_) | Item::QualifiedWildcard(..))
        });
        self.groups |=
            !matches!(&select.group_by, sqlparser::ast::GroupByExpr::Expressions(list, _) if list.is_empty());
        self.conditions(&conditions, scope)?;
        Ok(scope)
    }

    // ---- tables ----

    pub fn table(&mut self, name: &ObjectName, alias: Option<&TableAlias>, scope: usize) -> Result<Source, SqlError> {
        let parts = name.0.iter().map(|part| part.as_ident()).collect::<Option<Vec<_>>>();
        let (Some(parts), Some((schema, ident))) = (parts, schema_and_name(name)) else {
            return Err(SqlError::unsupported(format!("the table name {name} is not understood")));
        };
        if ident.quote_style.is_none()
            && matches!(ident.value.as_str(), "only" | "lateral" | "rows" | "table" | "select")
        {
            return Err(not_a_table(ident));
        }
        let tokens = parts
            .first()
            .zip(parts.last())
            .and_then(|(first, last)| Some((token_of(first.span)?, token_of(last.span)? + 1)));
        let viewed = self.views.len();
        let mut source = self.relation(schema, &ident.value, tokens, scope)?;
        if let Some(alias) = alias {
            self.views[viewed..].iter_mut().for_each(|view| view.has_alias = true);
            source.alias.clone_from(&alias.name.value);
            if !alias.columns.is_empty() {
                source.columns = None;
                self.every_column = true;
            }
            if let Some(mention) = source.mention {
                self.mentions[mention].alias.clone_from(&alias.name.value);
                self.mentions[mention].has_alias = true;
                self.mentions[mention].renamed = !alias.columns.is_empty();
            }
        }
        Ok(source)
    }

    /// Looks a relation up, and notes it if it is one of the catalog's.
    fn relation(
        &mut self,
        schema: Option<&str>,
        name: &str,
        tokens: Option<(usize, usize)>,
        scope: usize,
    ) -> Result<Source, SqlError> {
        let unknown = Source { alias: name.to_owned(), ..Source::default() };
        if schema.is_none() && self.ctes.iter().any(|names| names.contains(name)) {
            return Ok(unknown);
        }
        let key = table_key(schema.unwrap_or("public"), name);
        if let Some((key, table)) = self.schema.tables.get_key_value(&key) {
            self.mentions.push(Mention::of(table, key, name.to_owned(), scope, tokens));
            let columns = table.columns.iter().map(|column| column.name.clone()).collect();
            return Ok(Source { mention: Some(self.mentions.len() - 1), columns: Some(columns), ..unknown });
        }
        if self.schema.views.contains_key(&key) {
            self.views.push(Viewed { key, name: name.to_owned(), tokens, has_alias: false });
            return Ok(unknown);
        }
        self.unknown = true;
        Ok(unknown)
    }

    // ---- expressions ----

    /// Reads all expressions of a node, and the subqueries in them.
    pub fn exprs(&mut self, node: &impl Visit, scope: Option<usize>) -> Result<(), SqlError> {
        let found = Found::of(node);
        for function in &found.functions {
            self.function_called(function_name(function).map(str::to_owned), Some(function));
            self.outer_aggregate |= scope.is_some_and(|scope| self.is_of_outer_rows(function, scope));
        }
        for column in &found.columns {
            self.whole_row(column, scope);
        }
        found.queries.iter().try_for_each(|query| self.query(query, scope).map(|_| ()))
    }

    /// Whether a call in `scope` is an aggregate of nothing but columns of scopes around it.
    fn is_of_outer_rows(&self, function: &Function, scope: usize) -> bool {
        let level = &self.scopes[scope];
        let own = |column: &Expr| {
            let Some((qualifier, name)) = column_name(column) else { return true };
            level.sources.iter().any(|source| match qualifier {
                Some(qualifier) => source.alias == qualifier.value,
                None => {
                    source.columns.as_ref().is_none_or(|columns| columns.contains(&name.value))
                        || source.alias == name.value
                }
            })
        };
        let aggregate = function.over.is_none() && function_name(function).is_some_and(functions::is_aggregate);
        let columns = Found::of(&function.args).columns;
        level.parent.is_some() && aggregate && !columns.is_empty() && !columns.iter().any(own)
    }

    /// A table's name where a column's is expected stands for its rows.
    fn whole_row(&mut self, column: &Expr, scope: Option<usize>) {
        let Expr::Identifier(ident) = column else {
            self.every_column |= !matches!(column, Expr::CompoundIdentifier(_));
            return;
        };
        let mut at = scope;
        while let Some(scope) = at {
            self.every_column |= self.scopes[scope].sources.iter().any(|source| source.alias == ident.value);
            at = self.scopes[scope].parent;
        }
    }

    pub fn function_called(&mut self, name: Option<String>, call: Option<&Function>) {
        let name = name.unwrap_or_default();
        let purity = functions::purity(&name);
        self.purity = self.purity.max(purity);
        if purity > Purity::Stable {
            self.impure.insert(name.clone());
        }
        let local = || call.is_some_and(|call| call.args.to_string().to_ascii_lowercase().ends_with("true)"));
        self.pins |= functions::pins(&name) && !(name == "set_config" && local());
    }

    /// What a column's name stands for in `scope`.
    pub fn resolve(&self, scope: usize, qualifier: Option<&Ident>, name: &Ident) -> Resolved {
        let mut at = Some(scope);
        while let Some(here) = at {
            let level = &self.scopes[here];
            let of = |source: &Source| match source.mention.filter(|_| source.columns.is_some()) {
                Some(mention) => Resolved::Mention { mention, own: here == scope },
                None => Resolved::Other,
            };
            let has = |source: &&Source| match (qualifier, &source.columns) {
                (Some(qualifier), _) => source.alias == qualifier.value,
                (None, Some(columns)) => columns.contains(&name.value),
                (None, None) => false,
            };
            let found: Vec<&Source> = level.sources.iter().filter(has).collect();
            match found.as_slice() {
                [source] => return of(source),
                [first, ..] if qualifier.is_none() && level.merged.contains(&name.value) && !level.odd => {
                    return of(first);
                }
                [_, ..] => return Resolved::Other,
                [] if qualifier.is_none() && level.sources.iter().any(|source| source.columns.is_none()) => {
                    return Resolved::Other;
                }
                [] => at = level.parent,
            }
        }
        Resolved::Other
    }

    // ---- writes ----

    /// The table that is written to. A view is one if all that it reads is on one shard.
    fn target_table(
        &mut self,
        name: &ObjectName,
        alias: Option<&TableAlias>,
        scope: usize,
    ) -> Result<Source, SqlError> {
        let viewed = self.views.len();
        let source = self.table(name, alias, scope)?;
        let Some(view) = self.views.drain(viewed..).next() else { return Ok(source) };
        let place = views::shard_of(self.schema, &view.key);
        let Some((key, table)) = place.and_then(|(table, _)| self.schema.tables.get_key_value(&table)) else {
            return Err(SqlError::unsupported(format!(
                "{} is a view of rows that are not all on one shard, and can't be written to",
                view.name
            ))
            .hint("write to its table"));
        };
        self.mentions.push(Mention::of(table, key, source.alias.clone(), scope, view.tokens));
        Ok(Source { mention: Some(self.mentions.len() - 1), ..source })
    }

    fn target(&mut self, source: Source, alias: Option<&str>, scope: usize) -> Option<usize> {
        self.targets += 1;
        self.writes = true;
        let mention = source.mention;
        if let Some(mention) = mention {
            self.mentions[mention].target = true;
        }
        let alias = alias.map_or(source.alias, str::to_owned);
        if let Some(mention) = mention {
            self.mentions[mention].alias.clone_from(&alias);
        }
        self.scopes[scope].sources.push(Source { alias, ..source });
        mention
    }

    fn insert(&mut self, insert: &Insert, parent: Option<usize>) -> Result<usize, SqlError> {
        let TableObject::TableName(name) = &insert.table else {
            return Err(SqlError::unsupported("INSERT into something that is no table is not understood"));
        };
        let scope = self.open(None);
        let source = self.target_table(name, None, scope)?;
        let alias = insert.table_alias.as_ref().map(|alias| alias.alias.value.as_str());
        let target = self.target(source, alias, scope);
        let values = insert.source.as_ref().and_then(|source| match source.body.as_ref() {
            SetExpr::Values(values) if source.with.is_none() => Some(values),
            _ => None,
        });
        if let Some(target) = target.filter(|target| self.mentions[*target].is_sharded()) {
            self.inserted(insert, target, values);
        }
        if let Some(source) = &insert.source {
            self.query(source, parent)?;
        }
        self.scopes[scope].sources.push(Source {
            alias: "excluded".to_owned(),
            columns: Some(Vec::new()),
            ..Source::default()
        });
        self.exprs(&insert.returning, Some(scope))?;
        if let Some(on) = &insert.on {
            self.exprs(on, Some(scope))?;
            if let OnInsert::OnConflict(conflict) = on
                && let OnConflictAction::DoUpdate(update) = &conflict.action
            {
                self.assigned(&update.assignments, target)?;
            }
        }
        self.every_column |= insert.returning.is_some();
        Ok(scope)
    }

    /// The keys of the rows of an INSERT, as the mention's.
    fn inserted(&mut self, insert: &Insert, target: usize, values: Option<&Values>) {
        match super::write::inserted_keys(insert, self.mentions[target].table, values) {
            Ok(keys) => {
                self.mentions[target].stored = keys.is_some();
                self.mentions[target].keys = keys;
            }
            Err(error) => self.keyless = Some(error),
        }
    }

    /// Refuses assignments to the shard key.
    fn assigned(&self, assignments: &[sqlparser::ast::Assignment], target: Option<usize>) -> Result<(), SqlError> {
        use sqlparser::ast::AssignmentTarget as Target;
        let Some((key, _)) = target.and_then(|target| self.mentions[target].table.shard_key()) else { return Ok(()) };
        let is_key =
            |name: &ObjectName| name.0.first().and_then(|part| part.as_ident()).is_some_and(|ident| ident.value == key);
        let sets = assignments.iter().any(|assignment| match &assignment.target {
            Target::ColumnName(name) => is_key(name),
            Target::Tuple(names) => names.iter().any(is_key),
        });
        if sets {
            return Err(SqlError::unsupported(format!(
                "a row's shard key ({key}) can't be changed: the row would belong to another shard"
            ))
            .hint("delete the row and insert it with its new key, in one transaction"));
        }
        Ok(())
    }

    fn update(&mut self, update: &Update, parent: Option<usize>) -> Result<usize, SqlError> {
        let scope = self.open(parent);
        let TableFactor::Table { name, alias, args: None, .. } = &update.table.relation else {
            return Err(SqlError::unsupported("UPDATE of something that is no table is not understood"));
        };
        if !update.table.joins.is_empty() {
            return Err(SqlError::syntax("UPDATE has no JOIN in PostgreSQL").hint("use UPDATE … FROM"));
        }
        let source = self.target_table(name, alias.as_ref(), scope)?;
        let alias = alias.as_ref().map(|alias| alias.name.value.as_str());
        let target = self.target(source, alias, scope);
        self.assigned(&update.assignments, target)?;
        let mut conditions = match &update.from {
            Some(UpdateTableFromKind::AfterSet(from) | UpdateTableFromKind::BeforeSet(from)) => {
                self.from(from, scope)?
            }
            None => Vec::new(),
        };
        self.exprs(&update.assignments, Some(scope))?;
        self.exprs(&update.returning, Some(scope))?;
        conditions.extend(update.selection.iter().map(Condition::of_where));
        self.conditions(&conditions, scope)?;
        Ok(scope)
    }

    fn delete(&mut self, delete: &Delete, parent: Option<usize>) -> Result<usize, SqlError> {
        let scope = self.open(parent);
        let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
        let [TableWithJoins { relation: TableFactor::Table { name, alias, args: None, .. }, joins }] = from.as_slice()
        else {
            return Err(
                SqlError::unsupported("this DELETE is not understood").hint("write DELETE FROM table USING … WHERE …")
            );
        };
        if !joins.is_empty() || !delete.tables.is_empty() {
            return Err(SqlError::syntax("DELETE has no JOIN in PostgreSQL").hint("use DELETE … USING"));
        }
        let source = self.target_table(name, alias.as_ref(), scope)?;
        let alias = alias.as_ref().map(|alias| alias.name.value.as_str());
        self.target(source, alias, scope);
        let mut conditions = match &delete.using {
            Some(using) => self.from(using, scope)?,
            None => Vec::new(),
        };
        self.exprs(&delete.returning, Some(scope))?;
        conditions.extend(delete.selection.iter().map(Condition::of_where));
        self.conditions(&conditions, scope)?;
        Ok(scope)
    }
}

pub(super) fn not_a_table(word: &Ident) -> SqlError {
    SqlError::unsupported(format!("{} in FROM is not understood", word.value.to_uppercase())).hint("leave it out")
}

/// Whether `expr` is DEFAULT, which is a word like any other to the parser.
pub(super) fn is_default(expr: &Expr) -> bool {
    matches!(expr, Expr::Identifier(ident) if ident.quote_style.is_none() && ident.value == "default")
}

/// `0A000` for a system column, if the tokens name one: the rows of fetched tables have other ones.
pub(super) fn refuse_system_columns(tokens: &Tokens, from: usize, to: usize) -> Result<(), SqlError> {
    let system = |name: &str| matches!(name, "ctid" | "xmin" | "xmax" | "cmin" | "cmax" | "tableoid");
    let found = (from..to).find(|at| tokens.name(*at).is_some_and(|name| system(&name)));
    match found {
        Some(at) => Err(SqlError::new(
            Code::Unsupported,
            format!("{} says nothing about rows of several shards", tokens.str(at)),
        )
        .hint("name the row by its primary key, or give the shard key so that one shard has the answer")
        .at(tokens.text, tokens.start(at))),
        None => Ok(()),
    }
}
