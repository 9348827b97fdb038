//! `INSERT … VALUES` into a sharded table: every row says its key, and goes to the key's owner.
//!
//! Rows on different shards can't meet: the primary key and every UNIQUE contain the shard key (or an id that Pleat
//! gives), so conflicts, upserts and REPLACE concern rows of one shard, and their order there stays.

use std::collections::BTreeSet;
use std::sync::Arc;

use pleat_cluster::{KeyError, KeyType, PartitionId, Table, Value, partition_of};

use super::compose::{Composer, Snippet};
use super::ids::RowIds;
use crate::error::{Code, SqlError};
use crate::read::Bound;
use crate::tree::Constant;

/// The rows of an INSERT, each with its text and its key.
#[derive(Clone, Debug)]
pub(crate) struct RowsPlan {
    pub key: KeyColumn,
    text: Arc<Text>,
    keys: Vec<Constant>,
    pub ids: Option<RowIds>,
}

/// The statement around its rows, and the rows.
#[derive(Debug)]
pub(crate) struct Text {
    /// Up to VALUES.
    pub before: Snippet,
    /// The items of each row.
    pub rows: Vec<Snippet>,
    /// ON CONFLICT and RETURNING.
    pub after: Snippet,
}

/// The shard key of the written table.
#[derive(Clone, Debug)]
pub(crate) struct KeyColumn {
    pub table: String,
    pub column: String,
    pub key_type: KeyType,
}

/// An INSERT whose rows go to different shards.
#[derive(Clone, Debug)]
pub struct RowsWrite {
    text: Arc<Text>,
    partitions: Vec<PartitionId>,
    values: Vec<Value>,
}

impl RowsPlan {
    pub fn new(key: KeyColumn, text: Text, keys: Vec<Constant>, ids: Option<RowIds>) -> Self {
        RowsPlan { key, text: Arc::new(text), keys, ids }
    }

    /// The partition of each row.
    pub fn partitions(&self, values: &[Value], count: u32) -> Result<Vec<PartitionId>, SqlError> {
        if let Some(ids) = self.ids.as_ref().filter(|ids| !ids.may_be_given && ids.given(values).is_some()) {
            return Err(ids.refused());
        }
        self.keys.iter().enumerate().map(|(row, key)| self.key.partition(row, key.value(values), count)).collect()
    }

    pub fn all(&self, values: &[Value]) -> Bound {
        self.text.compose(0..self.text.rows.len()).bind(values)
    }

    pub fn bind(&self, values: &[Value], count: u32) -> Result<RowsWrite, SqlError> {
        let partitions = self.partitions(values, count)?;
        Ok(RowsWrite { text: self.text.clone(), partitions, values: values.to_vec() })
    }
}

impl Text {
    fn compose(&self, rows: impl Iterator<Item = usize>) -> crate::read::Template {
        let mut composer = Composer::default();
        composer.snippet(&self.before).text("VALUES").list(rows, |composer, row| {
            composer.text("(").snippet(&self.rows[row]).text(")");
        });
        composer.snippet(&self.after);
        composer.template()
    }
}

impl RowsWrite {
    /// The partitions of the rows.
    pub fn partitions(&self) -> BTreeSet<PartitionId> {
        self.partitions.iter().copied().collect()
    }

    /// The partition of the last row: its shard's `last_insert_rowid` is the statement's.
    pub fn last(&self) -> Option<PartitionId> {
        self.partitions.last().copied()
    }

    /// The statement with only the rows of these partitions, in order; `None` when there are none.
    pub fn on(&self, partitions: &BTreeSet<PartitionId>) -> Option<Bound> {
        let wanted = |row: &usize| self.partitions.get(*row).is_some_and(|partition| partitions.contains(partition));
        let mut rows = (0..self.partitions.len()).filter(wanted).peekable();
        rows.peek()?;
        Some(self.text.compose(rows).bind(&self.values))
    }
}

impl KeyColumn {
    pub fn of(table: &Table) -> Option<KeyColumn> {
        let (column, key_type) = table.shard_key()?;
        Some(KeyColumn { table: table.name.clone(), column: column.to_owned(), key_type })
    }

    /// The partition of row `row` (from 0), whose key is `value`.
    pub fn partition(&self, row: usize, value: &Value, count: u32) -> Result<PartitionId, SqlError> {
        partition_of(value, self.key_type, count).map_err(|error| match error {
            KeyError::Null => self.null().hint(format!("row {} needs a value for {}", row + 1, self.column)),
            KeyError::Type { wanted, found } => {
                let (table, column) = (&self.table, &self.column);
                let message =
                    format!("row {}: the shard key {table}.{column} holds {wanted} values, not this {found}", row + 1);
                SqlError::new(Code::KeyType, message).hint(format!("give {column} as {wanted}"))
            }
        })
    }

    pub fn null(&self) -> SqlError {
        let message =
            format!("the shard key {}.{} can't be NULL: every row needs one to have an owner", self.table, self.column);
        SqlError::new(Code::NullKey, message)
    }
}
