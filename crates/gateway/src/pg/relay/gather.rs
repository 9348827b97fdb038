//! Rows of several shards, gathered into a session that finishes their statement.
//!
//! It is a session of a shard, on a connection of its own. The rows go into temporary tables of its transaction, as bytes: a row of the protocol's
//! binary format is a row of COPY's. A cursor stays there, with all of its rows, when the transaction has ended.

use std::collections::BTreeSet;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pleat_cluster::ShardId;
use pleat_engine::postgres::wire::frontend::Bind;
use pleat_engine::postgres::{Lease, Reply, Request};
use pleat_sql::postgres::{Fetch, Part as Piece, Route, Source, Spread};
use tokio::sync::OwnedSemaphorePermit;

use super::Relay;
use super::messages::Messages;
use super::spread::{Call, FIRST_USER_TYPE, Run, gone, owners, run};
use crate::pg::cancel::Key;
use crate::pg::client::{Client, Stop};
use crate::session::Failure;
use crate::settings::GATHER_WAIT_MAX;

/// Rows are handed to the finishing session in pieces of so many bytes.
const FILL_BYTES: usize = 64 << 10;
/// What begins the rows of a COPY in binary format, and what ends them.
const BINARY_HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const BINARY_END: &[u8] = &[0xff, 0xff];
/// The rows of a cursor that each shard has some of.
const CURSOR_ROWS: &str = "__cursor";
/// Cursors over several shards that a session has open at a time: each keeps a connection.
const CURSORS_MAX: usize = 8;

/// A cursor over the rows of several shards.
pub struct Cursor {
    lease: Lease,
    /// It outlives its transaction.
    pub hold: bool,
}

/// What is fetched, and what is made of it.
pub struct Plan<'a> {
    pub fetches: &'a [Fetch],
    pub finish: &'a Piece,
    /// Those that have rows of sharded tables.
    pub shards: BTreeSet<ShardId>,
}

impl Relay {
    /// Fetch rows into a session that finishes the statement. True: a server's error was passed on.
    pub(super) async fn gather(
        &mut self,
        client: &mut Client,
        key: &Key,
        call: &Call<'_>,
        types: &[u32],
        plan: &Plan<'_>,
    ) -> Result<bool, Stop> {
        let Some((mut finisher, _place)) = self.gathered(client, key, call, types, plan).await? else {
            return Ok(true);
        };
        let Run { statement, bind, .. } = run(ShardId(0), plan.finish, call.bind, types);
        finisher.push(Request::Bind(statement, bind))?;
        if call.describe {
            finisher.push(Request::DescribePortal(String::new()))?;
        }
        finisher.push(Request::Execute { portal: String::new(), rows: 0 })?;
        finisher.push(Request::Sync)?;
        let failed = self.finished(client, key, &mut finisher, true).await?;
        // Its tables go with the transaction.
        finisher.ask("ROLLBACK").await?;
        Ok(failed)
    }

    /// DECLARE a cursor over the rows of several shards. True: a server's error was passed on.
    pub(super) async fn declare(
        &mut self,
        client: &mut Client,
        key: &Key,
        call: &Call<'_>,
        route: Route<'_>,
        (name, hold): (&str, bool),
    ) -> Result<bool, Stop> {
        if !hold && self.block.is_none() {
            let hint = "BEGIN first, or declare it WITH HOLD";
            return Err(Failure::new("25P01", "DECLARE CURSOR can only be used in transaction blocks", hint).into());
        }
        if self.held.contains_key(name) {
            return Err(Failure::new("42P03", format!("cursor \"{name}\" already exists"), "CLOSE it first").into());
        }
        if self.held.len() >= CURSORS_MAX {
            let message = format!("a session has at most {CURSORS_MAX} cursors over several shards");
            return Err(Failure::new("53400", message, "CLOSE those that are not needed").into());
        }
        let Route::Spread { plan, prune } = route else {
            return Err(Failure::new("0A000", "the statement of a cursor can't write to several shards", "").into());
        };
        let shards = owners(&self.catalog(), &prune);
        let (fetches, finish) = match plan {
            Spread::Gather { fetches, finish } => (fetches.clone(), finish.clone()),
            Spread::Concat(part) => {
                let fetch = Fetch {
                    table: CURSOR_ROWS.to_owned(),
                    primary_key: Vec::new(),
                    part: part.clone(),
                    from: Source::Sharded,
                };
                let text = format!("SELECT * FROM {}", quoted(CURSOR_ROWS));
                (vec![fetch], Piece { text: text.into(), params: Vec::new() })
            }
        };
        let plan = Plan { fetches: &fetches, finish: &finish, shards };
        let Some((mut finisher, _place)) = self.gathered(client, key, call, &[], &plan).await? else { return Ok(true) };
        // With its transaction's end it has all of its rows, and needs the tables no more.
        finisher.push(Request::Query(format!(
            "DECLARE {} SCROLL CURSOR WITH HOLD FOR {}",
            quoted(name),
            finish.text
        )))?;
        if self.finished(client, key, &mut finisher, false).await? {
            return Ok(true);
        }
        finisher.ask("COMMIT").await?;
        self.held.insert(name.to_owned(), Cursor { lease: finisher, hold });
        Ok(false)
    }

    /// FETCH, MOVE or CLOSE (or what describes it), if it is of a cursor over several shards. True: a server's error was passed on.
    pub(super) async fn on_held(
        &mut self,
        client: &mut Client,
        key: &Key,
        name: &str,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<Option<bool>, Stop> {
        let Some(Cursor { mut lease, hold }) = self.held.remove(name) else { return Ok(None) };
        for request in requests {
            lease.push(request)?;
        }
        let failed = self.finished(client, key, &mut lease, true).await?;
        self.held.insert(name.to_owned(), Cursor { lease, hold });
        Ok(Some(failed))
    }

    /// A session with the rows of all fetches, in a transaction. `None`: a server's error was passed on.
    async fn gathered(
        &mut self,
        client: &mut Client,
        key: &Key,
        call: &Call<'_>,
        types: &[u32],
        plan: &Plan<'_>,
    ) -> Result<Option<(Lease, OwnedSemaphorePermit)>, Stop> {
        let gathers = self.shared.relayed_gathers.clone();
        let place = tokio::time::timeout(GATHER_WAIT_MAX, gathers.acquire_owned()).await;
        let place = place.ok().and_then(Result::ok).ok_or_else(|| {
            let hint = "try again, with fewer at once; limits.gathers in the configuration raises it";
            Failure::passing("53000", "as many queries as may gather rows on this node", hint).at_limit("gathers")
        })?;
        let home = self.any(&self.catalog())?;
        let mut finisher = self.lease(home).await?;
        finisher.ask("BEGIN").await?;
        for fetch in plan.fetches {
            let text = format!(
                "CREATE TEMP TABLE {} ON COMMIT DROP AS {} WITH NO DATA",
                quoted(&fetch.table),
                fetch.part.text
            );
            let piece = Piece { text: text.into(), params: fetch.part.params.clone() };
            let Run { statement, bind, .. } = run(home, &piece, call.bind, types);
            finisher.push(Request::Bind(statement, Bind { results: Vec::new(), ..bind }))?;
            finisher.push(Request::Execute { portal: String::new(), rows: 0 })?;
        }
        finisher.push(Request::Sync)?;
        if self.finished(client, key, &mut finisher, false).await? {
            return Ok(None);
        }
        for fetch in plan.fetches {
            let from = match fetch.from {
                Source::Single(shard) => BTreeSet::from([shard]),
                Source::Sharded => plan.shards.clone(),
            };
            if !from.is_empty() && self.fetch(client, key, call, types, fetch, from, &mut finisher).await? {
                return Ok(None);
            }
        }
        for fetch in plan.fetches.iter().filter(|fetch| !fetch.primary_key.is_empty()) {
            let key: Vec<String> = fetch.primary_key.iter().map(|column| quoted(column)).collect();
            let text = format!("ALTER TABLE {} ADD PRIMARY KEY ({})", quoted(&fetch.table), key.join(", "));
            finisher.ask(&text).await?;
        }
        Ok(Some((finisher, place)))
    }

    /// What the finishing session answers; with `told` to the client, else only what went wrong.
    async fn finished(
        &mut self,
        client: &mut Client,
        key: &Key,
        finisher: &mut Lease,
        told: bool,
    ) -> Result<bool, Stop> {
        let canceller = finisher.canceller();
        let (mut messages, mut failed, mut cancelled) = (Messages::default(), false, false);
        loop {
            let reply = tokio::select! {
                biased;
                reply = finisher.receive() => reply?,
                () = key.requested(), if !cancelled => {
                    cancelled = true;
                    let canceller = canceller.clone();
                    pleat_consensus::spawn(async move { canceller.cancel().await });
                    continue;
                }
                () = client.reader.gone() => return Err(gone()),
            };
            match reply {
                Reply::Bytes(bytes) => messages.push(&bytes),
                Reply::CopyIn => finisher.copy_fail("rows are not taken here"),
                Reply::Answered => {}
                Reply::Ready { .. } => break,
            }
            while let Some(whole) = messages.next()? {
                match whole.tag {
                    b'E' => {
                        failed = true;
                        client.out.raw(&whole.bytes);
                    }
                    b'T' | b'D' | b'C' | b'N' if told => client.out.raw(&whole.bytes),
                    _ => {}
                }
            }
            client.flush_much().await?;
        }
        if failed {
            self.fail_block();
        }
        Ok(failed)
    }

    /// Bring the rows of one fetch to the finishing session. True: a server's error was passed on.
    #[allow(clippy::too_many_arguments)] // as above
    async fn fetch(
        &mut self,
        client: &mut Client,
        key: &Key,
        call: &Call<'_>,
        types: &[u32],
        fetch: &Fetch,
        from: BTreeSet<ShardId>,
        finisher: &mut Lease,
    ) -> Result<bool, Stop> {
        let table = quoted(&fetch.table);
        let asked = format!(
            "SELECT coalesce(max(atttypid::oid::int8), 0) FROM pg_attribute WHERE attrelid = '{}'::regclass AND attnum > 0",
            table.replace('\'', "''")
        );
        let newest = finisher.ask(&asked).await?;
        let newest =
            newest.rows.first().and_then(|row| row.first()?.as_deref()?.parse::<u32>().ok()).unwrap_or(u32::MAX);
        let binary = newest < FIRST_USER_TYPE;
        let results = if binary { vec![1] } else { Vec::new() };
        for shard in &from {
            self.part(*shard).await?;
        }
        let catalog = self.catalog();
        for run in self.runs(&catalog, from.iter().copied(), &fetch.part, call.bind, types)? {
            let Run { shard, statement, bind } = run;
            let part = self.part(shard).await?;
            part.lease.push(Request::Bind(statement, Bind { results: results.clone(), ..bind }))?;
            part.lease.push(Request::Execute { portal: String::new(), rows: 0 })?;
            part.lease.push(Request::Sync)?;
        }
        let filled = self.fill(client, key, &table, binary, &from, finisher).await;
        match &filled {
            Ok(failed) => {
                if *failed {
                    self.fail_block();
                }
                match self.block {
                    None => self.keep_pinned(),
                    Some(_) => self.release_reads(),
                }
            }
            Err(_) => self.lose(from),
        }
        filled
    }

    async fn fill(
        &mut self,
        client: &mut Client,
        key: &Key,
        table: &str,
        binary: bool,
        from: &BTreeSet<ShardId>,
        finisher: &mut Lease,
    ) -> Result<bool, Stop> {
        for shard in from {
            if let Some(part) = self.parts.get_mut(shard) {
                part.lease.send().await?;
            }
        }
        let form = if binary { " (FORMAT binary)" } else { "" };
        finisher.push(Request::Query(format!("COPY {table} FROM STDIN{form}")))?;
        let mut answers = Messages::default();
        loop {
            match finisher.receive().await? {
                Reply::CopyIn => break,
                Reply::Bytes(bytes) => answers.push(&bytes),
                Reply::Answered => {}
                Reply::Ready { .. } => return refused(client, &mut answers),
            }
        }
        let (mut failed, mut cancelled) = (false, false);
        let mut rows = BytesMut::new();
        if binary {
            rows.put_slice(BINARY_HEAD);
        }
        for shard in from {
            let Some(part) = self.parts.get_mut(shard) else {
                return Err(Failure::internal(format!("the session has no connection to {shard}")).into());
            };
            let canceller = part.lease.canceller();
            let mut messages = Messages::default();
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
                    () = client.reader.gone() => return Err(gone()),
                };
                match reply {
                    Reply::Bytes(bytes) => messages.push(&bytes),
                    Reply::CopyIn => part.lease.copy_fail("rows are not taken here"),
                    Reply::Answered => {}
                    Reply::Ready { .. } => break,
                }
                while let Some(whole) = messages.next()? {
                    match whole.tag {
                        b'D' if failed => {}
                        b'D' if binary => rows.put_slice(&whole.body()),
                        b'D' => put_text(&mut rows, whole.body()),
                        b'E' if !failed => {
                            failed = true;
                            client.out.raw(&whole.bytes);
                        }
                        _ => {}
                    }
                }
                if rows.len() >= FILL_BYTES {
                    finisher.copy_data(rows.split().freeze()).await?;
                }
            }
        }
        match failed || cancelled {
            true => finisher.copy_fail("the rows are not whole"),
            false => {
                if binary {
                    rows.put_slice(BINARY_END);
                }
                finisher.copy_data(rows.freeze()).await?;
                finisher.copy_done();
            }
        }
        loop {
            match finisher.receive().await? {
                Reply::Bytes(bytes) => answers.push(&bytes),
                Reply::CopyIn | Reply::Answered => {}
                Reply::Ready { error, .. } if failed || error.is_none() => return Ok(failed),
                Reply::Ready { .. } => return refused(client, &mut answers),
            }
        }
    }
}

/// Pass on the error that is among what a server has said.
fn refused(client: &mut Client, answers: &mut Messages) -> Result<bool, Stop> {
    while let Some(whole) = answers.next()? {
        if whole.tag == b'E' {
            client.out.raw(&whole.bytes);
            return Ok(true);
        }
    }
    Err(Failure::internal("a server refused rows and did not say why").into())
}

/// Add a row in the text format of COPY.
fn put_text(rows: &mut BytesMut, mut body: Bytes) {
    if body.remaining() < 2 {
        return;
    }
    let count = body.get_u16();
    for at in 0..count {
        if at > 0 {
            rows.put_u8(b'\t');
        }
        if body.remaining() < 4 {
            return;
        }
        let Ok(length) = usize::try_from(body.get_i32()) else {
            rows.put_slice(b"\\N");
            continue;
        };
        for byte in body.split_to(length.min(body.remaining())) {
            match byte {
                b'\\' => rows.put_slice(b"\\\\"),
                b'\n' => rows.put_slice(b"\\n"),
                b'\r' => rows.put_slice(b"\\r"),
                b'\t' => rows.put_slice(b"\\t"),
                byte => rows.put_u8(byte),
            }
        }
    }
    rows.put_u8(b'\n');
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
