//! A group of one voter and one learner, beside the cluster's own groups, which all have three voters.
//!
//! A voter that is alone is a majority by itself: nobody else's disk stands between what it takes for committed and what it loses. Whoever
//! applies an entry of this group, on whatever node and however often, must find the same in it as everybody before.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pleat_cluster::NodeId;
use pleat_consensus::{Applied, Consensus, Entry, Group, GroupId, SnapshotJob, StateMachine};

use crate::world::World;

/// No shard has this number.
const LONE: GroupId = 1_000_000;
const VOTER: NodeId = NodeId(1);
const LEARNER: NodeId = NodeId(2);
/// The pause between two proposals, and how long one may take.
const PAUSE: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_millis(500);

/// What is known of the group, outside of its nodes.
#[derive(Default)]
pub struct Lone {
    /// What anybody has applied, by index.
    seen: BTreeMap<u64, Vec<Bytes>>,
    /// How far each replica's state is durable.
    synced: BTreeMap<NodeId, Applied>,
}

/// Takes part on a node that has a part.
pub async fn run(world: &World, node: NodeId, consensus: &Arc<Consensus>) -> anyhow::Result<()> {
    let lone = world.lone.clone();
    // Also a process that was only killed has lost what was not durable.
    let applied = lone.lock().synced.get(&node).cloned().unwrap_or_default();
    let machine = Box::new(Replica { node, world: world.clone(), applied: Arc::new(Mutex::new(applied)) });
    if node == VOTER {
        let group = consensus.start_group(LONE, machine).await?;
        group.initialize([VOTER].into()).await?;
        tokio::task::spawn_local(write(group));
    } else if node == LEARNER {
        consensus.join_group(LONE, machine).await?;
    }
    Ok(())
}

async fn write(group: Group) {
    for number in 0_u64.. {
        tokio::time::sleep(PAUSE).await;
        let status = group.status();
        if status.stopped.is_some() {
            return;
        }
        if status.ready && !status.learners.contains(&LEARNER) {
            // Until it is one it is asked to become one.
            let _ = group.welcome(LEARNER).await;
        }
        // What becomes of it is seen when it is applied.
        let _ = group.propose(Bytes::from(format!("{}/{number}", status.term)), LIMIT).await;
    }
}

struct Replica {
    node: NodeId,
    world: World,
    /// All of its state.
    applied: Arc<Mutex<Applied>>,
}

impl StateMachine for Replica {
    fn applied(&mut self) -> anyhow::Result<Applied> {
        Ok(self.applied.lock().clone())
    }

    fn apply(&mut self, entries: Vec<Entry>, applied: Applied) -> anyhow::Result<Vec<Vec<Bytes>>> {
        let mut lone = self.world.lone.lock();
        let mut outcomes = Vec::new();
        for Entry { index, proposals, .. } in entries {
            outcomes.push(proposals.clone());
            let known = lone.seen.entry(index).or_insert_with(|| proposals.clone());
            if *known != proposals {
                let node = self.node;
                self.world.wrong(format!("{node} finds {proposals:?} in entry {index}, where {known:?} was applied"));
            }
        }
        *self.applied.lock() = applied;
        Ok(outcomes)
    }

    fn checkpoint(&mut self) -> anyhow::Result<Applied> {
        let applied = self.applied.lock().clone();
        self.world.lone.lock().synced.insert(self.node, applied.clone());
        Ok(applied)
    }

    fn snapshot(&mut self) -> anyhow::Result<SnapshotJob> {
        let applied = self.applied.clone();
        Ok(Box::new(move |path: &Path| {
            let applied = applied.lock().clone();
            std::fs::write(path, postcard::to_stdvec(&applied)?)?;
            Ok(applied)
        }))
    }

    fn install(&mut self, _: &Path, applied: Applied) -> anyhow::Result<()> {
        *self.applied.lock() = applied;
        self.checkpoint().map(drop)
    }
}
