//! What is left of a node's files when it dies.
//!
//! A node's files are real ones, in a directory of the simulation. Its process is not: when turmoil drops the node's
//! tasks, their destructors run, and a SQLite connection that is dropped closes its database properly, which no crash would
//! allow. So the order is: [`freeze`] (copy the files as they are), let the node die, [`Frozen::thaw`] (put the copies in
//! place of whatever its destructors have left).
//!
//! When only the process dies, the copy is whole: what was written is in the kernel's hands. When the power fails,
//! each file falls back to what it was at its last sync (`os`), except that the kernel may have written a beginning of what
//! has changed since: how much, chance decides. The database's index of its write-ahead log (`-shm`) is memory,
//! and gone in both cases.
//!
//! **Caveat.** Making, removing and renaming files is durable at once here; a real directory has to be synced.

use std::io;
use std::path::{Path, PathBuf};

use rand::Rng;

use crate::os;

/// How a node dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// As by kill -9.
    Process,
    /// The machine loses its power: what was not synced is lost, more or less.
    Power,
}

/// Files of a node that died.
pub struct Frozen {
    dir: PathBuf,
    files: Vec<Kept>,
}

struct Kept {
    path: PathBuf,
    content: Vec<u8>,
    /// What a power failure after this death leaves at least.
    synced: Vec<u8>,
}

/// The files of `dir` as they will be found after a death at this moment.
pub fn freeze(dir: &Path, death: Death, chance: &mut impl Rng) -> io::Result<Frozen> {
    let mut files = Vec::new();
    list(dir, &mut files)?;
    files.sort();
    let mut frozen = Vec::with_capacity(files.len());
    for path in files {
        if path.extension().is_some_and(|of| of.to_string_lossy().ends_with("-shm")) {
            continue;
        }
        let written = std::fs::read(&path)?;
        let synced = os::synced(&path).unwrap_or_default();
        frozen.push(match death {
            Death::Process => Kept { path, content: written, synced },
            Death::Power => {
                let left = partly(synced, &written, chance);
                Kept { path, content: left.clone(), synced: left }
            }
        });
    }
    Ok(Frozen { dir: dir.to_owned(), files: frozen })
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// A beginning of what was written, then what was synced.
fn partly(synced: Vec<u8>, written: &[u8], chance: &mut impl Rng) -> Vec<u8> {
    let same = synced.iter().zip(written).take_while(|(one, other)| one == other).count();
    if synced.len() == written.len() && same == synced.len() {
        return synced;
    }
    // All, nothing, or anything between.
    let upto = match chance.random_range(0..3) {
        0 => same,
        1 => written.len(),
        _ => chance.random_range(same..=written.len()),
    };
    let mut left = written[..upto].to_vec();
    left.extend(synced.iter().skip(upto));
    left
}

impl Frozen {
    /// Nothing is left.
    pub fn lost(dir: &Path) -> Self {
        Frozen { dir: dir.to_owned(), files: Vec::new() }
    }

    /// Put the files back.
    pub fn thaw(self) -> io::Result<()> {
        std::fs::remove_dir_all(&self.dir)?;
        std::fs::create_dir_all(&self.dir)?;
        self.write_to(&self.dir)
    }

    /// Copy the files to another directory.
    pub fn write_to(&self, dir: &Path) -> io::Result<()> {
        for Kept { path, content, synced } in &self.files {
            let path = dir.join(path.strip_prefix(&self.dir).unwrap_or(path));
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(&path, content)?;
            os::set_synced(&path, synced.clone())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_power_failure_leaves_at_least_what_was_synced_and_at_most_what_was_written() {
        let mut chance = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let left = partly(b"abc".to_vec(), b"abcdef", &mut chance);
            assert!(b"abcdef".starts_with(&left[..]) && left.len() >= 3);
            seen.insert(left.len());
        }
        assert_eq!(seen.len(), 4);
        assert_eq!(partly(b"abcd".to_vec(), b"abcd", &mut chance), b"abcd");
    }
}
