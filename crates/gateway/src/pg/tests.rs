//! The protocol, byte by byte, over a cluster in this process: what a driver would never send among it.

mod hostile;
mod login;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Shared;
use crate::testing::Cluster;
use crate::{PgSettings, Settings};

/// A server, and how to stop it.
pub(super) struct Server {
    address: std::net::SocketAddr,
    cluster: Arc<Cluster>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(connections: usize) -> Self {
        Self::with(connections, PgSettings::default()).await
    }

    async fn with(connections: usize, pg: PgSettings) -> Self {
        Self::of(connections, Settings { pg, ..Settings::default() }).await
    }

    async fn of(connections: usize, settings: Settings) -> Self {
        let cluster = Cluster::new(2);
        let app = crate::http::Shared::new(cluster.clone(), settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async move { stopped.await.unwrap_or(()) };
        let serving = tokio::spawn(super::serve(listener, Shared::new(app), connections, stopped));
        Self { address, cluster, stop, serving }
    }

    pub(super) async fn connect(&self) -> Client {
        let mut client = Client { stream: TcpStream::connect(self.address).await.unwrap() };
        client.send(&startup(3 << 16, &[("user", "me")])).await;
        let greeting = client.until(b'Z').await;
        assert_eq!(greeting.last().unwrap().1, b"I");
        client
    }
}

pub(super) struct Client<S = TcpStream> {
    pub(super) stream: S,
}

pub(super) type Answer = (u8, Vec<u8>);

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next message; `None` when the server has closed.
    pub(super) async fn next(&mut self) -> Option<Answer> {
        let read = async {
            let tag = self.stream.read_u8().await.ok()?;
            let length = self.stream.read_u32().await.ok()?;
            let mut body = vec![0; length as usize - 4];
            self.stream.read_exact(&mut body).await.ok()?;
            Some((tag, body))
        };
        tokio::time::timeout(Duration::from_secs(60), read).await.expect("an answer comes")
    }

    /// All messages to the first of this kind.
    async fn until(&mut self, tag: u8) -> Vec<Answer> {
        let mut all = Vec::new();
        loop {
            let next = self.next().await.unwrap_or_else(|| panic!("closed after {all:?}"));
            let found = next.0 == tag;
            all.push(next);
            if found {
                return all;
            }
        }
    }

    /// The letters of the answer to a query, and the status after it.
    pub(super) async fn query(&mut self, text: &str) -> (String, u8) {
        self.send(&message(b'Q', &[text.as_bytes(), b"\0"].concat())).await;
        let all = self.until(b'Z').await;
        (all.iter().map(|(tag, _)| char::from(*tag)).collect(), all.last().unwrap().1[0])
    }

    /// The SQLSTATE that the connection ends with.
    async fn ended(&mut self) -> Option<String> {
        let mut code = None;
        while let Some((tag, body)) = self.next().await {
            if tag == b'E' {
                code = Some(field(&body, b'C'));
            }
        }
        code
    }
}

pub(super) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    bytes.put_u8(tag);
    bytes.put_u32(body.len() as u32 + 4);
    bytes.put_slice(body);
    bytes.to_vec()
}

fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = BytesMut::new();
    body.put_u32(version);
    for (name, value) in parameters {
        body.put_slice(&[name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    body.put_u8(0);
    message(b'?', &body)[1..].to_vec()
}

fn field(body: &[u8], letter: u8) -> String {
    let fields = body.split(|byte| *byte == 0);
    let found = fields.filter(|field| field.first() == Some(&letter)).map(|field| &field[1..]).next();
    String::from_utf8_lossy(found.unwrap_or_default()).into_owned()
}

pub(super) fn parse(name: &str, text: &str) -> Vec<u8> {
    message(b'P', &[name.as_bytes(), b"\0", text.as_bytes(), b"\0\0\0"].concat())
}

pub(super) fn bind(portal: &str, name: &str, values: &[&str]) -> Vec<u8> {
    let mut body = BytesMut::new();
    body.put_slice(&[portal.as_bytes(), b"\0", name.as_bytes(), b"\0\0\0"].concat());
    body.put_u16(values.len() as u16);
    for value in values {
        body.put_u32(value.len() as u32);
        body.put_slice(value.as_bytes());
    }
    body.put_u16(0);
    message(b'B', &body)
}

pub(super) fn execute(portal: &str, rows: u32) -> Vec<u8> {
    message(b'E', &[portal.as_bytes(), b"\0", &rows.to_be_bytes()].concat())
}

pub(super) fn sync() -> Vec<u8> {
    message(b'S', b"")
}

#[tokio::test]
async fn what_is_no_start_is_refused_or_closed() {
    let server = Server::start(10).await;
    for (first, code) in [
        (startup(2 << 16, &[("user", "me")]), Some("0A000")),
        (startup(3 << 16, &[]), Some("28000")),
        (startup(3 << 16, &[("user", "me"), ("client_encoding", "LATIN1")]), Some("22023")),
        (startup(3 << 16, &[("user", "me"), ("replication", "true")]), Some("0A000")),
        (vec![0x7f, 0xff, 0xff, 0xff], Some("08P01")),
        (vec![0, 0, 0, 1, 0, 0, 0, 0], Some("08P01")),
        (vec![0, 0, 0, 5, 0], Some("08P01")),
        (message(b'Q', b"SELECT 1\0"), Some("08P01")),
        // A cancel is never answered.
        ([&[0, 0, 0, 16][..], &80_877_102_u32.to_be_bytes(), &[0; 8]].concat(), None),
    ] {
        let mut client = Client { stream: TcpStream::connect(server.address).await.unwrap() };
        client.send(&first).await;
        assert_eq!(client.ended().await.as_deref(), code, "{first:?}");
    }
    // Encryption is refused, once each, and the client goes on without.
    let mut client = Client { stream: TcpStream::connect(server.address).await.unwrap() };
    for code in [80_877_104_u32, 80_877_103] {
        client.send(&[&8_u32.to_be_bytes()[..], &code.to_be_bytes()].concat()).await;
        assert_eq!(client.stream.read_u8().await.unwrap(), b'N');
    }
    client.send(&startup(3 << 16 | 2, &[("user", "me"), ("_pq_.new", "1")])).await;
    let greeting = client.until(b'Z').await;
    assert_eq!(greeting[0], (b'v', [&[0, 0, 0, 0, 0, 0, 0, 1][..], b"_pq_.new\0"].concat()));
    assert!(greeting.iter().any(|(tag, _)| *tag == b'K'));
}

#[tokio::test]
async fn what_is_no_message_ends_the_connection_and_no_other() {
    let server = Server::start(10).await;
    let mut other = server.connect().await;
    for bytes in [
        startup(3 << 16, &[("user", "me")]),
        message(b'?', b""),
        message(b'S', b"more"),
        message(b'Q', b"no end"),
        message(b'p', b"password\0"),
        b"Q\x7f\xff\xff\xff".to_vec(),
        b"S\0\x02\0\0".to_vec(),
        b"Q\0\0\0\0".to_vec(),
    ] {
        let mut client = server.connect().await;
        client.send(&bytes).await;
        assert_eq!(client.ended().await.as_deref(), Some("08P01"), "{bytes:?}");
    }
    assert_eq!(other.query("SELECT 1").await, ("TDCZ".to_owned(), b'I'));
}

#[tokio::test]
async fn too_many_are_told_so() {
    let server = Server::start(1).await;
    let first = server.connect().await;
    let mut second = Client { stream: TcpStream::connect(server.address).await.unwrap() };
    second.send(&startup(3 << 16, &[("user", "me")])).await;
    assert_eq!(second.ended().await.as_deref(), Some("53300"));
    drop(first);
    // Its place is free again, as soon as its end was noticed.
    for _ in 0..1_000 {
        let mut third = Client { stream: TcpStream::connect(server.address).await.unwrap() };
        third.send(&startup(3 << 16, &[("user", "me")])).await;
        if third.next().await.is_some_and(|(tag, _)| tag == b'R') {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the place was not given back");
}

#[tokio::test]
async fn transactions_fail_as_clients_expect() {
    let server = Server::start(10).await;
    let mut client = server.connect().await;
    assert_eq!(client.query("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT) SHARD BY (id)").await.1, b'I');
    assert_eq!(client.query("BEGIN; INSERT INTO t VALUES (1, 'a'), (2, 'b')").await, ("CCZ".to_owned(), b'T'));
    assert_eq!(client.query("SAVEPOINT s").await.1, b'T');
    assert_eq!(client.query("INSERT INTO t VALUES (1, 'again')").await, ("EZ".to_owned(), b'E'));
    assert_eq!(client.query("SELECT 1").await, ("EZ".to_owned(), b'E'));
    assert_eq!(client.query("ROLLBACK TO s").await, ("CZ".to_owned(), b'T'));
    assert_eq!(client.query("COMMIT").await, ("CZ".to_owned(), b'I'));
    // A warning each, and no failure.
    assert_eq!(client.query("COMMIT").await, ("NCZ".to_owned(), b'I'));
    assert_eq!(client.query("BEGIN; BEGIN; ROLLBACK").await, ("CNCCZ".to_owned(), b'I'));
    // COMMIT of a failed one rolls back. (A write over all shards has a notice.)
    assert_eq!(client.query("BEGIN; DELETE FROM t; SELECT nothing FROM t").await, ("CNCEZ".to_owned(), b'E'));
    client.send(&message(b'Q', b"COMMIT\0")).await;
    assert_eq!(client.until(b'Z').await[0], (b'C', b"ROLLBACK\0".to_vec()));
    // All of a message, or nothing of it.
    assert_eq!(client.query("INSERT INTO t VALUES (3, 'c'); INSERT INTO t VALUES (1, 'd')").await.0, "CEZ");
    client.send(&message(b'Q', b"SELECT count(*) FROM t\0")).await;
    let rows = client.until(b'Z').await;
    assert_eq!(rows[1], (b'D', b"\0\x01\0\0\0\x012".to_vec()));
    assert_eq!(client.query("").await, ("IZ".to_owned(), b'I'));
    assert_eq!(client.query("BEGIN READ ONLY; DELETE FROM t").await, ("CEZ".to_owned(), b'E'));
    assert_eq!(client.query("ROLLBACK").await.1, b'I');
    // A schema change warns, and comes before all else.
    assert_eq!(client.query("BEGIN; CREATE TABLE u (id INTEGER PRIMARY KEY) REFERENCE; COMMIT").await.0, "CNCCZ");
    assert_eq!(client.query("BEGIN; DELETE FROM t; CREATE INDEX i ON t (name)").await, ("CNCEZ".to_owned(), b'E'));
}

#[tokio::test]
async fn statements_and_portals() {
    let server = Server::start(10).await;
    let mut client = server.connect().await;
    client.query("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT) SHARD BY (id)").await;
    let insert = [parse("i", "INSERT INTO t VALUES ($1, $2)"), bind("", "i", &["1", "a"]), execute("", 0)];
    let again = [bind("", "i", &["2", "b"]), execute("", 0), bind("", "i", &["3", "c"]), execute("", 0), sync()];
    client.send(&[insert.concat(), again.concat()].concat()).await;
    let letters = |all: &[Answer]| all.iter().map(|(tag, _)| char::from(*tag)).collect::<String>();
    assert_eq!(letters(&client.until(b'Z').await), "12C2C2CZ");

    // Described before it runs; `id` is a bigint, the parameter too.
    let describe = message(b'D', b"Ss\0");
    client
        .send(&[parse("s", "SELECT id, name, count(*) OVER () FROM t WHERE id >= $1"), describe, sync()].concat())
        .await;
    let told = client.until(b'Z').await;
    assert_eq!(letters(&told), "1tTZ");
    assert_eq!((&told[1].1[..]).get_u32(), 0x0001_0000, "one parameter");
    assert_eq!((&told[1].1[2..]).get_u32(), 20);

    // In parts, in a transaction.
    client.query("BEGIN").await;
    client.send(&[bind("p", "s", &["1"]), execute("p", 2), sync()].concat()).await;
    assert_eq!(letters(&client.until(b'Z').await), "2DDsZ");
    client.send(&[execute("p", 2), sync()].concat()).await;
    assert_eq!(letters(&client.until(b'Z').await), "DCZ");
    client.query("COMMIT").await;
    client.send(&[execute("p", 2), sync()].concat()).await;
    let gone = client.until(b'Z').await;
    assert_eq!(field(&gone[0].1, b'C'), "34000", "a portal ends with its transaction");

    // After an error all is skipped up to Sync, and what was not committed is not done.
    let wrong = [bind("", "i", &["4", "d"]), execute("", 0), bind("", "i", &["1", "x"]), execute("", 0)].concat();
    client.send(&[wrong, bind("", "i", &["5", "e"]), execute("", 0), sync()].concat()).await;
    let all = client.until(b'Z').await;
    assert_eq!(letters(&all), "2C2EZ");
    assert_eq!(field(&all[3].1, b'C'), "23505");
    assert_eq!(client.query("SELECT id FROM t").await.0, "TDDDCZ");

    for (bytes, code) in [
        (bind("", "nothing", &[]), "26000"),
        (bind("", "s", &[]), "08P01"),
        (bind("", "s", &["x"]), "22P02"),
        (parse("s", "SELECT 1"), "42P05"),
        (parse("", "SELECT * FROM nowhere"), "42P01"),
        (parse("", "SELECT 1; SELECT 2"), "42601"),
    ] {
        client.send(&[bytes, sync()].concat()).await;
        let all = client.until(b'Z').await;
        assert_eq!(field(&all[0].1, b'C'), code);
    }
}

#[tokio::test]
async fn a_node_that_stops_says_so() {
    let server = Server::start(10).await;
    let mut client = server.connect().await;
    server.stop.send(()).unwrap();
    assert_eq!(client.ended().await.as_deref(), Some("57P01"));
    tokio::time::timeout(Duration::from_secs(60), server.serving).await.unwrap().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn arbitrary_bytes_in_a_session_end_in_an_answer_or_its_end(
        tags in prop::collection::vec((prop::sample::select(b"QPBDECHSXdcf?".to_vec()), prop::collection::vec(any::<u8>(), 0..40)), 1..6)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Arc::new(Server::start(4).await);
            let mut client = server.connect().await;
            for (tag, body) in &tags {
                // The server may have closed already.
                client.stream.write_all(&message(*tag, body)).await.ok();
            }
            client.stream.shutdown().await.ok();
            while client.next().await.is_some() {}
            let mut other = server.connect().await;
            assert_eq!(other.query("SELECT 1").await.0, "TDCZ");
        });
    }
}
