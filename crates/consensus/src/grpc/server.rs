//! What a node answers to its peers.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use pleat_cluster::NodeId;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::proto::cluster_service_server::{ClusterService, ClusterServiceServer};
use super::proto::{
    Call, Calls, Error, Hello, HelloReply, NumberedCall, Replies, Reply, SnapshotPart, hello_reply, snapshot_part,
};
use super::{exchange, to_reply};
use crate::consensus::Consensus;
use crate::network::{METHOD_APPEND, METHOD_VOTE};
use crate::transport::{Service, ServiceError};

/// The routes of a node's cluster service. Mount them with `into_axum_router()`, or serve them alone.
///
/// When `closing` turns true, the other nodes are asked to end what they keep open here, so that the server can stop.
///
/// They have no authentication of their own yet: whoever reaches them and knows the cluster id is believed.
pub fn server(consensus: Arc<Consensus>, service: Arc<dyn Service>, closing: watch::Receiver<bool>) -> Routes {
    let limit = consensus.config().message_bytes_max;
    let service = ClusterServiceServer::new(Server(Arc::new(Answers { consensus, service, closing })))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    Routes::new(service)
}

struct Server(Arc<Answers>);

struct Answers {
    consensus: Arc<Consensus>,
    service: Arc<dyn Service>,
    closing: watch::Receiver<bool>,
}

impl Answers {
    fn check(&self, call: &Call) -> Result<NodeId, ServiceError> {
        let from = NodeId(call.from);
        self.consensus.check_sender(&call.cluster_id, from)?;
        let config = self.consensus.config();
        match config.build.is_empty() || config.build == call.build {
            true => Ok(from),
            false => Err(ServiceError::new(
                "other_build",
                format!(
                    "{} runs {}, and {from} runs {}: run the same build of Pleat on all nodes",
                    config.node, config.build, call.build
                ),
            )),
        }
    }

    async fn raft(&self, method: &str, request: Request<Call>) -> Result<Response<Reply>, Status> {
        let call = request.into_inner();
        let result = match self.check(&call) {
            Ok(_) => self.consensus.handle(method, call.body).await,
            Err(refused) => Err(refused),
        };
        Ok(Response::new(to_reply(result)))
    }

    async fn snapshot(&self, mut parts: Streaming<SnapshotPart>) -> Result<Bytes, ServiceError> {
        let first = parts.message().await.map_err(broken)?;
        let Some(SnapshotPart { part: Some(snapshot_part::Part::Call(call)) }) = first else {
            return Err(ServiceError::new("bad_message", "a snapshot begins with its header"));
        };
        self.check(&call)?;
        let chunks = parts.map(|part| match part {
            Ok(SnapshotPart { part: Some(snapshot_part::Part::Chunk(chunk)) }) => Ok(chunk),
            Ok(_) => Err(std::io::Error::other("a snapshot has one header, followed by its bytes")),
            Err(status) => Err(std::io::Error::other(status)),
        });
        self.consensus.handle_snapshot(call.body, chunks.boxed()).await
    }
}

fn broken(status: Status) -> ServiceError {
    ServiceError::new("broken", format!("the connection broke: {}", status.message()))
}

#[tonic::async_trait]
impl ClusterService for Server {
    type ExchangeStream = BoxStream<'static, Result<Replies, Status>>;

    async fn exchange(&self, request: Request<Streaming<Calls>>) -> Result<Response<Self::ExchangeStream>, Status> {
        let limit = self.0.consensus.config().message_bytes_max;
        let answers = self.0.clone();
        let answer = move |caller: &Call, call: NumberedCall| {
            let (from, answers) = (answers.check(caller), answers.clone());
            async move {
                let from = from?;
                match call.method.as_str() {
                    METHOD_VOTE | METHOD_APPEND => answers.consensus.handle(&call.method, call.body).await,
                    method => answers.service.call(from, method, call.body).await,
                }
            }
        };
        Ok(Response::new(exchange::serve(request.into_inner(), limit, self.0.closing.clone(), answer)))
    }

    async fn request_vote(&self, request: Request<Call>) -> Result<Response<Reply>, Status> {
        self.0.raft(METHOD_VOTE, request).await
    }

    async fn append_entries(&self, request: Request<Call>) -> Result<Response<Reply>, Status> {
        self.0.raft(METHOD_APPEND, request).await
    }

    async fn install_snapshot(&self, request: Request<Streaming<SnapshotPart>>) -> Result<Response<Reply>, Status> {
        Ok(Response::new(to_reply(self.0.snapshot(request.into_inner()).await)))
    }

    async fn heartbeat(&self, request: Request<Hello>) -> Result<Response<HelloReply>, Status> {
        let hello = request.into_inner();
        let config = self.0.consensus.config();
        let result = match self.0.consensus.check_sender(&hello.cluster_id, NodeId(hello.node)) {
            Ok(()) => hello_reply::Result::Hello(Hello {
                cluster_id: config.cluster_id.clone(),
                node: config.node.0,
                version: env!("CARGO_PKG_VERSION").into(),
            }),
            Err(refused) => hello_reply::Result::Error(Error { code: refused.code, message: refused.message }),
        };
        Ok(Response::new(HelloReply { result: Some(result) }))
    }

    async fn execute_operation(&self, request: Request<Call>) -> Result<Response<Reply>, Status> {
        let call = request.into_inner();
        let result = match self.0.check(&call) {
            Ok(from) => self.0.service.call(from, &call.method, call.body).await,
            Err(refused) => Err(refused),
        };
        Ok(Response::new(to_reply(result)))
    }

    type WatchStream = BoxStream<'static, Result<Reply, Status>>;

    async fn watch(&self, request: Request<Call>) -> Result<Response<Self::WatchStream>, Status> {
        let call = request.into_inner();
        let parts = match self.0.check(&call) {
            Ok(from) => self.0.service.stream(from, &call.method, call.body).await,
            Err(refused) => Err(refused),
        };
        let parts = match parts {
            Ok(parts) => parts,
            Err(refused) => futures::stream::iter([Err(refused)]).boxed(),
        };
        Ok(Response::new(parts.map(|part| Ok(to_reply(part))).boxed()))
    }
}
