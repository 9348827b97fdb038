//! This node's replica of one shard: its Raft group, its readers and its counters.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{Millis, PartitionId, Planned, ShardId, TxnId};
use pleat_consensus::Group;
use pleat_engine::limits::CHUNK_ROWS_MAX;
use pleat_engine::{
    Action, Chunk, EngineError, Outcome, OwnershipCheck, Proposal, ReadRequest, Readers, Refusal, StatementResult,
    UnitSet, Wanted,
};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc, watch};
use uuid::Uuid;

use crate::failpoint::{effect, reach, reach_in};
use crate::lane::Passing;
use crate::locals::{Locals, Turn};
use crate::meter::{Kind, Meter};
use crate::position::split_index;
use crate::reference::Spread;
use crate::rpc::{Declined, Piece, Written};
use crate::shard_machine;
use crate::verify::Digests;
use crate::{Freshness, HostError, ShardObservation};

/// Messages of one read that wait for their receiver.
const MESSAGES_WAITING_MAX: usize = 4;
/// Of the engine's connections, those that statements leave to a move's reads and the counting of rows, so that these
/// never wait behind long scatters: one in so many.
const CONNECTIONS_KEPT: usize = 4;

/// What is left of a write's time after it has waited for another's decision, so that it can still be answered.
const DECISION_MARGIN: Duration = Duration::from_millis(100);

/// What takes a read's rows.
type Sink<'a> = dyn FnMut(Chunk) -> ControlFlow<()> + 'a;
/// Set when nobody wants a read's rows any more.
type Cancelled = Arc<AtomicBool>;

/// How long a transaction over several shards waits for the lane of one, while it may be prepared on others.
const PREPARE_WAIT_MAX: Duration = Duration::from_millis(250);

/// A stream of rows: the columns first, then rows. Pieces that are there at the same time come together, so that the answer
/// to a read of few rows is one message.
pub type Pieces = BoxStream<'static, Result<Vec<Piece>, Declined>>;

/// One shard's replica on this node.
pub struct Replica {
    pub shard: ShardId,
    /// Which replica of the shard on this node: the catalog raises it when another one is to take its place.
    pub number: u32,
    pub digests: Arc<Digests>,
    pub group: Group,
    pub readers: Readers,
    pub meter: Meter,
    pub spread: Spread,
    /// Interactive transactions that are open here, and the write lane.
    pub locals: Locals,
    reads: Arc<Semaphore>,
    /// The newest time stamped into an entry: a clock that is set back must not go back in the log.
    clock: AtomicU64,
}

impl Replica {
    pub fn new(
        shard: ShardId,
        number: u32,
        group: Group,
        readers: Readers,
        digests: Arc<Digests>,
        partition_count: u32,
    ) -> Self {
        let meter = Meter::new(partition_count);
        let reads_at_once = reads_at_once(&readers);
        let reads = Arc::new(Semaphore::new(reads_at_once));
        Self {
            shard,
            number,
            digests,
            group,
            readers,
            meter,
            spread: Spread::default(),
            locals: Locals::default(),
            reads,
            clock: AtomicU64::new(0),
        }
    }

    /// Propose an action here, where the group should be led.
    pub async fn write(
        &self,
        planned: Planned,
        action: Action,
        now: Millis,
        within: Duration,
    ) -> Result<Written, Declined> {
        let deadline = Instant::now() + within;
        if let Some(refusal) = self.meets_another(&action) {
            let index = self.group.applied();
            return Ok(Written { outcome: Outcome::Refused(refusal), index, uncertain: false });
        }
        let _passing = self.pass(&action, deadline).await?;
        self.write_in_lane(planned, action, now, within).await
    }

    /// Who wants to prepare while another transaction is prepared is refused, sooner or later; so at once, without an
    /// entry in the log, and without waiting for writes that wait for that other.
    fn meets_another(&self, action: &Action) -> Option<Refusal> {
        let Action::Prepare { txn, .. } = action else { return None };
        let other = self.readers.deciding().filter(|other| other != txn)?;
        Some(Refusal::Prepared { txn: other })
    }

    /// A place in the write lane, unless the action needs none.
    async fn pass(&self, action: &Action, deadline: Instant) -> Result<Option<Passing>, HostError> {
        let lane = &self.locals.lane;
        let deadline = match action {
            Action::Decide { .. } => return Ok(None),
            // Whoever waits for this one may wait for others; see `lane`.
            Action::Prepare { txn, began, .. } => {
                let wait = if lane.wound((*began, *txn)) { PREPARE_WAIT_MAX } else { Duration::ZERO };
                deadline.min(Instant::now() + wait)
            }
            _ => deadline.checked_sub(DECISION_MARGIN).unwrap_or(deadline),
        };
        let passing = match action {
            Action::Prepare { .. } => lane.pass_after(deadline).await,
            _ => lane.pass(deadline).await,
        };
        match passing {
            Some(passing) => Ok(Some(passing)),
            None => {
                let txn = lane.holder().map_or(TxnId(0), |(_, txn)| txn);
                Err(HostError::Refused(Refusal::Prepared { txn }))
            }
        }
    }

    /// The same for whoever has a place in the write lane.
    pub async fn write_in_lane(
        &self,
        planned: Planned,
        action: Action,
        now: Millis,
        within: Duration,
    ) -> Result<Written, Declined> {
        let deadline = Instant::now() + within;
        let counted = kind_of(&action);
        let waits = waits_for_decision(&action);
        let places = places_of(&action);
        if let Some((before, _)) = places {
            reach(before, Some(self.shard));
        }
        let effect = effect(&action);
        reach_in("shard.before-effect", effect);
        let _serving = counted.map(|kind| self.meter.begin(kind, &units_of(&action)));
        let mut proposal = Proposal { id: Uuid::new_v4(), planned, now_ms: now, seed: rand::random(), action };
        if planted::is(Bug::EarlyAcknowledgement)
            && let Action::Write { statements, .. } = &proposal.action
        {
            return Ok(self.acknowledge_early(statements.len(), &proposal, within));
        }
        let mut put_off = None;
        let (index, outcome) = loop {
            proposal.now_ms = self.clock.fetch_max(now, Ordering::Relaxed).max(now);
            let left = deadline.saturating_duration_since(Instant::now());
            let (index, outcome) = self.propose(&proposal, left).await?;
            if !(waits && matches!(outcome, Outcome::Refused(Refusal::Prepared { .. }))) {
                break (index, outcome);
            }
            put_off.get_or_insert_with(|| self.locals.lane.put_off());
            if !self.decided_before(deadline).await {
                break (index, outcome);
            }
        };
        drop(put_off);
        if let Some((_, after)) = places {
            reach(after, Some(self.shard));
        }
        reach_in("shard.had-effect", effect);
        if counted.is_some() && matches!(outcome, Outcome::Failed(_)) {
            self.meter.failed();
        }
        Ok(Written { outcome, index, uncertain: false })
    }

    /// What no replica may do: see [`Bug::EarlyAcknowledgement`].
    fn acknowledge_early(&self, statements: usize, proposal: &Proposal, within: Duration) -> Written {
        let (group, proposal) = (self.group.clone(), proposal.encode());
        pleat_consensus::spawn(async move { group.propose(proposal.into(), within).await });
        let results = vec![StatementResult { rows_affected: 1, ..StatementResult::default() }; statements];
        Written { outcome: Outcome::Done { results }, index: self.group.applied(), uncertain: false }
    }

    async fn propose(&self, proposal: &Proposal, within: Duration) -> Result<(u64, Outcome), Declined> {
        let answer = self.group.propose(proposal.encode().into(), within).await?;
        let (index, outcome) = split_index(&answer).map_err(|error| HostError::Internal(error.to_string()))?;
        let outcome = Outcome::decode(outcome).map_err(|error| HostError::Internal(error.to_string()))?;
        Ok((index, outcome))
    }

    /// Waits until no transaction is prepared here. False when that isn't so soon enough to propose something.
    async fn decided_before(&self, deadline: Instant) -> bool {
        let mut deciding = self.readers.watch_deciding();
        let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(DECISION_MARGIN);
        let decided = tokio::time::timeout(left, deciding.wait_for(Option::is_none)).await;
        matches!(decided, Ok(Ok(_)))
    }

    /// Read here, as fresh as asked. An `Err` comes before any row.
    pub async fn read(
        self: &Arc<Self>,
        request: ReadRequest,
        freshness: Freshness,
        within: Duration,
    ) -> Result<Pieces, Declined> {
        let deadline = Instant::now() + within;
        match freshness {
            Freshness::Strong => drop(self.group.read_barrier(within).await?),
            Freshness::AtLeast(index) => self.group.wait_applied(index, within).await?,
            Freshness::Eventual => {}
        }
        let units = read_units(&request.check).to_vec();
        let left = deadline.saturating_duration_since(Instant::now());
        let place = tokio::time::timeout(left, self.reads.clone().acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            return Err(HostError::Engine(EngineError::Busy { connections: reads_at_once(&self.readers) }).into());
        };
        let replica = self.clone();
        let stopped = watch::Sender::new(false).subscribe();
        let read = move |cancelled: &Cancelled, sink: &mut Sink<'_>| {
            let done = replica.readers.read_unless(&request, cancelled, sink);
            drop(place);
            done.map_err(engine_error)
        };
        self.stream(units, read, stopped, deadline).await
    }

    /// Read in an interactive transaction.
    pub async fn read_in(
        self: &Arc<Self>,
        turn: Turn,
        request: ReadRequest,
        deadline: Instant,
    ) -> Result<Pieces, Declined> {
        let local = self.locals.open(self, &turn.part, false, deadline).await?;
        let (units, stopped) = (read_units(&request.check).to_vec(), turn.part.stopped());
        // A transaction whose client goes away ends as a whole, by `stopped`.
        let read = move |_: &Cancelled, sink: &mut Sink<'_>| {
            local.read(&request, sink).map_err(|error| turn.part.failed(error))
        };
        self.stream(units, read, stopped, deadline).await
    }

    /// Run a read on a thread of its own, and hand its rows over as they are taken. It ends when they are not wanted any
    /// more, whatever it is doing; but rows that are only not taken yet it keeps to the end of its time. They may be those of
    /// a merge, which wants the rows of other shards first. A client that takes nothing is noticed by whoever serves it.
    async fn stream(
        self: &Arc<Self>,
        units: Vec<PartitionId>,
        read: impl FnOnce(&Cancelled, &mut Sink<'_>) -> Result<(), HostError> + Send + 'static,
        stopped: watch::Receiver<bool>,
        deadline: Instant,
    ) -> Result<Pieces, Declined> {
        let (sender, mut receiver) = mpsc::channel(MESSAGES_WAITING_MAX);
        let replica = self.clone();
        let runtime = Handle::current();
        let wanted = Wanted::default();
        let cancelled = wanted.cancelled();
        drop(pleat_consensus::blocking(move || {
            let _serving = replica.meter.begin(Kind::Read, &units);
            replica.read_blocking(|sink| read(&cancelled, sink), &sender, stopped, deadline, &runtime);
        }));
        // The first message decides whether there is an answer at all.
        let first = match receiver.recv().await {
            Some(Ok(pieces)) => pieces,
            Some(Err(error)) => return Err(error),
            None => return Err(HostError::Internal("the read ended without an answer".into()).into()),
        };
        let rest = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let pieces = futures::stream::iter([Ok(first)]).chain(rest);
        Ok(pieces.inspect(move |_| _ = &wanted).boxed())
    }

    fn read_blocking(
        &self,
        read: impl FnOnce(&mut Sink<'_>) -> Result<(), HostError>,
        sender: &mpsc::Sender<Result<Vec<Piece>, Declined>>,
        stopped: watch::Receiver<bool>,
        deadline: Instant,
        runtime: &Handle,
    ) {
        let wait = |message| {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut stopped = stopped.clone();
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    sent = tokio::time::timeout(left, sender.send(message)) => matches!(sent, Ok(Ok(()))),
                    Ok(_) = stopped.wait_for(|stopped| *stopped) => false,
                }
            })
        };
        let send = |message| match sender.try_send(message) {
            Ok(()) => true,
            Err(TrySendError::Full(message)) => wait(message),
            Err(TrySendError::Closed(_)) => false,
        };
        let mut taken = true;
        let mut held = Vec::new();
        let outcome = read(&mut |chunk| {
            let named = chunk.columns.map(|columns| columns.into_iter().map(|column| column.name).collect());
            // Rows that fill no chunk are mostly the last, so they wait for what comes next: the end, or more.
            let full = chunk.rows.len() >= CHUNK_ROWS_MAX;
            if held.iter().any(|piece| matches!(piece, Piece::Rows(_))) {
                taken = send(Ok(std::mem::take(&mut held)));
            }
            held.extend(chunk.txns.map(Piece::Txns).into_iter().chain(named.map(Piece::Columns)));
            held.extend((!chunk.rows.is_empty()).then_some(Piece::Rows(chunk.rows)));
            if full && taken {
                taken = send(Ok(std::mem::take(&mut held)));
            }
            match taken {
                true => std::ops::ControlFlow::Continue(()),
                false => std::ops::ControlFlow::Break(()),
            }
        });
        match outcome {
            Ok(()) if taken => {
                held.push(Piece::End);
                send(Ok(held));
            }
            Ok(()) | Err(HostError::Engine(EngineError::Cancelled)) => {}
            Err(error) => {
                self.meter.failed();
                // An error that comes first is the whole answer; later, the rows before it are not wanted any more either.
                send(Err(error.into()));
            }
        }
    }

    /// What this replica accepts writes for, and the index of the last entry that it had applied then.
    pub fn accepting(&self) -> Result<(UnitSet, u64), HostError> {
        let (units, applied) = self.readers.accepting().map_err(engine_error)?;
        let applied = shard_machine::decode(&applied).map_err(|error| HostError::Internal(format!("{error:#}")))?;
        Ok((units, applied.index))
    }

    /// What this node, as the leader, measures of the shard.
    pub fn observe(&self) -> Result<ShardObservation, HostError> {
        let stats = self.readers.stats().map_err(engine_error)?;
        let rates = self.meter.rates();
        Ok(ShardObservation {
            shard: self.shard,
            total_rows: stats.rows,
            rows_per_table: stats.tables,
            database_bytes: stats.file_bytes,
            connections: rates.connections,
            queries_per_second: rates.queries_per_second,
            transactions_per_second: rates.transactions_per_second,
            latency_ms: rates.latency_ms,
            errors: self.meter.errors(),
            applied_index: self.group.applied(),
            ownership: stats.ownership,
            holds_foreign_rows: stats.foreign_rows,
            partition_load: rates.partition_load,
        })
    }
}

/// Reads of statements that run on one replica at one time; further ones wait without holding a thread.
fn reads_at_once(readers: &Readers) -> usize {
    let connections = readers.connections();
    (connections - connections / CONNECTIONS_KEPT).max(1)
}

/// Whether the action waits here for the decision of a transaction that is prepared, instead of being refused. One
/// that prepares another must not: each could wait for the other. Its coordinator begins again.
fn waits_for_decision(action: &Action) -> bool {
    !matches!(action, Action::Prepare { .. } | Action::Decide { .. })
}

/// Where a test may let the process die before the action is proposed, and after it was applied.
fn places_of(action: &Action) -> Option<(&'static str, &'static str)> {
    match action {
        Action::Prepare { .. } => Some(("participant.before-prepare", "participant.prepared")),
        Action::Decide { .. } => Some(("participant.before-decide", "participant.decided")),
        Action::Write { .. } => Some(("participant.before-write", "participant.written")),
        _ => None,
    }
}

/// As what a client's write counts; none for what the cluster does of its own.
fn kind_of(action: &Action) -> Option<Kind> {
    match action {
        Action::Write { .. } | Action::ReferenceWrite { .. } | Action::Prepare { .. } => Some(Kind::Write),
        Action::Bulk { .. } => Some(Kind::Piece),
        _ => None,
    }
}

fn units_of(action: &Action) -> Cow<'_, [PartitionId]> {
    match action {
        Action::Write { units, .. } | Action::Prepare { units, .. } => Cow::Borrowed(units),
        Action::Bulk { parts, .. } => parts.iter().flat_map(|part| part.units.iter().copied()).collect(),
        _ => Cow::Borrowed(&[]),
    }
}

fn read_units(check: &OwnershipCheck) -> &[PartitionId] {
    match check {
        OwnershipCheck::Keyed(units) => units,
        OwnershipCheck::Scatter { .. } | OwnershipCheck::None => &[],
    }
}

/// A refusal by ownership is the router's to mend; everything else is the statement's.
pub fn engine_error(error: EngineError) -> HostError {
    match error {
        EngineError::Refused(refusal) => HostError::Refused(refusal),
        error => HostError::Engine(error),
    }
}
