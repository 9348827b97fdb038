//! What forbids an action: for the moment, or until a time.
//!
//! Two rules space the autoscaler's actions. After *any* split or move has ended, be it a person's, nothing is done for
//! the policy's cool-down. And of its *own* actions it begins at most `max_actions` in any `action_window_ms`,
//! counted from the journal: so a new control leader counts as the one before it did. An action counts from its
//! beginning, whatever came of it. Measuring goes on while the limit holds, so that streaks are known when it ends.

use pleat_cluster::{Catalog, Cause, Millis, Operation, Phase, ShardState, rfc3339};

use crate::Observed;

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

/// What forbids any action right now.
pub(crate) fn hindrance(catalog: &Catalog, observed: &Observed, now: Millis) -> Option<String> {
    if let Some(operation) = catalog.open_operations().find(|operation| is_move(operation) && !operation.is_waiting()) {
        return Some(format!("{} ({}) is under way", operation.id, operation.kind.name()));
    }
    if let Some(shard) = catalog.shards.values().find(|shard| shard.state == ShardState::Creating) {
        return Some(format!("{} is still being created", shard.id));
    }
    if let Some(shard) = catalog.shards.values().find(|shard| shard.state == ShardState::Leaving) {
        return Some(format!("{} is still being taken down", shard.id));
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
    let mut ended: Vec<&Operation> =
        catalog.operations.values().filter(|op| is_move(op) && op.phase.is_final()).collect();
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
