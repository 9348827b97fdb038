//! Whether this node may take part: a node that has lost its disk must not.
//!
//! # The problem
//!
//! A voter promises: whom it voted for in a term, and which entries it has. Majorities are made of these promises. A
//! node that comes back under its old id with an empty directory has forgotten them, and if it took part at once
//! it could help to elect a leader that lacks what was acknowledged. Its directory can't say that it is a new one: an
//! emptied one looks the same. The others can.
//!
//! # The mechanism
//!
//! Each directory has a random *incarnation*. A node whose directory holds no [`Admission`] starts no consensus group.
//! It asks the other founders *who am I to you?* ([`Standing`]) until one of these holds:
//!
//! | the answers | what follows |
//! | --- | --- |
//! | somebody has the catalog, and it names another incarnation | register with the catalog (*waiting*) and ask again; the control loop rebuilds the node (see `control`), and its commit names this one |
//! | somebody has the catalog, and it names this incarnation | admitted: start the control group empty, and be added to it by its leader |
//! | *every* other founder is as fresh, or founds with this very incarnation | admitted: found the cluster, with the incarnations heard |
//! | anything else | ask again |
//!
//! The admission is written durably before anything is started, and read instead of asking from then on: a cluster that
//! was shut down starts without having to ask anybody.
//!
//! *Founding needs all founders*, where a majority would elect a leader: if one more could be missing, the fresh nodes
//! might be a wiped one and one that was never there, while the missing one alone has what the two had founded. And
//! each founder notes whom it founds with, so that a founder which is wiped before the catalog exists is
//! known for another by everybody who could have counted on it.
//!
//! # A node dies …
//!
//! | while | and then |
//! | --- | --- |
//! | asking or waiting | it asks again; nothing was promised under this incarnation |
//! | between the admission's file and the group's start | the next start reads the file |
//! | founding, before the catalog exists | it goes on founding with the same companions |
//! | anywhere, and its disk is lost once more | it registers yet another incarnation, and the rebuild begins anew |
//!
//! # Caveats
//!
//! An *older copy* of a directory put back in place has forgotten promises, too, and can't be told from the right one.
//! In a cluster of two nodes nothing remains that could remove a wiped one: both are a majority. It stays waiting, and
//! says so.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::join_all;
use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{Command, NodeId};
use serde::{Deserialize, Serialize};

use crate::catalog_machine::{CatalogMachine, replace_file};
use crate::host::CONTROL;
use crate::rpc::{self, Request, Response};
use crate::{Host, HostError};

/// The pause between two rounds of asking.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long a founder may take to answer.
const ASK_LIMIT: Duration = Duration::from_secs(1);
/// How often a waiting node says what it waits for.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How long one registration may take.
const REGISTER_LIMIT: Duration = Duration::from_secs(5);

/// Why this directory's node may take part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admission {
    /// It founds the cluster, with these incarnations of all founders.
    Founder(BTreeMap<NodeId, u64>),
    /// The catalog names this incarnation: the old one was removed from every group.
    Rebuilt,
}

/// What a node is to another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// The node that answers was never admitted to anything. Its own incarnation.
    Fresh(u64),
    /// The node that answers founds the cluster, has no catalog yet, and counts on this incarnation of the asker.
    Founding { mine: u64, yours: Option<u64> },
    /// The node that answers comes (back) to a cluster, and has no catalog yet.
    Joining,
    /// The cluster exists.
    Member { registered: Option<u64>, waiting: Option<u64> },
}

/// What the answers mean.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Found(BTreeMap<NodeId, u64>),
    Admitted,
    Register,
    Wait(String),
}

/// The rule of the module's table. `answers`: of each other founder, `None` when it did not answer.
fn judge(me: NodeId, mine: u64, answers: &BTreeMap<NodeId, Option<Standing>>) -> Verdict {
    let mut companions = BTreeMap::from([(me, mine)]);
    let mut missing = None;
    let mut registered = None;
    for (node, answer) in answers {
        match answer {
            Some(Standing::Member { registered: Some(known), .. })
                if *known == mine || planted::is(Bug::ForgetfulVoter) =>
            {
                return Verdict::Admitted;
            }
            Some(Standing::Member { waiting, .. }) => registered = registered.or(Some(*waiting)),
            Some(Standing::Fresh(theirs)) => drop(companions.insert(*node, *theirs)),
            Some(Standing::Founding { mine: theirs, yours }) if *yours == Some(mine) => {
                companions.insert(*node, *theirs);
            }
            Some(Standing::Founding { .. }) => {
                missing = Some(format!("{node} founds the cluster with an earlier life of this node"));
            }
            Some(Standing::Joining) => missing = Some(format!("{node} is coming to the cluster itself")),
            None => missing = missing.or_else(|| Some(format!("{node} does not answer"))),
        }
    }
    match (registered, missing) {
        (Some(waiting), _) if waiting == Some(mine) => {
            Verdict::Wait("this node has lost its disk, and is to be rebuilt by the control group's leader".to_owned())
        }
        (Some(_), _) => Verdict::Register,
        (None, Some(why)) => Verdict::Wait(why),
        (None, None) => Verdict::Found(companions),
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    incarnation: u64,
    admission: Admission,
}

/// The admission in a data directory, if there is one.
pub fn read(dir: &Path, incarnation: u64) -> anyhow::Result<Option<Admission>> {
    let path = dir.join("admitted");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let file: File = rpc::decode(&bytes).with_context(|| format!("read {}", path.display()))?;
    ensure!(
        file.incarnation == incarnation,
        "{} belongs to another life of this directory; remove the whole directory, and the node is rebuilt from the others",
        path.display()
    );
    Ok(Some(file.admission))
}

fn write(dir: &Path, incarnation: u64, admission: &Admission) -> anyhow::Result<()> {
    let file = File { incarnation, admission: admission.clone() };
    replace_file(&dir.join("admitted"), &rpc::encode(&file)?)
}

impl Host {
    /// Take part as soon as this node may. Until then `machine` waits.
    pub(crate) async fn take_part(self: Arc<Self>, machine: CatalogMachine) {
        let Some(admission) = self.ask_around().await else { return };
        if let Err(error) = self.admit(admission, machine).await {
            tracing::error!("this node can't take part: {error:#}");
            self.disk().suspect(&error);
            return;
        }
        self.found().await;
    }

    /// Write the admission down, then start the control group.
    pub(crate) async fn admit(&self, admission: Admission, machine: CatalogMachine) -> anyhow::Result<()> {
        let (dir, incarnation) = (self.settings().data_dir.clone(), self.incarnation());
        let known = self.admission().is_some();
        if !known {
            let noted = admission.clone();
            pleat_consensus::blocking(move || write(&dir, incarnation, &noted)).await??;
        }
        let joins = admission == Admission::Rebuilt;
        self.set_admission(admission);
        let machine = Box::new(machine);
        let group = match joins {
            true => self.consensus().join_group(CONTROL, machine).await,
            false => self.consensus().start_group(CONTROL, machine).await,
        };
        self.set_control(group.context("start the control group")?);
        Ok(())
    }

    /// Ask the other founders until it is clear how this node takes part. `None`: it is stopped before.
    async fn ask_around(&self) -> Option<Admission> {
        let mut stop = self.stopping();
        let mut said: Option<Instant> = None;
        while !*stop.borrow() {
            let answers = self.ask_founders().await;
            match judge(self.node(), self.incarnation(), &answers) {
                Verdict::Found(companions) => return Some(Admission::Founder(companions)),
                Verdict::Admitted => {
                    tracing::info!("this node was admitted again and comes to its groups empty");
                    return Some(Admission::Rebuilt);
                }
                Verdict::Register => {
                    tracing::warn!(
                        "the cluster knows another life of this node: its disk was lost, it must be rebuilt"
                    );
                    self.register().await;
                }
                Verdict::Wait(why) if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) => {
                    // At the first start of a cluster the others may take a moment.
                    if said.is_some() {
                        tracing::warn!(why, "this node takes part in nothing yet");
                    }
                    said = Some(Instant::now());
                }
                Verdict::Wait(_) => {}
            }
            let _ = tokio::time::timeout(ASK_EVERY, stop.changed()).await;
        }
        None
    }

    async fn ask_founders(&self) -> BTreeMap<NodeId, Option<Standing>> {
        let others = self.settings().founders.iter().map(|(id, ..)| *id).filter(|id| *id != self.node());
        let ask = |node: NodeId| async move { (node, self.standing_at(node, ASK_LIMIT).await.ok()) };
        join_all(others.map(ask)).await.into_iter().collect()
    }

    async fn standing_at(&self, node: NodeId, within: Duration) -> Result<Standing, HostError> {
        match self.ask_node(node, Request::WhoAmI(self.node()), within).await? {
            Response::Standing(standing) => Ok(standing),
            _ => Err(HostError::Internal("the answer does not fit the request".into())),
        }
    }

    /// What `node` is to this one. Only durable facts count: what this node would still say after a restart.
    pub(crate) fn standing_of(&self, node: NodeId) -> Standing {
        let catalog = self.catalog();
        if catalog.is_initialised() {
            let known = catalog.nodes.get(&node);
            return Standing::Member {
                registered: known.map(|node| node.incarnation),
                waiting: known.and_then(|node| node.waiting),
            };
        }
        match self.admission() {
            None => Standing::Fresh(self.incarnation()),
            Some(Admission::Founder(with)) => {
                Standing::Founding { mine: self.incarnation(), yours: with.get(&node).copied() }
            }
            Some(Admission::Rebuilt) => Standing::Joining,
        }
    }

    /// Tell the catalog where this node is, and which life of it.
    pub(crate) async fn register(&self) -> bool {
        let (id, name, address) = (self.node(), self.name().to_owned(), self.address().to_owned());
        let register = Command::RegisterNode { id, name, address, incarnation: self.incarnation(), at: self.now_ms() };
        match self.command(register, REGISTER_LIMIT).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "could not register with the control group; trying again");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(1);
    const MINE: u64 = 11;

    fn judged(answers: [Option<Standing>; 2]) -> Verdict {
        judge(ME, MINE, &[NodeId(2), NodeId(3)].into_iter().zip(answers).collect())
    }

    fn member(registered: u64, waiting: Option<u64>) -> Option<Standing> {
        Some(Standing::Member { registered: Some(registered), waiting })
    }

    #[test]
    fn a_cluster_is_founded_only_when_every_founder_is_fresh_or_founds_with_this_life() {
        let all = Verdict::Found(BTreeMap::from([(ME, MINE), (NodeId(2), 22), (NodeId(3), 33)]));
        let fresh = |incarnation| Some(Standing::Fresh(incarnation));
        let founding = |mine, yours| Some(Standing::Founding { mine, yours: Some(yours) });
        assert_eq!(judged([fresh(22), fresh(33)]), all);
        assert_eq!(judged([founding(22, MINE), fresh(33)]), all);
        assert!(matches!(judged([fresh(22), None]), Verdict::Wait(_)), "the missing one may have a catalog");
        assert!(matches!(judged([founding(22, 10), fresh(33)]), Verdict::Wait(_)), "an earlier life has promised");
        assert!(matches!(judged([Some(Standing::Joining), fresh(33)]), Verdict::Wait(_)));
    }

    #[test]
    fn one_answer_is_enough_to_know_that_the_disk_was_lost() {
        assert_eq!(judged([member(10, None), None]), Verdict::Register);
        assert_eq!(judged([Some(Standing::Fresh(22)), member(10, None)]), Verdict::Register);
        assert_eq!(judged([member(10, Some(9)), None]), Verdict::Register, "wiped twice");
        assert!(matches!(judged([member(10, Some(MINE)), None]), Verdict::Wait(_)));
        assert_eq!(judged([member(10, Some(MINE)), member(MINE, None)]), Verdict::Admitted, "one of them lags behind");
    }

    #[test]
    fn the_admission_belongs_to_one_life() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path(), MINE).unwrap(), None);
        write(dir.path(), MINE, &Admission::Rebuilt).unwrap();
        assert_eq!(read(dir.path(), MINE).unwrap(), Some(Admission::Rebuilt));
        let error = read(dir.path(), 12).unwrap_err().to_string();
        assert!(error.contains("remove the whole directory"), "{error}");
    }
}
