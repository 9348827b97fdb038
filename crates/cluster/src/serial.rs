//! Columns of servers' tables whose values Pleat gives.

use serde::{Deserialize, Serialize};

use crate::Table;

/// A column that counts (`serial`, `GENERATED … AS IDENTITY`, `DEFAULT nextval(…)`). On a table that is not single each server has such a
/// sequence, and none of them is used: Pleat gives the values, from the ledger's blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serial {
    /// The sequence's schema and name, case kept.
    pub schema: String,
    pub sequence: String,
    /// GENERATED ALWAYS: an INSERT that gives a value is refused, unless it says OVERRIDING SYSTEM VALUE.
    pub always: bool,
    /// The first value that it gives, and the last.
    pub first: i64,
    pub last: i64,
    /// A unique constraint holds over all shards for no other reason than that Pleat gives the values: nobody else may.
    pub sole: bool,
}

impl Serial {
    /// `"schema"."sequence"`.
    pub fn qualified(&self) -> String {
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        format!("{}.{}", quoted(&self.schema), quoted(&self.sequence))
    }
}

/// What a server runs so that its own sequences give no value for these tables: it would be one that another server gives, too. `None`: there
/// is nothing to withhold.
///
/// They are set to their ends, so whatever asks one (a trigger, a function, a statement that was planned before the table was Pleat's) gets an error,
/// `2200H`. That is no part of a server's schema: a server that gets the schema of another has to run it as well.
///
/// `setval` alone would outlast a rollback. Behind ALTER SEQUENCE … RESTART it doesn't: that gives the sequence another file, which is the
/// transaction's own until it is committed.
pub fn withhold<'t>(tables: impl IntoIterator<Item = &'t Table>) -> Option<String> {
    let names: Vec<String> = tables.into_iter().filter_map(|table| Some(table.serial()?.1.qualified())).collect();
    let restarts: String = names.iter().map(|name| format!("ALTER SEQUENCE {name} RESTART; ")).collect();
    let literals: Vec<String> = names.iter().map(|name| format!("'{}'::regclass", name.replace('\'', "''"))).collect();
    let list = literals.join(", ");
    (!names.is_empty())
        .then(|| format!("{restarts}SELECT setval(seqrelid, seqmax, true) FROM pg_sequence WHERE seqrelid IN ({list})"))
}
