//! Shards that are PostgreSQL servers: nodes start them, keep them running, and stop them.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pleat_cluster::SERVER_NAME;
use pleat_engine::postgres::{Address, Asked, Limits, Pool, PostgresError, Server};
use serde_json::json;
use tokio::time::sleep;

use crate::harness::{Cluster, Options, PATIENCE};

const SHARDS: u16 = 2;

/// One node with two servers.
async fn started() -> Cluster {
    let config = json!({ "engine": "postgres", "postgres": { "memory_mib": 128 } });
    Cluster::start(Options { nodes: 1, shards: SHARDS, config, ..Options::default() }).await
}

fn dir(cluster: &Cluster, shard: u16) -> PathBuf {
    cluster.node_dir(1).join("shards").join(shard.to_string())
}

/// The server's first process.
fn pid(cluster: &Cluster, shard: u16) -> Option<Pid> {
    let file = fs::read_to_string(dir(cluster, shard).join("data/postmaster.pid")).ok()?;
    file.lines().next()?.parse().ok().map(Pid::from_raw)
}

fn pool(cluster: &Cluster, shard: u16) -> Pool {
    let port = fs::read_to_string(dir(cluster, shard).join("port")).unwrap();
    let address = Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port.trim().parse().unwrap())));
    let name = || SERVER_NAME.to_owned();
    let server = Server { address, user: name(), database: name(), password: None, identity: None };
    Pool::new(server, Limits { connections: 1, waiting: 10, wait: PATIENCE })
}

async fn try_ask(pool: &Pool, text: &str) -> Result<Asked, PostgresError> {
    pool.lease().await?.ask(text).await
}

async fn ask(cluster: &Cluster, shard: u16, text: &str) -> Vec<Vec<Option<String>>> {
    let answer = try_ask(&pool(cluster, shard), text).await;
    answer.unwrap_or_else(|error| panic!("{text}: {error}\n{}", cluster.tail())).rows
}

/// Until the server answers this, as a number in a row by itself.
async fn until(cluster: &Cluster, shard: u16, text: &str, wanted: &str) {
    let (begun, pool) = (Instant::now(), pool(cluster, shard));
    loop {
        let answer = try_ask(&pool, text).await;
        if answer.as_ref().is_ok_and(|asked| asked.rows == [[Some(wanted.to_owned())]]) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{text}: {answer:?} is not {wanted}\n{}", cluster.tail());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn servers_are_started_kept_running_and_stopped() {
    let mut cluster = started().await;
    let health = cluster.get("/health").await;
    assert_eq!(health["shards"], json!({ "hosted": SHARDS, "ready": SHARDS }), "{health}");
    for shard in 1..=SHARDS {
        ask(&cluster, shard, &format!("CREATE TABLE kept AS SELECT {shard} AS shard")).await;
    }

    // Its first process dies, and nobody has to do anything.
    let before = pid(&cluster, 1).unwrap();
    kill(before, Signal::SIGKILL).unwrap();
    until(&cluster, 1, "SELECT shard FROM kept", "1").await;
    assert_ne!(pid(&cluster, 1).unwrap(), before);
    let ready = json!({ "hosted": SHARDS, "ready": SHARDS });
    cluster.wait_for("/health", "the server", |health| health["shards"] == ready).await;

    // The node dies, and its servers with it; it comes back with them.
    cluster.kill_node(1);
    cluster.wait_for_node(1).await;
    cluster.wait_for("/health", "both servers", |health| health["shards"] == ready).await;
    until(&cluster, 2, "SELECT shard FROM kept", "2").await;

    let pids: Vec<Pid> = (1..=SHARDS).map(|shard| pid(&cluster, shard).unwrap()).collect();
    assert!(cluster.stop(), "{}", cluster.tail());
    for pid in pids {
        assert!(kill(pid, None).is_err(), "process {pid} is left");
    }
    cluster.start_again().await;
    for shard in 1..=SHARDS {
        until(&cluster, shard, "SELECT shard FROM kept", &shard.to_string()).await;
    }
}

#[tokio::test]
async fn what_was_left_prepared_is_decided() {
    let cluster = started().await;
    let prepare = async |name: &str| {
        ask(&cluster, 2, &format!("BEGIN; CREATE TABLE \"{name}\" (a int); PREPARE TRANSACTION '{name}'")).await;
    };
    prepare("somebody_elses").await;
    prepare("pleat_ddl_0_1").await;
    // It is in doubt for two seconds, unless we are slower than that.
    let is_seen = async |number: u32| {
        prepare(&format!("pleat_{number:032x}")).await;
        cluster.get("/txns").await.to_string().contains(&format!("txn-{number:032x}"))
    };
    let mut number = 1;
    while !is_seen(number).await {
        number += 1;
        assert!(number < 20, "nothing is in doubt");
    }
    // Nobody has said "commit", so the ledger says that it is aborted; and no schema change of that number is open.
    until(&cluster, 2, "SELECT string_agg(gid, ' ') FROM pg_prepared_xacts", "somebody_elses").await;
    let tables = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'pleat%'";
    assert_eq!(ask(&cluster, 2, tables).await, [[Some("0".to_owned())]]);
    ask(&cluster, 2, "ROLLBACK PREPARED 'somebody_elses'").await;
}

#[tokio::test]
async fn a_server_whose_data_is_gone_is_not_replaced_by_an_empty_one() {
    let mut cluster = started().await;
    let ready = |ready: u16| json!({ "hosted": SHARDS, "ready": ready });
    assert!(cluster.stop(), "{}", cluster.tail());
    let (data, aside) = (dir(&cluster, 1).join("data"), dir(&cluster, 1).join("aside"));
    fs::rename(&data, &aside).unwrap();
    cluster.launch();
    let begun = Instant::now();
    loop {
        let health = cluster.http.get(format!("{}/health", cluster.url(1))).send().await;
        let health: Option<serde_json::Value> = match health {
            Ok(health) => health.json().await.ok(),
            Err(_) => None,
        };
        if let Some(health) = &health
            && health["shards"] == ready(1)
            && health["reasons"].to_string().contains("its data is gone")
        {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{health:?}\n{}", cluster.tail());
        sleep(Duration::from_millis(50)).await;
    }
    assert!(!data.exists());
    // Somebody brings it back, and it is tried again.
    fs::rename(&aside, &data).unwrap();
    cluster.wait_for("/health", "the server", |health| health["shards"] == ready(SHARDS)).await;
}
