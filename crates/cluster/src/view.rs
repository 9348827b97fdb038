//! Views: named SELECTs. They have no rows, so no shard knows of them: the catalog has their definitions, and whoever
//! plans a statement writes them out in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The views of a catalog, by lower-case name. They share their names with tables.
pub type Views = BTreeMap<String, View>;

/// A view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// As declared, case kept.
    pub name: String,
    /// `CREATE VIEW name (columns) AS SELECT …`, as SQLite would keep it.
    pub sql: String,
}

/// A view that has to say something else when a table or a column gets another name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewritten {
    /// As it was when this was planned; if it isn't any more, it stays as it is.
    pub before: View,
    pub after: View,
}
