//! How this crate's values become bytes: a format version, then postcard.
//!
//! The version byte leads everything that goes to disk or to another node, so that a later format can be told
//! from this one, and garbage from both.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The format that this build writes, and the only one it reads.
const FORMAT: u8 = 1;

/// Encodes a value.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    append(value, Vec::new())
}

/// Encodes a value behind what is in `bytes`.
pub(crate) fn append<T: Serialize>(value: &T, mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.push(FORMAT);
    postcard::to_extend(value, bytes).expect("our own types always encode: they hold no maps of unknown length")
}

/// Decodes what [`encode`] made. `what` names the thing in errors.
pub(crate) fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> io::Result<T> {
    Ok(decode_first(what, bytes)?.0)
}

/// Decodes a value at the beginning of `bytes`, and gives what follows it: the value may decide whether the rest
/// is to be read at all.
pub(crate) fn decode_first<'a, T: DeserializeOwned>(what: &str, bytes: &'a [u8]) -> io::Result<(T, &'a [u8])> {
    let invalid = |detail: String| io::Error::new(io::ErrorKind::InvalidData, detail);
    match bytes.split_first() {
        Some((&FORMAT, rest)) => {
            postcard::take_from_bytes(rest).map_err(|error| invalid(format!("{what} is garbled: {error}")))
        }
        Some((&other, _)) => Err(invalid(format!(
            "{what} is in format {other}, this version of Pleat reads format {FORMAT}: use a version that matches"
        ))),
        None => Err(invalid(format!("{what} is empty"))),
    }
}
