//! Configuration: a file, over it the environment, over both the flags.
//!
//! **The file** is `pleat.toml`, or the same as YAML or JSON by its extension. All three are read into one
//! tree, and the tree is checked against one table of known keys ([`keys`]), so that every mistake is
//! reported alike: the key, what is wrong with it, the file and line where that can be told, and the nearest
//! key that exists. Nothing is ignored silently: a misspelt threshold would mean a cluster that never scales.
//!
//! **The environment** is `PLEAT_` and the key in capitals, with two underscores for a dot:
//! `PLEAT_SCALING_THRESHOLDS__CPU_THRESHOLD_PERCENT=80`.
//!
//! Caveat: lines are found by looking for the key's text again, since the parsers don't keep positions; in an
//! odd file the line can be that of a namesake, and the key's full path is always named as well.

mod env;
pub mod keys;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pleat_cluster::{Engine, Mode, PARTITION_COUNT_DEFAULT, Policy, ScaleIn, Standbys, Strategy, Thresholds};
use pleat_provision::process::{PROGRAMS, Size};
use serde_json::Value;

use crate::options::PgListen;

/// What a cluster and its nodes are configured with. Everything has a default.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How many nodes `pleat up` starts.
    pub nodes: Option<u32>,
    /// How many shards a new cluster starts with.
    pub initial_shards: Option<u32>,
    /// What the shards of a new cluster are.
    pub engine: Option<Engine>,
    pub postgres: PostgresConfig,
    /// How many shards are left at least. None: as many as the cluster starts with.
    pub min_shards: Option<u32>,
    /// Where node 1 of `pleat up` listens.
    pub listen: Option<SocketAddr>,
    /// Where the coordinator's interface of node 1 of `pleat up` listens.
    pub coordinator_listen: Option<SocketAddr>,
    /// Where node 1 of `pleat up` serves PostgreSQL clients, if it does.
    pub pg_listen: Option<PgListen>,
    /// Where `pleat up` keeps its data.
    pub data_dir: Option<PathBuf>,
    /// Listen beyond loopback without authentication and TLS.
    pub insecure: bool,
    pub tls: TlsConfig,
    /// The shard key of tables whose CREATE TABLE names none.
    pub table_shard_keys: BTreeMap<String, String>,
    /// Whether the autoscaler acts. None: it does, if the shards can be split.
    pub scaling_mode: Option<Mode>,
    /// When and how the autoscaler acts.
    pub policy: Policy,
    /// Hash buckets of keys. Fixed when the cluster is made.
    pub partition_count: u32,
    /// Replicas of each shard (as many as there are nodes, at most this many).
    pub replication_factor: u32,
    /// How often the replicas of a shard are compared, in seconds; 0: never.
    pub verify_interval_s: u64,
    pub limits: Limits,
    /// Statements that take longer are logged, in milliseconds; none when zero.
    pub slow_query_ms: u64,
    pub log: LogConfig,
}

/// What a request may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest run of a statement, in milliseconds.
    pub statement_timeout_ms: u64,
    /// Largest result that is not streamed, in bytes.
    pub result_bytes: u64,
    /// Memory for the rows that one query gathers, in bytes.
    pub gather_bytes: u64,
    /// Memory for the rows that all queries of a node gather, in bytes.
    pub node_gather_bytes: u64,
    /// Temporary files for what one query gathers, in bytes.
    pub spill_bytes: u64,
    /// Temporary files for what all queries of a node gather, in bytes.
    pub node_spill_bytes: u64,
    /// What a node keeps back of its disk, in bytes.
    pub disk_reserve_bytes: u64,
    /// Queries that gather rows in memory at the same time on a node.
    pub gathers: u64,
    /// Most writes that wait for one shard.
    pub queued_writes: u64,
    /// Read-only connections that a replica of a shard opens to its database.
    pub read_connections: u64,
    /// Connections of clients and other nodes to an address of a node.
    pub connections: u64,
}

/// What PostgreSQL clients are offered encryption with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// The server's certificate, and those that lead to its authority.
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Whether clients on this machine have to take it, too.
    pub required: bool,
}

/// How the servers of PostgreSQL shards are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresConfig {
    /// The folder of `postgres` and `initdb`.
    pub programs: PathBuf,
    /// For everything that one server does.
    pub memory_mib: u32,
    /// Whether the servers of a new cluster have standbys.
    pub standbys: Standbys,
    /// How long a primary that does not answer is waited for until its standby is promoted.
    pub promote_after: Duration,
    /// How long a synchronous primary waits for a standby that does not follow any more.
    pub standby_wait: Duration,
}

/// How a node logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    pub json: bool,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            nodes: None,
            initial_shards: None,
            engine: None,
            postgres: PostgresConfig::default(),
            min_shards: None,
            listen: None,
            coordinator_listen: None,
            pg_listen: None,
            data_dir: None,
            insecure: false,
            tls: TlsConfig::default(),
            table_shard_keys: BTreeMap::new(),
            scaling_mode: None,
            policy: Policy::default(),
            partition_count: PARTITION_COUNT_DEFAULT,
            replication_factor: 3,
            verify_interval_s: 600,
            limits: Limits::default(),
            slow_query_ms: 1000,
            log: LogConfig::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            statement_timeout_ms: 30_000,
            result_bytes: 64 << 20,
            gather_bytes: 64 << 20,
            node_gather_bytes: 512 << 20,
            spill_bytes: 2 << 30,
            node_spill_bytes: 8 << 30,
            disk_reserve_bytes: 128 << 20,
            gathers: 32,
            queued_writes: 4096,
            read_connections: 16,
            connections: 4096,
        }
    }
}

impl TlsConfig {
    fn check(&self) -> Result<(), String> {
        let missing = match (&self.certificate_file, &self.key_file) {
            (Some(_), None) => "tls.key_file is missing: a certificate can't be used without its key",
            (None, Some(_)) => "tls.certificate_file is missing: a key can't be used without its certificate",
            (None, None) if self.required => {
                "tls.required needs a certificate: set tls.certificate_file and tls.key_file"
            }
            _ => return Ok(()),
        };
        Err(missing.to_owned())
    }
}

impl Default for PostgresConfig {
    fn default() -> Self {
        Self {
            programs: PathBuf::from(PROGRAMS),
            memory_mib: Size::SMALL.memory_mib,
            standbys: Standbys::None,
            promote_after: Duration::from_secs(10),
            standby_wait: Duration::from_secs(10),
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { json: false, level: "info".to_string() }
    }
}

/// What is wrong with the configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, or the environment variable.
    pub source: String,
    pub line: Option<usize>,
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}, line {line}: {}", self.source, self.message),
            None => write!(f, "{}: {}", self.source, self.message),
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Read `file` (none: defaults) and put the `PLEAT_*` variables of `environment` over it.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        let mut tree = Value::Object(serde_json::Map::new());
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
                source: path.display().to_string(),
                line: None,
                message: format!("the configuration can't be read: {error}"),
            })?;
            tree = text::parse(path, &text)?;
            keys::check(&tree).map_err(|wrong| ConfigError {
                source: path.display().to_string(),
                line: text::line_of(&text, &wrong.path),
                message: wrong.message,
            })?;
        }
        env::overlay(&mut tree, environment)?;
        let config = Config::from_checked(&tree);
        let policy = Policy { min_shards: config.min_shards.unwrap_or(1), ..config.policy.clone() };
        policy.check().and_then(|()| config.tls.check()).map_err(|message| ConfigError {
            source: file.map_or_else(|| "the environment".to_owned(), |path| path.display().to_string()),
            line: None,
            message,
        })?;
        Ok(config)
    }

    /// The policy of a new cluster that starts with so many shards. What somebody has asked for is not merged away: where the configuration
    /// does not say how many are left at least, these are. PostgreSQL shards can't be split yet, so nothing is decided about them
    /// unless somebody asks for that.
    pub fn founding_policy(&self, shards: u32, engine: Engine) -> Policy {
        let min_shards = self.min_shards.unwrap_or(shards).min(self.policy.max_shards);
        let mode = match (self.scaling_mode, engine) {
            (Some(mode), _) => mode,
            (None, Engine::Sqlite) => self.policy.mode,
            (None, Engine::Postgres) => Mode::Manual,
        };
        Policy { min_shards, mode, standbys: self.postgres.standbys, ..self.policy.clone() }
    }

    /// The values of a tree that [`keys::check`] found nothing wrong with.
    fn from_checked(tree: &Value) -> Config {
        let default = Config::default();
        let text = |path: &str| find(tree, path).and_then(Value::as_str);
        let integer = |path: &str| find(tree, path).and_then(Value::as_u64);
        let small = |path: &str| integer(path).and_then(|number| u32::try_from(number).ok());
        let seconds = |path: &str| integer(path).map(Duration::from_secs);
        let limit = |name: &str, otherwise: u64| integer(&format!("limits.{name}")).unwrap_or(otherwise);
        let mut table_shard_keys = BTreeMap::new();
        if let Some(Value::Object(map)) = find(tree, "table_shard_keys") {
            table_shard_keys
                .extend(map.iter().filter_map(|(table, key)| Some((table.clone(), key.as_str()?.to_string()))));
        }
        Config {
            nodes: small("nodes"),
            initial_shards: small("initial_shards"),
            engine: text("engine").and_then(|engine| engine.parse().ok()),
            postgres: PostgresConfig {
                programs: text("postgres.programs").map_or(default.postgres.programs, PathBuf::from),
                memory_mib: small("postgres.memory_mib").unwrap_or(default.postgres.memory_mib),
                standbys: standbys(tree),
                promote_after: seconds("postgres.promote_after_s").unwrap_or(default.postgres.promote_after),
                standby_wait: seconds("postgres.standby_wait_s").unwrap_or(default.postgres.standby_wait),
            },
            min_shards: small("min_shards"),
            listen: text("listen").and_then(|address| address.parse().ok()),
            coordinator_listen: text("coordinator_listen").and_then(|address| address.parse().ok()),
            pg_listen: text("pg_listen").and_then(|listen| listen.parse().ok()),
            data_dir: text("data_dir").map(PathBuf::from),
            insecure: find(tree, "insecure").and_then(Value::as_bool).unwrap_or(false),
            tls: TlsConfig {
                certificate_file: text("tls.certificate_file").map(PathBuf::from),
                key_file: text("tls.key_file").map(PathBuf::from),
                required: find(tree, "tls.required").and_then(Value::as_bool).unwrap_or(false),
            },
            table_shard_keys,
            scaling_mode: scaling_mode(tree),
            policy: policy(tree),
            partition_count: small("partition_count").unwrap_or(default.partition_count),
            replication_factor: small("replication_factor").unwrap_or(default.replication_factor),
            verify_interval_s: integer("verify_interval_s").unwrap_or(default.verify_interval_s),
            limits: Limits {
                statement_timeout_ms: limit("statement_timeout_ms", default.limits.statement_timeout_ms),
                result_bytes: limit("result_bytes", default.limits.result_bytes),
                gather_bytes: limit("gather_bytes", default.limits.gather_bytes),
                node_gather_bytes: limit("node_gather_bytes", default.limits.node_gather_bytes),
                spill_bytes: limit("spill_bytes", default.limits.spill_bytes),
                node_spill_bytes: limit("node_spill_bytes", default.limits.node_spill_bytes),
                disk_reserve_bytes: limit("disk_reserve_bytes", default.limits.disk_reserve_bytes),
                gathers: limit("gathers", default.limits.gathers),
                queued_writes: limit("queued_writes", default.limits.queued_writes),
                read_connections: limit("read_connections", default.limits.read_connections),
                connections: limit("connections", default.limits.connections),
            },
            slow_query_ms: integer("slow_query_ms").unwrap_or(default.slow_query_ms),
            log: LogConfig {
                json: text("log.format") == Some("json"),
                level: text("log.level").map_or(default.log.level, str::to_string),
            },
        }
    }
}

fn standbys(tree: &Value) -> Standbys {
    match find(tree, "postgres.standbys").and_then(Value::as_str) {
        Some("synchronous") => Standbys::Synchronous,
        Some("asynchronous") => Standbys::Asynchronous,
        _ => Standbys::None,
    }
}

fn scaling_mode(tree: &Value) -> Option<Mode> {
    match find(tree, "scaling_mode").and_then(Value::as_str)? {
        "manual" => Some(Mode::Manual),
        _ => Some(Mode::Automatic),
    }
}

fn policy(tree: &Value) -> Policy {
    let default = Policy::default();
    let number = |path: &str| find(tree, path).and_then(Value::as_f64);
    let milliseconds = |path: &str, otherwise: u64| match number(path) {
        // Checked to lie within a day by the table of keys, so that nothing is cut off here.
        Some(seconds) => (seconds * 1000.0).round() as u64,
        None => otherwise,
    };
    let threshold = |name: &str| number(&format!("scaling_thresholds.{name}"));
    let count = |path: &str| find(tree, path).and_then(Value::as_u64);
    let small = |path: &str, otherwise: u32| count(path).and_then(|n| u32::try_from(n).ok()).unwrap_or(otherwise);
    let thresholds = Thresholds {
        cpu_percent: threshold("cpu_threshold_percent").unwrap_or(default.thresholds.cpu_percent),
        memory_percent: threshold("memory_threshold_percent").unwrap_or(default.thresholds.memory_percent),
        connections: count("scaling_thresholds.connection_threshold").unwrap_or(default.thresholds.connections),
        queries_per_second: threshold("qps_threshold").unwrap_or(default.thresholds.queries_per_second),
        total_entries_per_shard: count("scaling_thresholds.total_entry_threshold_per_shard"),
    };
    Policy {
        mode: scaling_mode(tree).unwrap_or(Mode::Automatic),
        strategy: match find(tree, "scaling_strategy").and_then(Value::as_str) {
            Some("cold") => Strategy::Cold,
            _ => Strategy::Hot,
        },
        thresholds,
        cooldown_ms: milliseconds("cooldown_seconds", default.cooldown_ms),
        max_actions: small("max_actions", default.max_actions),
        action_window_ms: milliseconds("action_window_seconds", default.action_window_ms),
        monitoring_interval_ms: milliseconds("monitoring_interval_seconds", default.monitoring_interval_ms),
        min_shards: default.min_shards,
        max_shards: small("max_shards", default.max_shards),
        scale_in: ScaleIn {
            enabled: find(tree, "scale_in.enabled").and_then(Value::as_bool).unwrap_or(default.scale_in.enabled),
            after_ms: milliseconds("scale_in.after_seconds", default.scale_in.after_ms),
            below_percent: number("scale_in.below_percent").unwrap_or(default.scale_in.below_percent),
            max_bytes: count("scale_in.max_bytes").unwrap_or(default.scale_in.max_bytes),
        },
        standbys: default.standbys,
    }
}

/// The value at a dotted path.
fn find<'a>(tree: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(tree, |value, key| value.get(key))
}

#[cfg(test)]
mod tests;
