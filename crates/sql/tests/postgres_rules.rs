//! What holds for all plans of PostgreSQL statements, whatever the statement.

mod postgres;

use std::collections::BTreeSet;

use pleat_cluster::{KeyType, PartitionId, Value, partition_of};
use pleat_sql::Code;
use pleat_sql::postgres::{Route, Screen, Spread, Verb, What};
use postgres::{PARTITIONS, value, world};

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// The statements of the golden files.
fn statements() -> Vec<String> {
    let files = [
        include_str!("postgres/reads.txt"),
        include_str!("postgres/writes.txt"),
        include_str!("postgres/session.txt"),
        include_str!("postgres/screened.txt"),
    ];
    files.iter().flat_map(|file| file.lines()).filter_map(|line| line.strip_prefix("> ")).map(str::to_owned).collect()
}

#[test]
fn the_rows_of_an_insert_go_each_to_one_shard() {
    let world = world();
    let mut numbers = Numbers(1);
    for _ in 0..200 {
        let rows: Vec<(i64, String)> = (0..1 + numbers.below(20))
            .map(|at| (i64::try_from(numbers.below(50)).unwrap() - 9, format!("'r{at}, (x'")))
            .collect();
        let listed: Vec<String> = rows.iter().map(|(id, name)| format!("({name}, {id}, $1)")).collect();
        let tail = ["", " ON CONFLICT DO NOTHING", " RETURNING id"][numbers.below(3)];
        let text = format!("INSERT INTO users (name, id, org) VALUES {}{tail}", listed.join(", "));
        let query = world.query(&text).unwrap();
        assert_eq!(query.row_count(), rows.len());
        let groups = match query.scatter(&value(&query), PARTITIONS).unwrap() {
            Route::Rows(groups) => groups,
            other => panic!("{other:?}"),
        };
        let mut seen = BTreeSet::new();
        for (partition, group) in &groups {
            let part = query.rows(group).unwrap();
            assert_eq!(part.params, [0]);
            for row in group {
                assert!(seen.insert(*row), "row {row} goes to two partitions");
                assert_eq!(partition_of(&Value::Integer(rows[*row].0), KeyType::Integer, PARTITIONS), Ok(*partition));
                assert!(part.text.contains(&format!("({}, {}, $1)", rows[*row].1, rows[*row].0)), "{}", part.text);
            }
            assert_eq!(part.text.matches("$1").count(), group.len());
            assert!(part.text.ends_with(tail), "{}", part.text);
            assert_eq!(
                world.query(&part.text).unwrap().row_count(),
                group.len(),
                "a part is a statement like any other"
            );
        }
        assert_eq!(seen.len(), rows.len());
    }
}

#[test]
fn no_text_makes_the_planner_panic_or_forget_a_table() {
    let world = world();
    let statements = statements();
    let absent = BTreeSet::from([3, 4, 5].map(PartitionId));
    let screen = Screen { schema: world.schema(), absent: &absent, partition_count: PARTITIONS };
    let mut numbers = Numbers(2);
    for _ in 0..20_000 {
        let mut words: Vec<&str> = statements[numbers.below(statements.len())].split(' ').collect();
        for _ in 0..1 + numbers.below(3) {
            let at = numbers.below(words.len());
            let other: Vec<&str> = statements[numbers.below(statements.len())].split(' ').collect();
            match numbers.below(4) {
                0 if words.len() > 1 => drop(words.remove(at)),
                1 => words.insert(at, other[numbers.below(other.len())]),
                2 => words[at] = other[numbers.below(other.len())],
                _ => words.truncate(at + 1),
            }
        }
        let text = words.join(" ");
        for planned in world.prepare(&text).unwrap_or_default() {
            assert!(text.contains(&planned.text), "{text}");
            let What::Query(query) = planned.what else { continue };
            let route = query.route(&value(&query), PARTITIONS);
            // What has to be screened is, or is refused; what need not be is not broken by it.
            let screened = screen.statement(&planned.text);
            match &screened {
                Ok(screened) => {
                    let needed =
                        query.needs_screening(&value(&query), &absent, PARTITIONS) && query.verb != Verb::Insert;
                    assert!(!needed || screened.contains("'{3,4,5}'::bigint[]"), "{screened}");
                    let again = world.query(screened).map(|query| query.tables);
                    assert_eq!(again, Ok(query.tables.clone()), "{screened}");
                }
                Err(error) => assert_eq!(error.code, Code::RowsMoving, "{text}: {error}"),
            }
            // Whoever reads rows of users reads them where they are.
            let reads = planned.text.starts_with("SELECT ") && planned.text.contains(" FROM users ");
            if reads && !planned.text.contains(['\'', '$', '-']) && !planned.text.contains("WHERE") {
                assert!(!matches!(route, Ok(Route::Any)), "{text}: {route:?}");
            }
        }
    }
}

#[test]
fn nothing_is_too_deep_or_too_long() {
    let world = world();
    for (text, code) in [
        (format!("SELECT {}1{}", "(".repeat(5000), ")".repeat(5000)), "54001"),
        (format!("SELECT {}1", "- ".repeat(5000)), "54001"),
        (format!("SELECT 1 {}", "UNION SELECT 1 ".repeat(5000)), "54001"),
        (format!("SELECT {} END", "CASE WHEN true THEN ".repeat(5000)), "54001"),
        (format!("SELECT '{}'", "x".repeat(2_000_000)), "54000"),
        ("SELECT 'open".to_owned(), "42601"),
        ("SELECT 1 /* open".to_owned(), "42601"),
    ] {
        assert_eq!(world.prepare(&text).unwrap_err().sqlstate(), code, "{}", text.chars().take(60).collect::<String>());
    }
    assert!(world.query(&format!("SELECT * FROM users WHERE id IN ({}1)", "1, ".repeat(20_000))).is_ok());
}

#[test]
fn a_message_has_its_statements_in_order() {
    let world = world();
    let texts =
        |text: &str| -> Vec<String> { world.prepare(text).unwrap().into_iter().map(|planned| planned.text).collect() };
    assert_eq!(texts(""), Vec::<String>::new());
    assert_eq!(texts(" ; -- nothing\n ;"), Vec::<String>::new());
    assert_eq!(
        texts("/* a; */ BEGIN; SELECT ';' -- b;\n;SELECT $$;$$ /* c */;COMMIT"),
        ["/* a; */ BEGIN", "SELECT ';' -- b;", "SELECT $$;$$ /* c */", "COMMIT"]
    );
    assert_eq!(world.prepare("SELECT 1; TABLE rich").unwrap_err().sqlstate(), "0A000");
}

#[test]
fn values_that_cannot_be_read_ask_all_shards() {
    let world = world();
    let query = world.query("SELECT * FROM users WHERE id = $1").unwrap();
    assert_eq!(query.keys(), [(0, KeyType::Integer)]);
    for unread in [None, Some(Value::Real(5.5)), Some(Value::from("five"))] {
        let route = query.route(&|_| unread.clone(), PARTITIONS).unwrap();
        assert!(matches!(route, Route::Spread { plan: Spread::Concat(_), prune: None }), "{unread:?}");
    }
    assert!(matches!(query.route(&|_| Some(Value::Null), PARTITIONS), Ok(Route::Any)), "NULL equals nothing");
    let insert = world.query("INSERT INTO users (id) VALUES ($1)").unwrap();
    for (unread, code) in [(None, "22P02"), (Some(Value::Real(5.5)), "22P02"), (Some(Value::Null), "23502")] {
        assert_eq!(insert.route(&|_| unread.clone(), PARTITIONS).unwrap_err().sqlstate(), code);
    }
}

#[test]
fn a_prepared_statement_and_a_cursor_have_plans_of_their_own() {
    let world = world();
    let What::Prepare { name, types, statement } =
        world.one("PREPARE \"Q\" (bigint, numeric(3, 1)) AS SELECT * FROM users WHERE id = $1").unwrap().what
    else {
        panic!("no PREPARE")
    };
    assert_eq!((name.as_str(), types), ("Q", vec!["bigint".to_owned(), "numeric(3, 1)".to_owned()]));
    assert_eq!(statement.text, "SELECT * FROM users WHERE id = $1");
    assert!(matches!(&statement.what, What::Query(query) if query.keys() == [(0, KeyType::Integer)]));
    let What::Declare { name, hold, text, query } =
        world.one("DECLARE c CURSOR WITH HOLD FOR SELECT * FROM users").unwrap().what
    else {
        panic!("no DECLARE")
    };
    assert_eq!((name.as_str(), hold, text.as_str()), ("c", true, "SELECT * FROM users"));
    assert!(!query.writes && query.tables == ["users"]);
}
