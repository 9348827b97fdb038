//! A cluster in one thread: a catalog, one real engine per shard, clients that write and read at every call that
//! the control loop makes, and faults at any of these calls.
//!
//! Since everything happens in one thread, the clients know exactly what must be there: a write that was
//! acknowledged is in the model, one that was refused is not, and a read that is answered must agree.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pleat_cluster::{Engine, *};
use pleat_engine::*;
use pleat_host::{
    GroupView, HostError, MemberChange, NodeObservation, NodeReplicas, PartitionWeight, Progress, Resources,
    ShardObservation,
};
use tempfile::TempDir;
use tokio::sync::{Notify, watch};

pub mod cities;
mod items;
mod messages;
pub mod servers;

use self::items::owner;
use super::members::Members;
use crate::Cluster;

pub const PARTITIONS: u32 = 16;
/// How many calls a router may lag behind.
const PAST_MAX: usize = 40;

/// What goes wrong at the nth call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The leader dies before the call has an effect.
    CrashBefore(u64),
    /// The leader dies after the call had its effect, without learning of it.
    CrashAfter(u64),
    /// The call has its effect, and its answer is lost.
    Lost(u64),
    /// The call does not reach anybody.
    Unreachable(u64),
    /// Before the call all shards' replicas are started anew.
    Restart(u64),
    /// The leader dies, and its last command to the catalog arrives so many calls later.
    Late(u64, u64),
    /// Before the call, one write to a reference table.
    City(u64),
    /// A transaction that writes to a reference table, by the catalog before call `at`. It runs then, or (`runs_late`), prepared, so many calls later.
    CityTxn { at: u64, pause: u64, runs_late: bool },
    /// Before the call, someone asks for the operation to be cancelled.
    Cancel(u64, OperationId),
    /// The control loop panics.
    Panic(u64),
    /// The call never returns, and has no effect.
    Hang(u64),
    /// The nth message of rows of a move is not what was sent. Only those are counted that come before the comparison.
    Spoil(u64),
}

pub struct World {
    inner: Mutex<Inner>,
    publish: watch::Sender<Arc<Catalog>>,
    pub crashed: Notify,
}

pub struct Inner {
    dir: TempDir,
    pub catalog: Catalog,
    shards: BTreeMap<ShardId, (Store, Readers)>,
    pub term: u64,
    pub leads: bool,
    pub calls: u64,
    pub faults: Vec<Fault>,
    /// Clients write to the reference table, too.
    pub cities_change: bool,
    /// When a leader dies, the users that [`Inner::duplicate_on`] made become one.
    pub heals: bool,
    /// When a leader dies, a row of the reference table is deleted.
    pub shrinks: bool,
    /// A shard that nobody reaches.
    pub gone: Option<ShardId>,
    /// The call at which a commit was proposed.
    pub commit_at: Option<u64>,
    late: Vec<(u64, Command)>,
    /// What routers that lag behind believe.
    past: VecDeque<Arc<Catalog>>,
    /// Deliver an old message to a shard once more, at every call.
    pub redeliver: bool,
    /// How long each call takes.
    pub latency: Duration,
    /// What writes take besides: they wait for the disks of a majority.
    pub flush: Duration,
    /// Rows and bytes of one message of a move.
    pub chunk: (usize, usize),
    /// Client operations at each call.
    pub clients: u32,
    /// Who votes where. Of interest to rebuilds alone: everything else has one engine per shard.
    pub members: Members,
    /// How far operations are, and all that was ever told of it.
    pub progress: BTreeMap<OperationId, Progress>,
    pub told: Vec<Progress>,
    /// Messages of rows of moves.
    imports: u64,
    /// Writes to shards that were on their way at the same time: now, and at most.
    writing: u32,
    pub written_at_once: u32,
    sent: Vec<(ShardId, Action)>,
    sent_ddl: BTreeMap<ShardId, Action>,
    now: Millis,
    index: u64,
    pub random: u64,
    pub users: BTreeMap<i64, String>,
    pub servers: servers::Servers,
    pub cities: BTreeMap<i64, String>,
    pub city_txn: cities::CityTxn,
    pub items: items::Items,
    /// Client operations on these at each call.
    pub items_change: u32,
    /// Whether the control loop sees that clients are at work.
    pub counts_clients: bool,
    pub acknowledged: u64,
    pub refused: u64,
    pub answered: u64,
}

impl World {
    pub fn new(shards: u32) -> Arc<Self> {
        Self::with_nodes(1, shards)
    }

    pub fn with_nodes(nodes: u64, shards: u32) -> Arc<Self> {
        Self::founded(nodes, shards, Engine::Sqlite)
    }

    pub fn founded(nodes: u64, shards: u32, engine: Engine) -> Arc<Self> {
        let mut catalog = Catalog::default();
        let init = Command::Init {
            cluster_id: "test".to_owned(),
            partition_count: PARTITIONS,
            replication_factor: 3,
            nodes: (1..=nodes).map(|n| (NodeId(n), format!("node-{n}"), format!("127.0.0.1:{n}"))).collect(),
            incarnations: (1..=nodes).map(|n| (NodeId(n), n)).collect(),
            shards,
            engine,
            policy: Policy::default(),
            at: 1,
        };
        catalog.apply(&init).unwrap();
        let publish = watch::channel(Arc::new(catalog.clone())).0;
        let inner = Inner {
            dir: TempDir::new().unwrap(),
            catalog,
            shards: BTreeMap::new(),
            term: 1,
            leads: true,
            calls: 0,
            faults: Vec::new(),
            cities_change: true,
            heals: false,
            shrinks: false,
            gone: None,
            commit_at: None,
            late: Vec::new(),
            past: VecDeque::new(),
            redeliver: false,
            latency: Duration::ZERO,
            flush: Duration::ZERO,
            chunk: (16, 2_000),
            clients: 0,
            members: Members::default(),
            progress: BTreeMap::new(),
            told: Vec::new(),
            imports: 0,
            writing: 0,
            written_at_once: 0,
            sent: Vec::new(),
            sent_ddl: BTreeMap::new(),
            now: 1_000_000,
            index: 0,
            random: 42,
            users: BTreeMap::new(),
            servers: servers::Servers::default(),
            cities: BTreeMap::new(),
            city_txn: cities::CityTxn::default(),
            items: items::Items::default(),
            items_change: 0,
            counts_clients: false,
            acknowledged: 0,
            refused: 0,
            answered: 0,
        };
        let world = Arc::new(Self { inner: Mutex::new(inner), publish, crashed: Notify::new() });
        world.with(Inner::reconcile);
        world
    }

    pub fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock())
    }

    /// A command from outside, such as a user's.
    pub fn ask(&self, command: Command) -> Reply {
        let reply = self.with(|inner| inner.command(command)).unwrap();
        self.publish();
        reply
    }

    pub fn start(&self, kind: OperationKind) -> OperationId {
        let start = Command::StartOperation {
            kind,
            cause: Cause::Request("test".to_owned()),
            reason: "test".to_owned(),
            at: 1,
        };
        self.ask(start).operation.unwrap()
    }

    async fn call<T>(
        &self,
        is_effect: bool,
        work: impl FnOnce(&mut Inner) -> Result<T, HostError>,
    ) -> Result<T, HostError> {
        let latency = self.with(|inner| inner.latency);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let (call, faults) = self.with(|inner| {
            inner.tick();
            (inner.calls, inner.faults.clone())
        });
        self.publish();
        for fault in &faults {
            match fault {
                Fault::CrashBefore(at) | Fault::Late(at, _) if *at == call => self.die().await,
                Fault::Restart(at) if *at == call => self.with(Inner::restart),
                Fault::City(at) if *at == call => self.with(Inner::put_city),
                Fault::CityTxn { at, pause, runs_late } => {
                    self.with(|inner| inner.city_txn(call, *at, *pause, *runs_late));
                }
                Fault::Cancel(at, operation) if *at == call => self.cancel(*operation),
                Fault::Panic(at) if *at == call => panic!("test"),
                Fault::Hang(at) if *at == call => futures::future::pending().await,
                Fault::Unreachable(at) if *at == call => return Err(HostError::Unavailable("test".to_owned())),
                _ => {}
            }
        }
        let result = self.with(work);
        self.publish();
        for fault in &faults {
            match fault {
                Fault::CrashAfter(at) if *at == call => self.die().await,
                Fault::Lost(at) if *at == call && is_effect => {
                    return Err(HostError::OutcomeUnknown("test".to_owned()));
                }
                Fault::Lost(at) if *at == call => return Err(HostError::Unavailable("test".to_owned())),
                _ => {}
            }
        }
        result
    }

    /// If it is not too late for that.
    pub fn cancel(&self, operation: OperationId) {
        let _ = self.with(|inner| inner.command(Command::CancelOperation { operation, at: 1 }));
        self.publish();
    }

    /// Show the catalog to those who watch it.
    fn publish(&self) {
        let catalog = self.with(|inner| inner.catalog.clone());
        self.publish.send_if_modified(|known| {
            let changed = **known != catalog;
            if changed {
                *known = Arc::new(catalog);
            }
            changed
        });
    }

    async fn die<T>(&self) -> T {
        self.crashed.notify_one();
        futures::future::pending().await
    }
}

impl Inner {
    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below
    }

    fn command(&mut self, command: Command) -> Result<Reply, HostError> {
        if let Command::CommitOperation { operation, .. } = &command
            && let OperationKind::Rebuild { node, shard } = self.catalog.operations[operation].kind
        {
            self.members.check_removed(&self.catalog, node, shard);
        }
        let reply = self.catalog.apply(&command).map_err(HostError::Command)?;
        assert_eq!(self.catalog.check(), [], "after {command:?}");
        self.reconcile();
        Ok(reply)
    }

    /// Start and remove replicas as the catalog says.
    fn reconcile(&mut self) {
        for shard in self.catalog.shards.values() {
            if shard.state == ShardState::Removed {
                self.shards.remove(&shard.id);
            } else if !self.shards.contains_key(&shard.id) {
                let dir = self.dir.path().join(shard.id.to_string());
                self.shards.insert(shard.id, Store::open(&dir, StoreConfig::new(PARTITIONS)).unwrap());
            }
        }
    }

    /// Lose all that replicas keep in memory, such as open snapshots.
    fn restart(&mut self) {
        self.shards.clear();
        self.reconcile();
    }

    /// The newest schema change that was sent to a shard.
    pub fn sent_ddl(&self, shard: ShardId) -> Action {
        self.sent_ddl[&shard].clone()
    }

    /// What the control loop does, and clients that know the newest layout.
    pub fn apply(&mut self, shard: ShardId, action: Action) -> Result<Outcome, HostError> {
        self.apply_as(shard, action, self.catalog.planned())
    }

    /// What a router that planned by this sends.
    fn apply_as(&mut self, shard: ShardId, action: Action, planned: Planned) -> Result<Outcome, HostError> {
        self.now += 1;
        self.index += 1;
        let (now_ms, index) = (self.now, self.index);
        let Some((store, _)) = self.shards.get_mut(&shard) else {
            return Err(HostError::Unavailable(format!("{shard} has no replica")));
        };
        let proposal = Proposal { id: uuid::Uuid::from_u128(index.into()), planned, now_ms, seed: index, action };
        let outcomes = store.apply(&[&proposal.encode()], &index.to_le_bytes()).unwrap();
        Ok(Outcome::decode(&outcomes[0]).unwrap())
    }

    fn move_read(&mut self, shard: ShardId, request: &MoveRead) -> Result<MoveChunk, HostError> {
        let Some((_, readers)) = self.shards.get(&shard) else {
            return Err(HostError::Unavailable(format!("{shard} has no replica")));
        };
        readers.move_read(request).map_err(|error| match error {
            EngineError::Refused(refusal) => HostError::Refused(refusal),
            error => HostError::Engine(error),
        })
    }

    /// Rows of a read, or the refusal.
    pub fn read(
        &self,
        shard: ShardId,
        sql: &str,
        filtered: Option<&str>,
        params: Vec<Value>,
        check: OwnershipCheck,
    ) -> Result<Vec<Vec<Value>>, EngineError> {
        self.read_as(shard, sql, filtered, params, check, None)
    }

    /// The same for a router of this layout.
    fn read_as(
        &self,
        shard: ShardId,
        sql: &str,
        filtered: Option<&str>,
        params: Vec<Value>,
        check: OwnershipCheck,
        layout: Option<Generation>,
    ) -> Result<Vec<Vec<Value>>, EngineError> {
        let request = ReadRequest {
            queries: vec![Query { sql: sql.to_owned(), sql_filtered: filtered.map(str::to_owned), params }],
            check,
            layout,
            now_ms: self.now,
            seed: 1,
            limits: ReadLimits::default(),
            names_txns: false,
        };
        let mut rows = Vec::new();
        self.shards[&shard].1.read(&request, &mut |chunk| {
            rows.extend(chunk.rows);
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    /// What comes now is the test: no router believes what was before, and calls are counted anew.
    pub fn begin(&mut self) {
        self.past.clear();
        self.calls = 0;
        self.imports = 0;
        self.commit_at = None;
    }

    /// The next call is this command.
    fn about_to(&mut self, command: &Command) {
        let call = self.calls + 1;
        if matches!(command, Command::CommitOperation { .. }) {
            self.commit_at.get_or_insert(call);
        }
        for fault in &self.faults {
            if let Fault::Late(at, delay) = fault
                && *at == call
            {
                self.late.push((call + delay, command.clone()));
            }
        }
    }

    /// A leader has died, and the next one comes.
    pub fn next_term(&mut self) {
        self.term += 1;
        if self.shrinks {
            self.delete_city();
        }
        if self.heals {
            for key in self.users.iter().filter(|(_, v)| *v == "twice").map(|(id, _)| *id).skip(1).collect::<Vec<_>>() {
                let sql = "UPDATE users SET v = 'once' WHERE id = ?1";
                assert!(self.write_user(key, Statement::new(sql, [Value::Integer(key)])));
                self.users.insert(key, "once".to_owned());
            }
        }
    }

    /// Between any two calls of the control loop, clients and the network go on.
    fn tick(&mut self) {
        self.calls += 1;
        self.past.push_back(Arc::new(self.catalog.clone()));
        if self.past.len() > PAST_MAX {
            self.past.pop_front();
        }
        let due = self.calls;
        for (_, command) in self.late.extract_if(.., |(at, _)| *at == due).collect::<Vec<_>>() {
            let _ = self.command(command);
        }
        if self.redeliver && !self.sent.is_empty() {
            let old = self.random(self.sent.len() as u64) as usize;
            let (shard, action) = self.sent[old].clone();
            let _ = self.apply(shard, action);
        }
        for _ in 0..self.clients {
            match self.random(20) {
                0..=9 => self.put_user(),
                10..=12 => self.delete_user(),
                13..=17 => self.get_user(),
                18 => self.count_users(),
                _ if self.cities_change => self.put_city(),
                _ => self.count_users(),
            }
        }
        for _ in 0..self.items_change {
            self.touch_items();
        }
    }

    fn owner(&self, key: i64) -> (PartitionId, ShardId) {
        owner(&self.catalog, key)
    }

    /// The catalog of a router: the newest, or an older one.
    fn router(&mut self) -> Arc<Catalog> {
        match self.random(3) {
            0 if !self.past.is_empty() => {
                let lag = self.random(self.past.len() as u64) as usize;
                self.past[lag].clone()
            }
            _ => Arc::new(self.catalog.clone()),
        }
    }

    pub fn put_user(&mut self) {
        let (key, value) = (self.random(300) as i64, format!("{:x}", self.random(u64::from(u32::MAX))));
        let sql = "INSERT INTO users(id, v) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET v = excluded.v";
        if self.write_user(key, Statement::new(sql, [Value::Integer(key), Value::Text(value.clone())])) {
            self.users.insert(key, value);
        }
    }

    fn delete_user(&mut self) {
        let key = self.random(300) as i64;
        if self.write_user(key, Statement::new("DELETE FROM users WHERE id = ?1", [Value::Integer(key)])) {
            self.users.remove(&key);
        }
    }

    fn write_user(&mut self, key: i64, statement: Statement) -> bool {
        let router = self.router();
        let (partition, shard) = owner(&router, key);
        let write =
            Action::Write { idempotency: None, units: vec![partition], statements: vec![statement], base: None };
        match self.apply_as(shard, write, router.planned()) {
            Ok(Outcome::Done { .. }) => {
                self.acknowledged += 1;
                true
            }
            Ok(Outcome::Refused(refusal)) if refusal.is_retryable() => {
                self.refused += 1;
                false
            }
            Err(HostError::Unavailable(_)) => false, // the shard was removed
            other => panic!("write of {key} on {shard}: {other:?}"),
        }
    }

    fn get_user(&mut self) {
        let key = self.random(300) as i64;
        let router = self.router();
        let (partition, shard) = owner(&router, key);
        if !self.shards.contains_key(&shard) {
            return;
        }
        let check = OwnershipCheck::Keyed(vec![partition]);
        let (sql, layout) = ("SELECT v FROM users WHERE id = ?1", Some(router.layout));
        match self.read_as(shard, sql, None, vec![Value::Integer(key)], check, layout) {
            Ok(rows) => {
                let expected: Vec<_> = self.users.get(&key).map(|v| vec![Value::Text(v.clone())]).into_iter().collect();
                assert_eq!(rows, expected, "user {key} on {shard}, call {}", self.calls);
                // A join with the reference table would see every city.
                self.check_cities(shard);
                self.answered += 1;
            }
            Err(EngineError::Refused(refusal)) if refusal.is_retryable() => {}
            Err(error) => panic!("read of {key} on {shard}: {error}"),
        }
    }

    /// A scatter read: it counts every row once, or is refused.
    fn count_users(&mut self) {
        let mut count = 0;
        let catalog = self.router();
        if catalog.active_shards().any(|shard| !self.shards.contains_key(&shard.id)) {
            return;
        }
        for shard in catalog.active_shards() {
            let check = OwnershipCheck::Scatter { ownership: shard.ownership };
            let filtered = "SELECT count(*) FROM users WHERE pleat_owned(id)";
            let (sql, layout) = ("SELECT count(*) FROM users", Some(catalog.layout));
            match self.read_as(shard.id, sql, Some(filtered), Vec::new(), check, layout) {
                Ok(rows) => match rows[0][0] {
                    Value::Integer(rows) => count += rows,
                    ref other => panic!("{other:?}"),
                },
                Err(EngineError::Refused(refusal)) if refusal.is_retryable() => return,
                Err(error) => panic!("count on {}: {error}", shard.id),
            }
        }
        assert_eq!(count, self.users.len() as i64, "call {}", self.calls);
        self.answered += 1;
    }

    /// Two users of one shard with the same value.
    pub fn duplicate_on(&mut self, shard: ShardId) {
        let keys: Vec<i64> = (1000..).filter(|key| self.owner(*key).1 == shard).take(2).collect();
        for key in keys {
            let values = [Value::Integer(key), Value::Text("twice".to_owned())];
            let sql = "INSERT INTO users(id, v) VALUES (?1, ?2)";
            assert!(self.write_user(key, Statement::new(sql, values)));
            self.users.insert(key, "twice".to_owned());
        }
    }

    fn reach(&self, shard: ShardId) -> Result<(), HostError> {
        match self.gone == Some(shard) {
            true => Err(HostError::Unavailable(format!("{shard} is gone"))),
            false => Ok(()),
        }
    }

    /// Whether the write was accepted.
    fn write_cities(&mut self, statement: Statement) -> bool {
        let anchor = self.catalog.anchor().unwrap();
        let statements = vec![statement];
        let written = self.apply(anchor, Action::ReferenceWrite { idempotency: None, statements }).unwrap();
        if let Outcome::Refused(refusal) = &written
            && refusal.is_retryable()
        {
            return false;
        }
        assert!(matches!(written, Outcome::Reference { .. }), "{written:?}");
        let others: Vec<_> =
            self.catalog.active_shards().map(|shard| shard.id).filter(|shard| *shard != anchor).collect();
        for shard in others {
            self.spread_to(anchor, shard);
        }
        true
    }

    fn check_cities(&self, shard: ShardId) {
        let rows = self.read(shard, "SELECT id, name FROM cities ORDER BY id", None, Vec::new(), OwnershipCheck::None);
        let city = |(id, name): (&i64, &String)| vec![Value::Integer(*id), Value::Text(name.clone())];
        assert_eq!(rows.unwrap(), self.cities.iter().map(city).collect::<Vec<_>>(), "cities on {shard}");
    }

    /// What must hold when no operation is open any more.
    pub fn check_quiet(&self) {
        assert_eq!(self.catalog.check(), []);
        assert_eq!(self.catalog.open_operations().count(), 0);
        let mut users = BTreeMap::new();
        for shard in self.catalog.shards.values() {
            if shard.state == ShardState::Removed {
                assert!(!self.shards.contains_key(&shard.id));
                continue;
            }
            assert_eq!(shard.state, ShardState::Active, "{}", shard.id);
            let stats = self.shards[&shard.id].1.stats().unwrap();
            assert!(!stats.foreign_rows, "{} holds foreign rows", shard.id);
            assert_eq!(stats.ownership, shard.ownership, "{}", shard.id);
            let rows = self.read(shard.id, "SELECT id, v FROM users", None, Vec::new(), OwnershipCheck::None).unwrap();
            for row in rows {
                let [Value::Integer(id), Value::Text(v)] = &row[..] else { panic!("{row:?}") };
                assert_eq!(self.owner(*id).1, shard.id, "user {id} is left on {}", shard.id);
                assert_eq!(users.insert(*id, v.clone()), None, "user {id} is there twice");
            }
            self.check_cities(shard.id);
            // Nothing is fenced or captured any more: every unit takes writes.
            let units = self.catalog.units_of(shard.id);
            let check = OwnershipCheck::Keyed(units);
            self.read(shard.id, "SELECT 1", None, Vec::new(), check).unwrap();
        }
        assert_eq!(users, self.users);
        self.check_items();
    }

    /// How an attempt at a move stands on a shard.
    pub fn phase(&mut self, shard: ShardId, operation: OperationId, attempt: u64) -> Option<MovePhase> {
        match self.move_read(shard, &MoveRead::State { operation: (operation.0 << 8) + attempt }) {
            Ok(MoveChunk::State(state)) => state.map(|state| state.phase),
            other => panic!("{other:?}"),
        }
    }
}

#[async_trait]
impl Cluster for World {
    fn now_ms(&self) -> Millis {
        self.with(|inner| inner.now)
    }

    fn epoch(&self) -> Option<u64> {
        self.with(|inner| inner.leads.then_some(inner.term))
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.publish.borrow().clone()
    }

    fn watch_catalog(&self) -> watch::Receiver<Arc<Catalog>> {
        self.publish.subscribe()
    }

    async fn command(&self, command: Command, _: Duration) -> Result<Reply, HostError> {
        self.with(|inner| inner.about_to(&command));
        self.call(true, |inner| inner.command(command)).await
    }

    async fn ledger(&self, command: LedgerCommand, _: Duration) -> Result<LedgerReply, HostError> {
        self.call(true, |inner| inner.servers.ledger.apply(&command).map_err(HostError::Ledger)).await
    }

    fn server(&self, _: ShardId) -> Result<Option<postgres::Server>, HostError> {
        Ok(None)
    }

    async fn ask_apart(&self, _: ShardId, _: &str, _: Duration) -> Result<postgres::Asked, postgres::PostgresError> {
        Ok(postgres::Asked::default())
    }

    async fn server_runs(&self, _: NodeId, _: ShardId, _: Duration) -> Result<bool, HostError> {
        Ok(true)
    }

    async fn fence(&self, _: &str, _: u64, _: u64) -> Result<(), String> {
        Ok(())
    }

    async fn settled(&self, _: NodeId, _: ShardId, _: Generation, _: bool, _: Duration) -> Result<u64, HostError> {
        Ok(0)
    }

    async fn write(&self, shard: ShardId, action: Action, _: Duration) -> Result<Outcome, HostError> {
        let _writing = messages::Writing::begin(self);
        let flush = self.with(|inner| inner.flush);
        if !flush.is_zero() {
            tokio::time::sleep(flush).await;
        }
        self.call(true, |inner| {
            inner.reach(shard)?;
            if matches!(action, Action::Ddl { undoes: None, .. }) {
                inner.sent_ddl.insert(shard, action.clone());
            }
            if matches!(action, Action::Move(_) | Action::ReferenceApply(_) | Action::Own { .. }) {
                inner.sent.push((shard, action.clone()));
            }
            let action = inner.carried(action);
            inner.apply(shard, action)
        })
        .await
    }

    async fn move_read(&self, shard: ShardId, request: MoveRead, _: Duration) -> Result<MoveChunk, HostError> {
        self.call(false, |inner| inner.reach(shard).and_then(|()| inner.move_read(shard, &request))).await
    }

    async fn ask(&self, shard: ShardId, texts: Vec<String>, _: Duration) -> Result<Vec<postgres::Asked>, HostError> {
        self.call(true, |inner| inner.reach(shard).and_then(|()| inner.servers.ask(shard, &texts))).await
    }

    async fn reach(&self, shard: ShardId, _: Duration) -> Result<(), HostError> {
        self.call(false, |inner| inner.reach(shard)).await
    }

    async fn probe(&self, shard: ShardId, _: Duration) -> Result<(), String> {
        match self.with(|inner| inner.shards.contains_key(&shard)) {
            true => Ok(()),
            false => Err("it has no replica".to_owned()),
        }
    }

    async fn observe(&self, node: NodeId, _: Duration) -> Result<NodeObservation, HostError> {
        self.call(false, |inner| {
            let shards = inner.shards.iter().map(|(shard, (_, readers))| {
                let stats = readers.stats().unwrap();
                ShardObservation {
                    shard: *shard,
                    total_rows: stats.rows,
                    rows_per_table: stats.tables,
                    database_bytes: stats.file_bytes,
                    connections: 0,
                    queries_per_second: 0.0,
                    transactions_per_second: 0.0,
                    latency_ms: Default::default(),
                    errors: 0,
                    applied_index: inner.index,
                    ownership: stats.ownership,
                    holds_foreign_rows: stats.foreign_rows,
                    partition_load: BTreeMap::new(),
                }
            });
            Ok(NodeObservation { node, at: inner.now, resources: Resources::default(), shards: shards.collect() })
        })
        .await
    }

    async fn partition_weights(
        &self,
        shard: ShardId,
        _: Duration,
    ) -> Result<BTreeMap<PartitionId, PartitionWeight>, HostError> {
        self.call(false, |inner| {
            let weights = inner.shards[&shard].1.partition_weights().unwrap();
            Ok(weights.into_iter().map(|(unit, (rows, bytes))| (unit, PartitionWeight { rows, bytes })).collect())
        })
        .await
    }

    fn note_progress(&self, operation: OperationId, progress: Option<Progress>) {
        self.with(|inner| match progress {
            Some(progress) => {
                inner.told.push(progress.clone());
                inner.progress.insert(operation, progress);
            }
            None => drop(inner.progress.remove(&operation)),
        });
    }

    /// Clients don't wait for the control loop here, nor it for them unless it is to see them.
    async fn served(&self, _: NodeId, _: Duration) -> Result<BTreeMap<ShardId, u64>, HostError> {
        let counted = self.with(|inner| inner.counts_clients.then_some(inner.acknowledged + inner.answered));
        Ok(counted.map(|statements| (ShardId(1), statements)).into_iter().collect())
    }

    async fn replicas(&self, node: NodeId, _: Duration) -> Result<NodeReplicas, HostError> {
        self.call(false, |inner| {
            // Who watches the members waits for time to pass.
            inner.now += 300;
            inner.members.replicas(&inner.catalog, node)
        })
        .await
    }

    async fn digest(&self, _: NodeId, _: ShardId, _: u64, _: Duration) -> Result<Option<ContentDigest>, HostError> {
        Ok(None)
    }

    async fn members(&self, shard: Option<ShardId>, change: MemberChange, _: Duration) -> Result<GroupView, HostError> {
        self.call(true, |inner| inner.members.change(&inner.catalog, shard, change)).await
    }
}
