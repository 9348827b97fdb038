//! Moves: when one may be put into the journal, and when it may begin.
//!
//! *A split or a merge is the only one that is open.* It makes or takes down a shard, and names all that it moves by what
//! the catalog is like when it is started.
//!
//! *Several moves between shards that there are* may be open at a time when they were asked for at once (a rebalance): each names
//! other partitions, so none makes another one wrong, in whatever order they are carried out and whichever of them fails or is
//! cancelled. Those that have not begun are `Pending` and have touched nothing, so schema changes go past them; and what needs a
//! cluster in which nothing moves (another split, merge or rebalance) waits for all.
//!
//! *Up to [`Catalog::MOVES_BEGUN_MAX`] of them have begun*, and no shard has a part in two of these, be it as source or as target. So a
//! shard has one move at a time, and knows of one fence, one capture and one import, whoever leads.
//!
//! An operation that waits for a shard ([`Operation::is_waiting`]) counts for none of this: it holds its shards by itself
//! ([`Catalog::held`]).

use std::collections::BTreeSet;

use crate::apply::{Applied, busy, invalid};
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
            self.admit_beside_waiting(kind)?;
            self.admit_move(*from, *to, partitions)?;
            if let Some(twice) = partitions.iter().find(|partition| !named.insert(**partition)) {
                return Err(invalid(format!("partition {twice} can't be moved twice at once")));
            }
        }
        let ids: Vec<OperationId> = moves.iter().map(|kind| self.enter(kind, cause.clone(), reason, at)).collect();
        Ok(ids.first().copied())
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
        let is_move = |other: &&Operation| other.kind.moves().is_some() && !other.is_waiting();
        match self.open_operations().find(is_move) {
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
        let in_the_way = begun.iter().find(|other| other.meets(operation));
        let in_the_way = in_the_way.or_else(|| begun.first().filter(|_| begun.len() >= Self::MOVES_BEGUN_MAX));
        match in_the_way {
            Some(other) => Err(busy(format!("{} is still moving partitions", other.id))),
            None => Ok(()),
        }
    }

    /// Moves that have begun and don't wait for a shard.
    fn begun_moves(&self) -> impl Iterator<Item = &Operation> {
        let begun = |open: &&Operation| open.phase == Phase::Progressing && !open.is_waiting();
        self.open_operations().filter(begun).filter(|open| open.kind.moves().is_some())
    }

    /// Broken invariants of open moves, see [`Catalog::check`].
    pub(crate) fn check_moves(&self, found: &mut Vec<String>) {
        let (mut named, mut open, mut alone) = (BTreeSet::new(), 0, false);
        for operation in self.open_operations() {
            let Some((from, _, partitions)) = operation.kind.moves() else { continue };
            let decided = operation.committed || operation.given_up;
            if !decided && partitions.iter().any(|p| self.owner(*p) != Some(from)) {
                found.push(format!("{} moves a partition that {from} does not own", operation.id));
            }
            if operation.is_waiting() {
                continue;
            }
            if !partitions.iter().all(|partition| named.insert(*partition)) {
                found.push(format!("{} moves a partition that another one moves", operation.id));
            }
            open += 1;
            alone |= !matches!(operation.kind, OperationKind::Move { .. });
        }
        let begun: Vec<&Operation> = self.begun_moves().collect();
        let meet = begun.iter().enumerate().any(|(at, one)| begun[..at].iter().any(|other| other.meets(one)));
        if meet || begun.len() > Self::MOVES_BEGUN_MAX || (alone && open > 1) {
            found.push(format!(
                "{open} operations move partitions, and {} have begun that may not at once",
                begun.len()
            ));
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
