//! How far an import has come, in a small file, so that it can be continued.
//!
//! The file is written before the first batch is sent and removed when the import is through. Batches are
//! numbered, and their ids derive from the import's own; the cluster remembers the ids of batches that it has
//! taken. So the file may lag behind: a batch that is sent again inserts nothing twice.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::directory::write_whole;

/// What must be the same for an import to be continued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Same {
    pub cluster_id: String,
    pub table: String,
    /// The file's length in bytes.
    pub file_bytes: u64,
    /// When the file was last changed, in nanoseconds since 1970.
    pub file_changed: u64,
    /// The options that decide how the file is cut into rows and batches.
    pub options: String,
}

/// The contents of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    #[serde(flatten)]
    pub same: Same,
    /// Batch ids begin with this.
    pub import_id: String,
    /// All batches before this one are done.
    pub batches: u64,
    pub inserted: u64,
    pub rejected: u64,
    /// How long the file of rejected rows was then.
    pub rejects_bytes: u64,
}

/// The file and what it says.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    pub progress: Progress,
}

impl State {
    /// Continue the import that the file at `path` tells of, or begin a new one.
    pub fn open(path: &Path, same: Same, restart: bool) -> anyhow::Result<(State, bool)> {
        if !restart && let Some(progress) = read(path)? {
            if progress.same != same {
                bail!(
                    "{} tells of an interrupted import that differs ({}); run that one again to finish it, or add \
                     --restart to begin anew",
                    path.display(),
                    difference(&progress.same, &same)
                );
            }
            return Ok((State { path: path.to_path_buf(), progress }, true));
        }
        let import_id = uuid::Uuid::now_v7().to_string();
        let progress = Progress { same, import_id, batches: 0, inserted: 0, rejected: 0, rejects_bytes: 0 };
        write_whole(path, &progress)?;
        Ok((State { path: path.to_path_buf(), progress }, false))
    }

    /// The id under which the cluster remembers a batch.
    pub fn id_of(import_id: &str, batch: u64) -> String {
        format!("{import_id}-{batch}")
    }

    pub fn save(&self) -> anyhow::Result<()> {
        write_whole(&self.path, &self.progress)
    }

    /// The import is through.
    pub fn finish(self) -> anyhow::Result<()> {
        std::fs::remove_file(&self.path).with_context(|| format!("remove {}", self.path.display()))
    }
}

fn read(path: &Path) -> anyhow::Result<Option<Progress>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is damaged; add --restart to begin anew", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn difference(before: &Same, now: &Same) -> String {
    if before.cluster_id != now.cluster_id {
        format!("it was into cluster {}", before.cluster_id)
    } else if before.table != now.table {
        format!("it was into table {}", before.table)
    } else if before.options != now.options {
        format!("its options were {}", before.options)
    } else {
        "the file has changed since".to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same() -> Same {
        Same {
            cluster_id: "c1".to_string(),
            table: "flights".to_string(),
            file_bytes: 10,
            file_changed: 7,
            options: "--batch 1000".to_string(),
        }
    }

    #[test]
    fn an_interrupted_import_goes_on_under_the_same_batch_ids() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        let (mut first, resumed) = State::open(&path, same(), false).unwrap();
        assert!(!resumed);
        first.progress.batches = 3;
        first.save().unwrap();
        let (second, resumed) = State::open(&path, same(), false).unwrap();
        assert!(resumed);
        assert_eq!((second.progress.batches, &second.progress.import_id), (3, &first.progress.import_id));
        second.finish().unwrap();
        let (third, resumed) = State::open(&path, same(), false).unwrap();
        assert!(!resumed);
        assert_ne!(third.progress.import_id, first.progress.import_id, "a new import is not taken for the old one");
    }

    #[test]
    fn an_import_that_differs_is_not_continued_by_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        State::open(&path, same(), false).unwrap();
        let refused = |same: Same| State::open(&path, same, false).unwrap_err().to_string();
        assert!(refused(Same { cluster_id: "c2".to_string(), ..same() }).contains("cluster c1"));
        assert!(refused(Same { table: "t".to_string(), ..same() }).contains("table flights"));
        assert!(refused(Same { options: "--batch 1".to_string(), ..same() }).contains("--batch 1000"));
        assert!(refused(Same { file_changed: 8, ..same() }).contains("--restart"));
        assert!(State::open(&path, Same { file_changed: 8, ..same() }, true).is_ok());
    }
}
