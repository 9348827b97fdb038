//! What a group looks like from this node.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{RaftMetrics, ServerState};
use pleat_cluster::NodeId;

/// A group's state on this node, as far as this node knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The newest term this node has seen.
    pub term: u64,
    /// The leader of that term, if there is one.
    pub leader: Option<NodeId>,
    /// Whether this node is that leader. It may have been deposed without knowing it yet.
    pub is_leader: bool,
    /// Whether this node is a leader that has applied its term's first entry, and so everything acknowledged before.
    pub ready: bool,
    /// The index of the last entry in this node's log.
    pub last_log: u64,
    /// The index of the last entry applied here.
    pub applied: u64,
    /// The entries up to this index are covered by a checkpoint here.
    pub checkpoint: u64,
    /// The entries up to this index are gone from this node's log.
    pub purged: Option<u64>,
    /// Who votes. During a change of members, those of both sides.
    pub voters: BTreeSet<NodeId>,
    /// Who only listens.
    pub learners: BTreeSet<NodeId>,
    /// Whether a change of members is half done. Changing the members again finishes it.
    pub joint: bool,
    /// On the leader: how far the log of each member matches, once known.
    pub matched: BTreeMap<NodeId, u64>,
    /// Why the group no longer runs on this node.
    pub stopped: Option<String>,
}

impl Status {
    /// [`Status::is_leader`], without the rest.
    pub(crate) fn leads(metrics: &RaftMetrics<u64, ()>) -> bool {
        metrics.state == ServerState::Leader && metrics.running_state.is_ok()
    }

    /// [`Status::ready`], without the rest.
    pub(crate) fn is_ready(metrics: &RaftMetrics<u64, ()>) -> bool {
        let applied_term = metrics.last_applied.map(|last| last.leader_id.term);
        Status::leads(metrics) && applied_term == Some(metrics.current_term)
    }

    pub(crate) fn of(metrics: &RaftMetrics<u64, ()>) -> Self {
        let membership = metrics.membership_config.membership();
        let matched = metrics.replication.iter().flatten();
        Status {
            term: metrics.current_term,
            leader: metrics.current_leader.map(NodeId),
            is_leader: Status::leads(metrics),
            ready: Status::is_ready(metrics),
            last_log: metrics.last_log_index.unwrap_or(0),
            applied: metrics.last_applied.map_or(0, |last| last.index),
            checkpoint: metrics.snapshot.map_or(0, |last| last.index),
            purged: metrics.purged.map(|last| last.index),
            voters: membership.voter_ids().map(NodeId).collect(),
            learners: membership.learner_ids().map(NodeId).collect(),
            joint: membership.get_joint_config().len() > 1,
            matched: matched.filter_map(|(&node, last)| Some((NodeId(node), last.as_ref()?.index))).collect(),
            stopped: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    }

    /// The status of a group whose core is gone. One that panicked could not say so itself.
    pub(crate) fn ended(mut self) -> Self {
        (self.is_leader, self.ready) = (false, false);
        self.stopped.get_or_insert_with(|| "its core has ended unexpectedly, see the log".into());
        self
    }
}
