//! `pleat sql`: statements from the command line, from a file, from a pipe, or typed into a shell.
//!
//! Statements end with `;` and are sent one after the other, each a request of its own; `--atomic` sends all of
//! them as one request, which is all or nothing (and must therefore lie on one shard). The first error stops
//! everything but the interactive shell, and names the line of the file where its statement began.

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

/// The largest script that is read, in bytes.
const SCRIPT_BYTES_MAX: u64 = 64 << 20;

#[derive(Args)]
pub struct SqlArgs {
    #[command(flatten)]
    pub target: Target,
    /// Run these statements and leave
    #[arg(short, long, value_name = "SQL", conflicts_with = "file")]
    command: Option<String>,
    /// Run the statements of a file (`-` is standard input) and leave
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Send all statements as one request: all of them happen, or none (writes to one shard)
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
    let mut runner = Runner { client: args.target.client()?, format, timing: args.timing };
    let (name, text) = match (&args.command, &args.file) {
        (Some(text), _) => ("-c".to_string(), text.clone()),
        (None, Some(path)) if path.as_os_str() != "-" => (path.display().to_string(), read_script(path)?),
        (None, None) if std::io::stdin().is_terminal() => return shell::run(&mut runner).await,
        _ => ("standard input".to_string(), read_all(std::io::stdin(), "standard input")?),
    };
    script(&runner, &name, &text, args.atomic).await
}

async fn script(runner: &Runner, name: &str, text: &str, atomic: bool) -> anyhow::Result<()> {
    let statements = split::statements(text);
    if atomic {
        let all: Vec<&str> = statements.iter().map(|statement| statement.text).collect();
        return runner.run(&all.join(";\n")).await;
    }
    for statement in &statements {
        let Err(error) = runner.run(statement.text).await else { continue };
        if statements.len() == 1 || super::is_broken_pipe(&error) {
            return Err(error);
        }
        // The line is part of the message for people; a program gets the server's error alone.
        super::report(&error, runner.format == Format::Json);
        if runner.format != Format::Json {
            output::complain(&format!(
                "in the statement at line {} of {name}; those before it were run",
                statement.line
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
