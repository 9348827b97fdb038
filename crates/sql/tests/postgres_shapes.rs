//! Statements that differ in their values alone.

mod postgres;

use pleat_cluster::Value;
use pleat_sql::postgres::{Route, Shape, What};
use postgres::{PARTITIONS, world};

#[test]
fn values_are_cut_out() {
    for (text, shape, values) in [
        ("SELECT * FROM users WHERE id = 123", "SELECT * FROM users WHERE id = $1", vec![Some(Value::Integer(123))]),
        (
            "UPDATE t SET a=a+-5.5,b='it''s' /* 7 */ WHERE \"1\"=E'x'",
            "UPDATE t SET a=a+-$1,b=$2 /* 7 */ WHERE \"1\"=E'x'",
            vec![None, Some(Value::from("it's"))],
        ),
        (
            "SELECT date '2020-01-01' + 1, t1.c2, $$3$$",
            "SELECT date '2020-01-01' + $1, t1.c2, $$3$$",
            vec![Some(Value::Integer(1))],
        ),
    ] {
        assert_eq!(Shape::of(text), Some(Shape { text: shape.to_owned(), values }), "{text}");
    }
    for text in ["SELECT 1; SELECT 2", "SELECT a", "SELECT $1, 2", "SET a = 1", "DO 'SELECT 1'", "SELECT 'open"] {
        assert_eq!(Shape::of(text), None, "{text}");
    }
}

/// Where a shape's plan leads to partitions, the text's own leads to the same.
#[test]
fn a_shape_is_routed_as_its_text() {
    let world = world();
    let files = [include_str!("postgres/reads.txt"), include_str!("postgres/writes.txt")];
    let statements = files.iter().flat_map(|file| file.lines()).filter_map(|line| line.strip_prefix("> "));
    let mut same = 0;
    for text in statements {
        let Some(shape) = Shape::of(text) else { continue };
        let Ok(planned) = world.prepare(&shape.text) else { continue };
        let Some(What::Query(by_shape)) = planned.first().map(|planned| &planned.what) else { continue };
        let value = |at: usize| shape.values.get(at).cloned().flatten();
        let Ok(Route::Partitions(partitions)) = by_shape.route(&value, PARTITIONS) else { continue };
        let query = world.query(text).unwrap();
        let Ok(Route::Partitions(own)) = query.route(&|_| None, PARTITIONS) else { panic!("{text}") };
        assert_eq!(partitions, own, "{text}");
        assert_eq!((query.verb, query.writes, query.pins), (by_shape.verb, by_shape.writes, by_shape.pins), "{text}");
        same += 1;
    }
    assert!(same > 20, "{same}");
}

/// What planning costs beside finding a shape: `cargo test … -- --ignored --nocapture`.
#[test]
#[ignore = "tells times"]
#[allow(clippy::disallowed_methods)] // it is about time
fn times() {
    let world = world();
    for text in [
        "SELECT * FROM users WHERE id = 123",
        "UPDATE users SET org = org + 17, name = 'abcdef' WHERE id = 4711",
        "INSERT INTO orders (id, user_id, total, qty, note) VALUES (1, 2, 3.5, 4, 'five')",
        "SELECT u.name, sum(o.total) FROM users u JOIN orders o ON o.user_id = u.id WHERE u.id = 7 AND o.qty > 3 GROUP BY u.name ORDER BY 2 DESC LIMIT 10",
    ] {
        let time = |what: &mut dyn FnMut()| {
            let start = std::time::Instant::now();
            (0..20_000).for_each(|_| what());
            start.elapsed().as_secs_f64() * 1e6 / 20_000.0
        };
        let plan = time(&mut || drop(std::hint::black_box(world.prepare(text))));
        let plans = std::collections::HashMap::from([(
            Shape::of(text).unwrap().text,
            world.prepare(&Shape::of(text).unwrap().text),
        )]);
        let shape = time(&mut || {
            let shape = Shape::of(text).unwrap();
            let plan = plans.get(&shape.text).unwrap();
            if let Ok([planned]) = plan.as_deref()
                && let What::Query(query) = &planned.what
            {
                let value = |at: usize| shape.values.get(at).cloned().flatten();
                drop(std::hint::black_box(query.route(&value, PARTITIONS)));
            }
        });
        println!("{plan:6.1} us planned, {shape:6.2} us by shape, {:4.1} times: {text}", plan / shape);
    }
}
