//! One run: found a cluster, let things go wrong, let it heal, and look at what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use pleat_cluster::{NodeId, OperationId, OperationKind, Phase as OfOperation};
use pleat_consensus::DiskState;
use pleat_engine::{ContentDigest, Readers, ShardStats, Store, StoreConfig};
use rand_chacha::ChaCha8Rng;

use crate::disk::{Death, Frozen, freeze};
use crate::faults::{
    Fault, Planned, Whom, Wipe, draw_again, plan, plan_disks, plan_slow_disks, plan_wipe, with_busy_operator,
    with_disks, with_schema, with_wipes,
};
use crate::invariants::Invariants;
use crate::net::name;
use crate::node::{self, NODES, PARTITIONS};
use crate::trace::Trace;
use crate::workload::{self, chance};
use crate::world::{ACCOUNTS, Phase, World};
use crate::{copies, os, panics, schema};

/// How long founding the cluster and its tables may take, in the simulation's time.
const FOUND_LIMIT: Duration = Duration::from_secs(30);
/// How long things go wrong.
const FAULTS_LAST: Duration = Duration::from_secs(20);
/// How long the cluster may take until all is well, once nothing goes wrong any more.
const HEAL_LIMIT: Duration = Duration::from_secs(90);
/// Writes that each account must have taken by then, since.
const HEALED_WRITES: usize = 3;
/// How long requests under way, the last reads, and replicas that lag may take.
const END_LIMIT: Duration = Duration::from_secs(30);
/// The simulation's clock moves by this.
/// Ports that connections are made from. A node that can't reach another one tries again often, and turmoil doesn't bear that a port comes round
/// while its other end still has the connection before: with its default of 16,384 that happened to one seed in 200.
const PORTS: std::ops::RangeInclusive<u16> = 10_000..=65_535;
const TICK: Duration = Duration::from_millis(1);
/// How often the invariants are checked. Shorter than any way from a fence to its target's activation: see `invariants`.
const CHECK_EVERY: Duration = Duration::from_millis(5);
/// How long messages take, ordinarily.
const LATENCY: std::ops::Range<Duration> = Duration::from_millis(1)..Duration::from_millis(12);
/// Messages that a connection holds: a snapshot comes in many.
const TCP_MESSAGES_MAX: usize = 4_096;
const CLIENTS: &str = "clients";

/// The streams of chance, beside those of the clients.
const OF_FAULTS: u64 = 1_000;
const OF_DISKS: u64 = 1_001;
const OF_DISK_FAULTS: u64 = 1_002;
const OF_SLOW_DISKS: u64 = 1_003;
const OF_WIPES: u64 = 1_004;
const OF_DEATHS_AGAIN: u64 = 1_005;

/// Of so many faults one happens where the operator is a busy one.
const FAULTS_SPARED: usize = 3;
/// How long a node is down whose disk failed.
const DOWN_AFTER_FAILURE: Duration = Duration::from_millis(400);

/// How to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Keep the whole trace.
    pub trace: bool,
    /// What the nodes log becomes part of the trace.
    pub log: bool,
    /// A bug to plant.
    #[cfg(feature = "planted")]
    pub bug: Option<pleat_cluster::planted::Bug>,
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    /// What was wrong, if anything.
    pub wrong: Option<String>,
    /// Lines of the trace, and their hash.
    pub hash: (u64, u64),
    pub lines: Vec<String>,
    /// Writes sent, and acknowledged.
    pub writes: (usize, usize),
    /// Faults that happened, and operations in the journal.
    pub faults: usize,
    pub operations: usize,
    /// How long the cluster took to heal.
    pub healed_in: Duration,
    /// How long the run took in the simulation's time.
    pub elapsed: Duration,
}

/// Run a seed, on a thread of its own.
pub fn run(seed: u64, options: &Options) -> Report {
    let options = options.clone();
    let trace = Trace::new(options.trace);
    let of_run = trace.clone();
    let thread = std::thread::Builder::new().name(format!("seed-{seed}")).spawn(move || {
        let _panics = panics::note_in(&of_run);
        let _os = os::enter(seed);
        let _tasks = pleat_consensus::simulate(seed);
        #[cfg(feature = "planted")]
        let _planted = options.bug.map(pleat_cluster::planted::plant);
        carry_out(seed, of_run, options.log)
    });
    let ended = thread.map(std::thread::JoinHandle::join);
    let (hash, lines) = (trace.hash(), trace.lines());
    match ended {
        Ok(Ok(report)) => Report { hash, lines, ..report },
        Ok(Err(_)) => {
            let panic = trace.panic().unwrap_or_else(|| "without a message".to_owned());
            Report { hash, lines, ..Report::new(seed, Some(format!("a panic: {panic}"))) }
        }
        Err(error) => Report::new(seed, Some(format!("no thread for the simulation: {error}"))),
    }
}

impl Report {
    fn new(seed: u64, wrong: Option<String>) -> Self {
        Report {
            seed,
            wrong,
            hash: (0, 0),
            lines: Vec::new(),
            writes: (0, 0),
            faults: 0,
            operations: 0,
            healed_in: Duration::ZERO,
            elapsed: Duration::ZERO,
        }
    }
}

fn carry_out(seed: u64, trace: Trace, log: bool) -> Report {
    let dir = match tempfile::Builder::new().prefix("pleat-sim-").tempdir_in(fast_dir()) {
        Ok(dir) => dir,
        Err(error) => return Report::new(seed, Some(format!("no directory for the simulation: {error}"))),
    };
    let _log = log.then(|| trace.follow_log(dir.path()));
    let world = World::new(seed, trace, dir.path().to_owned());
    let mut run = Run::new(world, dir.path());
    let outcome = run.all();
    let mut report = Report::new(seed, outcome.err().map(|wrong| wrong.replace(&*dir.path().to_string_lossy(), "")));
    report.writes = run.world.oracle(|oracle| oracle.counts());
    (report.faults, report.healed_in, report.elapsed) = (run.happened, run.healed_in, run.sim.elapsed());
    report.operations = run.world.hosts().values().map(|host| host.catalog().operations.len()).max().unwrap_or(0);
    report
}

/// Memory, where there is a file system in it: files are written and read all the time, and nothing of them must last.
fn fast_dir() -> std::path::PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// What undoes a fault, or comes after one.
#[derive(Clone, Copy, Debug)]
enum Undo {
    Start(u64),
    /// The node dies: it will be undone, too.
    Die(u64),
    Repair,
    Speed,
    /// The node's disk works again, and has room.
    Mend(u64),
    /// The node's disk is as quick as ever.
    Quick(u64),
}

struct Run<'a> {
    world: World,
    sim: turmoil::Sim<'a>,
    invariants: Invariants,
    /// How often each node was started.
    boots: BTreeMap<u64, u64>,
    down: BTreeMap<u64, Frozen>,
    /// What is to be undone, and when.
    undo: Vec<(Duration, Undo)>,
    checked: Duration,
    disks: ChaCha8Rng,
    /// The disk that will be lost.
    wipe: Option<Wipe>,
    /// Rebuilds that were seen to end, and when a node dies again after one.
    rebuilt: BTreeSet<OperationId>,
    again: ChaCha8Rng,
    /// Nothing goes wrong any more.
    heals: bool,
    dir: std::path::PathBuf,
    happened: usize,
    healed_in: Duration,
}

type Outcome<T = ()> = Result<T, String>;

impl Run<'_> {
    fn new(world: World, dir: &Path) -> Self {
        let mut sim = turmoil::Builder::new()
            .rng_seed(world.seed)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(LATENCY.start)
            .max_message_latency(LATENCY.end)
            .tcp_capacity(TCP_MESSAGES_MAX)
            .ephemeral_ports(PORTS)
            .build();
        for node in NODES {
            let world = world.clone();
            sim.host(name(node), move || node::run(world.clone(), node));
        }
        let of_clients = world.clone();
        sim.host(CLIENTS, move || workload::run(of_clients.clone()));
        let (disks, again) = (chance(world.seed, OF_DISKS), chance(world.seed, OF_DEATHS_AGAIN));
        Run {
            world,
            sim,
            invariants: Invariants::default(),
            boots: NODES.iter().map(|node| (*node, 1)).collect(),
            down: BTreeMap::new(),
            undo: Vec::new(),
            checked: Duration::ZERO,
            disks,
            wipe: None,
            rebuilt: BTreeSet::new(),
            again,
            heals: false,
            dir: dir.to_owned(),
            happened: 0,
            healed_in: Duration::ZERO,
        }
    }

    fn all(&mut self) -> Outcome {
        self.until(FOUND_LIMIT, "the cluster was not founded", |run| run.world.phase() == Phase::Working)?;
        self.go_wrong()?;
        self.heal()?;
        self.look_at_what_is_left()
    }

    /// A step of the simulation, and what is due.
    fn step(&mut self) -> Outcome {
        os::set_now(self.sim.elapsed());
        self.sim.step().map_err(|error| format!("a node has failed: {error}"))?;
        self.end_failed()?;
        let now = self.sim.elapsed();
        let due: Vec<Undo> = self.undo.iter().filter(|(at, _)| *at <= now).map(|(_, undo)| *undo).collect();
        self.undo.retain(|(at, _)| *at > now);
        due.into_iter().try_for_each(|undo| self.undo(undo))?;
        if now >= self.checked + CHECK_EVERY {
            self.checked = now;
            self.see_to_disk(now)?;
            self.see_to_rebuilt(now);
            let news = self.invariants.check(&self.world.hosts(), &self.world.log, &self.boots)?;
            news.iter().for_each(|line| self.note(line));
        }
        self.world.verdict().map_or(Ok(()), Err)
    }

    /// A disk is lost when its time has come and the cluster can bear it.
    fn see_to_disk(&mut self, now: Duration) -> Outcome {
        let due = |wipe: &Wipe| now >= wipe.at && self.is_whole();
        let Some(Wipe { node, lasts, .. }) = self.wipe.filter(due) else { return Ok(()) };
        self.wipe = None;
        self.note(format_args!("FAULT the disk of {node} is lost"));
        self.happened += 1;
        self.kill(node, Death::Power)?;
        self.down.insert(node, Frozen::lost(&self.world.dir_of(node)));
        self.world.loses_disk(node);
        self.invariants.lose(node, self.world.log.lose(NodeId(node)));
        self.undo.push((now + lasts, Undo::Start(node)));
        Ok(())
    }

    /// A node of which something was rebuilt dies once more: what it replays when it starts again is from before that.
    fn see_to_rebuilt(&mut self, now: Duration) {
        if !with_wipes(self.world.seed) || self.heals {
            return;
        }
        for catalog in self.world.hosts().into_values().map(|host| host.catalog()) {
            for operation in catalog.operations.values().filter(|one| one.phase == OfOperation::Successful) {
                let OperationKind::Rebuild { node, .. } = operation.kind else { continue };
                if self.rebuilt.insert(operation.id) {
                    self.note(format_args!("{} has rebuilt what {node} had", operation.id));
                    let (after, lasts) = draw_again(&mut self.again);
                    self.undo.extend([(now + after, Undo::Die(node.0)), (now + after + lasts, Undo::Start(node.0))]);
                }
            }
        }
    }

    fn is_whole(&self) -> bool {
        self.down.is_empty() && Invariants::whole(&self.world.hosts(), NODES.len())
    }

    /// Nodes whose disk failed end, as their process does. What could not be made durable is gone.
    fn end_failed(&mut self) -> Outcome {
        let failed = |host: &pleat_host::Host| matches!(host.disk().state(), DiskState::Failed { .. });
        let mut nodes = self.world.take_failed();
        nodes.extend(self.world.hosts().into_iter().filter(|(_, host)| failed(host)).map(|(node, _)| node));
        for node in nodes {
            self.note(format_args!("{node} ends: its disk failed"));
            self.kill(node, Death::Power)?;
            let again = self.sim.elapsed() + DOWN_AFTER_FAILURE;
            self.undo.extend([(again, Undo::Mend(node)), (again, Undo::Start(node))]);
        }
        Ok(())
    }

    fn note(&self, event: impl std::fmt::Display) {
        self.world.trace.note_at(self.sim.elapsed().as_micros(), event);
    }

    /// Let time pass until something is so.
    fn until(&mut self, limit: Duration, otherwise: &str, so: impl Fn(&Self) -> bool) -> Outcome {
        let end = self.sim.elapsed() + limit;
        while !so(self) {
            if self.sim.elapsed() >= end {
                return Err(format!("{otherwise} within {limit:?}"));
            }
            self.step()?;
        }
        Ok(())
    }

    fn go_wrong(&mut self) -> Outcome {
        let begin = self.sim.elapsed();
        let mut planned = plan(&mut chance(self.world.seed, OF_FAULTS), begin, begin + FAULTS_LAST);
        if with_disks(self.world.seed) {
            planned.extend(plan_disks(&mut chance(self.world.seed, OF_DISK_FAULTS), begin, begin + FAULTS_LAST));
        }
        planned.extend(plan_slow_disks(&mut chance(self.world.seed, OF_SLOW_DISKS), begin, begin + FAULTS_LAST));
        planned.sort_by_key(|next| next.at);
        if with_busy_operator(self.world.seed) {
            // What is under way is to end now and then.
            planned = planned.into_iter().step_by(FAULTS_SPARED).collect();
        }
        if with_wipes(self.world.seed) {
            self.wipe = Some(plan_wipe(&mut chance(self.world.seed, OF_WIPES), begin));
        }
        for next in planned {
            while self.sim.elapsed() < next.at {
                self.step()?;
            }
            self.happens(next)?;
        }
        while self.sim.elapsed() < begin + FAULTS_LAST {
            self.step()?;
        }
        Ok(())
    }

    fn happens(&mut self, Planned { fault, lasts, .. }: Planned) -> Outcome {
        self.note(format_args!("FAULT {fault:?} for {lasts:?}"));
        self.happened += 1;
        let end = self.sim.elapsed() + lasts;
        match fault {
            Fault::Dies(whom, death) => {
                let node = self.who(whom);
                self.kill(node, death)?;
                self.undo.push((end, Undo::Start(node)));
            }
            Fault::Outage => {
                for (after, node) in (0..).zip(NODES) {
                    self.kill(node, Death::Power)?;
                    self.undo.push((end + Duration::from_millis(100 * after), Undo::Start(node)));
                }
            }
            Fault::CutOff(whom) => self.cut(whom, true, true, end),
            Fault::Deaf(whom) => self.cut(whom, true, false, end),
            Fault::Mute(whom) => self.cut(whom, false, true, end),
            Fault::Parted(one, other) => {
                self.sim.partition(name(one), name(other));
                self.undo.push((end, Undo::Repair));
            }
            Fault::DiskFails(whom) => {
                let node = self.who(whom);
                self.world.log.fail(NodeId(node), true);
                os::fail_syncs(&self.world.dir_of(node), true);
                self.undo.push((end, Undo::Mend(node)));
            }
            Fault::Full(whom) => {
                let node = self.who(whom);
                self.fill(node, end);
            }
            Fault::SlowDisk(whom, ms) => {
                let node = self.who(whom);
                self.world.log.slow_down(NodeId(node), Some(Duration::from_millis(ms)));
                self.undo.push((end, Undo::Quick(node)));
            }
            Fault::AllFull => NODES.into_iter().for_each(|node| self.fill(node, end)),
            Fault::Slow(most_ms) => {
                self.sim.set_max_message_latency(Duration::from_millis(most_ms));
                self.undo.push((end, Undo::Speed));
            }
        }
        Ok(())
    }

    fn mend(&self, node: u64) {
        self.world.log.fail(NodeId(node), false);
        os::fail_syncs(&self.world.dir_of(node), false);
        if let Some(host) = self.world.hosts().get(&node) {
            host.disk().pretend_full(false);
        }
    }

    fn fill(&mut self, node: u64, end: Duration) {
        // One that is down comes back with room.
        if let Some(host) = self.world.hosts().get(&node) {
            host.disk().pretend_full(true);
        }
        self.undo.push((end, Undo::Mend(node)));
    }

    fn who(&self, whom: Whom) -> u64 {
        match whom {
            Whom::Node(node) => node,
            Whom::Leader(group) => {
                let hosts = self.world.hosts();
                let leads = |host: &pleat_host::Host| match u32::try_from(group) {
                    Ok(0) | Err(_) => host.control_status().is_leader,
                    Ok(shard) => {
                        host.shard_status(pleat_cluster::ShardId(shard)).is_some_and(|status| status.is_leader)
                    }
                };
                hosts
                    .iter()
                    .find(|(_, host)| leads(host))
                    .map_or(NODES[group as usize % NODES.len()], |(node, _)| *node)
            }
        }
    }

    fn cut(&mut self, whom: Whom, from_others: bool, to_others: bool, end: Duration) {
        let node = self.who(whom);
        for other in NODES.into_iter().filter(|other| *other != node) {
            if from_others {
                self.sim.partition_oneway(name(other), name(node));
            }
            if to_others {
                self.sim.partition_oneway(name(node), name(other));
            }
        }
        self.undo.push((end, Undo::Repair));
    }

    /// A node dies, unless it is dead.
    fn kill(&mut self, node: u64, death: Death) -> Outcome {
        if self.down.contains_key(&node) {
            return Ok(());
        }
        self.note(format_args!("{node} dies"));
        let frozen = freeze(&self.world.dir_of(node), death, &mut self.disks).map_err(|error| error.to_string())?;
        self.world.dies(node);
        self.sim.crash(name(node));
        self.down.insert(node, frozen);
        Ok(())
    }

    fn undo(&mut self, undo: Undo) -> Outcome {
        match undo {
            Undo::Start(node) => {
                let Some(frozen) = self.down.remove(&node) else { return Ok(()) };
                self.mend(node);
                frozen.thaw().map_err(|error| error.to_string())?;
                self.note(format_args!("{node} is started again"));
                *self.boots.entry(node).or_default() += 1;
                self.sim.bounce(name(node));
            }
            Undo::Die(node) => self.kill(node, Death::Process)?,
            Undo::Repair => {
                self.note("the network is whole again");
                for one in NODES {
                    for other in NODES.into_iter().filter(|other| *other > one) {
                        self.sim.repair(name(one), name(other));
                    }
                }
            }
            Undo::Mend(node) => {
                self.note(format_args!("{node} has a disk that works and has room"));
                self.mend(node);
            }
            Undo::Quick(node) => self.world.log.slow_down(NodeId(node), None),
            Undo::Speed => self.sim.set_max_message_latency(LATENCY.end),
        }
        Ok(())
    }

    /// How many writes were acknowledged on the row that has the fewest.
    fn acknowledged_least(&self) -> usize {
        let least = self.world.oracle(|oracle| oracle.acknowledged_least());
        match with_schema(self.world.seed) {
            true => self.world.copies(|oracle| oracle.acknowledged_least()).min(least),
            false => least,
        }
    }

    /// Nothing goes wrong any more: all must be well within a while, and clients be served as ever.
    fn heal(&mut self) -> Outcome {
        (self.wipe, self.heals) = (None, true);
        for (_, undo) in std::mem::take(&mut self.undo) {
            self.undo(undo)?;
        }
        self.undo(Undo::Repair)?;
        self.undo(Undo::Speed)?;
        let begun = self.sim.elapsed();
        let least = self.acknowledged_least() + HEALED_WRITES;
        let end = begun + HEAL_LIMIT;
        self.world.operate(false);
        loop {
            let healed = Invariants::healed(&self.world.hosts(), NODES.len());
            let served = self.acknowledged_least() >= least;
            match healed {
                Ok(()) if served => break,
                healed if self.sim.elapsed() >= end => {
                    let why = healed.err().unwrap_or_else(|| "clients can't write every account".to_owned());
                    return Err(format!("not healed {HEAL_LIMIT:?} after the last fault: {why}"));
                }
                _ => self.step()?,
            }
        }
        self.healed_in = self.sim.elapsed() - begun;
        self.note(format_args!("healed in {:?}", self.healed_in));
        Ok(())
    }

    fn look_at_what_is_left(&mut self) -> Outcome {
        self.world.set_phase(Phase::Resting);
        self.until(END_LIMIT, "requests did not end", |run| !run.world.is_anybody_asking())?;
        self.world.set_phase(Phase::Auditing);
        self.until(END_LIMIT, "the last reads did not end", |run| run.world.phase() == Phase::Audited)?;
        self.world.set_phase(Phase::Resting);
        self.until(END_LIMIT, "the replicas did not get level", |run| Invariants::level(&run.world.hosts()))?;
        self.compare_replicas()
    }

    /// The databases as they are on the nodes' disks: all of a shard alike, and together every row once.
    fn compare_replicas(&mut self) -> Outcome {
        let Some(catalog) = self.world.hosts().into_values().next().map(|host| host.catalog()) else { return Ok(()) };
        schema::check_catalog(&catalog, &self.world.changes())?;
        let (mut rows, mut of_shards) = (0, BTreeMap::new());
        for shard in catalog.active_shards() {
            let mut digests = Vec::new();
            for node in NODES {
                let number = shard.number(pleat_cluster::NodeId(node));
                let of = if number == 0 { shard.id.to_string() } else { format!("{}.{number}", shard.id) };
                let (digest, stats, readers) =
                    self.copy_of(node, &of).map_err(|error| format!("{}: {error:#}", shard.id))?;
                schema::check_shard(&readers, &catalog)
                    .map_err(|wrong| format!("the schema of {} on node {node}: {wrong}", shard.id))?;
                if stats.foreign_rows {
                    return Err(format!("{} still holds rows on node {node} that it does not own", shard.id));
                }
                rows += stats.tables.get("accounts").copied().unwrap_or(0);
                digests.push(digest);
            }
            of_shards.insert(shard.id, digests[0].tables.get(copies::TABLE).copied());
            if let Some(other) = digests.iter().position(|digest| *digest != digests[0]) {
                let (one, other) = (&digests[0], &digests[other]);
                return Err(format!("the replicas of {} differ in the end: {one:?} and {other:?}", shard.id));
            }
        }
        let one = of_shards.values().next();
        if of_shards.values().any(|other| Some(other) != one) {
            return Err(format!("the shards' copies of a reference table differ in the end: {of_shards:?}"));
        }
        match rows == ACCOUNTS.count() as u64 * NODES.len() as u64 {
            true => Ok(()),
            false => Err(format!("all replicas together hold {rows} accounts, of {} each", ACCOUNTS.count())),
        }
    }

    fn copy_of(&mut self, node: u64, shard: &str) -> anyhow::Result<(ContentDigest, ShardStats, Readers)> {
        let into = self.dir.join(format!("copy-{node}-{shard}"));
        freeze(&self.world.dir_of(node).join(shard), Death::Process, &mut self.disks)?.write_to(&into)?;
        let (mut store, readers) = Store::open(&into, StoreConfig::new(PARTITIONS))?;
        Ok((store.digest()?, readers.stats()?, readers))
    }
}
