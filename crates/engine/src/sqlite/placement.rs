//! What a shard owns, and the moves that it takes part in: one row of the database, read in the same snapshot as
//! the data it speaks of.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleat_cluster::planted::{self, Bug};
use pleat_cluster::{Generation, PartitionId};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::failure::Applied;
use crate::limits::MOVES_REMEMBERED_MAX;
use crate::{Holding, MovePhase, MoveState, OwnershipCheck, ReadRequest, Refusal, TablePlace, UnitSet};

/// The shard's own view of ownership at a position of its log.
///
/// Invariants: fenced units are owned; a unit is in at most one move that has not ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Placement {
    /// The generation at which `owned` last changed; the catalog keeps the same number.
    pub(crate) ownership: Generation,
    pub(crate) owned: UnitSet,
    pub(crate) fenced: UnitSet,
    /// The layout of the catalog by which the tables here are placed.
    pub(crate) layout: Generation,
    /// By operation.
    pub(crate) moves: BTreeMap<u64, MoveState>,
}

impl Placement {
    /// Whether rows are here that belong to another shard, or are not complete yet.
    ///
    /// Of a table that gets another placement, only while which rows are the shard's own depends on their key: where all
    /// are, none is foreign, and where none is, nobody reads them.
    pub(crate) fn has_foreign_rows(&self) -> bool {
        use MovePhase::{Discarding, Importing, Leftovers, Placed, Placing, PlacingFenced};
        let by_key = |holding: &Holding| matches!(holding, Holding::Key(_));
        if planted::is(Bug::OwnershipFilterOff) {
            return false;
        }
        self.moves.values().any(|state| match (&state.place, state.phase) {
            (Some(place), Placing | PlacingFenced | Discarding) => by_key(&place.before),
            (Some(place), Placed | Leftovers) => by_key(&place.after),
            (None, Importing | Leftovers | Discarding) => true,
            _ => false,
        })
    }

    /// Whether writes to reference tables have to wait.
    pub(crate) fn check_reference_writes(&self) -> Result<(), Refusal> {
        self.refuse_placing(|place| place.reference)
    }

    /// Whether a statement may write the table. The fence on it refuses each row that is written; a statement that finds
    /// none would be remembered where its repetition, after the switch, does not come.
    pub(crate) fn check_table(&self, table: &str) -> Result<(), Refusal> {
        self.refuse_placing(|place| place.table.name.eq_ignore_ascii_case(table))
    }

    /// Refuses when one of the tables that take no writes now is such a one.
    fn refuse_placing(&self, such: impl Fn(&TablePlace) -> bool) -> Result<(), Refusal> {
        let closed = |state: &&MoveState| matches!(state.phase, MovePhase::PlacingFenced | MovePhase::Placed);
        let mut closed = self.moves.values().filter(closed).filter_map(|state| state.place.as_ref());
        match closed.find(|place| such(place)) {
            Some(place) => Err(Refusal::Placing { table: place.table.name.clone() }),
            None => Ok(()),
        }
    }

    /// Whether a statement that was planned by this layout means here what it was planned to. On a shard that is going none does.
    pub(crate) fn check_layout(&self, routed: Generation) -> Result<(), Refusal> {
        if self.moves.values().any(|state| matches!(state.phase, MovePhase::Closing | MovePhase::Closed)) {
            return Err(Refusal::Leaving);
        }
        match routed == self.layout {
            true => Ok(()),
            false => Err(Refusal::Layout { layout: self.layout, routed }),
        }
    }

    /// Whether the schema must not change.
    pub(crate) fn is_moving(&self) -> bool {
        self.moves.values().any(|state| !matches!(state.phase, MovePhase::Claimed | MovePhase::Ended))
    }

    /// The units whose changes are written down.
    pub(crate) fn captured(&self) -> UnitSet {
        (self.moves.values())
            .filter(|state| matches!(state.phase, MovePhase::Capturing | MovePhase::Fenced | MovePhase::Closing))
            .flat_map(|state| state.partitions.iter().copied())
            .collect()
    }

    /// Whether the units can be read and written here.
    pub(crate) fn check_units(&self, units: &[PartitionId]) -> Result<(), Refusal> {
        if planted::is(Bug::StaleRouterBelieved) {
            return Ok(());
        }
        for unit in units {
            if !self.owned.contains(*unit) {
                return Err(Refusal::NotOwned { unit: *unit, ownership: self.ownership });
            }
            if self.fenced.contains(*unit) {
                return Err(Refusal::Fenced { unit: *unit });
            }
        }
        Ok(())
    }

    /// Whether a read that was routed so gets the right answer here.
    ///
    /// A scatter is refused while *anything* is fenced: after the hand-over a router of the old generation would
    /// not know the new owner, and would take the fenced rows for the present ones.
    pub(crate) fn check_read(&self, request: &ReadRequest) -> Result<(), Refusal> {
        request.layout.map_or(Ok(()), |routed| self.check_layout(routed))?;
        match &request.check {
            OwnershipCheck::None => Ok(()),
            OwnershipCheck::Keyed(units) => self.check_units(units),
            OwnershipCheck::Scatter { .. } if planted::is(Bug::ScatterUnchecked) => Ok(()),
            OwnershipCheck::Scatter { ownership } if *ownership != self.ownership => {
                Err(Refusal::Generation { ownership: self.ownership, routed: *ownership })
            }
            OwnershipCheck::Scatter { .. } => match self.fenced.iter().next() {
                Some(unit) => Err(Refusal::Fenced { unit }),
                None => Ok(()),
            },
        }
    }

    /// Forgets the oldest ended moves beyond the limit.
    pub(crate) fn forget_old(&mut self) {
        while self.moves.len() > MOVES_REMEMBERED_MAX {
            let ended = self.moves.iter().find(|(_, state)| state.phase == MovePhase::Ended).map(|(id, _)| *id);
            let Some(oldest) = ended else { return };
            self.moves.remove(&oldest);
        }
    }

    /// From the database, with its version.
    pub(crate) fn load(conn: &Connection) -> anyhow::Result<(i64, Arc<Placement>)> {
        let mut statement = conn.prepare_cached("SELECT version, value FROM __pleat_placement WHERE id = 0")?;
        let (version, bytes): (i64, Vec<u8>) = statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok((version, Arc::new(postcard::from_bytes(&bytes)?)))
    }

    /// The version that the current snapshot has.
    pub(crate) fn version(conn: &Connection) -> rusqlite::Result<i64> {
        conn.prepare_cached("SELECT version FROM __pleat_placement WHERE id = 0")?.query_row([], |row| row.get(0))
    }

    /// Into the database.
    pub(crate) fn save(&self, conn: &Connection) -> Applied<()> {
        let bytes = postcard::to_stdvec(self)?;
        conn.prepare_cached("UPDATE __pleat_placement SET version = version + 1, value = ?1 WHERE id = 0")?
            .execute([bytes])?;
        Ok(())
    }
}
