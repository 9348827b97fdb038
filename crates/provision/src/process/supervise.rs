//! The thread that keeps a server running.
//!
//! It is a thread, and not a task, because Linux ties the signal that a child gets at its parent's end to the *thread* that started it.

use std::io;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::directory::{self, Directory};
use super::log::Tail;
use super::{State, leftover};

/// Deaths in a row until the server is given up.
pub const FAILURES_MAX: u32 = 8;
/// The pause before it is started again, at first and at most.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// A server that took connections for this long did run.
const RAN_WELL: Duration = Duration::from_secs(30);
/// How often it is looked whether the server takes connections, until it does.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long it may take to shut down: fast, then at once.
const FAST: Duration = Duration::from_secs(30);
const IMMEDIATE: Duration = Duration::from_secs(5);
/// How long the log of a server that has ended is read on.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Begin. `stop` says when to end, or that nobody wants the server any more.
pub fn begin(directory: Directory, state: watch::Sender<State>, stop: watch::Receiver<bool>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("postgres".to_owned());
    thread.spawn(move || {
        let supervision = Supervision { directory, state, stop };
        runtime.block_on(supervision.run());
    })?;
    Ok(())
}

struct Supervision {
    directory: Directory,
    state: watch::Sender<State>,
    stop: watch::Receiver<bool>,
}

/// How a server's run came to its end.
enum End {
    Told,
    /// By itself, after it had taken connections for so long.
    Died {
        why: String,
        after: Duration,
    },
}

impl Supervision {
    async fn run(mut self) {
        let failed = match self.directory.prepare().await {
            Ok(()) => self.keep_running().await.err(),
            Err(why) => Some(why),
        };
        if let Some(why) = failed {
            tracing::error!(data = %self.directory.data().display(), %why, "the PostgreSQL server is given up");
            self.state.send_replace(State::Failed { why });
            told(&mut self.stop).await;
        }
        // Others may have the directory before they hear that it is free.
        drop(self.directory);
        self.state.send_replace(State::Stopped);
    }

    /// Until it is told to stop, or given up.
    async fn keep_running(&mut self) -> Result<(), String> {
        let (mut failures, mut pause) = (0, PAUSE_FIRST);
        loop {
            let (why, after) = match self.once().await {
                End::Told => return Ok(()),
                End::Died { why, after } => (why, after),
            };
            if after >= RAN_WELL {
                (failures, pause) = (0, PAUSE_FIRST);
            }
            failures += 1;
            if failures == FAILURES_MAX {
                return Err(format!("it ended {failures} times in a row; the last time: {why}"));
            }
            tracing::warn!(%why, pause_ms = pause.as_millis() as u64, "the PostgreSQL server ended; it is started again");
            self.state.send_replace(State::Down { why, pause });
            tokio::select! {
                () = sleep(pause) => {}
                () = told(&mut self.stop) => return Ok(()),
            }
            pause = (pause * 2).min(PAUSE_LONGEST);
            self.state.send_replace(State::Starting);
        }
    }

    /// One server, from its start to its end.
    async fn once(&mut self) -> End {
        let died = |why| End::Died { why, after: Duration::ZERO };
        // The children of one that was killed may still be there, and hold its memory.
        if let Err(why) = leftover::end(&self.directory.data(), leftover::PATIENT).await {
            return died(why);
        }
        let mut child = match self.directory.server().spawn() {
            Ok(child) => child,
            Err(error) => return died(format!("it can't be started: {error}")),
        };
        let tail = Tail::default();
        let log = child.stderr.take().map(|log| tokio::spawn(tail.clone().follow(log)));
        let (pid, mut ready) = (child.id().unwrap_or_default(), None);
        let status = tokio::select! {
            status = child.wait() => status,
            () = told(&mut self.stop) => {
                shut_down(&mut child).await;
                return End::Told;
            }
            never = watch(&self.directory, &self.state, pid, &mut ready) => match never {},
        };
        if let Some(log) = log {
            let abort = log.abort_handle();
            let _ = timeout(LAST_WORDS, log).await;
            abort.abort();
        }
        let why = match (describe(status), tail.reason()) {
            (how, Some(reason)) => format!("{how}; its last words: {reason}"),
            (how, None) => how,
        };
        End::Died { why, after: ready.map_or(Duration::ZERO, |since: Instant| since.elapsed()) }
    }
}

/// Tell when the server takes connections.
async fn watch(
    directory: &Directory,
    state: &watch::Sender<State>,
    pid: u32,
    ready: &mut Option<Instant>,
) -> std::convert::Infallible {
    let data = directory.data();
    let is_up = || {
        leftover::postmaster(&data).is_some_and(|said| {
            // A standby recovers for as long as it is one.
            said.pid.unsigned_abs() == pid && (said.ready || (said.recovers && directory::is_standby(&data)))
        })
    };
    while !is_up() {
        sleep(LOOK_INTERVAL).await;
    }
    *ready = Some(Instant::now());
    let standby = directory::is_standby(&data);
    tracing::info!(pid, port = directory.port, standby, "the PostgreSQL server runs");
    state.send_replace(State::Ready { pid });
    std::future::pending().await
}

/// Wait until the server shall stop.
async fn told(stop: &mut watch::Receiver<bool>) {
    // An error says that whoever wanted the server is gone.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Fast, then at once, then by force.
async fn shut_down(child: &mut Child) {
    for (signal, within) in [(Signal::SIGINT, FAST), (Signal::SIGQUIT, IMMEDIATE)] {
        // `id` is `None` once it was waited for, so this can't hit another process.
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
        if timeout(within, child.wait()).await.is_ok() {
            return;
        }
        tracing::warn!(%signal, "the PostgreSQL server did not shut down in time");
    }
    let _ = child.kill().await;
}

fn describe(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("lost: {error}"),
    }
}
