//! Digests: whether two shards hold the same rows.
//!
//! A table's digest is its number of rows and the wrapping *sum* of its rows' hashes, so that it doesn't depend
//! on the order of the rows. (An XOR would hide a row that is there twice.) A row's hash covers each value with
//! its storage class: `1`, `1.0` and `'1'` differ.

use std::collections::BTreeMap;

use rusqlite::types::ValueRef;
use serde::{Deserialize, Serialize};

/// The digest of one table, or of the moving part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDigest {
    pub rows: u64,
    pub sum: u64,
}

/// Digests by table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentDigest {
    pub tables: BTreeMap<String, TableDigest>,
}

impl TableDigest {
    /// Count one row in.
    pub(crate) fn add(&mut self, hash: u64) {
        self.rows += 1;
        self.sum = self.sum.wrapping_add(hash);
    }
}

impl ContentDigest {
    /// All of it as one number.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = RowHash::new();
        for (name, table) in &self.tables {
            hash.bytes(3, name.as_bytes());
            hash.word(table.rows);
            hash.word(table.sum);
        }
        hash.finish()
    }

    /// The tables whose digests differ, or that only one of the two has rows in.
    pub fn differences(&self, other: &ContentDigest) -> Vec<String> {
        let names: std::collections::BTreeSet<_> = self.tables.keys().chain(other.tables.keys()).collect();
        let of = |digest: &ContentDigest, name: &str| digest.tables.get(name).copied().unwrap_or_default();
        names.into_iter().filter(|name| of(self, name) != of(other, name)).cloned().collect()
    }
}

/// Hashes the values of one row: FNV-1a over eight bytes at a time, then SplitMix64's finish, so that sums of
/// hashes of similar rows don't cancel out.
pub(crate) struct RowHash(u64);

impl RowHash {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn value(&mut self, value: ValueRef<'_>) {
        match value {
            ValueRef::Null => self.word(0),
            ValueRef::Integer(number) => {
                self.word(1);
                self.word(number as u64);
            }
            ValueRef::Real(real) => {
                self.word(2);
                self.word(real.to_bits());
            }
            ValueRef::Text(text) => self.bytes(3, text),
            ValueRef::Blob(bytes) => self.bytes(4, bytes),
        }
    }

    pub(crate) fn bytes(&mut self, class: u64, bytes: &[u8]) {
        self.word(class);
        self.word(bytes.len() as u64);
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.word(u64::from_le_bytes(word.try_into().unwrap_or_default()));
        }
        let mut last = [0u8; 8];
        let rest = words.remainder();
        last[..rest.len()].copy_from_slice(rest);
        self.word(u64::from_le_bytes(last));
    }

    pub(crate) fn finish(self) -> u64 {
        let mut hash = self.0;
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    }

    fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(values: &[ValueRef<'_>]) -> u64 {
        let mut row = RowHash::new();
        for value in values {
            row.value(*value);
        }
        row.finish()
    }

    #[test]
    fn storage_classes_and_borders_between_values_count() {
        let rows: [&[ValueRef<'_>]; 8] = [
            &[ValueRef::Integer(1)],
            &[ValueRef::Real(1.0)],
            &[ValueRef::Text(b"1")],
            &[ValueRef::Blob(b"1")],
            &[ValueRef::Null],
            &[ValueRef::Null, ValueRef::Null],
            &[ValueRef::Text(b"ab"), ValueRef::Text(b"c")],
            &[ValueRef::Text(b"a"), ValueRef::Text(b"bc")],
        ];
        let hashes: std::collections::BTreeSet<u64> = rows.iter().map(|row| hash(row)).collect();
        assert_eq!(hashes.len(), rows.len());
    }

    #[test]
    fn a_doubled_row_shows() {
        let (mut once, mut thrice) = (TableDigest::default(), TableDigest::default());
        once.add(hash(&[ValueRef::Integer(7)]));
        for _ in 0..3 {
            thrice.add(hash(&[ValueRef::Integer(7)]));
        }
        assert_ne!(once, thrice);
        assert_ne!(once.sum, thrice.sum);
    }
}
