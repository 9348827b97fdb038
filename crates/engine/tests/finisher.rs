//! Finishers: what they answer, and what they take for it.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pleat_cluster::Value;
use pleat_engine::limits::FINISHER_BYTES_MIN;
use pleat_engine::{Chunk, EngineError, Finisher, NoRoom, ReadLimits, Room, RoomLimits, Wanted};

const MIB: u64 = 1 << 20;
/// More than any test waits.
const LONG: ReadLimits = ReadLimits { time: Duration::from_secs(600), rows: u64::MAX, bytes: u64::MAX };
/// Runs until it is stopped, without giving a row.
const ENDLESS: &str = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

fn room(dir: &Path, limits: RoomLimits) -> Arc<Room> {
    Room::new(dir.join("spill"), limits, 2, Arc::new(|| u64::MAX))
}

/// So little memory that what does not fit is soon found.
fn small() -> RoomLimits {
    RoomLimits { query_memory: FINISHER_BYTES_MIN, ..RoomLimits::default() }
}

fn finisher(room: &Arc<Room>) -> Finisher {
    let mut finisher = Finisher::new(room, Arc::default()).unwrap();
    finisher.create("CREATE TABLE t(a INTEGER, b)").unwrap();
    finisher
}

/// Rows of about 1 KiB, from the largest `a` to the smallest.
fn fill(finisher: &mut Finisher, mib: u64) -> Result<(), EngineError> {
    let count = mib * 1024;
    for start in (0..count).step_by(200) {
        let rows: Vec<_> = (start..(start + 200).min(count))
            .map(|n| vec![Value::Integer((count - 1 - n) as i64), Value::Blob(vec![n as u8; 1000])])
            .collect();
        finisher.insert("t", &rows)?;
    }
    Ok(())
}

fn run(finisher: &mut Finisher, sql: &str) -> Result<Vec<Vec<Value>>, EngineError> {
    let mut rows = Vec::new();
    let mut take = |chunk: Chunk| {
        rows.extend(chunk.rows);
        ControlFlow::Continue(())
    };
    finisher.run(sql, &[], 5_000, 1, LONG, &mut take)?;
    Ok(rows)
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

#[test]
fn a_finisher_answers_like_one_database_and_without_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let room = room(dir.path(), RoomLimits { query_disk: 0, node_disk: 0, ..RoomLimits::default() });
    let mut finisher = Finisher::new(&room, Arc::default()).unwrap();
    finisher.create("CREATE TABLE t(a INTEGER, b TEXT COLLATE NOCASE)").unwrap();
    finisher.insert("t", &[vec![1.into(), "x".into()], vec![2.into(), "X".into()]]).unwrap();
    let rows = run(&mut finisher, "SELECT b, sum(a), unixepoch('now') FROM t GROUP BY b").unwrap();
    assert_eq!(rows[0][1..], [Value::Integer(3), Value::Integer(5)]);
    assert!(!dir.path().join("spill").exists(), "a directory was made");
}

#[test]
fn what_does_not_fit_into_memory_is_on_disk_until_the_query_ends() {
    let dir = tempfile::tempdir().unwrap();
    let room = room(dir.path(), small());
    let mut finisher = finisher(&room);
    fill(&mut finisher, 16).unwrap();
    let gathered = room.taken();
    assert!((14 * MIB..20 * MIB).contains(&gathered.disk), "{gathered:?}");
    assert_eq!((gathered.memory, gathered.spilled), (FINISHER_BYTES_MIN, 1), "{gathered:?}");

    // All of it is sorted, which takes a file of its own.
    let rows = run(&mut finisher, "SELECT a, b FROM t ORDER BY a").unwrap();
    assert_eq!(rows.len(), 16 * 1024);
    for (at, row) in rows.iter().enumerate() {
        let wanted = vec![(16 * 1024 - 1 - at) as u8; 1000];
        assert_eq!(row[..], [Value::Integer(at as i64), Value::Blob(wanted)], "row {at}");
    }
    assert!(finisher.spilled() > 2 * 14 * MIB, "{}", finisher.spilled());
    assert!(dir.path().join("spill").is_dir() && is_empty(&dir.path().join("spill")), "a file has a name");
    drop(finisher);
    let after = room.taken();
    assert_eq!((after.memory, after.disk, after.spilled), (0, 0, 1));
    assert!(after.spilled_bytes > 2 * 14 * MIB);
}

#[test]
fn a_query_is_told_which_limit_it_has_reached_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let limits = RoomLimits { query_disk: 4 * MIB, node_disk: 6 * MIB, ..small() };
    let room = room(dir.path(), limits);
    let mut first = finisher(&room);
    let refused = fill(&mut first, 16).unwrap_err();
    assert_eq!(refused, EngineError::NoRoom(NoRoom::QueryDisk { limit: 4 * MIB }));
    assert_eq!((refused.code(), refused.limit(), refused.is_retryable()), ("53200", Some("limits.spill_bytes"), false));

    // While the first holds most of the node's, the second gets less than its own.
    let refused = fill(&mut finisher(&room), 16).unwrap_err();
    assert_eq!(refused, EngineError::NoRoom(NoRoom::NodeDisk { limit: 6 * MIB }));
    assert_eq!((refused.limit(), refused.is_retryable()), (Some("limits.node_spill_bytes"), true));
    drop(first);
    assert_eq!((room.taken().memory, room.taken().disk), (0, 0));

    // What the finishing statement makes of few rows has its limit, too.
    let mut few = finisher(&room);
    fill(&mut few, 1).unwrap();
    let refused = run(&mut few, "SELECT x.a, y.b FROM t AS x, t AS y ORDER BY y.a, x.a").unwrap_err();
    assert_eq!(refused, EngineError::NoRoom(NoRoom::QueryDisk { limit: 4 * MIB }));
    drop(few);
    assert_eq!((room.taken().memory, room.taken().disk), (0, 0));
}

#[test]
fn temporary_files_leave_the_rest_of_the_disk_alone() {
    let dir = tempfile::tempdir().unwrap();
    let spare = Arc::new(AtomicU64::new(4 * MIB));
    let of_disk = spare.clone();
    let room = Room::new(dir.path().join("spill"), small(), 2, Arc::new(move || of_disk.load(Ordering::Relaxed)));
    let mut fits = finisher(&room);
    fill(&mut fits, 4).unwrap();
    spare.store(MIB / 2, Ordering::Relaxed);
    let refused = fill(&mut finisher(&room), 16).unwrap_err();
    assert_eq!(refused, EngineError::NoRoom(NoRoom::DiskFull));
    assert_eq!((refused.code(), refused.is_retryable()), ("53100", true));
    assert_eq!(run(&mut fits, "SELECT count(*) > 0 FROM t").unwrap(), [[Value::Integer(1)]], "what is there is read");
}

#[test]
fn finishers_share_the_memory_of_their_node_and_only_one_without_any_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let limits = RoomLimits { query_memory: 32 * MIB, node_memory: 34 * MIB, ..RoomLimits::default() };
    let room = room(dir.path(), limits);
    let mut large = finisher(&room);
    fill(&mut large, 12).unwrap();
    assert_eq!((large.memory(), large.spilled()), (32 * MIB, 0));
    let mut late = finisher(&room);
    fill(&mut late, 12).unwrap();
    assert_eq!(late.memory(), FINISHER_BYTES_MIN);
    assert!(late.spilled() > 0, "it has a twelfth of what it needs");
    let refused = Finisher::new(&room, Arc::default()).err().unwrap();
    assert_eq!(refused, EngineError::NoRoom(NoRoom::NodeMemory { limit: 34 * MIB }));
    assert_eq!(
        (refused.code(), refused.limit(), refused.is_retryable()),
        ("53200", Some("limits.node_gather_bytes"), true)
    );
    let count = "SELECT count(*), sum(a) FROM t";
    assert_eq!(run(&mut large, count).unwrap(), run(&mut late, count).unwrap());
    drop((large, late));
    assert_eq!(room.taken().memory, 0);
    fill(&mut finisher(&room), 12).unwrap();
}

#[test]
fn a_directory_that_is_not_to_be_had_fails_the_query_and_not_the_node() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("spill"), "in the way").unwrap();
    let room = room(dir.path(), RoomLimits { query_memory: 8 * MIB, ..RoomLimits::default() });
    let failed = fill(&mut finisher(&room), 16).unwrap_err();
    assert!(matches!(&failed, EngineError::Storage(text) if text.contains("temporary files")), "{failed}");
    assert_eq!((room.taken().memory, room.taken().disk), (0, 0));
    fill(&mut finisher(&room), 2).unwrap_or_else(|error| panic!("what fits into memory needs no directory: {error}"));
}

#[test]
fn a_statement_that_nobody_wants_any_more_ends_without_having_had_a_row() {
    let dir = tempfile::tempdir().unwrap();
    let room = room(dir.path(), RoomLimits::default());
    let wanted = Wanted::default();
    let cancelled: Arc<AtomicBool> = wanted.cancelled();
    let mut finisher = Finisher::new(&room, cancelled.clone()).unwrap();
    let running = std::thread::spawn(move || run(&mut finisher, ENDLESS));
    drop(wanted);
    assert!(cancelled.load(Ordering::SeqCst));
    assert_eq!(running.join().unwrap(), Err(EngineError::Cancelled));
    assert_eq!(room.taken().memory, 0);
}
