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
    let message = failure.message.to_lowercase();
    let found = catalog.open_operations().find(|operation| match &operation.kind {
        OperationKind::Ddl { effect: DdlEffect::AlterTable { before, after, .. }, .. } => {
            names(before, after).iter().any(|name| message.contains(name))
        }
        _ => false,
    });
    found.map(|operation| operation.id)
}

/// The names that come or go, in lower case.
fn names(before: &Table, after: &Table) -> Vec<String> {
    let mut names = Vec::new();
    if !before.name.eq_ignore_ascii_case(&after.name) {
        names.extend([before.name.to_lowercase(), after.name.to_lowercase()]);
    }
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
