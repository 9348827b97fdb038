//! Rows on their way from shard to shard.
//!
//! **The problem.** A row that moves passes many hands: the source's reader, the mover, the target's leader, its log, every
//! replica. As a list of values, each in memory of its own, it would be taken apart and put together in each of them, and that would
//! cost more than storing it.
//!
//! **The mechanism.** Rows are put into bytes once, by who reads them, and stay that way; who stores them binds the values from there.
//! Clones share the bytes.
//!
//! A value is a byte that tells its class, and what follows it:
//!
//! | byte | value |
//! | --- | --- |
//! | 0 | NULL |
//! | 1, 2, 3, 4 | an integer in 1, 2, 4, 8 bytes, the lowest first |
//! | 5 | a real in 8 bytes, the lowest first |
//! | 6, 7 | text in UTF-8, a blob: its length in 4 bytes, the lowest first, then its bytes |
//! | 8 and more | text of 0 to 247 bytes |

use std::fmt;
use std::sync::Arc;

use pleat_cluster::Value;
use rusqlite::types::ValueRef;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sqlite::value::{value_of, value_ref};

const NULL: u8 = 0;
const REAL: u8 = 5;
const TEXT: u8 = 6;
const BLOB: u8 = 7;
const SHORT_TEXT: u8 = 8;
/// The longest text whose length is in its first byte, in bytes.
const SHORT_TEXT_MAX: usize = (u8::MAX - SHORT_TEXT) as usize;

/// Rows of one table, all of the same columns.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Rows {
    width: u32,
    count: u32,
    size: u64,
    #[serde(serialize_with = "serialize_bytes")]
    bytes: Arc<Vec<u8>>,
}

/// As they come from elsewhere.
#[derive(Deserialize)]
struct Unchecked {
    width: u32,
    count: u32,
    size: u64,
    #[serde(deserialize_with = "deserialize_bytes")]
    bytes: Arc<Vec<u8>>,
}

/// A place between two rows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mark {
    count: u32,
    size: u64,
    bytes: usize,
}

impl Rows {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Values of each row.
    pub fn width(&self) -> usize {
        self.width as usize
    }

    /// The bytes that they take on their way.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes of their values, a number counted as 8: what people are told.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// All of them as values.
    pub fn to_values(&self) -> Vec<Vec<Value>> {
        let mut all = Vec::with_capacity(self.len());
        let mut rows = self.read();
        while let Some(row) = rows.next() {
            all.push(row.iter().map(|value| value_of(*value)).collect());
        }
        all
    }

    /// Adds a row that is as wide as the others.
    pub fn push(&mut self, row: &[Value]) {
        self.push_refs(row.iter().map(|value| value_ref(value)));
    }

    /// Cuts them into pieces that take at most `limit` bytes each, and the first one `first`. A row that is larger travels
    /// alone. There is always a first piece; it is empty when not even one row fits into less than `limit`.
    pub fn cut(&self, first: usize, limit: usize) -> Vec<Rows> {
        if self.bytes() <= first {
            return vec![self.clone()];
        }
        let mut pieces = vec![Rows::default()];
        let mut room = first;
        let mut rows = self.read();
        while let Some(row) = rows.next() {
            let piece = pieces.last_mut().expect("there is always a last piece");
            let before = piece.mark();
            piece.push_refs(row.iter().copied());
            let alone = before.count == 0 && room >= limit;
            if piece.bytes() > room && !alone {
                piece.back_to(before);
                let mut next = Rows::default();
                next.push_refs(row.iter().copied());
                pieces.push(next);
                room = limit;
            }
        }
        pieces
    }

    pub(crate) fn push_refs<'a>(&mut self, row: impl Iterator<Item = ValueRef<'a>>) {
        let bytes = Arc::make_mut(&mut self.bytes);
        let mut width = 0;
        for value in row {
            self.size += encode(value, bytes);
            width += 1;
        }
        assert!(self.count == 0 || self.width == width, "rows of one table have the same columns");
        self.width = width;
        self.count += 1;
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark { count: self.count, size: self.size, bytes: self.bytes.len() }
    }

    /// The bytes that were added since.
    pub(crate) fn bytes_since(&self, mark: Mark) -> usize {
        self.bytes.len() - mark.bytes
    }

    /// Takes back what was added since.
    pub(crate) fn back_to(&mut self, mark: Mark) {
        (self.count, self.size) = (mark.count, mark.size);
        self.width = if mark.count == 0 { 0 } else { self.width };
        Arc::make_mut(&mut self.bytes).truncate(mark.bytes);
    }

    /// Reads them one after the other.
    pub(crate) fn read(&self) -> Reading<'_> {
        self.read_from(Mark::default())
    }

    pub(crate) fn read_from(&self, mark: Mark) -> Reading<'_> {
        let left = self.len() - mark.count as usize;
        Reading { left, width: self.width(), bytes: &self.bytes[mark.bytes..], row: Vec::with_capacity(self.width()) }
    }
}

/// Rows that are being read.
#[derive(Clone, Debug)]
pub(crate) struct Reading<'a> {
    left: usize,
    width: usize,
    bytes: &'a [u8],
    row: Vec<ValueRef<'a>>,
}

impl<'a> Reading<'a> {
    /// How many there still are.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    pub(crate) fn next(&mut self) -> Option<&[ValueRef<'a>]> {
        self.left = self.left.checked_sub(1)?;
        self.row.clear();
        for _ in 0..self.width {
            self.row.push(decode(&mut self.bytes).expect("rows are checked when they arrive"));
        }
        Some(&self.row)
    }
}

/// Appends a value, and gives its size.
fn encode(value: ValueRef<'_>, bytes: &mut Vec<u8>) -> u64 {
    match value {
        ValueRef::Null => {
            bytes.push(NULL);
            1
        }
        ValueRef::Integer(number) => {
            let (class, length) = match number {
                -0x80..=0x7f => (1, 1),
                -0x8000..=0x7fff => (2, 2),
                -0x8000_0000..=0x7fff_ffff => (3, 4),
                _ => (4, 8),
            };
            bytes.push(class);
            bytes.extend_from_slice(&number.to_le_bytes()[..length]);
            8
        }
        ValueRef::Real(real) => {
            bytes.push(REAL);
            bytes.extend_from_slice(&real.to_bits().to_le_bytes());
            8
        }
        ValueRef::Text(text) if text.len() <= SHORT_TEXT_MAX => {
            bytes.push(SHORT_TEXT + text.len() as u8);
            bytes.extend_from_slice(text);
            text.len() as u64
        }
        ValueRef::Text(long) | ValueRef::Blob(long) => {
            bytes.push(if matches!(value, ValueRef::Text(_)) { TEXT } else { BLOB });
            // SQLite's own limit is below this.
            let length = u32::try_from(long.len()).expect("a value is less than 4 GiB");
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(long);
            u64::from(length)
        }
    }
}

/// Takes a value off the front. `None` when there is none.
fn decode<'a>(bytes: &mut &'a [u8]) -> Option<ValueRef<'a>> {
    fn number<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
        let (first, rest) = bytes.split_first_chunk::<N>()?;
        *bytes = rest;
        Some(*first)
    }
    fn part<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
        let (first, rest) = bytes.split_at_checked(length)?;
        *bytes = rest;
        Some(first)
    }
    let [class] = number::<1>(bytes)?;
    Some(match class {
        NULL => ValueRef::Null,
        1 => ValueRef::Integer(i8::from_le_bytes(number(bytes)?).into()),
        2 => ValueRef::Integer(i16::from_le_bytes(number(bytes)?).into()),
        3 => ValueRef::Integer(i32::from_le_bytes(number(bytes)?).into()),
        4 => ValueRef::Integer(i64::from_le_bytes(number(bytes)?)),
        REAL => ValueRef::Real(f64::from_bits(u64::from_le_bytes(number(bytes)?))),
        TEXT | BLOB => {
            let length = u32::from_le_bytes(number(bytes)?) as usize;
            let long = part(bytes, length)?;
            if class == TEXT { ValueRef::Text(long) } else { ValueRef::Blob(long) }
        }
        short => ValueRef::Text(part(bytes, usize::from(short - SHORT_TEXT))?),
    })
}

impl TryFrom<Unchecked> for Rows {
    type Error = &'static str;

    fn try_from(Unchecked { width, count, size, bytes }: Unchecked) -> Result<Rows, Self::Error> {
        let mut left = &bytes[..];
        // A row without values would be there as often as a message claims.
        if width == 0 && count > 0 {
            return Err("rows without columns");
        }
        for _ in 0..count {
            for _ in 0..width {
                match decode(&mut left) {
                    Some(ValueRef::Text(text)) if std::str::from_utf8(text).is_err() => {
                        return Err("text is not UTF-8");
                    }
                    Some(_) => {}
                    None => return Err("rows are cut off"),
                }
            }
        }
        let width = if count == 0 { 0 } else { width };
        match left.is_empty() {
            true => Ok(Rows { width, count, size, bytes }),
            false => Err("more than the rows that were announced"),
        }
    }
}

impl From<Vec<Vec<Value>>> for Rows {
    fn from(values: Vec<Vec<Value>>) -> Self {
        let mut rows = Rows::default();
        values.iter().for_each(|row| rows.push(row));
        rows
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.to_values()).finish()
    }
}

fn serialize_bytes<S: Serializer>(bytes: &Arc<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

fn deserialize_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Vec<u8>>, D::Error> {
    struct Visitor;
    impl serde::de::Visitor<'_> for Visitor {
        type Value = Arc<Vec<u8>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("rows as bytes")
        }

        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
            Ok(Arc::new(bytes.to_vec()))
        }
    }
    deserializer.deserialize_bytes(Visitor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Integer),
            (-300_i64..300).prop_map(Value::Integer),
            (-70_000_i64..70_000).prop_map(Value::Integer),
            any::<i32>().prop_map(|number| Value::Integer(number.into())),
            (-1e300..1e300_f64).prop_map(Value::Real),
            ".{0,20}".prop_map(Value::Text),
            (240_usize..260).prop_map(|length| Value::Text("ä".repeat(length / 2) + &"x".repeat(length % 2))),
            proptest::collection::vec(any::<u8>(), 0..300).prop_map(Value::Blob),
        ]
    }

    fn rows() -> impl Strategy<Value = Vec<Vec<Value>>> {
        (1_usize..6).prop_flat_map(|width| proptest::collection::vec(proptest::collection::vec(value(), width), 0..20))
    }

    proptest! {
        #[test]
        fn rows_arrive_as_they_were(values in rows()) {
            let rows = Rows::from(values.clone());
            prop_assert_eq!((rows.len(), rows.to_values()), (values.len(), values.clone()));
            let sent = postcard::to_stdvec(&rows).unwrap();
            prop_assert_eq!(&postcard::from_bytes::<Rows>(&sent).unwrap(), &rows);
        }

        #[test]
        fn pieces_keep_to_their_limit_and_nothing_is_lost(values in rows(), first in 0_usize..500, limit in 1_usize..500) {
            let first = first.min(limit);
            let pieces = Rows::from(values.clone()).cut(first, limit);
            for (at, piece) in pieces.iter().enumerate() {
                let room = if at == 0 { first } else { limit };
                prop_assert!(piece.bytes() <= room || (piece.len() == 1 && room == limit));
            }
            prop_assert_eq!(pieces.iter().flat_map(Rows::to_values).collect::<Vec<_>>(), values);
        }

        #[test]
        fn what_is_garbled_is_refused_or_is_other_rows(values in rows(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut sent = postcard::to_stdvec(&Rows::from(values)).unwrap();
            let at = at.index(sent.len());
            sent[at] = byte;
            if let Ok(rows) = postcard::from_bytes::<Rows>(&sent) {
                prop_assert_eq!(rows.to_values().len(), rows.len());
            }
            prop_assert!(postcard::from_bytes::<Rows>(&sent[..at]).is_err());
        }
    }
}
