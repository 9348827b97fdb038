//! Reaching the leader of a group, wherever it is.
//!
//! A call is tried on this node when it leads, else on the node that is said to lead, else on the group's
//! other nodes in turn, until the caller's limit. A node without a replica of the group is told by nobody who leads it,
//! and begins with whom it found last. What makes this right is telling three failures apart:
//!
//! | failure | what happened | what follows |
//! | --- | --- | --- |
//! | not the leader, unreachable | surely nothing | the next node |
//! | lost: sent, and no answer | perhaps it was done | again if doing it twice is harmless, else `OutcomeUnknown` |
//! | an answer, good or bad | it is decided | back to the caller |
//!
//! A shard that the catalog has as removed is looked for no further: the caller routes again, by that catalog.
//!
//! Once an attempt at a write was lost, "surely not done" of a later attempt says nothing about the earlier
//! one any more. So it is then tried on to the end of the limit, and the end is `OutcomeUnknown`; and an answer
//! that comes after all is marked *uncertain*, for a caller that would otherwise conclude from a refusal that
//! nothing was done.

use std::future::Future;
use std::time::{Duration, Instant};

use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{NodeId, ShardId, ShardState};
use pleat_consensus::{GroupId, ProposeError, ReadError, TransportError};
use pleat_engine::Refusal;

use crate::error::Overload;
use crate::rpc::{self, Declined, Request, Response};
use crate::{Host, HostError};

/// The pause before trying the group's nodes once more, at first and at most.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(160);
/// How long one attempt at an idempotent write may take. A node that was cut off would otherwise use up the
/// caller's whole limit; a write that is only slow is answered from its key when it is sent again. Reads have
/// no such bound, since a long one would start over for ever: there the transport's keep-alive finds the dead.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);

/// How one attempt ended, unless with an answer.
#[derive(Debug)]
pub enum Attempt {
    /// Surely not done here; perhaps `leader` can.
    Elsewhere { leader: Option<NodeId>, why: String },
    /// Sent, and nothing came back.
    Lost(String),
    /// Decided.
    Failed(HostError),
}

impl From<Declined> for Attempt {
    fn from(declined: Declined) -> Self {
        match declined {
            Declined::NotLeader { leader } => Attempt::Elsewhere { leader, why: "it does not lead".into() },
            Declined::Host(error) => Attempt::Failed(error),
        }
    }
}

impl From<TransportError> for Attempt {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Unreachable(why) => Attempt::Elsewhere { leader: None, why },
            TransportError::Lost(why) => Attempt::Lost(why),
            // It answered that it can't be asked (stopping, another cluster's, another version's): nothing was done.
            TransportError::Remote { .. } => Attempt::Elsewhere { leader: None, why: error.to_string() },
        }
    }
}

impl From<ProposeError> for Declined {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { leader } => Declined::NotLeader { leader },
            ProposeError::Overloaded => HostError::Overloaded(Overload::Writes).into(),
            ProposeError::NoRoom { .. } => HostError::NoRoom(error.to_string()).into(),
            ProposeError::TooLarge { limit_bytes } => {
                HostError::TooLarge(format!("one write may take {limit_bytes} bytes in the log at most")).into()
            }
            ProposeError::Unknown if planted::is(Bug::UnknownToldAsNot) => {
                HostError::Unavailable("nothing was done".into()).into()
            }
            ProposeError::Unknown => {
                HostError::OutcomeUnknown("the leader was lost before it could say whether the write was done".into())
                    .into()
            }
            ProposeError::Stopped(why) => HostError::Unavailable(format!("the replica has stopped: {why}")).into(),
        }
    }
}

impl From<ReadError> for Declined {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::NotLeader { leader } => Declined::NotLeader { leader },
            ReadError::Timeout => {
                HostError::Unavailable("the leader could not confirm that it still leads".into()).into()
            }
            ReadError::Overloaded => HostError::Overloaded(Overload::Reads).into(),
            // Whatever it stopped for, it leads no more, and reading elsewhere does no harm.
            ReadError::Stopped(_) => Declined::NotLeader { leader: None },
        }
    }
}

/// What a call does, and so whether it may be sent again when its first answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It only reads.
    None,
    /// Doing it twice is doing it once.
    Idempotent,
    /// It must not be done twice.
    Once,
}

impl Host {
    /// Run `attempt` on the group's leader. The second value: an earlier attempt was lost.
    pub(crate) async fn on_leader<T, F>(
        &self,
        group: GroupId,
        effect: Effect,
        within: Duration,
        attempt: impl Fn(NodeId, Duration) -> F,
    ) -> Result<(T, bool), HostError>
    where
        F: Future<Output = Result<T, Attempt>>,
    {
        let attempt = |node, limit| {
            let tried = attempt(node, limit);
            async move {
                let answer = tried.await;
                if answer.is_ok() {
                    self.found_leader(group, node);
                }
                answer
            }
        };
        let places = Places {
            said_to_lead: || self.said_to_lead(group),
            members: || self.members(group),
            is_removed: || self.is_removed(group),
        };
        seek(group, places, effect, within, attempt).await
    }

    fn is_removed(&self, group: GroupId) -> bool {
        let Ok(id) = u32::try_from(group) else { return false };
        self.catalog().shards.get(&ShardId(id)).is_some_and(|shard| shard.state == ShardState::Removed)
    }

    /// One call to one node, this one included.
    pub(crate) async fn ask(&self, node: NodeId, request: Request, within: Duration) -> Result<Response, Attempt> {
        if node == self.node() {
            // Boxed: serving a write to reference tables asks other shards in turn.
            return Ok(Box::pin(self.serve(request, within)).await?);
        }
        let call = rpc::Call { within_ms: within.as_millis() as u64, request };
        let body = rpc::encode(&call).map_err(Attempt::Failed)?;
        let answer = self.transport().call(node, rpc::CALL, body, within).await?;
        let answer: Result<Response, Declined> = rpc::decode(&answer).map_err(Attempt::Failed)?;
        Ok(answer?)
    }

    /// One request to the group's leader. The second value: an earlier attempt was lost.
    pub(crate) async fn ask_leader(
        &self,
        group: GroupId,
        effect: Effect,
        within: Duration,
        request: impl Fn() -> Request,
    ) -> Result<(Response, bool), HostError> {
        self.on_leader(group, effect, within, |node, limit| self.ask(node, request(), limit)).await
    }
}

/// Where a group's leader is looked for, as this node knows it at the moment of asking.
struct Places<L, M, R> {
    said_to_lead: L,
    members: M,
    is_removed: R,
}

/// Ask the nodes in turn, whoever is said to lead first.
async fn seek<T, F>(
    group: GroupId,
    places: Places<impl Fn() -> Option<NodeId>, impl Fn() -> Vec<NodeId>, impl Fn() -> bool>,
    effect: Effect,
    within: Duration,
    attempt: impl Fn(NodeId, Duration) -> F,
) -> Result<(T, bool), HostError>
where
    F: Future<Output = Result<T, Attempt>>,
{
    let Places { said_to_lead, members, is_removed } = places;
    let deadline = Instant::now() + within;
    let mut backoff = BACKOFF_MIN;
    let mut last = "no node of the group is known".to_owned();
    let mut next = said_to_lead();
    let mut lost = false;
    let mut spreading = None;
    let mut redirected = false;
    loop {
        if is_removed() && (effect == Effect::None || !lost) {
            return Err(HostError::Refused(Refusal::Leaving));
        }
        if Instant::now() >= deadline {
            return Err(spreading.unwrap_or_else(|| gave_up(group, lost && effect != Effect::None, &last)));
        }
        let first = next.take();
        let others = members().into_iter().filter(|member| Some(*member) != first);
        for node in first.into_iter().chain(others) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let limit = if effect == Effect::Idempotent { left.min(ATTEMPT_MAX) } else { left };
            match attempt(node, limit).await {
                Ok(answer) => return Ok((answer, lost)),
                Err(Attempt::Failed(HostError::OutcomeUnknown(why))) if effect != Effect::Once => {
                    lost = true;
                    last = format!("{node}: {why}");
                }
                Err(Attempt::Failed(error @ HostError::Spreading(_))) if effect == Effect::Idempotent => {
                    // Committed; asking again under the same key waits for the rest.
                    lost = true;
                    spreading = Some(error);
                }
                Err(Attempt::Failed(error)) if lost && effect == Effect::Idempotent && error.is_passing() => {
                    last = format!("{node}: {error}");
                }
                Err(Attempt::Failed(error)) => return Err(error),
                Err(Attempt::Lost(why)) if effect == Effect::Once => {
                    return Err(HostError::OutcomeUnknown(format!("{node} was lost while it answered: {why}")));
                }
                Err(Attempt::Lost(why)) => {
                    lost = true;
                    last = format!("{node}: {why}");
                }
                Err(Attempt::Elsewhere { leader, why }) => {
                    last = format!("{node}: {why}");
                    if let Some(leader) = leader.filter(|leader| *leader != node) {
                        next = Some(leader);
                        break;
                    }
                }
            }
        }
        // The first hint is followed at once; nodes that point at each other are asked again with pauses.
        if next.is_none() || std::mem::replace(&mut redirected, true) {
            let left = deadline.saturating_duration_since(Instant::now());
            tokio::time::sleep(backoff.min(left)).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        next = next.or_else(&said_to_lead);
    }
}

fn gave_up(group: GroupId, lost: bool, last: &str) -> HostError {
    let what = if group == 0 { "the control group".to_owned() } else { format!("shard-{group}") };
    match lost {
        true => HostError::OutcomeUnknown(format!("no leader of {what} answered in time (last: {last})")),
        false => HostError::Unavailable(format!("no leader of {what} was reached in time (last: {last})")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use pleat_cluster::TxnId;

    use super::*;

    thread_local! {
        /// Whether the catalog has the group's shard as removed.
        static REMOVED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }

    /// What comes of attempts that end like this, one after the other; the last again and again.
    async fn after(effect: Effect, attempts: Vec<Result<u32, Attempt>>) -> Result<(u32, bool), HostError> {
        let attempts = Mutex::new(attempts.into_iter());
        let attempt = |_, _| {
            let next = attempts.lock().unwrap().next();
            async move { next.unwrap_or_else(|| Err(held())) }
        };
        let places =
            Places { said_to_lead: || None, members: || vec![NodeId(1), NodeId(2)], is_removed: || REMOVED.get() };
        seek(7, places, effect, Duration::from_millis(80), attempt).await
    }

    /// A transaction has the shard's lane.
    fn held() -> Attempt {
        Attempt::Failed(HostError::Refused(Refusal::Prepared { txn: TxnId(1) }))
    }

    fn lost() -> Attempt {
        Attempt::Lost("the connection broke".into())
    }

    fn elsewhere() -> Attempt {
        Attempt::Elsewhere { leader: None, why: "it does not lead".into() }
    }

    #[tokio::test]
    async fn a_refusal_after_a_lost_attempt_does_not_say_that_nothing_was_done() {
        let unknown = |ended| matches!(ended, Err(HostError::OutcomeUnknown(_)));
        assert!(unknown(after(Effect::Idempotent, vec![Err(lost()), Err(held())]).await));
        let passing = [
            HostError::Unavailable("no leader".into()),
            HostError::Overloaded(Overload::Writes),
            HostError::Timeout("late".into()),
        ];
        for error in passing {
            let attempts = vec![Err(lost()), Err(Attempt::Failed(error.clone())), Err(held())];
            assert!(unknown(after(Effect::Idempotent, attempts).await), "{error}");
        }
        // An answer that comes after all is told to be uncertain; without a loss it is not.
        assert_eq!(after(Effect::Idempotent, vec![Err(lost()), Err(held()), Ok(5)]).await.unwrap(), (5, true));
        assert_eq!(after(Effect::Idempotent, vec![Err(elsewhere()), Ok(5)]).await.unwrap(), (5, false));
    }

    #[tokio::test]
    async fn a_removed_shard_is_not_looked_for_unless_it_may_have_done_the_write() {
        REMOVED.set(true);
        for effect in [Effect::None, Effect::Idempotent, Effect::Once] {
            let refused = after(effect, vec![Err(elsewhere()), Err(elsewhere())]).await;
            assert!(matches!(refused, Err(HostError::Refused(Refusal::Leaving))), "{effect:?} {refused:?}");
        }
        REMOVED.set(false);
        let removed_after = |attempts: Vec<Result<u32, Attempt>>| async {
            let attempts = Mutex::new(attempts.into_iter());
            let attempt = |_, _| {
                let next = attempts.lock().unwrap().next();
                REMOVED.set(next.is_none());
                async move { next.unwrap_or_else(|| Err(elsewhere())) }
            };
            let places = Places { said_to_lead: || None, members: || vec![NodeId(1)], is_removed: || REMOVED.get() };
            seek(7, places, Effect::Idempotent, Duration::from_millis(80), attempt).await
        };
        let unknown = removed_after(vec![Err(lost())]).await;
        assert!(matches!(unknown, Err(HostError::OutcomeUnknown(_))), "{unknown:?}");
    }

    #[tokio::test]
    async fn a_refusal_of_the_first_attempt_is_the_answer() {
        for effect in [Effect::None, Effect::Idempotent, Effect::Once] {
            let refused = after(effect, vec![Err(elsewhere()), Err(held())]).await;
            assert!(matches!(refused, Err(HostError::Refused(_))), "{effect:?} {refused:?}");
        }
        // What must not be done twice is not tried again when it may have been done.
        assert!(matches!(after(Effect::Once, vec![Err(lost()), Ok(5)]).await, Err(HostError::OutcomeUnknown(_))));
    }
}
