//! The stream of changes of a slot, below what the changes say.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::server::Stream;
use super::super::wire::backend::{Failure, Head};
use super::super::wire::frontend::Message;
use super::super::wire::{Broken, HEAD, message};
use super::super::{Connection, PostgresError};
use super::pgoutput::Lsn;

/// So much is read at a time.
const READ_BYTES: usize = 64 << 10;
/// After so long without a word the server is asked for one.
pub const SILENCE: Duration = Duration::from_secs(10);
/// Asked so often without an answer, it is given up.
const SILENCES_MAX: u32 = 12;

/// A stream that has begun.
pub struct Replication {
    stream: Box<dyn Stream>,
    input: BytesMut,
    silences: u32,
}

/// What comes in it.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Change(Bytes),
    /// Everything up to there was sent.
    Alive {
        end: Lsn,
        answer: bool,
    },
}

impl Replication {
    /// Read what was committed since the slot was made, or since what was confirmed last.
    pub async fn start(connection: Connection, slot: &str, publication: &str) -> Result<Replication, PostgresError> {
        let (stream, input) = connection.into_stream();
        let mut replication = Replication { stream, input, silences: 0 };
        let mut start = BytesMut::new();
        let text = format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 (proto_version '1', publication_names '\"{publication}\"', messages 'true')"
        );
        Message::Query(text).write(&mut start);
        replication.write(&start).await?;
        loop {
            match replication.message().await? {
                (b'W', _) => return Ok(replication),
                (b'N' | b'S', _) => {}
                (tag, _) => return Err(unexpected(tag)),
            }
        }
    }

    /// What comes next. It may be given up and called again.
    pub async fn next(&mut self) -> Result<Frame, PostgresError> {
        loop {
            match self.message().await? {
                (b'd', body) => return frame(body).map_err(PostgresError::within),
                (b'N' | b'S', _) => {}
                (b'c' | b'C', _) => return Err(PostgresError::Lost("the server has ended the stream".to_owned())),
                (tag, _) => return Err(unexpected(tag)),
            }
        }
    }

    /// The server has said nothing for [`SILENCE`]: it is asked for a word, or given up.
    pub async fn wake(&mut self, confirmed: Lsn) -> Result<(), PostgresError> {
        self.silences += 1;
        match self.silences > SILENCES_MAX {
            true => Err(PostgresError::Lost("the server says nothing in its stream any more".to_owned())),
            false => self.confirm(confirmed, true).await,
        }
    }

    /// The server need not keep what is before this position.
    pub async fn confirm(&mut self, position: Lsn, answer: bool) -> Result<(), PostgresError> {
        let mut out = BytesMut::new();
        message(&mut out, b'd', |body| {
            body.put_u8(b'r');
            // Written, on the disk, applied.
            (0..3).for_each(|_| body.put_u64(position.0));
            // When is of no interest to it.
            body.put_u64(0);
            body.put_u8(u8::from(answer));
        });
        self.write(&out).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), PostgresError> {
        let written = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        written.await.map_err(|error| PostgresError::within(Broken::Socket(error)))
    }

    /// A whole message, held as it arrives.
    async fn message(&mut self) -> Result<(u8, Bytes), PostgresError> {
        loop {
            match Head::read(&self.input).map_err(PostgresError::within)? {
                Some(head) if self.input.len() >= head.bytes => {
                    let mut body = self.input.split_to(head.bytes).freeze();
                    body.advance(HEAD);
                    return match head.tag {
                        b'E' => Err(PostgresError::answered(Failure::read(&body))),
                        tag => Ok((tag, body)),
                    };
                }
                _ => {}
            }
            self.input.reserve(READ_BYTES);
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) => return Err(PostgresError::Lost("the server has closed it".to_owned())),
                Ok(_) => self.silences = 0,
                Err(error) => return Err(PostgresError::within(Broken::Socket(error))),
            }
        }
    }
}

pub(super) fn frame(mut body: Bytes) -> Result<Frame, Broken> {
    let short = || Broken::Malformed("the stream has a message that ends before its fields do".to_owned());
    match body.first() {
        Some(b'w') if body.len() >= 25 => {
            // Where it is in the log, where the log ends, and when that was.
            body.advance(25);
            Ok(Frame::Change(body))
        }
        Some(b'k') if body.len() == 18 => {
            body.advance(1);
            let end = Lsn(body.get_u64());
            body.advance(8);
            Ok(Frame::Alive { end, answer: body.get_u8() != 0 })
        }
        Some(b'w' | b'k') | None => Err(short()),
        Some(other) => Err(Broken::Malformed(format!("the stream has a message of type {other:#04x}"))),
    }
}

fn unexpected(tag: u8) -> PostgresError {
    PostgresError::within(Broken::Malformed(format!("the server sent a message of type {tag:#04x} in a stream")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_read() {
        let change = [&b"w"[..], &[0; 24], b"B..."].concat();
        assert_eq!(frame(change.into()).unwrap(), Frame::Change(Bytes::from_static(b"B...")));
        let alive = [&b"k\0\0\0\x01\0\0\0\x02"[..], &[0; 8], b"\x01"].concat();
        assert_eq!(frame(alive.clone().into()).unwrap(), Frame::Alive { end: Lsn(1 << 32 | 2), answer: true });
        for odd in [&alive[..17], &[&alive[..], b"x"].concat(), &b"w"[..], b"", b"x"] {
            assert!(frame(Bytes::copy_from_slice(odd)).is_err(), "{odd:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_a_frame_or_an_error(bytes: Vec<u8>) {
            let _ = frame(bytes.into());
        }
    }
}
