//! Reference tables: a full copy on every shard, written in one order.
//!
//! The anchor's log puts the writes in order, and numbers them; every other shard applies them by number, with
//! the anchor's time and randomness. Every shard keeps the log, so that any can become the anchor.
//!
//! A transaction writes to them on every shard, among its other statements, under the number that is the next one on all of
//! them; what it wrote is appended to the log with its commit ([`Writer::log_reference`]). `host`'s `reference` has the argument.

use pleat_cluster::{Generation, Millis};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, ffi};

use super::failure::{Applied, Stop};
use super::idempotency;
use super::store::Writer;
use super::write::Scope;
use crate::{Idempotency, Outcome, ReferenceEntry, Refusal, Stamp, Statement};

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
        let results = self.run_all(statements, Scope::Anchor)?;
        self.beside.version += 1;
        let seq = last_seq(&self.db.conn)? + 1;
        append(&self.db.conn, &ReferenceEntry { seq, now_ms, seed, statements: statements.to_vec() })?;
        let outcome = Outcome::Reference { seq, results, replayed: false };
        if let Some(given) = given {
            idempotency::remember(&self.db.conn, &mut self.beside.remembered, given, &[], &outcome, now_ms)?;
        }
        Ok(outcome)
    }

    /// The same write on another shard. The session runs under the anchor's time and seed already.
    ///
    /// Should a foreign key from this shard's own rows forbid what the anchor allowed, the copy is changed
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
        self.beside.version += 1;
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

    /// Refuses a transaction's writes to reference tables that are not the next ones here.
    ///
    /// They ran on this content with this number, or the transaction's base would have been refused; so this only makes sure.
    pub(crate) fn check_reference(&self, statements: &[Statement]) -> Applied<()> {
        let Some(given) = statements.iter().find_map(|statement| statement.reference) else { return Ok(()) };
        self.placement.check_reference_writes()?;
        match self.next_reference()? {
            expected if expected == given => Ok(()),
            expected => Err(Refusal::Gap { expected, given }.into()),
        }
    }

    /// Appends what a transaction wrote to reference tables, as one entry. See the module.
    pub(crate) fn log_reference(&mut self, statements: &[Statement]) -> Applied<()> {
        let of_the_copy = |statement: &Statement| {
            // What else was undone on this shard is nothing to the copies.
            let stamp = statement.stamp.map(|stamp| Stamp { undone: None, ..stamp });
            Statement { stamp, ..statement.clone() }
        };
        let wrote = statements.iter().filter(|statement| statement.reference.is_some());
        let statements: Vec<_> = wrote.map(of_the_copy).collect();
        let Some((seq, stamp)) = statements.first().and_then(|first| first.reference.zip(first.stamp)) else {
            return Ok(());
        };
        append(&self.db.conn, &ReferenceEntry { seq, now_ms: stamp.now_ms, seed: stamp.seed, statements })
    }

    /// The number of the next reference write here.
    pub(crate) fn next_reference(&self) -> Applied<u64> {
        Ok(last_seq(&self.db.conn)? + 1)
    }

    /// On the anchor: which shards there are has changed. Whoever has read here before must look again.
    pub(crate) fn reference_members(&mut self, generation: Generation) -> Applied<Outcome> {
        self.check_undecided()?;
        if generation > members(&self.db.conn)? {
            self.db
                .conn
                .prepare_cached("INSERT OR REPLACE INTO __pleat_meta(key, value) VALUES ('reference_members', ?1)")?
                .execute([generation as i64])?;
            self.beside.version += 1;
        }
        Ok(Outcome::Done { results: Vec::new() })
    }

    /// Refuses a transaction that would not write on every shard.
    pub(crate) fn check_reference_members(&self) -> Applied<()> {
        let (routed, members) = (self.planned.generation, members(&self.db.conn)?);
        match members > routed {
            true => Err(Refusal::Generation { ownership: members, routed }.into()),
            false => Ok(()),
        }
    }

    /// Forgets what every shard has.
    pub(crate) fn reference_prune(&mut self, upto: u64) -> Applied<Outcome> {
        let conn = &self.db.conn;
        let last = last_seq(conn)?;
        conn.prepare_cached("DELETE FROM __pleat_reference_log WHERE seq <= ?1")?.execute([upto.min(last) as i64])?;
        Ok(Outcome::Done { results: Vec::new() })
    }
}

pub(crate) fn is_foreign_key(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(failure) if failure.sqlite_code == ffi::SQLITE_CONSTRAINT_FOREIGNKEY)
}

/// The generation that has all shards on which a transaction writes to reference tables.
fn members(conn: &Connection) -> rusqlite::Result<Generation> {
    let mut statement = conn.prepare_cached("SELECT value FROM __pleat_meta WHERE key = 'reference_members'")?;
    let members: Option<i64> = statement.query_row([], |row| row.get(0)).optional()?;
    Ok(members.unwrap_or(0) as Generation)
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
