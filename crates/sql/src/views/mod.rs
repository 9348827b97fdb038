//! Views, written out where they are mentioned.
//!
//! No shard knows a view. Before a statement is planned each mention of one in a FROM is replaced by its SELECT, in
//! parentheses and under the name that columns are qualified with:
//!
//! ```text
//! CREATE VIEW adults AS SELECT id, name FROM people WHERE age >= 18
//!
//! SELECT name FROM adults AS a WHERE a.id = 5
//! SELECT name FROM (SELECT id, name FROM people WHERE age >= 18) AS a WHERE a.id = 5
//! ```
//!
//! This is what SQLite does with a view, so the meaning is SQLite's; and as the result is a statement like any other,
//! everything that planning knows of subqueries holds for views, above all that the key in `a.id = 5` finds the shard.
//! Four things differ between a view and a subquery, and are made up for:
//!
//! - *Names inside a view are the database's.* `WITH people AS (…) SELECT * FROM adults` reads the table. So a table in the
//!   body that has the name of a CTE around the mention is written `main.people`.
//! - *Columns may have names of their own*: `CREATE VIEW v(a, b) AS …` becomes a CTE with these columns.
//! - *A result column without an alias is named by its text*, which must be the user's: `SELECT (SELECT max(id) FROM adults)`
//!   gets `AS "(SELECT max(id) FROM adults)"`.
//! - *A view has a schema's name*: `main.adults.id` becomes `adults.id`.
//!
//! Where views are mentioned is read from the tokens (`sources`): a FROM has few forms, and the writes are no trees. What
//! this overlooked would not be found among the tables, and refused. An error's place is led back into the user's text.

mod sources;

use std::collections::BTreeSet;
use std::ops::Range;

use pleat_cluster::{View, Views};

use crate::clauses::{Clauses, Span, list};
use crate::error::{Code, Position, SqlError};
use crate::lex::{Kind, Tokens, quote};
use crate::parse::{STATEMENT_BYTES_MAX, ends_operand, is_keyword};
use sources::{Ctes, Mention, mentions};

/// How many views may stand upon each other.
pub(crate) const VIEWS_DEEP_MAX: usize = 32;

/// A text whose views are written out.
#[derive(Debug)]
pub(crate) struct Expansion {
    pub text: String,
    /// Which bytes of `text` stand for which of the user's, in their order.
    places: Vec<(Range<usize>, Range<usize>)>,
}

/// Writes the views out that `text` mentions. `None` when it mentions none.
pub(crate) fn expand(text: &str, views: &Views) -> Result<Option<Expansion>, SqlError> {
    if views.is_empty() {
        return Ok(None);
    }
    let tokens = Tokens::of(text)?;
    let may = |at| tokens.name(at).is_some_and(|name| views.contains_key(&name.to_ascii_lowercase()));
    if !(0..tokens.len()).any(may) || ["CREATE", "DROP", "ALTER"].iter().any(|word| tokens.is(0, word)) {
        return Ok(None);
    }
    let mut writer = Writer { views, open: Vec::new(), ctes: 0, bytes: text.len() };
    let edits = writer.edits(&tokens, None)?;
    Ok((!edits.is_empty()).then(|| Expansion::of(text, edits)))
}

/// What a view's definition says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Definition<'a> {
    /// `(a, b)`, if its columns are named.
    pub columns: Option<&'a str>,
    /// Its SELECT.
    pub body: &'a str,
}

impl<'a> Definition<'a> {
    /// Reads `CREATE VIEW name …`.
    pub fn of(tokens: &Tokens<'a>) -> Option<Definition<'a>> {
        let mut at = 3;
        let mut columns = None;
        if tokens.is_symbol(at, "(") {
            let close = tokens.closing(at);
            columns = Some(tokens.slice(at, close + 1));
            at = close + 1;
        }
        tokens.is(at, "AS").then(|| Definition { columns, body: tokens.slice(at + 1, tokens.len()) })
    }
}

/// A replacement of bytes of a text.
type Edit = (Range<usize>, String);

struct Writer<'v> {
    views: &'v Views,
    /// The views that are being written out, from the outermost.
    open: Vec<String>,
    /// How many CTEs were put in.
    ctes: usize,
    /// How long the text is by now.
    bytes: usize,
}

impl Writer<'_> {
    /// What is to be replaced in a text: the user's (`around` is `None`), or a view's body, where a table that is called like
    /// one of the CTEs `around` the mention is named with its schema.
    fn edits(&mut self, tokens: &Tokens, around: Option<&BTreeSet<String>>) -> Result<Vec<Edit>, SqlError> {
        let ctes = Ctes::of(tokens);
        let mut edits = Vec::new();
        let mut replaced = Vec::new();
        for mention in mentions(tokens) {
            if ctes.hide(tokens, &mention) {
                continue;
            }
            let name = mention.name(tokens);
            let Some(view) = self.views.get(&name) else {
                if around.is_some_and(|names| names.contains(&name)) && mention.first == mention.table {
                    edits.push((before(tokens, mention.first), "main.".to_owned()));
                }
                continue;
            };
            let mut inside = ctes.in_sight(mention.first);
            inside.extend(around.into_iter().flatten().cloned());
            let text = self.mention(tokens, &mention, view, &inside).map_err(|error| match around {
                None => error.at(tokens.text, tokens.offset(mention.table)),
                Some(_) => error,
            })?;
            edits.push((bytes(tokens, (mention.first, mention.table + 1)), text));
            replaced.push(mention);
        }
        name_items(tokens, &replaced, &mut edits);
        drop_schemas(tokens, &replaced, &mut edits);
        edits.sort_by_key(|(range, _)| (range.start, range.end));
        self.bytes += edits.iter().map(|(_, text)| text.len()).sum::<usize>();
        if self.bytes > STATEMENT_BYTES_MAX {
            let message = format!("with its views written out the statement has more than {STATEMENT_BYTES_MAX} bytes");
            return Err(SqlError::new(Code::TooLong, message).hint("views that mention a view twice grow fast"));
        }
        Ok(edits)
    }

    /// A name for the CTE of a mentioned view that nothing in its body has, nor any other mention's.
    fn unused_name(&mut self, view: &str, body: &str) -> String {
        let body = body.to_ascii_lowercase();
        loop {
            self.ctes += 1;
            let name = format!("{view}#{}", self.ctes);
            if !body.contains(&name.to_ascii_lowercase()) {
                return name;
            }
        }
    }

    /// What stands for a mention of a view.
    fn mention(
        &mut self,
        tokens: &Tokens,
        mention: &Mention,
        view: &View,
        around: &BTreeSet<String>,
    ) -> Result<String, SqlError> {
        let name = view.name.to_ascii_lowercase();
        if self.open.contains(&name) {
            return Err(SqlError::new(Code::InvalidTable, format!("view {} is circularly defined", view.name))
                .hint("DROP VIEW one of the views that name each other"));
        }
        if self.open.len() >= VIEWS_DEEP_MAX {
            return Err(SqlError::new(
                Code::TooComplex,
                format!("more than {VIEWS_DEEP_MAX} views stand upon each other"),
            )
            .hint("name the tables in the upper views"));
        }
        if mention.indexed {
            return Err(SqlError::unsupported(format!("{} is a view and has no index", view.name))
                .hint("leave INDEXED BY out, or put it into the view"));
        }
        let definition_tokens = Tokens::of(&view.sql)?;
        let broken = || SqlError::unsupported(format!("the definition of view {} can't be read", view.name));
        let definition = Definition::of(&definition_tokens).ok_or_else(broken)?;
        self.open.push(name);
        let body = Tokens::of(definition.body)?;
        let edits = self.edits(&body, Some(around))?;
        self.bytes += definition.body.len();
        self.open.pop();
        let body = Expansion::of(definition.body, edits).text;
        let select = match definition.columns {
            None => body,
            Some(columns) => {
                let name = quote(&self.unused_name(&view.name, &body));
                format!("WITH {name}{columns} AS ({body}) SELECT {} FROM {name}", selected(columns))
            }
        };
        Ok(match mention.aliased {
            true => format!("({select})"),
            false => format!("({select}) AS {}", quote(&tokens.name(mention.table).unwrap_or_default())),
        })
    }
}

/// The columns of a list `(a, b)` as a SELECT names them: by name, so that none is fetched in vain.
fn selected(columns: &str) -> String {
    let Ok(tokens) = Tokens::of(columns) else { return "*".to_owned() };
    let names: Vec<String> =
        list(&tokens, (1, tokens.len() - 1)).iter().filter_map(|span| tokens.name(span.0)).collect();
    let different: BTreeSet<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
    match different.len() == names.len() {
        true => names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", "),
        false => "*".to_owned(), // SQLite makes the second `a` something else
    }
}

/// Gives each result column that was named by its text that text as its name, if a view is written out inside of it.
fn name_items(tokens: &Tokens, replaced: &[Mention], edits: &mut Vec<Edit>) {
    if replaced.is_empty() {
        return;
    }
    let selects = (0..tokens.len()).filter(|at| tokens.is(*at, "SELECT"));
    let items = selects.map(|at| Clauses::of(tokens, at, tokens.len()).items);
    let returned =
        (0..tokens.len()).filter(|at| tokens.is(*at, "RETURNING")).map(|at| (at + 1, sources::end(tokens, at)));
    for item in items.chain(returned).flat_map(|span| list(tokens, span)) {
        let inside = |mention: &Mention| (item.0..item.1).contains(&mention.first);
        if replaced.iter().any(inside) && !has_alias(tokens, item) {
            let end = tokens.list[item.1 - 1].end;
            edits.push((end..end, format!(" AS {}", quote(tokens.slice(item.0, item.1)))));
        }
    }
}

fn has_alias(tokens: &Tokens, item: Span) -> bool {
    let last = item.1 - 1;
    let name = match tokens.kind(last) {
        Some(Kind::Word) => !is_keyword(&tokens.str(last).to_ascii_uppercase()),
        Some(Kind::Name | Kind::Text) => true,
        _ => false,
    };
    last > item.0 && name && (tokens.is(last - 1, "AS") || ends_operand(tokens, last - 1))
}

/// `main.v.a` becomes `v.a`: what stands for the view has no schema.
fn drop_schemas(tokens: &Tokens, replaced: &[Mention], edits: &mut Vec<Edit>) {
    for at in 0..tokens.len().saturating_sub(4) {
        let names = tokens.name(at).is_some_and(|name| name.eq_ignore_ascii_case("main"))
            && tokens.is_symbol(at + 1, ".")
            && tokens.is_symbol(at + 3, ".");
        let of_view = |mention: &Mention| {
            tokens.name(at + 2).is_some_and(|name| name.eq_ignore_ascii_case(&mention.alias(tokens)))
        };
        if names && replaced.iter().any(of_view) {
            edits.push((tokens.offset(at)..tokens.offset(at + 2), String::new()));
        }
    }
}

fn bytes(tokens: &Tokens, span: Span) -> Range<usize> {
    tokens.offset(span.0)..tokens.list[span.1 - 1].end
}

fn before(tokens: &Tokens, token: usize) -> Range<usize> {
    let start = tokens.offset(token);
    start..start
}

impl Expansion {
    fn of(text: &str, edits: Vec<Edit>) -> Expansion {
        let mut expansion = Expansion { text: String::with_capacity(text.len()), places: Vec::new() };
        let mut from = 0;
        for (range, with) in edits {
            expansion.text.push_str(&text[from..range.start]);
            let start = expansion.text.len();
            expansion.text.push_str(&with);
            from = range.end;
            expansion.places.push((start..expansion.text.len(), range));
        }
        expansion.text.push_str(&text[from..]);
        expansion
    }

    /// Leads an error about the written-out text back to the user's.
    pub fn point_back(&self, user: &str, error: SqlError) -> SqlError {
        match error.position.map(|position| self.user_offset(self.offset_of(position))) {
            Some(offset) => error.at(user, offset),
            None => error,
        }
    }

    fn offset_of(&self, position: Position) -> usize {
        let line = self.text.split_inclusive('\n').take((position.line as usize).saturating_sub(1));
        let start: usize = line.map(str::len).sum();
        let rest = self.text[start..].char_indices().nth((position.column as usize).saturating_sub(1));
        start + rest.map_or(self.text.len() - start, |(at, _)| at)
    }

    fn user_offset(&self, offset: usize) -> usize {
        let mut shift = (0, 0);
        for (to, from) in &self.places {
            if offset < to.start {
                break;
            }
            if offset < to.end {
                return from.start;
            }
            shift = (to.end, from.end);
        }
        offset - shift.0 + shift.1
    }
}
