//! `/tables`: what tables and views there are, how tables are spread, and how many rows they hold.

use axum::Json;
use axum::extract::{Path, State};
use pleat_cluster::{Catalog, Column, Engine, KeyType, ShardId, Table, TableKind, View};
use pleat_engine::Scratch;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::problem::{ErrorBody, Problem};
use crate::observer::Look;
use crate::session::Failure;

/// One table, or one view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TableBody {
    pub name: String,
    /// `sharded`, `reference`, `single` or `view`.
    pub kind: String,
    pub shard_key: Option<String>,
    /// `integer`, `text` or `bytes`.
    pub key_type: Option<String>,
    /// The shards that hold rows of it.
    pub shards: Vec<String>,
    /// Counted now; null for a view, and when a shard can't be asked. While partitions move, rows that are at both ends
    /// count twice.
    pub rows: Option<u64>,
    /// Of a view: what SQLite makes of its SELECT; empty when something that it names is missing.
    pub columns: Vec<ColumnBody>,
    pub primary_key: Vec<String>,
    pub indexes: Vec<IndexBody>,
    /// In the order in which they were made.
    pub triggers: Vec<TriggerBody>,
    /// Its definition, without Pleat's clauses.
    pub sql: String,
}

/// One column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ColumnBody {
    pub name: String,
    /// As declared; empty when no type was.
    #[serde(rename = "type")]
    pub decl_type: String,
    pub collation: Option<String>,
    pub not_null: bool,
    pub generated: bool,
    pub has_default: bool,
    /// Its place in the primary key, from 1; 0 when it is no part of it.
    pub primary_key: u32,
}

/// One index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct IndexBody {
    pub name: String,
    pub sql: String,
}

/// One trigger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TriggerBody {
    /// Its number among the cluster's triggers: lower ones were made earlier.
    pub id: u32,
    pub name: String,
    pub sql: String,
}

/// A list of tables.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TablesBody {
    pub tables: Vec<TableBody>,
}

fn describe(table: &Table, catalog: &Catalog, look: &Look) -> TableBody {
    let shards = shards_of(table, catalog);
    let key = table.shard_key();
    TableBody {
        name: table.name.clone(),
        kind: table.kind_name().to_owned(),
        shard_key: key.map(|(name, _)| name.to_owned()),
        key_type: key.map(|(_, key_type)| key_type_name(key_type).to_owned()),
        rows: rows(table, &shards, look),
        shards: shards.iter().map(ToString::to_string).collect(),
        columns: table.columns.iter().map(|column| describe_column(column, &table.primary_key)).collect(),
        primary_key: table.primary_key.clone(),
        indexes: (table.indexes.iter())
            .map(|index| IndexBody { name: index.name.clone(), sql: index.sql.clone() })
            .collect(),
        triggers: (table.ready_triggers())
            .map(|trigger| TriggerBody { id: trigger.id, name: trigger.name.clone(), sql: trigger.sql.clone() })
            .collect(),
        sql: table.create_sql.clone(),
    }
}

/// Views as SQLite describes them, in a database with the same tables. Of PostgreSQL servers' views the columns are not told.
async fn describe_views(catalog: &Catalog, views: Vec<View>) -> Result<Vec<TableBody>, Problem> {
    if catalog.engine != Engine::Sqlite {
        return Ok(views.iter().map(|view| describe_view(view, Vec::new())).collect());
    }
    if views.is_empty() {
        return Ok(Vec::new());
    }
    let (tables, all) = (catalog.tables.clone(), catalog.views.clone());
    let describe = move || {
        let scratch = Scratch::with_views(&tables, &all)?;
        Ok(views.iter().map(|view| describe_view(view, scratch.view_columns(&view.name))).collect())
    };
    let described: Result<Vec<TableBody>, pleat_engine::SqlFailure> =
        pleat_consensus::blocking(describe).await.map_err(|error| Problem(Failure::internal(error.to_string())))?;
    described.map_err(|failure| Problem(failure.into()))
}

fn describe_view(view: &View, columns: Vec<Column>) -> TableBody {
    TableBody {
        name: view.name.clone(),
        kind: "view".to_owned(),
        shard_key: None,
        key_type: None,
        shards: Vec::new(),
        rows: None,
        columns: columns.iter().map(|column| describe_column(column, &[])).collect(),
        primary_key: Vec::new(),
        indexes: Vec::new(),
        triggers: Vec::new(),
        sql: view.sql.clone(),
    }
}

fn describe_column(column: &Column, primary_key: &[String]) -> ColumnBody {
    let place = primary_key.iter().position(|name| name.eq_ignore_ascii_case(&column.name));
    ColumnBody {
        name: column.name.clone(),
        decl_type: column.decl_type.clone(),
        collation: column.collation.clone(),
        not_null: column.not_null,
        generated: column.generated,
        has_default: column.has_default,
        primary_key: place.map_or(0, |at| at as u32 + 1),
    }
}

fn key_type_name(key_type: KeyType) -> &'static str {
    match key_type {
        KeyType::Integer => "integer",
        KeyType::Text => "text",
        KeyType::Bytes => "bytes",
        KeyType::Uuid => "uuid",
    }
}

fn shards_of(table: &Table, catalog: &Catalog) -> Vec<ShardId> {
    match table.kind {
        TableKind::Single { shard } => vec![shard],
        TableKind::Reference => catalog.active_shards().map(|shard| shard.id).collect(),
        TableKind::Sharded { .. } => {
            let mut owners = catalog.owners.clone();
            owners.sort();
            owners.dedup();
            owners
        }
    }
}

/// The table's rows, or `None` when a shard that counts could not be asked.
fn rows(table: &Table, shards: &[ShardId], look: &Look) -> Option<u64> {
    let counted = shards.iter().map(|shard| {
        let seen = look.shard(*shard)?;
        let rows = &seen.shard.rows_per_table;
        rows.get(&table.name).or_else(|| rows.get(&table.name.to_ascii_lowercase())).copied()
    });
    match table.kind {
        // Every shard has all of them.
        TableKind::Reference => counted.flatten().max(),
        TableKind::Sharded { .. } | TableKind::Single { .. } => counted.sum(),
    }
}

/// List tables and views.
#[utoipa::path(get, path = "/tables", tag = "tables", responses((status = 200, body = TablesBody)))]
pub async fn list(State(app): State<App>) -> Result<Json<TablesBody>, Problem> {
    let look = app.observer.look().await;
    let catalog = app.backend.catalog();
    let mut tables: Vec<_> = catalog.tables.values().map(|table| describe(table, &catalog, &look)).collect();
    tables.extend(describe_views(&catalog, catalog.views.values().cloned().collect()).await?);
    Ok(Json(TablesBody { tables }))
}

/// Show one table or view.
#[utoipa::path(get, path = "/tables/{table}", tag = "tables",
    params(("table" = String, Path, description = "The table's name, in any case")),
    responses((status = 200, body = TableBody), (status = 404, body = ErrorBody)))]
pub async fn show(State(app): State<App>, Path(name): Path<String>) -> Result<Json<TableBody>, Problem> {
    let look = app.observer.look().await;
    let catalog = app.backend.catalog();
    if let Some(view) = catalog.view(&name) {
        let described = describe_views(&catalog, vec![view.clone()]).await?;
        return described.into_iter().next().map(Json).ok_or_else(|| unknown(&name));
    }
    let table = catalog.table(&name).ok_or_else(|| unknown(&name))?;
    Ok(Json(describe(table, &catalog, &look)))
}

/// The refusal of a table in a path. A resource that is not there is 404, whatever SQL would call it.
pub fn unknown(name: &str) -> Problem {
    Problem(Failure::new(
        super::problem::NOT_FOUND,
        format!("table {name} does not exist"),
        "GET /tables lists them; CREATE TABLE makes one",
    ))
}
