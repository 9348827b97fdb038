//! RFD 2: the same entries give the same content, byte for byte, however a replica came to apply them.
//!
//! Each log is applied by replicas with different histories, and their dumps (schema, rows, rowids, sequences,
//! statistics, Pleat's own tables) and outcomes must be equal:
//!
//! * one entry at a time, and in batches of other sizes,
//! * with a restart in the middle: the files as a killed process leaves them, the log replayed from what they say,
//! * from a snapshot of another replica in the middle.

mod common;

use std::path::Path;

use common::*;
use pleat_cluster::{KeyType, Value};
use pleat_engine::*;
use proptest::prelude::*;

const T: &str = "CREATE TABLE t(k INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT DEFAULT CURRENT_TIMESTAMP, day TEXT DEFAULT CURRENT_DATE, \
                 clock TEXT DEFAULT CURRENT_TIME, r INTEGER DEFAULT (random()), b BLOB DEFAULT (randomblob(8)), v INTEGER CHECK (v < 1000), \
                 doubled INTEGER AS (v * 2), stored TEXT AS (v || 'x') STORED, u TEXT UNIQUE)";

/// What the engine is put through beyond what the SQL layer lets users do today.
const BESIDE: [&str; 8] = [
    "CREATE TABLE log(what, at REAL DEFAULT (julianday('now')), unix INTEGER DEFAULT (unixepoch()), \
     ms TEXT DEFAULT (strftime('%f', 'now')), local TEXT DEFAULT (datetime('now', 'localtime')), changed DEFAULT (changes()), \
     total DEFAULT (total_changes()), rowid_before DEFAULT (last_insert_rowid()))",
    "CREATE TABLE child(id INTEGER PRIMARY KEY, p INTEGER REFERENCES t(k) ON DELETE CASCADE ON UPDATE SET NULL, \
     d INTEGER REFERENCES t(k) DEFERRABLE INITIALLY DEFERRED)",
    "CREATE TABLE pairs(a TEXT, b INTEGER, c, PRIMARY KEY (a, b)) WITHOUT ROWID",
    "CREATE TABLE strict(a INTEGER, b ANY, c TEXT UNIQUE ON CONFLICT ROLLBACK) STRICT",
    "CREATE TRIGGER t_insert AFTER INSERT ON t BEGIN INSERT INTO log(what) VALUES ('inserted ' || NEW.k); END",
    "CREATE TRIGGER t_delete BEFORE DELETE ON t BEGIN INSERT INTO log(what) VALUES ('deleted ' || OLD.k || random()); END",
    "CREATE TRIGGER t_guard BEFORE UPDATE ON t WHEN NEW.v = 13 BEGIN SELECT RAISE(ABORT, 'thirteen'); END",
    "CREATE INDEX log_what ON log(what)",
];

fn founding() -> Vec<Action> {
    let table =
        validate_ddl(&Default::default(), &[T.to_owned()], "t", &sharded("k", KeyType::Integer)).unwrap().unwrap();
    let mut statements = vec![T];
    statements.extend(BESIDE);
    vec![Action::Own { units: all_units(), ownership: 1, layout: 0 }, ddl(1, &statements, table)]
}

/// A schema change beside the table `t`.
fn schema(operation: u64, statements: &[&str]) -> Action {
    let table =
        validate_ddl(&Default::default(), &[T.to_owned()], "t", &sharded("k", KeyType::Integer)).unwrap().unwrap();
    ddl(operation, statements, table)
}

fn sql(text: &str) -> Action {
    write(text, vec![])
}

fn encoded(actions: &[Action]) -> Vec<Vec<u8>> {
    (0u64..).zip(actions).map(|(n, action)| entry(action.clone(), 1_700_000_000_123 + n * 977, n * 7_919)).collect()
}

struct Copy {
    dir: tempfile::TempDir,
    store: Store,
    outcomes: Vec<Vec<u8>>,
}

impl Copy {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    fn at(dir: tempfile::TempDir) -> Self {
        let (store, _) = Store::open(dir.path(), StoreConfig::new(PARTITIONS)).unwrap();
        Self { dir, store, outcomes: Vec::new() }
    }

    fn position(&self) -> usize {
        let applied = self.store.applied().unwrap();
        applied.try_into().map_or(0, |bytes| u64::from_le_bytes(bytes) as usize)
    }

    /// Applies `log[..upto]` from its own position on, in batches of these sizes, over and over.
    fn apply(&mut self, log: &[Vec<u8>], upto: usize, batches: &[usize]) {
        let mut sizes = batches.iter().copied().cycle();
        while self.position() < upto {
            let from = self.position();
            let to = (from + sizes.next().unwrap().max(1)).min(upto);
            let batch: Vec<&[u8]> = log[from..to].iter().map(Vec::as_slice).collect();
            let outcomes = self.store.apply(&batch, &(to as u64).to_le_bytes()).unwrap();
            self.outcomes.truncate(from);
            self.outcomes.extend(outcomes);
        }
    }

    /// The files as a process that was killed leaves them.
    fn killed(&self) -> Copy {
        let dir = tempfile::tempdir().unwrap();
        for name in ["shard.db", "shard.db-wal"] {
            let from = self.dir.path().join(name);
            if from.exists() {
                std::fs::copy(from, dir.path().join(name)).unwrap();
            }
        }
        Copy { outcomes: self.outcomes.clone(), ..Copy::at(dir) }
    }

    /// A new replica that begins with a snapshot of this one.
    fn snapshot(&self) -> Copy {
        let mut new = Copy::new();
        let file = new.dir.path().join("snapshot");
        self.store.copier().unwrap()(&file).unwrap();
        new.store.install(&file).unwrap();
        new.outcomes = self.outcomes.clone();
        new
    }

    fn dump(&self) -> String {
        dump(&self.dir.path().join(Store::FILE))
    }
}

/// Applies a log along every history, and compares.
fn check(actions: &[Action], middle: usize, batches: &[usize]) -> (String, Vec<Outcome>) {
    let log = encoded(actions);
    let mut one_by_one = Copy::new();
    one_by_one.apply(&log, log.len(), &[1]);
    let mut batched = Copy::new();
    batched.apply(&log, middle, batches);
    let mut killed = batched.killed();
    let mut copied = batched.snapshot();
    batched.apply(&log, log.len(), batches);
    killed.apply(&log, log.len(), &[3, 1]);
    copied.apply(&log, log.len(), &[usize::MAX >> 1]);
    let wanted = one_by_one.dump();
    let digest = one_by_one.store.digest().unwrap();
    for (name, other) in [("batched", &mut batched), ("killed", &mut killed), ("copied", &mut copied)] {
        for (n, (a, b)) in one_by_one.outcomes.iter().zip(&other.outcomes).enumerate() {
            assert_eq!(Outcome::decode(a), Outcome::decode(b), "{name}: outcome of entry {n}: {:?}", actions[n]);
        }
        same(name, &wanted, &other.dump());
        assert_eq!(digest, other.store.digest().unwrap(), "{name}");
    }
    let outcomes = one_by_one.outcomes.iter().map(|bytes| Outcome::decode(bytes).unwrap()).collect();
    (wanted, outcomes)
}

fn same(name: &str, wanted: &str, found: &str) {
    for (a, b) in wanted.lines().zip(found.lines()) {
        assert_eq!(a, b, "{name} differs");
    }
    assert_eq!(wanted.len(), found.len(), "{name} differs");
}

#[test]
fn the_same_entries_give_the_same_content() {
    let mut actions = founding();
    actions.extend([
        sql("INSERT INTO t(v, u) VALUES (1, 'a'), (2, 'b'), (3, 'c')"),
        sql("INSERT INTO t(v, u) VALUES (4, 'a')"), // fails
        sql("INSERT INTO t(v, u) VALUES (5, 'a') ON CONFLICT(u) DO UPDATE SET v = v + excluded.v, r = random(), at = datetime('now', '+1 day')"),
        sql("INSERT OR REPLACE INTO t(v, u) VALUES (6, 'b')"),
        sql("INSERT OR IGNORE INTO t(v, u) VALUES (7, 'c'), (8, 'd')"),
        sql("INSERT OR FAIL INTO t(v, u) VALUES (9, 'e'), (10, 'a'), (11, 'f')"),
        sql("INSERT OR ROLLBACK INTO t(v, u) VALUES (12, 'g'), (10, 'a')"),
        sql("UPDATE t SET v = v + 7"), // meets the trigger's RAISE
        sql("UPDATE t SET v = v * 150"), // violates the CHECK half way
        sql("INSERT INTO strict VALUES (1, 'x', 'once')"),
        sql("INSERT INTO strict VALUES (2, 'y', 'once')"), // rolls the whole transaction back
        sql("INSERT INTO strict VALUES ('no', 'y', 'twice')"),
        sql("INSERT INTO child VALUES (1, 1, 3), (2, 3, 1)"),
        sql("INSERT INTO child VALUES (3, 99, 1)"), // no such parent
        sql("INSERT INTO child VALUES (3, 1, 99)"), // found at the end of the request
        sql("DELETE FROM t WHERE k = 1"), // cascades, and leaves a deferred reference dangling
        sql("UPDATE child SET d = 3"),
        sql("DELETE FROM t WHERE k = 1"),
        sql("INSERT INTO pairs SELECT u, k, random() FROM t ORDER BY random()"),
        sql("INSERT INTO log(what, at) SELECT typeof(b) || length(b), julianday(at) FROM t ORDER BY r LIMIT 2"),
        sql("INSERT INTO log(what, at) SELECT 'sum', total(r) FROM t"),
        sql("DELETE FROM log WHERE rowid IN (SELECT rowid FROM log ORDER BY random() LIMIT 2)"),
        sql("INSERT INTO log(what) SELECT randomblob(abs(random()) % 50) FROM t"),
        sql("INSERT INTO log(what) VALUES (last_insert_rowid() || ' ' || changes() || ' ' || total_changes())"),
        sql("INSERT INTO t(k, v) VALUES (9223372036854775807, 1)"), // refused: ids after it would be random
        schema(2, &["ANALYZE", "CREATE INDEX t_v ON t(v)", "ALTER TABLE log ADD COLUMN extra DEFAULT 'e'"]),
        sql("INSERT INTO log(what, extra) SELECT u, v FROM t WHERE v > 2 AND u > 'a'"),
        schema(3, &["ANALYZE", "DROP INDEX t_v", "CREATE TABLE log(x)"]), // fails after it has gathered statistics
        sql("INSERT INTO pairs SELECT what, rowid, NULL FROM log WHERE what > 'a' AND extra IS NOT NULL"),
        schema(4, &["DROP TABLE child", "ANALYZE"]),
        sql("DELETE FROM t WHERE v IN (SELECT v FROM t LIMIT 1)"),
        Action::Digest,
    ]);
    let (dump, outcomes) = check(&actions, 15, &[4, 7, 1]);
    assert!(dump.contains("'2023-11-14"), "the time is the entry's");
    assert!(dump.contains("sqlite_sequence: ") && dump.contains("sqlite_stat1: "));
    let failed: Vec<_> =
        outcomes.iter().enumerate().filter(|(_, one)| matches!(one, Outcome::Failed(_))).map(|(n, _)| n).collect();
    assert_eq!(failed, [3, 7, 8, 9, 10, 12, 13, 15, 16, 17, 26, 29], "{outcomes:#?}");
}

#[test]
fn counters_begin_at_zero_in_each_entry() {
    let mut actions = founding();
    actions.extend([
        sql("INSERT INTO t(v) VALUES (1), (2), (3)"),
        sql("INSERT INTO log DEFAULT VALUES"),
        sql("SELECT changes(), total_changes(), last_insert_rowid()"),
    ]);
    let (_, outcomes) = check(&actions, 3, &[2]);
    let Some(Outcome::Done { results }) = outcomes.last() else { panic!("{outcomes:?}") };
    assert_eq!(results[0].rows, [[Value::Integer(0), Value::Integer(0), Value::Integer(0)]]);
}

#[test]
fn local_time_is_utc_whatever_the_machine_says() {
    // SAFETY: no other thread of this test reads the environment meanwhile.
    unsafe { std::env::set_var("TZ", "Asia/Kolkata") };
    let (dump, _) = check(&[founding(), vec![sql("INSERT INTO log DEFAULT VALUES")]].concat(), 2, &[1]);
    assert!(dump.contains("'2023-11-14 22:13:2"), "{dump}");
}

/// One entry of a generated log. Small numbers, so that entries meet each other.
fn action() -> impl Strategy<Value = Action> {
    let n = 0i64..12;
    (0usize..28, n.clone(), n, any::<bool>()).prop_map(|(kind, a, b, keyed)| {
        let ab = vec![Value::Integer(a), Value::Integer(b)];
        let statements = [
            "INSERT INTO t(v, u) VALUES (?1, ?2)",
            "INSERT INTO t(k, v) VALUES (?1, ?2)",
            "INSERT OR REPLACE INTO t(k, v, u) VALUES (?1, ?2, ?2)",
            "INSERT INTO t(k, v, u) VALUES (?1, ?2, ?2), (?2, ?1, ?1) ON CONFLICT DO NOTHING",
            "INSERT INTO t(v, u) VALUES (?1, ?2) ON CONFLICT(u) DO UPDATE SET v = v + 1, r = random(), b = randomblob(v % 9)",
            "INSERT OR FAIL INTO t(k, v, u) VALUES (?1, 1, ?1), (?2, 2, ?2)",
            "INSERT OR ROLLBACK INTO t(k, v, u) VALUES (?1, 1, ?1), (?2, 2, ?2)",
            "UPDATE t SET v = v + ?1 WHERE k % 5 = ?2",
            "UPDATE t SET v = 990 + k + ?1 - ?2",
            "UPDATE OR REPLACE t SET u = ?1 WHERE k < ?2",
            "UPDATE OR IGNORE t SET u = ?1 WHERE k > ?2",
            "DELETE FROM t WHERE k IN (?1, ?2)",
            "DELETE FROM t WHERE k IN (SELECT k FROM t WHERE k < ?1 + ?2 ORDER BY random() LIMIT 1)",
            "INSERT INTO child VALUES (NULL, ?1, ?2)",
            "UPDATE child SET p = ?1 WHERE id = ?2",
            "DELETE FROM child WHERE id = ?1 OR d = ?2",
            "INSERT OR REPLACE INTO pairs SELECT u, k % ?1, random() + ?2 FROM t",
            "INSERT INTO strict VALUES (?1, ?2, ?1)",
            "INSERT INTO log(what) SELECT ?1 || v || last_insert_rowid() || changes() FROM t WHERE k > ?2",
            "DELETE FROM log WHERE rowid % 7 = ?1 OR rowid = ?2",
            "UPDATE log SET unix = unixepoch('now', '+' || ?1 || ' days'), at = julianday() WHERE rowid > ?2",
            "INSERT INTO t(v, u) SELECT v + ?1, u || ?2 FROM t WHERE v < 500 LIMIT 3",
            "SELECT k, v, random() FROM t WHERE k > ?1 OR v > ?2 ORDER BY k",
        ];
        let units = all_units();
        let operation = (a * 12 + b + 10) as u64;
        match kind {
            23 => schema(operation, &["ANALYZE"]),
            24 => schema(operation, &["CREATE INDEX IF NOT EXISTS t_v ON t(v)", "ANALYZE t"]),
            25 => schema(operation, &["ANALYZE", "DROP INDEX t_v"]),
            26 => schema(operation, &["CREATE TABLE extra(a DEFAULT (random()), b)", "INSERT INTO extra(b) SELECT v FROM t", "DROP TABLE extra"]),
            27 => Action::Bulk {
                table: "t".into(),
                columns: vec!["k".into(), "u".into()],
                parts: vec![BulkPart {
                    idempotency: keyed.then(|| Idempotency { key: format!("bulk {b}"), fingerprint: 1, ttl_ms: 5_000 }),
                    units,
                    rows: (0..5).map(|n| (n as u32, vec![Value::Integer(a + n), Value::Integer(b + n)])).collect(),
                }],
            },
            kind => Action::Write {
                idempotency: keyed.then(|| Idempotency { key: format!("key {a}"), fingerprint: kind as u64, ttl_ms: 1 + 1_000 * b as u64 }),
                units,
                statements: vec![Statement::new(statements[kind], ab)],
                base: None,
            },
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn generated_logs_give_the_same_content(
        entries in proptest::collection::vec(action(), 5..60),
        middle in 0.0..1.0f64,
        batches in proptest::collection::vec(1usize..9, 1..5),
    ) {
        let mut actions = founding();
        actions.extend(entries);
        let middle = 2 + ((actions.len() - 2) as f64 * middle) as usize;
        check(&actions, middle, &batches);
    }
}

#[test]
fn a_dump_shows_differences() {
    let (mut a, mut b) = (Copy::new(), Copy::new());
    let log = encoded(&founding());
    for copy in [&mut a, &mut b] {
        copy.apply(&log, log.len(), &[1]);
    }
    assert_eq!(a.dump(), b.dump());
    let raw = |path: &Path| rusqlite::Connection::open(path.join(Store::FILE)).unwrap();
    raw(b.dir.path()).execute_batch("INSERT INTO pairs VALUES ('x', 1, 1.0)").unwrap();
    assert_ne!(a.dump(), b.dump());
    assert_eq!(a.store.digest().unwrap().differences(&b.store.digest().unwrap()), ["pairs"]);
}
