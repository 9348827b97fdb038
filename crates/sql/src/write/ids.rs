//! Ids that Pleat gives: the `INTEGER PRIMARY KEY` of a sharded table, where a row leaves it out.
//!
//! SQLite would give the largest id of the *shard* plus one, and two shards would give the same. So ids come from a
//! counter of the cluster: the caller asks [`WritePlan::ids_wanted`](super::WritePlan::ids_wanted), gets a block of so many ids that were never
//! given before, and hands it to `route` or `spread`, which put the ids into the rows as values. When the id is the
//! shard key it decides where the row goes. A table on a cluster of one shard takes the same way, since it may spread.
//!
//! Ids that a statement gives itself must never be given again: a caller's blocks begin above the largest id in the table
//! and in the request, and an id that was given by hand into a block is met as a duplicate, upon which the write goes again with other ids.
//!
//! **A repeated request must get the same ids**, or a row whose id decides its shard would be written twice: the second
//! time elsewhere, where nobody knows the request's idempotency key. So the caller keeps the block with the key.

use std::collections::BTreeMap;

use pleat_cluster::{Table, TableId, Value};
use serde::{Deserialize, Serialize};

use crate::error::{Code, SqlError};
use crate::tree::Constant;

/// How many ids a request needs from a table's counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdsWanted {
    pub table: TableId,
    /// The table's name, as declared.
    pub name: String,
    pub count: u64,
    /// The largest id that rows of the same request bring. The ids must be above it.
    pub above: Option<i64>,
}

/// Blocks of ids, one for each table that wants some: `first`, `first + 1`, and so on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    first: BTreeMap<TableId, i64>,
}

impl Ids {
    /// For requests that want none.
    pub fn none() -> Self {
        Ids::default()
    }

    /// Adds the block for `table` that starts at `first`.
    pub fn with(mut self, table: TableId, first: i64) -> Self {
        self.first.insert(table, first);
        self
    }
}

impl Ids {
    pub(crate) fn first(&self, table: TableId) -> Option<i64> {
        self.first.get(&table).copied()
    }
}

/// The id that SQLite stores for a value given for an `INTEGER PRIMARY KEY`; `None` for what it refuses.
pub(crate) fn id_of(value: &Value) -> Option<i64> {
    let limit = 9_223_372_036_854_775_808.0; // 2^63, exact as f64
    match value {
        Value::Integer(id) => Some(*id),
        Value::Real(real) => (real.fract() == 0.0 && *real >= -limit && *real < limit).then_some(*real as i64),
        Value::Text(text) => text.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']).parse().ok(),
        Value::Null | Value::Blob(_) => None,
    }
}

/// The column whose values Pleat gives: the `INTEGER PRIMARY KEY` of a sharded table.
pub(crate) fn id_column(table: &Table) -> Option<&str> {
    let id = table.primary_key.first().filter(|_| table.rowid_alias && table.shard_key().is_some())?;
    Some(id)
}

/// Whether ids may be given by hand: only where the id decides the shard, which then sees two rows that have the same one.
pub(crate) fn may_be_given(table: &Table) -> bool {
    match (id_column(table), table.shard_key()) {
        (Some(id), Some((key, _))) => id.eq_ignore_ascii_case(key),
        _ => true,
    }
}

pub(crate) fn given_refused(table: &str, id: &str) -> SqlError {
    SqlError::unsupported(format!(
        "{table}.{id} is given by Pleat: a shard can't see whether another one has a row with that id"
    ))
    .hint(format!("leave {id} out (RETURNING {id} tells it), or shard the table by {id}"))
}

/// Hands out ids, statement after statement.
#[derive(Debug)]
pub(crate) struct Giver<'i> {
    ids: &'i Ids,
    given: BTreeMap<TableId, i64>,
}

impl<'i> Giver<'i> {
    pub fn new(ids: &'i Ids) -> Self {
        Giver { ids, given: BTreeMap::new() }
    }

    /// The next id for `table`.
    pub fn next(&mut self, table: TableId, name: &str, column: &str) -> Result<Value, SqlError> {
        let given = self.given.entry(table).or_default();
        let id = self.ids.first(table).and_then(|first| first.checked_add(*given));
        *given += 1;
        id.map(Value::Integer).ok_or_else(|| {
            SqlError::new(Code::NullKey, format!("a row for {name} has no {column}, and no id was given for it"))
                .hint(format!("give {column} a value"))
        })
    }
}

/// The ids of the rows of one `INSERT … VALUES`.
#[derive(Clone, Debug)]
pub(crate) struct RowIds {
    pub table: TableId,
    pub name: String,
    pub column: String,
    pub may_be_given: bool,
    /// What each row says for its id.
    pub rows: Vec<Constant>,
    /// The slot of the first row's id.
    pub base: usize,
}

impl RowIds {
    fn said<'v>(&'v self, values: &'v [Value]) -> impl Iterator<Item = &'v Value> {
        self.rows.iter().map(|row| row.value(values))
    }

    pub fn wanted(&self, values: &[Value]) -> u64 {
        self.said(values).filter(|value| **value == Value::Null).count() as u64
    }

    pub fn given(&self, values: &[Value]) -> Option<i64> {
        self.said(values).filter_map(id_of).max()
    }

    pub fn refused(&self) -> SqlError {
        given_refused(&self.name, &self.column)
    }

    /// Appends each row's id to `values`, whose length is `base`.
    pub fn fill(&self, values: &mut Vec<Value>, giver: &mut Giver) -> Result<(), SqlError> {
        for row in &self.rows {
            let value = match row.value(values).clone() {
                Value::Null => giver.next(self.table, &self.name, &self.column)?,
                value => value,
            };
            values.push(value);
        }
        Ok(())
    }
}

/// The ids of rows that come as values, for bulk loading.
///
/// ```text
/// if let Some(ids) = BulkIds::of(table, &columns) {
///     if let Some(wanted) = ids.wanted(&rows)? {
///         get ids for `wanted`, then ids.fill(&mut columns, &mut rows, first)
///     }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct BulkIds<'t> {
    table: &'t Table,
    column: &'t str,
    /// Where the id is among the columns, if it is there.
    place: Option<usize>,
}

impl<'t> BulkIds<'t> {
    /// `None` when the table's ids are none of Pleat's business.
    pub fn of(table: &'t Table, columns: &[String]) -> Option<Self> {
        let column = id_column(table)?;
        let place = columns.iter().position(|name| name.eq_ignore_ascii_case(column));
        Some(BulkIds { table, column, place })
    }

    fn said<'r>(&self, row: &'r [Value]) -> &'r Value {
        self.place.and_then(|place| row.get(place)).unwrap_or(&Value::Null)
    }

    /// The ids that the rows want. An error when rows bring ids that only Pleat may give.
    pub fn wanted<'r>(&self, rows: impl IntoIterator<Item = &'r [Value]>) -> Result<Option<IdsWanted>, SqlError> {
        let (mut count, mut above) = (0, None);
        for row in rows {
            match self.said(row) {
                Value::Null => count += 1,
                _ if !may_be_given(self.table) => return Err(given_refused(&self.table.name, self.column)),
                value => above = above.max(id_of(value)),
            }
        }
        let wanted = || IdsWanted { table: self.table.id, name: self.table.name.clone(), count, above };
        Ok((count > 0).then(wanted))
    }

    /// Gives the rows without an id `first`, `first + 1` and so on. Adds the column if it is not there.
    pub fn fill<'r>(&self, columns: &mut Vec<String>, rows: impl IntoIterator<Item = &'r mut Vec<Value>>, first: i64) {
        let place = self.place.unwrap_or(columns.len());
        if self.place.is_none() {
            columns.push(self.column.to_owned());
        }
        let mut next = first;
        for row in rows {
            // A row that is too short or too long stays so, to be rejected as what it is.
            if self.place.is_none() {
                row.insert(place.min(row.len()), Value::Null);
            }
            match row.get_mut(place) {
                Some(id) if *id == Value::Null => {
                    *id = Value::Integer(next);
                    next = next.saturating_add(1);
                }
                _ => {}
            }
        }
    }
}
