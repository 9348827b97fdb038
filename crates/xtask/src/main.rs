//! Chores of the repository: `cargo xtask test`, `fuzz`, `ci`, `tidy` and `bench`.
//!
//! They are Rust and not scripts so that they run wherever Pleat builds, and so that what they check can itself
//! be tested.

mod bench;
mod data;
mod fuzz;
mod run;
mod sim;
mod test;
mod tidy;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of this repository")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Run all tests; what they need is installed when it is missing
    Test {
        /// Also the acceptance: 200 seeds of the simulation and every planted bug; with real processes a hundred moves,
        /// a kill at every step of every operation, and ten minutes of faults
        #[arg(long)]
        full: bool,
        /// Arguments for `cargo nextest run`, such as part of a test's name
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Simulate whole clusters, each from a seed: `--seeds 200`, or `--seed 7` with its trace, or `--bugs`
    Sim(sim::Args),
    /// Try what reads strangers' bytes with inputs that are nearly right: all targets, or one; `--input` tries one again
    Fuzz(fuzz::Args),
    /// What must pass before anything is merged: format, lints, tidiness, tests
    Ci,
    /// Check the layering, the size of files, and other rules of the house
    Tidy,
    /// Measure a cluster against bare SQLite, in release mode
    Bench {
        /// Arguments for the benchmark; see `cargo xtask bench -- --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().chore {
        Chore::Test { full, args } => {
            test::run(&args)?;
            if full {
                test::accept()?;
                sim::accept()?;
            }
            Ok(())
        }
        Chore::Sim(args) => sim::run(&args),
        Chore::Fuzz(args) => fuzz::run(&args),
        Chore::Ci => ci(),
        Chore::Tidy => tidy::run(),
        Chore::Bench { args } => bench::run(&args),
    }
}

/// The cheap checks first. The tests' summary comes last, where it is seen.
fn ci() -> anyhow::Result<()> {
    run::cargo(&["fmt", "--all", "--check"])?;
    tidy::run()?;
    run::cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    test::run(&[])
}
