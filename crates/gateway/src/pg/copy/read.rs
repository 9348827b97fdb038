//! The COPY statement, in PostgreSQL's form of today and in the older one that psql and drivers still send.

use super::Form;
use crate::pg::dialect::lex::{Kind, Tokens};
use crate::session::Failure;

/// What is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Table { name: String, columns: Vec<String> },
    Query(String),
}

/// A COPY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub from: bool,
    pub source: Source,
    pub form: Form,
}

/// Read a statement that begins with COPY.
pub fn read(tokens: &Tokens<'_>) -> Result<Command, Failure> {
    let odd = |at: usize| {
        let hint = "COPY table [(columns)] FROM STDIN, or COPY {table | (query)} TO STDOUT, and [WITH] (FORMAT csv, HEADER, …)";
        let place = tokens.list.get(at).map_or(tokens.text.len(), |token| token.start);
        Failure::new("42601", format!("COPY is not understood at '{}'", tokens.str(at)), hint)
            .at_text(tokens.text, place)
    };
    let (source, mut at) = source(tokens).ok_or_else(|| odd(1))?;
    let from = tokens.is(at, "FROM");
    if !from && !tokens.is(at, "TO") {
        return Err(odd(at));
    }
    if !tokens.is(at + 1, if from { "STDIN" } else { "STDOUT" }) {
        return Err(Failure::new(
            "0A000",
            "COPY reads from the client and writes to it, not files or programs of the server",
            "use FROM STDIN or TO STDOUT; psql's \\copy does that with a file of yours",
        ));
    }
    if from && matches!(source, Source::Query(_)) {
        return Err(odd(at));
    }
    at += 2;
    let mut form = Options::default();
    at += usize::from(tokens.is(at, "WITH"));
    let listed = tokens.is_symbol(at, "(");
    at += usize::from(listed);
    while at < tokens.len() && !(listed && tokens.is_symbol(at, ")")) {
        at = form.take(tokens, at)?.ok_or_else(|| odd(at))?;
        at += usize::from(listed && tokens.is_symbol(at, ","));
    }
    at += usize::from(listed);
    match at == tokens.len() {
        true => Ok(Command { from, source, form: form.finish()? }),
        false => Err(odd(at)),
    }
}

fn source(tokens: &Tokens<'_>) -> Option<(Source, usize)> {
    if tokens.is_symbol(1, "(") {
        let mut depth = 0_usize;
        for at in 1..tokens.len() {
            depth += usize::from(tokens.is_symbol(at, "("));
            depth -= usize::from(tokens.is_symbol(at, ")"));
            if depth == 0 {
                let text = &tokens.text[tokens.list[1].end..tokens.list[at].start];
                return Some((Source::Query(text.to_owned()), at + 1));
            }
        }
        return None;
    }
    let mut at = 1;
    while tokens.is_symbol(at + 1, ".") {
        at += 2;
    }
    let name = tokens.name(at)?;
    at += 1;
    let mut columns = Vec::new();
    if tokens.is_symbol(at, "(") {
        loop {
            columns.push(tokens.name(at + 1)?);
            at += 2;
            if !tokens.is_symbol(at, ",") {
                break;
            }
        }
        at = tokens.is_symbol(at, ")").then_some(at + 1)?;
    }
    Some((Source::Table { name, columns }, at))
}

#[derive(Default)]
struct Options {
    csv: bool,
    header: bool,
    delimiter: Option<String>,
    null: Option<String>,
    quote: Option<String>,
    escape: Option<String>,
}

impl Options {
    /// Take the option that begins here; gives where the next one does.
    fn take(&mut self, tokens: &Tokens<'_>, at: usize) -> Result<Option<usize>, Failure> {
        let Some(name) = tokens.name(at).filter(|_| tokens.kind(at) == Some(Kind::Word)) else { return Ok(None) };
        // The older form has a word between.
        let value = at + 1 + usize::from(tokens.is(at + 1, "AS"));
        let text = |place: &mut Option<String>| -> Result<Option<usize>, Failure> {
            *place = Some(tokens.string(value)?);
            Ok(Some(value + 1))
        };
        match name.as_str() {
            "format" => {
                let format = tokens.name(value).or_else(|| tokens.string(value).ok()).unwrap_or_default();
                match format.as_str() {
                    "csv" => self.csv = true,
                    "text" => self.csv = false,
                    other => {
                        let hint = "text and csv are";
                        return Err(Failure::new("0A000", format!("COPY in format {other} is not supported"), hint));
                    }
                }
                Ok(Some(value + 1))
            }
            "csv" => {
                self.csv = true;
                Ok(Some(at + 1))
            }
            "binary" => Err(Failure::new("0A000", "COPY in format binary is not supported", "text and csv are")),
            "header" => {
                let on = ["TRUE", "ON", "MATCH"].iter().any(|word| tokens.is(at + 1, word));
                let off = ["FALSE", "OFF"].iter().any(|word| tokens.is(at + 1, word));
                self.header = !off;
                Ok(Some(at + 1 + usize::from(on || off)))
            }
            "delimiter" => text(&mut self.delimiter),
            "null" => text(&mut self.null),
            "quote" => text(&mut self.quote),
            "escape" => text(&mut self.escape),
            "encoding" => match tokens.string(value)?.to_ascii_uppercase().as_str() {
                "UTF8" | "UTF-8" => Ok(Some(value + 1)),
                other => Err(Failure::new("0A000", format!("COPY in encoding {other} is not supported"), "UTF8 is")),
            },
            "freeze" => Ok(Some(at + 1)),
            _ => Ok(None),
        }
    }

    fn finish(self) -> Result<Form, Failure> {
        let byte = |option: &str, text: Option<String>, otherwise: u8| match text.as_deref().map(str::as_bytes) {
            None => Ok(otherwise),
            Some([byte]) if byte.is_ascii() && !matches!(byte, b'\n' | b'\r') => Ok(*byte),
            Some(_) => Err(Failure::new("22023", format!("COPY {option} must be a single one-byte character"), "")),
        };
        let quote = byte("quote", self.quote, b'"')?;
        let form = Form {
            csv: self.csv,
            header: self.header,
            delimiter: byte("delimiter", self.delimiter, if self.csv { b',' } else { b'\t' })?,
            null: self.null.unwrap_or_else(|| if self.csv { String::new() } else { "\\N".to_owned() }),
            quote,
            escape: byte("escape", self.escape, quote)?,
        };
        match form.delimiter == form.quote && form.csv || form.delimiter == b'\\' {
            true => Err(Failure::new("22023", "COPY delimiter can't be the quote, or a backslash", "")),
            false => Ok(form),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Command, Failure> {
        read(&Tokens::of(text).unwrap())
    }

    #[test]
    fn both_forms() {
        for text in [
            "COPY public.\"T x\" (a, \"B\") FROM STDIN WITH (FORMAT csv, HEADER, DELIMITER ';', NULL 'NA')",
            "copy \"T x\" (a, \"B\") from stdin with csv header delimiter as ';' null 'NA'",
        ] {
            let Command { from, source, form } = of(text).unwrap();
            assert!(from);
            let columns = vec!["a".to_owned(), "B".to_owned()];
            assert_eq!(source, Source::Table { name: "T x".to_owned(), columns });
            assert_eq!((form.csv, form.header, form.delimiter, form.null.as_str()), (true, true, b';', "NA"));
        }
        let out = of("COPY (SELECT (1), ')' FROM t) TO STDOUT").unwrap();
        assert_eq!(out.source, Source::Query("SELECT (1), ')' FROM t".to_owned()));
        assert_eq!((out.form.delimiter, out.form.null.as_str()), (b'\t', "\\N"));
    }

    #[test]
    fn what_is_refused() {
        for (text, code) in [
            ("COPY t FROM '/etc/passwd'", "0A000"),
            ("COPY t FROM PROGRAM 'x'", "0A000"),
            ("COPY t FROM STDIN (FORMAT binary)", "0A000"),
            ("COPY t FROM STDIN BINARY", "0A000"),
            ("COPY (SELECT 1) FROM STDIN", "42601"),
            ("COPY t FROM STDIN (DELIMITER 'ab')", "22023"),
            ("COPY t FROM STDIN (WHATEVER)", "42601"),
            ("COPY t", "42601"),
            ("COPY", "42601"),
        ] {
            assert_eq!(of(text).unwrap_err().code, code, "{text}");
        }
    }
}
