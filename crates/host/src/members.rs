//! Changing the members of a group, wherever its leader is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pleat_cluster::{NodeId, ShardId};
use pleat_consensus::{GroupId, MembershipError, Status};
use serde::{Deserialize, Serialize};

use crate::host::CONTROL;
use crate::route::Effect;
use crate::rpc::{Declined, Request, Response};
use crate::{Host, HostError};

/// One change. Each can be repeated, and does nothing then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// None: only tell who is a member.
    Show,
    /// Finish a change that was left half done, in favour of all who vote on either side.
    Settle,
    /// No majority needs or counts the node any more when this succeeds.
    Remove(NodeId),
    /// Send it the log.
    Learn(NodeId),
    /// Let it vote. Refused for one that was not made to learn before.
    Promote(NodeId),
}

/// A group as one of its replicas sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    pub term: u64,
    /// Whether the replica leads, as far as it knows.
    pub leads: bool,
    pub voters: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
    /// Whether a change is half done.
    pub joint: bool,
    pub last_log: u64,
    /// On the leader: how far the log of each member is known to match.
    pub matched: BTreeMap<NodeId, u64>,
}

impl GroupView {
    pub fn of(status: &Status) -> Self {
        Self {
            term: status.term,
            leads: status.is_leader,
            voters: status.voters.clone(),
            learners: status.learners.clone(),
            joint: status.joint,
            last_log: status.last_log,
            matched: status.matched.clone(),
        }
    }
}

impl From<MembershipError> for Declined {
    fn from(error: MembershipError) -> Self {
        match error {
            MembershipError::NotLeader { leader } => Declined::NotLeader { leader },
            other => HostError::Unavailable(other.to_string()).into(),
        }
    }
}

impl Host {
    /// Have the leader of a shard's group, or of the control group (`None`), change its members.
    pub async fn change_members(
        &self,
        shard: Option<ShardId>,
        change: MemberChange,
        within: Duration,
    ) -> Result<GroupView, HostError> {
        let group = shard.map_or(CONTROL, crate::calls::group_of);
        let request = || Request::Members { group, change };
        match self.ask_leader(group, Effect::Idempotent, within, request).await? {
            (Response::Members(view), _) => Ok(view),
            _ => Err(crate::calls::mismatch()),
        }
    }

    /// The same on this node, which must lead the group. It may: a replica whose *content* is not to be trusted leads as
    /// well as any, until it is removed by itself.
    pub(crate) async fn serve_members(
        &self,
        group: GroupId,
        change: MemberChange,
        within: Duration,
    ) -> Result<GroupView, Declined> {
        let group = self.consensus().group(group).ok_or(Declined::NotLeader { leader: None })?;
        let status = group.status();
        if !status.is_leader {
            return Err(Declined::NotLeader { leader: status.leader });
        }
        let changing = async {
            match change {
                MemberChange::Show => Ok(()),
                MemberChange::Settle => group.settle().await,
                MemberChange::Remove(node) => group.expel(node, within).await,
                MemberChange::Learn(node) => group.welcome(node).await,
                MemberChange::Promote(node) => group.promote(node).await,
            }
        };
        match tokio::time::timeout(within, changing).await {
            Ok(changed) => changed?,
            Err(_) => {
                let why = format!("the change of members was not committed within {within:?}");
                return Err(HostError::Unavailable(why).into());
            }
        }
        Ok(GroupView::of(&group.status()))
    }
}
