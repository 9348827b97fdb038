//! Ending what a server runs, by a connection of its own.
//!
//! A cancel request names the server's process, not the statement. So one that arrives late would end what somebody else's transaction runs, on
//! the connection that was passed on. A connection therefore has *turns*: a canceller is good for the one that it was made in, and a
//! connection is not passed on while a request for it is on its way; it is closed then.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::server::Address;
use super::wire::frontend::First;

/// How long a request may take, connecting included.
const REQUEST_MAX: Duration = Duration::from_secs(5);

/// Whose turn it is on a connection.
pub struct Turn {
    address: Address,
    process: u32,
    secret: u32,
    /// Held while a request is on its way.
    current: Arc<Mutex<u64>>,
    number: u64,
}

/// Ends what a connection runs. It is no good any more once the connection is somebody else's.
#[derive(Clone)]
pub struct Canceller {
    address: Address,
    process: u32,
    secret: u32,
    current: Arc<Mutex<u64>>,
    number: u64,
}

impl Turn {
    pub fn new(address: Address, process: u32, secret: u32) -> Turn {
        Turn { address, process, secret, current: Arc::new(Mutex::new(0)), number: 0 }
    }

    pub fn canceller(&self) -> Canceller {
        let Turn { address, process, secret, current, number } = self;
        let (address, current) = (address.clone(), current.clone());
        Canceller { address, process: *process, secret: *secret, current, number: *number }
    }

    /// The turn is over. False: a request is on its way, and nobody can tell whom it would hit.
    pub fn end(&mut self) -> bool {
        let Ok(mut current) = self.current.try_lock() else { return false };
        *current += 1;
        self.number = *current;
        true
    }
}

impl Canceller {
    /// The number of the session's process on its server.
    pub fn process(&self) -> u32 {
        self.process
    }

    /// Ask the server, and wait until it has taken the request. Whether anything ends is told by the connection itself.
    pub async fn cancel(&self) {
        let current = self.current.lock().await;
        if *current == self.number {
            let _ = timeout(REQUEST_MAX, self.request()).await;
        }
    }

    async fn request(&self) -> Option<()> {
        let mut stream = self.address.open().await.ok()?.stream;
        let mut request = BytesMut::new();
        First::Cancel { process: self.process, secret: self.secret }.write(&mut request);
        stream.write_all(&request).await.ok()?;
        stream.flush().await.ok()?;
        // The server closes the connection when it has signalled its process.
        stream.read_u8().await.ok().map(drop)
    }
}
