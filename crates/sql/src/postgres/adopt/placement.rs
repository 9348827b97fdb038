//! Where a table's rows would go.

use pleat_cluster::{KeyType, ShardId, TableKind};

use super::facts::TableFacts;

/// Where all that is single lives: the adopted database itself.
pub(super) const FIRST: ShardId = ShardId(1);
/// What a reference table may have, in rows and in bytes: each shard keeps all of it.
const REFERENCE_ROWS_MAX: u64 = 100_000;
const REFERENCE_BYTES_MAX: u64 = 64 << 20;
/// A reference table is read so many times for each change, which all shards have to make.
const READS_PER_CHANGE_MIN: u64 = 100;

/// Where a table's rows would go.
#[derive(Clone, Debug, PartialEq)]
pub enum Placed {
    Sharded { column: String, key_type: KeyType, why: Why },
    Reference,
    Single,
}

/// What leads to a shard key.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    /// The family is called after it.
    Root,
    /// This foreign key leads to that table, which is of the family.
    ForeignKey { name: String, to: String },
    /// It has a column that is called as those of the family are.
    Name,
    /// It stands for itself: its primary key.
    Own,
}

impl Placed {
    pub(super) fn kind(&self) -> TableKind {
        match self {
            Placed::Sharded { column, key_type, .. } => TableKind::Sharded { key: column.clone(), key_type: *key_type },
            Placed::Reference => TableKind::Reference,
            Placed::Single => TableKind::Single { shard: FIRST },
        }
    }

    /// `sharded`, `reference` or `single`.
    pub fn name(&self) -> &'static str {
        match self {
            Placed::Sharded { .. } => "sharded",
            Placed::Reference => "reference",
            Placed::Single => "single",
        }
    }

    pub fn column(&self) -> Option<&str> {
        match self {
            Placed::Sharded { column, .. } => Some(column),
            Placed::Reference | Placed::Single => None,
        }
    }
}

/// Whether each shard could well keep a copy of it: small, seldom written, and used together with others (foreign keys refer to it, or
/// statements name it with another table).
pub(super) fn may_be_reference(table: &TableFacts, used_with_others: bool) -> bool {
    let small = table.rows <= REFERENCE_ROWS_MAX && table.bytes <= REFERENCE_BYTES_MAX;
    table.oddity.is_none() && small && seldom_written(table) && used_with_others
}

/// Loading it once is no writing.
fn seldom_written(table: &TableFacts) -> bool {
    table.changes.saturating_sub(table.rows).saturating_mul(READS_PER_CHANGE_MIN) <= table.scans
}
