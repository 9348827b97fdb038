//! Copying rows from a snapshot: the next message is read while others are written.
//!
//! **The problem.** A message of rows waits for the disks of a majority before it is applied. One after the other, most of the time
//! would be waiting.
//!
//! **The mechanism.** Where no client is, up to [`IN_FLIGHT_MAX`] messages are on their way to the target; where one is, one is, so that
//! a client's write waits for one message at most, and none while the mover rests. Messages on their way at the same time may arrive in
//! another order, or twice. That does no harm: all are of one snapshot, no row is in two of them, and they carry *one* epoch. The first step
//! after the copy has a newer one, so none of them can undo a row that a delta has brought. Should one of them fail, so does the attempt, and
//! what the others did is taken back with it.

use std::convert::Infallible;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pleat_cluster::{ShardId, Value};
use pleat_engine::{MoveAction, MoveChunk, MoveRead, TableChanges};
use pleat_host::PartitionWeight;
use tokio::time::sleep;

use super::Plan;
use super::attempt::{Attempt, bytes};
use super::throttle::Throttle;
use crate::stop::{Stop, unexpected};
use crate::tracker::Amount;
use crate::work::{SCAN_LIMIT, Work};

pub(crate) const COPY: &str = "copy";

/// Messages of rows that are on their way to the target at the same time, where nobody else is.
pub(crate) const IN_FLIGHT_MAX: usize = 4;
/// A copy that takes no longer is not worth finding out how much there is to copy: that is, to read it all.
const WEIGH_AFTER: Duration = Duration::from_secs(1);

/// An open snapshot of a shard.
pub(crate) struct Snapshot<'a> {
    work: &'a Work,
    pub shard: ShardId,
    id: u64,
    pub tables: Vec<String>,
    /// The last reference write that is in it.
    pub reference_seq: u64,
}

impl<'a> Snapshot<'a> {
    /// Open one with `request`, which is `CopyOpen` or `ReferenceOpen`.
    pub async fn open(work: &'a Work, shard: ShardId, request: MoveRead) -> Result<Self, Stop> {
        match work.ask(shard, request).await? {
            MoveChunk::Opened { snapshot: id, tables, reference_seq } => {
                Ok(Self { work, shard, id, tables, reference_seq })
            }
            _ => Err(unexpected("opening a snapshot")),
        }
    }

    /// The rows of `table` after a key, and the key to go on from.
    pub async fn next(
        &self,
        table: &str,
        after: Option<Vec<Value>>,
    ) -> Result<(TableChanges, Option<Vec<Value>>), Stop> {
        let request = MoveRead::CopyNext {
            snapshot: self.id,
            table: table.to_owned(),
            after,
            rows_max: self.work.tools.settings.chunk_rows,
            bytes_max: self.work.tools.settings.chunk_bytes,
        };
        match self.work.ask(self.shard, request).await? {
            MoveChunk::Rows { changes, next } => Ok((changes, next)),
            _ => Err(unexpected("copying")),
        }
    }

    /// Let the snapshot go. When this fails the shard lets it go by itself, after a while.
    pub async fn close(self) {
        let _ = self.work.ask(self.shard, MoveRead::Close { snapshot: self.id }).await;
    }
}

/// All rows of the moving partitions, as of a moment after the capture began.
pub(super) async fn copy(attempt: &mut Attempt<'_>) -> Result<(), Stop> {
    let work = attempt.work;
    work.begin(COPY).await?;
    let snapshot =
        Snapshot::open(work, attempt.plan.from, MoveRead::CopyOpen { operation: attempt.plan.number.0 }).await?;
    let weigh = weigh(work, attempt.plan);
    let copied = tokio::select! {
        biased;
        copied = copy_tables(attempt, &snapshot) => copied,
        never = weigh => match never {},
    };
    snapshot.close().await;
    copied?;
    let (rows, bytes) = (attempt.hand_over.receipt.copied, attempt.hand_over.receipt.bytes);
    work.end(COPY, &format!("{rows} rows, {bytes} bytes")).await
}

/// Find out how much there is to copy, for people, and wait to be dropped.
async fn weigh(work: &Work, plan: &Plan) -> Infallible {
    sleep(WEIGH_AFTER).await;
    if let Ok(weights) = work.cluster().partition_weights(plan.from, SCAN_LIMIT).await {
        let moving = plan.partitions.iter().filter_map(|partition| weights.get(partition));
        let sum = |sum: Amount, of: &PartitionWeight| Amount { rows: sum.rows + of.rows, bytes: sum.bytes + of.bytes };
        work.expect(moving.fold(Amount::default(), sum));
    }
    std::future::pending().await
}

async fn copy_tables(attempt: &mut Attempt<'_>, snapshot: &Snapshot<'_>) -> Result<(), Stop> {
    let (work, plan) = (attempt.work, attempt.plan);
    let epoch = work.new_epoch();
    let send = |changes: TableChanges| async move {
        let sent = Amount { rows: changes.rows.len() as u64, bytes: bytes(&changes) };
        let import =
            MoveAction::Import { changes: vec![changes], idempotency: Vec::new(), position: None, copied: true };
        work.step_in(plan.number, epoch, plan.to, import).await?;
        Ok::<_, Stop>(sent)
    };
    let mut throttle = Throttle::new(work, &[plan.from, plan.to]).await;
    let mut sending = FuturesUnordered::new();
    let receipt = &mut attempt.hand_over.receipt;
    let mut arrived = |sent: Amount, table: &str, throttle: &Throttle<'_>| {
        receipt.copied += sent.rows;
        receipt.bytes += sent.bytes;
        let done = Amount { rows: receipt.copied, bytes: receipt.bytes };
        work.advance(done, || format!("in table {table}{}", throttle.describe()));
    };
    for table in &snapshot.tables {
        let mut after = None;
        loop {
            let mut read = std::pin::pin!(snapshot.next(table, after));
            let (changes, next) = loop {
                tokio::select! {
                    biased;
                    Some(sent) = sending.next() => arrived(sent?, table, &throttle),
                    chunk = &mut read => break chunk?,
                }
            };
            let most = if throttle.is_alone() { IN_FLIGHT_MAX } else { 1 };
            while sending.len() >= most
                && let Some(sent) = sending.next().await
            {
                arrived(sent?, table, &throttle);
            }
            if throttle.is_due() {
                // What clients get done while it rests is what they get done without it.
                while !throttle.is_alone()
                    && let Some(sent) = sending.next().await
                {
                    arrived(sent?, table, &throttle);
                }
                throttle.rest().await;
            }
            sending.push(send(changes));
            match next {
                Some(_) => after = next,
                None => break,
            }
        }
    }
    while let Some(sent) = sending.next().await {
        arrived(sent?, snapshot.tables.last().map_or("", String::as_str), &throttle);
    }
    Ok(())
}
