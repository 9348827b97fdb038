//! Where a row goes: decided from its values alone.

use std::collections::BTreeMap;

use pleat_cluster::{Catalog, KeyError, KeyType, ShardId, TableKind, Value, partition_of};
use pleat_engine::{Rows, TableChanges};

use super::Plan;
use crate::stop::{Failure, Stop};

/// How much of a row's primary key an error shows, in characters.
const NAMED_CHARS_MAX: usize = 100;

/// Sorts rows by the shards that they go to.
pub(super) struct Sorter<'a> {
    plan: &'a Plan,
    catalog: &'a Catalog,
    source: ShardId,
}

impl<'a> Sorter<'a> {
    pub fn new(plan: &'a Plan, catalog: &'a Catalog, source: ShardId) -> Self {
        Self { plan, catalog, source }
    }

    /// What each shard is to be sent of these rows and deletions. A row that the new placement can't hold is an error.
    ///
    /// Where the primary key does not tell which shard a row is for, one that has `changed` may have been for another
    /// shard before, and is deleted on all of these.
    pub fn sort(&self, changes: TableChanges, changed: bool) -> Result<BTreeMap<ShardId, TableChanges>, Stop> {
        let mut sorted: BTreeMap<ShardId, TableChanges> = BTreeMap::new();
        let empty = TableChanges { rows: Rows::default(), deletes: Vec::new(), ..changes.clone() };
        let places = self.places(&changes.columns);
        let key_place = self.plan.after.shard_key().and_then(|(key, _)| place(&changes.columns, key));
        for row in changes.rows.to_values() {
            let key: Vec<&Value> = places.iter().filter_map(|place| row.get(*place)).collect();
            let targets = self.targets(&key, key_place.and_then(|place| row.get(place)))?;
            if changed && self.key_in_primary_key().is_none() {
                let key: Vec<Value> = key.into_iter().cloned().collect();
                for shard in self.elsewhere().filter(|shard| !targets.contains(shard)) {
                    sorted.entry(shard).or_insert_with(|| empty.clone()).deletes.push(key.clone());
                }
            }
            for shard in targets {
                sorted.entry(shard).or_insert_with(|| empty.clone()).rows.push(&row);
            }
        }
        for key in changes.deletes {
            let targets = match self.key_in_primary_key() {
                Some(place) => self.targets(&key.iter().collect::<Vec<_>>(), key.get(place))?,
                None => self.elsewhere().collect(),
            };
            for shard in targets {
                sorted.entry(shard).or_insert_with(|| empty.clone()).deletes.push(key.clone());
            }
        }
        Ok(sorted)
    }

    /// Where the primary key's values are among these columns.
    fn places(&self, columns: &[String]) -> Vec<usize> {
        self.plan.after.primary_key.iter().filter_map(|name| place(columns, name)).collect()
    }

    /// Where the new shard key is in the primary key.
    fn key_in_primary_key(&self) -> Option<usize> {
        place(&self.plan.after.primary_key, self.plan.after.shard_key()?.0)
    }

    /// The shards that rows may be brought to.
    fn elsewhere(&self) -> impl Iterator<Item = ShardId> {
        let all = self.catalog.active_shards().map(|shard| shard.id);
        all.filter(|shard| *shard != self.source && self.plan.carries())
    }

    /// The shards that a row with this primary key and this shard key has to be brought to.
    fn targets(&self, primary: &[&Value], key: Option<&Value>) -> Result<Vec<ShardId>, Stop> {
        let owner = match &self.plan.after.kind {
            TableKind::Reference => return Ok(self.elsewhere().collect()),
            TableKind::Single { shard } => *shard,
            TableKind::Sharded { key: name, key_type } => self.owner(primary, key, name, *key_type)?,
        };
        Ok(self.elsewhere().filter(|shard| *shard == owner).collect())
    }

    fn owner(&self, primary: &[&Value], key: Option<&Value>, name: &str, key_type: KeyType) -> Result<ShardId, Stop> {
        if let Some(place) = primary.iter().position(|value| **value == Value::Null) {
            let column = self.plan.after.primary_key.get(place).map_or(name, String::as_str);
            return Err(self.unfit(
                primary,
                format!("its {column} is NULL, and it needs one to be told apart"),
                "23502",
            ));
        }
        let partition = match key.unwrap_or(&Value::Null) {
            Value::Null => {
                let why = format!("its {name} is NULL, and every row needs a key to have an owner");
                return Err(self.unfit(primary, why, "23502"));
            }
            value if value.type_name() == key_type.storage_class() => {
                partition_of(value, key_type, self.catalog.partition_count)
            }
            value => Err(KeyError::Type { wanted: key_type.storage_class(), found: value.type_name() }),
        };
        let partition = partition.map_err(|error| self.unfit(primary, format!("{name}: {error}"), "42804"))?;
        self.catalog.owner(partition).ok_or_else(|| Stop::Again(format!("partition {partition} has no owner")))
    }

    /// A row that the new placement can't hold.
    fn unfit(&self, key: &[&Value], why: String, code: &str) -> Stop {
        let columns = self.plan.after.primary_key.join(", ");
        let values: Vec<String> = key.iter().map(|value| shown(value)).collect();
        let table = &self.plan.after.name;
        let why = format!("the row of {table} with ({columns}) = ({}) can't be placed: {why}", values.join(", "));
        Stop::Impossible(Failure { why, code: Some(code.to_owned()) })
    }
}

fn place(columns: &[String], name: &str) -> Option<usize> {
    columns.iter().position(|column| column.eq_ignore_ascii_case(name))
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(number) => number.to_string(),
        Value::Real(real) => real.to_string(),
        Value::Text(text) => format!("'{text}'"),
        Value::Blob(bytes) => format!("a blob of {} bytes", bytes.len()),
    };
    match text.char_indices().nth(NAMED_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
