//! Cutting a batch along lines that don't depend on placement.

use std::collections::BTreeMap;

use pleat_cluster::{KeyError, PartitionId, Table, TableKind, Value, partition_of};

use super::Rejected;

/// Rows that are inserted together: an entry of a shard's log, and a hold of its writer, has no more of them.
pub(super) const WINDOW: Limits = Limits { rows: 5_000, bytes: 1 << 20 };
/// The same for a reference table, each of whose rows is a statement of its own.
pub(super) const REFERENCE: Limits = Limits { rows: 1_000, bytes: 1 << 20 };

/// How much goes together. A larger row goes alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub rows: usize,
    /// Roughly.
    pub bytes: usize,
}

/// Rows with their numbers in the batch, which rise.
pub(super) type Rows = Vec<(u32, Vec<Value>)>;

/// A batch, cut up.
#[derive(Debug, PartialEq)]
pub(super) struct Split {
    pub windows: Vec<Vec<Piece>>,
    /// Rows that belong nowhere.
    pub rejected: Vec<Rejected>,
}

/// The rows of a window that belong to one unit of ownership.
#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    pub unit: PartitionId,
    pub rows: Rows,
}

/// Cut `rows` by size, then by partition. Depends on the batch and the table alone.
pub(super) fn split(table: &Table, columns: &[String], rows: Rows, partition_count: u32) -> Split {
    let (mut placed, mut rejected) = (Vec::new(), Vec::new());
    for (number, row) in rows {
        match unit_of(table, columns, &row, partition_count) {
            Ok(unit) => placed.push((unit, number, row)),
            Err((code, error)) => rejected.push(Rejected { row: number, code: code.to_owned(), error }),
        }
    }
    let windows = cut(placed, WINDOW, |(.., row)| row);
    Split { windows: windows.into_iter().map(by_unit).collect(), rejected }
}

fn by_unit(window: Vec<(PartitionId, u32, Vec<Value>)>) -> Vec<Piece> {
    let mut units: BTreeMap<PartitionId, Rows> = BTreeMap::new();
    for (unit, number, row) in window {
        units.entry(unit).or_default().push((number, row));
    }
    units.into_iter().map(|(unit, rows)| Piece { unit, rows }).collect()
}

/// Cut the rows of a reference table by size alone.
pub(super) fn pieces(columns: usize, rows: Rows) -> (Vec<Rows>, Vec<Rejected>) {
    let (mut kept, mut rejected) = (Vec::new(), Vec::new());
    for (number, row) in rows {
        match fits(columns, &row) {
            Ok(()) => kept.push((number, row)),
            Err((code, error)) => rejected.push(Rejected { row: number, code: code.to_owned(), error }),
        }
    }
    (cut(kept, REFERENCE, |(_, row)| row), rejected)
}

/// Cut into runs that are within the limits.
fn cut<T>(rows: Vec<T>, limits: Limits, row: impl Fn(&T) -> &Vec<Value>) -> Vec<Vec<T>> {
    let mut runs: Vec<Vec<T>> = Vec::new();
    let mut held = 0;
    for one in rows {
        let bytes = row(&one).iter().map(Value::size).sum::<usize>();
        match runs.last_mut().filter(|run| run.len() < limits.rows && held + bytes <= limits.bytes) {
            Some(run) => {
                run.push(one);
                held += bytes;
            }
            None => {
                runs.push(vec![one]);
                held = bytes;
            }
        }
    }
    runs
}

type Wrong = (&'static str, String);

fn unit_of(table: &Table, columns: &[String], row: &[Value], partition_count: u32) -> Result<PartitionId, Wrong> {
    fits(columns.len(), row)?;
    let TableKind::Sharded { key, key_type } = &table.kind else {
        return Ok(PartitionId::of_single(table.id));
    };
    let at = columns.iter().position(|column| column.eq_ignore_ascii_case(key));
    let value = at.and_then(|at| row.get(at)).unwrap_or(&Value::Null);
    partition_of(value, *key_type, partition_count).map_err(|error| {
        let code = match error {
            KeyError::Null => "23502",
            KeyError::Type { .. } => "22P02",
        };
        (code, format!("{key}: {error}"))
    })
}

fn fits(columns: usize, row: &[Value]) -> Result<(), Wrong> {
    match row.len() == columns {
        true => Ok(()),
        false => Err(("22023", format!("the row has {} values for {columns} columns", row.len()))),
    }
}

#[cfg(test)]
mod tests {
    use pleat_cluster::{Column, KeyType, TableId};
    use proptest::prelude::*;

    use super::*;

    fn table(key_type: KeyType) -> Table {
        let column = |name: &str| Column {
            name: name.to_owned(),
            decl_type: String::new(),
            collation: None,
            not_null: false,
            generated: false,
            serial: None,
            has_default: false,
        };
        Table {
            id: TableId(1),
            name: "t".to_owned(),
            kind: TableKind::Sharded { key: "k".to_owned(), key_type },
            columns: vec![column("k"), column("v")],
            primary_key: vec!["k".to_owned()],
            rowid_alias: false,
            without_rowid: false,
            create_sql: String::new(),
            indexes: vec![],
            triggers: vec![],
        }
    }

    fn columns() -> Vec<String> {
        vec!["v".to_owned(), "K".to_owned()]
    }

    #[test]
    fn rows_without_a_usable_key_are_named() {
        let rows = vec![
            (0, vec![Value::Null, Value::Integer(1)]),
            (1, vec![Value::Null, Value::Null]),
            (2, vec![Value::Null, Value::Real(1.5)]),
            (3, vec![Value::Null]),
            (4, vec![Value::Null, Value::from("7")]),
        ];
        let split = split(&table(KeyType::Integer), &columns(), rows, 256);
        let codes: Vec<_> = split.rejected.iter().map(|row| (row.row, row.code.as_str())).collect();
        assert_eq!(codes, [(1, "23502"), (2, "22P02"), (3, "22023")]);
        let kept: usize = split.windows.iter().flatten().map(|piece| piece.rows.len()).sum();
        assert_eq!(kept, 2);
    }

    #[test]
    fn without_the_key_column_every_row_is_named() {
        let split = split(&table(KeyType::Integer), &["v".to_owned()], vec![(9, vec![Value::Integer(1)])], 256);
        assert_eq!((split.windows.len(), split.rejected[0].row), (0, 9));
    }

    #[test]
    fn a_single_table_is_one_unit_in_pieces_of_bounded_size() {
        let single = Table { kind: TableKind::Single { shard: pleat_cluster::ShardId(1) }, ..table(KeyType::Text) };
        let rows = (0..12_000).map(|n| (n, vec![Value::Null, Value::Null])).collect();
        let windows = split(&single, &columns(), rows, 256).windows;
        let sizes: Vec<_> = windows.iter().flatten().map(|piece| (piece.unit, piece.rows.len())).collect();
        let unit = PartitionId::of_single(TableId(1));
        assert_eq!(sizes, [(unit, 5_000), (unit, 5_000), (unit, 2_000)]);
        let large = || Value::Blob(vec![0; WINDOW.bytes]);
        let rows = (0..3).map(|n| (n, vec![large(), Value::Null])).collect();
        assert_eq!(split(&single, &columns(), rows, 256).windows.len(), 3);
    }

    proptest! {
        #[test]
        fn every_row_is_in_exactly_one_piece_in_order(keys in proptest::collection::vec(-50_i64..50, 0..400), count in 1_u32..300) {
            let rows: Vec<_> = (0..).zip(&keys).map(|(n, key)| (n, vec![Value::Integer(i64::from(n)), Value::Integer(*key)])).collect();
            let split = split(&table(KeyType::Integer), &columns(), rows.clone(), count);
            prop_assert!(split.rejected.is_empty());
            let mut seen = Vec::new();
            for piece in split.windows.iter().flatten() {
                prop_assert!(piece.rows.is_sorted_by_key(|(number, _)| number));
                for (number, row) in &piece.rows {
                    prop_assert_eq!(row, &rows[*number as usize].1);
                    prop_assert_eq!(partition_of(&row[1], KeyType::Integer, count).unwrap(), piece.unit);
                    seen.push(*number);
                }
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..keys.len() as u32).collect::<Vec<_>>());
        }
    }
}
