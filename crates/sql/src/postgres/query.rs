//! Statements that are routed by the tables that they mention.

use std::collections::BTreeSet;
use std::sync::Arc;

use pleat_cluster::{KeyType, Table, TableKind};
use sqlparser::ast::{SetExpr, Statement};

use super::analysis::Analysis;
use super::clauses::Span;
use super::functions::{self, Purity};
use super::lex::{Kind, Tokens};
use super::plan::{Constant, Plan, Query, Several, Verb};
use super::statement::Reader;
use super::{parse, read, serial, views, write};
use crate::error::{Code, SqlError};

/// Plans the statement that the tokens `from..to` spell.
pub(super) fn plan(reader: &Reader, from: usize, to: usize) -> Result<Query, SqlError> {
    let tokens = reader.tokens;
    let word = match tokens.kind(from) {
        Some(Kind::Word) => tokens.str(from).to_ascii_uppercase(),
        _ => String::new(),
    };
    match word.as_str() {
        "EXPLAIN" => explain(reader, from, to),
        "SHOW" | "CHECKPOINT" => Ok(any(false, false)),
        "DO" | "CALL" => opaque(reader, from, to),
        "TRUNCATE" | "LOCK" => maintained(reader, from, to, true),
        "VACUUM" => maintained(reader, from, to, false),
        "ANALYZE" | "ANALYSE" => maintained(reader, from, to, true),
        "SELECT" | "VALUES" | "WITH" | "TABLE" | "INSERT" | "UPDATE" | "DELETE" => routed(reader, from, to),
        _ if tokens.is_symbol(from, "(") => routed(reader, from, to),
        _ => not_parsed(reader, from, to, || {
            SqlError::unsupported(format!(
                "{} is not supported",
                if word.is_empty() { "this statement" } else { &word }
            ))
            .hint("use SELECT, INSERT, UPDATE or DELETE")
        }),
    }
}

/// Views are written out first; only the plan is of that text.
fn routed(reader: &Reader, from: usize, to: usize) -> Result<Query, SqlError> {
    let Some(text) = views::written_out(reader, from, to)? else { return counted(reader, from, to) };
    let tokens = Tokens::of(&text)?;
    let query = counted(&Reader { tokens: &tokens, schema: reader.schema }, 0, tokens.len());
    // The client's text is another one.
    query.map_err(|error| SqlError { position: None, ..error })
}

fn counted(reader: &Reader, from: usize, to: usize) -> Result<Query, SqlError> {
    let tokens = reader.tokens;
    let calls = |at: usize| tokens.is_symbol(at + 1, "(") && tokens.name(at).is_some_and(|name| name == "pg_notify");
    Ok(Query { notifies: (from..to).any(calls), ..given_values(reader, from, to)? })
}

/// What needs values of Pleat's is planned with places for them.
fn given_values(reader: &Reader, from: usize, to: usize) -> Result<Query, SqlError> {
    let Some(given) = serial::given(reader, from, to)? else {
        let mut query = planned(reader, from, to)?;
        query.counts = serial::counts(reader.tokens, from, to);
        if matches!(query.plan.several, Several::Any) && query.plan.singles.is_empty() {
            query.plan.singles.extend(serial::of_single(reader, from, to));
        }
        return Ok(query);
    };
    let tokens = Tokens::of(&given.text)?;
    let query = planned(&Reader { tokens: &tokens, schema: reader.schema }, 0, tokens.len());
    // The client's text is another one.
    let query = query.map_err(|error| SqlError { position: None, ..error })?;
    Ok(Query { given: Some(Arc::new(given)), ..query })
}

fn planned(reader: &Reader, from: usize, to: usize) -> Result<Query, SqlError> {
    let mut analysis = Analysis::new(reader.schema, reader.tokens);
    match understood(&mut analysis, (from, to)) {
        Ok(statement) => of_statement(&analysis, &statement, (from, to)),
        Err(error) if error.code == Code::Unsupported => not_parsed(reader, from, to, || error),
        Err(error) => Err(error),
    }
}

/// Parses a statement, and reads what it mentions.
pub(super) fn understood(analysis: &mut Analysis, (from, to): Span) -> Result<Statement, SqlError> {
    let statement = parse::statement(analysis.tokens, from, to)?;
    analysis.statement(&statement)?;
    if let Some(view) = analysis.views.first() {
        return Err(SqlError::unsupported(format!("it is not understood what the view {} is here", view.name))
            .hint("write the view's query in its place"));
    }
    nothing_missed(analysis, from, to)?;
    Ok(statement)
}

fn of_statement(analysis: &Analysis, statement: &Statement, range: (usize, usize)) -> Result<Query, SqlError> {
    let plan = match statement {
        Statement::Query(query) if analysis.targets == 0 && analysis.into.is_none() => {
            read::plan(analysis, query, range)
        }
        _ => write::plan(analysis, statement, range)?,
    };
    let tables: BTreeSet<String> = analysis.mentions.iter().map(|mention| mention.key.clone()).collect();
    Ok(Query {
        verb: verb(statement),
        writes: analysis.writes || analysis.purity == Purity::Unknown,
        pins: analysis.pins,
        in_transaction: true,
        tables: tables.into_iter().collect(),
        counts: false,
        notifies: false,
        given: None,
        keys: keys(&plan),
        plan,
    })
}

fn verb(statement: &Statement) -> Verb {
    match statement {
        Statement::Insert(_) => Verb::Insert,
        Statement::Update(_) => Verb::Update,
        Statement::Delete(_) => Verb::Delete,
        Statement::Query(query) => match query.body.as_ref() {
            SetExpr::Insert(inner) | SetExpr::Update(inner) | SetExpr::Delete(inner) => verb(inner),
            _ => Verb::Select,
        },
        _ => Verb::Other,
    }
}

/// The parameters among the keys.
fn keys(plan: &Plan) -> Vec<(usize, KeyType)> {
    let mut found: Vec<(usize, KeyType)> = Vec::new();
    for keyed in &plan.keyed {
        for key in keyed.keys.iter().flatten() {
            if let Constant::Param(at) = key
                && !found.contains(&(*at, keyed.key_type))
            {
                found.push((*at, keyed.key_type));
            }
        }
    }
    found
}

/// A table's name behind FROM, JOIN, INTO, UPDATE or ONLY that the tree doesn't have as a table: the parser read it as something else.
fn nothing_missed(analysis: &Analysis, from: usize, to: usize) -> Result<(), SqlError> {
    let tokens = analysis.tokens;
    let behind =
        |at: usize| ["FROM", "JOIN", "INTO", "UPDATE", "ONLY"].iter().any(|word| at > from && tokens.is(at - 1, word));
    let known = |at: usize, name: &str| {
        let mentioned = analysis
            .mentions
            .iter()
            .any(|mention| mention.tokens.is_some_and(|(start, end)| (start..end).contains(&at)));
        mentioned || analysis.is_cte(name)
    };
    let missed = (from..to).filter(|at| behind(*at) && !tokens.is_symbol(at + 1, ".")).find_map(|at| {
        let name = tokens.name(at)?;
        let key = name.to_ascii_lowercase();
        let has = analysis.schema.tables.contains_key(&key) || analysis.schema.views.contains_key(&key);
        (has && !known(at, &name)).then_some(at)
    });
    match missed {
        Some(at) => Err(SqlError::unsupported(format!("it is not understood what {} is here", tokens.str(at)))
            .hint("name the table without ONLY, and a column of the table's name with a qualifier")
            .at(tokens.text, tokens.start(at))),
        None => Ok(()),
    }
}

// ---- what is not parsed ----

/// The tables of the catalog that a text's words name, whatever they stand for there: those inside of strings, too.
pub(super) fn named<'s>(reader: &Reader<'s>, from: usize, to: usize) -> Vec<&'s Table> {
    let words = Words::of(reader.tokens.slice(from, to));
    let tables = reader.schema.tables.iter();
    tables.filter(|(key, _)| words.name(key)).map(|(_, table)| table).collect()
}

/// The words of a text, those inside of strings, too.
pub(super) struct Words {
    text: String,
    words: BTreeSet<String>,
}

impl Words {
    pub fn of(text: &str) -> Words {
        let text = text.to_ascii_lowercase();
        let words = text.split(|c| !Words::is_in_word(c)).map(str::to_owned).collect();
        Words { text, words }
    }

    fn is_in_word(c: char) -> bool {
        c.is_alphanumeric() || c == '_' || c == '$'
    }

    /// Whether one of them is a table's or view's name, by its key. A name with other characters in it is looked for as it is.
    pub fn name(&self, key: &str) -> bool {
        let name = key.rsplit('.').next().unwrap_or(key);
        if name.chars().all(Words::is_in_word) { self.words.contains(name) } else { self.text.contains(name) }
    }
}

fn any(writes: bool, pins: bool) -> Query {
    let plan = Plan { keyed: Vec::new(), singles: BTreeSet::new(), several: Several::Any };
    let (tables, given, keys) = (Vec::new(), None, Vec::new());
    Query {
        verb: Verb::Other,
        writes,
        pins,
        in_transaction: true,
        tables,
        counts: false,
        notifies: false,
        given,
        keys,
        plan,
    }
}

/// A statement that isn't understood may go to any shard if nothing of the cluster's is in it.
fn not_parsed(reader: &Reader, from: usize, to: usize, error: impl FnOnce() -> SqlError) -> Result<Query, SqlError> {
    let tokens = reader.tokens;
    let reads = ["SELECT", "VALUES", "TABLE", "WITH"].iter().any(|word| tokens.is(from, word))
        && !(from..to).any(|at| ["INSERT", "UPDATE", "DELETE", "MERGE", "INTO"].iter().any(|word| tokens.is(at, word)));
    let tables = named(reader, from, to);
    let harmless = |table: &&Table| reads && table.kind == TableKind::Reference;
    let view = views::names_one(reader, from, to);
    let escaped = (from..to).any(|at| tokens.kind(at) == Some(Kind::Opaque) && tokens.str(at).ends_with('"'));
    let into = tokens.is(from, "SELECT") && (from..to).any(|at| tokens.is(at, "INTO"));
    if !tables.iter().all(harmless) || view || escaped || into {
        return Err(error());
    }
    let called = (from..to).filter(|at| tokens.is_symbol(at + 1, "(")).filter_map(|at| tokens.name(at));
    let pins = called.clone().any(|name| functions::pins(&name));
    let pure = called.into_iter().all(|name| functions::purity(&name) <= Purity::Volatile || is_word(&name));
    Ok(Query { verb: if reads { Verb::Select } else { Verb::Other }, ..any(!(reads && pure), pins) })
}

/// Words that brackets follow without a call.
pub(super) fn is_word(name: &str) -> bool {
    matches!(
        name,
        "and"
            | "or"
            | "not"
            | "in"
            | "exists"
            | "any"
            | "all"
            | "some"
            | "values"
            | "as"
            | "on"
            | "using"
            | "over"
            | "filter"
            | "where"
            | "select"
            | "from"
            | "by"
            | "when"
            | "then"
            | "else"
            | "array"
            | "row"
            | "cast"
            | "lateral"
            | "materialized"
            | "union"
    )
}

/// DO and CALL: what they do is not known, so they must not name a table whose rows are on several shards.
fn opaque(reader: &Reader, from: usize, to: usize) -> Result<Query, SqlError> {
    let word = || reader.tokens.str(from).to_ascii_uppercase();
    let named = match named(reader, from, to).first() {
        None => match views::named(reader, from, to) {
            None => return Ok(any(true, true)),
            Some(view) => format!("the view {view}"),
        },
        Some(table) => format!("the table {}", table.name),
    };
    Err(SqlError::unsupported(format!("{} names {named}: what it does would happen on one shard only", word()))
        .hint("send its statements one by one, in a transaction"))
}

/// TRUNCATE, LOCK, VACUUM, ANALYZE: of the tables that they name, or of all.
fn maintained(reader: &Reader, from: usize, to: usize, in_transaction: bool) -> Result<Query, SqlError> {
    let tokens = reader.tokens;
    let names: BTreeSet<String> = (from + 1..to).filter_map(|at| Some(tokens.name(at)?.to_ascii_lowercase())).collect();
    let all = reader.schema.tables.iter();
    let found: Vec<(&String, &Table)> =
        all.filter(|(key, _)| names.contains(key.rsplit('.').next().unwrap_or(key))).collect();
    if (from..to).any(|at| tokens.are(at, &["RESTART", "IDENTITY"])) {
        if let Some((name, _)) = found.iter().find(|(_, table)| table.serial().is_some()) {
            return Err(
                serial::no_restart(name).hint("leave RESTART IDENTITY out, or drop the table and create it again")
            );
        }
        let cascades = (from..to).any(|at| tokens.is(at, "CASCADE"));
        if let Some((name, _)) = reader.schema.tables.iter().find(|(_, table)| cascades && table.serial().is_some()) {
            return Err(serial::no_restart(name).hint("leave CASCADE out, and name the tables"));
        }
    }
    if tokens.is(from, "LOCK")
        && let Some(view) = views::named(reader, from, to)
    {
        return Err(SqlError::unsupported(format!("the view {view} can't be locked")).hint("lock its tables"));
    }
    let single = |table: &&(&String, &Table)| matches!(table.1.kind, TableKind::Single { .. });
    let singles: BTreeSet<_> = found
        .iter()
        .filter_map(|(_, table)| match table.kind {
            TableKind::Single { shard } => Some(shard),
            _ => None,
        })
        .collect();
    let of_all = found.is_empty() && !tokens.is(from, "TRUNCATE") && !tokens.is(from, "LOCK");
    let mixed = !singles.is_empty() && !found.iter().all(|table| single(&table)) || singles.len() > 1;
    let several = match () {
        () if mixed => Several::Refused(Box::new(
            SqlError::unsupported("the tables are not all on the same shards")
                .hint("send one statement for each table"),
        )),
        () if singles.is_empty() && (of_all || !found.is_empty()) => Several::Every { reference: true },
        () => Several::Any,
    };
    let tables = found.iter().map(|(key, _)| (*key).clone()).collect();
    // A refusal must not be taken for "all on one shard".
    let singles = if mixed { BTreeSet::new() } else { singles };
    let plan = Plan { keyed: Vec::new(), singles, several };
    if let Several::Refused(error) = plan.several {
        return Err(*error);
    }
    Ok(Query { in_transaction, tables, plan, ..any(true, false) })
}

// ---- EXPLAIN ----

/// Where the statement starts that the EXPLAIN at `from` is of, and whether it is carried out.
pub(super) fn explained(tokens: &Tokens, from: usize, to: usize) -> (usize, bool) {
    let mut at = from + 1;
    let mut analyze = false;
    if tokens.is_symbol(at, "(") {
        let close = tokens.closing(at);
        // `EXPLAIN (SELECT …)`: no options.
        if ["SELECT", "VALUES", "WITH", "TABLE"].iter().any(|word| tokens.is(at + 1, word)) {
            return (at, false);
        }
        analyze = (at..close).any(|at| analyzes(tokens, at));
        at = close + 1;
    }
    while at < to && ["ANALYZE", "ANALYSE", "VERBOSE"].iter().any(|word| tokens.is(at, word)) {
        analyze |= !tokens.is(at, "VERBOSE");
        at += 1;
    }
    (at, analyze)
}

fn explain(reader: &Reader, from: usize, to: usize) -> Result<Query, SqlError> {
    let tokens = reader.tokens;
    let (at, analyze) = explained(tokens, from, to);
    let known =
        ["SELECT", "VALUES", "WITH", "TABLE", "INSERT", "UPDATE", "DELETE"].iter().any(|word| tokens.is(at, word));
    if at >= to || !known && !tokens.is_symbol(at, "(") {
        return Err(
            SqlError::unsupported("EXPLAIN of this statement is not supported").hint("explain the query itself")
        );
    }
    let inner = plan(reader, at, to)?;
    if inner.given.is_some() {
        // What an INSERT does with a value doesn't depend on the value; only EXPLAIN ANALYZE takes one.
        return match analyze {
            false => Ok(any(false, false)),
            true => Err(SqlError::unsupported(
                "EXPLAIN ANALYZE of a statement that gets values from Pleat is not supported",
            )
            .hint("give the values of serial columns in the statement")),
        };
    }
    let mut plan = inner.plan;
    plan.several = match plan.several {
        Several::Every { reference: true } if !analyze => Several::Any,
        kept @ (Several::Any | Several::Every { reference: true } | Several::Refused(_)) => kept,
        Several::Every { .. } | Several::Spread(_) | Several::Rows(_) => Several::Refused(Box::new(
            SqlError::unsupported("EXPLAIN of a statement that concerns several shards is not supported yet")
                .hint("say what the shard key is: the plan is much the same on every shard"),
        )),
    };
    Ok(Query { verb: Verb::Other, writes: analyze && inner.writes, plan, ..inner })
}

/// Whether token `at` of EXPLAIN's options is ANALYZE, and not turned off.
fn analyzes(tokens: &Tokens, at: usize) -> bool {
    let off = ["OFF", "FALSE"].iter().any(|word| tokens.is(at + 1, word)) || tokens.str(at + 1) == "0";
    (tokens.is(at, "ANALYZE") || tokens.is(at, "ANALYSE")) && !off
}
