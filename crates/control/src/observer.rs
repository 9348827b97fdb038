//! Looking at the cluster, and deciding: the autoscaler's loop.
//!
//! Every monitoring interval all nodes are asked side by side what they measure. `pleat-plan` holds that
//! against the policy; this module only fetches what it wants to know and journals what it concludes. A
//! decision and the operation that carries it out are one command, so there is never one without the other.

use std::time::Duration;

use futures::future::join_all;
use pleat_cluster::{Catalog, Command, PartitionId, TableKind};
use pleat_host::{HostError, NodeObservation, PartitionWeight, ShardObservation};
use pleat_plan::{Conclusion, History, Observed, ShardLoad, Weight, autoscale, worth_recording};
use tokio::time::sleep;

use crate::Cluster;
use crate::work::{COMMAND_LIMIT, Tools};

/// The shortest interval between two looks, whatever the policy says.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// A node that has not answered after this long is silent in this look.
const OBSERVE_LIMIT: Duration = Duration::from_secs(3);
/// How long counting a shard's partitions may take.
const WEIGHTS_LIMIT: Duration = Duration::from_secs(60);

/// Look and decide until this future is dropped, which is when leadership is lost.
pub(crate) async fn keep_observing(tools: Tools) {
    let mut history = History::default();
    loop {
        let catalog = tools.cluster.catalog();
        if !catalog.is_initialised() {
            // Its policy is not known yet, the interval included.
            sleep(INTERVAL_MIN).await;
            continue;
        }
        sleep(Duration::from_millis(catalog.policy.monitoring_interval_ms).max(INTERVAL_MIN)).await;
        let observed = observe(&*tools.cluster).await;
        if let Err(error) = decide(&*tools.cluster, &observed, &mut history).await {
            tracing::warn!(%error, "the decision was not journaled; looking again");
        }
    }
}

/// One look at all nodes, side by side.
pub(crate) async fn observe(cluster: &dyn Cluster) -> Observed {
    let catalog = cluster.catalog();
    let asked = catalog.active_nodes().map(|node| async { (node.id, cluster.observe(node.id, OBSERVE_LIMIT).await) });
    let mut observed = Observed::default();
    let mut newest = std::collections::BTreeMap::new();
    for (node, answer) in join_all(asked).await {
        let look = match answer {
            Ok(look) => look,
            Err(error) => {
                observed.silent.insert(node, error.to_string());
                continue;
            }
        };
        for shard in &look.shards {
            // Two nodes may both believe that they lead for a moment; the one with more of the log is right.
            if newest.get(&shard.shard).is_none_or(|applied| *applied < shard.applied_index) {
                newest.insert(shard.shard, shard.applied_index);
                // Our own clock: the nodes' clocks need not agree, and the look was taken just now.
                observed.shards.insert(shard.shard, load(&catalog, &look, shard, cluster.now_ms()));
            }
        }
    }
    observed
}

fn load(catalog: &Catalog, look: &NodeObservation, shard: &ShardObservation, now: u64) -> ShardLoad {
    let is_fixed = |name: &str| !catalog.table(name).is_some_and(|t| matches!(t.kind, TableKind::Sharded { .. }));
    let fixed = shard.rows_per_table.iter().filter(|(name, _)| is_fixed(name)).map(|(_, rows)| rows);
    let partition_load = (shard.partition_load.iter())
        .map(|(partition, load)| (PartitionId(*partition), load.reads_per_second + load.writes_per_second));
    ShardLoad {
        node: look.node,
        measured: now,
        rows: shard.total_rows,
        rows_fixed: fixed.sum(),
        bytes: shard.database_bytes,
        connections: shard.connections,
        queries_per_second: shard.queries_per_second,
        cpu_percent: look.resources.cpu_percent,
        memory_percent: look.resources.memory_percent,
        partition_load: partition_load.collect(),
    }
}

/// Come to a conclusion and journal it, when it is news.
pub(crate) async fn decide(cluster: &dyn Cluster, observed: &Observed, history: &mut History) -> Result<(), HostError> {
    let catalog = cluster.catalog();
    let mut draft = autoscale(&catalog, observed, cluster.now_ms(), history);
    // Each round concludes or turns one candidate down.
    let conclusion = loop {
        let weights = match draft.candidate().map(|candidate| candidate.shard) {
            None => Default::default(),
            Some(shard) => match cluster.partition_weights(shard, WEIGHTS_LIMIT).await {
                Ok(weights) => weights.into_iter().map(weight).collect(),
                Err(error) => {
                    tracing::warn!(%shard, %error, "partitions could not be counted");
                    draft.turn_down("its partitions could not be counted");
                    continue;
                }
            },
        };
        match draft.conclude(&catalog, weights) {
            Ok(conclusion) => break conclusion,
            Err(next) => draft = *next,
        }
    };
    record(cluster, &catalog, conclusion).await
}

async fn record(cluster: &dyn Cluster, catalog: &Catalog, conclusion: Conclusion) -> Result<(), HostError> {
    if !worth_recording(catalog, &conclusion) {
        return Ok(());
    }
    let Conclusion { decision, start } = conclusion;
    tracing::info!(reason = decision.verdict.reason(), acts = start.is_some(), "decided");
    let record = Command::RecordDecision { decision, start, at: cluster.now_ms() };
    cluster.command(record, COMMAND_LIMIT).await.map(drop)
}

fn weight((partition, weight): (PartitionId, PartitionWeight)) -> (PartitionId, Weight) {
    (partition, Weight { rows: weight.rows, bytes: weight.bytes, load: 0.0 })
}
