//! The simulation (crate `sim`), by its tests that are not run always.

use crate::run;

/// Seeds of the acceptance.
const ACCEPTED: u64 = 200;

#[derive(clap::Args)]
pub struct Args {
    /// Run the seeds from 0 up to this many
    #[arg(long, default_value_t = ACCEPTED, conflicts_with_all = ["seed", "bugs"])]
    seeds: u64,
    /// Run one seed, and print its trace
    #[arg(long)]
    seed: Option<u64>,
    /// See that each planted bug is found
    #[arg(long, conflicts_with = "seed")]
    bugs: bool,
    /// Plant this bug, with `--seed`; look for no other, with `--bugs`
    #[arg(long)]
    bug: Option<String>,
}

/// Run what is asked for.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut told: Vec<(&str, String)> = Vec::new();
    told.extend(args.bug.clone().map(|bug| ("PLEAT_SIM_BUG", bug)));
    match (args.seed, args.bugs) {
        (Some(seed), _) => {
            told.push(("PLEAT_SIM_SEED", seed.to_string()));
            simulate("seed", &told)
        }
        (None, true) => simulate("bugs", &told),
        (None, false) => {
            told.push(("PLEAT_SIM_SEEDS", args.seeds.to_string()));
            simulate("seeds", &told)
        }
    }
}

/// What must hold before anything is released.
pub fn accept() -> anyhow::Result<()> {
    simulate("seeds", &[("PLEAT_SIM_SEEDS", ACCEPTED.to_string())])?;
    simulate("bugs", &[])
}

/// The whole workspace is named so that nothing is compiled anew for this.
fn simulate(test: &str, told: &[(&str, String)]) -> anyhow::Result<()> {
    let args = ["test", "--workspace", "--locked", "--quiet", "--test", "simulate", "--", "--ignored", "--exact"];
    run::cargo_told(&[&args[..], &["--nocapture", test]].concat(), told)
}
