//! Sessions: what a client does in several requests that belong together.
//!
//! # The problem
//!
//! An application begins a transaction, reads, decides, writes, and commits. Each of these is a request of its own,
//! perhaps on different shards, and between two of them the client thinks, or hangs up, or is gone.
//!
//! # The mechanism
//!
//! A session is a name for a place on *one node*, in memory: an open transaction, if there is one ([`transaction`]),
//! and the id that was inserted last. Outside a transaction a request in a session is what it would be without one.
//! Inside, the very same planning and routing goes on; only that what is sent to a shard goes to the transaction's part
//! there ([`super::Attempt::inside`]).
//!
//! - A session expires when it isn't used for a while; its transaction is rolled back. Shards are more impatient: a
//!   transaction that holds a shard's write lane and does nothing ends after a second.
//! - One request at a time: a second one waits for the first.
//! - A session is lost with its node, and says so (`08003`): nothing that wasn't committed was done.
//!
//! A script that begins and ends a transaction needs no session: it gets one of its own for as long as it runs. So does a
//! request whose statements must go one after the other ([`stepwise`]).
//!
//! # What a statement's failure does
//!
//! As in SQLite, a statement that fails is undone and the transaction goes on. When the transaction can't go on (it lost
//! against another one, took too long, or a shard's leader was lost), the failure says so once, with `40001`, `40P01`
//! or `25P03`; every later statement gets `25P02` until the client ends it. COMMIT is then refused too, because a client
//! that does not look would take its success for one.

mod control;
mod registry;
mod script;
mod stepwise;
mod transaction;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::TryStreamExt;
use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use pleat_cluster::{ShardId, Value};
use pleat_engine::Idempotency;
use pleat_sql::{Hint, Statement, WritePlan, WriteTarget};
use uuid::Uuid;

use super::parts::{Parts, Share, combine};
use super::reroute::Setback;
use super::{
    Attempt, Deadline, Effect, Executor, Failure, Output, Request, Response, Run, Token, Touched, explain, place, write,
};
use crate::settings::STATEMENT_TIMEOUT_MAX;
use transaction::{Committed, Did, REQUEST};

pub use control::Mode;
pub(super) use control::begins_so;
pub(crate) use control::{Control, read as read_control};
pub(super) use registry::Sessions;
pub use registry::{SessionInfo, SessionOptions};
pub use transaction::OpenTxn;
pub(super) use transaction::Txn;

/// Rows that one statement of a transaction may answer, in bytes: they are held until all have come, because the next
/// statement must find the shard's part at rest.
const RESULT_BYTES_MAX: usize = 64 << 20;

/// What a session remembers.
#[derive(Default)]
pub(super) struct State {
    txn: Option<Arc<Txn>>,
    last_insert_id: Option<i64>,
}

impl Executor {
    /// Carry out a request in a session.
    async fn execute_with(&self, state: &mut State, mut request: Request) -> Result<Response, Failure> {
        let deadline = self.deadline_of(&request);
        if let Some(control) = control::read(&request.text) {
            return self.control(state, control?, &request, &deadline).await;
        }
        script::name_last_id(&mut request.text, state.last_insert_id);
        let response = match state.txn.clone() {
            None => self.execute_alone(request).await?,
            Some(txn) => {
                let entered = txn.enter();
                let done = match entered {
                    Ok(()) => txn.awake(self.execute_inside(&txn, request)).await,
                    Err(failure) => Err(failure),
                };
                txn.leave().await;
                done?
            }
        };
        if let Output::Effects(effects) = &response.output {
            state.last_insert_id =
                effects.iter().rev().find_map(|effect| effect.last_insert_id).or(state.last_insert_id);
        }
        Ok(response)
    }

    fn deadline_of(&self, request: &Request) -> Deadline {
        let limit = request.timeout.unwrap_or(self.settings.limits.statement_timeout).min(STATEMENT_TIMEOUT_MAX);
        Deadline::after(limit)
    }

    /// Begin, end or mark a transaction.
    async fn control(
        &self,
        state: &mut State,
        control: Control,
        request: &Request,
        deadline: &Deadline,
    ) -> Result<Response, Failure> {
        let Some(txn) = state.txn.clone() else {
            return match control {
                Control::Begin(mode) => {
                    state.txn = Some(Arc::new(Txn::begin(self.backend.clone(), mode)));
                    Ok(self.done(request, Default::default()))
                }
                _ => Err(Failure::new("25P01", "no transaction is open in this session", "BEGIN opens one")),
            };
        };
        match control {
            Control::Begin(_) => {
                let hint = "COMMIT or ROLLBACK ends it; SAVEPOINT marks a place in it";
                Err(Failure::new("25001", "a transaction is open in this session already", hint))
            }
            Control::Rollback => {
                state.txn = None;
                txn.roll_back().await;
                Ok(self.done(request, Default::default()))
            }
            Control::Commit => {
                state.txn = None;
                if let Err(failure) = txn.enter() {
                    txn.roll_back().await;
                    let hint = "nothing of it was done: begin it again";
                    return Err(Failure { hint: hint.to_owned(), ..failure });
                }
                // A COMMIT repeated under its key finds no transaction; so the key names this one's.
                let key = write::Key::of(request, deadline.limit()).idempotency();
                let fingerprint = key.fingerprint ^ txn.id().0 as u64;
                let key = Idempotency { fingerprint, ..key };
                let committed = self.commit(txn, key, *deadline).await?;
                Ok(self.done(request, committed.indexes))
            }
            Control::Savepoint(_) | Control::RollbackTo(_) | Control::Release(_) => {
                let done = match txn.enter() {
                    Ok(()) => mark(&txn, &control, deadline).await,
                    Err(failure) => Err(Setback::Failed(failure)),
                };
                txn.leave().await;
                match done {
                    Ok(()) => Ok(self.done(request, Default::default())),
                    Err(Setback::Refused { refusal, .. }) => Err(transaction::conflict(&refusal)),
                    Err(Setback::Failed(failure) | Setback::Busy(failure)) => Err(failure),
                }
            }
        }
    }

    /// Commit in a task of its own: a client that hangs up now has said what it wants.
    async fn commit(
        &self,
        txn: Arc<Txn>,
        key: pleat_engine::Idempotency,
        deadline: Deadline,
    ) -> Result<Committed, Failure> {
        let forgetting = self.forgetting.clone();
        let committing = pleat_consensus::spawn(async move { txn.commit(&forgetting, key, &deadline).await });
        committing.await.unwrap_or_else(|error| Err(Failure::internal(format!("the commit ended early: {error}"))))
    }

    /// The answer to what changes nothing by itself.
    fn done(&self, request: &Request, indexes: BTreeMap<ShardId, u64>) -> Response {
        let catalog = self.backend.catalog();
        let mut token = request.token.clone();
        for (shard, index) in &indexes {
            token = Some(Token::after_write(token.as_ref(), &catalog, *shard, *index));
        }
        Response {
            output: Output::Effects(vec![Effect::default()]),
            touched: Touched::of(indexes.into_keys().collect()),
            generation: catalog.generation,
            token,
            notice: None,
            operation: None,
            replayed: false,
        }
    }

    /// Carry out a request inside a transaction.
    async fn execute_inside(&self, txn: &Arc<Txn>, request: Request) -> Result<Response, Failure> {
        let deadline = self.deadline_of(&request);
        let run = Run {
            hint: Hint::of(&request.text)?,
            deadline,
            now_ms: self.backend.now_ms(),
            seed: Uuid::new_v4().as_u64_pair().1,
            key: write::Key::new(None, 0, deadline.limit()),
            ids: Mutex::default(),
            request,
        };
        let fresh = txn.is_untouched();
        let attempted = self.rerouting(&deadline, |attempt| {
            let run = &run;
            async move {
                let catalog = txn.catalog().unwrap_or_else(|| attempt.catalog.clone());
                let attempt = Attempt { catalog, inside: Some(txn.clone()), ..attempt };
                let done = self.attempt_inside(run, &attempt, txn).await;
                let done = match done {
                    Ok(_) if !txn.is_whole() => Err(half_seen(txn)),
                    done => done,
                };
                match done {
                    // Nobody was told anything yet: a newer catalog may be all that is needed.
                    Err(Setback::Refused { refusal, unsure }) if fresh => {
                        txn.start_over().await;
                        Err(Setback::Refused { refusal, unsure })
                    }
                    Err(Setback::Refused { refusal, .. }) => {
                        let failure = transaction::conflict(&refusal);
                        txn.doom(&failure);
                        Err(Setback::Failed(failure))
                    }
                    done => done,
                }
            }
        });
        // Nothing of a transaction is to be repeated by itself.
        attempted.await.map_err(|failure| Failure { retryable: false, ..failure })
    }

    async fn attempt_inside(&self, run: &Run, attempt: &Attempt, txn: &Txn) -> Result<Response, Setback> {
        let catalog = &attempt.catalog;
        let plan = self.plan(&run.request.text, catalog)?;
        match plan.as_ref() {
            Statement::Read(plan) => {
                let response = self.read(run, attempt, plan).await?;
                Ok(held(response).await.inspect_err(|failure| {
                    if is_end(failure) {
                        txn.doom(failure);
                    }
                })?)
            }
            Statement::Write(_) if txn.mode.read_only => Err(Setback::Failed(Failure::new(
                "25006",
                "the transaction only reads: it was begun with READ ONLY",
                "begin it without READ ONLY",
            ))),
            Statement::Write(plan) => {
                let mut attempt = attempt.clone();
                loop {
                    match self.write_inside(run, &attempt, txn, plan).await {
                        Err(Setback::Failed(failure)) => self.draw_again(run, &mut attempt, plan, failure)?,
                        done => return done.map(|(response, _)| response),
                    }
                }
            }
            Statement::Ddl(_) => Err(Setback::Failed(Failure::new(
                "25001",
                "the schema can't be changed inside a transaction",
                "end the transaction first; a schema change is all or none by itself",
            ))),
            Statement::Explain(_) => explain::explain(&plan, run, catalog),
            Statement::Analyze(inner) => self.analyze(run, attempt.clone(), inner).await,
        }
    }

    /// Write in a transaction: one statement after the other, each seeing what those before it did. Gives the answer, and
    /// what each shard's results count for in it.
    async fn write_inside(
        &self,
        run: &Run,
        attempt: &Attempt,
        txn: &Txn,
        plan: &WritePlan,
    ) -> Result<(Response, BTreeMap<ShardId, Vec<Share>>), Setback> {
        let catalog = &attempt.catalog;
        let ids = self.ids_for(run, attempt, plan).await?;
        let params = run.request.params.borrow();
        let route = plan.route(&params, catalog.partition_count, &ids)?;
        let owners = match route.target {
            WriteTarget::Units(units) => Some(place::owners(&units, catalog)?),
            WriteTarget::Reference | WriteTarget::Everywhere { .. } | WriteTarget::Spread { .. } => None,
        };
        let mut results: Vec<Did> = Vec::new();
        let mut notices = Vec::new();
        match owners {
            Some(mut owners) if owners.len() <= 1 => {
                let (shard, units) = match owners.pop_first() {
                    Some(owner) => owner,
                    None => (place::anchor(catalog)?, Vec::new()),
                };
                let parts = Parts::whole(shard, units, route.statements);
                results.extend(txn.write(parts.shards, catalog, &run.deadline).await?);
            }
            _ => {
                let spread = plan.spread(&params, catalog.partition_count, &ids)?;
                let several = spread.len() > 1;
                if several {
                    txn.savepoint(REQUEST, &run.deadline).await?;
                }
                for (at, write) in spread.iter().enumerate() {
                    let done = async {
                        let parts = self.parts_of(run, attempt, at, write).await?;
                        notices.extend(parts.notices);
                        txn.write(parts.shards, catalog, &run.deadline).await
                    };
                    match done.await {
                        Ok(done) => results.extend(done),
                        Err(setback) if several => {
                            txn.roll_back_to(REQUEST, &run.deadline).await?;
                            txn.release(REQUEST, &run.deadline).await?;
                            return Err(setback);
                        }
                        Err(setback) => return Err(setback),
                    }
                }
                if several {
                    txn.release(REQUEST, &run.deadline).await?;
                }
            }
        }
        let of_all = results.iter().map(|(_, shares, results)| (&**shares, results.clone()));
        let effects = combine(plan.statement_count(), of_all);
        let mut shares: BTreeMap<ShardId, Vec<Share>> = BTreeMap::new();
        results.into_iter().for_each(|(shard, more, _)| shares.entry(shard).or_default().extend(more));
        let shards = txn.look().shards;
        let response = Response {
            output: Output::Effects(effects),
            touched: Touched::of(shards.into_iter().filter(|(_, wrote)| *wrote).map(|(shard, _)| shard).collect()),
            generation: catalog.generation,
            token: None,
            notice: (!notices.is_empty()).then(|| notices.join("; ")),
            operation: None,
            replayed: false,
        };
        Ok((response, shares))
    }
}

/// One of the snapshots has a transaction that another one lacks.
fn half_seen(txn: &Txn) -> Setback {
    let id = txn.look().id;
    Setback::Refused { refusal: pleat_engine::Refusal::Prepared { txn: id }, unsure: None }
}

async fn mark(txn: &Txn, control: &Control, deadline: &Deadline) -> Result<(), Setback> {
    match control {
        Control::Savepoint(name) => txn.savepoint(name, deadline).await,
        Control::RollbackTo(name) => txn.roll_back_to(name, deadline).await,
        Control::Release(name) => txn.release(name, deadline).await,
        Control::Begin(_) | Control::Commit | Control::Rollback => Ok(()),
    }
}

/// The response with all of its rows in memory.
async fn held(response: Response) -> Result<Response, Failure> {
    let Output::Rows { columns, rows: mut chunks } = response.output else { return Ok(response) };
    let (mut held, mut bytes) = (Vec::new(), 0_usize);
    while let Some(chunk) = chunks.try_next().await? {
        bytes += chunk.iter().flatten().map(Value::size).sum::<usize>();
        if bytes > RESULT_BYTES_MAX {
            return Err(Failure::new(
                "54000",
                format!("the result is larger than {RESULT_BYTES_MAX} bytes, which is what a transaction holds"),
                "add a LIMIT, or read it outside of the transaction",
            ));
        }
        held.push(Ok(chunk));
    }
    Ok(Response { output: Output::Rows { columns, rows: stream::iter(held).boxed() }, ..response })
}

/// Whether a failure that came while rows arrived means that the shard's part is gone.
fn is_end(failure: &Failure) -> bool {
    failure.code.starts_with("40") || failure.code.starts_with("08") || matches!(&*failure.code, "25P03" | "57P03")
}
