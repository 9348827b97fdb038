//! How much memory and disk the finishers of a node may take.
//!
//! A finisher keeps what it gathers in SQLite's page cache. What does not fit goes to a temporary file (`sqlite/spill`), so
//! a query over more than the memory is slower, and not refused. Four limits hold, a query's and the node's, of memory
//! and of disk:
//!
//! - *Memory* is granted before it is used: a finisher begins with little, and asks for more while it gathers. When the
//!   node has no more to give, or the query has had all that it may, its cache stays as it is, and SQLite writes pages
//!   out. So many finishers at once get slower, and take no more memory than one. What as many as there may be begin with is
//!   kept for that: large ones don't shut out small ones. One that can't begin all the same is refused.
//! - *Disk* is charged as the files grow. Nothing can be done without it, so at a limit the query ends with an error that
//!   says which limit it was. So it does when the file system has less to spare than is looked for before each
//!   [`SPARE_STEP`]: the log is on the same one, and has to have room first.
//!
//! A grant is for two things of the same size at most: the cached pages, and one sort of the finishing statement. Not in
//! it: what SQLite takes for each further sort or temporary index of one statement, values under way (32 MiB each at most),
//! and the chunks of rows on their way in and out.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::limits::FINISHER_BYTES_MIN;

/// What finishers may take, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomLimits {
    /// Memory of one query; beyond it spills.
    pub query_memory: u64,
    /// Memory of all queries of a node; beyond they spill earlier.
    pub node_memory: u64,
    /// Temporary files of one query.
    pub query_disk: u64,
    /// Temporary files of all queries of a node.
    pub node_disk: u64,
}

impl Default for RoomLimits {
    fn default() -> Self {
        Self { query_memory: 64 << 20, node_memory: 512 << 20, query_disk: 2 << 30, node_disk: 8 << 30 }
    }
}

/// Why a finisher has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoRoom {
    /// The query's temporary files have reached their limit.
    QueryDisk { limit: u64 },
    /// The node's queries have all the memory that is for them.
    NodeMemory { limit: u64 },
    /// The temporary files of the node's queries have reached their limit.
    NodeDisk { limit: u64 },
    /// The file system is full.
    DiskFull,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoRoom::QueryDisk { limit } => {
                write!(f, "the rows that the query gathers fill its memory and {limit} bytes of temporary files")
            }
            NoRoom::NodeMemory { limit } => {
                write!(f, "the queries that gather rows on this node have all of the {limit} bytes of memory for them")
            }
            NoRoom::NodeDisk { limit } => {
                write!(f, "the queries that gather rows on this node fill {limit} bytes of temporary files")
            }
            NoRoom::DiskFull => f.write_str("the disk has no room for temporary files"),
        }
    }
}

impl NoRoom {
    /// What the caller should do.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            NoRoom::QueryDisk { .. } => {
                "filter by the shard key or by the tables' own columns, so that fewer rows are gathered, or raise the limit"
            }
            NoRoom::NodeMemory { .. } | NoRoom::NodeDisk { .. } => {
                "try again when others have ended, or ask another node"
            }
            NoRoom::DiskFull => "make room in the node's data directory, or ask another node",
        }
    }

    /// The setting whose limit it is.
    pub(crate) fn limit(&self) -> Option<&'static str> {
        match self {
            NoRoom::QueryDisk { .. } => Some("limits.spill_bytes"),
            NoRoom::NodeMemory { .. } => Some("limits.node_gather_bytes"),
            NoRoom::NodeDisk { .. } => Some("limits.node_spill_bytes"),
            NoRoom::DiskFull => None,
        }
    }

    /// Whether the same query may find room later, or on another node.
    pub(crate) fn is_passing(&self) -> bool {
        !matches!(self, NoRoom::QueryDisk { .. })
    }
}

/// Bytes of temporary files between two looks at the file system.
pub(crate) const SPARE_STEP: u64 = 1 << 20;

/// Tells how many bytes temporary files may still take, as the file system is now.
pub type Spare = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The room that the finishers of one node share.
pub struct Room {
    /// Where temporary files are made.
    pub(crate) dir: PathBuf,
    pub(crate) limits: RoomLimits,
    spare: Spare,
    /// Memory to begin with, and all other.
    beginnings: Budget,
    growth: Budget,
    pub(crate) disk: Budget,
    pub(crate) spilled: AtomicU64,
    pub(crate) spilled_bytes: AtomicU64,
}

/// What is in use, and what was spilled since the node started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomTaken {
    pub memory: u64,
    pub disk: u64,
    /// Finishers that wrote to temporary files.
    pub spilled: u64,
    /// Bytes that they wrote there.
    pub spilled_bytes: u64,
}

impl Room {
    /// For as many as `finishers` at a time. Temporary files are made in `dir`, which is made when it is first needed. They
    /// have no names, so that none can be left behind, however the process ends. They take only what is to `spare` there.
    pub fn new(dir: PathBuf, limits: RoomLimits, finishers: usize, spare: Spare) -> Arc<Self> {
        let kept = FINISHER_BYTES_MIN.saturating_mul(finishers as u64).min(limits.node_memory);
        let (beginnings, growth) = (Budget::new(kept), Budget::new(limits.node_memory - kept));
        let (spilled, spilled_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let disk = Budget::new(limits.node_disk);
        Arc::new(Self { dir, limits, spare, beginnings, growth, disk, spilled, spilled_bytes })
    }

    pub fn taken(&self) -> RoomTaken {
        RoomTaken {
            memory: self.beginnings.used() + self.growth.used(),
            disk: self.disk.used(),
            spilled: self.spilled.load(Ordering::Relaxed),
            spilled_bytes: self.spilled_bytes.load(Ordering::Relaxed),
        }
    }

    /// Whether the file system has the next [`SPARE_STEP`] to spare.
    pub(crate) fn has_spare(&self) -> bool {
        (self.spare)() >= SPARE_STEP
    }

    /// Memory to begin with.
    pub(crate) fn grant(self: &Arc<Self>) -> Result<Grant, NoRoom> {
        match self.beginnings.take(FINISHER_BYTES_MIN) {
            true => Ok(Grant { room: self.clone(), bytes: FINISHER_BYTES_MIN }),
            false => Err(NoRoom::NodeMemory { limit: self.limits.node_memory }),
        }
    }
}

/// Memory of one finisher. Given back when dropped.
pub(crate) struct Grant {
    room: Arc<Room>,
    bytes: u64,
}

impl Grant {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Doubles it up to `wanted` bytes or more, as far as there is memory. Whether it is more than before.
    pub(crate) fn grow(&mut self, wanted: u64) -> bool {
        let before = self.bytes;
        while self.bytes < wanted {
            let more = self.bytes.min(self.room.limits.query_memory.saturating_sub(self.bytes));
            if more == 0 || !self.room.growth.take(more) {
                break;
            }
            self.bytes += more;
        }
        self.bytes > before
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.room.growth.give_back(self.bytes - FINISHER_BYTES_MIN);
        self.room.beginnings.give_back(FINISHER_BYTES_MIN);
    }
}

/// Bytes that several share.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    fn new(limit: u64) -> Self {
        Self { limit, used: AtomicU64::new(0) }
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// All of `bytes`, or nothing.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "more was given back than taken");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_granted_until_the_query_or_the_node_has_had_all_of_it() {
        let limits = RoomLimits {
            query_memory: 5 * FINISHER_BYTES_MIN,
            node_memory: 8 * FINISHER_BYTES_MIN,
            ..RoomLimits::default()
        };
        let room = Room::new(PathBuf::new(), limits, 3, Arc::new(|| u64::MAX));
        let mut first = room.grant().unwrap();
        assert!(first.grow(u64::MAX));
        assert_eq!(first.bytes(), limits.query_memory, "doubled twice, and then what was left of the query's");
        let mut second = room.grant().unwrap();
        assert!(second.grow(u64::MAX) && !second.grow(u64::MAX));
        assert_eq!(second.bytes(), 2 * FINISHER_BYTES_MIN, "a second doubling is more than the node has");
        let third = room.grant().unwrap();
        assert_eq!(room.grant().err(), Some(NoRoom::NodeMemory { limit: limits.node_memory }));
        drop((first, second, third));
        assert_eq!(room.taken().memory, 0);
    }
}
