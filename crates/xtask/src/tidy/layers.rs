//! The layers, as Cargo's dependency edges draw them.

use anyhow::Context;

use super::Complaint;

/// Each crate, and the crates of the workspace that it may depend on.
const LAYERS: &[(&str, &[&str])] = &[
    ("cluster", &[]),
    ("plan", &["cluster"]),
    ("sql", &["cluster"]),
    ("generate", &["cluster"]),
    ("fuzz", &[]),
    ("oracle", &[]),
    ("consensus", &["cluster"]),
    ("engine", &["cluster"]),
    ("provision", &["cluster"]),
    ("host", &["consensus", "engine", "cluster"]),
    ("control", &["plan", "host", "consensus", "engine", "provision", "cluster"]),
    ("gateway", &["plan", "sql", "host", "consensus", "engine", "cluster"]),
    ("pleat", &["gateway", "control", "host", "plan", "sql", "consensus", "engine", "provision", "cluster"]),
    ("sim", &["oracle", "gateway", "control", "host", "consensus", "engine", "cluster"]),
    ("xtask", &[]),
];

/// No sockets, files, clocks, threads or ambient randomness.
pub const PURE: &[&str] = &["cluster", "plan", "sql"];

/// What the pure crates may use from outside: all of it pure as well.
const PURE_MAY_USE: &[&str] = &["md-5", "serde", "serde_json", "sqlparser", "thiserror"];

/// Hold one crate's manifest against the layers.
pub fn check(manifest: &str) -> anyhow::Result<Vec<Complaint>> {
    let manifest: toml::Table = manifest.parse().context("parse a Cargo.toml")?;
    let name = manifest
        .get("package")
        .and_then(|package| package.get("name"))
        .and_then(toml::Value::as_str)
        .context("a Cargo.toml has no package name")?;
    let layer = name.strip_prefix("pleat-").unwrap_or(name);
    let Some((_, allowed)) = LAYERS.iter().find(|(known, _)| *known == layer) else {
        return Ok(vec![format!("crate {name} has no place in the layers; add it to crates/xtask/src/tidy/layers.rs")]);
    };
    let mut complaints = Vec::new();
    for dependency in dependencies(&manifest) {
        let fine = match dependency.strip_prefix("pleat-") {
            Some(other) => allowed.contains(&other),
            None => !PURE.contains(&layer) || PURE_MAY_USE.contains(&dependency.as_str()),
        };
        if !fine {
            let why = if dependency.starts_with("pleat-") { "that is no layer below it" } else { "it is pure" };
            complaints.push(format!("crate {name} must not depend on {dependency}: {why}"));
        }
    }
    Ok(complaints)
}

/// What is linked into the crate or runs when it is built; what only its tests use is their business.
fn dependencies(manifest: &toml::Table) -> Vec<String> {
    let mut tables: Vec<&toml::Value> = Vec::new();
    for key in ["dependencies", "build-dependencies"] {
        tables.extend(manifest.get(key));
        if let Some(toml::Value::Table(targets)) = manifest.get("target") {
            tables.extend(targets.values().filter_map(|target| target.get(key)));
        }
    }
    tables.iter().filter_map(|table| table.as_table()).flat_map(|table| table.keys().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(manifest: &str) -> String {
        check(manifest).unwrap().join("; ")
    }

    #[test]
    fn an_edge_upwards_is_found() {
        let manifest = "[package]\nname = \"pleat-sql\"\n[dependencies]\npleat-cluster = \"1\"\npleat-engine = \"1\"";
        assert_eq!(complaints(manifest), "crate pleat-sql must not depend on pleat-engine: that is no layer below it");
    }

    #[test]
    fn a_pure_crate_stays_pure_except_in_its_tests() {
        let manifest =
            "[package]\nname = \"pleat-plan\"\n[dependencies]\ntokio = \"1\"\n[dev-dependencies]\nproptest = \"1\"";
        assert_eq!(complaints(manifest), "crate pleat-plan must not depend on tokio: it is pure");
        let hidden = "[package]\nname = \"pleat-plan\"\n[target.'cfg(unix)'.dependencies]\nnix = \"1\"";
        assert!(complaints(hidden).contains("nix"));
    }

    #[test]
    fn a_crate_without_a_place_is_found() {
        assert!(complaints("[package]\nname = \"pleat-utils\"").contains("no place"));
    }
}
