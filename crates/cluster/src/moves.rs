//! Moves: which operations that move partitions may be in the journal together, and which may have begun together.
//!
//! Splits, merges and moves between shards that there are name all that they move, and the shards, by what the catalog is like when
//! they are started, and may be started beside others. Two rules keep what they name true, in whatever order they are carried
//! out and whichever of them fails or is cancelled:
//!
//! *In the journal together* ([`clash`]) are only such as name different partitions, and none that has a part in a shard that another
//! one makes or takes down. So a split's shard belongs to it alone until it has ended, and a merge's source still owns
//! what it did, whatever others do. A split leaves its source something besides what others take from it
//! ([`Catalog::settled_partitions_of`]). What has not begun is `Pending` and has touched no shard that anybody uses, so schema changes go past it, and
//! an urgent split goes past the moves of a rebalance. (A rebalance itself is worked out over all shards, so its moves are started when
//! nothing else moves.)
//!
//! *Up to [`Catalog::MOVES_BEGUN_MAX`] have begun*, and no shard has a part in two of these ([`Operation::meets`]), be it as source or as target. So a
//! shard has one move at a time, and knows of one fence, one capture and one import, whoever leads.
//!
//! | its leader dies while it | and then |
//! | --- | --- |
//! | is `Pending` | nobody notices: it has begun nowhere. The shard that a split has in the catalog waits for it, and is removed when it is cancelled |
//! | has begun | the next leader finds up to so many that have, takes each of them up, and begins no other before one has ended: the catalog refuses that, too, to a leader that does not know that it was deposed |
//! | is committed or given up | the same: it is only finished, or taken back, and counts until it has ended or waits |
//!
//! An operation that waits for a shard ([`Operation::is_waiting`]) counts for none of this: it holds its shards by itself
//! ([`Catalog::held`]).

use std::collections::BTreeSet;

use crate::apply::{Applied, busy, invalid};
use crate::planted::{self, Bug};
use crate::{Catalog, Cause, Millis, Operation, OperationId, OperationKind, PartitionId, Phase, ShardId};

impl Catalog {
    /// Put moves into the journal, all or none. Gives the id of the first; the others follow it in order.
    pub(crate) fn start_moves(
        &mut self,
        moves: &[OperationKind],
        cause: &Cause,
        reason: &str,
        at: Millis,
    ) -> Applied<Option<OperationId>> {
        self.admit_open(moves.len())?;
        self.no_move_is_open()?;
        let mut named = BTreeSet::new();
        for kind in moves {
            let OperationKind::Move { from, to, partitions } = kind else {
                return Err(invalid(format!("a {} is started by itself", kind.name())));
            };
            self.admit_engine(kind)?;
            self.admit_beside_waiting(kind)?;
            self.admit_move(*from, *to, partitions)?;
            if let Some(twice) = partitions.iter().find(|partition| !named.insert(**partition)) {
                return Err(invalid(format!("partition {twice} can't be moved twice at once")));
            }
        }
        let ids: Vec<OperationId> = moves.iter().map(|kind| self.enter(kind, cause.clone(), reason, at)).collect();
        Ok(ids.first().copied())
    }

    /// Whether an operation may be in the journal beside the moves that are open.
    pub(crate) fn admit_beside_moves(&self, kind: &OperationKind) -> Applied {
        match self.open_moves().find_map(|other| Some((other.id, clash(kind, &other.kind)?))) {
            Some((id, what)) => Err(busy(format!("{id} is still {what}; wait for it to end, or cancel it"))),
            None => Ok(()),
        }
    }

    pub(crate) fn admit_split(&self, from: ShardId, to: ShardId, partitions: &[PartitionId]) -> Applied {
        if to != self.next_shard() {
            return Err(invalid(format!("the next shard is {}, not {to}", self.next_shard())));
        }
        self.admit_source(from, partitions)?;
        match partitions.len() < self.settled_partitions_of(from).len() {
            true => Ok(()),
            false => Err(invalid(format!("a split leaves {from} at least one partition"))),
        }
    }

    /// The hash partitions that `shard` owns and that no open operation takes from it, in order.
    pub fn settled_partitions_of(&self, shard: ShardId) -> Vec<PartitionId> {
        let moves = self.open_moves().filter_map(|open| open.kind.moves());
        let taken: BTreeSet<PartitionId> = moves.flat_map(|(_, _, partitions)| partitions).copied().collect();
        self.partitions_of(shard).into_iter().filter(|partition| !taken.contains(partition)).collect()
    }

    pub(crate) fn admit_move(&self, from: ShardId, to: ShardId, partitions: &[PartitionId]) -> Applied {
        if from == to {
            return Err(invalid("a move changes the shard"));
        }
        self.active(to)?;
        self.admit_source(from, partitions)
    }

    pub(crate) fn admit_source(&self, from: ShardId, partitions: &[PartitionId]) -> Applied {
        self.active(from)?;
        if partitions.is_empty() {
            return Err(invalid("a move needs at least one partition"));
        }
        let ascending = partitions.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending {
            return Err(invalid("the partitions of a move are given in ascending order, each once"));
        }
        match partitions.iter().find(|partition| partition.is_single() || self.owner(**partition) != Some(from)) {
            Some(partition) => Err(invalid(format!("partition {partition} is not owned by {from}"))),
            None => Ok(()),
        }
    }

    pub(crate) fn no_move_is_open(&self) -> Applied {
        match self.open_moves().next() {
            Some(other) => {
                Err(busy(format!("{} is still moving partitions; wait for it to end, or cancel it", other.id)))
            }
            None => Ok(()),
        }
    }

    /// Whether a move that has not begun may begin.
    pub(crate) fn admit_begin(&self, id: OperationId) -> Applied {
        let Some(operation) = self.operations.get(&id) else { return Ok(()) };
        if operation.phase != Phase::Pending || operation.kind.moves().is_none() {
            return Ok(());
        }
        let begun: Vec<&Operation> = self.begun_moves().collect();
        let in_the_way = begun.iter().find(|other| other.meets(operation) && !planted::is(Bug::MovesMeet));
        let in_the_way = in_the_way.or_else(|| begun.first().filter(|_| begun.len() >= Self::MOVES_BEGUN_MAX));
        match in_the_way {
            Some(other) => Err(busy(format!("{} is still moving partitions", other.id))),
            None => Ok(()),
        }
    }

    /// Operations that move partitions, have not ended and don't wait for a shard, oldest first.
    pub fn open_moves(&self) -> impl Iterator<Item = &Operation> {
        self.open_operations().filter(|open| open.kind.moves().is_some() && !open.is_waiting())
    }

    /// Those of them that have begun.
    pub fn begun_moves(&self) -> impl Iterator<Item = &Operation> {
        self.open_moves().filter(|open| open.phase == Phase::Progressing)
    }

    /// Broken invariants of open moves, see [`Catalog::check`].
    pub(crate) fn check_moves(&self, found: &mut Vec<String>) {
        for operation in self.open_operations() {
            let Some((from, _, partitions)) = operation.kind.moves() else { continue };
            let decided = operation.committed || operation.given_up;
            if !decided && partitions.iter().any(|p| self.owner(*p) != Some(from)) {
                found.push(format!("{} moves a partition that {from} does not own", operation.id));
            }
        }
        let open: Vec<&Operation> = self.open_moves().collect();
        for (one, other) in pairs(&open) {
            if let Some(what) = clash(&one.kind, &other.kind) {
                found.push(format!("{} is open beside {}, which is {what}", other.id, one.id));
            }
        }
        let begun: Vec<&Operation> = self.begun_moves().collect();
        if let Some((one, other)) = pairs(&begun).find(|(one, other)| one.meets(other)) {
            found.push(format!("{} and {} have begun, and a shard has a part in both", one.id, other.id));
        }
        if begun.len() > Self::MOVES_BEGUN_MAX {
            found.push(format!("{} operations that move partitions have begun", begun.len()));
        }
    }
}

/// Each with each that comes after it.
fn pairs<'a>(all: &'a [&Operation]) -> impl Iterator<Item = (&'a Operation, &'a Operation)> {
    all.iter().enumerate().flat_map(|(at, one)| all[at + 1..].iter().map(move |other| (*one, *other)))
}

/// Why two operations can't be in the journal together: what the other one is at. As true of the one as of the other.
fn clash(kind: &OperationKind, other: &OperationKind) -> Option<String> {
    let ((from, to, partitions), (other_from, other_to, others)) = (kind.moves()?, other.moves()?);
    let of_other = |shard: ShardId| shard == other_from || shard == other_to;
    match other {
        OperationKind::Merge { from: leaves, .. } if [from, to].contains(leaves) => {
            return Some(format!("taking {leaves} down"));
        }
        OperationKind::Split { to: made, .. } if [from, to].contains(made) => return Some(format!("making {made}")),
        _ => {}
    }
    match kind {
        OperationKind::Merge { .. } if of_other(from) => Some(format!("moving partitions of {from}")),
        OperationKind::Split { .. } if of_other(to) => Some(format!("moving partitions of {to}")),
        _ => {
            let named: BTreeSet<&PartitionId> = partitions.iter().collect();
            let both = others.iter().find(|partition| named.contains(partition))?;
            Some(format!("moving partition {both}"))
        }
    }
}

impl Operation {
    /// Whether a shard has a part in both of these moves.
    pub fn meets(&self, other: &Operation) -> bool {
        let (Some((from, to, _)), Some((other_from, other_to, _))) = (self.kind.moves(), other.kind.moves()) else {
            return false;
        };
        [from, to].iter().any(|shard| [other_from, other_to].contains(shard))
    }
}
