//! RFD 1: a simulation that repeats itself.
//!
//! Three nodes with two groups run on turmoil's network, in one thread, with crashes, a partition and message
//! delays drawn from a seed. The trace has every message, every change of a group's state and every outcome, with
//! the simulated time. The same seed must give the same trace. `docs/rfd/0001-deterministic-consensus.md` says what this
//! took.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::{CLUSTER, Disk, Recorder, ids};
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use pleat_cluster::NodeId;
use pleat_consensus::{
    Config, Consensus, Group, MemoryDisk, ServiceError, SnapshotChunks, Storage, Transport, TransportError, simulate,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use turmoil::net::{TcpListener, TcpStream};

const PORT: u16 = 9000;
const NODES: [u64; 3] = [1, 2, 3];
const GROUPS: [u64; 2] = [1, 2];

/// What happened, in order.
#[derive(Clone, Default)]
struct Trace(Arc<Mutex<Vec<String>>>);

impl Trace {
    fn note(&self, event: String) {
        let at = turmoil::sim_elapsed().unwrap_or_default().as_micros();
        self.0.lock().push(format!("{at:>9} {event}"));
    }
}

/// One connection per call: a list of frames there, one frame back.
struct Sockets {
    node: NodeId,
    trace: Trace,
}

async fn send(stream: &mut TcpStream, frame: &[u8]) -> std::io::Result<()> {
    stream.write_u32(frame.len() as u32).await?;
    stream.write_all(frame).await
}

async fn receive(stream: &mut TcpStream) -> std::io::Result<Bytes> {
    let mut frame = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut frame).await?;
    Ok(frame.into())
}

type Answer = Result<Vec<u8>, (String, String)>;

impl Sockets {
    async fn exchange(&self, to: NodeId, method: &str, frames: Vec<Bytes>) -> Result<Bytes, TransportError> {
        let size: usize = frames.iter().map(Bytes::len).sum();
        self.trace.note(format!("{} -> {to} {method} {size} bytes", self.node));
        let unreachable = |error: std::io::Error| TransportError::Unreachable(error.to_string());
        let lost = |error: std::io::Error| TransportError::Lost(error.to_string());
        let mut stream = TcpStream::connect((to.to_string(), PORT)).await.map_err(unreachable)?;
        send(&mut stream, method.as_bytes()).await.map_err(lost)?;
        for frame in frames {
            send(&mut stream, &frame).await.map_err(lost)?;
        }
        let answer: Answer = postcard::from_bytes(&receive(&mut stream).await.map_err(lost)?).unwrap();
        answer.map(Bytes::from).map_err(|(code, message)| TransportError::Remote { code, message })
    }
}

#[async_trait]
impl Transport for Sockets {
    async fn call(&self, to: NodeId, method: &str, body: Bytes, deadline: Duration) -> Result<Bytes, TransportError> {
        let late = |_| TransportError::Lost("no answer in time".into());
        tokio::time::timeout(deadline, self.exchange(to, method, vec![body])).await.map_err(late)?
    }

    async fn stream(
        &self,
        _: NodeId,
        _: &str,
        _: Bytes,
        _: Duration,
    ) -> Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError> {
        Err(TransportError::Unreachable("not simulated".into()))
    }

    async fn send_snapshot(
        &self,
        to: NodeId,
        header: Bytes,
        chunks: SnapshotChunks,
        _: Duration,
    ) -> Result<Bytes, TransportError> {
        let mut frames = vec![header];
        frames.extend(chunks.map(Result::unwrap).collect::<Vec<_>>().await);
        frames.push(Bytes::new());
        self.exchange(to, "snapshot", frames).await
    }
}

async fn answer(consensus: Arc<Consensus>, mut stream: TcpStream) -> std::io::Result<()> {
    let method = String::from_utf8(receive(&mut stream).await?.to_vec()).unwrap();
    let body = receive(&mut stream).await?;
    let answer = if method == "snapshot" {
        let mut chunks = Vec::new();
        loop {
            match receive(&mut stream).await? {
                end if end.is_empty() => break,
                chunk => chunks.push(Ok(chunk)),
            }
        }
        consensus.handle_snapshot(body, futures::stream::iter(chunks).boxed()).await
    } else {
        consensus.handle(&method, body).await
    };
    let answer: Answer = answer.map(|body| body.to_vec()).map_err(|ServiceError { code, message }| (code, message));
    send(&mut stream, &postcard::to_stdvec(&answer).unwrap()).await
}

/// Who was a ready leader in each term of each group: nodes, with the number of their start.
type Reigns = BTreeMap<(u64, u64), BTreeSet<(u64, u64)>>;

/// The parts of the world that outlive a crash.
#[derive(Clone)]
struct World {
    trace: Trace,
    log: Arc<MemoryDisk>,
    disks: Vec<Arc<Disk>>,
    acknowledged: Arc<Mutex<Vec<(u64, String)>>>,
    leaders: Arc<Mutex<BTreeMap<u64, u64>>>,
    reigns: Arc<Mutex<Reigns>>,
    dir: std::path::PathBuf,
}

impl World {
    fn disk(&self, node: u64, group: u64) -> Arc<Disk> {
        self.disks[((node - 1) * 2 + group - 1) as usize].clone()
    }

    /// One node, from its start until it is crashed.
    async fn run_node(self, node: u64, boot: u64) -> turmoil::Result {
        let id = NodeId(node);
        let mut config = Config::new(id, CLUSTER, self.dir.join(format!("node-{node}")));
        config.storage = Storage::Memory(self.log.clone());
        config.checkpoint_entries = 30;
        config.log_keep_entries = 5;
        let transport = Arc::new(Sockets { node: id, trace: self.trace.clone() });
        let consensus = Consensus::open(config, transport).await?;
        for group in GROUPS {
            let machine = Box::new(Recorder(self.disk(node, group)));
            let group = consensus.start_group(group, machine).await?;
            group.initialize(ids(NODES)).await?;
            tokio::task::spawn_local(self.clone().watch(node, boot, group.clone()));
            for writer in 0..3 {
                tokio::task::spawn_local(self.clone().write(node, boot, writer, group.clone()));
            }
        }
        let listener = TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), PORT)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::task::spawn_local(answer(consensus.clone(), stream));
        }
    }

    /// A client beside the node: proposes whenever the node leads.
    async fn write(self, node: u64, boot: u64, writer: u64, group: Group) {
        for number in 0.. {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let name = format!("{node}.{boot}/{writer}/{number}");
            let outcome = group.propose(Bytes::from(name.clone()), Duration::from_millis(400)).await;
            match &outcome {
                Ok(_) => self.acknowledged.lock().push((group.id(), name.clone())),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
            self.trace.note(format!("{node} group {}: {name}: {outcome:?}", group.id()));
        }
    }

    async fn watch(self, node: u64, boot: u64, group: Group) {
        loop {
            let now = group.status();
            self.trace.note(format!("{node} group {}: {now:?}", group.id()));
            if now.ready {
                self.leaders.lock().insert(group.id(), node);
                self.reigns.lock().entry((group.id(), now.term)).or_default().insert((node, boot));
            }
            if !group.changed(&now).await {
                return;
            }
        }
    }
}

/// One simulated world with its three nodes.
struct Simulation<'a> {
    world: World,
    sim: turmoil::Sim<'a>,
    _dir: tempfile::TempDir,
    _deterministic: pleat_consensus::Simulation,
}

fn name(node: u64) -> String {
    format!("node-{node}")
}

impl Simulation<'_> {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let deterministic = simulate(seed);
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .simulation_duration(Duration::from_secs(60))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(15))
            .build();
        let world = World {
            trace: Trace::default(),
            log: MemoryDisk::new(Duration::from_millis(2)),
            disks: (0..NODES.len() * GROUPS.len()).map(|_| Arc::default()).collect(),
            acknowledged: Arc::default(),
            leaders: Arc::default(),
            reigns: Arc::default(),
            dir: dir.path().to_owned(),
        };
        for node in NODES {
            let (world, boots) = (world.clone(), Mutex::new(0));
            sim.host(name(node), move || {
                *boots.lock() += 1;
                world.clone().run_node(node, *boots.lock())
            });
        }
        Simulation { world, sim, _dir: dir, _deterministic: deterministic }
    }

    fn advance(&mut self, time: Duration) {
        let until = self.sim.elapsed() + time;
        while self.sim.elapsed() < until {
            self.sim.step().unwrap();
        }
    }

    /// A crash with a power failure.
    fn crash(&mut self, node: u64) {
        self.sim.crash(name(node));
        GROUPS.iter().for_each(|group| self.world.disk(node, *group).lose_power());
    }
}

/// Runs one simulation; gives its trace, and checks that nothing acknowledged is lost or doubled.
fn run(seed: u64) -> Vec<String> {
    let mut run = Simulation::new(seed);
    let victim = seed % 3 + 1;
    let other = victim % 3 + 1;
    run.advance(Duration::from_secs(4));
    run.crash(victim);
    run.advance(Duration::from_secs(5));
    run.sim.bounce(name(victim));
    run.advance(Duration::from_secs(3));
    NODES.iter().filter(|node| **node != other).for_each(|node| run.sim.partition(name(*node), name(other)));
    run.advance(Duration::from_secs(4));
    NODES.iter().filter(|node| **node != other).for_each(|node| run.sim.repair(name(*node), name(other)));
    // Faults end, and the cluster heals.
    run.advance(Duration::from_secs(6));
    check(&run.world);
    // Dropping the nodes may note more; that is no part of the run.
    run.world.trace.0.lock().clone()
}

fn check(world: &World) {
    for ((group, term), leaders) in &*world.reigns.lock() {
        assert_eq!(leaders.len(), 1, "term {term} of group {group} has one leader, that never restarted: {leaders:?}");
    }
    let acknowledged = world.acknowledged.lock().clone();
    for group in GROUPS {
        let contents: Vec<_> = NODES.iter().map(|node| world.disk(*node, group).proposals()).collect();
        // Replicas may be a few entries apart while writers go on: one is a beginning of the other.
        let longest = contents.iter().max_by_key(|content| content.len()).unwrap();
        for content in &contents {
            assert!(longest.starts_with(content), "replicas of group {group} differ");
            assert!(content.len() + 50 > longest.len(), "a replica of group {group} did not catch up");
        }
        let mut sorted = longest.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), longest.len(), "something was applied twice in group {group}");
        let names: Vec<_> = acknowledged.iter().filter(|(of, _)| *of == group).map(|(_, name)| name).collect();
        assert!(names.len() > 200, "group {group} made progress: {}", names.len());
        for name in names {
            assert!(sorted.binary_search(name).is_ok(), "{name} of group {group} was acknowledged and is gone");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let mut traces = Vec::new();
    for seed in [42, 7, 2026] {
        // Side by side: what is global to the process must not leak in.
        let (first, second) = std::thread::scope(|scope| {
            let one = scope.spawn(|| run(seed));
            let two = scope.spawn(|| run(seed));
            (one.join().unwrap(), two.join().unwrap())
        });
        for (line, (one, two)) in first.iter().zip(&second).enumerate() {
            assert_eq!(one, two, "seed {seed}: the runs part at line {line} of {}", first.len());
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
        assert!(first.iter().any(|line| line.contains("snapshot")), "seed {seed}: a snapshot was sent");
        // Comparable between processes, by eye.
        let hash = first
            .iter()
            .flat_map(|line| line.bytes())
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        println!("seed {seed}: {} lines, hash {hash:016x}", first.len());
        traces.push(first);
    }
    assert_ne!(traces[0], traces[1], "another seed is another run");
}

/// How many seeds to try: more with `PLEAT_SEEDS=1000`.
fn seeds(few: u64) -> std::ops::Range<u64> {
    0..std::env::var("PLEAT_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(few)
}

#[test]
fn crashes_and_partitions_lose_nothing_acknowledged() {
    for seed in seeds(10) {
        println!("seed {seed}");
        run(seed);
    }
}

/// In simulated time, so that no busy machine makes it fail.
#[test]
fn writes_resume_within_three_seconds_of_a_leaders_crash() {
    for seed in seeds(20) {
        let mut run = Simulation::new(seed);
        run.advance(Duration::from_secs(5));
        let leader = run.world.leaders.lock()[&1];
        run.crash(leader);
        let crashed = run.sim.elapsed();
        let of_group = |run: &Simulation| run.world.acknowledged.lock().iter().filter(|(group, _)| *group == 1).count();
        let before = of_group(&run);
        while of_group(&run) == before {
            run.advance(Duration::from_millis(1));
            let waited = run.sim.elapsed() - crashed;
            assert!(waited <= Duration::from_secs(3), "seed {seed}: no write for {waited:?}");
        }
        println!("seed {seed}: {:?}", run.sim.elapsed() - crashed);
    }
}

/// A power failure of all nodes at once; they come back together, or one after the other.
#[test]
fn writes_resume_within_three_seconds_of_a_restart_of_everything() {
    for seed in seeds(20) {
        let mut run = Simulation::new(seed);
        run.advance(Duration::from_secs(5));
        NODES.iter().for_each(|node| run.crash(*node));
        for node in NODES {
            run.advance(Duration::from_millis(seed % 4 * 100));
            run.sim.bounce(name(node));
        }
        let started = run.sim.elapsed();
        let of_group = |run: &Simulation| run.world.acknowledged.lock().iter().filter(|(group, _)| *group == 1).count();
        let before = of_group(&run);
        while of_group(&run) == before {
            run.advance(Duration::from_millis(1));
            let waited = run.sim.elapsed() - started;
            assert!(waited <= Duration::from_secs(3), "seed {seed}: no write for {waited:?}");
        }
        println!("seed {seed}: {:?}", run.sim.elapsed() - started);
        run.advance(Duration::from_secs(4));
        check(&run.world);
    }
}
