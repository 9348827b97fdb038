//! What the control leader does, for as long as it leads: found shards, then carry out operations, oldest first; moves between shards
//! that there are come last while they have not begun, since a rebalance asks for many: a split that is journaled behind them goes first. One operation that waits for a shard which is gone is stepped over, and
//! looked after now and then; see `pleat_cluster::Operation`.
//!
//! # Side by side
//!
//! One thing is done at a time, but for what moves partitions: a few splits, merges and moves ([`Catalog::MOVES_BEGUN_MAX`]) run side by side
//! when no shard has a part in two. What may be in the journal together, and have begun together, is the catalog's to say
//! (`pleat_cluster`'s `moves`).
//!
//! | what one operation at a time promised | why it still holds |
//! | --- | --- |
//! | a shard has one move at a time: captures, fences and what it keeps of a move never meet | the catalog refuses the beginning of a move that shares a shard with one that has begun, whoever asks, so that is also true of what a leader finds that takes over |
//! | what a shard owns changes through one operation: the generation that a commit gave it is still there when the shard is told | only a move, and a schema change, give a shard another one; the moves are of other shards, and schema changes run alone |
//! | nobody changes the schema during a move | whatever moves nothing runs alone: nothing more begins before it, and it begins when all that had begun has ended. The shard that a split makes gets the schema of the moment in which it begins |
//! | nobody makes or removes a shard during a move | only shards that have a part in no other: the catalog refuses an operation that names one which another makes or takes down. The anchor, which all read, is never taken down |
//! | reference tables are complete before a shard gets a partition | each move completes those of its own target, from the log of the anchor; a move of the anchor's own partitions changes nothing in that. The anchor is told of each new shard by itself, and keeps the newest catalog that it was told |
//! | steps on a shard come in order, and late ones are refused | their epochs are handed out by one counter of the term, and those of a move are sent one after the other, but for the messages of a copy, which are one step |
//! | cancelling, limits and failures concern one operation | each has its own `Work`; dropping one drops nothing of another |
//! | clients keep 80 % | a move aims at leaving 90 % of what clients have beside the other one: for two of them that is 81 % |
//!
//! No split and no merge waits for long behind a queue of moves: only one of its shards can be taken, since the other is its own, and it is the
//! first to get that when it is let go.
//!
//! A leader that takes over finds up to so many begun, and takes up all of them. Whatever comes first, such as a shard that is back,
//! waits until what runs has ended, and meanwhile nothing new begins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{
    Catalog, Command, DdlEffect, Engine, Operation, OperationId, OperationKind, Phase, Shard, ShardState,
};
use pleat_engine::Action;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::stop::Stop;
use crate::work::{COMMAND_LIMIT, Tools, Work};
use crate::{ddl, ddl_servers, mover, place, place_servers};

/// The pause after something failed, at first and at most.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Without a change of the catalog, it is looked at again this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// An operation that waits for a shard is looked after this often.
const WAITING_EVERY: Duration = Duration::from_secs(5);

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
enum Next {
    /// Shards that the cluster was founded with.
    Found(Vec<Shard>),
    /// A shard that owns nothing and that no operation needs.
    Remove(Shard),
    Operation(OperationId),
    /// One that waits for shards: they may be back.
    Waiting(OperationId),
    Nothing,
}

/// Work until this future is dropped, which is when leadership is lost.
pub(crate) async fn lead(tools: Tools) {
    let mut changes = tools.cluster.watch_catalog();
    let mut looked: BTreeMap<OperationId, Instant> = BTreeMap::new();
    let mut retries: BTreeMap<Option<OperationId>, Duration> = BTreeMap::new();
    let mut lanes = FuturesUnordered::new();
    let mut running: Vec<Next> = Vec::new();
    loop {
        let catalog = changes.borrow_and_update().clone();
        let is_due = |id: &OperationId| looked.get(id).is_none_or(|at| at.elapsed() >= WAITING_EVERY);
        let found = next(&catalog, &running, is_due);
        if found != Next::Nothing {
            let pause = retries.get(&found.operation()).copied().unwrap_or(RETRY_MIN);
            running.push(found.clone());
            lanes.push(lane(&tools, found, pause));
            continue;
        }
        tokio::select! {
            biased;
            Some((done, failed)) = lanes.next() => {
                running.retain(|other| *other != done);
                if let Next::Waiting(id) = done {
                    looked.insert(id, Instant::now());
                }
                match failed {
                    Some(pause) => drop(retries.insert(done.operation(), (pause * 2).min(RETRY_MAX))),
                    None => drop(retries.remove(&done.operation())),
                }
            }
            () = until_changed(&mut changes, LOOK_EVERY) => {}
        }
    }
}

/// Until the catalog changes, or for so long. A node whose catalog has stopped gets no news any more, and no rest either, if it asked at once again.
pub(crate) async fn until_changed(changes: &mut watch::Receiver<Arc<Catalog>>, limit: Duration) {
    if let Ok(Err(_)) = timeout(limit, changes.changed()).await {
        sleep(limit).await;
    }
}

/// Do one thing. When it fails it is to be tried again; the pause before that is part of it, and told.
async fn lane(tools: &Tools, what: Next, pause: Duration) -> (Next, Option<Duration>) {
    let outcome = match &what {
        Next::Found(shards) => found(tools, shards).await,
        Next::Remove(shard) => remove(tools, shard).await,
        Next::Operation(id) => carry_out(tools, *id).await,
        Next::Waiting(id) => look_after(tools, *id).await,
        Next::Nothing => Ok(()),
    };
    match outcome {
        Ok(()) => (what, None),
        Err(Stop::Waiting(why)) => {
            tracing::info!(why, "control: an operation is put off");
            (what, None)
        }
        Err(stop) => {
            tracing::warn!(why = stop.reason(), "control: trying again");
            sleep(pause).await;
            (what, Some(pause))
        }
    }
}

impl Next {
    fn operation(&self) -> Option<OperationId> {
        match self {
            Next::Operation(id) | Next::Waiting(id) => Some(*id),
            Next::Found(_) | Next::Remove(_) | Next::Nothing => None,
        }
    }
}

/// What is to be begun beside what runs, if anything. What comes first begins alone, or waits until it can: founding shards before
/// operations, since a schema change must reach every shard.
fn next(catalog: &Catalog, running: &[Next], is_due: impl Fn(&OperationId) -> bool) -> Next {
    if running.is_empty() {
        return first(catalog, is_due);
    }
    let ids: Vec<OperationId> = running.iter().filter_map(Next::operation).collect();
    let is_move = |id: &OperationId| catalog.operations.get(id).is_some_and(|open| open.kind.moves().is_some());
    let moves_run = running.iter().all(|next| matches!(next, Next::Operation(id) if is_move(id)));
    if !moves_run || running.len() >= Catalog::MOVES_BEGUN_MAX || chore(catalog, is_due) != Next::Nothing {
        return Next::Nothing;
    }
    // What ended a moment ago is still among what runs.
    let running: Vec<&Operation> = ids.iter().filter_map(|id| catalog.operations.get(id)).collect();
    let meets = |open: &Operation| running.iter().any(|other| other.meets(open)) && !planted::is(Bug::MovesMeet);
    let fits = |open: &&Operation| !ids.contains(&open.id) && !meets(open);
    let mut queue = queue(catalog).into_iter().take_while(|open| open.kind.moves().is_some());
    queue.find(fits).map_or(Next::Nothing, |operation| Next::Operation(operation.id))
}

fn first(catalog: &Catalog, is_due: impl Fn(&OperationId) -> bool) -> Next {
    match chore(catalog, is_due) {
        Next::Nothing => queue(catalog).first().map_or(Next::Nothing, |operation| Next::Operation(operation.id)),
        chore => chore,
    }
}

/// What comes before operations.
fn chore(catalog: &Catalog, is_due: impl Fn(&OperationId) -> bool) -> Next {
    let idle = |shard: &&Shard| {
        shard.state == ShardState::Creating
            && !catalog
                .open_operations()
                .any(|open| matches!(open.kind, OperationKind::Split { to, .. } if to == shard.id))
    };
    let creating: Vec<Shard> = catalog.shards.values().filter(idle).cloned().collect();
    if let Some(unused) = creating.iter().find(|shard| catalog.units_of(shard.id).is_empty()) {
        return Next::Remove(unused.clone());
    }
    if !creating.is_empty() {
        return Next::Found(creating);
    }
    let waiting = catalog.open_operations().find(|open| open.is_waiting() && is_due(&open.id));
    waiting.map_or(Next::Nothing, |waiting| Next::Waiting(waiting.id))
}

/// Operations that can go on, in the order in which they do.
///
/// One that must not begin before one that waits is passed over as well, unless it was cancelled.
fn queue(catalog: &Catalog) -> Vec<&Operation> {
    let begun = |open: &Operation| open.phase == Phase::Progressing || open.cancel_requested;
    // They move nothing that the others change, and have lanes of their own: a rebuild may take long, and a promotion can't wait.
    let can_go = |open: &&Operation| {
        let elsewhere = matches!(open.kind, OperationKind::Rebuild { .. } | OperationKind::Promote { .. });
        !elsewhere && !open.is_waiting() && (begun(open) || catalog.held(&open.kind).is_none())
    };
    let mut queue: Vec<&Operation> = catalog.open_operations().filter(can_go).collect();
    queue.sort_by_key(|open| (!begun(open), matches!(open.kind, OperationKind::Move { .. }) && !begun(open), open.id));
    queue
}

/// Give founding shards what they own, and route to them.
async fn found(tools: &Tools, shards: &[Shard]) -> Result<(), Stop> {
    let founded = join_all(shards.iter().map(|shard| found_one(tools, shard))).await;
    founded.into_iter().collect()
}

async fn found_one(tools: &Tools, shard: &Shard) -> Result<(), Stop> {
    let provided = tools.provisioner.provide(shard, tools.settings.provision_limit).await;
    provided.map_err(|error| Stop::Again(error.to_string()))?;
    let catalog = tools.cluster.catalog();
    // A server does not know what is its own: routers do.
    if catalog.engine == Engine::Sqlite {
        let own = Action::Own { units: catalog.units_of(shard.id), ownership: shard.ownership, layout: catalog.layout };
        crate::stop::took_effect(tools.cluster.write(shard.id, own, crate::work::EFFECT_LIMIT).await?)?;
    }
    let activate = Command::ActivateShard { shard: shard.id, at: tools.cluster.now_ms() };
    tools.cluster.command(activate, COMMAND_LIMIT).await?;
    tracing::info!(shard = %shard.id, "shard founded");
    Ok(())
}

async fn remove(tools: &Tools, shard: &Shard) -> Result<(), Stop> {
    let at = tools.cluster.now_ms();
    tools.cluster.command(Command::RemoveShard { shard: shard.id, at }, COMMAND_LIMIT).await?;
    Ok(())
}

/// When a shard that an operation waits for is back, it goes on.
async fn look_after(tools: &Tools, id: OperationId) -> Result<(), Stop> {
    let work = Work::new(tools.clone(), id);
    let awaited = work.operation()?.waits_for;
    if work.unreached(&awaited).await.len() == awaited.len() {
        return Err(work.wait_for(awaited).await);
    }
    carry_out(tools, id).await
}

/// Carry out one operation, or take it up where an earlier leader left it.
pub(crate) async fn carry_out(tools: &Tools, id: OperationId) -> Result<(), Stop> {
    let work = Arc::new(Work::new(tools.clone(), id));
    work.take_over().await?;
    let operation = work.operation()?;
    tracing::info!(operation = %id, kind = operation.kind.name(), reason = operation.reason, "operation taken up");
    if let Some((effect, sql)) = ddl::of(&operation.kind) {
        if let DdlEffect::Servers { about, .. } = effect {
            return ddl_servers::carry_out(&work, about, sql).await;
        }
        if let DdlEffect::PlaceOnServers { changes, .. } = effect {
            return place_servers::carry_out(&work, changes).await;
        }
        if let Some((before, after)) = place::of(effect) {
            return place::carry_out(&work, before, after).await;
        }
        return ddl::carry_out(&work, effect, sql).await;
    }
    match mover::Plan::of(&operation) {
        Some(plan) => mover::carry_out(&work, plan).await,
        None => work.finish(Phase::Skipped, "nothing to do").await,
    }
}

#[cfg(test)]
mod tests {
    use pleat_cluster::{Cause, NodeId, PartitionId, Policy, ShardId, View};

    use super::*;

    fn founded(shards: u32) -> Catalog {
        divided(shards, 8)
    }

    fn divided(shards: u32, partition_count: u32) -> Catalog {
        let mut catalog = Catalog::default();
        let init = Command::Init {
            cluster_id: "c".to_owned(),
            partition_count,
            replication_factor: 1,
            nodes: vec![(NodeId(1), "node-1".to_owned(), "127.0.0.1:1".to_owned())],
            incarnations: Default::default(),
            shards,
            engine: Default::default(),
            policy: Policy::default(),
            at: 1,
        };
        catalog.apply(&init).unwrap();
        catalog
    }

    fn split(catalog: &mut Catalog) -> OperationId {
        let kind = OperationKind::Split { from: ShardId(1), to: ShardId(2), partitions: vec![PartitionId(0)] };
        let cause = Cause::Request("test".to_owned());
        let start = Command::StartOperation { kind, cause, reason: String::new(), at: 1 };
        catalog.apply(&start).unwrap().operation.unwrap()
    }

    #[test]
    fn founding_shards_come_first_and_a_split_makes_its_own() {
        let mut catalog = founded(1);
        assert!(matches!(next(&catalog, &[], |_| true), Next::Found(shards) if shards.len() == 1));
        catalog.apply(&Command::ActivateShard { shard: ShardId(1), at: 1 }).unwrap();
        assert_eq!(next(&catalog, &[], |_| true), Next::Nothing);
        let operation = split(&mut catalog);
        assert_eq!(next(&catalog, &[], |_| true), Next::Operation(operation));
    }

    #[test]
    fn moves_that_have_not_begun_let_others_go_first() {
        let mut catalog = founded(3);
        for shard in 1..=3 {
            catalog.apply(&Command::ActivateShard { shard: ShardId(shard), at: 1 }).unwrap();
        }
        let shift = |to: u32, partition: u32| {
            let (from, to) = (ShardId(1), ShardId(to));
            OperationKind::Move { from, to, partitions: vec![PartitionId(partition)] }
        };
        let (moves, cause) = (vec![shift(2, 0), shift(3, 1)], Cause::Request("test".to_owned()));
        let first = catalog.apply(&Command::StartMoves { moves, cause: cause.clone(), reason: String::new(), at: 1 });
        let first = first.unwrap().operation.unwrap();
        let view = View { name: "v".to_owned(), sql: "CREATE VIEW v AS SELECT 1".to_owned() };
        let kind = OperationKind::Ddl { effect: DdlEffect::CreateView(view), sql: String::new(), layout: 0 };
        let start = Command::StartOperation { kind, cause, reason: String::new(), at: 1 };
        let view = catalog.apply(&start).unwrap().operation.unwrap();
        assert_eq!(next(&catalog, &[], |_| true), Next::Operation(view));
        let (step, detail) = ("capture".to_owned(), String::new());
        let begin = Command::JournalStep { operation: first, step, ended: false, detail, epoch: 1, at: 1 };
        catalog.apply(&begin).unwrap();
        assert_eq!(next(&catalog, &[], |_| true), Next::Operation(first), "what has begun goes on");
        assert_eq!(next(&catalog, &[Next::Operation(first)], |_| true), Next::Nothing, "and nothing before the view");
    }

    #[test]
    fn moves_of_different_shards_go_side_by_side_and_nothing_else_does() {
        let mut catalog = founded(8);
        for shard in 1..=8 {
            catalog.apply(&Command::ActivateShard { shard: ShardId(shard), at: 1 }).unwrap();
        }
        let shift = |(from, to): (u32, u32)| {
            let partitions = vec![PartitionId(from - 1)];
            OperationKind::Move { from: ShardId(from), to: ShardId(to), partitions }
        };
        let moves = [(1, 2), (3, 1), (4, 5), (6, 7)].map(shift).to_vec();
        let cause = Cause::Request("test".to_owned());
        catalog.apply(&Command::StartMoves { moves, cause, reason: String::new(), at: 1 }).unwrap();
        let ids: Vec<OperationId> = catalog.open_operations().map(|open| open.id).collect();
        let run = |ids: &[OperationId]| ids.iter().copied().map(Next::Operation).collect::<Vec<_>>();
        assert_eq!(next(&catalog, &[], |_| true), Next::Operation(ids[0]));
        assert_eq!(next(&catalog, &run(&ids[..1]), |_| true), Next::Operation(ids[2]), "the second needs shard 1");
        assert_eq!(next(&catalog, &run(&[ids[0], ids[2]]), |_| true), Next::Nothing, "there are enough");
        assert_eq!(next(&catalog, &[Next::Found(Vec::new())], |_| true), Next::Nothing);
        // A leader that takes over finds them begun.
        for id in [ids[0], ids[2]] {
            let (step, detail) = ("capture".to_owned(), String::new());
            let begin = Command::JournalStep { operation: id, step, ended: false, detail, epoch: 1, at: 1 };
            catalog.apply(&begin).unwrap();
        }
        assert_eq!(next(&catalog, &[], |_| true), Next::Operation(ids[0]));
        assert_eq!(next(&catalog, &run(&ids[..1]), |_| true), Next::Operation(ids[2]));
    }

    #[test]
    fn splits_and_merges_go_side_by_side_and_before_moves_that_have_not_begun() {
        let mut catalog = divided(4, 16);
        for shard in 1..=4 {
            catalog.apply(&Command::ActivateShard { shard: ShardId(shard), at: 1 }).unwrap();
        }
        let cause = Cause::Request("test".to_owned());
        let shift = |(from, to): (u32, u32)| {
            let partitions = vec![PartitionId(4 * from - 1)];
            OperationKind::Move { from: ShardId(from), to: ShardId(to), partitions }
        };
        let moves = [(1, 2), (3, 4)].map(shift).to_vec();
        catalog.apply(&Command::StartMoves { moves, cause: cause.clone(), reason: String::new(), at: 1 }).unwrap();
        let ids: Vec<OperationId> = catalog.open_operations().map(|open| open.id).collect();
        let mut start = |kind| {
            let start = Command::StartOperation { kind, cause: cause.clone(), reason: String::new(), at: 1 };
            catalog.apply(&start).unwrap().operation.unwrap()
        };
        let split = |from: u32, to: u32| {
            let partitions = vec![PartitionId(4 * from - 4)];
            OperationKind::Split { from: ShardId(from), to: ShardId(to), partitions }
        };
        let (one, other) = (start(split(1, 5)), start(split(2, 6)));
        let run = |ids: &[OperationId]| ids.iter().copied().map(Next::Operation).collect::<Vec<_>>();
        assert_eq!(next(&catalog, &[], |_| true), Next::Operation(one));
        assert_eq!(next(&catalog, &run(&[one]), |_| true), Next::Operation(other));
        assert_eq!(next(&catalog, &run(&[one, other]), |_| true), Next::Nothing, "there are enough");
        assert_eq!(next(&catalog, &run(&[ids[0]]), |_| true), Next::Operation(ids[1]), "both splits need its shards");
        assert_eq!(next(&catalog, &run(&[ids[1]]), |_| true), Next::Operation(one), "the others come after them");
        let created = catalog.apply(&Command::StartOperation {
            kind: OperationKind::Ddl {
                effect: DdlEffect::CreateView(View {
                    name: "v".to_owned(),
                    sql: "CREATE VIEW v AS SELECT 1".to_owned(),
                }),
                sql: String::new(),
                layout: 0,
            },
            cause: Cause::Request("test".to_owned()),
            reason: String::new(),
            at: 1,
        });
        created.unwrap();
        assert_eq!(next(&catalog, &run(&[one]), |_| true), Next::Operation(other), "it was asked for before");
        assert_eq!(next(&catalog, &run(&[other]), |_| true), Next::Operation(one));
    }

    #[test]
    fn a_shard_that_a_failed_split_left_is_removed() {
        let mut catalog = founded(1);
        catalog.apply(&Command::ActivateShard { shard: ShardId(1), at: 1 }).unwrap();
        let operation = split(&mut catalog);
        let (phase, message) = (Phase::Failed, String::new());
        catalog.apply(&Command::FinishOperation { operation, phase, message, epoch: 1, at: 1 }).unwrap();
        assert!(matches!(next(&catalog, &[], |_| true), Next::Remove(shard) if shard.id == ShardId(2)));
    }
}
