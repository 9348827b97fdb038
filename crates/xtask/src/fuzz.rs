//! The fuzz targets of the crates (crate `fuzz`), by their tests, for longer.

use anyhow::ensure;

use crate::run;

#[derive(clap::Args)]
pub struct Args {
    /// One target, such as `sql/postgres`; all of them otherwise
    target: Option<String>,
    /// How long each target is tried
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Other inputs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Try one input of a target again, in the form in which it was printed
    #[arg(long, requires = "target", conflicts_with_all = ["seconds", "seed"])]
    input: Option<String>,
}

/// The crates that have targets, the binary that their test is in, and what that test is called.
const CRATES: [(&str, &[&str], &str); 3] = [
    ("sql", &["--test", "fuzz"], "fuzz_targets"),
    ("engine", &["--lib"], "postgres::fuzz::fuzz_targets"),
    ("gateway", &["--lib"], "pg::fuzz::fuzz_targets"),
];

/// Run what is asked for. A target that fails ends it, and prints the input.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let wanted = |name: &str| args.target.as_ref().is_none_or(|target| target.split('/').next() == Some(name));
    let crates: Vec<_> = CRATES.iter().filter(|(name, ..)| wanted(name)).collect();
    let names = CRATES.map(|(name, ..)| format!("{name}/…")).join(", ");
    ensure!(!crates.is_empty(), "no target has this name; they are called {names}");
    let mut told = vec![("PLEAT_FUZZ_SECONDS", args.seconds.to_string()), ("PLEAT_FUZZ_SEED", args.seed.to_string())];
    told.extend(args.target.clone().map(|target| ("PLEAT_FUZZ_TARGET", target)));
    told.extend(args.input.clone().map(|input| ("PLEAT_FUZZ_INPUT", input)));
    for (name, binary, test) in crates {
        // The whole workspace is named so that nothing is compiled anew for this; no other crate has a test of that name.
        let args = [&["test", "--workspace", "--locked", "--quiet"], *binary, &["--", "--exact", test]].concat();
        // A test that is not there passes.
        let there = run::cargo_says(&[&args[..], &["--list"]].concat())?;
        ensure!(there.lines().any(|line| line == format!("{test}: test")), "there is no test {test} in {name}");
        run::cargo_told(&[&args[..], &["--nocapture"]].concat(), &told)?;
    }
    Ok(())
}
