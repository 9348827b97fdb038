//! Copying rows from a snapshot: the next chunk is read while the one before is written.

use std::convert::Infallible;

use pleat_cluster::{ShardId, Value};
use pleat_engine::{Cursor, MoveChunk, MoveRead, TableChanges};
use pleat_host::PartitionWeight;

use super::Plan;
use super::attempt::{Attempt, bytes};
use super::throttle::Throttle;
use crate::stop::{Stop, unexpected};
use crate::tracker::Amount;
use crate::work::{SCAN_LIMIT, Work};

pub(crate) const COPY: &str = "copy";

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
    if let Ok(weights) = work.cluster().partition_weights(plan.from, SCAN_LIMIT).await {
        let moving = plan.partitions.iter().filter_map(|partition| weights.get(partition));
        let sum = |sum: Amount, of: &PartitionWeight| Amount { rows: sum.rows + of.rows, bytes: sum.bytes + of.bytes };
        work.expect(moving.fold(Amount::default(), sum));
    }
    std::future::pending().await
}

async fn copy_tables(attempt: &mut Attempt<'_>, snapshot: &Snapshot<'_>) -> Result<(), Stop> {
    let mut throttle = Throttle::new(attempt.work, &[attempt.plan.from, attempt.plan.to]);
    for table in &snapshot.tables {
        let mut chunk = snapshot.next(table, None).await?;
        loop {
            let (changes, next) = chunk;
            attempt.hand_over.receipt.copied += changes.rows.len() as u64;
            let receipt = &attempt.hand_over.receipt;
            let (rows, size) = (receipt.copied, receipt.bytes + bytes(&changes) as u64);
            let cursor = next.clone().map(|after| Cursor { table: table.clone(), after });
            let send = attempt.send(vec![changes], Vec::new(), None, cursor);
            let Some(after) = next else {
                send.await?;
                break;
            };
            let (sent, read) = futures::join!(send, snapshot.next(table, Some(after)));
            sent?;
            chunk = read?;
            attempt.work.advance(Amount { rows, bytes: size }, || format!("in table {table}{}", throttle.describe()));
            throttle.rest().await;
        }
    }
    Ok(())
}
