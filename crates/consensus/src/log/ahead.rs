//! The log's share of the disk: room in its journal, ahead of where it is being written.
//!
//! **The problem.** fjall appends to a journal, and is broken for good when that meets a full disk. Free space is nobody's: whoever writes
//! faster than we look takes the last of it between two looks.
//!
//! **The mechanism.** The blocks that the journal's next bytes go to are allocated before they are written, without making the file longer.
//! How much was written is counted from above (what a batch takes at most). When by that count the share is nearly used up, the kernel is asked
//! where fjall's own file stands (`/proc/self/fdinfo`), the count put right, and more allocated.
//!
//! | journal | where it is written |
//! | --- | --- |
//! | made by this process, 64 MiB long from the start, with holes | at the file's position |
//! | found at the start, cut off behind its last batch | at its end |
//!
//! A journal that is long enough is followed by another, of the next number, which begins with nothing allocated; that is noticed before the
//! next batch.
//!
//! **Caveats.** Where the file system can't allocate ahead (or there is no `/proc`), nothing is, and a full disk ends the process, as its
//! failure would. A journal that begins between the look and the write is written without a share.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// The open file is written at its end, whatever its position (`O_APPEND`).
const APPENDS: u64 = 0o2000;

pub(super) struct Ahead {
    dir: PathBuf,
    /// What is kept allocated, in bytes. 0: nothing.
    share: u64,
    journal: Option<Journal>,
}

/// The journal that is being written.
struct Journal {
    path: PathBuf,
    /// What comes after it.
    next: PathBuf,
    /// fjall's own descriptor.
    descriptor: String,
    file: File,
    /// It is written up to here at most, in bytes.
    written: u64,
    /// Its blocks are allocated up to here.
    allocated: u64,
}

impl Ahead {
    pub(super) fn new(dir: &Path, share: u64) -> Self {
        Ahead { dir: dir.canonicalize().unwrap_or_else(|_| dir.to_owned()), share, journal: None }
    }

    /// Sees to it that the next `bytes` find room. With `stock`, that most of the share is left after them, too. Fails with
    /// [`StorageFull`](ErrorKind::StorageFull) when there is none.
    pub(super) fn make(&mut self, bytes: u64, stock: bool) -> io::Result<()> {
        if self.share == 0 {
            return Ok(());
        }
        self.follow();
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let wanted = bytes + if stock { self.share / 4 * 3 } else { 0 };
        if journal.ahead() >= wanted {
            return Ok(());
        }
        match journal.position() {
            Some(position) => journal.written = position,
            // It has just been replaced.
            None => self.journal = None,
        }
        self.follow();
        let Some(journal) = &mut self.journal else { return Ok(()) };
        if journal.ahead() >= wanted {
            return Ok(());
        }
        let all = journal.allocate(bytes + self.share);
        let done = if journal.ahead() >= bytes { Ok(()) } else { all.or_else(|_| journal.allocate(bytes)) };
        match done {
            Err(error) if !matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                self.give_up(&error.to_string());
                Ok(())
            }
            done => done,
        }
    }

    fn give_up(&mut self, why: &str) {
        tracing::warn!(
            "can't keep room for the log in {}, so a full disk may end this node: {why}",
            self.dir.display()
        );
        self.share = 0;
    }

    /// So much was written, at most.
    pub(super) fn wrote(&mut self, bytes: u64) {
        if let Some(journal) = &mut self.journal {
            journal.written += bytes;
        }
    }

    /// Finds the journal that is being written, if it is not known.
    fn follow(&mut self) {
        if self.journal.as_ref().is_none_or(|journal| journal.next.exists()) {
            // Its own descriptor must not be taken for fjall's.
            self.journal = None;
            match newest(&self.dir) {
                Some((number, descriptor)) => self.journal = Journal::open(&self.dir, number, descriptor),
                None => self.give_up("its journal is not found among the open files"),
            }
        }
    }
}

impl Journal {
    fn open(dir: &Path, number: u64, descriptor: String) -> Option<Journal> {
        let path = dir.join(format!("{number}.jnl"));
        let next = dir.join(format!("{}.jnl", number + 1));
        let file = File::options().write(true).open(&path).ok()?;
        let mut journal = Journal { path, next, descriptor, file, written: 0, allocated: 0 };
        journal.written = journal.position()?;
        journal.allocated = journal.written;
        Some(journal)
    }

    fn ahead(&self) -> u64 {
        self.allocated.saturating_sub(self.written)
    }

    fn allocate(&mut self, bytes: u64) -> io::Result<()> {
        let upto = self.written.saturating_add(bytes);
        let (Ok(from), Ok(length)) = (i64::try_from(self.written), i64::try_from(bytes)) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, from, length) {
            Err(Errno::EINTR) => self.allocate(bytes),
            done => {
                done?;
                self.allocated = self.allocated.max(upto);
                Ok(())
            }
        }
    }

    /// Where fjall writes next. `None`: its descriptor is another file's by now.
    fn position(&self) -> Option<u64> {
        let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.descriptor)).ok()?;
        // Looked at afterwards: as long as it is this file now, it was before.
        let same = std::fs::read_link(format!("/proc/self/fd/{}", self.descriptor)).is_ok_and(|path| path == self.path);
        let number = |name: &str, radix| {
            let value = about.lines().find_map(|line| line.strip_prefix(name))?;
            u64::from_str_radix(value.trim(), radix).ok()
        };
        let (position, flags) = (number("pos:", 10)?, number("flags:", 8)?);
        let at = if flags & APPENDS != 0 { self.file.metadata().ok()?.len() } else { position };
        same.then_some(at)
    }
}

/// The newest journal that this process has open, and by which descriptor.
fn newest(dir: &Path) -> Option<(u64, String)> {
    let open = std::fs::read_dir("/proc/self/fd").ok()?;
    let journals = open.flatten().filter_map(|entry| {
        let path = std::fs::read_link(entry.path()).ok()?;
        let number = path.file_name()?.to_str()?.strip_suffix(".jnl")?.parse().ok()?;
        (path.parent() == Some(dir)).then(|| (number, entry.file_name().to_string_lossy().into_owned()))
    });
    journals.max()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use fjall::{Database, PersistMode};

    use super::*;

    const SHARE: u64 = 1 << 20;

    /// A log of 3 MiB in batches of 10,000 bytes, half of which compresses well, and what is allocated behind its end.
    fn write(dir: &Path) -> (Ahead, Vec<u64>) {
        let database = Database::builder(dir).manual_journal_persist(true).open().unwrap();
        let entries = database.keyspace("entries", fjall::KeyspaceCreateOptions::default).unwrap();
        let mut ahead = Ahead::new(dir, SHARE);
        let mut behind = Vec::new();
        for number in 0..300_u64 {
            let byte = |at: u64| if at < 5000 { 0 } else { (at * at * number).to_le_bytes()[1] };
            let value: Vec<u8> = (0..10_000).map(byte).collect();
            ahead.make(12_000, true).unwrap();
            let mut batch = database.batch().durability(Some(PersistMode::Buffer));
            batch.insert(&entries, number.to_be_bytes(), value);
            batch.commit().unwrap();
            ahead.wrote(12_000);
            let journal = ahead.journal.as_ref().unwrap();
            let allocated = journal.file.metadata().unwrap().blocks() * 512;
            behind.push(allocated.checked_sub(journal.position().unwrap()).unwrap());
        }
        (ahead, behind)
    }

    #[test]
    fn the_share_is_allocated_behind_the_end_of_the_journal_and_is_no_more_than_that() {
        let dir = tempfile::tempdir().unwrap();
        for start in ["a journal of this process's own", "one that was found"] {
            let (ahead, behind) = write(dir.path());
            let (least, most) = (behind.iter().min().unwrap(), behind.iter().max().unwrap());
            assert!(*least >= SHARE / 2 && *most <= 2 * SHARE, "{start}: {least} to {most} bytes");
            assert!(ahead.share > 0);
        }
    }

    #[test]
    fn where_nothing_can_be_known_nothing_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut ahead = Ahead::new(dir.path(), SHARE);
        ahead.make(1 << 30, true).unwrap();
        assert_eq!(ahead.share, 0);
    }
}
