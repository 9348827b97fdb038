//! The interactive shell: history, statements over several lines, and a few commands of its own.

use std::path::PathBuf;

use anyhow::Context;
use rustyline::Editor;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;

use super::complete::Names;
use super::run::Runner;
use super::{describe, split};
use crate::cli::{output, shards};

const HELP: &str = "\
Statements end with ; and may span lines. Ctrl-C drops what is typed, Ctrl-D leaves.
  \\d          list the tables; \\dt fl* those whose name fits
  \\d TABLE    describe a table
  \\di         list the indexes; \\di fl* those of tables whose name fits
  \\explain    show (or no longer show) the route of each statement before it runs
  \\explain …  show the route of one statement; \\explain analyze SELECT … also runs it
  \\shards     what each shard holds and does
  \\timing     tell (or no longer tell) how long statements take
  \\?          this
  \\q          leave
Tab completes keywords and names.";

type Line = Editor<Names, FileHistory>;

/// Statements in the history file.
const HISTORY_MAX: usize = 2_000;

pub async fn run(runner: &mut Runner) -> anyhow::Result<()> {
    let health = runner.client.get("/health").await?;
    output::line(&format!(
        "Pleat {} at {}. \\? for help, \\q to leave.",
        output::text(&health, "version"),
        runner.client.base()
    ))?;
    let config = rustyline::Config::builder().max_history_size(HISTORY_MAX)?.auto_add_history(false).build();
    let mut editor = Line::with_config(config).context("start the line editor")?;
    editor.set_helper(Some(Names::of(&runner.client).await));
    let history = history_file();
    if let Some(path) = &history {
        // No history yet is how everybody starts.
        let _ = editor.load_history(path);
    }
    let mut typed = String::new();
    loop {
        let prompt = if typed.is_empty() { "pleat> " } else { "  ...> " };
        let (returned, line) = read_line(editor, prompt).await?;
        editor = returned;
        match line {
            Ok(line) if typed.is_empty() && line.trim_start().starts_with('\\') => {
                let _ = editor.add_history_entry(line.trim());
                match command(runner, line.trim()).await {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(error) => super::super::report(&error, false),
                }
            }
            Ok(line) => {
                typed.push_str(&line);
                typed.push('\n');
                run_complete(runner, &mut editor, &mut typed).await?;
            }
            Err(ReadlineError::Interrupted) => typed.clear(),
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error).context("read from the terminal"),
        }
    }
    if let Some(path) = &history
        && let Err(error) = editor.save_history(path)
    {
        output::complain(&format!("the history can't be kept in {}: {error}", path.display()));
    }
    Ok(())
}

/// Waiting for a key would block one of the runtime's threads, so it gets a thread of its own.
async fn read_line(mut editor: Line, prompt: &'static str) -> anyhow::Result<(Line, Result<String, ReadlineError>)> {
    let read = move || {
        let line = editor.readline(prompt);
        (editor, line)
    };
    tokio::task::spawn_blocking(read).await.context("read from the terminal")
}

/// Run the statements that are complete; the rest stays.
async fn run_complete(runner: &Runner, editor: &mut Line, typed: &mut String) -> anyhow::Result<()> {
    let end = split::complete(typed);
    if end == 0 {
        if typed.trim().is_empty() {
            typed.clear();
        }
        return Ok(());
    }
    let ready: String = typed.drain(..end).collect();
    if typed.trim().is_empty() {
        typed.clear();
    }
    let _ = editor.add_history_entry(ready.trim());
    for statement in split::statements(&ready) {
        if runner.explains
            && let Err(error) = runner.explain(statement.text).await
        {
            super::super::report(&error, false);
            break;
        }
        tokio::select! {
            result = runner.run(statement.text) => if let Err(error) = result {
                super::super::report(&error, false);
                break;
            },
            // The server notices that nobody waits any more.
            _ = tokio::signal::ctrl_c() => {
                output::complain("gave up waiting; a write may have been carried out");
                break;
            }
        }
    }
    if changes_names(&ready) {
        editor.set_helper(Some(Names::of(&runner.client).await));
    }
    Ok(())
}

/// Whether a table may look different afterwards.
fn changes_names(text: &str) -> bool {
    split::statements(text).iter().any(|statement| {
        let word = statement.text.split_whitespace().next().unwrap_or_default();
        ["create", "alter", "drop"].iter().any(|verb| word.eq_ignore_ascii_case(verb))
    })
}

/// Run a command of the shell; `true` leaves.
async fn command(runner: &mut Runner, line: &str) -> anyhow::Result<bool> {
    let line = line.trim_end_matches(';');
    let (name, argument) = line.split_once(char::is_whitespace).map_or((line, ""), |(name, rest)| (name, rest.trim()));
    match (name, argument) {
        ("\\q" | "\\quit", "") => return Ok(true),
        ("\\?" | "\\h" | "\\help", "") => output::line(HELP)?,
        ("\\d" | "\\dt", "") => describe::tables(&runner.client, "*").await?,
        ("\\dt", pattern) => describe::tables(&runner.client, pattern).await?,
        ("\\di", "") => describe::indexes(&runner.client, "*").await?,
        ("\\di", pattern) => describe::indexes(&runner.client, pattern).await?,
        ("\\explain", "") => {
            runner.explains = !runner.explains;
            let state = if runner.explains { "shown before it runs" } else { "no longer shown" };
            output::line(&format!("the route of each statement is {state}"))?;
        }
        ("\\explain", statement) => runner.explain(statement).await?,
        ("\\d", table) => describe::table(&runner.client, table.trim_matches('"')).await?,
        ("\\shards", "") => shards::print(&runner.client.get("/shards").await?)?,
        ("\\timing", "") => {
            runner.timing = !runner.timing;
            output::line(if runner.timing { "timing is on" } else { "timing is off" })?;
        }
        _ => output::complain(&format!("unknown command '{line}'; \\? lists the commands")),
    }
    Ok(false)
}

/// `PLEAT_HISTORY`, or a file in the user's home.
fn history_file() -> Option<PathBuf> {
    match std::env::var_os("PLEAT_HISTORY") {
        Some(path) => (!path.is_empty()).then(|| PathBuf::from(path)),
        None => std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pleat_history")),
    }
}
