//! What a table's triggers mean for the writes to it.
//!
//! SQLite fires them on the shard, once for each row that the statement there inserts, changes or deletes. So a way of
//! carrying out a write is right if its statements do to each row what the user's statement does to it, with the same to see for
//! the triggers:
//!
//! | way | |
//! | --- | --- |
//! | on one shard, *rows*, *same* | the same statement, on the rows of each shard; a trigger sees nothing but rows of its own key |
//! | *computed* INSERT, DELETE | SQLite, too, reads all rows before it writes the first when there are triggers |
//! | *computed* UPDATE | **refused**: SQLite computes SET for a row when the triggers of the rows before it have fired |
//! | change of a shard key | **refused**: a DELETE and an INSERT fire other triggers than an UPDATE |
//! | REPLACE, if a DELETE trigger may come of it | **refused**: it would fire on shards, where `recursive_triggers` is on, and not in SQLite by itself |
//!
//! `OR REPLACE` reaches further than its own table: SQLite carries a statement's conflict clause over to what its triggers write.

use std::collections::BTreeSet;

use pleat_cluster::{Table, Tables, TriggerEvent, reached};

use super::shape::Shape;
use crate::error::SqlError;
use crate::lex::Tokens;

/// The tables, by lower-case name, that a write to `table` may change, itself among them: by triggers, and by the actions of
/// foreign keys. If it is `alone` in its request, nobody asks for others.
pub(super) fn changes(tables: &Tables, table: &Table, alone: bool) -> BTreeSet<String> {
    let ids = if alone { BTreeSet::new() } else { reached(tables, [table.id]) };
    let further = tables.iter().filter(|(_, table)| ids.contains(&table.id)).map(|(name, _)| name.clone());
    further.chain([table.name.to_ascii_lowercase()]).collect()
}

/// Refuses a REPLACE that would delete rows for which DELETE triggers fire.
pub(super) fn refuse_replace(tokens: &Tokens, shape: &Shape, tables: &Tables, table: &Table) -> Result<(), SqlError> {
    if !(shape.head.0..shape.head.1).any(|at| tokens.is(at, "REPLACE")) {
        return Ok(());
    }
    let fires = |table: &Table| table.has_trigger_on(TriggerEvent::Delete);
    let further = || {
        let ids = reached(tables, [table.id]);
        tables.values().find(|table| ids.contains(&table.id) && fires(table))
    };
    let found = if fires(table) { Some(table) } else { (!table.triggers.is_empty()).then(further).flatten() };
    match found {
        None => Ok(()),
        Some(found) => Err(SqlError::unsupported(format!(
            "REPLACE, where the DELETE triggers of {} could fire for rows that it deletes, is not supported",
            found.name
        ))
        .hint("use ON CONFLICT … DO UPDATE, or DELETE the row and INSERT it anew")),
    }
}

/// Refuses to carry an UPDATE out as other statements.
pub(super) fn refuse_other_update(tables: &Tables, table: &Table, moves: bool) -> Result<(), SqlError> {
    let own = || table.triggers.iter().find(|trigger| moves || trigger.event == TriggerEvent::Update);
    // The actions of foreign keys may fire others.
    let further = || {
        let ids = if tables.values().all(|table| table.triggers.is_empty()) {
            BTreeSet::new()
        } else {
            reached(tables, [table.id])
        };
        tables.values().filter(|table| ids.contains(&table.id)).find_map(|table| table.triggers.first())
    };
    let Some(trigger) = own().or_else(further) else { return Ok(()) };
    let (what, hint) = match moves {
        true => ("a change of the shard key of", "INSERT the row with its new key, and DELETE the old one"),
        false => (
            "an UPDATE that reads first what it sets, over several shards, of",
            "name the shard key of the rows, or read the values first and send them as parameters",
        ),
    };
    Err(SqlError::unsupported(format!(
        "{what} {}, which fires trigger {}, would do something else than in SQLite",
        table.name, trigger.name
    ))
    .hint(hint))
}
