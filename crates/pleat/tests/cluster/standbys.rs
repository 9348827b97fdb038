//! PostgreSQL servers with standbys: what dies, hangs or is paused is replaced, under writers, and nothing that was acknowledged is lost.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{Cluster, Options, PATIENCE, answer};
use crate::moves_on_servers::{SCHEMA, Writers, psql};

/// A shard whose servers are on two of three nodes, with a table.
async fn pair() -> Cluster {
    let config = json!({
        "engine": "postgres",
        "postgres": { "memory_mib": 128, "standbys": "synchronous", "promote_after_s": 6, "standby_wait_s": 4 },
        "scaling_mode": "manual",
    });
    let cluster = Cluster::start(Options { nodes: 3, shards: 1, config, ..Options::default() }).await;
    until(&cluster, "a standby in step", |shard| shard["standby"]["state"] == "in step").await;
    for statement in SCHEMA.split_inclusive(';') {
        psql(&cluster.pg_port(3).to_string(), statement);
    }
    cluster
}

/// Until a node says this of the shard.
async fn until(cluster: &Cluster, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    let mut seen = Value::Null;
    while begun.elapsed() < PATIENCE {
        for node in 1..=3 {
            let sent = cluster.http.get(format!("{}/shards", cluster.url(node))).timeout(Duration::from_secs(5)).send();
            let Ok(shards) = answer(sent.await).await else { continue };
            if is(&shards[0]) {
                return shards[0].clone();
            }
            seen = shards[0].clone();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what} is not to be seen: {seen}\n{}", cluster.tail())
}

fn number(node: &Value) -> u16 {
    node.as_str().unwrap().strip_prefix("node-").unwrap().parse().unwrap()
}

/// Another primary than this one, with a standby in step.
async fn replaced(cluster: &Cluster, primary: &Value) -> Value {
    let is = |shard: &Value| {
        shard["node"].is_string()
            && shard["node"] != *primary
            && shard["standby"]["state"] == "in step"
            && shard["status"] == "healthy"
    };
    until(cluster, "another primary, and a standby in step", is).await
}

/// The processes of a node's server of the shard, wherever its data has gone.
fn processes(cluster: &Cluster, node: u16) -> Vec<Pid> {
    let dir = cluster.node_dir(node).join("shards/1");
    let dir = dir.canonicalize().unwrap_or(dir);
    let pids =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_of = |pid: &i32| {
        let link =
            |name: &str| std::fs::read_link(Path::new("/proc").join(pid.to_string()).join(name)).unwrap_or_default();
        link("cwd").starts_with(&dir) && link("exe").ends_with("postgres")
    };
    pids.filter(is_of).map(Pid::from_raw).collect()
}

fn signal(pids: &[Pid], signal: Signal) {
    for pid in pids {
        // It may have ended.
        let _ = kill(*pid, signal);
    }
}

fn nothing_is_lost(cluster: &Cluster, told: &Value) {
    println!("{told}");
    for fault in ["lost", "ghosts", "stale"] {
        assert_eq!(told[fault], json!([]), "{fault}: {told}\n{}", cluster.tail());
    }
    assert!(told["doubled"] == 0 && told["rows"].as_u64() > Some(100), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_the_place_of_a_primary_whose_node_dies_and_the_old_one_comes_back_as_its_standby() {
    let cluster = pair().await;
    let writers = Writers::start(&cluster, 3, true);
    let before = until(&cluster, "a primary", |shard| shard["node"].is_string()).await;
    // A server that dies alone is started again, which comes first.
    let of_primary = processes(&cluster, number(&before["node"]));
    let first = std::fs::read_to_string(cluster.node_dir(number(&before["node"])).join("shards/1/data/postmaster.pid"));
    let first = Pid::from_raw(first.unwrap().lines().next().unwrap().parse().unwrap());
    assert!(of_primary.contains(&first));
    signal(&[first], Signal::SIGKILL);
    tokio::time::sleep(Duration::from_secs(8)).await;
    let same = until(&cluster, "a standby in step", |shard| shard["standby"]["state"] == "in step").await;
    assert_eq!(same["node"], before["node"]);

    cluster.hold_down(number(&before["node"]));
    let is_other =
        |shard: &Value| shard["node"].is_string() && shard["node"] != before["node"] && shard["status"] == "healthy";
    let now = until(&cluster, "another primary", is_other).await;
    assert_eq!(now["standby"]["state"], "catching up");
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.release();
    let again = replaced(&cluster, &before["node"]).await;
    assert_eq!((&again["node"], &again["standby"]["node"]), (&now["node"], &before["node"]));
    let (code, said, _) = cluster.cli(&["shards"]);
    assert!(code == 0 && said.contains("in step (synchronous)"), "{said}");

    // A synchronous primary waits for a standby that has gone, then says that it goes on without it, and only then does.
    cluster.hold_down(number(&again["standby"]["node"]));
    until(&cluster, "a lost standby", |shard| shard["standby"]["state"] == "catching up").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.release();
    until(&cluster, "a standby in step", |shard| shard["standby"]["state"] == "in step").await;
    nothing_is_lost(&cluster, &writers.stop());
    let operations = cluster.get("/operations?limit=20").await;
    let promoted: Vec<&Value> = operations["operations"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|operation| operation["kind"] == "promote")
        .collect();
    assert_eq!(promoted.len(), 1, "{operations}");
    assert!(promoted[0]["message"].as_str().unwrap().contains("all that was acknowledged"), "{operations}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_paused_with_its_primary_writes_nothing_when_it_goes_on() {
    let cluster = pair().await;
    let writers = Writers::start(&cluster, 3, true);
    for _ in 0..2 {
        let before = until(&cluster, "a standby in step", |shard| shard["standby"]["state"] == "in step").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let node = number(&before["node"]);
        let paused: Vec<Pid> = processes(&cluster, node).into_iter().chain(cluster.pid_of(node)).collect();
        signal(&paused, Signal::SIGSTOP);
        let is_other = |shard: &Value| {
            shard["node"].is_string() && shard["node"] != before["node"] && shard["status"] == "healthy"
        };
        let other = until_from(&cluster, node, is_other).await;
        assert_eq!(other["standby"]["node"], before["node"]);
        tokio::time::sleep(Duration::from_secs(2)).await;
        signal(&paused, Signal::SIGCONT);
        replaced(&cluster, &before["node"]).await;
    }
    nothing_is_lost(&cluster, &writers.stop());
}

/// The same as `until`, of any node but one.
async fn until_from(cluster: &Cluster, paused: u16, is: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        for node in (1..=3).filter(|node| *node != paused) {
            let sent = cluster.http.get(format!("{}/shards", cluster.url(node))).timeout(Duration::from_secs(5)).send();
            match answer(sent.await).await {
                Ok(shards) if is(&shards[0]) => return shards[0].clone(),
                _ => {}
            }
        }
        assert!(begun.elapsed() < PATIENCE, "no other primary\n{}", cluster.tail());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_goes_on_whenever_the_control_leader_dies() {
    let cluster = pair().await;
    let writers = Writers::start(&cluster, 3, true);
    for place in [
        "operation.step-begun@fence",
        "operation.step-ended@fence",
        "operation.before-commit",
        "operation.committed",
        "operation.step-begun@promote",
        "operation.before-finish",
    ] {
        let before = until(&cluster, "a standby in step", |shard| shard["standby"]["state"] == "in step").await;
        let leader = cluster.leader(None).await;
        let pid = cluster.pid_of(leader);
        cluster.fail_at(leader, &format!("{place}=abort")).await;
        // Its node is well and would start it again, but it hangs.
        signal(&processes(&cluster, number(&before["node"])), Signal::SIGSTOP);
        replaced(&cluster, &before["node"]).await;
        assert_ne!(cluster.pid_of(leader), pid, "{place}: it did not die\n{}", cluster.tail());
        println!("{place}");
    }
    nothing_is_lost(&cluster, &writers.stop());
}
