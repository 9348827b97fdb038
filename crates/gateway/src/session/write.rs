//! Writes: one shard, exactly once; or reference tables, on every shard.
//!
//! Every write goes out under an idempotency key: the client's, or one made up for this request. So the
//! host may send it again when a leader is lost, and the executor may send it to another shard when its
//! partition has moved, without ever doing it twice: the key is stored with the effect, and moves with it.
//!
//! An outcome can still stay unknown, when the time is over before any leader answers. With a key of its own
//! a client may then repeat the request; without one it must look first, and the failure says so.

use std::collections::BTreeMap;
use std::time::Duration;

use pleat_cluster::{PartitionId, ShardId};
use pleat_engine::{Action, Idempotency, Outcome, Refusal, SqlFailure, Statement, StatementResult};
use pleat_host::HostError;
use pleat_sql::{Bound, WritePlan, WriteTarget};
use uuid::Uuid;

use super::reroute::{Setback, refused, setback};
use super::{Attempt, Effect, Executor, Failure, Output, Params, Request, Response, Run, Token, Touched, place};
use crate::settings::CLIENT_KEY_TTL;

/// How much longer than the request the shards remember a key that was made up for it.
const OWN_KEY_MARGIN: Duration = Duration::from_secs(60);

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
        let key = client.unwrap_or_else(|| format!("i/{}", Uuid::new_v4().simple()));
        Self { idempotency: Idempotency { key, fingerprint, ttl_ms: ttl.as_millis() as u64 }, from_client }
    }

    /// The same for a part of the request.
    pub(super) fn part(&self, name: &str, fingerprint: u64) -> Self {
        let key = format!("{}/{name}", self.idempotency.key);
        let idempotency = Idempotency { key, fingerprint, ..self.idempotency };
        Self { idempotency, from_client: self.from_client }
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
        let catalog = &attempt.catalog;
        let route = plan.route(&run.request.params.borrow(), catalog.partition_count, &pleat_sql::Ids::none())?;
        let table = || plan.tables().first().cloned().unwrap_or_default();
        let units = match route.target {
            WriteTarget::Reference => return self.write_reference(run, attempt, route.statements).await,
            WriteTarget::Units(units) => units,
            WriteTarget::Spread { table } => return Err(pleat_sql::several_shards(&table).into()),
            WriteTarget::Everywhere { table, units } => match place::sole_shard(catalog) {
                Some(_) => {
                    let all = (0..catalog.partition_count).map(PartitionId);
                    pleat_sql::Units { partitions: all.collect(), ..units }
                }
                None => return Err(pleat_sql::several_shards(&table).into()),
            },
        };
        let mut owners = place::owners(&units, catalog)?;
        match owners.len() {
            // No unit at all: a key that no row can have. The anchor finds nothing to change.
            0 => self.write_on(run, attempt, place::anchor(catalog)?, Vec::new(), route.statements).await,
            1 => {
                let (shard, units) = owners.pop_first().unwrap_or((place::anchor(catalog)?, Vec::new()));
                self.write_on(run, attempt, shard, units, route.statements).await
            }
            _ => match self.done_before(run, attempt, owners, route.statements).await? {
                Some(response) => Ok(response),
                // A lost attempt may have been done before its partitions came apart.
                None => Err(match &attempt.unsure {
                    Some(failure) => Failure::clone(failure).into(),
                    None => pleat_sql::several_shards(&table()).into(),
                }),
            },
        }
    }

    /// What a write gave whose partitions were one shard's then, and are several's by now.
    ///
    /// Its key went to each of them. So one is sent the whole write: it looks for the key before it looks at what it
    /// owns, and then refuses what is not its own.
    async fn done_before(
        &self,
        run: &Run,
        attempt: &Attempt,
        mut owners: BTreeMap<ShardId, Vec<PartitionId>>,
        statements: Vec<Bound>,
    ) -> Result<Option<Response>, Setback> {
        let units = owners.values().flatten().copied().collect();
        let Some((shard, _)) = owners.pop_first().filter(|_| run.key.from_client) else { return Ok(None) };
        match self.write_on(run, attempt, shard, units, statements).await {
            Ok(response) => Ok(Some(response)),
            // It knows no more than this node does: the units are another's indeed.
            Err(Setback::Refused { refusal: Refusal::NotOwned { ownership, .. }, unsure: None })
                if ownership <= attempt.catalog.generation =>
            {
                Ok(None)
            }
            Err(setback) => Err(setback),
        }
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
        let statements = statements.into_iter().map(statement).collect();
        let idempotency = Some(run.key.idempotency());
        let action = Action::Write { idempotency, units, statements, base: None };
        let written = self.backend.write(shard, catalog.generation, action, run.deadline.left()).await;
        let written = written.map_err(|error| run.key.setback(error))?;
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
        let written = self.backend.write_reference(catalog.generation, action, run.deadline.left()).await;
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
        Outcome::Bulk { .. } | Outcome::Moved(_) | Outcome::Digest(_) | Outcome::Prepared { .. } => {
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
