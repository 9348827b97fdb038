//! What must be true at every moment, whatever clients see: looked at while the nodes run, from outside of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pleat_cluster::{Catalog, Generation, NodeId, Operation, OperationKind, PartitionId, ShardId, ShardState};
use pleat_consensus::{MemoryDisk, Status};
use pleat_engine::UnitSet;
use pleat_host::Host;
use pleat_oracle::Wrong;

use crate::node::Hosts;

/// The control group's number among the groups; shard N is group N.
const CONTROL: u64 = 0;

/// What was seen so far.
#[derive(Default)]
pub struct Invariants {
    /// Who owned the partitions in each generation.
    owners: BTreeMap<Generation, Vec<ShardId>>,
    /// Who was a ready leader in each term of each group: nodes, with the number of their start.
    reigns: BTreeMap<(u64, u64), BTreeSet<(u64, u64)>>,
    /// By shard: the newest entry of its log at which somebody was seen, and what it accepted writes for there.
    accepting: BTreeMap<ShardId, (u64, UnitSet)>,
    /// The last status that was seen of a node's replica of a group.
    statuses: BTreeMap<(u64, u64), Status>,
    /// How far the logs of nodes went, by node and group.
    reached: BTreeMap<(u64, u64), u64>,
    /// How far those went that a node has no more: of a disk that was lost, of a replica that was made anew.
    lost: BTreeMap<(u64, u64), u64>,
    /// The numbers of replicas, by node and group.
    numbers: BTreeMap<(u64, u64), u32>,
    /// Shards that are gone: nodes remove them one after the other.
    removed: BTreeSet<ShardId>,
}

impl Invariants {
    /// A node has lost its disk, which had so much of each group. Leaders that have not heard of it go on counting that, and no more.
    pub fn lose(&mut self, node: u64, last: impl IntoIterator<Item = (u64, u64)>) {
        for (group, last) in last {
            self.reached.insert((node, group), last);
            self.lose_replica(node, group);
        }
        self.statuses.retain(|(of, _), _| *of != node);
    }

    fn lose_replica(&mut self, node: u64, group: u64) {
        if let Some(reached) = self.reached.remove(&(node, group)) {
            let lost = self.lost.entry((node, group)).or_default();
            *lost = reached.max(*lost);
        }
    }

    /// What a catalog says of replicas that are no more.
    fn note_removals(&mut self, catalog: &Catalog) {
        for shard in catalog.shards.values() {
            if shard.state == ShardState::Removed && self.removed.insert(shard.id) {
                // What was seen of it may be from before it let go.
                self.accepting.remove(&shard.id);
            }
            for (node, number) in &shard.numbers {
                let replica = (node.0, u64::from(shard.id.0));
                if self.numbers.get(&replica).is_none_or(|known| known < number) {
                    self.numbers.insert(replica, *number);
                    self.lose_replica(replica.0, replica.1);
                }
            }
        }
    }

    /// In a group of three what a leader and a follower have is committed, so no later leader takes it from them.
    fn check_durable(&self, disk: &MemoryDisk, node: u64, group: u64, status: &Status) -> Result<(), Wrong> {
        let durable = |node| disk.last_index(node, group).unwrap_or(0);
        let here = durable(NodeId(node));
        if status.applied > here {
            return Err(format!("node {node}, group {group}: {} is applied, and the disk has {here}", status.applied));
        }
        let followers = status.matched.iter().filter(|(other, _)| other.0 != node && status.is_leader);
        for (other, matched) in followers {
            let lost = self.lost.get(&(other.0, group)).copied().unwrap_or(0);
            let there = durable(*other).max(lost);
            if *matched > here.min(there) {
                return Err(format!(
                    "node {node} counts {matched} of group {group} on {other}: the disks have {here}, {there}"
                ));
            }
        }
        Ok(())
    }

    /// Look at every node. `boots`: how often each was started. Gives what changed of groups, for the trace.
    ///
    /// 1. A catalog breaks none of its own invariants, and two of one generation agree on who owns what.
    /// 2. A term of a group has at most one ready leader, before and after a restart counting as two.
    /// 3. No two shards accept writes for one partition: each as of the newest entry of its log that was seen applied.
    /// 4. No group stops on a node that runs.
    /// 5. What a replica has applied, its log has on the disk.
    /// 6. What a leader takes for replicated to a follower, both have on their disks, or had before it was lost or made anew.
    pub fn check(
        &mut self,
        hosts: &Hosts,
        disk: &MemoryDisk,
        boots: &BTreeMap<u64, u64>,
    ) -> Result<Vec<String>, Wrong> {
        let mut news = Vec::new();
        for (node, host) in hosts {
            let catalog = host.catalog();
            self.check_catalog(*node, &catalog)?;
            self.note_removals(&catalog);
        }
        for (node, host) in hosts {
            let catalog = host.catalog();
            let boot = boots.get(node).copied().unwrap_or(0);
            let shards = catalog
                .shards
                .keys()
                .filter(|shard| !self.removed.contains(*shard))
                .filter_map(|shard| host.shard_status(*shard).map(|status| (u64::from(shard.0), status)))
                .collect::<Vec<_>>();
            for (group, status) in std::iter::once((CONTROL, host.control_status())).chain(shards) {
                self.check_status((*node, boot), group, &status)?;
                self.check_durable(disk, *node, group, &status)?;
                if let Some(reached) = disk.last_index(NodeId(*node), group) {
                    self.reached.insert((*node, group), reached);
                }
                if self.is_news(*node, group, &status) {
                    news.push(format!("{node} group {group}: term {} leader {:?}", status.term, status.leader));
                }
                let before = self.statuses.insert((*node, group), status.clone());
                // Looking into a database costs more than all else together.
                if group != CONTROL && before.is_none_or(|before| before.applied != status.applied) {
                    self.note_accepting(host, ShardId(group as u32))?;
                }
            }
        }
        self.check_accepting()?;
        Ok(news)
    }

    fn is_news(&self, node: u64, group: u64, status: &Status) -> bool {
        let known = self.statuses.get(&(node, group));
        known.is_none_or(|known| (known.term, known.leader, known.ready) != (status.term, status.leader, status.ready))
    }

    fn check_catalog(&mut self, node: u64, catalog: &Arc<Catalog>) -> Result<(), Wrong> {
        if !catalog.is_initialised() {
            return Ok(());
        }
        if let Some(known) = self.owners.get(&catalog.generation) {
            return match *known == catalog.owners {
                true => Ok(()),
                false => Err(format!("node {node} has other owners in generation {} than another", catalog.generation)),
            };
        }
        if let Some(violation) = catalog.check().first() {
            return Err(format!("node {node}, generation {}: {violation}", catalog.generation));
        }
        self.owners.insert(catalog.generation, catalog.owners.clone());
        Ok(())
    }

    fn check_status(&mut self, node: (u64, u64), group: u64, status: &Status) -> Result<(), Wrong> {
        if let Some(why) = &status.stopped {
            return Err(format!("group {group} has stopped on node {}: {why}", node.0));
        }
        if status.ready {
            let leaders = self.reigns.entry((group, status.term)).or_default();
            leaders.insert(node);
            if leaders.len() > 1 {
                return Err(format!("term {} of group {group} has several leaders: {leaders:?}", status.term));
            }
        }
        Ok(())
    }

    fn note_accepting(&mut self, host: &Host, shard: ShardId) -> Result<(), Wrong> {
        let Some(accepting) = host.accepting(shard) else { return Ok(()) };
        let (units, index) = accepting.map_err(|error| format!("{shard} can't be looked at: {error}"))?;
        let known = self.accepting.entry(shard).or_default();
        if index >= known.0 {
            *known = (index, units);
        }
        Ok(())
    }

    fn check_accepting(&self) -> Result<(), Wrong> {
        let mut by_unit: BTreeMap<PartitionId, ShardId> = BTreeMap::new();
        for (shard, (_, units)) in &self.accepting {
            for unit in units.iter() {
                if let Some(other) = by_unit.insert(unit, *shard) {
                    return Err(format!("{other} and {shard} both accept writes for partition {}", unit.0));
                }
            }
        }
        Ok(())
    }

    /// Whether all is well again: every node knows the same leaders, every shard has all of its replicas, and every operation
    /// has ended. Otherwise what is not.
    pub fn healed(hosts: &Hosts, nodes: usize) -> Result<(), String> {
        if hosts.len() < nodes {
            return Err(format!("{} nodes of {nodes} run", hosts.len()));
        }
        for (node, host) in hosts {
            let catalog = host.catalog();
            let describe = |open: &Operation| {
                let step = open.steps.last().map_or("none", |step| step.name.as_str());
                format!("{} ({}, its step is {step})", open.id, open.kind.name())
            };
            let open: Vec<String> = catalog.open_operations().map(describe).collect();
            if !open.is_empty() {
                return Err(format!("node {node}: operations are open: {}", open.join(", ")));
            }
            let led = |status: &Status| status.leader.is_some() && status.voters.len() == nodes;
            if !led(&host.control_status()) {
                return Err(format!("node {node}: the control group has no leader or not all voters"));
            }
            for shard in catalog.shards.values().filter(|shard| shard.state != ShardState::Removed) {
                if shard.state != ShardState::Active || !shard.distrusted.is_empty() {
                    return Err(format!("node {node}: {} is {:?}", shard.id, shard.state));
                }
                if !host.shard_status(shard.id).as_ref().is_some_and(led) {
                    return Err(format!("node {node}: {} has no leader or not all voters", shard.id));
                }
            }
        }
        Ok(())
    }

    /// Whether every group has all of its replicas, so that one may be lost.
    pub fn whole(hosts: &Hosts, nodes: usize) -> bool {
        let all =
            |status: Status| status.leader.is_some() && status.voters.len() == nodes && status.learners.is_empty();
        hosts.len() == nodes
            && hosts.values().all(|host| {
                let catalog = host.catalog();
                let mut shards = catalog.shards.values().filter(|shard| shard.state != ShardState::Removed);
                let waits = catalog.nodes.values().any(|node| node.waiting.is_some());
                let rebuilds = |open: &Operation| matches!(open.kind, OperationKind::Rebuild { .. });
                catalog.is_initialised()
                    && !waits
                    && !catalog.open_operations().any(rebuilds)
                    && all(host.control_status())
                    && shards.all(|shard| {
                        shard.state != ShardState::Creating && host.shard_status(shard.id).is_some_and(all)
                    })
            })
    }

    /// Whether all replicas of every group have applied the same.
    pub fn level(hosts: &Hosts) -> bool {
        let applied = |group: &dyn Fn(&Host) -> Option<Status>| {
            let all: BTreeSet<Option<u64>> =
                hosts.values().map(|host| group(host).map(|status| status.applied)).collect();
            all.len() <= 1
        };
        let shards: BTreeSet<ShardId> =
            hosts.values().flat_map(|host| host.catalog().shards.keys().copied().collect::<Vec<_>>()).collect();
        applied(&|host| Some(host.control_status()))
            && shards.iter().all(|shard| applied(&|host| host.shard_status(*shard)))
    }
}
