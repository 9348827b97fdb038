//! Carrying out one statement, and its answer.

use std::sync::Arc;

use futures::stream::{self, StreamExt};
use pleat_cluster::Value;

use super::cancel::Key;
use super::client::{Client, Stop};
use super::known::{Column, Kind, Known, Tag, What};
use super::session::Session;
use super::settings::Command;
use super::types::Type;
use super::types::value::{Format, put};
use super::wire::write::{Field, Severity};
use crate::http::Admitted;
use crate::session::{Failure, Output, Params, Request, Response, Rows};

/// What a statement gave.
pub enum Answer {
    Rows(Box<RowsAnswer>),
    /// Its tag.
    Done(String),
    Empty,
}

/// Rows that are not sent yet.
pub struct RowsAnswer {
    pub columns: Vec<Column>,
    pub rows: Rows,
    /// Rows of the last chunk that are left.
    pub left: std::vec::IntoIter<Vec<Value>>,
    pub tag: Tag,
    pub sent: u64,
    /// A place among the requests that are served.
    _admitted: Option<Admitted>,
}

impl RowsAnswer {
    fn answer(columns: Vec<Column>, rows: Rows, tag: Tag, admitted: Option<Admitted>) -> Answer {
        let left = Vec::new().into_iter();
        Answer::Rows(Box::new(Self { columns, rows, left, tag, sent: 0, _admitted: admitted }))
    }

    pub fn held(columns: Vec<Column>, rows: Vec<Vec<Value>>, tag: Tag) -> Answer {
        Self::answer(columns, stream::iter([Ok(rows)]).boxed(), tag, None)
    }

    /// Send at most so many rows (0: all). True when none is left.
    pub async fn send(&mut self, client: &mut Client, key: &Key, formats: &[Format], most: u32) -> Result<bool, Stop> {
        let mut sent = 0;
        while let Some(row) = self.next(client, key).await? {
            self.row(client, &row, formats)?;
            self.sent += 1;
            sent += 1;
            client.flush_much().await?;
            if sent == most {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The next row.
    pub async fn next(&mut self, client: &mut Client, key: &Key) -> Result<Option<Vec<Value>>, Stop> {
        loop {
            if let Some(row) = self.left.next() {
                return Ok(Some(row));
            }
            match client.unless_cancelled(key, self.rows.next()).await? {
                None => return Ok(None),
                Some(chunk) => self.left = chunk?.into_iter(),
            }
        }
    }

    fn row(&self, client: &mut Client, row: &[Value], formats: &[Format]) -> Result<(), Failure> {
        let mut wrong = None;
        client.out.row(row.len(), |body| {
            for (at, value) in row.iter().enumerate() {
                let of = self.columns.get(at).map_or(Type::Text, |column| column.of);
                let put = put(body, value, of, formats.get(at).copied().unwrap_or_default());
                if let Err(failure) = put {
                    let name = self.columns.get(at).map_or("?", |column| column.name.as_str());
                    wrong = Some(Failure { message: format!("column \"{name}\": {}", failure.message), ..failure });
                    return false;
                }
            }
            true
        });
        wrong.map_or(Ok(()), Err)
    }
}

/// What RowDescription tells of columns.
pub fn fields(columns: &[Column], formats: &[Format]) -> Vec<Field> {
    let format = |at: usize| formats.get(at).copied().unwrap_or_default().code();
    let fields = columns.iter().enumerate().map(|(at, column)| {
        let about = column.of.about();
        Field { name: column.name.clone(), oid: about.oid, size: about.size, format: format(at) }
    });
    fields.collect()
}

impl Session {
    /// Carry out a statement; `alone` when nothing else belongs to its transaction.
    pub(super) async fn run(
        &mut self,
        client: &mut Client,
        key: &Key,
        known: &Arc<Known>,
        values: Vec<Value>,
        alone: bool,
    ) -> Result<Answer, Stop> {
        if let What::Control { text, control } = &known.what {
            return Ok(Answer::Done(self.control(client, control, text, &known.tag).await?));
        }
        if matches!(known.what, What::Empty) {
            return Ok(Answer::Empty);
        }
        self.check_block()?;
        match &known.what {
            What::Setting(command) => self.setting(client, command, known).map_err(Stop::Failed),
            What::Named(command) => self.named(client, key, command, values, alone).await,
            What::System(text) => {
                let (columns, rows) = self.ask_system(text, values).await?;
                Ok(RowsAnswer::held(columns, rows, Tag::Counted("SELECT")))
            }
            What::Copy(_) => Err(Failure::new(
                "0A000",
                "COPY is a statement of its own, without parameters",
                "send it with the simple protocol; drivers have a call for COPY",
            )
            .into()),
            What::Sql { text, kind } => {
                let request = Request { params: Params::Positional(values), ..self.request(text) };
                self.sql(client, key, known, *kind, request, alone).await
            }
            What::Control { .. } | What::Empty => Ok(Answer::Empty),
        }
    }

    async fn sql(
        &mut self,
        client: &mut Client,
        key: &Key,
        known: &Arc<Known>,
        kind: Kind,
        request: Request,
        alone: bool,
    ) -> Result<Answer, Stop> {
        self.check_writable(kind != Kind::Read)?;
        let admitted = self.shared.app.admit().map_err(|problem| problem.0)?;
        let shared = self.shared.clone();
        let executor = &shared.app.executor;
        let response = if kind == Kind::Ddl {
            if let Some(warning) = self.outside("a schema change")? {
                client.out.notice(Severity::Warning, "25001", &warning);
            }
            executor.execute(request).await?
        } else {
            if !alone {
                self.begin_implicitly().await?;
            }
            match self.block() {
                Some(block) => client.unless_cancelled(key, executor.execute_in(block, request)).await??,
                None if kind == Kind::Read => client.unless_cancelled(key, executor.execute(request)).await??,
                None => executor.execute(request).await?,
            }
        };
        // The rows of a block are in memory, and may be fetched at leisure.
        let admitted = Some(admitted).filter(|_| !self.in_block());
        if let Some(notice) = &response.notice {
            client.out.notice(Severity::Notice, "00000", notice);
        }
        answer(response, known, admitted).map_err(Stop::Failed)
    }

    /// Whether the transaction may write.
    pub(super) fn check_writable(&self, writes: bool) -> Result<(), Failure> {
        let setting = if self.in_block() { "transaction_read_only" } else { "default_transaction_read_only" };
        match writes && self.settings.is_on(setting) {
            true => Err(Failure::new(
                "25006",
                "cannot execute a write in a read-only transaction",
                format!("{setting} is on: begin with READ WRITE, or set it to off"),
            )),
            false => Ok(()),
        }
    }

    fn setting(&mut self, client: &mut Client, command: &Command, known: &Known) -> Result<Answer, Failure> {
        let before = self.settings.reported();
        let columns = known.columns.clone().unwrap_or_default();
        let shown = |name: &str| vec![Value::from(name)];
        let rows = match command {
            Command::Set { name, value, local } => {
                self.settings.set(name, value.as_deref(), *local)?;
                None
            }
            Command::Show(name) => {
                let value = self.settings.get(name).ok_or_else(|| super::settings::unknown(name))?;
                Some(vec![shown(value)])
            }
            Command::ShowAll => {
                let row = |(name, value): (&str, &str)| [shown(name), shown(value), shown("")].concat();
                Some(self.settings.all().map(row).collect())
            }
            Command::ResetAll => {
                self.settings.reset_all();
                None
            }
            Command::DiscardAll => {
                if self.in_block() {
                    let hint = "end the transaction first";
                    return Err(Failure::new("25001", "DISCARD ALL cannot run inside a transaction block", hint));
                }
                self.settings.reset_all();
                self.statements.clear();
                self.portals.clear();
                None
            }
            Command::Deallocate(None) => {
                self.statements.clear();
                None
            }
            Command::Deallocate(Some(name)) => {
                self.statements.remove(name).ok_or_else(|| super::extended::no_statement(name))?;
                None
            }
            Command::Nothing(_) => None,
        };
        self.tell_settings(client, &before);
        Ok(match rows {
            Some(rows) => RowsAnswer::held(columns, rows, known.tag.clone()),
            None => Answer::Done(known.tag.text(0)),
        })
    }

    /// Tell the client which of the settings that it counts on have changed.
    pub(super) fn tell_settings(&self, client: &mut Client, before: &[(&'static str, String)]) {
        for (now, before) in self.settings.reported().iter().zip(before) {
            if now != before {
                client.out.parameter_status(now.0, &now.1);
            }
        }
    }
}

fn answer(response: Response, known: &Known, admitted: Option<Admitted>) -> Result<Answer, Failure> {
    let described = known.columns.as_ref().map_or(&[][..], Vec::as_slice);
    let columns = |names: Vec<String>| match described.len() == names.len() {
        true => described.to_vec(),
        false => names.into_iter().map(|name| Column { name, of: Type::Text }).collect(),
    };
    match response.output {
        Output::Rows { columns: names, rows } => {
            let tag = known.tag.clone();
            Ok(RowsAnswer::answer(columns(names), rows, tag, admitted))
        }
        Output::Effects(effects) => {
            let effect = effects.into_iter().next().unwrap_or_default();
            match effect.columns.is_empty() {
                true => Ok(Answer::Done(known.tag.text(effect.rows_affected))),
                false => Ok(RowsAnswer::held(columns(effect.columns), effect.rows, known.tag.clone())),
            }
        }
    }
}
