//! Connections: the loop that accepts them, and what a stranger may make it hold.
//!
//! # The problem
//!
//! One address serves applications, browsers and, over HTTP/2, the other nodes. A client that opens connections and
//! sends nothing, or one byte a minute, costs a socket and memory for as long as it likes, and a node that is out of
//! sockets can't be reached by its own cluster. Bodies are limited where they are read
//! ([`http`](crate::http)); everything before them is limited here.
//!
//! # The mechanism
//!
//! - The first bytes, which tell HTTP/1 from HTTP/2, are awaited for [`HEAD_TIME_MAX`] at most. hyper's own detection
//!   waits for ever, so the bytes are read here and given back to it.
//! - HTTP/1: a request's head must be complete [`HEAD_TIME_MAX`] after the connection began, or after the answer before
//!   it. So the limit is also how long a connection may idle, and is longer than the minute for which
//!   proxies usually keep theirs.
//! - HTTP/2: a connection may idle, but its other end must answer pings. A head may not be larger than [`HEAD_BYTES_MAX`].
//! - So many connections at most; further ones wait in the kernel's backlog until one ends.
//!
//! # Caveats
//!
//! The limit of connections is one for all: whoever can reach the address can fill it, for other nodes too. A slow
//! trickle of a head larger than what one HTTP/2 frame holds is bounded by that limit alone.

use std::io::Cursor;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::settings::{HEAD_BYTES_MAX, HEAD_TIME_MAX, HEADERS_MAX, PING_EVERY, PING_TIME_MAX};

/// How long to rest when the process has no sockets left: some must be closed first.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// What an HTTP/2 client sends first.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How connections are limited.
#[derive(Clone, Debug)]
pub struct Serving {
    /// Connections at the same time.
    pub connections: usize,
    /// How long the head of a request may take.
    pub head_time: Duration,
}

impl Default for Serving {
    fn default() -> Self {
        Self { connections: 4_096, head_time: HEAD_TIME_MAX }
    }
}

/// Serve `router` to whoever connects, until `shutdown`; then take no more connections, let requests that are being
/// served end, and return. Dropping the future breaks them off.
pub async fn serve(listener: TcpListener, router: Router, limits: Serving, shutdown: impl Future<Output = ()>) {
    let builder = builder(limits.head_time);
    let (stop, stopping) = watch::channel(());
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            stream = accept(&listener), if connections.len() < limits.connections.max(1) => {
                let one = connection(stream, builder.clone(), router.clone(), limits.head_time, stopping.clone());
                connections.spawn(one);
            }
        }
    }
    drop(listener);
    stop.send_replace(());
    while connections.join_next().await.is_some() {}
}

fn builder(head_time: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(head_time)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIME_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX));
    builder
}

/// The next connection. What goes wrong with one connection is no reason to stop.
pub(crate) async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without it, small answers wait for the client's delayed acknowledgement: 40 ms each.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::warn!(%error, "could not set TCP_NODELAY");
                }
                return stream;
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "could not accept a connection; trying again in {ACCEPT_PAUSE:?}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionAborted | ConnectionReset)
}

/// One connection from its first byte to its end.
async fn connection(
    stream: TcpStream,
    builder: Builder<TokioExecutor>,
    router: Router,
    head_time: Duration,
    mut stopping: watch::Receiver<()>,
) {
    let (mut reader, writer) = stream.into_split();
    let first = tokio::select! {
        _ = stopping.changed() => return,
        first = tokio::time::timeout(head_time, first_bytes(&mut reader)) => first,
    };
    let Ok(Ok(first)) = first else { return };
    let io = TokioIo::new(tokio::io::join(Cursor::new(first).chain(reader), writer));
    let serving = builder.serve_connection(io, TowerToHyperService::new(router));
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        _ = stopping.changed() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        // Clients go away, and strangers send what is not HTTP: no news.
        tracing::debug!(error, "a connection broke");
    }
}

/// Read until it is clear whether HTTP/2 is spoken. What was read belongs to the connection.
async fn first_bytes(reader: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut read = Vec::with_capacity(HTTP2_PREFACE.len());
    while read.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&read) {
        let mut more = [0; HTTP2_PREFACE.len()];
        let wanted = HTTP2_PREFACE.len() - read.len();
        match reader.read(&mut more[..wanted]).await? {
            0 => break,
            count => read.extend_from_slice(&more[..count]),
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests;
