//! Cutting a file into batches, the same way each time: by the number of rows and the bytes they take.

use std::io::{self, BufRead};

use serde_json::{Value, json};

use super::csv::{Field, Item, Reader};
use super::values::Affinity;

/// A batch ends when its values take this many bytes; the server takes bodies up to 16 MiB.
const BATCH_BYTES: usize = 2 << 20;

/// A row that was not inserted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    pub line: u64,
    pub reason: String,
    /// The fields as they stand in the file; one field, the whole line, when it could not be taken apart.
    pub fields: Vec<Vec<u8>>,
}

/// Rows that are sent together.
#[derive(Debug, Default)]
pub struct Batch {
    pub number: u64,
    /// The body of the request, or nothing when no row is left to send.
    pub body: Option<Vec<u8>>,
    /// Where each row of the body stands in the file, for those that the server rejects.
    pub sent: Vec<Reject>,
    /// Rows that were not even sent.
    pub rejected: Vec<Reject>,
    /// The last line of the batch.
    pub last_line: u64,
}

/// What happens to the fields of a row.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// For each field of the file: the table's column and its affinity, or nothing when it is left out.
    pub fields: Vec<Option<(String, Affinity)>>,
    /// The text that stands for NULL.
    pub null: Option<String>,
    /// Whether the file is written as `pleat export` does.
    pub exported: bool,
    /// Rows in a batch.
    pub rows: usize,
}

impl Mapping {
    /// The columns that are inserted, in the order of the values.
    fn columns(&self) -> Vec<&str> {
        self.fields.iter().flatten().map(|(name, _)| name.as_str()).collect()
    }

    /// The values of a row, or why it can't be sent.
    fn values(&self, fields: &[Field]) -> Result<Vec<Value>, String> {
        if fields.len() != self.fields.len() {
            return Err(format!("the row has {} fields, not {}", fields.len(), self.fields.len()));
        }
        let mut values = Vec::with_capacity(fields.len());
        for (field, mapped) in fields.iter().zip(&self.fields) {
            let Some((column, affinity)) = mapped else { continue };
            let value = match self.exported {
                true => affinity.exported(field),
                false => affinity.value(field, self.null.as_deref()),
            };
            values.push(value.map_err(|reason| format!("column {column}: {reason}"))?);
        }
        Ok(values)
    }
}

/// The next batch, or nothing at the end of the file.
pub fn next<R: BufRead>(reader: &mut Reader<R>, mapping: &Mapping, number: u64) -> io::Result<Option<Batch>> {
    let mut batch = Batch { number, ..Batch::default() };
    let mut rows: Vec<Vec<Value>> = Vec::new();
    let mut bytes = 0;
    while batch.sent.len() + batch.rejected.len() < mapping.rows && bytes < BATCH_BYTES {
        let Some(item) = reader.next()? else { break };
        match item {
            Item::Row { line, fields } => {
                bytes += fields.iter().map(|field| field.bytes.len() + 3).sum::<usize>();
                let values = mapping.values(&fields);
                let fields = fields.into_iter().map(|field| field.bytes).collect();
                match values {
                    Ok(values) => {
                        rows.push(values);
                        batch.sent.push(Reject { line, reason: String::new(), fields });
                    }
                    Err(reason) => batch.rejected.push(Reject { line, reason, fields }),
                }
            }
            Item::Broken { line, reason, text } => {
                bytes += text.len();
                batch.rejected.push(Reject { line, reason, fields: vec![text] });
            }
        }
    }
    if batch.sent.is_empty() && batch.rejected.is_empty() {
        return Ok(None);
    }
    batch.last_line = reader.line() - 1;
    if !rows.is_empty() {
        let body = json!({"columns": mapping.columns(), "rows": rows});
        batch.body = Some(serde_json::to_vec(&body)?);
    }
    Ok(Some(batch))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(rows: usize) -> Mapping {
        Mapping {
            fields: vec![Some(("id".to_string(), Affinity::Integer)), None, Some(("name".to_string(), Affinity::Text))],
            null: Some("NA".to_string()),
            exported: false,
            rows,
        }
    }

    #[test]
    fn good_rows_are_sent_and_bad_ones_are_named_by_their_line() {
        let text = b"1,x,a\n2,x\n3,x,NA\n4,x,\xff\n5,\"x,b\n6,x,c\n".as_slice();
        let mut reader = Reader::new(text, b',');
        let batch = next(&mut reader, &mapping(100), 0).unwrap().unwrap();
        let body: Value = serde_json::from_slice(batch.body.as_ref().unwrap()).unwrap();
        assert_eq!(body, json!({"columns": ["id", "name"], "rows": [[1, "a"], [3, null], [6, "c"]]}));
        let lines: Vec<u64> = batch.sent.iter().map(|row| row.line).collect();
        assert_eq!(lines, [1, 3, 6]);
        let rejected: Vec<String> = batch.rejected.iter().map(|row| format!("{}: {}", row.line, row.reason)).collect();
        assert_eq!(
            rejected,
            [
                "2: the row has 2 fields, not 3",
                "4: column name: not valid UTF-8 after byte 0",
                "5: a quoted field is never closed"
            ]
        );
        assert!(next(&mut reader, &mapping(100), 1).unwrap().is_none());
    }

    #[test]
    fn batches_are_cut_alike_each_time_by_rows_and_by_bytes() {
        let text: String = (0..25).map(|n| format!("{n},x,{n}\n")).collect();
        let sizes = |rows: usize, text: &str| {
            let mut reader = Reader::new(text.as_bytes(), b',');
            let mut sizes = Vec::new();
            while let Some(batch) = next(&mut reader, &mapping(rows), sizes.len() as u64).unwrap() {
                sizes.push(batch.sent.len());
            }
            sizes
        };
        assert_eq!(sizes(10, &text), [10, 10, 5]);
        let wide: String = (0..5).map(|n| format!("{n},x,{}\n", "y".repeat(BATCH_BYTES / 2))).collect();
        assert_eq!(sizes(10, &wide), [2, 2, 1]);
    }
}
