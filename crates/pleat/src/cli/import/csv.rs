//! Reading CSV so that a broken row is one broken row.
//!
//! RFC 4180 with two kindnesses that most writers of CSV rely on: `\n` ends a row as well as `\r\n`, and a
//! quote in the middle of an unquoted field is just a quote. The usual readers go on silently at a quote that
//! is never closed and swallow the rest of the file as one field. This one gives up on the row where the
//! quote was opened, and goes on with the next *line* of the file: so the damage is one reported row.
//!
//! It also tells quoted from unquoted fields, since only an unquoted `NA` can stand for NULL.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};

/// The largest row, in bytes; also how far the end of a quoted field is looked for.
const ROW_BYTES_MAX: usize = 4 << 20;

/// One field, as bytes: whether they are UTF-8 is the caller's to check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Field {
    pub bytes: Vec<u8>,
    pub quoted: bool,
}

/// What the file has next.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    Row { line: u64, fields: Vec<Field> },
    Broken { line: u64, reason: String, text: Vec<u8> },
}

/// Reads rows.
pub struct Reader<R> {
    input: R,
    delimiter: u8,
    /// Lines that were read ahead in search of a closing quote, to be read again.
    again: VecDeque<Vec<u8>>,
    /// The number of the line that comes next.
    line: u64,
}

impl<R: BufRead> Reader<R> {
    pub fn new(input: R, delimiter: u8) -> Self {
        Self { input, delimiter, again: VecDeque::new(), line: 1 }
    }

    /// The number of the line that comes next, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// The next row that is not blank.
    pub fn next(&mut self) -> io::Result<Option<Item>> {
        loop {
            let line = self.line;
            let Some(mut first) = self.take_line()? else { return Ok(None) };
            if line == 1 && first.starts_with(b"\xef\xbb\xbf") {
                first.drain(..3);
            }
            if first.len() > ROW_BYTES_MAX {
                return Ok(Some(broken(line, "the line is longer than 4 MiB", first)));
            }
            if trim_end(&first).is_empty() {
                continue;
            }
            return self.row(line, first).map(Some);
        }
    }

    fn row(&mut self, line: u64, first: Vec<u8>) -> io::Result<Item> {
        let mut parser = Parser { delimiter: self.delimiter, state: State::FieldStart, fields: vec![Field::default()] };
        let mut read: Vec<Vec<u8>> = Vec::new();
        let mut size = 0;
        let mut next = Some(first);
        let reason = loop {
            let Some(text) = next else { break "a quoted field is never closed" };
            size += text.len();
            let fed = if size > ROW_BYTES_MAX {
                Fed::Broken("a quoted field is never closed within 4 MiB")
            } else {
                parser.feed(&text)
            };
            read.push(text);
            match fed {
                Fed::Complete => return Ok(Item::Row { line, fields: parser.fields }),
                Fed::Broken(reason) => break reason,
                Fed::Open => next = self.take_line()?,
            }
        };
        // Only the first line is given up; what was read beyond it is read again as rows of its own.
        self.line = line + 1;
        for text in read.drain(1..).rev() {
            self.again.push_front(text);
        }
        Ok(broken(line, reason, read.swap_remove(0)))
    }

    /// The next line with its end. One that is too long comes cut off, and is longer than the limit still.
    fn take_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = match self.again.pop_front() {
            Some(line) => line,
            None => {
                let mut line = Vec::new();
                let limit = ROW_BYTES_MAX as u64 + 1;
                (&mut self.input).take(limit).read_until(b'\n', &mut line)?;
                if line.len() > ROW_BYTES_MAX && !line.ends_with(b"\n") {
                    self.input.skip_until(b'\n')?;
                }
                line
            }
        };
        if line.is_empty() {
            return Ok(None);
        }
        self.line += 1;
        Ok(Some(line))
    }
}

fn broken(line: u64, reason: &str, mut text: Vec<u8>) -> Item {
    text.truncate(trim_end(&text).len());
    Item::Broken { line, reason: reason.to_string(), text }
}

fn trim_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

enum State {
    FieldStart,
    Unquoted,
    Quoted,
    /// After a quote inside a quoted field: its end, or the first half of a doubled quote.
    QuoteSeen,
}

enum Fed {
    Complete,
    /// Inside quotes: the row goes on in the next line.
    Open,
    Broken(&'static str),
}

struct Parser {
    delimiter: u8,
    state: State,
    fields: Vec<Field>,
}

impl Parser {
    fn feed(&mut self, line: &[u8]) -> Fed {
        let content = trim_end(line);
        for &byte in content {
            match self.state {
                State::FieldStart if byte == b'"' => {
                    self.field().quoted = true;
                    self.state = State::Quoted;
                }
                State::FieldStart | State::Unquoted if byte == self.delimiter => self.next_field(),
                State::FieldStart | State::Unquoted => {
                    self.field().bytes.push(byte);
                    self.state = State::Unquoted;
                }
                State::Quoted if byte == b'"' => self.state = State::QuoteSeen,
                State::Quoted => self.field().bytes.push(byte),
                State::QuoteSeen if byte == b'"' => {
                    self.field().bytes.push(b'"');
                    self.state = State::Quoted;
                }
                State::QuoteSeen if byte == self.delimiter => self.next_field(),
                State::QuoteSeen => return Fed::Broken("text follows the closing quote of a field"),
            }
        }
        if matches!(self.state, State::Quoted) {
            // The line's end, whichever it is, belongs to the value.
            self.field().bytes.extend_from_slice(&line[content.len()..]);
            return Fed::Open;
        }
        Fed::Complete
    }

    fn next_field(&mut self) {
        self.fields.push(Field::default());
        self.state = State::FieldStart;
    }

    fn field(&mut self) -> &mut Field {
        let last = self.fields.len() - 1;
        &mut self.fields[last]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows as `line: a|b` with quoted fields in quotes, broken ones as `line! reason: text`.
    fn read(text: &str) -> Vec<String> {
        let mut reader = Reader::new(text.as_bytes(), b',');
        let mut found = Vec::new();
        while let Some(item) = reader.next().unwrap() {
            found.push(match item {
                Item::Row { line, fields } => {
                    let show = |field: &Field| {
                        let text = String::from_utf8_lossy(&field.bytes).into_owned();
                        if field.quoted { format!("'{text}'") } else { text }
                    };
                    format!("{line}: {}", fields.iter().map(show).collect::<Vec<_>>().join("|"))
                }
                Item::Broken { line, reason, text } => {
                    format!("{line}! {reason}: {}", String::from_utf8_lossy(&text))
                }
            });
        }
        found
    }

    #[test]
    fn rows_as_most_programs_write_them() {
        assert_eq!(read("a,b\r\n1,2\r\n"), ["1: a|b", "2: 1|2"]);
        assert_eq!(read("a,b\n1,\n,2"), ["1: a|b", "2: 1|", "3: |2"]);
        assert_eq!(read("\u{feff}a,b\n"), ["1: a|b"]);
        assert_eq!(read("\"x, y\",\"say \"\"hi\"\"\"\n"), ["1: 'x, y'|'say \"hi\"'"]);
        assert_eq!(read("\"\",\n"), ["1: ''|"], "quoted and unquoted emptiness differ");
        assert_eq!(read("5'11\",b\n"), ["1: 5'11\"|b"], "a quote within an unquoted field is a quote");
    }

    #[test]
    fn a_quoted_field_may_hold_lines_and_lines_are_still_counted() {
        assert_eq!(read("1,\"two\nlines\"\n\n2,x\n"), ["1: 1|'two\nlines'", "4: 2|x"]);
    }

    #[test]
    fn a_quote_that_is_never_closed_costs_one_row() {
        assert_eq!(
            read("1,a\n2,\"b\n3,c\n4,d\n"),
            ["1: 1|a", "2! a quoted field is never closed: 2,\"b", "3: 3|c", "4: 4|d"]
        );
        assert_eq!(
            read("1,\"a\n2,\"b\"\n3,c\n"),
            ["1! text follows the closing quote of a field: 1,\"a", "2: 2|'b'", "3: 3|c"],
            "the next line's quote can't close it"
        );
    }

    #[test]
    fn text_after_a_closing_quote_costs_one_row() {
        assert_eq!(read("\"a\"b,1\n2,c\n"), ["1! text follows the closing quote of a field: \"a\"b,1", "2: 2|c"]);
    }

    #[test]
    fn a_line_without_end_is_given_up_and_skipped() {
        let long = "x".repeat(ROW_BYTES_MAX + 10);
        let found = read(&format!("1,a\n{long}\n3,c\n"));
        assert_eq!((found[0].as_str(), found[2].as_str()), ("1: 1|a", "3: 3|c"));
        assert!(found[1].starts_with("2! the line is longer than 4 MiB"));
        let open = format!("1,\"{}\n3,c\n", "y\n".repeat(ROW_BYTES_MAX / 2 + 10));
        let found = read(&open);
        assert!(found[0].starts_with("1! a quoted field is never closed within 4 MiB"));
        assert_eq!(found.last().unwrap().split(": ").last().unwrap(), "3|c");
    }

    #[test]
    fn another_delimiter() {
        let mut reader = Reader::new("a\tb,c\n".as_bytes(), b'\t');
        let Some(Item::Row { fields, .. }) = reader.next().unwrap() else { panic!("no row") };
        assert_eq!(fields.len(), 2);
    }
}
