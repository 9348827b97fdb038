//! The views of PostgreSQL servers, as a schema change leaves them.

use std::collections::BTreeMap;

use pleat_cluster::{TableChange, Tables, View, ViewChange, Views, table_key};
use pleat_engine::postgres::Lease;
use pleat_sql::Schema;
use pleat_sql::postgres::{What, prepare};

use super::ddl::written;
use crate::session::Failure;

/// Views but for those of extensions. Whoever asks has no schema in its `search_path`, so that all names are whole.
const VIEWS: &str = "SELECT n.nspname, c.relname, pg_get_viewdef(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind = 'v' AND c.relpersistence <> 't' AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%' \
    AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') ORDER BY 1, 2";

/// Ask a server for its views, in a transaction that is rolled back.
pub(super) async fn look(lease: &mut Lease) -> Result<Views, Failure> {
    lease.ask("SET LOCAL search_path = ''").await?;
    let rows = lease.ask(VIEWS).await?.rows;
    let view = |row: &Vec<Option<String>>| {
        let text = |at: usize| row.get(at).cloned().flatten();
        let (schema, name, sql) = (text(0)?, text(1)?, text(2)?);
        let key = table_key(&schema, &name);
        let name = if schema == "public" { name } else { format!("{schema}.{name}") };
        Some((key, View { name, sql: sql.trim().trim_end_matches(';').to_owned() }))
    };
    Ok(rows.iter().filter_map(view).collect())
}

/// What differs from what the catalog knows.
pub(super) fn changes(known: &Views, now: Views) -> Vec<ViewChange> {
    let gone = known.iter().filter(|(key, _)| !now.contains_key(*key));
    let gone: Vec<ViewChange> = gone.map(|(_, view)| ViewChange { before: Some(view.clone()), after: None }).collect();
    let new = now.into_iter().filter(|(key, view)| known.get(key) != Some(view));
    let new = new.map(|(key, view)| ViewChange { before: known.get(&key).cloned(), after: Some(view) });
    gone.into_iter().chain(new).collect()
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
