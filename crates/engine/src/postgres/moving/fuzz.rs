//! The stream of changes, from a server that sends anything.

use bytes::Bytes;
use pleat_fuzz::outcome;

use super::pgoutput::{Change, Lsn, Value};
use super::replication::{Frame, frame};

/// Frames with one change of each kind.
pub fn frames() -> Vec<Vec<u8>> {
    let changes: [&[u8]; 11] = [
        b"B\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\x07",
        b"C\0\0\0\0\x01\0\0\0\x02\0\0\0\x01\0\0\0\x03\0\0\0\0\0\0\0\0",
        b"O\0\0\0\0\0\0\0\x01there\0",
        b"Y\0\0\x40\x01s\0mood\0",
        b"R\0\0\x40\0s\0t\0d\0\x02\x01id\0\0\0\0\x14\xff\xff\xff\xff\0a\0\0\0\0\x19\xff\xff\xff\xff",
        b"I\0\0\x40\0N\0\x02t\0\0\0\x011n",
        b"U\0\0\x40\0N\0\x02t\0\0\0\x011u",
        b"U\0\0\x40\0K\0\x02t\0\0\0\x012nN\0\x02t\0\0\0\x011u",
        b"D\0\0\x40\0O\0\x01t\0\0\0\x011",
        b"T\0\0\0\x02\0\0\0\x40\0\0\0\x40\x01",
        b"M\x01\0\0\0\0\0\0\0\x01p\0\0\0\0\x02hi",
    ];
    let framed = changes.iter().map(|change| [&b"w"[..], &[0; 24], change].concat());
    framed.chain([[&b"k\0\0\0\x01\0\0\0\x02"[..], &[0; 8], b"\x01"].concat()]).collect()
}

/// A frame, the change in it, and a position of the log.
pub fn changes(input: &[u8]) -> u64 {
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(position) = text.parse::<Lsn>()
    {
        assert_eq!(position.to_string().parse::<Lsn>().ok(), Some(position));
    }
    match frame(Bytes::copy_from_slice(input)) {
        Ok(Frame::Change(body)) => {
            let length = body.len();
            let change = Change::read(body);
            if let Ok(Change::Insert { new: row, .. } | Change::Delete { old: row, .. }) = &change {
                let values = row.iter().map(|value| if let Value::Text(text) = value { text.len() } else { 0 });
                assert!(values.sum::<usize>() < length, "it has more than came");
            }
            outcome(&change.map(|change| std::mem::discriminant(&change)).map_err(|error| error.tell()))
        }
        Ok(Frame::Alive { answer, .. }) => u64::from(answer),
        Err(error) => outcome(&error.tell()),
    }
}
