//! What the server sends: messages, gathered until they are sent together.

use bytes::{BufMut, BytesMut};
use pleat_engine::postgres::wire::{message, text};

use crate::session::Failure;

/// Messages that were not sent yet.
#[derive(Debug, Default)]
pub struct Out {
    bytes: BytesMut,
}

/// A column as RowDescription tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub oid: u32,
    /// In bytes; -1 when it varies.
    pub size: i16,
    /// 0 is text, 1 is binary.
    pub format: i16,
}

/// How bad a notice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Fatal,
    Error,
    Warning,
    Notice,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Severity::Fatal => "FATAL",
            Severity::Error => "ERROR",
            Severity::Warning => "WARNING",
            Severity::Notice => "NOTICE",
        }
    }
}

impl Out {
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Take what is to be sent.
    pub fn take(&mut self) -> BytesMut {
        self.bytes.split()
    }

    /// Add what is made of messages already.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.put_slice(bytes);
    }

    /// Add a message.
    pub fn message(&mut self, tag: u8, body: impl FnOnce(&mut BytesMut)) {
        message(&mut self.bytes, tag, body);
    }

    /// The answer to a request for encryption, which is no message: no.
    pub fn refuse_encryption(&mut self) {
        self.bytes.put_u8(b'N');
    }

    /// The same: yes.
    pub fn accept_encryption(&mut self) {
        self.bytes.put_u8(b'S');
    }

    /// Ask for a proof by one of these mechanisms.
    pub fn sasl(&mut self, mechanisms: &[&str]) {
        self.message(b'R', |body| {
            body.put_u32(10);
            mechanisms.iter().for_each(|name| text(body, name));
            body.put_u8(0);
        });
    }

    pub fn sasl_continue(&mut self, data: &str) {
        self.message(b'R', |body| {
            body.put_u32(11);
            body.put_slice(data.as_bytes());
        });
    }

    pub fn sasl_final(&mut self, data: &str) {
        self.message(b'R', |body| {
            body.put_u32(12);
            body.put_slice(data.as_bytes());
        });
    }

    pub fn authentication_ok(&mut self) {
        self.message(b'R', |body| body.put_u32(0));
    }

    /// Only 3.0 is spoken, and these options are unknown.
    pub fn negotiate(&mut self, unknown: &[&str]) {
        self.message(b'v', |body| {
            body.put_u32(0);
            body.put_u32(u32::try_from(unknown.len()).unwrap_or(0));
            unknown.iter().for_each(|name| text(body, name));
        });
    }

    pub fn parameter_status(&mut self, name: &str, value: &str) {
        self.message(b'S', |body| {
            text(body, name);
            text(body, value);
        });
    }

    pub fn key(&mut self, process: u32, secret: u32) {
        self.message(b'K', |body| {
            body.put_u32(process);
            body.put_u32(secret);
        });
    }

    pub fn ready(&mut self, status: u8) {
        self.message(b'Z', |body| body.put_u8(status));
    }

    pub fn complete(&mut self, tag: &str) {
        self.message(b'C', |body| text(body, tag));
    }

    /// A message without a body.
    pub fn plain(&mut self, tag: u8) {
        self.message(tag, |_| {});
    }

    pub fn parameter_types(&mut self, oids: &[u32]) {
        self.message(b't', |body| {
            body.put_u16(u16::try_from(oids.len()).unwrap_or(u16::MAX));
            oids.iter().for_each(|oid| body.put_u32(*oid));
        });
    }

    pub fn row_description(&mut self, fields: &[Field]) {
        self.message(b'T', |body| {
            body.put_u16(u16::try_from(fields.len()).unwrap_or(u16::MAX));
            for field in fields {
                text(body, &field.name);
                // No table and no column of one: rows come from anywhere.
                body.put_u32(0);
                body.put_u16(0);
                body.put_u32(field.oid);
                body.put_i16(field.size);
                body.put_i32(-1);
                body.put_i16(field.format);
            }
        });
    }

    /// A row, which is taken back when `values` gives false.
    pub fn row(&mut self, columns: usize, values: impl FnOnce(&mut BytesMut) -> bool) {
        let start = self.bytes.len();
        let mut whole = true;
        self.message(b'D', |body| {
            body.put_u16(u16::try_from(columns).unwrap_or(u16::MAX));
            whole = values(body);
        });
        if !whole {
            self.bytes.truncate(start);
        }
    }

    /// A row of a COPY, or a part of one.
    pub fn copy_data(&mut self, data: impl FnOnce(&mut BytesMut)) {
        self.message(b'd', data);
    }

    /// `letter` is `G` (the client sends rows) or `H` (it is sent them).
    pub fn copy(&mut self, letter: u8, columns: usize) {
        self.message(letter, |body| {
            body.put_u8(0);
            body.put_u16(u16::try_from(columns).unwrap_or(u16::MAX));
            (0..columns).for_each(|_| body.put_u16(0));
        });
    }

    /// `statement` is the text that the failure has a place in.
    pub fn failure(&mut self, severity: Severity, failure: &Failure, statement: Option<&str>) {
        let code = sqlstate(&failure.code);
        let place = statement.and_then(|statement| place(statement, failure.position?));
        let position = place.map(|place| place.to_string());
        self.message(b'E', |body| {
            let mut field = |letter: u8, value: &str| {
                body.put_u8(letter);
                text(body, value);
            };
            field(b'S', severity.name());
            field(b'V', severity.name());
            field(b'C', code);
            field(b'M', &failure.message);
            if !failure.hint.is_empty() {
                field(b'H', &failure.hint);
            }
            if let Some(position) = &position {
                field(b'P', position);
            }
            body.put_u8(0);
        });
    }

    pub fn notice(&mut self, severity: Severity, code: &str, message: &str) {
        self.message(b'N', |body| {
            for (letter, value) in [(b'S', severity.name()), (b'V', severity.name()), (b'C', code), (b'M', message)] {
                body.put_u8(letter);
                text(body, value);
            }
            body.put_u8(0);
        });
    }
}

/// The number of the letter at a line and column, all from 1.
fn place(text: &str, (line, column): (u64, u64)) -> Option<usize> {
    let (line, column) = (usize::try_from(line).ok()?, usize::try_from(column).ok()?);
    let before: usize = text.split_inclusive('\n').take(line.checked_sub(1)?).map(|line| line.chars().count()).sum();
    Some(before + column)
}

/// The SQLSTATE of a failure. Some of ours have words where SQL has no code.
pub fn sqlstate(code: &str) -> &str {
    let is_state = code.len() == 5 && code.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
    match code {
        crate::session::OVERLOADED => "53000",
        code if is_state => code,
        _ => "XX000",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_themselves_and_texts_end() {
        let mut out = Out::default();
        out.ready(b'I');
        out.complete("SELECT 1");
        out.parameter_status("a", "b\0c");
        assert_eq!(&out.take()[..], b"Z\0\0\0\x05IC\0\0\0\x0dSELECT 1\0S\0\0\0\x08a\0b\0");
        assert_eq!(out.len(), 0);
    }

    #[test]
    fn places_count_letters() {
        assert_eq!(place("ab\nüc", (2, 2)), Some(5));
        assert_eq!(place("ab", (1, 1)), Some(1));
        assert_eq!(place("ab", (0, 1)), None);
    }

    #[test]
    fn every_failure_has_a_sqlstate() {
        assert_eq!(sqlstate("23505"), "23505");
        assert_eq!(sqlstate("overloaded"), "53000");
        assert_eq!(sqlstate("not_found"), "XX000");
    }
}
