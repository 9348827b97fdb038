//! Gates: how the routers of all nodes are held back while a partition changes servers.
//!
//! **The problem.** A server does not know who owns what. A router that plans by an older catalog than another one, or that has sent a statement
//! which has not begun yet, could write to a server that has handed the rows over, and the write would be lost.
//!
//! **The mechanism.** Whatever a router sends to a server, it sends with a [`Pass`], which says by which generation of the catalog it was planned.
//! There is none
//!
//! - while the catalog says that the gates of this shard are closed: the router waits,
//! - for a statement that was planned before the shard's [`ownership`](pleat_cluster::Shard::ownership) changed: it plans again.
//!
//! A pass is given up when the statement has been answered; that of a transaction that may have written, when it has ended. So a node can say
//! ([`Host::settled`]) that it knows a generation, and that nothing is under way to a shard that was planned before. *The mover asks each node for that*, and goes no further without
//! the answer of all: before rows that a shard does not own come to it (statements must leave them out), before a commit (nothing may
//! write any more), and before leftovers are deleted (nothing may look for them any more). What a router has lost sight of, such as a
//! statement whose connection broke, the server itself is asked for.
//!
//! Whether gates are closed stands nowhere but in the catalog, so nobody has to open those of a leader that died but the next leader.
//!
//! # Invariants
//!
//! 1. A pass is given out by the newest catalog that the node has, under the same lock as passes are counted: once the node has said that it knows a generation and that none
//!    older is left, there is none, ever.
//! 2. A node that has just started may have an older catalog than the one that it said to know before. So it gives out no pass before it
//!    has asked the control group's leader for the newest.
//!
//! | the node dies | and then |
//! | --- | --- |
//! | with passes out | the mover waits for its word until it is back; its statements are seen on the server |
//! | after its word | it starts with the newest catalog |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pleat_cluster::{Catalog, Generation, ShardId, ShardState};
use pleat_engine::Refusal;
use tokio::sync::{OnceCell, watch};
use tokio::time::{Instant, timeout_at};

use crate::{Host, HostError};

/// How long a statement waits for gates to open.
const GATE_WAIT_MAX: Duration = Duration::from_secs(30);

/// The passes of a node.
pub(crate) struct Gates {
    passes: Arc<Passes>,
    /// Set when the node has had the newest catalog since it started.
    fresh: OnceCell<()>,
}

#[derive(Default)]
struct Passes {
    state: Mutex<State>,
    /// Told when one is given up.
    given_up: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    out: BTreeMap<(ShardId, Generation), Count>,
    /// Those whose gates are closed, by the catalog that was looked at last: each pass would have to look through the whole journal.
    closed: BTreeSet<ShardId>,
    known: Option<Arc<Catalog>>,
}

impl State {
    fn is_closed(&mut self, shard: ShardId, catalog: &Arc<Catalog>) -> bool {
        if !self.known.as_ref().is_some_and(|known| Arc::ptr_eq(known, catalog)) {
            self.closed = catalog.closed_gates();
            self.known = Some(catalog.clone());
        }
        self.closed.contains(&shard)
    }
}

#[derive(Clone, Copy, Default)]
struct Count {
    all: u64,
    /// Those of what may write.
    writes: u64,
}

impl Default for Gates {
    fn default() -> Self {
        Gates { passes: Arc::default(), fresh: OnceCell::new() }
    }
}

/// The right to have something under way on a shard's server.
pub struct Pass {
    passes: Arc<Passes>,
    shard: ShardId,
    planned: Generation,
    writes: bool,
}

impl Pass {
    /// Whether what has it may write.
    pub fn writes(&self) -> bool {
        self.writes
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let key = (self.shard, self.planned);
        let mut state = self.passes.state.lock();
        if let Some(count) = state.out.get_mut(&key) {
            count.all -= 1;
            count.writes -= u64::from(self.writes);
            if count.all == 0 {
                state.out.remove(&key);
            }
        }
        drop(state);
        self.passes.given_up.send_replace(());
    }
}

impl Passes {
    /// A pass by the newest catalog. `None`: the gates are closed.
    fn give(
        self: &Arc<Self>,
        catalog: &watch::Receiver<Arc<Catalog>>,
        shard: ShardId,
        planned: Generation,
        writes: bool,
    ) -> Result<Option<Pass>, Refusal> {
        let mut state = self.state.lock();
        let catalog = catalog.borrow().clone();
        let known = catalog
            .shards
            .get(&shard)
            .filter(|shard| !matches!(shard.state, ShardState::Leaving | ShardState::Removed));
        let known = known.ok_or(Refusal::Leaving)?;
        if state.is_closed(shard, &catalog) {
            return Ok(None);
        }
        if known.ownership > planned {
            return Err(Refusal::Generation { ownership: known.ownership, routed: planned });
        }
        let count = state.out.entry((shard, planned)).or_default();
        count.all += 1;
        count.writes += u64::from(writes);
        Ok(Some(Pass { passes: self.clone(), shard, planned, writes }))
    }

    /// How many are out for a shard that were planned before a generation.
    fn older(&self, shard: ShardId, generation: Generation, writes: bool) -> u64 {
        let state = self.state.lock();
        let older = state.out.range((shard, 0)..(shard, generation)).map(|(_, count)| count);
        older.map(|count| if writes { count.writes } else { count.all }).sum()
    }
}

impl Host {
    /// The right to have something under way on a shard's server that was planned by a generation of the catalog. Closed gates are waited for.
    ///
    /// # Errors
    /// [`HostError::Refused`]: it is to be planned anew. [`HostError::Unavailable`]: the gates stayed closed, or this node could not learn
    /// what the newest catalog is. Nothing was done.
    pub async fn pass(
        &self,
        shard: ShardId,
        planned: Generation,
        writes: bool,
        within: Duration,
    ) -> Result<Pass, HostError> {
        let gates = self.gates();
        let fresh = gates.fresh.get_or_try_init(async || self.fresh_catalog(within).await.map(drop));
        fresh.await?;
        let (deadline, mut catalog) = (Instant::now() + within.min(GATE_WAIT_MAX), self.watch_catalog());
        loop {
            // Seen from here on: what changes while the gates are looked at is not missed.
            catalog.mark_unchanged();
            match gates.passes.give(&catalog, shard, planned, writes) {
                Ok(Some(pass)) => return Ok(pass),
                Ok(None) => {}
                Err(refusal) => return Err(HostError::Refused(refusal)),
            }
            match timeout_at(deadline, catalog.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(HostError::Unavailable("the node stops".into())),
                Err(_) => {
                    let why = format!(
                        "a move, or tables that are placed anew, keep {shard} closed; that either ends or is taken back"
                    );
                    return Err(HostError::Unavailable(why));
                }
            }
        }
    }

    /// Wait until this node knows a generation of the catalog, and nothing is under way on a shard that was planned before it (that may
    /// write, if `writes`). Gives how much still is when the time is over: 0 means that nothing is, and nothing ever will be.
    pub(crate) async fn own_settled(
        &self,
        shard: ShardId,
        generation: Generation,
        writes: bool,
        within: Duration,
    ) -> Result<u64, HostError> {
        let deadline = Instant::now() + within;
        if !self.catalog_reaches(generation, within).await {
            return Err(HostError::Unavailable(format!("{} has an older catalog", self.name())));
        }
        let passes = &self.gates().passes;
        let mut given_up = passes.given_up.subscribe();
        loop {
            given_up.mark_unchanged();
            let left = passes.older(shard, generation, writes);
            if left == 0 || timeout_at(deadline, given_up.changed()).await.is_err() {
                return Ok(left);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pleat_cluster::{Command, Engine, NodeId, OperationKind, PartitionId, Policy};

    use super::*;

    fn catalog() -> Catalog {
        let mut catalog = Catalog::default();
        let init = Command::Init {
            cluster_id: "test".to_owned(),
            partition_count: 16,
            replication_factor: 1,
            nodes: vec![(NodeId(1), "one".to_owned(), "127.0.0.1:1".to_owned())],
            incarnations: BTreeMap::from([(NodeId(1), 1)]),
            shards: 2,
            engine: Engine::Postgres,
            policy: Policy::default(),
            at: 1,
        };
        catalog.apply(&init).unwrap();
        for shard in 1..=2 {
            catalog.apply(&Command::ActivateShard { shard: ShardId(shard), at: 1 }).unwrap();
        }
        catalog
    }

    #[test]
    fn closed_gates_let_nothing_through_and_what_was_planned_before_is_planned_again() {
        let mut now = catalog();
        let (source, passes) = (ShardId(1), Arc::new(Passes::default()));
        let before = now.generation;
        let kind = OperationKind::Move { from: source, to: ShardId(2), partitions: vec![PartitionId(0)] };
        let (cause, reason) = (pleat_cluster::Cause::Request("test".to_owned()), String::new());
        let start = Command::StartOperation { kind, cause, reason, at: 1 };
        let operation = now.apply(&start).unwrap().operation.unwrap();
        now.apply(&Command::BeginAttempt { operation, step: "copy".to_owned(), epoch: 1, at: 1 }).unwrap();
        let (sender, catalog) = watch::channel(Arc::new(now.clone()));
        let read = passes.give(&catalog, source, before, false).unwrap().unwrap();
        let write = passes.give(&catalog, source, before, true).unwrap().unwrap();
        assert!(passes.give(&catalog, ShardId(2), before, false).is_err(), "it is to get rows that it does not own");

        now.apply(&Command::SetGates { operation, closed: true, epoch: 1, at: 1 }).unwrap();
        let closed = now.generation;
        sender.send_replace(Arc::new(now.clone()));
        assert!(passes.give(&catalog, source, closed, false).unwrap().is_none());
        assert_eq!((passes.older(source, closed, true), passes.older(source, closed, false)), (1, 2));
        drop(write);
        assert_eq!((passes.older(source, closed, true), passes.older(source, closed, false)), (0, 1));
        drop(read);
        assert_eq!(passes.older(source, closed, false), 0);

        now.apply(&Command::CommitOperation { operation, epoch: 1, at: 1 }).unwrap();
        sender.send_replace(Arc::new(now.clone()));
        assert!(passes.give(&catalog, source, closed, false).is_err(), "who waited plans again");
        assert!(passes.give(&catalog, source, now.generation, false).unwrap().is_some());
    }
}
