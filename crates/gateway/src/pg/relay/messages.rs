//! Cutting what servers answer into messages, where Pleat has to look at them.
//!
//! A statement of one shard is passed on without this. Of one that several shards answer, rows are kept as the bytes that they are, and
//! the rest is looked at.

use bytes::{Bytes, BytesMut};
use pleat_engine::postgres::wire::backend::Head;

use crate::session::Failure;
use crate::settings::PG_SYSTEM_ANSWER_BYTES_MAX;

/// A letter and a length.
const HEAD: usize = 5;

/// A message of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    pub tag: u8,
    /// With its letter and its length.
    pub bytes: Bytes,
}

impl Whole {
    pub fn body(&self) -> Bytes {
        self.bytes.slice(HEAD..)
    }
}

/// Bytes, of which messages are made.
#[derive(Default)]
pub struct Messages {
    held: BytesMut,
}

impl Messages {
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next one, once it is there whole.
    pub fn next(&mut self) -> Result<Option<Whole>, Failure> {
        let broken = |_| Failure::internal("a server sent a message that can't be read");
        let Some(head) = Head::read(&self.held).map_err(broken)? else { return Ok(None) };
        if head.bytes > PG_SYSTEM_ANSWER_BYTES_MAX {
            let message = format!(
                "a row has {} bytes, and one of several shards can have {PG_SYSTEM_ANSWER_BYTES_MAX}",
                head.bytes
            );
            return Err(Failure::new("54000", message, "ask for it by its shard key"));
        }
        if self.held.len() < head.bytes {
            return Ok(None);
        }
        Ok(Some(Whole { tag: head.tag, bytes: self.held.split_to(head.bytes).freeze() }))
    }
}

/// A RowDescription with other formats: none (all are text), one for all, or one for each.
pub fn with_formats(message: &Whole, formats: &[i16]) -> Bytes {
    let mut bytes = BytesMut::from(&message.bytes[..]);
    let mut at = HEAD + 2;
    let mut column = 0;
    while at < bytes.len() {
        let Some(end) = bytes[at..].iter().position(|byte| *byte == 0) else { break };
        let format = at + end + 1 + 16;
        let wanted = match formats {
            [] => 0,
            [one] => *one,
            all => all.get(column).copied().unwrap_or(0),
        };
        let Some(place) = bytes.get_mut(format..format + 2) else { break };
        place.copy_from_slice(&wanted.to_be_bytes());
        (at, column) = (format + 2, column + 1);
    }
    bytes.freeze()
}

/// The number at the end of a tag: `UPDATE 3`, `INSERT 0 3`.
pub fn counted(body: &[u8]) -> u64 {
    let text = body.split(|byte| *byte == 0).next().unwrap_or_default();
    let last = text.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    std::str::from_utf8(last).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The words of a tag before its number: `UPDATE`, `INSERT 0`.
pub fn words(body: &[u8]) -> String {
    let text = body.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    match text.rsplit_once(' ') {
        Some((words, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => words.to_owned(),
        _ => text.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::wire::Out;
    use crate::pg::wire::write::Field;

    #[test]
    fn messages_come_in_any_pieces() {
        let mut out = Out::default();
        out.complete("SELECT 12");
        out.plain(b'c');
        let bytes = out.take();
        let mut messages = Messages::default();
        let mut found = Vec::new();
        for byte in &bytes[..] {
            messages.push(&[*byte]);
            found.extend(messages.next().unwrap());
        }
        assert_eq!(found.iter().map(|whole| whole.tag).collect::<Vec<_>>(), b"Cc");
        assert_eq!((counted(&found[0].body()), words(&found[0].body())), (12, "SELECT".to_owned()));
        assert_eq!(words(b"INSERT 0 3\0"), "INSERT 0");
        assert_eq!(words(b"CREATE TABLE\0"), "CREATE TABLE");
    }

    #[test]
    fn formats_are_written_anew() {
        let field = |name: &str, oid| Field { name: name.to_owned(), oid, size: 4, format: 0 };
        let mut out = Out::default();
        out.row_description(&[field("a", 23), field("longer", 25)]);
        let mut messages = Messages::default();
        messages.push(&out.take());
        let message = messages.next().unwrap().unwrap();
        let mut expected = Out::default();
        expected.row_description(&[field("a", 23), Field { format: 1, ..field("longer", 25) }]);
        assert_eq!(with_formats(&message, &[0, 1]), expected.take().freeze());
    }
}
