//! Triggers of users: what a table's writes do beside what they say.
//!
//! A trigger belongs to its table and comes and goes with it; shards run its definition as it stands. The catalog keeps
//! which tables its body writes and reads, because three questions are asked of it again and again:
//!
//! - *Whether a table is named by a trigger* ([`trigger_about`]): such a table is not dropped, renamed or placed elsewhere.
//! - *What a write may change beside its own table* ([`reached`]): through triggers, and from there through the actions of
//!   foreign keys.
//! - *Whether a trigger reaches its own table again* ([`circular`]). SQLite by itself does not let a trigger fire itself; shards
//!   must let DELETE triggers fire when REPLACE deletes, which is the same setting (`recursive_triggers`). So there are no circles.
//!
//! # A trigger that comes or goes
//!
//! Shards get a trigger one after the other. What may not be done to a table with triggers must be refused *before* the first of
//! them has it, and until the last has lost it. So a trigger stands at its table from the start of the operation that makes it
//! ([`TriggerState::Coming`]) to the end of the one that drops it ([`TriggerState::Going`]), and counts all that time; only people are shown
//! those that are [`TriggerState::Ready`].

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Generation, Table, TableId, Tables};

/// A trigger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    /// Handed out by the catalog, in the order in which triggers were made; never used twice.
    pub id: u32,
    /// As declared, case kept. Triggers have a name space of their own.
    pub name: String,
    pub event: TriggerEvent,
    /// The `CREATE TRIGGER` that shards run.
    pub sql: String,
    /// The tables that its body writes.
    pub writes: BTreeSet<TableId>,
    /// The tables that its body or its WHEN reads.
    pub reads: BTreeSet<TableId>,
    pub state: TriggerState,
    /// The generation from which on the catalog has it. A write that was planned by an older one may be what triggers forbid, so
    /// shards that have the trigger refuse it, retryably.
    pub since: Generation,
}

/// What fires a trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TriggerEvent {
    Insert,
    Update,
    Delete,
}

/// How far a trigger is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TriggerState {
    /// An operation is making it: some shards may have it.
    Coming,
    /// Every shard has it.
    Ready,
    /// It was dropped, and some shards may still have it.
    Going,
}

impl Trigger {
    /// Whether its body writes or reads the table.
    pub fn names(&self, table: TableId) -> bool {
        self.writes.contains(&table) || self.reads.contains(&table)
    }
}

impl Table {
    /// Its triggers that every shard has, in the order in which they were made.
    pub fn ready_triggers(&self) -> impl Iterator<Item = &Trigger> {
        self.triggers.iter().filter(|trigger| trigger.state == TriggerState::Ready)
    }

    /// Whether it has a trigger that fires on `event`.
    pub fn has_trigger_on(&self, event: TriggerEvent) -> bool {
        self.triggers.iter().any(|trigger| trigger.event == event)
    }
}

/// A trigger of the table called `table`, or one of another table that names it, with the table that it belongs to. As long as
/// there is one, neither the table's name, nor its columns' names, nor the place of its rows may change.
pub fn trigger_about<'t>(tables: &'t Tables, table: &str) -> Option<(&'t Table, &'t Trigger)> {
    let found = tables.get(&table.to_ascii_lowercase())?;
    let own = found.triggers.first().map(|trigger| (found, trigger));
    own.or_else(|| trigger_naming(tables, found.id))
}

/// A trigger of another table that names this one, with the table that it belongs to.
pub fn trigger_naming(tables: &Tables, table: TableId) -> Option<(&Table, &Trigger)> {
    let others = tables.values().filter(|other| other.id != table);
    others.into_iter().find_map(|other| Some((other, other.triggers.iter().find(|trigger| trigger.names(table))?)))
}

/// The trigger called `name`, in any case, and its table.
pub fn trigger_named<'t>(tables: &'t Tables, name: &str) -> Option<(&'t Table, &'t Trigger)> {
    let named = |trigger: &&Trigger| trigger.name.eq_ignore_ascii_case(name);
    tables.values().find_map(|table| Some((table, table.triggers.iter().find(named)?)))
}

/// The newest trigger's id; 0 when there is none.
pub fn newest_trigger(tables: &Tables) -> u32 {
    tables.values().flat_map(|table| &table.triggers).map(|trigger| trigger.id).max().unwrap_or(0)
}

/// The tables that writes to `from` may change beside it: by its triggers and theirs, and by the actions of foreign keys on the
/// way. Contains one of `from` only if there is a way back to it.
pub fn reached(tables: &Tables, from: impl IntoIterator<Item = TableId>) -> BTreeSet<TableId> {
    let mut found = BTreeSet::new();
    let mut waiting: Vec<TableId> = from.into_iter().collect();
    while let Some(id) = waiting.pop() {
        let Some(table) = tables.values().find(|table| table.id == id) else { continue };
        let written = table.triggers.iter().flat_map(|trigger| trigger.writes.iter().copied());
        let children = tables.values().filter(|child| child.id != id && child.references(&table.name));
        for next in written.chain(children.map(|child| child.id)) {
            if found.insert(next) {
                waiting.push(next);
            }
        }
    }
    found
}

/// A trigger whose body's writes come back to its own table, if there is one, with its table.
pub fn circular(tables: &Tables) -> Option<(&Table, &Trigger)> {
    tables.values().find_map(|table| {
        let comes_back = |trigger: &&Trigger| {
            trigger.writes.contains(&table.id) || reached(tables, trigger.writes.iter().copied()).contains(&table.id)
        };
        Some((table, table.triggers.iter().find(comes_back)?))
    })
}
