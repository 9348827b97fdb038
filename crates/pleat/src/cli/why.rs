//! `pleat why`: a decision told as a story, from what was measured to what came of it.

use clap::Args;
use serde_json::{Value, json};

use super::client::Client;
use super::{Target, ops, output};

#[derive(Args)]
pub struct WhyArgs {
    #[command(flatten)]
    pub target: Target,
    /// `decision-7`, or an operation such as `op-3`; without it the newest decision
    id: Option<String>,
}

pub async fn run(args: WhyArgs) -> anyhow::Result<()> {
    let client = args.target.client()?;
    let (decision, operation) = match args.id.as_deref() {
        Some(id) if id.starts_with("op-") => {
            let operation = client.get(&format!("/operations/{}", ops::path_safe(id))).await?;
            let decision = match operation.pointer("/cause/id").and_then(Value::as_str) {
                Some(id) => client.get(&format!("/decisions/{}", ops::path_safe(id))).await?,
                None => Value::Null,
            };
            (decision, operation)
        }
        Some(id) => with_operation(&client, client.get(&format!("/decisions/{}", ops::path_safe(id))).await?).await?,
        None => match output::items(&client.get("/decisions?limit=1").await?, "decisions").first() {
            Some(newest) => with_operation(&client, newest.clone()).await?,
            None => anyhow::bail!("the autoscaler has not decided anything yet; it looks once per monitoring interval"),
        },
    };
    if args.target.json {
        return Ok(output::json(&json!({"decision": decision, "operation": operation}))?);
    }
    let mut lines = if decision.is_null() { Vec::new() } else { tell(&decision) };
    if !operation.is_null() {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.extend(ops::tell(&operation));
    }
    ops::print_lines(&lines)
}

async fn with_operation(client: &Client, decision: Value) -> anyhow::Result<(Value, Value)> {
    let operation = match decision.get("operation").and_then(Value::as_str) {
        Some(id) => client.get(&format!("/operations/{}", ops::path_safe(id))).await?,
        None => Value::Null,
    };
    Ok((decision, operation))
}

/// The decision as lines of text.
fn tell(decision: &Value) -> Vec<String> {
    let id = output::text(decision, "id");
    let verdict = match decision.get("verdict").and_then(Value::as_str) {
        Some("split") => format!(
            "split {}: {} partitions go to {}",
            output::text(decision, "from"),
            output::count(decision, "partitions"),
            output::text(decision, "to")
        ),
        Some("merge") => format!(
            "merge {} into {}: {} partitions go there, and {0} is removed",
            output::text(decision, "from"),
            output::text(decision, "to"),
            output::count(decision, "partitions"),
        ),
        Some("hold") => "do nothing".to_string(),
        _ => output::text(decision, "verdict"),
    };
    let mut lines = vec![
        format!("{id}, {}: {verdict}", output::text(decision, "at")),
        format!("  because {}", output::text(decision, "reason")),
        format!(
            "  strategy {}, generation {}",
            output::text(decision, "strategy"),
            output::count(decision, "generation")
        ),
        String::new(),
        "It had measured:".to_string(),
    ];
    lines.extend(output::items(decision, "measurements").iter().map(measurement));
    let options = output::items(decision, "options");
    if !options.is_empty() {
        lines.extend([String::new(), "It could have:".to_string()]);
        lines.extend(options.iter().map(option));
    }
    let acts = matches!(decision.get("verdict").and_then(Value::as_str), Some("split" | "merge"));
    if acts && output::text(decision, "operation") == "-" {
        let approve =
            format!("Nothing was started, since the mode is or was manual. `pleat ops approve {id}` starts it.");
        lines.extend([String::new(), approve]);
    }
    lines
}

fn measurement(measurement: &Value) -> String {
    let value = measurement.get("value").and_then(Value::as_f64).map_or_else(|| "-".to_string(), trim);
    let threshold = measurement.get("threshold").and_then(Value::as_f64);
    let compared = match (threshold, measurement.get("exceeded").and_then(Value::as_bool)) {
        (Some(threshold), Some(true)) => format!("  above the threshold of {}", trim(threshold)),
        (Some(threshold), _) => format!("  within the threshold of {}", trim(threshold)),
        (None, _) => String::new(),
    };
    let (subject, metric) = (output::text(measurement, "subject"), output::text(measurement, "metric"));
    format!("  {subject:<10} {metric:<22} {value:>12}{compared}")
}

fn option(option: &Value) -> String {
    let chosen = option.get("chosen").and_then(Value::as_bool).unwrap_or(false);
    let mark = if chosen { "✓" } else { "✗" };
    format!("  {mark} {}: {}", output::text(option, "what"), output::text(option, "why"))
}

/// At most two decimals, and none when there are none.
fn trim(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_is_told_from_the_measurement_to_the_options() {
        let decision = json!({"id": "decision-7", "at": "2026-11-21T05:30:00.000Z", "generation": 17, "strategy": "hot",
            "verdict": "split", "reason": "shard-1 holds 130 rows, more than 100", "from": "shard-1", "to": "shard-2",
            "partitions": 128, "operation": "op-3",
            "measurements": [{"subject": "shard-1", "metric": "total_entries", "value": 130.0, "threshold": 100.0, "exceeded": true},
                             {"subject": "shard-1", "metric": "cpu_percent", "value": 1.256, "threshold": 70.0, "exceeded": false}],
            "options": [{"what": "split shard-1", "chosen": true, "why": "the only one over its threshold"}]});
        let story = tell(&decision).join("\n");
        assert!(story.starts_with("decision-7, 2026-11-21T05:30:00.000Z: split shard-1: 128 partitions go to shard-2"));
        assert!(story.contains("because shard-1 holds 130 rows"));
        assert!(story.contains("130  above the threshold of 100"), "{story}");
        assert!(story.contains("1.26  within the threshold of 70"), "{story}");
        assert!(story.contains("✓ split shard-1: the only one"));
        assert!(!story.contains("manual"));
    }

    #[test]
    fn a_recommendation_of_manual_mode_says_that_nothing_was_started() {
        let decision = json!({"id": "decision-8", "verdict": "split", "reason": "r", "operation": null});
        assert!(tell(&decision).join("\n").contains("`pleat ops approve decision-8` starts it"));
    }
}
