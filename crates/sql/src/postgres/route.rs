//! From a plan and its parameters to the shards.

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{KeyError, KeyType, PartitionId, ShardId, Value, partition_of};

use super::compose::Composer;
use super::plan::{Constant, Keyed, Part, Query, Route, Several};
use crate::error::{Code, SqlError};

/// Gives the value of a parameter (from 0); `None` when it can't be read exactly.
type Values<'v> = dyn Fn(usize) -> Option<Value> + 'v;

impl Query {
    /// The parameters (from 0) whose values the route depends on, and the type of the key that each is compared with.
    pub fn keys(&self) -> &[(usize, KeyType)] {
        &self.keys
    }

    /// Where the statement goes. A value that can't be read (or isn't one of the key's type) limits nothing: the statement is then asked of
    /// all shards. Where a row is to be stored it is an error: `22P02`, or `23502` for NULL.
    pub fn route(&self, value: &Values, partition_count: u32) -> Result<Route<'_>, SqlError> {
        let rows = self.plan.keyed.iter().map(|keyed| keyed.partitions(value, partition_count));
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        let known = union(&rows);
        let singles = &self.plan.singles;
        match (&self.plan.several, known) {
            (Several::Any | Several::Refused(_) | Several::Spread(_), Some(known))
                if known.is_empty() && singles.len() <= 1 =>
            {
                Ok(singles.first().map_or(Route::Any, |shard: &ShardId| Route::Single(*shard)))
            }
            (Several::Every { reference: false }, Some(known)) if known.is_empty() && !self.plan.keyed.is_empty() => {
                Ok(Route::Any)
            }
            (Several::Rows(_), Some(known)) if known.len() > 1 => Ok(Route::Rows(by_partition(&rows))),
            (Several::Every { reference: true }, known) => self.over_several(known),
            (_, Some(known)) if singles.is_empty() && !known.is_empty() => Ok(Route::Partitions(known)),
            (_, known) => self.over_several(known),
        }
    }

    /// Whether rows of these partitions could change what the statement does or answers, if they were where it runs: it then has to be sent there
    /// as [`Screen`](super::Screen) gives it. `false` when the keys of all rows that matter are known, and of other partitions.
    pub fn needs_screening(&self, value: &Values, absent: &BTreeSet<PartitionId>, partition_count: u32) -> bool {
        let touches = |keyed: &Keyed| match keyed.partitions(value, partition_count) {
            Ok(Some(known)) => !known.is_disjoint(absent),
            Ok(None) | Err(_) => true,
        };
        !absent.is_empty() && self.plan.keyed.iter().any(touches)
    }

    /// Where the statement goes when the partitions of [`Route::Partitions`] turn out to be on several shards. `0A000` when it can't be taken
    /// apart.
    pub fn scatter(&self, value: &Values, partition_count: u32) -> Result<Route<'_>, SqlError> {
        let rows = self.plan.keyed.iter().map(|keyed| keyed.partitions(value, partition_count));
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        if matches!(self.plan.several, Several::Rows(_)) {
            return Ok(Route::Rows(by_partition(&rows)));
        }
        self.over_several(union(&rows))
    }

    fn over_several(&self, known: Option<BTreeSet<PartitionId>>) -> Result<Route<'_>, SqlError> {
        let prune = known.filter(|known| !known.is_empty());
        match &self.plan.several {
            Several::Any => Ok(Route::Any),
            Several::Every { reference } => Ok(Route::Every { reference: *reference, prune }),
            Several::Spread(plan) => Ok(Route::Spread { plan, prune }),
            Several::Rows(_) => Ok(Route::Any),
            Several::Refused(error) => Err((**error).clone()),
        }
    }

    /// The INSERT for some of its rows (numbered from 0, as in [`Route::Rows`]); `None` if this is no INSERT … VALUES or a row is none of its.
    pub fn rows(&self, rows: &[usize]) -> Option<Part> {
        let Several::Rows(pieces) = &self.plan.several else { return None };
        let mut composer = Composer::default();
        composer.piece(&pieces.head);
        for (at, row) in rows.iter().enumerate() {
            composer.text(if at == 0 { " " } else { ", " });
            composer.piece(pieces.rows.get(*row)?);
        }
        composer.text(" ");
        composer.piece(&pieces.tail);
        (!rows.is_empty()).then(|| composer.part())
    }

    /// How many rows an INSERT … VALUES has that can be taken apart; else 0.
    pub fn row_count(&self) -> usize {
        match &self.plan.several {
            Several::Rows(pieces) => pieces.rows.len(),
            _ => 0,
        }
    }
}

/// All partitions, if those of each mention are known.
fn union(rows: &[Option<BTreeSet<PartitionId>>]) -> Option<BTreeSet<PartitionId>> {
    let mut all = BTreeSet::new();
    for row in rows {
        all.extend(row.as_ref()?);
    }
    Some(all)
}

fn by_partition(rows: &[Option<BTreeSet<PartitionId>>]) -> BTreeMap<PartitionId, Vec<usize>> {
    let mut found: BTreeMap<PartitionId, Vec<usize>> = BTreeMap::new();
    for (row, partitions) in rows.iter().enumerate() {
        for partition in partitions.iter().flatten() {
            found.entry(*partition).or_default().push(row);
        }
    }
    found
}

impl Keyed {
    /// The partitions of the keys; `None`: all.
    fn partitions(&self, value: &Values, partition_count: u32) -> Result<Option<BTreeSet<PartitionId>>, SqlError> {
        let Some(keys) = &self.keys else { return Ok(None) };
        let mut found = BTreeSet::new();
        for key in keys {
            let known = match key {
                Constant::Value(value) => Some(value.clone()),
                Constant::Param(at) => value(*at),
            };
            match (known, self.stored) {
                (None, true) => return Err(unreadable(key)),
                (None, false) => return Ok(None),
                (Some(value), true) => {
                    let stored = self.as_stored(value);
                    found.insert(partition_of(&stored, self.key_type, partition_count).map_err(not_stored)?);
                }
                // NULL equals nothing.
                (Some(Value::Null), false) => {}
                (Some(value), false) => match partition_of(&value, self.key_type, partition_count) {
                    Ok(partition) => {
                        found.insert(partition);
                    }
                    Err(_) => return Ok(None),
                },
            }
        }
        Ok(Some(found))
    }

    /// A `varchar(n)` silently loses the spaces that are too much; longer text is the server's to refuse.
    fn as_stored(&self, value: Value) -> Value {
        match (value, self.width) {
            (Value::Text(text), Some(width)) => match text.char_indices().nth(width) {
                Some((end, _)) if text[end..].bytes().all(|byte| byte == b' ') => Value::Text(text[..end].to_owned()),
                _ => Value::Text(text),
            },
            (value, _) => value,
        }
    }
}

fn unreadable(key: &Constant) -> SqlError {
    let which = match key {
        Constant::Param(at) => format!("parameter ${}", at + 1),
        Constant::Value(_) => "the value".to_owned(),
    };
    SqlError::new(Code::KeyType, format!("{which} is stored as a shard key, but could not be read as one"))
        .hint("send it with the type of the key's column")
}

fn not_stored(error: KeyError) -> SqlError {
    match error {
        KeyError::Null => {
            SqlError::new(Code::NullKey, error.to_string()).hint("give every row a value for its shard key")
        }
        KeyError::Type { .. } => {
            SqlError::new(Code::KeyType, error.to_string()).hint("send the value with the type of the key's column")
        }
    }
}
