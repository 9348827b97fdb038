//! `pleat txns`: transactions that are open, and those over several shards that are in doubt.

use serde_json::Value;

use super::{Target, output};

const HEADER: &[&str] = &["transaction", "state", "began", "shards", "where"];

pub async fn run(target: &Target) -> anyhow::Result<()> {
    let txns = target.client()?.get("/txns").await?;
    if target.json {
        return Ok(output::json(&txns)?);
    }
    let rows = rows(&txns);
    if rows.is_empty() {
        return Ok(output::line("no transaction is open on this node, and none is in doubt")?);
    }
    Ok(output::list(HEADER, &[], rows)?)
}

fn rows(txns: &Value) -> Vec<Vec<String>> {
    let in_doubt = output::items(txns, "in_doubt").iter().map(|txn| {
        let state = match txn.get("decided").and_then(Value::as_str) {
            Some(decided) => format!("in doubt, decided: {decided}"),
            None => "in doubt".to_string(),
        };
        let prepared = txn.get("prepared").and_then(Value::as_object);
        let prepared: Vec<_> = prepared.into_iter().flatten().map(|(shard, _)| shard.as_str()).collect();
        let place = format!("prepared on {}", prepared.join(", "));
        vec![output::text(txn, "id"), state, output::text(txn, "began"), names(txn, "participants"), place]
    });
    let open = output::items(txns, "open").iter().map(|txn| {
        let failed = txn.get("failed").and_then(Value::as_bool) == Some(true);
        let state = if failed { "failed" } else { "open" };
        let place = format!("session {}", output::text(txn, "session"));
        vec![output::text(txn, "id"), state.to_string(), output::text(txn, "began"), names(txn, "shards"), place]
    });
    in_doubt.chain(open).collect()
}

fn names(txn: &Value, key: &str) -> String {
    let names: Vec<_> = output::items(txn, key).iter().filter_map(Value::as_str).collect();
    if names.is_empty() { "-".to_string() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_in_doubt_comes_first_and_says_where() {
        let txns = json!({
            "in_doubt": [{"id": "txn-1", "began": "t", "participants": ["shard-1", "shard-2"],
                "prepared": {"shard-2": "t"}, "decided": "commit"}],
            "open": [{"id": "txn-2", "began": "t", "shards": [], "wrote": [], "failed": true, "session": "node-1.a"}]
        });
        let rows = rows(&txns);
        assert_eq!(rows[0][1..], ["in doubt, decided: commit", "t", "shard-1, shard-2", "prepared on shard-2"]);
        assert_eq!(rows[1][1..], ["failed", "t", "-", "session node-1.a"]);
        assert!(rows.iter().all(|row| row.len() == HEADER.len()));
    }
}
