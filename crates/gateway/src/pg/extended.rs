//! The extended protocol: Parse, Bind, Describe, Execute, Close, and Sync at the end.
//!
//! What is executed between two Syncs belongs to one transaction. Whether a statement is alone there shows when the
//! next message has come: if it is Sync, the statement needs no transaction block. The client waits for nothing
//! before it has sent Sync or Flush, so waiting for its next message can't go on for ever.

use std::sync::Arc;

use parking_lot::Mutex;
use pleat_cluster::Value;

use super::cancel::Key;
use super::client::{Client, Stop};
use super::dialect::lex::split;
use super::known::{Known, What};
use super::run::{Answer, fields};
use super::session::Session;
use super::types::Type;
use super::types::value::{Format, read, read_number_as_text};
use super::wire::{Bind, Message, Target};
use crate::session::Failure;
use crate::settings::PG_NAME_BYTES_MAX;

/// A prepared statement.
pub struct Prepared {
    text: String,
    known: Arc<Known>,
    /// The types that the client named; 0 where it left it open.
    declared: Vec<u32>,
    /// The types that parameters are read as.
    types: Vec<Type>,
}

/// A statement with its values, ready to be executed, or under way.
pub struct Portal {
    prepared: Arc<Prepared>,
    values: Vec<Value>,
    /// Of the columns.
    formats: Vec<Format>,
    /// What it gave, once it was executed. Nobody ever waits for the lock: rows on their way are not to be looked at by two
    /// at once, and this says so.
    answer: Mutex<Option<Answer>>,
}

impl Prepared {
    /// A statement without parameters.
    pub(super) fn of(text: String, known: Arc<Known>) -> Self {
        Self { text, known, declared: Vec::new(), types: Vec::new() }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn known(&self) -> &Known {
        &self.known
    }

    /// Values of all parameters, from texts.
    pub(super) fn values(&self, texts: &[Option<String>]) -> Result<Vec<Value>, Failure> {
        let (wanted, given) = (self.types.len(), texts.len());
        if given != wanted {
            let message = format!("wrong number of parameters: the statement has {wanted}, {given} were given");
            return Err(Failure::new("42601", message, "give one value for each parameter"));
        }
        let values = texts.iter().enumerate();
        let values = values.map(|(at, text)| self.value(at, text.as_ref().map(String::as_bytes), Format::Text));
        let mut values = values.collect::<Result<Vec<_>, _>>()?;
        values.truncate(self.known.parameters.len());
        Ok(values)
    }

    pub(super) fn size(&self) -> usize {
        self.text.len() + self.declared.len() * 8
    }

    /// What the client is told of the parameters.
    fn oids(&self) -> Vec<u32> {
        let told = |at: usize| self.declared.get(at).copied().filter(|oid| *oid != 0);
        self.types.iter().enumerate().map(|(at, of)| told(at).unwrap_or_else(|| of.oid())).collect()
    }

    /// The value of a parameter.
    fn value(&self, at: usize, bytes: Option<&[u8]>, format: Format) -> Result<Value, Failure> {
        let Some(bytes) = bytes else { return Ok(Value::Null) };
        let wanted = self.types.get(at).copied().unwrap_or(Type::Text);
        let oid = self.declared.get(at).copied().unwrap_or(0);
        let value = match (Type::of_oid(oid), format) {
            _ if oid == 0 => read(bytes, wanted, format),
            // The statement says what a text is to be.
            (Some(of), format) if of.is_text() && !wanted.is_text() => {
                read(bytes, wanted, Format::Text).or_else(|_| read(bytes, of, format))
            }
            // More digits than a number has room for: where a text is wanted, they are kept.
            (Some(Type::Numeric), format) if self.known.parameters.get(at).is_some_and(|of| of.is_text()) => {
                read(bytes, Type::Numeric, format).or_else(|_| read_number_as_text(bytes, format))
            }
            (Some(of), format) => read(bytes, of, format),
            (None, Format::Text) => read(bytes, Type::Text, format),
            (None, Format::Binary) => Err(Failure::new(
                "0A000",
                format!("a value of the type with oid {oid} can't be read in binary format"),
                "send it as text",
            )),
        };
        value.map_err(|failure| Failure { message: format!("parameter ${}: {}", at + 1, failure.message), ..failure })
    }
}

impl Portal {
    /// A statement that was executed, and none of its rows fetched.
    pub(super) fn opened(prepared: Arc<Prepared>, answer: Answer) -> Self {
        Self { prepared, values: Vec::new(), formats: Vec::new(), answer: Mutex::new(Some(answer)) }
    }

    pub(super) fn known(&self) -> &Known {
        &self.prepared.known
    }

    /// The next rows, at most so many.
    pub(super) async fn take_rows(
        &mut self,
        client: &mut Client,
        key: &Key,
        most: u64,
    ) -> Result<Vec<Vec<Value>>, Stop> {
        let mut rows = Vec::new();
        if let Some(Answer::Rows(answer)) = self.answer.get_mut() {
            while (rows.len() as u64) < most
                && let Some(row) = answer.next(client, key).await?
            {
                rows.push(row);
            }
        }
        Ok(rows)
    }

    /// Whether rows are left that the client has not fetched.
    pub(super) fn has_rows(&self) -> bool {
        matches!(*self.answer.lock(), Some(Answer::Rows(_)))
    }

    pub(super) fn size(&self) -> usize {
        self.values.iter().map(Value::size).sum()
    }
}

pub(super) fn no_statement(name: &str) -> Failure {
    let hint = "it was never prepared on this connection, or it was closed";
    Failure::new("26000", format!("prepared statement \"{name}\" does not exist"), hint)
}

pub(super) fn no_portal(name: &str) -> Failure {
    let hint = "a portal ends with its transaction; without a BEGIN that is the next Sync";
    Failure::new("34000", format!("portal \"{name}\" does not exist"), hint)
}

impl Session {
    /// Carry out a message of the extended protocol, other than Sync.
    pub(super) async fn extended(&mut self, client: &mut Client, key: &Key, message: Message) -> Result<(), Stop> {
        match message {
            Message::Parse { name, text, types } => self.parse(client, name, text, types).await,
            Message::Bind(bind) => self.bind(client, bind),
            Message::Describe(target) => self.describe(client, &target).map_err(Stop::Failed),
            Message::Execute { portal, rows } => self.execute(client, key, portal, rows).await,
            Message::Close(target) => {
                match &target {
                    Target::Statement(name) => drop(self.statements.remove(name)),
                    Target::Portal(name) => drop(self.portals.remove(name)),
                }
                client.out.plain(b'3');
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn parse(&mut self, client: &mut Client, name: String, text: String, declared: Vec<u32>) -> Result<(), Stop> {
        check_name(&name)?;
        if split(&text)?.len() > 1 {
            let hint = "prepare them one by one, or send them in a simple query";
            return Err(Failure::new("42601", "cannot insert multiple commands into a prepared statement", hint).into());
        }
        let known = self.know(&text).await?;
        if !matches!(known.what, What::Control { .. }) {
            self.check_block()?;
        }
        self.prepare(name, text, known, declared)?;
        client.out.plain(b'1');
        Ok(())
    }

    /// Keep a statement under its name.
    pub(super) fn prepare(
        &mut self,
        name: String,
        text: String,
        known: Arc<Known>,
        declared: Vec<u32>,
    ) -> Result<(), Failure> {
        if !name.is_empty() && self.statements.contains_key(&name) {
            let hint = "close it first, or use another name";
            return Err(Failure::new("42P05", format!("prepared statement \"{name}\" already exists"), hint));
        }
        let deduced = |at: usize| known.parameters.get(at).copied().unwrap_or(Type::Text);
        let named = |at: usize| declared.get(at).and_then(|oid| Type::of_oid(*oid)).filter(|of| !of.is_text());
        let count = known.parameters.len().max(declared.len());
        let types = (0..count).map(|at| named(at).unwrap_or_else(|| deduced(at))).collect();
        let prepared = Prepared { text, known, declared, types };
        self.statements.remove(&name);
        self.check_room(prepared.size())?;
        self.statements.insert(name, Arc::new(prepared));
        Ok(())
    }

    fn bind(&mut self, client: &mut Client, bind: Bind) -> Result<(), Stop> {
        check_name(&bind.portal)?;
        let prepared = self.statements.get(&bind.statement).cloned().ok_or_else(|| no_statement(&bind.statement))?;
        if !matches!(prepared.known.what, What::Control { .. }) {
            self.check_block()?;
        }
        if !bind.portal.is_empty() && self.portals.contains_key(&bind.portal) {
            let hint = "close it first, or use another name";
            return Err(Failure::new("42P03", format!("portal \"{}\" already exists", bind.portal), hint).into());
        }
        let wanted = prepared.types.len();
        if bind.values.len() != wanted {
            let message =
                format!("bind message supplies {} parameters, but the statement has {wanted}", bind.values.len());
            return Err(Failure::new("08P01", message, "send one value for each parameter").into());
        }
        let formats = formats(&bind.formats, wanted)?;
        let values = bind.values.iter().zip(formats).enumerate();
        let values = values.map(|(at, (bytes, format))| prepared.value(at, bytes.as_deref(), format));
        // A statement takes as many values as it has parameters; a client may declare more.
        let mut values = values.collect::<Result<Vec<_>, _>>()?;
        values.truncate(prepared.known.parameters.len());
        let columns = self.columns_of(&prepared.known).map_or(0, <[_]>::len);
        let formats = self::formats(&bind.results, columns)?;
        self.portals.remove(&bind.portal);
        let portal = Portal { prepared, values, formats, answer: Mutex::default() };
        self.check_room(portal.size())?;
        self.portals.insert(bind.portal, portal);
        client.out.plain(b'2');
        Ok(())
    }

    fn describe(&mut self, client: &mut Client, target: &Target) -> Result<(), Failure> {
        let (known, formats) = match target {
            Target::Statement(name) => {
                let prepared = self.statements.get(name).ok_or_else(|| no_statement(name))?;
                client.out.parameter_types(&prepared.oids());
                (prepared.known.clone(), Vec::new())
            }
            Target::Portal(name) => {
                let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
                (portal.prepared.known.clone(), portal.formats.clone())
            }
        };
        match self.columns_of(&known)? {
            [] => client.out.plain(b'n'),
            columns => client.out.row_description(&fields(columns, &formats)),
        }
        Ok(())
    }

    async fn execute(&mut self, client: &mut Client, key: &Key, name: String, most: u32) -> Result<(), Stop> {
        // Taken out, so that it is gone if anything fails.
        let mut portal = self.portals.remove(&name).ok_or_else(|| no_portal(&name))?;
        let answer = match portal.answer.get_mut().take() {
            Some(answer) => answer,
            None => {
                let alone = client.reader.peek().await? == Some(b'S');
                let values = std::mem::take(&mut portal.values);
                let known = portal.prepared.known.clone();
                // Before it runs: an error after a write would say that nothing was done.
                let now = self.know(&portal.prepared.text).await?;
                check_same(&now, &known)?;
                self.run(client, key, &known, values, alone).await?
            }
        };
        let answer = match answer {
            Answer::Empty => {
                client.out.plain(b'I');
                Answer::Empty
            }
            Answer::Done(tag) => {
                client.out.complete(&tag);
                Answer::Done(tag)
            }
            Answer::Rows(mut rows) => match rows.send(client, key, &portal.formats, most).await? {
                true => {
                    let tag = rows.tag.text(rows.sent);
                    client.out.complete(&tag);
                    Answer::Done(rows.tag.text(0))
                }
                false => {
                    client.out.plain(b's');
                    Answer::Rows(rows)
                }
            },
        };
        let kept = self.in_block() || matches!(answer, Answer::Rows(_));
        *portal.answer.get_mut() = Some(answer);
        if kept {
            self.portals.insert(name, portal);
        }
        Ok(())
    }
}

pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    match name.len() > PG_NAME_BYTES_MAX {
        true => Err(Failure::new(
            "42622",
            format!("the name of a statement or portal has {} bytes; the limit is {PG_NAME_BYTES_MAX}", name.len()),
            "use a shorter name",
        )),
        false => Ok(()),
    }
}

/// The columns must be those that the client was told of.
fn check_same(now: &Known, told: &Known) -> Result<(), Failure> {
    match (&now.columns, &told.columns) {
        (Ok(now), Ok(told)) if now != told => Err(Failure::new(
            "0A000",
            "cached plan must not change result type",
            "the schema has changed since the statement was prepared: prepare it again",
        )),
        _ => Ok(()),
    }
}

/// A format for each: none are given (all are text), one for all, or one each.
fn formats(codes: &[i16], count: usize) -> Result<Vec<Format>, Failure> {
    match codes {
        [] => Ok(vec![Format::Text; count]),
        [one] => Ok(vec![Format::of(*one)?; count]),
        codes if codes.len() == count => codes.iter().map(|code| Format::of(*code)).collect(),
        codes => {
            let message = format!("{} formats were given for {count} values", codes.len());
            Err(Failure::new("08P01", message, "give none, one for all, or one for each"))
        }
    }
}
