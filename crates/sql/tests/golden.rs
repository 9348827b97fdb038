//! Golden plans: statements and what Pleat does with them, as files that a reader can check (`plans/*.golden`, over the
//! tables of `plans/schema.sql`). Each statement's answer is compared with SQLite's as well.
//!
//! A file has comments (`--`), statements (`>`), and below each statement what EXPLAIN says. `BLESS_GOLDEN=1` writes the
//! plans anew below the statements that the files have.

mod world;

use std::fs;
use std::path::{Path, PathBuf};

use pleat_cluster::Value;
use pleat_generate::Dice;
use world::World;

const STATEMENTS_MIN: usize = 80;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans")
}

fn shop(foreign_rows: bool) -> World {
    let mut world = World::new(3, foreign_rows);
    let schema = fs::read_to_string(directory().join("schema.sql")).unwrap();
    for sql in pleat_sql::split_script(&schema).unwrap() {
        world.ddl(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    let mut dice = Dice(7);
    let write = |sql: String| world.write(&sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let countries = ["FR", "DE", "JP", "IN"];
    for code in countries {
        write(format!("INSERT INTO countries VALUES ('{code}', 'Country {code}')"));
    }
    for product in 1..=8 {
        write(format!("INSERT INTO products VALUES ({product}, 'Product {product}', {product}.25)"));
    }
    for (name, value) in [("currency", "EUR"), ("home", "FR")] {
        write(format!("INSERT INTO settings VALUES ('{name}', '{value}')"));
    }
    for customer in 1..=25 {
        let country = if dice.roll(6) == 0 { "NULL".to_owned() } else { format!("'{}'", dice.pick(&countries)) };
        let name = dice.pick(&["Ada", "ada", "Björn", "日向", "Zoë"]);
        let joined = 2010 + dice.roll(5);
        write(format!(
            "INSERT INTO customers VALUES ({customer}, '{name}', {country}, '{joined}-05-01', {}.5)",
            dice.roll(90)
        ));
        for nr in 1..=dice.roll(4) {
            let status = dice.pick(&["'open'", "'paid'", "'sent'", "NULL"]);
            let placed = format!("2014-0{}-1{}", 1 + dice.roll(4), dice.roll(9));
            write(format!("INSERT INTO orders VALUES ({customer}, {nr}, '{placed}', {status}, {}.75)", dice.roll(200)));
            for line in 1..=1 + dice.roll(2) {
                let (product, amount) = (1 + dice.roll(8), 1 + dice.roll(5));
                write(format!(
                    "INSERT INTO lines VALUES ({customer}, {nr}, {line}, {product}, {amount}, {product}.25)"
                ));
            }
        }
        for product in 1..=dice.roll(4) {
            let stars = if dice.roll(5) == 0 { "NULL".to_owned() } else { (1 + dice.roll(5)).to_string() };
            write(format!("INSERT INTO reviews VALUES ({product}, {customer}, {stars}, 'text {customer}')"));
        }
    }
    world
}

#[test]
fn golden_plans() {
    let worlds = [shop(false), shop(true)];
    let mut statements = 0;
    let mut files: Vec<PathBuf> = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "golden"));
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let mut found = String::new();
        for line in text.lines().filter(|line| line.starts_with("-- ") || line.starts_with("> ")) {
            let Some(sql) = line.strip_prefix("> ") else {
                found += &format!("{}{line}\n", if found.is_empty() { "" } else { "\n" });
                continue;
            };
            statements += 1;
            let plan = worlds[0].explain(sql, &[]);
            found += &format!("\n> {sql}\n{plan}");
            for world in &worlds {
                assert_eq!(world.check(sql, &[] as &[Value]), Ok(false), "{sql}");
            }
        }
        if std::env::var_os("BLESS_GOLDEN").is_some() {
            fs::write(&file, &found).unwrap();
            continue;
        }
        assert_eq!(text, found, "{} differs (BLESS_GOLDEN=1 writes it anew)", file.display());
    }
    assert!(statements >= STATEMENTS_MIN, "only {statements} statements");
}
