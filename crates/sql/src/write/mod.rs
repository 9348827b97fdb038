//! Writes: where each row goes.
//!
//! A write must go to one place: the shard that owns all its units. The rows of an `INSERT … VALUES` say their keys
//! themselves; an UPDATE or DELETE is routed by the keys in its WHERE, as a read is (see `scope`), together with
//! all tables that its subqueries read. What can't be shown to stay with known keys is [`WriteTarget::Everywhere`]: right
//! on a cluster of one shard, refused by the caller on others. A write to reference tables goes to every shard.

mod ids;
mod spread;

use std::collections::BTreeSet;

use pleat_cluster::{KeyError, KeyType, PartitionId, ShardId, Table, TableKind, Value, partition_of};
use serde::{Deserialize, Serialize};
use sqlparser::ast::{
    Assignment, AssignmentTarget, Delete, Expr, FromTable, Insert, OnConflictAction, OnInsert, Query, SelectItem,
    SetExpr, SqliteOnConflict, Statement as Ast, TableFactor, TableObject, TableWithJoins, Update, UpdateTableFromKind,
    Value as Literal,
};

use crate::clauses::Span;
use crate::error::{Code, SqlError};
use crate::params::{Params, Slots};
use crate::read::{Bound, Template, Units, partitions};
use crate::scope::{Analysis, Resolved, column_name, internal_table, is_rowid};
use crate::tree::{Constant, Part, bare, last_name};

pub use ids::{Ids, IdsGiven, IdsWanted};
pub use spread::{ComputedWrite, KeyedWrite, RowsWrite, SpreadWrite};

/// A planned request of one or more writes, which happen together or not at all.
#[derive(Clone, Debug)]
pub struct WritePlan {
    statements: Vec<WriteStatement>,
    slots: Slots,
    tables: Vec<String>,
}

/// Where a write goes, and what is run there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WriteRoute {
    pub target: WriteTarget,
    pub statements: Vec<Bound>,
}

/// Where a write goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteTarget {
    /// The shard that owns all of these; [`several_shards`] if there is no such one. When there are none, no row can
    /// match, and any shard gives the right answer.
    Units(Units),
    /// Every shard: only reference tables are written and read.
    Reference,
    /// Rows that may be anywhere. Right only where one shard owns everything; otherwise [`several_shards`].
    /// `units` are those that are known.
    Everywhere { table: String, units: Units },
    /// Only [`WritePlan::spread`] can carry it out, on one shard too: what is written must be read first.
    Spread { table: String },
}

/// One write.
#[derive(Clone, Debug)]
struct WriteStatement {
    sql: Template,
    /// The written table, as declared.
    table: String,
    reference: bool,
    singles: Vec<(String, ShardId)>,
    /// The key of each inserted row.
    rows: Option<RowKeys>,
    /// The keys that matter of each sharded table that is read or changed; `None`: not known.
    mentions: Vec<(KeyType, Option<Vec<Constant>>)>,
}

#[derive(Clone, Debug)]
struct RowKeys {
    column: String,
    key_type: KeyType,
    keys: Vec<Constant>,
}

/// The refusal of a write whose rows are on several shards.
pub fn several_shards(table: &str) -> SqlError {
    SqlError::unsupported(format!("this write to {table} would touch several shards, or Pleat can't tell that it would not"))
        .hint("name the shard key of the rows in the statement, write one key at a time, or load rows with POST /tables/{table}/rows")
}

impl WritePlan {
    pub(crate) fn new(slots: &Slots, parts: Vec<(Vec<String>, WriteStatementPlan)>) -> Result<Self, SqlError> {
        let tables: BTreeSet<String> = parts.iter().flat_map(|(tables, _)| tables.clone()).collect();
        let statements: Vec<_> = parts.into_iter().map(|(_, statement)| statement.0).collect();
        let references = statements.iter().filter(|statement| statement.reference).count();
        if references > 0 && references < statements.len() {
            return Err(SqlError::unsupported("a request can't write to reference tables and to others together")
                .hint("send the writes to reference tables as a request of their own"));
        }
        Ok(WritePlan { statements, slots: slots.clone(), tables: tables.into_iter().collect() })
    }

    /// How many statements there are; answers come back one for each.
    pub fn statement_count(&self) -> usize {
        self.statements.len()
    }

    /// The catalog's tables that are written or read, by lower-case name.
    pub fn tables(&self) -> &[String] {
        &self.tables
    }

    /// The ids that rows leave out; one entry for each table. Ask before `route` and `spread`.
    pub fn ids_wanted(&self, params: &Params) -> Result<Vec<IdsWanted>, SqlError> {
        self.slots.bind(params)?;
        Ok(Vec::new())
    }

    /// The largest ids that rows give themselves; one entry for each table. Raise the counters before writing.
    pub fn ids_given(&self, params: &Params) -> Result<Vec<IdsGiven>, SqlError> {
        self.slots.bind(params)?;
        Ok(Vec::new())
    }

    /// How each statement is carried out over several shards. Not for [`WriteTarget::Reference`].
    pub fn spread(&self, params: &Params, partition_count: u32, ids: &Ids) -> Result<Vec<SpreadWrite>, SqlError> {
        let _ = (partition_count, ids);
        self.slots.bind(params)?;
        Err(several_shards(self.tables.first().map_or("", String::as_str)))
    }

    /// Whether a later statement must read first what an earlier one of the request writes. Then the statements of
    /// [`WritePlan::spread`] are only right one after the other inside a transaction, not planned ahead and prepared at once.
    pub fn is_stepwise(&self) -> bool {
        false
    }

    /// Where the write goes with these values, and with the ids that it wanted.
    pub fn route(&self, params: &Params, partition_count: u32, ids: &Ids) -> Result<WriteRoute, SqlError> {
        let _ = ids;
        let values = self.slots.bind(params)?;
        let statements = self.statements.iter().map(|statement| statement.sql.bind(&values)).collect();
        let target = self.target(&values, partition_count)?;
        Ok(WriteRoute { target, statements })
    }

    fn target(&self, values: &[Value], partition_count: u32) -> Result<WriteTarget, SqlError> {
        if self.statements.iter().all(|statement| statement.reference) {
            return Ok(WriteTarget::Reference);
        }
        let mut units = Units::default();
        let mut everywhere = None;
        for statement in &self.statements {
            let (found, complete) = statement.units(values, partition_count)?;
            units.add(found);
            if !complete && everywhere.is_none() {
                everywhere = Some(statement.table.clone());
            }
        }
        Ok(match everywhere {
            Some(table) => WriteTarget::Everywhere { table, units },
            None => WriteTarget::Units(units),
        })
    }
}

impl WriteStatement {
    /// The units that are known, and whether these are all.
    fn units(&self, values: &[Value], partition_count: u32) -> Result<(Units, bool), SqlError> {
        let mut units = Units { singles: self.singles.iter().cloned().collect(), ..Units::default() };
        if let Some(rows) = &self.rows {
            for (at, key) in rows.keys.iter().enumerate() {
                units.partitions.insert(rows.partition(&self.table, at, key, values, partition_count)?);
            }
        }
        let mut complete = true;
        for (key_type, keys) in &self.mentions {
            match keys.as_ref().and_then(|keys| partitions(keys, *key_type, values, partition_count)) {
                Some(found) => units.partitions.extend(found),
                None => complete = false,
            }
        }
        Ok((units, complete))
    }
}

impl RowKeys {
    fn partition(
        &self,
        table: &str,
        row: usize,
        key: &Constant,
        values: &[Value],
        count: u32,
    ) -> Result<PartitionId, SqlError> {
        let value = match key {
            Constant::Value(value) => value,
            Constant::Slot(slot) => values.get(*slot).unwrap_or(&Value::Null),
        };
        partition_of(value, self.key_type, count).map_err(|error| match error {
            KeyError::Null => {
                null_key(table, &self.column).hint(format!("row {} needs a value for {}", row + 1, self.column))
            }
            KeyError::Type { wanted, found } => SqlError::new(
                Code::KeyType,
                format!(
                    "row {}: the shard key {}.{} holds {wanted} values, not this {found}",
                    row + 1,
                    table,
                    self.column
                ),
            )
            .hint(format!("give {} as {wanted}", self.column)),
        })
    }
}

fn null_key(table: &str, column: &str) -> SqlError {
    SqlError::new(
        Code::NullKey,
        format!("the shard key {table}.{column} can't be NULL: every row needs one to have an owner"),
    )
}

// ---- planning ----

/// A planned write, to be put into a [`WritePlan`].
pub(crate) struct WriteStatementPlan(WriteStatement);

/// Plans one INSERT, UPDATE or DELETE; gives the tables that it names too.
pub(crate) fn plan_write(
    mut analysis: Analysis,
    ast: &Ast,
    span: Span,
    alone: bool,
) -> Result<(Vec<String>, WriteStatementPlan), SqlError> {
    let (table, rows, inserted) = match ast {
        Ast::Insert(insert) => insert_rows(&mut analysis, insert, span)?,
        Ast::Update(update) => (changed(&mut analysis, |analysis| update_scope(analysis, update))?, None, None),
        Ast::Delete(delete) => (changed(&mut analysis, |analysis| delete_scope(analysis, delete))?, None, None),
        _ => return Err(SqlError::syntax("an INSERT, UPDATE or DELETE was expected")),
    };
    analysis.finish()?;
    if table.kind == TableKind::Reference {
        check_reference(&analysis, table, span)?;
    }
    let mut mentions: Vec<_> = (0..analysis.occurrences.len())
        .filter_map(|at| Some((analysis.key_type(at)?, analysis.occurrences[at].keys.clone())))
        .collect();
    if let Some(inserted) = inserted {
        mentions.push(inserted.keys(&analysis));
    }
    let mut names: BTreeSet<String> = analysis.occurrences.iter().map(|occurrence| occurrence.table.clone()).collect();
    names.insert(table.name.to_ascii_lowercase());
    let single = |name: &String| match analysis.tables[name].kind {
        TableKind::Single { shard } => Some((name.clone(), shard)),
        TableKind::Sharded { .. } | TableKind::Reference => None,
    };
    let statement = WriteStatement {
        sql: Template::verbatim(&analysis, span, alone),
        table: table.name.clone(),
        reference: table.kind == TableKind::Reference,
        singles: names.iter().filter_map(single).collect(),
        rows,
        mentions,
    };
    Ok((names.into_iter().collect(), WriteStatementPlan(statement)))
}

/// A reference table's copies must all change alike, so the write may depend on nothing but reference tables.
fn check_reference(analysis: &Analysis, table: &Table, span: Span) -> Result<(), SqlError> {
    let other =
        analysis.occurrences.iter().find(|occurrence| analysis.tables[&occurrence.table].kind != TableKind::Reference);
    if let Some(other) = other {
        return Err(SqlError::unsupported(format!(
            "a write to the reference table {} can't read {}, which is {}",
            table.name,
            other.table,
            analysis.tables[&other.table].kind_name()
        ))
        .hint("read the rows first, then send them as values"));
    }
    let has = |word: &str| (span.0..span.1).any(|index| analysis.tokens.is(index, word));
    if has("LIMIT") && !has("ORDER") {
        return Err(SqlError::unsupported(
            "a write to a reference table with a LIMIT but no ORDER BY could differ between its copies",
        )
        .hint("add an ORDER BY over a unique key"));
    }
    Ok(())
}

/// Reads an UPDATE or DELETE, whose table is the first occurrence.
fn changed<'a>(
    analysis: &mut Analysis<'a>,
    read: impl FnOnce(&mut Analysis<'a>) -> Result<(), SqlError>,
) -> Result<&'a Table, SqlError> {
    read(analysis)?;
    if let Some(token) = analysis.rowid {
        return Err(rowid_refused().at(analysis.tokens.text, analysis.tokens.offset(token)));
    }
    Ok(analysis.table(0))
}

fn target_scope(analysis: &mut Analysis, table: &TableWithJoins) -> Result<usize, SqlError> {
    match (&table.relation, table.joins.is_empty()) {
        (TableFactor::Table { name, alias, args: None, .. }, true) => {
            analysis.scope_with(name, alias.as_ref().map(|alias| &alias.name))
        }
        _ => {
            Err(SqlError::syntax("one table can be written at a time")
                .hint("join other tables in FROM or in a subquery"))
        }
    }
}

fn refuse_rollback(or: Option<&SqliteOnConflict>) -> Result<(), SqlError> {
    match or {
        Some(SqliteOnConflict::Rollback) => Err(SqlError::unsupported("OR ROLLBACK is not supported")
            .hint("OR ABORT (the default) undoes the whole request")),
        _ => Ok(()),
    }
}

fn update_scope(analysis: &mut Analysis, update: &Update) -> Result<(), SqlError> {
    refuse_rollback(update.or.as_ref())?;
    if !update.order_by.is_empty() || update.limit.is_some() || update.output.is_some() {
        return Err(no_limit("UPDATE"));
    }
    let scope = target_scope(analysis, &update.table)?;
    match &update.from {
        Some(UpdateTableFromKind::AfterSet(from)) => analysis.more_sources(from, scope)?,
        Some(UpdateTableFromKind::BeforeSet(_)) => return Err(SqlError::syntax("FROM comes after SET")),
        None => {}
    }
    assignments(analysis, &update.assignments, 0, scope)?;
    if let Some(filter) = &update.selection {
        analysis.filter(filter, scope)?;
    }
    returning(analysis, update.returning.as_deref(), scope)
}

fn delete_scope(analysis: &mut Analysis, delete: &Delete) -> Result<(), SqlError> {
    if !delete.tables.is_empty() || delete.using.is_some() || delete.output.is_some() {
        return Err(SqlError::syntax("this form of DELETE is not SQLite's").hint("DELETE FROM table WHERE …"));
    }
    if !delete.order_by.is_empty() || delete.limit.is_some() {
        return Err(no_limit("DELETE"));
    }
    let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
    let [table] = from.as_slice() else {
        return Err(SqlError::syntax("one table can be written at a time"));
    };
    let scope = target_scope(analysis, table)?;
    if let Some(filter) = &delete.selection {
        analysis.filter(filter, scope)?;
    }
    returning(analysis, delete.returning.as_deref(), scope)
}

fn no_limit(verb: &str) -> SqlError {
    SqlError::unsupported(format!("{verb} with ORDER BY or LIMIT is not supported"))
        .hint("choose the rows by their keys in WHERE")
}

fn returning(analysis: &mut Analysis, items: Option<&[SelectItem]>, scope: usize) -> Result<(), SqlError> {
    for item in items.unwrap_or_default() {
        if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
            analysis.expr(expr, scope)?;
        }
    }
    Ok(())
}

/// Reads `SET` clauses and refuses a change of the shard key of `occurrence`'s table.
fn assignments(analysis: &mut Analysis, list: &[Assignment], occurrence: usize, scope: usize) -> Result<(), SqlError> {
    let table = analysis.table(occurrence);
    for assignment in list {
        refuse_key_change(table, assignment)?;
        analysis.expr(&assignment.value, scope)?;
    }
    Ok(())
}

fn refuse_key_change(table: &Table, assignment: &Assignment) -> Result<(), SqlError> {
    let targets = match &assignment.target {
        AssignmentTarget::ColumnName(name) => std::slice::from_ref(name),
        AssignmentTarget::Tuple(names) => names,
    };
    let Some((key, _)) = table.shard_key() else { return Ok(()) };
    if targets.iter().any(|target| last_name(target) == key.to_ascii_lowercase()) {
        return Err(SqlError::unsupported(format!("changing the shard key {}.{key} is not supported yet", table.name))
            .hint("delete the row and insert it again with the new key"));
    }
    Ok(())
}

/// Keys that an `INSERT … SELECT` takes from the rows that it reads.
enum Inserted {
    /// The keys of this occurrence.
    From(usize),
    Constant(KeyType, Constant),
    Unknown(KeyType),
}

impl Inserted {
    fn keys(self, analysis: &Analysis) -> (KeyType, Option<Vec<Constant>>) {
        match self {
            Inserted::From(occurrence) => {
                let key_type = analysis.key_type(occurrence).unwrap_or(KeyType::Integer);
                (key_type, analysis.occurrences[occurrence].keys.clone())
            }
            Inserted::Constant(key_type, constant) => (key_type, Some(vec![constant])),
            Inserted::Unknown(key_type) => (key_type, None),
        }
    }
}

type InsertRows<'a> = (&'a Table, Option<RowKeys>, Option<Inserted>);

fn insert_rows<'a>(analysis: &mut Analysis<'a>, insert: &Insert, span: Span) -> Result<InsertRows<'a>, SqlError> {
    refuse_rollback(insert.or.as_ref())?;
    let TableObject::TableName(name) = &insert.table else {
        return Err(SqlError::syntax("rows are inserted into a table"));
    };
    if insert.overwrite || insert.partitioned.is_some() || !insert.assignments.is_empty() || insert.output.is_some() {
        return Err(
            SqlError::syntax("this form of INSERT is not SQLite's").hint("INSERT INTO table (columns) VALUES (…)")
        );
    }
    if let Some(internal) = internal_table(&last_name(name)) {
        return Err(internal);
    }
    let table = analysis.find_table(name)?;
    let columns: Vec<String> = insert.columns.iter().map(last_name).collect();
    check_columns(table, &columns)?;
    analysis.opaque = true; // excluded.x and the table's own columns are looked up by SQLite
    upsert(analysis, table, insert)?;
    let scope = analysis.scopes.len();
    analysis.scopes.push(crate::scope::Scope::default());
    returning(analysis, insert.returning.as_deref(), scope)?;
    let columns = if columns.is_empty() { written_columns(table) } else { columns };
    let defaults = insert.source.is_none() || analysis.tokens.are(span.1.saturating_sub(2), &["DEFAULT", "VALUES"]);
    match insert.source.as_deref() {
        Some(query) if !defaults => insert_query(analysis, table, &columns, query, scope),
        _ => {
            missing_key(table)?;
            Ok((table, None, None))
        }
    }
}

fn rowid_refused() -> SqlError {
    SqlError::unsupported("rowid names a row only within one shard").hint("use the primary key's columns instead")
}

fn check_columns(table: &Table, columns: &[String]) -> Result<(), SqlError> {
    for name in columns {
        if table.column(name).is_none() {
            if is_rowid(name) {
                return Err(rowid_refused());
            }
            return Err(SqlError::new(Code::UnknownColumn, format!("table {} has no column {name}", table.name)));
        }
    }
    Ok(())
}

fn written_columns(table: &Table) -> Vec<String> {
    table.columns.iter().filter(|column| !column.generated).map(|column| column.name.to_ascii_lowercase()).collect()
}

fn upsert(analysis: &mut Analysis, table: &Table, insert: &Insert) -> Result<(), SqlError> {
    let scope = analysis.scopes.len();
    analysis.scopes.push(crate::scope::Scope::default());
    match &insert.on {
        None => Ok(()),
        Some(OnInsert::OnConflict(conflict)) => {
            let OnConflictAction::DoUpdate(update) = &conflict.action else { return Ok(()) };
            for assignment in &update.assignments {
                refuse_key_change(table, assignment)?;
                analysis.expr(&assignment.value, scope)?;
            }
            update.selection.as_ref().map_or(Ok(()), |filter| analysis.expr(filter, scope))
        }
        Some(_) => {
            Err(SqlError::syntax("ON DUPLICATE KEY is not SQLite's").hint("use ON CONFLICT (…) DO UPDATE SET …"))
        }
    }
}

/// Rows without a value for the key: only right for tables that have none.
fn missing_key(table: &Table) -> Result<(), SqlError> {
    let Some((key, _)) = table.shard_key() else { return Ok(()) };
    if table.column(key).is_some_and(|column| column.has_default) {
        return Err(SqlError::unsupported(format!("the shard key {}.{key} can't be left to its default", table.name))
            .hint("give the key in the statement"));
    }
    Err(null_key(&table.name, key).hint(format!("name {key} in the column list and give it a value")))
}

fn insert_query<'a>(
    analysis: &mut Analysis<'a>,
    table: &'a Table,
    columns: &[String],
    query: &Query,
    scope: usize,
) -> Result<InsertRows<'a>, SqlError> {
    let key = table.shard_key();
    let place = key.and_then(|(key, _)| columns.iter().position(|column| column.eq_ignore_ascii_case(key)));
    if key.is_some() && place.is_none() {
        missing_key(table)?;
    }
    match &*query.body {
        SetExpr::Values(values) if query.with.is_none() => {
            let mut keys = Vec::new();
            for (at, row) in values.rows.iter().enumerate() {
                if row.content.len() != columns.len() {
                    let message =
                        format!("row {} has {} values for {} columns", at + 1, row.content.len(), columns.len());
                    return Err(SqlError::syntax(message).hint("give each column one value"));
                }
                analysis.parts(row.content.iter().map(Part::Expr), scope)?;
                if let (Some(place), Some((key, _))) = (place, key) {
                    keys.push(row_key(&row.content[place], table, key)?);
                }
            }
            let rows = key.map(|(column, key_type)| RowKeys { column: column.to_owned(), key_type, keys });
            Ok((table, rows, None))
        }
        body => {
            analysis.query(query, None)?;
            let inserted = place.zip(key).map(|(place, (_, key_type))| selected_key(analysis, body, place, key_type));
            Ok((table, None, inserted))
        }
    }
}

fn row_key(expr: &Expr, table: &Table, key: &str) -> Result<Constant, SqlError> {
    if let Expr::Value(value) = bare(expr)
        && let Literal::Boolean(truth) = &value.value
    {
        return Ok(Constant::Value(Value::Integer(i64::from(*truth))));
    }
    Constant::of(expr).ok_or_else(|| {
        SqlError::unsupported(format!("the shard key {}.{key} is given by an expression", table.name))
            .hint("give the key as a literal or a parameter")
    })
}

/// What an `INSERT … SELECT` puts into the key, when that is plain to see.
fn selected_key(analysis: &Analysis, body: &SetExpr, place: usize, key_type: KeyType) -> Inserted {
    let SetExpr::Select(select) = body else { return Inserted::Unknown(key_type) };
    let plain = |item: &SelectItem| matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. });
    let item = select.projection.get(place).filter(|_| select.projection[..place].iter().all(plain));
    let Some(SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else {
        return Inserted::Unknown(key_type);
    };
    if let Some(constant) = Constant::of(expr) {
        return Inserted::Constant(key_type, constant);
    }
    let scope =
        crate::parse::token_of(select.select_token.0.span).and_then(|token| analysis.scope_of_select.get(&token));
    let found = scope
        .zip(column_name(bare(expr)))
        .map(|(scope, (qualifier, name))| (analysis.resolve(*scope, qualifier.as_deref(), &name), name));
    match found {
        Some((Resolved::Occurrence { occurrence, own: true }, name))
            if analysis
                .table(occurrence)
                .shard_key()
                .is_some_and(|(key, found)| key.eq_ignore_ascii_case(&name) && found == key_type) =>
        {
            Inserted::From(occurrence)
        }
        _ => Inserted::Unknown(key_type),
    }
}
