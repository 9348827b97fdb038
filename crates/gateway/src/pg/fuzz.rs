//! What clients send, made nearly right: messages, values, rows, statements of SQLite's dialect, and whole sessions. `cargo xtask fuzz` goes
//! on for longer.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pleat_fuzz::{Target, outcome, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

use super::copy::{self, Decoder, Form};
use super::dialect::lex::{self, Tokens};
use super::dialect::{translate, translate_system};
use super::settings::{self, Settings};
use super::start::startup;
use super::tests::{Server, bind, execute, message, parse, sync};
use super::types::value::{Format, put, read, read_number_as_text, text_of};
use super::types::{TYPES, Type};
use super::wire::{First, Reader};
use super::{named, relay};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().unwrap();
    static SERVER: Server = RUNTIME.with(|runtime| runtime.block_on(async {
        let server = Server::start(10).await;
        let mut client = server.connect().await;
        client.query("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, w REAL) SHARD BY (id)").await;
        server
    }));
}

#[test]
fn fuzz_targets() {
    let first: [&[u8]; 3] = [
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x07\0\0\0\x09",
        b"\0\0\0\x21\0\x03\0\0user\0me\0options\0-c a=b\\ c\0\0Q\0\0\0\x0dSELECT 1\0X\0\0\0\x04",
    ];
    let starts = [
        "user\0me\0database\0d\0options\0-c statement_timeout=5s --search-path=public\0application_name\0a'b\\c\0\0",
        "user\0me\0replication\0off\0client_encoding\0utf-8\0standard_conforming_strings\0on\0_pq_.x\x001\0\0",
        "user\0me\0search_path\0\"$user\", public\0TimeZone\0SET TimeZone TO 'UTC'\0\0",
    ];
    let copies: [&[u8]; 4] = [
        b"\0a\tb\\t\\x41\\101\\\\\t\\N\n\\.\n",
        b"\x01a,\"b \"\"\nc\",\n\"\"\r\n",
        b"\x02a;'b\\'',NA\n",
        b"\x01\"open\n",
    ];
    let answers: [&[u8]; 3] = [
        b"T\0\0\0\x21\0\x01name\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0D\0\0\0\x0b\0\x01\0\0\0\x017",
        b"C\0\0\0\x0fINSERT 0 3\0Z\0\0\0\x05I",
        b"E\0\0\0\x22VERROR\0C42P01\0Mno such\0Dtable\0\0C\0\0\0\x0dSELECT 1\0",
    ];
    let keys: [&[u8]; 5] = [
        b"\0\0\x0142",
        b"\0\x01\x03\0\0\0\0\0\0\0\x2a",
        b"\x02\x01\x05\xa0\xee\xbc\x99\x9c\x0b\x4e\xf8\xbb\x6d\x6b\xb9\xbd\x38\x0a\x11",
        b"\x02\0\0a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        b"\x03\0\x06\\xdeadbeef",
    ];
    run(&[
        Target::new("gateway/messages", 20_000, first, messages),
        Target::new("gateway/start", 20_000, starts, start),
        Target::new("gateway/value", 20_000, values(), value),
        Target::new("gateway/copy", 3_000, copies, copied),
        Target::new("gateway/dialect", 300, statements(), dialect),
        Target::new("gateway/session", 250, sessions(), session),
        Target::new("gateway/relay-answer", 20_000, answers, relay::fuzz::messages),
        Target::new("gateway/relay-key", 10_000, keys, relay::fuzz::key),
        Target::new("gateway/relay-rows", 3_000, relay::fuzz::rows_seeds(), relay::fuzz::rows),
    ]);
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let limited = async { tokio::time::timeout(Duration::from_secs(15), work).await.expect("it ends") };
    RUNTIME.with(|runtime| runtime.block_on(limited))
}

/// Messages from a socket: a first one, and those of a session.
fn messages(input: &[u8]) -> u64 {
    block_on(async {
        let mut reader = Reader::new(input, Arc::new(Semaphore::new(1)));
        let first = reader.first().await.map(|first| first.map(|first| std::mem::discriminant(&first)));
        let mut kinds = Vec::new();
        let end = loop {
            match reader.message().await {
                Ok(Some(message)) => kinds.push(std::mem::discriminant(&message)),
                Ok(None) => break None,
                Err(broken) => break broken.tell(),
            }
        };
        let mut proofs = Reader::new(input, Arc::new(Semaphore::new(1)));
        while let Ok(Some(_)) = proofs.proof().await {}
        kinds.truncate(4);
        outcome(&(first.ok(), kinds, end.map(|(_, told)| told.chars().take(20).collect::<String>())))
    })
}

/// Settings of the first message.
fn start(input: &[u8]) -> u64 {
    let body = [&b"\0\x03\0\0"[..], input].concat();
    let Ok(First::Startup { parameters, .. }) = First::read(Bytes::from(body)) else { return 0 };
    match startup("me".to_owned(), parameters) {
        Err(failure) => outcome(&failure.code),
        Ok(started) => {
            let mut own = Settings::new("me");
            let taken = started.settings.iter().filter(|(name, value)| own.start_with(name, value).is_ok()).count();
            relay::fuzz::settings(&started).wrapping_add(u64::from(taken > 0))
        }
    }
}

/// Values of each type in both formats: the first byte is the type, the second the format.
fn values() -> Vec<Vec<u8>> {
    let binary: [(Type, &[u8]); 6] = [
        (Type::Int8, &[0, 0, 0, 0, 0, 0, 0, 7]),
        (Type::Float8, &[0x40, 0x45, 0, 0, 0, 0, 0, 0]),
        (Type::Numeric, b"\0\x02\0\x01\0\0\0\x05\0\x01\x30\x39\x15\xb3"),
        (Type::Timestamptz, &[0, 2, 0x9d, 0x3f, 0, 0, 0, 0]),
        (Type::Uuid, &[7; 16]),
        (Type::Jsonb, b"\x01{\"a\": 1}"),
    ];
    let texts = [
        (Type::Numeric, "-12345.678e-3"),
        (Type::Timestamptz, "2024-02-29 12:30:01.000005+05:30"),
        (Type::Date, "2024-02-29"),
        (Type::Time, "23:59:59.999999"),
        (Type::Bytea, "\\xdeadbeef"),
        (Type::Bool, "true"),
        (Type::Uuid, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ];
    let place = |of: Type| TYPES.iter().position(|about| about.of == of).and_then(|at| u8::try_from(at).ok()).unwrap();
    let binary = binary.iter().map(|(of, bytes)| [&[place(*of), 1][..], bytes].concat());
    binary.chain(texts.iter().map(|(of, text)| [&[place(*of), 0][..], text.as_bytes()].concat())).collect()
}

/// A value that was read can be written, in both formats, as the type that it was read as.
fn value(input: &[u8]) -> u64 {
    let [of, format, bytes @ ..] = input else { return 0 };
    let of = TYPES[usize::from(*of) % TYPES.len()].of;
    let format = if format % 2 == 0 { Format::Text } else { Format::Binary };
    drop(read_number_as_text(bytes, format));
    let read_once = read(bytes, of, format);
    if let Ok(value) = &read_once {
        drop(text_of(value, of));
        for each in TYPES {
            let mut out = BytesMut::new();
            if put(&mut out, value, each.of, Format::Binary).is_ok() && each.of == of {
                // NULL has a length and nothing else.
                assert!(out.len() >= 4, "{of:?}: {value:?}");
                let again = read(&out[4..], of, Format::Binary);
                assert!(again.is_ok(), "{of:?}: {value:?} is written as {:?}, which is none", &out[..]);
            }
        }
    }
    outcome(&(of, read_once.map(|value| std::mem::discriminant(&value)).map_err(|failure| failure.code)))
}

/// Rows of a COPY into embedded shards; the first byte says the form. However they are cut, they are the same.
fn copied(input: &[u8]) -> u64 {
    let Some((form, said)) = input.split_first() else { return 0 };
    let form = match form % 3 {
        0 => Form { csv: false, header: false, delimiter: b'\t', null: "\\N".to_owned(), quote: b'"', escape: b'"' },
        1 => Form { csv: true, header: false, delimiter: b',', null: String::new(), quote: b'"', escape: b'"' },
        _ => Form { csv: true, header: true, delimiter: b';', null: "NA".to_owned(), quote: b'\'', escape: b'\\' },
    };
    let records = |pieces: &[&[u8]]| {
        let (mut decoder, mut found) = (Decoder::new(&form), Vec::new());
        for (at, piece) in pieces.iter().chain([&&b""[..]]).enumerate() {
            decoder.push(piece);
            loop {
                match decoder.record(at == pieces.len()) {
                    Ok(Some(record)) => found.push(record),
                    Ok(None) => break,
                    Err(failure) => return (found, failure.message),
                }
            }
        }
        (found, String::new())
    };
    let pieces: Vec<&[u8]> = said.chunks(1 + said.len() % 5).collect();
    let whole = records(&[said]);
    assert_eq!(whole, records(&pieces), "it matters how the rows are cut");
    outcome(&(whole.1, whole.0.iter().map(|record| record.fields.len().min(3)).take(4).collect::<Vec<_>>()))
}

fn statements() -> Vec<&'static str> {
    vec![
        "SELECT $1::int8, name::text || 'a''b', x[1], now() AT TIME ZONE 'UTC' FROM \"T\" WHERE a ~ '^b' AND c !~~* $2",
        "SELECT c.relname, pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_class c JOIN pg_attribute a ON a.attrelid = c.oid WHERE c.oid = 't'::regclass",
        "PREPARE p (int, text) AS SELECT $1, $2; EXECUTE p (1, 'it''s'); DEALLOCATE ALL",
        "DECLARE c CURSOR FOR SELECT 1; FETCH FORWARD 5 FROM c; MOVE ALL IN c; CLOSE c",
        "SET LOCAL statement_timeout TO '5s'; SHOW ALL; RESET application_name; SET TIME ZONE 'UTC'; DISCARD ALL",
        "COPY t (a, \"b c\") FROM STDIN WITH (FORMAT csv, HEADER, DELIMITER ';', NULL 'NA', QUOTE '\"', ESCAPE '\\')",
        "COPY (SELECT (1), ')' FROM t) TO STDOUT CSV DELIMITER AS ';'",
        "SELECT E'\\x41\\n', U&'\\0041', $$a$$, $q$ $$ $q$, B'01', X'ff', 1.5e-3 /* a /* b */ c */ -- end",
    ]
}

/// Statements of the dialect that embedded shards take.
fn dialect(input: &[u8]) -> u64 {
    let Ok(text) = std::str::from_utf8(input) else { return 0 };
    let code = |failed: Option<crate::session::Failure>| failed.map(|failure| failure.code);
    let mut made = vec![code(translate(text).err())];
    // Many words make it slow, which their number is limited for: long texts would take all of the time.
    if text.len() < 4 << 10 {
        made.push(code(translate_system(text).err()));
    }
    for part in lex::split(text).unwrap_or_default() {
        assert!(text.contains(part));
        let Ok(tokens) = Tokens::of(part) else { continue };
        if tokens.len() == 0 {
            continue;
        }
        made.push(code(settings::read(&tokens).and_then(Result::err)));
        made.push(code(named::read(&tokens).and_then(Result::err)));
        if tokens.is(0, "COPY") {
            made.push(code(copy::read(&tokens).err()));
        }
    }
    made.truncate(8);
    outcome(&made)
}

fn sessions() -> Vec<Vec<u8>> {
    let query = |text: &str| message(b'Q', &[text.as_bytes(), b"\0"].concat());
    vec![
        query("BEGIN; INSERT INTO t VALUES (1, 'a', 0.5); SAVEPOINT s; SELECT * FROM t ORDER BY id; ROLLBACK"),
        [parse("s", "SELECT id, name FROM t WHERE id = $1"), bind("p", "s", &["1"]), execute("p", 1), sync()].concat(),
        [
            parse("", "SELECT $1::text, 2"),
            message(b'D', b"S\0"),
            bind("", "", &["x"]),
            message(b'D', b"P\0"),
            execute("", 0),
            message(b'C', b"P\0"),
            message(b'H', b""),
            sync(),
        ]
        .concat(),
        [query("COPY t (id, name) FROM STDIN"), message(b'd', b"7\tseven\n"), message(b'c', b""), query("TABLE t")]
            .concat(),
        [query("COPY t TO STDOUT"), query("DELETE FROM t WHERE id > 5"), message(b'X', b"")].concat(),
        [query("SET TimeZone = 'UTC'; SHOW TimeZone"), query("SELECT relname FROM pg_class WHERE relname = 't'")]
            .concat(),
    ]
}

/// A session over a socket: whatever is sent, it ends when its client has gone, and another one is as good as before. All inputs have one server, and find
/// what those before have left there: one that failed need not fail again alone.
fn session(input: &[u8]) -> u64 {
    SERVER.with(|server| {
        block_on(async {
            let mut client = server.connect().await;
            // The server may have closed already.
            client.stream.write_all(input).await.ok();
            client.stream.shutdown().await.ok();
            let mut said = Vec::new();
            client.stream.read_to_end(&mut said).await.ok();
            let mut other = server.connect().await;
            assert_eq!(other.query("SELECT 1").await.0, "TDCZ");
            let (mut rest, mut letters) = (&said[..], Vec::new());
            while let [letter, a, b, c, d, behind @ ..] = rest {
                let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                assert!(length >= 4 && length - 4 <= behind.len(), "a message has no end: {rest:?}");
                letters.push(char::from(*letter));
                rest = &behind[length - 4..];
            }
            letters.dedup();
            letters.truncate(8);
            outcome(&letters)
        })
    })
}
