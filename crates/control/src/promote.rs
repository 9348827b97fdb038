//! Promotion: the standby of a shard takes the place of a primary that does not answer.
//!
//! # The mechanism
//!
//! The leader asks each primary that could be replaced, every half second and on a connection of its own. One that has given no answer for
//! [`promote_after`](crate::Settings::promote_after), while its standby runs, is replaced by a `Promote` operation. (A server that died is started again
//! by its node, which takes a second or two, and usually comes first.)
//!
//! | step | what happens |
//! | --- | --- |
//! | *journaled* | the old primary's node, if it runs, sees that its server is being replaced, and stops it; nobody changes any more what the catalog says of the standby |
//! | `fence` | the old primary is made certain to accept nothing any more (`provision::process::fence` says how), whatever state its node is in |
//! | *commit* | the catalog names the other node first, in a new reign: routers go there, and that node makes its server a primary |
//! | `promote` | wait until it answers |
//!
//! Between fence and commit it is asked once more whether the standby runs. If it doesn't, and does not come back, the promotion is given up, and the old
//! primary's node takes back the fence. Afterwards nothing but the end of the promotion is possible.
//!
//! # A process dies …
//!
//! | which, while | and then |
//! | --- | --- |
//! | the control leader, anywhere | the next one does the steps again: a fence that is there is left as it is, and a commit is a commit |
//! | the control leader, in the fence, before it has renamed the data that it has said to take | given up after a minute; the next promotion fences |
//! | the standby's node, before the commit | it is waited for, then the promotion is given up |
//! | the standby's node, after the commit | its next start promotes its server, because it is named first |
//! | the old primary's node, anywhere | its server is gone; its next start finds no data by its name, and a catalog that says why |
//! | both, before the commit | the old primary comes back first: given up. The standby does: committed |
//!
//! Promotions have a lane of their own: they touch nothing that other operations change but the address, and what runs on the old
//! address breaks off and is tried again. Those of several shards go side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use futures::future::{join, join_all};
use futures::stream::FuturesUnordered;
use pleat_cluster::{
    Cause, Command, Engine, Follows, NodeId, OperationId, OperationKind, Phase, Shard, ShardId, ShardState, rfc3339,
};
use pleat_engine::postgres::PostgresError;
use pleat_host::HostError;
use pleat_host::failpoint::reach;
use tokio::time::{Instant, sleep};

use crate::lead::until_changed;
use crate::stop::{Failure, Stop};
use crate::work::{COMMAND_LIMIT, Tools, Work};

/// The pause between two looks at a server.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long one look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// Looks without an answer that are needed at least: a leader that was paused has a wrong idea of the time.
const LOOKS_NEEDED: u32 = 3;
/// How long a fence is tried, and a standby that has gone is waited for, before the promotion is given up.
const FENCE_MAX: Duration = Duration::from_secs(60);
const AWAY_MAX: Duration = Duration::from_secs(30);
/// The pause after something failed.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// How far the log of a primary is, that of its standby, and how many bytes are between them.
const ASKED: &str = "SELECT pg_current_wal_lsn(), \
    (SELECT flush_lsn FROM pg_stat_replication WHERE application_name = 'pleat_standby' LIMIT 1), \
    (SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), flush_lsn) FROM pg_stat_replication WHERE application_name = 'pleat_standby' LIMIT 1)";

/// Watch over the primaries, and replace those that are gone, until this future is dropped, which is when leadership is lost.
pub(crate) async fn keep_promoting(tools: Tools) {
    let mut changes = tools.cluster.watch_catalog();
    loop {
        let catalog = changes.borrow_and_update().clone();
        match catalog.engine {
            Engine::Postgres if catalog.is_initialised() => break,
            Engine::Sqlite if catalog.is_initialised() => return std::future::pending().await,
            _ => until_changed(&mut changes, LOOK_EVERY).await,
        }
    }
    join(keep_watching(&tools), keep_carrying_out(&tools)).await;
}

/// What is known of a primary.
#[derive(Default)]
struct Seen {
    /// Since when it gives no answer, and how many looks were in vain.
    silent: Option<(Instant, u32)>,
    /// What it answered last, for people.
    last: Option<String>,
}

async fn keep_watching(tools: &Tools) {
    let mut seen: BTreeMap<(ShardId, u64), Seen> = BTreeMap::new();
    loop {
        let catalog = tools.cluster.catalog();
        let replaceable = |shard: &&Shard| {
            let has_both = shard.server.is_some() && shard.standby().is_some();
            shard.state != ShardState::Removed
                && has_both
                && shard.pair.follows != Follows::Coming
                && catalog.promoting(shard.id).is_none()
        };
        let watched: Vec<&Shard> = catalog.shards.values().filter(replaceable).collect();
        seen.retain(|(id, reign), _| watched.iter().any(|shard| (shard.id, shard.pair.reign) == (*id, *reign)));
        let looks =
            join_all(watched.into_iter().map(|shard| async move { (shard, look(tools, shard.id).await) })).await;
        for (shard, look) in looks {
            let seen = seen.entry((shard.id, shard.pair.reign)).or_default();
            let why = match look {
                Ok(told) => {
                    seen.silent = None;
                    seen.last =
                        told.map(|told| format!("{} {told}", rfc3339(tools.cluster.now_ms()))).or(seen.last.take());
                    continue;
                }
                Err(why) => why,
            };
            let (since, looks) = seen.silent.get_or_insert((Instant::now(), 0));
            *looks += 1;
            if *looks >= LOOKS_NEEDED && since.elapsed() >= tools.settings.promote_after {
                let silent = since.elapsed();
                if let Err(error) = start(tools, shard, silent, &why, seen.last.as_deref()).await {
                    tracing::warn!(shard = %shard.id, %error, "a primary is gone, and its standby can't be promoted yet");
                }
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

/// `Err`: the primary does not serve. `Ok`: it does; what it said of its standby, if it did.
async fn look(tools: &Tools, shard: ShardId) -> Result<Option<String>, String> {
    match tools.cluster.ask_apart(shard, ASKED, LOOK_LIMIT).await {
        Ok(asked) => {
            let row = asked.rows.into_iter().next().unwrap_or_default();
            let text = |at: usize| row.get(at).cloned().flatten();
            Ok(match (text(0), text(1), text(2)) {
                (Some(written), Some(flushed), Some(behind)) => {
                    Some(format!("the primary had written {written} and the standby {flushed}, {behind} bytes less"))
                }
                (Some(written), ..) => Some(format!("the primary had written {written}, and no standby followed it")),
                _ => None,
            })
        }
        Err(error @ (PostgresError::Unavailable(_) | PostgresError::Lost(_))) => Err(error.to_string()),
        // It is there, and says something.
        Err(_) => Ok(None),
    }
}

async fn start(tools: &Tools, shard: &Shard, silent: Duration, why: &str, last: Option<&str>) -> Result<(), HostError> {
    let (Some(from), Some(to)) = (shard.primary(), shard.standby()) else { return Ok(()) };
    if !tools.cluster.server_runs(to, shard.id, LOOK_LIMIT).await? {
        return Err(HostError::Unavailable(format!("the standby on {to} does not run either")));
    }
    let last = last.unwrap_or("never, by this control leader");
    let loss = match shard.pair.follows {
        Follows::InStep => "the standby has all that was acknowledged".to_owned(),
        Follows::Along | Follows::Coming => {
            format!("the standby follows asynchronously: what was committed last may be lost; last heard of: {last}")
        }
    };
    let reason =
        format!("the primary of {} on {from} gives no answer for {} s ({why}); {loss}", shard.id, silent.as_secs());
    tracing::warn!(shard = %shard.id, reason, "the standby is promoted");
    let kind = OperationKind::Promote { shard: shard.id, to, reign: shard.pair.reign };
    let cause = Cause::Request("the cluster's own watch".to_owned());
    let start = Command::StartOperation { kind, cause, reason, at: tools.cluster.now_ms() };
    tools.cluster.command(start, COMMAND_LIMIT).await.map(drop)
}

async fn keep_carrying_out(tools: &Tools) {
    let mut changes = tools.cluster.watch_catalog();
    let mut running: BTreeSet<OperationId> = BTreeSet::new();
    let mut lanes = FuturesUnordered::new();
    loop {
        let catalog = changes.borrow_and_update().clone();
        for open in catalog.open_operations() {
            if let OperationKind::Promote { shard, to, reign } = open.kind
                && running.insert(open.id)
            {
                lanes.push(lane(tools, open.id, shard, to, reign));
            }
        }
        tokio::select! {
            Some(done) = lanes.next() => drop(running.remove(&done)),
            () = until_changed(&mut changes, LOOK_EVERY) => {}
        }
    }
}

async fn lane(tools: &Tools, id: OperationId, shard: ShardId, to: NodeId, reign: u64) -> OperationId {
    if let Err(stop) = carry_out(tools, id, shard, to, reign).await {
        tracing::warn!(operation = %id, why = stop.reason(), "promotion: trying again");
        sleep(RETRY_PAUSE).await;
    }
    id
}

/// Carry out a promotion, or take it up where an earlier leader left it.
async fn carry_out(tools: &Tools, id: OperationId, shard: ShardId, to: NodeId, reign: u64) -> Result<(), Stop> {
    let work = Work::new(tools.clone(), id);
    work.take_over().await?;
    let operation = work.operation()?;
    if operation.given_up {
        return work.finish(Phase::Failed, &operation.message).await;
    }
    if !operation.committed {
        match replace(&work, shard, to, reign).await {
            Ok(()) => {}
            Err(stop @ (Stop::Superseded(_) | Stop::Again(_) | Stop::Waiting(_))) => return Err(stop),
            Err(stop) => {
                let failure = match stop {
                    Stop::Impossible(failure) => failure,
                    _ => Failure::cancelled(),
                };
                work.give_up(&failure).await?;
                return work.finish(Phase::Failed, &failure.why).await;
            }
        }
    }
    work.note("promote", false, "").await?;
    let mut warned = false;
    while let Err(why) = look(tools, shard).await {
        if !std::mem::replace(&mut warned, true) {
            tracing::warn!(%shard, node = %to, why, "the new primary does not answer yet");
        }
        work.is_at(|| format!("waits for {to}: {why}"))?;
        sleep(RETRY_PAUSE).await;
    }
    let message = format!("{to} serves {shard}: {}", operation.reason);
    work.finish(Phase::Successful, &message).await
}

/// Up to the commit.
async fn replace(work: &Work, shard: ShardId, to: NodeId, reign: u64) -> Result<(), Stop> {
    let catalog = work.catalog();
    let known = catalog.shards.get(&shard).ok_or_else(|| Stop::impossible(format!("{shard} is gone")))?;
    if known.pair.reign != reign {
        return Err(Stop::impossible("the servers have changed places since"));
    }
    let place = known.primary().and_then(|from| known.pair.places.get(&from));
    let place = place.ok_or_else(|| Stop::impossible("nobody knows where the old primary's data is"))?;
    work.begin("fence").await?;
    let (begun, mut first) = (Instant::now(), None);
    while let Err(why) = work.cluster().fence(&place.dir, reign, work.id.0).await {
        if begun.elapsed() > FENCE_MAX {
            // Data is taken away once: what kept it from that is what was said first.
            let why = first.unwrap_or(why);
            return Err(Stop::impossible(format!("the old primary can't be fenced: {why}")));
        }
        if first.is_none() {
            tracing::warn!(operation = %work.id, why, "the old primary is not fenced yet");
        }
        first.get_or_insert(why);
        sleep(RETRY_PAUSE).await;
        work.begin("fence").await?;
    }
    work.end("fence", &format!("the server in {} accepts nothing any more", place.dir)).await?;
    let begun = Instant::now();
    while !matches!(work.cluster().server_runs(to, shard, LOOK_LIMIT).await, Ok(true)) {
        if begun.elapsed() > AWAY_MAX {
            return Err(Stop::impossible(format!("the standby on {to} has gone, too")));
        }
        sleep(RETRY_PAUSE).await;
        work.operation()?;
    }
    let (operation, epoch, at) = (work.id, work.tools.epochs.term(), work.cluster().now_ms());
    work.decide();
    reach("operation.before-commit", None);
    work.command(Command::CommitOperation { operation, epoch, at }).await?;
    reach("operation.committed", None);
    Ok(())
}
