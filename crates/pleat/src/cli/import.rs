//! `pleat import`: a CSV file into a table.
//!
//! ```text
//! file -> (gunzip) -> rows -> batches -> several in flight -> POST /tables/T/rows?batch_id=…
//! ```
//!
//! A thread reads and cuts ([`batch`]); batches are sent side by side ([`send`]) and their answers are taken in
//! the file's order, so that "everything before batch 17 is done" is all that must be remembered ([`state`]).
//! Rows that can't be inserted go to a file of their own with line numbers and reasons ([`rejects`]); they
//! stop nothing. What stops an import is an error of the whole: no such table, no cluster, a damaged gzip file.
//! Then, and after Ctrl-C or a crash, the same command line goes on where it was.

mod batch;
mod csv;
mod rejects;
mod send;
mod source;
mod state;
mod values;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Reported, Target, ops, output};
use batch::{Batch, Reject};
use rejects::Rejects;
use send::{Answer, Sender};
use source::Source;
use state::{Same, State};

/// How often the state is written while batches complete.
const SAVE_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Args, Clone)]
pub struct ImportArgs {
    #[command(flatten)]
    pub target: Target,
    /// The file; gzip is recognised
    file: PathBuf,
    /// The table that the rows go into
    #[arg(long)]
    table: String,
    /// Unquoted fields with this text are NULL
    #[arg(long, value_name = "TEXT")]
    null: Option<String>,
    /// The file is one that `pleat export` wrote: empty unquoted fields are NULL, unquoted x'00ff' is a blob
    #[arg(long, conflicts_with = "null")]
    exported: bool,
    /// The table's columns for the file's fields, in their order; `_` leaves a field out
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    columns: Option<Vec<String>>,
    /// The file's first row is data
    #[arg(long)]
    no_header: bool,
    /// What separates fields (`\t` is a tab)
    #[arg(long, default_value = ",", value_parser = parse_delimiter, value_name = "CHAR")]
    delimiter: u8,
    /// Rows in a batch
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    batch: u32,
    /// Batches in flight
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64), value_name = "N")]
    jobs: u32,
    /// Where rejected rows go [default: FILE.rejected.csv]
    #[arg(long, value_name = "PATH")]
    rejects: Option<PathBuf>,
    /// Keep trying this long while the cluster can't take a batch
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    retry_seconds: u64,
    /// Begin anew although an interrupted import of this file could be continued
    #[arg(long)]
    restart: bool,
}

fn parse_delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"\\t" => Ok(b'\t'),
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => Ok(*byte),
        _ => Err("must be one character, such as ',' ';' or '\\t', and no quote".to_string()),
    }
}

pub async fn run(args: ImportArgs) -> anyhow::Result<()> {
    let client = args.target.client()?;
    let table = client.get(&format!("/tables/{}", ops::path_segment(&args.table))).await?;
    let health = client.get("/health").await?;
    let mut source = Source::open(&args.file, args.delimiter)?;
    let mapping = source.mapping(&args, &table)?;
    let same = Same {
        cluster_id: output::text(&health, "cluster_id"),
        table: args.table.clone(),
        file_bytes: source.file_bytes,
        file_changed: source.file_changed,
        options: args.cutting_options(),
    };
    let (state_path, rejects_path) = args.beside();
    let (state, resumed) = State::open(&state_path, same, args.restart)?;
    if resumed {
        check_still_there(&table, &state)?;
        let done = output::thousands(state.progress.inserted + state.progress.rejected);
        output::complain(&format!("going on after the first {done} rows of an interrupted import"));
    }
    let header = source.header.clone();
    let rejects = Rejects::open(&rejects_path, header, state.progress.rejects_bytes)?;
    let bar = progress_bar(&args, source.file_bytes);
    let sender = Sender { client, table: args.table.clone(), retry_for: Duration::from_secs(args.retry_seconds) };
    let position = source.position.clone();
    let (batches, receiver) = mpsc::channel(args.jobs as usize);
    let reading = std::thread::spawn(move || source.read_batches(&mapping, &batches));

    let mut import = Import { state, rejects, saved: Instant::now(), before: 0 };
    import.before = import.state.progress.inserted;
    let begun = Instant::now();
    let outcome = tokio::select! {
        outcome = import.take_all(receiver, &sender, &args, |rows| {
            bar.set_position(position.load(std::sync::atomic::Ordering::Relaxed));
            bar.set_message(output::thousands(rows));
        }) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    bar.finish_and_clear();
    if let Err(error) = outcome {
        import.save()?;
        let done = output::thousands(import.state.progress.inserted);
        return Err(error.context(format!("{done} rows are in; run the same command again to go on")));
    }
    if reading.join().is_err() {
        bail!("the thread that reads {} failed", args.file.display());
    }
    import.summary(&args, begun.elapsed())
}

/// An import whose rows were deleted since must not be continued: the deleted ones would be missing.
fn check_still_there(table: &Value, state: &State) -> anyhow::Result<()> {
    if let Some(rows) = table.get("rows").and_then(Value::as_u64)
        && rows < state.progress.inserted
    {
        bail!(
            "the interrupted import put {} rows into {}, which now holds {rows}; add --restart to begin anew",
            state.progress.inserted,
            state.progress.same.table
        );
    }
    Ok(())
}

impl ImportArgs {
    /// The options that decide how the file is cut, as they are typed.
    fn cutting_options(&self) -> String {
        let mut options = format!("--batch {} --delimiter '{}'", self.batch, char::from(self.delimiter));
        if let Some(null) = &self.null {
            options.push_str(&format!(" --null '{null}'"));
        }
        if self.exported {
            options.push_str(" --exported");
        }
        if let Some(columns) = &self.columns {
            options.push_str(&format!(" --columns {}", columns.join(",")));
        }
        if self.no_header {
            options.push_str(" --no-header");
        }
        options
    }

    /// Where the state and the rejected rows go: beside the file, or here when its directory can't be written.
    fn beside(&self) -> (PathBuf, PathBuf) {
        let name = self.file.file_name().unwrap_or_default().to_string_lossy();
        let stem = name.strip_suffix(".gz").unwrap_or(&name);
        let stem = stem.strip_suffix(".csv").unwrap_or(stem);
        let (state, rejects) = (format!("{stem}.import-state.json"), format!("{stem}.rejected.csv"));
        if let Some(rejects) = &self.rejects {
            return (rejects.with_file_name(state), rejects.clone());
        }
        let probe = self.file.with_file_name(format!(".{stem}.probe"));
        let writable = std::fs::write(&probe, b"").is_ok();
        let _ = std::fs::remove_file(&probe);
        let here = |name: String| if writable { self.file.with_file_name(name) } else { PathBuf::from(name) };
        (here(state), here(rejects))
    }
}

fn progress_bar(args: &ImportArgs, bytes: u64) -> ProgressBar {
    if args.target.json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes);
    let template = "{prefix} {bar:30} {percent:>3} %  {msg} rows  {elapsed} elapsed, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.with_prefix(args.table.clone())
}

/// An import under way.
struct Import {
    state: State,
    rejects: Rejects,
    saved: Instant,
    /// Rows that an interrupted import had put in.
    before: u64,
}

impl Import {
    async fn take_all(
        &mut self,
        mut receiver: mpsc::Receiver<anyhow::Result<Batch>>,
        sender: &Sender,
        args: &ImportArgs,
        mut tell: impl FnMut(u64),
    ) -> anyhow::Result<()> {
        let done_before = self.state.progress.batches;
        let import_id = self.state.progress.import_id.clone();
        let arriving = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        let answers = arriving
            .map(|batch| {
                let id = batch.as_ref().map_or_else(|_| String::new(), |batch| State::id_of(&import_id, batch.number));
                async move {
                    let mut batch = batch?;
                    let answer = match batch.body.take() {
                        Some(body) if batch.number >= done_before => sender.send(&id, body).await?,
                        _ => Answer { inserted: 0, rejected: Vec::new() },
                    };
                    Ok((batch, answer))
                }
            })
            .buffered(args.jobs as usize);
        tokio::pin!(answers);
        while let Some(answer) = answers.next().await {
            let (batch, answer): (Batch, Answer) = answer.map_err(|error: anyhow::Error| {
                error.context(format!("import {} into {}", args.file.display(), args.table))
            })?;
            if batch.number >= done_before {
                self.take(batch, answer)?;
            }
            tell(self.state.progress.inserted + self.state.progress.rejected);
        }
        self.save()
    }

    fn take(&mut self, mut batch: Batch, answer: Answer) -> anyhow::Result<()> {
        let mut rejected = std::mem::take(&mut batch.rejected);
        for (index, reason) in answer.rejected {
            let Some(row) = batch.sent.get_mut(index) else { continue };
            rejected.push(Reject { line: row.line, reason, fields: std::mem::take(&mut row.fields) });
        }
        rejected.sort_by_key(|row| row.line);
        self.rejects.write(&rejected)?;
        let progress = &mut self.state.progress;
        progress.inserted += answer.inserted;
        progress.rejected += rejected.len() as u64;
        progress.batches = batch.number + 1;
        if self.saved.elapsed() >= SAVE_INTERVAL {
            self.save()?;
        }
        Ok(())
    }

    fn save(&mut self) -> anyhow::Result<()> {
        self.state.progress.rejects_bytes = self.rejects.bytes();
        self.saved = Instant::now();
        self.state.save()
    }

    fn summary(self, args: &ImportArgs, took: Duration) -> anyhow::Result<()> {
        let (inserted, rejected) = (self.state.progress.inserted, self.state.progress.rejected);
        self.state.finish()?;
        let seconds = took.as_secs_f64().max(0.001);
        if args.target.json {
            let rejects = (rejected > 0).then(|| self.rejects.path().display().to_string());
            output::json(&json!({"table": args.table, "inserted": inserted, "rejected": rejected, "rejects": rejects,
                "seconds": (seconds * 1000.0).round() / 1000.0}))?;
        } else {
            output::line(&told(&args.table, inserted, self.before, seconds))?;
        }
        if rejected == 0 {
            return Ok(());
        }
        if !args.target.json {
            let rows = if rejected == 1 {
                "1 row was".to_string()
            } else {
                format!("{} rows were", output::thousands(rejected))
            };
            output::complain(&format!(
                "{rows} rejected; line numbers and reasons are in {}",
                self.rejects.path().display()
            ));
        }
        Err(Reported.into())
    }
}

/// `inserted` rows are in; `before` of them had been put in by an import that was interrupted.
fn told(table: &str, inserted: u64, before: u64, seconds: f64) -> String {
    let now = inserted.saturating_sub(before);
    let rows = if now == 1 { "row" } else { "rows" };
    let rate = if now == 0 {
        String::new()
    } else {
        format!(" ({} rows/s)", output::thousands((now as f64 / seconds).round() as u64))
    };
    let all = match before {
        0 => String::new(),
        _ => format!("; {} with those from before the interruption", output::thousands(inserted)),
    };
    format!("{} {rows} into {table} in {seconds:.1} s{rate}{all}", output::thousands(now))
}

#[cfg(test)]
mod tests;
