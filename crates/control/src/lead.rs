//! What the control leader does, for as long as it leads: found shards, then carry out operations, one at a
//! time, oldest first; moves that have not begun come last, since a rebalance asks for many. One that waits for a shard which is gone is stepped over, and looked after now and then; see
//! `pleat_cluster::Operation`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use pleat_cluster::{Catalog, Command, Operation, OperationId, OperationKind, Phase, Shard, ShardState};
use pleat_engine::Action;
use tokio::time::{Instant, sleep, timeout};

use crate::stop::Stop;
use crate::work::{COMMAND_LIMIT, Tools, Work};
use crate::{ddl, mover, place};

/// The pause after something failed, at first and at most.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Without a change of the catalog, it is looked at again this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// An operation that waits for a shard is looked after this often.
const WAITING_EVERY: Duration = Duration::from_secs(5);

/// What is to be done next.
#[derive(Debug, PartialEq)]
enum Next {
    /// Shards that the cluster was founded with.
    Found(Vec<Shard>),
    /// A shard that owns nothing and that no operation needs.
    Remove(Shard),
    Operation(OperationId),
    /// One that waits for shards: they may be back.
    Waiting(OperationId),
    Nothing,
}

/// Work until this future is dropped, which is when leadership is lost.
pub(crate) async fn lead(tools: Tools) {
    let mut changes = tools.cluster.watch_catalog();
    let mut retry = RETRY_MIN;
    let mut looked: BTreeMap<OperationId, Instant> = BTreeMap::new();
    loop {
        let catalog = changes.borrow_and_update().clone();
        let is_due = |id: &OperationId| looked.get(id).is_none_or(|at| at.elapsed() >= WAITING_EVERY);
        let outcome = match next(&catalog, is_due) {
            Next::Found(shards) => found(&tools, shards).await,
            Next::Remove(shard) => remove(&tools, &shard).await,
            Next::Operation(id) => carry_out(&tools, id).await,
            Next::Waiting(id) => {
                let outcome = look_after(&tools, id).await;
                looked.insert(id, Instant::now());
                outcome
            }
            Next::Nothing => {
                let _ = timeout(LOOK_EVERY, changes.changed()).await;
                continue;
            }
        };
        match outcome {
            Ok(()) => retry = RETRY_MIN,
            Err(Stop::Waiting(why)) => {
                tracing::info!(why, "control: an operation is put off");
                retry = RETRY_MIN;
            }
            Err(stop) => {
                tracing::warn!(why = stop.reason(), "control: trying again");
                sleep(retry).await;
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Founding shards come before operations: a schema change must reach every shard.
///
/// An operation that must not begin before one that waits is passed over as well, unless it was cancelled.
fn next(catalog: &Catalog, is_due: impl Fn(&OperationId) -> bool) -> Next {
    let idle = |shard: &&Shard| {
        shard.state == ShardState::Creating
            && !catalog
                .open_operations()
                .any(|open| matches!(open.kind, OperationKind::Split { to, .. } if to == shard.id))
    };
    let creating: Vec<Shard> = catalog.shards.values().filter(idle).cloned().collect();
    if let Some(unused) = creating.iter().find(|shard| catalog.units_of(shard.id).is_empty()) {
        return Next::Remove(unused.clone());
    }
    if !creating.is_empty() {
        return Next::Found(creating);
    }
    if let Some(waiting) = catalog.open_operations().find(|open| open.is_waiting() && is_due(&open.id)) {
        return Next::Waiting(waiting.id);
    }
    // A rebuild may take long, and moves nothing that the others change: it has a lane of its own (`rebuild`).
    let can_go = |open: &&Operation| {
        let begun = open.phase == Phase::Progressing || open.cancel_requested;
        let elsewhere = matches!(open.kind, OperationKind::Rebuild { .. });
        !elsewhere && !open.is_waiting() && (begun || catalog.held(&open.kind).is_none())
    };
    let rank = |open: &&Operation| {
        let begun = open.phase == Phase::Progressing || open.cancel_requested;
        (!begun, !begun && matches!(open.kind, OperationKind::Move { .. }), open.id)
    };
    let next = catalog.open_operations().filter(can_go).min_by_key(rank);
    next.map_or(Next::Nothing, |operation| Next::Operation(operation.id))
}

/// Give founding shards what they own, and route to them.
async fn found(tools: &Tools, shards: Vec<Shard>) -> Result<(), Stop> {
    let founded = join_all(shards.iter().map(|shard| found_one(tools, shard))).await;
    founded.into_iter().collect()
}

async fn found_one(tools: &Tools, shard: &Shard) -> Result<(), Stop> {
    let provided = tools.provisioner.provide(shard, tools.settings.provision_limit).await;
    provided.map_err(|error| Stop::Again(error.to_string()))?;
    let units = tools.cluster.catalog().units_of(shard.id);
    let layout = tools.cluster.catalog().layout;
    let own = Action::Own { units, ownership: shard.ownership, layout };
    crate::stop::took_effect(tools.cluster.write(shard.id, own, crate::work::EFFECT_LIMIT).await?)?;
    let activate = Command::ActivateShard { shard: shard.id, at: tools.cluster.now_ms() };
    tools.cluster.command(activate, COMMAND_LIMIT).await?;
    tracing::info!(shard = %shard.id, "shard founded");
    Ok(())
}

async fn remove(tools: &Tools, shard: &Shard) -> Result<(), Stop> {
    let at = tools.cluster.now_ms();
    tools.cluster.command(Command::RemoveShard { shard: shard.id, at }, COMMAND_LIMIT).await?;
    Ok(())
}

/// When a shard that an operation waits for is back, it goes on.
async fn look_after(tools: &Tools, id: OperationId) -> Result<(), Stop> {
    let work = Work::new(tools.clone(), id);
    let awaited = work.operation()?.waits_for;
    if work.unreached(&awaited).await.len() == awaited.len() {
        return Err(work.wait_for(awaited).await);
    }
    carry_out(tools, id).await
}

/// Carry out one operation, or take it up where an earlier leader left it.
pub(crate) async fn carry_out(tools: &Tools, id: OperationId) -> Result<(), Stop> {
    let work = Arc::new(Work::new(tools.clone(), id));
    work.take_over().await?;
    let operation = work.operation()?;
    tracing::info!(operation = %id, kind = operation.kind.name(), reason = operation.reason, "operation taken up");
    if let Some((effect, sql)) = ddl::of(&operation.kind) {
        if let Some((before, after)) = place::of(effect) {
            return place::carry_out(&work, before, after).await;
        }
        return ddl::carry_out(&work, effect, sql).await;
    }
    match mover::Plan::of(&operation) {
        Some(plan) => mover::carry_out(&work, plan).await,
        None => work.finish(Phase::Skipped, "nothing to do").await,
    }
}

#[cfg(test)]
mod tests {
    use pleat_cluster::{Cause, DdlEffect, NodeId, PartitionId, Policy, ShardId, View};

    use super::*;

    fn founded(shards: u32) -> Catalog {
        let mut catalog = Catalog::default();
        let init = Command::Init {
            cluster_id: "c".to_owned(),
            partition_count: 8,
            replication_factor: 1,
            nodes: vec![(NodeId(1), "node-1".to_owned(), "127.0.0.1:1".to_owned())],
            incarnations: Default::default(),
            shards,
            policy: Policy::default(),
            at: 1,
        };
        catalog.apply(&init).unwrap();
        catalog
    }

    fn split(catalog: &mut Catalog) -> OperationId {
        let kind = OperationKind::Split { from: ShardId(1), to: ShardId(2), partitions: vec![PartitionId(0)] };
        let cause = Cause::Request("test".to_owned());
        let start = Command::StartOperation { kind, cause, reason: String::new(), at: 1 };
        catalog.apply(&start).unwrap().operation.unwrap()
    }

    #[test]
    fn founding_shards_come_first_and_a_split_makes_its_own() {
        let mut catalog = founded(1);
        assert!(matches!(next(&catalog, |_| true), Next::Found(shards) if shards.len() == 1));
        catalog.apply(&Command::ActivateShard { shard: ShardId(1), at: 1 }).unwrap();
        assert_eq!(next(&catalog, |_| true), Next::Nothing);
        let operation = split(&mut catalog);
        assert_eq!(next(&catalog, |_| true), Next::Operation(operation));
    }

    #[test]
    fn moves_that_have_not_begun_let_others_go_first() {
        let mut catalog = founded(3);
        for shard in 1..=3 {
            catalog.apply(&Command::ActivateShard { shard: ShardId(shard), at: 1 }).unwrap();
        }
        let shift = |to: u32, partition: u32| {
            let (from, to) = (ShardId(1), ShardId(to));
            OperationKind::Move { from, to, partitions: vec![PartitionId(partition)] }
        };
        let (moves, cause) = (vec![shift(2, 0), shift(3, 1)], Cause::Request("test".to_owned()));
        let first = catalog.apply(&Command::StartMoves { moves, cause: cause.clone(), reason: String::new(), at: 1 });
        let first = first.unwrap().operation.unwrap();
        let view = View { name: "v".to_owned(), sql: "CREATE VIEW v AS SELECT 1".to_owned() };
        let kind = OperationKind::Ddl { effect: DdlEffect::CreateView(view), sql: String::new(), layout: 0 };
        let start = Command::StartOperation { kind, cause, reason: String::new(), at: 1 };
        let view = catalog.apply(&start).unwrap().operation.unwrap();
        assert_eq!(next(&catalog, |_| true), Next::Operation(view));
        let (step, detail) = ("capture".to_owned(), String::new());
        let begin = Command::JournalStep { operation: first, step, ended: false, detail, epoch: 1, at: 1 };
        catalog.apply(&begin).unwrap();
        assert_eq!(next(&catalog, |_| true), Next::Operation(first), "what has begun goes on");
    }

    #[test]
    fn a_shard_that_a_failed_split_left_is_removed() {
        let mut catalog = founded(1);
        catalog.apply(&Command::ActivateShard { shard: ShardId(1), at: 1 }).unwrap();
        let operation = split(&mut catalog);
        let (phase, message) = (Phase::Failed, String::new());
        catalog.apply(&Command::FinishOperation { operation, phase, message, epoch: 1, at: 1 }).unwrap();
        assert!(matches!(next(&catalog, |_| true), Next::Remove(shard) if shard.id == ShardId(2)));
    }
}
