//! `pleat ops watch`: one operation until it ends.
//!
//! On a terminal it is drawn over and over; elsewhere there is a line for each change (with `--json` the whole operation), so that
//! a log shows what happened when. A node that does not answer is asked again for a while: it may be started anew
//! just then, and another carry the operation on.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::time::sleep;

use super::client::Client;
use super::{ops, output};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a node may not answer.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Lines of progress are this far apart, where they are not drawn over each other.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Watch this operation, or the newest that is under way.
pub async fn run(client: &Client, id: Option<String>, json: bool) -> anyhow::Result<()> {
    let id = match id {
        Some(id) => id,
        None => match output::items(&client.get("/operations?phase=pending,progressing&limit=1").await?, "operations")
            .first()
        {
            Some(newest) => output::text(newest, "id"),
            None => return Ok(output::line("no operation is under way")?),
        },
    };
    let path = format!("/operations/{}", ops::path_safe(&id));
    let mut screen = Screen::new(json);
    let mut answered = Instant::now();
    loop {
        match client.get(&path).await {
            Ok(operation) => {
                answered = Instant::now();
                screen.show(&operation)?;
                if is_over(&operation) {
                    return outcome(&operation);
                }
            }
            Err(failure) if failure.retryable && answered.elapsed() < SILENCE_MAX => {}
            Err(failure) => return Err(failure.into()),
        }
        sleep(LOOK_EVERY).await;
    }
}

fn is_over(operation: &Value) -> bool {
    matches!(operation.get("phase").and_then(Value::as_str), Some("Successful" | "Failed" | "Skipped"))
}

/// Scripts go by the exit code.
fn outcome(operation: &Value) -> anyhow::Result<()> {
    let (id, phase) = (output::text(operation, "id"), output::text(operation, "phase"));
    match phase.as_str() {
        "Successful" => Ok(()),
        _ => anyhow::bail!("{id} ended as {phase}: {}", output::text(operation, "message")),
    }
}

/// Where it is shown.
struct Screen {
    json: bool,
    terminal: bool,
    last: Option<Value>,
    /// Lines that are to be drawn over.
    drawn: usize,
    /// When the last line of progress was printed.
    told: Option<Instant>,
}

impl Screen {
    fn new(json: bool) -> Self {
        Self { json, terminal: !json && output::is_terminal(), last: None, drawn: 0, told: None }
    }

    fn show(&mut self, operation: &Value) -> anyhow::Result<()> {
        if self.last.as_ref() == Some(operation) {
            return Ok(());
        }
        if self.json {
            output::json(operation)?;
        } else if self.terminal {
            self.draw(operation)?;
        } else {
            for line in news(self.last.as_ref(), operation) {
                output::line(&line)?;
            }
            self.progress(operation)?;
        }
        self.last = Some(operation.clone());
        Ok(())
    }

    fn progress(&mut self, operation: &Value) -> anyhow::Result<()> {
        let due = self.told.is_none_or(|told| told.elapsed() >= PROGRESS_EVERY);
        if let Some(line) = progress(operation).filter(|_| due) {
            output::line(&line)?;
            self.told = Some(Instant::now());
        }
        Ok(())
    }

    /// Over what was drawn before. Lines that are too long are cut off by the terminal, or else nobody would know how many
    /// there are; at the end they are shown whole.
    fn draw(&mut self, operation: &Value) -> anyhow::Result<()> {
        let lines = ops::tell(operation);
        let up = if self.drawn > 0 { format!("\x1b[{}A\r\x1b[J", self.drawn) } else { String::new() };
        let (start, end) = if is_over(operation) { ("", "") } else { ("\x1b[?7l", "\x1b[?7h") };
        output::line(&format!("{up}{start}{}{end}", lines.join("\n")))?;
        self.drawn = lines.len();
        Ok(())
    }
}

/// What has changed, a line for each.
fn news(before: Option<&Value>, now: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let id = output::text(now, "id");
    let changed = |key: &str| before.and_then(|before| before.get(key)) != now.get(key);
    if before.is_none() {
        lines.push(format!("{id}: {}", output::text(now, "description")));
    }
    let known = before.map(|before| output::items(before, "steps")).unwrap_or_default();
    for (place, step) in output::items(now, "steps").iter().enumerate() {
        let (name, ended) = (output::text(step, "name"), step.get("ended").is_some_and(Value::is_string));
        let had_ended = known.get(place).map(|step| step.get("ended").is_some_and(Value::is_string));
        match (had_ended, ended) {
            (None, false) => lines.push(format!("{id}: {name} begins")),
            (None | Some(false), true) => {
                let detail = step.get("detail").and_then(Value::as_str).unwrap_or_default();
                let took = ops::between(step, "begun", "ended");
                lines.push(format!("{id}: {name} ended after {took}  {detail}").trim_end().to_owned());
            }
            _ => {}
        }
    }
    let awaited = output::texts(now, "waits_for");
    if changed("waits_for") && awaited != "-" {
        lines.push(format!("{id}: waits for {awaited}, which can't be reached"));
    }
    if changed("cancel_requested") && now.get("cancel_requested") == Some(&Value::Bool(true)) {
        lines.push(format!("{id}: was asked to stop"));
    }
    if changed("phase") && is_over(now) {
        lines.push(format!("{id}: {}: {}", output::text(now, "phase"), output::text(now, "message")));
    }
    lines
}

/// `copy: 12,000 of about 45,000 rows (26 %), …`, while something is under way.
pub fn progress(operation: &Value) -> Option<String> {
    let progress = operation.get("progress").filter(|progress| progress.is_object())?;
    let number = |key: &str| progress.get(key).and_then(Value::as_u64);
    let rate = |key: &str| progress.get(key).and_then(Value::as_f64).filter(|rate| *rate > 0.0);
    let mut parts = Vec::new();
    let (rows, bytes) = (number("rows").unwrap_or(0), number("bytes").unwrap_or(0));
    match number("rows_total") {
        Some(total) if total > 0 => {
            let (done, of) = (output::thousands(rows), output::thousands(total));
            parts.push(format!("{done} of about {of} rows ({:.0} %)", 100.0 * rows as f64 / total as f64));
        }
        _ if rows > 0 => parts.push(format!("{} rows", output::thousands(rows))),
        _ => {}
    }
    match number("bytes_total") {
        Some(total) if bytes > 0 => parts.push(format!("{} of about {}", output::bytes(bytes), output::bytes(total))),
        _ if bytes > 0 => parts.push(output::bytes(bytes)),
        _ => {}
    }
    if let Some(rate) = rate("rows_per_second") {
        parts.push(format!("{} rows per second", output::thousands(rate.round() as u64)));
        // By the rate, so that no two clocks have to agree.
        if let Some(total) = number("rows_total").filter(|total| *total > rows) {
            parts.push(format!("about {} left", span((total - rows) as f64 / rate)));
        }
    }
    let detail = progress.get("detail").and_then(Value::as_str).unwrap_or_default();
    if !detail.is_empty() {
        parts.push(detail.to_owned());
    }
    match parts.is_empty() {
        true => None,
        false => Some(format!("  {}: {}", output::text(progress, "step"), parts.join(", "))),
    }
}

/// A time for people.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{} s", s.ceil()),
        s if s < 90.0 * 60.0 => format!("{:.0} min", s / 60.0),
        s if s < 48.0 * 3600.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn operation(phase: &str, steps: Value) -> Value {
        json!({"id": "op-3", "description": "split 64 partitions", "phase": phase, "steps": steps, "waits_for": [],
            "cancel_requested": false, "message": if is_over(&json!({"phase": phase})) { "moved" } else { "" }})
    }

    #[test]
    fn each_change_is_one_line() {
        let begun = json!({"name": "copy", "begun": "2026-11-21T05:30:00.000Z", "ended": null, "detail": ""});
        let ended = json!({"name": "copy", "begun": "2026-11-21T05:30:00.000Z", "ended": "2026-11-21T05:30:01.500Z", "detail": "61 rows"});
        let (first, second) = (operation("Progressing", json!([begun])), operation("Progressing", json!([ended])));
        assert_eq!(news(None, &first), ["op-3: split 64 partitions", "op-3: copy begins"]);
        assert_eq!(news(Some(&first), &second), ["op-3: copy ended after 1.50 s  61 rows"]);
        assert!(news(Some(&second), &second).is_empty());
        // What came and went between two looks is told once, in order.
        let mut last = operation(
            "Skipped",
            json!([ended, {"name": "take back", "begun": "2026-11-21T05:30:02.000Z",
            "ended": "2026-11-21T05:30:02.250Z", "detail": ""}]),
        );
        last["cancel_requested"] = json!(true);
        assert_eq!(
            news(Some(&second), &last),
            ["op-3: take back ended after 0.25 s", "op-3: was asked to stop", "op-3: Skipped: moved"]
        );
        assert_eq!(outcome(&last).unwrap_err().to_string(), "op-3 ended as Skipped: moved");
        assert!(outcome(&operation("Successful", json!([]))).is_ok());
    }

    #[test]
    fn progress_is_told_as_far_as_it_is_known() {
        let told = |progress: Value| progress_of(&progress);
        fn progress_of(value: &Value) -> Option<String> {
            progress(&json!({ "progress": value }))
        }
        assert_eq!(
            told(json!({"step": "copy", "detail": "in table t", "rows": 12_000, "bytes": 98_304, "rows_total": 48_000,
                "bytes_total": 393_216, "rows_per_second": 360.0, "bytes_per_second": 1.0})),
            Some("  copy: 12,000 of about 48,000 rows (25 %), 96.0 KiB of about 384.0 KiB, 360 rows per second, about 2 min \
                  left, in table t"
                .to_owned())
        );
        let plain = json!({"step": "catch up", "detail": "", "rows": 7, "bytes": 0, "rows_total": null, "rows_per_second": null});
        assert_eq!(told(plain), Some("  catch up: 7 rows".to_owned()));
        let waits =
            json!({"step": "change shards", "detail": "waits for shard-2", "rows": 0, "bytes": 0, "rows_total": 0});
        assert_eq!(told(waits), Some("  change shards: waits for shard-2".to_owned()));
        assert_eq!(told(json!({"step": "verify", "detail": "", "rows": 0, "bytes": 0})), None);
        assert_eq!(told(Value::Null), None);
        assert_eq!(
            (span(0.2), span(100.0), span(1e5), span(1e9)),
            ("1 s".into(), "2 min".into(), "28 h".into(), "11574 days".into())
        );
    }
}
