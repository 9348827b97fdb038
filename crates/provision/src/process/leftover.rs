//! What an earlier server left running in a data directory.
//!
//! A process belongs to a data directory when it runs PostgreSQL's program and that directory is where it is: the
//! server changes into it at once, and all of its processes stay there. Only those are signalled, and through a file descriptor that
//! was opened before they were looked at, so that it is still the same process.
//!
//! A fence says "none is left" only when every process could be looked at that may be one: what is called like the server, and may have the data
//! (the server wants it to be its own account's), but does not let itself be looked at, is an error. (Root in a container without
//! `CAP_SYS_PTRACE` is not let.) Before a server is started it is passed over: the server's own lock keeps a second one out.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

/// The server's own file about itself.
pub const POSTMASTER: &str = "postmaster.pid";
/// How processes are ended.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long they are left to shut down in order, and then at once, before they are ended by force.
    pub fast: Duration,
    pub immediate: Duration,
    /// It has to be certain that none is left: one that can't be looked at is an error.
    pub certain: bool,
}

/// For what is to be used again.
pub const PATIENT: Patience =
    Patience { fast: Duration::from_secs(30), immediate: Duration::from_secs(5), certain: false };
/// How long processes may take to end that are ended by force.
const KILLED: Duration = Duration::from_secs(5);

/// One process.
struct Process {
    pid: i32,
    handle: OwnedFd,
}

/// End what runs in a data directory: in order if its first process is there, at once if it is not.
pub async fn end(data: &Path, patience: Patience) -> Result<(), String> {
    let first = postmaster(data).map(|first| first.pid);
    let mut found = of(data, patience.certain)?;
    if let Some(first) = first
        && let Some(process) = found.iter().find(|process| process.pid == first)
    {
        tracing::info!(pid = first, "an earlier PostgreSQL server still runs; it is shut down");
        send(process, Signal::INT);
        found = ended(data, found, patience.fast, patience.certain).await?;
    }
    for (signal, within) in [(Signal::QUIT, patience.immediate), (Signal::KILL, KILLED)] {
        if found.is_empty() {
            break;
        }
        tracing::info!(processes = found.len(), "processes of an earlier PostgreSQL server are ended");
        found.iter().for_each(|process| send(process, signal));
        found = ended(data, found, within, patience.certain).await?;
    }
    if let Some(process) = found.first() {
        return Err(format!("process {} of an earlier server does not end", process.pid));
    }
    // A file that was left behind: the server would believe it of any process that has the id now.
    let Some(left) = postmaster(data).filter(|left| folder(left.pid).exists()) else { return Ok(()) };
    if may_be_elsewhere(left.pid) {
        return Err(format!(
            "{} names process {}, which runs PostgreSQL outside of any data directory; end it if it is this server's",
            data.join(POSTMASTER).display(),
            left.pid
        ));
    }
    fs::remove_file(data.join(POSTMASTER)).map_err(|error| format!("remove an old {POSTMASTER}: {error}"))
}

/// What the server says about itself.
pub struct Postmaster {
    pub pid: i32,
    /// It takes connections.
    pub ready: bool,
    /// It recovers from its log, be it a standby or not, and takes no connections while it does.
    pub recovers: bool,
}

/// Read it. It is written in place: what is not there yet is not ready.
pub fn postmaster(data: &Path) -> Option<Postmaster> {
    let text = fs::read_to_string(data.join(POSTMASTER)).ok()?;
    let mut lines = text.lines();
    // In a server of one user the id is negative.
    let pid = lines.next()?.trim().parse::<i32>().ok()?.checked_abs()?;
    let status = lines.nth(6).map_or("", str::trim);
    Some(Postmaster { pid, ready: status == "ready", recovers: status == "standby" })
}

fn send(process: &Process, signal: Signal) {
    // It may have ended meanwhile, which is what is wanted.
    let _ = pidfd_send_signal(&process.handle, signal);
}

/// Wait for these to end, then look again: what is there now.
async fn ended(data: &Path, processes: Vec<Process>, within: Duration, certain: bool) -> Result<Vec<Process>, String> {
    let all = async {
        for process in processes {
            // SAFETY: the descriptor is owned by what is registered, so it stays open for as long.
            let handle = unsafe { AsyncFd::register(process.handle) };
            // Readable once the process has ended.
            if let Ok(handle) = handle {
                let _ = handle.readable().await;
            }
        }
    };
    let _ = timeout(within, all).await;
    of(data, certain)
}

fn folder(pid: i32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// The processes of a data directory.
fn of(data: &Path, certain: bool) -> Result<Vec<Process>, String> {
    let data = match fs::metadata(data) {
        Ok(data) => data,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("look at {}: {error}", data.display())),
    };
    let entries = fs::read_dir("/proc").map_err(|error| format!("list /proc: {error}"))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| format!("list /proc: {error}"))?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Some(id) = Pid::from_raw(pid) else { continue };
        let handle = pidfd_open(id, PidfdFlags::empty());
        match runs_in(pid, &data) {
            Ok(false) => {}
            Ok(true) => match handle {
                Ok(handle) => found.push(Process { pid, handle }),
                Err(Errno::SRCH) => {}
                Err(error) => return Err(format!("open process {pid} of an earlier server: {error}")),
            },
            Err(_) if !certain => {}
            Err(error) => return Err(format!("whether process {pid} is of an earlier server is not known: {error}")),
        }
    }
    Ok(found)
}

/// Whether a process is a server's that runs in this folder.
fn runs_in(pid: i32, data: &fs::Metadata) -> io::Result<bool> {
    let is_there = || -> io::Result<bool> {
        if !is_server(pid)? {
            return Ok(false);
        }
        let place = fs::metadata(folder(pid).join("cwd"))?;
        Ok((place.dev(), place.ino()) == (data.dev(), data.ino()))
    };
    match is_there() {
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) if may_have(pid, data) => Err(error),
        Err(_) => Ok(false),
        known => known,
    }
}

/// Whether a process runs PostgreSQL's program.
fn is_server(pid: i32) -> io::Result<bool> {
    let program = fs::read_link(folder(pid).join("exe"))?;
    let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // "postgres (deleted)" after an upgrade.
    Ok(name.split(' ').next() == Some("postgres"))
}

/// Whether a process is one that has ended, be it waited for or not. (The kernel's own have no program either.)
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// Of a process that does not let itself be looked at: whether it may be a server's in this folder. What is not known may be.
fn may_have(pid: i32, data: &fs::Metadata) -> bool {
    let name = fs::read_to_string(folder(pid).join("comm"));
    let account = fs::metadata(folder(pid)).map(|folder| folder.uid());
    // Root's, too: so are those of others that don't want to be looked at.
    name.map_or(true, |name| name.trim() == "postgres") && account.map_or(true, |uid| uid == data.uid() || uid == 0)
}

/// Of a process that was not found in its folder: whether it may be a server all the same. One that runs in other data is another server, and
/// any other program has the id by now.
fn may_be_elsewhere(pid: i32) -> bool {
    let cwd = folder(pid).join("cwd");
    matches!(is_server(pid), Ok(true)) && fs::metadata(&cwd).is_ok() && !cwd.join("PG_VERSION").exists()
}
