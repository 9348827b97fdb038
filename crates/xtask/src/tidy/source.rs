//! What must not stand in a file.

use super::Complaint;
use super::layers::PURE;

/// The most lines of a source file. Those that are good to read have about 250.
const LINES_MAX: usize = 800;

/// Left behind by someone who meant to come back.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!"];

/// What the pure crates get as arguments, if at all.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::time",
    "std::thread",
    "std::process",
    "std::env",
    "SystemTime",
    "Instant::now",
    "tokio::",
    "rusqlite::",
    "rand::",
];

/// Folders of one machine; written in two parts, so as not to be found here.
const MACHINE_FOLDERS: &[&str] = &[concat!("/", "work/"), concat!("/", "root/"), concat!("/", "home/")];

/// Check one file, named from the repository's root.
pub fn check(path: &str, text: &str) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let mut complain = |line: usize, what: String| complaints.push(format!("{path}:{}: {what}", line + 1));
    for (number, line) in text.lines().enumerate() {
        for folder in MACHINE_FOLDERS.iter().filter(|folder| is_at_word(line, folder)) {
            complain(number, format!("{folder} is a folder of one machine"));
        }
    }
    if !path.ends_with(".rs") {
        return complaints;
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        complain(lines, format!("{lines} lines are more than {LINES_MAX}; what are the parts of this file?"));
    }
    if path.contains("/src/") && !text.starts_with("//!") {
        complain(0, "the module's chapter is missing (`//!` on the first line)".to_string());
    }
    let pure = PURE.iter().any(|name| path.starts_with(&format!("crates/{name}/src/"))) && !path.ends_with("/tests.rs");
    let mut in_tests = false;
    for (number, line) in code_only(text).lines().enumerate() {
        in_tests |= line.trim() == "#[cfg(test)]";
        for word in UNFINISHED.iter().filter(|word| is_at_word(line, word)) {
            complain(number, format!("{word} must not stay"));
        }
        for word in IMPURE.iter().filter(|word| pure && !in_tests && is_at_word(line, word)) {
            complain(number, format!("{word} in a pure crate; make it an argument"));
        }
    }
    complaints
}

/// Whether `word` stands in the line, not as the end of a longer word.
fn is_at_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '-' || c == '.' || c == '$' || c == '}')
    })
}

/// The text with comments and the contents of strings blanked out, line by line as it was. Raw strings count as
/// strings; a quote as a character does not open one.
fn code_only(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            string_end(rest)
        } else if rest.starts_with("r\"") || rest.starts_with("r#") {
            raw_string_end(rest).unwrap_or(0)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            rest[1..].find('\'').map_or(rest.len(), |end| end + 2)
        } else {
            0
        };
        if skipped == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            out.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
            rest = &rest[skipped..];
        }
    }
    out
}

fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn raw_string_end(text: &str) -> Option<usize> {
    let hashes = text[1..].chars().take_while(|c| *c == '#').count();
    // `r#name` is an identifier.
    text[1 + hashes..].starts_with('"').then_some(())?;
    let end = format!("\"{}", "#".repeat(hashes));
    let body = 2 + hashes;
    Some(text[body..].find(&end).map_or(text.len(), |at| body + at + end.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_plan(code: &str) -> String {
        check("crates/plan/src/x.rs", &format!("//! Chapter.\n{code}")).join("; ")
    }

    #[test]
    fn impure_code_in_a_pure_crate_is_found_but_not_words_about_it() {
        assert_eq!(
            in_plan("use std::time::Instant;"),
            "crates/plan/src/x.rs:2: std::time in a pure crate; make it an argument"
        );
        assert_eq!(
            in_plan("// std::time is an argument\nconst A: &str = \"std::fs\";\nconst B: &str = r#\"tokio::\"#;"),
            ""
        );
        assert_eq!(in_plan("const QUOTE: char = '\"'; use std::net::IpAddr;").matches("std::net").count(), 1);
        assert_eq!(in_plan("#[cfg(test)]\nmod tests { use std::fs; }"), "");
        assert_eq!(check("crates/engine/src/x.rs", "//! C.\nuse std::time::Instant;"), Vec::<String>::new());
    }

    #[test]
    fn unfinished_code_is_found_anywhere() {
        let unfinished = format!("fn f() {{ {}!() }}", "todo");
        assert!(in_plan(&unfinished).contains("must not stay"));
    }

    #[test]
    fn a_file_needs_a_chapter_and_an_end() {
        assert!(check("crates/a/src/x.rs", "fn f() {}").join("").contains("chapter"));
        assert_eq!(check("crates/a/tests/x.rs", "fn f() {}"), Vec::<String>::new());
        let long = "//! Chapter.\n".to_string() + &"\n".repeat(LINES_MAX);
        assert!(check("crates/a/src/x.rs", &long).join("").contains("more than 800"));
    }

    #[test]
    fn folders_of_one_machine_are_found_in_any_file() {
        let line = format!("see {}me/notes", MACHINE_FOLDERS[2]);
        assert_eq!(check("README.md", &line).len(), 1);
        assert_eq!(check("README.md", "$HOME/work/x and network/work/y"), Vec::<String>::new());
    }
}
