//! The worst case that is always right: fetch what a statement needs and run it on that.
//!
//! Each table that the statement mentions is fetched once, however often it is mentioned. Left out are
//!
//! - columns whose name appears nowhere in the statement (unless there is a `*` or a NATURAL join),
//! - rows that every mention's own conditions exclude: the filters of `scope`, joined by OR over the mentions,
//! - shards that own none of the keys that matter.
//!
//! For a plain SELECT from one table with ORDER BY and LIMIT each shard sorts and sends only its first rows.
//! The finisher repeats the filters, the order and the limit, so leaving things out is only ever a saving.

use std::collections::BTreeSet;
use std::sync::Arc;

use pleat_cluster::{Column, KeyType, ShardId, Table, TableKind, Value};
use sqlparser::ast::Query;

use crate::clauses::{Output, Span};
use crate::lex::{Kind, Tokens, quote};
use crate::read::{Fetch, Source, Template, partitions};
use crate::scope::Analysis;
use crate::spread::{TopRows, top_rows};
use crate::tree::Constant;

/// How to fetch one table.
#[derive(Clone, Debug)]
pub(crate) struct FetchPlan {
    pub table: String,
    pub create_sql: String,
    pub place: Place,
    pub sql: Template,
    pub filtered: Option<Template>,
    /// What to append when only the first rows are needed.
    pub top: Option<TopRows>,
}

/// Where a fetch finds its rows.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// On the shards; with the keys that matter for each mention, if all of them say.
    Sharded {
        key_type: KeyType,
        keys: Option<Vec<Constant>>,
    },
    Reference,
    Single(ShardId),
}

impl Place {
    pub fn source(&self, values: &[Value], partition_count: u32) -> Source {
        match self {
            Place::Sharded { key_type, keys } => Source::Sharded {
                prune: keys.as_ref().and_then(|keys| partitions(keys, *key_type, values, partition_count)),
            },
            Place::Reference => Source::Reference,
            Place::Single(shard) => Source::Single(*shard),
        }
    }
}

impl FetchPlan {
    pub fn bind(&self, values: &[Value], partition_count: u32) -> Fetch {
        let top = self.top.as_ref().and_then(|top| top.clause(values));
        let ended = |sql: &Arc<str>| top.as_ref().map_or_else(|| sql.clone(), |top| format!("{sql}{top}").into());
        Fetch {
            table: self.table.clone(),
            create_sql: self.create_sql.clone(),
            source: self.place.source(values, partition_count),
            sql: ended(&self.sql.sql),
            sql_filtered: self.filtered.as_ref().map(|filtered| ended(&filtered.sql)),
            params: self.sql.values(values),
        }
    }
}

/// One fetch for each table that the statement mentions.
pub(crate) fn fetches(analysis: &Analysis, query: &Query, span: Span) -> Vec<FetchPlan> {
    let tables: BTreeSet<&String> = analysis.occurrences.iter().map(|occurrence| &occurrence.table).collect();
    let names = analysis.names();
    let top = top_rows(analysis, query, span);
    tables.into_iter().map(|name| fetch(analysis, name, &names, top.as_ref())).collect()
}

fn fetch(analysis: &Analysis, name: &str, names: &BTreeSet<String>, top: Option<&TopRows>) -> FetchPlan {
    let table = &analysis.tables[name];
    let columns = needed(table, names, analysis.every_column);
    let sql = |owned: bool| Template::from(select(analysis, name, &columns, owned));
    FetchPlan {
        table: table.name.clone(),
        create_sql: create_table(&table.name, table, &columns),
        place: place(analysis, name),
        sql: sql(false),
        filtered: table.shard_key().map(|_| sql(true)),
        top: top.cloned(),
    }
}

fn needed<'t>(table: &'t Table, names: &BTreeSet<String>, all: bool) -> Vec<&'t Column> {
    let wanted = |column: &&Column| all || names.contains(&column.name.to_ascii_lowercase());
    let found: Vec<_> = table.columns.iter().filter(wanted).collect();
    if found.is_empty() {
        // `count(*)` needs rows, not columns; a primary key's column is the smallest to send.
        let any = table.primary_key.first().and_then(|name| table.column(name)).or(table.columns.first());
        return any.into_iter().collect();
    }
    found
}

fn place(analysis: &Analysis, name: &str) -> Place {
    match analysis.tables[name].kind {
        TableKind::Reference => Place::Reference,
        TableKind::Single { shard } => Place::Single(shard),
        TableKind::Sharded { key_type, .. } => {
            let mentions = analysis.occurrences.iter().filter(|occurrence| occurrence.table == name);
            let keys: Option<Vec<_>> = mentions.map(|occurrence| occurrence.keys.clone()).collect();
            Place::Sharded { key_type, keys: keys.map(|keys| keys.concat()) }
        }
    }
}

/// A table for the finisher: names, declared types and collations as they are, and nothing that could refuse a row.
pub(crate) fn create_table(name: &str, table: &Table, columns: &[&Column]) -> String {
    let strict = is_strict(&table.create_sql);
    let columns: Vec<_> = columns.iter().map(|column| column_definition(&column.name, column, strict)).collect();
    format!("CREATE TABLE {} ({})", quote(name), columns.join(", "))
}

pub(crate) fn column_definition(name: &str, column: &Column, strict: bool) -> String {
    let mut sql = quote(name);
    // In a STRICT table ANY keeps every value as it is; elsewhere it would mean NUMERIC.
    let any = strict && column.decl_type.eq_ignore_ascii_case("ANY");
    if !any && !column.decl_type.is_empty() {
        sql.push(' ');
        sql.push_str(&declared_type(&column.decl_type));
    }
    if let Some(collation) = &column.collation {
        sql.push_str(" COLLATE ");
        sql.push_str(&quote(collation));
    }
    sql
}

/// The declared type, in quotes if it is not made of plain words and numbers.
fn declared_type(text: &str) -> String {
    let plain =
        |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | ' ' | '(' | ')' | ',' | '+' | '-' | '.');
    if text.chars().all(plain) { text.to_owned() } else { quote(text) }
}

/// Whether a CREATE TABLE ends with STRICT among its options.
pub(crate) fn is_strict(create_sql: &str) -> bool {
    let Ok(tokens) = Tokens::of(create_sql) else { return false };
    let after = (0..tokens.len()).rev().take_while(|index| !tokens.is_symbol(*index, ")"));
    after.into_iter().any(|index| tokens.is(index, "STRICT"))
}

fn select(analysis: &Analysis, name: &str, columns: &[&Column], owned: bool) -> Output {
    let table = &analysis.tables[name];
    let mut output = Output::default();
    output.push("SELECT ");
    output.push(&columns.iter().map(|column| quote(&column.name)).collect::<Vec<_>>().join(", "));
    output.push(&format!(" FROM {}", quote(&table.name)));
    let mut keyword = " WHERE ";
    if let (true, Some((key, _))) = (owned, table.shard_key()) {
        output.push(&format!(" WHERE pleat_owned({})", quote(key)));
        keyword = " AND ";
    }
    filters(analysis, name, keyword, &mut output);
    output
}

/// `WHERE (a AND b) OR (c)`: what any mention of the table needs. Nothing when some mention needs all rows.
fn filters(analysis: &Analysis, name: &str, keyword: &str, output: &mut Output) {
    let mentions: Vec<_> = analysis.occurrences.iter().filter(|occurrence| occurrence.table == name).collect();
    if mentions.iter().any(|occurrence| occurrence.filters.is_empty()) {
        return;
    }
    output.push(keyword);
    let several = mentions.len() > 1;
    if several {
        output.push("(");
    }
    for (at, occurrence) in mentions.iter().enumerate() {
        output.push(if at > 0 { " OR " } else { "" });
        for (part, span) in occurrence.filters.iter().enumerate() {
            output.push(if part > 0 { " AND (" } else { "(" });
            unqualified(analysis, *span, output);
            output.push(")");
        }
    }
    if several {
        output.push(")");
    }
}

/// The tokens of `span`, with `alias.` and `main.alias.` before columns left out.
pub(crate) fn unqualified(analysis: &Analysis, span: Span, output: &mut Output) {
    let tokens = analysis.tokens;
    for index in span.0..span.1 {
        let is_dot = tokens.is_symbol(index, ".");
        let before_dot = index + 1 < span.1 && tokens.is_symbol(index + 1, ".");
        let word = matches!(tokens.kind(index), Some(Kind::Word | Kind::Name));
        if is_dot || (before_dot && word) {
            continue;
        }
        output.token(tokens, analysis.slots, index);
    }
}
