//! The benchmark, built and run in release mode.

use anyhow::{Context, bail};

use crate::run;

/// Build the binary and the benchmark (cargo does both), and run it.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    etcd()?;
    crate::data::ensure_there(&run::target())?;
    let mut bench = vec!["bench", "--locked", "--package", "pleat", "--bench", "compare", "--"];
    bench.extend(args.iter().map(String::as_str).filter(|arg| *arg != "--"));
    run::cargo(&bench)
}

/// What replicated writes are compared with.
fn etcd() -> anyhow::Result<()> {
    if run::answers("etcd", &["--version"]) {
        return Ok(());
    }
    if !run::answers("apt-get", &["--version"]) {
        bail!("the benchmark compares with etcd, which is missing; install it");
    }
    eprintln!("the benchmark compares with etcd; installing etcd-server");
    run::program("apt-get", &["update"])?;
    run::program("apt-get", &["install", "--yes", "--no-install-recommends", "etcd-server"])
        .context("install etcd-server (as root, or install etcd yourself)")
}
