//! The rules of the house that a program can check. It is also a test, so nobody has to remember it.
//!
//! * [`layers`]: which crate may depend on which, and on what from outside if it is pure.
//! * [`source`]: what must not stand in a file.

mod layers;
mod source;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::run;

/// A rule that is broken, as a person reads it.
pub type Complaint = String;

/// Check everything; every complaint is printed.
pub fn run() -> anyhow::Result<()> {
    let complaints = check()?;
    for complaint in &complaints {
        eprintln!("tidy: {complaint}");
    }
    match complaints.len() {
        0 => Ok(()),
        1 => bail!("1 rule of the house is broken"),
        count => bail!("{count} rules of the house are broken"),
    }
}

fn check() -> anyhow::Result<Vec<Complaint>> {
    let root = run::root();
    let mut complaints = Vec::new();
    for crate_dir in folders(&root.join("crates"))? {
        let manifest = crate_dir.join("Cargo.toml");
        let text = fs::read_to_string(&manifest).with_context(|| format!("read {}", manifest.display()))?;
        complaints.extend(layers::check(&text)?);
    }
    for path in files()? {
        // One that is not text has no rules, and one that was just deleted neither.
        let Ok(text) = fs::read_to_string(root.join(&path)) else { continue };
        complaints.extend(source::check(&path, &text));
    }
    let changelog = fs::read_to_string(root.join("CHANGELOG.md")).context("read CHANGELOG.md")?;
    if !changelog.contains("Unreleased") {
        complaints.push("CHANGELOG.md has no section \"Unreleased\"".to_string());
    }
    Ok(complaints)
}

fn folders(dir: &std::path::Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.join("Cargo.toml").is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Every file of the house, as paths from the root. Without git, which a machine that builds an archive of the sources
/// need not have: folders that `.gitignore` names are left out, which is all that it may hold.
fn files() -> anyhow::Result<Vec<String>> {
    let root = run::root();
    let ignored = fs::read_to_string(root.join(".gitignore")).context("read .gitignore")?;
    let names = ignored.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut skipped = vec![".git"];
    for name in names {
        let folder = name.strip_suffix('/').filter(|name| !name.contains(['*', '/', '!']));
        skipped.push(folder.with_context(|| format!(".gitignore may name folders (\"name/\"), not \"{name}\""))?);
    }
    let mut found = Vec::new();
    list(&root, "", &skipped, &mut found)?;
    Ok(found)
}

fn list(dir: &std::path::Path, prefix: &str, skipped: &[&str], found: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        if skipped.contains(&name.as_str()) {
            continue; // In a second work tree `.git` is a file.
        }
        if !entry.file_type()?.is_dir() {
            found.push(path);
        } else {
            list(&entry.path(), &format!("{path}/"), skipped, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_house_is_tidy() {
        let complaints = super::check().unwrap();
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    }
}
