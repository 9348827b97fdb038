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
//! # Late comers
//!
//! The name has the reign in which it was fenced, and the number of the operation. What a fence has done is undone ([`unfence`]) only when that
//! operation can't be committed any more; a later operation of the same reign gives the data its own name first, so that an `unfence` that
//! comes late finds nothing. Data of an earlier reign is nobody's any more: it is not taken over, so it can't come back.
//!
//! A control leader may be paused in here, too, and go on when its operation has long ended and the directory has other data. So an operation
//! takes data away *once*: a file `fenced-N`, which stays, says so before anything is renamed. If somebody dies in between, the operation is in
//! vain, and another one follows.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::leftover::{self, Patience};

/// How long the server may take to shut down in order, in which it sends its standby what that still lacks.
const PATIENCE: Patience =
    Patience { fast: Duration::from_secs(2), immediate: Duration::from_millis(500), certain: true };
/// How long the names are changed for. A control leader that was paused in here, and is none any more, does not take up what may be another
/// server's by then.
const RENAMED_WITHIN: Duration = Duration::from_secs(5);
/// Names change while they are looked at, but not often.
const TURNS_MAX: usize = 16;

/// Make certain that the server in `dir` accepts nothing any more, for the operation `number` that ends a reign. Doing it again does nothing.
pub async fn fence(dir: &Path, reign: u64, number: u64) -> Result<(), String> {
    // Another machine's directory, or none: then nothing can be told of its server.
    if !dir.join("pleat.lock").is_file() {
        return Err(format!("there is no server's directory {} on this machine", dir.display()));
    }
    let begun = Instant::now();
    if begin(dir, number)? {
        take(dir, reign, number, begun)?;
    }
    to_the_disk(dir)?;
    // Before as well: else somebody could rename it between what ends its processes and the last look.
    is_gone(dir)?;
    leftover::end(&name(dir, reign, number), PATIENCE).await?;
    is_gone(dir)
}

fn is_gone(dir: &Path) -> Result<(), String> {
    let data = dir.join("data");
    match data.exists() {
        true => Err(format!(
            "there is {}, though its server was fenced for this operation before; it takes another one to fence it again",
            data.display()
        )),
        false => Ok(()),
    }
}

/// Give the data the operation's name.
fn take(dir: &Path, reign: u64, number: u64, begun: Instant) -> Result<(), String> {
    let (data, fenced) = (dir.join("data"), name(dir, reign, number));
    for _ in 0..TURNS_MAX {
        // What an unfence could still bring back goes first.
        let others = all(dir)?.into_iter().filter(|other| other.reign == reign && other.number != number);
        let newest = others.max().map(|other| other.path);
        let taken = match data.exists() {
            true => Some(data.clone()),
            false => newest.filter(|_| !fenced.exists()),
        };
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
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(format!("rename {}: {error}", taken.display())),
        }
    }
    Ok(())
}

/// Give the data its name back that was fenced for an operation which can't be committed any more. `false`: there is none.
pub fn unfence(dir: &Path, reign: u64, number: u64) -> Result<bool, String> {
    let fenced = name(dir, reign, number);
    match fs::rename(&fenced, dir.join("data")) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("rename {}: {error}", fenced.display())),
    }
}

/// Remove what was fenced, but for the newest if `keep_newest` says so: nobody needs it when a copy of the new primary is there. It may take long.
pub fn forget_fenced(dir: &Path, keep_newest: bool) -> Result<(), String> {
    let mut all = all(dir)?;
    all.sort();
    if keep_newest {
        all.pop();
    }
    for Fenced { path, .. } in all {
        fs::remove_dir_all(&path).map_err(|error| format!("remove {}: {error}", path.display()))?;
    }
    Ok(())
}

/// Data that was fenced. The newest is the greatest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Fenced {
    reign: u64,
    number: u64,
    path: PathBuf,
}

fn name(dir: &Path, reign: u64, number: u64) -> PathBuf {
    dir.join(format!("data.fenced-{reign}-{number}"))
}

fn all(dir: &Path) -> Result<Vec<Fenced>, String> {
    let entries = fs::read_dir(dir).map_err(|error| format!("list {}: {error}", dir.display()))?;
    let fenced = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        let (reign, number) = name.to_str()?.strip_prefix("data.fenced-")?.split_once('-')?;
        Some(Fenced { reign: reign.parse().ok()?, number: number.parse().ok()?, path: entry.path() })
    });
    Ok(fenced.collect())
}

/// Say that the operation takes the data away. False: it was said before.
fn begin(dir: &Path, number: u64) -> Result<bool, String> {
    let path = dir.join(format!("fenced-{number}"));
    match File::options().write(true).create_new(true).open(&path) {
        Ok(_) => to_the_disk(dir).map(|()| true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(format!("make {}: {error}", path.display())),
    }
}

fn to_the_disk(dir: &Path) -> Result<(), String> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| format!("write {} to the disk: {error}", dir.display()))
}
