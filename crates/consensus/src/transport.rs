//! What a node needs from the network, and offers to it.
//!
//! The two traits keep the network replaceable: gRPC in production ([`crate::grpc`]), a simulated network or plain
//! function calls in tests. Errors keep apart what the caller must keep apart: a request that surely never
//! left, one whose fate is unknown, and one that was answered with an error.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use pleat_cluster::NodeId;

/// The bytes of a snapshot on their way, in order.
pub type SnapshotChunks = BoxStream<'static, io::Result<Bytes>>;

/// The way to the other nodes.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Calls `method` on a node and waits for its answer, at most `deadline`.
    async fn call(&self, to: NodeId, method: &str, body: Bytes, deadline: Duration) -> Result<Bytes, TransportError>;

    /// Calls `method` on a node; the answer comes in parts. `deadline` is for the first sign of an answer.
    async fn stream(
        &self,
        to: NodeId,
        method: &str,
        body: Bytes,
        deadline: Duration,
    ) -> Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError>;

    /// Sends a snapshot. The receiver hands it to [`crate::Consensus::handle_snapshot`].
    async fn send_snapshot(
        &self,
        to: NodeId,
        header: Bytes,
        chunks: SnapshotChunks,
        deadline: Duration,
    ) -> Result<Bytes, TransportError>;
}

/// Why a call to another node gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// The request never left: the other node surely did nothing. Safe to try again.
    #[error("can't reach the node: {0}")]
    Unreachable(String),
    /// The request left and no answer came: the other node may have done it.
    #[error("the answer was lost: {0}")]
    Lost(String),
    /// The other node answered with an error.
    #[error("{message} ({code})")]
    Remote {
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
}

/// What a node answers to calls that aren't Raft's.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// Answers a call.
    async fn call(&self, from: NodeId, method: &str, body: Bytes) -> Result<Bytes, ServiceError>;

    /// Answers a call in parts.
    async fn stream(
        &self,
        from: NodeId,
        method: &str,
        body: Bytes,
    ) -> Result<BoxStream<'static, Result<Bytes, ServiceError>>, ServiceError>;
}

/// An error that goes back to the calling node, which gets it as [`TransportError::Remote`].
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message} ({code})")]
pub struct ServiceError {
    /// For programs.
    pub code: String,
    /// For people: what was wrong and what to do.
    pub message: String,
}

impl ServiceError {
    /// An error with a code and a message.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        ServiceError { code: code.into(), message: message.into() }
    }
}

impl From<ServiceError> for TransportError {
    fn from(error: ServiceError) -> Self {
        TransportError::Remote { code: error.code, message: error.message }
    }
}
