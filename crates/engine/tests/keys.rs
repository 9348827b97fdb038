//! Idempotency keys under load and under clocks that jump, and the time of a shard's log.

mod common;

use common::*;
use pleat_cluster::Value;
use pleat_engine::limits::*;
use pleat_engine::*;

fn keyed_for(key: &str, ttl_ms: u64, sql: &str) -> Action {
    Action::Write {
        idempotency: Some(Idempotency { key: key.into(), fingerprint: 1, ttl_ms }),
        units: all_units(),
        statements: vec![Statement::new(sql, vec![])],
        base: None,
    }
}

fn touch(key: &str, ttl_ms: u64) -> Action {
    keyed_for(key, ttl_ms, "UPDATE items SET name = 'x'")
}

fn file(shard: &Replica) -> rusqlite::Connection {
    rusqlite::Connection::open(shard.file()).unwrap()
}

fn remembered(shard: &Replica) -> Vec<String> {
    let conn = file(shard);
    let mut keys = conn.prepare("SELECT key FROM __pleat_idempotency ORDER BY seq").unwrap();
    keys.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// How many keys of a class there are and when the first expires, and the newest number; as a shard stores them.
type Tally = ((i64, i64), (i64, i64), i64);

fn tally(shard: &Replica) -> Tally {
    let sql = "SELECT value FROM __pleat_applied WHERE id = 3";
    let bytes: Vec<u8> = file(shard).query_row(sql, [], |row| row.get(0)).unwrap();
    postcard::from_bytes(&bytes).unwrap()
}

fn counted(shard: &Replica, class: &str) -> i64 {
    let (client, internal, _) = tally(shard);
    if class == "client" { client.0 } else { internal.0 }
}

/// As if there were so many keys.
fn pretend(shard: &mut Replica, class: &str, count: i64) {
    let (mut client, mut internal, newest) = tally(shard);
    *(if class == "client" { &mut client.0 } else { &mut internal.0 }) = count;
    shard.store = None;
    let bytes = postcard::to_stdvec(&(client, internal, newest)).unwrap();
    file(shard).execute("UPDATE __pleat_applied SET value = ?1 WHERE id = 3", [bytes]).unwrap();
    let (store, readers) = Store::open(shard.dir.path(), StoreConfig::new(PARTITIONS)).unwrap();
    (shard.store, shard.readers) = (Some(store), readers);
}

const HOUR_MS: u64 = 3_600_000;

#[test]
fn a_client_key_beyond_the_limit_is_refused_and_none_is_forgotten() {
    let mut shard = Replica::with_items();
    assert!(matches!(shard.apply(touch("c/a", HOUR_MS)), Outcome::Done { .. }));
    pretend(&mut shard, "client", IDEMPOTENCY_CLIENT_KEYS_MAX);
    let Outcome::Failed(failure) = shard.apply(keyed_for("c/b", HOUR_MS, "INSERT INTO items(k, n) VALUES (1, 1)"))
    else {
        panic!()
    };
    assert_eq!(failure.code, "53400");
    assert!(failure.message.contains("too many idempotency keys") && failure.hint.is_some());
    assert!(shard.query("SELECT k FROM items").is_empty());
    assert!(matches!(shard.apply(touch("c/a", HOUR_MS)), Outcome::Replayed { .. }));
    assert!(matches!(shard.apply(touch("i/1", 1_000)), Outcome::Done { .. }), "the other class has its own room");
    shard.ok("DELETE FROM items");
    shard.clock += HOUR_MS;
    assert!(matches!(shard.apply(touch("c/b", HOUR_MS)), Outcome::Done { .. }), "an expired key made room");
    assert_eq!(remembered(&shard), ["c/b"]);
}

#[test]
fn internal_keys_go_by_number_and_take_no_client_key_along() {
    let mut shard = Replica::with_items();
    for key in ["c/a", "i/1", "i/2", "c/b", "i/3"] {
        shard.apply(touch(key, HOUR_MS));
    }
    pretend(&mut shard, "internal", IDEMPOTENCY_INTERNAL_KEYS_MAX + IDEMPOTENCY_PRUNED_PER_WRITE - 2);
    shard.apply(touch("i/4", HOUR_MS));
    assert_eq!(remembered(&shard), ["c/a", "i/1", "i/2", "c/b", "i/3", "i/4"], "they go some at a time");
    for number in 5..=10 {
        pretend(&mut shard, "internal", IDEMPOTENCY_INTERNAL_KEYS_MAX);
        shard.apply(touch(&format!("i/{number}"), HOUR_MS));
    }
    pretend(&mut shard, "internal", IDEMPOTENCY_INTERNAL_KEYS_MAX + IDEMPOTENCY_PRUNED_PER_WRITE - 1);
    shard.apply(touch("i/11", HOUR_MS));
    assert_eq!(remembered(&shard), ["c/a", "c/b", "i/9", "i/10", "i/11"], "the oldest go");
    assert_eq!(counted(&shard, "internal"), IDEMPOTENCY_INTERNAL_KEYS_MAX);
}

#[test]
fn the_counters_are_the_numbers_of_keys() {
    let mut shard = Replica::with_items();
    for round in 0..40 {
        let class = if round % 3 == 0 { "c" } else { "i" };
        shard.apply(touch(&format!("{class}/{}", round % 11), 1 + 700 * (round % 7)));
        shard.apply(keyed_for(&format!("{class}/{round}"), HOUR_MS, "INSERT INTO nowhere VALUES (1)"));
        if round % 10 == 9 {
            shard.clock += IDEMPOTENCY_INTERNAL_MARGIN_MS;
        }
        let keys = remembered(&shard);
        for class in ["client", "internal"] {
            let found = keys.iter().filter(|key| key.starts_with(&class[..1])).count() as i64;
            assert_eq!(counted(&shard, class), found);
        }
    }
}

#[test]
fn an_internal_key_survives_a_clock_that_jumps_by_minutes() {
    let mut shard = Replica::with_items();
    shard.apply(touch("i/1", 60_000));
    shard.clock += 5 * 60_000;
    assert!(matches!(shard.apply(touch("i/1", 60_000)), Outcome::Replayed { .. }));
    shard.clock += 60_000;
    assert!(matches!(shard.apply(touch("i/1", 60_000)), Outcome::Done { .. }));
}

#[test]
fn an_older_file_is_refused_by_its_format() {
    let mut shard = Replica::with_items();
    shard.store = None;
    file(&shard).execute_batch("UPDATE __pleat_meta SET value = 1 WHERE key = 'format'").unwrap();
    let refused = Store::open(shard.dir.path(), StoreConfig::new(PARTITIONS)).err().unwrap();
    assert!(format!("{refused:#}").contains("format 1"), "{refused:#}");
}

#[test]
fn the_logs_time_never_goes_back_however_the_log_is_cut() {
    const START: u64 = 1_700_000_000_000;
    let note = |n: i64| format!("INSERT INTO items(k, n, name) VALUES (1, {n}, unixepoch('subsec')) RETURNING name");
    let steps: Vec<(u64, Action)> = vec![
        (50_000, touch("c/a", 10_000)),
        (70_000, write("INSERT OR ROLLBACK INTO items(k, n) VALUES (1, 1), (1, 1)", vec![])),
        (55_000, touch("c/a", 10_000)),
        (1_000, write(&note(2), vec![])),
        (90_000, write("INSERT INTO nowhere VALUES (1)", vec![])),
        (2_000, write(&note(3), vec![])),
    ];
    let run = |cuts: &[usize], restart: bool| {
        let mut shard = Replica::with_items();
        let entries: Vec<_> = (steps.iter().enumerate())
            .map(|(seed, (at, action))| entry(action.clone(), START + 1_000_000 + at, seed as u64))
            .collect();
        let (mut outcomes, mut from) = (Vec::new(), 0);
        for upto in cuts {
            let batch: Vec<&[u8]> = entries[from..*upto].iter().map(Vec::as_slice).collect();
            outcomes.extend(shard.store().apply(&batch, &upto.to_le_bytes()).unwrap());
            from = *upto;
            if restart {
                shard.store = None;
                let (store, readers) = Store::open(shard.dir.path(), StoreConfig::new(PARTITIONS)).unwrap();
                (shard.store, shard.readers) = (Some(store), readers);
            }
        }
        let outcomes: Vec<_> = outcomes.iter().map(|bytes| Outcome::decode(bytes).unwrap()).collect();
        (outcomes, shard.dump(), shard.store().digest().unwrap())
    };
    let (outcomes, dump, digest) = run(&[1, 2, 3, 4, 5, 6], true);
    assert!(matches!(outcomes[2], Outcome::Done { .. }), "the key had expired at 70 s: {:?}", outcomes[2]);
    let name = |outcome: &Outcome| match outcome {
        Outcome::Done { results } => results[0].rows[0][0].clone(),
        other => panic!("{other:?}"),
    };
    let text = |at: u64| Value::Text(format!("{}", (START + 1_000_000 + at) as f64 / 1e3));
    assert_eq!((name(&outcomes[3]), name(&outcomes[5])), (whole(text(70_000)), whole(text(90_000))));
    for cuts in [&[6][..], &[2, 6], &[3, 5, 6], &[1, 6]] {
        assert_eq!(run(cuts, false), (outcomes.clone(), dump.clone(), digest.clone()), "{cuts:?}");
    }
}

/// SQLite writes a real with a fraction in any case.
fn whole(value: Value) -> Value {
    match value {
        Value::Text(text) if !text.contains('.') => Value::Text(text + ".0"),
        other => other,
    }
}
