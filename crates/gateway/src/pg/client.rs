//! The other end of a connection: what it sends, what it is sent, and how long that may take.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::cancel::Key;
use super::socket::Socket;
use super::wire::{Broken, Out, Reader};
use crate::session::Failure;
use crate::settings::PG_SEND_BYTES;
use crate::tls::Tls;

/// A client.
pub struct Client {
    pub reader: Reader<Socket>,
    pub out: Out,
    /// How long it may take nothing of what it is sent.
    stall: Duration,
}

const STALLED: Broken = Broken::Slow("the client takes nothing of what it is sent");

/// Why something was not carried out to its end.
#[derive(Debug)]
pub enum Stop {
    /// The client is told, and the connection goes on.
    Failed(Failure),
    /// Partitions have moved since it was planned. Nothing was done, and the client was told nothing: it is planned again.
    Stale,
    Broken(Broken),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Failed(failure)
    }
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        Stop::Broken(broken)
    }
}

impl Client {
    pub fn new(stream: TcpStream, large: std::sync::Arc<tokio::sync::Semaphore>, stall: Duration) -> Self {
        Self { reader: Reader::new(Socket::Plain(stream), large), out: Out::default(), stall }
    }

    /// Agree to encrypt, and go on in TLS.
    pub async fn encrypt(&mut self, tls: &Tls) -> Result<(), Broken> {
        // They would be taken for the client's, and anybody between it and us can have put them there (CVE-2021-23214).
        if self.reader.is_ahead() {
            let what = "unencrypted bytes came behind the request for encryption: somebody may be in between";
            return Err(Broken::Malformed(what.to_owned()));
        }
        self.out.accept_encryption();
        self.flush().await?;
        match std::mem::replace(self.reader.stream(), Socket::Gone) {
            Socket::Plain(stream) => {
                *self.reader.stream() = Socket::Tls(Box::new(tls.acceptor.accept(stream).await?));
                Ok(())
            }
            Socket::Tls(_) | Socket::Gone => Err(Broken::Malformed("encryption was asked for twice".to_owned())),
        }
    }

    pub fn is_encrypted(&mut self) -> bool {
        matches!(self.reader.stream(), Socket::Tls(_))
    }

    /// Send all that was gathered.
    pub async fn flush(&mut self) -> Result<(), Broken> {
        let mut bytes = self.out.take();
        while !bytes.is_empty() {
            let wrote = tokio::time::timeout(self.stall, self.reader.stream().write_buf(&mut bytes)).await;
            if wrote.map_err(|_| STALLED)?? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into());
            }
        }
        // What TLS has taken is not on its way yet.
        tokio::time::timeout(self.stall, self.reader.stream().flush()).await.map_err(|_| STALLED)??;
        Ok(())
    }

    /// Send what was gathered if it is much.
    pub async fn flush_much(&mut self) -> Result<(), Broken> {
        match self.out.len() >= PG_SEND_BYTES {
            true => self.flush().await,
            false => Ok(()),
        }
    }

    /// Close the connection in order, as far as the client lets us.
    pub async fn close(mut self) {
        let stall = self.stall;
        let closing = async {
            self.flush().await.ok();
            self.reader.stream().shutdown().await.ok();
        };
        // Whether it heard the last words is its own affair.
        let _ = tokio::time::timeout(stall, closing).await;
    }

    /// Do something that may be given up, unless the client cancels it or goes away.
    pub async fn unless_cancelled<T>(&mut self, key: &Key, work: impl Future<Output = T>) -> Result<T, Stop> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = key.requested() => {
                Err(Failure::new("57014", "the statement was cancelled by its user", "").into())
            }
            () = self.reader.gone() => {
                Err(Broken::Socket(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)).into())
            }
        }
    }
}
