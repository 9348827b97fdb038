//! Generated writes (`pleat_generate::writes`) over three shards, compared with one SQLite database after each statement: the
//! contents of all tables, the rows affected, the rows of RETURNING, and the kind of error. A failing seed can be run alone:
//! `WRITE_SEEDS=7..8`.

mod world;

use std::collections::BTreeMap;
use std::ops::Range;

use pleat_generate::writes::{Writes, parameters};
use pleat_generate::{WRITTEN, seeds};
use world::World;
use world::writes::Ended;

/// Each seed is a database of its own and a run of statements on it.
const SEEDS: Range<u64> = 0..30;
const STATEMENTS: usize = 80;

fn world(foreign_rows: bool) -> World {
    let mut world = World::new(3, foreign_rows);
    for sql in WRITTEN {
        world.ddl(sql).unwrap();
    }
    world
}

#[test]
fn generated_writes() {
    let mut ended: BTreeMap<Ended, usize> = BTreeMap::new();
    let mut ways: BTreeMap<&str, usize> = BTreeMap::new();
    let mut problems = Vec::new();
    for seed in seeds("WRITE_SEEDS", SEEDS) {
        let foreign_rows = seed % 3 == 2;
        let world = world(foreign_rows);
        let mut writes = Writes::of_seed(seed);
        for at in 0..STATEMENTS {
            if foreign_rows && at == STATEMENTS / 3 {
                ["t", "u", "s"].into_iter().for_each(|table| world.leave_behind(table));
            }
            let left = ["t", "u", "s"].map(|table| world.left_behind(table));
            let sql = if at < 12 { writes.insert() } else { writes.statement() };
            let (sql, values) = parameters(&sql);
            match world.check_write(&sql, &values) {
                Ok(end) => *ended.entry(end).or_default() += 1,
                Err(problem) => {
                    problems.push(format!("seed {seed}, statement {at}: {problem}"));
                    break;
                }
            }
            if left != ["t", "u", "s"].map(|table| world.left_behind(table)) {
                problems.push(format!("seed {seed}, statement {at}: {sql}\n  changed rows that the shard doesn't own"));
                break;
            }
        }
        for (way, count) in world.ways() {
            *ways.entry(way).or_default() += count;
        }
    }
    let all: usize = ended.values().sum();
    let refused = ended.get(&Ended::Refused).copied().unwrap_or(0);
    println!("{all} writes: {ended:?}, refused {:.1} %; ways: {ways:?}", 100.0 * refused as f64 / all as f64);
    problems.truncate(8);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(refused * 20 <= all, "more than one in twenty writes was refused");
}
