//! The benchmark, built and run in release mode.

use anyhow::{Context, bail};

use crate::run;

/// Build the binary and the benchmark (cargo does both), and run it.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    let asked = |part: &str| args.iter().any(|arg| arg == part);
    install("etcd", &["--version"], "etcd-server")?;
    if asked("postgres") {
        install("pgbench", &["--version"], "postgresql-15")?;
        install("/usr/sbin/pgbouncer", &["--version"], "pgbouncer")?;
        install("/usr/sbin/haproxy", &["-v"], "haproxy")?;
    }
    crate::data::ensure_there(&run::target())?;
    let mut bench = vec!["bench", "--locked", "--package", "pleat", "--bench", "compare", "--"];
    bench.extend(args.iter().map(String::as_str).filter(|arg| *arg != "--"));
    run::cargo(&bench)
}

/// What is compared with, from Debian's packages.
fn install(program: &str, version: &[&str], package: &str) -> anyhow::Result<()> {
    if run::answers(program, version) {
        return Ok(());
    }
    if !run::answers("apt-get", &["--version"]) {
        bail!("the benchmark compares with {program}, which is missing; install it");
    }
    eprintln!("the benchmark compares with {program}; installing {package}");
    run::program("apt-get", &["update"])?;
    run::program("apt-get", &["install", "--yes", "--no-install-recommends", package])
        .with_context(|| format!("install {package} (as root, or install it yourself)"))
}
