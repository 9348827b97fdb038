//! The newest entries of one group's log, in memory.
//!
//! Whatever is not yet durable is in here, so that a reader finds an entry as soon as it is appended. What is durable
//! stays while the budget allows: replication to followers that keep up, and applying, never read the disk.

use std::collections::VecDeque;

use crate::types::LogEntry;

pub(super) struct Cache {
    entries: VecDeque<(LogEntry, usize)>,
    /// The index of the first cached entry, or of the next to be appended when nothing is cached.
    first: u64,
    bytes: usize,
    bytes_max: usize,
    /// Entries before this index are durable.
    flushed: u64,
    /// Sizes of the entries of the log that were appended since the start: index and bytes.
    sizes: VecDeque<(u64, u64)>,
}

impl Cache {
    pub(super) fn new(bytes_max: usize, next: u64) -> Self {
        Cache { entries: VecDeque::new(), first: next, bytes: 0, bytes_max, flushed: next, sizes: VecDeque::new() }
    }

    pub(super) fn push(&mut self, entry: LogEntry, size: usize) {
        if self.entries.is_empty() {
            self.first = entry.log_id.index;
        }
        self.sizes.push_back((entry.log_id.index, size as u64));
        self.bytes += size;
        self.entries.push_back((entry, size));
        self.evict();
    }

    /// The entries before `index` are durable.
    pub(super) fn flushed(&mut self, index: u64) {
        self.flushed = index;
        self.evict();
    }

    fn evict(&mut self) {
        while self.bytes > self.bytes_max && self.first < self.flushed {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some((_, size)) = self.entries.pop_front() {
            self.bytes -= size;
            self.first += 1;
        }
    }

    /// The cached entries of `start..end`, and the index from which on they are cached.
    pub(super) fn read(&self, start: u64, end: u64) -> (u64, Vec<(LogEntry, usize)>) {
        let from = start.max(self.first);
        let skip = (from - self.first) as usize;
        let count = end.saturating_sub(from) as usize;
        (self.first, self.entries.iter().skip(skip).take(count).cloned().collect())
    }

    /// Forgets entries from `index` on.
    pub(super) fn truncate(&mut self, index: u64) {
        while self.entries.back().is_some_and(|(entry, _)| entry.log_id.index >= index) {
            self.bytes -= self.entries.pop_back().map_or(0, |(_, size)| size);
        }
        while self.sizes.back().is_some_and(|&(at, _)| at >= index) {
            self.sizes.pop_back();
        }
        self.first = self.first.min(index);
        self.flushed = self.flushed.min(index);
    }

    /// Forgets entries up to `index`.
    pub(super) fn purge(&mut self, index: u64) {
        while !self.entries.is_empty() && self.first <= index {
            self.drop_first();
        }
        while self.sizes.front().is_some_and(|&(at, _)| at <= index) {
            self.sizes.pop_front();
        }
        self.first = self.first.max(index + 1);
        self.flushed = self.flushed.max(index + 1);
    }

    /// The newest index so that the entries after it have at least `bytes`.
    pub(super) fn index_before(&self, bytes: u64) -> Option<u64> {
        let mut sum = 0;
        for &(index, size) in self.sizes.iter().rev() {
            sum += size;
            if sum >= bytes {
                return index.checked_sub(1);
            }
        }
        None
    }
}
