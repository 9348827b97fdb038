//! Views: named SELECTs. They have no rows: the catalog has their definitions, and whoever plans a statement writes them out in it. Embedded shards
//! know nothing of them; PostgreSQL servers have them, too, each over its own rows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The views of a catalog, by lower-case name. They share their names with tables.
pub type Views = BTreeMap<String, View>;

/// A view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// As declared, case kept.
    pub name: String,
    /// `CREATE VIEW name (columns) AS SELECT …`, as SQLite would keep it. Of PostgreSQL servers the `SELECT …` alone, as they tell it: each column
    /// has its name in it, and each table its schema.
    pub sql: String,
}

impl View {
    /// Whether a view of PostgreSQL servers names this table (`name` or `schema.name`) with its schema, as their text of it does.
    pub(crate) fn reads(&self, table: &str) -> bool {
        let (schema, name) = table.split_once('.').unwrap_or(("public", table));
        let forms = |name: &str| [name.to_owned(), format!("\"{}\"", name.replace('"', "\"\""))];
        let whole = |text: &str, at: usize, length: usize| {
            let word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
            !text[..at].ends_with(word) && !text[at + length..].starts_with(word)
        };
        forms(schema)
            .iter()
            .flat_map(|schema| forms(name).map(|name| format!("{schema}.{name}")))
            .any(|wanted| self.sql.match_indices(&wanted).any(|(at, found)| whole(&self.sql, at, found.len())))
    }
}

/// A view of PostgreSQL servers before a schema change and after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewChange {
    /// `None`: there was none. If the catalog has another one by then, the change is refused.
    pub before: Option<View>,
    /// `None`: it is dropped.
    pub after: Option<View>,
}

/// A view that has to say something else when a table or a column gets another name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewritten {
    /// As it was when this was planned; if it isn't any more, it stays as it is.
    pub before: View,
    pub after: View,
}
