//! The other side of `calls`: what this node does when it is asked, by itself or by another node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use pleat_cluster::{NodeId, ShardId};
use pleat_consensus::{GroupId, Service, ServiceError};
use pleat_engine::{MoveRead, ReadRequest};

use crate::calls::Freshness;
use crate::host::CONTROL;
use crate::locals::Taken;
use crate::observe::{NodeObservation, PartitionWeight};
use crate::replica::{Pieces, Replica, engine_error};
use crate::rpc::{self, Call, Declined, Piece, Request, Response, TxnAt};
use crate::{Host, HostError};

/// No request is worked on for longer than this, whatever its sender says.
const WITHIN_MAX: Duration = Duration::from_secs(3600);

/// How often it is looked for interactive transactions that have to end.
const EXPIRE_EVERY: Duration = Duration::from_millis(50);

impl Host {
    /// Answer a request on this node.
    pub(crate) async fn serve(&self, request: Request, within: Duration) -> Result<Response, Declined> {
        match request {
            Request::Ping => Ok(Response::Pong),
            Request::Command(envelope) => {
                let control = self.control().ok_or(Declined::NotLeader { leader: None })?;
                #[cfg(feature = "failpoints")]
                let decides = crate::catalog_machine::is_decision(&envelope);
                #[cfg(feature = "failpoints")]
                reach_if(decides, "ledger.before-decision");
                let answer = control.propose(envelope.into(), within).await?;
                #[cfg(feature = "failpoints")]
                reach_if(decides, "ledger.decided");
                Ok(Response::Command(answer.to_vec()))
            }
            Request::ReadIndex(group) => {
                let group = self.led_group(group)?;
                Ok(Response::ReadIndex(group.read_barrier(within).await?))
            }
            Request::Quorum(group) => {
                self.led_group(group)?.confirm_leadership(within).await?;
                Ok(Response::Quorum)
            }
            Request::Write { shard, planned, action } => {
                let replica = self.led(shard)?;
                Ok(Response::Written(replica.write(planned, action, self.now_ms(), within).await?))
            }
            Request::WriteReference { anchor, planned, action } => {
                let replica = self.led(anchor)?;
                Ok(Response::Written(self.spread_write(&replica, planned, action, within).await?))
            }
            Request::MoveRead { shard, request } => {
                let replica = self.led(shard)?;
                // What the mover journaled before must be visible to it here. A snapshot that is open shows what it shows.
                if !matches!(request, MoveRead::CopyNext { .. } | MoveRead::Close { .. }) {
                    replica.group.read_barrier(within).await?;
                }
                let chunk = blocking(move || replica.readers.move_read(&request)).await?;
                Ok(Response::Moved(chunk.map_err(engine_error)?))
            }
            Request::Observe => Ok(Response::Observation(Box::new(self.look().await?))),
            Request::InDoubt(shard) => {
                let replica = self.led(shard)?;
                replica.group.read_barrier(within).await?;
                Ok(Response::InDoubt(blocking(move || replica.readers.in_doubt()).await?.map_err(engine_error)?))
            }
            Request::Txn { at, shard, planned, step } => {
                let replica = self.led(shard)?;
                let deadline = Instant::now() + within;
                let turn = replica.locals.turn(at.txn, at.number, deadline).await?;
                let now = self.now_ms();
                Ok(match replica.locals.take(&replica, &turn, step, planned, now, deadline).await? {
                    Taken::Written { results, reference } => Response::TxnWritten { results, reference },
                    Taken::Done => Response::TxnDone,
                    Taken::Decided(written) => Response::Written(written),
                })
            }
            Request::TouchTxn { txn, shard } => {
                self.led(shard)?.locals.touch(txn);
                Ok(Response::TxnDone)
            }
            Request::Weights(shard) => {
                let replica = self.led(shard)?;
                let weights = blocking(move || replica.readers.partition_weights()).await?.map_err(engine_error)?;
                let weight = |(rows, bytes)| PartitionWeight { rows, bytes };
                Ok(Response::Weights(weights.into_iter().map(|(unit, pair)| (unit, weight(pair))).collect()))
            }
            Request::Read(read) => {
                let rpc::Read { shard, request, freshness, .. } = *read;
                let mut pieces = self.serve_read(shard, request, freshness, within).await?;
                match pieces.next().await {
                    Some(Ok(pieces)) if matches!(pieces.last(), Some(Piece::End)) => Ok(Response::Rows(pieces)),
                    Some(Ok(_)) => Ok(Response::ManyRows),
                    Some(Err(declined)) => Err(declined),
                    None => Err(HostError::Timeout("the read took too long".into()).into()),
                }
            }
            Request::Progress => {
                let status = self.control_status();
                if !status.is_leader {
                    return Err(Declined::NotLeader { leader: status.leader });
                }
                Ok(Response::Progress(self.board().all()))
            }
            Request::Served => Ok(Response::Served(self.own_served())),
            Request::Settled { shard, generation, writes } => {
                // The answer has a way to go.
                let within = within.mul_f32(0.8);
                Ok(Response::Settled(self.own_settled(shard, generation, writes, within).await?))
            }
            Request::RunsServer(shard) => Ok(Response::RunsServer(self.runs_server(shard))),
            Request::WhoAmI(node) => Ok(Response::Standing(self.standing_of(node))),
            Request::Replicas => Ok(Response::Replicas(Box::new(self.own_replicas()))),
            Request::Digest { shard, index } => Ok(Response::Digest(self.own_digest(shard, index))),
            Request::Members { group, change } => {
                Ok(Response::Members(self.serve_members(group, change, within).await?))
            }
        }
    }

    /// Answer a read on this node.
    pub(crate) async fn serve_read(
        &self,
        shard: ShardId,
        request: ReadRequest,
        freshness: Freshness,
        within: Duration,
    ) -> Result<Pieces, Declined> {
        let replica = match freshness {
            Freshness::Strong => self.led(shard)?,
            Freshness::AtLeast(_) | Freshness::Eventual => {
                self.serving(shard).ok_or(Declined::NotLeader { leader: None })?
            }
        };
        replica.read(request, freshness, within).await
    }

    /// Answer a read in an interactive transaction on this node.
    pub(crate) async fn serve_txn_read(
        &self,
        shard: ShardId,
        at: TxnAt,
        request: ReadRequest,
        within: Duration,
    ) -> Result<Pieces, Declined> {
        let replica = self.led(shard)?;
        let deadline = Instant::now() + within;
        let turn = replica.locals.turn(at.txn, at.number, deadline).await?;
        replica.read_in(turn, request, deadline).await
    }

    /// End interactive transactions that keep others waiting.
    pub(crate) async fn keep_expiring(self: Arc<Self>) {
        let mut stop = self.stopping();
        while !*stop.borrow() {
            for replica in self.replicas() {
                replica.locals.expire(replica.group.leads()).await;
            }
            let _ = tokio::time::timeout(EXPIRE_EVERY, stop.changed()).await;
        }
    }

    /// This node's replica, if it leads the shard as far as it knows.
    fn led(&self, shard: ShardId) -> Result<Arc<Replica>, Declined> {
        let replica = self.serving(shard).ok_or(Declined::NotLeader { leader: None })?;
        match replica.group.leads() {
            true => Ok(replica),
            false => Err(Declined::NotLeader { leader: replica.group.leader() }),
        }
    }

    fn led_group(&self, group: GroupId) -> Result<pleat_consensus::Group, Declined> {
        if group == CONTROL {
            return self.control().cloned().ok_or(Declined::NotLeader { leader: None });
        }
        self.consensus().group(group).ok_or(Declined::NotLeader { leader: None })
    }

    fn own_served(&self) -> BTreeMap<ShardId, u64> {
        let replicas = self.replicas();
        let led = replicas.iter().filter(|replica| replica.group.leads());
        led.map(|replica| (replica.shard, replica.meter.served())).collect()
    }

    async fn look(&self) -> Result<NodeObservation, Declined> {
        let leads = |replica: &Arc<Replica>| replica.group.leads() && self.serves(replica);
        let led: Vec<_> = self.replicas().into_iter().filter(leads).collect();
        let look = move || led.iter().map(|replica| replica.observe()).collect::<Result<Vec<_>, _>>();
        let mut shards = blocking(look).await??;
        shards.extend(self.look_at_servers().await);
        Ok(NodeObservation { node: self.node(), at: self.now_ms(), resources: self.resources(), shards })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Declined> {
    let done = pleat_consensus::blocking(work).await;
    done.map_err(|error| HostError::Internal(format!("the work was broken off: {error}")).into())
}

/// What the transport's server calls.
#[async_trait]
impl Service for Host {
    async fn call(&self, _from: NodeId, method: &str, body: Bytes) -> Result<Bytes, ServiceError> {
        if method != rpc::CALL {
            return Err(unknown(method));
        }
        let answer: Result<Response, Declined> = match rpc::decode::<Call>(&body) {
            Ok(call) => self.serve(call.request, limit(call.within_ms)).await,
            Err(error) => Err(error.into()),
        };
        encode(&answer)
    }

    async fn stream(
        &self,
        _from: NodeId,
        method: &str,
        body: Bytes,
    ) -> Result<BoxStream<'static, Result<Bytes, ServiceError>>, ServiceError> {
        if method != rpc::READ {
            return Err(unknown(method));
        }
        let pieces = match rpc::decode::<rpc::Read>(&body) {
            Ok(rpc::Read { within_ms, shard, request, txn: Some(at), .. }) => {
                self.serve_txn_read(shard, at, request, limit(within_ms)).await
            }
            Ok(read) => self.serve_read(read.shard, read.request, read.freshness, limit(read.within_ms)).await,
            Err(error) => Err(error.into()),
        };
        let pieces = match pieces {
            Ok(pieces) => pieces,
            Err(declined) => futures::stream::iter([Err(declined)]).boxed(),
        };
        Ok(pieces.map(|pieces: Result<Vec<Piece>, Declined>| encode(&pieces)).boxed())
    }
}

#[cfg(feature = "failpoints")]
fn reach_if(here: bool, place: &'static str) {
    if here {
        crate::failpoint::reach(place, None);
    }
}

fn limit(within_ms: u64) -> Duration {
    Duration::from_millis(within_ms).min(WITHIN_MAX)
}

fn encode<T: serde::Serialize>(answer: &T) -> Result<Bytes, ServiceError> {
    rpc::encode(answer).map_err(|error| ServiceError::new("XX000", error.to_string()))
}

fn unknown(method: &str) -> ServiceError {
    ServiceError::new("unknown_method", format!("this node knows no {method}; run one version on all nodes"))
}
