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
use crate::codec;
use crate::room::Disk;
use crate::runtime;
use crate::types::{GroupId, LogId};

/// A pretended disk. It outlives the nodes that use it, one after the other.
///
/// A flush takes `latency` and has no effect before: a node that crashes meanwhile has lost it, as with a real fsync. What a node writes
/// meanwhile shares the next one.
#[derive(Debug, Default)]
pub struct MemoryDisk {
    latency: Duration,
    /// Nodes whose flushes take another time.
    slow: Mutex<BTreeMap<NodeId, Duration>>,
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

    /// From now on a node's flushes take so long; or as long as all others'.
    pub fn slow_down(&self, node: NodeId, latency: Option<Duration>) {
        match latency {
            Some(latency) => drop(self.slow.lock().insert(node, latency)),
            None => drop(self.slow.lock().remove(&node)),
        }
    }

    fn latency(&self, node: NodeId) -> Duration {
        self.slow.lock().get(&node).copied().unwrap_or(self.latency)
    }

    /// A node's disk is lost. Gives the last index of each group that was on it.
    pub fn lose(&self, node: NodeId) -> BTreeMap<GroupId, u64> {
        let groups: Vec<GroupId> = self.groups.lock().keys().filter(|(of, _)| *of == node).map(|(_, id)| *id).collect();
        let last = groups.iter().map(|group| (*group, self.last_index(node, *group).unwrap_or(0))).collect();
        self.groups.lock().retain(|(of, _), _| *of != node);
        last
    }

    /// The index of the last entry that a node has durably, in its log or purged.
    pub fn last_index(&self, node: NodeId, group: GroupId) -> Option<u64> {
        let groups = self.groups.lock();
        let log = groups.get(&(node, group))?;
        let purged = log.purged.as_ref().and_then(|bytes| codec::decode::<LogId>("a purge position", bytes).ok());
        log.entries.keys().next_back().copied().max(purged.map(|purged| purged.index))
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
            Change::Nothing => {}
        }
    }
}

/// One node's part of a [`MemoryDisk`].
pub(crate) struct MemoryLog(Arc<Writer>);

struct Writer {
    disk: Arc<MemoryDisk>,
    node: NodeId,
    /// Is told when a write fails.
    of_node: Arc<Disk>,
    queue: Mutex<Queue>,
    writes: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Write>,
    flushing: bool,
    /// A write failed, and so does every later one.
    broken: bool,
}

impl MemoryLog {
    pub(crate) fn new(disk: Arc<MemoryDisk>, node: NodeId, of_node: Arc<Disk>) -> Self {
        MemoryLog(Arc::new(Writer { disk, node, of_node, queue: Mutex::default(), writes: AtomicU64::default() }))
    }
}

impl Writer {
    /// Flushes until nothing waits any more.
    async fn flush(self: Arc<Self>) {
        loop {
            let writes = {
                let mut queue = self.queue.lock();
                queue.flushing = !queue.waiting.is_empty();
                std::mem::take(&mut queue.waiting)
            };
            if writes.is_empty() {
                return;
            }
            tokio::time::sleep(self.disk.latency(self.node)).await;
            self.disk.flushes.fetch_add(1, Ordering::Relaxed);
            writes.into_iter().for_each(|write| self.carry_out(write));
        }
    }

    fn carry_out(&self, write: Write) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        if matches!(write.change, Change::Nothing) {
            return (write.done)(Ok(()));
        }
        if self.disk.failing.lock().contains(&self.node) {
            self.queue.lock().broken = true;
        }
        if self.queue.lock().broken {
            let error = io::Error::from_raw_os_error(5);
            if !planted::is(Bug::FailedFsyncIgnored) {
                self.of_node.fail(format!("the log can't be written: {error}"));
            }
            return (write.done)(Err(error));
        }
        self.disk.change(self.node, write.group, write.change);
        (write.done)(Ok(()));
    }
}

impl Backend for MemoryLog {
    fn submit(&self, write: Write) {
        let mut queue = self.0.queue.lock();
        queue.waiting.push(write);
        if !std::mem::replace(&mut queue.flushing, true) {
            runtime::spawn(self.0.clone().flush());
        }
    }

    fn load(&self, group: GroupId) -> io::Result<Stored> {
        let groups = self.0.disk.groups.lock();
        let Some(log) = groups.get(&(self.0.node, group)) else { return Ok(Stored::default()) };
        Ok(Stored {
            vote: log.vote.clone(),
            purged: log.purged.clone(),
            first: log.entries.keys().next().copied(),
            last: log.entries.iter().next_back().map(|(index, bytes)| (*index, bytes.clone())),
        })
    }

    fn read(&self, group: GroupId, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Vec<u8>>> {
        let groups = self.0.disk.groups.lock();
        let entries = groups.get(&(self.0.node, group)).into_iter().flat_map(|log| log.entries.range(start..end));
        let mut bytes = 0;
        let fits = |entry: &&Vec<u8>| {
            let first = bytes == 0;
            bytes += entry.len();
            first || bytes <= bytes_max
        };
        Ok(entries.map(|(_, entry)| entry).take_while(fits).cloned().collect())
    }

    fn flushes(&self) -> (u64, u64) {
        (self.0.disk.flushes.load(Ordering::Relaxed), self.0.writes.load(Ordering::Relaxed))
    }
}
