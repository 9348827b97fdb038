//! The log on disk: one fjall database per node, one writer thread.
//!
//! Keys sort by group and index, so that a group's entries are a range. Votes and purge positions are in a keyspace
//! of their own. A batch may hold several writes to one key (a truncation and the entries that replace it):
//! fjall gives all of a batch one sequence number, so the last write of each key is picked before the commit.
//!
//! After a failed write or fsync nobody knows what is on the disk (the kernel may drop dirty pages after reporting once),
//! so fjall refuses everything from then on, every group stops, and the process ends ([`Disk`]).
//!
//! **A full disk** must therefore not be met ([`room`]). Before each commit the writer sees to it that the journal has room for it
//! ([`ahead`](super::ahead)), and, where the commit may have fjall write out what it gathered in memory, that there is room for that too. Without,
//! it gives up the reserve, and if that is not enough it waits, and everybody who waits for it with it.
//!
//! What a process that was killed wrote may be in the page cache only; but whoever reads it takes it for durable and says so to
//! the group's leader. So the files are made durable before they are read.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::Mutex;
use pleat_cluster::NodeId;

use super::ahead::Ahead;
use super::{Backend, Change, Stored, Write};
use crate::codec;
use crate::config::Config;
use crate::room::{self, Disk};
use crate::types::GroupId;

/// Writes that share one fsync.
const FLUSH_WRITES_MAX: usize = 4096;
/// fjall's journals, in bytes; its smallest.
const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// What each keyspace gathers in memory before it is written out, in bytes.
const MEMTABLE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// fjall's block cache, in bytes. Small: recent entries have a cache of their own.
const BLOCK_CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// What must be free for writing that out and merging it with what was written before, in bytes.
const TABLES_BYTES: u64 = 2 * MEMTABLE_BYTES_MAX;
/// What a batch and each of its items take of a journal beside their keys and values, at most, in bytes.
const ITEM_BYTES: u64 = 64;
/// How often a writer that waits for room looks, and how often it says so.
const FULL_PAUSE: Duration = Duration::from_millis(20);
const FULL_SAID_EVERY: u32 = 500;

const VOTE: u8 = 0;
const PURGED: u8 = 1;
const IDENTITY: &[u8] = b"identity";

/// The log of a node in a directory.
pub(crate) struct DiskLog {
    keyspaces: Keyspaces,
    /// `None` once closed. Unbounded, and bounded by its senders: each group has only a few writes of entries out, and one of anything else.
    queue: Mutex<Option<Sender<Write>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    counts: Arc<Counts>,
    /// Nothing waits for room any more.
    closing: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Keyspaces {
    database: Database,
    entries: Keyspace,
    meta: Keyspace,
}

#[derive(Default)]
struct Counts {
    flushes: AtomicU64,
    writes: AtomicU64,
}

impl DiskLog {
    /// Opens or makes the log of a node. Refuses the directory of another node or cluster, and one in use. Blocks.
    pub(crate) fn open(config: &Config) -> anyhow::Result<Self> {
        let dir = &config.dir.join("log");
        std::fs::create_dir_all(dir).with_context(|| format!("make the directory {}", dir.display()))?;
        room::settle(dir).with_context(|| format!("make what is in {} durable", dir.display()))?;
        let builder = Database::builder(dir)
            .manual_journal_persist(true)
            .worker_threads(1)
            .cache_size(BLOCK_CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES_MAX);
        let database = match builder.open() {
            Err(fjall::Error::Locked) => bail!(
                "the data directory {} is in use by another process: stop it, or choose another directory",
                dir.display()
            ),
            other => other.with_context(|| format!("open the log in {}", dir.display()))?,
        };
        let options =
            || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES_MAX).manual_journal_persist(true);
        let entries = database.keyspace("entries", options)?;
        let meta = database.keyspace("meta", options)?;
        let keyspaces = Keyspaces { database, entries, meta };
        keyspaces.check_identity(dir, &config.cluster_id, config.node)?;
        let (sender, receiver) = channel();
        let counts = Arc::new(Counts::default());
        let closing = Arc::<AtomicBool>::default();
        let mut ahead = Ahead::new(dir, config.disk.log_share());
        // What there is not is waited for when it is needed.
        drop(ahead.make(0, config.disk.has_room()));
        let writer = Writer {
            keyspaces: keyspaces.clone(),
            flush_bytes_max: config.flush_bytes_max,
            counts: counts.clone(),
            disk: config.disk.clone(),
            ahead,
            closing: closing.clone(),
        };
        let thread = std::thread::Builder::new().name("log-writer".into()).spawn(move || writer.run(receiver))?;
        Ok(DiskLog { keyspaces, queue: Mutex::new(Some(sender)), writer: Mutex::new(Some(thread)), counts, closing })
    }

    /// From now on nothing waits for room any more.
    pub(crate) fn hurry(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Ends the writer after what is queued. Blocks.
    pub(crate) fn close(&self) {
        drop(self.queue.lock().take());
        self.hurry();
        if let Some(thread) = self.writer.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the log's writer had panicked");
        }
    }
}

impl Keyspaces {
    fn check_identity(&self, dir: &Path, cluster_id: &str, node: NodeId) -> anyhow::Result<()> {
        let dir = dir.display();
        let Some(stored) = self.meta.get(IDENTITY)? else {
            self.meta.insert(IDENTITY, codec::encode(&(cluster_id, node)))?;
            return Ok(self.database.persist(PersistMode::SyncAll)?);
        };
        let (cluster, owner): (String, NodeId) = codec::decode("the identity in the data directory", &stored)?;
        ensure!(
            cluster == cluster_id,
            "the data directory {dir} belongs to cluster '{cluster}', not to '{cluster_id}': choose another directory"
        );
        ensure!(owner == node, "the data directory {dir} belongs to {owner}, this is {node}: choose another directory");
        Ok(())
    }
}

impl Backend for DiskLog {
    fn submit(&self, write: Write) {
        let refused = match &*self.queue.lock() {
            Some(queue) => queue.send(write).err().map(|refused| refused.0),
            None => Some(write),
        };
        if let Some(write) = refused {
            (write.done)(Err(io::Error::other("the log has been closed")));
        }
    }

    fn load(&self, group: GroupId) -> io::Result<Stored> {
        let Keyspaces { entries, meta, .. } = &self.keyspaces;
        let get = |tag| meta.get(meta_key(group, tag)).map(|value| value.map(|value| value.to_vec()));
        let mut range = entries.prefix(group.to_be_bytes());
        let first = range.next().map(|guard| guard.key()).transpose().map_err(io::Error::other)?;
        let last = match entries.prefix(group.to_be_bytes()).next_back() {
            None => None,
            Some(guard) => {
                let (key, value) = guard.into_inner().map_err(io::Error::other)?;
                Some((index_of(&key)?, value.to_vec()))
            }
        };
        Ok(Stored {
            vote: get(VOTE).map_err(io::Error::other)?,
            purged: get(PURGED).map_err(io::Error::other)?,
            first: first.map(|key| index_of(&key)).transpose()?,
            last,
        })
    }

    fn read(&self, group: GroupId, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for guard in self.keyspaces.entries.range(entry_key(group, start)..entry_key(group, end)) {
            let (key, value) = guard.into_inner().map_err(io::Error::other)?;
            let expected = start + found.len() as u64;
            if index_of(&key)? != expected {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("entry {expected} of group {group} is missing in the log: its files are damaged"),
                ));
            }
            bytes += value.len();
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            found.push(value.to_vec());
        }
        Ok(found)
    }

    fn flushes(&self) -> (u64, u64) {
        (self.counts.flushes.load(Ordering::Relaxed), self.counts.writes.load(Ordering::Relaxed))
    }
}

fn entry_key(group: GroupId, index: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&group.to_be_bytes());
    key[8..].copy_from_slice(&index.to_be_bytes());
    key
}

fn meta_key(group: GroupId, tag: u8) -> [u8; 9] {
    let mut key = [tag; 9];
    key[..8].copy_from_slice(&group.to_be_bytes());
    key
}

fn index_of(key: &[u8]) -> io::Result<u64> {
    let index = key.get(8..).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    index.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a key of the log has a wrong length"))
}

struct Writer {
    keyspaces: Keyspaces,
    flush_bytes_max: usize,
    counts: Arc<Counts>,
    disk: Arc<Disk>,
    ahead: Ahead,
    closing: Arc<AtomicBool>,
}

/// The last write of each key in a batch. `None` removes.
#[derive(Default)]
struct Batch {
    entries: BTreeMap<[u8; 16], Option<Vec<u8>>>,
    meta: BTreeMap<[u8; 9], Option<Vec<u8>>>,
    /// Whether somebody waits for more than the order. Purging alone needs no fsync: what comes back is purged again.
    sync: bool,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.meta.is_empty()
    }

    /// What it takes of a journal at most: what compresses badly grows a little.
    fn bytes_max(&self) -> u64 {
        let values = self.entries.values().chain(self.meta.values());
        values.fold(ITEM_BYTES, |sum, value| {
            let length = value.as_ref().map_or(0, Vec::len) as u64;
            sum + ITEM_BYTES + length + length / 8
        })
    }
}

impl Writer {
    fn run(mut self, queue: Receiver<Write>) {
        while let Ok(first) = queue.recv() {
            let mut bytes = size_of(&first);
            let mut writes = vec![first];
            while writes.len() < FLUSH_WRITES_MAX && bytes < self.flush_bytes_max {
                let Ok(next) = queue.try_recv() else { break };
                bytes += size_of(&next);
                writes.push(next);
            }
            self.flush(writes);
        }
    }

    fn flush(&mut self, writes: Vec<Write>) {
        let mut batch = Batch::default();
        let mut waiting = Vec::with_capacity(writes.len());
        let mut gathered = Ok(());
        for write in writes {
            gathered = gathered.and_then(|()| self.gather(&mut batch, write.group, write.change));
            waiting.push(write.done);
        }
        // A group may be opened without room.
        let room = if batch.is_empty() { Ok(()) } else { self.wait_for_room(batch.bytes_max()) };
        let result = room.and_then(|()| {
            let written = gathered.and_then(|()| self.commit(batch)).map_err(|error| error.to_string());
            written.inspect_err(|error| self.disk.fail(format!("the log can't be written: {error}")))
        });
        self.counts.writes.fetch_add(waiting.len() as u64, Ordering::Relaxed);
        for done in waiting {
            done(result.clone().map_err(io::Error::other));
        }
    }

    /// Fails when the log is closed meanwhile.
    fn wait_for_room(&mut self, bytes: u64) -> Result<(), String> {
        let mut pauses = 0_u32;
        while let Err(why) = self.make_room(bytes) {
            if self.closing.load(Ordering::Relaxed) {
                return Err(format!("the log was closed while it waited for room on the disk: {why}"));
            }
            if pauses.is_multiple_of(FULL_SAID_EVERY) {
                tracing::error!("the log waits for room on the disk: {why}");
            }
            pauses = pauses.wrapping_add(1);
            std::thread::sleep(FULL_PAUSE);
        }
        self.ahead.wrote(bytes);
        Ok(())
    }

    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        let room = self.disk.has_room();
        if !room && self.may_write_tables(bytes) && !self.disk.has_free(TABLES_BYTES) {
            self.disk.give_up_reserve();
            if !self.disk.has_free(TABLES_BYTES) {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "what is in memory could not be written out"));
            }
        }
        match self.ahead.make(bytes, room) {
            Err(_) if self.disk.give_up_reserve() => self.ahead.make(bytes, false),
            done => done,
        }
    }

    fn may_write_tables(&self, bytes: u64) -> bool {
        self.keyspaces.database.write_buffer_size() + bytes > MEMTABLE_BYTES_MAX
    }

    fn gather(&self, batch: &mut Batch, group: GroupId, change: Change) -> fjall::Result<()> {
        batch.sync |= !matches!(change, Change::Purge(..) | Change::Nothing);
        match change {
            Change::Append(entries) => {
                batch.entries.extend(entries.into_iter().map(|(index, bytes)| (entry_key(group, index), Some(bytes))));
            }
            Change::Vote(vote) => drop(batch.meta.insert(meta_key(group, VOTE), Some(vote))),
            Change::Truncate(range) => batch.entries.extend(range.map(|index| (entry_key(group, index), None))),
            Change::Purge(range, purged) => {
                batch.meta.insert(meta_key(group, PURGED), Some(purged));
                // Only what is there: after a snapshot was installed the range may be far longer than the log.
                let (first, last) = range.into_inner();
                batch.entries.retain(|key, _| *key < entry_key(group, first) || *key > entry_key(group, last));
                for guard in self.keyspaces.entries.range(entry_key(group, first)..=entry_key(group, last)) {
                    let key: [u8; 16] = guard.key()?.as_ref().try_into().unwrap_or(entry_key(group, first));
                    batch.entries.insert(key, None);
                }
            }
            Change::Destroy => {
                batch.entries.retain(|key, _| key[..8] != group.to_be_bytes());
                for guard in self.keyspaces.entries.prefix(group.to_be_bytes()) {
                    let key: [u8; 16] = guard.key()?.as_ref().try_into().unwrap_or(entry_key(group, 0));
                    batch.entries.insert(key, None);
                }
                batch.meta.insert(meta_key(group, VOTE), None);
                batch.meta.insert(meta_key(group, PURGED), None);
            }
            Change::Nothing => {}
        }
        Ok(())
    }

    fn commit(&self, batch: Batch) -> fjall::Result<()> {
        let Keyspaces { database, entries, meta } = &self.keyspaces;
        // Purging alone still reaches the operating system, so that a killed process finds it done.
        let mode = if batch.sync { PersistMode::SyncData } else { PersistMode::Buffer };
        let mut commit = database.batch().durability(Some(mode));
        for (key, value) in batch.entries {
            match value {
                Some(value) => commit.insert(entries, key, value),
                None => commit.remove(entries, key),
            }
        }
        for (key, value) in batch.meta {
            match value {
                Some(value) => commit.insert(meta, key, value),
                None => commit.remove(meta, key),
            }
        }
        commit.commit()?;
        self.counts.flushes.fetch_add(u64::from(batch.sync), Ordering::Relaxed);
        Ok(())
    }
}

fn size_of(write: &Write) -> usize {
    match &write.change {
        Change::Append(entries) => entries.iter().map(|(_, bytes)| bytes.len()).sum(),
        Change::Vote(_) | Change::Truncate(_) | Change::Purge(..) | Change::Destroy | Change::Nothing => 0,
    }
}
