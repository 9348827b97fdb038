//! `/tables`: what tables there are, how they are spread, and how many rows they hold.

use axum::Json;
use axum::extract::{Path, State};
use pleat_cluster::{Catalog, KeyType, ShardId, Table, TableKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::problem::{ErrorBody, Problem};
use crate::observer::Look;
use crate::session::Failure;

/// One table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TableBody {
    pub name: String,
    /// `sharded`, `reference` or `single`.
    pub kind: String,
    pub shard_key: Option<String>,
    /// `integer`, `text` or `bytes`.
    pub key_type: Option<String>,
    /// The shards that hold rows of it.
    pub shards: Vec<String>,
    /// Counted now; null when a shard can't be asked. While partitions move, rows that are at both ends
    /// count twice.
    pub rows: Option<u64>,
    pub columns: Vec<ColumnBody>,
    pub primary_key: Vec<String>,
    pub indexes: Vec<IndexBody>,
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
        columns: table.columns.iter().map(|column| describe_column(column, table)).collect(),
        primary_key: table.primary_key.clone(),
        indexes: (table.indexes.iter())
            .map(|index| IndexBody { name: index.name.clone(), sql: index.sql.clone() })
            .collect(),
        sql: table.create_sql.clone(),
    }
}

fn describe_column(column: &pleat_cluster::Column, table: &Table) -> ColumnBody {
    let place = table.primary_key.iter().position(|name| name.eq_ignore_ascii_case(&column.name));
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

/// List tables.
#[utoipa::path(get, path = "/tables", tag = "tables", responses((status = 200, body = TablesBody)))]
pub async fn list(State(app): State<App>) -> Json<TablesBody> {
    let look = app.observer.look().await;
    let catalog = app.backend.catalog();
    let tables = catalog.tables.values().map(|table| describe(table, &catalog, &look)).collect();
    Json(TablesBody { tables })
}

/// Show one table.
#[utoipa::path(get, path = "/tables/{table}", tag = "tables",
    params(("table" = String, Path, description = "The table's name, in any case")),
    responses((status = 200, body = TableBody), (status = 404, body = ErrorBody)))]
pub async fn show(State(app): State<App>, Path(name): Path<String>) -> Result<Json<TableBody>, Problem> {
    let look = app.observer.look().await;
    let catalog = app.backend.catalog();
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
