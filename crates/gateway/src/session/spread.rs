//! Writes over several shards: atomic, by two-phase commit.
//!
//! [`pleat_sql`] says for each statement how it is carried out over shards; [`super::parts`] cuts that by owner, and
//! [`super::two_phase`] carries it out. What comes to one shard after all is an ordinary write there. A statement whose
//! rows only a read can tell is read first; the shards that were read are held to the versions that they were read at,
//! and when something came in between, it is read again, a few times.
//!
//! # Repetitions
//!
//! A request with a key of its client's must be recognised when it comes again, also when it would go elsewhere
//! by then. Rows that say their keys go to the partitions that they went to, and the key with them. What a read came to may
//! be different the next time; therefore the *home* of the key, a partition that depends on the key alone, takes
//! part in such a write, and so in its repetition: the client's, and our own after an answer was lost.
//!
//! A request whose statements must go one after the other ([`super::interactive`]) is looked for before it runs: its own rows
//! would be in its way. That is no race, because the home of the key takes part in it as well.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::TryStreamExt;
use parking_lot::Mutex;
use pleat_cluster::{Catalog, PartitionId, ShardId, Value, partition_of_text};
use pleat_engine::{Action, Outcome, Refusal, SqlFailure};
use pleat_host::HostError;
use pleat_sql::{COMPUTED_ROWS_MAX, ComputedWrite, Ids, SpreadWrite, WritePlan};

use super::parts::{Parts, Remembered, ShardPart, combine};
use super::reroute::{Setback, refused_spread, setback};
use super::two_phase::{Ended, Part, TwoPhase, new_txn};
use super::{
    Attempt, Consistency, Effect, Executor, Failure, Output, Params, Request, Response, Run, Token, Touched, place,
};

/// How often a write is computed anew because a shard that it had read changed.
const COMPUTED_ROUNDS_MAX: u32 = 10;
/// Bytes of the rows that one statement may read in order to write them.
const COMPUTED_BYTES_MAX: usize = 32 << 20;
/// A unit that no shard owns: whoever is asked to write it looks for the request's key, and then refuses.
const NOWHERE: PartitionId = PartitionId(u32::MAX);

/// What a shard did.
type Done = BTreeMap<ShardId, u64>;

impl Executor {
    /// Carry out a write that is not one shard's, or that has to be read first.
    pub(super) async fn write_spread(
        &self,
        run: &Run,
        attempt: &Attempt,
        plan: &WritePlan,
        ids: &Ids,
    ) -> Result<Response, Setback> {
        if plan.is_stepwise() {
            return self.write_stepwise(run, attempt, plan).await;
        }
        let catalog = &attempt.catalog;
        let spread = match plan.spread(&run.request.params.borrow(), catalog.partition_count, ids) {
            // What can't be spread may have been done when its rows were one shard's.
            Err(error) => return self.done_before(run, attempt, plan.statement_count(), error.into()).await,
            Ok(spread) => spread,
        };
        for _ in 0..COMPUTED_ROUNDS_MAX {
            let parts = self.parts(run, attempt, &spread).await?;
            if run.hint.no_scatter && parts.shards.len() > 1 {
                let failure = place::would_scatter(parts.shards.keys());
                return self.done_before(run, attempt, plan.statement_count(), failure).await;
            }
            if let Some(response) = self.carry_out(run, attempt, plan.statement_count(), parts).await? {
                return Ok(response);
            }
            if run.deadline.is_over() {
                break;
            }
        }
        Err(Setback::Failed(Failure::passing(
            "40001",
            "what this write has read was changed by others each time before it could write",
            "nothing was done: send the request again",
        )))
    }

    /// Cut a request's statements by shard.
    async fn parts(&self, run: &Run, attempt: &Attempt, spread: &[SpreadWrite]) -> Result<Parts, Setback> {
        let catalog = &attempt.catalog;
        let mut parts = Parts::default();
        for (at, write) in spread.iter().enumerate() {
            self.add_part(run, attempt, &mut parts, at, write).await?;
        }
        let computed = spread.iter().any(|write| matches!(write, SpreadWrite::Computed(_)));
        if computed {
            let (owner, home) = home_of(run, catalog)?;
            parts.shards.entry(owner).or_default().units.insert(home);
        }
        Ok(parts)
    }

    /// Cut one statement of a request by shard.
    pub(super) async fn parts_of(
        &self,
        run: &Run,
        attempt: &Attempt,
        at: usize,
        write: &SpreadWrite,
    ) -> Result<Parts, Setback> {
        let mut parts = Parts::default();
        self.add_part(run, attempt, &mut parts, at, write).await?;
        parts.agree(run.now_ms, run.seed);
        Ok(parts)
    }

    async fn add_part(
        &self,
        run: &Run,
        attempt: &Attempt,
        parts: &mut Parts,
        at: usize,
        write: &SpreadWrite,
    ) -> Result<(), Setback> {
        let SpreadWrite::Computed(write) = write else { return Ok(parts.add(at, write, &attempt.catalog)?) };
        let (rows, versions) = self.read_for(run, attempt, write).await?;
        let ids = self.ids_for_rows(run, attempt, write, &rows).await?;
        parts.add_keyed(at, write.statements(&rows, &ids)?, &attempt.catalog)?;
        versions.into_iter().for_each(|(shard, version)| parts.validate(shard, version));
        Ok(())
    }

    /// The rows that a write is computed from, and the version of each shard that they were read at.
    async fn read_for(
        &self,
        run: &Run,
        attempt: &Attempt,
        write: &ComputedWrite,
    ) -> Result<(Vec<Vec<Value>>, BTreeMap<ShardId, u64>), Setback> {
        let pleat_sql::Params::Positional(params) = write.params() else {
            return Err(Failure::internal("a computed write names its parameters").into());
        };
        let request = Request {
            params: Params::Positional(params.to_vec()),
            consistency: Consistency::Strong,
            origin: run.request.origin,
            ..Request::default()
        };
        let run = Run { request, key: run.key.clone(), ids: Mutex::default(), ..*run };
        let versions = Arc::new(Mutex::new(BTreeMap::new()));
        // What a transaction has read is held to its version by its parts.
        let noted = attempt.inside.is_none().then(|| versions.clone());
        let attempt = Attempt { versions: noted, ..attempt.clone() };
        let response = Box::pin(self.read(&run, &attempt, write.read())).await?;
        let Output::Rows { rows: mut chunks, .. } = response.output else {
            return Err(Failure::internal("a read gave no rows").into());
        };
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while let Some(chunk) = chunks.try_next().await? {
            bytes += chunk.iter().flatten().map(Value::size).sum::<usize>();
            rows.extend(chunk);
            if rows.len() > COMPUTED_ROWS_MAX || bytes > COMPUTED_BYTES_MAX {
                return Err(too_many_rows().into());
            }
        }
        let versions = versions.lock().clone();
        Ok((rows, versions))
    }

    /// Do all parts or none. `None`: a shard that was read has changed since.
    async fn carry_out(
        &self,
        run: &Run,
        attempt: &Attempt,
        statements: usize,
        mut parts: Parts,
    ) -> Result<Option<Response>, Setback> {
        if parts.shards.len() == 1
            && let Some((shard, part)) = parts.shards.pop_first()
        {
            return self.carry_out_on_one(run, attempt, statements, shard, part, parts.notices).await;
        }
        parts.stamp(run.now_ms, run.seed);
        let labelled = run.key.is_from_client();
        if labelled {
            parts.label();
        }
        let mut shares = BTreeMap::new();
        let mut seats = BTreeMap::new();
        for (shard, part) in parts.shards {
            shares.insert(shard, part.shares);
            let units = part.units.into_iter().collect();
            seats.insert(shard, Part::New { units, statements: part.statements, base: part.base });
        }
        let transaction = TwoPhase {
            backend: self.backend.clone(),
            forgetting: self.forgetting.clone(),
            txn: new_txn(),
            planned: attempt.catalog.planned(),
            parts: seats,
            idempotency: Some(run.key.idempotency()),
            in_order: attempt.refused > 0,
            deadline: run.deadline,
        };
        match transaction.run().await {
            Ended::Committed(done) => {
                let skip = usize::from(labelled);
                let indexes = done.iter().map(|(shard, (_, index))| (*shard, *index)).collect();
                let results = done.into_iter().filter_map(|(shard, (mut results, _))| {
                    let shares: &[_] = shares.get(&shard)?;
                    Some((shares, results.split_off(skip.min(results.len()))))
                });
                let effects = combine(statements, results);
                let wrote = indexes_of_writers(indexes, &shares);
                Ok(Some(answer(run, attempt, effects, wrote, parts.notices, false)))
            }
            Ended::Before(results) => {
                let mut remembered = Remembered::default();
                results.into_values().for_each(|results| remembered.add(results));
                self.remembered(run, attempt, statements, remembered, None).await.map(Some)
            }
            Ended::Refused(Refusal::Conflict { .. }) => Ok(None),
            Ended::Refused(refusal) => Err(refused_spread(refusal, attempt.refused)),
            Ended::Failed(shard, failure) => {
                let failed = (failure.statement as usize).checked_sub(usize::from(labelled));
                let share = failed.and_then(|at| shares.get(&shard)?.get(at));
                let statement = share.map_or(0, |share| share.statement as u32);
                Err(Setback::Failed(SqlFailure { statement, ..failure }.into()))
            }
            Ended::Trouble(error) => Err(setback(error)),
            Ended::Unfinished => Err(run.key.setback(HostError::Spreading(
                "the transaction is committed, but did not reach every shard within the time".into(),
            ))),
            Ended::Unknown(why) => Err(run.key.setback(HostError::OutcomeUnknown(why))),
        }
    }

    /// A write that came to one shard after all.
    async fn carry_out_on_one(
        &self,
        run: &Run,
        attempt: &Attempt,
        statements: usize,
        shard: ShardId,
        part: ShardPart,
        notices: Vec<String>,
    ) -> Result<Option<Response>, Setback> {
        let action = Action::Write {
            idempotency: Some(run.key.idempotency()),
            units: part.units.into_iter().collect(),
            statements: part.statements,
            base: part.base,
        };
        let written = self.backend.write(shard, attempt.catalog.planned(), action, run.deadline.left()).await;
        let written = written.map_err(|error| run.key.setback(error))?;
        let index = Done::from([(shard, written.index)]);
        match written.outcome {
            Outcome::Done { results } => {
                let effects = combine(statements, [(&*part.shares, results)].into_iter());
                Ok(Some(answer(run, attempt, effects, index, notices, false)))
            }
            Outcome::Replayed { results, .. } => {
                let at = Some((shard, written.index));
                self.remembered(run, attempt, statements, Remembered::of(results), at).await.map(Some)
            }
            Outcome::Refused(Refusal::Conflict { .. }) if !written.uncertain => Ok(None),
            Outcome::Refused(refusal @ Refusal::NotRouted { .. }) if !written.uncertain => {
                Err(refused_spread(refusal, attempt.refused))
            }
            Outcome::Refused(refusal) => Err(run.key.refused(refusal, written.uncertain)),
            Outcome::Failed(failure) => {
                let share = part.shares.get(failure.statement as usize);
                let statement = share.map_or(failure.statement, |share| share.statement as u32);
                Err(Setback::Failed(SqlFailure { statement, ..failure }.into()))
            }
            _ => Err(Failure::internal("the shard answered a write with another action's outcome").into()),
        }
    }

    /// The answer to a request that was done before, as far as it is known; all of it, when it was found `at` a shard.
    ///
    /// Where some of its parts were not asked, all shards are: by a write that none of them would accept, for the
    /// sake of the key that they look at first.
    pub(super) async fn remembered(
        &self,
        run: &Run,
        attempt: &Attempt,
        statements: usize,
        mut remembered: Remembered,
        at: Option<(ShardId, u64)>,
    ) -> Result<Response, Setback> {
        let catalog = &attempt.catalog;
        if let Some((shard, index)) = at.filter(|_| remembered.is_complete()) {
            let effects = remembered.effects(statements);
            return Ok(answer(run, attempt, effects, Done::from([(shard, index)]), Vec::new(), true));
        }
        self.look_for(run, attempt, &mut remembered).await?;
        // Where its rows were written at the time is not remembered: any shard may have them by now.
        let shards = catalog.active_shards().map(|shard| shard.id).collect();
        Ok(Response {
            touched: Touched::of(shards),
            token: Some(Token::of_leaders(run.request.token.as_ref(), catalog)),
            ..answer(run, attempt, remembered.effects(statements), Done::new(), Vec::new(), true)
        })
    }

    /// Ask all shards for what they remember of the request, until nothing is missing.
    async fn look_for(&self, run: &Run, attempt: &Attempt, remembered: &mut Remembered) -> Result<(), Setback> {
        for shard in attempt.catalog.active_shards() {
            let idempotency = Some(run.key.idempotency());
            let (units, statements) = (vec![NOWHERE], Vec::new());
            let action = Action::Write { idempotency, units, statements, base: None };
            let planned = attempt.catalog.planned();
            let written = self.backend.write(shard.id, planned, action, run.deadline.left()).await;
            let written = written.map_err(|error| run.key.setback(error))?;
            match written.outcome {
                Outcome::Replayed { results, .. } => remembered.add(results),
                Outcome::Refused(Refusal::NotOwned { .. }) => {}
                Outcome::Refused(refusal) => return Err(run.key.refused(refusal, written.uncertain)),
                _ => return Err(Failure::internal("a key was looked for, and something else was answered").into()),
            }
            if remembered.is_complete() {
                break;
            }
        }
        Ok(())
    }

    /// The answer of a request that can't be carried out as things are, if it was carried out before.
    async fn done_before(
        &self,
        run: &Run,
        attempt: &Attempt,
        statements: usize,
        failure: Failure,
    ) -> Result<Response, Setback> {
        self.found(run, attempt, statements).await?.ok_or_else(|| failure.into())
    }

    /// The answer of a request that was carried out before under its client's key. A part of it that is remembered anywhere
    /// is enough: all of them were done.
    pub(super) async fn found(
        &self,
        run: &Run,
        attempt: &Attempt,
        statements: usize,
    ) -> Result<Option<Response>, Setback> {
        let mut remembered = Remembered::default();
        if run.key.is_from_client() {
            self.look_for(run, attempt, &mut remembered).await?;
        }
        match remembered.is_empty() {
            true => Ok(None),
            false => self.remembered(run, attempt, statements, remembered, None).await.map(Some),
        }
    }
}

/// The shards that were written, not only validated.
fn indexes_of_writers(indexes: Done, shares: &BTreeMap<ShardId, Vec<super::parts::Share>>) -> Done {
    indexes.into_iter().filter(|(shard, _)| shares.get(shard).is_some_and(|shares| !shares.is_empty())).collect()
}

fn answer(
    run: &Run,
    attempt: &Attempt,
    effects: Vec<Effect>,
    indexes: Done,
    notices: Vec<String>,
    replayed: bool,
) -> Response {
    let catalog = &attempt.catalog;
    let mut token = run.request.token.clone();
    for (shard, index) in &indexes {
        token = Some(Token::after_write(token.as_ref(), catalog, *shard, *index));
    }
    Response {
        output: Output::Effects(effects),
        touched: Touched::of(indexes.into_keys().collect()),
        generation: catalog.generation,
        token,
        notice: (!notices.is_empty()).then(|| notices.join("; ")),
        operation: None,
        replayed,
    }
}

/// The partition at which a request with this key is known, wherever its rows go.
pub(super) fn home(key: &str, catalog: &Catalog) -> PartitionId {
    partition_of_text(key.as_bytes(), catalog.partition_count)
}

/// The home of a request's key, and who owns it.
pub(super) fn home_of(run: &Run, catalog: &Catalog) -> Result<(ShardId, PartitionId), Failure> {
    let home = home(&run.key.idempotency().key, catalog);
    let owner = catalog.owner(home).ok_or_else(|| Failure::internal(format!("{home} has no owner")))?;
    Ok((owner, home))
}

fn too_many_rows() -> Failure {
    Failure::new(
        "54000",
        format!("the write would read more than {COMPUTED_ROWS_MAX} rows or {COMPUTED_BYTES_MAX} bytes first"),
        "do it in several writes, for some of the rows each",
    )
}
