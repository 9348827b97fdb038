//! This node's replica of one shard: its Raft group, its readers and its counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use pleat_cluster::{Generation, Millis, PartitionId, ShardId};
use pleat_consensus::Group;
use pleat_engine::{Action, EngineError, Outcome, OwnershipCheck, Proposal, ReadRequest, Readers, Refusal};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

use crate::meter::{Kind, Meter};
use crate::position::split_index;
use crate::reference::Spread;
use crate::rpc::{Declined, Piece, Written};
use crate::{Freshness, HostError, ShardObservation};

/// Pieces of one read that wait for their receiver.
const PIECES_WAITING_MAX: usize = 4;
/// How long a read waits for a receiver that takes nothing before it is given up.
const STALL_MAX: Duration = Duration::from_secs(15);
/// Reads that run on one replica at one time. Below the engine's number of connections, so that a move's reads
/// and the counting of rows never wait behind long scatters; further reads wait without holding a thread.
const READS_AT_ONCE_MAX: usize = 12;

/// What is left of a write's time after it has waited for another's decision, so that it can still be answered.
const DECISION_MARGIN: Duration = Duration::from_millis(100);

/// A stream of rows: the columns first, then rows.
pub type Pieces = BoxStream<'static, Result<Piece, Declined>>;

/// One shard's replica on this node.
pub struct Replica {
    pub shard: ShardId,
    pub group: Group,
    pub readers: Readers,
    pub meter: Meter,
    pub spread: Spread,
    reads: Arc<Semaphore>,
    /// The newest time stamped into an entry: a clock that is set back must not go back in the log.
    clock: AtomicU64,
}

impl Replica {
    pub fn new(shard: ShardId, group: Group, readers: Readers, partition_count: u32) -> Self {
        let meter = Meter::new(partition_count);
        let reads = Arc::new(Semaphore::new(READS_AT_ONCE_MAX));
        Self { shard, group, readers, meter, spread: Spread::default(), reads, clock: AtomicU64::new(0) }
    }

    /// Propose an action here, where the group should be led.
    pub async fn write(
        &self,
        generation: Generation,
        action: Action,
        now: Millis,
        within: Duration,
    ) -> Result<Written, Declined> {
        let deadline = Instant::now() + within;
        let counted = kind_of(&action);
        let waits = waits_for_decision(&action);
        let _serving = counted.map(|kind| self.meter.begin(kind, units_of(&action)));
        let mut proposal = Proposal { id: Uuid::new_v4(), generation, now_ms: now, seed: rand::random(), action };
        let (index, outcome) = loop {
            proposal.now_ms = self.clock.fetch_max(now, Ordering::Relaxed).max(now);
            let left = deadline.saturating_duration_since(Instant::now());
            let (index, outcome) = self.propose(&proposal, left).await?;
            let prepared = matches!(outcome, Outcome::Refused(Refusal::Prepared { .. }));
            if !(prepared && waits && self.decided_before(deadline).await) {
                break (index, outcome);
            }
        };
        if counted.is_some() && matches!(outcome, Outcome::Failed(_)) {
            self.meter.failed();
        }
        Ok(Written { outcome, index, uncertain: false })
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
        let left = deadline.saturating_duration_since(Instant::now());
        let place = tokio::time::timeout(left, self.reads.clone().acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            return Err(HostError::Engine(EngineError::Busy { connections: READS_AT_ONCE_MAX }).into());
        };
        let (sender, mut receiver) = mpsc::channel(PIECES_WAITING_MAX);
        let replica = self.clone();
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || {
            replica.read_blocking(&request, &sender, deadline, &runtime);
            drop(place);
        });
        // The first piece decides whether there is an answer at all.
        let first = match receiver.recv().await {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => return Err(error),
            None => return Err(HostError::Internal("the read ended without an answer".into()).into()),
        };
        let rest = tokio_stream::wrappers::ReceiverStream::new(receiver);
        Ok(futures::stream::iter([Ok(first)]).chain(rest).boxed())
    }

    fn read_blocking(
        &self,
        request: &ReadRequest,
        sender: &mpsc::Sender<Result<Piece, Declined>>,
        deadline: Instant,
        runtime: &Handle,
    ) {
        let _serving = self.meter.begin(Kind::Read, read_units(&request.check));
        // A receiver that stands still must not hold a database connection.
        let send = |piece| {
            let left = deadline.saturating_duration_since(Instant::now()).min(STALL_MAX);
            runtime.block_on(async { matches!(tokio::time::timeout(left, sender.send(piece)).await, Ok(Ok(()))) })
        };
        let outcome = self.readers.read(request, &mut |chunk| {
            let named = chunk.columns.map(|columns| columns.into_iter().map(|column| column.name).collect());
            let rows = (!chunk.rows.is_empty()).then_some(Piece::Rows(chunk.rows));
            let head = chunk.txns.map(Piece::Txns).into_iter().chain(named.map(Piece::Columns));
            match head.chain(rows).all(|piece| send(Ok(piece))) {
                true => std::ops::ControlFlow::Continue(()),
                false => std::ops::ControlFlow::Break(()),
            }
        });
        if let Err(error) = outcome {
            self.meter.failed();
            send(Err(engine_error(error).into()));
        }
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
            applied_index: self.group.status().applied,
            ownership: stats.ownership,
            holds_foreign_rows: stats.foreign_rows,
            partition_load: rates.partition_load,
        })
    }
}

/// Whether the action waits here for the decision of a transaction that is prepared, instead of being refused. One
/// that prepares another must not: each could wait for the other. Its coordinator begins again.
fn waits_for_decision(action: &Action) -> bool {
    !matches!(action, Action::Prepare { .. } | Action::Decide { .. })
}

/// As what a client's write counts; none for what the cluster does of its own.
fn kind_of(action: &Action) -> Option<Kind> {
    match action {
        Action::Write { .. } | Action::ReferenceWrite { .. } | Action::Prepare { .. } => Some(Kind::Write),
        Action::Bulk { .. } => Some(Kind::Piece),
        _ => None,
    }
}

fn units_of(action: &Action) -> &[PartitionId] {
    match action {
        Action::Write { units, .. } | Action::Bulk { units, .. } | Action::Prepare { units, .. } => units,
        _ => &[],
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
