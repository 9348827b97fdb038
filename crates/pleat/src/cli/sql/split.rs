//! Where one statement ends and the next begins.
//!
//! A `;` ends a statement unless it stands in a string, a quoted name or a comment, or inside the body of a
//! trigger, which ends with `END`. Nothing else of SQL is understood here: the server parses.

/// A statement of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement<'a> {
    /// Without the `;`.
    pub text: &'a str,
    /// Where it begins, from 1.
    pub line: usize,
}

/// All statements, the last one also without its `;`.
pub fn statements(text: &str) -> Vec<Statement<'_>> {
    let (mut found, rest) = scan(text);
    found.extend(trimmed(text, rest, text.len()));
    found
}

/// How many bytes of the text are complete statements; what follows waits for more.
pub fn complete(text: &str) -> usize {
    scan(text).1
}

fn scan(text: &str) -> (Vec<Statement<'_>>, usize) {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let (mut start, mut at) = (0, 0);
    let mut words = Words::default();
    while at < bytes.len() {
        let next = match bytes[at] {
            quote @ (b'\'' | b'"' | b'`') => past(bytes, at + 1, &[quote]),
            b'[' => past(bytes, at + 1, b"]"),
            b'-' if bytes.get(at + 1) == Some(&b'-') => past(bytes, at + 2, b"\n"),
            b'/' if bytes.get(at + 1) == Some(&b'*') => past(bytes, at + 2, b"*/"),
            b';' if !words.in_trigger_body() => {
                found.extend(trimmed(text, start, at));
                start = at + 1;
                words = Words::default();
                Some(at + 1)
            }
            byte if byte.is_ascii_alphabetic() || byte == b'_' => {
                let length =
                    bytes[at..].iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count();
                words.see(&text[at..at + length]);
                Some(at + length)
            }
            byte => {
                words.see_symbol(byte);
                Some(at + 1)
            }
        };
        // A quote or comment that is still open takes all that follows.
        match next {
            Some(next) => at = next,
            None => break,
        }
    }
    (found, start)
}

/// The position after the next `end`, if there is one. Doubled quotes need no care: the second opens anew.
fn past(bytes: &[u8], from: usize, end: &[u8]) -> Option<usize> {
    let rest = bytes.get(from..)?;
    rest.windows(end.len()).position(|window| window == end).map(|position| from + position + end.len())
}

fn trimmed(text: &str, start: usize, end: usize) -> Option<Statement<'_>> {
    let whole = &text[start..end];
    let begin = start + skip_blank(whole);
    let statement = text.get(begin..end)?.trim_end();
    (!statement.is_empty()).then(|| Statement { text: statement, line: text[..begin].matches('\n').count() + 1 })
}

/// How much of the front is white space and comments.
fn skip_blank(text: &str) -> usize {
    let mut at = 0;
    loop {
        let rest = &text[at..];
        let blank = rest.len() - rest.trim_start().len();
        at += blank;
        let rest = &text[at..];
        let comment = if rest.starts_with("--") {
            past(rest.as_bytes(), 2, b"\n")
        } else if rest.starts_with("/*") {
            past(rest.as_bytes(), 2, b"*/")
        } else {
            return at;
        };
        match comment {
            Some(length) => at += length,
            None => return text.len(),
        }
    }
}

/// What has been read of the current statement, as far as it tells whether a trigger's body is open.
#[derive(Default)]
struct Words {
    count: usize,
    creates: bool,
    trigger: bool,
    body: bool,
    /// CASE … END inside the body.
    cases: usize,
    ended: bool,
}

impl Words {
    fn see(&mut self, word: &str) {
        self.count += 1;
        let is = |other: &str| word.eq_ignore_ascii_case(other);
        match self.count {
            1 => self.creates = is("create"),
            2..=3 if self.creates && is("trigger") => self.trigger = true,
            _ => {}
        }
        self.ended = false;
        if self.trigger && is("begin") {
            self.body = true;
        } else if self.body && is("case") {
            self.cases += 1;
        } else if self.body && is("end") {
            self.ended = self.cases == 0;
            self.cases = self.cases.saturating_sub(1);
        }
    }

    fn see_symbol(&mut self, byte: u8) {
        if !byte.is_ascii_whitespace() {
            self.ended = false;
        }
    }

    fn in_trigger_body(&self) -> bool {
        self.body && !self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        statements(text).iter().map(|statement| statement.text).collect()
    }

    #[test]
    fn a_semicolon_ends_a_statement_except_where_it_is_text() {
        assert_eq!(texts("SELECT 1; SELECT 2"), ["SELECT 1", "SELECT 2"]);
        assert_eq!(texts("SELECT ';', \"a;b\", [c;d], `e;f`;"), ["SELECT ';', \"a;b\", [c;d], `e;f`"]);
        assert_eq!(texts("SELECT 'it''s; fine'; SELECT 2;"), ["SELECT 'it''s; fine'", "SELECT 2"]);
        assert_eq!(texts("SELECT 1 -- no; end\n+ 1; /* ; */ SELECT 2"), ["SELECT 1 -- no; end\n+ 1", "SELECT 2"]);
        assert_eq!(texts(" ; ;; -- nothing\n"), Vec::<&str>::new());
    }

    #[test]
    fn the_body_of_a_trigger_is_one_statement() {
        let trigger = "CREATE TEMP TRIGGER t AFTER INSERT ON a BEGIN\n UPDATE b SET c = CASE WHEN 1 THEN 2 END; DELETE FROM d; END";
        assert_eq!(texts(&format!("{trigger}; SELECT 1")), [trigger, "SELECT 1"]);
        assert_eq!(texts("BEGIN; SELECT 1; END;"), ["BEGIN", "SELECT 1", "END"], "no trigger, no body");
    }

    #[test]
    fn lines_are_those_where_statements_begin() {
        let found = statements("-- first\nSELECT 1;\n\n/* two\nlines */ SELECT\n2;");
        assert_eq!(found.iter().map(|statement| statement.line).collect::<Vec<_>>(), [2, 5]);
    }

    #[test]
    fn what_is_not_complete_waits() {
        assert_eq!(complete("SELECT 1; SELECT"), 9);
        assert_eq!(complete("SELECT 'open; "), 0);
        assert_eq!(complete("SELECT 1 /* open; "), 0);
        assert_eq!(complete("SELECT 'ä';"), "SELECT 'ä';".len());
    }
}
