//! `pleat sql`: statements from the command line, from a file, from a pipe, or typed into a shell.
//!
//! Statements end with `;` and are sent one after the other, each a request of its own; `--atomic` sends all of
//! them as one request, which is all or nothing: one transaction, also over several shards. The first error stops
//! everything but the interactive shell, and names the line of the file where its statement began.

mod complete;
mod describe;
mod run;
mod shell;
mod split;

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::{Reported, Target, output};
use run::{Format, Runner};

/// The largest script that is held, in bytes: from a pipe, or with `--atomic`.
const SCRIPT_BYTES_MAX: u64 = 64 << 20;
/// How much of a file is read at once.
const SCRIPT_PIECE_BYTES: u64 = 256 << 10;

#[derive(Args)]
pub struct SqlArgs {
    #[command(flatten)]
    pub target: Target,
    /// Run these statements and leave
    #[arg(short, long, value_name = "SQL", conflicts_with = "file")]
    command: Option<String>,
    /// Run the statements of a file (gzip is recognised; `-` is standard input) and leave
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Send all statements as one request: all of them happen, or none (writes, on any number of shards)
    #[arg(long)]
    atomic: bool,
    /// Tell how long each statement took
    #[arg(long)]
    timing: bool,
}

pub async fn run(args: SqlArgs) -> anyhow::Result<()> {
    let format = match (args.target.json, output::is_terminal()) {
        (true, _) => Format::Json,
        (false, true) => Format::Table,
        (false, false) => Format::Tabs,
    };
    let mut runner = Runner { client: args.target.client()?, format, timing: args.timing, explains: false };
    let (name, text) = match (&args.command, &args.file) {
        (Some(text), _) => ("-c".to_string(), text.clone()),
        (None, Some(path)) if !args.atomic && path.as_os_str() != "-" => return long_script(&runner, path).await,
        (None, Some(path)) if path.as_os_str() != "-" => (path.display().to_string(), read_script(path)?),
        (None, None) if std::io::stdin().is_terminal() => return shell::run(&mut runner).await,
        _ => ("standard input".to_string(), read_all(std::io::stdin(), "standard input")?),
    };
    script(&runner, &name, &text, args.atomic).await
}

/// A file of any length, a piece at a time: an export is larger than memory.
async fn long_script(runner: &Runner, path: &std::path::Path) -> anyhow::Result<()> {
    let name = path.display().to_string();
    let mut input = std::io::BufReader::new(std::fs::File::open(path).with_context(|| format!("open {name}"))?);
    let is_gzip = std::io::BufRead::fill_buf(&mut input)?.starts_with(&[0x1f, 0x8b]);
    let mut input: Box<dyn Read + Send> =
        if is_gzip { Box::new(flate2::bufread::MultiGzDecoder::new(input)) } else { Box::new(input) };
    let (mut pending, mut lines) = (Vec::new(), 0);
    loop {
        let before = pending.len();
        (&mut input).take(SCRIPT_PIECE_BYTES).read_to_end(&mut pending).with_context(|| format!("read {name}"))?;
        let at_end = pending.len() == before;
        anyhow::ensure!(pending.len() as u64 <= SCRIPT_BYTES_MAX, "a statement of {name} does not end within 64 MiB");
        // A character may be cut in two by the piece's end.
        let text = match std::str::from_utf8(&pending) {
            Ok(text) => text,
            Err(error) if error.error_len().is_none() && !at_end => {
                std::str::from_utf8(&pending[..error.valid_up_to()]).unwrap_or_default()
            }
            Err(error) => return Err(error).with_context(|| format!("{name} is not UTF-8 text")),
        };
        let ready = if at_end { text.len() } else { split::complete(text) };
        statements(runner, &name, &text[..ready], lines).await?;
        lines += text[..ready].matches('\n').count();
        pending.drain(..ready);
        if at_end {
            return Ok(());
        }
    }
}

async fn script(runner: &Runner, name: &str, text: &str, atomic: bool) -> anyhow::Result<()> {
    let statements = split::statements(text);
    if atomic {
        let all: Vec<&str> = statements.iter().map(|statement| statement.text).collect();
        return runner.run(&all.join(";\n")).await;
    }
    self::statements(runner, name, text, 0).await
}

/// Run statements one by one; `lines` of the script come before them.
async fn statements(runner: &Runner, name: &str, text: &str, lines: usize) -> anyhow::Result<()> {
    let statements = split::statements(text);
    for statement in &statements {
        let Err(error) = runner.run(statement.text).await else { continue };
        if (statements.len() == 1 && lines == 0) || super::is_broken_pipe(&error) {
            return Err(error);
        }
        // The line is part of the message for people; a program gets the server's error alone.
        super::report(&error, runner.format == Format::Json);
        if runner.format != Format::Json {
            output::complain(&format!(
                "in the statement at line {} of {name}; those before it were run",
                statement.line + lines
            ));
        }
        return Err(Reported.into());
    }
    Ok(())
}

fn read_script(path: &std::path::Path) -> anyhow::Result<String> {
    let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    read_all(file, &path.display().to_string())
}

fn read_all(source: impl Read, name: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    source.take(SCRIPT_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(|| format!("read {name}"))?;
    anyhow::ensure!(
        bytes.len() as u64 <= SCRIPT_BYTES_MAX,
        "{name} is larger than 64 MiB; load data with `pleat import`, which also resumes"
    );
    String::from_utf8(bytes).with_context(|| format!("{name} is not UTF-8 text"))
}
