//! `GET /shards`: every shard with what its leader measures.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use pleat_cluster::{Catalog, Engine, Follows, Shard, ShardState, TableKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::servers::{self, ServerFigures, Servers};
use crate::observer::{Look, ShardLook};
use pleat_cluster::rfc3339;

/// One shard. Figures are null when its leader could not be asked; none is ever made up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ShardBody {
    #[schema(example = "shard-1")]
    pub shard_id: String,
    /// CPU time of the leader's process as a percentage of its machine.
    pub cpu_percent: Option<f64>,
    /// Memory of the leader's process as a percentage of its machine's.
    pub memory_percent: Option<f64>,
    /// How full the file system of the leader's data directory is.
    pub disk_percent: Option<f64>,
    /// Rows over all tables; of a server as its statistics estimate them.
    pub total_entries: Option<u64>,
    /// Statements served or waiting at one time: the peak of the last ten seconds.
    pub connection_count: Option<u64>,
    pub queries_per_second: Option<f64>,
    pub database_size_bytes: Option<u64>,
    /// Rows per table.
    pub table_counts: Option<BTreeMap<String, u64>>,
    /// `healthy`, `unhealthy`, or `creating`.
    pub status: String,
    /// `sqlite` or `postgres`.
    pub engine: String,
    /// Where a shard that is a server listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The standby of a shard that is a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<StandbyBody>,
    /// When it was measured.
    pub last_updated: Option<String>,
    /// `creating` or `active`.
    pub state: String,
    /// The node that leads it.
    pub node: Option<String>,
    /// The nodes that hold a replica.
    pub replicas: Vec<String>,
    /// How many hash partitions it owns.
    pub partitions: u32,
    /// The single tables that live here.
    pub single_tables: Vec<String>,
    /// The generation at which what it owns last changed.
    pub ownership: u64,
    pub transactions_per_second: Option<f64>,
    pub latency_ms: Option<LatencyBody>,
    /// Statements that failed since the leader's replica started.
    pub errors: Option<u64>,
    /// How much of its log the leader has applied.
    pub applied_index: Option<u64>,
    /// Whether it holds rows of a move that is not cleaned up yet.
    pub holds_foreign_rows: Option<bool>,
    /// CPU time of everything on the leader's machine.
    pub system_cpu_percent: Option<f64>,
    pub memory_bytes: Option<u64>,
    pub disk_read_bytes_per_second: Option<f64>,
    pub disk_write_bytes_per_second: Option<f64>,
    pub network_received_bytes_per_second: Option<f64>,
    pub network_sent_bytes_per_second: Option<f64>,
    /// Why it is unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A server that follows the shard's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StandbyBody {
    /// The node that supervises it.
    pub node: String,
    pub server: Option<String>,
    /// `catching up`: it is not promoted; `following`; or `in step`: it has all that is acknowledged.
    pub state: String,
    /// Whether the primary waits for it.
    pub synchronous: bool,
    /// How much of the primary's log it does not have on its disk; null while it doesn't follow, or the primary could not be asked.
    pub lag_bytes: Option<u64>,
}

/// Latencies in milliseconds; null where nothing was served lately.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LatencyBody {
    pub p50: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
}

/// Every shard that was not removed.
pub fn bodies(catalog: &Catalog, look: &Look, servers: &Servers) -> Vec<ShardBody> {
    let mut partitions: BTreeMap<_, u32> = BTreeMap::new();
    catalog.owners.iter().for_each(|owner| *partitions.entry(*owner).or_default() += 1);
    (catalog.shards.values())
        .filter(|shard| shard.state != ShardState::Removed)
        .map(|shard| {
            let known = ShardBody {
                partitions: partitions.get(&shard.id).copied().unwrap_or(0),
                single_tables: single_tables(catalog, shard),
                ..known(catalog, shard)
            };
            match (look.shard(shard.id), servers.get(&shard.id)) {
                (_, Some(Ok(figures))) => with_server(known, look, shard, figures),
                (_, Some(Err(error))) => ShardBody { error: Some(error.clone()), ..known },
                (Some(seen), None) => with_figures(known, &seen),
                (None, None) => ShardBody { error: Some(look.trouble(&shard.replicas)), ..known },
            }
        })
        .collect()
}

/// What the catalog knows.
fn known(catalog: &Catalog, shard: &Shard) -> ShardBody {
    let name = |id| catalog.nodes.get(id).map_or_else(|| id.to_string(), |node| node.name.clone());
    let (state, status) = match shard.state {
        ShardState::Creating => ("creating", "creating"),
        ShardState::Leaving => ("leaving", "leaving"),
        ShardState::Active | ShardState::Removed => ("active", "unhealthy"),
    };
    ShardBody {
        shard_id: shard.id.to_string(),
        status: status.to_owned(),
        state: state.to_owned(),
        replicas: shard.replicas.iter().map(name).collect(),
        ownership: shard.ownership,
        engine: catalog.engine.name().to_owned(),
        server: shard.server.map(|server| server.to_string()),
        standby: standby(catalog, shard),
        ..ShardBody::default()
    }
}

fn standby(catalog: &Catalog, shard: &Shard) -> Option<StandbyBody> {
    let node = shard.standby().filter(|_| catalog.engine == Engine::Postgres)?;
    Some(StandbyBody {
        node: catalog.nodes.get(&node).map_or_else(|| node.to_string(), |node| node.name.clone()),
        server: shard.pair.places.get(&node).map(|place| place.address.to_string()),
        state: shard.pair.follows.name().to_owned(),
        synchronous: shard.pair.follows == Follows::InStep,
        lag_bytes: None,
    })
}

fn single_tables(catalog: &Catalog, shard: &Shard) -> Vec<String> {
    (catalog.tables.values())
        .filter(|table| matches!(table.kind, TableKind::Single { shard: at } if at == shard.id))
        .map(|table| table.name.clone())
        .collect()
}

fn with_figures(known: ShardBody, seen: &ShardLook<'_>) -> ShardBody {
    let ShardLook { resources, shard, .. } = seen;
    let status = if known.state == "active" { "healthy".to_owned() } else { known.status };
    ShardBody {
        status,
        cpu_percent: Some(resources.cpu_percent),
        memory_percent: Some(resources.memory_percent),
        disk_percent: Some(resources.disk_percent),
        total_entries: Some(shard.total_rows),
        connection_count: Some(shard.connections),
        queries_per_second: Some(shard.queries_per_second),
        database_size_bytes: Some(shard.database_bytes),
        table_counts: Some(shard.rows_per_table.clone()),
        last_updated: Some(rfc3339(seen.at)),
        node: Some(seen.node.to_string()),
        transactions_per_second: Some(shard.transactions_per_second),
        latency_ms: Some(LatencyBody {
            p50: shard.latency_ms.p50,
            p95: shard.latency_ms.p95,
            p99: shard.latency_ms.p99,
        }),
        errors: Some(shard.errors),
        applied_index: Some(shard.applied_index),
        holds_foreign_rows: Some(shard.holds_foreign_rows),
        system_cpu_percent: Some(resources.system_cpu_percent),
        memory_bytes: Some(resources.memory_bytes),
        disk_read_bytes_per_second: Some(resources.disk_read_bytes_per_second),
        disk_write_bytes_per_second: Some(resources.disk_write_bytes_per_second),
        network_received_bytes_per_second: Some(resources.network_received_bytes_per_second),
        network_sent_bytes_per_second: Some(resources.network_sent_bytes_per_second),
        ..known
    }
}

/// What a server says of itself, and its node of the machine.
fn with_server(known: ShardBody, look: &Look, shard: &Shard, figures: &ServerFigures) -> ShardBody {
    let supervisor = shard.replicas.first().copied();
    let seen = supervisor.and_then(|node| look.nodes.get(&node)?.as_ref().ok());
    let resources = seen.map(|seen| &seen.resources);
    ShardBody {
        status: if known.state == "active" { "healthy".to_owned() } else { known.status },
        total_entries: Some(figures.rows_per_table.values().sum()),
        connection_count: Some(figures.connections),
        database_size_bytes: Some(figures.database_bytes),
        table_counts: Some(figures.rows_per_table.clone()),
        last_updated: seen.map(|seen| rfc3339(seen.at)),
        node: supervisor.map(|node| node.to_string()),
        errors: Some(figures.rolled_back),
        standby: known.standby.map(|standby| StandbyBody { lag_bytes: figures.standby_behind, ..standby }),
        disk_percent: resources.map(|resources| resources.disk_percent),
        system_cpu_percent: resources.map(|resources| resources.system_cpu_percent),
        ..known
    }
}

/// List shards with what is measured now.
#[utoipa::path(get, path = "/shards", tag = "cluster", responses((status = 200, body = Vec<ShardBody>)))]
pub async fn list(State(app): State<App>) -> Json<Vec<ShardBody>> {
    let catalog = app.backend.catalog();
    let (look, servers) = tokio::join!(app.observer.look(), servers::look(app.backend.as_ref(), &catalog));
    Json(bodies(&catalog, &look, &servers))
}
