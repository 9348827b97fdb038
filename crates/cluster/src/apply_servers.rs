//! Applying what concerns shards that are servers.

use core::net::SocketAddr;

use crate::apply::{Applied, busy, invalid, unknown};
use crate::{
    Catalog, CommandError, DdlEffect, Engine, NodeId, OperationKind, ShardId, ShardState, Table, TableChange, TableId,
    TableKind,
};

impl Catalog {
    pub(crate) fn note_server(&mut self, id: ShardId, node: NodeId, address: SocketAddr) -> Applied {
        let shard = self.shards.get_mut(&id).ok_or_else(|| unknown(id))?;
        if shard.state == ShardState::Removed || !shard.replicas.contains(&node) {
            return Err(invalid(format!("{node} does not supervise {id}")));
        }
        if shard.server != Some(address) {
            shard.server = Some(address);
            self.bump();
        }
        Ok(())
    }

    /// Whether shards of this kind can do that at all.
    pub(crate) fn admit_engine(&self, kind: &OperationKind) -> Applied {
        match (self.engine, kind) {
            (_, OperationKind::Ddl { effect, .. }) if effect.is_of_view() => Ok(()),
            (Engine::Sqlite, OperationKind::Ddl { effect: DdlEffect::Servers { .. }, .. }) => {
                Err(invalid("the shards are SQLite, and no servers that run the statement as it is"))
            }
            (Engine::Sqlite, _) | (Engine::Postgres, OperationKind::Ddl { effect: DdlEffect::Servers { .. }, .. }) => {
                Ok(())
            }
            (Engine::Postgres, OperationKind::Ddl { effect: DdlEffect::PlaceTable { .. }, .. }) => {
                Err(invalid("moves of PostgreSQL shards are not built yet, so a table stays where it is"))
            }
            (Engine::Postgres, OperationKind::Ddl { .. }) => {
                Err(invalid("the shards are PostgreSQL servers, which run a schema change as it is"))
            }
            (Engine::Postgres, OperationKind::Rebuild { .. }) => {
                Err(invalid("a PostgreSQL shard can't be rebuilt: nobody else has its data"))
            }
            (
                Engine::Postgres,
                OperationKind::Split { .. } | OperationKind::Move { .. } | OperationKind::Merge { .. },
            ) => Err(invalid("moves of PostgreSQL shards are not built yet")),
        }
    }

    /// Whether the tables are as they were when a schema change was tried on a server.
    pub(crate) fn admit_on_servers(&self, changes: &[TableChange]) -> Applied {
        for TableChange { before, after } in changes {
            if let Some(before) = before
                && self.table(&before.name) != Some(before)
            {
                return Err(busy(format!("table {} has just been changed", before.name)));
            }
            let Some(after) = after else { continue };
            let replaces = before.as_ref().is_some_and(|before| before.name.eq_ignore_ascii_case(&after.name));
            if !replaces && self.table(&after.name).is_some() {
                return Err(CommandError::Exists { what: format!("table {}", after.name) });
            }
            if let Some((key, _)) = after.shard_key()
                && after.column(key).is_none()
            {
                return Err(invalid(format!("table {} has no column {key}, which is its shard key", after.name)));
            }
            if let TableKind::Single { shard } = after.kind {
                self.active(shard)?;
            }
        }
        let made = changes.iter().filter(|change| change.before.is_none()).count();
        if self.tables.len() + made > Self::TABLES_MAX {
            return Err(invalid(format!("a cluster has at most {} tables", Self::TABLES_MAX)));
        }
        Ok(())
    }

    pub(crate) fn change_on_servers(&mut self, changes: &[TableChange]) -> Applied {
        self.admit_on_servers(changes)?;
        for before in changes.iter().filter_map(|change| change.before.as_ref()) {
            self.tables.remove(&before.name.to_ascii_lowercase());
        }
        for TableChange { before, after } in changes {
            let Some(after) = after else { continue };
            let id = match before {
                Some(before) => before.id,
                None => {
                    self.last_table += 1;
                    TableId(self.last_table)
                }
            };
            self.tables.insert(after.name.to_ascii_lowercase(), Table { id, ..after.clone() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::*;

    fn founded() -> Catalog {
        let mut catalog = Catalog::default();
        let init = Command::Init {
            cluster_id: "test".to_owned(),
            partition_count: 16,
            replication_factor: 3,
            nodes: (1..=2).map(|id| (NodeId(id), format!("node-{id}"), format!("127.0.0.1:{id}"))).collect(),
            incarnations: BTreeMap::from([(NodeId(1), 1), (NodeId(2), 2)]),
            shards: 2,
            engine: Engine::Postgres,
            policy: Policy::default(),
            at: 1,
        };
        catalog.apply(&init).unwrap();
        for shard in 1..=2 {
            catalog.apply(&Command::ActivateShard { shard: ShardId(shard), at: 1 }).unwrap();
        }
        catalog
    }

    fn start(kind: OperationKind) -> Command {
        Command::StartOperation { kind, cause: Cause::Request("test".to_owned()), reason: String::new(), at: 1 }
    }

    #[test]
    fn servers_are_neither_moved_nor_rebuilt() {
        let mut catalog = founded();
        let (one, two, partitions) = (ShardId(1), ShardId(2), vec![PartitionId(0)]);
        let moved = OperationKind::Move { from: one, to: two, partitions: partitions.clone() };
        let kinds = [
            OperationKind::Split { from: one, to: ShardId(3), partitions: partitions.clone() },
            moved.clone(),
            OperationKind::Merge { from: one, to: two, partitions: catalog.partitions_of(one) },
        ];
        let (cause, reason) = (Cause::Request("test".to_owned()), String::new());
        let several = Command::StartMoves { moves: vec![moved], cause, reason, at: 1 };
        for command in kinds.map(start).into_iter().chain([several]) {
            let refused = catalog.apply(&command).unwrap_err();
            assert_eq!(refused.to_string(), "moves of PostgreSQL shards are not built yet");
        }
        let rebuilt = start(OperationKind::Rebuild { node: NodeId(1), shard: None });
        assert!(matches!(catalog.apply(&rebuilt), Err(CommandError::Invalid { .. })));
        assert_eq!(catalog.open_operations().count(), 0);
    }

    #[test]
    fn an_attempt_is_left_behind_when_another_begins_and_when_all_is_over() {
        let mut catalog = founded();
        let effect = DdlEffect::Servers { changes: Vec::new(), about: "CREATE INDEX".to_owned() };
        let kind = OperationKind::Ddl { effect, sql: "CREATE INDEX i ON t (a)".to_owned(), layout: 0 };
        let operation = catalog.apply(&start(kind)).unwrap().operation.unwrap();
        let begin = Command::BeginAttempt { operation, step: "prepare".to_owned(), epoch: 1, at: 1 };
        catalog.apply(&begin).unwrap();
        assert!(!catalog.is_left_behind(operation, 1));
        catalog.apply(&begin).unwrap();
        assert!(catalog.is_left_behind(operation, 1) && !catalog.is_left_behind(operation, 2));
        assert!(!catalog.is_left_behind(OperationId(operation.0 + 1), 1), "a newer catalog may know it");
        let (phase, message) = (Phase::Failed, String::new());
        catalog.apply(&Command::FinishOperation { operation, phase, message, epoch: 1, at: 1 }).unwrap();
        assert!(catalog.is_left_behind(operation, 2));
    }
}
