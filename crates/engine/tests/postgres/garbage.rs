//! Peers that are no PostgreSQL server, or one gone mad.

use std::net::SocketAddr;
use std::time::Duration;

use pleat_engine::postgres::{Address, Limits, Pool, PostgresError, Request};
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
