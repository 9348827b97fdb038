//! Requests whose statements must go one after the other, in a transaction of their own.
//!
//! Most requests over several shards are planned ahead and prepared at once ([`crate::session::spread`]). That is not right when a
//! statement must read on several shards what an earlier one of the same request has written, nor when some of them write
//! to reference tables, of which every shard has a copy, and others don't. Such a request becomes a transaction like those of
//! sessions, which takes the write lane of each shard that it touches, so that others rarely make it begin again. If
//! they do, nothing of it was done, and it begins again by itself.
//!
//! # Exactly once, under a client's key
//!
//! Where the rows of such a request are shows only while it runs, and running it a second time may fail because of what
//! the first time left. So
//!
//! 1. *It is looked for* on all shards before each attempt, and once more when one has failed: a shard that remembers a part
//!    of it has carried it out, and so have all others, and what failed may have met what that left. A shard on which it is
//!    prepared and not decided yet answers when it is.
//! 2. *The home of the key takes part in it*, whatever it writes: of two attempts at the same time (a client that has given up
//!    and sent it again, to another node) only one can commit there, since the key is stored with the commit and looked at before
//!    all else in a `Prepare`. The other one is told so, does nothing, and answers with what the first one gave.
//! 3. *Each part says at last which it is and what its results count for* ([`Parts::labels`]), those that were only read
//!    too, so that the answer can be put together again. It can't be said first: what parts there are is not known then.
//!
//! | what dies | and then |
//! | --- | --- |
//! | the coordinator, before all parts are prepared | the parts end by their limits, or are aborted; a repetition finds nothing and does it |
//! | the coordinator, later | the ledger's word counts; a repetition waits on shards that are not told yet, then finds it, or does it |
//! | a shard's leader, before its part is prepared | the part is gone: it begins again |
//! | a shard's leader, later | as of every two-phase commit, or of a write to one shard under its key |
//!
//! Moves take the key along with its home, so a repetition that knows a newer catalog meets it there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pleat_host::HostError;
use pleat_sql::WritePlan;

use super::{Mode, Txn, half_seen};
use crate::session::parts::Parts;
use crate::session::reroute::Setback;
use crate::session::spread::home_of;
use crate::session::{Attempt, Executor, Failure, Response, Run, place};

/// How long a request waits before it begins again, when others are in its way.
const PAUSE: Duration = Duration::from_millis(5);

impl Executor {
    /// Carry out a request statement by statement.
    pub(in crate::session) async fn write_stepwise(
        &self,
        run: &Run,
        attempt: &Attempt,
        plan: &WritePlan,
    ) -> Result<Response, Setback> {
        loop {
            if let Some(done) = self.found(run, attempt, plan.statement_count()).await? {
                return Ok(done);
            }
            let mode = Mode { immediate: true, ..Mode::default() };
            let txn = Arc::new(Txn::begin(self.backend.clone(), mode));
            let failure = match self.take_steps(run, attempt, plan, &txn).await {
                Ok(response) => match self.commit_steps(run, attempt, plan, txn.clone(), response).await {
                    Ok(done) => return Ok(done),
                    Err(Setback::Failed(failure)) => failure,
                    Err(setback) => return Err(setback),
                },
                Err(Setback::Failed(failure)) => not_done(failure),
                Err(setback) => {
                    txn.roll_back().await;
                    return Err(setback);
                }
            };
            txn.roll_back().await;
            if failure.code != "40001" || run.deadline.is_over() {
                // What it met (a row that is there, one that is gone) may be what another attempt has done since it was
                // looked for.
                let before = self.found(run, attempt, plan.statement_count()).await?;
                return before.ok_or(Setback::Failed(failure));
            }
            tokio::time::sleep(PAUSE.min(run.deadline.left())).await;
        }
    }

    /// Everything up to the commit.
    async fn take_steps(
        &self,
        run: &Run,
        attempt: &Attempt,
        plan: &WritePlan,
        txn: &Arc<Txn>,
    ) -> Result<Response, Setback> {
        let inside = Attempt { inside: Some(txn.clone()), ..attempt.clone() };
        txn.enter()?;
        let (response, shares) = txn.awake(self.write_inside(run, &inside, txn, plan)).await?;
        if !txn.is_whole() {
            return Err(half_seen(txn));
        }
        let mut shards: BTreeSet<_> = txn.look().shards.into_keys().collect();
        if run.hint.no_scatter && shards.len() > 1 {
            return Err(place::would_scatter(shards.iter()).into());
        }
        if run.key.is_from_client() {
            let home = home_of(run, &attempt.catalog)?;
            shards.insert(home.0);
            let labels = Parts::labels(&shards, &shares, home);
            txn.awake(txn.write(labels, &attempt.catalog, &run.deadline)).await?;
        }
        Ok(response)
    }

    async fn commit_steps(
        &self,
        run: &Run,
        attempt: &Attempt,
        plan: &WritePlan,
        txn: Arc<Txn>,
        response: Response,
    ) -> Result<Response, Setback> {
        let unknown = |why: &str| run.key.setback(HostError::OutcomeUnknown(why.to_owned()));
        let committed = match self.commit(txn, run.key.idempotency(), run.deadline).await {
            Ok(committed) => committed,
            Err(failure) if failure.code == "08007" => return Err(unknown(&failure.message)),
            Err(failure) => return Err(Setback::Failed(not_done(failure))),
        };
        if committed.before {
            let before = self.found(run, attempt, plan.statement_count()).await?;
            return before.ok_or_else(|| unknown("it was committed by an attempt whose answer was lost"));
        }
        let done = self.done(&run.request, committed.indexes);
        Ok(Response { output: response.output, notice: response.notice, ..done })
    }
}

/// A failure of a transaction of which nothing was done: what passes may be sent again.
fn not_done(failure: Failure) -> Failure {
    match &*failure.code {
        "40001" | "40P01" | "08007" => {
            Failure::passing("40001", failure.message, "nothing was done: send the request again")
        }
        "57P03" | "53300" | "53200" | "53100" => Failure { retryable: true, ..failure },
        _ => failure,
    }
}
