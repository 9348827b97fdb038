//! A table gets another placement, step by step, so that a test can stop in the middle of it. What the control loop does
//! about clients that write meanwhile is tested there.

use std::cell::Cell;

use pleat_cluster::{
    Catalog, Command, DdlEffect, OperationId, OperationKind, PartitionId, Phase, ShardId, Table, TableKind,
    partition_of,
};
use pleat_engine::{
    Action, Holding, MoveAction, MoveChunk, MoveRead, MoveStep, Outcome, Position, TableChanges, TablePlace,
};

use super::{Cluster, PARTITIONS};

/// A table on its way.
pub struct Placing<'a> {
    cluster: &'a Cluster,
    operation: OperationId,
    before: Table,
    after: Table,
    epoch: Cell<u64>,
}

impl<'a> Placing<'a> {
    /// Everything is copied, and the table is not fenced yet.
    pub fn begin(cluster: &'a Cluster, operation: OperationId) -> Self {
        let catalog = cluster.newest();
        let OperationKind::Ddl { effect: DdlEffect::PlaceTable { before, after }, .. } =
            &catalog.operations[&operation].kind
        else {
            panic!("{operation} places no table")
        };
        let (before, after) = (Table::clone(before), Table::clone(after));
        let placing = Self { cluster, operation, before, after, epoch: Cell::new(1) };
        for shard in placing.shards() {
            let place = Box::new(placing.part(shard));
            placing.step(shard, MoveAction::PlaceStart { place });
        }
        placing.carry();
        placing
    }

    /// No shard takes writes to the table, and each has the rows that it will have.
    pub fn fence(&self) {
        for shard in self.shards() {
            self.step(shard, MoveAction::PlaceFence);
        }
        self.carry();
    }

    /// The catalog has the new placement, and no shard has followed yet.
    pub fn commit(&self) {
        self.cluster.apply(&Command::CommitOperation { epoch: 1, operation: self.operation, at: 6 });
    }

    /// Every shard follows.
    pub fn open(self) {
        let layout = self.cluster.newest().layout;
        for action in [MoveAction::PlaceSwitch { layout }, MoveAction::PlaceOpen] {
            for shard in self.shards() {
                self.step(shard, action.clone());
            }
        }
        for shard in self.shards() {
            self.clean_up(shard);
        }
        let (operation, phase) = (self.operation, Phase::Successful);
        self.cluster.apply(&Command::FinishOperation { epoch: 1, operation, phase, message: String::new(), at: 7 });
    }

    fn clean_up(&self, shard: ShardId) {
        let (operation, table) = (self.operation.0, self.after.name.clone());
        let request = MoveRead::CleanUpNext { operation, table: table.clone(), after: None, limit: 100_000 };
        let found = self.cluster.replica(shard).readers.move_read(&request).unwrap();
        let MoveChunk::Keys { keys, .. } = found else { panic!("{found:?}") };
        self.step(shard, MoveAction::CleanUp { table, keys });
        self.step(shard, MoveAction::CleanUpDone);
    }

    fn shards(&self) -> Vec<ShardId> {
        self.cluster.newest().active_shards().map(|shard| shard.id).collect()
    }

    fn part(&self, shard: ShardId) -> TablePlace {
        TablePlace {
            table: self.after.clone(),
            before: holding(&self.before, shard),
            after: holding(&self.after, shard),
            by_primary_key: self.before.shard_key().is_some() || self.after.shard_key().is_some(),
            captures: holding(&self.before, shard) != Holding::None,
            reference: [&self.before, &self.after].iter().any(|table| table.kind == TableKind::Reference),
            renumber: self.before.shard_key().is_some() && self.after.kind == TableKind::Reference,
        }
    }

    fn step(&self, shard: ShardId, action: MoveAction) {
        self.epoch.set(self.epoch.get() + 1);
        let step = MoveStep { operation: self.operation.0, epoch: self.epoch.get(), action };
        let outcome = self.cluster.propose(shard, Action::Move(step)).outcome;
        assert!(matches!(outcome, Outcome::Moved(_)), "{outcome:?}");
    }

    /// All rows that there are, as they are now: the copy, and what changed since.
    fn carry(&self) {
        for source in self.shards().into_iter().filter(|shard| holding(&self.before, *shard) != Holding::None) {
            let cluster = self.cluster;
            let ask = |read: MoveRead| cluster.replica(source).readers.move_read(&read).unwrap();
            let MoveChunk::Opened { snapshot, tables, .. } = ask(MoveRead::CopyOpen { operation: self.operation.0 })
            else {
                panic!("no snapshot")
            };
            let (table, limits) = (tables[0].clone(), (100_000, 64 << 20));
            let copied =
                ask(MoveRead::CopyNext { snapshot, table, after: None, rows_max: limits.0, bytes_max: limits.1 });
            ask(MoveRead::Close { snapshot });
            let (operation, after) = (self.operation.0, Position::default());
            let changed = ask(MoveRead::Delta { operation, after, rows_max: limits.0, bytes_max: limits.1 });
            let (MoveChunk::Rows { changes: copied, .. }, MoveChunk::Delta(changed)) = (copied, changed) else {
                panic!("other answers")
            };
            let catalog = self.cluster.newest();
            for shard in self.shards() {
                let changes = std::iter::once(&copied).chain(&changed.tables);
                let changes = changes.map(|changes| self.for_shard(&catalog, source, shard, changes)).collect();
                let import = MoveAction::Import {
                    changes,
                    idempotency: changed.idempotency.clone(),
                    position: None,
                    copied: false,
                };
                self.step(shard, import);
            }
        }
    }

    fn for_shard(&self, catalog: &Catalog, source: ShardId, shard: ShardId, changes: &TableChanges) -> TableChanges {
        let (key, carries) = (self.after.shard_key(), self.before.kind != TableKind::Reference);
        let goes = |row: &Vec<pleat_cluster::Value>| match (&self.after.kind, key) {
            (TableKind::Sharded { .. }, Some((key, key_type))) => {
                let place = changes.columns.iter().position(|column| column == key).unwrap();
                let partition: PartitionId = partition_of(&row[place], key_type, PARTITIONS).unwrap();
                catalog.owner(partition) == Some(shard)
            }
            (TableKind::Single { shard: home }, _) => *home == shard,
            _ => true,
        };
        let rows = changes.rows.to_values().into_iter().filter(|row| carries && shard != source && goes(row));
        let rows = rows.collect::<Vec<_>>().into();
        // A deletion of what isn't there does nothing.
        let deletes = if shard == source || !carries { Vec::new() } else { changes.deletes.clone() };
        TableChanges { rows, deletes, ..changes.clone() }
    }
}

fn holding(table: &Table, shard: ShardId) -> Holding {
    match &table.kind {
        TableKind::Sharded { key, .. } => Holding::Key(key.clone()),
        TableKind::Single { shard: home } if *home != shard => Holding::None,
        _ => Holding::All,
    }
}

/// All of it in one go.
pub fn place(cluster: &Cluster, operation: OperationId) {
    let placing = Placing::begin(cluster, operation);
    placing.fence();
    placing.commit();
    placing.open();
}
