//! The whole loop: measure, decide, split, until every shard is within its threshold.

use super::*;
use crate::Control;

fn set_policy(world: &World, change: impl FnOnce(&mut Policy)) {
    let mut policy = world.with(|inner| inner.catalog.policy.clone());
    policy.monitoring_interval_ms = 1_000;
    policy.cooldown_ms = 0;
    policy.action_window_ms = 0;
    change(&mut policy);
    world.ask(Command::SetPolicy { policy, at: 1 });
}

#[tokio::test(start_paused = true)]
async fn rows_over_the_threshold_split_shard_after_shard_and_each_says_why() {
    let world = furnished(1).await;
    world.with(|inner| {
        inner.clients = 2;
        inner.latency = Duration::from_millis(1);
    });
    set_policy(&world, |policy| {
        policy.thresholds.total_entries_per_shard = Some(120);
        policy.max_shards = 3;
    });
    let control = Control::start_on(world.clone(), Settings::default());
    let mut catalog = world.watch_catalog();
    let limit_named = |catalog: &Arc<Catalog>| {
        catalog.decisions.values().any(|decision| decision.verdict.reason().contains("max_shards allows (3)"))
    };
    let waited = tokio::time::timeout(Duration::from_secs(600), catalog.wait_for(limit_named)).await;
    drop(waited.expect("the cluster grows to its limit").unwrap());
    control.shutdown().await;
    world.with(|inner| {
        inner.check_quiet();
        assert_eq!(inner.catalog.active_shards().count(), 3);
        let splits: Vec<_> = inner.catalog.decisions.values().filter(|decision| decision.operation.is_some()).collect();
        assert_eq!(splits.len(), 2);
        for split in splits {
            assert!(split.verdict.reason().starts_with("total_entries of shard-"), "{}", split.verdict.reason());
            let operation = &inner.catalog.operations[&split.operation.unwrap()];
            assert_eq!((operation.phase, &operation.cause), (Phase::Successful, &Cause::Decision(split.id)));
        }
        let reasons: Vec<_> = inner.catalog.decisions.values().map(|decision| decision.verdict.reason()).collect();
        assert!(reasons.len() <= 12, "a quiet log: {reasons:#?}");
    });
}

#[tokio::test(start_paused = true)]
async fn manual_mode_recommends_and_does_nothing_until_it_is_approved() {
    let world = furnished(1).await;
    set_policy(&world, |policy| {
        policy.thresholds.total_entries_per_shard = Some(120);
        policy.mode = Mode::Manual;
    });
    let control = Control::start_on(world.clone(), Settings::default());
    tokio::time::sleep(Duration::from_secs(30)).await;
    let decision = world.with(|inner| {
        assert_eq!(inner.catalog.shards.len(), 1);
        assert_eq!(inner.catalog.decisions.len(), 1, "{:#?}", inner.catalog.decisions);
        let decision = inner.catalog.decisions.values().next().unwrap();
        assert!(matches!(decision.verdict, Verdict::Split { .. }) && decision.operation.is_none());
        decision.id
    });
    world.ask(Command::ApproveDecision { decision, at: 1 });
    let mut catalog = world.watch_catalog();
    let is_done = |catalog: &Arc<Catalog>| {
        let operation = catalog.decisions[&decision].operation.and_then(|id| catalog.operations.get(&id));
        operation.is_some_and(|operation| operation.phase == Phase::Successful)
    };
    drop(tokio::time::timeout(Duration::from_secs(600), catalog.wait_for(is_done)).await.expect("it is done").unwrap());
    control.shutdown().await;
    world.with(|inner| {
        inner.check_quiet();
        assert_eq!(inner.catalog.active_shards().count(), 2);
        let operation = &inner.catalog.operations[&inner.catalog.decisions[&decision].operation.unwrap()];
        assert_eq!(operation.cause, Cause::Decision(decision));
    });
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_lead_does_nothing() {
    let world = World::new(1);
    world.with(|inner| inner.leads = false);
    let control = Control::start_on(world.clone(), Settings::default());
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(world.with(|inner| inner.calls), 0);
    world.with(|inner| inner.leads = true);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.with(|inner| inner.catalog.shards[&ShardId(1)].state), ShardState::Active);
    control.shutdown().await;
}
