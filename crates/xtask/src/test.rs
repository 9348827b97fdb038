//! All tests, on a machine that may be fresh.

use anyhow::{Context, bail};

use crate::{data, run};

/// Install what is missing, then run the documentation's tests and all others.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    c_compiler()?;
    nextest()?;
    data::ensure_there(&run::target())?;
    run::cargo(&["test", "--workspace", "--doc", "--locked", "--quiet"])?;
    let mut nextest = vec!["nextest", "run", "--workspace", "--locked", "--no-fail-fast"];
    nextest.extend(args.iter().map(String::as_str));
    run::cargo(&nextest)
}

/// SQLite is C; it is compiled from the source that comes with its crate.
fn c_compiler() -> anyhow::Result<()> {
    if run::answers("cc", &["--version"]) {
        return Ok(());
    }
    if !run::answers("apt-get", &["--version"]) {
        bail!("there is no C compiler (cc), which SQLite needs; install one");
    }
    eprintln!("there is no C compiler, which SQLite needs; installing gcc");
    run::program("apt-get", &["update"])?;
    run::program("apt-get", &["install", "--yes", "--no-install-recommends", "gcc", "libc6-dev"])
        .context("install a C compiler (as root, or install gcc yourself)")
}

/// The runner that gives each test a process of its own, so that tests that start clusters can't disturb others.
fn nextest() -> anyhow::Result<()> {
    if run::answers("cargo", &["nextest", "--version"]) {
        return Ok(());
    }
    eprintln!("cargo-nextest is missing; building it takes some minutes, once");
    run::cargo(&["install", "--locked", "cargo-nextest"])
}
