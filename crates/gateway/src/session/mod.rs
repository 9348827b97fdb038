//! Carrying out statements: the part that every protocol shares.
//!
//! # The problem
//!
//! A node routes by its own copy of the catalog, which may be a moment old, to shards that move while
//! statements run. The client must notice none of it: a statement is answered from rows that are all there,
//! each once, or done exactly once, or refused with the reason.
//!
//! # The mechanism
//!
//! [`Executor::execute`] takes a snapshot of the catalog, plans (from a cache, [`plans`]), routes, and sends
//! each shard its part together with what the shard must own for it to be right. A shard that knows better
//! refuses, and then *nothing has happened yet*: the executor waits for a newer catalog and starts over
//! ([`reroute`]), with the same "now", the same seed and, for writes, the same idempotency key, so that an
//! attempt whose answer was lost is recognised, wherever its data has moved.
//!
//! - [`read`]: one shard; or several side by side, all held to one snapshot of the catalog, so that a
//!   partition that moves between two of them is seen exactly once. Rows are handed on only when every
//!   shard has accepted its part. What can't be simply appended is finished in memory ([`gather`]).
//! - [`write`]: one shard, or reference tables. Over several shards: [`spread`] cuts the write into [`parts`],
//!   [`two_phase`] carries them out, on all shards or none, and [`whole`] keeps reads from seeing half of it; what can't be
//!   planned ahead goes step by step ([`interactive`]). [`ids`] gives rows their ids.
//! - [`interactive`]: sessions, and transactions over several requests.
//! - [`bulk`]: many rows of one table, split by partition.
//! - [`analyze`]: a read that is carried out for its figures.
//! - [`ddl`]: a schema change is an operation of the journal; the executor waits for it.
//!
//! # Caveats
//!
//! A read over several shards has no single instant: each shard answers from a snapshot of its own, though never with
//! half a transaction. An idempotency key is known where its data is: the same key with another statement is noticed when both
//! belong to one shard.
//!
//! The protocols stand on [`Executor`]: it knows nothing of JSON or of connections.

mod analyze;
mod bulk;
mod ddl;
mod deadline;
mod explain;
mod failure;
mod follow;
mod gather;
mod ids;
mod interactive;
mod merge;
mod parts;
mod place;
pub(crate) mod plans;
mod read;
mod request;
mod reroute;
mod spread;
mod token;
mod two_phase;
mod whole;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pleat_cluster::{Catalog, Engine, Millis, ShardId};
use pleat_engine::{Room, RoomTaken};
use pleat_sql::{Hint, Statement};
use tokio::sync::Semaphore;
use uuid::Uuid;

pub use bulk::{BulkRequest, BulkResponse, Rejected};
pub use failure::{Failure, IDEMPOTENCY_CONFLICT, OVERLOADED};
pub(crate) use interactive::{Control, read_control};
pub use interactive::{Mode, OpenTxn, SessionInfo, SessionOptions};
pub(crate) use place::anchor;
pub use request::{Consistency, Effect, Output, Params, Request, Response, Rows, Touched};
pub use token::Token;

use crate::backend::Backend;
use crate::metrics::Metrics;
use crate::observer::Observer;
use crate::settings::{STATEMENT_BYTES_MAX, STATEMENT_TIMEOUT_MAX, STATUS_TIME_MAX, Settings};
use crate::statements::Statements;
use deadline::Deadline;
use plans::Plans;
use reroute::Setback;

/// Carries out statements on behalf of one node's clients.
pub struct Executor {
    backend: Arc<dyn Backend>,
    observer: Arc<Observer>,
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    plans: Plans<Statement>,
    /// Queries that may gather rows in memory at the same time.
    gathers: Arc<Semaphore>,
    /// Memory and disk that these share.
    room: Arc<Room>,
    statements: Arc<Statements>,
    /// Ids that rows may be given.
    blocks: ids::Blocks,
    /// Transactions that the ledger need not remember any more.
    forgetting: Arc<two_phase::Forgetting>,
    sessions: Arc<interactive::Sessions>,
}

/// One request on its way: what stays the same over all attempts.
struct Run {
    request: Request,
    /// What its leading comment asks for.
    hint: Hint,
    deadline: Deadline,
    /// "Now" of a read, the same on every shard. (A write's is chosen by the shard's leader.)
    now_ms: Millis,
    /// What `random()` of a read draws from.
    seed: u64,
    /// The key under which a write is known to the shards.
    key: write::Key,
    /// What ids the request's rows are given, once that is known.
    ids: Mutex<ids::Firsts>,
}

impl Executor {
    pub fn new(
        backend: Arc<dyn Backend>,
        observer: Arc<Observer>,
        settings: Arc<Settings>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let gathers = Arc::new(Semaphore::new(settings.limits.gathers));
        let disk = backend.disk();
        let spare = Arc::new(move || disk.spare());
        let room = Room::new(settings.spill_dir.clone(), settings.limits.room, settings.limits.gathers, spare);
        let statements = Statements::new(settings.limits.slow_query, backend.now_ms());
        let sessions = Arc::new(interactive::Sessions::new(backend.node()));
        Self {
            backend,
            observer,
            settings,
            metrics,
            plans: Plans::new(),
            gathers,
            room,
            statements,
            blocks: ids::Blocks::default(),
            forgetting: Arc::default(),
            sessions,
        }
    }

    /// What this node's statements took.
    pub fn statements(&self) -> &Arc<Statements> {
        &self.statements
    }

    /// What queries that gather rows take on this node.
    pub fn room(&self) -> RoomTaken {
        self.room.taken()
    }

    /// Carry out a request that belongs to no session.
    pub async fn execute(&self, request: Request) -> Result<Response, Failure> {
        let watch = self.statements.watch(&request.text, self.backend.now_ms());
        let answer = match interactive::begins_so(&request.text) {
            // Boxed, as all that is rare here: else every request has the size of the largest, and is copied on its way.
            true => Box::pin(self.execute_script(request)).await,
            false => self.execute_alone(request).await,
        };
        watch.answered(answer)
    }

    async fn execute_alone(&self, request: Request) -> Result<Response, Failure> {
        if request.text.len() > STATEMENT_BYTES_MAX {
            return Err(Failure::new(
                "54000",
                format!("the statement has {} bytes; the limit is {STATEMENT_BYTES_MAX}", request.text.len()),
                "pass values as parameters, or load rows with POST /tables/{table}/rows",
            ));
        }
        let limit = request.timeout.unwrap_or(self.settings.limits.statement_timeout).min(STATEMENT_TIMEOUT_MAX);
        let run = Run {
            hint: Hint::of(&request.text)?,
            deadline: Deadline::after(limit),
            now_ms: self.backend.now_ms(),
            seed: Uuid::new_v4().as_u64_pair().1,
            key: write::Key::of(&request, limit),
            ids: Mutex::default(),
            request,
        };
        self.see_token(&run).await?;
        let answer = self.rerouting(&run.deadline, |attempt| self.attempt(&run, attempt)).await;
        answer.map_err(|failure| failure.within(limit))
    }

    /// A token's write may have been routed by a catalog that this node doesn't have yet.
    async fn see_token(&self, run: &Run) -> Result<(), Failure> {
        let Some(token) = &run.request.token else { return Ok(()) };
        let within = run.deadline.left().min(STATUS_TIME_MAX);
        match self.backend.catalog_reaches(token.generation, within).await {
            true => Ok(()),
            false => Err(Failure::passing(
                "57P03",
                format!("this node has not seen generation {} of the token yet", token.generation),
                "try again, or ask another node; the token must come from this cluster",
            )),
        }
    }

    /// One attempt, wholly on one snapshot of the catalog.
    async fn attempt(&self, run: &Run, attempt: Attempt) -> Result<Response, Setback> {
        let catalog = &attempt.catalog;
        if !catalog.is_initialised() {
            return Err(Setback::Failed(Failure::passing("57P03", "the cluster is not set up yet", "try again soon")));
        }
        let plan = self.plan(&run.request.text, catalog)?;
        match plan.as_ref() {
            Statement::Read(plan) => self.read(run, &attempt, plan).await,
            Statement::Write(_) | Statement::Ddl(_) if run.hint.shard.is_some() => Err(place::read_only_hint().into()),
            Statement::Write(plan) => Box::pin(self.write(run, &attempt, plan)).await,
            Statement::Ddl(plan) => Box::pin(self.change_schema(run, catalog, plan)).await,
            Statement::Explain(_) => explain::explain(&plan, run, catalog),
            Statement::Analyze(inner) => Box::pin(self.analyze(run, attempt, inner)).await,
        }
    }

    /// The plan of a statement, for a protocol that tells its client of a statement before it runs.
    pub(crate) fn plan_of(&self, text: &str, catalog: &Arc<Catalog>) -> Result<Arc<Statement>, Failure> {
        self.plan(text, catalog)
    }

    fn plan(&self, text: &str, catalog: &Arc<Catalog>) -> Result<Arc<Statement>, Failure> {
        check_engine(catalog)?;
        let schema = pleat_sql::Schema {
            tables: &catalog.tables,
            views: &catalog.views,
            default_keys: &self.settings.default_keys,
        };
        let (plan, known) = self.plans.get(text, catalog, || pleat_sql::prepare(text, &schema))?;
        self.metrics.planned(known);
        Ok(plan)
    }
}

/// What is carried out here is SQLite's.
fn check_engine(catalog: &Catalog) -> Result<(), Failure> {
    match catalog.engine {
        Engine::Sqlite => Ok(()),
        Engine::Postgres => Err(Failure::new(
            "0A000",
            "this cluster's shards are PostgreSQL servers, and statements for them come over the PostgreSQL protocol",
            "connect with psql or a driver to the PostgreSQL address of any node (port 6432 unless configured otherwise)",
        )),
    }
}

/// Content versions of shards.
type Versions = Arc<Mutex<BTreeMap<ShardId, u64>>>;

/// What one attempt goes by.
#[derive(Clone)]
struct Attempt {
    catalog: Arc<Catalog>,
    /// How often shards have refused before.
    refused: u32,
    /// Where to note what a read takes, for EXPLAIN ANALYZE.
    analysis: Option<Arc<analyze::Analysis>>,
    /// How often ids that its rows were given turned out to be in use.
    collisions: u32,
    /// Where a read notes the version of each shard that it asks.
    versions: Option<Versions>,
    /// The transaction that it belongs to.
    inside: Option<Arc<interactive::Txn>>,
}

impl From<pleat_sql::SqlError> for Failure {
    fn from(error: pleat_sql::SqlError) -> Self {
        let position = error.position.map(|at| (u64::from(at.line), u64::from(at.column)));
        let hint = error.hint.clone().unwrap_or_default();
        Failure { position, ..Failure::new(error.sqlstate(), error.message.clone(), hint) }
    }
}
