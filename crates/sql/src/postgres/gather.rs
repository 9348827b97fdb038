//! Fetching the rows that a statement needs, and running the statement itself over them.
//!
//! Of each table that isn't in the finishing session the columns that the statement names are fetched, and of its rows those
//! that meet the conditions on it that a shard can check. The statement then mentions the temporary tables in the place of the tables; all
//! else of it is as the client wrote it.

use std::collections::BTreeSet;

use pleat_cluster::TableKind;
use sqlparser::ast::Expr;

use super::analysis::{Analysis, Mention};
use super::compose::{Composer, Replacement, quote};
use super::lex::Tokens;
use super::parse::expression;
use super::plan::{Fetch, Part, Piece, Source, Spread};
use crate::error::SqlError;

/// The temporary table of fetch `at`.
pub(super) fn temporary(at: usize) -> String {
    format!("__pleat_{at}")
}

pub(super) fn plan(analysis: &Analysis, (from, to): (usize, usize)) -> Result<Spread, SqlError> {
    let tokens = analysis.tokens;
    let every = analysis.every_column
        || (from..to).any(|at| tokens.is_symbol(at, "*") && tokens.is_symbol(at.wrapping_sub(1), "."));
    let names: BTreeSet<String> = (from..to).filter_map(|at| tokens.name(at)).collect();
    let mut fetches: Vec<Fetch> = Vec::new();
    let mut replacements = Vec::new();
    for mention in &analysis.mentions {
        let source = match mention.table.kind {
            TableKind::Reference => continue,
            TableKind::Sharded { .. } => Source::Sharded,
            TableKind::Single { shard } => Source::Single(shard),
        };
        let (start, end) = mention.tokens.ok_or_else(|| {
            SqlError::unsupported("TABLE of a sharded table is not understood here")
                .hint("write SELECT * FROM the table")
        })?;
        let part = rows_of(mention, tokens, (start, end), |name| every || names.contains(name), analysis.groups);
        let known =
            fetches.iter().find(|fetch| fetch.part == part && fetch.from == source).map(|fetch| fetch.table.clone());
        let table = known.unwrap_or_else(|| {
            let table = temporary(fetches.len());
            let primary_key = if analysis.groups { mention.table.primary_key.clone() } else { Vec::new() };
            fetches.push(Fetch { table: table.clone(), primary_key, part, from: source });
            table
        });
        let alias = if mention.has_alias { String::new() } else { format!(" AS {}", quote(&mention.alias)) };
        replacements.push(Replacement {
            from: start,
            to: end,
            with: Piece::text(format!("pg_temp.{}{alias}", quote(&table))),
        });
    }
    replacements.sort_by_key(|replacement| replacement.from);
    let mut composer = Composer::default();
    composer.replaced(tokens, from, to, &replacements);
    Ok(Spread::Gather { fetches, finish: composer.part() })
}

/// The statement that gives a table's rows, as far as they are needed.
fn rows_of(
    mention: &Mention,
    tokens: &Tokens,
    (start, end): (usize, usize),
    needed: impl Fn(&str) -> bool,
    with_primary_key: bool,
) -> Part {
    let in_key = |name: &String| with_primary_key && mention.table.primary_key.contains(name);
    let all = mention.table.columns.iter().map(|column| &column.name);
    let mut columns: Vec<String> =
        all.clone().filter(|name| needed(name) || in_key(name)).map(|name| quote(name)).collect();
    if columns.is_empty() {
        columns.extend(all.take(1).map(|name| quote(name)));
    }
    let mut composer = Composer::default();
    composer.text(&format!(
        "SELECT {} FROM {} AS {}",
        columns.join(", "),
        tokens.slice(start, end),
        quote(&mention.alias)
    ));
    let mut word = " WHERE ";
    for filter in mention.filters.iter().filter_map(printed) {
        composer.text(word);
        composer.text("(");
        composer.piece(&filter);
        composer.text(")");
        word = " AND ";
    }
    composer.part()
}

/// A condition written out, if what is written surely says the same.
fn printed(filter: &Expr) -> Option<Piece> {
    let text = filter.to_string();
    let tokens = Tokens::of(&text).ok()?;
    (expression(&tokens, 0, tokens.len()).as_ref() == Some(filter)).then(|| Piece::of(&tokens, 0, tokens.len()))
}
