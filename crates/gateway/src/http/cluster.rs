//! `/cluster/status` and `/cluster/list-nodes`: the cluster as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use futures::future::join_all;
use pleat_cluster::{Catalog, Node, NodeId, ShardState};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::problem::{ErrorBody, Problem};
use crate::backend::Backend;
use crate::session::Failure;
use crate::settings::STATUS_TIME_MAX;

/// How long a node may take to answer a ping; within [`STATUS_TIME_MAX`], which is the whole answer's.
const PING_TIME_MAX: Duration = Duration::from_secs(2);

/// The nodes of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodesBody {
    pub cluster_size: u32,
    pub nodes: Vec<NodeBody>,
    /// The address of the node that answers.
    #[schema(example = "127.0.0.1:8080")]
    pub current_node: String,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeBody {
    #[schema(example = "127.0.0.1:8080")]
    pub node_address: String,
    #[schema(example = "node-1")]
    pub node_id: String,
    /// Whether it is the node that answers.
    pub is_current: bool,
    /// `running`; `waiting` when it has lost its disk and is to be rebuilt; `unreachable` when it did not answer in
    /// time.
    pub status: String,
    /// Its number in every Raft group.
    pub raft_id: u64,
    /// Whether it leads the control group, as far as the answering node knows.
    pub control_leader: bool,
    /// The shards of which it holds a replica.
    pub shards: Vec<String>,
    /// Seconds to its answer.
    pub response_time: Option<f64>,
}

/// The state of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatusBody {
    pub cluster_size: u32,
    pub current_node: String,
    pub peers: Vec<String>,
    /// Whether every partition has an owner.
    pub hash_ring_initialized: bool,
    pub replication_factor: u32,
    /// By address.
    pub peer_health: BTreeMap<String, PeerBody>,
    pub cluster_id: String,
    pub version: String,
    pub generation: u64,
    pub partition_count: u32,
    pub control: ControlLeaderBody,
    pub shards: Vec<PlacementBody>,
    pub tables: u32,
    pub operations_open: u32,
    /// The operation that is moving partitions now.
    pub moving: Option<String>,
}

/// One peer's health.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PeerBody {
    /// `healthy` or `unhealthy`.
    pub status: String,
    /// Seconds to its answer.
    pub response_time: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Who leads the control group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ControlLeaderBody {
    pub leader: Option<String>,
    pub leader_address: Option<String>,
    pub term: u64,
}

/// Where a shard is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlacementBody {
    pub shard_id: String,
    /// `creating` or `active`.
    pub state: String,
    pub partitions: u32,
    pub replicas: Vec<String>,
    /// Nodes whose replica serves nothing until it was rebuilt: its content differed from the others'.
    #[serde(default)]
    pub distrusted: Vec<String>,
    /// The replicas differ and no majority says which is right: how.
    #[serde(default)]
    pub disagreement: Option<String>,
}

type Pings = BTreeMap<NodeId, Result<Duration, String>>;

/// Ask every node at the same time.
async fn ping_all(backend: &dyn Backend, catalog: &Catalog) -> Pings {
    let here = backend.node();
    let asked = catalog.active_nodes().map(|node| async move {
        if node.id == here {
            return (node.id, Ok(Duration::ZERO));
        }
        let answer = tokio::time::timeout(PING_TIME_MAX, backend.ping(node.id, PING_TIME_MAX)).await;
        let answer = match answer {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} ms", PING_TIME_MAX.as_millis())),
        };
        (node.id, answer)
    });
    join_all(asked).await.into_iter().collect()
}

/// The catalog and everyone's pulse, within its limit.
async fn look(app: &App) -> Result<(Arc<Catalog>, Pings), Problem> {
    let catalog = app.backend.catalog();
    if !catalog.is_initialised() {
        let hint = "it is set up as soon as all of its founding nodes run: try again";
        return Err(Failure::passing("57P03", "the cluster is not set up yet", hint).into());
    }
    match tokio::time::timeout(STATUS_TIME_MAX, ping_all(app.backend.as_ref(), &catalog)).await {
        Ok(pings) => Ok((catalog, pings)),
        Err(_) => Err(Failure::timeout(STATUS_TIME_MAX).into()),
    }
}

fn seconds(ping: Option<&Result<Duration, String>>) -> Option<f64> {
    ping.and_then(|ping| ping.as_ref().ok()).map(Duration::as_secs_f64)
}

fn address(catalog: &Catalog, node: NodeId) -> String {
    catalog.nodes.get(&node).map(|node| node.address.clone()).unwrap_or_default()
}

fn nodes_body(catalog: &Catalog, pings: &Pings, here: NodeId, leader: Option<NodeId>) -> NodesBody {
    let body = |node: &Node| NodeBody {
        node_address: node.address.clone(),
        node_id: node.name.clone(),
        is_current: node.id == here,
        status: match pings.get(&node.id) {
            Some(Ok(_)) if node.waiting.is_some() => "waiting",
            Some(Ok(_)) => "running",
            _ => "unreachable",
        }
        .to_owned(),
        raft_id: node.id.0,
        control_leader: leader == Some(node.id),
        shards: (catalog.shards.values())
            .filter(|shard| shard.state != ShardState::Removed && shard.replicas.contains(&node.id))
            .map(|shard| shard.id.to_string())
            .collect(),
        response_time: seconds(pings.get(&node.id)),
    };
    let nodes: Vec<_> = catalog.active_nodes().map(body).collect();
    NodesBody { cluster_size: nodes.len() as u32, nodes, current_node: address(catalog, here) }
}

fn status_body(
    catalog: &Catalog,
    pings: &Pings,
    here: NodeId,
    control: &pleat_consensus::Status,
    version: &str,
) -> StatusBody {
    let peers: Vec<&Node> = catalog.active_nodes().filter(|node| node.id != here).collect();
    let health = |node: &&Node| {
        let ping = pings.get(&node.id);
        let body = PeerBody {
            status: if matches!(ping, Some(Ok(_))) { "healthy" } else { "unhealthy" }.to_owned(),
            response_time: seconds(ping),
            error: ping.and_then(|ping| ping.as_ref().err()).cloned(),
        };
        (node.address.clone(), body)
    };
    StatusBody {
        cluster_size: catalog.active_nodes().count() as u32,
        current_node: address(catalog, here),
        peers: peers.iter().map(|node| node.address.clone()).collect(),
        hash_ring_initialized: catalog.is_initialised() && catalog.owners.len() == catalog.partition_count as usize,
        replication_factor: catalog.replication_factor,
        peer_health: peers.iter().map(health).collect(),
        cluster_id: catalog.cluster_id.clone(),
        version: version.to_owned(),
        generation: catalog.generation,
        partition_count: catalog.partition_count,
        control: ControlLeaderBody {
            leader: control.leader.map(|leader| leader.to_string()),
            leader_address: control.leader.map(|leader| address(catalog, leader)),
            term: control.term,
        },
        shards: placements(catalog),
        tables: catalog.tables.len() as u32,
        operations_open: catalog.open_operations().count() as u32,
        moving: catalog.moving().map(|operation| operation.id.to_string()),
    }
}

fn placements(catalog: &Catalog) -> Vec<PlacementBody> {
    let state = |state| match state {
        ShardState::Creating => Some("creating"),
        ShardState::Active => Some("active"),
        ShardState::Leaving => Some("leaving"),
        ShardState::Removed => None,
    };
    let body = |shard: &pleat_cluster::Shard| {
        Some(PlacementBody {
            shard_id: shard.id.to_string(),
            state: state(shard.state)?.to_owned(),
            partitions: catalog.partitions_of(shard.id).len() as u32,
            replicas: shard.replicas.iter().map(ToString::to_string).collect(),
            distrusted: shard.distrusted.iter().map(ToString::to_string).collect(),
            disagreement: shard.disagreement.clone(),
        })
    };
    catalog.shards.values().filter_map(body).collect()
}

/// List the nodes.
#[utoipa::path(get, path = "/cluster/list-nodes", tag = "cluster",
    responses((status = 200, body = NodesBody), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
pub async fn list_nodes(State(app): State<App>) -> Result<Json<NodesBody>, Problem> {
    let (catalog, pings) = look(&app).await?;
    let leader = app.backend.control_status().leader;
    Ok(Json(nodes_body(&catalog, &pings, app.backend.node(), leader)))
}

/// Show the state of the cluster.
#[utoipa::path(get, path = "/cluster/status", tag = "cluster",
    responses((status = 200, body = StatusBody), (status = 503, body = ErrorBody), (status = 504, body = ErrorBody)))]
pub async fn status(State(app): State<App>) -> Result<Json<StatusBody>, Problem> {
    let (catalog, pings) = look(&app).await?;
    let control = app.backend.control_status();
    Ok(Json(status_body(&catalog, &pings, app.backend.node(), &control, &app.settings.version)))
}
