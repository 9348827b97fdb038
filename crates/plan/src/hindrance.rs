//! What forbids an action: for the moment, or until a time.
//!
//! A split may be urgent, so what is under way forbids it only where that matters: on shards that have a part in a split or a merge, or in
//! a move that has begun, and wherever what was measured is not the shard's own doing, such as the CPU of a node that copies rows. The
//! moves of a rebalance that have not begun forbid nothing; the split goes first. A merge can wait until nothing moves.
//!
//! Two rules space the autoscaler's actions. After *any* split or merge has ended, be it a person's, nothing is done for
//! the policy's cool-down; the same goes for moves between shards that there are, but while others of them are still to come, only
//! the shards that had a part cool down. And of its *own* actions it begins at most `max_actions` in any `action_window_ms`,
//! counted from the journal: so a new control leader counts as the one before it did. An action counts from its
//! beginning, whatever came of it. Measuring goes on while the limit holds, so that streaks are known when it ends.

use pleat_cluster::{Catalog, Cause, Millis, Operation, OperationKind, Phase, Shard, ShardId, ShardState, rfc3339};

use crate::{Metric, Observed};

/// A measurement older than this many monitoring intervals counts as missing.
const STALE_AFTER_INTERVALS: u64 = 3;
/// After failures in a row the cool-down doubles at most this often.
const COOLDOWN_DOUBLINGS_MAX: u32 = 6;

/// The policy's number of actions in a time is used up: until when.
pub(crate) fn limit(catalog: &Catalog, now: Millis) -> Option<String> {
    let (most, window) = (catalog.policy.max_actions as usize, catalog.policy.action_window_ms);
    let is_own = |operation: &&Operation| is_move(operation) && matches!(operation.cause, Cause::Decision(_));
    let mut begun: Vec<&Operation> = (catalog.operations.values())
        .filter(is_own)
        .filter(|operation| now < operation.created.saturating_add(window))
        .collect();
    begun.sort_by_key(|operation| (operation.created, operation.id));
    let oldest = begun.len().checked_sub(most).and_then(|beyond| begun.get(beyond))?;
    let (until, seconds) = (rfc3339(oldest.created.saturating_add(window)), window as f64 / 1000.0);
    let actions = if most == 1 { "1 action".to_owned() } else { format!("{most} actions") };
    Some(format!("max_actions allows {actions} in {seconds} s, and since {} the next one is due at {until}", oldest.id))
}

/// What moves partitions right now, or is about to.
pub(crate) fn under_way(catalog: &Catalog) -> Option<String> {
    catalog.open_moves().next().map(under_way_is)
}

fn under_way_is(operation: &Operation) -> String {
    format!("{} ({}) is under way", operation.id, operation.kind.name())
}

/// What forbids a split of this shard, because of this metric. `None` as a shard: the metric is one of the whole cluster.
pub(crate) fn of_split(catalog: &Catalog, shard: Option<ShardId>, metric: Metric, now: Millis) -> Option<String> {
    let is_queued = |open: &Operation| open.phase == Phase::Pending && is_of_rebalance(open);
    let Some(shard) = shard else { return catalog.open_moves().find(|open| !is_queued(open)).map(under_way_is) };
    if let Some(open) = catalog.open_moves().find(|open| !is_queued(open) && has_part(open, shard)) {
        return Some(under_way_is(open));
    }
    if let Some(open) = catalog.begun_moves().find(|_| metric.is_of_node()) {
        return Some(format!("{}, and what is measured of nodes is partly its doing", under_way_is(open)));
    }
    let scaling: Vec<&Operation> = catalog.open_moves().filter(|open| !is_of_rebalance(open)).collect();
    if scaling.len() >= Catalog::MOVES_BEGUN_MAX {
        let ids: Vec<String> = scaling.iter().map(|open| open.id.to_string()).collect();
        let (ids, most) = (ids.join(" and "), Catalog::MOVES_BEGUN_MAX);
        return Some(format!("{ids} are under way, and no more than {most} are at a time"));
    }
    let moved = |other: &&Operation| is_of_rebalance(other) && other.phase.is_final() && has_part(other, shard);
    let last = catalog.operations.values().filter(moved).max_by_key(|other| (other.updated, other.id))?;
    let pause = catalog.policy.cooldown_ms;
    (now < last.updated.saturating_add(pause))
        .then(|| format!("{shard} is cooling down for {pause} ms after {}", last.id))
}

fn has_part(operation: &Operation, shard: ShardId) -> bool {
    operation.kind.moves().is_some_and(|(from, to, _)| from == shard || to == shard)
}

/// Between shards that there are: nobody asks for these one by one.
fn is_of_rebalance(operation: &Operation) -> bool {
    matches!(operation.kind, OperationKind::Move { .. })
}

/// What forbids any action right now.
pub(crate) fn hindrance(catalog: &Catalog, observed: &Observed, now: Millis) -> Option<String> {
    let is_made = |shard: &Shard| {
        catalog.open_moves().any(|open| matches!(open.kind, OperationKind::Split { to, .. } if to == shard.id))
    };
    let creating = |shard: &&Shard| shard.state == ShardState::Creating && !is_made(shard);
    if let Some(shard) = catalog.shards.values().find(creating) {
        return Some(format!("{} is still being created", shard.id));
    }
    if let Some(reason) = cooldown(catalog, now) {
        return Some(reason);
    }
    let stale = STALE_AFTER_INTERVALS.saturating_mul(catalog.policy.monitoring_interval_ms);
    for shard in catalog.active_shards() {
        match observed.shards.get(&shard.id) {
            None => return Some(format!("there is no measurement of {}{}", shard.id, silence(observed))),
            Some(load) if load.measured.saturating_add(stale) < now => {
                return Some(format!("the newest measurement of {} is more than {stale} ms old", shard.id));
            }
            Some(_) => {}
        }
    }
    None
}

/// What forbids a split, and nothing else.
pub(crate) fn full(catalog: &Catalog) -> Option<String> {
    let shards = catalog.shards.values().filter(|shard| shard.state != ShardState::Removed).count();
    let limit = catalog.policy.max_shards;
    (shards >= limit as usize).then(|| format!("the cluster has as many shards as max_shards allows ({limit})"))
}

fn silence(observed: &Observed) -> String {
    let silent: Vec<String> = observed.silent.keys().map(ToString::to_string).collect();
    if silent.is_empty() { String::new() } else { format!(" (no answer from {})", silent.join(", ")) }
}

fn cooldown(catalog: &Catalog, now: Millis) -> Option<String> {
    let more_come = catalog.open_moves().any(is_of_rebalance);
    let ended = |op: &&Operation| is_move(op) && op.phase.is_final() && !(more_come && is_of_rebalance(op));
    let mut ended: Vec<&Operation> = catalog.operations.values().filter(ended).collect();
    ended.sort_by_key(|operation| (operation.updated, operation.id));
    let last = ended.last()?;
    let failures = ended.iter().rev().take_while(|operation| operation.phase == Phase::Failed).count() as u32;
    let doublings = failures.saturating_sub(1).min(COOLDOWN_DOUBLINGS_MAX);
    let pause = catalog.policy.cooldown_ms.saturating_mul(1 << doublings);
    let failed = if last.phase == Phase::Failed { ", which failed" } else { "" };
    (now < last.updated.saturating_add(pause)).then(|| format!("cooling down for {pause} ms after {}{failed}", last.id))
}

fn is_move(operation: &Operation) -> bool {
    operation.kind.moves().is_some()
}
