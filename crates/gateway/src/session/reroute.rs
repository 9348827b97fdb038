//! Starting over when a shard refuses.
//!
//! A refusal means that the catalog this node routed by and what the shard knows at its place in the log
//! differ: the node is behind, or the shard is, or a partition is being handed over at this moment. Nothing
//! was done. What helps is a newer catalog, so the executor waits until its catalog changes, but not long:
//! a fence that is lifted again, or a shard that catches up, changes no catalog. Every so often it asks the
//! control group itself, in case this node's replica of the catalog hangs behind.

use std::future::Future;
use std::time::Duration;

use pleat_cluster::{Catalog, Generation};
use pleat_engine::{EngineError, Refusal};
use pleat_host::HostError;
use tokio::sync::watch;

use super::deadline::Deadline;
use super::{Attempt, Executor, Failure, IDEMPOTENCY_CONFLICT, follow};
use crate::settings::STATUS_TIME_MAX;

/// The pause before another attempt when the catalog does not change, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(160);
/// How long to wait for a generation that a shard has named.
const NAMED_GENERATION_WAIT_MAX: Duration = Duration::from_millis(500);
/// How often a write over several shards is routed again because a partition has just come to one of them.
const ARRIVALS_MAX: u32 = 30;
/// After how many refusals the control group is asked for the catalog.
const REFUSALS_PER_REFRESH: u32 = 10;

/// Why an attempt did not succeed.
#[derive(Debug)]
pub(super) enum Setback {
    /// A shard is not the right one now: route again. `unsure` is how a write ends if it is never accepted,
    /// when an earlier attempt at it was lost and may have been done.
    Refused { refusal: Refusal, unsure: Option<Box<Failure>> },
    /// Something else must end first; the failure is for when it does not in time.
    Busy(Failure),
    /// That's it.
    Failed(Failure),
}

impl From<Failure> for Setback {
    fn from(failure: Failure) -> Self {
        Setback::Failed(failure)
    }
}

impl From<pleat_sql::SqlError> for Setback {
    fn from(error: pleat_sql::SqlError) -> Self {
        Setback::Failed(error.into())
    }
}

/// Sort a shard's answer.
pub(super) fn setback(error: HostError) -> Setback {
    match error {
        HostError::Refused(refusal) | HostError::Engine(EngineError::Refused(refusal)) => refused(refusal),
        error => Setback::Failed(error.into()),
    }
}

/// Sort a refusal.
pub(super) fn refused(refusal: Refusal) -> Setback {
    match refusal {
        Refusal::KeyConflict { .. } => Setback::Failed(Failure::new(
            IDEMPOTENCY_CONFLICT,
            "this idempotency key was used for another request",
            "send each request with a key of its own, and the same key only to repeat it",
        )),
        refusal if refusal.is_retryable() => Setback::Refused { refusal, unsure: None },
        refusal => Setback::Failed(Failure {
            code: refusal.code().into(),
            ..Failure::new("", refusal.to_string(), refusal.hint())
        }),
    }
}

/// Sort a refusal of a write whose rows were looked for on several shards, which was routed `refusals` times before: a row
/// of a partition that it was not routed by is one that has just come to the shard.
pub(super) fn refused_spread(refusal: Refusal, refusals: u32) -> Setback {
    match refusal {
        Refusal::NotRouted { .. } if refusals < ARRIVALS_MAX => Setback::Refused { refusal, unsure: None },
        refusal => refused(refusal),
    }
}

/// Whether a failure invites the client to send the request again, or differently, because nothing was done. After an attempt
/// that was lost that may not be so. (What a constraint says comes from the shard that would know the write.)
fn says_nothing_was_done(failure: &Failure) -> bool {
    failure.retryable || failure.code == "0A000"
}

impl Executor {
    /// Run `attempt` until it succeeds, fails, or the time is over.
    pub(super) async fn rerouting<T, F: Future<Output = Result<T, Setback>>>(
        &self,
        deadline: &Deadline,
        attempt: impl Fn(Attempt) -> F,
    ) -> Result<T, Failure> {
        let mut changes = self.backend.watch_catalog();
        let mut pause = PAUSE_MIN;
        let mut refused = 0;
        let mut unsure: Option<Box<Failure>> = None;
        let mut schema_refreshed = false;
        loop {
            let catalog = changes.borrow_and_update().clone();
            let generation = catalog.generation;
            let fresh = Attempt {
                catalog: catalog.clone(),
                refused,
                analysis: None,
                collisions: 0,
                versions: None,
                inside: None,
            };
            match attempt(fresh).await {
                Ok(value) => return Ok(value),
                Err(Setback::Failed(failure)) => {
                    if let (Some(unsure), true) = (&unsure, says_nothing_was_done(&failure)) {
                        return Err(Failure::clone(unsure));
                    }
                    let open = follow::explains(&catalog, &failure);
                    let open = open.or_else(|| follow::explains(&self.backend.catalog(), &failure));
                    if let Some(change) = open {
                        if deadline.is_over() {
                            return Err(follow::still_changing(change, &failure));
                        }
                        follow::end_of(change, &mut changes, deadline).await;
                        continue;
                    }
                    if schema_refreshed || !is_about_schema(&failure) {
                        return Err(failure);
                    }
                    // The table may just have been made through another node.
                    schema_refreshed = true;
                    let within = deadline.left().min(STATUS_TIME_MAX);
                    match self.backend.fresh_catalog(within).await {
                        Ok(fresh) if fresh.generation > generation => {}
                        _ => return Err(failure),
                    }
                }
                Err(Setback::Busy(failure)) => {
                    if deadline.is_over() {
                        return Err(unsure.map_or(failure, |unsure| *unsure));
                    }
                    let _ = tokio::time::timeout(deadline.left().min(PAUSE_MAX), changes.changed()).await;
                }
                Err(Setback::Refused { refusal, unsure: now_unsure }) => {
                    unsure = unsure.or(now_unsure);
                    if deadline.is_over() {
                        return Err(unsure.map_or_else(|| gave_up(&refusal, deadline), |failure| *failure));
                    }
                    refused += 1;
                    self.metrics.rerouted();
                    tracing::debug!(%refusal, refused, generation, "routing again");
                    self.wait(&refusal, refused, generation, &mut changes, pause, deadline).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Wait for what may make the next attempt succeed.
    async fn wait(
        &self,
        refusal: &Refusal,
        refused: u32,
        generation: Generation,
        changes: &mut watch::Receiver<std::sync::Arc<Catalog>>,
        pause: Duration,
        deadline: &Deadline,
    ) {
        let left = deadline.left();
        if refused.is_multiple_of(REFUSALS_PER_REFRESH) {
            // If it can't be had there is nothing to do but to try again.
            let _ = self.backend.fresh_catalog(left.min(STATUS_TIME_MAX)).await;
            return;
        }
        match refusal {
            Refusal::NotOwned { ownership: named, .. }
            | Refusal::Generation { ownership: named, .. }
            | Refusal::Layout { layout: named, .. }
                if *named > generation =>
            {
                self.backend.catalog_reaches(*named, left.min(NAMED_GENERATION_WAIT_MAX)).await;
            }
            _ => {
                let _ = tokio::time::timeout(left.min(pause), changes.changed()).await;
            }
        }
    }
}

/// Failures that an old copy of the tables explains.
fn is_about_schema(failure: &Failure) -> bool {
    matches!(failure.code.as_ref(), "42P01" | "42703" | "42704" | "42P07" | "42701")
}

fn gave_up(refusal: &Refusal, deadline: &Deadline) -> Failure {
    let what = match refusal {
        Refusal::Prepared { .. } => "another transaction was still in the way",
        _ => "the data was still moving",
    };
    Failure::passing(
        "40001",
        format!("{what} after {} ms: {refusal}", deadline.limit().as_millis()),
        "nothing was done: send the request again",
    )
}
