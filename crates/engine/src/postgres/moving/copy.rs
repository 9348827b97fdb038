//! The rows of the snapshot, piped from server to server.
//!
//! Both servers' COPY has the same form, so the rows pass through as bytes, and nothing is read of them. The text form: the binary one has the
//! numbers of users' types in arrays and records, which differ between servers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::ask::read;
use super::super::wire::HEAD;
use super::super::wire::backend::Failure;
use super::super::{Connection, PostgresError, Reply, Request, Server};
use super::apply::{commit, fenced, writer};
use super::sql::{session_prefix, walsender};
use super::table::Table;
use super::{Copied, Movement};

/// A piece of a table that one pair of connections copies in one transaction, in blocks of the source: 16 MiB.
const PIECE_BLOCKS: u64 = 2_048;
/// So much is passed on at a time.
const CHUNK_BYTES: usize = 128 << 10;
/// Pairs of connections.
const PARALLEL_MAX: usize = 8;
/// What is held of an error.
const FAILURE_BYTES: usize = 4 << 10;

struct Piece {
    table: Arc<Table>,
    /// Blocks. The last piece has no end: the table grows.
    from: u64,
    to: Option<u64>,
}

/// What all pairs need.
struct Job {
    source: Server,
    target: Server,
    movement: Arc<Movement>,
    snapshot: String,
    pieces: Mutex<VecDeque<Piece>>,
    told: mpsc::UnboundedSender<Copied>,
}

/// Copy what moves of these tables, as a snapshot of the source has it.
pub async fn copy(
    servers: (&Server, &Server),
    movement: &Arc<Movement>,
    tables: &[Arc<Table>],
    snapshot: &str,
    parallel: usize,
    progress: &(dyn Fn(Copied) + Sync),
) -> Result<Copied, PostgresError> {
    let (told, mut heard) = mpsc::unbounded_channel();
    let job = Arc::new(Job {
        source: servers.0.clone(),
        target: servers.1.clone(),
        movement: movement.clone(),
        snapshot: snapshot.to_owned(),
        pieces: Mutex::new(pieces(tables)),
        told,
    });
    let pairs = parallel.clamp(1, PARALLEL_MAX).min(job.pieces.lock().len());
    let mut running = JoinSet::new();
    (0..pairs).for_each(|_| drop(running.spawn(pair(job.clone()))));
    drop(job);
    let mut copied = Copied::default();
    while let Some(more) = heard.recv().await {
        copied = Copied { rows: copied.rows + more.rows, bytes: copied.bytes + more.bytes };
        progress(copied);
        // One that has failed ends all.
        while let Some(ended) = running.try_join_next() {
            ended.map_err(crashed)??;
        }
    }
    while let Some(ended) = running.join_next().await {
        ended.map_err(crashed)??;
    }
    Ok(copied)
}

fn crashed(error: tokio::task::JoinError) -> PostgresError {
    PostgresError::Moving(format!("copying has ended in the middle: {error}"))
}

/// The largest tables first, so that no pair has a large one left when the others are through.
fn pieces(tables: &[Arc<Table>]) -> VecDeque<Piece> {
    let mut tables: Vec<&Arc<Table>> = tables.iter().collect();
    tables.sort_by_key(|table| std::cmp::Reverse(table.blocks));
    let of = |table: &Arc<Table>| {
        let (table, count) = (table.clone(), table.blocks.div_ceil(PIECE_BLOCKS).max(1));
        (0..count).map(move |number| Piece {
            table: table.clone(),
            from: number * PIECE_BLOCKS,
            to: (number + 1 < count).then_some((number + 1) * PIECE_BLOCKS),
        })
    };
    tables.into_iter().flat_map(of).collect()
}

async fn pair(job: Arc<Job>) -> Result<(), PostgresError> {
    let Job { source, target, movement, snapshot, pieces, told } = &*job;
    let name = format!("{}{}", session_prefix(movement.operation), movement.attempt);
    let mut source = walsender(source, &name).await?;
    source.ask("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    source.ask(&format!("SET TRANSACTION SNAPSHOT '{snapshot}'")).await?;
    let mut target = writer(target, movement).await?;
    loop {
        let Some(piece) = pieces.lock().pop_front() else { return Ok(()) };
        target.ask(&fenced(movement)).await?;
        let rows = pipe(&mut source, &mut target, &piece, movement, told).await?;
        commit(&mut target).await?;
        let _ = told.send(Copied { rows, bytes: 0 });
    }
}

impl Piece {
    fn statements(&self, movement: &Movement) -> (String, String) {
        let Piece { table, from, to } = self;
        let (name, columns, condition) = (table.quoted(), table.list(), table.condition(movement));
        let from = if *from == 0 { String::new() } else { format!(" AND ctid >= '({from},0)'") };
        let to = to.map_or_else(String::new, |to| format!(" AND ctid < '({to},0)'"));
        (
            format!("COPY (SELECT {columns} FROM ONLY {name} WHERE {condition}{from}{to}) TO STDOUT"),
            format!("COPY {name} ({columns}) FROM STDIN"),
        )
    }
}

/// Copy a piece. How many rows it has.
async fn pipe(
    source: &mut Connection,
    target: &mut Connection,
    piece: &Piece,
    movement: &Movement,
    told: &mpsc::UnboundedSender<Copied>,
) -> Result<u64, PostgresError> {
    let (out, into) = piece.statements(movement);
    target.push(Request::Query(into))?;
    let mut said = BytesMut::new();
    while !is_asked_for_rows(target.receive().await?, &mut said)? {}
    source.push(Request::Query(out))?;
    let (mut scan, mut chunk) = (Scan::default(), BytesMut::new());
    loop {
        match source.receive().await? {
            Reply::Bytes(bytes) => scan.read(bytes, &mut chunk),
            Reply::Ready { .. } => break,
            Reply::CopyIn | Reply::Answered => {}
        }
        if chunk.len() >= CHUNK_BYTES {
            pass(target, &mut chunk, told).await?;
            // One that has failed would be sent the rest of the piece in vain.
            while let Ok(reply) = timeout(Duration::ZERO, target.receive()).await {
                is_asked_for_rows(reply?, &mut said)?;
            }
        }
    }
    if let Some(failure) = scan.failure {
        target.copy_fail("the source has failed");
        return Err(PostgresError::answered(Failure::read(&failure)));
    }
    pass(target, &mut chunk, told).await?;
    target.copy_done();
    let tag = target.answer().await?.tag;
    let rows = tag.strip_prefix("COPY ").and_then(|rows| rows.parse().ok());
    rows.ok_or_else(|| PostgresError::Moving(format!("the target answered COPY with {tag:?}")))
}

/// What the target says before it has all rows. It may be that it has failed.
fn is_asked_for_rows(reply: Reply, said: &mut BytesMut) -> Result<bool, PostgresError> {
    match reply {
        Reply::Bytes(bytes) => {
            said.extend_from_slice(&bytes);
            Ok(false)
        }
        Reply::CopyIn => Ok(true),
        Reply::Ready { .. } | Reply::Answered => {
            let asked = read(said.split().freeze(), &mut Vec::new())?;
            Err(PostgresError::Moving(format!("the target answered COPY with {:?} before its rows", asked.tag)))
        }
    }
}

async fn pass(
    target: &mut Connection,
    chunk: &mut BytesMut,
    told: &mpsc::UnboundedSender<Copied>,
) -> Result<(), PostgresError> {
    let bytes = chunk.split().freeze();
    let _ = told.send(Copied { rows: 0, bytes: bytes.len() as u64 });
    target.copy_data(bytes).await
}

/// Takes rows out of messages, which begin and end anywhere in what is read.
#[derive(Default)]
struct Scan {
    head: Vec<u8>,
    /// Bytes of the message's body that are still to come.
    rest: usize,
    /// The beginning of an error's body.
    failure: Option<Vec<u8>>,
}

impl Scan {
    fn read(&mut self, mut bytes: Bytes, rows: &mut BytesMut) {
        while !bytes.is_empty() {
            if self.rest == 0 {
                let take = (HEAD - self.head.len()).min(bytes.len());
                self.head.extend_from_slice(&bytes.split_to(take));
                if self.head.len() < HEAD {
                    return;
                }
                let length = self.head[1..].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
                // The connection has looked at it: it counts itself.
                self.rest = length.saturating_sub(4);
                if self.rest > 0 {
                    continue;
                }
            } else {
                let body = bytes.split_to(self.rest.min(bytes.len()));
                self.rest -= body.len();
                match self.head[0] {
                    b'd' => rows.extend_from_slice(&body),
                    b'E' => {
                        let failure = self.failure.get_or_insert_default();
                        let room = FAILURE_BYTES.saturating_sub(failure.len());
                        failure.extend(body.take(room).chunk());
                    }
                    _ => {}
                }
            }
            if self.rest == 0 {
                self.head.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::wire::message;
    use super::*;

    #[test]
    fn rows_are_found_wherever_bytes_are_cut() {
        let mut all = BytesMut::new();
        for (tag, body) in [(b'H', &b"\0\0\0"[..]), (b'd', b"1\ta\n"), (b'c', b""), (b'd', b"2\tb\n"), (b'E', b"Cx\0")]
        {
            message(&mut all, tag, |out| out.extend_from_slice(body));
        }
        for size in 1..all.len() {
            let (mut scan, mut rows) = (Scan::default(), BytesMut::new());
            all.chunks(size).for_each(|part| scan.read(Bytes::copy_from_slice(part), &mut rows));
            assert_eq!((&rows[..], scan.failure.as_deref()), (&b"1\ta\n2\tb\n"[..], Some(&b"Cx\0"[..])), "{size}");
        }
    }
}
