//! The tokens of SQLite's SQL, each with its place in the text.
//!
//! Pleat cuts statements by tokens: into statements at `;`, into filters at `AND`, and around its own
//! `SHARD BY` clause. Whatever is cut out must mean to SQLite what it meant in the user's text, so this
//! lexer follows SQLite's `tokenize.c` and not any other dialect: `"x"`, `` `x` `` and `[x]` are names,
//! strings have no backslash escapes, comments don't nest, `$1` and `:a` are parameters. The parser
//! (`parse`) is fed with these tokens, so that text and syntax tree can never disagree about where a
//! string ends.

use crate::error::SqlError;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A bare word: a keyword or a name.
    Word,
    /// A name in quotes of any of the three kinds.
    Name,
    /// `'…'`
    Text,
    /// `x'…'`
    Blob,
    Number,
    /// `?`, `?1`, `:a`, `@a`, `$a`
    Parameter,
    /// An operator or punctuation.
    Symbol,
}

/// A token: `text[start..end]`, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
}

/// A text and its tokens; comments and white space are left out.
#[derive(Clone, Debug)]
pub(crate) struct Tokens<'a> {
    pub text: &'a str,
    pub list: Vec<Token>,
}

impl<'a> Tokens<'a> {
    /// Cuts `text` into tokens.
    pub fn of(text: &'a str) -> Result<Self, SqlError> {
        let mut list = Vec::with_capacity(text.len() / 4);
        let mut at = 0;
        while let Some(next) = skip_blank(text.as_bytes(), at) {
            let (kind, end) = token_at(text, next)?;
            list.push(Token { kind, start: next, end });
            at = end;
        }
        Ok(Tokens { text, list })
    }

    /// The text of token `index`; empty beyond the end.
    pub fn str(&self, index: usize) -> &'a str {
        self.list.get(index).map_or("", |token| &self.text[token.start..token.end])
    }

    pub fn kind(&self, index: usize) -> Option<Kind> {
        self.list.get(index).map(|token| token.kind)
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether token `index` is the bare word `word`, in any case.
    pub fn is(&self, index: usize, word: &str) -> bool {
        self.kind(index) == Some(Kind::Word) && self.str(index).eq_ignore_ascii_case(word)
    }

    /// Whether the tokens from `index` on are these bare words.
    pub fn are(&self, index: usize, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(offset, word)| self.is(index + offset, word))
    }

    pub fn is_symbol(&self, index: usize, symbol: &str) -> bool {
        self.kind(index) == Some(Kind::Symbol) && self.str(index) == symbol
    }

    /// The name that token `index` spells, without its quotes. A string counts, because SQLite takes
    /// `'t'` for a name where only a name can stand.
    pub fn name(&self, index: usize) -> Option<String> {
        let text = self.str(index);
        match self.kind(index)? {
            Kind::Word => Some(text.to_owned()),
            Kind::Name | Kind::Text => Some(unquote(text)),
            Kind::Blob | Kind::Number | Kind::Parameter | Kind::Symbol => None,
        }
    }

    /// The index of the `)` that closes the `(` at `open`, or of the end.
    pub fn closing(&self, open: usize) -> usize {
        let mut depth = 0usize;
        for index in open..self.len() {
            if self.is_symbol(index, "(") {
                depth += 1;
            } else if self.is_symbol(index, ")") {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return index;
                }
            }
        }
        self.len()
    }

    /// The text from token `from` up to (not including) token `to`, without the blanks around it.
    pub fn slice(&self, from: usize, to: usize) -> &'a str {
        if from >= to || from >= self.len() {
            return "";
        }
        &self.text[self.list[from].start..self.list[to.min(self.len()) - 1].end]
    }

    /// Where token `index` starts in the text; the text's end beyond the last token.
    pub fn offset(&self, index: usize) -> usize {
        self.list.get(index).map_or(self.text.len(), |token| token.start)
    }
}

/// The name inside quotes: the doubled closing quote stands for itself.
pub(crate) fn unquote(text: &str) -> String {
    let mut chars = text.chars();
    let inner = match (chars.next(), chars.next_back()) {
        (Some(_), Some(_)) => chars.as_str(),
        _ => return String::new(),
    };
    match text.as_bytes()[0] {
        b'"' => inner.replace("\"\"", "\""),
        b'`' => inner.replace("``", "`"),
        b'\'' => inner.replace("''", "'"),
        _ => inner.to_owned(),
    }
}

/// `name` in double quotes, safe to put into a statement.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The first place from `at` on that is neither white space nor comment.
fn skip_blank(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0c => at += 1,
            b'-' if bytes.get(at + 1) == Some(&b'-') => {
                at += bytes[at..].iter().position(|&byte| byte == b'\n')?;
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let rest = bytes.get(at + 2..)?;
                at += 4 + rest.windows(2).position(|pair| pair == b"*/")?;
            }
            0xef if bytes[at..].starts_with(b"\xef\xbb\xbf") => at += 3, // a byte order mark is white space
            _ => return Some(at),
        }
    }
}

/// The block comments before the first token: where each begins, and what is in it.
pub(crate) fn leading_comments(text: &str) -> Vec<(usize, &str)> {
    let end = skip_blank(text.as_bytes(), 0).unwrap_or(text.len());
    let mut found = Vec::new();
    let mut at = 0;
    while at < end {
        let rest = &text[at..end];
        if rest.starts_with("--") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if let Some(comment) = rest.strip_prefix("/*") {
            let Some(length) = comment.find("*/") else { break };
            found.push((at, &comment[..length]));
            at += length + 4;
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    found
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

fn run(bytes: &[u8], at: usize, belongs: impl Fn(u8) -> bool) -> usize {
    at + bytes[at..].iter().take_while(|&&byte| belongs(byte)).count()
}

fn token_at(text: &str, at: usize) -> Result<(Kind, usize), SqlError> {
    let bytes = text.as_bytes();
    let next = bytes.get(at + 1).copied().unwrap_or(0);
    match bytes[at] {
        b'x' | b'X' if next == b'\'' => blob(text, at),
        b'\'' => Ok((Kind::Text, quoted(text, at, b'\'')?)),
        b'"' => Ok((Kind::Name, quoted(text, at, b'"')?)),
        b'`' => Ok((Kind::Name, quoted(text, at, b'`')?)),
        b'[' => bytes[at..]
            .iter()
            .position(|&byte| byte == b']')
            .map(|length| (Kind::Name, at + length + 1))
            .ok_or_else(|| unterminated(text, at, "]")),
        b'0'..=b'9' => number(text, at),
        b'.' if next.is_ascii_digit() => number(text, at),
        b'?' => Ok((Kind::Parameter, run(bytes, at + 1, |byte| byte.is_ascii_digit()))),
        b':' | b'@' | b'$' if is_word_byte(next) => Ok((Kind::Parameter, run(bytes, at + 1, is_word_byte))),
        byte if byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80 => {
            Ok((Kind::Word, run(bytes, at, is_word_byte)))
        }
        _ => symbol(text, at),
    }
}

fn symbol(text: &str, at: usize) -> Result<(Kind, usize), SqlError> {
    const SYMBOLS: [&str; 27] = [
        "->>", "->", "||", "<<", "<=", "<>", ">>", ">=", "==", "!=", "-", "|", "<", ">", "=", "&", "~", "+", "*", "/",
        "%", ",", ";", "(", ")", ".", "",
    ];
    let found = SYMBOLS.iter().find(|symbol| text[at..].starts_with(**symbol)).map_or(0, |symbol| symbol.len());
    if found > 0 {
        return Ok((Kind::Symbol, at + found));
    }
    let odd = text[at..].chars().next().unwrap_or(' ');
    Err(SqlError::syntax(format!("unrecognized character {odd:?}"))
        .hint("names with unusual characters go in double quotes, values in single quotes or parameters")
        .at(text, at))
}

/// The end of the quoted token at `at`, where a doubled quote stands for itself.
fn quoted(text: &str, at: usize, mark: u8) -> Result<usize, SqlError> {
    let bytes = text.as_bytes();
    let mut end = at + 1;
    while let Some(&byte) = bytes.get(end) {
        end += 1;
        if byte == mark {
            if bytes.get(end) != Some(&mark) {
                return Ok(end);
            }
            end += 1;
        }
    }
    Err(unterminated(text, at, &char::from(mark).to_string()))
}

fn unterminated(text: &str, at: usize, mark: &str) -> SqlError {
    SqlError::syntax(format!("the quote that opens here is never closed by {mark}")).at(text, at)
}

fn blob(text: &str, at: usize) -> Result<(Kind, usize), SqlError> {
    let end = quoted(text, at + 1, b'\'')?;
    let digits = &text[at + 2..end - 1];
    if digits.len().is_multiple_of(2) && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Ok((Kind::Blob, end));
    }
    Err(SqlError::syntax("a blob literal needs an even number of hexadecimal digits").at(text, at))
}

fn number(text: &str, at: usize) -> Result<(Kind, usize), SqlError> {
    let bytes = text.as_bytes();
    let digits = |from: usize| run(bytes, from, |byte| byte.is_ascii_digit() || byte == b'_');
    let mut end = at;
    if bytes[at] == b'0' && matches!(bytes.get(at + 1), Some(b'x' | b'X')) {
        end = run(bytes, at + 2, |byte| byte.is_ascii_hexdigit() || byte == b'_');
    } else {
        end = digits(end);
        if bytes.get(end) == Some(&b'.') {
            end = digits(end + 1);
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            if bytes.get(end + 1 + sign).is_some_and(u8::is_ascii_digit) {
                end = digits(end + 1 + sign);
            }
        }
    }
    if bytes.get(end).copied().is_some_and(is_word_byte) {
        let shown = &text[at..run(bytes, end, is_word_byte)];
        return Err(SqlError::syntax(format!("{shown} is neither a number nor a name"))
            .hint("a name that starts with a digit goes in double quotes")
            .at(text, at));
    }
    Ok((Kind::Number, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let tokens = Tokens::of(text).unwrap();
        (0..tokens.len()).map(|index| tokens.str(index).to_owned()).collect()
    }

    #[test]
    fn sqlite_quoting_and_comments() {
        assert_eq!(words("a/* ; */--x ;\n;b"), ["a", ";", "b"]);
        assert_eq!(words(r#"'a\';"b""c"[d"]`e``f`"#), [r"'a\'", ";", r#""b""c""#, r#"[d"]"#, "`e``f`"]);
        assert_eq!(words("'it''s'"), ["'it''s'"]);
        assert_eq!(words("x'0aFF' X''"), ["x'0aFF'", "X''"]);
        assert_eq!(words("k->>'$.a'->2"), ["k", "->>", "'$.a'", "->", "2"]);
        assert_eq!(words("?,?12,:a,@b,$1 é"), ["?", ",", "?12", ",", ":a", ",", "@b", ",", "$1", "é"]);
        assert_eq!(words("1.5e-3+.5+0x1F+1_000"), ["1.5e-3", "+", ".5", "+", "0x1F", "+", "1_000"]);
        assert_eq!(words("a /* open"), ["a"]);
    }

    #[test]
    fn what_is_no_token_is_refused_with_its_place() {
        for (text, column) in [("a 'b", 3), ("a \"b", 3), ("[x", 1), ("x'abc'", 1), ("12ab", 1), ("a ^ b", 3), ("{", 1)]
        {
            let error = Tokens::of(text).unwrap_err();
            assert_eq!(error.sqlstate(), "42601", "{text}");
            assert_eq!(error.position.unwrap().column, column, "{text}");
        }
    }
}
