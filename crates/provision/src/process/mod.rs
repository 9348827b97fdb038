//! A PostgreSQL server that Pleat makes, starts and keeps running: the node's part of a PostgreSQL shard.
//!
//! # What stands in its directory
//!
//! | name | what it is |
//! | --- | --- |
//! | `pleat.lock` | locked (`flock`) by the process that supervises the server, for as long as that lives |
//! | `data` | the server's data; never there half made |
//! | `data.new` | what is being made, or was when somebody died; removed by the next start |
//! | `data.fenced-R-N` | what was `data` when operation N took the shard away from this server, in reign R ([`fence`]) |
//! | `fenced-N` | empty: operation N has done that, and does it no more |
//! | `socket` | the server's Unix socket, where its path is short enough to be one |
//! | `port` | the port that was chosen, so that it is the same the next time |
//!
//! # States
//!
//! `Starting` → `Ready` → (the server dies) → `Down`, for a pause that doubles → `Starting` → … A server that has died
//! [`FAILURES_MAX`](supervise::FAILURES_MAX) times without having run well in between is `Failed`: somebody has to look. `Stopped` is the end of an
//! orderly stop. See [`State`].
//!
//! # Invariants
//!
//! 1. One supervisor to a directory: who has no lock touches nothing in it.
//! 2. One server to a directory: before one is started, no process of an earlier one is left ([`leftover`]). Those are known by
//!    their program and by the directory that they run in, and are signalled through a file descriptor of the process, so that an
//!    id that was given to another process meanwhile does no harm. Never by a name or a port.
//! 3. `data` is complete: it is made under another name, with its database, and renamed when it is on the disk.
//! 4. The server ends with its supervisor: Linux sends it SIGINT (a fast shutdown) when the thread that started it is gone,
//!    and that thread lives as long as the supervision.
//! 5. A server whose data was fenced does not run, and is not started again: the name that it would be started by is gone, and whoever ran
//!    in the data is seen to have ended. That holds for a supervisor, too, that was paused at any point and goes on later.
//! 6. The server never runs as root, and nothing is started through a shell. No password is in an argument or in a log.
//!
//! # What happens when a process dies
//!
//! | who, and when | what follows |
//! | --- | --- |
//! | Pleat, while `data.new` is made | the next start removes it and begins again |
//! | Pleat, while the server runs (also by SIGKILL) | the server shuts down; the next start ends what is left of it, and starts |
//! | the server's first process | its others end, or are ended; it is started again and recovers from its log |
//! | another process of the server | PostgreSQL's own business: its first process restarts them all |
//! | both at once | as for Pleat; what was left behind without parents is ended by the next start |
//!
//! | a standby's supervisor, while it is promoted | the next start finds data that is still a standby's, or is not, and it is promoted, or was |
//!
//! The server's processes are told apart by `/proc`, and the signal of the fourth invariant is Linux's: other systems need other means.

mod account;
mod directory;
mod fence;
mod leftover;
mod log;
mod schema;
mod settings;
mod supervise;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use directory::{Directory, Programs};
pub use fence::{fence, forget_fenced, unfence};
pub use pleat_cluster::SERVER_NAME as NAME;
pub use schema::{SchemaPart, copy_schema};
pub use settings::Size;

/// Where Debian has PostgreSQL 15.
pub const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// A standby's name to its primary: that of its slot there, and what a synchronous primary waits for.
pub const STANDBY: &str = "pleat_standby";
/// How long a server may take until it takes connections, recovery and the making of its data included.
const READY_WITHIN: Duration = Duration::from_secs(300);
/// How much longer one may take that first copies another one's data.
const COPIED_WITHIN: Duration = Duration::from_secs(6 * 3_600);

/// What a server shall be.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// Everything of the server is in here. It is made when it is missing.
    pub dir: PathBuf,
    /// The folder with `postgres` and `initdb`.
    pub programs: PathBuf,
    /// On loopback. Absent: one that is free, and the same the next time if it is free then.
    pub port: Option<u16>,
    pub size: Size,
    /// A file whose first line is the password of the user [`NAME`]. Absent: whoever reaches loopback is believed.
    pub password_file: Option<PathBuf>,
    pub role: Role,
}

/// What the server is in its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes writes. Data that is missing is made only if `make` says so: else it was lost, or fenced. Data that is still a standby's follows nobody,
    /// and waits to be [promoted](Server::promote).
    Primary { make: bool },
    /// It follows the server there, through the slot [`STANDBY`], and takes no connections. Data that is missing is copied from there; with `anew`
    /// also data that is here. A primary's data is never touched.
    Standby { of: SocketAddr, anew: bool },
}

/// What the server does at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is being made or started, or recovers.
    Starting,
    /// It takes connections, or, as a standby, follows.
    Ready { pid: u32 },
    /// It died, and is started again after a pause.
    Down { why: String, pause: Duration },
    /// It was given up.
    Failed { why: String },
    /// It was told to stop, and did.
    Stopped,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Another process supervises it.
    #[error("{} is in use by another Pleat process; stop that one first, or choose another directory", .0.display())]
    InUse(PathBuf),
    /// It can't be as it is wanted: somebody has to change something.
    #[error("{0}")]
    Unfit(String),
    #[error("{what} {}: {error}", path.display())]
    Io { what: &'static str, path: PathBuf, error: std::io::Error },
    /// It was tried.
    #[error("the PostgreSQL server in {} did not start: {why}", dir.display())]
    Failed { dir: PathBuf, why: String },
}

impl ProcessError {
    fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> ProcessError + use<'a> {
        move |error| ProcessError::Io { what, path: path.to_owned(), error }
    }
}

/// Whether servers can be run here at all: the programs are there, and whoever runs them can get at what is in `dir`, as far as that is there.
pub fn check(programs: &Path, dir: &Path) -> Result<(), ProcessError> {
    directory::programs_are_there(programs)?;
    let there = dir.ancestors().find(|folder| folder.is_dir());
    match (account::of(&dir.join("data"))?, there) {
        (Some(account), Some(there)) => account.reaches(there),
        _ => Ok(()),
    }
}

/// A server under supervision. Dropping it stops the server, without waiting for that.
#[derive(Debug)]
pub struct Server {
    programs: Programs,
    data: PathBuf,
    port: u16,
    socket: Option<PathBuf>,
    state: watch::Receiver<State>,
    /// Dropped or told: stop.
    stop: watch::Sender<bool>,
}

impl Server {
    /// Make the server if it is not there yet, start it, and return when it takes connections.
    pub async fn start(config: ProcessConfig) -> Result<Server, ProcessError> {
        let dir = config.dir.clone();
        let within = match config.role {
            Role::Primary { .. } => READY_WITHIN,
            Role::Standby { .. } => COPIED_WITHIN,
        };
        let directory = Directory::open(config).await?;
        let (port, socket) = (directory.port, directory.socket_folder().map(Path::to_owned));
        let (programs, data) = (directory.programs.clone(), directory.data());
        let (state, watched) = watch::channel(State::Starting);
        let (stop, told) = watch::channel(false);
        let failed = |why: String| ProcessError::Failed { dir: dir.clone(), why };
        supervise::begin(directory, state, told).map_err(|error| failed(format!("start a thread: {error}")))?;
        let mut server = Server { programs, data, port, socket, state: watched, stop };
        let settled = tokio::time::timeout(within, server.settled()).await;
        let why = match settled {
            Ok(State::Ready { .. }) => return Ok(server),
            Ok(State::Failed { why }) => why,
            Ok(State::Starting | State::Down { .. } | State::Stopped) => "it stopped".to_owned(),
            Err(_) => format!("it takes no connections after {} s", within.as_secs()),
        };
        server.stop().await;
        Err(failed(why))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// The folder of its Unix socket, for this user and root alone.
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// What it does at the moment, and from then on.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Make a standby a primary, if it isn't one, and return when it takes writes.
    pub async fn promote(&self) -> Result<(), ProcessError> {
        if !directory::is_standby(&self.data) {
            return Ok(());
        }
        let failed = |why| ProcessError::Failed { dir: self.data.clone(), why: format!("it is not promoted: {why}") };
        self.programs.promote(&self.data).await.map_err(failed)
    }

    /// Stop it in order: its clients are cut off, and what is committed is on the disk.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        // The end of the supervision ends the channel, too.
        let _ = self.state.wait_for(|state| *state == State::Stopped).await;
    }

    async fn settled(&mut self) -> State {
        let settled = |state: &State| !matches!(state, State::Starting | State::Down { .. });
        self.state.wait_for(settled).await.map_or(State::Stopped, |state| state.clone())
    }
}
