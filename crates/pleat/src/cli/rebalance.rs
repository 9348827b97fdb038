//! `pleat rebalance`: even the shards out, or see what that would move.

use clap::Args;
use serde_json::{Value, json};

use super::{Target, ops, output};

#[derive(Args)]
pub struct RebalanceArgs {
    #[command(flatten)]
    pub target: Target,
    /// Only show what would move, and for how long writes would wait
    #[arg(long)]
    dry_run: bool,
    /// By how much a shard may differ from the mean: 0.1 is 10 % of it
    #[arg(long, value_name = "SHARE")]
    threshold: Option<f64>,
}

pub async fn run(args: RebalanceArgs) -> anyhow::Result<()> {
    let client = args.target.client()?;
    let asked = json!({"dry_run": args.dry_run, "threshold": args.threshold});
    let plan = client.post("/rebalance", serde_json::to_vec(&asked)?).await?;
    if args.target.json {
        return Ok(output::json(&plan)?);
    }
    let moves = output::items(&plan, "moves");
    if !moves.is_empty() {
        let columns = ["from", "to", "partitions", "rows", "bytes", "write pause", "operation"];
        output::list(&columns, &["partitions", "rows", "bytes", "write pause"], moves.iter().map(row).collect())?;
        output::line("")?;
    }
    ops::print_lines(&summary(&plan))
}

fn bytes(of: &Value) -> String {
    of.get("bytes").and_then(Value::as_u64).map_or_else(|| "-".to_owned(), output::bytes)
}

fn row(shift: &Value) -> Vec<String> {
    vec![
        output::text(shift, "from"),
        output::text(shift, "to"),
        output::count(shift, "partitions"),
        output::count(shift, "rows"),
        bytes(shift),
        format!("{} ms", output::count(shift, "pause_predicted_ms")),
        output::text(shift, "operation"),
    ]
}

fn summary(plan: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for shard in output::items(plan, "shards") {
        let (before, after) = (output::number(shard, "before", 2), output::number(shard, "after", 2));
        lines.push(format!("{}: {before} times the mean, then {after}", output::text(shard, "shard_id")));
    }
    for shard in output::items(plan, "left_out") {
        lines.push(format!("{} takes no part: {}", output::text(shard, "shard_id"), output::text(shard, "why")));
    }
    let moves = output::items(plan, "moves").len();
    let (moved, least) = (output::number(plan, "moved_percent", 1), output::number(plan, "least_percent", 1));
    let dry = plan.get("dry_run").and_then(Value::as_bool).unwrap_or(false);
    lines.push(match moves {
        0 => "nothing to move: the shards are as even as they can be".to_owned(),
        1 => format!("1 move, {} ({moved} % of everything; at least {least} % has to move)", bytes(plan)),
        _ => format!("{moves} moves, {} ({moved} % of everything; at least {least} % has to move)", bytes(plan)),
    });
    match plan.get("more_moves").and_then(Value::as_u64) {
        None | Some(0) => {}
        Some(more) => lines.push(format!("{more} more moves would follow: ask again when these have ended")),
    }
    if moves > 0 && dry {
        lines.push("nothing was begun; without --dry-run it is".to_owned());
    } else if moves > 0 {
        lines.push("begun; `pleat ops` shows how they stand, `pleat ops cancel` stops one".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_told_with_what_it_moves_and_what_takes_no_part() {
        let shift = json!({"from": "shard-1", "to": "shard-3", "partitions": 12, "rows": 1200, "bytes": 98304,
            "pause_predicted_ms": 21, "operation": null});
        assert_eq!(row(&shift), ["shard-1", "shard-3", "12", "1,200", "96.0 KiB", "21 ms", "-"]);
        let plan = json!({"dry_run": true, "moves": [shift], "more_moves": 2, "bytes": 98304, "moved_percent": 12.34,
            "least_percent": 12.0, "shards": [{"shard_id": "shard-1", "before": 1.5, "after": 1.04}],
            "left_out": [{"shard_id": "shard-2", "why": "its replicas differ"}]});
        assert_eq!(
            summary(&plan),
            [
                "shard-1: 1.50 times the mean, then 1.04",
                "shard-2 takes no part: its replicas differ",
                "1 move, 96.0 KiB (12.3 % of everything; at least 12.0 % has to move)",
                "2 more moves would follow: ask again when these have ended",
                "nothing was begun; without --dry-run it is",
            ]
        );
        let even = json!({"dry_run": false, "moves": [], "more_moves": 0, "bytes": 0, "shards": []});
        assert_eq!(summary(&even), ["nothing to move: the shards are as even as they can be"]);
    }
}
