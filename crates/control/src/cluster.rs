//! What the control loop does to the cluster, as one trait: everything in this crate acts through it.
//!
//! In production it is a [`Host`]. Tests put two real engines and a catalog behind it and break it at every
//! single call, which is how the promise of the mover (die anywhere, and the move resumes or rolls back) is
//! kept honest.
//!
//! Every effect here is idempotent or carries an epoch that makes an outdated repetition a refusal, so an
//! error that leaves open whether the effect took place is handled like one that says it did not: by doing
//! it again. The one exception is the commit of a move, see `mover`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pleat_cluster::{
    Catalog, Command, Engine, Generation, LedgerCommand, LedgerReply, Millis, NodeId, OperationId, PartitionId, Reply,
    ShardId,
};
use pleat_engine::postgres::{Asked, PostgresError, Server};
use pleat_engine::{
    Action, ContentDigest, MoveChunk, MoveRead, Outcome, OwnershipCheck, Query, ReadLimits, ReadRequest,
};
use pleat_host::{
    Freshness, GroupView, Host, HostError, MemberChange, NodeObservation, NodeReplicas, PartitionWeight, Progress,
};
use tokio::sync::watch;

/// The cluster as seen by its control leader.
#[async_trait]
pub trait Cluster: Send + Sync + 'static {
    fn now_ms(&self) -> Millis;
    /// The term in which this node leads the control group, if it does.
    fn epoch(&self) -> Option<u64>;
    /// The newest catalog known here; while this node leads, the newest there is.
    fn catalog(&self) -> Arc<Catalog>;
    fn watch_catalog(&self) -> watch::Receiver<Arc<Catalog>>;
    /// Change the catalog; [`Cluster::catalog`] shows it when this returns.
    async fn command(&self, command: Command, within: Duration) -> Result<Reply, HostError>;
    /// Write to a shard's log, and give what applying it gave.
    async fn write(&self, shard: ShardId, action: Action, within: Duration) -> Result<Outcome, HostError>;
    /// Ask a shard's leader, after a round of its quorum.
    async fn move_read(&self, shard: ShardId, request: MoveRead, within: Duration) -> Result<MoveChunk, HostError>;
    /// Have a shard's server carry out texts, one after the other on one connection: see [`Host::ask_server`].
    async fn ask(&self, shard: ShardId, texts: Vec<String>, within: Duration) -> Result<Vec<Asked>, HostError>;
    /// Change the ledger of transactions and ids.
    async fn ledger(&self, command: LedgerCommand, within: Duration) -> Result<LedgerReply, HostError>;
    /// How a shard's server is reached by whoever needs connections of its own. `None`: it was not started yet.
    fn server(&self, shard: ShardId) -> Result<Option<Server>, HostError>;
    /// How much a node has under way on a shard's server that was planned before a generation: see [`Host::settled`].
    async fn settled(
        &self,
        node: NodeId,
        shard: ShardId,
        generation: Generation,
        writes: bool,
        within: Duration,
    ) -> Result<u64, HostError>;
    /// Ask a shard's primary on a connection of its own; within: see [`Host::ask_apart`].
    async fn ask_apart(&self, shard: ShardId, text: &str, within: Duration) -> Result<Asked, PostgresError>;
    /// Whether a node's server of a shard runs.
    async fn server_runs(&self, node: NodeId, shard: ShardId, within: Duration) -> Result<bool, HostError>;
    /// See [`pleat_provision::process::fence`].
    async fn fence(&self, dir: &str, reign: u64, number: u64) -> Result<(), String>;
    /// Whether the shard has a leader that a majority follows, be it busy or not; of a server: whether it answers.
    async fn reach(&self, shard: ShardId, within: Duration) -> Result<(), HostError>;
    /// Whether the shard answers a read; otherwise what is missing, for people.
    async fn probe(&self, shard: ShardId, within: Duration) -> Result<(), String>;
    async fn observe(&self, node: NodeId, within: Duration) -> Result<NodeObservation, HostError>;
    async fn partition_weights(
        &self,
        shard: ShardId,
        within: Duration,
    ) -> Result<BTreeMap<PartitionId, PartitionWeight>, HostError>;
    /// Let those who ask know how far an operation is; `None`: it is not in hand any more.
    fn note_progress(&self, operation: OperationId, progress: Option<Progress>);
    /// How many statements of clients a node has served, by the shards that it leads.
    async fn served(&self, node: NodeId, within: Duration) -> Result<BTreeMap<ShardId, u64>, HostError>;
    /// What a node tells of its replicas, be it leading them or not.
    async fn replicas(&self, node: NodeId, within: Duration) -> Result<NodeReplicas, HostError>;
    /// The digest of a node's replica at an entry of the log, if it still has it.
    async fn digest(
        &self,
        node: NodeId,
        shard: ShardId,
        index: u64,
        within: Duration,
    ) -> Result<Option<ContentDigest>, HostError>;
    /// Have the leader of a shard, or of the control group (`None`), change the members.
    async fn members(
        &self,
        shard: Option<ShardId>,
        change: MemberChange,
        within: Duration,
    ) -> Result<GroupView, HostError>;
}

/// Who answers this, serves.
const ANYTHING: &str = "SELECT 1";

/// The real cluster.
pub struct HostCluster(pub Arc<Host>);

#[async_trait]
impl Cluster for HostCluster {
    fn now_ms(&self) -> Millis {
        self.0.now_ms()
    }

    fn epoch(&self) -> Option<u64> {
        self.0.control_epoch()
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.0.catalog()
    }

    fn watch_catalog(&self) -> watch::Receiver<Arc<Catalog>> {
        self.0.watch_catalog()
    }

    async fn command(&self, command: Command, within: Duration) -> Result<Reply, HostError> {
        self.0.command(command, within).await
    }

    async fn write(&self, shard: ShardId, action: Action, within: Duration) -> Result<Outcome, HostError> {
        let planned = self.0.catalog().planned();
        Ok(self.0.write(shard, planned, action, within).await?.outcome)
    }

    async fn move_read(&self, shard: ShardId, request: MoveRead, within: Duration) -> Result<MoveChunk, HostError> {
        self.0.move_read(shard, request, within).await
    }

    async fn ask(&self, shard: ShardId, texts: Vec<String>, within: Duration) -> Result<Vec<Asked>, HostError> {
        self.0.ask_server(shard, &texts, within).await
    }

    async fn ledger(&self, command: LedgerCommand, within: Duration) -> Result<LedgerReply, HostError> {
        self.0.ledger_command(command, within).await
    }

    fn server(&self, shard: ShardId) -> Result<Option<Server>, HostError> {
        self.0.server(shard)
    }

    async fn ask_apart(&self, shard: ShardId, text: &str, within: Duration) -> Result<Asked, PostgresError> {
        self.0.ask_apart(shard, text, within).await
    }

    async fn server_runs(&self, node: NodeId, shard: ShardId, within: Duration) -> Result<bool, HostError> {
        self.0.server_runs(node, shard, within).await
    }

    async fn fence(&self, dir: &str, reign: u64, number: u64) -> Result<(), String> {
        pleat_provision::process::fence(Path::new(dir), reign, number).await
    }

    async fn settled(
        &self,
        node: NodeId,
        shard: ShardId,
        generation: Generation,
        writes: bool,
        within: Duration,
    ) -> Result<u64, HostError> {
        self.0.settled(node, shard, generation, writes, within).await
    }

    async fn reach(&self, shard: ShardId, within: Duration) -> Result<(), HostError> {
        match self.0.catalog().engine {
            Engine::Sqlite => self.0.has_quorum(shard, within).await,
            Engine::Postgres => self.ask(shard, vec![ANYTHING.to_owned()], within).await.map(drop),
        }
    }

    async fn probe(&self, shard: ShardId, within: Duration) -> Result<(), String> {
        if self.0.catalog().engine == Engine::Postgres {
            return self.reach(shard, within).await.map_err(|error| error.to_string());
        }
        let request = ReadRequest {
            queries: vec![Query::new(ANYTHING)],
            check: OwnershipCheck::None,
            layout: None,
            now_ms: self.0.now_ms(),
            seed: 0,
            limits: ReadLimits { time: within, ..ReadLimits::default() },
            names_txns: false,
        };
        let read = self.0.read(shard, request, Freshness::Strong, within).await;
        read.map(drop).map_err(|error| error.to_string())
    }

    async fn observe(&self, node: NodeId, within: Duration) -> Result<NodeObservation, HostError> {
        self.0.observe(node, within).await
    }

    async fn partition_weights(
        &self,
        shard: ShardId,
        within: Duration,
    ) -> Result<BTreeMap<PartitionId, PartitionWeight>, HostError> {
        self.0.partition_weights(shard, within).await
    }

    fn note_progress(&self, operation: OperationId, progress: Option<Progress>) {
        self.0.note_progress(operation, progress);
    }

    async fn served(&self, node: NodeId, within: Duration) -> Result<BTreeMap<ShardId, u64>, HostError> {
        self.0.served_by(node, within).await
    }

    async fn replicas(&self, node: NodeId, within: Duration) -> Result<NodeReplicas, HostError> {
        self.0.replicas_of(node, within).await
    }

    async fn digest(
        &self,
        node: NodeId,
        shard: ShardId,
        index: u64,
        within: Duration,
    ) -> Result<Option<ContentDigest>, HostError> {
        self.0.digest_of(node, shard, index, within).await
    }

    async fn members(
        &self,
        shard: Option<ShardId>,
        change: MemberChange,
        within: Duration,
    ) -> Result<GroupView, HostError> {
        self.0.change_members(shard, change, within).await
    }
}

/// Lets the embedded provisioner ask the cluster.
pub(crate) struct ClusterProbe(pub Arc<dyn Cluster>);

#[async_trait]
impl pleat_provision::Probe for ClusterProbe {
    async fn probe(&self, shard: ShardId, within: Duration) -> Result<(), String> {
        self.0.probe(shard, within).await
    }
}
