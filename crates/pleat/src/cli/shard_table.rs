//! `pleat shard-table`: say where a table's rows live.

use clap::Args;
use serde_json::{Value, json};

use super::{Target, ops, output};

#[derive(Args)]
#[command(group = clap::ArgGroup::new("placement").required(true))]
pub struct ShardTableArgs {
    #[command(flatten)]
    pub target: Target,
    /// The table
    table: String,
    /// Spread its rows over the shards, by this column
    #[arg(long, value_name = "COLUMN", group = "placement")]
    by: Option<String>,
    /// Keep a copy of it on every shard
    #[arg(long, group = "placement")]
    reference: bool,
    /// Keep all of it on one shard
    #[arg(long, group = "placement")]
    single: bool,
    /// Another table that is sharded at the same moment, since a foreign key ties them (PostgreSQL shards)
    #[arg(long, value_name = "TABLE=COLUMN", value_parser = tied)]
    also: Vec<(String, String)>,
}

fn tied(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((table, column)) if !table.is_empty() && !column.is_empty() => Ok((table.to_owned(), column.to_owned())),
        _ => Err("it has the form TABLE=COLUMN".to_owned()),
    }
}

pub async fn run(args: ShardTableArgs) -> anyhow::Result<()> {
    let client = args.target.client()?;
    let placement = match (args.reference, args.single) {
        (true, _) => "reference",
        (_, true) => "single",
        _ => "sharded",
    };
    let also: Vec<Value> =
        args.also.iter().map(|(table, column)| json!({"table": table, "shard_key": column})).collect();
    let asked = json!({"placement": placement, "shard_key": args.by, "also": also});
    let path = format!("/tables/{}/placement", ops::path_segment(&args.table));
    let placed = client.post(&path, serde_json::to_vec(&asked)?).await?;
    if args.target.json {
        return Ok(output::json(&placed)?);
    }
    ops::print_lines(&tell(&placed))
}

fn tell(placed: &Value) -> Vec<String> {
    let texts = |key| output::items(placed, key).iter().map(output::display).collect::<Vec<_>>();
    [texts("changed"), texts("notices")].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_come_with_their_columns() {
        assert_eq!(tied("orders=customer_id"), Ok(("orders".to_owned(), "customer_id".to_owned())));
        assert!(tied("orders").is_err() && tied("=id").is_err() && tied("orders=").is_err());
        let placed = json!({"changed": ["t: single to sharded by k"], "notices": ["u is single already"]});
        assert_eq!(tell(&placed), ["t: single to sharded by k", "u is single already"]);
    }
}
