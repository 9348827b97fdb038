//! From units of ownership to the shards that own them.

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{Catalog, PartitionId, Shard, ShardId, TableKind};
use pleat_sql::Units;

use super::Failure;

/// The units as the shards know them, by owner.
pub(super) fn owners(units: &Units, catalog: &Catalog) -> Result<BTreeMap<ShardId, Vec<PartitionId>>, Failure> {
    let mut owners: BTreeMap<ShardId, Vec<PartitionId>> = BTreeMap::new();
    for partition in &units.partitions {
        let owner = catalog.owner(*partition);
        let owner = owner.ok_or_else(|| Failure::internal(format!("partition {partition} has no owner")))?;
        owners.entry(owner).or_default().push(*partition);
    }
    for name in units.singles.keys() {
        let table = catalog.table(name);
        let Some((TableKind::Single { shard }, id)) = table.map(|table| (&table.kind, table.id)) else {
            return Err(Failure::internal(format!(
                "{name} is not a single table of generation {}",
                catalog.generation
            )));
        };
        owners.entry(*shard).or_default().push(PartitionId::of_single(id));
    }
    Ok(owners)
}

/// Every shard that owns hash partitions; of `only`, when it is given.
pub(super) fn shards_of_partitions(catalog: &Catalog, only: Option<&BTreeSet<PartitionId>>) -> BTreeSet<ShardId> {
    match only {
        Some(partitions) => partitions.iter().filter_map(|partition| catalog.owner(*partition)).collect(),
        None => catalog.owners.iter().copied().collect(),
    }
}

/// The only shard that the cluster ever had, if so.
///
/// Such a shard holds all rows, and none that it doesn't own: no partition ever moved. (A split makes its
/// shard in the catalog before it copies anything, and the shard's ownership changes before it gives
/// anything away, so a router that missed both is refused.)
pub(super) fn sole_shard(catalog: &Catalog) -> Option<&Shard> {
    let mut shards = catalog.shards.values();
    shards.next().filter(|_| shards.next().is_none())
}

/// A hint must name a shard that there is.
pub(super) fn active(shard: ShardId, catalog: &Catalog) -> Result<(), Failure> {
    match catalog.active_shards().any(|active| active.id == shard) {
        true => Ok(()),
        false => Err(Failure::new(
            "22023",
            format!("the hint names {shard}, and there is no such shard"),
            "GET /shards lists them",
        )),
    }
}

pub(super) fn read_only_hint() -> Failure {
    Failure::new("0A000", "the hint shard=… is for reads: a write goes where its rows belong", "leave the hint out")
}

pub(super) fn single_elsewhere(on: ShardId, only: ShardId) -> Failure {
    Failure::new(
        "0A000",
        format!("a single table of the statement is on {on}, and the hint names {only}"),
        format!("name {on}, or leave the hint out"),
    )
}

pub(super) fn would_scatter<'a>(shards: impl Iterator<Item = &'a ShardId>) -> Failure {
    let shards: Vec<String> = shards.map(ToString::to_string).collect();
    Failure::new(
        "0A000",
        format!(
            "the statement would ask {} shards ({}), and its hint says no-scatter",
            shards.len(),
            shards.join(", ")
        ),
        "give the shard key, or leave the hint out; EXPLAIN shows the route",
    )
}

/// The shard that puts writes to reference tables in order, and answers for them.
pub(crate) fn anchor(catalog: &Catalog) -> Result<ShardId, Failure> {
    catalog.anchor().ok_or_else(|| {
        Failure::passing("57P03", "no shard is active yet", "the cluster is starting: try again in a moment")
    })
}
