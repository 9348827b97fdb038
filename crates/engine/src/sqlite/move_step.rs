//! The steps of a move, at apply.
//!
//! Each arm of [`Writer::take_step`] names the phases that it starts from, and those in which it has happened already.

use std::sync::Arc;

use pleat_cluster::{Generation, PartitionId};

use super::failure::Applied;
use super::reference;
use super::store::Writer;
use super::table::{Specs, TableSpec};
use crate::{MoveAction, MovePhase, MoveState, MoveStep, Outcome, Position, Refusal, UnitSet};

impl Writer {
    /// One step: the epoch first, then what it does. Gives how the move stands here afterwards.
    pub(crate) fn move_step(&mut self, step: &MoveStep) -> Applied<Outcome> {
        let seen = self.placement.moves.get(&step.operation).map_or(0, |state| state.epoch);
        if step.epoch < seen {
            return Err(Refusal::StaleEpoch { given: step.epoch, seen }.into());
        }
        if !matches!(step.action, MoveAction::Claim) {
            self.check_undecided()?;
            self.beside.version += 1;
        }
        if step.epoch > seen || !self.placement.moves.contains_key(&step.operation) {
            self.change_placement(|placement| {
                let state = placement.moves.entry(step.operation).or_insert_with(|| new_state(step.operation));
                state.epoch = step.epoch;
            })?;
        }
        self.take_step(step.operation, &step.action)?;
        Ok(Outcome::Moved(self.state(step.operation)))
    }

    fn take_step(&mut self, operation: u64, action: &MoveAction) -> Applied<()> {
        use MovePhase::{
            Capturing, Claimed, Closed, Closing, Discarding, Ended, Fenced, Importing, Leftovers, Placed, Placing,
            PlacingFenced,
        };
        let state = self.state(operation);
        let units: UnitSet = state.partitions.iter().copied().collect();
        match (action, state.phase) {
            (MoveAction::Claim, _) => Ok(()),

            (MoveAction::CaptureStart { partitions }, Claimed) => self.capture_start(operation, partitions),
            (MoveAction::CaptureStart { partitions }, Capturing | Fenced | Closing)
                if *partitions == state.partitions =>
            {
                Ok(())
            }
            (MoveAction::Fence, Capturing) => self.set_gates(operation, Fenced, |fenced| fenced.extend(&units)),
            (MoveAction::Fence, Fenced) => Ok(()),
            (MoveAction::Close, Capturing) => self.close(operation, &units),
            (MoveAction::Close, Closing) => Ok(()),
            (MoveAction::Unfence, Fenced | Closing) => {
                self.set_gates(operation, Capturing, |fenced| fenced.subtract(&units))
            }
            (MoveAction::Unfence, Capturing) => Ok(()),
            (MoveAction::Release { ownership }, Fenced) => self.release(operation, &units, *ownership, Leftovers),
            (MoveAction::Release { ownership }, Closing) => self.release(operation, &units, *ownership, Closed),
            (MoveAction::Release { .. }, Leftovers | Closed) => Ok(()),
            (MoveAction::Release { .. }, Ended) if units.common(&self.placement.owned).is_none() => Ok(()),
            (MoveAction::Abort, Claimed) => self.set_phase(operation, Ended),
            (MoveAction::Abort, Capturing | Fenced | Closing) => {
                self.capture_end(&units)?;
                self.set_gates(operation, Ended, |fenced| fenced.subtract(&units))
            }
            (MoveAction::Abort, Ended) => Ok(()),

            (MoveAction::ImportStart { partitions }, Claimed) => self.import_start(operation, partitions),
            (MoveAction::ImportStart { partitions }, Importing) if *partitions == state.partitions => Ok(()),
            (
                MoveAction::Import { changes, idempotency, position, copied },
                Claimed | Importing | Placing | PlacingFenced,
            ) => self.import(&state, changes, idempotency, position.as_ref(), *copied),
            (MoveAction::ReferenceLoaded { seq }, Claimed | Importing) => {
                if *seq > reference::last_seq(&self.db.conn)? {
                    reference::set_last_seq(&self.db.conn, *seq)?;
                }
                Ok(())
            }
            (MoveAction::Activate { ownership }, Importing) => self.activate(operation, &units, *ownership),
            (MoveAction::Activate { .. }, Ended) if self.owns_all(&units) => Ok(()),
            (MoveAction::ImportAbort, Claimed) => self.set_phase(operation, Ended),
            (MoveAction::ImportAbort, Importing) => self.set_phase(operation, Discarding),
            (MoveAction::ImportAbort, Discarding) => Ok(()),
            (MoveAction::ImportAbort, Ended) if !self.owns_all(&units) || units.is_empty() => Ok(()),

            (MoveAction::PlaceStart { place }, Claimed) => self.place_start(operation, place),
            (MoveAction::PlaceStart { place }, Placing) if state.place.as_ref() == Some(place) => Ok(()),
            (MoveAction::PlaceFence, Placing) => self.place_fence(operation, &state),
            (MoveAction::PlaceFence, PlacingFenced) => Ok(()),
            (MoveAction::PlaceUnfence, PlacingFenced) => self.place_unfence(operation, &state),
            (MoveAction::PlaceUnfence, Placing) => Ok(()),
            (MoveAction::PlaceSwitch { layout }, PlacingFenced) => self.place_switch(operation, &state, *layout),
            (MoveAction::PlaceSwitch { layout }, Placed | Leftovers | Ended) if self.placement.layout >= *layout => {
                Ok(())
            }
            (MoveAction::PlaceOpen, Placed) => self.place_open(operation, &state),
            (MoveAction::PlaceOpen, Leftovers | Ended) => Ok(()),
            (MoveAction::PlaceAbort, Claimed) => self.set_phase(operation, Ended),
            (MoveAction::PlaceAbort, Placing | PlacingFenced) => self.place_abort(operation, &state),
            (MoveAction::PlaceAbort, Discarding | Ended) => Ok(()),

            (MoveAction::CleanUp { table, keys }, Leftovers | Discarding) => self.clean_up(&state, table, keys),
            (MoveAction::CleanUp { keys, .. }, Ended) if keys.is_empty() => Ok(()),
            (MoveAction::CleanUpDone, Leftovers | Discarding) => self.set_phase(operation, Ended),
            (MoveAction::CleanUpDone, Ended) => Ok(()),

            (action, phase) => Err(does_not_fit(action, phase).into()),
        }
    }

    fn capture_start(&mut self, operation: u64, partitions: &[PartitionId]) -> Applied<()> {
        self.placement.check_units(partitions)?;
        self.check_free(operation, partitions)?;
        self.change_placement(|placement| {
            if let Some(state) = placement.moves.get_mut(&operation) {
                state.phase = MovePhase::Capturing;
                state.partitions = partitions.to_vec();
            }
        })?;
        self.schema_changed = true;
        for spec in moving_tables(&self.specs, &partitions.iter().copied().collect()) {
            self.run_own(spec.capture_start(false))?;
        }
        Ok(())
    }

    fn capture_end(&mut self, units: &UnitSet) -> Applied<()> {
        self.schema_changed = true;
        for spec in moving_tables(&self.specs, units) {
            self.run_own(spec.capture_end())?;
        }
        Ok(())
    }

    /// Pleat's own changes of the schema.
    pub(crate) fn run_own(&mut self, statements: Vec<String>) -> Applied<()> {
        self.schema_changed = true;
        statements.iter().try_for_each(|sql| self.db.conn.execute_batch(sql))?;
        Ok(())
    }

    /// The whole shard is to go: it closes only when nothing would stay behind.
    fn close(&mut self, operation: u64, units: &UnitSet) -> Applied<()> {
        if let Some(unit) = self.placement.owned.iter().find(|unit| !units.contains(*unit)) {
            let reason = format!("this shard also owns partition {unit}, and can't close");
            return Err(Refusal::MoveState { reason }.into());
        }
        self.set_gates(operation, MovePhase::Closing, |fenced| fenced.extend(units))
    }

    fn release(&mut self, operation: u64, units: &UnitSet, ownership: Generation, then: MovePhase) -> Applied<()> {
        self.capture_end(units)?;
        self.change_placement(|placement| {
            placement.owned.subtract(units);
            placement.fenced.subtract(units);
            placement.ownership = placement.ownership.max(ownership);
            if let Some(state) = placement.moves.get_mut(&operation) {
                state.phase = then;
            }
        })
    }

    fn import_start(&mut self, operation: u64, partitions: &[PartitionId]) -> Applied<()> {
        self.check_free(operation, partitions)?;
        if let Some(unit) = partitions.iter().find(|unit| self.placement.owned.contains(**unit)) {
            return Err(Refusal::MoveState { reason: format!("this shard owns partition {unit} already") }.into());
        }
        self.change_placement(|placement| {
            if let Some(state) = placement.moves.get_mut(&operation) {
                state.phase = MovePhase::Importing;
                state.partitions = partitions.to_vec();
            }
        })
    }

    fn activate(&mut self, operation: u64, units: &UnitSet, ownership: Generation) -> Applied<()> {
        self.change_placement(|placement| {
            placement.owned.extend(units);
            placement.ownership = placement.ownership.max(ownership);
            if let Some(state) = placement.moves.get_mut(&operation) {
                state.phase = MovePhase::Ended;
            }
        })
    }

    pub(crate) fn set_phase(&mut self, operation: u64, phase: MovePhase) -> Applied<()> {
        self.set_gates(operation, phase, |_| {})
    }

    fn set_gates(&mut self, operation: u64, phase: MovePhase, fence: impl FnOnce(&mut UnitSet)) -> Applied<()> {
        self.change_placement(|placement| {
            fence(&mut placement.fenced);
            if let Some(state) = placement.moves.get_mut(&operation) {
                state.phase = phase;
                if phase == MovePhase::Ended {
                    state.place = None;
                }
            }
        })
    }

    /// No unit may be in two moves at a time, leftovers of an earlier one included.
    fn check_free(&self, operation: u64, partitions: &[PartitionId]) -> Result<(), Refusal> {
        let busy = self.placement.moves.values().find(|state| {
            state.operation != operation
                && !matches!(state.phase, MovePhase::Claimed | MovePhase::Ended)
                && state.partitions.iter().any(|unit| partitions.contains(unit))
        });
        match busy {
            Some(state) => Err(Refusal::MoveState {
                reason: format!("operation {} still has some of these partitions ({:?})", state.operation, state.phase),
            }),
            None => Ok(()),
        }
    }

    fn owns_all(&self, units: &UnitSet) -> bool {
        units.iter().all(|unit| self.placement.owned.contains(unit))
    }

    fn state(&self, operation: u64) -> MoveState {
        self.placement.moves.get(&operation).cloned().unwrap_or_else(|| new_state(operation))
    }
}

/// The tables that have rows of these units: all sharded ones for a partition, the single one for its unit.
pub(crate) fn moving_tables(specs: &Specs, units: &UnitSet) -> Vec<Arc<TableSpec>> {
    let moves = |spec: &&Arc<TableSpec>| match spec.table.shard_key() {
        Some(_) => units.has_partitions(),
        None => spec.unit.is_some_and(|unit| units.contains(unit)),
    };
    specs.values().filter(moves).cloned().collect()
}

fn new_state(operation: u64) -> MoveState {
    MoveState {
        operation,
        epoch: 0,
        phase: MovePhase::Claimed,
        partitions: Vec::new(),
        position: Position::default(),
        place: None,
    }
}

fn does_not_fit(action: &MoveAction, phase: MovePhase) -> Refusal {
    Refusal::MoveState { reason: format!("{} does not fit here: the move is {phase:?} on this shard", action.name()) }
}
