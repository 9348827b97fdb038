//! What a process says when a page of a mapped file can't be read.
//!
//! Readers of a shard map its file into memory. That is worth it: over 2 million rows of 178 MiB in the page cache, `count(*)` takes
//! 1.5 ms instead of 65, a `sum` a quarter less; a keyed read takes the same. A system call that meets a bad sector, or the end of a file that was cut
//! short, gives an error; a mapped page gives a signal, SIGBUS, whose default is a silent end. There is no way to go on from it: SQLite's code
//! stands in the middle of the page. So the process still ends, but says which file it was, and with the exit code of a
//! [disk that failed](EXIT_CODE); its supervisor starts it again. Nothing is lost by that: what was acknowledged is in the log.
//!
//! **Caveat.** A handler may do next to nothing: no allocation, no locks. This one reads `/proc/self/maps` into an array and writes to standard
//! error.

use std::ffi::c_void;

use anyhow::Context;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::Mode;
use nix::unistd::read;

/// The exit code of a node whose disk failed: `EX_IOERR` of `sysexits.h`.
pub const EXIT_CODE: u8 = 74;
/// The longest line of `/proc/self/maps` that is looked at, in bytes: an address range and a path.
const LINE_BYTES_MAX: usize = 4_352;

/// Say what was wrong when a mapped page can't be read.
pub fn install() -> anyhow::Result<()> {
    // On the thread's own stack: that set aside for signals is too small for a line of the maps.
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_RESETHAND;
    let action = SigAction::new(SigHandler::SigAction(handle), flags, SigSet::empty());
    // SAFETY: the handler does only what is allowed in one, as the module says.
    unsafe { sigaction(Signal::SIGBUS, &action) }.context("listen for SIGBUS")?;
    Ok(())
}

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel gives the handler of a SIGBUS what happened, with the address.
    let address = unsafe { (*info).si_addr() } as usize;
    let told = with_mapping(address, |file| {
        say(b"error: the disk failed: a page of ");
        say(file);
        say(b" can't be read, or the file was cut short (SIGBUS); look at the disk, and at the kernel's messages\n");
    });
    if told {
        // SAFETY: it ends the process, and runs nothing before.
        unsafe { libc::_exit(i32::from(EXIT_CODE)) }
    }
    // Not a file's: the instruction runs again, and the default action (SA_RESETHAND) ends the process.
}

fn say(text: &[u8]) {
    // Nobody is left to tell when this fails.
    let _ = nix::unistd::write(std::io::stderr(), text);
}

/// Calls `tell` with the name of the file that is mapped at an address. Whether there is one.
fn with_mapping(address: usize, tell: impl FnOnce(&[u8])) -> bool {
    let Ok(maps) = open("/proc/self/maps", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) else { return false };
    let mut buffer = [0; LINE_BYTES_MAX];
    let mut filled = 0;
    loop {
        match read(&maps, &mut buffer[filled..]) {
            Ok(count) if count > 0 => filled += count,
            _ => return false,
        }
        let mut begin = 0;
        while let Some(length) = buffer[begin..filled].iter().position(|byte| *byte == b'\n') {
            if let Some(file) = file_at(&buffer[begin..begin + length], address) {
                tell(file);
                return true;
            }
            begin += length + 1;
        }
        buffer.copy_within(begin..filled, 0);
        filled -= begin;
        if filled == buffer.len() {
            return false;
        }
    }
}

/// The file of a line of `/proc/self/maps`, if the line is that of the address: `7f00-7fff r--s 00000000 fe:00 12 /data/shard.db`.
fn file_at(line: &[u8], address: usize) -> Option<&[u8]> {
    let text = std::str::from_utf8(line).ok()?;
    let (range, rest) = text.split_once(' ')?;
    let (from, to) = range.split_once('-')?;
    let bound = |hex| usize::from_str_radix(hex, 16).ok();
    let within = (bound(from)?..bound(to)?).contains(&address);
    rest.find('/').filter(|_| within).map(|path| &rest.as_bytes()[path..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_that_of_the_address() {
        let line = b"7f10a000-7f10b000 r--s 00000000 fe:00 131 /data/a b/shard.db";
        assert_eq!(file_at(line, 0x7f10_afff), Some(&b"/data/a b/shard.db"[..]));
        assert_eq!(file_at(line, 0x7f10_b000), None);
        assert_eq!(file_at(b"7f10a000-7f10b000 rw-p 00000000 00:00 0 [heap]", 0x7f10_a000), None);
        for garbage in [&b""[..], b"x-y z", b"7f10a000 /data", b"\xff\xff-1 /a"] {
            assert_eq!(file_at(garbage, 0), None);
        }
    }

    #[test]
    fn what_is_mapped_here_is_found() {
        let mut found = Vec::new();
        assert!(with_mapping(install as fn() -> anyhow::Result<()> as usize, |file| found = file.to_vec()));
        assert_eq!(found, std::env::current_exe().unwrap().as_os_str().as_encoded_bytes());
        assert!(!with_mapping(1, |_| ()));
    }
}
