//! Moves between two shards, end to end, while writes go on.
//!
//! A third replica, the model, gets every write that was acknowledged and never moves anything. After the move the
//! two shards together must hold exactly what the model holds, each row once.

mod common;

use common::*;
use pleat_cluster::{KeyType, PartitionId, ShardId, TableKind, TxnId, Value};
use pleat_engine::*;
use proptest::prelude::*;

const OPERATION: u64 = 42;

/// Every shape that a sharded table can have.
const TABLES: [(&str, &str, &str, KeyType); 5] = [
    (ITEMS, "items", "k", KeyType::Integer),
    (
        "CREATE TABLE acc(id INTEGER PRIMARY KEY, v REAL, note TEXT DEFAULT CURRENT_TIMESTAMP)",
        "acc",
        "id",
        KeyType::Integer,
    ),
    (
        "CREATE TABLE docs(id TEXT, k INTEGER, body BLOB, PRIMARY KEY (id, k)) WITHOUT ROWID",
        "docs",
        "k",
        KeyType::Integer,
    ),
    ("CREATE TABLE names(name TEXT PRIMARY KEY NOT NULL, v ANY)", "names", "name", KeyType::Text),
    (
        "CREATE TABLE kids(k INTEGER, id INTEGER, p INTEGER, PRIMARY KEY (k, id), \
         FOREIGN KEY (k, p) REFERENCES items(k, n) ON DELETE CASCADE ON UPDATE CASCADE)",
        "kids",
        "k",
        KeyType::Integer,
    ),
];

/// What users' triggers write is captured as what their statements write, and rows that move fire none.
const TRIGGERS: [&str; 3] = [
    "CREATE TRIGGER came BEFORE INSERT ON items BEGIN \
     INSERT INTO acc VALUES (NEW.k, 0.5, 'n') ON CONFLICT (id) DO UPDATE SET v = v + 1; END",
    "CREATE TRIGGER kept AFTER UPDATE ON items BEGIN \
     INSERT INTO docs VALUES ('t' || NEW.n, NEW.k, NEW.data) ON CONFLICT (id, k) DO UPDATE SET body = excluded.body; END",
    "CREATE TRIGGER gone AFTER DELETE ON items BEGIN \
     DELETE FROM docs WHERE k = OLD.k AND id = 't' || OLD.n; UPDATE acc SET v = v + 10 WHERE id = OLD.k; END",
];

fn shard() -> Replica {
    let mut shard = Replica::new();
    for (sql, name, key, key_type) in TABLES {
        // Columns described with all tables there, so that foreign keys find their parents.
        shard.create(sql, name, sharded(key, key_type));
    }
    shard
}

struct World {
    source: Replica,
    target: Replica,
    model: Replica,
    moving: Vec<PartitionId>,
    /// Who owns the moving partitions as far as writers know.
    moved: bool,
    waiting: Vec<Write>,
}

/// A generated write: all of its rows have one key, as the router demands.
#[derive(Clone, Debug)]
struct Write {
    unit: PartitionId,
    statements: Vec<Statement>,
    key: Option<String>,
}

impl Write {
    fn action(&self) -> Action {
        let idempotency = self.key.clone().map(|key| Idempotency { key, fingerprint: 1, ttl_ms: 1 << 40 });
        Action::Write { idempotency, units: vec![self.unit], statements: self.statements.clone(), base: None }
    }
}

impl World {
    fn new(moving: Vec<PartitionId>) -> Self {
        let (mut source, mut target, mut model) = (shard(), shard(), shard());
        source.own(0..PARTITIONS);
        model.own(0..PARTITIONS);
        target.apply(Action::Own { units: vec![], ownership: 1, layout: 0 });
        Self { source, target, model, moving, moved: false, waiting: Vec::new() }
    }

    fn with_triggers(mut self) -> Self {
        for shard in [&mut self.source, &mut self.target, &mut self.model] {
            shard.triggers(ITEMS, "items", sharded("k", KeyType::Integer), &TRIGGERS);
        }
        self
    }

    /// Sends a write where its owner should be; one that is fenced waits and is sent again.
    fn write(&mut self, write: Write) {
        let at_target = self.moved && self.moving.contains(&write.unit);
        let shard = if at_target { &mut self.target } else { &mut self.source };
        match shard.apply(write.action()) {
            Outcome::Refused(Refusal::Fenced { .. } | Refusal::NotOwned { .. }) => self.waiting.push(write),
            Outcome::Done { .. } | Outcome::Replayed { .. } | Outcome::Failed(_) => {
                // CURRENT_TIMESTAMP is the entry's, so the model's clock has to be the shard's: notes are given.
                self.model.apply(write.action());
            }
            other => panic!("{other:?}"),
        }
    }

    fn retry(&mut self) {
        for write in std::mem::take(&mut self.waiting) {
            self.write(write);
        }
    }

    fn source_asks(&self, request: MoveRead) -> MoveChunk {
        self.source.readers.move_read(&request).unwrap()
    }

    fn import(
        &mut self,
        changes: Vec<TableChanges>,
        idempotency: Vec<IdempotencyRow>,
        position: Option<Position>,
        copied: bool,
    ) {
        self.target.moved(OPERATION, MoveAction::Import { changes, idempotency, position, copied });
    }

    fn position(&self) -> Position {
        let MoveChunk::State(Some(state)) =
            self.target.readers.move_read(&MoveRead::State { operation: OPERATION }).unwrap()
        else {
            panic!("the target knows the move")
        };
        state.position
    }

    /// One delta; whether there was anything in it.
    fn catch_up(&mut self, rows_max: usize) -> bool {
        let after = self.position();
        let MoveChunk::Delta(delta) =
            self.source_asks(MoveRead::Delta { operation: OPERATION, after, rows_max, bytes_max: 1 << 20 })
        else {
            panic!()
        };
        let more = delta.more || !delta.is_empty();
        self.import(delta.tables, delta.idempotency, Some(delta.position), false);
        more
    }

    fn target_digest(&self) -> ContentDigest {
        match self.target.readers.move_read(&MoveRead::Digest { operation: OPERATION }).unwrap() {
            MoveChunk::Digest(digest) => digest,
            other => panic!("{other:?}"),
        }
    }

    fn clean_up(shard: &mut Replica) {
        for (_, table, ..) in TABLES {
            let mut after = None;
            loop {
                let request = MoveRead::CleanUpNext { operation: OPERATION, table: table.into(), after, limit: 2 };
                let MoveChunk::Keys { keys, next } = shard.readers.move_read(&request).unwrap() else { panic!() };
                shard.moved(OPERATION, MoveAction::CleanUp { table: table.into(), keys });
                after = next;
                if after.is_none() {
                    break;
                }
            }
        }
        assert_eq!(shard.moved(OPERATION, MoveAction::CleanUpDone).phase, MovePhase::Ended);
    }

    /// The whole move, with `between` called at every seam.
    fn run(&mut self, rows_max: usize, between: &mut dyn FnMut(&mut World)) {
        let partitions = self.moving.clone();
        self.source.moved(OPERATION, MoveAction::Claim);
        self.target.moved(OPERATION, MoveAction::Claim);
        between(self);
        self.source.moved(OPERATION, MoveAction::CaptureStart { partitions: partitions.clone() });
        self.target.moved(OPERATION, MoveAction::ImportStart { partitions });
        between(self);
        let MoveChunk::Opened { snapshot, tables, .. } = self.source_asks(MoveRead::CopyOpen { operation: OPERATION })
        else {
            panic!()
        };
        assert_eq!(tables, ["acc", "docs", "items", "kids", "names"]);
        let mut late = None;
        for table in tables {
            let mut after = None;
            loop {
                between(self);
                let request =
                    MoveRead::CopyNext { snapshot, table: table.clone(), after, rows_max, bytes_max: 1 << 20 };
                let MoveChunk::Rows { changes, next } = self.source_asks(request) else { panic!() };
                self.import(vec![changes.clone()], vec![], None, true);
                // Messages of the copy may come twice, and in another order.
                self.import(late.replace(changes).into_iter().collect(), vec![], None, true);
                after = next;
                if after.is_none() {
                    break;
                }
            }
        }
        self.source_asks(MoveRead::Close { snapshot });
        for _ in 0..3 {
            between(self);
            self.catch_up(rows_max);
        }
        let MoveChunk::Verified { remaining, digest } =
            self.source_asks(MoveRead::Verify { operation: OPERATION, after: self.position() })
        else {
            panic!()
        };
        between(self);
        self.import(remaining.tables, remaining.idempotency, Some(remaining.position), false);
        assert_eq!(digest.differences(&self.target_digest()), Vec::<String>::new());
        between(self);
        self.source.moved(OPERATION, MoveAction::Fence);
        between(self);
        while self.catch_up(rows_max) {}
        self.target.moved(OPERATION, MoveAction::Activate { ownership: 2 });
        between(self);
        self.moved = true;
        between(self);
        self.source.moved(OPERATION, MoveAction::Release { ownership: 2 });
        between(self);
        Self::clean_up(&mut self.source);
        self.retry();
    }

    /// Each row of the model is on exactly one shard, and no other row is.
    fn check(&mut self) {
        for (_, table, ..) in TABLES {
            let sql = format!("SELECT * FROM {table}");
            let lines = |shards: &[&Replica]| {
                let mut lines: Vec<String> =
                    shards.iter().flat_map(|shard| shard.query(&sql)).map(|row| format!("{row:?}")).collect();
                lines.sort();
                lines
            };
            assert_eq!(lines(&[&self.source, &self.target]), lines(&[&self.model]), "{table}");
        }
        assert!(!self.source.dump().contains("__pleat_capture_"), "the move left something behind");
        assert!(!self.source.readers.stats().unwrap().foreign_rows);
        assert!(!self.target.readers.stats().unwrap().foreign_rows);
    }
}

fn names_unit(name: &str) -> PartitionId {
    pleat_cluster::partition_of(&name.into(), KeyType::Text, PARTITIONS).unwrap()
}

fn generated() -> impl Strategy<Value = Write> {
    (0usize..17, 0i64..10, 0i64..5, 0i64..5, proptest::option::weighted(0.3, 0u8..20)).prop_map(|(kind, k, a, b, key)| {
        let name = format!("name {k}");
        let integer = Value::Integer;
        // Unique values are unique over all shards: the key is in them.
        let (unique, other) = (integer(k * 100 + a), integer(k * 100 + b));
        let one = |sql: &str, params: Vec<Value>| vec![Statement::new(sql, params)];
        let blob = Value::Blob(vec![0, a as u8, 255, b as u8]);
        let statements = match kind {
            0 => one("INSERT INTO items(k, n, name, u) VALUES (?, ?, 'new', ?)", vec![integer(k), integer(a), other]),
            1 => one("INSERT OR REPLACE INTO items(k, n, name, u, data) VALUES (?, ?, 'replaced', ?, ?)", vec![integer(k), integer(a), other, blob]),
            2 => one("INSERT INTO items(k, n, u) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET name = 'upserted', data = NULL", vec![integer(k), integer(a), other]),
            3 => one("UPDATE items SET n = n + ? WHERE k = ? AND n = ?", vec![integer(b + 1), integer(k), integer(a)]),
            4 => one("UPDATE OR REPLACE items SET n = ? WHERE k = ? AND n = ?", vec![integer(b), integer(k), integer(a)]),
            5 => one("DELETE FROM items WHERE k = ? AND n = ?", vec![integer(k), integer(a)]),
            6 => one("DELETE FROM items WHERE k = ?", vec![integer(k)]),
            // Two rows swap a unique value.
            7 => vec![
                Statement::new("UPDATE items SET u = NULL WHERE k = ?1 AND u IN (?2, ?3) AND n = (SELECT min(n) FROM items WHERE k = ?1)", vec![integer(k), unique.clone(), other.clone()]),
                Statement::new("UPDATE OR IGNORE items SET u = ?2 WHERE k = ?1 AND u = ?3", vec![integer(k), unique, other.clone()]),
                Statement::new("UPDATE OR IGNORE items SET u = ?2 WHERE k = ?1 AND u IS NULL", vec![integer(k), other]),
            ],
            8 => one("INSERT INTO acc(id, v, note) VALUES (?, ?, 'n') ON CONFLICT(id) DO UPDATE SET v = v + excluded.v", vec![integer(k), Value::Real(0.1 * a as f64)]),
            9 => one("DELETE FROM acc WHERE id = ?", vec![integer(k)]),
            10 => one("INSERT OR REPLACE INTO docs VALUES (?, ?, ?)", vec![Value::Text(format!("d'{a}")), integer(k), blob]),
            11 => one("UPDATE OR REPLACE docs SET id = ? WHERE k = ? AND id = ?", vec![Value::Text(format!("d'{b}")), integer(k), Value::Text(format!("d'{a}"))]),
            12 => one("DELETE FROM docs WHERE k = ? AND id > ?", vec![integer(k), Value::Text(format!("d'{a}"))]),
            13 => one("INSERT OR REPLACE INTO names VALUES (?, ?)", vec![Value::Text(name.clone()), if a == 0 { Value::Null } else { blob }]),
            14 => one("DELETE FROM names WHERE name = ?", vec![Value::Text(name.clone())]),
            15 => one("INSERT OR REPLACE INTO kids VALUES (?, ?, ?)", vec![integer(k), integer(a), integer(b)]),
            _ => one("UPDATE kids SET p = ? WHERE k = ? AND id = ?", vec![integer(b), integer(k), integer(a)]),
        };
        let unit = if kind == 13 || kind == 14 { names_unit(&name) } else { unit_of(k) };
        // A key stands for one request: the same number always gives the same key here, so writes are told apart.
        Write { unit, key: key.map(|key| format!("{key}-{kind}-{k}-{a}-{b}")), statements }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_move_under_writes_keeps_every_row_exactly_once(
        before in proptest::collection::vec(generated(), 0..60),
        during in proptest::collection::vec(generated(), 0..160),
        moving in proptest::sample::subsequence((0..PARTITIONS).map(PartitionId).collect::<Vec<_>>(), 1..=PARTITIONS as usize),
        rows_max in 1usize..6,
        pace in 0usize..8,
        triggers: bool,
    ) {
        let mut world = World::new(moving);
        if triggers {
            world = world.with_triggers();
        }
        for write in before {
            world.write(write);
        }
        let mut during = during.into_iter();
        world.run(rows_max, &mut |world| during.by_ref().take(pace).for_each(|write| world.write(write)));
        during.for_each(|write| world.write(write));
        world.check();
    }

    #[test]
    fn an_aborted_move_leaves_nothing(
        before in proptest::collection::vec(generated(), 0..60),
        during in proptest::collection::vec(generated(), 0..40),
        steps in 0usize..30,
    ) {
        let mut world = World::new(vec![unit_of(1), unit_of(3)]).with_triggers();
        for write in before {
            world.write(write);
        }
        let clean = world.target.dump();
        world.source.moved(OPERATION, MoveAction::CaptureStart { partitions: world.moving.clone() });
        world.target.moved(OPERATION, MoveAction::ImportStart { partitions: world.moving.clone() });
        let MoveChunk::Opened { snapshot, tables, .. } = world.source_asks(MoveRead::CopyOpen { operation: OPERATION }) else { panic!() };
        for table in tables {
            let request = MoveRead::CopyNext { snapshot, table, after: None, rows_max: 5, bytes_max: 1 << 20 };
            let MoveChunk::Rows { changes, .. } = world.source_asks(request) else { panic!() };
            world.import(vec![changes], vec![], None, true);
        }
        for write in during {
            world.write(write);
        }
        for _ in 0..steps {
            world.catch_up(3);
        }
        world.source.moved(OPERATION, MoveAction::Fence);
        world.source.moved(OPERATION, MoveAction::Abort);
        world.target.moved(OPERATION, MoveAction::ImportAbort);
        World::clean_up(&mut world.target);
        world.retry();
        world.check();
        let rows = |dump: &str| dump.lines().filter(|line| TABLES.iter().any(|(_, name, ..)| line.starts_with(&format!("{name}: ")))).count();
        prop_assert_eq!(rows(&world.target.dump()), rows(&clean));
    }
}

fn insert(world: &mut World, k: i64, n: i64) {
    let statements = vec![Statement::new("INSERT INTO items(k, n) VALUES (?, ?)", vec![k.into(), n.into()])];
    world.write(Write { unit: unit_of(k), key: None, statements });
}

#[test]
fn an_older_leader_is_refused_and_steps_can_be_repeated() {
    let mut world = World::new(vec![unit_of(1)]);
    let start = MoveAction::CaptureStart { partitions: world.moving.clone() };
    for _ in 0..2 {
        assert!(matches!(
            world.source.step(OPERATION, 3, start.clone()),
            Outcome::Moved(MoveState { phase: MovePhase::Capturing, .. })
        ));
    }
    assert_eq!(
        world.source.step(OPERATION, 2, MoveAction::Fence),
        Outcome::Refused(Refusal::StaleEpoch { given: 2, seen: 3 })
    );
    world.source.step(OPERATION, 4, MoveAction::Claim);
    assert_eq!(
        world.source.step(OPERATION, 3, MoveAction::Fence),
        Outcome::Refused(Refusal::StaleEpoch { given: 3, seen: 4 })
    );
    for action in [
        MoveAction::Fence,
        MoveAction::Fence,
        MoveAction::Unfence,
        MoveAction::Unfence,
        MoveAction::Fence,
        MoveAction::Release { ownership: 9 },
        MoveAction::Release { ownership: 9 },
    ] {
        assert!(matches!(world.source.step(OPERATION, 4, action.clone()), Outcome::Moved(_)), "{action:?}");
    }
    assert!(matches!(world.source.step(OPERATION, 4, MoveAction::Abort), Outcome::Refused(Refusal::MoveState { .. })));
    assert!(matches!(
        world.source.step(OPERATION, 4, MoveAction::Activate { ownership: 1 }),
        Outcome::Refused(Refusal::MoveState { .. })
    ));
    assert_eq!(world.source.readers.stats().unwrap().ownership, 9);
}

#[test]
fn fenced_and_released_partitions_answer_nobody() {
    let mut world = World::new(vec![unit_of(1)]);
    insert(&mut world, 1, 1);
    insert(&mut world, 3, 1);
    let asks = |world: &World, check| {
        let filtered = Some("SELECT k FROM items WHERE pleat_owned(k)".to_owned());
        read_all(
            &world.source.readers,
            &ReadRequest {
                check,
                layout: None,
                queries: vec![Query { sql_filtered: filtered, ..Query::new("SELECT k FROM items") }],
                ..request("")
            },
        )
    };
    world.source.moved(OPERATION, MoveAction::CaptureStart { partitions: world.moving.clone() });
    assert_eq!(asks(&world, OwnershipCheck::Scatter { ownership: 1 }).unwrap().len(), 2);
    world.source.moved(OPERATION, MoveAction::Fence);
    let fenced = EngineError::Refused(Refusal::Fenced { unit: unit_of(1) });
    assert_eq!(asks(&world, OwnershipCheck::Scatter { ownership: 1 }), Err(fenced.clone()));
    assert_eq!(asks(&world, OwnershipCheck::Keyed(vec![unit_of(1)])), Err(fenced));
    assert!(asks(&world, OwnershipCheck::Keyed(vec![unit_of(3)])).is_ok());
    world.source.moved(OPERATION, MoveAction::Release { ownership: 2 });
    assert_eq!(asks(&world, OwnershipCheck::Scatter { ownership: 1 }).unwrap_err().code(), "40001");
    // Leftovers are still here, and are filtered out.
    assert_eq!(asks(&world, OwnershipCheck::Scatter { ownership: 2 }).unwrap(), [[Value::Integer(3)]]);
    assert_eq!(world.source.readers.stats().unwrap().rows, 1);
    World::clean_up(&mut world.source);
    assert_eq!(world.source.query("SELECT k FROM items"), [[Value::Integer(3)]]);
}

#[test]
fn a_remembered_write_is_remembered_at_the_target() {
    let mut world = World::new(vec![unit_of(1)]);
    let write = Write {
        unit: unit_of(1),
        key: Some("pay once".into()),
        statements: vec![Statement::new(
            "INSERT INTO acc(id, v, note) VALUES (1, 5, '') ON CONFLICT DO UPDATE SET v = v + 5",
            vec![],
        )],
    };
    world.write(write.clone());
    world.run(10, &mut |_| {});
    assert!(matches!(world.target.apply(write.action()), Outcome::Replayed { .. }));
    assert_eq!(world.target.query("SELECT v FROM acc"), [[Value::Real(5.0)]]);
}

#[test]
fn a_partition_takes_along_which_transactions_its_rows_show() {
    let moves = unit_of(1);
    let key = (2..).find(|key| unit_of(*key) != moves).unwrap();
    let mut world = World::new(vec![moves]);
    // The source and two shards that the move does not concern; the last transaction is in rows that stay.
    let commit = |world: &mut World, number: u64, other: u32, unit: PartitionId, k: i64| {
        let insert = format!("INSERT INTO items(k, n) VALUES ({k}, {number})");
        let prepare = Action::Prepare {
            txn: TxnId(number.into()),
            began: 5,
            participants: vec![ShardId(1), ShardId(other)],
            idempotency: None,
            units: vec![unit],
            statements: vec![Statement::new(&insert, vec![])],
            base: None,
        };
        assert!(matches!(world.source.apply(prepare), Outcome::Prepared { .. }));
        let decide = Action::Decide { txn: TxnId(number.into()), commit: Some(number) };
        assert!(matches!(world.source.apply(decide), Outcome::Done { .. }));
        world.model.apply(write(&insert, vec![]));
    };
    // One that only the copy brings, and one that comes while it moves.
    commit(&mut world, 7, 8, moves, 1);
    let mut step = 0;
    world.run(100, &mut |world| {
        step += 1;
        if step == 4 {
            commit(world, 9, 10, moves, 1);
            commit(world, 11, 12, unit_of(key), key);
        }
    });
    let together = |replica: &Replica| {
        let mut together = seen(replica).together;
        together.sort();
        together
    };
    assert_eq!(together(&world.target), together(&world.source));
    assert!(together(&world.target).contains(&(ShardId(8), 7)) && together(&world.target).contains(&(ShardId(10), 9)));
}

#[test]
fn a_copy_in_large_messages_that_come_twice() {
    let mut world = World::new(vec![unit_of(1)]);
    for n in 0..300 {
        insert(&mut world, 1, n);
    }
    world.run(140, &mut |_| {});
    world.check();
    assert_eq!(world.target.query("SELECT count(*) FROM items"), [[Value::Integer(300)]]);
}

#[test]
fn a_collision_with_a_row_that_stays_is_an_error_and_changes_nothing() {
    let mut world = World::new(vec![unit_of(1)]);
    // The target has another partition, with a row whose unique value the moving row has too.
    let theirs = PartitionId((0..PARTITIONS).find(|p| PartitionId(*p) == unit_of(3)).unwrap());
    world.target.apply(Action::Own { units: vec![theirs], ownership: 2, layout: 0 });
    let units = vec![theirs];
    let statements = vec![Statement::new("INSERT INTO items(k, n, u) VALUES (3, 1, 77)", vec![])];
    assert!(matches!(
        world.target.apply(Action::Write { idempotency: None, units, statements, base: None }),
        Outcome::Done { .. }
    ));
    world.target.moved(OPERATION, MoveAction::ImportStart { partitions: world.moving.clone() });
    let columns: Vec<String> = ["k", "n", "name", "data", "u"].map(String::from).to_vec();
    let row = |n: i64, u: i64| vec![Value::Integer(1), n.into(), Value::Null, Value::Null, u.into()];
    let rows = |rows: Vec<Vec<Value>>| TableChanges {
        table: "items".into(),
        columns: columns.clone(),
        rows: rows.into(),
        ..TableChanges::default()
    };
    let import =
        |changes| MoveAction::Import { changes: vec![changes], idempotency: vec![], position: None, copied: false };
    let outcome = world.target.step(OPERATION, 1, import(rows(vec![row(1, 76), row(2, 77)])));
    let Outcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.code, "23505");
    assert_eq!(world.target.query("SELECT k FROM items"), [[Value::Integer(3)]]);
    // A collision with a moving row's older state is none: the older state goes.
    world.target.moved(OPERATION, import(rows(vec![row(1, 5)])));
    world.target.moved(OPERATION, import(rows(vec![row(2, 5)])));
    assert_eq!(world.target.query("SELECT n FROM items WHERE k = 1"), [[Value::Integer(2)]]);
    // Rows of another shape are refused.
    let short = TableChanges { columns: vec!["k".into()], ..rows(vec![vec![Value::Null]]) };
    assert!(matches!(world.target.step(OPERATION, 1, import(short)), Outcome::Refused(Refusal::MoveState { .. })));
}

#[test]
fn the_schema_waits_for_the_move() {
    let mut world = World::new(vec![unit_of(1)]);
    world.source.moved(OPERATION, MoveAction::CaptureStart { partitions: world.moving.clone() });
    let sql = "CREATE TABLE r(a)";
    let table = validate_ddl(&Default::default(), &[sql.to_owned()], "r", &TableKind::Reference).unwrap().unwrap();
    assert_eq!(world.source.apply(ddl(99, &[sql], table.clone())), Outcome::Refused(Refusal::Moving));
    world.source.moved(OPERATION, MoveAction::Abort);
    assert!(matches!(world.source.apply(ddl(99, &[sql], table)), Outcome::Done { .. }));
}

#[test]
fn reference_tables_are_copied_with_their_rowids_and_sequences() {
    let (mut anchor, mut new) = (shard(), shard());
    for replica in [&mut anchor, &mut new] {
        replica.create("CREATE TABLE r(a TEXT, b)", "r", TableKind::Reference);
        replica.create("CREATE TABLE s(id INTEGER PRIMARY KEY AUTOINCREMENT, v)", "s", TableKind::Reference);
    }
    for sql in [
        "INSERT INTO r VALUES ('x', 1), ('y', 2), (NULL, 3)",
        "DELETE FROM r WHERE b = 2",
        "INSERT INTO s(v) VALUES (1), (2)",
        "DELETE FROM s WHERE id = 2",
    ] {
        anchor.apply(Action::ReferenceWrite { idempotency: None, statements: vec![Statement::new(sql, vec![])] });
    }
    let MoveChunk::Opened { snapshot, tables, reference_seq } =
        anchor.readers.move_read(&MoveRead::ReferenceOpen).unwrap()
    else {
        panic!()
    };
    assert_eq!((tables.len(), reference_seq), (2, 4));
    new.moved(OPERATION, MoveAction::Claim);
    for table in tables {
        let request = MoveRead::CopyNext { snapshot, table, after: None, rows_max: 100, bytes_max: 1 << 20 };
        let MoveChunk::Rows { changes, next: None } = anchor.readers.move_read(&request).unwrap() else { panic!() };
        new.moved(
            OPERATION,
            MoveAction::Import { changes: vec![changes], idempotency: vec![], position: None, copied: false },
        );
    }
    new.moved(OPERATION, MoveAction::ReferenceLoaded { seq: reference_seq });
    let statements = vec![Statement::new("INSERT INTO s(v) VALUES (3)", vec![])];
    anchor.apply(Action::ReferenceWrite { idempotency: None, statements });
    let MoveChunk::ReferenceLog { entries, .. } =
        anchor.readers.move_read(&MoveRead::ReferenceLog { after: 4, limit: 9 }).unwrap()
    else {
        panic!()
    };
    new.apply(Action::ReferenceApply(entries[0].clone()));
    for sql in ["SELECT rowid, * FROM r", "SELECT * FROM s"] {
        assert_eq!(new.query(sql), anchor.query(sql));
    }
    assert_eq!(new.query("SELECT id FROM s"), [[Value::Integer(1)], [Value::Integer(3)]]);
    let digest = |replica: &Replica| replica.readers.move_read(&MoveRead::ReferenceDigest).unwrap();
    assert_eq!(digest(&anchor), digest(&new));
}

#[test]
fn a_closed_snapshot_is_gone_and_the_state_survives_a_restart() {
    let mut world = World::new(vec![unit_of(1)]);
    insert(&mut world, 1, 1);
    world.source.moved(OPERATION, MoveAction::CaptureStart { partitions: world.moving.clone() });
    let MoveChunk::Opened { snapshot, .. } = world.source_asks(MoveRead::CopyOpen { operation: OPERATION }) else {
        panic!()
    };
    world.source_asks(MoveRead::Close { snapshot });
    let request = MoveRead::CopyNext { snapshot, table: "items".into(), after: None, rows_max: 1, bytes_max: 1 };
    let gone = world.source.readers.move_read(&request).unwrap_err();
    assert!(gone.is_retryable() && gone == EngineError::SnapshotGone { id: snapshot });
    world.source.store = None;
    let (store, readers) = Store::open(world.source.dir.path(), StoreConfig::new(PARTITIONS)).unwrap();
    (world.source.store, world.source.readers) = (Some(store), readers);
    insert(&mut world, 1, 2);
    let after = Position::default();
    let MoveChunk::Delta(delta) =
        world.source_asks(MoveRead::Delta { operation: OPERATION, after, rows_max: 10, bytes_max: 1 << 20 })
    else {
        panic!()
    };
    assert_eq!(delta.tables[0].rows.len(), 1, "changes are captured after a restart too");
}

#[test]
fn a_new_leader_of_the_source_goes_on_with_the_captures() {
    let mut world = World::new(vec![unit_of(1)]);
    insert(&mut world, 1, 1);
    world.source.moved(OPERATION, MoveAction::CaptureStart { partitions: world.moving.clone() });
    insert(&mut world, 1, 2);
    insert(&mut world, 3, 2);
    // The follower applied the same log in one batch.
    let mut follower = Replica::new();
    let log: Vec<&[u8]> = world.source.log.iter().map(Vec::as_slice).collect();
    follower.store().apply(&log, b"all").unwrap();
    let ask = MoveRead::Delta { operation: OPERATION, after: Position::default(), rows_max: 9, bytes_max: 1 << 20 };
    let delta = follower.readers.move_read(&ask).unwrap();
    assert_eq!(delta, world.source_asks(ask));
    let MoveChunk::Delta(delta) = delta else { panic!() };
    assert_eq!(delta.tables[0].rows.len(), 1);
    let verify = MoveRead::Verify { operation: OPERATION, after: delta.position };
    assert_eq!(follower.readers.move_read(&verify).unwrap(), world.source_asks(verify));
}

fn with_key(key: &str, fingerprint: u64, k: i64, n: i64) -> Action {
    Action::Write {
        idempotency: Some(Idempotency { key: key.into(), fingerprint, ttl_ms: 1 << 40 }),
        units: vec![unit_of(k)],
        statements: vec![Statement::new("INSERT INTO items(k, n) VALUES (?, ?)", vec![k.into(), n.into()])],
        base: None,
    }
}

fn bulk_done(replayed: bool) -> Outcome {
    Outcome::Bulk { parts: vec![BulkDone { inserted: 1, rejected: vec![], replayed }] }
}

fn bulk_with_key(key: &str, k: i64, n: i64) -> Action {
    Action::Bulk {
        table: "items".into(),
        columns: vec!["k".into(), "n".into()],
        parts: vec![BulkPart {
            idempotency: Some(Idempotency { key: key.into(), fingerprint: 1, ttl_ms: 1 << 40 }),
            units: vec![unit_of(k)],
            rows: vec![(0, vec![k.into(), n.into()])],
        }],
    }
}

#[test]
fn a_repeated_write_is_answered_while_its_partition_is_fenced_and_after() {
    let mut world = World::new(vec![unit_of(1)]);
    let (known, bulk) = (with_key("c/known", 1, 1, 1), bulk_with_key("c/bulk", 1, 2));
    assert!(matches!(world.source.apply(known.clone()), Outcome::Done { .. }));
    assert_eq!(world.source.apply(bulk.clone()), bulk_done(false));
    world.source.moved(OPERATION, MoveAction::CaptureStart { partitions: world.moving.clone() });
    world.source.moved(OPERATION, MoveAction::Fence);
    let check = |world: &mut World, refused: fn(&Refusal) -> bool| {
        assert!(matches!(world.source.apply(known.clone()), Outcome::Replayed { .. }));
        assert_eq!(world.source.apply(bulk.clone()), bulk_done(true));
        for new in [with_key("c/new", 1, 1, 9), bulk_with_key("c/new bulk", 1, 9)] {
            let outcome = world.source.apply(new);
            assert!(matches!(&outcome, Outcome::Refused(refusal) if refused(refusal)), "{outcome:?}");
        }
        let conflict = world.source.apply(with_key("c/known", 2, 1, 1));
        assert!(matches!(conflict, Outcome::Refused(Refusal::KeyConflict { .. })));
        let invalid = world.source.apply(with_key("", 2, 1, 1));
        assert!(matches!(invalid, Outcome::Refused(Refusal::KeyInvalid { .. })));
    };
    check(&mut world, |refusal| matches!(refusal, Refusal::Fenced { .. }));
    world.source.moved(OPERATION, MoveAction::Release { ownership: 2 });
    check(&mut world, |refusal| matches!(refusal, Refusal::NotOwned { .. }));
}

#[test]
fn a_delta_and_a_verification_keep_to_their_bytes() {
    let mut world = World::new(vec![unit_of(1)]);
    world.source.moved(OPERATION, MoveAction::CaptureStart { partitions: world.moving.clone() });
    for n in 0..120 {
        let statements = vec![Statement::new(
            "INSERT INTO items(k, n, data) VALUES (1, ?, zeroblob(100)) RETURNING zeroblob(50000)",
            vec![n.into()],
        )];
        let idempotency = Some(Idempotency { key: format!("c/{n}"), fingerprint: 1, ttl_ms: 1 << 40 });
        let outcome =
            world.source.apply(Action::Write { idempotency, units: vec![unit_of(1)], statements, base: None });
        assert!(matches!(outcome, Outcome::Done { .. }));
    }
    let verify = |after: Position| world.source.readers.move_read(&MoveRead::Verify { operation: OPERATION, after });
    assert!(matches!(verify(Position::default()), Err(EngineError::DeltaTooLarge { .. })));
    let (mut after, mut rows, mut keys) = (Position::default(), 0, 0);
    loop {
        let ask = MoveRead::Delta { operation: OPERATION, after, rows_max: 1_000, bytes_max: 200_000 };
        let MoveChunk::Delta(delta) = world.source_asks(ask) else { panic!() };
        let bytes: usize = delta.idempotency.iter().map(|row| row.outcome.len()).sum();
        assert!(bytes <= 200_000 && !delta.is_empty());
        rows += delta.tables.iter().map(|table| table.rows.len()).sum::<usize>();
        keys += delta.idempotency.len();
        after = delta.position;
        if !delta.more {
            break;
        }
    }
    assert_eq!((rows, keys), (120, 120));
    assert!(matches!(verify(after), Ok(MoveChunk::Verified { .. })));
    // One thing goes however small the limit is.
    let ask = MoveRead::Delta { operation: OPERATION, after: Position::default(), rows_max: 9, bytes_max: 1 };
    let MoveChunk::Delta(delta) = world.source_asks(ask) else { panic!() };
    assert_eq!((delta.tables[0].rows.len(), delta.idempotency.len(), delta.more), (1, 0, true));
}

#[test]
fn the_reference_log_is_read_in_pieces_that_can_be_carried() {
    let mut anchor = Replica::with_items();
    anchor.create("CREATE TABLE r(id INTEGER PRIMARY KEY, a, b)", "r", TableKind::Reference);
    let insert = "INSERT INTO r(a) VALUES (?)";
    // Each value can be moved; the entry holds two.
    let large = || Statement::new(insert, vec![Value::Blob(vec![7; 3 << 20])]);
    for statements in [vec![large()], vec![large(), large()], vec![Statement::new(insert, vec![1.into()])]] {
        let outcome = anchor.apply(Action::ReferenceWrite { idempotency: None, statements });
        assert!(matches!(outcome, Outcome::Reference { .. }), "{outcome:?}");
    }
    let seqs = |after, limit| match anchor.readers.move_read(&MoveRead::ReferenceLog { after, limit }).unwrap() {
        MoveChunk::ReferenceLog { entries, last: 3 } => entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!((seqs(0, 10), seqs(1, 10), seqs(2, 10), seqs(0, 0)), (vec![1], vec![2], vec![3], vec![]));
}

/// A row that has gone to another shard lies here until it is cleaned up, and may be deleted there by now.
#[test]
fn a_reference_rows_end_waits_while_rows_that_went_away_refer_to_it() {
    let mut shard = Replica::new();
    let kids = sharded("k", KeyType::Integer);
    shard.create("CREATE TABLE lands(code INTEGER PRIMARY KEY)", "lands", TableKind::Reference);
    shard.create("CREATE TABLE kids(k INTEGER PRIMARY KEY, land REFERENCES lands(code))", "kids", kids);
    shard.own(0..PARTITIONS);
    let statements = vec![Statement::new("INSERT INTO lands VALUES (1), (2)", vec![])];
    shard.apply(Action::ReferenceWrite { idempotency: None, statements });
    shard.ok("INSERT INTO kids VALUES (1, 1)");
    let alone = |sql: &str| Action::ReferenceWrite { idempotency: None, statements: vec![Statement::new(sql, vec![])] };
    let unknown = |outcome| matches!(outcome, Outcome::Refused(Refusal::Generation { .. }));
    assert!(unknown(shard.apply(alone("DELETE FROM lands WHERE code = 2"))));
    assert!(unknown(shard.apply(alone("INSERT INTO lands VALUES (2) ON CONFLICT DO NOTHING"))));
    assert!(matches!(shard.apply(alone("INSERT INTO lands VALUES (3)")), Outcome::Reference { .. }));
    let delete = |code: i64| Action::Prepare {
        txn: TxnId(7),
        began: 5,
        participants: vec![ShardId(1), ShardId(2)],
        idempotency: None,
        units: vec![],
        statements: vec![Statement {
            stamp: Some(Stamp { now_ms: 5, seed: 5, undone: None }),
            reference: Some(3),
            ..Statement::new("DELETE FROM lands WHERE code = ?1", vec![Value::Integer(code)])
        }],
        base: None,
    };
    assert!(matches!(shard.apply(delete(1)), Outcome::Failed(failure) if failure.code == "23503"));
    shard.moved(OPERATION, MoveAction::CaptureStart { partitions: vec![unit_of(1)] });
    shard.moved(OPERATION, MoveAction::Fence);
    shard.moved(OPERATION, MoveAction::Release { ownership: 2 });
    assert_eq!(shard.apply(delete(1)), Outcome::Refused(Refusal::Moving));
    shard.moved(OPERATION, MoveAction::CleanUp { table: "kids".into(), keys: vec![vec![Value::Integer(1)]] });
    assert!(matches!(shard.apply(delete(1)), Outcome::Prepared { .. }));
}
