//! Shards inside Pleat's own processes.

use std::time::Duration;

use async_trait::async_trait;
use pleat_cluster::{Shard, ShardId, ShardState};
use tokio::time::{Instant, sleep};

use crate::{Provided, ProvisionError, Provisioner};

/// The pause between two probes.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// How long one probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// Asks whether a shard has a leader that a majority of its replicas follows.
#[async_trait]
pub trait Probe: Send + Sync {
    /// Ok when a linearizable read succeeded within the limit; otherwise what is missing, for people.
    async fn probe(&self, shard: ShardId, within: Duration) -> Result<(), String>;
}

/// The embedded provisioner. Every node starts the replicas that the catalog gives it and destroys those
/// of removed shards by itself; see the crate's documentation.
#[derive(Debug)]
pub struct Embedded<P> {
    probe: P,
}

impl<P: Probe> Embedded<P> {
    pub fn new(probe: P) -> Self {
        Self { probe }
    }
}

#[async_trait]
impl<P: Probe> Provisioner for Embedded<P> {
    fn name(&self) -> &'static str {
        "embedded"
    }

    async fn provide(&self, shard: &Shard, within: Duration) -> Result<Provided, ProvisionError> {
        let begun = Instant::now();
        loop {
            let missing = match self.probe.probe(shard.id, PROBE_LIMIT.min(within)).await {
                Ok(()) => {
                    let nodes: Vec<_> = shard.replicas.iter().map(ToString::to_string).collect();
                    return Ok(Provided {
                        detail: format!("{} has a leader; replicas on {}", shard.id, nodes.join(", ")),
                    });
                }
                Err(missing) => missing,
            };
            let waited = begun.elapsed();
            if waited + PROBE_INTERVAL > within {
                let (shard, waited_ms) = (shard.id.to_string(), waited.as_millis());
                return Err(ProvisionError::NotReady { shard, waited_ms, missing });
            }
            sleep(PROBE_INTERVAL).await;
        }
    }

    async fn release(&self, shard: &Shard) -> Result<(), ProvisionError> {
        match shard.state {
            ShardState::Removed => Ok(()),
            ShardState::Creating | ShardState::Active | ShardState::Leaving => {
                Err(ProvisionError::InUse { shard: shard.id.to_string() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use pleat_cluster::NodeId;

    use super::*;

    /// Ready at the `ready_at`th probe.
    struct Script {
        ready_at: u32,
        probes: AtomicU32,
    }

    #[async_trait]
    impl Probe for Script {
        async fn probe(&self, _: ShardId, _: Duration) -> Result<(), String> {
            let probe = self.probes.fetch_add(1, Ordering::Relaxed) + 1;
            if probe >= self.ready_at { Ok(()) } else { Err("no replica has been elected".to_owned()) }
        }
    }

    fn embedded(ready_at: u32) -> Embedded<Script> {
        Embedded::new(Script { ready_at, probes: AtomicU32::new(0) })
    }

    fn shard(state: ShardState) -> Shard {
        Shard {
            id: ShardId(2),
            state,
            replicas: vec![NodeId(1), NodeId(3)],
            ownership: 1,
            since: 0,
            numbers: Default::default(),
            distrusted: Default::default(),
            disagreement: None,
            server: None,
            pair: Default::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_for_a_leader() {
        let provided = embedded(5).provide(&shard(ShardState::Creating), Duration::from_secs(5)).await.unwrap();
        assert_eq!(provided.detail, "shard-2 has a leader; replicas on node-1, node-3");
    }

    #[tokio::test(start_paused = true)]
    async fn it_says_what_is_missing_when_time_is_up() {
        let error = embedded(1000).provide(&shard(ShardState::Creating), Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.to_string(), "shard-2 is not ready after 1000 ms: no replica has been elected");
    }

    #[tokio::test]
    async fn only_removed_shards_are_taken_down() {
        assert!(embedded(1).release(&shard(ShardState::Active)).await.is_err());
        assert_eq!(embedded(1).release(&shard(ShardState::Removed)).await, Ok(()));
    }
}
