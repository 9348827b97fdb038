//! Peers that are no PostgreSQL server, or one gone mad.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pleat_engine::postgres::{Address, Limits, Pool, PostgresError, Reply, Request};
use pleat_fuzz::held;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::world::{LONG, answer, target};

/// A login without a password, and a session.
const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x07\0\0\0\x09Z\0\0\0\x05I";

/// A peer that says this to everybody who says something, then something else, and hangs up or stays silent.
async fn peer(first: &'static [u8], then: &'static [u8], hangs_up: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut heard = [0; 4_096];
                for said in [first, then] {
                    if stream.read(&mut heard).await.unwrap_or(0) == 0 {
                        return;
                    }
                    let _ = stream.write_all(said).await;
                }
                if !hangs_up {
                    while stream.read(&mut heard).await.is_ok_and(|read| read > 0) {}
                }
            });
        }
    });
    address
}

fn pool(address: SocketAddr, wait: Duration) -> Pool {
    Pool::new(target(Address::Tcp(address), None), Limits { connections: 2, waiting: 2, wait })
}

#[tokio::test]
async fn what_is_no_server_is_not_believed() {
    for said in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"R\0\0\0\x08",
        b"R\0\0\0\x03",
        b"R\xff\xff\xff\xff",
        b"R\0\x02\0\0",
        b"T\x10\0\0\0",
        b"Z\0\0\0\x05I",
        b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05X",
        b"R\0\0\0\x08\0\0\0\0S\0\0\0\x06ab",
        b"",
    ] {
        let address = peer(said, b"", true).await;
        let refused = timeout(LONG, pool(address, Duration::from_millis(50)).lease()).await.unwrap().err().unwrap();
        assert_eq!((refused.sqlstate(), refused.is_retryable()), ("57P03", true), "{said:?}: {refused}");
    }
    // It asks for the password itself, in the clear or as good as that.
    for asked in [&b"R\0\0\0\x08\0\0\0\x03"[..], b"R\0\0\0\x0c\0\0\0\x05salt", b"R\0\0\0\x08\0\0\0\x07"] {
        let refused = pool(peer(asked, b"", true).await, LONG).lease().await.err().unwrap();
        assert!(
            matches!(&refused, PostgresError::Refused { message, .. } if message.contains("scram-sha-256")),
            "{refused}"
        );
    }
    // It says nothing.
    let silent = peer(b"", b"", false).await;
    let refused = timeout(LONG, pool(silent, Duration::from_millis(200)).lease()).await.unwrap().err().unwrap();
    assert!(refused.to_string().contains("does not answer"), "{refused}");
}

#[tokio::test]
async fn a_session_that_goes_wrong_is_lost_and_says_that_nobody_knows_the_outcome() {
    for said in [
        &b"\0\0\0\0\0\0\0\0"[..],
        b"D\x7f\xff\xff\xff",
        b"C\0\0\0",
        b"D\0\0\x10\0\0\x01",
        b"1\0\0\0\x04",
        b"R\0\0\0\x08\0\0\0\0",
        b"Z\0\0\0\x05?",
        b"Z\0\0\0\x04",
        b"C\0\x20\0\0",
        b"EXXX",
        b"",
    ] {
        let pool = pool(peer(WELCOME, said, true).await, LONG);
        let mut lease = pool.lease().await.unwrap();
        lease.push(Request::Query("SELECT 1".to_owned())).unwrap();
        let lost = timeout(LONG, answer(&mut lease)).await.unwrap().unwrap_err();
        assert_eq!((lost.sqlstate(), lost.is_retryable()), ("08006", false), "{said:?}: {lost}");
        drop(lease);
        // It is not given out again.
        assert!(pool.lease().await.is_ok());
    }
}

#[tokio::test]
async fn what_comes_after_the_end_is_nobody_elses() {
    // An answer, and more than that.
    let said = b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05IC\0\0\0\x0dSELECT 2\0Z\0\0\0\x05I";
    let pool = pool(peer(WELCOME, said, false).await, LONG);
    let mut lease = pool.lease().await.unwrap();
    lease.push(Request::Query("SELECT 1".to_owned())).unwrap();
    assert_eq!(answer(&mut lease).await.unwrap().letters(), "C");
    drop(lease);
    // The next one has a connection of its own: the same peer welcomes it.
    let mut lease = pool.lease().await.unwrap();
    lease.push(Request::Query("SELECT 1".to_owned())).unwrap();
    assert_eq!(answer(&mut lease).await.unwrap().letters(), "C");
}

/// A peer that says this to whoever says something, and then this other thing again and again, as fast as it is read.
async fn flooding(first: &'static [u8], then: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let flood = Bytes::from(then.repeat((256 << 10) / then.len() + 1));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let flood = flood.clone();
            tokio::spawn(async move {
                let mut heard = [0; 4_096];
                if stream.read(&mut heard).await.unwrap_or(0) == 0 || stream.write_all(first).await.is_err() {
                    return;
                }
                // Who begins a session says something more.
                if !first.is_empty() && stream.read(&mut heard).await.unwrap_or(0) == 0 {
                    return;
                }
                while stream.write_all(&flood).await.is_ok() {}
            });
        }
    });
    address
}

/// What is held at most, in bytes, of a server that never stops.
const FLOODED_MAX: isize = 40 << 20;

#[tokio::test]
async fn a_server_that_never_stops_is_not_held_and_is_left() {
    let before = held();
    let message = |letter: u8, body: &[u8]| {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[letter][..], &length.to_be_bytes(), body].concat()
    };
    // Before the session: notices, and what it says about itself.
    for said in [message(b'N', b"VNOTICE\0C00000\0Ma\0\0"), message(b'S', b"name\0value\0"), vec![b'R'; 100]] {
        let pool = pool(flooding(b"", said).await, Duration::from_millis(500));
        let refused = timeout(LONG, pool.lease()).await.unwrap().err().unwrap();
        assert_eq!(refused.sqlstate(), "57P03", "{refused}");
        assert!(held() - before < FLOODED_MAX, "{}", held() - before);
    }
    // Rows of a statement of Pleat's own, which would be held whole.
    let row = message(b'D', &[&b"\0\x01\0\0\x03\xe8"[..], &[b'x'; 1_000]].concat());
    let rows = flooding(WELCOME, row).await;
    let own = pool(rows, LONG);
    let much = timeout(LONG, own.lease().await.unwrap().ask("SELECT 1")).await.unwrap().unwrap_err();
    assert_eq!(much.sqlstate(), "54000", "{much}");
    // The same for a client that takes its time.
    let mut lease = own.lease().await.unwrap();
    lease.push(Request::Query("SELECT 1".to_owned())).unwrap();
    let mut passed = 0;
    while passed < 200 << 20 {
        let Reply::Bytes(bytes) = timeout(LONG, lease.receive()).await.unwrap().unwrap() else { panic!("no rows") };
        passed += bytes.len();
        assert!(held() - before < FLOODED_MAX, "{}", held() - before);
    }
    drop(lease);
    // Where it should take rows.
    let notices = [&b"G\0\0\0\x07\0\0\0"[..], &message(b'N', &[b'x'; 1_000]).repeat(100)].concat();
    let taking = pool(flooding(WELCOME, notices).await, LONG);
    let mut lease = taking.lease().await.unwrap();
    lease.push(Request::Query("COPY t FROM STDIN".to_owned())).unwrap();
    let copied = async {
        while lease.receive().await? != Reply::CopyIn {}
        for _ in 0..10_000 {
            lease.copy_data(Bytes::from(vec![b'y'; 10_000])).await?;
            assert!(held() - before < FLOODED_MAX, "{}", held() - before);
        }
        Ok::<_, PostgresError>(())
    };
    let lost = timeout(LONG, copied).await.unwrap().unwrap_err();
    assert_eq!(lost.sqlstate(), "08006", "{lost}");
    drop(lease);
    // A row that is announced and never comes, as large as rows can be.
    let large = pool(peer(WELCOME, b"D\x3f\xff\xff\xff\0\x01", true).await, LONG);
    let mut lease = large.lease().await.unwrap();
    lease.push(Request::Query("SELECT 1".to_owned())).unwrap();
    assert_eq!(timeout(LONG, answer(&mut lease)).await.unwrap().unwrap_err().sqlstate(), "08006");
    assert!(held() - before < FLOODED_MAX, "{}", held() - before);
}

#[tokio::test]
async fn a_server_that_never_answers_costs_a_client_its_statement_and_nobody_a_place() {
    let pool = Pool::new(
        target(Address::Tcp(peer(WELCOME, b"", false).await), None),
        Limits { connections: 1, waiting: 2, wait: LONG },
    );
    for _ in 0..2 {
        let mut lease = timeout(LONG, pool.lease()).await.unwrap().unwrap();
        lease.push(Request::Query("SELECT 1".to_owned())).unwrap();
        let waited = timeout(Duration::from_millis(300), lease.receive()).await;
        assert!(waited.is_err(), "{waited:?}");
        // Its client goes. The cancel request is not answered either, and given up.
        drop(lease);
        let begun = Instant::now();
        drop(timeout(LONG, pool.lease()).await.unwrap().unwrap());
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
}
