//! Everything that can be asked of a [`Host`]: carried to the leader of the group in question.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use pleat_cluster::{
    Catalog, Command, Generation, LedgerCommand, LedgerReply, NodeId, PartitionId, Reply, ShardId,
};
use pleat_consensus::GroupId;
use pleat_engine::{Action, MoveChunk, MoveRead, ReadRequest, TxnsSeen};
use serde::{Deserialize, Serialize};

use crate::catalog_machine::{Envelope, decode_ledger_outcome, decode_outcome, encode_ledger};
use crate::host::CONTROL;
use crate::observe::{NodeObservation, PartitionWeight};
use crate::replica::Pieces;
use crate::route::{Attempt, Effect};
use crate::rpc::{self, Declined, Piece, Request, Response, Written};
use crate::{Host, HostError, TxnPart, TxnReply, TxnStep};

/// How much longer a read on another node is waited for than it may take there.
const ENDS_BY_ITSELF: Duration = Duration::from_millis(500);

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Freshness {
    /// It sees every write that was acknowledged before it began: the leader, after a round of the quorum.
    Strong,
    /// It sees at least this position of the shard's log, on any replica.
    AtLeast(u64),
    /// Whatever a replica has.
    Eventual,
}

/// Rows on their way.
pub struct RowStream {
    /// The transactions that the snapshot knows of, when the read asked for them.
    pub txns: Option<TxnsSeen>,
    /// The columns of the first query.
    pub columns: Vec<String>,
    /// Its rows; then, for each further query of the request, its columns and its rows.
    pub pieces: BoxStream<'static, Result<Piece, HostError>>,
}

impl std::fmt::Debug for RowStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowStream").field("txns", &self.txns).field("columns", &self.columns).finish_non_exhaustive()
    }
}

impl Host {
    /// Have the control group carry out a command. It is applied on this node too when this returns.
    pub async fn command(&self, command: Command, within: Duration) -> Result<Reply, HostError> {
        let deadline = Instant::now() + within;
        let envelope = Envelope { id: rand::random(), command };
        let bytes = envelope.encode().map_err(internal)?.to_vec();
        // The catalog remembers the envelope's id, so sending it again is harmless.
        let request = || Request::Command(bytes.clone());
        let (answer, _) = self.ask_leader(CONTROL, Effect::Idempotent, within, request).await?;
        let Response::Command(answer) = answer else { return Err(mismatch()) };
        let (index, outcome) = crate::position::split_index(&answer).map_err(internal)?;
        let reply = decode_outcome(outcome).map_err(internal)?.map_err(HostError::Command)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if self.control().wait_applied(index, left).await.is_err() {
            tracing::warn!(index, "this node's catalog lags behind a command that it sent");
        }
        Ok(reply)
    }

    /// A catalog that holds every command acknowledged before now.
    pub async fn fresh_catalog(&self, within: Duration) -> Result<Arc<Catalog>, HostError> {
        let deadline = Instant::now() + within;
        let (answer, _) = self.ask_leader(CONTROL, Effect::None, within, || Request::ReadIndex(CONTROL)).await?;
        let Response::ReadIndex(index) = answer else { return Err(mismatch()) };
        let left = deadline.saturating_duration_since(Instant::now());
        match self.control().wait_applied(index, left).await {
            Ok(()) => Ok(self.catalog()),
            Err(_) => Err(HostError::Unavailable("this node's catalog did not catch up in time".into())),
        }
    }

    /// Have the shard carry out an action, wherever its leader is.
    pub async fn write(
        &self,
        shard: ShardId,
        generation: Generation,
        action: Action,
        within: Duration,
    ) -> Result<Written, HostError> {
        let effect = effect_of(&action);
        let request = || Request::Write { shard, generation, action: action.clone() };
        match self.ask_leader(group_of(shard), effect, within, request).await? {
            (Response::Written(written), uncertain) => Ok(Written { uncertain, ..written }),
            _ => Err(mismatch()),
        }
    }

    /// Write to reference tables: put in order by the anchor shard, and on every active shard when this returns.
    pub async fn write_reference(
        &self,
        generation: Generation,
        action: Action,
        within: Duration,
    ) -> Result<Written, HostError> {
        let Some(anchor) = self.catalog().anchor() else {
            return Err(HostError::Unavailable("no shard is active yet".into()));
        };
        let effect = effect_of(&action);
        let request = || Request::WriteReference { anchor, generation, action: action.clone() };
        match self.ask_leader(group_of(anchor), effect, within, request).await? {
            (Response::Written(written), uncertain) => Ok(Written { uncertain, ..written }),
            _ => Err(mismatch()),
        }
    }

    /// Read from a shard. An error that refuses the read comes from here, before any row.
    pub async fn read(
        &self,
        shard: ShardId,
        request: ReadRequest,
        freshness: Freshness,
        within: Duration,
    ) -> Result<RowStream, HostError> {
        let deadline = Instant::now() + within;
        let mut pieces = match (freshness, self.replica(shard)) {
            (Freshness::Eventual, Some(replica)) => {
                replica.read(request, freshness, within).await.map_err(declined_here)?
            }
            _ => {
                let attempt = |node, limit| self.read_on(node, shard, request.clone(), freshness, limit);
                self.on_leader(group_of(shard), Effect::None, within, attempt).await?.0
            }
        };
        let mut txns = None;
        let columns = loop {
            match pieces.next().await {
                Some(Ok(Piece::Txns(seen))) if txns.is_none() => txns = Some(seen),
                Some(Ok(Piece::Columns(columns))) => break columns,
                Some(Err(declined)) => return Err(declined_here(declined)),
                Some(Ok(Piece::Txns(_) | Piece::Rows(_))) | None => return Err(mismatch()),
            }
        };
        let pieces = futures::stream::try_unfold(pieces, move |mut pieces| async move {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(next) = tokio::time::timeout(left, pieces.next()).await else {
                return Err(HostError::Timeout("the rows did not arrive within the statement's time".into()));
            };
            match next {
                None => Ok(None),
                Some(Ok(piece)) => Ok(Some((piece, pieces))),
                Some(Err(declined)) => Err(declined_here(declined)),
            }
        });
        Ok(RowStream { txns, columns, pieces: pieces.boxed() })
    }

    async fn read_on(
        &self,
        node: NodeId,
        shard: ShardId,
        request: ReadRequest,
        freshness: Freshness,
        within: Duration,
    ) -> Result<Pieces, Attempt> {
        if node == self.node() {
            return Ok(self.serve_read(shard, request, freshness, within).await?);
        }
        // A statement that takes too long is ended by the shard itself, with an error that says so.
        let within = within + ENDS_BY_ITSELF;
        let read = rpc::Read { within_ms: within.as_millis() as u64, shard, request, freshness };
        let body = rpc::encode(&read).map_err(Attempt::Failed)?;
        let mut stream = self.transport().stream(node, rpc::READ, body, within).await?;
        let decode = |bytes: &[u8]| match rpc::decode::<Result<Piece, Declined>>(bytes) {
            Ok(piece) => piece,
            Err(error) => Err(error.into()),
        };
        // A refusal is the first message: it must come out of here, so that another node is tried.
        let first = match stream.next().await {
            Some(bytes) => decode(&bytes?)?,
            None => return Err(Attempt::Lost("the stream ended before it began".into())),
        };
        let rest = stream.map(move |bytes| match bytes {
            Ok(bytes) => decode(&bytes),
            Err(error) => Err(HostError::Unavailable(format!("{node} was lost while it sent rows: {error}")).into()),
        });
        Ok(futures::stream::iter([Ok(first)]).chain(rest).boxed())
    }

    /// Have the ledger carry out a command.
    pub async fn ledger_command(&self, command: LedgerCommand, within: Duration) -> Result<LedgerReply, HostError> {
        let bytes = encode_ledger(&command).map_err(internal)?.to_vec();
        let request = || Request::Command(bytes.clone());
        let (answer, _) = self.ask_leader(CONTROL, Effect::Idempotent, within, request).await?;
        let Response::Command(answer) = answer else { return Err(mismatch()) };
        let (_, outcome) = crate::position::split_index(&answer).map_err(internal)?;
        decode_ledger_outcome(outcome).map_err(internal)?.map_err(HostError::Ledger)
    }

    /// Take a step of an interactive transaction, where its part on the shard is.
    pub async fn txn_step(&self, part: &mut TxnPart, _: TxnStep, _: Duration) -> Result<TxnReply, HostError> {
        part.steps += 1;
        Err(HostError::Unavailable("interactive transactions are not there yet".into()))
    }

    /// A read for a move, on the shard's leader.
    pub async fn move_read(&self, shard: ShardId, request: MoveRead, within: Duration) -> Result<MoveChunk, HostError> {
        let ask = || Request::MoveRead { shard, request: request.clone() };
        match self.ask_leader(group_of(shard), Effect::None, within, ask).await? {
            (Response::Moved(chunk), _) => Ok(chunk),
            _ => Err(mismatch()),
        }
    }

    /// What a node measures about itself and the shards that it leads.
    pub async fn observe(&self, node: NodeId, within: Duration) -> Result<NodeObservation, HostError> {
        match self.ask_node(node, Request::Observe, within).await? {
            Response::Observation(observation) => Ok(*observation),
            _ => Err(mismatch()),
        }
    }

    /// The round trip to a node.
    pub async fn ping(&self, node: NodeId, within: Duration) -> Result<Duration, HostError> {
        let begun = Instant::now();
        self.ask_node(node, Request::Ping, within).await?;
        Ok(begun.elapsed())
    }

    /// Rows and bytes of each partition of a shard. Scans the shard.
    pub async fn partition_weights(
        &self,
        shard: ShardId,
        within: Duration,
    ) -> Result<BTreeMap<PartitionId, PartitionWeight>, HostError> {
        match self.ask_leader(group_of(shard), Effect::None, within, || Request::Weights(shard)).await? {
            (Response::Weights(weights), _) => Ok(weights),
            _ => Err(mismatch()),
        }
    }

    async fn ask_node(&self, node: NodeId, request: Request, within: Duration) -> Result<Response, HostError> {
        let answer = tokio::time::timeout(within, self.ask(node, request, within)).await;
        match answer {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(Attempt::Failed(error))) => Err(error),
            Ok(Err(Attempt::Elsewhere { why, .. } | Attempt::Lost(why))) => {
                Err(HostError::Unavailable(format!("{node}: {why}")))
            }
            Err(_) => Err(HostError::Unavailable(format!("{node} did not answer within {within:?}"))),
        }
    }
}

/// A shard's Raft group.
pub fn group_of(shard: ShardId) -> GroupId {
    GroupId::from(shard.0)
}

fn effect_of(action: &Action) -> Effect {
    match action {
        Action::Write { idempotency: None, .. }
        | Action::Bulk { idempotency: None, .. }
        | Action::ReferenceWrite { idempotency: None, .. } => Effect::Once,
        // With a key the shard remembers it; the cluster's own actions are idempotent by design.
        _ => Effect::Idempotent,
    }
}

fn declined_here(declined: Declined) -> HostError {
    match declined {
        Declined::Host(error) => error,
        Declined::NotLeader { .. } => HostError::Unavailable("the shard's leader changed".into()),
    }
}

pub(crate) fn mismatch() -> HostError {
    HostError::Internal("the answer does not fit the request".into())
}

fn internal(error: anyhow::Error) -> HostError {
    HostError::Internal(format!("{error:#}"))
}
