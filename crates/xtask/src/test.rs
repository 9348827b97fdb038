//! All tests, on a machine that may be fresh.

use anyhow::{Context, bail};

use crate::{data, run};

/// Install what is missing, then run the documentation's tests and all others.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    c_compiler()?;
    faults()?;
    drivers()?;
    node()?;
    java()?;
    postgresql()?;
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

/// What must hold of real processes before anything is released, as tests that are not run always.
pub fn accept() -> anyhow::Result<()> {
    let tests = [
        "moves_under_load::a_hundred_moves_under_load_pause_writes_for_less_than_200_ms",
        "operations_killed_at_every_step::every_operation_killed_at_every_step_ends_and_leaves_nothing",
        "fault_run::ten_minutes_of_faults_lose_nothing",
    ];
    for test in tests {
        // The whole workspace is named so that nothing is compiled anew for this.
        let args = ["test", "--workspace", "--locked", "--quiet", "--test", "cluster", "--", "--ignored", "--exact"];
        run::cargo(&[&args[..], &["--nocapture", test]].concat())?;
    }
    Ok(())
}

/// Nodes are cut off from each other and shown wrong clocks, in network namespaces that the test makes, and their disks
/// fill up and fail: as root.
fn faults() -> anyhow::Result<()> {
    let faketime = ["x86_64", "aarch64"].map(|cpu| format!("/usr/lib/{cpu}-linux-gnu/faketime/libfaketimeMT.so.1"));
    let clocks = faketime.iter().any(|library| std::path::Path::new(library).exists());
    let programs = [("ip", "-V"), ("nft", "-v"), ("strace", "-V")];
    if clocks && programs.iter().all(|(program, version)| run::answers(program, &[version])) {
        return Ok(());
    }
    if !run::answers("apt-get", &["--version"]) {
        bail!("tests need the programs ip (iproute2), nft (nftables) and strace, and libfaketime; install them");
    }
    eprintln!("tests need iproute2, nftables, strace and libfaketime; installing them");
    run::program("apt-get", &["update"])?;
    let packages = ["iproute2", "nftables", "strace", "libfaketime"];
    run::program("apt-get", &[&["install", "--yes", "--no-install-recommends"], &packages[..]].concat())
        .context("install iproute2, nftables, strace and libfaketime (as root, or install them yourself)")
}

/// Those who speak PostgreSQL's protocol: psql, and the drivers of Debian's own Python.
fn drivers() -> anyhow::Result<()> {
    const IMPORTS: &str = "import psycopg2, psycopg, asyncpg, sqlalchemy, django";
    if run::answers("psql", &["--version"]) && run::answers("/usr/bin/python3", &["-c", IMPORTS]) {
        return Ok(());
    }
    let packages = [
        "postgresql-client",
        "python3-psycopg2",
        "python3-psycopg",
        "python3-asyncpg",
        "python3-sqlalchemy",
        "python3-django",
    ];
    if !run::answers("apt-get", &["--version"]) {
        bail!(
            "tests need psql, and /usr/bin/python3 with psycopg2, psycopg, asyncpg, SQLAlchemy and Django; install them"
        );
    }
    eprintln!("tests need {}; installing them", packages.join(", "));
    run::program("apt-get", &["update"])?;
    run::program("apt-get", &[&["install", "--yes", "--no-install-recommends"], &packages[..]].concat())
        .context("install psql and Python's drivers (as root, or install them yourself)")
}

/// Node and its driver `pg`. Debian's package of that needs Debian's own node; where there is another one, the package is unpacked
/// into the target directory, and nothing on the machine changes.
fn node() -> anyhow::Result<()> {
    let apt = run::answers("apt-get", &["--version"]);
    if !run::answers("node", &["--version"]) {
        if !apt {
            bail!("tests need node (nodejs) and its driver pg (node-pg); install them");
        }
        eprintln!("tests need nodejs; installing it");
        run::program("apt-get", &["update"])?;
        run::program("apt-get", &["install", "--yes", "--no-install-recommends", "nodejs"])
            .context("install nodejs (as root, or install it yourself)")?;
    }
    let unpacked = run::target().join("test-data/node");
    let works = |modules: &std::path::Path| {
        let script = "process.env.NODE_PATH = process.argv[1]; require('module')._initPaths(); require('pg'); require('pg-query-stream')";
        modules.to_str().is_some_and(|modules| run::answers("node", &["-e", script, modules]))
    };
    if works("/usr/share/nodejs".as_ref()) || works(&unpacked.join("usr/share/nodejs")) {
        return Ok(());
    }
    if !apt {
        bail!("tests need node's driver pg in /usr/share/nodejs (node-pg); install it");
    }
    eprintln!("tests need node's driver pg; unpacking Debian's node-pg into {}", unpacked.display());
    let fresh = run::target().join("test-data/node.new");
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh).with_context(|| format!("remove {}", fresh.display()))?;
    }
    std::fs::create_dir_all(&fresh).with_context(|| format!("make {}", fresh.display()))?;
    // Only root may; the lists that are there may do.
    if let Err(error) = run::program("apt-get", &["update"]) {
        eprintln!("{error:#}; going on with the lists that are there");
    }
    // What `pg` itself asks for; the rest of what the package depends on is for other parts of it.
    run::program_in(&fresh, "apt-get", &["download", "node-pg", "node-split2", "node-xtend"])
        .context("fetch node-pg from Debian (`apt-get update`, as root, may help)")?;
    // Listed before the first of them puts a folder beside them.
    let packages: Vec<_> =
        std::fs::read_dir(&fresh)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>()?;
    for package in packages {
        let package = package.to_str().context("a package's name is not UTF-8")?;
        run::program_in(&fresh, "dpkg-deb", &["-x", package, "."])?;
    }
    if !works(&fresh.join("usr/share/nodejs")) {
        bail!("node's driver pg does not load from {}, where Debian's node-pg was unpacked", fresh.display());
    }
    if unpacked.exists() {
        std::fs::remove_dir_all(&unpacked).with_context(|| format!("remove {}", unpacked.display()))?;
    }
    std::fs::rename(&fresh, &unpacked).with_context(|| format!("make {}", unpacked.display()))
}

/// A JDK, which runs a source file, and PostgreSQL's JDBC driver.
fn java() -> anyhow::Result<()> {
    const DRIVER: &str = "/usr/share/java/postgresql.jar";
    if run::answers("javac", &["-version"]) && std::path::Path::new(DRIVER).exists() {
        return Ok(());
    }
    if !run::answers("apt-get", &["--version"]) {
        bail!("tests need a JDK and PostgreSQL's JDBC driver in {DRIVER} (libpostgresql-jdbc-java); install them");
    }
    eprintln!("tests need a JDK and PostgreSQL's JDBC driver; installing them");
    run::program("apt-get", &["update"])?;
    let jdk: &[&str] = if run::answers("javac", &["-version"]) { &[] } else { &["default-jdk-headless"] };
    let install = ["install", "--yes", "--no-install-recommends", "libpostgresql-jdbc-java"];
    run::program("apt-get", &[&install[..], jdk].concat())
        .context("install a JDK and libpostgresql-jdbc-java (as root, or install them yourself)")
}

/// PostgreSQL's server, which shards are made of: the version that Debian 12 has.
fn postgresql() -> anyhow::Result<()> {
    if run::answers("/usr/lib/postgresql/15/bin/postgres", &["--version"]) {
        return Ok(());
    }
    if !run::answers("apt-get", &["--version"]) {
        bail!("tests need PostgreSQL 15 in /usr/lib/postgresql/15/bin; install it");
    }
    eprintln!("tests need PostgreSQL 15; installing postgresql-15");
    run::program("apt-get", &["update"])?;
    run::program("apt-get", &["install", "--yes", "--no-install-recommends", "postgresql-15"])
        .context("install PostgreSQL 15 (as root, or install it yourself)")
}

/// The runner that gives each test a process of its own, so that tests that start clusters can't disturb others.
fn nextest() -> anyhow::Result<()> {
    if run::answers("cargo", &["nextest", "--version"]) {
        return Ok(());
    }
    eprintln!("cargo-nextest is missing; building it takes some minutes, once");
    run::cargo(&["install", "--locked", "cargo-nextest"])
}
