//! The log in memory, for simulations: no threads, no files, and a clock that is the simulation's.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pleat_cluster::NodeId;
use pleat_cluster::planted::{self, Bug};

use super::{Backend, Change, Stored, Write};
use crate::room::Disk;
use crate::runtime;
use crate::types::GroupId;

/// A pretended disk. It outlives the nodes that use it, one after the other.
///
/// A write takes `latency` and has no effect before: a node that crashes meanwhile has lost it, as with a real fsync.
#[derive(Debug, Default)]
pub struct MemoryDisk {
    latency: Duration,
    groups: Mutex<BTreeMap<(NodeId, GroupId), Groups>>,
    /// Nodes whose writes fail.
    failing: Mutex<BTreeSet<NodeId>>,
    flushes: AtomicU64,
}

#[derive(Debug, Default)]
struct Groups {
    vote: Option<Vec<u8>>,
    purged: Option<Vec<u8>>,
    entries: BTreeMap<u64, Vec<u8>>,
}

impl MemoryDisk {
    /// A disk whose writes take `latency` of the simulation's time.
    pub fn new(latency: Duration) -> Arc<Self> {
        Arc::new(MemoryDisk { latency, ..Default::default() })
    }

    /// From now on what a node makes durable fails, and what was written is gone; or no longer.
    pub fn fail(&self, node: NodeId, fails: bool) {
        let mut failing = self.failing.lock();
        if fails {
            failing.insert(node)
        } else {
            failing.remove(&node)
        };
    }

    fn change(&self, node: NodeId, group: GroupId, change: Change) {
        let mut groups = self.groups.lock();
        let log = groups.entry((node, group)).or_default();
        match change {
            Change::Append(entries) => log.entries.extend(entries),
            Change::Vote(vote) => log.vote = Some(vote),
            Change::Truncate(range) => log.entries.retain(|index, _| !range.contains(index)),
            Change::Purge(range, purged) => {
                log.entries.retain(|index, _| !range.contains(index));
                log.purged = Some(purged);
            }
            Change::Destroy => drop(groups.remove(&(node, group))),
        }
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }
}

/// One node's part of a [`MemoryDisk`].
pub(crate) struct MemoryLog {
    pub(crate) disk: Arc<MemoryDisk>,
    pub(crate) node: NodeId,
    /// Is told when a write fails.
    pub(crate) of_node: Arc<Disk>,
}

impl MemoryLog {
    fn carry_out(disk: &MemoryDisk, node: NodeId, of_node: &Disk, write: Write) {
        if disk.failing.lock().contains(&node) {
            let error = io::Error::from_raw_os_error(5);
            if !planted::is(Bug::FailedFsyncIgnored) {
                of_node.fail(format!("the log can't be written: {error}"));
            }
            return (write.done)(Err(error));
        }
        disk.change(node, write.group, write.change);
        (write.done)(Ok(()));
    }
}

impl Backend for MemoryLog {
    fn submit(&self, write: Write) {
        let (disk, node, of_node) = (self.disk.clone(), self.node, self.of_node.clone());
        if disk.latency.is_zero() {
            return Self::carry_out(&disk, node, &of_node, write);
        }
        // A group has one write out at a time, so equal delays keep the order.
        runtime::spawn(async move {
            tokio::time::sleep(disk.latency).await;
            Self::carry_out(&disk, node, &of_node, write);
        });
    }

    fn load(&self, group: GroupId) -> io::Result<Stored> {
        let groups = self.disk.groups.lock();
        let Some(log) = groups.get(&(self.node, group)) else { return Ok(Stored::default()) };
        Ok(Stored {
            vote: log.vote.clone(),
            purged: log.purged.clone(),
            first: log.entries.keys().next().copied(),
            last: log.entries.iter().next_back().map(|(index, bytes)| (*index, bytes.clone())),
        })
    }

    fn read(&self, group: GroupId, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Vec<u8>>> {
        let groups = self.disk.groups.lock();
        let entries = groups.get(&(self.node, group)).into_iter().flat_map(|log| log.entries.range(start..end));
        let mut bytes = 0;
        let fits = |entry: &&Vec<u8>| {
            let first = bytes == 0;
            bytes += entry.len();
            first || bytes <= bytes_max
        };
        Ok(entries.map(|(_, entry)| entry).take_while(fits).cloned().collect())
    }

    fn flushes(&self) -> (u64, u64) {
        let flushes = self.disk.flushes.load(Ordering::Relaxed);
        (flushes, flushes)
    }
}
