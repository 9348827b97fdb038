//! Everything that can be asked of a [`Host`]: carried to the leader of the group in question.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use pleat_cluster::{
    Catalog, Command, Engine, Generation, LedgerCommand, LedgerReply, NodeId, PartitionId, Planned, Reply, ShardId,
};
use pleat_consensus::GroupId;
use pleat_engine::{Action, MoveChunk, MoveRead, ReadRequest, TxnsSeen};
use serde::{Deserialize, Serialize};

use crate::catalog_machine::{Envelope, decode_ledger_outcome, decode_outcome, encode_ledger};
use crate::host::CONTROL;
use crate::observe::{NodeObservation, PartitionWeight};
use crate::replica::Pieces;
use crate::route::{Attempt, Effect};
use crate::rpc::{self, Declined, Piece, Request, Response, TxnAt, Written};
use crate::{Host, HostError, TxnEnd, TxnPart, TxnReply, TxnStep};

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
        if let Some(control) = self.control()
            && control.wait_applied(index, left).await.is_err()
        {
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
        let control =
            self.control().ok_or_else(|| HostError::Unavailable("this node takes part in nothing yet".into()))?;
        match control.wait_applied(index, left).await {
            Ok(()) => Ok(self.catalog()),
            Err(_) => Err(HostError::Unavailable("this node's catalog did not catch up in time".into())),
        }
    }

    /// Have the shard carry out an action, wherever its leader is.
    pub async fn write(
        &self,
        shard: ShardId,
        planned: Planned,
        action: Action,
        within: Duration,
    ) -> Result<Written, HostError> {
        let effect = effect_of(&action);
        let request = || Request::Write { shard, planned, action: action.clone() };
        match self.ask_leader(group_of(shard), effect, within, request).await? {
            (Response::Written(written), uncertain) => Ok(Written { uncertain, ..written }),
            _ => Err(mismatch()),
        }
    }

    /// Write to reference tables: put in order by the anchor shard, and on every active shard when this returns.
    pub async fn write_reference(
        &self,
        planned: Planned,
        action: Action,
        within: Duration,
    ) -> Result<Written, HostError> {
        let Some(anchor) = self.catalog().anchor() else {
            return Err(HostError::Unavailable("no shard is active yet".into()));
        };
        let effect = effect_of(&action);
        let request = || Request::WriteReference { anchor, planned, action: action.clone() };
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
        let pieces = match (freshness, self.serving(shard)) {
            (Freshness::Eventual, Some(replica)) => {
                replica.read(request, freshness, within).await.map_err(declined_here)?
            }
            _ => {
                let attempt = |node, limit| self.read_on(node, shard, request.clone(), freshness, limit);
                self.on_leader(group_of(shard), Effect::None, within, attempt).await?.0
            }
        };
        rows_of(pieces, deadline).await
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
        self.read_from(node, shard, request, freshness, None, within).await
    }

    async fn read_from(
        &self,
        node: NodeId,
        shard: ShardId,
        request: ReadRequest,
        freshness: Freshness,
        txn: Option<TxnAt>,
        within: Duration,
    ) -> Result<Pieces, Attempt> {
        // A statement that takes too long is ended by the shard itself, with an error that says so.
        let within = within + ENDS_BY_ITSELF;
        let read = rpc::Read { within_ms: within.as_millis() as u64, shard, request, freshness, txn };
        // What one shard answers alone is few rows, mostly: they are the answer to a call. When they are many, they are read
        // again. A part of a scatter may be any number.
        if read.txn.is_none() && !read.request.names_txns {
            match self.ask(node, Request::Read(Box::new(read.clone())), within).await? {
                Response::Rows(pieces) => return Ok(futures::stream::iter([Ok(pieces)]).boxed()),
                Response::ManyRows => {}
                _ => return Err(Attempt::Failed(mismatch())),
            }
        }
        let body = rpc::encode(&read).map_err(Attempt::Failed)?;
        let mut stream = self.transport().stream(node, rpc::READ, body, within).await?;
        let decode = |bytes: &[u8]| match rpc::decode::<Result<Vec<Piece>, Declined>>(bytes) {
            Ok(pieces) => pieces,
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

    /// Take a step of an interactive transaction, where its part on the shard is: on the shard's leader at the first
    /// step, and on the same node from then on. When this fails with [`HostError::TxnEnded`], or is dropped before it is
    /// done, the transaction has to be rolled back on all shards.
    pub async fn txn_step(&self, part: &mut TxnPart, step: TxnStep, within: Duration) -> Result<TxnReply, HostError> {
        if matches!(step, TxnStep::Rollback) && !part.has_begun() {
            return Ok(TxnReply::Done);
        }
        if std::mem::replace(&mut part.lost, true) && !matches!(step, TxnStep::Rollback) {
            return Err(HostError::TxnEnded(TxnEnd::Lost));
        }
        let at = TxnAt { txn: part.txn, number: part.next_step() };
        let reply = match step {
            TxnStep::Read(request) => self.txn_read(part, at, request, within).await,
            step => self.txn_call(part, at, step, within).await,
        };
        part.lost = false;
        reply
    }

    /// Keep a transaction's part from being idle. Nobody minds when it gets lost, or is dropped.
    pub async fn touch_txn(&self, part: &TxnPart, within: Duration) {
        if let Some(home) = part.home {
            let _ = self.ask_node(home, Request::TouchTxn { txn: part.txn.id, shard: part.shard }, within).await;
        }
    }

    async fn txn_call(
        &self,
        part: &mut TxnPart,
        at: TxnAt,
        step: TxnStep,
        within: Duration,
    ) -> Result<TxnReply, HostError> {
        let (shard, planned) = (part.shard, self.catalog().planned());
        let (decides, ends) = (step.decides(), step.ends());
        let attempt = async |node, limit| {
            let request = Request::Txn { at, shard, planned, step: step.clone() };
            self.ask(node, request, limit).await.map(|response| (node, response))
        };
        let answer = match part.home {
            None => self.on_leader(group_of(shard), Effect::Once, within, attempt).await.map(|(answer, _)| answer),
            Some(home) => tokio::time::timeout(within + ENDS_BY_ITSELF, attempt(home, within))
                .await
                .unwrap_or_else(|_| Err(Attempt::Lost("no answer in time".into())))
                .map_err(|failed| at_home(failed, decides)),
        };
        let (node, response) = match answer {
            Err(_) if matches!(step, TxnStep::Rollback) => return Ok(TxnReply::Done),
            answer => answer?,
        };
        part.home = if ends { None } else { Some(node) };
        match response {
            Response::TxnWritten { results, reference } => Ok(TxnReply::Written { results, reference }),
            Response::TxnDone => Ok(TxnReply::Done),
            Response::Written(written) => Ok(TxnReply::Decided(written)),
            _ => Err(mismatch()),
        }
    }

    async fn txn_read(
        &self,
        part: &mut TxnPart,
        at: TxnAt,
        request: ReadRequest,
        within: Duration,
    ) -> Result<TxnReply, HostError> {
        let shard = part.shard;
        let deadline = Instant::now() + within;
        let attempt = async |node, limit| {
            let read = self.txn_read_on(node, shard, at, request.clone(), limit).await;
            read.map(|pieces| (node, pieces))
        };
        let (node, pieces) = match part.home {
            None => self.on_leader(group_of(shard), Effect::Once, within, attempt).await?.0,
            Some(home) => attempt(home, within).await.map_err(|failed| at_home(failed, false))?,
        };
        part.home = Some(node);
        rows_of(pieces, deadline).await.map(TxnReply::Rows)
    }

    async fn txn_read_on(
        &self,
        node: NodeId,
        shard: ShardId,
        at: TxnAt,
        request: ReadRequest,
        within: Duration,
    ) -> Result<Pieces, Attempt> {
        if node == self.node() {
            return Ok(self.serve_txn_read(shard, at, request, within).await?);
        }
        self.read_from(node, shard, request, Freshness::Strong, Some(at), within).await
    }

    /// A read for a move, on the shard's leader.
    pub async fn move_read(&self, shard: ShardId, request: MoveRead, within: Duration) -> Result<MoveChunk, HostError> {
        let ask = || Request::MoveRead { shard, request: request.clone() };
        match self.ask_leader(group_of(shard), Effect::None, within, ask).await? {
            (Response::Moved(chunk), _) => Ok(chunk),
            _ => Err(mismatch()),
        }
    }

    /// Whether a shard has a leader that a majority follows. Unlike a strong read this doesn't wait for what the shard
    /// is busy with, such as building an index.
    pub async fn has_quorum(&self, shard: ShardId, within: Duration) -> Result<(), HostError> {
        let group = group_of(shard);
        match self.ask_leader(group, Effect::None, within, || Request::Quorum(group)).await? {
            (Response::Quorum, _) => Ok(()),
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

    /// How many statements of clients a node has served, by the shards that it leads.
    pub async fn served_by(&self, node: NodeId, within: Duration) -> Result<BTreeMap<ShardId, u64>, HostError> {
        match self.ask_node(node, Request::Served, within).await? {
            Response::Served(served) => Ok(served),
            _ => Err(mismatch()),
        }
    }

    /// Whether a node knows a generation of the catalog and has nothing under way on a shard's server that was planned before (that may
    /// write, if `writes`). Gives how much it has when the time is over: 0 means that it has nothing, and never will.
    pub async fn settled(
        &self,
        node: NodeId,
        shard: ShardId,
        generation: Generation,
        writes: bool,
        within: Duration,
    ) -> Result<u64, HostError> {
        match self.ask_node(node, Request::Settled { shard, generation, writes }, within).await? {
            Response::Settled(left) => Ok(left),
            _ => Err(mismatch()),
        }
    }

    /// Whether a node's server of a shard runs, be it the primary or the standby.
    pub async fn server_runs(&self, node: NodeId, shard: ShardId, within: Duration) -> Result<bool, HostError> {
        match self.ask_node(node, Request::RunsServer(shard), within).await? {
            Response::RunsServer(runs) => Ok(runs),
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
        if self.catalog().engine == Engine::Postgres {
            return self.weights_on_server(shard, within).await;
        }
        match self.ask_leader(group_of(shard), Effect::None, within, || Request::Weights(shard)).await? {
            (Response::Weights(weights), _) => Ok(weights),
            _ => Err(mismatch()),
        }
    }

    pub(crate) async fn ask_node(
        &self,
        node: NodeId,
        request: Request,
        within: Duration,
    ) -> Result<Response, HostError> {
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

/// The head of a stream of rows, and the rest of it as it comes.
async fn rows_of(mut pieces: Pieces, deadline: Instant) -> Result<RowStream, HostError> {
    let mut head = match pieces.next().await {
        Some(Ok(first)) => VecDeque::from(first),
        Some(Err(declined)) => return Err(declined_here(declined)),
        None => return Err(mismatch()),
    };
    let txns = match head.pop_front_if(|piece| matches!(piece, Piece::Txns(_))) {
        Some(Piece::Txns(seen)) => Some(seen),
        _ => None,
    };
    let Some(Piece::Columns(columns)) = head.pop_front() else { return Err(mismatch()) };
    let pieces = futures::stream::try_unfold((head, pieces), move |(mut ready, mut pieces)| async move {
        loop {
            match ready.pop_front() {
                Some(Piece::End) => return Ok(None),
                Some(piece) => return Ok(Some((piece, (ready, pieces)))),
                None => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(next) = tokio::time::timeout(left, pieces.next()).await else {
                return Err(HostError::Timeout("the rows did not arrive within the statement's time".into()));
            };
            match next {
                Some(Ok(more)) => ready = more.into(),
                Some(Err(declined)) => return Err(declined_here(declined)),
                None => {
                    return Err(HostError::Timeout(
                        "the shard stopped before its last row: its rows were not taken for too long".into(),
                    ));
                }
            }
        }
    });
    Ok(RowStream { txns, columns, pieces: pieces.boxed() })
}

/// A failure of the node that has a transaction's part. The part is nowhere else.
fn at_home(failed: Attempt, decides: bool) -> HostError {
    match failed {
        Attempt::Failed(error) => error,
        Attempt::Lost(why) if decides => HostError::OutcomeUnknown(format!("the shard's leader was lost: {why}")),
        Attempt::Elsewhere { .. } | Attempt::Lost(_) => HostError::TxnEnded(TxnEnd::Lost),
    }
}

/// A shard's Raft group.
pub fn group_of(shard: ShardId) -> GroupId {
    GroupId::from(shard.0)
}

fn effect_of(action: &Action) -> Effect {
    match action {
        Action::Write { idempotency: None, .. } | Action::ReferenceWrite { idempotency: None, .. } => Effect::Once,
        Action::Bulk { parts, .. } if parts.iter().any(|part| part.idempotency.is_none()) => Effect::Once,
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

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use pleat_cluster::Value;

    use super::*;

    async fn rows(pieces: Vec<Piece>) -> Result<Vec<Piece>, HostError> {
        let pieces = futures::stream::iter(pieces.into_iter().map(|piece| Ok(vec![piece]))).boxed();
        rows_of(pieces, Instant::now() + Duration::from_secs(60)).await?.pieces.try_collect().await
    }

    #[tokio::test]
    async fn a_stream_that_was_cut_off_is_no_shorter_answer() {
        let head = || Piece::Columns(vec!["id".into()]);
        let row = || Piece::Rows(vec![vec![Value::Integer(1)]]);
        assert_eq!(rows(vec![head(), row(), row(), Piece::End]).await.unwrap().len(), 2);
        assert_eq!(rows(vec![head(), Piece::End]).await.unwrap().len(), 0, "an answer without rows");
        for cut in [vec![head()], vec![head(), row()], vec![head(), row(), row()]] {
            assert!(matches!(rows(cut).await, Err(HostError::Timeout(_))));
        }
        assert!(matches!(rows(vec![]).await, Err(HostError::Internal(_))));
    }
}
