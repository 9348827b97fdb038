//! Tables of servers that get another placement: what stands in the way, all of it at once, and then the operation of the journal.
//!
//! Whether the declarations of the tables hold is judged as when they are declared ([`super::ddl`]); besides, there is what CREATE TABLE can't meet:
//! rows whose key is NULL, views, rules, inheritance. Several tables may be placed together, and are judged by what they will be: of two that a
//! foreign key ties neither could go first. What is so already is left as it is.
//!
//! All of this is looked at while clients go on. Rows that come meanwhile are looked at again by the operation, behind closed gates; when a schema
//! change was open at the look, or came since, the catalog or this refuses, and the client tries again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pleat_cluster::{Catalog, DdlEffect, Operation, OperationKind, ShardId, Table, TableChange, TableKind, Views};
use pleat_engine::postgres::Lease;
use pleat_sql::postgres::Placement;

use super::LEASE_TIME_MAX;
use super::ddl::{CHANGE_TIME_MAX, check_defaults, faults, look, newly_sole, placed, written};
use crate::http::App;
use crate::session::{Failure, anchor};

/// How long one question about a table's rows may take. Nobody waits for it but who has asked.
const ROWS_TIME_MAX: Duration = Duration::from_secs(120);

/// What is odd about a table, for people; each line has a sort before it. `$` is the table.
const ODDITIES: &str = "SELECT 'kind', 'it is partitioned, or a partition' FROM pg_class WHERE oid = $ AND (relkind = 'p' OR relispartition) \
    UNION ALL SELECT 'kind', 'it inherits from another table, or another from it' FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
        WHERE $ IN (i.inhrelid, i.inhparent) AND NOT c.relispartition \
    UNION ALL SELECT 'unlogged', '' FROM pg_class WHERE oid = $ AND relpersistence = 'u' \
    UNION ALL SELECT 'rule', rulename FROM pg_rewrite WHERE ev_class = $ \
    UNION ALL SELECT DISTINCT 'view', lower(CASE n.nspname WHEN 'public' THEN '' ELSE n.nspname || '.' END || v.relname) FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class v ON v.oid = r.ev_class JOIN pg_namespace n ON n.oid = v.relnamespace \
        WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $ AND v.oid <> $ \
    UNION ALL SELECT 'always', tgname FROM pg_trigger WHERE tgrelid = $ AND tgenabled IN ('A', 'R') \
    UNION ALL SELECT 'trigger', tgname FROM pg_trigger WHERE tgrelid = $ AND NOT tgisinternal \
    UNION ALL SELECT 'exclusion', o.conname || E'\\n' || a.attname FROM pg_constraint o, unnest(o.conkey, o.conexclop) AS k(number, operator) \
        JOIN pg_operator p ON p.oid = k.operator JOIN pg_attribute a ON a.attnum = k.number \
        WHERE o.conrelid = $ AND a.attrelid = $ AND o.contype = 'x' AND p.oprname <> '='";

/// Give tables, by their keys in the catalog, other placements. `origin` and `text` are for the journal. Gives notices for people.
///
/// # Errors
/// What stands in the way, all of it; or why the operation failed. Nothing was changed then.
pub(crate) async fn place(
    app: &App,
    wanted: &[(String, Placement)],
    if_exists: bool,
    origin: &str,
    text: &str,
) -> Result<Vec<String>, Failure> {
    let catalog = app.backend.catalog();
    // As of before the look: what begins or ends meanwhile is newer, or open.
    let newest = catalog.newest_operation();
    let open = |open: &&Operation| matches!(open.kind, OperationKind::Ddl { .. });
    if let Some(other) = catalog.open_operations().find(open) {
        let message = format!("{} is still changing the schema", other.id);
        return Err(Failure::passing("55006", message, "nothing was done: try again when it has ended"));
    }
    let anchor = anchor(&catalog)?;
    let mut lease = app.backend.lease(anchor, LEASE_TIME_MAX).await?;
    let seen = look(&mut lease).await?;
    let (mut notices, mut changes, mut found, mut named) = (Vec::new(), Vec::new(), Vec::new(), BTreeSet::new());
    for (name, placement) in wanted {
        if !named.insert(name) {
            found.push(Failure::new("42712", format!("table {name} is named twice"), "name it once"));
            continue;
        }
        let (Some(table), Some(described)) = (catalog.tables.get(name), seen.tables.get(name)) else {
            match if_exists {
                true => notices.push(format!("relation \"{name}\" does not exist, skipping")),
                false => {
                    let message = format!("relation \"{name}\" does not exist");
                    found.push(Failure::new("42P01", message, "\\d lists the tables"));
                }
            }
            continue;
        };
        let kind = match placed(described, placement, anchor) {
            Ok(kind) => kind,
            Err(failure) => {
                found.push(failure);
                continue;
            }
        };
        let single = |kind: &TableKind| matches!(kind, TableKind::Single { .. });
        if kind == table.kind || single(&kind) && single(&table.kind) {
            notices.push(format!("table {} is {} already", table.name, shown(&kind)));
            continue;
        }
        let after = Table { id: table.id, ..described.table(kind) };
        changes.push(TableChange { before: Some(table.clone()), after: Some(after) });
    }
    found.extend(faults(&catalog.tables, &changes, &seen));
    found.extend(check_defaults(&catalog.tables, &changes, &seen, &seen).err());
    let moves = catalog.active_shards().count() > 1;
    for TableChange { before, after } in &changes {
        let (Some(before), Some(after)) = (before, after) else { continue };
        odd(&mut lease, after, moves, &catalog.views, &mut found, &mut notices).await?;
        if let Some(column) = newly_sole(before, after)
            && matches!(before.kind, TableKind::Sharded { .. })
            && has_rows(app, &before.name).await?
        {
            found.push(Failure::new(
                "0A000",
                format!(
                    "{}.{column} can't become unique over all shards: values that are there were perhaps given by hand, on several shards the same",
                    after.name
                ),
                "do it while the table is empty, or add the shard key to the columns",
            ));
        }
        found.extend(null_keys(app, &catalog, before, after).await?);
    }
    drop(lease);
    if let Some(failure) = together(found) {
        return Err(failure);
    }
    super::views::check_placed(&catalog, &changes)?;
    if !changes.is_empty() {
        let effect = DdlEffect::PlaceOnServers { changes, seen: newest };
        notices.extend(
            app.executor.change_servers(effect, String::new(), catalog.layout, (origin, text), CHANGE_TIME_MAX).await?,
        );
    }
    Ok(notices)
}

/// One failure of all of these.
fn together(mut found: Vec<Failure>) -> Option<Failure> {
    if found.len() < 2 {
        return found.pop();
    }
    let mut lines = vec![format!("{} things stand in the way", found.len())];
    lines.extend(found.iter().map(|failure| format!("- {}", failure.message)));
    let mut hints: Vec<&str> = Vec::new();
    for failure in &found {
        if !hints.contains(&failure.hint.as_str()) {
            hints.push(&failure.hint);
        }
    }
    let hint = hints.join("; ");
    Some(Failure::new(found[0].code.clone(), lines.join("\n"), hint))
}

/// What a table has, by the server, that can't be on several, or that is in the way of rows that move.
async fn odd(
    lease: &mut Lease,
    table: &Table,
    moves: bool,
    views: &Views,
    found: &mut Vec<Failure>,
    notices: &mut Vec<String>,
) -> Result<(), Failure> {
    let name = &table.name;
    let of = format!("'{}'::regclass", written(name).replace('\'', "''"));
    let everywhere = table.kind == TableKind::Reference;
    let single = matches!(table.kind, TableKind::Single { .. });
    for row in lease.ask(&ODDITIES.replace('$', &of)).await?.rows {
        let text = |at: usize| row.get(at).cloned().flatten().unwrap_or_default();
        let what = text(1);
        let (message, hint) = match text(0).as_str() {
            // Other triggers are off for rows that only change servers.
            "always" if moves => (
                format!(
                    "the trigger {what} of {name} fires for replicas as well, and so would for each row that changes servers"
                ),
                "ALTER TABLE … DISABLE TRIGGER, or ENABLE TRIGGER without ALWAYS and REPLICA, first",
            ),
            "always" => continue,
            _ if single => continue,
            "kind" => (
                format!("{name} can't be {}: {what}", table.kind_name()),
                "leave partitioning and inheritance out: Pleat spreads the rows",
            ),
            "unlogged" => (
                format!("{name} is unlogged: its changes are in no stream, so its rows could not move"),
                "ALTER TABLE … SET LOGGED first",
            ),
            "rule" => (format!("the rule {what} of {name} rewrites statements behind Pleat's back"), "use a trigger"),
            // A view in the catalog is planned by the tables that it reads.
            "view" if everywhere || views.contains_key(&what) => continue,
            "view" => (
                format!("the view {what} reads {name}, and would see the rows of one shard only"),
                "drop the view first, and write its query in its place",
            ),
            "exclusion" => match what.split_once('\n') {
                Some((constraint, column)) if table.shard_key().is_some_and(|(key, _)| key == column) => (
                    format!("the exclusion constraint {constraint} of {name} compares shard keys otherwise than by ="),
                    "drop the constraint, or shard the table by another column",
                ),
                _ => continue,
            },
            _ => {
                notices.push(format!(
                    "the trigger {what} of {name} fires on each server, and sees that server's rows alone"
                ));
                continue;
            }
        };
        found.push(Failure::new("0A000", message, hint));
    }
    Ok(())
}

/// Rows that would have no shard.
async fn null_keys(
    app: &App,
    catalog: &Arc<Catalog>,
    before: &Table,
    after: &Table,
) -> Result<Option<Failure>, Failure> {
    let Some((key, _)) = after.shard_key() else { return Ok(None) };
    if after.column(key).is_some_and(|column| column.not_null) {
        return Ok(None);
    }
    let shards: Vec<ShardId> = match before.kind {
        TableKind::Single { shard } => vec![shard],
        _ => catalog.active_shards().map(|shard| shard.id).collect(),
    };
    let column = format!("\"{}\"", key.replace('"', "\"\""));
    let text = format!("SELECT 1 FROM {} WHERE {column} IS NULL LIMIT 1", written(&before.name));
    for shard in shards {
        if any_row(app, shard, &text).await? {
            let message = format!("{}.{key} has NULLs, and a row without a key has no shard", after.name);
            let hint = "give these rows a key, and the column NOT NULL";
            return Ok(Some(Failure::new("23502", message, hint)));
        }
    }
    Ok(None)
}

/// Whether any shard has a row of a table.
pub(super) async fn has_rows(app: &App, name: &str) -> Result<bool, Failure> {
    let text = format!("SELECT 1 FROM {} LIMIT 1", written(name));
    let shards: Vec<ShardId> = app.backend.catalog().active_shards().map(|shard| shard.id).collect();
    for shard in shards {
        if any_row(app, shard, &text).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn any_row(app: &App, shard: ShardId, text: &str) -> Result<bool, Failure> {
    let asked = app.backend.ask_server(shard, text.to_owned(), ROWS_TIME_MAX).await?;
    Ok(asked.iter().any(|asked| !asked.rows.is_empty()))
}

/// A placement, as people say it.
fn shown(kind: &TableKind) -> String {
    match kind {
        TableKind::Sharded { key, .. } => format!("sharded by {key}"),
        TableKind::Reference => "a reference table".to_owned(),
        TableKind::Single { .. } => "single".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_stands_in_the_way_is_told_at_once() {
        let one = |code: &'static str, hint: &str| Failure::new(code, format!("no {code}"), hint);
        assert!(together(Vec::new()).is_none());
        assert_eq!(together(vec![one("0A000", "a")]).unwrap().message, "no 0A000");
        let all = together(vec![one("0A000", "a"), one("42P01", "b"), one("23502", "a")]).unwrap();
        assert_eq!(all.code, "0A000");
        assert_eq!(all.message, "3 things stand in the way\n- no 0A000\n- no 42P01\n- no 23502");
        assert_eq!(all.hint, "a; b");
    }
}
