//! What outlives every node: the disks, the clients' knowledge, the trace, and the verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pleat_consensus::MemoryDisk;
use pleat_host::Host;
use pleat_oracle::{Account, Oracle, Wrong};

use crate::lone::Lone;
use crate::net;
use crate::node::Hosts;
use crate::schema::Change;
use crate::trace::Trace;

/// The accounts that clients write.
pub const ACCOUNTS: std::ops::RangeInclusive<Account> = 1..=12;
/// The rows of the reference table.
pub const COPIES: std::ops::RangeInclusive<Account> = 1..=3;
/// How long the disk takes to make the log durable.
const LOG_LATENCY: Duration = Duration::from_millis(2);

/// What clients are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Make the tables.
    Founding,
    /// Read and write.
    Working,
    /// Nothing more.
    Resting,
    /// Read everything once more.
    Auditing,
    Audited,
}

/// The world. Clones share it.
#[derive(Clone)]
pub struct World {
    pub seed: u64,
    pub trace: Trace,
    pub log: Arc<MemoryDisk>,
    pub lone: Arc<Mutex<Lone>>,
    dir: PathBuf,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    phase: Phase,
    oracle: Oracle,
    /// The same of the reference table's rows.
    copies: Oracle,
    /// Schema changes that were acknowledged.
    changes: Vec<Change>,
    hosts: Hosts,
    /// Whether the operator may start operations.
    operates: bool,
    /// Requests that clients wait for.
    asking: usize,
    /// How often each node lost its disk.
    lost: BTreeMap<u64, u64>,
    /// Nodes whose disk failed before they had started.
    failed: BTreeSet<u64>,
    wrong: Option<Wrong>,
}

impl World {
    pub fn new(seed: u64, trace: Trace, dir: PathBuf) -> Self {
        let shared = Shared {
            phase: Phase::Founding,
            oracle: Oracle::new(ACCOUNTS),
            copies: Oracle::new(COPIES),
            changes: Vec::new(),
            hosts: BTreeMap::new(),
            operates: true,
            asking: 0,
            lost: BTreeMap::new(),
            failed: BTreeSet::new(),
            wrong: None,
        };
        let (log, lone) = (MemoryDisk::new(LOG_LATENCY), Arc::default());
        World { seed, trace, log, lone, dir, shared: Arc::new(Mutex::new(shared)) }
    }

    /// A node's files.
    pub fn dir_of(&self, node: u64) -> PathBuf {
        self.dir.join(net::name(node))
    }

    pub fn phase(&self) -> Phase {
        self.shared.lock().phase
    }

    pub fn set_phase(&self, phase: Phase) {
        self.shared.lock().phase = phase;
    }

    /// A node runs.
    pub fn started(&self, node: u64, host: &Arc<Host>) {
        self.trace.note(format_args!("{node} started"));
        self.shared.lock().hosts.insert(node, host.clone());
    }

    /// A node's disk failed before it had started.
    pub fn fails_to_start(&self, node: u64) {
        self.shared.lock().failed.insert(node);
    }

    /// The nodes whose disk failed before they had started, once.
    pub fn take_failed(&self) -> BTreeSet<u64> {
        std::mem::take(&mut self.shared.lock().failed)
    }

    /// A node is about to die. Nothing outside of it may keep it alive.
    pub fn dies(&self, node: u64) {
        drop(self.shared.lock().hosts.remove(&node));
    }

    /// A node that is down has lost its disk.
    pub fn loses_disk(&self, node: u64) {
        *self.shared.lock().lost.entry(node).or_default() += 1;
    }

    /// Which life of its directory a node is in.
    pub fn incarnation(&self, node: u64) -> u64 {
        100 * (1 + self.shared.lock().lost.get(&node).copied().unwrap_or(0)) + node
    }

    /// The nodes that run.
    pub fn hosts(&self) -> Hosts {
        self.shared.lock().hosts.clone()
    }

    /// Ask or tell the oracle.
    pub fn oracle<T>(&self, work: impl FnOnce(&mut Oracle) -> T) -> T {
        work(&mut self.shared.lock().oracle)
    }

    /// Ask or tell the oracle of the reference table.
    pub fn copies<T>(&self, work: impl FnOnce(&mut Oracle) -> T) -> T {
        work(&mut self.shared.lock().copies)
    }

    /// A schema change was acknowledged.
    pub fn changed(&self, change: Change) {
        self.shared.lock().changes.push(change);
    }

    /// The schema changes that were acknowledged.
    pub fn changes(&self) -> Vec<Change> {
        self.shared.lock().changes.clone()
    }

    /// Whether the operator may start operations, from now on.
    pub fn operate(&self, operates: bool) {
        self.shared.lock().operates = operates;
    }

    /// Whether it may now.
    pub fn operates(&self) -> bool {
        let shared = self.shared.lock();
        shared.operates && shared.phase == Phase::Working
    }

    /// A client asks something; it has its answer when what is returned is dropped.
    pub fn asking(&self) -> Asking {
        self.shared.lock().asking += 1;
        Asking(self.clone())
    }

    pub fn is_anybody_asking(&self) -> bool {
        self.shared.lock().asking > 0
    }

    /// Something that must not be. The first one is the run's verdict.
    pub fn wrong(&self, what: Wrong) {
        let mut shared = self.shared.lock();
        if shared.wrong.is_none() {
            self.trace.note(format_args!("WRONG: {what}"));
            shared.wrong = Some(what);
        }
    }

    pub fn verdict(&self) -> Option<Wrong> {
        self.shared.lock().wrong.clone()
    }
}

/// A request that a client waits for.
pub struct Asking(World);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.shared.lock().asking -= 1;
    }
}
