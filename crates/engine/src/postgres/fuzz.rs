//! What servers and clients send, made nearly right. `cargo xtask fuzz` goes on for longer.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pleat_fuzz::{Target, outcome, run};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};

use super::server::Opened;
use super::start::{Started, begin};
use super::wire::backend::{Asked, Failure, Head, columns, key, parameter, tag, values};
use super::wire::frontend::{Bind, First, Message, sasl_initial};
use super::wire::{Broken, HEAD, LENGTH};
use super::{Address, Connection, Dsn, Password, PostgresError, Reply, Request, Server, Statement, moving};
use crate::scram::{self, Binding};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().unwrap();
}

/// No input may keep anybody waiting: the server has hung up.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

fn block_on<T>(work: impl Future<Output = T>) -> T {
    RUNTIME.with(|runtime| runtime.block_on(async { tokio::time::timeout(ENDS_WITHIN, work).await.expect("it ends") }))
}

#[test]
fn fuzz_targets() {
    let clients: [&[u8]; 12] = [
        b"QSELECT 1\0",
        b"Ps\0SELECT $1\0\0\x02\0\0\0\x17\0\0\0\x19",
        b"Bp\0s\0\0\x01\0\x01\0\x02\0\0\0\x02hi\xff\xff\xff\xff\0\x01\0\0",
        b"DSs\0",
        b"CPp\0",
        b"Ep\0\0\0\0\x05",
        b"S",
        b"d1\ta\n",
        b"fno more\0",
        b"0\0\x03\0\0user\0me\0database\0d\0options\0-c a=b\0\0",
        b"0\x04\xd2\x16\x2e\0\0\0\x07\0\0\0\x09",
        b"pSCRAM-SHA-256\0\0\0\0\x0dn,,n=,r=abcde",
    ];
    let welcome: &[u8] = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x12TimeZone\0Japan\0K\0\0\0\x0c\0\0\0\x07\0\0\0\x09Z\0\0\0\x05I";
    let starts: [&[u8]; 5] = [
        welcome,
        b"R\0\0\0\x2a\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0",
        b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0R\0\0\0\x26\0\0\0\x0br=abc,s=AAAAAAAAAAAAAAAA,i=4096",
        b"E\0\0\0\x22SFATAL\0VFATAL\0C28P01\0Mno entry\0\0",
        b"N\0\0\0\x0eVNOTICE\0Ma\0\0R\0\0\0\x0c\0\0\0\x05salt",
    ];
    // The first byte says what was asked.
    let sessions: [&[u8]; 9] = [
        b"\0T\0\0\0\x1a\0\x01a\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0D\0\0\0\x0b\0\x01\0\0\0\x017C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I",
        b"\0G\0\0\0\x09\0\0\x01\0\0C\0\0\0\x0bCOPY 1\0Z\0\0\0\x05I",
        b"\0H\0\0\0\x09\0\0\x01\0\0d\0\0\0\x081\ta\nc\0\0\0\x04C\0\0\0\x0bCOPY 1\0Z\0\0\0\x05T",
        b"\x01\x31\0\0\0\x042\0\0\0\x04T\0\0\0\x06\0\0D\0\0\0\x06\0\0C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I",
        b"\x011\0\0\0\x042\0\0\0\x04n\0\0\0\x04s\0\0\0\x04Z\0\0\0\x05T",
        b"\x01E\0\0\0\x22VERROR\0C42P01\0Mno such\0Dtable\0\0Z\0\0\0\x05E",
        b"\x021\0\0\0\x04t\0\0\0\x0a\0\x01\0\0\0\x17n\0\0\0\x043\0\0\0\x04Z\0\0\0\x05I",
        b"\x03A\0\0\0\x0e\0\0\0\x07news\0a\0S\0\0\0\x0fTimeZone\0UT\0N\0\0\0\x0aVLOG\0\0Z\0\0\0\x05I",
        b"\x03D\0\0\0\x0a\0\x01\xff\xff\xff\xffI\0\0\0\x04Z\0\0\0\x05I",
    ];
    let dsns = [
        "postgres://ann:s%40cret@db.example:6000/shop?sslmode=verify-full&sslrootcert=%2Fca.pem",
        "postgresql://ann@[::1]:5432/%E2%82%AC",
        "postgres://ann:secret@/shop?host=/run/postgresql&application_name=x",
    ];
    let proofs = [
        "n,,n=,r=abc",
        "p=tls-server-end-point,,n=,r=abc",
        "y,,n=,r=abc|c=eSws,r=abcAgICAgICAgICAgICAgICAgIC,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "n,,n=,r=abc|c=biws,r=abcAgICAgICAgICAgICAgICAgIC,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "r=AwMDAwMDAwMDAwMDAwMDAwMDx,s=AAAAAAAAAAAAAAAA,i=4096|v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    ];
    run(&[
        Target::new("engine/client", 20_000, clients, client),
        Target::new("engine/server", 20_000, sessions, fields),
        Target::new("engine/start", 3_000, starts, starting),
        Target::new("engine/session", 20_000, sessions, session),
        Target::new("engine/changes", 20_000, moving::fuzz::frames(), moving::fuzz::changes),
        Target::new("engine/dsn", 10_000, dsns, dsn),
        Target::new("engine/scram", 5_000, proofs, proof),
    ]);
}

/// A message of a client: its letter (`0` stands for the first one, which has none), and its body. What is read can be written again.
fn client(input: &[u8]) -> u64 {
    let Some((letter, body)) = input.split_first() else { return 0 };
    let body = Bytes::copy_from_slice(body);
    let told = |error: &Broken| error.tell().map(|(_, text)| text);
    match letter {
        b'0' => {
            let first = First::read(body);
            if let Ok(first) = &first {
                let mut out = BytesMut::new();
                first.write(&mut out);
                assert_eq!(First::read(out.split_off(LENGTH).freeze()).ok().as_ref(), Some(first));
            }
            outcome(&first.map(|first| std::mem::discriminant(&first)).map_err(|error| told(&error)))
        }
        b'p' => outcome(&sasl_initial(body).map(|(_, begins)| begins.len().min(1)).map_err(|error| told(&error))),
        letter => {
            let message = Message::read(*letter, body);
            if let Ok(message) = &message {
                let mut out = BytesMut::new();
                message.write(&mut out);
                assert_eq!(Message::read(*letter, out.split_off(HEAD).freeze()).ok().as_ref(), Some(message));
            }
            outcome(&message.map(|message| std::mem::discriminant(&message)).map_err(|error| told(&error)))
        }
    }
}

/// The fields of a server's messages.
fn fields(input: &[u8]) -> u64 {
    let body = Bytes::copy_from_slice(input);
    let head = Head::read(input).map(|head| head.map(|head| head.needed().min(HEAD)));
    let failure = Failure::read(input);
    let rows = values(body.clone()).map(|values| values.len().min(2)).ok();
    let names = columns(body.clone()).map(|names| names.len().min(2)).ok();
    let texts = (parameter(body.clone()).is_ok(), tag(body.clone()).is_ok(), key(body.clone()).is_ok());
    let asked = Asked::read(body).map(|asked| std::mem::discriminant(&asked)).ok();
    outcome(&(head.ok(), failure.fatal, failure.code, rows, names, texts, asked))
}

/// A server that says this and hangs up. Whatever it is sent it takes.
struct Says {
    rest: Bytes,
    /// So many bytes come at a time.
    piece: usize,
}

impl AsyncRead for Says {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let length = self.piece.min(self.rest.len()).min(buffer.remaining());
        buffer.put_slice(&self.rest.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Says {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn says(input: &[u8]) -> Says {
    // Long ones in one piece, short ones in all kinds of them.
    let piece = if input.len() > 500 { input.len() } else { 1 + input.len() % 7 };
    Says { rest: Bytes::copy_from_slice(input), piece }
}

fn nowhere() -> Address {
    Address::Unix("/nowhere".into())
}

/// The beginning of a session: whoever does not know the password is not believed to.
fn starting(input: &[u8]) -> u64 {
    let name = || "pleat".to_owned();
    let password = input.len().is_multiple_of(2).then(|| Password("secret".to_owned()));
    let server = Server { address: nowhere(), user: name(), database: name(), password, identity: None };
    let opened =
        Opened { stream: Box::new(says(input)), end_point: input.len().is_multiple_of(3).then(|| vec![7; 32]) };
    match block_on(begin(opened, &server, &[("application_name", "x")])) {
        Ok(started) => outcome(&started.parameters.len().min(3)),
        Err(error) => outcome(&(std::mem::discriminant(&error), error.sqlstate())),
    }
}

/// A session in which something was asked: what comes is an answer to it, or the end of the connection. Nothing of it goes to the next one.
fn session(input: &[u8]) -> u64 {
    let Some((asked, said)) = input.split_first() else { return 0 };
    let started = Started {
        stream: Box::new(says(said)),
        buffer: BytesMut::new(),
        parameters: BTreeMap::new(),
        process: 1,
        secret: 1,
    };
    let mut connection = Connection::begun(started, nowhere());
    let statement = Statement::new("SELECT $1".to_owned(), vec![]);
    let requests = match asked % 4 {
        0 => vec![Request::Query("SELECT 1".to_owned())],
        1 => vec![
            Request::Bind(statement.clone(), Bind::default()),
            Request::DescribePortal(String::new()),
            Request::Execute { portal: String::new(), rows: 2 },
            Request::Sync,
        ],
        2 => vec![
            Request::Parse(statement.clone()),
            Request::DescribeStatement(statement),
            Request::ClosePortal("p".to_owned()),
            Request::CloseStatement,
            Request::Sync,
        ],
        _ => return block_on(async { ended(connection.ask("SELECT 1").await.map(|asked| asked.rows.len()), said) }),
    };
    requests.into_iter().for_each(|request| connection.push(request).unwrap());
    let (mut passed, mut kinds) = (0, Vec::new());
    let done = block_on(async {
        loop {
            match connection.receive().await? {
                Reply::Bytes(bytes) => passed += bytes.len(),
                Reply::CopyIn => {
                    kinds.push(b'G');
                    connection.copy_data(Bytes::from_static(b"1\n")).await?;
                    connection.copy_done();
                    if asked % 4 != 0 {
                        connection.push(Request::Sync)?;
                    }
                }
                Reply::Ready { .. } => return Ok(kinds),
                Reply::Answered => kinds.push(b'a'),
            }
            if kinds.len() > 50 {
                return Ok(kinds);
            }
        }
    });
    // An answer that Pleat makes itself (CloseComplete) is the only one that did not come.
    assert!(passed <= said.len() + 2 * HEAD, "{passed} bytes were passed on, and {} came", said.len());
    ended(done, said)
}

fn ended<T: std::fmt::Debug>(done: Result<T, PostgresError>, said: &[u8]) -> u64 {
    match done {
        Ok(made) => outcome(&made),
        Err(PostgresError::Lost(why)) => outcome(&why.split(' ').take(7).collect::<Vec<_>>()),
        Err(PostgresError::Answered { code, .. }) => {
            assert!(!said.is_empty());
            outcome(&code.as_str().len())
        }
        Err(error) => outcome(&std::mem::discriminant(&error)),
    }
}

/// The name of a server.
fn dsn(input: &[u8]) -> u64 {
    let Ok(text) = std::str::from_utf8(input) else { return 0 };
    match Dsn::parse(text) {
        Ok(dsn) => {
            assert!(!dsn.user.is_empty() && !dsn.database.is_empty() && !dsn.to_string().is_empty());
            outcome(&(std::mem::discriminant(&dsn.host), dsn.password.is_some(), dsn.authorities.is_some()))
        }
        Err(why) => outcome(&why.split(' ').take(8).collect::<Vec<_>>()),
    }
}

/// Both ends of a proof, of which one sends anything: two messages with a `|` between them.
fn proof(input: &[u8]) -> u64 {
    let mut messages = input.splitn(2, |byte| *byte == b'|');
    let (first, second) = (messages.next().unwrap_or_default(), messages.next().unwrap_or_default());
    let mut made = Vec::new();
    for (plus, binding) in
        [(false, Binding::None), (false, Binding::Offered(&[7; 32])), (true, Binding::Offered(&[7; 32]))]
    {
        let answered = scram::open(first, plus, binding).and_then(|opening| {
            let (challenge, _) = opening.challenge(scram::mock(&pleat_cluster::Secret([1; 32]), "ann"), [2; 18]);
            challenge.answer(second)
        });
        assert!(answered.is_err(), "nobody knows this password");
        made.push(std::mem::discriminant(&answered.unwrap_err()));
    }
    let (begun, _) = scram::client::begin(scram::client::Channel::Unbound, [3; 18]);
    // The iterations of a challenge take time, and there is a test of their limit.
    let cheap = first.windows(3).any(|bytes| bytes == b"i=4");
    if cheap && first.len() < 200 {
        let proven = begun.prove(first, b"secret").map(|(proven, _)| proven.check(second).is_ok());
        assert_ne!(proven, Ok(true), "this server does not know the password");
        made.extend(proven.err().map(|refused| std::mem::discriminant(&refused)));
    }
    outcome(&made)
}
