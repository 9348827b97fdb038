//! Schema changes on shards that are servers.

use super::world::Fault;
use super::*;

const SQL: &str = "CREATE TABLE users (id int PRIMARY KEY)";
const SHARDS: u32 = 3;

async fn founded() -> Arc<World> {
    let world = World::founded(1, SHARDS, Engine::Postgres);
    until_quiet(&world).await;
    world.with(|inner| inner.begin());
    world
}

fn created() -> OperationKind {
    let changes = vec![TableChange { before: None, after: Some(users()) }];
    ddl(DdlEffect::Servers { about: "create table users".to_owned(), changes, views: Vec::new() }, SQL)
}

/// Whether the table is there: on all servers and in the catalog, or nowhere; and nothing is prepared.
fn made(world: &World) -> bool {
    world.with(|inner| {
        let in_catalog = inner.catalog.table("users").is_some();
        for shard in 1..=SHARDS {
            let server = inner.servers.server(ShardId(shard));
            assert_eq!(server.made.len(), usize::from(in_catalog), "{shard}");
            assert!(server.prepared.is_empty(), "{shard}: {:?}", server.prepared);
        }
        in_catalog
    })
}

#[tokio::test(start_paused = true)]
async fn a_change_is_on_all_servers_or_on_none() {
    let world = founded().await;
    let id = world.start(created());
    until_quiet(&world).await;
    let done = operation(&world, id);
    assert_eq!((done.phase, made(&world)), (Phase::Successful, true), "{done:#?}");
    assert_eq!(step_names(&done), ["prepare", "commit", "commit on servers"]);

    let world = founded().await;
    world.with(|inner| inner.servers.server(ShardId(3)).refuses = true);
    let id = world.start(created());
    until_quiet(&world).await;
    let failed = operation(&world, id);
    assert_eq!((failed.phase, made(&world)), (Phase::Failed, false), "{failed:#?}");
    assert_eq!((failed.code.as_deref(), failed.message.as_str()), (Some("23505"), "test 23505"));
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_waited_for_by_trying_again_from_the_first_server() {
    let world = founded().await;
    world.with(|inner| inner.servers.server(ShardId(2)).locked = 5);
    let id = world.start(created());
    until_quiet(&world).await;
    let done = operation(&world, id);
    assert_eq!((done.phase, made(&world), done.attempts), (Phase::Successful, true, 6), "{done:#?}");

    let world = founded().await;
    world.with(|inner| inner.servers.server(ShardId(2)).locked = u32::MAX);
    let id = world.start(created());
    until_quiet(&world).await;
    let failed = operation(&world, id);
    assert_eq!((failed.phase, made(&world)), (Phase::Failed, false), "{failed:#?}");
    assert_eq!(failed.code.as_deref(), Some("55P03"));
}

#[tokio::test(start_paused = true)]
async fn a_change_survives_whatever_happens_at_any_call() {
    for fault in [Fault::CrashBefore as fn(u64) -> Fault, Fault::CrashAfter, Fault::Lost, Fault::Unreachable] {
        for refuses in [false, true] {
            for at in 1.. {
                let world = founded().await;
                world.with(|inner| {
                    inner.servers.server(ShardId(3)).refuses = refuses;
                    inner.faults = vec![fault(at)];
                });
                let id = world.start(created());
                until_quiet(&world).await;
                let ended = operation(&world, id);
                let phase = if refuses { Phase::Failed } else { Phase::Successful };
                assert_eq!(ended.phase, phase, "{:?}: {ended:#?}", fault(at));
                if world.with(swept) && refuses {
                    assert!(matches!(fault(at), Fault::Lost(_) | Fault::Unreachable(_)), "{:?}", fault(at));
                }
                assert_eq!(made(&world), !refuses, "{:?}", fault(at));
                if world.with(|inner| inner.calls) < at {
                    break;
                }
            }
        }
    }
}

/// What the nodes of the servers do by themselves: take back what was left. Whether there was something.
fn swept(inner: &mut Inner) -> bool {
    let mut found = false;
    for shard in 1..=SHARDS {
        let catalog = inner.catalog.clone();
        let left = |name: &String| match name.parse() {
            Ok(PreparedName::Ddl { operation, attempt }) => catalog.is_left_behind(operation, attempt),
            _ => false,
        };
        let prepared = &mut inner.servers.server(ShardId(shard)).prepared;
        let before = prepared.len();
        prepared.retain(|name, _| !left(name));
        found |= prepared.len() < before;
    }
    found
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_gone_is_waited_for_after_the_commit_and_not_before() {
    let world = founded().await;
    world.with(|inner| inner.gone = Some(ShardId(2)));
    let id = world.start(created());
    until_quiet(&world).await;
    let failed = operation(&world, id);
    assert_eq!((failed.phase, failed.code.as_deref(), made(&world)), (Phase::Failed, Some("57P03"), false));

    let world = founded().await;
    // So that the server can go between two calls.
    world.with(|inner| inner.latency = Duration::from_millis(1));
    let id = world.start(created());
    let committed = async {
        let mut catalog = world.watch_catalog();
        catalog.wait_for(|catalog| catalog.operations[&id].committed).await.unwrap();
        world.with(|inner| inner.gone = Some(ShardId(2)));
        catalog.wait_for(|catalog| catalog.operations[&id].is_waiting()).await.unwrap();
    };
    tokio::select! {
        () = lead::lead(tools(&world)) => unreachable!("a leader leads until it is stopped"),
        committed = tokio::time::timeout(Duration::from_secs(3600), committed) => committed.expect("it waits"),
    }
    let waiting = operation(&world, id);
    assert_eq!((waiting.waits_for, waiting.phase), (vec![ShardId(2)], Phase::Progressing));
    world.with(|inner| {
        assert_eq!(inner.servers.all().map(|server| server.made.len()).collect::<Vec<_>>(), [1, 0, 1]);
        inner.gone = None;
    });
    until_quiet(&world).await;
    assert_eq!((operation(&world, id).phase, made(&world)), (Phase::Successful, true));
}

#[tokio::test(start_paused = true)]
async fn a_change_can_be_cancelled_until_its_commit() {
    for at in 1.. {
        let world = founded().await;
        let id = world.start(created());
        world.with(|inner| inner.faults = vec![Fault::Cancel(at, id)]);
        until_quiet(&world).await;
        let ended = operation(&world, id);
        let expected = if ended.committed { Phase::Successful } else { Phase::Skipped };
        assert_eq!((ended.phase, made(&world)), (expected, ended.committed), "{at}: {ended:#?}");
        if world.with(|inner| inner.calls) < at {
            break;
        }
    }
}
