//! Whose time it is: SQLite's `now` is an argument.
//!
//! Every form of "now" in SQLite (`CURRENT_TIMESTAMP`, `datetime('now')`, `julianday()`, `unixepoch()`, a DEFAULT)
//! asks the VFS. So Pleat opens its databases with a copy of the platform's VFS whose two time functions answer
//! with a number of the running thread: the proposal's or the query's `now_ms`. `localtime` would still look at
//! the machine's time zone; it is made the same as UTC, for the whole process. (The same VFS gives finishers their temporary
//! files: see `spill`.)

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use pleat_cluster::Millis;
use rusqlite::ffi;

use super::spill;

/// The name under which the VFS is registered.
pub(crate) const VFS: &str = "pleat";

/// The Unix epoch in milliseconds of the Julian day.
const EPOCH_JULIAN_MS: i64 = 210_866_760_000_000;
/// The last moment that SQLite's date functions know: the end of the year 9999.
pub(crate) const LAST_MS: i64 = 253_402_300_799_999;

thread_local! {
    static NOW_MS: Cell<i64> = const { Cell::new(0) };
}

/// Sets this thread's time for all that SQLite does on it until the next call.
pub(crate) fn set_now(now_ms: Millis) {
    NOW_MS.set(i64::try_from(now_ms).unwrap_or(LAST_MS).min(LAST_MS));
}

/// Registers the VFS, once.
pub(crate) fn register() -> Result<(), String> {
    static REGISTERED: OnceLock<Result<(), String>> = OnceLock::new();
    REGISTERED.get_or_init(register_once).clone()
}

fn register_once() -> Result<(), String> {
    // SAFETY: the default VFS lives as long as the process and SQLite allows it to be copied (its own test VFSs
    // do so). The copy and its name are leaked, so they live as long too.
    let rc = unsafe {
        let default = ffi::sqlite3_vfs_find(std::ptr::null());
        if default.is_null() {
            return Err("SQLite has no default VFS".to_owned());
        }
        let mut vfs = *default;
        vfs.zName = c"pleat".as_ptr();
        vfs.pNext = std::ptr::null_mut();
        vfs.xCurrentTime = Some(current_time);
        vfs.xCurrentTimeInt64 = Some(current_time_int64);
        spill::hook(&mut vfs)?;
        ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0)
    };
    if rc != ffi::SQLITE_OK {
        return Err(format!("SQLite refused Pleat's VFS (code {rc})"));
    }
    // SAFETY: this test control takes a mode and a function; mode 2 means "use this one for local time".
    unsafe {
        let local: unsafe extern "C" fn(*const c_void, *mut c_void) -> c_int = local_is_utc;
        ffi::sqlite3_test_control(ffi::SQLITE_TESTCTRL_LOCALTIME_FAULT, 2 as c_int, local);
    }
    Ok(())
}

unsafe extern "C" fn current_time(_: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: SQLite passes a valid pointer.
    unsafe { *out = (NOW_MS.get() + EPOCH_JULIAN_MS) as f64 / 86_400_000.0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn current_time_int64(_: *mut ffi::sqlite3_vfs, out: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: SQLite passes a valid pointer.
    unsafe { *out = NOW_MS.get() + EPOCH_JULIAN_MS };
    ffi::SQLITE_OK
}

unsafe extern "C" {
    fn gmtime_r(time: *const c_void, broken_down: *mut c_void) -> *mut c_void;
}

unsafe extern "C" fn local_is_utc(time: *const c_void, broken_down: *mut c_void) -> c_int {
    // SAFETY: SQLite passes a time_t and a struct tm, which is what gmtime_r takes.
    let result = unsafe { gmtime_r(time, broken_down) };
    c_int::from(result.is_null())
}
