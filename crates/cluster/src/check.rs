//! Every invariant of a catalog, checked by one function.

use std::collections::BTreeSet;
use std::fmt;

use crate::{Catalog, DdlEffect, Engine, OperationKind, ShardState, TableKind, Trigger, TriggerState};

/// A broken invariant, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Catalog {
    /// Names every invariant that does not hold. Empty for every catalog that commands can make:
    ///
    /// 1. Each partition has exactly one owner, a shard that exists and was not removed.
    /// 2. A shard has replicas on nodes that exist, each once, and at most `replication_factor` of them.
    /// 3. No shard's ownership is newer than the catalog, nor is the layout.
    /// 4. A table stands under its own name, its id is unique and was handed out; a sharded one has its key
    ///    among its columns and has a primary key; a single one lives on a shard that was not removed.
    /// 5. Of open operations that move partitions, those that wait for a shard aside, each moves other partitions, none has a
    ///    part in a shard that another one makes or takes down, and of those that have begun no shard has a part in two and there
    ///    are no more than may be. Until one commits or is given up its source owns what it moves.
    /// 6. A committed operation has not failed, unless it is a rebuild, and was not given up; only an open one that is
    ///    decided waits.
    /// 7. Histories are within their limits.
    /// 8. Replica numbers and distrust name replicas that the shard has.
    /// 9. A shard that is leaving owns nothing, and its merge is open and committed.
    /// 10. Triggers have ids that were handed out, each one name and one id; they name tables that exist, and one that is not
    ///     ready has an open operation.
    /// 11. A user stands under its own name, name and verifier are within their limits, and with users there is a secret.
    pub fn check(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        if self.is_initialised() {
            self.check_shards(&mut found);
            self.check_tables(&mut found);
            self.check_views(&mut found);
            self.check_triggers(&mut found);
            self.check_operations(&mut found);
            self.check_users(&mut found);
        }
        found.into_iter().map(Violation).collect()
    }

    fn check_shards(&self, found: &mut Vec<String>) {
        if self.owners.len() != self.partition_count as usize {
            found.push(format!("{} owners for {} partitions", self.owners.len(), self.partition_count));
        }
        for (partition, owner) in self.owners.iter().enumerate() {
            match self.shards.get(owner) {
                None => found.push(format!("partition {partition} is owned by {owner}, which does not exist")),
                Some(shard) if shard.state == ShardState::Removed => {
                    found.push(format!("partition {partition} is owned by {owner}, which was removed"));
                }
                Some(_) => {}
            }
        }
        if self.layout > self.generation {
            found.push("the layout is newer than the catalog".to_owned());
        }
        for (id, shard) in &self.shards {
            if shard.id != *id {
                found.push(format!("{} stands under {id}", shard.id));
            }
            if shard.replicas.is_empty() || shard.replicas.len() > self.replication_factor as usize {
                found.push(format!("{id} has {} replicas", shard.replicas.len()));
            }
            let mut replicas = shard.replicas.clone();
            replicas.sort();
            replicas.dedup();
            if replicas.len() != shard.replicas.len() {
                found.push(format!("{id} has two replicas on one node"));
            }
            if let Some(node) = shard.replicas.iter().find(|node| !self.nodes.contains_key(node)) {
                found.push(format!("{id} has a replica on {node}, which does not exist"));
            }
            let mut named = shard.numbers.keys().chain(&shard.distrusted);
            if let Some(node) = named.find(|node| !shard.replicas.contains(node)) {
                found.push(format!("{id} has a replica number or distrust of {node}, which holds no replica"));
            }
            if shard.state == ShardState::Leaving {
                let sees_to_it = |open: &crate::Operation| {
                    open.committed && matches!(open.kind, OperationKind::Merge { from, .. } if from == *id)
                };
                if !self.units_of(*id).is_empty() || !self.open_operations().any(sees_to_it) {
                    found.push(format!("{id} is leaving, and owns something or no merge sees to it"));
                }
            }
            if shard.ownership > self.generation {
                found.push(format!("{id} has an ownership newer than the catalog"));
            }
        }
    }

    fn check_tables(&self, found: &mut Vec<String>) {
        let mut ids: Vec<_> = self.tables.values().map(|table| table.id).collect();
        ids.sort();
        ids.dedup();
        if ids.len() != self.tables.len() {
            found.push("two tables have one id".to_owned());
        }
        for (name, table) in &self.tables {
            if *name != table.name.to_ascii_lowercase() {
                found.push(format!("table {} stands under {name}", table.name));
            }
            if table.id.0 == 0 || table.id.0 > self.last_table {
                found.push(format!("table {name} has {}, which was never handed out", table.id));
            }
            match &table.kind {
                TableKind::Sharded { key, .. }
                    // A server's table may have none.
                    if table.column(key).is_none()
                        || (self.engine == Engine::Sqlite && table.primary_key.is_empty()) =>
                {
                    found.push(format!("table {name} is sharded without its key column or without a primary key"));
                }
                TableKind::Single { shard } if !self.shards.contains_key(shard) => {
                    found.push(format!("table {name} lives on {shard}, which does not exist"));
                }
                TableKind::Single { shard } if self.shards[shard].state == ShardState::Removed => {
                    found.push(format!("table {name} lives on {shard}, which was removed"));
                }
                _ => {}
            }
        }
    }

    fn check_views(&self, found: &mut Vec<String>) {
        for (name, view) in &self.views {
            if *name != view.name.to_ascii_lowercase() {
                found.push(format!("view {} stands under {name}", view.name));
            }
            if self.tables.contains_key(name) {
                found.push(format!("{name} is a table and a view"));
            }
        }
    }

    fn check_triggers(&self, found: &mut Vec<String>) {
        let all = || self.tables.values().flat_map(|table| table.triggers.iter().map(move |trigger| (table, trigger)));
        let names: BTreeSet<String> = all().map(|(_, trigger)| trigger.name.to_ascii_lowercase()).collect();
        let ids: BTreeSet<u32> = all().map(|(_, trigger)| trigger.id).collect();
        if names.len() != all().count() || ids.len() != all().count() {
            found.push("two triggers have one name or one id".to_owned());
        }
        let is_open = |trigger: &Trigger| {
            self.open_operations().any(|operation| match &operation.kind {
                OperationKind::Ddl { effect: DdlEffect::CreateTrigger { trigger: made, .. }, .. } => {
                    trigger.state == TriggerState::Coming && made.name == trigger.name
                }
                OperationKind::Ddl { effect: DdlEffect::DropTrigger { trigger: dropped, .. }, .. } => {
                    trigger.state == TriggerState::Going && dropped.eq_ignore_ascii_case(&trigger.name)
                }
                _ => false,
            })
        };
        for (table, trigger) in all() {
            let name = format!("trigger {} of table {}", trigger.name, table.name);
            if trigger.id == 0 || trigger.id > self.last_trigger {
                found.push(format!("{name} has an id that was never handed out"));
            }
            if let Some(id) = trigger.writes.iter().chain(&trigger.reads).find(|id| self.table_by_id(**id).is_none()) {
                found.push(format!("{name} names {id}, which does not exist"));
            }
            if trigger.state != TriggerState::Ready && !is_open(trigger) {
                found.push(format!("{name} comes or goes and no operation sees to it"));
            }
        }
    }

    fn check_operations(&self, found: &mut Vec<String>) {
        for (id, operation) in &self.operations {
            let rebuild = matches!(operation.kind, OperationKind::Rebuild { .. });
            if operation.committed && operation.phase == crate::Phase::Failed && !rebuild {
                found.push(format!("{id} is committed and failed"));
            }
            if operation.committed && operation.given_up {
                found.push(format!("{id} is committed and given up"));
            }
            if operation.committed && operation.receipt.as_ref().is_some_and(|receipt| !receipt.agrees()) {
                found.push(format!("{id} is committed, and its two sides differ"));
            }
            let decided = operation.committed || operation.given_up;
            if operation.is_waiting() && (operation.phase.is_final() || !decided) {
                found.push(format!("{id} waits for a shard and is not decided and open"));
            }
        }
        self.check_moves(found);
        if self.operations.len() > Self::OPERATIONS_KEPT_MAX + Self::OPERATIONS_OPEN_MAX {
            found.push(format!("{} operations are kept", self.operations.len()));
        }
        if self.decisions.len() > Self::DECISIONS_KEPT_MAX {
            found.push(format!("{} decisions are kept", self.decisions.len()));
        }
    }
}
