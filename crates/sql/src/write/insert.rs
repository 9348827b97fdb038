//! INSERT: where its rows come from, what keys they have, and how they spread.

use pleat_cluster::{KeyType, Table, TableKind, Value};
use sqlparser::ast::{
    Expr, Insert, OnConflictAction, OnInsert, Query, Select, SelectItem, SetExpr, TableObject, Value as Literal,
};

use super::change::{check_reference, refuse_key_change, refuse_rollback, returning, rowid_refused};
use super::compose::Snippet;
use super::ids::{RowIds, id_column, may_be_given};
use super::recipe::read_rows;
use super::rows::{KeyColumn, RowsPlan, Text};
use super::same::{SamePlan, selected};
use super::statement::{Draft, Found, SpreadPlan, late_reads, single_unit};
use crate::error::{Code, SqlError};
use crate::lex::quote;
use crate::scope::{Resolved, column_name, internal_table, is_rowid};
use crate::spread::{Arm, arms};
use crate::tree::{Constant, Part, bare, last_name};

/// Reads an INSERT; `upserts` are all of its `ON CONFLICT` clauses.
pub(super) fn read<'a>(draft: &mut Draft<'a>, insert: &Insert, upserts: &[&OnInsert]) -> Result<Found<'a>, SqlError> {
    refuse_rollback(insert.or.as_ref())?;
    let table = written_table(draft, insert)?;
    draft.with(&table.name)?;
    let columns: Vec<String> = insert.columns.iter().map(last_name).collect();
    check_columns(table, &columns)?;
    let columns = if columns.is_empty() { written_columns(table) } else { columns };
    draft.analysis.opaque = true; // excluded.x and the table's own columns are looked up by SQLite
    let scope = draft.analysis.scopes.len();
    draft.analysis.scopes.push(crate::scope::Scope::default());
    let source = source(draft, insert, &columns, scope)?;
    key_is_there(table, &source, &columns)?;
    let late = draft.analysis.occurrences.len();
    upserts.iter().try_for_each(|on| upsert(draft, table, on, scope))?;
    returning(&mut draft.analysis, insert.returning.as_deref(), scope)?;
    draft.analysis.finish()?;
    if table.kind == TableKind::Reference {
        check_reference(draft, table)?;
        if let Source::Query(query) = &source {
            check_order(draft, table, query)?;
            check_width(table, &query.body)?;
        }
    }
    let target = Target { table, columns, late };
    match source {
        Source::Rows(rows) => target.values(draft, &rows),
        Source::Query(query) => target.query(draft, query),
    }
}

/// Where the rows come from.
enum Source<'q> {
    /// Rows of expressions; one without any for `DEFAULT VALUES`.
    Rows(Vec<&'q [Expr]>),
    Query(&'q Query),
}

/// The table to insert into.
struct Target<'a> {
    table: &'a Table,
    /// What the rows' values are for.
    columns: Vec<String>,
    /// The first occurrence in ON CONFLICT and RETURNING.
    late: usize,
}

fn written_table<'a>(draft: &Draft<'a>, insert: &Insert) -> Result<&'a Table, SqlError> {
    let TableObject::TableName(name) = &insert.table else {
        return Err(SqlError::syntax("rows are inserted into a table"));
    };
    if insert.overwrite || insert.partitioned.is_some() || !insert.assignments.is_empty() || insert.output.is_some() {
        return Err(
            SqlError::syntax("this form of INSERT is not SQLite's").hint("INSERT INTO table (columns) VALUES (…)")
        );
    }
    internal_table(&last_name(name)).map_or(Ok(()), Err)?;
    draft.analysis.find_table(name)
}

fn check_columns(table: &Table, columns: &[String]) -> Result<(), SqlError> {
    match columns.iter().find(|name| table.column(name).is_none()) {
        None => Ok(()),
        Some(name) if is_rowid(name) => Err(rowid_refused()),
        Some(name) => Err(SqlError::new(Code::UnknownColumn, format!("table {} has no column {name}", table.name))),
    }
}

fn written_columns(table: &Table) -> Vec<String> {
    table.columns.iter().filter(|column| !column.generated).map(|column| column.name.to_ascii_lowercase()).collect()
}

fn source<'q>(draft: &mut Draft, insert: &'q Insert, columns: &[String], scope: usize) -> Result<Source<'q>, SqlError> {
    let defaults = draft.analysis.tokens.is(draft.shape.source.0, "DEFAULT");
    let Some(query) = insert.source.as_deref().filter(|_| !defaults) else { return Ok(Source::Rows(vec![&[]])) };
    match &*query.body {
        SetExpr::Values(values) if query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none() => {
            let rows: Vec<&[Expr]> = values.rows.iter().map(|row| row.content.as_slice()).collect();
            for (at, row) in rows.iter().enumerate() {
                if row.len() != columns.len() {
                    let message = format!("row {} has {} values for {} columns", at + 1, row.len(), columns.len());
                    return Err(SqlError::syntax(message).hint("give each column one value"));
                }
                draft.analysis.parts(row.iter().map(Part::Expr), scope)?;
            }
            Ok(Source::Rows(rows))
        }
        _ => {
            draft.analysis.query(query, None)?;
            Ok(Source::Query(query))
        }
    }
}

/// Rows without a value for the key are only right for tables that have none, or whose key Pleat gives.
fn key_is_there(table: &Table, source: &Source, columns: &[String]) -> Result<(), SqlError> {
    let Some((key, _)) = table.shard_key() else { return Ok(()) };
    let defaults = matches!(source, Source::Rows(rows) if rows.iter().all(|row| row.is_empty()));
    let named = !defaults && columns.iter().any(|column| column.eq_ignore_ascii_case(key));
    if named || id_column(table).is_some_and(|id| id.eq_ignore_ascii_case(key)) {
        return Ok(());
    }
    if table.column(key).is_some_and(|column| column.has_default) {
        return Err(SqlError::unsupported(format!("the shard key {}.{key} can't be left to its default", table.name))
            .hint("give the key in the statement"));
    }
    let null = KeyColumn::of(table).map(|key| key.null());
    null.map_or(Ok(()), |error| Err(error.hint(format!("name {key} in the column list and give it a value"))))
}

fn upsert(draft: &mut Draft, table: &Table, on: &OnInsert, scope: usize) -> Result<(), SqlError> {
    let OnInsert::OnConflict(conflict) = on else {
        return Err(SqlError::syntax("ON DUPLICATE KEY is not SQLite's").hint("use ON CONFLICT (…) DO UPDATE SET …"));
    };
    let OnConflictAction::DoUpdate(update) = &conflict.action else { return Ok(()) };
    for assignment in &update.assignments {
        refuse_key_change(table, assignment)?;
        draft.analysis.expr(&assignment.value, scope)?;
    }
    update.selection.as_ref().map_or(Ok(()), |filter| draft.analysis.expr(filter, scope))
}

/// Rows are numbered in the order in which they are inserted, and copies must number alike.
fn check_order(draft: &Draft, table: &Table, query: &Query) -> Result<(), SqlError> {
    let ordered = query.order_by.is_some() || draft.analysis.occurrences.is_empty();
    if ordered {
        return Ok(());
    }
    Err(SqlError::unsupported(format!(
        "INSERT … SELECT into the reference table {} without ORDER BY could number its rows differently in each copy",
        table.name
    ))
    .hint("add an ORDER BY over a unique key"))
}

/// How many columns a `*` has may change before the statement has reached every copy.
fn check_width(table: &Table, body: &SetExpr) -> Result<(), SqlError> {
    let Ok(arms) = arms(body) else { return Ok(()) };
    let stars = |select: &Select| {
        let star = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
        select.projection.iter().any(star)
    };
    match arms.iter().any(|(_, arm)| matches!(arm, Arm::Select(select) if stars(select))) {
        false => Ok(()),
        true => Err(SqlError::unsupported(format!(
            "INSERT … SELECT * into the reference table {} could meet another number of columns in a copy",
            table.name
        ))
        .hint("name the columns in the SELECT")),
    }
}

impl<'a> Target<'a> {
    fn place(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.eq_ignore_ascii_case(name))
    }

    /// Whether ON CONFLICT and RETURNING read nothing but reference tables.
    fn check_late(&self, draft: &Draft) -> Result<(), SqlError> {
        match draft.only_references(self.late..draft.analysis.occurrences.len()) {
            true => Ok(()),
            false => Err(late_reads(self.table, "ON CONFLICT or RETURNING")),
        }
    }

    fn computed(&self, draft: &Draft) -> Result<SpreadPlan, SqlError> {
        self.check_late(draft)?;
        read_rows(draft, self.table, &self.columns).map(SpreadPlan::Computed)
    }

    fn found(self, rows: Option<RowsPlan>, spread: Result<SpreadPlan, SqlError>, must_spread: bool) -> Found<'a> {
        Found { table: self.table, rows, inserted: None, spread, must_spread }
    }

    fn values(self, draft: &Draft, rows: &[&[Expr]]) -> Result<Found<'a>, SqlError> {
        let singles = || SamePlan::singles(draft, single_unit(self.table)).map(SpreadPlan::Same);
        match &self.table.kind {
            TableKind::Reference => Ok(self.found(None, Ok(SpreadPlan::Reference), false)),
            TableKind::Single { .. } => {
                let spread = singles().map_or_else(|| self.computed(draft), Ok);
                Ok(self.found(None, spread, false))
            }
            TableKind::Sharded { .. } => {
                let Some(plan) = self.rows(draft, rows) else {
                    let spread = self.computed(draft);
                    return Ok(self.found(None, spread, true));
                };
                let own = draft.only_references(0..self.late);
                let spread = if own { self.check_late(draft).map(|()| SpreadPlan::Rows) } else { self.computed(draft) };
                Ok(self.found(Some(plan), spread, false))
            }
        }
    }

    /// The rows by their keys; `None` if a key or an id is an expression, whose value only SQLite can tell.
    fn rows(&self, draft: &Draft, rows: &[&[Expr]]) -> Option<RowsPlan> {
        let key = KeyColumn::of(self.table)?;
        let tokens = draft.analysis.tokens;
        let ids = self.ids(draft, rows)?;
        let id_is_key = ids.as_ref().is_some_and(|ids| ids.column.eq_ignore_ascii_case(&key.column));
        let key_place = self.place(&key.column);
        let key_of = |(at, row): (usize, &&[Expr])| match &ids {
            Some(ids) if id_is_key => Some(Constant::Slot(ids.base + at)),
            _ => constant(row.get(key_place?)?),
        };
        let keys: Vec<Constant> = rows.iter().enumerate().map(key_of).collect::<Option<_>>()?;
        let defaults = rows.iter().all(|row| row.is_empty());
        let id_place = ids.as_ref().and_then(|ids| self.place(&ids.column)).filter(|_| !defaults);
        let spans = if defaults { Vec::new() } else { draft.shape.rows(tokens) };
        let items: Vec<Vec<_>> = spans.into_iter().map(|row| crate::clauses::list(tokens, row)).collect();
        if !defaults
            && (items.len() != rows.len() || items.iter().zip(rows).any(|(items, row)| items.len() != row.len()))
        {
            return None;
        }
        let text = |at: usize| {
            let mut row = Snippet::default();
            if let Some(ids) = ids.as_ref().filter(|_| id_place.is_none()) {
                row.append(Snippet::slot(ids.base + at));
            }
            for (place, item) in items.get(at).into_iter().flatten().enumerate() {
                match ids.as_ref().filter(|_| id_place == Some(place)) {
                    Some(ids) => row.append(Snippet::slot(ids.base + at)),
                    None => row.append(Snippet::of(tokens, draft.analysis.slots, *item)),
                }
            }
            row
        };
        let rows = (0..rows.len()).map(text).collect();
        let added = ids.as_ref().filter(|_| id_place.is_none()).map(|ids| ids.column.clone());
        let text = Text { before: self.before(draft, added.as_deref(), defaults), rows, after: self.after(draft) };
        Some(RowsPlan::new(key, text, keys, ids))
    }

    /// The statement up to its rows; `added` is a column that it doesn't name.
    fn before(&self, draft: &Draft, added: Option<&str>, defaults: bool) -> Snippet {
        let (tokens, slots, shape) = (draft.analysis.tokens, draft.analysis.slots, &draft.shape);
        let Some(added) = added else { return Snippet::of(tokens, slots, (shape.span.0, shape.source.0)) };
        let end = shape.columns.map_or(shape.source.0, |columns| columns.0 - 1);
        let mut before = Snippet::of(tokens, slots, (shape.span.0, end));
        let columns = if defaults { &[] } else { self.columns.as_slice() };
        let columns: Vec<String> =
            std::iter::once(added).chain(columns.iter().map(String::as_str)).map(quote).collect();
        before.push(&format!("({})", columns.join(", ")));
        before
    }

    fn after(&self, draft: &Draft) -> Snippet {
        Snippet::of(draft.analysis.tokens, draft.analysis.slots, (draft.shape.upsert.0, draft.shape.span.1))
    }

    /// `Some(None)` when the table has no ids that Pleat gives; `None` when one is an expression.
    fn ids(&self, draft: &Draft, rows: &[&[Expr]]) -> Option<Option<RowIds>> {
        let Some(column) = id_column(self.table) else { return Some(None) };
        let said = |row: &&[Expr]| match self.place(column).and_then(|place| row.get(place)) {
            Some(expr) => constant(expr),
            None => Some(Constant::Value(Value::Null)),
        };
        let rows = rows.iter().map(said).collect::<Option<Vec<_>>>()?;
        Some(Some(RowIds {
            table: self.table.id,
            name: self.table.name.clone(),
            column: column.to_owned(),
            may_be_given: may_be_given(self.table),
            rows,
            base: draft.id_base,
        }))
    }

    fn query(self, draft: &Draft, query: &Query) -> Result<Found<'a>, SqlError> {
        let key = self.table.shard_key().map(|(key, key_type)| (self.place(key), key_type));
        let Some((place, key_type)) = key else {
            let spread = match self.table.kind {
                TableKind::Reference => Ok(SpreadPlan::Reference),
                _ => SamePlan::singles(draft, single_unit(self.table))
                    .map(SpreadPlan::Same)
                    .map_or_else(|| self.computed(draft), Ok),
            };
            return Ok(self.found(None, spread, false));
        };
        // Whether a row lacks an id, and which is the largest, only its value tells.
        let must_spread = id_column(self.table).is_some();
        let inserted = place.map_or(Inserted::Unknown, |place| selected_key(draft, &query.body, place, key_type));
        let same = match (&inserted, &*query.body) {
            (Inserted::From(driver), SetExpr::Select(select)) if !must_spread => {
                self.same(draft, query, select, *driver)
            }
            _ => None,
        };
        let keys = match inserted {
            Inserted::From(driver) => draft.analysis.occurrences[driver].keys.clone(),
            Inserted::Constant(constant) => Some(vec![constant]),
            Inserted::Unknown => None,
        };
        let spread = same.map_or_else(|| self.computed(draft), |same| Ok(SpreadPlan::Same(same)));
        Ok(Found { inserted: Some((key_type, keys)), ..self.found(None, spread, must_spread) })
    }

    fn same(&self, draft: &Draft, query: &Query, select: &Select, driver: usize) -> Option<SamePlan> {
        let plan = selected(draft, query, select, driver)?;
        self.check_late(draft).ok().map(|()| plan)
    }
}

/// Keys that an `INSERT … SELECT` takes from the rows that it reads.
enum Inserted {
    /// The keys of this occurrence.
    From(usize),
    Constant(Constant),
    Unknown,
}

/// What an `INSERT … SELECT` puts into the key, when that is plain to see.
fn selected_key(draft: &Draft, body: &SetExpr, place: usize, key_type: KeyType) -> Inserted {
    let analysis = &draft.analysis;
    let SetExpr::Select(select) = body else { return Inserted::Unknown };
    let scope =
        crate::parse::token_of(select.select_token.0.span).and_then(|token| analysis.scope_of_select.get(&token));
    let plain = |item: &SelectItem| matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. });
    let item = select.projection.get(place).filter(|_| select.projection[..place].iter().all(plain));
    let column = match (select.projection.as_slice(), item) {
        (_, Some(SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. })) => {
            if let Some(constant) = Constant::of(expr) {
                return Inserted::Constant(constant);
            }
            column_name(bare(expr))
        }
        ([SelectItem::Wildcard(_)], _) => scope.and_then(|scope| match analysis.scopes[*scope].sources.as_slice() {
            [source] => Some((None, source.columns.as_ref()?.get(place)?.clone())),
            _ => None,
        }),
        _ => None,
    };
    let found = scope
        .zip(column)
        .map(|(scope, (qualifier, name))| (analysis.resolve(*scope, qualifier.as_deref(), &name), name));
    let is_key = |occurrence: usize, name: &str| {
        let key = analysis.table(occurrence).shard_key();
        key.is_some_and(|(key, found)| key.eq_ignore_ascii_case(name) && found == key_type)
    };
    match found {
        Some((Resolved::Occurrence { occurrence, own: true }, name)) if is_key(occurrence, &name) => {
            Inserted::From(occurrence)
        }
        _ => Inserted::Unknown,
    }
}

/// The value that `expr` spells, TRUE and FALSE included.
fn constant(expr: &Expr) -> Option<Constant> {
    match bare(expr) {
        Expr::Value(value) => match &value.value {
            Literal::Boolean(truth) => Some(Constant::Value(Value::Integer(i64::from(*truth)))),
            _ => Constant::of(expr),
        },
        _ => Constant::of(expr),
    }
}
