//! The pool and its connections, against a real PostgreSQL server; and, for what no real one does, against a peer that does it.

mod garbage;
mod login;
mod moving;
mod world;

use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pleat_engine::postgres::wire::backend::Status;
use pleat_engine::postgres::{Limits, PostgresError, Reply, Request};
use pleat_provision::process::State;
use tokio::time::timeout;
use world::*;

#[tokio::test]
async fn a_query_is_answered_by_the_servers_own_bytes() {
    let world = World::start().await;
    let pool = world.pool(Limits { connections: 1, ..LIMITS });
    let mut lease = pool.lease().await.unwrap();
    assert!(lease.parameter("server_version").unwrap().starts_with("15."));
    let two = query(&mut lease, "SELECT 'é', 2; SELECT 3 WHERE false; ").await;
    assert_eq!((two.letters().as_str(), two.values()), ("TDCTC", vec!["é".to_owned(), "2".to_owned()]));
    assert_eq!((two.status(), two.error()), (Status::Idle, None));
    let failed = query(&mut lease, "SELECT 1; SELECT * FROM nowhere; SELECT 2").await;
    assert_eq!((failed.letters().as_str(), failed.error().as_deref()), ("TDCE", Some("42P01")));
    assert_eq!(query(&mut lease, "").await.letters(), "I");

    assert_eq!(query(&mut lease, "BEGIN; CREATE TABLE t (a int)").await.status(), Status::Open);
    assert_eq!(query(&mut lease, "SELECT 1/0").await.status(), Status::Failed);
    assert_eq!(query(&mut lease, "SELECT 1").await.error().as_deref(), Some("25P02"));
    assert_eq!(query(&mut lease, "ROLLBACK").await.status(), Status::Idle);

    // More than any buffer between here and there, both ways.
    let long = query(&mut lease, "SELECT repeat('x', 30000000)").await;
    assert_eq!(long.values()[0].len(), 30_000_000);
    drop(lease);
    assert_eq!(ask(&pool, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pleat'").await, ["1"]);
}

#[tokio::test]
async fn pleats_own_statements_are_read() {
    let world = World::start().await;
    let pool = world.pool(Limits { connections: 1, ..LIMITS });
    let mut lease = pool.lease().await.unwrap();
    let asked = lease.ask("SELECT 1; SELECT 'é' AS a, NULL AS b UNION ALL SELECT '', 'c' ORDER BY 1").await.unwrap();
    assert_eq!(asked.columns, ["a", "b"]);
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(asked.rows, [vec![text(""), text("c")], vec![text("é"), None]]);
    assert_eq!(asked.tag, "SELECT 2");
    assert_eq!(lease.ask("CREATE TABLE t (a int PRIMARY KEY)").await.unwrap().tag, "CREATE TABLE");
    let twice = lease.ask("INSERT INTO t VALUES (1); INSERT INTO t VALUES (1)").await.unwrap_err();
    let PostgresError::Answered { code, detail, .. } = &twice else { panic!("{twice}") };
    assert_eq!((code.as_str(), detail.as_str()), ("23505", "Key (a)=(1) already exists."));
    let copy = lease.ask("COPY t FROM STDIN").await.unwrap_err();
    assert_eq!(copy.sqlstate(), "57014");
    assert_eq!(lease.ask("SELECT count(*) FROM t").await.unwrap().rows, [[text("0")]]);
    let much = lease.ask("SELECT repeat('x', 30000000)").await.unwrap_err();
    assert_eq!(much.sqlstate(), "54000");
    drop(lease);
    assert_eq!(ask(&pool, "SELECT 1").await, ["1"], "that connection is no more, and its place is free");
}

#[tokio::test]
async fn prepared_statements_are_there_on_every_connection() {
    let world = World::start().await;
    let pool = world.pool(LIMITS);
    let (mut one, mut two) = (pool.lease().await.unwrap(), pool.lease().await.unwrap());
    let double = statement("SELECT 2 * $1::int");
    one.push(Request::Parse(double.clone())).unwrap();
    one.push(Request::DescribeStatement(double.clone())).unwrap();
    one.push(Request::Sync).unwrap();
    assert_eq!(answer(&mut one).await.unwrap().letters(), "1tT");

    // The other connection does not have it, and its client hears nothing of that.
    for lease in [&mut two, &mut one] {
        execute(lease, &double, &["21"]);
        lease.push(Request::Sync).unwrap();
        let doubled = answer(lease).await.unwrap();
        assert_eq!((doubled.letters().as_str(), doubled.values()), ("2DC", vec!["42".to_owned()]));
    }
    // Asked for again, it is not prepared again, and everything is answered in its place.
    execute(&mut two, &double, &["1"]);
    two.push(Request::CloseStatement).unwrap();
    two.push(Request::Parse(double.clone())).unwrap();
    execute(&mut two, &double, &["2"]);
    two.push(Request::Flush).unwrap();
    let flushed = answer(&mut two).await.unwrap();
    assert_eq!((flushed.letters().as_str(), &flushed.end), ("2DC312DC", &Reply::Answered));
    two.push(Request::Sync).unwrap();
    assert_eq!(answer(&mut two).await.unwrap().letters(), "");
    assert_eq!(query(&mut two, "SELECT count(*) FROM pg_prepared_statements").await.values(), ["1"]);

    // A statement that fails to prepare, and what follows it up to the Sync.
    let wrong = statement("SELECT * FROM nowhere");
    two.push(Request::Parse(wrong.clone())).unwrap();
    execute(&mut two, &wrong, &[]);
    two.push(Request::CloseStatement).unwrap();
    two.push(Request::Sync).unwrap();
    execute(&mut two, &double, &["4"]);
    two.push(Request::Sync).unwrap();
    let failed = answer(&mut two).await.unwrap();
    assert_eq!((failed.letters().as_str(), failed.error().as_deref()), ("E", Some("42P01")));
    assert_eq!(answer(&mut two).await.unwrap().values(), ["8"]);
    query(&mut two, "CREATE TABLE nowhere (a int)").await;
    execute(&mut two, &wrong, &[]);
    two.push(Request::Sync).unwrap();
    assert_eq!(answer(&mut two).await.unwrap().letters(), "2C");
}

#[tokio::test]
async fn a_connection_keeps_so_many_statements_and_no_more() {
    let world = World::start().await;
    let pool = world.pool(Limits { connections: 1, ..LIMITS });
    for round in 0..3 {
        let mut lease = pool.lease().await.unwrap();
        for number in 0..300 {
            execute(&mut lease, &statement(&format!("SELECT {round} + {number}")), &[]);
        }
        lease.push(Request::Sync).unwrap();
        assert_eq!(answer(&mut lease).await.unwrap().values().len(), 300);
    }
    let mut lease = pool.lease().await.unwrap();
    execute(&mut lease, &statement("SELECT count(*) FROM pg_prepared_statements"), &[]);
    lease.push(Request::Sync).unwrap();
    // 500 are kept; this one is new.
    assert_eq!(answer(&mut lease).await.unwrap().values(), ["501"]);
    // A portal that is open keeps its statement.
    query(&mut lease, "BEGIN").await;
    let series = statement("SELECT * FROM generate_series(1, 3)");
    lease.push(Request::Bind(series, bind("p", &[]))).unwrap();
    lease.push(Request::Execute { portal: "p".to_owned(), rows: 1 }).unwrap();
    for number in 0..600 {
        execute(&mut lease, &statement(&format!("SELECT {number}")), &[]);
    }
    lease.push(Request::Sync).unwrap();
    answer(&mut lease).await.unwrap();
    execute(&mut lease, &statement("SELECT 'new'"), &[]);
    lease.push(Request::Execute { portal: "p".to_owned(), rows: 1 }).unwrap();
    lease.push(Request::Sync).unwrap();
    let more = answer(&mut lease).await.unwrap();
    assert_eq!((more.letters().as_str(), more.values()), ("2DCDs", vec!["new".to_owned(), "2".to_owned()]));
}

#[tokio::test]
async fn what_is_sent_far_ahead_does_not_stop_both_ends() {
    let world = World::start().await;
    let pool = world.pool(LIMITS);
    let mut lease = pool.lease().await.unwrap();
    let echo = statement("SELECT $1::text");
    let value = "x".repeat(100_000);
    for _ in 0..300 {
        execute(&mut lease, &echo, &[&value]);
    }
    lease.push(Request::Sync).unwrap();
    let values = answer(&mut lease).await.unwrap().values();
    assert!(values.len() == 300 && values.iter().all(|echo| *echo == value));
}

#[tokio::test]
async fn rows_are_copied_in_and_out() {
    let world = World::start().await;
    let pool = world.pool(LIMITS);
    ask(&pool, "CREATE TABLE t (a int, b text)").await;
    let mut lease = pool.lease().await.unwrap();

    // In the simple protocol, from many pieces.
    let begun = query(&mut lease, "COPY t FROM STDIN").await;
    assert_eq!((begun.letters().as_str(), &begun.end), ("G", &Reply::CopyIn));
    let piece: String = (0..1_000).map(|number| format!("{number}\t{}\n", "y".repeat(100))).collect();
    for _ in 0..100 {
        lease.copy_data(Bytes::from(piece.clone())).await.unwrap();
    }
    lease.copy_done();
    assert_eq!(answer(&mut lease).await.unwrap().letters(), "C");
    let out = query(&mut lease, "COPY t TO STDOUT").await;
    let rows = out.messages().into_iter().filter(|(letter, _)| *letter == b'd').count();
    assert_eq!((rows, out.letters().ends_with("cC")), (100_000, true));

    // In the extended one, whose Sync comes too early and once more.
    let copy = statement("COPY t FROM STDIN");
    for fails in [false, true] {
        execute(&mut lease, &copy, &[]);
        lease.push(Request::Sync).unwrap();
        assert_eq!(answer(&mut lease).await.unwrap().end, Reply::CopyIn);
        lease.copy_data(Bytes::from_static(b"7\tseven\n")).await.unwrap();
        lease.push(Request::Sync).unwrap();
        if fails {
            lease.copy_fail("no more")
        } else {
            lease.copy_done()
        }
        lease.push(Request::Sync).unwrap();
        let done = answer(&mut lease).await.unwrap();
        assert_eq!(
            (done.letters().as_str(), done.error().as_deref()),
            if fails { ("E", Some("57014")) } else { ("C", None) }
        );
    }
    // A server that fails in the middle.
    query(&mut lease, "COPY t FROM STDIN").await;
    lease.copy_data(Bytes::from_static(b"seven\n")).await.unwrap();
    lease.copy_done();
    assert_eq!(answer(&mut lease).await.unwrap().error().as_deref(), Some("22P02"));
    assert_eq!(query(&mut lease, "SELECT count(*) FROM t").await.values(), ["100001"]);
}

#[tokio::test]
async fn a_session_is_left_as_it_was_found() {
    let world = World::start().await;
    let pool = world.pool(Limits { connections: 1, ..LIMITS });
    let double = statement("SELECT 2 * $1::int");
    for left in [
        "SET search_path = elsewhere",
        "SET TimeZone = 'Asia/Tokyo'",
        "CREATE TEMPORARY TABLE mine (a int)",
        "PREPARE p AS SELECT 1",
    ] {
        let mut lease = pool.lease().await.unwrap();
        execute(&mut lease, &double, &["1"]);
        lease.push(Request::Sync).unwrap();
        answer(&mut lease).await.unwrap();
        assert_eq!(query(&mut lease, left).await.error(), None);
    }
    let found = "SELECT current_setting('search_path'), current_setting('TimeZone'), to_regclass('mine') IS NULL, \
                 (SELECT count(*) FROM pg_prepared_statements WHERE name = 'p'), \
                 (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pleat')";
    assert_eq!(ask(&pool, found).await, ["\"$user\", public", "UTC", "t", "0", "1"], "on the same connection");

    // The statements of the pool went with the rest; nobody notices.
    let mut lease = pool.lease().await.unwrap();
    for gone in ["DEALLOCATE ALL", "DISCARD ALL"] {
        execute(&mut lease, &double, &["1"]);
        lease.push(Request::Sync).unwrap();
        answer(&mut lease).await.unwrap();
        query(&mut lease, gone).await;
    }
    execute(&mut lease, &double, &["3"]);
    lease.push(Request::Sync).unwrap();
    assert_eq!(answer(&mut lease).await.unwrap().values(), ["6"]);
    drop(lease);

    // A transaction whose client is gone is taken back.
    ask(&pool, "CREATE TABLE t (a int)").await;
    let mut lease = pool.lease().await.unwrap();
    query(&mut lease, "BEGIN; INSERT INTO t VALUES (1)").await;
    drop(lease);
    assert_eq!(ask(&pool, "SELECT count(*) FROM t").await, ["0"]);
}

#[tokio::test]
async fn a_statement_is_prepared_anew_when_its_table_has_changed() {
    let world = World::start().await;
    let pool = world.pool(Limits { connections: 1, ..LIMITS });
    ask(&pool, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await;
    let all = statement("SELECT * FROM t");
    let mut answers = Vec::new();
    for sql in ["SELECT 1", "ALTER TABLE t ADD COLUMN b int DEFAULT 2", "SELECT 1"] {
        ask(&pool, sql).await;
        let mut lease = pool.lease().await.unwrap();
        execute(&mut lease, &all, &[]);
        lease.push(Request::Sync).unwrap();
        let answer = answer(&mut lease).await.unwrap();
        answers.push(answer.error().unwrap_or_else(|| answer.values().join(" ")));
    }
    // PostgreSQL says so itself where the columns differ; it does so once.
    assert_eq!(answers, ["1", "0A000", "1 2"]);
}

#[tokio::test]
async fn a_connection_that_was_ended_is_replaced() {
    let world = World::start().await;
    let pool = world.pool(LIMITS);
    let admin = world.pool(LIMITS);
    let pid = ask(&pool, "SELECT pg_backend_pid()").await.remove(0);
    let end = format!("SELECT pg_terminate_backend({pid})");
    let gone = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    ask(&admin, &end).await;
    until(&admin, &gone, "0").await;
    // Idle: nobody notices.
    let mut lease = pool.lease().await.unwrap();
    let pid = query(&mut lease, "SELECT pg_backend_pid()").await.values().remove(0);
    // In the middle: it is told, and that nobody knows what was done.
    lease.push(Request::Query("SELECT pg_sleep(600)".to_owned())).unwrap();
    let end =
        format!("SELECT pg_terminate_backend({pid}) FROM pg_stat_activity WHERE pid = {pid} AND query LIKE '%sleep%'");
    let (lost, ()) = tokio::join!(answer(&mut lease), until(&admin, &end, "t"));
    let lost = lost.unwrap_err();
    assert!(matches!(&lost, PostgresError::Lost(why) if why.contains("57P01")), "{lost}");
    assert_eq!((lost.sqlstate(), lost.is_retryable()), ("08006", false));
    drop(lease);
    assert_eq!(ask(&pool, "SELECT 1").await, ["1"]);
}

#[tokio::test]
async fn a_server_that_comes_back_is_waited_for() {
    let world = World::start().await;
    let pool = world.pool(LIMITS);
    ask(&pool, "CREATE TABLE t (a int)").await;
    let double = statement("SELECT 2 * $1::int");
    let State::Ready { pid } = *world.server.state().borrow() else { panic!("it is not ready") };
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    let mut state = world.server.state();
    timeout(LONG, state.wait_for(|state| *state != State::Ready { pid })).await.unwrap().unwrap();
    // It is away. Who comes now waits, and its statements are there when it is back.
    let mut lease = pool.lease().await.unwrap();
    execute(&mut lease, &double, &["2"]);
    lease.push(Request::Sync).unwrap();
    assert_eq!(answer(&mut lease).await.unwrap().values(), ["4"]);
    assert_eq!(query(&mut lease, "SELECT count(*) FROM t").await.values(), ["0"]);
    drop(lease);

    let target = world.target();
    world.server.stop().await;
    let short = Limits { wait: Duration::from_millis(200), ..LIMITS };
    let refused = pleat_engine::postgres::Pool::new(target, short).lease().await.err().unwrap();
    assert_eq!((refused.sqlstate(), refused.is_retryable()), ("57P03", true), "{refused}");
}

#[tokio::test]
async fn a_full_pool_says_so_and_recovers() {
    let world = World::start().await;
    let pool = world.pool(Limits { connections: 2, waiting: 1, wait: Duration::from_secs(5) });
    let (one, two) = (pool.lease().await.unwrap(), pool.lease().await.unwrap());
    let (waited, at_once) = tokio::join!(pool.lease(), pool.lease());
    let (waited, at_once) = (waited.err().unwrap(), at_once.err().unwrap());
    assert_eq!((waited.sqlstate(), waited.is_retryable()), ("53300", true));
    assert!(waited.to_string().contains("none became free within 5000 ms"), "{waited}");
    assert!(at_once.to_string().contains("1 transactions wait"), "{at_once}");
    drop(one);
    assert_eq!(ask(&pool, "SELECT 1").await, ["1"]);
    drop(two);

    // The server has no place: 10 connections, of which 2 are this pool's.
    let greedy = world.pool(Limits { connections: 20, waiting: 1, wait: Duration::from_secs(5) });
    let mut leases = Vec::new();
    let refused = loop {
        match greedy.lease().await {
            Ok(lease) => leases.push(lease),
            Err(error) => break error,
        }
    };
    assert_eq!((leases.len(), refused.sqlstate(), refused.is_retryable()), (8, "53300", true), "{refused}");
}

#[tokio::test]
async fn what_runs_is_cancelled_and_nobody_elses() {
    let world = World::start().await;
    let pool = world.pool(Limits { connections: 1, ..LIMITS });
    let admin = world.pool(LIMITS);
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'";
    let mut lease = pool.lease().await.unwrap();
    let canceller = lease.canceller();
    lease.push(Request::Query("SELECT pg_sleep(600)".to_owned())).unwrap();
    let (cancelled, ()) = tokio::join!(answer(&mut lease), async {
        until(&admin, sleeping, "1").await;
        canceller.cancel().await;
    });
    assert_eq!(cancelled.unwrap().error().as_deref(), Some("57014"));
    drop(lease);

    // The same connection, and another's turn.
    let mut lease = pool.lease().await.unwrap();
    lease.push(Request::Query("SELECT pg_sleep(5)".to_owned())).unwrap();
    let (slept, ()) = tokio::join!(answer(&mut lease), async {
        until(&admin, sleeping, "1").await;
        canceller.cancel().await;
    });
    assert_eq!(slept.unwrap().error(), None);

    // A client that is gone.
    lease.push(Request::Query("SELECT pg_sleep(600)".to_owned())).unwrap();
    assert!(timeout(Duration::from_millis(300), lease.receive()).await.is_err());
    until(&admin, sleeping, "1").await;
    drop(lease);
    until(&admin, sleeping, "0").await;
    assert_eq!(ask(&pool, "SELECT 1").await, ["1"]);
}
