//! Taking the shard away from a server, so that another one can have it.
//!
//! # The problem
//!
//! A primary that does not answer may be dead, or paused, or about to be started again by a supervisor that was itself paused
//! between any two of its steps. Before its standby is promoted it must be certain that it accepts nothing any more, ever: not what a router that was
//! paused along with it sends when both go on, nor what is sent to one that is started again.
//!
//! # The mechanism
//!
//! Its data gets another name, and then whatever still runs *in* that data is ended, by force if need be, also what is paused. A server is
//! started by the name `data`; one that was started before is in the folder, under whatever name, and is found by that. So there is no moment at which
//! one could slip through: either it went into the folder before the name was gone, and is found there, or it finds no folder. No lease and no
//! clock is needed for that, and no word of the old primary's node.
//!
//! It has a price: whoever fences must reach the old primary's directory and processes. Servers under this provisioner listen on loopback, so all nodes that use them are
//! on one machine. Where that is not so, the fence fails, and nobody is promoted.
//!
//! The name has the number of the operation. What a fence has done is undone ([`unfence`]) only when that operation can't be committed any more; a later operation
//! gives the data its own name first, so that an `unfence` that comes late finds nothing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::leftover::{self, Patience};

/// How long the server may take to shut down in order, in which it sends its standby what that still lacks.
const PATIENCE: Patience = Patience { fast: Duration::from_secs(2), immediate: Duration::from_millis(500) };
/// How long the names are changed for. A control leader that was paused in here, and is none any more, does not take up what may be another
/// server's by then.
const RENAMED_WITHIN: Duration = Duration::from_secs(5);
/// Names change while they are looked at, but not often.
const TURNS_MAX: usize = 16;

/// Make certain that the server in `dir` accepts nothing any more, for operation `number`. Doing it again does nothing.
pub async fn fence(dir: &Path, number: u64) -> Result<(), String> {
    // Another machine's directory, or none: then nothing can be told of its server.
    if !dir.join("pleat.lock").is_file() {
        return Err(format!("there is no server's directory {} on this machine", dir.display()));
    }
    let (fenced, begun) = (name(dir, number), Instant::now());
    for _ in 0..TURNS_MAX {
        // What an unfence could still bring back goes first.
        let newest = others(dir, number)?.into_iter().max().map(|(_, path)| path);
        let mut taken = newest.filter(|_| !fenced.exists() && !dir.join("data").exists());
        if taken.is_none() && dir.join("data").exists() {
            taken = Some(dir.join("data"));
        }
        let Some(taken) = taken else { break };
        if fenced.exists() {
            return Err(format!(
                "there are both {} and {}; remove the one that is not the server's",
                taken.display(),
                fenced.display()
            ));
        }
        if begun.elapsed() > RENAMED_WITHIN {
            return Err(format!("{} was not renamed in time", taken.display()));
        }
        match fs::rename(&taken, &fenced) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("rename {}: {error}", taken.display())),
        }
    }
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| format!("write {} to the disk: {error}", dir.display()))?;
    leftover::end(&fenced, PATIENCE).await?;
    match dir.join("data").exists() {
        true => Err(format!("{} came back", dir.join("data").display())),
        false => Ok(()),
    }
}

/// Give the data its name back that was fenced for an operation which can't be committed any more. `false`: there is none.
pub fn unfence(dir: &Path, number: u64) -> Result<bool, String> {
    match fs::rename(name(dir, number), dir.join("data")) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("rename {}: {error}", name(dir, number).display())),
    }
}

/// Remove what was fenced, but for the newest if `keep_newest` says so: nobody needs it when a copy of the new primary is there.
pub fn forget_fenced(dir: &Path, keep_newest: bool) -> Result<(), String> {
    let mut all = others(dir, 0)?;
    all.sort();
    if keep_newest {
        all.pop();
    }
    for (_, path) in all {
        fs::remove_dir_all(&path).map_err(|error| format!("remove {}: {error}", path.display()))?;
    }
    Ok(())
}

fn name(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("data.fenced-{number}"))
}

/// What was fenced for other operations, with their numbers.
fn others(dir: &Path, number: u64) -> Result<Vec<(u64, PathBuf)>, String> {
    let entries = fs::read_dir(dir).map_err(|error| format!("list {}: {error}", dir.display()))?;
    let fenced = entries.flatten().filter_map(|entry| {
        let other = entry.file_name().to_str()?.strip_prefix("data.fenced-")?.parse().ok()?;
        Some((other, entry.path()))
    });
    Ok(fenced.filter(|(other, _)| *other != number).collect())
}
