//! The server's directory: who holds it, and what is made in it.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::account::{self, Account};
use super::{NAME, ProcessConfig, ProcessError, Role, STANDBY, leftover, settings};

/// Making the data, or changing a password without a server, may take this long.
const MAKING_MAX: Duration = Duration::from_secs(120);
/// Copying another server's data may take this long.
const COPYING_MAX: Duration = Duration::from_secs(6 * 3_600);
/// A standby may take this long to become a primary.
const PROMOTING_MAX: Duration = Duration::from_secs(120);
/// What makes a server a standby.
const STANDBY_FILE: &str = "standby.signal";
/// A longer path is no address of a Unix socket.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// A password, in bytes.
const PASSWORD_BYTES_MAX: usize = 1_024;
/// Where a free port is looked for: below those that outgoing connections get.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// A directory that is ours.
pub struct Directory {
    config: ProcessConfig,
    pub programs: Programs,
    password: Option<String>,
    pub port: u16,
    socket: Option<PathBuf>,
    /// For as long as this is open, no other process touches the directory.
    _lock: Flock<File>,
}

impl Directory {
    /// Take the directory, and end what an earlier server left running in it. Nothing is started yet.
    pub async fn open(mut config: ProcessConfig) -> Result<Directory, ProcessError> {
        config.size.check().map_err(ProcessError::Unfit)?;
        programs_are_there(&config.programs)?;
        let password = config.password_file.as_deref().map(password).transpose()?;
        folder(&config.dir, 0o755)?;
        config.dir = config.dir.canonicalize().map_err(ProcessError::io("find", &config.dir))?;
        let lock = lock(&config.dir)?;
        let data = config.dir.join("data");
        leftover::end(&data, leftover::PATIENT)
            .await
            .map_err(|why| ProcessError::Failed { dir: config.dir.clone(), why })?;
        let account = account::of(&data)?;
        if let Some(account) = account {
            account.reaches(&config.dir)?;
        }
        let port = port(&config)?;
        let socket = socket(&config.dir, port, account)?;
        let programs = Programs { folder: config.programs.clone(), account };
        Ok(Directory { config, programs, password, port, socket, _lock: lock })
    }

    pub fn data(&self) -> PathBuf {
        self.config.dir.join("data")
    }

    pub fn socket_folder(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// Make the data if it is not there, and let in who may come in.
    pub async fn prepare(&self) -> Result<(), String> {
        let data = self.data();
        match self.config.role {
            Role::Primary { make: true } if !data.exists() => {
                self.make().await.map_err(|why| format!("make its data: {why}"))?;
            }
            Role::Standby { of, anew } => {
                let is_here = data.exists();
                if is_here && !is_standby(&data) {
                    return Err(format!("{} is a primary's, and not given away for a standby's", data.display()));
                }
                if anew || !is_here {
                    self.copy(of, is_here).await.map_err(|why| format!("copy the data of {of}: {why}"))?;
                }
            }
            Role::Primary { .. } if !data.exists() => return Err(format!("its data is gone from {}", data.display())),
            Role::Primary { .. } => {}
        }
        if let Role::Primary { .. } = self.config.role
            && !is_standby(&data)
            && let Some(password) = &self.password
        {
            let quoted = password.replace('\'', "''");
            let change = format!("ALTER ROLE {NAME} PASSWORD '{quoted}'\n");
            // What fails is not told in the statement's own words: it has the password.
            self.alone(&data, &change).await.map_err(|_| "its password can't be set".to_owned())?;
        }
        let file = data.join("pg_hba.conf");
        let written = fs::write(&file, settings::who_may_connect(self.password.is_some()));
        written.map_err(|error| format!("write {}: {error}", file.display()))
    }

    async fn make(&self) -> Result<(), String> {
        let new = self.new_folder().await?;
        let mut initdb = self.program("initdb", Signal::SIGKILL);
        initdb.arg("-D").arg(&new).arg(format!("--username={NAME}"));
        // Text is ordered by its bytes, so that all shards agree, and Pleat with them; letters are Unicode's.
        initdb.args(["--encoding=UTF8", "--locale=C.UTF-8", "--lc-collate=C", "--auth=trust", "--no-instructions"]);
        to_its_end(initdb, "", MAKING_MAX).await?;
        self.alone(&new, &format!("CREATE DATABASE {NAME}\n")).await?;
        self.becomes_data(&new)
    }

    /// A copy of a server that runs, for a standby of it. Its slot is there.
    async fn copy(&self, of: SocketAddr, is_here: bool) -> Result<(), String> {
        let new = self.new_folder().await?;
        if is_here {
            // Gone by its name at once, and never half there.
            let made_room = fs::remove_dir(&new).and_then(|()| fs::rename(self.data(), &new));
            made_room.map_err(|error| format!("rename {}: {error}", self.data().display()))?;
            self.new_folder().await?;
        }
        let mut backup = self.program("pg_basebackup", Signal::SIGKILL);
        backup.args(["-h", &of.ip().to_string(), "-p", &of.port().to_string(), "-U", NAME, "--no-password"]);
        backup.args(["-X", "stream", "-S", STANDBY, "-c", "fast", "-D"]).arg(&new);
        if let Some(password) = &self.password {
            backup.env("PGPASSWORD", password);
        }
        to_its_end(backup, "", COPYING_MAX).await?;
        let signal = new.join(STANDBY_FILE);
        fs::write(&signal, "").map_err(|error| format!("write {}: {error}", signal.display()))?;
        self.own(&signal)?;
        let synced = File::open(&new).and_then(|dir| dir.sync_all());
        synced.map_err(|error| format!("write {} to the disk: {error}", new.display()))?;
        self.becomes_data(&new)
    }

    /// An empty folder for data that is being made.
    async fn new_folder(&self) -> Result<PathBuf, String> {
        let new = self.config.dir.join("data.new");
        if new.exists() {
            leftover::end(&new, leftover::PATIENT).await?;
            fs::remove_dir_all(&new).map_err(|error| format!("remove {}: {error}", new.display()))?;
        }
        folder(&new, 0o700).map_err(|error| error.to_string())?;
        self.own(&new)?;
        Ok(new)
    }

    fn own(&self, path: &Path) -> Result<(), String> {
        self.programs.account.map_or(Ok(()), |account| account.own(path)).map_err(|error| error.to_string())
    }

    fn becomes_data(&self, new: &Path) -> Result<(), String> {
        fs::rename(new, self.data()).map_err(|error| format!("rename {}: {error}", new.display()))?;
        let synced = File::open(&self.config.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| format!("write {} to the disk: {error}", self.config.dir.display()))
    }

    /// One statement, in a server without connections.
    async fn alone(&self, data: &Path, statement: &str) -> Result<(), String> {
        let mut postgres = self.program("postgres", Signal::SIGKILL);
        postgres.args(["--single", "-c", "exit_on_error=on", "-c", "log_min_error_statement=panic", "-D"]);
        postgres.arg(data).arg("postgres");
        to_its_end(postgres, statement, MAKING_MAX).await
    }

    /// The server itself, not started yet.
    pub fn server(&self) -> Command {
        let mut postgres = self.program("postgres", Signal::SIGINT);
        postgres.arg("-D").arg(self.data());
        postgres.args(settings::arguments(self.config.size, self.port, self.socket.as_deref(), self.config.role));
        if let (Some(password), Role::Standby { .. }) = (&self.password, self.config.role) {
            // For its way to the primary.
            postgres.env("PGPASSWORD", password);
        }
        postgres.stdout(Stdio::null()).stderr(Stdio::piped());
        postgres
    }

    fn program(&self, name: &str, at_our_end: Signal) -> Command {
        self.programs.command(name, at_our_end)
    }
}

/// PostgreSQL's programs, and whom they run as.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
    account: Option<Account>,
}

impl Programs {
    /// Have a standby become a primary.
    pub async fn promote(&self, data: &Path) -> Result<(), String> {
        let mut promote = self.command("pg_ctl", Signal::SIGKILL);
        promote.args(["promote", "-w", "-t", &PROMOTING_MAX.as_secs().to_string(), "-D"]).arg(data);
        to_its_end(promote, "", PROMOTING_MAX + PROMOTING_MAX / 10).await
    }

    /// One of PostgreSQL's programs, as its account, with nothing of our environment. It gets `at_our_end` when the thread that starts
    /// it is gone.
    fn command(&self, name: &str, at_our_end: Signal) -> Command {
        let mut command = Command::new(self.folder.join(name));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("TZ", "UTC");
        // Ctrl-C in a terminal is for us, and we stop the server in order.
        command.stdin(Stdio::null()).current_dir("/").process_group(0);
        if let Some(account) = self.account {
            command.uid(account.uid).gid(account.gid);
        }
        let parent = nix::unistd::getpid();
        let before = move || {
            // After the change of the account, which would undo it.
            set_pdeathsig(at_our_end)?;
            // We may have died in between.
            match nix::unistd::getppid() == parent {
                true => Ok(()),
                false => Err(io::Error::from(Errno::ESRCH)),
            }
        };
        // SAFETY: it runs between fork and exec, and does nothing but two system calls.
        unsafe { command.pre_exec(before) };
        command
    }
}

/// Whether the data is a standby's.
pub fn is_standby(data: &Path) -> bool {
    data.join(STANDBY_FILE).exists()
}

pub fn programs_are_there(folder: &Path) -> Result<(), ProcessError> {
    match ["initdb", "postgres"].into_iter().find(|program| !folder.join(program).is_file()) {
        None => Ok(()),
        Some(program) => Err(ProcessError::Unfit(format!(
            "there is no program {program} in {}; install PostgreSQL 15 (Debian: apt-get install postgresql-15), or name its \
             folder (postgres.programs in the configuration)",
            folder.display()
        ))),
    }
}

/// Run a program with this input to its end, which must be a good one.
async fn to_its_end(mut command: Command, input: &str, within: Duration) -> Result<(), String> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let run = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends early tells why on its standard error.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = timeout(within, run).await.map_err(|_| format!("no end after {} s", within.as_secs()))?;
    let output = output.map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn folder(path: &Path, mode: u32) -> Result<(), ProcessError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(ProcessError::io("make", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(ProcessError::io("set the permissions of", path))
}

fn lock(dir: &Path) -> Result<Flock<File>, ProcessError> {
    let path = dir.join("pleat.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(ProcessError::io("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => ProcessError::InUse(dir.to_owned()),
        error => ProcessError::Io { what: "lock", path, error: error.into() },
    })
}

fn password(file: &Path) -> Result<String, ProcessError> {
    let text = fs::read_to_string(file).map_err(ProcessError::io("read the password in", file))?;
    let password = text.lines().next().unwrap_or_default();
    match password.len() {
        1..=PASSWORD_BYTES_MAX if !password.contains('\0') => Ok(password.to_owned()),
        _ => Err(ProcessError::Unfit(format!(
            "the first line of {} must be a password of 1 to {PASSWORD_BYTES_MAX} bytes",
            file.display()
        ))),
    }
}

/// The port that is given; else the one of the last time, if it is free; else another one, which is remembered.
fn port(config: &ProcessConfig) -> Result<u16, ProcessError> {
    if let Some(port) = config.port {
        return Ok(port);
    }
    let file = config.dir.join("port");
    let last: Option<u16> = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    if let Some(last) = last.filter(is_free) {
        return Ok(last);
    }
    // From a place of its own, so that servers that are made at the same time don't all try the same.
    let begin = config
        .dir
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(u16::from(*byte)));
    let begin = PORTS.start + begin % (PORTS.end - PORTS.start);
    let port = (begin..PORTS.end).chain(PORTS.start..begin).find(is_free);
    let port = port.ok_or_else(|| ProcessError::Unfit(format!("no port of {PORTS:?} is free; name another one")))?;
    fs::write(&file, format!("{port}\n")).map_err(ProcessError::io("write", &file))?;
    Ok(port)
}

fn socket(dir: &Path, port: u16, account: Option<Account>) -> Result<Option<PathBuf>, ProcessError> {
    let path = dir.join("socket");
    // The server splits the setting at commas.
    let odd = path.to_str().is_none_or(|path| path.contains([',', '"']));
    if odd || path.join(format!(".s.PGSQL.{port}")).as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Ok(None);
    }
    folder(&path, 0o700)?;
    account.map_or(Ok(()), |account| account.own(&path))?;
    Ok(Some(path))
}
