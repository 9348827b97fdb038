//! What an earlier server left running in a data directory.
//!
//! A process belongs to a data directory when it runs PostgreSQL's program and that directory is where it is: the
//! server changes into it at once, and all of its processes stay there. Only those are signalled, and through a file descriptor that
//! was opened before they were looked at, so that it is still the same process.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

/// The server's own file about itself.
pub const POSTMASTER: &str = "postmaster.pid";
/// How long processes are left to shut down in order, and then at once, before they are ended by force.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub fast: Duration,
    pub immediate: Duration,
}

/// For what is to be used again.
pub const PATIENT: Patience = Patience { fast: Duration::from_secs(30), immediate: Duration::from_secs(5) };
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
    let mut found = of(data);
    if let Some(first) = first
        && let Some(process) = found.iter().find(|process| process.pid == first)
    {
        tracing::info!(pid = first, "an earlier PostgreSQL server still runs; it is shut down");
        send(process, Signal::INT);
        found = ended(data, found, patience.fast).await;
    }
    for (signal, within) in [(Signal::QUIT, patience.immediate), (Signal::KILL, KILLED)] {
        if found.is_empty() {
            break;
        }
        tracing::info!(processes = found.len(), "processes of an earlier PostgreSQL server are ended");
        found.iter().for_each(|process| send(process, signal));
        found = ended(data, found, within).await;
    }
    if let Some(process) = found.first() {
        return Err(format!("process {} of an earlier server does not end", process.pid));
    }
    // A file that was left behind: the server would believe it of any process that has the id now.
    match postmaster(data).is_some_and(|left| Path::new(&format!("/proc/{}", left.pid)).exists()) {
        true => fs::remove_file(data.join(POSTMASTER)).map_err(|error| format!("remove an old {POSTMASTER}: {error}")),
        false => Ok(()),
    }
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
async fn ended(data: &Path, processes: Vec<Process>, within: Duration) -> Vec<Process> {
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
    of(data)
}

/// The processes of a data directory.
fn of(data: &Path) -> Vec<Process> {
    let Ok(data) = fs::metadata(data) else { return Vec::new() };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        let folder = Path::new("/proc").join(pid.to_string());
        let program = fs::read_link(folder.join("exe")).ok()?;
        // "postgres (deleted)" after an upgrade.
        let is_server = program.file_name()?.to_str()?.split(' ').next() == Some("postgres");
        let place = fs::metadata(folder.join("cwd")).ok()?;
        (is_server && (place.dev(), place.ino()) == (data.dev(), data.ino())).then_some(Process { pid, handle })
    })
    .collect()
}
