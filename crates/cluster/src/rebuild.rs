//! Nodes that lost their disk, and replicas whose content differs: what the catalog knows of them.
//!
//! A node's directory has an *incarnation*. The catalog holds the one whose promises count. A node that registers
//! with another one has lost its disk and only *waits*: its name is in the groups, but what it promised under that
//! name is forgotten. A `Rebuild` makes it a member again. Its executor first removes the old member from its
//! groups, and the commit here says that this was done: it admits the waiting incarnation and raises the numbers
//! of its replicas, which is what lets the node start empty ones. (`control` has the whole story.)
//!
//! A replica whose content differs from a majority's is *distrusted* from the moment its rebuild is journaled: its
//! node serves nothing from it. It still votes and acknowledges, because its log is as good as any; only what it
//! made of the log is not. The commit raises its number, and the node then destroys it.

use std::collections::BTreeMap;

use crate::apply::{Applied, busy, invalid, new_node, unknown};
use crate::{Catalog, CommandError, Millis, NodeId, OperationKind, ShardId, ShardState};

impl Catalog {
    pub(crate) fn note_incarnations(&mut self, incarnations: &BTreeMap<NodeId, u64>) {
        for node in self.nodes.values_mut() {
            // A repeated founding changes nothing.
            if let Some(incarnation) = incarnations.get(&node.id).filter(|_| node.incarnation == 0) {
                node.incarnation = *incarnation;
            }
        }
    }

    pub(crate) fn register_node(
        &mut self,
        id: NodeId,
        name: &str,
        address: &str,
        incarnation: u64,
        at: Millis,
    ) -> Applied {
        if let Some(other) = self.active_nodes().find(|node| node.id != id && node.address == address) {
            return Err(CommandError::Exists { what: format!("a node at {address} ({})", other.name) });
        }
        match self.nodes.get_mut(&id) {
            Some(node) => {
                let before = node.clone();
                node.address = address.to_owned();
                node.name = name.to_owned();
                node.waiting = (incarnation != node.incarnation).then_some(incarnation);
                if *node == before {
                    return Ok(());
                }
            }
            None => {
                let mut node = new_node(id, name, address, at);
                node.incarnation = incarnation;
                self.nodes.insert(id, node);
            }
        }
        self.bump();
        Ok(())
    }

    /// Whether a rebuild makes sense on the catalog as it is.
    pub(crate) fn admit_rebuild(&self, node: NodeId, shard: Option<ShardId>) -> Applied {
        if !self.nodes.contains_key(&node) {
            return Err(unknown(node));
        }
        if let Some(id) = shard {
            let shard = self.shards.get(&id).ok_or_else(|| unknown(id))?;
            if shard.state == ShardState::Removed || !shard.replicas.contains(&node) {
                return Err(invalid(format!("{node} holds no replica of {id}")));
            }
        }
        match self.rebuilding(node, shard) {
            Some(other) => Err(busy(format!("{other} rebuilds it already"))),
            None => Ok(()),
        }
    }

    /// The open operation that rebuilds the node's replica of the shard (`None`: any part of the node).
    pub fn rebuilding(&self, node: NodeId, shard: Option<ShardId>) -> Option<crate::OperationId> {
        let concerns = |kind: &OperationKind| match kind {
            OperationKind::Rebuild { node: of, shard: part } => {
                *of == node && (part.is_none() || shard.is_none() || *part == shard)
            }
            _ => false,
        };
        self.open_operations().find(|open| concerns(&open.kind)).map(|open| open.id)
    }

    /// A replica that is to be rebuilt serves nothing until it was.
    pub(crate) fn distrust(&mut self, kind: &OperationKind) {
        if let OperationKind::Rebuild { node, shard: Some(shard) } = kind
            && let Some(shard) = self.shards.get_mut(shard)
        {
            shard.distrusted.insert(*node);
            self.bump();
        }
    }

    /// No majority counts on the old replicas any more: new ones may take their place.
    pub(crate) fn commit_rebuild(&mut self, id: NodeId, shard: Option<ShardId>) -> Applied {
        let node = self.nodes.get_mut(&id).ok_or_else(|| unknown(id))?;
        let renewed = match shard {
            Some(shard) => vec![shard],
            None => match node.waiting.take() {
                Some(incarnation) => {
                    node.incarnation = incarnation;
                    self.shards.keys().copied().collect()
                }
                // It is only to become a member again; what it holds is as good as before.
                None => Vec::new(),
            },
        };
        for shard in renewed {
            if let Some(shard) = self.shards.get_mut(&shard).filter(|shard| shard.replicas.contains(&id)) {
                *shard.numbers.entry(id).or_insert(0) += 1;
                shard.distrusted.remove(&id);
            }
        }
        self.bump();
        Ok(())
    }

    pub(crate) fn note_disagreement(&mut self, shard: ShardId, what: Option<&String>) -> Applied {
        let shard = self.shards.get_mut(&shard).ok_or_else(|| unknown(shard))?;
        shard.disagreement = what.cloned();
        Ok(())
    }
}
