//! `pleat status`: the cluster at a glance.

use serde_json::{Value, json};

use super::{Target, output};

pub async fn run(target: &Target) -> anyhow::Result<()> {
    let client = target.client()?;
    let (status, nodes, open) = tokio::try_join!(
        client.get("/cluster/status"),
        client.get("/cluster/list-nodes"),
        client.get("/operations?phase=Pending,Progressing&limit=20"),
    )?;
    if target.json {
        return Ok(output::json(&json!({"cluster": status, "nodes": nodes, "operations": open}))?);
    }
    for line in headline(&status, &nodes) {
        output::line(&line)?;
    }
    output::line("")?;
    let rows = output::items(&nodes, "nodes").iter().map(node_row).collect();
    output::list(&["node", "address", "status", "round trip", "replicas of"], &["round trip"], rows)?;
    output::line("")?;
    let rows = output::items(&status, "shards").iter().map(shard_row).collect();
    output::list(&["shard", "state", "partitions", "replicas on"], &["partitions"], rows)?;
    for shard in output::items(&status, "shards") {
        if let Some(what) = shard.get("disagreement").and_then(Value::as_str) {
            output::line("")?;
            output::line(&format!("{}: {what}", output::text(shard, "shard_id")))?;
        }
    }
    for operation in output::items(&open, "operations") {
        output::line("")?;
        output::line(&format!(
            "{} {}: {}",
            output::text(operation, "id"),
            output::text(operation, "phase").to_lowercase(),
            output::text(operation, "description")
        ))?;
    }
    Ok(())
}

fn headline(status: &Value, nodes: &Value) -> Vec<String> {
    let all = output::items(nodes, "nodes");
    let down = all.iter().filter(|node| node.get("status").and_then(Value::as_str) != Some("running")).count();
    let control = status.get("control").cloned().unwrap_or(Value::Null);
    let health = match (down, control.get("leader").and_then(Value::as_str)) {
        (_, None) => "not available: the control group has no leader".to_string(),
        (0, Some(_)) => "healthy".to_string(),
        (down, Some(_)) => format!("working, with {down} of {} nodes unreachable", all.len()),
    };
    vec![
        format!("cluster {}: {health}", output::text(status, "cluster_id")),
        format!(
            "nodes {}, shards {}, tables {}, partitions {}, replication factor {}; control leader {}, generation {}",
            output::count(status, "cluster_size"),
            output::items(status, "shards").len(),
            output::count(status, "tables"),
            output::count(status, "partition_count"),
            output::count(status, "replication_factor"),
            output::text(&control, "leader"),
            output::count(status, "generation"),
        ),
    ]
}

fn node_row(node: &Value) -> Vec<String> {
    let is = |key: &str| node.get(key).and_then(Value::as_bool).unwrap_or(false);
    let mut status = output::text(node, "status");
    if is("control_leader") {
        status.push_str(", control leader");
    }
    let round_trip = match node.get("response_time").and_then(Value::as_f64) {
        Some(seconds) => format!("{:.1} ms", seconds * 1000.0),
        None => "-".to_string(),
    };
    vec![
        output::text(node, "node_id"),
        output::text(node, "node_address"),
        status,
        round_trip,
        output::texts(node, "shards"),
    ]
}

/// `active`, and what is wrong with its replicas.
fn shard_state(shard: &Value) -> String {
    let mut state = output::text(shard, "state");
    let distrusted = output::texts(shard, "distrusted");
    if !output::items(shard, "distrusted").is_empty() {
        state.push_str(&format!(", rebuilding {distrusted}"));
    }
    if shard.get("disagreement").is_some_and(Value::is_string) {
        state.push_str(", REPLICAS DIFFER");
    }
    state
}

fn shard_row(shard: &Value) -> Vec<String> {
    vec![
        output::text(shard, "shard_id"),
        shard_state(shard),
        output::count(shard, "partitions"),
        output::texts(shard, "replicas"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headline_says_what_is_wrong() {
        let nodes = json!({"nodes": [{"status": "running"}, {"status": "unreachable"}]});
        let line = |status: Value| headline(&status, &nodes).remove(0);
        assert_eq!(
            line(json!({"cluster_id": "c1", "control": {"leader": "node-1"}})),
            "cluster c1: working, with 1 of 2 nodes unreachable"
        );
        assert!(line(json!({"cluster_id": "c1", "control": {"leader": null}})).contains("no leader"));
    }
}
