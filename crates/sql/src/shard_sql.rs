//! The text that shards run: the user's own words, with little put in and cut out.
//!
//! A shard may hold rows that it does not own. In the filtered text each mention of a sharded table, however deep, is
//! replaced by the rows of it that are owned: `t AS x` by `(SELECT * FROM "t" WHERE pleat_owned("k")) AS "x"`. What
//! holds for a shard that has only its own rows then holds there too.

use std::collections::BTreeMap;

use crate::clauses::{Output, Span};
use crate::lex::quote;
use crate::read::Template;
use crate::scope::Analysis;

/// A part of the statement to copy, with what to put before and after some of its tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Copy {
    pub before: BTreeMap<usize, Vec<Piece>>,
    pub after: BTreeMap<usize, String>,
    /// Runs of tokens that are replaced, by their first token: the token after them, and the text.
    pub replaced: BTreeMap<usize, (usize, Output)>,
}

/// Something to put in.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Text(String),
    /// Other tokens of the statement.
    Tokens(Span),
}

/// Writes the statement for a shard, once as it is and once for shards that hold rows of others.
pub(crate) fn both(write: impl Fn(bool) -> Output) -> (Template, Template) {
    (write(false).into(), write(true).into())
}

impl Copy {
    /// Appends the tokens of `span`; `owned` leaves rows out that the shard does not own.
    pub fn write(&self, analysis: &Analysis, span: Span, owned: bool, output: &mut Output) {
        let (tokens, slots) = (analysis.tokens, analysis.slots);
        let mentions = if owned { sharded_mentions(analysis) } else { BTreeMap::new() };
        let mut index = span.0;
        while index < span.1 {
            for piece in self.before.get(&index).into_iter().flatten() {
                match piece {
                    Piece::Text(text) => output.push(text),
                    Piece::Tokens(span) => Copy::default().write(analysis, *span, owned, output),
                }
            }
            if let Some((end, text)) = self.replaced.get(&index) {
                output.append(text);
                index = *end;
                continue;
            }
            match mentions.get(&index) {
                Some(occurrence) => index = write_owned(analysis, *occurrence, output),
                None => {
                    output.token(tokens, slots, index);
                    if let Some(text) = self.after.get(&index) {
                        output.push(text);
                    }
                    index += 1;
                }
            }
        }
    }
}

/// The mentions of sharded tables by their first token.
fn sharded_mentions(analysis: &Analysis) -> BTreeMap<usize, usize> {
    let first = |at: usize| {
        let token = analysis.occurrences[at].tokens.0;
        if token > 1 && analysis.tokens.is_symbol(token - 1, ".") { token - 2 } else { token }
    };
    let sharded = (0..analysis.occurrences.len()).filter(|at| analysis.key_type(*at).is_some());
    sharded.map(|at| (first(at), at)).collect()
}

/// Writes the owned rows of a mention; gives the token after it.
fn write_owned(analysis: &Analysis, at: usize, output: &mut Output) -> usize {
    let (occurrence, table, tokens) = (&analysis.occurrences[at], analysis.table(at), analysis.tokens);
    let mut end = occurrence.tokens.1;
    let mut index = "";
    if tokens.is(end, "INDEXED") && tokens.is(end + 1, "BY") {
        index = tokens.slice(end, end + 3);
        end += 3;
    } else if tokens.is(end, "NOT") && tokens.is(end + 1, "INDEXED") {
        index = "NOT INDEXED";
        end += 2;
    }
    let space = if index.is_empty() { "" } else { " " };
    let key = table.shard_key().map_or("", |(key, _)| key);
    // `main.t` may have been written because a CTE is called `t`.
    let qualified = occurrence.tokens.0 > 1 && tokens.is_symbol(occurrence.tokens.0 - 1, ".");
    let schema = if qualified { "main." } else { "" };
    output.word(&format!(
        "(SELECT * FROM {schema}{}{space}{index} WHERE pleat_owned({})) AS {}",
        quote(&table.name),
        quote(key),
        quote(&occurrence.alias)
    ));
    end
}

/// Whether a column is named with its schema (`main.t.a`), which a subquery in place of the table would not answer to.
pub(crate) fn names_schema(analysis: &Analysis) -> bool {
    let tokens = analysis.tokens;
    (0..tokens.len().saturating_sub(4))
        .any(|at| tokens.name(at).is_some() && tokens.is_symbol(at + 1, ".") && tokens.is_symbol(at + 3, "."))
}
