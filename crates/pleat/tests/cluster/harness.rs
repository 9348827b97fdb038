//! Starting a cluster, asking it, killing parts of it, and cleaning up.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// The longest that anything is waited for. Generous: the machine may be busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What a cluster is started with.
pub struct Options {
    pub nodes: u16,
    pub shards: u16,
    /// The configuration, as JSON.
    pub config: Value,
    /// The size of a disk that each node gets for itself, in MiB; without it they share the machine's.
    pub disk_mib: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        // Nothing scales by itself unless a test wants it: a busy machine would decide otherwise.
        Self { nodes: 3, shards: 1, config: json!({ "scaling_mode": "manual" }), disk_mib: None }
    }
}

/// A running cluster. Dropping it ends its processes and removes its files.
pub struct Cluster {
    supervisor: Option<Child>,
    options: Options,
    ports: Option<Ports>,
    /// Where the nodes answer.
    urls: Vec<String>,
    pub dir: tempfile::TempDir,
    pub http: reqwest::Client,
}

/// An answer that is an error.
#[derive(Debug)]
pub struct Refused {
    /// 0 when there was no answer at all.
    pub status: u16,
    pub body: Value,
}

impl Refused {
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or("")
    }

    pub fn retryable(&self) -> bool {
        self.status == 0 || self.body["retryable"] == true
    }
}

impl Cluster {
    pub async fn start(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let http = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        let ports = Ports::claim();
        let urls = (1..=options.nodes).map(|node| format!("http://127.0.0.1:{}", ports.http(node))).collect();
        let mut cluster = Self { supervisor: None, ports: Some(ports), urls, options, dir, http };
        if cluster.has_servers() {
            // They run as another user when we are root.
            std::fs::set_permissions(cluster.dir.path(), Permissions::from_mode(0o755)).unwrap();
        }
        cluster.start_again().await;
        cluster
    }

    /// One whose processes somebody else starts and ends. Their directories are in `data` of `dir`.
    pub fn over(urls: Vec<String>, dir: tempfile::TempDir) -> Self {
        let http = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        let options = Options { nodes: urls.len() as u16, ..Options::default() };
        Self { supervisor: None, ports: None, urls, options, dir, http }
    }

    fn ports(&self) -> &Ports {
        self.ports.as_ref().expect("the processes are this cluster's own")
    }

    /// Start (again) on the same directory and ports.
    pub async fn start_again(&mut self) {
        self.launch();
        self.wait_healthy().await;
    }

    /// The same without waiting.
    pub fn launch(&mut self) {
        assert!(self.supervisor.is_none(), "it runs");
        let config = self.dir.path().join("config.json");
        std::fs::write(&config, self.options.config.to_string()).unwrap();
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let child = self
            .program()
            .arg("up")
            .args(["--nodes", &self.options.nodes.to_string(), "--shards", &self.options.shards.to_string()])
            .args(["--listen", &format!("127.0.0.1:{}", self.ports().http(1))])
            .args(["--coordinator", &format!("127.0.0.1:{}", self.ports().coordinator(1))])
            .args(["--pg-listen", &format!("127.0.0.1:{}", self.ports().postgresql(1))])
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.supervisor = Some(child);
    }

    /// `pleat`, in a mount namespace of its own if nodes have disks of their own.
    fn program(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_pleat");
        let Some(size) = self.options.disk_mib else { return Command::new(program) };
        let nodes = (1..=self.options.nodes).map(|node| self.data_dir().join(format!("node-{node}")));
        let mounts = nodes.map(|dir| {
            std::fs::create_dir_all(&dir).unwrap();
            format!("mount -t tmpfs -o size={size}m tmpfs '{}' && ", dir.display())
        });
        let mut command = Command::new("unshare");
        if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
            command.arg("--map-root-user");
        }
        // The processes end with the namespace's last one, and the disks with the namespace.
        let script = mounts.collect::<String>() + "exec \"$0\" \"$@\"";
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script, program]);
        command
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// What the supervisor printed.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("up.log")
    }

    pub fn url(&self, node: u16) -> String {
        self.urls[usize::from(node) - 1].clone()
    }

    pub fn urls(&self) -> Vec<String> {
        self.urls.clone()
    }

    pub fn coordinator_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports().coordinator(1))
    }

    /// Where a node serves PostgreSQL clients.
    pub fn pg_port(&self, node: u16) -> u16 {
        self.ports().postgresql(node)
    }

    /// Until every node answers and every shard has a leader.
    pub async fn wait_healthy(&mut self) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.supervisor.as_mut().and_then(|child| child.try_wait().unwrap()) {
                let needs = match self.options.disk_mib {
                    Some(_) => {
                        "\n(disks of their own need mount namespaces: be root with CAP_SYS_ADMIN, or allow user namespaces)"
                    }
                    None => "",
                };
                panic!("`pleat up` ended with {status}{needs}\n{}", self.tail());
            }
            let mut healthy = 0;
            for node in 1..=self.options.nodes {
                let answer = self.http.get(format!("{}/health", self.url(node))).send().await;
                healthy += u16::from(answer.is_ok_and(|answer| answer.status().is_success()));
            }
            if healthy == self.options.nodes && self.shards_healthy().await {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "the cluster did not get healthy\n{}", self.tail());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn shards_healthy(&self) -> bool {
        let Ok(shards) = self.try_get("/shards").await else { return false };
        let shards = shards.as_array().cloned().unwrap_or_default();
        // Servers are not measured yet.
        let (key, value) = if self.has_servers() { ("state", "active") } else { ("status", "healthy") };
        shards.len() >= usize::from(self.options.shards) && shards.iter().all(|shard| shard[key] == value)
    }

    /// Whether the shards are PostgreSQL servers.
    fn has_servers(&self) -> bool {
        self.options.config["engine"] == "postgres"
    }

    /// The end of what the cluster printed, for a test that fails.
    pub fn tail(&self) -> String {
        let mut text = last_lines(&self.log(), 40);
        for node in 1..=self.options.nodes {
            let log = self.node_dir(node).join("log");
            text += &format!("--- node-{node}\n{}", last_lines(&log, 25));
        }
        text
    }

    pub async fn try_get(&self, path: &str) -> Result<Value, Refused> {
        answer(self.http.get(format!("{}{path}", self.url(1))).send().await).await
    }

    pub async fn get(&self, path: &str) -> Value {
        self.try_get(path).await.unwrap_or_else(|refused| panic!("GET {path}: {refused:?}\n{}", self.tail()))
    }

    pub async fn post(&self, node: u16, path: &str, body: &Value) -> Result<Value, Refused> {
        answer(self.http.post(format!("{}{path}", self.url(node))).json(body).send().await).await
    }

    /// One statement on node 1.
    pub async fn try_query(&self, query: &str) -> Result<Value, Refused> {
        self.post(1, "/query", &json!({ "query": query })).await
    }

    pub async fn query(&self, query: &str) -> Value {
        let answer = self.try_query(query).await;
        answer.unwrap_or_else(|refused| panic!("{query}: {refused:?}\n{}", self.tail()))
    }

    /// The rows of a query, each as its values in the order of the columns.
    pub async fn rows(&self, query: &str) -> Vec<Vec<Value>> {
        let answer = self.http.post(format!("{}/query", self.url(1))).header("accept", "application/x-ndjson");
        let answer = answer.json(&json!({ "query": query })).send().await.unwrap();
        let text = answer.text().await.unwrap();
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let last = lines.pop().unwrap();
        assert!(last.get("rows").is_some(), "{query}: {last}");
        lines.drain(..1);
        lines.into_iter().map(|line| line.as_array().unwrap().clone()).collect()
    }

    /// A write with the retry that the guide recommends: the same body and key, another node each time, a pause
    /// that grows, as long as the error says that it is retryable. The second value counts the tries.
    pub async fn write(&self, node: u16, query: &str, key: &str) -> (Value, u32) {
        let body = json!({ "query": query, "idempotency_key": key });
        let begun = Instant::now();
        let mut tries = 0;
        loop {
            let at = (node - 1 + tries as u16) % self.options.nodes + 1;
            tries += 1;
            match self.post(at, "/query", &body).await {
                Ok(answer) => return (answer, tries),
                Err(refused) => {
                    assert!(refused.retryable(), "{query}: {refused:?}\n{}", self.tail());
                    assert!(begun.elapsed() < PATIENCE, "{query}: {refused:?}\n{}", self.tail());
                }
            }
            tokio::time::sleep(Duration::from_millis(20 << tries.min(5))).await;
        }
    }

    /// Until `GET path` satisfies `done`.
    pub async fn wait_for(&self, path: &str, what: &str, done: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let found = self.try_get(path).await;
            match &found {
                Ok(found) if done(found) => return found.clone(),
                _ => assert!(begun.elapsed() < PATIENCE, "waited for {what}; last: {found:?}\n{}", self.tail()),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Until the measured shards, each of them, are as `right` says. (What is measured is up to a second old.)
    pub async fn wait_for_each_shard(&self, what: &str, right: impl Fn(&Value) -> bool) -> Value {
        let all = |shards: &Value| shards.as_array().is_some_and(|shards| shards.iter().all(&right));
        self.wait_for("/shards", what, all).await
    }

    /// Until the rows of all shards are `total` in all.
    pub async fn wait_for_rows(&self, total: i64) -> Value {
        let rows = |shard: &Value| shard["total_entries"].as_i64().unwrap_or(-1);
        let right =
            |shards: &Value| shards.as_array().is_some_and(|shards| shards.iter().map(rows).sum::<i64>() == total);
        self.wait_for("/shards", &format!("{total} rows in all shards"), right).await
    }

    /// Until `count` shards are active and nothing is going on.
    pub async fn wait_for_shards(&self, count: usize) -> Value {
        let active = |shards: &Value| {
            let healthy = |shard: &&Value| shard["state"] == "active" && shard["status"] == "healthy";
            shards.as_array().is_some_and(|shards| shards.iter().filter(healthy).count() == count)
        };
        self.wait_for("/shards", &format!("{count} shards"), active).await;
        self.wait_until_calm().await;
        self.get("/shards").await
    }

    /// Until no operation is open.
    pub async fn wait_until_calm(&self) {
        let calm = |operations: &Value| operations["operations"].as_array().is_some_and(Vec::is_empty);
        self.wait_for("/operations?phase=pending,progressing", "operations to end", calm).await;
    }

    /// Until a node answers that it is well.
    pub async fn wait_for_node(&self, node: u16) {
        let (begun, health) = (Instant::now(), format!("{}/health", self.url(node)));
        while !self.http.get(&health).send().await.is_ok_and(|answer| answer.status().is_success()) {
            assert!(begun.elapsed() < PATIENCE, "node-{node} does not come back\n{}", self.tail());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Tell a node's process where it is to die: `name=abort`, or `name=off`.
    pub async fn fail_at(&self, node: u16, failpoint: &str) {
        let told = self.http.put(format!("{}/failpoints", self.url(node))).body(failpoint.to_owned()).send().await;
        assert!(told.as_ref().is_ok_and(|told| told.status().is_success()), "{failpoint}: {told:?}\n{}", self.tail());
    }

    /// The number of the node that leads the shard, or the control group (`None`).
    pub async fn leader(&self, shard: Option<&str>) -> u16 {
        let begun = Instant::now();
        loop {
            for node in 1..=self.options.nodes {
                let path = if shard.is_some() { "/shards" } else { "/cluster/status" };
                let found = answer(self.http.get(format!("{}{path}", self.url(node))).send().await).await;
                let Ok(found) = found else { continue };
                let name = match shard {
                    None => found["control"]["leader"].as_str().map(str::to_owned),
                    Some(id) => (found.as_array().into_iter().flatten())
                        .find(|shard| shard["shard_id"] == id)
                        .and_then(|shard| shard["node"].as_str().map(str::to_owned)),
                };
                if let Some(number) = name.and_then(|name| name.strip_prefix("node-").and_then(|n| n.parse().ok())) {
                    return number;
                }
            }
            assert!(begun.elapsed() < PATIENCE, "nobody leads {shard:?}\n{}", self.tail());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// kill -9 of one node. Its supervisor starts it again.
    pub fn kill_node(&self, node: u16) {
        let pid = self.pid_of(node).unwrap_or_else(|| panic!("node-{node} does not run\n{}", self.tail()));
        kill(pid, Signal::SIGKILL).unwrap();
    }

    /// kill -9 of one node, which stays down until [`Cluster::release`].
    pub fn hold_down(&self, node: u16) {
        self.pause_supervisor();
        self.kill_node(node);
        // Its locks go with it.
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.ports().http(node))).is_ok() {
            assert!(begun.elapsed() < PATIENCE, "node-{node} does not die");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Nothing that ends is started again until [`Cluster::release`].
    pub fn pause_supervisor(&self) {
        self.signal_supervisor(Signal::SIGSTOP);
    }

    /// The supervisor starts again what was held down.
    pub fn release(&self) {
        self.signal_supervisor(Signal::SIGCONT);
    }

    /// What happens when a node's disk is lost. Its own printed log is kept.
    pub fn wipe(&self, node: u16) {
        for entry in std::fs::read_dir(self.node_dir(node)).unwrap() {
            let path = entry.unwrap().path();
            match path.file_name().unwrap().to_str().unwrap() {
                "log" | "log.1" => {}
                _ if path.is_dir() => std::fs::remove_dir_all(path).unwrap(),
                _ => std::fs::remove_file(path).unwrap(),
            }
        }
    }

    pub fn node_dir(&self, node: u16) -> PathBuf {
        let dir = self.data_dir().join(format!("node-{node}"));
        match (&self.supervisor, self.options.disk_mib) {
            // As the processes see it.
            (Some(supervisor), Some(_)) => {
                let root = PathBuf::from(format!("/proc/{}/root", supervisor.id()));
                root.join(dir.strip_prefix("/").unwrap_or(&dir))
            }
            _ => dir,
        }
    }

    fn signal_supervisor(&self, signal: Signal) {
        let supervisor = self.supervisor.as_ref().expect("it runs");
        kill(Pid::from_raw(supervisor.id() as i32), signal).unwrap();
    }

    pub fn pid_of(&self, node: u16) -> Option<Pid> {
        let supervisor = self.supervisor.as_ref()?.id();
        let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).ok()?;
        // Children are listed by the thread that started them.
        let mut pids: Vec<i32> = children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        for task in std::fs::read_dir(format!("/proc/{supervisor}/task")).ok()?.flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        let is_node = |pid: &i32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
            words.windows(2).any(|pair| pair[0] == b"--id" && pair[1] == node.to_string().as_bytes())
        };
        pids.into_iter().find(is_node).map(Pid::from_raw)
    }

    /// kill -9 of everything at once: the supervisor and all nodes.
    pub fn kill_all(&mut self) {
        let nodes: Vec<Pid> = (1..=self.options.nodes).filter_map(|node| self.pid_of(node)).collect();
        if let Some(mut supervisor) = self.supervisor.take() {
            supervisor.kill().unwrap();
            supervisor.wait().unwrap();
        }
        for pid in &nodes {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        let begun = Instant::now();
        while nodes.iter().any(|pid| kill(*pid, None).is_ok()) {
            assert!(begun.elapsed() < PATIENCE, "a killed node does not go away");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What Ctrl-C does. True when it ended well by itself.
    pub fn stop(&mut self) -> bool {
        let Some(mut supervisor) = self.supervisor.take() else { return true };
        // A test that failed may have left it stopped.
        let _ = kill(Pid::from_raw(supervisor.id() as i32), Signal::SIGCONT);
        let _ = kill(Pid::from_raw(supervisor.id() as i32), Signal::SIGINT);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(30) {
            if let Some(status) = supervisor.try_wait().unwrap() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = supervisor.kill();
        let _ = supervisor.wait();
        false
    }

    /// The `pleat` command against this cluster: its exit code, standard output and standard error.
    pub fn cli(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_pleat"))
            .args(arguments)
            .env("PLEAT_URL", self.url(1))
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
        self.stop();
    }
}

pub async fn answer(sent: Result<reqwest::Response, reqwest::Error>) -> Result<Value, Refused> {
    let lost = |error: reqwest::Error| Refused { status: 0, body: json!({ "error": error.to_string() }) };
    let response = sent.map_err(lost)?;
    let status = response.status();
    let text = response.text().await.map_err(lost)?;
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    if status.is_success() { Ok(body) } else { Err(Refused { status: status.as_u16(), body }) }
}

fn last_lines(file: &Path, count: usize) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let mut tail = lines[lines.len().saturating_sub(count)..].join("\n");
    tail.push('\n');
    tail
}

/// Ports below the ephemeral range that no other test uses, held by a lock for as long as this lives.
pub struct Ports {
    base: u16,
    _lock: File,
}

impl Ports {
    const BLOCK: u16 = 24;

    pub fn claim() -> Self {
        let dir = std::env::temp_dir().join("pleat-test-ports");
        std::fs::create_dir_all(&dir).unwrap();
        let first = 12_000 + (std::process::id() % 600) as u16 * Self::BLOCK;
        for step in 0..1_000u16 {
            let base = 12_000 + (first - 12_000 + step * Self::BLOCK) % 19_200;
            let lock = File::options().create(true).truncate(false).write(true).open(dir.join(base.to_string()));
            let lock = lock.unwrap();
            let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
            if lock.try_lock().is_ok() && (base..base + Self::BLOCK).all(free) {
                return Self { base, _lock: lock };
            }
        }
        panic!("no block of free ports was found below 32768");
    }

    pub fn http(&self, node: u16) -> u16 {
        self.base + node - 1
    }

    pub fn coordinator(&self, node: u16) -> u16 {
        self.base + Self::BLOCK / 3 + node - 1
    }

    pub fn postgresql(&self, node: u16) -> u16 {
        self.base + 2 * Self::BLOCK / 3 + node - 1
    }
}

/// How often each id is in the table, by its first column.
pub fn counted(rows: Vec<Vec<Value>>) -> BTreeMap<i64, u32> {
    let mut counts = BTreeMap::new();
    for row in rows {
        *counts.entry(row[0].as_i64().unwrap()).or_insert(0) += 1;
    }
    counts
}
