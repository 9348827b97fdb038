//! Statements that meet a rename on its way to the shards.
//!
//! A rename, or dropping a column, is committed in the catalog and then reaches the shards, one after the other. In between a
//! statement for one shard is planned with the new name and meets a shard that has the old one; or it was planned
//! with the old name, on its way for a moment too long, and meets one that has the new one. Either is told *no such table* or *no
//! such column*, which is true of that shard and at that moment only. So while a change is open that explains the failure, the
//! failure is no answer: the executor waits for the change's end, and plans anew. Nothing was done, and nothing
//! can be seen of both shapes. If a shard can't be reached the change stays open, and the statement's time ends the waiting.

use pleat_cluster::{Catalog, DdlEffect, OperationId, OperationKind, Table};
use tokio::sync::watch;

use super::Failure;
use super::deadline::Deadline;

/// The open change of the schema that may be why the statement failed so.
pub(super) fn explains(catalog: &Catalog, failure: &Failure) -> Option<OperationId> {
    if !matches!(failure.code.as_ref(), "42P01" | "42703") {
        return None;
    }
    let missing = missing(&failure.message)?.to_lowercase();
    let of_table = failure.code == "42P01";
    let found = catalog.open_operations().find(|operation| match &operation.kind {
        OperationKind::Ddl { effect: DdlEffect::AlterTable { before, after, .. }, .. } => {
            let names = if of_table { table_names(before, after) } else { column_names(before, after) };
            names.iter().any(|name| {
                missing
                    .strip_suffix(name.as_str())
                    .is_some_and(|before| matches!(before.chars().last(), None | Some('.')))
            })
        }
        _ => false,
    });
    found.map(|operation| operation.id)
}

/// What does not exist, qualified if the statement qualified it: what SQLite's message and the planner's own ends with.
fn missing(message: &str) -> Option<&str> {
    let said = ["no such table: ", "no such column: ", "has no column named ", "has no column "];
    let (_, name) = said.iter().find_map(|said| message.split_once(said))?;
    let name = name.strip_suffix(" that can be set").unwrap_or(name);
    // "no such column: "name" - should this be a string literal in single-quotes?"
    Some(name.split_once(" - should this").map_or(name, |(name, _)| name).trim_matches('"'))
}

/// The table's names that come and go, in lower case.
fn table_names(before: &Table, after: &Table) -> Vec<String> {
    match before.name.eq_ignore_ascii_case(&after.name) {
        true => Vec::new(),
        false => vec![before.name.to_lowercase(), after.name.to_lowercase()],
    }
}

/// The columns' names that come or go, in lower case.
fn column_names(before: &Table, after: &Table) -> Vec<String> {
    let mut names = Vec::new();
    for (one, other) in [(before, after), (after, before)] {
        let changed = one.columns.iter().filter(|column| other.column(&column.name).is_none());
        names.extend(changed.map(|column| column.name.to_lowercase()));
    }
    names
}

/// Wait until the change is over, or the time is.
pub(super) async fn end_of(
    change: OperationId,
    changes: &mut watch::Receiver<std::sync::Arc<Catalog>>,
    deadline: &Deadline,
) {
    let over = |catalog: &std::sync::Arc<Catalog>| {
        catalog.operations.get(&change).is_none_or(|operation| operation.phase.is_final())
    };
    let _ = tokio::time::timeout(deadline.left(), changes.wait_for(over)).await;
}

/// The change did not end in time.
pub(super) fn still_changing(change: OperationId, failure: &Failure) -> Failure {
    Failure::passing(
        "57P03",
        format!("{} ({change} is still giving it another name on the shards)", failure.message),
        format!("nothing was done: try again; GET /operations/{change} shows what it waits for"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_name_is_read_from_every_message() {
        for (message, name) in [
            ("no such table: main.people", "main.people"),
            ("no such column: p.full name", "p.full name"),
            ("no such column: \"name\" - should this be a string literal in single-quotes?", "name"),
            ("table people has no column named name", "name"),
            ("table people has no column name", "name"),
            ("table people has no column name that can be set", "name"),
        ] {
            assert_eq!(missing(message), Some(name));
        }
        assert_eq!(missing("no such function: name"), None);
    }
}
