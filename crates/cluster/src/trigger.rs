//! Triggers of users: what a table's writes do beside what they say.
//!
//! A trigger belongs to its table and comes and goes with it; shards run its definition as it stands. The catalog keeps
//! which tables its body writes and reads, because two questions are asked of it again and again:
//!
//! - *Whether a table is named by a trigger* ([`trigger_about`]): such a table is not dropped or placed elsewhere, and when it
//!   or a column gets another name, the trigger says that name from then on ([`Retold`]).
//! - *What a write may change beside its own table* ([`reached`]): through triggers, and from there through the actions of
//!   foreign keys.
//!
//! # A trigger never fires inside itself
//!
//! SQLite by itself skips a trigger that is under way when something in it (or in what it fires) would fire it again. Shards must
//! let DELETE triggers fire when REPLACE deletes, since Pleat's own rely on it, and that is the same setting
//! (`recursive_triggers`). So what they run ([`Trigger::on_shards`]) is the declared trigger with a guard, which notes that the trigger
//! is under way, and that it no longer is:
//!
//! ```text
//! CREATE TRIGGER t AFTER UPDATE ON x WHEN (condition) BEGIN statements; END
//! CREATE TRIGGER t AFTER UPDATE ON x
//!   WHEN CASE WHEN pleat_firing('t') THEN 0 WHEN (condition) THEN pleat_firing('t', 1) END
//!   BEGIN statements; SELECT pleat_firing('t', 0); END
//! ```
//!
//! `RAISE(IGNORE)`, which ends it early, notes so first. A statement that fails leaves notes behind, so each statement of a user begins
//! with none.
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
    /// The `CREATE TRIGGER` as it was declared.
    pub sql: String,
    /// The `CREATE TRIGGER` that shards run: the same with its guard.
    pub on_shards: String,
    /// The tables that its body writes.
    pub writes: BTreeSet<TableId>,
    /// The tables that its body or its WHEN reads.
    pub reads: BTreeSet<TableId>,
    pub state: TriggerState,
    /// The generation from which on the catalog has it. A write that was planned by an older one may be what triggers forbid, so
    /// shards that have the trigger refuse it, retryably.
    pub since: Generation,
}

/// A trigger that names a table that gets another name, or whose columns do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retold {
    /// Its own table.
    pub table: String,
    /// As it was when this was planned; if it isn't any more, the change is refused.
    pub before: Trigger,
    /// The same with other texts.
    pub after: Trigger,
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

/// The triggers of the table called `table`, and those of other tables that name it, each with the table that it belongs to.
pub fn triggers_about<'t>(tables: &'t Tables, table: &str) -> impl Iterator<Item = (&'t Table, &'t Trigger)> {
    let found = tables.get(&table.to_ascii_lowercase()).map(|table| table.id);
    let all = tables.values().flat_map(|table| table.triggers.iter().map(move |trigger| (table, trigger)));
    all.filter(move |(of, trigger)| found.is_some_and(|id| of.id == id || trigger.names(id)))
}

/// One of [`triggers_about`]. As long as there is one, the place of the table's rows may not change.
pub fn trigger_about<'t>(tables: &'t Tables, table: &str) -> Option<(&'t Table, &'t Trigger)> {
    triggers_about(tables, table).next()
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
