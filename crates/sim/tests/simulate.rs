//! The simulation, held to its own promises: seeds pass, a seed repeats itself, and bugs that are planted are found.
//!
//! What runs always is a small part. `cargo xtask sim` runs the rest: many seeds, one seed with its trace, or every bug.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use pleat_cluster::planted::Bug;
use pleat_sim::{Options, Report, run};

/// Every bug must be found by one of so many seeds.
const SEEDS_OF_A_BUG: u64 = 200;

/// A number that `cargo xtask sim` has set.
fn told(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

fn describe(report: &Report) -> String {
    let Report { seed, wrong, hash, writes, faults, operations, healed_in, elapsed, .. } = report;
    let verdict = wrong.as_deref().unwrap_or("passes");
    format!(
        "seed {seed}: {verdict}; {} writes, {} acknowledged; {faults} faults, {operations} operations; healed in {:.1} s of \
         {:.1} s; trace of {} lines, hash {:016x}",
        writes.0,
        writes.1,
        healed_in.as_secs_f64(),
        elapsed.as_secs_f64(),
        hash.0,
        hash.1
    )
}

/// Does the work for each number, on as many threads as there are cores.
fn side_by_side(numbers: std::ops::Range<u64>, work: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(numbers.start);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < numbers.end) {
                    work(number);
                }
            });
        }
    });
}

fn all_pass(seeds: std::ops::Range<u64>) {
    let wrong = Mutex::new(BTreeMap::new());
    side_by_side(seeds, |seed| {
        let report = run(seed, &Options::default());
        println!("{}", describe(&report));
        if let Some(what) = report.wrong {
            wrong.lock().unwrap().insert(report.seed, what);
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "these seeds fail; `cargo xtask sim --seed N` shows one: {wrong:#?}");
}

/// The first of these seeds that finds the bug, and what it says.
fn found(bug: Bug, seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
    let options = Options { bug: Some(bug), ..Options::default() };
    seeds.into_iter().find_map(|seed| run(seed, &options).wrong.map(|wrong| (seed, wrong)))
}

#[test]
fn a_few_seeds_pass() {
    all_pass(0..6);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let options = Options { trace: true, log: true, ..Options::default() };
    // The second one with schema changes.
    let hashes = [42, 45].map(|seed| {
        // Side by side: what is global to the process must not leak in.
        let (first, second) = std::thread::scope(|scope| {
            let (one, two) = (scope.spawn(|| run(seed, &options)), scope.spawn(|| run(seed, &options)));
            (one.join().unwrap(), two.join().unwrap())
        });
        for (line, (one, two)) in first.lines.iter().zip(&second.lines).enumerate() {
            assert_eq!(one, two, "the runs part at line {line}");
        }
        assert_eq!(first.hash, second.hash);
        assert!(first.lines.iter().any(|line| line.contains("FAULT")));
        first.hash
    });
    assert_ne!(hashes[0], hashes[1], "another seed is another run");
}

#[test]
fn the_leaders_of_a_new_cluster_are_on_different_nodes() {
    let report = run(0, &Options { trace: true, ..Options::default() });
    let calm = report.lines.iter().take_while(|line| !line.contains("FAULT"));
    let mut leaders = BTreeMap::new();
    for (group, leader) in calm.filter_map(|line| line.split_once(" group ")?.1.split_once(": term 1 leader Some")) {
        leaders.entry(group).or_insert(leader);
    }
    assert_eq!((leaders["1"], leaders["2"]), ("(NodeId(2))", "(NodeId(3))"), "{leaders:?}");
}

/// What breaks a promise at once is found by nearly every seed.
#[test]
fn bugs_that_are_planted_are_found() {
    for bug in [Bug::StaleRouterBelieved, Bug::IdempotencyIgnored, Bug::CommitUnprepared, Bug::EarlyAcknowledgement] {
        let (seed, wrong) = found(bug, 0..10).unwrap_or_else(|| panic!("{bug:?} is not found"));
        println!("{bug:?} is found by seed {seed}: {wrong}");
    }
}

/// As many seeds as `PLEAT_SIM_SEEDS` says.
#[test]
#[ignore = "cargo xtask sim --seeds N"]
fn seeds() {
    all_pass(0..told("PLEAT_SIM_SEEDS").unwrap_or(200));
}

/// The seed that `PLEAT_SIM_SEED` says, with its trace.
#[test]
#[ignore = "cargo xtask sim --seed N"]
fn seed() {
    let bug = std::env::var("PLEAT_SIM_BUG").ok().map(|name| named(&name));
    let report = run(told("PLEAT_SIM_SEED").unwrap_or(0), &Options { trace: true, log: true, bug });
    report.lines.iter().for_each(|line| println!("{line}"));
    println!("{}", describe(&report));
    assert_eq!(report.wrong, None);
}

/// Every bug, or the one that `PLEAT_SIM_BUG` names; with fewer seeds, if `PLEAT_SIM_SEEDS` says so.
#[test]
#[ignore = "cargo xtask sim --bugs"]
fn bugs() {
    let bugs = std::env::var("PLEAT_SIM_BUG").map_or(Bug::ALL.to_vec(), |name| vec![named(&name)]);
    let seeds = told("PLEAT_SIM_SEEDS").unwrap_or(SEEDS_OF_A_BUG);
    let missed = Mutex::new(Vec::new());
    side_by_side(0..bugs.len() as u64, |number| {
        let bug = bugs[number as usize];
        match found(bug, 0..seeds) {
            Some((seed, wrong)) => println!("{bug:?}: found by seed {seed}: {wrong}"),
            None => {
                println!("{bug:?}: not found by {seeds} seeds");
                missed.lock().unwrap().push(bug);
            }
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "no seed finds these bugs: {missed:?}");
}

fn named(name: &str) -> Bug {
    let found = Bug::ALL.iter().find(|bug| format!("{bug:?}") == name);
    *found.unwrap_or_else(|| panic!("there is no bug {name}; there are {:?}", Bug::ALL))
}
