//! Running a user's statements at apply.

use pleat_cluster::{Millis, PartitionId, Table, TableKind, Value, concerns_others};
use rusqlite::limits::Limit;
use rusqlite::{CachedStatement, Connection, ffi};

use super::authorize::{self, Mode};
use super::failure::{self, Applied, Stop};
use super::idempotency;
use super::reference::is_foreign_key;
use super::session::{Budget, RoutedUnits, RowCheck};
use super::store::Writer;
use super::value::{bind, values_of};
use crate::limits::{
    INTERNAL_VALUE_BYTES_MAX, STATEMENT_BYTES_MAX, VALUE_BYTES_MAX, WRITE_RESULT_BYTES_MAX, WRITE_RESULT_ROWS_MAX,
    WRITE_STEP_BLOCKS_MAX,
};
use crate::{Idempotency, Outcome, Refusal, SqlFailure, Stamp, Statement, StatementResult, sqlstate};

/// What the statements of a proposal may write.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scope<'a> {
    /// Sharded and single tables of these units.
    Units(&'a [PartitionId]),
    /// Reference tables, on the anchor, which decides alone.
    Anchor,
    /// Reference tables, when it is decided or all shards are asked.
    Reference,
}

/// A compiled statement: from the cache, or its first time here.
enum Compiled<'a> {
    Cached(CachedStatement<'a>),
    Fresh(rusqlite::Statement<'a>),
}

impl<'a> std::ops::Deref for Compiled<'a> {
    type Target = rusqlite::Statement<'a>;

    fn deref(&self) -> &Self::Target {
        match self {
            Compiled::Cached(statement) => statement,
            Compiled::Fresh(statement) => statement,
        }
    }
}

impl std::ops::DerefMut for Compiled<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Compiled::Cached(statement) => &mut *statement,
            Compiled::Fresh(statement) => statement,
        }
    }
}

impl Writer {
    /// A user's write: the checks, the statements, and the memory of both.
    pub(crate) fn write(
        &mut self,
        idempotency: Option<&Idempotency>,
        units: &[PartitionId],
        statements: &[Statement],
        base: Option<u64>,
        now_ms: Millis,
    ) -> Applied<Outcome> {
        if let Some(outcome) = self.known_or_checked(idempotency, units, base, now_ms)? {
            return Ok(outcome.of_a_write());
        }
        self.check_reference(statements)?;
        let results = self.run_all(statements, Scope::Units(units))?;
        self.log_reference(statements)?;
        self.beside.version += 1;
        let outcome = Outcome::Done { results };
        if let Some(given) = idempotency {
            idempotency::remember(&self.db.conn, &mut self.beside.remembered, given, units, &outcome, now_ms)?;
        }
        Ok(outcome)
    }

    /// What a repeated write gives; otherwise the checks of a new one.
    ///
    /// The key comes first: where it is remembered the write took effect, and a unit that is being handed over or
    /// was handed over since took the effect along. So the answer is true whoever owns the unit now.
    pub(crate) fn known_or_checked(
        &mut self,
        idempotency: Option<&Idempotency>,
        units: &[PartitionId],
        base: Option<u64>,
        now_ms: Millis,
    ) -> Applied<Option<Outcome>> {
        if let Some(given) = idempotency
            && let Some(outcome) = idempotency::replay(&self.db.conn, given, now_ms)?
        {
            return Ok(Some(outcome));
        }
        self.check_undecided()?;
        // What was decided on a content was planned by the layout of that content.
        if base.is_none() {
            self.placement.check_layout(self.planned.layout)?;
        }
        self.check_triggers()?;
        self.placement.check_units(units)?;
        self.check_base(base)?;
        if let Some(given) = idempotency {
            idempotency::admit(&self.db.conn, &mut self.beside.remembered, given, now_ms)?;
        }
        Ok(None)
    }

    /// Refuses what was planned before the newest trigger here was known: it may be what tables with triggers don't allow.
    pub(crate) fn check_triggers(&self) -> Result<(), Refusal> {
        let routed = self.planned.generation;
        match self.triggers_since > routed {
            true => Err(Refusal::Generation { ownership: self.triggers_since, routed }),
            false => Ok(()),
        }
    }

    /// Runs all statements, or stops at the first failure.
    pub(crate) fn run_all(&mut self, statements: &[Statement], scope: Scope<'_>) -> Applied<Vec<StatementResult>> {
        self.set_scope(scope);
        let mut left = ResultBudget::of_a_write();
        let results: Applied<Vec<_>> =
            statements.iter().enumerate().map(|(index, one)| self.run(index, one, scope, &mut left)).collect();
        let results = results.and_then(|results| match self.has_dangling_references() {
            true => Err(dangling(statements.len()).into()),
            false => Ok(results),
        });
        self.clear_scope();
        results
    }

    /// What the row check lets pass from here on.
    pub(crate) fn set_scope(&self, scope: Scope<'_>) {
        self.limit_values(VALUE_BYTES_MAX);
        let mut session = self.db.session.lock();
        session.mode = Mode::Write;
        session.budget = Budget::Steps(WRITE_STEP_BLOCKS_MAX);
        session.rows = match scope {
            Scope::Units(units) => RowCheck::Routed(RoutedUnits::new(units)),
            Scope::Anchor | Scope::Reference => RowCheck::Off,
        };
    }

    /// The reverse of [`Writer::set_scope`].
    pub(crate) fn clear_scope(&self) {
        self.limit_values(INTERNAL_VALUE_BYTES_MAX);
        let mut session = self.db.session.lock();
        session.mode = Mode::Internal;
        session.budget = Budget::Unlimited;
        session.rows = RowCheck::Off;
    }

    /// Only users' values are held to what can be moved: an entry of the reference log holds several of them.
    fn limit_values(&self, bytes: usize) {
        // Only a limit below zero is refused.
        self.db.conn.set_limit(Limit::SQLITE_LIMIT_LENGTH, bytes as i32).ok();
    }

    pub(crate) fn run(
        &mut self,
        index: usize,
        statement: &Statement,
        scope: Scope<'_>,
        left: &mut ResultBudget,
    ) -> Applied<StatementResult> {
        if statement.reference.is_none() {
            return self.run_in(index, statement, scope, left);
        }
        // Foreign keys may take rows of any partition along.
        let rows = std::mem::replace(&mut self.db.session.lock().rows, RowCheck::Off);
        let result = self.run_in(index, statement, Scope::Reference, left);
        self.db.session.lock().rows = rows;
        match result {
            // Perhaps of a row that is another shard's, and is not there any more.
            Err(Stop::Outcome(outcome)) if is_foreign_key(&outcome) && self.placement.has_foreign_rows() => {
                Err(Refusal::Moving.into())
            }
            result => result,
        }
    }

    fn run_in(
        &mut self,
        index: usize,
        statement: &Statement,
        scope: Scope<'_>,
        left: &mut ResultBudget,
    ) -> Applied<StatementResult> {
        let filtered = statement.filtered.as_deref().filter(|_| self.placement.has_foreign_rows());
        let sql = filtered.unwrap_or(&statement.sql);
        if let Some(stamp) = &statement.stamp {
            self.stamp(stamp)?;
        }
        let mut compiled = self.compile(index, sql)?;
        self.check_target(index, sql, scope)?;
        check_parameters(index, compiled.parameter_count(), statement.params.len())?;
        bind(&mut compiled, 1, &statement.params).map_err(|error| self.user_error(index, error))?;
        // The budget of steps is looked at every so many steps of the statement's counter: it has to start at 0.
        compiled.reset_status(rusqlite::StatementStatus::VmStep);
        let result = collect(&mut compiled, left).map_err(|error| match error {
            Collect::Sqlite(error) => self.user_error(index, error),
            Collect::TooLarge => too_large(index).into(),
        })?;
        let wrote = !compiled.readonly();
        let rowid = self.db.conn.last_insert_rowid();
        Ok(StatementResult {
            rows_affected: if wrote { self.db.conn.changes() } else { 0 },
            last_insert_rowid: (wrote && rowid != 0).then_some(rowid),
            ..result
        })
    }

    /// Time, randomness and counters as a statement of an interactive transaction had them.
    fn stamp(&self, stamp: &Stamp) -> Applied<()> {
        self.db.session.lock().restart(stamp.now_ms, stamp.seed);
        if let Some((rowid, total_changes)) = stamp.undone {
            let mode = std::mem::replace(&mut self.db.session.lock().mode, Mode::Internal);
            self.set_counters(rowid, total_changes)?;
            self.db.session.lock().mode = mode;
        }
        Ok(())
    }

    /// What `last_insert_rowid()` and `total_changes()` say from here on; `changes()` says 0.
    pub(crate) fn set_counters(&self, rowid: i64, total_changes: i64) -> rusqlite::Result<()> {
        // A statement that changes nothing sets changes() to 0.
        self.db.conn.prepare_cached("DELETE FROM __pleat_applied WHERE id = -1")?.execute([])?;
        // SAFETY: the handle is open and used on this thread only.
        let total = unsafe {
            let handle = self.db.conn.handle();
            ffi::sqlite3_set_last_insert_rowid(handle, rowid);
            ffi::sqlite3_total_changes64(handle)
        };
        self.db.session.lock().changes_before = total - total_changes;
        Ok(())
    }

    /// What `last_insert_rowid()` and `total_changes()` say.
    pub(crate) fn counters(&self) -> (i64, i64) {
        // SAFETY: the handle is open and used on this thread only.
        let total = unsafe { ffi::sqlite3_total_changes64(self.db.conn.handle()) };
        (self.db.conn.last_insert_rowid(), total - self.db.session.lock().changes_before)
    }

    /// Compiles a statement. Only one that comes a second time goes into the cache, so that a stream of distinct
    /// texts doesn't drive the repeated ones out.
    fn compile(&self, index: usize, sql: &str) -> Applied<Compiled<'_>> {
        check_text(index, sql)?;
        let known = self.targets.borrow().contains_key(sql);
        {
            let mut session = self.db.session.lock();
            session.compiling = true;
            session.target = None;
            session.no_trigger_fires();
        }
        let conn: &Connection = &self.db.conn;
        let compiled = match known {
            true => conn.prepare_cached(sql).map(Compiled::Cached),
            false => conn.prepare(sql).map(Compiled::Fresh),
        };
        let target = {
            let mut session = self.db.session.lock();
            session.compiling = false;
            session.target.take()
        };
        let compiled = compiled.map_err(|error| self.user_error(index, error))?;
        if !known {
            check_not_empty(index, &compiled)?;
            self.targets.borrow_mut().insert(sql, target);
        }
        Ok(compiled)
    }

    /// Whether the statement's table is one that this kind of write may change.
    fn check_target(&self, index: usize, sql: &str, scope: Scope<'_>) -> Applied<()> {
        let targets = self.targets.borrow();
        let Some(spec) = targets.get(sql).and_then(|target| self.specs.get(target)) else { return Ok(()) };
        let name = &spec.table.name;
        if let Scope::Units(_) = scope {
            self.placement.check_table(name)?;
        }
        match (&spec.table.kind, scope) {
            (TableKind::Sharded { .. }, Scope::Units(_)) | (TableKind::Reference, Scope::Reference) => Ok(()),
            (TableKind::Reference, Scope::Anchor) => self.check_referred(sql, &spec.table),
            (TableKind::Single { .. }, Scope::Units(units)) => match spec.unit {
                Some(unit) if !units.contains(&unit) => Err(Refusal::NotRouted { unit }.into()),
                _ => Ok(()),
            },
            (TableKind::Reference, Scope::Units(_)) => {
                let message = format!("{name} is a reference table: it is written on all shards");
                Err(sqlstate::refuse(index, "0A000", message, "route it as a write to reference tables").into())
            }
            (_, Scope::Reference | Scope::Anchor) => {
                let message = format!("{name} is no reference table, and can't be written as one");
                Err(sqlstate::refuse(index, "0A000", message, "route it as a write to its shard").into())
            }
        }
    }

    /// Refuses what the anchor alone can't decide: where rows of other tables refer to this one each shard has a say, so it
    /// goes to all of them in one transaction. Who planned this did not know of the foreign key yet.
    fn check_referred(&self, sql: &str, table: &Table) -> Applied<()> {
        let (routed, tables) = (self.planned.generation, self.specs.values().map(|spec| &spec.table));
        match !table.only_gains(sql) && concerns_others(tables, &table.name) {
            true => Err(Refusal::Generation { ownership: routed + 1, routed }.into()),
            false => Ok(()),
        }
    }

    pub(crate) fn user_error(&self, index: usize, error: rusqlite::Error) -> failure::Stop {
        failure::of_user(&self.db.session, index, error)
    }

    /// Whether a deferred foreign key is violated. SQLite would look only when the whole batch commits.
    pub(crate) fn has_dangling_references(&self) -> bool {
        let (mut current, mut highest) = (0, 0);
        // SAFETY: the handle is open, and the call only writes to the two integers.
        unsafe {
            let handle = self.db.conn.handle();
            ffi::sqlite3_db_status(handle, ffi::SQLITE_DBSTATUS_DEFERRED_FKS, &mut current, &mut highest, 0);
        }
        current > 0
    }
}

/// What the statements of one write may still return.
pub(crate) struct ResultBudget {
    rows: usize,
    bytes: usize,
}

impl ResultBudget {
    pub(crate) fn of_a_write() -> Self {
        Self { rows: WRITE_RESULT_ROWS_MAX, bytes: WRITE_RESULT_BYTES_MAX }
    }
}

enum Collect {
    Sqlite(rusqlite::Error),
    TooLarge,
}

impl From<rusqlite::Error> for Collect {
    fn from(error: rusqlite::Error) -> Self {
        Collect::Sqlite(error)
    }
}

/// Steps a statement to its end and keeps its rows.
fn collect(statement: &mut rusqlite::Statement<'_>, left: &mut ResultBudget) -> Result<StatementResult, Collect> {
    let mut result = StatementResult::default();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        let values = values_of(row, row.as_ref().column_count())?;
        let bytes: usize = values.iter().map(Value::size).sum();
        left.rows = left.rows.checked_sub(1).ok_or(Collect::TooLarge)?;
        left.bytes = left.bytes.checked_sub(bytes).ok_or(Collect::TooLarge)?;
        result.rows.push(values);
    }
    drop(rows);
    // Not before the first step, which compiles a statement anew if the schema has changed since.
    result.columns = statement.column_names().map(str::to_owned).collect();
    Ok(result)
}

/// What can be told from a statement's text alone.
pub(crate) fn check_text(index: usize, sql: &str) -> Result<(), SqlFailure> {
    if sql.len() > STATEMENT_BYTES_MAX {
        let message = format!("the statement is {} bytes long; at most {STATEMENT_BYTES_MAX} are allowed", sql.len());
        return Err(sqlstate::refuse(index, "54000", message, "pass values as parameters, or load rows in bulk"));
    }
    if sql.contains('\0') {
        let message = "the statement contains a NUL character";
        return Err(sqlstate::refuse(index, "42601", message, "pass such text as a parameter, or write it as char(0)"));
    }
    if authorize::names_reserved(sql) {
        let message = authorize::reserved("the statement");
        return Err(sqlstate::refuse(index, "42501", message, "use another name; pass such text as a parameter"));
    }
    Ok(())
}

/// Refuses a text without a statement in it (blank, or a comment): SQLite compiles it to nothing at all.
pub(crate) fn check_not_empty(index: usize, compiled: &rusqlite::Statement<'_>) -> Result<(), SqlFailure> {
    match compiled.column_count() == 0 && compiled.expanded_sql().is_none() {
        true => Err(sqlstate::refuse(index, "42601", "there is no statement", "send one")),
        false => Ok(()),
    }
}

/// Whether every parameter has a value and every value a parameter.
pub(crate) fn check_parameters(index: usize, wanted: usize, given: usize) -> Result<(), SqlFailure> {
    match wanted == given {
        true => Ok(()),
        false => Err(sqlstate::refuse(
            index,
            "08P01",
            format!("the statement has {wanted} parameters, but {given} values were given"),
            "give one value for each parameter, by position",
        )),
    }
}

fn too_large(index: usize) -> SqlFailure {
    sqlstate::refuse(
        index,
        "54000",
        format!(
            "a write may return {WRITE_RESULT_ROWS_MAX} rows and {WRITE_RESULT_BYTES_MAX} bytes, and this one returns more"
        ),
        "return fewer columns, or read the rows afterwards",
    )
}

pub(crate) fn dangling(statements: usize) -> SqlFailure {
    sqlstate::failure(
        statements.saturating_sub(1),
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY,
        "FOREIGN KEY constraint failed".to_owned(),
    )
}
