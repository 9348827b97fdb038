//! Shards that are PostgreSQL servers, as a host reaches them, and what it decides of transactions that were left prepared there.

mod common;

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pleat_cluster::{Command, Engine, LedgerCommand, LedgerReply, NodeId, Place, PreparedName, ShardId, TxnId};
use pleat_host::{Host, HostError, StoreLimits};
use pleat_provision::process::{PROGRAMS, ProcessConfig, Role, Server, Size};
use tempfile::TempDir;
use tokio::time::sleep;

use common::{LIMIT, Node, OTHER, SHARD};

/// One node, and a folder for its servers, which are not started.
async fn founded() -> (Node, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let (mut nodes, _) = common::founded(1, StoreLimits::default(), Engine::Postgres).await;
    let node = nodes.remove(0);
    let mut catalog = node.host.watch_catalog();
    let ready = tokio::time::timeout(LIMIT, catalog.wait_for(|catalog| catalog.is_initialised())).await;
    drop(ready.expect("the cluster is founded").unwrap());
    (node, dir)
}

async fn started(dir: &TempDir, name: &str) -> Server {
    let size = Size { memory_mib: 128, connections: 100 };
    let (dir, programs) = (dir.path().join(name), PathBuf::from(PROGRAMS));
    Server::start(ProcessConfig {
        dir,
        programs,
        port: None,
        size,
        password_file: None,
        role: Role::Primary { make: true },
    })
    .await
    .unwrap()
}

/// What the node's supervision does when a server is ready, and the control loop afterwards.
async fn noted(host: &Host, shard: ShardId, address: SocketAddr) {
    host.mark_server(shard, address).await.unwrap();
    host.command(
        Command::NoteServer { shard, node: NodeId(1), place: Place { address, dir: String::new() }, at: 1 },
        LIMIT,
    )
    .await
    .unwrap();
    host.command(Command::ActivateShard { shard, at: 1 }, LIMIT).await.unwrap();
}

async fn one(host: &Host, shard: ShardId, text: &str) -> Option<String> {
    let mut lease = host.lease(shard, LIMIT).await.unwrap();
    lease.ask(text).await.unwrap().rows.pop().and_then(|mut row| row.pop().flatten())
}

async fn until(host: &Host, shard: ShardId, text: &str, wanted: &str) {
    let begun = Instant::now();
    while one(host, shard, text).await.as_deref() != Some(wanted) {
        assert!(begun.elapsed() < LIMIT, "never {wanted}: {text}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_lease_goes_to_where_the_catalog_has_the_server() {
    let (node, dir) = founded().await;
    let host = &node.host;
    let Err(refused) = host.lease(SHARD, Duration::from_millis(50)).await else { panic!("there is no server") };
    assert_eq!((refused.code(), refused.is_retryable()), ("57P03", true), "{refused}");
    let gone = host.lease(ShardId(9), LIMIT).await.map(drop);
    assert!(matches!(gone, Err(HostError::Refused(_))), "{gone:?}");

    let (first, second) = tokio::join!(started(&dir, "first"), started(&dir, "second"));
    let waits = one(host, SHARD, "SELECT inet_server_port()");
    let (port, ()) = tokio::join!(waits, noted(host, SHARD, first.address()));
    assert_eq!(port, Some(first.address().port().to_string()));

    let mut open = host.lease(SHARD, LIMIT).await.unwrap();
    open.ask("BEGIN").await.unwrap();
    noted(host, SHARD, second.address()).await;
    let port = one(host, SHARD, "SELECT inet_server_port()").await;
    assert_eq!(port, Some(second.address().port().to_string()));
    assert_eq!(open.ask("COMMIT").await.unwrap().tag, "COMMIT", "what was begun there ends there");

    second.stop().await;
    let Err(down) = host.lease(SHARD, Duration::from_millis(300)).await else { panic!("the server is down") };
    assert_eq!((down.code(), down.is_retryable()), ("57P03", true), "{down}");
    first.stop().await;
    common::stop(node).await;
}

#[tokio::test]
async fn a_server_that_is_another_shard_is_sent_nothing() {
    let (node, dir) = founded().await;
    let host = &node.host;
    let server = started(&dir, "first").await;
    let address = server.address();
    // The catalog was told of it, and it says of itself nothing, or that it is another one.
    host.command(
        Command::NoteServer { shard: SHARD, node: NodeId(1), place: Place { address, dir: String::new() }, at: 1 },
        LIMIT,
    )
    .await
    .unwrap();
    let refused = async || {
        let Err(refused) = host.lease(SHARD, Duration::from_secs(1)).await else { panic!("it is another shard's") };
        assert_eq!((refused.code(), refused.is_retryable()), ("57P03", true), "{refused}");
        refused.to_string()
    };
    assert!(refused().await.contains("no mark"));
    host.mark_server(OTHER, address).await.unwrap();
    assert!(refused().await.contains(&OTHER.to_string()));
    let error = host.mark_server(SHARD, address).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("another shard's data"), "{error}");
    host.mark_server(OTHER, address).await.unwrap();
    server.stop().await;
    common::stop(node).await;
}

#[tokio::test]
async fn what_is_left_prepared_ends_as_the_ledger_says() {
    let (node, dir) = founded().await;
    let host = &node.host;
    let (first, second) = tokio::join!(started(&dir, "first"), started(&dir, "second"));
    noted(host, SHARD, first.address()).await;
    noted(host, OTHER, second.address()).await;
    let prepare = async |shard: ShardId, txn: TxnId| {
        let (table, name) = (format!("t{}", txn.0), PreparedName::Txn(txn));
        let text = format!("BEGIN; CREATE TABLE {table} (a int); PREPARE TRANSACTION '{name}'");
        host.lease(shard, LIMIT).await.unwrap().ask(&text).await.unwrap();
    };
    let decide = async |txn: TxnId| {
        let (began, at) = (host.txn_clock(), host.txn_clock());
        let participants = vec![SHARD, OTHER];
        let decided = host.ledger_command(LedgerCommand::Decide { txn, commit: true, participants, began, at }, LIMIT);
        match decided.await.unwrap() {
            LedgerReply::Decided { commit } => commit.is_some(),
            other => panic!("{other:?}"),
        }
    };

    // Its coordinator dies when it has decided.
    let committed = TxnId(1);
    prepare(SHARD, committed).await;
    prepare(OTHER, committed).await;
    assert!(decide(committed).await);
    // Another one before that.
    let left = TxnId(2);
    prepare(OTHER, left).await;
    let tables = "SELECT string_agg(tablename, ' ') FROM pg_tables WHERE tablename LIKE 't_'";
    until(host, SHARD, tables, "t1").await;
    until(host, OTHER, tables, "t1").await;
    let nothing = "SELECT count(*) FROM pg_prepared_xacts";
    until(host, OTHER, nothing, "0").await;
    assert!(!decide(left).await, "the first word counts");
    assert_eq!(host.in_doubt(LIMIT).await.unwrap(), []);
    assert_eq!(one(host, OTHER, tables).await.as_deref(), Some("t1"));

    // It is seen while it is in doubt, which may be over when we are slow.
    prepare(SHARD, TxnId(3)).await;
    let doubts = host.in_doubt(LIMIT).await.unwrap();
    if let Some(doubt) = doubts.first() {
        assert_eq!((doubt.txn, doubt.shard, doubt.decided), (TxnId(3), SHARD, None));
    }
    until(host, SHARD, nothing, "0").await;
    first.stop().await;
    second.stop().await;
    common::stop(node).await;
}
