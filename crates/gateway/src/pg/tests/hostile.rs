//! Clients that mean harm, or know no better: messages in messages, wrong keys, thousands that do nothing, and slow ones.

use std::time::Instant;

use pleat_fuzz::held;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;
use crate::Limits;

/// Connections that do nothing, if the system lets this process have as many.
const IDLE: usize = 10_000;
/// With fewer, the test would show little.
const IDLE_MIN: usize = 1_000;
/// What one of them may hold, in bytes of the heap. (The system has its socket beside that.)
const IDLE_BYTES_MAX: usize = 32 << 10;

fn raw(text: &str) -> Vec<u8> {
    message(b'Q', &[text.as_bytes(), b"\0"].concat())
}

/// The resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[tokio::test]
async fn no_message_is_smuggled_in_another_one() {
    let server = Server::start(10).await;
    let mut other = server.connect().await;
    other.query("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT) SHARD BY (id)").await;
    other.query("INSERT INTO t VALUES (1, 'a')").await;
    let hidden = raw("DELETE FROM t");
    // A message whose own length is right, and the lengths in it reach into the next one.
    let reaching = {
        let mut message = bind("", "", &["x"]);
        let value = message.len() - 1 - 2 - 4;
        message[value..value + 4].copy_from_slice(&(1 + u32::try_from(hidden.len()).unwrap()).to_be_bytes());
        [message, hidden.clone()].concat()
    };
    // One that says that it ends where the hidden one begins.
    let short = |tag: u8, before: &[u8]| {
        let mut message = message(tag, &[before, &hidden].concat());
        message[1..5].copy_from_slice(&(4 + u32::try_from(before.len()).unwrap()).to_be_bytes());
        message
    };
    for bytes in [
        reaching,
        short(b'P', b"s\0SELECT 1"),
        short(b'B', b"\0\0\0\0\0\x01\0\0"),
        short(b'D', b"S"),
        // Two statements, of which a log or a filter would see one.
        message(b'Q', b"SELECT 1\0DELETE FROM t\0"),
        message(b'P', b"\0SELECT 1\0DELETE FROM t\0\0\0"),
        [message(b'S', b"\0"), hidden.clone()].concat(),
        [message(b'p', b"again"), hidden.clone()].concat(),
        [raw("COPY t FROM STDIN"), message(b'd', b"2\tb\n"), hidden.clone()].concat(),
        [startup(3 << 16, &[("user", "else")]), hidden.clone()].concat(),
    ] {
        let mut client = server.connect().await;
        client.send(&bytes).await;
        assert_eq!(client.ended().await.as_deref(), Some("08P01"), "{bytes:?}");
    }
    // Behind the end of the session.
    let mut left = server.connect().await;
    left.send(&[message(b'X', b""), hidden.clone()].concat()).await;
    assert_eq!(left.ended().await, None);
    // After an error all is skipped up to the Sync, whole statements included.
    let mut failed = server.connect().await;
    failed.send(&[parse("", "SELECT nothing FROM nowhere"), hidden, sync()].concat()).await;
    assert_eq!(failed.until(b'Z').await.iter().map(|(tag, _)| *tag).collect::<Vec<_>>(), b"EZ");
    assert_eq!(other.query("SELECT * FROM t").await.0, "TDCZ");
}

#[tokio::test]
async fn whatever_is_cut_off_ends_its_connection_and_does_nothing() {
    let server = Server::start(10).await;
    let mut other = server.connect().await;
    other.query("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT) SHARD BY (id)").await;
    let series =
        [parse("", "INSERT INTO t VALUES ($1, $2)"), bind("", "", &["1", "a"]), execute("", 0), sync()].concat();
    let copy = [raw("COPY t FROM STDIN"), message(b'd', b"2\tb\n"), message(b'c', b"")].concat();
    // The letter of the Sync says that the series has ended; every other message counts when it is whole.
    let ends = [series.len() - sync().len(), raw("INSERT INTO t VALUES (3, 'c')").len() - 1, copy.len() - 1];
    for (whole, end) in [series, raw("INSERT INTO t VALUES (3, 'c')"), copy].iter().zip(ends) {
        for length in (0..end).step_by(3).chain([end]) {
            let mut client = server.connect().await;
            client.send(&whole[..length]).await;
            client.stream.shutdown().await.unwrap();
            while client.next().await.is_some() {}
        }
    }
    assert_eq!(other.query("SELECT * FROM t").await.0, "TCZ");
}

// The statement takes a thread for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_cancels_nothing() {
    let server = Server::start(10).await;
    let mut client = Client { stream: TcpStream::connect(server.address).await.unwrap() };
    client.send(&startup(3 << 16, &[("user", "me")])).await;
    let greeting = client.until(b'Z').await;
    let mut key = greeting.iter().find(|(tag, _)| *tag == b'K').map(|(_, body)| &body[..]).unwrap();
    let (process, secret) = (key.get_u32(), key.get_u32());
    let cancel = async |process: u32, secret: u32| {
        let code = 80_877_102_u32;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&[16, code, process, secret].map(u32::to_be_bytes).concat()).await.unwrap();
        // There is no answer, right or wrong.
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"");
    };
    client.send(&raw("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n")).await;
    for wrong in 1..200 {
        cancel(process, secret.wrapping_add(wrong)).await;
        cancel(process.wrapping_add(wrong), secret).await;
    }
    let early = tokio::time::timeout(Duration::from_millis(300), client.stream.read_u8()).await;
    assert!(early.is_err(), "it was cancelled by somebody who has not its key");
    // Whoever has it may come at any moment: also before the statement has begun to run.
    let ended = loop {
        cancel(process, secret).await;
        if let Ok(letter) = tokio::time::timeout(Duration::from_millis(100), client.stream.read_u8()).await {
            break letter.unwrap();
        }
    };
    // What it gave before, if anything, is a description.
    assert!(matches!(ended, b'T' | b'E'), "{ended}");
}

/// Let this process have as many files, as far as the system allows it. How many it may have.
fn files(wanted: usize) -> usize {
    let wanted = wanted as u64;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < wanted) {
        // Root may raise the upper limit, too.
        let higher = Rlimit { current: Some(wanted), maximum: maximum.map(|maximum| maximum.max(wanted)) };
        if setrlimit(Resource::Nofile, higher).is_err() {
            let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
        }
    }
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |current| usize::try_from(current).unwrap_or(usize::MAX))
}

#[tokio::test]
async fn thousands_of_idle_connections_cost_little() {
    // Both ends of each are here, and some files beside.
    const BESIDE: usize = 500;
    let allowed = files(2 * IDLE + BESIDE);
    let count = IDLE.min(allowed.saturating_sub(BESIDE) / 2);
    assert!(count >= IDLE_MIN, "this process may have {allowed} open files: raise the limit (`ulimit -Hn`)");
    if count < IDLE {
        println!("{count} idle connections instead of {IDLE}: this process may have {allowed} open files");
    }
    let server = Server::start(count + 2).await;
    let mut other = server.connect().await;
    assert_eq!(other.query("SELECT 1").await.0, "TDCZ");
    let (before, begun, resident_before) = (held(), Instant::now(), resident());
    let mut idle = Vec::with_capacity(count);
    for number in 0..count {
        let mut client = server.connect().await;
        // Some have said something before.
        if number % 100 == 0 {
            client.query("SELECT 1").await;
        }
        idle.push(client);
    }
    let each = usize::try_from(held() - before).unwrap() / count;
    let system = resident().saturating_sub(resident_before) / count;
    println!("{count} idle connections in {:.1?}: {each} bytes of the heap each, {system} resident", begun.elapsed());
    assert!(each < IDLE_BYTES_MAX, "each holds {each} bytes");
    // There is one place left, and everybody is served.
    assert_eq!(server.connect().await.query("SELECT 1").await.0, "TDCZ");
    for number in [0, count / 2, count - 1] {
        assert_eq!(idle[number].query("SELECT 1").await.0, "TDCZ");
    }
    drop(idle);
    let begun = Instant::now();
    while held() - before > (count * each / 2) as isize {
        assert!(begun.elapsed() < Duration::from_secs(60), "what they held is not given back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a node holds for it is measured over processes: the cluster here reads all rows before it gives the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_is_given_up() {
    let limits = Limits { client_stall: Duration::from_secs(1), ..Limits::default() };
    let server = Server::of(10, Settings { limits, ..Settings::default() }).await;
    let mut other = server.connect().await;
    other.query("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT) SHARD BY (id)").await;
    other.query("INSERT INTO t VALUES (1, printf('%.*c', 1000000, 'x'))").await;
    // 60 MB, of one shard.
    let numbers = (0..60).map(|number| number.to_string()).collect::<Vec<_>>().join(",");
    let mut slow = server.connect().await;
    slow.send(&raw(&format!("SELECT t.name FROM t, json_each('[{numbers}]') WHERE t.id = 1"))).await;
    // Much longer than its time: that begins only when there is no room left on the way to it.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(other.query("SELECT 1").await.0, "TDCZ");
    // Whatever was under way reaches it, and then its connection has ended.
    let mut said = Vec::new();
    let rest = tokio::time::timeout(Duration::from_secs(60), slow.stream.read_to_end(&mut said)).await;
    drop(rest.expect("it is given up"));
    assert!(said.first() == Some(&b'T') && said.len() < 50_000_000, "{}", said.len());
}

#[tokio::test]
async fn a_start_that_trickles_in_is_closed_in_time() {
    let pg = PgSettings { startup_time: Duration::from_secs(2), ..PgSettings::default() };
    let server = Server::with(10, pg).await;
    let begun = Instant::now();
    let mut slow = Client { stream: TcpStream::connect(server.address).await.unwrap() };
    let first = startup(3 << 16, &[("user", "me"), ("application_name", &"x".repeat(2_000))]);
    for byte in first {
        // Each byte comes soon enough; all of them don't.
        if slow.stream.write_all(&[byte]).await.is_err() {
            break;
        }
        let said = tokio::time::timeout(Duration::from_millis(20), slow.stream.peek(&mut [0])).await;
        if said.is_ok() {
            break;
        }
    }
    assert_eq!(slow.ended().await.as_deref(), Some("08P01"));
    assert!((Duration::from_secs(2)..Duration::from_secs(30)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    // And one message of a session, which never becomes whole, keeps nobody else waiting.
    let mut half = server.connect().await;
    half.send(&raw(&"x".repeat(1 << 20))[..100_000]).await;
    assert_eq!(server.connect().await.query("SELECT 1").await.0, "TDCZ");
}
