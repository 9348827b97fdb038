//! PostgreSQL's tokens: where one statement ends, and what a client's text is made of.
//!
//! This follows PostgreSQL's own scanner with `standard_conforming_strings` on: nested comments, dollar quotes, `E''`,
//! `U&''`, strings that go on in the next line, operators that don't swallow the start of a comment.

use crate::error::SqlError;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A word that is not quoted: a keyword or a name.
    Word,
    /// A name in double quotes.
    Name,
    /// A string whose value is known: `''`, `E''`, `N''`, dollar quotes.
    Text,
    /// `U&''`, `U&""`, `B''`, `X''`: never looked into.
    Opaque,
    Number,
    /// `$1`.
    Param,
    /// An operator, or one of `( ) [ ] , ; : .`
    Symbol,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    kind: Kind,
    start: usize,
    end: usize,
}

/// The tokens of a text.
#[derive(Debug)]
pub(super) struct Tokens<'t> {
    pub text: &'t str,
    tokens: Vec<Token>,
}

impl<'t> Tokens<'t> {
    pub fn of(text: &'t str) -> Result<Tokens<'t>, SqlError> {
        let mut scanner = Scanner { text, bytes: text.as_bytes(), at: 0 };
        let mut tokens = Vec::new();
        while scanner.skip_blank()? {
            let start = scanner.at;
            let kind = scanner.token()?;
            tokens.push(Token { kind, start, end: scanner.at });
        }
        Ok(Tokens { text, tokens })
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn kind(&self, at: usize) -> Option<Kind> {
        self.tokens.get(at).map(|token| token.kind)
    }

    /// Where token `at` starts in the text; its end if there is no such token.
    pub fn start(&self, at: usize) -> usize {
        self.tokens.get(at).map_or(self.text.len(), |token| token.start)
    }

    pub fn end(&self, at: usize) -> usize {
        self.tokens.get(at).map_or(self.text.len(), |token| token.end)
    }

    /// The token as it is written.
    pub fn str(&self, at: usize) -> &'t str {
        self.tokens.get(at).map_or("", |token| &self.text[token.start..token.end])
    }

    /// The text of the tokens `from..to`.
    pub fn slice(&self, from: usize, to: usize) -> &'t str {
        if from >= to { "" } else { &self.text[self.start(from)..self.end(to - 1)] }
    }

    pub fn is_symbol(&self, at: usize, symbol: &str) -> bool {
        self.kind(at) == Some(Kind::Symbol) && self.str(at) == symbol
    }

    /// Whether token `at` is this word, unquoted, in any case.
    pub fn is(&self, at: usize, word: &str) -> bool {
        self.kind(at) == Some(Kind::Word) && self.str(at).eq_ignore_ascii_case(word)
    }

    pub fn are(&self, at: usize, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(offset, word)| self.is(at + offset, word))
    }

    /// The name that a word or a quoted name stands for.
    pub fn name(&self, at: usize) -> Option<String> {
        match self.kind(at)? {
            Kind::Word => Some(self.str(at).to_ascii_lowercase()),
            Kind::Name => Some(unquoted(self.str(at), '"')),
            _ => None,
        }
    }

    /// The parameter (from 0) that token `at` is.
    pub fn param(&self, at: usize) -> Option<usize> {
        (self.kind(at)? == Kind::Param).then(|| self.str(at)[1..].parse::<usize>().ok()?.checked_sub(1))?
    }

    /// The value of a string.
    pub fn string(&self, at: usize) -> Option<String> {
        (self.kind(at)? == Kind::Text).then(|| string_value(self.str(at)))?
    }

    /// The index of the `)` or `]` that closes the bracket at `open`; `len` if there is none.
    pub fn closing(&self, open: usize) -> usize {
        let mut depth = 0usize;
        for at in open..self.len() {
            match self.opens(at) {
                1 => depth += 1,
                -1 if depth <= 1 => return at,
                -1 => depth -= 1,
                _ => {}
            }
        }
        self.len()
    }

    /// 1 for an opening bracket, -1 for a closing one, else 0.
    pub fn opens(&self, at: usize) -> i8 {
        match (self.kind(at), self.str(at)) {
            (Some(Kind::Symbol), "(" | "[") => 1,
            (Some(Kind::Symbol), ")" | "]") => -1,
            _ => 0,
        }
    }
}

/// What stands between `quote`s, where two of them stand for one.
fn unquoted(text: &str, quote: char) -> String {
    let inner = text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote)).unwrap_or(text);
    let doubled: String = [quote, quote].iter().collect();
    inner.replace(&doubled, quote.encode_utf8(&mut [0; 4]))
}

/// The value of `'…'`, `E'…'`, `N'…'` or `$tag$…$tag$`; of several parts that go on in the next line their concatenation. `None` for
/// escapes that PostgreSQL would refuse.
fn string_value(text: &str) -> Option<String> {
    if let Some(rest) = text.strip_prefix('$') {
        let tag = rest.find('$')? + 2;
        return text.get(tag..text.len().checked_sub(tag)?).map(str::to_owned);
    }
    let escapes = text.starts_with(['e', 'E']);
    let body = text.trim_start_matches(['e', 'E', 'n', 'N']);
    let mut value: Vec<u8> = Vec::with_capacity(body.len());
    let mut rest = body.strip_prefix('\'')?.as_bytes();
    loop {
        match rest {
            [b'\'', b'\'', after @ ..] => {
                value.push(b'\'');
                rest = after;
            }
            [b'\''] => return String::from_utf8(value).ok(),
            [b'\'', after @ ..] => {
                // The next part: blanks, then another quote.
                let quote = after.iter().position(|byte| *byte == b'\'')?;
                rest = &after[quote + 1..];
            }
            [b'\\', after @ ..] if escapes => rest = escape(after, &mut value)?,
            [byte, after @ ..] => {
                value.push(*byte);
                rest = after;
            }
            [] => return None,
        }
    }
}

/// Reads what follows a backslash; gives what comes after it.
fn escape<'b>(after: &'b [u8], value: &mut Vec<u8>) -> Option<&'b [u8]> {
    let digits = |from: usize, most: usize, radix: u32| {
        let count = after[from..].iter().take(most).take_while(|byte| char::from(**byte).is_digit(radix)).count();
        let text = std::str::from_utf8(&after[from..from + count]).ok()?;
        Some((u32::from_str_radix(text, radix).ok()?, from + count))
    };
    let (number, used) = match after.first()? {
        b'b' => (8, 1),
        b'f' => (12, 1),
        b'n' => (10, 1),
        b'r' => (13, 1),
        b't' => (9, 1),
        b'0'..=b'7' => digits(0, 3, 8)?,
        b'x' if after.get(1).is_some_and(u8::is_ascii_hexdigit) => digits(1, 2, 16)?,
        kind @ (b'u' | b'U') => {
            let wanted = if *kind == b'u' { 4 } else { 8 };
            let (code, used) = digits(1, wanted, 16)?;
            let character = char::from_u32(code).filter(|_| used == wanted + 1)?;
            value.extend(character.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(&after[used..]);
        }
        other => (u32::from(*other), 1),
    };
    value.push(u8::try_from(number).ok().filter(|byte| *byte != 0)?);
    Some(&after[used..])
}

struct Scanner<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0c | 0x0b)
}

const OPERATOR: &[u8] = b"+-*/<>=~!@#%^&|`?";

impl Scanner<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn error(&self, at: usize, what: &str) -> SqlError {
        SqlError::syntax(what).at(self.text, at)
    }

    /// Skips blanks and comments; `false` at the end of the text.
    fn skip_blank(&mut self) -> Result<bool, SqlError> {
        while self.at < self.bytes.len() {
            match (self.peek(0), self.peek(1)) {
                (byte, _) if is_blank(byte) => self.at += 1,
                (b'-', b'-') => self.skip_line(),
                (b'/', b'*') => self.skip_comment()?,
                _ => return Ok(true),
            }
        }
        Ok(false)
    }

    fn skip_line(&mut self) {
        while self.at < self.bytes.len() && !matches!(self.peek(0), b'\n' | b'\r') {
            self.at += 1;
        }
    }

    fn skip_comment(&mut self) -> Result<(), SqlError> {
        let start = self.at;
        let mut depth = 0usize;
        while self.at < self.bytes.len() {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                _ => self.at += 1,
            }
        }
        Err(self.error(start, "a comment is not closed"))
    }

    fn token(&mut self) -> Result<Kind, SqlError> {
        let (byte, next) = (self.peek(0), self.peek(1));
        match byte {
            b'\'' => self.string(0, false, Kind::Text),
            b'e' | b'E' if next == b'\'' => self.string(1, true, Kind::Text),
            b'n' | b'N' if next == b'\'' => self.string(1, false, Kind::Text),
            b'b' | b'B' | b'x' | b'X' if next == b'\'' => self.string(1, false, Kind::Opaque),
            b'u' | b'U' if next == b'&' && self.peek(2) == b'\'' => self.string(2, false, Kind::Opaque),
            b'u' | b'U' if next == b'&' && self.peek(2) == b'"' => {
                self.at += 2;
                self.quoted_name().map(|_| Kind::Opaque)
            }
            b'"' => self.quoted_name(),
            b'$' if next.is_ascii_digit() => {
                self.at += 1;
                while self.peek(0).is_ascii_digit() {
                    self.at += 1;
                }
                Ok(Kind::Param)
            }
            b'$' => self.dollar(),
            b'0'..=b'9' => Ok(self.number()),
            b'.' if next.is_ascii_digit() => Ok(self.number()),
            b'.' if next == b'.' => self.symbol(2),
            b'(' | b')' | b'[' | b']' | b',' | b';' | b'.' => self.symbol(1),
            b':' if matches!(next, b':' | b'=') => self.symbol(2),
            b':' => self.symbol(1),
            _ if is_word_start(byte) => {
                while is_word(self.peek(0)) && self.at < self.bytes.len() {
                    self.at += 1;
                }
                Ok(Kind::Word)
            }
            _ if OPERATOR.contains(&byte) => Ok(self.operator()),
            _ => Err(self.error(self.at, "this character has no meaning in SQL")),
        }
    }

    fn symbol(&mut self, length: usize) -> Result<Kind, SqlError> {
        self.at += length;
        Ok(Kind::Symbol)
    }

    /// A string behind a prefix. It goes on behind blanks with a line break among them.
    fn string(&mut self, prefix: usize, escapes: bool, kind: Kind) -> Result<Kind, SqlError> {
        let start = self.at;
        self.at += prefix + 1;
        loop {
            if self.at >= self.bytes.len() {
                return Err(self.error(start, "a string is not closed"));
            }
            match (self.peek(0), self.peek(1)) {
                (b'\\', _) if escapes => self.at += 2,
                (b'\'', b'\'') => self.at += 2,
                (b'\'', _) => {
                    self.at += 1;
                    match self.continued() {
                        Some(next) => self.at = next,
                        None => return Ok(kind),
                    }
                }
                _ => self.at += 1,
            }
        }
    }

    /// Behind a string's end: where it goes on, if it does.
    fn continued(&self) -> Option<usize> {
        let blanks = self.bytes[self.at..].iter().take_while(|byte| is_blank(**byte)).count();
        let between = &self.bytes[self.at..self.at + blanks];
        let goes_on = between.iter().any(|byte| matches!(byte, b'\n' | b'\r')) && self.peek(blanks) == b'\'';
        goes_on.then_some(self.at + blanks + 1)
    }

    fn quoted_name(&mut self) -> Result<Kind, SqlError> {
        let start = self.at;
        self.at += 1;
        loop {
            match (self.peek(0), self.peek(1)) {
                _ if self.at >= self.bytes.len() => return Err(self.error(start, "a quoted name is not closed")),
                (b'"', b'"') => self.at += 2,
                (b'"', _) => {
                    self.at += 1;
                    return Ok(Kind::Name);
                }
                _ => self.at += 1,
            }
        }
    }

    fn dollar(&mut self) -> Result<Kind, SqlError> {
        let start = self.at;
        let mut end = start + 1;
        while self.bytes.get(end).is_some_and(|byte| is_word(*byte) && *byte != b'$') {
            end += 1;
        }
        if self.bytes.get(end) != Some(&b'$') {
            return Err(self.error(start, "this $ starts neither a parameter nor a string"));
        }
        let tag = &self.text[start..=end];
        match self.text[end + 1..].find(tag) {
            Some(close) => {
                self.at = end + 1 + close + tag.len();
                Ok(Kind::Text)
            }
            None => Err(self.error(start, "a string in dollar quotes is not closed")),
        }
    }

    fn number(&mut self) -> Kind {
        while self.peek(0).is_ascii_digit() {
            self.at += 1;
        }
        if self.peek(0) == b'.' && self.peek(1) != b'.' {
            self.at += 1;
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
        }
        if matches!(self.peek(0), b'e' | b'E') {
            let sign = usize::from(matches!(self.peek(1), b'+' | b'-'));
            if self.peek(1 + sign).is_ascii_digit() {
                self.at += 1 + sign;
                while self.peek(0).is_ascii_digit() {
                    self.at += 1;
                }
            }
        }
        Kind::Number
    }

    /// The longest operator: it ends before a comment, and its last character is no + or - unless it has one that SQL's own operators haven't.
    fn operator(&mut self) -> Kind {
        let start = self.at;
        let mut end = start;
        while self.bytes.get(end).is_some_and(|byte| OPERATOR.contains(byte)) {
            let comment = matches!(&self.bytes[end..], [b'-', b'-', ..] | [b'/', b'*', ..]);
            if comment && end > start {
                break;
            }
            end += 1;
        }
        let special = |bytes: &[u8]| bytes.iter().any(|byte| b"~!@#%^&|`?".contains(byte));
        while end - start > 1 && matches!(self.bytes[end - 1], b'+' | b'-') && !special(&self.bytes[start..end - 1]) {
            end -= 1;
        }
        self.at = end;
        Kind::Symbol
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<&str> {
        let tokens = Tokens::of(text).unwrap();
        (0..tokens.len()).map(|at| tokens.str(at)).collect()
    }

    #[test]
    fn tokens_are_cut_as_postgresql_cuts_them() {
        for (text, wanted) in [
            ("a/* x /* y */ ; */b", vec!["a", "b"]),
            ("$$a;b$$;$x$ $$ ; $x$", vec!["$$a;b$$", ";", "$x$ $$ ; $x$"]),
            ("E'a\\';' ';''' \"a;\"\"b\"", vec!["E'a\\';'", "';'''", "\"a;\"\"b\""]),
            ("'a\\' b", vec!["'a\\'", "b"]),
            ("'a'\n 'b' 'c'", vec!["'a'\n 'b'", "'c'"]),
            ("$1::int+$22", vec!["$1", "::", "int", "+", "$22"]),
            ("a<-1 @-1 a=-b --c\n*/*d*/e", vec!["a", "<", "-", "1", "@-", "1", "a", "=", "-", "b", "*", "e"]),
            ("1.5e-3 .5 1e 1..2", vec!["1.5e-3", ".5", "1", "e", "1", "..", "2"]),
            ("U&'\\0041;' u&\"x;\" B'01' x'ff'", vec!["U&'\\0041;'", "u&\"x;\"", "B'01'", "x'ff'"]),
            ("a$1 é$x$", vec!["a$1", "é$x$"]),
        ] {
            assert_eq!(all(text), wanted, "{text}");
        }
        for wrong in ["'a", "\"a", "/* /* */", "$a$ $b$", "$", "a \\"] {
            assert!(Tokens::of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn strings_have_their_values() {
        for (text, value) in [
            ("'it''s'", Some("it's")),
            ("E'a\\n\\'\\x41\\101\\u00e9\\q'", Some("a\n'AAéq")),
            ("$t$a'b$t$", Some("a'b")),
            ("'a'\n\t'b'", Some("ab")),
            ("E'\\0'", None),
            ("n'x'", Some("x")),
            ("'e'", Some("e")),
        ] {
            assert_eq!(Tokens::of(text).unwrap().string(0).as_deref(), value, "{text}");
        }
    }
}
