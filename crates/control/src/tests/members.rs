//! Who votes where: groups reduced to their members, with the rules that a rebuild must keep as assertions.

use std::collections::{BTreeMap, BTreeSet};

use pleat_cluster::{Catalog, NodeId, ShardId, ShardState};
use pleat_host::{GroupView, HostError, MemberChange, NodeReplicas, ReplicaReport};

type Part = Option<ShardId>;

#[derive(Default)]
pub struct Members {
    groups: BTreeMap<Part, GroupView>,
    /// Which life of its directory each node is in; absent: the one of the founding.
    pub lives: BTreeMap<NodeId, u64>,
    /// Nodes that don't answer.
    pub down: BTreeSet<NodeId>,
    /// Digests of replicas.
    pub digests: BTreeMap<(NodeId, ShardId), BTreeMap<u64, u64>>,
}

impl Members {
    fn group(&mut self, catalog: &Catalog, part: Part) -> &mut GroupView {
        let founders = match part {
            None => catalog.nodes.keys().copied().collect(),
            Some(shard) => catalog.shards[&shard].replicas.iter().copied().collect(),
        };
        let fresh = GroupView { term: 1, leads: true, voters: founders, last_log: 100, ..GroupView::default() };
        self.groups.entry(part).or_insert(fresh)
    }

    fn life(&self, node: NodeId) -> u64 {
        self.lives.get(&node).copied().unwrap_or(node.0)
    }

    pub fn replicas(&mut self, catalog: &Catalog, node: NodeId) -> Result<NodeReplicas, HostError> {
        if self.down.contains(&node) {
            return Err(HostError::Unavailable(format!("{node} is down")));
        }
        let incarnation = self.life(node);
        let mut told = NodeReplicas { node, incarnation, control: None, shards: Vec::new() };
        if catalog.nodes[&node].incarnation != incarnation {
            return Ok(told); // it is not admitted, and runs nothing
        }
        told.control = Some(self.group(catalog, None).clone());
        for shard in catalog.shards.values().filter(|shard| shard.state != ShardState::Removed) {
            if shard.replicas.contains(&node) {
                let digests = self.digests.get(&(node, shard.id)).cloned().unwrap_or_default();
                let group = self.group(catalog, Some(shard.id)).clone();
                told.shards.push(ReplicaReport { shard: shard.id, number: shard.number(node), group, digests });
            }
        }
        Ok(told)
    }

    pub fn change(&mut self, catalog: &Catalog, part: Part, change: MemberChange) -> Result<GroupView, HostError> {
        let (lives, down) = (self.lives.clone(), self.down.clone());
        let life = |node: &NodeId| lives.get(node).copied().unwrap_or(node.0);
        let runs = |node: &NodeId| !down.contains(node) && catalog.nodes[node].incarnation == life(node);
        let group = self.group(catalog, part);
        let others = |gone: NodeId| group.voters.iter().filter(|voter| **voter != gone).copied().collect::<Vec<_>>();
        match change {
            MemberChange::Show | MemberChange::Settle => {}
            MemberChange::Remove(node) => {
                let others = others(node);
                let run = others.iter().filter(|node| runs(node)).count();
                assert!(run * 2 > others.len(), "a removal that would make the group stand still");
                group.voters.remove(&node);
                group.learners.remove(&node);
                group.matched.remove(&node);
            }
            MemberChange::Learn(node) => {
                assert!(runs(&node), "a learner runs and was admitted");
                group.learners.insert(node);
                group.matched.insert(node, group.last_log);
            }
            MemberChange::Promote(node) => {
                assert!(group.learners.remove(&node), "{node} was no learner");
                group.voters.insert(node);
            }
        }
        Ok(group.clone())
    }

    /// Nobody may forget its promises while a majority counts on them.
    pub fn check_removed(&mut self, catalog: &Catalog, node: NodeId, shard: Part) {
        let parts: Vec<Part> = match shard {
            Some(_) => vec![shard],
            None => [None].into_iter().chain(catalog.shards.keys().map(|id| Some(*id))).collect(),
        };
        for part in parts {
            assert!(!self.group(catalog, part).voters.contains(&node), "{node} still votes in {part:?}");
        }
    }

    /// Whether everybody votes where the catalog places it.
    pub fn whole(&mut self, catalog: &Catalog) -> bool {
        let mut whole = true;
        for part in [None].into_iter().chain(catalog.shards.keys().map(|id| Some(*id))) {
            let wanted: BTreeSet<NodeId> = match part {
                None => catalog.nodes.keys().copied().collect(),
                Some(shard) => catalog.shards[&shard].replicas.iter().copied().collect(),
            };
            let group = self.group(catalog, part);
            whole &= group.voters == wanted && group.learners.is_empty();
        }
        whole
    }
}
