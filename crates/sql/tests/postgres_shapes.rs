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
        for end in ["", ";", " ; ; "] {
            let found =
                Shape::of(&format!("{text}{end}")).map(|found| (found.statement.to_owned(), found.text, found.values));
            assert_eq!(found, Some((text.to_owned(), shape.to_owned(), values.clone())), "{text}{end}");
        }
    }
    for text in ["SELECT 1; SELECT 2", "SELECT a", "SELECT $1, 2", "SET a = 1", "DO 'SELECT 1'", "SELECT 'open"] {
        assert_eq!(Shape::of(text), None, "{text}");
    }
}

/// Where a shape's plan leads to partitions, the text's own leads to the same.
#[test]
fn a_shape_is_routed_as_its_text() {
    let world = world();
    let files =
        [include_str!("postgres/reads.txt"), include_str!("postgres/writes.txt"), include_str!("postgres/serial.txt")];
    let statements = files.iter().flat_map(|file| file.lines()).filter_map(|line| line.strip_prefix("> "));
    let mut same = 0;
    for text in statements {
        let Some(shape) = Shape::of(text) else { continue };
        let Ok(planned) = world.prepare(&shape.text) else { continue };
        let Some(What::Query(by_shape)) = planned.first().map(|planned| &planned.what) else { continue };
        let value = |at: usize| shape.values.get(at).cloned().flatten();
        let Ok(Route::Partitions(partitions)) = by_shape.route(&value, PARTITIONS) else { continue };
        if by_shape.pins || by_shape.counts || by_shape.given.is_some() {
            continue; // Planned for itself.
        }
        let query = world.query(text).unwrap();
        let Ok(Route::Partitions(own)) = query.route(&|_| None, PARTITIONS) else { panic!("{text}") };
        assert_eq!(partitions, own, "{text}");
        assert_eq!((query.verb, query.writes, query.pins), (by_shape.verb, by_shape.writes, by_shape.pins), "{text}");
        assert!(!query.counts && query.given.is_none(), "{text}");
        same += 1;
    }
    assert!(same > 20, "{same}");
}
