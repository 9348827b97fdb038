//! An attempt, from the snapshot on.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::super::{Connection, PostgresError, Server};
use super::apply::Applier;
use super::copy::copy;
use super::digest::digests;
use super::pgoutput::{Change, Lsn};
use super::replication::{Frame, Replication, SILENCE};
use super::sql::{literal, number, only, schema_name, session, session_prefix, slot_prefix, value, walsender};
use super::table::Table;
use super::{Applied, Copied, Digest, Movement, TableDigest, setup};

/// A slot waits for every transaction that was open.
const BEGIN_MAX: Duration = Duration::from_secs(60);
/// The source is told how far we are, so that it need not keep what is before.
const CONFIRM_EVERY: Duration = Duration::from_secs(1);

/// An attempt. Dropping it closes its connections; what it has made on the servers is left to clean-up.
///
/// Its methods are to be awaited to their end: one that was given up in the middle is the end of the attempt.
pub struct Mover {
    source: Server,
    target: Server,
    movement: Arc<Movement>,
    tables: Vec<Arc<Table>>,
    /// For what is asked of the source meanwhile.
    control: Connection,
    stage: Stage,
    applier: Applier,
    /// In a transaction of the source.
    inside: bool,
    /// A Begin that was read and is not its turn.
    held: Option<Lsn>,
    /// Where the last transaction ends that was read whole.
    reached: Lsn,
    /// Everything that the source committed before is on the target, committed.
    applied: Lsn,
    confirmed: Instant,
    counts: Applied,
    /// Digests so far: each has a slot of another name.
    digests: u32,
    /// A method runs, or was given up.
    busy: bool,
}

enum Stage {
    /// Nothing may be asked on the connection, or the snapshot is gone.
    Snapshot {
        connection: Box<Connection>,
        name: String,
    },
    Streaming(Replication),
    /// It could not be begun.
    Over,
}

/// How far to go.
#[derive(Clone, Copy)]
enum Until<'a> {
    /// To the end of the transaction with this message.
    Message(&'a str),
    /// To the first transaction that was committed there or later.
    Position(Lsn),
    Time(Instant),
}

impl Mover {
    /// Make on both servers what the attempt needs, and take the snapshot. Clean-up of all earlier attempts has gone before.
    /// Given up after a minute: a slot waits for every transaction that was open.
    pub async fn begin(source: &Server, target: &Server, movement: Movement) -> Result<Mover, PostgresError> {
        let movement = Arc::new(movement);
        let name = session_name(&movement);
        setup::target(&mut session(target, &name).await?, &movement).await?;
        let mut control = walsender(source, &name).await?;
        setup::source(&mut control, &movement).await?;
        // On the disk when it is committed, or it does not come in the stream for a while.
        control.ask("SET synchronous_commit = local").await?;
        let mut connection = walsender(source, &name).await?;
        let slot = slot_name(&movement);
        let make = format!("CREATE_REPLICATION_SLOT \"{slot}\" LOGICAL pgoutput EXPORT_SNAPSHOT");
        let made = timeout(BEGIN_MAX, connection.ask(&make)).await.map_err(|_| {
            PostgresError::Moving(format!(
                "transactions on the source did not end within {} s, so there is no snapshot to copy; end the oldest ones",
                BEGIN_MAX.as_secs()
            ))
        })??;
        let row = only(&made)?;
        let applied = value(row, 1).parse().map_err(PostgresError::within)?;
        let stage = Stage::Snapshot { connection: Box::new(connection), name: value(row, 2).to_owned() };
        let mut tables = Vec::new();
        for moving in &movement.tables {
            tables.push(Arc::new(Table::load(&mut control, moving).await?));
        }
        let applier = Applier::open(target, movement.clone(), tables.clone()).await?;
        let (source, target) = (source.clone(), target.clone());
        let (counts, confirmed) = (Applied::default(), Instant::now());
        Ok(Mover {
            source,
            target,
            movement,
            tables,
            control,
            stage,
            applier,
            inside: false,
            held: None,
            reached: applied,
            applied,
            confirmed,
            counts,
            digests: 0,
            busy: false,
        })
    }

    /// Copy the rows of the snapshot, over so many pairs of connections. `progress` hears the sum now and then.
    pub async fn copy(&mut self, parallel: usize, progress: &(dyn Fn(Copied) + Sync)) -> Result<Copied, PostgresError> {
        self.enter()?;
        let Stage::Snapshot { name, .. } = &self.stage else {
            return Err(PostgresError::OutOfTurn("the snapshot is gone: rows are copied once, and first".to_owned()));
        };
        let copied = copy((&self.source, &self.target), &self.movement, &self.tables, name, parallel, progress).await?;
        self.busy = false;
        Ok(copied)
    }

    /// Apply the stream. Everything that the source has committed when this is called is on the target when it returns.
    pub async fn catch_up(&mut self) -> Result<Applied, PostgresError> {
        self.enter()?;
        let mark = self.mark().await?;
        self.run(Until::Message(&mark)).await?;
        self.busy = false;
        Ok(self.counts)
    }

    /// Apply the stream as it comes, for so long, so that the slot does not fall behind.
    pub async fn follow(&mut self, for_at_most: Duration) -> Result<Applied, PostgresError> {
        self.enter()?;
        self.run(Until::Time(Instant::now() + for_at_most)).await?;
        self.busy = false;
        Ok(self.counts)
    }

    /// Bytes of the source's log that were not looked at yet.
    pub async fn lag(&mut self) -> Result<u64, PostgresError> {
        self.enter()?;
        let ask = format!("SELECT greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), '{}'), 0)", self.applied);
        let lag = number(only(&self.control.ask(&ask).await?)?, 0)?;
        self.busy = false;
        Ok(lag)
    }

    /// Count and hash what moves, on both sides at one position of the stream. `None`: transactions of clients on the source have not ended within
    /// that time, so that there is no such position; it may be tried again.
    pub async fn digest(&mut self, within: Duration) -> Result<Option<Vec<TableDigest>>, PostgresError> {
        self.enter()?;
        let Some((mut source, position)) = self.snapshot(within).await? else {
            self.busy = false;
            return Ok(None);
        };
        // Without it, a source that is at rest would never say that nothing more comes before.
        self.mark().await?;
        let (movement, tables) = (self.movement.clone(), self.tables.clone());
        let (there, here) = tokio::join!(digests(&mut source, &movement, &tables), self.digests_at(position));
        let (there, here) = (there?, here?);
        let sides = there.into_iter().zip(here);
        let digest = |(table, (source, target)): (&Arc<Table>, (Digest, Digest))| {
            let (schema, name) = (table.schema.clone(), table.name.clone());
            TableDigest { schema, name, source, target }
        };
        let all = tables.iter().zip(sides).map(digest).collect();
        self.busy = false;
        Ok(Some(all))
    }

    /// A session on the source that sees what was committed before a position.
    async fn snapshot(&mut self, within: Duration) -> Result<Option<(Connection, Lsn)>, PostgresError> {
        let mut source = walsender(&self.source, &session_name(&self.movement)).await?;
        let pid: u32 = number(only(&source.ask("SELECT pg_backend_pid()").await?)?, 0)?;
        source.ask("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        self.digests += 1;
        let slot = format!("{}_digest_{}", slot_name(&self.movement), self.digests);
        let make = format!("CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY LOGICAL pgoutput USE_SNAPSHOT");
        let Ok(made) = timeout(within, source.ask(&make)).await else {
            // It does not see that we are gone while it waits for others.
            self.control.ask(&format!("SELECT pg_terminate_backend({pid})")).await?;
            return Ok(None);
        };
        let position = value(only(&made?)?, 1).parse().map_err(PostgresError::within)?;
        Ok(Some((source, position)))
    }

    async fn digests_at(&mut self, position: Lsn) -> Result<Vec<Digest>, PostgresError> {
        self.run(Until::Position(position)).await?;
        let mut target = session(&self.target, &session_name(&self.movement)).await?;
        target.ask("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        digests(&mut target, &self.movement, &self.tables).await
    }

    fn enter(&mut self) -> Result<(), PostgresError> {
        match mem::replace(&mut self.busy, true) {
            false => Ok(()),
            true => {
                Err(PostgresError::OutOfTurn("the attempt is over: something of it failed, or was given up".to_owned()))
            }
        }
    }

    /// Write something into the source's log that comes in the stream behind everything that is committed now.
    async fn mark(&mut self) -> Result<String, PostgresError> {
        let (mark, prefix) = (Uuid::new_v4().to_string(), schema_name(self.movement.operation));
        let emit = format!("SELECT pg_logical_emit_message(true, {}, '{mark}')", literal(&prefix));
        self.control.ask(&emit).await?;
        Ok(mark)
    }

    /// The stream, which begins where the snapshot ends.
    async fn stream(&mut self) -> Result<&mut Replication, PostgresError> {
        if let Stage::Snapshot { .. } = self.stage
            && let Stage::Snapshot { connection, .. } = mem::replace(&mut self.stage, Stage::Over)
        {
            let (slot, publication) = (slot_name(&self.movement), schema_name(self.movement.operation));
            self.stage = Stage::Streaming(Replication::start(*connection, &slot, &publication).await?);
        }
        match &mut self.stage {
            Stage::Streaming(stream) => Ok(stream),
            _ => Err(PostgresError::OutOfTurn("the stream could not be begun".to_owned())),
        }
    }

    /// Apply what comes. Between two calls a transaction of the source may be half read, and the target's be open.
    async fn run(&mut self, until: Until<'_>) -> Result<(), PostgresError> {
        let mut marked = false;
        while !until.is_over() {
            let change = match self.held.take() {
                Some(commit) => Change::Begin(commit),
                None => match self.next(until).await? {
                    Some(change) => change,
                    None => break,
                },
            };
            match change {
                Change::Begin(commit) if matches!(until, Until::Position(position) if commit >= position) => {
                    self.held = Some(commit);
                    return self.commit().await;
                }
                Change::Begin(_) => self.inside = true,
                Change::Commit { end } => {
                    self.inside = false;
                    self.reach(end);
                    if marked {
                        return self.commit().await;
                    }
                    if self.applier.is_full() {
                        self.commit().await?;
                    }
                }
                Change::Message { prefix, content } => {
                    let ours = prefix == schema_name(self.movement.operation);
                    marked |= matches!(until, Until::Message(mark) if ours && content == mark);
                }
                change => self.counts.rows += self.applier.apply(change).await?,
            }
        }
        // It is time. A transaction of the source that is half read goes on with the next call.
        if self.inside { Ok(()) } else { self.commit().await }
    }

    /// The next change. None: it is time.
    async fn next(&mut self, until: Until<'_>) -> Result<Option<Change>, PostgresError> {
        loop {
            let (between, open, applied) = (!self.inside, self.applier.is_open(), self.applied);
            let stream = self.stream().await?;
            let frame = match timeout(Duration::ZERO, stream.next()).await {
                Ok(frame) => frame?,
                // What came so far is not kept waiting for what may come.
                Err(_) if between && open => {
                    self.commit().await?;
                    continue;
                }
                Err(_) => match timeout_at(until.wait(), stream.next()).await {
                    Ok(frame) => frame?,
                    Err(_) if until.is_over() => return Ok(None),
                    Err(_) => {
                        stream.wake(applied).await?;
                        continue;
                    }
                },
            };
            match frame {
                Frame::Change(body) => {
                    self.counts.bytes += body.len() as u64;
                    return Change::read(body).map(Some).map_err(PostgresError::within);
                }
                Frame::Alive { end, answer } => {
                    if between {
                        self.reach(end);
                    }
                    if answer {
                        self.confirm().await?;
                    }
                }
            }
        }
    }

    /// Everything before this position was read, and between transactions.
    fn reach(&mut self, end: Lsn) {
        self.reached = self.reached.max(end);
        if !self.applier.is_open() {
            self.applied = self.reached;
        }
    }

    async fn commit(&mut self) -> Result<(), PostgresError> {
        self.applier.commit(self.reached).await?;
        self.applied = self.reached;
        match self.confirmed.elapsed() >= CONFIRM_EVERY {
            true => self.confirm().await,
            false => Ok(()),
        }
    }

    async fn confirm(&mut self) -> Result<(), PostgresError> {
        self.confirmed = Instant::now();
        let applied = self.applied;
        self.stream().await?.confirm(applied, false).await
    }
}

impl Until<'_> {
    fn is_over(self) -> bool {
        matches!(self, Until::Time(deadline) if Instant::now() >= deadline)
    }

    /// Until when to wait for a word of the source.
    fn wait(self) -> Instant {
        let silence = Instant::now() + SILENCE;
        match self {
            Until::Time(deadline) => deadline.min(silence),
            Until::Message(_) | Until::Position(_) => silence,
        }
    }
}

fn session_name(movement: &Movement) -> String {
    format!("{}{}", session_prefix(movement.operation), movement.attempt)
}

fn slot_name(movement: &Movement) -> String {
    format!("{}{}", slot_prefix(movement.operation), movement.attempt)
}
