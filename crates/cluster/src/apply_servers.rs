//! Applying what concerns shards that are servers.

use std::collections::BTreeSet;

use crate::apply::{Applied, busy, invalid};
use crate::{
    Catalog, CommandError, DdlEffect, Engine, Generation, Millis, OperationId, OperationKind, PartitionId, Shard,
    ShardId, Table, TableChange, TableId, TableKind, View, ViewChange,
};

impl Catalog {
    /// Whether shards of this kind can do that at all.
    pub(crate) fn admit_engine(&self, kind: &OperationKind) -> Applied {
        match (self.engine, kind) {
            (_, OperationKind::Ddl { effect, .. }) if effect.is_of_view() => Ok(()),
            (
                Engine::Sqlite,
                OperationKind::Ddl { effect: DdlEffect::Servers { .. } | DdlEffect::PlaceOnServers { .. }, .. },
            ) => Err(invalid("the shards are SQLite, and no servers that run the statement as it is")),
            (Engine::Sqlite, OperationKind::Promote { .. }) => {
                Err(invalid("the shards are SQLite, whose replicas elect their leaders"))
            }
            (Engine::Sqlite, _)
            | (
                Engine::Postgres,
                OperationKind::Ddl { effect: DdlEffect::Servers { .. } | DdlEffect::PlaceOnServers { .. }, .. }
                | OperationKind::Split { .. }
                | OperationKind::Move { .. }
                | OperationKind::Merge { .. }
                | OperationKind::Promote { .. },
            ) => Ok(()),
            (Engine::Postgres, OperationKind::Ddl { .. }) => {
                Err(invalid("the shards are PostgreSQL servers, which run a schema change as it is"))
            }
            (Engine::Postgres, OperationKind::Rebuild { .. }) => {
                Err(invalid("a PostgreSQL shard can't be rebuilt: nobody else has its data"))
            }
        }
    }

    /// An attempt at a move between servers has begun: its rows are going to be at the target, and whoever planned a statement without knowing
    /// that must not send it there.
    pub(crate) fn expect_strays(&mut self, id: OperationId) {
        if self.engine != Engine::Postgres {
            return;
        }
        let Some(operation) = self.operations.get_mut(&id) else { return };
        operation.gates_closed = None;
        let Some((_, to, _)) = operation.kind.moves() else { return };
        self.change_generation_of(Some(to));
    }

    /// See [`Command::SetGates`](crate::Command::SetGates).
    pub(crate) fn set_gates(&mut self, id: OperationId, closed: bool, at: Millis) -> Applied {
        let engine = self.engine;
        let operation = self.open(id)?;
        if engine != Engine::Postgres || !operation.kind.has_gates() {
            return Err(invalid(format!("{id} moves nothing between servers")));
        }
        if operation.committed || operation.given_up || operation.attempts == 0 {
            return Err(invalid(format!("{id} has no attempt under way")));
        }
        if closed && operation.cancel_requested {
            return Err(invalid(format!("{id} is being cancelled")));
        }
        if operation.gates_closed.is_some() == closed {
            return Ok(());
        }
        operation.updated = at;
        operation.gates_closed = None;
        let gated = operation.kind.moves().map(|(from, ..)| from);
        let generation = self.change_generation_of(gated);
        if closed {
            self.open(id)?.gates_closed = Some(generation);
        }
        Ok(())
    }

    /// A move between servers is committed while its gates are closed, and so are new placements.
    pub(crate) fn admit_commit_on_servers(&mut self, id: OperationId) -> Applied {
        let engine = self.engine;
        let operation = self.open(id)?;
        match operation.kind.has_gates() && engine == Engine::Postgres && operation.gates_closed.is_none() {
            true => Err(invalid(format!("the gates of {id} are open"))),
            false => Ok(()),
        }
    }

    /// What was planned for a shard (`None`: for any) before now is to be planned anew.
    fn change_generation_of(&mut self, shard: Option<ShardId>) -> Generation {
        let generation = self.bump();
        let concerned = |known: &&mut Shard| shard.is_none_or(|shard| shard == known.id);
        self.shards.values_mut().filter(concerned).for_each(|known| known.ownership = generation);
        generation
    }

    /// The shards whose gates are closed: each by one open move of which it is the source, or all by one that places tables anew.
    pub fn closed_gates(&self) -> BTreeSet<ShardId> {
        let closed = self.open_operations().filter(|open| open.gates_closed.is_some());
        let shards = closed.flat_map(|open| match open.kind.moves() {
            Some((from, ..)) => vec![from],
            None => self.shards.keys().copied().collect(),
        });
        shards.collect()
    }

    /// Partitions whose rows may be on a shard's server although it does not own them: a move's target has them until its commit, and its source
    /// from then on until the move has ended.
    pub fn strays_on(&self, shard: ShardId) -> BTreeSet<PartitionId> {
        if self.engine != Engine::Postgres {
            return BTreeSet::new();
        }
        let open = self.open_operations().filter(|open| open.attempts > 0);
        let stray = open.filter_map(|open| {
            let (from, to, partitions) = open.kind.moves()?;
            (shard == if open.committed { from } else { to }).then_some(partitions)
        });
        stray.flatten().copied().collect()
    }

    /// Whether tables and views are as they were when a schema change was tried on a server.
    pub(crate) fn admit_on_servers(&self, changes: &[TableChange], views: &[ViewChange]) -> Applied {
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
        self.admit_views(changes, views)?;
        if self.views.len() + views.iter().filter(|change| change.before.is_none()).count() > Self::VIEWS_MAX {
            return Err(invalid(format!("a cluster has at most {} views", Self::VIEWS_MAX)));
        }
        Ok(())
    }

    /// Tables and views share their names. A view that was made while the change was tried may read a table by a name that goes.
    fn admit_views(&self, changes: &[TableChange], views: &[ViewChange]) -> Applied {
        let changed = |view: &View| views.iter().any(|change| change.before.as_ref() == Some(view));
        for ViewChange { before, after } in views {
            let Some(name) = before.as_ref().or(after.as_ref()).map(|view| &view.name) else { continue };
            if self.view(name) != before.as_ref() {
                return Err(busy(format!("view {name} has just been changed")));
            }
            let goes = |name: &str| changes.iter().any(|change| change.takes(name));
            if let Some(after) = after.as_ref().filter(|after| self.table(&after.name).is_some() && !goes(&after.name))
            {
                return Err(CommandError::Exists { what: format!("table {}", after.name) });
            }
        }
        for change in changes {
            if let Some(after) = &change.after
                && self.view(&after.name).is_some_and(|view| !changed(view))
            {
                return Err(CommandError::Exists { what: format!("view {}", after.name) });
            }
            let gone = change.before.as_ref().filter(|before| change.takes(&before.name));
            if let Some(gone) = gone
                && let Some(view) = self.views.values().find(|view| view.reads(&gone.name) && !changed(view))
            {
                return Err(busy(format!("view {} has just been made, and reads table {}", view.name, gone.name)));
            }
        }
        Ok(())
    }

    /// Whether no schema was changed since the operation that was the newest then. One that the journal has forgotten may have done so.
    pub(crate) fn admit_look(&self, seen: OperationId) -> Applied {
        let since = seen.0 + 1..=self.last_operation;
        for id in since.map(OperationId) {
            let changed = self
                .operations
                .get(&id)
                .is_none_or(|operation| operation.committed && matches!(operation.kind, OperationKind::Ddl { .. }));
            if changed {
                return Err(busy(format!(
                    "{id} may have changed the schema since the tables were looked at; try again"
                )));
            }
        }
        Ok(())
    }

    /// Whether these tables can be placed anew.
    pub(crate) fn admit_placing(&self, changes: &[TableChange]) -> Applied {
        let same = |before: &Table, after: &Table| {
            let columns = before.columns.iter().zip(&after.columns).all(|(before, after)| before.name == after.name);
            before.id == after.id && before.name == after.name && columns && before.columns.len() == after.columns.len()
        };
        let places = |change: &TableChange| match (&change.before, &change.after) {
            (Some(before), Some(after)) => same(before, after),
            _ => false,
        };
        if changes.is_empty() || !changes.iter().all(places) {
            return Err(invalid("another placement leaves a table as it is but for that"));
        }
        self.admit_on_servers(changes, &[])
    }

    /// What was planned by the placements that these tables had is to be planned anew.
    pub(crate) fn place_on_servers(&mut self, changes: &[TableChange]) -> Applied {
        self.admit_placing(changes)?;
        self.change_on_servers(changes, &[])?;
        // Schema changes, too: whether a foreign key holds follows from the placements.
        self.layout = self.change_generation_of(None);
        Ok(())
    }

    pub(crate) fn change_on_servers(&mut self, changes: &[TableChange], views: &[ViewChange]) -> Applied {
        self.admit_on_servers(changes, views)?;
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
        for before in views.iter().filter_map(|change| change.before.as_ref()) {
            self.views.remove(&before.name.to_ascii_lowercase());
        }
        for after in views.iter().filter_map(|change| change.after.as_ref()) {
            self.views.insert(after.name.to_ascii_lowercase(), after.clone());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

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
    fn a_server_is_not_rebuilt() {
        let mut catalog = founded();
        let rebuilt = start(OperationKind::Rebuild { node: NodeId(1), shard: None });
        assert!(matches!(catalog.apply(&rebuilt), Err(CommandError::Invalid { .. })));
        assert_eq!(catalog.open_operations().count(), 0);
    }

    #[test]
    fn a_split_is_committed_behind_closed_gates_and_its_rows_are_strays_until_it_ends() {
        let mut catalog = founded();
        let (one, three, partitions) = (ShardId(1), ShardId(3), vec![PartitionId(0), PartitionId(3)]);
        let strays: BTreeSet<PartitionId> = partitions.iter().copied().collect();
        let kind = OperationKind::Split { from: one, to: three, partitions };
        let operation = catalog.apply(&start(kind)).unwrap().operation.unwrap();
        let gates = |closed| Command::SetGates { operation, closed, epoch: 1, at: 1 };
        let commit = Command::CommitOperation { operation, epoch: 1, at: 1 };
        assert!(catalog.apply(&gates(true)).is_err(), "nothing was begun");
        assert!(catalog.strays_on(three).is_empty());
        catalog.apply(&Command::BeginAttempt { operation, step: "copy".to_owned(), epoch: 1, at: 1 }).unwrap();
        assert_eq!(catalog.strays_on(three), strays);
        assert_eq!(catalog.shards[&three].ownership, catalog.generation);
        assert!(catalog.apply(&commit).is_err(), "the gates are open");
        catalog.apply(&gates(true)).unwrap();
        assert_eq!(catalog.closed_gates(), BTreeSet::from([one]));
        assert_eq!(catalog.operations[&operation].gates_closed, Some(catalog.generation));
        assert_eq!(catalog.shards[&one].ownership, catalog.generation);
        let closed = catalog.clone();
        catalog.apply(&gates(true)).unwrap();
        assert_eq!(catalog, closed);
        catalog.apply(&gates(false)).unwrap();
        assert!(catalog.closed_gates().is_empty() && catalog.apply(&commit).is_err());
        catalog.apply(&gates(true)).unwrap();
        catalog.apply(&commit).unwrap();
        assert_eq!(catalog.shards[&three].state, ShardState::Active);
        assert_eq!(catalog.owner(PartitionId(3)), Some(three));
        assert!(catalog.closed_gates().is_empty() && catalog.strays_on(three).is_empty());
        assert_eq!(catalog.strays_on(one), strays);
        assert_eq!(catalog.check(), Vec::new());
        let (phase, message) = (Phase::Successful, String::new());
        catalog.apply(&Command::FinishOperation { operation, phase, message, epoch: 1, at: 1 }).unwrap();
        assert!(catalog.strays_on(one).is_empty());
    }

    #[test]
    fn tables_are_placed_anew_behind_the_closed_gates_of_all_shards() {
        let mut catalog = founded();
        let column = Column {
            name: "k".to_owned(),
            decl_type: "bigint".to_owned(),
            collation: None,
            not_null: true,
            generated: false,
            serial: None,
            has_default: false,
        };
        let single = Table {
            id: TableId(1),
            name: "t".to_owned(),
            kind: TableKind::Single { shard: ShardId(1) },
            columns: vec![column],
            primary_key: vec!["k".to_owned()],
            rowid_alias: false,
            without_rowid: false,
            create_sql: String::new(),
            indexes: Vec::new(),
            triggers: Vec::new(),
        };
        catalog.change_on_servers(&[TableChange { before: None, after: Some(single.clone()) }], &[]).unwrap();
        let kind = TableKind::Sharded { key: "k".to_owned(), key_type: KeyType::Integer };
        let sharded = Table { kind, ..single.clone() };
        let placing = |before: &Table, after: Option<&Table>| {
            let changes = vec![TableChange { before: Some(before.clone()), after: after.cloned() }];
            let effect = DdlEffect::PlaceOnServers { changes, seen: OperationId(0) };
            OperationKind::Ddl { effect, sql: String::new(), layout: 0 }
        };
        assert!(catalog.apply(&start(placing(&single, None))).is_err(), "that would be a drop");
        assert!(catalog.apply(&start(placing(&sharded, Some(&single)))).is_err(), "it is not as it was");
        let operation = catalog.apply(&start(placing(&single, Some(&sharded)))).unwrap().operation.unwrap();
        let gates = |closed| Command::SetGates { operation, closed, epoch: 1, at: 1 };
        let commit = Command::CommitOperation { operation, epoch: 1, at: 1 };
        catalog.apply(&Command::BeginAttempt { operation, step: "fence".to_owned(), epoch: 1, at: 1 }).unwrap();
        assert!(catalog.apply(&commit).is_err(), "the gates are open");
        catalog.apply(&gates(true)).unwrap();
        let closed = catalog.generation;
        assert_eq!(catalog.closed_gates(), BTreeSet::from([ShardId(1), ShardId(2)]));
        assert!(catalog.shards.values().all(|shard| shard.ownership == closed));
        catalog.apply(&commit).unwrap();
        assert_eq!(catalog.table("t").map(|table| &table.kind), Some(&sharded.kind));
        assert!(catalog.closed_gates().is_empty());
        assert!(catalog.shards.values().all(|shard| shard.ownership > closed), "who waited plans again");
        let effect = DdlEffect::Servers { changes: Vec::new(), views: Vec::new(), about: "create index".to_owned() };
        let kind = |layout| OperationKind::Ddl { effect: effect.clone(), sql: String::new(), layout };
        assert!(
            matches!(catalog.apply(&start(kind(catalog.layout))), Err(CommandError::Busy { .. })),
            "it has not ended"
        );
        let (phase, message) = (Phase::Successful, String::new());
        catalog.apply(&Command::FinishOperation { operation, phase, message, epoch: 1, at: 1 }).unwrap();
        assert!(matches!(catalog.apply(&start(kind(0))), Err(CommandError::Busy { .. })), "it was planned before");
        catalog.apply(&start(kind(catalog.layout))).unwrap();
        assert_eq!(catalog.check(), Vec::new());
    }

    #[test]
    fn a_schema_change_since_the_look_is_in_the_way_of_another_placement() {
        let mut catalog = founded();
        let seen = catalog.newest_operation();
        let effect = DdlEffect::Servers { changes: Vec::new(), views: Vec::new(), about: "create index".to_owned() };
        let kind = OperationKind::Ddl { effect, sql: String::new(), layout: 0 };
        let operation = catalog.apply(&start(kind.clone())).unwrap().operation.unwrap();
        let finish = |operation, phase| {
            let message = String::new();
            Command::FinishOperation { operation, phase, message, epoch: 1, at: 1 }
        };
        catalog.apply(&finish(operation, Phase::Failed)).unwrap();
        assert_eq!(catalog.admit_look(seen), Ok(()), "it changed nothing");
        let operation = catalog.apply(&start(kind)).unwrap().operation.unwrap();
        catalog.apply(&Command::CommitOperation { operation, epoch: 1, at: 1 }).unwrap();
        catalog.apply(&finish(operation, Phase::Successful)).unwrap();
        assert!(matches!(catalog.admit_look(seen), Err(CommandError::Busy { .. })));
        assert_eq!(catalog.admit_look(operation), Ok(()));
        catalog.operations.clear();
        assert!(catalog.admit_look(seen).is_err(), "nobody knows any more");
    }

    #[test]
    fn what_is_given_up_has_open_gates() {
        let mut catalog = founded();
        let kind = OperationKind::Move { from: ShardId(1), to: ShardId(2), partitions: vec![PartitionId(0)] };
        let operation = catalog.apply(&start(kind)).unwrap().operation.unwrap();
        catalog.apply(&Command::BeginAttempt { operation, step: "copy".to_owned(), epoch: 1, at: 1 }).unwrap();
        catalog.apply(&Command::SetGates { operation, closed: true, epoch: 1, at: 1 }).unwrap();
        let (message, code) = ("no".to_owned(), None);
        catalog.apply(&Command::GiveUpOperation { operation, message, code, epoch: 1, at: 1 }).unwrap();
        assert!(catalog.closed_gates().is_empty());
        assert_eq!(catalog.strays_on(ShardId(2)).len(), 1, "until it has ended");
    }

    #[test]
    fn an_attempt_is_left_behind_when_another_begins_and_when_all_is_over() {
        let mut catalog = founded();
        let effect = DdlEffect::Servers { changes: Vec::new(), views: Vec::new(), about: "CREATE INDEX".to_owned() };
        let kind = OperationKind::Ddl { effect, sql: "CREATE INDEX i ON t (a)".to_owned(), layout: 0 };
        let operation = catalog.apply(&start(kind)).unwrap().operation.unwrap();
        let begin = Command::BeginAttempt { operation, step: "prepare".to_owned(), epoch: 1, at: 1 };
        catalog.apply(&begin).unwrap();
        assert_eq!(catalog.left_behind(operation, 1), None);
        catalog.apply(&begin).unwrap();
        assert_eq!((catalog.left_behind(operation, 1), catalog.left_behind(operation, 2)), (Some(false), None));
        assert_eq!(catalog.left_behind(OperationId(operation.0 + 1), 1), None, "a newer catalog may know it");
        let mut committed = catalog.clone();
        let finish = |phase| Command::FinishOperation { operation, phase, message: String::new(), epoch: 1, at: 1 };
        catalog.apply(&finish(Phase::Failed)).unwrap();
        assert_eq!(catalog.left_behind(operation, 2), Some(false));
        committed.apply(&Command::CommitOperation { operation, epoch: 1, at: 1 }).unwrap();
        assert_eq!(committed.left_behind(operation, 2), None, "its leader tells the servers");
        committed.apply(&finish(Phase::Successful)).unwrap();
        assert_eq!(committed.left_behind(operation, 2), Some(true), "a standby may not have heard of it");
        assert_eq!(committed.left_behind(operation, 1), Some(false));
    }
}
