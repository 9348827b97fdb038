//! COPY between a client and a table (or a query): what of it Pleat has to know to send rows to their shards.

use pleat_cluster::table_key;

use super::clauses::commas;
use super::plan::{Copy, CopyFormat, Direction};
use super::query;
use super::statement::Reader;
use crate::error::{Code, SqlError};

/// Plans the COPY that the tokens `from..to` spell.
pub(super) fn plan(reader: &Reader, from: usize, to: usize) -> Result<Copy, SqlError> {
    let tokens = reader.tokens;
    let mut copy = Copy {
        direction: Direction::In,
        table: None,
        name_as_written: String::new(),
        columns: Vec::new(),
        query: None,
        format: CopyFormat::Text,
        delimiter: '\t',
        null: "\\N".to_owned(),
        header: false,
        quote: '"',
        escape: '"',
        force_not_null: Vec::new(),
        options_as_written: String::new(),
    };
    let mut at = from + 1;
    if tokens.is_symbol(at, "(") {
        let close = tokens.closing(at);
        if close >= to {
            return Err(reader.expected(to, "a closing ) for the query"));
        }
        let query = query::plan(reader, at + 1, close)?;
        super::serial::refuse(&query, "COPY of a query")?;
        copy.query = Some((tokens.slice(at + 1, close).to_owned(), query));
        at = close + 1;
    } else {
        at = copy.name(reader, at, to)?;
    }
    copy.options_as_written = tokens.slice(at, to).to_owned();
    copy.direction = match () {
        () if tokens.is(at, "FROM") && copy.query.is_none() => Direction::In,
        () if tokens.is(at, "TO") => Direction::Out,
        () => return Err(reader.expected(at, "FROM STDIN or TO STDOUT")),
    };
    if !(tokens.is(at + 1, "STDIN") || tokens.is(at + 1, "STDOUT")) {
        return Err(SqlError::unsupported("COPY from or to files and programs of a server is not supported")
            .hint("use COPY … FROM STDIN or TO STDOUT (\\copy in psql)"));
    }
    let mut options = Options { reader, to, delimiter: None, null: None, quote: None, escape: None, copy: &mut copy };
    options.read(at + 2)?;
    options.finish()?;
    Ok(copy)
}

impl Copy {
    /// Reads the table's name and columns; gives what comes behind them.
    fn name(&mut self, reader: &Reader, start: usize, to: usize) -> Result<usize, SqlError> {
        let tokens = reader.tokens;
        let mut at = start;
        let mut parts = vec![reader.name(at, to, "a table's name")?];
        while tokens.is_symbol(at + 1, ".") {
            parts.push(reader.name(at + 2, to, "a table's name")?);
            at += 2;
        }
        self.name_as_written = tokens.slice(start, at + 1).to_owned();
        let key = match parts.as_slice() {
            [name] => table_key("public", name),
            [.., schema, name] => table_key(schema, name),
            [] => String::new(),
        };
        self.table = reader.schema.tables.contains_key(&key).then_some(key.clone());
        if reader.schema.views.contains_key(&key) {
            return Err(SqlError::new(Code::WrongObject, format!("cannot copy from view {}", self.name_as_written))
                .hint("copy its rows instead: COPY (SELECT * FROM the view) TO STDOUT"));
        }
        at += 1;
        if at < to && tokens.is_symbol(at, "(") {
            let close = tokens.closing(at);
            let names =
                commas(tokens, at + 1, close).into_iter().map(|(from, to)| reader.name(from, to, "a column's name"));
            self.columns = names.collect::<Result<_, _>>()?;
            at = close + 1;
        }
        Ok(at)
    }
}

/// The options being read.
struct Options<'r, 'a> {
    reader: &'r Reader<'a>,
    to: usize,
    delimiter: Option<String>,
    null: Option<String>,
    quote: Option<String>,
    escape: Option<String>,
    copy: &'r mut Copy,
}

impl Options<'_, '_> {
    /// `[WITH] (name value, …)`, or the older form without brackets; then perhaps WHERE.
    fn read(&mut self, mut at: usize) -> Result<(), SqlError> {
        let tokens = self.reader.tokens;
        if tokens.is(at, "WITH") {
            at += 1;
        }
        if at < self.to && tokens.is_symbol(at, "(") {
            let close = tokens.closing(at);
            for (from, to) in commas(tokens, at + 1, close.min(self.to)) {
                self.option(from, to)?;
            }
            at = close + 1;
        }
        while at < self.to && !tokens.is(at, "WHERE") {
            at = self.old_option(at)?;
        }
        Ok(())
    }

    fn string(&self, at: usize) -> Result<String, SqlError> {
        let tokens = self.reader.tokens;
        let word = || tokens.name(at);
        let found = (at < self.to).then(|| tokens.string(at).or_else(word)).flatten();
        found.ok_or_else(|| self.reader.expected(at, "a value for the option of COPY"))
    }

    fn option(&mut self, from: usize, to: usize) -> Result<(), SqlError> {
        let tokens = self.reader.tokens;
        let name = self.reader.name(from, to, "an option of COPY")?;
        let at = from + 1;
        match name.as_str() {
            "format" => self.format(&self.string(at)?.to_ascii_lowercase(), from)?,
            "delimiter" => self.delimiter = Some(self.string(at)?),
            "null" => self.null = Some(self.string(at)?),
            "quote" => self.quote = Some(self.string(at)?),
            "escape" => self.escape = Some(self.string(at)?),
            "header" => {
                let off = at < to
                    && (["false", "off", "0"].contains(&tokens.str(at).to_ascii_lowercase().trim_matches('\'')));
                self.copy.header = !off;
            }
            "force_not_null" => self.force_not_null(at, to)?,
            "encoding" => self.encoding(at)?,
            "freeze" | "force_quote" | "force_null" => {}
            _ => return Err(self.reader.expected(from, "an option of COPY")),
        }
        Ok(())
    }

    fn force_not_null(&mut self, at: usize, to: usize) -> Result<(), SqlError> {
        let tokens = self.reader.tokens;
        let close = tokens.closing(at).min(to);
        let names =
            commas(tokens, at + 1, close).into_iter().map(|(from, to)| self.reader.name(from, to, "a column's name"));
        self.copy.force_not_null = names.collect::<Result<_, _>>()?;
        Ok(())
    }

    fn encoding(&self, at: usize) -> Result<(), SqlError> {
        let name = self.string(at)?.to_ascii_lowercase();
        if matches!(name.as_str(), "utf8" | "utf-8" | "unicode") {
            return Ok(());
        }
        Err(SqlError::unsupported("COPY in an encoding other than UTF8 is not supported")
            .hint("convert the data to UTF-8"))
    }

    fn format(&mut self, name: &str, at: usize) -> Result<(), SqlError> {
        self.copy.format = match name {
            "text" => CopyFormat::Text,
            "csv" => CopyFormat::Csv,
            "binary" => CopyFormat::Binary,
            _ => return Err(self.reader.expected(at, "FORMAT text, csv or binary")),
        };
        Ok(())
    }

    /// One of `BINARY`, `CSV`, `HEADER`, `DELIMITER [AS] ','` …; gives what comes behind it.
    fn old_option(&mut self, at: usize) -> Result<usize, SqlError> {
        let tokens = self.reader.tokens;
        let name = tokens.str(at).to_ascii_uppercase();
        let value = if tokens.is(at + 1, "AS") { at + 2 } else { at + 1 };
        match name.as_str() {
            "BINARY" => self.copy.format = CopyFormat::Binary,
            "CSV" => self.copy.format = CopyFormat::Csv,
            "HEADER" => self.copy.header = true,
            "FREEZE" => {}
            "FORCE" => return self.old_force(at),
            "DELIMITER" | "NULL" | "QUOTE" | "ESCAPE" | "ENCODING" | "DELIMITERS" => {
                let text = self.string(value)?;
                match name.as_str() {
                    "NULL" => self.null = Some(text),
                    "QUOTE" => self.quote = Some(text),
                    "ESCAPE" => self.escape = Some(text),
                    "ENCODING" => self.encoding(value)?,
                    _ => self.delimiter = Some(text),
                }
                return Ok(value + 1);
            }
            _ => return Err(self.reader.expected(at, "an option of COPY")),
        }
        Ok(at + 1)
    }

    /// `FORCE NOT NULL a, b`, `FORCE NULL a`, `FORCE QUOTE a` or `*`.
    fn old_force(&mut self, at: usize) -> Result<usize, SqlError> {
        let tokens = self.reader.tokens;
        let not_null = tokens.are(at + 1, &["NOT", "NULL"]);
        let mut at = at + if not_null { 3 } else { 2 };
        loop {
            if !tokens.is_symbol(at, "*") {
                let name = self.reader.name(at, self.to, "a column's name")?;
                self.copy.force_not_null.extend(not_null.then_some(name));
            }
            if at + 1 >= self.to || !tokens.is_symbol(at + 1, ",") {
                return Ok(at + 1);
            }
            at += 2;
        }
    }

    /// What the format's defaults are.
    fn finish(self) -> Result<(), SqlError> {
        let byte = |text: Option<String>, default: char, what: &str| match text.as_deref().map(|text| text.as_bytes()) {
            None => Ok(default),
            Some([byte]) if byte.is_ascii() => Ok(char::from(*byte)),
            Some(_) => Err(SqlError::syntax(format!("COPY's {what} has to be a single one-byte character"))),
        };
        let csv = self.copy.format == CopyFormat::Csv;
        self.copy.delimiter = byte(self.delimiter, if csv { ',' } else { '\t' }, "delimiter")?;
        self.copy.quote = byte(self.quote, '"', "quote")?;
        self.copy.escape = byte(self.escape, self.copy.quote, "escape")?;
        self.copy.null = self.null.unwrap_or_else(|| if csv { String::new() } else { "\\N".to_owned() });
        Ok(())
    }
}
