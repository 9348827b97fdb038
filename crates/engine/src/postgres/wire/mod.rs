//! The messages of PostgreSQL's protocol, in both directions.
//!
//! A message is a letter, a length that counts itself, and a body; only the first one of a connection has no letter. The
//! other end is a stranger, so nothing that it declares is believed: a body is held as it arrives and never set aside
//! for ahead of time, its length is limited by what kind of message it is, and every field is read with a check.
//! What can't be read ends the connection, because where the next message begins is not known any more.
//!
//! - [`frontend`]: what clients send, read (by Pleat as a server) and written (by Pleat as a client).
//! - [`backend`]: what servers send, as far as it matters to one that passes it on.
//!
//! The codec is our own, because it is small and because its limits are its point: `postgres-protocol` reads each message of a
//! server into a value and has no limit to its length, and what is passed on as bytes needs neither.

pub mod backend;
pub mod frontend;

use bytes::{BufMut, BytesMut};

/// A letter and a length.
pub(crate) const HEAD: usize = 5;
/// The length counts itself.
pub(crate) const LENGTH: usize = 4;

/// Write a message, whose length is filled in afterwards.
pub fn message(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let start = out.len();
    out.put_u32(0);
    body(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + LENGTH].copy_from_slice(&length.to_be_bytes());
}

/// A text with a zero at its end. One that has a zero in it ends there.
pub fn text(body: &mut BytesMut, text: &str) {
    let end = text.find('\0').unwrap_or(text.len());
    body.put_slice(&text.as_bytes()[..end]);
    body.put_u8(0);
}

/// Why a connection can't go on.
#[derive(Debug)]
pub enum Broken {
    /// The socket failed, or ended in the middle of a message.
    Socket(std::io::Error),
    /// What came is not the protocol.
    Malformed(String),
    /// A message is larger than a message may be.
    TooLarge { bytes: u64, limit: usize },
    /// The rest of a message did not arrive in time, or the client does not take what it is sent.
    Slow(&'static str),
}

impl Broken {
    /// The SQLSTATE and the words for the client, as far as one is there to hear them.
    pub fn tell(&self) -> Option<(&'static str, String)> {
        match self {
            Broken::Socket(_) => None,
            Broken::Malformed(what) => Some(("08P01", what.clone())),
            Broken::TooLarge { bytes, limit } => {
                Some(("08P01", format!("a message of {bytes} bytes was announced; the limit is {limit}")))
            }
            Broken::Slow(what) => Some(("08P01", (*what).to_owned())),
        }
    }
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Broken::Socket(error)
    }
}
