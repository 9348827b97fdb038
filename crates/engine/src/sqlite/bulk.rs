//! Bulk rows: each in a savepoint of its own, so that a bad one costs only itself.
//!
//! The rows come in parts, by the partitions that they belong to: what was done is remembered for each part, and moves with
//! its partitions. They are inserted in the order in which the client gave them, not part by part: rows whose keys rise then
//! lie one after the other in the file, which fills its pages and makes reading them about twice as fast.

use pleat_cluster::{Millis, PartitionId, TableKind, Value};

use super::failure::{Applied, Stop};
use super::idempotency;
use super::store::Writer;
use super::value::{bind, marks, quote, quoted_list};
use super::write::{Scope, check_parameters};
use crate::{BulkDone, BulkPart, Outcome, Refusal, RejectedRow, SqlFailure, sqlstate};

impl Writer {
    /// Inserts rows; names those that can't be.
    pub(crate) fn bulk(
        &mut self,
        table: &str,
        columns: &[String],
        parts: &[BulkPart],
        now_ms: Millis,
    ) -> Applied<Outcome> {
        let mut done: Vec<Option<BulkDone>> = Vec::with_capacity(parts.len());
        for part in parts {
            done.push(match self.known_or_checked(part.idempotency.as_ref(), &part.units, None, now_ms)? {
                None => None,
                Some(Outcome::Bulk { parts }) if parts.len() == 1 => parts.into_iter().next(),
                // The key stands for another kind of write.
                Some(outcome) => return Ok(outcome),
            });
        }
        if done.iter().any(Option::is_none) {
            self.insert_parts(table, columns, parts, &mut done, now_ms)?;
        }
        Ok(Outcome::Bulk { parts: done.into_iter().flatten().collect() })
    }

    /// Insert the rows of those parts that were not done before.
    fn insert_parts(
        &mut self,
        table: &str,
        columns: &[String],
        parts: &[BulkPart],
        done: &mut [Option<BulkDone>],
        now_ms: Millis,
    ) -> Applied<()> {
        let is_new: Vec<bool> = done.iter().map(Option::is_none).collect();
        let new = || parts.iter().enumerate().filter(|(at, _)| is_new[*at]);
        let units: Vec<PartitionId> = new().flat_map(|(_, part)| part.units.iter().copied()).collect();
        self.check_bulk_table(table, &units)?;
        let mut rows: Vec<Row> = new()
            .flat_map(|(part, given)| {
                given.rows.iter().map(move |(number, values)| Row { number: *number, part, values })
            })
            .collect();
        rows.sort_by_key(|row| row.number);
        let mut counts = vec![BulkDone { inserted: 0, rejected: Vec::new(), replayed: false }; parts.len()];
        self.set_scope(Scope::Units(&units));
        let inserted = self.insert_all(table, columns, &rows, &mut counts);
        self.clear_scope();
        inserted?;
        self.beside.version += 1;
        for (at, (part, count)) in parts.iter().zip(counts).enumerate().filter(|(at, _)| is_new[*at]) {
            if let Some(given) = &part.idempotency {
                let outcome = Outcome::Bulk { parts: vec![count.clone()] };
                idempotency::remember(
                    &self.db.conn,
                    &mut self.beside.remembered,
                    given,
                    &part.units,
                    &outcome,
                    now_ms,
                )?;
            }
            done[at] = Some(count);
        }
        Ok(())
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

    /// Counts, for each part, the rows that were inserted and names those that were rejected. (One that a trigger passes
    /// over is neither.)
    fn insert_all(&self, table: &str, columns: &[String], rows: &[Row<'_>], counts: &mut [BulkDone]) -> Applied<()> {
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
        for row in rows {
            savepoint("SAVEPOINT one_row /* __pleat_ */")?;
            match self.insert_one(&mut statement, row.values) {
                Ok(rows) => {
                    counts[row.part].inserted += rows;
                    savepoint("RELEASE one_row /* __pleat_ */")?;
                }
                // The whole transaction is gone (ON CONFLICT ROLLBACK): so is this proposal.
                Err(stop) if conn.is_autocommit() => return Err(stop),
                Err(Stop::Outcome(outcome)) => {
                    counts[row.part].rejected.push(reason(row.number, *outcome)?);
                    savepoint("ROLLBACK TO one_row /* __pleat_ */")?;
                    savepoint("RELEASE one_row /* __pleat_ */")?;
                }
                Err(fatal @ Stop::Fatal(_)) => return Err(fatal),
            }
        }
        Ok(())
    }

    fn insert_one(&self, statement: &mut rusqlite::Statement<'_>, row: &[Value]) -> Applied<u64> {
        check_parameters(0, statement.parameter_count(), row.len())?;
        bind(statement, 1, row).map_err(|error| self.user_error(0, error))?;
        self.db.session.lock().no_trigger_fires();
        let rows = statement.raw_execute().map_err(|error| self.user_error(0, error))?;
        match self.has_dangling_references() {
            true => Err(sqlstate::refuse(0, "23503", "FOREIGN KEY constraint failed", "").into()),
            false => Ok(rows as u64),
        }
    }
}

/// A row to be inserted.
struct Row<'a> {
    number: u32,
    part: usize,
    values: &'a [Value],
}

/// Why a row was rejected. Running out of steps ends the whole write instead.
fn reason(number: u32, outcome: Outcome) -> Applied<RejectedRow> {
    match outcome {
        Outcome::Failed(SqlFailure { code, message, .. }) if code != "54001" => {
            Ok(RejectedRow { number, code, reason: message })
        }
        // A row that is refused for good is named; one that is refused for now takes the whole write with it.
        Outcome::Refused(refusal) if !refusal.is_retryable() => {
            Ok(RejectedRow { number, code: refusal.code().to_owned(), reason: refusal.to_string() })
        }
        other => Err(Stop::Outcome(Box::new(other))),
    }
}
