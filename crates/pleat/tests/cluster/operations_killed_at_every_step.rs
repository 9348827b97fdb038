//! Operations with a process killed at every step of them ([`pleat_host::failpoint::OPERATION_PLACES`]), while clients keep
//! account ([`crate::workload`]): the leader of the control group, of the shard that gives, of the one that gets, or any
//! replica. Each time
//!
//! - the operation ends, done or given up;
//! - no shard is left with rows that it does not own, and the same partitions can be moved again: the next case does it;
//! - nothing acknowledged is lost, doubled or torn, and writes go on.
//!
//! Some of the table is run always, all of it by `cargo xtask test --full`. `STEPS_SEED` says which, and `STEPS_ONLY` takes those of all in whose
//! description one of its words is, separated by commas: `Merge,@Fence,applying`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use pleat_generate::Dice;
use pleat_host::failpoint::OPERATION_PLACES;
use serde_json::{Value, json};

use crate::harness::{Cluster, Options, PATIENCE};
use crate::scaling;
use crate::workload::{Mix, Running, Workload};

/// Cases of the run that is always made.
const SOME: usize = 4;
/// How soon an operation has begun that was asked for. What is not in the journal by then was lost with its node.
const BEGINS_WITHIN: Duration = Duration::from_secs(15);
/// How often a case is tried: leaders may change by themselves on a busy machine, and then nobody dies.
const TRIES_MAX: u32 = 4;
/// How long the copying of a move that is cancelled meanwhile is held up.
const HELD_UP_MS: u32 = 1_500;
/// How long a shard takes to close its gates when they are to be opened again: longer than a move waits for it.
const FENCED_LATE_MS: u32 = 3_500;
/// Writes that must be acknowledged after each case.
const WRITES_AFTER: u64 = 20;
const NODES: u16 = 3;

/// What is going on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Split,
    Merge,
    /// A merge that is cancelled while it copies.
    Cancelled,
    /// A split that opens the gates again, since closing them took too long.
    Reopened,
    /// CREATE INDEX.
    Index,
    /// A table gets another placement.
    Place,
    /// The same, cancelled while it copies.
    PlaceCancelled,
    /// The same, with gates that are opened again.
    PlaceReopened,
    /// A node comes back with an empty disk.
    Rebuild,
}

impl What {
    /// Begun by the autoscaler, from one shard.
    fn splits(self) -> bool {
        matches!(self, What::Split | What::Reopened)
    }
}

/// Whose process dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Control,
    /// The leader of the shard that gives, or that stays.
    Source,
    /// The leader of the shard that a merge gives to.
    Target,
    /// Any node: each has a replica of every shard.
    Any,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    what: What,
    place: &'static str,
    /// A step of the journal, or what a shard is told.
    narrowed: &'static str,
    role: Role,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.place)?;
        if self.narrowed.is_empty() { Ok(()) } else { write!(f, "@{}", self.narrowed) }
    }
}

fn cases() -> Vec<Case> {
    use Role::{Any, Control, Source, Target};
    let mut cases = Vec::new();
    let mut add = |what, place, role, narrowed: &[&'static str]| {
        cases.extend(narrowed.iter().map(|narrowed| Case { what, place, narrowed, role }));
    };
    let made = ["create shard", "copy schema", "copy reference tables"];
    let copied = ["capture", "copy", "catch up", "verify"];
    let last = ["release", "clean up"];
    add(What::Split, "operation.step-begun", Control, &[&made[..], &copied, &["fence"], &last].concat());
    add(What::Split, "operation.step-ended", Control, &[&made[..], &copied, &["activate"], &last].concat());
    add(What::Merge, "operation.step-begun", Control, &["copy", "fence", "remove shard"]);
    add(What::Cancelled, "operation.step-begun", Control, &["take back"]);
    add(What::Cancelled, "operation.step-ended", Control, &["take back"]);
    add(What::Index, "operation.step-begun", Control, &["change shards"]);
    add(What::Index, "operation.step-ended", Control, &["change shards"]);
    add(What::Place, "operation.step-begun", Control, &["copy"]);
    add(What::Place, "operation.step-ended", Control, &["switch"]);
    for place in ["operation.step-begun", "operation.step-ended"] {
        add(What::Rebuild, place, Control, &["remove", "rejoin the control group", "rejoin shard-1"]);
    }
    add(What::PlaceCancelled, "operation.step-begun", Control, &["take back"]);
    for place in ["operation.before-commit", "operation.committed", "operation.before-finish", "operation.finished"] {
        for what in [What::Split, What::Merge, What::Index, What::Place] {
            add(what, place, Control, &[""]);
        }
    }
    add(What::Rebuild, "operation.committed", Control, &[""]);
    add(What::Cancelled, "operation.given-up", Control, &[""]);

    let on_source = ["CaptureStart", "Fence", "Release", "CleanUp", "CleanUpDone"];
    let on_target = ["Ddl", "Own", "ReferenceLoaded", "Claim", "ImportStart", "Import", "Activate"];
    for place in ["operation.before-effect", "operation.had-effect"] {
        add(What::Split, place, Control, &[&on_source[..], &on_target].concat());
        add(What::Merge, place, Control, &["Close", "Activate"]);
        add(What::Cancelled, place, Control, &["Abort", "ImportAbort"]);
        add(What::Reopened, place, Control, &["Unfence"]);
        add(What::PlaceCancelled, place, Control, &["PlaceAbort"]);
        add(What::PlaceReopened, place, Control, &["PlaceUnfence"]);
        add(What::Index, place, Control, &["Ddl"]);
        add(What::Place, place, Control, &["PlaceStart", "PlaceFence", "PlaceSwitch", "PlaceOpen"]);
    }
    for place in ["shard.before-effect", "shard.had-effect"] {
        add(What::Split, place, Source, &on_source);
        add(What::Merge, place, Source, &["CaptureStart", "Close"]);
        add(What::Merge, place, Target, &["Claim", "ImportStart", "Import", "Activate"]);
        add(What::Cancelled, place, Source, &["Abort"]);
        add(What::Cancelled, place, Target, &["ImportAbort"]);
        add(What::Reopened, place, Source, &["Unfence"]);
        add(What::PlaceCancelled, place, Source, &["PlaceAbort"]);
        add(What::PlaceReopened, place, Source, &["PlaceUnfence"]);
        add(What::Index, place, Source, &["Ddl"]);
        add(What::Place, place, Source, &["PlaceStart", "PlaceFence", "PlaceSwitch", "PlaceOpen"]);
    }
    add(What::Split, "shard.applying-effect", Any, &[&on_source[..], &on_target].concat());
    add(What::Merge, "shard.applying-effect", Source, &["Close"]);
    add(What::Merge, "shard.applying-effect", Target, &["Activate"]);
    add(What::Cancelled, "shard.applying-effect", Any, &["Abort", "ImportAbort"]);
    add(What::Reopened, "shard.applying-effect", Any, &["Unfence"]);
    add(What::PlaceCancelled, "shard.applying-effect", Any, &["PlaceAbort"]);
    add(What::PlaceReopened, "shard.applying-effect", Any, &["PlaceUnfence"]);
    add(What::Place, "shard.applying-effect", Any, &["PlaceStart", "PlaceFence", "PlaceSwitch", "PlaceOpen"]);
    cases
}

/// The cluster, and what was done to it.
struct Bench {
    cluster: Cluster,
    dice: Dice,
    /// Names that are used once.
    number: u32,
    /// Whether the table whose placement changes is sharded now.
    sharded: bool,
    /// Nodes in the order in which they died last: one that dies again soon is started again late.
    rested: [u16; NODES as usize],
}

/// How a case ended.
struct Outcome {
    victim: u16,
    ended: String,
    took: Duration,
}

impl Bench {
    async fn start(seed: u64) -> (Self, Running) {
        let mut config = scaling::config();
        config["max_shards"] = json!(2);
        let cluster = Cluster::start(Options { config, ..Options::default() }).await;
        cluster.query("CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT) REFERENCE").await;
        cluster.query("INSERT INTO names VALUES (1, 'one'), (2, 'two')").await;
        cluster.query("CREATE TABLE spots (id INTEGER PRIMARY KEY, name TEXT) SHARD BY (id)").await;
        // As a reference table they must leave room for what a split divides, or nothing is split.
        let spots: Vec<String> = (0..20).map(|id| format!("({id}, 'spot {id}')")).collect();
        cluster.query(&format!("INSERT INTO spots VALUES {}", spots.join(", "))).await;
        let load = Workload::start(&cluster, seed, Mix::All).await;
        (Self { cluster, dice: Dice::of_seed(seed), number: 0, sharded: true, rested: [1, 2, 3] }, load)
    }

    /// Ask nodes in turn until one of them answers. A conflict is an answer, too.
    async fn ask(&self, method: reqwest::Method, path: &str, body: &Value) {
        let begun = Instant::now();
        for node in (1..=NODES).cycle() {
            let request = self.cluster.http.request(method.clone(), format!("{}{path}", self.cluster.url(node)));
            let sent = request.timeout(Duration::from_secs(3)).json(body).send().await;
            if sent.is_ok_and(|sent| !sent.status().is_server_error()) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{path} {body} is not answered\n{}", self.cluster.tail());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn set_mode(&self, mode: &str) {
        self.ask(reqwest::Method::PATCH, "/policy", &json!({ "mode": mode })).await;
    }

    async fn merge(&self, shard: &str) {
        self.ask(reqwest::Method::POST, "/operations", &json!({ "kind": "merge", "from": shard })).await;
    }

    /// The newest operations, newest first.
    async fn operations(&self) -> Vec<Value> {
        let any = |found: &Value| found["operations"].is_array();
        let found = self.cluster.wait_for("/operations?limit=5", "the journal", any).await;
        found["operations"].as_array().cloned().unwrap_or_default()
    }

    async fn newest(&self) -> u64 {
        self.operations().await.iter().filter_map(number).max().unwrap_or(0)
    }

    async fn active(&self) -> Vec<String> {
        let shards = self.cluster.wait_for("/shards", "shards", Value::is_array).await;
        let active = shards.as_array().into_iter().flatten().filter(|shard| shard["state"] == "active");
        active.filter_map(|shard| shard["shard_id"].as_str().map(str::to_owned)).collect()
    }

    /// See that there are as many shards as the case needs.
    async fn prepare(&self, what: What) {
        let begun = Instant::now();
        let one = what.splits();
        loop {
            self.cluster.wait_until_calm().await;
            let active = self.active().await;
            match (one, active.len()) {
                (true, 1) | (false, 2) => return,
                (true, _) => self.merge(active.last().expect("there is one")).await,
                (false, _) => {
                    let before = self.newest().await;
                    self.set_mode("automatic").await;
                    self.begun(before, BEGINS_WITHIN).await;
                    self.set_mode("manual").await;
                }
            }
            assert!(begun.elapsed() < PATIENCE, "the shards stay {active:?}\n{}", self.cluster.tail());
        }
    }

    /// Until an operation after `before` is in the journal.
    async fn begun(&self, before: u64, within: Duration) -> bool {
        let begun = Instant::now();
        while self.newest().await <= before {
            if begun.elapsed() > within {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// Whose process it is to be.
    async fn victim(&mut self, case: &Case, shards: &[String]) -> u16 {
        match case.role {
            Role::Control => self.cluster.leader(None).await,
            Role::Any => self.rested[self.dice.roll(2)],
            Role::Target => self.cluster.leader(Some("shard-1")).await,
            Role::Source if matches!(case.what, What::Merge | What::Cancelled) => {
                self.cluster.leader(shards.last().map(String::as_str)).await
            }
            Role::Source => self.cluster.leader(Some("shard-1")).await,
        }
    }

    /// Begin what the case is about.
    async fn begin(&mut self, what: What, shards: &[String], victim: u16) {
        self.number += 1;
        let last = shards.last().expect("there is one");
        match what {
            What::Split => self.set_mode("automatic").await,
            What::Reopened => {
                self.fence_late("Fence").await;
                self.set_mode("automatic").await;
            }
            What::Merge => self.merge(last).await,
            What::Cancelled => {
                let before = self.hold_up().await;
                self.merge(last).await;
                self.cancel(before).await;
            }
            What::Index => {
                let name = format!("by_fact_{}", self.number);
                self.state(format!("CREATE INDEX {name} ON facts (fact)"), victim);
            }
            What::Place => self.place(victim),
            What::PlaceCancelled => {
                let before = self.hold_up().await;
                self.place(victim);
                self.cancel(before).await;
            }
            What::PlaceReopened => {
                self.fence_late("PlaceFence").await;
                self.place(victim);
            }
            What::Rebuild => {
                let node = self.rested.into_iter().find(|node| *node != victim).expect("there are others");
                self.cluster.hold_down(node);
                self.cluster.wipe(node);
                self.cluster.release();
            }
        }
    }

    /// The next copying takes its time. Gives the newest operation before it.
    async fn hold_up(&self) -> u64 {
        let held_up = format!("operation.step-begun@copy=1*sleep({HELD_UP_MS})");
        self.cluster.fail_at(self.cluster.leader(None).await, &held_up).await;
        self.newest().await
    }

    async fn cancel(&self, before: u64) {
        self.begun(before, BEGINS_WITHIN).await;
        let id = self.newest().await;
        self.copies(id).await;
        self.ask(reqwest::Method::POST, &format!("/operations/op-{id}/cancel"), &json!({})).await;
    }

    /// Until the operation copies, or has ended: cancelled before that, it has nothing to take back.
    async fn copies(&self, id: u64) {
        let begun = Instant::now();
        while begun.elapsed() < BEGINS_WITHIN {
            let operations = self.operations().await;
            let one = operations.iter().find(|one| number(one) == Some(id));
            let copies = |one: &Value| {
                one["steps"].as_array().is_some_and(|steps| steps.iter().any(|step| step["name"] == "copy"))
            };
            if one.is_some_and(|one| copies(one) || !matches!(text(one, "phase"), "Pending" | "Progressing")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The first shard closes its gates late, once.
    async fn fence_late(&self, fence: &str) {
        let late = format!("shard.applying-effect@{fence}=1*sleep({FENCED_LATE_MS})");
        self.cluster.fail_at(self.cluster.leader(Some("shard-1")).await, &late).await;
    }

    fn place(&self, victim: u16) {
        let clause = if self.sharded { "REFERENCE" } else { "SHARD BY (id)" };
        self.state(format!("ALTER TABLE spots {clause}"), victim);
    }

    /// A statement, on a node that lives. How it ends is in the journal.
    fn state(&self, sql: String, victim: u16) {
        let url = format!("{}/query", self.cluster.url(victim % NODES + 1));
        let http = self.cluster.http.clone();
        tokio::spawn(async move { http.post(url).json(&json!({ "query": sql })).send().await.map(drop) });
    }

    /// Whether the process dies before the operation ends that comes after `before`.
    async fn dies(&self, victim: u16, pid: nix::unistd::Pid, before: u64) -> bool {
        let begun = Instant::now();
        loop {
            for _ in 0..20 {
                if self.cluster.pid_of(victim) != Some(pid) {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let operations = self.operations().await;
            let newest = operations.iter().filter(|one| number(one) > Some(before)).max_by_key(|one| number(one));
            let ended = newest.map(|one| !matches!(text(one, "phase"), "Pending" | "Progressing"));
            // The journal is read from a node of its own, and the end may be news there before it is at the place.
            if ended == Some(true) {
                tokio::time::sleep(Duration::from_millis(100)).await;
                return self.cluster.pid_of(victim) != Some(pid);
            }
            let limit = if ended.is_none() { BEGINS_WITHIN } else { PATIENCE };
            if begun.elapsed() > limit {
                return false;
            }
        }
    }

    /// One case: how it ended, if anybody died.
    async fn attempt(&mut self, case: &Case) -> Option<Outcome> {
        self.prepare(case.what).await;
        let shards = self.active().await;
        let victim = self.victim(case, &shards).await;
        let pid = self.cluster.pid_of(victim)?;
        let before = self.newest().await;
        let begun = Instant::now();
        self.cluster.fail_at(victim, &format!("{case}=abort")).await;
        self.begin(case.what, &shards, victim).await;
        let died = self.dies(victim, pid, before).await;
        if case.what.splits() {
            self.set_mode("manual").await;
        }
        self.cluster.wait_for_node(victim).await;
        if !died {
            self.cluster.fail_at(victim, &format!("{case}=off")).await;
        }
        self.rested.sort_by_key(|node| *node == victim);
        self.begun(before, BEGINS_WITHIN).await;
        self.cluster.wait_until_calm().await;
        let ended: Vec<String> = (self.operations().await.iter())
            .filter(|one| number(one) > Some(before))
            .map(|one| format!("{} {}: {}", text(one, "kind"), text(one, "phase"), text(one, "message")))
            .collect();
        if matches!(case.what, What::Place | What::PlaceCancelled | What::PlaceReopened) {
            let found = self.cluster.wait_for("/tables", "the tables", |found| found["tables"].is_array()).await;
            let spots = found["tables"].as_array().into_iter().flatten().find(|table| table["name"] == "spots");
            self.sharded = spots.is_some_and(|table| table["kind"] == "sharded");
        }
        self.cluster.wait_for_each_shard("no foreign rows", |shard| shard["holds_foreign_rows"] == false).await;
        died.then(|| Outcome { victim, ended: ended.join("; "), took: begun.elapsed() })
    }
}

fn number(operation: &Value) -> Option<u64> {
    operation["id"].as_str()?.strip_prefix("op-")?.parse().ok()
}

fn text<'a>(operation: &'a Value, field: &str) -> &'a str {
    operation[field].as_str().unwrap_or_default()
}

/// How a case went that met its place, in one of some tries.
async fn met(bench: &mut Bench, load: &Running, case: &Case) -> Option<Outcome> {
    for _ in 0..TRIES_MAX {
        if let Some(outcome) = bench.attempt(case).await {
            return Some(outcome);
        }
        load.workload.so_far();
    }
    None
}

async fn run(cases: &[Case], seed: u64) {
    let begun = Instant::now();
    let (mut bench, load) = Bench::start(seed).await;
    let mut missed = Vec::new();
    for case in cases {
        let outcome = met(&mut bench, &load, case).await;
        load.workload.progress(WRITES_AFTER).await;
        let (what, role) = (format!("{:?}", case.what), format!("{:?}", case.role));
        let Some(Outcome { victim, ended, took }) = outcome else {
            println!("{:42} {what:14} {role:7} nobody died", case.to_string());
            missed.push(format!("{case} of a {what}"));
            continue;
        };
        println!("{:42} {what:14} {role:7} node-{victim} {:>4.1} s  {ended}", case.to_string(), took.as_secs_f64());
    }
    let workload = load.end().await;
    bench.cluster.query("DROP TABLE spots").await;
    bench.cluster.query("DROP TABLE names").await;
    workload.check_all(&bench.cluster).await;
    println!("{} kills in {:.0} s. {}", cases.len(), begun.elapsed().as_secs_f64(), workload.figures());
    assert!(missed.is_empty(), "nobody dies at {missed:?}\n{}", bench.cluster.tail());
}

/// Whether `STEPS_ONLY` asks for the case.
fn is_asked_for(case: &Case) -> bool {
    let described = format!("{case} {:?} {:?}", case.what, case.role);
    std::env::var("STEPS_ONLY").map_or(true, |words| words.split(',').any(|word| described.contains(word.trim())))
}

fn seed() -> u64 {
    std::env::var("STEPS_SEED").ok().map_or(1, |seed| seed.parse().expect("STEPS_SEED is a number"))
}

#[test]
fn every_place_of_an_operation_is_in_the_table() {
    let met: BTreeSet<&str> = cases().iter().map(|case| case.place).collect();
    let missed: Vec<_> = OPERATION_PLACES.iter().filter(|place| !met.contains(**place)).collect();
    assert!(missed.is_empty(), "nobody dies at {missed:?}");
    assert!(cases().iter().all(|case| OPERATION_PLACES.contains(&case.place)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_operations_killed_at_a_step_end_and_leave_nothing() {
    let (mut all, mut dice) = (cases(), Dice::of_seed(seed()));
    let some: Vec<Case> = (0..SOME).map(|_| all.swap_remove(dice.roll(all.len()))).collect();
    run(&some, seed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes: cargo xtask test --full"]
async fn every_operation_killed_at_every_step_ends_and_leaves_nothing() {
    let mut dice = Dice::of_seed(seed());
    let mut all: Vec<Case> = cases().into_iter().filter(is_asked_for).collect();
    let mut shuffled = Vec::new();
    while !all.is_empty() {
        shuffled.push(all.swap_remove(dice.roll(all.len())));
    }
    run(&shuffled, seed()).await;
}
