//! `pleat shards`: what each shard holds and does.

use serde_json::Value;

use super::{Target, output};

const HEADER: &[&str] = &[
    "shard",
    "status",
    "leader",
    "partitions",
    "rows",
    "size",
    "qps",
    "p95 ms",
    "connections",
    "cpu %",
    "memory %",
    "tables",
];
const NUMBERS: &[&str] = &["partitions", "rows", "size", "qps", "p95 ms", "connections", "cpu %", "memory %"];

pub async fn run(target: &Target) -> anyhow::Result<()> {
    let shards = target.client()?.get("/shards").await?;
    if target.json {
        return Ok(output::json(&shards)?);
    }
    print(&shards)
}

/// The table, also for the shell's `\shards`.
pub fn print(shards: &Value) -> anyhow::Result<()> {
    let shards = shards.as_array().map(Vec::as_slice).unwrap_or_default();
    output::list(HEADER, NUMBERS, shards.iter().map(row).collect())?;
    for (shard, standby) in shards.iter().filter_map(|shard| Some((shard, shard.get("standby")?))) {
        output::line(&standby_of(shard, standby))?;
    }
    for shard in shards.iter().filter(|shard| shard.get("error").is_some_and(|error| !error.is_null())) {
        output::line(&format!("{}: {}", output::text(shard, "shard_id"), output::text(shard, "error")))?;
    }
    Ok(())
}

/// `shard-1: standby on node-2, in step (synchronous), 0 bytes behind`
fn standby_of(shard: &Value, standby: &Value) -> String {
    let synchronous = if standby["synchronous"] == true { " (synchronous)" } else { "" };
    let behind = standby["lag_bytes"]
        .as_u64()
        .map_or_else(String::new, |bytes| format!(", {} bytes behind", output::thousands(bytes)));
    let (shard, node, state) =
        (output::text(shard, "shard_id"), output::text(standby, "node"), output::text(standby, "state"));
    format!("{shard}: standby on {node}, {state}{synchronous}{behind}")
}

fn row(shard: &Value) -> Vec<String> {
    let latency = shard.get("latency_ms").cloned().unwrap_or(Value::Null);
    let size = shard.get("database_size_bytes").and_then(Value::as_u64).map_or_else(|| "-".to_string(), output::bytes);
    vec![
        output::text(shard, "shard_id"),
        output::text(shard, "status"),
        output::text(shard, "node"),
        output::count(shard, "partitions"),
        output::count(shard, "total_entries"),
        size,
        output::number(shard, "queries_per_second", 1),
        output::number(&latency, "p95", 1),
        output::count(shard, "connection_count"),
        output::number(shard, "cpu_percent", 1),
        output::number(shard, "memory_percent", 1),
        tables(shard),
    ]
}

fn tables(shard: &Value) -> String {
    let Some(counts) = shard.get("table_counts").and_then(Value::as_object) else { return "-".to_string() };
    let named = |(table, rows): (&String, &Value)| {
        format!("{table} {}", rows.as_u64().map_or_else(|| "-".to_string(), output::thousands))
    };
    counts.iter().map(named).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_not_measured_is_a_dash_and_never_a_zero() {
        let row = row(&json!({"shard_id": "shard-1", "status": "unhealthy", "total_entries": null}));
        assert_eq!(row[0], "shard-1");
        assert_eq!(row[2..], vec!["-"; HEADER.len() - 2]);
    }

    #[test]
    fn a_row_has_a_cell_for_every_column() {
        let shard = json!({"shard_id": "shard-1", "total_entries": 1065, "database_size_bytes": 98304,
            "table_counts": {"users": 1000, "orders": 65}, "latency_ms": {"p95": 1.26}});
        let row = row(&shard);
        assert_eq!(row.len(), HEADER.len());
        assert_eq!((row[4].as_str(), row[5].as_str(), row[7].as_str()), ("1,065", "96.0 KiB", "1.3"));
        assert_eq!(row[11], "users 1,000, orders 65");
    }
}
