//! The benchmark, built and run in release mode.

use crate::run;

/// Build the binary and the benchmark (cargo does both), and run it.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    crate::data::ensure_there(&run::target())?;
    let mut bench = vec!["bench", "--locked", "--package", "pleat", "--bench", "compare", "--"];
    bench.extend(args.iter().map(String::as_str).filter(|arg| *arg != "--"));
    run::cargo(&bench)
}
