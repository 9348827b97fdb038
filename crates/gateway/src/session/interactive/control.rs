//! The statements that begin, end and mark transactions: `BEGIN`, `COMMIT`, `SAVEPOINT` and their like.
//!
//! They are few and have no expressions, so they are read word by word. SQLite's words and PostgreSQL's are
//! understood. An isolation level may be named; all of them get the strictest, as the standard allows.

use crate::session::Failure;

/// What a transaction is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    Begin(Mode),
    Commit,
    Rollback,
    Savepoint(String),
    Release(String),
    RollbackTo(String),
}

/// How a transaction begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// Take each shard's write lane at the first touch, so that no other write comes in between.
    pub immediate: bool,
    pub read_only: bool,
}

/// Words of a statement that are looked at: no statement of these has more.
const WORDS_MAX: usize = 16;

/// Whether a text begins like one of these statements.
pub(in crate::session) fn begins_so(text: &str) -> bool {
    let first = Words { rest: text }.next();
    first.is_some_and(|word| {
        let words = ["BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE"];
        words.iter().any(|known| word.eq_ignore_ascii_case(known))
    })
}

/// Read one statement. `None`: it is none of these.
pub(crate) fn read(text: &str) -> Option<Result<Control, Failure>> {
    begins_so(text).then(|| {
        let words: Vec<&str> = Words { rest: text.trim_end().trim_end_matches(';') }.take(WORDS_MAX + 1).collect();
        control(&words).ok_or_else(|| {
            Failure::new(
                "42601",
                format!("'{}' is not understood", text.trim().chars().take(80).collect::<String>()),
                "BEGIN [DEFERRED | IMMEDIATE | READ ONLY], COMMIT, ROLLBACK [TO name], SAVEPOINT name and RELEASE name are",
            )
        })
    })
}

fn control(words: &[&str]) -> Option<Control> {
    let is = |at: usize, word: &str| words.get(at).is_some_and(|given| given.eq_ignore_ascii_case(word));
    let skip = |at: usize| at + usize::from(is(at, "TRANSACTION") || is(at, "WORK"));
    let ends = |at: usize, control| (at == words.len()).then_some(control);
    match words.first()?.to_ascii_uppercase().as_str() {
        "BEGIN" => mode(&words[1..]).map(Control::Begin),
        "START" if is(1, "TRANSACTION") => mode(&words[2..]).map(Control::Begin),
        "COMMIT" | "END" => ends(skip(1), Control::Commit),
        "ABORT" => ends(skip(1), Control::Rollback),
        "ROLLBACK" => {
            let at = skip(1);
            if !is(at, "TO") {
                return ends(at, Control::Rollback);
            }
            let at = at + 1 + usize::from(is(at + 1, "SAVEPOINT") && words.len() > at + 2);
            ends(at + 1, Control::RollbackTo(name(words.get(at)?)?))
        }
        "SAVEPOINT" => ends(2, Control::Savepoint(name(words.get(1)?)?)),
        "RELEASE" => {
            let at = 1 + usize::from(is(1, "SAVEPOINT") && words.len() > 2);
            ends(at + 1, Control::Release(name(words.get(at)?)?))
        }
        _ => None,
    }
}

/// What stands behind `BEGIN`.
fn mode(words: &[&str]) -> Option<Mode> {
    let mut mode = Mode::default();
    let upper: Vec<String> = words.iter().map(|word| word.to_ascii_uppercase()).collect();
    let mut rest: Vec<&str> = upper.iter().map(String::as_str).filter(|word| *word != ",").collect();
    while !rest.is_empty() {
        let taken = match rest.as_slice() {
            ["IMMEDIATE" | "EXCLUSIVE", ..] => {
                mode.immediate = true;
                1
            }
            ["DEFERRED" | "TRANSACTION" | "WORK", ..] => 1,
            ["READ", "ONLY", ..] => {
                mode.read_only = true;
                2
            }
            ["READ", "WRITE", ..] | ["NOT", "DEFERRABLE", ..] => 2,
            ["DEFERRABLE", ..] => 1,
            ["ISOLATION", "LEVEL", "SERIALIZABLE", ..] => 3,
            ["ISOLATION", "LEVEL", "REPEATABLE", "READ", ..] => 4,
            ["ISOLATION", "LEVEL", "READ", "COMMITTED" | "UNCOMMITTED", ..] => 4,
            _ => return None,
        };
        rest.drain(..taken);
    }
    Some(mode)
}

/// A savepoint's name: case doesn't count unless it is quoted, as in SQLite, where it never does.
fn name(word: &str) -> Option<String> {
    let quoted = |quote: char| word.strip_prefix(quote)?.strip_suffix(quote);
    let bare = quoted('"').or_else(|| quoted('\'')).or_else(|| quoted('`')).unwrap_or(word);
    let plain = !bare.is_empty() && bare.chars().all(|letter| letter.is_alphanumeric() || "_-$".contains(letter));
    plain.then(|| bare.to_ascii_lowercase())
}

/// The words of a text: separated by blanks and comments; a comma is a word.
struct Words<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            self.rest = self.rest.trim_start();
            let after = match (self.rest.strip_prefix("--"), self.rest.strip_prefix("/*")) {
                (Some(comment), _) => comment.split_once('\n').map_or("", |(_, after)| after),
                (_, Some(comment)) => comment.split_once("*/").map_or("", |(_, after)| after),
                (None, None) => break,
            };
            self.rest = after;
        }
        let ends = |(at, letter): (usize, char)| {
            let comment = self.rest[at..].starts_with("--") || self.rest[at..].starts_with("/*");
            (letter.is_whitespace() || letter == ',' || letter == ';' || comment).then_some(at)
        };
        let end = self.rest.char_indices().find_map(ends).unwrap_or(self.rest.len());
        // A comma or a semicolon stands for itself.
        let end = if end == 0 { self.rest.chars().next()?.len_utf8() } else { end };
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_understood() {
        let begin = |immediate, read_only| Control::Begin(Mode { immediate, read_only });
        for (text, control) in [
            ("begin", begin(false, false)),
            ("BEGIN DEFERRED TRANSACTION;", begin(false, false)),
            ("BEGIN IMMEDIATE", begin(true, false)),
            ("begin exclusive transaction ;", begin(true, false)),
            ("BEGIN READ ONLY", begin(false, true)),
            ("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY", begin(false, true)),
            ("START TRANSACTION ISOLATION LEVEL SERIALIZABLE", begin(false, false)),
            ("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY NOT DEFERRABLE", begin(false, true)),
            ("/* a */ COMMIT -- now", Control::Commit),
            ("END TRANSACTION", Control::Commit),
            ("COMMIT WORK", Control::Commit),
            ("rollback", Control::Rollback),
            ("ABORT", Control::Rollback),
            ("ROLLBACK TRANSACTION TO SAVEPOINT a", Control::RollbackTo("a".into())),
            ("ROLLBACK TO \"A b\"", Control::Rollback),
            ("ROLLBACK TO savepoint", Control::RollbackTo("savepoint".into())),
            ("SAVEPOINT One", Control::Savepoint("one".into())),
            ("RELEASE SAVEPOINT 'one'", Control::Release("one".into())),
            ("RELEASE one", Control::Release("one".into())),
        ] {
            match read(text) {
                Some(Ok(read)) => assert_eq!(read, control, "{text}"),
                Some(Err(failure)) => assert!(text.contains("A b"), "{text}: {failure}"),
                None => panic!("{text}"),
            }
        }
    }

    #[test]
    fn what_is_not() {
        for text in
            ["BEGIN NOW", "COMMIT AND CHAIN", "SAVEPOINT", "ROLLBACK TO", "RELEASE a b", "BEGIN; COMMIT", "START"]
        {
            assert_eq!(read(text).unwrap().unwrap_err().code, "42601", "{text}");
        }
        for text in ["SELECT 1", "", "-- BEGIN", "BEGINNING", "INSERT INTO t VALUES ('COMMIT')"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
