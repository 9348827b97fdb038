mod common;
use common::*;
use pleat_cluster::NodeId;
#[tokio::test(flavor = "multi_thread")]
async fn speed() {
    let cluster = Cluster::grpc(3, |_| {}).founded(3).await;
    let leader = cluster.leader(1, 1..=3).await;
    for writers in [1u64, 16, 64, 256] {
        let before = cluster.nodes[&NodeId(leader)].stats();
        let start = std::time::Instant::now();
        let mut tasks = vec![];
        for w in 0..writers {
            let g = cluster.group(leader, 1);
            tasks.push(tokio::spawn(async move {
                let mut n = 0u64;
                while start.elapsed().as_secs() < 4 {
                    propose(&g, &format!("{w}/{n}")).await.unwrap();
                    n += 1;
                }
                n
            }));
        }
        let mut total = 0;
        for t in tasks {
            total += t.await.unwrap();
        }
        let after = cluster.nodes[&NodeId(leader)].stats();
        let start = std::time::Instant::now();
        let mut reads = vec![];
        for _ in 0..writers {
            let g = cluster.group(leader, 1);
            reads.push(tokio::spawn(async move {
                let mut n = 0u64;
                while start.elapsed().as_secs() < 2 {
                    g.read_barrier(PATIENCE).await.unwrap();
                    n += 1;
                }
                n
            }));
        }
        let mut r = 0;
        for t in reads {
            r += t.await.unwrap();
        }
        println!(
            "{writers} writers: {}/s, {} flushes/s on the leader; reads {}/s",
            total / 4,
            (after.flushes - before.flushes) / 4,
            r / 2
        );
    }
}
#[tokio::test(flavor = "multi_thread")]
async fn volume() {
    let mut cluster = Cluster::calls(|_| {}).founded(1).await;
    let big = "x".repeat(100_000);
    let group = cluster.group(1, 1);
    cluster.leader(1, [1]).await;
    let start = std::time::Instant::now();
    for i in 0..60 {
        let mut f = vec![];
        for _ in 0..100 {
            f.push(propose(&group, &big));
        }
        for r in futures::future::join_all(f).await {
            r.unwrap();
        }
        cluster.disk(1, 1).now.lock().proposals.clear();
        cluster.disk(1, 1).synced.lock().proposals.clear();
        if i % 10 == 9 {
            let out = std::process::Command::new("du").arg("-sm").arg(cluster.config(1).dir).output().unwrap();
            println!(
                "{} MB written in {:?}: {} {:?}",
                (i + 1) * 10,
                start.elapsed(),
                String::from_utf8_lossy(&out.stdout).trim(),
                cluster.group(1, 1).status().purged
            );
        }
    }
    drop(group);
    let start = std::time::Instant::now();
    cluster.stop(1).await;
    println!("stop {:?}", start.elapsed());
    let start = std::time::Instant::now();
    cluster.start(1).await;
    cluster.start_group(1, 1).await;
    println!("start {:?}", start.elapsed());
}
