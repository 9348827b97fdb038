//! A cluster in one process, for tests: a real catalog, real SQLite shards and real moves, but no Raft and no
//! sockets, so that refusals, lost answers and moves can be brought about exactly where a test wants them.

mod api;
mod locals;
mod moves;
mod place;
pub mod tls;
mod txns;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pleat_cluster::{
    Catalog, Command, DdlEffect, Generation, Ledger, LedgerCommand, LedgerReply, Millis, NodeId, OperationId,
    OperationKind, PartitionId, Phase, Planned, Policy, Reply, ShardId, ShardState, TableKind, TxnId,
};
use pleat_consensus::Status;
use pleat_engine::postgres::{Asked, Lease};
use pleat_engine::{
    Action, Outcome, Proposal, ReadRequest, Readers, Refusal, SchemaChange, SqlFailure, Store, StoreConfig,
};
use pleat_host::{
    Freshness, HostError, InDoubt, NodeObservation, PartitionWeight, Pass, Progress, Quantiles, Resources, RowStream,
    ShardObservation, TxnPart, TxnReply, TxnStep, Written,
};
use tokio::sync::watch;
use uuid::Uuid;

use crate::backend::Backend;

pub use api::{Answer, Client};
pub use place::{Placing, place};
pub use txns::{Step, Trap};

pub const PARTITIONS: u32 = 16;
const NODE: NodeId = NodeId(1);

/// Something that goes wrong with a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is done, and nobody hears of it.
    AnswerLost,
    /// No leader is there.
    NoLeader,
    /// It is not done, and whoever asked for it never hears of it: as if that one had died before it asked.
    Never,
    /// It is done, and whoever asked for it never hears of it: as if that one had died then.
    DoneNever,
    /// It is done, and nobody hears of it; and when it is sent again the shard is fenced.
    LostThenFenced,
    /// The shard fails at it, as it never should.
    Broken,
}

/// Something that happens to a cluster.
type Act = Box<dyn FnOnce(&Cluster) + Send>;

struct Replica {
    store: Mutex<Store>,
    readers: Readers,
    index: AtomicU64,
    _dir: tempfile::TempDir,
}

/// The cluster.
pub struct Cluster {
    catalog: watch::Sender<Arc<Catalog>>,
    /// What the node that the gateway is on knows; follows `catalog` unless it is held back.
    known: watch::Sender<Arc<Catalog>>,
    held_back: Mutex<bool>,
    shards: Mutex<BTreeMap<ShardId, Arc<Replica>>>,
    faults: Mutex<VecDeque<Fault>>,
    pub ledger: Mutex<Ledger>,
    /// What goes wrong with steps of transactions over several shards.
    trap: Mutex<Option<Trap>>,
    /// Parts of interactive transactions, and who has each shard's lane.
    locals: Mutex<BTreeMap<(ShardId, TxnId), locals::Local>>,
    lanes: Mutex<BTreeMap<ShardId, locals::Lane>>,
    /// How often a transaction's part on a shard was kept from being idle.
    pub touched: Mutex<BTreeMap<ShardId, u32>>,
    /// Schema changes wait until told otherwise.
    stalled: Mutex<bool>,
    /// Renames are committed, and reach no shard until told otherwise.
    lagging: Mutex<bool>,
    /// Whether shards answer when they are asked for figures.
    pub deaf: Mutex<bool>,
    /// Nobody tells this node how the catalog is.
    pub cut_off: Mutex<bool>,
    /// How far the leader says that operations are.
    pub progress: Mutex<BTreeMap<OperationId, Progress>>,
    /// Run after this many more reads were opened: something that happens between two shards of a scatter.
    between: Mutex<Option<(u32, Act)>>,
    clock: AtomicU64,
}

impl Cluster {
    /// The catalog of a new cluster.
    pub fn new_catalog(shards: u32) -> Catalog {
        let mut catalog = Catalog::default();
        let init = Command::Init {
            cluster_id: "test".to_owned(),
            partition_count: PARTITIONS,
            replication_factor: 1,
            nodes: vec![(NODE, "node-1".to_owned(), "127.0.0.1:8080".to_owned())],
            incarnations: Default::default(),
            shards,
            engine: Default::default(),
            policy: Policy::default(),
            at: 1,
        };
        catalog.apply(&init).unwrap();
        catalog
    }

    /// The partitions that a shard owns.
    pub fn partitions_of(&self, shard: ShardId) -> Vec<PartitionId> {
        self.newest().partitions_of(shard)
    }

    /// A cluster of `shards` active shards.
    pub fn new(shards: u32) -> Arc<Self> {
        let cluster = Self::over(Self::new_catalog(shards));
        for number in 1..=shards {
            cluster.start_shard(ShardId(number));
        }
        Arc::new(cluster)
    }

    /// A cluster that was never set up.
    pub fn unfounded() -> Arc<Self> {
        Arc::new(Self::over(Catalog::default()))
    }

    fn over(catalog: Catalog) -> Self {
        let catalog = Arc::new(catalog);
        Self {
            known: watch::channel(catalog.clone()).0,
            catalog: watch::channel(catalog).0,
            held_back: Mutex::new(false),
            shards: Mutex::default(),
            faults: Mutex::default(),
            ledger: Mutex::default(),
            trap: Mutex::new(None),
            locals: Mutex::default(),
            lanes: Mutex::default(),
            touched: Mutex::default(),
            stalled: Mutex::new(false),
            lagging: Mutex::new(false),
            deaf: Mutex::new(false),
            cut_off: Mutex::new(false),
            progress: Mutex::default(),
            between: Mutex::new(None),
            clock: AtomicU64::new(1_760_000_000_000),
        }
    }

    fn start_shard(&self, id: ShardId) {
        let dir = tempfile::tempdir().unwrap();
        let (store, readers) = Store::open(dir.path(), StoreConfig::new(PARTITIONS)).unwrap();
        let replica = Replica { store: Mutex::new(store), readers, index: AtomicU64::new(0), _dir: dir };
        self.shards.lock().insert(id, Arc::new(replica));
        let catalog = self.newest();
        let own = Action::Own {
            units: catalog.units_of(id),
            ownership: catalog.shards[&id].ownership,
            layout: catalog.layout,
        };
        self.propose(id, own);
        self.apply(&Command::ActivateShard { shard: id, at: 2 });
    }

    pub fn newest(&self) -> Arc<Catalog> {
        self.catalog.borrow().clone()
    }

    /// Keep the gateway's catalog as it is, or let it follow again.
    pub fn hold_back(&self, hold: bool) {
        *self.held_back.lock() = hold;
        if !hold {
            self.known.send_replace(self.newest());
        }
    }

    /// Let schema changes wait, or carry out those that wait.
    pub fn stall(&self, stall: bool) {
        *self.stalled.lock() = stall;
        if !stall {
            let open: Vec<_> = self.newest().open_operations().map(|operation| operation.id).collect();
            open.into_iter().for_each(|operation| self.carry_out(operation));
        }
    }

    /// Let renames wait between the catalog's commit and the shards, or let the shards follow.
    pub fn lag(&self, lag: bool) {
        *self.lagging.lock() = lag;
        if !lag {
            let open: Vec<_> = self.newest().open_operations().map(|operation| operation.id).collect();
            open.into_iter().for_each(|operation| self.carry_out(operation));
        }
    }

    /// Let the next writes go wrong.
    pub fn fail(&self, faults: &[Fault]) {
        self.faults.lock().extend(faults);
    }

    /// Forget faults that nothing met.
    pub fn fail_no_more(&self) {
        self.faults.lock().clear();
    }

    /// Do something after `reads` more reads were opened.
    pub fn after_reads(&self, reads: u32, act: impl FnOnce(&Cluster) + Send + 'static) {
        *self.between.lock() = Some((reads, Box::new(act)));
    }

    pub fn apply(&self, command: &Command) -> Reply {
        self.try_apply(command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    fn try_apply(&self, command: &Command) -> Result<Reply, pleat_cluster::CommandError> {
        let mut catalog = Catalog::clone(&self.newest());
        let reply = catalog.apply(command)?;
        assert_eq!(catalog.check(), [], "after {command:?}");
        let catalog = Arc::new(catalog);
        self.catalog.send_replace(catalog.clone());
        if !*self.held_back.lock() {
            self.known.send_replace(catalog);
        }
        Ok(reply)
    }

    fn propose(&self, shard: ShardId, action: Action) -> Written {
        self.propose_as(shard, self.newest().planned(), action)
    }

    /// What was planned by this layout of the catalog.
    fn propose_as(&self, shard: ShardId, planned: Planned, action: Action) -> Written {
        let replica = self.replica(shard);
        let now_ms = self.clock.fetch_add(1, Ordering::Relaxed);
        let proposal = Proposal { id: Uuid::new_v4(), planned, now_ms, seed: now_ms, action };
        let index = replica.index.fetch_add(1, Ordering::Relaxed) + 1;
        let applied = index.to_be_bytes();
        let outcomes = replica.store.lock().apply(&[&proposal.encode()], &applied).unwrap();
        Written { outcome: Outcome::decode(&outcomes[0]).unwrap(), index, uncertain: false }
    }

    fn replica(&self, shard: ShardId) -> Arc<Replica> {
        self.shards.lock()[&shard].clone()
    }

    /// What the control leader does with a schema change.
    fn carry_out(&self, id: OperationId) {
        let catalog = self.newest();
        let operation = &catalog.operations[&id];
        if operation.cancel_requested {
            self.finish(id, Phase::Skipped, "cancelled");
            return;
        }
        let OperationKind::Ddl { effect, sql, .. } = &operation.kind else { return };
        if let DdlEffect::PlaceTable { .. } = effect {
            return place(self, id);
        }
        if effect.is_of_view() {
            self.apply(&Command::CommitOperation { epoch: 1, operation: id, at: 3 });
            self.finish(id, Phase::Successful, "");
            return;
        }
        let commit = Command::CommitOperation { epoch: 1, operation: id, at: 3 };
        if *self.lagging.lock() && matches!(effect, DdlEffect::AlterTable { .. }) {
            self.apply(&commit);
            return;
        }
        // What the catalog will hold is what the shards get.
        let mut after = Catalog::clone(&catalog);
        if !operation.committed {
            after.apply(&commit).unwrap();
        }
        let table = after.table(effect.table_after()).cloned();
        let ownership = after.generation;
        let change = match (&table, effect) {
            (Some(table), DdlEffect::AlterTable { before, .. }) => {
                SchemaChange::Alter { from: before.name.clone(), table: table.clone(), ownership }
            }
            (Some(table), _) => SchemaChange::Put(table.clone()),
            (None, effect) => SchemaChange::Drop { table: effect.table().to_owned() },
        };
        let statement = match effect {
            DdlEffect::CreateTable(table) => table.create_sql.clone(),
            DdlEffect::CreateIndex { index, .. } => index.sql.clone(),
            DdlEffect::AlterTable { statement, .. } => statement.clone(),
            DdlEffect::CreateTrigger { trigger, .. } => trigger.on_shards.clone(),
            _ => sql.clone(),
        };
        for shard in catalog.active_shards() {
            let single = table.as_ref().and_then(|table| match (&table.kind, effect) {
                (TableKind::Single { shard: at }, DdlEffect::CreateTable(_)) if *at == shard.id => {
                    Some((PartitionId::of_single(table.id), after.shards[at].ownership))
                }
                _ => None,
            });
            let statements = vec![statement.clone()];
            let ddl = Action::Ddl { operation: id.0, statements, change: change.clone(), single, undoes: None };
            let outcome = self.propose(shard.id, ddl).outcome;
            if let Outcome::Failed(failure) = outcome {
                self.finish(id, Phase::Failed, &failure.message);
                return;
            }
        }
        if !operation.committed {
            self.apply(&commit);
        }
        self.finish(id, Phase::Successful, "");
    }

    fn finish(&self, operation: OperationId, phase: Phase, message: &str) {
        self.apply(&Command::FinishOperation { epoch: 1, operation, phase, message: message.to_owned(), at: 4 });
    }

    fn status(&self) -> Status {
        Status { term: 1, leader: Some(NODE), is_leader: true, ready: true, ..Status::default() }
    }
}

#[async_trait]
impl Backend for Cluster {
    fn node(&self) -> NodeId {
        NODE
    }

    fn started_at_ms(&self) -> Millis {
        1_760_000_000_000
    }

    fn now_ms(&self) -> Millis {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.known.borrow().clone()
    }

    fn watch_catalog(&self) -> watch::Receiver<Arc<Catalog>> {
        self.known.subscribe()
    }

    fn control_status(&self) -> Status {
        self.status()
    }

    fn shard_status(&self, shard: ShardId) -> Option<Status> {
        self.shards.lock().contains_key(&shard).then(|| self.status())
    }

    async fn catalog_reaches(&self, generation: Generation, within: Duration) -> bool {
        let mut known = self.known.subscribe();
        let reached = known.wait_for(|catalog| catalog.generation >= generation);
        matches!(tokio::time::timeout(within, reached).await, Ok(Ok(_)))
    }

    async fn fresh_catalog(&self, _: Duration) -> Result<Arc<Catalog>, HostError> {
        if *self.cut_off.lock() {
            return Err(HostError::Unavailable("the node is cut off".to_owned()));
        }
        self.hold_back(false);
        Ok(self.newest())
    }

    async fn command(&self, command: Command, _: Duration) -> Result<Reply, HostError> {
        let reply = self.try_apply(&command).map_err(HostError::Command)?;
        if let (Some(operation), false) = (reply.operation, *self.stalled.lock()) {
            self.carry_out(operation);
        }
        Ok(reply)
    }

    async fn write(
        &self,
        shard: ShardId,
        planned: Planned,
        action: Action,
        within: Duration,
    ) -> Result<Written, HostError> {
        if !matches!(action, Action::Prepare { .. } | Action::Decide { .. }) {
            self.lane_free(shard, within).await;
        }
        let fault = self.trapped(Step::of(shard, &action)).or_else(|| self.faults.lock().pop_front());
        match fault {
            Some(Fault::Never) => std::future::pending().await,
            Some(Fault::DoneNever) => {
                self.propose_as(shard, planned, action);
                std::future::pending().await
            }
            Some(Fault::NoLeader) => Err(HostError::Unavailable("no leader".to_owned())),
            Some(Fault::AnswerLost) => {
                self.propose_as(shard, planned, action);
                Err(HostError::OutcomeUnknown("the answer was lost".to_owned()))
            }
            Some(Fault::LostThenFenced) => {
                let Written { index, .. } = self.propose_as(shard, planned, action);
                let outcome = Outcome::Refused(Refusal::Fenced { unit: PartitionId(0) });
                Ok(Written { outcome, index, uncertain: true })
            }
            Some(Fault::Broken) => {
                let (code, message) = ("XX000".to_owned(), "broken".to_owned());
                let failure = SqlFailure { statement: 0, sqlite_code: 0, code, message, hint: None };
                Ok(Written { outcome: Outcome::Failed(failure), index: 0, uncertain: false })
            }
            None => Ok(self.propose_as(shard, planned, action)),
        }
    }

    async fn pass(&self, _: ShardId, _: Generation, _: bool, _: Duration) -> Result<Pass, HostError> {
        Err(HostError::Internal("the shards of this cluster are no servers".to_owned()))
    }

    async fn end_session(&self, _: ShardId, _: u32) {}

    async fn write_reference(&self, planned: Planned, action: Action, _: Duration) -> Result<Written, HostError> {
        let catalog = self.newest();
        let anchor = catalog.anchor().unwrap();
        let written = self.propose_as(anchor, planned, action);
        self.spread_reference_writes();
        Ok(written)
    }

    async fn read(
        &self,
        shard: ShardId,
        request: ReadRequest,
        _: Freshness,
        _: Duration,
    ) -> Result<RowStream, HostError> {
        let due = self.between.lock().take_if(|(reads, _)| {
            *reads = reads.saturating_sub(1);
            *reads == 0
        });
        let read = locals::rows(|sink| self.replica(shard).readers.read(&request, sink));
        if let Some((_, act)) = due {
            act(self);
        }
        read.map_err(|error| match error {
            pleat_engine::EngineError::Refused(refusal) => HostError::Refused(refusal),
            error => HostError::Engine(error),
        })
    }

    async fn lease(&self, shard: ShardId, _: Duration) -> Result<Lease, HostError> {
        Err(HostError::Internal(format!("{shard} is no server")))
    }

    async fn ask_server(&self, shard: ShardId, _: String, _: Duration) -> Result<Vec<Asked>, HostError> {
        Err(HostError::Internal(format!("{shard} is no server")))
    }

    fn txn_clock(&self) -> Millis {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    async fn ledger_command(&self, command: LedgerCommand, _: Duration) -> Result<LedgerReply, HostError> {
        let apply = || self.ledger.lock().apply(&command).map_err(HostError::Ledger);
        match self.trapped(Step::of_ledger(&command)) {
            None => apply(),
            Some(Fault::NoLeader | Fault::LostThenFenced | Fault::Broken) => {
                Err(HostError::Unavailable("no leader".to_owned()))
            }
            Some(Fault::AnswerLost) => {
                apply()?;
                Err(HostError::OutcomeUnknown("the answer was lost".to_owned()))
            }
            Some(Fault::Never) => std::future::pending().await,
            Some(Fault::DoneNever) => {
                apply()?;
                std::future::pending().await
            }
        }
    }

    async fn txn_step(&self, part: &mut TxnPart, step: TxnStep, within: Duration) -> Result<TxnReply, HostError> {
        self.take_step(part, step, within).await
    }

    async fn touch_txn(&self, part: &TxnPart, _: Duration) {
        *self.touched.lock().entry(part.shard()).or_default() += 1;
    }

    async fn in_doubt(&self, _: Duration) -> Result<Vec<InDoubt>, HostError> {
        let doubt = |(shard, prepared): (ShardId, pleat_engine::PreparedTxn)| InDoubt {
            txn: prepared.txn,
            shard,
            participants: prepared.participants,
            began: prepared.began,
            prepared_ms: prepared.prepared_ms,
            decided: self.ledger.lock().decided(prepared.txn).map(|decided| decided.commit.is_some()),
        };
        Ok(self.prepared().into_iter().map(doubt).collect())
    }

    async fn observe(&self, node: NodeId, _: Duration) -> Result<NodeObservation, HostError> {
        if *self.deaf.lock() {
            return Err(HostError::Unavailable("deaf".to_owned()));
        }
        let shards = self.shards.lock().clone();
        let seen = shards.into_iter().map(|(shard, replica)| {
            let stats = replica.readers.stats().unwrap();
            ShardObservation {
                shard,
                rows_per_table: stats.tables,
                total_rows: stats.rows,
                database_bytes: stats.file_bytes,
                connections: 0,
                queries_per_second: 0.5,
                transactions_per_second: 0.25,
                latency_ms: Quantiles { p50: Some(1.0), ..Quantiles::default() },
                errors: 0,
                applied_index: replica.index.load(Ordering::Relaxed),
                ownership: stats.ownership,
                holds_foreign_rows: stats.foreign_rows,
                partition_load: BTreeMap::new(),
            }
        });
        let resources = Resources { cpu_percent: 12.5, ..Resources::default() };
        Ok(NodeObservation { node, at: 1_759_668_500_787, resources, shards: seen.collect() })
    }

    async fn partition_weights(
        &self,
        shard: ShardId,
        _: Duration,
    ) -> Result<BTreeMap<PartitionId, PartitionWeight>, HostError> {
        let weights = self.replica(shard).readers.partition_weights().map_err(HostError::Engine)?;
        Ok(weights.into_iter().map(|(unit, (rows, bytes))| (unit, PartitionWeight { rows, bytes })).collect())
    }

    async fn ping(&self, _: NodeId, _: Duration) -> Result<Duration, HostError> {
        Ok(Duration::from_millis(2))
    }

    async fn progress(&self, _: Duration) -> Result<BTreeMap<OperationId, Progress>, HostError> {
        match *self.deaf.lock() {
            true => Err(HostError::Unavailable("deaf".to_owned())),
            false => Ok(self.progress.lock().clone()),
        }
    }
}

impl Cluster {
    /// Bring the anchor's writes to reference tables to all other shards.
    pub fn spread_reference_writes(&self) {
        let catalog = self.newest();
        let anchor = catalog.anchor().unwrap();
        let log = pleat_engine::MoveRead::ReferenceLog { after: 0, limit: 10_000 };
        let chunk = self.replica(anchor).readers.move_read(&log).unwrap();
        let pleat_engine::MoveChunk::ReferenceLog { entries, .. } = chunk else { panic!("{chunk:?}") };
        for shard in catalog.active_shards().filter(|shard| shard.id != anchor) {
            for entry in &entries {
                self.propose(shard.id, Action::ReferenceApply(entry.clone()));
            }
        }
    }

    /// A write to reference tables that its anchor's leader has brought to no other shard yet.
    pub fn reference_write_on_anchor_alone(&self, sql: &str, param: String) {
        let statements = vec![pleat_engine::Statement::new(sql, [pleat_cluster::Value::Text(param)])];
        let anchor = self.newest().anchor().unwrap();
        let outcome = self.propose(anchor, Action::ReferenceWrite { idempotency: None, statements }).outcome;
        assert!(matches!(outcome, Outcome::Reference { .. }), "{outcome:?}");
    }

    /// Make the next shard, as the start of a split does.
    pub fn add_shard(&self, from: ShardId, partitions: &[PartitionId]) -> (OperationId, ShardId) {
        let to = self.newest().next_shard();
        let kind = OperationKind::Split { from, to, partitions: partitions.to_vec() };
        let cause = pleat_cluster::Cause::Request("test".to_owned());
        let start = Command::StartOperation { kind, cause, reason: String::new(), at: 5 };
        let operation = self.apply(&start).operation.unwrap();
        self.start_shard(to);
        assert_eq!(self.newest().shards[&to].state, ShardState::Active);
        let catalog = self.newest();
        for (number, table) in (1_000_000..).zip(catalog.tables.values()) {
            let statements = vec![table.create_sql.clone()];
            let change = SchemaChange::Put(table.clone());
            self.propose(to, Action::Ddl { operation: number, statements, change, single: None, undoes: None });
        }
        self.propose(catalog.anchor().unwrap(), Action::ReferenceMembers { generation: catalog.generation });
        self.spread_reference_writes();
        (operation, to)
    }
}
