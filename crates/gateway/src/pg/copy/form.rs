//! The two forms of rows: text with escapes, and CSV.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};

use crate::session::Failure;
use crate::settings::PG_MESSAGE_BYTES_MAX;

/// How rows are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    pub csv: bool,
    pub header: bool,
    pub delimiter: u8,
    /// What stands for NULL.
    pub null: String,
    pub quote: u8,
    pub escape: u8,
}

/// One row, as it came.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// The line that it begins on, from 1.
    pub line: u64,
    pub fields: Vec<Option<Vec<u8>>>,
}

/// Letters after a backslash, and what they stand for.
const ESCAPES: [(u8, u8); 6] = [(b'b', 8), (b'f', 12), (b'n', b'\n'), (b'r', b'\r'), (b't', b'\t'), (b'v', 11)];

impl Form {
    /// The fields of a row as it came.
    pub fn fields(&self, whole: &[u8]) -> Vec<Option<Vec<u8>>> {
        let row = without_end(whole);
        if self.csv { csv(self, row) } else { text(self, row) }
    }

    /// Add a row.
    pub fn put(&self, body: &mut BytesMut, values: &[Option<Cow<'_, str>>]) {
        for (at, value) in values.iter().enumerate() {
            if at > 0 {
                body.put_u8(self.delimiter);
            }
            match value {
                None => body.put_slice(self.null.as_bytes()),
                Some(text) if self.csv => self.put_csv(body, text, values.len() == 1),
                Some(text) => self.put_text(body, text),
            }
        }
        body.put_u8(b'\n');
    }

    fn put_csv(&self, body: &mut BytesMut, text: &str, only: bool) {
        let special = |byte: u8| byte == self.delimiter || byte == self.quote || byte == b'\n' || byte == b'\r';
        if text != self.null && !text.bytes().any(special) && !(only && text == "\\.") {
            return body.put_slice(text.as_bytes());
        }
        body.put_u8(self.quote);
        for byte in text.bytes() {
            if byte == self.quote || byte == self.escape {
                body.put_u8(self.escape);
            }
            body.put_u8(byte);
        }
        body.put_u8(self.quote);
    }

    fn put_text(&self, body: &mut BytesMut, text: &str) {
        for byte in text.bytes() {
            match ESCAPES.iter().find(|(_, plain)| *plain == byte) {
                Some((letter, _)) => body.put_slice(&[b'\\', *letter]),
                None if byte == b'\\' || byte == self.delimiter => body.put_slice(&[b'\\', byte]),
                None => body.put_u8(byte),
            }
        }
    }
}

/// Cuts what comes into records. A record may come in any number of pieces.
pub struct Decoder<'a> {
    form: &'a Form,
    held: BytesMut,
    /// How far `held` was looked at for the end of a record, and whether that is inside quotes.
    looked: usize,
    quoted: bool,
    line: u64,
    ended: bool,
}

impl<'a> Decoder<'a> {
    pub fn new(form: &'a Form) -> Self {
        Self { form, held: BytesMut::new(), looked: 0, quoted: false, line: 1, ended: false }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        if !self.ended {
            self.held.put_slice(bytes);
        }
    }

    /// The next record; `None` when it is not whole yet. With `last`, what is left is one.
    pub fn record(&mut self, last: bool) -> Result<Option<Record>, Failure> {
        let raw = self.raw(last)?;
        Ok(raw.map(|(line, whole)| Record { line, fields: self.form.fields(&whole) }))
    }

    /// The next record as it came, with the end of its line, and the number of that.
    pub fn raw(&mut self, last: bool) -> Result<Option<(u64, BytesMut)>, Failure> {
        if self.ended {
            return Ok(None);
        }
        let end = match self.end() {
            Some(end) => end,
            None if self.held.len() > PG_MESSAGE_BYTES_MAX => {
                let message = format!("line {}: a row has more than {PG_MESSAGE_BYTES_MAX} bytes", self.line);
                return Err(Failure::new("54000", message, "a quote may be missing"));
            }
            None if last && self.quoted => {
                let message = format!("line {}: a quote that opens is never closed", self.line);
                return Err(Failure::new("22P04", message, ""));
            }
            None if last && !self.held.is_empty() => self.held.len(),
            None => return Ok(None),
        };
        let whole = self.held.split_to((end + 1).min(self.held.len()));
        let line = self.line;
        self.line += whole.iter().filter(|byte| **byte == b'\n').count() as u64;
        (self.looked, self.quoted) = (0, false);
        if without_end(&whole) == b"\\." {
            self.ended = true;
            return Ok(None);
        }
        Ok(Some((line, whole)))
    }

    /// Where the record ends that `held` begins with.
    fn end(&mut self) -> Option<usize> {
        let Form { csv, quote, escape, .. } = *self.form;
        let held = &self.held;
        while let Some(&byte) = held.get(self.looked) {
            let escapes = if csv { self.quoted && byte == escape && escape != quote } else { byte == b'\\' };
            if escapes {
                // What it escapes must be there.
                held.get(self.looked + 1)?;
                self.looked += 2;
                continue;
            }
            if csv && byte == quote {
                self.quoted = !self.quoted;
            }
            if byte == b'\n' && !self.quoted {
                return Some(self.looked);
            }
            self.looked += 1;
        }
        None
    }
}

/// A row without the end of its line.
fn without_end(whole: &[u8]) -> &[u8] {
    let row = whole.strip_suffix(b"\n").unwrap_or(whole);
    row.strip_suffix(b"\r").unwrap_or(row)
}

fn text(form: &Form, row: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut fields = Vec::new();
    let (mut start, mut at) = (0, 0);
    while at <= row.len() {
        match row.get(at) {
            Some(b'\\') => at += 2,
            Some(byte) if *byte != form.delimiter => at += 1,
            _ => {
                let field = &row[start..at];
                fields.push((field != form.null.as_bytes()).then(|| unescape(field)));
                at += 1;
                start = at;
            }
        }
    }
    if start < row.len() {
        // It ends with a backslash that escapes nothing.
        fields.push(Some(unescape(&row[start..])));
    }
    fields
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut at = 0;
    while let Some(&byte) = field.get(at) {
        at += 1;
        if byte != b'\\' {
            plain.push(byte);
            continue;
        }
        let Some(&letter) = field.get(at) else {
            plain.push(byte);
            break;
        };
        let digits = |from: usize, most: usize, radix: u32| {
            let rest = field.get(from..).unwrap_or_default();
            rest.iter().take(most).take_while(|digit| char::from(**digit).is_digit(radix)).count()
        };
        let number = |from: usize, count: usize, radix: u32| {
            let text = std::str::from_utf8(&field[from..from + count]).unwrap_or_default();
            u32::from_str_radix(text, radix).map_or(0, |code| code.to_le_bytes()[0])
        };
        let (octal, hex) = (digits(at, 3, 8), digits(at + 1, 2, 16));
        match ESCAPES.iter().find(|(known, _)| *known == letter) {
            Some((_, byte)) => plain.push(*byte),
            None if octal > 0 => {
                plain.push(number(at, octal, 8));
                at += octal - 1;
            }
            None if letter == b'x' && hex > 0 => {
                plain.push(number(at + 1, hex, 16));
                at += hex;
            }
            None => plain.push(letter),
        }
        at += 1;
    }
    plain
}

fn csv(form: &Form, row: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut fields = Vec::new();
    let (mut field, mut was_quoted, mut quoted) = (Vec::new(), false, false);
    let mut at = 0;
    let mut finish = |field: &mut Vec<u8>, was_quoted: &mut bool| {
        let field = std::mem::take(field);
        let null = !std::mem::take(was_quoted) && field == form.null.as_bytes();
        fields.push((!null).then_some(field));
    };
    while let Some(&byte) = row.get(at) {
        let next = row.get(at + 1).copied();
        at += 1;
        match (quoted, byte) {
            (true, byte)
                if byte == form.escape && next.is_some_and(|next| next == form.quote || next == form.escape) =>
            {
                field.extend(next);
                at += 1;
            }
            (true, byte) if byte == form.quote => quoted = false,
            (false, byte) if byte == form.quote => (quoted, was_quoted) = (true, true),
            (false, byte) if byte == form.delimiter => finish(&mut field, &mut was_quoted),
            (_, byte) => field.push(byte),
        }
    }
    finish(&mut field, &mut was_quoted);
    fields
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn form(csv: bool) -> Form {
        let (delimiter, null) = if csv { (b',', "") } else { (b'\t', "\\N") };
        Form { csv, header: false, delimiter, null: null.to_owned(), quote: b'"', escape: b'"' }
    }

    fn records(form: &Form, pieces: &[&[u8]]) -> Vec<Vec<Option<String>>> {
        let mut decoder = Decoder::new(form);
        let mut found = Vec::new();
        for (at, piece) in pieces.iter().enumerate() {
            decoder.push(piece);
            while let Some(record) = decoder.record(at + 1 == pieces.len()).unwrap() {
                let text = |field: Option<Vec<u8>>| field.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                found.push(record.fields.into_iter().map(text).collect());
            }
        }
        found
    }

    fn some(fields: &[&str]) -> Vec<Option<String>> {
        fields.iter().map(|field| Some((*field).to_owned())).collect()
    }

    #[test]
    fn text_rows() {
        let found = records(&form(false), &[b"a\\tb\t\\N\n\\x41\\101\\\\\t\n", b"x\ty\n\\.\nmore\n"]);
        let null = vec![Some("a\tb".to_owned()), None];
        assert_eq!(found, [null, some(&["AA\\", ""]), some(&["x", "y"])]);
        assert_eq!(records(&form(false), &[b"a\\"]), [some(&["a\\"])]);
    }

    #[test]
    fn csv_rows() {
        let found = records(&form(true), &[b"1,\"a \"\"b\"\"\nc\",\"\"\r\n", b"2,,x"]);
        assert_eq!(found[0], some(&["1", "a \"b\"\nc", ""]));
        assert_eq!(found[1], [Some("2".to_owned()), None, Some("x".to_owned())]);
        let escape = Form { escape: b'\\', ..form(true) };
        assert_eq!(records(&escape, &[b"\"a\\\"\n", b"b\"\n"]), [some(&["a\"\nb"])]);
        let csv = form(true);
        let mut open = Decoder::new(&csv);
        open.push(b"\"a\n");
        assert_eq!(open.record(true).unwrap_err().code, "22P04");
    }

    proptest! {
        #[test]
        fn rows_come_back_however_they_are_cut(
            rows in prop::collection::vec(prop::collection::vec(prop::option::of("\\PC{0,5}|[\\\\\"',\t\n\r.N]{0,4}"), 2..4), 0..5),
            csv: bool,
            cut in 1_usize..7,
        ) {
            let form = form(csv);
            let mut body = BytesMut::new();
            for row in &rows {
                let values: Vec<_> = row.iter().map(|value| value.as_deref().map(Cow::Borrowed)).collect();
                form.put(&mut body, &values);
            }
            let pieces: Vec<&[u8]> = body.chunks(cut).collect();
            prop_assert_eq!(records(&form, &pieces), rows);
        }

        #[test]
        fn arbitrary_bytes_are_rows_or_an_error(bytes: Vec<u8>, csv: bool) {
            let form = form(csv);
            let mut decoder = Decoder::new(&form);
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.record(true) {}
        }
    }
}
