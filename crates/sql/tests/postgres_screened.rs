//! What is sent to shards that hold rows which they don't own, case by case.

mod postgres;

use std::collections::BTreeSet;

use pleat_cluster::PartitionId;
use pleat_sql::postgres::Screen;

#[test]
fn the_condition_is_that_of_the_protocols() {
    let world = postgres::world();
    let absent = BTreeSet::from([PartitionId(7), PartitionId(200)]);
    let screen = Screen { schema: world.schema(), absent: &absent, partition_count: 256 };
    assert_eq!(
        screen.statement("SELECT * FROM users u").unwrap(),
        "SELECT * FROM users u WHERE NOT (((('x' || substr(md5(\"u\".\"id\"::text), 1, 8))::bit(32)::bigint * 256) >> 32) = ANY ('{7,200}'::bigint[]))"
    );
    let none = BTreeSet::new();
    let screen = Screen { absent: &none, ..screen };
    assert_eq!(screen.statement("SELECT * FROM users u").unwrap(), "SELECT * FROM users u");
}

#[test]
fn explained() {
    let world = postgres::world();
    let path = format!("{}/tests/postgres/screened.txt", env!("CARGO_MANIFEST_DIR"));
    let script = std::fs::read_to_string(&path).unwrap();
    let mut shown = String::new();
    for line in script.lines() {
        if let Some(sql) = line.strip_prefix("> ") {
            shown += &format!("> {sql}\n{}\n", world.screened(&sql.replace("\\n", "\n")));
        } else if line.starts_with('#') {
            shown += &format!("{line}\n\n");
        }
    }
    if std::env::var_os("SHOW").is_some() {
        std::fs::write(&path, &shown).unwrap();
        return;
    }
    assert_eq!(shown, script, "run with SHOW=1 to write what is shown now, and read it");
}
