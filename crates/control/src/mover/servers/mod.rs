//! Moves between shards that are servers. What is the same for all shards (attempts, receipts, giving up, going on behind another leader) is
//! [`mover`](super)'s; what is different stands here.
//!
//! # The mechanism
//!
//! | step | what happens | made on the source | made on the target |
//! | --- | --- | --- | --- |
//! | `create shard` | (split) the new shard's server takes connections | | |
//! | `check` | everything that is missing is named at once, before anything is made | | |
//! | `copy schema` | (split) types, tables, functions; indexes and constraints come when the rows are there | | schema |
//! | `capture` | every router has said that what it sends to the target leaves out rows that this does not own; then a slot is made, with a snapshot | publication, slot, replica identities | the attempt's table |
//! | `copy` | the rows of the snapshot (split: of reference tables, too) | | rows |
//! | `build indexes` | (split) | | schema |
//! | `catch up` | the stream of what has changed meanwhile, filtered here | | rows |
//! | `verify` | count and sum of row hashes, at one position of the stream on both sides | | |
//! | `fence` | the catalog closes the gates; every router says that nothing it sent is left; the server says that no transaction is; the rest of the stream is carried over | | |
//! | `commit` | **the catalog names the new owner**, and the gates open with it | | |
//! | `clean up` | what was made is removed; the leftovers are deleted when no older statement is left | (removed) | (removed) |
//! | `remove shard` | (merge, instead of deleting) the source's server is taken down | | |
//!
//! # Invariants
//!
//! Those of [`mover`](super), with other means: a server does not check who owns what, so *routers are held back* ([`pleat_host::Pass`]).
//!
//! 1. No row is brought to a server before every router leaves it out there.
//! 2. The commit is proposed only while the catalog has the gates closed, after every router has said that nothing is under way that may write, after the
//!    server has said so, and after the stream was carried over up to a mark that was set after that.
//! 3. The leader of an older term can't close gates, nor commit; and what it still sends to the target has no effect once the next one has cleaned up
//!    there (`pleat_engine::postgres::moving`).
//! 4. Whatever is made on servers has the operation's number in its name, and the operation does not end before it is gone.
//! 5. Gates are closed for [`FENCE_LIMIT`](fence::FENCE_LIMIT) at most, the commit's answer excepted. A client's transaction that is open too long makes them open again;
//!    clients wait no longer for it than for the budget of a pause.
//!
//! # A process dies …
//!
//! | who, while | and then |
//! | --- | --- |
//! | the control leader, before the commit | the next one opens the gates, removes what was made on both servers, deletes the rows, and starts anew |
//! | the control leader, at or after the commit | as in [`mover`](super) |
//! | a server | connections break, and the attempt is started anew; cleaning up waits for it |
//! | a node, with statements under way | the barriers wait for its word, up to a limit, then the attempt is started anew: no node is taken for dead |

mod attempt;
mod clean;
mod fence;

pub(crate) use attempt::BUILD_INDEXES;
pub(super) use attempt::{CHECK, attempt};
pub(super) use clean::{forward, take_back, take_back_patiently};
pub(crate) use fence::{FENCE_LIMIT, LONG_S, close, describe};

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use pleat_cluster::{Catalog, Command, Generation, ShardId, TableKind};
use pleat_engine::postgres::moving::{Movement, Moving};
use pleat_engine::postgres::{PostgresError, Server};
use pleat_host::HostError;
use tokio::time::{Instant, sleep};

use super::{INSIST_PAUSE_MIN, Plan};
use crate::stop::Stop;
use crate::work::Work;

/// How long one question to the routers may take before it is asked again.
const SETTLED_LIMIT: Duration = Duration::from_secs(2);
/// How long routers may take to end what they have under way, before the attempt is started anew.
const SETTLE_LIMIT: Duration = Duration::from_secs(120);

/// Open the gates, as far as this leader knows closed or not: a command that closes them may still be on its way.
pub(crate) async fn open_gates(work: &Work) -> Result<(), Stop> {
    let operation = work.operation()?;
    if operation.attempts == 0 || operation.committed || operation.given_up {
        return Ok(());
    }
    let (operation, epoch, at) = (work.id, work.tools.epochs.term(), work.cluster().now_ms());
    work.command(Command::SetGates { operation, closed: false, epoch, at }).await
}

/// Every router knows a generation, and has nothing under way on the shard that was planned before it.
async fn settle(work: &Work, shard: ShardId, generation: Generation, writes: bool) -> Result<(), Stop> {
    let begun = Instant::now();
    loop {
        let Some(why) = unsettled(work, shard, generation, writes, SETTLED_LIMIT).await else { return Ok(()) };
        work.is_at(|| format!("waits: {why}"))?;
        if begun.elapsed() >= SETTLE_LIMIT {
            return Err(Stop::Again(why));
        }
    }
}

/// What keeps the routers from saying that; `None`: they have.
pub(crate) async fn unsettled(
    work: &Work,
    shard: ShardId,
    generation: Generation,
    writes: bool,
    within: Duration,
) -> Option<String> {
    let catalog = work.catalog();
    let asked = catalog.active_nodes().map(|node| async {
        match work.cluster().settled(node.id, shard, generation, writes, within).await {
            Ok(0) => None,
            Ok(left) => Some(format!("{} has {left} statements or transactions under way on {shard}", node.name)),
            Err(error) => {
                // It may have been refused at once.
                sleep(INSIST_PAUSE_MIN).await;
                Some(format!("{} does not say what it has under way on {shard}: {error}", node.name))
            }
        }
    });
    let left: Vec<String> = join_all(asked).await.into_iter().flatten().collect();
    (!left.is_empty()).then(|| left.join("; "))
}

/// The servers of both sides.
fn servers(work: &Work, plan: &Plan) -> Result<(Server, Server), Stop> {
    Ok((server(work, plan.from)?, server(work, plan.to)?))
}

fn server(work: &Work, shard: ShardId) -> Result<Server, Stop> {
    let server = work.cluster().server(shard)?;
    server.ok_or_else(|| Stop::Again(format!("the server of {shard} was not started yet")))
}

/// What moves: rows of sharded tables, and for a new shard reference tables as a whole.
fn movement(catalog: &Catalog, work: &Work, plan: &Plan, attempt: u32) -> Movement {
    let of = |name: &str| match name.split_once('.') {
        Some((schema, name)) => (schema.to_owned(), name.to_owned()),
        None => ("public".to_owned(), name.to_owned()),
    };
    let tables = catalog.tables.values().filter_map(|table| {
        let key = match &table.kind {
            TableKind::Sharded { key, key_type } => Some((key.clone(), *key_type)),
            TableKind::Reference if plan.creates => None,
            TableKind::Reference | TableKind::Single { .. } => return None,
        };
        let (schema, name) = of(&table.name);
        Some(Moving { schema, name, key })
    });
    Movement {
        operation: work.id.0,
        attempt,
        partition_count: catalog.partition_count,
        partitions: plan.partitions.iter().map(|partition| partition.0).collect::<BTreeSet<u32>>(),
        tables: tables.collect(),
    }
}

/// What a server says is the end of the attempt, be it what it may: the next one begins with clean-up.
fn failed(doing: &str) -> impl Fn(PostgresError) -> Stop {
    move |error| Stop::from(HostError::from(error)).context(doing)
}
