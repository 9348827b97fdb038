//! INSERT, UPDATE and DELETE: which shards have a part in them.
//!
//! A write to sharded rows goes unchanged to every shard that has such rows, if each shard can tell by its own rows what to do: all
//! other sharded tables that it reads are tied to the rows written. An INSERT of values is taken apart by rows. A write to a reference table
//! is carried out by every shard for itself, so it must come to the same everywhere: nothing in it may depend on where or when it runs.

use pleat_cluster::{KeyType, Table, TableKind};
use sqlparser::ast::{Insert, Query as Ast, Select, SelectItem, SetExpr, Statement, Values};

use super::analysis::{Analysis, is_default};
use super::functions::{self, Purity};
use super::lex::Tokens;
use super::local;
use super::plan::{Constant, Keyed, Piece, Plan, Rows, Several};
use super::tree::{constant, last_ident};
use crate::error::SqlError;

/// The keys of the rows that an INSERT gives, in order; `None` when they come from a query.
pub(super) fn inserted_keys(
    insert: &Insert,
    table: &Table,
    values: Option<&Values>,
) -> Result<Option<Vec<Constant>>, SqlError> {
    let Some((key, key_type)) = table.shard_key() else { return Ok(None) };
    let position = key_position(insert, table, key).ok_or_else(|| missing(table, key))?;
    let Some(values) = values else {
        return if insert.source.is_some() { Ok(None) } else { Err(missing(table, key)) };
    };
    let key_of = |row: &Vec<sqlparser::ast::Expr>| {
        let expr = row.get(position).filter(|expr| !is_default(expr)).ok_or_else(|| missing(table, key))?;
        constant(expr, key_type).ok_or_else(|| {
            SqlError::unsupported(format!(
                "the shard key {key} of a new row of {} is neither a constant nor a parameter",
                table.name
            ))
            .hint("compute it first, and send it as a parameter or a plain constant")
        })
    };
    values.rows.iter().map(|row| key_of(row)).collect::<Result<Vec<_>, _>>().map(Some)
}

fn key_position(insert: &Insert, table: &Table, key: &str) -> Option<usize> {
    if insert.columns.is_empty() {
        return table.columns.iter().position(|column| column.name == key);
    }
    insert.columns.iter().position(|column| last_ident(column).is_some_and(|ident| ident.value == key))
}

fn missing(table: &Table, key: &str) -> SqlError {
    SqlError::unsupported(format!("a new row of {} needs a value for its shard key {key}", table.name))
        .hint("name the key among the columns and give it a constant or a parameter; defaults of shard keys are not routed yet")
}

/// Plans a statement that writes.
pub(super) fn plan(analysis: &Analysis, statement: &Statement, range: (usize, usize)) -> Result<Plan, SqlError> {
    if let Some(error) = &analysis.keyless {
        return Err(error.clone());
    }
    if let Some(temporary) = analysis.into
        && !temporary
    {
        return Err(SqlError::unsupported("SELECT INTO makes a table without saying where its rows live")
            .hint("create the table first, then use INSERT … SELECT; SELECT INTO TEMP is fine"));
    }
    let targets: Vec<usize> = (0..analysis.mentions.len()).filter(|at| analysis.mentions[*at].target).collect();
    let kind = |at: &usize| &analysis.mentions[*at].table.kind;
    if targets.iter().any(|at| *kind(at) == TableKind::Reference) {
        return to_reference(analysis, statement, &targets, range);
    }
    let mut plan = super::read::located(analysis);
    let [target] = targets.as_slice() else {
        plan.several = refused(one_shard("this statement"));
        return Ok(plan);
    };
    if !analysis.mentions[*target].is_sharded() || analysis.targets > 1 {
        plan.several = refused(one_shard("this write"));
        return Ok(plan);
    }
    let top = match statement {
        Statement::Query(query) if query.with.is_some() => body_statement(query).unwrap_or(statement),
        other => other,
    };
    plan.several = match top {
        Statement::Insert(insert) => return inserting(analysis, insert, *target, plan, range),
        Statement::Update(_) | Statement::Delete(_) => {
            changing(analysis, *target).map_or_else(refused, |()| Several::Every { reference: false })
        }
        _ => refused(one_shard("a write inside of WITH")),
    };
    Ok(plan)
}

/// The statement behind a WITH.
fn body_statement(query: &Ast) -> Option<&Statement> {
    match query.body.as_ref() {
        SetExpr::Insert(statement) | SetExpr::Update(statement) | SetExpr::Delete(statement) => Some(statement),
        _ => None,
    }
}

fn refused(error: SqlError) -> Several {
    Several::Refused(Box::new(error))
}

fn one_shard(what: &str) -> SqlError {
    SqlError::unsupported(format!("{what} concerns several shards, and Pleat can't take it apart"))
        .hint("say in WHERE (or ON) what the shard key of every sharded table is, or write it as several statements in one transaction")
}

// ---- UPDATE, DELETE ----

/// Whether each shard can do its part by itself.
fn changing(analysis: &Analysis, target: usize) -> Result<(), SqlError> {
    let local = |at: usize| at == target || !analysis.mentions[at].is_sharded() || analysis.tied(at, target);
    if analysis.mentions.iter().any(|mention| matches!(mention.table.kind, TableKind::Single { .. })) {
        return Err(one_shard("a write to a sharded table that reads a single one"));
    }
    if !(0..analysis.mentions.len()).all(local) {
        return Err(one_shard("a write that reads other sharded tables")
            .hint("tie the tables by their shard keys (a.key = b.key), or give the key"));
    }
    if analysis.unknown {
        return Err(one_shard("a write that reads a table which the catalog doesn't know"));
    }
    if analysis.purity == Purity::Unknown {
        let names: Vec<&str> = analysis.impure.iter().map(String::as_str).collect();
        return Err(SqlError::unsupported(format!(
            "a write on several shards can't call {}: Pleat does not know what it does",
            names.join(", ")
        ))
        .hint("give the shard key in WHERE, or compute the value first and send it as a parameter"));
    }
    Ok(())
}

// ---- INSERT ----

fn inserting(
    analysis: &Analysis,
    insert: &Insert,
    target: usize,
    mut plan: Plan,
    range: (usize, usize),
) -> Result<Plan, SqlError> {
    let others = || analysis.mentions.iter().enumerate().filter(|(at, _)| *at != target);
    if !plan.singles.is_empty() {
        return Err(one_shard("a write to a sharded table that reads a single one"));
    }
    let source = insert.source.as_deref();
    if let Some(SetExpr::Values(values)) =
        source.filter(|source| source.with.is_none()).map(|source| source.body.as_ref())
    {
        plan.several = refused(one_shard("an INSERT whose values read sharded tables"));
        if !analysis.unknown
            && others().all(|(_, mention)| mention.table.kind == TableKind::Reference)
            && let Some(rows) = pieces(analysis.tokens, insert, values, range)
        {
            let keyed = plan.keyed.pop().ok_or_else(|| one_shard("this INSERT"))?;
            let keys = keyed.keys.clone().unwrap_or_default().into_iter();
            plan.keyed = keys.map(|key| Keyed { keys: Some(vec![key]), ..keyed.clone() }).collect();
            plan.several = Several::Rows(rows);
        }
        return Ok(plan);
    }
    let (keyed, several) = from_query(analysis, insert, target)?;
    let at = (0..analysis.mentions.len()).filter(|at| analysis.mentions[*at].is_sharded()).position(|at| at == target);
    if let Some(place) = at.and_then(|at| plan.keyed.get_mut(at)) {
        *place = keyed;
    }
    plan.several = several;
    Ok(plan)
}

/// INSERT … SELECT: the keys of the new rows, and whether each shard can make its own.
fn from_query(analysis: &Analysis, insert: &Insert, target: usize) -> Result<(Keyed, Several), SqlError> {
    let mention = &analysis.mentions[target];
    let (key, key_type) = mention.table.shard_key().ok_or_else(|| one_shard("this INSERT"))?;
    let elsewhere = || {
        SqlError::unsupported("the rows of this INSERT … SELECT may belong to other shards than those they are made on")
            .hint(format!("select a shard key for {key} and tie all sharded tables to it, or read the rows first and insert them with VALUES"))
    };
    let query = insert.source.as_deref().ok_or_else(elsewhere)?;
    let SetExpr::Select(select) = query.body.as_ref() else { return Err(elsewhere()) };
    let position = key_position(insert, mention.table, key).ok_or_else(elsewhere)?;
    let scope = analysis.scope_of(select).ok_or_else(elsewhere)?;
    let expr = match select.projection.get(position) {
        Some(SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) if no_star(select, position) => {
            Some(expr)
        }
        _ => None,
    };
    if let Some(constant) = expr.and_then(|expr| constant(expr, key_type)) {
        let keyed = Keyed { key_type, width: width(mention.table, key), stored: true, keys: Some(vec![constant]) };
        return Ok((keyed, refused(elsewhere())));
    }
    let source = match expr {
        Some(expr) => analysis.key_mention(expr, scope).map(|(at, _)| at).filter(|at| {
            local::is_key(analysis, expr, scope) && analysis.is_made_in(analysis.mentions[*at].scope, scope)
        }),
        None => starred(analysis, select, scope, position),
    };
    let source = source.filter(|at| {
        let found = &analysis.mentions[*at];
        found.key_type() == Some(key_type) && !found.nullable && !analysis.scopes[scope].odd
    });
    let source = source.ok_or_else(elsewhere)?;
    let keyed = Keyed { key_type, width: None, stored: false, keys: analysis.mentions[source].keys.clone() };
    let plain = query.with.is_none() && query.limit_clause.is_none() && query.fetch.is_none();
    let tied = |at: usize| at == target || !analysis.mentions[at].is_sharded() || analysis.tied(at, source);
    let together = plain
        && !analysis.unknown
        && (0..analysis.mentions.len()).all(tied)
        && analysis.purity <= Purity::Volatile
        && local::rows_apart(analysis, select, scope);
    Ok((keyed, if together { Several::Every { reference: false } } else { refused(elsewhere()) }))
}

fn no_star(select: &Select, position: usize) -> bool {
    let star = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
    !select.projection.iter().take(position).any(star)
}

/// `SELECT *` from one table: the mention whose shard key comes at `position`.
fn starred(analysis: &Analysis, select: &Select, scope: usize, position: usize) -> Option<usize> {
    let ([SelectItem::Wildcard(_)], [source]) =
        (select.projection.as_slice(), analysis.scopes[scope].sources.as_slice())
    else {
        return None;
    };
    let mention = source.mention?;
    let (key, _) = analysis.mentions[mention].table.shard_key()?;
    (source.columns.as_ref()?.get(position)? == key).then_some(mention)
}

/// Cuts INSERT … VALUES into its rows.
fn pieces(tokens: &Tokens, insert: &Insert, values: &Values, (from, to): (usize, usize)) -> Option<Rows> {
    let start = super::parse::token_of(insert.insert_token.0.span).filter(|start| *start >= from)?;
    let mut at = start;
    while at < to && !tokens.is(at, "VALUES") {
        at = if tokens.opens(at) == 1 { tokens.closing(at) + 1 } else { at + 1 };
    }
    let head = Piece::of(tokens, from, at + 1);
    let mut rows = Vec::new();
    at += 1;
    loop {
        let end = tokens.closing(at) + 1;
        if !tokens.is_symbol(at, "(") || end > to {
            return None;
        }
        rows.push(Piece::of(tokens, at, end));
        at = end;
        if at >= to || !tokens.is_symbol(at, ",") {
            break;
        }
        at += 1;
    }
    let ends = at >= to || tokens.is(at, "ON") || tokens.is(at, "RETURNING");
    (ends && rows.len() == values.rows.len()).then(|| Rows { head, rows, tail: Piece::of(tokens, at, to) })
}

// ---- reference tables ----

fn to_reference(
    analysis: &Analysis,
    statement: &Statement,
    targets: &[usize],
    range: (usize, usize),
) -> Result<Plan, SqlError> {
    let name = targets.first().map_or("", |at| analysis.mentions[*at].table.name.as_str());
    if analysis.mentions.iter().any(|mention| mention.table.kind != TableKind::Reference)
        || analysis.targets != targets.len()
        || analysis.unknown
    {
        return Err(SqlError::unsupported(format!(
            "a write to the reference table {name} can't depend on tables that aren't reference tables"
        ))
        .hint("read the rows first, and write them as constants or parameters"));
    }
    if analysis.purity != Purity::Immutable || depends_on_order(analysis, range) {
        return Err(SqlError::unsupported(format!(
            "every shard would compute this write to the reference table {name} for itself, with another result"
        ))
        .hint("compute now(), random() and the like first, and send the values as parameters"));
    }
    if let Some(column) = defaulted(analysis, statement) {
        return Err(SqlError::unsupported(format!(
            "every shard would compute the default of {column} in the reference table {name} for itself"
        ))
        .hint(format!("give {column} a value")));
    }
    Ok(Plan { keyed: Vec::new(), singles: Default::default(), several: Several::Every { reference: true } })
}

/// Whether something in the statement may depend on the order of rows, which is each shard's own.
fn depends_on_order(analysis: &Analysis, (from, to): (usize, usize)) -> bool {
    let tokens = analysis.tokens;
    let called = |at: usize| tokens.name(at).filter(|_| tokens.is_symbol(at + 1, "("));
    (from..to).any(|at| {
        let cuts = tokens.is(at, "LIMIT") || tokens.is(at, "FETCH") || tokens.is(at, "OFFSET") || tokens.is(at, "OVER");
        cuts || tokens.are(at, &["DISTINCT", "ON"]) || called(at).is_some_and(|name| functions::minds_order(&name))
    })
}

/// A column of a reference table that an INSERT leaves to its default.
fn defaulted(analysis: &Analysis, statement: &Statement) -> Option<String> {
    let insert = match statement {
        Statement::Insert(insert) => insert,
        Statement::Query(query) => match body_statement(query)? {
            Statement::Insert(insert) => insert,
            _ => return None,
        },
        _ => return None,
    };
    let table = analysis.mentions.iter().find(|mention| mention.target)?.table;
    let rows = match insert.source.as_deref().map(|source| source.body.as_ref()) {
        Some(SetExpr::Values(values)) => values.rows.iter().map(|row| row.as_slice()).collect(),
        _ => Vec::new(),
    };
    let given = |position: usize, name: &str| {
        let at = if insert.columns.is_empty() {
            Some(position)
        } else {
            insert.columns.iter().position(|column| last_ident(column).is_some_and(|ident| ident.value == name))
        };
        let in_row =
            |row: &&[sqlparser::ast::Expr]| at.and_then(|at| row.get(at)).is_some_and(|expr| !is_default(expr));
        at.is_some() && insert.source.is_some() && rows.iter().all(in_row)
    };
    let column = table
        .columns
        .iter()
        .enumerate()
        .find(|(position, column)| column.has_default && !column.generated && !given(*position, &column.name));
    column.map(|(_, column)| column.name.clone())
}

/// The most characters of a text key's column.
pub(super) fn width(table: &Table, key: &str) -> Option<usize> {
    let declared = &table.column(key)?.decl_type;
    let (name, length) = declared.strip_suffix(')')?.split_once('(')?;
    name.trim().to_ascii_lowercase().contains("varying").then(|| length.trim().parse().ok())?
}

/// What a mention says about partitions.
pub(super) fn keyed(mention: &super::analysis::Mention, key_type: KeyType) -> Keyed {
    let width = mention.table.shard_key().and_then(|(key, _)| width(mention.table, key));
    let stored = mention.target && mention.stored;
    Keyed { key_type, width: width.filter(|_| stored), stored, keys: mention.keys.clone() }
}
