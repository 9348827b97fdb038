//! The node's disk: whether there is room to write, and whether it failed.
//!
//! **The problem.** A log that meets a full disk in the middle of a write is broken: nobody knows what of it is there. And a
//! node that stands still because somebody else's file took the last byte can't even do what makes it stand still in
//! order: store a vote, apply what it has acknowledged. So a node has to stop taking writes *before* the disk is full.
//!
//! **The mechanism.** A node keeps a *reserve* to itself. Half of it is free space, half a file (`reserve`) that is allocated
//! and holds nothing, so that nobody else can take it. Two more things that are its own need no free space at all:
//!
//! - *The log's share*, an eighth of the reserve, is allocated in the log's own journal, ahead of where it is being written (`log/ahead`).
//! - *What a write-ahead log is long* is there to be written again once it was moved into its database.
//!
//! | free space | the node |
//! | --- | --- |
//! | at least half of the reserve | writes, and keeps the log's share ahead of the log |
//! | less | is *full*: its leaders take no proposals and hand over to nodes with room (`group`); its followers take no entries but the few that were on their way, which half of the log's share bounds, and answer heartbeats, votes and reads as ever. What was taken is applied, and each shard's write-ahead log is moved into its database while there is room for that |
//! | too little for something that must be written | moves the write-ahead log in question, then gives the file up, once, and tries again |
//! | none even so: somebody else has it all | waits. What has to be applied is applied later, as are checkpoints and strong reads that need it. Votes and heartbeats go on in the log's share. Were that used up as well, the log would wait, and so would its groups. Reads of what is there go on |
//! | all of the reserve and an eighth | makes the file again |
//! | with the file, half and an eighth | is no longer full |
//!
//! Nobody has to do anything but make room. All of this is looked at before proposals and entries are taken (no more often
//! than each [`LOOK_PAUSE`]), and each [`KEEP_EVERY`]. It does not matter how fast somebody else takes the disk: between two looks the log
//! writes into its share.
//!
//! A process that *starts* takes an eighth of the reserve, and gives the file up for that. With less it ends, and is started again until there is
//! room (`pleat up`).
//!
//! **A disk that failed.** After an error of a write or an fsync nobody knows what is on the disk: the kernel may
//! have dropped the pages that it could not write, and the next fsync succeeds all the same. So nothing is tried again.
//! [`Disk::fail`] says it once; the process ends, and the next one begins with what the disk has. "What the disk has" is not what
//! the page cache shows, though: pages that could not be written stay there, marked as clean. So the failing process leaves a note
//! (`disk-failed`), and the next one has the cache forget the directory's files before it reads them. The note is in the cache
//! itself, at worst: with the one the other is gone.
//!
//! | what can't be written | full | error, failed fsync |
//! | --- | --- | --- |
//! | log of the groups, votes (`log/disk`) | waits; see the caveat | nothing is acknowledged any more, the process ends |
//! | a shard's database and WAL, the catalog's file: applying, checkpoints, installing a snapshot (`machine`) | tried again until there is room: each is a transaction, or a new file | the process ends |
//! | an arriving snapshot | refused before it begins, or given up; the sender tries again | the same: a new file each time |
//! | a snapshot to be sent | given up; tried again later | the same |
//! | temporary files of queries (`engine`) | the query ends with an error; they leave the reserve alone | the query ends with an error |
//! | the node's identity and admission | the process ends: a new file each time, before anything rests on it | the same |
//! | the printed log | lines are dropped | the same |
//! | a page that is read through mapped memory | | the process ends, by a signal that says why (`pleat`) |
//!
//! **Caveats.** What was taken can need more room than there is: one write may change many pages. Then applying waits, and so do
//! strong reads, until there is room. fjall writes its tables on a thread of its own, and ends for good when that meets a full disk; the log
//! waits before it brings that about (`log/disk`), but not for tables that are being written or merged when the disk fills up, nor for a journal
//! that begins at that moment. Then the process ends, and starts again with room. File systems that can't allocate ahead
//! (those that copy on write) have no log's share.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise, posix_fallocate};
use nix::sys::statvfs::fstatvfs;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Free space is not looked at again within this.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// How often it is looked at in any case.
const KEEP_EVERY: Duration = Duration::from_millis(250);
/// The file that is the one half of the reserve.
const FILE: &str = "reserve";
/// What a process leaves behind whose disk failed.
const NOTE: &str = "disk-failed";

/// How a node's disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskState {
    /// There is room to write.
    Room,
    /// There is less than the node keeps for itself: it takes no writes.
    Full {
        /// What is free, in bytes.
        free: u64,
    },
    /// It failed: the process has to end.
    Failed {
        /// What was done, and the error.
        why: String,
    },
}

/// The disk of a node's data directory. See the module's documentation.
#[derive(Debug)]
pub struct Disk {
    /// `None`: there is nothing to run out of.
    place: Option<Place>,
    state: watch::Sender<DiskState>,
    full: AtomicBool,
    failed: AtomicBool,
    /// Bytes of entries that were taken since it is full.
    spent: AtomicU64,
}

#[derive(Debug)]
struct Place {
    dir: PathBuf,
    handle: File,
    /// In bytes.
    reserve: u64,
    looked: Mutex<Looked>,
}

#[derive(Debug)]
struct Looked {
    at: Instant,
    free: u64,
    /// Whether the file is there.
    held: bool,
}

impl Disk {
    /// A disk that never runs out of room, for tests and simulations; [`Disk::pretend_full`] pretends that it has.
    pub fn unlimited() -> Arc<Self> {
        Arc::new(Disk::new(None))
    }

    /// The disk of a directory that exists, of which `reserve` bytes are kept back (0: none). Makes the reserve's file. Fails when there is not
    /// even room to start. Blocks.
    pub fn open(dir: &Path, reserve: u64) -> anyhow::Result<Arc<Self>> {
        let opened = || format!("open the data directory {}", dir.display());
        forget_cached(dir)?;
        let handle = File::open(dir).with_context(opened)?;
        let held = std::fs::metadata(dir.join(FILE)).is_ok_and(|file| reserve > 0 && file.len() == reserve / 2);
        if !held {
            // One of another size, or none.
            drop(std::fs::remove_file(dir.join(FILE)));
        }
        let free = free(&handle).with_context(opened)?;
        let looked = Mutex::new(Looked { at: Instant::now(), free, held });
        let disk = Disk::new(Some(Place { dir: dir.to_owned(), handle, reserve, looked }));
        let mut free = disk.look(true);
        if free < reserve / 8 && disk.give_up_reserve() {
            free = disk.look(true);
        }
        if free < reserve / 8 {
            bail!(
                "the disk of {} is full: {free} bytes are free, and starting takes at least {}. Make room on it; a node \
                 that is supervised (`pleat up`) then starts by itself",
                dir.display(),
                reserve / 8
            );
        }
        Ok(Arc::new(disk))
    }

    fn new(place: Option<Place>) -> Self {
        let state = watch::Sender::new(DiskState::Room);
        Disk { place, state, full: AtomicBool::new(false), failed: AtomicBool::new(false), spent: AtomicU64::new(0) }
    }

    /// How it is.
    pub fn state(&self) -> DiskState {
        self.state.borrow().clone()
    }

    /// The same, to be followed.
    pub fn watch(&self) -> watch::Receiver<DiskState> {
        self.state.subscribe()
    }

    /// What to tell about a disk that is not as it should be, and what to do.
    pub fn trouble(&self) -> Option<String> {
        match &*self.state.borrow() {
            DiskState::Room => None,
            DiskState::Full { free } => Some(self.full_text(*free)),
            DiskState::Failed { why } => Some(format!("the disk failed: {why}")),
        }
    }

    fn full_text(&self, free: u64) -> String {
        let (dir, kept) = match &self.place {
            Some(place) => (place.dir.display().to_string(), place.reserve / 2),
            None => ("nowhere".to_owned(), 0),
        };
        format!(
            "the disk of {dir} is full: {free} bytes are free, of which {kept} are kept for what was taken on \
             already. No writes are taken until there is room again; reads go on"
        )
    }

    /// Whether there is room for proposals.
    pub(crate) fn has_room(&self) -> bool {
        if let Some(place) = &self.place
            && place.looked.lock().at.elapsed() >= LOOK_PAUSE
        {
            self.look(false);
        }
        !self.full.load(Ordering::Relaxed)
    }

    /// Whether entries of so many bytes are taken from a leader. Those that were on their way are, also without room.
    pub(crate) fn takes(&self, bytes: u64) -> bool {
        if self.has_room() {
            return true;
        }
        let most = self.log_share() / 2;
        self.spent
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |spent| {
                spent.checked_add(bytes).filter(|spent| *spent <= most)
            })
            .is_ok()
    }

    /// What the log keeps allocated ahead of itself, in bytes.
    pub(crate) fn log_share(&self) -> u64 {
        self.place.as_ref().map_or(0, |place| place.reserve / 8)
    }

    /// Whether so many bytes are free, or as many as the node keeps free at all.
    pub(crate) fn has_free(&self, bytes: u64) -> bool {
        self.place.as_ref().is_none_or(|place| self.look(false) >= bytes.min(place.reserve / 2))
    }

    /// For whoever must write and found no room: gives up the reserve's file. False when that was done before, and when there is room here:
    /// then another file system is full, such as that of SQLite's temporary files.
    pub(crate) fn give_up_reserve(&self) -> bool {
        !self.has_free(u64::MAX) && self.let_go_of_reserve()
    }

    fn let_go_of_reserve(&self) -> bool {
        let Some(place) = &self.place else { return false };
        let mut looked = place.looked.lock();
        if !looked.held || !place.let_go(&mut looked) {
            return false;
        }
        // Until the file is there again. Told under the lock, so that no older look is told after it.
        self.tell(Some(looked.free));
        true
    }

    /// What is free beyond the reserve, in bytes: for files that can be done without.
    pub fn spare(&self) -> u64 {
        match &self.place {
            None => u64::MAX,
            Some(place) => {
                if place.looked.lock().at.elapsed() >= LOOK_PAUSE {
                    self.look(false);
                }
                let looked = place.looked.lock();
                // A little more than what stops writes, so that writes are not what stops first.
                looked.free.saturating_sub(if looked.held { place.reserve } else { 2 * place.reserve })
            }
        }
    }

    /// Lets an unlimited disk look full, or no longer.
    pub fn pretend_full(&self, full: bool) {
        if self.place.is_none() {
            self.tell(full.then_some(0));
        }
    }

    /// Something could not be written or made durable, and nobody knows what is on the disk now. Only the first failure counts.
    pub fn fail(&self, why: impl Into<String>) {
        let why = why.into();
        if self.failed.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::error!("the disk failed, this node stops: {why}");
        // First the note: whoever is told ends the process.
        if let Some(place) = &self.place
            && let Err(error) = std::fs::write(place.dir.join(NOTE), &why)
        {
            tracing::warn!("can't leave the note {NOTE}: {error}");
        }
        self.state.send_replace(DiskState::Failed { why });
    }

    /// Fails when an error says that the device did (`EIO`). For whoever would try again what ended with an error.
    pub fn suspect(&self, error: &anyhow::Error) {
        let of_device = |cause: &io::Error| cause.raw_os_error() == Some(nix::errno::Errno::EIO as i32);
        if error.chain().filter_map(|cause| cause.downcast_ref()).any(of_device) {
            self.fail(format!("{error:#}"));
        }
    }

    /// Keeps the reserve for as long as anybody else has the disk.
    pub(crate) fn keep(self: &Arc<Self>) -> impl Future<Output = ()> + Send + 'static {
        let disk = Arc::downgrade(self);
        async move {
            while let Some(disk) = disk.upgrade().filter(|disk| disk.place.is_some()) {
                drop(crate::runtime::blocking(move || disk.look(true)).await);
                tokio::time::sleep(KEEP_EVERY).await;
            }
        }
    }

    /// Looks how much is free, and does what the module's table says; making the file takes time. Gives the free bytes.
    fn look(&self, may_take_time: bool) -> u64 {
        let Some(place) = &self.place else { return u64::MAX };
        let mut looked = place.looked.lock();
        looked.at = Instant::now();
        match free(&place.handle) {
            Ok(free) => looked.free = free,
            Err(error) => {
                tracing::warn!("can't tell how much room {} has: {error}", place.dir.display());
                return looked.free;
            }
        }
        let (half, eighth) = (place.reserve / 2, place.reserve / 8);
        let was_full = self.full.load(Ordering::Relaxed);
        if may_take_time && !looked.held && place.reserve > 0 && looked.free >= place.reserve + eighth {
            place.hold(&mut looked);
        }
        let wanted = if was_full { half + eighth } else { half };
        let full = place.reserve > 0 && (looked.free < wanted || was_full && !looked.held);
        self.tell(full.then_some(looked.free));
        looked.free
    }

    /// Tells those who watch; `full` has what is free.
    fn tell(&self, full: Option<u64>) {
        let was = self.full.swap(full.is_some(), Ordering::Relaxed);
        if was == full.is_some() {
            return;
        }
        match full {
            Some(free) => tracing::error!("{}", self.full_text(free)),
            None => tracing::info!("there is room on the disk again: writes are taken"),
        }
        self.spent.store(0, Ordering::Relaxed);
        self.state.send_if_modified(|state| {
            let stays = matches!(state, DiskState::Failed { .. });
            if !stays {
                *state = full.map_or(DiskState::Room, |free| DiskState::Full { free });
            }
            !stays
        });
    }
}

impl Place {
    fn hold(&self, looked: &mut Looked) {
        let path = self.dir.join(FILE);
        let bytes = i64::try_from(self.reserve / 2).unwrap_or(i64::MAX);
        let made = File::create(&path).and_then(|file| Ok(posix_fallocate(&file, 0, bytes)?));
        match made {
            Ok(()) => {
                looked.held = true;
                looked.free = looked.free.saturating_sub(self.reserve / 2);
            }
            Err(error) => {
                tracing::warn!("can't set aside {bytes} bytes in {}: {error}", path.display());
                drop(std::fs::remove_file(path));
            }
        }
    }

    fn let_go(&self, looked: &mut Looked) -> bool {
        let path = self.dir.join(FILE);
        match std::fs::remove_file(&path) {
            Ok(()) => {
                tracing::warn!("no room for what must be written: the file {} is given up for it", path.display());
                looked.held = false;
                looked.free = looked.free.saturating_add(self.reserve / 2);
            }
            Err(error) => tracing::error!("can't remove {}: {error}", path.display()),
        }
        !looked.held
    }
}

fn free(dir: &File) -> io::Result<u64> {
    let about = fstatvfs(dir)?;
    Ok(about.blocks_available() as u64 * about.fragment_size() as u64)
}

/// What an error says about the disk, if it comes from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// There was no room.
    Full,
    /// The operating system could not do it.
    Failed,
}

impl Trouble {
    pub(crate) fn of(error: &anyhow::Error) -> Option<Trouble> {
        let error = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>())?;
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Some(Trouble::Full),
            _ => error.raw_os_error().map(|_| Trouble::Failed),
        }
    }
}

/// Makes files durable, and what is read of them from now on is what the disk has.
pub(crate) fn settle(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            settle(&path)?;
        } else if path.is_file() {
            let file = File::open(&path)?;
            file.sync_all()?;
            // Pages that are written or could not be written are dropped; those that are to be written are none any more.
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
    }
    Ok(())
}

/// After a run that ended because the disk failed: see the module's documentation.
fn forget_cached(dir: &Path) -> anyhow::Result<()> {
    let note = dir.join(NOTE);
    let Ok(why) = std::fs::read_to_string(&note) else { return Ok(()) };
    tracing::warn!("the disk had failed ({why}): reading again what it has");
    settle(dir).with_context(|| format!("read again what the disk has in {}", dir.display()))?;
    std::fs::remove_file(&note).with_context(|| format!("remove {}", note.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_is_set_aside_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let size = || std::fs::metadata(dir.path().join(FILE)).map(|file| file.len()).unwrap_or(0);
        for (reserve, file) in [(4 << 20, 2 << 20), (2 << 20, 1 << 20), (0, 0)] {
            let disk = Disk::open(dir.path(), reserve).unwrap();
            assert_eq!((size(), disk.has_room(), disk.trouble()), (file, true, None));
        }
        let error = Disk::open(dir.path(), u64::MAX / 2).unwrap_err().to_string();
        assert!(error.contains("is full") && error.contains("Make room"), "{error}");
    }

    #[test]
    fn the_reserve_is_given_up_once_and_the_node_is_full_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), 4 << 20).unwrap();
        assert!(!disk.give_up_reserve() && disk.has_room(), "there is room: another file system is full");
        assert!(disk.let_go_of_reserve() && !dir.path().join(FILE).exists());
        assert!(!disk.let_go_of_reserve(), "it is given up once");
        assert!(!disk.has_room(), "without the file there is no room, however much is free");
        assert!(
            disk.takes(disk.log_share() / 2) && !disk.takes(1),
            "half of the log's share is for what was on its way"
        );
        // With room, the file is made again, and writes are taken.
        disk.look(true);
        assert!(dir.path().join(FILE).exists() && disk.has_room());
    }

    #[test]
    fn a_failure_leaves_a_note_until_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), 0).unwrap();
        disk.fail("first");
        disk.fail("second");
        assert_eq!(disk.state(), DiskState::Failed { why: "first".into() });
        assert_eq!(std::fs::read_to_string(dir.path().join(NOTE)).unwrap(), "first");
        Disk::open(dir.path(), 0).unwrap();
        assert!(!dir.path().join(NOTE).exists());
    }

    #[test]
    fn only_the_operating_systems_errors_are_the_disks() {
        let of = |error: io::Error| Trouble::of(&anyhow::Error::new(error).context("while it was at it"));
        assert_eq!(of(io::Error::from_raw_os_error(28)), Some(Trouble::Full), "ENOSPC");
        assert_eq!(of(ErrorKind::StorageFull.into()), Some(Trouble::Full));
        assert_eq!(of(io::Error::from_raw_os_error(5)), Some(Trouble::Failed), "EIO");
        assert_eq!(of(io::Error::other("damaged")), None);
        assert_eq!(Trouble::of(&anyhow::anyhow!("no I/O at all")), None);
    }

    #[test]
    fn a_full_disk_takes_what_was_on_its_way_and_no_more() {
        let disk = Disk::unlimited();
        assert!(disk.takes(1));
        disk.pretend_full(true);
        assert!(!disk.has_room() && !disk.takes(1));
        assert!(disk.trouble().unwrap().contains("is full"));
        disk.pretend_full(false);
        assert!(disk.has_room() && disk.takes(1));
    }
}
