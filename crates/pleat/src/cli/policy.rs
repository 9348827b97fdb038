//! `pleat policy`: what the autoscaler goes by, shown and changed.

use clap::Args;
use serde_json::{Map, Value};

use super::{Target, output};

#[derive(Args)]
pub struct PolicyArgs {
    #[command(flatten)]
    pub target: Target,
    /// What to change, such as `mode=manual` or `thresholds.connections=50`; without any the policy is shown
    #[arg(value_name = "FIELD=VALUE", value_parser = change)]
    changes: Vec<Change>,
}

/// A field's path and its new value.
type Change = (Vec<String>, Value);

pub async fn run(args: PolicyArgs) -> anyhow::Result<()> {
    let client = args.target.client()?;
    let policy = match args.changes.is_empty() {
        true => client.get("/policy").await?,
        false => client.patch("/policy", &tree(args.changes)).await?,
    };
    if args.target.json {
        return Ok(output::json(&policy)?);
    }
    for line in lines(&policy, "") {
        output::line(&line)?;
    }
    Ok(())
}

/// `name=value`; a value that is no JSON is a text.
fn change(text: &str) -> Result<Change, String> {
    let (path, value) = text.split_once('=').ok_or("write it as FIELD=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((path.split('.').map(str::to_owned).collect(), value))
}

fn tree(changes: Vec<Change>) -> Value {
    let mut tree = Value::Object(Map::new());
    for (path, value) in changes {
        let mut at = &mut tree;
        for name in path {
            if !at.is_object() {
                *at = Value::Object(Map::new());
            }
            at = &mut at[name];
        }
        *at = value;
    }
    tree
}

/// Every field, each as it can be changed.
fn lines(policy: &Value, prefix: &str) -> Vec<String> {
    let fields = policy.as_object().into_iter().flatten();
    let told = fields.map(|(name, value)| match value {
        Value::Object(_) => lines(value, &format!("{prefix}{name}.")),
        Value::String(text) => vec![format!("{prefix}{name}={text}")],
        other => vec![format!("{prefix}{name}={other}")],
    });
    told.flatten().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_are_written_as_the_policy_is_shown() {
        let changes = ["mode=manual", "thresholds.connections=50", "thresholds.total_entries_per_shard=null"];
        let changes = tree(changes.iter().map(|text| change(text).unwrap()).collect());
        let wanted = json!({"mode": "manual", "thresholds": {"connections": 50, "total_entries_per_shard": null}});
        assert_eq!(changes, wanted);
        let mut shown = lines(&wanted, "");
        shown.sort();
        assert_eq!(shown, ["mode=manual", "thresholds.connections=50", "thresholds.total_entries_per_shard=null"]);
        assert!(change("mode").is_err());
    }
}
