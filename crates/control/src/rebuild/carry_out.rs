//! One rebuild, step by step.

use std::collections::BTreeSet;

use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{Command, NodeId, OperationId, Phase, ShardId, ShardState};
use pleat_host::failpoint::reach;
use pleat_host::{GroupView, MemberChange, NodeReplicas};
use tokio::time::{Instant, sleep};

use super::{AWAY_MAX, CATCH_UP_MAX, CHANGE_LIMIT, GROUP_WAIT_MAX, LAG_MAX, LOOK_EVERY, TELL_LIMIT};
use crate::stop::Stop;
use crate::work::{Tools, Work};

/// The control group, or a shard's.
type Part = Option<ShardId>;

/// Carry out a rebuild, or take it up where an earlier leader left it.
pub(super) async fn carry_out(tools: &Tools, id: OperationId, node: NodeId, shard: Part) -> Result<(), Stop> {
    let work = Work::new(tools.clone(), id);
    work.take_over().await?;
    let operation = work.operation()?;
    tracing::info!(operation = %id, %node, reason = operation.reason, "rebuild taken up");
    let rebuild = Rebuild { work: &work, node, shard };
    match rebuild.run(operation.committed).await {
        Ok(message) => work.finish(Phase::Successful, &message).await,
        // The catalog could not be written: it stays open, and is gone on with.
        Err(stop @ (Stop::Superseded(_) | Stop::Again(_))) => Err(stop),
        Err(stop) => {
            let why = stop.reason();
            tracing::warn!(operation = %id, why, "the rebuild is given up for now");
            work.finish(Phase::Failed, &why).await
        }
    }
}

struct Rebuild<'a> {
    work: &'a Work,
    node: NodeId,
    shard: Part,
}

impl Rebuild<'_> {
    async fn run(&self, committed: bool) -> Result<String, Stop> {
        if !committed {
            if !planted::is(Bug::RebuiltUnremoved) {
                self.remove_all().await?;
            }
            let (operation, epoch) = (self.work.id, self.work.tools.epochs.term());
            let at = self.work.cluster().now_ms();
            reach("operation.before-commit", None);
            self.work.command(Command::CommitOperation { operation, epoch, at }).await?;
            reach("operation.committed", None);
        }
        let mut rebuilt = 0;
        for part in self.parts() {
            rebuilt += u32::from(self.rejoin(part).await?);
        }
        Ok(format!("{} votes again in {rebuilt} groups", self.node))
    }

    /// The groups in question: the control group first, it tells the node what else it is to hold.
    fn parts(&self) -> Vec<Part> {
        if self.shard.is_some() {
            return vec![self.shard];
        }
        let catalog = self.work.catalog();
        let held = catalog.shards.values().filter(|shard| self.holds(shard)).map(|shard| Some(shard.id));
        [None].into_iter().chain(held).collect()
    }

    fn holds(&self, shard: &pleat_cluster::Shard) -> bool {
        shard.state != ShardState::Removed && shard.replicas.contains(&self.node)
    }

    /// Whether the group is still there to be rejoined.
    fn wanted(&self, part: Part) -> bool {
        part.is_none_or(|id| self.work.catalog().shards.get(&id).is_some_and(|shard| self.holds(shard)))
    }

    /// Only a member that no majority counts on may forget.
    async fn remove_all(&self) -> Result<(), Stop> {
        self.work.begin("remove").await?;
        let mut names = Vec::new();
        for part in self.parts() {
            if self.remove(part).await? {
                names.push(name(part));
            }
        }
        let detail = match names.is_empty() {
            true => format!("{} voted nowhere", self.node),
            false => format!("{} does not vote any more in {}", self.node, names.join(", ")),
        };
        self.work.end("remove", &detail).await
    }

    /// Whether it was a member.
    async fn remove(&self, part: Part) -> Result<bool, Stop> {
        let begun = Instant::now();
        loop {
            let why = match self.try_remove(part).await {
                Ok(removed) => return Ok(removed),
                Err(Stop::Again(why)) => why,
                Err(stop) => return Err(stop),
            };
            if !self.wanted(part) {
                return Ok(false);
            }
            if begun.elapsed() > GROUP_WAIT_MAX {
                return Err(Stop::impossible(format!("remove {} from {}: {why}", self.node, name(part))));
            }
            sleep(LOOK_EVERY).await;
            self.work.operation()?;
        }
    }

    async fn try_remove(&self, part: Part) -> Result<bool, Stop> {
        let cluster = self.work.cluster();
        let view = cluster.members(part, MemberChange::Show, CHANGE_LIMIT).await?;
        let was = view.voters.contains(&self.node) || view.learners.contains(&self.node);
        self.others_run(part, &view).await?;
        // Also when it is none any more: that has to be committed.
        cluster.members(part, MemberChange::Remove(self.node), CHANGE_LIMIT).await?;
        Ok(was)
    }

    /// A change of voters needs a majority of those that stay. Without one the group could write nothing from the moment
    /// on that the change was proposed, though with the node it may still be able to.
    async fn others_run(&self, part: Part, view: &GroupView) -> Result<(), Stop> {
        let others: BTreeSet<NodeId> = view.voters.iter().copied().filter(|voter| *voter != self.node).collect();
        let asked = others.iter().map(|node| self.work.cluster().replicas(*node, TELL_LIMIT));
        let told = futures::future::join_all(asked).await;
        let runs = told.iter().filter(|told| told.as_ref().is_ok_and(|told| view_of(told, part).is_some())).count();
        match runs * 2 > others.len() {
            true => Ok(()),
            false => Err(Stop::Again(format!("only {runs} of its {} other voters run", others.len()))),
        }
    }

    /// Make the node's empty replica a learner and then a voter. False when the shard was removed meanwhile.
    async fn rejoin(&self, part: Part) -> Result<bool, Stop> {
        let step = format!("rejoin {}", name(part));
        self.work.begin(&step).await?;
        let begun = Instant::now();
        let (mut seen, mut moved) = (Instant::now(), Instant::now());
        loop {
            if !self.wanted(part) {
                self.work.end(&step, "the shard was removed").await?;
                return Ok(false);
            }
            self.check_incarnation()?;
            match self.work.cluster().replicas(self.node, TELL_LIMIT).await {
                Ok(told) if self.runs(part, &told) => {
                    seen = Instant::now();
                    match self.advance(part).await {
                        Ok(None) => {
                            self.work.end(&step, "caught up, votes").await?;
                            return Ok(true);
                        }
                        Ok(Some(progress)) => {
                            moved = Instant::now();
                            self.work.is_at(|| progress)?;
                        }
                        Err(Stop::Again(why)) if moved.elapsed() < GROUP_WAIT_MAX => {
                            tracing::debug!(why, "rebuild: the group can't be changed at the moment");
                        }
                        Err(stop @ Stop::Superseded(_)) => return Err(stop),
                        Err(stop) => return Err(Stop::impossible(format!("{step}: {}", stop.reason()))),
                    }
                }
                // It answers: it is starting its replica.
                Ok(_) if seen.elapsed() < GROUP_WAIT_MAX => {}
                Ok(_) => return Err(Stop::impossible(format!("{step}: {} does not start its replica", self.node))),
                Err(_) if seen.elapsed() < AWAY_MAX => {}
                Err(error) => return Err(Stop::impossible(format!("{step}: {} is gone: {error}", self.node))),
            }
            if begun.elapsed() > CATCH_UP_MAX {
                return Err(Stop::impossible(format!("{step}: it did not catch up in {CATCH_UP_MAX:?}")));
            }
            sleep(LOOK_EVERY).await;
            self.work.operation()?;
        }
    }

    /// A newer life of the node has forgotten what this rebuild brought back.
    fn check_incarnation(&self) -> Result<(), Stop> {
        match self.work.catalog().nodes.get(&self.node) {
            Some(node) if node.waiting.is_none() => Ok(()),
            Some(_) => Err(Stop::impossible(format!("{} has lost its disk again", self.node))),
            None => Err(Stop::impossible(format!("{} is no node of the cluster any more", self.node))),
        }
    }

    /// Whether the node runs the replica that the catalog has admitted, and no earlier one.
    fn runs(&self, part: Part, told: &NodeReplicas) -> bool {
        let catalog = self.work.catalog();
        let incarnation = catalog.nodes.get(&self.node).map(|node| node.incarnation);
        let current = part.is_none_or(|id| {
            let number = catalog.shards.get(&id).map(|shard| shard.number(self.node));
            told.shards.iter().any(|replica| replica.shard == id && Some(replica.number) == number)
        });
        Some(told.incarnation) == incarnation && current && view_of(told, part).is_some()
    }

    /// One more bit of the way: how far it is, or nothing when it has arrived.
    async fn advance(&self, part: Part) -> Result<Option<String>, Stop> {
        let cluster = self.work.cluster();
        let view = cluster.members(part, MemberChange::Show, CHANGE_LIMIT).await?;
        if view.voters.contains(&self.node) && !view.joint {
            return Ok(None);
        }
        if !view.learners.contains(&self.node) && !view.voters.contains(&self.node) {
            cluster.members(part, MemberChange::Learn(self.node), CHANGE_LIMIT).await?;
            return Ok(Some("learning".to_owned()));
        }
        match view.matched.get(&self.node) {
            Some(matched) if view.last_log.saturating_sub(*matched) <= LAG_MAX => {
                cluster.members(part, MemberChange::Promote(self.node), CHANGE_LIMIT).await?;
                Ok(Some("becoming a voter".to_owned()))
            }
            Some(matched) => Ok(Some(format!("at entry {matched} of {}", view.last_log))),
            None => Ok(Some("being sent a snapshot".to_owned())),
        }
    }
}

/// How the node sees the group, if it takes part in it.
fn view_of(told: &NodeReplicas, part: Part) -> Option<&GroupView> {
    match part {
        None => told.control.as_ref(),
        Some(id) => told.shards.iter().find(|replica| replica.shard == id).map(|replica| &replica.group),
    }
}

fn name(part: Part) -> String {
    part.map_or_else(|| "the control group".to_owned(), |shard| shard.to_string())
}
