//! Partitions that change PostgreSQL servers while clients write to them.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Cluster, Options, PATIENCE};

/// Writers over all nodes, as `drivers/growing_on_servers.py` has them.
pub struct Writers(Child);

impl Writers {
    pub fn start(cluster: &Cluster, nodes: u16, with_faults: bool) -> Writers {
        let ports: Vec<String> = (1..=nodes).map(|node| cluster.pg_port(node).to_string()).collect();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/drivers/growing_on_servers.py");
        let child = Command::new("/usr/bin/python3")
            .args([script, &ports.join(","), "300"])
            .args(with_faults.then_some("faults"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("Debian's python3-psycopg2 is there: `cargo xtask test` installs it");
        Writers(child)
    }

    /// Have them stop, and tell what came of it.
    pub fn stop(mut self) -> Value {
        drop(self.0.stdin.take());
        let done = self.0.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&done.stdout);
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}\n{}", String::from_utf8_lossy(&done.stderr)))
    }
}

pub fn psql(port: &str, query: &str) -> String {
    let done = Command::new("psql")
        .args(["-XqAt", "-h", "127.0.0.1", "-p", port, "-U", "pleat", "-d", "pleat", "-c", query])
        .output()
        .unwrap();
    assert!(done.status.success(), "{query}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

/// The ports of the servers of all shards.
pub async fn servers(cluster: &Cluster) -> Vec<String> {
    let shards = cluster.get("/shards").await;
    let port = |shard: &Value| shard["server"].as_str().unwrap().split_once(':').unwrap().1.to_owned();
    shards.as_array().unwrap().iter().map(port).collect()
}

fn config() -> Value {
    json!({
        "engine": "postgres",
        "postgres": { "memory_mib": 128 },
        "scaling_mode": "automatic",
        "scaling_thresholds": {
            "total_entry_threshold_per_shard": 1500, "qps_threshold": 1e9, "connection_threshold": 1_000_000,
            "cpu_threshold_percent": 100, "memory_threshold_percent": 100,
        },
        "monitoring_interval_seconds": 1, "cooldown_seconds": 1, "max_actions": 10, "max_shards": 3,
    })
}

pub const SCHEMA: &str =
    "CREATE TABLE grows (id bigint PRIMARY KEY, writer int NOT NULL, n int NOT NULL, t text) SHARD BY (id);
    CREATE INDEX by_writer ON grows (writer);
    CREATE TABLE kinds (kind int PRIMARY KEY, label text) REFERENCE;
    INSERT INTO kinds VALUES (1, 'one'), (2, 'two');";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_becomes_three_and_one_again_under_sixteen_writers() {
    let cluster = Cluster::start(Options { nodes: 3, shards: 1, config: config(), ..Options::default() }).await;
    let port = cluster.pg_port(1).to_string();
    for statement in SCHEMA.split_inclusive(';') {
        psql(&port, statement);
    }
    let writers = Writers::start(&cluster, 3, false);
    cluster.wait_for_shards(3).await;
    psql(&cluster.pg_port(2).to_string(), "UPDATE kinds SET label = 'TWO' WHERE kind = 2");
    let (code, _, told) = cluster.cli(&["policy", "mode=manual"]);
    assert_eq!(code, 0, "{told}");
    cluster.wait_until_calm().await;
    let ports = servers(&cluster).await;
    let counts: Vec<u64> = ports.iter().map(|port| psql(port, "SELECT count(*) FROM grows").parse().unwrap()).collect();
    assert!(ports.len() == 3 && counts.iter().all(|count| *count > 100), "{counts:?}");
    for port in &ports {
        // Nothing of the moves is left, and the new servers have the whole schema.
        let left = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication) \
            + (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pleat%')";
        assert_eq!(psql(port, left), "0");
        assert_eq!(psql(port, "SELECT label FROM kinds ORDER BY kind"), "one\nTWO");
        let made = "SELECT count(*) FROM pg_indexes WHERE indexname IN ('by_writer', 'grows_pkey', 'kinds_pkey')";
        assert_eq!(psql(port, made), "3");
    }
    for (shard, others) in [("shard-3", 2), ("2", 1)] {
        let (code, told, error) = cluster.cli(&["ops", "merge", shard, "--into", "shard-1"]);
        assert!(code == 0 && told.contains("into shard-1"), "{told}{error}");
        cluster.wait_for_shards(others).await;
    }
    cluster.wait_until_calm().await;
    let told = writers.stop();
    println!("{told}");
    for fault in ["lost", "ghosts", "stale", "failures"] {
        assert_eq!(told[fault], json!([]), "{fault}: {told}\n{}", cluster.tail());
    }
    assert_eq!(told["doubled"], 0, "{told}");
    let operations = cluster.get("/operations?limit=20").await;
    let moves: Vec<&Value> = (operations["operations"].as_array().unwrap().iter())
        .filter(|operation| ["split", "merge"].contains(&operation["kind"].as_str().unwrap()))
        .collect();
    assert_eq!(moves.len(), 4, "{operations}");
    for operation in moves {
        assert_eq!(operation["phase"], "Successful", "{operation}");
        let whole = cluster.get(&format!("/operations/{}", operation["id"].as_str().unwrap())).await;
        let receipt = &whole["receipt"];
        println!("{}", operation["message"]);
        assert!(receipt["agrees"] == true && receipt["source"] == receipt["target"], "{receipt}");
        assert!(receipt["rows_copied"].as_u64() > Some(0) && receipt["pause_ms"].is_u64(), "{receipt}");
    }
    // The servers of shards that are gone are gone, too.
    let begun = Instant::now();
    let left = |cluster: &Cluster| {
        (1..=3).any(|node| ["2", "3"].iter().any(|shard| cluster.node_dir(node).join("shards").join(shard).exists()))
    };
    while left(&cluster) {
        assert!(begun.elapsed() < PATIENCE, "a removed shard's data is left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const FLIGHTS: &str =
    "CREATE TABLE flights (id bigserial PRIMARY KEY, year int, month int, day int, dep_time int, sched_dep_time int, dep_delay int, arr_time int,
        sched_arr_time int, arr_delay int, carrier text, flight int, tailnum text, origin text, dest text, air_time int, distance int, hour int,
        minute int, time_hour timestamptz, touched int NOT NULL DEFAULT 0) SHARD BY (id);
    CREATE TABLE touches (flight bigint) SHARD BY (flight);";
/// A flight and the note of its change are of one shard, and change together or not at all.
const TOUCH: &str = "\\set f random(1, 300000)
    BEGIN;
    UPDATE flights SET touched = touched + 1 WHERE id = :f;
    INSERT INTO touches VALUES (:f);
    COMMIT;
    \\sleep 5 ms";

/// All flights of a year, by `\copy`, on one server that becomes three while sixteen writers and four that change flights go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flights_are_split_over_three_servers_while_clients_write() {
    let mut config = config();
    config["scaling_thresholds"]["total_entry_threshold_per_shard"] = json!(150_000);
    config["scaling_mode"] = json!("manual");
    let cluster = Cluster::start(Options { nodes: 3, shards: 1, config, ..Options::default() }).await;
    let port = cluster.pg_port(1).to_string();
    for statement in SCHEMA.split_inclusive(';').chain(FLIGHTS.split_inclusive(';')) {
        psql(&port, statement);
    }
    let (columns, file) = (
        "year, month, day, dep_time, sched_dep_time, dep_delay, arr_time, sched_arr_time, arr_delay, carrier, flight, tailnum, origin, dest, \
        air_time, distance, hour, minute, time_hour",
        crate::flights_test::data().join("flights.csv"),
    );
    psql(&port, &format!("\\copy flights ({columns}) FROM '{}' WITH (FORMAT csv, HEADER, NULL 'NA')", file.display()));
    let sums = "SELECT count(*), sum(distance), sum(arr_delay), count(DISTINCT tailnum), max(time_hour) FROM flights";
    let loaded = psql(&port, sums);
    assert!(loaded.starts_with("336776|350217607|"), "{loaded}");

    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), TOUCH.replace("\n    ", "\n")).unwrap();
    let writers = Writers::start(&cluster, 3, false);
    let done = Arc::new(AtomicBool::new(false));
    let touching = [1, 2].map(|node| {
        let (done, script, port) = (done.clone(), script.path().to_owned(), cluster.pg_port(node).to_string());
        std::thread::spawn(move || touch_until(&done, &script, &port, "simple"))
    });
    let (code, _, told) = cluster.cli(&["policy", "mode=automatic"]);
    assert_eq!(code, 0, "{told}");
    cluster.wait_for_shards(3).await;
    let (code, _, told) = cluster.cli(&["policy", "mode=manual"]);
    assert_eq!(code, 0, "{told}");
    cluster.wait_until_calm().await;
    done.store(true, Ordering::Relaxed);
    let touched: u64 = touching.into_iter().map(|thread| thread.join().unwrap()).sum();
    let told = writers.stop();
    println!("{told}, and {touched} changes of flights");
    for fault in ["lost", "ghosts", "stale", "failures"] {
        assert_eq!(told[fault], json!([]), "{fault}: {told}\n{}", cluster.tail());
    }
    assert_eq!(told["doubled"], 0, "{told}");
    assert_eq!(psql(&port, sums), loaded);
    assert_eq!(psql(&port, "SELECT count(*) FROM touches"), touched.to_string());
    let torn = "SELECT count(*) FROM flights LEFT JOIN (SELECT flight, count(*) AS n FROM touches GROUP BY flight) AS t ON t.flight = id \
        WHERE touched <> coalesce(n, 0)";
    assert_eq!(psql(&port, torn), "0");
    assert_ne!(psql(&port, "SELECT sum(touched) FROM flights"), "0");
    assert_eq!(psql(&port, "SELECT count(DISTINCT id) FROM flights"), "336776");
    let counts = "SELECT count(*) FROM flights";
    let each: Vec<u64> = servers(&cluster).await.iter().map(|port| psql(port, counts).parse().unwrap()).collect();
    assert!(each.iter().sum::<u64>() == 336_776 && each.iter().all(|count| *count > 40_000), "{each:?}");
    let operations = cluster.get("/operations?limit=20").await;
    for operation in operations["operations"].as_array().unwrap().iter().filter(|one| one["kind"] == "split") {
        let whole = cluster.get(&format!("/operations/{}", operation["id"].as_str().unwrap())).await;
        let receipt = &whole["receipt"];
        println!("{}", operation["message"]);
        assert!(whole["phase"] == "Successful" && receipt["agrees"] == true, "{whole}");
        assert!(receipt["source"] == receipt["target"] && receipt["pause_ms"].is_u64(), "{receipt}");
    }
}

/// Run a script over and over, in this mode of pgbench; gives how often. No run may fail.
pub fn touch_until(done: &AtomicBool, script: &Path, port: &str, mode: &str) -> u64 {
    let (clients, each) = (2, 25);
    let mut count = 0;
    while !done.load(Ordering::Relaxed) {
        let run = Command::new("pgbench")
            .args(["-n", "-M", mode, "-c", &clients.to_string(), "-t", &each.to_string()])
            .args(["-h", "127.0.0.1", "-U", "pleat", "-p", port, "-f"])
            .arg(script)
            .arg("pleat")
            .output()
            .unwrap();
        let (told, failed) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        assert!(run.status.success() && told.contains("failed transactions: 0 "), "{told}{failed}");
        count += clients * each;
    }
    count
}

/// Who dies, and where.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// The node that leads the control group, with the servers that it supervises.
    Leader(&'static str),
    /// The server that gives, when rows have been copied.
    Source,
}

/// Those that are always tried, in turn at a split and at a merge; `STEPS_ALL=1` tries the others, too.
const SOME: [Death; 5] = [
    Death::Leader("operation.step-ended@copy"),
    Death::Leader("operation.step-begun@fence"),
    Death::Leader("operation.before-commit"),
    Death::Leader("operation.committed"),
    Death::Source,
];
const OTHERS: [Death; 11] = [
    Death::Source,
    Death::Leader("operation.step-begun@check"),
    Death::Leader("operation.step-begun@check"),
    Death::Leader("operation.step-ended@capture"),
    Death::Leader("operation.step-ended@capture"),
    Death::Leader("operation.step-begun@verify"),
    Death::Leader("operation.before-commit"),
    Death::Leader("operation.committed"),
    Death::Leader("operation.step-begun@clean up"),
    Death::Leader("operation.step-begun@clean up"),
    Death::Leader("operation.before-finish"),
];

fn source_pid(cluster: &Cluster) -> Option<i32> {
    (1..=3).find_map(|node| {
        let file = cluster.node_dir(node).join("shards/1/data/postmaster.pid");
        std::fs::read_to_string(file).ok()?.lines().next()?.parse().ok()
    })
}

/// Have the cluster come to have so many shards, however often that takes.
async fn comes_to_have(cluster: &Cluster, shards: usize) {
    let begun = Instant::now();
    if shards == 2 {
        policy(cluster, "mode=automatic").await;
    }
    loop {
        let known = cluster.try_get("/shards").await;
        let open = cluster.try_get("/operations?limit=5").await;
        if let (Ok(known), Ok(open)) = (known, open) {
            let known: Vec<&Value> = known.as_array().into_iter().flatten().collect();
            let ended = |operation: &Value| {
                ["Successful", "Failed", "Skipped"].contains(&operation["phase"].as_str().unwrap_or_default())
            };
            let is_calm = open["operations"].as_array().is_some_and(|all| all.iter().all(ended));
            let all_active = known.iter().all(|shard| shard["state"] == "active");
            if is_calm && all_active && known.len() == shards {
                break;
            }
            if is_calm && all_active && shards == 1 {
                let node = cluster_node(cluster).await;
                let from = known.iter().filter_map(|shard| shard["shard_id"].as_str()).max().unwrap_or_default();
                cluster
                    .post(node, "/operations", &json!({ "kind": "merge", "from": from, "to": "shard-1" }))
                    .await
                    .ok();
            }
        }
        assert!(begun.elapsed() < 3 * PATIENCE, "no {shards} shards\n{}", cluster.tail());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    policy(cluster, "mode=manual").await;
}

async fn policy(cluster: &Cluster, change: &str) {
    let begun = Instant::now();
    loop {
        let (code, told, error) = cluster.cli(&["policy", change]);
        if code == 0 {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{told}{error}\n{}", cluster.tail());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Until an operation under way has copied rows.
async fn until_copied(cluster: &Cluster) {
    let begun = Instant::now();
    loop {
        let newest = cluster.get("/operations?limit=1").await["operations"][0].clone();
        if newest["phase"] == "Progressing" {
            let whole = cluster.get(&format!("/operations/{}", newest["id"].as_str().unwrap())).await;
            let copied = |step: &Value| step["name"] == "copy" && step["ended"].is_string();
            if whole["steps"].as_array().unwrap().iter().any(copied) {
                return;
            }
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "nothing is copied\n{}", cluster.tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A node that answers.
async fn cluster_node(cluster: &Cluster) -> u16 {
    for node in 1..=3 {
        let health = format!("{}/health", cluster.url(node));
        if cluster.http.get(health).send().await.is_ok_and(|answer| answer.status().is_success()) {
            return node;
        }
    }
    1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_and_servers_that_die_while_partitions_change_servers_lose_nothing() {
    let mut config = config();
    config["max_shards"] = json!(2);
    config["scaling_mode"] = json!("manual");
    let cluster = Cluster::start(Options { nodes: 3, shards: 1, config, ..Options::default() }).await;
    let port = cluster.pg_port(1).to_string();
    for statement in SCHEMA.split_inclusive(';') {
        psql(&port, statement);
    }
    let rows: Vec<String> = (1..=3000).map(|id| format!("(-{id}, -1, 1, '{}')", "x".repeat(100))).collect();
    for some in rows.chunks(500) {
        psql(&port, &format!("INSERT INTO grows VALUES {}", some.join(", ")));
    }
    let writers = Writers::start(&cluster, 3, true);
    let all = std::env::var("STEPS_ALL").is_ok();
    let deaths: Vec<Death> = SOME.into_iter().chain(OTHERS.into_iter().filter(|_| all)).collect();
    let mut died = 0;
    for (at, death) in deaths.iter().enumerate() {
        let shards = if at % 2 == 0 { 2 } else { 1 };
        let leader = cluster.leader(None).await;
        let (before, source) = (cluster.pid_of(leader), source_pid(&cluster));
        match death {
            Death::Leader(place) => {
                cluster.fail_at(leader, &format!("{place}=abort")).await;
                comes_to_have(&cluster, shards).await;
                died += u32::from(cluster.pid_of(leader) != before);
            }
            Death::Source => {
                cluster.fail_at(leader, "operation.step-ended@copy=1*sleep(1500)").await;
                let kill = async {
                    until_copied(&cluster).await;
                    let pid = nix::unistd::Pid::from_raw(source.unwrap());
                    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
                };
                tokio::join!(kill, comes_to_have(&cluster, shards));
                died += u32::from(source_pid(&cluster) != source);
            }
        }
        println!("{death:?} on the way to {shards} shards; {died} died so far");
    }
    let told = writers.stop();
    println!("{told}");
    for fault in ["lost", "stale"] {
        assert_eq!(told[fault], json!([]), "{fault}: {told}\n{}", cluster.tail());
    }
    // The first 3000 are nobody's.
    assert_eq!(psql(&port, "SELECT count(*), count(DISTINCT id) FROM grows WHERE writer = -1"), "3000|3000");
    assert_eq!(told["doubled"], 0, "{told}");
    assert!(told["ghosts"].as_array().unwrap().iter().all(|id| id.as_i64() < Some(0)), "{told}");
    assert!(died as usize + 1 >= deaths.len(), "only {died} died of {}", deaths.len());
    for port in servers(&cluster).await {
        let left = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication) \
            + (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pleat%') + (SELECT count(*) FROM pg_prepared_xacts)";
        assert_eq!(psql(&port, left), "0");
    }
}

/// How long the gates are held closed.
const HELD_CLOSED_MS: u32 = 2_500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_half_way_when_the_gates_close_is_neither_lost_nor_broken_off() {
    let mut config = config();
    config["max_shards"] = json!(2);
    config["scaling_mode"] = json!("manual");
    let cluster = Cluster::start(Options { nodes: 1, shards: 1, config, ..Options::default() }).await;
    let port = cluster.pg_port(1).to_string();
    for statement in SCHEMA.split_inclusive(';') {
        psql(&port, statement);
    }
    let rows: Vec<String> = (1..=3000).map(|id| format!("(-{id}, -1, 1, NULL)")).collect();
    psql(&port, &format!("INSERT INTO grows VALUES {}", rows.join(", ")));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/drivers/at_the_gates.py");
    let mut sessions = Command::new("/usr/bin/python3")
        .args([script, &port])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(sessions.stdout.take().unwrap());
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "ready");
    cluster.fail_at(1, &format!("operation.before-commit=1*sleep({HELD_CLOSED_MS})")).await;
    policy(&cluster, "mode=automatic").await;
    let begun = Instant::now();
    loop {
        let newest = cluster.get("/operations?limit=1").await["operations"][0].clone();
        let whole = cluster.get(&format!("/operations/{}", newest["id"].as_str().unwrap())).await;
        let step = whole["steps"].as_array().unwrap().last().cloned().unwrap_or_default();
        if step["name"] == "fence" && step["ended"].is_null() {
            break;
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "the gates are not closed: {whole}\n{}", cluster.tail());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // They close in that step, and stay closed for longer than this.
    tokio::time::sleep(Duration::from_millis(u64::from(HELD_CLOSED_MS) / 3)).await;
    sessions.stdin.take().unwrap().write_all(b"closed\n").unwrap();
    line.clear();
    told.read_line(&mut line).unwrap();
    sessions.wait().unwrap();
    let told: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(told["committed"], json!(["COMMIT", "I"]), "{told}");
    assert_eq!(told["inserted"], json!(vec![["SELECT 1", "INSERT 0 1", "I"]; 16]), "{told}\n{}", cluster.tail());
    cluster.wait_for_shards(2).await;
    policy(&cluster, "mode=manual").await;
    cluster.wait_until_calm().await;
    assert_eq!(psql(&port, "SELECT count(*) FROM grows WHERE writer = 7"), "16");
    let counts = servers(&cluster).await;
    let counts: Vec<u32> =
        counts.iter().map(|port| psql(port, "SELECT count(*) FROM grows WHERE writer = 7").parse().unwrap()).collect();
    assert!(counts.iter().sum::<u32>() == 16 && counts.iter().all(|count| *count > 0), "{counts:?}");
}
