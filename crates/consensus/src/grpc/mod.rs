//! The network between nodes: gRPC, one HTTP/2 connection for each pair of nodes and direction.
//!
//! `proto/cluster.proto` is the whole interface. [`GrpcTransport`] is its client side, [`server`] the service that a node
//! mounts beside its other routes, on the same port.

mod client;
mod exchange;
mod server;

pub use client::{GrpcTransport, Hello, Resolver};
pub use server::server;

/// Generated from `proto/cluster.proto`.
#[allow(missing_docs, clippy::all)]
pub(crate) mod proto {
    tonic::include_proto!("pleat.cluster.v1");
}

use bytes::Bytes;
use proto::{Error, Reply, reply};

use crate::transport::{ServiceError, TransportError};

fn to_reply(result: Result<Bytes, ServiceError>) -> Reply {
    let result = match result {
        Ok(body) => reply::Result::Body(body),
        Err(error) => reply::Result::Error(Error { code: error.code, message: error.message }),
    };
    Reply { result: Some(result) }
}

fn from_reply(reply: Reply) -> Result<Bytes, TransportError> {
    match reply.result {
        Some(reply::Result::Body(body)) => Ok(body),
        Some(reply::Result::Error(error)) => Err(TransportError::Remote { code: error.code, message: error.message }),
        None => Err(TransportError::Lost("the answer was empty".into())),
    }
}
