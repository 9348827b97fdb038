//! Views: a statement that reads one is planned as if the view's query stood in its place.
//!
//! Every server has the view and, asked through it, has its own rows alone. So a plan is made of the text with each view *written out*:
//!
//! ```text
//! CREATE VIEW adults AS SELECT id, name FROM people WHERE age >= 18
//!
//! SELECT name FROM adults a WHERE a.id = 5
//! SELECT name FROM (SELECT people.id, people.name FROM public.people WHERE people.age >= 18) a WHERE a.id = 5
//! ```
//!
//! What then turns out to concern one shard goes there as the client wrote it, view and all. What is taken apart is cut from the text that is
//! written out, and so is what leaves out rows that are being moved ([`Screen`](super::Screen)).
//!
//! The query is a server's own word (`pg_get_viewdef`), in which tables have their schemas: no CTE around it takes one's place.
//!
//! A view whose tables are all single, on one shard, can be written to: the statement goes there.

use std::collections::BTreeSet;

use pleat_cluster::{ShardId, Table, TableKind};

use super::analysis::Analysis;
use super::compose::quote;
use super::functions::Purity;
use super::lex::Tokens;
use super::statement::Reader;
use super::{parse, query};
use crate::Schema;
use crate::error::{Code, SqlError};
use crate::parse::STATEMENT_BYTES_MAX;
use crate::views::VIEWS_DEEP_MAX;

/// A view that a statement reads, where its name stands.
#[derive(Clone, Debug)]
pub(super) struct Viewed {
    /// Its key in the catalog.
    pub key: String,
    /// As written, without its schema: what columns are qualified with if there is no alias.
    pub name: String,
    pub tokens: Option<(usize, usize)>,
    pub has_alias: bool,
}

/// The statement that the tokens `from..to` spell with its views written out. `None` when it reads none, or isn't understood itself.
pub(super) fn written_out(reader: &Reader, from: usize, to: usize) -> Result<Option<String>, SqlError> {
    let mut text = match one_level(reader, from, to) {
        Ok(Some(text)) => text,
        Ok(None) => return Ok(None),
        Err(error) if error.code == Code::Unsupported => return Ok(None),
        Err(error) => return Err(error),
    };
    for _ in 1..VIEWS_DEEP_MAX {
        let tokens = Tokens::of(&text)?;
        let next = one_level(&Reader { tokens: &tokens, schema: reader.schema }, 0, tokens.len());
        match next.map_err(not_understood)? {
            None => return Ok(Some(text)),
            Some(next) => text = next,
        }
    }
    Err(SqlError::new(Code::TooComplex, format!("more than {VIEWS_DEEP_MAX} views stand upon each other"))
        .hint("have a view read the tables themselves"))
}

fn not_understood(error: SqlError) -> SqlError {
    if error.code != Code::Unsupported {
        return SqlError { position: None, ..error };
    }
    let message = format!("the query of a view that is read here can't be routed: {}", error.message);
    SqlError { position: None, message, ..error }
}

/// The text of a statement with each view that it names replaced by its query. `None`: it names none.
fn one_level(reader: &Reader, from: usize, to: usize) -> Result<Option<String>, SqlError> {
    if !names_one(reader, from, to) {
        return Ok(None);
    }
    let tokens = reader.tokens;
    let mut analysis = Analysis::new(reader.schema, tokens);
    let statement = parse::statement(tokens, from, to)?;
    analysis.statement(&statement)?;
    let mut views = analysis.views;
    if views.is_empty() {
        return Ok(None);
    }
    views.sort_by_key(|view| view.tokens);
    let (mut text, mut at) = (String::new(), tokens.start(from));
    for view in &views {
        let (start, end) = view.tokens.ok_or_else(|| {
            SqlError::unsupported("TABLE of a view is not understood here").hint("write SELECT * FROM the view")
        })?;
        let sql = reader.schema.views.get(&view.key).map_or("", |view| view.sql.as_str());
        if sql.is_empty() {
            return Err(SqlError::unsupported(format!(
                "{} is a materialized view, which has rows of one shard",
                view.name
            ))
            .hint("make a plain view of it, or keep the rows in a table"));
        }
        text.push_str(&tokens.text[at..tokens.start(start)]);
        text.push_str(&format!("({})", sql.trim().trim_end_matches(';')));
        if text.len() > STATEMENT_BYTES_MAX {
            let message = format!("with its views written out the statement has more than {STATEMENT_BYTES_MAX} bytes");
            return Err(SqlError::new(Code::TooLong, message).hint("read fewer views in one statement"));
        }
        if !view.has_alias {
            text.push_str(&format!(" AS {}", quote(&view.name)));
        }
        at = tokens.end(end - 1);
    }
    text.push_str(&tokens.text[at..tokens.end(to - 1)]);
    Ok(Some(text))
}

/// Whether a word is a view's name, wherever it stands.
pub(super) fn names_one(reader: &Reader, from: usize, to: usize) -> bool {
    let views = reader.schema.views;
    if views.is_empty() {
        return false;
    }
    let bare: BTreeSet<&str> = views.keys().map(|key| key.rsplit('.').next().unwrap_or(key)).collect();
    let names =
        |at: usize| reader.tokens.name(at).is_some_and(|name| bare.contains(name.to_ascii_lowercase().as_str()));
    (from..to).any(names)
}

/// A view that a text's words name, those inside of strings, too.
pub(super) fn named<'s>(reader: &Reader<'s>, from: usize, to: usize) -> Option<&'s str> {
    let words = query::Words::of(reader.tokens.slice(from, to));
    reader.schema.views.iter().find(|(key, _)| words.name(key)).map(|(_, view)| view.name.as_str())
}

/// A table whose rows are not on every server, and that a function in the query may read, by its words: nobody knows what that function does.
pub(super) fn hidden<'s>(reader: &Reader<'s>, from: usize, to: usize) -> Option<&'s Table> {
    let mut analysis = Analysis::new(reader.schema, reader.tokens);
    let statement = parse::statement(reader.tokens, from, to).ok()?;
    analysis.statement(&statement).ok()?;
    let named = by_words(reader, reader.tokens.slice(from, to), &mut BTreeSet::new());
    let named = named.iter().filter_map(|key| reader.schema.tables.get(key));
    let read = |table: &&Table| analysis.mentions.iter().any(|mention| mention.table.id == table.id);
    let mut others = named.filter(|table| table.kind != TableKind::Reference && !read(table));
    if analysis.purity == Purity::Unknown { others.next() } else { None }
}

/// The tables of the catalog that the query of the tokens `from..to` reads, itself and through views; by their keys. Where that isn't
/// understood, all whose names are words of it or of views that it names.
pub(super) fn tables_of(reader: &Reader, from: usize, to: usize) -> BTreeSet<String> {
    let understood = |reader: &Reader, from: usize, to: usize| {
        let mut analysis = Analysis::new(reader.schema, reader.tokens);
        query::understood(&mut analysis, (from, to)).ok()?;
        Some(analysis.mentions.iter().map(|mention| mention.key.clone()).collect())
    };
    let out = || -> Option<BTreeSet<String>> {
        match written_out(reader, from, to).ok()? {
            None => understood(reader, from, to),
            Some(text) => {
                let tokens = Tokens::of(&text).ok()?;
                understood(&Reader { tokens: &tokens, schema: reader.schema }, 0, tokens.len())
            }
        }
    };
    out().unwrap_or_else(|| by_words(reader, reader.tokens.slice(from, to), &mut BTreeSet::new()))
}

/// Those that words name. `seen`: views that have been looked into.
fn by_words(reader: &Reader, text: &str, seen: &mut BTreeSet<String>) -> BTreeSet<String> {
    let words = query::Words::of(text);
    let tables = reader.schema.tables.keys().filter(|key| words.name(key)).cloned();
    let mut found: BTreeSet<String> = tables.collect();
    for (key, view) in reader.schema.views {
        if words.name(key) && seen.insert(key.clone()) {
            found.extend(by_words(reader, &view.sql, seen));
        }
    }
    found
}

/// The shard that has all that a view reads: its tables are single, and there are some.
pub(super) fn shard_of(schema: Schema<'_>, key: &str) -> Option<(String, ShardId)> {
    let tokens = Tokens::of(&schema.views.get(key)?.sql).ok()?;
    let mut to = tokens.len();
    while to > 0 && tokens.is_symbol(to - 1, ";") {
        to -= 1;
    }
    let mut found: Option<(String, ShardId)> = None;
    for table in tables_of(&Reader { tokens: &tokens, schema }, 0, to) {
        let TableKind::Single { shard } = schema.tables.get(&table)?.kind else { return None };
        match &found {
            Some((_, other)) if *other != shard => return None,
            Some(_) => {}
            None => found = Some((table, shard)),
        }
    }
    found
}
