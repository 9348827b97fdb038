//! Cutting a batch along lines that don't depend on placement.

use std::collections::BTreeMap;

use pleat_cluster::{KeyError, PartitionId, Table, TableKind, Value, partition_of};

use super::Rejected;

/// Rows of one piece: one entry of a shard's log, and one hold of its writer.
pub(super) const PIECE_ROWS_MAX: usize = 1_000;
/// Bytes of one piece, roughly. A larger row is a piece of its own.
pub(super) const PIECE_BYTES_MAX: usize = 1 << 20;

/// A batch, cut up.
#[derive(Debug, PartialEq)]
pub(super) struct Split {
    pub parts: Vec<Part>,
    /// Rows that belong nowhere.
    pub rejected: Vec<Rejected>,
}

/// The rows of one unit of ownership.
#[derive(Debug, PartialEq)]
pub(super) struct Part {
    pub unit: PartitionId,
    pub pieces: Vec<Piece>,
}

/// Rows that are inserted together.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Piece {
    pub rows: Vec<Vec<Value>>,
    /// Their numbers in the batch.
    pub numbers: Vec<u32>,
    bytes: usize,
}

/// Cut `rows` by partition, then by size. Depends on the batch and the table alone.
pub(super) fn split(table: &Table, columns: &[String], rows: Vec<(u32, Vec<Value>)>, partition_count: u32) -> Split {
    let mut parts: BTreeMap<PartitionId, Vec<Piece>> = BTreeMap::new();
    let mut rejected = Vec::new();
    for (number, row) in rows {
        match unit_of(table, columns, &row, partition_count) {
            Ok(unit) => push(parts.entry(unit).or_default(), number, row),
            Err((code, error)) => rejected.push(Rejected { row: number, code: code.to_owned(), error }),
        }
    }
    let parts = parts.into_iter().map(|(unit, pieces)| Part { unit, pieces }).collect();
    Split { parts, rejected }
}

/// Cut rows by size alone, in order.
pub(super) fn pieces(columns: usize, rows: Vec<(u32, Vec<Value>)>) -> (Vec<Piece>, Vec<Rejected>) {
    let mut pieces = Vec::new();
    let mut rejected = Vec::new();
    for (number, row) in rows {
        match fits(columns, &row) {
            Ok(()) => push(&mut pieces, number, row),
            Err((code, error)) => rejected.push(Rejected { row: number, code: code.to_owned(), error }),
        }
    }
    (pieces, rejected)
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

fn push(pieces: &mut Vec<Piece>, number: u32, row: Vec<Value>) {
    let bytes = row.iter().map(Value::size).sum::<usize>();
    let fits = |piece: &Piece| piece.rows.len() < PIECE_ROWS_MAX && piece.bytes + bytes <= PIECE_BYTES_MAX;
    if !pieces.last().is_some_and(fits) {
        pieces.push(Piece::default());
    }
    if let Some(piece) = pieces.last_mut() {
        piece.rows.push(row);
        piece.numbers.push(number);
        piece.bytes += bytes;
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
        let kept: usize = split.parts.iter().flat_map(|part| &part.pieces).map(|piece| piece.rows.len()).sum();
        assert_eq!(kept, 2);
    }

    #[test]
    fn without_the_key_column_every_row_is_named() {
        let split = split(&table(KeyType::Integer), &["v".to_owned()], vec![(9, vec![Value::Integer(1)])], 256);
        assert_eq!((split.parts.len(), split.rejected[0].row), (0, 9));
    }

    #[test]
    fn a_single_table_is_one_unit_in_pieces_of_bounded_size() {
        let single = Table { kind: TableKind::Single { shard: pleat_cluster::ShardId(1) }, ..table(KeyType::Text) };
        let rows = (0..2_500).map(|n| (n, vec![Value::Null, Value::Null])).collect();
        let parts = split(&single, &columns(), rows, 256).parts;
        let sizes: Vec<_> = parts[0].pieces.iter().map(|piece| piece.rows.len()).collect();
        assert_eq!((parts.len(), parts[0].unit), (1, PartitionId::of_single(TableId(1))));
        assert_eq!(sizes, [1_000, 1_000, 500]);
        let large = || Value::Blob(vec![0; PIECE_BYTES_MAX]);
        let rows = (0..3).map(|n| (n, vec![large(), Value::Null])).collect();
        assert_eq!(split(&single, &columns(), rows, 256).parts[0].pieces.len(), 3);
    }

    proptest! {
        #[test]
        fn every_row_is_in_exactly_one_piece_in_order(keys in proptest::collection::vec(-50_i64..50, 0..400), count in 1_u32..300) {
            let rows: Vec<_> = (0..).zip(&keys).map(|(n, key)| (n, vec![Value::Integer(i64::from(n)), Value::Integer(*key)])).collect();
            let split = split(&table(KeyType::Integer), &columns(), rows.clone(), count);
            prop_assert!(split.rejected.is_empty());
            let mut seen = Vec::new();
            for part in &split.parts {
                let numbers: Vec<_> = part.pieces.iter().flat_map(|piece| piece.numbers.clone()).collect();
                prop_assert!(numbers.is_sorted());
                for piece in &part.pieces {
                    for (number, row) in piece.numbers.iter().zip(&piece.rows) {
                        prop_assert_eq!(row, &rows[*number as usize].1);
                        prop_assert_eq!(partition_of(&row[1], KeyType::Integer, count).unwrap(), part.unit);
                    }
                }
                seen.extend(numbers);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..keys.len() as u32).collect::<Vec<_>>());
        }
    }
}
