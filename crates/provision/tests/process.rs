//! Real PostgreSQL servers under supervision: what stays, what comes back, and what ends with what.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use pleat_provision::process::{
    NAME, PROGRAMS, ProcessConfig, ProcessError, Role, Server, Size, State, fence, unfence,
};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

const LONG: Duration = Duration::from_secs(60);

/// A folder that the server's account can pass.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    dir
}

fn config(dir: &Path) -> ProcessConfig {
    let size = Size { memory_mib: 128, connections: 20 };
    ProcessConfig {
        dir: dir.join("shard"),
        programs: PathBuf::from(PROGRAMS),
        port: None,
        size,
        password_file: None,
        role: Role::Primary { make: true },
    }
}

async fn start(dir: &Path) -> Server {
    Server::start(config(dir)).await.unwrap()
}

/// Ask a server, as PostgreSQL's own shell does. `Err` is what it complains of.
fn ask_at(host: &str, port: u16, password: Option<&str>, sql: &str) -> Result<String, String> {
    let mut psql = Command::new("psql");
    psql.args(["-X", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-U", NAME, "-d", NAME, "-h", host, "-c", sql]);
    psql.arg("-p").arg(port.to_string()).env_remove("PGPASSWORD");
    if let Some(password) = password {
        psql.env("PGPASSWORD", password);
    }
    let output = psql.output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn ask(server: &Server, sql: &str) -> Result<String, String> {
    ask_at("127.0.0.1", server.address().port(), None, sql)
}

fn pid_of(server: &Server) -> i32 {
    match *server.state().borrow() {
        State::Ready { pid } => i32::try_from(pid).unwrap(),
        ref state => panic!("{state:?}"),
    }
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Processes that work in a server's data, by the directory that they are in.
fn processes(dir: &Path) -> Vec<i32> {
    let data = dir.join("shard/data");
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)).collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn a_server_is_made_and_its_data_stays() {
    let dir = folder();
    let server = start(dir.path()).await;
    let address = server.address();
    ask(&server, "CREATE TABLE t (a text); INSERT INTO t VALUES ('b'), ('Z'), ('é')").unwrap();
    let socket = server.socket().unwrap().to_str().unwrap();
    assert_eq!(ask_at(socket, address.port(), None, "SELECT count(*) FROM t").unwrap(), "3");
    for (setting, value) in [
        ("wal_level", "logical"),
        ("max_connections", "20"),
        ("max_prepared_transactions", "20"),
        ("max_replication_slots", "16"),
        ("shared_buffers", "32MB"),
        ("fsync", "on"),
        ("server_encoding", "UTF8"),
        ("TimeZone", "UTC"),
    ] {
        assert_eq!(ask(&server, &format!("SHOW {setting}")).unwrap(), value, "{setting}");
    }
    // By bytes, and with Unicode's letters.
    assert_eq!(ask(&server, "SELECT string_agg(upper(a), '' ORDER BY a) FROM t").unwrap(), "ZBÉ");
    if geteuid().is_root() {
        use std::os::unix::fs::MetadataExt;
        assert_ne!(fs::metadata(format!("/proc/{}", pid_of(&server))).unwrap().uid(), 0);
    }
    server.stop().await;
    assert!(processes(dir.path()).is_empty());

    let again = start(dir.path()).await;
    assert_eq!(again.address(), address, "it listens where it did");
    assert_eq!(ask(&again, "SELECT count(*) FROM t").unwrap(), "3");
    again.stop().await;
}

#[tokio::test]
async fn a_killed_server_comes_back_with_what_was_committed() {
    let dir = folder();
    let server = start(dir.path()).await;
    ask(&server, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)").unwrap();
    // A process that is busy would outlive the first one, and hold the memory that the next server needs.
    let port = server.address().port().to_string();
    let mut busy = Command::new("psql");
    busy.args(["-X", "-h", "127.0.0.1", "-p", &port, "-U", NAME, "-d", NAME, "-c"]);
    busy.arg("SELECT count(*) FROM generate_series(1, 10000000000)").stdout(Stdio::null()).stderr(Stdio::null());
    let mut busy = busy.spawn().unwrap();
    until("the query runs", || {
        ask(
            &server,
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%generate_series(1%' AND state = 'active'",
        )
        .is_ok_and(|count| count == "2")
    })
    .await;

    for _ in 0..2 {
        let killed = pid_of(&server);
        let mut state = server.state();
        signal(killed, Signal::SIGKILL);
        let back = |state: &State| matches!(state, State::Ready { pid } if i32::try_from(*pid) != Ok(killed));
        timeout(LONG, state.wait_for(back)).await.unwrap().unwrap();
        assert_eq!(ask(&server, "SELECT count(*) FROM t").unwrap(), "1");
    }
    busy.wait().unwrap();
    server.stop().await;
    assert!(processes(dir.path()).is_empty());
}

/// Not a test by itself: the process that another test kills.
#[tokio::test]
#[ignore = "another test starts it"]
async fn supervise_until_killed() {
    let Some(dir) = std::env::var_os("PLEAT_TEST_DIR") else { return };
    let _server = start(Path::new(&dir)).await;
    std::future::pending().await
}

fn supervisor(dir: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--ignored", "--exact", "supervise_until_killed"]).env("PLEAT_TEST_DIR", dir);
    child.stdout(Stdio::null()).spawn().unwrap()
}

fn is_ready(dir: &Path) -> bool {
    let said = fs::read_to_string(dir.join("shard/data/postmaster.pid"));
    said.is_ok_and(|text| text.lines().nth(7).is_some_and(|status| status.trim() == "ready"))
}

#[tokio::test]
async fn a_server_ends_with_the_process_that_supervises_it() {
    let dir = folder();
    let mut supervisor = supervisor(dir.path());
    until("it is ready", || is_ready(dir.path())).await;
    let refused = Server::start(config(dir.path())).await.unwrap_err();
    assert!(matches!(refused, ProcessError::InUse(_)), "{refused}");
    let port = fs::read_to_string(dir.path().join("shard/port")).unwrap().trim().parse().unwrap();
    ask_at("127.0.0.1", port, None, "CREATE TABLE t (a int)").unwrap();

    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    until("the server is gone", || processes(dir.path()).is_empty()).await;
    let server = start(dir.path()).await;
    assert_eq!(ask(&server, "SELECT count(*) FROM t").unwrap(), "0");
    server.stop().await;
}

#[tokio::test]
async fn a_supervisor_that_was_killed_while_it_made_the_data_leaves_nothing_half() {
    let dir = folder();
    let mut supervisor = supervisor(dir.path());
    let new = dir.path().join("shard/data.new/base");
    until("the data is being made", || new.exists()).await;
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    assert!(!dir.path().join("shard/data").exists());
    let server = start(dir.path()).await;
    assert_eq!(ask(&server, "SELECT 1").unwrap(), "1");
    assert!(!new.exists());
    server.stop().await;
}

/// A command that runs as the server's account.
fn as_account(program: &str) -> Command {
    let mut command = Command::new(program);
    if geteuid().is_root() {
        let user = User::from_name("postgres").unwrap().unwrap();
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[tokio::test]
async fn an_earlier_server_that_still_runs_is_ended_and_no_other_process() {
    let dir = folder();
    start(dir.path()).await.stop().await;
    let data = dir.path().join("shard/data");
    // As if a supervisor's end had not reached it.
    let port = fs::read_to_string(dir.path().join("shard/port")).unwrap();
    let mut earlier = as_account(&format!("{PROGRAMS}/postgres"));
    let earlier = earlier.arg("-D").arg(&data).args(["-c", "unix_socket_directories=", "-c"]);
    let mut earlier = earlier.arg(format!("port={}", port.trim())).spawn().unwrap();
    until("it is ready", || is_ready(dir.path())).await;
    let server = start(dir.path()).await;
    assert!(earlier.wait().unwrap().success(), "it was shut down in order");
    assert_eq!(ask(&server, "SELECT 1").unwrap(), "1");
    server.stop().await;

    // Its id was given to another process since.
    let mut other = as_account("sleep").arg("600").spawn().unwrap();
    fs::write(data.join("postmaster.pid"), format!("{}\n{}\n", other.id(), data.display())).unwrap();
    let server = start(dir.path()).await;
    assert_eq!(other.try_wait().unwrap(), None, "it is left alone");
    server.stop().await;
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn a_password_is_asked_for_when_one_is_set() {
    let dir = folder();
    let file = dir.path().join("password");
    let with = |password: &str| {
        fs::write(&file, format!("{password}\n")).unwrap();
        ProcessConfig { password_file: Some(file.clone()), ..config(dir.path()) }
    };
    let asked = |server: &Server, password| ask_at("127.0.0.1", server.address().port(), password, "SELECT 1");
    let first = Server::start(with("it's \\ one")).await.unwrap();
    assert_eq!(asked(&first, Some("it's \\ one")).unwrap(), "1");
    assert!(asked(&first, Some("its one")).unwrap_err().contains("password authentication failed"));
    assert!(asked(&first, None).unwrap_err().contains("no password supplied"));
    let socket = first.socket().unwrap().to_str().unwrap();
    assert!(ask_at(socket, first.address().port(), None, "SELECT 1").is_err());
    first.stop().await;

    let second = Server::start(with("another")).await.unwrap();
    assert!(asked(&second, Some("it's \\ one")).is_err());
    assert_eq!(asked(&second, Some("another")).unwrap(), "1");
    second.stop().await;

    let none = Server::start(with("")).await.unwrap_err();
    assert!(none.to_string().contains("must be a password"), "{none}");
}

#[tokio::test]
async fn what_can_not_be_is_told_with_what_to_do() {
    let dir = folder();
    let unfit = |error: ProcessError| match error {
        ProcessError::Unfit(why) => why,
        other => panic!("{other}"),
    };
    let nowhere = ProcessConfig { programs: dir.path().to_owned(), ..config(dir.path()) };
    assert!(unfit(Server::start(nowhere).await.unwrap_err()).contains("apt-get install postgresql-15"));
    let tiny = ProcessConfig { size: Size { memory_mib: 1, connections: 20 }, ..config(dir.path()) };
    assert!(unfit(Server::start(tiny).await.unwrap_err()).contains("128 MiB"));
    if geteuid().is_root() {
        fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        let closed = unfit(Server::start(config(dir.path())).await.unwrap_err());
        assert!(closed.contains("is closed to it"), "{closed}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_start_is_given_up_with_its_last_words() {
    let dir = folder();
    start(dir.path()).await.stop().await;
    fs::remove_file(dir.path().join("shard/data/global/pg_control")).unwrap();
    let error = timeout(Duration::from_secs(120), Server::start(config(dir.path()))).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("8 times in a row") && error.to_string().contains("pg_control"), "{error}");
    assert!(processes(dir.path()).is_empty());
}

fn standby_of(primary: &Server, dir: &Path) -> ProcessConfig {
    ProcessConfig { role: Role::Standby { of: primary.address(), anew: false }, ..config(dir) }
}

#[tokio::test]
async fn a_standby_follows_is_promoted_and_the_fenced_one_does_not_come_back() {
    let (one, two) = (folder(), folder());
    let primary = Server::start(config(one.path())).await.unwrap();
    ask(&primary, "SELECT pg_create_physical_replication_slot('pleat_standby', true)").unwrap();
    let standby = Server::start(standby_of(&primary, two.path())).await.unwrap();
    ask(&primary, "CREATE TABLE t (i int); INSERT INTO t VALUES (1), (2)").unwrap();
    let behind = "SELECT coalesce(min(flush_lsn) < pg_current_wal_lsn(), true) FROM pg_stat_replication";
    while ask(&primary, behind).unwrap() != "f" {
        sleep(Duration::from_millis(50)).await;
    }
    // Its supervisor is there, and would start it again.
    let shard = one.path().join("shard");
    fence(&shard, 3, 7).await.unwrap();
    fence(&shard, 3, 7).await.unwrap();
    assert!(shard.join("data.fenced-3-7").exists());
    standby.promote().await.unwrap();
    standby.promote().await.unwrap();
    ask(&standby, "INSERT INTO t VALUES (3)").unwrap();
    assert_eq!(ask(&standby, "SELECT count(*) FROM t").unwrap(), "3");
    sleep(Duration::from_secs(1)).await;
    assert!(std::net::TcpStream::connect(primary.address()).is_err());
    primary.stop().await;
    let again = ProcessConfig { role: Role::Primary { make: false }, ..config(one.path()) };
    assert!(Server::start(again.clone()).await.unwrap_err().to_string().contains("its data is gone"));
    // Another operation's fence takes over what an earlier one has, so that one can't be taken back any more.
    fence(&shard, 3, 9).await.unwrap();
    assert!(!unfence(&shard, 3, 7).unwrap());
    assert!(unfence(&shard, 3, 9).unwrap());
    // Who comes late for an operation that has ended takes nothing away.
    for number in [7, 9] {
        assert!(fence(&shard, 3, number).await.unwrap_err().contains("was fenced for this operation before"));
    }
    // Nor does another reign bring back what an earlier one has left.
    fence(&shard, 3, 11).await.unwrap();
    fence(&shard, 4, 12).await.unwrap();
    assert!(!unfence(&shard, 4, 12).unwrap());
    assert!(unfence(&shard, 3, 11).unwrap());
    let back = Server::start(again).await.unwrap();
    assert_eq!(ask(&back, "SELECT count(*) FROM t").unwrap(), "2");
    back.stop().await;
    standby.stop().await;
}
