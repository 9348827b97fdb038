//! What SQL itself prepares and opens by name: PREPARE, EXECUTE, DECLARE, FETCH, MOVE and CLOSE.
//!
//! A prepared statement is the same thing whether PREPARE made it or a Parse message, and a cursor is a portal: they share their names
//! and their limits, and DEALLOCATE and the end of a transaction are for both. (drivers mix them: psycopg's named cursors are DECLARE, pgjdbc's
//! are portals.) A cursor's rows are read when it is declared and are in memory, as all rows of a transaction; it goes forward only, and lives as long as
//! its transaction: WITH HOLD is refused. EXECUTE takes values and no expressions.
//!
//! What such a statement answers depends on the session, and so is not among what is known by text.

use std::sync::Arc;

use pleat_cluster::Value;

use super::cancel::Key;
use super::client::{Client, Stop};
use super::dialect::lex::{Kind as Token, Tokens};
use super::extended::{Portal, Prepared, no_portal, no_statement};
use super::known::{Column, Kind, Known, Tag, What};
use super::run::{Answer, RowsAnswer};
use super::session::Session;
use super::types::Type;
use crate::session::Failure;

/// One of these statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Prepare {
        name: String,
        types: Vec<Type>,
        text: String,
    },
    /// The values as texts; none for NULL.
    Execute {
        name: String,
        values: Vec<Option<String>>,
    },
    Declare {
        name: String,
        text: String,
    },
    Fetch {
        name: String,
        most: u64,
        /// MOVE: they are only counted.
        shown: bool,
    },
    /// None: all of them.
    Close(Option<String>),
}

/// Read such a statement. `None`: it is none.
pub fn read(tokens: &Tokens<'_>) -> Option<Result<Command, Failure>> {
    match tokens.str(0).to_ascii_uppercase().as_str() {
        "PREPARE" => Some(prepare(tokens)),
        "EXECUTE" => Some(execute(tokens)),
        "DECLARE" => Some(declare(tokens)),
        "FETCH" => Some(fetch(tokens, true)),
        "MOVE" => Some(fetch(tokens, false)),
        "CLOSE" => Some(match tokens.is(1, "ALL") {
            true => Ok(Command::Close(None)),
            false => name(tokens, 1).map(|name| Command::Close(Some(name))),
        }),
        _ => None,
    }
}

/// How the end of such a statement is told, if not by what it carries out.
pub fn tag(command: &Command) -> Tag {
    match command {
        Command::Prepare { .. } => Tag::Plain("PREPARE".to_owned()),
        Command::Execute { .. } => Tag::Counted("SELECT"),
        Command::Declare { .. } => Tag::Plain("DECLARE CURSOR".to_owned()),
        Command::Fetch { shown: true, .. } => Tag::Counted("FETCH"),
        Command::Fetch { .. } => Tag::Counted("MOVE"),
        Command::Close(Some(_)) => Tag::Plain("CLOSE CURSOR".to_owned()),
        Command::Close(None) => Tag::Plain("CLOSE CURSOR ALL".to_owned()),
    }
}

fn syntax(tokens: &Tokens<'_>, at: usize, wanted: &str) -> Failure {
    let found = tokens.list.get(at).map_or_else(|| "the end".to_owned(), |_| format!("\"{}\"", tokens.str(at)));
    Failure::new(
        "42601",
        format!("syntax error at {found}: {wanted} is expected"),
        "see PostgreSQL's manual for its form",
    )
}

fn name(tokens: &Tokens<'_>, at: usize) -> Result<String, Failure> {
    tokens.name(at).ok_or_else(|| syntax(tokens, at, "a name"))
}

/// The text from a token on.
fn rest(tokens: &Tokens<'_>, at: usize) -> Result<String, Failure> {
    let begin = tokens.list.get(at).ok_or_else(|| syntax(tokens, at, "a statement"))?.start;
    Ok(tokens.text[begin..].to_owned())
}

/// `PREPARE name [(type, …)] AS statement`
fn prepare(tokens: &Tokens<'_>) -> Result<Command, Failure> {
    let name = name(tokens, 1)?;
    let (mut at, mut types) = (2, Vec::new());
    if tokens.is_symbol(at, "(") {
        loop {
            let (of, next) = tokens.type_name(at + 1).ok_or_else(|| syntax(tokens, at + 1, "a type"))?;
            types.push(Type::cast(&of).unwrap_or(Type::Unknown));
            at = next;
            match tokens.str(at) {
                "," => {}
                ")" => break,
                _ => return Err(syntax(tokens, at, "\",\" or \")\"")),
            }
        }
        at += 1;
    }
    match tokens.is(at, "AS") {
        true => Ok(Command::Prepare { name, types, text: rest(tokens, at + 1)? }),
        false => Err(syntax(tokens, at, "AS")),
    }
}

/// `EXECUTE name [(value, …)]`
fn execute(tokens: &Tokens<'_>) -> Result<Command, Failure> {
    let name = name(tokens, 1)?;
    let (mut at, mut values) = (2, Vec::new());
    if tokens.is_symbol(at, "(") {
        loop {
            let (value, next) = value(tokens, at + 1)?;
            values.push(value);
            at = next;
            match tokens.str(at) {
                "," => {}
                ")" => break,
                _ => return Err(syntax(tokens, at, "\",\" or \")\"")),
            }
        }
        at += 1;
    }
    match at < tokens.len() {
        true => Err(syntax(tokens, at, "the end")),
        false => Ok(Command::Execute { name, values }),
    }
}

/// A literal, with a sign before it or a cast behind it, and where it ends.
fn value(tokens: &Tokens<'_>, at: usize) -> Result<(Option<String>, usize), Failure> {
    let sign = tokens.is_symbol(at, "-") || tokens.is_symbol(at, "+");
    let minus = tokens.is_symbol(at, "-");
    let at = at + usize::from(sign);
    let value = match tokens.kind(at) {
        Some(Token::Number) => Some(format!("{}{}", if minus { "-" } else { "" }, tokens.str(at))),
        Some(Token::Text) if !sign => Some(tokens.string(at)?),
        Some(Token::Word) if !sign && tokens.is(at, "NULL") => None,
        Some(Token::Word) if !sign && (tokens.is(at, "TRUE") || tokens.is(at, "FALSE")) => {
            Some(tokens.str(at).to_lowercase())
        }
        _ => {
            let hint = "give numbers, texts, TRUE, FALSE or NULL; or send the values with the extended protocol";
            return Err(Failure::new("0A000", "EXECUTE takes values, not expressions", hint));
        }
    };
    let mut next = at + 1;
    while tokens.is_symbol(next, "::") {
        next = tokens.type_name(next + 1).ok_or_else(|| syntax(tokens, next + 1, "a type"))?.1;
    }
    Ok((value, next))
}

/// `DECLARE name [BINARY] [ASENSITIVE | INSENSITIVE] [[NO] SCROLL] CURSOR [{WITH | WITHOUT} HOLD] FOR query`
fn declare(tokens: &Tokens<'_>) -> Result<Command, Failure> {
    let refused = |what: &str, hint: &str| Err(Failure::new("0A000", format!("{what} is not supported"), hint));
    let name = name(tokens, 1)?;
    let mut at = 2;
    while !tokens.is(at, "CURSOR") {
        match tokens.str(at).to_ascii_uppercase().as_str() {
            "ASENSITIVE" | "INSENSITIVE" => {}
            "NO" if tokens.is(at + 1, "SCROLL") => at += 1,
            "SCROLL" => return refused("a cursor that goes back", "declare it with NO SCROLL, and fetch forward"),
            "BINARY" => return refused("a BINARY cursor", "ask for binary results with the extended protocol"),
            _ => return Err(syntax(tokens, at, "CURSOR")),
        }
        at += 1;
    }
    at += 1;
    if tokens.are(at, &["WITH", "HOLD"]) {
        return refused("a cursor WITH HOLD", "fetch its rows inside the transaction");
    }
    if tokens.are(at, &["WITHOUT", "HOLD"]) {
        at += 2;
    }
    if !tokens.is(at, "FOR") {
        return Err(syntax(tokens, at, "FOR"));
    }
    // Nothing that is named in turn: a message of DECLAREs in DECLAREs would be looked into to its depths.
    let is_query = ["SELECT", "WITH", "VALUES"].iter().any(|word| tokens.is(at + 1, word));
    match is_query || tokens.is_symbol(at + 1, "(") {
        true => Ok(Command::Declare { name, text: rest(tokens, at + 1)? }),
        false => Err(syntax(tokens, at + 1, "a query")),
    }
}

/// `{FETCH | MOVE} [NEXT | ALL | FORWARD [n | ALL] | n] [FROM | IN] name`
fn fetch(tokens: &Tokens<'_>, shown: bool) -> Result<Command, Failure> {
    let count = |at: usize| tokens.str(at).parse::<u64>().ok().filter(|_| tokens.kind(at) == Some(Token::Number));
    let is_last = |at: usize| at + 1 == tokens.len();
    let mut at = 1;
    let mut most = 1;
    let forward = tokens.is(at, "FORWARD") && !is_last(at);
    at += usize::from(forward);
    if is_last(at) {
        // Only the name is left, whatever it is.
    } else if let Some(count) = count(at) {
        most = count;
        at += 1;
    } else if tokens.is(at, "ALL") {
        most = u64::MAX;
        at += 1;
    } else if tokens.is(at, "NEXT") && !forward {
        at += 1;
    } else if at < tokens.len() && !tokens.is(at, "FROM") && !tokens.is(at, "IN") {
        let hint = "FETCH takes NEXT, a number, ALL or FORWARD; declare the query in the other order to go back";
        return Err(Failure::new("55000", "cursor can only scan forward", hint));
    }
    if !is_last(at) && (tokens.is(at, "FROM") || tokens.is(at, "IN")) {
        at += 1;
    }
    match is_last(at) && !tokens.is(at, "FROM") && !tokens.is(at, "IN") {
        true => Ok(Command::Fetch { name: name(tokens, at)?, most, shown }),
        false => Err(syntax(tokens, at, "a cursor's name")),
    }
}

impl Session {
    /// The columns that a statement answers in this session.
    pub(super) fn columns_of<'a>(&'a self, known: &'a Known) -> Result<&'a [Column], Failure> {
        let known = match &known.what {
            What::Named(Command::Execute { name, .. }) => {
                self.statements.get(name).ok_or_else(|| no_statement(name))?.known()
            }
            What::Named(Command::Fetch { name, shown: true, .. }) => {
                self.portals.get(name).ok_or_else(|| no_portal(name))?.known()
            }
            _ => known,
        };
        known.columns.as_deref().map_err(Clone::clone)
    }

    /// Carry out such a statement. A cursor's query may have values.
    pub(super) async fn named(
        &mut self,
        client: &mut Client,
        key: &Key,
        command: &Command,
        values: Vec<Value>,
        alone: bool,
    ) -> Result<Answer, Stop> {
        let done = || Ok(Answer::Done(tag(command).text(0)));
        match command {
            Command::Prepare { name, types, text } => {
                let known = self.know(text).await?;
                if !matches!(&known.what, What::Sql { kind: Kind::Read | Kind::Write, .. } | What::System(_)) {
                    let hint = "prepare a SELECT, INSERT, UPDATE or DELETE";
                    return Err(Failure::new("42601", "a statement of this kind can't be prepared", hint).into());
                }
                let declared = types.iter().map(|of| if *of == Type::Unknown { 0 } else { of.oid() }).collect();
                self.prepare(name.clone(), text.clone(), known, declared)?;
                done()
            }
            Command::Execute { name, values } => {
                let prepared = self.statements.get(name).cloned().ok_or_else(|| no_statement(name))?;
                let values = prepared.values(values)?;
                let known = self.know(prepared.text()).await?;
                Box::pin(self.run(client, key, &known, values, alone)).await
            }
            Command::Declare { name, text } => {
                if !self.in_block() {
                    let hint = "begin one, or read the rows at once";
                    let what = "DECLARE CURSOR can only be used in transaction blocks";
                    return Err(Failure::new("25P01", what, hint).into());
                }
                if self.portals.contains_key(name) {
                    return Err(
                        Failure::new("42P03", format!("cursor \"{name}\" already exists"), "CLOSE it first").into()
                    );
                }
                let known = self.know(text).await?;
                if !matches!(&known.what, What::Sql { kind: Kind::Read, .. } | What::System(_)) {
                    return Err(Failure::new("42601", "a cursor is for a query", "declare it for a SELECT").into());
                }
                let answer = Box::pin(self.run(client, key, &known, values, alone)).await?;
                let portal = Portal::opened(Arc::new(Prepared::of(text.clone(), known)), answer);
                self.check_room(portal.size())?;
                self.portals.insert(name.clone(), portal);
                done()
            }
            Command::Fetch { name, most, shown } => {
                let portal = self.portals.get_mut(name).ok_or_else(|| no_portal(name))?;
                let columns = portal.known().columns.clone()?;
                let rows = portal.take_rows(client, key, *most).await?;
                match shown {
                    true => Ok(RowsAnswer::held(columns, rows, tag(command))),
                    false => Ok(Answer::Done(tag(command).text(rows.len() as u64))),
                }
            }
            Command::Close(Some(name)) => {
                self.portals.remove(name).ok_or_else(|| no_portal(name))?;
                done()
            }
            Command::Close(None) => {
                self.portals.clear();
                done()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_(text: &str) -> Result<Command, String> {
        read(&Tokens::of(text).unwrap()).unwrap().map_err(|failure| failure.code.to_string())
    }

    #[test]
    fn forms() {
        let prepare = |types: &[Type], text: &str| Command::Prepare {
            name: "s".to_owned(),
            types: types.to_vec(),
            text: text.to_owned(),
        };
        assert_eq!(read_("PREPARE s AS SELECT 1"), Ok(prepare(&[], "SELECT 1")));
        assert_eq!(
            read_("prepare S (int, double precision, whatever) as SELECT $1, $2"),
            Ok(prepare(&[Type::Int4, Type::Float8, Type::Text], "SELECT $1, $2"))
        );
        let execute = |values: &[Option<&str>]| Command::Execute {
            name: "s".to_owned(),
            values: values.iter().map(|value| value.map(str::to_owned)).collect(),
        };
        assert_eq!(read_("EXECUTE s"), Ok(execute(&[])));
        assert_eq!(
            read_("EXECUTE s (-1, 'it''s', NULL, true, '2024-01-01'::date)"),
            Ok(execute(&[Some("-1"), Some("it's"), None, Some("true"), Some("2024-01-01")]))
        );
        let declare = Command::Declare { name: "c".to_owned(), text: "SELECT 1".to_owned() };
        assert_eq!(read_("DECLARE c CURSOR FOR SELECT 1").as_ref(), Ok(&declare));
        assert_eq!(
            read_("DECLARE \"c\" INSENSITIVE NO SCROLL CURSOR WITHOUT HOLD FOR SELECT 1").as_ref(),
            Ok(&declare)
        );
        for (text, most) in [
            ("FETCH c", 1),
            ("FETCH FROM c", 1),
            ("FETCH NEXT IN c", 1),
            ("FETCH 5 c", 5),
            ("FETCH FORWARD 5 FROM c", 5),
            ("FETCH FORWARD FROM c", 1),
            ("FETCH ALL FROM c", u64::MAX),
            ("FETCH FORWARD ALL IN \"c\"", u64::MAX),
        ] {
            assert_eq!(read_(text), Ok(Command::Fetch { name: "c".to_owned(), most, shown: true }), "{text}");
        }
        assert_eq!(read_("CLOSE c"), Ok(Command::Close(Some("c".to_owned()))));
        assert_eq!(read_("CLOSE ALL"), Ok(Command::Close(None)));
    }

    #[test]
    fn what_there_is_not() {
        for (text, code) in [
            ("PREPARE", "42601"),
            ("PREPARE s", "42601"),
            ("PREPARE s (int AS SELECT 1", "42601"),
            ("PREPARE s AS", "42601"),
            ("EXECUTE s (1 + 1)", "42601"),
            ("EXECUTE s (now())", "0A000"),
            ("EXECUTE s (1", "42601"),
            ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "0A000"),
            ("DECLARE c SCROLL CURSOR FOR SELECT 1", "0A000"),
            ("DECLARE c CURSOR", "42601"),
            ("DECLARE c CURSOR FOR DECLARE c CURSOR FOR SELECT 1", "42601"),
            ("DECLARE c CURSOR FOR DELETE FROM t", "42601"),
            ("FETCH PRIOR FROM c", "55000"),
            ("FETCH BACKWARD 2 FROM c", "55000"),
            ("FETCH 1 FROM", "42601"),
            ("FETCH IN", "42601"),
            ("FETCH", "42601"),
            ("CLOSE", "42601"),
        ] {
            assert_eq!(read_(text), Err(code.to_owned()), "{text}");
        }
    }
}
