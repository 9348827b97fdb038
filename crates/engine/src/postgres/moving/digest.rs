//! What a table has of a movement, in two numbers: how many rows, and the sum of their hashes, which hides no row that is there twice.

use std::sync::Arc;

use super::super::{Connection, PostgresError};
use super::sql::{number, only};
use super::table::Table;
use super::{Digest, Movement};

/// Of all tables, in the order of `tables`, as the session's transaction sees them.
pub async fn digests(
    connection: &mut Connection,
    movement: &Movement,
    tables: &[Arc<Table>],
) -> Result<Vec<Digest>, PostgresError> {
    let mut found = Vec::with_capacity(tables.len());
    for table in tables {
        let asked = connection.ask(&statement(table, movement)).await?;
        let row = only(&asked)?;
        found.push(Digest { rows: number(row, 0)?, sum: number(row, 1)? });
    }
    Ok(found)
}

fn statement(table: &Table, movement: &Movement) -> String {
    // The hash is signed, and the sum of many of them is larger than any integer.
    const ALL: &str = "18446744073709551616";
    let (name, columns, condition) = (table.quoted(), table.list(), table.condition(movement));
    format!(
        "SELECT count(*), mod(mod(coalesce(sum(hashtextextended((ROW({columns})::text) COLLATE \"C\", 0)), 0), {ALL}) + {ALL}, {ALL}) \
         FROM ONLY {name} WHERE {condition}"
    )
}
