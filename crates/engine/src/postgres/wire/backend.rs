//! What servers send, as far as it matters to one that passes it on: where a message ends, and the fields of a few.

use std::fmt;

use bytes::Bytes;

use super::frontend::Body;
use super::{Broken, HEAD, LENGTH};

/// The longest message that PostgreSQL makes, in bytes. It is passed on as it comes and never held whole.
const BYTES_MAX: usize = 0x3fff_ffff;
/// Messages that are looked into have to be smaller, errors excepted: of those only the beginning is looked at.
pub const SMALL_BYTES_MAX: usize = 64 << 10;
/// So much of an error is looked at. Its code comes first.
const ERROR_BYTES: usize = 1 << 10;

/// Where a message ends: its letter, and its length with the letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub tag: u8,
    pub bytes: usize,
}

impl Head {
    /// The head of the message that `bytes` begin with, once it is there whole.
    pub fn read(bytes: &[u8]) -> Result<Option<Head>, Broken> {
        let Some((tag, length)) = bytes.get(..HEAD).and_then(<[u8]>::split_first) else { return Ok(None) };
        let length = <[u8; LENGTH]>::try_from(length).map_or(0, u32::from_be_bytes);
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        let limit = if Self::is_whole(*tag) { SMALL_BYTES_MAX } else { BYTES_MAX };
        match bytes {
            0..LENGTH => Err(Broken::Malformed(format!("a message can't have a length of {length}"))),
            bytes if bytes > limit => Err(Broken::TooLarge { bytes: u64::from(length), limit }),
            bytes => Ok(Some(Head { tag: *tag, bytes: bytes + 1 })),
        }
    }

    /// Whether messages of this kind are looked into, and so held until they are there whole. The others are rows, what describes them,
    /// and what people read: they may be long.
    fn is_whole(tag: u8) -> bool {
        !matches!(tag, b'D' | b'd' | b'T' | b't' | b'E' | b'N' | b'A')
    }

    /// So many bytes have to be there before the message is dealt with.
    pub fn needed(self) -> usize {
        match self.tag {
            tag if Self::is_whole(tag) => self.bytes,
            b'E' => self.bytes.min(ERROR_BYTES),
            _ => HEAD,
        }
    }
}

/// A SQLSTATE.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SqlState([u8; 5]);

impl SqlState {
    pub const UNKNOWN: SqlState = SqlState(*b"XX000");
    /// `invalid_authorization_specification`.
    pub const NOT_LET_IN: SqlState = SqlState(*b"28000");

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an error says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The connection ends.
    pub fatal: bool,
    pub code: SqlState,
    /// For people; cut where it is long.
    pub message: String,
    /// More of it; empty where there is none.
    pub detail: String,
}

impl Failure {
    /// Read the beginning of an error's body.
    pub fn read(mut body: &[u8]) -> Failure {
        let (message, detail) = (String::new(), String::new());
        let mut failure = Failure { fatal: false, code: SqlState::UNKNOWN, message, detail };
        while let Some((&letter @ 1.., rest)) = body.split_first() {
            let end = rest.iter().position(|byte| *byte == 0);
            let value = &rest[..end.unwrap_or(rest.len())];
            match letter {
                // The one that is not translated.
                b'V' => failure.fatal = matches!(value, b"FATAL" | b"PANIC"),
                b'C' => failure.code = <[u8; 5]>::try_from(value).map_or(SqlState::UNKNOWN, SqlState),
                b'M' => failure.message = String::from_utf8_lossy(value).into_owned(),
                b'D' => failure.detail = String::from_utf8_lossy(value).into_owned(),
                _ => {}
            }
            body = end.and_then(|end| rest.get(end + 1..)).unwrap_or_default();
        }
        failure
    }
}

/// Whether a transaction is open on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Idle,
    Open,
    /// It has failed, and takes nothing but its end.
    Failed,
}

impl Status {
    /// Read the body of a ReadyForQuery.
    pub fn read(body: &[u8]) -> Result<Status, Broken> {
        match body {
            b"I" => Ok(Status::Idle),
            b"T" => Ok(Status::Open),
            b"E" => Ok(Status::Failed),
            other => Err(Broken::Malformed(format!("{other:?} is no state of a transaction"))),
        }
    }
}

/// What a server asks for before it lets somebody in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Nothing,
    /// A proof by one of these mechanisms.
    Sasl(Vec<String>),
    Continue(Bytes),
    Final(Bytes),
    /// By its number.
    Other(u32),
}

impl Asked {
    pub fn read(body: Bytes) -> Result<Asked, Broken> {
        let mut body = Body(body);
        match body.u32()? {
            0 => Ok(Asked::Nothing),
            10 => {
                let mut mechanisms = Vec::new();
                loop {
                    match body.text()? {
                        name if name.is_empty() => return Ok(Asked::Sasl(mechanisms)),
                        name => mechanisms.push(name),
                    }
                }
            }
            11 => Ok(Asked::Continue(body.0)),
            12 => Ok(Asked::Final(body.0)),
            other => Ok(Asked::Other(other)),
        }
    }
}

/// A ParameterStatus: a name and a value.
pub fn parameter(body: Bytes) -> Result<(String, String), Broken> {
    let mut body = Body(body);
    Ok((body.text()?, body.text()?))
}

/// The names in a RowDescription.
pub fn columns(body: Bytes) -> Result<Vec<String>, Broken> {
    Body(body).list(|body| {
        let name = body.text()?;
        // Of a table and its column, of its type, and how that is sent.
        body.skip(18)?;
        Ok(name)
    })
}

/// The values of a DataRow that are texts. `None` is NULL.
pub fn values(body: Bytes) -> Result<Vec<Option<String>>, Broken> {
    Body(body).list(|body| {
        let value = body.value()?.map(|value| String::from_utf8(value.to_vec()));
        value.transpose().map_err(|_| Broken::Malformed("a value is not UTF-8".to_owned()))
    })
}

/// What a CommandComplete says.
pub fn tag(body: Bytes) -> Result<String, Broken> {
    Body(body).text()
}

/// A BackendKeyData: the number of the server's process, and the secret that a cancel request needs.
pub fn key(body: Bytes) -> Result<(u32, u32), Broken> {
    let mut body = Body(body);
    Ok((body.u32()?, body.u32()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn no_length_is_believed() {
        for odd in [&b"D\xff\xff\xff\xff"[..], b"D\x40\0\0\0", b"Z\0\x02\0\0", b"C\x7f\xff\xff\xff", b"D\0\0\0\x03"] {
            assert!(Head::read(odd).is_err(), "{odd:?}");
        }
        assert_eq!(Head::read(b"Z\0\0\0").unwrap(), None);
        assert_eq!(Head::read(b"Z\0\0\0\x05I").unwrap(), Some(Head { tag: b'Z', bytes: 6 }));
        assert_eq!(Head::read(b"D\x3f\0\0\0").unwrap().unwrap().needed(), HEAD, "a large row is passed on as it comes");
    }

    #[test]
    fn what_an_error_says() {
        let fatal = Failure::read(b"SFATAL\0VFATAL\0C57P01\0Mterminating\0Fx.c\0\0");
        assert_eq!((fatal.fatal, fatal.code.as_str(), fatal.message.as_str()), (true, "57P01", "terminating"));
        let translated = Failure::read(b"SFEHLER\0VERROR\0C42P01\0Mno such ta");
        assert_eq!(
            (translated.fatal, translated.code.as_str(), translated.message.as_str()),
            (false, "42P01", "no such ta")
        );
        assert_eq!(Failure::read(b"Ctoolong\0\0").code, SqlState::UNKNOWN);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Head::read(&bytes).map(|head| head.map(Head::needed));
            let _ = Failure::read(&bytes);
            let _ = Status::read(&bytes);
            let bytes = Bytes::from(bytes);
            let _ = Asked::read(bytes.clone());
            let _ = parameter(bytes.clone());
            let _ = (columns(bytes.clone()), values(bytes.clone()), tag(bytes.clone()));
            let _ = key(bytes);
        }
    }
}
