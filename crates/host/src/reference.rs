//! Writes to *reference* tables, which every shard has a full copy of.
//!
//! The oldest active shard, the *anchor*, puts them in order: its log decides a write, and in the same SQLite
//! transaction the write gets the next number and is kept in a log table beside the data. The anchor's leader
//! then sends the numbered writes, in order, to every other active shard, where each is applied exactly once
//! (the shard keeps the last number in the transaction that applied it; an older one is done already, a newer
//! one is refused with the number that is missing). The writer gets its answer when every active shard has it.
//!
//! | a process dies … | and then |
//! | --- | --- |
//! | before the anchor's log has the write | nothing happened; the caller repeats it with its key |
//! | before every shard has it | the anchor's next leader goes on from its log table ([`Host::keep_spreading`]) |
//! | after | the log table's entries that all shards have are pruned |
//!
//! # Inside a transaction
//!
//! A transaction that writes to reference tables does so on every active shard itself, as the participants of one two-phase
//! commit (one shard alone: of one entry). So it reads what it wrote wherever it reads, and it shows on all shards or on
//! none. It takes the next number on each of them: every shard says which that would be in the snapshot that the transaction
//! runs on, these must all be the same, and a shard that has gone on since refuses to prepare. When it is committed each
//! shard appends what it wrote to its own copy of the log, with one and the same "now" and randomness for all.
//!
//! *Ordering.* While it is prepared on the anchor no other write gets a number; while it is prepared on another shard, none
//! is applied there, and the one that is sent waits. Those that go through the log come before it everywhere (their numbers are
//! smaller) or after it. The anchor is written first: while the transaction has its write lane no other gets a number, and each
//! other shard waits for those before ([`Replica::wait_for_reference`]) until it takes its snapshot. Where the snapshot was taken before, and
//! lacks one, the transaction loses (`40001`).
//!
//! *A shard that is being made* has no part in transactions that know only the older catalog. Their numbers are in the
//! anchor's log, from which it catches up. For this to come to an end the anchor is told ([`Action::ReferenceMembers`]) after the
//! shard was activated and before it catches up the last time: from then on it refuses what was planned by a catalog without
//! the shard, and conflicts with what has run on it before.
//!
//! | a process dies … | and then |
//! | --- | --- |
//! | before the ledger has a decision | the transaction is aborted everywhere; its number was never given |
//! | after, before every shard has carried it out | the shards that wait are told by the ledger. A shard that has it may be asked for the next number already: it is sent to those that wait when these have decided, or, should they lack it, from the log |
//! | the mover, before or after it told the anchor | it tells it again; a generation that the anchor knows changes nothing |
//!
//! *Foreign keys of other tables* to a reference table are known to the shards that have the rows, not to the anchor. So what may
//! take a row away or change it is written in such a transaction, also when it is alone (`WritePlan::is_stepwise`). The anchor
//! refuses one that was planned without knowing the foreign key, and what it had accepted before is on every shard before rows
//! can refer to it (`control`'s `ddl`).
//!
//! *Turned down:* writing on the anchor alone, and spreading at the commit as ever. Then a transaction would not see on other
//! shards what it has written, and two phases would end before all shards show the same.
//!
//! *Caveat.* Until a write of its own is answered, some shards show it and others don't: statements that read reference
//! tables on several shards see it on each shard at its own moment. Afterwards all do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{Catalog, Generation, OperationKind, Planned, ShardId, ShardState};
use pleat_engine::{Action, MoveChunk, MoveRead, Outcome, ReferenceEntry, Refusal};

use crate::replica::{Replica, engine_error};
use crate::rpc::{Declined, Written};
use crate::{Host, HostError};

/// Entries read from the log table at once.
const BATCH: usize = 256;
/// The log table is pruned when this many entries are on every shard.
const PRUNE_AT: u64 = 1_000;
/// How often an anchor's leader looks for writes that a dead leader left half spread.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The pause between two looks whether a write has arrived.
const ARRIVAL_PAUSE: Duration = Duration::from_millis(2);
/// How long one such look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// How far each shard is, as far as this node knows. Kept by the anchor's replica.
#[derive(Default)]
pub struct Spread {
    /// The last number that a shard surely has. The lock makes one task at a time send to a shard.
    reached: Mutex<BTreeMap<ShardId, Arc<tokio::sync::Mutex<Option<u64>>>>>,
    pruned: Mutex<u64>,
    /// The last number that every shard of this generation of the catalog has.
    settled: Mutex<(u64, Generation)>,
}

impl Spread {
    fn of(&self, shard: ShardId) -> Arc<tokio::sync::Mutex<Option<u64>>> {
        self.reached.lock().entry(shard).or_default().clone()
    }
}

impl Host {
    /// On the anchor's leader: decide a reference write and bring it to every active shard.
    pub(crate) async fn spread_write(
        &self,
        anchor: &Replica,
        planned: Planned,
        action: Action,
        within: Duration,
    ) -> Result<Written, Declined> {
        let deadline = Instant::now() + within;
        let written = anchor.write(planned, action, self.now_ms(), within).await?;
        if let Outcome::Reference { seq, .. } = written.outcome
            && !planted::is(Bug::UnspreadAnswered)
        {
            let left = deadline.saturating_duration_since(Instant::now());
            let spread = async {
                // A shard that was activated before this write was decided must get it before it is answered,
                // so this node's own catalog, which may lag, is not enough.
                let catalog = self.fresh_catalog(left).await?;
                self.spread(anchor, seq, &catalog, left).await
            };
            match tokio::time::timeout(left, spread).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(spreading(&error.to_string()).into()),
                Err(_) => return Err(spreading("the limit passed").into()),
            }
        }
        Ok(written)
    }

    /// Bring everything up to `seq` to every active shard.
    async fn spread(&self, anchor: &Replica, seq: u64, catalog: &Catalog, within: Duration) -> Result<(), HostError> {
        let others = catalog.active_shards().map(|shard| shard.id).filter(|shard| *shard != anchor.shard);
        let send = |shard| async move {
            tokio::select! {
                sent = self.spread_to(anchor, shard, seq, catalog.planned(), within) => sent,
                // It has closed before the catalog said so, and nobody reads there.
                () = self.until_left(shard) => Ok(()),
            }
        };
        let mut sending: FuturesUnordered<_> = others.map(send).collect();
        while let Some(sent) = sending.next().await {
            sent?;
        }
        self.prune(anchor, seq, catalog).await
    }

    /// Returns when the catalog knows that the shard was merged into another one.
    async fn until_left(&self, shard: ShardId) {
        let has_left = |catalog: &Arc<Catalog>| {
            let shard = catalog.shards.get(&shard);
            shard.is_some_and(|shard| matches!(shard.state, ShardState::Leaving | ShardState::Removed))
        };
        if self.watch_catalog().wait_for(has_left).await.is_err() {
            std::future::pending().await
        }
    }

    async fn spread_to(
        &self,
        anchor: &Replica,
        shard: ShardId,
        seq: u64,
        planned: Planned,
        within: Duration,
    ) -> Result<(), HostError> {
        let reached = anchor.spread.of(shard);
        let mut reached = reached.lock().await;
        while reached.unwrap_or(0) < seq {
            // Where the shard stands is not known after a change of leader: the newest entry makes it say so.
            let after = reached.unwrap_or(seq - 1);
            let (entries, _) = log_after(anchor, after, BATCH).await?;
            if entries.first().is_none_or(|first| reached.is_some_and(|reached| first.seq != reached + 1)) {
                return Err(HostError::Internal(format!("{shard} lacks reference writes that the log has no more")));
            }
            for entry in entries {
                let number = entry.seq;
                let written = self.write(shard, planned, Action::ReferenceApply(entry), within).await?;
                match written.outcome {
                    Outcome::Refused(Refusal::Gap { expected, .. }) => {
                        *reached = Some(expected.saturating_sub(1));
                        break;
                    }
                    Outcome::Refused(refusal) => return Err(HostError::Refused(refusal)),
                    Outcome::Failed(failure) => {
                        // The same statement on the same content succeeded on the anchor.
                        let what = format!("{shard} differs from {} in reference data: {failure}", anchor.shard);
                        return Err(HostError::Internal(what));
                    }
                    _ => *reached = Some(number),
                }
            }
        }
        Ok(())
    }

    async fn prune(&self, anchor: &Replica, upto: u64, catalog: &Catalog) -> Result<(), HostError> {
        // A shard that is being made will read the log from where its copy ends.
        let being_made = catalog.shards.values().any(|shard| shard.state == ShardState::Creating);
        let splitting = catalog.open_operations().any(|open| matches!(open.kind, OperationKind::Split { .. }));
        if being_made || splitting {
            return Ok(());
        }
        let due = {
            let mut pruned = anchor.spread.pruned.lock();
            let due = upto.saturating_sub(*pruned) >= PRUNE_AT;
            if due {
                *pruned = upto;
            }
            due
        };
        if due {
            // A margin, for a split that begins just now.
            let upto = upto.saturating_sub(PRUNE_AT / 2);
            self.write(anchor.shard, catalog.planned(), Action::ReferencePrune { upto }, LOOK_LIMIT).await?;
        }
        Ok(())
    }

    /// While this node leads the anchor: finish what an earlier leader began.
    pub(crate) async fn keep_spreading(self: Arc<Self>) {
        let mut stop = self.stopping();
        while !*stop.borrow() {
            let anchor = self.catalog().anchor().and_then(|anchor| self.serving(anchor));
            if let Some(anchor) = anchor.filter(|anchor| anchor.group.leads())
                && let Err(error) = self.spread_rest(&anchor).await
            {
                tracing::warn!(%error, "reference writes wait to be spread");
            }
            let _ = tokio::time::timeout(LOOK_EVERY, stop.changed()).await;
        }
    }

    async fn spread_rest(&self, anchor: &Replica) -> Result<(), HostError> {
        let (_, last) = log_after(anchor, u64::MAX, 0).await?;
        if last == 0 {
            return Ok(());
        }
        let settled = (last, self.catalog().generation);
        if *anchor.spread.settled.lock() == settled {
            return Ok(());
        }
        let spread = async {
            let catalog = self.fresh_catalog(LOOK_LIMIT).await?;
            // Mostly the shards have all of it, written by transactions: one entry is enough to hear so.
            for shard in catalog.active_shards() {
                *anchor.spread.of(shard.id).lock().await = None;
            }
            self.spread(anchor, last, &catalog, LOOK_LIMIT).await
        };
        let spread = tokio::time::timeout(LOOK_LIMIT, spread).await;
        spread.unwrap_or_else(|_| Err(HostError::Timeout("a shard does not answer".into())))?;
        *anchor.spread.settled.lock() = settled;
        Ok(())
    }
}

impl Replica {
    /// Waits until the reference write of this number is here; not for ever, since whoever wants to know looks again.
    pub(crate) async fn wait_for_reference(&self, number: u64, within: Duration) -> Result<(), HostError> {
        let deadline = Instant::now() + within;
        while log_after(self, u64::MAX, 0).await?.1 < number && Instant::now() < deadline {
            tokio::time::sleep(ARRIVAL_PAUSE).await;
        }
        Ok(())
    }
}

/// Entries of the log table after a number, and the last number there is.
async fn log_after(anchor: &Replica, after: u64, limit: usize) -> Result<(Vec<ReferenceEntry>, u64), HostError> {
    let readers = anchor.readers.clone();
    let read = move || readers.move_read(&MoveRead::ReferenceLog { after, limit });
    let chunk = pleat_consensus::blocking(read).await.map_err(|error| HostError::Internal(error.to_string()))?;
    match chunk.map_err(engine_error)? {
        MoveChunk::ReferenceLog { entries, last } => Ok((entries, last)),
        _ => Err(HostError::Internal("the answer does not fit the request".into())),
    }
}

fn spreading(why: &str) -> HostError {
    HostError::Spreading(format!("the write is committed, but not on every shard yet: {why}"))
}
