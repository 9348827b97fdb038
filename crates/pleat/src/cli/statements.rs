//! `pleat statements`: which statements take a node's time.

use clap::Args;
use serde_json::Value;

use super::{Target, output};

/// Characters of a statement that the list shows.
const SHOWN_MAX: usize = 80;

#[derive(Args)]
pub struct StatementsArgs {
    #[command(flatten)]
    pub target: Target,
    /// The largest first: total, mean, p95, max, calls, errors or rows
    #[arg(long, default_value = "total", value_parser = ["total", "mean", "p95", "max", "calls", "errors", "rows"])]
    order: String,
    /// How many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Show statements in full
    #[arg(long)]
    full: bool,
    /// Begin to count anew instead
    #[arg(long)]
    reset: bool,
}

pub async fn run(args: StatementsArgs) -> anyhow::Result<()> {
    let client = args.target.client()?;
    if args.reset {
        let answer = client.delete("/statements").await?;
        if args.target.json {
            return Ok(output::json(&answer)?);
        }
        let forgotten = output::count(&answer, "forgotten");
        return Ok(output::line(&format!("{} forgot {forgotten} statements", output::text(&answer, "node")))?);
    }
    let answer = client.get(&format!("/statements?order={}&limit={}", args.order, args.limit)).await?;
    if args.target.json {
        return Ok(output::json(&answer)?);
    }
    output::line(&format!(
        "statements sent to {} since {}",
        output::text(&answer, "node"),
        output::text(&answer, "since")
    ))?;
    let rows = output::items(&answer, "statements").iter().map(|one| row(one, args.full)).collect();
    let header = ["calls", "errors", "rows", "total ms", "mean ms", "p95 ms", "max ms", "shards", "statement"];
    Ok(output::list(&header, &header[..8], rows)?)
}

fn row(one: &Value, full: bool) -> Vec<String> {
    let statement = output::text(one, "statement");
    let shown = match statement.char_indices().nth(SHOWN_MAX) {
        Some((cut, _)) if !full => format!("{}…", &statement[..cut]),
        _ => statement,
    };
    let mut row: Vec<String> = ["calls", "errors", "rows"].iter().map(|key| output::count(one, key)).collect();
    row.extend(["total_ms", "mean_ms", "p95_ms", "max_ms"].iter().map(|key| output::number(one, key, 1)));
    row.extend([output::count(one, "shards"), shown]);
    row
}
