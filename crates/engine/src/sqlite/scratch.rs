//! Trying a schema change out before it is journaled, in an in-memory database with the cluster's schema, and asking
//! SQLite what the table is like afterwards: its own answer is the only one that is right in every case.
//!
//! Here SQLite writes views and triggers anew that name a table or a column whose name changes, refuses to drop a column that
//! one needs, and tells a view's columns. Views are known to the catalog and to this database alone.

use std::collections::BTreeMap;

use pleat_cluster::{Column, Index, Retold, Rewritten, Table, TableId, TableKind, Tables, Tried, Trigger, View, Views};
use rusqlite::OptionalExtension;

use super::authorize::Mode;
use super::connection::{self, Db};
use super::failure;
use super::session::Budget;
use super::write::{check_not_empty, check_text};
use crate::SqlFailure;

/// An in-memory database with the cluster's tables, empty.
pub struct Scratch {
    db: Db,
    ids: BTreeMap<String, TableId>,
    /// What SQLite does not know of triggers, by their tables.
    triggers: BTreeMap<String, Vec<Trigger>>,
}

/// Runs `statements` against `existing`'s schema; gives `table` as it is afterwards, or `None` when it is dropped.
pub fn validate_ddl(
    existing: &Tables,
    statements: &[String],
    table: &str,
    kind: &TableKind,
) -> Result<Option<Table>, SqlFailure> {
    try_ddl(existing, &Views::new(), statements, table, kind).map(|tried| tried.table)
}

/// Runs `statements` against the schema of tables and views, and describes `table` afterwards.
pub fn try_ddl(
    existing: &Tables,
    views: &Views,
    statements: &[String],
    table: &str,
    kind: &TableKind,
) -> Result<Tried, SqlFailure> {
    let mut scratch = Scratch::with_views(existing, views)?;
    for (index, sql) in statements.iter().enumerate() {
        scratch.run(sql).map_err(|failure| SqlFailure { statement: index as u32, ..failure })?;
    }
    Ok(Tried {
        table: scratch.describe(table, kind)?,
        views: scratch.rewritten(views)?,
        triggers: scratch.retold(existing)?,
    })
}

impl Scratch {
    /// With the tables and indexes of a catalog.
    pub fn new(existing: &Tables) -> Result<Self, SqlFailure> {
        let db = connection::open_memory(1).map_err(|error| failure::describe(0, None, error))?;
        let ids = existing.iter().map(|(name, table)| (name.clone(), table.id)).collect();
        let triggers = existing.iter().map(|(name, table)| (name.clone(), table.triggers.clone())).collect();
        let mut scratch = Self { db, ids, triggers };
        for table in existing.values() {
            scratch.run(&table.create_sql)?;
            for index in &table.indexes {
                scratch.run(&index.sql)?;
            }
        }
        Ok(scratch)
    }

    /// With the tables, indexes, triggers and views of a catalog.
    pub fn with_views(existing: &Tables, views: &Views) -> Result<Self, SqlFailure> {
        let mut scratch = Self::new(existing)?;
        for trigger in existing.values().flat_map(|table| &table.triggers) {
            scratch.run(&trigger.sql)?;
        }
        for view in views.values() {
            scratch.run(&view.sql)?;
        }
        Ok(scratch)
    }

    /// The views that are not defined as they were.
    fn rewritten(&self, views: &Views) -> Result<Vec<Rewritten>, SqlFailure> {
        let mut found = Vec::new();
        for before in views.values() {
            let sql = self.sql_of("view", &before.name)?;
            if let Some(sql) = sql.filter(|sql| *sql != before.sql) {
                found.push(Rewritten { before: before.clone(), after: View { name: before.name.clone(), sql } });
            }
        }
        Ok(found)
    }

    /// The triggers as they are now. What shards make of the texts is not known here.
    fn retold(&self, tables: &Tables) -> Result<Vec<Retold>, SqlFailure> {
        let mut found = Vec::new();
        for (table, before) in tables.values().flat_map(|table| table.triggers.iter().map(move |one| (table, one))) {
            if let Some(sql) = self.sql_of("trigger", &before.name)? {
                let (before, after) = (before.clone(), Trigger { sql, ..before.clone() });
                found.push(Retold { table: table.name.clone(), before, after });
            }
        }
        Ok(found)
    }

    fn sql_of(&self, kind: &str, name: &str) -> Result<Option<String>, SqlFailure> {
        self.db
            .conn
            .query_row("SELECT sql FROM sqlite_schema WHERE type = ?1 AND name = ?2", [kind, name], |row| row.get(0))
            .optional()
            .map_err(|error| failure::describe(0, None, error))
    }

    /// A view's columns; none when it can't be used, because something that it names is not there.
    pub fn view_columns(&self, view: &str) -> Vec<Column> {
        let column = |row: &rusqlite::Row<'_>| {
            let (name, decl_type) = (row.get(0)?, row.get::<_, Option<String>>(1)?.unwrap_or_default());
            Ok(Column {
                name,
                decl_type,
                collation: None,
                not_null: false,
                generated: false,
                has_default: false,
                serial: None,
            })
        };
        let ask = || -> rusqlite::Result<Vec<Column>> {
            let mut described = self.db.conn.prepare("SELECT name, type FROM pragma_table_xinfo(?1) ORDER BY cid")?;
            described.query_map([view], column)?.collect()
        };
        ask().unwrap_or_default()
    }

    /// The columns of what a statement answers: their names, and the declared types of those that are columns of tables.
    pub fn columns_of(&mut self, sql: &str) -> Result<Vec<(String, Option<String>)>, SqlFailure> {
        check_text(0, sql)?;
        let described = self.db.in_mode(Mode::Write, |conn| {
            let statement = conn.prepare(sql)?;
            let column = |column: &rusqlite::Column<'_>| {
                (column.name().to_owned(), column.decl_type().map(|name| declared(name.to_owned())))
            };
            Ok(statement.columns().map(|described| column(&described)).collect())
        });
        let denied = self.db.session.lock().denied.take();
        described.map_err(|error| failure::describe(0, denied, error))
    }

    /// Runs one statement that changes the schema.
    pub fn run(&mut self, sql: &str) -> Result<(), SqlFailure> {
        /// A tenth of a second or so: nothing here has rows.
        const STEP_BLOCKS: u64 = 1_000;
        check_text(0, sql)?;
        self.db.session.lock().budget = Budget::Steps(STEP_BLOCKS);
        let result = self.db.in_mode(Mode::Schema, |conn| {
            let mut statement = conn.prepare(sql).map_err(Failed::Sqlite)?;
            check_not_empty(0, &statement).map_err(Failed::Refused)?;
            let mut rows = statement.raw_query();
            while rows.next().map_err(Failed::Sqlite)?.is_some() {}
            Ok(())
        });
        let mut session = self.db.session.lock();
        session.budget = Budget::Unlimited;
        let denied = session.denied.take();
        drop(session);
        result.map_err(|error| match error {
            Failed::Sqlite(error) => failure::describe(0, denied, error),
            Failed::Refused(failure) => failure,
        })
    }

    /// What SQLite says about a table; `None` when there is none of that name.
    pub fn describe(&self, table: &str, kind: &TableKind) -> Result<Option<Table>, SqlFailure> {
        self.ask(table, kind).map_err(|error| failure::describe(0, None, error))
    }

    fn ask(&self, table: &str, kind: &TableKind) -> rusqlite::Result<Option<Table>> {
        let conn = &self.db.conn;
        let found: Option<(String, String, bool)> = conn
            .query_row(
                "SELECT s.name, s.sql, l.wr FROM sqlite_schema AS s JOIN pragma_table_list(s.name) AS l \
                 WHERE s.type = 'table' AND lower(s.name) = lower(?1) AND l.schema = 'main'",
                [table],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()?;
        let Some((name, create_sql, without_rowid)) = found else { return Ok(None) };
        let (columns, primary_key) = self.columns(&name)?;
        let mut indexes =
            conn.prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = ?1 AND sql IS NOT NULL ORDER BY rowid")?;
        let indexes = indexes
            .query_map([&name], |row| Ok(Index { name: row.get(0)?, sql: row.get(1)? }))?
            .collect::<Result<_, _>>()?;
        Ok(Some(Table {
            id: self.ids.get(&name.to_ascii_lowercase()).copied().unwrap_or(TableId(0)),
            rowid_alias: !without_rowid && self.is_rowid_alias(&name, &primary_key)?,
            kind: kind.clone(),
            columns,
            primary_key,
            without_rowid,
            create_sql,
            indexes,
            triggers: self.triggers.get(&name.to_ascii_lowercase()).cloned().unwrap_or_default(),
            name,
        }))
    }

    fn columns(&self, table: &str) -> rusqlite::Result<(Vec<Column>, Vec<String>)> {
        let conn = &self.db.conn;
        let mut described = conn.prepare(
            "SELECT name, type, \"notnull\", dflt_value IS NOT NULL, pk, hidden FROM pragma_table_xinfo(?1) ORDER BY cid",
        )?;
        let mut rows = described.query([table])?;
        let (mut columns, mut keys) = (Vec::new(), Vec::new());
        while let Some(row) = rows.next()? {
            let (name, place, hidden): (String, i64, i64) = (row.get(0)?, row.get(4)?, row.get(5)?);
            if place > 0 {
                keys.push((place, name.clone()));
            }
            columns.push(Column {
                collation: self.collation(table, &name)?,
                name,
                decl_type: declared(row.get::<_, Option<String>>(1)?.unwrap_or_default()),
                not_null: row.get(2)?,
                generated: hidden == 2 || hidden == 3,
                serial: None,
                has_default: row.get(3)?,
            });
        }
        keys.sort();
        Ok((columns, keys.into_iter().map(|(_, name)| name).collect()))
    }

    fn collation(&self, table: &str, column: &str) -> rusqlite::Result<Option<String>> {
        let (_, collation, ..) = self.metadata(table, column)?;
        Ok(collation.filter(|name| !name.eq_ignore_ascii_case("BINARY")))
    }

    fn metadata(&self, table: &str, column: &str) -> rusqlite::Result<(Option<String>, Option<String>, bool)> {
        let (decl_type, collation, _, primary, _) = self.db.conn.column_metadata(None::<&str>, table, column)?;
        let text = |text: Option<&std::ffi::CStr>| text.map(|text| text.to_string_lossy().into_owned());
        Ok((text(decl_type), text(collation), primary))
    }

    /// Whether the primary key is another name of the rowid. `INTEGER PRIMARY KEY DESC` is not, so SQLite is asked: an
    /// alias has no index of its own.
    fn is_rowid_alias(&self, table: &str, primary_key: &[String]) -> rusqlite::Result<bool> {
        let [column] = primary_key else { return Ok(false) };
        let (decl_type, ..) = self.metadata(table, column)?;
        let indexed =
            self.db.conn.prepare("SELECT 1 FROM pragma_index_list(?1) WHERE origin = 'pk'")?.exists([table])?;
        Ok(decl_type.is_some_and(|name| name.eq_ignore_ascii_case("INTEGER")) && !indexed)
    }
}

enum Failed {
    Sqlite(rusqlite::Error),
    Refused(SqlFailure),
}

/// SQLite puts `GENERATED ALWAYS` into the declared type of such a column.
fn declared(decl_type: String) -> String {
    match decl_type.to_ascii_uppercase().find("GENERATED ALWAYS") {
        Some(place) => decl_type[..place].trim_end().to_owned(),
        None => decl_type,
    }
}
