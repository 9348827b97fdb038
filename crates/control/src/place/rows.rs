//! Where a row goes: decided from its values alone.

use std::collections::BTreeMap;

use pleat_cluster::{Catalog, KeyError, KeyType, ShardId, TableKind, Value, partition_of};
use pleat_engine::TableChanges;

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
    pub fn sort(&self, changes: TableChanges) -> Result<BTreeMap<ShardId, TableChanges>, Stop> {
        let mut sorted: BTreeMap<ShardId, TableChanges> = BTreeMap::new();
        let empty = TableChanges { rows: Vec::new(), deletes: Vec::new(), ..changes.clone() };
        let key_places = self.places(&changes.columns);
        for row in changes.rows {
            let key: Vec<&Value> = key_places.iter().filter_map(|place| row.get(*place)).collect();
            for shard in self.targets(&key)? {
                sorted.entry(shard).or_insert_with(|| empty.clone()).rows.push(row.clone());
            }
        }
        for key in changes.deletes {
            for shard in self.targets(&key.iter().collect::<Vec<_>>())? {
                sorted.entry(shard).or_insert_with(|| empty.clone()).deletes.push(key.clone());
            }
        }
        Ok(sorted)
    }

    /// Where the primary key's values are among these columns.
    fn places(&self, columns: &[String]) -> Vec<usize> {
        let place = |name: &String| columns.iter().position(|column| column.eq_ignore_ascii_case(name));
        self.plan.after.primary_key.iter().filter_map(place).collect()
    }

    /// The shards that a row with this primary key has to be brought to.
    fn targets(&self, key: &[&Value]) -> Result<Vec<ShardId>, Stop> {
        let elsewhere = |shard: &ShardId| *shard != self.source && self.plan.carries();
        let all = || self.catalog.active_shards().map(|shard| shard.id);
        let targets: Vec<ShardId> = match &self.plan.after.kind {
            TableKind::Reference => all().collect(),
            TableKind::Single { shard } => vec![*shard],
            TableKind::Sharded { key: name, key_type } => vec![self.owner(key, name, *key_type)?],
        };
        Ok(targets.into_iter().filter(elsewhere).collect())
    }

    fn owner(&self, key: &[&Value], name: &str, key_type: KeyType) -> Result<ShardId, Stop> {
        let columns = &self.plan.after.primary_key;
        if let Some(place) = key.iter().position(|value| **value == Value::Null) {
            let column = columns.get(place).map_or(name, |column| column.as_str());
            return Err(self.unfit(
                key,
                format!("its {column} is NULL, and every row needs a key to have an owner"),
                "23502",
            ));
        }
        let place = columns.iter().position(|column| column.eq_ignore_ascii_case(name));
        let Some(value) = place.and_then(|place| key.get(place)) else {
            let table = &self.plan.after.name;
            return Err(Stop::impossible(format!("the primary key of {table} does not contain the shard key {name}")));
        };
        let partition = match value.type_name() == key_type.storage_class() {
            true => partition_of(value, key_type, self.catalog.partition_count),
            false => Err(KeyError::Type { wanted: key_type.storage_class(), found: value.type_name() }),
        };
        let partition = partition.map_err(|error| self.unfit(key, format!("{name}: {error}"), "42804"))?;
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
