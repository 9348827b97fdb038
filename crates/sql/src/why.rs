//! Why something is not left to the shards: the data behind EXPLAIN's last lines.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A piece of a statement that the shards do not answer on their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotPushed {
    /// The beginning of the piece, as the user wrote it.
    pub what: String,
    pub why: Why,
}

/// Why the shards' own answers would not add up to the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// A function that answers differently at each call.
    Volatile,
    /// Pleat's own names are used.
    Reserved,
    /// A column is named with its schema, as `main.t.a`.
    SchemaName,
    /// A single table takes part.
    Single,
    /// Sharded tables are not joined on their shard keys.
    Join,
    /// An outer join would add its NULLs on every shard.
    OuterJoin,
    /// A subquery needs rows of other shards.
    Subquery,
    /// Aggregates over all rows.
    Totals,
    /// Groups without the shard key.
    Groups,
    /// A column outside GROUP BY.
    BareColumn,
    /// An aggregate whose parts can't be merged.
    Aggregate,
    /// `DISTINCT` without the shard key.
    Distinct,
    /// A window without the shard key in `PARTITION BY`.
    Window,
    /// `LIMIT` inside the statement.
    Limit,
    /// A LIMIT or OFFSET that is not a plain number.
    LimitValue,
    /// A recursive CTE over sharded tables.
    Recursive,
    /// Sides of a UNION, INTERSECT or EXCEPT whose rows can't be matched shard by shard.
    Compound,
    /// An order that can't be reproduced between shards.
    Order,
    /// The order of a subquery's rows would be lost.
    InnerOrder,
    /// Columns whose names, types or collations are not known beforehand.
    Columns,
    /// Text with a collation other than BINARY.
    Collation,
    /// A form that Pleat does not look into.
    Form,
}

impl Why {
    /// The reason in a user's words.
    pub fn text(self) -> &'static str {
        match self {
            Why::Volatile => "a function in it answers differently at each call",
            Why::Reserved => "a name in it is also one of Pleat's",
            Why::SchemaName => "a column in it is named with its schema",
            Why::Single => "a single table is on one shard only",
            Why::Join => "its sharded tables are not joined on their shard keys",
            Why::OuterJoin => "every shard would add the rows of the outer join that have no partner",
            Why::Subquery => "a subquery in it reads rows of other shards",
            Why::Totals => "its aggregates are over the rows of all shards",
            Why::Groups => "a group may have rows on several shards: GROUP BY does not contain the shard key",
            Why::BareColumn => "SQLite picks the value of a column outside GROUP BY from one row of all",
            Why::Aggregate => "an aggregate in it can't be merged from parts",
            Why::Distinct => "equal rows may be on several shards: the shard key is not among the columns",
            Why::Window => "a window may have rows on several shards: PARTITION BY does not contain the shard key",
            Why::Limit => "LIMIT counts the rows of all shards",
            Why::LimitValue => "its LIMIT or OFFSET is not a plain number",
            Why::Recursive => "a recursive query needs all rows at each step",
            Why::Compound => "equal rows of its sides may be on different shards",
            Why::Order => "its order can't be reproduced between shards",
            Why::InnerOrder => "the order of a subquery's rows may matter",
            Why::Columns => "its columns are not known beforehand",
            Why::Collation => "it compares text with a collation of its own",
            Why::Form => "Pleat does not look into this form",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.text())
    }
}
