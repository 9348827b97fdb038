//! The table of known keys, and the one function that holds a tree against it.

use pleat_engine::limits::FINISHER_BYTES_MIN;
use pleat_provision::process::Size;
use serde_json::Value;

use crate::options::PgListen;

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A whole number within these bounds.
    Integer(u64, u64),
    /// A number within these bounds.
    Number(f64, f64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `127.0.0.1:8080`
    Address,
    /// The same, or `off`.
    AddressOrOff,
    Path,
    Flag,
    /// Names to names: `{"users": "user_id"}`.
    Names,
}

/// The seconds of a day: no interval is longer.
const DAY_SECONDS: f64 = 86_400.0;
/// No byte limit is larger than this, 16 GiB.
const BYTES_MAX: u64 = 16 << 30;
/// No limit on disk is larger than this, 64 TiB.
const DISK_BYTES_MAX: u64 = 64 << 40;

/// Every key, by its dotted path. `docs/guide/configuration.md` describes each, which a test checks.
pub const KEYS: &[(&str, Kind)] = &[
    ("nodes", Kind::Integer(1, 64)),
    ("initial_shards", Kind::Integer(1, 1024)),
    ("engine", Kind::Choice(&["sqlite", "postgres"])),
    ("postgres.programs", Kind::Path),
    ("postgres.memory_mib", Kind::Integer(Size::MEMORY_MIB_MIN as u64, 1 << 22)),
    ("postgres.standbys", Kind::Choice(&["none", "asynchronous", "synchronous"])),
    ("postgres.promote_after_s", Kind::Integer(2, 86_400)),
    ("postgres.standby_wait_s", Kind::Integer(1, 86_400)),
    ("listen", Kind::Address),
    ("coordinator_listen", Kind::Address),
    ("pg_listen", Kind::AddressOrOff),
    ("data_dir", Kind::Path),
    ("insecure", Kind::Flag),
    ("tls.certificate_file", Kind::Path),
    ("tls.key_file", Kind::Path),
    ("tls.required", Kind::Flag),
    ("table_shard_keys", Kind::Names),
    ("scaling_thresholds.cpu_threshold_percent", Kind::Number(0.0, 100.0)),
    ("scaling_thresholds.memory_threshold_percent", Kind::Number(0.0, 100.0)),
    ("scaling_thresholds.connection_threshold", Kind::Integer(0, u64::MAX)),
    ("scaling_thresholds.qps_threshold", Kind::Number(0.0, 1e12)),
    ("scaling_thresholds.total_entry_threshold_per_shard", Kind::Integer(1, u64::MAX)),
    ("scaling_strategy", Kind::Choice(&["hot", "cold"])),
    ("scaling_mode", Kind::Choice(&["automatic", "manual"])),
    ("monitoring_interval_seconds", Kind::Number(0.1, DAY_SECONDS)),
    ("cooldown_seconds", Kind::Number(0.0, DAY_SECONDS)),
    ("max_actions", Kind::Integer(1, 1000)),
    ("action_window_seconds", Kind::Number(0.0, DAY_SECONDS)),
    ("min_shards", Kind::Integer(1, 1024)),
    ("max_shards", Kind::Integer(1, 1024)),
    ("scale_in.enabled", Kind::Flag),
    ("scale_in.after_seconds", Kind::Number(0.0, DAY_SECONDS)),
    ("scale_in.below_percent", Kind::Number(1.0, 50.0)),
    ("scale_in.max_bytes", Kind::Integer(1, DISK_BYTES_MAX)),
    ("partition_count", Kind::Integer(1, pleat_cluster::PARTITION_COUNT_MAX as u64)),
    ("replication_factor", Kind::Integer(1, 9)),
    ("verify_interval_s", Kind::Integer(0, 86_400 * 30)),
    ("limits.statement_timeout_ms", Kind::Integer(1, 86_400_000)),
    ("limits.result_bytes", Kind::Integer(1024, BYTES_MAX)),
    ("limits.gather_bytes", Kind::Integer(FINISHER_BYTES_MIN, BYTES_MAX)),
    ("limits.node_gather_bytes", Kind::Integer(FINISHER_BYTES_MIN, BYTES_MAX)),
    ("limits.spill_bytes", Kind::Integer(0, DISK_BYTES_MAX)),
    ("limits.node_spill_bytes", Kind::Integer(0, DISK_BYTES_MAX)),
    ("limits.disk_reserve_bytes", Kind::Integer(0, DISK_BYTES_MAX)),
    ("limits.gathers", Kind::Integer(1, 1024)),
    ("limits.queued_writes", Kind::Integer(1, 1_000_000)),
    ("limits.read_connections", Kind::Integer(1, 1024)),
    ("limits.connections", Kind::Integer(16, 1_000_000)),
    ("slow_query_ms", Kind::Integer(0, 86_400_000)),
    ("log.format", Kind::Choice(&["human", "json"])),
    ("log.level", Kind::Choice(&["error", "warn", "info", "debug", "trace"])),
];

/// A key that is wrong, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The keys that lead to it.
    pub path: Vec<String>,
    pub message: String,
}

/// What takes the key `path`, if anything does.
pub fn kind_of(path: &str) -> Option<Kind> {
    KEYS.iter().find(|(key, _)| *key == path).map(|(_, kind)| *kind)
}

/// Find the first thing that is wrong with a configuration.
pub fn check(tree: &Value) -> Result<(), Wrong> {
    match tree {
        Value::Object(_) => check_within(tree, &mut Vec::new()),
        _ => Err(Wrong { path: Vec::new(), message: "a configuration is a table of keys and values".to_string() }),
    }
}

fn check_within(value: &Value, path: &mut Vec<String>) -> Result<(), Wrong> {
    let dotted = path.join(".");
    if dotted == "shards" {
        return Err(not_yet(value, path));
    }
    if let Some(kind) = kind_of(&dotted) {
        return kind.check(value, path);
    }
    let is_section = path.is_empty() || KEYS.iter().any(|(key, _)| key.starts_with(&format!("{dotted}.")));
    match value {
        Value::Object(map) if is_section => {
            for (key, value) in map {
                path.push(key.clone());
                check_within(value, path)?;
                path.pop();
            }
            Ok(())
        }
        _ if is_section => Err(wrong(path, &format!("'{dotted}' is a table of keys, not {}", describe(value)))),
        _ => Err(wrong(path, &unknown(&dotted))),
    }
}

/// `unknown key 'x'; did you mean 'y'?`
pub fn unknown(dotted: &str) -> String {
    let known = KEYS.iter().map(|(key, _)| *key);
    match nearest(dotted, known.chain(["shards", "scaling_thresholds", "scale_in", "limits", "log", "tls", "postgres"]))
    {
        Some(near) => format!("unknown key '{dotted}'; did you mean '{near}'?"),
        None => format!("unknown key '{dotted}'; the guide's page on configuration lists the keys there are"),
    }
}

/// Where other autoscalers list MySQL servers; Pleat will take them over, but can't yet.
fn not_yet(value: &Value, path: &[String]) -> Wrong {
    let mut path = path.to_vec();
    if let Some(first) = value.as_object().and_then(|map| map.keys().next()) {
        path.push(first.clone());
    }
    wrong(
        &path,
        "'shards' names MySQL servers: not yet, Pleat can't use those as shards; remove 'shards', and Pleat keeps the \
         data in embedded shards of its own ('initial_shards' says how many to start with)",
    )
}

fn wrong(path: &[String], message: &str) -> Wrong {
    Wrong { path: path.to_vec(), message: message.to_string() }
}

impl Kind {
    fn check(self, value: &Value, path: &mut Vec<String>) -> Result<(), Wrong> {
        if let (Kind::Names, Value::Object(map)) = (self, value) {
            for (name, other) in map {
                if other.as_str().is_none_or(str::is_empty) {
                    path.push(name.clone());
                    return Err(wrong(path, &format!("'{}' must be a column's name", path.join("."))));
                }
            }
            return Ok(());
        }
        let fits = match self {
            Kind::Integer(least, most) => value.as_u64().is_some_and(|n| (least..=most).contains(&n)),
            Kind::Number(least, most) => value.as_f64().is_some_and(|n| (least..=most).contains(&n)),
            Kind::Choice(words) => value.as_str().is_some_and(|text| words.contains(&text)),
            Kind::Address => value.as_str().is_some_and(|text| text.parse::<std::net::SocketAddr>().is_ok()),
            Kind::AddressOrOff => value.as_str().is_some_and(|text| text.parse::<PgListen>().is_ok()),
            Kind::Path => value.as_str().is_some_and(|text| !text.is_empty()),
            Kind::Flag => value.is_boolean(),
            Kind::Names => false,
        };
        if fits {
            return Ok(());
        }
        let found = match (self, value) {
            // JSON, in whose terms a configuration is kept, knows neither.
            (Kind::Integer(..) | Kind::Number(..), Value::Null) => "nothing, NaN or infinity".to_string(),
            _ => describe(value),
        };
        Err(wrong(path, &format!("'{}' must be {}, not {found}", path.join("."), self.expected())))
    }

    /// What a value of this kind is, as in "must be …".
    pub fn expected(self) -> String {
        match self {
            Kind::Integer(0, u64::MAX) => "a whole number from 0".to_string(),
            Kind::Integer(1, u64::MAX) => "a whole number from 1".to_string(),
            Kind::Integer(least, most) => format!("a whole number from {least} to {most}"),
            Kind::Number(least, most) => format!("a number from {least} to {most}"),
            Kind::Choice(words) => words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or "),
            Kind::Address => "an address with a port, such as \"127.0.0.1:8080\"".to_string(),
            Kind::AddressOrOff => "an address with a port, such as \"127.0.0.1:6432\", or \"off\"".to_string(),
            Kind::Path => "a path".to_string(),
            Kind::Flag => "true or false".to_string(),
            Kind::Names => "a table of names, such as {\"users\": \"user_id\"}".to_string(),
        }
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_string(),
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "a table".to_string(),
        other => other.to_string(),
    }
}

/// The candidate that was most likely meant: the same last part elsewhere, or few letters apart.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_lowercase();
    let letters = word.chars().count();
    // Two letters that changed places are a distance of two.
    let tolerated = (letters / 3).max(if letters >= 4 { 2 } else { 1 });
    candidates
        .map(|candidate| {
            let whole = distance(&word.to_lowercase(), &candidate.to_lowercase());
            // A key in the wrong table, well or nearly well spelt.
            let moved = distance(&last(word), &last(candidate)) + 1;
            (whole.min(moved), candidate)
        })
        .filter(|(distance, _)| *distance <= tolerated)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many letters must be inserted, deleted or replaced (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
