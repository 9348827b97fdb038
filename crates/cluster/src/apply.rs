//! Applying commands. Total (never panics, whatever the log holds), deterministic, and all or nothing: a
//! command that is refused leaves the catalog as it was.

use crate::{
    Catalog, Cause, Command, CommandError, DdlEffect, Decision, DecisionId, Engine, Generation, Millis, Node, NodeId,
    NodeState, Operation, OperationId, OperationKind, PARTITION_COUNT_MAX, Pair, PartitionId, Phase, Policy, Reply,
    Shard, ShardId, ShardState, Step, Table, TableId, TableKind, TriggerState, trigger_about,
};

pub(crate) type Applied<T = ()> = Result<T, CommandError>;

impl Catalog {
    /// Carry out one command.
    pub fn apply(&mut self, command: &Command) -> Result<Reply, CommandError> {
        let mut reply = Reply { generation: 0, operation: None, decision: None };
        match command {
            Command::Init {
                cluster_id,
                partition_count,
                replication_factor,
                nodes,
                incarnations,
                shards,
                engine,
                policy,
                at,
            } => {
                if !self.is_initialised() {
                    self.engine = *engine;
                }
                self.init(cluster_id, *partition_count, *replication_factor, nodes, *shards, policy, *at)?;
                self.note_incarnations(incarnations);
            }
            _ if !self.is_initialised() => return Err(CommandError::NotInitialised),
            Command::RegisterNode { id, name, address, incarnation, at } => {
                self.register_node(*id, name, address, *incarnation, *at)?;
            }
            Command::NoteServer { shard, node, place, .. } => self.note_server(*shard, *node, place)?,
            Command::NoteStandby { shard, node, reign, said, follows, .. } => {
                self.note_standby(*shard, *node, (*reign, *said), *follows)?;
            }
            Command::ActivateShard { shard, at } => self.activate_shard(*shard, *at)?,
            Command::RemoveShard { shard, at } => self.remove_shard(*shard, *at)?,
            Command::SetPolicy { policy, .. } => {
                policy.check().map_err(invalid)?;
                self.policy = policy.clone();
            }
            Command::ApproveDecision { decision, at } => {
                reply.decision = Some(*decision);
                reply.operation = Some(self.approve(*decision, *at)?);
            }
            Command::StartOperation { kind, cause, reason, at } => {
                reply.operation = Some(self.start(kind, cause.clone(), reason, *at)?);
            }
            Command::StartMoves { moves, cause, reason, at } => {
                reply.operation = self.start_moves(moves, cause, reason, *at)?;
            }
            Command::RecordDecision { decision, start, at } => {
                let (decision, operation) = self.record(decision, start.as_ref(), *at)?;
                reply.decision = Some(decision);
                reply.operation = operation;
            }
            Command::JournalStep { operation, step, ended, detail, epoch, at } => {
                self.work_on(*operation, *epoch)?;
                self.journal(*operation, step, *ended, detail, *at)?;
                self.take(*operation, *epoch);
            }
            Command::BeginAttempt { operation, step, epoch, at } => {
                self.work_on(*operation, *epoch)?;
                self.journal(*operation, step, false, "", *at)?;
                self.open(*operation)?.attempts += 1;
                self.expect_strays(*operation);
                self.take(*operation, *epoch);
            }
            Command::SetGates { operation, closed, epoch, at } => {
                self.work_on(*operation, *epoch)?;
                self.set_gates(*operation, *closed, *at)?;
                self.take(*operation, *epoch);
            }
            Command::CommitOperation { operation, epoch, at } => {
                self.work_on(*operation, *epoch)?;
                self.commit(*operation, *at)?;
                self.take(*operation, *epoch);
            }
            Command::KeepReceipt { operation, receipt, epoch, at } => {
                self.work_on(*operation, *epoch)?;
                self.keep_receipt(*operation, receipt, *at)?;
                self.take(*operation, *epoch);
            }
            Command::GiveUpOperation { operation, message, code, epoch, at } => {
                self.work_on(*operation, *epoch)?;
                self.give_up(*operation, message, code.as_deref(), *at)?;
                self.take(*operation, *epoch);
            }
            Command::AwaitShards { operation, shards, epoch, at } => {
                self.work_on(*operation, *epoch)?;
                self.await_shards(*operation, shards, *at)?;
                self.take(*operation, *epoch);
            }
            Command::FinishOperation { operation, phase, message, epoch, at } => {
                self.work_on(*operation, *epoch)?;
                self.finish(*operation, *phase, message, *at)?;
                self.take(*operation, *epoch);
            }
            Command::CancelOperation { operation, at } => {
                let operation = self.open(*operation)?;
                if operation.committed {
                    return Err(invalid(format!("{} is past its point of no return", operation.id)));
                }
                if let OperationKind::Rebuild { .. } = operation.kind {
                    return Err(invalid("a rebuild can't be cancelled: until it has ended a replica is missing"));
                }
                if operation.given_up {
                    return Err(invalid(format!("{} was given up and is being taken back", operation.id)));
                }
                operation.cancel_requested = true;
                operation.updated = *at;
            }
            Command::PutUser { name, verifier, secret, at } => self.put_user(name, verifier, secret, *at)?,
            Command::RemoveUser { name, last, .. } => self.remove_user(name, *last)?,
            Command::NoteDisagreement { shard, what, .. } => self.note_disagreement(*shard, what.as_ref())?,
        }
        reply.generation = self.generation;
        Ok(reply)
    }

    #[allow(clippy::too_many_arguments)] // one per field of the command
    fn init(
        &mut self,
        cluster_id: &str,
        partition_count: u32,
        replication_factor: u32,
        nodes: &[(NodeId, String, String)],
        shards: u32,
        policy: &Policy,
        at: Millis,
    ) -> Applied {
        if self.is_initialised() {
            if self.cluster_id == cluster_id {
                return Ok(());
            }
            return Err(CommandError::OtherCluster { ours: self.cluster_id.clone(), theirs: cluster_id.to_owned() });
        }
        if cluster_id.is_empty() || nodes.is_empty() || replication_factor == 0 {
            return Err(invalid("a cluster needs an id, a node and a replication factor of at least 1"));
        }
        if partition_count == 0 || partition_count > PARTITION_COUNT_MAX {
            return Err(invalid(format!("partition_count must be from 1 to {PARTITION_COUNT_MAX}")));
        }
        if shards == 0 || shards > partition_count {
            return Err(invalid("a cluster starts with at least one shard, and with no more shards than partitions"));
        }
        self.cluster_id = cluster_id.to_owned();
        self.partition_count = partition_count;
        self.replication_factor = replication_factor;
        self.policy = policy.clone();
        for (id, name, address) in nodes {
            self.nodes.insert(*id, new_node(*id, name, address, at));
        }
        let generation = self.bump();
        for number in 1..=shards {
            self.new_shard(ShardId(number), generation, at);
        }
        self.owners = (0..partition_count)
            .map(|p| ShardId((u64::from(p) * u64::from(shards) / u64::from(partition_count)) as u32 + 1))
            .collect();
        Ok(())
    }

    fn new_shard(&mut self, id: ShardId, ownership: Generation, at: Millis) {
        let replicas = self.place_replicas();
        let shard = Shard {
            id,
            state: ShardState::Creating,
            replicas,
            ownership,
            since: at,
            numbers: Default::default(),
            distrusted: Default::default(),
            disagreement: None,
            server: None,
            pair: Pair::default(),
        };
        self.shards.insert(id, shard);
    }

    fn activate_shard(&mut self, id: ShardId, at: Millis) -> Applied {
        let shard = self.shards.get_mut(&id).ok_or_else(|| unknown(id))?;
        match shard.state {
            ShardState::Active => return Ok(()),
            ShardState::Leaving | ShardState::Removed => return Err(invalid(format!("{id} was removed"))),
            ShardState::Creating => {}
        }
        shard.state = ShardState::Active;
        shard.since = at;
        self.bump();
        Ok(())
    }

    fn remove_shard(&mut self, id: ShardId, at: Millis) -> Applied {
        if !self.units_of(id).is_empty() {
            return Err(invalid(format!("{id} still owns data; move it away first")));
        }
        if let Some(other) = self.open_operations().find(|other| other.kind.single_home() == Some(id)) {
            return Err(busy(format!("{} is creating a table on {id}", other.id)));
        }
        let shard = self.shards.get_mut(&id).ok_or_else(|| unknown(id))?;
        shard.state = ShardState::Removed;
        shard.since = at;
        self.bump();
        Ok(())
    }

    fn start(&mut self, kind: &OperationKind, cause: Cause, reason: &str, at: Millis) -> Applied<OperationId> {
        self.admit_engine(kind)?;
        // What is to come back does not queue behind what is to be changed.
        if !matches!(kind, OperationKind::Promote { .. }) {
            self.admit_open(1)?;
        }
        self.admit_beside_waiting(kind)?;
        self.admit_beside_moves(kind)?;
        self.admit(kind)?;
        if let OperationKind::Split { to, .. } = kind {
            let generation = self.bump();
            self.new_shard(*to, generation, at);
        }
        self.distrust(kind);
        self.announce_trigger(kind);
        Ok(self.enter(kind, cause, reason, at))
    }

    /// Whether so many more operations may be open.
    pub(crate) fn admit_open(&self, more: usize) -> Applied {
        match self.open_operations().count() + more > Self::OPERATIONS_OPEN_MAX {
            true => Err(busy(format!(
                "more than {} operations would be waiting; try again later",
                Self::OPERATIONS_OPEN_MAX
            ))),
            false => Ok(()),
        }
    }

    /// Whether no operation that waits for a shard comes first.
    pub(crate) fn admit_beside_waiting(&self, kind: &OperationKind) -> Applied {
        let Some((other, shard)) = self.held(kind) else { return Ok(()) };
        let names: Vec<String> = other.waits_for.iter().map(ToString::to_string).collect();
        let names = names.join(" and ");
        Err(busy(format!("{} waits for {names} and comes first on {shard}, which this needs too", other.id)))
    }

    /// Put an operation that was admitted into the journal.
    pub(crate) fn enter(&mut self, kind: &OperationKind, cause: Cause, reason: &str, at: Millis) -> OperationId {
        self.last_operation += 1;
        let id = OperationId(self.last_operation);
        let operation = Operation {
            id,
            kind: kind.clone(),
            cause,
            reason: reason.to_owned(),
            phase: Phase::Pending,
            steps: Vec::new(),
            attempts: 0,
            committed: false,
            given_up: false,
            waits_for: Vec::new(),
            epoch: 0,
            cancel_requested: false,
            message: String::new(),
            code: None,
            gates_closed: None,
            receipt: None,
            created: at,
            updated: at,
        };
        self.operations.insert(id, operation);
        self.forget_old();
        id
    }

    /// Whether an operation makes sense on the catalog as it is.
    fn admit(&self, kind: &OperationKind) -> Applied {
        match kind {
            OperationKind::Split { from, to, partitions } => self.admit_split(*from, *to, partitions),
            OperationKind::Move { from, to, partitions } => self.admit_move(*from, *to, partitions),
            OperationKind::Merge { from, to, partitions } => self.admit_merge(*from, *to, partitions),
            OperationKind::Ddl { effect, layout, .. } if *layout != self.layout && !effect.is_of_view() => {
                Err(busy("a table has just been given another placement".to_owned()))
            }
            OperationKind::Ddl { effect, .. } => self.admit_ddl(effect),
            OperationKind::Rebuild { node, shard } => self.admit_rebuild(*node, *shard),
            OperationKind::Promote { shard, to, reign } => self.admit_promotion(*shard, *to, *reign),
        }
    }

    fn admit_ddl(&self, effect: &DdlEffect) -> Applied {
        let name = effect.table();
        let names = effect.names();
        let touches = |other: &DdlEffect| {
            other.names().iter().any(|other| names.iter().any(|name| other.eq_ignore_ascii_case(name)))
        };
        if let Some(other) = (self.open_operations())
            .find(|other| matches!(&other.kind, OperationKind::Ddl { effect, .. } if touches(effect)))
        {
            return Err(busy(format!("{} is still changing {name}", other.id)));
        }
        let places = |effect: &DdlEffect| matches!(effect, DdlEffect::PlaceOnServers { .. });
        if let Some(other) = (self.open_operations()).find(
            |other| matches!(&other.kind, OperationKind::Ddl { effect: open, .. } if places(effect) || places(open)),
        ) {
            return Err(busy(format!("{} is still changing tables", other.id)));
        }
        // A foreign key is planned by the placements of both tables.
        let ties = |one: &DdlEffect, other: &DdlEffect| {
            matches!(one, DdlEffect::PlaceTable { .. }) && other.refers_to(one.table())
        };
        if let Some(other) = (self.open_operations()).find(
            |other| matches!(&other.kind, OperationKind::Ddl { effect: open, .. } if ties(open, effect) || ties(effect, open)),
        ) {
            return Err(busy(format!("{} is still changing a table that a foreign key of this concerns", other.id)));
        }
        match effect {
            DdlEffect::Servers { changes, views, .. } => self.admit_on_servers(changes, views),
            DdlEffect::PlaceOnServers { changes, seen } => {
                self.admit_look(*seen)?;
                self.admit_placing(changes)
            }
            DdlEffect::CreateTable(table) => {
                self.free_name(name)?;
                if self.tables.len() >= Self::TABLES_MAX {
                    return Err(invalid(format!("a cluster has at most {} tables", Self::TABLES_MAX)));
                }
                match &table.kind {
                    TableKind::Sharded { key, .. } if table.column(key).is_none() => {
                        Err(invalid(format!("table {name} has no column {key} to shard by")))
                    }
                    TableKind::Sharded { .. } if table.primary_key.is_empty() => {
                        Err(invalid(format!("table {name} needs a primary key to be sharded")))
                    }
                    TableKind::Single { shard } => self.admit_single(*shard),
                    _ => Ok(()),
                }
            }
            DdlEffect::CreateIndex { index, .. } => {
                self.known_table(name)?;
                self.free_name(&index.name)
            }
            DdlEffect::DropIndex { index, .. } => {
                let table = self.known_table(name)?;
                match table.indexes.iter().any(|known| known.name.eq_ignore_ascii_case(index)) {
                    true => Ok(()),
                    false => Err(unknown(format!("index {index}"))),
                }
            }
            DdlEffect::AddColumn { column, .. } => match self.known_table(name)?.column(&column.name) {
                Some(_) => Err(CommandError::Exists { what: format!("column {name}.{}", column.name) }),
                None => Ok(()),
            },
            DdlEffect::DropTable { .. } => self.admit_drop(name),
            DdlEffect::CreateTrigger { trigger, about, seen, .. } => self.admit_trigger(name, trigger, about, *seen),
            DdlEffect::DropTrigger { trigger, .. } => {
                let ready =
                    self.known_table(name)?.ready_triggers().any(|known| known.name.eq_ignore_ascii_case(trigger));
                if ready { Ok(()) } else { Err(unknown(format!("trigger {trigger}"))) }
            }
            DdlEffect::PlaceTable { before, after } => self.admit_place(before, after),
            DdlEffect::AlterTable { before, after, triggers, .. } => {
                if self.known_table(name)? != &**before {
                    return Err(busy(format!("table {name} has just been changed")));
                }
                self.admit_retold(name, triggers)?;
                if after.name.eq_ignore_ascii_case(name) { Ok(()) } else { self.free_name(&after.name) }
            }
            DdlEffect::CreateView(_) if self.views.len() >= Self::VIEWS_MAX => {
                Err(invalid(format!("a cluster has at most {} views", Self::VIEWS_MAX)))
            }
            DdlEffect::CreateView(_) => self.free_name(name),
            DdlEffect::DropView { .. } => match self.view(name) {
                Some(_) => Ok(()),
                None => Err(unknown(format!("view {name}"))),
            },
        }
    }

    /// Everything but the placement stays, and that is not the same.
    fn admit_place(&self, before: &Table, after: &Table) -> Applied {
        if self.known_table(&before.name)? != before || trigger_about(&self.tables, &before.name).is_some() {
            return Err(busy(format!("table {} has just been changed", before.name)));
        }
        if (Table { kind: before.kind.clone(), ..after.clone() }) != *before || after.kind == before.kind {
            return Err(invalid(format!("of table {} only the placement is to change", before.name)));
        }
        match &after.kind {
            TableKind::Sharded { key, .. } if after.column(key).is_none() || after.primary_key.is_empty() => {
                Err(invalid(format!("table {} needs the column {key} and a primary key to be sharded", after.name)))
            }
            TableKind::Single { shard } => self.admit_single(*shard),
            _ => Ok(()),
        }
    }

    /// Tables, views and indexes share their names.
    fn free_name(&self, name: &str) -> Applied {
        let index = |table: &Table| table.indexes.iter().any(|index| index.name.eq_ignore_ascii_case(name));
        let what = if self.table(name).is_some() {
            "table"
        } else if self.view(name).is_some() {
            "view"
        } else if self.tables.values().any(index) {
            "index"
        } else {
            return Ok(());
        };
        Err(CommandError::Exists { what: format!("{what} {name}") })
    }

    /// A split that fails removes its shard, and so does a merge that succeeds: until it has ended nothing else gets a home there.
    fn admit_single(&self, shard: ShardId) -> Applied {
        self.active(shard)?;
        for other in self.open_operations() {
            match other.kind {
                OperationKind::Split { to, .. } if to == shard => {
                    return Err(busy(format!("{} is still making {shard}; wait for it to end", other.id)));
                }
                OperationKind::Merge { from, .. } if from == shard => {
                    return Err(busy(format!("{} is taking {shard} down; name another shard", other.id)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn record(
        &mut self,
        decision: &Decision,
        start: Option<&OperationKind>,
        at: Millis,
    ) -> Applied<(DecisionId, Option<OperationId>)> {
        let id = DecisionId(self.last_decision + 1);
        let operation = match start {
            Some(kind) => Some(self.start(kind, Cause::Decision(id), decision.verdict.reason(), at)?),
            None => None,
        };
        self.last_decision = id.0;
        self.decisions.insert(id, Decision { id, operation, ..decision.clone() });
        while self.decisions.len() > Self::DECISIONS_KEPT_MAX {
            self.decisions.pop_first();
        }
        Ok((id, operation))
    }

    /// Start what a decision recommends, as long as the cluster is still such that it can be done.
    fn approve(&mut self, id: DecisionId, at: Millis) -> Applied<OperationId> {
        let decision = self.decisions.get(&id).ok_or_else(|| CommandError::Unknown { what: id.to_string() })?;
        if let Some(operation) = decision.operation {
            return Err(invalid(format!("{id} was approved already: {operation} carries it out")));
        }
        let Some(kind) = decision.verdict.operation() else {
            return Err(invalid(format!("{id} recommends nothing that could be done")));
        };
        let reason = decision.verdict.reason().to_owned();
        let operation = self.start(&kind, Cause::Decision(id), &reason, at)?;
        if let Some(decision) = self.decisions.get_mut(&id) {
            decision.operation = Some(operation);
        }
        Ok(operation)
    }

    fn journal(&mut self, id: OperationId, name: &str, ended: bool, detail: &str, at: Millis) -> Applied {
        self.admit_begin(id)?;
        let operation = self.open(id)?;
        operation.phase = Phase::Progressing;
        operation.updated = at;
        // A step that a new leader does again is journaled again only if others came between.
        let journaled = operation.steps.len();
        match operation.steps.last_mut() {
            Some(step) if step.name == name && step.ended.is_none() => {
                step.ended = ended.then_some(at);
                step.detail = detail.to_owned();
            }
            _ if journaled >= Self::STEPS_MAX => {
                return Err(invalid(format!("{id} has journaled {} steps already", Self::STEPS_MAX)));
            }
            _ => operation.steps.push(Step {
                name: name.to_owned(),
                begun: at,
                ended: ended.then_some(at),
                detail: detail.to_owned(),
            }),
        }
        Ok(())
    }

    fn commit(&mut self, id: OperationId, at: Millis) -> Applied {
        let operation = self.open(id)?;
        if operation.committed {
            return Ok(());
        }
        if operation.cancel_requested {
            return Err(invalid(format!("{id} is being cancelled")));
        }
        if operation.given_up {
            return Err(invalid(format!("{id} was given up")));
        }
        if operation.receipt.as_ref().is_some_and(|receipt| !receipt.agrees()) {
            return Err(invalid(format!("what {id} has brought differs from its source")));
        }
        let kind = operation.kind.clone();
        self.admit_commit_on_servers(id)?;
        match &kind {
            OperationKind::Split { from, to, partitions } | OperationKind::Move { from, to, partitions } => {
                // A server has its reference tables by the same stream, so it begins to serve with the commit.
                if self.engine == Engine::Postgres {
                    self.activate_shard(*to, at)?;
                }
                self.hand_over(*from, *to, partitions)?;
            }
            OperationKind::Merge { from, to, partitions } => self.commit_merge(*from, *to, partitions, at)?,
            OperationKind::Ddl { effect, .. } => {
                self.change_schema(effect)?;
                self.bump();
            }
            OperationKind::Rebuild { node, shard } => self.commit_rebuild(*node, *shard)?,
            OperationKind::Promote { shard, to, reign } => self.commit_promotion(*shard, *to, *reign)?,
        }
        let operation = self.open(id)?;
        operation.committed = true;
        operation.gates_closed = None;
        operation.updated = at;
        Ok(())
    }

    /// The partitions have another owner from here on.
    pub(crate) fn hand_over(&mut self, from: ShardId, to: ShardId, partitions: &[PartitionId]) -> Applied {
        self.active(to)?;
        if let Some(lost) = partitions.iter().find(|partition| self.owner(**partition) != Some(from)) {
            return Err(invalid(format!("partition {lost} is not owned by {from} any more")));
        }
        let generation = self.bump();
        for partition in partitions {
            self.owners[partition.0 as usize] = to;
        }
        for shard in [from, to] {
            if let Some(shard) = self.shards.get_mut(&shard) {
                shard.ownership = generation;
            }
        }
        Ok(())
    }

    fn give_up(&mut self, id: OperationId, message: &str, code: Option<&str>, at: Millis) -> Applied {
        let operation = self.open(id)?;
        if operation.committed {
            return Err(invalid(format!("{id} is committed and can't be given up")));
        }
        if operation.given_up {
            return Ok(()); // by an earlier leader, whose reason it keeps
        }
        operation.given_up = true;
        operation.gates_closed = None;
        operation.message = message.to_owned();
        operation.code = code.map(str::to_owned);
        operation.updated = at;
        Ok(())
    }

    fn await_shards(&mut self, id: OperationId, shards: &[ShardId], at: Millis) -> Applied {
        let operation = self.open(id)?;
        if !operation.committed && !operation.given_up {
            return Err(invalid(format!("{id} is neither committed nor given up, so it can't be put off")));
        }
        if shards.is_empty() {
            return Err(invalid(format!("{id} waits for at least one shard")));
        }
        operation.waits_for = shards.to_vec();
        operation.updated = at;
        Ok(())
    }

    fn change_schema(&mut self, effect: &DdlEffect) -> Applied {
        match effect {
            DdlEffect::Servers { changes, views, .. } => return self.change_on_servers(changes, views),
            DdlEffect::PlaceOnServers { changes, .. } => return self.place_on_servers(changes),
            _ => {}
        }
        let name = effect.table().to_ascii_lowercase();
        if let DdlEffect::CreateTable(table) = effect {
            if self.tables.contains_key(&name) {
                return Err(CommandError::Exists { what: format!("table {}", table.name) });
            }
            if let TableKind::Single { shard } = table.kind {
                self.active(shard)?;
            }
            self.last_table += 1;
            let id = TableId(self.last_table);
            if let TableKind::Single { shard } = table.kind {
                let generation = self.generation + 1;
                let shard = self.shards.get_mut(&shard).ok_or_else(|| unknown(shard))?;
                shard.ownership = generation;
            }
            self.tables.insert(name, Table { id, ..table.clone() });
            return Ok(());
        }
        if effect.is_of_view() {
            self.change_view(effect, name);
            return Ok(());
        }
        let table = self.tables.get_mut(&name).ok_or_else(|| unknown(format!("table {name}")))?;
        match effect {
            DdlEffect::CreateTable(_)
            | DdlEffect::CreateView(_)
            | DdlEffect::DropView { .. }
            | DdlEffect::Servers { .. }
            | DdlEffect::PlaceOnServers { .. } => {}
            DdlEffect::CreateTrigger { trigger, .. } => table.set_trigger(&trigger.name, TriggerState::Ready),
            DdlEffect::DropTrigger { trigger, .. } => table.set_trigger(trigger, TriggerState::Going),
            DdlEffect::DropTable { .. } => {
                self.tables.remove(&name);
            }
            DdlEffect::CreateIndex { index, .. } => table.indexes.push(index.clone()),
            DdlEffect::DropIndex { index, .. } => {
                table.indexes.retain(|known| !known.name.eq_ignore_ascii_case(index));
            }
            DdlEffect::AddColumn { column, create_sql, .. } => {
                table.columns.push(column.clone());
                table.create_sql = create_sql.clone();
            }
            DdlEffect::AlterTable { after, views, triggers, .. } => {
                let after = Table { id: table.id, triggers: std::mem::take(&mut table.triggers), ..(**after).clone() };
                self.tables.remove(&name);
                self.tables.insert(after.name.to_ascii_lowercase(), after);
                self.retell(triggers);
                let generation = self.generation + 1;
                let active = self.shards.values_mut().filter(|shard| shard.state == ShardState::Active);
                active.for_each(|shard| shard.ownership = generation);
                for rewritten in views {
                    let view = self.views.get_mut(&rewritten.before.name.to_ascii_lowercase());
                    if let Some(view) = view.filter(|view| **view == rewritten.before) {
                        *view = rewritten.after.clone();
                    }
                }
            }
            DdlEffect::PlaceTable { before, after } => {
                if *table != **before {
                    return Err(invalid(format!("table {} is not as it was any more", before.name)));
                }
                if let TableKind::Single { shard } = after.kind {
                    self.active(shard)?;
                }
                self.tables.insert(name, (**after).clone());
                self.layout = self.generation + 1;
                let active = self.shards.values_mut().filter(|shard| shard.state == ShardState::Active);
                active.for_each(|shard| shard.ownership = self.layout);
            }
        }
        Ok(())
    }

    fn change_view(&mut self, effect: &DdlEffect, name: String) {
        match effect {
            DdlEffect::CreateView(view) => self.views.insert(name, view.clone()),
            _ => self.views.remove(&name),
        };
    }

    fn finish(&mut self, id: OperationId, phase: Phase, message: &str, at: Millis) -> Applied {
        if !phase.is_final() {
            return Err(invalid("an operation ends Successful, Failed or Skipped"));
        }
        self.admit_end(id)?;
        let operation = self.open(id)?;
        // A rebuild that is given up half way leaves nothing to finish: another one begins from the start.
        let may_fail = matches!(operation.kind, OperationKind::Rebuild { .. });
        if operation.committed && phase != Phase::Successful && !may_fail {
            return Err(invalid(format!("{id} is committed and can only succeed")));
        }
        operation.phase = phase;
        operation.waits_for.clear();
        operation.message = message.to_owned();
        operation.updated = at;
        if let Some(step) = operation.steps.last_mut() {
            step.ended.get_or_insert(at);
        }
        let (kind, committed) = (operation.kind.clone(), operation.committed);
        self.forget_trigger(&kind, committed);
        Ok(())
    }

    /// Whether an executor of term `epoch` may work on the operation.
    fn work_on(&mut self, id: OperationId, epoch: u64) -> Applied {
        let newest = self.open(id)?.epoch;
        if epoch < newest {
            return Err(invalid(format!("{id} was taken over by the leader of term {newest}; term {epoch} has ended")));
        }
        Ok(())
    }

    fn take(&mut self, id: OperationId, epoch: u64) {
        if let Some(operation) = self.operations.get_mut(&id) {
            operation.epoch = epoch;
        }
    }

    pub(crate) fn open(&mut self, id: OperationId) -> Applied<&mut Operation> {
        match self.operations.get_mut(&id) {
            None => Err(unknown(id)),
            Some(operation) if operation.phase.is_final() => {
                Err(invalid(format!("{id} has ended ({:?})", operation.phase)))
            }
            Some(operation) => Ok(operation),
        }
    }

    pub(crate) fn active(&self, id: ShardId) -> Applied<&Shard> {
        match self.shards.get(&id) {
            Some(shard) if shard.state == ShardState::Active => Ok(shard),
            Some(_) => Err(invalid(format!("{id} is not active"))),
            None => Err(unknown(id)),
        }
    }

    pub(crate) fn known_table(&self, name: &str) -> Applied<&Table> {
        self.table(name).ok_or_else(|| unknown(format!("table {name}")))
    }

    pub(crate) fn bump(&mut self) -> Generation {
        self.generation += 1;
        self.generation
    }

    fn forget_old(&mut self) {
        while self.operations.len() > Self::OPERATIONS_KEPT_MAX {
            let Some(oldest) = self.operations.values().find(|o| o.phase.is_final()).map(|o| o.id) else { return };
            self.operations.remove(&oldest);
        }
    }
}

pub(crate) fn new_node(id: NodeId, name: &str, address: &str, at: Millis) -> Node {
    let (name, address) = (name.to_owned(), address.to_owned());
    Node { id, name, address, state: NodeState::Active, since: at, incarnation: 0, waiting: None }
}

pub(crate) fn invalid(what: impl Into<String>) -> CommandError {
    CommandError::Invalid { what: what.into() }
}

pub(crate) fn busy(what: String) -> CommandError {
    CommandError::Busy { what }
}

pub(crate) fn unknown(what: impl ToString) -> CommandError {
    CommandError::Unknown { what: what.to_string() }
}
