//! Filling the system catalog's tables from Pleat's catalog.
//!
//! What a definition says beside its columns (defaults, indexes, foreign keys) SQLite itself tells, in a database that
//! has the same tables.

use std::sync::Arc;

use parking_lot::Mutex;
use pleat_cluster::{Catalog, Table};
use pleat_engine::Scratch;
use rusqlite::{Connection, Result, params};

use super::functions::Context;
use crate::pg::dialect::quoted_name;
use crate::pg::types::{TYPES, Type};

/// Where the numbers of each kind of thing begin. PostgreSQL gives users' things numbers from 16,384 on.
const TABLES: i64 = 16_384;
const VIEWS: i64 = 1 << 24;
const INDEXES: i64 = 1 << 25;
const CONSTRAINTS: i64 = 1 << 26;
const TRIGGERS: i64 = 1 << 27;

pub fn fill(db: &Connection, catalog: &Catalog) -> Result<()> {
    for about in &TYPES {
        db.execute(
            "INSERT INTO pg_type (oid, typname, typlen, typcategory, formal) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![about.oid, about.name, about.size, about.category.to_string(), about.formal],
        )?;
    }
    let model = model(catalog)?;
    let mut filler = Filler { db, model, indexes: INDEXES, constraints: CONSTRAINTS };
    for table in catalog.tables.values() {
        filler.table(table)?;
    }
    for (oid, view) in (VIEWS..).zip(catalog.views.values()) {
        filler.view(oid, &view.name, &view.sql)?;
    }
    Ok(())
}

/// What depends on who asks.
pub fn fill_session(db: &Connection, context: &Arc<Mutex<Context>>) -> Result<()> {
    db.execute_batch("PRAGMA query_only = OFF; DELETE FROM pg_roles; DELETE FROM pg_settings")?;
    let (user, database, settings) = {
        let context = context.lock();
        (context.user.clone(), context.database.clone(), context.settings.clone())
    };
    let known = db.prepare("SELECT 1 FROM pg_database WHERE datname = ?1")?.exists([&database])?;
    if !known {
        db.execute("DELETE FROM pg_database", [])?;
        db.execute("INSERT INTO pg_database (oid, datname) VALUES (5, ?1)", [database])?;
        db.execute_batch(include_str!("information.sql"))?;
    }
    db.execute("INSERT INTO pg_roles (rolname) VALUES (?1)", [user])?;
    for (name, value) in settings {
        db.prepare_cached("INSERT INTO pg_settings (name, setting) VALUES (?1, ?2)")?.execute([name, value])?;
    }
    db.execute_batch("PRAGMA query_only = ON")
}

/// An empty database with the same tables. What can't be made there is told less of.
fn model(catalog: &Catalog) -> Result<Connection> {
    let model = Connection::open_in_memory()?;
    for table in catalog.tables.values() {
        let indexes = table.indexes.iter().map(|index| &index.sql);
        for sql in std::iter::once(&table.create_sql).chain(indexes) {
            if let Err(error) = model.execute_batch(sql) {
                tracing::debug!(%error, table = %table.name, "the system catalog does not describe all of a table");
            }
        }
    }
    // A view names other tables and views, in any order: the planner's own database knows how to make them.
    if !catalog.views.is_empty()
        && let Ok(scratch) = Scratch::with_views(&catalog.tables, &catalog.views)
    {
        for view in catalog.views.values() {
            let columns: Vec<String> = (scratch.view_columns(&view.name).iter())
                .map(|column| format!("{} {}", quoted_name(&column.name), quoted_name(&column.decl_type)))
                .collect();
            let made =
                model.execute_batch(&format!("CREATE TABLE {} ({})", quoted_name(&view.name), columns.join(", ")));
            if let Err(error) = made {
                tracing::debug!(%error, view = %view.name, "the system catalog does not describe a view's columns");
            }
        }
    }
    Ok(model)
}

struct Filler<'a> {
    db: &'a Connection,
    model: Connection,
    /// The next numbers.
    indexes: i64,
    constraints: i64,
}

impl Filler<'_> {
    fn table(&mut self, table: &Table) -> Result<()> {
        let oid = TABLES + i64::from(table.id.0);
        self.relation(oid, &table.name, "r")?;
        self.columns(oid, &table.name)?;
        self.table_indexes(oid, table)?;
        self.foreign_keys(oid, table)?;
        for trigger in table.ready_triggers() {
            self.db.execute(
                "INSERT INTO pg_trigger (oid, tgrelid, tgname, definition) VALUES (?1, ?2, ?3, ?4)",
                params![TRIGGERS + i64::from(trigger.id), oid, trigger.name, trigger.sql],
            )?;
            self.db.execute("UPDATE pg_class SET relhastriggers = 1 WHERE oid = ?1", [oid])?;
        }
        Ok(())
    }

    fn view(&mut self, oid: i64, name: &str, sql: &str) -> Result<()> {
        self.relation(oid, name, "v")?;
        self.columns(oid, name)?;
        self.db.execute("INSERT INTO pg_views VALUES ('public', ?1, 'pleat', ?2)", [name, sql])?;
        Ok(())
    }

    fn relation(&self, oid: i64, name: &str, kind: &str) -> Result<()> {
        let sql = "INSERT INTO pg_class (oid, relname, relnamespace, relkind) VALUES (?1, ?2, 2200, ?3)";
        self.db.execute(sql, params![oid, name, kind])?;
        Ok(())
    }

    fn columns(&self, oid: i64, name: &str) -> Result<()> {
        let mut asked = self.model.prepare(
            "SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo(?1) ORDER BY cid",
        )?;
        let mut rows = asked.query([name])?;
        let mut number = 0;
        while let Some(row) = rows.next()? {
            number += 1;
            let declared: String = row.get::<_, Option<String>>(1)?.unwrap_or_default();
            let default: Option<String> = row.get(3)?;
            let (primary, hidden): (i64, i64) = (row.get(4)?, row.get(5)?);
            let about = Type::declared(&declared).unwrap_or(Type::Text).about();
            self.db.execute(
                "INSERT INTO pg_attribute (attrelid, attname, atttypid, attlen, attnum, attnotnull, atthasdef, attgenerated, attcollation)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                params![
                    oid,
                    row.get::<_, String>(0)?,
                    about.oid,
                    about.size,
                    number,
                    row.get::<_, bool>(2)? || primary > 0,
                    default.is_some(),
                    if hidden > 1 { "s" } else { "" },
                    if about.category == 'S' { 100 } else { 0 },
                ],
            )?;
            if let Some(default) = default {
                self.db.execute("INSERT INTO pg_attrdef VALUES (?1, ?1, ?2, ?3)", params![oid, number, default])?;
            }
        }
        self.db.execute("UPDATE pg_class SET relnatts = ?2 WHERE oid = ?1", [oid, number])?;
        Ok(())
    }

    fn table_indexes(&mut self, oid: i64, table: &Table) -> Result<()> {
        let listed = {
            let mut asked =
                self.model.prepare("SELECT name, \"unique\", origin FROM pragma_index_list(?1) ORDER BY seq DESC")?;
            let of = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            asked.query_map([&table.name], of)?.collect::<Result<Vec<(String, bool, String)>>>()?
        };
        let mut uniques = 0;
        for (name, unique, origin) in &listed {
            let columns = self.index_columns(name)?;
            let shown = match origin.as_str() {
                "c" => name.clone(),
                "pk" => format!("{}_pkey", table.name),
                _ => {
                    uniques += 1;
                    format!("{}_key{uniques}", table.name)
                }
            };
            self.index(oid, table, &shown, *unique, origin, &columns)?;
        }
        // SQLite needs no index for a key that is the row's own number, or the table's order.
        if !table.primary_key.is_empty() && !listed.iter().any(|(.., origin)| origin == "pk") {
            let place = |name: &String| table.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name));
            let columns: Vec<(Option<String>, i64)> = (table.primary_key.iter())
                .filter_map(|name| Some((Some(name.clone()), i64::try_from(place(name)? + 1).ok()?)))
                .collect();
            self.index(oid, table, &format!("{}_pkey", table.name), true, "pk", &columns)?;
        }
        Ok(())
    }

    /// The columns of an index, and their numbers; an expression has none.
    fn index_columns(&self, name: &str) -> Result<Vec<(Option<String>, i64)>> {
        let mut asked =
            self.model.prepare("SELECT name, max(cid, -1) + 1 FROM pragma_index_info(?1) ORDER BY seqno")?;
        let of = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        asked.query_map([name], of)?.collect()
    }

    fn index(
        &mut self,
        oid: i64,
        table: &Table,
        name: &str,
        unique: bool,
        origin: &str,
        columns: &[(Option<String>, i64)],
    ) -> Result<()> {
        let index = self.indexes;
        self.indexes += 1;
        self.relation(index, name, "i")?;
        self.db.execute("UPDATE pg_class SET relam = 403 WHERE oid = ?1", [index])?;
        self.db.execute("UPDATE pg_class SET relhasindex = 1 WHERE oid = ?1", [oid])?;
        let list =
            |separator: &str| columns.iter().map(|(_, number)| number.to_string()).collect::<Vec<_>>().join(separator);
        let zeros = vec!["0"; columns.len()].join(" ");
        let count = i64::try_from(columns.len()).unwrap_or(0);
        self.db.execute(
            "INSERT INTO pg_index (indexrelid, indrelid, indnatts, indnkeyatts, indisunique, indisprimary, indkey, indclass, indoption, indcollation)
             VALUES (?1, ?2, ?3, ?3, ?4, ?5, ?6, ?7, ?7, ?7)",
            params![index, oid, count, unique, origin == "pk", list(" "), zeros],
        )?;
        for (at, (column, _)) in (1_i64..).zip(columns) {
            self.db.execute(
                "INSERT INTO pg_attribute (attrelid, attname, atttypid, attnum) VALUES (?1, ?2, 25, ?3)",
                params![index, column.as_deref().unwrap_or("expr"), at],
            )?;
        }
        let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_deref().unwrap_or("(expression)")).collect();
        let (kind, on) = (if unique { "UNIQUE INDEX" } else { "INDEX" }, names.join(", "));
        let definition = format!("CREATE {kind} {name} ON public.{} USING btree ({on})", table.name);
        self.db.execute(
            "INSERT INTO pg_indexes VALUES ('public', ?1, ?2, NULL, ?3)",
            [table.name.as_str(), name, &definition],
        )?;
        if origin != "c" {
            let (kind, words) = if origin == "pk" { ("p", "PRIMARY KEY") } else { ("u", "UNIQUE") };
            self.db.execute(
                "INSERT INTO pg_constraint (oid, conname, contype, conrelid, conindid, conkey, definition) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![self.constraints, name, kind, oid, index, format!("{{{}}}", list(",")), format!("{words} ({on})")],
            )?;
            self.constraints += 1;
        }
        Ok(())
    }

    fn foreign_keys(&mut self, oid: i64, table: &Table) -> Result<()> {
        let mut asked = self.model.prepare(
            "SELECT k.\"table\", group_concat(k.\"from\", ', '), group_concat(coalesce(k.\"to\", ''), ', '), group_concat(x.cid + 1, ','), k.id
             FROM pragma_foreign_key_list(?1) AS k LEFT JOIN pragma_table_xinfo(?1) AS x ON x.name = k.\"from\" COLLATE NOCASE GROUP BY k.id",
        )?;
        let mut rows = asked.query([&table.name])?;
        while let Some(row) = rows.next()? {
            let (parent, from, to): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let (key, number): (Option<String>, i64) = (row.get(3)?, row.get(4)?);
            let to = if to.trim_matches([',', ' ']).is_empty() { String::new() } else { format!("({to})") };
            self.db.execute(
                "INSERT INTO pg_constraint (oid, conname, contype, conrelid, confrelid, conkey, confupdtype, confdeltype, confmatchtype, definition)
                 VALUES (?1, ?2, 'f', ?3, coalesce((SELECT oid FROM pg_class WHERE lower(relname) = lower(?4)), 0), ?5, 'a', 'a', 's', ?6)",
                params![
                    self.constraints,
                    format!("{}_fkey{}", table.name, number + 1),
                    oid,
                    parent,
                    format!("{{{}}}", key.unwrap_or_default()),
                    format!("FOREIGN KEY ({from}) REFERENCES {parent}{to}"),
                ],
            )?;
            self.constraints += 1;
        }
        Ok(())
    }
}
