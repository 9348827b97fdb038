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
