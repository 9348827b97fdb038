//! What the gateway needs of the cluster: the seam between the protocols and the node they run on.
//!
//! In a node this is [`pleat_host::Host`]. Tests put a cluster into one process instead, with real shards
//! and a real catalog but no sockets, so that what happens when a shard refuses or a leader is lost can be
//! brought about at will.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pleat_cluster::{
    Catalog, Command, Generation, LedgerCommand, LedgerReply, Millis, NodeId, OperationId, PartitionId, Planned, Reply,
    ShardId,
};
use pleat_consensus::{Disk, Status};
use pleat_engine::postgres::{Asked, Lease};
use pleat_engine::{Action, ReadRequest};
use pleat_host::{
    Freshness, Host, HostError, InDoubt, NodeObservation, PartitionWeight, Pass, Progress, RowStream, TxnPart,
    TxnReply, TxnStep, Written,
};
use tokio::sync::watch;

/// A cluster, seen from one of its nodes. See [`Host`] for what each call promises.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    fn node(&self) -> NodeId;
    fn started_at_ms(&self) -> Millis;
    fn now_ms(&self) -> Millis;
    fn catalog(&self) -> Arc<Catalog>;
    fn watch_catalog(&self) -> watch::Receiver<Arc<Catalog>>;
    fn control_status(&self) -> Status;
    /// The disk of the node.
    fn disk(&self) -> Arc<Disk> {
        Disk::unlimited()
    }
    fn shard_status(&self, shard: ShardId) -> Option<Status>;
    async fn catalog_reaches(&self, generation: Generation, within: Duration) -> bool;
    async fn fresh_catalog(&self, within: Duration) -> Result<Arc<Catalog>, HostError>;
    async fn command(&self, command: Command, within: Duration) -> Result<Reply, HostError>;
    async fn write(
        &self,
        shard: ShardId,
        planned: Planned,
        action: Action,
        within: Duration,
    ) -> Result<Written, HostError>;
    async fn write_reference(&self, planned: Planned, action: Action, within: Duration) -> Result<Written, HostError>;
    async fn read(
        &self,
        shard: ShardId,
        request: ReadRequest,
        freshness: Freshness,
        within: Duration,
    ) -> Result<RowStream, HostError>;
    /// The right to have something under way on a shard that is a server.
    async fn pass(
        &self,
        shard: ShardId,
        planned: Generation,
        writes: bool,
        within: Duration,
    ) -> Result<Pass, HostError>;
    /// Have a session on a shard's server ended, by the number of its process there. Returns when it has.
    async fn end_session(&self, shard: ShardId, process: u32);
    /// A connection to a shard that is a server, for a transaction.
    async fn lease(&self, shard: ShardId, within: Duration) -> Result<Lease, HostError>;
    /// What a shard's server answers to a short question of Pleat's own.
    async fn ask_server(&self, shard: ShardId, text: String, within: Duration) -> Result<Vec<Asked>, HostError>;
    /// The time that a transaction which begins now carries.
    fn txn_clock(&self) -> Millis;
    async fn ledger_command(&self, command: LedgerCommand, within: Duration) -> Result<LedgerReply, HostError>;
    async fn txn_step(&self, part: &mut TxnPart, step: TxnStep, within: Duration) -> Result<TxnReply, HostError>;
    async fn touch_txn(&self, part: &TxnPart, within: Duration);
    async fn in_doubt(&self, within: Duration) -> Result<Vec<InDoubt>, HostError>;
    async fn observe(&self, node: NodeId, within: Duration) -> Result<NodeObservation, HostError>;
    /// Rows and bytes of each partition of a shard. Scans the shard.
    async fn partition_weights(
        &self,
        shard: ShardId,
        within: Duration,
    ) -> Result<BTreeMap<PartitionId, PartitionWeight>, HostError>;
    async fn ping(&self, node: NodeId, within: Duration) -> Result<Duration, HostError>;
    /// How far the operations are that are being carried out.
    async fn progress(&self, within: Duration) -> Result<BTreeMap<OperationId, Progress>, HostError>;
}

#[async_trait]
impl Backend for Host {
    fn node(&self) -> NodeId {
        Host::node(self)
    }

    fn started_at_ms(&self) -> Millis {
        Host::started_at_ms(self)
    }

    fn now_ms(&self) -> Millis {
        Host::now_ms(self)
    }

    fn catalog(&self) -> Arc<Catalog> {
        Host::catalog(self)
    }

    fn watch_catalog(&self) -> watch::Receiver<Arc<Catalog>> {
        Host::watch_catalog(self)
    }

    fn control_status(&self) -> Status {
        Host::control_status(self)
    }

    fn disk(&self) -> Arc<Disk> {
        Host::disk(self)
    }

    fn shard_status(&self, shard: ShardId) -> Option<Status> {
        Host::shard_status(self, shard)
    }

    async fn catalog_reaches(&self, generation: Generation, within: Duration) -> bool {
        Host::catalog_reaches(self, generation, within).await
    }

    async fn fresh_catalog(&self, within: Duration) -> Result<Arc<Catalog>, HostError> {
        Host::fresh_catalog(self, within).await
    }

    async fn command(&self, command: Command, within: Duration) -> Result<Reply, HostError> {
        Host::command(self, command, within).await
    }

    async fn write(
        &self,
        shard: ShardId,
        planned: Planned,
        action: Action,
        within: Duration,
    ) -> Result<Written, HostError> {
        Host::write(self, shard, planned, action, within).await
    }

    async fn write_reference(&self, planned: Planned, action: Action, within: Duration) -> Result<Written, HostError> {
        Host::write_reference(self, planned, action, within).await
    }

    async fn read(
        &self,
        shard: ShardId,
        request: ReadRequest,
        freshness: Freshness,
        within: Duration,
    ) -> Result<RowStream, HostError> {
        Host::read(self, shard, request, freshness, within).await
    }

    async fn pass(
        &self,
        shard: ShardId,
        planned: Generation,
        writes: bool,
        within: Duration,
    ) -> Result<Pass, HostError> {
        Host::pass(self, shard, planned, writes, within).await
    }

    async fn end_session(&self, shard: ShardId, process: u32) {
        Host::end_session(self, shard, process).await
    }

    async fn lease(&self, shard: ShardId, within: Duration) -> Result<Lease, HostError> {
        Host::lease(self, shard, within).await
    }

    async fn ask_server(&self, shard: ShardId, text: String, within: Duration) -> Result<Vec<Asked>, HostError> {
        Host::ask_server(self, shard, &[text], within).await
    }

    fn txn_clock(&self) -> Millis {
        Host::txn_clock(self)
    }

    async fn ledger_command(&self, command: LedgerCommand, within: Duration) -> Result<LedgerReply, HostError> {
        Host::ledger_command(self, command, within).await
    }

    async fn txn_step(&self, part: &mut TxnPart, step: TxnStep, within: Duration) -> Result<TxnReply, HostError> {
        Host::txn_step(self, part, step, within).await
    }

    async fn touch_txn(&self, part: &TxnPart, within: Duration) {
        Host::touch_txn(self, part, within).await
    }

    async fn in_doubt(&self, within: Duration) -> Result<Vec<InDoubt>, HostError> {
        Host::in_doubt(self, within).await
    }

    async fn observe(&self, node: NodeId, within: Duration) -> Result<NodeObservation, HostError> {
        Host::observe(self, node, within).await
    }

    async fn partition_weights(
        &self,
        shard: ShardId,
        within: Duration,
    ) -> Result<BTreeMap<PartitionId, PartitionWeight>, HostError> {
        Host::partition_weights(self, shard, within).await
    }

    async fn ping(&self, node: NodeId, within: Duration) -> Result<Duration, HostError> {
        Host::ping(self, node, within).await
    }

    async fn progress(&self, within: Duration) -> Result<BTreeMap<OperationId, Progress>, HostError> {
        Host::progress(self, within).await
    }
}
