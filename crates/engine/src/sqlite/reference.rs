//! Reference tables: a full copy on every shard, written in one order.
//!
//! The anchor's log puts the writes in order, and numbers them; every other shard applies them by number, with
//! the anchor's time and randomness. Every shard keeps the log, so that any can become the anchor.

use pleat_cluster::Millis;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, ffi};

use super::failure::{Applied, Stop};
use super::idempotency;
use super::store::Writer;
use super::write::Scope;
use crate::{Idempotency, Outcome, ReferenceEntry, Refusal, Statement};

impl Writer {
    /// A write on the anchor.
    pub(crate) fn reference_write(
        &mut self,
        given: Option<&Idempotency>,
        statements: &[Statement],
        now_ms: Millis,
        seed: u64,
    ) -> Applied<Outcome> {
        if let Some(outcome) = self.known_or_checked(given, &[], None, now_ms)? {
            return Ok(outcome);
        }
        self.placement.check_reference_writes()?;
        let results = self.run_all(statements, Scope::Reference)?;
        self.version += 1;
        let seq = last_seq(&self.db.conn)? + 1;
        append(&self.db.conn, &ReferenceEntry { seq, now_ms, seed, statements: statements.to_vec() })?;
        let outcome = Outcome::Reference { seq, results, replayed: false };
        if let Some(given) = given {
            idempotency::remember(&self.db.conn, given, &[], &outcome, now_ms)?;
        }
        Ok(outcome)
    }

    /// The same write on another shard. The session runs under the anchor's time and seed already.
    ///
    /// A foreign key from this shard's own rows may forbid what the anchor allowed. Then the copy is changed
    /// all the same: copies that differ would be worse than a reference to a row that is gone.
    pub(crate) fn reference_apply(&mut self, entry: &ReferenceEntry) -> Applied<Outcome> {
        let last = last_seq(&self.db.conn)?;
        if entry.seq <= last {
            return Ok(Outcome::Reference { seq: entry.seq, results: Vec::new(), replayed: true });
        }
        if entry.seq != last + 1 {
            return Err(Refusal::Gap { expected: last + 1, given: entry.seq }.into());
        }
        self.check_undecided()?;
        self.version += 1;
        self.db.conn.prepare_cached("SAVEPOINT reference /* __pleat_ */")?.execute([])?;
        let results = match self.run_all(&entry.statements, Scope::Reference) {
            Err(Stop::Outcome(outcome)) if is_foreign_key(&outcome) => {
                self.db.conn.prepare_cached("ROLLBACK TO reference /* __pleat_ */")?.execute([])?;
                self.db.session.lock().begin(entry.now_ms, entry.seed);
                self.without(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, |writer| {
                    writer.run_all(&entry.statements, Scope::Reference)
                })?
            }
            other => other?,
        };
        self.db.conn.prepare_cached("RELEASE reference /* __pleat_ */")?.execute([])?;
        append(&self.db.conn, entry)?;
        Ok(Outcome::Reference { seq: entry.seq, results, replayed: false })
    }

    /// Forgets what every shard has.
    pub(crate) fn reference_prune(&mut self, upto: u64) -> Applied<Outcome> {
        let conn = &self.db.conn;
        let last = last_seq(conn)?;
        conn.prepare_cached("DELETE FROM __pleat_reference_log WHERE seq <= ?1")?.execute([upto.min(last) as i64])?;
        Ok(Outcome::Done { results: Vec::new() })
    }
}

fn is_foreign_key(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(failure) if failure.sqlite_code == ffi::SQLITE_CONSTRAINT_FOREIGNKEY)
}

/// The number of the last reference write that this shard has.
pub(crate) fn last_seq(conn: &Connection) -> rusqlite::Result<u64> {
    let mut statement = conn.prepare_cached("SELECT value FROM __pleat_meta WHERE key = 'reference_seq'")?;
    let last: Option<i64> = statement.query_row([], |row| row.get(0)).optional()?;
    Ok(last.unwrap_or(0) as u64)
}

/// Sets the number of the last reference write that this shard has.
pub(crate) fn set_last_seq(conn: &Connection, seq: u64) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT OR REPLACE INTO __pleat_meta(key, value) VALUES ('reference_seq', ?1)")?
        .execute([seq as i64])?;
    Ok(())
}

/// Entries after a number: at most `limit`, and as many as fit into `bytes_max`, but one in any case.
pub(crate) fn entries_after(
    conn: &Connection,
    after: u64,
    limit: usize,
    bytes_max: usize,
) -> anyhow::Result<Vec<ReferenceEntry>> {
    let mut statement =
        conn.prepare_cached("SELECT entry FROM __pleat_reference_log WHERE seq > ?1 ORDER BY seq LIMIT ?2")?;
    let mut rows = statement.query((after as i64, limit as i64))?;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let entry = row.get_ref(0)?.as_blob()?;
        bytes += entry.len();
        if bytes > bytes_max && !entries.is_empty() {
            break;
        }
        entries.push(postcard::from_bytes(entry)?);
    }
    Ok(entries)
}

fn append(conn: &Connection, entry: &ReferenceEntry) -> Applied<()> {
    conn.prepare_cached("INSERT INTO __pleat_reference_log(seq, entry) VALUES (?1, ?2)")?
        .execute((entry.seq as i64, postcard::to_stdvec(entry)?))?;
    set_last_seq(conn, entry.seq)?;
    Ok(())
}
