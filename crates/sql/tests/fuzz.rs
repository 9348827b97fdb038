//! The planner, given what nobody should write. `cargo xtask fuzz` goes on for longer.

mod postgres;

use std::collections::BTreeSet;

use pleat_cluster::PartitionId;
use pleat_fuzz::{Target, outcome, run};
use pleat_sql::postgres::{Query, Route, Screen, Shape, What};
use pleat_sql::{Params, prepare, split_script};
use postgres::{PARTITIONS, World, value, world};

thread_local! {
    static WORLD: World = world();
}

/// The statements of the golden files.
fn statements() -> Vec<&'static str> {
    let files = [
        include_str!("postgres/reads.txt"),
        include_str!("postgres/writes.txt"),
        include_str!("postgres/session.txt"),
        include_str!("postgres/serial.txt"),
        include_str!("postgres/screened.txt"),
    ];
    files.iter().flat_map(|file| file.lines()).filter_map(|line| line.strip_prefix("> ")).collect()
}

#[test]
fn fuzz_targets() {
    let copies = [
        "COPY users (id, name) FROM STDIN WITH (FORMAT csv, HEADER true, DELIMITER ';', NULL 'NA', QUOTE '\"', ESCAPE E'\\\\')",
        "copy public.\"users\" from stdin with csv header delimiter as ';' null as 'x' force not null name",
        "COPY (SELECT id FROM users WHERE name <> ')') TO STDOUT (FORMAT binary)",
        "COPY users (id) FROM STDIN WHERE id > 5",
    ];
    let sqlite = [
        "SELECT u.name, count(*) FROM users u LEFT JOIN orders o ON o.user_id = u.id WHERE u.id IN (1, ?2) GROUP BY 1 ORDER BY 2 DESC LIMIT 5",
        "INSERT INTO users (id, name) VALUES (1, 'a'), (?, x'00') ON CONFLICT (id) DO UPDATE SET name = excluded.name RETURNING *",
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) UPDATE orders SET total = total + 1 FROM n WHERE n.x = user_id",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, u TEXT NOT NULL DEFAULT 'x' COLLATE NOCASE, UNIQUE (u)) SHARD BY (id)",
        "DELETE FROM users WHERE CASE WHEN id BETWEEN 1 AND 5 THEN \"name\" LIKE '%' ELSE `name` IS NOT [name] END; -- end",
    ];
    run(&[
        Target::new("sql/postgres", 4_000, statements(), planned),
        Target::new("sql/postgres-copy", 2_000, copies, planned),
        Target::new("sql/postgres-shape", 4_000, statements(), shaped),
        Target::new("sql/sqlite", 3_000, sqlite, prepared),
    ]);
}

/// A text is planned or refused; what is sent on is the client's, whole, and what has to be left out is.
fn planned(input: &[u8]) -> u64 {
    let Ok(text) = std::str::from_utf8(input) else { return 0 };
    WORLD.with(|world| match world.prepare(text) {
        Err(error) => outcome(&(error.sqlstate(), error.message.split(' ').take(4).collect::<Vec<_>>())),
        Ok(all) => {
            let mut made = Vec::new();
            for planned in &all {
                assert!(text.contains(&planned.text), "{:?} is not of the text", planned.text);
                let query = match &planned.what {
                    What::Query(query) | What::Declare { query, .. } => query,
                    What::Copy(copy) => match &copy.query {
                        Some((_, query)) => query,
                        None => continue,
                    },
                    _ => continue,
                };
                made.push(routed(world, &planned.text, query));
            }
            outcome(&(made, all.iter().map(|planned| std::mem::discriminant(&planned.what)).collect::<Vec<_>>()))
        }
    })
}

fn routed(world: &World, text: &str, query: &Query) -> String {
    let value = value(query);
    if let Ok(Route::Rows(groups)) = query.scatter(&value, PARTITIONS) {
        let mut rows = BTreeSet::new();
        for row in groups.values().flatten() {
            assert!(rows.insert(*row), "row {row} goes to two partitions");
        }
        assert_eq!(rows.len(), query.row_count(), "each row goes somewhere");
        groups.values().for_each(|rows| drop(query.rows(rows)));
    }
    let absent = BTreeSet::from([3, 4, 5].map(PartitionId));
    let screen = Screen { schema: world.schema(), absent: &absent, partition_count: PARTITIONS };
    let screened = screen.statement(text);
    if let Ok(screened) = &screened
        && let Ok(again) = world.prepare(screened)
        && let [again] = &again[..]
        && let What::Query(again) = &again.what
    {
        assert_eq!(again.tables, query.tables, "a condition is not where it was to be: {screened}");
    }
    let route = query.route(&value, PARTITIONS);
    let kind = route.as_ref().map(std::mem::discriminant).map_err(|error| error.code);
    format!("{kind:?} {:?} {} {}", query.verb, query.keys().len(), screened.is_ok())
}

/// The values of a text lead its shape to where they lead the text.
fn shaped(input: &[u8]) -> u64 {
    let Ok(text) = std::str::from_utf8(input) else { return 0 };
    let Some(shape) = Shape::of(text) else { return 1 };
    WORLD.with(|world| {
        let Ok(all) = world.prepare(&shape.text) else { return 2 };
        let [by_shape] = &all[..] else { return 3 };
        let What::Query(by_shape) = &by_shape.what else { return 4 };
        let value = |at: usize| shape.values.get(at).cloned().flatten();
        let Ok(Route::Partitions(partitions)) = by_shape.route(&value, PARTITIONS) else { return 5 };
        if by_shape.pins || by_shape.counts || by_shape.given.is_some() {
            return 6; // Planned for itself.
        }
        // A text that is refused by itself is the server's to refuse: both ways lead to one server.
        let Ok(query) = world.query(text) else { return 7 };
        match query.route(&|_| None, PARTITIONS) {
            Ok(Route::Partitions(own)) => assert_eq!(partitions, own, "{:?}", shape.text),
            Ok(Route::Any) | Err(_) => {}
            Ok(other) => panic!("the shape goes to {partitions:?}, and the text {other:?}"),
        }
        assert_eq!(query.writes, by_shape.writes);
        8 + partitions.len() as u64
    })
}

/// The same for embedded shards.
fn prepared(input: &[u8]) -> u64 {
    let Ok(text) = std::str::from_utf8(input) else { return 0 };
    WORLD.with(|world| {
        let parts = split_script(text);
        let statement = prepare(text, &world.schema());
        if let Ok(statement) = &statement {
            drop(statement.explain(&Params::NONE, PARTITIONS));
        }
        let kind = statement.map(|statement| std::mem::discriminant(&statement));
        outcome(&(kind.map_err(|error| error.code), parts.map(|parts| parts.len()).map_err(|error| error.code)))
    })
}
