//! What Tab offers: keywords, the cluster's tables, views, columns and triggers, and the shell's own commands.
//!
//! Names are asked of the cluster when the shell starts and after each change of a table through it. After `TABLE.` only that
//! table's columns are offered.

use std::collections::BTreeSet;

use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};
use serde_json::Value;

use crate::cli::client::Client;
use crate::cli::output;

const KEYWORDS: &[&str] = &[
    "ALTER TABLE",
    "ANALYZE",
    "AND",
    "AS",
    "ASC",
    "BETWEEN",
    "BY",
    "CASE",
    "CAST",
    "COALESCE",
    "COLUMN",
    "COUNT",
    "CREATE INDEX",
    "CREATE TABLE",
    "CREATE TRIGGER",
    "CREATE VIEW",
    "DEFAULT",
    "DELETE FROM",
    "DESC",
    "DISTINCT",
    "DROP INDEX",
    "DROP TABLE",
    "DROP TRIGGER",
    "DROP VIEW",
    "ELSE",
    "END",
    "EXCEPT",
    "EXISTS",
    "EXPLAIN",
    "FROM",
    "GROUP BY",
    "HAVING",
    "IN",
    "INSERT INTO",
    "INTEGER",
    "INTERSECT",
    "IS NOT NULL",
    "IS NULL",
    "JOIN",
    "LEFT JOIN",
    "LIKE",
    "LIMIT",
    "NOT NULL",
    "NULL",
    "OFFSET",
    "ON CONFLICT",
    "OR",
    "ORDER BY",
    "OVER",
    "PARTITION BY",
    "PRIMARY KEY",
    "REAL",
    "REFERENCE",
    "RETURNING",
    "SELECT",
    "SET",
    "SHARD BY",
    "SINGLE",
    "STRICT",
    "TEXT",
    "THEN",
    "UNION ALL",
    "UNIQUE",
    "UPDATE",
    "USING",
    "VALUES",
    "WHEN",
    "WHERE",
    "WITH",
    "WITHOUT ROWID",
];
/// The shell's own.
pub const COMMANDS: &[&str] = &["\\d", "\\di", "\\dt", "\\explain", "\\q", "\\shards", "\\timing", "\\?"];
/// Words that are offered at one time.
const OFFERED_MAX: usize = 100;

/// The names that can be completed.
#[derive(Debug, Default)]
pub struct Names {
    /// Each table with its columns, and triggers, which have none.
    tables: Vec<(String, Vec<String>)>,
}

impl Names {
    /// The cluster's names; none when it can't be asked now, which costs a convenience and no more.
    pub async fn of(client: &Client) -> Names {
        client.get("/tables").await.map(|answer| Names::from_json(&answer)).unwrap_or_default()
    }

    fn from_json(answer: &Value) -> Names {
        let columns =
            |table| output::items(table, "columns").iter().map(|column| output::text(column, "name")).collect();
        let tables = || output::items(answer, "tables").iter();
        let triggers = tables().flat_map(|table| output::items(table, "triggers"));
        let triggers = triggers.map(|trigger| (output::text(trigger, "name"), Vec::new()));
        Names { tables: tables().map(|table| (output::text(table, "name"), columns(table))).chain(triggers).collect() }
    }

    /// Where the word begins that ends at `pos`, and what it may become.
    fn offers(&self, line: &str, pos: usize) -> (usize, Vec<String>) {
        let before = &line[..pos];
        let start = before
            .rfind(|c: char| !c.is_alphanumeric() && c != '_' && c != '\\')
            .map_or(0, |at| at + before[at..].chars().next().map_or(1, char::len_utf8));
        let word = &before[start..];
        let fits = |offer: &&str| offer.len() > word.len() && offer.to_lowercase().starts_with(&word.to_lowercase());
        let owner = before[..start]
            .strip_suffix('.')
            .map(|rest| rest.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default());
        if let Some(owner) = owner {
            let columns =
                self.tables.iter().filter(|(table, _)| table.eq_ignore_ascii_case(owner)).flat_map(|(_, all)| all);
            return (
                start,
                columns.map(String::as_str).filter(|name| word.is_empty() || fits(name)).map(str::to_string).collect(),
            );
        }
        if word.starts_with('\\') {
            return (start, COMMANDS.iter().filter(|offer| fits(offer)).map(|offer| (*offer).to_string()).collect());
        }
        if word.is_empty() {
            return (start, Vec::new());
        }
        let small = word.chars().all(|c| !c.is_uppercase());
        let keyword = |offer: &&str| if small { offer.to_lowercase() } else { (*offer).to_string() };
        let names = self.tables.iter().flat_map(|(table, columns)| std::iter::once(table).chain(columns));
        let names: BTreeSet<&str> = names.map(String::as_str).filter(|name| fits(name)).collect();
        let mut offers: Vec<String> = names.into_iter().map(str::to_string).collect();
        offers.extend(KEYWORDS.iter().filter(|offer| fits(offer)).map(keyword));
        offers.truncate(OFFERED_MAX);
        (start, offers)
    }
}

impl Completer for Names {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.offers(line, pos))
    }
}

impl Hinter for Names {
    type Hint = String;
}

impl Highlighter for Names {}
impl Validator for Names {}
impl Helper for Names {}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn offers(line: &str) -> Vec<String> {
        let table = |name: &str, columns: &[&str]| json!({"name": name, "columns": columns.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()});
        let tables = [table("flights", &["id", "origin"]), table("planes", &["tailnum", "origin"])];
        Names::from_json(&json!({"tables": tables})).offers(line, line.len()).1
    }

    #[test]
    fn a_word_becomes_a_keyword_a_table_or_a_column() {
        assert_eq!(offers("SEL"), ["SELECT"]);
        assert_eq!(offers("select count(*) from fl"), ["flights"]);
        assert_eq!(offers("SELECT or"), ["origin", "order by"]);
        assert_eq!(offers("SELECT planes.t"), ["tailnum"]);
        assert_eq!(offers("SELECT PLANES."), ["tailnum", "origin"]);
        assert_eq!(offers("\\ex"), ["\\explain"]);
        assert!(offers("SELECT ").is_empty() && offers("SELECT nosuch.x").is_empty());
    }

    #[test]
    fn the_word_to_complete_begins_after_what_is_no_name() {
        let names = Names::default();
        assert_eq!(names.offers("SELECT 'ä',sel", 15).0, 12);
    }
}
