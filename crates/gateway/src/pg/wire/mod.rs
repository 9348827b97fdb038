//! The messages of the protocol: bytes in, values out, and back.
//!
//! A message is a letter, a length that counts itself, and a body; only the first one of a connection has no letter. The
//! other end is a stranger, so nothing that it declares is believed: a body is held as it arrives and never set aside
//! for ahead of time, its length is limited by what kind of message it is, and every field is read with a check.
//! What can't be read ends the connection, because where the next message begins is not known any more.
//!
//! - [`decode`]: what clients send. Pure.
//! - [`read`]: messages from a socket, within limits of size and time.
//! - [`write`]: what the server sends.
//!
//! The codec is our own, because it is small and because its limits are its point.

pub mod decode;
pub mod read;
pub mod write;

pub use decode::{First, Message, Target, sasl_initial};
pub use read::Reader;
pub use write::Out;

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
