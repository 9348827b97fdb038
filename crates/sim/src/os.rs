//! The operating system, as a simulation sees it: clocks, chance and what a disk has kept.
//!
//! # The problem
//!
//! The same seed must give the same run, byte for byte. Tasks, timers and the network are the simulation's already
//! (`pleat_consensus::simulate`, turmoil). What remains is what dozens of places, in our crates and in others, ask
//! the operating system for: the time (`Instant`, `SystemTime`), random numbers (UUIDs, seeds, the order of hash maps), and
//! to make a file durable.
//!
//! # The mechanism
//!
//! All of them end in a few functions of the C library: `clock_gettime`, `getrandom`, `fsync` and `fdatasync`. This
//! module defines functions of these names, and the linker prefers them in whatever program this crate is
//! linked into. On a thread that [`enter`]ed a simulation they answer from its seed and its clock; on any other they pass the
//! call on to the kernel. So production code has no seam for time and chance, and pays nothing.
//!
//! - *Time* stands still within a step of the simulation and is moved by [`set_now`].
//! - *Chance* is a generator that begins with the seed. A simulation must have a thread of its own, because
//!   thread-local generators and the keys of hash maps are drawn once per thread.
//! - *Durability*: syncing a file costs nothing here, and notes what the file contains at that moment. When the power fails
//!   (`disk`), what was not noted is lost. In a directory whose disk [fails](fail_syncs) it is an error instead, and notes nothing.
//!
//! # Caveats
//!
//! Linux and glibc. SQLite draws the names of temporary files and the salts of its write-ahead log from `/dev/urandom`; neither
//! reaches a result. Clocks of the processor's time are the kernel's; nothing that is simulated asks for them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use libc::{c_int, c_uint, c_void, clockid_t, size_t, ssize_t, timespec};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What the clock of the day says when a simulation begins, in seconds since 1970.
const EPOCH_SECONDS: u64 = 1_750_000_000;
/// What the monotonic clocks say then: nothing may rely on it, so it is not 0.
const BOOT_SECONDS: u64 = 10_000;

thread_local! {
    static NOW: Cell<Option<Duration>> = const { Cell::new(None) };
    static MACHINE: RefCell<Option<Machine>> = const { RefCell::new(None) };
}

struct Machine {
    chance: ChaCha8Rng,
    /// By device and inode: the content at the last sync.
    synced: BTreeMap<(u64, u64), Vec<u8>>,
    /// Directories whose files can't be synced.
    failing: BTreeSet<PathBuf>,
}

/// While it lives, this thread's operating system is a simulation's.
pub struct Simulated(());

/// Begin, on a thread that has done nothing before and does nothing after.
pub fn enter(seed: u64) -> Simulated {
    // Named here so that the linker takes them before the C library's.
    let replaced: [*const (); 4] =
        [clock_gettime as *const (), getrandom as *const (), fsync as *const (), fdatasync as *const ()];
    std::hint::black_box(replaced);
    let machine =
        Machine { chance: ChaCha8Rng::seed_from_u64(seed), synced: BTreeMap::new(), failing: BTreeSet::new() };
    MACHINE.with(|of_thread| *of_thread.borrow_mut() = Some(machine));
    NOW.set(Some(Duration::ZERO));
    Simulated(())
}

impl Drop for Simulated {
    fn drop(&mut self) {
        NOW.set(None);
        MACHINE.with(|of_thread| drop(of_thread.borrow_mut().take()));
    }
}

/// How long the simulation has run.
pub fn set_now(elapsed: Duration) {
    NOW.set(Some(elapsed));
}

/// What is on the disk of a file if the power fails now and the kernel had written nothing by itself. `None`: it was never
/// synced.
pub fn synced(path: &Path) -> Option<Vec<u8>> {
    let of = std::fs::metadata(path).ok()?;
    MACHINE.with(|machine| machine.borrow().as_ref()?.synced.get(&(of.dev(), of.ino())).cloned())
}

/// Say what is on the disk of a file that the simulation has put there.
pub fn set_synced(path: &Path, content: Vec<u8>) -> std::io::Result<()> {
    keep(&File::open(path)?.metadata()?, content);
    Ok(())
}

/// From now on no file in a directory can be synced; or they can again.
pub fn fail_syncs(dir: &Path, fails: bool) {
    MACHINE.with(|machine| {
        if let Some(machine) = machine.borrow_mut().as_mut() {
            if fails {
                machine.failing.insert(dir.to_owned())
            } else {
                machine.failing.remove(dir)
            };
        }
    });
}

fn is_failing(path: &Path) -> bool {
    let within = |machine: &Machine| machine.failing.iter().any(|dir| path.starts_with(dir));
    MACHINE.with(|machine| machine.borrow().as_ref().is_some_and(within))
}

fn note(file: &File) -> std::io::Result<()> {
    let of = file.metadata()?;
    if !of.is_file() {
        return Ok(());
    }
    let mut content = vec![0; of.len() as usize];
    file.read_exact_at(&mut content, 0)?;
    keep(&of, content);
    Ok(())
}

fn keep(of: &Metadata, content: Vec<u8>) {
    MACHINE.with(|machine| {
        if let Some(machine) = machine.borrow_mut().as_mut() {
            machine.synced.insert((of.dev(), of.ino()), content);
        }
    });
}

fn is_simulated() -> bool {
    NOW.try_with(Cell::get).ok().flatten().is_some()
}

fn sync(fd: c_int, kernel: libc::c_long) -> c_int {
    if !is_simulated() {
        // SAFETY: the very call that was asked for.
        return unsafe { libc::syscall(kernel, fd) } as c_int;
    }
    let link = format!("/proc/self/fd/{fd}");
    if std::fs::read_link(&link).is_ok_and(|path| is_failing(&path)) {
        // SAFETY: the thread's own error number.
        unsafe { *libc::__errno_location() = libc::EIO };
        return -1;
    }
    // Opened anew: the caller's descriptor may only be for writing.
    match File::open(link).and_then(|file| note(&file)) {
        Ok(()) => 0,
        // A file that can't be read can't have been written by anything that is simulated.
        Err(error) => panic!("the simulation can't read a file that is synced: {error}"),
    }
}

/// # Safety
///
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    sync(fd, libc::SYS_fsync)
}

/// # Safety
///
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync(fd, libc::SYS_fdatasync)
}

/// # Safety
///
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    let simulated = NOW.try_with(Cell::get).ok().flatten();
    let since = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => EPOCH_SECONDS,
        _ => BOOT_SECONDS,
    };
    let of_processor = matches!(clock, libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_THREAD_CPUTIME_ID);
    match simulated.filter(|_| !of_processor && !time.is_null()) {
        Some(elapsed) => {
            let now = elapsed + Duration::from_secs(since);
            // SAFETY: the caller gave a place for the time.
            unsafe { *time = timespec { tv_sec: now.as_secs() as i64, tv_nsec: i64::from(now.subsec_nanos()) } };
            0
        }
        // SAFETY: the very call that was asked for.
        None => unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int },
    }
}

/// # Safety
///
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t {
    if !is_simulated() || buffer.is_null() {
        // SAFETY: the very call that was asked for.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as ssize_t };
    }
    // SAFETY: the caller gave a place for so many bytes.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    MACHINE.with(|machine| {
        if let Some(machine) = machine.borrow_mut().as_mut() {
            machine.chance.fill_bytes(bytes);
        }
    });
    length as ssize_t
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(seed: u64) -> (u64, std::time::SystemTime, Vec<u64>) {
        let draw = move || {
            let _simulated = enter(seed);
            set_now(Duration::from_secs(seed));
            let map: std::collections::HashMap<u64, ()> = (0..20).map(|key| (key, ())).collect();
            (rand::random(), std::time::SystemTime::now(), map.into_keys().collect())
        };
        std::thread::spawn(draw).join().unwrap()
    }

    #[test]
    fn time_chance_and_the_order_of_maps_follow_from_the_seed() {
        assert_eq!(drawn(1), drawn(1));
        let (one, two) = (drawn(1), drawn(2));
        assert!(one.0 != two.0 && one.1 < two.1 && one.2 != two.2);
    }

    #[test]
    fn other_threads_keep_the_kernels() {
        let begun = std::time::Instant::now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(begun.elapsed() >= Duration::from_millis(2));
        assert_ne!(rand::random::<u128>(), rand::random::<u128>());
    }
}
