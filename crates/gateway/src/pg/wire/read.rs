//! Messages from a socket.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Broken;
use super::{First, Message, may_be_large};
use crate::settings::{
    BODY_TIME_MAX, PG_AHEAD_BYTES_MAX, PG_FIRST_BYTES_MAX, PG_MESSAGE_BYTES_MAX, PG_PROOF_BYTES_MAX,
    PG_SMALL_MESSAGE_BYTES_MAX,
};

/// A letter and a length.
const HEAD: usize = 5;
/// The length counts itself.
const LENGTH: usize = 4;

/// Reads messages. What was read of one is kept when a call is given up, so every call may be.
pub struct Reader<R> {
    stream: R,
    buffer: BytesMut,
    /// Places for large messages, over all connections of the node.
    large: Arc<Semaphore>,
    /// The place of the message that is being read, or was read last.
    place: Option<OwnedSemaphorePermit>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(stream: R, large: Arc<Semaphore>) -> Self {
        Self { stream, buffer: BytesMut::new(), large, place: None }
    }

    /// The next message before the session. `None`: the client is gone.
    pub async fn first(&mut self) -> Result<Option<First>, Broken> {
        if !self.has(LENGTH).await? {
            return Ok(None);
        }
        let length = self.length_at(0);
        let length = limited(length, PG_FIRST_BYTES_MAX)?;
        self.need(length).await?;
        let mut body = self.buffer.split_to(length).freeze();
        body.advance(LENGTH);
        First::read(body).map(Some)
    }

    /// What a client proves itself with: no other message may come. `None`: the client is gone.
    pub async fn proof(&mut self) -> Result<Option<Bytes>, Broken> {
        match self.peek().await? {
            None => return Ok(None),
            Some(b'p') => {}
            Some(other) => {
                return Err(Broken::Malformed(format!(
                    "a message of type {other:#04x} came before the password's proof"
                )));
            }
        }
        self.need(HEAD).await?;
        let length = limited(self.length_at(1), PG_PROOF_BYTES_MAX)?;
        self.need(1 + length).await?;
        let mut body = self.buffer.split_to(1 + length).freeze();
        body.advance(HEAD);
        Ok(Some(body))
    }

    /// Whether bytes were read that belong to no message yet.
    pub fn is_ahead(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// What it reads from.
    pub fn stream(&mut self) -> &mut R {
        &mut self.stream
    }

    /// The letter of the next message, which is not taken yet. `None`: the client is gone.
    pub async fn peek(&mut self) -> Result<Option<u8>, Broken> {
        Ok(self.has(1).await?.then(|| self.buffer[0]))
    }

    /// The last message is dealt with: its place is another's.
    pub fn release(&mut self) {
        self.place = None;
    }

    /// The next message. `None`: the client is gone. The time between two messages is not limited.
    pub async fn message(&mut self) -> Result<Option<Message>, Broken> {
        self.release();
        if self.buffer.is_empty() && self.buffer.capacity() > PG_SMALL_MESSAGE_BYTES_MAX {
            // What a large message needed is not kept for as long as the connection idles.
            self.buffer = BytesMut::new();
        }
        let Some(tag) = self.peek().await? else { return Ok(None) };
        let body = tokio::time::timeout(BODY_TIME_MAX, self.body(tag)).await;
        let body = body.map_err(|_| Broken::Slow("the rest of a message did not arrive in time"))??;
        Message::read(tag, body).map(Some)
    }

    async fn body(&mut self, tag: u8) -> Result<Bytes, Broken> {
        let large = may_be_large(tag)?;
        self.need(HEAD).await?;
        let limit = if large { PG_MESSAGE_BYTES_MAX } else { PG_SMALL_MESSAGE_BYTES_MAX };
        let length = limited(self.length_at(1), limit)?;
        if length > PG_SMALL_MESSAGE_BYTES_MAX {
            let place = self.large.clone().acquire_owned().await;
            self.place = place.ok();
        }
        self.need(1 + length).await?;
        let mut body = self.buffer.split_to(1 + length).freeze();
        body.advance(HEAD);
        Ok(body)
    }

    /// Wait until the client is gone, reading ahead a little. For ever, when it has sent much ahead.
    pub async fn gone(&mut self) {
        while self.buffer.len() < PG_AHEAD_BYTES_MAX {
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        std::future::pending().await
    }

    fn length_at(&self, at: usize) -> u32 {
        let mut bytes = [0; LENGTH];
        bytes.copy_from_slice(&self.buffer[at..at + LENGTH]);
        u32::from_be_bytes(bytes)
    }

    /// Whether so many bytes are there; false when the stream ended before any of them.
    async fn has(&mut self, bytes: usize) -> Result<bool, Broken> {
        while self.buffer.len() < bytes {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(false),
                    false => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
                };
            }
        }
        Ok(true)
    }

    async fn need(&mut self, bytes: usize) -> Result<(), Broken> {
        match self.has(bytes).await? {
            true => Ok(()),
            false => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
        }
    }
}

fn limited(length: u32, limit: usize) -> Result<usize, Broken> {
    let bytes = usize::try_from(length).unwrap_or(usize::MAX);
    match bytes {
        0..LENGTH => Err(Broken::Malformed(format!("a message can't have a length of {length}"))),
        bytes if bytes > limit => Err(Broken::TooLarge { bytes: u64::from(length), limit }),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reader(bytes: &[u8]) -> Reader<&[u8]> {
        Reader::new(bytes, Arc::new(Semaphore::new(1)))
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn messages_follow_each_other_to_the_end() {
        let mut reader = reader(b"Q\0\0\0\x06a\0S\0\0\0\x04");
        block_on(async {
            assert_eq!(reader.message().await.unwrap(), Some(Message::Query("a".to_owned())));
            assert_eq!(reader.peek().await.unwrap(), Some(b'S'));
            assert_eq!(reader.message().await.unwrap(), Some(Message::Sync));
            assert_eq!(reader.message().await.unwrap(), None);
        });
    }

    #[test]
    fn no_length_is_believed() {
        for head in [&b"Q\x7f\xff\xff\xff"[..], b"Q\xff\xff\xff\xff", b"S\0\x02\0\0", b"Q\0\0\0\x03", b"Q\0\0\0\0"] {
            let refused = block_on(reader(head).message()).unwrap_err();
            assert!(refused.tell().is_some(), "{head:?}");
        }
        assert!(block_on(reader(b"\x7f\xff\xff\xff").first()).unwrap_err().tell().is_some());
        assert!(block_on(reader(b"Q\0\0\0\x08ab").message()).unwrap_err().tell().is_none(), "it ends halfway");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_end_in_an_error_or_at_their_end(bytes: Vec<u8>) {
            let mut messages = reader(&bytes);
            let mut proofs = reader(&bytes);
            block_on(async {
                while let Ok(Some(_)) = messages.message().await {}
                while let Ok(Some(_)) = proofs.proof().await {}
            });
        }
    }
}
