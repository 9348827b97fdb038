//! COPY: many rows in or out, as text or CSV.
//!
//! COPY TO is a SELECT whose rows are written differently. COPY FROM goes the way of bulk loading: batches of rows that are
//! split by partition, each piece exactly once on the shard that owns it.
//!
//! Caveat: **COPY FROM is no transaction.** A row that can't be inserted ends it with an error that names its line and says how
//! many rows are in by then; those stay. A single transaction of any size would hold up every other writer of every
//! shard until its end.

mod form;
mod read;

pub use form::{Decoder, Form};
pub use read::{Command, Source, read};

use pleat_cluster::{Column, Value};

use super::cancel::Key;
use super::client::{Client, Stop};
use super::dialect::quoted_name;
use super::known::{Kind, What};
use super::run::Answer;
use super::session::Session;
use super::types::Type;
use super::types::value::{Format, read as read_value, text_of};
use super::wire::write::Severity;
use super::wire::{Broken, Message};
use crate::session::{BulkRequest, Failure};
use crate::settings::{PG_COPY_BATCH_BYTES, PG_COPY_BATCH_ROWS};
use form::Record;

/// Rows on their way into a table.
struct Load<'a> {
    table: &'a str,
    names: Vec<String>,
    types: Vec<Type>,
    rows: Vec<(u32, Vec<Value>)>,
    /// The line of each of them.
    lines: Vec<u64>,
    bytes: usize,
    inserted: u64,
    seen_header: bool,
}

impl Session {
    /// Carry out a COPY. Gives its tag.
    pub(super) async fn copy(
        &mut self,
        client: &mut Client,
        key: &Key,
        command: &Command,
        alone: bool,
    ) -> Result<String, Stop> {
        match command {
            Command { from: true, source: Source::Table { name, columns }, form } => {
                self.copy_in(client, key, name, columns, form).await
            }
            Command { source, form, .. } => self.copy_out(client, key, source, form, alone).await,
        }
    }

    async fn copy_out(
        &mut self,
        client: &mut Client,
        key: &Key,
        source: &Source,
        form: &Form,
        alone: bool,
    ) -> Result<String, Stop> {
        let text = match source {
            Source::Query(text) => text.clone(),
            Source::Table { name, columns } => {
                let table = self.shared.columns(name, columns)?;
                let list: Vec<String> = table.iter().map(|column| quoted_name(&column.name)).collect();
                format!("SELECT {} FROM {}", list.join(", "), quoted_name(name))
            }
        };
        let known = self.know(&text).await?;
        let no_rows = || Failure::new("42601", "COPY TO needs a query that gives rows", "");
        if !matches!(known.what, What::Sql { kind: Kind::Read | Kind::Write, .. } | What::System(_)) {
            return Err(no_rows().into());
        }
        let Answer::Rows(mut answer) = Box::pin(self.run(client, key, &known, Vec::new(), alone)).await? else {
            return Err(no_rows().into());
        };
        let types: Vec<Type> = answer.columns.iter().map(|column| column.of).collect();
        client.out.copy(b'H', types.len());
        if form.header {
            let names: Vec<_> = answer.columns.iter().map(|column| Some(column.name.as_str().into())).collect();
            client.out.copy_data(|body| form.put(body, &names));
        }
        let mut count = 0;
        while let Some(row) = answer.next(client, key).await? {
            let values = row.iter().zip(&types);
            let texts: Vec<_> =
                values.map(|(value, of)| (*value != Value::Null).then(|| text_of(value, *of))).collect();
            client.out.copy_data(|body| form.put(body, &texts));
            client.flush_much().await?;
            count += 1;
        }
        client.out.plain(b'c');
        Ok(format!("COPY {count}"))
    }

    async fn copy_in(
        &mut self,
        client: &mut Client,
        key: &Key,
        table: &str,
        columns: &[String],
        form: &Form,
    ) -> Result<String, Stop> {
        self.check_writable(true)?;
        let columns = self.shared.columns(table, columns)?;
        if let Some(warning) = self.outside("COPY FROM")? {
            client.out.notice(Severity::Warning, "25001", &warning);
        }
        client.out.copy(b'G', columns.len());
        client.flush().await?;
        let mut load = Load {
            table,
            types: columns.iter().map(|column| Type::declared(&column.decl_type).unwrap_or(Type::Text)).collect(),
            names: columns.into_iter().map(|column| column.name).collect(),
            rows: Vec::new(),
            lines: Vec::new(),
            bytes: 0,
            inserted: 0,
            seen_header: !form.header,
        };
        let mut decoder = Decoder::new(form);
        loop {
            let next = client.reader.message();
            let message = tokio::select! {
                message = next => message?.ok_or_else(gone)?,
                () = key.requested() => {
                    return Err(load.partly(Failure::new("57014", "COPY was cancelled by its user", "")).into());
                }
            };
            match message {
                Message::CopyData(bytes) => {
                    decoder.push(&bytes);
                    self.take(&mut load, &mut decoder, false).await?;
                }
                Message::CopyDone => {
                    self.take(&mut load, &mut decoder, true).await?;
                    self.insert(&mut load).await?;
                    return Ok(format!("COPY {}", load.inserted));
                }
                Message::CopyFail(why) => {
                    let failure = Failure::new("57014", format!("COPY from stdin failed: {why}"), "");
                    return Err(load.partly(failure).into());
                }
                Message::Flush | Message::Sync => {}
                _ => return Err(Broken::Malformed("a COPY takes rows, and its end".to_owned()).into()),
            }
        }
    }

    /// Take the records that are whole.
    async fn take(&self, load: &mut Load<'_>, decoder: &mut Decoder<'_>, last: bool) -> Result<(), Failure> {
        while let Some(record) = decoder.record(last).map_err(|failure| load.partly(failure))? {
            load.add(record).map_err(|failure| load.partly(failure))?;
            if load.rows.len() >= PG_COPY_BATCH_ROWS || load.bytes >= PG_COPY_BATCH_BYTES {
                self.insert(load).await?;
            }
        }
        Ok(())
    }

    async fn insert(&self, load: &mut Load<'_>) -> Result<(), Failure> {
        if load.rows.is_empty() {
            return Ok(());
        }
        let _admitted = self.shared.app.admit().map_err(|problem| problem.0)?;
        let request = BulkRequest {
            table: load.table.to_owned(),
            columns: Some(load.names.clone()),
            rows: std::mem::take(&mut load.rows),
            batch_id: None,
            timeout: self.settings.statement_timeout(),
        };
        let lines = std::mem::take(&mut load.lines);
        load.bytes = 0;
        let done = self.shared.app.executor.bulk(request).await.map_err(|failure| load.partly(failure))?;
        load.inserted += done.inserted;
        self.shared.app.metrics.bulk_inserted(done.inserted);
        if let Some(failure) = done.failure {
            return Err(load.partly(failure));
        }
        match done.rejected.into_iter().next() {
            None => Ok(()),
            Some(rejected) => {
                let line = usize::try_from(rejected.row).ok().and_then(|row| lines.get(row)).copied().unwrap_or(0);
                let failure = Failure::new(rejected.code, rejected.error, "");
                Err(load.partly(load.on_line(line, failure)))
            }
        }
    }
}

fn gone() -> Broken {
    Broken::Socket(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
}

impl Load<'_> {
    fn add(&mut self, record: Record) -> Result<(), Failure> {
        let line = record.line;
        if !std::mem::replace(&mut self.seen_header, true) {
            return Ok(());
        }
        if record.fields.len() != self.names.len() {
            let (found, wanted) = (record.fields.len(), self.names.len());
            let message = match found < wanted {
                true => format!("missing data for column \"{}\"", self.names[found]),
                false => "extra data after last expected column".to_owned(),
            };
            let hint = format!(
                "a line has {wanted} values, in the order of the columns; a list of columns behind the table's name tells another one"
            );
            return Err(self.on_line(line, Failure::new("22P04", message, hint)));
        }
        let mut row = Vec::with_capacity(record.fields.len());
        for (at, field) in record.fields.into_iter().enumerate() {
            let value = match field {
                None => Value::Null,
                Some(bytes) => read_value(&bytes, self.types[at], Format::Text).map_err(|failure| {
                    let message = format!("column \"{}\": {}", self.names[at], failure.message);
                    let hint = "the column's declared type says what it takes; NULL 'x' names what stands for NULL";
                    self.on_line(line, Failure::new(failure.code, message, hint))
                })?,
            };
            self.bytes += value.size();
            row.push(value);
        }
        let number = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        self.rows.push((number, row));
        self.lines.push(line);
        Ok(())
    }

    fn on_line(&self, line: u64, failure: Failure) -> Failure {
        Failure { message: format!("COPY {}, line {line}: {}", self.table, failure.message), ..failure }
    }

    /// A failure that says what was done before it.
    fn partly(&self, failure: Failure) -> Failure {
        if self.inserted == 0 {
            return failure;
        }
        let before = if failure.hint.is_empty() { String::new() } else { format!("{}; ", failure.hint) };
        let hint =
            format!("{before}{} rows were inserted before that, and stay: COPY is no transaction here", self.inserted);
        Failure { hint, retryable: false, ..failure }
    }
}

impl super::Shared {
    /// The columns of a table that COPY is about.
    fn columns(&self, table: &str, names: &[String]) -> Result<Vec<Column>, Failure> {
        let catalog = self.app.backend.catalog();
        if catalog.view(table).is_some() {
            let hint = "COPY (SELECT * FROM it) TO STDOUT does";
            return Err(Failure::new("42809", format!("\"{table}\" is a view, and COPY copies tables"), hint));
        }
        let found = catalog.table(table).ok_or_else(|| {
            Failure::new("42P01", format!("relation \"{table}\" does not exist"), "\\d lists the tables")
        })?;
        if names.is_empty() {
            return Ok(found.columns.iter().filter(|column| !column.generated).cloned().collect());
        }
        let column = |name: &String| {
            let unknown = || {
                let message = format!("column \"{name}\" of relation \"{table}\" does not exist");
                Failure::new("42703", message, "\\d with the table's name lists its columns")
            };
            found.column(name).cloned().ok_or_else(unknown)
        };
        names.iter().map(column).collect()
    }
}
