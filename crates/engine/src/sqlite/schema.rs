//! Schema changes, and what Pleat keeps beside the user's tables.

use pleat_cluster::{Generation, PartitionId, Table};
use rusqlite::OptionalExtension;

use super::authorize::Mode;
use super::content;
use super::failure::Applied;
use super::session::Budget;
use super::store::Writer;
use super::table::TableSpec;
use super::write::{check_not_empty, check_text};
use crate::limits::{SCHEMA_CHANGES_REMEMBERED, SCHEMA_STEP_BLOCKS_MAX};
use crate::{Outcome, Refusal, SchemaChange};

/// The tables of a new shard. Part of the cluster's version, like all that determines content. The rows that hold the
/// position and what belongs to it (`content::Beside`) are there from the beginning, because ANALYZE counts them in the
/// middle of a batch.
pub(crate) const OWN_TABLES: &str = "
    CREATE TABLE __pleat_meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE __pleat_applied(id INTEGER PRIMARY KEY, value BLOB NOT NULL);
    CREATE TABLE __pleat_placement(id INTEGER PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL);
    CREATE TABLE __pleat_tables(name TEXT PRIMARY KEY, spec BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE __pleat_ddl(seq INTEGER PRIMARY KEY AUTOINCREMENT, operation INTEGER NOT NULL UNIQUE);
    CREATE TABLE __pleat_idempotency(
        seq INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, units BLOB NOT NULL,
        fingerprint INTEGER NOT NULL, expires_ms INTEGER NOT NULL, outcome BLOB NOT NULL);
    CREATE TABLE __pleat_reference_log(seq INTEGER PRIMARY KEY, entry BLOB NOT NULL);
    CREATE INDEX __pleat_idempotency_client ON __pleat_idempotency(expires_ms) WHERE substr(key, 1, 2) <> 'i/';
    CREATE INDEX __pleat_idempotency_internal ON __pleat_idempotency(expires_ms) WHERE substr(key, 1, 2) = 'i/';
    CREATE TABLE __pleat_prepared(txn BLOB PRIMARY KEY, kept BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE __pleat_committed(
        seq INTEGER PRIMARY KEY, txn BLOB NOT NULL UNIQUE, at_ms INTEGER NOT NULL);
    CREATE TABLE __pleat_together(shard INTEGER PRIMARY KEY, newest INTEGER NOT NULL);
    INSERT INTO __pleat_applied VALUES (0, x''), (1, 0), (2, 0), (3, x'');
";

impl Writer {
    /// First ownership.
    pub(crate) fn own(&mut self, units: &[PartitionId], ownership: Generation, layout: Generation) -> Applied<Outcome> {
        if ownership > self.placement.ownership {
            self.beside.version += 1;
            self.change_placement(|placement| {
                placement.ownership = ownership;
                placement.layout = placement.layout.max(layout);
                units.iter().for_each(|unit| placement.owned.insert(*unit));
            })?;
        }
        Ok(Outcome::Done { results: Vec::new() })
    }

    /// A schema change.
    pub(crate) fn ddl(
        &mut self,
        operation: u64,
        statements: &[String],
        change: &SchemaChange,
        single: Option<(PartitionId, Generation)>,
        undoes: Option<u64>,
    ) -> Applied<Outcome> {
        if self.ddl_was_applied(operation)? {
            return Ok(Outcome::Done { results: Vec::new() });
        }
        self.check_undecided()?;
        if let Some(undone) = undoes
            && !self.ddl_was_applied(undone)?
        {
            // It never came; and should it still be on its way, it comes too late.
            self.remember_ddl(undone)?;
            self.remember_ddl(operation)?;
            return Ok(Outcome::Done { results: Vec::new() });
        }
        if self.placement.is_moving() {
            return Err(Refusal::Moving.into());
        }
        self.schema_changed = true;
        self.beside.version += 1;
        self.run_ddl(statements)?;
        content::sort_statistics(&self.db.conn)?;
        match change {
            SchemaChange::Put(table) => {
                let slot = self.next_slot(&table.name)?;
                self.put(TableSpec { slot, table: table.clone(), unit: self.unit_of(&table.name, single) })?;
            }
            SchemaChange::Drop { table } => self.forget_table(table)?,
            SchemaChange::Alter { from, table, ownership } => self.alter(from, table, *ownership)?,
        }
        if let Some((unit, ownership)) = single {
            self.change_placement(|placement| {
                placement.owned.insert(unit);
                placement.ownership = placement.ownership.max(ownership);
            })?;
        }
        self.remember_ddl(operation)?;
        self.reload_specs()?;
        Ok(Outcome::Done { results: Vec::new() })
    }

    fn run_ddl(&mut self, statements: &[String]) -> Applied<()> {
        for (index, sql) in statements.iter().enumerate() {
            check_text(index, sql)?;
            {
                let mut session = self.db.session.lock();
                session.compiling = true;
                session.budget = Budget::Steps(SCHEMA_STEP_BLOCKS_MAX);
            }
            let result: Applied<()> = self.db.in_mode(Mode::Schema, |conn| {
                let mut statement = conn.prepare(sql).map_err(|error| self.user_error(index, error))?;
                check_not_empty(index, &statement)?;
                self.db.session.lock().compiling = false;
                let mut rows = statement.raw_query();
                while rows.next().map_err(|error| self.user_error(index, error))?.is_some() {}
                Ok(())
            });
            {
                let mut session = self.db.session.lock();
                session.compiling = false;
                session.budget = Budget::Unlimited;
            }
            result?;
        }
        Ok(())
    }

    /// Stores what the engine knows of a table and makes its triggers anew.
    pub(crate) fn put(&mut self, spec: TableSpec) -> Applied<()> {
        let conn = &self.db.conn;
        let name = spec.table.name.to_ascii_lowercase();
        let mut old = conn.prepare_cached(
            "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND lower(tbl_name) = ?1 AND name LIKE '\\_\\_pleat\\_%' ESCAPE '\\'",
        )?;
        let old: Vec<String> = old.query_map([&name], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for trigger in old {
            conn.execute_batch(&format!("DROP TRIGGER {trigger}"))?;
        }
        let exists = conn
            .prepare_cached("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND lower(name) = ?1")?
            .exists([&name])?;
        if !exists {
            let message = format!("the statements made no table {}", spec.table.name);
            return Err(crate::sqlstate::refuse(
                0,
                "42P01",
                message,
                "create the table under the name that is declared",
            )
            .into());
        }
        for trigger in spec.triggers() {
            conn.execute_batch(&trigger).map_err(|error| self.user_error(0, error))?;
        }
        conn.prepare_cached("INSERT OR REPLACE INTO __pleat_tables(name, spec) VALUES (?1, ?2)")?
            .execute((name, postcard::to_stdvec(&spec)?))?;
        Ok(())
    }

    /// What the engine knows of the table under its old name goes over to the new one: its number, and its unit.
    fn alter(&mut self, from: &str, table: &Table, ownership: Generation) -> Applied<()> {
        let (slot, unit) = (self.next_slot(from)?, self.unit_of(from, None));
        let mut forget = self.db.conn.prepare_cached("DELETE FROM __pleat_tables WHERE name = ?1")?;
        forget.execute([from.to_ascii_lowercase()])?;
        drop(forget);
        self.put(TableSpec { slot, table: table.clone(), unit })?;
        self.change_placement(|placement| placement.ownership = placement.ownership.max(ownership))
    }

    fn forget_table(&mut self, name: &str) -> Applied<()> {
        let name = name.to_ascii_lowercase();
        self.db.conn.prepare_cached("DELETE FROM __pleat_tables WHERE name = ?1")?.execute([&name])?;
        if let Some(unit) = self.specs.get(&name).and_then(|spec| spec.unit) {
            self.change_placement(|placement| placement.owned.remove(unit))?;
        }
        Ok(())
    }

    fn unit_of(&self, name: &str, single: Option<(PartitionId, Generation)>) -> Option<PartitionId> {
        let known = || self.specs.get(&name.to_ascii_lowercase()).and_then(|spec| spec.unit);
        single.map(|(unit, _)| unit).or_else(known)
    }

    /// The table's slot, or the next one. Slots are never used twice, so that nothing of a dropped table can be
    /// taken for a new one's.
    fn next_slot(&self, name: &str) -> Applied<i64> {
        if let Some(spec) = self.specs.get(&name.to_ascii_lowercase()) {
            return Ok(spec.slot);
        }
        let conn = &self.db.conn;
        let last: Option<i64> = conn
            .prepare_cached("SELECT value FROM __pleat_meta WHERE key = 'last_slot'")?
            .query_row([], |row| row.get(0))
            .optional()?;
        let slot = last.unwrap_or(0) + 1;
        conn.prepare_cached("INSERT OR REPLACE INTO __pleat_meta(key, value) VALUES ('last_slot', ?1)")?
            .execute([slot])?;
        Ok(slot)
    }

    fn ddl_was_applied(&self, operation: u64) -> Applied<bool> {
        let mut statement = self.db.conn.prepare_cached("SELECT 1 FROM __pleat_ddl WHERE operation = ?1")?;
        Ok(statement.exists([operation as i64])?)
    }

    fn remember_ddl(&self, operation: u64) -> Applied<()> {
        let conn = &self.db.conn;
        conn.prepare_cached("INSERT INTO __pleat_ddl(operation) VALUES (?1)")?.execute([operation as i64])?;
        conn.prepare_cached("DELETE FROM __pleat_ddl WHERE seq <= (SELECT max(seq) FROM __pleat_ddl) - ?1")?
            .execute([SCHEMA_CHANGES_REMEMBERED])?;
        Ok(())
    }
}
