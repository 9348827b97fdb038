//! The data directory: who it belongs to, and that only one process uses it.
//!
//! ```text
//! DIR/lock               held by `pleat up` while it runs
//! DIR/cluster.json       which cluster this is, and what was fixed when it was made
//! DIR/node-k/lock        held by node k while it runs
//! DIR/node-k/node.json   which node of which cluster this is, and which life of its directory
//! DIR/node-k/shards/     the servers of PostgreSQL shards, each in a directory of its own
//! DIR/node-k/spill/      where queries have what doesn't fit into memory, in files without names
//! ```
//!
//! The locks are the kernel's: they go with the process, kill -9 included, and leave nothing to tidy up. The
//! identity files are written once, before anything else, by writing a new file, syncing and renaming it: so
//! each is either whole or absent. A directory that holds files but no identity belongs to someone else, and
//! is refused rather than filled.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use pleat_cluster::Engine;
use serde::{Deserialize, Serialize};

use crate::options::PgListen;

/// What was fixed when the cluster was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdentity {
    pub cluster_id: String,
    /// How many nodes founded it.
    pub nodes: u32,
    /// Where node 1 listens; node k has the port k-1 further up.
    pub listen: std::net::SocketAddr,
    /// Where the coordinator's interface of node 1 listened at first; it may move.
    pub coordinator: std::net::SocketAddr,
    /// Where node 1 served PostgreSQL clients at first; it may move. Older clusters have none.
    #[serde(default)]
    pub pg_listen: Option<PgListen>,
    pub initial_shards: u32,
    pub partition_count: u32,
    /// What its shards are. Older clusters have none but SQLite.
    #[serde(default)]
    pub engine: Engine,
}

/// Which node of which cluster a node's directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    pub cluster_id: String,
    pub node: u64,
}

/// `node.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct NodeFile {
    cluster_id: String,
    node: u64,
    /// Made at random with the directory. A node whose directory was lost comes back with another one, and that is
    /// how the cluster learns that what the node had promised is forgotten.
    incarnation: u64,
}

/// A directory that this process, and no other, uses. Released when dropped.
#[derive(Debug)]
pub struct Claim {
    dir: PathBuf,
    _lock: File,
}

/// The directory is in use by another process.
#[derive(Debug)]
pub struct InUse {
    pub dir: PathBuf,
}

impl std::fmt::Display for InUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the data directory {} is in use by another Pleat process; stop that one, or choose another directory \
             with --data-dir",
            self.dir.display()
        )
    }
}

impl std::error::Error for InUse {}

impl Claim {
    /// Make the directory if there is none, and lock it. The error is [`InUse`] when another process has it.
    pub fn take(dir: &Path) -> anyhow::Result<Claim> {
        fs::create_dir_all(dir).with_context(|| format!("make the data directory {}", dir.display()))?;
        if !dir.join("cluster.json").exists() && !dir.join("node.json").exists() {
            refuse_strangers(dir, "Pleat")?;
        }
        let path = dir.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Claim { dir: dir.to_path_buf(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(InUse { dir: dir.to_path_buf() }.into()),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// The identity of the cluster that lives here; `None` when the directory is new.
    pub fn cluster(&self) -> anyhow::Result<Option<ClusterIdentity>> {
        self.identity("cluster.json", "a Pleat cluster")
    }

    /// Make this the directory of a new cluster.
    pub fn found_cluster(&self, identity: &ClusterIdentity) -> anyhow::Result<()> {
        write_whole(&self.dir.join("cluster.json"), identity)
    }

    /// Make sure that this directory is that node's: a new one becomes it, another's is refused. Gives the
    /// directory's incarnation.
    pub fn as_node(&self, wanted: &NodeIdentity) -> anyhow::Result<u64> {
        match self.identity::<NodeFile>("node.json", "a Pleat node")? {
            Some(found) if found.cluster_id == wanted.cluster_id && found.node == wanted.node => Ok(found.incarnation),
            Some(found) => bail!(
                "the directory {} belongs to node {} of cluster {}, not to node {} of cluster {}; give each node a \
                 directory of its own with --data-dir",
                self.dir.display(),
                found.node,
                found.cluster_id,
                wanted.node,
                wanted.cluster_id
            ),
            None => {
                // The first half of a random UUID; JSON readers keep only 53 bits of a number.
                let incarnation = (uuid::Uuid::new_v4().as_u64_pair().0 >> 11).max(1);
                let (cluster_id, node) = (wanted.cluster_id.clone(), wanted.node);
                write_whole(&self.dir.join("node.json"), &NodeFile { cluster_id, node, incarnation })?;
                Ok(incarnation)
            }
        }
    }

    fn identity<T: for<'de> Deserialize<'de>>(&self, file: &str, what: &str) -> anyhow::Result<Option<T>> {
        let path = self.dir.join(file);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
                format!(
                    "{} is damaged; restore it from a copy, or choose another directory with --data-dir",
                    path.display()
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                refuse_strangers(&self.dir, what)?;
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
}

/// Without an identity nothing may be here but what Pleat itself leaves before it writes one.
fn refuse_strangers(dir: &Path, whose: &str) -> anyhow::Result<()> {
    let ours = ["lock", "log", "log.1", "pid", "lost+found"];
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // An empty directory may be where the disk of a node is mounted.
        let is_empty = || fs::read_dir(entry.path()).is_ok_and(|mut entries| entries.next().is_none());
        if !ours.contains(&name.as_ref()) && !name.ends_with(".new") && !is_empty() {
            bail!(
                "the directory {} is not empty ('{name}') and not that of {whose}; choose an empty or new directory \
                 with --data-dir",
                dir.display()
            );
        }
    }
    Ok(())
}

/// Write a file so that it is there whole or not at all, also after power is lost.
pub fn write_whole(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        match path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            Some(dir) => File::open(dir)?.sync_all(),
            None => File::open(".")?.sync_all(),
        }
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> ClusterIdentity {
        ClusterIdentity {
            cluster_id: "c1".to_string(),
            nodes: 3,
            listen: "127.0.0.1:8080".parse().unwrap(),
            coordinator: "127.0.0.1:9090".parse().unwrap(),
            pg_listen: None,
            initial_shards: 1,
            partition_count: 256,
            engine: Engine::Sqlite,
        }
    }

    #[test]
    fn a_second_process_is_told_that_the_directory_is_in_use_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = Claim::take(dir.path()).unwrap();
        let error = Claim::take(dir.path()).unwrap_err();
        assert!(error.downcast_ref::<InUse>().is_some());
        assert!(error.to_string().contains("--data-dir"), "{error}");
        drop(first);
        Claim::take(dir.path()).unwrap();
    }

    #[test]
    fn a_cluster_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let claim = Claim::take(&dir.path().join("new/deep")).unwrap();
        assert_eq!(claim.cluster().unwrap(), None);
        claim.found_cluster(&identity()).unwrap();
        assert_eq!(claim.cluster().unwrap(), Some(identity()));
    }

    #[test]
    fn a_directory_with_other_files_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.txt"), "…").unwrap();
        let error = Claim::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains("thesis.txt") && error.contains("--data-dir"), "{error}");
        assert!(!dir.path().join("lock").exists());

        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("node-1")).unwrap();
        Claim::take(dir.path()).unwrap();
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_not_a_new_cluster() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cluster.json"), "{\"cluster_id\":").unwrap();
        let error = Claim::take(dir.path()).unwrap().cluster().unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
    }

    #[test]
    fn a_node_refuses_the_directory_of_another_cluster_or_node() {
        let dir = tempfile::tempdir().unwrap();
        let claim = Claim::take(dir.path()).unwrap();
        let mine = NodeIdentity { cluster_id: "c1".to_string(), node: 1 };
        let incarnation = claim.as_node(&mine).unwrap();
        assert_eq!(claim.as_node(&mine).unwrap(), incarnation, "made once");
        for other in [
            NodeIdentity { cluster_id: "c2".to_string(), node: 1 },
            NodeIdentity { cluster_id: "c1".to_string(), node: 2 },
        ] {
            let error = claim.as_node(&other).unwrap_err().to_string();
            assert!(error.contains("belongs to node 1 of cluster c1"), "{error}");
        }
    }
}
