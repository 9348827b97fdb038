//! One process, kept running.
//!
//! A process that ends is started again after a pause that doubles from 200 ms to 10 s, and is short again once
//! the process has run for a while. To stop one: close its standard input and send SIGTERM, wait [`GRACE`], then
//! SIGKILL. It is only ever signalled by its own id, while it is our unreaped child, so that the id can't be
//! another process's.

use std::fmt;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::FutureExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::UpArgs;
use super::logfile::LogFile;
use super::plan::Plan;
use crate::options::format_founders;
use crate::shutdown::Shutdown;

/// How long a node may take to stop in order.
pub const GRACE: Duration = Duration::from_secs(10);
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// A process that ran for this long did start.
const RAN_WELL: Duration = Duration::from_secs(5);

/// Read by tokio, whose name it is.
const WORKERS_VARIABLE: &str = "TOKIO_WORKER_THREADS";

/// What is run.
#[derive(Clone, Debug)]
pub struct Program {
    pub node: u32,
    pub path: std::path::PathBuf,
    pub args: Vec<std::ffi::OsString>,
    /// Where its log and its process id are kept.
    pub dir: std::path::PathBuf,
    /// Threads that its tasks run on.
    pub workers: usize,
    /// Show its log lines as well.
    pub forward: bool,
}

/// What happened to a process.
#[derive(Debug)]
pub enum Event {
    Started { node: u32, pid: u32 },
    Ended { node: u32, how: String, tail: Vec<String>, pause: Duration },
    Stopped { node: u32 },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Started { node, pid } => write!(f, "node-{node} runs as process {pid}"),
            Event::Ended { node, how, tail, pause } => {
                let last = tail.last().map_or_else(String::new, |line| format!("; its last words: {line}"));
                write!(f, "node-{node} ended ({how}){last}; starting it again in {} ms", pause.as_millis())
            }
            Event::Stopped { node } => write!(f, "node-{node} stopped"),
        }
    }
}

impl Program {
    /// `pleat node …`, as this process was started.
    pub fn of_node(plan: &Plan, args: &UpArgs, node: u32) -> anyhow::Result<Program> {
        let dir = plan.node_dir(node);
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let mut words: Vec<std::ffi::OsString> = vec!["node".into(), "--supervised".into()];
        let mut option = |name: &str, value: std::ffi::OsString| words.extend([name.into(), value]);
        option("--id", node.to_string().into());
        option("--name", format!("node-{node}").into());
        option("--listen", plan.node_listen(node).to_string().into());
        option("--coordinator", plan.coordinator_listen(node).to_string().into());
        if let Some(listen) = plan.pg_listen(node) {
            option("--pg-listen", listen.to_string().into());
        }
        option("--data-dir", dir.clone().into());
        option("--cluster-id", plan.identity.cluster_id.clone().into());
        option("--founders", format_founders(&plan.founders()).into());
        option("--shards", plan.identity.initial_shards.to_string().into());
        option("--engine", plan.identity.engine.name().into());
        if let Some(config) = &args.common.config {
            option("--config", config.into());
        }
        if let Some(format) = &args.common.log_format {
            option("--log-format", format.into());
        }
        if args.common.insecure {
            words.push("--insecure".into());
        }
        let path = std::env::current_exe().context("find this program's own file")?;
        Ok(Program { node, path, args: words, dir, workers: workers(plan.founders().len()), forward: args.logs })
    }

    fn spawn(&self) -> std::io::Result<Child> {
        // A process group of its own: Ctrl-C in the terminal is for us, and we stop the nodes in order.
        Command::new(&self.path)
            .args(&self.args)
            .env(WORKERS_VARIABLE, self.workers.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

/// The nodes share the machine's cores. With as many threads for each as there are cores they would mostly wake one another: a
/// routed read costs nearly twice the CPU then. Who sets the variable decides.
fn workers(nodes: usize) -> usize {
    let told = std::env::var(WORKERS_VARIABLE).ok().and_then(|told| told.parse().ok());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    told.unwrap_or(cores / nodes.max(1)).max(1)
}

/// Keep the program running until `shutdown`; `at_once` ends it without grace.
pub async fn supervise(program: Program, mut shutdown: Shutdown, mut at_once: Shutdown, events: mpsc::Sender<Event>) {
    let node = program.node;
    let name = program.forward.then(|| format!("node-{node}"));
    let mut log = LogFile::open(&program.dir, name);
    let mut pause = PAUSE_FIRST;
    while !shutdown.is_requested() && !at_once.is_requested() {
        let begun = Instant::now();
        let how = match program.spawn() {
            Ok(child) => match run(child, &program, &mut log, &mut shutdown, &mut at_once, &events).await {
                Some(status) => describe(status),
                None => break,
            },
            Err(error) => format!("it can't be started: {error}"),
        };
        if begun.elapsed() >= RAN_WELL {
            pause = PAUSE_FIRST;
        }
        let _ = events.send(Event::Ended { node, how, tail: log.tail(), pause }).await;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.requested() => {}
            () = at_once.requested() => {}
        }
        pause = (pause * 2).min(PAUSE_LONGEST);
    }
    let _ = std::fs::remove_file(program.dir.join("pid"));
    let _ = events.send(Event::Stopped { node }).await;
}

/// Run a process to its end: its status when it ended by itself, nothing when it was told to.
async fn run(
    mut child: Child,
    program: &Program,
    log: &mut LogFile,
    shutdown: &mut Shutdown,
    at_once: &mut Shutdown,
    events: &mpsc::Sender<Event>,
) -> Option<std::io::Result<ExitStatus>> {
    // Held for as long as the process shall run: its end tells the process that we are gone.
    let input = child.stdin.take();
    let pid = child.id().unwrap_or_default();
    let _ = std::fs::write(program.dir.join("pid"), format!("{pid}\n"));
    let _ = events.send(Event::Started { node: program.node, pid }).await;
    let stderr = child.stderr.take();
    let ended = async {
        tokio::select! {
            status = child.wait() => return Some(status),
            () = shutdown.requested() => {}
            () = at_once.requested() => {}
        }
        drop(input);
        terminate(&child);
        tokio::select! {
            _ = child.wait() => return None,
            () = tokio::time::sleep(GRACE) => {}
            () = at_once.requested() => {}
        }
        let _ = child.kill().await;
        None
    };
    let lines = async {
        if let Some(stderr) = stderr {
            log.pump(stderr).await;
        }
    }
    .fuse();
    // The process's end is what counts; a grandchild that still holds its standard error is not waited for long.
    tokio::pin!(lines);
    let status = tokio::select! {
        status = ended => status,
        never = async { (&mut lines).await; std::future::pending().await } => never,
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), lines).await;
    status
}

fn terminate(child: &Child) {
    // `id` is `None` once the child was waited for, so this can't hit another process.
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => match Signal::try_from(signal) {
                Ok(signal) => format!("{signal}"),
                Err(_) => format!("signal {signal}"),
            },
            (None, None) => "ended".to_string(),
        },
        Err(error) => format!("lost: {error}"),
    }
}

#[cfg(test)]
mod tests;
