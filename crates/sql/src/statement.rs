//! From a request's text to a plan.

use std::collections::BTreeMap;

use pleat_cluster::{Tables, Views};
use sqlparser::ast::Statement as Ast;

use crate::clauses::Span;
use crate::ddl::{DdlPlan, plan_ddl};
use crate::error::{Code, SqlError};
use crate::lex::Tokens;
use crate::params::Slots;
use crate::parse::{self, STATEMENT_BYTES_MAX};
use crate::read::{ReadPlan, plan_read};
use crate::scope::Analysis;
use crate::views::expand;
use crate::write::{self, WritePlan, WritePlans};

/// What a statement is planned against.
#[derive(Clone, Copy, Debug)]
pub struct Schema<'a> {
    pub tables: &'a Tables,
    pub views: &'a Views,
    /// The configuration's `table_shard_keys`: the key's column by table.
    pub default_keys: &'a BTreeMap<String, String>,
}

/// A planned request. It depends on its text and on the schema, not on parameters or placement.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // kept in a cache behind an Arc, never moved around in bulk
pub enum Statement {
    Read(ReadPlan),
    /// One or more writes, all or none of which happen.
    Write(WritePlan),
    Ddl(DdlPlan),
    /// EXPLAIN, or EXPLAIN QUERY PLAN, of a statement.
    Explain(Box<Statement>),
    /// EXPLAIN ANALYZE: the statement is carried out, and what that took is the answer.
    Analyze(Box<Statement>),
}

/// Plans a request: one statement, or several writes separated by `;`.
pub fn prepare(text: &str, schema: &Schema<'_>) -> Result<Statement, SqlError> {
    check_text(text)?;
    match expand(text, schema.views)? {
        None => prepare_tables(text, schema),
        Some(written) => prepare_tables(&written.text, schema).map_err(|error| written.point_back(text, error)),
    }
}

/// Plans a request that mentions no views.
fn prepare_tables(text: &str, schema: &Schema<'_>) -> Result<Statement, SqlError> {
    let tokens = Tokens::of(text)?;
    let spans = statements(&tokens);
    let slots = Slots::of(&tokens)?;
    match spans.as_slice() {
        [] => Err(SqlError::syntax("there is no statement").hint("send a statement, such as SELECT 1")),
        [span] => plan(&tokens, &slots, *span, schema),
        _ => script(&tokens, &slots, &spans, schema),
    }
}

/// The statements of a script, without the `;` between them. Right for strings, comments and triggers.
pub fn split_script(text: &str) -> Result<Vec<&str>, SqlError> {
    let tokens = Tokens::of(text)?;
    Ok(statements(&tokens).into_iter().map(|(from, to)| tokens.slice(from, to)).collect())
}

fn check_text(text: &str) -> Result<(), SqlError> {
    if text.len() > STATEMENT_BYTES_MAX {
        return Err(SqlError::new(
            Code::TooLong,
            format!("the statement is {} bytes long; the most is {STATEMENT_BYTES_MAX}", text.len()),
        )
        .hint("send values as parameters, and many rows through POST /tables/{table}/rows"));
    }
    match text.find('\0') {
        Some(at) => Err(SqlError::syntax("a statement can't contain a NUL character")
            .hint("pass text with NUL characters as a parameter, or write it as char(0)")
            .at(text, at)),
        None => Ok(()),
    }
}

/// The statements in `tokens`, without empty ones. A trigger ends at `; END ;`, others at `;`.
fn statements(tokens: &Tokens) -> Vec<Span> {
    let mut found = Vec::new();
    let mut start = 0;
    for index in 0..=tokens.len() {
        let ends = index == tokens.len() || tokens.is_symbol(index, ";");
        let inside_trigger = || {
            let complete = index > start + 1 && tokens.is(index - 1, "END") && tokens.is_symbol(index - 2, ";");
            index < tokens.len() && is_trigger(tokens, start) && !complete
        };
        if !ends || inside_trigger() {
            continue;
        }
        if index > start {
            found.push((start, index));
        }
        start = index + 1;
    }
    found
}

/// Whether a statement starts like a trigger's definition, whose body has semicolons.
fn is_trigger(tokens: &Tokens, start: usize) -> bool {
    let create = start + usize::from(tokens.is(start, "EXPLAIN"));
    let temporary = tokens.is(create + 1, "TEMP") || tokens.is(create + 1, "TEMPORARY");
    tokens.is(create, "CREATE") && tokens.is(create + 1 + usize::from(temporary), "TRIGGER")
}

fn plan(tokens: &Tokens, slots: &Slots, span: Span, schema: &Schema<'_>) -> Result<Statement, SqlError> {
    if write::verb(tokens, span).is_some() {
        return script(tokens, slots, &[span], schema);
    }
    match tokens.str(span.0).to_ascii_uppercase().as_str() {
        "SELECT" | "VALUES" | "WITH" => {
            let Ast::Query(query) = parse::statement(tokens, slots, span.0, span.1)? else {
                return Err(SqlError::syntax("a SELECT was expected").at(tokens.text, tokens.offset(span.0)));
            };
            plan_read(Analysis::new(*schema, tokens, slots), &query, span).map(Statement::Read)
        }
        "REPLACE" => Err(SqlError::syntax("REPLACE is followed by INTO").at(tokens.text, tokens.offset(span.0))),
        "CREATE" | "DROP" | "ALTER" => plan_ddl(tokens, span, schema).map(Statement::Ddl),
        "EXPLAIN" => {
            let analyze = tokens.is(span.0 + 1, "ANALYZE");
            let skip = if tokens.are(span.0 + 1, &["QUERY", "PLAN"]) { 3 } else { 1 + usize::from(analyze) };
            let inner = (span.0 + skip, span.1);
            if inner.0 >= inner.1 || tokens.is(inner.0, "EXPLAIN") {
                return Err(
                    SqlError::syntax("EXPLAIN is followed by a statement").at(tokens.text, tokens.offset(inner.0))
                );
            }
            let inner = Box::new(plan(tokens, slots, inner, schema)?);
            match (analyze, inner.as_ref()) {
                (false, _) => Ok(Statement::Explain(inner)),
                (true, Statement::Read(_)) => Ok(Statement::Analyze(inner)),
                (true, _) => Err(SqlError::unsupported("EXPLAIN ANALYZE carries a statement out, and this one writes")
                    .hint("EXPLAIN without ANALYZE shows where a write would go")
                    .at(tokens.text, tokens.offset(span.0 + 1))),
            }
        }
        word => Err(other_statement(word).at(tokens.text, tokens.offset(span.0))),
    }
}

/// Plans writes that happen together.
fn script(tokens: &Tokens, slots: &Slots, spans: &[Span], schema: &Schema<'_>) -> Result<Statement, SqlError> {
    let mut plans = WritePlans::new(slots);
    for span in spans {
        let word = tokens.str(span.0);
        if write::verb(tokens, *span).is_none() {
            return Err(SqlError::unsupported(format!(
                "a request of several statements can only write; {word} is no write"
            ))
            .hint("send the statements one by one")
            .at(tokens.text, tokens.offset(span.0)));
        }
        plans.add(Analysis::new(*schema, tokens, slots), *span, spans.len() == 1)?;
    }
    plans.finish().map(Statement::Write)
}

fn other_statement(word: &str) -> SqlError {
    let (what, hint) = match word {
        "BEGIN" | "COMMIT" | "END" | "ROLLBACK" | "SAVEPOINT" | "RELEASE" => {
            ("transactions belong to a session", "POST /sessions, or send BEGIN; …; COMMIT as one request")
        }
        "PRAGMA" => ("PRAGMA is not supported", "GET /tables (or \\d in the shell) describes the tables"),
        "ATTACH" | "DETACH" => ("other databases can't be attached", "load their rows with pleat import"),
        "VACUUM" | "ANALYZE" | "REINDEX" => {
            ("maintenance statements are not supported", "Pleat maintains the shards itself")
        }
        _ => {
            return SqlError::syntax(format!(
                "a statement can't start with {}",
                word.chars().take(40).collect::<String>()
            ))
            .hint("SELECT, WITH, VALUES, INSERT, REPLACE, UPDATE, DELETE, CREATE, DROP, ALTER and EXPLAIN can");
        }
    };
    SqlError::unsupported(what).hint(hint)
}
