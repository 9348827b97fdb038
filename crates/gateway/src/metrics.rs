//! What this node counts, and how Prometheus reads it.
//!
//! Counters and histograms live in a registry of this node's own (not of the process: several nodes share
//! one in tests and simulation). Gauges that describe shards and Raft groups are read when Prometheus asks,
//! into a registry that lives for that one answer, so a shard that is gone leaves no figure behind.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use pleat_cluster::Catalog;
use pleat_consensus::Status;
use pleat_engine::RoomTaken;
use pleat_host::NodeObservation;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Bounds of the latency histograms, in seconds.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    route: String,
    method: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    route: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Plan {
    cached: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Code {
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Message {
    message: &'static str,
}

type Real = Gauge<f64, AtomicU64>;

/// One node's counters.
pub struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    seconds: Family<Route, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
    plans: Family<Plan, Counter>,
    failures: Family<Code, Counter>,
    reroutes: Counter,
    bulk_rows: Counter,
    pg_connections: Gauge,
    pg_seconds: Family<Message, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("pleat");
        let histogram: fn() -> Histogram = || Histogram::new(SECONDS);
        let metrics = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(histogram),
            in_flight: Gauge::default(),
            plans: Family::default(),
            failures: Family::default(),
            reroutes: Counter::default(),
            bulk_rows: Counter::default(),
            pg_connections: Gauge::default(),
            pg_seconds: Family::new_with_constructor(histogram),
            registry: Registry::default(),
        };
        registry.register("http_requests", "HTTP requests answered", metrics.requests.clone());
        registry.register("http_request_seconds", "Time to the answer's head", metrics.seconds.clone());
        registry.register("requests_in_flight", "Statements and batches being served", metrics.in_flight.clone());
        registry.register("statements_planned", "Statements, by whether the plan was known", metrics.plans.clone());
        registry.register("statements_failed", "Failed statements and batches by code", metrics.failures.clone());
        registry.register(
            "reroutes",
            "Attempts that a shard refused and that were routed again",
            metrics.reroutes.clone(),
        );
        registry.register("bulk_rows_inserted", "Rows inserted by batches", metrics.bulk_rows.clone());
        registry.register("pg_connections", "PostgreSQL sessions that are open", metrics.pg_connections.clone());
        let seconds = metrics.pg_seconds.clone();
        registry.register("pg_message_seconds", "Time that messages of PostgreSQL clients took", seconds);
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// A request to `route` (its pattern, not its path) was answered.
    pub fn answered(&self, route: &str, method: &str, status: u16, took: Duration) {
        let request = Request { route: route.to_owned(), method: method.to_owned(), status };
        self.requests.get_or_create(&request).inc();
        self.seconds.get_or_create(&Route { route: route.to_owned() }).observe(took.as_secs_f64());
    }

    pub fn planned(&self, known: bool) {
        self.plans.get_or_create(&Plan { cached: if known { "yes" } else { "no" } }).inc();
    }

    /// A PostgreSQL session began, or ended.
    pub fn pg_connected(&self, began: bool) {
        if began {
            self.pg_connections.inc()
        } else {
            self.pg_connections.dec()
        };
    }

    /// A message of a PostgreSQL client was carried out.
    pub fn pg_message(&self, message: &'static str, took: Duration) {
        self.pg_seconds.get_or_create(&Message { message }).observe(took.as_secs_f64());
    }

    /// A statement or batch failed with `code`.
    pub fn failed(&self, code: &str) {
        self.failures.get_or_create(&Code { code: code.to_owned() }).inc();
    }

    pub fn rerouted(&self) {
        self.reroutes.inc();
    }

    pub fn bulk_inserted(&self, rows: u64) {
        self.bulk_rows.inc_by(rows);
    }

    /// How many statements and batches are being served.
    pub fn in_flight(&self) -> &Gauge {
        &self.in_flight
    }

    /// All of it as Prometheus reads it.
    pub fn render(&self, seen: &Seen<'_>) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &gauges(seen))?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// What the gauges show.
pub struct Seen<'a> {
    pub catalog: &'a Catalog,
    /// What this node measured of itself; `None` when that failed.
    pub observation: Option<&'a NodeObservation>,
    /// The Raft groups with a replica here, by name.
    pub groups: Vec<(String, Status)>,
    pub uptime: Duration,
    /// What queries that gather rows take.
    pub room: RoomTaken,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ShardLabel {
    shard: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TableLabel {
    shard: String,
    table: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct QuantileLabel {
    shard: String,
    quantile: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct GroupLabel {
    group: String,
}

fn gauges(seen: &Seen<'_>) -> Registry {
    let mut registry = Registry::with_prefix("pleat");
    catalog_gauges(&mut registry, seen);
    room_gauges(&mut registry, &seen.room);
    group_gauges(&mut registry, &seen.groups);
    if let Some(observation) = seen.observation {
        resource_gauges(&mut registry, observation);
        shard_gauges(&mut registry, observation);
    }
    registry
}

fn single(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = Real::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn catalog_gauges(registry: &mut Registry, seen: &Seen<'_>) {
    let catalog = seen.catalog;
    single(registry, "uptime_seconds", "Time since this node started", seen.uptime.as_secs_f64());
    single(registry, "catalog_generation", "This node's catalog", catalog.generation as f64);
    single(registry, "nodes", "Nodes of the cluster", catalog.active_nodes().count() as f64);
    single(registry, "shards", "Active shards of the cluster", catalog.active_shards().count() as f64);
    single(registry, "tables", "Tables of the cluster", catalog.tables.len() as f64);
    single(registry, "operations_open", "Operations that have not ended", catalog.open_operations().count() as f64);
}

fn room_gauges(registry: &mut Registry, room: &RoomTaken) {
    single(registry, "gather_memory_bytes", "Memory given to queries that gather rows", room.memory as f64);
    single(registry, "gather_disk_bytes", "Temporary files of queries that gather rows", room.disk as f64);
    registry.register("gathers_spilled", "Queries whose rows did not fit into memory", ConstCounter::new(room.spilled));
    let written = ConstCounter::new(room.spilled_bytes);
    registry.register("gather_spilled_bytes", "Written to temporary files by queries that gather rows", written);
}

fn group_gauges(registry: &mut Registry, groups: &[(String, Status)]) {
    let mut family = |name: &str, help: &str, value: &dyn Fn(&Status) -> f64| {
        let family = Family::<GroupLabel, Real>::default();
        for (group, status) in groups {
            family.get_or_create(&GroupLabel { group: group.clone() }).set(value(status));
        }
        registry.register(name, help, family);
    };
    family("raft_term", "Term of the group", &|status| status.term as f64);
    family("raft_is_leader", "1 where this node leads the group", &|status| f64::from(u8::from(status.is_leader)));
    family("raft_last_log_index", "Last entry in this node's log", &|status| status.last_log as f64);
    family("raft_applied_index", "Last entry applied on this node", &|status| status.applied as f64);
    family("raft_stopped", "1 where the replica has stopped", &|status| f64::from(u8::from(status.stopped.is_some())));
}

fn resource_gauges(registry: &mut Registry, observation: &NodeObservation) {
    let resources = &observation.resources;
    single(registry, "process_cpu_percent", "CPU of this process, of the machine", resources.cpu_percent);
    single(registry, "system_cpu_percent", "CPU of everything on the machine", resources.system_cpu_percent);
    single(registry, "process_memory_bytes", "Resident memory of this process", resources.memory_bytes as f64);
    single(registry, "disk_used_percent", "File system of the data directory", resources.disk_percent);
    let rates = [
        ("disk_read_bytes_per_second", "Read by this process", resources.disk_read_bytes_per_second),
        ("disk_write_bytes_per_second", "Written by this process", resources.disk_write_bytes_per_second),
        ("network_received_bytes_per_second", "Received by the machine", resources.network_received_bytes_per_second),
        ("network_sent_bytes_per_second", "Sent by the machine", resources.network_sent_bytes_per_second),
    ];
    rates.into_iter().for_each(|(name, help, value)| single(registry, name, help, value));
}

/// Of the shards that this node leads; every shard is shown by exactly one node.
fn shard_gauges(registry: &mut Registry, observation: &NodeObservation) {
    type Shard = pleat_host::ShardObservation;
    let mut family = |name: &str, help: &str, value: &dyn Fn(&Shard) -> f64| {
        let family = Family::<ShardLabel, Real>::default();
        for shard in &observation.shards {
            family.get_or_create(&ShardLabel { shard: shard.shard.to_string() }).set(value(shard));
        }
        registry.register(name, help, family);
    };
    family("shard_rows", "Rows of the shard", &|shard| shard.total_rows as f64);
    family("shard_database_bytes", "Size of the shard's database", &|shard| shard.database_bytes as f64);
    family("shard_connections", "Statements at one time, peak", &|shard| shard.connections as f64);
    family("shard_queries_per_second", "Reads and writes", &|shard| shard.queries_per_second);
    family("shard_transactions_per_second", "Writes", &|shard| shard.transactions_per_second);
    family("shard_errors", "Failed since the replica started", &|shard| shard.errors as f64);
    family("shard_ownership_generation", "When what it owns last changed", &|shard| shard.ownership as f64);

    let rows = Family::<TableLabel, Real>::default();
    let latency = Family::<QuantileLabel, Real>::default();
    for shard in &observation.shards {
        let name = shard.shard.to_string();
        for (table, count) in &shard.rows_per_table {
            let label = TableLabel { shard: name.clone(), table: table.clone() };
            rows.get_or_create(&label).set(*count as f64);
        }
        let quantiles = &shard.latency_ms;
        for (quantile, value) in [("0.5", quantiles.p50), ("0.95", quantiles.p95), ("0.99", quantiles.p99)] {
            if let Some(value) = value {
                latency.get_or_create(&QuantileLabel { shard: name.clone(), quantile }).set(value);
            }
        }
    }
    registry.register("shard_table_rows", "Rows of a table on the shard", rows);
    registry.register("shard_latency_milliseconds", "Latency of statements lately", latency);
}
