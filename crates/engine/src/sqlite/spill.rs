//! Temporary files of finishers, with a limit on their size.
//!
//! SQLite keeps what does not fit into memory (pages of an unnamed database, runs of a sort, indexes made for one query) in
//! temporary files, which it asks the VFS for without a name. Those of a finisher come from here: they are in the
//! node's own directory and have no name there (`O_TMPFILE`; where the file system can't do that, the name is gone before the
//! first byte is written), so nothing is left of them when the process is killed. And each byte is charged to the query and to
//! the node first ([`room`](crate::room)).
//!
//! Whose files they are is known by the thread: a finisher [enters](Spill::enter) its [`Spill`] while SQLite works for it.
//! Threads that have entered none (those of shards) get SQLite's own temporary files.

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rusqlite::ffi;

use crate::room::{NoRoom, Room, SPARE_STEP};

type OpenFn = unsafe extern "C" fn(
    *mut ffi::sqlite3_vfs,
    ffi::sqlite3_filename,
    *mut ffi::sqlite3_file,
    c_int,
    *mut c_int,
) -> c_int;

/// How the platform's VFS opens files.
static PLATFORM_OPEN: OnceLock<OpenFn> = OnceLock::new();

thread_local! {
    static CURRENT: RefCell<Option<Arc<Spill>>> = const { RefCell::new(None) };
}

/// What one finisher has in temporary files.
pub(crate) struct Spill {
    room: Arc<Room>,
    /// The size of its files at the moment.
    held: AtomicU64,
    /// All that was ever written to them.
    written: AtomicU64,
    /// Up to which size of its files the file system was looked at.
    looked: AtomicU64,
    /// Why a write was refused, for whoever sees the statement fail.
    refused: Mutex<Option<NoRoom>>,
}

/// While it lives, temporary files that SQLite opens on this thread belong to one [`Spill`].
pub(crate) struct Entered {
    before: Option<Arc<Spill>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.replace(self.before.take());
    }
}

impl Spill {
    pub(crate) fn new(room: Arc<Room>) -> Arc<Self> {
        Arc::new(Self {
            room,
            held: AtomicU64::new(0),
            written: AtomicU64::new(0),
            looked: AtomicU64::new(0),
            refused: Mutex::new(None),
        })
    }

    pub(crate) fn enter(self: &Arc<Self>) -> Entered {
        Entered { before: CURRENT.replace(Some(self.clone())) }
    }

    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    pub(crate) fn refused(&self) -> Option<NoRoom> {
        *self.refused.lock()
    }

    fn create(&self) -> io::Result<File> {
        std::fs::create_dir_all(&self.room.dir)?;
        tempfile::tempfile_in(&self.room.dir)
    }

    /// Takes `bytes` more of the query's and of the node's disk.
    fn charge(&self, bytes: u64) -> Result<(), NoRoom> {
        let limits = &self.room.limits;
        if self.held.load(Ordering::Relaxed).saturating_add(bytes) > limits.query_disk {
            return Err(NoRoom::QueryDisk { limit: limits.query_disk });
        }
        let wanted = self.held.load(Ordering::Relaxed).saturating_add(bytes);
        if wanted > self.looked.load(Ordering::Relaxed) {
            if !self.room.has_spare() {
                return Err(NoRoom::DiskFull);
            }
            self.looked.store(wanted.saturating_add(SPARE_STEP), Ordering::Relaxed);
        }
        if !self.room.disk.take(bytes) {
            return Err(NoRoom::NodeDisk { limit: limits.node_disk });
        }
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.room.disk.give_back(bytes);
    }

    fn count(&self, bytes: u64) {
        if self.written.fetch_add(bytes, Ordering::Relaxed) == 0 {
            self.room.spilled.fetch_add(1, Ordering::Relaxed);
        }
        self.room.spilled_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What SQLite is told of a failure, which is noted.
    fn failed(&self, why: Failed, otherwise: c_int) -> c_int {
        let refused = match why {
            Failed::NoRoom(refused) => refused,
            Failed::Io(error) if is_full(&error) => NoRoom::DiskFull,
            Failed::Io(error) => {
                tracing::error!(%error, dir = %self.room.dir.display(), "a temporary file failed");
                return otherwise;
            }
        };
        self.refused.lock().get_or_insert(refused);
        ffi::SQLITE_FULL
    }
}

enum Failed {
    NoRoom(NoRoom),
    Io(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Failed::Io(error)
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// One temporary file.
struct Temporary {
    file: File,
    /// Its size, all of which is charged.
    size: u64,
    spill: Arc<Spill>,
}

impl Temporary {
    /// Fills `into` from `offset` on; what is beyond the end reads as zeros. Whether all of it was there.
    fn read(&self, mut into: &mut [u8], mut offset: u64) -> io::Result<bool> {
        while !into.is_empty() {
            match self.file.read_at(into, offset) {
                Ok(0) => {
                    into.fill(0);
                    return Ok(false);
                }
                Ok(read) => {
                    into = &mut into[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Failed> {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.size {
            self.spill.charge(end - self.size).map_err(Failed::NoRoom)?;
            self.size = end;
        }
        self.file.write_all_at(bytes, offset)?;
        self.spill.count(bytes.len() as u64);
        Ok(())
    }

    fn truncate(&mut self, size: u64) -> io::Result<()> {
        if size < self.size {
            self.file.set_len(size)?;
            self.spill.give_back(self.size - size);
            self.size = size;
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.spill.give_back(self.size);
    }
}

/// What SQLite knows of an open file: its methods, and behind them what is Pleat's.
#[repr(C)]
struct Handle {
    base: ffi::sqlite3_file,
    temporary: *mut Temporary,
}

/// Lets the VFS `vfs`, a copy of the platform's, give finishers their temporary files.
pub(crate) fn hook(vfs: &mut ffi::sqlite3_vfs) -> Result<(), String> {
    let platform = vfs.xOpen.ok_or("SQLite's VFS opens no files")?;
    PLATFORM_OPEN.get_or_init(|| platform);
    vfs.szOsFile = vfs.szOsFile.max(size_of::<Handle>() as c_int);
    vfs.xOpen = Some(open);
    Ok(())
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    let Some(platform) = PLATFORM_OPEN.get() else { return ffi::SQLITE_CANTOPEN };
    let Some(spill) = CURRENT.with_borrow(Clone::clone).filter(|_| name.is_null()) else {
        // SAFETY: the arguments are passed on as they came, to the function that the copied VFS had.
        return unsafe { platform(vfs, name, file, flags, flags_out) };
    };
    let handle = file.cast::<Handle>();
    let (methods, temporary, code) = match spill.create() {
        Ok(file) => (&raw const METHODS, Box::into_raw(Box::new(Temporary { file, size: 0, spill })), ffi::SQLITE_OK),
        // Without methods SQLite doesn't close it.
        Err(error) => (std::ptr::null(), std::ptr::null_mut(), spill.failed(Failed::Io(error), ffi::SQLITE_CANTOPEN)),
    };
    // SAFETY: SQLite gives szOsFile bytes, at least a Handle, for the file; and a null pointer or one to write flags to.
    unsafe {
        handle.write(Handle { base: ffi::sqlite3_file { pMethods: methods }, temporary });
        if !flags_out.is_null() {
            *flags_out = flags;
        }
    }
    code
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(lock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// The file behind one of SQLite's pointers.
///
/// # Safety
/// `file` is one that [`open`] has opened and [`close`] has not closed, and nothing else refers to it meanwhile: SQLite uses a
/// temporary file by one connection, on one thread at a time.
unsafe fn temporary<'a>(file: *mut ffi::sqlite3_file) -> &'a mut Temporary {
    // SAFETY: the caller says so.
    unsafe { &mut *(*file.cast::<Handle>()).temporary }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes an open file once; the box was made when it was opened.
    unsafe {
        let handle = file.cast::<Handle>();
        drop(Box::from_raw((*handle).temporary));
        (*handle).base.pMethods = std::ptr::null();
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, into: *mut c_void, count: c_int, offset: i64) -> c_int {
    let count = count.unsigned_abs() as usize;
    // SAFETY: SQLite gives an open file, and room for `count` bytes.
    let (temporary, into) = unsafe { (temporary(file), std::slice::from_raw_parts_mut(into.cast::<u8>(), count)) };
    match temporary.read(into, offset.unsigned_abs()) {
        Ok(true) => ffi::SQLITE_OK,
        Ok(false) => ffi::SQLITE_IOERR_SHORT_READ,
        Err(error) => temporary.spill.failed(error.into(), ffi::SQLITE_IOERR_READ),
    }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, count: c_int, offset: i64) -> c_int {
    let count = count.unsigned_abs() as usize;
    // SAFETY: SQLite gives an open file, and `count` bytes.
    let (temporary, from) = unsafe { (temporary(file), std::slice::from_raw_parts(from.cast::<u8>(), count)) };
    match temporary.write(from, offset.unsigned_abs()) {
        Ok(()) => ffi::SQLITE_OK,
        Err(why) => temporary.spill.failed(why, ffi::SQLITE_IOERR_WRITE),
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: SQLite gives an open file.
    let temporary = unsafe { temporary(file) };
    match temporary.truncate(size.unsigned_abs()) {
        Ok(()) => ffi::SQLITE_OK,
        Err(error) => temporary.spill.failed(error.into(), ffi::SQLITE_IOERR_TRUNCATE),
    }
}

/// Nothing of a temporary file has to last.
unsafe extern "C" fn sync(_: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    // SAFETY: SQLite gives an open file, and where to write its size.
    unsafe { *size = i64::try_from(temporary(file).size).unwrap_or(i64::MAX) };
    ffi::SQLITE_OK
}

/// Nobody else can open it.
unsafe extern "C" fn lock(_: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(_: *mut ffi::sqlite3_file, locked: *mut c_int) -> c_int {
    // SAFETY: SQLite gives where to write the answer.
    unsafe { *locked = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(_: *mut ffi::sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_: *mut ffi::sqlite3_file) -> c_int {
    0
}

unsafe extern "C" fn device_characteristics(_: *mut ffi::sqlite3_file) -> c_int {
    0
}
