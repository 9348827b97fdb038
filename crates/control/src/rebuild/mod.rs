//! Rebuilding: nodes that lost their disk, and replicas whose content differs.
//!
//! # The problem
//!
//! Majorities are made of promises: votes, and entries that were acknowledged. A node that lost its disk has forgotten
//! them and must not count in its old place; and it can't be told to forget them safely but by taking it out of every
//! majority first. A replica whose content differs from the others' kept its promises, but what it would answer
//! is wrong; made anew it loses its log, and with it the promises: the same problem again.
//!
//! # The mechanism
//!
//! `Rebuild { node, shard }` (without a shard: the whole node) has these steps, for the control group (whole node only) and
//! each shard in question:
//!
//! | step | what happens |
//! | --- | --- |
//! | `remove` | once a majority of the *other* voters is seen to run (else the group would stand still), the node is removed from the voters. That is committed before the next step: from here on nobody counts its old promises |
//! | `commit` | the catalog admits the node's new incarnation and raises the number of its replicas. Seeing that, the node destroys what it may have of lower numbers, and starts empty replicas |
//! | `rejoin …` | once the node is seen to run the replica of the new number: it becomes a learner, is sent a snapshot and the log, and when it has caught up, a voter |
//!
//! Why removal makes forgetting safe is argued in `pleat-consensus` (`members`). Why nothing can be promoted that
//! has not got the content: only a learner is promoted, and only when its log matches the leader's; learners are made
//! only of replicas of the present number; and the number rises only when the node is no member.
//!
//! Rebuilds have a lane of their own, beside schema changes and moves: they touch only who is a member, and a large
//! replica takes long to copy. Reads and writes go on; a diverged replica serves nothing from the moment on that its node
//! sees the operation in the catalog.
//!
//! # A process dies …
//!
//! | which, while | and then |
//! | --- | --- |
//! | the control leader, anywhere | the next one does the steps again from the start, or after the commit from there; each does nothing when done before |
//! | a group's leader | its successor finishes a change that is half done, when it is asked again |
//! | the node, and returns | it goes on: its replica is known by its number |
//! | the node, and stays away | after [`AWAY_MAX`] the rebuild fails, and the others go on without it; another one is started when it answers again |
//! | the node, and its disk is lost again | its newer incarnation is seen in the catalog: the rebuild fails, and another one begins from the start |
//!
//! # Who starts one
//!
//! [`watch`] looks at all nodes every second: a node that waits with a new incarnation, one that should be a voter and
//! isn't (a rebuild failed half way), and a replica that differs from a majority.

mod carry_out;
mod watch;

use std::time::Duration;

use pleat_cluster::OperationKind;
use tokio::time::sleep;

use crate::lead::until_changed;
use crate::work::Tools;

/// A node that is to be rebuilt and does not answer for this long is given up for now.
pub(crate) const AWAY_MAX: Duration = Duration::from_secs(15);
/// How long a step waits for a group that is without a leader, or without a majority beside the node, before the
/// rebuild is given up for now.
const GROUP_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long catching up may take in all.
const CATCH_UP_MAX: Duration = Duration::from_secs(4 * 3600);
/// A learner whose log is at most this many entries behind becomes a voter.
const LAG_MAX: u64 = 64;
/// The pause between two looks at how far something is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a node may take to tell of its replicas.
const TELL_LIMIT: Duration = Duration::from_secs(2);
/// How long one change of members may take.
const CHANGE_LIMIT: Duration = Duration::from_secs(10);
/// The pause after a failure of the journal.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Watch over the replicas, and rebuild one after the other, until this future is dropped, which is when leadership
/// is lost.
pub(crate) async fn keep_rebuilding(tools: Tools) {
    futures::future::join(watch::keep_watching(&tools), keep_carrying_out(&tools)).await;
}

async fn keep_carrying_out(tools: &Tools) {
    let mut changes = tools.cluster.watch_catalog();
    loop {
        let catalog = changes.borrow_and_update().clone();
        let mut open = catalog.open_operations();
        let next = open.find_map(|open| match open.kind {
            OperationKind::Rebuild { node, shard } => Some((open.id, node, shard)),
            _ => None,
        });
        let Some((id, node, shard)) = next else {
            until_changed(&mut changes, RETRY_PAUSE).await;
            continue;
        };
        if let Err(stop) = carry_out::carry_out(tools, id, node, shard).await {
            tracing::warn!(operation = %id, why = stop.reason(), "rebuild: trying again");
            sleep(RETRY_PAUSE).await;
        }
    }
}
