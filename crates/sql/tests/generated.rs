//! Generated SELECTs (`pleat_generate::joins`), compared with one SQLite database. A failing seed can be run alone:
//! `PLEAT_SEEDS=7..8`.

mod world;

use pleat_generate::{Dice, joins, seeds};
use world::{World, rich};

#[test]
fn generated_queries() {
    let worlds: Vec<World> = [false, true].into_iter().map(rich).collect();
    let mut problems = Vec::new();
    let mut refused = 0;
    for seed in seeds("PLEAT_SEEDS", 0..2_500) {
        let sql = joins::query(&mut Dice::of_seed(seed));
        for world in &worlds {
            match world.check(&sql, &[]) {
                Ok(false) => {}
                Ok(true) => refused += 1,
                Err(problem) => problems.push(format!("seed {seed}: {problem}")),
            }
        }
    }
    println!("refused: {refused}; routes: {:?}", worlds[0].routes.borrow());
    problems.truncate(12);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert_eq!(refused, 0, "nothing that is generated needs to be refused");
}
