//! What the server's plugin `pgoutput` says of committed transactions, in the first version of its protocol. Pure: bytes in, messages out.
//!
//! Nothing that is declared in front of something is believed: what is read was there, and nothing is set aside for what was only announced.

use std::fmt;
use std::str::FromStr;

use bytes::{Buf, Bytes};

use super::super::wire::Broken;

/// A position in a server's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = Broken;

    fn from_str(text: &str) -> Result<Lsn, Broken> {
        let half = |half: &str| u32::from_str_radix(half, 16).ok().map(u64::from);
        let halves = text.split_once('/').and_then(|(high, low)| Some((half(high)?, half(low)?)));
        let odd = || Broken::Malformed(format!("{text:?} is no position in a server's log"));
        halves.map(|(high, low)| Lsn(high << 32 | low)).ok_or_else(odd)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A transaction, whose commit is there.
    Begin(Lsn),
    Commit {
        /// Where the next one can begin.
        end: Lsn,
    },
    /// It comes before the first change of a table, and again when that has a new shape.
    Relation(Relation),
    Insert {
        relation: u32,
        new: Tuple,
    },
    /// `old` is there when something of the identity changed, or the identity is the whole row.
    Update {
        relation: u32,
        old: Option<Tuple>,
        new: Tuple,
    },
    /// Columns that are not of the identity are NULL in `old`.
    Delete {
        relation: u32,
        old: Tuple,
    },
    Truncate(Vec<u32>),
    /// What somebody wrote into the log.
    Message {
        prefix: String,
        content: Bytes,
    },
    /// It does not matter here: where a transaction came from; the name of a type.
    Aside,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    pub id: u32,
    pub schema: String,
    pub name: String,
    /// `relreplident` of `pg_class`.
    pub identity: u8,
    /// Their names, and whether each is of the identity.
    pub columns: Vec<(String, bool)>,
}

pub type Tuple = Vec<Value>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    /// Large, stored apart, and not touched by an update.
    Unchanged,
    /// Its text form.
    Text(Bytes),
}

impl Change {
    pub fn read(body: Bytes) -> Result<Change, Broken> {
        let mut body = Body(body);
        let change = match body.u8()? {
            b'B' => {
                let commit = Lsn(body.u64()?);
                // When, and which.
                body.take(12)?;
                Change::Begin(commit)
            }
            b'C' => {
                body.take(9)?;
                let end = Lsn(body.u64()?);
                body.take(8)?;
                Change::Commit { end }
            }
            b'O' => {
                body.take(8)?;
                body.text()?;
                Change::Aside
            }
            b'Y' => {
                body.take(4)?;
                body.text()?;
                body.text()?;
                Change::Aside
            }
            b'R' => Change::Relation(body.relation()?),
            b'I' => {
                let relation = body.u32()?;
                body.letter(b'N')?;
                Change::Insert { relation, new: body.tuple()? }
            }
            b'U' => body.update()?,
            b'D' => {
                let relation = body.u32()?;
                match body.u8()? {
                    b'K' | b'O' => Change::Delete { relation, old: body.tuple()? },
                    other => return Err(unknown("kind of old row", other)),
                }
            }
            b'T' => {
                let count = body.u32()?;
                // With others that refer to it; with its sequences.
                body.u8()?;
                Change::Truncate((0..count).map(|_| body.u32()).collect::<Result<_, _>>()?)
            }
            b'M' => {
                // Whether it is of the transaction; where.
                body.take(9)?;
                let prefix = body.text()?;
                let length = body.u32()?;
                Change::Message { prefix, content: body.take(length)? }
            }
            other => return Err(unknown("change", other)),
        };
        match body.0.is_empty() {
            true => Ok(change),
            false => Err(Broken::Malformed("a change has bytes after its end".to_owned())),
        }
    }
}

fn unknown(what: &str, letter: u8) -> Broken {
    Broken::Malformed(format!("the stream of changes has a {what} of type {letter:#04x}"))
}

/// What is left of a message.
struct Body(Bytes);

impl Body {
    fn take(&mut self, bytes: u32) -> Result<Bytes, Broken> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        match self.0.len() >= bytes {
            true => Ok(self.0.split_to(bytes)),
            false => Err(Broken::Malformed("a change ends before its fields do".to_owned())),
        }
    }

    fn u8(&mut self) -> Result<u8, Broken> {
        Ok(self.take(1)?.get_u8())
    }

    fn u16(&mut self) -> Result<u16, Broken> {
        Ok(self.take(2)?.get_u16())
    }

    fn u32(&mut self) -> Result<u32, Broken> {
        Ok(self.take(4)?.get_u32())
    }

    fn u64(&mut self) -> Result<u64, Broken> {
        Ok(self.take(8)?.get_u64())
    }

    fn letter(&mut self, wanted: u8) -> Result<(), Broken> {
        match self.u8()? {
            letter if letter == wanted => Ok(()),
            other => Err(unknown("row", other)),
        }
    }

    fn text(&mut self) -> Result<String, Broken> {
        let end = self.0.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| Broken::Malformed("a name in the stream of changes has no end".to_owned()))?;
        let text = String::from_utf8(self.0.split_to(end).to_vec());
        self.0.advance(1);
        text.map_err(|_| Broken::Malformed("a name in the stream of changes is not UTF-8".to_owned()))
    }

    fn relation(&mut self) -> Result<Relation, Broken> {
        let (id, schema, name, identity) = (self.u32()?, self.text()?, self.text()?, self.u8()?);
        // The empty name is `pg_catalog`.
        let schema = if schema.is_empty() { "pg_catalog".to_owned() } else { schema };
        let count = self.u16()?;
        let column = |_| {
            let of_identity = self.u8()? & 1 == 1;
            let name = self.text()?;
            // Its type.
            self.take(8)?;
            Ok((name, of_identity))
        };
        let columns = (0..count).map(column).collect::<Result<_, Broken>>()?;
        Ok(Relation { id, schema, name, identity, columns })
    }

    fn tuple(&mut self) -> Result<Tuple, Broken> {
        let count = self.u16()?;
        (0..count).map(|_| self.value()).collect()
    }

    fn value(&mut self) -> Result<Value, Broken> {
        match self.u8()? {
            b'n' => Ok(Value::Null),
            b'u' => Ok(Value::Unchanged),
            b't' => {
                let length = self.u32()?;
                Ok(Value::Text(self.take(length)?))
            }
            other => Err(unknown("value", other)),
        }
    }

    fn update(&mut self) -> Result<Change, Broken> {
        let relation = self.u32()?;
        let old = match self.u8()? {
            b'N' => None,
            b'K' | b'O' => {
                let old = self.tuple()?;
                self.letter(b'N')?;
                Some(old)
            }
            other => return Err(unknown("kind of old row", other)),
        };
        Ok(Change::Update { relation, old, new: self.tuple()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Change, Broken> {
        Change::read(Bytes::copy_from_slice(bytes))
    }

    /// One of each kind.
    const WHOLE: [&[u8]; 11] = [
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

    #[test]
    fn the_fields_of_changes() {
        let text = |text: &'static str| Value::Text(Bytes::from_static(text.as_bytes()));
        let at = Lsn(1 << 32 | 2);
        assert_eq!(read(WHOLE[0]).unwrap(), Change::Begin(at));
        assert_eq!(read(WHOLE[1]).unwrap(), Change::Commit { end: Lsn(at.0 + 1) });
        let columns = vec![("id".to_owned(), true), ("a".to_owned(), false)];
        let (schema, name) = ("s".to_owned(), "t".to_owned());
        assert_eq!(
            read(WHOLE[4]).unwrap(),
            Change::Relation(Relation { id: 0x4000, schema, name, identity: b'd', columns })
        );
        assert_eq!(
            read(WHOLE[7]).unwrap(),
            Change::Update {
                relation: 0x4000,
                old: Some(vec![text("2"), Value::Null]),
                new: vec![text("1"), Value::Unchanged]
            }
        );
        assert_eq!(read(WHOLE[8]).unwrap(), Change::Delete { relation: 0x4000, old: vec![text("1")] });
        assert_eq!(read(WHOLE[9]).unwrap(), Change::Truncate(vec![0x4000, 0x4001]));
        assert_eq!(
            read(WHOLE[10]).unwrap(),
            Change::Message { prefix: "p".to_owned(), content: Bytes::from_static(b"hi") }
        );
        assert_eq!((at.to_string().as_str(), "1/2".parse().unwrap()), ("1/2", at));
        assert!(["", "/", "1", "1/x", "1/2/3", "1/222222222"].iter().all(|odd| odd.parse::<Lsn>().is_err()));
    }

    #[test]
    fn what_is_cut_short_too_long_or_no_change_is_refused() {
        for whole in WHOLE {
            assert!(read(whole).is_ok(), "{whole:?}");
            for end in 0..whole.len() {
                assert!(read(&whole[..end]).is_err(), "{:?}", &whole[..end]);
            }
            assert!(read(&[whole, b"\0"].concat()).is_err());
        }
        for odd in [
            &b"T\xff\xff\xff\xff\0\0\0\0\x01"[..],
            b"I\0\0\x40\0N\xff\xfft\0\0\0\x011",
            b"I\0\0\x40\0N\0\x01t\xff\xff\xff\xff1",
            b"I\0\0\x40\0N\0\x01b\0\0\0\x011",
            b"I\0\0\x40\0K\0\x01n",
            b"M\x01\0\0\0\0\0\0\0\x01p\0\x7f\xff\xff\xffhi",
            b"Y\0\0\x40\x01\xff\0mood\0",
            b"S\0\0\0\x01\x01",
        ] {
            assert!(read(odd).is_err(), "{odd:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_a_change_or_an_error(bytes: Vec<u8>, kind in 0usize..11, at: usize, byte: u8) {
            let _ = read(&bytes);
            let mut bent = WHOLE[kind].to_vec();
            let length = bent.len();
            bent[at % length] = byte;
            let _ = read(&bent);
        }
    }
}
