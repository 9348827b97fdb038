//! The same over real gRPC on loopback.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use common::{CLUSTER, Cluster, Network, PATIENCE, eventually, propose};
use futures::StreamExt;
use pleat_cluster::NodeId;
use pleat_consensus::grpc::{GrpcTransport, Resolver};
use pleat_consensus::{Transport, TransportError};

/// A deadline that no test waits for.
const NEVER: Duration = Duration::from_secs(300);
/// How long a connection may be silent until it is given up, and a bit.
const SILENCE: Duration = Duration::from_secs(7);

fn transport(cluster: &Cluster, node: u64) -> Arc<GrpcTransport> {
    let Network::Grpc(addresses) = &cluster.network else { unreachable!() };
    let addresses = addresses.clone();
    let resolver: Resolver = Arc::new(move |to| addresses.get(&to).cloned());
    GrpcTransport::new(CLUSTER, NodeId(node), resolver)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_survives_its_leader_and_a_node_catches_up_by_snapshot() {
    let mut cluster = Cluster::grpc(3, |config| {
        config.checkpoint_entries = 20;
        config.log_keep_entries = 0;
    })
    .founded(3)
    .await;
    let old = cluster.leader(1, 1..=3).await;
    for number in 0..20 {
        propose(&cluster.group(old, 1), &number.to_string()).await.unwrap();
    }
    cluster.group(old, 1).read_barrier(PATIENCE).await.unwrap();
    cluster.stop(old).await;

    let rest: Vec<u64> = (1..=3).filter(|node| *node != old).collect();
    let new = cluster.leader(1, rest).await;
    // Megabytes, so that the snapshot travels in several chunks.
    let large = "x".repeat(50_000);
    for number in 20..150 {
        propose(&cluster.group(new, 1), &format!("{number}{large}")).await.unwrap();
    }
    eventually("a purge", || cluster.group(new, 1).status().purged.filter(|purged| *purged > 60)).await;
    cluster.start(old).await;
    cluster.start_group(old, 1).await;
    assert_eq!(cluster.converged(1, 1..=3, 150).await.len(), 150);
    assert!(cluster.disk(old, 1).installs.load(Ordering::Relaxed) >= 1);
}

/// TCP connections that this machine has to a port on loopback and that are established, as the kernel counts them.
fn connections_to(address: &str) -> usize {
    let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = sockets.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    // The local address in hexadecimal, and the state: 01 is established.
    fields.filter(|fields| fields[1].ends_with(&format!(":{port:04X}")) && fields[3] == "01").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_groups_share_one_connection_per_pair_of_nodes() {
    let cluster = Cluster::grpc(3, |_| {}).founded(3).await;
    let groups = 1..=12;
    for group in groups.clone().skip(1) {
        for node in 1..=3 {
            cluster.start_group(node, group).await;
        }
        cluster.group(1, group).initialize(common::ids(1..=3)).await.unwrap();
    }
    for group in groups {
        let leader = cluster.leader(group, 1..=3).await;
        propose(&cluster.group(leader, group), "x").await.unwrap();
        cluster.group(leader, group).read_barrier(PATIENCE).await.unwrap();
        cluster.converged(group, 1..=3, 1).await;
    }
    // Every node is called by the two others, for all groups.
    let Network::Grpc(addresses) = &cluster.network else { unreachable!() };
    for address in addresses.values() {
        // One that was given up may take a moment to close.
        common::eventually("two connections", || (connections_to(address) <= 2).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_proposal_travels_and_a_larger_one_is_refused() {
    let cluster = Cluster::grpc(3, |_| {}).founded(3).await;
    let leader = cluster.leader(1, 1..=3).await;
    let limit = cluster.config(1).proposal_bytes_max;
    let group = cluster.group(leader, 1);
    group.propose(vec![b'x'; limit].into(), PATIENCE).await.unwrap();
    group.propose(vec![b'x'; limit + 1].into(), PATIENCE).await.unwrap_err();
    propose(&group, "small").await.unwrap();
    let all = cluster.converged(1, 1..=3, 2).await;
    assert_eq!((all[0].len(), all[1].as_str()), (limit, "small"));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_and_streams_reach_the_service() {
    let mut cluster = Cluster::grpc(2, |_| {});
    cluster.start(1).await;
    let caller = transport(&cluster, 2);
    let answer = caller.call(NodeId(1), "echo", Bytes::from("hi"), PATIENCE).await.unwrap();
    assert_eq!(answer, "node-2: hi");
    let parts = caller.stream(NodeId(1), "letters", Bytes::from("abc"), PATIENCE).await.unwrap();
    let parts: Vec<Bytes> = parts.map(Result::unwrap).collect().await;
    assert_eq!(parts, ["a", "b", "c"]);
    let unknown = caller.call(NodeId(1), "nonsense", Bytes::new(), PATIENCE).await;
    assert!(matches!(unknown, Err(TransportError::Remote { code, .. }) if code == "unknown_method"));
    assert_eq!(caller.hello(NodeId(1), PATIENCE).await.unwrap().node, NodeId(1));
    let large = Bytes::from(vec![0; 33 * 1024 * 1024]);
    let refused = caller.call(NodeId(1), "echo", large, PATIENCE).await;
    assert!(matches!(refused, Err(TransportError::Remote { code, .. }) if code == "too_large"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_down_is_unreachable_and_comes_back() {
    let mut cluster = Cluster::grpc(2, |_| {});
    let caller = transport(&cluster, 2);
    let call = || caller.call(NodeId(1), "echo", Bytes::from("hi"), PATIENCE);
    assert!(matches!(call().await, Err(TransportError::Unreachable(_))), "it was never up");
    assert!(matches!(
        caller.call(NodeId(7), "echo", Bytes::new(), PATIENCE).await,
        Err(TransportError::Unreachable(_))
    ));
    cluster.start(1).await;
    loop {
        // For a moment after a failure nothing is tried.
        match call().await {
            Ok(answer) => break assert_eq!(answer, "node-2: hi"),
            Err(TransportError::Unreachable(_)) => tokio::task::yield_now().await,
            Err(other) => panic!("{other}"),
        }
    }
    cluster.stop(1).await;
    // The first call may find out on the old connection that it is gone; the next can't even connect.
    let _ = call().await;
    assert!(matches!(call().await, Err(TransportError::Unreachable(_))));
    cluster.start(1).await;
    loop {
        match call().await {
            Ok(answer) => break assert_eq!(answer, "node-2: hi"),
            Err(TransportError::Unreachable(_)) => tokio::task::yield_now().await,
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_at_once_get_their_own_answers() {
    let mut cluster = Cluster::grpc(2, |config| config.message_bytes_max = 10 << 20);
    cluster.start(1).await;
    let caller = transport(&cluster, 2);
    let call = |number: usize| {
        let caller = caller.clone();
        // Some are too large to share a message, some to share the way.
        let body =
            format!("{number} {}", "x".repeat(if number.is_multiple_of(50) { number * 100 } else { number % 300 }));
        tokio::spawn(async move {
            let answer = caller.call(NodeId(1), "echo", body.clone().into(), PATIENCE).await.unwrap();
            assert_eq!(answer, format!("node-2: {body}"));
        })
    };
    for called in (0..2_000).map(call).collect::<Vec<_>>() {
        called.await.unwrap();
    }
    let Network::Grpc(addresses) = &cluster.network else { unreachable!() };
    eventually("one connection", || (connections_to(&addresses[&NodeId(1)]) == 1).then_some(())).await;

    // An answer that is too large is an error of its own, and nobody else's.
    let grow = |bytes: usize| caller.call(NodeId(1), "grow", bytes.to_string().into(), PATIENCE);
    let (large, right) = tokio::join!(grow(10 << 20), grow(1_000_000));
    assert!(matches!(large, Err(TransportError::Remote { code, .. }) if code == "too_large"));
    assert_eq!(right.unwrap().len(), 1_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_nobody_waits_for_ends() {
    let mut cluster = Cluster::grpc(2, |_| {});
    cluster.start(1).await;
    let (caller, echo) = (transport(&cluster, 2), cluster.echo.clone());
    let wait = |within| caller.call(NodeId(1), "wait", Bytes::from("me"), within);
    let late = wait(std::time::Duration::from_millis(50)).await;
    assert!(matches!(late, Err(TransportError::Lost(_))), "{late:?}");
    eventually("the end of the first", || (echo.dropped.load(Ordering::SeqCst) == 1).then_some(())).await;

    let other = tokio::spawn({
        let caller = caller.clone();
        async move { caller.call(NodeId(1), "wait", Bytes::from("other"), PATIENCE).await }
    });
    eventually("the other to begin", || (echo.begun.load(Ordering::SeqCst) == 2).then_some(())).await;
    other.abort();
    eventually("the end of the other", || (echo.dropped.load(Ordering::SeqCst) == 2).then_some(())).await;
    echo.gate.add_permits(10);
    assert_eq!(wait(PATIENCE).await.unwrap(), "me");
    // Whoever is gone can wait for nothing.
    drop(caller);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_panics_is_lost_at_once() {
    let mut cluster = Cluster::grpc(2, |_| {});
    cluster.start(1).await;
    let caller = transport(&cluster, 2);
    let panics = caller.call(NodeId(1), "panic", Bytes::new(), NEVER);
    let lost = tokio::time::timeout(PATIENCE, panics).await.unwrap();
    assert!(matches!(lost, Err(TransportError::Lost(_))), "{lost:?}");
    let answer = caller.call(NodeId(1), "echo", Bytes::from("hi"), PATIENCE).await.unwrap();
    assert_eq!(answer, "node-2: hi");
}

/// A way to an address that can be made to swallow everything, while its connections stay open: a link that broke.
async fn fragile_way(to: String) -> (String, tokio::sync::watch::Sender<bool>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (broken, breaks) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (to, mut breaks) = (to.clone(), breaks.clone());
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
                let breaks = async { drop(breaks.wait_for(|broken| *broken).await) };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    () = breaks => {}
                }
                // Both stay open.
                std::future::pending::<()>().await;
            });
        }
    });
    (address, broken)
}

/// What the simulation takes for granted. An operation's digest of a shard may take minutes, and must not wait for these when the other node
/// has fallen silent; one that is only slow is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_to_a_node_that_fell_silent_is_lost_long_before_its_deadline() {
    let mut cluster = Cluster::grpc(2, |_| {});
    cluster.start(1).await;
    let Network::Grpc(addresses) = &cluster.network else { unreachable!() };
    let (way, broken) = fragile_way(addresses[&NodeId(1)].clone()).await;
    let resolver: Resolver = Arc::new(move |_| Some(way.clone()));
    let caller = GrpcTransport::new(CLUSTER, NodeId(2), resolver);
    let echo = cluster.echo.clone();
    let waiting = tokio::spawn({
        let caller = caller.clone();
        async move { caller.call(NodeId(1), "wait", Bytes::from("me"), NEVER).await }
    });
    eventually("the call to begin", || (echo.begun.load(Ordering::SeqCst) == 1).then_some(())).await;
    tokio::time::sleep(SILENCE).await;
    assert!(!waiting.is_finished(), "the other node lives and works on it");
    broken.send_replace(true);
    let lost = tokio::time::timeout(2 * SILENCE, waiting).await.expect("pings find out").unwrap();
    assert!(matches!(lost, Err(TransportError::Lost(_))), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_answers_what_it_was_asked() {
    let mut cluster = Cluster::grpc(2, |_| {});
    cluster.start(1).await;
    let (caller, echo) = (transport(&cluster, 2), cluster.echo.clone());
    let waiting = tokio::spawn({
        let caller = caller.clone();
        async move { caller.call(NodeId(1), "wait", Bytes::from("me"), PATIENCE).await }
    });
    eventually("the call to begin", || (echo.begun.load(Ordering::SeqCst) == 1).then_some(())).await;
    let opener = tokio::spawn({
        let (caller, echo) = (caller.clone(), echo.clone());
        async move {
            // Until nothing new is taken: such a call surely is not carried out.
            let call = || caller.call(NodeId(1), "echo", Bytes::from("hi"), PATIENCE);
            while call().await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            let refused = call().await;
            assert!(matches!(refused, Err(TransportError::Unreachable(_))), "{refused:?}");
            assert_eq!(echo.dropped.load(Ordering::SeqCst), 0);
            echo.gate.add_permits(1);
        }
    });
    cluster.stop(1).await;
    assert_eq!(waiting.await.unwrap().unwrap(), "me");
    opener.await.unwrap();
}
