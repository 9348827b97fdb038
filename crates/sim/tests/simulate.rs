//! The simulation itself: seeds pass, and a seed repeats itself.

use pleat_sim::{Options, run};

#[test]
fn seeds() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("PLEAT_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PLEAT_SEEDS").unwrap_or(2),
    };
    let options = Options { trace: std::env::var("PLEAT_TRACE").is_ok(), log: std::env::var("PLEAT_LOG").is_ok(), ..Default::default() };
    let mut failed = 0;
    for seed in seeds {
        let begun = std::time::Instant::now();
        let report = run(seed, &options);
        println!("seed {seed}: {:?} hash {:x?} writes {:?} faults {} ops {} healed {:?} elapsed {:?} took {:?}", report.wrong, report.hash, report.writes, report.faults, report.operations, report.healed_in, report.elapsed, begun.elapsed());
        if report.wrong.is_some() || options.trace { std::fs::write(format!("/tmp/trace-{seed}"), report.lines.join("\n")).unwrap(); }
        failed += u64::from(report.wrong.is_some());
    }
    assert_eq!(failed, 0);
}
