//! Standbys: two PostgreSQL servers for one shard, and which of them is the *primary*.
//!
//! [`Shard::replicas`](crate::Shard::replicas) names the nodes: the first supervises the primary, the second the standby, a copy that
//! follows the primary's log. They change places by a `Promote` operation, each time with a new [`reign`](Pair::reign).
//!
//! | [`Follows`] | says that | and is said by |
//! | --- | --- | --- |
//! | `Coming` | the standby is being made, is behind, or was lost sight of: it is not promoted | the commit of a promotion; the primary's node, *before* the primary goes on without it |
//! | `Along` | it follows, as far as is known (asynchronous): promoting it may lose what was written last | the primary's node, when it streams |
//! | `InStep` | the primary acknowledges nothing that the standby does not have on its disk (synchronous) | the primary's node, when it has seen the primary wait |
//!
//! # Invariants
//!
//! 1. While the catalog says `InStep`, the primary waits for the standby: it was made to wait before that was said, and goes on without it only
//!    after it was taken back. So a synchronous primary never degrades silently, and whatever is promoted has all that was acknowledged.
//! 2. Only what is not `Coming` is promoted, and while a promotion is open nobody says anything else of the standby.
//! 3. Who speaks of a pair names its reign, and the number of what was said last, and is refused when that is not so any more.
//! 4. A promotion is committed after the old primary was fenced (`provision::process::fence`), and the new one takes writes after the commit.

use core::net::SocketAddr;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::apply::{Applied, busy, invalid, unknown};
use crate::{Catalog, Engine, NodeId, Operation, OperationKind, Shard, ShardId, ShardState};

/// Whether the PostgreSQL servers of a cluster have standbys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standbys {
    #[default]
    None,
    /// A promotion may lose what was written last.
    Asynchronous,
    /// The primary acknowledges a commit when the standby has it on its disk.
    Synchronous,
}

/// How far the primary's node answers for the standby.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Follows {
    #[default]
    Coming,
    Along,
    InStep,
}

impl Follows {
    /// `catching up`, `following` or `in step`.
    pub fn name(self) -> &'static str {
        match self {
            Follows::Coming => "catching up",
            Follows::Along => "following",
            Follows::InStep => "in step",
        }
    }
}

/// Where the server of a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub address: SocketAddr,
    /// Its directory, by which it is fenced.
    pub dir: String,
}

/// What the catalog knows of a shard's servers, beside the primary's address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// How often the servers have changed places.
    pub reign: u64,
    pub places: BTreeMap<NodeId, Place>,
    pub follows: Follows,
    /// How often `follows` was said. Who says it names the number that it has seen: so what was sent before, and comes late, is refused.
    pub said: u64,
}

impl Shard {
    /// Of a shard that is a server: the node that supervises its primary.
    pub fn primary(&self) -> Option<NodeId> {
        self.replicas.first().copied()
    }

    /// The node that supervises its standby.
    pub fn standby(&self) -> Option<NodeId> {
        self.replicas.get(1).copied()
    }
}

impl Catalog {
    /// The open operation that promotes the standby of a shard.
    pub fn promoting(&self, shard: ShardId) -> Option<&Operation> {
        self.open_operations().find(|open| matches!(open.kind, OperationKind::Promote { shard: of, .. } if of == shard))
    }

    pub(crate) fn note_server(&mut self, id: ShardId, node: NodeId, place: &Place) -> Applied {
        let shard = self.shards.get_mut(&id).ok_or_else(|| unknown(id))?;
        if shard.state == ShardState::Removed || !shard.replicas.contains(&node) {
            return Err(invalid(format!("{node} does not supervise {id}")));
        }
        let is_primary = shard.primary() == Some(node);
        let known = shard.pair.places.insert(node, place.clone());
        if known.as_ref() != Some(place) || (is_primary && shard.server != Some(place.address)) {
            if is_primary {
                shard.server = Some(place.address);
            }
            self.bump();
        }
        Ok(())
    }

    pub(crate) fn note_standby(
        &mut self,
        id: ShardId,
        node: NodeId,
        (reign, said): (u64, u64),
        follows: Follows,
    ) -> Applied {
        if let Some(open) = self.promoting(id).filter(|open| !open.given_up) {
            return Err(busy(format!("{} is promoting the standby of {id}", open.id)));
        }
        let shard = self.shards.get_mut(&id).ok_or_else(|| unknown(id))?;
        if shard.primary() != Some(node) || shard.pair.reign != reign || shard.standby().is_none() {
            return Err(invalid(format!("{node} has no say in who follows {id} (any more)")));
        }
        if shard.pair.said != said {
            return Err(busy(format!("somebody else has just said how far the standby of {id} follows")));
        }
        shard.pair.said += 1;
        shard.pair.follows = follows;
        self.bump();
        Ok(())
    }

    pub(crate) fn admit_promotion(&self, id: ShardId, to: NodeId, reign: u64) -> Applied {
        let shard = self.shards.get(&id).ok_or_else(|| unknown(id))?;
        if self.engine != Engine::Postgres || shard.state == ShardState::Removed {
            return Err(invalid(format!("{id} has no servers")));
        }
        if shard.standby() != Some(to) || shard.pair.reign != reign {
            return Err(invalid(format!("{to} has no standby of {id} (any more)")));
        }
        if shard.pair.follows == Follows::Coming {
            return Err(busy(format!("the standby of {id} does not have all of the primary's data yet")));
        }
        match self.promoting(id) {
            Some(open) => Err(busy(format!("{} promotes it already", open.id))),
            None => Ok(()),
        }
    }

    /// The old primary is fenced: the standby takes its place.
    pub(crate) fn commit_promotion(&mut self, id: ShardId, to: NodeId, reign: u64) -> Applied {
        let shard = self.shards.get_mut(&id).ok_or_else(|| unknown(id))?;
        if shard.standby() != Some(to) || shard.pair.reign != reign {
            return Err(invalid(format!("{to} has no standby of {id} (any more)")));
        }
        let place = shard.pair.places.get(&to);
        let place = place.ok_or_else(|| invalid(format!("nobody knows where the standby of {id} listens")))?;
        shard.server = Some(place.address);
        shard.replicas.swap(0, 1);
        shard.pair.reign += 1;
        shard.pair.follows = Follows::Coming;
        self.bump();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::*;

    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);
    const SHARD: ShardId = ShardId(1);

    fn founded(standbys: Standbys) -> Catalog {
        let mut catalog = Catalog::default();
        let init = Command::Init {
            cluster_id: "test".to_owned(),
            partition_count: 16,
            replication_factor: 3,
            nodes: (1..=3).map(|id| (NodeId(id), format!("node-{id}"), format!("127.0.0.1:{id}"))).collect(),
            incarnations: BTreeMap::from([(ONE, 1), (TWO, 2)]),
            shards: 2,
            engine: Engine::Postgres,
            policy: Policy { standbys, ..Policy::default() },
            at: 1,
        };
        catalog.apply(&init).unwrap();
        catalog
    }

    fn place(port: u16) -> Place {
        Place { address: SocketAddr::from(([127, 0, 0, 1], port)), dir: format!("/{port}") }
    }

    fn promote(reign: u64) -> Command {
        let kind = OperationKind::Promote { shard: SHARD, to: TWO, reign };
        Command::StartOperation { kind, cause: Cause::Request("test".to_owned()), reason: String::new(), at: 1 }
    }

    fn follows(node: NodeId, reign: u64, said: u64, follows: Follows) -> Command {
        Command::NoteStandby { shard: SHARD, node, reign, said, follows, at: 1 }
    }

    #[test]
    fn a_shard_has_its_servers_on_two_nodes_if_standbys_are_wanted() {
        let replicas = |catalog: &Catalog| -> Vec<Vec<NodeId>> {
            catalog.shards.values().map(|shard| shard.replicas.clone()).collect()
        };
        assert_eq!(replicas(&founded(Standbys::None)), [vec![ONE], vec![TWO]]);
        assert_eq!(replicas(&founded(Standbys::Synchronous)), [vec![ONE, TWO], vec![NodeId(3), ONE]]);
    }

    #[test]
    fn servers_change_places_by_a_promotion_that_names_their_reign() {
        let mut catalog = founded(Standbys::Synchronous);
        for (node, port) in [(ONE, 1), (TWO, 2)] {
            catalog.apply(&Command::NoteServer { shard: SHARD, node, place: place(port), at: 1 }).unwrap();
        }
        assert_eq!(catalog.shards[&SHARD].server, Some(place(1).address));
        assert!(catalog.apply(&promote(0)).is_err(), "it has not got everything");
        assert!(catalog.apply(&follows(TWO, 0, 0, Follows::InStep)).is_err(), "the primary's node has the say");
        catalog.apply(&follows(ONE, 0, 0, Follows::InStep)).unwrap();
        assert!(catalog.apply(&follows(ONE, 0, 0, Follows::Coming)).is_err(), "it came late");
        assert!(catalog.apply(&promote(1)).is_err());
        let operation = catalog.apply(&promote(0)).unwrap().operation.unwrap();
        assert!(catalog.apply(&promote(0)).is_err(), "one at a time");
        assert!(catalog.apply(&follows(ONE, 0, 1, Follows::Coming)).is_err(), "it is being promoted");
        catalog.apply(&Command::CommitOperation { operation, epoch: 1, at: 1 }).unwrap();
        let shard = &catalog.shards[&SHARD];
        assert_eq!((shard.primary(), shard.standby()), (Some(TWO), Some(ONE)));
        assert_eq!((shard.server, shard.pair.reign), (Some(place(2).address), 1));
        assert_eq!(shard.pair.follows, Follows::Coming);
        let (phase, message) = (Phase::Successful, String::new());
        catalog.apply(&Command::FinishOperation { operation, phase, message, epoch: 1, at: 1 }).unwrap();
        assert!(catalog.apply(&follows(ONE, 0, 1, Follows::InStep)).is_err(), "its reign is over");
        catalog.apply(&Command::NoteServer { shard: SHARD, node: ONE, place: place(3), at: 1 }).unwrap();
        assert_eq!(catalog.shards[&SHARD].server, Some(place(2).address), "the standby's address is not the shard's");
        assert_eq!(catalog.check(), Vec::new());
    }

    #[test]
    fn a_promotion_that_was_given_up_is_not_committed() {
        let mut catalog = founded(Standbys::Asynchronous);
        for (node, port) in [(ONE, 1), (TWO, 2)] {
            catalog.apply(&Command::NoteServer { shard: SHARD, node, place: place(port), at: 1 }).unwrap();
        }
        catalog.apply(&follows(ONE, 0, 0, Follows::Along)).unwrap();
        let operation = catalog.apply(&promote(0)).unwrap().operation.unwrap();
        let (message, code) = ("no".to_owned(), None);
        catalog.apply(&Command::GiveUpOperation { operation, message, code, epoch: 1, at: 1 }).unwrap();
        assert!(catalog.apply(&Command::CommitOperation { operation, epoch: 1, at: 1 }).is_err());
        assert_eq!(catalog.shards[&SHARD].primary(), Some(ONE));
    }
}
