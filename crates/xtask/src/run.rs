//! Starting other programs. Nothing goes through a shell.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The repository's root.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Where cargo builds, which runs in the root.
pub fn target() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from))
}

/// Run cargo in the root; an exit code other than 0 is an error.
pub fn cargo(args: &[&str]) -> anyhow::Result<()> {
    cargo_told(args, &[])
}

/// The same with environment variables.
pub fn cargo_told(args: &[&str], told: &[(&str, String)]) -> anyhow::Result<()> {
    program_told(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_string()), args, told)
}

/// What cargo writes to its standard output, in the root; an exit code other than 0 is an error.
pub fn cargo_says(args: &[&str]) -> anyhow::Result<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_string());
    let done = command(&cargo, args).stderr(Stdio::inherit()).output().with_context(|| format!("start {cargo}"))?;
    if !done.status.success() {
        bail!("`cargo {}` failed ({})", args.join(" "), done.status);
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Run a program in the root and show what it says.
pub fn program(name: &str, args: &[&str]) -> anyhow::Result<()> {
    carry_out(name, args, &mut command(name, args))
}

/// The same in another folder.
pub fn program_in(folder: &Path, name: &str, args: &[&str]) -> anyhow::Result<()> {
    carry_out(name, args, command(name, args).current_dir(folder))
}

fn program_told(name: &str, args: &[&str], told: &[(&str, String)]) -> anyhow::Result<()> {
    let told = told.iter().map(|(name, value)| (*name, value.as_str()));
    carry_out(name, args, command(name, args).envs(told))
}

fn carry_out(name: &str, args: &[&str], command: &mut Command) -> anyhow::Result<()> {
    eprintln!("$ {} {}", Path::new(name).file_name().unwrap_or_default().to_string_lossy(), args.join(" "));
    let status = command.status().with_context(|| format!("start {name}"))?;
    if !status.success() {
        bail!("`{name} {}` failed ({status})", args.join(" "));
    }
    Ok(())
}

/// Whether a program is there and answers.
pub fn answers(name: &str, args: &[&str]) -> bool {
    command(name, args).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn command(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(args).current_dir(root());
    command
}
