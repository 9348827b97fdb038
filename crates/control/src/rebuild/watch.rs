//! Looking for what has to be rebuilt.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use pleat_cluster::{
    Catalog, Cause, Command, Engine, NodeId, Operation, OperationKind, Phase, Shard, ShardId, ShardState,
};
use pleat_host::{GroupView, HostError, MemberChange, NodeReplicas};
use pleat_plan::{Comparison, compare};
use tokio::time::sleep;

use super::{CHANGE_LIMIT, TELL_LIMIT};
use crate::work::{COMMAND_LIMIT, Tools};

/// The pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What is not a fact of the catalog must be seen so often in a row: leaders change, and answers cross.
const LOOKS_NEEDED: u32 = 3;
/// Replicas that differ without a majority are spoken of after so many looks: a third one may be just about to tell.
const UNDECIDED_LOOKS: u32 = 10;
/// After a rebuild failed, the next one of the same replica waits for this long, in milliseconds.
const PAUSE_AFTER_FAILURE_MS: u64 = 5_000;
/// Tables that a reason names.
const TABLES_NAMED_MAX: usize = 8;

/// What to rebuild: a node's replica of a shard, or all of the node.
type Target = (NodeId, Option<ShardId>);

/// What was seen in earlier looks.
#[derive(Default)]
struct Seen {
    /// How often in a row a node was no voter where it should be.
    missing: BTreeMap<Target, u32>,
    /// How often in a row a group was seen with a change of voters half done.
    joint: BTreeMap<Option<ShardId>, u32>,
    /// How often in a row the replicas of a shard were seen to differ, with no majority.
    undecided: BTreeMap<ShardId, u32>,
    /// Nodes of servers that were told of as lost.
    lost: BTreeSet<NodeId>,
}

type Told = BTreeMap<NodeId, NodeReplicas>;

/// Look until this future is dropped.
pub(super) async fn keep_watching(tools: &Tools) {
    let mut seen = Seen::default();
    loop {
        sleep(LOOK_EVERY).await;
        let catalog = tools.cluster.catalog();
        if !catalog.is_initialised() {
            continue;
        }
        if catalog.engine == Engine::Postgres {
            tell_of_lost(&catalog, &mut seen);
            continue;
        }
        if let Err(error) = look(tools, &mut seen).await {
            tracing::warn!(%error, "rebuild: what was found was not journaled; looking again");
        }
    }
}

/// A server's data is on its node alone: when that has lost its disk, nothing can be rebuilt from others.
fn tell_of_lost(catalog: &Catalog, seen: &mut Seen) {
    let lost: BTreeSet<NodeId> =
        catalog.active_nodes().filter(|node| node.waiting.is_some()).map(|node| node.id).collect();
    for node in lost.difference(&seen.lost) {
        tracing::error!(%node, "the node came back without its data, and its shards are lost; bring its directory back from a copy");
    }
    seen.lost = lost;
}

async fn look(tools: &Tools, seen: &mut Seen) -> Result<(), HostError> {
    let catalog = tools.cluster.catalog();
    let ask = |node: NodeId| async move { tools.cluster.replicas(node, TELL_LIMIT).await.ok() };
    let told: Told = join_all(catalog.active_nodes().map(|node| ask(node.id)))
        .await
        .into_iter()
        .flatten()
        .map(|told| (told.node, told))
        .collect();
    settle(tools, &catalog, &told, seen).await;
    for (target, reason) in members_missing(&catalog, &told, seen) {
        start(tools, target, reason).await?;
    }
    for shard in catalog.shards.values().filter(|shard| shard.state == ShardState::Active) {
        compare_replicas(tools, shard, &told, seen).await?;
    }
    Ok(())
}

/// Finish changes of voters that were left half done by a rebuild that was given up.
async fn settle(tools: &Tools, catalog: &Catalog, told: &Told, seen: &mut Seen) {
    let shards = catalog.shards.values().filter(|shard| shard.state == ShardState::Active).map(|shard| Some(shard.id));
    let rebuilding = catalog.open_operations().any(|open| matches!(open.kind, OperationKind::Rebuild { .. }));
    for part in [None].into_iter().chain(shards) {
        if rebuilding || !leads(told, part).is_some_and(|view| view.joint) {
            seen.joint.remove(&part);
            continue;
        }
        let looks = seen.joint.entry(part).or_insert(0);
        *looks += 1;
        if *looks >= LOOKS_NEEDED
            && let Err(error) = tools.cluster.members(part, MemberChange::Settle, CHANGE_LIMIT).await
        {
            tracing::warn!(%error, ?part, "a half done change of members was not finished; trying again");
        }
    }
}

/// Nodes that wait to be admitted, and replicas that should vote and don't.
fn members_missing(catalog: &Catalog, told: &Told, seen: &mut Seen) -> Vec<(Target, String)> {
    let mut found = Vec::new();
    let mut missing = BTreeSet::new();
    for node in catalog.active_nodes() {
        let Some(answer) = told.get(&node.id) else { continue };
        if let Some(waiting) = node.waiting {
            if answer.incarnation == waiting {
                found.push(((node.id, None), format!("{} came back without its data", node.name)));
            }
            continue;
        }
        if answer.control.is_some() && leads(told, None).is_some_and(|view| !view.voters.contains(&node.id)) {
            // Its shards come with it.
            missing.insert((node.id, None));
            continue;
        }
        for shard in catalog.shards.values() {
            if shard.state != ShardState::Active || !shard.replicas.contains(&node.id) {
                continue;
            }
            let target = (node.id, Some(shard.id));
            if shard.distrusted.contains(&node.id) {
                found.push((target, format!("the content of {} on {} is not to be trusted", shard.id, node.name)));
            } else if leads(told, Some(shard.id)).is_some_and(|view| !view.voters.contains(&node.id)) {
                missing.insert(target);
            }
        }
    }
    seen.missing.retain(|target, _| missing.contains(target));
    for target in missing {
        let looks = seen.missing.entry(target).or_insert(0);
        *looks += 1;
        if *looks >= LOOKS_NEEDED {
            let group = target.1.map_or_else(|| "the control group".to_owned(), |shard| shard.to_string());
            found.push((target, format!("{} is not a voter of {group}", target.0)));
        }
    }
    found
}

/// The group as its leader sees it: of two that believe to lead, the one of the newer term.
fn leads(told: &Told, part: Option<ShardId>) -> Option<&GroupView> {
    let views = told.values().filter_map(|told| match part {
        None => told.control.as_ref(),
        Some(id) => told.shards.iter().find(|replica| replica.shard == id).map(|replica| &replica.group),
    });
    views.filter(|view| view.leads).max_by_key(|view| view.term)
}

/// Journal a rebuild, unless one is open or has failed just now.
async fn start(tools: &Tools, target: Target, reason: String) -> Result<(), HostError> {
    let (catalog, now) = (tools.cluster.catalog(), tools.cluster.now_ms());
    let (node, shard) = target;
    let kind = OperationKind::Rebuild { node, shard };
    let failed_just_now = |operation: &Operation| {
        operation.kind == kind
            && operation.phase == Phase::Failed
            && now < operation.updated.saturating_add(PAUSE_AFTER_FAILURE_MS)
    };
    if catalog.rebuilding(node, shard).is_some() || catalog.operations.values().any(failed_just_now) {
        return Ok(());
    }
    tracing::warn!(%node, ?shard, reason, "a rebuild is needed");
    let cause = Cause::Request("the cluster's own watch".to_owned());
    let start = Command::StartOperation { kind, cause, reason, at: now };
    tools.cluster.command(start, COMMAND_LIMIT).await.map(drop)
}

async fn compare_replicas(tools: &Tools, shard: &Shard, told: &Told, seen: &mut Seen) -> Result<(), HostError> {
    let Some(view) = leads(told, Some(shard.id)) else { return Ok(()) };
    let mut reports = BTreeMap::new();
    for (node, told) in told {
        // What a replica of an earlier number tells, or one that is given up, is of no interest.
        let current = |report: &&pleat_host::ReplicaReport| {
            report.shard == shard.id && report.number == shard.number(*node) && !shard.distrusted.contains(node)
        };
        if let Some(report) = told.shards.iter().find(current) {
            reports.insert(*node, report.digests.clone());
        }
    }
    match compare(&view.voters, &reports) {
        Comparison::Open => Ok(()),
        Comparison::Agree { .. } => {
            seen.undecided.remove(&shard.id);
            match shard.disagreement {
                Some(_) => {
                    tracing::info!(shard = %shard.id, "the replicas agree again");
                    note(tools, shard.id, None).await
                }
                None => Ok(()),
            }
        }
        Comparison::Diverged { index, nodes, majority } => {
            seen.undecided.remove(&shard.id);
            for node in nodes {
                let tables = differing(tools, shard.id, index, node, majority[0]).await;
                let reason = format!(
                    "the replica of {} on {node} differs at entry {index} from those on {}: {tables}",
                    shard.id,
                    names(&majority)
                );
                tracing::error!(shard = %shard.id, %node, index, reason, "a replica has diverged");
                start(tools, (node, Some(shard.id)), reason).await?;
            }
            Ok(())
        }
        Comparison::Undecided { index, nodes, missing } => {
            let looks = seen.undecided.entry(shard.id).or_insert(0);
            *looks += 1;
            if shard.disagreement.is_some() || (!missing.is_empty() && *looks < UNDECIDED_LOOKS) {
                return Ok(());
            }
            let tables = differing(tools, shard.id, index, nodes[0], nodes[nodes.len() - 1]).await;
            let what = format!(
                "the replicas on {} differ at entry {index} and no majority says which is right: {tables}",
                names(&nodes)
            );
            tracing::error!(shard = %shard.id, index, what, "replicas differ, and nothing can be rebuilt from them");
            note(tools, shard.id, Some(what)).await
        }
    }
}

async fn note(tools: &Tools, shard: ShardId, what: Option<String>) -> Result<(), HostError> {
    let at = tools.cluster.now_ms();
    tools.cluster.command(Command::NoteDisagreement { shard, what, at }, COMMAND_LIMIT).await.map(drop)
}

/// In which tables two replicas differ, for people.
async fn differing(tools: &Tools, shard: ShardId, index: u64, one: NodeId, other: NodeId) -> String {
    let of = |node| tools.cluster.digest(node, shard, index, TELL_LIMIT);
    let (Ok(Some(one)), Ok(Some(other))) = futures::future::join(of(one), of(other)).await else {
        return "the tables could not be asked for".to_owned();
    };
    let tables = one.differences(&other);
    let more = match tables.len().saturating_sub(TABLES_NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named: Vec<_> = tables.into_iter().take(TABLES_NAMED_MAX).collect();
    format!("table {}{more}", named.join(", "))
}

fn names(nodes: &[NodeId]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}
