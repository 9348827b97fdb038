//! Bulk rows: each in a savepoint of its own, so that a bad one costs only itself.

use pleat_cluster::{Millis, PartitionId, TableKind, Value};

use super::failure::{Applied, Stop};
use super::idempotency;
use super::store::Writer;
use super::value::{bind, marks, quote, quoted_list};
use super::write::{Scope, check_parameters};
use crate::{Idempotency, Outcome, Refusal, RejectedRow, SqlFailure, sqlstate};

impl Writer {
    /// Inserts rows; names those that can't be.
    pub(crate) fn bulk(
        &mut self,
        given: Option<&Idempotency>,
        units: &[PartitionId],
        table: &str,
        columns: &[String],
        rows: &[Vec<Value>],
        now_ms: Millis,
    ) -> Applied<Outcome> {
        if let Some(outcome) = self.known_or_checked(given, units, None, now_ms)? {
            return Ok(outcome);
        }
        self.check_bulk_table(table, units)?;
        self.set_scope(Scope::Units(units));
        let inserted = self.insert_all(table, columns, rows);
        self.clear_scope();
        let (inserted, rejected) = inserted?;
        self.version += 1;
        let outcome = Outcome::Bulk { inserted, rejected, replayed: false };
        if let Some(given) = given {
            idempotency::remember(&self.db.conn, given, units, &outcome, now_ms)?;
        }
        Ok(outcome)
    }

    fn check_bulk_table(&self, table: &str, units: &[PartitionId]) -> Applied<()> {
        let Some(spec) = self.specs.get(&table.to_ascii_lowercase()) else {
            let message = format!("no such table: {table}");
            let hint = sqlstate::hint("42P01").unwrap_or_default();
            return Err(sqlstate::refuse(0, "42P01", message, hint).into());
        };
        self.placement.check_table(table)?;
        match (&spec.table.kind, spec.unit) {
            (TableKind::Reference, _) => {
                let message = format!("{table} is a reference table: rows go to all shards");
                Err(sqlstate::refuse(0, "0A000", message, "insert its rows as a write to reference tables").into())
            }
            (_, Some(unit)) if !units.contains(&unit) => Err(Refusal::NotRouted { unit }.into()),
            _ => Ok(()),
        }
    }

    /// How many rows were inserted, and which ones were rejected. (One that a trigger passes over is neither.)
    fn insert_all(&self, table: &str, columns: &[String], rows: &[Vec<Value>]) -> Applied<(u64, Vec<RejectedRow>)> {
        let conn = &self.db.conn;
        let sql = format!("INSERT INTO {}({}) VALUES ({})", quote(table), quoted_list(columns), marks(columns.len()));
        self.db.session.lock().compiling = true;
        let statement = conn.prepare_cached(&sql);
        self.db.session.lock().compiling = false;
        let mut statement = statement.map_err(|error| self.user_error(0, error))?;
        statement.reset_status(rusqlite::StatementStatus::VmStep);
        let savepoint = |sql: &str| -> Applied<()> {
            self.db.session.lock().mode = super::authorize::Mode::Internal;
            conn.prepare_cached(sql)?.execute([])?;
            self.db.session.lock().mode = super::authorize::Mode::Write;
            Ok(())
        };
        let (mut inserted, mut rejected) = (0, Vec::new());
        for (index, row) in (0u32..).zip(rows) {
            savepoint("SAVEPOINT one_row /* __pleat_ */")?;
            match self.insert_one(&mut statement, row) {
                Ok(rows) => {
                    inserted += rows;
                    savepoint("RELEASE one_row /* __pleat_ */")?;
                }
                // The whole transaction is gone (ON CONFLICT ROLLBACK): so is this proposal.
                Err(stop) if conn.is_autocommit() => return Err(stop),
                Err(Stop::Outcome(outcome)) => {
                    rejected.push(reason(index, *outcome)?);
                    savepoint("ROLLBACK TO one_row /* __pleat_ */")?;
                    savepoint("RELEASE one_row /* __pleat_ */")?;
                }
                Err(fatal @ Stop::Fatal(_)) => return Err(fatal),
            }
        }
        Ok((inserted, rejected))
    }

    fn insert_one(&self, statement: &mut rusqlite::Statement<'_>, row: &[Value]) -> Applied<u64> {
        check_parameters(0, statement.parameter_count(), row.len())?;
        bind(statement, 1, row).map_err(|error| self.user_error(0, error))?;
        let rows = statement.raw_execute().map_err(|error| self.user_error(0, error))?;
        match self.has_dangling_references() {
            true => Err(sqlstate::refuse(0, "23503", "FOREIGN KEY constraint failed", "").into()),
            false => Ok(rows as u64),
        }
    }
}

/// Why a row was rejected. Running out of steps ends the whole write instead.
fn reason(index: u32, outcome: Outcome) -> Applied<RejectedRow> {
    match outcome {
        Outcome::Failed(SqlFailure { code, message, .. }) if code != "54001" => {
            Ok(RejectedRow { index, code, reason: message })
        }
        // A row that is refused for good is named; one that is refused for now takes the whole write with it.
        Outcome::Refused(refusal) if !refusal.is_retryable() => {
            Ok(RejectedRow { index, code: refusal.code().to_owned(), reason: refusal.to_string() })
        }
        other => Err(Stop::Outcome(Box::new(other))),
    }
}
