//! What a move has to know of a table.

use std::collections::BTreeSet;

use pleat_cluster::{KeyType, partition_of_text};

use super::super::{Connection, PostgresError};
use super::pgoutput::Value;
use super::sql::{in_partitions, literal, number, only, qualified, quoted, value};
use super::{Movement, Moving};

/// A table, as it was on the source when the attempt began.
#[derive(Clone, Debug)]
pub struct Table {
    pub schema: String,
    pub name: String,
    /// Those with values of their own; generated ones are made by the target.
    pub columns: Vec<Column>,
    /// The shard key: its column and type. Absent: the whole table moves.
    pub key: Option<(usize, KeyType)>,
    /// The columns of the primary key, if there is one.
    pub primary: Vec<usize>,
    /// How large it is, in the server's blocks.
    pub blocks: u64,
}

#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    /// Its type, as a statement has it.
    pub kind: String,
    /// Only the server gives it a value, unless told otherwise.
    pub always: bool,
    /// It can be compared with `=` whatever the `search_path` is.
    pub comparable: bool,
}

impl Table {
    /// Read it from the source's system catalog.
    pub async fn load(source: &mut Connection, moving: &Moving) -> Result<Table, PostgresError> {
        let Moving { schema, name, key } = moving;
        let class = format!("{}::regclass", literal(&qualified(schema, name)));
        let size = format!("SELECT pg_relation_size({class}) / current_setting('block_size')::bigint");
        let blocks = number(only(&source.ask(&size).await?)?, 0)?;
        let asked = source
            .ask(&format!(
                "SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attidentity = 'a', \
                 t.typtype = 'e' OR coalesce(b.typnamespace, t.typnamespace) = 'pg_catalog'::regnamespace, \
                 coalesce(a.attnum = ANY(i.indkey), false) \
                 FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_type b ON b.oid = t.typbasetype \
                 LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary \
                 WHERE a.attrelid = {class} AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' \
                 ORDER BY a.attnum"
            ))
            .await?;
        let is = |row: &[Option<String>], column| value(row, column) == "t";
        let column = |row: &Vec<Option<String>>| Column {
            name: value(row, 0).to_owned(),
            kind: value(row, 1).to_owned(),
            always: is(row, 2),
            comparable: is(row, 3),
        };
        let columns: Vec<Column> = asked.rows.iter().map(column).collect();
        let primary = (0..columns.len()).filter(|at| is(&asked.rows[*at], 4)).collect();
        let key = match key {
            None => None,
            Some((wanted, kind)) => {
                let at = columns.iter().position(|column| column.name == *wanted);
                let none =
                    || PostgresError::Moving(format!("table {schema}.{name} has no column {wanted} on the source"));
                Some((at.ok_or_else(none)?, *kind))
            }
        };
        Ok(Table { schema: schema.clone(), name: name.clone(), columns, key, primary, blocks })
    }

    /// As a statement has it.
    pub fn quoted(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    pub fn column(&self, at: usize) -> String {
        quoted(&self.columns[at].name)
    }

    /// All columns, as a statement has them.
    pub fn list(&self) -> String {
        let names: Vec<String> = self.columns.iter().map(|column| quoted(&column.name)).collect();
        names.join(", ")
    }

    /// The condition of the rows that move.
    pub fn condition(&self, movement: &Movement) -> String {
        self.key.map_or_else(
            || "true".to_owned(),
            |(at, kind)| in_partitions(&self.column(at), kind, movement.partition_count, &movement.partitions),
        )
    }

    /// Whether a row with this shard key moves. One without a key is nobody's, and stays.
    pub fn moves(&self, key: &Value, count: u32, partitions: &BTreeSet<u32>) -> Result<bool, PostgresError> {
        match key {
            Value::Null => Ok(false),
            Value::Text(text) => Ok(partitions.contains(&partition_of_text(text, count).0)),
            Value::Unchanged => Err(PostgresError::Moving(format!(
                "a change of {}.{} does not say what its shard key is",
                self.schema, self.name
            ))),
        }
    }
}
