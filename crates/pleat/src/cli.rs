//! The command line: one module per command, and what they share.
//!
//! Commands that speak to a cluster do it over HTTP alone, like any other client ([`client`]). What they
//! print is for people; with `--json` it is for programs: the server's own JSON, unchanged. The exit code is
//! 0 when all went well, 1 for an error, 2 for a command line that makes no sense, 74 for a node whose disk failed. A reader that goes away
//! (`pleat shards | head -1`) is no error.

mod adopt;
pub(crate) mod client;
mod export;
mod import;
mod ops;
pub(crate) mod output;
mod policy;
mod rebalance;
mod serve;
mod shard_table;
mod shards;
mod sql;
mod statements;
mod status;
mod txns;
mod user;
mod watch;
mod why;

use std::io;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::options::NodeArgs;
use crate::up::UpArgs;
use client::{Client, Failure};

/// An elastic SQL database: shards that split by themselves while the application writes.
#[derive(Parser)]
#[command(name = "pleat", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a whole cluster on this machine
    Up(UpArgs),
    /// Run one node in the foreground (`pleat up` starts these by itself)
    Node(Box<NodeArgs>),
    /// A SQL shell, or run statements from a file or the command line
    Sql(sql::SqlArgs),
    /// Load a CSV file into a table
    Import(import::ImportArgs),
    /// Write a table, or the whole database, to a file
    Export(export::ExportArgs),
    /// How the cluster is
    Status(Target),
    /// The shards: what they hold and what they do
    Shards(Target),
    /// The statements that take most of a node's time
    Statements(statements::StatementsArgs),
    /// Transactions: those that are open, and those that are in doubt
    Txns(Target),
    /// Operations: every change of the cluster, with its steps
    Ops(ops::OpsArgs),
    /// Even the shards out by moving partitions, or show what that would move
    Rebalance(rebalance::RebalanceArgs),
    /// Tell why the cluster did (or did not do) something
    Why(why::WhyArgs),
    /// Show or change what the autoscaler goes by
    Policy(policy::PolicyArgs),
    /// Say where a table's rows live: by a shard key, on every shard, or on one; the rows go along
    ShardTable(shard_table::ShardTableArgs),
    /// Users of the PostgreSQL address: add, list, remove
    User(user::UserArgs),
    /// Tell how an existing PostgreSQL database would be sharded, and why; changes nothing
    Adopt(adopt::AdoptArgs),
}

/// Which cluster, and how to print.
#[derive(Args, Clone, Debug)]
pub(crate) struct Target {
    /// Any node of the cluster
    #[arg(long, global = true, env = "PLEAT_URL", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub url: String,
    /// Print JSON for programs
    #[arg(long, global = true)]
    pub json: bool,
}

impl Target {
    fn client(&self) -> anyhow::Result<Client> {
        Client::new(&self.url)
    }
}

/// Run the command that the process's arguments name.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = match &cli.command {
        Command::Up(args) => args.json,
        Command::Node(_) => false,
        Command::Sql(args) => args.target.json,
        Command::Import(args) => args.target.json,
        Command::Export(args) => args.target.json,
        Command::Statements(args) => args.target.json,
        Command::Status(target) | Command::Shards(target) | Command::Txns(target) => target.json,
        Command::Ops(args) => args.target.json,
        Command::Rebalance(args) => args.target.json,
        Command::Why(args) => args.target.json,
        Command::Policy(args) => args.target.json,
        Command::ShardTable(args) => args.target.json,
        Command::User(args) => args.target.json,
        Command::Adopt(args) => args.json,
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, json);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let runtime = Runtime(Some(tokio::runtime::Builder::new_multi_thread().enable_all().build()?));
    runtime.block_on(async {
        match command {
            Command::Up(args) => crate::up::run(args).await,
            Command::Node(args) => serve::run(*args).await,
            Command::Sql(args) => sql::run(args).await,
            Command::Import(args) => import::run(args).await,
            Command::Export(args) => export::run(args).await,
            Command::Statements(args) => statements::run(args).await,
            Command::Status(target) => status::run(&target).await,
            Command::Shards(target) => shards::run(&target).await,
            Command::Txns(target) => txns::run(&target).await,
            Command::Ops(args) => ops::run(args).await,
            Command::Rebalance(args) => rebalance::run(args).await,
            Command::Why(args) => why::run(args).await,
            Command::Policy(args) => policy::run(args).await,
            Command::ShardTable(args) => shard_table::run(args).await,
            Command::User(args) => user::run(args).await,
            Command::Adopt(args) => adopt::run(args).await,
        }
    })
}

/// The runtime, left behind rather than waited for when the command is over: a thread that waits for the disk or
/// the terminal must not keep the process, least of all after a panic, when a node has to end to be started anew.
struct Runtime(Option<tokio::runtime::Runtime>);

impl Runtime {
    fn block_on<T>(&self, command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        match &self.0 {
            Some(runtime) => runtime.block_on(command),
            None => anyhow::bail!("the runtime is gone"),
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// An error whose text was printed already; only the exit code is left to set.
#[derive(Debug)]
struct Reported;

impl std::fmt::Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("reported above")
    }
}

impl std::error::Error for Reported {}

fn report(error: &anyhow::Error, json: bool) {
    if error.downcast_ref::<Reported>().is_some() {
        return;
    }
    let failure = error.downcast_ref::<Failure>();
    if json {
        let body = failure.map_or_else(|| serde_json::json!({"error": format!("{error:#}")}), Failure::to_json);
        output::complain(&body.to_string());
        return;
    }
    output::complain(&format!("error: {error:#}"));
    if let Some(hint) = failure.and_then(|failure| failure.hint.as_deref()) {
        output::complain(&format!("hint: {hint}"));
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
