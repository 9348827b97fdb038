//! A cluster against what it is measured by, in one run on one machine: `cargo xtask bench`.
//!
//! | part | asks | against |
//! | --- | --- | --- |
//! | [`points`] | point reads and durable point writes over HTTP | SQLite in this process, and how often the disk can fsync |
//! | [`scatter`] | reads of all rows of three shards | SQLite on one file |
//! | [`etcd`] | durable writes and strong reads of one key, of three nodes | three nodes of etcd |
//! | [`moving`] | rows moved from shard to shard | a plain copy between two SQLite files |
//! | [`router`] | the CPU of a node that only routes | HTTP alone |
//! | [`planning`] | a plan that evens out a very large cluster | the least that must move |
//! | [`idle`] | the memory of nodes that have nothing to do | |
//! | [`postgres`] | PostgreSQL shards: statements of one account, aggregates, rows that move | the bare server, PgBouncer, HAProxy, `pg_dump` |
//!
//! The rounds of what is compared alternate, and medians are shown, so that what else the machine does touches both. CPU is that
//! of the servers' processes, or of this thread for SQLite, and does not contain the client's. A temporary
//! directory in memory has no disk: `--dir` names another.

mod client;
mod cluster;
mod etcd;
mod idle;
mod measure;
mod moving;
mod planning;
mod points;
mod postgres;
mod router;
mod scatter;

use std::os::unix::fs::PermissionsExt;

use clap::{Parser, ValueEnum};

#[derive(Parser)]
#[command(name = "cargo xtask bench --", about = "A cluster against what it is measured by")]
struct Args {
    /// Nodes of the cluster
    #[arg(long, default_value_t = 3)]
    nodes: u32,
    /// Operations of each kind in a round
    #[arg(long, default_value_t = 3000)]
    operations: u64,
    /// Clients at the same time
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    clients: Vec<u64>,
    /// Rounds, of which the median counts [default: 3, and 5 of postgres]
    #[arg(long)]
    rounds: Option<usize>,
    /// The length of a run of pgbench, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Rounds of the reads of all rows, of which the median counts
    #[arg(long, default_value_t = 15)]
    scatters: usize,
    /// Which parts [default: all but postgres, which takes three quarters of an hour]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Where the data set is that some of them read [default: where `cargo xtask test` puts it]
    #[arg(long)]
    data: Option<std::path::PathBuf>,
    /// Where the databases are made, on the disk to be measured [default: the system's temporary directory]
    #[arg(long)]
    dir: Option<std::path::PathBuf>,
    /// Where node 1 listens
    #[arg(long, default_value = "127.0.0.1:27080")]
    listen: std::net::SocketAddr,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Part {
    Points,
    Scatter,
    Etcd,
    Moving,
    Router,
    Planning,
    Idle,
    Postgres,
}

impl Args {
    fn wanted(&self) -> Vec<Part> {
        if !self.parts.is_empty() {
            return self.parts.clone();
        }
        Part::value_variants().iter().copied().filter(|part| *part != Part::Postgres).collect()
    }

    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(3)
    }
}

// One thread: what its clients take is missing where it is measured.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    for part in args.wanted() {
        let dir = match &args.dir {
            Some(parent) => tempfile::tempdir_in(parent)?,
            None => tempfile::tempdir()?,
        };
        // PostgreSQL doesn't run as root, and the account that it runs as has to reach its data.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        match part {
            Part::Points => points::run(&args, dir.path()).await?,
            Part::Scatter => scatter::run(&args, dir.path()).await?,
            Part::Etcd => etcd::run(&args, dir.path()).await?,
            Part::Moving => moving::run(&args, dir.path()).await?,
            Part::Router => router::run(&args, dir.path()).await?,
            Part::Planning => planning::run(args.rounds()),
            Part::Idle => idle::run(&args, dir.path()).await?,
            Part::Postgres => postgres::run(&args, dir.path()).await?,
        }
    }
    Ok(())
}
