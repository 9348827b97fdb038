//! Writes: one shard, exactly once; or reference tables, on every shard. Several shards are [`super::spread`]'s.
//!
//! Every write goes out under an idempotency key: the client's, or one made up for this request. So the
//! host may send it again when a leader is lost, and the executor may send it to another shard when its
//! partition has moved, without ever doing it twice: the key is stored with the effect, and moves with it.
//!
//! An outcome can still stay unknown, when the time is over before any leader answers. With a key of its own
//! a client may then repeat the request; without one it must look first, and the failure says so.

use std::time::Duration;

use pleat_cluster::{PartitionId, ShardId};
use pleat_engine::{Action, Idempotency, Outcome, Refusal, SqlFailure, Statement, StatementResult};
use pleat_host::HostError;
use pleat_sql::{Bound, Ids, WritePlan, WriteTarget};
use uuid::{NoContext, Timestamp, Uuid};

use super::parts::Remembered;
use super::reroute::{Setback, refused, setback};
use super::{Attempt, Effect, Executor, Failure, Output, Params, Request, Response, Run, Token, Touched, ids, place};
use crate::settings::CLIENT_KEY_TTL;

/// How much longer than the request the shards remember a key that was made up for it.
const OWN_KEY_MARGIN: Duration = Duration::from_secs(60);

/// A key for one request. Those made up at the same time begin alike, whichever node makes them up, so that a shard's index of keys grows at one
/// place.
fn internal_key() -> String {
    format!("i/{}", Uuid::new_v7(Timestamp::now(NoContext)).simple())
}

/// The name under which the shards know a write.
#[derive(Clone, Debug)]
pub(super) struct Key {
    idempotency: Idempotency,
    /// Whether the client chose it, so that repeating the request is safe.
    from_client: bool,
}

impl Key {
    /// The key of a request.
    pub(super) fn of(request: &Request, limit: Duration) -> Self {
        let fingerprint = fingerprint(&request.text, &request.params);
        let client = request.idempotency_key.as_ref();
        Self::new(client.map(|key| format!("c/{key}")), fingerprint, limit)
    }

    /// A key that the client chose, or one of our own that outlives the request a little.
    pub(super) fn new(client: Option<String>, fingerprint: u64, limit: Duration) -> Self {
        let from_client = client.is_some();
        let ttl = if from_client { CLIENT_KEY_TTL } else { limit + OWN_KEY_MARGIN };
        let key = client.unwrap_or_else(internal_key);
        Self { idempotency: Idempotency { key, fingerprint, ttl_ms: ttl.as_millis() as u64 }, from_client }
    }

    /// The same for a part of the request.
    pub(super) fn part(&self, name: &str, fingerprint: u64) -> Self {
        let key = format!("{}/{name}", self.idempotency.key);
        let idempotency = Idempotency { key, fingerprint, ..self.idempotency };
        Self { idempotency, from_client: self.from_client }
    }

    /// Whether a client may repeat the request under it.
    pub(super) fn is_from_client(&self) -> bool {
        self.from_client
    }

    pub(super) fn idempotency(&self) -> Idempotency {
        self.idempotency.clone()
    }

    /// Sort a refusal of a write: when an earlier attempt was lost, it does not mean that nothing was done.
    pub(super) fn refused(&self, refusal: Refusal, uncertain: bool) -> Setback {
        let unknown = || HostError::OutcomeUnknown("an attempt was lost, and its data is moving since".into());
        match (refused(refusal), uncertain) {
            (Setback::Refused { refusal, .. }, true) => match self.setback(unknown()) {
                Setback::Failed(failure) => Setback::Refused { refusal, unsure: Some(Box::new(failure)) },
                other => other,
            },
            (setback, _) => setback,
        }
    }

    /// Sort the host's error, knowing whether the client can repeat the request.
    pub(super) fn setback(&self, error: HostError) -> Setback {
        match error {
            HostError::OutcomeUnknown(_) | HostError::Spreading(_) if self.from_client => Setback::Failed(Failure {
                retryable: true,
                hint: "send the request again with the same key: it is not done twice".into(),
                ..error.into()
            }),
            error => setback(error),
        }
    }
}

impl Executor {
    pub(super) async fn write(&self, run: &Run, attempt: &Attempt, plan: &WritePlan) -> Result<Response, Setback> {
        let mut attempt = attempt.clone();
        loop {
            let ids = self.ids_for(run, &attempt, plan).await?;
            match self.write_with(run, &attempt, plan, &ids).await {
                Err(Setback::Failed(failure)) => self.draw_again(run, &mut attempt, plan, failure)?,
                done => return done,
            }
        }
    }

    /// After a write that failed, and so did nothing: whether it may go again with other ids, because one that a row was
    /// given may be in use. See [`ids`].
    pub(super) fn draw_again(
        &self,
        run: &Run,
        attempt: &mut Attempt,
        plan: &WritePlan,
        failure: Failure,
    ) -> Result<(), Setback> {
        if failure.code != "23505" || attempt.collisions >= ids::COLLISIONS_MAX {
            return Err(failure.into());
        }
        let wanted = plan.ids_wanted(&run.request.params.borrow())?;
        if wanted.is_empty() {
            return Err(failure.into());
        }
        attempt.collisions += 1;
        run.ids.lock().clear();
        wanted.iter().for_each(|wanted| self.blocks.give_up(wanted.table));
        Ok(())
    }

    async fn write_with(&self, run: &Run, attempt: &Attempt, plan: &WritePlan, ids: &Ids) -> Result<Response, Setback> {
        let catalog = &attempt.catalog;
        let route = plan.route(&run.request.params.borrow(), catalog.partition_count, ids)?;
        let units = match route.target {
            WriteTarget::Reference => return self.write_reference(run, attempt, route.statements).await,
            WriteTarget::Units(units) => units,
            WriteTarget::Everywhere { units, .. } if place::sole_shard(catalog).is_some() => {
                let all = (0..catalog.partition_count).map(PartitionId);
                pleat_sql::Units { partitions: all.collect(), ..units }
            }
            WriteTarget::Everywhere { .. } | WriteTarget::Spread { .. } => {
                return self.write_spread(run, attempt, plan, ids).await;
            }
        };
        let mut owners = place::owners(&units, catalog)?.into_iter();
        let (shard, units) = match (owners.next(), owners.next()) {
            (Some(owner), None) => owner,
            // No unit at all: a key that no row can have. The anchor finds nothing to change.
            (None, _) => (place::anchor(catalog)?, Vec::new()),
            (Some(_), Some(_)) => return self.write_spread(run, attempt, plan, ids).await,
        };
        self.write_on(run, attempt, shard, units, route.statements).await
    }

    async fn write_on(
        &self,
        run: &Run,
        attempt: &Attempt,
        shard: ShardId,
        units: Vec<PartitionId>,
        statements: Vec<Bound>,
    ) -> Result<Response, Setback> {
        let catalog = &attempt.catalog;
        let count = statements.len();
        let statements = statements.into_iter().map(statement).collect();
        let idempotency = Some(run.key.idempotency());
        let action = Action::Write { idempotency, units, statements, base: None };
        let written = self.backend.write(shard, catalog.planned(), action, run.deadline.left()).await;
        let written = written.map_err(|error| run.key.setback(error))?;
        if let Outcome::Replayed { results, .. } = written.outcome {
            let remembered = Remembered::of(results);
            return self.remembered(run, attempt, count, remembered, Some((shard, written.index))).await;
        }
        let (effects, replayed) = effects(written.outcome, &run.key, written.uncertain)?;
        Ok(Response {
            output: Output::Effects(effects),
            touched: Touched::One(shard),
            generation: catalog.generation,
            token: Some(Token::after_write(run.request.token.as_ref(), catalog, shard, written.index)),
            notice: None,
            operation: None,
            replayed,
        })
    }

    async fn write_reference(&self, run: &Run, attempt: &Attempt, statements: Vec<Bound>) -> Result<Response, Setback> {
        let catalog = &attempt.catalog;
        let anchor = place::anchor(catalog)?;
        let statements = statements.into_iter().map(statement).collect();
        let action = Action::ReferenceWrite { idempotency: Some(run.key.idempotency()), statements };
        let written = self.backend.write_reference(catalog.planned(), action, run.deadline.left()).await;
        let written = written.map_err(|error| run.key.setback(error))?;
        let (effects, replayed) = effects(written.outcome, &run.key, written.uncertain)?;
        let token = Token::after_reference_write(run.request.token.as_ref(), catalog, anchor, written.index);
        Ok(Response {
            output: Output::Effects(effects),
            touched: Touched::of(catalog.active_shards().map(|shard| shard.id).collect()),
            generation: catalog.generation,
            token: Some(token),
            notice: None,
            operation: None,
            replayed,
        })
    }
}

/// A statement as the engine takes it.
pub(super) fn statement(bound: Bound) -> Statement {
    Statement::new(bound.sql.as_ref(), bound.params)
}

/// What a write's outcome means to the client, and whether it had been done before.
pub(super) fn effects(outcome: Outcome, key: &Key, uncertain: bool) -> Result<(Vec<Effect>, bool), Setback> {
    match outcome {
        Outcome::Done { results } => Ok((results.into_iter().map(Effect::from).collect(), false)),
        Outcome::Replayed { results, .. } => Ok((results.into_iter().map(Effect::from).collect(), true)),
        Outcome::Reference { results, replayed, .. } => Ok((results.into_iter().map(Effect::from).collect(), replayed)),
        Outcome::Refused(refusal) => Err(key.refused(refusal, uncertain)),
        Outcome::Failed(failure) => Err(Setback::Failed(failure.into())),
        Outcome::Bulk { .. } | Outcome::Moved(_) | Outcome::Prepared { .. } => {
            Err(Failure::internal("the shard answered a write with another action's outcome").into())
        }
    }
}

impl From<StatementResult> for Effect {
    fn from(result: StatementResult) -> Self {
        Effect {
            columns: result.columns,
            rows: result.rows,
            rows_affected: result.rows_affected,
            last_insert_id: result.last_insert_rowid,
        }
    }
}

impl From<SqlFailure> for Failure {
    fn from(failure: SqlFailure) -> Self {
        let which =
            if failure.statement > 0 { format!("statement {}: ", failure.statement + 1) } else { String::new() };
        // Room for idempotency keys comes back as old ones expire; nothing was done.
        let retryable = failure.code == "53400";
        Failure {
            code: failure.code.into(),
            retryable,
            ..Failure::new("", format!("{which}{}", failure.message), failure.hint.unwrap_or_default())
        }
    }
}

/// A hash of a request by which the shards tell a repetition from a mistake. Part of what is stored, so it
/// must not depend on the version of a library: FNV-1a over an unambiguous encoding.
fn fingerprint(text: &str, params: &Params) -> u64 {
    match params {
        Params::Positional(values) => fingerprint_of(&(text, values)),
        Params::Named(values) => fingerprint_of(&(text, values)),
    }
}

/// The fingerprint of anything that postcard encodes.
pub(super) fn fingerprint_of<T: serde::Serialize>(value: &T) -> u64 {
    // Encoding fails for no type that is fingerprinted here; if it did, the key alone would have to do.
    let bytes = postcard::to_allocvec(value).unwrap_or_default();
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use pleat_cluster::Value;

    use super::*;

    #[test]
    fn a_fingerprint_tells_requests_apart_and_never_changes() {
        let positional = |values: &[Value]| Params::Positional(values.to_vec());
        let one = fingerprint("INSERT INTO t VALUES (?)", &positional(&[Value::Integer(1)]));
        assert_eq!(one, fingerprint("INSERT INTO t VALUES (?)", &positional(&[Value::Integer(1)])));
        assert_ne!(one, fingerprint("INSERT INTO t VALUES (?)", &positional(&[Value::Integer(2)])));
        assert_ne!(one, fingerprint("INSERT INTO t VALUES (?)", &positional(&[Value::from("1")])));
        assert_ne!(one, fingerprint("INSERT INTO t VALUES (?) ", &positional(&[Value::Integer(1)])));
        assert_eq!(fingerprint("", &positional(&[])), 0x0832_8807_b4eb_6fed, "stored by shards: must stay");
    }

    #[test]
    fn a_refusal_after_a_lost_attempt_does_not_mean_that_nothing_was_done() {
        let fenced = || Refusal::Fenced { unit: PartitionId(1) };
        let unsure = |client: Option<String>, uncertain| match Key::new(client, 0, Duration::ZERO)
            .refused(fenced(), uncertain)
        {
            Setback::Refused { unsure, .. } => unsure.map(|failure| (failure.code.into_owned(), failure.retryable)),
            other => panic!("a fence is a reason to route again, not {other:?}"),
        };
        assert_eq!(unsure(None, false), None);
        assert_eq!(unsure(None, true), Some(("08007".to_owned(), false)));
        assert_eq!(unsure(Some("c/k".into()), true), Some(("08007".to_owned(), true)));
    }

    #[test]
    fn a_client_may_repeat_an_unknown_outcome_only_with_a_key() {
        let unknown = || HostError::OutcomeUnknown("lost".into());
        let retryable = |client: Option<String>| match Key::new(client, 0, Duration::ZERO).setback(unknown()) {
            Setback::Failed(failure) => failure.retryable,
            other => panic!("an unknown outcome is a failure, not {other:?}"),
        };
        assert!(retryable(Some("c/k".into())));
        assert!(!retryable(None));
    }
}
