//! COPY: rows in, each to the shard of its key, and rows out, shard after shard.
//!
//! A row is passed on as it came: only its key is read. A header goes to every shard, because each expects one.
//! Where the columns leave out one whose values Pleat gives, each row gets one more value at its end.
//! COPY FROM is part of its transaction, here as in PostgreSQL: over several shards it is committed on all of them or none.

#[cfg(test)]
pub(super) mod fuzz;

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use pleat_cluster::{KeyType, ShardId, Table, TableKind, Value, partition_of};
use pleat_engine::postgres::{Lease, Reply, Request};
use pleat_sql::postgres::{Copy, CopyFormat, Direction, Planned, Route, Spread};

use super::messages::{Messages, counted};
use super::{Relay, Way};
use crate::pg::cancel::Key;
use crate::pg::client::{Client, Stop};
use crate::pg::copy::{Decoder, Form};
use crate::pg::wire::{Broken, Message};
use crate::session::Failure;
use crate::settings::PG_MESSAGE_BYTES_MAX;

/// Rows are handed to a shard in pieces of so many bytes.
const PIECE_BYTES: usize = 64 << 10;
/// What begins the rows in binary format, before an extension of a length that it tells, and what ends them.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const HEAD_BYTES: usize = 19;
const BINARY_END: &[u8] = &[0xff, 0xff];

/// Rows on their way to shards.
struct Load {
    text: String,
    /// Where the key stands among the columns, and how it is read. `None`: every row goes to all of `shards`, or by what it is given.
    key: Option<(usize, KeyType, Option<usize>)>,
    giving: Option<Giving>,
    key_name: String,
    columns: usize,
    /// What each shard is sent first.
    head: Bytes,
    binary: bool,
    /// Those that take part, with what waits to be sent.
    shards: BTreeMap<ShardId, BytesMut>,
}

/// The value that each row gets behind those that it comes with.
struct Giving {
    /// The table, by its key in the catalog.
    table: String,
    column: String,
    /// Bytes of its type in binary format.
    bytes: usize,
    is_key: bool,
}

impl Relay {
    /// Carry out a COPY. True: a server's error was passed on.
    pub(super) async fn copy(
        &mut self,
        client: &mut Client,
        key: &Key,
        planned: &Planned,
        copy: &Copy,
    ) -> Result<bool, Stop> {
        let catalog = self.catalog();
        let table = copy.table.as_ref().and_then(|name| catalog.tables.get(name));
        let shards: Vec<ShardId> = catalog.active_shards().map(|shard| shard.id).collect();
        let giving = match table {
            Some(table) if copy.direction == Direction::In => Giving::of(copy, table)?,
            _ => None,
        };
        if let (Some(table), Direction::In) = (table, copy.direction) {
            self.values.goes_into(table);
        }
        if let ([sole], None) = (shards.as_slice(), &giving) {
            return Ok(self.through(client, key, *sole, &planned.text).await?.failed());
        }
        if let Some((_, query)) = &copy.query {
            return match self.way_of(&catalog, query, &|_| None)? {
                Way::One(shard) => Ok(self.through(client, key, shard, &planned.text).await?.failed()),
                Way::Several(Route::Spread { plan: Spread::Concat(piece), prune: None }) => {
                    let text = format!("COPY ({}) {}", piece.text, copy.options_as_written);
                    self.copy_out(client, key, copy, &text, &shards).await
                }
                Way::Several(_) => Err(Failure::new(
                    "0A000",
                    "COPY of a query whose rows have to be gathered from several shards is not supported yet",
                    "SELECT them, or COPY what each shard can give by itself, without ORDER BY, LIMIT and aggregates",
                )
                .into()),
            };
        }
        let Some(table) = table else {
            let shard = self.any(&catalog)?;
            return Ok(self.through(client, key, shard, &planned.text).await?.failed());
        };
        match (&table.kind, copy.direction) {
            (TableKind::Single { shard }, _) => Ok(self.through(client, key, *shard, &planned.text).await?.failed()),
            (TableKind::Reference, Direction::Out) => {
                let shard = self.any(&catalog)?;
                Ok(self.through(client, key, shard, &planned.text).await?.failed())
            }
            (TableKind::Sharded { .. }, Direction::Out) => {
                self.copy_out(client, key, copy, &planned.text, &shards).await
            }
            (_, Direction::In) => {
                let load = Load::new(copy, table, &planned.text, giving)?;
                self.copy_in(client, key, copy, load, &shards).await
            }
        }
    }

    async fn copy_out(
        &mut self,
        client: &mut Client,
        key: &Key,
        copy: &Copy,
        text: &str,
        shards: &[ShardId],
    ) -> Result<bool, Stop> {
        let catalog = self.catalog();
        for shard in shards {
            self.part(*shard).await?;
        }
        for shard in shards {
            let text = self.screened_text(&catalog, *shard, text)?;
            self.part(*shard).await?.lease.push(Request::Query(text))?;
        }
        let done = self.copied_out(client, key, copy, shards).await;
        self.ended(shards, &done);
        done
    }

    async fn copied_out(
        &mut self,
        client: &mut Client,
        key: &Key,
        copy: &Copy,
        shards: &[ShardId],
    ) -> Result<bool, Stop> {
        for shard in shards {
            if let Some(part) = self.parts.get_mut(shard) {
                part.lease.send().await?;
            }
        }
        let (mut failed, mut cancelled, mut count) = (false, false, 0);
        for (at, shard) in shards.iter().enumerate() {
            let (first, last) = (at == 0, at + 1 == shards.len());
            let Some(part) = self.parts.get_mut(shard) else { continue };
            let canceller = part.lease.canceller();
            let mut messages = Messages::default();
            // The header of a later shard is not passed on.
            let mut drops_head = !first && (copy.header || copy.format == CopyFormat::Binary);
            loop {
                let reply = tokio::select! {
                    biased;
                    reply = part.lease.receive() => reply?,
                    () = key.requested(), if !cancelled => {
                        cancelled = true;
                        let canceller = canceller.clone();
                        pleat_consensus::spawn(async move { canceller.cancel().await });
                        continue;
                    }
                    () = client.reader.gone() => return Err(gone().into()),
                };
                match reply {
                    Reply::Bytes(bytes) => messages.push(&bytes),
                    Reply::CopyIn => part.lease.copy_fail("rows are not taken here"),
                    Reply::Answered => {}
                    Reply::Ready { .. } => break,
                }
                while let Some(whole) = messages.next()? {
                    match whole.tag {
                        b'E' if !failed => {
                            failed = true;
                            client.out.raw(&whole.bytes);
                        }
                        _ if failed => {}
                        b'H' if first => client.out.raw(&whole.bytes),
                        b'd' if copy.format == CopyFormat::Binary => {
                            let mut data = whole.body();
                            if std::mem::take(&mut drops_head) {
                                data = data.slice(HEAD_BYTES.min(data.len())..);
                            }
                            let ends = data.as_ref() == BINARY_END || (first && data.len() == HEAD_BYTES + 2);
                            if ends && !last {
                                data = data.slice(..data.len() - 2);
                            }
                            if !data.is_empty() {
                                client.out.copy_data(|body| body.put_slice(&data));
                            }
                        }
                        b'd' if std::mem::take(&mut drops_head) => {}
                        b'd' | b'N' => client.out.raw(&whole.bytes),
                        b'C' => count += counted(&whole.body()),
                        _ => {}
                    }
                }
                client.flush_much().await?;
            }
        }
        if !failed {
            client.out.plain(b'c');
            client.out.complete(&format!("COPY {count}"));
        }
        Ok(failed)
    }

    async fn copy_in(
        &mut self,
        client: &mut Client,
        key: &Key,
        copy: &Copy,
        mut load: Load,
        shards: &[ShardId],
    ) -> Result<bool, Stop> {
        self.begin_implicitly().await?;
        // First all connections: taking one may say something on those that are there.
        for shard in shards {
            self.part(*shard).await?;
        }
        if load.is_for_all() {
            for shard in shards {
                self.open(&mut load, *shard).await?;
            }
        }
        let format = i16::from(load.binary);
        client.out.message(b'G', |body| {
            body.put_u8(u8::from(load.binary));
            body.put_u16(u16::try_from(load.columns).unwrap_or(u16::MAX));
            (0..load.columns).for_each(|_| body.put_i16(format));
        });
        client.flush().await?;
        let done = self.copied_in(client, key, copy, &mut load).await;
        let open: Vec<ShardId> = load.shards.keys().copied().collect();
        if let Err(Stop::Failed(failure)) = &done {
            // The servers are told, and take back what they had.
            for shard in &open {
                if let Some(part) = self.parts.get_mut(shard) {
                    part.lease.copy_fail(&failure.message);
                    if finish(&mut part.lease).await.is_err() {
                        self.lose([*shard]);
                    }
                }
            }
            self.fail_block();
            return done;
        }
        self.ended(&open, &done);
        done
    }

    async fn copied_in(&mut self, client: &mut Client, key: &Key, copy: &Copy, load: &mut Load) -> Result<bool, Stop> {
        let form = Form {
            csv: copy.format == CopyFormat::Csv,
            header: copy.header,
            delimiter: u8::try_from(copy.delimiter).unwrap_or(b'\t'),
            null: copy.null.clone(),
            quote: u8::try_from(copy.quote).unwrap_or(b'"'),
            escape: u8::try_from(copy.escape).unwrap_or(b'"'),
        };
        let mut decoder = Decoder::new(&form);
        let mut binary = Binary::default();
        let mut wants_header = copy.header && !load.binary;
        loop {
            let message = tokio::select! {
                message = client.reader.message() => message?.ok_or_else(gone)?,
                () = key.requested() => return Err(Failure::new("57014", "COPY was cancelled by its user", "").into()),
            };
            let last = match message {
                Message::CopyData(bytes) => {
                    match load.binary {
                        true => binary.push(&bytes),
                        false => decoder.push(&bytes),
                    }
                    false
                }
                Message::CopyDone => true,
                Message::CopyFail(why) => {
                    return Err(Failure::new("57014", format!("COPY from stdin failed: {why}"), "").into());
                }
                Message::Flush | Message::Sync => false,
                _ => return Err(Broken::Malformed("a COPY takes rows, and its end".to_owned()).into()),
            };
            if load.binary {
                while let Some((number, row)) = binary.row()? {
                    let mut value = load.binary_key(number, &row)?;
                    let mut row = row;
                    if let Some(giving) = &load.giving {
                        let given = self.take_one(&giving.table).await?;
                        row = giving.binary(&row, given);
                        value = if giving.is_key { Some(Value::Integer(given)) } else { value };
                    }
                    self.hand_out(load, number, value, &row).await?;
                }
                if last && !binary.ended {
                    return Err(Failure::new("22P04", "the rows of a binary COPY end in the middle", "").into());
                }
            } else {
                while let Some((line, row)) = decoder.raw(last)? {
                    let mut row = row.freeze();
                    if std::mem::take(&mut wants_header) {
                        if let Some(giving) = &load.giving {
                            row = giving.text(&form, &row, &giving.header(&form));
                        }
                        load.head = row;
                        continue;
                    }
                    let mut value = load.text_key(&form, line, &row)?;
                    if let Some(giving) = &load.giving {
                        let given = self.take_one(&giving.table).await?;
                        row = giving.text(&form, &row, &given.to_string());
                        value = if giving.is_key { Some(Value::Integer(given)) } else { value };
                    }
                    self.hand_out(load, line, value, &row).await?;
                    if last && !row.ends_with(b"\n") {
                        load.shards
                            .values_mut()
                            .filter(|held| !held.is_empty() && !held.ends_with(b"\n"))
                            .for_each(|held| held.put_u8(b'\n'));
                    }
                }
            }
            if last {
                return self.copied(client, load).await;
            }
        }
    }

    /// Give a row to the shard that it belongs to, or to all.
    async fn hand_out(&mut self, load: &mut Load, line: u64, value: Option<Value>, row: &[u8]) -> Result<(), Stop> {
        let of = match (&load.giving, load.key) {
            (Some(Giving { is_key: true, .. }), _) => Some(KeyType::Integer),
            (_, key) => key.map(|(_, of, _)| of),
        };
        let shard = match (&value, of) {
            (Some(value), Some(of)) => {
                let catalog = self.catalog();
                let partition = partition_of(value, of, catalog.partition_count).map_err(|error| {
                    let hint = format!("every row needs a value for {}, which is the shard key", load.key_name);
                    let code = if *value == Value::Null { "23502" } else { "22P02" };
                    Failure::new(code, format!("COPY, line {line}: {error}"), hint)
                })?;
                let owner = catalog.owner(partition);
                Some(owner.ok_or_else(|| Failure::internal(format!("partition {partition} has no owner")))?)
            }
            _ => None,
        };
        let to: Vec<ShardId> = match shard {
            Some(shard) => vec![shard],
            None => load.shards.keys().copied().collect(),
        };
        for shard in to {
            if !load.shards.contains_key(&shard) {
                self.open(load, shard).await?;
            }
            let Some(held) = load.shards.get_mut(&shard) else { continue };
            held.put_slice(row);
            if held.len() >= PIECE_BYTES
                && let Some(part) = self.parts.get_mut(&shard)
            {
                part.lease.copy_data(held.split().freeze()).await?;
            }
        }
        Ok(())
    }

    /// Begin the COPY on one more shard.
    async fn open(&mut self, load: &mut Load, shard: ShardId) -> Result<(), Stop> {
        let part = self.part(shard).await?;
        part.lease.push(Request::Query(load.text.clone()))?;
        let mut messages = Messages::default();
        loop {
            match part.lease.receive().await? {
                Reply::CopyIn => break,
                Reply::Bytes(bytes) => messages.push(&bytes),
                Reply::Answered => {}
                Reply::Ready { .. } => return Err(refusal(&mut messages)?.into()),
            }
        }
        let mut held = BytesMut::with_capacity(PIECE_BYTES);
        held.put_slice(&load.head);
        load.shards.insert(shard, held);
        Ok(())
    }

    /// All rows were handed out.
    async fn copied(&mut self, client: &mut Client, load: &mut Load) -> Result<bool, Stop> {
        for (shard, held) in &mut load.shards {
            let Some(part) = self.parts.get_mut(shard) else { continue };
            if load.binary {
                held.put_slice(BINARY_END);
            }
            part.lease.copy_data(held.split().freeze()).await?;
            part.lease.copy_done();
        }
        let (mut count, mut failed) = (0, false);
        let copies = load.is_for_all();
        for (at, shard) in load.shards.keys().enumerate() {
            let Some(part) = self.parts.get_mut(shard) else { continue };
            let mut messages = finish(&mut part.lease).await?;
            while let Some(whole) = messages.next()? {
                match whole.tag {
                    b'E' if !failed => {
                        failed = true;
                        client.out.raw(&whole.bytes);
                    }
                    b'C' if at == 0 || !copies => count += counted(&whole.body()),
                    b'N' => client.out.raw(&whole.bytes),
                    _ => {}
                }
            }
        }
        if !failed {
            client.out.complete(&format!("COPY {count}"));
        }
        Ok(failed)
    }

    /// What several shards did has ended.
    fn ended(&mut self, shards: &[ShardId], done: &Result<bool, Stop>) {
        match done {
            Ok(failed) => {
                if *failed {
                    self.fail_block();
                }
                match self.block {
                    None => self.keep_pinned(),
                    Some(_) => self.release_reads(),
                }
            }
            Err(_) => self.lose(shards.iter().copied()),
        }
    }
}

impl Giving {
    /// What a COPY leaves out. The error is of one that gives values which only Pleat may give.
    fn of(copy: &Copy, table: &Table) -> Result<Option<Giving>, Failure> {
        let Some((column, serial)) = table.serial() else { return Ok(None) };
        let given = copy.columns.is_empty() || copy.columns.iter().any(|name| name == column);
        if given && serial.sole {
            let message =
                format!("{column} of {} is unique over all shards because Pleat gives its values", table.name);
            return Err(Failure::new("0A000", message, "name the other columns in the COPY, and leave this one out"));
        }
        let (Some(name), false) = (&copy.table, given) else { return Ok(None) };
        let bytes = match table.column(column).map_or("", |column| column.decl_type.as_str()) {
            "smallint" => 2,
            "integer" => 4,
            _ => 8,
        };
        let is_key = table.shard_key().is_some_and(|(key, _)| key == column);
        Ok(Some(Giving { table: name.clone(), column: column.to_owned(), bytes, is_key }))
    }

    /// The name of the column, as a header has it.
    fn header(&self, form: &Form) -> String {
        let (quote, name) = (char::from(form.quote), &self.column);
        match form.csv {
            true => format!("{quote}{}{quote}", name.replace(quote, &format!("{}{quote}", char::from(form.escape)))),
            false => name.clone(),
        }
    }

    /// A row with one more value.
    fn text(&self, form: &Form, row: &[u8], value: &str) -> Bytes {
        let plain = row.strip_suffix(b"\n").unwrap_or(row);
        let plain = plain.strip_suffix(b"\r").unwrap_or(plain);
        let mut longer = BytesMut::with_capacity(row.len() + value.len() + 1);
        longer.put_slice(plain);
        longer.put_u8(form.delimiter);
        longer.put_slice(value.as_bytes());
        longer.put_slice(&row[plain.len()..]);
        longer.freeze()
    }

    /// The same in binary format.
    fn binary(&self, row: &[u8], value: i64) -> Bytes {
        let mut longer = BytesMut::with_capacity(row.len() + 12);
        let count = row.get(..2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]));
        longer.put_u16(count.saturating_add(1));
        longer.put_slice(row.get(2..).unwrap_or_default());
        let bytes = value.to_be_bytes();
        longer.put_u32(u32::try_from(self.bytes).unwrap_or(8));
        longer.put_slice(&bytes[bytes.len() - self.bytes..]);
        longer.freeze()
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Load {
    fn new(copy: &Copy, table: &Table, text: &str, giving: Option<Giving>) -> Result<Load, Failure> {
        let columns: Vec<&str> = match copy.columns.is_empty() {
            true => {
                table.columns.iter().filter(|column| !column.generated).map(|column| column.name.as_str()).collect()
            }
            false => copy.columns.iter().map(String::as_str).collect(),
        };
        let key = match table.shard_key() {
            None => None,
            Some(_) if giving.as_ref().is_some_and(|giving| giving.is_key) => None,
            Some((key, of)) => {
                let place = columns.iter().position(|column| column.eq_ignore_ascii_case(key)).ok_or_else(|| {
                    let message =
                        format!("the columns of the COPY leave out {key}, which is the shard key of {}", table.name);
                    Failure::new("0A000", message, "every row needs it to have a shard")
                })?;
                let declared = table.column(key).map_or("", |column| column.decl_type.as_str());
                Some((place, of, width(declared)))
            }
        };
        let binary = copy.format == CopyFormat::Binary;
        let mut head = BytesMut::new();
        if binary {
            head.put_slice(SIGNATURE);
            head.put_u64(0);
        }
        let text = match &giving {
            None => text.to_owned(),
            Some(giving) => {
                let all = columns.iter().copied().chain([giving.column.as_str()]).map(quoted);
                let all: Vec<String> = all.collect();
                format!("COPY {} ({}) {}", copy.name_as_written, all.join(", "), copy.options_as_written)
            }
        };
        Ok(Load {
            text,
            key,
            giving,
            key_name: table.shard_key().map_or_else(String::new, |(key, _)| key.to_owned()),
            columns: columns.len(),
            head: head.freeze(),
            binary,
            shards: BTreeMap::new(),
        })
    }

    /// Whether every row goes to all shards.
    fn is_for_all(&self) -> bool {
        self.key.is_none() && !self.giving.as_ref().is_some_and(|giving| giving.is_key)
    }

    /// The key of a row of text or CSV. `None`: there is none, and every shard gets the row.
    fn text_key(&self, form: &Form, line: u64, row: &[u8]) -> Result<Option<Value>, Failure> {
        let Some((place, of, width)) = self.key else { return Ok(None) };
        let mut fields = form.fields(row);
        if fields.len() != self.columns {
            let (found, wanted) = (fields.len(), self.columns);
            let message = format!("COPY, line {line}: the row has {found} values, where {wanted} columns are");
            return Err(Failure::new("22P04", message, "each row has a value for every column, in their order"));
        }
        let Some(bytes) = fields.swap_remove(place) else { return Ok(Some(Value::Null)) };
        let text = String::from_utf8(bytes).map_err(|_| {
            Failure::new("22021", format!("COPY, line {line}: the key is no UTF-8"), "send the rows in UTF8")
        })?;
        Ok(Some(as_stored(text, of, width)))
    }

    /// The same of a row in binary format.
    fn binary_key(&self, number: u64, row: &[u8]) -> Result<Option<Value>, Failure> {
        let Some((place, of, width)) = self.key else { return Ok(None) };
        let odd = || {
            let message = format!("COPY, row {number}: the key can't be read");
            Failure::new("22P03", message, "a binary row has values of the columns' own types")
        };
        let count = row.get(..2).map(|two| usize::from(u16::from_be_bytes([two[0], two[1]])));
        if count != Some(self.columns) {
            return Err(odd());
        }
        let mut at = 2;
        for field in 0..self.columns {
            let length = row.get(at..at + 4).and_then(|four| <[u8; 4]>::try_from(four).ok()).map(i32::from_be_bytes);
            let length = length.ok_or_else(odd)?;
            at += 4;
            let Ok(length) = usize::try_from(length) else {
                if field == place {
                    return Ok(Some(Value::Null));
                }
                continue;
            };
            let bytes = row.get(at..at + length).ok_or_else(odd)?;
            if field == place {
                return binary_value(bytes, of, width).map(Some).ok_or_else(odd);
            }
            at += length;
        }
        Err(odd())
    }
}

fn binary_value(bytes: &[u8], of: KeyType, width: Option<usize>) -> Option<Value> {
    match of {
        KeyType::Integer => match bytes {
            [a, b] => Some(Value::Integer(i16::from_be_bytes([*a, *b]).into())),
            [a, b, c, d] => Some(Value::Integer(i32::from_be_bytes([*a, *b, *c, *d]).into())),
            bytes => Some(Value::Integer(i64::from_be_bytes(bytes.try_into().ok()?))),
        },
        KeyType::Text => Some(as_stored(String::from_utf8(bytes.to_vec()).ok()?, of, width)),
        KeyType::Uuid => Some(Value::Text(uuid::Uuid::from_bytes(bytes.try_into().ok()?).to_string())),
        KeyType::Bytes => Some(Value::Blob(bytes.to_vec())),
    }
}

/// A key as the server stores it, given as a text.
fn as_stored(text: String, of: KeyType, width: Option<usize>) -> Value {
    match of {
        KeyType::Integer => text.trim().parse().map_or(Value::Text(text), Value::Integer),
        KeyType::Uuid => Value::Text(text.trim().to_owned()),
        KeyType::Bytes => match text.strip_prefix("\\x").map(|digits| {
            let pairs = digits.as_bytes().chunks(2);
            pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect::<Option<Vec<u8>>>()
        }) {
            Some(Some(bytes)) => Value::Blob(bytes),
            // Another form of bytea, which is not read here: it is refused as a key.
            _ => Value::Text(text),
        },
        KeyType::Text => match width.and_then(|width| text.char_indices().nth(width)) {
            // Spaces beyond the column's width are cut off; anything else there is an error of the server's.
            Some((end, _)) if text[end..].bytes().all(|byte| byte == b' ') => Value::Text(text[..end].to_owned()),
            _ => Value::Text(text),
        },
    }
}

/// The most characters of a `character varying(n)`.
fn width(declared: &str) -> Option<usize> {
    declared.strip_prefix("character varying(")?.strip_suffix(')')?.parse().ok()
}

/// Rows in binary format.
#[derive(Default)]
struct Binary {
    held: BytesMut,
    begun: bool,
    ended: bool,
    rows: u64,
}

impl Binary {
    fn push(&mut self, bytes: &[u8]) {
        if !self.ended {
            self.held.extend_from_slice(bytes);
        }
    }

    /// The next row, and its number from 1.
    fn row(&mut self) -> Result<Option<(u64, Bytes)>, Failure> {
        let odd = |what: &str| Failure::new("22P04", format!("COPY in binary format: {what}"), "");
        let number = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).map_or(0, i32::from_be_bytes);
        if !self.begun {
            if self.held.len() < HEAD_BYTES {
                return Ok(None);
            }
            if !self.held.starts_with(SIGNATURE) || number(&self.held[11..15]) != 0 {
                return Err(odd("its beginning is not understood"));
            }
            let extension =
                usize::try_from(number(&self.held[15..HEAD_BYTES])).map_err(|_| odd("its beginning is broken"))?;
            if extension > PIECE_BYTES {
                return Err(odd("its beginning is too long"));
            }
            if self.held.len() < HEAD_BYTES + extension {
                return Ok(None);
            }
            drop(self.held.split_to(HEAD_BYTES + extension));
            self.begun = true;
        }
        let Some(count) = self.held.get(..2).map(|two| i16::from_be_bytes([two[0], two[1]])) else { return Ok(None) };
        if self.ended || count == -1 {
            self.ended = true;
            return Ok(None);
        }
        let mut at = 2;
        for _ in 0..count {
            let Some(length) = self.held.get(at..at + 4).map(number) else { return self.more() };
            at += 4;
            match usize::try_from(length) {
                Ok(length) => at = at.saturating_add(length),
                Err(_) if length == -1 => {}
                Err(_) => return Err(odd("a value has a length that can't be")),
            }
            if at > PG_MESSAGE_BYTES_MAX {
                return Err(Failure::new("54000", format!("a row has more than {PG_MESSAGE_BYTES_MAX} bytes"), ""));
            }
        }
        if self.held.len() < at {
            return self.more();
        }
        self.rows += 1;
        Ok(Some((self.rows, self.held.split_to(at).freeze())))
    }

    fn more(&self) -> Result<Option<(u64, Bytes)>, Failure> {
        Ok(None)
    }
}

/// Everything up to ReadyForQuery.
async fn finish(lease: &mut Lease) -> Result<Messages, Failure> {
    let mut messages = Messages::default();
    loop {
        match lease.receive().await? {
            Reply::Bytes(bytes) => messages.push(&bytes),
            Reply::Ready { .. } => return Ok(messages),
            Reply::CopyIn => lease.copy_fail("rows are not taken here"),
            Reply::Answered => {}
        }
    }
}

/// The error that is among what a server has said.
fn refusal(messages: &mut Messages) -> Result<Failure, Failure> {
    while let Some(whole) = messages.next()? {
        if whole.tag == b'E' {
            let failure = pleat_engine::postgres::wire::backend::Failure::read(&whole.body());
            return Ok(Failure::new(failure.code.as_str().to_owned(), failure.message, failure.detail));
        }
    }
    Err(Failure::internal("a server refused rows and did not say why"))
}

fn gone() -> Broken {
    Broken::Socket(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_stored() {
        assert_eq!(width("character varying(3)"), Some(3));
        assert_eq!(width("text"), None);
        assert_eq!(as_stored("abc  ".to_owned(), KeyType::Text, Some(3)), Value::from("abc"));
        assert_eq!(as_stored("abc  ".to_owned(), KeyType::Text, None), Value::from("abc  "));
        assert_eq!(as_stored(" 7".to_owned(), KeyType::Integer, None), Value::Integer(7));
        assert_eq!(as_stored("\\xDEad".to_owned(), KeyType::Bytes, None), Value::Blob(vec![0xde, 0xad]));
    }

    #[test]
    fn rows_get_one_more_value() {
        let giving = Giving { table: "t".to_owned(), column: "a,b".to_owned(), bytes: 4, is_key: true };
        let form =
            |csv, delimiter| Form { csv, header: false, delimiter, null: String::new(), quote: b'"', escape: b'"' };
        assert_eq!(&giving.text(&form(false, b'\t'), b"x\ty\n", "7")[..], b"x\ty\t7\n");
        assert_eq!(&giving.text(&form(true, b','), b"x\r\n", "7")[..], b"x,7\r\n");
        assert_eq!(&giving.text(&form(true, b','), b"x", "7")[..], b"x,7");
        assert_eq!(giving.header(&form(true, b',')), "\"a,b\"");
        assert_eq!(
            &giving.binary(&[0, 1, 0, 0, 0, 1, b'x'], 258)[..],
            [0, 2, 0, 0, 0, 1, b'x', 0, 0, 0, 4, 0, 0, 1, 2]
        );
    }

    #[test]
    fn binary_rows_are_cut_wherever_they_come_in_pieces() {
        let mut bytes = BytesMut::from(SIGNATURE);
        bytes.put_u64(0);
        for (id, name) in [(1_i32, Some("a")), (2, None)] {
            bytes.put_i16(2);
            bytes.put_i32(4);
            bytes.put_i32(id);
            match name {
                Some(name) => {
                    bytes.put_i32(i32::try_from(name.len()).unwrap());
                    bytes.put_slice(name.as_bytes());
                }
                None => bytes.put_i32(-1),
            }
        }
        bytes.put_slice(BINARY_END);
        let mut binary = Binary::default();
        let mut rows = Vec::new();
        for byte in &bytes[..] {
            binary.push(&[*byte]);
            rows.extend(binary.row().unwrap());
        }
        assert!(binary.ended);
        let sizes: Vec<(u64, usize)> = rows.iter().map(|(number, row)| (*number, row.len())).collect();
        assert_eq!(sizes, [(1, 15), (2, 14)]);
        let mut odd = Binary::default();
        odd.push(&[0; HEAD_BYTES]);
        assert_eq!(odd.row().unwrap_err().code, "22P04");
    }
}
