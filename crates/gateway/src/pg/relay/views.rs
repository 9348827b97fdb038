//! The views of PostgreSQL servers, as a schema change leaves them.

use std::collections::BTreeMap;

use pleat_cluster::{Catalog, TableChange, Tables, View, ViewChange, Views, table_key};
use pleat_engine::postgres::Lease;
use pleat_sql::Schema;
use pleat_sql::postgres::{What, prepare};

use super::ddl::written;
use crate::session::Failure;

/// Views but for those of extensions.
const VIEWS: &str = "SELECT n.nspname, c.relname, pg_get_viewdef(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind = 'v' AND c.relpersistence <> 't' AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%' \
    AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') ORDER BY 1, 2";

/// Names that are whole, and constants that mean the same to everybody.
const TOLD_PLAINLY: &str = "SAVEPOINT pleat_look; SET LOCAL search_path = ''; SET LOCAL datestyle = 'ISO'; SET LOCAL intervalstyle = 'postgres'; \
    SET LOCAL quote_all_identifiers = off";

/// Ask a server for its views, in a transaction that is going to be rolled back.
pub(super) async fn look(lease: &mut Lease) -> Result<Views, Failure> {
    lease.ask(TOLD_PLAINLY).await?;
    let rows = lease.ask(VIEWS).await?.rows;
    lease.ask("ROLLBACK TO SAVEPOINT pleat_look; RELEASE SAVEPOINT pleat_look").await?;
    let mut views = Views::new();
    for row in rows {
        let text = |at: usize| row.get(at).cloned().flatten();
        let (Some(schema), Some(name), Some(sql)) = (text(0), text(1), text(2)) else { continue };
        let key = table_key(&schema, &name);
        let name = if schema == "public" { name } else { format!("{schema}.{name}") };
        let view = View { name, sql: sql.trim().trim_end_matches(';').to_owned() };
        if let Some(other) = views.insert(key, view) {
            let message = format!("two views are called {} but for upper and lower case", other.name);
            return Err(Failure::new("0A000", message, "give one of them another name"));
        }
    }
    Ok(views)
}

/// What a statement did to views, in terms of the catalog.
pub(super) fn changes(known: &Views, before: &Views, mut after: Views) -> Vec<ViewChange> {
    let gone = before.keys().filter(|key| !after.contains_key(*key)).filter_map(|key| known.get(key));
    let gone: Vec<ViewChange> = gone.map(|view| ViewChange { before: Some(view.clone()), after: None }).collect();
    after.retain(|key, view| before.get(key) != Some(view));
    let new = after.into_iter().map(|(key, view)| ViewChange { before: known.get(&key).cloned(), after: Some(view) });
    gone.into_iter().chain(new).collect()
}

/// Whether all views can be read when tables live elsewhere.
pub(super) fn check_placed(catalog: &Catalog, changes: &[TableChange]) -> Result<(), Failure> {
    let same = |view: &View| ViewChange { before: Some(view.clone()), after: Some(view.clone()) };
    let all: Vec<ViewChange> = catalog.views.values().map(same).collect();
    check(&catalog.tables, &catalog.views, changes, &all)
}

/// Whether views can be read through Pleat: those that change, as tables and views are going to be.
pub(super) fn check(
    tables: &Tables,
    views: &Views,
    changes: &[TableChange],
    changed: &[ViewChange],
) -> Result<(), Failure> {
    if changed.is_empty() {
        return Ok(());
    }
    let (mut tables, mut views) = (tables.clone(), views.clone());
    for TableChange { before, after } in changes {
        tables.retain(|key, _| before.as_ref().is_none_or(|table| *key != table.name.to_ascii_lowercase()));
        tables.extend(after.iter().map(|table| (table.name.to_ascii_lowercase(), table.clone())));
    }
    for ViewChange { before, after } in changed {
        views.retain(|key, _| before.as_ref().is_none_or(|view| *key != view.name.to_ascii_lowercase()));
        views.extend(after.iter().map(|view| (view.name.to_ascii_lowercase(), view.clone())));
    }
    let schema = Schema { tables: &tables, views: &views, default_keys: &BTreeMap::new() };
    for view in changed.iter().filter_map(|change| change.after.as_ref()) {
        let read = format!("SELECT * FROM {}", written(&view.name));
        let planned = prepare(&read, &schema);
        let routed = planned.and_then(|planned| match planned.first().map(|planned| &planned.what) {
            Some(What::Query(query)) => query.scatter(&|_| None, 1).map(|_| ()),
            _ => Ok(()),
        });
        routed.map_err(|error| {
            let message = format!("the view {} could not be read: {}", view.name, error.message);
            Failure::new("0A000", message, error.hint.unwrap_or_default())
        })?;
    }
    Ok(())
}
