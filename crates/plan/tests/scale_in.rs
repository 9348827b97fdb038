//! When shards are merged, and when not; and what a day of it looks like.

mod world;

use pleat_cluster::{Command, Mode, OperationKind, Phase, Policy, ShardId, Strategy, Verdict};
use pleat_plan::{Conclusion, History, ShardLoad, worth_recording};
use world::{DAY, Day, MINUTE, NOW, cluster, idle, look, run, seen};

/// Looks every ten seconds from `NOW`, until it is `last` past it; the last one's conclusion.
fn after(catalog: &pleat_cluster::Catalog, last: u64, loads: impl Fn(u64) -> Vec<ShardLoad>) -> Conclusion {
    let mut history = History::default();
    let mut conclusion = None;
    for past in (0..=last).step_by(10_000) {
        conclusion = Some(look(catalog, &seen(loads(past)), NOW + past, &mut history));
    }
    conclusion.unwrap()
}

fn reason(conclusion: &Conclusion) -> &str {
    conclusion.decision.verdict.reason()
}

fn option(conclusion: &Conclusion, what: &str) -> String {
    let options = &conclusion.decision.options;
    let found = options.iter().find(|option| option.what == what);
    found.unwrap_or_else(|| panic!("no option '{what}': {options:#?}")).why.clone()
}

#[test]
fn a_shard_that_stays_far_below_is_merged_into_the_one_with_most_room_and_it_says_why() {
    let catalog = cluster(3, |_| {});
    let loads = |_| vec![ShardLoad { rows: 200, ..idle() }, idle(), ShardLoad { bytes: 7, ..idle() }];
    assert_eq!(reason(&after(&catalog, 30 * MINUTE - 10_000, loads)), "every measurement is within its threshold");
    let conclusion = after(&catalog, 30 * MINUTE, loads);
    let partitions = catalog.partitions_of(ShardId(3));
    let (from, to) = (ShardId(3), ShardId(2));
    assert_eq!(conclusion.start, Some(OperationKind::Merge { from, to, partitions }), "the one with the fewest bytes");
    let expected = "shard-3 has stayed below 25 % of every threshold for 1800 s, and shard-2 stays within half of each with its data";
    assert_eq!(reason(&conclusion), expected);
    assert_eq!(option(&conclusion, "merge shard-3: its 5 partitions to shard-2"), expected);
    assert_eq!(option(&conclusion, "do nothing"), expected);
}

#[test]
fn one_busy_look_in_the_time_is_enough_to_stay() {
    let catalog = cluster(2, |_| {});
    let busy_at = |moment: u64| {
        move |past: u64| {
            vec![idle(), ShardLoad { queries_per_second: if past == moment { 250.0 } else { 1.0 }, ..idle() }]
        }
    };
    for moment in [0, 10 * MINUTE, 30 * MINUTE] {
        assert_eq!(after(&catalog, 30 * MINUTE, busy_at(moment)).start, None, "{moment}");
    }
    assert!(after(&catalog, 61 * MINUTE, busy_at(0)).start.is_some());
}

#[test]
fn every_threshold_has_its_say() {
    type Change = fn(&mut ShardLoad);
    let changes: [(&str, Change); 5] = [
        ("rows", |load| load.rows = 250),
        ("cpu", |load| load.cpu_percent = 17.5),
        ("memory", |load| load.memory_percent = 21.25),
        ("connections", |load| load.connections = 5),
        ("queries", |load| load.queries_per_second = 250.0),
    ];
    for (name, change) in changes {
        let catalog = cluster(2, |_| {});
        let mut load = idle();
        change(&mut load);
        assert_eq!(after(&catalog, 40 * MINUTE, |_| vec![idle(), load.clone()]).start, None, "{name}");
    }
}

#[test]
fn the_other_shard_has_to_stay_within_half_of_each_threshold() {
    let catalog = cluster(2, |_| {});
    let with = |queries_per_second| {
        let quiet = ShardLoad { queries_per_second: 200.0, ..idle() };
        after(&catalog, 30 * MINUTE, move |_| vec![ShardLoad { queries_per_second, ..idle() }, quiet.clone()])
    };
    assert!(with(300.0).start.is_some());
    let conclusion = with(301.0);
    assert_eq!(conclusion.start, None);
    let why = option(&conclusion, "merge shard-2 into another shard");
    assert_eq!(why, "no other shard would stay within half of every threshold with its data");
    // Rows of reference tables are on both already.
    let copied = ShardLoad { rows: 400, rows_fixed: 395, ..idle() };
    assert!(after(&catalog, 30 * MINUTE, |_| vec![copied.clone(), copied.clone()]).start.is_some());
}

#[test]
fn room_is_left_for_losing_a_node() {
    let catalog = cluster(3, |_| {});
    // Three nodes at 17 %: with two of them left it is 25.5, with the threshold at 50 more than half.
    let loads = |cpu_percent: f64| {
        move |_| (1..=3).map(|node| ShardLoad { node: pleat_cluster::NodeId(node), cpu_percent, ..idle() }).collect()
    };
    assert!(after(&catalog, 30 * MINUTE, loads(17.0)).start.is_some());
    let tight = cluster(3, |policy| (policy.thresholds.cpu_percent, policy.scale_in.below_percent) = (50.0, 50.0));
    assert_eq!(after(&tight, 30 * MINUTE, loads(17.0)).start, None);
    assert_eq!(after(&tight, 30 * MINUTE, loads(12.0)).start.map(|kind| kind.name()), Some("merge"));
}

#[test]
fn shards_that_have_to_stay_do_and_say_why() {
    let catalog = cluster(2, |policy| policy.scale_in.max_bytes = 1_000);
    let conclusion = after(&catalog, 30 * MINUTE, |_| vec![idle(), ShardLoad { bytes: 1_001, ..idle() }]);
    assert_eq!(conclusion.start, None);
    let why = option(&conclusion, "merge shard-2 into another shard");
    assert_eq!(why, "it takes 1001 bytes, and scale_in.max_bytes is 1000");
    let why = option(&conclusion, "merge shard-1 into another shard");
    assert_eq!(why, "shard-1 is the oldest shard, which puts the writes to reference tables in order");
    type Change = fn(&mut Policy);
    let off: [Change; 2] = [|policy| policy.scale_in.enabled = false, |policy| policy.min_shards = 2];
    for change in off {
        assert_eq!(after(&cluster(2, change), 60 * MINUTE, |_| vec![idle(), idle()]).start, None);
    }
    assert_eq!(after(&cluster(1, |_| {}), 60 * MINUTE, |_| vec![idle()]).start, None, "the last one never goes");
}

#[test]
fn nothing_is_merged_while_a_threshold_is_exceeded() {
    let catalog = cluster(3, |policy| policy.max_shards = 3);
    let hot = || vec![ShardLoad { rows: 2_000, ..idle() }, idle(), idle()];
    assert_eq!(after(&catalog, 40 * MINUTE, |_| hot()).start, None);
    // A cluster that is as large as it may be can still become smaller.
    assert!(after(&catalog, 30 * MINUTE, |_| vec![idle(), idle(), idle()]).start.is_some());
}

#[test]
fn cold_asks_the_cluster_as_a_whole() {
    let catalog = cluster(3, |policy| policy.strategy = Strategy::Cold);
    let loads = |rows| move |_| vec![ShardLoad { rows, ..idle() }, idle(), ShardLoad { bytes: 7, ..idle() }];
    let conclusion = after(&catalog, 30 * MINUTE, loads(700));
    assert!(matches!(conclusion.start, Some(OperationKind::Merge { from: ShardId(3), .. })), "{conclusion:#?}");
    assert!(reason(&conclusion).starts_with("the cluster has stayed below 25 %"));
    assert_eq!(after(&catalog, 30 * MINUTE, loads(750)).start, None);
}

#[test]
fn manual_mode_recommends_a_merge_once_and_it_can_be_approved() {
    let mut catalog = cluster(2, |policy| policy.mode = Mode::Manual);
    let conclusion = after(&catalog, 30 * MINUTE, |_| vec![idle(), idle()]);
    assert_eq!(conclusion.start, None);
    assert!(matches!(conclusion.decision.verdict, Verdict::Merge { from: ShardId(2), to: ShardId(1), .. }));
    run(&mut catalog, Command::RecordDecision { decision: conclusion.decision.clone(), start: None, at: NOW });
    assert!(!worth_recording(&catalog, &after(&catalog, 31 * MINUTE, |_| vec![idle(), idle()])));
    let decision = *catalog.decisions.keys().next_back().unwrap();
    let operation = catalog.apply(&Command::ApproveDecision { decision, at: NOW }).unwrap().operation.unwrap();
    assert_eq!(catalog.operations[&operation].kind.name(), "merge");
}

#[test]
fn a_day_of_a_square_wave() {
    // Ten minutes of load that wants four shards, ten minutes of nothing: merging in between would be flapping.
    let fast = Day::new(|_| {}).run(|at| if (at / (10 * MINUTE)).is_multiple_of(2) { 2_600.0 } else { 10.0 });
    println!("square wave of 20 minutes: {fast:?}");
    assert_eq!((fast.merges, fast.shards_most), (0, 4), "{fast:?}");
    assert!(fast.splits <= 5, "{fast:?}");
    // Eight hours of it, and sixteen of nothing: one wave, up and down once.
    let slow = Day::new(|_| {}).run(|at| if at < DAY / 3 { 2_600.0 } else { 10.0 });
    println!("square wave of a day: {slow:?}");
    assert_eq!((slow.splits, slow.merges, slow.shards_most, slow.shards_last), (3, 3, 4, 1), "{slow:?}");
}

#[test]
fn a_day_of_noise() {
    // Around two thirds of what two shards bear, with single looks from nothing to five times as much.
    let mut seed = 42_u64;
    let mut noise = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as f64 / f64::from(1_u32 << 31)
    };
    let noisy = Day::new(|_| {}).run(|_| match noise() {
        share if share < 0.02 => 6_000.0,
        share if share < 0.10 => 0.0,
        _ => 900.0 + 600.0 * noise(),
    });
    println!("noise: {noisy:?}");
    assert!(noisy.splits <= 4 && noisy.merges == 0, "{noisy:?}");
    // The same with merges as hasty as they can be configured: the limit and the room that is left still hold it.
    let hasty = Day::new(|policy| (policy.scale_in.after_ms, policy.cooldown_ms) = (0, 0))
        .run(|at| if (at / (10 * MINUTE)).is_multiple_of(2) { 2_600.0 } else { 10.0 });
    println!("hasty: {hasty:?}");
    assert!(hasty.splits + hasty.merges <= 24 * 12, "one action in 300 s at most: {hasty:?}");
}

#[test]
fn operations_that_fail_are_not_repeated_without_end() {
    let mut day = Day::new(|_| {});
    day.outcome = Phase::Failed;
    let failing = day.run(|_| 2_600.0);
    println!("failing: {failing:?}");
    assert!((2..=150).contains(&failing.splits) && failing.shards_last == 1, "{failing:?}");
}
