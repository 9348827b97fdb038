//! A move, step by step, so that a test can stop in the middle of one.

use std::sync::Arc;

use pleat_cluster::{Cause, Command, OperationId, OperationKind, PartitionId, Phase, ShardId};
use pleat_engine::{Action, MoveAction, MoveChunk, MoveRead, MoveStep, Outcome, Position};

use super::Cluster;

/// A split on its way.
pub struct Move {
    cluster: Arc<Cluster>,
    operation: OperationId,
    from: ShardId,
    pub to: ShardId,
}

impl Cluster {
    /// Begin to split: the new shard is there, everything is copied, the source is not fenced yet.
    pub fn begin_split(self: &Arc<Self>, from: ShardId, partitions: &[PartitionId]) -> Move {
        let (operation, to) = self.add_shard(from, partitions);
        self.begin(operation, from, to, partitions)
    }

    /// The same, to a shard that there is.
    pub fn begin_move(self: &Arc<Self>, from: ShardId, to: ShardId, partitions: &[PartitionId]) -> Move {
        let kind = OperationKind::Move { from, to, partitions: partitions.to_vec() };
        let cause = Cause::Request("test".into());
        let reply = self.apply(&Command::StartOperation { kind, cause, reason: String::new(), at: 5 });
        self.begin(reply.operation.expect("an operation"), from, to, partitions)
    }

    fn begin(self: &Arc<Self>, operation: OperationId, from: ShardId, to: ShardId, partitions: &[PartitionId]) -> Move {
        let moving = Move { cluster: self.clone(), operation, from, to };
        let partitions = partitions.to_vec();
        for shard in [from, to] {
            moving.step(shard, MoveAction::Claim);
        }
        moving.step(from, MoveAction::CaptureStart { partitions: partitions.clone() });
        moving.step(to, MoveAction::ImportStart { partitions });
        moving.copy();
        moving
    }

    /// Split in one go.
    pub fn split(self: &Arc<Self>, from: ShardId, partitions: &[PartitionId]) -> ShardId {
        let moving = self.begin_split(from, partitions);
        let to = moving.to;
        moving.fence();
        moving.hand_over();
        to
    }
}

impl Move {
    fn step(&self, shard: ShardId, action: MoveAction) {
        let step = MoveStep { operation: self.operation.0, epoch: 1, action };
        let outcome = self.cluster.propose(shard, Action::Move(step)).outcome;
        assert!(matches!(outcome, Outcome::Moved(_)), "{outcome:?}");
    }

    fn ask(&self, read: MoveRead) -> MoveChunk {
        self.cluster.replica(self.from).readers.move_read(&read).unwrap()
    }

    fn copy(&self) {
        let opened = self.ask(MoveRead::CopyOpen { operation: self.operation.0 });
        let MoveChunk::Opened { snapshot, tables, .. } = opened else { panic!("{opened:?}") };
        for table in tables {
            let mut after = None;
            loop {
                let next = MoveRead::CopyNext {
                    snapshot,
                    table: table.clone(),
                    after: after.clone(),
                    rows_max: 1_000,
                    bytes_max: 1 << 20,
                };
                let chunk = self.ask(next);
                let MoveChunk::Rows { changes, next } = chunk else { panic!("{chunk:?}") };
                self.import(vec![changes], vec![], None);
                after = next;
                if after.is_none() {
                    break;
                }
            }
        }
        self.ask(MoveRead::Close { snapshot });
        self.catch_up();
    }

    fn import(
        &self,
        changes: Vec<pleat_engine::TableChanges>,
        idempotency: Vec<pleat_engine::IdempotencyRow>,
        position: Option<Position>,
    ) {
        self.step(self.to, MoveAction::Import { changes, idempotency, position, copied: false });
    }

    fn catch_up(&self) {
        let mut after = Position::default();
        loop {
            let delta = MoveRead::Delta { operation: self.operation.0, after, rows_max: 1_000, bytes_max: 1 << 20 };
            let chunk = self.ask(delta);
            let MoveChunk::Delta(changes) = chunk else { panic!("{chunk:?}") };
            after = changes.position.clone();
            let more = changes.more;
            self.import(changes.tables, changes.idempotency, Some(changes.position));
            if !more {
                return;
            }
        }
    }

    /// Close the gates of the moving partitions.
    pub fn fence(&self) {
        self.step(self.from, MoveAction::Fence);
        self.catch_up();
    }

    /// Open them again.
    pub fn unfence(&self) {
        self.step(self.from, MoveAction::Unfence);
    }

    /// The new owner is the new owner. Leftovers stay at the source, as they do until they are cleaned up.
    pub fn hand_over(self) {
        let (operation, cluster) = (self.operation, &self.cluster);
        cluster.apply(&Command::CommitOperation { epoch: 1, operation, at: 6 });
        let ownership = cluster.newest().shards[&self.to].ownership;
        self.step(self.to, MoveAction::Activate { ownership });
        self.step(self.from, MoveAction::Release { ownership });
        let phase = Phase::Successful;
        cluster.apply(&Command::FinishOperation { epoch: 1, operation, phase, message: String::new(), at: 7 });
    }
}
