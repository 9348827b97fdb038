//! Merges: a shard gives all that it owns to another one and is taken down.
//!
//! ```text
//! Active ──commit──► Leaving ──RemoveShard──► Removed
//! ```
//!
//! The commit gives the partitions another owner and ends routing to the shard in one step. It *stays* while it is
//! `Leaving`: transactions that were begun by an older catalog may wait there for their decision, and the executor
//! (`control`'s mover) sees them settled before it removes it. A merge has therefore not ended before its shard is removed.
//!
//! Not every shard can go. The *anchor* orders the writes to reference tables, in its log and by its numbers. A *single*
//! table does not move yet, and so keeps its shard. What keeps a shard is asked when a merge is planned, when it is started,
//! and at its commit; in between nothing new gets a home there.

use crate::apply::{Applied, busy, invalid};
use crate::{Catalog, Millis, OperationId, OperationKind, PartitionId, ShardId, ShardState, TableKind};

impl Catalog {
    /// Why a shard can't be merged into another one, if it can't: for people.
    pub fn kept_because(&self, shard: ShardId) -> Option<String> {
        if self.anchor() == Some(shard) {
            return Some(format!("{shard} is the oldest shard, which puts the writes to reference tables in order"));
        }
        let is_home = |kind: &TableKind| matches!(kind, TableKind::Single { shard: home } if *home == shard);
        if let Some(table) = self.tables.values().find(|table| is_home(&table.kind)) {
            let name = &table.name;
            return Some(format!(
                "table {name} lives on {shard} alone; ALTER TABLE {name} SHARD BY (…), or REFERENCE, frees it"
            ));
        }
        let comes = self.open_operations().find(|open| open.kind.single_home() == Some(shard))?;
        Some(format!("{} is creating a table on {shard}", comes.id))
    }

    pub(crate) fn admit_merge(&self, from: ShardId, to: ShardId, partitions: &[PartitionId]) -> Applied {
        if from == to {
            return Err(invalid("a merge is with another shard"));
        }
        self.active(from)?;
        self.active(to)?;
        if let Some(why) = self.kept_because(from) {
            return Err(invalid(format!("{from} can't be merged into another shard: {why}")));
        }
        match *partitions == self.partitions_of(from) {
            true => Ok(()),
            false => Err(busy(format!("what {from} owns has just changed; ask again"))),
        }
    }

    pub(crate) fn commit_merge(
        &mut self,
        from: ShardId,
        to: ShardId,
        partitions: &[PartitionId],
        at: Millis,
    ) -> Applied {
        if let Some(why) = self.kept_because(from) {
            return Err(invalid(format!("{from} can't be merged into another shard: {why}")));
        }
        if *partitions != self.partitions_of(from) {
            return Err(invalid(format!("{from} does not own what it did when the merge began")));
        }
        self.hand_over(from, to, partitions)?;
        if let Some(shard) = self.shards.get_mut(&from) {
            shard.state = ShardState::Leaving;
            shard.since = at;
        }
        Ok(())
    }

    /// A committed merge ends when its shard is removed.
    pub(crate) fn admit_end(&self, id: OperationId) -> Applied {
        let Some(operation) = self.operations.get(&id).filter(|operation| operation.committed) else { return Ok(()) };
        match operation.kind {
            OperationKind::Merge { from, .. }
                if self.shards.get(&from).is_some_and(|s| s.state != ShardState::Removed) =>
            {
                Err(invalid(format!("{from} was not removed yet")))
            }
            _ => Ok(()),
        }
    }
}
