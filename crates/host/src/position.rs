//! An outcome and the position of its entry in the log, as one run of bytes.

use anyhow::Context;
use bytes::Bytes;

/// An outcome travels back to its proposer with the log position of its entry before it.
pub fn with_index(index: u64, outcome: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(8 + outcome.len());
    bytes.extend_from_slice(&index.to_le_bytes());
    bytes.extend_from_slice(outcome);
    bytes.into()
}

/// The log position and the outcome that [`with_index`] put together.
pub fn split_index(bytes: &[u8]) -> anyhow::Result<(u64, &[u8])> {
    let (index, outcome) = bytes.split_first_chunk::<8>().context("an outcome without its position")?;
    Ok((u64::from_le_bytes(*index), outcome))
}
