//! Rebuilds: broken off at every call, without the node, and of replicas that differ.

use super::world::Fault;
use super::*;
use crate::rebuild::keep_rebuilding;

const TWO: NodeId = NodeId(2);

async fn three_nodes() -> Arc<World> {
    let world = World::with_nodes(3, 2);
    until_quiet(&world).await;
    world.with(Inner::begin);
    world
}

/// Node 2 comes back without its data.
fn lose_disk(world: &World, life: u64) {
    world.with(|inner| inner.members.lives.insert(TWO, life));
    let (id, name, address) = (TWO, "node-2".to_owned(), "127.0.0.1:2".to_owned());
    world.ask(Command::RegisterNode { id, name, address, incarnation: life, at: 1 });
}

/// Watch and rebuild until `done`; a leader that dies is followed by another.
async fn rebuild_until(world: &Arc<World>, done: impl Fn(&Catalog) -> bool) {
    let limit = tokio::time::sleep(Duration::from_secs(3600));
    tokio::pin!(limit);
    loop {
        let mut catalog = world.watch_catalog();
        tokio::select! {
            () = keep_rebuilding(tools(world)) => unreachable!("it ends when it is dropped"),
            _ = catalog.wait_for(|catalog| done(catalog)) => return,
            () = world.crashed.notified() => world.with(Inner::next_term),
            () = &mut limit => panic!("it takes for ever: {:#?}", world.with(|inner| inner.catalog.operations.clone())),
        }
    }
}

fn rebuilds(catalog: &Catalog, phase: Phase) -> usize {
    let is = |one: &&Operation| matches!(one.kind, OperationKind::Rebuild { .. }) && one.phase == phase;
    catalog.operations.values().filter(is).count()
}

/// Until node 2 votes again wherever it should, and no operation is open.
async fn rebuild_wholly(world: &Arc<World>) {
    let members = || world.with(|inner| inner.members.whole(&inner.catalog));
    rebuild_until(world, |catalog| {
        catalog.open_operations().count() == 0 && rebuilds(catalog, Phase::Successful) > 0 && members()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_dies_at_any_call_is_followed_by_one_that_ends_the_rebuild() {
    let mut calls = u64::MAX;
    let mut call = 0;
    while call < calls {
        call += 1;
        for fault in [Fault::CrashBefore(call), Fault::CrashAfter(call), Fault::Lost(call), Fault::Unreachable(call)] {
            let world = three_nodes().await;
            lose_disk(&world, 77);
            world.with(|inner| inner.faults.push(fault));
            rebuild_wholly(&world).await;
            world.with(|inner| {
                assert_eq!((inner.catalog.nodes[&TWO].incarnation, inner.catalog.nodes[&TWO].waiting), (77, None));
                calls = calls.min(inner.calls);
            });
        }
    }
    assert!(call > 10, "{call}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_goes_away_again_holds_nobody_up_and_is_rebuilt_when_it_returns() {
    let world = three_nodes().await;
    lose_disk(&world, 77);
    rebuild_until(&world, |catalog| catalog.nodes[&TWO].waiting.is_none()).await;
    assert!(world.with(|inner| inner.members.down.insert(TWO)));
    rebuild_until(&world, |catalog| rebuilds(catalog, Phase::Failed) == 1).await;
    // Whoever changes the schema meanwhile need not wait for it.
    world.start(create(users()));
    until_quiet(&world).await;
    world.with(|inner| inner.members.down.clear());
    rebuild_wholly(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_lost_twice_is_rebuilt_from_the_start() {
    let world = three_nodes().await;
    lose_disk(&world, 77);
    rebuild_until(&world, |catalog| catalog.nodes[&TWO].waiting.is_none()).await;
    lose_disk(&world, 78);
    rebuild_wholly(&world).await;
    world.with(|inner| {
        assert_eq!(inner.catalog.nodes[&TWO].incarnation, 78);
        assert_eq!(rebuilds(&inner.catalog, Phase::Failed), 1);
    });
}

#[tokio::test(start_paused = true)]
async fn nobody_is_removed_while_too_few_others_run() {
    let world = three_nodes().await;
    lose_disk(&world, 77);
    assert!(world.with(|inner| inner.members.down.insert(NodeId(3))));
    // The fake group asserts that no removal is asked for.
    rebuild_until(&world, |catalog| rebuilds(catalog, Phase::Failed) == 1).await;
    assert_eq!(world.with(|inner| inner.catalog.nodes[&TWO].waiting), Some(77));
    world.with(|inner| inner.members.down.clear());
    rebuild_wholly(&world).await;
}

fn digest(world: &World, node: u64, index: u64, digest: u64) {
    let of = (NodeId(node), ShardId(1));
    assert_eq!(world.with(|inner| inner.members.digests.entry(of).or_default().insert(index, digest)), None);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_differs_from_a_majority_is_rebuilt_and_one_against_one_is_only_said() {
    let world = three_nodes().await;
    for (node, sum) in [(1, 5), (2, 6), (3, 5)] {
        digest(&world, node, 10, sum);
    }
    // A replica made anew has no digests of before.
    rebuild_until(&world, |catalog| catalog.shards[&ShardId(1)].number(TWO) == 1).await;
    world.with(|inner| drop(inner.members.digests.remove(&(TWO, ShardId(1)))));
    rebuild_wholly(&world).await;

    let world = World::with_nodes(2, 1);
    until_quiet(&world).await;
    digest(&world, 1, 10, 5);
    digest(&world, 2, 10, 6);
    let said = |catalog: &Catalog| catalog.shards[&ShardId(1)].disagreement.is_some();
    rebuild_until(&world, said).await;
    digest(&world, 1, 11, 7);
    digest(&world, 2, 11, 7);
    rebuild_until(&world, |catalog| !said(catalog)).await;
    assert!(world.with(|inner| inner.catalog.operations.is_empty()));
}
