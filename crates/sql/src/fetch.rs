//! The worst case that is always right: fetch what a statement needs and run it on that.
//!
//! Each table that the statement mentions is fetched once, however often it is mentioned. Left out are
//!
//! - columns whose name appears nowhere in the statement (unless there is a `*` or a NATURAL join),
//! - rows that every mention's own conditions exclude: the filters of `scope`, joined by OR over the mentions,
//! - shards that own none of the keys that matter,
//! - mentions in subqueries that the shards have answered already (`finish`).
//!
//! The finisher repeats the filters, so leaving things out is only ever a saving.

use std::collections::BTreeSet;
use std::sync::Arc;

use pleat_cluster::{Column, KeyType, ShardId, Table, TableKind, Value};

use crate::clauses::{Output, Span};
use crate::lex::{Kind, Tokens, quote};
use crate::read::{Fetch, Source, Template, partitions};
use crate::scope::{Analysis, Occurrence};
use crate::tree::Constant;

/// How to fetch one table.
#[derive(Clone, Debug)]
pub(crate) struct FetchPlan {
    pub table: String,
    pub create_sql: String,
    pub place: Place,
    pub sql: Template,
    pub filtered: Option<Template>,
    /// How the shards may stop early.
    pub tail: Option<Tail>,
}

/// The order and the limits of a query's rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail {
    /// ` ORDER BY …`, or nothing.
    pub order: String,
    pub limit: Option<Constant>,
    pub offset: Option<Constant>,
}

impl Tail {
    /// LIMIT and OFFSET; `None` if one is no whole number. A negative LIMIT is none, a negative OFFSET is 0.
    pub fn counts(&self, values: &[Value]) -> Option<(Option<u64>, u64)> {
        let limit = whole_number(self.limit.as_ref(), values)?.and_then(|limit| u64::try_from(limit).ok());
        let offset = whole_number(self.offset.as_ref(), values)?.unwrap_or(0);
        Some((limit, u64::try_from(offset).unwrap_or(0)))
    }

    /// What a shard's statement ends with: each may stop after as many rows as are wanted of all. `sorted`: the order is
    /// needed in any case.
    pub fn clause(&self, values: &[Value], sorted: bool) -> String {
        let rows = self.counts(values).and_then(|(limit, offset)| i64::try_from(limit?.checked_add(offset)?).ok());
        match rows {
            Some(rows) => format!("{} LIMIT {rows}", self.order),
            None if sorted => self.order.clone(),
            None => String::new(),
        }
    }
}

/// `Some(None)` without a clause, `Some(Some(n))` for a whole number, `None` for anything else.
fn whole_number(constant: Option<&Constant>, values: &[Value]) -> Option<Option<i64>> {
    let value = match constant {
        None => return Some(None),
        Some(Constant::Value(value)) => value,
        Some(Constant::Slot(slot)) => values.get(*slot)?,
    };
    match value {
        Value::Integer(number) => Some(Some(*number)),
        _ => None,
    }
}

/// Where a fetch finds its rows.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// On the shards; with the keys that matter for each mention, if all of them say.
    Sharded {
        keys: Option<Vec<(KeyType, Vec<Constant>)>>,
    },
    Reference,
    Single(ShardId),
}

impl Place {
    /// Where rows of any of these mentions are.
    pub fn of_drivers(analysis: &Analysis, drivers: &[usize]) -> Place {
        let keys = drivers.iter().map(|at| Some((analysis.key_type(*at)?, analysis.occurrences[*at].keys.clone()?)));
        Place::Sharded { keys: keys.collect() }
    }

    pub fn source(&self, values: &[Value], partition_count: u32) -> Source {
        match self {
            Place::Sharded { keys } => Source::Sharded {
                prune: keys.as_ref().and_then(|keys| {
                    let found =
                        keys.iter().map(|(key_type, keys)| partitions(keys, *key_type, values, partition_count));
                    found.collect::<Option<Vec<_>>>().map(|found| found.into_iter().flatten().collect())
                }),
            },
            Place::Reference => Source::Reference,
            Place::Single(shard) => Source::Single(*shard),
        }
    }
}

impl FetchPlan {
    pub fn bind(&self, values: &[Value], partition_count: u32) -> Fetch {
        let end = self.tail.as_ref().map_or_else(String::new, |tail| tail.clause(values, false));
        let ended = |sql: &Arc<str>| if end.is_empty() { sql.clone() } else { format!("{sql}{end}").into() };
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

/// One fetch for each table that the statement mentions outside of the `covered` tokens.
pub(crate) fn fetches(analysis: &Analysis, covered: &[Span]) -> Vec<FetchPlan> {
    let mentions: Vec<&Occurrence> =
        analysis.occurrences.iter().filter(|occurrence| !is_covered(covered, occurrence.tokens.0)).collect();
    let tables: BTreeSet<&String> = mentions.iter().map(|occurrence| &occurrence.table).collect();
    let names = analysis.names(|token| !is_covered(covered, token));
    let all = has_wildcard(analysis, covered);
    let of = |table: &String| -> Vec<&Occurrence> {
        mentions.iter().copied().filter(|occurrence| occurrence.table == *table).collect()
    };
    tables.into_iter().map(|table| fetch(analysis, table, &of(table), &names, all)).collect()
}

fn is_covered(covered: &[Span], token: usize) -> bool {
    covered.iter().any(|span| (span.0..span.1).contains(&token))
}

/// Whether a `*` for columns, or a NATURAL join, stands outside of the covered tokens.
fn has_wildcard(analysis: &Analysis, covered: &[Span]) -> bool {
    let tokens = analysis.tokens;
    let wildcard = |at: usize| {
        let before = |word| at > 0 && tokens.is(at - 1, word);
        let symbol = |symbol| at > 0 && tokens.is_symbol(at - 1, symbol);
        let starts = before("SELECT") || before("DISTINCT") || before("ALL") || symbol(",") || symbol(".");
        (tokens.is_symbol(at, "*") && starts) || tokens.is(at, "NATURAL")
    };
    analysis.every_column && (0..tokens.len()).any(|at| wildcard(at) && !is_covered(covered, at))
}

fn fetch(analysis: &Analysis, name: &str, mentions: &[&Occurrence], names: &BTreeSet<String>, all: bool) -> FetchPlan {
    let table = &analysis.tables[name];
    let columns = needed(table, names, all);
    let sql = |owned: bool| Template::from(select(analysis, table, mentions, &columns, owned));
    FetchPlan {
        table: table.name.clone(),
        create_sql: create_table(&table.name, table, &columns),
        place: place(table, mentions),
        sql: sql(false),
        filtered: table.shard_key().map(|_| sql(true)),
        tail: None,
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

fn place(table: &Table, mentions: &[&Occurrence]) -> Place {
    match table.kind {
        TableKind::Reference => Place::Reference,
        TableKind::Single { shard } => Place::Single(shard),
        TableKind::Sharded { key_type, .. } => {
            let keys = mentions.iter().map(|occurrence| Some((key_type, occurrence.keys.clone()?)));
            Place::Sharded { keys: keys.collect() }
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
pub(crate) fn declared_type(text: &str) -> String {
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

fn select(analysis: &Analysis, table: &Table, mentions: &[&Occurrence], columns: &[&Column], owned: bool) -> Output {
    let mut output = Output::default();
    output.push("SELECT ");
    output.push(&columns.iter().map(|column| quote(&column.name)).collect::<Vec<_>>().join(", "));
    output.push(&format!(" FROM {}", quote(&table.name)));
    let mut keyword = " WHERE ";
    if let (true, Some((key, _))) = (owned, table.shard_key()) {
        output.push(&format!(" WHERE pleat_owned({})", quote(key)));
        keyword = " AND ";
    }
    filters(analysis, mentions, keyword, &mut output);
    output
}

/// `WHERE (a AND b) OR (c)`: what any mention of the table needs. Nothing when some mention needs all rows.
fn filters(analysis: &Analysis, mentions: &[&Occurrence], keyword: &str, output: &mut Output) {
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
