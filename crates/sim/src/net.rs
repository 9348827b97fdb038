//! Calls between nodes, and between clients and nodes, over turmoil's network: one connection for each call, on which
//! frames go. Every call is a line of the trace.

use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use pleat_cluster::NodeId;
use pleat_consensus::{
    Consensus, METHOD_APPEND, METHOD_VOTE, Service, ServiceError, SnapshotChunks, Transport, TransportError,
};
use pleat_host::Host;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use turmoil::net::{TcpListener, TcpStream};

use crate::trace::Trace;

/// Where nodes talk to each other.
pub const PEERS: u16 = 9000;
/// Where clients talk to nodes.
pub const CLIENTS: u16 = 9001;
/// How long connecting may take, as in production: over a link that is broken in one direction nothing comes back.
const CONNECT: Duration = Duration::from_secs(1);
/// A connection on which nothing comes for this long is dead. turmoil loses what is sent over a broken link for good, where TCP
/// would send it again; and in production HTTP/2's pings find out about a connection that is dead.
const SILENCE_MAX: Duration = Duration::from_secs(6);
/// Who takes longer for an answer says this often that it lives, as a node does that answers pings. The slowest message is there before
/// the silence has lasted too long.
const AT_WORK_EVERY: Duration = Duration::from_secs(4);
/// The largest frame, in bytes.
const FRAME_MAX: u32 = 64 << 20;

/// A host's name in the simulated network.
pub fn name(node: u64) -> String {
    format!("node-{node}")
}

/// Take connections on a port of this host.
pub async fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), port)).await
}

/// Send one value.
pub async fn send<T: Serialize>(stream: &mut TcpStream, value: &T) -> std::io::Result<()> {
    let frame = postcard::to_stdvec(value).map_err(std::io::Error::other)?;
    let length = u32::try_from(frame.len()).map_err(std::io::Error::other)?;
    stream.write_u32(length).await?;
    stream.write_all(&frame).await
}

/// Receive one value.
pub async fn receive<T: DeserializeOwned>(stream: &mut TcpStream) -> std::io::Result<T> {
    let length = stream.read_u32().await?;
    if length > FRAME_MAX {
        return Err(std::io::Error::other(format!("a frame of {length} bytes")));
    }
    let mut frame = vec![0; length as usize];
    stream.read_exact(&mut frame).await?;
    postcard::from_bytes(&frame).map_err(std::io::Error::other)
}

#[derive(Serialize, Deserialize)]
enum Kind {
    Call,
    Stream,
    Snapshot,
}

#[derive(Serialize, Deserialize)]
struct Head {
    from: u64,
    kind: Kind,
    method: String,
    body: Vec<u8>,
}

/// A part of a snapshot; `None` ends it.
type Chunk = Option<Vec<u8>>;

/// One frame of an answer.
#[derive(Serialize, Deserialize)]
enum Frame {
    /// Nothing yet, but the node lives.
    AtWork,
    Part(Vec<u8>),
    Fault {
        code: String,
        message: String,
    },
    End,
}

/// A node's way to the others.
pub struct Peers {
    pub node: u64,
    pub trace: Trace,
}

impl Peers {
    async fn open(&self, to: NodeId, kind: Kind, method: &str, body: &Bytes) -> Result<TcpStream, TransportError> {
        self.trace.note(format_args!("{} -> {} {method} {} bytes", self.node, to.0, body.len()));
        let connect = tokio::time::timeout(CONNECT, TcpStream::connect((name(to.0), PEERS))).await;
        let connected = connect.unwrap_or_else(|late| Err(late.into()));
        let mut stream = connected.map_err(|error| TransportError::Unreachable(error.to_string()))?;
        let head = Head { from: self.node, kind, method: method.to_owned(), body: body.to_vec() };
        send(&mut stream, &head).await.map_err(lost)?;
        Ok(stream)
    }
}

fn lost(error: std::io::Error) -> TransportError {
    TransportError::Lost(error.to_string())
}

fn late<T>(_: T) -> TransportError {
    TransportError::Lost("no answer in time".into())
}

/// The next part of an answer, if there is one.
async fn next(stream: &mut TcpStream) -> Result<Option<Bytes>, TransportError> {
    loop {
        let frame = tokio::time::timeout(SILENCE_MAX, receive::<Frame>(stream)).await.map_err(late)?;
        match frame.map_err(lost)? {
            Frame::AtWork => {}
            Frame::Part(body) => return Ok(Some(body.into())),
            Frame::Fault { code, message } => return Err(TransportError::Remote { code, message }),
            Frame::End => return Ok(None),
        }
    }
}

fn empty() -> TransportError {
    TransportError::Lost("an empty answer".into())
}

#[async_trait]
impl Transport for Peers {
    async fn call(&self, to: NodeId, method: &str, body: Bytes, deadline: Duration) -> Result<Bytes, TransportError> {
        let exchange = async {
            let mut stream = self.open(to, Kind::Call, method, &body).await?;
            next(&mut stream).await?.ok_or_else(empty)
        };
        tokio::time::timeout(deadline, exchange).await.map_err(late)?
    }

    async fn stream(
        &self,
        to: NodeId,
        method: &str,
        body: Bytes,
        deadline: Duration,
    ) -> Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError> {
        let exchange = async {
            let mut stream = self.open(to, Kind::Stream, method, &body).await?;
            let first = next(&mut stream).await;
            Ok::<_, TransportError>((stream, first))
        };
        let (stream, first) = tokio::time::timeout(deadline, exchange).await.map_err(late)??;
        let rest = stream::unfold(Some(stream), |stream| async {
            let mut stream = stream?;
            match next(&mut stream).await {
                Ok(Some(body)) => Some((Ok(body), Some(stream))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(match first? {
            Some(first) => stream::iter([Ok(first)]).chain(rest).boxed(),
            None => stream::empty().boxed(),
        })
    }

    async fn send_snapshot(
        &self,
        to: NodeId,
        header: Bytes,
        mut chunks: SnapshotChunks,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let exchange = async {
            let mut stream = self.open(to, Kind::Snapshot, "snapshot", &header).await?;
            while let Some(chunk) = chunks.next().await {
                let chunk: Chunk = Some(chunk.map_err(lost)?.to_vec());
                send(&mut stream, &chunk).await.map_err(lost)?;
            }
            send::<Chunk>(&mut stream, &None).await.map_err(lost)?;
            next(&mut stream).await?.ok_or_else(empty)
        };
        tokio::time::timeout(deadline, exchange).await.map_err(late)?
    }
}

/// Answer the other nodes, for as long as this node lives.
pub async fn serve(listener: TcpListener, consensus: Arc<Consensus>, host: Arc<Host>) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let (consensus, host) = (consensus.clone(), host.clone());
        tokio::task::spawn_local(async move {
            // An error is the other node's to notice.
            let _ = answer(stream, &consensus, &host).await;
        });
    }
}

async fn answer(mut stream: TcpStream, consensus: &Consensus, host: &Host) -> std::io::Result<()> {
    let head: Head = receive(&mut stream).await?;
    let (from, body) = (NodeId(head.from), Bytes::from(head.body));
    let answer = match head.kind {
        Kind::Call if head.method == METHOD_APPEND || head.method == METHOD_VOTE => {
            at_work(&mut stream, consensus.handle(&head.method, body)).await?
        }
        Kind::Call => at_work(&mut stream, host.call(from, &head.method, body)).await?,
        Kind::Snapshot => {
            let mut chunks = Vec::new();
            while let Some(chunk) = receive::<Chunk>(&mut stream).await? {
                chunks.push(Ok(Bytes::from(chunk)));
            }
            at_work(&mut stream, consensus.handle_snapshot(body, stream::iter(chunks).boxed())).await?
        }
        Kind::Stream => {
            let parts = at_work(&mut stream, host.stream(from, &head.method, body)).await?;
            return answer_in_parts(stream, parts).await;
        }
    };
    send(&mut stream, &frame(answer)).await
}

async fn answer_in_parts(
    mut stream: TcpStream,
    parts: Result<BoxStream<'static, Result<Bytes, ServiceError>>, ServiceError>,
) -> std::io::Result<()> {
    let mut parts = match parts {
        Ok(parts) => parts,
        Err(refused) => stream::iter([Err(refused)]).boxed(),
    };
    while let Some(one) = at_work(&mut stream, parts.next()).await? {
        send(&mut stream, &frame(one)).await?;
    }
    send(&mut stream, &Frame::End).await
}

/// Do the work, and let whoever waits for it know that this node lives. Nobody works for one who is gone.
async fn at_work<T>(stream: &mut TcpStream, work: impl Future<Output = T>) -> std::io::Result<T> {
    let mut work = pin!(work);
    loop {
        match tokio::time::timeout(AT_WORK_EVERY, &mut work).await {
            Ok(done) => return Ok(done),
            Err(_) => send(stream, &Frame::AtWork).await?,
        }
    }
}

fn frame(answer: Result<Bytes, ServiceError>) -> Frame {
    match answer {
        Ok(body) => Frame::Part(body.to_vec()),
        Err(ServiceError { code, message }) => Frame::Fault { code, message },
    }
}
