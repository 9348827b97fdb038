//! Values that Pleat gives: serial and identity columns that an INSERT leaves out, `nextval`, `currval`, `lastval`, `setval`.
//!
//! # The problem
//!
//! A value must be known before its row is routed, since it may be the shard key, and it must be another one on every server. So no server can give
//! it. But what the client wrote has no place for it.
//!
//! # The mechanism
//!
//! The client's text gets more parameters, behind the client's own: `INSERT INTO t (a) VALUES ($1)` becomes `INSERT INTO t (a, "id") VALUES ($1,
//! $2)`. That text is planned like any other, so keys, rows that are taken apart and upserts need no second way; whoever carries it out
//! binds values for the places ([`Given`]). A text stays the same from one execution to the next, and so it stays prepared.
//! Describing the client's own text gives the right types: each server has the column's default, though nobody uses it.
//!
//! Everything is done by tokens, as the parser knows neither DEFAULT VALUES in all its forms nor OVERRIDING. What is not
//! understood for certain is left as it is; then a server is asked for a value, which it refuses to give ([`pleat_cluster::withhold`]).
//!
//! # Caveats
//!
//! A value that is given once stands for a whole statement. So `nextval` is for the rows of VALUES, and for a SELECT without FROM. How
//! many rows INSERT … SELECT makes nobody knows before it ran: the column has to be among the selected.

use pleat_cluster::{Serial, ShardId, Table, TableKind, table_key};

use super::clauses::commas;
use super::compose::quote;
use super::functions::{self, Purity};
use super::lex::{Kind, Tokens};
use super::parse::overriding;
use super::plan::{Given, GivenValue, Query};
use super::query::is_word;
use super::statement::Reader;
use crate::error::{Code, SqlError};

/// What the protocol can count.
const PARAMS_MAX: usize = 65_535;

/// A statement's text with places for values; `None`: it needs none.
pub(super) fn given(reader: &Reader, from: usize, to: usize) -> Result<Option<Given>, SqlError> {
    if !reader.schema.tables.values().any(|table| table.serial().is_some()) {
        return Ok(None);
    }
    let params = (from..to).filter_map(|at| reader.tokens.param(at)).max().map_or(0, |last| last + 1);
    let mut writer = Writer { reader, from, to, params, values: Vec::new(), edits: Vec::new() };
    writer.calls()?;
    writer.inserts()?;
    if writer.edits.is_empty() {
        return Ok(None);
    }
    writer.finish().map(Some)
}

/// Refuses a statement that needs values where it is used otherwise than by itself.
pub(super) fn refuse(query: &Query, place: &str) -> Result<(), SqlError> {
    match query.given {
        None => Ok(()),
        Some(_) => Err(SqlError::unsupported(format!("{place} can't have values that Pleat gives"))
            .hint("ask for the value first (SELECT nextval(…)), and send it as a constant")),
    }
}

/// ALTER SEQUENCE … RESTART, TRUNCATE … RESTART IDENTITY, of the table of this name.
pub(super) fn no_restart(table: &str) -> SqlError {
    SqlError::unsupported(format!("the values of {table}'s serial column don't begin anew: Pleat gives each once"))
}

/// Whether a statement asks a sequence.
pub(super) fn counts(tokens: &Tokens, from: usize, to: usize) -> bool {
    (from..to).any(|at| asks(tokens, at))
}

fn asks(tokens: &Tokens, at: usize) -> bool {
    let name = || tokens.name(at).is_some_and(|name| matches!(name.as_str(), "nextval" | "currval" | "setval"));
    tokens.is_symbol(at + 1, "(") && name()
}

/// The shard whose sequence a statement calls for, by naming that of a single table. Those of other servers are other ones.
pub(super) fn of_single(reader: &Reader, from: usize, to: usize) -> Option<ShardId> {
    let tokens = reader.tokens;
    let mut calls = (from..to).filter(|at| asks(tokens, *at));
    calls.find_map(|at| {
        let argument = commas(tokens, at + 2, tokens.closing(at + 1).min(to)).first().copied()?;
        match named(reader, argument)?.1.kind {
            TableKind::Single { shard } => Some(shard),
            _ => None,
        }
    })
}

/// The table whose sequence an argument names: `'s'`, `'s'::regclass` or `pg_get_serial_sequence('t', 'c')`.
fn named<'a>(reader: &Reader<'a>, (from, to): (usize, usize)) -> Option<(String, &'a Table)> {
    let tokens = reader.tokens;
    let cast = |at: usize| at == to || tokens.is_symbol(at, "::") && tokens.is(at + 1, "regclass") && at + 2 == to;
    let of = |found: &dyn Fn(&str, &str, &Serial) -> bool| {
        let has = |(key, table): &(&String, &Table)| {
            table
                .columns
                .iter()
                .any(|column| column.serial.as_ref().is_some_and(|serial| found(key, &column.name, serial)))
        };
        reader.schema.tables.iter().find(has).map(|(key, table)| (key.clone(), table))
    };
    if let Some(name) = tokens.string(from).filter(|_| cast(from + 1)) {
        let (schema, name) = parts(&name)?;
        let schema = schema.unwrap_or_else(|| "public".to_owned());
        return of(&|_, _, serial| serial.sequence == name && serial.schema == schema);
    }
    let (open, comma) = (from + 1, from + 3);
    if tokens.is(from, "pg_get_serial_sequence") && tokens.is_symbol(open, "(") && tokens.is_symbol(comma, ",") {
        let (schema, name) = parts(&tokens.string(open + 1)?)?;
        let column = tokens.string(comma + 1).filter(|_| tokens.closing(open) == comma + 2 && cast(comma + 3))?;
        let table = table_key(schema.as_deref().unwrap_or("public"), &name);
        return of(&|key, name, _| key == table && name == column);
    }
    None
}

/// The tokens `from..to` (perhaps none) written otherwise.
struct Edit {
    from: usize,
    to: usize,
    with: Vec<Bit>,
}

enum Bit {
    Text(String),
    Value(GivenValue),
}

fn text(text: impl Into<String>) -> Bit {
    Bit::Text(text.into())
}

struct Writer<'r, 'a> {
    reader: &'r Reader<'a>,
    from: usize,
    to: usize,
    params: usize,
    values: Vec<GivenValue>,
    edits: Vec<Edit>,
}

impl<'a> Writer<'_, 'a> {
    fn tokens(&self) -> &'a Tokens<'a> {
        self.reader.tokens
    }

    fn edit(&mut self, from: usize, to: usize, with: Vec<Bit>) {
        self.edits.push(Edit { from, to, with });
    }

    fn is(&self, at: usize, word: &str) -> bool {
        at < self.to && self.tokens().is(at, word)
    }

    fn finish(mut self) -> Result<Given, SqlError> {
        let tokens = self.tokens();
        let mut edits = std::mem::take(&mut self.edits);
        edits.sort_by_key(|edit| edit.from);
        let mut written = String::new();
        let mut at = tokens.start(self.from);
        for edit in edits {
            let start = if edit.from < self.to { tokens.start(edit.from) } else { tokens.end(self.to - 1) };
            written.push_str(&tokens.text[at..start.max(at)]);
            for bit in edit.with {
                match bit {
                    Bit::Text(text) => written.push_str(&text),
                    Bit::Value(value) => {
                        self.values.push(value);
                        written.push_str(&format!("${}", self.params + self.values.len()));
                    }
                }
            }
            at = if edit.from == edit.to { start } else { tokens.end(edit.to - 1) };
        }
        written.push_str(&tokens.text[at..tokens.end(self.to - 1)]);
        if self.params + self.values.len() > PARAMS_MAX {
            return Err(SqlError::new(
                Code::TooLong,
                "the statement has more rows without a serial value than can be given one at once",
            )
            .hint("insert fewer rows with a statement, or COPY them"));
        }
        Ok(Given { text: written, params: self.params, values: self.values })
    }

    // ---- calls ----

    /// `nextval('sequence')` and its like, of sequences that are Pleat's.
    fn calls(&mut self) -> Result<(), SqlError> {
        let mut depth = 0i32;
        let mut at = self.from;
        while at < self.to {
            depth += i32::from(self.tokens().opens(at));
            let name = self.tokens().name(at).filter(|_| self.tokens().is_symbol(at + 1, "("));
            if let Some(name @ ("nextval" | "currval" | "lastval" | "setval")) = name.as_deref() {
                let close = self.tokens().closing(at + 1);
                if close < self.to
                    && let Some(value) = self.called(name, at, (at + 2, close))?
                {
                    self.replace_call(name, at, close + 1, depth, value);
                    at = close + 1;
                    continue;
                }
            }
            at += 1;
        }
        Ok(())
    }

    fn replace_call(&mut self, name: &str, at: usize, end: usize, depth: i32, value: GivenValue) {
        let tokens = self.tokens();
        let schema = at >= self.from + 2 && tokens.is_symbol(at - 1, ".") && tokens.is(at - 2, "pg_catalog");
        let start = if schema { at - 2 } else { at };
        // What SELECT gives is called like the function.
        let item = depth == 0
            && start > self.from
            && (self.is(start - 1, "SELECT") || tokens.is_symbol(start - 1, ","))
            && self.is(self.from, "SELECT")
            && (end >= self.to || tokens.is_symbol(end, ",") || self.is(end, "FROM"));
        let name = if item { format!(" AS {name}") } else { String::new() };
        self.edit(start, end, vec![Bit::Value(value), text(name)]);
    }

    /// What a call stands for; `None`: it is a server's.
    fn called(&self, name: &str, at: usize, (from, to): (usize, usize)) -> Result<Option<GivenValue>, SqlError> {
        if name == "lastval" {
            return Ok(Some(GivenValue::Last));
        }
        let arguments = commas(self.tokens(), from, to);
        let Some((key, table)) = arguments.first().and_then(|argument| self.counted(*argument)) else {
            return Ok(None);
        };
        let found = |value| Ok(Some(value));
        match name {
            "currval" => found(GivenValue::Current { table: key }),
            "nextval" => match self.once(at) {
                true => found(GivenValue::Next { table: key }),
                false => Err(SqlError::unsupported(format!(
                    "nextval of {}'s sequence would have to be called for each row",
                    table.name
                ))
                .hint("use it in VALUES, or in a SELECT without FROM; an INSERT may leave the column out")),
            },
            _ => {
                let number = |(from, to): &(usize, usize)| {
                    let digits = self.tokens().slice(*from, *to);
                    digits.trim().parse::<i64>().ok()
                };
                let to = arguments.get(1).and_then(number);
                let called =
                    arguments.get(2).is_none_or(|(at, _)| !self.is(*at, "false") && !is_false(self.tokens(), *at));
                match to {
                    Some(to) => found(GivenValue::Set { table: key, to, called }),
                    None => Err(SqlError::unsupported("setval takes a number where Pleat gives the values")
                        .hint("write the number; new values begin above the largest of a primary key by themselves")),
                }
            }
        }
    }

    /// Whether what stands at `at` is computed once: in a row of VALUES, or in a SELECT that reads nothing.
    fn once(&self, at: usize) -> bool {
        let tokens = self.tokens();
        let called = |at: usize| tokens.name(at).filter(|_| tokens.is_symbol(at + 1, "("));
        let cast = |at: usize| at > self.from && (tokens.is_symbol(at - 1, "::") || self.is(at - 1, "AS"));
        // A function of the user's may give a set of rows.
        let unknown = |at: usize, name: &str| {
            functions::purity(name) == Purity::Unknown
                && !matches!(name, "nextval" | "currval" | "lastval" | "setval")
                && !is_word(name)
                && !cast(at)
        };
        let several = |at: usize| {
            self.is(at, "FROM") || called(at).is_some_and(|name| functions::gives_sets(&name) || unknown(at, &name))
        };
        let reads = (self.from..self.to).any(several);
        if self.is(self.from, "SELECT") {
            return !reads;
        }
        let values = (self.from..at).rfind(|at| self.is(*at, "VALUES"));
        let ends = |word: &str| values.is_some_and(|values| (values..at).any(|at| self.is(at, word)));
        self.is(self.from, "INSERT")
            && values.is_some()
            && !["SELECT", "RETURNING", "CONFLICT"].iter().any(|word| ends(word))
            && (self.from..at).map(|at| i32::from(tokens.opens(at))).sum::<i32>() >= 1
    }

    /// The table that is not single whose sequence an argument names.
    fn counted(&self, argument: (usize, usize)) -> Option<(String, &'a Table)> {
        named(self.reader, argument).filter(|(_, table)| table.serial().is_some())
    }

    // ---- INSERT ----

    fn inserts(&mut self) -> Result<(), SqlError> {
        let mut depth = 0i32;
        for at in self.from..self.to {
            depth += i32::from(self.tokens().opens(at));
            if self.is(at, "INSERT") && self.is(at + 1, "INTO") {
                self.insert(at + 2, depth)?;
            }
        }
        Ok(())
    }

    /// Where the name at `at` ends, and the table that it is.
    fn target(&self, mut at: usize) -> Option<(usize, String, &'a Table)> {
        let tokens = self.tokens();
        let mut parts = vec![tokens.name(at)?];
        while tokens.is_symbol(at + 1, ".") {
            parts.push(tokens.name(at + 2)?);
            at += 2;
        }
        let schema = if parts.len() > 1 { parts[parts.len() - 2].as_str() } else { "public" };
        let key = table_key(schema, parts.last()?);
        let table = self.reader.schema.tables.get(&key)?;
        Some((at + 1, key, table))
    }

    fn insert(&mut self, at: usize, depth: i32) -> Result<(), SqlError> {
        let tokens = self.tokens();
        let Some((mut at, key, table)) = self.target(at) else { return Ok(()) };
        let Some((column, serial)) = table.serial() else { return Ok(()) };
        if self.is(at, "AS") {
            at += 2;
        }
        let queries = ["SELECT", "WITH", "VALUES", "TABLE"];
        let lists = tokens.is_symbol(at, "(")
            && !tokens.is_symbol(at + 1, "(")
            && !queries.iter().any(|word| self.is(at + 1, word));
        let mut list = Columns { place: table.columns.iter().position(|one| one.name == column), close: None };
        if lists {
            let close = tokens.closing(at);
            let names = commas(tokens, at + 1, close);
            list.place = names.iter().position(|(from, _)| tokens.name(*from).as_deref() == Some(column));
            list.close = Some(close);
            at = close + 1;
        }
        let overrides = overriding(tokens, at);
        if overrides && self.is(at + 1, "USER") {
            return Err(SqlError::unsupported("OVERRIDING USER VALUE is not supported where Pleat gives the values")
                .hint(format!("leave {column} out of the columns")));
        }
        let head = at;
        at += if overrides { 3 } else { 0 };
        // GENERATED ALWAYS takes a value from Pleat as from anybody else.
        let insists = (serial.always && !overrides).then_some(head);
        let next = || Bit::Value(GivenValue::Next { table: key.clone() });
        if self.is(at, "DEFAULT") && self.is(at + 1, "VALUES") {
            if lists {
                return Ok(()); // which is no SQL
            }
            self.refuse_nested(depth, table, column)?;
            let insists = if insists.is_some() { " OVERRIDING SYSTEM VALUE" } else { "" };
            let start = if overrides { head } else { at };
            let kept = if overrides { " OVERRIDING SYSTEM VALUE" } else { insists };
            self.edit(start, at + 2, vec![text(format!("({}){kept} VALUES (", quote(column))), next(), text(")")]);
            return Ok(());
        }
        let by_hand = || by_hand(table, column, serial, overrides);
        if !self.is(at, "VALUES") {
            return match list.place {
                Some(_) => by_hand(),
                None => Err(counts_unknown(table, column)),
            };
        }
        let rows = self.rows(at + 1);
        let widths: Vec<usize> = rows.iter().map(|(open, close)| commas(tokens, open + 1, *close).len()).collect();
        let missing = |width: &usize| list.place.is_none_or(|place| place >= *width);
        let absent = widths.iter().all(missing);
        if !absent && widths.iter().any(missing) {
            // Rows of different lengths: the server says what is wrong.
            return Ok(());
        }
        let united = rows
            .last()
            .is_some_and(|(_, close)| ["UNION", "INTERSECT", "EXCEPT"].iter().any(|word| self.is(close + 1, word)));
        if absent && united {
            return Err(counts_unknown(table, column));
        }
        if absent {
            self.refuse_nested(depth, table, column)?;
            if let Some(close) = list.close {
                self.edit(close, close, vec![text(format!(", {}", quote(column)))]);
            } else if let Some(width) = widths.first() {
                let names = table.columns.iter().take(*width).map(|one| quote(&one.name));
                let names: Vec<String> = names.chain([quote(column)]).collect();
                self.edit(head, head, vec![text(format!("({}) ", names.join(", ")))]);
            }
            self.insist(insists);
            for (_, close) in rows {
                self.edit(close, close, vec![text(", "), next()]);
            }
            return Ok(());
        }
        let cells = rows.iter().filter_map(|(open, close)| commas(tokens, open + 1, *close).get(list.place?).copied());
        let (open, fixed): (Vec<_>, Vec<_>) =
            cells.partition(|(from, to)| from + 1 == *to && self.is(*from, "DEFAULT"));
        if !fixed.is_empty() {
            by_hand()?;
            // Then it is the server that refuses it.
            if insists.is_some() {
                return Ok(());
            }
        }
        if !open.is_empty() {
            self.refuse_nested(depth, table, column)?;
            self.insist(insists);
        }
        for (from, to) in open {
            self.edit(from, to, vec![next()]);
        }
        Ok(())
    }

    fn insist(&mut self, at: Option<usize>) {
        if let Some(at) = at {
            self.edit(at, at, vec![text("OVERRIDING SYSTEM VALUE ")]);
        }
    }

    fn refuse_nested(&self, depth: i32, table: &Table, column: &str) -> Result<(), SqlError> {
        if depth == 0 {
            return Ok(());
        }
        Err(SqlError::unsupported(format!("an INSERT inside of WITH has to give {column} of {} a value", table.name))
            .hint("ask for the value first (SELECT nextval(…)), or write it as two statements in one transaction"))
    }

    /// The brackets of the rows behind VALUES.
    fn rows(&self, mut at: usize) -> Vec<(usize, usize)> {
        let tokens = self.tokens();
        let mut found = Vec::new();
        while at < self.to && tokens.is_symbol(at, "(") {
            let close = tokens.closing(at);
            if close >= self.to {
                break;
            }
            found.push((at, close));
            at = close + 1;
            if at >= self.to || !tokens.is_symbol(at, ",") {
                break;
            }
            at += 1;
        }
        found
    }
}

/// What an INSERT says of its columns.
struct Columns {
    /// Where the column that counts stands; `None`: it is left out.
    place: Option<usize>,
    /// The `)` of the list of columns.
    close: Option<usize>,
}

fn by_hand(table: &Table, column: &str, serial: &Serial, overrides: bool) -> Result<(), SqlError> {
    match serial.sole && overrides {
        true => Err(SqlError::unsupported(format!(
            "{column} of {} is unique over all shards because Pleat gives its values, so nobody else can",
            table.name
        ))
        .hint("leave the column out")),
        false => Ok(()),
    }
}

fn counts_unknown(table: &Table, column: &str) -> SqlError {
    SqlError::unsupported(format!(
        "an INSERT … SELECT has to give {column} of {} values: how many rows need one is not known before",
        table.name
    ))
    .hint("select values for it, or read the rows first and insert them with VALUES or COPY")
}

fn is_false(tokens: &Tokens, at: usize) -> bool {
    tokens.kind(at) == Some(Kind::Text)
        && matches!(tokens.string(at).as_deref(), Some("f" | "false" | "n" | "no" | "off" | "0"))
}

/// A name as `regclass` reads it: `s`, `public.s`, `"S"`.
fn parts(name: &str) -> Option<(Option<String>, String)> {
    let tokens = Tokens::of(name).ok()?;
    match tokens.len() {
        1 => Some((None, tokens.name(0)?)),
        3 if tokens.is_symbol(1, ".") => Some((tokens.name(0), tokens.name(2)?)),
        _ => None,
    }
}
