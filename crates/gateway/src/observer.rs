//! Looking at the whole cluster at once.
//!
//! Each node measures itself and the shards it leads; what the cluster shows is asked of all nodes side by
//! side. A node that does not answer in time leaves its shards without figures: they are shown as
//! unhealthy, never with made-up or stale numbers. Looks are shared: whoever asks while one is under way,
//! or within [`OBSERVATION_AGE_MAX`] after it, gets that one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use pleat_cluster::{Millis, NodeId, ShardId};
use pleat_host::{NodeObservation, Resources, ShardObservation};
use tokio::sync::Mutex;

use crate::backend::Backend;
use crate::settings::OBSERVATION_AGE_MAX;

/// How long a node may take to tell its figures.
const LOOK_TIME_MAX: Duration = Duration::from_secs(2);

/// One look at the cluster.
#[derive(Debug, Default)]
pub struct Look {
    /// Each active node: what it measured, or why it could not be asked.
    pub nodes: BTreeMap<NodeId, Result<NodeObservation, String>>,
}

/// A shard as its leader sees it.
#[derive(Clone, Copy, Debug)]
pub struct ShardLook<'a> {
    pub node: NodeId,
    pub at: Millis,
    pub resources: &'a Resources,
    pub shard: &'a ShardObservation,
}

impl Look {
    /// The figures of `shard`. When two nodes believe to lead it, those of the one that has applied more.
    pub fn shard(&self, shard: ShardId) -> Option<ShardLook<'_>> {
        let seen = self.nodes.values().filter_map(|node| node.as_ref().ok()).flat_map(|node| {
            node.shards.iter().filter(|seen| seen.shard == shard).map(|shard| ShardLook {
                node: node.node,
                at: node.at,
                resources: &node.resources,
                shard,
            })
        });
        seen.max_by_key(|seen| seen.shard.applied_index)
    }

    /// Why `nodes` could not be asked, for people.
    pub fn trouble(&self, nodes: &[NodeId]) -> String {
        let told: Vec<String> = (nodes.iter())
            .filter_map(|node| match self.nodes.get(node) {
                Some(Err(error)) => Some(format!("{node}: {error}")),
                _ => None,
            })
            .collect();
        if told.is_empty() { "no node leads it at the moment".to_owned() } else { told.join("; ") }
    }
}

/// Looks at the cluster, and shares the looks.
pub struct Observer {
    backend: Arc<dyn Backend>,
    last: Mutex<Option<(Instant, Arc<Look>)>>,
}

impl Observer {
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend, last: Mutex::new(None) }
    }

    /// A look that is at most [`OBSERVATION_AGE_MAX`] old.
    pub async fn look(&self) -> Arc<Look> {
        // Held while looking, so that those who come meanwhile wait and share the result.
        let mut last = self.last.lock().await;
        if let Some((at, look)) = &*last
            && at.elapsed() < OBSERVATION_AGE_MAX
        {
            return look.clone();
        }
        let look = Arc::new(self.take().await);
        *last = Some((Instant::now(), look.clone()));
        look
    }

    async fn take(&self) -> Look {
        let catalog = self.backend.catalog();
        let asked = catalog.active_nodes().map(|node| async {
            let seen = tokio::time::timeout(LOOK_TIME_MAX, self.backend.observe(node.id, LOOK_TIME_MAX)).await;
            let seen = match seen {
                Ok(seen) => seen.map_err(|error| error.to_string()),
                Err(_) => Err(format!("no answer within {} ms", LOOK_TIME_MAX.as_millis())),
            };
            (node.id, seen)
        });
        Look { nodes: join_all(asked).await.into_iter().collect() }
    }
}
