//! The catalog: what the control group agrees on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Decision, DecisionId, Engine, Generation, Node, NodeId, NodeState, Operation, OperationId, OperationKind,
    PartitionId, Phase, Policy, Secret, Shard, ShardId, ShardState, Standbys, Table, TableId, TableKind, Tables, Users,
    View, Views,
};

/// The state of the control group. Changed by [`Catalog::apply`] alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Catalog {
    /// Empty until the cluster is set up.
    pub cluster_id: String,
    pub generation: Generation,
    /// What the shards are.
    pub engine: Engine,
    pub partition_count: u32,
    pub replication_factor: u32,
    pub nodes: BTreeMap<NodeId, Node>,
    pub shards: BTreeMap<ShardId, Shard>,
    /// The owner of each hash partition, by partition number.
    pub owners: Vec<ShardId>,
    /// The generation at which it last changed by what rule a table's rows are put on shards (`ALTER TABLE … SHARD
    /// BY`). Statements name the one that they were planned under, and a shard that has another one refuses them.
    pub layout: Generation,
    pub tables: Tables,
    pub views: Views,
    pub policy: Policy,
    pub users: Users,
    /// There from the first user on.
    pub secret: Option<Secret>,
    pub operations: BTreeMap<OperationId, Operation>,
    pub decisions: BTreeMap<DecisionId, Decision>,
    pub(crate) last_operation: u64,
    pub(crate) last_decision: u64,
    pub(crate) last_table: u32,
    pub(crate) last_trigger: u32,
}

/// What of the catalog a statement was planned by: it travels with the statement, and a shard refuses what it knows better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// A shard refuses writes that were planned before one of its triggers was known.
    pub generation: Generation,
    /// The catalog's [`layout`](Catalog::layout). A shard that has another one refuses.
    pub layout: Generation,
}

impl Catalog {
    /// What a statement carries that is planned by this catalog.
    pub fn planned(&self) -> Planned {
        Planned { generation: self.generation, layout: self.layout }
    }

    /// Ended operations are kept up to this many; the oldest go first.
    pub const OPERATIONS_KEPT_MAX: usize = 1_000;
    /// Decisions are kept up to this many; the oldest go first.
    pub const DECISIONS_KEPT_MAX: usize = 1_000;
    /// Operations that may wait or run at one time.
    pub const OPERATIONS_OPEN_MAX: usize = 64;
    /// Splits, merges and moves that may have begun at one time. Each leaves clients 90 % of what they get done; two leave them 81 %.
    pub const MOVES_BEGUN_MAX: usize = 2;
    /// Steps that one operation may journal.
    pub const STEPS_MAX: usize = 256;
    pub const TABLES_MAX: usize = 10_000;
    pub const VIEWS_MAX: usize = 10_000;
    /// Triggers of one table.
    pub const TRIGGERS_MAX: usize = 100;

    /// Whether the founding command was applied.
    pub fn is_initialised(&self) -> bool {
        !self.cluster_id.is_empty()
    }

    /// The shard that owns `partition`, be it a hash bucket or a single table's unit.
    pub fn owner(&self, partition: PartitionId) -> Option<ShardId> {
        if partition.is_single() {
            return self.tables.values().find_map(|table| match table.kind {
                TableKind::Single { shard } if PartitionId::of_single(table.id) == partition => Some(shard),
                _ => None,
            });
        }
        self.owners.get(partition.0 as usize).copied()
    }

    /// Every hash partition that `shard` owns, in order.
    pub fn partitions_of(&self, shard: ShardId) -> Vec<PartitionId> {
        (0u32..).zip(&self.owners).filter(|(_, owner)| **owner == shard).map(|(p, _)| PartitionId(p)).collect()
    }

    /// Every unit that `shard` owns: hash partitions, then single tables.
    pub fn units_of(&self, shard: ShardId) -> Vec<PartitionId> {
        let mut units = self.partitions_of(shard);
        let mut singles: Vec<_> = (self.tables.values())
            .filter(|table| matches!(table.kind, TableKind::Single { shard: at } if at == shard))
            .map(|table| PartitionId::of_single(table.id))
            .collect();
        singles.sort();
        units.extend(singles);
        units
    }

    /// Shards that statements are routed to.
    pub fn active_shards(&self) -> impl Iterator<Item = &Shard> {
        self.shards.values().filter(|shard| shard.state == ShardState::Active)
    }

    /// The shard on which writes to reference tables are put in order: the oldest active one.
    pub fn anchor(&self) -> Option<ShardId> {
        self.active_shards().map(|shard| shard.id).next()
    }

    /// The id that the next shard must get.
    pub fn next_shard(&self) -> ShardId {
        ShardId(self.shards.keys().next_back().map_or(1, |last| last.0 + 1))
    }

    /// The id that the next table gets. Stable while a `CREATE TABLE` is carried out, because schema changes
    /// are carried out alone.
    pub fn next_table(&self) -> TableId {
        TableId(self.last_table + 1)
    }

    /// The table called `name`, in any case.
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.get(&name.to_ascii_lowercase())
    }

    /// The view called `name`, in any case.
    pub fn view(&self, name: &str) -> Option<&View> {
        self.views.get(&name.to_ascii_lowercase())
    }

    /// The table with this id.
    pub fn table_by_id(&self, id: TableId) -> Option<&Table> {
        self.tables.values().find(|table| table.id == id)
    }

    /// The operation that was begun last, be it forgotten by now; 0 before the first.
    pub fn newest_operation(&self) -> OperationId {
        OperationId(self.last_operation)
    }

    /// Operations that have not ended, oldest first. The first of them that does not wait for a shard is the one being
    /// worked on.
    pub fn open_operations(&self) -> impl Iterator<Item = &Operation> {
        self.operations.values().filter(|operation| !operation.phase.is_final())
    }

    /// An operation that waits for a shard which `kind` needs, or holds one that it changes: it comes first there.
    pub fn held(&self, kind: &OperationKind) -> Option<(&Operation, ShardId)> {
        let (changed, read) = match kind {
            OperationKind::Split { from, .. } => (vec![*from], self.anchor()),
            OperationKind::Move { from, to, .. } | OperationKind::Merge { from, to, .. } => {
                (vec![*from, *to], self.anchor())
            }
            OperationKind::Ddl { effect, .. } if effect.is_of_view() => return None,
            OperationKind::Ddl { .. } => (self.active_shards().map(|shard| shard.id).collect(), None),
            // They change who holds a shard, and nothing in it.
            OperationKind::Rebuild { .. } | OperationKind::Promote { .. } => return None,
        };
        self.open_operations().find_map(|operation| {
            let (holds, all) = (operation.holds(), operation.holds_all());
            let held = changed.iter().copied().find(|shard| all || holds.contains(shard));
            // Moves complete reference tables from the anchor: it has to be there, and nothing of it changes.
            let shard = held.or(read.filter(|anchor| operation.waits_for.contains(anchor)))?;
            Some((operation, shard))
        })
    }

    /// An operation that is moving partitions right now, if any: the first one.
    pub fn moving(&self) -> Option<&Operation> {
        self.open_operations().find(|operation| {
            operation.phase == Phase::Progressing && !operation.is_waiting() && operation.kind.moves().is_some()
        })
    }

    /// Nodes that take part, by id.
    pub fn active_nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| node.state == NodeState::Active)
    }

    /// Which nodes a new shard's replicas go to: those with the fewest replicas, then by id.
    pub fn place_replicas(&self) -> Vec<NodeId> {
        let mut load: Vec<(usize, NodeId)> = (self.active_nodes())
            .map(|node| {
                let held = (self.shards.values())
                    .filter(|shard| shard.state != ShardState::Removed && shard.replicas.contains(&node.id))
                    .count();
                (held, node.id)
            })
            .collect();
        load.sort();
        let copies = match self.engine {
            Engine::Sqlite => self.replication_factor as usize,
            Engine::Postgres if self.policy.standbys == Standbys::None => 1,
            Engine::Postgres => self.replication_factor.min(2) as usize,
        };
        load.into_iter().take(copies).map(|(_, node)| node).collect()
    }
}
