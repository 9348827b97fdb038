//! What statements that differ in their values alone have in common.
//!
//! Statistics and logs are kept by this form. It holds no value of a user's, so it can be shown to whoever may see
//! statistics; and a statement that a program sends a million times, with a million keys, is one line.

use crate::lex::{Kind, Tokens};

/// Stands for any value.
const VALUE: &str = "?";
/// What a text that can't be read is known as.
const UNREADABLE: &str = "(not SQL)";

/// The text with values and parameters replaced by `?`, lists of them by `?, …`, without comments and needless white
/// space, cut to about `bytes_max`.
pub fn normalized(text: &str, bytes_max: usize) -> String {
    let Ok(tokens) = Tokens::of(text) else { return UNREADABLE.to_owned() };
    let mut out = Vec::new();
    for index in 0..tokens.len() {
        let token = match tokens.kind(index) {
            Some(Kind::Text | Kind::Blob | Kind::Number | Kind::Parameter) => VALUE,
            _ => tokens.str(index),
        };
        let spaced = index > 0 && tokens.list[index - 1].end < tokens.list[index].start;
        push(&mut out, (token, spaced));
    }
    while out.last().is_some_and(|(token, _)| *token == ";") {
        out.pop();
    }
    print(&out, bytes_max)
}

/// Add a token, and fold the list of values, or of rows, that it goes on with: `?, ?` and `(?), (?)`.
fn push<'a>(out: &mut Vec<(&'a str, bool)>, token: (&'a str, bool)) {
    out.push(token);
    let ends = |out: &[(&str, bool)], tokens: &[&str]| {
        out.len() >= tokens.len() && out[out.len() - tokens.len()..].iter().zip(tokens).all(|((a, _), b)| a == b)
    };
    for value in [[VALUE].as_slice(), &["(", VALUE, ")"], &["(", VALUE, ",", "…", ")"]] {
        let twice = [value, &[","], value].concat();
        let on = [value, &[",", "…", ","], value].concat();
        if ends(out, &on) {
            out.truncate(out.len() - value.len() - 1);
        } else if ends(out, &twice) {
            out.truncate(out.len() - value.len());
            out.push(("…", true));
        }
    }
}

fn print(tokens: &[(&str, bool)], bytes_max: usize) -> String {
    let mut text = String::new();
    let mut before = "";
    for (token, spaced) in tokens {
        let tight = match *token {
            "," | ")" | ";" | "." => true,
            "(" => !spaced,
            _ => matches!(before, "" | "(" | "."),
        };
        if !tight {
            text.push(' ');
        }
        if text.len() + token.len() > bytes_max {
            text.push('…');
            break;
        }
        text.push_str(token);
        before = token;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> String {
        normalized(text, 1_000)
    }

    #[test]
    fn values_white_space_and_comments_make_no_difference() {
        let one = of("SELECT name FROM users WHERE id = 7 AND t.v = 'x''y' -- why\n;");
        assert_eq!(one, "SELECT name FROM users WHERE id = ? AND t.v = ?");
        assert_eq!(one, of("/* pleat: no-scatter */ SELECT name\n FROM users WHERE id=?1 AND t.v= x'00'"));
        assert_ne!(one, of("SELECT name FROM users WHERE id = 7 OR t.v = 'x'"));
        assert_eq!(of("SELECT count( * ),max(a) FROM \"t 1\""), "SELECT count(*), max(a) FROM \"t 1\"");
    }

    #[test]
    fn lists_of_any_length_are_one() {
        assert_eq!(of("SELECT a FROM t WHERE k IN (1, 2,3 ,'4', ?)"), "SELECT a FROM t WHERE k IN (?, …)");
        assert_eq!(of("SELECT a FROM t WHERE k IN (1, 2)"), "SELECT a FROM t WHERE k IN (?, …)");
        assert_eq!(of("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (?, ?)"), "INSERT INTO t VALUES (?, …), …");
        assert_eq!(of("INSERT INTO t VALUES (1), (2), (3)"), "INSERT INTO t VALUES (?), …");
        assert_eq!(of("SELECT f(1, a, 2, 3)"), "SELECT f(?, a, ?, …)");
    }

    #[test]
    fn no_value_is_shown_whatever_the_text_is() {
        assert_eq!(of("SELECT 'secret"), "(not SQL)");
        let cut = normalized("SELECT 'secret' FROM a_table_with_a_name", 12);
        assert_eq!(cut, "SELECT ? …");
    }
}
