//! A node's place: a network namespace of its own, joined to the others by a bridge, and its process.
//!
//! ```text
//!   the test's thread and all that it starts      10.77.0.254
//!   ────────────────┬──────────────┬──────────────┬──────── bridge
//!          10.77.0.1│     10.77.0.2│     10.77.0.3│
//!                node-1         node-2         node-3
//! ```
//!
//! Nothing here has a name or outlives the test. A namespace belongs to a thread: the test's thread leaves the machine's
//! network for a new one, each place is a thread in yet another, and what a thread starts inherits where it is.
//! When the last of them ends, however it ends, the kernel removes namespaces, bridge, cables and rules.
//!
//! A node that is cut off still talks to clients: what is in doubt is what it tells them.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};
use parking_lot::Mutex;

pub const NODES: u16 = 3;
const PORT: u16 = 8080;
const INSTALL: &str =
    "install it (Debian: iproute2, nftables, libfaketime), or run `cargo xtask test` as root, which does";

/// Which direction is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Both,
    /// What the others send to the node.
    In,
    /// What the node sends to the others.
    Out,
}

/// One node.
pub struct Place {
    number: u16,
    dir: PathBuf,
    config: PathBuf,
    /// Work for the thread that is in the namespace.
    work: mpsc::Sender<Work>,
    process: Mutex<Option<Child>>,
}

type Work = Box<dyn FnOnce() + Send>;

pub fn url(node: u16) -> String {
    format!("http://{}", address(node))
}

fn address(node: u16) -> String {
    format!("{}:{PORT}", ip(node))
}

fn ip(node: u16) -> String {
    format!("10.77.0.{node}")
}

/// Take this thread, and what it starts from now on, to a network of its own with a bridge in it.
pub fn leave_the_machines_network() {
    for program in ["ip", "nft"] {
        let there = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(there.is_ok(), "this test needs the program {program}; {INSTALL}");
    }
    faketime();
    enter_new_namespace();
    ip_tool(&["link", "set", "lo", "up"]);
    ip_tool(&["link", "add", "bridge", "type", "bridge"]);
    ip_tool(&["addr", "add", "10.77.0.254/24", "dev", "bridge"]);
    ip_tool(&["link", "set", "bridge", "up"]);
}

fn enter_new_namespace() {
    let entered = unshare(CloneFlags::CLONE_NEWNET);
    entered.unwrap_or_else(|error| {
        panic!("this test makes network namespaces, which the kernel refuses ({error}); run it as root on Linux")
    });
}

fn ip_tool(words: &[&str]) {
    run(Command::new("ip").args(words), "");
}

fn run(command: &mut Command, input: &str) {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "{command:?} ended with {status}");
}

/// The library that shows a process another time of day.
fn faketime() -> PathBuf {
    let triples = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut found = triples.map(|triple| triple.path().join("faketime/libfaketimeMT.so.1"));
    found.find(|path| path.exists()).unwrap_or_else(|| panic!("this test needs libfaketimeMT.so.1; {INSTALL}"))
}

impl Place {
    /// A place on the bridge of this thread's network, with nothing in it yet.
    pub fn make(number: u16, data: &Path, config: PathBuf) -> Self {
        let (work, todo) = mpsc::channel::<Work>();
        let (told, here) = (mpsc::channel(), gettid().to_string());
        let dir = data.join(format!("node-{number}"));
        std::fs::create_dir_all(&dir).unwrap();
        std::thread::spawn(move || {
            enter_new_namespace();
            ip_tool(&["link", "set", "lo", "up"]);
            let cable = format!("node-{number}");
            ip_tool(&["link", "add", "eth0", "type", "veth", "peer", "name", &cable, "netns", &here]);
            ip_tool(&["addr", "add", &format!("{}/24", ip(number)), "dev", "eth0"]);
            ip_tool(&["link", "set", "eth0", "up"]);
            told.0.send(()).unwrap();
            todo.into_iter().for_each(|work| work());
        });
        told.1.recv().expect("the place was made");
        ip_tool(&["link", "set", &format!("node-{number}"), "master", "bridge", "up"]);
        let place = Self { number, dir, config, work, process: Mutex::new(None) };
        place.set_clock(0);
        place
    }

    /// Do something in this place's namespace.
    fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.work.send(Box::new(move || done.send(work()).unwrap_or(()))).expect("the place is there");
        result.recv().expect("it is done")
    }

    pub fn start(&self) {
        let log = File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let founders: Vec<String> = (1..=NODES).map(|node| format!("{node}={}", address(node))).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pleat"));
        command
            // It ends when this process does: its standard input ends then.
            .args(["node", "--supervised", "--insecure", "--cluster-id", "faults"])
            .args(["--id", &self.number.to_string(), "--listen", &address(self.number)])
            .args(["--founders", &founders.join(",")])
            .arg("--data-dir")
            .arg(&self.dir)
            .arg("--config")
            .arg(&self.config)
            .env("LD_PRELOAD", faketime())
            .env("FAKETIME_TIMESTAMP_FILE", self.clock())
            .env("FAKETIME_CACHE_DURATION", "1")
            // Under both names that the library has had for it: what measures durations goes right.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        *self.process.lock() = Some(self.within(move || command.spawn()).unwrap());
    }

    /// kill -9.
    pub fn kill(&self) {
        if let Some(mut process) = self.process.lock().take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Whether its process ended by itself, and how.
    pub fn ended(&self) -> Option<String> {
        let status = self.process.lock().as_mut()?.try_wait().unwrap()?;
        Some(format!("node-{} ended with {status}", self.number))
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(process) = self.process.lock().as_ref() {
            kill(Pid::from_raw(process.id() as i32), signal).unwrap();
        }
    }

    /// Drop what goes between this node and the others.
    pub fn cut(&self, way: Way) {
        let others: Vec<String> = (1..=NODES).filter(|node| *node != self.number).map(ip).collect();
        let others = others.join(", ");
        let mut rules = "table ip cut {\n".to_owned();
        if way != Way::Out {
            rules += &format!("chain in {{ type filter hook input priority 0; ip saddr {{ {others} }} drop; }}\n");
        }
        if way != Way::In {
            rules += &format!("chain out {{ type filter hook output priority 0; ip daddr {{ {others} }} drop; }}\n");
        }
        rules += "}\n";
        self.within(move || run(Command::new("nft").args(["-f", "-"]), &rules));
    }

    /// Let it through again.
    pub fn join(&self) {
        self.within(|| run(Command::new("nft").args(["delete", "table", "ip", "cut"]), ""));
    }

    /// Set the node's clock so many hours ahead, while it runs. It shows within a second.
    pub fn set_clock(&self, hours: i32) {
        // As one whole: the node may look at any time.
        let fresh = self.dir.with_extension("clock.new");
        std::fs::write(&fresh, format!("{hours:+}h\n")).unwrap();
        std::fs::rename(fresh, self.clock()).unwrap();
    }

    /// Beside the node's directory, in which nothing may stand that is not its own.
    fn clock(&self) -> PathBuf {
        self.dir.with_extension("clock")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.lock().take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// For how long a clock that was set may not show.
pub const CLOCK_SHOWS_WITHIN: Duration = Duration::from_secs(2);
