//! Which tables a statement mentions, where, and what its conditions say about their keys.
//!
//! Names are looked up as SQLite does: innermost SELECT first, CTEs before tables. What the conditions say about the
//! keys of each mention is read by `keys`, which this module calls for every SELECT.

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{KeyType, Table, TableKind, Tables};
use sqlparser::ast::{
    Expr, Function, FunctionArg, GroupByExpr, Ident, Join, JoinConstraint, JoinOperator, LimitClause, NamedWindowExpr,
    ObjectName, OrderByKind, Query, Select, SelectItem, SetExpr, TableFactor, TableWithJoins, With,
};

use crate::clauses::{Clauses, Span, join_conditions};
use crate::ddl::not_modified;
use crate::error::{Code, SqlError};
use crate::functions;
use crate::keys::{Condition, Reach};
use crate::lex::{Kind, Tokens};
use crate::params::Slots;
use crate::parse::token_of;
use crate::statement::Schema;
use crate::tree::{Constant, Part, argument, last_name, lower, order_parts, parts, window_parts};

/// One mention of a table of the catalog.
#[derive(Clone, Debug)]
pub(crate) struct Occurrence {
    /// The table's name in lower case.
    pub table: String,
    /// What columns are qualified with, in lower case.
    pub alias: String,
    /// The token of the table's name, and the one after the mention (`main.t AS x`).
    pub tokens: Span,
    /// On the side of an outer join that gets NULLs, or where Pleat doesn't look closer.
    pub nullable: bool,
    /// The keys that matter; `None`: all.
    pub keys: Option<Vec<Constant>>,
    /// Occurrences whose keys limit this one's.
    pub tied_to: BTreeSet<usize>,
    /// Conditions (as tokens) that any row of this occurrence must meet to matter, and that a shard can check.
    pub filters: Vec<Span>,
}

/// One source in a FROM.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub alias: String,
    pub occurrence: Option<usize>,
    /// `None`: not known (a subquery, a CTE).
    pub columns: Option<Vec<String>>,
}

/// The names that a SELECT's expressions can use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    pub parent: Option<usize>,
    pub sources: Vec<Source>,
    /// RIGHT, FULL or nested joins: only WHERE is looked at.
    pub odd: bool,
}

/// What a column's name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolved {
    /// A column of this occurrence; `own`: of the scope itself, not of one around it.
    Occurrence { occurrence: usize, own: bool },
    /// A column of something else, or not certain.
    Other,
}

/// Everything that routing needs to know about a statement.
#[derive(Debug)]
pub(crate) struct Analysis<'a> {
    pub schema: Schema<'a>,
    pub tables: &'a Tables,
    pub tokens: &'a Tokens<'a>,
    pub slots: &'a Slots,
    pub occurrences: Vec<Occurrence>,
    pub scopes: Vec<Scope>,
    /// The scope of each SELECT, by the token of its keyword.
    pub scope_of_select: BTreeMap<usize, usize>,
    /// `*` or a NATURAL join appears: every column counts.
    pub every_column: bool,
    pub rowid: Option<usize>,
    /// A function that answers differently at each call.
    pub volatile: bool,
    /// Subqueries, CTEs or table functions appear.
    pub opaque: bool,
    columns_seen: Vec<Ident>,
    aliases: BTreeSet<String>,
    ctes: Vec<BTreeSet<String>>,
}

impl<'a> Analysis<'a> {
    pub fn new(schema: Schema<'a>, tokens: &'a Tokens<'a>, slots: &'a Slots) -> Self {
        Analysis {
            schema,
            tables: schema.tables,
            tokens,
            slots,
            occurrences: Vec::new(),
            scopes: Vec::new(),
            scope_of_select: BTreeMap::new(),
            every_column: false,
            rowid: None,
            volatile: false,
            opaque: false,
            columns_seen: Vec::new(),
            aliases: BTreeSet::new(),
            ctes: Vec::new(),
        }
    }

    pub fn table(&self, occurrence: usize) -> &'a Table {
        &self.tables[&self.occurrences[occurrence].table]
    }

    /// Carries keys along the ties until nothing changes, and refuses columns that no table has.
    pub fn finish(&mut self) -> Result<(), SqlError> {
        loop {
            let learned = (0..self.occurrences.len()).find_map(|at| {
                let occurrence = &self.occurrences[at];
                let from = occurrence.tied_to.iter().find_map(|other| self.occurrences[*other].keys.clone());
                (occurrence.keys.is_none()).then_some(())?;
                Some((at, from?))
            });
            match learned {
                Some((at, keys)) => self.occurrences[at].keys = Some(keys),
                None => break,
            }
        }
        self.check_columns()
    }

    /// A name that no mentioned table has as a column and that is nowhere given as an alias. Only asked
    /// when all sources are tables; otherwise SQLite itself will find it.
    fn check_columns(&self) -> Result<(), SqlError> {
        if self.opaque {
            return Ok(());
        }
        let known = |name: &str| {
            self.aliases.contains(name)
                || self
                    .scopes
                    .iter()
                    .flat_map(|scope| &scope.sources)
                    .flat_map(|source| source.columns.iter().flatten())
                    .any(|column| column == name)
        };
        match self.columns_seen.iter().find(|ident| !known(&lower(ident)) && !is_rowid(&lower(ident))) {
            None => Ok(()),
            Some(ident) => Err(self.unknown_column(ident, None)),
        }
    }

    fn unknown_column(&self, ident: &Ident, table: Option<&Table>) -> SqlError {
        let mut error = SqlError::new(
            Code::UnknownColumn,
            match table {
                Some(table) => format!("table {} has no column {}", table.name, ident.value),
                None => format!("no such column: {}", ident.value),
            },
        );
        error = match table {
            Some(table) => error.hint(format!(
                "its columns: {}",
                table.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ")
            )),
            None => error.hint("a value in text goes in single quotes; double quotes are for names"),
        };
        self.point(error, ident)
    }

    fn point(&self, error: SqlError, ident: &Ident) -> SqlError {
        match token_of(ident.span) {
            Some(token) => error.at(self.tokens.text, self.tokens.offset(token)),
            None => error,
        }
    }

    // ---- queries ----

    pub fn query(&mut self, query: &Query, parent: Option<usize>) -> Result<(), SqlError> {
        let foreign = query.fetch.is_some()
            || !query.locks.is_empty()
            || query.for_clause.is_some()
            || query.settings.is_some()
            || query.format_clause.is_some()
            || !query.pipe_operators.is_empty();
        if foreign {
            return Err(SqlError::syntax("FETCH, FOR UPDATE and other dialects' clauses are not SQLite's")
                .hint("use LIMIT; reads need no locks"));
        }
        if let Some(with) = &query.with {
            self.with(with, parent)?;
        }
        let scope = self.body(&query.body, parent)?;
        if let Some(order) = &query.order_by {
            let OrderByKind::Expressions(terms) = &order.kind else {
                return Err(SqlError::syntax("ORDER BY ALL is not SQLite's"));
            };
            self.parts(order_parts(terms), scope)?;
        }
        match &query.limit_clause {
            Some(LimitClause::LimitOffset { limit, offset, .. }) => {
                let offset = offset.as_ref().map(|offset| &offset.value);
                self.parts(limit.iter().chain(offset).map(Part::Expr), scope)?;
            }
            Some(LimitClause::OffsetCommaLimit { offset, limit }) => {
                self.parts([offset, limit].map(Part::Expr), scope)?
            }
            None => {}
        }
        if query.with.is_some() {
            self.ctes.pop();
        }
        Ok(())
    }

    /// SQLite lets every CTE of a WITH see all the others, and itself. They stay visible until the end of the query
    /// (which takes them away), or of the write that they stand before.
    pub fn with(&mut self, with: &With, parent: Option<usize>) -> Result<(), SqlError> {
        self.opaque = true;
        self.ctes.push(with.cte_tables.iter().map(|cte| lower(&cte.alias.name)).collect());
        for cte in &with.cte_tables {
            self.query(&cte.query, parent)?;
        }
        Ok(())
    }

    /// Reads a body; gives the scope that its ORDER BY sees.
    fn body(&mut self, body: &SetExpr, parent: Option<usize>) -> Result<usize, SqlError> {
        match body {
            SetExpr::Select(select) => self.select(select, parent),
            SetExpr::Query(query) => {
                self.query(query, parent)?;
                Ok(self.empty_scope(parent))
            }
            SetExpr::SetOperation { left, right, .. } => {
                let scope = self.body(left, parent)?;
                self.body(right, parent)?;
                Ok(scope)
            }
            SetExpr::Values(values) => {
                let scope = self.empty_scope(parent);
                for row in &values.rows {
                    self.parts(row.content.iter().map(Part::Expr), scope)?;
                }
                Ok(scope)
            }
            _ => Err(SqlError::unsupported("a statement inside WITH that writes is not supported")
                .hint("put the CTE into a subquery of the INSERT, UPDATE or DELETE")),
        }
    }

    fn empty_scope(&mut self, parent: Option<usize>) -> usize {
        self.scopes.push(Scope { parent, ..Scope::default() });
        self.scopes.len() - 1
    }

    fn select(&mut self, select: &Select, parent: Option<usize>) -> Result<usize, SqlError> {
        refuse_foreign_clauses(select)?;
        let scope = self.empty_scope(parent);
        let start = token_of(select.select_token.0.span);
        let clauses = start.map(|start| Clauses::of(self.tokens, start, self.tokens.len())).unwrap_or_default();
        if let Some(start) = start {
            self.scope_of_select.insert(start, scope);
        }
        let mut conditions = self.from(&select.from, scope, &clauses)?;
        if let Some(filter) = &select.selection {
            conditions.push(Condition { expr: filter, tokens: clauses.filter, reach: Reach::All });
        }
        self.conditions(&conditions, scope)?;
        self.items(select, scope)?;
        let GroupByExpr::Expressions(groups, _) = &select.group_by else {
            return Err(SqlError::syntax("GROUP BY ALL is not SQLite's"));
        };
        self.parts(groups.iter().chain(&select.having).map(Part::Expr), scope)?;
        for window in &select.named_window {
            if let NamedWindowExpr::WindowSpec(spec) = &window.1 {
                self.parts(window_parts(spec), scope)?;
            }
        }
        Ok(scope)
    }

    fn items(&mut self, select: &Select, scope: usize) -> Result<(), SqlError> {
        for item in &select.projection {
            match item {
                SelectItem::UnnamedExpr(expr) => self.expr(expr, scope)?,
                SelectItem::ExprWithAlias { expr, alias } => {
                    self.aliases.insert(lower(alias));
                    self.expr(expr, scope)?;
                }
                SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => self.every_column = true,
                SelectItem::ExprWithAliases { .. } => return Err(SqlError::syntax("an expression has one alias")),
            }
        }
        Ok(())
    }

    // ---- sources ----

    fn from<'q>(
        &mut self,
        from: &'q [TableWithJoins],
        scope: usize,
        clauses: &Clauses,
    ) -> Result<Vec<Condition<'q>>, SqlError> {
        let spans = clauses.from.map(|span| join_conditions(self.tokens, span)).unwrap_or_default();
        let mut spans = spans.into_iter();
        let mut conditions = Vec::new();
        for tree in from {
            self.factor(&tree.relation, scope, false)?;
            for join in &tree.joins {
                self.join(join, scope, &mut spans, &mut conditions)?;
            }
        }
        if self.scopes[scope].odd {
            // Only WHERE may be trusted, and nothing may be filtered early.
            for source in self.scopes[scope].sources.clone() {
                if let Some(at) = source.occurrence {
                    self.occurrences[at].nullable = true;
                    self.occurrences[at].tied_to.clear();
                }
            }
            for condition in &conditions {
                let condition: &Condition = condition;
                self.expr(condition.expr, scope)?;
            }
            conditions.clear();
        }
        Ok(conditions)
    }

    fn join<'q>(
        &mut self,
        join: &'q Join,
        scope: usize,
        spans: &mut impl Iterator<Item = Span>,
        conditions: &mut Vec<Condition<'q>>,
    ) -> Result<(), SqlError> {
        use JoinOperator as J;
        let (constraint, left) = match &join.join_operator {
            J::Join(c) | J::Inner(c) | J::CrossJoin(c) => (c, false),
            J::Left(c) | J::LeftOuter(c) => (c, true),
            J::Right(c) | J::RightOuter(c) | J::FullOuter(c) => {
                self.scopes[scope].odd = true;
                (c, false)
            }
            _ => return Err(SqlError::syntax("this kind of join is not SQLite's")),
        };
        let before = self.scopes[scope].sources.len();
        self.factor(&join.relation, scope, left)?;
        let right = self.scopes[scope].sources.get(before).and_then(|source| source.occurrence);
        match constraint {
            JoinConstraint::On(expr) => {
                let reach = if left { Reach::Right(right) } else { Reach::All };
                conditions.push(Condition { expr, tokens: spans.next(), reach });
            }
            JoinConstraint::Using(columns) => {
                for column in columns {
                    self.using(&last_name(column), scope, before, right, left);
                }
            }
            JoinConstraint::Natural => {
                self.every_column = true;
                let shared = right
                    .map(|right| self.table(right))
                    .and_then(|table| table.shard_key())
                    .map(|(key, _)| key.to_ascii_lowercase());
                if let Some(key) = shared {
                    self.using(&key, scope, before, right, left);
                }
            }
            JoinConstraint::None => {}
        }
        Ok(())
    }

    /// `USING (column)`: ties the right table to the first table on the left that has the column.
    fn using(&mut self, column: &str, scope: usize, before: usize, right: Option<usize>, left_join: bool) {
        let sources = &self.scopes[scope].sources;
        if sources[..before].iter().any(|source| source.columns.is_none()) {
            return;
        }
        let has = |source: &&Source| source.columns.iter().flatten().any(|name| name == column);
        let left = sources[..before].iter().find(has).and_then(|source| source.occurrence);
        if let (Some(left), Some(right)) = (left, right) {
            self.tie(left, right, column, column, left_join);
        }
    }

    /// Notes `left.a = right.b` when both are the keys of their tables and compare as keys do.
    fn tie(&mut self, left: usize, right: usize, a: &str, b: &str, one_way: bool) {
        let (Some((left_key, left_type)), Some((right_key, right_type))) =
            (self.table(left).shard_key(), self.table(right).shard_key())
        else {
            return;
        };
        if left_type == right_type
            && left_key.eq_ignore_ascii_case(a)
            && right_key.eq_ignore_ascii_case(b)
            && left != right
        {
            self.occurrences[right].tied_to.insert(left);
            if !one_way {
                self.occurrences[left].tied_to.insert(right);
            }
        }
    }

    fn factor(&mut self, factor: &TableFactor, scope: usize, nullable: bool) -> Result<(), SqlError> {
        match factor {
            TableFactor::Table { name, alias, args, .. } => {
                let ident = alias.as_ref().map(|alias| &alias.name);
                match args {
                    Some(args) => self.table_function(name, ident.map(lower), &args.args, scope),
                    None => self.named_table(name, ident, scope, nullable),
                }
            }
            TableFactor::Derived { subquery, alias, lateral: false, .. } => {
                self.opaque = true;
                self.query(subquery, self.scopes[scope].parent)?;
                let alias = alias.as_ref().map_or_else(String::new, |alias| lower(&alias.name));
                self.scopes[scope].sources.push(Source { alias, occurrence: None, columns: None });
                Ok(())
            }
            TableFactor::NestedJoin { table_with_joins, alias: None } => {
                self.scopes[scope].odd = true;
                let nested = self.from(std::slice::from_ref(table_with_joins), scope, &Clauses::default())?;
                nested.iter().try_for_each(|condition| self.expr(condition.expr, scope))
            }
            _ => Err(SqlError::unsupported("this kind of source in FROM is not supported")
                .hint("use tables, subqueries, CTEs, json_each and json_tree")),
        }
    }

    fn table_function(
        &mut self,
        name: &ObjectName,
        alias: Option<String>,
        args: &[FunctionArg],
        scope: usize,
    ) -> Result<(), SqlError> {
        let function = last_name(name);
        let Some(columns) = functions::table_function(&function) else {
            return Err(internal_table(&function).unwrap_or_else(|| {
                SqlError::unsupported(format!("{function}() can't be used as a table"))
                    .hint("json_each and json_tree can; for a series use a recursive CTE")
            }));
        };
        self.opaque = true;
        self.parts(args.iter().filter_map(argument).map(Part::Expr), scope)?;
        let columns = Some(columns.iter().map(|column| (*column).to_owned()).collect());
        self.scopes[scope].sources.push(Source { alias: alias.unwrap_or(function), occurrence: None, columns });
        Ok(())
    }

    fn named_table(
        &mut self,
        name: &ObjectName,
        ident: Option<&Ident>,
        scope: usize,
        nullable: bool,
    ) -> Result<(), SqlError> {
        let table = last_name(name);
        let alias = ident.map_or_else(|| table.clone(), lower);
        if name.0.len() == 1 && self.ctes.iter().any(|names| names.contains(&table)) {
            self.scopes[scope].sources.push(Source { alias, occurrence: None, columns: None });
            return Ok(());
        }
        let found = self.find_table(name)?;
        let columns = Some(found.columns.iter().map(|column| column.name.to_ascii_lowercase()).collect());
        let occurrence = self.occurrences.len();
        self.occurrences.push(Occurrence {
            table,
            alias: alias.clone(),
            tokens: mention(name, ident),
            nullable,
            keys: None,
            tied_to: BTreeSet::new(),
            filters: Vec::new(),
        });
        self.scopes[scope].sources.push(Source { alias, occurrence: Some(occurrence), columns });
        Ok(())
    }

    /// A scope with `table` (of the catalog) as its first source.
    pub fn scope_with(&mut self, name: &ObjectName, alias: Option<&Ident>) -> Result<usize, SqlError> {
        let scope = self.empty_scope(None);
        self.named_table(name, alias, scope, false)?;
        Ok(scope)
    }

    /// Adds the sources of an `UPDATE … FROM`.
    pub fn more_sources(&mut self, from: &[TableWithJoins], scope: usize) -> Result<(), SqlError> {
        let conditions = self.from(from, scope, &Clauses::default())?;
        self.conditions(&conditions, scope)
    }

    /// The catalog's table called `name`.
    pub fn find_table(&self, name: &ObjectName) -> Result<&'a Table, SqlError> {
        let ident = name.0.last().and_then(|part| part.as_ident());
        let error = |error: SqlError| ident.map_or(error.clone(), |ident| self.point(error, ident));
        if name.0.len() > 2 || (name.0.len() == 2 && name.0[0].as_ident().is_none_or(|schema| lower(schema) != "main"))
        {
            return Err(error(SqlError::unsupported("there is one schema, main").hint("leave the schema out")));
        }
        let table = last_name(name);
        if let Some(found) = self.tables.get(&table) {
            return Ok(found);
        }
        let missing = || match self.schema.views.get(&table) {
            Some(view) => not_modified(view),
            None => unknown_table(&table),
        };
        Err(error(internal_table(&table).unwrap_or_else(missing)))
    }

    // ---- expressions ----

    pub fn parts<'q>(&mut self, parts: impl IntoIterator<Item = Part<'q>>, scope: usize) -> Result<(), SqlError> {
        parts.into_iter().try_for_each(|part| match part {
            Part::Expr(expr) => self.expr(expr, scope),
            Part::Query(query) => {
                self.opaque = true;
                self.query(query, Some(scope))
            }
        })
    }

    pub fn expr(&mut self, expr: &Expr, scope: usize) -> Result<(), SqlError> {
        match expr {
            Expr::Identifier(ident) => {
                self.note_rowid(ident, None, scope);
                self.columns_seen.push(ident.clone());
            }
            Expr::CompoundIdentifier(idents) => self.qualified(idents, scope)?,
            Expr::Function(function) => self.function(function)?,
            _ => {}
        }
        self.parts(parts(expr)?, scope)
    }

    fn function(&mut self, function: &Function) -> Result<(), SqlError> {
        let name = last_name(&function.name);
        if name.starts_with("pleat_") {
            return Err(
                SqlError::unsupported(format!("{name}() is Pleat's own")).hint("EXPLAIN shows where a statement runs")
            );
        }
        self.volatile |= functions::is_volatile(&name);
        Ok(())
    }

    fn qualified(&mut self, idents: &[Ident], scope: usize) -> Result<(), SqlError> {
        let [.., qualifier, column] = idents else { return Ok(()) };
        self.note_rowid(column, Some(&lower(qualifier)), scope);
        let Some(source) = self.source(scope, &lower(qualifier)) else { return Ok(()) };
        let name = lower(column);
        let missing = source.columns.as_ref().is_some_and(|columns| !columns.contains(&name));
        match source.occurrence {
            Some(occurrence) if missing && !is_rowid(&name) => {
                Err(self.unknown_column(column, Some(self.table(occurrence))))
            }
            _ => Ok(()),
        }
    }

    fn note_rowid(&mut self, ident: &Ident, qualifier: Option<&str>, scope: usize) {
        let name = lower(ident);
        if is_rowid(&name) && !self.aliases.contains(&name) && self.resolve(scope, qualifier, &name) == Resolved::Other
        {
            self.rowid = token_of(ident.span).or(Some(0));
        }
    }

    fn source(&self, scope: usize, alias: &str) -> Option<&Source> {
        let mut at = Some(scope);
        while let Some(scope) = at {
            if let Some(found) = self.scopes[scope].sources.iter().find(|source| source.alias == alias) {
                return Some(found);
            }
            at = self.scopes[scope].parent;
        }
        None
    }

    /// What `qualifier.column` means in `scope`, as SQLite looks it up: innermost scope first.
    pub fn resolve(&self, scope: usize, qualifier: Option<&str>, column: &str) -> Resolved {
        let mut at = Some(scope);
        while let Some(here) = at {
            let level = &self.scopes[here];
            let mut matches = level.sources.iter().filter(|source| qualifier.is_none_or(|alias| alias == source.alias));
            let hit = matches
                .find(|source| source.columns.as_ref().is_none_or(|columns| columns.iter().any(|name| name == column)));
            if let Some(source) = hit {
                let uncertain = level.odd && qualifier.is_none();
                return match (source.occurrence, &source.columns) {
                    (Some(occurrence), Some(_)) if !uncertain => {
                        Resolved::Occurrence { occurrence, own: here == scope }
                    }
                    _ => Resolved::Other,
                };
            }
            at = level.parent;
        }
        Resolved::Other
    }

    /// The names in the statement's text, in lower case, where `counts` says so of the token: a column that is not among
    /// them is not needed.
    pub fn names(&self, counts: impl Fn(usize) -> bool) -> BTreeSet<String> {
        let is_name = |index: &usize| match self.tokens.kind(*index) {
            Some(Kind::Word | Kind::Name) => true,
            Some(Kind::Text) => index.checked_sub(1).is_some_and(|before| self.tokens.is_symbol(before, ".")),
            _ => false,
        };
        (0..self.tokens.len())
            .filter(|index| is_name(index) && counts(*index))
            .filter_map(|index| self.tokens.name(index))
            .map(|name| name.to_ascii_lowercase())
            .collect()
    }

    /// The type of an occurrence's key, when its table is sharded.
    pub fn key_type(&self, occurrence: usize) -> Option<KeyType> {
        match self.table(occurrence).kind {
            TableKind::Sharded { key_type, .. } => Some(key_type),
            TableKind::Reference | TableKind::Single { .. } => None,
        }
    }
}

/// The tokens of a mention of a table; empty when its place is not known.
fn mention(name: &ObjectName, alias: Option<&Ident>) -> Span {
    let token = |ident: &Ident| token_of(ident.span);
    let Some(table) = name.0.last().and_then(|part| part.as_ident()).and_then(token) else { return (0, 0) };
    (table, alias.and_then(token).unwrap_or(table) + 1)
}

/// The qualifier and the name of a column, in lower case.
pub(crate) fn column_name(expr: &Expr) -> Option<(Option<String>, String)> {
    match expr {
        Expr::Identifier(ident) => Some((None, lower(ident))),
        Expr::CompoundIdentifier(idents) => match idents.as_slice() {
            [.., qualifier, column] => Some((Some(lower(qualifier)), lower(column))),
            _ => None,
        },
        _ => None,
    }
}

pub(crate) fn is_rowid(name: &str) -> bool {
    matches!(name, "rowid" | "_rowid_" | "oid")
}

pub(crate) fn unknown_table(name: &str) -> SqlError {
    SqlError::new(Code::UnknownTable, format!("no such table: {name}"))
        .hint("GET /tables (or \\d in the shell) lists the tables")
}

/// Why a table of SQLite's or Pleat's own can't be read or written, if `name` is one.
pub(crate) fn internal_table(name: &str) -> Option<SqlError> {
    let name = name.to_ascii_lowercase();
    let internal = ["sqlite_", "pragma_", "__pleat_"].iter().any(|prefix| name.starts_with(prefix));
    internal.then(|| {
        SqlError::unsupported(format!("{name} describes one shard, not the cluster"))
            .hint("use GET /tables, or \\d in the shell")
    })
}

fn refuse_foreign_clauses(select: &Select) -> Result<(), SqlError> {
    let foreign = select.top.is_some()
        || select.into.is_some()
        || select.exclude.is_some()
        || !select.lateral_views.is_empty()
        || select.prewhere.is_some()
        || !select.connect_by.is_empty()
        || !select.cluster_by.is_empty()
        || !select.distribute_by.is_empty()
        || !select.sort_by.is_empty()
        || select.qualify.is_some()
        || select.value_table_mode.is_some();
    if foreign {
        return Err(SqlError::syntax("the SELECT has a clause that SQLite doesn't know")
            .hint("TOP, INTO, QUALIFY and the like belong to other databases"));
    }
    Ok(())
}
