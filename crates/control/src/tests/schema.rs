//! Schema changes on every shard, all or none.

use super::world::Fault;
use super::*;

fn unique_index() -> OperationKind {
    let sql = "CREATE UNIQUE INDEX users_v ON users(v)";
    let index = Index { name: "users_v".to_owned(), sql: sql.to_owned() };
    ddl(DdlEffect::CreateIndex { table: "users".to_owned(), index }, sql)
}

/// Whether each shard's `users` has the index: a write that it forbids tells.
fn shards_with_index(world: &World) -> Vec<bool> {
    world.with(|inner| {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'users_v'";
        let shards: Vec<_> = inner.catalog.active_shards().map(|shard| shard.id).collect();
        let count = |shard| inner.read(shard, sql, None, vec![], pleat_engine::OwnershipCheck::None).unwrap();
        shards.into_iter().map(|shard| count(shard)[0][0] == Value::Integer(1)).collect()
    })
}

#[tokio::test(start_paused = true)]
async fn an_index_is_on_all_shards_or_on_none() {
    let world = furnished(3).await;
    let id = world.start(unique_index());
    until_quiet(&world).await;
    assert_eq!(operation(&world, id).phase, Phase::Successful, "{:#?}", operation(&world, id));
    assert_eq!(shards_with_index(&world), [true; 3]);

    let world = furnished(3).await;
    world.with(|inner| inner.duplicate_on(ShardId(3)));
    let id = world.start(unique_index());
    until_quiet(&world).await;
    let operation = operation(&world, id);
    assert_eq!(operation.phase, Phase::Failed);
    assert!(operation.message.contains("shard-3") && operation.message.contains("users.v"), "{}", operation.message);
    assert_eq!(shards_with_index(&world), [false; 3]);
    world.with(|inner| assert!(inner.catalog.table("users").unwrap().indexes.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_refused_index_is_undone_whoever_dies() {
    for fault in [Fault::CrashBefore as fn(u64) -> Fault, Fault::CrashAfter] {
        for at in 1.. {
            let world = furnished(3).await;
            world.with(|inner| {
                inner.duplicate_on(ShardId(3));
                inner.calls = 0;
                inner.faults = vec![fault(at)];
            });
            let id = world.start(unique_index());
            until_quiet(&world).await;
            assert_eq!(operation(&world, id).phase, Phase::Failed, "{:?}", fault(at));
            assert_eq!(shards_with_index(&world), [false; 3], "{:?}", fault(at));
            if world.with(|inner| inner.calls) < at {
                break;
            }
        }
    }
}

/// What forbade the index is gone when the next leader comes: then it must be on all shards or on none all the same.
#[tokio::test(start_paused = true)]
async fn an_index_that_becomes_possible_halfway_is_on_all_shards_or_on_none() {
    for at in 1.. {
        let world = furnished(3).await;
        world.with(|inner| {
            inner.duplicate_on(ShardId(3));
            inner.heals = true;
            inner.calls = 0;
            inner.faults = vec![Fault::CrashAfter(at)];
        });
        let id = world.start(unique_index());
        until_quiet(&world).await;
        let done = operation(&world, id).phase == Phase::Successful;
        assert_eq!(shards_with_index(&world), [done; 3], "{at}");
        if world.with(|inner| inner.calls) < at {
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_schema_change_survives_a_leader_that_dies() {
    let single = create(table("notes", "text", TableKind::Single { shard: ShardId(2) }));
    let added = DdlEffect::AddColumn {
        table: "users".to_owned(),
        column: column("age", "INTEGER"),
        create_sql: "CREATE TABLE users(id INTEGER PRIMARY KEY, v TEXT, age INTEGER)".to_owned(),
    };
    let changes = [
        single,
        unique_index(),
        ddl(added, "ALTER TABLE users ADD COLUMN age INTEGER"),
        ddl(DdlEffect::DropTable { table: "cities".to_owned() }, "DROP TABLE cities"),
    ];
    for kind in changes {
        for at in 1.. {
            let world = furnished(2).await;
            world.with(|inner| {
                inner.calls = 0;
                inner.faults = vec![Fault::CrashAfter(at)];
            });
            let id = world.start(kind.clone());
            until_quiet(&world).await;
            let operation = operation(&world, id);
            assert_eq!(operation.phase, Phase::Successful, "{at}: {operation:#?}");
            world.with(|inner| {
                for shard in inner.catalog.active_shards() {
                    // The shard agrees with the catalog about what it owns: it answers reads routed by it.
                    let check = pleat_engine::OwnershipCheck::Scatter { ownership: shard.ownership };
                    inner.read(shard.id, "SELECT 1", None, vec![], check).unwrap();
                    let check = pleat_engine::OwnershipCheck::Keyed(inner.catalog.units_of(shard.id));
                    inner.read(shard.id, "SELECT 1", None, vec![], check).unwrap();
                }
            });
            if world.with(|inner| inner.calls) < at {
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_table_that_others_reference_is_not_dropped() {
    let world = furnished(2).await;
    let mut homes = table("homes", "city", TableKind::Sharded { key: "id".to_owned(), key_type: KeyType::Integer });
    homes.create_sql = "CREATE TABLE homes(id INTEGER PRIMARY KEY, city TEXT REFERENCES cities(id))".to_owned();
    world.start(create(homes));
    let id = world.start(ddl(DdlEffect::DropTable { table: "cities".to_owned() }, "DROP TABLE cities"));
    until_quiet(&world).await;
    let operation = operation(&world, id);
    assert_eq!(operation.phase, Phase::Failed);
    assert_eq!(operation.message, "table cities is referenced by table homes; drop that one first");
    world.with(|inner| assert!(inner.catalog.table("cities").is_some()));
}

#[tokio::test(start_paused = true)]
async fn a_schema_change_waits_for_a_split_and_reaches_its_shard() {
    let world = furnished(1).await;
    let partitions = (8..16).map(PartitionId).collect();
    let split = world.start(OperationKind::Split { from: ShardId(1), to: ShardId(2), partitions });
    let index = world.start(unique_index());
    until_quiet(&world).await;
    assert_eq!(operation(&world, split).phase, Phase::Successful);
    assert_eq!(operation(&world, index).phase, Phase::Successful);
    assert_eq!(shards_with_index(&world), [true; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_split_brings_tables_that_reference_each_other_and_their_indexes() {
    let world = furnished(1).await;
    let mut homes = table("a_homes", "city", TableKind::Sharded { key: "id".to_owned(), key_type: KeyType::Integer });
    homes.create_sql = "CREATE TABLE a_homes(id INTEGER PRIMARY KEY, city TEXT REFERENCES cities(id))".to_owned();
    world.start(create(homes));
    world.start(unique_index());
    let partitions = (8..16).map(PartitionId).collect();
    let split = world.start(OperationKind::Split { from: ShardId(1), to: ShardId(2), partitions });
    until_quiet(&world).await;
    assert_eq!(operation(&world, split).phase, Phase::Successful, "{:#?}", operation(&world, split));
    assert_eq!(shards_with_index(&world), [true; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_schema_change_does_nothing() {
    let world = furnished(2).await;
    let id = world.start(unique_index());
    world.ask(Command::CancelOperation { operation: id, at: 1 });
    until_quiet(&world).await;
    let operation = operation(&world, id);
    assert_eq!((operation.phase, operation.steps.len()), (Phase::Skipped, 0));
    assert_eq!(shards_with_index(&world), [false; 2]);
    assert!(matches!(carry_out(&world, id).await, Err(Stop::Superseded(_))), "what has ended is left alone");
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_at_any_call_is_for_the_whole_change_or_is_refused() {
    let kinds = [
        create(table("notes", "text", TableKind::Single { shard: ShardId(2) })),
        unique_index(),
        ddl(DdlEffect::DropTable { table: "cities".to_owned() }, "DROP TABLE cities"),
    ];
    for kind in kinds {
        for at in 1.. {
            let world = furnished(2).await;
            let id = world.start(kind.clone());
            world.with(|inner| {
                inner.calls = 0;
                inner.faults = vec![Fault::Cancel(at, id)];
            });
            until_quiet(&world).await;
            let operation = operation(&world, id);
            let expected = if operation.cancel_requested { Phase::Skipped } else { Phase::Successful };
            assert_eq!((operation.phase, operation.committed), (expected, !operation.cancel_requested), "{at}");
            world.with(|inner| {
                for shard in inner.catalog.active_shards() {
                    let there = |name: &str| {
                        let sql = format!("SELECT count(*) FROM sqlite_schema WHERE name = '{name}'");
                        let check = pleat_engine::OwnershipCheck::None;
                        inner.read(shard.id, &sql, None, vec![], check).unwrap()[0][0] == Value::Integer(1)
                    };
                    let users = inner.catalog.table("users").unwrap();
                    assert_eq!(there("notes"), inner.catalog.table("notes").is_some(), "{at}");
                    assert_eq!(there("cities"), inner.catalog.table("cities").is_some(), "{at}");
                    assert_eq!(there("users_v"), !users.indexes.is_empty(), "{at}");
                }
            });
            if world.with(|inner| inner.calls) < at {
                break;
            }
        }
    }
}
