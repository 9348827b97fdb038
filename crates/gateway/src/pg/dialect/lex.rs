//! The tokens of a text that is SQLite's SQL with PostgreSQL's literals and operators in it.
//!
//! Where the two differ, what SQLite takes for a token is one here too (`[a b]` and `` `a` `` are names, comments don't
//! nest), except for `E'…'`, `$tag$…$tag$` and `::`, which mean nothing to SQLite.

use crate::session::Failure;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Word,
    /// In quotes of any kind.
    Name,
    /// `'…'`, and `x'…'`
    Text,
    /// `E'…'`
    Escape,
    /// `$tag$…$tag$`
    Dollar,
    Number,
    /// `$1`
    Parameter,
    Symbol,
}

#[derive(Clone, Copy, Debug)]
pub struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
}

/// A text and its tokens; blanks and comments are left out.
#[derive(Clone, Debug)]
pub struct Tokens<'a> {
    pub text: &'a str,
    pub list: Vec<Token>,
}

/// Symbols of more than one letter that matter here.
const SYMBOLS: [&str; 9] = ["::", "!~~*", "!~~", "!~*", "!~", "~~*", "~~", "~*", "||"];

impl<'a> Tokens<'a> {
    pub fn of(text: &'a str) -> Result<Self, Failure> {
        let mut list: Vec<Token> = Vec::with_capacity(text.len() / 4);
        let mut at = 0;
        while let Some(start) = skip_blank(text, at) {
            let subscript = list.last().is_some_and(|last| {
                let before = &text[last.start..last.end];
                last.end == start && matches!(last.kind, Kind::Word | Kind::Name) || before == "]" || before == ")"
            });
            let (kind, end) = token(text, start, subscript)?;
            list.push(Token { kind, start, end });
            at = end;
        }
        Ok(Tokens { text, list })
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn kind(&self, at: usize) -> Option<Kind> {
        self.list.get(at).map(|token| token.kind)
    }

    /// The text of a token; empty beyond the end.
    pub fn str(&self, at: usize) -> &'a str {
        self.list.get(at).map_or("", |token| &self.text[token.start..token.end])
    }

    /// Whether it is this bare word, in any case.
    pub fn is(&self, at: usize, word: &str) -> bool {
        self.kind(at) == Some(Kind::Word) && self.str(at).eq_ignore_ascii_case(word)
    }

    /// Whether these bare words stand here.
    pub fn are(&self, at: usize, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(offset, word)| self.is(at + offset, word))
    }

    pub fn is_symbol(&self, at: usize, symbol: &str) -> bool {
        self.kind(at) == Some(Kind::Symbol) && self.str(at) == symbol
    }

    /// The `)` that closes the `(` at `open`, or the end.
    pub fn closing(&self, open: usize) -> usize {
        let mut depth = 0_usize;
        for at in open..self.len() {
            depth += usize::from(self.is_symbol(at, "("));
            if self.is_symbol(at, ")") {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at;
                }
            }
        }
        self.len()
    }

    /// The number of a parameter.
    pub fn parameter(&self, at: usize) -> Option<u16> {
        self.str(at).strip_prefix('$').filter(|_| self.kind(at) == Some(Kind::Parameter))?.parse().ok()
    }

    /// A name without its quotes; a bare word in lower case, as PostgreSQL folds it.
    pub fn name(&self, at: usize) -> Option<String> {
        let text = self.str(at);
        match self.kind(at)? {
            Kind::Word => Some(text.to_lowercase()),
            Kind::Name => {
                let close = text.chars().next_back()?;
                let inner = &text[1..text.len() - close.len_utf8()];
                Some(if close == ']' {
                    inner.to_owned()
                } else {
                    inner.replace(&format!("{close}{close}"), &close.to_string())
                })
            }
            _ => None,
        }
    }

    /// The text that a string of any kind stands for.
    pub fn string(&self, at: usize) -> Result<String, Failure> {
        let text = self.str(at);
        match self.kind(at) {
            Some(Kind::Text) if text.starts_with('\'') => Ok(text[1..text.len() - 1].replace("''", "'")),
            Some(Kind::Escape) => unescape(&text[2..text.len() - 1]),
            Some(Kind::Dollar) => {
                let tag = text[1..].find('$').map_or(2, |end| end + 2);
                Ok(text[tag..text.len() - tag].to_owned())
            }
            _ => Err(Failure::new("42601", "a string was expected", "")),
        }
    }

    /// The type's name that begins here, in lower case, and where it ends.
    pub fn type_name(&self, mut at: usize) -> Option<(String, usize)> {
        while self.is_symbol(at + 1, ".") {
            at += 2;
        }
        let mut name = self.name(at)?;
        at += 1;
        let longer: &[&[&str]] = match name.as_str() {
            "double" => &[&["precision"]],
            "character" | "char" | "bit" | "national" => &[&["varying"]],
            _ => &[],
        };
        for words in longer.iter().filter(|words| self.are(at, words)).collect::<Vec<_>>() {
            words.iter().for_each(|word| name = format!("{name} {word}"));
            at += words.len();
        }
        if self.is_symbol(at, "(") {
            at = (at..self.len()).find(|at| self.is_symbol(*at, ")"))? + 1;
        }
        for words in [["with", "time", "zone"], ["without", "time", "zone"]] {
            if name.starts_with("time") && self.are(at, &words) {
                name = format!("{name} {}", words.join(" "));
                at += words.len();
            }
        }
        while self.is_symbol(at, "[") && self.is_symbol(at + 1, "]") {
            name.push_str("[]");
            at += 2;
        }
        Some((name, at))
    }
}

/// The statements of a text, without empty ones and without the `;` between them. A trigger ends at `; END`.
///
/// The planner has its own cut, by SQLite's tokens alone; this one comes before anything is translated.
pub fn split(text: &str) -> Result<Vec<&str>, Failure> {
    let tokens = Tokens::of(text)?;
    let mut found = Vec::new();
    let mut start = 0;
    for at in 0..=tokens.len() {
        let ends = at == tokens.len() || tokens.is_symbol(at, ";");
        let inside = || {
            let complete = at > start + 1 && tokens.is(at - 1, "END") && tokens.is_symbol(at - 2, ";");
            at < tokens.len() && is_trigger(&tokens, start) && !complete
        };
        if !ends || inside() {
            continue;
        }
        if at > start {
            // Comments before a statement belong to it: they may say where it is to run.
            let from = if start == 0 { 0 } else { tokens.list[start - 1].end };
            found.push(text[from..tokens.list[at - 1].end].trim());
        }
        start = at + 1;
    }
    Ok(found)
}

fn is_trigger(tokens: &Tokens<'_>, start: usize) -> bool {
    let create = start + usize::from(tokens.is(start, "EXPLAIN"));
    let temporary = tokens.is(create + 1, "TEMP") || tokens.is(create + 1, "TEMPORARY");
    tokens.is(create, "CREATE") && tokens.is(create + 1 + usize::from(temporary), "TRIGGER")
}

fn skip_blank(text: &str, mut at: usize) -> Option<usize> {
    loop {
        let rest = &text[at..];
        let blank = rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0c', '\u{feff}']).len();
        at += blank;
        let rest = &text[at..];
        if rest.starts_with("--") {
            at += rest.find('\n')?;
        } else if let Some(comment) = rest.strip_prefix("/*") {
            at += comment.find("*/")? + 4;
        } else if rest.is_empty() {
            return None;
        } else if blank == 0 {
            return Some(at);
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn run(text: &str, at: usize, belongs: impl Fn(u8) -> bool) -> usize {
    at + text.as_bytes()[at..].iter().take_while(|byte| belongs(**byte)).count()
}

fn token(text: &str, at: usize, subscript: bool) -> Result<(Kind, usize), Failure> {
    let bytes = text.as_bytes();
    let next = bytes.get(at + 1).copied().unwrap_or(0);
    Ok(match bytes[at] {
        b'e' | b'E' if next == b'\'' => (Kind::Escape, escaped(text, at)?),
        b'x' | b'X' if next == b'\'' => (Kind::Text, close(text, at + 1, b'\'')?),
        b'\'' => (Kind::Text, close(text, at, b'\'')?),
        quote @ (b'"' | b'`') => (Kind::Name, close(text, at, quote)?),
        b'[' if !subscript => match text[at..].find(']') {
            Some(length) => (Kind::Name, at + length + 1),
            None => return Err(unterminated(text, at)),
        },
        b'$' if next.is_ascii_digit() => (Kind::Parameter, run(text, at + 1, |byte| byte.is_ascii_digit())),
        b'$' => match dollar(text, at)? {
            Some(end) => (Kind::Dollar, end),
            // SQLite's `$name`.
            None => (Kind::Word, run(text, at + 1, is_word)),
        },
        byte if byte.is_ascii_digit() || byte == b'.' && next.is_ascii_digit() => {
            (Kind::Number, run(text, at, |byte| is_word(byte) || byte == b'.'))
        }
        byte if is_word(byte) => (Kind::Word, run(text, at, |byte| is_word(byte) || byte == b'$')),
        _ => {
            let symbol = SYMBOLS.iter().find(|symbol| text[at..].starts_with(**symbol));
            (Kind::Symbol, at + symbol.map_or(1, |symbol| symbol.len()))
        }
    })
}

fn unterminated(text: &str, at: usize) -> Failure {
    Failure::new("42601", "the quote that opens here is never closed", "").at_text(text, at)
}

/// The end of a quoted token, where a doubled quote stands for itself.
fn close(text: &str, at: usize, mark: u8) -> Result<usize, Failure> {
    let bytes = text.as_bytes();
    let mut end = at + 1;
    while let Some(byte) = bytes.get(end) {
        end += 1;
        if *byte == mark {
            if bytes.get(end) != Some(&mark) {
                return Ok(end);
            }
            end += 1;
        }
    }
    Err(unterminated(text, at))
}

/// The end of `E'…'`.
fn escaped(text: &str, at: usize) -> Result<usize, Failure> {
    let bytes = text.as_bytes();
    let mut end = at + 2;
    while let Some(byte) = bytes.get(end) {
        end += 1;
        match byte {
            b'\\' => end += 1,
            b'\'' if bytes.get(end) == Some(&b'\'') => end += 1,
            b'\'' => return Ok(end),
            _ => {}
        }
    }
    Err(unterminated(text, at))
}

/// The end of `$tag$…$tag$`, if that is what begins here.
fn dollar(text: &str, at: usize) -> Result<Option<usize>, Failure> {
    let tag = run(text, at + 1, is_word);
    if text.as_bytes().get(tag) != Some(&b'$') {
        return Ok(None);
    }
    let mark = &text[at..=tag];
    match text[tag + 1..].find(mark) {
        Some(length) => Ok(Some(tag + 1 + length + mark.len())),
        None => Err(unterminated(text, at)),
    }
}

/// What stands between the quotes of `E'…'`, with its escapes carried out.
fn unescape(text: &str) -> Result<String, Failure> {
    let odd = || {
        let hint = "E'…' knows \\n, \\t, \\\\, \\', \\x41, \\101 and \\u0041";
        Failure::new("22025", "an escape in a string is not understood", hint)
    };
    let mut bytes: Vec<u8> = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        rest = &rest[letter.len_utf8()..];
        if letter != '\\' {
            bytes.extend(letter.encode_utf8(&mut [0; 4]).bytes());
            // A doubled quote is one.
            rest = if letter == '\'' { rest.strip_prefix('\'').unwrap_or(rest) } else { rest };
            continue;
        }
        let escaped = rest.chars().next().ok_or_else(odd)?;
        let after = &rest[escaped.len_utf8()..];
        let number = |from: &str, least: usize, most: usize, radix: u32| {
            let count = from.chars().take(most).take_while(|digit| digit.is_digit(radix)).count();
            let code = u32::from_str_radix(&from[..count], radix).ok().filter(|_| count >= least);
            (code, count)
        };
        let plain = match escaped {
            'x' | '0'..='7' => {
                let from = if escaped == 'x' { after } else { rest };
                let (code, count) = if escaped == 'x' { number(from, 1, 2, 16) } else { number(from, 1, 3, 8) };
                rest = &from[count..];
                code.and_then(|code| u8::try_from(code).ok()).map(|code| bytes.push(code))
            }
            'u' | 'U' => {
                let digits = if escaped == 'u' { 4 } else { 8 };
                let (code, count) = number(after, digits, digits, 16);
                rest = &after[count..];
                let letter = code.and_then(char::from_u32);
                letter.map(|letter| bytes.extend(letter.encode_utf8(&mut [0; 4]).bytes()))
            }
            other => {
                let letter = match other {
                    'b' => '\x08',
                    'f' => '\x0c',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    other => other,
                };
                rest = after;
                bytes.extend(letter.encode_utf8(&mut [0; 4]).bytes());
                Some(())
            }
        };
        plain.ok_or_else(odd)?;
    }
    String::from_utf8(bytes).map_err(|_| odd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_cut_at_semicolons_that_end_them() {
        let cut = |text| split(text).unwrap();
        assert_eq!(cut(" SELECT ';' ; ;; SELECT $$;$$ -- ;\n;"), ["SELECT ';'", "SELECT $$;$$"]);
        assert_eq!(
            cut("/* pleat: shard=1 */ SELECT 1; /* b */ SELECT 2"),
            ["/* pleat: shard=1 */ SELECT 1", "/* b */ SELECT 2"]
        );
        let trigger = "CREATE TRIGGER a AFTER INSERT ON t BEGIN DELETE FROM u; DELETE FROM v; END";
        let two = format!("{trigger}; SELECT 1");
        assert_eq!(split(&two).unwrap(), [trigger, "SELECT 1"]);
        assert!(cut(" -- nothing\n ; ").is_empty());
        assert_eq!(split("SELECT 'a").unwrap_err().code, "42601");
    }

    #[test]
    fn names_of_types() {
        let named = |text: &str| Tokens::of(text).unwrap().type_name(0).unwrap().0;
        assert_eq!(named("double precision"), "double precision");
        assert_eq!(named("timestamp(3) with time zone AND"), "timestamp with time zone");
        assert_eq!(named("pg_catalog.\"char\""), "char");
        assert_eq!(named("int4[]"), "int4[]");
        assert_eq!(named("character varying(3)"), "character varying");
    }
}
