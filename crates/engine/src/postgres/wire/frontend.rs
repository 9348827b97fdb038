//! What clients send, read field by field and written the same way.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Broken, LENGTH, message, text};

/// The protocol that is spoken: 3.0.
const MAJOR: u16 = 3;
/// A major version that stands for requests before the start-up message.
const REQUESTS: u16 = 1234;
const CANCEL: u16 = 5678;
const SSL: u16 = 5679;
const GSS: u16 = 5680;

/// What may come before a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First {
    Ssl,
    Gss,
    Cancel {
        process: u32,
        secret: u32,
    },
    Startup {
        /// Of the protocol.
        minor: u16,
        parameters: Vec<(String, String)>,
    },
    /// A protocol that is not spoken.
    Version {
        major: u16,
        minor: u16,
    },
}

/// What a Describe or a Close is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Statement(String),
    Portal(String),
}

/// What comes in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Query(String),
    Parse { name: String, text: String, types: Vec<u32> },
    Bind(Bind),
    Describe(Target),
    Execute { portal: String, rows: u32 },
    Close(Target),
    Flush,
    Sync,
    CopyData(Bytes),
    CopyDone,
    CopyFail(String),
    Terminate,
}

/// A portal's making.
#[derive(Default, Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    pub portal: String,
    pub statement: String,
    /// Of the values: none, one for all, or one for each.
    pub formats: Vec<i16>,
    pub values: Vec<Option<Bytes>>,
    /// Of the results: the same.
    pub results: Vec<i16>,
}

impl Message {
    /// Read the body of a message.
    pub fn read(tag: u8, body: Bytes) -> Result<Message, Broken> {
        let mut body = Body(body);
        let message = match tag {
            b'Q' => Message::Query(body.text()?),
            b'P' => {
                let (name, text) = (body.text()?, body.text()?);
                Message::Parse { name, text, types: body.list(Body::u32)? }
            }
            b'B' => Message::Bind(Bind {
                portal: body.text()?,
                statement: body.text()?,
                formats: body.list(Body::i16)?,
                values: body.list(Body::value)?,
                results: body.list(Body::i16)?,
            }),
            b'D' => Message::Describe(body.target()?),
            b'C' => Message::Close(body.target()?),
            b'E' => Message::Execute { portal: body.text()?, rows: body.u32()? },
            b'H' => Message::Flush,
            b'S' => Message::Sync,
            b'X' => Message::Terminate,
            b'd' => Message::CopyData(std::mem::take(&mut body.0)),
            b'c' => Message::CopyDone,
            b'f' => Message::CopyFail(body.text()?),
            other => return Err(unknown(other)),
        };
        match body.0.is_empty() {
            true => Ok(message),
            false => Err(Broken::Malformed(format!("a message {:?} has bytes after its end", char::from(tag)))),
        }
    }
}

impl Message {
    /// Write it, letter and length included.
    pub fn write(&self, out: &mut BytesMut) {
        match self {
            Message::Query(query) => message(out, b'Q', |body| text(body, query)),
            Message::Parse { name, text: statement, types } => message(out, b'P', |body| {
                text(body, name);
                text(body, statement);
                list(body, types, |body, oid| body.put_u32(*oid));
            }),
            Message::Bind(bind) => message(out, b'B', |body| bind.write(body)),
            Message::Describe(target) => message(out, b'D', |body| target.write(body)),
            Message::Close(target) => message(out, b'C', |body| target.write(body)),
            Message::Execute { portal, rows } => message(out, b'E', |body| {
                text(body, portal);
                body.put_u32(*rows);
            }),
            Message::Flush => message(out, b'H', |_| {}),
            Message::Sync => message(out, b'S', |_| {}),
            Message::CopyData(data) => message(out, b'd', |body| body.put_slice(data)),
            Message::CopyDone => message(out, b'c', |_| {}),
            Message::CopyFail(why) => message(out, b'f', |body| text(body, why)),
            Message::Terminate => message(out, b'X', |_| {}),
        }
    }
}

impl Bind {
    fn write(&self, body: &mut BytesMut) {
        text(body, &self.portal);
        text(body, &self.statement);
        list(body, &self.formats, |body, format| body.put_i16(*format));
        list(body, &self.values, |body, value| match value {
            Some(value) => {
                body.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
                body.put_slice(value);
            }
            None => body.put_u32(u32::MAX),
        });
        list(body, &self.results, |body, format| body.put_i16(*format));
    }
}

impl Target {
    fn write(&self, body: &mut BytesMut) {
        let (letter, name) = match self {
            Target::Statement(name) => (b'S', name),
            Target::Portal(name) => (b'P', name),
        };
        body.put_u8(letter);
        text(body, name);
    }
}

/// A number, and so many fields. What a message can hold of them is what one was read with.
fn list<T>(body: &mut BytesMut, fields: &[T], write: impl Fn(&mut BytesMut, &T)) {
    let count = u16::try_from(fields.len()).unwrap_or(u16::MAX);
    body.put_u16(count);
    fields.iter().take(usize::from(count)).for_each(|field| write(body, field));
}

impl First {
    /// Write it. It has no letter.
    pub fn write(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u32(0);
        let version = |out: &mut BytesMut, major: u16, minor: u16| {
            out.put_u16(major);
            out.put_u16(minor);
        };
        match self {
            First::Ssl => version(out, REQUESTS, SSL),
            First::Gss => version(out, REQUESTS, GSS),
            First::Cancel { process, secret } => {
                version(out, REQUESTS, CANCEL);
                out.put_u32(*process);
                out.put_u32(*secret);
            }
            First::Startup { minor, parameters } => {
                version(out, MAJOR, *minor);
                for (name, value) in parameters {
                    text(out, name);
                    text(out, value);
                }
                out.put_u8(0);
            }
            First::Version { major, minor } => version(out, *major, *minor),
        }
        let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
        out[start..start + LENGTH].copy_from_slice(&length.to_be_bytes());
    }
}

/// Write a client's first answer to being asked for a proof: see [`sasl_initial`].
pub fn write_sasl_initial(out: &mut BytesMut, mechanism: &str, begins: &str) {
    message(out, b'p', |body| {
        text(body, mechanism);
        body.put_u32(u32::try_from(begins.len()).unwrap_or(u32::MAX));
        body.put_slice(begins.as_bytes());
    });
}

/// Write what follows it.
pub fn write_sasl(out: &mut BytesMut, data: &str) {
    message(out, b'p', |body| body.put_slice(data.as_bytes()));
}

/// Whether a message may be large. A length is looked at before any of the body is held.
pub fn may_be_large(tag: u8) -> Result<bool, Broken> {
    match tag {
        b'Q' | b'P' | b'B' | b'd' => Ok(true),
        b'D' | b'C' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f' => Ok(false),
        other => Err(unknown(other)),
    }
}

fn unknown(tag: u8) -> Broken {
    Broken::Malformed(format!("a message of type {tag:#04x} is not one that a client sends here"))
}

impl First {
    /// Read the body of a message before the session.
    pub fn read(body: Bytes) -> Result<First, Broken> {
        let mut body = Body(body);
        let version = body.u32()?;
        let [a, b, c, d] = version.to_be_bytes();
        let (major, minor) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let first = match (major, minor) {
            (REQUESTS, SSL) => First::Ssl,
            (REQUESTS, GSS) => First::Gss,
            (REQUESTS, CANCEL) => First::Cancel { process: body.u32()?, secret: body.u32()? },
            (MAJOR, minor) => First::Startup { minor, parameters: body.parameters()? },
            (major, minor) => return Ok(First::Version { major, minor }),
        };
        match body.0.is_empty() {
            true => Ok(first),
            false => Err(Broken::Malformed("the first message has bytes after its end".to_owned())),
        }
    }
}

/// A client's first answer to being asked for a proof: the mechanism that it has chosen, and what that begins with.
pub fn sasl_initial(body: Bytes) -> Result<(String, Bytes), Broken> {
    let mut body = Body(body);
    let mechanism = body.text()?;
    let begins = body.value()?;
    match (begins, body.0.is_empty()) {
        (Some(begins), true) => Ok((mechanism, begins)),
        (None, _) => Err(Broken::Malformed("a proof has to begin with the client's message".to_owned())),
        (_, false) => Err(Broken::Malformed("a proof has bytes after its end".to_owned())),
    }
}

/// What is left of a body.
pub(super) struct Body(pub(super) Bytes);

impl Body {
    fn need(&self, bytes: usize) -> Result<(), Broken> {
        match self.0.len() >= bytes {
            true => Ok(()),
            false => Err(Broken::Malformed("a message ends before its fields do".to_owned())),
        }
    }

    pub(super) fn u32(&mut self) -> Result<u32, Broken> {
        self.need(4)?;
        Ok(self.0.get_u32())
    }

    pub(super) fn skip(&mut self, bytes: usize) -> Result<(), Broken> {
        self.need(bytes)?;
        self.0.advance(bytes);
        Ok(())
    }

    fn i16(&mut self) -> Result<i16, Broken> {
        self.need(2)?;
        Ok(self.0.get_i16())
    }

    /// A text with a zero at its end.
    pub(super) fn text(&mut self) -> Result<String, Broken> {
        let end = self.0.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| Broken::Malformed("a text in a message has no end".to_owned()))?;
        let text = String::from_utf8(self.0.split_to(end).to_vec());
        self.0.advance(1);
        text.map_err(|_| Broken::Malformed("a text in a message is not UTF-8".to_owned()))
    }

    /// So many fields as a number in front of them says.
    pub(super) fn list<T>(&mut self, field: impl Fn(&mut Self) -> Result<T, Broken>) -> Result<Vec<T>, Broken> {
        // Unsigned: drivers send up to 65,535 values.
        let count = u16::from_be_bytes(self.i16()?.to_be_bytes());
        (0..count).map(|_| field(self)).collect()
    }

    /// A value of a parameter; `None` is NULL.
    pub(super) fn value(&mut self) -> Result<Option<Bytes>, Broken> {
        let length = self.u32()?;
        if length == u32::MAX {
            return Ok(None);
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.need(length)?;
        Ok(Some(self.0.split_to(length)))
    }

    fn target(&mut self) -> Result<Target, Broken> {
        self.need(1)?;
        match self.0.get_u8() {
            b'S' => Ok(Target::Statement(self.text()?)),
            b'P' => Ok(Target::Portal(self.text()?)),
            _ => Err(Broken::Malformed("a message is about neither a statement nor a portal".to_owned())),
        }
    }

    /// Names and values, to an empty name.
    fn parameters(&mut self) -> Result<Vec<(String, String)>, Broken> {
        let mut found = Vec::new();
        loop {
            let name = self.text()?;
            if name.is_empty() {
                return Ok(found);
            }
            found.push((name, self.text()?));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(tag: u8, body: &[u8]) -> Result<Message, Broken> {
        Message::read(tag, Bytes::copy_from_slice(body))
    }

    #[test]
    fn the_fields_of_messages() {
        assert_eq!(read(b'Q', b"SELECT 1\0").unwrap(), Message::Query("SELECT 1".to_owned()));
        assert_eq!(
            read(b'P', b"a\0SELECT $1\0\0\x01\0\0\0\x14").unwrap(),
            Message::Parse { name: "a".to_owned(), text: "SELECT $1".to_owned(), types: vec![20] }
        );
        let bind = read(b'B', b"\0s\0\0\x01\0\x01\0\x02\0\0\0\x02hi\xff\xff\xff\xff\0\0").unwrap();
        let wanted = Bind {
            portal: String::new(),
            statement: "s".to_owned(),
            formats: vec![1],
            values: vec![Some(Bytes::from_static(b"hi")), None],
            results: vec![],
        };
        assert_eq!(bind, Message::Bind(wanted));
        assert_eq!(read(b'D', b"Pp\0").unwrap(), Message::Describe(Target::Portal("p".to_owned())));
        assert_eq!(read(b'E', b"\0\0\0\0\x05").unwrap(), Message::Execute { portal: String::new(), rows: 5 });
    }

    #[test]
    fn what_is_cut_short_too_long_or_no_message_is_refused() {
        let bind = b"\0s\0\0\x01\0\x01\0\x01\0\0\0\x02hi\0\0";
        for end in 0..bind.len() {
            assert!(read(b'B', &bind[..end]).is_err(), "{end}");
        }
        assert!(read(b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff\0\0").is_err(), "a value longer than the message");
        for (tag, body) in
            [(b'S', &b"x"[..]), (b'Q', b"no end"), (b'Q', b"\xff\0"), (b'D', b"X\0"), (b'?', b""), (0, b"")]
        {
            assert!(read(tag, body).is_err(), "{tag} {body:?}");
        }
    }

    #[test]
    fn how_a_proof_begins() {
        let begin = |bytes: &[u8]| sasl_initial(Bytes::copy_from_slice(bytes));
        let (mechanism, message) = begin(b"SCRAM-SHA-256\0\0\0\0\x03n,,").unwrap();
        assert_eq!((mechanism.as_str(), &message[..]), ("SCRAM-SHA-256", &b"n,,"[..]));
        for odd in [&b""[..], b"X", b"X\0", b"X\0\xff\xff\xff\xff", b"X\0\0\0\0\x09n,,", b"X\0\0\0\0\x01n,,"] {
            assert!(begin(odd).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn what_comes_first() {
        let first = |words: &[u8]| First::read(Bytes::copy_from_slice(words));
        assert_eq!(first(b"\x04\xd2\x16\x2f").unwrap(), First::Ssl);
        assert_eq!(first(b"\x04\xd2\x16\x30").unwrap(), First::Gss);
        let cancel = first(b"\x04\xd2\x16\x2e\0\0\0\x07\0\0\0\x09").unwrap();
        assert_eq!(cancel, First::Cancel { process: 7, secret: 9 });
        let startup = first(b"\0\x03\0\0user\0me\0\0").unwrap();
        let parameters = vec![("user".to_owned(), "me".to_owned())];
        assert_eq!(startup, First::Startup { minor: 0, parameters });
        assert_eq!(first(b"\0\x02\0\0user\0").unwrap(), First::Version { major: 2, minor: 0 });
        for odd in [&b""[..], b"\0\x03", b"\0\x03\0\0user\0", b"\0\x03\0\0\0more", b"\x04\xd2\x16\x2e\0\0\0\x07"] {
            assert!(first(odd).is_err(), "{odd:?}");
        }
    }

    fn name() -> impl Strategy<Value = String> {
        "[^\0]{0,8}"
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let bytes = || any::<Vec<u8>>().prop_map(Bytes::from);
        let target = || {
            (any::<bool>(), name()).prop_map(|(statement, name)| match statement {
                true => Target::Statement(name),
                false => Target::Portal(name),
            })
        };
        let bind = (
            name(),
            name(),
            any::<Vec<i16>>(),
            prop::collection::vec(prop::option::of(bytes()), 0..5),
            any::<Vec<i16>>(),
        );
        prop_oneof![
            name().prop_map(Message::Query),
            (name(), name(), any::<Vec<u32>>()).prop_map(|(name, text, types)| Message::Parse { name, text, types }),
            bind.prop_map(|(portal, statement, formats, values, results)| {
                Message::Bind(Bind { portal, statement, formats, values, results })
            }),
            target().prop_map(Message::Describe),
            target().prop_map(Message::Close),
            (name(), any::<u32>()).prop_map(|(portal, rows)| Message::Execute { portal, rows }),
            bytes().prop_map(Message::CopyData),
            name().prop_map(Message::CopyFail),
            prop::sample::select(vec![Message::Flush, Message::Sync, Message::CopyDone, Message::Terminate]),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(wanted in any_message(), before in 0usize..3) {
            let mut out = BytesMut::from(&b"xyz"[..before]);
            wanted.write(&mut out);
            let mut written = out.freeze().split_off(before);
            let tag = written.get_u8();
            prop_assert_eq!(usize::try_from(written.get_u32()).unwrap(), LENGTH + written.len());
            prop_assert_eq!(Message::read(tag, written).unwrap(), wanted);
        }

        #[test]
        fn what_comes_first_is_read_back(parameters in prop::collection::vec(("[^\0]{1,8}", name()), 0..3), process: u32, secret: u32) {
            for wanted in [First::Ssl, First::Gss, First::Cancel { process, secret }, First::Startup { minor: 0, parameters }] {
                let mut out = BytesMut::new();
                wanted.write(&mut out);
                let mut written = out.freeze();
                prop_assert_eq!(usize::try_from(written.get_u32()).unwrap(), LENGTH + written.len());
                prop_assert_eq!(First::read(written).unwrap(), wanted);
            }
        }

        #[test]
        fn arbitrary_bytes_are_a_message_or_an_error(tag: u8, body: Vec<u8>) {
            let _ = read(tag, &body);
            let _ = sasl_initial(Bytes::copy_from_slice(&body));
            let _ = First::read(Bytes::from(body));
        }
    }
}
