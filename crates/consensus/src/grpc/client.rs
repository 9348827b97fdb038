//! Calling other nodes.
//!
//! A connection is made when it is first needed, kept alive by pings, and thrown away when a call on it fails in a way
//! that doubts it; the next call connects anew. Connecting is a step of its own, so that "never sent" and "sent, no
//! answer" can be told apart: what fails to connect is [`TransportError::Unreachable`], everything later is `Lost`.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use pleat_cluster::NodeId;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::exchange::{self, Exchange, Failed};
use super::from_reply;
use super::proto::cluster_service_client::ClusterServiceClient;
use super::proto::{Call, HelloReply, SnapshotPart, hello_reply, snapshot_part};
use crate::network::{METHOD_APPEND, METHOD_VOTE};
use crate::transport::{SnapshotChunks, Transport, TransportError};

/// Says where a node is: `host:port`, or `None` when that is not known.
pub type Resolver = Arc<dyn Fn(NodeId) -> Option<String> + Send + Sync>;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(1);
/// After a failed attempt, calls fail at once for this long instead of trying again one after the other.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// A silent connection is pinged this often ...
const PING_EVERY: Duration = Duration::from_secs(3);
/// ... and given up when the ping is not answered for this long.
const PING_WAIT: Duration = Duration::from_secs(3);
/// What a peer may send on one stream, and on all, before we have read it, in bytes.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// The default of [`GrpcTransport::with_message_limit`], in bytes; as in [`crate::Config::new`].
const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The [`Transport`] over gRPC.
pub struct GrpcTransport {
    cluster_id: String,
    build: String,
    node: NodeId,
    resolver: Resolver,
    message_bytes_max: usize,
    peers: Mutex<BTreeMap<NodeId, Arc<Peer>>>,
}

#[derive(Default)]
struct Peer {
    link: tokio::sync::Mutex<Link>,
    /// On the link of that address, one for each [`Lane`].
    exchanges: [tokio::sync::Mutex<Option<Open>>; 2],
}

/// An exchange, and the address at which it was opened.
type Open = (String, Arc<Exchange>);

/// What goes by which exchange: no entry of a log waits behind a large answer.
#[derive(Clone, Copy)]
enum Lane {
    Raft,
    Calls,
}

#[derive(Default)]
enum Link {
    #[default]
    None,
    Up {
        address: String,
        channel: Channel,
        number: u64,
    },
    Failed {
        address: String,
        at: Instant,
        reason: String,
    },
}

/// Who answered a [`GrpcTransport::hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The node.
    pub node: NodeId,
    /// Its version of Pleat.
    pub version: String,
}

type Client = ClusterServiceClient<Channel>;

impl GrpcTransport {
    /// A transport for `node` of a cluster. `resolver` is asked at each call, so that addresses may change.
    pub fn new(cluster_id: impl Into<String>, node: NodeId, resolver: Resolver) -> Arc<Self> {
        Self::with_message_limit(cluster_id, node, resolver, MESSAGE_BYTES_MAX)
    }

    /// The same for a node that says what it is built of: see [`crate::Config::build`].
    pub fn of_build(
        cluster_id: impl Into<String>,
        build: impl Into<String>,
        node: NodeId,
        resolver: Resolver,
    ) -> Arc<Self> {
        Arc::new(Self::fresh(cluster_id.into(), build.into(), node, resolver, MESSAGE_BYTES_MAX))
    }

    /// The same with another limit on messages, in bytes. It must be that of [`crate::Config::message_bytes_max`].
    pub fn with_message_limit(
        cluster_id: impl Into<String>,
        node: NodeId,
        resolver: Resolver,
        message_bytes_max: usize,
    ) -> Arc<Self> {
        Arc::new(Self::fresh(cluster_id.into(), String::new(), node, resolver, message_bytes_max))
    }

    fn fresh(
        cluster_id: String,
        build: String,
        node: NodeId,
        resolver: Resolver,
        message_bytes_max: usize,
    ) -> GrpcTransport {
        GrpcTransport { cluster_id, build, node, resolver, message_bytes_max, peers: Mutex::default() }
    }

    /// Asks who is there. An error says when it is a node of another cluster.
    pub async fn hello(&self, to: NodeId, deadline: Duration) -> Result<Hello, TransportError> {
        let hello = super::proto::Hello {
            cluster_id: self.cluster_id.clone(),
            node: self.node.0,
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let HelloReply { result } =
            self.within(to, deadline, |mut client| async move { client.heartbeat(hello).await }).await?;
        match result {
            Some(hello_reply::Result::Hello(hello)) => Ok(Hello { node: NodeId(hello.node), version: hello.version }),
            Some(hello_reply::Result::Error(error)) => {
                Err(TransportError::Remote { code: error.code, message: error.message })
            }
            None => Err(TransportError::Lost("the answer was empty".into())),
        }
    }

    fn envelope(&self, method: &str, body: Bytes) -> Result<Call, TransportError> {
        // The rest of the message is far below 1 KiB.
        if body.len() + 1024 > self.message_bytes_max {
            let message = format!("a message of {} bytes is over the limit of {}", body.len(), self.message_bytes_max);
            return Err(TransportError::Remote { code: "too_large".into(), message });
        }
        let (cluster_id, build) = (self.cluster_id.clone(), self.build.clone());
        Ok(Call { cluster_id, from: self.node.0, method: method.to_owned(), body, build })
    }

    fn peer(&self, to: NodeId) -> Arc<Peer> {
        self.peers.lock().entry(to).or_default().clone()
    }

    /// One call on the connection to a node, connecting first if need be.
    async fn within<T, F>(
        &self,
        to: NodeId,
        deadline: Duration,
        call: impl FnOnce(Client) -> F,
    ) -> Result<T, TransportError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let until = Instant::now() + deadline;
        let (client, number) = self.connect_until(to, until).await?;
        let answer = tokio::time::timeout_at(until, call(client)).await;
        self.conclude(to, number, answer.ok()).await
    }

    async fn connect_until(&self, to: NodeId, until: Instant) -> Result<(Client, u64), TransportError> {
        tokio::time::timeout_at(until, self.connect(to)).await.map_err(|_| too_late(to))?
    }

    /// What an answer, or none before the deadline, means.
    async fn conclude<T>(
        &self,
        to: NodeId,
        number: u64,
        answer: Option<Result<tonic::Response<T>, Status>>,
    ) -> Result<T, TransportError> {
        match answer {
            Some(Ok(response)) => Ok(response.into_inner()),
            Some(Err(status)) => {
                if doubts_connection(&status) {
                    self.drop_link(to, number).await;
                }
                Err(from_status(&status))
            }
            None => Err(TransportError::Lost(format!("{to} did not answer before the deadline"))),
        }
    }

    /// A small call, in the exchange with a node.
    async fn exchange(&self, to: NodeId, method: &str, body: Bytes, until: Instant) -> Result<Bytes, TransportError> {
        let lane = if method == METHOD_APPEND { Lane::Raft } else { Lane::Calls };
        loop {
            let opened = tokio::time::timeout_at(until, self.open_exchange(to, lane, until)).await;
            let exchange = opened.map_err(|_| too_late(to))??;
            match tokio::time::timeout_at(until, exchange.call(method, body.clone())).await {
                Ok(Ok(reply)) => return from_reply(reply),
                // It ended a moment ago: the next one is opened, or can't be.
                Ok(Err(Failed::NotSent)) => {}
                Ok(Err(Failed::Lost)) => return Err(TransportError::Lost(format!("the connection to {to} broke"))),
                Err(_) => return Err(TransportError::Lost(format!("{to} did not answer before the deadline"))),
            }
        }
    }

    async fn open_exchange(&self, to: NodeId, lane: Lane, until: Instant) -> Result<Arc<Exchange>, TransportError> {
        let address = self.address(to)?;
        let peer = self.peer(to);
        let mut open = peer.exchanges[lane as usize].lock().await;
        match &*open {
            Some((known, exchange)) if *known == address && !exchange.has_ended() => return Ok(exchange.clone()),
            _ => *open = None,
        }
        let (client, number) = self.connect_until(to, until).await?;
        let opened = Exchange::open(client, self.envelope("", Bytes::new())?).await.map(tonic::Response::new);
        // No call was in it yet, whatever became of it.
        let exchange = self.conclude(to, number, Some(opened)).await.map_err(|error| match error {
            TransportError::Lost(why) => TransportError::Unreachable(why),
            error => error,
        })?;
        *open = Some((address, exchange.clone()));
        Ok(exchange)
    }

    fn address(&self, to: NodeId) -> Result<String, TransportError> {
        (self.resolver)(to).ok_or_else(|| TransportError::Unreachable(format!("the address of {to} is not known")))
    }

    async fn connect(&self, to: NodeId) -> Result<(Client, u64), TransportError> {
        let address = self.address(to)?;
        let peer = self.peer(to);
        let mut link = peer.link.lock().await;
        let number = match &*link {
            Link::Up { address: known, channel, number } if *known == address => {
                return Ok((self.client(channel.clone()), *number));
            }
            Link::Failed { address: known, at, reason } if *known == address && at.elapsed() < CONNECT_PAUSE => {
                return Err(TransportError::Unreachable(reason.clone()));
            }
            Link::Up { number, .. } => number + 1,
            Link::None | Link::Failed { .. } => 0,
        };
        match dial(&address).await {
            Ok(channel) => {
                if matches!(*link, Link::Failed { .. }) {
                    tracing::info!(node = %to, address, "reached again");
                }
                *link = Link::Up { address, channel: channel.clone(), number };
                Ok((self.client(channel), number))
            }
            Err(error) => {
                let reason = format!("{to} at {address}: {}", causes(&error));
                if !matches!(*link, Link::Failed { .. }) {
                    tracing::warn!(node = %to, reason, "can't be reached; trying on");
                }
                *link = Link::Failed { address, at: Instant::now(), reason: reason.clone() };
                Err(TransportError::Unreachable(reason))
            }
        }
    }

    fn client(&self, channel: Channel) -> Client {
        ClusterServiceClient::new(channel)
            .max_decoding_message_size(self.message_bytes_max)
            .max_encoding_message_size(self.message_bytes_max)
    }

    /// Forgets a connection, unless it has been replaced already.
    async fn drop_link(&self, to: NodeId, doubted: u64) {
        let peer = self.peer(to);
        let mut link = peer.link.lock().await;
        if matches!(&*link, Link::Up { number, .. } if *number == doubted) {
            *link = Link::None;
        }
    }
}

fn too_late(to: NodeId) -> TransportError {
    TransportError::Unreachable(format!("no connection to {to} before the deadline"))
}

async fn dial(address: &str) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WAIT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect()
        .await
}

/// An error and what caused it: tonic's own text is only "transport error".
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

fn doubts_connection(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
}

fn from_status(status: &Status) -> TransportError {
    match status.code() {
        Code::Unimplemented => TransportError::Remote {
            code: "unimplemented".into(),
            message: "the other node does not know this call: its version is too old, or something else listens there"
                .into(),
        },
        _ if never_connected(status) => TransportError::Unreachable(causes(status)),
        _ => TransportError::Lost(format!("{:?}: {}", status.code(), causes(status))),
    }
}

/// A channel that lost its connection connects anew by itself; when nobody listens there, nothing was sent.
fn never_connected(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[async_trait]
impl Transport for GrpcTransport {
    async fn call(&self, to: NodeId, method: &str, body: Bytes, deadline: Duration) -> Result<Bytes, TransportError> {
        if body.len() <= exchange::BODY_BYTES_MAX && method != METHOD_VOTE {
            return self.exchange(to, method, body, Instant::now() + deadline).await;
        }
        let call = self.envelope(method, body)?;
        let method = method.to_owned();
        let send = |mut client: Client| async move {
            match method.as_str() {
                METHOD_VOTE => client.request_vote(call).await,
                METHOD_APPEND => client.append_entries(call).await,
                _ => client.execute_operation(call).await,
            }
        };
        from_reply(self.within(to, deadline, send).await?)
    }

    async fn stream(
        &self,
        to: NodeId,
        method: &str,
        body: Bytes,
        deadline: Duration,
    ) -> Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError> {
        let call = self.envelope(method, body)?;
        let parts = self.within(to, deadline, |mut client| async move { client.watch(call).await }).await?;
        Ok(parts.map(|part| part.map_err(|status| from_status(&status)).and_then(from_reply)).boxed())
    }

    async fn send_snapshot(
        &self,
        to: NodeId,
        header: Bytes,
        chunks: SnapshotChunks,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let call = self.envelope("", header)?;
        let (failed, failure) = oneshot::channel();
        let parts = snapshot_parts(call, chunks, failed);
        let until = Instant::now() + deadline;
        let (mut client, number) = self.connect_until(to, until).await?;
        let answer = tokio::time::timeout_at(until, client.install_snapshot(parts)).await;
        let sent = self.conclude(to, number, answer.ok()).await;
        match failure.now_or_never() {
            Some(Ok(error)) => Err(TransportError::Lost(format!("the snapshot could not be read: {error}"))),
            _ => from_reply(sent?),
        }
    }
}

/// The messages of a snapshot. A request's stream can't fail, so a file that can't be read ends it early (the receiver
/// then has too few bytes and installs nothing), and the reason goes to `failed`.
fn snapshot_parts(call: Call, chunks: SnapshotChunks, failed: oneshot::Sender<std::io::Error>) -> Parts {
    let first = SnapshotPart { part: Some(snapshot_part::Part::Call(call)) };
    let chunks = chunks.scan(Some(failed), |failed, chunk| {
        let part = match chunk {
            Ok(chunk) => Some(SnapshotPart { part: Some(snapshot_part::Part::Chunk(chunk)) }),
            Err(error) => {
                failed.take().map(|failed| failed.send(error));
                None
            }
        };
        futures::future::ready(part)
    });
    Parts(futures::stream::iter([first]).chain(chunks).boxed())
}

/// A named type, because the compiler can't prove a call's future `Send` when it holds the boxed stream itself.
struct Parts(BoxStream<'static, SnapshotPart>);

impl futures::Stream for Parts {
    type Item = SnapshotPart;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SnapshotPart>> {
        self.0.poll_next_unpin(context)
    }
}
