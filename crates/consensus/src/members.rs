//! Changing who is a member of a group.
//!
//! A new replica begins as a *learner*: it gets the log (or a snapshot, when the log no longer reaches back) without
//! counting for majorities. When it has caught up it can become a voter. Changing voters goes through a joint
//! configuration, in which majorities of both the old and the new voters are needed; a leader that dies between leaves it
//! joint ([`crate::Status::joint`]), and calling [`Group::change_members`] again finishes it.
//!
//! # A member that has forgotten
//! A voter that lost its disk has forgotten its votes and what it acknowledged, and must not count in its old place. It may
//! come back, empty, once its *removal* is committed, and the argument has three parts:
//!
//! - *While it is removed it doesn't run.* So nothing is decided with its help but what it promised before. The removal
//!   needs a majority of the voters with it and a majority of those without it (for an odd number of voters one implies
//!   the other: a majority of the n-1 others is as many as a majority of n), all of them nodes that remember.
//! - *Afterwards nobody counts it.* A candidate that has not heard of the removal needs the votes of a majority of the
//!   old voters. A majority of the others has the removal in its log, and each of these refuses a log without it;
//!   what is left, with the emptied one, is no majority.
//! - *When it counts again it has learnt enough.* It becomes a voter only after it caught up as a learner, so it has at
//!   least the term and the log of the leader that removed it. Until it has anything it refuses every vote
//!   ([`Consensus::join_group`](crate::Consensus::join_group)), lest a request that was long on its way finds it without memory.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use pleat_cluster::NodeId;

use crate::group::Group;

/// Why the members were not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Only the leader changes members. When leadership was lost on the way, the change may still come to be: look
    /// at the status of the new leader.
    #[error("this node does not lead the group{}", leader.map_or(String::new(), |leader| format!(": {leader} does")))]
    NotLeader {
        /// Who leads, as far as is known.
        leader: Option<NodeId>,
    },
    /// Another change is not committed yet: try again later.
    #[error("another change of the group's members is under way: try again later")]
    InProgress,
    /// The change makes no sense.
    #[error("the members can't be changed so: {0}")]
    Invalid(String),
    /// The group does not run on this node any more.
    #[error("the group has stopped on this node: {0}")]
    Stopped(String),
}

impl Group {
    /// Makes the group of these members. Done on one of them (or on several, with the same members), once in the
    /// life of a group; a group that has begun is left as it is.
    pub async fn initialize(&self, members: BTreeSet<NodeId>) -> Result<(), MembershipError> {
        use openraft::error::InitializeError;
        let members: std::collections::BTreeMap<u64, ()> = members.into_iter().map(|node| (node.0, ())).collect();
        match self.raft().initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(error @ InitializeError::NotInMembers(_))) => {
                Err(MembershipError::Invalid(error.to_string()))
            }
            Err(RaftError::Fatal(fatal)) => Err(MembershipError::Stopped(fatal.to_string())),
        }
    }

    /// Adds a learner and waits until it has nearly caught up. May take long (a snapshot may have to be sent); giving
    /// up waiting leaves it a learner. Adding one that is there is fine.
    pub async fn add_learner(&self, node: NodeId) -> Result<(), MembershipError> {
        self.raft().add_learner(node.0, (), true).await.map_err(membership_error)?;
        // openraft also ends the wait when leadership is lost.
        let status = self.status();
        if status.is_leader { Ok(()) } else { Err(MembershipError::NotLeader { leader: status.leader }) }
    }

    /// Removes a learner.
    pub async fn remove_learner(&self, node: NodeId) -> Result<(), MembershipError> {
        let change = ChangeMembers::RemoveNodes(BTreeSet::from([node.0]));
        self.raft().change_membership(change, false).await.map_err(membership_error)?;
        Ok(())
    }

    /// Adds a learner and does not wait for it. Adding one that is there is fine.
    pub async fn welcome(&self, node: NodeId) -> Result<(), MembershipError> {
        self.raft().add_learner(node.0, (), false).await.map_err(membership_error)?;
        Ok(())
    }

    /// Makes a learner a voter. Refused for one that is no member: it might not even run.
    pub async fn promote(&self, node: NodeId) -> Result<(), MembershipError> {
        let status = self.status();
        if !status.learners.contains(&node) && !status.voters.contains(&node) {
            return Err(MembershipError::Invalid(format!("{node} is not a learner of the group")));
        }
        let mut voters: BTreeSet<u64> = status.voters.iter().map(|node| node.0).collect();
        voters.insert(node.0);
        self.raft().change_membership(voters, false).await.map_err(membership_error)?;
        Ok(())
    }

    /// Finishes a change of voters that an earlier leader left half done: whoever votes on either side does from now on.
    pub async fn settle(&self) -> Result<(), MembershipError> {
        let status = self.status();
        if status.joint {
            let voters: BTreeSet<u64> = status.voters.iter().map(|node| node.0).collect();
            self.raft().change_membership(voters, false).await.map_err(membership_error)?;
        }
        Ok(())
    }

    /// Removes a member, voter or learner, and returns when that is committed and applied: from then on no majority
    /// of the group needs or counts it. A change that an earlier leader left half done is finished on the way.
    pub async fn expel(&self, node: NodeId, deadline: Duration) -> Result<(), MembershipError> {
        let status = self.status();
        if status.voters.contains(&node) || status.joint {
            let voters: BTreeSet<u64> =
                status.voters.iter().filter(|voter| **voter != node).map(|node| node.0).collect();
            self.raft().change_membership(voters, false).await.map_err(membership_error)?;
        }
        let status = self.status();
        if status.learners.contains(&node) {
            self.remove_learner(node).await?;
        }
        // What a leader finds in its log need not be committed yet.
        let last = self.status().last_log;
        match self.wait_applied(last, deadline).await {
            Ok(()) => Ok(()),
            Err(_) => Err(MembershipError::InProgress),
        }
    }

    /// Makes these the voters. Who is not yet a member becomes a learner first and catches up; voters that are
    /// not among them leave the group. A leader that is not among them steps down at the end.
    pub async fn change_members(&self, voters: BTreeSet<NodeId>) -> Result<(), MembershipError> {
        let status = self.status();
        for node in &voters {
            if !status.voters.contains(node) {
                self.add_learner(*node).await?;
            }
        }
        let voters: BTreeSet<u64> = voters.into_iter().map(|node| node.0).collect();
        self.raft().change_membership(voters, false).await.map_err(membership_error)?;
        Ok(())
    }
}

fn membership_error(error: RaftError<u64, ClientWriteError<u64, ()>>) -> MembershipError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            MembershipError::NotLeader { leader: forward.leader_id.map(NodeId) }
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_))) => {
            MembershipError::InProgress
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
            MembershipError::Invalid(error.to_string())
        }
        RaftError::Fatal(fatal) => MembershipError::Stopped(fatal.to_string()),
    }
}
