//! A full disk is this replica's trouble, not the statement's: applying ends with an error, nothing of the batch is
//! there, and with space again the replica goes on from where it was. (Alone in its process: the limit is the process's.)

mod common;

use common::*;
use pleat_cluster::Value;
use pleat_engine::*;

unsafe extern "C" {
    fn setrlimit(resource: i32, limit: *const [u64; 2]) -> i32;
    fn signal(number: i32, handler: usize) -> usize;
}

/// No file of this process grows beyond `bytes` from here on.
fn limit_files(bytes: u64) {
    const RLIMIT_FSIZE: i32 = 1;
    const SIGXFSZ: i32 = 25;
    const SIG_IGN: usize = 1;
    // SAFETY: plain calls of libc with values of the right size; the limit is the soft one, so that it can be lifted.
    unsafe {
        signal(SIGXFSZ, SIG_IGN);
        assert_eq!(setrlimit(RLIMIT_FSIZE, &[bytes, u64::MAX]), 0);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_fatal_for_the_replica_and_loses_nothing() {
    let mut shard = Replica::with_items();
    shard.ok("INSERT INTO items(k, n) VALUES (1, 1)");
    let applied = shard.store().applied().unwrap();
    let big = entry(write("INSERT INTO items(k, n, data) VALUES (1, 2, ?)", vec![Value::Blob(vec![1; 3 << 20])]), 1, 1);
    let good = entry(write("INSERT INTO items(k, n) VALUES (1, 3)", vec![]), 1, 1);
    limit_files(1 << 20);
    let error = shard.store().apply(&[&good, &big], b"after").unwrap_err();
    assert_eq!(shard.store().applied().unwrap(), applied);
    limit_files(u64::MAX);
    assert!(!format!("{error:#}").is_empty());
    shard.store = None;
    let (mut store, readers) = Store::open(shard.dir.path(), StoreConfig::new(PARTITIONS)).unwrap();
    assert_eq!(store.applied().unwrap(), applied);
    let outcomes = store.apply(&[&good, &big], b"after").unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(Outcome::decode(outcome), Ok(Outcome::Done { .. }))));
    assert_eq!(read_all(&readers, &request("SELECT n FROM items ORDER BY n")).unwrap().len(), 3);
}
