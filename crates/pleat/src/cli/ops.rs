//! `pleat ops`: the journal of the cluster's changes.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Target, output, watch};

#[derive(Args)]
pub struct OpsArgs {
    #[command(flatten)]
    pub target: Target,
    #[command(subcommand)]
    command: Option<OpsCommand>,
}

#[derive(Subcommand)]
enum OpsCommand {
    /// The newest operations (the default)
    List {
        /// Only those in this phase: pending, progressing, successful, failed or skipped
        #[arg(long)]
        phase: Option<String>,
        /// How many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// One operation with its steps
    Show {
        /// `op-12` or `12`
        id: String,
        /// Follow it until it ends
        #[arg(long)]
        watch: bool,
    },
    /// Follow an operation until it ends: rows, bytes, rate, time left
    Watch {
        /// `op-12` or `12`; without it the newest that is under way
        id: Option<String>,
    },
    /// Have done what a decision recommends, when the mode is manual
    Approve {
        /// `decision-7`; without it the newest recommendation
        id: Option<String>,
    },
    /// Give all that a shard owns to another one, and take it down
    Merge {
        /// `shard-3` or `3`
        shard: String,
        /// The shard that gets its data; without it the one with the fewest partitions
        #[arg(long)]
        into: Option<String>,
    },
    /// Ask an operation to stop; it rolls back unless it has passed its point of no return
    Cancel {
        /// `op-12` or `12`
        id: String,
    },
}

pub async fn run(args: OpsArgs) -> anyhow::Result<()> {
    let client = args.target.client()?;
    match args.command.unwrap_or(OpsCommand::List { phase: None, limit: 20 }) {
        OpsCommand::List { phase, limit } => {
            let phase = phase.map_or_else(String::new, |phase| format!("&phase={}", path_safe(&phase)));
            let operations = client.get(&format!("/operations?limit={limit}{phase}")).await?;
            if args.target.json {
                return Ok(output::json(&operations)?);
            }
            list(output::items(&operations, "operations"))
        }
        OpsCommand::Show { id, watch: true } => watch::run(&client, Some(id), args.target.json).await,
        OpsCommand::Watch { id } => watch::run(&client, id, args.target.json).await,
        OpsCommand::Show { id, watch: false } => {
            let operation = client.get(&format!("/operations/{}", path_safe(&id))).await?;
            if args.target.json {
                return Ok(output::json(&operation)?);
            }
            print_lines(&tell(&operation))
        }
        OpsCommand::Approve { id } => {
            let newest = async || {
                let decisions = client.get("/decisions?verdict=any&limit=1").await?;
                let newest = output::items(&decisions, "decisions").first().map(|newest| output::text(newest, "id"));
                newest.ok_or_else(|| {
                    anyhow::anyhow!("nothing was recommended yet: `pleat why` tells the newest decision")
                })
            };
            let id = match id {
                Some(id) => id,
                None => newest().await?,
            };
            let operation = client.post(&format!("/decisions/{}/approve", path_safe(&id)), Vec::new()).await?;
            if args.target.json {
                return Ok(output::json(&operation)?);
            }
            begins(&operation)
        }
        OpsCommand::Merge { shard, into } => {
            let to = into.map(|into| shard_name(&into));
            let asked = json!({"kind": "merge", "from": shard_name(&shard), "to": to});
            let operation = client.post("/operations", serde_json::to_vec(&asked)?).await?;
            if args.target.json {
                return Ok(output::json(&operation)?);
            }
            begins(&operation)
        }
        OpsCommand::Cancel { id } => {
            let operation = client.post(&format!("/operations/{}/cancel", path_safe(&id)), Vec::new()).await?;
            if args.target.json {
                return Ok(output::json(&operation)?);
            }
            Ok(output::line(&format!("{} was asked to stop", output::text(&operation, "id")))?)
        }
    }
}

fn begins(operation: &Value) -> anyhow::Result<()> {
    let (id, what) = (output::text(operation, "id"), output::text(operation, "description"));
    Ok(output::line(&format!("{id} begins: {what}; `pleat ops watch {id}` follows it"))?)
}

/// `3` is `shard-3`.
fn shard_name(given: &str) -> String {
    if given.bytes().all(|byte| byte.is_ascii_digit()) { format!("shard-{given}") } else { given.to_owned() }
}

/// Any name as one segment of a path, percent-encoded.
pub fn path_segment(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// An id as part of a path: letters, digits and what else ids hold; anything else can't be an id, and must not
/// change the request.
pub fn path_safe(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() || "-_,".contains(c) { c } else { '_' }).collect()
}

fn list(operations: &[Value]) -> anyhow::Result<()> {
    if operations.is_empty() {
        return Ok(output::line("no operations yet: the cluster is as it was made")?);
    }
    let rows = operations
        .iter()
        .map(|operation| {
            vec![
                output::text(operation, "id"),
                phase(operation),
                output::text(operation, "created"),
                took(operation),
                output::text(operation, "description"),
                cause(operation),
            ]
        })
        .collect();
    Ok(output::list(&["id", "phase", "created", "took", "what", "asked by"], &["took"], rows)?)
}

pub fn print_lines(lines: &[String]) -> anyhow::Result<()> {
    for line in lines {
        output::line(line)?;
    }
    Ok(())
}

/// An operation as lines of text, its steps below.
pub fn tell(operation: &Value) -> Vec<String> {
    let mut lines = vec![
        format!("{}: {}", output::text(operation, "id"), output::text(operation, "description")),
        format!("  {} ({}), asked for by {}", output::text(operation, "phase"), took(operation), cause(operation)),
    ];
    let awaited: Vec<&str> = output::items(operation, "waits_for").iter().filter_map(Value::as_str).collect();
    if !awaited.is_empty() {
        lines.push(format!("  waits for: {}, which can't be reached", awaited.join(", ")));
    }
    for (label, key) in [("why", "reason"), ("result", "message"), ("code", "code")] {
        if let Some(text) = operation.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()) {
            lines.push(format!("  {label}: {text}"));
        }
    }
    lines.extend(watch::progress(operation));
    lines.extend(receipt(operation));
    let steps = output::items(operation, "steps");
    let width = steps.iter().map(|step| output::text(step, "name").chars().count()).max().unwrap_or(0);
    for step in steps {
        let state = match step.get("ended") {
            None | Some(Value::Null) => "under way".to_string(),
            Some(_) => between(step, "begun", "ended"),
        };
        let detail = step.get("detail").and_then(Value::as_str).unwrap_or_default();
        let name = output::text(step, "name");
        lines.push(format!("  {name:<width$}  {state:>9}  {detail}").trim_end().to_string());
    }
    lines
}

/// `Progressing 43 %`, where that is known.
fn phase(operation: &Value) -> String {
    let rows = |key: &str| operation.pointer(&format!("/progress/{key}")).and_then(Value::as_f64);
    let phase = output::text(operation, "phase");
    match (rows("rows"), rows("rows_total").filter(|total| *total > 0.0)) {
        (Some(rows), Some(total)) => format!("{phase} {:.0} %", 100.0 * rows / total),
        _ => phase,
    }
}

/// What a move has carried, and whether both sides agree.
fn receipt(operation: &Value) -> Vec<String> {
    let Some(receipt) = operation.get("receipt").filter(|receipt| receipt.is_object()) else { return Vec::new() };
    let bytes = receipt.get("bytes").and_then(Value::as_u64).map_or_else(|| "-".to_string(), output::bytes);
    let (copied, changed) = (output::count(receipt, "rows_copied"), output::count(receipt, "rows_changed"));
    let mut lines = vec![format!("  receipt: {copied} rows copied and {changed} changed meanwhile, {bytes}")];
    let side = |of: &Value, side: &str| {
        let digest = of.get(side).unwrap_or(&Value::Null);
        format!("{} rows {}", output::count(digest, "rows"), output::text(digest, "sum"))
    };
    let agrees = receipt.get("agrees").and_then(Value::as_bool).unwrap_or(false);
    match agrees {
        true => lines.push(format!("    both sides hold {}", side(receipt, "target"))),
        false => lines.push("    the two sides differ:".to_string()),
    }
    for table in output::items(receipt, "tables") {
        let (name, source, target) = (output::text(table, "table"), side(table, "source"), side(table, "target"));
        if source != target {
            lines.push(format!("    {name}: source {source}, target {target}"));
        } else if agrees {
            lines.push(format!("    {name}: {source}"));
        }
    }
    let predicted = output::count(receipt, "pause_predicted_ms");
    if receipt.get("pause_ms").is_some_and(Value::is_u64) {
        let pause = output::count(receipt, "pause_ms");
        lines.push(format!("    writes paused for {pause} ms (predicted {predicted} ms)"));
    }
    lines
}

fn cause(operation: &Value) -> String {
    let Some(cause) = operation.get("cause") else { return "-".to_string() };
    match cause.get("id").and_then(Value::as_str) {
        Some(decision) => decision.to_string(),
        None => output::text(cause, "by"),
    }
}

fn took(operation: &Value) -> String {
    between(operation, "created", "updated")
}

/// The time between two RFC 3339 times of UTC, or `-`.
pub fn between(value: &Value, from: &str, to: &str) -> String {
    let at = |key: &str| value.get(key).and_then(Value::as_str).and_then(milliseconds);
    match (at(from), at(to)) {
        (Some(from), Some(to)) if to >= from && to - from < 60_000 => format!("{:.2} s", (to - from) as f64 / 1000.0),
        (Some(from), Some(to)) if to >= from => format!("{} min {} s", (to - from) / 60_000, (to - from) / 1000 % 60),
        _ => "-".to_string(),
    }
}

/// `2026-11-21T05:30:00.123Z` as milliseconds since some fixed day: only differences are used.
fn milliseconds(time: &str) -> Option<u64> {
    let (date, clock) = time.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut clock = clock.splitn(3, ':');
    let (hour, minute) = (clock.next()?.parse::<u64>().ok()?, clock.next()?.parse::<u64>().ok()?);
    let second = clock.next()?.parse::<f64>().ok()?;
    // Days by the civil calendar, counting years from March (Hinnant's algorithm).
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    Some(((days * 24 + hour) * 60 + minute) * 60_000 + (second * 1000.0).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_between_two_moments() {
        let between = |from: &str, to: &str| between(&json!({"a": from, "b": to}), "a", "b");
        assert_eq!(between("2026-11-21T05:30:00.123Z", "2026-11-21T05:30:01.5Z"), "1.38 s");
        assert_eq!(between("2028-02-28T23:59:30.000Z", "2028-02-29T00:01:00.000Z"), "1 min 30 s");
        assert_eq!(between("2026-12-31T23:59:59.000Z", "2027-01-01T00:00:00.000Z"), "1.00 s");
        assert_eq!(between("soon", "later"), "-");
    }

    #[test]
    fn an_operation_is_told_with_its_cause_its_steps_and_how_it_ended() {
        let operation = json!({"id": "op-3", "description": "split 64 partitions of shard-1 to shard-2", "phase": "Successful",
            "cause": {"kind": "decision", "id": "decision-7", "by": null}, "reason": "shard-1 has 130 rows", "message": "moved 61 rows",
            "created": "2026-11-21T05:30:00.000Z", "updated": "2026-11-21T05:30:02.500Z",
            "waits_for": ["shard-2"], "code": null,
            "steps": [{"name": "copy", "begun": "2026-11-21T05:30:00.000Z", "ended": "2026-11-21T05:30:01.000Z", "detail": "61 rows"},
                      {"name": "clean up", "begun": "2026-11-21T05:30:01.000Z", "ended": null, "detail": ""}]});
        let lines = tell(&operation);
        assert_eq!(lines[0], "op-3: split 64 partitions of shard-1 to shard-2");
        assert_eq!(lines[1], "  Successful (2.50 s), asked for by decision-7");
        assert_eq!(lines[2], "  waits for: shard-2, which can't be reached");
        assert_eq!(lines[3], "  why: shard-1 has 130 rows");
        assert_eq!(lines[5], "  copy         1.00 s  61 rows");
        assert_eq!(lines[6], "  clean up  under way");
    }

    #[test]
    fn a_receipt_is_told_and_says_which_table_differs() {
        let digest = |rows: u64, sum: &str| json!({"rows": rows, "sum": sum});
        let table = |name: &str, target: Value| json!({"table": name, "source": digest(61, "0a"), "target": target});
        let told = |tables: Value, agrees: bool| {
            let receipt = json!({"rows_copied": 61234, "rows_changed": 7, "bytes": 98304, "agrees": agrees, "tables": tables,
                "source": digest(61, "0a"), "target": digest(61, "0a"), "pause_predicted_ms": 20, "pause_ms": 31});
            tell(&json!({"id": "op-3", "steps": [], "receipt": receipt})).join("\n")
        };
        let same = told(json!([table("flights", digest(61, "0a"))]), true);
        assert!(
            same.contains("61,234 rows copied and 7 changed meanwhile, 96.0 KiB\n    both sides hold 61 rows 0a\n"),
            "{same}"
        );
        assert!(same.ends_with("    flights: 61 rows 0a\n    writes paused for 31 ms (predicted 20 ms)"), "{same}");
        let differs = told(json!([table("flights", digest(60, "0b")), table("airlines", digest(61, "0a"))]), false);
        assert!(
            differs.contains("the two sides differ:\n    flights: source 61 rows 0a, target 60 rows 0b\n    writes"),
            "{differs}"
        );
    }

    #[test]
    fn an_id_can_not_leave_its_place_in_the_path() {
        assert_eq!(path_safe("op-12"), "op-12");
        assert_eq!(path_safe("../policy?x"), "___policy_x");
    }
}
