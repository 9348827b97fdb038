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

/// What the nodes of the servers do by themselves: take back what was left, of which here nothing was committed. Whether there was something.
fn swept(inner: &mut Inner) -> bool {
    let mut found = false;
    for shard in 1..=SHARDS {
        let catalog = inner.catalog.clone();
        let left = |name: &String| match name.parse() {
            Ok(PreparedName::Ddl { operation, attempt }) => catalog.left_behind(operation, attempt) == Some(false),
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

fn single() -> Table {
    Table { kind: TableKind::Single { shard: ShardId(1) }, ..users() }
}

/// A single table with a row for each partition, on the first server.
async fn with_single() -> Arc<World> {
    let world = founded().await;
    let changes = vec![TableChange { before: None, after: Some(single()) }];
    world.start(ddl(DdlEffect::Servers { about: "create table users".to_owned(), changes, views: Vec::new() }, SQL));
    until_quiet(&world).await;
    world.with(|inner| {
        let row = |partition: u32| vec![Some(partition.to_string()), Some("1".to_owned()), None];
        inner.servers.server(ShardId(1)).rows = (0..inner.catalog.partition_count).map(row).collect();
        inner.begin();
    });
    world
}

fn placed(world: &World) -> OperationKind {
    let before = world.with(|inner| inner.catalog.table("users").cloned().unwrap());
    let after = Table { kind: users().kind, ..before.clone() };
    let changes = vec![TableChange { before: Some(before), after: Some(after) }];
    placing(world, changes)
}

fn placing(world: &World, changes: Vec<TableChange>) -> OperationKind {
    let (layout, seen) = world.with(|inner| (inner.catalog.layout, inner.catalog.newest_operation()));
    OperationKind::Ddl { effect: DdlEffect::PlaceOnServers { changes, seen }, sql: String::new(), layout }
}

/// Whether the table is sharded: on all servers and in the catalog, or nowhere; nothing is prepared, and no gate is closed.
fn is_placed(world: &World) -> bool {
    world.with(|inner| {
        let in_catalog = inner.catalog.table("users").unwrap().shard_key().is_some();
        assert!(inner.catalog.closed_gates().is_empty());
        for shard in 1..=SHARDS {
            let server = inner.servers.server(ShardId(shard));
            assert_eq!(server.made.len(), 1 + usize::from(in_catalog), "{shard}");
            assert!(server.prepared.is_empty(), "{shard}: {:?}", server.prepared);
        }
        in_catalog
    })
}

#[tokio::test(start_paused = true)]
async fn a_table_is_placed_anew_on_all_servers_with_its_rows() {
    let world = with_single().await;
    // The first look is before the gates are closed.
    world.with(|inner| inner.servers.server(ShardId(2)).busy = 4);
    let id = world.start(placed(&world));
    until_quiet(&world).await;
    let done = operation(&world, id);
    assert_eq!((done.phase, is_placed(&world)), (Phase::Successful, true), "{done:#?}");
    assert_eq!(step_names(&done), ["check", "fence", "prepare", "commit", "commit on servers"]);
    let count = world.with(|inner| {
        let mut came = |shard: u32| inner.servers.server(ShardId(shard)).made[1].matches("('1', NULL)").count();
        assert_eq!(came(1), 0);
        came(2) + came(3) + inner.catalog.partitions_of(ShardId(1)).len()
    });
    assert_eq!(count, world.with(|inner| inner.catalog.partition_count as usize));
}

#[tokio::test(start_paused = true)]
async fn gates_open_for_a_client_that_does_not_end_and_close_again() {
    let world = with_single().await;
    world.with(|inner| inner.servers.server(ShardId(3)).locked = 3);
    let id = world.start(placed(&world));
    until_quiet(&world).await;
    let done = operation(&world, id);
    assert_eq!((done.phase, is_placed(&world), done.attempts), (Phase::Successful, true, 4), "{done:#?}");

    let world = with_single().await;
    world.with(|inner| inner.servers.server(ShardId(3)).locked = u32::MAX);
    let id = world.start(placed(&world));
    until_quiet(&world).await;
    let failed = operation(&world, id);
    assert_eq!((failed.phase, is_placed(&world)), (Phase::Failed, false), "{failed:#?}");
    assert_eq!(failed.code.as_deref(), Some("55P03"));
}

#[tokio::test(start_paused = true)]
async fn another_placement_survives_whatever_happens_at_any_call() {
    for fault in [Fault::CrashBefore as fn(u64) -> Fault, Fault::CrashAfter, Fault::Lost, Fault::Unreachable] {
        for refuses in [false, true] {
            for at in 1.. {
                let world = with_single().await;
                world.with(|inner| {
                    inner.servers.server(ShardId(3)).refuses = refuses;
                    inner.faults = vec![fault(at)];
                });
                let id = world.start(placed(&world));
                until_quiet(&world).await;
                let ended = operation(&world, id);
                let phase = if refuses { Phase::Failed } else { Phase::Successful };
                assert_eq!(ended.phase, phase, "{:?}: {ended:#?}", fault(at));
                world.with(swept);
                assert_eq!(is_placed(&world), !refuses, "{:?}", fault(at));
                if world.with(|inner| inner.calls) < at {
                    break;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn another_placement_can_be_cancelled_until_its_commit() {
    for at in 1.. {
        let world = with_single().await;
        let id = world.start(placed(&world));
        world.with(|inner| inner.faults = vec![Fault::Cancel(at, id)]);
        until_quiet(&world).await;
        let ended = operation(&world, id);
        let expected = if ended.committed { Phase::Successful } else { Phase::Skipped };
        world.with(swept);
        assert_eq!((ended.phase, is_placed(&world)), (expected, ended.committed), "{at}: {ended:#?}");
        if world.with(|inner| inner.calls) < at {
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ids_go_on_above_what_the_server_gave_and_above_what_pleat_gave() {
    let world = with_single().await;
    let serial = Serial {
        schema: "public".to_owned(),
        sequence: "users_id_seq".to_owned(),
        always: false,
        first: 1,
        last: i64::MAX,
        sole: false,
    };
    let counts = |mut table: Table| {
        table.columns[0].serial = Some(serial.clone());
        table
    };
    world.with(|inner| {
        let single = counts(inner.catalog.table("users").cloned().unwrap());
        inner.catalog.tables.insert("users".to_owned(), single);
        inner.servers.server(ShardId(1)).last_value = Some(41);
    });
    let id = world.start(placed(&world));
    until_quiet(&world).await;
    assert_eq!(operation(&world, id).phase, Phase::Successful);
    let table = world.with(|inner| inner.catalog.table("users").cloned().unwrap());
    let given = LedgerCommand::AllocateIds { table: table.id, count: 1_000, at_least: None };
    assert_eq!(world.with(|inner| inner.servers.ledger.apply(&given)), Ok(LedgerReply::Ids { first: 42 }));
    assert!(
        world.with(|inner| inner.servers.all().all(|server| server.made[1].contains("setval(seqrelid, seqmax, true)")))
    );

    let after = Table { kind: TableKind::Single { shard: ShardId(2) }, ..table.clone() };
    let changes = vec![TableChange { before: Some(table), after: Some(after) }];
    let id = world.start(placing(&world, changes));
    until_quiet(&world).await;
    assert_eq!(operation(&world, id).phase, Phase::Successful);
    let told = world.with(|inner| {
        let told: Vec<bool> = inner.servers.all().map(|server| server.made[2].contains(", 1042, false)")).collect();
        told
    });
    assert_eq!(told, [false, true, false]);
}
