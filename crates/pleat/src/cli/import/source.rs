//! The file: gzip or not, its header, and the columns that its fields go to.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::sync::mpsc;

use super::ImportArgs;
use super::batch::{self, Batch, Mapping};
use super::csv::{Item, Reader};
use super::values::Affinity;
use crate::cli::output;
use crate::config::keys::nearest;

/// How much is read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// A file that is being read.
pub struct Source {
    reader: Reader<Box<dyn BufRead + Send>>,
    /// How many of the file's bytes have been read.
    pub position: Arc<AtomicU64>,
    pub file_bytes: u64,
    /// Nanoseconds since 1970.
    pub file_changed: u64,
    /// What the file's fields are called, once the mapping is made.
    pub header: Vec<String>,
    name: String,
}

struct Counting {
    file: File,
    position: Arc<AtomicU64>,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.position.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl Source {
    pub fn open(path: &Path, delimiter: u8) -> anyhow::Result<Source> {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("open {name}"))?;
        let about = file.metadata().with_context(|| format!("look at {name}"))?;
        if !about.is_file() {
            bail!("{name} is not a file; an import must be able to read it again to go on after an interruption");
        }
        let changed = about.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let position = Arc::new(AtomicU64::new(0));
        let counting = Counting { file, position: position.clone() };
        let mut plain = BufReader::with_capacity(BUFFER_BYTES, counting);
        let is_gzip = plain.fill_buf().with_context(|| format!("read {name}"))?.starts_with(&[0x1f, 0x8b]);
        let input: Box<dyn BufRead + Send> = if is_gzip {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, flate2::bufread::MultiGzDecoder::new(plain)))
        } else {
            Box::new(plain)
        };
        Ok(Source {
            reader: Reader::new(input, delimiter),
            position,
            file_bytes: about.len(),
            file_changed: u64::try_from(changed.as_nanos()).unwrap_or(u64::MAX),
            header: Vec::new(),
            name,
        })
    }

    /// Read the header, if there is one, and find out where each field goes.
    pub fn mapping(&mut self, args: &ImportArgs, table: &Value) -> anyhow::Result<Mapping> {
        let columns = insertable(table);
        let in_file = if args.no_header { None } else { Some(self.read_header()?) };
        let names = match (&args.columns, in_file) {
            (Some(names), Some(header)) if names.len() != header.len() => bail!(
                "--columns names {} columns, but the header of {} has {} fields ({}); `_` leaves a field out",
                names.len(),
                self.name,
                header.len(),
                header.join(", ")
            ),
            (Some(names), _) => names.clone(),
            (None, Some(header)) => header,
            (None, None) => columns.iter().map(|(name, _)| name.clone()).collect(),
        };
        let mut fields: Vec<Option<(String, Affinity)>> = Vec::new();
        for name in &names {
            if name == "_" && args.columns.is_some() {
                fields.push(None);
                continue;
            }
            let Some((column, declared)) = columns.iter().find(|(column, _)| column.eq_ignore_ascii_case(name)) else {
                return Err(no_column(name, &args.table, &columns));
            };
            if fields.iter().flatten().any(|(other, _)| other == column) {
                bail!("column {column} is named twice; name the columns with --columns, `_` leaves a field out");
            }
            fields.push(Some((column.clone(), Affinity::of(declared))));
        }
        if fields.iter().all(Option::is_none) {
            bail!("no field is left to import");
        }
        self.header = names;
        Ok(Mapping { fields, null: args.null.clone(), exported: args.exported, rows: args.batch as usize })
    }

    fn read_header(&mut self) -> anyhow::Result<Vec<String>> {
        match self.reader.next().with_context(|| format!("read {}", self.name))? {
            Some(Item::Row { fields, .. }) => fields
                .into_iter()
                .map(|field| String::from_utf8(field.bytes).map(|name| name.trim().to_string()))
                .collect::<Result<_, _>>()
                .with_context(|| format!("the header of {} is not UTF-8", self.name)),
            Some(Item::Broken { reason, .. }) => bail!("the header of {} can't be read: {reason}", self.name),
            None => bail!("{} is empty; it has not even a header", self.name),
        }
    }

    /// Cut the rest of the file into batches, until it ends or nobody takes them any more.
    pub fn read_batches(mut self, mapping: &Mapping, batches: &mpsc::Sender<anyhow::Result<Batch>>) {
        for number in 0.. {
            let next = batch::next(&mut self.reader, mapping, number);
            let line = self.reader.line();
            let item = match next {
                Ok(Some(batch)) => Ok(batch),
                Ok(None) => return,
                Err(error) => Err(anyhow::Error::new(error).context(format!("read {} near line {line}", self.name))),
            };
            let is_last = item.is_err();
            if batches.blocking_send(item).is_err() || is_last {
                return;
            }
        }
    }
}

/// The columns that take values, with their declared types.
fn insertable(table: &Value) -> Vec<(String, String)> {
    let columns = output::items(table, "columns").iter();
    let takes_values = |column: &&Value| !column.get("generated").and_then(Value::as_bool).unwrap_or(false);
    let text = |column: &Value, key: &str| column.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    columns.filter(takes_values).map(|column| (text(column, "name"), text(column, "type"))).collect()
}

fn no_column(name: &str, table: &str, columns: &[(String, String)]) -> anyhow::Error {
    let names = || columns.iter().map(|(column, _)| column.as_str());
    let meant = nearest(name, names()).map_or_else(String::new, |near| format!(" (did you mean '{near}'?)"));
    anyhow::anyhow!(
        "table {table} has no column '{name}'{meant}. Its columns: {}. Name the file's fields with --columns, `_` \
         leaves one out; --no-header if the first row is data",
        names().collect::<Vec<_>>().join(", ")
    )
}
