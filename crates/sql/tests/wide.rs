//! Generated SELECTs of every class that Pleat takes apart (`pleat_generate::reads`). Each is run by its plan over three
//! shards (every other time with rows on them that they don't own) and by one SQLite database; the answers are equal, or
//! the statement is refused with `0A000`. `PLEAT_SEEDS=5000..9000` runs others.

mod world;

use pleat_generate::{Dice, reads, seeds};
use world::{World, rich};

const REFUSED_MAX: f64 = 0.05;

fn with_views(mut world: World) -> World {
    reads::views().iter().for_each(|view| world.ddl(&view.create).unwrap());
    world
}

#[test]
fn wide_queries() {
    let worlds: Vec<World> = [false, true].into_iter().map(rich).map(with_views).collect();
    let (mut problems, mut refused, mut invalid) = (Vec::new(), 0usize, 0usize);
    let range = seeds("PLEAT_SEEDS", 0..4_500);
    let count = range.end - range.start;
    for seed in range {
        let mut dice = Dice::of_seed(seed);
        let sql = reads::query(&mut dice);
        let sql = reads::through_views(&mut dice, sql);
        let world = &worlds[usize::from(seed % 2 == 1)];
        invalid += usize::from(world.expected(&sql, &[]).is_err());
        match world.check(&sql, &[]) {
            Ok(false) => {}
            Ok(true) => refused += 1,
            Err(problem) => problems.push(format!("seed {seed}: {problem}")),
        }
    }
    let share = refused as f64 / count as f64;
    println!("{count} statements, {invalid} that SQLite refuses too; refused {refused} ({:.2} %)", share * 100.0);
    println!("routes: {:?} and {:?}", worlds[0].routes.borrow(), worlds[1].routes.borrow());
    let number = problems.len();
    problems.truncate(8);
    assert!(problems.is_empty(), "{number} problems\n{}", problems.join("\n"));
    assert!(share < REFUSED_MAX, "{share} of the statements were refused");
    assert!((invalid as f64) < 0.1 * count as f64, "{invalid} statements test nothing");
}
