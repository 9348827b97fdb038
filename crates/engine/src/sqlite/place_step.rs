//! A table gets another placement: the steps at apply.
//!
//! All of a table's rows stay in one table of SQLite throughout. Until the switch a shard's own rows are those of the old
//! placement, and what is brought from other shards lies beside them, seen by nobody: statements over all rows of a
//! sharded table filter by `pleat_owned(key)`, keyed ones ask for keys that the shard owns, and a single table is
//! asked for on its own shard alone. With the switch the same filter, with the new key, hides what stays behind. So nothing is
//! copied, renamed or indexed at the switch; what is done then takes no longer for a large table. (Renumbering does.)
//!
//! Unique values can't collide: those of a sharded table contain its key, so a row that is brought and one that is the
//! shard's own differ in them; and a table that is single elsewhere is empty here.
//!
//! *What if the process dies?* Each step is one entry of the log, and all that it does is in one transaction.

use pleat_cluster::{Generation, PartitionId, TableKind};
use rusqlite::config::DbConfig;

use super::failure::Applied;
use super::store::Writer;
use super::table::TableSpec;
use super::value::{quote, quoted_list};
use crate::{MovePhase, MoveState, Refusal, TablePlace};

impl Writer {
    pub(crate) fn place_start(&mut self, operation: u64, place: &TablePlace) -> Applied<()> {
        if self.placement.is_moving() {
            return Err(Refusal::Moving.into());
        }
        let spec = self.placed_spec(place)?;
        self.change_placement(|placement| {
            if let Some(state) = placement.moves.get_mut(&operation) {
                state.phase = MovePhase::Placing;
                state.place = Some(Box::new(place.clone()));
            }
        })?;
        match place.captures {
            true => self.run_own(spec.travelling(place).capture_start(true)),
            false => Ok(()),
        }
    }

    pub(crate) fn place_fence(&mut self, operation: u64, state: &MoveState) -> Applied<()> {
        let spec = self.placed_spec(placing(state)?)?;
        self.run_own(spec.fence_start())?;
        self.set_phase(operation, MovePhase::PlacingFenced)
    }

    pub(crate) fn place_unfence(&mut self, operation: u64, state: &MoveState) -> Applied<()> {
        let spec = self.placed_spec(placing(state)?)?;
        self.run_own(spec.fence_end())?;
        self.set_phase(operation, MovePhase::Placing)
    }

    pub(crate) fn place_switch(&mut self, operation: u64, state: &MoveState, layout: Generation) -> Applied<()> {
        let place = placing(state)?;
        let before = self.placed_spec(place)?;
        self.run_own(before.capture_end())?;
        if place.renumber {
            self.renumber(&before, place)?;
        }
        let unit = PartitionId::of_single(place.table.id);
        let is_single = matches!(place.table.kind, TableKind::Single { .. });
        let is_home = is_single && place.after == crate::Holding::All;
        let after = TableSpec { slot: before.slot, table: place.table.clone(), unit: is_home.then_some(unit) };
        let fence = after.fence_start();
        self.put(after)?;
        self.run_own(fence)?;
        self.reload_specs()?;
        self.change_placement(|placement| {
            placement.owned.remove(unit);
            if is_home {
                placement.owned.insert(unit);
            }
            placement.layout = layout;
            placement.ownership = placement.ownership.max(layout);
            if let Some(state) = placement.moves.get_mut(&operation) {
                state.phase = MovePhase::Placed;
            }
        })
    }

    pub(crate) fn place_open(&mut self, operation: u64, state: &MoveState) -> Applied<()> {
        let spec = self.placed_spec(placing(state)?)?;
        self.run_own(spec.fence_end())?;
        self.set_phase(operation, MovePhase::Leftovers)
    }

    pub(crate) fn place_abort(&mut self, operation: u64, state: &MoveState) -> Applied<()> {
        let spec = self.placed_spec(placing(state)?)?;
        self.run_own(spec.capture_end())?;
        self.run_own(spec.fence_end())?;
        self.set_phase(operation, MovePhase::Discarding)
    }

    /// The same rowids on every shard, whose rows are the same by now. No two rows agree in the primary key.
    fn renumber(&mut self, spec: &TableSpec, place: &TablePlace) -> Applied<()> {
        let after = TableSpec { table: place.table.clone(), ..spec.clone() };
        let Some(rowid) = after.rowid_name() else { return Ok(()) };
        let columns: Vec<String> =
            spec.table.columns.iter().filter(|column| !column.generated).map(|column| column.name.clone()).collect();
        let places: Vec<String> = (0..columns.len()).map(|place| format!("c{place}")).collect();
        let (table, kept) = (spec.quoted(), format!("__pleat_renumber_{}", spec.slot));
        let (columns, places) = (quoted_list(&columns), places.join(", "));
        let order = quoted_list(&spec.table.primary_key);
        // Columns without a type keep values as they are.
        let steps = [
            format!("CREATE TABLE {kept}(n INTEGER PRIMARY KEY, {places})"),
            format!("INSERT INTO {kept}({places}) SELECT {columns} FROM {table} ORDER BY {order}"),
            format!("DELETE FROM {table}"),
            format!("INSERT INTO {table}({}, {columns}) SELECT n, {places} FROM {kept} ORDER BY n", quote(rowid)),
            format!("DROP TABLE {kept}"),
        ];
        self.without(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, |writer| {
            writer.without(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, |writer| writer.run_own(steps.into()))
        })
    }

    fn placed_spec(&self, place: &TablePlace) -> Applied<TableSpec> {
        let spec = self.specs.get(&place.table.name.to_ascii_lowercase());
        let spec = spec.filter(|spec| spec.table.columns == place.table.columns);
        spec.map(|spec| (**spec).clone()).ok_or_else(|| {
            let reason = format!("this shard has no such table {}", place.table.name);
            Refusal::MoveState { reason }.into()
        })
    }
}

fn placing(state: &MoveState) -> Result<&TablePlace, Refusal> {
    let reason = || "this operation is not about a table's placement".to_owned();
    state.place.as_deref().ok_or_else(|| Refusal::MoveState { reason: reason() })
}
