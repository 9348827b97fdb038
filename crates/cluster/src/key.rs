//! From a key to its partition.
//!
//! The hash must be one that every engine can compute in its own SQL, so that copying, verifying and
//! cleaning up run inside the database: `h` is the first 8 hex digits of `md5(text form of the key)` and
//! the partition is `(h * partition_count) >> 32`. The text form is the decimal number of an integer, the
//! text itself, the lower-case hyphenated form of a UUID, and `\x` with lower-case hex digits for bytes
//! (PostgreSQL's own text form of `bytea`).
//!
//! Only types whose equality is equality of that text form can be keys. A column that compares
//! case-insensitively, or pads with spaces, or holds `1` and `1.0` as equals, would let two equal keys land
//! on two shards; those are refused when the table is declared.

use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

use crate::{PartitionId, Value};

/// How many partitions a cluster has unless told otherwise.
pub const PARTITION_COUNT_DEFAULT: u32 = 256;
/// The most partitions that a cluster can be made with.
pub const PARTITION_COUNT_MAX: u32 = 65_536;

/// What a shard key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyType {
    Integer,
    Text,
    Bytes,
    /// Of servers: SQLite has none.
    Uuid,
}

impl KeyType {
    /// The storage class (`typeof()`) that every stored key of this type has.
    pub fn storage_class(self) -> &'static str {
        match self {
            KeyType::Integer => "integer",
            KeyType::Text => "text",
            KeyType::Bytes => "blob",
            KeyType::Uuid => "uuid",
        }
    }
}

/// Why a value can't be a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the shard key is NULL: every row needs a key to have an owner")]
    Null,
    #[error("the shard key is {found}, but the key column holds {wanted} values")]
    Type { wanted: &'static str, found: &'static str },
}

/// The partition that owns `key`, for a key column of type `key_type`.
///
/// The value is first converted as SQLite's column affinity would convert it on storing (`'5'` in an
/// INTEGER column is `5`, `5` in a TEXT column is `'5'`), because the stored value decides the owner.
pub fn partition_of(key: &Value, key_type: KeyType, partition_count: u32) -> Result<PartitionId, KeyError> {
    let wrong = || KeyError::Type { wanted: key_type.storage_class(), found: key.type_name() };
    let text = match (key_type, key) {
        (_, Value::Null) => return Err(KeyError::Null),
        (KeyType::Integer, Value::Integer(number)) => number.to_string(),
        (KeyType::Integer, Value::Real(real)) => exact_integer(*real).ok_or_else(wrong)?.to_string(),
        (KeyType::Integer, Value::Text(text)) => integer_of_text(text).ok_or_else(wrong)?.to_string(),
        (KeyType::Text, Value::Text(text)) => text.clone(),
        (KeyType::Text, Value::Integer(number)) => number.to_string(),
        (KeyType::Bytes, Value::Blob(bytes)) => bytes_text(bytes),
        (KeyType::Uuid, Value::Text(text)) => uuid_text(text).ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    Ok(partition_of_text(text.as_bytes(), partition_count))
}

/// The partition of a key given in its text form.
pub fn partition_of_text(text: &[u8], partition_count: u32) -> PartitionId {
    let digest = Md5::digest(text);
    let h = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    PartitionId(((u64::from(h) * u64::from(partition_count)) >> 32) as u32)
}

/// The integer that SQLite stores for a REAL in an INTEGER column, if it converts without loss.
fn exact_integer(real: f64) -> Option<i64> {
    let limit = 9_223_372_036_854_775_808.0; // 2^63, exact as f64
    (real.fract() == 0.0 && real >= -limit && real < limit).then_some(real as i64)
}

/// The integer that SQLite stores for a TEXT in an INTEGER column, where the text is plainly one. Forms
/// such as `1e3` are refused instead of guessed at.
fn integer_of_text(text: &str) -> Option<i64> {
    text.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']).parse().ok()
}

/// The lower-case hyphenated form of a UUID in one of the forms that PostgreSQL reads: with hyphens behind any four digits or
/// none, perhaps in braces.
fn uuid_text(text: &str) -> Option<String> {
    let inner = text.strip_prefix('{').map_or(Some(text), |inner| inner.strip_suffix('}'))?;
    let groups = inner.split('-').all(|group| !group.is_empty() && group.len() % 4 == 0);
    let mut digits: String = inner.chars().filter(|c| *c != '-').collect();
    if !groups || digits.len() != 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    digits.make_ascii_lowercase();
    let part = |from: usize, to: usize| &digits[from..to];
    Some(format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)))
}

fn bytes_text(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("\\x");
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The partition of a row in PostgreSQL's SQL, as [`partition_of`] has it: the first 32 bits of the MD5 of the key's text form, scaled to the count. `column`
/// is a quoted name. It is the same whatever a session's settings say (`bytea_output`, `standard_conforming_strings`).
pub fn partition_in_postgres(column: &str, key: KeyType, partition_count: u32) -> String {
    let text = match key {
        KeyType::Integer | KeyType::Text | KeyType::Uuid => format!("{column}::text"),
        KeyType::Bytes => format!("E'\\\\x' || encode({column}, 'hex')"),
    };
    format!("((('x' || substr(md5({text}), 1, 8))::bit(32)::bigint * {partition_count}) >> 32)")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors that every engine's SQL must reproduce (first 8 hex digits of md5, then the bucket of 256).
    #[test]
    fn shared_vectors() {
        for (key, key_type, partition) in [
            (Value::Integer(0), KeyType::Integer, 0xcf),  // md5('0')  = cfcd2084…
            (Value::Integer(1), KeyType::Integer, 0xc4),  // md5('1')  = c4ca4238…
            (Value::Integer(-1), KeyType::Integer, 0x6b), // md5('-1') = 6bb61e3b…
            (Value::from("abc"), KeyType::Text, 0x90),    // md5('abc') = 90015098…
            (Value::from(""), KeyType::Text, 0xd4),       // md5('')   = d41d8cd9…
            (Value::Text("1".into()), KeyType::Integer, 0xc4),
            (Value::Real(1.0), KeyType::Integer, 0xc4),
        ] {
            assert_eq!(partition_of(&key, key_type, 256), Ok(PartitionId(partition)), "{key:?}");
        }
    }

    #[test]
    fn bytes_hash_as_their_hex_text() {
        let partition = partition_of(&Value::Blob(vec![0xde, 0xad]), KeyType::Bytes, 256);
        assert_eq!(partition, Ok(partition_of_text(b"\\xdead", 256)));
    }

    #[test]
    fn a_uuid_hashes_as_its_canonical_text() {
        let canonical = partition_of_text(b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", 256);
        for form in [
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
        ] {
            assert_eq!(partition_of(&Value::from(form), KeyType::Uuid, 256), Ok(canonical), "{form}");
        }
        for wrong in ["", "a0eebc99", "{a0eebc999c0b4ef8bb6d6bb9bd380a11", "g0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"] {
            assert!(partition_of(&Value::from(wrong), KeyType::Uuid, 256).is_err(), "{wrong}");
        }
    }

    #[test]
    fn null_and_wrong_types_are_refused() {
        assert_eq!(partition_of(&Value::Null, KeyType::Text, 256), Err(KeyError::Null));
        assert!(partition_of(&Value::Real(1.5), KeyType::Integer, 256).is_err());
        assert!(partition_of(&Value::Real(1.5), KeyType::Text, 256).is_err());
        assert!(partition_of(&Value::Text("x".into()), KeyType::Integer, 256).is_err());
    }

    #[test]
    fn every_partition_is_below_the_count() {
        for count in [1, 2, 3, 256, PARTITION_COUNT_MAX] {
            for key in 0..1000 {
                let partition = partition_of(&Value::Integer(key), KeyType::Integer, count).unwrap();
                assert!(partition.0 < count);
            }
        }
    }
}
