//! Schema changes on every shard, all or none.

use super::world::Fault;
use super::*;
use pleat_cluster::{Trigger, TriggerEvent, TriggerState, View};

fn unique_index() -> OperationKind {
    let sql = "CREATE UNIQUE INDEX users_v ON users(v)";
    let index = Index { name: "users_v".to_owned(), sql: sql.to_owned() };
    ddl(DdlEffect::CreateIndex { table: "users".to_owned(), index }, sql)
}

/// `users` is called `people`.
fn renamed() -> OperationKind {
    let before = Table { id: TableId(1), ..users() };
    let create_sql = before.create_sql.replace("users", "people");
    let after = Table { name: "people".to_owned(), create_sql, ..before.clone() };
    let statement = "ALTER TABLE users RENAME TO people".to_owned();
    let (before, after) = (Box::new(before), Box::new(after));
    ddl(
        DdlEffect::AlterTable { before, after, statement: statement.clone(), views: Vec::new(), triggers: Vec::new() },
        &statement,
    )
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
        renamed(),
        ddl(DdlEffect::CreateView(view()), "CREATE VIEW names AS SELECT name FROM users"),
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

/// A new row of `users` has a shadow in `homes`.
fn shadow(world: &World) -> OperationKind {
    let sql = "CREATE TRIGGER shadow AFTER INSERT ON users BEGIN INSERT INTO homes VALUES (NEW.id, NEW.v); END";
    let about: Vec<Table> =
        world.with(|inner| ["users", "homes"].map(|name| inner.catalog.table(name).unwrap().clone()).to_vec());
    let trigger = Trigger {
        id: 0,
        name: "shadow".to_owned(),
        event: TriggerEvent::Insert,
        sql: sql.to_owned(),
        on_shards: sql.to_owned(),
        writes: [about[1].id].into(),
        reads: Default::default(),
        state: TriggerState::Coming,
        since: 0,
    };
    ddl(DdlEffect::CreateTrigger { table: "users".to_owned(), trigger, about, seen: 0 }, sql)
}

async fn with_homes() -> std::sync::Arc<World> {
    let world = furnished(3).await;
    let kind = TableKind::Sharded { key: "id".to_owned(), key_type: KeyType::Integer };
    world.start(create(table("homes", "city", kind)));
    until_quiet(&world).await;
    world
}

fn shards_with_trigger(world: &World) -> Vec<bool> {
    world.with(|inner| {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'shadow'";
        let shards: Vec<_> = inner.catalog.active_shards().map(|shard| shard.id).collect();
        let count = |shard| inner.read(shard, sql, None, vec![], pleat_engine::OwnershipCheck::None).unwrap();
        shards.into_iter().map(|shard| count(shard)[0][0] == Value::Integer(1)).collect()
    })
}

#[tokio::test(start_paused = true)]
async fn a_trigger_comes_to_all_shards_and_leaves_all_of_them_whoever_dies() {
    for fault in [Fault::CrashBefore as fn(u64) -> Fault, Fault::CrashAfter] {
        for at in 1.. {
            let world = with_homes().await;
            world.with(|inner| {
                inner.calls = 0;
                inner.faults = vec![fault(at)];
            });
            let made = world.start(shadow(&world));
            until_quiet(&world).await;
            assert_eq!(operation(&world, made).phase, Phase::Successful, "{at}: {:#?}", operation(&world, made));
            assert_eq!(shards_with_trigger(&world), [true; 3]);
            world.with(|inner| assert_eq!(inner.catalog.table("users").unwrap().ready_triggers().count(), 1));
            let drop = DdlEffect::DropTrigger { table: "users".to_owned(), trigger: "shadow".to_owned() };
            let dropped = world.start(ddl(drop, "DROP TRIGGER shadow"));
            until_quiet(&world).await;
            assert_eq!(operation(&world, dropped).phase, Phase::Successful, "{at}: {:#?}", operation(&world, dropped));
            assert_eq!(shards_with_trigger(&world), [false; 3]);
            world.with(|inner| {
                assert!(inner.catalog.table("users").unwrap().triggers.is_empty());
                assert_eq!(inner.catalog.check(), []);
            });
            if world.with(|inner| inner.calls) < at {
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_trigger_that_a_shard_refuses_is_taken_back_everywhere() {
    let world = with_homes().await;
    let broken = match shadow(&world) {
        OperationKind::Ddl { effect: DdlEffect::CreateTrigger { table, trigger, about, seen }, sql, layout } => {
            // SQLite takes it for what it is: no trigger. The gateway tries that before.
            let trigger = Trigger {
                on_shards: "CREATE TRIGGER shadow AFTER INSERT ON nowhere BEGIN SELECT 1; END".into(),
                ..trigger
            };
            OperationKind::Ddl { effect: DdlEffect::CreateTrigger { table, trigger, about, seen }, sql, layout }
        }
        other => panic!("{other:?}"),
    };
    let made = world.start(broken);
    until_quiet(&world).await;
    assert_eq!(operation(&world, made).phase, Phase::Failed);
    assert_eq!(shards_with_trigger(&world), [false; 3]);
    world.with(|inner| assert!(inner.catalog.table("users").unwrap().triggers.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_new_shard_has_the_triggers_of_the_others() {
    let world = with_homes().await;
    world.start(shadow(&world));
    until_quiet(&world).await;
    let partitions = world.with(|inner| inner.catalog.partitions_of(ShardId(1))[..1].to_vec());
    let split = world.start(OperationKind::Split { from: ShardId(1), to: ShardId(4), partitions });
    until_quiet(&world).await;
    assert_eq!(operation(&world, split).phase, Phase::Successful, "{:#?}", operation(&world, split));
    assert_eq!(shards_with_trigger(&world), [true; 4]);
    // Rows that moved fired none.
    world.with(|inner| {
        let count = |sql| inner.read(ShardId(4), sql, None, vec![], pleat_engine::OwnershipCheck::None).unwrap();
        assert_eq!(count("SELECT count(*) FROM homes"), [[Value::Integer(0)]]);
        assert_ne!(count("SELECT count(*) FROM users"), [[Value::Integer(0)]]);
    });
}

fn view() -> View {
    View { name: "names".to_owned(), sql: "CREATE VIEW names AS SELECT name FROM users".to_owned() }
}

#[tokio::test(start_paused = true)]
async fn a_view_is_the_catalogs_business_alone() {
    let world = furnished(2).await;
    world.with(|inner| inner.calls = 0);
    let made = world.start(ddl(DdlEffect::CreateView(view()), &view().sql));
    until_quiet(&world).await;
    assert_eq!(operation(&world, made).message, "view names was created");
    world.with(|inner| assert_eq!(inner.catalog.view("NAMES"), Some(&view())));
    let dropped = world.start(ddl(DdlEffect::DropView { view: "names".to_owned() }, "DROP VIEW names"));
    until_quiet(&world).await;
    assert_eq!(operation(&world, dropped).phase, Phase::Successful);
    world.with(|inner| assert!(inner.catalog.views.is_empty()));
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

/// Lead until an operation is put off because a shard is gone.
async fn until_waiting(world: &Arc<World>, id: OperationId) {
    let mut watch = world.watch_catalog();
    let waiting = watch.wait_for(|catalog| catalog.operations[&id].is_waiting());
    tokio::select! {
        () = lead::lead(tools(world)) => unreachable!("a leader leads until it is stopped"),
        waiting = tokio::time::timeout(Duration::from_secs(600), waiting) => drop(waiting.expect("it is put off").unwrap()),
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_a_shard_refuses_has_the_code_of_its_failure() {
    let world = furnished(2).await;
    world.with(|inner| inner.duplicate_on(ShardId(2)));
    let id = world.start(unique_index());
    until_quiet(&world).await;
    let operation = operation(&world, id);
    assert_eq!((operation.phase, operation.code.as_deref()), (Phase::Failed, Some("23505")));
}

#[tokio::test(start_paused = true)]
async fn a_change_is_given_up_when_a_shard_is_gone_for_too_long() {
    let world = furnished(3).await;
    world.with(|inner| inner.gone = Some(ShardId(3)));
    let begun = tokio::time::Instant::now();
    let id = world.start(unique_index());
    until_waiting(&world, id).await;
    assert!(begun.elapsed() >= Settings::default().shard_limit);
    let given_up = operation(&world, id);
    assert_eq!((given_up.given_up, given_up.committed, &given_up.waits_for[..]), (true, false, &[ShardId(3)][..]));
    assert_eq!(given_up.code.as_deref(), Some("57P03"));
    assert!(
        given_up.message.contains("shard-3 could not be reached for 60 s in step \"change shards\""),
        "{given_up:#?}"
    );
    assert_eq!(shards_with_index(&world), [false; 3], "those that can be reached are rid of it at once");

    // What does not need the shard goes on, what needs it is refused.
    let partitions = world.with(|inner| inner.catalog.partitions_of(ShardId(1))[..2].to_vec());
    let shift = world.start(OperationKind::Move { from: ShardId(1), to: ShardId(2), partitions });
    let refused = world.with(|inner| {
        let cause = Cause::Request("test".to_owned());
        let kind = create(table("more", "text", TableKind::Reference));
        inner.catalog.apply(&Command::StartOperation { kind, cause, reason: String::new(), at: 1 })
    });
    assert!(matches!(refused, Err(CommandError::Busy { .. })), "{refused:?}");
    let mut watch = world.watch_catalog();
    tokio::select! {
        () = until_quiet(&world) => panic!("shard-3 is still gone"),
        moved = watch.wait_for(|catalog| catalog.operations[&shift].phase.is_final()) => drop(moved.unwrap()),
    }
    assert_eq!(operation(&world, shift).phase, Phase::Successful, "{:#?}", operation(&world, shift));
    assert!(operation(&world, id).is_waiting());

    world.with(|inner| inner.gone = None);
    until_quiet(&world).await;
    let ended = operation(&world, id);
    assert_eq!((ended.phase, ended.waits_for.len()), (Phase::Failed, 0));
    world.with(|inner| inner.check_quiet());
    let again = world.start(unique_index());
    until_quiet(&world).await;
    assert_eq!(operation(&world, again).phase, Phase::Successful);
    assert_eq!(shards_with_index(&world), [true; 3]);
}

/// The shard has the change, or has a message with the change on its way, and is gone when it is taken back.
#[tokio::test(start_paused = true)]
async fn a_shard_that_comes_back_takes_back_what_the_others_did() {
    for (gone, in_time) in [(1, true), (2, true), (3, false)] {
        let world = furnished(3).await;
        world.with(|inner| {
            inner.duplicate_on(ShardId(3));
            inner.latency = Duration::from_millis(1);
        });
        let id = world.start(unique_index());
        let mut watch = world.watch_catalog();
        tokio::select! {
            () = until_quiet(&world) => panic!(),
            found = watch.wait_for(|catalog| catalog.operations[&id].given_up) => drop(found.unwrap()),
        }
        world.with(|inner| inner.gone = Some(ShardId(gone)));
        until_waiting(&world, id).await;
        world.with(|inner| {
            inner.heals = true;
            assert_eq!(inner.catalog.operations[&id].waits_for, [ShardId(gone)]);
            assert_eq!(inner.catalog.operations[&id].code.as_deref(), Some("23505"));
            inner.gone = None;
            inner.next_term();
        });
        assert_eq!(shards_with_index(&world)[gone as usize - 1], in_time);
        until_quiet(&world).await;
        assert_eq!(operation(&world, id).phase, Phase::Failed);
        assert_eq!(shards_with_index(&world), [false; 3]);
        // A message that was lost on the way turns up, when nothing forbids the index any more: too late.
        world.with(|inner| {
            let late = inner.sent_ddl(ShardId(gone));
            inner.apply(ShardId(gone), late).unwrap();
        });
        assert_eq!(shards_with_index(&world), [false; 3]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_drop_that_is_committed_waits_for_the_shard_that_is_gone() {
    let world = furnished(3).await;
    world.with(|inner| inner.gone = Some(ShardId(2)));
    let id = world.start(ddl(DdlEffect::DropTable { table: "cities".to_owned() }, "DROP TABLE cities"));
    until_waiting(&world, id).await;
    let has_cities = |shard| {
        world.with(|inner| {
            let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'cities'";
            let rows = inner.read(ShardId(shard), sql, None, vec![], pleat_engine::OwnershipCheck::None).unwrap();
            rows[0][0] == Value::Integer(1)
        })
    };
    assert!(operation(&world, id).committed && !operation(&world, id).given_up);
    assert_eq!([1, 2, 3].map(has_cities), [false, true, false]);
    world.with(|inner| {
        inner.gone = None;
        inner.next_term();
    });
    until_quiet(&world).await;
    assert_eq!(operation(&world, id).phase, Phase::Successful);
    assert_eq!([1, 2, 3].map(has_cities), [false; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_rename_is_seen_by_all_or_by_nobody() {
    let world = furnished(3).await;
    let before = world.with(|inner| {
        inner.latency = Duration::from_millis(1);
        inner.catalog.clone()
    });
    let id = world.start(renamed());
    let mut watch = world.watch_catalog();
    tokio::select! {
        () = until_quiet(&world) => panic!(),
        found = watch.wait_for(|catalog| catalog.operations[&id].committed) => drop(found.unwrap()),
    }
    // A scatter read by either catalog is answered by some shards at most: none mixes old and new.
    let answered = |catalog: &Catalog, table: &str| {
        world.with(|inner| {
            let sql = format!("SELECT count(*) FROM {table}");
            let read = |shard: &Shard| {
                let check = pleat_engine::OwnershipCheck::Scatter { ownership: shard.ownership };
                inner.read(shard.id, &sql, None, vec![], check)
            };
            let answers: Vec<_> = catalog.active_shards().map(read).collect();
            answers.into_iter().all(|answer| match answer {
                Ok(_) => true,
                Err(pleat_engine::EngineError::Refused(refusal)) => {
                    assert!(refusal.is_retryable());
                    false
                }
                Err(error) => panic!("{error}"),
            })
        })
    };
    let committed = world.with(|inner| inner.catalog.clone());
    assert!(!answered(&committed, "people"), "no shard has followed yet");
    until_quiet(&world).await;
    assert!(!answered(&before, "users"));
    let after = world.with(|inner| inner.catalog.clone());
    assert!(answered(&after, "people"));
    assert_eq!((after.table("people").unwrap().id, after.table("users")), (TableId(1), None));
    assert_eq!(operation(&world, id).phase, Phase::Successful);
    let again = world.with(|inner| {
        let start = Command::StartOperation {
            kind: renamed(),
            cause: Cause::Request("test".to_owned()),
            reason: String::new(),
            at: 1,
        };
        inner.catalog.apply(&start)
    });
    assert!(again.is_err(), "it was planned on another table");
}

#[tokio::test(start_paused = true)]
async fn a_rename_is_not_begun_while_a_shard_is_gone() {
    let world = furnished(2).await;
    world.with(|inner| inner.gone = Some(ShardId(2)));
    let id = world.start(renamed());
    until_quiet(&world).await;
    let operation = operation(&world, id);
    assert_eq!((operation.phase, operation.code.as_deref()), (Phase::Failed, Some("57P03")), "{operation:#?}");
    assert!(operation.message.contains("shard-2 could not be reached for 60 s"), "{}", operation.message);
    world.with(|inner| assert!(inner.catalog.table("users").is_some()));
}
